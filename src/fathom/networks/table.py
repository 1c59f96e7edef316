"""The network for tables: numbers cut into pieces, a residual network, and an ensemble for little more than one network.

    numbers ─ piecewise-linear embedding ─┐
    categories, other numbers ────────────┴─ dense ─ k members ─ blocks ─ k heads

- Each number is told by how far it fills each bin of its distribution in the training rows, so that one weight a bin can
  bend at every edge as a tree does (piecewise-linear encoding; Gorishniy, Rubachev & Babenko 2022, "On Embeddings for
  Numerical Features in Tabular Deep Learning"), and by its normal score (quantile normalization). Both are linear in how
  full the bins are, so one product makes them.
- The members share all large weights; each has its own scales and biases (BatchEnsemble; Wen, Tran & Ba 2020) and its own
  head. Each learns by its own loss, and their probabilities are averaged (Gorishniy, Kotelnikov & Babenko 2024, TabM-mini).
  Here the first layer is shared as well and the members part behind it, which makes a step several times cheaper.

In comments: B rows, C columns of numbers, T bins, D numbers of an embedding, k members, W units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import ALIKE, image_shape, kinds, output_size, rows_alike, unfit

Share = Annotated[float, Field(ge=0, lt=1)]
TAIL = 1e-3  # normal scores end where this share of the rows is left
MANY = 8_192  # training rows from which on larger batches are worth their steps
WIDEST = 4096  # numbers that all embeddings of a field make together; of many columns each has a smaller one


class PiecewiseLinear(nn.Module):
    """Numbers (B, C) -> (B, C * D): how full the bins of each are, through a linear layer of its own.

    It begins as a linear map of the normal score; what each bin adds begins at zero.

    Args:
        points: of each column, rising, in standardized units.
        shares: of the training rows below each point.
        bins: T at most.
        width: D.
    """

    def __init__(
        self, points: Sequence[Sequence[float]], shares: Sequence[Sequence[float]], bins: int, width: int
    ) -> None:
        super().__init__()
        cut = [_edges(*column, bins) for column in zip(points, shares, strict=True)]
        most = max([len(edges) - 1 for edges, _ in cut] + [1])
        start, inverse, step = (
            torch.zeros(len(cut), most) for _ in range(3)
        )  # (C, T); bins that are not there never fill
        for i, (edges, scores) in enumerate(cut):
            here = len(edges) - 1
            start[i, :here] = torch.from_numpy(edges[:-1])
            inverse[i, :here] = torch.from_numpy(1 / np.diff(edges))
            step[i, :here] = torch.from_numpy(np.diff(scores))
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)
        self.register_buffer("step", step, persistent=False)
        bound = width**-0.5
        self.slope = nn.Parameter(torch.empty(len(cut), 1, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(cut) * width).uniform_(-bound, bound))
        self.piece = nn.Parameter(torch.zeros(len(cut), most, width))
        self.outputs = len(cut) * width

    start: Tensor
    inverse: Tensor
    step: Tensor

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, C) -> (B, C * D)."""
        filled = ((numbers[:, :, None] - self.start) * self.inverse).clamp(0, 1)  # (B, C, T)
        weight = self.piece + self.step[:, :, None] * self.slope  # (C, T, D)
        made = torch.bmm(filled.transpose(0, 1), weight)  # (C, B, D)
        return made.transpose(0, 1).flatten(1) + self.bias


def _edges(points: Sequence[float], shares: Sequence[float], bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(T + 1,) float32 edges of the bins of a column, and the normal score at each; T is 0 where it has one value.

    Half of the edges follow the rows and half the different values, so that a column that is mostly zero has bins beyond.
    Where they suffice, every value is an edge, and what one value alone says can be learnt, as a tree would.
    """
    place, share = np.asarray(points, np.float32), np.asarray(shares)
    place, first = np.unique(place, return_index=True)  # float32 may join neighbors
    share = share[first]
    if len(place) < 2:
        return place[:1], np.zeros(1, np.float32)
    order = np.linspace(0, 1, len(place))
    spread = (share - share[0]) / (share[-1] - share[0])
    chosen = np.unique(np.searchsorted((order + spread) / 2, np.linspace(0, 1, bins + 1) - 1e-9))
    normal = NormalDist()
    scores = [normal.inv_cdf(min(max(s, TAIL), 1 - TAIL)) for s in share[chosen]]
    return place[chosen], np.asarray(scores, np.float32)


class Numbers(nn.Module):
    """The output of a number field (B, C + flags): its numbers embedded, its flags as they are."""

    def __init__(self, embed: PiecewiseLinear, columns: int) -> None:
        super().__init__()
        self.embed = embed
        self.columns = columns

    def forward(self, values: Tensor) -> Tensor:
        """(B, C + flags) -> (B, C * D + flags)."""
        made: Tensor = self.embed(values[:, : self.columns])
        return made if values.shape[1] == self.columns else torch.cat([made, values[:, self.columns :]], 1)


class Members(nn.Module):
    """Where k members part: (B, W) -> (B, k, W), each with scales and biases of its own."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randint(2, (members, width)).float() * 2 - 1)
        self.bias = nn.Parameter(torch.empty(members, width).uniform_(-1, 1) * width**-0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        """Scale and shift."""
        return torch.addcmul(self.bias, hidden[:, None], self.scale)


class Block(nn.Module):
    """x + relu(dense(x)), shared by all members."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, k, W) -> (B, k, W)."""
        return hidden + F.relu(self.dense(hidden))


class Heads(nn.Module):
    """A linear head for each member: (B, k, W) -> (B, k, outputs)."""

    def __init__(self, members: int, width: int, outputs: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(members, width, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        """Answer for each."""
        return torch.bmm(hidden.transpose(0, 1), self.weight).transpose(0, 1) + self.bias


class Table(nn.Module):
    """Embeddings, a shared first layer, blocks of members, heads.

    Args:
        schema: fitted; numbers bring their distribution.
        members: k.
        width: W.
        blocks: behind the first layer.
        bins, embedding: T and D of each number.
        dropout: share of hidden units silenced in training.
    """

    def __init__(
        self, schema: Schema, members: int, width: int, blocks: int, bins: int, embedding: int, dropout: float
    ) -> None:
        super().__init__()
        self.members = members
        self.targets = [(item.kind, int(np.prod(item.outputs))) for item in schema.targets.values()]
        embeds: list[nn.Module] = []
        inputs = 0
        for item in schema.inputs.values():
            size, layer = int(np.prod(item.shape)), None
            if item.kind == "number" and any(item.state["points"]):
                columns = len(item.columns)
                wide = max(1, min(embedding, WIDEST // columns))
                embed = PiecewiseLinear(item.state["points"], item.state["shares"], bins, wide)
                layer, size = Numbers(embed, columns), embed.outputs + size - columns
            embeds.append(layer or nn.Flatten())
            inputs += size
        self.embed = nn.ModuleList(embeds)
        self.first = nn.Linear(inputs, width, bias=False)
        self.dropout = nn.Dropout(dropout)  # before the members part, where it costs little
        self.part = Members(members, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.head = Heads(members, width, output_size(schema))

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, ...) each -> (B, k, outputs) in training, (B, outputs) in evaluation."""
        return self.decide(self.features(*inputs))

    def features(self, *inputs: Tensor) -> Tensor:
        """(B, k * W) what the heads read."""
        made = [embed(x) for embed, x in zip(self.embed, inputs, strict=True)]
        flat = made[0] if len(made) == 1 else torch.cat(made, 1)
        hidden = F.relu(self.part(self.dropout(self.first(flat))))  # (B, k, W)
        return self.blocks(hidden).flatten(1)

    def decide(self, features: Tensor) -> Tensor:
        """(B, k * W) -> (B, k, outputs) in training, (B, outputs) in evaluation: the mean of the members' answers."""
        answers = self.head(features.unflatten(1, (self.members, -1)))  # (B, k, outputs)
        if self.training:
            return answers
        parts = answers.split([size for _, size in self.targets], dim=2)
        return torch.cat([_mean(part, kind) for part, (kind, _) in zip(parts, self.targets, strict=True)], 1)


def _mean(answers: Tensor, kind: str) -> Tensor:
    """(B, k, K) -> (B, K): the logits of the mean probability, or the mean number."""
    if kind == "category":
        return answers.log_softmax(2).logsumexp(1) - math.log(answers.shape[1])
    if kind == "labels":
        return F.logsigmoid(answers).logsumexp(1) - F.logsigmoid(-answers).logsumexp(1)
    return answers.mean(1)


def _takes(schema: Schema) -> bool:
    """Whether rows are alike and every target is answered by numbers whose mean makes sense."""
    return rows_alike(schema) and {item.kind for item in schema.targets.values()} <= {"category", "labels", "number"}


def _suits(schema: Schema, rows: int) -> float:
    if not _takes(schema):
        return 0.0
    return 0.0 if kinds(schema) & {"image", "series"} or image_shape(schema) else 1.5


def _training(schema: Schema, rows: int) -> dict[str, object]:
    """Settings with the best validation loss on census, housing and bicycle tables."""
    return {
        **({"training.batch": 256} if rows >= MANY else {}), "training.learning_rate": 3e-3,
        "training.weight_decay": 0.3, "training.epochs": min(40, max(4, 350_000 // max(rows, 1))),
    }  # fmt: skip


@network(
    "table",
    algorithm="supervised",
    reason="the network for tables: bends numbers where the rows are, and averages members that share their weights",
    pros="as good as boosted trees on many tables; probabilities that need little calibration",
    cons="several times the arithmetic of an mlp; blind to the order of pixels or time",
    paper="Gorishniy, Kotelnikov & Babenko 2024, TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling",
    year=2024,
    suits=_suits,
    takes=_takes,
    training=_training,
)
def table(
    schema: Schema,
    role: str,
    *,
    members: PositiveInt = hyperparameter(8, search=[8, 16, 32], help="networks that share their large weights"),
    width: PositiveInt = hyperparameter(128, search=[64, 128, 256], help="units of each hidden layer"),
    blocks: NonNegativeInt = hyperparameter(2, search=(1, 4), help="residual layers behind the first"),
    bins: PositiveInt = hyperparameter(128, search=(16, 256, "log"), help="pieces into which each number is cut"),
    embedding: PositiveInt = hyperparameter(24, search=[8, 16, 24, 32], help="numbers that tell one number"),
    dropout: Share = hyperparameter(0.2, search=(0.0, 0.5), help="share of hidden units silenced in training"),
) -> nn.Module:
    """Piecewise-linear embeddings, residual layers, and members that share them."""
    if not _takes(schema):
        raise unfit(schema, "table", ALIKE)
    old = [name for name, item in schema.inputs.items() if item.kind == "number" and "points" not in item.state]
    if old:
        raise FathomError(
            f"The numbers '{old[0]}' were fitted by an earlier Fathom, which kept no distribution of them; the network "
            "'table' needs it. Leave --from out and train anew, or use network.name=mlp."
        )
    return Table(schema, members, width, blocks, bins, embedding, dropout)
