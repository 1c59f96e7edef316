"""Series: what came moment by moment, and what comes next.

    Series      an input: the last `past` moments before a forecast, or one whole series a row (a patient, a gesture)
    Forecast    a target: the next `horizon` moments of one or more columns
    Steps       the layer: standardized values, flags of what was observed, and which moments exist
    Summary     mean, spread and ends of each channel in one pass, not spoilt by entry errors

Both fields center their values in float64 by the same mean and scale them by the same deviation, so that what is read
and what is forecast have one unit: the last observed value of a column, standardized, is a forecast of that column.

Shapes: N moments or rows, B rows of a batch, T moments of a row, C channels, H moments ahead, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field as Bounds
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, Loss, Ragged, hyperparameter
from fathom.core.errors import DataError, RowFaults, count_text
from fathom.core.registry import fields
from fathom.core.tensors import Column, is_list
from fathom.fields.metrics import resampled

HISTORY = ".history"  # a column of lists that stands for all columns of a Series: the moments that one forecast reads
SAMPLED = 2**18  # moments from which ends, mean and deviation are taken; more are drawn from at random
SEED = 0x5FA7803  # of that draw; with a common one, made-up data of the same seed would be drawn by their own values
BEYOND = 3.0  # a window's values may leave the training values by so many times their range: a series may go on rising
DIGITS = 6  # significant digits of an answer; float32 has no more

Share = Annotated[float, Bounds(ge=0, lt=0.5)]
Level = Annotated[float, Bounds(gt=0, lt=1)]


@fields.register("series")
class Series(Field):
    """Moments of several channels.

    Read from columns with one number a moment, or from one column that holds a list of moments a row. A source may
    put "layout" into the state: how the channels were made from the raw columns, with their names ("channels").
    """

    kind = "series"
    past: NonNegativeInt = hyperparameter(0, help="moments seen before a forecast; guessed from the steps where 0")
    fill: Literal["last", "mean"] = hyperparameter(
        "last", search=["last", "mean"], help="what stands where a value is missing: the last observed one, or the mean"
    )
    clip: Share = hyperparameter(0.001, help="share of the training values cut at each end before mean and deviation")

    @property
    def window(self) -> tuple[int, int] | None:
        """The `past` moments that end with moment i; None where each row is a series."""
        return (1 - self.past, self.past) if self.past else None

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the C channels."""
        return tuple(self.state.get("channels", self.columns))

    @property
    def missing(self) -> bool:
        """Whether training rows lacked a value, so that flags say what was observed."""
        return bool(self.state.get("missing", False))

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, F): `past`, or the longest training row; values, flags and "exists"."""
        channels = len(self.channels)
        return (self.past or self.state["length"], channels * (2 if self.missing else 1) + 1)

    def fit(self, chunks: Iterable[Columns]) -> None:
        """Mean, deviation and ends of each channel, and whether values are missing."""
        layout = self.state.get("layout", {})
        summary, length, missing = Summary(), 0, False
        for chunk in chunks:
            values, lengths = self._values(chunk)  # (M, C)
            summary.add(values)
            missing = missing or bool(np.isnan(values).any())
            length = max(length, int(lengths.max(initial=0)) if lengths is not None else 1)
        mean, std, low, high = summary.result(self.clip)
        names = layout.get("channels") or (self.columns if self.past or len(self.columns) == len(mean) else ())
        self.state = {
            "layout": layout,
            "channels": list(names) or [f"{self.columns[0]}{i}" for i in range(len(mean))],
            "mean": mean.tolist(),
            "std": std.tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "missing": missing,
            "length": max(length, 1),
        }

    def encode(self, columns: Columns, target: bool = False) -> Tensor | Ragged:
        """(N, C) float32, or N rows of (T, C) where rows are lists; minus the training mean, nan where missing."""
        values, lengths = self._values(columns)
        if len(values) and values.shape[1] != len(self.channels):
            raise DataError(
                f"'{self.columns[0]}' has {values.shape[1]} values a moment; the model reads {len(self.channels)}: "
                f"{', '.join(self.channels[:6])}."
            )
        encoded, faulty = centered(values, self.state["mean"])
        if lengths is None:
            made: Tensor | Ragged = encoded
            faults = {int(row): f"'{self.channels[c]}' is infinite or too large" for row, c in faulty.items()}
        else:
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            made = Ragged(encoded.reshape(-1, len(self.channels)), torch.from_numpy(offsets), float("nan"))
            owner = {int(np.searchsorted(offsets, step, "right")) - 1: c for step, c in faulty.items()}
            faults = {row: f"'{self.channels[c]}' holds an infinite or too large value" for row, c in owner.items()}
        if faults:
            raise RowFaults(faults, made)
        return made

    def _values(self, columns: Columns) -> tuple[np.ndarray, np.ndarray | None]:
        """(M, C) float64 moments of all rows, and (N,) how many each row has; None where a row is a moment."""
        name = HISTORY if HISTORY in columns else self.columns[0]
        first = columns[name]
        if not isinstance(first, np.ndarray) and is_list(first.type):
            return moments_of(first, name)
        return matrix(columns, self.columns), None

    def layer(self) -> nn.Module:
        """(B, T, C) with nan -> (B, T, F)."""
        low, high = np.array(self.state["low"]), np.array(self.state["high"])
        room = BEYOND * (high - low) if self.past else 0.0
        mean = np.array(self.state["mean"])
        return Steps(self.state["std"], low - room - mean, high + room - mean, self.missing, self.fill)

    def describe(self) -> str:
        """How many channels, over how many moments."""
        count = len(self.channels)
        names = ", ".join(self.channels[:6]) + (f" and {count - 6} more" if count > 6 else "")
        span = f"the last {self.past} moments" if self.past else f"up to {self.state.get('length', '?')} moments a row"
        return f"{count_text(count, 'channel')} over {span}: {names}" + ("; with gaps" if self.missing else "")


class Steps(nn.Module):
    """Centered moments with nan -> standardized values, flags of the observed ones, and a channel that says "exists".

    What is observed is never changed by what fills the gaps around it.

    Args:
        std: (C,) deviations.
        low: (C,) values further below the mean are cut to this.
        high: (C,) the same above.
        flags: whether to append what was observed.
        fill: "last" repeats the last observed value of a channel (0, the mean, before the first); "mean" puts 0.
    """

    def __init__(self, std: Sequence[float], low: np.ndarray, high: np.ndarray, flags: bool, fill: str) -> None:
        super().__init__()
        for name, value in (("scale", 1 / np.array(std)), ("low", low), ("high", high)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)
        self.flags = flags
        self.last = fill == "last"

    scale: Tensor
    low: Tensor
    high: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C + flags + 1)."""
        known = ~values.isnan()  # (B, T, C)
        exists = known.any(2, keepdim=True)  # (B, T, 1)
        scaled = values.clamp(self.low, self.high) * self.scale
        scaled = torch.where(known, scaled, torch.zeros_like(scaled))
        if self.last:
            steps = torch.arange(values.shape[1], device=values.device)[:, None]  # (T, 1)
            places = torch.where(known, steps, torch.zeros_like(steps)).cummax(1).values  # (B, T, C) last observed
            scaled = scaled.gather(1, places)
        parts = [scaled * exists, *([known] if self.flags else []), exists]
        return torch.cat([part.to(values.dtype) for part in parts], 2)


# ---------------------------------------------------------------- losses


def _mean(each: Tensor, known: Tensor) -> Tensor:
    """(B,) the mean over what is known; 0 for a row that knows nothing."""
    return each.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


def _difference(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Output minus target with 0 where the target is missing, and where it is not."""
    known = ~target.isnan()
    return torch.where(known, output - target.nan_to_num(0.0), 0.0), known


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row over (B, H, C); a missing target does not count."""
    difference, known = _difference(output, target)
    return _mean(difference.square(), known)


def mae(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each row over (B, H, C); a missing target does not count."""
    difference, known = _difference(output, target)
    return _mean(difference.abs(), known)


def huber(output: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Squared near zero, absolute beyond `delta` (Huber 1964); a missing target does not count."""
    difference, known = _difference(output, target)
    size = difference.abs()
    return _mean(torch.where(size <= delta, 0.5 * difference.square(), delta * (size - 0.5 * delta)), known)


def quantile(output: Tensor, target: Tensor, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> Tensor:
    """Pinball loss (Koenker and Bassett 1978), averaged over quantiles; a missing target does not count.

    Args:
        output: (B, H, C, Q).
        target: (B, H, C).
        quantiles: the Q levels.
    """
    levels = torch.tensor(quantiles, dtype=output.dtype, device=output.device)
    known = ~target.isnan()
    short = target.nan_to_num(0.0)[..., None] - output  # (B, H, C, Q) how much too low
    each = torch.maximum(levels * short, (levels - 1) * short).mean(-1)
    return _mean(torch.where(known, each, 0.0), known)


# ---------------------------------------------------------------- forecast


@fields.register("forecast")
class Forecast(Field):
    """The next moments of one or more columns.

    Outputs are standardized like those of numbers: a loss of 1.0 is as bad as always answering the mean.
    """

    kind = "forecast"
    losses: ClassVar[dict[str, Loss]] = {"mse": mse, "mae": mae, "huber": huber, "quantile": quantile}
    horizon: PositiveInt = hyperparameter(1, help="moments ahead; data.horizon says it")
    quantiles: tuple[Level, ...] = hyperparameter((), help="levels to forecast instead of one value: 0.1,0.5,0.9")
    season: PositiveInt = hyperparameter(1, help="moments back to the naive forecast of MASE; guessed from the steps")
    returns: bool = hyperparameter(False, help="forecast log returns; for columns of prices where not given")
    clip: Share = hyperparameter(0.001, help="as of the series that is read")

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(columns, **options)
        self.quantiles = tuple(sorted(self.quantiles))
        self.options["quantiles"] = list(self.quantiles)
        fitting: dict[str, Loss] = {"mse": mse, "mae": mae, "huber": huber}
        if self.quantiles:
            fitting = {"quantile": partial(quantile, quantiles=self.quantiles)}
        self.losses = fitting  # type: ignore[misc]  # which of them fit depends on the outputs

    @property
    def window(self) -> tuple[int, int]:
        """The `horizon` moments after moment i."""
        return (1, self.horizon)

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, C)."""
        return (self.horizon, len(self.columns))

    @property
    def outputs(self) -> tuple[int, ...]:
        """(H, C), or (H, C, Q)."""
        return (*self.shape, len(self.quantiles)) if self.quantiles else self.shape

    def fit(self, chunks: Iterable[Columns]) -> None:
        """Mean and deviation as a `Series` has them, and the mean absolute error of the naive forecast.

        The naive forecast is the value one season before (Hyndman and Koehler 2006); of returns it is 0, the last price.
        Where several entities stand end to end, the few differences across their borders count as well.
        """
        summary = Summary()
        total, count = np.zeros(len(self.columns)), np.zeros(len(self.columns))
        before = np.zeros((0, len(self.columns)))
        for chunk in chunks:
            values = matrix(chunk, self.columns)  # (M, C)
            summary.add(values)
            joined = np.concatenate([before, values])
            change = np.abs(values if self.returns else joined[self.season :] - joined[: -self.season])
            total += np.nansum(change, 0)
            count += np.isfinite(change).sum(0)
            before = joined[-self.season :]
        mean, std, _, _ = summary.result(self.clip)
        naive = np.where(count > 0, total / np.maximum(count, 1), 0.0)
        self.state = {"mean": mean.tolist(), "std": std.tolist(), "naive": naive.tolist()}

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """(N, C) float32, minus the training mean; a missing value is nan, and left out of loss and metrics."""
        encoded, faulty = centered(matrix(columns, self.columns), self.state["mean"])
        if faulty:
            raise RowFaults(
                {row: f"'{self.columns[c]}' is infinite or too large" for row, c in faulty.items()}, encoded
            )
        return encoded

    def scale(self, encoded: Tensor) -> Tensor:
        """Encoded (..., C) -> standardized, as the outputs of a network are."""
        return encoded / torch.tensor(self.state["std"], dtype=torch.float32, device=encoded.device)

    def unscale(self, output: Tensor) -> Tensor:
        """Standardized (..., C), or (..., C, Q) with quantiles -> float64 in the original units."""
        return self._spread(output) + self._along(self.state["mean"], output)

    def original(self, encoded: Tensor) -> Tensor:
        """Encoded (..., C) -> float64 in the original units, less the digits that float32 has no room for."""
        mean, std = (np.array(self.state[name]) for name in ("mean", "std"))
        return _rounded(encoded.double().cpu().numpy() + mean, std)

    def _spread(self, output: Tensor) -> Tensor:
        """Standardized -> float64 distance from the mean."""
        return output.double() * self._along(self.state["std"], output)

    def _along(self, numbers: Sequence[float], output: Tensor) -> Tensor:
        """(C,), or (C, 1) beside quantiles."""
        values = torch.tensor(numbers, dtype=torch.float64, device=output.device)
        return values[:, None] if self.quantiles else values

    def point(self, output: Tensor) -> Tensor:
        """(..., C, Q) -> (..., C): the level nearest to one half; without quantiles as it is."""
        if not self.quantiles:
            return output
        middle = int(np.abs(np.array(self.quantiles) - 0.5).argmin())
        return output.sort(-1).values[..., middle]  # levels that cross are put in order

    def decode(self, output: Tensor) -> list[Any]:
        """One dict a row: "answer" with H numbers (by column where there are several), "low" and "high" of quantiles."""
        std = self._along(self.state["std"], output).cpu().numpy()
        values = _rounded(self.unscale(output).cpu().numpy(), std)  # (B, H, C) or (B, H, C, Q)
        answers = {"answer": self.point(values)}
        if self.quantiles:
            answers |= {"low": values.amin(-1), "high": values.amax(-1)}
        rows = {name: values.tolist() for name, values in answers.items()}  # (B, H, C) each
        return [{name: self._named(values[i]) for name, values in rows.items()} for i in range(len(output))]

    def _named(self, moments: list[list[float]]) -> Any:
        """(H, C) numbers as a list, or as column -> list."""
        by_column = {name: [moment[c] for moment in moments] for c, name in enumerate(self.columns)}
        return by_column if len(by_column) > 1 else by_column[self.columns[0]]

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Errors in the original units over all known values, the columns counting alike.

        Args:
            output: (N, H, C), or (N, H, C, Q) with quantiles, of which the middle one is judged.
            target: (N, H, C) encoded, nan where missing.
            weight: None, (N,) or (R, N).

        Returns:
            name -> () or (R,): mse, rmse, mae, r2; scaled_mse (of standardized values, the training loss); mase (Hyndman
            and Koehler 2006); with quantiles also quantile_loss (standardized) and coverage of the outermost levels.
        """
        known = ~target.isnan()
        truth = target.nan_to_num(0.0).double()
        center = (truth * known).sum((0, 1)) / known.sum((0, 1)).clamp(min=1)  # (C,) keeps the variance's digits
        error = self._spread(output) if not self.quantiles else self.point(self._spread(output))
        error = error - truth
        parts = [error.square(), error.abs(), truth - center, (truth - center).square(), torch.ones_like(truth)]
        parts += self._levels(output, truth) if self.quantiles else []
        table = torch.stack([(part * known).sum(1) for part in parts], 1)  # (N, parts, C)
        rows, kinds, columns = table.shape

        def measure(weight: Tensor) -> dict[str, Tensor]:
            sums = (weight @ table.reshape(rows, -1)).reshape(-1, kinds, columns)  # (R, parts, C)
            return self._measures(sums / sums[:, 4:5])

        return resampled(measure, weight, rows)

    def _levels(self, output: Tensor, truth: Tensor) -> list[Tensor]:
        """(N, H, C) each: pinball loss of standardized values, and whether the outermost levels hold the truth."""
        std = torch.tensor(self.state["std"], dtype=torch.float64)
        levels = torch.tensor(self.quantiles, dtype=torch.float64)
        short = (truth / std)[..., None] - output.double()
        spread = self._spread(output).sort(-1).values
        inside = (spread[..., 0] <= truth) & (truth <= spread[..., -1])
        return [torch.maximum(levels * short, (levels - 1) * short).mean(-1), inside.double()]

    def _measures(self, means: Tensor) -> dict[str, Tensor]:
        """(R, parts, C) means -> name -> (R,); a column without a known value is left out."""
        mse, mae, mean, square = means[:, :4].unbind(1)  # (R, C) each
        std, naive = (torch.tensor(self.state[name], dtype=torch.float64) for name in ("std", "naive"))
        variance = square - mean.square()
        r2 = torch.where(variance > 1e-12 * square, 1 - mse / variance, torch.nan)
        found = {
            "mse": mse.nanmean(1),
            "rmse": mse.nanmean(1).sqrt(),
            "mae": mae.nanmean(1),
            "r2": r2.nanmean(1),
            "scaled_mse": (mse / std.square()).nanmean(1),
            "mase": torch.where(naive > 0, mae / naive, torch.nan).nanmean(1),
        }
        if self.quantiles:
            found |= {"quantile_loss": means[:, 5].nanmean(1), "coverage": means[:, 6].nanmean(1)}
        return found

    def describe(self) -> str:
        """What is forecast, and how far."""
        names = ", ".join(self.columns[:6]) + (f" and {len(self.columns) - 6} more" if len(self.columns) > 6 else "")
        what = f"log returns of {names}" if self.returns else names
        levels = f", quantiles {', '.join(f'{level:g}' for level in self.quantiles)}" if self.quantiles else ""
        return f"the next {self.horizon} moments of {what}{levels}"


# ---------------------------------------------------------------- numbers


def _rounded(values: np.ndarray, std: np.ndarray) -> Tensor:
    """Values less the digits that float32 has no room for, as measured by their own size or their deviation."""
    size = np.maximum(np.abs(np.nan_to_num(values)), std)
    places = 10.0 ** np.clip(DIGITS - np.floor(np.log10(size)), -300, 300)
    return torch.from_numpy(np.rint(values * places) / places)


class Summary:
    """Ends, mean and deviation of each channel from all moments, or from a random sample of many.

    A real entry error (a pH of 735) would make every other value look alike; so the ends of a channel are its quantiles,
    and mean and deviation are those of the values cut to them.
    """

    def __init__(self, most: int = SAMPLED) -> None:
        self.most = most
        self.random = np.random.default_rng(SEED)
        self.values: list[np.ndarray] = []
        self.order: list[np.ndarray] = []
        self.held = 0

    def add(self, values: np.ndarray) -> None:
        """(M, C) more moments, nan where missing."""
        self.values.append(values)
        self.order.append(self.random.random(len(values)))
        self.held += len(values)
        if self.held > 2 * self.most:
            self._draw()

    def _draw(self) -> None:
        """Keep the moments with the smallest random numbers: a fair sample, the same whatever the chunks were."""
        values, order = np.concatenate(self.values), np.concatenate(self.order)
        kept = np.sort(np.argsort(order, kind="stable")[: self.most])
        self.values, self.order, self.held = [values[kept]], [order[kept]], len(kept)

    def result(self, clip: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(C,) mean, deviation (1 where there is none), lowest and highest value that are no outliers."""
        self._draw()
        found = np.array([_summary(column[np.isfinite(column)], clip) for column in self.values[0].T])
        mean, std, low, high = found.reshape(-1, 4).T
        return mean, std, low, high


def _summary(known: np.ndarray, clip: float) -> tuple[float, float, float, float]:
    """Mean, deviation and ends of the known values of a channel."""
    if not len(known):
        return 0.0, 1.0, 0.0, 0.0
    low, high = (float(end) for end in np.quantile(known, (clip, 1 - clip)))
    if low == high:  # rare events: the ends would cut all of them
        low, high = float(known.min()), float(known.max())
    cut = known.clip(low, high)
    mean, std = float(cut.mean()), float(cut.std())
    return mean, std if std > max(1e-30, 1e-12 * abs(mean)) else 1.0, low, high


def centered(values: np.ndarray, mean: Sequence[float]) -> tuple[Tensor, dict[int, int]]:
    """(M, C) float64 -> float32 minus the mean, and moment -> channel where a value is infinite or too large."""
    with np.errstate(over="ignore"):
        encoded = (values - np.array(mean)).astype(np.float32) if len(values) else values.astype(np.float32)
    bad = np.isinf(encoded)
    faulty = {int(row): int(bad[row].argmax()) for row in np.flatnonzero(bad.any(1))}
    encoded[list(faulty)] = 0.0
    return torch.from_numpy(encoded), faulty


def matrix(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """(N, C) float64 of columns with one number a row, nan where missing."""
    values = np.empty((columns.rows, len(names)))
    for place, name in enumerate(names):
        values[:, place] = _numbers(columns[name], name)
    return values


def _numbers(column: Column, name: str) -> np.ndarray:
    if isinstance(column, np.ndarray):
        raise DataError(f"'{name}' has an array in each row {column.shape[1:]}; a series reads one number a moment.")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        numbers = column.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"'{name}' holds {column.type}; a series reads numbers.") from error
    return np.asarray(pc.fill_null(numbers, float("nan")).to_numpy(), np.float64)


def moments_of(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists of moments as numbers.

    Args:
        column: each row a list of T moments, each moment a list of C numbers, or one number.
        name: for errors.

    Returns:
        (sum of T, C) float64, nan where missing, and (N,) int64 how many moments each row has.

    Raises:
        DataError: moments have different numbers of values.
    """
    rows = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    lengths = pc.fill_null(pc.list_value_length(rows), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    steps = pc.list_flatten(rows)
    width = 1
    if is_list(steps.type):
        widths = pc.list_value_length(steps)
        width = int(pc.max(widths).as_py() or 0)
        odd = pc.index(pc.fill_null(pc.equal(widths, width), False), False).as_py()
        if odd >= 0:
            row = int(np.searchsorted(np.cumsum(lengths), odd, "right"))
            raise DataError(
                f"'{name}', row {row + 1}: a moment has {widths[odd].as_py() or 0} values, others have {width}. "
                "Give every moment one value a channel, null where it is missing."
            )
        steps = pc.list_flatten(steps)
    numbers = pc.fill_null(steps.cast(pa.float64()), float("nan")).to_numpy(zero_copy_only=False)
    return np.asarray(numbers, np.float64).reshape(int(lengths.sum()), width), lengths
