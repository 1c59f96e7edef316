"""The network made for time to accuracy: what it sees of the training rows before training, and that a bundle carries it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fathom
from fathom.analysis import plan
from fathom.core.contract import Columns, Model, Schema
from fathom.core.device import Device
from fathom.core.registry import fields, networks
from fathom.networks import speedrun as made_for_speed
from fathom.networks.speedrun import PATCH, Speedrun, Whitening
from fathom.verbs import assemble, transfer
from fathom.verbs.assemble import Task, build, open_task

TREE: dict[str, Any] = {
    "network": {"name": "speedrun", "channels": [8, 8]},
    "training": {"steps": 2, "batch": 32, "threads": 1, "precision": "float32", "device": "cpu"},
}


@pytest.fixture(scope="module")
def task() -> Task:
    """Digits of 8 x 8 pixels."""
    return open_task("digits", TREE)


def preprocessed(task: Task, model: Model, part: str = "train") -> Tensor:
    """(N, C, H, W) every row of a part, as the network sees it."""
    rows = task.prepared.sets[part]
    (layer,), (name,) = model.preprocess, model.input_names
    return layer(rows.batch(torch.arange(len(rows)))[name])


def whitened(module: Speedrun, images: Tensor) -> Tensor:
    """(K, P) what the filters of one sign make of every patch."""
    made = module.whitening(images).detach().transpose(0, 1).flatten(1)
    return made[: len(made) // 2].double()


def test_whitened_patches_of_the_training_rows_have_unit_covariance(task: Task) -> None:
    model = build(task, Device.choose("cpu"), fresh=True).models["model"]
    made = whitened(model.module, preprocessed(task, model))  # type: ignore[arg-type]
    torch.testing.assert_close(made @ made.T / made.shape[1], torch.eye(len(made)).double(), atol=0.01, rtol=0)
    filters = model.module.whitening.weight
    assert torch.equal(filters[: len(made)], -filters[len(made) :]), "each with both signs"
    strength = filters[: len(made)].flatten(1).norm(dim=1)
    assert (strength.diff() > 0).all(), "the strongest direction, which is scaled up least, comes first"


def test_what_is_shown_is_the_training_rows_alone_and_at_most_so_many_drawn_evenly(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(Speedrun, "look", lambda module, images: seen.append(images))
    model = build(task, Device.choose("cpu"), fresh=True).models["model"]
    rows = preprocessed(task, model)
    monkeypatch.setattr(assemble, "LOOKED_AT", 10)
    build(task, Device.choose("cpu"), fresh=True)
    monkeypatch.setattr(assemble, "MOST_VALUES", 64 * 4 + 1)
    build(task, Device.choose("cpu"), fresh=True)
    assert [len(images) for images in seen] == [len(rows), 10, 4]
    for images in seen:
        assert torch.equal(images, rows[[i * len(rows) // len(images) for i in range(len(images))]])


def test_a_trial_a_plan_and_what_is_loaded_are_shown_nothing(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speedrun, "look", lambda module, images: pytest.fail("shown"))
    plain = build(task, Device.choose("cpu")).models["model"].module.whitening.weight
    size = PATCH**2
    assert torch.equal(plain.flatten(1), torch.cat([torch.eye(size), -torch.eye(size)]))


def test_patches_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(50, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3])[:, None, None]
    whole, parts = Whitening(3), Whitening(3)
    whole.fit(images)
    monkeypatch.setattr(made_for_speed, "SLICE", 7 * 90)
    parts.fit(images)
    made = nn.functional.conv2d(images, whole.weight[:12]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(made @ made.T / made.shape[1], torch.eye(12), atol=0.01, rtol=0)
    torch.testing.assert_close(parts.weight[:12].abs(), whole.weight[:12].abs())  # a direction has no sign of its own


def test_the_bundle_carries_what_was_seen(task: Task, tmp_path: Path) -> None:
    keys = {f"{section}.{key}": value for section, table in TREE.items() for key, value in table.items()}
    run = fathom.fit("digits", out=str(tmp_path), **keys)
    fresh = build(task, Device.choose("cpu"), fresh=True).models["model"].module.whitening
    kept = fathom.load(run).module.module.whitening
    assert "weight" not in dict(fresh.named_parameters()), "it is not learnt"
    torch.testing.assert_close(kept.weight, fresh.weight)
    assert not torch.equal(kept.bias, fresh.bias), "it has learnt"


def of_shape(*shape: int) -> Schema:
    """Pictures of a shape, and classes."""
    image, label = fields["image"].make(["image"]), fields["category"].make(["label"])
    label.fit([Columns({"label": np.arange(10)})])
    image.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "factor": 1}
    return Schema({"image": image}, {"label": label})


@pytest.mark.parametrize(
    ("shape", "rows", "chosen"),
    [
        ((1, 28, 28), 54_000, True), ((3, 32, 32), 10_000, True), ((3, 32, 32), 9_999, False), ((3, 9, 40), 54_000, True),
        ((3, 8, 40), 54_000, False), ((3, 41, 30), 54_000, False), ((1, 13, 13), 54_000, True), ((1, 12, 12), 54_000, False),
    ],
)  # fmt: skip
def test_it_is_chosen_where_pictures_are_small_and_many(shape: tuple[int, ...], rows: int, chosen: bool) -> None:
    asked = of_shape(*shape)
    first = max(networks, key=lambda entry: entry.about["suits"](asked, rows)).name
    assert (first == "speedrun") == chosen
    numbers = replace(asked, targets={"y": fields["number"].make(["y"])})
    assert networks["speedrun"].about["suits"](numbers, rows) == 0, "it was measured on classes"


def test_its_own_way_of_training_is_for_many_pictures() -> None:
    ways = networks["speedrun"].about["training"]
    picture = of_shape(1, 28, 28)
    assert [ways(picture, rows)["training.epochs"] for rows in (10_000, 54_000, 600_000)] == [42, 8, 2]
    assert ways(picture, 10_000)["training.optimizer"] == "muon"
    assert not {"training.optimizer", "training.batch"} & set(ways(picture, 9_999))


def test_another_optimizer_gets_a_rate_of_its_own() -> None:
    def rate(**training: str) -> tuple[float, float]:
        settings = plan.choose(of_shape(3, 32, 32), 45_000, {"training": training}).changes
        return settings["training.learning_rate"], settings.get("training.momentum", 0.9)

    assert rate() == rate(optimizer="muon") == (0.1, 0.6)
    assert rate(optimizer="adam") == rate(optimizer="sgd") == (1e-3, 0.9)


def test_it_hands_its_body_on_in_stages() -> None:
    module = networks["speedrun"].build(of_shape(3, 32, 32), "model")
    head, everything = transfer.stage_tables(module, ["head.weight", "head.bias"])
    assert head["rates"] == {"*": 0.0, "head.*": 1.0}
    rates = list(everything["rates"].values())
    assert [*everything["rates"]] == ["*", "whitening.*", "blocks.1.*", "blocks.2.*", "blocks.3.*", "head.*"]
    assert rates[1:] == sorted(rates[1:])
