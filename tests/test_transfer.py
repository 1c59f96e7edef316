"""Transfer: what is taken over from a run or a file, the stages that follow, frozen parts, resumes, few rows a class."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fathom
from fathom.core.contract import Algorithm, Clock, Columns, Context, Model, Schema, Stage, TensorSet
from fathom.core.device import Device, seed_everything
from fathom.core.errors import DamagedError, DataError, FathomError, RecipeError, RunError
from fathom.core.features import head_of, only_head, rest_frozen
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Recipe, divided, flag_changes, merge
from fathom.core.registry import algorithms, fields, networks
from fathom.core.tensors import FEATURES
from fathom.verbs import transfer
from fathom.verbs.assemble import build, by_trial, open_task
from kit import QUICK, Killable, cli, trained

ONE_THREAD = {"training.threads": 1, "training.precision": "float32", "training.device": "cpu"}
SMALL = {
    "network": {"name": "resnet", "channels": [4, 8]},
    "training": {"threads": 1, "precision": "float32", "batch": 8},
}


def pictures(classes: str = "ab", rows: int = 60, side: int = 12, light: float = 1.0) -> dict[str, Any]:
    """Bright on the left for the first class, on the right for the second ..., with noise."""
    generator = np.random.default_rng(len(classes) + rows)
    images = generator.integers(0, 60, (rows, side, side), np.uint8)
    labels = np.arange(rows) % len(classes)
    width = side // len(classes)
    for image, label in zip(images, labels, strict=True):
        image[:, label * width : (label + 1) * width] += 120
    return {"image": (images * light).astype(np.uint8), "label": [classes[i] for i in labels]}


def fitted(tmp_path: Path, data: Any = None, **flags: Any) -> Any:
    given = {"epochs": 2, "out": str(tmp_path / "runs"), **ONE_THREAD, **flags}
    return fathom.fit(data or pictures(), target="label", recipe=SMALL, **given)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on two classes of pictures."""
    made: Path = fitted(tmp_path_factory.mktemp("first")).path
    return made


@pytest.fixture
def earlier(first: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(first, tmp_path / "earlier"))


def tree(data: Mapping[str, Any] | None = None, **network: Any) -> dict[str, Any]:
    quick = {"threads": 1, "precision": "float32", "device": "cpu", "batch": 8, "epochs": 2}
    return {"data": {"target": ["label"], **(data or {})}, "network": network, "training": quick}


def task_from(location: Path | str, shown: Any = None, table: Mapping[str, Any] | None = None, **network: Any) -> Any:
    """The task of `shown` that begins with other weights; `table` is of data."""
    return open_task(shown or pictures("xyz"), tree(table, **{"from": str(location)}, **network))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# ---------------------------------------------------------------- the key


def test_from_is_a_key_of_the_network_and_no_option_of_any() -> None:
    assert flag_changes({"from": "runs/a"}) == flag_changes({"from_": "runs/a"}) == {"network.from": "runs/a"}
    recipe = Recipe.parse({"network": {"name": "mlp", "from": "runs/a"}})
    assert recipe.network["from"] == "runs/a"
    assert Recipe.parse(recipe.tables()) == recipe
    with pytest.raises(
        RecipeError, match=r"network\.from = 3 is not allowed: it should be a run folder or a \.safetensors"
    ):
        Recipe.parse({"network": {"from": 3}})
    kept = merge({"network": {"name": "mlp", "hidden": [3], "from": "runs/a"}}, {"network.name": "cnn"})
    assert kept["network"] == {"name": "cnn", "from": "runs/a"}


def test_a_path_holds_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "runs")
    assert Recipe.parse({"network": {"from": "$PLACE/a"}}).network["from"] == str(tmp_path / "runs" / "a")


# ---------------------------------------------------------------- from a run


def test_network_reading_and_weights_come_from_the_run(first: Path) -> None:
    task = task_from(first, pictures("xyz", side=20, light=0.5))
    before = fathom.load(first)
    assert task.recipe.network["channels"] == (4, 8)
    image, there = task.schema.inputs["image"], before.schema.inputs["image"]
    assert image.state == there.state, "the body was trained on pictures of this size, mean and spread"
    assert image.shape == (1, 12, 12)
    model = build(task, Device.choose("cpu"), fresh=True).models["model"]
    old, new = weights(before.module), weights(model)
    assert old.keys() == new.keys()
    for name in new:
        same = old[name].shape == new[name].shape and torch.equal(old[name], new[name])
        assert same != name.startswith("module.head."), name
    count = len(new)
    assert (
        f"Taken over: {count - 2} of {count} tensors from {first}; new: head.weight, head.bias." in task.prepared.notes
    )


def test_a_trial_or_a_plan_puts_no_weights_in_place(first: Path) -> None:
    model = build(task_from(first), Device.choose("cpu")).models["model"]
    assert not torch.equal(
        weights(model)["module.body.0.0.weight"], weights(fathom.load(first).module)["module.body.0.0.weight"]
    )


def test_the_head_starts_anew_where_others_are_asked_even_in_the_same_shape(first: Path) -> None:
    old = weights(fathom.load(first).module)
    for classes, taken in (("cd", False), ("ab", True)):
        task = task_from(first, pictures(classes, rows=40))
        new = weights(build(task, Device.choose("cpu"), fresh=True).models["model"])
        assert torch.equal(old["module.head.weight"], new["module.head.weight"]) == taken
        assert [stage.name for stage in task.recipe.stage] == (["all"] if taken else ["head", "all"])


def test_another_network_is_refused_unless_it_fits(first: Path) -> None:
    with pytest.raises(FathomError) as caught:
        task_from(first, name="cnn")
    said = str(caught.value)
    assert "(network resnet) do not fit this network: 0 of its" in said
    assert "The first that differs: '" in said
    assert "Leave --network and its options out" in said
    assert len(said.splitlines()) <= 6
    with pytest.raises(FathomError, match=r"has shape \(4, 1, 3, 3\) there and \(6, 1, 3, 3\) here"):
        task_from(first, channels=[6, 12])
    task = task_from(first, channels=[4, 8, 16])  # five parts of seven are those of the run
    assert "Taken over: 36 of 56 tensors" in task.began[0]
    head, everything = task.recipe.stage
    assert list(head.rates) == ["*", "body.8.*", "body.11.*", "head.*"], "the largest parts that are all new"
    assert everything.rates["body.8.*"] == 1.0, "what is new in the body learns as fast as the head"


def test_a_model_folder_does_as_well_and_damage_is_told(earlier: Path) -> None:
    assert task_from(earlier / "model").began[0].startswith("Taken over: ")
    path = earlier / "model" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="its checksum does not match"):
        task_from(earlier)
    shutil.rmtree(earlier / "model")
    with pytest.raises(RunError, match="has not finished, so it has no weights to begin with"):
        task_from(earlier)
    with pytest.raises(RunError, match="does not exist"):
        task_from(earlier.parent / "nothing")


def test_options_that_do_not_go_with_the_run_are_told(first: Path) -> None:
    sized = task_from(first, table={"image": {"size": 16}})
    assert sized.schema.inputs["image"].shape == (1, 16, 16)
    assert sized.schema.inputs["image"].state["mean"] == fathom.load(first).schema.inputs["image"].state["mean"]
    with pytest.raises(DataError, match=r"data\.image\.channels = 3 does not go with the earlier run"):
        task_from(first, table={"image": {"channels": 3}})
    shares = pictures("xyz")
    with pytest.raises(DataError, match="cannot be compared"):
        task_from(first, {**shares, "image": shares["image"].astype(np.float32) - 40.5})
    given = task_from(first, {**shares, "image": (shares["image"] / 255).astype(np.float64)})
    assert given.schema.inputs["image"].state["factor"] == 255, (
        "shares are read as shares, and then standardized as before"
    )


def test_texts_keep_the_vocabulary(tmp_path: Path) -> None:
    words = {"text": [f"{word} thing {i % 7}" for i in range(40) for word in ("good", "bad")], "label": ["a", "b"] * 40}
    quick = {
        "recipe": {"network": {"name": "bag"}, "data": {"types": {"text": "text"}}},
        "out": str(tmp_path),
        **ONE_THREAD,
    }
    run = fathom.fit(words, target="label", steps=3, **quick)
    other = {"text": [f"{word} film {i % 7}" for i in range(40) for word in ("great", "bad")], "label": ["x", "y"] * 40}
    said = tree({"types": {"text": "text"}}, **{"from": str(run.path)})
    task = open_task(other, said)
    learnt, before = task.schema.inputs["text"].state, run.schema.inputs["text"].state
    assert learnt["vocabulary"] == before["vocabulary"]
    assert learnt["about"]["unknown"] > before["about"]["unknown"], "what `describe` says is of these rows"
    with pytest.raises(DataError, match=r"data\.text\.vocabulary = 50 does not go with the earlier run.*Leave it out"):
        open_task(other, {**said, "data": {**said["data"], "text": {"vocabulary": 50}}})


def test_inputs_that_the_run_did_not_read_are_fitted_and_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = generator.random((60, 2))
    frame = {"a": rows[:, 0], "b": rows[:, 1], "label": ["x" if a > b else "y" for a, b in rows]}
    run = fathom.fit(frame, target="label", network="mlp", steps=3, out=str(tmp_path), **ONE_THREAD)
    same = open_task({**frame, "a": frame["a"] * 9}, tree(**{"from": str(run.path)}))
    assert same.schema.inputs["numbers"].state == run.schema.inputs["numbers"].state
    other = open_task({"c": rows[:, 0] * 9, "d": rows[:, 1], "label": frame["label"]}, tree(**{"from": str(run.path)}))
    assert any("Input 'numbers' (number) is none of the earlier run's" in note for note in other.prepared.notes)
    assert other.schema.inputs["numbers"].state != run.schema.inputs["numbers"].state


def test_the_best_member_of_a_run_is_taken(tmp_path: Path) -> None:
    run = fitted(tmp_path, seeds=2, epochs=1)
    task = task_from(run.path)
    member = run.path / "members" / run.results["member"]
    mine = weights(build(task, Device.choose("cpu"), fresh=True).models["model"])["module.body.0.0.weight"]
    assert torch.equal(mine, weights(fathom.load(member).module)["module.body.0.0.weight"])


def test_the_run_may_be_handed_over_in_python(first: Path, tmp_path: Path) -> None:
    run = fathom.fit(
        pictures("xyz"), target="label", from_=fathom.load(first), steps=4, out=str(tmp_path), **ONE_THREAD
    )
    assert run.recipe.network["from"] == str(first)
    assert "from" not in json.loads((run.path / "model" / "model.json").read_text())["network"]
    assert any(note.startswith("Taken over: ") for note in run.results["notes"])


# ---------------------------------------------------------------- from a file


class Named(nn.Module):
    """A network of the user's own whose last layer has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(144, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.below(images.flatten(1)).relu())


def test_tensors_of_a_file_go_by_name(tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    theirs = Named()
    save_file({name: tensor.half() for name, tensor in theirs.state_dict().items()}, path)
    run = fathom.fit(
        pictures("xyz"), target="label", network=Named(), from_=path, steps=4, out=str(tmp_path),
        **{**ONE_THREAD, "training.learning_rate": 1e-9},
    )  # fmt: skip
    tensors = weights(run.module)
    torch.testing.assert_close(
        tensors["module.own.below.weight"], theirs.below.weight.half().float(), rtol=0, atol=1e-6
    )
    assert not torch.allclose(tensors["module.own.fc.weight"], theirs.fc.weight, atol=1e-3), "its classes are not known"
    assert "new: own.fc.weight, own.fc.bias" in " ".join(run.results["notes"])
    assert run.recipe.stage[0].rates == {"*": 0.0, "own.fc.*": 1.0}


def test_files_that_cannot_be_taken_are_told(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    with pytest.raises(RunError, match=r"There is no file .*some\.safetensors"):
        task_from(path, name="mlp")
    save_file({"other.weight": torch.zeros(2)}, path)
    with pytest.raises(FathomError, match=r"names no network for them\. Say which it is, as in: --network resnet50"):
        task_from(path)
    with pytest.raises(FathomError, match=r"is not there.*\.\nChoose the network that the file was made for"):
        task_from(path, name="mlp")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedError, match="is damaged"):
        task_from(path, name="mlp")
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(DamagedError, match="is no safetensors file, or is damaged"):
        task_from(path, name="mlp")
    pickled = tmp_path / "resnet50.pth"
    pickled.write_bytes(b"cos\nsystem\n")
    with pytest.raises(RunError, match=r"can hold code that runs when it is read, so Fathom never reads it"):
        task_from(pickled, name="mlp")
    table = tmp_path / "some.csv"
    table.write_text("a,b")
    with pytest.raises(RunError, match=r"is neither a run folder nor a \.safetensors file"):
        task_from(table, name="mlp")
    bad = {f"{name}": tensor * float("nan") for name, tensor in Named().state_dict().items()}
    save_file(bad, path)
    with pytest.raises(FathomError, match="holds values that are not finite"):
        open_task(pictures("xyz"), tree(**{"from": str(path)}), Named())


def test_the_command_line_says_it_in_one_sentence(first: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "three.npz", x=pictures("xyz")["image"], y=np.arange(60) % 3)
    said = cli("fit", "three.npz", "--from", first, "--network", "mlp", "--steps", 2, *QUICK)
    assert said.code == 2
    assert "do not fit this network" in said.last
    said = cli("fit", "three.npz", "--from", first, "--steps", 4, "training.precision=float32", *QUICK)
    assert said.code == 0, said.err
    assert "Taken over: " in said.err
    assert "Stages    head: 1 step, head alone; then all: 3 steps" in said.err
    assert f"resnet: its weights come from {first}" in said.err


# ---------------------------------------------------------------- stages


def test_head_first_then_all_with_rates_that_fall_with_depth(first: Path) -> None:
    head, everything = task_from(first).recipe.stage
    assert (head.rates, head.augment, head.share) == ({"*": 0.0, "head.*": 1.0}, False, transfer.HEAD_SHARE)
    assert everything.augment
    rates = list(everything.rates.items())
    assert rates[0] == ("*", transfer.BODY_RATE)
    assert rates[-1] == ("head.*", 1.0)
    between = [rate for glob, rate in rates[1:-1]]
    assert between == sorted(between)
    assert between[-1] == transfer.BODY_RATE
    assert between[0] == pytest.approx(transfer.BODY_RATE * transfer.FALL ** (len(between) - 1), rel=1e-4)


def test_a_network_without_depth_has_one_rate_for_its_body() -> None:
    assert transfer.thawed_rates(Named()) == {"*": transfer.BODY_RATE, "fc.*": 1.0}
    assert transfer.stage_tables(nn.Sequential(nn.ReLU()), ["0.weight"]) == []
    assert transfer.stage_tables(nn.Linear(2, 2), ["weight"]) == [], "nothing but a head"


def test_what_the_user_says_of_stages_stays(first: Path) -> None:
    stages = [{"name": "mine", "steps": 3, "rates": {"*": 1.0}}]
    said = {**tree(**{"from": str(first)}), "stage": stages}
    said["training"].pop("epochs")
    assert [stage.name for stage in open_task(pictures("xyz"), said).recipe.stage] == ["mine"]


@pytest.mark.parametrize(("budget", "steps"), [({"training.steps": 10}, [3, 7]), ({"training.epochs": 5.0}, [9, 21])])
def test_budgets_are_divided(first: Path, budget: dict[str, Any], steps: list[int]) -> None:
    task = open_task(pictures("xyz"), merge(tree(**{"from": str(first)}), budget))
    assert [stage.steps for stage in task.recipe.stage] == steps
    assert task.recipe.training.steps == sum(steps)
    again = Recipe.parse(task.recipe.tables())
    assert again == task.recipe, "the written recipe says the same"
    other = open_task(pictures("xyz"), merge(task.recipe.tables(), {"training.steps": 20}))
    assert [stage.steps for stage in other.recipe.stage] == [6, 14], "another budget is divided anew"


def test_minutes_become_steps_by_timing_both_stages(first: Path) -> None:
    task = open_task(pictures("xyz"), merge(tree(**{"from": str(first)}), {"training.minutes": 0.05}))
    assert task.recipe.training.steps is None
    settled, measured = by_trial(task, Device.choose("cpu"))
    head, everything = settled.recipe.stage
    assert len(measured.stages) == 2
    assert measured.once > 0
    assert measured.looks > 0, "validation takes its part of the minutes"
    total = settled.recipe.training.planned_steps()
    assert head.planned_steps() + everything.planned_steps() == total
    assert head.planned_steps() == pytest.approx(0.3 * total, abs=1)
    assert measured.training(settled.recipe) == pytest.approx(3 * 0.95, rel=0.05)
    assert Recipe.parse(settled.recipe.tables()) == settled.recipe


def test_steps_are_divided_by_shares() -> None:
    assert divided(100, [0.3, 0.7]) == [30, 70]
    assert divided(2, [0.1, 0.9]) == [1, 1]
    assert divided(1, [0.2, 0.3, 0.5]) == [1, 1, 1]
    for total in range(3, 60):
        assert sum(divided(total, [0.2, 0.3, 0.5])) == total


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"share": 0.5}, {"share": 0.4}], "add up to 0.9; make them add up to 1"),
        ([{"share": 0.5}, {"steps": 4}], "use one way for all"),
        ([{"share": 1.0, "epochs": 2.0}], "stage[0] should say how long it takes"),
        ([{"share": 1.5}], "stage[0].share"),
    ],
)
def test_shares_that_are_none_are_refused(stages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"stage": stages})
    assert words in str(caught.value)


# ---------------------------------------------------------------- frozen parts


class Parts(nn.Module):
    """A body with normalization and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def decide(self, features: Tensor) -> Tensor:
        return self.head(self.dropout(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.decide(self.features(x))


def modes(module: Parts) -> list[bool]:
    return [layer.training for layer in (*module.body, module.dropout, module.head)]


def test_frozen_parts_stay_in_evaluation_mode_and_thaw() -> None:
    schema, _ = parts_schema()
    model = Model(schema, Parts())
    made = Optimizer({"model": model}, Recipe.parse({"training": {"steps": 4}}).training, Clock())
    model.train()
    assert all(modes(model.module))  # type: ignore[arg-type]
    made.begin({"*": 0.0, "head.*": 1.0})
    assert modes(model.module) == [False, False, False, True, True]  # type: ignore[arg-type]
    model.eval()
    model.train()
    assert modes(model.module) == [False, False, False, True, True], "validation comes and goes"  # type: ignore[arg-type]
    made.begin({"*": 1.0})
    assert all(modes(model.module))  # type: ignore[arg-type]
    sequence = nn.Sequential(nn.Linear(1, 1), nn.Dropout(), nn.Linear(1, 1), nn.Tanh(), nn.Dropout(), nn.Linear(1, 1)).train()
    sequence[0].requires_grad_(False)
    sequence[2].requires_grad_(False)
    rest_frozen(sequence)
    assert [part.training for part in sequence] == [False, False, False, True, True, True], "each with the layer it feeds"
    alone = nn.Dropout(0.5).train()
    rest_frozen(alone)
    assert alone.training, "what has no parameters is not frozen"


def parts_schema() -> tuple[Schema, TensorSet]:
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1, 5, 2] + 3
    columns = Columns({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": (x[:, 0] > 3).astype(int)})
    schema = Schema({"x": fields["number"].make(["a", "b", "c"])}, {"y": fields["category"].make(["y"])})
    for item in schema.fields().values():
        item.fit([columns])
    rows = {"x": schema.inputs["x"].encode(columns), "y": schema.targets["y"].encode(columns, target=True)}
    return schema, TensorSet(rows)


def staged(transform: Any = None, **table: Any) -> tuple[Algorithm, Stage, TensorSet]:
    """Supervised learning of the head of `Parts`."""
    seed_everything(3)
    schema, data = parts_schema()
    rates = {"*": 0.0, "head.*": 1.0}
    stage = {"name": "head", "steps": 6, "rates": rates, **table}
    recipe = Recipe.parse({"training": {"batch": 8, "learning_rate": 0.1}, "stage": [stage]})
    context = Context(schema, {"model": Model(schema, Parts())}, recipe, Clock(), torch.device("cpu"), transform)
    made: Algorithm = algorithms["supervised"].make(context)
    made.models["model"].train()
    made.optimizers["model"].begin(rates)
    return made, made.stages({"train": data})[0], data


def noisy(batch: dict[str, Tensor], step: int, epoch: int) -> dict[str, Tensor]:
    return {**batch, "x": batch["x"] + 1.0}


def test_normalization_of_a_frozen_body_never_moves() -> None:
    made, stage, _ = staged(transform=noisy)
    before = weights(made.models["model"])
    batches = made.batches(stage, 0)
    for _ in range(6):
        batch = next(batches)
        assert FEATURES not in batch, "augmented rows have no features to keep"
        made.step(batch)
    for name, tensor in weights(made.models["model"]).items():
        assert torch.equal(tensor, before[name]) != name.startswith("module.head."), name


def test_a_stage_may_leave_augmentation_out_and_then_keeps_features() -> None:
    made, stage, data = staged(transform=noisy, augment=False)
    batch = next(made.batches(stage, 0))
    assert FEATURES in batch
    assert torch.equal(batch["x"], data.batch(batch[".row"])["x"])
    made, stage, data = staged(transform=noisy)
    augmented = next(made.batches(stage, 0))
    assert torch.equal(augmented["x"], data.batch(augmented[".row"])["x"] + 1.0)
    assert FEATURES in made.watched(data).batch(torch.arange(3)), "validation rows are never augmented"


def test_kept_features_are_those_of_the_full_pass() -> None:
    losses = []
    for full in (False, True):
        made, stage, _ = staged()
        seed_everything(5)
        batches, seen = made.batches(stage, 0), []
        for _ in range(6):
            batch = next(batches)
            if full:
                del batch[FEATURES]
            seen.append(float(made.step(batch)["loss"]))
        losses.append(seen)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_a_head_of_another_name_is_known() -> None:
    class Cut(Named):
        head_name = "fc"

        def features(self, images: Tensor) -> Tensor:
            return self.below(images.flatten(1)).relu()

        def decide(self, features: Tensor) -> Tensor:
            return self.fc(features)

    schema, _ = parts_schema()
    model = Model(schema, Cut())
    assert head_of(model.module) == transfer.head_name(model.module) == "fc"
    assert only_head(model, {"*": 0.0, "fc.*": 1.0})
    assert not only_head(model, {"*": 0.0, "below.*": 1.0})
    assert transfer.head_name(Named()) == "fc", "the last linear layer, where nothing is said"


# ---------------------------------------------------------------- going on


def test_a_kill_in_either_stage_resumes_to_equal_bits_without_the_earlier_run(earlier: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "three.npz", x=pictures("xyz")["image"], y=np.arange(60) % 3)
    words = (
        "fit", "three.npz", "--from", earlier, "--steps", 12, "training.batch=8", "augment.shift=1",
        "training.precision=float32", "training.checkpoint_seconds=0", *QUICK,
    )  # fmt: skip
    whole = Killable(tmp_path, *words, "--name", "whole").said()
    assert whole.code == 0, whole.err
    steps = (3, 7)
    for at in steps:
        cut = Killable(tmp_path, *words, "--name", f"cut-{at}")
        assert cut.until(tmp_path / "runs" / f"cut-{at}" / "checkpoints" / f"step-{at:09d}.safetensors")
        cut.kill()
    shutil.rmtree(earlier)
    for at in steps:
        said = Killable(tmp_path, "fit", "--resume", f"runs/cut-{at}").said()
        assert said.code == 0, said.err
        assert trained(tmp_path / "runs" / f"cut-{at}") == trained(tmp_path / "runs" / "whole")
    notes = [json.loads(path.read_text())["notes"] for path in (tmp_path / "runs").glob("*/results.json")]
    assert notes[0] == notes[1] == notes[2]


def test_a_run_that_was_killed_before_its_first_step_says_what_is_missing(earlier: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    run = fathom.fit(pictures("xyz"), target="label", from_=earlier, steps=2, out=out, **ONE_THREAD)
    for gone in ("checkpoints", "model"):
        shutil.rmtree(run.path / gone)
    (run.path / "results.json").unlink()
    shutil.rmtree(earlier)
    with pytest.raises(RunError, match="does not exist"):
        fathom.fit(pictures("xyz"), resume=run.path)


# ---------------------------------------------------------------- few rows a class


def test_a_few_rows_of_each_class_are_learnt_from() -> None:
    task = open_task(pictures("ab", rows=100), tree({"per_class": 5}, name="mlp"))
    whole = open_task(pictures("ab", rows=100), tree(name="mlp"))
    splits, before = task.prepared.splits, whole.prepared.splits
    assert np.array_equal(splits["test"], before["test"])
    assert np.array_equal(splits["validation"], before["validation"])
    assert set(splits["train"]) <= set(before["train"])
    labels = task.prepared.sets["train"].column("label")
    assert torch.bincount(labels).tolist() == [5, 5]
    told = f"Only 5 rows of each class are learnt from, 10 of {len(before['train'])} training rows"
    assert any(note.startswith(told) for note in task.prepared.notes)
    assert task.schema.inputs["image"].state["mean"] != whole.schema.inputs["image"].state["mean"], (
        "fitted on these rows"
    )
    other = open_task(pictures("ab", rows=100), tree({"per_class": 5, "split_seed": 0}, name="mlp"))
    assert np.array_equal(other.prepared.splits["train"], splits["train"])


def test_few_rows_need_classes_and_tell_where_there_are_fewer() -> None:
    task = open_task(pictures("ab", rows=40), tree({"per_class": 500}, name="mlp"))
    assert any(
        "Some classes have fewer than 500 training rows; the smallest has" in note for note in task.prepared.notes
    )
    numbers = {"a": np.arange(60.0), "label": np.random.default_rng(0).normal(size=60)}
    with pytest.raises(DataError, match=r"data\.per_class = 5 keeps .* no target has classes: label \(number\)"):
        open_task(numbers, tree({"per_class": 5}, name="mlp"))


def test_every_network_of_pictures_can_be_taken_over(first: Path) -> None:
    """What the planner may choose for pictures states its depth in names that its parameters have."""
    schema = fathom.load(first).schema
    for name in ("resnet", "cnn"):
        module = networks[name].build(schema, "model")
        names = [parameter for parameter, _ in module.named_parameters()]
        assert all(any(n.startswith(f"{part}.") for n in names) for part in getattr(module, "depth", ())), name
        tables = transfer.stage_tables(module, ["head.weight"])
        assert [table["name"] for table in tables] == ["head", "all"]


def test_a_run_is_evaluated_without_what_it_began_from(earlier: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "three.npz", x=pictures("xyz")["image"], y=np.arange(60) % 3)
    run = fathom.fit("three.npz", from_=earlier, steps=4, out=str(tmp_path / "runs"), **ONE_THREAD)
    shutil.rmtree(earlier)
    again = run.evaluate()
    assert again["test"] == run.results["test"]
    assert again["baseline"], "the rows that it was trained on are read as they were"
