"""Parts that networks share: activations, normalization and initializers by name, flattening, output sizes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fathom.core.contract import Field, Schema
from fathom.core.errors import FathomError
from fathom.core.registry import networks

ActivationName = Literal["relu", "leaky_relu", "sigmoid", "tanh", "softmax", "linear", "gelu", "silu"]
NormalizationName = Literal["none", "batch", "layer", "group"]
InitializerName = Literal["default", "kaiming", "xavier", "orthogonal", "normal"]
StemName = Literal["auto", "small", "full"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": lambda: nn.Softmax(1),
    "linear": nn.Identity,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
ALIKE = "rows of equally many measured values, and no text"  # what a network without a memory takes
SMALL = 64  # pixels of the shorter side up to which networks made for 224 x 224 keep the resolution of a picture
STEM_HELP = "small keeps the resolution of small pictures, full is as published; auto: small up to 64 pixels a side"
USUAL = 1_000  # training rows, where networks are compared and the number is not known
# Maximum commutes with a function that never falls, so these may follow a max pool, on a quarter of the values.
RISING = ("relu", "leaky_relu", "sigmoid", "tanh", "linear")

INITIALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "default": lambda weight: weight,
    "kaiming": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
}


def normalization(name: str, channels: int, dimensions: int) -> nn.Module:
    """A normalization layer for (B, channels) or, with `dimensions` 2, (B, channels, H, W)."""
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm2d(channels) if dimensions == 2 else nn.BatchNorm1d(channels)
    if name == "group":
        return nn.GroupNorm(max(g for g in (8, 4, 2, 1) if channels % g == 0), channels)
    return nn.GroupNorm(1, channels) if dimensions == 2 else nn.LayerNorm(channels)


@torch.no_grad()
def initialize(module: nn.Module, name: str) -> nn.Module:
    """Set the weights of every matrix and filter by an initializer's name; biases become zero."""
    if name != "default":
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                INITIALIZERS[name](layer.weight)
                if layer.bias is not None:
                    layer.bias.zero_()
    return module


class FlattenPixels(nn.Module):
    """(B, C, H, W) -> (B, H * W * C), channels innermost: a view of channels-last memory, where nothing is copied."""

    def forward(self, images: Tensor) -> Tensor:
        """Flatten."""
        return images.permute(0, 2, 3, 1).flatten(1)


def output_size(schema: Schema) -> int:
    """Numbers a network returns for one row: the outputs of all targets side by side."""
    return sum(int(np.prod(target.outputs)) for target in schema.targets.values())


def flat_size(schema: Schema) -> int:
    """Numbers of one row of all inputs, flattened."""
    return sum(int(np.prod(item.shape)) for item in schema.inputs.values())


def image_shape(schema: Schema) -> tuple[int, ...] | None:
    """(C, H, W) where the only input is a picture."""
    shapes = [tuple(item.shape) for item in schema.inputs.values()]
    return shapes[0] if len(shapes) == 1 and len(shapes[0]) == 3 and not writes(schema) and not locates(schema) else None


def is_picture(schema: Schema) -> bool:
    """Whether the only input is a picture."""
    return image_shape(schema) is not None


def is_small(shape: tuple[int, ...], stem: StemName) -> bool:
    """Whether a network that was published for 224 x 224 is built in its form for small pictures.

    The published stems throw away 15 of 16 or more places of a picture before the first block, which leaves 2 x 2 of
    32 x 32 at the end. The small form keeps every place until then.

    Args:
        shape: (C, H, W).
        stem: what the user asks for.
    """
    return min(shape[1:]) <= SMALL if stem == "auto" else stem == "small"


def depth_of(layers: nn.Module, prefix: str) -> tuple[str, ...]:
    """The names of the layers that hold weights, first to last: what a module's `depth` is made of."""
    return tuple(f"{prefix}.{name}" for name, layer in layers.named_children() if any(True for _ in layer.parameters()))


def stretches(layers: nn.Module, begins: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The layers in stretches that follow each other, under their own names: what a network's `pieces` are made of.

    Args:
        layers: done one after the other.
        begins: whether a stretch begins with a layer.
    """
    made: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    for name, layer in layers.named_children():
        if begins(layer) and made[-1]:
            made.append(OrderedDict())
        made[-1][name] = layer
    return [nn.Sequential(stretch) for stretch in made]


def kinds(schema: Schema) -> set[str]:
    """The kinds of the inputs."""
    return {item.kind for item in schema.inputs.values()}


def writes(schema: Schema) -> bool:
    """Whether a text is to be written."""
    return any(item.kind == "text" for item in schema.targets.values())


def locates(schema: Schema) -> bool:
    """Whether things are to be found in a picture, which one answer a row cannot say."""
    return any(item.kind == "boxes" for item in schema.targets.values())


def unfit(schema: Schema, name: str, takes: str) -> FathomError:
    """The error for data that a network cannot take: what came, and which networks fit.

    Args:
        schema: of the network's role, or of the whole task.
        name: of the network.
        takes: what it takes, in words.
    """
    sources = {key: item for key, item in schema.inputs.items() if key not in schema.targets}  # a text reads itself too
    scores = {entry.name: entry.about["suits"](Schema(sources, schema.targets), USUAL) for entry in networks}
    fitting = sorted((other for other in scores if scores[other] > 0), key=lambda other: -scores[other])
    advice = f"What fits: {', '.join(fitting[:6])}." if fitting else "No network fits this data."
    came = f"here {_named(sources)} should tell" if sources else "here nothing is given to learn"
    return FathomError(f"The network '{name}' takes {takes}; {came} {_named(schema.targets)}. {advice}")


def _named(items: Mapping[str, Field]) -> str:
    """'age' (number), 'face' (image) and 3 more."""
    words = [f"'{key}' ({item.kind})" for key, item in items.items()]
    more = f" and {len(words) - 4} more" if len(words) > 4 else ""
    return ", ".join(words[:4]) + more


def rows_alike(schema: Schema) -> bool:
    """Whether every row is the same number of measured values, in and out: no words or boxes, no rows of unequal length."""
    steps = [item for item in schema.inputs.values() if item.kind == "series"]
    words = any(item.kind == "text" for item in schema.fields().values())
    return bool(schema.inputs) and not words and not locates(schema) and all(item.window for item in steps)
