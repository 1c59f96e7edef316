"""Generator and discriminator: two networks of one name, told apart by their role.

    gan     role "generator":     noise (B, L), conditions -> a picture (B, C, H, W) from -1 to 1
            role "discriminator": a picture, conditions -> one number (B, 1), the larger the more real it looks

Convolutional it is of DCGAN's kind and size (Radford et al. 2016): filters of stride two instead of pooling, and for
28 x 28 pixels 7 x 7 -> 14 x 14 -> 28 x 28. A side that cannot be halved is rounded up, and what is too much at the edges
cut off. The discriminator never normalizes over a batch: real and made pictures would see each other, and a gradient
penalty speaks of single rows.

A label is told to the generator beside the noise, and to the discriminator by projection: its vector times the features is
added to the answer (Miyato & Koyama 2018, arXiv:1802.05637).

The overviews' pair is form=dense hidden=[256], with 100 numbers of noise: 100-256-784 tanh (227,344 parameters) against
784-256-1 (201,217).

In comments: B rows, L numbers of noise, C channels, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import normalization as normalized
from fathom.networks.parts import unfit

TAKES = "noise and makes pictures of it (--algorithm adversarial)"
SLOPE = 0.2  # of the leaky rectifier (Radford et al. 2016)
Form = Literal["convolution", "dense"]
Norm = Literal["none", "batch", "group"]


class Generator(nn.Module):
    """Noise and conditions side by side, then layers that grow a picture.

    Args:
        body: (B, inputs) -> what the head reads.
        head: -> (B, C, H, W), or flat, before tanh.
        shape: (C, H, W); what a head makes beyond it is cut off.
    """

    def __init__(self, body: nn.Module, head: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.channels, self.height, self.width = shape

    def forward(self, noise: Tensor, *conditions: Tensor) -> Tensor:
        """(B, L), conditions -> (B, C, H, W) from -1 to 1."""
        given = torch.cat([noise, *[c.flatten(1) for c in conditions]], 1) if conditions else noise
        made: Tensor = self.head(self.body(given))
        if made.ndim == 2:
            return made.tanh().view(-1, self.channels, self.height, self.width)
        return made[:, :, : self.height, : self.width].tanh()


class Discriminator(nn.Module):
    """Layers that make features of a picture, and one number of them.

    Args:
        body: (B, C, H, W) -> (B, F).
        features: F.
        conditions: numbers that all conditions have together; 0 where there is none.
        spectral: whether the largest singular value of every matrix is held at one.
    """

    def __init__(self, body: nn.Module, features: int, conditions: int, spectral: bool) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(features, 1)
        self.projection = nn.Linear(conditions, features, bias=False) if conditions else None
        if spectral:
            _hold_spectrum(self)

    def forward(self, pictures: Tensor, *conditions: Tensor) -> Tensor:
        """(B, C, H, W), conditions -> (B, 1)."""
        features = self.body(pictures)  # (B, F)
        answer: Tensor = self.head(features)
        if self.projection is None:
            return answer
        vector = self.projection(torch.cat([c.flatten(1) for c in conditions], 1))  # (B, F)
        return answer + (vector * features).sum(1, keepdim=True) / math.sqrt(features.shape[1])


def _hold_spectrum(module: nn.Module) -> None:
    """Spectral normalization of every filter and matrix (Miyato et al. 2018, arXiv:1802.05957), one power iteration a step."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.utils.parametrizations.spectral_norm(layer)


class Planes(nn.Module):
    """(B, C * H * W) -> (B, C, H, W), channels last in memory: a view, nothing is copied."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width, channels)

    def forward(self, flat: Tensor) -> Tensor:
        """Fold."""
        return flat.view(-1, *self.size).permute(0, 3, 1, 2)


class Flat(nn.Module):
    """(B, C, H, W) -> (B, H * W * C), channels innermost: a view of channels-last memory."""

    def forward(self, planes: Tensor) -> Tensor:
        """Unfold."""
        return planes.permute(0, 2, 3, 1).flatten(1)


def _sides(side: int, times: int) -> list[int]:
    """A side and what is left of it after each halving, rounded up."""
    sides = [side]
    for _ in range(times):
        sides.append(-(-sides[-1] // 2))
    return sides


def _grow(
    inputs: int, shape: tuple[int, ...], channels: tuple[int, ...], mapping: tuple[int, ...], norm: Norm
) -> Generator:
    """The convolutional generator: the filters of the discriminator in reverse."""
    height, width = (_sides(side, len(channels))[-1] for side in shape[1:])
    layers: list[nn.Module] = []
    for units in mapping:
        layers += [nn.Linear(inputs, units), nn.LeakyReLU(SLOPE, inplace=True)]
        inputs = units
    first = channels[-1] * height * width
    layers += [nn.Linear(inputs, first, bias=norm == "none"), Planes(channels[-1], height, width)]
    for before, after in pairwise(reversed(channels)):
        layers += [*_normalized(norm, before), nn.ReLU(inplace=True)]
        layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=norm == "none"))
    layers += [*_normalized(norm, channels[0]), nn.ReLU(inplace=True)]
    return Generator(nn.Sequential(*layers), nn.ConvTranspose2d(channels[0], shape[0], 4, stride=2, padding=1), shape)


def _normalized(norm: Norm, channels: int) -> list[nn.Module]:
    return [] if norm == "none" else [normalized(norm, channels, 2)]


def _shrink(
    shape: tuple[int, ...], channels: tuple[int, ...], mapping: tuple[int, ...], conditions: int, spectral: bool
) -> Discriminator:
    """The convolutional discriminator: every layer halves the sides; then the dense layers of the generator, reversed."""
    layers: list[nn.Module] = []
    width = shape[0]
    for i, filters in enumerate(channels):
        odd = [side[i] % 2 for side in (_sides(shape[1], len(channels)), _sides(shape[2], len(channels)))]
        if any(odd):  # one more pixel at an odd side, so that it is rounded up
            layers.append(nn.ZeroPad2d((0, odd[1], 0, odd[0])))
        layers += [nn.Conv2d(width, filters, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
        width = filters
    height, breadth = (_sides(side, len(channels))[-1] for side in shape[1:])
    layers.append(Flat())
    features = width * height * breadth
    for units in reversed(mapping):
        layers += [nn.Linear(features, units), nn.LeakyReLU(SLOPE, inplace=True)]
        features = units
    return Discriminator(nn.Sequential(*layers), features, conditions, spectral)


def _dense_generator(inputs: int, hidden: tuple[int, ...], shape: tuple[int, ...]) -> Generator:
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(inputs, units), nn.ReLU(inplace=True)]
        inputs = units
    return Generator(nn.Sequential(*layers), nn.Linear(inputs, math.prod(shape)), shape)


def _dense_discriminator(
    shape: tuple[int, ...], hidden: tuple[int, ...], conditions: int, spectral: bool
) -> Discriminator:
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for units in hidden:
        layers += [nn.Linear(width, units), nn.LeakyReLU(SLOPE, inplace=True)]
        width = units
    return Discriminator(nn.Sequential(*layers), width, conditions, spectral)


def _parts(schema: Schema) -> tuple[bool, Any, int]:
    """Whether it is the generator, its picture, and the numbers that all conditions have together.

    Raises:
        FathomError: it is neither of the two.
    """
    made = [item for item in schema.targets.values() if item.kind == "image_sample"]
    seen = [item for item in schema.inputs.values() if item.kind == "image_sample"]
    told = sum(math.prod(item.shape) for item in schema.inputs.values() if item.kind not in ("image_sample", "noise"))
    if len(made) == 1 and any(item.kind == "noise" for item in schema.inputs.values()):
        return True, made[0], told
    if len(seen) == 1 and not made:
        return False, seen[0], told
    raise unfit(schema, "gan", TAKES)


def _suits(schema: Schema, rows: int) -> float:
    return 1.0 if any(item.kind == "noise" for item in schema.inputs.values()) else 0.0


def _training(schema: Schema, rows: int) -> dict[str, object]:
    """Dense layers see what is global in a digit that nobody told (docs/results/generative.md)."""
    settings: dict[str, object] = {
        "training.optimizer": "adam", "training.beta1": 0.5, "training.beta2": 0.99, "training.schedule": "linear",
        "training.learning_rate": 2e-3, "training.batch": 32, "training.epochs": 10, "training.average": 0.999,
        "training.keep": "average",
    }  # fmt: skip
    told = any(item.kind != "noise" for item in schema.inputs.values())
    if not told and all(item.outputs[0] == 1 for item in schema.targets.values()):
        settings.update({"network.channels": [16, 32], "network.mapping": [128]})
    return settings


@network(
    "gan",
    algorithm="adversarial",
    reason="makes new pictures that a second network cannot tell from real ones",
    pros="sharp pictures, made in one pass",
    cons="no likelihood; training is a game and has to be watched",
    paper="Radford et al. 2016, Unsupervised representation learning with deep convolutional GANs (arXiv:1511.06434)",
    year=2016,
    suits=_suits,
    training=_training,
)
def gan(
    schema: Schema,
    role: str,
    *,
    form: Form = hyperparameter("convolution", help="dense or convolution"),
    channels: tuple[PositiveInt, ...] = hyperparameter(
        (32, 64), search=[(32, 64), (64, 128)], help="filters of each halving; the generator has them reversed"
    ),
    hidden: tuple[PositiveInt, ...] = hyperparameter(
        (256,), search=[(256,), (512, 256)], help="units of the discriminator's hidden layers, dense form"
    ),
    mapping: tuple[PositiveInt, ...] = hyperparameter(
        (), search=[(), (256,)], help="units of dense layers after the noise; the discriminator has them after its filters"
    ),
    normalization: Norm = hyperparameter(
        "none", search=["none", "batch"], help="of the generator; the discriminator has none"
    ),
    spectral: bool = hyperparameter(False, help="whether the discriminator's matrices have spectral norm one"),
    conditional: bool = hyperparameter(False, help="whether both networks are told the label"),
) -> nn.Module:
    """Noise to pictures, or pictures to one number, by the role."""
    generates, picture, told = _parts(schema)
    shape = tuple(picture.shape)
    _check(shape, form, channels)
    if generates:
        size = next(math.prod(item.shape) for item in schema.inputs.values() if item.kind == "noise")
        if form == "dense":
            return _dense_generator(size + told, hidden[::-1], shape)
        return _grow(size + told, shape, channels, mapping, normalization)
    return (
        _dense_discriminator(shape, hidden, told, spectral)
        if form == "dense"
        else _shrink(shape, channels, mapping, told, spectral)
    )


def _check(shape: tuple[int, ...], form: Form, channels: tuple[int, ...]) -> None:
    """Refuse more halvings than the picture has, and none."""
    if form == "convolution" and not channels:
        raise FathomError("The convolutional form has one filter or more: network.channels=[32,64], or network.form=dense.")
    if form == "convolution" and min(_sides(min(shape[1:]), len(channels))) < 2:
        raise FathomError(
            f"Pictures of {shape[1]} x {shape[2]} cannot be halved {len(channels)} times; name fewer filters in "
            "network.channels, or use network.form=dense."
        )
