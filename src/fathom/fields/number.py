"""Numbers: one or many numeric columns, standardized by the mean and spread of the training rows.

A missing input is a value: its standardized place is 0 (the mean), and a column that had gaps in the training rows gets
a second feature that says "missing". As a target, outputs are standardized, so that a loss of 1.0 is as bad as always
answering the mean.
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
from fathom.core.errors import RowFaults
from fathom.core.registry import fields
from fathom.core.tensors import Column, to_list
from fathom.fields import losses
from fathom.fields.metrics import regression


@fields.register("number")
class Number(Field):
    """One or many numeric columns."""

    kind = "number"
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
        for chunk in chunks:
            values, _ = self._matrix(chunk)  # (N, width) float64
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
        self.state = {
            "mean": mean.tolist(),
            "std": np.where(deviation > 1e-12 * np.maximum(1, np.abs(mean)), deviation, 1.0).tolist(),
            "gaps": gaps.tolist(),
        }

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """(N, columns) float32 in the original units; a missing value is NaN."""
        values, faults = self._matrix(columns)
        with np.errstate(over="ignore"):  # what is too large becomes infinite and is told below
            encoded = torch.from_numpy(values.astype(np.float32))
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
        return Standardize(self.state["mean"], self.state["std"], self.state["gaps"], self.clip)

    def unscale(self, output: Tensor) -> Tensor:
        """Standardized (N, columns) -> original units."""
        return output * torch.tensor(self.state["std"]) + torch.tensor(self.state["mean"])

    def scale(self, values: Tensor) -> Tensor:
        """Original units (N, columns) -> standardized."""
        mean = torch.tensor(self.state["mean"], device=values.device)
        return (values - mean) / torch.tensor(self.state["std"], device=values.device)

    def decode(self, output: Tensor) -> list[Any]:
        """A number a row; a list of numbers where there are several columns."""
        rows = self.unscale(output.float()).tolist()
        return [{"answer": row[0] if len(row) == 1 else row} for row in rows]

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Errors in the original units, averaged over columns."""
        answers = self.unscale(output.float())
        each = [regression(answers[:, i], target[:, i].float(), weight) for i in range(len(self.columns))]
        return {name: torch.stack([one[name] for one in each]).mean(0) for name in each[0]}

    def describe(self) -> str:
        """How many columns, and which have gaps."""
        gaps = sum(self.state.get("gaps", ()))
        names = ", ".join(self.columns[:6]) + (f" and {len(self.columns) - 6} more" if len(self.columns) > 6 else "")
        return f"{len(self.columns)} numeric: {names}" + (f"; {gaps} with gaps" if gaps else "")


def _numbers(column: Column, name: str, faults: dict[int, str]) -> np.ndarray:
    """(N,) float64; text that is no number is a fault."""
    if isinstance(column, np.ndarray):
        return column.reshape(len(column), -1)[:, 0].astype(np.float64)
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
    """(B, columns) with NaN -> (B, columns + flags): minus the mean, over the deviation, cut, gaps at 0 and flagged."""

    def __init__(self, mean: list[float], std: list[float], gaps: list[bool], clip: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(std), persistent=False)
        self.register_buffer("flagged", torch.tensor(gaps, dtype=torch.bool).nonzero().flatten(), persistent=False)
        self.clip = clip
        self.has_flags = any(gaps)

    mean: Tensor
    scale: Tensor
    flagged: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """(B, columns) -> (B, columns + flags)."""
        scaled = ((values - self.mean) * self.scale).clamp(-self.clip, self.clip).nan_to_num(0.0)
        if not self.has_flags:
            return scaled
        missing = values.index_select(1, self.flagged).isnan().to(scaled.dtype)  # (B, flags)
        return torch.cat([scaled, missing], 1)
