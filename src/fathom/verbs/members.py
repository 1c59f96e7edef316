"""Members of a run: other seeds over the same rows, or folds that hold out each row once; and their common result.

The interval of a mean over members adds what a member's own test rows leave open to what differs between members:
variance = (spread between members) / k + (mean variance within) / (1 for seeds, which share their test rows; k for folds).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, variance
from typing import Any

import numpy as np

from fathom.core import split
from fathom.core.callbacks import better
from fathom.core.recipe import Training
from fathom.core.run import RunFolder, read_json, sealed_json, write_atomic
from fathom.core.tensors import Index
from fathom.verbs.assemble import Divide


def plan(training: Training) -> Iterator[tuple[str, dict[str, Any], Divide | None]]:
    """(name, changes to the recipe, division) of each member."""
    for seed in range(training.seed, training.seed + training.seeds):
        changes = {"training.seed": seed}
        if training.folds == 1:
            yield f"seed-{seed}", changes, None
            continue
        for fold in range(training.folds):
            name = f"fold-{fold + 1}" if training.seeds == 1 else f"seed-{seed}-fold-{fold + 1}"
            yield name, changes, division(training.folds, fold, training.seed)


def division(count: int, fold: int, seed: int) -> Divide:
    """Test on one fold, validate on a share of the rest."""

    def divide(unit: np.ndarray, strata: np.ndarray | None) -> dict[str, Index]:
        held = split.folds(unit, count, seed, strata)[fold]
        rest = np.setdiff1d(np.arange(len(unit)), held)
        inner = split.divide(
            unit[rest], {"validation": split.VALIDATION}, seed, None if strata is None else strata[rest]
        )
        return {"train": rest[inner["train"]], "validation": rest[inner["validation"]], "test": held}

    return divide


Bounds = Mapping[str, tuple[float, float]]
SHARES = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "auroc",
    "auprc",
    "ece",
    "exact_match",
)
BOUNDS: Bounds = {**dict.fromkeys(SHARES, (0.0, 1.0)), "r2": (-math.inf, 1.0)} | dict.fromkeys(
    ("log_loss", "brier", "mse", "rmse", "mae"), (0.0, math.inf)
)


def aggregate(folder: RunFolder, members: Sequence[RunFolder], training: Training) -> None:
    """One results.json and report for all members; the deployable is the best of them by its validation metric."""
    tables = [read_json(member.file("results.json")) for member in members]
    folds = training.folds > 1
    best = _best(members, training.monitor)
    chosen = tables[best]
    results = {
        **chosen,
        "seed": training.seed,
        "test": _mean([table["test"] for table in tables], folds, BOUNDS),
        "baseline": _mean_each([table["baseline"] for table in tables], folds, BOUNDS),
        "difference": _mean_each([table["difference"] for table in tables], folds, {}),
        "members": [{"name": m.name, "test": t["test"]} for m, t in zip(members, tables, strict=True)],
        "seconds": {key: sum(table["seconds"][key] for table in tables) for key in chosen["seconds"]},
        "kept": f"member {members[best].name}, {chosen['kept']}",
    }
    from fathom.analysis.evaluate import Estimate, verdict

    def estimates(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Estimate]]:
        return {name: {m: Estimate.from_json(e) for m, e in metrics.items()} for name, metrics in table.items()}

    results["verdict"] = verdict(estimates(results["baseline"]), estimates(results["difference"]), chosen["primary"])
    shutil.copytree(members[best].file("model"), folder.file("model"), dirs_exist_ok=True)
    shutil.copyfile(members[best].file("metrics.jsonl"), folder.file("metrics.jsonl"))
    write_atomic(folder.file("results.json"), sealed_json(results))
    from fathom.analysis.report import write_report

    write_report(folder)


def _best(members: Sequence[RunFolder], monitor: str) -> int:
    """Number of the member whose last validation value is best. The test rows have no say."""
    from fathom.core.run import read_lines

    place, value = 0, math.nan
    for i, member in enumerate(members):
        lines = read_lines(member.file("metrics.jsonl"))
        mine = lines[-1].get(f"validation/{monitor}", math.nan) if lines else math.nan
        if isinstance(mine, float | int) and better(monitor, float(mine), value):
            place, value = i, float(mine)
    return place


def _mean_each(tables: Sequence[Mapping[str, Any]], folds: bool, bounds: Bounds) -> dict[str, Any]:
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: _mean([table[name] for table in tables], folds, bounds) for name in names}


def _mean(tables: Sequence[Mapping[str, Any]], folds: bool, bounds: Bounds) -> dict[str, Any]:
    """The mean of each metric over members, with its interval."""
    count = len(tables)
    means = {}
    for name in [name for name in tables[0] if all(name in table for table in tables)]:
        values = [table[name]["value"] for table in tables]
        within = fmean(((table[name]["high"] - table[name]["low"]) / 3.92) ** 2 for table in tables)
        between = variance(values) if count > 1 else 0.0
        half = 1.96 * math.sqrt(between / count + within / (count if folds else 1))
        bottom, top = bounds.get(name.rpartition(".")[2], (-math.inf, math.inf))
        low, high = max(bottom, fmean(values) - half), min(top, fmean(values) + half)
        means[name] = {"value": fmean(values), "low": low, "high": high}
    return means
