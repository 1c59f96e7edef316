"""Networks that forecast a series from the moments before: linear in time, or by patches.

linear   each forecast is a weighted sum of the moments seen, less and plus the last one (Zeng et al. 2023, NLinear)
patch    stretches of each channel are the words of a transformer (Nie et al. 2023, PatchTST)

Both treat every channel alike with shared weights and add what they learn to a channel's last value, so that a level
that shifts does not fool them. Forecasts of the same column as a channel read that channel.

In comments: B rows, T moments seen, H moments ahead, C channels, K targets.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.transformer import Block, sinusoids

Share = Annotated[float, Field(ge=0, lt=1)]


class Channels:
    """Which channels of the one series are the targets, and the sizes of the task.

    Raises:
        FathomError: a target is no channel of the series.
    """

    def __init__(self, schema: Schema) -> None:
        (series,), (target,) = schema.inputs.values(), schema.targets.values()
        names = list(series.channels)  # type: ignore[attr-defined]
        absent = [name for name in target.columns if name not in names]
        if absent:
            raise FathomError(
                f"This network forecasts a channel from its own past, and '{absent[0]}' is no channel of the series. "
                "Add it to --input, or choose --network gru."
            )
        self.places = torch.tensor([names.index(name) for name in target.columns])  # (K,)
        self.seen = int(series.shape[0])
        self.channels = len(names)
        self.ahead = int(target.outputs[0])
        self.each = int(torch.tensor(target.outputs[2:]).prod()) if len(target.outputs) > 2 else 1  # quantiles


class Linear(nn.Module):
    """(B, T, F) -> (B, H, K) or (B, H, K, quantiles).

    Args:
        schema: one series in, forecasts of some of its channels out.
        own: whether each target has weights of its own instead of shared ones.
        others: whether every other channel counts too, by weights over the last moments of all.
    """

    places: Tensor

    def __init__(self, schema: Schema, own: bool, others: bool) -> None:
        super().__init__()
        sizes = Channels(schema)
        self.register_buffer("places", sizes.places, persistent=False)
        self.ahead, self.each = sizes.ahead, sizes.each
        copies = len(sizes.places) if own else 1
        self.weight = nn.Parameter(torch.zeros(copies, sizes.seen, sizes.ahead * sizes.each))
        self.bias = nn.Parameter(torch.zeros(len(sizes.places), sizes.ahead * sizes.each))
        wide = sizes.seen * int(schema.inputs[next(iter(schema.inputs))].shape[-1])
        self.head = nn.Linear(wide, len(sizes.places) * sizes.ahead * sizes.each, bias=False) if others else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def forward(self, steps: Tensor) -> Tensor:
        """Forecast."""
        values = steps[..., self.places]  # (B, T, K)
        last = values[:, -1:]
        moved = (values - last).transpose(1, 2)  # (B, K, T)
        ahead = torch.einsum("bkt,ktp->bkp", moved, self.weight.expand(moved.shape[1], -1, -1)) + self.bias
        if self.head is not None:
            ahead = ahead + self.head(steps.flatten(1)).view_as(ahead)
        ahead = ahead.view(len(steps), -1, self.ahead, self.each).transpose(1, 2)  # (B, H, K, quantiles)
        return (ahead + last[..., None]).squeeze(-1) if self.each == 1 else ahead + last[..., None]


class Patch(nn.Module):
    """(B, T, F) -> (B, H, K): each target's past cut into stretches, read by a small transformer."""

    places: Tensor

    def __init__(
        self, schema: Schema, length: int, width: int, heads: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        sizes = Channels(schema)
        self.register_buffer("places", sizes.places, persistent=False)
        self.ahead, self.each = sizes.ahead, sizes.each
        self.length = min(length, sizes.seen)
        self.stride = max(1, self.length // 2)
        count = (sizes.seen - self.length) // self.stride + 2
        self.embed = nn.Linear(self.length, width)
        self.blocks = nn.ModuleList([Block(width, heads, 2 * width, dropout, False) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(count * width, sizes.ahead * sizes.each)

    def forward(self, steps: Tensor) -> Tensor:
        """Forecast; each past is standardized by its own mean and deviation, and the answer put back (Kim et al. 2022)."""
        values = steps[..., self.places].transpose(1, 2)  # (B, K, T)
        mean, spread = values.mean(2, keepdim=True), values.std(2, keepdim=True) + 1e-3
        past = F.pad((values - mean) / spread, (0, self.stride), mode="replicate")
        patches = past.unfold(2, self.length, self.stride).flatten(0, 1)  # (B K, patches, length)
        places = torch.arange(patches.shape[1], device=steps.device).expand(len(patches), -1)
        x = self.embed(patches)
        x = self.dropout(x + sinusoids(places, x.shape[-1]))
        for block in self.blocks:
            x, _ = block(x, places, None)
        ahead = self.head(self.dropout(self.norm(x).flatten(1))).view(*values.shape[:2], self.ahead, self.each)
        ahead = (ahead * spread[..., None] + mean[..., None]).transpose(1, 2)  # (B, H, K, quantiles)
        return ahead.squeeze(-1) if self.each == 1 else ahead


def _suits(score: float) -> object:
    def suits(schema: Schema, rows: int) -> float:
        kinds = [item.kind for item in schema.inputs.values()], [item.kind for item in schema.targets.values()]
        return score if kinds == (["series"], ["forecast"]) else 0.0

    return suits


@network(
    "linear",
    reason="forecasts hang mostly on the last values and the season, which a weighted sum sees",
    pros="trains in seconds, hard to beat, every weight can be read",
    cons="blind to what changes with circumstances",
    paper="Zeng et al. 2023, Are transformers effective for time series forecasting?",
    year=2022,
    suits=_suits(1.0),
    training=lambda schema, rows: {
        "training.learning_rate": 2e-3, "training.epochs": 15, "training.keep": "best", "training.batch": 64,
    },
)  # fmt: skip
def linear(
    schema: Schema,
    role: str,
    *,
    own: bool = hyperparameter(False, search=[False, True], help="weights for each target instead of shared ones"),
    others: bool = hyperparameter(False, search=[False, True], help="read the other channels too, calendar included"),
) -> nn.Module:
    """A weighted sum of the moments seen, around the last one."""
    return Linear(schema, own, others)


@network(
    "patch",
    reason="reads stretches of the past as words, so that it sees shapes and seasons",
    pros="the best transformer for long forecasts",
    cons="needs long series; barely better than linear on many",
    paper="Nie et al. 2023, A time series is worth 64 words",
    year=2022,
    suits=_suits(0.9),
    training=lambda schema, rows: {
        "training.learning_rate": 1e-3, "training.epochs": 10, "training.keep": "best", "training.batch": 64,
    },
)  # fmt: skip
def patch(
    schema: Schema,
    role: str,
    *,
    length: PositiveInt = hyperparameter(16, search=[8, 16, 24], help="moments of a stretch"),
    width: PositiveInt = hyperparameter(64, search=[32, 64, 128], help="of a stretch's vector"),
    heads: PositiveInt = hyperparameter(4, search=[2, 4, 8], help="that look at different things"),
    layers: PositiveInt = hyperparameter(2, search=[1, 2, 3], help="of the encoder"),
    dropout: Share = hyperparameter(0.2, search=(0.0, 0.5), help="share of values silenced in training"),
) -> nn.Module:
    """Stretches of each channel through a small transformer."""
    return Patch(schema, length, width, heads, layers, dropout)
