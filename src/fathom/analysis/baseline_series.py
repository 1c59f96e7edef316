"""What a forecast must beat, in seconds: naive forecasts, ridge regression on the past, and boosting on lags.

    forecasts(schema, train, test, seed) -> (name -> outputs of the test rows, notes)

    last value           every moment ahead is like the last known one; of returns it is 0, the last price
    seasonal naive       like the value one season before (a day, a week, a year)
    ridge on the past    each moment ahead a weighted sum of the moments seen, less and plus the last one (NLinear of Zeng
                         et al. 2023, in closed form), and of the mean of its place in the season. Whether the series
                         returns to a level or drifts, the last fifth of the training rows decides. One set of weights
                         for all columns where they are many; the penalty is chosen on the training rows by generalized
                         cross validation (Golub, Heath & Wahba 1979)
    gradient boosting    of one column beside others: its lags, the others and the moments ahead as a feature

Outputs are standardized like a network's. With quantiles, the quantiles of the training errors stand around each
forecast. In comments: N rows, B of a chunk, M moments, T seen, H ahead, K columns forecast, O others, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from fathom.core.contract import Schema
from fathom.core.tensors import Batch, TensorSet, Windows
from fathom.fields.series import Forecast, Series

SHARED = 8  # columns beyond which they share one set of weights
OTHERS = 64  # other channels that are read at most
CLIP = 10.0  # deviations beyond which another channel is cut: an entry error would count for all others
VALUES = 2**24  # numbers of windows at once
WORK = 2**35  # multiplications of the regression
PENALTIES = 10.0 ** np.arange(-7, 2)  # of ridge, in units of the mean square of a feature summed over the rows
LEARNT = 0.8  # of the training rows, while the others decide whether levels count
LAGS = 24  # of boosting
PAIRS = 30_000  # pairs of row and moment ahead that boosting learns from
ANSWERS = 2_000_000  # pairs that it answers at most
ROUNDS = 100
ERRORS = 2000  # training rows whose errors make quantiles
CALENDAR = ("hour of day (", "day of week (", "day of year (")  # channels that are known of moments to come

Answer = Callable[["Moments", np.ndarray], np.ndarray]  # rows (B,) -> (B, H, K)


@dataclass(frozen=True)
class Moments:
    """A series with what is forecast, standardized.

    Args:
        values: (M, K) float32, nan where missing.
        others: (M, O) float32 the channels that are not forecast, nan where missing.
        rows: (N,) moments from which is forecast.
    """

    values: np.ndarray
    others: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Task:
    """What is forecast from what.

    Args:
        target: name of what is forecast.
        item: the same as a field.
        place: name of the input that holds the moments seen; None where none does.
        series: the same as a field.
        whole: whether the moments are those of one series, so that moments before the ones seen belong to it.
    """

    target: str
    item: Forecast
    place: str | None
    series: Series | None
    whole: bool

    @staticmethod
    def of(schema: Schema) -> Task:
        """What this schema forecasts."""
        ((target, item),) = schema.targets.items()
        assert isinstance(item, Forecast)
        found = [(name, field) for name, field in schema.inputs.items() if isinstance(field, Series) and field.past]
        place, series = found[0] if found else (None, None)
        return Task(target, item, place, series, "group" not in schema.special)

    @property
    def past(self) -> int:
        """T."""
        return self.series.past if self.series else 1

    @property
    def others(self) -> dict[str, int]:
        """The channels that are not forecast, with their places."""
        names = self.series.channels if self.series else ()
        places = {name: i for i, name in enumerate(names) if name not in self.item.columns}
        return dict(list(places.items())[:OTHERS])

    @property
    def ahead(self) -> int:
        """H."""
        return self.item.horizon

    def base(self, past: np.ndarray) -> np.ndarray:
        """(B, T, K) without gaps -> (B, 1, K), what a forecast starts from: the last value; 0 for returns."""
        return past[:, -1:] * (0.0 if self.item.returns else 1.0)

    def seen(self, moments: Moments, rows: np.ndarray) -> np.ndarray:
        """(B, T, K) the moments seen, gaps filled by the value before them (the mean before the first)."""
        return carried(moments.values[rows[:, None] + np.arange(1 - self.past, 1)])

    def coming(self, moments: Moments, rows: np.ndarray) -> np.ndarray:
        """(B, H, K) the moments ahead, nan where missing."""
        return moments.values[rows[:, None] + np.arange(1, self.ahead + 1)]

    def chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Rows, as many at a time as memory should hold."""
        size = max(1, VALUES // ((self.past + 2 * self.ahead) * len(self.item.columns)))
        return (rows[start : start + size] for start in range(0, len(rows), size))


def forecasts(schema: Schema, train: TensorSet, test: TensorSet, seed: int) -> tuple[dict[str, Batch], list[str]]:
    """Every baseline that suits the forecast.

    Args:
        schema: fitted; its one target is a `Forecast`.
        train: encoded training rows.
        test: encoded rows to answer; of the same series or of another.
        seed: of rows that are drawn.

    Returns:
        name -> target -> (N, *outputs), the last value first; and sentences about what was left out.
    """
    task = Task.of(schema)
    same = train.columns[task.target] is test.columns[task.target]
    learnt, asked = read(task, train), read(task, test)
    profile = seasonal_means(task, learnt) if same else None
    answers, notes = _answers(task, learnt, asked, profile, seed)
    found = {}
    for label, answer in answers.items():
        points = np.concatenate([answer(asked, rows) for rows in task.chunks(asked.rows)])  # (N, H, K)
        outputs = with_quantiles(task, points, answer, learnt, seed)
        found[label] = {task.target: torch.from_numpy(outputs.astype(np.float32))}
    return found, notes


def read(task: Task, data: TensorSet) -> Moments:
    """The standardized series of a set, and the moments that are its rows."""
    column = data.columns[task.target]
    assert isinstance(column, Windows), "a forecast is cut from a series"
    values = task.item.scale(column.values).numpy()
    rows = np.arange(len(values)) if data.index is None else data.index.numpy()
    others: np.ndarray = np.zeros((len(values), 0), np.float32)
    if task.series is not None and task.place is not None and task.others:
        places = list(task.others.values())
        series = data.columns[task.place]
        assert isinstance(series, Windows)
        others = (series.values[:, places].numpy() / np.array(task.series.state["std"], np.float32)[places]).clip(-CLIP, CLIP)
    return Moments(values, others, rows)


def carried(past: np.ndarray) -> np.ndarray:
    """(B, T, K) with each gap filled by the last value before it, and 0 where there is none."""
    gaps = np.isnan(past)
    if not gaps.any():
        return past
    steps = np.arange(past.shape[1])[:, None]
    places = np.maximum.accumulate(np.where(gaps, 0, steps), axis=1)
    return np.nan_to_num(np.take_along_axis(past, places, 1))


def _answers(
    task: Task, learnt: Moments, asked: Moments, profile: np.ndarray | None, seed: int
) -> tuple[dict[str, Answer], list[str]]:
    """Name -> what answers; and sentences about what was left out."""
    found: dict[str, Answer] = {}
    notes: list[str] = []
    season = task.item.season
    if task.item.returns:
        found["last price"] = partial(_price, task)
        found["mean return"] = partial(_mean, task)
    else:
        found["last value"] = partial(_last, task)
        if season > 1 and (task.whole or season <= task.past):
            found["seasonal naive"] = partial(_seasonal, task)
        elif season > 1:
            notes.append(
                f"There is no baseline 'seasonal naive': a season has {season} moments, and {task.past} of each series are seen."
            )
    try:
        found["ridge on the past"] = Ridge.fit(task, learnt, profile, seed).answer
    except ValueError as error:
        notes.append(f"There is no baseline 'ridge on the past': {error}.")
    if len(task.item.columns) == 1 and task.others:
        if len(asked.rows) * task.ahead > ANSWERS:
            notes.append(
                f"There is no baseline 'gradient boosting': {len(asked.rows) * task.ahead:,} forecasts are more than {ANSWERS:,}."
            )
        else:
            found["gradient boosting"] = Boosted.fit(task, learnt, profile, seed).answer
    return found, notes


# ---------------------------------------------------------------- naive


def _last(task: Task, moments: Moments, rows: np.ndarray) -> np.ndarray:
    """(B, H, K) the last known value."""
    return task.seen(moments, rows)[:, -1:].repeat(task.ahead, 1)


def _price(task: Task, moments: Moments, rows: np.ndarray) -> np.ndarray:
    """(B, H, K) a return of 0."""
    zero = -np.array(task.item.state["mean"]) / np.array(task.item.state["std"])
    return np.broadcast_to(zero, (len(rows), task.ahead, len(zero)))


def _mean(task: Task, moments: Moments, rows: np.ndarray) -> np.ndarray:
    """(B, H, K) the mean of the training rows."""
    return np.zeros((len(rows), task.ahead, len(task.item.columns)))


def _seasonal(task: Task, moments: Moments, rows: np.ndarray) -> np.ndarray:
    """(B, H, K) the value so many seasons before that it is known; the last value where there is none."""
    season, steps = task.item.season, np.arange(1, task.ahead + 1)
    places = rows[:, None] + steps - season * -(-steps // season)  # (B, H)
    if not task.whole:  # what stands before the moments seen may be another series
        places = np.where(places > rows[:, None] - task.past, places, -1)
    before = moments.values[places.clip(min=0)]
    usable = (places >= 0)[..., None] & ~np.isnan(before)
    return np.where(usable, before, _last(task, moments, rows))


def seasonal_means(task: Task, moments: Moments) -> np.ndarray | None:
    """(S, K) the mean of each place in the season over the moments of the training rows.

    None where seasons are not counted from the first moment: returns, no season, several series end to end.
    """
    season = task.item.season
    if task.item.returns or season < 2 or not task.whole:
        return None
    change = np.zeros(len(moments.values) + 1, np.int64)
    np.add.at(change, (moments.rows - task.past + 1).clip(min=0), 1)
    np.add.at(change, moments.rows + task.ahead + 1, -1)
    learnt = np.cumsum(change[:-1]) > 0  # (M,)
    total, count = np.zeros((season, moments.values.shape[1])), np.zeros((season, moments.values.shape[1]))
    known = learnt[:, None] & ~np.isnan(moments.values)
    phase = np.arange(len(moments.values)) % season
    np.add.at(total, phase, np.where(known, moments.values, 0.0))
    np.add.at(count, phase, known)
    return total / np.maximum(count, 1)


# ---------------------------------------------------------------- ridge regression


@dataclass(frozen=True)
class Ridge:
    """Closed form. Each moment ahead has weights of its own for the moments seen, and one for its seasonal mean.

    Args:
        task: what is forecast.
        profile: (S, K) seasonal means, or None.
        level: whether the last value and its distance from the seasonal mean count, not only what changes.
        weights: (1 or K, F, H) of the `features`.
        seasonal: (1 or K, H) weight of the seasonal mean.
    """

    task: Task
    profile: np.ndarray | None
    level: bool
    weights: np.ndarray
    seasonal: np.ndarray

    @staticmethod
    def fit(task: Task, moments: Moments, profile: np.ndarray | None, seed: int) -> Ridge:
        """From the training rows; whether levels count is decided on the last of them.

        Raises:
            ValueError: too few rows; the text says so.
        """
        cut = int(LEARNT * len(moments.rows))
        early = replace(moments, rows=moments.rows[: max(cut - task.ahead, 0)])
        late = drawn(moments.rows[cut:], ERRORS, seed)
        level = False
        if not task.item.returns and len(early.rows) > task.past and len(late):
            drifting, steady = (Ridge.of(task, early, profile, kind, seed).error(moments, late) for kind in (False, True))
            level = steady < drifting
        return Ridge.of(task, moments, profile, level, seed)

    @staticmethod
    def of(task: Task, moments: Moments, profile: np.ndarray | None, level: bool, seed: int) -> Ridge:
        """From the rows whose moments ahead are all known, drawn by the seed where they are many."""
        columns = len(task.item.columns)
        sets = 1 if columns > SHARED else columns
        width = features(task, moments, moments.rows[:1], level).shape[2]
        most = WORK // (columns * width * (width + 2 * task.ahead))
        rows = drawn(moments.rows, max(most, 1), seed)
        grams = [Gram(width, task.ahead) for _ in range(sets)]
        for part in task.chunks(rows):
            base = task.base(task.seen(moments, part))  # (B, 1, K)
            given, wanted = features(task, moments, part, level), task.coming(moments, part) - base
            means = seasonal(task, profile, part, base if level else None)  # (B, H, K)
            for k in range(columns):
                whole = ~np.isnan(wanted[..., k]).any(1)
                grams[k % sets].add(given[whole, k], means[whole, :, k], wanted[whole, :, k])
        if min(gram.rows for gram in grams) <= 2:
            raise ValueError("too few training rows have all of their moments ahead")
        solved = [gram.solve() for gram in grams]
        return Ridge(task, profile, level, np.stack([one for one, _ in solved]), np.stack([other for _, other in solved]))

    def answer(self, moments: Moments, rows: np.ndarray) -> np.ndarray:
        """(B, H, K)."""
        base = self.task.base(self.task.seen(moments, rows))
        given = features(self.task, moments, rows, self.level).astype(np.float64)  # (B, K, F)
        means = seasonal(self.task, self.profile, rows, base if self.level else None)
        sets = len(self.weights)
        ahead = [given[:, k] @ self.weights[k % sets] for k in range(given.shape[1])]  # (B, H) each
        return base + np.stack(ahead, 2) + means * self.seasonal.T

    def error(self, moments: Moments, rows: np.ndarray) -> float:
        """Mean squared error; nan where nothing is known."""
        wrong = [self.answer(moments, part) - self.task.coming(moments, part) for part in self.task.chunks(rows)]
        each = np.concatenate(wrong)
        known = ~np.isnan(each)
        return float((each[known] ** 2).mean()) if known.any() else float("nan")


def features(task: Task, moments: Moments, rows: np.ndarray, level: bool) -> np.ndarray:
    """(B, K, F): the moments seen less the last one, a 1, and the last one itself where levels count."""
    past = task.seen(moments, rows)  # (B, T, K)
    moved = (past - task.base(past)).transpose(0, 2, 1)
    parts = [moved, np.ones_like(moved[..., :1]), *([past[:, -1, :, None]] if level else [])]
    return np.concatenate(parts, 2)


def seasonal(task: Task, profile: np.ndarray | None, rows: np.ndarray, base: np.ndarray | None) -> np.ndarray:
    """(B, H, K) the mean of the place in the season of each moment ahead, less the base (B, 1, K), or less the mean of now.

    0 without a profile.
    """
    if profile is None:
        return np.zeros((len(rows), task.ahead, len(task.item.columns)))
    places = rows[:, None] + np.arange(task.ahead + 1)  # (B, 1 + H)
    means = profile[places % len(profile)]
    return means[:, 1:] - (means[:, :1] if base is None else base)


class Gram:
    """The sums that ridge regression needs, over chunks of rows.

    Args:
        width: F.
        ahead: H.
    """

    def __init__(self, width: int, ahead: int) -> None:
        self.rows = 0
        self.given = np.zeros((width, width))  # X'X
        self.means, self.wanted = np.zeros((width, ahead)), np.zeros((width, ahead))  # X'P, X'Y
        self.squares = np.zeros((3, ahead))  # P'P, P'Y, Y'Y of each moment ahead

    def add(self, given: np.ndarray, means: np.ndarray, wanted: np.ndarray) -> None:
        """More rows: X (B, F), P (B, H), Y (B, H)."""
        given, means, wanted = (part.astype(np.float64) for part in (given, means, wanted))
        self.rows += len(given)
        self.given += given.T @ given
        self.means += given.T @ means
        self.wanted += given.T @ wanted
        self.squares += np.stack([(means**2).sum(0), (means * wanted).sum(0), (wanted**2).sum(0)])

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        """(F, H) weights and (H,) weight of the seasonal mean, at the penalty with the least cross-validated error."""
        values, vectors = np.linalg.eigh(self.given)
        values = values.clip(min=0)
        unit = values.mean() or 1.0
        tried = [self._solve(values, vectors, unit * penalty) for penalty in PENALTIES]
        best = min(tried, key=lambda one: one[0])
        return best[1], best[2]

    def _solve(self, values: np.ndarray, vectors: np.ndarray, penalty: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Generalized cross validation and the weights of one penalty.

        The seasonal mean of each moment ahead is one more feature, eliminated by its own normal equation.
        """
        shrunk = (values + penalty)[:, None]
        alone, other = (vectors @ (vectors.T @ side / shrunk) for side in (self.wanted, self.means))  # (F, H)
        crossed, moved, total = self.squares
        rest = crossed + penalty - (self.means * other).sum(0)
        weight = (moved - (self.means * alone).sum(0)) / np.maximum(rest, 1e-9 * (crossed + penalty) + 1e-300)
        weights = alone - other * weight
        fitted = (weights * (self.given @ weights)).sum(0) + 2 * weight * (self.means * weights).sum(0)
        error = total - 2 * (weights * self.wanted).sum(0) - 2 * weight * moved + fitted + weight**2 * crossed
        freedom = 1 - (float((values / shrunk[:, 0]).sum()) + 1) / self.rows
        score = float(error.clip(min=0).sum()) / freedom**2 if freedom > 0 else np.inf
        return score, weights, weight


# ---------------------------------------------------------------- boosting


@dataclass(frozen=True)
class Boosted:
    """Histogram gradient boosting of one column on lags, other channels, seasonal mean and moments ahead.

    Args:
        task: what is forecast.
        profile: (S, 1), or None.
        model: a fitted regressor of the distance from the base.
    """

    task: Task
    profile: np.ndarray | None
    model: object

    @staticmethod
    def fit(task: Task, moments: Moments, profile: np.ndarray | None, seed: int) -> Boosted:
        """From pairs of training row and moment ahead, drawn by the seed."""
        from sklearn.ensemble import HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        pairs = drawn(np.arange(len(moments.rows) * task.ahead), PAIRS, seed)
        rows, steps = moments.rows[pairs // task.ahead], pairs % task.ahead + 1
        wanted = moments.values[rows + steps, 0]
        known = ~np.isnan(wanted)
        given, base = lagged(task, moments, profile, rows[known], steps[known])
        model = HistGradientBoostingRegressor(max_iter=ROUNDS, early_stopping=False, random_state=seed)
        with threadpool_limits(1):  # so few rows are slower on more threads, and many times so on a busy machine
            model.fit(given, wanted[known] - base)
        return Boosted(task, profile, model)

    def answer(self, moments: Moments, rows: np.ndarray) -> np.ndarray:
        """(B, H, 1)."""
        steps = np.tile(np.arange(1, self.task.ahead + 1), len(rows))
        given, base = lagged(self.task, moments, self.profile, rows.repeat(self.task.ahead), steps)
        ahead = base + self.model.predict(given)  # type: ignore[attr-defined]
        return ahead.reshape(len(rows), self.task.ahead, 1)


def lagged(
    task: Task, moments: Moments, profile: np.ndarray | None, rows: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Features (P, F) of pairs of row and moment ahead, and the base (P,) of each.

    The calendar is read at the moment that is forecast; every other channel at the last moment seen.
    """
    past = task.seen(moments, rows)[..., 0]  # (P, T)
    base = task.base(past[..., None])[:, 0, 0]
    calendar = [i for i, name in enumerate(task.others) if name.lower().startswith(CALENDAR)]
    parts = [past[:, -LAGS:] - base[:, None], past[:, -1:], steps[:, None], moments.others[rows]]
    parts.append(moments.others[rows + steps][:, calendar])
    if profile is not None:
        place = (rows + steps) % len(profile)
        parts += [profile[place] - base[:, None], place[:, None]]
    return np.concatenate(parts, 1).astype(np.float32), base


# ---------------------------------------------------------------- quantiles


def with_quantiles(task: Task, points: np.ndarray, answer: Answer, learnt: Moments, seed: int) -> np.ndarray:
    """(N, H, K) forecasts, or (N, H, K, Q) with the quantiles of the training errors around them.

    The level nearest to one half is the forecast itself, so that its figures are those of its name.
    """
    levels = task.item.quantiles
    if not levels:
        return points
    rows = drawn(learnt.rows, ERRORS, seed)
    errors = np.concatenate([task.coming(learnt, part) - answer(learnt, part) for part in task.chunks(rows)])
    errors[:, np.isnan(errors).all(0)] = 0.0
    away = np.nanquantile(errors, levels, axis=0)  # (Q, H, K)
    away[int(np.abs(np.array(levels) - 0.5).argmin())] = 0.0
    return np.sort(points[..., None] + np.moveaxis(away, 0, -1), -1)


def drawn(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """All rows, or so many of them drawn by the seed, in their order."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])]
