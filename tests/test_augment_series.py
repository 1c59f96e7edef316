"""Series that end early in training: a prefix is kept, nothing after it, and (seed, step) decides all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fathom.core.contract import Batch, Columns, Schema
from fathom.core.errors import FathomError
from fathom.core.prepare import encode
from fathom.core.registry import augmentations, fields
from fathom.fields.augment import transform
from kit import QUICK, cli

LENGTHS = [16, 1, 9, 0, 40, 24] * 20


def rows() -> tuple[Schema, Batch]:
    random = np.random.default_rng(0)
    lists = [random.normal(size=(length, 2)).tolist() for length in LENGTHS]
    columns = Columns({"s": pa.array(lists), "y": ["a", "b"] * (len(LENGTHS) // 2)})
    schema = Schema({"s": fields["series"].make(["s"])}, {"y": fields["category"].make(["y"])})
    for item in schema.fields().values():
        item.fit([columns])
    return schema, encode(schema, columns)[0].batch(torch.arange(len(LENGTHS)))


def cut(strength: float, seed: int = 0, step: int = 0) -> tuple[Batch, Batch]:
    schema, given = rows()
    change: Any = transform({"cut": strength}, schema, seed)
    return given, change(given, step, 0)


def test_a_prefix_is_kept_and_nothing_after_it() -> None:
    given, made = cut(1.0)
    before, after = given["s.mask"], made["s.mask"]
    lengths, ends = before.sum(1), after.sum(1)
    assert torch.equal(after, before & (torch.arange(before.shape[1]) < ends[:, None]))
    assert torch.equal(made["s"][after], given["s"][after])
    assert bool(made["s"][~after].isnan().all()), "what came later is not there"
    held = lengths > 0
    assert bool((ends[held] >= (lengths[held] / 8).ceil()).all())
    assert torch.equal(ends[~held], lengths[~held])
    long = ends[lengths == 40].double() / 40
    assert float(long.min()) < 0.3
    assert float(long.max()) > 0.8


def test_strength_is_the_share_of_the_rows() -> None:
    assert transform({"cut": 0.0}, rows()[0], 0) is None
    given, made = cut(0.5)
    long = given["s.mask"].sum(1) >= 16
    share = float((made["s.mask"].sum(1) < given["s.mask"].sum(1))[long].double().mean())
    assert 0.3 < share < 0.6


def test_seed_and_step_decide() -> None:
    (given, once), (_, again), (_, other) = cut(0.5, 3, 7), cut(0.5, 3, 7), cut(0.5, 3, 8)
    assert torch.equal(once["s.mask"], again["s.mask"])
    assert not torch.equal(once["s.mask"], other["s.mask"])
    assert torch.equal(given["s.mask"], rows()[1]["s.mask"]), "the batch that came is left as it was"
    assert set(once) == set(given)
    assert torch.equal(once["y"], given["y"])


def test_what_has_no_end_is_refused() -> None:
    schema, _ = rows()
    window = fields["series"].make(["a"], past=3)
    with pytest.raises(FathomError, match=r"augment\.cut works on whole series, and here each row is a window of a longer one"):
        transform({"cut": 0.5}, Schema({"s": window}, schema.targets), 0)  # before anything is trained or written
    with pytest.raises(FathomError, match=r"augment\.cut works on series, and the inputs are n; leave it out"):
        transform({"cut": 0.5}, Schema({"n": fields["number"].make(["n"])}, schema.targets), 0)


def test_what_does_not_fit_is_refused_before_a_run_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("fit", "wine", "--network", "mlp", "--steps", "2", "augment.cut=0.5", *QUICK)
    assert said.code == 2
    assert "augment.cut works on series, and the inputs are" in said.last
    assert not list(tmp_path.glob("runs/*")), "no folder of a run that never was"


def test_it_is_listed() -> None:
    assert augmentations["cut"].about["reads"] == "series"
    assert "early" in augmentations["cut"].summary
