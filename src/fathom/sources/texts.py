"""Texts by themselves: a book, two files whose lines belong together, a file of dialogues.

    a .txt file               one column "text" of pieces; end to end they are the file. Learnt as it goes on, so the
                              last pieces are the test and those before them the validation
    a.de with --target a.en   a column each; line i of one is line i of the other
    .jsonl with lists of turns (turns, messages, dialogue, dialog)   a column "dialogue" of lists of strings

Each may end in .gz. The text is UTF-8, or UTF-16 with its mark; whatever else is refused with the byte that is wrong.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fathom.core.contract import Columns, Field, Index, Schema
from fathom.core.errors import DataError
from fathom.core.recipe import Data
from fathom.core.registry import fields, source
from fathom.core.tensors import is_list
from fathom.sources.base import Guessed
from fathom.sources.delimited import open_bytes, shorten, unpacking
from fathom.sources.guess import DEFAULTS, Setting, special_columns
from fathom.sources.images import require_file
from fathom.sources.tables import LINES, SUFFIXES, Tables, align, input_columns, suffix

TEXT = (".txt", ".text")
TURNS = ("dialogue", "dialog", "turns", "messages")
PIECE = 2_000  # characters of a piece of a book, about
PIECES = 40  # at least so many, where the book is short
SHARES = {"validation": 0.05, "test": 0.1}  # of a book


@source("texts", order=20, reads=".txt (a book); two files of aligned lines; .jsonl of dialogues (each also .gz)")
class Texts(Guessed):
    """A book, aligned lines, or dialogues."""

    def __init__(self, location: Any, options: Data) -> None:
        super().__init__(str(location), options)
        self.path = Path(location)
        self.partner = partner(self.path, options)

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """A .txt file, a file whose --target is another file, or a .jsonl file of dialogues."""
        if not isinstance(location, str | Path) or not Path(location).is_file():
            return False
        path, options = Path(location), options or DEFAULTS
        if suffix(path) in LINES:
            return _asks_for_dialogues(options) and turns_name(path) is not None
        return suffix(path) in TEXT or partner(path, options) is not None

    def _read(self) -> Columns:
        if self.partner is not None:
            return _aligned(self.path, self.partner)
        if suffix(self.path) in LINES:
            return self._dialogues()
        found = pieces(read_text(self.path))
        self._splits = _in_order(len(found), self.options)
        return Columns({"text": pa.chunked_array([pa.array(found, pa.string())])})

    def _dialogues(self) -> Columns:
        """The table with its turns as lists of strings, named "dialogue"."""
        columns = dict(Tables(self.path, DEFAULTS).columns())
        name = turns_name(self.path)
        assert name is not None, "only files with turns are read here"
        turns = columns.pop(name)
        assert isinstance(turns, pa.ChunkedArray), "JSON has no arrays of numbers of two dimensions"
        return Columns({"dialogue": _strings(turns, f"{self.path}: '{name}'"), **columns})

    def schema(self) -> Schema:
        """Aligned lines are guessed as a table; a book and dialogues are one target."""
        if self.partner is not None:
            return super().schema()
        columns = self.columns()
        if self._schema is None:
            self._schema = self._one_target(columns)
        return self._schema

    def _one_target(self, columns: Columns) -> Schema:
        name = "text" if "text" in columns and suffix(self.path) not in LINES else "dialogue"
        asked = [*(self.options.target or ()), *(self.options.input or ()), *self.options.types]
        if wrong := [word for word in asked if word not in columns and word not in TURNS]:
            raise DataError(
                f"{self.path} is learnt as it stands, as the column '{name}', and '{wrong[0]}' is none of its columns. "
                "Where lines belong to those of another file, give that file as --target."
            )
        if name == "text":
            made = self._field(name, level="character", continuous=True, length=128)
            return Schema({}, {name: made}, special_columns(columns, self.options, str(self.path)))
        left = [column for column in columns if column != name]
        special = special_columns(columns, self.options, str(self.path))
        if left := [column for column in left if column not in special.values()]:
            self._guessed = [f"Left out, since dialogues are learnt by themselves: {shorten(left)}."]
        return Schema({}, {name: self._field(name, level="bytepair", length=256)}, special)

    def _field(self, name: str, **defaults: Any) -> Field:
        made: Field = fields["text"].make([name], **{**defaults, **self.options.fields.get("text", {})})
        return made

    def _guess_options(self, columns: Columns) -> Data:
        return self.options.model_copy(update={"target": None})

    def _setting(self, columns: Columns) -> Setting:
        names = list(columns)
        return Setting(self.location, lambda row: f"line {row + 1}", dict.fromkeys(names, "text"), names[1:], names[:1])


# ---------------------------------------------------------------- a book


def read_text(path: Path) -> str:
    """All of a text file, its line ends as they are, without a byte order mark.

    Raises:
        DataError: the file is empty, holds NUL bytes, or bytes of no allowed encoding; names the first.
    """
    with unpacking(path), open_bytes(path) as file:
        data = file.read()
    encoding, name = "utf-8-sig", "UTF-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, name = "utf-16", "UTF-16"
    elif b"\0" in data:
        raise DataError(
            f"{path} holds a NUL byte at {_place(data, data.index(0))}, which text never does. Save it as UTF-8."
        )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no {name}: the byte 0x{data[min(error.start, len(data) - 1)]:02x} at {_place(data, error.start)} does "
            "not fit. Save it as UTF-8."
        ) from error
    if "\0" in text:
        raise DataError(f"{path} holds a NUL character at character {text.index(chr(0))}, which text never does.")
    if not text.strip():
        raise DataError(f"{path} is empty, so there is nothing to learn from.")
    return text


def _place(data: bytes, offset: int) -> str:
    line = data.count(b"\n", 0, offset) + 1
    return f"offset {offset} (line {line})"


def pieces(text: str) -> list[str]:
    """Pieces of about `PIECE` characters, cut at line ends where there are some; end to end they are the text."""
    size = max(1, min(PIECE, len(text) // PIECES))
    found, start = [], 0
    while start < len(text):
        stop = _stop(text, start, size)
        found.append(text[start:stop])
        start = stop
    return found


def _stop(text: str, start: int, size: int) -> int:
    """Where the piece ends: at the next line end, else at a blank, else where it is long enough."""
    if start + size >= len(text):
        return len(text)
    line = text.find("\n", start + size - 1, start + 2 * size)
    if line >= 0:
        return line + 1
    blank = text.rfind(" ", start, start + size)
    return blank + 1 if blank >= start else start + size


def _in_order(rows: int, options: Data) -> dict[str, Index]:
    """The first pieces train; the last are the test, and those before them the validation."""
    sizes = {}
    for part, share in SHARES.items():
        given = getattr(options, part)
        if not isinstance(given, str):  # rows of its own come from a file
            sizes[part] = max(1, round((given or share) * rows))
    start = rows - sum(sizes.values())
    if start < 1:
        raise DataError(f"{rows} pieces of text are too few to be divided. Give a longer text.")
    splits = {"train": np.arange(start)}
    for part, size in sizes.items():
        splits[part] = np.arange(start, start + size)
        start += size
    return splits


# ---------------------------------------------------------------- aligned lines


def partner(path: Path, options: Data) -> Path | None:
    """The file whose lines are the targets of `path`, as `--target` names it; None where it names no file.

    With --target train.en, the lines of valid.de belong to valid.en, if that is there.
    """
    if suffix(path) in SUFFIXES or not options.target or len(options.target) != 1:
        return None
    named = Path(options.target[0]).expanduser()
    found = next((place for place in (named, path.parent / named) if _is_other_file(place, path)), None)
    if suffix(named) and suffix(named) != suffix(path):
        same = _swapped(path, suffix(named))
        if same is not None and (found is None or _stem(same) != _stem(found)):
            return same
    return found


def _is_other_file(place: Path, path: Path) -> bool:
    return place.is_file() and not place.samefile(path)


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _swapped(path: Path, ending: str) -> Path | None:
    places = [path.with_name(f"{_stem(path)}{ending}{packed}") for packed in ("", ".gz")]
    return next((place for place in places if place.is_file()), None)


def _aligned(path: Path, other: Path) -> Columns:
    one, two = lines(read_text(path)), lines(read_text(other))
    if len(one) != len(two):
        raise DataError(
            f"{path} has {len(one):,} lines, and {other} has {len(two):,}. Line i of one must belong to line i of the other."
        )
    first, second = suffix(path).lstrip("."), suffix(other).lstrip(".")
    if not first or not second or first == second:
        first, second = "source", "target"
    return Columns({first: pa.array(one, pa.string()), second: pa.array(two, pa.string())})


def lines(text: str) -> list[str]:
    """The lines of a text, as every other tool counts them: cut at line feeds only."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found[:-1] if not found[-1] else found


# ---------------------------------------------------------------- dialogues


def _asks_for_dialogues(options: Data) -> bool:
    """Whether the user wants no other column of the file to be learnt."""
    return options.input is None and set(options.target or ()) <= set(TURNS) and not set(options.types) & set(TURNS)


def turns_name(path: Path) -> str | None:
    """The key of the first record whose value is a list of strings, or of {"role", "content"}."""
    with unpacking(path), open_bytes(path) as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        record = json.loads(first)
    except ValueError:
        return None  # the reader of JSON lines names the line
    if not isinstance(record, dict):
        return None
    return next((name for name in TURNS if name in record and _are_turns(record[name])), None)


def _are_turns(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(turn, str) or (isinstance(turn, dict) and isinstance(turn.get("content"), str)) for turn in value
    )


def _strings(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Lists of strings, from lists of strings or of records with a "content"."""
    if is_list(column.type) and pa.types.is_struct(column.type.value_type):
        column = pa.chunked_array(list(_contents(column)))
    inner = column.type.value_type if is_list(column.type) else column.type
    if not is_list(column.type) or not (pa.types.is_string(inner) or pa.types.is_null(inner)):
        raise DataError(f"{where} holds {column.type}; each row needs a list of strings, the turns of a dialogue.")
    return column


def _contents(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        content = pc.struct_field(chunk.flatten(), "content")
        counts = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
        yield pa.ListArray.from_arrays(pa.array(np.concatenate([[0], counts.cumsum()]), pa.int32()), content)


# ---------------------------------------------------------------- predict


def text_rows(inputs: list[Any], schema: Schema) -> tuple[Columns, list[str]]:
    """What comes to `predict`, for a model whose only input is a text.

    Args:
        inputs: texts, lists of texts, .txt files (a row each), tables, frames, dicts.
        schema: fitted.

    Returns:
        The input column, and a name for each row: its file, or "row 3".

    Raises:
        DataError: a file does not exist or is of another kind, a table lacks the column.
    """
    parts: list[Columns] = []
    names: list[str] = []
    for number, item in enumerate(inputs):
        part = _given(item, schema, number)
        named = isinstance(item, str) and _is_file(item) and suffix(Path(item)) in TEXT
        names += [str(item)] if named else [f"row {len(names) + i + 1}" for i in range(part.rows)]
        parts.append(part)
    return Columns.concatenate(align(parts)), names


def _given(item: Any, schema: Schema, number: int) -> Columns:
    (name,) = input_columns(schema)
    texts = _as_texts(item)
    if texts is not None:
        return Columns({name: pa.chunked_array([pa.array(texts, pa.string())])})
    return Tables.read_one(item, schema, number)


def _as_texts(item: Any) -> list[str | None] | None:
    """The texts that an input is; None where it is a table, a frame or a dict."""
    if isinstance(item, np.ndarray) and item.ndim <= 1:
        item = np.atleast_1d(item).tolist()
    if isinstance(item, list | tuple) and all(text is None or isinstance(text, str) for text in item):
        return list(item)
    if not isinstance(item, str):
        return None
    if not item.strip():
        raise DataError("An empty text came, which says nothing. Give a text, or a file of texts.")
    if not _is_file(item) and not _looks_like_file(item):
        return [item]
    require_file(Path(item))
    if suffix(Path(item)) in TEXT:
        return [read_text(Path(item))]
    if suffix(Path(item)) not in SUFFIXES:
        raise DataError(
            f"{item} is neither a text nor a table. Known extensions: {', '.join((*TEXT, *SUFFIXES))} (also .gz)."
        )
    return None


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # longer than a path may be, or with characters that no path has
        return False


def _looks_like_file(text: str) -> bool:
    """Whether one word ends as a file of data does: probably its name, misspelt."""
    return len(text.split()) == 1 and len(text) < 256 and suffix(Path(text.strip())) in (*TEXT, *SUFFIXES)
