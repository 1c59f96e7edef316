"""The charts of the report as positions in percent, which the template draws as SVG and CSS.

    Axis                                     values -> 0 to 100, with round ticks; linear or logarithmic
    Chart                                    what the template's `plot` macro draws
    curves(evidence)                         loss, validation metric and learning rate over the epochs
    reliability_chart, confidence_chart      can the confidence of a target be trusted?
    scatter_chart                            the answers of a number against its truths
    stretch_charts, horizon_chart            forecasts beside what came; their errors by moments ahead
    early_chart(told)                        a metric by how much of each series is seen
    memory_chart(curve)                      the gradient by distance from the end of a sequence
    confusion(target)                        the matrix of a category, and its most confused classes

A chart holds at most `EPOCHS` or `POINTS` points and a matrix `MATRIX` classes, so that a page stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fathom.analysis.evidence import Evidence, Table, estimate, filled_bins, kept_epoch, primary_metric
from fathom.analysis.wording import finite, is_share, metric_label, number_text, percent, shorten, tick_text
from fathom.core.errors import count_text

EPOCHS, POINTS, MATRIX, PAIRS = 400, 2000, 20, 20
GAP = 0.6  # percent between bars
FAINT = 1e-9  # the smallest share of a gradient that is told from nothing
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain_text(value: float) -> str:
    """A tick without a unit."""
    return f"{value:.6g}"


@dataclass(frozen=True)
class Axis:
    """A range of values on a line of 0 to 100.

    Args:
        low, high: values at 0 and at 100.
        step: between ticks.
        log: whether ratios, not differences, are drawn to scale.
    """

    low: float
    high: float
    step: float
    log: bool = False

    @staticmethod
    def around(values: Iterable[float], count: int = 4, most: float = math.inf) -> Axis:
        """The smallest range with round ends that holds all values, in about `count` steps, and ends at `most`."""
        found = list(values) or [0.0, 1.0]
        low, high = min(found), max(found)
        if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300):  # too near to be told apart
            low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
        step = round_step((high - low) / count)
        return Axis(math.floor(low / step + 1e-9) * step, min(math.ceil(high / step - 1e-9) * step, most), step)

    @staticmethod
    def of_loss(values: Sequence[float]) -> Axis:
        """A linear range, or a logarithmic one where the largest is 50 times the smallest."""
        if min(values) <= 0 or max(values) / min(values) <= 50:
            return Axis.around(values)
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return Axis(10.0**low, 10.0**high, 1, log=True)

    def at(self, value: float) -> float:
        """Where a value stands, 0 to 100."""
        if self.log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self, text: Callable[[float], str] = plain_text) -> list[tuple[float, str]]:
        """(place, text) of each tick."""
        if self.log:
            decades = round(math.log10(self.high / self.low))
            values = [self.low * 10**i for i in range(0, decades + 1, max(1, decades // 5))]
        else:
            values = [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]
            values = [0.0 if abs(value) < self.step * 1e-6 else value for value in values]
        return [(round(self.at(value), 2), text(value)) for value in values]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is not below `least`.

    >>> round_step(0.3), round_step(7)
    (0.5, 10.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


@dataclass(frozen=True)
class Chart:
    """What the template's `plot` macro draws. Positions are percent; paths count downward as SVG does.

    Args:
        title: above the chart.
        summary: the same in words, for those who do not see it.
        x, y: ticks (place, text).
        lines: (name, style, path of an SVG).
        areas: closed paths, drawn faintly behind the lines.
        bars: (left, top, width, height).
        dots: paths of zero-length strokes; several, so that dots that lie on each other grow darker.
        marks: (place, text) of vertical lines.
        x_label, y_label: of the axes.
        shape: "wide", "flat", "low" or "square".
    """

    title: str
    summary: str
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    bars: list[tuple[float, float, float, float]] = field(default_factory=list)
    dots: list[str] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    x_label: str = ""
    y_label: str = ""
    shape: str = "wide"
    areas: list[str] = field(default_factory=list)


def path(points: Iterable[tuple[float, float] | None]) -> str:
    """An SVG path through points (x, y upward); None breaks it. A lone point becomes a dot.

    >>> path([(0, 0), (50, 100), None, (100, 20)])
    'M0 100L50 0M100 80h.01'
    """
    runs: list[list[str]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(f"{round(point[0], 2):g} {round(100 - point[1], 2):g}")
    return "".join(f"M{'L'.join(run)}{'h.01' if len(run) == 1 else ''}" for run in runs if run)


def dot_paths(points: Sequence[tuple[float, float]], each: int = 20) -> list[str]:
    """Dots as zero-length strokes, `each` to a path."""
    return ["".join(path([point]) for point in points[i : i + each]) for i in range(0, len(points), each)]


def thin(count: int, most: int) -> list[int]:
    """At most about `most` of `count` numbers, evenly, the last among them.

    >>> thin(10, 4), thin(3, 4)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return sorted({*range(0, count, max(1, -(-count // most))), count - 1}) if count else []


# ---- over the epochs


def curves(evidence: Evidence) -> list[Chart]:
    """Loss, primary validation metric and learning rate over the epochs; of an agent first its returns over its actions."""
    if not evidence.lines:
        return []
    if chart := learning_chart(evidence.results):
        return [chart, *[c for c in (_rate_curve(evidence), _loss_curve(evidence)) if c is not None]]
    marks = _marks(evidence)
    loss = {"Training": "train/loss", "Validation": "validation/loss"}
    found = [_curve(evidence, "Loss", loss, Axis.of_loss, marks=marks)]
    metric = _validation_metric(evidence)
    if metric:
        name = metric.removeprefix("validation/")
        title, text = f"Validation {metric_label(name)}", partial(tick_text, name)
        axis = partial(Axis.around, count=3, most=1.0 if is_share(name) else math.inf)
        found.append(_curve(evidence, title, {"Validation": metric}, axis, text, marks, shape="flat"))
    found.append(_curve(evidence, "Learning rate", {"Rate": "rate"}, shape="flat"))
    return [chart for chart in found if chart is not None]


def _rate_curve(evidence: Evidence) -> Chart | None:
    return _curve(evidence, "Learning rate", {"Rate": "rate"}, shape="flat")


def _loss_curve(evidence: Evidence) -> Chart | None:
    """The loss of an agent, which says little: what it learns from changes with what it does."""
    return _curve(evidence, "Loss", {"Training": "train/loss"}, shape="flat")


def learning_chart(results: Table) -> Chart | None:
    """Returns of the episodes of training over the actions taken; of several seeds their mean, and the band they fill."""
    curve = results.get("learning") or {}
    steps, returns = list(curve.get("environment_steps") or []), list(curve.get("return") or [])
    if not steps:
        return None
    low, high = list(curve.get("low") or []), list(curve.get("high") or [])
    x, y = Axis.around([0, *steps], 5), Axis.around([*returns, *low, *high])
    lines = [("Return while exploring", "strong", path((x.at(a), y.at(b)) for a, b in zip(steps, returns, strict=True)))]
    edge = [(x.at(a), y.at(b)) for a, b in zip([*steps, *reversed(steps)], [*high, *reversed(low)], strict=False)]
    areas = [f"{path(edge)}Z"] if len(edge) > 2 else []
    seeds = " Mean of the seeds, and the range of all." if areas else ""
    summary = f"Return of the episodes of training over {steps[-1]:,} actions: ends at {number_text(returns[-1])}.{seeds}"
    return Chart(
        f"Learning curve{', all seeds' if areas else ''}", summary, x.ticks(lambda value: f"{value:,.0f}"), y.ticks(), lines,
        areas=areas, x_label="Actions taken (returns include exploration)",
    )  # fmt: skip


def _validation_metric(evidence: Evidence) -> str | None:
    """The key of the primary metric in the lines; the first other metric where it is not there."""
    primary = primary_metric(evidence.results)
    keys = [key for key in evidence.lines[-1] if key.startswith("validation/") and key != "validation/loss"]
    same = [key for key in keys if primary and key.endswith(f"/{primary}")]
    return next(iter([*same, *keys]), None)


def _curve(
    evidence: Evidence,
    title: str,
    keys: Mapping[str, str],
    axis: Callable[[list[float]], Axis] = partial(Axis.around, count=3),
    text: Callable[[float], str] = plain_text,
    marks: Sequence[tuple[float, str]] = (),
    shape: str = "wide",
) -> Chart | None:
    """One chart of one or more numbers (label -> key) over the epochs; None where none was measured."""
    series = {label: values for label, key in keys.items() if (values := evidence.series(key))}
    if not series:
        return None
    epochs, y = evidence.epochs, axis([value for values in series.values() for value in values])
    lines, alone = [], []
    for label in series:
        found = [(epochs[i], finite(evidence.lines[i].get(keys[label]))) for i in thin(len(epochs), EPOCHS)]
        points = [None if value is None else (_epoch_at(epoch, epochs), y.at(value)) for epoch, value in found]
        if any(points):
            lines.append((label, "quiet" if label == "Training" else "strong", path(points)))
        alone += [point for point in points if point] if len(points) == 1 else []
    last = "; ".join(f"{label.lower()} ends at {text(series[label][-1])}" for label, _, _ in lines)
    title += " (logarithmic)" if y.log else ""
    summary = f"{title} over {evidence.length}: {last}."
    return Chart(
        title, summary, epoch_ticks(epochs[-1], epochs[0]), y.ticks(text), lines, dots=dot_paths(alone), marks=list(marks),
        x_label="Epoch", shape=shape,
    )  # fmt: skip


def _epoch_at(epoch: float, epochs: Sequence[float]) -> float:
    """Where an epoch stands, 0 to 100, between the first and the last of the epochs."""
    first, last = epochs[0], epochs[-1]
    return 100 * (epoch - first) / (last - first) if last > first else 50.0


def epoch_ticks(last: float, first: float = 1) -> list[tuple[float, str]]:
    """Ticks at the first epoch, at round ones and at the last."""
    step = max(1, math.ceil(round_step(last / 5)))
    inner = [epoch for epoch in range(step, math.ceil(last), step) if last - epoch > step / 2]
    inner = [epoch for epoch in inner if epoch > first and (first == 1 or epoch - first > step / 4)]
    shown = dict.fromkeys([first, *inner, last])
    return [(round(_epoch_at(epoch, (first, last)), 2), f"{epoch:,g}") for epoch in shown]


def _marks(evidence: Evidence) -> list[tuple[float, str]]:
    """The kept epoch, and where a new stage began."""
    lines, epochs = evidence.lines, evidence.epochs
    names = [str(stage.get("name", "")) for stage in evidence.setting("stage", [])]
    marks = []
    for i in range(1, len(lines)):
        stage = lines[i].get("stage", 0)
        if stage != lines[i - 1].get("stage", 0):
            name = names[stage] if stage < len(names) and names[stage] else str(stage + 1)
            marks.append((round(_epoch_at(epochs[i - 1], epochs), 2), f"stage {shorten(name, 20)}"))
    kept = kept_epoch(evidence.results)
    if kept and kept <= epochs[-1]:
        marks.append((round(_epoch_at(max(kept, epochs[0]), epochs), 2), "kept"))
    return marks


# ---- of one target

DIAGONAL = path([(0, 0), (100, 100)])
PERCENT_TICKS = Axis(0, 1, 0.25).ticks(lambda value: f"{100 * value:g} %")


def reliability_chart(target: Table) -> Chart | None:
    """Accuracy against confidence; a calibrated network lies on the diagonal."""
    bins = filled_bins(target)
    if not bins:
        return None
    words = "; ".join(f"{percent(b['confidence'])} sure, {percent(b['accuracy'])} right" for b in bins)
    return Chart(
        "How often it is right, by how sure it is",
        f"Reliability: {words}.",
        PERCENT_TICKS,
        PERCENT_TICKS,
        [("Perfectly calibrated", "dashed", DIAGONAL)],
        [_bar(b, 100 * b["accuracy"]) for b in bins],
        dot_paths([(100 * b["confidence"], 100 * b["accuracy"]) for b in bins]),
        x_label="confidence",
        y_label="share that is right",
        shape="square",
    )


def confidence_chart(target: Table) -> Chart | None:
    """How many test rows were answered with each confidence."""
    bins = filled_bins(target)
    if not bins:
        return None
    y = Axis.around([0, max(b["rows"] for b in bins)], 2)
    bars = [_bar(b, y.at(b["rows"])) for b in bins]
    words = "; ".join(f"{b['rows']} rows near {percent(b['confidence'])}" for b in bins)
    return Chart(
        "Rows by confidence", f"{words}.", PERCENT_TICKS, y.ticks(), bars=bars, x_label="Confidence", shape="low"
    )


def _bar(item: Table, height: float) -> tuple[float, float, float, float]:
    """A bin of a reliability diagram as a bar of this height: left, top, width, height."""
    left, width = 100 * item["low"] + GAP / 2, 100 * (item["high"] - item["low"]) - GAP
    return round(left, 2), round(100 - height, 2), round(width, 2), round(height, 2)


def scatter_chart(target: Table) -> Chart | None:
    """Answers against truths; a perfect network lies on the diagonal."""
    pairs = [(finite(truth), finite(answer)) for truth, answer in target.get("scatter") or []]
    whole = [(truth, answer) for truth, answer in pairs if truth is not None and answer is not None]
    if not whole:
        return None
    axis = Axis.around(value for pair in whole for value in pair)
    shown = [whole[i] for i in thin(len(whole), POINTS)]
    ticks = axis.ticks(number_text)
    cut = f" ({len(shown):,} of {len(whole):,} rows)" if len(shown) < len(whole) else ""
    span = f"from {number_text(axis.low)} to {number_text(axis.high)}"
    return Chart(
        f"Answer against truth{cut}",
        f"Answer against truth for {count_text(len(shown), 'test row')}, {span}.",
        ticks,
        ticks,
        [("Perfect", "dashed", DIAGONAL)],
        dots=dot_paths([(axis.at(truth), axis.at(answer)) for truth, answer in shown]),
        x_label="truth",
        y_label="answer",
        shape="square",
    )


def stretch_charts(target: Table) -> list[Chart]:
    """Forecasts beside what came, a chart for each step ahead that was kept; with a band where there are quantiles."""
    shown = target.get("stretch") or {}
    return [chart for line in shown.get("lines", []) if (chart := _stretch_chart(shown.get("column"), line)) is not None]


def _stretch_chart(column: Any, line: Table) -> Chart | None:
    parts = {name: [finite(value) for value in line.get(name) or []] for name in ("truth", "answer", "low", "high")}
    values = [value for part in parts.values() for value in part if value is not None]
    count = len(parts["answer"])
    if not values:
        return None
    y = Axis.around(values)

    def places(name: str) -> list[tuple[float, float] | None]:
        return [None if v is None else (100 * i / max(count - 1, 1), y.at(v)) for i, v in enumerate(parts[name])]

    low, high = ([place for place in places(name) if place is not None] for name in ("low", "high"))
    lines = [("What came", "quiet", path(places("truth"))), ("Forecast", "strong", path(places("answer")))]
    ahead = count_text(int(line["step"]), "moment")
    return Chart(
        f"{column}, {ahead} ahead",
        f"{column} over the last {count_text(count, 'test moment')} and the forecasts made {ahead} before.",
        epoch_ticks(count),
        y.ticks(number_text),
        lines,
        x_label="Moment" + (", with the band of the outermost quantiles" if low else ""),
        areas=[path([*high, *reversed(low)]) + "Z"] if low and high else [],
    )


def horizon_chart(target: Table) -> Chart | None:
    """Error by moments ahead: the network, the last value and the best other baseline."""
    lines = target.get("horizons") or []
    if len(lines) < 2:
        return None
    steps = [int(line["step"]) for line in lines]
    found: dict[str, list[float | None]] = {
        name: [finite(line.get(name, {}).get("rmse")) for line in lines] for name in lines[0] if name != "step"
    }
    totals = {n: sum(v for v in part if v is not None) for n, part in found.items() if any(v is not None for v in part)}
    if "network" not in totals:
        return None
    others = sorted((name for name in totals if name not in ("network", target.get("against"))), key=lambda name: totals[name])
    styles = {str(target.get("against")): "dashed", **dict.fromkeys(others[:1], "quiet"), "network": "strong"}
    shown = {name: style for name, style in styles.items() if name in totals}
    y = Axis.around([0.0, *(value for name in shown for value in found[name] if value is not None)])
    last = steps[-1]

    def places(name: str) -> list[tuple[float, float] | None]:
        pairs = zip(steps, found[name], strict=True)
        return [None if value is None else (_epoch_at(step, (1, last)), y.at(value)) for step, value in pairs]

    words = "; ".join(f"{name} {number_text(found[name][0])} to {number_text(found[name][-1])}" for name in shown)
    return Chart(
        "Error by moments ahead",
        f"RMSE from the first to the last moment ahead: {words}.",
        epoch_ticks(last),
        y.ticks(number_text),
        [(name.capitalize(), style, path(places(name))) for name, style in shown.items()],
        x_label="Moments ahead",
        y_label="RMSE",
    )


def early_chart(told: Table, names: Sequence[str]) -> Chart | None:
    """The primary metric by how much of each series is seen: the network in its interval, and baselines.

    Args:
        told: "early" of results.json.
        names: the baselines to draw, the best first.
    """
    metric, stretches = str(told["metric"]), told["stretches"]
    models = {"network": [line["test"] for line in stretches]}
    models |= {name: [line["baseline"].get(name, {}) for line in stretches] for name in names}
    found = {name: [estimate(table.get(metric)) for table in tables] for name, tables in models.items()}
    values = [value for triples in found.values() for triple in triples for value in triple if value is not None]
    if not any(triple[0] is not None for triple in found["network"]):
        return None
    y = Axis.around(values)
    across = [100 * line["seen"] / told["longest"] for line in stretches]

    def places(name: str, part: int) -> list[tuple[float, float] | None]:
        ends = (triple[part] for triple in found[name])
        return [None if end is None else (at, y.at(end)) for at, end in zip(across, ends, strict=True)]

    low, high = ([place for place in places("network", part) if place is not None] for part in (1, 2))
    styles = dict(zip(["network", *names], ["strong", "dashed", "quiet"], strict=False))
    words = ", ".join(
        f"{line['seen']:g}: {tick_text(metric, round(triple[0], 3))}"
        for line, triple in zip(stretches, found["network"], strict=True)
        if triple[0] is not None
    )
    title, unit = metric_label(metric), f"{told['unit']}s"
    return Chart(
        f"{title} by {unit} seen",
        f"{title} of the network by {unit} seen: {words}.",
        [(round(at, 2), f"{line['seen']:g}") for at, line in zip(across, stretches, strict=True)],
        y.ticks(partial(tick_text, metric)),
        [(name.capitalize(), style, path(places(name, 0))) for name, style in styles.items()],
        x_label=f"{unit} seen of each row, with the network's 95 % interval".capitalize(),
        areas=[path([*high, *reversed(low)]) + "Z"] if len(low) > 1 else [],
    )


def memory_chart(curve: Sequence[tuple[int, float]], least: float) -> Chart:
    """The gradient by distance from the end of the row, logarithmic.

    Args:
        curve: (steps from the end, share of the largest norm), nearest first, not empty.
        least: the share drawn as a dashed line, under which a step no longer counts.
    """
    lowest = max(FAINT, min(min((share for _, share in curve if share > 0), default=FAINT), least))
    y = Axis(10.0 ** math.floor(math.log10(lowest)), 1.0, 1, log=True)
    last = max(curve[-1][0], 1)
    points = [(100 * place / last, y.at(max(share, y.low))) for place, share in curve]
    dashed = path([(0, y.at(least)), (100, y.at(least))])
    x = Axis(0, last, max(1.0, round_step(last / 5)))
    return Chart(
        "How strongly the loss depends on each step (logarithmic)",
        f"Gradient from the last step to {count_text(last, 'step')} before it: {percent(curve[0][1])} of its peak to "
        f"{percent(curve[-1][1])}.",
        [tick for tick in x.ticks() if tick[0] <= 100],
        y.ticks(_power),
        [("Norm of the gradient", "strong", path(points)), (f"{100 * least:g} % of its peak", "dashed", dashed)],
        x_label="Steps before the last one",
        y_label="share of the largest norm" + (", at the bottom what is smaller" if any(s < y.low for _, s in curve) else ""),
    )


def _power(value: float) -> str:
    """A power of ten.

    >>> _power(1e-3), _power(1.0)
    ('10⁻³', '1')
    """
    exponent = round(math.log10(value))
    return f"10{str(exponent).translate(RAISED)}" if exponent else "1"


def confusion(target: Table) -> dict[str, Any] | None:
    """The confusion matrix (rows: truth, columns: answer); of many classes its largest entries."""
    counts, names = target.get("confusion"), target.get("class_names", [])
    if not counts:
        return None
    totals = [sum(row) for row in counts]
    wrong = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]
    wrong.sort(key=lambda entry: -entry[0])
    pairs = [
        {
            "truth": names[i],
            "answer": names[j],
            "count": count,
            "total": totals[i],
            "share": round(100 * count / totals[i], 1),
        }
        for count, i, j in wrong[:PAIRS]
    ]
    rows = [_matrix_row(names[i], row, i, totals[i]) for i, row in enumerate(counts)] if len(names) <= MATRIX else []
    return {
        "names": names,
        "pairs": pairs,
        "more": max(0, len(wrong) - PAIRS),
        "wrong": sum(count for count, _, _ in wrong),
        "total": sum(totals),
        "weighted": bool(target.get("weighted")),
        "rows": rows,
    }


def _matrix_row(name: Any, counts: Sequence[int], place: int, total: int) -> dict[str, Any]:
    """One true class: each answer's count, share of the row, and depth of its tint (14 to 42 percent)."""
    shares = [count / total if total else 0.0 for count in counts]
    cells = [
        {"count": count, "share": f"{100 * share:.0f}", "tint": round(14 + 28 * share), "right": i == place}
        for i, (count, share) in enumerate(zip(counts, shares, strict=True))
    ]
    return {"name": name, "cells": cells}
