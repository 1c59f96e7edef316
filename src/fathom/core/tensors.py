"""Raw columns in, encoded tensors out: the shapes that data takes.

    Columns     what a source reads: equal-long numpy arrays or Arrow columns by name, cheap to cut and to filter
    TensorSet   what a network trains on: one contiguous (or memory-mapped) tensor a field; a batch is an index into it
    Ragged      rows of unequal length: all values end to end, and where each row starts
    Windows     rows that are stretches of one long series

Names that start with a dot are Fathom's own entries of a batch: `.row` (which row of the set), `.weight` and
`.features` (see `features`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

Batch = dict[str, Tensor]
Index = np.ndarray  # int64 row numbers
Column: TypeAlias = np.ndarray | pa.ChunkedArray

ROW = ".row"
WEIGHT = ".weight"
FEATURES = ".features"
CHUNK = 65_536  # rows encoded at once


def as_column(values: Any) -> Column:
    """Numbers of two or more dimensions stay numpy; everything else becomes an Arrow column."""
    if isinstance(values, pa.ChunkedArray):
        return values
    if isinstance(values, pa.Array):
        return pa.chunked_array([values])
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return values
    if isinstance(values, np.ndarray) and values.dtype != object:
        return pa.chunked_array([pa.array(values)])
    items = [str(value) if isinstance(value, Path) else value for value in values]
    return pa.chunked_array([pa.array(items)])


class Columns(Mapping[str, Column]):
    """Columns of equal length, by name.

    Args:
        columns: name -> numpy array (N, ...) or Arrow column (N).
        rows: N; needed only where there is no column.
    """

    def __init__(self, columns: Mapping[str, Any], rows: int | None = None) -> None:
        self._columns = {name: as_column(values) for name, values in columns.items()}
        lengths = {name: len(column) for name, column in self._columns.items()}
        self.rows = rows if rows is not None else next(iter(lengths.values()), 0)
        uneven = {name: length for name, length in lengths.items() if length != self.rows}
        if uneven:
            raise ValueError(f"columns of unequal length: {lengths}")

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def select(self, names: Iterable[str]) -> Columns:
        """Only these columns."""
        return Columns({name: self._columns[name] for name in names}, self.rows)

    def take(self, index: Index) -> Columns:
        """Only these rows, in this order."""
        taken = {
            name: column[index] if isinstance(column, np.ndarray) else column.take(pa.array(index))
            for name, column in self._columns.items()
        }
        return Columns(taken, len(index))

    def slice(self, start: int, stop: int) -> Columns:
        """Rows `start` to `stop`, without a copy."""
        cut = {
            name: column[start:stop] if isinstance(column, np.ndarray) else column.slice(start, stop - start)
            for name, column in self._columns.items()
        }
        return Columns(cut, min(stop, self.rows) - start)

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, Columns]]:
        """The rows in order, `size` at a time, each chunk with the number of its first row."""
        for start in range(0, self.rows, size):
            yield start, self.slice(start, min(start + size, self.rows))

    def where(self, mask: np.ndarray) -> Columns:
        """Only the rows whose mask is true."""
        return self if mask.all() else self.take(np.flatnonzero(mask))

    @staticmethod
    def concatenate(parts: Sequence[Columns]) -> Columns:
        """The rows of all parts, one after the other; every part must have the columns of the first."""
        names = list(parts[0])
        joined: dict[str, Any] = {}
        for name in names:
            pieces: list[Any] = [part[name] for part in parts]
            if isinstance(pieces[0], np.ndarray):
                joined[name] = np.concatenate(pieces)
            else:
                joined[name] = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pieces[0].type)
        return Columns(joined, sum(part.rows for part in parts))


def to_list(column: Column) -> list[Any]:
    """Python values of a column."""
    return column.tolist() if isinstance(column, np.ndarray) else column.to_pylist()


def is_list(kind: pa.DataType) -> bool:
    """Whether each value is a list."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def row_hashes(columns: Columns, names: Iterable[str], files: Iterable[str] = ()) -> np.ndarray:
    """A 64-bit content hash of every row: equal rows have equal hashes, in any run on any machine.

    Args:
        columns: the raw columns.
        names: the columns that count.
        files: those of them that hold paths; the bytes of the file count, not its name.

    Returns:
        (N,) uint64.
    """
    names, files = list(names), set(files)
    total = np.zeros(columns.rows, np.uint64)
    for start, chunk in columns.chunks():
        rows = total[start : start + chunk.rows]
        for name in names:
            hashed = _hash_files(to_list(chunk[name])) if name in files else _hash_column(chunk[name])
            rows[:] = _mix(rows * np.uint64(31) + hashed)
    return total


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014): every input bit changes half of the output bits."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _digest(data: Any) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _hash_files(paths: Sequence[str]) -> np.ndarray:
    def one(path: str) -> int:
        try:
            return _digest(Path(path).read_bytes())
        except OSError:
            return _digest(str(path).encode())  # the decoder will name the file that cannot be read

    with ThreadPoolExecutor() as pool:
        return np.fromiter(pool.map(one, paths), np.uint64, len(paths))


def _hash_column(column: Column) -> np.ndarray:
    if isinstance(column, np.ndarray):
        rows: np.ndarray = np.ascontiguousarray(column)
        return np.fromiter((_digest(row.data) for row in rows), np.uint64, len(rows))
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        numbers = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
        return _mix(np.where(numbers == 0, 0.0, numbers).view(np.uint64))
    if pa.types.is_nested(column.type):  # lists and records, which Arrow cannot number
        return _mix(np.fromiter((_digest(repr(value).encode()) for value in column.to_pylist()), np.uint64))
    pieces = []
    for chunk in column.chunks:
        coded = chunk.dictionary_encode()
        words = [
            _digest(str(word).encode() if not isinstance(word, bytes) else word)
            for word in coded.dictionary.to_pylist()
        ]
        table = np.array([*words, 0], np.uint64)
        codes = pc.fill_null(coded.indices, len(words)).to_numpy(zero_copy_only=False)
        pieces.append(table[codes])
    return _mix(np.concatenate(pieces)) if pieces else np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length.

    Args:
        values: (sum of lengths, ...) all rows end to end.
        offsets: (N + 1,) int64; row i is `values[offsets[i]:offsets[i + 1]]`.
        fill: what stands where a row has ended.
        left: whether short rows are filled up before their first value instead of after their last.
        even: whether filling up costs nothing, so that a batch needs no rows of about one length.
    """

    values: Tensor
    offsets: Tensor
    fill: float = 0.0
    left: bool = False
    even: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> Tensor:
        """(N,) int64."""
        return self.offsets.diff()

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `index`, filled up to the longest of them.

        Returns:
            (B, T, ...) values and (B, T) mask, true where there is a value.
        """
        starts, lengths = self.offsets[index], self.lengths()[index]
        longest = max(int(lengths.max()), 1)
        steps = torch.arange(longest, device=lengths.device).expand(len(index), longest)  # (B, T)
        if self.left:
            steps = steps - (longest - lengths[:, None])
        mask = (steps >= 0) & (steps < lengths[:, None])  # (B, T)
        if len(self.values) == 0:
            return self.values.new_full((*mask.shape, *self.values.shape[1:]), self.fill), mask
        places = (starts[:, None] + steps).clamp(0, len(self.values) - 1)
        values = self.values[places]  # (B, T, ...)
        return values.masked_fill_(~mask.reshape(*mask.shape, *[1] * (values.ndim - 2)), self.fill), mask

    def to(self, device: torch.device) -> Ragged:
        """The same rows on a device."""
        return replace(self, values=self.values.to(device), offsets=self.offsets.to(device))


@dataclass(frozen=True)
class Windows:
    """Rows that are stretches of one long series, cut when a batch is gathered; nothing is stored twice.

    Args:
        values: (N, ...) one value a moment.
        start: where the stretch of row i begins: at moment i + start.
        length: T, its moments.
    """

    values: Tensor
    start: int
    length: int

    def __len__(self) -> int:
        return len(self.values)

    def gather(self, index: Tensor) -> Tensor:
        """(B, T, ...) the stretches of rows whose stretch lies within the series."""
        steps = torch.arange(self.start, self.start + self.length, device=index.device)
        return self.values[index[:, None] + steps]

    def to(self, device: torch.device) -> Windows:
        """The same series on a device."""
        return replace(self, values=self.values.to(device))


Encoded: TypeAlias = Tensor | Ragged | Windows


class TensorSet:
    """Encoded rows: a batch is an index into them, gathered without per-row Python.

    Args:
        columns: field name -> tensor (N, ...), or Ragged or Windows of N rows.
        index: which rows of the tensors belong to this set, in order; all where None.
    """

    def __init__(self, columns: Mapping[str, Encoded], index: Tensor | None = None) -> None:
        self.columns = dict(columns)
        self.index = index
        self._rows = len(next(iter(self.columns.values()))) if index is None else len(index)

    def __len__(self) -> int:
        return self._rows

    def subset(self, index: Tensor) -> TensorSet:
        """A view of some rows; nothing is copied. Rows that stand one after the other are cut out, others indexed."""
        if self.index is not None:
            return TensorSet(self.columns, self.index[index])
        first, last = (int(index[0]), int(index[-1])) if len(index) else (0, -1)
        dense = all(isinstance(column, Tensor) for column in self.columns.values())
        if dense and last - first + 1 == len(index) and bool((index.diff() == 1).all()):
            return TensorSet({name: column[first : last + 1] for name, column in self.columns.items()})  # type: ignore[index]
        return TensorSet(self.columns, index)

    def lengths(self) -> Tensor:
        """(N,) the length of each row: its longest ragged column whose filling up costs, 1 where there is none."""
        ragged = [column.lengths() for column in self.columns.values() if isinstance(column, Ragged) and not column.even]
        longest = torch.stack(ragged).amax(0) if ragged else torch.ones(self._size(), dtype=torch.int64)
        return longest if self.index is None else longest[self.index]

    def _size(self) -> int:
        return len(next(iter(self.columns.values())))

    def batch(self, index: Tensor) -> Batch:
        """The rows `index` (B,) of this set."""
        places = index if self.index is None else self.index[index]
        places = places.to(self.device)
        batch: Batch = {ROW: index}
        for name, column in self.columns.items():
            if isinstance(column, Ragged):
                batch[name], batch[f"{name}.mask"] = column.gather(places)
            elif isinstance(column, Windows):
                batch[name] = column.gather(places)
            else:
                batch[name] = column.index_select(0, places)
        return batch

    def column(self, name: str) -> Tensor:
        """(N, ...) one column, rows of unequal length filled up; the others are not touched."""
        column = self.columns[name]
        if isinstance(column, Tensor):
            return column if self.index is None else column.index_select(0, self.index)
        rows = torch.arange(len(column)) if self.index is None else self.index
        return column.gather(rows)[0] if isinstance(column, Ragged) else column.gather(rows)

    @property
    def device(self) -> torch.device:
        """Where the columns are."""
        first = next(iter(self.columns.values()))
        return first.device if isinstance(first, Tensor) else first.values.device

    def to(self, device: torch.device) -> TensorSet:
        """The rows of this set, copied to a device; those of other splits stay behind."""
        whole = any(not isinstance(column, Tensor) for column in self.columns.values())
        index = None if whole else self.index
        moved = {
            name: (column if index is None or not isinstance(column, Tensor) else column[index]).to(device)
            for name, column in self.columns.items()
        }
        return TensorSet(moved, self.index if whole else None)

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows in order, `size` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self.batch(index)

    def nbytes(self) -> int:
        """Bytes of all columns."""
        tensors = [c if isinstance(c, Tensor) else c.values for c in self.columns.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def end_to_end(data: TensorSet, name: str) -> tuple[Tensor, Tensor]:
    """All values of a ragged column, row after row.

    Returns:
        (sum of lengths, ...) values, and (N + 1,) where each row begins among them.
    """
    column = data.columns[name]
    assert isinstance(column, Ragged), "only rows of unequal length stand end to end"
    rows = torch.arange(len(column)) if data.index is None else data.index
    starts, lengths = column.offsets[rows], column.lengths()[rows]
    ends = lengths.cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    if bool((starts[1:] == starts[:-1] + lengths[:-1]).all()):
        return column.values[int(starts[0]) : int(starts[-1] + lengths[-1])], offsets
    places = torch.arange(int(ends[-1])) + (starts - offsets[:-1]).repeat_interleave(lengths)
    return column.values[places], offsets
