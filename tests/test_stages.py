"""Stages and the guard of the loop: tables become stages, globs freeze, a cut anywhere resumes, a bad step stops all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fathom
from fathom.algorithms.supervised import Supervised
from fathom.core.callbacks import Checkpoint, History, Watcher
from fathom.core.contract import Batch, Clock, Columns, Context, Model, Schema, TensorSet, Verdict
from fathom.core.device import Device, seed_everything
from fathom.core.diagnose import non_finite
from fathom.core.errors import FathomError, NonFiniteError, RecipeError
from fathom.core.loop import train
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Recipe
from fathom.core.registry import fields
from fathom.core.run import CheckpointStore
from fathom.core.state import load_state, state_of

HEAD_THEN_ALL = [
    {"name": "head", "steps": 5, "rates": {"*": 0.0, "3.*": 1.0}},
    {"name": "all", "steps": 7, "rates": {"*": 1.0, "0.*": 0.1}},
]


def task(tree: Mapping[str, Any], **context: Any) -> tuple[Supervised, dict[str, TensorSet]]:
    """A small classifier on random rows: parameters 0.* and 3.*."""
    seed_everything(3)
    x = np.random.default_rng(0).normal(size=(40, 2))
    columns = Columns({"a": x[:, 0], "b": x[:, 1], "y": (x[:, 0] > 0).astype(int)})
    schema = Schema({"x": fields["number"].make(["a", "b"])}, {"y": fields["category"].make(["y"])})
    for item in schema.fields().values():
        item.fit([columns])
    data = TensorSet({"x": schema.inputs["x"].encode(columns), "y": schema.targets["y"].encode(columns, target=True)})
    recipe = Recipe.parse(tree)
    module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    models = {"model": Model(schema, module)}
    return Supervised(Context(schema, models, recipe, Clock(), torch.device("cpu"), **context)), {"train": data}


def weights(algorithm: Supervised) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in algorithm.models["model"].module.state_dict().items()}


class AfterStages(Watcher):
    """Keeps the weights at the end of each stage."""

    def __init__(self, algorithm: Supervised) -> None:
        self.algorithm = algorithm
        self.seen = [weights(algorithm)]

    def after_stage(self, clock: Clock, models: Mapping[str, Model]) -> None:
        self.seen.append(weights(self.algorithm))


class Cut(Watcher):
    """Saves the state after some step and ends everything there."""

    def __init__(self, algorithm: Supervised, step: int, store: CheckpointStore) -> None:
        self.algorithm, self.step, self.store = algorithm, step, store

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        if clock.total == self.step:
            self.store.save(state_of(self.algorithm, clock, {}), clock.total)
            raise KeyboardInterrupt
        return "continue"


def run(algorithm: Supervised, data: Mapping[str, TensorSet], *watchers: Any) -> None:
    train(algorithm, algorithm.stages(data), watchers, algorithm.context.clock, Device.choose("cpu"), non_finite)


STAGED = {"training": {"batch": 10, "average": 0.9, "learning_rate": 0.01}, "stage": HEAD_THEN_ALL}


def test_tables_become_stages() -> None:
    algorithm, data = task(STAGED)
    made = algorithm.stages(data)
    assert [(stage.name, stage.steps, stage.rates) for stage in made] == [
        (table["name"], table["steps"], table["rates"]) for table in HEAD_THEN_ALL
    ]
    assert all(stage.data is data["train"] for stage in made)


def test_a_frozen_glob_does_not_move_and_thaws() -> None:
    algorithm, data = task(STAGED)
    watcher = AfterStages(algorithm)
    run(algorithm, data, watcher)
    start, head, everything = watcher.seen
    for name in start:
        assert torch.equal(start[name], head[name]) == name.startswith("0."), name
        assert not torch.equal(head[name], everything[name]), name


@pytest.mark.parametrize("step", [1, 4, 5, 6, 11, 12])
def test_a_cut_on_either_side_of_the_border_resumes_to_equal_bits(step: int, tmp_path: Path) -> None:
    whole, data = task(STAGED)
    run(whole, data)
    store = CheckpointStore(tmp_path)
    cut, data = task(STAGED)
    with pytest.raises(KeyboardInterrupt):
        run(cut, data, Cut(cut, step, store))
    again, data = task(STAGED)
    state, _ = store.load()
    assert state is not None
    load_state(state, again, again.context.clock, {})
    run(again, data)
    assert again.context.clock.total == whole.context.clock.total == 12
    mine, theirs = weights(again), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    averages = (again.optimizers["model"].averages, whole.optimizers["model"].averages)
    assert all(torch.equal(one, other) for one, other in zip(*averages, strict=True))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"stage": [{"name": "x"}]}, "stage[0] should say how long it takes, in epochs or in steps"),
        ({"stage": [{"steps": 2}, {"steps": 2, "epochs": 1.0}]}, "stage[1] should say how long"),
        ({"stage": [{"steps": 2}], "training": {"epochs": 3}}, "training.epochs has no meaning beside [[stage]]"),
        ({"stage": [{"steps": 2}], "training": {"steps": 3}}, "training.steps has no meaning beside [[stage]]"),
        ({"stage": [{"steps": 2}], "training": {"minutes": 3}}, "training.minutes has no meaning beside [[stage]]"),
    ],
)
def test_the_stages_alone_say_how_long(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(tree)
    assert words in str(caught.value)


def frame() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    a, b = generator.random(80).round(3), generator.random(80).round(3)
    return {"a": a.tolist(), "b": b.tolist(), "label": ["yes" if x > y else "no" for x, y in zip(a, b, strict=True)]}


def test_fit_trains_the_stages_and_writes_their_steps() -> None:
    tables = [
        {"name": "head", "epochs": 2, "rates": {"*": 0.0, "head.*": 1.0}},
        {"name": "all", "steps": 3, "rates": {"*": 1.0, "hidden.*": 0.5}},
    ]
    recipe = {"network": {"name": "mlp"}, "training": {"batch": 8, "threads": 1, "device": "cpu"}, "stage": tables}
    made = fathom.fit(frame(), target="label", recipe=recipe)
    per_epoch = -(-made.results["splits"]["train"] // 8)
    steps = [stage.steps for stage in made.recipe.stage]
    assert steps == [2 * per_epoch, 3]
    assert made.recipe.training.steps == sum(steps)
    assert made.recipe.training.epochs is None
    assert made.history[-1]["step"] == sum(steps)
    assert {line["stage"] for line in made.history} == {0, 1}
    epochs = round(2 + 3 / per_epoch, 2)
    assert made.history[-1]["epoch"] == epochs
    page = made.report().read_text("utf-8")
    assert f"Loss over {epochs:g} epochs" in page
    assert "head.* × 1, all others frozen" in page
    assert "hidden.* × 0.5, all others × 1" in page
    assert ">stage all<" in page
    again = fathom.fit(frame(), recipe=made.path / "recipe.toml")
    assert again.results["test"] == made.results["test"], "the written recipe repeats the run"


def test_a_glob_that_meets_nothing_is_told_before_anything_is_written() -> None:
    recipe = {
        "network": {"name": "mlp"},
        "stage": [{"steps": 2}, {"steps": 2, "rates": {"*": 1.0, "hiden.0.*": 0.0}}],
    }
    with pytest.raises(FathomError, match=r"The rates name 'hiden\.0\.\*', but no parameter.*mean 'hidden\.0\.\*'"):
        fathom.fit(frame(), target="label", recipe=recipe)
    assert not list(Path("runs").glob("*"))


# ---- the guard, where looking waits for the device ------------------------------------------------------------


@dataclass(frozen=True)
class Waits(Device):
    """A device on which looking at a number is not free."""

    @property
    def reads_are_free(self) -> bool:
        return False


def minimize_on_device(self: Optimizer, loss: Tensor) -> None:
    for group in self.groups:
        group.gradients.zero_()
    loss.backward()
    self._update_on_device(loss)


def poisoned(monkeypatch: pytest.MonkeyPatch, step: int) -> tuple[Supervised, dict[str, TensorSet], list[Any]]:
    """A task whose loss is NaN at one step, and what the maker of the error was given."""
    monkeypatch.setattr(Optimizer, "minimize", minimize_on_device)
    calls = [0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        return nn.functional.cross_entropy(output, target, reduction="none") * (np.nan if calls[0] == step + 1 else 1)

    tree = {"training": {"batch": 10, "steps": 60, "learning_rate": 0.01, "optimizer": "adamw"}}
    algorithm, data = task(tree, losses={"y": loss})
    return algorithm, data, []


def guarded(algorithm: Supervised, data: Mapping[str, TensorSet], given: list[Any], *watchers: Any) -> None:
    def error(algorithm: Any, batch: Batch, step: int) -> Exception:
        given.append((batch[".row"].tolist(), step))
        return NonFiniteError("told")

    train(algorithm, algorithm.stages(data), watchers, algorithm.context.clock, Waits(torch.device("cpu")), error)


def rows_of(algorithm: Supervised, data: Mapping[str, TensorSet], step: int) -> list[int]:
    return next(algorithm.batches(algorithm.stages(data)[0], step))[".row"].tolist()  # type: ignore[no-any-return]


def test_the_batch_of_the_bad_step_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, data, given = poisoned(monkeypatch, 7)
    with pytest.raises(NonFiniteError, match="told"):
        guarded(algorithm, data, given)
    assert algorithm.context.clock.total == 50, "it is seen at the next look"
    assert given == [(rows_of(algorithm, data, 7), 7)]


def test_a_checkpoint_after_a_bad_step_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    algorithm, data, given = poisoned(monkeypatch, 7)
    history, store = History(4, None, lambda: 0.0), CheckpointStore(tmp_path)
    clock = algorithm.context.clock
    checkpoint = Checkpoint(store, lambda: state_of(algorithm, clock, {}), 0, history)
    with pytest.raises(NonFiniteError, match="told"):
        guarded(algorithm, data, given, checkpoint)
    assert clock.total == 8
    assert given == [(rows_of(algorithm, data, 7), 7)]
    state, _ = store.load()
    assert state is not None
    assert state["clock"]["total"] == 7, "the last one is from before"
    momentum = state["algorithm"]["optimizers"]["model"]["steppers"]["0"]["first"]
    assert bool(torch.isfinite(momentum).all())


@pytest.mark.parametrize("verdict", ["end_run", "end_stage"])
def test_a_run_that_ends_early_is_looked_at(verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends(Watcher):
        def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
            return verdict if clock.total == 10 else "continue"

    algorithm, data, given = poisoned(monkeypatch, 7)
    with pytest.raises(NonFiniteError, match="told"):
        guarded(algorithm, data, given, Ends())
    assert given == [(rows_of(algorithm, data, 7), 7)]


def test_the_saved_state_knows_the_bad_step(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, data, _ = poisoned(monkeypatch, 1)
    optimizer = algorithm.optimizers["model"]
    batches: Callable[[], Batch] = algorithm.batches(algorithm.stages(data)[0], 0).__next__
    for algorithm.context.clock.total in range(3):
        algorithm.step(batches())
    assert optimizer.state_dict()["bad_step"] == 1
