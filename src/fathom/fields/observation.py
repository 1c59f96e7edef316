"""Observations: what an environment shows, as an agent's network reads it.

    vector     a Box of numbers, which may be centered and scaled by what is met while acting
    image      a Box of uint8 pictures, (H, W), (H, W, C) or (C, H, W); several successive ones may be seen together
    discrete   one of so many states: one-hot

Fields of other data are fitted before training. The numbers that an agent meets depend on what it does, so its algorithm
keeps the statistics (`Running`) and hands them to the field's layer, which is saved and deployed with the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, hyperparameter
from fathom.core.errors import DataError, RowFaults
from fathom.core.registry import fields
from fathom.core.tensors import Column

UNKNOWN = torch.finfo(torch.float32).max  # the limit of numbers whose statistics are not known
LEAST = 1e-4  # of a deviation; what hardly moves must not become noise


@fields.register("observation")
class Observation(Field):
    """What an environment shows: numbers, a picture, or one of several states."""

    kind = "observation"
    frames: PositiveInt = hyperparameter(1, search=[1, 4], help="successive pictures that are seen together")
    clip: PositiveFloat = hyperparameter(
        10.0, help="normalized numbers further from the mean than this many deviations are cut"
    )

    @property
    def form(self) -> str:
        """ "vector", "image" or "discrete"."""
        return str(self.state["form"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers side by side, (C, H, W), or one a state."""
        if self.form == "image":
            return picture_shape(tuple(self.state["shape"]))
        return (int(self.state["count"]) if self.form == "discrete" else math.prod(self.state["shape"]),)

    def fit(self, chunks: Iterable[Columns]) -> None:
        """The form, and of numbers mean and deviation, from observations that were collected."""
        running: Running | None = None
        for chunk in chunks:
            first = chunk[self.columns[0]]
            if isinstance(first, np.ndarray) and first.dtype == np.uint8:
                self.state = {"form": "image", "shape": list(first.shape[1:])}
                return
            rows = self._numbers(chunk)
            running = running or Running(rows.shape[1])
            running.add(rows)
        self.state = {"form": "vector", "shape": [len(self.columns)]}
        if running is not None:
            self.state.update(mean=running.mean.tolist(), std=running.deviation().tolist())

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """(N, numbers) float32, (N, *picture) uint8 or (N,) int64."""
        first = columns[self.columns[0]]
        if self.form == "image":
            return torch.from_numpy(np.ascontiguousarray(self._pictures(first)))
        rows = self._numbers(columns)
        bad = np.flatnonzero(~torch.isfinite(rows).all(1).numpy())
        first_state = self.state.get("start", 0)
        if self.form == "discrete":
            inside = (rows >= first_state) & (rows < first_state + self.state["count"]) & (rows == rows.floor())
            bad = np.flatnonzero(~inside.all(1).numpy())
        if len(bad):
            rows[bad] = float(first_state)
            last = first_state + self.state.get("count", 0) - 1
            allowed = f"a state from {first_state} to {last}" if self.form == "discrete" else "a finite number"
            raise RowFaults(
                dict.fromkeys(bad.tolist(), f"the observation has what is not {allowed}"), self._typed(rows)
            )
        return self._typed(rows)

    def _typed(self, rows: Tensor) -> Tensor:
        return rows[:, 0].long() if self.form == "discrete" else rows.float()

    def _pictures(self, column: Column) -> np.ndarray:
        wanted = tuple(self.state["shape"])
        if not isinstance(column, np.ndarray) or column.shape[1:] != wanted:
            raise DataError(f"The agent sees pictures {wanted} of whole numbers from 0 to 255; give them as arrays.")
        return column.astype(np.uint8)

    def _numbers(self, columns: Columns) -> Tensor:
        """(N, numbers) float64."""
        parts = []
        for name in self.columns:
            column = columns[name]
            if isinstance(column, np.ndarray):
                raise DataError(f"'{name}' has an array in each row; this observation is {len(self.columns)} numbers.")
            try:
                numbers = pc.fill_null(pc.cast(column, pa.float64()), math.nan).to_numpy()
            except pa.ArrowInvalid as error:
                raise DataError(f"'{name}' holds what is not a number: {error}.") from error
            parts.append(np.asarray(numbers, np.float64))
        return torch.from_numpy(np.column_stack(parts))

    def layer(self) -> nn.Module:
        """Encoded -> float; numbers are normalized once their statistics are known."""
        if self.form == "image":
            return Pixels(tuple(self.state["shape"]))
        if self.form == "discrete":
            return OneHot(int(self.state["count"]), int(self.state["start"]))
        made = Normalize(math.prod(self.state["shape"]), self.clip)
        if "mean" in self.state:
            made.set(torch.tensor(self.state["mean"]), torch.tensor(self.state["std"]))
        return made

    def describe(self) -> str:
        """What is shown."""
        if self.form == "discrete":
            return f"one of {self.state['count']:,} states"
        if self.form == "image":
            seen = f", {self.frames} together" if self.frames > 1 else ""
            return f"pictures, {' x '.join(map(str, self.shape))}{seen}"
        count = math.prod(self.state["shape"])
        return f"{count} number{'s' * (count != 1)}"


class Running:
    """Mean and variance of all rows so far (Chan, Golub & LeVeque 1979).

    Args:
        width: numbers a row.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.square = torch.zeros(width, dtype=torch.float64)  # sum of squared distances from the mean

    def add(self, rows: Tensor) -> None:
        """More rows, (B, width)."""
        rows = rows.double()
        center = rows.mean(0)
        total = self.count + len(rows)
        gap = center - self.mean
        self.square += (rows - center).square().sum(0) + gap.square() * (self.count * len(rows) / total)
        self.mean += gap * (len(rows) / total)
        self.count = total

    def deviation(self) -> Tensor:
        """(width,) standard deviation; 1 where nothing has come yet, and never below a ten-thousandth."""
        if self.count < 2:
            return torch.ones_like(self.mean)
        return (self.square / self.count).sqrt().clamp(min=LEAST)

    def state_dict(self) -> dict[str, Any]:
        """What decides how the next row is read."""
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.count = state["count"]
        self.mean, self.square = state["mean"].clone(), state["square"].clone()


class Normalize(nn.Module):
    """(B, ...) -> (B, numbers), centered, over the deviation, cut; as they are before statistics are set.

    The statistics change while acting and belong to the weights that were trained with them, so they are saved as those
    are.
    """

    def __init__(self, width: int, clip: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("limit", torch.full((), UNKNOWN))
        self.clip = clip
        self.known = False

    mean: Tensor
    scale: Tensor
    limit: Tensor

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """New statistics."""
        self.mean.copy_(mean)
        self.scale.copy_(1 / deviation)
        self.limit.fill_(self.clip)
        self.known = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.known = bool(self.limit < UNKNOWN)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (B, numbers)."""
        rows = rows.flatten(1)
        return ((rows - self.mean) * self.scale).clamp(-self.limit, self.limit) if self.known else rows


class Pixels(nn.Module):
    """(B, *picture) bytes -> (B, C, H, W) from 0 to 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.order, self.final = picture_order(shape), picture_shape(shape)

    def forward(self, pictures: Tensor) -> Tensor:
        """Reorder, join what is seen together, scale."""
        return pictures.permute(0, *[place + 1 for place in self.order]).reshape(-1, *self.final).float() / 255


class OneHot(nn.Module):
    """(B,) states, counted from `start` -> (B, count)."""

    def __init__(self, count: int, start: int = 0) -> None:
        super().__init__()
        self.count, self.start = count, start

    def forward(self, states: Tensor) -> Tensor:
        """One-hot rows."""
        return torch.nn.functional.one_hot(states.long() - self.start, self.count).float()


def picture_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How to reorder the dimensions of a picture so that channels stand before height and width.

    Args:
        shape: (H, W), (H, W, C), (C, H, W), or the same after a dimension of successive pictures.
    """
    last = len(shape) - 1
    if last >= 2 and shape[last] in (1, 3, 4) and shape[last - 2] not in (1, 3, 4):
        return (*range(last - 2), last, last - 2, last - 1)
    return tuple(range(len(shape)))


def picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a picture, those seen together counted as channels."""
    ordered = [shape[place] for place in picture_order(shape)]
    return math.prod(ordered[:-2]), ordered[-2], ordered[-1]
