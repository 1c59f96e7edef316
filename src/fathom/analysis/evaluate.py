"""How good the answers are, how sure that is, and whether the network beats its baselines.

    evaluate(outputs, data, schema, seed)        metric -> Estimate(value, low, high)
    compare(network, baselines, data, ...)       baseline -> metric -> Estimate of the paired difference
    better(...), verdict(...)                    "better", "not better" or "worse"; the same as one sentence
    results(...)                                 the test part of results.json

Every interval of Fathom is made here. One resampling serves network and baselines: each resample draws the
test rows with replacement, or whole blocks of them (groups, stretches of time) where rows of a block belong
together, and every metric is computed on it as a weighted one (Efron 1979). What is reported is the
percentile interval, with four exceptions, each of which covers better near 0 and 1:

    - The share of independent rows that are right (accuracy, exact match) has the interval of Wilson 1927,
      and its paired difference that of Agresti and Min 2005: a bootstrap of rows that are all right would
      claim certainty.
    - AUROC and AUPRC have a normal interval of their log odds, with the standard error of the resamples
      (Pepe 2003, section 5.2): that of percentiles is too short near 1.
    - Any other metric of categories or labels between 0 and 1 whose resamples all agree at 0 or 1 gets the
      Wilson interval of as many trials as the metric rests on.
    - Where fewer than 200 resamples are affordable (over half a million rows), the interval is the value plus
      and minus the normal quantile times their standard deviation.

This file sees outputs, data and the schema, never an algorithm. In comments: N rows, K classes, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering
from statistics import NormalDist, fmean, variance
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis import breakdown, detection
from fathom.analysis.wording import capital, listed, metric_words
from fathom.core.callbacks import smaller_is_better
from fathom.core.contract import Field, Schema
from fathom.core.errors import DataError
from fathom.core.tensors import WEIGHT, Batch, TensorSet

CHUNK = 2**26  # bytes of resample weights made at once
DRAWS = 10**8  # rows drawn in all; beyond it there are fewer resamples
FEWEST = 100  # resamples, however many rows there are
ENOUGH = 200  # resamples whose percentiles are steady; below, a normal interval is steadier
RESAMPLES = 1000
CONFIDENCE = 0.95
SALT = 7_919_000_003  # so that rows are not drawn by the very numbers that the same seed gave elsewhere
DOMINANT = 0.8  # a larger share of one class makes accuracy say little
RARE = 0.05  # a positive class of a smaller share is judged by its average precision
POINTS = 400  # pairs of a scatter plot
MISTAKES = 12
ONE_BLOCK = "All rows belong to one group or one moment, so intervals take them as independent and may be too narrow."

COUNTED = ("accuracy", "balanced_accuracy", "exact_match", "precision", "recall", "specificity", "f1")
AREAS = ("auroc", "auprc")
BOUNDED = {*COUNTED, *AREAS}
ENDS_AT_ONE = {"ece", "r2", "masked_accuracy", "map", "map50", "map75", "sample_precision", "sample_recall"}
HUNDREDS = ("bleu", "chrf")  # 0 to 100
PROPORTION = {"category": "accuracy", "labels": "exact_match"}  # the share of rows that are right


@total_ordering
@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure with its interval. It compares, formats and calculates like its value.

    >>> print(Estimate(0.9481, 0.921, 0.969))
    0.948 (0.921 to 0.969)
    """

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def __eq__(self, other: object) -> bool:
        return self.value == float(other) if isinstance(other, Estimate | int | float) else NotImplemented

    def __lt__(self, other: Estimate | float) -> bool:
        return self.value < float(other) if isinstance(other, Estimate | int | float) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        digits = self._decimals()
        return f"Estimate({self.value:.{digits}f}, low={self.low:.{digits}f}, high={self.high:.{digits}f})"

    def text(self, sign: str = "") -> str:
        """The value and its interval; `sign="+"` writes the sign of a positive value too."""
        digits = self._decimals()
        return f"{self.value:{sign}.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def _decimals(self) -> int:
        """Three between 0.0005 and 1; beyond, what shows four digits of large and three of small figures."""
        largest = max(abs(self.value), abs(self.low), abs(self.high))
        if largest == 0 or not math.isfinite(largest) or 0.0005 <= largest < 1:
            return 3
        power = math.floor(math.log10(largest))
        return max(0, 3 - power) if largest >= 1 else min(2 - power, 9)

    def to_json(self) -> dict[str, float]:
        """The three figures."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @staticmethod
    def from_json(data: Mapping[str, float]) -> Estimate:
        """What `to_json` wrote."""
        return Estimate(float(data["value"]), float(data["low"]), float(data["high"]))


Table = dict[str, Estimate]  # metric -> estimate


def resample_weights(rows: int, resamples: int, seed: int, blocks: np.ndarray | None = None) -> Iterator[Tensor]:
    """How often each row counts in each resample. The same arguments give the same weights.

    Args:
        rows: N.
        resamples: R.
        seed: of the draws.
        blocks: (N,) integers; rows of one number are drawn together, as many blocks as there are.

    Yields:
        (r, N) float32 counts, chunk by chunk, R in all.
    """
    generator = torch.Generator().manual_seed(seed + SALT)
    code = None if blocks is None else torch.from_numpy(np.unique(blocks, return_inverse=True)[1].reshape(-1))
    units = rows if code is None else int(code.max()) + 1
    size = max(1, CHUNK // (4 * rows))
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = torch.randint(units, (count, units), generator=generator)
        weight = torch.zeros(count, units).scatter_add_(1, drawn, torch.ones(()).expand(count, units))
        yield weight if code is None else weight[:, code]


def affordable(rows: int, resamples: int = RESAMPLES) -> int:
    """How many resamples of so many rows are made."""
    return min(resamples, max(FEWEST, DRAWS // rows))


def evaluate(
    outputs: Batch,
    data: TensorSet,
    schema: Schema,
    seed: int,
    blocks: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Table:
    """Every metric of every target, with its interval.

    Args:
        outputs: target -> (N, *outputs), as a `Predictor` gives them.
        data: the N rows with their encoded targets; a column `.weight` weights them.
        schema: whose targets are judged.
        seed: of the resampling.
        blocks: (N,) rows of one number are resampled together.
        resamples: at most this many; fewer beyond 10^8 draws, but never below 100.
        confidence: of the intervals.

    Returns:
        metric -> estimate, or "target.metric" where there are several targets. A metric that is not defined
        on these rows (AUROC where one class is absent) is left out.

    Raises:
        DataError: there are no rows, or an output is not a number.
    """
    return _Judged.of({"network": outputs}, data, schema, seed, blocks, resamples, confidence).table("network")


def compare(
    network: Batch,
    baselines: Mapping[str, Batch],
    data: TensorSet,
    schema: Schema,
    seed: int,
    blocks: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Table]:
    """The network's metrics less those of each baseline, on the same resamples.

    Args:
        network: its outputs.
        baselines: name -> outputs of the same form.
        data, schema, seed, blocks, resamples, confidence: as for `evaluate`.

    Returns:
        baseline -> metric -> estimate of the difference. A positive one says that the network's figure is
        larger, which for errors and losses means worse.
    """
    judged = _Judged.of({"network": network, **_checked(baselines)}, data, schema, seed, blocks, resamples, confidence)
    return {name: judged.difference(name) for name in baselines}


def side_by_side(
    network: Batch, baselines: Mapping[str, Batch], data: TensorSet, schema: Schema, seed: int,
    blocks: np.ndarray | None = None,
) -> tuple[Table, dict[str, Table], dict[str, Table]]:  # fmt: skip
    """The network's metrics, those of each baseline, and the differences, from one resampling.

    Args:
        network, baselines, data, schema, seed, blocks: as for `compare`.
    """
    judged = _Judged.of({"network": network, **_checked(baselines)}, data, schema, seed, blocks, RESAMPLES, CONFIDENCE)
    tables, differences = ({name: make(name) for name in baselines} for make in (judged.table, judged.difference))
    return judged.table("network"), tables, differences


def class_shares(data: TensorSet, schema: Schema) -> dict[str, Tensor]:
    """How the rows (those of training, for `primary`) are shared among the classes.

    Returns:
        target -> (K,) shares that sum to 1, for each target of kind category.
    """
    shares = {}
    weight = row_weights(data)
    for name, item in schema.targets.items():
        if item.kind == "category":
            target = encoded(data, name)
            soft = target if target.ndim == 2 else torch.nn.functional.one_hot(target.long(), item.outputs[0])
            counts = (soft.double() * (1 if weight is None else weight[:, None])).sum(0)
            shares[name] = counts / counts.sum()
    return shares


def primary(schema: Schema, shares: Mapping[str, Tensor]) -> str:
    """The one metric by which network and baselines are compared: that of the first target.

    Numbers: R2. Forecasts: RMSE. Labels: F1. Classes: accuracy, but AUROC where one class holds more than 80 % of the training
    rows, because then always answering that class already looks good; and AUPRC where the positive one of two classes holds
    less than 5 %, because then a good AUROC still leaves most alarms false (Saito and Rehmsmeier 2015).

    Args:
        schema: whose first target counts.
        shares: target -> (K,) shares of the classes among the training rows.
    """
    return _deciding(schema, shares, next(iter(schema.targets)))


def _deciding(schema: Schema, shares: Mapping[str, Tensor], name: str) -> str:
    """The metric that says most about one target."""
    metric = {"number": "r2", "labels": "f1", "forecast": "rmse", "boxes": "map"}.get(schema.targets[name].kind, "accuracy")
    if name in shares and float(shares[name].max()) > DOMINANT:
        metric = "auprc" if is_rare(schema.targets[name], shares[name]) else "auroc"
    return _metric_name(schema, name, metric)


def is_rare(item: Field, shares: Tensor) -> bool:
    """Whether the positive one of two classes is rare.

    Args:
        item: a category target.
        shares: (K,) of its classes.
    """
    positive: int | None = item.positive_index()  # type: ignore[attr-defined]
    return len(shares) == 2 and float(shares[1 if positive is None else positive]) < RARE


def strongest(baselines: Mapping[str, Mapping[str, Estimate]], metric: str) -> str | None:
    """The baseline that is best by `metric`; the first of equal ones, None where none has it."""
    sign = -1.0 if smaller_is_better(metric) else 1.0
    able = {name: sign * table[metric].value for name, table in baselines.items() if metric in table}
    return max(able, key=lambda name: able[name]) if able else None


Tables = Mapping[str, Mapping[str, Estimate]]  # name -> metric -> estimate


def better(baselines: Tables, differences: Tables, metric: str) -> str | None:
    """Is the network better than the strongest baseline?

    Args:
        baselines: name -> metric -> estimate.
        differences: what `compare` returned for them.
        metric: the primary one.

    Returns:
        "better" only where the whole interval of the paired difference is on the better side of zero, "worse"
        where it is on the other, "not better" in between; None where there is no baseline.
    """
    name = strongest(baselines, metric)
    if name is None or metric not in differences.get(name, {}):
        return None
    gap = differences[name][metric]
    low, high = (-gap.high, -gap.low) if smaller_is_better(metric) else (gap.low, gap.high)
    return "better" if low > 0 else "worse" if high < 0 else "not better"


def verdict(baselines: Tables, differences: Tables, metric: str) -> str:
    """What `better` says, as one plain sentence with the difference."""
    judged, name = better(baselines, differences, metric), strongest(baselines, metric)
    if judged is None or name is None:
        return f"There is no baseline to compare the network's {metric_words(metric)} with."
    gap = differences[name][metric].text("+")
    return f"The network is {judged} than {_article(name)}: {metric_words(metric)} {gap}."


def verdicts(baselines: Tables, differences: Tables, metrics: Sequence[str]) -> str:
    """A sentence of `verdict` for each metric, one a target."""
    return " ".join(verdict(baselines, differences, metric) for metric in metrics)


FEW_ROWS = 5  # of a class among the test rows; figures of fewer are hardly more than one answer


def _rare(schema: Schema, data: TensorSet) -> list[str]:
    """A sentence about the classes of which the test has a few rows only."""
    notes = []
    for name, item in schema.targets.items():
        target = encoded(data, name)
        if item.kind != "category" or target.ndim != 1:
            continue
        counts = torch.bincount(target.long(), minlength=item.outputs[0]).tolist()
        few = [f"'{word}' on {count}" for word, count in zip(item.state["classes"], counts, strict=True) if 0 < count < FEW_ROWS]
        if few:
            notes.append(f"Figures of some classes of '{name}' rest on fewer than {FEW_ROWS} test rows: {listed(few, 5)}.")
    return notes


def results(
    network: Batch,
    baselines: Mapping[str, Batch],
    data: TensorSet,
    schema: Schema,
    seed: int,
    metric: str,
    blocks: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    orders: Collection[str] = (),
) -> dict[str, Any]:
    """What results.json and the report say about the test rows, as plain JSON.

    Args:
        network: its outputs.
        baselines: name -> outputs of the same form; may be empty.
        metric: the primary one; where it is not defined on these rows, the first that is takes its place, and a
            note says so.
        data, schema, seed, blocks, resamples, confidence: as for `evaluate`.
        orders: baselines whose classes are ordered but have no probability; their areas alone are told.

    Returns:
        test: metric -> value, low, high. baseline, difference: the same by name of the baseline. primary: the
        metric of the verdict; others: those of further targets. better: "better", "not better", "worse" or None.
        verdict: the same as a sentence, one a target.
        targets: what tables and pictures show of each target. mistakes: the worst rows. notes: sentences about
        the metrics and their intervals.
    """
    from fathom.analysis import forecast  # which makes its intervals here

    judged = _Judged.of({"network": network, **_checked(baselines)}, data, schema, seed, blocks, resamples, confidence)
    test = judged.table("network")
    tables = {name: _told(judged.table(name), schema, name in orders) for name in baselines}
    differences = {name: _told(judged.difference(name), schema, name in orders) for name in baselines}
    notes = judged.notes() + _rare(schema, data)
    if metric not in test:
        wanted, metric = metric, next(iter(test))
        notes.insert(
            0, f"{capital(metric_words(wanted))} is not defined on these rows; {metric_words(metric)} decides instead."
        )
    weight = row_weights(data)
    shares = class_shares(data, schema)
    others = [name for target in list(schema.targets)[1:] if (name := _deciding(schema, shares, target)) in test]
    targets = {
        name: _details(item, network[name], encoded(data, name), weight, seed)
        if item.kind != "forecast"
        else forecast.details(name, schema, network, baselines, data, seed, blocks)
        for name, item in schema.targets.items()
    }
    return {
        "test": _plain_table(test),
        "baseline": {name: _plain_table(table) for name, table in tables.items()},
        "difference": {name: _plain_table(table) for name, table in differences.items()},
        "primary": metric,
        "others": others,
        "better": better(tables, differences, metric),
        "verdict": verdicts(tables, differences, [metric, *others]),
        "targets": targets,
        "mistakes": mistakes(network, data, schema),
        "notes": [*notes, *forecast.remarks(targets, blocks)],
    }


def _told(table: Table, schema: Schema, order: bool) -> Table:
    """What can be told of a baseline: the areas alone where its classes are only ordered."""
    classes = all(item.kind == "category" for item in schema.targets.values())
    return {metric: value for metric, value in table.items() if _plain(metric) in AREAS} if order and classes else table


def mistakes(outputs: Batch, data: TensorSet, schema: Schema, count: int = MISTAKES) -> list[dict[str, Any]]:
    """The worst rows: wrong answers, the surest first, numbers by their distance. Several targets take turns.

    Returns:
        row (of `data`), target, truth, answer, confidence (None for numbers) of each; "at" of a forecast is the moment.
    """
    each = [_worst(name, item, outputs[name], encoded(data, name), count) for name, item in schema.targets.items()]
    turns = [line[place] for place in range(count) for line in each if place < len(line)]
    return turns[:count]


def encoded(data: TensorSet, name: str) -> Tensor:
    """(N, ...) one column of a set, its rows in order, without touching the others."""
    return data.column(name)


def row_weights(data: TensorSet) -> Tensor | None:
    """(N,) float64 weight of each row, or None where all count alike."""
    return encoded(data, WEIGHT).double() if WEIGHT in data.columns else None


# How intervals are made


@dataclass(frozen=True)
class _Judged:
    """Every metric of several candidates on all rows and on each resample.

    Args:
        values: candidate -> metric -> value on all rows.
        draws: candidate -> metric -> (R,) float64.
        hits: candidate -> metric that is a share -> (N,) float64 whether the row is right; empty where rows
            come in blocks.
        support: metric -> trials on which it rests.
        weight: (N,) float64 weight of each row.
        confidence: of the intervals.
        alone: whether all rows are one block, so that they had to be resampled singly.
    """

    values: dict[str, dict[str, float]]
    draws: dict[str, dict[str, Tensor]]
    hits: dict[str, dict[str, Tensor]]
    support: dict[str, float]
    weight: Tensor
    confidence: float
    alone: bool = False

    @staticmethod
    def of(
        candidates: Mapping[str, Batch], data: TensorSet, schema: Schema, seed: int,
        blocks: np.ndarray | None, resamples: int, confidence: float,
    ) -> _Judged:  # fmt: skip
        targets = {name: encoded(data, name) for name in schema.targets}
        rows = len(data)
        _check(candidates, targets, rows, blocks)
        units = rows if blocks is None else len(np.unique(blocks))
        if alone := rows > 1 and units == 1:
            units, blocks = rows, None
        weight = row_weights(data)
        if weight is not None and not weight.any():
            raise DataError("Every row to evaluate has the weight 0 (data.weight), so no figure is defined.")
        values = {name: _metrics(schema, batch, targets, weight) for name, batch in candidates.items()}
        parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in candidates}
        for counts in resample_weights(rows, affordable(rows, resamples), seed, blocks):
            drawn = counts if weight is None else counts * weight.float()
            for name, batch in candidates.items():
                parts[name].append(_metrics(schema, batch, targets, drawn))
        draws = {
            name: {metric: torch.cat([piece[metric] for piece in pieces]) for metric in pieces[0]}
            for name, pieces in parts.items()
        }
        independent = units == rows
        hits = {name: _hits(schema, batch, targets) if independent else {} for name, batch in candidates.items()}
        support = {
            _metric_name(schema, target, metric): float(min(units, _support(item, targets[target])))
            for target, item in schema.targets.items() if item.kind in PROPORTION for metric in BOUNDED
        }  # fmt: skip
        once = torch.ones(rows, dtype=torch.float64) if weight is None else weight
        known = {name: {m: float(v) for m, v in table.items()} for name, table in values.items()}
        return _Judged(known, draws, hits, support, once, confidence, alone)

    def table(self, name: str) -> Table:
        """The estimates of one candidate; what is not defined is left out."""
        found = {}
        for metric, value in self.values[name].items():
            if math.isfinite(value):
                low, high = self._interval(name, metric)
                found[metric] = Estimate(value, min(low, value), max(high, value))
        return found

    def difference(self, name: str) -> Table:
        """The network's metrics less those of candidate `name`."""
        found = {}
        for metric, own in self.values["network"].items():
            value = own - self.values[name].get(metric, math.nan)
            if math.isfinite(value):
                low, high = self._gap(name, metric, value)
                found[metric] = Estimate(value, min(low, value), max(high, value))
        return found

    def notes(self) -> list[str]:
        """Sentences about intervals that are too narrow, or rest on fewer resamples than the others."""
        draws = self.draws["network"]
        most = max(len(drawn) for drawn in draws.values())
        known = {metric: int(drawn.isfinite().sum()) for metric, drawn in draws.items()}
        told = [f"{metric_words(metric)} ({count})" for metric, count in known.items() if 0 < count < most]
        notes = [f"Intervals rest on {most} resamples, except: {', '.join(told)}."] if told else []
        return [*notes, ONE_BLOCK] if self.alone else notes

    def _interval(self, name: str, metric: str) -> tuple[float, float]:
        value, drawn = self.values[name][metric], self.draws[name][metric]
        if metric in self.hits[name]:
            return wilson(value, self._trials(), self.confidence)
        if _plain(metric) in AREAS and 0 < value < 1:
            return _log_odds(value, drawn, self.confidence)
        low, high = percentiles(value, drawn, self.confidence)
        if metric in self.support and low == high and value in (0.0, 1.0):
            return wilson(value, self.support[metric], self.confidence)
        return (max(low, 0.0), min(high, 1.0)) if metric in self.support else (low, high)

    def _gap(self, name: str, metric: str, value: float) -> tuple[float, float]:
        if metric in self.hits["network"] and metric in self.hits[name]:
            share = self.weight / self.weight.sum()
            step = self.hits["network"][metric] - self.hits[name][metric]  # (N,) 1, 0 or -1
            return paired_shares(
                float((share * (step > 0)).sum()),
                float((share * (step < 0)).sum()),
                self._trials(),
                self.confidence,
            )
        return percentiles(value, self.draws["network"][metric] - self.draws[name][metric], self.confidence)

    def _trials(self) -> float:
        """How many equally weighted rows say as much as these (Kish 1965)."""
        return float(self.weight.sum().square() / self.weight.square().sum())


def pooled(tables: Sequence[Mapping[str, Mapping[str, float]]], folds: int) -> dict[str, dict[str, float]]:
    """The mean of each metric over the members of a run, cut at the metric's limits.

    Args:
        tables: metric -> value, low, high; one table a member.
        folds: how many sets of different rows they were judged on; members of other seeds share theirs, which are 1.
    """
    means = pooled_difference(tables, folds)
    for name, mean in means.items():
        metric = _plain(name)
        bottom = -math.inf if metric == "r2" else 0.0
        top = 1.0 if metric in BOUNDED | ENDS_AT_ONE else 100.0 if metric in HUNDREDS else math.inf
        mean["low"], mean["high"] = max(bottom, mean["low"]), min(top, mean["high"])
    return means


def pooled_difference(tables: Sequence[Mapping[str, Mapping[str, float]]], folds: int) -> dict[str, dict[str, float]]:
    """The mean over members, with a normal interval: variance = between / members + within / folds.

    Repeating the folds with other divisions judges the same rows again: it steadies the mean against the chance of the
    division and of training, and never makes the rows more than they are.
    """
    count, quantile = len(tables), NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    means = {}
    for name in [name for name in tables[0] if all(name in table for table in tables)]:
        members = [table[name] for table in tables]
        value = fmean(member["value"] for member in members)
        within = fmean(((member["high"] - member["low"]) / 2 / quantile) ** 2 for member in members)
        between = variance(member["value"] for member in members) if count > 1 else 0.0
        half = quantile * math.sqrt(between / count + within / folds)
        means[name] = {"value": value, "low": value - half, "high": value + half}
    return means


def wilson(share: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The score interval of a share of independent trials (Wilson 1927; Brown, Cai and DasGupta 2001)."""
    square = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    center = (share + square / (2 * trials)) / (1 + square / trials)
    half = math.sqrt(square * (share * (1 - share) / trials + square / (4 * trials**2))) / (1 + square / trials)
    return max(0.0, center - half), min(1.0, center + half)


def paired_shares(gained: float, lost: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of a difference of two shares of the same trials (Agresti and Min 2005, section 4).

    It is Wald's after half a trial was added to each cell of the table, so that four wins and no loss prove
    nothing.

    Args:
        gained: share of the trials that only the first got right.
        lost: share that only the second got right.
        trials: n.
        confidence: of the interval.
    """
    total = trials + 2
    up, down = (gained * trials + 0.5) / total, (lost * trials + 0.5) / total
    center = up - down
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(max(0.0, up + down - center**2) / total)
    return max(-1.0, center - half), min(1.0, center + half)


def percentiles(value: float, drawn: Tensor, confidence: float) -> tuple[float, float]:
    """The percentile interval of the draws that are defined, or a normal one where they are few."""
    known = drawn[drawn.isfinite()]
    if len(known) < 2:
        return value, value
    if len(known) < ENOUGH:
        half = NormalDist().inv_cdf((1 + confidence) / 2) * float(known.std())
        return value - half, value + half
    tail = (1 - confidence) / 2
    low, high = torch.quantile(known, torch.tensor([tail, 1 - tail], dtype=known.dtype)).tolist()
    return low, high


def _log_odds(value: float, drawn: Tensor, confidence: float) -> tuple[float, float]:
    """The normal interval of log(value / (1 - value)), its spread that of the draws by the delta method."""
    known = drawn[drawn.isfinite()]
    if len(known) < 2:
        return value, value
    center, slope = math.log(value / (1 - value)), 1 / (value * (1 - value))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * float(known.std()) * slope
    low, high = torch.tensor([center - half, center + half], dtype=torch.float64).sigmoid().tolist()
    return low, high


def _metrics(schema: Schema, outputs: Batch, targets: Mapping[str, Tensor], weight: Tensor | None) -> dict[str, Tensor]:
    """Every metric of every target under the name by which it is reported."""
    found = {}
    for name, item in schema.targets.items():
        for metric, value in item.metrics(outputs[name], targets[name], weight).items():
            found[_metric_name(schema, name, metric)] = torch.as_tensor(value, dtype=torch.float64)
    return found


def _hits(schema: Schema, outputs: Batch, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Metric -> (N,) whether each row is right, for those metrics that are the share of such rows."""
    found = {}
    for name, item in schema.targets.items():
        if item.kind in PROPORTION:
            right = _right(item, outputs[name], targets[name])
            found[_metric_name(schema, name, PROPORTION[item.kind])] = right.double()
    return found


def _right(item: Field, output: Tensor, target: Tensor) -> Tensor:
    """(N,) bool: whether the answer is right, for kinds whose answers can be."""
    if item.kind == "category":
        return output.argmax(1) == (target.argmax(1) if target.ndim == 2 else target)
    return (_yes(item, output) == (target > 0.5)).all(1)


def _yes(item: Field, output: Tensor) -> Tensor:
    """(N, K) bool: the labels that are answered."""
    threshold: float = item.threshold  # type: ignore[attr-defined]
    return output.float().sigmoid() >= threshold


def _support(item: Field, target: Tensor) -> float:
    """How many trials a metric of classes or labels rests on.

    The rows of the rarer of two; of more classes, what a mean over them is worth: K times the harmonic mean
    of their rows.
    """
    if item.kind == "category":
        counts = torch.bincount(target.argmax(1) if target.ndim == 2 else target.long())
    else:
        counts = (target > 0.5).sum(0)
    held = counts[counts > 0].double()
    if len(held) == 0:
        return 1.0
    return float(held.min()) if len(held) <= 2 else float(len(held) ** 2 / (1 / held).sum())


def _check(
    candidates: Mapping[str, Batch], targets: Mapping[str, Tensor], rows: int, blocks: np.ndarray | None
) -> None:
    if rows == 0:
        raise DataError("There are no rows to evaluate. Give a test split, as data.test=0.2.")
    if blocks is not None and len(blocks) != rows:
        raise ValueError(f"{len(blocks)} blocks for {rows} rows")
    for candidate, batch in candidates.items():
        for name in targets:
            broken = ~batch[name].reshape(rows, -1).isfinite().all(1)
            if broken.any():
                count, first = int(broken.sum()), int(broken.int().argmax()) + 1
                raise DataError(
                    f"The answer of {_article(candidate)} for '{name}' is not a finite number in {count} of "
                    f"{rows} rows, first in row {first}. Train again with a smaller training.learning_rate, or "
                    "look for inputs of extreme size in that row."
                )


def _checked(baselines: Mapping[str, Batch]) -> Mapping[str, Batch]:
    if "network" in baselines:
        raise ValueError("no baseline may be called 'network'")
    return baselines


def _metric_name(schema: Schema, target: str, metric: str) -> str:
    return metric if len(schema.targets) == 1 else f"{target}.{metric}"


def _plain(metric: str) -> str:
    """The metric without its target."""
    return metric.rpartition(".")[2]


def _plain_table(table: Table) -> dict[str, dict[str, float]]:
    return {metric: estimate.to_json() for metric, estimate in table.items()}


def _article(name: str) -> str:
    """ "the majority class" and "the mean", but "logistic regression"."""
    known = ("majority", "mean", "label", "network", "trivial", "last", "word", "random policy", "linear policy")
    return f"the {name}" if name.startswith(known) else name


# What tables and pictures show of each target


def _details(item: Field, output: Tensor, target: Tensor, weight: Tensor | None, seed: int) -> dict[str, Any]:
    """What the report shows of one target; "weighted" where its tables hold sums of weights."""
    weighted = {"weighted": True} if weight is not None else {}
    if item.kind == "category":
        probability, names = output.double().softmax(1), list(item.state["classes"])
        positive = item.positive_index()  # type: ignore[attr-defined]
        named = names[1] if positive is None and len(names) == 2 else None if positive is None else names[positive]
        return {
            "kind": item.kind,
            "class_names": names,
            "positive": named,
            "classes": breakdown.per_class(probability, target, names, weight),
            "confusion": breakdown.confusion(probability, target, weight).tolist(),
            "reliability": breakdown.reliability(probability, target, weight),
            **weighted,
        }
    if item.kind == "labels":
        names = list(item.state["classes"])
        lines = breakdown.per_label(output.double().sigmoid(), target > 0.5, _yes(item, output), names, weight)
        return {"kind": item.kind, "class_names": names, "classes": lines, **weighted}
    if item.kind == "boxes":
        return detection.details(item, output, target)
    if item.kind == "number":
        return {"kind": item.kind, "scatter": _scatter(item, output, target, seed)}
    return {"kind": item.kind}


def _scatter(item: Field, output: Tensor, target: Tensor, seed: int) -> list[list[float]]:
    """Up to 400 pairs of truth and answer, drawn by the seed; of the first column where there are several."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(target), generator=generator)[:POINTS].sort().values
    answer = _unscale(item, output[chosen])[:, 0]
    return torch.stack([_original(item, target[chosen])[:, 0], answer], 1).tolist()


def _unscale(item: Field, output: Tensor) -> Tensor:
    """Outputs of a network (N, columns) in the original units."""
    values: Tensor = item.unscale(output)  # type: ignore[attr-defined]
    return values


def _original(item: Field, target: Tensor) -> Tensor:
    """Encoded numbers (N, columns) in the original units."""
    values: Tensor = item.original(target)  # type: ignore[attr-defined]
    return values


def _worst(name: str, item: Field, output: Tensor, target: Tensor, count: int) -> list[dict[str, Any]]:
    """The worst rows of one target, the worst first."""
    from fathom.analysis import forecast

    judges = {"category": _worst_classes, "labels": _worst_labels, "number": _worst_numbers}
    judges |= {"forecast": forecast.worst, "boxes": detection.worst}
    if item.kind not in judges:
        return []
    return [{"row": row, "target": name, **told} for row, told in judges[item.kind](item, output, target, count)]


Told = list[tuple[int, dict[str, Any]]]  # row and what it says


def _largest(loss: Tensor, wrong: Tensor, count: int) -> list[int]:
    """The wrong rows by falling loss or confidence, at most `count`."""
    order = torch.where(wrong, loss, -torch.inf).argsort(descending=True, stable=True)
    return order[: min(count, int(wrong.sum()))].tolist()


def _worst_classes(item: Field, output: Tensor, target: Tensor, count: int) -> Told:
    names = item.state["classes"]
    truth = target.argmax(1) if target.ndim == 2 else target.long()
    logs = output.double().log_softmax(1)  # (N, K)
    confidence, answer = logs.exp().max(1)
    rows = _largest(confidence, answer != truth, count)
    return [
        (
            row,
            {"truth": names[truth[row]], "answer": names[answer[row]], "confidence": float(confidence[row])},
        )
        for row in rows
    ]


def _worst_labels(item: Field, output: Tensor, target: Tensor, count: int) -> Told:
    names = item.state["classes"]
    truth, answer = target > 0.5, _yes(item, output)  # (N, K)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(output.double(), target.double(), reduction="none").sum(
        1
    )
    probability = output.double().sigmoid()
    sure = torch.maximum(probability, 1 - probability).amin(1)  # of the least sure decision
    return [
        (
            row,
            {
                "truth": [names[k] for k in truth[row].nonzero()[:, 0]],
                "answer": [names[k] for k in answer[row].nonzero()[:, 0]],
                "confidence": float(sure[row]),
            },
        )
        for row in _largest(loss, (truth != answer).any(1), count)
    ]


def _worst_numbers(item: Field, output: Tensor, target: Tensor, count: int) -> Told:
    distance = (output - item.scale(target)).abs().amax(1)  # type: ignore[attr-defined]
    truth, answer = _original(item, target), _unscale(item, output)
    return [
        (row, {"truth": _number(truth[row]), "answer": _number(answer[row]), "confidence": None})
        for row in _largest(distance, distance > 0, count)
    ]


def _number(row: Tensor) -> float | list[float]:
    """A number, or a list where there are several columns."""
    values: list[float] = row.double().tolist()
    return values[0] if len(values) == 1 else values
