"""What a score of anomalies is worth, and which columns it comes from.

    anomalies(...)   the score against a label of two classes that nobody learnt from, beside PCA error, isolation forest
                     (Liu et al. 2008) and the distance to the fifth nearest training row (Ramaswamy et al. 2000)
    worst, shares    the strangest rows, and the share of each column in a row's score

In comments: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis.baseline_copies import FITTED, Linear, matrix, some
from fathom.analysis.copied import ROWS, scored, scores_of
from fathom.analysis.evaluate import results as evaluated
from fathom.core.contract import Columns, Field, Predictor, Schema, TensorSet
from fathom.core.errors import count_text
from fathom.core.registry import fields
from fathom.core.tensors import Column
from fathom.fields.copies import (
    LABEL,
    THRESHOLD,
    Copy,
    copies_of,
)

REMEMBERED = 5_000  # training rows among which the nearest is searched
NEIGHBOR = 5



def share_above(item: Copy, scores: Tensor) -> float | None:
    """The share of the scores beyond the threshold that was chosen; None where none was."""
    threshold = item.state.get(THRESHOLD)
    return None if threshold is None else float((scores > threshold).double().mean())


@dataclass(frozen=True)
class Known:
    """What is known of the rows: which of two classes, the rarer being the anomaly.

    Args:
        field: of the label, fitted on the judged rows.
        rows: (N,) those that have one.
        codes: (N,) class of each of them.
        rare: its word.
    """

    field: Field
    rows: Tensor
    codes: Tensor
    rare: str


def known(label: Column) -> Known | None:
    """The label of the rows, where it tells two classes apart."""
    if isinstance(label, np.ndarray):
        return None
    rows = np.flatnonzero(~np.array(label.is_null(nan_is_null=True).to_pylist(), bool))
    columns = Columns({LABEL: label}).take(rows)
    item: Field = fields["category"].make([LABEL])
    item.fit([columns])
    if len(item.state["classes"]) != 2:
        return None
    codes = item.encode(columns, target=True)
    assert isinstance(codes, Tensor), "one class a row"
    rare = int(torch.bincount(codes, minlength=2).argmin())
    made: Field = fields["category"].make([LABEL], positive=item.state["classes"][rare])
    made.state = item.state
    return Known(made, torch.from_numpy(rows), codes, str(item.state["classes"][rare]))


def anomalies(
    predictor: Predictor, copies: Mapping[str, Copy], train: TensorSet, test: TensorSet, scores: Tensor, label: Column,
    seed: int, blocks: np.ndarray | None,
) -> dict[str, Any]:  # fmt: skip
    """How well the score tells the rarer of two classes that nobody learnt from; empty where the label has not two.

    Args:
        predictor, copies, seed, blocks: as for `results`.
        train: encoded training rows.
        test: N encoded rows.
        scores: (N,) of the network.
        label: (N,) raw.
    """
    told = known(label)
    if told is None:
        return {}
    others = rival_scores(copies, train, test, seed)
    sign = 1 if told.field.state["classes"].index(told.rare) == 1 else -1
    ranks = {name: _as_logits(each[told.rows], sign) for name, each in {"network": scores, **others}.items()}
    part = None if blocks is None else blocks[told.rows.numpy()]
    rows = TensorSet({LABEL: told.codes})
    made = evaluated(
        {LABEL: ranks.pop("network")}, {n: {LABEL: r} for n, r in ranks.items()}, rows, Schema({}, {LABEL: told.field}), seed,
        "auprc", part, orders=set(ranks),
    )  # fmt: skip
    areas = {metric: made["test"][metric] for metric in ("auroc", "auprc") if metric in made["test"]}
    count = int((told.codes == told.field.state["classes"].index(told.rare)).sum())
    says = [
        f"Anomaly score against '{told.rare}' ({count_text(count, 'row')} of {len(told.rows):,}), which was not learnt from"
    ]
    for name, table in {"network": areas, **made["baseline"]}.items():
        words = ", ".join(f"{m.upper()} {table[m]['value']:.3f}" for m in ("auroc", "auprc") if m in table)
        says.append(f"{name} {words}")
    return {
        "positive": told.rare,
        "test": areas,
        "baseline": made["baseline"],
        "difference": made["difference"],
        "says": f"{says[0]}: {'; '.join(says[1:])}.",
    }


def _as_logits(scores: Tensor, sign: int) -> Tensor:
    """(N, 2) logits in the order of the scores, whatever their size: the rank, spread over a few logits."""
    order = scores.unique(return_inverse=True)[1].double()
    spread = order / order.max().clamp(min=1) * 8 - 4
    return torch.stack([torch.zeros_like(spread), sign * spread], 1)


def rival_scores(copies: Mapping[str, Copy], train: TensorSet, test: TensorSet, seed: int) -> dict[str, Tensor]:
    """(N,) of each baseline: the larger, the stranger. PCA keeps a third of the features, sixteen at most."""
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import NearestNeighbors

    x, y = (matrix(copies, some(train, most, copies)).numpy() for most in (FITTED, REMEMBERED))
    asked = [matrix(copies, batch).numpy() for batch in test.batches(ROWS)]
    forest = IsolationForest(random_state=seed).fit(x)
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOR, len(y))).fit(y)
    return {
        "PCA error": Linear(copies, train, max(1, min(16, x.shape[1] // 3)), seed).errors(copies, test),
        "isolation forest": torch.from_numpy(np.concatenate([-forest.score_samples(part) for part in asked])).double(),
        "nearest rows": torch.from_numpy(
            np.concatenate([nearest.kneighbors(part)[0][:, -1] for part in asked])
        ).double(),
    }


def worst(predictor: Predictor, test: TensorSet, label: Column | None, count: int = 12) -> list[dict[str, Any]]:
    """The rows of the largest score, with the share of the columns that contribute most."""
    scores = scores_of(predictor, test)
    usual = float(scores.median())
    top = scores.topk(min(count, len(scores))).indices
    parts = shares(predictor, test.subset(top))
    lines = []
    for place, row in enumerate(top.tolist()):
        truth = "" if label is None or isinstance(label, np.ndarray) else str(label[row].as_py())
        most = list(parts[place].items())[:3] if len(parts[place]) > 1 else []
        names = "".join(f"; {name} {share:.0%}" for name, share in most)
        answer = f"score {float(scores[row]):.4g} (half of the rows: under {usual:.4g}){names}"
        target = next(iter(predictor.schema.targets))
        lines.append({"row": row, "target": target, "truth": truth, "answer": answer, "confidence": None})
    return lines


def shares(predictor: Predictor, data: TensorSet) -> list[dict[str, float]]:
    """Column -> its share of the row's error, the largest first."""
    names = [name for item in copies_of(predictor.schema).values() for name in item.names]
    made = scored(predictor, "columns", data).double()
    made = made / made.sum(1, keepdim=True).clamp(min=1e-12)
    return [
        {names[i]: round(float(row[i]), 4) for i in row.argsort(descending=True, stable=True).tolist()} for row in made
    ]
