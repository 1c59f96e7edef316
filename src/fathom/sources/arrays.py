"""Arrays: what people already hold in memory, and .npz files.

    (x, y)                             numpy arrays, torch tensors or lists
    {"train": (x, y), "test": (x, y)}  with given splits
    {"age": [...], "y": [...]}         named columns
    a torch Dataset or DataLoader      read once, row by row
    file.npz                           x and y, or x_train, y_train, x_test, y_test

How an array is read:
    (N, H, W), (N, H, W, C), (N, C, H, W)  pictures, C in 1, 3, 4; of two fitting ones that with equal sides
    (N, K)          K numbers a row; as a target one-hot or soft rows, labels of 0 and 1, or K numbers
    0..255, 0..1    whole numbers, and exact multiples of 1/255, become bytes; other numbers stay as they are
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fathom.core.contract import Columns, Index, Schema, Source
from fathom.core.errors import DataError
from fathom.core.recipe import Data
from fathom.core.registry import source
from fathom.sources.guess import FEW_INTEGERS, IMAGES, Setting, guess

PARTS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
NAMES = (
    ("x", "y"),
    ("images", "labels"),
    ("data", "target"),
    ("data", "labels"),
    ("features", "labels"),
    ("x", "labels"),
)
SLICE = 1 << 24  # values looked at at once
PROBED = 8  # items of a dataset that are read again


@source("arrays", order=10, reads="numpy arrays, torch tensors, Datasets and DataLoaders, lists, .npz files")
class Arrays(Source):
    """Arrays, tensors, lists, a torch Dataset or DataLoader, .npz files."""

    def __init__(self, location: Any, options: Data) -> None:
        is_path = isinstance(location, str | Path)
        super().__init__(str(location) if is_path else "the arrays", options)
        self._given = location
        self._columns: Columns | None = None
        self._splits: dict[str, Index] = {}
        self._known: dict[str, str] = {}
        self._target: list[str] | None = None
        self._schema: Schema | None = None
        self._notes: list[str] = []
        self._guessed: list[str] = []

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """An .npz file, or anything that is neither a path, a frame nor a list of records."""
        if isinstance(location, str | Path):
            return Path(location).suffix.lower() == ".npz" and Path(location).is_file()
        if hasattr(location, "__arrow_c_stream__") or location is None:
            return False
        if isinstance(location, list) and location and isinstance(location[0], Mapping):
            return False
        return (
            isinstance(location, tuple | list | Mapping | np.ndarray)
            or _is_dataset(location)
            or hasattr(location, "numpy")
        )

    def columns(self) -> Columns:
        """All rows."""
        if self._columns is None:
            self._columns = self._read()
        return self._columns

    def schema(self) -> Schema:
        """The guessed kinds."""
        columns = self.columns()
        if self._schema is None:
            setting = Setting(self.location, known=self._known, target=self._target)
            self._schema, self._guessed = guess(columns, self.options, setting)
        return self._schema

    def given_splits(self) -> dict[str, Index]:
        """The parts that were given by name."""
        self.columns()
        return self._splits

    def notes(self) -> list[str]:
        """How layouts and ranges were read."""
        self.schema()
        return [*self._notes, *self._guessed]

    def _read(self) -> Columns:
        parts = _parts(self._given, self.location)
        if set(parts) != {""}:
            stop = list(itertools.accumulate(_rows(pair, name) for name, pair in parts.items()))
            starts = [0, *stop[:-1]]
            self._splits = {name: np.arange(a, b) for name, a, b in zip(parts, starts, stop, strict=True)}
        pairs = list(parts.values())
        inputs, targets = (_join([pair[i] for pair in pairs], name) for i, name in ((0, "x"), (1, "y")))
        return self._named(inputs, targets)

    def _named(self, inputs: Any, targets: Any) -> Columns:
        """Columns by name, from x and y or from mappings of them."""
        found: dict[str, Any] = {}
        by_name = dict(inputs) if isinstance(inputs, Mapping) else {"x": inputs}
        for name, value in by_name.items():
            found |= self._input(name, value, alone=not isinstance(inputs, Mapping))
        names = set(found)
        for name, value in (dict(targets) if isinstance(targets, Mapping) else {"y": targets}).items():
            if value is not None:
                found |= self._make_target(name, value)
        self._target = [name for name in found if name not in names] or None
        if self._target is None and not isinstance(inputs, Mapping):
            raise DataError("x came without y. Give both, as in fit((x, y)).")
        lengths = {name: len(column) for name, column in found.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(
                f"{name} has {length}" for name, length in list(lengths.items())[:1] + list(lengths.items())[-1:]
            )
            raise DataError(f"{self.location}: the arrays differ in length: {shown} rows. Give one y for each x.")
        return Columns(found)

    def _input(self, name: str, value: Any, alone: bool) -> dict[str, Any]:
        if isinstance(value, list) and value and isinstance(value[0], str | Path):
            paths = [str(item) for item in value]
            if all(path.lower().endswith(IMAGES) for path in paths):
                name = "image" if alone else name
                self._known[name] = "image"
            return {name: np.array(paths, object)}
        array = to_array(value, name)
        if array.ndim >= 3:
            column = "image" if alone else name
            self._known[column] = "image"
            return {column: pictures(array, name, self._notes)}
        if array.ndim == 2:
            stem = name if alone else f"{name}."
            return {f"{stem}{i}": _plain(array[:, i]) for i in range(array.shape[1])}
        return {f"{name}0" if alone else name: _plain(array)}

    def _make_target(self, name: str, value: Any) -> dict[str, Any]:
        if isinstance(value, list) and any(isinstance(item, list | tuple) for item in value):
            uneven = len({len(item) for item in value}) > 1
            if uneven or any(isinstance(word, str) for item in value for word in item):
                self._known[name] = "labels"
                return {name: [list(item) for item in value]}
        array = to_array(value, name)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim == 1:
            if _is_class(array):
                self._known[name] = "category"
            return {name: _plain(array)}
        if array.ndim > 2:
            raise DataError(
                f"The target {name} has shape {array.shape}; give one value a row (N,) or one row of values (N, K)."
            )
        return self._wide_target(name, array)

    def _wide_target(self, name: str, array: np.ndarray) -> dict[str, Any]:
        """(N, K): rows that sum to 1 are classes, 0 and 1 are labels, others are K numbers."""
        sums = array.sum(1, dtype=np.float64) if array.dtype.kind in "biuf" else np.zeros(0)
        width = array.shape[1]
        if array.dtype.kind in "biuf" and (array >= 0).all() and np.abs(sums - 1).max() < 1e-4:
            self._known[name] = "category"
            self._notes.append(f"Each row of {name} sums to 1, so it says the shares of {width} classes.")
            return {name: array.astype(np.float32)}
        if array.dtype.kind in "biuf" and np.isin(array, (0, 1)).all():
            self._known[name] = "labels"
            self._notes.append(f"{name} holds 0 and 1 with several in a row, so it is {width} labels at once.")
            return {name: array.astype(np.float32)}
        self._known |= {f"{name}{i}": "number" for i in range(width)} if array.dtype.kind in "iuf" else {}
        return {f"{name}{i}": _plain(array[:, i]) for i in range(width)}

    @classmethod
    def read_rows(cls, inputs: list[Any], schema: Schema) -> Columns:
        """Arrays to the input columns of a fitted schema: one row an item, or many in an array of one "
        "dimension more."""
        names = list(dict.fromkeys(name for item in schema.inputs.values() for name in item.columns))
        picture = next(iter(schema.inputs.values()))
        if len(names) == 1 and picture.kind == "image":
            rows = [
                _picture_rows(np.asarray(to_array(item, f"row {i + 1}")), f"row {i + 1}", picture.shape[0])
                for i, item in enumerate(inputs)
            ]
            if len({part.shape[1:] for part in rows}) > 1:
                raise DataError("The pictures have different shapes; give arrays of one shape, or files.")
            return Columns({names[0]: np.concatenate(rows)})
        blocks = [np.atleast_2d(to_array(item, f"row {i + 1}")) for i, item in enumerate(inputs)]
        for i, block in enumerate(blocks):
            if block.shape[1] != len(names):
                raise DataError(f"row {i + 1} has {block.shape[1]} values; the model reads {len(names)}.")
        table = np.concatenate(blocks)
        return Columns({name: _plain(table[:, i]) for i, name in enumerate(names)})


def _picture_rows(array: np.ndarray, name: str, channels: int) -> np.ndarray:
    """(H, W), (H, W, C), (C, H, W) or many of them -> (N, ...). Three dimensions are many pictures where they are grey."""
    deep = (1, 3, 4) if channels == 3 else (1,)
    one = array.ndim == 2 or (array.ndim == 3 and (array.shape[-1] in deep or array.shape[0] in deep))
    return pictures(array[None] if one else array, name, [])


# ---------------------------------------------------------------- what came


def _parts(given: Any, where: str) -> dict[str, tuple[Any, Any]]:
    """Part -> (x, y); the part "" where no splits are given."""
    if isinstance(given, str | Path):
        return _npz(Path(given))
    if isinstance(given, Mapping) and given and set(given) <= set(PARTS):
        return {PARTS[name]: _pair(value, f"{where} ({name})") for name, value in given.items()}
    return {"": _pair(given, where)}


def _pair(given: Any, where: str) -> tuple[Any, Any]:
    if _is_dataset(given):
        return read_dataset(given)
    if isinstance(given, Mapping):
        if {name.lower() for name in given} == {"x", "y"}:
            by_name = {name.lower(): value for name, value in given.items()}
            return by_name["x"], by_name["y"]
        return given, None
    if isinstance(given, tuple | list) and len(given) == 2:
        return given[0], given[1]
    count = f"{len(given)} arrays" if isinstance(given, tuple | list) else f"one {type(given).__name__}"
    raise DataError(f"{where}: (x, y) is expected, but {count} came. Give fit((x, y)) with one y for each row of x.")


def _rows(pair: tuple[Any, Any], name: str) -> int:
    x = next(iter(pair[0].values())) if isinstance(pair[0], Mapping) else pair[0]
    y = next(iter(pair[1].values()), None) if isinstance(pair[1], Mapping) else pair[1]
    if y is not None and len(x) != len(y):
        raise DataError(f"{name}: x has {len(x)} rows and y has {len(y)}. Give one y for each x.")
    return len(x)


def _join(values: Sequence[Any], name: str) -> Any:
    """The parts' arrays one after the other."""
    if len(values) == 1 or values[0] is None:
        return values[0]
    if isinstance(values[0], Mapping):
        return {key: _join([value[key] for value in values], f"{name}.{key}") for key in values[0]}
    arrays = [to_array(value, name) for value in values]
    if len({array.shape[1:] for array in arrays}) > 1:
        raise DataError(f"The splits differ in the shape of {name}: {', '.join(str(array.shape) for array in arrays)}.")
    return np.concatenate(arrays)


def _npz(path: Path) -> dict[str, tuple[Any, Any]]:
    """The arrays of an .npz file, paired by their names; objects are never unpickled."""
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            held = {name.lower(): file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no readable .npz file of plain arrays: {error}.") from error
    parts: dict[str, tuple[Any, Any]] = {}
    for part, split in [("", ""), *PARTS.items()]:
        for x, y in NAMES:
            for x_name, y_name in (
                ((f"{x}_{part}", f"{y}_{part}"), (f"{part}_{x}", f"{part}_{y}")) if part else ((x, y),)
            ):
                if x_name in held and y_name in held:
                    parts.setdefault(split, (held[x_name], held[y_name]))
    if not parts:
        raise DataError(
            f"{path} holds {', '.join(held) or 'nothing'}; x and y are expected, or x_train, y_train, "
            "x_test and y_test."
        )
    return parts if len(parts) == 1 or "" not in parts else {"": parts[""]}


def to_array(value: Any, name: str) -> np.ndarray:
    """A numpy array of numbers, booleans or words.

    Raises:
        DataError: rows of unequal length, or objects.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    elif isinstance(value, list) and value and hasattr(value[0], "detach"):
        value = [item.detach().cpu().numpy() for item in value]
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(_uneven(value, name)) from error
    if array.ndim == 0:
        raise DataError(f"{name} is a single value; an array with one row for each example is expected.")
    if array.dtype == object:
        words = [item is None or isinstance(item, str | bool | int | float) for item in array.ravel()]
        if not all(words):
            raise DataError(_uneven(value, name))
    elif array.dtype.kind not in "biufUS":
        raise DataError(f"{name} holds {array.dtype}; numbers, booleans or words are expected.")
    return array


def _uneven(value: Any, name: str) -> str:
    lengths = [np.shape(item) if not isinstance(item, list) else len(item) for item in value]
    row = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
    if row is None:
        return f"{name} holds {type(value[0]).__name__} objects; numbers, booleans or words are expected."
    told = f"row 1 has {lengths[0]}, row {row + 1} has {lengths[row]}"
    return f"{name} has rows of unequal size: {told}. Give them one size."


def _plain(array: np.ndarray) -> Any:
    """One column: words as Python values, so that None means missing."""
    if array.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in array.tolist()]
    if array.dtype.kind in "OU":
        return array.tolist()
    return np.ascontiguousarray(array)


def _is_class(array: np.ndarray) -> bool:
    """Whether integers are class codes: few, or 0 .. K - 1 without a gap and each met twice on average."""
    if array.dtype.kind not in "iu" or len(array) == 0:
        return False
    values = np.unique(array)
    if len(values) <= FEW_INTEGERS and 2 * len(values) <= len(array):
        return True
    return bool(values[0] == 0 and values[-1] == len(values) - 1 and 2 * len(values) <= len(array))


# ---------------------------------------------------------------- pictures


def pictures(array: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    """Pictures in one layout and, where it loses nothing, in bytes.

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W), numbers of any type.
        name: for errors.
        notes: gets a sentence for everything that is not plain.

    Returns:
        (N, H, W) or (N, H, W, C); (N, C, H, W) only where H is 1 or 3. uint8, or float32.
    """
    if array.ndim not in (3, 4):
        raise DataError(f"{name} has shape {array.shape}; pictures are (N, H, W), (N, H, W, C) or (N, C, H, W).")
    if array.ndim == 4:
        array = _layout(array, name, notes)
    return _values(array, name, notes)


def _layout(array: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    first, last = array.shape[1] in (1, 3, 4), array.shape[3] in (1, 3, 4)
    if not first and not last:
        raise DataError(
            f"{name} has shape {array.shape}; pictures have 1, 3 or 4 channels, as second or last dimension."
        )
    if first and last:
        last = not (array.shape[2] == array.shape[3] and array.shape[1] != array.shape[2])
        notes.append(
            f"{name} {array.shape} can be read in two ways; it is taken as (N, {'H, W, C' if last else 'C, H, W'})."
        )
    array = array if last else np.moveaxis(array, 1, -1)  # (N, H, W, C)
    if array.shape[3] == 1:
        return array[..., 0]
    if array.shape[3] == 4:
        notes.append(f"The fourth channel of {name} (opacity) is not used.")
        array = array[..., :3]
    return np.moveaxis(array, -1, 1) if array.shape[1] in (1, 3) else array


def _values(array: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    """uint8 where that is exact, else float32."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} holds {array.dtype}; pictures are numbers.")
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = np.inf, -np.inf
    whole, multiples = True, array.dtype.kind == "f"
    for start, part in _slices(array):
        if not np.isfinite(part).all():
            row = start + int(np.argmin(np.isfinite(part).reshape(len(part), -1).all(1)))
            raise DataError(f"{name}, row {row + 1}: the picture holds a value that is not a number or infinite.")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        whole = whole and bool((part == np.round(part)).all())
        multiples = multiples and bool((np.abs(part - np.round(part * 255.0) / 255.0) <= 1e-6).all())
    if low >= 0 and high <= 1 and multiples:
        return _converted(array, 255.0)
    if low >= 0 and high <= 255 and whole:
        return _converted(array, 1.0)
    ranges = f"{low:g} to {high:g}"
    notes.append(f"The pictures of {name} hold {ranges}; they are kept as they are and standardized, not scaled.")
    return array.astype(np.float32)


def _slices(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    size = max(1, SLICE // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), size):
        yield start, array[start : start + size]


def _converted(array: np.ndarray, factor: float) -> np.ndarray:
    result = np.empty(array.shape, np.uint8)
    for start, part in _slices(array):
        result[start : start + len(part)] = np.round(part * factor)
    return result


# ---------------------------------------------------------------- torch


def _is_dataset(value: Any) -> bool:
    from torch.utils.data import DataLoader, Dataset

    return isinstance(value, Dataset | DataLoader)


def read_dataset(value: Any) -> tuple[Any, Any]:
    """Read a torch Dataset or DataLoader once, row by row.

    A loader over a sized dataset with the usual samplers is read through its dataset, in its order.

    Returns:
        x and y, each an array or a dict of arrays.

    Raises:
        DataError: items differ on a second read, differ in shape, or hold no target.
    """
    items, batched = _items(value)
    first = next(iter(items), None)
    if first is None:
        raise DataError("The dataset is empty.")
    size = len(items) if isinstance(items, _Sized) and not batched else None
    columns = _Collector(size)
    for number, item in enumerate(items):
        for row in _unbatch(item) if batched else [item]:
            columns.add(row, number)
    _check_stable(items, batched)
    x, y = columns.result()
    classes = getattr(getattr(value, "dataset", value), "classes", None)
    if (
        isinstance(classes, list)
        and isinstance(y, np.ndarray)
        and y.dtype.kind in "iu"
        and y.size
        and y.min() >= 0
        and y.max() < len(classes)
    ):
        y = np.array([str(word) for word in classes], object)[y]
    return x, y


class _Sized:
    """Reads a map-style dataset by number, so that it ends where its length says."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        return (self.dataset[i] for i in range(len(self.dataset)))


def _items(value: Any) -> tuple[Any, bool]:
    """What to iterate over, and whether it gives batches."""
    from torch.utils.data import (
        DataLoader,
        IterableDataset,
        RandomSampler,
        SequentialSampler,
        default_collate,
    )

    if not isinstance(value, DataLoader):
        return (value if isinstance(value, IterableDataset) else _Sized(value)), False
    sampler = value.sampler
    usual = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)
    if usual and value.collate_fn is default_collate and not isinstance(value.dataset, IterableDataset):
        return _Sized(value.dataset), False
    return value, value.batch_size is not None or value.batch_sampler is not None


def _unbatch(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
    else:
        yield from zip(*batch, strict=True)


def _check_stable(items: Any, batched: bool) -> None:
    """Read some items twice more; what differs is drawn at random."""
    if isinstance(items, _Sized):
        places = sorted({int(i) for i in np.linspace(0, len(items) - 1, PROBED)})
        reads = [[items.dataset[i] for i in places] for _ in range(3)]
    else:
        places = list(range(1 if batched else PROBED))
        reads = [list(itertools.islice(iter(items), len(places))) for _ in range(2)]
    for place, *same in zip(places, *reads, strict=False):
        if any(not _equal(same[0], other) for other in same[1:]):
            raise DataError(
                f"Item {place} of the dataset differs when it is read again: its transform draws at "
                "random. Fathom reads "
                "each item once. Take the random transform out, and let the recipe augment instead, for "
                "example "
                "augment.flip=0.5 augment.shift=0.1."
            )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    a, b = np.asarray(one), np.asarray(other)
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


class _Collector:
    """Rows of (x, y) into arrays, made at full size with the first row where the number of rows is known."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.place = 0
        self.arrays: dict[tuple[str, str], Any] = {}
        self.named = {"x": False, "y": False}

    def add(self, item: Any, number: int) -> None:
        """One row."""
        for key, value in self._leaves(item, number).items():
            row = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            if key not in self.arrays:
                self.arrays[key] = (
                    np.empty((self.size, *row.shape), row.dtype if row.dtype.kind in "biuf" else object)
                    if self.size
                    else []
                )
            held = self.arrays[key]
            shape = held.shape[1:] if isinstance(held, np.ndarray) else (held[0].shape if held else row.shape)
            if row.shape != shape:
                raise DataError(
                    f"Item {number} of the dataset has a '{key[0]}' of shape {row.shape}, the first one "
                    f"{shape}. Give them "
                    "one size in the transform, or give Fathom the folder of files."
                )
            if isinstance(held, np.ndarray):
                held[self.place] = row
            else:
                held.append(row)
        self.place += 1

    def _leaves(self, item: Any, number: int) -> dict[tuple[str, str], Any]:
        if isinstance(item, Mapping):
            return {("x", str(key)): value for key, value in item.items()} | self._mark("x")
        if isinstance(item, tuple | list) and len(item) == 2:
            leaves: dict[tuple[str, str], Any] = {}
            for side, value in zip("xy", item, strict=True):
                if isinstance(value, Mapping):
                    leaves |= {(side, str(key)): inner for key, inner in value.items()} | self._mark(side)
                else:
                    leaves[side, ""] = value
            return leaves
        count = f"{len(item)} values" if isinstance(item, tuple | list) else f"one {type(item).__name__}"
        raise DataError(f"Item {number} of the dataset is {count}; (x, y) or a dict is expected.")

    def _mark(self, side: str) -> dict[tuple[str, str], Any]:
        self.named[side] = True
        return {}

    def result(self) -> tuple[Any, Any]:
        """x and y, each an array or a dict of arrays."""
        return self._side("x"), self._side("y")

    def _side(self, side: str) -> Any:
        held = {key[1]: np.asarray(value) for key, value in self.arrays.items() if key[0] == side}
        if self.named[side]:
            return held
        return next(iter(held.values()), None)
