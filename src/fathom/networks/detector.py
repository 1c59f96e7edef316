"""A detector of one stage without anchors: every place of the picture says what has its middle there, and how large it is.

    picture ─▶ backbone (levels.py), strides 4, 8, 16, 32 ─▶ merged from the coarsest up (feature pyramid, Lin et al. 2017)
            ─▶ one map of stride 4 ─▶ heat map, a logit a class (CenterNet, Zhou et al. 2019)
                                   └▶ distances to the four sides (FCOS, Tian et al. 2019; TTFNet, Liu et al. 2020)

Stride 4 keeps things of a few pixels apart. The output is dense, (B, 4 + K, h, w): logarithms of the distances to the
left, upper, right and lower side in cells, then the logits of the heat map. Its first biases are what the training rows
say: boxes of the median size, and nearly nowhere a middle.

In comments: B rows, C channels, K classes, h and w cells of stride 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.levels import SLOWER, Published, backbone_of, check, inherited
from fathom.networks.parts import unfit
from fathom.networks.resnet import filters

STRIDE = 4
COARSEST = 32  # stride of the last level
RARE = -2.19  # the first bias of the heat map: a tenth (Zhou et al. 2019)


class Pyramid(nn.Module):
    """Levels merged from the coarsest up, each enlarged and added to the finer one (Lin et al. 2017).

    Args:
        inputs: channels of each level, the finest first.
        width: channels of the merged map.
    """

    def __init__(self, inputs: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in inputs]
        )
        self.merged = nn.ModuleList([filters(width, width, "relu") for _ in inputs[1:]])

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """-> (B, width, h, w) at the finest level."""
        x = self.lateral[-1](levels[-1])
        for level, lateral, merge in zip(levels[-2::-1], self.lateral[-2::-1], self.merged[::-1], strict=True):
            x = merge(lateral(level) + F.interpolate(x, size=level.shape[2:], mode="nearest"))
        return x


class Head(nn.Module):
    """Two branches on the merged map: distances and heat.

    Args:
        width: channels of the map.
        classes: K.
        sizes: median (width, height) of a box in cells.
    """

    def __init__(self, width: int, classes: int, sizes: tuple[float, float]) -> None:
        super().__init__()
        half = [math.log(max(side / 2, 0.5)) for side in sizes]
        self.sides = nn.Sequential(filters(width, width, "relu"), _last(width, half * 2))
        self.heat = nn.Sequential(filters(width, width, "relu"), _last(width, [RARE] * classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4 + K, h, w)."""
        return torch.cat([self.sides(x), self.heat(x)], 1)


def _last(width: int, biases: Sequence[float]) -> nn.Conv2d:
    """A layer that at first answers its biases nearly everywhere."""
    layer = nn.Conv2d(width, len(biases), 1)
    with torch.no_grad():
        nn.init.normal_(layer.weight, std=0.01)
        layer.bias.copy_(torch.tensor(biases))  # type: ignore[union-attr]
    return layer


class Detector(nn.Module):
    """(B, C, H, W) -> {target: (B, 4 + K, h, w)}."""

    rates: dict[str, float] | None = None  # of its parts, where they should not all learn alike

    def __init__(self, target: str, backbone: nn.Module, pyramid: Pyramid, head: Head) -> None:
        super().__init__()
        self.target = target
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head
        self.borrowed = {f"backbone.{ours}": theirs for ours, theirs in backbone.borrowed.items()}  # type: ignore[operator, union-attr]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The dense answer, by the name of the target: it has another shape than the boxes that are made of it."""
        return {self.target: self.head(self.pyramid(self.backbone(images)))}

    def begin(self) -> None:
        """Put published weights in place, before training, where the backbone has any."""
        if isinstance(self.backbone, Published):
            self.backbone.begin()


def _finds(schema: Schema) -> bool:
    """Whether boxes are to be found in one picture; of a schema that is not fitted yet, too."""
    kinds = [item.kind for item in schema.inputs.values()], [item.kind for item in schema.targets.values()]
    return kinds == (["image"], ["boxes"])


def _parts(schema: Schema) -> tuple[tuple[int, ...], str] | None:
    """The shape of the one picture and the name of the one target of boxes; None for other schemas."""
    if not _finds(schema):
        return None
    return tuple(next(iter(schema.inputs.values())).shape), next(iter(schema.targets))


def _training(schema: Schema, rows: int) -> dict[str, object]:
    """Settings for time to precision on one core, chosen on validation pictures (docs/results)."""
    (_, height, width), _ = _parts(schema) or ((3, 64, 64), "")
    return {
        "training.batch": 8, "training.learning_rate": 4e-3, "training.weight_decay": 0.05, "training.clip": 35.0,
        "training.average": 0.998, "training.epochs": 60 if rows < 1_000 else 24,
        "augment.flip": 0.5, "augment.color": 0.3, "augment.scale": 0.3, "augment.shift": min(64, max(height, width) // 10),
    }  # fmt: skip


@network(
    "detector",
    algorithm="detection",
    reason="a classifier names a whole picture and cannot say where; this answers at every place, for things of every size",
    pros="one stage, no anchors to tune; a map of stride 4 for things of a few pixels",
    cons="two things with one middle are one; large data want a pretrained backbone",
    paper="Zhou, Wang & Krähenbühl 2019, Objects as points; Liu et al. 2020, Training-time-friendly network",
    year=2020,
    suits=lambda schema, rows: 1.0 if _finds(schema) else 0.0,
    training=_training,
    check=lambda schema, options: check(options["weights"]),
    around=inherited,
)
def detector(
    schema: Schema,
    role: str,
    *,
    backbone: str = hyperparameter(
        "small", help="what reads the picture: small, the body of a network (resnet18, vgg16, efficientnet-b0), or timm:NAME"
    ),
    weights: str = hyperparameter(
        "", help="published weights of the backbone: efficientnet-lite0 or timm:NAME, as it is called; random ones where empty"
    ),
    body: dict[str, Any] = hyperparameter(
        {}, help="options of the network whose body the backbone is, as in {channels=[16,32]} of resnet"
    ),
    channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = hyperparameter(
        (32, 64, 128, 192),
        search=[(24, 48, 96, 128), (32, 64, 128, 192), (48, 96, 192, 256)],
        help="filters of the small backbone at strides 4, 8, 16 and 32",
    ),
    blocks: PositiveInt = hyperparameter(1, search=[1, 2], help="residual blocks of the small backbone at each stride"),
    width: PositiveInt = hyperparameter(48, search=[32, 48, 64], help="channels of the merged map and of both heads"),
) -> nn.Module:
    """Backbone, feature pyramid, and a heat map of middles with the distances to the sides."""
    parts = _parts(schema)
    if parts is None:
        raise unfit(schema, "detector", "one picture alone, in which it finds boxes")
    (_, height, image_width), target = parts
    if min(height, image_width) < 2 * COARSEST:
        raise FathomError(
            f"Pictures of {height} x {image_width} are too small for the detector, which halves them five times; "
            f"give data.image.size of {2 * COARSEST} or more."
        )
    state = schema.targets[target].state
    sizes = torch.tensor(state["sizes"]).median(0).values  # (2,) of the classes' medians
    cells = (float(sizes[0]) * image_width / STRIDE, float(sizes[1]) * height / STRIDE)
    (picture,) = schema.inputs.values()
    reader = backbone_of(backbone, weights, picture, body, channels, blocks)
    made = Detector(target, reader, Pyramid(reader.widths, width), Head(width, len(state["classes"]), cells))
    if weights:
        made.rates = {"*": 1.0, "backbone.*": SLOWER}
    return made
