"""Convolutional network: filters, max pooling, dense layers (LeCun et al. 1989).

The three networks of the overviews are this one:
    digits          channels=[32]      dense=[64]                   347,146 parameters at 28 x 28
    digits, deeper  channels=[32, 64]  dense=[128]  pool="last"   1,199,882
    CIFAR-10        channels=[32, 64]  dense=[64]                   167,562 at 32 x 32
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import (
    ACTIVATIONS,
    RISING,
    ActivationName,
    FlattenPixels,
    InitializerName,
    NormalizationName,
    depth_of,
    image_shape,
    initialize,
    normalization,
    output_size,
    unfit,
)

Share = Annotated[float, Field(ge=0, lt=1)]


def convolution(
    inputs: int, outputs: int, kernel: int, padding: int, activation: str, norm: str, pool: bool
) -> list[nn.Module]:
    """One block: filters, normalization, and activation and pooling in the cheaper order."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=norm == "none")]
    if norm != "none":
        layers.append(normalization(norm, outputs, 2))
    ending = [ACTIVATIONS[activation]()]
    if pool:
        ending.insert(0 if activation in RISING else 1, nn.MaxPool2d(2))
    return layers + ending


class CNN(nn.Module):
    """(B, C, H, W) -> (B, outputs)."""

    def __init__(self, body: nn.Sequential, dense: list[nn.Module], width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dense = nn.Sequential(FlattenPixels(), *dense)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, outputs)
        self.depth = (*depth_of(self.body, "body"), *depth_of(self.dense, "dense"))

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) what the last hidden layer makes of the pictures."""
        return self.dense(self.body(images))

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        return self.head(self.dropout(features))

    def forward(self, images: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(images))


def _suits(schema: Schema, rows: int) -> float:
    shape = image_shape(schema)
    if shape is None:
        return 0.0
    return 0.95 if max(shape[1:]) <= 12 else 0.7


def _training(schema: Schema, rows: int) -> dict[str, object]:
    shape = image_shape(schema) or (1, 28, 28)
    if max(shape[1:]) <= 12:  # 8 x 8 digits: as wide as before, nothing thrown away at the edges
        return {
            "network.channels": [32, 64], "network.padding": "same", "network.dense": [128], "network.dropout": 0.25,
            "training.learning_rate": 4e-3, "training.epochs": 40, "augment.shift": 1,
        }  # fmt: skip
    return {"training.learning_rate": 2e-3, "training.epochs": 10, "network.dropout": 0.25}


@network(
    "cnn",
    reason="finds the same small pattern anywhere in a picture",
    pros="small, quick on a CPU, easy to look into",
    cons="a residual network is better on photos and deep stacks",
    paper="LeCun et al. 1989, Backpropagation applied to handwritten zip code recognition",
    year=1989,
    suits=_suits,
    training=_training,
)
def cnn(
    schema: Schema,
    role: str,
    *,
    channels: tuple[PositiveInt, ...] = hyperparameter(
        (32, 64), search=[(32,), (32, 64), (32, 64, 128)], help="filters of each block"
    ),
    dense: tuple[PositiveInt, ...] = hyperparameter((64,), search=[(64,), (128,)], help="units of each dense layer"),
    kernel: PositiveInt = hyperparameter(3, search=[3, 5], help="side of a filter in pixels"),
    padding: Literal["valid", "same"] = hyperparameter("valid", help="whether filters reach over the edge"),
    pool: Literal["each", "last", "none"] = hyperparameter(
        "each", help="2 x 2 max pooling after each block, the last, or none"
    ),
    activation: ActivationName = hyperparameter("relu", search=["relu", "gelu", "silu"], help="after each layer"),
    normalization: NormalizationName = hyperparameter("none", search=["none", "batch"], help="after each filter"),
    dropout: Share = hyperparameter(
        0.0, search=(0.0, 0.6), help="before the head, share of units silenced in training"
    ),
    initializer: InitializerName = hyperparameter("default", help="of weights"),
) -> nn.Module:
    """Blocks of filters and pooling, then dense layers."""
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, "cnn", "one picture alone")
    layers: list[nn.Module] = []
    width = shape[0]
    for i, filters in enumerate(channels):
        pooled = pool == "each" or (pool == "last" and i == len(channels) - 1)
        if padding == "same" and kernel % 2 == 0:
            layers.append(nn.ZeroPad2d((0, 1, 0, 1)))  # an even filter needs one more pixel on one side
        edge = (kernel - 1) // 2 if padding == "same" else 0
        layers += convolution(width, filters, kernel, edge, activation, normalization, pooled)
        width = filters
    body = nn.Sequential(*layers)
    size = _flat_size(body, shape, channels)
    hidden: list[nn.Module] = []
    for units in dense:
        hidden += [nn.Linear(size, units), ACTIVATIONS[activation]()]
        size = units
    return initialize(CNN(body, hidden, size, output_size(schema), dropout), initializer)


def _flat_size(body: nn.Module, shape: tuple[int, ...], channels: tuple[int, ...]) -> int:
    try:
        with torch.no_grad():
            size = body.eval()(torch.zeros(1, *shape)).numel()
    except RuntimeError:
        size = 0
    body.train()
    if size == 0:
        raise FathomError(
            f"Pictures of {shape[1]} x {shape[2]} are too small for {len(channels)} blocks: nothing is left to pool. "
            "Use fewer network.channels, network.padding=same, or a larger data.image.size."
        )
    return size
