"""Tables: CSV, TSV, Parquet, JSON lines, and any frame with the Arrow interface (pandas, polars, pyarrow).

Tables        one table; types come from `delimited` (text) or from the file, kinds from `guess`
read_rows     files, frames, dicts and lists to the columns that a fitted schema reads
apply_reading   columns read as numbers or text because a schema says so
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fathom.core.contract import Columns, Schema
from fathom.core.errors import DataError, nearest
from fathom.core.recipe import Data
from fathom.core.registry import source
from fathom.core.tensors import Column, to_list
from fathom.sources.base import Guessed
from fathom.sources.delimited import Profile, open_bytes, read_delimited, settle_styles, shorten, style_of, unpacking
from fathom.sources.guess import DEFAULTS, MOST_WORDS, Setting, few, is_picture, names_pictures
from fathom.sources.stored import stored

DELIMITED = (".csv", ".tsv", ".tab", ".data")
PARQUET = (".parquet", ".pq")
LINES = (".jsonl", ".ndjson")
SUFFIXES = (*DELIMITED, *PARQUET, *LINES)
CODED = pa.dictionary(pa.int32(), pa.string())
READ_AS = {"number": "number", "category": "word", "image": "file", "text": "text"}  # data.types -> how text is read


def suffix(path: Path) -> str:
    """The extension in lower case, less a final .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@source("tables", order=30, reads="CSV, TSV, Parquet, JSON lines (each also .gz), frames")
class Tables(Guessed):
    """CSV, TSV, Parquet, JSON lines, frames.

    Args:
        location: a file, a frame, or a list of records.
        options: the recipe's table.
        reading: of `reading_of`, where a fitted schema says how columns are read.
    """

    def __init__(self, location: Any, options: Data, reading: Mapping[str, str] | None = None) -> None:
        is_path = isinstance(location, str | Path)
        super().__init__(str(location) if is_path else "the frame", options)
        self._given = Path(location) if is_path else location
        asked = {name: READ_AS[kind] for name, kind in options.types.items() if kind in READ_AS}
        self.reading = asked | dict(reading or {})
        self._styles: dict[str, str] = {}
        self._place: Callable[[int], str] = lambda row: f"row {row + 1}"

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """A file with a known extension, a frame, or a list of records."""
        if isinstance(location, str | Path):
            return suffix(Path(location)) in SUFFIXES and Path(location).is_file()
        records = isinstance(location, list) and bool(location) and isinstance(location[0], dict)
        return records or hasattr(location, "__arrow_c_stream__")

    def raw(self) -> Columns:
        """All rows, before names of files become paths."""
        table = self._table()
        return Columns(dict(zip(table.column_names, table.columns, strict=True)), table.num_rows)

    def _read(self) -> Columns:
        return apply_reading(self._with_paths(self.raw()), self.reading, self.location, self._place)

    def _setting(self, columns: Columns) -> Setting:
        return Setting(self.location, self._place, reading=self._styles)

    def _table(self) -> pa.Table:
        if not isinstance(self._given, Path):
            return tidy(_frame(self._given), "the frame", self.reading_notes)
        path, budget = self._given, self.options.memory * 2**30 / 4
        kind = suffix(path)
        if kind in DELIMITED:
            read = read_delimited(path, self.reading, budget)
            self.reading_notes += read.notes
            self._place = lambda row: f"line {read.line_of(row)}"
            self._styles = {item.name: f"number:{style}" for item in read.table.schema if (style := style_of(item))}
            return read.table
        if kind in LINES:
            self._place = lambda row: f"line {_json_line(path, row)}"
            texts = [name for name, how in self.reading.items() if how in ("text", "word")]
            return tidy(_read_lines(path, texts), str(path), self.reading_notes)
        return read_parquet(path, budget, self.reading_notes)

    def _with_paths(self, columns: Columns) -> Columns:
        """Names of picture files stand for files beside the table: in columns of nothing else, or where it is asked."""
        folder = self._given.parent if isinstance(self._given, Path) else Path()
        changed: dict[str, Any] = dict(columns)
        for name, column in columns.items():
            asked = self.reading.get(name) or self.options.types.get(name)
            if asked not in (None, "file") or isinstance(column, np.ndarray) or not _words(column):
                continue
            if asked is None and not names_pictures(column):
                continue
            first = next((v for v in column.slice(0, 100).to_pylist() if v), "")
            changed[name] = pa.chunked_array([[_beside(folder, value) for value in column.to_pylist()]], pa.string())
            if not Path(_beside(folder, first) or "").is_file():
                self.reading_notes.append(
                    f"'{name}' looks like names of picture files, but {_beside(folder, first)} is not there."
                )
        return Columns(changed, columns.rows)

    @classmethod
    def read_rows(cls, inputs: list[Any], schema: Schema) -> Columns:
        """Raw inputs to the schema's input columns.

        Args:
            inputs: files, frames, dicts, or lists of values in the order of the columns.
            schema: fitted.

        Raises:
            DataError: a column is missing, a value is of another type.
        """
        return Columns.concatenate(align([cls.read_one(item, schema, i) for i, item in enumerate(inputs)]))

    @classmethod
    def read_one(cls, item: Any, schema: Schema, number: int) -> Columns:
        """The rows of one input."""
        names = input_columns(schema)
        if isinstance(item, str | Path):
            where = str(item)
            columns = Tables(item, DEFAULTS, reading_of(schema, inputs_only=True)).columns()
        elif hasattr(item, "__arrow_c_stream__"):
            where = "the frame"
            columns = Tables(item, DEFAULTS, reading_of(schema, inputs_only=True)).columns()
        else:
            where = f"row {number + 1}"
            columns = _record(item, schema, where)
        require(columns, names, where)
        place = (lambda row: f"row {row + 1}") if isinstance(item, str | Path) else (lambda row: "")
        return apply_reading(columns.select(names), reading_of(schema, inputs_only=True), where, place)


def row_places(width: int, schema: Schema, where: str) -> list[int]:
    """Where the columns that the inputs read stand in a row without names.

    Args:
        width: how many values a row has: those that the inputs read, or all that the training data had beside the
            targets; both in the order of the training data.
        schema: fitted.
        where: for errors.

    Raises:
        DataError: the row has another number of values.
    """
    names = input_columns(schema)
    everything = list(schema.order or names)
    order = [name for name in everything if name in names]
    for given in (order, everything):
        if width == len(given):
            return [given.index(name) for name in names]
    more = f" (of {len(everything)} columns of the data)" if len(everything) > len(names) else ""
    raise DataError(f"{where} has {width} values; the model reads {len(names)}{more}: {shorten(order)}.")


def input_columns(schema: Schema) -> list[str]:
    """The columns that the inputs of a schema read, in order."""
    return list(dict.fromkeys(name for item in schema.inputs.values() for name in item.columns))


def require(columns: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Refuse columns that lack some of `names`."""
    missing = [name for name in names if name not in columns]
    if not missing:
        return
    guesses = [f"'{near}'" for name in missing[:3] if (near := nearest(name, columns)) is not None]
    hint = f" Nearest: {', '.join(dict.fromkeys(guesses))}." if guesses else ""
    what = f"column '{missing[0]}'" if len(missing) == 1 else f"columns {shorten(missing)}"
    raise DataError(f"{where} lacks the {what}, which the model reads.{hint} It has: {shorten(list(columns), 12)}.")


def reading_of(
    schema: Schema, columns: Mapping[str, Column] | None = None, inputs_only: bool = False
) -> dict[str, str]:
    """How each column must be read so that it means what it meant in training.

    Args:
        schema: of the training data.
        columns: the training data, where the schema is not fitted yet.
        inputs_only: leave the targets out.

    Returns:
        column -> "number" (with the style of training, as in "number:comma"), "text", "word" (what looks like a date
        stays text) or "file" (names of picture files); others are read as their values suggest.
    """
    reading = {}
    for item in [*schema.inputs.values(), *(() if inputs_only else schema.targets.values())]:
        for place, name in enumerate(item.columns):
            if item.kind == "number":
                reading[name] = schema.reading.get(name, "number")
            elif item.kind in ("image", "text"):
                reading[name] = READ_AS[item.kind]
            elif item.kind == "category" and _needs_text(item.state, place, (columns or {}).get(name)):
                reading[name] = "text"
    return reading


def _needs_text(state: Mapping[str, Any], place: int, column: Column | None) -> bool:
    """Whether a category's words would be lost if they were read as numbers or dates ("007", "2020-01-01")."""
    if column is not None:
        return not isinstance(column, np.ndarray) and _words(column)
    vocabularies = state.get("vocabularies") or []
    words = vocabularies[place] if place < len(vocabularies) else []
    return any(_canonical(word) != word for word in words)


def _canonical(word: str) -> str | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return str(int(number)) if number.is_integer() else str(number)


def apply_reading(columns: Columns, reading: Mapping[str, str], where: str, place: Callable[[int], str]) -> Columns:
    """Read text columns as numbers, or others as text, where `reading` says so.

    Raises:
        DataError: names the row and the word that is no number.
    """
    changed: dict[str, Any] = {}
    for name, column in columns.items():
        wanted = reading.get(name)
        if wanted is None or isinstance(column, np.ndarray):
            changed[name] = column
        elif wanted.startswith("number"):
            changed[name] = _as_numbers(column, name, wanted, where, place)
        else:
            changed[name] = _as_text(column) if wanted == "text" else column
    return Columns(changed, columns.rows)


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Words; a frame's dates stay, since a category writes them as it did in training, and so do lists of words."""
    stays = _words(column) or pa.types.is_temporal(column.type) or pa.types.is_nested(column.type)
    return column if stays else column.cast(pa.string())


def _as_numbers(
    column: pa.ChunkedArray, name: str, reading: str, where: str, place: Callable[[int], str]
) -> pa.ChunkedArray:
    if pa.types.is_null(column.type):
        return column.cast(pa.float64())
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())
    if not _words(column):
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            return column
        raise DataError(f"{where}: column '{name}' is read as numbers, but it holds {column.type}.")
    text = column.cast(pa.string())
    profile = Profile(name, ";" if reading == "number:comma" else ",", reading)
    for chunk in text.chunks:
        profile.add(chunk)
    settle_styles([profile])
    if profile.filled and (profile.odd is not None or not profile.styles):
        row, word = profile.odd or (0, "")
        at = f", {place(row)}" if place(row) else ""
        raise DataError(
            f"{where}{at}: column '{name}' is read as numbers, but '{word}' came. Mend the value or leave it empty."
        )
    return pa.chunked_array([profile.convert(chunk) for chunk in text.chunks], profile.type)


def _words(column: pa.ChunkedArray) -> bool:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _beside(folder: Path, value: str | None) -> str | None:
    return None if value is None else str(folder / value)


def _record(item: Any, schema: Schema, where: str) -> Columns:
    """One row from a dict, or from values in the order of the training data."""
    names = input_columns(schema)
    if isinstance(item, Mapping):
        require(item, names, where)
        values = [item[name] for name in names]
    elif isinstance(item, Sequence | np.ndarray) and not isinstance(item, str | bytes):
        given = list(item)
        values = [given[place] for place in row_places(len(given), schema, where)]
    else:
        raise DataError(
            f"{where}: {type(item).__name__} is no row. Give a file, a dict of column to value, or a list of values."
        )
    plain = [value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value for value in values]
    try:
        return Columns(
            {name: pa.chunked_array([pa.array([value])]) for name, value in zip(names, plain, strict=True)}, 1
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{where} holds a value that is neither number nor text: {error}.") from error


def align(parts: Sequence[Columns]) -> list[Columns]:
    """Give each column one type in all parts: numbers become float64, anything beside words becomes words.

    Raises:
        DataError: arrays of different shapes, or arrays beside single values.
    """
    if len(parts) < 2:
        return list(parts)
    aligned: list[dict[str, Any]] = [{} for _ in parts]
    for name in parts[0]:
        for part, column in zip(aligned, _one_type(name, [part[name] for part in parts]), strict=True):
            part[name] = column
    return [Columns(columns, part.rows) for columns, part in zip(aligned, parts, strict=True)]


def _one_type(name: str, columns: list[Column]) -> list[Any]:
    arrays = [isinstance(column, np.ndarray) for column in columns]
    if any(arrays):
        shapes = {column.shape[1:] if isinstance(column, np.ndarray) else () for column in columns}
        if len(shapes) > 1:
            raise DataError(
                f"'{name}' has rows of different shapes: {', '.join(str(shape) for shape in sorted(shapes))}."
            )
        return columns
    arrow: list[pa.ChunkedArray] = [column for column in columns if not isinstance(column, np.ndarray)]
    kinds = {column.type for column in arrow}
    if len(kinds) == 1:
        return list(arrow)
    plain = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in arrow]
    kinds = {c.type for c in plain} - {pa.null()}
    if len(kinds) == 1:
        wanted = kinds.pop()
    elif all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        wanted = pa.float64()
    else:
        wanted = pa.string()
    try:
        return [column.cast(wanted) for column in plain]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        told = ", ".join(sorted(str(kind) for kind in kinds))
        raise DataError(f"'{name}' has values that cannot stand in one column: {told}.") from error


# ---------------------------------------------------------------- other formats


def _frame(value: Any) -> pa.Table:
    try:
        if isinstance(value, list):
            return pa.Table.from_pylist(value)
        return pa.RecordBatchReader.from_stream(value).read_all()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(f"The frame cannot be read: {error}. Give every column values of one type.") from error


def tidy(table: pa.Table, where: str, notes: list[str]) -> pa.Table:
    """Types that the rest of Fathom knows, words of few kinds as codes, and no index column of pandas.

    Raises:
        DataError: two columns have one name.
    """
    names = tidy_names(table.column_names, where, notes)
    return pa.table([tidy_column(table.column(name)) for name in names], names=names)


def tidy_names(names: Sequence[str], where: str, notes: list[str]) -> list[str]:
    """The columns that are kept: all but an index of pandas.

    Raises:
        DataError: two columns have one name.
    """
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{where} names {shorten(twice)} more than once. Every column needs a name of its own.")
    kept = [name for name in names if not name.startswith("__index_level_")]
    if len(kept) < len(names):
        notes.append("The index of the frame is not a column; make it one (reset_index) to use it.")
    return kept


def tidy_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """One column of `tidy`."""
    kind = column.type
    if _is_coded(kind):
        return column.cast(CODED).unify_dictionaries()
    if kind != _plain_type(kind):
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
        column = column.cast(_plain_type(kind))
    if pa.types.is_string(column.type) and len(column) and few(column, MOST_WORDS) is not None:
        return column.dictionary_encode()
    return column


def _read_lines(path: Path, texts: Sequence[str] = ()) -> pa.Table:
    """JSON lines.

    Args:
        path: the file.
        texts: columns whose words stay as they are written, where they look like dates.

    Raises:
        DataError: names the line that is no JSON object, or the column whose type changes.
    """
    from pyarrow import json as arrow_json

    def read(schema: pa.Schema | None) -> pa.Table:
        with unpacking(path), open_bytes(path) as file:
            options = arrow_json.ReadOptions(block_size=16 << 20), arrow_json.ParseOptions(explicit_schema=schema)
            return arrow_json.read_json(file, *options)

    try:
        table = read(None)
        dates = [item.name for item in table.schema if item.name in texts and pa.types.is_temporal(item.type)]
        return read(pa.schema([(name, pa.string()) for name in dates])) if dates else table
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        cause = error
    _explain_lines(path)
    raise DataError(f"{path} cannot be read as JSON lines: {cause}.")


def _json_records(path: Path) -> Any:
    """(line number, text) of every line that is not blank."""
    with unpacking(path), open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _json_line(path: Path, row: int) -> int:
    return next((line for place, (line, _) in enumerate(_json_records(path)) if place == row), row + 1)


def _explain_lines(path: Path) -> None:
    """Find the first line that does not fit, and say so."""
    kinds: dict[str, tuple[str, int]] = {}
    found = False
    for number, line in _json_records(path):
        found = True
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: this is no JSON ({error}). Each line holds one object.") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: a {type(record).__name__} came; each line holds one object.")
        for name, value in record.items():
            kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
            before = kinds.setdefault(name, (kind, number)) if value is not None else (kind, number)
            if before[0] != kind:
                raise DataError(
                    f"{path}, line {number}: '{name}' is a {kind}, but a {before[0]} in line {before[1]}. "
                    "Write every value of a column as one type."
                )
    if not found:
        raise DataError(f"{path} is empty. Give a line with one JSON object for each row.")


def read_parquet(path: Path, budget: float, notes: list[str]) -> pa.Table:
    """A Parquet file, in memory or, above `budget` bytes, memory-mapped from the cache; both have one schema."""
    try:
        file = open_parquet(path)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) <= budget:
            return tidy(file.read(), str(path), notes)

        names = tidy_names(file.schema_arrow.names, str(path), notes)

        def write() -> Any:
            words = _parquet_words(file, names)
            plain = {name: _plain_type(file.schema_arrow.field(name).type) for name in names}
            kinds = plain | dict.fromkeys(words, CODED)
            batches = (
                pa.record_batch(
                    [_stored_chunk(batch.column(name), kinds[name], words.get(name)) for name in names], names
                )
                for batch in file.iter_batches(columns=names)
            )
            return pa.schema(list(kinds.items())), batches, []

        return stored(path, {}, path.stat().st_size, write)[0]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no readable Parquet file: {str(error).rstrip('.')}. Copy or write it again.") from error


def open_parquet(path: Path) -> Any:
    """A Parquet file, plain or, since its end is read first, unpacked from gzip into memory."""
    from pyarrow import parquet

    with unpacking(path), open_bytes(path) as file:
        packed = isinstance(file, gzip.GzipFile)
        return parquet.ParquetFile(pa.BufferReader(file.read()) if packed else path)


def _parquet_words(file: Any, names: Sequence[str]) -> dict[str, pa.Array]:
    """The different words of the columns that are kept as codes: of few words, or coded in the file."""
    kinds = {name: file.schema_arrow.field(name).type for name in names}
    texts = [name for name, kind in kinds.items() if _is_coded(kind) or _plain_type(kind) == pa.string()]
    words: dict[str, dict[Any, None]] = {name: {} for name in texts}
    for batch in file.iter_batches(columns=texts) if texts else ():
        for name in list(words):
            words[name].update(dict.fromkeys(batch.column(name).unique().drop_null().to_pylist()))
            if len(words[name]) > MOST_WORDS and not _is_coded(kinds[name]):
                del words[name]
    return {name: pa.array(list(found), pa.string()) for name, found in words.items()}


def _stored_chunk(chunk: pa.Array, kind: pa.DataType, words: pa.Array | None) -> pa.Array:
    """A chunk as `kind`, as codes where there are `words`."""
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.cast(chunk.type.value_type)
    if words is not None:
        return pa.DictionaryArray.from_arrays(pc.index_in(chunk.cast(pa.string()), value_set=words), words)
    return chunk if chunk.type == kind else chunk.cast(kind)


def _is_coded(kind: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_decimal(kind):
        return pa.float64()
    simpler = {
        pa.large_string(): pa.string(),
        pa.string_view(): pa.string(),
        pa.binary_view(): pa.binary(),
        pa.float16(): pa.float32(),
    }
    return simpler.get(kind, kind)


def first_values(column: Column, most: int = 100) -> list[Any]:
    """The first values that are not missing."""
    return [value for value in to_list(column[:most]) if value is not None]


def picture_columns(columns: Mapping[str, Column]) -> list[str]:
    """The columns that hold encoded pictures."""
    return [
        name
        for name, column in columns.items()
        if not isinstance(column, np.ndarray)
        and (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type))
        and any(is_picture(value) for value in first_values(column, 1))
    ]
