"""What is watched during training: the loss that is trained and every metric, on the validation rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fathom.core.tensors import WEIGHT, Batch, TensorSet

if TYPE_CHECKING:
    from fathom.core.contract import Algorithm

Total = Callable[[Batch, Batch], Tensor]  # (outputs by target, encoded targets and weights) -> a scalar


def validation(algorithm: Algorithm, loss: Total, data: TensorSet) -> dict[str, float]:
    """The loss that is trained, and every metric; several targets have their name before the metric's.

    Args:
        algorithm: as it stands.
        loss: of rows whose outputs are known.
        data: the validation rows.

    Returns:
        name -> value, rows weighted as in training.
    """
    targets = algorithm.schema.targets
    outputs = algorithm.predictor().outputs(data)
    judged = TensorSet({n: column for n, column in data.columns.items() if n in targets or n == WEIGHT}, data.index)
    weight = judged.column(WEIGHT) if WEIGHT in judged.columns else None
    measured = {"loss": mean_loss(loss, outputs, judged, algorithm.context.device)}
    for name, target in targets.items():
        prefix = f"{name}." if len(targets) > 1 else ""
        metrics = target.metrics(outputs[name], judged.column(name), weight)
        measured.update({prefix + metric: float(value) for metric, value in metrics.items()})
    return measured


def mean_loss(loss: Total, outputs: Batch, data: TensorSet, device: torch.device, size: int = 4096) -> float:
    """The loss of all rows, a few thousand at a time: the mean of those of the parts, each with its weight.

    Args:
        loss: (outputs, batch) -> a scalar.
        outputs: target -> (N, *outputs).
        data: N rows: their targets, and weights where there are any.
        device: where the loss is computed.
        size: rows at a time.
    """
    total = weights = 0.0
    with torch.no_grad():
        for index in torch.arange(len(data)).split(size):
            batch = {name: tensor.to(device) for name, tensor in data.batch(index).items()}
            part = {name: output[index].to(device) for name, output in outputs.items()}
            weight = float(batch[WEIGHT].sum()) if WEIGHT in batch else float(len(index))
            total += weight * float(loss(part, batch))
            weights += weight
    return total / max(weights, 1e-12)
