"""VGG: depth from one repeated part, 3 x 3 filters (Simonyan & Zisserman 2014).

Two 3 x 3 filters on top of each other see as far as one of 5 x 5, with fewer weights and one more activation between.
Five rounds of them, each ended by pooling that halves the picture, each (but the last) with twice the filters.

    vgg11   1, 1, 2, 2, 2 layers of filters a round, three dense layers      132,863,336 parameters, 1000 classes
    vgg16   2, 2, 3, 3, 3                                                    138,357,544

At 3 x 224 x 224 they are the published ones (configurations A and D), under the names that libraries ship them with
(`features.0.weight` ... `classifier.6.bias`). Small form, for pictures up to 64 pixels: the mean over all places, and dense
layers 512 wide; pooling ends at 2 x 2 places. There is no normalization: weights begin as He et al. 2015 derived for ReLU
("Delving deep into rectifiers"), without which sixteen layers do not begin to learn.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.alexnet import Filters
from fathom.networks.parts import (
    STEM_HELP,
    StemName,
    depth_of,
    image_shape,
    initialize,
    is_picture,
    is_small,
    output_size,
    stretches,
    unfit,
)
from fathom.networks.reading import READS_HELP, Layout, ReadsName, careful, read_shape, reader

Share = Annotated[float, Field(ge=0, lt=1)]
FILTERS = (64, 128, 256, 512, 512)  # of each round
LAYERS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}  # of filters in each round


class VGG(nn.Module):
    """(B, C, H, W) -> (B, outputs).

    Args:
        shape: (C, H, W) of the pictures.
        layers: of filters, in each of the five rounds.
        outputs: numbers returned.
        small: whether it is built in its form for small pictures.
        dropout: share of units silenced in training, after each hidden dense layer.
        reads: what comes before the first filters, where anything does.
    """

    layout: ClassVar = Layout("features.0.weight", "classifier.0.weight", full=(4096, 25_088), small=(512, 512))
    head_name = "classifier.6"

    def __init__(
        self, shape: tuple[int, ...], layers: tuple[int, ...], outputs: int, small: bool, dropout: float,
        reads: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        side, units = (1, 512) if small else (7, 4096)
        self.features = Filters(_rounds(shape, layers), side, reads)
        self.classifier = nn.Sequential(
            nn.Linear(FILTERS[-1] * side**2, units), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(units, units), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(units, outputs),
        )  # fmt: skip
        initialize(self.classifier, "kaiming")
        nn.init.normal_(self.head.weight, std=0.01)  # as published: answers begin undecided
        self.depth = (*depth_of(self.features, "features"), *depth_of(self.classifier[:-1], "classifier"))

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        return self.classifier[-1]  # type: ignore[return-value]

    def pieces(self) -> list[nn.Module]:
        """Its filters in rounds, the pooling that ends one before the next (see `levels.py`)."""
        return stretches(self.features, lambda layer: isinstance(layer, nn.MaxPool2d))

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs); its dense layers before the head may be frozen too."""
        return self.classifier(features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs)."""
        return self.decide(self.features(images))


def _rounds(shape: tuple[int, ...], layers: tuple[int, ...]) -> list[nn.Module]:
    """Filters and activation as often as each round says, then pooling (a layer that does nothing keeps the names)."""
    made: list[nn.Module] = []
    channels, side = shape[0], min(shape[1:])
    for filters, count in zip(FILTERS, layers, strict=True):
        for _ in range(count):
            made += [_filters(channels, filters, side), nn.ReLU(inplace=True)]
            channels = filters
        halves = side > 3
        made.append(nn.MaxPool2d(2) if halves else nn.Identity())
        side = side // 2 if halves else side
    return made


def _filters(inputs: int, outputs: int, side: int) -> nn.Conv2d:
    """3 x 3 filters that keep the spread of what comes in.

    He et al. count nine inputs a channel. On a small map many of them lie beyond its edge, which holds zeros: along a side
    of 2 a filter meets 2 pixels of 3. Counting those that are there is what lets the last rounds begin to learn.
    """
    made = nn.Conv2d(inputs, outputs, 3, padding=1)
    met = inputs * (3 - 2 / side) ** 2
    nn.init.normal_(made.weight, std=(2 / met) ** 0.5)
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


def _build(name: str, schema: Schema, stem: StemName, reads: ReadsName, dropout: float) -> nn.Module:
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, name, "one picture alone")
    seen, small = read_shape(shape, reads), is_small(shape, stem)
    return careful(VGG(seen, LAYERS[name], output_size(schema), small, dropout, reader(schema, reads)), reads)


ABOUT: dict[str, Any] = {
    "reason": "the plainest deep network: 3 x 3 filters and nothing else",
    "pros": "easy to read layer by layer; its features are known well",
    "cons": "slow and heavy; without shortcuts or normalization it learns late and wants a small rate",
    "paper": "Simonyan & Zisserman 2014, Very deep convolutional networks for large-scale image recognition",
    "year": 2014,
    "suits": lambda schema, rows: 0.0,  # never unasked: a network of history
    "takes": is_picture,
    "layout": VGG.layout,
    "pieces": VGG.pieces,
    "as_body": {"stem": "small"},  # whose filters are the same, and whose dense layers, left behind, take no time to make
    "training": lambda schema, rows: {
        "training.learning_rate": 3e-4, "training.weight_decay": 0.02, "training.clip": 1.0,
        "training.epochs": 20 if rows < 10_000 else 8, "augment.shift": 2,
    },
}  # fmt: skip
DROPOUT = hyperparameter(0.5, search=(0.0, 0.6), help="in the dense layers, share of units silenced in training")
STEM = hyperparameter("auto", help=STEM_HELP)
READS = hyperparameter("rows", help=READS_HELP)


@network("vgg11", parameters=132_863_336, **ABOUT)
def vgg11(
    schema: Schema, role: str, *, stem: StemName = STEM, reads: ReadsName = READS, dropout: Share = DROPOUT
) -> nn.Module:
    """Eight layers of 3 x 3 filters and three dense layers."""
    return _build("vgg11", schema, stem, reads, dropout)


@network("vgg16", parameters=138_357_544, **ABOUT)
def vgg16(
    schema: Schema, role: str, *, stem: StemName = STEM, reads: ReadsName = READS, dropout: Share = DROPOUT
) -> nn.Module:
    """Thirteen layers of 3 x 3 filters and three dense layers."""
    return _build("vgg16", schema, stem, reads, dropout)
