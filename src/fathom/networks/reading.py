"""How published weights read pictures, and how a file of them tells which form of a network it is for.

    Restored     standardized by our training rows ─▶ standardized as the weights were trained
    Layout       the tensors of a file from which its form follows: a network's `layout`
    careful      how a published body thaws

    network.reads = "rows"       pictures are standardized by the training rows, as of every other network
    network.reads = "imagenet"   and then as torchvision trained its classifiers: a share of 255, less ImageNet's mean, by its
                                 spread; gray pictures become three equal channels

`--from FILE.safetensors` settles this and `network.stem` from the shapes in the file (see `verbs/transfer.py`).
In comments: B rows, C channels, H x W places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fathom.core.contract import Schema
from fathom.core.errors import DataError
from fathom.fields.image import channels_last

ReadsName = Literal["rows", "imagenet"]
READS_HELP = "how pictures are standardized: by the training rows, or as published weights know them (ImageNet's mean and spread)"
SIDE = 224  # pixels a side that classifiers of ImageNet are trained on
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and spread of shares, where a model names none

# How a published body thaws. Chosen on validation rows of cats and dogs: the head settles on kept features, which cost next
# to nothing, and the body of a published network is better left nearly as it is.
HEAD_SHARE, HEAD_RATE, BODY_RATE = 0.8, 0.1, 0.03


class Restored(nn.Module):
    """Standardized by our training rows -> standardized as published weights were trained: one affine map a channel.

    A byte is std * x + mean, and the network reads (byte - its mean) / its std. Gray pictures become three equal channels.

    Args:
        state: of the fitted field: mean and spread of each channel, and what its numbers are.
        published_mean, published_std: of the published network in bytes, three.

    Raises:
        DataError: the pictures' numbers are no bytes, so that nothing says which of them is white.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, state: Mapping[str, Any], published_mean: Sequence[float], published_std: Sequence[float]
    ) -> None:
        super().__init__()
        if state["factor"] is None:
            raise DataError(
                "Published weights read bytes of pictures, and these arrays hold numbers that are neither whole from 0 to 255 "
                "nor shares of 255 from 0 to 1, so nothing says which of them is black or white. Give them so, or picture "
                "files; or take a network without published weights."
            )
        ours_mean, ours_std, mean_there, std_there = (
            torch.tensor(list(values), dtype=torch.float64).view(-1, 1, 1)
            for values in (state["mean"], state["std"], published_mean, published_std)
        )
        self.register_buffer("scale", (ours_std / std_there).float(), persistent=False)  # (3, 1, 1)
        self.register_buffer("shift", ((ours_mean - mean_there) / std_there).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, H, W)."""
        return channels_last(images * self.scale + self.shift)


def in_bytes(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread of shares from 0 to 1 -> of bytes."""
    return tuple(255.0 * value for value in mean), tuple(255.0 * value for value in std)


def reader(schema: Schema, reads: ReadsName) -> nn.Module:
    """The first part of a network of one picture: what comes before its first filters."""
    if reads == "rows":
        return nn.Identity()
    (picture,) = schema.inputs.values()
    return Restored(picture.state, *in_bytes(*IMAGENET))


def read_shape(shape: tuple[int, ...], reads: ReadsName) -> tuple[int, ...]:
    """(C, H, W) of what the first filters see of pictures (C, H, W)."""
    return shape if reads == "rows" else (3, *shape[1:])


def careful(module: nn.Module, reads: ReadsName) -> nn.Module:
    """The network; where it reads as published, it thaws as a published body does (see `transfer.stage_tables`)."""
    if reads != "rows":
        known = {"head_share": HEAD_SHARE, "head_rate": HEAD_RATE, "body_rate": BODY_RATE}
        for name, value in {**known, "settled": tuple(normalization_globs(module))}.items():
            setattr(module, name, value)
    return module


def normalization_globs(module: nn.Module) -> list[str]:
    """Globs of the parameters of batch normalization: by the layers' own name where it is theirs alone, else one by one."""
    layers = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    named = [name for name, _ in module.named_parameters()]
    globs: dict[str, None] = {}
    for name in layers:
        shared = f"*.{name.rpartition('.')[2]}.*"
        alone = all(other.rpartition(".")[0] in layers for other in named if fnmatchcase(other, shared))
        globs[shared if alone and "." in name else f"{name}.*"] = None
    return list(globs)


@dataclass(frozen=True)
class Layout:
    """From which tensors of a file the form of a network follows, under torchvision's names.

    Args:
        first: the first filters; how many channels they read is how many the pictures of the file had.
        telling: the tensor whose shape differs between the forms; how many channels its filters read tells nothing.
        full: its shape as published (`network.stem=full`).
        small: its shape in the form for small pictures (`network.stem=small`).
    """

    first: str
    telling: str
    full: tuple[int, ...]
    small: tuple[int, ...]

    def form(self, shape: Sequence[int]) -> Literal["full", "small"] | None:
        """Which form a file is for, from the shape of its `telling` tensor; None where it is neither."""
        if _less_channels(shape) == _less_channels(self.full):
            return "full"
        return "small" if _less_channels(shape) == _less_channels(self.small) else None


def _less_channels(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of filters without the channels that they read; of a matrix all of it."""
    return (shape[0], *shape[2:]) if len(shape) == 4 else tuple(shape)
