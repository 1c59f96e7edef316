"""Where raw data comes from: one source a kind of place, chosen by asking each.

    open_source(location, options)   the source that reads a location, joined with validation and test files
    read_inputs(inputs, schema)      raw inputs of `predict` -> columns and a name for each row
    Joined                           main, validation and test data as one source

`guess` says what columns mean, `delimited` reads text, `stored` keeps what is larger than memory should hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from fathom.core.contract import Columns, Index, Schema, Source
from fathom.core.errors import DataError, FathomError, nearest
from fathom.core.recipe import Data
from fathom.core.registry import sources

__all__ = ["Joined", "open_source", "read_inputs"]


def open_source(location: Any, options: Data, like: Schema | None = None) -> Source:
    """The source that reads `location`.

    Args:
        location: name of a built-in set, file, folder, frame, arrays, torch Dataset or DataLoader.
        options: the recipe's table; paths in `validation` and `test` are joined.
        like: the schema of a trained model, where the columns must be read as they were in training.

    Raises:
        DataError: nothing reads it; names the nearest.
    """
    frames = _frames(location)
    main = _single(frames.pop("train", location), options, like)
    others = frames | {part: path for part in ("validation", "test") if isinstance(path := getattr(options, part), str)}
    return Joined(main, others, options, like) if others else main


def _frames(location: Any) -> dict[str, Any]:
    """Part -> frame, where a mapping gives the training frame and others; else nothing."""
    from fathom.sources.base import PARTS

    if not isinstance(location, Mapping) or not location or not set(location) <= set(PARTS):
        return {}
    parts = {PARTS[name]: frame for name, frame in location.items()}
    return parts if "train" in parts and all(hasattr(frame, "__arrow_c_stream__") for frame in parts.values()) else {}


def _called(part: str, place: Any) -> str:
    return place if isinstance(place, str) else f"the {part} frame"


def _single(location: Any, options: Data, like: Schema | None = None) -> Source:
    if isinstance(location, os.PathLike):
        location = os.fspath(location)
    if isinstance(location, str):
        location = os.path.expanduser(location)
    for entry in sorted(sources, key=lambda item: item.about.get("order", 50)):
        make: Any = entry.make
        if make.accepts(location, options):
            return _build(make, location, options, like)
    raise DataError(_not_read(location))


def _build(make: Any, location: Any, options: Data, like: Schema | None) -> Source:
    from fathom.sources.tables import Tables, reading_of

    if (moments := _moments_like(like)) is not None:
        return moments(location, options, like)
    if make is Tables and like is not None:
        return Tables(location, options, reading_of(like))
    made: Source = make(location, options)
    return made


def _moments_like(like: Schema | None) -> Any:
    """The source that makes series as a fitted schema has them; None where it has none."""
    from fathom.sources.entities import Entities
    from fathom.sources.series import SeriesTable

    series = [item for item in like.inputs.values() if item.kind == "series"] if like else []
    if not series:
        return None
    return SeriesTable if series[0].window else Entities


def _not_read(location: Any) -> str:
    """Why nothing reads `location`, and what was probably meant."""
    from fathom.sources.annotations import ENDINGS, folder_of
    from fathom.sources.builtin import NAMES
    from fathom.sources.guess import IMAGES
    from fathom.sources.tables import SUFFIXES

    tables = f"Known extensions: {', '.join(SUFFIXES)}, .txt (also .gz), .npz"
    known = f"{tables}; or a folder of pictures ({', '.join(IMAGES[:3])}, ...)."
    if not isinstance(location, str):
        return (
            f"A {type(location).__name__} cannot be read as data. Give a path, a frame, (x, y) arrays, a "
            "list of dicts, or "
            "a torch Dataset or DataLoader that gives (x, y)."
        )
    path = Path(location)
    if path.exists():
        kind = f"files that end in '{path.suffix}'" if path.suffix else "files without an extension"
        hint = " Unpack it first." if path.suffix in (".zip", ".tar", ".7z", ".rar", ".tgz") else ""
        hint = f" If it says what stands in pictures, give {folder_of(path)}." if path.suffix in ENDINGS else hint
        return f"{path} exists, but {kind} are not read.{hint} {known}"
    parent = path.parent
    siblings = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    names = list(NAMES) if len(path.parts) == 1 else []
    guess = nearest(path.name, [*names, *siblings])
    text = f"There is no file, folder or built-in set '{location}'."
    if not parent.is_dir():
        text += f" The folder {parent} does not exist."
    if guess:
        text += f" Did you mean '{guess if guess in names else parent / guess}'?"
    return f"{text} Built-in: {', '.join(NAMES)}."


class Joined(Source):
    """Main, validation and test data as one source, with the parts as given splits.

    Args:
        main: where training rows, types and kinds come from.
        others: "validation" and "test" -> path or frame.
        options: the recipe's table.
        like: see `open_source`.
    """

    def __init__(self, main: Source, others: Mapping[str, Any], options: Data, like: Schema | None = None) -> None:
        super().__init__(main.location, options)
        self.main = main
        self.others = dict(others)
        self._alone = options.model_copy(update={"validation": None, "test": None})
        self._like = like
        self._columns: Columns | None = None
        self._splits: dict[str, Index] = {}
        self._notes: list[str] = []
        for path in self.others.values():
            _single(path, self._alone)  # a path that cannot be read is told at once

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """Never: it is made from others."""
        return False

    def columns(self) -> Columns:
        """The rows of main, then validation, then test."""
        if self._columns is None:
            self._columns = self._read()
        return self._columns

    def schema(self) -> Schema:
        """The schema of main."""
        return self.main.schema()

    def given_splits(self) -> dict[str, Index]:
        """The parts, and what main names of itself beside them."""
        self.columns()
        return self._splits

    def notes(self) -> list[str]:
        """The notes of main, and how the parts were put together."""
        self.columns()
        return [*self.main.notes(), *self._notes]

    def _read(self) -> Columns:
        from fathom.sources.tables import Tables, align, reading_of, require
        from fathom.sources.texts import Texts

        first, schema = self.main.columns(), self.main.schema()
        reading = reading_of(self._like) if self._like else reading_of(schema, first)
        needed = list(dict.fromkeys(name for item in schema.fields().values() for name in item.columns))
        needed += [name for name in schema.special.values() if name not in needed]
        parts = {}
        for part, place in self.others.items():
            path, source = _called(part, place), _single(place, self._alone)
            if isinstance(source, Tables):
                source.reading = {**reading}
            parts[part] = source.columns()
            if isinstance(source, Tables):
                self._notes += [f"{path}: {note}" for note in source.reading_notes]
            require(parts[part], needed, path)
            if source.given_splits() and not isinstance(source, Texts):  # which are cut from a file, not named by it
                self._notes.append(f"{path} has parts of its own; all of its rows are {part} rows.")
        shared = [name for name in first if name in needed or all(name in part for part in parts.values())]
        pieces = [first.select(shared), *(part.select(shared) for part in parts.values())]
        try:
            joined = Columns.concatenate(align(pieces))
        except DataError as error:
            raise DataError(
                f"{self.location} and {', '.join(starmap(_called, self.others.items()))} do not fit together: {error}"
            ) from error
        self._splits = self._assign(first.rows, {part: columns.rows for part, columns in parts.items()})
        return joined

    def _assign(self, rows: int, sizes: Mapping[str, int]) -> dict[str, Index]:
        """The parts' rows; main gives the training rows, and the part that no file was given for."""
        own = dict(self.main.given_splits())
        splits = {"train": own.get("train", np.arange(rows))} | {k: v for k, v in own.items() if k not in sizes}
        start = rows
        for part, size in sizes.items():
            splits[part] = np.arange(start, start + size)
            start += size
            if part in own:
                self._notes.append(
                    f"{self.location} has a {part} part of {len(own[part])} rows; it is not used, since "
                    f"{_called(part, self.others[part])} was given."
                )
        return splits


def read_inputs(inputs: Sequence[Any], schema: Schema) -> tuple[Columns, list[str]]:
    """Raw inputs of `predict` as the columns that a fitted schema reads.

    Args:
        inputs: picture files, folders, tables, frames, arrays, dicts, or lists of values; for a model of one text
            also the texts themselves.
        schema: fitted.

    Returns:
        The input columns, and a name for each row: its file, or "row 3".

    Raises:
        DataError: an input does not exist, lacks a column, or cannot be read.
    """
    from fathom.sources.images import Images
    from fathom.sources.tables import Tables, align
    from fathom.sources.texts import text_rows

    kinds = [item.kind for item in schema.inputs.values()]
    items = [part for item in inputs for part in _unpacked(item, kinds)]
    if not items:
        raise DataError("Nothing came to predict. Give files, folders, dicts or lists of values.")
    if all(isinstance(item, int | float) for item in items):
        items = [items]  # the values of one row
    if kinds == ["text"]:
        return text_rows(items, schema)
    if "series" in kinds:
        return _read_series(items, schema)
    if kinds == ["image"] and not any(_is_tabular(item) for item in items):
        columns = Images.read_rows(items, schema)
    else:
        for item in items:
            _require_whole(item, schema)
            _require_table(item)
        if not any(_is_array(item) for item in items):
            parts = [Tables.read_one(item, schema, i) for i, item in enumerate(items)]
            return Columns.concatenate(align(parts)), _numbered(items, [part.rows for part in parts])
        columns = _rows(items, schema)
    return columns, _row_names(columns, kinds, items)


def _read_series(items: list[Any], schema: Schema) -> tuple[Columns, list[str]]:
    """The moments before each forecast, or rows that each have a series."""
    from fathom.sources.entities import read_entities
    from fathom.sources.images import require_file
    from fathom.sources.series import read_histories

    for item in items:
        if isinstance(item, str):
            require_file(Path(item))
    windowed = any(item.window for item in schema.inputs.values())
    return read_histories(items, schema) if windowed else read_entities(items, schema)


def _unpacked(item: Any, kinds: Sequence[str]) -> list[Any]:
    """A list of files, rows or arrays as its parts, and one row of a frame (a pandas Series) as a dict."""
    if isinstance(item, os.PathLike):
        return [os.fspath(item)]
    if hasattr(item, "to_dict") and getattr(item, "ndim", 2) == 1:
        return [{str(name): value for name, value in item.to_dict().items()}]
    if not isinstance(item, list | tuple) or not item:
        return [item]
    parts = [os.fspath(part) if isinstance(part, os.PathLike) else part for part in item]
    if all(isinstance(part, str) for part in parts):  # of a table it may be the words of one row
        return parts if kinds in (["image"], ["text"]) or all(map(_is_tabular, parts)) else [item]
    return parts if all(isinstance(part, Mapping) or _is_array(part) for part in parts) else [item]


def _numbered(items: Sequence[Any], counts: Sequence[int]) -> list[str]:
    """A name for each row: its number, after its file where several came."""
    several = len(items) > 1 and any(count != 1 or isinstance(item, str) for item, count in zip(items, counts, strict=True))
    if not several:
        return [f"row {row + 1}" for row in range(sum(counts))]
    places = [item if isinstance(item, str) else f"input {i + 1}" for i, item in enumerate(items)]
    return [f"{place} row {row + 1}" for place, count in zip(places, counts, strict=True) for row in range(count)]


def _rows(items: list[Any], schema: Schema) -> Columns:
    from fathom.sources.arrays import Arrays

    if not all(_is_array(item) for item in items):
        raise FathomError("Arrays and other inputs came together; give one or the other.")
    return Arrays.read_rows(items, schema)


def _is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray) or hasattr(item, "detach")


def _is_tabular(item: Any) -> bool:
    from fathom.sources.tables import SUFFIXES, suffix

    if isinstance(item, str):
        return suffix(Path(item)) in SUFFIXES
    return isinstance(item, Mapping) or hasattr(item, "__arrow_c_stream__")


def _require_whole(item: Any, schema: Schema) -> None:
    """Refuse a bare picture where a row is a picture and more."""
    from fathom.sources.guess import IMAGES

    pictures = [each.columns[0] for each in schema.inputs.values() if each.kind == "image"]
    if not pictures or not isinstance(item, str) or Path(item).suffix.lower() not in IMAGES:
        return
    others = [column for each in schema.inputs.values() if each.kind != "image" for column in each.columns]
    wanted = f"'{others[0]}'" + (f" and {len(others) - 1} more columns" if len(others) > 1 else "") if others else "another one"
    raise DataError(
        f"{item} is a picture alone, and this model reads {wanted} beside it. Give rows with both, as a table with the columns "
        f"{', '.join([*pictures, *others][:6])}."
    )


def _require_table(item: Any) -> None:
    from fathom.sources.images import require_file
    from fathom.sources.tables import SUFFIXES

    if isinstance(item, str):
        require_file(Path(item))
        if not _is_tabular(item) or Path(item).is_dir():
            raise DataError(
                f"{item} is no table, which this model reads. Known extensions: {', '.join(SUFFIXES)} (also .gz)."
            )


def _row_names(columns: Columns, kinds: Sequence[str], items: Sequence[Any]) -> list[str]:
    """The file of each row where rows are files, else its number."""
    if kinds == ["image"] and not any(_is_tabular(item) for item in items):
        column = next(iter(columns.values()))
        if not isinstance(column, np.ndarray):
            return [str(value) for value in column.to_pylist()]
    return [f"row {row + 1}" for row in range(columns.rows)]
