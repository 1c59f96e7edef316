"""A bag of words and word pairs: each that occurs has a vector, and their sum decides (Joulin et al. 2017, fastText).

Order counts only within a pair, which is what most labels hang on; it trains in a minute. Pairs have no vocabulary: two
neighbours are hashed to one of a fixed number of vectors. A word counts once however often it stands in a text, and the
sum is divided by the root of their number, as in the linear models that it competes with (Wang & Manning 2012).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import USUAL, output_size, unfit
from fathom.networks.sequence import job, present

Share = Annotated[float, Field(ge=0, lt=1)]
PRIME = 2**31 - 1
MULTIPLIER = 1_103_515_245  # with the prime: a universal hash (Carter & Wegman 1979), few pairs share a vector by chance


class Bag(nn.Module):
    """Tokens (B, T), and ordinary inputs beside them -> (B, outputs).

    Args:
        schema: one input of kind text.
        width: of a vector.
        pairs: vectors that pairs share; 0 leaves pairs out.
        dropout: share of tokens and pairs left out in training.
    """

    def __init__(self, schema: Schema, width: int, pairs: int, dropout: float) -> None:
        super().__init__()
        items = list(schema.inputs.values())
        self.place = next(i for i, item in enumerate(items) if item.kind == "text")
        self.size: int = items[self.place].size  # type: ignore[attr-defined]
        self.pairs, self.dropout = pairs, dropout
        self.vectors = nn.Embedding(self.size + pairs, width)
        nn.init.normal_(self.vectors.weight, std=0.1 / math.sqrt(width))
        beside = sum(math.prod(item.shape) for i, item in enumerate(items) if i != self.place)
        self.head = nn.Linear(width + beside, output_size(schema))

    def forward(self, *inputs: Tensor) -> Tensor:
        """The sum of the vectors of what occurs, then the head."""
        return self.decide(self.features(*inputs))

    def features(self, *inputs: Tensor) -> Tensor:
        """Tokens (B, T), and ordinary inputs beside them -> (B, D)."""
        tokens, exists = self.pieces(inputs[self.place])
        if self.training and self.dropout:
            exists = exists & (torch.rand(exists.shape, device=exists.device) >= self.dropout)
        tokens, exists = once(tokens, exists)
        weights = exists / exists.sum(1, keepdim=True).clamp(min=1).sqrt()
        summed = nn.functional.embedding_bag(tokens, self.vectors.weight, mode="sum", per_sample_weights=weights)
        others = [x.flatten(1) for i, x in enumerate(inputs) if i != self.place]
        return torch.cat([summed, *others], 1)

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        return self.head(features)

    def pieces(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) tokens -> (B, 2 T - 1) places in the table, of words and then of pairs, and which of them exist."""
        exists, tokens = present(tokens), tokens.long()
        if not self.pairs:
            return tokens, exists
        pairs = (tokens[:, :-1] * self.size + tokens[:, 1:]) % PRIME * MULTIPLIER % PRIME % self.pairs + self.size
        return torch.cat([tokens, pairs], 1), torch.cat([exists, exists[:, :-1] & exists[:, 1:]], 1)


def once(tokens: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """(B, P) tokens in rising order, and where each first stands."""
    ordered = tokens.masked_fill(~exists, -1).sort(1).values
    first = torch.cat([ordered[:, :1] >= 0, (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] >= 0)], 1)
    return ordered.clamp(min=0), first


def _suits(schema: Schema, rows: int) -> float:
    return 1.0 if job(schema) == "answer" and any(item.kind == "text" for item in schema.inputs.values()) else 0.0


@network(
    "bag",
    reason="most labels of a text hang on its words and word pairs, and these are learnt in seconds",
    pros="the quickest network for text, hard to beat below a hundred thousand texts",
    cons="blind to order beyond two neighbours, and to what words mean to each other",
    paper="Joulin et al. 2017, Bag of tricks for efficient text classification",
    year=2016,
    suits=_suits,
    training=lambda schema, rows: {
        "training.learning_rate": 3e-3, "training.batch": 32, "training.epochs": 6, "training.keep": "best",
        "training.weight_decay": 0.3,
    },
)  # fmt: skip
def bag(
    schema: Schema,
    role: str,
    *,
    width: PositiveInt = hyperparameter(8, search=[4, 8, 16, 32], help="of the vector of a word"),
    pairs: NonNegativeInt = hyperparameter(
        500_000, search=[0, 100_000, 500_000], help="vectors that word pairs share; 0: no pairs"
    ),
    dropout: Share = hyperparameter(0.5, search=(0.0, 0.7), help="share of words left out in training"),
) -> nn.Module:
    """The vectors of the words and pairs that occur, summed, then a linear head."""
    if not _suits(schema, USUAL):
        raise unfit(schema, "bag", "one text, with ordinary inputs beside it or none")
    return Bag(schema, width, pairs, dropout)
