"""What each column is, from all of its values: the schema of a table, with a sentence for every guess.

    guess(columns, options, ...) -> Schema, notes

    inputs    numbers in one number field "numbers", words in one category field "categories", each picture in
              its own and each text in its own; row numbers, constants, names, dates and lists are left out, each
              with the reason
    targets   words, booleans and few whole numbers are classes; other numbers are numbers; several columns
              of 0 and 1, or a column of lists, are labels; a text beside texts is written from them
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
from fathom.core.tensors import Column, is_list
from fathom.sources.delimited import NUMBER, PADDED, shorten

DEFAULTS = Data.model_validate({})
KINDS = ("number", "category", "image", "labels", "text", "ignore")
TARGET_NAMES = ("target", "label", "class", "y")
FEW_INTEGERS = 20  # a whole-number target of at most this many values is a class
FEW_WORDS = 20  # text of at most this many different values is a category, whatever the number of rows
MOST_WORDS = 1_000
IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SEVERAL_WORDS = r"\S\s+\S|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]{2}"
MOST_SUMMED = 200  # numeric inputs among which two are sought that add up to the target
SUMMED_ROWS = 24  # rows that leave few pairs to look at closely
PURE_VALUES = 50  # a column of at most this many values is looked at for deciding the target alone
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
        codes: whether a target of the whole numbers 0 to K - 1 holds class codes, however many, as torch users write it.
        reading: of `Schema`.
    """

    where: str
    place: Callable[[int], str] = lambda row: f"row {row + 1}"
    known: Mapping[str, str] = field(default_factory=dict)
    target: Sequence[str] | None = None
    inputs: Sequence[str] | None = None
    codes: bool = False
    reading: Mapping[str, str] = field(default_factory=dict)


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
    special = special_columns(columns, options, where)
    notes: list[str] = []
    targets = _target_names(columns, options, setting, special, types, notes)
    types |= _written_from_texts(columns, options, setting, types, targets, special) if targets else {}
    told: list[str] = []
    target_kinds = {name: _target_kind(columns[name], name, types, setting, told) for name in targets}
    made = _make_targets(target_kinds, columns, options, types, told)
    notes += told if options.target != [] else []
    taken = {*targets, *special.values()}
    writes = "text" in target_kinds.values()
    input_kinds = _inputs(columns, options, setting, types, taken, notes, optional=writes)
    if writes:
        input_kinds = _only_texts(input_kinds, targets, options, where, notes)
    notes += _deciding(columns, input_kinds, target_kinds)
    inputs = make_inputs(input_kinds, options, where, "bytepair" if writes else "word")
    named = {_target_key(name, inputs): item for name, item in made.items()}
    order = tuple(name for name in columns if name not in taken)
    return Schema(inputs, named, special, order, dict(setting.reading)), notes


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
        if isinstance(columns[name], np.ndarray):
            _require_array_kind(columns[name], name, kind, f"data.types.{name}={kind} does not fit")
    return dict(options.types)


def _require_array_kind(column: np.ndarray, name: str, kind: str, fault: str, is_input: bool = False) -> None:
    """An array a row is a picture, or, as a target, one value a class; no other field reads all of it."""
    allowed = ("image", "ignore") if column.ndim > 2 else ("ignore",) if is_input else ("category", "labels", "ignore")
    if kind not in allowed:
        raise DataError(
            f"{fault}: '{name}' has an array of shape {column.shape[1:]} in each row, which can be "
            f"{' or '.join(allowed)}. Give numbers or words as columns of their own, one value a row."
        )


def special_columns(columns: Columns, options: Data, where: str) -> dict[str, str]:
    """The columns of group, time and weight.

    Raises:
        DataError: a name is unknown, or its column cannot have that part.
    """
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
    if options.target == []:
        return _known_label(columns, options, setting, special, types)
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


def _known_label(
    columns: Columns, options: Data, setting: Setting, special: Mapping[str, str], types: Mapping[str, str]
) -> list[str]:
    """Where nothing is to be predicted: the column that says what rows are, by the nature of the data or by its name."""
    if setting.target is not None:
        return [name for name in setting.target if name in columns]
    taken = {*special.values(), *(options.input or ()), *types}
    named = [name for wanted in TARGET_NAMES for name in columns if name.lower() == wanted and name not in taken]
    return [name for name in named[:1] if isinstance(columns[name], np.ndarray) or few(columns[name], 1) is None]


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
            raise DataError(f"'{name}' is the target and cannot be ignored (data.types.{name} or data.compare).")
        _require_variety(column, name, where)
        return kind
    if isinstance(column, np.ndarray):
        raise DataError(f"{where}: the target '{name}' holds {_type_name(column)}, which cannot be predicted yet.")
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
    if values is None and setting.codes and (classes := _codes(column)):
        notes.append(
            f"'{name}' holds the whole numbers 0 to {classes - 1}, each {_filled(column) // classes} times on average, "
            f"so they are taken as {classes} classes; data.types.{name}=number predicts the number instead."
        )
        return "category"
    whole = values is not None and all(float(value).is_integer() for value in values)
    if values is None or not whole or len(values) > _filled(column) / 2:
        _require_finite(column, name, setting)
        return "number"
    notes.append(
        f"'{name}' has {len(values)} different whole numbers, so they are taken as classes; "
        f"data.types.{name}=number predicts the number instead."
    )
    return "category"


def _codes(column: pa.ChunkedArray) -> int:
    """K where integers are 0 .. K - 1 without a gap, each met twice on average; else 0."""
    if not pa.types.is_integer(column.type) or column.null_count:
        return 0
    values = np.unique(column.to_numpy())
    return len(values) if values[0] == 0 and values[-1] == len(values) - 1 and 2 * len(values) <= len(column) else 0


def _text_target(column: pa.ChunkedArray, name: str, setting: Setting, notes: list[str]) -> str:
    values, filled = few(column, MOST_WORDS), _filled(column)
    if values is None or _are_many(values, filled):
        _refuse_mixture(column, name, setting, filled)
        count = f"more than {MOST_WORDS}" if values is None else f"{len(values)}"
        raise DataError(
            f"{setting.where}: the target '{name}' is text with {count} different values in {filled} "
            "rows, which are "
            f"no classes. Choose another --target, or set data.types.{name}=category (or =text, to write it)."
        )
    numeric = sum(_numeric_words(values))
    if 0 < numeric < len(values) and numeric >= len(values) / 2:
        notes.append(f"'{name}' mixes numbers and words; each of its {len(values)} values is a class.")
    return "category"


def _are_many(values: list[Any] | None, filled: int) -> bool:
    """Whether a text target has too many different values for classes."""
    return values is None or (len(values) > FEW_WORDS and len(values) > filled / 2)


def _written_from_texts(
    columns: Columns, options: Data, setting: Setting,
    types: Mapping[str, str], targets: Sequence[str], special: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """{target: "text"} where the one target is text of many values and what it is told from is text too."""
    name = targets[0]
    column = columns[name]
    if len(targets) > 1 or name in types or name in setting.known or isinstance(column, np.ndarray):
        return {}
    if not _is_text(column.type) or not _are_many(few(column, MOST_WORDS), _filled(column)) or not _is_prose(column):
        return {}
    try:
        kinds = set(_inputs(columns, options, setting, types, {name, *special.values()}, []).values())
    except DataError:  # told when the inputs are guessed
        return {}
    return {name: "text"} if "text" in kinds and kinds <= {"text", "category"} else {}


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
    kinds: Mapping[str, str], columns: Columns, options: Data, types: Mapping[str, str], notes: list[str]
) -> dict[str, Field]:
    """A field each; several 0/1 columns together are one field of labels, which one sentence then says of all."""
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
        notes[:] = [
            f"{shorten(binary)} hold 0 and 1, so they are predicted together as {len(binary)} labels; "
            f"data.types.{binary[0]}=category predicts each by itself."
        ]
    if len(together) == 1:
        raise DataError(f"'{together[0]}' is one yes-or-no column; data.types.{together[0]}=category predicts it.")
    writes = [name for name, kind in kinds.items() if kind == "text"]
    if writes and len(kinds) > 1:
        raise DataError(f"'{writes[0]}' is a text to be written, which stands alone; leave the other --target out.")
    made: dict[str, Field] = {}
    if together:
        made["labels"] = _make("labels", together, options)
    for name, kind in kinds.items():
        if name not in together:
            made[name] = _make(kind, [name], options, "bytepair")
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
    "words": "they are single words with many different values",
    "padded": "they are digits with zeros before them, which may be codes",
    "comma": "they are numbers with a decimal comma, which also separates the columns (write 1.5, or separate by semicolons)",
    "numerals": "they are numbers written as text",
    "date": "they are dates",
    "list": "they hold lists or records",
    "bytes": "they hold bytes that are no pictures",
}


def _inputs(
    columns: Columns, options: Data, setting: Setting,
    types: Mapping[str, str], taken: set[str], notes: list[str], optional: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Input column -> kind, in the order of the table; none where they are optional (a text learnt by itself)."""
    for name in options.input or ():
        if name not in columns:
            raise DataError(unknown("column", name, columns, f"{setting.where} (data.input)"))
        if name in taken:
            raise DataError(f"'{name}' cannot be an input: it is the target, group, time or weight.")
    wanted = options.input if options.input is not None else setting.inputs or list(columns)
    kinds: dict[str, str] = {}
    left: dict[str, list[str]] = {}
    numbered: list[str] = []
    for name in [name for name in wanted if name not in taken]:
        kind = types.get(name) or setting.known.get(name) or input_kind(columns[name], name, setting)
        if kind == "id" and _is_numeric(columns[name]):
            numbered.append(name)
        if options.input and kind in ("constant", "id") and _is_numeric(columns[name]):
            kind = "number"  # named by the user
        if isinstance(columns[name], np.ndarray):
            _require_array_kind(columns[name], name, kind, f"{setting.where}: '{name}' cannot be an input", True)
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
        if kind in ("constant", "id", "words", "padded", "numerals")
        else f"Left out, for {LEFT_OUT[kind]}: {shorten(names)}."
        for kind, names in left.items()
    ]
    if not kinds and not optional:
        reasons = "; ".join(f"{shorten(names, 3)}: {LEFT_OUT[kind]}" for kind, names in left.items())
        raise DataError(
            f"{setting.where} has no column to learn from{f' ({reasons})' if reasons else ''}. "
            "Give more columns, or state a kind with data.types.COLUMN=category."
        )
    return kinds


def _only_texts(
    kinds: Mapping[str, str], targets: Sequence[str], options: Data, where: str, notes: list[str]
) -> dict[str, str]:
    """The inputs that a text is written from, which are texts; the others are left out, and that is told."""
    others = [name for name, kind in kinds.items() if kind != "text"]
    texts = {name: kind for name, kind in kinds.items() if kind == "text"}
    if others and (options.input or not texts):
        raise DataError(
            f"{where}: the text '{targets[0]}' is written from texts, and {shorten(others)} is none. Name texts with "
            f"--input, set data.types.{others[0]}=text where it is one, or =ignore."
        )
    if others:
        notes.append(f"Left out, since '{targets[0]}' is written from texts: {shorten(others)}.")
    return texts


def _deciding(columns: Columns, inputs: Mapping[str, str], targets: Mapping[str, str]) -> list[str]:
    """A sentence about inputs of few values each of which goes with one class only, in every row."""
    notes = []
    for target, kind in targets.items():
        if kind not in ("category", "number") or isinstance(columns[target], np.ndarray):
            continue
        plain = [name for name, kind in inputs.items() if kind in ("number", "category")]
        notes += _adding_up(columns, plain, target)
        gives_away = _decides if kind == "category" else _copies
        found = [name for name in plain if gives_away(columns[name], columns[target])]
        if found:
            notes.append(
                f"{shorten(found)} alone decides '{target}' in every row. Where it is known only afterwards, leave it out "
                f"with data.types.{found[0]}=ignore."
            )
    return notes


def _adding_up(columns: Columns, names: Sequence[str], target: str) -> list[str]:
    """A sentence about two inputs whose sum or difference is the target in every row."""
    found = _sums(columns, [name for name in names if _is_numeric(columns[name])], target)
    if found is None:
        return []
    one, sign, other = found
    return [
        f"'{one}' {sign} '{other}' is '{target}' in every row, so the answer stands among the inputs. Where they are known only "
        f"afterwards, leave both out with data.types.{one}=ignore data.types.{other}=ignore."
    ]


def _sums(columns: Columns, names: Sequence[str], target: str) -> tuple[str, str, str] | None:
    """Two columns and the sign between them; a few rows leave few candidates, all rows settle them."""
    if not _is_numeric(columns[target]) or not 2 <= len(names) <= MOST_SUMMED:
        return None
    chosen = np.linspace(0, columns.rows - 1, min(SUMMED_ROWS, columns.rows)).astype(np.int64)
    few_rows = columns.take(np.unique(chosen))
    values = np.stack([_floats(few_rows[name]) for name in names], 1)  # (R, C)
    answer = _floats(few_rows[target])  # (R,)
    for sign, symbol in ((1.0, "+"), (-1.0, "-")):
        made = values[:, :, None] + sign * values[:, None, :]  # (R, C, C)
        fits = (np.abs(made - answer[:, None, None]) <= 1e-9 * np.abs(answer[:, None, None]) + 1e-12).all(0)
        for i, j in np.argwhere(fits).tolist():
            if i == j or (sign > 0 and i > j):
                continue
            first, second, whole = (_floats(columns[name]) for name in (names[i], names[j], target))
            if not (second == second[0]).all() and np.allclose(first + sign * second, whole, rtol=1e-9, atol=1e-12):
                return names[i], symbol, names[j]
    return None


def _floats(column: Column) -> np.ndarray:
    """(N,) float64, nan where missing."""
    assert isinstance(column, pa.ChunkedArray), "a numeric column"
    return np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")).to_numpy(), np.float64)


def _decides(column: Column, target: Column) -> bool:
    """Whether each of a few values, met ten times on average, goes with one class only."""
    if isinstance(column, np.ndarray) or isinstance(target, np.ndarray) or few(column[:2048], PURE_VALUES) is None:
        return False
    values = few(column, PURE_VALUES)
    if values is None or len(values) < 2 or len(column) < 10 * len(values):
        return False
    pairs = pa.table({"value": _text(column), "class": _text(target)}).drop_null().group_by(["value", "class"])
    found = pairs.aggregate([])
    classes = pc.count_distinct(found["class"]).as_py()
    return bool(classes > 1 and found.num_rows == pc.count_distinct(found["value"]).as_py())


def _copies(column: Column, target: Column) -> bool:
    """Whether a column holds the same numbers as the target; a thousand rows settle nearly every other one."""
    if isinstance(column, np.ndarray) or isinstance(target, np.ndarray):
        return False
    if not _is_numeric(column) or not _is_numeric(target):
        return False
    return all(
        bool(pc.all(pc.equal(column[:rows].cast(pa.float64()), target[:rows].cast(pa.float64()))).as_py())
        for rows in (1_000, len(target))
    )


def _remedy(kind: str) -> str:
    return "number" if kind in ("constant", "padded", "numerals") else "category"


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
    if names_pictures(column):
        return "image"
    distinct = values is not None and len(values) == filled > 2
    if values is not None and not distinct and len(values) <= max(FEW_WORDS, filled / 20):
        return "category"
    _refuse_mixture(column, name, setting, filled)
    if pc.all(pc.match_substring_regex(_text(column.slice(0, 1000)), PLAIN_DATE)).as_py():
        return "date"
    if _is_prose(column):
        return "text"
    if pc.all(pc.match_substring_regex(_text(column), NUMBER)).as_py():
        return _numerals(column)
    unique = distinct or (values is None and filled <= 1_000_000 and pc.count_distinct(_text(column)).as_py() == filled)
    return "id" if unique else "words"


def _numerals(column: pa.ChunkedArray) -> str:
    """Why numbers came as text."""
    if pc.any(pc.match_substring(_text(column), ",")).as_py():
        return "comma"
    return "padded" if pc.any(pc.match_substring_regex(_text(column), PADDED)).as_py() else "numerals"


def _is_prose(column: pa.ChunkedArray) -> bool:
    """Whether at least half of the cells hold several words."""
    known = _text(column).drop_null()
    several = pc.sum(pc.match_substring_regex(known, SEVERAL_WORDS)).as_py() or 0
    return bool(2 * several >= max(len(known), 1))


def names_pictures(column: pa.ChunkedArray) -> bool:
    """Whether every word of a column of text ends like the name of a picture file; looks at all of them."""
    first = _first(column)
    if first is None or not str(first).lower().endswith(IMAGES):
        return False
    endings = rf"(?i)({'|'.join(ending.replace('.', '[.]') for ending in IMAGES)})$"
    return bool(pc.all(pc.match_substring_regex(_text(column), endings)).as_py())


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


def make_inputs(kinds: Mapping[str, str], options: Data, where: str, level: str = "word") -> dict[str, Field]:
    """Fields of the inputs: pictures, then all numbers together, then all words together, then texts.

    Args:
        kinds: column -> kind.
        options: the recipe's table.
        where: what the user called the data, for errors.
        level: what a token of a text is, where nobody says so.
    """
    by_kind: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        by_kind.setdefault(kind, []).append(name)
    pictures = by_kind.pop("image", [])
    made = {name if len(pictures) > 1 else "image": _make("image", [name], options) for name in pictures}
    if "number" in by_kind:
        made["numbers"] = _make("number", by_kind.pop("number"), options)
    if "category" in by_kind:
        made["categories"] = _make("category", by_kind.pop("category"), options)
    for name in by_kind.pop("series", []):
        made[name] = _make("series", [name], options)
    for name in by_kind.pop("text", []):
        plain = name.lstrip(".") or "text"
        made[f"{plain} (text)" if plain in made else plain] = _make("text", [name], options, level)
    for kind, names in by_kind.items():
        raise DataError(
            f"{where}: '{names[0]}' cannot be an input of kind {kind}; allowed: number, category, image, text, ignore."
        )
    return made


def _make(kind: str, names: Sequence[str], options: Data, level: str = "") -> Field:
    given = dict(options.fields.get(kind, {}))
    if kind == "text" and level:
        given.setdefault("level", level)
    made: Field = fields[kind].make(list(names), **given)
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
