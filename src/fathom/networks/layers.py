"""A network as a list of layers in the recipe; nothing is evaluated, sizes are inferred.

    network.layers = ["conv 32 3 relu", "maxpool 2", "flatten", "dropout 0.5", "dense 64 relu l2=0.01"]

    conv FILTERS KERNEL [activation] [stride=1] [padding=0] [l1= l2=]     dense UNITS [activation] [l1= l2=]
    maxpool SIZE   avgpool SIZE   globalpool   flatten   dropout SHARE    batchnorm   layernorm   or an activation alone

The last layer, as wide as the targets need and without activation, is added by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fathom.core.contract import PENALTY, Schema, hyperparameter
from fathom.core.errors import FathomError, nearest
from fathom.core.registry import network
from fathom.networks.parts import (
    ACTIVATIONS,
    ALIKE,
    RISING,
    FlattenPixels,
    flat_size,
    image_shape,
    normalization,
    output_size,
    rows_alike,
    unfit,
)

Shape = tuple[int, ...]


class Stack(nn.Module):
    """Layers one after the other, and the head."""

    def __init__(self, body: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, ...) each -> (B, outputs); all but a lone picture are flattened side by side."""
        picture = len(inputs) == 1 and inputs[0].ndim == 4
        x = inputs[0] if picture else torch.cat([x.flatten(1) for x in inputs], 1)
        return self.head(self.body(x))


class LineError(Exception):
    """What is wrong with one line."""


def _whole(word: str, what: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise LineError(f"{what} should be a whole number from 1, but '{word}' came")
    return int(word)


def _option(options: dict[str, float], name: str, default: int, least: int) -> int:
    value = options.pop(name, float(default))
    if not value.is_integer() or value < least:
        raise LineError(f"{name} should be a whole number from {least}, but '{value:g}' came")
    return int(value)


def _share(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise LineError(f"the share should be from 0 up to 1, but '{word}' came")
    return value


def _arguments(words: list[str], least: int, form: str) -> list[str]:
    if len(words) < least:
        raise LineError(f"write it as: {form}")
    return words


def _activation(words: list[str]) -> list[nn.Module]:
    if not words:
        return []
    if words[0] not in ACTIVATIONS:
        guess = nearest(words[0], ACTIVATIONS)
        raise LineError(f"there is no activation '{words[0]}'" + (f"; did you mean '{guess}'?" if guess else ""))
    return [ACTIVATIONS[words[0]]()]


def _conv(words: list[str], options: dict[str, float], shape: Shape) -> tuple[list[nn.Module], Shape]:
    words = _arguments(words, 2, "conv FILTERS KERNEL [activation] [stride=1] [padding=0]")
    if len(shape) != 3:
        raise LineError("conv needs a picture, but its input is flat")
    filters, kernel = _whole(words[0], "FILTERS"), _whole(words[1], "KERNEL")
    stride, padding = _option(options, "stride", 1, least=1), _option(options, "padding", 0, least=0)
    size = [(side + 2 * padding - kernel) // stride + 1 for side in shape[1:]]
    if min(size) < 1:
        raise LineError(f"a filter of {kernel} x {kernel} is larger than its input of {shape[1]} x {shape[2]}")
    layer = nn.Conv2d(shape[0], filters, kernel, stride, padding)
    return [layer, *_activation(words[2:])], (filters, *size)


def _dense(words: list[str], options: dict[str, float], shape: Shape) -> tuple[list[nn.Module], Shape]:
    words = _arguments(words, 1, "dense UNITS [activation]")
    flat: list[nn.Module] = [FlattenPixels()] if len(shape) == 3 else []
    units = _whole(words[0], "UNITS")
    return [*flat, nn.Linear(int(np.prod(shape)), units), *_activation(words[1:])], (units,)


def _pool(make: Callable[[int], nn.Module]) -> Callable[..., tuple[list[nn.Module], Shape]]:
    def build(words: list[str], options: dict[str, float], shape: Shape) -> tuple[list[nn.Module], Shape]:
        size = _whole(_arguments(words, 1, "maxpool SIZE or avgpool SIZE")[0], "SIZE")
        if len(shape) != 3 or min(shape[1:]) < size:
            raise LineError(f"a pool of {size} does not fit its input of {' x '.join(map(str, shape))}")
        return [make(size)], (shape[0], shape[1] // size, shape[2] // size)

    return build


def _global(words: list[str], options: dict[str, float], shape: Shape) -> tuple[list[nn.Module], Shape]:
    if len(shape) != 3:
        raise LineError("globalpool needs a picture, but its input is flat")
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()], (shape[0],)


def _flatten(words: list[str], options: dict[str, float], shape: Shape) -> tuple[list[nn.Module], Shape]:
    return [FlattenPixels() if len(shape) == 3 else nn.Flatten()], (int(np.prod(shape)),)


def _dropout(words: list[str], options: dict[str, float], shape: Shape) -> tuple[list[nn.Module], Shape]:
    return [nn.Dropout(_share(_arguments(words, 1, "dropout SHARE")[0]))], shape


def _norm(name: str) -> Callable[..., tuple[list[nn.Module], Shape]]:
    return lambda words, options, shape: ([normalization(name, shape[0], 2 if len(shape) == 3 else 1)], shape)


def _alone(name: str) -> Callable[..., tuple[list[nn.Module], Shape]]:
    return lambda words, options, shape: (_activation([name]), shape)


KINDS: dict[str, Callable[[list[str], dict[str, float], Shape], tuple[list[nn.Module], Shape]]] = {
    "conv": _conv,
    "dense": _dense,
    "maxpool": _pool(nn.MaxPool2d),
    "avgpool": _pool(nn.AvgPool2d),
    "globalpool": _global,
    "flatten": _flatten,
    "dropout": _dropout,
    "batchnorm": _norm("batch"),
    "layernorm": _norm("layer"),
    **{name: _alone(name) for name in ACTIVATIONS},
}


MOST_WORDS = {"conv": 3, "dense": 2, "maxpool": 1, "avgpool": 1, "dropout": 1}  # after the name; none for the others


def parse_line(line: str, shape: Shape) -> tuple[list[nn.Module], Shape]:
    """One line of the list -> its modules and the shape after them.

    Raises:
        LineError: says what is wrong.
    """
    if not line.split():
        raise LineError("it is empty")
    name, *rest = line.split()
    if name not in KINDS:
        guess = nearest(name, KINDS)
        raise LineError(f"there is no layer '{name}'" + (f"; did you mean '{guess}'?" if guess else ""))
    options: dict[str, float] = {}
    for word in [word for word in rest if "=" in word]:
        key, _, value = word.partition("=")
        try:
            options[key] = float(value)
        except ValueError as error:
            raise LineError(f"{key} should be a number, but '{value}' came") from error
    penalties = {key: options.pop(key) for key in ("l1", "l2") if key in options}
    words = [word for word in rest if "=" not in word]
    if extra := words[MOST_WORDS.get(name, 0) :]:
        raise LineError(f"'{extra[0]}' has no meaning after {' '.join([name, *words[: -len(extra)]])}")
    modules, after = KINDS[name](words, options, shape)
    if options:
        raise LineError(f"'{next(iter(options))}' has no meaning for {name}")
    weighted = [module for module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    if penalties and not weighted:
        raise LineError(f"{name} has no weights that a penalty could hold")
    for module in weighted if penalties else ():
        setattr(module, PENALTY, penalties)  # read by the penalty regularizer
    return modules, after


def cheaper_order(modules: list[nn.Module]) -> list[nn.Module]:
    """Swap "rising activation, max pool" into "max pool, activation": the same function on a quarter of the values."""
    rising = tuple(type(ACTIVATIONS[name]()) for name in RISING)
    for i in range(len(modules) - 1):
        if isinstance(modules[i], rising) and isinstance(modules[i + 1], nn.MaxPool2d):
            modules[i], modules[i + 1] = modules[i + 1], modules[i]
    return modules


@network(
    "layers",
    reason="the recipe lists the layers",
    pros="any chain of layers, in the recipe, without code",
    cons="no branches; for these hand over a torch module of your own",
    paper="",
    year=None,
    suits=lambda schema, rows: 0.0,
    takes=rows_alike,
    written=True,  # so that nothing can be said of its size before
)
def layers(
    schema: Schema,
    role: str,
    *,
    layers: list[str] = hyperparameter([], help='such as ["conv 32 3 relu", "flatten", "dense 64 relu"]'),
) -> nn.Module:
    """A chain of layers written as a list of lines."""
    if not layers:
        raise FathomError('network.layers is empty; write it as network.layers=["dense 64 relu"].')
    if not rows_alike(schema):
        raise unfit(schema, "layers", ALIKE)
    shape: Shape = image_shape(schema) or (flat_size(schema),)
    modules: list[nn.Module] = []
    for number, line in enumerate(layers, 1):
        try:
            made, shape = parse_line(line, shape)
        except LineError as error:
            known = ", ".join(name for name in KINDS if name not in ACTIVATIONS)
            raise FathomError(
                f"network.layers, line {number} '{line}': {error}. Layers: {known}, or an activation."
            ) from error
        modules += made
    if len(shape) == 3:
        modules.append(FlattenPixels())
    return Stack(nn.Sequential(*cheaper_order(modules)), nn.Linear(int(np.prod(shape)), output_size(schema)))
