"""From a source to tensors: divide the rows, fit the fields on the training rows, encode every row once.

    prepare(source, data, seed) -> Prepared

Rows are encoded in chunks into one store for all splits; a split is an index into it. The store is kept in memory up
to `data.memory` GiB and memory-mapped beyond. What is slow to encode (files to decode) is cached by the content of the
rows and by what decides how they are encoded, so that a second run starts at once, the folds of one run share what the
first has decoded, and a changed file is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from fathom.core import split
from fathom.core.bad_rows import BadRow, BadRowsError, told
from fathom.core.contract import Columns, Field, Index, Ragged, Schema, Source, TensorSet
from fathom.core.environments import Environment
from fathom.core.errors import DataError, RowFaults, RunError, count_text
from fathom.core.mapped import cache_folder as cache_folder
from fathom.core.mapped import empty, mapped_folder
from fathom.core.recipe import Data
from fathom.core.registry import fields
from fathom.core.run import read_json, sealed_json, write_atomic
from fathom.core.tensors import WEIGHT, Column, Encoded, Windows, row_hashes, to_list

PARTS = ("train", "validation", "test")
MEASURED = 2_000  # training rows that fields measure, mean and spread of pictures say
MOST_MEASURED = 1 << 27  # values of these rows, so that large pictures fit into memory
ENCODING = 3  # raised when pictures are decoded differently; what is cached is then decoded anew


@dataclass
class Prepared:
    """All that training and evaluation need.

    Args:
        schema: fitted on the training rows.
        store: every encoded row.
        splits: part -> row numbers of the store.
        columns: the raw columns, row for row beside the store, for showing mistakes and for baselines.
        unit: (N,) rows that must stay together, for folds.
        strata: (N,) class of each row, or None.
        blocks: (N,) which rows of a split are resampled together when intervals are made, or None (see `blocks`).
        notes: what was guessed, left out or mended.
        hashes: (N,) content of each row's inputs.
        fingerprint: digest of the content of all rows and of what the fields learnt.
        seconds: wall time.
        environment: where an agent acts; it then stands for every part, and there are no rows.
        bad: rows that are left out, or used and worth a look.
        numbers: (N,) the place of each row among those of the source, where only some of them are used.
    """

    schema: Schema
    store: TensorSet
    splits: dict[str, Index]
    columns: Columns
    unit: np.ndarray
    strata: np.ndarray | None
    blocks: np.ndarray | None
    notes: list[str]
    hashes: np.ndarray
    fingerprint: str
    seconds: float = 0.0
    sets: dict[str, TensorSet] = field(default_factory=dict)
    environment: Environment | None = None
    bad: list[BadRow] = field(default_factory=list)
    numbers: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.environment is not None:
            self.sets = dict.fromkeys(PARTS, self.environment)
            return
        self.sets = {name: self.store.subset(torch.from_numpy(index)) for name, index in self.splits.items()}

    def number(self, row: int) -> int:
        """The number, from 1, under which a row of the store is found in the source."""
        return _number(self.numbers, row)

    def extent(self) -> str:
        """How much there is to learn from, in words."""
        if self.environment is not None:
            return self.environment.episodes
        return ", ".join(f"{len(index):,} {name}" for name, index in self.splits.items()) + " rows"


def prepare(source: Source, data: Data, seed: int, earlier: Schema | None = None) -> Prepared:
    """Read, divide, fit and encode.

    Args:
        source: where the rows come from.
        data: the recipe's table; its options of fields hold, whichever the source was opened with.
        seed: of the division and of `data.limit`, where `data.split_seed` names none.
        earlier: the fitted schema of the run whose network is trained on; fields that are alike take over what it learnt.

    Raises:
        DataError: too many rows are unreadable, a split is empty, splits hold the same rows, a column is missing.
    """
    start = time.perf_counter()
    seed = seed if data.split_seed is None else data.split_seed
    columns, schema = source.columns(), with_options(source.schema(), beyond(data, source))
    notes = source.notes()
    if columns.rows == 0:
        raise DataError(f"{source.location} holds no rows.")
    _require(columns, schema, str(source.location))
    notes += missing_groups(columns, schema)
    given, numbers = source.given_splits(), None
    if data.limit is not None and data.limit < columns.rows:
        chosen = np.sort(np.random.default_rng(seed).permutation(columns.rows)[: data.limit])
        if windowed(schema):
            chosen = np.arange(columns.rows - data.limit, columns.rows)  # a series stays whole
        numbers = chosen
        columns, given = columns.take(chosen), {name: _places(chosen, index) for name, index in given.items()}
        notes.append(f"Only {data.limit} rows are used, drawn by the seed (data.limit).")
    hashes = input_hashes(columns, schema)
    unit = split.units(hashes, codes(columns, schema.special.get("group")))
    strata = _strata(columns, schema)
    splits, more = _splits(columns, schema, data, given, hashes, unit, strata, seed, source)
    notes += more
    if data.per_class is not None:
        splits["train"], more = few_of_each(splits["train"], strata, data.per_class, seed, columns, schema)
        notes += more
    notes += fit(schema, columns, splits["train"], earlier)
    store, faults = encode(schema, columns, data.memory, hashlib.sha256(hashes.tobytes()).hexdigest())
    bad = bad_rows(schema, columns, faults, numbers)
    splits = _without_faults(splits, faults, bad, data.bad_rows, columns.rows)
    notes += told(bad)
    _measure(schema, store, splits["train"])
    fingerprint = _fingerprint(hashes, columns, schema)
    together = blocks(columns, schema, splits)
    seconds = time.perf_counter() - start
    return Prepared(
        schema, store, splits, columns, unit, strata, together, notes, hashes, fingerprint, seconds, bad=bad,
        numbers=numbers,
    )  # fmt: skip


def beyond(data: Data, source: Source) -> dict[str, dict[str, Any]]:
    """The options of fields (kind -> option -> value) that were settled after the source was opened."""
    known = getattr(source.options, "fields", {})
    return {
        kind: {key: value for key, value in options.items() if known.get(kind, {}).get(key) != value}
        for kind, options in data.fields.items()
    }


def with_options(schema: Schema, options: Mapping[str, Mapping[str, Any]]) -> Schema:
    """The unfitted fields, those of a kind that `options` speaks of made anew with them.

    Args:
        schema: as a source guessed it.
        options: kind -> option -> value, over those that the field has.
    """

    def remade(item: Field) -> Field:
        changed = options.get(item.kind)
        if not changed:
            return item
        made: Field = fields[item.kind].make(item.columns, **{**item.options, **changed})
        made.state = dict(item.state)
        return made

    both = [{name: remade(item) for name, item in part.items()} for part in (schema.inputs, schema.targets)]
    return replace(schema, inputs=both[0], targets=both[1])


def few_of_each(
    rows: Index, strata: np.ndarray | None, count: int, seed: int, columns: Columns, schema: Schema
) -> tuple[Index, list[str]]:
    """A few training rows of each class, as where labels are dear.

    Args:
        rows: of the training split.
        strata: (N,) class of each row.
        count: rows of each class that are kept; all where it has fewer.
        seed: draws them.
        columns: N raw rows.
        schema: its first target has the classes.

    Returns:
        The rows in their order, and sentences about them.

    Raises:
        DataError: no target has classes.
    """
    if strata is None:
        names = ", ".join(f"{name} ({item.kind})" for name, item in schema.targets.items()) or "none"
        raise DataError(
            f"data.per_class = {count} keeps that many rows of each class, and no target has classes: {names}. "
            "Use data.limit for a number of rows."
        )
    drawn = np.random.default_rng(seed).permutation(rows)
    classes = np.unique(strata[rows])
    kept = np.sort(np.concatenate([drawn[strata[drawn] == one][:count] for one in classes]))
    notes = [
        f"Only {count_text(count, 'row')} of each class are learnt from, {len(kept):,} of {len(rows):,} training rows, "
        "drawn by the seed (data.per_class)."
    ]
    if len(kept) < count * len(classes):
        least = min(int((strata[rows] == one).sum()) for one in classes)
        notes.append(f"Some classes have fewer than {count} training rows; the smallest has {least}.")
    return kept, notes


def _require(columns: Columns, schema: Schema, where: str) -> None:
    for item in schema.fields().values():
        for name in item.columns:
            if name not in columns:
                raise DataError(
                    f"{where} has no column '{name}', which '{item.kind}' reads. It has: {', '.join(columns)}."
                )


def _places(chosen: Index, index: Index) -> Index:
    """Where the rows `index` stand among the chosen ones; rows not chosen fall out."""
    return np.flatnonzero(np.isin(chosen, index))


def file_columns(schema: Schema, columns: Columns) -> set[str]:
    """The columns that hold paths of files."""
    held = {name: columns[name] for item in schema.inputs.values() if item.files for name in item.columns}
    return {name for name, c in held.items() if not isinstance(c, np.ndarray) and pa.types.is_string(c.type)}


def windowed(schema: Schema) -> bool:
    """Whether rows are moments of a series."""
    return any(item.window for item in schema.fields().values())


def input_hashes(columns: Columns, schema: Schema) -> np.ndarray:
    """(N,) uint64, what each row's inputs hold; for files their bytes.

    What is learnt without inputs (a language model) is known by its targets. Moments of a series differ by their
    place, equal as their values may be.
    """
    read = schema.inputs or schema.targets
    names = [name for item in read.values() for name in item.columns]
    hashes = row_hashes(columns, names, file_columns(schema, columns))
    return hashes + np.arange(len(hashes), dtype=np.uint64) if windowed(schema) else hashes


def codes(columns: Columns, name: str | None) -> np.ndarray | None:
    """(N,) small integers in the order of the values (a missing one reads as empty text), or None."""
    if name is None:
        return None
    column = columns[name]
    if isinstance(column, np.ndarray):
        return _ranks(np.array([str(value) for value in column.tolist()]))
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_boolean(column.type)):
        return _ranks(column.to_numpy())
    coded = column.dictionary_encode().combine_chunks()
    words = ["" if word is None else str(word) for word in [*coded.dictionary.to_pylist(), None]]
    rank = _ranks(np.array(words))
    return rank[pc.fill_null(coded.indices, len(words) - 1).to_numpy(zero_copy_only=False)]


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) which of the sorted different values each is, in the smallest type of integers that holds them."""
    different, rank = np.unique(values, return_inverse=True)
    return rank.astype(np.min_scalar_type(len(different)))


def missing_groups(columns: Columns, schema: Schema) -> list[str]:
    """A sentence about rows without a group, which `codes` takes as one."""
    name = schema.special.get("group")
    if name is None or isinstance(column := columns[name], np.ndarray):
        return []
    count = pc.sum(pc.is_null(column, nan_is_null=True)).as_py()
    if not count:
        return []
    return [f"{count:,} rows have no '{name}' (data.group) and are taken as one group; fill it in where they are not."]


def blocks(columns: Columns, schema: Schema, splits: Mapping[str, Index]) -> np.ndarray | None:
    """Which rows belong together when intervals are made: those of one group, else those of one stretch of time.

    Forecasts of neighboring moments share most of what they foretell, and series of a group are alike at one moment; so
    forecasts are cut into stretches of time that are at least as long as the horizon, all series together.

    Args:
        columns: N raw rows.
        schema: names the columns of group and time.
        splits: part -> rows; stretches are counted within each.

    Returns:
        (N,) integers; rows of one number within a split belong together. None where all rows are independent.
    """
    groups = codes(columns, schema.special.get("group"))
    moments = codes(columns, schema.special.get("time"))
    ahead = max((item.window[1] for item in schema.targets.values() if item.window), default=0)
    if ahead and moments is None:
        moments = np.arange(columns.rows)
    elif moments is None or (groups is not None and not ahead):
        return groups
    together = np.zeros(columns.rows, np.int64)
    for index in splits.values():
        together[index] = stretches(moments[index]) if not ahead else overlapping(moments[index], ahead)
    return together


def overlapping(moments: np.ndarray, ahead: int) -> np.ndarray:
    """Cut forecasts into stretches of time, none shorter than the horizon (see `stretches`).

    Args:
        moments: (N,) integers in the order of time; several series may forecast from one moment.
        ahead: moments that each forecast foretells.

    Returns:
        (N,) integers, one number a stretch.
    """
    different, place = np.unique(moments, return_inverse=True)
    return np.asarray(place // max(ahead, math.ceil(round(len(different) ** (1 / 3), 9))))


def stretches(moments: np.ndarray) -> np.ndarray:
    """Cut rows into stretches of time as long as the cube root of their number (Hall, Horowitz and Jing 1995).

    Neighbors in time are alike, so that a bootstrap of single rows would give intervals that are too narrow. Rows of
    one moment are never parted.

    Args:
        moments: (N,) integers in the order of time.

    Returns:
        (N,) integers, one number a stretch.
    """
    length = max(1, math.ceil(round(len(moments) ** (1 / 3), 9)))  # the root of 1000 is 10, not 9.9999...
    first = np.searchsorted(np.sort(moments), moments)  # (N,) rows before each moment
    return np.asarray(first // length)


def _strata(columns: Columns, schema: Schema) -> np.ndarray | None:
    """The class of each row, where the first target has classes."""
    target = next(iter(schema.targets.values()), None)
    if target is None or target.kind != "category":
        return None
    column = columns[target.columns[0]]
    if isinstance(column, np.ndarray):
        return np.asarray(column.argmax(1))
    return codes(columns, target.columns[0])


def _splits(
    columns: Columns, schema: Schema, data: Data, given: Mapping[str, Index], hashes: np.ndarray,
    unit: np.ndarray, strata: np.ndarray | None, seed: int, source: Source,
) -> tuple[dict[str, Index], list[str]]:  # fmt: skip
    """The given splits, and what is missing of them cut from the training rows; or those of one fold."""
    given = {name: index for name, index in given.items() if len(index)}
    names = {
        "train": str(source.location),
        "validation": str(data.validation or ""),
        "test": str(data.test or ""),
    }
    notes = split.check_given(given, hashes, {k: v for k, v in names.items() if v})
    if data.fold is not None:
        _refuse_folds(schema, data)
        if "test" in given and not windowed(schema):
            notes.append(
                f"The given test split ({len(given['test']):,} rows) is set aside: no fold learns from it or is judged on it."
            )
        if windowed(schema):
            given = _walked(data.fold, given, codes(columns, schema.special.get("time")), schema)
        else:
            given = _one_fold(data.fold, given, unit, strata, seed)
    defaults = {"validation": split.VALIDATION, "test": split.TEST}
    shares = {
        name: value if isinstance(value := getattr(data, name), float) else defaults[name]
        for name in ("test", "validation")
        if name not in given
    }
    splits = dict(given)
    if shares:
        time_codes = codes(columns, schema.special.get("time"))
        splits.update(_divided(given.get("train"), unit, shares, seed, strata, time_codes))
        if time_codes is not None:
            notes += _across_time(unit, splits)
    if strata is not None and schema.targets:
        notes += _absent_classes(columns, schema, splits, strata)
    return {name: splits[name] for name in PARTS}, notes


def _refuse_folds(schema: Schema, data: Data) -> None:
    """Folds are shuffled and of equal size.

    Raises:
        DataError: the rows have an order, or the recipe asks for another share, or for a fold that is not there.
    """
    if data.fold is not None and not 1 <= data.fold[0] <= data.fold[1]:
        raise DataError(
            f"data.fold = {list(data.fold)} is not allowed: write [k, K], the k-th of K parts, from 1 to K."
        )
    if "time" in schema.special and not windowed(schema):
        raise DataError(
            f"Folds shuffle the rows, but '{schema.special['time']}' (data.time) orders them: a fold would be judged on what "
            "came before the rows that were learnt. Leave training.folds out; the last rows are then the test."
        )
    if isinstance(data.test, float):
        raise DataError(
            f"data.test = {data.test:g} has no meaning beside training.folds, where each fold is the test once; "
            "leave one of them out."
        )


def _one_fold(
    fold: tuple[int, int], given: Mapping[str, Index], unit: np.ndarray, strata: np.ndarray | None, seed: int
) -> dict[str, Index]:
    """One of K parts of the rows to learn from as the test, the others to learn from; a given validation split stays."""
    number, count = fold
    others = [index for name, index in given.items() if name != "train"]
    rows = given.get("train", np.setdiff1d(np.arange(len(unit)), np.concatenate(others) if others else []))
    held = split.folds(unit[rows], count, seed, None if strata is None else strata[rows])[number - 1]
    return {**given, "train": np.delete(rows, held), "test": rows[held]}


def _walked(
    fold: tuple[int, int], given: Mapping[str, Index], moments: np.ndarray | None, schema: Schema
) -> dict[str, Index]:
    """One of K stretches of a series as the test, and what came before it to learn from (`split.walk_forward`)."""
    number, count = fold
    rows = np.sort(np.concatenate(list(given.values())))
    past, ahead = (
        max((item.window[1] for item in part.values() if item.window), default=1)
        for part in (schema.inputs, schema.targets)
    )
    moment = rows if moments is None else moments[rows].astype(np.int64)
    parts = split.walk_forward(moment, count, ahead, past)[number - 1]
    return {name: rows[index] for name, index in zip(PARTS, parts, strict=True)}


def _divided(
    rows: Index | None, unit: np.ndarray, shares: Mapping[str, float], seed: int,
    strata: np.ndarray | None, time: np.ndarray | None,
) -> dict[str, Index]:  # fmt: skip
    """The parts of all rows, or of the given training rows."""
    if rows is None:
        return split.divide(unit, shares, seed, strata, time)
    ours = [None if array is None else array[rows] for array in (strata, time)]
    parts = split.divide(unit[rows], shares, seed, *ours)
    return {name: rows[index] for name, index in parts.items()}


def _across_time(unit: np.ndarray, splits: Mapping[str, Index]) -> list[str]:
    """A division by time may part rows that belong together (equal inputs, one group); that is told."""
    parted = np.isin(unit[splits["test"]], unit[splits["train"]]).sum()
    return (
        [f"Divided by time, so {parted:,} test rows share a group or all inputs with training rows."] if parted else []
    )


def _absent_classes(columns: Columns, schema: Schema, splits: Mapping[str, Index], strata: np.ndarray) -> list[str]:
    """Sentences about classes that the test split cannot judge."""
    learnt, judged = set(strata[splits["train"]].tolist()), set(strata[splits["test"]].tolist())
    missing = sorted(learnt - judged)
    if not missing:
        return []
    column = columns[next(iter(schema.targets.values())).columns[0]]
    named = (
        [str(to_list(column.take(pa.array([int(np.argmax(strata == c))])))[0]) for c in missing[:5]]
        if isinstance(column, pa.ChunkedArray)
        else [str(c) for c in missing[:5]]
    )
    return [f"Too few rows of {', '.join(named)} to judge: the test split has none."]


def fit(schema: Schema, columns: Columns, train: Index, earlier: Schema | None = None) -> list[str]:
    """Fit every field on the training rows, and on nothing else; or take over what an earlier one learnt.

    Args:
        schema: unfitted; its fields are fitted in place.
        columns: N raw rows.
        train: rows of the training split.
        earlier: a fitted schema, see `heirs`.

    Returns:
        A sentence for each input of which the earlier schema has none that is alike.
    """
    mask = np.zeros(columns.rows, bool)
    mask[train] = True
    handed_down = heirs(schema, earlier) if earlier else {}
    for target in schema.targets.values():
        target.beside(schema.inputs)
    for name, item in schema.fields().items():
        chunks = _training_chunks(columns.select(item.columns), mask)
        if name in handed_down:
            item.adopt(handed_down[name], chunks)
        else:
            item.begin(chunks)  # `_measure` ends it
    strange = [name for name in schema.inputs if name not in handed_down] if earlier and earlier.inputs else []
    return [
        f"Input '{name}' ({schema.inputs[name].kind}) is none of the earlier run's; what stands for it is learnt anew."
        for name in strange
    ]


def heirs(schema: Schema, earlier: Schema) -> dict[str, Field]:
    """Name of a field -> the earlier field whose state it takes over.

    An input takes over that of an earlier input which reads the same columns, or which is the only one of its kind, as
    it is, and reads one column: a picture is a picture whatever its column is called. A target is asked anew, but a text
    that is written is spelled as before.
    """
    found: dict[str, Field] = {}
    for ours, theirs in ((schema.inputs, earlier.inputs), (_written(schema), _written(earlier))):
        for name, item in ours.items():
            alike = [other for other in theirs.values() if other.kind == item.kind]
            same = [other for other in alike if other.columns == item.columns]
            mine = [other for other in ours.values() if other.kind == item.kind]
            lone = len(alike) == len(mine) == 1 and len(alike[0].columns) == len(item.columns) == 1
            if same or lone:
                found[name] = (same or alike)[0]
    return found


def _written(schema: Schema) -> dict[str, Field]:
    return {name: item for name, item in schema.targets.items() if item.kind == "text"}


def _training_chunks(columns: Columns, mask: np.ndarray) -> Iterator[Columns]:
    for start, chunk in columns.chunks():
        kept = chunk.where(mask[start : start + chunk.rows])
        if kept.rows:
            yield kept


def _measure(schema: Schema, store: TensorSet, train: Index) -> None:
    """What fields learn from encoded training rows, of which some from all over are enough."""
    for name, item in schema.fields().items():
        column = store.columns[name]
        if isinstance(column, Tensor):
            width = max(1, math.prod(column.shape[1:]))
            count = min(len(train), MEASURED, max(1, MOST_MEASURED // width))
            rows = train[np.arange(count) * len(train) // count]
            item.measure(column.index_select(0, torch.from_numpy(rows)))


def encode(
    schema: Schema, columns: Columns, memory: float = 4.0, content: str | None = None
) -> tuple[TensorSet, dict[int, str]]:
    """Encode every row, chunk by chunk, into one store. What fields remark is of all rows then.

    Args:
        schema: fitted fields.
        columns: N raw rows.
        memory: GiB beyond which the store is memory-mapped.
        content: digest of the rows' content, for the cache of decoded files; None never caches.

    Returns:
        The store of N rows, and the rows that could not be read with the reason of each.
    """
    places = _cache_places(schema, columns, content) if content else {}
    made = {name: kept for name, folder in places.items() if (kept := _cached(folder)) is not None}
    fresh = {name: item for name, item in schema.fields().items() if name not in made}
    made.update(_encoded(schema, fresh, columns, memory))
    for name in fresh:
        if name in places:
            _write_cache(places[name], made[name])
    store: dict[str, Encoded] = {}
    faults: dict[int, str] = {}
    for name, item in schema.fields().items():
        store[name] = _cut(made[name].column, item.window)
        item.remarks = made[name].remarks
        faults.update(made[name].faults)
    if weight := schema.special.get("weight"):
        store[WEIGHT] = torch.from_numpy(_weights(columns[weight], weight))
    return TensorSet(store), faults


@dataclass(frozen=True)
class Made:
    """One encoded field.

    Args:
        column: N rows.
        faults: rows that could not be read, with the reason of each.
        remarks: rows that were read otherwise than one might think.
    """

    column: Tensor | Ragged
    faults: dict[int, str]
    remarks: dict[int, str]


def _encoded(schema: Schema, items: Mapping[str, Field], columns: Columns, memory: float) -> dict[str, Made]:
    """All rows of some fields of a schema."""
    builders = {name: Builder(columns.rows, memory) for name in items}
    faults: dict[str, dict[int, str]] = {name: {} for name in items}
    remarks: dict[str, dict[int, str]] = {name: {} for name in items}
    for start, chunk in columns.chunks(_chunk_rows(schema)):
        for name, item in items.items():
            try:
                part = item.encode(chunk, target=name in schema.targets)
            except RowFaults as error:
                part = error.partial
                faults[name].update({start + row: reason for row, reason in error.reasons.items()})
            remarks[name].update({start + row: remark for row, remark in item.remarks.items()})
            builders[name].add(part)
    return {name: Made(builder.result(), faults[name], remarks[name]) for name, builder in builders.items()}


def _cut(column: Tensor | Ragged, window: tuple[int, int] | None) -> Encoded:
    """The column as it is, or as stretches of a series; rows of several moments are stretches already."""
    if window is None or isinstance(column, Ragged):
        return column
    return Windows(column, *window)


def _chunk_rows(schema: Schema) -> int:
    """Fewer rows at a time where a row is large, so that a chunk stays small beside the budget."""
    width = max((int(np.prod(item.shape)) for item in schema.inputs.values()), default=1)
    return int(np.clip(2**26 // max(width, 1), 256, 65_536))


def _weights(column: Column, name: str) -> np.ndarray:
    values = np.array(pc.fill_null(pc.cast(column, pa.float32()), float("nan")).to_numpy(), np.float32)
    usable = np.isfinite(values) & (values >= 0)
    if not usable.all():
        raise DataError(
            f"data.weight: column '{name}' has a missing, negative or infinite weight in row {int(usable.argmin()) + 1}."
        )
    return values


class Builder:
    """Collects encoded chunks: into one tensor made at the start, in memory or memory-mapped.

    Rows of unequal length have no known end, so theirs are written to a file that is read when it is whole: pieces that
    wait in memory would be held twice, and what they leave behind is not given back.

    Args:
        rows: N in all.
        memory: GiB above which the tensor lives in a file.
    """

    def __init__(self, rows: int, memory: float) -> None:
        self.rows = rows
        self.memory = memory
        self.place = 0
        self.dense: Tensor | None = None
        self.first: Ragged | None = None
        self.lengths: list[Tensor] = []
        self.spool: BufferedRandom | None = None

    def add(self, part: Tensor | Ragged) -> None:
        """The next rows."""
        if isinstance(part, Ragged):
            self._add_ragged(part)
            return
        if self.dense is None:
            if len(part) == self.rows:
                self.dense = part
                return
            self.dense = empty((self.rows, *part.shape[1:]), part.dtype, self.memory)
        self.dense[self.place : self.place + len(part)] = part
        self.place += len(part)

    def _add_ragged(self, part: Ragged) -> None:
        self.lengths.append(part.lengths())
        if self.first is None:
            self.first = part
            if len(part) == self.rows:
                return
            self.first = replace(part, values=part.values[:0].clone())
            self.spool = tempfile.TemporaryFile(dir=mapped_folder())  # noqa: SIM115 - `result` closes it
        assert self.spool is not None, "a whole column came in one part"
        part.values.contiguous().numpy().tofile(self.spool)

    def result(self) -> Tensor | Ragged:
        """All rows."""
        if self.dense is not None:
            return self.dense
        assert self.first is not None, "there are rows"
        if self.spool is None:
            return self.first
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(self.lengths).cumsum(0)])
        values = empty((int(offsets[-1]), *self.first.values.shape[1:]), self.first.values.dtype, self.memory)
        with self.spool as file:
            file.seek(0)
            file.readinto(values.numpy().data.cast("B"))
        return replace(self.first, values=values, offsets=offsets)


def _fingerprint(hashes: np.ndarray, columns: Columns, schema: Schema) -> str:
    """A digest of the rows' content and of everything that decides how they are encoded."""
    digest = hashlib.sha256(hashes.tobytes())
    names = [name for item in schema.targets.values() for name in item.columns]
    names += [schema.special["weight"]] if "weight" in schema.special else []
    digest.update(row_hashes(columns, names).tobytes())
    digest.update(json.dumps(schema.to_json(), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _cache_places(schema: Schema, columns: Columns, content: str) -> dict[str, Path]:
    """Field that is slow to encode -> its folder in the cache: for these rows, encoded in this way."""
    files = file_columns(schema, columns)
    slow = {name: item for name, item in schema.inputs.items() if files.intersection(item.columns)}
    places = {}
    for name, item in slow.items():
        way = json.dumps([ENCODING, content, item.kind, item.columns, item.encoding()], sort_keys=True, default=str)
        places[name] = cache_folder() / "encoded" / hashlib.sha256(way.encode()).hexdigest()[:32]
    return places


def _write_cache(folder: Path, made: Made) -> None:
    """Write a field beside, then rename. A cache that cannot be written costs time, not the run."""
    if not isinstance(made.column, Tensor):
        return
    values = made.column.contiguous().numpy()
    about = {
        "shape": list(values.shape),
        "dtype": str(made.column.dtype).removeprefix("torch."),
        "checksum": _checksum(values),
        "faults": {str(row): reason for row, reason in made.faults.items()},
        "remarks": {str(row): remark for row, remark in made.remarks.items()},
    }
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        values.tofile(beside / "values.bin")
        write_atomic(beside / "about.json", sealed_json(about))
        shutil.rmtree(folder, ignore_errors=True)  # one that is there was found damaged, or it would have been read
        os.replace(beside, folder)
    except (OSError, RunError):
        shutil.rmtree(beside, ignore_errors=True)


def _cached(folder: Path) -> Made | None:
    """The field that an earlier run encoded, memory-mapped; None where there is none or it is damaged."""
    try:
        about = read_json(folder / "about.json")
        dtype, size = getattr(torch, about["dtype"]), int(np.prod(about["shape"]))
        path = folder / "values.bin"
        if path.stat().st_size != size * dtype.itemsize:
            return None
        column = torch.from_file(str(path), shared=False, size=size, dtype=dtype).reshape(about["shape"])
        if _checksum(column.numpy()) != about["checksum"]:
            return None
        faults, remarks = ({int(row): text for row, text in about[key].items()} for key in ("faults", "remarks"))
        return Made(column, faults, remarks)
    except (RunError, OSError, KeyError, RuntimeError):
        return None


def _checksum(values: np.ndarray) -> int:
    """CRC-32 of the bytes: finds rot at the speed of reading."""
    return zlib.crc32(values.reshape(-1).view(np.uint8).data)


def bad_rows(
    schema: Schema, columns: Columns, faults: Mapping[int, str], numbers: np.ndarray | None = None
) -> list[BadRow]:
    """The rows that could not be read, and those of which the fields remarked something when they encoded them.

    Args:
        schema: whose fields have encoded `columns` last.
        columns: N raw rows.
        faults: row -> why it could not be read.
        numbers: (N,) places of the rows in the source, where not all are used.
    """
    found = [(row, reason, False) for row, reason in faults.items()]
    for item in schema.fields().values():
        found += [(row, remark, True) for row, remark in item.remarks.items() if row not in faults]
    return [BadRow(place_of(columns, schema, row, numbers), reason, used) for row, reason, used in sorted(set(found))]


def _without_faults(
    splits: Mapping[str, Index], faults: Mapping[int, str], bad: Sequence[BadRow], allowed: float, count: int
) -> dict[str, Index]:
    """Leave out unreadable rows; refuse when they are too many.

    Args:
        splits: part -> rows.
        faults: row -> why it cannot be read.
        bad: the same rows, and others that are used.
        allowed: share of all rows that may be left out.
        count: of all rows.

    Raises:
        BadRowsError: says which setting leaves them out.
    """
    if not faults:
        return dict(splits)
    out = [row for row in bad if not row.used]
    if len(faults) > allowed * count:
        share = min(0.99, round(1.2 * len(faults) / count + 0.005, 2))
        raise BadRowsError(
            f"{len(faults)} of {count} rows cannot be used", out,
            f"Mend them, or leave them out with data.bad_rows={share}.",
        )  # fmt: skip
    kept = {name: index[~np.isin(index, list(faults))] for name, index in splits.items()}
    for name, index in kept.items():
        if len(index) == 0:
            raise BadRowsError(f"Every row of the {name} split is unusable", out, "Mend them, or divide the rows otherwise.")
    return kept


def _number(numbers: np.ndarray | None, row: int) -> int:
    return 1 + (row if numbers is None else int(numbers[row]))


def place_of(columns: Columns, schema: Schema, row: int, numbers: np.ndarray | None = None) -> str:
    """Where a row is: its file where it has one, else its number."""
    files = (columns[name][row].as_py() for name in file_columns(schema, columns))
    return next((str(path) for path in files), f"row {_number(numbers, row)}")
