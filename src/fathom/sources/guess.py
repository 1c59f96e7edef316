"""What each column is, from all of its values: the schema of a table, with a sentence for every guess.

    guess(columns, options, ...) -> Schema, notes

    inputs    numbers in one number field "numbers", words in one category field "categories", each picture in
              its own; row numbers, constants, free text, dates and lists are left out, each with the reason
    targets   words, booleans and few whole numbers are classes; other numbers are numbers; several columns
              of 0 and 1, or a column of lists, are labels
    special   group, time and weight leave the inputs

Whoever disagrees says so with `data.types.COLUMN=number`, which wins over every rule here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fathom.core.contract import Columns, Field, Schema
from fathom.core.errors import DataError, unknown
from fathom.core.recipe import Data
from fathom.core.registry import fields
from fathom.core.tensors import Column
from fathom.sources.delimited import shorten

DEFAULTS = Data.model_validate({})
KINDS = ("number", "category", "image", "labels", "ignore")
TARGET_NAMES = ("target", "label", "class", "y")
FEW_INTEGERS = 20  # a whole-number target of at most this many values is a class
FEW_WORDS = 20  # text of at most this many different values is a category, whatever the number of rows
MOST_WORDS = 1_000
NUMBER = r"^\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*$"
IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PLAIN_DATE = r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"


@dataclass(frozen=True)
class Setting:
    """What a source knows before it guesses.

    Args:
        where: what the user called the data, for errors.
        place: row number from 0 -> "line 17".
        known: column -> kind that needs no guess.
        target: columns that are the target by the nature of the data; None where it is guessed.
        inputs: columns that are inputs unless the user says otherwise; None for all.
    """

    where: str
    place: Callable[[int], str] = lambda row: f"row {row + 1}"
    known: Mapping[str, str] = field(default_factory=dict)
    target: Sequence[str] | None = None
    inputs: Sequence[str] | None = None


def guess(columns: Columns, options: Data, setting: Setting) -> tuple[Schema, list[str]]:
    """The unfitted schema of a table.

    Args:
        columns: all rows.
        options: the recipe's table; target, input, types, group, time, weight and fields are used.
        setting: what is known before.

    Returns:
        The schema, and sentences about what was guessed and left out.

    Raises:
        DataError: a name is unknown, the target is constant or missing, a column mixes numbers and words.
    """
    if columns.rows == 0:
        raise DataError(f"{setting.where} holds no rows, so there is nothing to learn from.")
    where = setting.where
    types = _types(columns, options, where)
    special = _special(columns, options, where)
    notes: list[str] = []
    targets = _target_names(columns, options, setting, special, types, notes)
    target_kinds = {name: _target_kind(columns[name], name, types, setting, notes) for name in targets}
    input_kinds = _inputs(columns, options, setting, types, {*targets, *special.values()}, notes)
    inputs = make_inputs(input_kinds, options, where)
    made = _make_targets(target_kinds, columns, options, types)
    return Schema(inputs, {_target_key(name, inputs): item for name, item in made.items()}, special), notes


def _target_key(name: str, inputs: Mapping[str, Field]) -> str:
    """The name of a target: its column, unless an input has it or Fathom's own entries begin so."""
    name = name.lstrip(".") or "target"
    return f"{name} (target)" if name in inputs else name


# ---------------------------------------------------------------- names


def _types(columns: Columns, options: Data, where: str) -> dict[str, str]:
    for name, kind in options.types.items():
        if name not in columns:
            raise DataError(unknown("column", name, columns, f"{where} (data.types)"))
        if kind not in KINDS:
            raise DataError(unknown("kind", kind, KINDS, f"data.types.{name}"))
    return dict(options.types)


def _special(columns: Columns, options: Data, where: str) -> dict[str, str]:
    """The columns of group, time and weight."""
    special = {}
    for part in ("group", "time", "weight"):
        name = getattr(options, part)
        if name is None:
            continue
        if name not in columns:
            raise DataError(unknown("column", name, columns, f"{where} (data.{part})"))
        special[part] = name
    if "weight" in special and not _is_numeric(columns[special["weight"]]):
        raise DataError(
            f"{where}: data.weight needs a column of numbers; '{special['weight']}' holds "
            f"{_type_name(columns[special['weight']])}."
        )
    if "time" in special:
        _require_order(columns[special["time"]], special["time"], where)
    return special


def _require_order(column: Column, name: str, where: str) -> None:
    """Text in another form than YYYY-MM-DD has no certain order."""
    if isinstance(column, np.ndarray):
        raise DataError(f"{where}: data.time needs one value a row; '{name}' holds an array a row.")
    kind = column.type
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{where}: data.time needs a moment in every row; '{name}' is missing in row {row + 1}.")
    if not (_is_numeric(column) or pa.types.is_temporal(kind)):
        first = column[0].as_py()
        raise DataError(
            f"{where}: data.time needs numbers or dates whose order is certain; '{name}' holds text such as "
            f"'{first}'. Write it as YYYY-MM-DD or YYYY-MM-DD HH:MM."
        )


def _target_names(
    columns: Columns, options: Data, setting: Setting,
    special: Mapping[str, str], types: Mapping[str, str], notes: list[str],
) -> list[str]:  # fmt: skip
    if options.target is not None:
        for name in options.target:
            if name not in columns:
                raise DataError(unknown("column", name, columns, f"{setting.where} (data.target)"))
            if name in special.values():
                raise DataError(f"'{name}' cannot be the target and {_part_of(name, special)} at once.")
        return list(dict.fromkeys(options.target))
    if setting.target is not None:
        return list(setting.target)
    taken = {
        *special.values(),
        *(options.input or ()),
        *(name for name, kind in types.items() if kind == "ignore"),
    }
    free = [name for name in columns if name not in taken]
    if not free:
        raise DataError(f"{setting.where} has no column left to predict. Name one with --target COLUMN.")
    by_name = [name for wanted in TARGET_NAMES for name in free if name.lower() == wanted]
    target = (by_name or [free[-1]])[0]
    how = "by its name" if by_name else "it is the last column"
    notes.append(f"The target is '{target}' ({how}); choose another with --target COLUMN.")
    return [target]


def _part_of(name: str, special: Mapping[str, str]) -> str:
    return next(f"data.{part}" for part, column in special.items() if column == name)


# ---------------------------------------------------------------- targets


def _target_kind(column: Column, name: str, types: Mapping[str, str], setting: Setting, notes: list[str]) -> str:
    """The kind of one target.

    Raises:
        DataError: nothing can be learnt from it.
    """
    where = setting.where
    if name in types or name in setting.known:
        kind = types.get(name) or setting.known[name]
        if kind == "ignore":
            raise DataError(f"'{name}' is the target and cannot be ignored (data.types.{name}).")
        _require_variety(column, name, where)
        return kind
    if isinstance(column, np.ndarray):
        return "number"
    _require_variety(column, name, where)
    if is_list(column.type):
        return "labels"
    if pa.types.is_boolean(column.type):
        return "category"
    if _is_text(column.type):
        return _text_target(column, name, setting, notes)
    if not _is_numeric(column):
        raise DataError(f"{where}: the target '{name}' holds {_type_name(column)}, which cannot be predicted yet.")
    values = few(column, FEW_INTEGERS)
    whole = values is not None and all(float(value).is_integer() for value in values)
    if values is None or not whole or len(values) > _filled(column) / 2:
        _require_finite(column, name, setting)
        return "number"
    notes.append(
        f"'{name}' has {len(values)} different whole numbers, so they are taken as classes; "
        f"data.types.{name}=number predicts the number instead."
    )
    return "category"


def _text_target(column: pa.ChunkedArray, name: str, setting: Setting, notes: list[str]) -> str:
    values, filled = few(column, MOST_WORDS), _filled(column)
    if values is None or (len(values) > FEW_WORDS and len(values) > filled / 2):
        _refuse_mixture(column, name, setting, filled)
        count = f"more than {MOST_WORDS}" if values is None else f"{len(values)}"
        raise DataError(
            f"{setting.where}: the target '{name}' is text with {count} different values in {filled} "
            "rows, which are "
            f"no classes. Choose another --target, or set data.types.{name}=category."
        )
    numeric = sum(_numeric_words(values))
    if 0 < numeric < len(values) and numeric >= len(values) / 2:
        notes.append(f"'{name}' mixes numbers and words; each of its {len(values)} values is a class.")
    return "category"


def _require_variety(column: Column, name: str, where: str) -> None:
    if isinstance(column, np.ndarray):
        if len(column) > 1 and bool((column == column[:1]).all()):
            raise DataError(f"{where}: the target '{name}' is the same in every row; there is nothing to learn.")
        return
    if _all_missing(column):
        raise DataError(f"{where}: the target '{name}' has no value in any row. Choose another with --target COLUMN.")
    if is_list(column.type):
        return
    values = few(column.drop_null(), 1)
    if values is not None:
        raise DataError(
            f"{where}: the target '{name}' is '{values[0]}' in every row; there is nothing to learn. "
            "Choose another with --target COLUMN."
        )


def _make_targets(
    kinds: Mapping[str, str], columns: Columns, options: Data, types: Mapping[str, str]
) -> dict[str, Field]:
    """A field each; several 0/1 columns together are one field of labels."""
    together = [
        name
        for name, kind in kinds.items()
        if kind == "labels" and not (isinstance(c := columns[name], np.ndarray) or is_list(c.type))
    ]
    binary = [
        name for name, kind in kinds.items() if kind == "category" and name not in types and _is_binary(columns[name])
    ]
    if len(binary) > 1 and len(binary) == len(kinds):
        together = binary
    if len(together) == 1:
        raise DataError(f"'{together[0]}' is one yes-or-no column; data.types.{together[0]}=category predicts it.")
    made: dict[str, Field] = {}
    if together:
        made["labels"] = _make("labels", together, options)
    for name, kind in kinds.items():
        if name not in together:
            made[name] = _make(kind, [name], options)
    return made


def _is_binary(column: Column) -> bool:
    if isinstance(column, np.ndarray) or not (_is_numeric(column) or pa.types.is_boolean(column.type)):
        return False
    values = few(column, 2)
    return values is not None and {float(value) for value in values} <= {0.0, 1.0}


# ---------------------------------------------------------------- inputs


LEFT_OUT = {
    "empty": "they hold no value",
    "constant": "every value is the same",
    "id": "they number or name the rows",
    "text": "they are text with many different values",
    "date": "they are dates",
    "list": "they hold lists or records",
    "bytes": "they hold bytes that are no pictures",
}


def _inputs(
    columns: Columns, options: Data, setting: Setting,
    types: Mapping[str, str], taken: set[str], notes: list[str],
) -> dict[str, str]:  # fmt: skip
    """Input column -> kind, in the order of the table."""
    for name in options.input or ():
        if name not in columns:
            raise DataError(unknown("column", name, columns, f"{setting.where} (data.input)"))
        if name in taken:
            raise DataError(f"'{name}' cannot be an input: it is the target, group, time or weight.")
    wanted = options.input or setting.inputs or list(columns)
    kinds: dict[str, str] = {}
    left: dict[str, list[str]] = {}
    numbered: list[str] = []
    for name in [name for name in wanted if name not in taken]:
        kind = types.get(name) or setting.known.get(name) or input_kind(columns[name], name, setting)
        if kind == "id" and _is_numeric(columns[name]):
            numbered.append(name)
        if options.input and kind in ("constant", "id") and _is_numeric(columns[name]):
            kind = "number"  # named by the user
        if kind in LEFT_OUT:
            left.setdefault(kind, []).append(name)
        elif kind != "ignore":
            kinds[name] = kind
    if not kinds and numbered:
        kinds = dict.fromkeys(numbered, "number")  # a count is all there is to learn from
        left.pop("id", None)
    if options.input and left:
        kind, names = next(iter(left.items()))
        raise DataError(
            f"{setting.where}: {shorten(names)} cannot be an input, for {LEFT_OUT[kind]}. "
            f"Leave it out of data.input, or set data.types.{names[0]}=category."
        )
    notes += [
        f"Left out, for {LEFT_OUT[kind]}: {shorten(names)} (data.types.{names[0]}={_remedy(kind)} uses it)."
        if kind in ("constant", "id", "text")
        else f"Left out, for {LEFT_OUT[kind]}: {shorten(names)}."
        for kind, names in left.items()
    ]
    if not kinds:
        reasons = "; ".join(f"{shorten(names, 3)}: {LEFT_OUT[kind]}" for kind, names in left.items())
        raise DataError(
            f"{setting.where} has no column to learn from{f' ({reasons})' if reasons else ''}. "
            "Give more columns, or state a kind with data.types.COLUMN=category."
        )
    return kinds


def _remedy(kind: str) -> str:
    return "number" if kind == "constant" else "category"


def input_kind(column: Column, name: str, setting: Setting) -> str:
    """The kind of an input column, or why it is left out (a key of `LEFT_OUT`).

    Raises:
        DataError: the column mixes numbers and words, or holds an infinite number.
    """
    if isinstance(column, np.ndarray):
        return "image" if column.ndim >= 3 else "number"
    kind = column.type
    if _all_missing(column):
        return "empty"
    if pa.types.is_boolean(kind):
        return "constant" if _is_constant(column) else "category"
    if _is_numeric(column):
        return _numeric_input(column, name, setting)
    if _is_text(kind):
        return _text_input(column, name, setting)
    if pa.types.is_temporal(kind):
        return "date"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "image" if is_picture(_first(column)) else "bytes"
    return "list"


def _numeric_input(column: pa.ChunkedArray, name: str, setting: Setting) -> str:
    ends = pc.min_max(column).as_py()
    low, high = ends["min"], ends["max"]
    if low == high and _is_constant(column):
        return "constant"
    _require_finite(column, name, setting, (low, high))
    whole = pa.types.is_integer(column.type) and column.null_count == 0
    spans = whole and low in (0, 1) and high - low + 1 == len(column) >= FEW_INTEGERS
    return "id" if spans and _is_permutation(column, int(low)) else "number"


def _is_permutation(column: pa.ChunkedArray, low: int) -> bool:
    seen = np.zeros(len(column), bool)
    for chunk in column.chunks:
        seen[chunk.to_numpy(zero_copy_only=False).astype(np.int64) - low] = True
    return bool(seen.all())


def _text_input(column: pa.ChunkedArray, name: str, setting: Setting) -> str:
    values, filled = few(column, MOST_WORDS), _filled(column)
    if values is not None and len(values) == 1 and column.null_count == 0:
        return "constant"
    if (
        values is not None
        and str(values[0]).lower().endswith(IMAGES)
        and all(str(v).lower().endswith(IMAGES) for v in values)
    ):
        return "image"
    distinct = values is not None and len(values) == filled > 2
    if values is not None and not distinct and len(values) <= max(FEW_WORDS, filled / 20):
        return "category"
    first = str(_first(column))
    if values is None and first.lower().endswith(IMAGES):
        return "image"
    _refuse_mixture(column, name, setting, filled)
    if pc.all(pc.match_substring_regex(_text(column.slice(0, 1000)), PLAIN_DATE)).as_py():
        return "date"
    unique = distinct or (values is None and filled <= 1_000_000 and pc.count_distinct(_text(column)).as_py() == filled)
    return "id" if unique and len(first.split()) == 1 else "text"


def _refuse_mixture(column: pa.ChunkedArray, name: str, setting: Setting, filled: int) -> None:
    """Name the word that spoils a column of numbers: nine of ten cells are numbers, or half and few words."""
    text = _text(column)
    numeric = pc.fill_null(pc.match_substring_regex(text, NUMBER), True)
    odd = text.filter(pc.invert(numeric))
    share = 1 - len(odd) / max(filled, 1)
    if not len(odd) or share < 0.5 or (share < 0.9 and few(odd, FEW_WORDS) is None):
        return
    row = pc.index(numeric, False).as_py()
    raise DataError(
        f"{setting.where}, {setting.place(row)}: column '{name}' holds numbers, but '{odd[0].as_py()}' came "
        f"({len(odd)} of {filled} cells are no numbers). Mend or empty them, or set "
        f"data.types.{name}=category or =ignore."
    )


def _require_finite(column: pa.ChunkedArray, name: str, setting: Setting, ends: tuple[Any, Any] | None = None) -> None:
    if not pa.types.is_floating(column.type):
        return
    low, high = ends or tuple(pc.min_max(column).as_py().values())
    if low is None or (np.isfinite(low) and np.isfinite(high)) or (np.isnan(low) and np.isnan(high)):
        return
    row = pc.index(pc.fill_null(pc.is_inf(column), False), True).as_py()
    if row < 0:
        return
    raise DataError(
        f"{setting.where}, {setting.place(row)}: column '{name}' holds an infinite or too large number. "
        f"Mend or empty the cell, or set data.types.{name}=ignore."
    )


def make_inputs(kinds: Mapping[str, str], options: Data, where: str) -> dict[str, Field]:
    """Fields of the inputs: pictures, then all numbers together, then all words together."""
    by_kind: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        by_kind.setdefault(kind, []).append(name)
    pictures = by_kind.pop("image", [])
    made = {name if len(pictures) > 1 else "image": _make("image", [name], options) for name in pictures}
    if "number" in by_kind:
        made["numbers"] = _make("number", by_kind.pop("number"), options)
    if "category" in by_kind:
        made["categories"] = _make("category", by_kind.pop("category"), options)
    for kind, names in by_kind.items():
        raise DataError(
            f"{where}: '{names[0]}' cannot be an input of kind {kind}; allowed: number, category, image, ignore."
        )
    return made


def _make(kind: str, names: Sequence[str], options: Data) -> Field:
    made: Field = fields[kind].make(list(names), **options.fields.get(kind, {}))
    return made


# ---------------------------------------------------------------- values


def few(column: pa.ChunkedArray, most: int) -> list[Any] | None:
    """The different values in the order of their first row, or None where there are more than `most`."""
    if pa.types.is_dictionary(column.type) and column.num_chunks > 1:
        column = column.unify_dictionaries()
    found: dict[Any, None] = {}
    for start in range(0, len(column), 65_536):
        part = column.slice(start, 65_536).unique()
        if len(part) > most + 1:
            return None
        found.update(dict.fromkeys(v for v in part.to_pylist() if v is not None and v == v))
        if len(found) > most:
            return None
    return list(found)


def _is_numeric(column: Column) -> bool:
    if isinstance(column, np.ndarray):
        return False
    kind = column.type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether each value is a list."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _filled(column: pa.ChunkedArray) -> int:
    return int(len(column) - column.null_count)


def _all_missing(column: pa.ChunkedArray) -> bool:
    if column.null_count == len(column):
        return True
    return pa.types.is_floating(column.type) and bool(pc.all(pc.is_nan(column)).as_py())


def _is_constant(column: pa.ChunkedArray) -> bool:
    if column.null_count:
        return False  # that a value is missing may say something
    if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
        return False
    values = few(column, 1)
    return values is not None


def _first(column: pa.ChunkedArray) -> Any:
    """The first value that is not missing."""
    for start in range(0, len(column), 1024):
        part = column.slice(start, 1024).drop_null()
        if len(part):
            return part[0].as_py()
    return None


def _numeric_words(values: Sequence[Any]) -> list[bool]:
    flags: list[bool] = pc.match_substring_regex(pa.array([str(value) for value in values]), NUMBER).to_pylist()
    return flags


def _type_name(column: Column) -> str:
    if isinstance(column, np.ndarray):
        return "an array a row"
    return "text" if _is_text(column.type) else str(column.type)


def is_picture(value: Any) -> bool:
    """Whether bytes begin like an encoded picture."""
    if not isinstance(value, bytes):
        return False
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
    return value.startswith(starts) or (value[:4] == b"RIFF" and value[8:12] == b"WEBP")
