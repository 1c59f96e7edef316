"""What networks for sequences share: which steps exist, how a step is embedded, how steps become one vector.

    job(schema)        what is to be done: answer, continue, translate or restore
    present(x)         (B, T) bool
    StepEmbedding      tokens or measured values of each step -> (B, T, width)
    pool(...)          (B, T, width) -> (B, width), over the steps that exist
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fathom.core.contract import Field, Schema
from fathom.networks.parts import writes

PoolName = Literal["last", "mean", "max", "mean_max"]
Job = Literal["answer", "continue", "translate", "restore", "none"]
STEPS = "one text or series, with ordinary inputs beside it or none"  # what a network for sequences takes


def present(steps: Tensor) -> Tensor:
    """(B, T) which steps exist: tokens (B, T) other than 0, or values (B, T, F) whose last channel is not 0."""
    return steps[..., -1] > 0 if steps.is_floating_point() else steps != 0


def is_sequence(item: Field) -> bool:
    """Whether an input comes step by step."""
    return item.kind in ("text", "series")


def job(schema: Schema) -> Job:
    """What a network for sequences is to do, from its role's schema or that of the whole task.

    Returns:
        "answer" from one sequence and ordinary inputs beside it; "continue" a text; "translate" one sequence into a
        text; "restore" the hidden tokens of a text, which the target then reads from the same columns under another name;
        "none" where it can do nothing.
    """
    sources = [item for name, item in schema.inputs.items() if name not in schema.targets]  # a text reads itself too
    steps = sum(is_sequence(item) for item in sources)
    if not writes(schema):
        return "answer" if steps == 1 else "none"
    if len(schema.targets) > 1 or steps > 1 or steps != len(sources):
        return "none"
    (target,) = schema.targets.values()
    if any(item.kind == "text" and item.columns == target.columns for item in sources):
        return "restore"
    return "translate" if steps else "continue"


def at_least_one(exists: Tensor) -> Tensor:
    """(B, T) the same; a row without any step counts its first, since attention to nothing is not a number."""
    first = torch.arange(exists.shape[1], device=exists.device) == 0
    return exists | (first & ~exists.any(1, keepdim=True))


def surely(fact: Tensor) -> bool:
    """Whether a () fact holds, where looking costs nothing: on another device it would wait, and counts as unknown."""
    return fact.device.type == "cpu" and bool(fact)


class StepEmbedding(nn.Module):
    """Tokens (B, T) by a table, measured values (B, T, F) by a matrix -> (B, T, width).

    Args:
        item: the input, of kind text or series.
        width: of the result.
    """

    def __init__(self, item: Field, width: int) -> None:
        super().__init__()
        self.embed = (
            nn.Embedding(item.size, width, padding_idx=0)  # type: ignore[attr-defined]
            if item.kind == "text"
            else nn.Linear(item.shape[-1], width)
        )

    def forward(self, steps: Tensor) -> Tensor:
        """Embed each step."""
        embedded: Tensor = self.embed(steps)
        return embedded


def pool(states: Tensor, exists: Tensor, how: PoolName) -> Tensor:
    """(B, T, W) -> (B, W), or (B, 2 W) for "mean_max"; a row without any step gives zeros.

    Args:
        states: one vector a step.
        exists: (B, T) which steps count.
        how: the last step's vector, the mean, the largest value of each unit, or the last two side by side.
    """
    count = exists.sum(1, keepdim=True)  # (B, 1)
    if how == "last":
        places = torch.where(exists, torch.arange(exists.shape[1], device=exists.device), 0).amax(1)  # (B,)
        return states[torch.arange(len(states), device=states.device), places] * (count > 0)
    mean = (states * exists[..., None]).sum(1) / count.clamp(min=1)
    if how == "mean":
        return mean
    largest = states.masked_fill(~exists[..., None], -torch.inf).amax(1).masked_fill(count == 0, 0.0)
    return largest if how == "max" else torch.cat([mean, largest], 1)


def pooled_width(width: int, how: PoolName) -> int:
    """How wide `pool` makes `width`."""
    return 2 * width if how == "mean_max" else width
