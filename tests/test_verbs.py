"""What the verbs keep beside the figures: columns with a special part in other data, and what results.json says as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import fathom
from fathom.analysis.evidence import kept_epoch, read_evidence
from fathom.analysis.plan import layer_table
from fathom.core.errors import DataError

QUICK: dict[str, Any] = {"steps": 4, "training.threads": 1}


def table(rows: int = 120) -> pa.Table:
    random = np.random.default_rng(0)
    x = random.normal(size=rows)
    return pa.table(
        {
            "x": x,
            "y": np.where(x + random.normal(size=rows) > 0, "yes", "no"),
            "w": random.random(rows) + 0.1,
            "who": [f"p{i // 4}" for i in range(rows)],
            "when": np.arange(rows),
        }
    )


def test_other_data_need_the_weight_of_the_run() -> None:
    run = fathom.fit(table().select(["x", "y", "w"]), target="y", **{"data.weight": "w"}, **QUICK)
    with pytest.raises(DataError) as caught:
        run.evaluate(table().select(["x", "y"]))
    assert str(caught.value) == "The given data has no column 'w', which the run needs. It has: x, y."
    weighted = run.evaluate(table().select(["x", "y", "w"]))
    assert weighted["targets"]["y"]["weighted"]
    matrix = np.array(weighted["targets"]["y"]["confusion"])
    assert matrix.trace() / matrix.sum() == pytest.approx(weighted["test"]["accuracy"]["value"])


@pytest.mark.parametrize(("part", "name"), [("group", "who"), ("time", "when")])
def test_other_data_without_group_or_time_are_judged_with_a_note(part: str, name: str) -> None:
    run = fathom.fit(table().select(["x", "y", name]), target="y", **{part: name}, **QUICK)
    told = run.evaluate(table().select(["x", "y"]))["evaluation_notes"]
    assert any(f"There is no column '{name}' (data.{part}), so intervals do not know" in note for note in told)
    told = run.evaluate(table().select(["x", "y", name]))["evaluation_notes"]
    assert not any("There is no column" in note for note in told)


def test_intervals_of_rows_in_time_are_those_of_stretches() -> None:
    """The same rows give another interval with a time column than without."""
    rows = table().select(["x", "y", "when"])
    run = fathom.fit(rows, target="y", time="when", **QUICK)
    in_time = run.evaluate(rows)["test"]["log_loss"]
    alone = run.evaluate(rows.select(["x", "y"]))["test"]["log_loss"]
    assert in_time["value"] == pytest.approx(alone["value"])
    assert (in_time["low"], in_time["high"]) != pytest.approx((alone["low"], alone["high"]))


def test_results_say_what_was_kept_and_whether_it_is_better() -> None:
    run = fathom.fit(table().select(["x", "y"]), target="y", **QUICK, seeds=2)
    assert run.results["better"] in ("better", "not better", "worse")
    assert f"is {run.results['better']} than" in run.results["verdict"]
    epoch = kept_epoch(read_evidence(run.folder).results)
    assert epoch is not None
    assert f"epoch {epoch}" in run.results["kept"]


def test_a_layer_table_that_fails_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with pytest.raises(RuntimeError):
        layer_table(model, torch.zeros(1, 3))  # type: ignore[arg-type]
    assert model.training
    assert not model[0]._forward_hooks
