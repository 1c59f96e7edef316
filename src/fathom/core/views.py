"""Test-time augmentation: what is deployed answers with the mean over several views of each row.

    over_views(schema, forward) -> forward

The views are the input fields' (`Field.viewed`; for pictures `data.image.views`), so they are written with the schema and
hold wherever the model is asked. Outputs are averaged as they are: numbers are, and for a category the mean of logits
is the mean of log-probabilities but for one constant a row, which the softmax takes out. All of it is differentiable.

Rows whose features were cached (see `features`) were seen once, as they are, and are judged so while the head is trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fathom.core.contract import Schema
from fathom.core.tensors import FEATURES, Batch

Forward = Callable[[Batch], Batch]


def over_views(schema: Schema, forward: Forward) -> Forward:
    """The mean of `forward` over the views that the input fields state; `forward` itself where each states one.

    Args:
        schema: its inputs say how they are viewed; where several do, their views go together, first with first.
        forward: batch -> output (B, *outputs) of each target.
    """

    def averaged(batch: Batch) -> Batch:
        if FEATURES in batch:
            return forward(batch)
        seen = {name: item.viewed(batch[name]) for name, item in schema.inputs.items()}
        count = max(map(len, seen.values()), default=1)
        if count == 1:
            return forward(batch)
        made = [
            forward({**batch, **{name: views[view % len(views)] for name, views in seen.items()}})
            for view in range(count)
        ]
        return {name: torch.stack([outputs[name] for outputs in made]).mean(0) for name in made[0]}

    return averaged
