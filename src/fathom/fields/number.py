"""Numbers: one or many numeric columns, standardized by the mean and spread of the training rows.

A missing input is a value: its standardized place is 0 (the mean), and a column that had gaps in the training rows gets
a second feature that says "missing". As a target, outputs are standardized, so that a loss of 1.0 is as bad as always
answering the mean.

Encoded numbers are centered: the mean is taken away in float64, before the cast to float32. Seconds since 1970, or any
other large numbers that differ little, would otherwise lose what tells them apart.

The state also holds how the training rows are distributed: rising points of each column and the share of the rows below
them, at most 257 a column. A network may cut a column there (networks/table.py); the layer does not read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, Loss, hyperparameter
from fathom.core.errors import DataError, RowFaults
from fathom.core.registry import fields
from fathom.core.tensors import Column, to_list
from fathom.fields import losses
from fathom.fields.metrics import regression

LEAST = 1e-30  # a smaller spread than this is none: its inverse has to fit into float32
DIGITS = 6  # digits after the leading one that survive float32
POINTS = 257  # of the distribution of a column
ALL_POINTS = 2**16  # of all columns of a field, so that a state stays small; of many columns each has fewer points
FEWEST_POINTS = 17  # fewer say little: of more columns than that leaves room for, none are kept
SAMPLE = 2**22  # values from which the points of a field are taken


@fields.register("number")
class Number(Field):
    """One or many numeric columns."""

    kind = "number"
    headline = "r2"
    losses: ClassVar[dict[str, Loss]] = {"mse": losses.mse, "mae": losses.mae, "huber": losses.huber}
    clip: float = hyperparameter(10.0, help="inputs further from the mean than this many standard deviations are cut")

    @property
    def shape(self) -> tuple[int, ...]:
        """Columns, and a flag for each that had gaps."""
        return (len(self.columns) + sum(self.state.get("gaps", ())),)

    @property
    def outputs(self) -> tuple[int, ...]:
        """One number a column."""
        return (len(self.columns),)

    def fit(self, chunks: Iterable[Columns]) -> None:
        """Mean, standard deviation and gaps of each column, merged over chunks (Chan et al. 1979)."""
        width = len(self.columns)
        count, mean, square = np.zeros(width), np.zeros(width), np.zeros(width)
        gaps = np.zeros(width, bool)
        sample = Sample(max(SAMPLE // max(width, 1), 1))
        for chunk in chunks:
            values, _ = self._matrix(chunk)  # (N, width) float64
            sample.add(values)
            known = np.isfinite(values)
            gaps |= np.isnan(values).any(0)
            n = known.sum(0)
            filled = np.where(known, values, 0.0)
            center = filled.sum(0) / np.maximum(n, 1)
            spread = (np.where(known, values - center, 0.0) ** 2).sum(0)
            total = np.maximum(count + n, 1)
            square += spread + (center - mean) ** 2 * count * n / total
            mean += (center - mean) * n / total
            count += n
        deviation = np.sqrt(square / np.maximum(count, 1))
        spread = np.where(deviation > np.maximum(LEAST, 1e-12 * np.abs(mean)), deviation, 1.0)
        points, shares = distribution(sample.rows(), mean, spread)
        self.state = {
            "mean": mean.tolist(), "std": spread.tolist(), "gaps": gaps.tolist(), "points": points, "shares": shares,
        }  # fmt: skip

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """(N, columns) float32, minus the mean of the training rows; a missing value is NaN."""
        values, faults = self._matrix(columns)
        with np.errstate(over="ignore"):  # what is too large becomes infinite and is told below
            encoded = torch.from_numpy((values - self.state["mean"]).astype(np.float32))
        infinite = np.isinf(values) | (np.isinf(encoded.numpy()) & np.isfinite(values))
        bad = infinite | (np.isnan(values) if target else False)
        for row in np.flatnonzero(bad.any(1)):
            column = self.columns[int(bad[row].argmax())]
            what = "is infinite or too large" if infinite[row].any() else "is missing"
            faults.setdefault(int(row), f"'{column}' {what}")
        if faults:
            encoded[list(faults)] = 0.0
            raise RowFaults(faults, encoded)
        return encoded

    def _matrix(self, columns: Columns) -> tuple[np.ndarray, dict[int, str]]:
        """(N, columns) float64 with NaN where missing, and the rows whose text is no number."""
        faults: dict[int, str] = {}
        parts = [_numbers(columns[name], name, faults) for name in self.columns]
        return np.column_stack(parts) if parts else np.zeros((columns.rows, 0)), faults

    def layer(self) -> nn.Module:
        """Standardize and mark gaps."""
        return Standardize(self.state["std"], self.state["gaps"], self.clip)

    def scale(self, encoded: Tensor) -> Tensor:
        """Encoded (N, columns) -> standardized, as the outputs of a network are."""
        return encoded / torch.tensor(self.state["std"], dtype=torch.float32, device=encoded.device)

    def unscale(self, output: Tensor) -> Tensor:
        """Standardized (N, columns) -> float64 in the original units."""
        return self._spread(output) + torch.tensor(self.state["mean"], dtype=torch.float64)

    def original(self, encoded: Tensor) -> Tensor:
        """Encoded (N, columns) -> float64 in the original units, less the digits that float32 has no room for."""
        values = encoded.double().cpu().numpy()
        size = np.maximum(np.abs(np.nan_to_num(values)), self.state["std"])
        digits = DIGITS - np.floor(np.log10(size))  # after the point; before it where negative
        power = 10.0 ** np.abs(digits)
        values = values + self.state["mean"]
        fraction, whole = np.rint(values * power) / power, np.rint(values / power) * power
        return torch.from_numpy(np.where(digits >= 0, fraction, whole))

    def _spread(self, output: Tensor) -> Tensor:
        """Standardized (N, columns) -> float64 distance from the mean."""
        return output.double() * torch.tensor(self.state["std"], dtype=torch.float64, device=output.device)

    def decode(self, output: Tensor) -> list[Any]:
        """A number a row; a list of numbers where there are several columns."""
        rows = self.unscale(output).tolist()
        return [{"answer": row[0] if len(row) == 1 else row} for row in rows]

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Errors in the original units, averaged over columns."""
        answers = self._spread(output)  # from the mean, as the target is: differences keep their digits
        each = [regression(answers[:, i], target[:, i], weight) for i in range(len(self.columns))]
        return {name: torch.stack([one[name] for one in each]).mean(0) for name in each[0]}

    def describe(self) -> str:
        """How many columns, and which have gaps."""
        gaps = sum(self.state.get("gaps", ()))
        names = ", ".join(self.columns[:6]) + (f" and {len(self.columns) - 6} more" if len(self.columns) > 6 else "")
        return f"{len(self.columns)} numeric: {names}" + (f"; {gaps} with gaps" if gaps else "")


class Sample:
    """Every k-th of the rows that come in chunks, k the least power of two that keeps them few.

    Args:
        most: rows that are kept at most, twice as many for a moment.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.every = 1
        self.seen = 0
        self.parts: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Take the next chunk (N, columns)."""
        self.parts.append(rows[-self.seen % self.every :: self.every].copy())
        self.seen += len(rows)
        while -(-self.seen // self.every) > self.most:
            self.every *= 2
            self.parts = [np.concatenate(self.parts)[::2]]

    def rows(self) -> np.ndarray:
        """(M, columns) those that were kept."""
        return np.concatenate(self.parts) if self.parts else np.zeros((0, 0))


def distribution(
    rows: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> tuple[list[list[float]], list[list[float]]]:
    """Where the values of each column lie.

    Args:
        rows: (M, columns), nan where missing.
        mean, std: (columns,) by which points are standardized.

    Returns:
        Rising points of each column, every value where there are few and else equally many values apart; and the share
        of the values below each, those equal to it counted half. Both are empty where there are too many columns.
    """
    most = min(POINTS, ALL_POINTS // max(len(mean), 1))
    if most < FEWEST_POINTS or not len(rows):
        return [[] for _ in mean], [[] for _ in mean]
    points, shares = [], []
    for column, center, spread in zip(rows.T, mean, std, strict=True):
        known = np.sort(column[np.isfinite(column)])
        values = np.unique(known)
        if len(values) > most:
            values = np.unique(known[np.linspace(0, len(known) - 1, most).round().astype(np.int64)])
        below, to = np.searchsorted(known, values, "left"), np.searchsorted(known, values, "right")
        points.append([float(f"{value:.7g}") for value in (values - center) / spread])
        shares.append([round(float(share), 6) for share in (below + to) / 2 / max(len(known), 1)])
    return points, shares


def _numbers(column: Column, name: str, faults: dict[int, str]) -> np.ndarray:
    """(N,) float64; text that is no number is a fault."""
    if isinstance(column, np.ndarray):
        raise DataError(f"'{name}' has an array in each row {column.shape[1:]}; a number field reads one value a row.")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _parse(column, name, faults)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")).to_numpy(), np.float64)


def _parse(column: pa.ChunkedArray, name: str, faults: dict[int, str]) -> np.ndarray:
    values = np.full(len(column), np.nan)
    for row, text in enumerate(to_list(column)):
        if text is not None and text.strip():
            try:
                values[row] = float(text)
            except ValueError:
                faults[row] = f"'{name}' is {text!r}, which is not a number"
    return values


class Standardize(nn.Module):
    """Centered (B, columns) with NaN -> (B, columns + flags): over the deviation, cut, gaps at 0 and flagged."""

    def __init__(self, std: list[float], gaps: list[bool], clip: float) -> None:
        super().__init__()
        scale = (1 / torch.tensor(std, dtype=torch.float64)).float()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("flagged", torch.tensor(gaps, dtype=torch.bool).nonzero().flatten(), persistent=False)
        self.clip = clip
        self.has_flags = any(gaps)

    scale: Tensor
    flagged: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """(B, columns) -> (B, columns + flags)."""
        scaled = (values * self.scale).clamp(-self.clip, self.clip).nan_to_num(0.0)
        if not self.has_flags:
            return scaled
        missing = values.index_select(1, self.flagged).isnan().to(scaled.dtype)  # (B, flags)
        return torch.cat([scaled, missing], 1)
