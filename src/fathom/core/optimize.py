"""Gradients into weights: the only `.backward()` of Fathom.

    optimizer.minimize(loss)    backward, guard, clip, schedule, step, average

The parameters of a group live in one contiguous buffer and so do their gradients (each parameter stays a view with its
own shape and memory format). The guard against NaN, clipping, the update and the moving average are then one kernel
each, whatever the number of layers.

A loss or gradient that is not finite never reaches the weights: the update is skipped, on the device and without
waiting for it, and `bad_step` remembers the first time. The loop looks there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core import steppers
from fathom.core.contract import Clock
from fathom.core.errors import FathomError, hint, nearest
from fathom.core.features import head_of
from fathom.core.recipe import Training
from fathom.core.steppers import Stepper


@dataclass
class Group:
    """Parameters that are updated alike, end to end in one buffer.

    Args:
        rate: multiple of the learning rate.
        decay: whether weight decay applies (matrices and filters, not biases or normalization).
        matrices: whether they are updated as matrices (Muon).
        weights, gradients: (P,) the buffers; `parts` are the parameters, views into `weights`.
    """

    rate: float
    decay: bool
    matrices: bool
    parts: list[nn.Parameter]
    weights: Tensor
    gradients: Tensor


class Optimizer:
    """Takes the gradient of a loss and moves the parameters of its modules.

    Args:
        modules: the modules whose parameters it owns; names in `rates` are relative to them.
        training: the recipe's table: optimizer, rate, schedule, decay, clipping, average.
        clock: read by the schedule.
        exclusive: false where other optimizers own parameters of the same graph, so that backward must reach only
            these.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], training: Training, clock: Clock, exclusive: bool = True
    ) -> None:
        self.modules = dict(modules)
        self.training = training
        self.clock = clock
        self.exclusive = exclusive
        self.schedule = SCHEDULES[training.schedule]
        self.rates: dict[str, float] = {"*": 1.0}
        self.groups: list[Group] = []
        self.steppers: list[Stepper] = []
        self.learning_rate = 0.0  # of the last update, for the log
        self.averages: list[Tensor] = []
        self.updates = 0
        self.bad_step = -1
        self._bad: Tensor | None = None
        self.begin(self.rates)

    def begin(self, rates: Mapping[str, float]) -> None:
        """Start a stage: freeze, group and flatten the parameters; forget momentum.

        Args:
            rates: parameter glob -> multiple of the learning rate; the last match counts, 0 freezes.
        """
        self.check(rates)
        self.rates = dict(rates)
        chosen: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self._named_parameters():
            rate = _rate(name, self.rates)
            parameter.requires_grad_(rate > 0)
            if rate > 0:
                decays, is_matrix = parameter.ndim > 1 and self.training.weight_decay > 0, self._is_matrix(name, parameter)
                if self.training.optimizer == "muon" and not is_matrix:
                    rate *= self.training.vector_rate
                key = (rate, decays, is_matrix)
                chosen.setdefault(key, []).append(parameter)
        for module in self.modules.values():
            module.train(module.training)  # what is frozen now rests, what has thawed learns (see `Model.train`)
        self.groups = [_flatten(*key, parts) for key, parts in chosen.items()]
        self.steppers = [self._stepper(group) for group in self.groups]
        self.averages = [group.weights.detach().clone() for group in self.groups] if self.training.average else []
        self.updates = 0

    def check(self, rates: Mapping[str, float]) -> None:
        """Refuse rates that a stage could not begin with; nothing is changed.

        Args:
            rates: parameter glob -> multiple of the learning rate.

        Raises:
            FathomError: a parameter has no rate, a glob meets no parameter, or nothing is left to learn.
        """
        names = [name for name, _ in self._named_parameters()]
        if not any(_rate(name, rates) > 0 for name in names):
            raise FathomError(f"Nothing is left to learn: the rates {dict(rates)} freeze every parameter.")
        for glob in rates if self.exclusive else ():  # another optimizer's parameters may be meant
            if not any(fnmatchcase(name, glob) for name in names):
                raise FathomError(f"The rates name '{glob}', but no parameter is called so. {_alike(glob, names)}")

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the names that `fathom plan` shows: those of the network itself stand without "module."."""
        seen: set[int] = set()
        for prefix, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if id(parameter) not in seen and parameter.is_floating_point():
                    seen.add(id(parameter))
                    name = name.removeprefix("module.")
                    yield name if len(self.modules) == 1 else f"{prefix}.{name}", parameter

    def _is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Muon moves hidden matrices and filters; embeddings, heads and vectors are left to AdamW."""
        heads = {head_of(getattr(module, "module", module)) for module in self.modules.values()}
        apart = name.rpartition(".")[0].endswith(("head", "embedding", *heads))
        return self.training.optimizer == "muon" and parameter.ndim > 1 and not apart

    def _stepper(self, group: Group) -> Stepper:
        training = self.training
        if group.matrices:
            matrices, gradients = zip(*map(_as_matrix, group.parts), strict=True)
            return steppers.Muon(matrices, gradients, training.momentum, training.nesterov)
        return STEPPERS[training.optimizer](group.weights, group.gradients, training)

    def minimize(self, loss: Tensor) -> None:
        """One update of the weights against `loss` (a scalar)."""
        for group in self.groups:
            group.gradients.zero_()
        if self.exclusive:
            loss.backward()
        else:
            loss.backward(inputs=[part for group in self.groups for part in group.parts])
        if loss.device.type != "cpu":
            self._update_on_device(loss)
        elif self._is_finite(loss):
            self._step()
            self._average()

    def _is_finite(self, loss: Tensor) -> bool:
        """Whether loss and gradient are finite, where looking costs nothing; clips on the way."""
        square = sum(float(torch.dot(group.gradients, group.gradients)) for group in self.groups)
        if not math.isfinite(square) or not math.isfinite(float(loss.detach())):
            self.bad_step = self.clock.total if self.bad_step < 0 else self.bad_step
            return False
        clip = self.training.clip
        if clip and square > clip**2:
            for group in self.groups:
                group.gradients.mul_(clip / math.sqrt(square))
        return True

    @torch.no_grad()
    def _update_on_device(self, loss: Tensor) -> None:
        """The update where looking would wait: from the first bad step on, the weights are put back as they were."""
        square = torch.stack([torch.dot(group.gradients, group.gradients) for group in self.groups]).sum()
        seen = ~torch.isfinite(square + loss.detach()) * (self.clock.total + 1)
        self._bad = seen if self._bad is None else torch.where(self._bad > 0, self._bad, seen)
        if self.training.clip:
            for group in self.groups:
                group.gradients.mul_((self.training.clip / square.sqrt()).clamp(max=1.0))
        before = [group.weights.detach().clone() for group in self.groups]
        self._step()
        for group, weights in zip(self.groups, before, strict=True):
            group.weights.copy_(torch.where(self._bad > 0, weights, group.weights))
        self._average()

    def _step(self) -> None:
        self.learning_rate = (self.training.learning_rate or 1e-3) * self.schedule(self.clock.progress, self.training)
        for group, stepper in zip(self.groups, self.steppers, strict=True):
            rate = self.learning_rate * group.rate
            if group.decay:  # decoupled, whatever the optimizer (Loshchilov & Hutter 2019)
                group.weights.mul_(1 - rate * self.training.weight_decay)
            stepper.step(rate)
        self.updates += 1

    def _average(self) -> None:
        # A short memory at first, so that the start is forgotten (Tarvainen & Valpola 2017).
        weight = 1 - min(self.training.average, (1 + self.updates) / (10 + self.updates))
        for average, group in zip(self.averages, self.groups, strict=False):
            average.lerp_(group.weights, weight)

    def first_bad_step(self) -> int:
        """The first step whose loss or gradient was not finite, or -1. Waits for the device."""
        if self.bad_step < 0 and self._bad is not None:
            self.bad_step = int(self._bad) - 1
        return self.bad_step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights, for as long as the block lasts; nothing changes where none are kept."""
        if not self.averages:
            yield
            return
        current = [group.weights.detach().clone() for group in self.groups]
        self._load(self.averages)
        try:
            yield
        finally:
            self._load(current)

    def keep_average(self) -> None:
        """Put the averaged weights in place for good."""
        self._load(self.averages)

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for group, value in zip(self.groups, values, strict=True):
            group.weights.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """All that decides the next update, besides the weights."""
        return {
            "rates": self.rates,
            "updates": self.updates,
            "bad_step": self.first_bad_step(),
            "averages": {str(i): average for i, average in enumerate(self.averages)},
            "steppers": {str(i): stepper.state_dict() for i, stepper in enumerate(self.steppers)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back; the weights must be loaded first."""
        self.begin(state["rates"])
        self.updates = state["updates"]
        self.bad_step, self._bad = state["bad_step"], None
        for i, average in enumerate(self.averages):  # in place, so that they stay on the device
            average.copy_(state["averages"][str(i)])
        for i, stepper in enumerate(self.steppers):
            stepper.load_state_dict(state["steppers"][str(i)])


def _rate(name: str, rates: Mapping[str, float]) -> float:
    """The multiple of the rate for a parameter: that of the last glob that matches."""
    matching = [rate for glob, rate in rates.items() if fnmatchcase(name, glob)]
    if not matching:
        raise FathomError(f"No rate matches the parameter '{name}'; add \"*\" = 1.0{hint(name, rates)}.")
    return matching[-1]


def _alike(glob: str, names: Sequence[str]) -> str:
    """The parameter that was probably meant, or the first ones."""
    guess = nearest(glob.strip("*."), {name.rpartition(".")[0] or name for name in names})
    return f"Did you mean '{guess}.*'?" if guess else f"Parameters: {', '.join(names[:6])} ..."


@torch.no_grad()
def _flatten(rate: float, decay: bool, matrices: bool, parts: list[nn.Parameter]) -> Group:
    """Move the parameters into one buffer, each keeping its shape, strides and values."""
    total = sum(part.numel() for part in parts)
    weights = torch.empty(total, dtype=parts[0].dtype, device=parts[0].device)
    gradients = torch.zeros_like(weights)
    place = 0
    for part in parts:
        dense = part.data if _is_dense(part) else part.data.contiguous()
        view = weights[place : place + part.numel()].as_strided(dense.shape, dense.stride())
        view.copy_(dense)
        part.data = view
        part.grad = gradients[place : place + part.numel()].as_strided(dense.shape, dense.stride())
        place += part.numel()
    return Group(rate, decay, matrices, parts, weights, gradients)


def _as_matrix(part: nn.Parameter) -> tuple[Tensor, Tensor]:
    """A filter (O, I, H, W) as a matrix (O, I * H * W), weights and gradient, both views of the buffers."""
    assert part.grad is not None, "the group is not flattened"
    if part.is_contiguous():
        return part.data.flatten(1), part.grad.flatten(1)
    return part.data.permute(0, 2, 3, 1).flatten(1), part.grad.permute(0, 2, 3, 1).flatten(1)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the strides cover the memory without holes or overlap."""
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _adam(weights: Tensor, gradients: Tensor, training: Training) -> Stepper:
    return steppers.Adam(weights, gradients, (training.beta1, training.beta2))


STEPPERS: dict[str, Callable[[Tensor, Tensor, Training], Stepper]] = {
    "adam": _adam,
    "adamw": _adam,  # decay is decoupled in any case
    "muon": _adam,  # of what is no hidden matrix
    "sgd": lambda weights, gradients, training: steppers.SGD(weights, gradients, training.momentum, training.nesterov),
    "rmsprop": lambda weights, gradients, training: steppers.RMSprop(weights, gradients, training.momentum),
}


def _warm(progress: float, share: float) -> float:
    return min(1.0, (progress + 1e-8) / share) if share > 0 else 1.0


def constant(progress: float, training: Training) -> float:
    """The full rate, after a warm-up where one is asked for."""
    return _warm(progress, training.warmup)


def step(progress: float, training: Training) -> float:
    """A tenth after half of the training and again after three quarters (He et al. 2015)."""
    return _warm(progress, training.warmup) * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


def cosine(progress: float, training: Training) -> float:
    """Half a cosine from the full rate to zero (Loshchilov & Hutter 2017)."""
    rest = max(0.0, progress - training.warmup) / (1 - training.warmup)
    return _warm(progress, training.warmup) * (1 + math.cos(math.pi * rest)) / 2


def linear(progress: float, training: Training) -> float:
    """A straight line from the full rate to zero."""
    rest = max(0.0, progress - training.warmup) / (1 - training.warmup)
    return _warm(progress, training.warmup) * (1 - rest)


def one_cycle(progress: float, training: Training) -> float:
    """Up from a 25th of the rate, then down along a cosine (Smith & Topin 2018)."""
    share = training.warmup or 0.3
    if progress < share:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / share)) / 2
    return (1 + math.cos(math.pi * (progress - share) / (1 - share))) / 2


SCHEDULES = {"constant": constant, "step": step, "cosine": cosine, "linear": linear, "one_cycle": one_cycle}
