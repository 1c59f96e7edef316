"""The contract, proved before anything is built on it: a supervised, a two-player and an acting algorithm run in the
same loop, and each, killed anywhere and resumed from its checkpoint, goes on with a bit-equal trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fathom.core.callbacks import History, Watcher
from fathom.core.contract import (
    Algorithm,
    Batch,
    Clock,
    Columns,
    Context,
    Model,
    Predictor,
    Schema,
    Stage,
    TensorSet,
)
from fathom.core.device import Device, seed_everything
from fathom.core.diagnose import non_finite
from fathom.core.loop import train
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Recipe
from fathom.core.registry import algorithms, fields
from fathom.core.run import CheckpointStore
from fathom.core.state import load_state, state_of

ROWS, STEPS = 60, 12


def make_schema() -> tuple[Schema, TensorSet]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, 4))
    columns = Columns({**{f"x{i}": x[:, i] for i in range(4)}, "y": (x[:, 0] > 0).astype(int)})
    numbers = fields["number"].make([f"x{i}" for i in range(4)])
    target = fields["category"].make(["y"])
    for item in (numbers, target):
        item.fit([columns])
    schema = Schema({"numbers": numbers}, {"y": target})
    return schema, TensorSet({"numbers": numbers.encode(columns), "y": target.encode(columns, target=True)})


class Adversarial(Algorithm):
    """Two players: a generator of points and a discriminator, two `minimize` a step."""

    @classmethod
    def roles(cls, schema: Schema) -> dict[str, Schema]:
        return {"generator": schema, "discriminator": schema}

    def build(self) -> None:
        training = self.context.recipe.training
        self.optimizers = {
            name: Optimizer({name: model}, training, self.context.clock, exclusive=False)
            for name, model in self.models.items()
        }

    def step(self, batch: Batch) -> dict[str, Tensor]:
        real = batch["numbers"]
        fake = self.models["generator"].module(torch.randn(len(real), 3))
        judge = self.models["discriminator"].module
        loss = nn.functional.softplus(-judge(real)).mean() + nn.functional.softplus(judge(fake.detach())).mean()
        self.optimizers["discriminator"].minimize(loss)
        fooled = nn.functional.softplus(-judge(fake)).mean()
        self.optimizers["generator"].minimize(fooled)
        return {"loss": loss.detach(), "fooled": fooled.detach()}

    @classmethod
    def deploy(cls, schema: Schema, models: Any) -> Predictor:
        raise NotImplementedError


class Corridor:
    """Walk right to the end of a corridor of six places: the smallest environment with a memory of its own."""

    def __init__(self) -> None:
        self.place = 0

    def act(self, right: bool) -> tuple[int, float]:
        self.place = min(5, max(0, self.place + (1 if right else -1)))
        reward = float(self.place == 5)
        if reward:
            self.place = 0
        return self.place, reward

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Acting(Algorithm):
    """Q-learning: act, store, sample. The environment and the replay memory decide the next batch, so they are saved."""

    saved: ClassVar[tuple[str, ...]] = ("environment", "memory", "stored")

    def build(self) -> None:
        self.environment = Corridor()
        self.memory = torch.zeros(64, 4)
        self.stored = 0
        self.optimizers = {"model": Optimizer(self.models, self.context.recipe.training, self.context.clock)}

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        q = self.models["model"].module
        while True:
            for _ in range(4):
                place = self.environment.place
                with torch.no_grad():
                    greedy = int(q(one_hot(torch.tensor([place]))).argmax())
                action = int(torch.randint(2, ())) if float(torch.rand(())) < 0.5 else greedy
                after, reward = self.environment.act(bool(action))
                self.memory[self.stored % 64] = torch.tensor([place, action, reward, after])
                self.stored += 1
                self.context.clock.environment_steps += 1
            index = torch.randint(min(self.stored, 64), (8,))
            yield {"memory": self.memory[index]}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        q = self.models["model"].module
        place, action, reward, after = batch["memory"].unbind(1)
        with torch.no_grad():
            wanted = reward + 0.9 * q(one_hot(after.long())).max(1).values * (1 - reward)
        chosen = q(one_hot(place.long())).gather(1, action.long()[:, None]).squeeze(1)
        loss = (chosen - wanted).square().mean()
        self.optimizers["model"].minimize(loss)
        return {"loss": loss.detach()}

    @classmethod
    def deploy(cls, schema: Schema, models: Any) -> Predictor:
        raise NotImplementedError


def one_hot(place: Tensor) -> Tensor:
    return nn.functional.one_hot(place, 6).float()


class Trace(Watcher):
    """The whole trajectory: the bytes of all weights after every step. Kills the run where it is told to."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.weights: dict[int, bytes] = {}

    def after_step(self, clock: Clock, metrics: Any, models: Any) -> Any:
        parts = [p.detach().clone().numpy().tobytes() for m in models.values() for p in m.parameters()]
        self.weights[clock.total] = b"".join(parts)
        return "continue"


class Save(Watcher):
    """Saves at one step and then stops everything, as a kill would."""

    def __init__(self, store: CheckpointStore, algorithm: Algorithm, watchers: dict[str, Any], at: int) -> None:
        self.store, self.algorithm, self.watchers, self.at = store, algorithm, watchers, at

    def after_step(self, clock: Clock, metrics: Any, models: Any) -> Any:
        if clock.total == self.at:
            self.store.save(state_of(self.algorithm, clock, self.watchers), clock.total)
            raise KeyboardInterrupt
        return "continue"


def build(kind: str) -> tuple[Algorithm, list[Stage], Clock]:
    seed_everything(1)
    schema, data = make_schema()
    recipe = Recipe.parse(
        {
            "training": {
                "batch": 16,
                "steps": STEPS,
                "learning_rate": 0.01,
                "average": 0.9,
                "weight_decay": 0.1,
            }
        }
    )
    clock = Clock()
    modules: dict[str, nn.Module]
    if kind == "supervised":
        modules = {"model": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))}
        make: Any = algorithms["supervised"].make
    elif kind == "adversarial":
        modules = {
            "generator": nn.Linear(3, 4),
            "discriminator": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
        }
        make = Adversarial
    else:
        modules = {"model": nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))}
        make = Acting
    models = {role: Model(schema, module) for role, module in modules.items()}
    algorithm = make(Context(schema, models, recipe, clock, torch.device("cpu")))
    half = Stage("first", STEPS // 2, data)
    return algorithm, [half, Stage("second", STEPS - STEPS // 2, data, {"*": 0.5})], clock


def run(algorithm: Algorithm, stages: list[Stage], clock: Clock, watchers: list[Any]) -> None:
    train(algorithm, stages, watchers, clock, Device.choose("cpu"), non_finite)


@pytest.mark.parametrize("kind", ["supervised", "adversarial", "acting"])
def test_a_killed_run_resumes_with_an_equal_trajectory(kind: str, tmp_path: Path) -> None:
    algorithm, stages, clock = build(kind)
    whole, lines = Trace(), History(5, None, lambda: 0.0)
    run(algorithm, stages, clock, [lines, whole])
    assert len(whole.weights) == STEPS
    for at in range(1, STEPS + 1):
        store = CheckpointStore(tmp_path / f"{kind}-{at}")
        algorithm, stages, clock = build(kind)
        before, first = History(5, None, lambda: 0.0), Trace()
        with pytest.raises(KeyboardInterrupt):
            run(algorithm, stages, clock, [before, first, Save(store, algorithm, {"history": before}, at)])
        algorithm, stages, clock = build(kind)
        torch.manual_seed(999)  # another process has another random state
        after, second = History(5, None, lambda: 0.0), Trace()
        state, notes = store.load()
        assert state is not None
        assert notes == []
        load_state(state, algorithm, clock, {"history": after})
        run(algorithm, stages, clock, [after, second])
        assert {**first.weights, **second.weights} == whole.weights, f"{kind} cut at step {at}"
        assert [line["train/loss"] for line in after.lines] == [line["train/loss"] for line in lines.lines]


def test_dropping_saved_state_breaks_the_trajectory(tmp_path: Path) -> None:
    """The test above can fail: without the environment and the memory, acting goes another way."""
    algorithm, stages, clock = build("acting")
    whole = Trace()
    run(algorithm, stages, clock, [whole])
    algorithm, stages, clock = build("acting")
    store = CheckpointStore(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        run(algorithm, stages, clock, [Save(store, algorithm, {}, 5)])
    algorithm, stages, clock = build("acting")
    state, _ = store.load()
    assert state is not None
    state["algorithm"]["saved"]["memory"] = torch.zeros(64, 4)
    load_state(state, algorithm, clock, {})
    second = Trace()
    run(algorithm, stages, clock, [second])
    assert second.weights[STEPS] != whole.weights[STEPS]


def test_acting_learns_the_corridor() -> None:
    algorithm, _, clock = build("acting")
    run(algorithm, [Stage("train", 400, None)], clock, [])
    q = algorithm.models["model"].module(one_hot(torch.arange(5)))
    assert q.argmax(1).tolist() == [1] * 5
    assert clock.environment_steps == 1600


def test_two_players_reach_only_their_own_weights() -> None:
    algorithm, _, _ = build("adversarial")
    generator = [p.clone() for p in algorithm.models["generator"].parameters()]
    loss = algorithm.models["discriminator"].module(algorithm.models["generator"].module(torch.randn(4, 3))).mean()
    algorithm.optimizers["discriminator"].minimize(loss)
    for before, after in zip(generator, algorithm.models["generator"].parameters(), strict=True):
        assert torch.equal(before, after)


def test_frozen_parameters_do_not_move() -> None:
    algorithm, stages, clock = build("supervised")
    frozen = algorithm.models["model"].module[0].weight.clone()
    moving = algorithm.models["model"].module[3].weight.clone()
    run(algorithm, [Stage("head", 5, stages[0].data, {"*": 0.0, "3.*": 1.0})], clock, [])
    assert torch.equal(algorithm.models["model"].module[0].weight, frozen)
    assert not torch.equal(algorithm.models["model"].module[3].weight, moving)
