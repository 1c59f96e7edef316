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

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor, nn

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


def rest_frozen(module: nn.Module) -> None:
    """Put every part whose parameters are all frozen into evaluation mode.

    A frozen part is a fixed function: its normalization must not follow the batches, nor its dropout silence anything.

    Args:
        module: in training mode; changed in place.
    """
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for part in module.children():
        rest_frozen(part)


def _learns(name: str, rates: Mapping[str, float]) -> bool:
    return any([rate > 0 for glob, rate in rates.items() if fnmatchcase(name, glob)][-1:])


class Served(TensorSet):
    """Rows whose batches hold, beside their columns, what the body of a model makes of them.

    Args:
        data: N rows.
        model: its body must not change as long as this set is used.
        memory: GiB of features beyond which they are kept in a file.
    """

    def __init__(self, data: TensorSet, model: nn.Module, memory: float) -> None:
        super().__init__(data.columns, data.index)
        self.model = model
        self.memory = memory
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

    @torch.no_grad()
    def _encode(self, group: int) -> None:
        """Compute the features of the rows of a group, in evaluation mode."""
        rows = self.order[group * self.size : (group + 1) * self.size]
        device = next(self.model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in super().batch(rows).items() if name != ROW}
        training = self.model.training
        self.model.eval()
        made = self.model.features(batch)  # type: ignore[operator]
        self.model.train(training)
        if self.store is None:
            shape = (len(self), made.shape[1])
            small = fits(shape, made.dtype, self.memory)
            self.store = made.new_empty(shape) if small else empty(shape, made.dtype, self.memory, "kept features")
        self.store[rows.to(self.store.device)] = made.to(self.store.device)
        self.known[group] = True
