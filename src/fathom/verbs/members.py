"""Members of a run: other seeds over the same rows, or folds that hold out each row once; and their common result.

Seeds share their test rows, folds do not; seeds of folds repeat the cross-validation, each with a division of its own.
`analysis/evaluate` makes the interval of their mean accordingly.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fathom.analysis import episodes, evaluate
from fathom.analysis.evaluate import Estimate, pooled, pooled_difference
from fathom.core.callbacks import better
from fathom.core.recipe import Recipe, Training
from fathom.core.run import RunFolder, read_json, sealed_json, write_atomic
from fathom.verbs.card import model_card


def plan(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe of each member by name, made from the run's resolved one.

    Each stands for itself: it names its seed, the seed of the division, and its fold, and can be repeated alone. Seeds
    learn the same rows, so that they differ in chance alone. Where there are folds, each seed divides the rows anew
    (repeated cross-validation), unless `data.split_seed` holds the division.
    """
    training = recipe.training
    seeds = range(training.seed, training.seed + training.seeds)
    made = {}
    for seed in seeds:
        own = seed if training.folds > 1 else training.seed
        division = own if recipe.data.split_seed is None else recipe.data.split_seed
        alone = {"training.seed": seed, "training.seeds": 1, "training.folds": 1, "data.split_seed": division}
        if training.folds == 1:
            made[f"seed-{seed}"] = recipe.change(alone)
            continue
        for fold in range(1, training.folds + 1):
            name = f"fold-{fold}" if training.seeds == 1 else f"seed-{seed}-fold-{fold}"
            made[name] = recipe.change({**alone, "data.fold": [fold, training.folds]})
    return made


def aggregate(folder: RunFolder, members: Sequence[RunFolder], training: Training) -> None:
    """One results.json and report for all members; the deployable is the best of them by its validation metric.

    `member` of the results names it: its recipe says on which rows the deployable was trained.
    """
    tables = [read_json(member.file("results.json")) for member in members]
    folds = training.folds
    best = _best(tables)
    chosen = tables[best]
    results = {
        **chosen,
        "seed": training.seed,
        "test": pooled([table["test"] for table in tables], folds),
        "baseline": _each([table["baseline"] for table in tables], pooled, folds),
        "difference": _each([table["difference"] for table in tables], pooled_difference, folds),
        "members": [{"name": m.name, "test": t["test"]} for m, t in zip(members, tables, strict=True)],
        "member": members[best].name,
        "seconds": {key: sum(table["seconds"][key] for table in tables) for key in chosen["seconds"]},
        "kept": f"member {members[best].name}, {chosen['kept']}",
    }

    def estimates(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Estimate]]:
        return {name: {m: Estimate.from_json(e) for m, e in metrics.items()} for name, metrics in table.items()}

    compared, metric = (estimates(results["baseline"]), estimates(results["difference"])), chosen["primary"]
    results["better"] = evaluate.better(*compared, metric)
    results["verdict"] = evaluate.verdicts(*compared, [metric, *chosen["others"]])
    if "episodes" in chosen:  # agents are judged by their seeds alone
        results |= episodes.pooled(tables, training.seed)
    shutil.copytree(members[best].file("model"), folder.file("model"), dirs_exist_ok=True)
    for name in ("metrics.jsonl", "schema.json"):
        shutil.copyfile(members[best].file(name), folder.file(name))
    write_atomic(folder.file("model") / "README.md", model_card(folder.name, results).encode())
    write_atomic(folder.file("results.json"), sealed_json(results))
    from fathom.analysis.report import write_report

    write_report(folder)


def _best(tables: Sequence[Mapping[str, Any]]) -> int:
    """Number of the member whose deployed weights did best on its validation rows. The test rows have no say."""
    place, value = 0, math.nan
    for i, table in enumerate(tables):
        mine = table["monitored"]["value"]
        if mine is not None and better(table["monitored"]["metric"], mine, value):
            place, value = i, mine
    return place


def _each(tables: Sequence[Mapping[str, Any]], pool: Callable[..., Any], folds: int) -> dict[str, Any]:
    """Pool the tables of each baseline that every member has."""
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: pool([table[name] for table in tables], folds) for name in names}
