"""Members of a run: other seeds over the same rows, or folds that hold out each row once; and their common result.

Seeds share their test rows, folds do not; `analysis/evaluate` makes the interval of their mean accordingly.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fathom.analysis.evaluate import Estimate, pooled, pooled_difference, verdict
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


def aggregate(folder: RunFolder, members: Sequence[RunFolder], training: Training) -> None:
    """One results.json and report for all members; the deployable is the best of them by its validation metric."""
    tables = [read_json(member.file("results.json")) for member in members]
    folds = training.folds > 1
    best = _best(members, training.monitor)
    chosen = tables[best]
    results = {
        **chosen,
        "seed": training.seed,
        "test": pooled([table["test"] for table in tables], folds),
        "baseline": _each([table["baseline"] for table in tables], pooled, folds),
        "difference": _each([table["difference"] for table in tables], pooled_difference, folds),
        "members": [{"name": m.name, "test": t["test"]} for m, t in zip(members, tables, strict=True)],
        "seconds": {key: sum(table["seconds"][key] for table in tables) for key in chosen["seconds"]},
        "kept": f"member {members[best].name}, {chosen['kept']}",
    }

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


def _each(tables: Sequence[Mapping[str, Any]], pool: Callable[..., Any], folds: bool) -> dict[str, Any]:
    """Pool the tables of each baseline that every member has."""
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: pool([table[name] for table in tables], folds) for name in names}
