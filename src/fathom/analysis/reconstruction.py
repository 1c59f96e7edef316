"""Judging what makes rows again: how near it comes, how likely it finds them, and what its score of anomalies is worth.

    results(...)        the test part of results.json
    judged(...)         means over rows with their intervals, of network and baselines, from one resampling
    Linear              principal components of the same number, the honest rival (Pearson 1901): a linear autoencoder is one
    Trivial             the mean of each pixel and column, with the likelihood of each alone
    anomalies(...)      the score against a label of two classes that nobody learnt from, beside PCA error, isolation forest
                        (Liu et al. 2008) and the distance to the fifth nearest training row (Ramaswamy et al. 2000)
    figures(...)        originals and what was made of them, samples, the codes in two dimensions

The bound of the likelihood is that of Burda et al. 2016 with 500 samples a row. Where a network is so large that all test
rows would take hours on this device, it rests on as many rows as are affordable, and a note says so.

This file sees a Predictor and encoded rows, never an algorithm. In comments: N rows, F features, D numbers of a code, R
resamples.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.analysis.evaluate import (
    CONFIDENCE,
    Estimate,
    affordable,
    better,
    percentiles,
    resample_weights,
    row_weights,
    verdicts,
)
from fathom.analysis.evaluate import results as evaluated
from fathom.core.contract import Batch, Columns, Field, Predictor, Schema, TensorSet
from fathom.core.errors import DataError, count_text
from fathom.core.registry import fields
from fathom.core.tensors import Column
from fathom.fields.copies import (
    LABEL,
    NOISY,
    THRESHOLD,
    CategoryCopy,
    Copy,
    ImageCopy,
    copies_of,
    drawn_by_row,
    noised,
    png,
)

ROWS = 512  # measured at once
BOUND_ROWS = 50  # of the bound, at once
BOUND_WORK = {"cpu": 3e12}  # multiplications that the bound may take
MORE_WORK = 1e15  # the same on an accelerator
LEAST_ROWS = 200  # of the bound, whatever they take
FITTED = 20_000  # training rows that principal components are made of
VALUES = 2**26
REMEMBERED = 5_000  # training rows among which the nearest is searched
NEIGHBOR = 5
SHOWN = 10  # pictures side by side
SAMPLES = 40
DOTS = 1_000
# Ten hues that stay apart for most eyes (Tableau 10).
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
PCA, MEAN, NOISE = "PCA", "mean", "noisy picture"
Rows = dict[str, Tensor]  # figure -> (N,)
Metrics = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # means () or (R,) by figure -> metrics
Table = dict[str, Estimate]


def reconstructs(schema: Schema) -> bool:
    """Whether the targets are the inputs."""
    copies = copies_of(schema)
    return bool(copies) and len(copies) == len(schema.targets) and all(item.given for item in copies.values())


def results(
    predictor: Predictor, train: TensorSet | None, test: TensorSet, seed: int, blocks: np.ndarray | None = None,
    label: Column | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What results.json and the report say about the test rows, as `evaluate.results` has it.

    Args:
        predictor: what is deployed.
        train: encoded training rows, for the baselines; None where they are gone.
        test: N encoded rows.
        seed: of the resampling and the baselines.
        blocks: (N,) rows of one number are resampled together.
        label: (N,) raw, what is known of the rows.

    Raises:
        DataError: there are no rows.
    """
    if not len(test):
        raise DataError("There are no rows to evaluate. Give a test split, as data.test=0.2.")
    copies = copies_of(predictor.schema)
    codes = embedded(predictor, test)
    rivals: dict[str, Linear | Trivial] = {}
    if train is not None:
        width = codes.shape[1] if codes is not None else 16
        rivals = {PCA: Linear(copies, train, width, seed), MEAN: Trivial(copies, train)}
    found = {"network": reconstructed(predictor, copies, test, "")}
    found |= {name: rival.rows(copies, test, "") for name, rival in rivals.items()}
    if noise := max(item.noise for item in copies.values()):
        found["network"] |= reconstructed(predictor, copies, test, NOISY)
        for name, rival in rivals.items():
            found[name] |= rival.rows(copies, test, NOISY)
        found[NOISE] = untouched(copies, test)
    test_table, tables, differences = judged(found, _metrics_of(copies), row_weights(test), seed, blocks)
    notes = _notes(copies, noise)
    primary = _primary(copies, bool(noise), "bound" in predictor.scores)
    if "bound" in predictor.scores:
        chosen, told = affordable_rows(predictor, test, seed)
        notes += told
        nats = {"network": likelihoods(predictor, copies, test.subset(chosen))}
        if MEAN in rivals:
            nats[MEAN] = {"nll": rivals[MEAN].nats(copies, test.subset(chosen))}  # type: ignore[union-attr]
        part = None if blocks is None else blocks[chosen.numpy()]
        more = judged(nats, _nats_metrics(copies), row_weights(test.subset(chosen)), seed, part)
        test_table = more[0] | test_table
        tables, differences = (_joined(a, b) for a, b in ((tables, more[1]), (differences, more[2])))
    made: dict[str, Any] = {
        "test": _plain(test_table),
        "baseline": {name: _plain(table) for name, table in tables.items()},
        "difference": {name: _plain(table) for name, table in differences.items()},
        "primary": primary,
        "others": [],
        "better": better(tables, differences, primary),
        "verdict": verdicts(tables, differences, [primary]),
        "targets": {name: {"kind": item.kind} for name, item in copies.items()},
        "mistakes": worst(predictor, test, label),
        "evaluation_notes": notes,
    }  # fmt: skip
    first = next(iter(copies))
    made["targets"][first]["pictured"] = figures(predictor, copies, test, codes, label, seed)
    flags = scores_of(predictor, test)
    made["anomaly"] = {"threshold": copies[first].state.get(THRESHOLD), "flagged": _share_above(copies[first], flags)}
    if label is not None and train is not None:
        told_of = anomalies(predictor, copies, train, test, flags, label, seed, blocks)
        made["anomaly"] |= told_of
        made["evaluation_notes"] += [told_of["says"]] if told_of else []
    return made


def _notes(copies: Mapping[str, Copy], noise: float) -> list[str]:
    notes = [f"PCA has as many components as the code has numbers, fitted on {FITTED:,} training rows at most."]
    for item in copies.values():
        if (
            isinstance(item, ImageCopy)
            and item.likelihood == "bernoulli"
            and item.settings.get("binarize", "none") == "none"
        ):
            notes.append(
                "Cross-entropy of gray pixels is no likelihood: figures in nats say nothing (data.image.binarize=stochastic)."
            )
    if noise:
        notes.append(
            f"Denoised figures are of test rows with noise of {noise:g}, the same at every time, against clean ones."
        )
    return notes


def _primary(copies: Mapping[str, Copy], noisy: bool, bound: bool) -> str:
    """The metric that decides: the likelihood where there is one, else how near the first target comes."""
    name, item = next(iter(copies.items()))
    prefix = f"{name}." if len(copies) > 1 else ""
    if bound and not noisy:
        return "nll"
    return prefix + ("denoised_" if noisy else "") + item.headline


def _joined(one: dict[str, Table], other: dict[str, Table]) -> dict[str, Table]:
    return {name: other.get(name, {}) | table for name, table in one.items()}


def _plain(table: Table) -> dict[str, dict[str, float]]:
    return {metric: value.to_json() for metric, value in table.items()}


# Figures of rows


def device_of(predictor: Predictor) -> torch.device:
    return next((p.device for layer in predictor.layers.values() for p in layer.parameters()), torch.device("cpu"))


def moved(predictor: Predictor, batch: Batch) -> Batch:
    """The batch where the network is."""
    device = device_of(predictor)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def with_noise(copies: Mapping[str, Copy], batch: Batch) -> Batch:
    """The batch with the noise of its rows beside each input."""
    return {**batch, **noised(copies, batch, lambda x: drawn_by_row(batch[".row"].cpu(), x))}


def reconstructed(predictor: Predictor, copies: Mapping[str, Copy], data: TensorSet, prefix: str) -> Rows:
    """How far the network is from the truth in each row: prefix and target -> (N,); with noise where the prefix says so."""
    parts: dict[str, list[Tensor]] = {name: [] for name in copies}
    with torch.inference_mode():
        for batch in data.batches(ROWS):
            given = moved(predictor, with_noise(copies, batch) if prefix else batch)
            outputs = predictor.forward(given)
            for name, item in copies.items():
                parts[name].append(item.missed(item.shown(outputs[name]), given[name]).double().cpu())
    return {prefix + name: torch.cat(each) for name, each in parts.items()}


def untouched(copies: Mapping[str, Copy], data: TensorSet) -> Rows:
    """How far the noisy rows are from the clean ones, before anything is done to them."""
    parts: dict[str, list[Tensor]] = {name: [] for name, item in copies.items() if not isinstance(item, CategoryCopy)}
    for batch in data.batches(ROWS):
        noisy = with_noise(copies, batch)
        for name in parts:
            item = copies[name]
            parts[name].append(item.missed(item.truth(noisy[NOISY + name]).nan_to_num(), batch[name]).double())
    return {NOISY + name: torch.cat(each) for name, each in parts.items()}


def scores_of(predictor: Predictor, data: TensorSet) -> Tensor:
    """(N,) float64 anomaly scores."""
    return scored(predictor, "anomaly", data).double()


def scored(predictor: Predictor, name: str, data: TensorSet, size: int = ROWS) -> Tensor:
    """(N, ...) one of the predictor's scores, on the CPU."""
    with torch.inference_mode():
        return torch.cat([predictor.scores[name](moved(predictor, batch)).cpu() for batch in data.batches(size)])


def embedded(predictor: Predictor, data: TensorSet) -> Tensor | None:
    """(N, D) codes; None where the network has none."""
    return scored(predictor, "embed", data).float() if "embed" in predictor.scores else None


def affordable_rows(predictor: Predictor, data: TensorSet, seed: int) -> tuple[Tensor, list[str]]:
    """The rows whose bound is computed, in order, and a sentence where they are not all.

    What a row takes is counted, not timed, so that the same rows are chosen on every machine of a kind.
    """
    budget = BOUND_WORK.get(device_of(predictor).type, MORE_WORK)
    rows = max(LEAST_ROWS, int(budget / max(work(predictor, data), 1)))
    if rows >= len(data):
        return torch.arange(len(data)), []
    drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:rows].sort().values
    note = f"The likelihood rests on {rows:,} of {len(data):,} test rows, drawn by the seed: the network is large for more."
    return drawn, [note]


def work(predictor: Predictor, data: TensorSet) -> float:
    """Multiplications that the bound of one row takes: weights times the places where they are used."""
    counts: list[float] = []

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        used = inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else output
        counts.append(module.weight.numel() * used.numel() / module.weight.shape[0])

    weighted = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    layers = [part for layer in predictor.layers.values() for part in layer.modules() if isinstance(part, weighted)]
    handles = [part.register_forward_hook(count) for part in layers]
    try:
        with torch.inference_mode():
            predictor.scores["bound"](moved(predictor, data.batch(torch.tensor([0]))))
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)


def likelihoods(predictor: Predictor, copies: Mapping[str, Copy], data: TensorSet) -> Rows:
    """Nats of each row: negative ELBO, importance-weighted bound, divergence."""
    made = scored(predictor, "bound", data, BOUND_ROWS).double()
    return dict(zip(("negative_elbo", "nll", "kl"), made.unbind(1), strict=True))


def _nats_metrics(copies: Mapping[str, Copy]) -> Metrics:
    """Nats as they are, and bits a dimension where the likelihood is that of bytes."""
    discrete = all(isinstance(item, ImageCopy) and item.likelihood == "logistic" for item in copies.values())
    size = sum(int(np.prod(item.shape)) for item in copies.values())

    def metrics(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = dict(means)
        return {**made, "bits_per_dimension": made["nll"] / (size * math.log(2))} if discrete else made

    return metrics


def _metrics_of(copies: Mapping[str, Copy]) -> Metrics:
    """The metrics of each target, those of noisy rows with "denoised_" before them."""

    def metrics(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = {}
        for figure, mean in means.items():
            name = figure.removeprefix(NOISY)
            target, what = f"{name}." if len(copies) > 1 else "", "denoised_" if figure != name else ""
            made.update({f"{target}{what}{key}": value for key, value in copies[name].summary(mean).items()})
        return made

    return metrics


def judged(
    candidates: Mapping[str, Rows], metrics: Metrics, weight: Tensor | None, seed: int, blocks: np.ndarray | None
) -> tuple[Table, dict[str, Table], dict[str, Table]]:
    """Metrics of means over rows, and paired differences, from one resampling.

    Args:
        candidates: the network first; figure -> (N,) of each.
        metrics: of the means.
        weight: (N,) of the rows.
        seed: of the resampling.
        blocks: (N,) rows of one number are drawn together.

    Returns:
        The network's table, those of the others, and the network's less theirs.
    """
    rows = len(next(iter(candidates["network"].values())))
    if blocks is not None and len(np.unique(blocks)) == 1:
        blocks = None
    base = torch.ones(rows, dtype=torch.float64) if weight is None else weight
    stacked = {name: torch.stack(list(each.values()), 1).double() for name, each in candidates.items()}  # (N, figures)
    values = {name: metrics(_means(base, stacked[name], candidates[name])) for name in candidates}
    draws: dict[str, dict[str, list[Tensor]]] = {name: {} for name in candidates}
    for counts in resample_weights(rows, affordable(rows), seed, blocks):
        drawn = counts.double() * base
        for name in candidates:
            for metric, value in metrics(_means(drawn, stacked[name], candidates[name])).items():
                draws[name].setdefault(metric, []).append(value)
    whole = {name: {metric: torch.cat(parts) for metric, parts in each.items()} for name, each in draws.items()}

    def estimate(value: Tensor, drawn: Tensor) -> Estimate:
        low, high = percentiles(float(value), drawn, CONFIDENCE)
        return Estimate(float(value), min(low, float(value)), max(high, float(value)))

    tables = {n: {m: estimate(v, whole[n][m]) for m, v in each.items()} for n, each in values.items()}
    mine = values["network"]
    differences = {
        n: {m: estimate(mine[m] - v, whole["network"][m] - whole[n][m]) for m, v in each.items() if m in mine}
        for n, each in values.items() if n != "network"
    }  # fmt: skip
    return tables.pop("network"), tables, differences


def _means(weight: Tensor, stacked: Tensor, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Figure -> mean, () or (R,), of weights (N,) or (R, N)."""
    made = weight @ stacked / weight.sum(-1, keepdim=True).clamp(min=1e-12)
    return dict(zip(names, made.unbind(-1), strict=True))


# Baselines


def matrix(copies: Mapping[str, Copy], batch: Batch, prefix: str = "") -> Tensor:
    """(N, F) rows as numbers side by side: pixels, standardized numbers (the mean where missing), one-hot words.

    Args:
        copies: what is reconstructed.
        batch: encoded.
        prefix: `NOISY` for the rows with noise.
    """
    parts = []
    for name, item in copies.items():
        x = item.truth(batch[prefix + name])
        if isinstance(item, CategoryCopy):
            parts += [F.one_hot(x[:, i], size).float() for i, size in enumerate(item.sizes)]
        else:
            parts.append(x.float().nan_to_num().flatten(1))
    return torch.cat(parts, 1)


def parted(copies: Mapping[str, Copy], made: Tensor) -> Batch:
    """(N, F) back into answers as `Copy.shown` gives them."""
    answers: Batch = {}
    place = 0
    for name, item in copies.items():
        size = sum(item.sizes) if isinstance(item, CategoryCopy) else len(item.columns)
        if isinstance(item, ImageCopy):
            size = int(np.prod(item.shape))
            answers[name] = made[:, place : place + size].view(-1, *item.shape).clamp(0, 1)
        elif isinstance(item, CategoryCopy):
            answers[name] = item.shown(made[:, place : place + size])
        else:
            answers[name] = made[:, place : place + size]
        place += size
    return answers


def some(data: TensorSet, most: int, copies: Mapping[str, Copy]) -> Batch:
    """Rows at even steps, as many as are affordable."""
    width = sum(int(np.prod(item.shape)) for item in copies.values())
    count = max(2, min(most, VALUES // max(width, 1), len(data)))
    return data.batch(torch.linspace(0, len(data) - 1, count).round().long().unique())


class Linear:
    """Principal components of the training rows.

    Args:
        copies: what is reconstructed.
        train: encoded training rows.
        width: components at most.
        seed: of the randomized solver.
    """

    def __init__(self, copies: Mapping[str, Copy], train: TensorSet, width: int, seed: int) -> None:
        from sklearn import decomposition

        x = matrix(copies, some(train, FITTED, copies)).numpy()
        count = min(width, *x.shape)
        solver = "covariance_eigh" if x.shape[1] <= 1_000 else "randomized" if count < min(x.shape) else "full"
        self.model = decomposition.PCA(count, svd_solver=solver, random_state=seed).fit(x)

    def made(self, x: Tensor) -> Tensor:
        """(N, F) -> (N, F)."""
        again: np.ndarray = self.model.inverse_transform(self.model.transform(x.numpy()))
        return torch.from_numpy(again).float()

    def rows(self, copies: Mapping[str, Copy], data: TensorSet, prefix: str) -> Rows:
        """As `reconstructed`."""
        return _rows(copies, data, prefix, self.made)

    def errors(self, copies: Mapping[str, Copy], data: TensorSet) -> Tensor:
        """(N,) squared error."""
        parts = [matrix(copies, batch) for batch in data.batches(ROWS)]
        return torch.cat([(self.made(x) - x).square().sum(1) for x in parts]).double()


class Trivial:
    """Each pixel and column alone: its mean, and how often each of its values came.

    Args:
        copies: what is reconstructed.
        train: encoded training rows.
    """

    def __init__(self, copies: Mapping[str, Copy], train: TensorSet) -> None:
        batch = some(train, FITTED, copies)
        self.count = len(batch[".row"])
        self.mean = matrix(copies, batch).mean(0)  # (F,)
        self.levels = {n: levels(item, batch[n]) for n, item in copies.items() if isinstance(item, ImageCopy)}

    def rows(self, copies: Mapping[str, Copy], data: TensorSet, prefix: str) -> Rows:
        """As `reconstructed`."""
        return _rows(copies, data, prefix, lambda x: self.mean.expand(len(x), -1))

    def nats(self, copies: Mapping[str, Copy], data: TensorSet) -> Tensor:
        """(N,) minus the log likelihood of each row, its pixels and columns independent of each other."""
        parts = []
        for batch in data.batches(ROWS):
            each = torch.zeros(len(batch[".row"]), dtype=torch.float64)
            outputs = self._outputs(copies, len(each))
            for name, item in copies.items():
                if name in outputs:
                    each += item.nats(outputs[name], batch[name]).double()
                elif self.levels[name] is not None:
                    each += _of_levels(self.levels[name], batch[name])  # type: ignore[arg-type]
                else:
                    each += torch.nan
            parts.append(each)
        return torch.cat(parts)

    def _outputs(self, copies: Mapping[str, Copy], rows: int) -> Batch:
        """What a network would return to say this, of numbers and words."""
        answers: Batch = {}
        place = 0
        for name, item in copies.items():
            size = sum(item.sizes) if isinstance(item, CategoryCopy) else len(item.columns)
            if isinstance(item, ImageCopy):
                place += int(np.prod(item.shape))
                continue
            part = self.mean[place : place + size]
            smooth = (part * self.count + 1).log() if isinstance(item, CategoryCopy) else part
            answers[name] = smooth.expand(rows, -1)
            place += size
        return answers


def levels(item: ImageCopy, encoded: Tensor) -> Tensor | None:
    """(levels, P) log shares of the values of each pixel, one more of each counted; None where pixels are no bytes.

    Binary pixels have two levels, others 256, so that this is a likelihood of the same kind as the network's; a density
    (gaussian) cannot be compared with it.
    """
    if encoded.dtype != torch.uint8 or item.likelihood not in ("bernoulli", "logistic"):
        return None
    count = 2 if item.likelihood == "bernoulli" else 256
    values = _levels_of(encoded, count)
    counts = torch.zeros(count, values.shape[1]).scatter_add_(0, values, torch.ones(values.shape)) + 1
    return (counts / counts.sum(0)).log()


def _levels_of(encoded: Tensor, count: int) -> Tensor:
    """(N, P) int64."""
    flat = encoded.flatten(1)
    return (flat > 127).long() if count == 2 else flat.long()


def _of_levels(shares: Tensor, encoded: Tensor) -> Tensor:
    return -shares.gather(0, _levels_of(encoded, len(shares))).sum(1).double()


def _rows(copies: Mapping[str, Copy], data: TensorSet, prefix: str, made: Callable[[Tensor], Tensor]) -> Rows:
    parts: dict[str, list[Tensor]] = {name: [] for name in copies}
    for batch in data.batches(ROWS):
        given = with_noise(copies, batch) if prefix else batch
        answers = parted(copies, made(matrix(copies, given, prefix)))
        for name, item in copies.items():
            parts[name].append(item.missed(answers[name], batch[name]).double())
    return {prefix + name: torch.cat(each) for name, each in parts.items()}


# Anomalies


def _share_above(item: Copy, scores: Tensor) -> float | None:
    threshold = item.state.get(THRESHOLD)
    return None if threshold is None else float((scores > threshold).double().mean())


@dataclass(frozen=True)
class Known:
    """What is known of the rows: which of two classes, the rarer being the anomaly.

    Args:
        field: of the label, fitted on the judged rows.
        rows: (N,) those that have one.
        codes: (N,) class of each of them.
        rare: its word.
    """

    field: Field
    rows: Tensor
    codes: Tensor
    rare: str


def known(label: Column) -> Known | None:
    """The label of the rows, where it tells two classes apart."""
    if isinstance(label, np.ndarray):
        return None
    rows = np.flatnonzero(~np.array(label.is_null(nan_is_null=True).to_pylist(), bool))
    columns = Columns({LABEL: label}).take(rows)
    item: Field = fields["category"].make([LABEL])
    item.fit([columns])
    if len(item.state["classes"]) != 2:
        return None
    codes = item.encode(columns, target=True)
    assert isinstance(codes, Tensor), "one class a row"
    rare = int(torch.bincount(codes, minlength=2).argmin())
    made: Field = fields["category"].make([LABEL], positive=item.state["classes"][rare])
    made.state = item.state
    return Known(made, torch.from_numpy(rows), codes, str(item.state["classes"][rare]))


def anomalies(
    predictor: Predictor, copies: Mapping[str, Copy], train: TensorSet, test: TensorSet, scores: Tensor, label: Column,
    seed: int, blocks: np.ndarray | None,
) -> dict[str, Any]:  # fmt: skip
    """How well the score tells the rarer of two classes that nobody learnt from; empty where the label has not two.

    Args:
        predictor, copies, seed, blocks: as for `results`.
        train: encoded training rows.
        test: N encoded rows.
        scores: (N,) of the network.
        label: (N,) raw.
    """
    told = known(label)
    if told is None:
        return {}
    others = rival_scores(copies, train, test, seed)
    sign = 1 if told.field.state["classes"].index(told.rare) == 1 else -1
    ranks = {name: _as_logits(each[told.rows], sign) for name, each in {"network": scores, **others}.items()}
    part = None if blocks is None else blocks[told.rows.numpy()]
    rows = TensorSet({LABEL: told.codes})
    made = evaluated(
        {LABEL: ranks.pop("network")}, {n: {LABEL: r} for n, r in ranks.items()}, rows, Schema({}, {LABEL: told.field}), seed,
        "auprc", part, orders=set(ranks),
    )  # fmt: skip
    areas = {metric: made["test"][metric] for metric in ("auroc", "auprc") if metric in made["test"]}
    count = int((told.codes == told.field.state["classes"].index(told.rare)).sum())
    says = [
        f"Anomaly score against '{told.rare}' ({count_text(count, 'row')} of {len(told.rows):,}), which was not learnt from"
    ]
    for name, table in {"network": areas, **made["baseline"]}.items():
        words = ", ".join(f"{m.upper()} {table[m]['value']:.3f}" for m in ("auroc", "auprc") if m in table)
        says.append(f"{name} {words}")
    return {
        "positive": told.rare,
        "test": areas,
        "baseline": made["baseline"],
        "difference": made["difference"],
        "says": f"{says[0]}: {'; '.join(says[1:])}.",
    }


def _as_logits(scores: Tensor, sign: int) -> Tensor:
    """(N, 2) logits in the order of the scores, whatever their size: the rank, spread over a few logits."""
    order = scores.unique(return_inverse=True)[1].double()
    spread = order / order.max().clamp(min=1) * 8 - 4
    return torch.stack([torch.zeros_like(spread), sign * spread], 1)


def rival_scores(copies: Mapping[str, Copy], train: TensorSet, test: TensorSet, seed: int) -> dict[str, Tensor]:
    """(N,) of each baseline: the larger, the stranger. PCA keeps a third of the features, sixteen at most."""
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import NearestNeighbors

    x, y = (matrix(copies, some(train, most, copies)).numpy() for most in (FITTED, REMEMBERED))
    asked = [matrix(copies, batch).numpy() for batch in test.batches(ROWS)]
    forest = IsolationForest(random_state=seed).fit(x)
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOR, len(y))).fit(y)
    return {
        "PCA error": Linear(copies, train, max(1, min(16, x.shape[1] // 3)), seed).errors(copies, test),
        "isolation forest": torch.from_numpy(np.concatenate([-forest.score_samples(part) for part in asked])).double(),
        "nearest rows": torch.from_numpy(
            np.concatenate([nearest.kneighbors(part)[0][:, -1] for part in asked])
        ).double(),
    }


def worst(predictor: Predictor, test: TensorSet, label: Column | None, count: int = 12) -> list[dict[str, Any]]:
    """The rows of the largest score, with the share of the columns that contribute most."""
    scores = scores_of(predictor, test)
    usual = float(scores.median())
    top = scores.topk(min(count, len(scores))).indices
    parts = shares(predictor, test.subset(top))
    lines = []
    for place, row in enumerate(top.tolist()):
        truth = "" if label is None or isinstance(label, np.ndarray) else str(label[row].as_py())
        most = list(parts[place].items())[:3] if len(parts[place]) > 1 else []
        names = "".join(f"; {name} {share:.0%}" for name, share in most)
        answer = f"score {float(scores[row]):.4g} (half of the rows: under {usual:.4g}){names}"
        target = next(iter(predictor.schema.targets))
        lines.append({"row": row, "target": target, "truth": truth, "answer": answer, "confidence": None})
    return lines


def shares(predictor: Predictor, data: TensorSet) -> list[dict[str, float]]:
    """Column -> its share of the row's error, the largest first."""
    names = [name for item in copies_of(predictor.schema).values() for name in item.names]
    made = scored(predictor, "columns", data).double()
    made = made / made.sum(1, keepdim=True).clamp(min=1e-12)
    return [
        {names[i]: round(float(row[i]), 4) for i in row.argsort(descending=True, stable=True).tolist()} for row in made
    ]


# Pictures


def figures(
    predictor: Predictor,
    copies: Mapping[str, Copy],
    test: TensorSet,
    codes: Tensor | None,
    label: Column | None,
    seed: int,
) -> list[dict[str, str]]:
    """What the report shows: a sentence and a PNG each."""
    made = []
    pictures = [name for name, item in copies.items() if isinstance(item, ImageCopy)]
    if pictures:
        made.append(_side_by_side(predictor, copies, pictures[0], test))
    if pictures and predictor.sampler is not None and not predictor.sampler.conditions:
        codes_drawn = predictor.sampler.draw(SAMPLES, torch.Generator().manual_seed(seed)).to(device_of(predictor))
        with torch.inference_mode():
            drawn = copies[pictures[0]].shown(predictor.sampler.make(codes_drawn, {})[pictures[0]])
        says = "Pictures that the network makes of codes drawn from its prior."
        made.append({"says": says, "picture": as_uri_of_grid(grid(drawn, SHOWN))})
    if codes is not None and codes.shape[1] > 1 and len(codes) > 2:
        made.append(_scatter(codes, label))
    return made


def _side_by_side(predictor: Predictor, copies: Mapping[str, Copy], name: str, test: TensorSet) -> dict[str, str]:
    """Originals at even steps through the test rows, with noise where that is taken away, above what was made of them."""
    item = copies[name]
    batch = test.batch(torch.linspace(0, len(test) - 1, min(SHOWN, len(test))).round().long())
    given = with_noise(copies, batch) if item.noise else batch
    with torch.inference_mode():
        again = item.shown(predictor.forward(moved(predictor, given))[name]).cpu()
    lines = [item.truth(batch[name])]
    lines += [item.truth(given[NOISY + name])] if item.noise else []
    below = (
        "then the same with noise, below without it." if item.noise else "below what the network makes of their codes."
    )
    says = f"Test pictures at even steps, not the best ones: above the originals, {below}"
    return {"says": says, "picture": as_uri_of_grid(grid(torch.cat([*lines, again]), len(batch[name])))}


def grid(pictures: Tensor, columns: int, gap: int = 1) -> Tensor:
    """(N, C, H, W) from 0 to 1 -> (C, height, width), white between them."""
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    made = torch.ones(channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, picture in enumerate(pictures.cpu()):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        made[:, top : top + height, left : left + width] = picture.clamp(0, 1)
    return made


def as_uri_of_grid(picture: Tensor) -> str:
    """A grid as the text of a data URI, small pictures enlarged."""
    times = max(1, 480 // picture.shape[2])
    return _as_uri(png(picture.repeat_interleave(times, 1).repeat_interleave(times, 2)))


def _as_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _scatter(codes: Tensor, label: Column | None) -> dict[str, str]:
    """The codes of test rows on their first two principal components."""
    rows = range(0, len(codes), max(1, -(-len(codes) // DOTS)))
    chosen = codes[list(rows)].double()
    centered = chosen - chosen.mean(0)
    _, spread, axes = torch.linalg.svd(centered, full_matrices=False)
    share = float(spread[:2].square().sum() / spread.square().sum().clamp(min=1e-12))
    words = (
        [""] * len(rows) if label is None or isinstance(label, np.ndarray) else [str(label[i].as_py()) for i in rows]
    )
    groups = sorted(set(words))
    colored = 1 < len(groups) <= len(COLORS)
    places = [groups.index(word) for word in words] if colored else [0] * len(words)
    says = f"Codes of test rows on their first two principal components, which hold {share:.0%} of their variance"
    says += ", colored by what is known of the rows and was not learnt from." if colored else "."
    return {"says": says, "picture": _as_uri(_dots((centered @ axes[:2].T).numpy(), places, groups if colored else []))}


def _dots(points: np.ndarray, places: Sequence[int], names: Sequence[str]) -> bytes:
    """A scatter plot as PNG: points (N, 2), the color of each, and the names of the colors."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    width, height, edge, key = 560, 400, 12, 100
    drawn = Pillow.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(drawn)
    low, size = points.min(0), np.maximum(np.ptp(points, 0), 1e-9)
    inner = np.array([width - 2 * edge - (key if names else 0), height - 2 * edge])
    for (x, y), place in zip((points - low) / size * inner + edge, places, strict=True):
        pen.ellipse((x - 2, height - y - 2, x + 2, height - y + 2), fill=COLORS[place])
    for i, name in enumerate(names):
        top = edge + 18 * i
        pen.rectangle((width - key, top, width - key + 10, top + 10), fill=COLORS[i])
        pen.text((width - key + 16, top - 1), name[:12], fill="black")
    file = io.BytesIO()
    drawn.quantize(32).save(file, "PNG", optimize=True)
    return file.getvalue()


def label_of(schema: Schema, columns: Columns, rows: Sequence[int] | np.ndarray) -> Column | None:
    """The raw label of some rows, where there is one."""
    name = schema.special.get(LABEL)
    if name is None or name not in columns:
        return None
    return columns.select([name]).take(np.asarray(rows))[name]
