"""Augmentations of whole series: `f(batch, schema, generator, strength) -> batch`, composed by `augment.transform`.

    cut        a row ends early, so that the network learns to answer before the end
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.core.contract import Batch, Schema
from fathom.core.registry import augmentation

SHORTEST = 0.125  # of a row that is cut: the shortest stretch at which `analysis/early` judges


@augmentation("cut", range=(0.0, 1.0), reads="series", whole=True, order=5)
def cut(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """End each series early with probability `strength`: after an eighth of its moments to all, even in the logarithm."""
    names = [name for name, item in schema.inputs.items() if item.kind == "series"]
    rows = len(batch[names[0]])
    share = SHORTEST ** torch.rand(rows, generator=generator)  # (B,) as often from 1/4 to 1/2 as from 1/2 to all
    share = torch.where(torch.rand(rows, generator=generator) < strength, share, 1.0)
    changed = dict(batch)
    for name in names:
        mask = batch[f"{name}.mask"]  # (B, T)
        ends = (mask.sum(1) * share.to(mask.device)).ceil()  # (B,) the same moment in every series of a row
        kept = mask & (mask.cumsum(1) <= ends[:, None])
        changed[name] = _shown(batch[name], kept)
        changed[f"{name}.mask"] = kept
    return changed


def _shown(values: Tensor, kept: Tensor) -> Tensor:
    """(B, T, C) with nan where nothing is kept (B, T)."""
    return torch.where(kept[:, :, None], values, torch.nan)
