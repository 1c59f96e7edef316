"""EfficientNet: one small network found by search, and a rule to scale it (Tan & Le 2019).

Its block is the inverted residual (Sandler et al. 2018): 1 x 1 filters widen the channels, one filter a channel looks
around (depthwise), 1 x 1 filters narrow them again, and what came in is added. Squeeze-and-excitation (Hu et al. 2018)
weighs the channels by what the whole picture holds.

    b0      the network of the paper: SiLU, squeeze-and-excitation            5,288,548 parameters, 1000 classes
    lite0   for phones: ReLU6 and no squeeze-and-excitation (Liu 2020)        4,652,008

Both pad as TensorFlow does, with the odd pixel at the right and at the bottom, since their published weights were
trained so; the order of parameters is theirs too (`published_names`). Pictures are (pixel - 127) / 128 for lite0.

    Filters ─▶ InvertedResidual (x 16) ─▶ EfficientNet        small form: the stem keeps the resolution

Left out: drop connect, the random skipping of blocks in training.
In comments: B rows, C channels, H x W places.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import STEM_HELP, StemName, image_shape, is_picture, is_small, output_size, unfit

Share = Annotated[float, Field(ge=0, lt=1)]
SizeName = Literal["lite0", "b0"]


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution: the first narrows the picture by `stride`."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# Table 1 of the paper.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
NARROW = (1, 3, 5, 11, 16)  # the blocks that narrow the picture, and where the last one ends
STEM, TOP = 32, 1280  # channels before the first block and after the last


@dataclass(frozen=True)
class Form:
    """What the members of the family differ in.

    Args:
        activation: after normalized filters.
        squeeze: share of a block's input channels that squeeze-and-excitation looks through; 0 for none.
    """

    activation: type[nn.Module]
    squeeze: float


FORMS: dict[str, Form] = {"lite0": Form(nn.ReLU6, 0.0), "b0": Form(nn.SiLU, 0.25)}


class SameConv2d(nn.Conv2d):
    """Filters padded as TensorFlow's "same": ceil(side / stride) places come out, the odd pixel is added last."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        over, under = (self._missing(side) for side in images.shape[2:])
        even = (over // 2, under // 2)
        if over % 2 or under % 2:  # copies the picture, so only where the convolution cannot pad by itself
            images = F.pad(images, (even[1], under - even[1], even[0], over - even[0]))
            even = (0, 0)
        return F.conv2d(images, self.weight, self.bias, self.stride, even, 1, self.groups)

    def _missing(self, side: int) -> int:
        """Pixels that a side lacks for its last place to be whole."""
        places = -(-side // self.stride[0])
        return max((places - 1) * self.stride[0] + self.kernel_size[0] - side, 0)


class Filters(nn.Module):
    """Filters, batch normalization, and an activation where one is given."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, momentum: float,
        activation: type[nn.Module] | None, groups: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=momentum)
        self.activation = activation() if activation else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.activation(self.norm(self.conv(images)))


class SqueezeExcitation(nn.Module):
    """Each channel times a weight from 0 to 1 that depends on the mean of all channels."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        mean = images.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return images * self.expand(F.silu(self.reduce(mean))).sigmoid()


class InvertedResidual(nn.Module):
    """Widen, look around, weigh the channels, narrow; what came in is added where its shape is kept.

    Args:
        inputs: channels that come in.
        stage: the block's kernel, expansion and output channels.
        stride: of this block.
        form: of the network.
        momentum: of batch normalization.
    """

    def __init__(self, inputs: int, stage: Stage, stride: int, form: Form, momentum: float) -> None:
        super().__init__()
        wide, activation = inputs * stage.expansion, form.activation
        squeezed = int(inputs * form.squeeze)
        self.adds = stride == 1 and inputs == stage.channels
        self.expand = Filters(inputs, wide, 1, 1, momentum, activation) if stage.expansion > 1 else nn.Identity()
        self.depthwise = Filters(wide, wide, stage.kernel, stride, momentum, activation, groups=wide)
        self.squeeze = SqueezeExcitation(wide, squeezed) if squeezed else nn.Identity()
        self.project = Filters(wide, stage.channels, 1, 1, momentum, None)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        made = self.project(self.squeeze(self.depthwise(self.expand(images))))
        return images + made if self.adds else made


class EfficientNet(nn.Module):
    """(B, C, H, W) -> (B, outputs).

    Args:
        size: lite0 or b0.
        inputs: channels of a picture.
        outputs: numbers returned.
        small: whether the stem keeps the resolution. Statistics of batch normalization are then remembered over tens
            of steps; the published hundreds suit the hundreds of thousands of steps of the paper.
        dropout: share of features silenced in training.
    """

    def __init__(self, size: SizeName, inputs: int, outputs: int, small: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        form, momentum = FORMS[size], 0.1 if small else 0.01
        self.stem = Filters(inputs, STEM, 3, 1 if small else 2, momentum, form.activation)
        self.blocks = _blocks(form, momentum)
        self.top = Filters(STAGES[-1].channels, TOP, 1, 1, momentum, form.activation)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(TOP, outputs)
        self.depth = ("stem", *(f"blocks.{i}" for i in range(len(self.blocks))), "top")
        _initialize(self)

    def pieces(self) -> list[nn.Module]:
        """Its body in pieces that follow each other, each of which ends with a map (see `levels.py`)."""
        return [self.stem, self.blocks[0], *(self.blocks[start:stop] for start, stop in pairwise(NARROW))]

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1280) the mean over all places."""
        return self.top(self.blocks(self.stem(images))).mean((2, 3))

    def decide(self, features: Tensor) -> Tensor:
        """(B, 1280) -> (B, outputs)."""
        return self.head(self.dropout(features))

    def forward(self, images: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(images))


def _blocks(form: Form, momentum: float) -> nn.Sequential:
    """The sixteen blocks of the seven stages."""
    made: list[nn.Module] = []
    inputs = STEM
    for stage in STAGES:
        for place in range(stage.repeats):
            stride = stage.stride if place == 0 else 1
            made.append(InvertedResidual(inputs, stage, stride, form, momentum))
            inputs = stage.channels
    return nn.Sequential(*made)


@torch.no_grad()
def _initialize(module: nn.Module) -> None:
    """As published: filters by how many outputs each input reaches. The head keeps PyTorch's start, within 1 / sqrt(inputs).

    (The published 1 / sqrt(outputs) is alike for 1000 outputs, and for ten so large that training begins by unlearning.)
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            reached = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=(2 / reached) ** 0.5)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def published_names(size: SizeName = "lite0") -> dict[str, str]:
    """Each tensor of ours -> its name in the weights converted from TensorFlow, head included.

    The names are those of the PyTorch ports of the TensorFlow release (`_conv_stem`, `_blocks.0._depthwise_conv` ...).
    """
    with torch.device("meta"):
        ours = EfficientNet(size, 3, 1000).state_dict()
    return {name: _published_name(name) for name in ours}


def _published_name(name: str) -> str:
    """The name of one tensor; the normalizations of a block are counted from the depthwise one, which is 1."""
    place, _, tensor = name.rpartition(".")
    for mine, theirs in PUBLISHED.items():
        if place.endswith(mine):
            return f"{'_' * place.startswith('blocks')}{place.removesuffix(mine)}{theirs}.{tensor}"
    raise AssertionError(f"the layer '{name}' has no published name")


PUBLISHED = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "squeeze.reduce": "_se_reduce",
    "squeeze.expand": "_se_expand",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
    "top.conv": "_conv_head",
    "top.norm": "_bn1",
    "head": "_fc",
}


@network(
    "efficientnet",
    reason="much accuracy for few weights and little arithmetic",
    pros="the most accurate for its five million weights; its published weights are the start for transfer",
    cons="slow to learn from scratch; depthwise filters are slower than their arithmetic says",
    paper="Tan & Le 2019, EfficientNet: rethinking model scaling for convolutional neural networks",
    year=2019,
    parameters=5_288_548,
    suits=lambda schema, rows: 0.0,  # never unasked: a network of history
    takes=is_picture,
    pieces=EfficientNet.pieces,
    as_body={"stem": "full"},
    training=lambda schema, rows: {
        "training.learning_rate": 4e-3, "training.weight_decay": 0.02, "training.epochs": 20 if rows < 10_000 else 8,
        "augment.shift": 2,
    },
)  # fmt: skip
def efficientnet(
    schema: Schema,
    role: str,
    *,
    size: SizeName = hyperparameter(
        "b0", search=["lite0", "b0"], help="b0 as in the paper, or lite0 for phones (4,652,008 parameters)"
    ),
    stem: StemName = hyperparameter("auto", help=STEM_HELP),
    dropout: Share = hyperparameter(
        0.2, search=(0.0, 0.5), help="before the head, share of features silenced in training"
    ),
) -> nn.Module:
    """Inverted residuals with squeeze-and-excitation, sixteen of them."""
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, "efficientnet", "one picture alone")
    return EfficientNet(size, shape[0], output_size(schema), is_small(shape, stem), dropout)
