"""Perceptron and multi-layer perceptron.

perceptron   one layer: outputs = W x + b (Rosenblatt 1958); a linear model
mlp          hidden layers between; the network for tables
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import (
    ACTIVATIONS,
    ALIKE,
    ActivationName,
    InitializerName,
    NormalizationName,
    flat_size,
    initialize,
    kinds,
    normalization,
    output_size,
    rows_alike,
    unfit,
)

Share = Annotated[float, Field(ge=0, lt=1)]


class MLP(nn.Module):
    """Inputs flattened side by side, hidden layers, a linear head.

    Args:
        inputs: numbers of one row.
        hidden: units of each hidden layer.
        outputs: numbers returned.
    """

    def __init__(
        self, inputs: int, hidden: tuple[int, ...], outputs: int, activation: str, norm: str, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for units in hidden:
            layers.append(nn.Linear(inputs, units))
            if norm != "none":
                layers.append(normalization(norm, units, 1))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
            inputs = units
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, ...) each -> (B, outputs)."""
        flat = [x.flatten(1) for x in inputs]
        return self.head(self.hidden(flat[0] if len(flat) == 1 else torch.cat(flat, 1)))


@network(
    "perceptron",
    reason="the simplest network: one layer, every weight can be read",
    pros="trains in seconds, easy to explain",
    cons="only straight boundaries between classes",
    paper="Rosenblatt 1958, The Perceptron",
    year=1958,
    suits=lambda schema, rows: 0.1 if rows_alike(schema) else 0.0,
)
def perceptron(
    schema: Schema, role: str, *, initializer: InitializerName = hyperparameter("default", help="of weights")
) -> nn.Module:
    """One linear layer from the flattened inputs to the outputs."""
    if not rows_alike(schema):
        raise unfit(schema, "perceptron", ALIKE)
    return initialize(MLP(flat_size(schema), (), output_size(schema), "linear", "none", 0.0), initializer)


def _suits(schema: Schema, rows: int) -> float:
    if not rows_alike(schema):
        return 0.0
    return 0.3 if kinds(schema) & {"image", "series"} else 1.0


def _training(schema: Schema, rows: int) -> dict[str, object]:
    """Settings with the best validation loss on census and housing tables, and soonest 97.5 % on digits."""
    if "image" in kinds(schema):
        return {"training.learning_rate": 5e-3, "training.epochs": 8}
    return {
        "network.hidden": [256, 128], "network.dropout": 0.1, "training.weight_decay": 0.05,
        "training.learning_rate": 4e-3, "training.epochs": min(60, max(5, 1_200_000 // max(rows, 1))),
    }  # fmt: skip


@network(
    "mlp",
    reason="mixes every input with every other; the network for tables",
    pros="quick, takes any table, few settings",
    cons="blind to the order of pixels or time; boosted trees are often as good on small tables",
    paper="Rumelhart, Hinton & Williams 1986, Learning representations by back-propagating errors",
    year=1986,
    suits=_suits,
    training=_training,
)
def mlp(
    schema: Schema,
    role: str,
    *,
    hidden: tuple[PositiveInt, ...] = hyperparameter(
        (128, 64), search=[(64,), (128, 64), (256, 128), (256, 256)], help="units of each hidden layer"
    ),
    activation: ActivationName = hyperparameter(
        "relu", search=["relu", "gelu", "silu"], help="after each hidden layer"
    ),
    normalization: NormalizationName = hyperparameter("none", help="before each activation"),
    dropout: Share = hyperparameter(0.0, search=(0.0, 0.6), help="share of hidden units silenced in training"),
    initializer: InitializerName = hyperparameter("default", help="of weights"),
) -> nn.Module:
    """Hidden layers with an activation each, then a linear head."""
    if not rows_alike(schema):
        raise unfit(schema, "mlp", ALIKE)
    made = MLP(flat_size(schema), hidden, output_size(schema), activation, normalization, dropout)
    return initialize(made, initializer)
