"""Rows with a time stamp to moments of equal distance, and what can be said about a series before it is learnt.

    ticks_of(column)        time stamps as integers (microseconds) or numbers
    find_grid(...)          the usual distance between moments, or why there is none
    place(...)              rows in the order of time, one a moment, gaps as missing rows    -> Moments
    calendar, season        what the distance makes meaningful
    find_leak(...)          an input that equals a later target

Every function is pure. Shapes: N rows, M moments of all entities end to end, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

DAY = 86_400_000_000  # microseconds
WEEK, YEAR = 7 * DAY, 365.2425 * DAY
ALIGNED, NEAR = 0.99, 0.25  # a grid fits where this share of the moments is within so much of a step of it
SPARSE = 4  # times as many moments as rows would be a grid of holes
SHIFTED, PROBES = 0.99, 16  # share of equal moments that makes a leak; moments looked at first


@dataclass(frozen=True)
class Grid:
    """Equal distances.

    Args:
        unit: "time" (microseconds), "month" or "number".
        step: distance between neighbors, in that unit.
    """

    unit: str
    step: float

    def slots(self, ticks: np.ndarray) -> np.ndarray:
        """(N,) int64, which moment each time stamp is, counted from the first."""
        if self.unit == "month":
            months = as_months(ticks)
            return (months - months.min()) // int(self.step)
        return np.rint((ticks - ticks.min()) / self.step).astype(np.int64)

    def ticks(self, first: Any, count: int) -> np.ndarray:
        """(count,) the time stamps from the first on."""
        if self.unit == "month":
            day = first - as_ticks(as_months(np.array([first])))[0]
            return as_ticks(as_months(np.array([first])) + int(self.step) * np.arange(count)) + day
        return first + (np.arange(count) * self.step).astype(type(first))

    def text(self) -> str:
        """The distance in words."""
        if self.unit == "number":
            return f"{self.step:g}"
        if self.unit == "month":
            return "1 month" if self.step == 1 else f"{self.step:g} months"
        for size, name in ((DAY, "day"), (DAY / 24, "hour"), (DAY / 1440, "minute"), (1e6, "second")):
            if self.step >= size:
                count = self.step / size
                return f"{count:g} {name}{'' if count == 1 else 's'}"
        return f"{self.step / 1e3:g} milliseconds"


@dataclass(frozen=True)
class Moments:
    """Moments of one or more entities, end to end, each in the order of time.

    Args:
        ticks: (M,) time of each.
        entity: (M,) which entity it belongs to, from 0.
        values: (M, C) nan where missing.
        duplicates: rows that shared their moment with another.
        gaps: moments that no row has.
        sorted: whether the rows came in the order of time.
    """

    ticks: np.ndarray
    entity: np.ndarray
    values: np.ndarray
    duplicates: int = 0
    gaps: int = 0
    sorted: bool = True

    def bounds(self) -> list[tuple[int, int]]:
        """First moment and end of each entity."""
        stops = np.flatnonzero(np.diff(self.entity, append=-1)) + 1
        return list(zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True))

    def where(self, kept: np.ndarray) -> Moments:
        """Only some moments."""
        return Moments(
            self.ticks[kept], self.entity[kept], self.values[kept], self.duplicates, self.gaps, self.sorted
        )  # fmt: skip


def is_temporal(kind: pa.DataType) -> bool:
    """Whether a column holds dates or time stamps."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def ticks_of(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) int64 microseconds since 1970 of time stamps, numbers as they are; no value may be missing."""
    if is_temporal(column.type):
        zoneless = pa.timestamp("us", getattr(column.type, "tz", None))
        return np.asarray(column.cast(zoneless, safe=False).cast(pa.int64()).to_numpy())
    return np.asarray(column.to_numpy())


def as_months(ticks: np.ndarray) -> np.ndarray:
    """Microseconds since 1970 -> months since 1970."""
    return ticks.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)


def as_ticks(months: np.ndarray) -> np.ndarray:
    """Months since 1970 -> microseconds of their first day."""
    return months.astype("datetime64[M]").astype("datetime64[us]").astype(np.int64)


def weekdays(ticks: np.ndarray) -> np.ndarray:
    """(N,) day of the week, Monday is 0."""
    return (ticks // DAY + 3) % 7


def find_grid(ticks: np.ndarray, entity: np.ndarray, temporal: bool) -> tuple[Grid | None, str]:
    """The most common distance between neighbors.

    Args:
        ticks: (N,) in any order.
        entity: (N,) integers.
        temporal: whether ticks are microseconds.

    Returns:
        The grid, or None with a sentence why the rows are taken in order instead.
    """
    order = np.lexsort((ticks, entity))
    ticks, entity = ticks[order], entity[order]
    steps = np.diff(ticks)[np.diff(entity) == 0]
    steps = steps[steps > 0]
    if not len(steps):
        return None, ""
    different, counts = np.unique(steps, return_counts=True)
    step = different[counts.argmax()]
    if temporal and different[0] >= 27 * DAY and _monthly(ticks):
        months = np.diff(as_months(ticks))[np.diff(entity) == 0]
        return Grid("month", float(np.bincount(months[months > 0]).argmax())), ""
    if temporal and step == DAY and len(steps) >= 10 and not (weekdays(ticks) > 4).any():
        return None, "No row falls on a weekend, so the rows are taken as working days, one after the other."
    grid = Grid("time" if temporal else "number", float(step))
    parts = [ticks[entity == one] for one in np.unique(entity)]
    off = np.concatenate([np.abs((part - part[0]) / step - np.rint((part - part[0]) / step)) for part in parts])
    if (off <= NEAR).mean() < ALIGNED:
        share = 100 * counts.max() / counts.sum()
        return None, (
            f"The time stamps have no common distance (the most common, {grid.text()}, is {share:.0f} % of them), so the "
            "rows are taken one after the other."
        )
    needed = sum((part[-1] - part[0]) / step for part in parts)
    if needed > SPARSE * len(ticks) + 1000:
        return None, (
            f"At a distance of {grid.text()}, {needed - len(ticks):,.0f} of {needed:,.0f} moments have no row, so the rows "
            "are taken one after the other; cut off what stands before the largest gap if that is wrong."
        )
    return grid, ""


def _monthly(ticks: np.ndarray) -> bool:
    """Whether all time stamps are one day of the month, or the last days of months."""
    first = as_ticks(as_months(ticks))
    after = as_ticks(as_months(ticks) + 1)
    return bool((ticks - first == ticks[0] - first[0]).all() or (after - ticks <= DAY).all())


def place(ticks: np.ndarray, entity: np.ndarray, values: np.ndarray, grid: Grid | None, averaged: int) -> Moments:
    """Rows to moments: sorted, one row a moment, gaps as rows of nan.

    Args:
        ticks: (N,).
        entity: (N,) integers from 0.
        values: (N, C).
        grid: None takes the rows one after the other; rows of one time stamp are still one moment.
        averaged: the first so many columns are averaged over the rows of a moment; of the others the first row counts.
    """
    order = np.lexsort((ticks, entity))
    in_order = bool((np.diff(ticks)[np.diff(entity) == 0] >= 0).all())
    ticks, entity, values = ticks[order], entity[order], values[order]
    parts, gaps, rows = [], 0, 0
    for start, stop in Moments(ticks, entity, values).bounds():
        mine = ticks[start:stop]
        if grid is None:
            slots = np.unique(mine, return_inverse=True)[1]
        else:
            slots = grid.slots(mine)
        firsts = np.flatnonzero(np.diff(slots, prepend=-1))
        merged = _merge(values[start:stop], firsts, averaged)
        rows += len(firsts)
        count = int(slots[-1]) + 1
        filled = np.full((count, values.shape[1]), np.nan)
        filled[slots[firsts]] = merged
        gaps += count - len(firsts)
        times = mine[firsts] if grid is None else grid.ticks(mine[0], count)
        parts.append((times, np.full(count, entity[start]), filled))
    joined = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    return Moments(joined[0], joined[1], joined[2], len(ticks) - rows, gaps, in_order)


def _merge(values: np.ndarray, firsts: np.ndarray, averaged: int) -> np.ndarray:
    """(moments, C) rows that start at `firsts` put together."""
    merged = values[firsts]
    if len(firsts) == len(values) or averaged == 0:
        return merged
    numbers = values[:, :averaged]
    known = np.isfinite(numbers)
    count = np.add.reduceat(known.astype(np.int64), firsts)
    total = np.add.reduceat(np.where(known, numbers, 0.0), firsts)
    sizes = np.diff(firsts, append=len(values))
    several = (sizes > 1)[:, None] & (count > 0)  # a single row keeps all of its digits
    merged[:, :averaged] = np.where(several, total / np.maximum(count, 1), merged[:, :averaged])
    return merged


# ---------------------------------------------------------------- what time says

CYCLES = {"hour of day": DAY, "day of week": WEEK, "day of year": YEAR}
ORIGIN = {"day of week": -3 * DAY}  # 1970-01-01 was a Thursday


def cycles(ticks: np.ndarray, step: float) -> list[str]:
    """The cycles that moments at this distance go through, and that were seen more than once before the test.

    Args:
        ticks: (M,) microseconds.
        step: usual distance in microseconds.
    """
    span = float(ticks.max() - ticks.min())
    longest = {"hour of day": DAY, "day of week": 2 * DAY, "day of year": YEAR / 3}
    return [name for name, period in CYCLES.items() if step < longest[name] and 0.7 * span >= period]


def wave(ticks: np.ndarray, cycle: str, which: str) -> np.ndarray:
    """(M,) sine or cosine of the place in a cycle."""
    angle = 2 * np.pi * ((ticks - ORIGIN.get(cycle, 0)) % CYCLES[cycle]) / CYCLES[cycle]
    return np.sin(angle) if which == "sin" else np.cos(angle)


def usual_season(grid: Grid | None) -> int:
    """Moments from one to the next like it, by the calendar: a day, a week, a year; 1 where it says nothing."""
    if grid is None:
        return 1
    if grid.unit == "month":
        return max(1, round(12 / grid.step))
    for period in (DAY, WEEK, YEAR):
        moments = period / grid.step
        if moments >= 2:
            return round(moments)
    return 1


def repeated_season(values: np.ndarray) -> int:
    """Moments after which a series is most like itself, by its autocorrelation; 1 where it never is.

    Args:
        values: (M,) of the training part.
    """
    known = np.isfinite(values)
    if known.sum() < 24:
        return 1
    filled = np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
    flat = filled - np.polyval(np.polyfit(np.arange(len(filled)), filled, 1), np.arange(len(filled)))
    power = np.abs(np.fft.rfft(flat, 2 * len(flat))) ** 2
    correlation = np.fft.irfft(power)[: len(flat) // 3]
    if correlation[0] <= 0:
        return 1
    correlation = correlation / correlation[0] * len(flat) / (len(flat) - np.arange(len(correlation)))  # unbiased
    below = np.flatnonzero(correlation < 0.2)
    if not len(below):
        return 1
    rest = correlation[below[0] :]
    if rest.max() < 0.3 or rest.argmax() == len(rest) - 1:
        return 1
    high = np.flatnonzero(rest >= 0.9 * rest.max())  # a season's multiples are as high as the season
    first = high[: np.flatnonzero(np.diff(high, append=len(rest) + 1) > 1)[0] + 1]
    return int(below[0] + first[rest[first].argmax()])


def find_leak(inputs: np.ndarray, targets: np.ndarray, horizon: int) -> tuple[int, int, int] | None:
    """An input that equals a target of a later moment.

    A column that often equals its own past (many zeros) is no leak; one that equals another column's future is.

    Args:
        inputs: (M, A) candidates.
        targets: (M, C).
        horizon: moments ahead that are forecast.

    Returns:
        input, target and distance, or None.
    """
    probed = np.unique(np.linspace(0, max(len(targets) - horizon - 1, 0), 4 * PROBES).astype(int))
    for distance in range(1, min(horizon, len(targets) - 1) + 1):
        probe = inputs[probed, :, None] == targets[np.minimum(probed + distance, len(targets) - 1), None, :]
        for a, c in np.argwhere(probe.mean(0) > 0.5):
            if _leaks(inputs[:-distance, a], targets[distance:, c], targets[:-distance, c]):
                return int(a), int(c), distance
    return None


def _leaks(given: np.ndarray, later: np.ndarray, now: np.ndarray) -> bool:
    both = np.isfinite(given) & np.isfinite(later)
    if both.sum() < 20:
        return False
    alike = np.isclose(given[both], later[both], rtol=1e-9, atol=0)
    return bool(alike.mean() >= SHIFTED and (now[both] == later[both]).mean() < 0.9)


def text_of(tick: Any, temporal: bool) -> str:
    """A time stamp as people write it."""
    if not temporal:
        return f"{tick:g}" if isinstance(tick, float) else str(tick)
    text = str(np.datetime64(int(tick), "us")).replace("T", " ").removesuffix(".000000")
    return text.removesuffix(" 00:00:00").removesuffix(":00")


def shares(test: float, validation: float, ticks: np.ndarray) -> tuple[Any, Any]:
    """The time stamps with which validation and test begin; every entity is cut there.

    Args:
        test: share of the different moments, the last ones.
        validation: share before them.
        ticks: (M,).
    """
    different = np.unique(ticks)
    stop = len(different) - round(test * len(different))
    start = max(0, stop - round(validation * len(different)))
    last = different[-1] + 1
    return (
        different[start] if start < len(different) else last,
        different[stop] if stop < len(different) else last,
    )


def origins(moments: Moments, past: int, horizon: int, cuts: Sequence[Any], known: np.ndarray) -> dict[str, np.ndarray]:
    """The moments from which each part forecasts.

    Moment i is one of a part where `past` moments end with it and the `horizon` moments after it lie within the part, all
    within one entity. The moments that are read may belong to earlier parts. A forecast of nothing known is left out.

    Args:
        moments: M of them.
        past: moments read.
        horizon: moments forecast.
        cuts: where validation and test begin.
        known: (M,) whether a target is known.
    """
    found: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    counted = np.concatenate([[0], np.cumsum(known)])
    for start, stop in moments.bounds():
        middle = start + np.searchsorted(moments.ticks[start:stop], np.array(cuts))
        edges = [start, *middle.tolist(), stop]
        for name, first, end in zip(found, edges[:-1], edges[1:], strict=True):
            rows = np.arange(max(first - 1, start + past - 1), end - horizon)
            found[name].append(rows[counted[rows + horizon + 1] > counted[rows + 1]] if len(rows) else rows)
    return {name: np.concatenate(parts).astype(np.int64) for name, parts in found.items()}
