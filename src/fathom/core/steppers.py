"""One update of one buffer: torch's own kernels, called through their functional form.

    Adam   SGD   RMSprop   on a buffer of any parameters
    Muon                   on matrices that are views into it

The functional form does the same arithmetic as `torch.optim`'s classes without their bookkeeping for many tensors; and
those classes import torch's compiler when they are built, which costs more than a second of every start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim._muon import muon
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd


class Stepper(Protocol):
    """Moves weights against their gradient; its state is tensors by name."""

    def step(self, rate: float) -> None:
        """One update at this learning rate."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What decides the next update."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        ...


class Buffers:
    """A stepper whose state is a fixed set of tensors, filled in place."""

    def __init__(self, **state: Tensor) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Fill them again."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])


class Adam(Buffers):
    """Kingma & Ba 2015, one fused kernel.

    Args:
        weights, gradients: (P,) buffers.
        betas: how much of the mean gradient, and of its mean square, is kept at each step.
    """

    epsilon = 1e-8

    def __init__(self, weights: Tensor, gradients: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.betas = betas
        zeros = torch.zeros_like
        super().__init__(first=zeros(weights), second=zeros(weights), steps=torch.zeros((), device=weights.device))
        self.weights, self.gradients = weights, gradients

    def step(self, rate: float) -> None:
        """One update."""
        adam(
            [self.weights], [self.gradients], [self.state["first"]], [self.state["second"]], [], [self.state["steps"]],
            fused=True, amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=rate, weight_decay=0.0,
            eps=self.epsilon, maximize=False,
        )  # fmt: skip


class SGD(Buffers):
    """Momentum, looking ahead (Nesterov 1983) or not; one fused kernel."""

    def __init__(self, weights: Tensor, gradients: Tensor, momentum: float, nesterov: bool) -> None:
        super().__init__(**({"velocity": torch.zeros_like(weights)} if momentum else {}))
        self.weights, self.gradients = weights, gradients
        self.momentum, self.nesterov = momentum, nesterov and momentum > 0

    def step(self, rate: float) -> None:
        """One update."""
        # A velocity of zeros gives the first step that torch makes from none: the gradient itself.
        sgd(
            [self.weights], [self.gradients], [self.state.get("velocity")], fused=True, weight_decay=0.0,
            momentum=self.momentum, lr=rate, dampening=0.0, nesterov=self.nesterov, maximize=False,
        )  # fmt: skip


class RMSprop(Buffers):
    """Tieleman & Hinton 2012, with momentum."""

    def __init__(self, weights: Tensor, gradients: Tensor, momentum: float) -> None:
        zeros = torch.zeros_like
        velocity = {"velocity": zeros(weights)} if momentum else {}
        super().__init__(square=zeros(weights), steps=torch.zeros((), device=weights.device), **velocity)
        self.weights, self.gradients, self.momentum = weights, gradients, momentum

    def step(self, rate: float) -> None:
        """One update."""
        velocity = [self.state["velocity"]] if self.momentum else []
        rmsprop(
            [self.weights], [self.gradients], [self.state["square"]], [], velocity, [self.state["steps"]], foreach=True,
            lr=rate, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=self.momentum, centered=False,
        )  # fmt: skip


class Muon(Buffers):
    """Momentum made orthogonal, for hidden matrices (Jordan et al. 2024).

    Args:
        matrices: (O, I) views into the weights.
        gradients: their gradients, alike.
    """

    def __init__(
        self, matrices: Sequence[Tensor], gradients: Sequence[Tensor], momentum: float, nesterov: bool
    ) -> None:
        super().__init__(**{f"velocity.{i}": torch.zeros_like(matrix) for i, matrix in enumerate(matrices)})
        self.matrices, self.gradients = list(matrices), list(gradients)
        self.momentum, self.nesterov = momentum, nesterov

    def step(self, rate: float) -> None:
        """One update."""
        muon(
            self.matrices, self.gradients, list(self.state.values()), lr=rate, weight_decay=0.0,
            momentum=self.momentum, nesterov=self.nesterov, ns_coefficients=(3.4445, -4.775, 2.0315), ns_steps=5,
            eps=1e-7, adjust_lr_fn=None, has_complex=False,
        )  # fmt: skip


__all__ = ["SGD", "Adam", "Muon", "RMSprop", "Stepper"]
