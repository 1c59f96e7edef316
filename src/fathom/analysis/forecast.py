"""How good forecasts are beyond their errors: by horizon, against the last value, and as a rule to trade by.

    details(...)         what results.json holds of a target that is forecast
    horizons(...)        errors at each step ahead, and over all steps up to it
    skill(...)           how much less the squared error is than that of a naive forecast, with its interval
    diebold_mariano(...) whether two forecasts of one series differ in their errors
    direction(...)       how often the sign of a return was foretold
    trade(...)           a stated rule beside buying and holding, after costs

Prices are near a random walk, so that a small error says nothing: no skill is claimed unless the whole interval of the
skill lies above zero. In comments: N rows in the order of time, H moments ahead, K columns, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis.evaluate import (
    CONFIDENCE,
    DRAWS,
    FEWEST,
    RESAMPLES,
    Estimate,
    percentiles,
    resample_weights,
    wilson,
)
from fathom.core.contract import Field, Schema
from fathom.core.tensors import Batch, TensorSet
from fathom.fields.series import Forecast, Series

NAIVE = ("last value", "last price", "seasonal naive", "mean return")
FEW = 20  # stretches of time, below which resampling them says little
SHOWN = 8  # steps ahead of which errors are told
STRETCH = 200  # moments of a picture
COST = 0.0005  # of the money that is moved: 5 basis points
WORKING_DAYS = 252  # of a year
YEAR = 365.2425 * 86_400e6  # microseconds

Line = dict[str, Any]


def details(
    name: str,
    schema: Schema,
    network: Batch,
    baselines: Mapping[str, Batch],
    data: TensorSet,
    seed: int,
    blocks: np.ndarray | None,
) -> Line:
    """What results.json holds of one forecast.

    Args:
        name: of the target.
        schema: fitted.
        network: target -> (N, H, K), or (N, H, K, Q) with quantiles.
        baselines: name -> outputs of the same form.
        data: the N rows, in the order of time within each series.
        seed: of the resampling.
        blocks: (N,) rows of one number are resampled together.

    Returns:
        columns, horizon, returns; horizons (a line a step); skill, against and judgment; test (Diebold and Mariano); for
        returns also direction and trading; stretch: what the picture of a stretch of rows needs.
    """
    item = schema.targets[name]
    assert isinstance(item, Forecast)
    target = data.column(name)  # (N, H, K)
    rows = torch.arange(len(data)) if data.index is None else data.index
    candidates = {"network": network[name], **{label: batch[name] for label, batch in baselines.items()}}
    wrong = {label: errors(item, output, target) for label, output in candidates.items()}  # (N, H, K) each
    naive = [label for label in NAIVE if label in wrong]
    found: Line = {
        "kind": item.kind,
        "columns": list(item.columns),
        "horizon": item.horizon,
        "returns": item.returns,
        "horizons": horizons(item, wrong),
        "stretch": stretch(item, network[name], target, rows.numpy()),
    }
    if naive:
        loss = {label: row_loss(wrong[label]) for label in ("network", *naive)}  # (N,) each
        gained = skill(loss["network"], loss[naive[0]], seed, blocks)
        found |= {"against": naive[0], "skill": gained.to_json(), "judgment": judgment(item, gained, naive[0])}
        strongest = min(naive, key=lambda label: float(loss[label].nanmean()))
        found["test"] = compared(loss["network"], loss[strongest], item.horizon, strongest)
    if item.returns:
        answer, truth = item.point(item.unscale(candidates["network"])), item.original(target)
        found["direction"] = direction(answer[:, 0, 0], truth[:, 0, 0])
        found["trading"] = trade(answer[:, 0, 0].numpy(), truth[:, 0, 0].numpy(), *a_year(schema))
    return found


def remarks(targets: Mapping[str, Line], blocks: np.ndarray | None) -> list[str]:
    """Sentences that stand beside the result: whether prices were foretold, and intervals on few stretches of time.

    Args:
        targets: name -> details.
        blocks: (N,) rows of one number are resampled together.
    """
    forecasts = [found for found in targets.values() if found["kind"] == "forecast"]
    told = [found["judgment"] for found in forecasts if found["returns"] and "judgment" in found]
    stretches = 0 if blocks is None else len(np.unique(blocks))
    if forecasts and 1 < stretches < FEW:
        told.append(f"Intervals rest on {stretches} stretches of time only, and may be too narrow.")
    return told


def errors(item: Forecast, output: Tensor, target: Tensor) -> Tensor:
    """(N, H, K) float64 standardized answer less truth; nan where the truth is missing."""
    return item.point(output).double() - item.scale(target).double()


def row_loss(error: Tensor) -> Tensor:
    """(N,) mean squared error of each row; nan where nothing of it is known."""
    return error.square().flatten(1).nanmean(1)


def horizons(item: Forecast, wrong: Mapping[str, Tensor]) -> list[Line]:
    """Errors of each candidate at up to 8 steps ahead, in the original units, the columns counting alike.

    Args:
        item: the target.
        wrong: candidate -> (N, H, K) standardized errors.

    Returns:
        step, and candidate -> rmse and mae at this step, rmse_to and mae_to over all steps up to it.
    """
    std = torch.tensor(item.state["std"], dtype=torch.float64)
    steps = sorted({int(step) for step in np.linspace(1, item.horizon, min(SHOWN, item.horizon)).round()})
    lines: list[Line] = [{"step": step} for step in steps]
    for label, error in wrong.items():
        scaled = error * std
        known = (~scaled.isnan()).sum(0).double()  # (H, K)
        sums = torch.stack([scaled.square().nansum(0), scaled.abs().nansum(0)])  # (2, H, K)
        at = (sums / known).nanmean(2)  # (2, H)
        until = (sums.cumsum(1) / known.cumsum(0)).nanmean(2)
        for line in lines:
            place = line["step"] - 1
            line[label] = {
                "rmse": finite(at[0, place].sqrt()),
                "mae": finite(at[1, place]),
                "rmse_to": finite(until[0, place].sqrt()),
                "mae_to": finite(until[1, place]),
            }
    return lines


def finite(value: Tensor | float) -> float | None:
    """A number that JSON holds; None where it is not defined."""
    number = float(value)
    return number if math.isfinite(number) else None


# ---- against the naive forecasts


def skill(loss: Tensor, naive: Tensor, seed: int, blocks: np.ndarray | None, confidence: float = CONFIDENCE) -> Estimate:
    """1 - mean squared error / that of the naive forecast (Murphy 1988): 1 is perfect, 0 no better, below 0 worse.

    Args:
        loss: (N,) squared error of each row.
        naive: (N,) the same of the naive forecast.
        seed: of the resampling, which draws the same rows for both.
        blocks: (N,) rows of one number are drawn together.
        confidence: of the interval.
    """
    both = ~(loss.isnan() | naive.isnan())
    parts = torch.stack([loss, naive], 1)[both].double()  # (N, 2)
    if blocks is not None:
        blocks = blocks[both.numpy()] if len(np.unique(blocks[both.numpy()])) > 1 else None
    if not len(parts) or not float(parts[:, 1].sum()):
        return Estimate(math.nan, math.nan, math.nan)
    affordable = min(RESAMPLES, max(FEWEST, DRAWS // len(parts)))
    drawn = torch.cat([w.double() @ parts for w in resample_weights(len(parts), affordable, seed, blocks)])  # (R, 2)
    value = 1 - float(parts[:, 0].sum() / parts[:, 1].sum())
    low, high = percentiles(value, 1 - drawn[:, 0] / drawn[:, 1], confidence)
    return Estimate(value, min(low, value), max(high, value))


def judgment(item: Forecast, gained: Estimate, naive: str) -> str:
    """The skill as one plain sentence; none is claimed unless the whole interval is above zero."""
    figures = f"{gained:.1%} less squared error" if gained.value >= 0 else f"{-gained.value:.1%} more squared error"
    span = f"95 % interval {gained.low:.1%} to {gained.high:.1%}"
    if gained.low > 0:
        return f"The forecasts have skill: {figures} than the {naive} ({span})."
    what = "the price" if item.returns else "the series"
    return f"The forecasts of {what} show no skill against the {naive}: {figures} ({span}, which does not lie above zero)."


def compared(loss: Tensor, naive: Tensor, horizon: int, name: str) -> Line | None:
    """The test of Diebold and Mariano against a naive forecast; None where there are too few rows."""
    both = ~(loss.isnan() | naive.isnan())
    difference = (loss - naive)[both].numpy()
    found = diebold_mariano(difference, horizon)
    return None if found is None else {"against": name, "statistic": found[0], "p": found[1], "rows": len(difference)}


def diebold_mariano(difference: np.ndarray, horizon: int) -> tuple[float, float] | None:
    """Whether the mean difference of two forecasts' losses is zero (Diebold & Mariano 1995).

    The variance of the mean counts the autocovariances up to `horizon` - 1, since forecasts so near share moments; where
    that is not positive, they are weighted by their distance (Newey & West 1987). The statistic is corrected for few
    rows and compared with Student's t (Harvey, Leybourne & Newbold 1997).

    Args:
        difference: (N,) loss of one forecast less that of the other, in the order of time.
        horizon: moments ahead.

    Returns:
        The statistic (negative where the first is better) and the two-sided p-value; None where N is not above twice the
        horizon, or nothing differs.
    """
    from scipy.stats import t as student

    rows = len(difference)
    if rows <= 2 * horizon or rows < 3:
        return None
    centered = difference - difference.mean()
    lags = np.array([centered[lag:] @ centered[: rows - lag] / rows for lag in range(horizon)])
    long_run = lags[0] + 2 * lags[1:].sum()
    if long_run <= 0:
        long_run = lags[0] + 2 * ((1 - np.arange(1, horizon) / horizon) * lags[1:]).sum()
    if long_run <= 0:
        return None
    correction = (rows + 1 - 2 * horizon + horizon * (horizon - 1) / rows) / rows
    statistic = float(difference.mean() / math.sqrt(long_run / rows) * math.sqrt(correction))
    return statistic, float(2 * student.sf(abs(statistic), rows - 1))


# ---- returns


def direction(answer: Tensor, truth: Tensor, confidence: float = CONFIDENCE) -> Line | None:
    """How often the sign of the next return was foretold.

    Args:
        answer: (N,) forecast returns of the next moment.
        truth: (N,) what came; nan and 0 have no direction.
        confidence: of Wilson's interval.

    Returns:
        value, low, high, rows, and rises: the share of rises, which always saying "up" would hit.
    """
    moved = truth.isfinite() & (truth != 0)
    rows = int(moved.sum())
    if not rows:
        return None
    share = float((answer[moved].sign() == truth[moved].sign()).double().mean())
    low, high = wilson(share, rows, confidence)
    rises = float((truth[moved] > 0).double().mean())
    return {"value": share, "low": low, "high": high, "rows": rows, "rises": rises}


def a_year(schema: Schema) -> tuple[float, str]:
    """How many moments a year has, and what a moment is taken for."""
    layout: Mapping[str, Any] = {}
    for item in schema.inputs.values():
        if isinstance(item, Series):
            layout = item.state.get("layout") or {}
    grid = layout.get("grid")
    if grid and grid[0] == "month":
        return 12 / grid[1], "months"
    if grid and grid[0] == "time":
        return YEAR / grid[1], "moments of equal distance"
    return float(WORKING_DAYS), "working days"


def trade(answer: np.ndarray, truth: np.ndarray, year: float, moment: str, cost: float = COST) -> Line | None:
    """Long where the forecast return is positive, else flat; each change costs. Beside it, buying once and holding.

    Args:
        answer: (N,) forecast log returns of the next moment, in the order of time.
        truth: (N,) those that came, nan where unknown.
        year: moments a year.
        moment: what a moment is.
        cost: share of the money that a change costs.

    Returns:
        rule and hold, each with yearly return, volatility and Sharpe ratio (without a riskless rate); changes; invested:
        share of the moments.
    """
    known = np.isfinite(truth)
    if known.sum() < 2:
        return None
    held = (answer[known] > 0).astype(np.float64)
    simple = np.expm1(truth[known])
    changes = np.abs(np.diff(held, prepend=0.0))  # begins with nothing
    bought = np.zeros_like(held)
    bought[0] = 1.0
    return {
        "rule": _record((1 + held * simple) * (1 - cost * changes) - 1, year),
        "hold": _record((1 + simple) * (1 - cost * bought) - 1, year),
        "changes": int(changes.sum()),
        "invested": float(held.mean()),
        "cost": cost,
        "year": year,
        "moment": moment,
        "rows": int(known.sum()),
    }


def _record(gains: np.ndarray, year: float) -> dict[str, float | None]:
    """Yearly return, volatility and Sharpe ratio of gains a moment (N,)."""
    spread = float(gains.std(ddof=1)) * math.sqrt(year)
    with np.errstate(divide="ignore"):
        growth = float(np.expm1(np.log1p(gains).mean() * year))
    sharpe = float(gains.mean()) * year / spread if spread > 0 else math.nan
    return {"return": finite(growth), "volatility": finite(spread), "sharpe": finite(sharpe)}


# ---- what pictures and cards show


def stretch(item: Forecast, output: Tensor, target: Tensor, rows: np.ndarray, most: int = STRETCH) -> Line:
    """Forecasts beside what came, at the first, middle and last step ahead, over the last rows that follow each other.

    Returns:
        column: the first one. lines: step, truth and answer, and low and high where there are quantiles; the numbers
        stand for the moments that are forecast.
    """
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    start = max(int(breaks[-1]) if len(breaks) else 0, len(rows) - most)
    last = item.horizon - 1
    lines = []
    for step in sorted({0, last // 2, last}):
        levels = _first(item, output[start:, step]).reshape(len(rows) - start, -1).sort(-1).values  # (N, Q or 1)
        truth = target[start:, step, 0].double() + item.state["mean"][0]
        middle = item.point(levels)[:, None] if item.quantiles else levels
        line = {"step": step + 1, "truth": rounded(truth), "answer": rounded(middle[:, 0])}
        if len(item.quantiles) > 1:
            line |= {"low": rounded(levels[:, 0]), "high": rounded(levels[:, -1])}
        lines.append(line)
    return {"column": item.columns[0], "lines": lines}


def _first(item: Forecast, output: Tensor) -> Tensor:
    """(N, K) or (N, K, Q) standardized -> the first column in the original units."""
    return output[:, 0].double() * item.state["std"][0] + item.state["mean"][0]


def rounded(values: Tensor) -> list[float | None]:
    """Six significant digits; None where missing."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def worst(item: Field, output: Tensor, target: Tensor, count: int) -> list[tuple[int, Line]]:
    """The rows with the largest mean squared error that share no moment, and the moment of each that was worst.

    Returns:
        (row, what it says): truth and answer at the worst moment, which one it is ("at"), confidence None.
    """
    assert isinstance(item, Forecast)
    error = errors(item, output, target)
    loss = row_loss(error).nan_to_num(-1.0)
    chosen: list[int] = []
    for row in loss.argsort(descending=True, stable=True).tolist():
        if len(chosen) == count or loss[row] <= 0:
            break
        if all(abs(row - other) >= item.horizon for other in chosen):
            chosen.append(row)
    told = []
    for row in chosen:
        place = int(error[row].abs().nan_to_num(-1.0).argmax())
        step, column = divmod(place, len(item.columns))
        answer = item.point(output[row])[step, column].double() * item.state["std"][column] + item.state["mean"][column]
        truth = target[row, step, column].double() + item.state["mean"][column]
        at = f"{_moments(step + 1)} ahead" + (f", {item.columns[column]}" if len(item.columns) > 1 else "")
        figures = rounded(torch.stack([truth, answer]))
        told.append((row, {"truth": figures[0], "answer": figures[1], "confidence": None, "at": at}))
    return told


def _moments(count: int) -> str:
    return f"{count:,} moment{'' if count == 1 else 's'}"
