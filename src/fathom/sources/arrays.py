"""Arrays: what people already hold in memory, and .npz files.

    (x, y)                             numpy arrays, torch tensors or lists
    {"train": (x, y), "test": (x, y)}  with given splits
    {"age": [...], "y": [...]}         named columns
    a torch Dataset or DataLoader      read once, row by row
    file.npz                           x and y, or x_train, y_train, x_test, y_test

How an array is read:
    (N, H, W), (N, H, W, C), (N, C, H, W)  pictures, C in 1, 3, 4; of two fitting ones that with equal sides
    (N, K)          K numbers a row; as a target one-hot or soft rows, labels of 0 and 1, or K numbers
    0..255, 0..1    what the numbers of a picture mean, its field learns from the training rows
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fathom.core.contract import Columns, Schema
from fathom.core.errors import DataError
from fathom.core.recipe import Data
from fathom.core.registry import source
from fathom.sources.base import PARTS, Guessed
from fathom.sources.guess import IMAGES, Setting
from fathom.sources.tables import input_columns, row_places

NAMES = (
    ("x", "y"),
    ("images", "labels"),
    ("data", "target"),
    ("data", "labels"),
    ("features", "labels"),
    ("x", "labels"),
)
PROBED = 8  # items of a dataset that are read again


@source("arrays", order=10, reads="numpy arrays, torch tensors, Datasets and DataLoaders, lists, .npz files")
class Arrays(Guessed):
    """Arrays, tensors, lists, a torch Dataset or DataLoader, .npz files."""

    def __init__(self, location: Any, options: Data) -> None:
        is_path = isinstance(location, str | Path)
        super().__init__(str(location) if is_path else "the arrays", options)
        self._given = location
        self._known: dict[str, str] = {}
        self._target: list[str] | None = None

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

    def _setting(self, columns: Columns) -> Setting:
        return Setting(self.location, known=self._known, target=self._target, codes=True)

    def _read(self) -> Columns:
        parts = _parts(self._given, self.location)
        if set(parts) != {""}:
            stop = list(itertools.accumulate(_rows(pair, name) for name, pair in parts.items()))
            starts = [0, *stop[:-1]]
            self._splits = {name: np.arange(a, b) for name, a, b in zip(parts, starts, stop, strict=True)}
        pairs = list(parts.values())
        inputs = _join([x for x, _ in pairs], "x")
        return self._named(inputs, _join_targets([y for _, y in pairs], "y"))

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
            paths = [None if item is None else str(item) for item in value]
            if all((path or "").lower().endswith(IMAGES) for path in paths):
                name = "image" if alone else name
                self._known[name] = "image"
            return {name: np.array(paths, object)}
        array = to_array(value, name)
        if array.ndim >= 3:
            column = "image" if alone else name
            self._known[column] = "image"
            return {column: pictures(array, name, self.reading_notes)}
        if array.ndim == 2:
            stem = name if alone else f"{name}."
            return {f"{stem}{i}": _plain(array[:, i]) for i in range(array.shape[1])}
        return {f"{name}0" if alone else name: _plain(array)}

    def _make_target(self, name: str, value: Any) -> dict[str, Any]:
        if isinstance(value, list) and _is_labels(value):
            self._known[name] = "labels"
            return {name: [None if item is None else list(item) for item in value]}
        array = to_array(value, name)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim == 1:
            return {name: _plain(array)}
        if array.ndim > 2:
            raise DataError(
                f"The target {name} has shape {array.shape}; give one value a row (N,) or one row of values (N, K)."
            )
        return self._wide_target(name, array)

    def _wide_target(self, name: str, array: np.ndarray) -> dict[str, Any]:
        """(N, K): rows that sum to 1 are classes, 0 and 1 are labels, others are K numbers."""
        if len(array) == 0:
            raise DataError(f"{self.location} hold no rows, so there is nothing to learn from.")
        sums = array.sum(1, dtype=np.float64) if array.dtype.kind in "biuf" else np.zeros(0)
        width = array.shape[1]
        if array.dtype.kind in "biuf" and (array >= 0).all() and np.abs(sums - 1).max() < 1e-4:
            self._known[name] = "category"
            if np.isin(array, (0, 1)).all():  # decided over all rows: a chunk of them may look one-hot by chance
                self.reading_notes.append(f"Each row of {name} holds a single 1, so it names one of {width} classes.")
                return {name: array.argmax(1)}
            self.reading_notes.append(f"Each row of {name} sums to 1, so it says the shares of {width} classes.")
            return {name: array.astype(np.float32)}
        if array.dtype.kind in "biuf" and np.isin(array, (0, 1)).all():
            self._known[name] = "labels"
            self.reading_notes.append(f"{name} holds 0 and 1 with several in a row, so it is {width} labels at once.")
            return {name: array.astype(np.float32)}
        self._known |= {f"{name}{i}": "number" for i in range(width)} if array.dtype.kind in "iuf" else {}
        return {f"{name}{i}": _plain(array[:, i]) for i in range(width)}

    @classmethod
    def read_rows(cls, inputs: list[Any], schema: Schema) -> Columns:
        """Arrays to the input columns of a fitted schema: one row an item, or many in an array of one
        dimension more."""
        names = input_columns(schema)
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
        places = [row_places(block.shape[1], schema, f"row {i + 1}") for i, block in enumerate(blocks)]
        table = np.concatenate([block[:, place] for block, place in zip(blocks, places, strict=True)])  # (N, names)
        return Columns({name: _plain(table[:, i]) for i, name in enumerate(names)})


def _picture_rows(array: np.ndarray, name: str, channels: int) -> np.ndarray:
    """(H, W), (H, W, C), (C, H, W) or many of them -> (N, ...). Three dimensions are many pictures where they are gray."""
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


def _join_targets(values: Sequence[Any], name: str) -> Any:
    """The parts' targets one after the other; lists of labels may be of any length."""
    if isinstance(values[0], Mapping):
        return {key: _join_targets([value[key] for value in values], f"{name}.{key}") for key in values[0]}
    if all(isinstance(value, list) for value in values):
        rows = list(itertools.chain.from_iterable(values))
        if _is_labels(rows):
            return rows
    return _join(values, name)


def _is_labels(rows: list[Any]) -> bool:
    """Whether a target is a list of labels a row: lists of words, or of unequal length; None where it is missing."""
    lists = [row for row in rows if isinstance(row, list | tuple)]
    if not lists or any(row is not None and not isinstance(row, list | tuple) for row in rows):
        return False
    return len({len(row) for row in lists}) > 1 or any(isinstance(word, str) for row in lists for word in row)


def _npz(path: Path) -> dict[str, tuple[Any, Any]]:
    """The arrays of an .npz file, paired by their names; objects are never unpickled."""
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            held = {name.lower(): file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        why = "it holds Python objects; save numbers or words" if "allow_pickle" in str(error) else str(error).rstrip(".")
        raise DataError(f"{path} is no readable .npz file of plain arrays: {why}.") from error
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
        values = array.tolist()
        mixed = {isinstance(value, str) for value in values if value is not None} == {True, False}
        return [None if value is None else str(value) for value in values] if mixed else values
    return np.ascontiguousarray(array)


# ---------------------------------------------------------------- pictures


def pictures(array: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    """Pictures in one layout. What their numbers mean, the image field learns from the training rows.

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W), numbers of any type.
        name: for errors.
        notes: gets a sentence for everything that is not plain.

    Returns:
        (N, H, W) or (N, H, W, C); (N, C, H, W) only where H is 1 or 3; of the type that came.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} holds {array.dtype}; pictures are numbers.")
    if array.ndim not in (3, 4):
        raise DataError(f"{name} has shape {array.shape}; pictures are (N, H, W), (N, H, W, C) or (N, C, H, W).")
    if array.ndim == 4:
        array = _layout(array, name, notes)
    return array


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
    _check_stable(items, batched, drawn=_draws(value))
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
    """What to iterate over, in an order that does not change, and whether it gives batches."""
    from torch.utils.data import DataLoader, IterableDataset, default_collate

    if not isinstance(value, DataLoader):
        return (value if isinstance(value, IterableDataset) else _Sized(value)), False
    batched = value.batch_size is not None or value.batch_sampler is not None
    if isinstance(value.dataset, IterableDataset) or not _is_usual(value):
        return value, batched
    if value.collate_fn is default_collate:
        return _Sized(value.dataset), False
    return DataLoader(value.dataset, batch_size=value.batch_size, collate_fn=value.collate_fn), batched


def _is_usual(loader: Any) -> bool:
    """Whether a loader gives each row of its dataset once, in whatever order."""
    from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

    sampler = loader.sampler
    own_batches = loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    once = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)
    return once and not own_batches and (loader.batch_sampler is None or loader.batch_size is not None)


def _draws(value: Any) -> str | None:
    """The name of a loader's sampler where that may draw other rows each time."""
    from torch.utils.data import DataLoader, IterableDataset

    if not isinstance(value, DataLoader) or isinstance(value.dataset, IterableDataset) or _is_usual(value):
        return None
    return type(value.sampler if value.batch_size is not None else value.batch_sampler or value.sampler).__name__


def _unbatch(batch: Any) -> Iterator[Any]:
    """The rows of a batch: a mapping of columns, or x and y, each of which may be a mapping."""
    if isinstance(batch, Mapping):
        yield from _rows_of(batch)
        return
    if not isinstance(batch, tuple | list):
        raise DataError(f"A batch of the loader is one {type(batch).__name__}; (x, y) or a dict is expected.")
    yield from _side_by_side([_rows_of(part) for part in batch])


def _rows_of(part: Any) -> list[Any]:
    if not isinstance(part, Mapping):
        return list(part)
    rows = _side_by_side([_rows_of(values) for values in part.values()])
    return [dict(zip(part, row, strict=True)) for row in rows]


def _side_by_side(parts: Sequence[list[Any]]) -> list[tuple[Any, ...]]:
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise DataError(f"A batch of the loader has parts of {lengths} rows. Its collate_fn must give one length.")
    return list(zip(*parts, strict=True))


def _check_stable(items: Any, batched: bool, drawn: str | None) -> None:
    """Read some items twice more; what differs is drawn at random, by the sampler `drawn` or by a transform."""
    if isinstance(items, _Sized):
        places = sorted({int(i) for i in np.linspace(0, len(items) - 1, PROBED)})
        reads = [[items.dataset[i] for i in places] for _ in range(3)]
    else:
        places = list(range(1 if batched else PROBED))
        reads = [list(itertools.islice(iter(items), len(places))) for _ in range(2)]
    for place, *same in zip(places, *reads, strict=False):
        if any(not _equal(same[0], other) for other in same[1:]):
            raise DataError(_unstable(place, batched, drawn))


def _unstable(place: int, batched: bool, drawn: str | None) -> str:
    if drawn is not None:
        return (
            f"{'Batch' if batched else 'Item'} {place} of the loader differs when it is read again: its {drawn} draws "
            "other rows each time. Fathom reads each row once and shuffles by itself. Give the dataset, or a Subset "
            "of it, instead of the loader."
        )
    return (
        f"{'Batch' if batched else 'Item'} {place} of the dataset differs when it is read again: its transform draws "
        "at random. Fathom reads each item once. Take the random transform out, and let the recipe augment instead, "
        "for example augment.flip=0.5 augment.shift=2."
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
        leaves = self._leaves(item, number)
        if self.place:
            self._require_same(leaves, number)
        for key, value in leaves.items():
            row = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            if key not in self.arrays:
                self.arrays[key] = np.empty((self.size, *row.shape), _wider(row.dtype)) if self.size else []
            held = self.arrays[key]
            shape = held.shape[1:] if isinstance(held, np.ndarray) else (held[0].shape if held else row.shape)
            if row.shape != shape:
                raise DataError(
                    f"Item {number} of the dataset has a '{key[0]}' of shape {row.shape}, the first one "
                    f"{shape}. Give them "
                    "one size in the transform, or give Fathom the folder of files."
                )
            if isinstance(held, np.ndarray):
                wider = _wider(held.dtype, row.dtype)
                if wider != held.dtype:
                    held = self.arrays[key] = held.astype(wider)
                held[self.place] = row.item() if held.ndim == 1 and wider.kind == "O" else row
            else:
                held.append(row)
        self.place += 1

    def _require_same(self, leaves: Mapping[tuple[str, str], Any], number: int) -> None:
        """Refuse an item that has other parts than the first."""
        lacking, extra = self.arrays.keys() - leaves.keys(), leaves.keys() - self.arrays.keys()
        if not lacking and not extra:
            return
        has = f"lacks {_told(lacking)}, which the first one has" if lacking else f"has {_told(extra)}"
        more = f" and has {_told(extra)}" if lacking and extra else ", which the first one has not" if extra else ""
        raise DataError(f"Item {number} of the dataset {has}{more}. Give every item the same parts.")

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


def _wider(*kinds: np.dtype) -> np.dtype:
    """The type that holds values of all these types: of numbers the smallest, else Python objects."""
    return np.result_type(*kinds) if all(kind.kind in "biuf" for kind in kinds) else np.dtype(object)


def _told(keys: Collection[tuple[str, str]]) -> str:
    return ", ".join(f"'{name or side}'" for side, name in sorted(keys))
