"""`fathom plan`, and faults that are told before training begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import fathom
from fathom.core.contract import Columns, Schema
from fathom.core.device import Device
from fathom.core.errors import DataError, FathomError
from fathom.core.prepare import file_columns
from fathom.core.registry import fields
from fathom.verbs.assemble import build, open_task

QUICK = {"training.threads": 1, "device": "cpu"}


def frame(rows: int = 60) -> dict[str, Any]:
    a = np.random.default_rng(0).random((rows, 2)).round(4)
    return {"a": a[:, 0].tolist(), "b": a[:, 1].tolist(), "label": ["yes" if x > y else "no" for x, y in a]}


def test_minutes_are_planned_as_steps() -> None:
    made = fathom.plan(frame(), target="label", network="mlp", minutes=0.01, **QUICK)
    assert made["steps"] > 0
    assert made["seconds"] == pytest.approx(0.01 * 60 * 0.95, rel=0.5)
    assert any(f"{made['steps']:,} steps" in line for line in made["lines"])


def test_epochs_are_planned_as_steps() -> None:
    made = fathom.plan(frame(), target="label", network="mlp", epochs=2, batch=8, **QUICK)
    assert made["steps"] == 2 * -(-42 // 8)


class Viewing(nn.Module):
    """Reads its filters' output with `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.filters(x).relu()
        return self.head(x.view(x.size(0), -1))


def test_a_module_that_views_is_trained() -> None:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (60, 8, 8, 3), np.uint8)
    task = open_task((pictures, np.arange(60) % 2), {"training": {"steps": 2}}, Viewing())
    assembly = build(task, Device.choose("cpu"))
    batch = task.prepared.sets["train"].batch(torch.arange(4))
    assert torch.isfinite(assembly.algorithm.step(batch)["loss"])


@pytest.mark.parametrize("batch", [1, 2])
def test_batches_of_one_row_and_batch_normalization(batch: int) -> None:
    """An odd number of training rows in batches of at most 2 leaves one of a single row."""
    recipe = {"network": {"name": "mlp", "normalization": "batch"}, "training": {"batch": batch, "steps": 2}}
    rows = next(n for n in range(55, 65) if len(open_task(frame(n), recipe).prepared.splits["train"]) % 2)
    with pytest.raises(FathomError, match=r"training\.batch = . makes batches of one row .* Use a larger --batch"):
        fathom.fit(frame(rows), target="label", recipe=recipe, **QUICK)
    assert not list(Path("runs").glob("*"))


def test_batches_of_one_row_without_normalization() -> None:
    recipe = {"network": {"name": "mlp"}, "training": {"batch": 1, "steps": 2}}
    assert fathom.plan(frame(), target="label", recipe=recipe, **QUICK)["steps"] == 2


def test_nothing_to_predict_is_told() -> None:
    run = fathom.fit(frame(), target="label", network="mlp", steps=2, **QUICK)
    Path("empty.csv").write_text("a,b\n", "utf-8")
    with pytest.raises(DataError, match=r"empty\.csv holds no rows"):
        run.predict("empty.csv")


def test_a_field_says_itself_whether_it_reads_files_and_what_is_shown() -> None:
    """So that a new kind of field is one new file."""
    picture, word = fields["image"].make(["a"]), fields["category"].make(["b"])
    names = Columns({"a": pa.chunked_array([["x.png"]]), "b": pa.chunked_array([["y.png"]])})
    assert file_columns(Schema({"picture": picture, "word": word}), names) == {"a"}
    assert {kind: fields[kind].make.headline for kind in ("category", "number", "labels", "image")} == {
        "category": "accuracy", "number": "r2", "labels": "f1", "image": ""
    }  # fmt: skip
