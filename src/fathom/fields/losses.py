"""Losses of targets: each (output, target) -> (B,), one value a row, so that rows can be weighted.

Outputs are logits or standardized numbers, never probabilities. B rows, K classes or columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of a softmax. `target` is (B,) int64 or (B, K) shares of the classes."""
    return F.cross_entropy(output, target, reduction="none")


def focal(output: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that cares less for rows already right (Lin et al. 2017, equation 4)."""
    logs = output.log_softmax(1)  # (B, K)
    terms = -logs * (1 - logs.exp()) ** gamma
    if target.ndim == 1:
        return terms.gather(1, target[:, None]).squeeze(1)
    return (terms * target).sum(1)


def binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean over K yes-or-no decisions of the negative log-likelihood of a sigmoid."""
    return F.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none").mean(1)


def binary_focal(output: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss of K yes-or-no decisions (Lin et al. 2017)."""
    plain = F.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none")  # (B, K)
    return (plain * (1 - torch.exp(-plain)) ** gamma).mean(1)


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the columns of a row."""
    return (output - target).square().flatten(1).mean(1)


def mae(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the columns of a row."""
    return (output - target).abs().flatten(1).mean(1)


def huber(output: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Squared near zero, absolute beyond `delta` (Huber 1964)."""
    return F.huber_loss(output, target, reduction="none", delta=delta).flatten(1).mean(1)
