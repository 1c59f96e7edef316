"""Autoencoders: a code of few numbers, and what can be made of it again.

    autoencoder     inputs -> code -> the same inputs (Hinton & Salakhutdinov 2006); linear it is PCA
    vae             inputs -> a distribution of codes -> the same inputs (Kingma & Welling 2014)

Both are dense, or convolutional for one picture, and have beside `forward`

    encode(*inputs) -> (B, D)                   the code; of a vae its mean
    rebuild(code (B, D), *conditions)           what is made of a code
    posterior(*inputs) -> (B, D), (B, D)        vae only: mean and log variance of the code

where `conditions` are the inputs that are not reconstructed (a label): they are read by both halves. `forward` is one half
after the other, without noise.

The overviews' autoencoder is hidden=[256] code=64 on 28 x 28 pixels: 784-256-64-256-784, 435,536 parameters.

In comments: B rows, D numbers of the code, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import ACTIVATIONS, ActivationName, output_size, unfit

TAKES = "numbers, categories and pictures that are to be reconstructed (--algorithm reconstruction)"
LOG_VARIANCE = (-12.0, 6.0)  # of a code; beyond, its exponential is of no use
Form = Literal["auto", "dense", "convolution"]


class Coder(nn.Module):
    """The two halves, and how they are put together.

    Args:
        encoder: (B, ...) -> (B, outputs of the encoder).
        decoder: (B, D and conditions) -> (B, outputs).
        conditions: how many of the inputs, the last ones, are not reconstructed.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, conditions: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.conditions = conditions

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        layers: Any = self.decoder
        last: nn.Module = layers[-1] if isinstance(layers, nn.Sequential) else layers.head
        return last

    @property
    def head_name(self) -> str:
        """Its name in the state."""
        return f"decoder.{len(self.decoder) - 1}" if isinstance(self.decoder, nn.Sequential) else "decoder.head"

    def encode(self, *inputs: Tensor) -> Tensor:
        """(B, ...) each -> (B, D)."""
        made: Tensor = self.encoder(*inputs)
        return made

    def rebuild(self, code: Tensor, *conditions: Tensor) -> Tensor:
        """(B, D) and the conditions -> (B, outputs)."""
        made: Tensor = self.decoder(torch.cat([code, *[c.flatten(1) for c in conditions]], 1))
        return made

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, ...) each -> (B, outputs)."""
        return self.rebuild(self.encode(*inputs), *inputs[len(inputs) - self.conditions :])


class Variational(Coder):
    """The encoder says mean and log variance of a Gaussian code.

    Args:
        encoder, decoder, conditions: as of `Coder`.
        size: D.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, conditions: int, size: int) -> None:
        super().__init__(encoder, decoder, conditions)
        self.size = size

    def posterior(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) mean and log variance."""
        mean, log_variance = self.encoder(*inputs).float().chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def encode(self, *inputs: Tensor) -> Tensor:
        """(B, D) the mean."""
        return self.posterior(*inputs)[0]


class Flat(nn.Module):
    """Inputs flattened side by side, then layers."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, ...) each -> (B, outputs)."""
        made: Tensor = self.layers(torch.cat([x.flatten(1) for x in inputs], 1))
        return made


@dataclass(frozen=True)
class Stages:
    """What the two halves of the convolutional form share.

    Args:
        shape: (C, H, W) of the picture.
        channels: filters of each halving.
        blocks: residual blocks after each halving.
        hidden: units of the dense layers between filters and code.
        activation: after each layer.
    """

    shape: tuple[int, ...]
    channels: tuple[int, ...]
    blocks: int
    hidden: tuple[int, ...]
    activation: str

    @property
    def small(self) -> tuple[int, int, int]:
        """(C, H, W) of what the last filters make."""
        return (self.channels[-1], *halved(self.shape, len(self.channels)))

    def corrected(self, filters: int) -> list[nn.Module]:
        """The blocks of one stage, and the activation after them."""
        residual = [Residual(filters, self.activation) for _ in range(self.blocks)]
        return [*residual, _out_of_place(self.activation)]


class Residual(nn.Module):
    """Two 3 x 3 filters around an addition (He et al. 2016), without normalization, which couples the rows of a batch."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _out_of_place(activation), nn.Conv2d(channels, channels, 3, padding=1),
            _out_of_place(activation), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        made: Tensor = x + self.body(x)
        return made


class Shrink(nn.Module):
    """A picture, then conditions -> (B, outputs): every stage halves the sides, and dense layers follow."""

    def __init__(self, stages: Stages, outputs: int, extra: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((stages.shape[0], *stages.channels)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), *stages.corrected(after)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.last = _dense(math.prod(stages.small) + extra, stages.hidden, outputs, stages.activation)

    def forward(self, images: Tensor, *conditions: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs)."""
        made: Tensor = self.last(torch.cat([self.body(images), *[c.flatten(1) for c in conditions]], 1))
        return made


class Grow(nn.Module):
    """(B, inputs) -> (B, outputs * H * W): `Shrink` in reverse; what is too much at the edges is cut off.

    The last doubling is the head: filters at full size would take most of the time.
    """

    def __init__(self, inputs: int, stages: Stages, outputs: int) -> None:
        super().__init__()
        self.shape, self.small = stages.shape, stages.small
        self.first = _dense(inputs, stages.hidden[::-1], math.prod(stages.small), stages.activation)
        layers = stages.corrected(stages.channels[-1])
        for before, after in pairwise(reversed(stages.channels)):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), *stages.corrected(after)]
        self.body = nn.Sequential(*layers)
        self.head = nn.ConvTranspose2d(stages.channels[0], outputs, 4, stride=2, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs * H * W)."""
        _, height, width = self.shape
        grown = self.head(self.body(self.first(code).view(-1, *self.small)))
        return grown[:, :, :height, :width].flatten(1)


def halved(shape: tuple[int, ...], times: int) -> tuple[int, int]:
    """(height, width) after so many halvings, rounded up."""
    height, width = shape[1:]
    for _ in range(times):
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _out_of_place(name: str) -> nn.Module:
    """An activation that leaves its input as it is, which an addition may still need."""
    return nn.ReLU() if name == "relu" else ACTIVATIONS[name]()


def _dense(inputs: int, hidden: tuple[int, ...], outputs: int, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(inputs, units), ACTIVATIONS[activation]()]
        inputs = units
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def _halves(
    schema: Schema, name: str, form: Form, sizes: tuple[int, ...], channels: tuple[int, ...], blocks: int, code: int,
    factor: int, activation: str,
) -> tuple[nn.Module, nn.Module, int]:  # fmt: skip
    """Encoder, decoder and the number of conditions.

    Args:
        schema: of the role.
        name: of the network, for errors.
        form: dense or convolution; convolution for one picture where "auto".
        sizes: units of the dense layers between the inputs, or the filters, and the code.
        channels: filters of each halving of the convolutional form.
        blocks: its residual blocks after each halving.
        code: D.
        factor: numbers that the encoder returns for each number of the code.
        activation: between layers.
    """
    if not _reconstructs(schema):
        raise unfit(schema, name, TAKES)
    shapes = {key: tuple(item.shape) for key, item in schema.inputs.items()}
    extra = sum(torch.Size(shape).numel() for key, shape in shapes.items() if key not in schema.targets)
    conditions = sum(key not in schema.targets for key in shapes)
    picture = next(iter(schema.targets.values())) if len(schema.targets) == 1 else None
    is_picture = picture is not None and len(picture.outputs) == 3
    if form == "convolution" and not is_picture:
        raise unfit(schema, name, "one picture in its convolutional form (network.form=convolution)")
    if form == "convolution" and not channels:
        raise FathomError("The convolutional form has one filter or more: network.channels=[32,64], or network.form=dense.")
    if picture is None or not is_picture or form == "dense" or not channels:
        flat = sum(torch.Size(shape).numel() for shape in shapes.values())
        encoder = Flat(_dense(flat, sizes, code * factor, activation))
        return encoder, _dense(code + extra, sizes[::-1], output_size(schema), activation), conditions
    stages = Stages(tuple(picture.shape), channels, blocks, sizes, activation)
    return Shrink(stages, code * factor, extra), Grow(code + extra, stages, picture.outputs[0]), conditions


def _reconstructs(schema: Schema) -> bool:
    """Whether what is asked of the network is what it is given."""
    return bool(schema.targets) and all(
        name in schema.inputs and item.kind == f"{schema.inputs[name].kind}_copy"
        for name, item in schema.targets.items()
    )


def _suits(schema: Schema, rows: int) -> float:
    return 1.0 if _reconstructs(schema) else 0.0


def _suits_less(schema: Schema, rows: int) -> float:
    return 0.8 if _reconstructs(schema) else 0.0


def _is_table(schema: Schema) -> bool:
    return all(len(item.outputs) == 1 for item in schema.targets.values())


def _code_size(schema: Schema) -> int:
    """Of a table: a third of its columns, so that the code cannot hold each of them."""
    return max(1, min(16, round(sum(len(item.columns) for item in schema.targets.values()) / 3)))


def _training(schema: Schema, rows: int) -> dict[str, object]:
    if _is_table(schema):
        return {
            "network.hidden": [64, 32], "network.code": _code_size(schema), "training.learning_rate": 2e-3,
            "training.epochs": min(60, max(5, 1_200_000 // max(rows, 1))), "training.keep": "best",
        }  # fmt: skip
    return {"training.learning_rate": 2e-3, "training.epochs": 20, "training.keep": "last"}


def _training_vae(schema: Schema, rows: int) -> dict[str, object]:
    if _is_table(schema):
        changes = _training(schema, rows)
        return {**changes, "network.hidden": [64, 32], "network.code": changes["network.code"]}
    return {
        "training.learning_rate": 2e-3, "training.epochs": 40, "training.average": 0.999, "training.keep": "average",
        "training.batch": 128,
    }  # fmt: skip


@network(
    "autoencoder",
    algorithm="reconstruction",
    reason="squeezes each row through a code of few numbers and makes it again",
    pros="quick; its code is a vector for search and plots, its error an anomaly score",
    cons="says nothing about how likely a row is, and makes no new ones",
    paper="Hinton & Salakhutdinov 2006, Reducing the dimensionality of data with neural networks",
    year=2006,
    suits=_suits,
    training=_training,
)
def autoencoder(
    schema: Schema,
    role: str,
    *,
    form: Form = hyperparameter(
        "dense", search=["dense", "auto"], help="dense, convolution, or auto: what suits the data"
    ),
    hidden: tuple[PositiveInt, ...] = hyperparameter(
        (256,),
        search=[(256,), (512, 256)],
        help="units of the encoder's dense hidden layers, after its filters if any; the decoder has them reversed",
    ),
    channels: tuple[PositiveInt, ...] = hyperparameter((32, 64), help="filters of each halving, convolutional form"),
    blocks: NonNegativeInt = hyperparameter(1, search=[0, 1], help="residual blocks after each halving, convolutional form"),
    code: PositiveInt = hyperparameter(64, search=(2, 128, "log"), help="numbers of the code"),
    activation: ActivationName = hyperparameter(
        "relu", search=["relu", "gelu", "tanh"], help="after each hidden layer"
    ),
    conditional: bool = hyperparameter(False, help="whether both halves are told the label"),
) -> nn.Module:
    """Encoder, linear code, decoder."""
    encoder, decoder, conditions = _halves(schema, "autoencoder", form, hidden, channels, blocks, code, 1, activation)
    return Coder(encoder, decoder, conditions)


@network(
    "vae",
    algorithm="reconstruction",
    probabilistic=True,
    reason="learns how likely rows are, and makes new ones",
    pros="a bound of the likelihood in nats, codes that can be drawn and walked between",
    cons="pictures that it makes are softer than those of a GAN",
    paper="Kingma & Welling 2014, Auto-encoding variational Bayes (arXiv:1312.6114)",
    year=2014,
    suits=_suits_less,
    training=_training_vae,
)
def vae(
    schema: Schema,
    role: str,
    *,
    form: Form = hyperparameter(
        "dense", search=["dense", "auto"], help="dense, convolution, or auto: what suits the data"
    ),
    hidden: tuple[PositiveInt, ...] = hyperparameter(
        (200, 200),
        search=[(200, 200), (400, 400)],
        help="units of the encoder's dense hidden layers, after its filters if any; the decoder has them reversed",
    ),
    channels: tuple[PositiveInt, ...] = hyperparameter((32, 64), help="filters of each halving, convolutional form"),
    blocks: NonNegativeInt = hyperparameter(1, search=[0, 1], help="residual blocks after each halving, convolutional form"),
    code: PositiveInt = hyperparameter(50, search=(2, 128, "log"), help="latent numbers"),
    activation: ActivationName = hyperparameter(
        "tanh", search=["tanh", "relu", "gelu"], help="after each hidden layer"
    ),
    conditional: bool = hyperparameter(False, help="whether both halves are told the label (Sohn et al. 2015)"),
) -> nn.Module:
    """Encoder to a Gaussian code, decoder; as in Burda et al. 2016 (arXiv:1509.00519): 200-200 tanh, 50 latent numbers."""
    encoder, decoder, conditions = _halves(schema, "vae", form, hidden, channels, blocks, code, 2, activation)
    return Variational(encoder, decoder, conditions, code)
