"""One row an entity, each with a series of its own: stays in hospital, gestures, heartbeats, words spoken.

    a folder of two tables   entities, one row each, and their moments, many rows each, joined by the column that both have
    label, t0, t1, t2, ...   one series a row, one column a moment (the UCR archive)
    label, x                 JSON lines or Parquet whose x is a list of channels, or of moments (the UEA archive)

    Entities         the source
    read_entities    new rows of `predict`

The other columns of an entity (age, sex) stay ordinary inputs beside the series. A column "split" divides the rows. What
may be known only after the outcome is left out by its name or because it alone tells the classes apart.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from fathom.core.contract import Columns, Schema
from fathom.core.errors import DataError
from fathom.core.recipe import Data
from fathom.core.registry import source
from fathom.core.tensors import Column, is_list
from fathom.fields.metrics import Ranking
from fathom.fields.series import matrix, moments_of
from fathom.sources import moments as time
from fathom.sources.base import PARTS, Guessed
from fathom.sources.delimited import open_bytes, shorten
from fathom.sources.guess import DEFAULTS, Setting, few, input_kind
from fathom.sources.layout import TIME_NAMES, frequent, holds, is_number, lists_of
from fathom.sources.tables import (
    DELIMITED,
    LINES,
    PARQUET,
    SUFFIXES,
    Tables,
    apply_reading,
    reading_of,
    require,
    suffix,
)

NUMBERED = re.compile(r"^(.*?)(\d+)$")
STEMS = ("t", "t_", "time", "time_", "step", "step_", "ts")  # of columns that are moments, not features
SHORTEST = 8  # moments below which numbered columns are features
MOMENT_NAMES = (*TIME_NAMES, "hour", "minute", "second", "day", "step", "t", "offset")
AFTER = re.compile(r"outcome|length_?of_?stay|surviv|\b(died|death|dead|deceased)|mortality|discharge", re.IGNORECASE)
OUTCOMES = re.compile(r"death|died|mortality|outcome", re.IGNORECASE)
TELLS = 0.95  # an AUROC that no single honest column has
SPLITS = ("split", "part", "subset")
HOUR = 3_600_000_000

Reads = Literal["stays", "wide", "lists"]


@dataclass(frozen=True)
class Rows:
    """How each row's series is made; plain data, kept in the state of the fitted series.

    Args:
        reads: which of the three shapes.
        name: of the column that holds the series.
        columns: raw columns of the moments ("wide": one a moment; "lists": the one that holds them).
        channels: names of the channels.
        key: "stays": the column that joins the tables.
        time: "stays": column that orders the moments; None takes them as they stand.
        words: "stays": [column, word] of each 0/1 channel.
        by_channel: "lists": whether a row is a list of channels, not of moments.
        unit: "stays": of the channel "time", in the singular; "" where it is not known.
    """

    reads: Reads
    name: str
    columns: tuple[str, ...]
    channels: tuple[str, ...]
    key: str | None = None
    time: str | None = None
    words: tuple[tuple[str, str], ...] = ()
    by_channel: bool = False
    unit: str = ""

    @staticmethod
    def of(schema: Schema) -> Rows:
        """What a schema of whole series was made with."""
        table = dict(next(item for item in schema.inputs.values() if item.kind == "series").state["layout"])
        words = tuple((column, word) for column, word in table["words"])
        lists = {name: tuple(table[name]) for name in ("columns", "channels")}
        return Rows(**{**table, **lists, "words": words})


@source(
    "entities", order=15, reads="a folder of entities and their moments, tables label, t0, t1, ..., lists of channels"
)
class Entities(Guessed):
    """Rows that each have a series.

    Args:
        location: a folder of two tables, a table file, or a frame.
        options: the recipe's table.
        like: the schema of a trained model, by which the series are then made.
    """

    def __init__(self, location: Any, options: Data, like: Schema | None = None) -> None:
        super().__init__(str(location) if isinstance(location, str | Path) else "the frame", options)
        self._given = location
        self._like = like
        self._rows: Rows | None = Rows.of(like) if like else None
        self._apart: dict[str, str] = {}  # columns that are no inputs -> "ignore"
        self._taken: set[str] = set()  # columns of the moments, which the table of entities does not know

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """Looks at names of columns only; a kind stated for a moment's column (data.types) means a plain table."""
        if getattr(options, "horizon", None):
            return False
        if isinstance(location, str | Path) and Path(location).is_dir():
            return _pair(Path(location)) is not None
        if not Tables.accepts(location, options):
            return False
        names, first = _header(location)
        types = getattr(options, "types", None) or {}
        asked = "series" in (getattr(options, "fields", None) or {})
        wide = _wide(names, asked)
        return (bool(wide) and not set(wide) & set(types)) or any(_is_series(value) for value in first.values())

    def _read(self) -> Columns:
        if isinstance(self._given, str | Path) and Path(self._given).is_dir():
            columns = self._stays(Path(self._given))
        else:
            columns = self._one_table()
        if self._like is None:
            self._splits = self._named_parts(columns)
            self._leave_out(columns)
        return columns

    def _setting(self, columns: Columns) -> Setting:
        assert self._rows is not None, "the columns are read"
        target = None if self.options.target or "label" in columns else _outcome(columns)
        if target:
            self.reading_notes.append(f"The target is '{target}' (by its name); choose another with --target COLUMN.")
        return Setting(self.location, known={self._rows.name: "series"}, target=[target] if target else None)

    def _guess_options(self, columns: Columns) -> Data:
        types = {name: kind for name, kind in self.options.types.items() if name not in self._taken}
        return self.options.model_copy(update={"types": {**self._apart, **types}})

    def schema(self) -> Schema:
        """The guessed kinds; the series knows how it was made."""
        if self._like is not None:
            return self._like
        schema = super().schema()
        assert self._rows is not None, "the columns are read"
        schema.inputs[self._rows.name].state.setdefault("layout", asdict(self._rows))
        return schema

    # ------------------------------------------------------------ one table

    def _one_table(self) -> Columns:
        inner = Tables(self._given, _plain(self.options), reading_of(self._like) if self._like else None)
        columns = inner.columns()
        self.reading_notes += inner.reading_notes
        if self._rows is None:
            self._rows = self._shape(columns)
        self._taken = set(self._rows.columns)
        return with_series(columns, self._rows, self.location)

    def _shape(self, columns: Columns) -> Rows:
        wide = _wide(list(columns), "series" in self.options.fields)
        if wide:
            self.reading_notes.append(
                f"{wide[0]} to {wide[-1]} are read as one series of {len(wide)} moments a row; "
                f"data.types.{wide[0]}=number reads them as columns of a table."
            )
            return Rows("wide", _free("series", columns, wide), tuple(wide), ("value",))
        name = next(
            n for n, column in columns.items() if is_list(getattr(column, "type", pa.null())) and _numeric(column)
        )
        column: Any = columns[name]
        by_channel = _by_channel(column)
        rows = Rows("lists", name, (name,), (), by_channel=by_channel)
        values, lengths = moments_of(_lists(column, rows, self.location), name)
        channels = tuple(f"{name}{i}" for i in range(values.shape[1]))
        what = "channels, each a list of moments" if by_channel else "moments"
        least, most = lengths.min(), lengths.max()
        self.reading_notes.append(
            f"'{name}' is read as a list of {what}: {len(channels)} channel{'s' if len(channels) > 1 else ''}, "
            f"{least if least == most else f'{least} to {most}'} moments a row."
        )
        return replace(rows, channels=channels)

    # ------------------------------------------------------------ two tables

    def _stays(self, folder: Path) -> Columns:
        pair = _pair(folder)
        assert pair is not None, "accepted"
        paths, shared = pair
        both = [Tables(path, _plain(self.options)) for path in paths]
        tables = [table.columns() for table in both]
        for path, table in zip(paths, both, strict=True):
            self.reading_notes += [f"{path.name}: {note}" for note in table.reading_notes]
        key, order = _key(tables, shared, folder)
        if self._rows is not None:
            key = self._rows.key or key
        entities, moments = (tables[i] for i in order)
        where = str(paths[order[1]])
        if self._rows is None:
            self._rows = self._channels(moments, key, where, _free("series", entities, ()))
        columns, told = join(entities, moments, self._rows, where)
        self.reading_notes += [
            f"{paths[order[0]].name} has one row for each '{key}', {paths[order[1]].name} its moments.", *told,
        ]  # fmt: skip
        self._apart[key] = "ignore"
        self._taken = set(moments) - set(entities)
        return columns

    def _channels(self, moments: Columns, key: str, where: str, name: str) -> Rows:
        """What each column of the moments is."""
        types = self.options.types
        when = _moment_column(moments, key)
        numbers: list[str] = []
        words: list[tuple[str, str]] = []
        left: list[str] = []
        for column in [column for column in moments if column not in (key, when)]:
            kind = types.get(column) or _kind(moments[column], column, where)
            found = frequent(moments[column]) if kind == "category" else []
            if kind == "number":
                numbers.append(column)
            elif found:
                words += [(column, word) for word in found]
            elif kind != "ignore":
                left.append(column)
        if left:
            self.reading_notes.append(
                f"Left out of the moments, for they hold no numbers or no variety: {shorten(left)}."
            )
        if not numbers and not words:
            raise DataError(
                f"{where} has no column of numbers or words beside '{key}', so there is no series to learn from."
            )
        made = [*(["time"] if when else []), *numbers, *(f"{column}={word}" for column, word in words)]
        return Rows("stays", name, tuple(numbers), tuple(made), key, when, tuple(words), unit=_unit(moments, when))

    # ------------------------------------------------------------ columns that are no inputs

    def _named_parts(self, columns: Columns) -> dict[str, np.ndarray]:
        """The parts that a column "split" names."""
        for name in SPLITS:
            column: Any = columns.get(name)
            if column is None or name in self.options.types or is_list(column.type):
                continue
            words = few(column.cast(pa.string()), 3) or []
            if words and all(str(word).lower() in PARTS for word in words) and not column.null_count:
                part = np.array([PARTS[str(word).lower()] for word in column.to_pylist()])
                self._apart[name] = "ignore"
                self.reading_notes.append(f"The column '{name}' says which rows are train, validation and test.")
                return {
                    one: np.flatnonzero(part == one) for one in ("train", "validation", "test") if (part == one).any()
                }
        return {}

    def _leave_out(self, columns: Columns) -> None:
        """Leave out what may be known only after the outcome."""
        targets = self.options.target or [name for name in ("target", "label", "class", "y") if name in columns][:1]
        target = targets[0] if targets else _outcome(columns)
        asked = {*targets, *(self.options.input or ()), *self.options.types, *self._apart, target}
        free = [name for name in columns if name not in asked and is_number(columns[name])]
        later = [name for name in free if AFTER.search(name)]
        if later:
            self.reading_notes.append(
                f"Left out, since they may be known only after the outcome: {shorten(later)} "
                f"(data.types.{later[0]}=number uses it)."
            )
        telling = [
            name for name in free if name not in later and target in columns and self._tells(columns, name, target)
        ]
        if telling:
            self.reading_notes.append(
                f"Left out, since it alone tells the classes of '{target}' apart, as only what follows from them does: "
                f"{shorten(telling)} (data.types.{telling[0]}=number uses it)."
            )
        self._apart |= dict.fromkeys([*later, *telling], "ignore")

    def _tells(self, columns: Columns, name: str, target: str | None) -> bool:
        """Whether one column orders the training rows of two classes almost without an error."""
        rows = self._splits.get("train", np.arange(columns.rows))
        truth: Any = columns[target or ""]
        classes = few(truth, 2)
        if classes is None or len(classes) != 2:
            return False
        value = matrix(columns, [name])[rows, 0]
        positive = np.array([word == classes[1] for word in truth.to_pylist()])[rows]
        known = np.isfinite(value)
        if positive[known].sum() < 10 or (~positive[known]).sum() < 10:
            return False
        ranking = Ranking.of(torch.from_numpy(value[known]), torch.from_numpy(positive[known]))
        area = float(ranking.areas(torch.ones(1, int(known.sum()), dtype=torch.float64))[0])
        return max(area, 1 - area) > TELLS


# ---------------------------------------------------------------- making series


def with_series(columns: Columns, rows: Rows, where: str) -> Columns:
    """A table whose series stands in one column, in place of the columns that held it.

    Raises:
        DataError: a column of the series is missing or holds no numbers.
    """
    require(columns, rows.columns, where)
    if rows.reads == "wide":
        values = matrix(columns, rows.columns)  # (N, T)
        lasts = np.where(np.isfinite(values).any(1), values.shape[1] - np.isfinite(values)[:, ::-1].argmax(1), 0)
        made = lists_of(
            [row[:last, None] for row, last in zip(values, lasts, strict=True)]
        )  # UCR fills up with nothing
    else:
        made = _lists(columns[rows.name], rows, where)
    others = {name: column for name, column in columns.items() if name not in rows.columns}
    return Columns({**others, rows.name: made}, columns.rows)


def _lists(column: Any, rows: Rows, where: str) -> pa.ChunkedArray:
    """Lists of channels or moments -> lists of moments."""
    if not rows.by_channel:
        return column
    channels = _width(column)
    made = []
    for number, row in enumerate(column.to_pylist()):
        lists = row or [[]] * channels
        if len({len(one) for one in lists}) != 1 or len(lists) != channels:
            shown = ", ".join(str(len(one)) for one in lists[:6])
            raise DataError(
                f"{where}, row {number + 1}: the channels of '{rows.columns[0]}' have {shown} moments; each of {channels} "
                "channels needs as many as the others, null where a value is missing."
            )
        made.append(np.array(lists, np.float64).T)  # (T, C), None is nan
    return lists_of(made)


def join(entities: Columns, moments: Columns, rows: Rows, where: str) -> tuple[Columns, list[str]]:
    """Entities with their moments as lists, in the order of time.

    Returns:
        The table of entities with one column more, and sentences about what found no partner.

    Raises:
        DataError: a column is missing.
    """
    key = rows.key or ""
    require(moments, [key, *([rows.time] if rows.time else []), *rows.columns, *(c for c, _ in rows.words)], where)
    require(entities, [key], where)
    owners: Any = entities[key]
    mine: Any = moments[key]
    same = mine.type if is_number(mine) == is_number(owners) else pa.string()
    place = pc.fill_null(pc.index_in(mine.cast(same), value_set=owners.cast(same).combine_chunks()), -1)
    owner = np.asarray(place.to_numpy(), np.int64)
    values = np.column_stack([matrix(moments, rows.columns), *(holds(moments[c], word) for c, word in rows.words)])
    ticks = np.arange(moments.rows)
    if rows.time:
        stamps: Any = moments[rows.time]
        if stamps.null_count:
            row = pc.index(pc.is_null(stamps), True).as_py()
            raise DataError(f"{where}, row {row + 1}: '{rows.time}' is missing. Every moment needs its time.")
        ticks = time.ticks_of(stamps)
        values = np.column_stack([_since_first(ticks, owner, time.is_temporal(stamps.type)), values])
    order = np.lexsort((ticks, owner))
    order = order[owner[order] >= 0]
    cuts = np.searchsorted(owner[order], np.arange(entities.rows + 1))
    series = lists_of([values[order[a:b]] for a, b in pairwise(cuts)])
    notes = []
    if lost := int((owner < 0).sum()):
        notes.append(f"{lost:,} moments belong to no row of the entities ('{key}') and are left out.")
    if empty := int((np.diff(cuts) == 0).sum()):
        notes.append(f"{empty:,} of {entities.rows:,} rows have no moment; their series is empty.")
    return Columns({**entities, rows.name: series}, entities.rows), notes


def _since_first(ticks: np.ndarray, owner: np.ndarray, temporal: bool) -> np.ndarray:
    """(M,) time as a channel: hours since an entity's first moment of dates, numbers as they are."""
    if not temporal:
        return ticks.astype(np.float64)
    first = np.full(owner.max(initial=0) + 2, np.iinfo(np.int64).max)
    np.minimum.at(first, owner, ticks)
    return np.asarray((ticks - first[owner]) / HOUR)


# ---------------------------------------------------------------- predict


def read_entities(items: Sequence[Any], schema: Schema) -> tuple[Columns, list[str]]:
    """New rows as the columns that a fitted schema of whole series reads.

    Args:
        items: folders, files, frames, or rows as dicts, of the shape that the model was trained on.
        schema: fitted.

    Raises:
        DataError: a column is missing, or another shape came.
    """
    rows = Rows.of(schema)
    needed = [name for item in schema.inputs.values() for name in item.columns]
    records = all(isinstance(item, Mapping) for item in items)
    tables: list[Any] = [list(items)] if records else list(items)
    parts: list[Columns] = []
    for item in tables:
        is_folder = isinstance(item, str | Path) and Path(item).is_dir()
        if is_folder != (rows.reads == "stays") or not (is_folder or Tables.accepts(item)):
            wanted = (
                "a folder of entities and their moments" if rows.reads == "stays" else "a table file, a frame or dicts"
            )
            came = item if isinstance(item, str | Path) else type(item).__name__
            raise DataError(f"{came} cannot be answered: this model reads {wanted}.")
        if is_folder and _pair(Path(item)) is None:
            raise DataError(f"{item} does not hold two tables, entities and their moments, that share a column.")
        columns = Entities(item, DEFAULTS, schema).columns()
        require(columns, needed, str(item))
        parts.append(apply_reading(columns.select(needed), reading_of(schema, inputs_only=True), str(item), _row))
    joined = Columns.concatenate(parts) if len(parts) > 1 else parts[0]
    return joined, [_row(row) for row in range(joined.rows)]


def _row(row: int) -> str:
    return f"row {row + 1}"


# ---------------------------------------------------------------- what a location holds


def _plain(options: Data) -> Data:
    """Options that the reader of tables knows; kinds are settled afterwards."""
    return options.model_copy(update={"types": {}})


def _header(location: Any) -> tuple[list[str], dict[str, Any]]:
    """The names of a table's columns, and its first record where it could hold lists (they are told apart by it)."""
    if hasattr(location, "__arrow_c_stream__"):
        if not _rereadable(location):
            return [], {}
        reader = pa.RecordBatchReader.from_stream(location)
        return reader.schema.names, _first_lists(reader.schema, reader)
    if isinstance(location, list):
        return list(location[0]), location[0]
    path = Path(str(location))
    kind = suffix(path)
    try:
        if kind in PARQUET:
            from pyarrow import parquet

            table = parquet.ParquetFile(path)
            return table.schema_arrow.names, _first_lists(table.schema_arrow, table.iter_batches(batch_size=1))
        with open_bytes(path) as file:
            first = file.readline(1 << 22).decode("utf-8-sig", "replace")
    except (OSError, EOFError, gzip.BadGzipFile, pa.ArrowInvalid):
        return [], {}  # whoever reads it tells what is wrong
    if kind in LINES:
        return _first_record(first)
    first = first.lstrip("\r\n").splitlines()[0] if first.strip() else ""
    delimiter = max(",;\t|", key=first.count) if kind in DELIMITED else ","
    try:
        return next(csv.reader([first], delimiter=delimiter), []), {}
    except csv.Error:
        return [], {}  # told by whoever reads it


def _first_lists(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
    """The first record's lists of lists; nothing is read where no column holds any."""
    nested = [field.name for field in schema if is_list(field.type) and is_list(field.type.value_type)]
    batch = next((batch for batch in batches if batch.num_rows), None) if nested else None
    return {name: batch.column(name)[0].as_py() for name in nested} if batch is not None else {}


def _rereadable(frame: Any) -> bool:
    """Whether a frame can be asked for its columns without using it up."""
    return not isinstance(frame, pa.RecordBatchReader)


def _first_record(line: str) -> tuple[list[str], dict[str, Any]]:
    try:
        record = json.loads(line)
    except ValueError:
        return [], {}
    return (list(record), record) if isinstance(record, dict) else ([], {})


def _is_series(value: Any) -> bool:
    """A list of equally long lists of numbers."""
    if not (isinstance(value, list) and value and all(isinstance(one, list) for one in value)):
        return False
    longest = max(len(value), *(len(one) for one in value))
    flat = [number for one in value for number in one]
    return longest >= 2 and all(number is None or isinstance(number, int | float) for number in flat)


def _numeric(column: Any) -> bool:
    """Whether a column of lists holds lists of numbers."""
    inner = column.type.value_type
    return is_list(inner) and (pa.types.is_floating(inner.value_type) or pa.types.is_integer(inner.value_type))


def _wide(names: Sequence[str], any_stem: bool) -> list[str]:
    """The columns t0, t1, ... in order; [] where they are too few or not consecutive."""
    stems: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if found := NUMBERED.match(name):
            stems.setdefault(found[1], []).append((int(found[2]), name))
    for stem, numbered in stems.items():
        if (any_stem or stem.lower() in STEMS) and len(numbered) >= SHORTEST:
            numbered.sort()
            places = [place for place, _ in numbered]
            if places == list(range(places[0], places[0] + len(places))) and places[0] in (0, 1):
                return [name for _, name in numbered]
    return []


def _width(column: Any) -> int:
    """How many lists the rows hold: the most common number."""
    lengths = pc.drop_null(pc.list_value_length(column)).to_numpy()
    return int(np.bincount(lengths[lengths > 0]).argmax()) if (lengths > 0).any() else 0


def _by_channel(column: Any) -> bool:
    """Whether each row is a list of channels: as many in every row, where a list of moments has any number."""
    outer = pc.list_value_length(column).drop_null().to_numpy()
    inner = pc.list_value_length(pc.list_flatten(column)).drop_null().to_numpy()
    same_outer, same_inner = len(np.unique(outer)) == 1, len(np.unique(inner)) == 1
    return bool(same_outer and (not same_inner or outer[0] <= inner[0]))


def _pair(folder: Path) -> tuple[list[Path], list[str]] | None:
    """The two tables of a folder and the columns that both have; None where it holds others."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and suffix(path) in SUFFIXES)
    if len(paths) != 2:
        return None
    one, other = (_header(path)[0] for path in paths)
    shared = [name for name in one if name in other]
    return (paths, shared) if shared and set(one) != set(other) else None


def _key(tables: Sequence[Columns], shared: Sequence[str], folder: Path) -> tuple[str, list[int]]:
    """The column that is unique in one table and repeated in the other; which table is which."""
    for name in shared:
        unique = [_is_unique(table[name]) for table in tables]
        if sum(unique) == 1:
            return name, [unique.index(True), unique.index(False)]
    raise DataError(
        f"{folder} holds two tables that share {shorten(list(shared))}, but no column is unique in one (the entities) and "
        "repeated in the other (their moments). Name a single table instead, or mend the column that joins them."
    )


def _is_unique(column: Column) -> bool:
    if isinstance(column, np.ndarray) or column.null_count:
        return False
    return bool(pc.count_distinct(column).as_py() == len(column))


def _moment_column(moments: Columns, key: str) -> str | None:
    """Dates, or numbers of a usual name."""
    others = [name for name in moments if name != key]
    dates = [name for name in others if time.is_temporal(getattr(moments[name], "type", pa.null()))]
    named = [name for wanted in MOMENT_NAMES for name in others if name.lower() == wanted and is_number(moments[name])]
    return next(iter([*dates, *named]), None)


def _unit(moments: Columns, when: str | None) -> str:
    """What the channel of the time counts: dates become hours (`_since_first`), numbers are what their column is called."""
    if when is None:
        return ""
    if time.is_temporal(getattr(moments[when], "type", pa.null())):
        return "hour"
    return when.lower() if when.lower() in ("second", "minute", "hour", "day", "step") else ""


def _kind(column: Column, name: str, where: str) -> str:
    if not isinstance(column, np.ndarray) and pa.types.is_boolean(column.type):
        return "number"
    kind = input_kind(column, name, Setting(where))
    return "number" if kind == "id" and is_number(column) else kind


def _outcome(columns: Columns) -> str | None:
    """A column of two values whose name says that it is the outcome."""
    for name, column in columns.items():
        plain = not isinstance(column, np.ndarray) and not is_list(column.type)
        if plain and OUTCOMES.search(name) and len(few(column, 2) or ()) == 2:
            return name
    return None


def _free(name: str, columns: Mapping[str, Any], gone: Sequence[str]) -> str:
    """A name that no column has."""
    return f"{name}'" if name in columns and name not in gone else name
