"""Perceptron: every output is a weighted sum of the inputs (Rosenblatt 1958).

The first network that learnt its weights from examples, and the last layer of every network since. It draws straight
boundaries only: it cannot learn "one or the other, not both" (Minsky & Papert 1969).

Rosenblatt moved the weights by the input wherever an answer was wrong, with a step as the output. Here the outputs are
the sums themselves and the loss is the target's, so that one layer is logistic regression or linear regression.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import ALIKE, InitializerName, flat_size, initialize, kinds, output_size, rows_alike, unfit


class Perceptron(nn.Module):
    """(B, ...) each -> (B, outputs).

    Args:
        inputs: numbers of one row.
        outputs: numbers returned.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, outputs)
        self.depth: tuple[str, ...] = ()  # nothing comes before the head

    def features(self, *inputs: Tensor) -> Tensor:
        """(B, ...) each -> (B, D) side by side."""
        return torch.cat([x.flatten(1) for x in inputs], 1)

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        return self.head(features)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(*inputs))


def _training(schema: Schema, rows: int) -> dict[str, object]:
    if "image" in kinds(schema):
        return {"training.learning_rate": 2e-3, "training.epochs": 10 if rows < 10_000 else 5}
    return {"training.learning_rate": 5e-3, "training.epochs": 30 if rows < 10_000 else 10}


@network(
    "perceptron",
    reason="the simplest network: one layer, every weight can be read",
    pros="trains in seconds, easy to explain",
    cons="only straight boundaries between classes",
    paper="Rosenblatt 1958, The perceptron: a probabilistic model for information storage and organization in the brain",
    year=1958,
    suits=lambda schema, rows: 0.0,  # never unasked: a network of history
    takes=rows_alike,
    training=_training,
)
def perceptron(
    schema: Schema, role: str, *, initializer: InitializerName = hyperparameter("default", help="of weights")
) -> nn.Module:
    """One linear layer from the flattened inputs to the outputs."""
    if not rows_alike(schema):
        raise unfit(schema, "perceptron", ALIKE)
    return initialize(Perceptron(flat_size(schema), output_size(schema)), initializer)
