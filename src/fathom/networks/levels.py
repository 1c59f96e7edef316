"""Backbones that give a map at each stride, for networks that must say where something is.

    small                from scratch, residual, as wide as one likes
    resnet18             of residual.py, without its head
    efficientnet-lite0   of efficientnet.py, without its head; published weights on request

Each gives maps at strides 4, 8, 16 and 32, the finest first, and `widths`, their channels.
In comments: B rows, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from fathom.core.errors import FathomError
from fathom.fields import published
from fathom.networks.backbone import Restored
from fathom.networks.efficientnet import EfficientNet, published_names
from fathom.networks.residual import PlainBlock, ResNet
from fathom.networks.resnet import Block

BackboneName = Literal["small", "resnet18", "efficientnet-lite0"]
PUBLISHED = "efficientnet-lite0"
CUTS = (1, 3, 5, 11, 16)  # of its sixteen blocks, the first of which stays in the stem: strides 4, 8, 16 and 32
LITE0_WIDTHS = (24, 40, 112, 320)
READS = ((127.0,) * 3, (128.0,) * 3)  # it was trained on (byte - 127) / 128
SLOWER = 0.1  # rate of a published backbone as a multiple of the rest


class Levels(Protocol):
    """A backbone."""

    widths: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map of each stride."""
        ...


class Small(nn.Module):
    """Residual stages (He et al. 2015) after a stem of stride 4.

    Args:
        inputs: channels of the picture.
        widths: filters of each stage.
        blocks: residual blocks of each stage.
    """

    def __init__(self, inputs: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        half = max(widths[0] // 2, 8)
        self.stem = nn.Sequential(halved(inputs, half), halved(half, widths[0]))
        stages: list[nn.Module] = []
        for before, width in zip((widths[0], *widths), widths, strict=False):
            first = [halved(before, width)] if stages else []
            stages.append(nn.Sequential(*first, *(Block(width, "relu") for _ in range(blocks))))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map of each stride."""
        return in_turn(self.stem(images), self.stages)


def halved(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3 filters that halve the map, with normalization and activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def in_turn(x: Tensor, stages: nn.ModuleList) -> list[Tensor]:
    """What each stage makes of the one before."""
    levels = []
    for stage in stages:
        x = stage(x)
        levels.append(x)
    return levels


class ResNet18(nn.Module):
    """ResNet-18 without its head."""

    widths = (64, 128, 256, 512)

    def __init__(self, inputs: int) -> None:
        super().__init__()
        net = ResNet(PlainBlock, (2, 2, 2, 2), inputs, 1, small=False)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map of each stride."""
        return in_turn(self.stem(images), self.stages)


class Lite0(nn.Module):
    """EfficientNet-Lite0 without its top and head.

    Args:
        inputs: channels of the picture.
    """

    widths = LITE0_WIDTHS

    def __init__(self, inputs: int) -> None:
        super().__init__()
        net = EfficientNet("lite0", inputs, 1)
        self.stem = nn.Sequential(net.stem, net.blocks[0])
        self.stages = nn.ModuleList([net.blocks[start:stop] for start, stop in pairwise(CUTS)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map of each stride."""
        return in_turn(self.stem(images), self.stages)


class PublishedLite0(nn.Module):
    """EfficientNet-Lite0 with the weights that were published, which reads pixels as it was trained on them.

    Args:
        state: of the field of the picture: mean and spread of each channel.
    """

    widths = LITE0_WIDTHS

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self.restored = Restored(state["mean"], state["std"], *READS)
        self.net = Lite0(3)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) standardized by the field -> a map of each stride."""
        made: list[Tensor] = self.net(self.restored(images))
        return made

    def begin(self) -> None:
        """Put the published weights in place, before training; a saved run brings its own.

        Raises:
            FathomError: the file is not there, or is not the one that is listed.
        """
        theirs, names = published.converted(PUBLISHED), published_names("lite0")
        self.net.load_state_dict({name: theirs[names[_as_whole(name)]] for name in self.net.state_dict()})


def _as_whole(name: str) -> str:
    """The name that a tensor of `Lite0` has in the whole network: blocks keep their numbers when they are cut out."""
    part, place, *rest = name.split(".")
    if part == "stem":
        return ".".join(["stem" if place == "0" else "blocks.0", *rest])
    return ".".join(["blocks", *rest])


def backbone_of(
    name: BackboneName, weights: str, shape: Sequence[int], state: Mapping[str, Any], widths: Sequence[int], blocks: int
) -> nn.Module:
    """A backbone by name.

    Args:
        name: of `BackboneName`.
        weights: "" for random ones, or the name of published ones.
        shape: (C, H, W) of the picture.
        state: of the picture's field.
        widths, blocks: of the small one.

    Raises:
        FathomError: no such weights are published for it.
    """
    if weights and (weights, name) != (PUBLISHED, PUBLISHED):
        raise FathomError(
            f"There are no published weights '{weights}' for the backbone {name}. Published are those of {PUBLISHED}: "
            f"network.backbone={PUBLISHED} network.weights={PUBLISHED}."
        )
    if weights:
        return PublishedLite0(state)
    if name == "small":
        return Small(shape[0], widths, blocks)
    return ResNet18(shape[0]) if name == "resnet18" else Lite0(shape[0])
