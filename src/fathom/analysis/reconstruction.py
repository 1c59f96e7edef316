"""Judging what makes rows again: how near it comes, how likely it finds them, and what its score of anomalies is worth.

    results(...)     the test part of results.json, from what stands in
    copied           figures of each row, means with intervals
    baseline_copies  principal components, the mean
    anomaly          the score against a label that nobody learnt from
    pictures         what the report shows

The bound of the likelihood is that of Burda et al. 2016 with 500 samples a row. Where a network is so large that all test
rows would take hours on this device, it rests on as many rows as are affordable, and a note says so.

These files see a Predictor and encoded rows, never an algorithm. In comments: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fathom.analysis.anomaly import anomalies, share_above, worst
from fathom.analysis.baseline_copies import FITTED, Linear, Trivial
from fathom.analysis.copied import (
    Table,
    affordable_rows,
    embedded,
    judged,
    likelihoods,
    metrics_of,
    nats_metrics,
    reconstructed,
    scores_of,
    untouched,
)
from fathom.analysis.evaluate import (
    better,
    row_weights,
    verdicts,
)
from fathom.analysis.pictures import figures
from fathom.core.contract import Columns, Predictor, Schema, TensorSet
from fathom.core.errors import DataError
from fathom.core.tensors import Column
from fathom.fields.copies import (
    LABEL,
    NOISY,
    THRESHOLD,
    Copy,
    ImageCopy,
    copies_of,
)

PCA, MEAN, NOISE = "PCA", "mean", "noisy picture"


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
    test_table, tables, differences = judged(found, metrics_of(copies), row_weights(test), seed, blocks)
    notes = _notes(copies, noise)
    primary = _primary(copies, bool(noise), "bound" in predictor.scores)
    if "bound" in predictor.scores:
        chosen, told = affordable_rows(predictor, test, seed)
        notes += told
        nats = {"network": likelihoods(predictor, copies, test.subset(chosen))}
        if MEAN in rivals:
            nats[MEAN] = {"nll": rivals[MEAN].nats(copies, test.subset(chosen))}  # type: ignore[union-attr]
        part = None if blocks is None else blocks[chosen.numpy()]
        more = judged(nats, nats_metrics(copies), row_weights(test.subset(chosen)), seed, part)
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
    made["anomaly"] = {"threshold": copies[first].state.get(THRESHOLD), "flagged": share_above(copies[first], flags)}
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


def label_of(schema: Schema, columns: Columns, rows: Sequence[int] | np.ndarray) -> Column | None:
    """The raw label of some rows, where there is one."""
    name = schema.special.get(LABEL)
    if name is None or name not in columns:
        return None
    return columns.select([name]).take(np.asarray(rows))[name]
