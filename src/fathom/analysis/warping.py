"""The class of the nearest series, where time may be stretched a little: hard to beat on few series.

    nearest(train, test)     distances by dynamic time warping within a band (Sakoe & Chiba 1978)
    answers(...)             log probabilities of the classes from them

One nearest neighbor with a band of 10 % is the baseline of the UCR archive (Dau et al. 2019). The table of all pairs is
filled diagonal by diagonal: the cells of one do not hang on each other, so that a diagonal is a few operations over
all pairs. In comments: N training and M test rows, T moments, C channels, W cells on a side of the band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BAND = 0.1  # of the longer series
PAIRS = 2**13  # worked on at once, so that a diagonal stays in the cache
WORK = 2**30  # cells times channels; more takes too long


def work(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> int:
    """Cells of the tables of all pairs, times channels."""
    longest = max(len(row) for row in (*train, *test))
    return len(train) * len(test) * longest * (2 * math.ceil(BAND * longest) + 1) * train[0].shape[1]


def nearest(train: Sequence[np.ndarray], test: Sequence[np.ndarray], band: float = BAND) -> np.ndarray:
    """Squared distances of all pairs.

    Args:
        train: N rows (T, C) without gaps.
        test: M rows (T, C).
        band: how far moments that are matched may lie apart, as a share of the longer series; at least as far as the
            lengths differ.

    Returns:
        (N, M) float32, the least sum of squared differences over all ways through the table.
    """
    first = _padded(train)
    size = max(1, PAIRS // len(train))
    parts = [_table(*first, *_padded(test[i : i + size]), band) for i in range(0, len(test), size)]
    return np.concatenate(parts, 1)


def _padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(T, C, N) rows side by side, and (N,) their lengths."""
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((lengths.max(), rows[0].shape[1], len(rows)), np.float32)
    for n, row in enumerate(rows):
        padded[: len(row), :, n] = row
    return padded, lengths


def _table(one: np.ndarray, ones: np.ndarray, other: np.ndarray, others: np.ndarray, band: float) -> np.ndarray:
    """(N, M) distances of (T, C, N) and (T, C, M).

    A cell is named by its diagonal i + j and its side k = i - j, which has the parity of the diagonal; so each diagonal is
    kept without the sides that it skips, and the cells before (k - 1 and k + 1) stand next to each other.
    """
    ones, others = ones[:, None], others[None]  # (N, 1), (1, M)
    ends, apart = ones + others - 2, ones - others  # (N, M) the last diagonal, and its side
    widest = np.maximum(np.ceil(band * np.maximum(ones, others)).astype(np.int64), np.abs(apart))
    wide, same = int(widest.max()), bool((ends == ends[0, 0]).all() and not apart.any())
    before, previous, now = (np.full((wide + 4, *ends.shape), np.inf, np.float32) for _ in range(3))
    scratch = np.empty_like(now)
    found = np.zeros(ends.shape, np.float32)
    for diagonal in range(int(ends.max()) + 1):
        low = max(-wide, diagonal - 2 * (len(other) - 1), -diagonal)
        high = min(wide, 2 * (len(one) - 1) - diagonal, diagonal)
        low, high = low + (low + diagonal) % 2, high - (high + diagonal) % 2
        start, count = place(low, wide, diagonal), (high - low) // 2 + 1
        now.fill(np.inf)
        cells, spare = now[start : start + count], scratch[:count]
        for n in range(count):
            i, j = (diagonal + low) // 2 + n, (diagonal - low) // 2 - n
            _squares(one[i], other[j], cells[n], spare[n])
        if diagonal:
            left = place(low - 1, wide, diagonal - 1)
            np.minimum(previous[left : left + count], previous[left + 1 : left + 1 + count], out=spare)
            np.minimum(spare, before[start : start + count], out=spare)
            cells += spare
        if not same:
            cells[np.abs(np.arange(low, high + 1, 2))[:, None, None] > widest] = np.inf
            done = np.nonzero(ends == diagonal)
            found[done] = now[(place(apart[done], wide, diagonal), *done)]
        before, previous, now = previous, now, before
    return previous[place(0, wide, int(ends[0, 0]))].copy() if same else found


def _squares(mine: np.ndarray, theirs: np.ndarray, total: np.ndarray, spare: np.ndarray) -> None:
    """(C, N) and (C, M) -> their squared distances, written into total (N, M)."""
    np.subtract(mine[0][:, None], theirs[0], out=total)
    np.square(total, out=total)
    for c in range(1, len(mine)):
        np.subtract(mine[c][:, None], theirs[c], out=spare)
        np.square(spare, out=spare)
        total += spare


def place(side: Any, wide: int, diagonal: int) -> Any:
    """Where the cell of a side k stands in the tensor of a diagonal."""
    return (side + wide + (wide + diagonal) % 2) // 2 + 1


def answers(distance: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Log probabilities (M, K); the likeliest class is that of the nearest row.

    Args:
        distance: (N, M) squared.
        classes: (N,) of the training rows.
        count: K.
    """
    from scipy.special import log_softmax

    each = np.full((distance.shape[1], count), np.inf)
    for k in np.unique(classes):
        each[:, k] = np.sqrt(distance[classes == k].min(0))
    unit = max(float(np.median(each.min(1))), 1e-6)
    logs: np.ndarray = log_softmax(np.maximum(-each / unit, -1e4), axis=1).clip(min=math.log(1e-7))
    return logs
