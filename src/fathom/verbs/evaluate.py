"""`fathom evaluate`: metrics with intervals, on the run's own test split or on other data, baselines beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.analysis import decision, early, scores
from fathom.analysis import evaluate as evaluation
from fathom.analysis.baseline import baselines
from fathom.analysis.language import writes
from fathom.analysis.plan import acts
from fathom.analysis.reconstruction import label_of, reconstructs
from fathom.analysis.reconstruction import results as reconstructed
from fathom.analysis.samples import makes
from fathom.analysis.samples import results as of_samples
from fathom.core.bad_rows import BadRowsError, told, write
from fathom.core.contract import Columns, Schema
from fathom.core.errors import DataError, FathomError
from fathom.core.prepare import Prepared, bad_rows, blocks, encode, input_hashes, missing_groups, windowed
from fathom.core.recipe import Data
from fathom.core.run import read_json
from fathom.core.tensors import Batch, TensorSet
from fathom.sources import open_source
from fathom.verbs import acting, frozen, transfer
from fathom.verbs.assemble import open_task
from fathom.verbs.judge import judge, judge_text, raw_rows
from fathom.verbs.result import Run, load


def evaluate(run: Run | str | Path, data: Any = None, episodes: int | None = None) -> dict[str, Any]:
    """Judge a run.

    Args:
        run: a finished run.
        data: other data of the same form, all of which is used; the run's own test split where None.
        episodes: that an agent plays.

    Returns:
        "test", "baseline", "difference", "verdict" and the rest of results.json's test part.
    """
    run = load(run)
    if acts(run.schema):
        return acting.evaluate(run, data, episodes)
    if episodes is not None:
        raise FathomError(f"Only agents play episodes, and {run.path} learnt from rows; leave --episodes out.")
    if data is None:
        prepared = _original(run)
        if prepared is None:
            raise FathomError(
                f"{run.path} was trained on data in memory, or data that have moved or changed; name the data to judge it on."
            )
        recipe = run.deployed.recipe
        results = judge(prepared, run.predictor, recipe.training.seed, recipe.data.compare or ())
        results["evaluation_notes"] += _only_member(run)
        return results
    return _other(run, data)


def _only_member(run: Run) -> list[str]:
    """Why a run of several members is judged otherwise here than when it was trained."""
    name = run.results.get("member")
    return [f"Judged is {name}, which is deployed, on its own test rows; fit told the mean of all members."] if name else []


def _original(run: Run) -> Prepared | None:
    """The rows that what is deployed was trained on, where they can still be read and have not changed."""
    deployed = run.deployed
    location = deployed.recipe.data.location
    if location is None:
        return None
    # A damaged file is told, not taken for other data.
    environment = read_json(deployed.folder.file("environment.json"))
    try:
        prepared = open_task(location, deployed.recipe.tables(), earlier=transfer.remembered(environment)[0]).prepared
    except FathomError:
        return None
    return prepared if prepared.fingerprint == environment["data"] else None


def _other(run: Run, data: Any) -> dict[str, Any]:
    """Judge on all rows of other data."""
    schema, seed = run.schema, run.recipe.training.seed
    original = _original(run)
    columns, test, together, told = read_rows(run, data, original)
    if writes(schema):
        parts, sets = ({"test": columns}, {"test": test})
        if original is not None:
            parts, sets = {**parts, "train": raw_rows(original, "train")}, {**sets, "train": original.sets["train"]}
        results = judge_text(run.predictor, schema, parts, sets, seed, together)
        results["evaluation_notes"] += [*([] if original is not None else [NO_BASELINE]), *told]
        return {**results, "rows": len(test)}
    train = original.sets["train"] if original is not None else None
    if makes(schema):
        if original is None:
            raise FathomError(
                f"The training rows of {run.path} are gone or have changed, and samples are seen with a classifier that learnt "
                "from them. Put them back where the recipe names them."
            )
        results = of_samples(run.predictor, original.sets["train"], test, seed, frozen.extractor(original, seed))
        results["evaluation_notes"] += told
        return {**results, "rows": len(test)}
    if reconstructs(schema):
        label = label_of(schema, columns, np.arange(columns.rows))
        results = reconstructed(run.predictor, train, test, seed, together, label)
        results["evaluation_notes"] += [*([] if train is not None else [NO_BASELINE]), *told]
        return {**results, "rows": len(test)}
    fitted, notes = baselines(schema, train, test, seed) if train is not None else ({}, [NO_BASELINE])
    metric = evaluation.primary(schema, evaluation.class_shares(train if train is not None else test, schema))
    known, remarks = _known(run, original, columns) if original is not None else ({}, [])
    outputs = run.predictor.outputs(test)
    results = evaluation.results(outputs, fitted | known, test, schema, seed, metric, together, orders=set(known))
    decided = decision.judged(schema, outputs, test, seed, together)
    for name, made in decided.items():
        results["targets"][name]["decision"] = made
    notes += [*decision.notes(decided), *results.pop("notes"), *remarks]
    if original is not None:
        sets = {**original.sets, "test": test}
        in_time, remarks = early.early(run.predictor, sets, seed, results["primary"], fitted, together)
        results |= {"early": in_time} if in_time else {}
        notes += remarks
    elif early.suits(schema):
        notes.append(NO_TIME)
    results["evaluation_notes"] = [*notes, *told]
    results["rows"] = len(test)
    return results


def _known(run: Run, original: Prepared, columns: Columns) -> tuple[dict[str, Batch], list[str]]:
    """Known scores of other rows (data.compare), their direction from the training rows."""
    learnt = original.columns.select(run.recipe.data.compare or ()).take(original.splits["train"])
    return scores.alone(run.schema, learnt, original.sets["train"], columns)


BAD_ROWS = "bad-rows-evaluate.csv"
NO_BASELINE = "The training rows are gone or have changed, so there is no baseline."
NO_TIME = "How early the classes are told is left out, since time and alarms are counted by the rows of the run."


def read_rows(
    run: Run, data: Any, original: Prepared | None
) -> tuple[Columns, TensorSet, np.ndarray | None, list[str]]:
    """Other data, encoded by the run's fitted fields.

    Returns:
        The rows that can be judged, raw and encoded; which of them belong together (None where all are independent); and
        sentences about rows that were left out or had been learnt from.

    Raises:
        DataError: a column is missing, or too many rows cannot be read.
    """
    schema = run.schema
    target = run.recipe.data.target or ([] if reconstructs(schema) or makes(schema) else list(schema.targets))
    options = Data(target=target, bad_rows=run.recipe.data.bad_rows)
    source = open_source(data, options, like=schema)
    columns = source.columns()
    notes = _check_columns(data, columns, schema)
    whole = np.arange(columns.rows)
    if windowed(schema):  # only moments with a whole history and forecast are rows
        whole, notes = source.given_splits()["test"], [*notes, *source.notes()]
    schema = replace(schema, special={part: name for part, name in schema.special.items() if name in columns})
    rows, faults = encode(schema, columns)
    bad, place = bad_rows(schema, columns, faults), run.path / BAD_ROWS
    if len(faults) > options.bad_rows * columns.rows:
        out = [row for row in bad if not row.used]
        raise BadRowsError(f"{len(faults)} of {columns.rows} rows cannot be judged", out, "Mend or remove them.").listed(place)
    if bad:
        write(place, bad)
    kept = np.setdiff1d(whole, list(faults))
    together = blocks(columns, schema, {"test": kept})
    notes += missing_groups(columns, schema)
    notes += told(bad, BAD_ROWS)
    if original is not None:
        learnt = np.isin(input_hashes(columns, schema)[kept], original.hashes[original.splits["train"]]).sum()
        notes += [f"{learnt:,} of these rows were learnt from; the figures are too good."] if learnt else []
    judged = rows.subset(torch.from_numpy(kept))
    return columns.take(kept), judged, None if together is None else together[kept], notes


def _check_columns(data: Any, columns: Columns, schema: Schema) -> list[str]:
    """Refuse data that lack what the figures rest on; a sentence where only their intervals do."""
    needed = [name for item in schema.fields().values() for name in item.columns]
    needed += [schema.special["weight"]] if "weight" in schema.special else []
    missing = [name for name in needed if name not in columns]
    if missing:
        what = f"'{data}'" if isinstance(data, str | Path) else "The given data"
        has = ", ".join(list(columns)[:12])
        raise DataError(f"{what} has no column '{missing[0]}', which the run needs. It has: {has}.")
    return [
        f"There is no column '{name}' (data.{part}), so intervals do not know which rows belong together and may be "
        "too narrow."
        for part, name in schema.special.items()
        if part in ("group", "time") and name not in columns
    ]
