"""`fathom plan`, and faults that are told before training begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fathom
from fathom.analysis import plan as planning
from fathom.core.contract import Columns, Schema
from fathom.core.device import Device
from fathom.core.errors import DataError, FathomError
from fathom.core.prepare import file_columns
from fathom.core.registry import fields
from fathom.core.run import read_json
from fathom.verbs.assemble import build, open_task
from kit import cli

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


def test_a_flattened_picture_that_is_too_large_for_its_rows_is_told() -> None:
    """The overviews' network for tumours, as it meets 253 pictures: on the meta device, where weights take no room."""
    picture = fields["image"].make(["image"])
    picture.state = {"shape": [1, 256, 256], "mean": [0.0], "std": [1.0], "factor": 1}
    label = fields["category"].make(["label"])
    label.state = {"vocabularies": [["no", "yes"]], "classes": ["no", "yes"], "type": "text", "counts": [98, 155]}
    schema = Schema({"image": picture}, {"label": label})
    flat = nn.Sequential(nn.Flatten(), nn.Linear(1_032_256, 128, device="meta"), nn.ReLU(), nn.Linear(128, 2, device="meta"))
    (told,) = planning.oversized({"model": flat}, schema, 177)
    assert told.startswith("132,129,154 parameters are to be learnt from 177 training rows: 132,128,768 of them are in 1,")
    assert "reads a flattened picture of 1,032,256 values" in told
    assert "2.5 GiB" in told
    assert "--network resnet" in told
    assert not planning.oversized({"model": flat}, schema, 1_000_000), "enough rows"
    assert not planning.oversized({"model": nn.Conv2d(4096, 4096, 1, device="meta")}, schema, 10), "no dense layer"


def test_fit_and_plan_both_tell_it(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("photos")
    for label in ("no", "yes"):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i + 100 * (label == "yes")).integers(0, 256, (24, 24), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    wide = ("data.image.size=112", "data.image.channels=1", "network.channels=[32]", "network.dense=[128]")
    quick = ("--steps", "1", "training.threads=1", "training.precision=float32", "--device", "cpu")
    planned = cli("plan", "photos", "--network", "cnn", *wide, *quick)
    fitted = cli("fit", "photos", "--network", "cnn", *wide, *quick, "--name", "wide")
    for said in (planned.out, fitted.err):
        assert "Note      12,391,106 parameters are to be learnt from 16 training rows: 12,390,400 of them are in dense.1" in said
    assert any("flattened picture" in note for note in read_json(Path("runs/wide/results.json"))["notes"])
    assert "sensitivity to yes" in fitted.out
    assert "specificity" in fitted.out
    folds = cli("fit", "photos", "--network", "cnn", *wide, *quick, "--folds", "2", "--name", "folds")
    counts = [read_json(path)["splits"]["train"] for path in sorted(Path("runs/folds/members").glob("*/results.json"))]
    assert len(counts) == 2
    assert folds.err.count("flattened picture") == 1, "once a run, not once a member"
    small = cli("plan", "photos", "--network", "resnet", *quick)
    assert "flattened" not in small.out
