"""What stands behind the figures of a test: class by class, answer by answer, and by how sure an answer was.

    per_class(probability, target, names, weight)           rows, precision, recall, ... of each class
    per_label(probability, positive, answered, names, ...)  the same of each label
    confusion(probability, target, weight)                  how much of each class got which answer
    reliability(probability, target, weight)                how often the top answer is right, by its confidence

`weight` is that of the rows, as in the metrics, so that a page never shows two accuracies: the diagonal of the
matrix adds up to the accuracy, and the gaps of the reliability bins to the expected calibration error.

In comments: N rows, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fathom.fields.metrics import BINS, Ranking, bin_of, hard

Line = dict[str, Any]


def per_class(probability: Tensor, target: Tensor, names: Sequence[str], weight: Tensor | None = None) -> list[Line]:
    """One line for each class.

    Args:
        probability: (N, K).
        target: (N,) or soft (N, K).
        names: of the K classes.
        weight: (N,), or None where all rows count alike.

    Returns:
        name, rows, precision, recall, specificity, f1, auroc of each; None where a figure is not defined.
    """
    classes = torch.arange(len(names))
    positive = hard(target)[:, None] == classes  # (N, K)
    return per_label(probability, positive, probability.argmax(1)[:, None] == classes, names, weight)


def per_label(
    probability: Tensor, positive: Tensor, answered: Tensor, names: Sequence[str], weight: Tensor | None = None
) -> list[Line]:
    """One line for each label: name, rows, precision, recall, specificity, f1, auroc.

    Args:
        probability: (N, K) score of each label.
        positive: (N, K) bool, whether the row holds the label.
        answered: (N, K) bool, whether the label was answered.
        names: of the K labels.
        weight: (N,), or None where all rows count alike.
    """
    weight = _once(weight, len(positive))
    held, given, right = (
        (weight[:, None] * part).sum(0).tolist() for part in (positive, answered, positive & answered)
    )
    rows, total = positive.sum(0).tolist(), float(weight.sum())
    return [
        {
            "name": name,
            "rows": rows[k],
            **_rates(held[k], given[k], right[k], total),
            "auroc": _auroc(probability[:, k], positive[:, k], weight),
        }
        for k, name in enumerate(names)
    ]


def confusion(probability: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(K, K) how much of each true class (line) got each answer (column): int64 rows, or float64 sums of weights."""
    classes = probability.shape[1]
    cell = hard(target) * classes + probability.argmax(1)
    return torch.bincount(cell, weight, classes * classes).reshape(classes, classes)


def reliability(
    probability: Tensor, target: Tensor, weight: Tensor | None = None, bins: int = BINS
) -> list[dict[str, Any]]:
    """How often the top answer is right, by how sure it was.

    Args:
        probability: (N, K).
        target: (N,) or soft (N, K).
        weight: (N,), or None where all rows count alike.
        bins: of equal width; the upper bound belongs to a bin.

    Returns:
        low, high, rows, weight, mean confidence and accuracy of each bin that holds weight.
    """
    confidence, answer = probability.double().max(1)
    hit = (answer == hard(target)).double()
    place = bin_of(confidence, bins)
    weight = _once(weight, len(hit))
    rows = torch.bincount(place, minlength=bins).tolist()
    held, sure, right = (
        torch.bincount(place, weight * part, bins).tolist() for part in (torch.ones_like(hit), confidence, hit)
    )
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "rows": rows[i],
            "weight": held[i],
            "confidence": sure[i] / held[i],
            "accuracy": right[i] / held[i],
        }
        for i in range(bins)
        if held[i] > 0
    ]


def _once(weight: Tensor | None, rows: int) -> Tensor:
    """(N,) float64 weights."""
    return torch.ones(rows, dtype=torch.float64) if weight is None else weight.double()


def _rates(held: float, answered: float, right: float, total: float) -> dict[str, float | None]:
    """The rates of one class from the weight of the rows that hold it, got it as an answer, and both."""
    if held == 0:
        return dict.fromkeys(("precision", "recall", "specificity", "f1"))
    others = total - held
    return {
        "precision": right / answered if answered > 0 else 0.0,
        "recall": right / held,
        "specificity": 1 - (answered - right) / others if others > 1e-9 * total else None,
        "f1": 2 * right / (held + answered),
    }


def _auroc(score: Tensor, positive: Tensor, weight: Tensor) -> float | None:
    """None where one of the two sides has no weight."""
    area = float(Ranking.of(score, positive).areas(weight[None])[0][0])
    return None if area != area else area
