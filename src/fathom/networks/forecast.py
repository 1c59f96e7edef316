"""Networks that forecast a series from the moments before: linear in time, or by patches.

linear   each forecast is a weighted sum of the moments seen, less and plus the last one (Zeng et al. 2023, NLinear)
patch    stretches of each channel are the words of a transformer (Nie et al. 2023, PatchTST)

Both treat every channel alike with shared weights and add what they learn to a channel's last value, so that a level
that shifts does not fool them. Forecasts of the same column as a channel read that channel.

In comments: B rows, T moments seen, H moments ahead, C channels, K targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import USUAL, unfit
from fathom.networks.transformer import Block, sinusoids

Share = Annotated[float, Field(ge=0, lt=1)]
OWN_PAST = "one series, and forecasts channels of it from their own past"


class Channels:
    """Which channels of the one series are the targets, and the sizes of the task."""

    def __init__(self, schema: Schema) -> None:
        (series,), (target,) = schema.inputs.values(), schema.targets.values()
        names = list(series.channels)  # type: ignore[attr-defined]
        self.places = torch.tensor([names.index(name) for name in target.columns])  # (K,)
        self.seen = int(series.shape[0])
        self.channels = len(names)
        self.ahead = int(target.outputs[0])
        self.each = math.prod(target.outputs[2:])  # quantiles, or 1


class InTime(nn.Module):
    """(B, K, T) the past of each target -> (B, K, P): a weighted sum, from nothing learnt 0.

    Args:
        targets: K.
        seen: T.
        answers: P.
        own: whether each target has weights of its own instead of shared ones.
    """

    def __init__(self, targets: int, seen: int, answers: int, own: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(targets if own else 1, seen, answers))
        self.bias = nn.Parameter(torch.zeros(targets, answers))

    def forward(self, past: Tensor) -> Tensor:
        """Sum over time."""
        return torch.einsum("bkt,ktp->bkp", past, self.weight.expand(past.shape[1], -1, -1)) + self.bias


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
        targets, answers = len(sizes.places), sizes.ahead * sizes.each
        self.head = InTime(targets, sizes.seen, answers, own)
        wide = math.prod(next(iter(schema.inputs.values())).shape)
        self.others = nn.Linear(wide, targets * answers, bias=False) if others else None
        if self.others is not None:
            nn.init.zeros_(self.others.weight)

    def forward(self, steps: Tensor) -> Tensor:
        """Forecast."""
        values = steps[..., self.places]  # (B, T, K)
        last = values[:, -1:]
        ahead = self.head((values - last).transpose(1, 2))
        if self.others is not None:
            ahead = ahead + self.others(steps.flatten(1)).view_as(ahead)
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


def _suits(score: float) -> Callable[[Schema, int], float]:
    def suits(schema: Schema, rows: int) -> float:
        inputs, targets = list(schema.inputs.values()), list(schema.targets.values())
        if [item.kind for item in inputs + targets] != ["series", "forecast"]:
            return 0.0
        return score if set(targets[0].columns) <= set(inputs[0].channels) else 0.0  # type: ignore[attr-defined]

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
    if not _suits(1.0)(schema, USUAL):
        raise unfit(schema, "linear", OWN_PAST)
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
    if not _suits(1.0)(schema, USUAL):
        raise unfit(schema, "patch", OWN_PAST)
    return Patch(schema, length, width, heads, layers, dropout)
