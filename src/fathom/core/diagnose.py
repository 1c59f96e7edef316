"""Why an update was not finite: the batch is replayed, and the row, layer and likely cause are named."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.contract import ROW, Algorithm, Batch
from fathom.core.device import undisturbed
from fathom.core.errors import NonFiniteError


def non_finite(algorithm: Algorithm, batch: Batch, step: int) -> NonFiniteError:
    """The error for the first update that was not finite.

    Args:
        algorithm: with the weights before that update.
        batch: the batch at hand.
        step: the number of the update, from 0.
    """
    row = bad_input(batch)
    if row is not None:
        where, cause = (
            f"input '{row[0]}' of row {row[1]}",
            "the data holds a value that is not finite; mend or drop that row",
        )
    else:
        with undisturbed():
            layer = bad_layer(algorithm, batch)
        rate = algorithm.context.recipe.training.learning_rate
        where = f"layer '{layer}'" if layer else "the loss or its gradient"
        lower = min(rate / 10, 0.01) if rate else 0.001
        cause = f"the learning rate {rate:g} is likely too high; try --lr {lower:g}" if rate else "the learning rate"
        cause += ", or training.clip=1"
    return NonFiniteError(
        f"Training stopped at step {step + 1}: {where} is not finite. Likely cause: {cause}. "
        "That step did not reach the weights."
    )


def bad_input(batch: Batch) -> tuple[str, int] | None:
    """The first input value that is infinite, as (field, row). NaN alone may mean "missing" and is left to the layer."""
    for name, tensor in batch.items():
        if tensor.is_floating_point() and tensor.ndim:
            bad = torch.isinf(tensor.reshape(len(tensor), -1)).any(1)
            if bool(bad.any()):
                position = int(bad.nonzero()[0])
                return name, int(batch[ROW][position]) if ROW in batch else position
    return None


def bad_layer(algorithm: Algorithm, batch: Batch) -> str | None:
    """The first layer whose output is not finite on this batch."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for model in algorithm.models.values()
        for name, module in model.named_modules()
        if name and not any(module.children())
    ]
    try:
        with torch.no_grad():
            for model in algorithm.models.values():
                model(batch)
    except (KeyError, RuntimeError):
        pass  # a role that does not read this batch
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
