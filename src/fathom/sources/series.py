"""Series to forecast: a table whose rows are moments, of one series or of many (`data.group`).

    SeriesTable      a table file or frame, where `data.horizon` is set
    read_histories   new rows of `predict` -> the last moments of each series, one forecast each

What happens to the rows, each step with a sentence: sorted by time; rows of one moment averaged; the usual distance
between moments found, and moments without a row put in as missing. How columns become channels says `layout.py`, how
rows become moments `moments.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fathom.core.contract import Columns, Field, Index, Schema, Source
from fathom.core.errors import DataError, unknown
from fathom.core.recipe import Data
from fathom.core.registry import fields, source
from fathom.core.split import TEST, VALIDATION
from fathom.core.tensors import Column
from fathom.fields.series import HISTORY
from fathom.sources import moments as time
from fathom.sources.delimited import shorten
from fathom.sources.guess import DEFAULTS, LEFT_OUT, PLAIN_DATE, TARGET_NAMES, Setting, few, input_kind
from fathom.sources.layout import TIME_NAMES, Layout, Table, arrange, frequent, is_number, lists_of
from fathom.sources.moments import Moments
from fathom.sources.tables import Tables, require

PRICES = ("adj close", "adj_close", "adjclose", "close", "price")  # the first that is there is the target
QUOTES = (*PRICES, "open", "high", "low", "bid", "ask")  # of one price each; told apart by their ratio to it
LONG_SEASON = 100  # moments above which a window of two seasons costs more than it tells
FEWEST = 24  # moments read where there are enough


# ---------------------------------------------------------------- source


@source("series", order=20, reads="a table of moments, where data.horizon says how many to forecast")
class SeriesTable(Source):
    """A table of moments to forecast.

    Args:
        location: a file or frame that `Tables` reads.
        options: the recipe's table; horizon, target, input, types, time, group, limit, shares and fields are used.
        like: the schema of a trained model, whose layout these rows then get; every moment with a whole history and
            forecast is a test row.
    """

    def __init__(self, location: Any, options: Data, like: Schema | None = None) -> None:
        super().__init__(str(location) if isinstance(location, str | Path) else "the frame", options)
        self.horizon = _horizon(options, like)
        self._given = location
        self._like = like
        self._notes: list[str] = []
        self._made: tuple[Layout, Moments, list[str]] | None = None
        self._schema: Schema | None = like
        for part in ("validation", "test"):
            if isinstance(getattr(options, part), str):
                raise DataError(
                    f"data.{part}={getattr(options, part)}: a series is divided by time, so data.{part} is a share of its "
                    f"moments, as in data.{part}=0.2. Judge another series afterwards, with fathom evaluate RUN DATA."
                )
        if options.weight is not None:
            raise DataError("data.weight has no meaning beside data.horizon: every moment of a series counts alike.")

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """A table, where a horizon is given."""
        return _horizon(options) > 0 and Tables.accepts(location, options)

    def columns(self) -> Columns:
        """One row a moment: channels, time and entity."""
        layout, placed, names = self._moments()
        made: dict[str, Any] = {name: placed.values[:, c] for c, name in enumerate(layout.channels)}
        stamps = pa.array(placed.ticks)
        made[_time_name(layout)] = stamps.cast(pa.timestamp("us")) if layout.temporal else stamps
        if layout.group:
            made[layout.group] = pa.DictionaryArray.from_arrays(pa.array(placed.entity.astype(np.int32)), names)
        return Columns(made, len(placed.ticks))

    def schema(self) -> Schema:
        """The series that is read, and what is forecast of it."""
        if self._schema is None:
            self._schema = self._guess()
        return self._schema

    def given_splits(self) -> dict[str, Index]:
        """The moments from which each part forecasts, the parts one after the other in time.

        Raises:
            DataError: a part has no moment to forecast from; says how many moments are possible.
        """
        layout, placed, _ = self._moments()
        schema = self.schema()
        past = past_of(schema)
        known = np.isfinite(_targets(layout, placed)).any(1)
        if self._like is not None:
            last = placed.ticks.max() + 1
            every = time.origins(placed, past, self.horizon, (last, last), known)["train"]
            if not len(every):
                raise DataError(
                    f"{self.location} has {len(placed.ticks):,} moments, too few to read {past} and forecast "
                    f"{self.horizon}. Give more rows."
                )
            return {"test": every}
        found = time.origins(placed, past, self.horizon, self._cuts(placed), known)
        short = [name for name, rows in found.items() if not len(rows)]
        if short:
            self._refuse(short[0], placed, past)
        return found

    def notes(self) -> list[str]:
        """What was done to the rows, and what was guessed."""
        self.schema()
        return self._notes

    # ------------------------------------------------------------ reading

    def _table(self) -> Table:
        """The raw rows; names of kinds that only series know are not for the reader of tables."""
        like = {} if self._like is None else dict.fromkeys(Layout.of(self._like).numbers, "number")
        words = [] if self._like is None else [column for column, _ in Layout.of(self._like).words]
        inner = Tables(self._given, self.options, {**like, **dict.fromkeys(words, "text")})
        columns = inner.columns()
        self._notes += inner.reading_notes
        if columns.rows == 0:
            raise DataError(f"{self.location} holds no rows.")
        return Table(columns, str(self.location), inner._place)

    def _moments(self) -> tuple[Layout, Moments, list[str]]:
        if self._made is None:
            table = self._table()
            if self._like is None:
                layout = self._layout(table)
            else:
                layout = Layout.of(self._like)
                require(table.columns, layout.raw(), table.where)
            placed, names = arrange(table, layout)
            self._tell(placed, layout, table.columns.rows)
            self._made = layout, self._limited(placed), names
        return self._made

    def _limited(self, placed: Moments) -> Moments:
        """The last `data.limit` moments, of every entity alike."""
        limit = self.options.limit
        if limit is None or limit >= len(placed.ticks):
            return placed
        each = max(1, limit // len(placed.bounds()))
        kept = np.concatenate([np.arange(max(start, stop - each), stop) for start, stop in placed.bounds()])
        self._notes.append(f"Only the last {len(kept):,} moments are used (data.limit).")
        return placed.where(kept)

    def _tell(self, placed: Moments, layout: Layout, rows: int) -> None:
        """Sentences about order, duplicates and gaps."""
        what = "numbers are averaged" + (", of words the first is kept" if layout.words else "")
        if not placed.sorted:
            self._notes.append(f"The rows were not in the order of '{layout.time}'; they are sorted.")
        if placed.duplicates:
            self._notes.append(f"{placed.duplicates:,} of {rows:,} rows share their time stamp with another: {what}.")
        if placed.gaps:
            share = 100 * placed.gaps / len(placed.ticks)
            self._notes.append(
                f"At a distance of {layout.distance.text() if layout.distance else ''}, {placed.gaps:,} moments "
                f"({share:.1f} %) have no row; they count as missing."
            )

    # ------------------------------------------------------------ layout

    def _layout(self, table: Table) -> Layout:
        """Guess what each column is."""
        options, columns = self.options, table.columns
        for name in [*options.types, *(options.target or ()), *(options.input or ()), options.time, options.group]:
            if name is not None and name not in columns:
                raise DataError(unknown("column", name, columns, table.where))
        when = self._time_column(columns)
        special = {name for name in (when, options.group) if name}
        targets = self._targets(columns, special, table.where)
        numbers, words = self._inputs(table, targets, special)
        entity, _ = table.codes(options.group)
        ticks = table.ticks(when, entity)
        temporal = when is not None and time.is_temporal(_type(columns[when]))
        grid, why = time.find_grid(ticks, entity, temporal) if when else (None, "")
        self._notes += [why] if why else []
        price, quotes = self._price(targets, numbers, columns)
        ordered = [*targets, *(name for name in numbers if name not in targets)]
        step = float(np.median(np.diff(np.unique(ticks)))) if len(np.unique(ticks)) > 1 else 0.0
        cycles = time.cycles(ticks, step) if temporal else []
        calendar = tuple((cycle, which) for cycle in cycles for which in ("sin", "cos"))
        made = [f"{column}={word}" for column, word in words] + [f"{cycle} ({which})" for cycle, which in calendar]
        layout = Layout(
            when, options.group, (grid.unit, grid.step) if grid else None,
            tuple(ordered), tuple(words), calendar, price, quotes, (*ordered, *_free(made, columns)),
            tuple(targets), temporal,
        )  # fmt: skip
        self._check(table, layout, targets)
        return self._without_constants(table, layout, targets)

    def _time_column(self, columns: Columns) -> str | None:
        if self.options.time is not None:
            return self.options.time
        ignored = {name for name, kind in self.options.types.items() if kind == "ignore"}
        free = [name for name in columns if name not in {*ignored, self.options.group, *(self.options.target or ())}]
        found = [name for name in free if time.is_temporal(_type(columns[name]))]
        named = [name for name in free if name.lower() in TIME_NAMES]
        found = found or [name for name in named if _is_date_text(columns[name])]
        chosen = found[0] if found else None
        if chosen is None:
            self._notes.append("No column holds the time, so the rows are taken in their order, at equal distances.")
        else:
            self._notes.append(f"The rows are ordered by '{chosen}'; choose another with --time COLUMN.")
        return chosen

    def _targets(self, columns: Columns, special: set[str], where: str) -> list[str]:
        """The columns to forecast: those named; a price; by name; else the last beside words, or all numbers."""
        ignored = {name for name, kind in self.options.types.items() if kind == "ignore"}
        free = [name for name in columns if name not in special | ignored]
        numbers = [name for name in free if is_number(columns[name])]
        if self.options.target is not None:
            targets = list(dict.fromkeys(self.options.target))
            for name in targets:
                if name in special or name in ignored:
                    raise DataError(f"'{name}' cannot be forecast: it is the time, the group or ignored.")
                if name not in numbers:
                    raise DataError(
                        f"{where}: '{name}' holds no numbers, so it cannot be forecast. Choose another --target."
                    )
        elif not numbers:
            raise DataError(f"{where} has no column of numbers to forecast. It has: {shorten(list(columns), 12)}.")
        else:
            targets, how = _chosen(numbers, free)
            if len(targets) < len(free) or len(targets) == 1:
                self._notes.append(f"{shorten(targets)} is forecast ({how}); choose others with --target.")
            else:
                self._notes.append(f"All {len(targets)} columns are forecast; choose some with --target.")
        for name in targets:
            _require_variety(columns[name], name, where, len(targets))
        return targets

    def _inputs(
        self, table: Table, targets: Sequence[str], special: set[str]
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Columns of numbers, and the words that become channels; others are left out with a sentence."""
        columns, types = table.columns, self.options.types
        wanted = self.options.input if self.options.input is not None else list(columns)
        numbers: list[str] = []
        words: list[tuple[str, str]] = []
        left: dict[str, list[str]] = {}
        for name in [name for name in wanted if name not in special and name not in targets]:
            kind = types.get(name) or self._kind(columns[name], name, table)
            found = frequent(columns[name]) if kind == "category" else []
            if kind == "number":
                numbers.append(name)
            elif found:
                words += [(name, word) for word in found]
            elif kind != "ignore":
                left.setdefault("text" if kind in ("category", "image") else kind, []).append(name)
        for kind, names in left.items():
            self._notes.append(
                f"Left out, for {LEFT_OUT.get(kind, 'a series reads numbers and words')}: {shorten(names)}."
            )
        if words:
            named = shorten(list(dict.fromkeys(name for name, _ in words)))
            self._notes.append(f"The most frequent words of {named} are read as 0/1 channels, {len(words)} in all.")
        return [*targets, *numbers], words

    def _kind(self, column: Column, name: str, table: Table) -> str:
        if not isinstance(column, np.ndarray) and pa.types.is_boolean(column.type):
            return "number"
        return input_kind(column, name, Setting(table.where, table.place))

    def _price(
        self, targets: Sequence[str], numbers: Sequence[str], columns: Columns
    ) -> tuple[str | None, tuple[str, ...]]:
        """The column whose log returns are modelled, and the quotes that are read as ratios to it."""
        wanted = self.options.fields.get("forecast", {}).get("returns")
        if wanted is False or (wanted is None and not (len(targets) == 1 and _is_price(targets[0], columns))):
            return None, ()
        if len(targets) > 1:
            raise DataError(
                f"data.forecast.returns=true forecasts one price, but {len(targets)} columns are targets. Name one with "
                "--target."
            )
        price = targets[0]
        quotes = tuple(name for name in numbers if name != price and _is_quote(name) and _positive(columns[name]))
        beside = f"; {shorten(list(quotes))} are read as log ratios to it" if quotes else ""
        self._notes.append(
            f"'{price}' is a price, so its log returns are read and forecast{beside} (data.forecast.returns=false uses the "
            "prices themselves)."
        )
        return price, quotes

    def _check(self, table: Table, layout: Layout, targets: Sequence[str]) -> None:
        """Refuse an input that holds the future of a target.

        Raises:
            DataError: names the input.
        """
        candidates = [
            name for name in layout.numbers if name not in targets and self.options.types.get(name) != "number"
        ]
        if not candidates:
            return
        placed, _ = arrange(table, replace(layout, price=None, quotes=(), calendar=()))
        given = placed.values[:, [layout.numbers.index(name) for name in candidates]]
        wanted = placed.values[:, [layout.numbers.index(name) for name in targets]]
        for start, stop in placed.bounds()[:1]:  # the first entity shows it
            leak = time.find_leak(given[start:stop], wanted[start:stop], self.horizon)
            if leak is not None:
                name, target, distance = candidates[leak[0]], targets[leak[1]], leak[2]
                raise DataError(
                    f"{table.where}: '{name}' equals '{target}' {distance} moment{'s' if distance > 1 else ''} later, so it "
                    f"tells what is to be forecast. Leave it out with data.types.{name}=ignore, or, if it is known in "
                    f"time, keep it with data.types.{name}=number."
                )

    def _without_constants(self, table: Table, layout: Layout, targets: Sequence[str]) -> Layout:
        """Ratios to a price may be one number throughout; they are left out."""
        if not layout.quotes:
            return layout
        placed, _ = arrange(table, layout)
        spread = np.nanmax(placed.values, 0) - np.nanmin(placed.values, 0)
        same = [name for c, name in enumerate(layout.numbers) if name in layout.quotes and not spread[c] > 1e-12]
        if not same:
            return layout
        self._notes.append(f"Left out, since they are the price itself: {shorten(same)}.")
        kept = {name for name in layout.channels if name not in same}
        numbers, quotes, channels = (
            tuple(name for name in names if name in kept) for names in (layout.numbers, layout.quotes, layout.channels)
        )
        return replace(layout, numbers=numbers, quotes=quotes, channels=channels)

    # ------------------------------------------------------------ schema

    def _guess(self) -> Schema:
        layout, placed, _ = self._moments()
        given = {kind: dict(self.options.fields.get(kind, {})) for kind in ("series", "forecast")}
        season = given["forecast"].pop("season", None) or self._season(layout, placed)
        longest = self._longest(placed)
        past = given["series"].pop("past", 0) or self._guess_past(season, longest)
        given["forecast"].pop("horizon", None)
        given["forecast"].pop("returns", None)
        if "clip" in given["series"]:
            given["forecast"].setdefault("clip", given["series"]["clip"])
        series: Field = fields["series"].make(list(layout.channels), past=past, **given["series"])
        series.state["layout"] = asdict(layout)
        told = {"horizon": self.horizon, "season": season, "returns": layout.price is not None}
        forecast: Field = fields["forecast"].make(list(layout.targets), **told, **given["forecast"])
        name = layout.targets[0].lstrip(".") if len(layout.targets) == 1 else "forecast"
        key = f"{name} (target)" if name == "series" else name or "forecast"
        self._notes.append(
            f"Each forecast reads the last {past} moments (data.series.past={past}); the naive forecast of MASE is the "
            f"value {season} moment{'s' if season > 1 else ''} before."
            if layout.price is None
            else f"Each forecast reads the last {past} moments (data.series.past={past})."
        )
        special = {"time": _time_name(layout)} | ({"group": layout.group} if layout.group else {})
        return Schema({"series": series}, {key: forecast}, special, tuple(layout.raw()))

    def _season(self, layout: Layout, placed: Moments) -> int:
        """By the calendar, else by the autocorrelation of the training part."""
        if layout.price:
            return 1
        if layout.temporal:
            return time.usual_season(layout.distance)
        start, _ = self._cuts(placed)
        first, stop = placed.bounds()[0]
        part = _targets(layout, placed)[first:stop][placed.ticks[first:stop] < start]
        known = np.isfinite(part)
        return time.repeated_season(
            np.where(known.any(1), np.where(known, part, 0).sum(1) / known.sum(1).clip(1), np.nan)
        )

    def _guess_past(self, season: int, longest: int) -> int:
        """Three horizons, within two to seven seasons; at least FEWEST; at most a third of the training moments."""
        wanted = max(3 * self.horizon, FEWEST)
        if 1 < season <= LONG_SEASON:
            wanted = max(2 * season, min(wanted, 7 * season))
        return max(1, min(wanted, max(longest // 3, min(FEWEST, longest - self.horizon))))

    def _longest(self, placed: Moments) -> int:
        """Moments of the longest training part."""
        start, _ = self._cuts(placed)
        return max(int((placed.ticks[first:stop] < start).sum()) for first, stop in placed.bounds())

    def _cuts(self, placed: Moments) -> tuple[Any, Any]:
        wanted = [getattr(self.options, part) for part in ("test", "validation")]
        test, validation = (
            default if value is None else float(value)
            for value, default in zip(wanted, (TEST, VALIDATION), strict=True)
        )
        if test + validation >= 1:
            raise DataError(
                f"data.test = {test:g} and data.validation = {validation:g} leave no moments to learn from: shares must be "
                "less than 1 together."
            )
        return time.shares(test, validation, placed.ticks)

    def _refuse(self, part: str, placed: Moments, past: int) -> None:
        """Say how far could be forecast."""
        start, stop = self._cuts(placed)
        sizes = [
            (int((t < start).sum()) - past, int(((t >= start) & (t < stop)).sum()), int((t >= stop).sum()))
            for t in (placed.ticks[first:end] for first, end in placed.bounds())
        ]
        longest = min(max(size[i] for size in sizes) for i in range(3))
        moments = max(end - first for first, end in placed.bounds())
        able = (
            f"The longest possible horizon is {longest}"
            if longest > 0
            else f"With {past} moments read (data.series.past) none is possible"
        )
        raise DataError(
            f"{self.location} has {moments:,} moments, too few to forecast {self.horizon} (data.horizon) after reading {past} "
            f"in each of train, validation and test: the {part} part has no whole forecast. {able}; give more rows, "
            "a shorter horizon or a smaller data.series.past."
        )


# ---------------------------------------------------------------- predict


def read_histories(items: Sequence[Any], schema: Schema) -> tuple[Columns, list[str]]:
    """New tables to the moments that a forecast reads: the last `past` of each series.

    Args:
        items: files or frames, or the rows of one table as dicts.
        schema: fitted.

    Returns:
        One row a series, its moments as a list, and a name for each.

    Raises:
        DataError: a column is missing, or a table has too few moments.
    """
    layout, past = Layout.of(schema), past_of(schema)
    tables = [list(items)] if all(isinstance(item, Mapping) for item in items) else list(items)
    histories: list[np.ndarray] = []
    names: list[str] = []
    for item in tables:
        table = read_table(item, layout)
        placed, entities = arrange(table, layout)
        for start, stop in placed.bounds():
            entity = entities[placed.entity[start]]
            who = f"{table.where}, {layout.group} '{entity}'" if layout.group else table.where
            if stop - start < past:
                more = " (a return needs the price before it)" if layout.price else ""
                raise DataError(
                    f"{who} has {stop - start} moments; a forecast reads the last {past}{more}. Give the rows before them too."
                )
            histories.append(placed.values[stop - past : stop])
            names.append(f"{who}, after {time.text_of(placed.ticks[stop - 1], layout.temporal)}")
    return Columns({HISTORY: lists_of(histories)}), names


def read_table(item: Any, layout: Layout) -> Table:
    """A new table, read as the layout's columns were.

    Raises:
        DataError: it is no table, or lacks a column.
    """
    reading = dict.fromkeys(layout.numbers, "number") | {column: "text" for column, _ in layout.words}
    if not Tables.accepts(item):
        raise DataError(
            f"{item if isinstance(item, str | Path) else type(item).__name__} is no table of moments, which this model reads. "
            "Give a file, a frame, or the rows as dicts."
        )
    inner = Tables(item, DEFAULTS, reading)
    columns = inner.columns()
    require(columns, layout.raw(), inner.location)
    if layout.time is not None and layout.temporal != time.is_temporal(_type(columns[layout.time])):
        raise DataError(
            f"{inner.location}: '{layout.time}' held {'dates' if layout.temporal else 'numbers'} in training, but "
            f"{_type(columns[layout.time])} came."
        )
    return Table(columns, inner.location, inner._place)


# ---------------------------------------------------------------- guesses


def _horizon(options: Any, like: Schema | None = None) -> int:
    """Moments to forecast; 0 where nobody asks for a forecast."""
    if like is not None:
        return int(next(iter(like.targets.values())).shape[0])
    return int(getattr(options, "horizon", None) or 0)


def past_of(schema: Schema) -> int:
    """Moments that a forecast reads."""
    return next(item.window[1] for item in schema.inputs.values() if item.window is not None)


def _targets(layout: Layout, placed: Moments) -> np.ndarray:
    """(M, C) values of the targets."""
    return placed.values[:, layout.at(layout.targets)]


def _time_name(layout: Layout) -> str:
    return layout.time or _free(["moment"], dict.fromkeys(layout.channels))[0]


def _free(names: Sequence[str], taken: Mapping[str, Any]) -> list[str]:
    """The names, with a prime each where a column has them."""
    return [f"{name}'" if name in taken else name for name in names]


def _type(column: Column) -> pa.DataType:
    return pa.null() if isinstance(column, np.ndarray) else column.type


def _is_word(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind))


def _is_date_text(column: Column) -> bool:
    """Whether text begins like a date in some order."""
    if isinstance(column, np.ndarray) or not _is_word(column.type):
        return False
    return bool(pc.all(pc.match_substring_regex(column.slice(0, 1000).cast(pa.string()), PLAIN_DATE)).as_py())


def _chosen(numbers: Sequence[str], free: Sequence[str]) -> tuple[list[str], str]:
    """The columns to forecast where nobody named them."""
    by_name = [name for wanted in TARGET_NAMES for name in numbers if name.lower() == wanted]
    prices = [name for wanted in PRICES for name in numbers if name.lower() == wanted]
    if by_name or prices:
        return [(by_name or prices)[0]], "by its name"
    if len(numbers) < len(free):
        return [numbers[-1]], "it is the last column of numbers"
    return list(numbers), "it is the only column of numbers" if len(numbers) == 1 else "every column of numbers"


def _is_price(name: str, columns: Columns) -> bool:
    return name.lower() in PRICES and _positive(columns[name])


def _is_quote(name: str) -> bool:
    return name.lower() in QUOTES


def _positive(column: Any) -> bool:
    low = pc.min(column).as_py()
    return low is not None and low > 0


def _require_variety(column: Any, name: str, where: str, targets: int) -> None:
    """Refuse a target without a value, or with one value throughout."""
    values = few(column.drop_null(), 1)
    if values is None:
        return
    what = f"is {values[0]} at every moment" if values else "has no value at any moment"
    hint = f"Leave it out with data.types.{name}=ignore." if targets > 1 else "Choose another with --target COLUMN."
    raise DataError(f"{where}: the series '{name}' {what}; there is nothing to forecast. {hint}")
