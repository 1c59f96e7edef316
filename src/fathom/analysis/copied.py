"""How near a network that makes rows again comes to each row, how likely it finds it, and means of both with intervals.

    reconstructed, untouched    how far rows are from the truth: made by the network, or noisy as they came
    likelihoods                 nats of each row; `affordable_rows` says of which, where all would take hours
    scored, embedded            the predictor's scores and codes
    judged                      means over rows with their intervals, of network and baselines, from one resampling

In comments: N rows, D numbers of a code, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis.evaluate import (
    CONFIDENCE,
    Estimate,
    affordable,
    percentiles,
    resample_weights,
)
from fathom.core.contract import Batch, Predictor, TensorSet
from fathom.fields.copies import (
    NOISY,
    CategoryCopy,
    Copy,
    ImageCopy,
    drawn_by_row,
    noised,
)

ROWS = 512  # measured at once
BOUND_ROWS = 50  # of the bound, at once
BOUND_WORK = {"cpu": 3e12}  # multiplications that the bound may take
MORE_WORK = 1e15  # the same on an accelerator
LEAST_ROWS = 200  # of the bound, whatever they take
Rows = dict[str, Tensor]  # figure -> (N,)
Metrics = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # means () or (R,) by figure -> metrics
Table = dict[str, Estimate]



def device_of(predictor: Predictor) -> torch.device:
    """Where the network is."""
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


def nats_metrics(copies: Mapping[str, Copy]) -> Metrics:
    """Nats as they are, and bits a dimension where the likelihood is that of bytes."""
    discrete = all(isinstance(item, ImageCopy) and item.likelihood == "logistic" for item in copies.values())
    size = sum(int(np.prod(item.shape)) for item in copies.values())

    def metrics(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = dict(means)
        return {**made, "bits_per_dimension": made["nll"] / (size * math.log(2))} if discrete else made

    return metrics


def metrics_of(copies: Mapping[str, Copy]) -> Metrics:
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
