"""`fathom evaluate`: metrics with intervals, on the run's own test split or on other data, baselines beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.analysis import evaluate as evaluation
from fathom.analysis.baseline import baselines
from fathom.core.errors import DataError, FathomError, RunError
from fathom.core.prepare import Prepared, describe_row, encode
from fathom.core.recipe import Data
from fathom.sources import open_source
from fathom.verbs.assemble import open_task
from fathom.verbs.judge import judge
from fathom.verbs.result import Run, load


def evaluate(run: Run | str | Path, data: Any = None) -> dict[str, Any]:
    """Judge a run.

    Args:
        run: a finished run.
        data: other data of the same form, all of which is used; the run's own test split where None.

    Returns:
        "test", "baseline", "difference", "verdict" and the rest of results.json's test part.
    """
    run = load(run)
    if data is None:
        prepared = _original(run)
        if prepared is None:
            raise FathomError(
                f"{run.path} was trained on data in memory or data that have moved; name the data to judge it on."
            )
        return judge(prepared, run.predictor, run.recipe.training.seed)
    return _other(run, data)


def _original(run: Run) -> Prepared | None:
    """The rows that the run was trained on, where they can still be read."""
    location = run.recipe.data.location
    if location is None:
        return None
    try:
        return open_task(location, run.recipe.tables()).prepared
    except FathomError:
        return None


def _other(run: Run, data: Any) -> dict[str, Any]:
    schema = run.schema
    options = Data(target=run.recipe.data.target or list(schema.targets), bad_rows=run.recipe.data.bad_rows)
    columns = open_source(data, options).columns()
    needed = [name for item in schema.fields().values() for name in item.columns]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"{data} has no column '{missing[0]}', which the run needs. It has: {', '.join(list(columns)[:12])}."
        )
    rows, faults = encode(schema, columns)
    if faults:
        first = min(faults)
        told = describe_row(columns, schema, first, faults[first])
        if len(faults) > options.bad_rows * columns.rows:
            raise DataError(f"{len(faults)} of {columns.rows} rows cannot be judged: {told}. Mend or remove them.")
    test = rows.subset(torch.from_numpy(np.setdiff1d(np.arange(columns.rows), list(faults))))
    outputs = run.predictor.outputs(test)
    original = _original(run)
    train = original.sets["train"] if original is not None and _same(original, run) else None
    seed = run.recipe.training.seed
    fitted, notes = (
        baselines(schema, train, test, seed)
        if train is not None
        else ({}, ["The training rows are gone, so there is no baseline."])
    )
    shares = evaluation.class_shares(train if train is not None else test, schema)
    results = evaluation.results(outputs, fitted, test, schema, seed, evaluation.primary(schema, shares))
    results["evaluation_notes"] = [
        *results.pop("notes"),
        *notes,
        *([f"{len(faults)} rows are left out: {told}"] if faults else []),
    ]
    results["rows"] = len(test)
    return results


def _same(prepared: Prepared, run: Run) -> bool:
    """Whether the schema fitted again is the one in the run: then encoded rows mean the same."""
    from fathom.core.run import read_json

    try:
        return bool(read_json(run.folder.file("environment.json")).get("data") == prepared.fingerprint)
    except RunError:
        return False
