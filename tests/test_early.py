"""How early a series tells its class: no later value is read, alarms are counted right, and the page and console tell it."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from fathom.analysis import early, evaluate
from fathom.analysis.advice import end_early
from fathom.analysis.charts import early_chart
from fathom.analysis.early import Counts, Timeline, at_sensitivity, cut
from fathom.analysis.evidence import Evidence
from fathom.analysis.report import early_view
from fathom.core.contract import Batch, Columns, Model, Predictor, Schema
from fathom.core.prepare import encode
from fathom.core.registry import algorithms, fields, networks
from fathom.core.tensors import TensorSet
from fathom.verbs.evaluate import NO_BASELINE, NO_TIME
from fathom.verbs.result import load
from kit import QUICK, cli

HOURS = 16


def stays(rows: int = 90, seed: int = 0, begin: float = 0.0, step: float = 1.0, classes: int = 2) -> list[list[list[float]]]:
    """Rows of [time, value] with gaps; the value of row i rises from the middle on where its class is 1."""
    random = np.random.default_rng(seed)
    made = []
    for i in range(rows):
        seen = np.flatnonzero(random.random(HOURS) < 0.8)
        rise = (seen >= HOURS // 2) * (i % classes) * 2.0
        made.append(np.column_stack([begin + seen * step, rise + random.normal(size=len(seen))]).tolist())
    made[0] = [[begin, 0.0], [begin + (HOURS - 1) * step, 1.0]]
    return made


def task(rows: Any = None, classes: int = 2, layout: Any = None) -> tuple[Schema, dict[str, TensorSet]]:
    rows = stays(classes=classes) if rows is None else rows
    width = len(next(row for row in rows if row)[0])
    layout = {"time": "hour", "unit": "hour", "channels": ["time", "v"][2 - width :]} if layout is None else layout
    words = ["no", "yes", "perhaps"][:classes]
    columns = Columns({"s": pa.array(rows), "y": [words[i % classes] for i in range(len(rows))]})
    series, target = fields["series"].make(["s"]), fields["category"].make(["y"])
    series.state["layout"] = layout
    train = len(rows) // 3
    for item in (series, target):
        item.fit([columns.slice(0, train)])
    schema = Schema({"s": series}, {"y": target})
    data, faults = encode(schema, columns)
    assert not faults
    cuts = {"train": (0, train), "validation": (train, 2 * train), "test": (2 * train, len(rows))}
    return schema, {name: data.subset(torch.arange(*ends)) for name, ends in cuts.items()}


def lstm(schema: Schema) -> Predictor:
    torch.manual_seed(0)
    model = Model(schema, networks["lstm"].build(schema, "model", units=8, embedding=8)).eval()
    made: Predictor = algorithms["supervised"].make.deploy(schema, {"model": model})
    return made


def last_value(schema: Schema) -> Predictor:
    """Answers by the last value seen."""

    def forward(batch: Batch) -> Batch:
        last = (batch["s.mask"].sum(1) - 1).clamp(min=0)
        value = batch["s"][torch.arange(len(last)), last, -1].nan_to_num(0.0)
        return {"y": torch.stack([-value, value, *[torch.zeros_like(value)] * (schema.targets["y"].outputs[0] - 2)], 1)}

    return Predictor(schema, {}, forward)


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(("begin", "step"), [(0.0, 1.0), (1.0, 1.0), (100.0, 0.5), (1.7e9, 3600.0)])
def test_time_begins_where_the_rows_do_and_is_halved(begin: float, step: float) -> None:
    schema, sets = task(stays(begin=begin, step=step))
    timeline = Timeline.of(schema, sets["train"])
    assert timeline is not None
    assert (timeline.step, timeline.longest) == (pytest.approx(step), HOURS)
    assert timeline.stretches() == [2, 4, 8, 16]
    assert timeline.text(4) == f"{4 * step:g} hours"
    seen = cut(sets["test"], timeline, 4)
    times = seen.column("s")[..., 0].double() + timeline.mean - begin
    assert float(times[~times.isnan()].max()) < 4 * step
    whole = sets["test"].column("s")[..., 0].double() + timeline.mean - begin
    kept = (whole < 3.9 * step).sum(1)  # a gap is no moment
    assert seen.columns["s"].lengths().tolist() == kept.tolist()


def test_rows_that_begin_at_any_time_count_from_their_own_first_moment() -> None:
    rows = [[[1000.0 * i + hour, 0.0] for hour in range(8)] for i in range(30)]
    schema, sets = task(rows)
    timeline = Timeline.of(schema, sets["train"])
    assert timeline is not None
    assert (timeline.origin, timeline.longest) == (None, 8)
    assert set(cut(sets["test"], timeline, 2).columns["s"].lengths().tolist()) == {2}


def test_without_a_time_moments_are_counted() -> None:
    schema, sets = task([[[float(i)]] * length for i, length in enumerate([5, 3, 9] * 10)], layout={})
    timeline = Timeline.of(schema, sets["train"])
    assert timeline is not None
    assert (timeline.unit, timeline.stretches()) == ("moment", [2, 3, 5, 9])
    assert cut(sets["test"], timeline, 3).columns["s"].lengths().tolist() == [3, 3, 3] * 3 + [3]


def test_empty_rows_stay_and_other_columns_are_kept() -> None:
    rows = stays()
    rows[65] = []
    schema, sets = task(rows)
    timeline = Timeline.of(schema, sets["train"])
    assert timeline is not None
    seen = cut(sets["test"], timeline, 1)
    assert len(seen) == len(sets["test"])
    assert torch.equal(seen.column("y"), sets["test"].column("y"))
    assert seen.columns["s"].lengths()[5] == 0
    assert lstm(schema).outputs(seen)["y"].isfinite().all()


def test_no_later_value_reaches_the_network() -> None:
    """The figures of a stretch stay bit for bit the same when everything after it is changed."""
    schema, sets = task()
    predictor = lstm(schema)
    timeline = Timeline.of(schema, sets["train"])
    assert timeline is not None
    column = sets["test"].columns["s"]
    late = timeline.elapsed(TensorSet({"s": column})) >= 8
    values = column.values.clone()
    values[late, 1] = 1e3
    changed = TensorSet({**sets["test"].columns, "s": replace(column, values=values)}, sets["test"].index)
    for steps in (2, 4, 8):
        mine, other = (predictor.outputs(cut(data, timeline, steps))["y"] for data in (sets["test"], changed))
        assert torch.equal(mine, other)
    assert not torch.equal(predictor.outputs(sets["test"])["y"], predictor.outputs(changed)["y"])
    told = [early.early(predictor, {**sets, "test": test}, 0, "auroc", {})[0] for test in (sets["test"], changed)]
    assert told[0] is not None
    assert told[1] is not None
    assert [line["test"] for line in told[0]["stretches"][:3]] == [line["test"] for line in told[1]["stretches"][:3]]


# ---------------------------------------------------------------- figures


def test_the_whole_stretch_is_what_evaluate_says_and_baselines_are_fitted_again() -> None:
    schema, sets = task()
    predictor = last_value(schema)
    whole = {"gradient boosting": predictor.outputs(sets["test"]), "majority class": predictor.outputs(sets["test"])}
    told, notes = early.early(predictor, sets, 0, "auroc", whole)
    assert told is not None
    assert notes == []
    assert (told["unit"], told["longest"], [line["seen"] for line in told["stretches"]]) == ("hour", 16, [2, 4, 8, 16])
    plain = evaluate.evaluate(predictor.outputs(sets["test"]), sets["test"], schema, 0)
    assert told["stretches"][-1]["test"] == {name: value.to_json() for name, value in plain.items()}
    assert [list(line["baseline"]) for line in told["stretches"]] == [["gradient boosting"]] * 4
    assert told["stretches"][-1]["difference"]["gradient boosting"]["auroc"]["value"] == 0.0
    areas = [line["test"]["auroc"]["value"] for line in told["stretches"]]
    assert areas[-1] > 0.85 > 0.75 > areas[0], "the value rises in the second half only"
    shares = [line["share"] for line in told["stretches"]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert told["says"][1].startswith("With 4 of 16 hours seen, AUROC is 0.")


def test_what_is_no_series_with_classes_has_no_figures() -> None:
    schema, sets = task()
    number = fields["number"].make(["v"])
    assert Timeline.of(Schema({"v": number}, schema.targets), sets["train"]) is None
    window = fields["series"].make(["a"], past=3)
    assert Timeline.of(Schema({"s": window}, schema.targets), sets["train"]) is None
    regression = Predictor(Schema(schema.inputs, {"v": number}), {}, lambda batch: batch)
    assert early.early(regression, sets, 0, "r2", {}) == (None, [])


def test_many_rows_fit_no_baselines_again_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "WORK", 10)
    schema, sets = task()
    told, notes = early.early(last_value(schema), sets, 0, "auroc", {})
    assert told is not None
    assert told["stretches"][0]["baseline"] == {}
    assert "too long" in notes[0]


def test_three_classes_have_no_alarms() -> None:
    schema, sets = task(classes=3)
    told, _ = early.early(last_value(schema), sets, 0, "accuracy", {})
    assert told is not None
    assert "alarms" not in told


# ---------------------------------------------------------------- alarms


def test_threshold_by_hand() -> None:
    score, event = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.95]), torch.tensor([1, 1, 1, 1, 1, 0]).bool()
    assert at_sensitivity(score, event) == pytest.approx(0.6), "four of five events"
    assert at_sensitivity(score, event, sensitivity=0.81) == pytest.approx(0.5)
    assert at_sensitivity(score, event, torch.tensor([1.0, 1, 1, 0, 17, 5]), 0.1) == pytest.approx(0.8)
    assert at_sensitivity(score, ~event & event) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_threshold_is_the_largest_that_finds_enough(rows: list[tuple[int, bool]], wanted: float) -> None:
    score, event = (torch.tensor(part) for part in zip(*rows, strict=True))
    threshold = at_sensitivity(score.double(), event, sensitivity=wanted)
    if threshold is None:
        assert not event.any()
        return

    def found(limit: float) -> float:
        return float((score[event] >= limit).double().mean())

    assert found(threshold) >= wanted - 1e-9
    assert found(threshold + 1) < wanted


def test_alarms_are_counted_like_scikit_learn_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    event, alarm = (torch.rand(200, generator=generator) < share for share in (0.2, 0.4))
    weight = torch.randint(1, 4, (200,), generator=generator).double()
    for given_weight in (None, weight):
        figures = Counts.of(event, given_weight, 0, None).figures(alarm[None])[0]
        own = None if given_weight is None else given_weight.numpy()
        assert figures["sensitivity"].value == pytest.approx(sk.recall_score(event, alarm, sample_weight=own))
        assert figures["precision"].value == pytest.approx(sk.precision_score(event, alarm, sample_weight=own))
        assert figures["alarms_per_event"].value == pytest.approx(1 / figures["precision"].value)
        assert figures["alarmed"].value == pytest.approx(np.average(alarm.numpy(), weights=own))
        for value in figures.values():
            assert value.low < value.value < value.high


def test_alarms_that_find_nothing() -> None:
    count = Counts.of(torch.tensor([True, False, False]), None, 0, None)
    silent, one = count.figures(torch.tensor([[False, False, False], [False, True, False]]))
    assert set(silent) == {"sensitivity", "alarmed"}, "what is not defined is left out"
    assert (silent["sensitivity"].value, silent["alarmed"].high > 0) == (0.0, True)
    assert "alarms_per_event" not in one


def test_blocks_widen_the_intervals_of_alarms() -> None:
    event, blocks = torch.arange(200) % 20 < 4, np.arange(200) // 20
    alarm = torch.arange(200) < 100
    wide, narrow = (Counts.of(event, None, 0, part).figures(alarm[None])[0]["alarmed"] for part in (blocks, None))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert Counts.of(event, None, 0, np.zeros(200)).figures(alarm[None])[0]["alarmed"] == narrow, "one block is none"


def test_alarms_that_find_all_are_as_sure_as_their_rows_allow() -> None:
    """Where every resample agrees the interval is that of Wilson, of rows or blocks, whatever the unit of the weights."""
    event, weight = torch.arange(60) % 3 == 0, torch.arange(60) % 2 + 1.0
    blocks = np.arange(60) // 6

    def sensitivity(weight: torch.Tensor | None, blocks: np.ndarray | None = None) -> Any:
        return Counts.of(event, weight, 0, blocks).figures(event[None])[0]["sensitivity"]

    assert sensitivity(None).low == pytest.approx(evaluate.wilson(1.0, 20)[0])
    assert sensitivity(None, blocks).low == pytest.approx(evaluate.wilson(1.0, 10)[0])
    one, thousandth = sensitivity(weight.double()), sensitivity(weight.double() / 1000)
    assert one.low == pytest.approx(thousandth.low)
    assert one.low < sensitivity(None).low < one.value == 1.0


def test_alarms_keep_their_threshold_and_may_stay_raised() -> None:
    schema, sets = task()
    told, _ = early.early(last_value(schema), sets, 0, "auroc", {})
    assert told is not None
    alarms = told["alarms"]
    assert (alarms["event"], alarms["sensitivity"]) == ("yes", 0.8)
    outputs = last_value(schema).outputs(sets["validation"])["y"].double().softmax(1)[:, 1]
    held = sets["validation"].column("y") == 1
    assert float((outputs[held] >= alarms["threshold"]).double().mean()) >= 0.8
    lines = alarms["stretches"]
    assert lines[0]["now"] == lines[0]["raised"]
    for figure in ("sensitivity", "alarmed"):
        raised = [line["raised"][figure]["value"] for line in lines]
        assert raised == sorted(raised)
        assert all(line["raised"][figure]["value"] >= line["now"][figure]["value"] for line in lines)
    assert alarms["says"] == (
        f"An alarm is raised where the probability of 'yes' is at least {alarms['threshold']:.3g}, chosen on whole validation "
        "rows to find 80 % of the events."
    )


def test_no_event_no_alarms() -> None:
    schema, sets = task()
    without = sets["test"].subset((sets["test"].column("y") == 0).nonzero()[:, 0])
    told, notes = early.early(last_value(schema), {**sets, "test": without}, 0, "accuracy", {})
    assert told is not None
    assert "alarms" not in told
    assert notes[-1] == "Alarms are not counted: the test rows hold no 'yes'."


# ---------------------------------------------------------------- page, advice, console


def test_the_page_draws_network_and_baselines() -> None:
    schema, sets = task()
    whole = {"gradient boosting": last_value(schema).outputs(sets["test"])}
    told, _ = early.early(last_value(schema), sets, 0, "auroc", whole)
    view = early_view({"early": told})
    assert view is not None
    assert view["names"] == ["network", "gradient boosting"]
    assert [part["label"] for part in view["tables"]] == ["AUROC", "AUPRC"]
    assert [row["seen"] for row in view["alarms"]["rows"]] == ["2", "4", "8", "16"]
    chart = view["chart"]
    assert [at for at, _ in chart.x] == [12.5, 25.0, 50.0, 100.0]
    assert [name for name, _, _ in chart.lines] == ["Network", "Gradient boosting"]
    assert len(chart.areas) == 1
    assert early_view({}) is None
    assert early_chart({**(told or {}), "metric": "absent"}, []) is None


def test_a_network_that_is_worse_early_is_advised_to_learn_from_early_ends() -> None:
    def results(high: float) -> dict[str, Any]:
        gap = {"boosting": {"auroc": {"value": -0.2, "low": -0.3, "high": high}}}
        lines = [{"seen": seen, "difference": gap} for seen in (12.0, 48.0)]
        return {"early": {"metric": "auroc", "unit": "hour", "longest": 48.0, "stretches": lines}}

    advice = end_early(Evidence(results=results(-0.1), recipe={"data": {"location": "stays"}}))
    assert advice is not None
    assert "With 12 of 48 hours seen" in advice.why
    assert advice.command.endswith("augment.cut=0.5")
    assert end_early(Evidence(results=results(0.1))) is None
    assert end_early(Evidence(results=results(-0.1), recipe={"augment": {"cut": 0.5}})) is None
    assert end_early(Evidence(results={})) is None


def folder(path: Path, rows: int = 120) -> Path:
    """Two tables: stays with a score that knows the outcome roughly, and their hours."""
    path.mkdir()
    random = np.random.default_rng(3)
    score = [i % 2 * 3 + int(random.integers(0, 5)) for i in range(rows)]
    lines = [f"{i},{'' if i == 7 else score[i]},{i % 2}" for i in range(rows)]
    (path / "stays.csv").write_text("id,score,died\n" + "\n".join(lines) + "\n")
    moments = [f"{i},{t:.0f},{v:.3f}" for i, row in enumerate(stays(rows)) for t, v in row]
    with gzip.open(path / "hours.csv.gz", "wt") as file:
        file.write("id,hour,v\n" + "\n".join(moments) + "\n")
    return path


def test_fit_and_evaluate_tell_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = folder(tmp_path / "stays")
    said = cli("fit", data, "--target", "died", "--steps", "30", "--name", "a", "data.compare=score", "augment.cut=0.5", *QUICK)
    assert said.code == 0, said.err
    assert "score alone" in said.out
    assert "hours seen" in said.out
    assert "of 16 hours seen, " in said.out
    assert "An alarm is raised where the probability of '1'" in said.out
    results = load("runs/a").results
    assert "score" not in str(load("runs/a").schema.to_json()["inputs"])
    assert set(results["baseline"]["score alone"]) == {"auroc", "auprc"}
    assert "How early it knows" in (tmp_path / "runs/a/report.html").read_text()
    again = cli("evaluate", "runs/a", "--json")
    assert again.code == 0, again.err
    assert load("runs/a").evaluate()["early"] == results["early"]
    other = load("runs/a").evaluate(data)
    assert len(other["early"]["stretches"]) == 4
    assert "score alone" in other["baseline"]
    gone = load("runs/a").evaluate(data.rename(tmp_path / "elsewhere"))
    assert "early" not in gone
    assert {NO_BASELINE, NO_TIME} <= set(gone["evaluation_notes"])


def test_hours_are_known_from_dates() -> None:
    from fathom.sources.entities import _unit

    dates = pa.array(np.array(["2020-01-01", "2020-01-02"], "datetime64[us]"))
    moments = Columns({"when": dates, "day": [1, 2], "t": [1, 2]})
    assert [_unit(moments, name) for name in ("when", "day", "t", None)] == ["hour", "day", "", ""]
