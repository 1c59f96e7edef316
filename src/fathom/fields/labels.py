"""Labels: several yes-or-no answers at once, from several 0/1 columns or one column of lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fathom.core.contract import Columns, Field, Loss, hyperparameter
from fathom.core.errors import RowFaults
from fathom.core.registry import fields
from fathom.core.tensors import is_list, to_list
from fathom.fields import losses
from fathom.fields.metrics import multilabel

YES = {True, "1", "true", "True", "yes", "Yes"}
NO = {False, "0", "false", "False", "no", "No"}


@fields.register("labels")
class Labels(Field):
    """Several labels, each of which a row has or has not."""

    kind = "labels"
    headline = "f1"
    losses: ClassVar[dict[str, Loss]] = {
        "binary_cross_entropy": losses.binary_cross_entropy,
        "focal": losses.binary_focal,
    }
    threshold: float = hyperparameter(0.5, help="probability from which a label is answered")

    @property
    def shape(self) -> tuple[int, ...]:
        """One number a label."""
        return (len(self.state["classes"]),)

    @property
    def outputs(self) -> tuple[int, ...]:
        """One logit a label."""
        return (len(self.state["classes"]),)

    def fit(self, chunks: Iterable[Columns]) -> None:
        """The labels: the columns themselves, or all words of the lists."""
        found: set[str] = set()
        columns = len(self.columns)
        for chunk in chunks:
            column = chunk[self.columns[0]]
            if isinstance(column, np.ndarray):
                found.update(str(i) for i in range(column.shape[1]))
            elif is_list(column.type):
                found.update(str(word) for row in to_list(column) for word in row or ())
        self.state = {"classes": sorted(found) if found or columns == 1 else list(self.columns)}
        self.state["from_columns"] = not found and columns > 1

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """(N, K) float32 of 0 and 1."""
        first = columns[self.columns[0]]
        if isinstance(first, np.ndarray):
            return torch.from_numpy(first.astype(np.float32))
        encoded = torch.zeros(columns.rows, len(self.state["classes"]))
        faults = self._flags(columns, encoded) if self.state["from_columns"] else self._words(to_list(first), encoded)
        if faults and target:
            raise RowFaults(faults, encoded)
        return encoded

    def _flags(self, columns: Columns, encoded: Tensor) -> dict[int, str]:
        """Fill (N, K) from a column a label; the rows that say neither yes nor no."""
        faults: dict[int, str] = {}
        for place, name in enumerate(self.columns):
            for row, value in enumerate(to_list(columns[name])):
                if value in YES:
                    encoded[row, place] = 1.0
                elif value not in NO:
                    faults[row] = f"'{name}' is {value!r}, neither yes nor no"
        return faults

    def _words(self, rows: list[Any], encoded: Tensor) -> dict[int, str]:
        """Fill (N, K) from lists of words; the rows that are missing or hold an unknown label."""
        faults: dict[int, str] = {}
        place_of = {word: place for place, word in enumerate(self.state["classes"])}
        for row, words in enumerate(rows):
            if words is None:
                faults[row] = f"'{self.columns[0]}' is missing (a row without any label is an empty list)"
                continue
            for word in map(str, words):
                if word in place_of:
                    encoded[row, place_of[word]] = 1.0
                else:
                    faults[row] = f"'{self.columns[0]}' holds '{word}', a label that no training row has"
        return faults

    def decode(self, output: Tensor) -> list[Any]:
        """The labels above the threshold, and the probability of each."""
        shares = output.float().sigmoid()
        names = self.state["classes"]
        return [
            {
                "answer": [name for name, p in zip(names, row, strict=True) if p >= self.threshold],
                "confidence": round(min(max(p, 1 - p) for p in row), 6),
                "probabilities": {name: round(p, 6) for name, p in zip(names, row, strict=True)},
            }
            for row in shares.tolist()
        ]

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Metrics over all labels."""
        return multilabel(output.double().sigmoid(), target, weight, self.threshold)

    def describe(self) -> str:
        """The labels."""
        return f"{len(self.state.get('classes', []))} labels at once"
