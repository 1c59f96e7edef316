"""What a network that makes rows again must beat.

    Linear     principal components of the same number, the honest rival (Pearson 1901): a linear autoencoder is one
    Trivial    the mean of each pixel and column, with the likelihood of each alone
    matrix     all inputs of a row as one vector of features, and `parted` back

In comments: N rows, F features, D components.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.analysis.copied import ROWS, Rows, with_noise
from fathom.core.contract import Batch, TensorSet
from fathom.fields.copies import (
    CategoryCopy,
    Copy,
    ImageCopy,
)

FITTED = 20_000  # training rows that principal components are made of
VALUES = 2**26



def matrix(copies: Mapping[str, Copy], batch: Batch, prefix: str = "") -> Tensor:
    """(N, F) rows as numbers side by side: pixels, standardized numbers (the mean where missing), one-hot words.

    Args:
        copies: what is reconstructed.
        batch: encoded.
        prefix: `NOISY` for the rows with noise.
    """
    parts = []
    for name, item in copies.items():
        x = item.truth(batch[prefix + name])
        if isinstance(item, CategoryCopy):
            parts += [F.one_hot(x[:, i], size).float() for i, size in enumerate(item.sizes)]
        else:
            parts.append(x.float().nan_to_num().flatten(1))
    return torch.cat(parts, 1)


def parted(copies: Mapping[str, Copy], made: Tensor) -> Batch:
    """(N, F) back into answers as `Copy.shown` gives them."""
    answers: Batch = {}
    place = 0
    for name, item in copies.items():
        size = sum(item.sizes) if isinstance(item, CategoryCopy) else len(item.columns)
        if isinstance(item, ImageCopy):
            size = int(np.prod(item.shape))
            answers[name] = made[:, place : place + size].view(-1, *item.shape).clamp(0, 1)
        elif isinstance(item, CategoryCopy):
            answers[name] = item.shown(made[:, place : place + size])
        else:
            answers[name] = made[:, place : place + size]
        place += size
    return answers


def some(data: TensorSet, most: int, copies: Mapping[str, Copy]) -> Batch:
    """Rows at even steps, as many as are affordable."""
    width = sum(int(np.prod(item.shape)) for item in copies.values())
    count = max(2, min(most, VALUES // max(width, 1), len(data)))
    return data.batch(torch.linspace(0, len(data) - 1, count).round().long().unique())


class Linear:
    """Principal components of the training rows.

    Args:
        copies: what is reconstructed.
        train: encoded training rows.
        width: components at most.
        seed: of the randomized solver.
    """

    def __init__(self, copies: Mapping[str, Copy], train: TensorSet, width: int, seed: int) -> None:
        from sklearn import decomposition

        x = matrix(copies, some(train, FITTED, copies)).numpy()
        count = min(width, *x.shape)
        solver = "covariance_eigh" if x.shape[1] <= 1_000 else "randomized" if count < min(x.shape) else "full"
        self.model = decomposition.PCA(count, svd_solver=solver, random_state=seed).fit(x)

    def made(self, x: Tensor) -> Tensor:
        """(N, F) -> (N, F)."""
        again: np.ndarray = self.model.inverse_transform(self.model.transform(x.numpy()))
        return torch.from_numpy(again).float()

    def rows(self, copies: Mapping[str, Copy], data: TensorSet, prefix: str) -> Rows:
        """As `reconstructed`."""
        return _rows(copies, data, prefix, self.made)

    def errors(self, copies: Mapping[str, Copy], data: TensorSet) -> Tensor:
        """(N,) squared error."""
        parts = [matrix(copies, batch) for batch in data.batches(ROWS)]
        return torch.cat([(self.made(x) - x).square().sum(1) for x in parts]).double()


class Trivial:
    """Each pixel and column alone: its mean, and how often each of its values came.

    Args:
        copies: what is reconstructed.
        train: encoded training rows.
    """

    def __init__(self, copies: Mapping[str, Copy], train: TensorSet) -> None:
        batch = some(train, FITTED, copies)
        self.count = len(batch[".row"])
        self.mean = matrix(copies, batch).mean(0)  # (F,)
        self.levels = {n: levels(item, batch[n]) for n, item in copies.items() if isinstance(item, ImageCopy)}

    def rows(self, copies: Mapping[str, Copy], data: TensorSet, prefix: str) -> Rows:
        """As `reconstructed`."""
        return _rows(copies, data, prefix, lambda x: self.mean.expand(len(x), -1))

    def nats(self, copies: Mapping[str, Copy], data: TensorSet) -> Tensor:
        """(N,) minus the log likelihood of each row, its pixels and columns independent of each other."""
        parts = []
        for batch in data.batches(ROWS):
            each = torch.zeros(len(batch[".row"]), dtype=torch.float64)
            outputs = self._outputs(copies, len(each))
            for name, item in copies.items():
                if name in outputs:
                    each += item.nats(outputs[name], batch[name]).double()
                elif self.levels[name] is not None:
                    each += _of_levels(self.levels[name], batch[name])  # type: ignore[arg-type]
                else:
                    each += torch.nan
            parts.append(each)
        return torch.cat(parts)

    def _outputs(self, copies: Mapping[str, Copy], rows: int) -> Batch:
        """What a network would return to say this, of numbers and words."""
        answers: Batch = {}
        place = 0
        for name, item in copies.items():
            size = sum(item.sizes) if isinstance(item, CategoryCopy) else len(item.columns)
            if isinstance(item, ImageCopy):
                place += int(np.prod(item.shape))
                continue
            part = self.mean[place : place + size]
            smooth = (part * self.count + 1).log() if isinstance(item, CategoryCopy) else part
            answers[name] = smooth.expand(rows, -1)
            place += size
        return answers


def levels(item: ImageCopy, encoded: Tensor) -> Tensor | None:
    """(levels, P) log shares of the values of each pixel, one more of each counted; None where pixels are no bytes.

    Binary pixels have two levels, others 256, so that this is a likelihood of the same kind as the network's; a density
    (gaussian) cannot be compared with it.
    """
    if encoded.dtype != torch.uint8 or item.likelihood not in ("bernoulli", "logistic"):
        return None
    count = 2 if item.likelihood == "bernoulli" else 256
    values = _levels_of(encoded, count)
    counts = torch.zeros(count, values.shape[1]).scatter_add_(0, values, torch.ones(values.shape)) + 1
    return (counts / counts.sum(0)).log()


def _levels_of(encoded: Tensor, count: int) -> Tensor:
    """(N, P) int64."""
    flat = encoded.flatten(1)
    return (flat > 127).long() if count == 2 else flat.long()


def _of_levels(shares: Tensor, encoded: Tensor) -> Tensor:
    return -shares.gather(0, _levels_of(encoded, len(shares))).sum(1).double()


def _rows(copies: Mapping[str, Copy], data: TensorSet, prefix: str, made: Callable[[Tensor], Tensor]) -> Rows:
    parts: dict[str, list[Tensor]] = {name: [] for name in copies}
    for batch in data.batches(ROWS):
        given = with_noise(copies, batch) if prefix else batch
        answers = parted(copies, made(matrix(copies, given, prefix)))
        for name, item in copies.items():
            parts[name].append(item.missed(answers[name], batch[name]).double())
    return {prefix + name: torch.cat(each) for name, each in parts.items()}
