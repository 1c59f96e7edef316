"""Members, resumes and budgets: a run never judges itself on what it learnt, and goes on exactly where it was stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import fathom
from fathom.analysis.evaluate import pooled, pooled_difference
from fathom.core import callbacks
from fathom.core.errors import DataError, FathomError, Interrupted, RunError
from fathom.core.prepare import prepare
from fathom.core.recipe import Data, Recipe
from fathom.core.run import read_json
from fathom.core.tensors import WEIGHT
from fathom.sources import open_source
from fathom.verbs import judge, members
from fathom.verbs.assemble import build, open_task
from kit import table, trained

QUICK = {"training.threads": 1, "training.device": "cpu", "training.checkpoint_seconds": 0, "network": "mlp"}
STEPS = {"training.batch": 16, "epochs": 2, "training.early_stopping": 0}


@pytest.fixture(autouse=True)
def _no_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is judged here is the network; forests would take most of the time."""
    monkeypatch.setattr(judge, "baselines", lambda *_: ({}, []))


class KillError(Exception):
    """Stands for SIGKILL: nothing is saved."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, member: int = 1) -> Iterator[None]:
    """Kill training at a step, of the n-th member that gets there."""
    reached = []

    def after_step(self: Any, clock: Any, metrics: Any, models: Any) -> str:
        if clock.total == step:
            reached.append(step)
            if len(reached) == member:
                raise KillError
        return "continue"

    with monkeypatch.context() as patch, pytest.raises(KillError):  # noqa: PT012
        patch.setattr(callbacks.TensorBoard, "after_step", after_step)
        yield


def noise(path: Path, rows: int = 120) -> Path:
    """A table whose answers cannot be known."""
    draw = np.random.default_rng(3)
    lines = [
        f"{a},{b},{'yes' if y else 'no'}"
        for a, b, y in zip(*draw.random((2, rows)), draw.random(rows) > 0.5, strict=True)
    ]
    path.write_text("\n".join(["a,b,y", *lines]) + "\n", "utf-8")
    return path


def weights(run: fathom.Run | Path) -> bytes:
    return ((run if isinstance(run, Path) else run.path) / "model" / "weights.safetensors").read_bytes()


def everything(run: Path) -> dict[str, Any]:
    """What must be equal after a resume, of each member."""
    return {path.parent.name: trained(path.parent) for path in run.glob("members/*/results.json")}


# ---------------------------------------------------------------- no row that was learnt is judged


@pytest.mark.parametrize("kind", [{"folds": 3}, {"seeds": 2}, {"seeds": 2, "folds": 2}])
def test_evaluate_judges_the_deployed_member_on_its_own_test_rows(kind: dict[str, int]) -> None:
    run = fathom.fit(noise(Path("t.csv")), target="y", **QUICK, **kind, epochs=20, **{"training.learning_rate": 0.02})
    member = run.path / "members" / run.results["member"]
    assert weights(run) == weights(member)
    assert fathom.evaluate(run)["test"] == read_json(member / "results.json")["test"]
    assert (run.path / "schema.json").read_bytes() == (member / "schema.json").read_bytes()
    for path in sorted((run.path / "members").iterdir()):
        assert fathom.evaluate(path)["test"] == read_json(path / "results.json")["test"], path.name


def test_the_recipe_of_a_member_repeats_it_alone() -> None:
    run = fathom.fit(table(Path("t.csv")), **QUICK, **STEPS, folds=3, seed=4, **{"data.limit": 50})
    path = run.path / "members" / "fold-2"
    recipe = Recipe.parse(Recipe.read(path / "recipe.toml"))
    assert (recipe.data.split_seed, recipe.data.fold, recipe.training.folds) == (4, (2, 3), 1)
    assert weights(fathom.fit(path / "recipe.toml")) == weights(path)
    again = fathom.fit(run.path / "recipe.toml")
    assert everything(again.path) == everything(run.path), "the run's own recipe repeats all members"


def test_seeds_share_the_rows_and_folds_hold_each_out_once() -> None:
    table(Path("t.csv"))

    def rows(recipe: Recipe) -> list[int]:
        return open_task("t.csv", recipe.tables()).prepared.splits["test"].tolist()

    planned = members.plan(open_task("t.csv", {"training": {"seeds": 2, "seed": 7}}).recipe)
    one, other = (rows(recipe) for recipe in planned.values())
    assert list(planned) == ["seed-7", "seed-8"]
    assert one == other
    folds = members.plan(open_task("t.csv", {"training": {"folds": 3}}).recipe)
    assert sorted(row for recipe in folds.values() for row in rows(recipe)) == list(range(60))


def test_seeds_of_folds_repeat_the_cross_validation_with_other_divisions() -> None:
    """Each repeat holds every row out once; rows of one group stay on one side in all of them."""
    rows = [f"{i},{i // 3},{i % 2}" for i in range(60)]
    Path("t.csv").write_text("a,g,y\n" + "\n".join(rows) + "\n", "utf-8")
    tree = {"data": {"target": ["y"], "group": "g", "types": {"y": "category"}}, "training": {"folds": 3, "seeds": 2}}
    planned = members.plan(open_task("t.csv", tree).recipe)
    held = {}
    for name, recipe in planned.items():
        splits = open_task("t.csv", recipe.tables()).prepared.splits
        held[name] = splits["test"].tolist()
        sides = [set(index // 3) for index in splits.values()]
        assert sum(map(len, sides)) == 20, "a group on two sides would count twice"
    repeats = [[held[f"seed-{seed}-fold-{k}"] for k in (1, 2, 3)] for seed in (0, 1)]
    assert all(sorted(row for part in repeat for row in part) == list(range(60)) for repeat in repeats)
    assert repeats[0] != repeats[1]
    tree["data"]["split_seed"] = 5
    kept = members.plan(open_task("t.csv", tree).recipe)
    assert {recipe.data.split_seed for recipe in kept.values()} == {5}, "a division that is asked for is kept"


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "map50", "sample_precision", "sample_recall"])
def test_the_pooled_interval_of_a_share_ends_at_one(metric: str) -> None:
    tables = [{metric: {"value": value, "low": value - 0.02, "high": 1.0}} for value in (0.98, 1.0)]
    assert pooled(tables, folds=1)[metric]["high"] == 1.0


def test_repeats_judge_the_same_rows_and_do_not_narrow_what_those_leave_open() -> None:
    table = {"auroc": {"value": 0.8, "low": 0.6, "high": 1.0}}
    once, often = (pooled_difference([table] * count, folds=5)["auroc"] for count in (5, 50))
    assert once == often
    assert once["high"] - once["value"] == pytest.approx(0.2 / 5**0.5)


def fold(location: Any, **options: Any) -> Any:
    data = Data(target=["y"], **options)
    return prepare(open_source(location, data), data, seed=0)


def test_a_given_test_split_stays_out_of_the_folds() -> None:
    noise(Path("t.csv"), 60)
    draw = np.random.default_rng(9).random((20, 2))
    Path("later.csv").write_text("a,b,y\n" + "".join(f"{a},{b},no\n" for a, b in draw), "utf-8")
    held = []
    for k in (1, 2, 3):
        prepared = fold("t.csv", fold=[k, 3], test="later.csv")
        assert all(max(index) < 60 for index in prepared.splits.values()), "the 20 rows behind them are the given test"
        assert "The given test split (20 rows) is set aside: no fold learns from it" in " ".join(prepared.notes)
        held += prepared.splits["test"].tolist()
    assert sorted(held) == list(range(60))


def test_a_given_validation_split_and_share_are_kept() -> None:
    noise(Path("t.csv"), 60)
    assert len(fold("t.csv", fold=[1, 3], validation=0.5).splits["validation"]) == 20
    draw = np.random.default_rng(9).random((20, 2))
    Path("v.csv").write_text("a,b,y\n" + "".join(f"{a},{b},no\n" for a, b in draw), "utf-8")
    prepared = fold("t.csv", fold=[2, 3], validation="v.csv")
    assert sorted(prepared.splits["validation"].tolist()) == list(range(60, 80))
    assert len(prepared.splits["train"]) == 40


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            {"time": "a", "folds": 3},
            r"Folds shuffle the rows, but 'a' \(data\.time\) orders them.*Leave training\.folds out",
        ),
        ({"test": 0.3, "folds": 3}, r"data\.test = 0\.3 has no meaning beside training\.folds"),
        ({"data.fold": [4, 3]}, r"data\.fold = \[4, 3\] is not allowed: write \[k, K\]"),
        ({"data.fold": [1, 3], "folds": 3}, r"data\.fold trains one fold and training\.folds = 3 trains all"),
        ({"training.monitor": "acuracy"}, r"no metric 'acuracy' in training\.monitor\. Did you mean 'accuracy'"),
        ({"training.monitor": "y.accuracy", "seeds": 2}, r"no metric 'y\.accuracy'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(flags: dict[str, Any], text: str) -> None:
    with pytest.raises(FathomError, match=text):
        fathom.fit(noise(Path("t.csv")), target="y", **QUICK, epochs=1, **flags)
    assert not list(Path("runs").glob("*"))


def test_too_many_folds_are_refused() -> None:
    with pytest.raises(DataError, match=r"training\.folds = 50 needs at least 50 different rows"):
        fathom.fit(noise(Path("t.csv"), 30), target="y", folds=50, **QUICK)


def test_the_member_is_chosen_by_the_weights_that_it_deploys() -> None:
    tables = [{"monitored": {"metric": m, "value": v}} for m, v in [("loss", 0.5), ("loss", 0.25), ("loss", None)]]
    assert members._best(tables) == 1
    assert members._best([{"monitored": {"metric": "accuracy", "value": v}} for v in (None, 0.5, 0.75, 0.75)]) == 2
    run = fathom.fit(noise(Path("t.csv")), target="y", **QUICK, seeds=2, epochs=8, **{"training.keep": "best"})
    for path in (run.path / "members").iterdir():
        lines = [line["validation/loss"] for line in fathom.load(path).history]
        assert fathom.load(path).results["monitored"] == {"metric": "loss", "value": min(lines)}


# ---------------------------------------------------------------- resumes


@pytest.mark.parametrize("kind", [{"folds": 3}, {"seeds": 2}])
def test_killed_members_end_with_the_same_bytes(kind: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    table(Path("t.csv"), rows=61)  # folds of unequal size
    straight = fathom.fit("t.csv", **QUICK, **STEPS, **kind, name="straight")
    with killed_at(4, monkeypatch, member=2):
        fathom.fit("t.csv", **QUICK, **STEPS, **kind, name="cut")
    assert len(list(Path("runs/cut/members").glob("*/results.json"))) == 1
    resumed = fathom.fit(resume="runs/cut")
    assert everything(resumed.path) == everything(straight.path)
    assert resumed.results["test"] == straight.results["test"]


def test_a_member_is_resumed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    table(Path("t.csv"))
    straight = fathom.fit("t.csv", **QUICK, **STEPS, folds=2, name="straight")
    with killed_at(3, monkeypatch):
        fathom.fit("t.csv", **QUICK, **STEPS, folds=2, name="cut")
    member = fathom.fit(resume="runs/cut/members/fold-1")
    assert trained(member.path) == trained(straight.path / "members" / "fold-1")
    assert everything(fathom.fit(resume="runs/cut").path) == everything(straight.path)


@pytest.mark.parametrize("kind", [{}, {"folds": 2}])
def test_a_longer_run_that_is_killed_is_taken_up(kind: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    table(Path("t.csv"))
    for name in ("straight", "cut"):
        fathom.fit("t.csv", **QUICK, **STEPS, **kind, name=name)
    before = fathom.load("straight").results["steps"]
    straight = fathom.fit(resume="runs/straight", epochs=6)
    assert straight.results["steps"] == 3 * before
    with killed_at(before + 2, monkeypatch, member=max(1, len(kind) * 2)):
        fathom.fit(resume="runs/cut", epochs=6)
    assert not Path("runs/cut/results.json").exists()
    resumed = fathom.fit(resume="runs/cut")
    assert weights(resumed) == weights(straight)
    assert everything(resumed.path) == everything(straight.path)
    told: list[str] = []
    fathom.fit(resume="runs/cut", tell=told.append)
    fathom.fit(resume="runs/cut", epochs=6, tell=told.append)
    assert [line.partition(" is ")[2] for line in told] == ["finished; give more --epochs to go on."] * 2


@pytest.mark.parametrize("kind", [{}, {"seeds": 2}])
def test_a_budget_that_is_spent_is_refused_and_changes_nothing(kind: dict[str, int]) -> None:
    run = fathom.fit(table(Path("t.csv")), **QUICK, **STEPS, **kind)
    before = (run.path / "recipe.toml").read_bytes(), (run.path / "results.json").read_bytes()
    with pytest.raises(
        RunError, match=r"has done 6 steps already, and the budget is 3 steps in all\. Give a larger one"
    ):
        fathom.fit(resume=run, epochs=1)
    assert before == ((run.path / "recipe.toml").read_bytes(), (run.path / "results.json").read_bytes())


def test_minutes_may_follow_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(3, monkeypatch):
        fathom.fit(table(Path("t.csv")), **QUICK, **STEPS, name="run")
    assert fathom.fit(resume="runs/run", minutes=0.005).recipe.training.minutes == 0.005


def test_a_locked_run_is_left_as_it_is() -> None:
    run = fathom.fit(table(Path("t.csv")), **QUICK, **STEPS)
    before = (run.path / "recipe.toml").read_bytes()
    with run.folder.lock(), pytest.raises(RunError, match="Another process is training"):
        fathom.fit(resume=run, epochs=9)
    assert (run.path / "recipe.toml").read_bytes() == before
    assert (run.path / "results.json").exists()


def test_a_signal_names_the_run_not_the_member(monkeypatch: pytest.MonkeyPatch) -> None:
    def after_step(self: Any, clock: Any, metrics: Any, models: Any) -> str:
        signal.raise_signal(signal.SIGINT)
        return "continue"

    table(Path("t.csv"))
    monkeypatch.setattr(callbacks.TensorBoard, "after_step", after_step)
    with pytest.raises(Interrupted, match=r"Go on with: fathom fit --resume runs/run$"):
        fathom.fit("t.csv", **QUICK, **STEPS, folds=2, name="run")
    with pytest.raises(Interrupted, match=r"fathom\.fit\(data, resume='runs/memory'\)$"):
        fathom.fit((np.eye(40), np.arange(40) % 2), **QUICK, **STEPS, name="memory")


def test_what_a_resume_cannot_change_is_refused() -> None:
    run = fathom.fit(table(Path("t.csv")), **QUICK, **STEPS)
    with pytest.raises(FathomError, match=r"'network\.name' cannot change in a run that has begun"):
        fathom.fit(resume=run, network="perceptron")
    with pytest.raises(FathomError, match="A run goes on with its own recipe: leave recipe= out"):
        fathom.fit(resume=run, recipe={"training": {"epochs": 3}})
    with pytest.raises(FathomError, match=r"Two recipes came: .*recipe\.toml and recipe="):
        fathom.fit(run.path / "recipe.toml", recipe={"training": {"epochs": 3}})
    with pytest.raises(FathomError, match="trains the network 'mlp'; leave your own module out"):
        fathom.fit(resume=run, epochs=3, network=nn.Linear(2, 2))


# ---------------------------------------------------------------- minutes


SLOW = {"training": {"minutes": 0.004, "steps": 1_000_000, "batch": 16}}


def test_a_run_that_its_minutes_ended_says_so_and_is_repeated(tmp_path: Path) -> None:
    run = fathom.fit(table(Path("t.csv")), recipe=SLOW, **QUICK)
    steps = run.results["steps"]
    assert fathom.load(run.path).recipe.training.stop_after == steps < 1_000_000
    assert any(note.startswith(f"Training ended at step {steps:,} ") for note in run.results["notes"])
    assert fathom.load(run.path).recipe.training.replans, "a million steps do not fit"
    again = fathom.fit(run.path / "recipe.toml")
    assert weights(again) == weights(run)
    for name in ("results.json", "model/weights.safetensors"):  # killed when training was over
        (again.path / name).unlink()
    assert weights(fathom.fit(resume=again.path)) == weights(run)
    longer = fathom.fit(resume=again.path, steps=steps + 3)
    assert longer.results["steps"] == steps + 3
    training = fathom.load(longer.path).recipe.training
    assert (training.stop_after, training.replans) == (None, None)


def test_a_plan_that_takes_too_long_is_made_anew() -> None:
    """A step takes 1 s instead of 0.6 s, so that 60 of 100 fit into the minute; then steps become cheap again."""
    deadline = callbacks.Deadline(1.0)
    clock = fathom.core.contract.Clock(steps=100)
    progress = [0.0]
    while deadline.after_step(clock, {}, {}) == "continue":
        clock.step, clock.total = clock.step + 1, clock.total + 1
        clock.seconds += 1.0
        progress.append(clock.progress)
    assert clock.step == clock.end == 60
    assert clock.replans == [(8, 60)], "an eighth of the minutes told it, and it then held"
    assert progress[8] == pytest.approx(0.08)
    assert progress[-1] == 1.0, "the schedule comes to its end"
    assert np.diff(progress).min() > 0
    repeated = callbacks.Deadline(1.0, stop_after=60, replans=[(8, 60)])
    again = fathom.core.contract.Clock(steps=100)
    same = [0.0]
    while repeated.after_step(again, {}, {}) == "continue":
        again.step, again.total, again.seconds = again.step + 1, again.total + 1, again.seconds + 9.0
        same.append(again.progress)
    assert same == progress, "a repeat goes by the steps, however long they take"


def test_a_plan_grows_back_where_steps_become_cheap() -> None:
    deadline = callbacks.Deadline(1.0)
    clock = fathom.core.contract.Clock(steps=100)
    while deadline.after_step(clock, {}, {}) == "continue" and clock.step < clock.steps:
        clock.step, clock.total = clock.step + 1, clock.total + 1
        clock.seconds += 1.0 if clock.step <= 10 else 0.4
    assert clock.step == 100, "the first steps made features that are kept"
    assert [end for _, end in clock.replans] == [60, 100]


def test_the_deadline_remembers_that_it_ended_the_run() -> None:
    deadline = callbacks.Deadline(1.0)
    clock = fathom.core.contract.Clock(steps=9, seconds=61.0, total=3)
    assert deadline.after_step(clock, {}, {}) == "end_run"
    again = callbacks.Deadline(1.0)
    again.load_state_dict(deadline.state_dict())
    assert again.stopped
    repeated = callbacks.Deadline(1.0, stop_after=4)
    assert repeated.after_step(clock, {}, {}) == "continue", "the step counts, not the clock"


# ---------------------------------------------------------------- own modules


def test_a_fitted_own_module_predicts_at_once_and_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(0).normal(size=(80, 4)), np.arange(80) % 2
    own = {**{k: v for k, v in QUICK.items() if k != "network"}, **STEPS}
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    run = fathom.fit((x, y), network=module, **own, name="run")
    assert len(run.predict(x[:3])) == 3
    assert run.module is not module
    with pytest.raises(
        FathomError, match=r"trains your own module Sequential, and the parameters of the one that came have"
    ):
        fathom.fit((x, y), resume=run.path, epochs=4, network=nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(FathomError, match=r"trains your own module Sequential, and none came"):
        fathom.fit((x, y), resume=run.path, epochs=4)
    assert fathom.fit((x, y), resume=run.path, epochs=4, network=module).predict(x[:1])


# ---------------------------------------------------------------- what validation measures, and what is deployed


def algorithm_of(data: Any, tree: dict[str, Any], losses: Any = None) -> tuple[Any, Any]:
    from fathom.core.device import Device

    task = open_task(data, {**tree, "network": {"name": "mlp"}}, losses=losses)
    return build(task, Device.choose("cpu")).algorithm, task.prepared.sets["validation"]


def frame(rows: int = 200) -> pa.Table:
    draw = np.random.default_rng(0)
    a, w = draw.normal(size=rows), draw.random(rows)
    return pa.table({"a": a, "b": draw.normal(size=rows), "w": w, "y": np.where(a > 1, "yes", "no"), "z": a * 3})


@pytest.mark.parametrize(
    "tree",
    [
        {"data": {"target": ["y"]}, "supervised": {"class_weights": "balanced"}},
        {"data": {"target": ["y"], "weight": "w"}, "supervised": {"loss": "focal"}},
        {"data": {"target": ["y", "z"], "weight": "w"}, "supervised": {"loss_weight": {"z": 5.0}}},
        {"data": {"target": ["y"]}, "training": {"label_smoothing": 0.2}},
    ],
)
def test_the_validation_loss_is_the_loss_that_is_trained(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, rows = algorithm_of(frame(), tree)
    algorithm.models["model"].eval()
    batch = rows.batch(torch.arange(len(rows)))
    with torch.no_grad():
        whole = float(algorithm.total(algorithm.models["model"](batch), batch))
    assert algorithm.validate(rows)["loss"] == pytest.approx(whole, rel=1e-5)
    from fathom.core.validation import mean_loss

    parts = mean_loss(algorithm.total, algorithm.predictor().outputs(rows), rows, torch.device("cpu"), size=7)
    assert parts == pytest.approx(whole, rel=1e-5), "a few rows at a time give the same"


def test_weights_count_in_validation_metrics() -> None:
    algorithm, rows = algorithm_of(frame(), {"data": {"target": ["y"], "weight": "w"}})
    batch = rows.batch(torch.arange(len(rows)))
    right = (algorithm.predictor().outputs(rows)["y"].argmax(1) == batch["y"]).double()
    expected = float((right * batch[WEIGHT]).sum() / batch[WEIGHT].sum())
    assert algorithm.validate(rows)["accuracy"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_ones_own_decides_what_is_best() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none") * 0 + 7 + output.sum() * 0

    run = fathom.fit(frame(), target="y", loss=loss, **QUICK, **STEPS)
    assert {line["validation/loss"] for line in run.history} == {7.0}


def test_the_last_weights_are_the_last_even_beside_an_average() -> None:
    table(Path("t.csv"))
    plain = fathom.fit("t.csv", **QUICK, **STEPS, **{"training.keep": "last"})
    beside = fathom.fit("t.csv", **QUICK, **STEPS, **{"training.keep": "last", "training.average": 0.9})
    assert weights(beside) == weights(plain)
    assert beside.results["monitored"] == plain.results["monitored"]
    average = fathom.fit("t.csv", **QUICK, **STEPS, **{"training.keep": "average", "training.average": 0.9})
    assert weights(average) != weights(plain)


def test_an_average_is_made_to_be_used_where_nothing_else_is_asked() -> None:
    x, y = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    assert open_task((x, y), {}).recipe.training.keep == "last"
    assert open_task((x, y), {"training": {"average": 0.9}}).recipe.training.keep == "average"
    assert open_task((x, y), {"training": {"average": 0.9, "keep": "last"}}).recipe.training.keep == "last"
