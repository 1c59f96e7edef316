"""Several inputs of different kinds, several targets: an encoder for each input, then one head over all of them."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.mlp import MLP
from fathom.networks.parts import ALIKE, kinds, output_size, rows_alike, unfit
from fathom.networks.resnet import filters

Share = Annotated[float, Field(ge=0, lt=1)]


class PictureEncoder(nn.Module):
    """(B, C, H, W) -> (B, width)."""

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, side = shape[0], min(shape[1:])
        for width in channels:
            layers.append(filters(inputs, width, "relu"))
            if side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            inputs = width
        self.features = nn.Sequential(*layers)
        self.width = inputs

    def forward(self, images: Tensor) -> Tensor:
        """The mean of the features over all places."""
        return self.features(images).mean((2, 3))


class Composite(nn.Module):
    """Encoders side by side, then an MLP."""

    def __init__(self, schema: Schema, channels: tuple[int, ...], hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        encoders: list[nn.Module] = []
        size = 0
        for item in schema.inputs.values():
            shape = tuple(item.shape)
            if len(shape) == 3:
                picture = PictureEncoder(shape, channels)
                encoders.append(picture)
                size += picture.width
            else:
                encoders.append(nn.Flatten())
                size += int(torch.tensor(shape).prod())
        self.encoders = nn.ModuleList(encoders)
        self.head = MLP(size, hidden, output_size(schema), "relu", "none", dropout)

    def forward(self, *inputs: Tensor) -> Tensor:
        """One tensor an input -> (B, outputs of all targets)."""
        encoded = [encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)]
        return self.head(torch.cat(encoded, 1))


def _suits(schema: Schema, rows: int) -> float:
    if not rows_alike(schema):
        return 0.0
    return 1.5 if "image" in kinds(schema) and len(schema.inputs) > 1 else 0.2


@network(
    "composite",
    reason="the inputs are of several kinds; each gets its own encoder",
    pros="pictures, numbers and categories together, any number of targets",
    cons="more weights; one weak input can drown a strong one",
    paper="Ngiam et al. 2011, Multimodal deep learning",
    year=2011,
    suits=_suits,
    training=lambda schema, rows: {
        "training.learning_rate": 2e-3,
        "training.epochs": 30 if rows < 10_000 else 10,
        "training.weight_decay": 0.05,
    },
)
def composite(
    schema: Schema,
    role: str,
    *,
    channels: tuple[PositiveInt, ...] = hyperparameter(
        (32, 64, 128), help="filters of each block of a picture encoder"
    ),
    hidden: tuple[PositiveInt, ...] = hyperparameter(
        (128,), search=[(64,), (128,), (256, 128)], help="units of each layer of the head"
    ),
    dropout: Share = hyperparameter(0.1, search=(0.0, 0.6), help="in the head, share of units silenced in training"),
) -> nn.Module:
    """An encoder for each input and a shared head."""
    if not rows_alike(schema):
        raise unfit(schema, "composite", ALIKE)
    return Composite(schema, channels, hidden, dropout)
