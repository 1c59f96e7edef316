"""How channels are made from a raw table, for training and for new rows alike.

    Layout      which columns are read and how; plain data, kept in the state of the fitted series
    Table       a raw table whose cells are read with errors that name the row
    arrange     (table, layout) -> Moments

Numbers are channels as they are, words are 0/1 channels, time is sine and cosine of the cycles that it goes through. Of
a price the log returns are read, and of quotes beside it their log ratio to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fathom.core.contract import Columns, Schema
from fathom.core.errors import DataError
from fathom.core.tensors import Column
from fathom.fields.series import matrix
from fathom.sources import moments as time
from fathom.sources.guess import few
from fathom.sources.moments import Grid, Moments

TIME_NAMES = ("date", "time", "datetime", "date_time", "timestamp", "ds")
WORDS, MOST_WORDS = 8, 50  # channels of a column of words, and different words above which it is left out


@dataclass(frozen=True)
class Layout:
    """How moments are made from raw columns.

    Args:
        time: column of time stamps; None where the rows have none.
        group: column of entities.
        grid: unit and step; None where rows are taken one after the other.
        numbers: columns of numbers.
        words: [column, word] of each 0/1 channel.
        calendar: [cycle, "sin" or "cos"] of each channel of time.
        price: the column whose log returns are modelled.
        quotes: columns read as log ratio to the price.
        channels: names of all channels: numbers, words, calendar.
        targets: the channels to forecast.
        temporal: whether time stamps are dates.
    """

    time: str | None
    group: str | None
    grid: tuple[str, float] | None
    numbers: tuple[str, ...]
    words: tuple[tuple[str, str], ...]
    calendar: tuple[tuple[str, str], ...]
    price: str | None
    quotes: tuple[str, ...]
    channels: tuple[str, ...]
    targets: tuple[str, ...]
    temporal: bool

    @staticmethod
    def of(schema: Schema) -> Layout:
        """The layout that a schema of windows was made with."""
        (series,) = [item for item in schema.inputs.values() if item.kind == "series"]
        table = dict(series.state["layout"])
        pairs = {name: tuple(tuple(pair) for pair in table[name]) for name in ("words", "calendar")}
        lists = {name: tuple(table[name]) for name in ("numbers", "quotes", "channels", "targets")}
        grid = tuple(table["grid"]) if table["grid"] else None
        return Layout(**{**table, **pairs, **lists, "grid": grid})

    @property
    def distance(self) -> Grid | None:
        """The distance between moments."""
        return Grid(*self.grid) if self.grid else None

    def at(self, names: Sequence[str]) -> list[int]:
        """The places of channels."""
        return [self.channels.index(name) for name in names]

    def raw(self) -> list[str]:
        """The raw columns that are read."""
        names = [*([self.time] if self.time else []), *([self.group] if self.group else []), *self.numbers]
        return list(dict.fromkeys([*names, *(column for column, _ in self.words)]))


@dataclass(frozen=True)
class Table:
    """A raw table, and how its rows are named in errors."""

    columns: Columns
    where: str
    place: Callable[[int], str]

    def codes(self, name: str | None) -> tuple[np.ndarray, list[str]]:
        """(N,) which entity each row belongs to, in the order of their first rows, and their names."""
        if name is None:
            return np.zeros(self.columns.rows, np.int64), [""]
        column = self._whole(name, "group", "an entity")
        coded = column.cast(pa.string()).dictionary_encode().combine_chunks()
        return coded.indices.to_numpy(zero_copy_only=False).astype(np.int64), coded.dictionary.to_pylist()

    def ticks(self, name: str | None, entity: np.ndarray) -> np.ndarray:
        """(N,) time stamps; row numbers within each entity where there is no time."""
        if name is None:
            order = np.argsort(entity, kind="stable")
            starts = np.searchsorted(entity[order], entity)
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order))
            return place - starts
        column = self._whole(name, "time", "a time stamp")
        if not (time.is_temporal(column.type) or is_number(column)):
            raise DataError(
                f"{self.where}: data.time needs numbers or dates whose order is certain; '{name}' holds text such as "
                f"'{column[0].as_py()}'. Write it as YYYY-MM-DD or YYYY-MM-DD HH:MM."
            )
        return time.ticks_of(column)

    def _whole(self, name: str, part: str, what: str) -> pa.ChunkedArray:
        """A column in which every row has a value."""
        column: Any = self.columns[name]
        lacking = pc.is_null(column, nan_is_null=True)
        row = pc.index(lacking, True).as_py()
        if row >= 0:
            raise DataError(
                f"{self.where}, {self.place(row)}: '{name}' (data.{part}) is missing, and {pc.sum(lacking).as_py():,} rows "
                f"lack it in all. Every row of a series needs {what}; fill it in or remove the rows."
            )
        return column

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """(N, C) float64, nan where missing; an infinite value is refused."""
        values = matrix(self.columns, names)
        if np.isinf(values).any():
            row, place = np.argwhere(np.isinf(values))[0]
            raise DataError(
                f"{self.where}, {self.place(int(row))}: column '{names[place]}' holds an infinite or too large number. "
                f"Mend or empty the cell, or set data.types.{names[place]}=ignore."
            )
        return values


def arrange(table: Table, layout: Layout) -> tuple[Moments, list[str]]:
    """The channels of every moment, and the names of the entities."""
    entity, names = table.codes(layout.group)
    ticks = table.ticks(layout.time, entity)
    words = [holds(table.columns[column], word) for column, word in layout.words]
    values = np.column_stack([table.numbers(layout.numbers), *words])
    placed = time.place(ticks, entity, values, layout.distance, len(layout.numbers))
    if layout.price:
        placed = _returns(placed, layout, table.where)
    waves = [time.wave(placed.ticks, cycle, which) for cycle, which in layout.calendar]
    return replace(placed, values=np.column_stack([placed.values, *waves])), names


def holds(column: Column, word: str) -> np.ndarray:
    """(N,) 1.0 where the row holds the word."""
    same = pc.fill_null(pc.equal(_text(column), word), False)
    return np.asarray(same.cast(pa.int8()).to_numpy(), np.float64)


def _text(column: Any) -> pa.ChunkedArray:
    return column.cast(pa.string())


def _returns(placed: Moments, layout: Layout, where: str) -> Moments:
    """Log returns of the price since it was last known, and quotes as log ratios to it; the first moment has none."""
    values, price = placed.values.copy(), layout.numbers.index(layout.price or "")
    _require_positive(values[:, price], layout.price or "", where)
    logs = np.log(values[:, price])
    change = np.full(len(logs), np.nan)
    first = np.zeros(len(logs), bool)
    for start, stop in placed.bounds():
        mine = logs[start:stop]
        last = np.maximum.accumulate(np.where(np.isnan(mine), 0, np.arange(len(mine))))
        change[start + 1 : stop] = mine[1:] - mine[last[:-1]]
        first[start] = True
    for name in layout.quotes:
        place = layout.numbers.index(name)
        _require_positive(values[:, place], name, where)
        values[:, place] = np.log(values[:, place]) - logs
    values[:, price] = change
    return replace(placed, values=values).where(~first)


def _require_positive(values: np.ndarray, name: str, where: str) -> None:
    if np.nanmin(values, initial=np.inf) <= 0:
        raise DataError(
            f"{where}: log returns need positive numbers, but '{name}' has {np.nanmin(values):g}. "
            "Set data.forecast.returns=false to forecast the values themselves."
        )


def is_number(column: Column) -> bool:
    """Whether a column holds one number or truth value a row."""
    if isinstance(column, np.ndarray):
        return False
    kind = column.type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def frequent(column: Any) -> list[str]:
    """The most frequent words, those of equal count by name; none where there are too many different ones."""
    text = column.cast(pa.string())
    if few(text, MOST_WORDS) is None:
        return []
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(text).to_pylist()}
    words = sorted((word for word in counts if word is not None), key=lambda word: (-counts[word], word))
    if len(words) == 2 and None not in counts:
        return words[1:]  # the other is its opposite
    return words[:WORDS]


def lists_of(rows: Sequence[np.ndarray]) -> pa.ChunkedArray:
    """(T, C) float64 each -> a column of lists of T moments of C numbers."""
    width = rows[0].shape[1]
    flat = pa.array(np.concatenate(rows).ravel().astype(np.float64))
    steps = pa.FixedSizeListArray.from_arrays(flat, width)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return pa.chunked_array([pa.LargeListArray.from_arrays(pa.array(offsets), steps)])
