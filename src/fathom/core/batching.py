"""Which rows make up each batch: a function of the seed and the epoch alone, so that training resumes anywhere.

    Epochs(data, size, seed, tokens, classes)    .steps batches an epoch; .cuts(epoch) the rows of each
    rows_at_a_time(data, device)                 how many rows to put through a network where nothing is learnt

Rows of equal length are shuffled. Rows of unequal length are put together with rows of about their own length, so that
little of a batch is filling, and the batches are shuffled (bucketing; Khomenko et al. 2016). A batch has a number of
rows, or as many as fit a number of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.core.tensors import Ragged, TensorSet

VALUES = {"cpu": 1 << 20}  # of the rows that go through a network together: what is made of them stays near the processor
VALUES_ELSEWHERE = 1 << 26  # on an accelerator, which wants much at once
POOL = 50  # batches whose rows are sorted by length together; few enough that an epoch is still shuffled


def epoch_steps(rows: int, size: int) -> int:
    """Batches of `size` rows in one pass over `rows`."""
    return max(1, -(-rows // size))


def rows_at_a_time(data: TensorSet, device: torch.device) -> int:
    """Rows, of about the size of the first, whose values together are what this device takes in its stride; at least 1."""
    first = data.batch(torch.arange(min(1, len(data))))
    values = sum(tensor.numel() for tensor in first.values())
    return max(1, VALUES.get(device.type, VALUES_ELSEWHERE) // max(1, values))


def epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """(rows,) the order of an epoch: a function of the seed and the epoch alone."""
    return torch.randperm(rows, generator=_generator(seed, epoch))


def balanced_order(classes: Tensor, seed: int, epoch: int) -> Tensor:
    """(N,) rows of an epoch in which every class comes equally often, drawn with replacement: of seed and epoch alone.

    Args:
        classes: (N,) integers.
        seed: of the draws.
        epoch: from 0.
    """
    generator = _generator(seed + 2, epoch)
    members = [(classes == one).nonzero()[:, 0] for one in classes.unique()]
    rows, count = len(classes), len(members)
    shares = [rows // count + (place < rows % count) for place in range(count)]
    drawn = [
        rows_of[torch.randint(len(rows_of), (share,), generator=generator)]
        for rows_of, share in zip(members, shares, strict=True)
    ]
    return torch.cat(drawn)[torch.randperm(rows, generator=generator)]


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


class Epochs:
    """The batches of each epoch.

    Args:
        data: the training rows.
        size: rows of a batch; the batches of an epoch differ by one row at most, so none is a tiny rest.
        tokens: filled-up length of a batch in all, instead of `size`; None where batches have a number of rows.
        seed: of the order.
        classes: (N,) integers of the rows, where every class is to come equally often; None where each row comes once.
    """

    def __init__(
        self, data: TensorSet, size: int, seed: int, tokens: int | None = None, classes: Tensor | None = None
    ) -> None:
        self.rows = len(data)
        self.classes = classes
        self.seed = seed
        self.size = size
        ragged = any(isinstance(column, Ragged) and not column.even for column in data.columns.values())
        self.lengths = data.lengths() if ragged else None
        self.bounds = _bounds(self.lengths.sort().values, tokens) if tokens and self.lengths is not None else None

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return epoch_steps(self.rows, self.size) if self.bounds is None else len(self.bounds)

    def cuts(self, epoch: int) -> tuple[Tensor, ...]:
        """The rows of each batch of an epoch."""
        order = self._order(epoch)
        if self.lengths is None:
            return order.tensor_split(self.steps)
        if self.bounds is None:
            pools = [self._sorted(pool) for pool in order.split(POOL * self.size)]
            cuts = torch.cat(pools).tensor_split(self.steps)
        else:
            cuts = self._sorted(order).split(self.bounds)
        shuffled = torch.randperm(len(cuts), generator=_generator(self.seed + 1, epoch)).tolist()
        return tuple(cuts[place] for place in shuffled)

    def _order(self, epoch: int) -> Tensor:
        if self.classes is None:
            return epoch_order(self.rows, self.seed, epoch)
        return balanced_order(self.classes, self.seed, epoch)

    def _sorted(self, rows: Tensor) -> Tensor:
        assert self.lengths is not None, "only rows of unequal length are sorted"
        return rows[self.lengths[rows].argsort(stable=True)]


def _bounds(lengths: Tensor, tokens: int) -> list[int]:
    """Rows of each batch, of rows in rising order of length, so that rows times the longest stay within `tokens`."""
    sizes, count = [], 0
    for length in lengths.clamp(min=1).tolist():
        if count and (count + 1) * length > tokens:
            sizes.append(count)
            count = 0
        count += 1
    return [*sizes, count]
