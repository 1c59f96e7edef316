"""Residual network: each block adds what it learns to what it was given (He et al. 2015).

A small one for small pictures: a stem that halves the picture, then stages of blocks, each stage half the size and
twice the filters of the one before, then the mean over all places. The published ones are in residual.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import ACTIVATIONS, ActivationName, depth_of, image_shape, output_size, stretches, unfit

Share = Annotated[float, Field(ge=0, lt=1)]


def filters(inputs: int, outputs: int, activation: str | None) -> nn.Sequential:
    """3 x 3 filters and normalization, with an activation where one is named."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([ACTIVATIONS[activation]()] if activation else []))


class Block(nn.Module):
    """x + f(x), then the activation."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.first = filters(channels, channels, activation)
        self.second = filters(channels, channels, None)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return self.activation(x + self.second(self.first(x)))


class ResNet(nn.Module):
    """(B, C, H, W) -> (B, outputs)."""

    def __init__(
        self,
        inputs: int,
        channels: tuple[int, ...],
        blocks: int,
        outputs: int,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in channels:
            layers += [filters(inputs, width, None), nn.MaxPool2d(2), ACTIVATIONS[activation]()]
            layers += [Block(width, activation) for _ in range(blocks)]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(inputs, outputs)
        self.depth = depth_of(self.body, "body")

    def pieces(self) -> list[nn.Module]:
        """Its stages (see `levels.py`)."""
        return stretches(self.body, lambda layer: isinstance(layer, nn.Sequential))

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) the mean over all places."""
        return self.body(images).mean((2, 3))

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        return self.head(self.dropout(features))

    def forward(self, images: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(images))


def _suits(schema: Schema, rows: int) -> float:
    shape = image_shape(schema)
    return 0.0 if shape is None else 0.9 if max(shape[1:]) > 12 else 0.5


def _training(schema: Schema, rows: int) -> dict[str, object]:
    """Settings for time to accuracy on two cores, chosen on validation rows (docs/results/foundation.md)."""
    channels, height, width = image_shape(schema) or (1, 28, 28)
    settings: dict[str, object] = {
        "network.channels": [16, 32, 64] if channels == 1 else [32, 64, 128],
        "training.learning_rate": 1e-2, "training.weight_decay": 0.05, "training.label_smoothing": 0.1,
        "training.epochs": 40 if rows < 10_000 else 8, "augment.shift": 2,
    }  # fmt: skip
    if channels == 3:
        settings["augment.flip"] = 0.5
    if max(height, width) > 40:
        # Photos: one more halving, half the filters for the time it takes, and crops, since things stand anywhere.
        settings["network.channels"] = [16, 32, 64, 128]
        settings.update({"training.learning_rate": 4e-3, "augment.shift": 4, "augment.crop": 0.3})
    return settings


@network(
    "resnet",
    reason="deep enough for photos and still easy to train, since each block only adds a correction",
    pros="accurate on pictures of every size, steady to train",
    cons="slower than a plain cnn; wants some thousand pictures, or transfer from another run",
    paper="He, Zhang, Ren & Sun 2015, Deep residual learning for image recognition",
    year=2015,
    suits=_suits,
    training=_training,
    pieces=ResNet.pieces,
)
def resnet(
    schema: Schema,
    role: str,
    *,
    channels: tuple[PositiveInt, ...] = hyperparameter(
        (32, 64, 128), search=[(16, 32, 64), (32, 64, 128), (64, 128, 256)], help="filters of each stage"
    ),
    blocks: int = hyperparameter(1, search=[0, 1, 2], help="residual blocks of each stage"),
    activation: ActivationName = hyperparameter("relu", search=["relu", "silu"], help="after each layer"),
    dropout: Share = hyperparameter(
        0.0, search=(0.0, 0.5), help="before the head, share of features silenced in training"
    ),
) -> nn.Module:
    """Stages of residual blocks, each at half the size of the one before."""
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, "resnet", "one picture alone")
    if min(shape[1:]) < 2 ** len(channels):
        raise FathomError(
            f"Pictures of {shape[1]} x {shape[2]} cannot be halved {len(channels)} times; "
            "give fewer network.channels or a larger data.image.size."
        )
    return ResNet(shape[0], channels, blocks, output_size(schema), activation, dropout)
