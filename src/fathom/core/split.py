"""Dividing rows into train, validation and test so that the test is worth something.

Rows with equal inputs, and rows of one group, stay on one side. Within that rule the shares of every class are kept
(stratified). With a time column the last rows are the test and those before them the validation, and rows of one
moment stay together.

    divide(...)     the default split
    folds(...)      K disjoint held-out parts, under the same rule
    walk_forward(.) K stretches of a series, each judged by what was learnt of the moments before it
    check_given(..) refuses splits that hold the same rows
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from fathom.core.errors import DataError, count_text
from fathom.core.tensors import Index

VALIDATION, TEST = 0.1, 0.2


RANGE_BITS = 6  # equal hashes fall into one range; each range is numbered by itself, so that sorting needs little memory


def units(hashes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """(N,) int32, which rows must stay together: equal content, equal group, and whatever these chain together.

    Args:
        hashes: (N,) uint64, content of each row's inputs.
        groups: (N,) group of each row, integers; None where there are none.
    """
    unit = _numbered(hashes)
    if groups is None:
        return unit
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(unit)
    _, group = np.unique(groups, return_inverse=True)
    edges = np.concatenate([unit, group + unit.max() + 1])
    size = rows + int(edges.max()) + 1
    ends = np.concatenate([np.arange(rows), np.arange(rows)])
    graph = coo_array((np.ones(2 * rows, np.int8), (ends, edges + rows)), shape=(size, size))
    return _compact(connected_components(graph, directed=False)[1][:rows])


def _numbered(hashes: np.ndarray) -> np.ndarray:
    """(N,) int32, equal hashes -> equal numbers from 0 in the order of the hashes."""
    number = np.empty(len(hashes), np.int32)
    ranges = (hashes >> np.uint64(64 - RANGE_BITS)).astype(np.int8)
    used = 0
    for k in range(2**RANGE_BITS):
        rows = np.flatnonzero(ranges == k)
        different, inverse = np.unique(hashes[rows], return_inverse=True)
        number[rows] = inverse + used
        used += len(different)
    return number


def _compact(unit: np.ndarray) -> np.ndarray:
    """(N,) int32, the same units in the same order, numbered without gaps."""
    present = np.zeros(int(unit.max()) + 1, bool)
    present[unit] = True
    if present.all():
        return unit.astype(np.int32, copy=False)
    return (np.cumsum(present, dtype=np.int32) - np.int32(1))[unit]


def _sizes(unit: np.ndarray) -> np.ndarray:
    """(U,) int32, the rows of each unit."""
    return np.bincount(unit).astype(np.int32)


def _first_rows(unit: np.ndarray) -> np.ndarray:
    """(U,) int32, the first row of each unit."""
    first = np.empty(int(unit.max()) + 1, np.int32)
    first[unit[::-1]] = np.arange(len(unit) - 1, -1, -1, dtype=np.int32)  # of equal places the last one written stays
    return first


def divide(
    unit: np.ndarray,
    shares: Mapping[str, float],
    seed: int,
    strata: np.ndarray | None = None,
    time: np.ndarray | None = None,
) -> dict[str, Index]:
    """Divide rows into "train" and the parts of `shares`.

    Args:
        unit: (N,) rows of one unit stay together.
        shares: part -> share of the rows, in the order in which they are cut from the end of time.
        seed: of the shuffle.
        strata: (N,) integer classes whose shares are kept.
        time: (N,) order of the rows; replaces the shuffle.

    Returns:
        part -> sorted row numbers.

    Raises:
        DataError: a part would be empty.
    """
    if sum(shares.values()) >= 1:
        given = " and ".join(f"data.{name} = {share:g}" for name, share in shares.items())
        raise DataError(f"{given} leave no rows to learn from: shares must be less than 1 together.")
    rows = len(unit)
    if time is not None:
        parts = _by_time(time, shares)
    else:
        parts = _shuffled(unit, shares, seed, np.zeros(rows, np.int8) if strata is None else strata)
    for name, index in parts.items():
        if len(index) == 0:
            wanted = " and ".join(f"a {part} share of {share:g}" for part, share in shares.items())
            raise DataError(
                f"The {name} split would be empty: {count_text(rows, 'row')}, {len(np.unique(unit))} of them different, "
                f"are too few for {wanted}. Give more rows, or {_other_share(name, shares)}."
            )
    return parts


def _other_share(empty: str, shares: Mapping[str, float]) -> str:
    """What would fill an empty part: a larger share, or for the training rows a smaller one of another part."""
    if empty in shares:
        return f"another share as data.{empty}=0.3"
    largest = max(shares, key=lambda name: shares[name])
    return f"a smaller share as data.{largest}={shares[largest] / 2:g}"


def _by_time(time: np.ndarray, shares: Mapping[str, float]) -> dict[str, Index]:
    order = np.argsort(time, kind="stable")
    parts, stop = {}, len(time)
    for name, share in shares.items():
        start = stop - round(share * len(time))
        while 0 < start < stop and time[order[start]] == time[order[start - 1]]:
            start -= 1  # rows of one moment stay together
        parts[name] = np.sort(order[start:stop])
        stop = start
    parts["train"] = np.sort(order[:stop])
    return parts


def _shuffled(unit: np.ndarray, shares: Mapping[str, float], seed: int, strata: np.ndarray) -> dict[str, Index]:
    """Deal shuffled units of each class to the parts, each time to the part that lacks most of its share."""
    unit = _compact(unit)
    sizes = _sizes(unit)
    label = strata[_first_rows(unit)]  # a unit is dealt with the class of its first row
    shuffled = np.random.default_rng(seed).permutation(np.arange(len(sizes), dtype=np.int32))
    owner = np.full(len(sizes), -1, np.int8)
    wanted = np.array([1 - sum(shares.values()), *shares.values()])
    for value in np.unique(label):
        members = shuffled[label[shuffled] == value]
        owner[members] = _deal(sizes[members], wanted)
    row_owner = owner[unit]
    return {name: np.flatnonzero(row_owner == i) for i, name in enumerate(["train", *shares])}


def _deal(sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which part each unit goes to, so that the parts' shares of the rows come near `wanted`."""
    if (sizes == 1).all():
        bounds = np.round(np.cumsum(wanted) * len(sizes)).astype(np.int64)
        bounds[-1] = len(sizes)
        return np.repeat(np.arange(len(wanted), dtype=np.int8), np.diff(bounds, prepend=0))
    total, filled = sizes.sum(), np.zeros(len(wanted))
    owner = np.empty(len(sizes), np.int8)
    order = np.argsort(-sizes, kind="stable")  # large units first, or they would not fit
    for position in order:
        part = int(np.argmax(wanted * total - filled))
        owner[position] = part
        filled[part] += sizes[position]
    return owner


def folds(unit: np.ndarray, count: int, seed: int, strata: np.ndarray | None = None) -> list[Index]:
    """`count` disjoint held-out parts that together hold every row once.

    Raises:
        DataError: there are fewer units than folds.
    """
    if len(np.unique(unit)) < count:
        raise DataError(
            f"training.folds = {count} needs at least {count} different rows; there are {len(np.unique(unit))}."
        )
    unit = _compact(unit)
    sizes, first = _sizes(unit), _first_rows(unit)
    label = np.zeros(len(first), np.int64) if strata is None else np.unique(strata[first], return_inverse=True)[1]
    shuffled = np.random.default_rng(seed).permutation(len(first))
    order = shuffled[np.lexsort((-sizes[shuffled], label[shuffled]))]  # class after class, large units first
    owner = _deal_evenly(order, sizes, label, count)
    return [np.flatnonzero(owner[unit] == fold) for fold in range(count)]


def _deal_evenly(order: np.ndarray, sizes: np.ndarray, label: np.ndarray, count: int) -> np.ndarray:
    """Which fold each unit goes to: the one with the fewest rows of its class, of these the one with the fewest rows.

    So every fold has its share of a rare class's units, and none stays empty while there are units left.
    """
    owner = np.empty(len(order), np.int64)
    if (sizes == 1).all():
        owner[order] = np.arange(len(order)) % count
        return owner
    filled = np.zeros(count, np.int64)
    of_class = np.zeros((label.max() + 1, count), np.int64)
    for position in order:
        mine = of_class[label[position]]
        fold = int(np.argmin(mine * (sizes.sum() + 1) + filled))
        owner[position] = fold
        mine[fold] += sizes[position]
        filled[fold] += sizes[position]
    return owner


def walk_forward(
    rows: np.ndarray, count: int, horizon: int, past: int, validation: float = VALIDATION
) -> list[tuple[Index, Index, Index]]:
    """Folds of a series: each test stretch follows all that was learnt for it, and the learnt part grows.

    The moments that can be forecast from are cut into K + 1 stretches of as many each, wherever there are gaps; the first
    is only learnt from. A row forecasts the `horizon` moments after it, so those whose forecasts reach into the next part
    are left out: no training or validation window holds a moment that is judged. What a test row reads may well lie in the
    training part.

    Args:
        rows: (N,) integers, the moment from which each row forecasts; several series may share moments.
        count: K.
        horizon: moments that each row forecasts.
        past: moments that each row reads.
        validation: share of the moments before a test stretch, the last of them.

    Returns:
        Places in `rows` of training, validation and test of each fold, the earliest test first.

    Raises:
        DataError: the first stretch is too short to learn from.
    """
    moments = np.append(np.unique(rows), rows.max() + 1)  # the last is the end of the last stretch
    places = np.linspace(0, len(moments) - 1, count + 2).round().astype(np.int64)[1:]
    made = []
    for place, end in pairwise(places):
        start, stop = moments[place], moments[end]
        middle = min(moments[place - max(1, round(validation * place))], start - horizon)
        test = np.flatnonzero((rows >= start) & (rows < stop))
        held = np.flatnonzero((rows >= middle) & (rows + horizon <= start))
        train = np.flatnonzero(rows + horizon <= middle)
        if not (len(train) and len(held) and len(test)):
            fewest = (count + 1) * (2 * horizon + past)
            raise DataError(
                f"training.folds = {count} leaves the first fold too little to learn from: {len(moments) - 1:,} moments can be "
                f"forecast from, in {count + 1} stretches, and each forecast reads {past} and foretells {horizon}. Use fewer "
                f"folds, a shorter --horizon, or about {fewest:,} moments or more."
            )
        made.append((train, held, test))
    return made


def check_given(splits: Mapping[str, Index], hashes: np.ndarray, names: Mapping[str, str]) -> list[str]:
    """Look for equal rows in splits that were given.

    Args:
        splits: part -> rows.
        hashes: (N,) content of each row's inputs.
        names: part -> what the user called it.

    Returns:
        A sentence for each pair of splits that share some rows.

    Raises:
        DataError: most rows of one split are in another.
    """
    notes = []
    parts = [name for name in ("train", "validation", "test") if len(splits.get(name, ()))]
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            shared = np.isin(hashes[splits[other]], hashes[splits[one]]).sum()
            told = f"{names.get(other, other)} ({other}) and {names.get(one, one)} ({one})"
            if shared > 0.5 * min(len(splits[one]), len(splits[other])):
                raise DataError(
                    f"{told} hold the same rows: {shared} of {len(splits[other])}. A result on rows that were learnt "
                    "says nothing; give other rows, or leave one out and Fathom divides the rest."
                )
            if shared:
                stand = "stands" if shared == 1 else "stand"
                notes.append(
                    f"{count_text(int(shared), 'row')} of {other} {stand} in {one} too; the result is a little too good."
                )
    return notes
