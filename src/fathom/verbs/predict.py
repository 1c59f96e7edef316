"""`fathom predict`: raw inputs in, decoded answers with confidence out."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fathom.analysis.anomaly import shares
from fathom.analysis.copied import scores_of
from fathom.analysis.language import ROWS, writes
from fathom.analysis.reconstruction import reconstructs
from fathom.analysis.samples import makes
from fathom.analysis.wording import capital
from fathom.core.bad_rows import BadRow, BadRowsError
from fathom.core.contract import Columns, Schema, TensorSet
from fathom.core.errors import DataError
from fathom.core.prepare import encode
from fathom.core.run import write_atomic
from fathom.core.tensors import to_list
from fathom.fields.category import Category
from fathom.fields.copies import THRESHOLD
from fathom.sources import read_inputs
from fathom.sources.images import other_files
from fathom.verbs import drawing
from fathom.verbs.result import Run, load

BAD_ROWS = "bad-rows-predict.csv"  # in the run's folder
DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\0")


def predict(run: Run | str | Path, *inputs: Any) -> list[dict[str, Any]]:
    """Answer raw inputs.

    Args:
        run: a finished run.
        inputs: files, folders, frames, arrays or dicts, of the kind that the run was trained on.

    Returns:
        One dict a row: "input" (file or row), and for each target "answer", "confidence", "probabilities"; with
        several targets these stand under the target's name. Of boxes "answer" is a list of {"label", "confidence",
        "box"}, x1, y1, x2, y2 in pixels of the upright picture, whose "size" (width, height) stands beside. An answer that
        rests on what no training row had says so under "note". Of what reconstructs its inputs "answer" is "anomaly" or
        "normal", with "score", "threshold", and of tables the share of each of the "columns" in the score. A row that cannot
        be read among others that can has "input" and "error", and nothing else.

    Raises:
        DataError: no row can be read, or an input lacks a column or holds no rows.
    """
    run = load(run)
    if not inputs:
        raise DataError("predict needs something to answer: a file, a folder or rows.")
    _require_inputs(run)
    schema = replace(run.schema, targets={}, special={})
    columns, names = read_some(inputs, schema)
    rows, faults = encode(schema, columns)
    if len(faults) == columns.rows:
        refuse(run, faults, names, "answered")
    if not faults:
        return _answered(run, schema, columns, names, rows)
    kept = [row for row in range(columns.rows) if row not in faults]
    columns = columns.take(np.array(kept))
    rows, _ = encode(schema, columns)  # what fields remark then speaks of these rows
    answers = iter(_answered(run, schema, columns, [names[row] for row in kept], rows))
    return [{"input": name, "error": faults[row]} if row in faults else next(answers) for row, name in enumerate(names)]


def _answered(
    run: Run, schema: Schema, columns: Columns, names: Sequence[str], rows: TensorSet
) -> list[dict[str, Any]]:
    """The answer of each row.

    Args:
        run: finished.
        schema: its fitted inputs.
        columns: raw, N rows.
        names: of the rows.
        rows: the same, encoded.
    """
    if reconstructs(run.schema):
        return noted(strange_or_not(run, names, rows), schema, columns, rows)
    outputs = run.predictor.outputs(rows, ROWS if writes(run.schema) else 512)
    decoded = {name: target.decode(outputs[name]) for name, target in run.schema.targets.items()}
    if boxes := drawing.boxes_of(run.schema):
        picture = columns[next(iter(schema.inputs.values())).columns[0]]
        decoded = {boxes[0]: drawing.in_pixels(decoded[boxes[0]], boxes[1], picture)}
    if len(decoded) == 1:
        (answers,) = decoded.values()
        made = [{"input": name, **answer} for name, answer in zip(names, answers, strict=True)]
    else:
        made = [{"input": name, **{key: rows[i] for key, rows in decoded.items()}} for i, name in enumerate(names)]
    return noted(made, schema, columns, rows)


def noted(made: list[dict[str, Any]], schema: Schema, columns: Columns, rows: TensorSet) -> list[dict[str, Any]]:
    """The answers, with a note where a row holds what no training row had; arguments as for `strange`."""
    for row, note in strange(schema, columns, rows).items():
        made[row]["note"] = note
    return made


def strange_or_not(run: Run, names: Sequence[str], rows: TensorSet) -> list[dict[str, Any]]:
    """Whether each row is an anomaly to what reconstructs: its score, the threshold, and the columns that contribute.

    Args:
        run: of a network that reconstructs its inputs.
        names: of the rows.
        rows: encoded.
    """
    predictor = run.predictor
    threshold = next(iter(run.schema.targets.values())).state[THRESHOLD]
    scores, parts = scores_of(predictor, rows).tolist(), shares(predictor, rows)
    made = []
    for name, score, part in zip(names, scores, parts, strict=True):
        answer = "anomaly" if score > threshold else "normal"
        line: dict[str, Any] = {"input": name, "answer": answer, "score": round(score, 6), "threshold": round(threshold, 6)}
        if len(part) > 1:
            line["mostly"] = ", ".join(f"{column} {share:.0%}" for column, share in list(part.items())[:CONTRIBUTE])
            line["columns"] = part
        made.append(line)
    return made


def read_some(inputs: Sequence[Any], schema: Schema) -> tuple[Columns, list[str]]:
    """Raw inputs as columns, one row at least, and a name for each row.

    Raises:
        DataError: an input cannot be read, lacks a column, or holds no rows.
    """
    columns, names = read_inputs(list(inputs), schema)
    if columns.rows == 0:
        raise DataError(f"{', '.join(map(_short, inputs))} holds no rows, so there is nothing to answer.")
    return columns, names


def encode_all(run: Run, schema: Schema, columns: Columns, names: Sequence[str], done: str) -> TensorSet:
    """Every row, encoded.

    Args:
        run: in whose folder rows that cannot be read are listed, where there are several.
        schema: fitted.
        columns: raw rows.
        names: of the rows, for errors.
        done: what cannot be done with a row that cannot be read ("answered").

    Raises:
        DataError: some cannot be read; names the first.
    """
    rows, faults = encode(schema, columns)
    if faults:
        refuse(run, faults, names, done)
    return rows


def refuse(run: Run, faults: Mapping[int, str], names: Sequence[str], done: str) -> NoReturn:
    """Say which rows cannot be read; arguments as for `encode_all`.

    Args:
        faults: row -> why it cannot be read; one at least.

    Raises:
        DataError: always.
    """
    if len(faults) > 1:
        bad = [BadRow(names[row], faults[row], used=False) for row in sorted(faults)]
        what = f"{len(faults)} of {len(names)} rows cannot be {done}"
        raise BadRowsError(what, bad, "Mend them, or leave them out.").listed(run.path / BAD_ROWS)
    ((row, reason),) = faults.items()
    raise DataError(f"{names[row]} cannot be {done}: {reason}.")


def parted(answers: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The answers, and the rows that could not be read."""
    return [line for line in answers if "error" not in line], [line for line in answers if "error" in line]


def left_out(run: Run | str | Path, inputs: Sequence[Any]) -> list[str]:
    """Sentences about files in the given folders that are not answered, since their names are not those of pictures."""
    if not any(item.kind == "image" for item in load(run).schema.inputs.values()):
        return []
    folders = [Path(item) for item in inputs if isinstance(item, str | Path) and _exists(item) and Path(item).is_dir()]
    return [told for folder in folders for told in other_files(folder)]


def _require_inputs(run: Run) -> None:
    """Refuse a language model, which reads nothing but what it writes, and a generator, which reads noise."""
    if makes(run.schema):
        raise DataError(
            f"{run.path} makes pictures of noise and answers no rows. Its verb is: "
            f"fathom generate {run.path} -n 64 -o samples.png"
        )
    if writes(run.schema) and not run.schema.inputs:
        on = run.predictor.stream is not None
        verb = f'generate {run.path} --prompt "TEXT"' if on else f'embed {run.path} "TEXT"'
        raise DataError(
            f"{run.path} is a {'' if on else 'masked '}language model: it answers no rows, it "
            f"{'writes on' if on else 'makes vectors of texts'}. Its verb is: fathom {verb}"
        )


def strange(schema: Schema, columns: Columns, rows: TensorSet) -> dict[int, str]:
    """Rows with a value that no training row had, or that were read in part, and a sentence for each.

    Args:
        schema: fitted inputs.
        columns: raw, N rows.
        rows: the same, encoded.
    """
    told: dict[int, list[str]] = {}
    for name, item in schema.inputs.items():
        for row, remark in item.remarks.items():
            told.setdefault(row, []).append(remark)
        if isinstance(item, Category):
            for row, place in (rows.column(name) == 0).nonzero().tolist():
                key = item.columns[place]
                value = to_list(columns.select([key]).slice(row, row + 1)[key])[0]
                if value is not None:
                    told.setdefault(row, []).append(f"no training row has '{value}' as its {key}")
        elif item.kind == "image" and item.shape[0] == 1:
            column = columns[item.columns[0]]
            for row in [row for row in range(columns.rows) if is_colored(column[row])]:
                told.setdefault(row, []).append("the picture has colors; this model was trained on gray ones")
    return {row: f"{capital('; '.join(reasons))}." for row, reasons in told.items()}


def is_colored(value: Any) -> bool:
    """Whether a picture that can be read has more than shades of gray."""
    from fathom.fields.image import open_picture, opened

    if isinstance(value, np.ndarray):
        planes = value if value.ndim == 3 and value.shape[0] == 3 else np.moveaxis(value, -1, 0)[:3]
        return value.ndim == 3 and len(planes) == 3 and bool((planes != planes[:1]).any())
    given = value.as_py()
    if isinstance(given, str):
        with opened(given) as header:
            if header.mode in ("1", "L", "LA") or header.mode.startswith("I"):
                return False
    picture = open_picture(given)
    small = np.asarray(picture.convert("RGB").resize((32, 32)), np.int16)
    return bool((small.max(2) - small.min(2)).max() > COLORED)


def _short(value: Any) -> str:
    """A path as it is, and of data in memory the type."""
    return str(value) if isinstance(value, str | Path) else f"The {type(value).__name__}"


CONTRIBUTE = 3  # columns that are named beside an anomaly's score
COLORED = 16  # levels of 256 between the channels; less is what JPEG makes of gray
ENDINGS = (".csv", ".parquet", ".json")


def check_place(run: Run | str | Path, path: Path, inputs: Sequence[Any] = ()) -> None:
    """Refuse a place for the answers of a run before anything is computed; boxes may be drawn into pictures.

    Raises:
        DataError: another ending, a folder where nothing is drawn, or one of the inputs.
    """
    if not drawing.seems_picture(path) or not drawing.boxes_of(load(run).schema):
        check_output(path, inputs)
    elif drawing.is_picture(path):
        refuse_input(path, inputs)
    else:
        raise DataError(
            f"Boxes cannot be drawn into '{path.suffix}'; use .jpg or .png for one picture, a folder for several, or .csv, "
            ".parquet or .json."
        )


def check_output(path: Path, inputs: Sequence[Any] = ()) -> None:
    """Refuse a place for answers before anything is computed.

    Raises:
        DataError: another ending, a folder, or one of the inputs.
    """
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"Answers cannot be written as '{path.suffix or path}'; use .csv, .parquet or .json.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file for the answers, as in {path / 'answers.csv'}.")
    refuse_input(path, inputs)


def refuse_input(path: Path, inputs: Sequence[Any]) -> None:
    """Refuse to write over an input.

    Raises:
        DataError: the file to be written is one of the inputs.
    """
    for item in inputs:
        if isinstance(item, str | Path) and path.exists() and _exists(item) and path.samefile(item):
            raise DataError(f"{path} is one of the inputs and would be overwritten; name another file with -o.")


def _exists(item: str | Path) -> bool:
    """Whether it is a file; a text that is longer than a path may be is none."""
    try:
        return Path(item).exists()
    except OSError:
        return False


def write_answers(answers: Sequence[dict[str, Any]], path: Path, classes: Sequence[str] = ()) -> None:
    """Write answers as .csv, .parquet or .json; boxes also as pictures, a .jpg, a .png, or a folder of them.

    Args:
        answers: of `predict`.
        path: where to.
        classes: of the boxes, see `drawing.draw`.

    Raises:
        DataError: another ending.
    """
    if drawing.is_drawn(parted(answers)[0], path):
        drawing.draw(parted(answers)[0], path, classes)
        return
    check_output(path)
    good, bad = parted(answers)
    flat = [*drawing.lines(good), *bad] if drawing.are_boxes(good) else [flatten(answer) for answer in answers]
    ending = path.suffix.lower()
    if ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(flat), sink)
        write_atomic(path, sink.getvalue().to_pybytes())
    elif ending == ".json":
        import json

        write_atomic(path, json.dumps(list(answers), indent=1).encode())
    else:
        text = io.StringIO()
        names = list(dict.fromkeys(key for row in flat for key in row))
        writer = csv.DictWriter(text, names)
        writer.writerow({name: harmless(name) for name in names})
        writer.writerows({key: harmless(value) for key, value in row.items()} for row in flat)
        write_atomic(path, text.getvalue().encode())

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
