"""A network that the user wrote: checked, adapted where the meaning is plain, and treated like any other.

Keras 3 models on the torch backend are `nn.Module`s; theirs that take (H, W, C) pictures get them so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.core.contract import Schema
from fathom.core.errors import FathomError
from fathom.networks.parts import output_size

ENDS = {
    "Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid", "Softmax2d": "softmax", "LogSigmoid": "log-sigmoid",
}  # fmt: skip


class Own(nn.Module):
    """A user's module behind the interface of a network: plain tensors in, outputs of all targets out.

    Args:
        module: theirs.
        channels_last: whether pictures are handed over as (B, H, W, C).
        pair: whether its single number per row is the logit of the second of two classes.
    """

    def __init__(self, module: nn.Module, channels_last: bool, pair: bool) -> None:
        super().__init__()
        self.own = module
        self.channels_last = channels_last
        self.pair = pair

    def forward(self, *inputs: Tensor) -> Any:
        """Whatever the module returns, made into two logits where it gives one."""
        if self.channels_last:
            inputs = tuple(x.permute(0, 2, 3, 1) if x.ndim == 4 else x for x in inputs)
        output = self.own(*map(in_order, inputs))
        if self.pair and isinstance(output, Tensor):
            logit = output.reshape(len(output), 1)
            return torch.cat([torch.zeros_like(logit), logit], 1)  # the softmax of (0, z) is the sigmoid of z
        return output


def in_order(x: Tensor) -> Tensor:
    """The same values in the order of the dimensions, as tutorials expect: they read pictures by `x.view(len(x), -1)`.

    Ours come channels-last. With one channel that is in order already, except in its strides, by which convolutions
    choose the order of what they return; a view of all numbers forgets them.
    """
    return x.reshape(-1).view(x.shape)


def adopt(module: nn.Module, schema: Schema, samples: list[Tensor]) -> Own:
    """Check a user's module against the task.

    Args:
        module: theirs.
        schema: fitted.
        samples: one preprocessed tensor an input, (B, *shape), B >= 2.

    Raises:
        FathomError: it ends in a softmax or sigmoid, fails on the data, or does not return the values of every target.
    """
    name = type(module).__name__
    channels_last = _wants_channels_last(module, schema)
    try:
        with torch.no_grad():
            output = Own(module, channels_last, pair=False).eval()(*samples)
    except Exception as error:  # the user's own code: whatever it raises is told
        shapes = ", ".join(str(tuple(sample.shape)) for sample in samples)
        raise FathomError(
            f"Your module {name} fails on a batch of inputs of shape {shapes}: {type(error).__name__}: {error}"
        ) from error
    module.train()
    end = _end(module, output)
    if end:
        raise FathomError(
            f"Your module {name} ends in a {end}. Fathom's losses take logits, which are exacter and train better: "
            "remove that last layer, or in Keras set activation=None on the last Dense."
        )
    rows = len(samples[0])
    if not isinstance(output, Tensor):
        _check_parts(name, _named(name, output, schema), schema, rows)
        return Own(module, channels_last, pair=False)
    wanted, came = output_size(schema), _width(name, output, rows)
    if wanted == 2 and came == 1 and [target.kind for target in schema.targets.values()] == ["category"]:
        return Own(module, channels_last, pair=True)
    if came != wanted:
        targets = ", ".join(f"'{n}' needs {t.outputs[0]}" for n, t in schema.targets.items())
        raise FathomError(
            f"Your module {name} returns {came} numbers a row; {targets}. Make its last layer {wanted} wide."
        )
    return Own(module, channels_last, pair=False)


def _named(name: str, output: Any, schema: Schema) -> dict[str, Any]:
    """What a module returned for each target: taken by name from a dict, in order from a tuple."""
    targets = list(schema.targets)
    if isinstance(output, Mapping):
        missing = [target for target in targets if target not in output]
        if missing:
            raise FathomError(
                f"Your module {name} returns a dict of {', '.join(map(repr, output)) or 'nothing'}, without the target "
                f"'{missing[0]}'. Return a value for each target by its name: {', '.join(targets)}."
            )
        return {target: output[target] for target in targets}
    if not isinstance(output, tuple | list):
        raise FathomError(
            f"Your module {name} returns a {type(output).__name__}; return a tensor, a tuple with one tensor a target, "
            "or a dict of tensors by target."
        )
    if len(output) != len(targets):
        raise FathomError(
            f"Your module {name} returns {len(output)} values; there {'is' if len(targets) == 1 else 'are'} "
            f"{len(targets)} target{'s' * (len(targets) > 1)}: {', '.join(targets)}. Return one tensor for each, in this order."
        )
    return dict(zip(targets, output, strict=True))


def _check_parts(name: str, parts: Mapping[str, Any], schema: Schema, rows: int) -> None:
    """Refuse a part that is no tensor, or has not as many numbers a row as its target needs."""
    for target, part in parts.items():
        if not isinstance(part, Tensor):
            raise FathomError(f"Your module {name} returns a {type(part).__name__} for '{target}'; return a tensor.")
        wanted, came = int(np.prod(schema.targets[target].outputs)), _width(name, part, rows)
        if came != wanted:
            raise FathomError(
                f"Your module {name} returns {came} numbers a row for '{target}', which needs {wanted}. "
                f"Make its last layer {wanted} wide."
            )


def _width(name: str, output: Tensor, rows: int) -> int:
    """Numbers a row."""
    if output.ndim == 0 or len(output) != rows:
        raise FathomError(
            f"Your module {name} returns shape {tuple(output.shape)} for {rows} rows; "
            f"its first dimension should be the rows of the batch, ({rows}, ...)."
        )
    return output.numel() // rows


def _wants_channels_last(module: nn.Module, schema: Schema) -> bool:
    """A Keras model built for (H, W, C) pictures."""
    shape = getattr(module, "input_shape", None)
    pictures = [tuple(item.shape) for item in schema.inputs.values() if len(item.shape) == 3]
    if not pictures or not isinstance(shape, tuple) or len(shape) != 4:
        return False
    channels, height, width = pictures[0]
    return tuple(shape[1:]) == (height, width, channels) and tuple(shape[1:]) != pictures[0]


def _end(module: nn.Module, output: Any) -> str | None:
    """What the module ends in, where that is no logit: by its last layer, or by its values."""
    leaves = [m for m in module.modules() if not any(m.children())]
    last = leaves[-1] if leaves else None
    if last is not None and type(last).__name__ in ENDS:
        return ENDS[type(last).__name__]
    activation = next(_keras_activations(module), None)
    if activation in ("softmax", "sigmoid", "log_softmax"):
        return activation
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1:
        rows = output.detach().float()
        if bool((rows >= 0).all()) and torch.allclose(rows.sum(1), torch.ones(len(rows)), atol=1e-5):
            return "softmax"
        if bool((rows <= 0).all()) and torch.allclose(rows.exp().sum(1), torch.ones(len(rows)), atol=1e-5):
            return "log-softmax"
    return None


def _keras_activations(module: nn.Module) -> Iterator[str]:
    """Names of the activations of a Keras model's layers, the last first."""
    for layer in reversed(list(getattr(module, "layers", []) or [])):
        activation = getattr(layer, "activation", None)
        if activation is not None:
            yield getattr(activation, "__name__", str(activation))
            return


def fingerprint(module: nn.Module) -> str:
    """A digest of the names and shapes of the parameters: what must match when the weights are loaded again."""
    text = "|".join(f"{name}:{tuple(p.shape)}" for name, p in module.named_parameters())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
