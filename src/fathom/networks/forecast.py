"""Networks that forecast a series from the moments before: linear in time, by patches, or from all there is.

linear   each forecast is a weighted sum of the moments seen, less and plus the last one (Zeng et al. 2023, NLinear)
patch    stretches of each channel are the words of a transformer (Nie et al. 2023, PatchTST)
tide     the whole past as one vector, and the calendar of each moment ahead (Das et al. 2023, TiDE)

All but tide treat every channel alike with shared weights and start from a channel's last or usual value, so that a
level that shifts does not fool them. Forecasts of the same column as a channel read that channel.

In comments: B rows, T moments seen, H moments ahead, C channels, K targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import USUAL, unfit
from fathom.networks.transformer import Block, sinusoids

Share = Annotated[float, Field(ge=0, lt=1)]
REDUCED = 4  # numbers that stand for all that is measured beside the targets at a moment
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


class Calendar(nn.Module):
    """The place of every moment in the cycles of the calendar, as waves: those seen, and those that are forecast.

    Args:
        schema: its series has channels "<cycle> (sin)" and "<cycle> (cos)", or none.
        waves: of each cycle.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Schema, waves: int) -> None:
        super().__init__()
        (series,) = schema.inputs.values()
        names: list[str] = list(series.channels)  # type: ignore[attr-defined]
        self.pairs = [
            (place, names.index(name.replace("(sin)", "(cos)"))) for place, name in enumerate(names) if name.endswith(" (sin)")
        ]
        for moment in ("mean", "std"):  # the series' own, to read angles from standardized channels
            self.register_buffer(moment, torch.tensor(series.state[moment], dtype=torch.float32), persistent=False)
        self.waves = waves
        self.width = len(self.pairs) * 2 * waves

    def forward(self, steps: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
        """(B, T, F) -> (B, T, width) at the moments seen, (B, H, width) at the next `ahead` moments."""
        count = len(self.mean)
        raw = steps[..., :count] * self.std + self.mean
        seen, coming = [steps.new_zeros(*steps.shape[:2], 0)], [steps.new_zeros(len(steps), ahead, 0)]
        following = torch.arange(1, ahead + 1, device=steps.device)
        multiples = torch.arange(1, self.waves + 1, device=steps.device)
        for sine, cosine in self.pairs:
            angle = torch.atan2(raw[..., sine], raw[..., cosine])  # (B, T)
            turn = torch.remainder(angle[:, -1:] - angle[:, -2:-1] + torch.pi, 2 * torch.pi) - torch.pi  # of one moment
            for angles, parts in ((angle, seen), (angle[:, -1:] + turn * following, coming)):
                many = angles[..., None] * multiples
                parts += [many.sin(), many.cos()]
        return torch.cat(seen, -1), torch.cat(coming, -1)


class Profile(nn.Module):
    """What each target usually is at a moment of the day, the week and the year: a few waves of each cycle."""

    def __init__(self, schema: Schema, targets: int, waves: int) -> None:
        super().__init__()
        self.calendar = Calendar(schema, waves)
        self.weight = nn.Parameter(torch.zeros(self.calendar.width, targets))

    def forward(self, steps: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
        """(B, T, F) -> the profile at the moments seen (B, T, K), and at the next `ahead` moments (B, H, K)."""
        seen, coming = self.calendar(steps, ahead)
        return seen @ self.weight, coming @ self.weight


class Linear(nn.Module):
    """(B, T, F) -> (B, H, K) or (B, H, K, quantiles).

    Args:
        schema: one series in, forecasts of some of its channels out.
        around: "last": what is learnt is added to the last value. "usual": both are measured from the usual value at
            that moment of the day, week and year, to which forecasts may return.
        waves: of the usual value, for each cycle of the calendar.
        own: whether each target has weights of its own instead of shared ones.
        others: whether every other channel counts too, by weights over the last moments of all.
    """

    places: Tensor

    def __init__(self, schema: Schema, around: str, waves: int, own: bool, others: bool) -> None:
        super().__init__()
        sizes = Channels(schema)
        self.register_buffer("places", sizes.places, persistent=False)
        self.ahead, self.each = sizes.ahead, sizes.each
        targets, answers = len(sizes.places), sizes.ahead * sizes.each
        self.usual = Profile(schema, targets, waves) if around == "usual" else None
        self.head = InTime(targets, sizes.seen + (self.usual is not None), answers, own)
        wide = math.prod(next(iter(schema.inputs.values())).shape)
        self.others = nn.Linear(wide, targets * answers, bias=False) if others else None
        if self.others is not None:
            nn.init.zeros_(self.others.weight)

    def forward(self, steps: Tensor) -> Tensor:
        """Forecast."""
        values = steps[..., self.places]  # (B, T, K)
        coming = values.new_zeros(())
        if self.usual is not None:
            usual, coming = self.usual(steps, self.ahead)
            values, coming = values - usual, coming[..., None]
        last = values[:, -1:]
        past = values - last
        if self.usual is not None:
            past = torch.cat([past, last], 1)  # the distance itself, from which a forecast may return
        ahead = self.head(past.transpose(1, 2))
        if self.others is not None:
            ahead = ahead + self.others(steps.flatten(1)).view_as(ahead)
        ahead = ahead.view(len(steps), -1, self.ahead, self.each).transpose(1, 2)  # (B, H, K, quantiles)
        ahead = ahead + last[..., None] + coming
        return ahead.squeeze(-1) if self.each == 1 else ahead


class Tide(nn.Module):
    """(B, T, F) -> (B, H, K): the past as one vector, each forecast from it and from what the calendar says of that moment.

    What stands beside the targets is first reduced to a few numbers a moment (section 4.1 of the paper): of seventy channels
    of weather by themselves most weights would learn noise by heart (validation error of Metro I-94 after 4,500 steps 423
    without, 397 with).

    Args:
        schema: one series in, forecasts of some of its channels out.
        width: of the vector.
        waves: of each cycle of the calendar.
    """

    places: Tensor
    beside: Tensor

    def __init__(self, schema: Schema, width: int, waves: int, dropout: float) -> None:
        super().__init__()
        sizes = Channels(schema)
        targets, (_, features) = len(sizes.places), next(iter(schema.inputs.values())).shape
        beside = sorted(set(range(features)) - set(sizes.places.tolist()))
        self.register_buffer("places", sizes.places, persistent=False)
        self.register_buffer("beside", torch.tensor(beside, dtype=torch.long), persistent=False)
        self.ahead, self.each = sizes.ahead, sizes.each
        reduced = min(REDUCED, len(beside))
        self.reduce = nn.Linear(len(beside), reduced) if beside else None
        self.past = nn.Sequential(
            nn.Linear(sizes.seen * (targets + reduced), width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width),
            nn.LayerNorm(width),
        )  # fmt: skip
        self.calendar = Calendar(schema, waves)
        self.moment = nn.Embedding(sizes.ahead, 16)
        self.decide = nn.Sequential(
            nn.Linear(width + self.calendar.width + 16, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU()
        )
        self.head = nn.Linear(width, targets * sizes.each)
        self.direct = InTime(targets, sizes.seen, sizes.ahead * sizes.each, own=False)

    def forward(self, steps: Tensor) -> Tensor:
        """Forecast; a weighted sum over time is added, so that what is linear need not be learnt by the layers."""
        own = steps[..., self.places]  # (B, T, K)
        read = own if self.reduce is None else torch.cat([own, self.reduce(steps[..., self.beside])], 2)
        vector = self.past(read.flatten(1))[:, None].expand(-1, self.ahead, -1)  # (B, H, W)
        _, coming = self.calendar(steps, self.ahead)
        moment = self.moment.weight.expand(len(steps), -1, -1)
        ahead = self.head(self.decide(torch.cat([vector, coming, moment], 2)))  # (B, H, K quantiles)
        direct = self.direct(own.transpose(1, 2))  # (B, K, H quantiles)
        direct = direct.unflatten(2, (self.ahead, self.each)).transpose(1, 2)  # (B, H, K, quantiles)
        ahead = ahead.view_as(direct) + direct
        return ahead.squeeze(-1) if self.each == 1 else ahead


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


def _linear_training(schema: Schema, rows: int) -> dict[str, object]:
    """Some thousand steps, whatever the number of rows.

    Within a season a forecast returns to what is usual then, beyond it to the level of late: so it was better on the
    validation rows of METR-LA and of Metro I-94 (within), and of ETTh1 (beyond).
    """
    (target,) = schema.targets.values()
    within = target.outputs[0] <= target.season  # type: ignore[attr-defined]
    return {
        "training.learning_rate": 5e-3, "training.epochs": min(150, max(10, 200_000 // max(rows, 1))),
        "training.keep": "best", "training.batch": 64, "network.around": "usual" if within else "last",
    }  # fmt: skip


@network(
    "linear",
    reason="forecasts hang mostly on the last values and the season, which a weighted sum sees",
    pros="trains in seconds, hard to beat, every weight can be read",
    cons="blind to what changes with circumstances",
    paper="Zeng et al. 2023, Are transformers effective for time series forecasting?",
    year=2022,
    suits=_suits(1.0),
    training=_linear_training,
)
def linear(
    schema: Schema,
    role: str,
    *,
    around: Literal["last", "usual"] = hyperparameter(
        "last", search=["last", "usual"], help="forecasts start from the last value, or return to the usual one"
    ),
    waves: PositiveInt = hyperparameter(6, search=[2, 6, 12], help="of the usual value, for each cycle of the calendar"),
    own: bool = hyperparameter(False, search=[False, True], help="weights for each target instead of shared ones"),
    others: bool = hyperparameter(False, search=[False, True], help="read the other channels too, calendar included"),
) -> nn.Module:
    """A weighted sum of the moments seen, around the last one."""
    if not _suits(1.0)(schema, USUAL):
        raise unfit(schema, "linear", OWN_PAST)
    return Linear(schema, around, waves, own, others)


def _suits_tide(schema: Schema, rows: int) -> float:
    """Best for one target of a long series; prices have too little to say for so many weights."""
    if not _suits(1.0)(schema, rows):
        return 0.0
    (target,) = schema.targets.values()
    return 1.1 if rows > 2000 and len(target.columns) == 1 and not target.returns else 0.7  # type: ignore[attr-defined]


@network(
    "tide",
    reason="reads the whole past with everything beside it, and knows the calendar of the moments that it forecasts",
    pros="the best of the forecasters where circumstances and calendar count; quick",
    cons="more weights than a linear forecast, which a short series cannot fill",
    paper="Das et al. 2023, Long-term forecasting with TiDE: time-series dense encoder",
    year=2023,
    suits=_suits_tide,
    training=lambda schema, rows: {
        "training.learning_rate": 1e-3, "training.epochs": min(60, max(10, 300_000 // max(rows, 1))),
        "training.keep": "best", "training.batch": 64, "training.weight_decay": 0.05,
    },
)  # fmt: skip
def tide(
    schema: Schema,
    role: str,
    *,
    width: PositiveInt = hyperparameter(128, search=[64, 128, 256], help="of the vector that stands for the past"),
    waves: PositiveInt = hyperparameter(6, search=[2, 6, 12], help="of each cycle of the calendar"),
    dropout: Share = hyperparameter(0.3, search=(0.0, 0.5), help="share of values silenced in training"),
) -> nn.Module:
    """A dense encoder of the past, a dense decoder of each moment ahead."""
    if not _suits(1.0)(schema, USUAL):
        raise unfit(schema, "tide", OWN_PAST)
    return Tide(schema, width, waves, dropout)


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
