"""How early a series tells its class, and how many alarms that costs.

    early(predictor, sets, ...)   the figures when only the first part of each test row is seen -> (table, notes)
    Timeline                      how time passes along the rows: by a channel that holds it, or moment by moment
    cut(data, timeline, steps)    the rows with what came before a moment, and nothing after it

The longest stretch is halved three times: of 48 hours, 6, 12, 24 and 48 are seen. The network was trained on whole rows
and answers cut ones; baselines are fitted again on training rows that are cut alike. Where there are two classes, an
alarm is raised at a probability that was chosen once, on whole validation rows, to find 80 % of their events; it is told
what that threshold does at each stretch, and what it does if an alarm stays raised once it was.

Rows are cut after they are encoded and before they reach the network, so that no later value can. In comments: N rows,
M moments of all rows, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis import baseline, evaluate
from fathom.analysis.evaluate import Estimate, encoded, row_weights
from fathom.analysis.wording import metric_words
from fathom.core.contract import Field, Predictor, Schema
from fathom.core.tensors import Batch, Encoded, Ragged, TensorSet, end_to_end

HALVINGS = 3
SENSITIVITY = 0.8  # of the events among the validation rows, at which the threshold of alarms is set
SHARED = 0.1  # of the longest stretch, by which most rows may begin late and still count time from one beginning
GRAIN = 1000  # parts of a step to which time is rounded; float32 holds no more of a long one
WORK = 2**19  # training rows x channels x classes beyond which no baselines are fitted again: some 10 seconds

FIGURES = ("sensitivity", "precision", "alarms_per_event", "alarmed")


@dataclass(frozen=True)
class Timeline:
    """How time passes along the rows of a whole series.

    Args:
        series: name of the input.
        unit: of time, in the singular ("hour"); "moment" where moments are counted.
        step: units from one moment to the next, as most rows have it.
        longest: steps of the longest training row.
        channel: place of the channel that holds the time; None where moments are counted.
        mean: what was taken off that channel when it was encoded.
        origin: when time begins for all rows; None where each row begins with its first moment.
    """

    series: str
    unit: str
    step: float
    longest: float
    channel: int | None = None
    mean: float = 0.0
    origin: float | None = 0.0

    @staticmethod
    def of(schema: Schema, train: TensorSet) -> Timeline | None:
        """From the training rows; None where the inputs hold no whole series, or several."""
        names = [name for name, item in schema.inputs.items() if item.kind == "series" and not item.window]
        if len(names) != 1 or not isinstance(train.columns[names[0]], Ragged):
            return None
        (name,) = names
        state = schema.inputs[name].state
        layout = state.get("layout") or {}
        if not layout.get("time"):
            lengths = end_to_end(train, name)[1].diff()
            return Timeline(name, "moment", 1.0, float(lengths.max()))
        channel = list(state["channels"]).index("time")
        return Timeline._of_times(name, str(layout.get("unit") or "time unit"), channel, float(state["mean"][channel]), train)

    @staticmethod
    def _of_times(name: str, unit: str, channel: int, mean: float, train: TensorSet) -> Timeline | None:
        values, offsets = end_to_end(train, name)
        times = values[:, channel].double() + mean  # (M,)
        filled = offsets.diff() > 0
        first, last = times[offsets[:-1][filled]], times[offsets[1:][filled] - 1]
        within = torch.ones(len(times), dtype=torch.bool)
        within[offsets[:-1][filled]] = False
        passed = times.diff(prepend=times[:1])[within]
        if not bool((passed > 0).any()):
            return None
        step = float(passed[passed > 0].median())
        together = float(first.median() - first.min()) <= SHARED * float(last.max() - first.min())
        origin = float(first.min()) if together else None
        span = last.max() - origin if origin is not None else (last - first).max()
        return Timeline(name, unit, step, round(float(span) / step) + 1.0, channel, mean, origin)

    def stretches(self) -> list[int]:
        """Steps after which a row is judged: the longest row and its halves."""
        return sorted({math.ceil(self.longest / 2**power) for power in range(HALVINGS + 1)})

    def elapsed(self, data: TensorSet) -> Tensor:
        """(M,) steps from the beginning of its row at which each moment came."""
        values, offsets = end_to_end(data, self.series)
        lengths = offsets.diff()
        begins = offsets[:-1].repeat_interleave(lengths)  # (M,) place of the row's first moment
        if self.channel is None:
            return torch.arange(len(values)) - begins
        times = values[:, self.channel].double() + self.mean
        since = times - (times[begins] if self.origin is None else self.origin)
        return (since / self.step * GRAIN).round() / GRAIN

    def text(self, steps: float) -> str:
        """So many steps in words: "12 hours".

        >>> Timeline("series", "hour", 0.5, 96).text(3)
        '1.5 hours'
        """
        return f"{steps * self.step:g} {self.unit}" + ("" if steps * self.step == 1 else "s")


def cut(data: TensorSet, timeline: Timeline, steps: float) -> TensorSet:
    """The same rows with the moments of the first `steps` steps; the later ones are not in what is returned.

    Args:
        data: N encoded rows.
        timeline: of their series.
        steps: a moment at this many steps is not seen any more.
    """
    seen = timeline.elapsed(data) < steps  # (M,)
    values, offsets = end_to_end(data, timeline.series)
    before = torch.cat([seen.new_zeros(1, dtype=torch.int64), seen.cumsum(0)])  # (M + 1,)
    columns: dict[str, Encoded] = {name: _own(data, name) for name in data.columns}
    whole = columns[timeline.series]
    assert isinstance(whole, Ragged), "a series is whole"
    columns[timeline.series] = replace(whole, values=values[seen], offsets=before[offsets])
    return TensorSet(columns)


def _own(data: TensorSet, name: str) -> Encoded:
    """A column with the rows of the set, and no others."""
    column = data.columns[name]
    if not isinstance(column, Ragged):
        return data.column(name)
    values, offsets = end_to_end(data, name)
    return replace(column, values=values, offsets=offsets)


# ---------------------------------------------------------------- the figures


def early(
    predictor: Predictor,
    sets: Mapping[str, TensorSet],
    seed: int,
    metric: str,
    fitted: Mapping[str, Batch],
    blocks: np.ndarray | None = None,
) -> tuple[dict[str, Any] | None, list[str]]:
    """What results.json says about how early the classes are told.

    Args:
        predictor: what is deployed.
        sets: "train", "validation" and "test", encoded.
        seed: of the resampling and of the baselines.
        metric: the primary one, of which the sentences speak.
        fitted: baseline -> its outputs for the whole test rows.
        blocks: (N,) test rows of one number are resampled together.

    Returns:
        unit, longest, metric; stretches (seen, share, test, baseline, difference), the shortest first; alarms, where
        there is one target of two classes; and says: sentences. None where the rows are no whole series with classes.
        And sentences about what was left out.
    """
    schema, test = predictor.schema, sets["test"]
    timeline = Timeline.of(schema, sets["train"]) if suits(schema) else None
    if timeline is None or len(timeline.stretches()) < 2:
        return None, []
    *shorter, whole = timeline.stretches()
    rows = [*(cut(test, timeline, steps) for steps in shorter), test]
    outputs = [predictor.outputs(part) for part in rows]
    fitted_again, notes = _baselines(schema, timeline, sets["train"], rows[:-1], seed)
    names = [name for name in fitted if any(name in found for found in fitted_again)]
    rivals = [{name: found[name] for name in names if name in found} for found in (*fitted_again, fitted)]
    lines = []
    for steps, part, answer, others in zip([*shorter, whole], rows, outputs, rivals, strict=True):
        own, tables, differences = evaluate.side_by_side(answer, others, part, schema, seed, blocks)
        lines.append(
            {
                "seen": steps * timeline.step,
                "share": _share(part, test, timeline.series),
                "test": _plain(own),
                "baseline": {name: _plain(table) for name, table in tables.items()},
                "difference": {name: _plain(table) for name, table in differences.items()},
            }
        )
    told = {"unit": timeline.unit, "longest": whole * timeline.step, "metric": metric, "stretches": lines}
    raised, more = _alarms(predictor, sets["validation"], outputs, test, seed, blocks)
    if raised is not None:
        told["alarms"] = raised
    return {**told, "says": sentences(told)}, [*notes, *more]


def suits(schema: Schema) -> bool:
    """Whether each row holds one whole series, and classes are told from it."""
    series = [item for item in schema.inputs.values() if item.kind == "series" and not item.window]
    return len(series) == 1 and bool(schema.targets) and all(item.kind == "category" for item in schema.targets.values())


def _baselines(
    schema: Schema, timeline: Timeline, train: TensorSet, rows: Sequence[TensorSet], seed: int
) -> tuple[list[dict[str, Batch]], list[str]]:
    """Baselines fitted on training rows as short as the rows to answer; none where that takes more than seconds."""
    channels = len(schema.inputs[timeline.series].state["channels"])
    if len(train) * channels * max(item.outputs[0] for item in schema.targets.values()) > WORK:
        note = "No baselines are fitted again on the first part of each series: with so many rows it would take too long."
        return [{} for _ in rows], [note]
    found: list[dict[str, Batch]] = []
    notes: list[str] = []
    for part, steps in zip(rows, timeline.stretches(), strict=False):
        fitted, told = baseline.classical(schema, cut(train, timeline, steps), part, seed)
        found.append(fitted)
        notes += [f"With {timeline.text(steps)} seen: {note}" for note in told]
    return found, notes


def _share(part: TensorSet, whole: TensorSet, series: str) -> float:
    """How many of all moments are seen."""
    seen, held = (len(end_to_end(data, series)[0]) for data in (part, whole))
    return seen / max(held, 1)


def _plain(table: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {metric: value.to_json() for metric, value in table.items()}


def sentences(told: Mapping[str, Any]) -> list[str]:
    """What the figures say in words, of each stretch but the whole.

    Args:
        told: the table that `early` makes, with or without alarms.
    """
    lines = []
    for line in told["stretches"][:-1]:
        if told["metric"] in line["test"]:
            figure = Estimate.from_json(line["test"][told["metric"]])
            lines.append(
                f"With {line['seen']:g} of {told['longest']:g} {told['unit']}s seen, {metric_words(told['metric'])} is "
                f"{figure.text()}."
            )
    return lines


# ---------------------------------------------------------------- alarms


def _alarms(
    predictor: Predictor, validation: TensorSet, outputs: Sequence[Batch], test: TensorSet,
    seed: int, blocks: np.ndarray | None,
) -> tuple[dict[str, Any] | None, list[str]]:  # fmt: skip
    """Alarms at each stretch, of the answers at that stretch and of those that stay raised.

    Args:
        predictor: what is deployed.
        validation: whole rows, on which the threshold is chosen.
        outputs: of the test rows, a stretch each, the shortest first.
        test: the N rows with what came of them.
        seed, blocks: of the resampling.
    """
    schema = predictor.schema
    if len(schema.targets) != 1:
        return None, []
    ((name, item),) = schema.targets.items()
    if item.outputs != (2,):
        return None, []
    positive = item.positive_index()  # type: ignore[attr-defined]  # of a category
    positive = 1 if positive is None else positive
    threshold = at_sensitivity(
        _score(item, predictor.outputs(validation)[name], positive),
        _events(encoded(validation, name), positive),
        row_weights(validation),
    )
    event = _events(encoded(test, name), positive)
    if threshold is None or not bool(event.any()):
        part = "validation" if threshold is None else "test"
        word = item.state["classes"][positive]
        return None, [f"Alarms are not counted: the {part} rows hold no '{word}'."]
    count = Counts.of(event, row_weights(test), seed, blocks)
    raised, alarms = torch.zeros_like(event), []
    for output in outputs:
        now = _score(item, output[name], positive) >= threshold
        raised = raised | now
        alarms += [now, raised]
    figures = [_plain(table) for table in count.figures(torch.stack(alarms))]
    lines = [{"now": now, "raised": still} for now, still in zip(figures[::2], figures[1::2], strict=True)]
    word = item.state["classes"][positive]
    about = {"target": name, "event": word, "sensitivity": SENSITIVITY, "threshold": threshold}
    return {**about, "says": _threshold_sentence(word, threshold), "stretches": lines}, []


def _threshold_sentence(event: str, threshold: float) -> str:
    digits = ".3g" if threshold < 0.999 else ".7g"
    return (
        f"An alarm is raised where the probability of '{event}' is at least {threshold:{digits}}, chosen on whole validation "
        f"rows to find {100 * SENSITIVITY:g} % of the events."
    )


def _score(item: Field, output: Tensor, positive: int) -> Tensor:
    """(N,) the probability of an event."""
    return output.double().softmax(1)[:, positive]


def _events(target: Tensor, positive: int) -> Tensor:
    """(N,) bool: the rows of the positive class."""
    return (target.argmax(1) if target.ndim == 2 else target) == positive


def at_sensitivity(score: Tensor, event: Tensor, weight: Tensor | None = None, sensitivity: float = SENSITIVITY) -> float | None:
    """The largest threshold at which that share of the events is found.

    Args:
        score: (N,); an alarm is raised where it is not below the threshold.
        event: (N,) bool.
        weight: (N,) of the rows; None where all count alike.
        sensitivity: the share of the events.

    Returns:
        None where no row that counts is an event.
    """
    ordered, order = score[event].sort(descending=True)
    held = torch.ones_like(ordered) if weight is None else weight[event][order]
    if not bool(held.any()):
        return None
    found = held.cumsum(0) / held.sum()
    return float(ordered[int(torch.searchsorted(found, sensitivity - 1e-9))])


@dataclass(frozen=True)
class Counts:
    """What alarms are counted with: the rows, and how they are drawn again.

    Args:
        event: (N,) float64, 1 where a row is an event.
        weight: (N,) float64 of the rows; their sum is how many equal rows say as much (Kish 1965).
        seed: of the resamples, which are those of every other interval.
        blocks: (N,) rows of one number are drawn together; None where each is drawn alone.
    """

    event: Tensor
    weight: Tensor
    seed: int
    blocks: np.ndarray | None

    @staticmethod
    def of(event: Tensor, weight: Tensor | None, seed: int, blocks: np.ndarray | None) -> Counts:
        """Of (N,) bool events."""
        if blocks is not None and len(np.unique(blocks)) == 1:
            blocks = None
        weight = torch.ones(len(event), dtype=torch.float64) if weight is None else weight
        return Counts(event.double(), weight * (weight.sum() / weight.square().sum()), seed, blocks)

    def figures(self, alarms: Tensor) -> list[dict[str, Estimate]]:
        """Figures of each line of (A, N) alarms, with intervals; one that is not defined is left out.

        sensitivity: the share of the events with an alarm. precision: the share of the alarms with an event.
        alarms_per_event: alarms for each event that was found. alarmed: the share of all rows with an alarm.
        """
        rows, raised = len(self.event), alarms.double()
        table = torch.stack([torch.ones_like(self.event), self.event, *raised, *(raised * self.event)], 1)  # (N, 2 + 2 A)
        drawn = evaluate.resample_weights(rows, evaluate.affordable(rows), self.seed, self.blocks)  # a few at a time
        sums = torch.cat([self.weight[None] @ table, *((part.double() * self.weight) @ table for part in drawn)])
        held, events = sums[:, 0], sums[:, 1]  # (1 + R,) each
        each = zip(sums[:, 2 : 2 + len(raised)].unbind(1), sums[:, 2 + len(raised) :].unbind(1), strict=True)
        return [self._estimates(held, events, alarm, right) for alarm, right in each]

    def _estimates(self, rows: Tensor, events: Tensor, alarms: Tensor, right: Tensor) -> dict[str, Estimate]:
        """From the sums (1 + R,) of the rows as they are, and of each resample."""
        shares = dict(zip(FIGURES, (right / events, right / alarms, alarms / right, alarms / rows), strict=True))
        trials = {"sensitivity": events[0], "precision": alarms[0], "alarmed": rows[0]}
        units = len(self.event) if self.blocks is None else len(np.unique(self.blocks))
        found = {}
        for name, drawn in shares.items():
            value = float(drawn[0])
            if math.isfinite(value):
                low, high = evaluate.percentiles(value, drawn[1:], evaluate.CONFIDENCE)
                if name in trials and low == high and value in (0.0, 1.0):
                    low, high = evaluate.wilson(value, min(units, float(trials[name])))
                found[name] = Estimate(value, min(low, value), max(high, value))
        return found
