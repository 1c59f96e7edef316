"""`fathom predict`: raw inputs in, decoded answers with confidence out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fathom.core.contract import Schema
from fathom.core.errors import DataError
from fathom.core.prepare import encode
from fathom.core.run import write_atomic
from fathom.sources import read_inputs
from fathom.verbs.result import Run, load

DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\0")


def predict(run: Run | str | Path, *inputs: Any) -> list[dict[str, Any]]:
    """Answer raw inputs.

    Args:
        run: a finished run.
        inputs: files, folders, frames, arrays or dicts, of the kind that the run was trained on.

    Returns:
        One dict a row: "input" (file or row), and for each target "answer", "confidence", "probabilities"; with
        several targets these stand under the target's name.

    Raises:
        DataError: an input cannot be read, or lacks a column.
    """
    run = load(run)
    if not inputs:
        raise DataError("predict needs something to answer: a file, a folder or rows.")
    schema = Schema(run.schema.inputs, {}, {})
    columns, names = read_inputs(list(inputs), schema)
    rows, faults = encode(schema, columns)
    if faults:
        row = min(faults)
        raise DataError(
            f"{names[row]} cannot be answered: {faults[row]}."
            + (f" {len(faults) - 1} more." if len(faults) > 1 else "")
        )
    outputs = run.predictor.outputs(rows)
    decoded = {name: target.decode(outputs[name]) for name, target in run.schema.targets.items()}
    if len(decoded) == 1:
        (answers,) = decoded.values()
        return [{"input": name, **answer} for name, answer in zip(names, answers, strict=True)]
    return [{"input": name, **{target: rows[i] for target, rows in decoded.items()}} for i, name in enumerate(names)]


def write_answers(answers: Sequence[dict[str, Any]], path: Path) -> None:
    """Write answers as .csv, .parquet or .json.

    Raises:
        DataError: another ending.
    """
    flat = [flatten(answer) for answer in answers]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(flat), sink)
        write_atomic(path, sink.getvalue().to_pybytes())
    elif path.suffix == ".json":
        import json

        write_atomic(path, json.dumps(list(answers), indent=1).encode())
    elif path.suffix == ".csv":
        text = io.StringIO()
        names = list(dict.fromkeys(key for row in flat for key in row))
        writer = csv.DictWriter(text, names)
        writer.writerow({name: harmless(name) for name in names})
        writer.writerows({key: harmless(value) for key, value in row.items()} for row in flat)
        write_atomic(path, text.getvalue().encode())
    else:
        raise DataError(f"Answers cannot be written as '{path.suffix or path}'; use .csv, .parquet or .json.")


def flatten(answer: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested answers as columns: "probabilities.cat"."""
    flat: dict[str, Any] = {}
    for key, value in answer.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return flat


def harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it (OWASP ASVS 1.2.10)."""
    return "'" + value if isinstance(value, str) and value.startswith(DANGEROUS) else value
