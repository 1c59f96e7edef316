"""Known scores that a network is compared with: a clinical score, a rating, the estimate of an older model.

    check(names, columns), check_target      refuse what cannot be compared with, before anything is trained
    alone(schema, train, learnt, test)       each score as a baseline of its own -> (name -> outputs, notes)

A score (`data.compare`) is never an input. Beside a target of two classes the raw number orders the rows, and only the
areas under curves are told, since it is no probability; whether a larger one speaks for or against the class, the
training rows decide. Beside a number it is an estimate in the same unit.

In comments: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fathom.core.contract import Columns, Field, Schema
from fathom.core.errors import DataError, hint
from fathom.core.tensors import Batch, TensorSet
from fathom.fields.metrics import Ranking, hard
from fathom.fields.series import matrix


def label(name: str) -> str:
    """What the baseline is called."""
    return f"{name} alone"


def check(names: Sequence[str], columns: Columns) -> None:
    """Refuse scores that are not there or are no numbers.

    Args:
        names: data.compare.
        columns: the raw rows.

    Raises:
        DataError: says which, and what to do.
    """
    for name in names:
        if name not in columns:
            raise DataError(f"data.compare: there is no column '{name}'{hint(name, columns)}. It has: {_listed(columns)}.")
        if not np.isfinite(_numbers(columns, name)).any():
            raise DataError(f"data.compare: '{name}' holds no number; leave it out.")


def check_target(schema: Schema) -> None:
    """Refuse targets with which no single number can be compared; they are fitted.

    Raises:
        DataError: says which are allowed.
    """
    if len(schema.targets) != 1 or not _fits(next(iter(schema.targets.values()))):
        targets = ", ".join(f"'{name}' ({item.kind}: {item.describe()})" for name, item in schema.targets.items())
        raise DataError(
            f"data.compare needs one target, a number or of two classes, and here it is {targets or 'none'}; leave it out."
        )


def _fits(item: Field) -> bool:
    return (item.kind, item.outputs) in (("number", (1,)), ("category", (2,)))


def _listed(columns: Mapping[str, object]) -> str:
    return ", ".join(list(columns)[:12]) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")


def _numbers(columns: Columns, name: str) -> np.ndarray:
    """(N,) float64, nan where missing."""
    try:
        values: np.ndarray = matrix(columns, [name])[:, 0]
    except DataError as error:
        raise DataError(f"data.compare: '{name}' holds no numbers, and a score is one number a row; leave it out.") from error
    return values


def alone(schema: Schema, train: Columns, learnt: TensorSet, test: Columns) -> tuple[dict[str, Batch], list[str]]:
    """Each score as a baseline.

    Args:
        schema: fitted; `check` has let it pass.
        train: the scores of the training rows, raw.
        learnt: the training rows, encoded.
        test: N raw rows to answer.

    Returns:
        "NAME alone" -> target -> (N, *outputs); and sentences about rows without a score and scores without rows.
    """
    found: dict[str, Batch] = {}
    notes: list[str] = []
    for name in train:
        if name not in test:
            notes.append(f"There is no baseline '{label(name)}': these rows have no column '{name}'.")
            continue
        known, asked = _numbers(train, name), _numbers(test, name)
        if not np.isfinite(known).any():
            notes.append(f"There is no baseline '{label(name)}': no training row has a '{name}'.")
            continue
        middle = float(np.nanmedian(known))
        if missing := int((~np.isfinite(asked)).sum()):
            notes.append(
                f"{missing} of {len(asked)} rows have no '{name}'; as a baseline they get {middle:g}, the median of the "
                "training rows."
            )
        ((target, item),) = schema.targets.items()
        filled = np.where(np.isfinite(asked), asked, middle)
        if item.kind == "number":
            outputs = _estimate(item, filled)
        else:
            outputs = _order(filled * _direction(known, hard(learnt.column(target)).numpy(), _positive(item)), _positive(item))
        found[label(name)] = {target: outputs}
    return found, notes


def _positive(item: Field) -> int:
    """Which of the two classes the areas speak of."""
    named: int | None = item.positive_index()  # type: ignore[attr-defined]  # of a category
    return 1 if named is None else named


def _direction(known: np.ndarray, classes: np.ndarray, positive: int) -> float:
    """1 where a larger score speaks for the positive class among the training rows, else -1."""
    held = np.isfinite(known)
    ranking = Ranking.of(torch.from_numpy(known[held]), torch.from_numpy(classes[held] == positive))
    area = float(ranking.areas(torch.ones(1, int(held.sum()), dtype=torch.float64))[0])
    return -1.0 if area < 0.5 else 1.0


def _order(score: np.ndarray, positive: int) -> Tensor:
    """(N, 2) log probabilities in the order of the scores; equal scores get equal ones."""
    levels, place = np.unique(score, return_inverse=True)
    share = torch.from_numpy((place.reshape(-1) + 1) / (len(levels) + 1))  # (N,)
    parts = [1 - share, share] if positive == 1 else [share, 1 - share]
    return torch.stack(parts, 1).log().float()


def _estimate(item: Field, values: np.ndarray) -> Tensor:
    """(N, 1) standardized, as a network answers."""
    return torch.from_numpy((values - item.state["mean"]) / item.state["std"]).float().reshape(-1, 1)
