"""A convolutional network made for time to accuracy (Jordan 2024, 94 % on CIFAR-10 in 3.29 seconds on a single GPU).

What makes it fast, each a line of code below:

    whitening   the first layer is not learnt: its filters are the principal directions of small patches of the training
                pictures, scaled to unit variance, each with both signs, so that what follows sees uncorrelated inputs
    identity    filters begin by handing their input on (Zagoruyko & Komodakis 2017), so that depth costs nothing at first
    pooling     early, so that most of the work is done on small pictures
    GELU        after normalization without a scale, which the next filters can learn themselves
    the head    scaled down, so that the first steps are not spent on unlearning large answers

Filters are best moved by Muon, momentum made orthogonal (Jordan et al. 2024): `training.optimizer = "muon"`, and all else at
a smaller rate (`training.vector_rate`). Where there are few pictures, as often after `--from`, it is trained as the residual
network is.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import depth_of, image_shape, is_picture, output_size, unfit

Scale = Annotated[float, Field(gt=0, le=1)]
PATCH = 2  # side of the whitened patches
SLICE = 1 << 22  # values of pictures whose patches are looked at at once
SMALLEST = 5e-4  # added to each variance, of pictures with unit variance
SEEN = 420_000  # pictures looked at by default: under three minutes of two cores on MNIST
MANY = 10_000  # training pictures, from which on its own way of training was measured


class Whitening(nn.Module):
    """(B, C, H, W) -> (B, 2 K, H - 1, W - 1): patches in their principal directions, once with each sign.

    Args:
        channels: C.
    """

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = channels * PATCH**2  # K
        eye = torch.eye(size).view(size, channels, PATCH, PATCH)
        self.register_buffer("weight", torch.cat([eye, -eye]))
        self.bias = nn.Parameter(torch.zeros(2 * size))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take the principal directions of these pictures (B, C, H, W), whose mean is near 0."""
        size = len(self.bias) // 2  # K
        squares, count = torch.zeros(size, size, dtype=torch.float64), 0
        for part in images.split(max(1, SLICE // images[0].numel())):
            patches = nn.functional.unfold(part, PATCH).transpose(1, 2)  # (B, H' * W', K), K as a filter has it
            rows = patches.flatten(0, 1).double()  # (P, K)
            squares += rows.T @ rows
            count += len(rows)
        variance, directions = torch.linalg.eigh(squares / count)
        scaled = (directions / (variance + SMALLEST).sqrt()).T.flip(0).float()  # (K, K), the strongest first
        filters = scaled.view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        """Whiten."""
        return nn.functional.conv2d(images, self.weight, self.bias)


def filters(inputs: int, outputs: int) -> nn.Conv2d:
    """3 x 3 filters of which the first `inputs` hand on what they are given."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[: min(inputs, outputs)])
    return layer


def normalized(channels: int) -> nn.BatchNorm2d:
    """Normalization that learns a bias alone."""
    layer = nn.BatchNorm2d(channels, momentum=0.4)
    del layer.weight
    layer.register_buffer("weight", torch.ones(channels), persistent=False)
    return layer


class Block(nn.Module):
    """Filters, pooling, and `depth` - 1 further filters at half the size, the last two of three with a bridge over them."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Sequential(filters(inputs, outputs), nn.MaxPool2d(2), normalized(outputs), nn.GELU())
        self.rest = nn.Sequential(
            *[nn.Sequential(filters(outputs, outputs), normalized(outputs), nn.GELU()) for _ in range(depth - 1)]
        )
        self.bridged = depth > 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H / 2, W / 2)."""
        x = self.first(x)
        return x + self.rest(x) if self.bridged else self.rest(x)


class Speedrun(nn.Module):
    """(B, C, H, W) -> (B, outputs).

    Args:
        shape: (C, H, W).
        channels: filters of each block.
        depth: layers of filters of each block.
        outputs: numbers returned.
        scale: of the answers of the head.
    """

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...], depth: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.whitening = Whitening(shape[0])
        inputs = 2 * shape[0] * PATCH**2
        blocks = []
        for width in channels:
            blocks.append(Block(inputs, width, depth))
            inputs = width
        self.blocks = nn.Sequential(nn.GELU(), *blocks)
        self.scale = scale
        self.head = nn.Linear(inputs, outputs)
        self.depth = ("whitening", *depth_of(self.blocks, "blocks"))

    def look(self, images: Tensor) -> None:
        """See preprocessed training rows (B, C, H, W), before training begins.

        What it takes from them is a buffer, so that checkpoints and bundles carry it.
        """
        self.whitening.fit(images)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) the largest value of each filter."""
        return self.blocks(self.whitening(images)).amax((2, 3))

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        return self.head(features) * self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(images))


def _suits(schema: Schema, rows: int) -> float:
    """Before the residual network where there are many small pictures and their class is asked (docs/results/vision.md)."""
    shape = image_shape(schema)
    classes = bool(schema.targets) and all(item.kind == "category" for item in schema.targets.values())
    if shape is None or not classes or rows < MANY:
        return 0.0
    return 0.95 if max(shape[1:]) in range(13, 41) and min(shape[1:]) > 8 else 0.0


def _training(schema: Schema, rows: int) -> dict[str, object]:
    settings: dict[str, object] = {
        "training.learning_rate": 1e-2, "training.weight_decay": 0.05, "training.label_smoothing": 0.1, "training.epochs": 40,
        "augment.shift": 2,
    }  # fmt: skip
    if rows >= MANY:
        settings.update({
            "training.optimizer": "muon", "training.learning_rate": 0.1, "training.momentum": 0.6,
            "training.vector_rate": 0.05, "training.weight_decay": 0.0, "training.schedule": "linear", "training.warmup": 0.2,
            "training.batch": 512, "training.epochs": max(2, round(SEEN / rows)),
        })  # fmt: skip
    if (image_shape(schema) or (1,))[0] == 3:  # a mirrored digit is none
        settings["augment.flip"] = 0.5
    return settings


@network(
    "speedrun",
    reason="made to reach a given accuracy on small pictures in the least time",
    pros="much accuracy within minutes; its first layer is known before training begins",
    cons="made for pictures of about 32 x 32; photos and few rows are better served by transfer",
    paper="Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU",
    year=2024,
    suits=_suits,
    takes=is_picture,
    training=_training,
)
def speedrun(
    schema: Schema,
    role: str,
    *,
    channels: tuple[PositiveInt, ...] = hyperparameter(
        (32, 96, 96), search=[(16, 48, 48), (32, 96, 96), (64, 256, 256)], help="filters of each block"
    ),
    depth: PositiveInt = hyperparameter(2, search=[2, 3], help="layers of filters of each block; 3 adds a bridge"),
    scale: Scale = hyperparameter(1 / 9, search=(0.05, 1.0), help="of the answers of the head"),
) -> nn.Module:
    """Whitened patches, then blocks of filters at half the size each."""
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, "speedrun", "one picture alone")
    if min(shape[1:]) <= 2 ** len(channels):
        raise FathomError(
            f"Pictures of {shape[1]} x {shape[2]} cannot be halved {len(channels)} times after the first layer; "
            "give fewer network.channels or a larger data.image.size."
        )
    return Speedrun(shape, channels, depth, output_size(schema), scale)
