"""Which tokens of a text are hidden from a network that is to guess them (Devlin et al. 2019, section 3.1).

    plain(tokens, continuous)        rows as a network reads them: without START and END
    drawn(shape, seed, step)         draws of training: other tokens are hidden at every step (Liu et al. 2019, RoBERTa)
    fixed(rows, length)              draws of measuring: the same for a row whenever, and beside whatever, it is measured
    hide(tokens, draws, size)        -> what is given to the network, and what it is to guess

The vocabulary holds no token for "hidden": its number is `size`, one past the last, and a network for this task has a
learnt vector for it. So a vocabulary, and the table of a network that reads it, are the same with and without masking.

In comments: B rows, T tokens, V = size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fathom.fields.vocabulary import END, PAD, SPECIAL

SHARE = 0.15  # of the tokens of a row
HIDDEN, CHANGED = 0.8, 0.1  # of those: given as hidden, given as another token; the rest are given as they are
SALT = 0x4D41534B  # so that rows are not drawn by the very numbers that the same seed gave elsewhere


def plain(tokens: Tensor, continuous: bool) -> Tensor:
    """Rows as they are read where nothing is to be written.

    Args:
        tokens: (B, T) a target: START, tokens, END, then PAD.
        continuous: whether the rows are pieces of one text, which stand without START and END already.

    Returns:
        (B, T - 2) the same between START and END; or all of it.
    """
    return tokens if continuous else tokens[:, 1:-1].masked_fill(tokens[:, 1:-1] == END, PAD)


def drawn(shape: torch.Size, seed: int, step: int) -> Tensor:
    """(B, T, 3) numbers in [0, 1) that depend on the seed and the step alone.

    Args:
        shape: (B, T).
        seed: of the run.
        step: of the stage.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step + SALT) % 2**63)
    return torch.rand((*shape, 3), generator=generator)


def fixed(rows: Tensor, length: int) -> Tensor:
    """(B, T, 3) numbers in [0, 1) that depend on the number of the row and the place in it alone.

    Args:
        rows: (B,) numbers of the rows.
        length: T.
    """
    each = [np.random.default_rng((SALT, row)).random((length, 3)) for row in rows.tolist()]
    return torch.from_numpy(np.stack(each))


def hide(tokens: Tensor, draws: Tensor, size: int, share: float = SHARE) -> tuple[Tensor, Tensor]:
    """Hide a share of the tokens of each row, one at least; special ones stay.

    Args:
        tokens: (B, T) as `plain` gives them.
        draws: (B, T, 3) of `drawn` or `fixed`: which tokens, in which way, and by which other token.
        size: V of the vocabulary; the number of a hidden token.
        share: of the tokens of a row, rounded.

    Returns:
        (B, T) what is given, and (B, T) what is to be guessed: the token at each chosen place, PAD elsewhere.
    """
    tokens, draws = tokens.long(), draws.to(tokens.device)
    able = tokens >= len(SPECIAL)
    count = (able.sum(1, keepdim=True) * share).round().clamp(min=1)  # (B, 1)
    rank = draws[..., 0].masked_fill(~able, torch.inf).argsort(dim=1, stable=True).argsort(1)  # (B, T)
    chosen = able & (rank < count)
    others = len(SPECIAL) + (draws[..., 2] * (size - len(SPECIAL))).long()
    changed = torch.where(draws[..., 1] < HIDDEN + CHANGED, others, tokens)
    changed = changed.masked_fill(draws[..., 1] < HIDDEN, size)
    return torch.where(chosen, changed, tokens), tokens.masked_fill(~chosen, PAD)
