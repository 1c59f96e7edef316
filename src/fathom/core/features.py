"""Features: what the frozen part of a network makes of each row, computed once and served with the batches.

Where all but the head of a network is frozen and nothing is augmented, its body answers the same in every epoch. A
network that can be cut in two has, beside `forward`,

    features(*inputs) -> (B, D)      the body
    decide(features) -> outputs      the head, all of whose parameters are called head.*, or as `head_name` says

and `forward` is one after the other. Rows are encoded the first time that a batch holds them, so that nothing waits
before training begins and a resumed run encodes what it needs. Which rows are encoded together never depends on the
batch, since sums differ in their last bits with the shape of what is added: a resumed run ends with the same weights.
What is kept lies with the model up to `data.memory` GiB, and beyond in a file that is mapped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor, nn

from fathom.core.device import Device
from fathom.core.mapped import empty, fits
from fathom.core.tensors import FEATURES, ROW, Batch, TensorSet

# Rows of about equal length that are encoded together: enough to keep the cores busy, few enough that one is soon done.
GROUPS = {"cpu": 8}
GROUP = 128


class Divided(Protocol):
    """A model whose network can be cut in two."""

    def features(self, batch: Batch) -> Tensor:
        """(B, D), what the head reads."""
        ...


def only_head(model: nn.Module, rates: Mapping[str, float]) -> bool:
    """Whether the network can be cut in two and these rates leave its head alone to learn.

    Args:
        model: of one role; its network is `model.module`.
        rates: parameter glob -> multiple of the learning rate; the last match counts.
    """
    if not hasattr(model.module, "features") or not hasattr(model.module, "decide"):
        return False
    names = [name.removeprefix("module.") for name, _ in model.named_parameters()]
    return not any(_learns(name, rates) for name in names if not name.startswith(f"{head_of(model.module)}."))


def head_of(module: nn.Module | torch.Tensor) -> str:
    """The name under which a network's state holds its last layer: "head", unless it says otherwise (`head_name`)."""
    return str(getattr(module, "head_name", "head"))


def head_alone(module: nn.Module) -> bool:
    """Whether a network can be cut in two and only its head is left to learn.

    Args:
        module: whose frozen parameters ask for no gradient.
    """
    if not hasattr(module, "features") or not hasattr(module, "decide"):
        return False
    learning = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    return bool(learning) and all(name.startswith(f"{head_of(module)}.") for name in learning)


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every part is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def rest_frozen(module: nn.Module) -> None:
    """Put every part whose parameters are all frozen into evaluation mode.

    A frozen part is a fixed function: its normalization must not follow the batches, nor its dropout silence anything.
    What has no parameters goes, inside a sequence, with the next part that has some: dropout before a frozen layer is that
    layer's. Elsewhere nothing tells whose it is; where only a head learns, `Model` rests the whole body instead.

    Args:
        module: in training mode; changed in place.
    """
    if _frozen(module):
        module.eval()
        return
    children = list(module.children())
    for part in children:
        rest_frozen(part)
    if isinstance(module, nn.Sequential):
        _rest_before_frozen(children)


def _frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _rest_before_frozen(parts: Sequence[nn.Module]) -> None:
    """Rest parts without parameters that a frozen one follows, others without parameters between them."""
    follows = False
    for part in reversed(parts):
        if next(part.parameters(), None) is not None:
            follows = _frozen(part)
        elif follows:
            part.eval()


def _learns(name: str, rates: Mapping[str, float]) -> bool:
    return any([rate > 0 for glob, rate in rates.items() if fnmatchcase(name, glob)][-1:])


class Served(TensorSet):
    """Rows whose batches hold, beside their columns, what the body of a model makes of them.

    Args:
        data: N rows.
        model: its body must not change as long as this set is used.
        memory: GiB of features beyond which they are kept in a file.
        device: in whose precision the body works, as it would in a step.
    """

    def __init__(self, data: TensorSet, model: nn.Module, memory: float, device: Device) -> None:
        super().__init__(data.columns, data.index)
        self.model = model
        self.memory = memory
        self.arithmetic = device
        self.size = GROUPS.get(next(model.parameters()).device.type, GROUP)
        self.order = data.lengths().cpu().argsort(stable=True)  # (N,)
        self.group = torch.empty_like(self.order)  # (N,) of each row
        self.group[self.order] = torch.arange(len(data)) // self.size
        self.known = torch.zeros(-(-len(data) // self.size), dtype=torch.bool)
        self.store: Tensor | None = None  # (N, D)

    def batch(self, index: Tensor) -> Batch:
        """The rows `index` (B,), their features among them."""
        groups = self.group[index.cpu()].unique()
        for group in groups[~self.known[groups]].tolist():
            self._encode(group)
        batch = super().batch(index)
        if self.store is not None:
            batch[FEATURES] = self.store[index.to(self.store.device)]
        return batch

    def seconds_a_row(self, device: Device) -> float:
        """What a row costs on a device: the second of two groups, after the first has warmed it up."""
        self.arithmetic = device
        for group in (0, 1):
            start = time.perf_counter()
            self._encode(group % len(self.known))
            seconds = time.perf_counter() - start
        return seconds / self.size

    @torch.no_grad()
    def _encode(self, group: int) -> None:
        """Compute the features of the rows of a group, in evaluation mode."""
        rows = self.order[group * self.size : (group + 1) * self.size]
        device = next(self.model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in super().batch(rows).items() if name != ROW}
        training = self.model.training
        self.model.eval()
        with self.arithmetic.autocast():
            made = self.model.features(batch).float()  # type: ignore[operator]
        self.model.train(training)
        if self.store is None:
            shape = (len(self), made.shape[1])
            small = fits(shape, made.dtype, self.memory)
            self.store = made.new_empty(shape) if small else empty(shape, made.dtype, self.memory, "kept features")
        self.store[rows.to(self.store.device)] = made.to(self.store.device)
        self.known[group] = True
