"""AlexNet: the deep convolutional network that won ImageNet by ten points (Krizhevsky, Sutskever & Hinton 2012).

What it brought together: ReLU, which learns several times faster than tanh; dropout in the dense layers; much
augmentation; two graphics cards for a week. This is its one-card form (Krizhevsky 2014), without the normalization
over neighboring channels, as libraries ship it: 61,100,840 parameters at 3 x 224 x 224 with 1000 classes, under the same
names (`features.0.weight` ... `classifier.6.bias`).

    features     64 filters 11 x 11, stride 4, pool ─▶ 192 of 5 x 5, pool ─▶ 384 ─▶ 256 ─▶ 256 of 3 x 3, pool ─▶ 6 x 6
    classifier   4096 ─▶ 4096 ─▶ outputs

Small form, for pictures up to 64 pixels: the first filters are 5 x 5 with stride 1, the last maps 3 x 3 at most, and the
dense layers 1024 wide.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import (
    STEM_HELP,
    StemName,
    depth_of,
    image_shape,
    initialize,
    is_picture,
    is_small,
    output_size,
    unfit,
)
from fathom.networks.reading import READS_HELP, Layout, ReadsName, careful, read_shape, reader

Share = Annotated[float, Field(ge=0, lt=1)]
POOL = 3  # pixels of a pooling window, which moves by 2: windows overlap
LEAST = 63  # pixels a side that the published stem needs


class Filters(nn.Sequential):
    """Filters and pooling, then the mean over a grid: (B, C, H, W) -> (B, D).

    Args:
        layers: what is done one after the other.
        side: places along a side of the grid.
        reads: what comes before the first of them, beside their numbers, by which published weights are called.
    """

    def __init__(self, layers: list[nn.Module], side: int, reads: nn.Module | None = None) -> None:
        super().__init__(OrderedDict(reads=reads or nn.Identity(), **{str(i): layer for i, layer in enumerate(layers)}))
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Channels first in D, as published weights of dense layers want it."""
        maps = super().forward(images)  # (B, C', H', W')
        return nn.functional.adaptive_avg_pool2d(maps, self.side).flatten(1)


class AlexNet(nn.Module):
    """(B, C, H, W) -> (B, outputs).

    Args:
        shape: (C, H, W) of the pictures.
        outputs: numbers returned.
        small: whether it is built in its form for small pictures.
        dropout: share of units silenced in training, before each hidden dense layer.
        reads: what comes before the first filters, where anything does.
    """

    layout: ClassVar = Layout("features.0.weight", "features.0.weight", full=(64, 3, 11, 11), small=(64, 3, 5, 5))
    head_name = "classifier.6"

    def __init__(
        self, shape: tuple[int, ...], outputs: int, small: bool, dropout: float, reads: nn.Module | None = None
    ) -> None:
        super().__init__()
        units = 1024 if small else 4096
        self.features, width = _filters(shape, small, reads)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(width, units), nn.ReLU(inplace=True),
            nn.Dropout(dropout), nn.Linear(units, units), nn.ReLU(inplace=True),
            nn.Linear(units, outputs),
        )  # fmt: skip
        initialize(self, "kaiming")
        nn.init.normal_(self.head.weight, std=0.01)  # as published: answers begin undecided
        self.depth = (*depth_of(self.features, "features"), *depth_of(self.classifier[:-1], "classifier"))

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        return self.classifier[-1]  # type: ignore[return-value]

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs); its dense layers before the head may be frozen too."""
        return self.classifier(features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs)."""
        return self.decide(self.features(images))


def _filters(shape: tuple[int, ...], small: bool, reads: nn.Module | None) -> tuple[Filters, int]:
    """The filters, and how many features they make."""
    stem = nn.Conv2d(shape[0], 64, 5, padding=2) if small else nn.Conv2d(shape[0], 64, 11, stride=4, padding=2)
    side = min(shape[1:]) if small else (min(shape[1:]) - 7) // 4 + 1
    layers: list[nn.Module] = [stem, nn.ReLU(inplace=True)]
    side = _pool(layers, side)
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True)]
    side = _pool(layers, side)
    for inputs, filters in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(inputs, filters, 3, padding=1), nn.ReLU(inplace=True)]
    side = _pool(layers, side)
    side = min(side, 3) if small else 6
    return Filters(layers, side, reads), 256 * side**2


def _pool(layers: list[nn.Module], side: int) -> int:
    """Add overlapping pooling where there is enough to pool (a layer that does nothing keeps the names); the side after it."""
    if side < POOL:
        layers.append(nn.Identity())
        return side
    layers.append(nn.MaxPool2d(POOL, 2))
    return (side - POOL) // 2 + 1


@network(
    "alexnet",
    reason="the network that made deep learning the way to see",
    pros="shallow, so that every layer learns at once",
    cons="nine of ten weights stand in two dense layers; later networks are better with a tenth of them",
    paper="Krizhevsky, Sutskever & Hinton 2012, ImageNet classification with deep convolutional neural networks",
    year=2012,
    parameters=61_100_840,
    suits=lambda schema, rows: 0.0,  # never unasked: a network of history
    takes=is_picture,
    layout=AlexNet.layout,
    training=lambda schema, rows: {
        "training.learning_rate": 5e-4, "training.weight_decay": 0.02, "training.clip": 1.0,
        "training.epochs": 20 if rows < 10_000 else 8, "augment.shift": 2,
    },
)  # fmt: skip
def alexnet(
    schema: Schema,
    role: str,
    *,
    stem: StemName = hyperparameter("auto", help=STEM_HELP),
    reads: ReadsName = hyperparameter("rows", help=READS_HELP),
    dropout: Share = hyperparameter(
        0.5, search=(0.0, 0.6), help="in the dense layers, share of units silenced in training"
    ),
) -> nn.Module:
    """Five layers of filters and three dense layers."""
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, "alexnet", "one picture alone")
    small = is_small(shape, stem)
    if not small and min(shape[1:]) < LEAST:
        raise FathomError(
            f"The published alexnet leaves nothing of pictures of {shape[1]} x {shape[2]}. "
            f"Use network.stem=small, or data.image.size={LEAST} or more."
        )
    return careful(AlexNet(read_shape(shape, reads), output_size(schema), small, dropout, reader(schema, reads)), reads)
