"""Random convolutions and a linear head (Dempster, Petitjean & Webb 2020, ROCKET).

Thousands of filters with random weights, lengths of reach and offsets slide over the series and never learn; of each, two
numbers remain: its largest answer, and the share of moments at which it answers above zero. A linear head on them is as
good as deep networks on short labelled series, from a few dozen rows on.

In comments: B rows, T moments, F channels of the encoded series, K filters.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import output_size, unfit
from fathom.networks.sequence import present

Share = Annotated[float, Field(ge=0, lt=1)]
TAPS = 9  # values that a filter looks at
TAKES = "one series in each row and nothing beside it, with a class, number or labels to tell"


class Rocket(nn.Module):
    """(B, T, F) -> (B, outputs).

    Filters come in groups of one reach each (dilation), so that a group is one convolution; each filter sees a few
    channels. They are buffers, drawn from torch's generator when the network is made, and saved with it.

    Args:
        channels: F, the last one telling which moments exist.
        length: T of the longest training row.
        filters: K.
        outputs: numbers returned.
        dropout: share of features silenced in training.
    """

    def __init__(self, channels: int, length: int, filters: int, outputs: int, dropout: float) -> None:
        super().__init__()
        most = max(0, int(math.log2(max(1, (length - 1) / (TAPS - 1)))))
        self.reaches = [2**power for power in range(most + 1)]
        self.each = max(1, filters // len(self.reaches))
        seen = max(1, channels - 1)
        for place in range(len(self.reaches)):
            weight = torch.randn(self.each, seen, TAPS)
            weight = weight - weight.mean(2, keepdim=True)
            count = 2 ** (torch.rand(self.each) * math.log2(min(seen, TAPS) + 1))  # channels of each filter, few mostly
            rank = torch.rand(self.each, seen).argsort(1).argsort(1)
            self.register_buffer(f"weight{place}", weight * (rank < count.floor()[:, None])[..., None])
            self.register_buffer(f"offset{place}", torch.rand(self.each) * 2 - 1)
        width = 2 * self.each * len(self.reaches)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, steps: Tensor) -> Tensor:
        """(B, T, F) -> (B, 2 K) the largest answer of each filter, and the share of moments where it is above zero."""
        exists = present(steps)  # (B, T)
        values = (steps[..., :-1] * exists[..., None]).transpose(1, 2)  # (B, F - 1, T)
        count = exists.sum(1, keepdim=True).clamp(min=1)
        found = []
        for place, reach in enumerate(self.reaches):
            weight, offset = getattr(self, f"weight{place}"), getattr(self, f"offset{place}")
            answers = F.conv1d(values, weight, offset, padding=reach * (TAPS // 2), dilation=reach)  # (B, K, T)
            answers = answers.masked_fill(~exists[:, None], -torch.inf)
            found += [answers.amax(2).clamp(min=-1e4), (answers > 0).sum(2) / count]
        return torch.cat(found, 1)

    def decide(self, features: Tensor) -> Tensor:
        """(B, 2 K) -> (B, outputs)."""
        return self.head(self.dropout(self.norm(features)))

    def forward(self, steps: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(steps))


def _suits(schema: Schema, rows: int) -> float:
    """Best for labelled series without much beside them; rows with many gaps are better read by a recurrent network."""
    kinds = [item.kind for item in schema.inputs.values()], {item.kind for item in schema.targets.values()}
    if kinds[0] != ["series"] or kinds[1] & {"text", "forecast"}:
        return 0.0
    return 0.5 if next(iter(schema.inputs.values())).missing else 1.2  # type: ignore[attr-defined]


@network(
    "rocket",
    reason="thousands of random filters see the shapes of a series, and only a linear head has to learn",
    pros="among the best for labelled series, from a few dozen rows on, in seconds",
    cons="blind to what its random filters do not see; no use for forecasts",
    paper="Dempster, Petitjean & Webb 2020, ROCKET: exceptionally fast and accurate time series classification",
    year=2019,
    suits=_suits,
    training=lambda schema, rows: {
        "training.learning_rate": 1e-3, "training.epochs": max(20, min(200, 40_000 // max(rows, 1))),
        "training.weight_decay": 0.1, "training.batch": min(64, max(8, rows // 8)), "training.keep": "last",
    },
)  # fmt: skip
def rocket(
    schema: Schema,
    role: str,
    *,
    filters: PositiveInt = hyperparameter(4000, search=[1000, 4000, 10_000], help="random filters"),
    dropout: Share = hyperparameter(0.0, search=(0.0, 0.6), help="share of features silenced in training"),
) -> nn.Module:
    """Random convolutions, then a linear head."""
    if not _suits(schema, 0):
        raise unfit(schema, "rocket", TAKES)
    (item,) = schema.inputs.values()
    return Rocket(item.shape[-1], item.shape[0], filters, output_size(schema), dropout)
