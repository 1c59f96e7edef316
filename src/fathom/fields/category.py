"""Categories: words, booleans or small integers. As a target one column; as an input one or many.

As an input, 0 stands for what was missing or never seen in training, so a new category has a defined place. As a target
the codes run from 0 and an unknown class is a fault. A target may also come as an array of soft rows (N, K), which say
the share of each class; a source hands one-hot rows over as class numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, Loss, hyperparameter
from fathom.core.errors import DataError, RowFaults, hint
from fathom.core.registry import fields
from fathom.core.tensors import Column
from fathom.fields import losses
from fathom.fields.metrics import classification


@fields.register("category")
class Category(Field):
    """One of several classes; or, as an input, one or many columns of words."""

    kind = "category"
    headline = "accuracy"
    losses: ClassVar[dict[str, Loss]] = {"cross_entropy": losses.cross_entropy, "focal": losses.focal}
    one_hot: int = hyperparameter(32, help="columns of more categories than this are embedded instead of one-hot")
    limit: int = hyperparameter(10_000, help="the most frequent categories that are kept of each input column")
    positive: str | None = hyperparameter(None, help="the class that precision, recall and F1 speak of")
    cost: dict[str, float] = hyperparameter({}, help="decide by what a miss and a false alarm cost, {miss = 100, alarm = 1}")
    beta: float | None = hyperparameter(None, help="decide by the best F-beta; 2 cares twice as much for recall as for precision")
    alerts: float | None = hyperparameter(None, help="decide so that about this many of 1,000 rows are the positive class")

    @property
    def shape(self) -> tuple[int, ...]:
        """One-hot and embedded widths together."""
        return (sum(width(len(words) + 1, self.one_hot) for words in self.state["vocabularies"]),)

    @property
    def classes(self) -> list[str]:
        """Names of the classes of a target, in the order of the outputs."""
        return list(self.state["classes"])

    @property
    def outputs(self) -> tuple[int, ...]:
        """One logit a class."""
        return (len(self.state["classes"]),)

    def fit(self, chunks: Iterable[Columns]) -> None:
        """The words of each column, sorted; numbers in their own order."""
        counts: list[Counter[str]] = [Counter() for _ in self.columns]
        shares = 0  # K, where the target comes as soft rows
        kind = "text"
        for chunk in chunks:
            for name, counter in zip(self.columns, counts, strict=True):
                column = chunk[name]
                if isinstance(column, np.ndarray):
                    shares = column.shape[1]
                else:
                    kind = _type_of(column)
                    counter.update(_count(column))
        words = [[word for word, _ in counter.most_common(self.limit)] for counter in counts]
        self.state = {"vocabularies": [sorted(column, key=_natural) for column in words]}
        self.state["rarer"] = sum(len(counter) - len(column) for counter, column in zip(counts, words, strict=True))
        self.state["classes"] = [str(i) for i in range(shares)] or self.state["vocabularies"][0]
        self.state["type"] = "int" if shares else kind
        if len(counts) == 1 and not shares:
            self.state["counts"] = [counts[0][word] for word in self.classes]

    def is_alike(self, other: Field) -> bool:
        """Whether the classes are the same, in the same order."""
        return isinstance(other, Category) and self.state["classes"] == other.state["classes"]

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """Target: (N,) int64 class, or (N, K) float32 soft rows. Input: (N, columns) int32, 0 for unknown."""
        return self._classes(columns[self.columns[0]]) if target else self._codes(columns)

    def _codes(self, columns: Columns) -> Tensor:
        parts = [
            _lookup(_words(columns[name], name), words) + 1
            for name, words in zip(self.columns, self.state["vocabularies"], strict=True)
        ]
        return torch.from_numpy(np.column_stack(parts).astype(np.int32))

    def _classes(self, column: Column) -> Tensor:
        if isinstance(column, np.ndarray):
            return self._soft(column)
        if len(self.state["classes"]) < 2:
            raise DataError(
                f"'{self.columns[0]}' has one class only in the training rows: {self.state['classes'] or 'none'}. "
                "There is nothing to tell apart; choose another --target, or give rows of a second class."
            )
        codes = _lookup(column, self.classes).astype(np.int64)
        unseen = np.flatnonzero(codes < 0)
        if len(unseen):
            faults = {}
            for row in unseen.tolist():
                word = text(column[row].as_py())
                faults[row] = (
                    f"'{self.columns[0]}' is missing"
                    if word is None
                    else f"'{self.columns[0]}' is '{word}', a class that no training row has"
                    f"{hint(word, self.classes)}"
                )
            raise RowFaults(faults, torch.from_numpy(np.maximum(codes, 0)))
        return torch.from_numpy(codes)

    def _soft(self, rows: np.ndarray) -> Tensor:
        """(N, K) float32 shares of the classes; rows that are no shares are faults."""
        shares = torch.from_numpy(rows.astype(np.float32))
        is_share = (rows >= 0).all(1) & (np.abs(rows.sum(1, dtype=np.float64) - 1) < 1e-3)  # nan is none either
        if is_share.all():
            return shares
        wrong = np.flatnonzero(~is_share)
        reason = f"'{self.columns[0]}' holds no shares of classes, which are 0 or more and sum to 1"
        shares[wrong] = 0.0
        raise RowFaults(dict.fromkeys(wrong.tolist(), reason), shares)

    def layer(self) -> nn.Module:
        """One-hot for few categories, a learned table for many."""
        return Embed([len(words) + 1 for words in self.state["vocabularies"]], self.one_hot)

    def decode(self, output: Tensor) -> list[Any]:
        """The likeliest class, in the type that it came in, its probability, and the probability of each.

        Where a threshold was chosen for the positive class (`analysis/decision`), the answer is the decision at it:
        the positive class from the threshold on, else the likeliest of the others. The threshold stands beside.
        """
        shares = output.float().softmax(1)  # (N, K)
        chosen = self.state.get("decision")
        told = {"threshold": round(chosen["threshold"], 6)} if chosen else {}
        back = BACK[self.state.get("type", "text")]
        return [
            {
                "answer": back(self.classes[top]),
                "confidence": round(row[top], 6),
                "probabilities": dict(zip(self.classes, (round(p, 6) for p in row), strict=True)),
                **told,
            }
            for top, row in zip(self.decide(shares).tolist(), shares.tolist(), strict=True)
        ]

    def decide(self, probability: Tensor) -> Tensor:
        """(N, K) probabilities -> (N,) the class that is answered."""
        chosen = self.state.get("decision")
        if chosen is None:
            return probability.argmax(1)
        positive: int = chosen["positive"]
        others = probability.clone()
        others[:, positive] = -1.0
        alarm = probability[:, positive] >= chosen["threshold"]
        return torch.where(alarm, positive, others.argmax(1))

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Counting, ranking and probability metrics; of the positive class where one is named."""
        return classification(output.double().softmax(1), target, weight, self.positive_index())

    def positive_index(self) -> int | None:
        """Which class is the positive one; None where none was named.

        Raises:
            DataError: the named class is not there.
        """
        if self.positive is None:
            return None
        if self.positive not in self.classes:
            raise DataError(
                f"data.category.positive = '{self.positive}' is not a class of '{self.columns[0]}'"
                f"{hint(self.positive, self.classes)}. Classes: {', '.join(self.classes[:10])}."
            )
        return self.classes.index(self.positive)

    def describe(self) -> str:
        """Classes of a target, or columns of an input; and how many categories were too rare to keep."""
        rarer = self.state.get("rarer", 0)
        cut = f"; {rarer:,} rarer ones are read as unknown (data.category.limit = {self.limit})" if rarer else ""
        if len(self.columns) == 1:
            classes = self.state.get("classes", [])
            return f"{len(classes)} classes: {', '.join(classes[:8])}" + (" ..." if len(classes) > 8 else "") + cut
        return f"{len(self.columns)} categorical: {', '.join(self.columns[:8])}" + (
            (" ..." if len(self.columns) > 8 else "") + cut
        )


def text(value: Any) -> str | None:
    """The word for a raw value: whole floats lose their point, so that 3 and 3.0 are one class."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


# A class in the type that it came in. Fractions are rare, and whole numbers with gaps come as fractions: text() says how.
BACK: dict[str, Callable[[str], Any]] = {
    "text": str,
    "bool": lambda word: word == "True",
    "int": int,
    "float": lambda word: int(word) if word.lstrip("-").isdigit() else float(word),
}


def _type_of(column: pa.ChunkedArray) -> str:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    tests = {"bool": pa.types.is_boolean, "int": pa.types.is_integer, "float": pa.types.is_floating}
    return next((name for name, fits in tests.items() if fits(kind)), "text")


def _natural(word: str) -> tuple[int, float, str]:
    """Numbers by size before words by letter."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    return (0, number, word) if math.isfinite(number) else (1, 0.0, word)


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column.combine_chunks()) if column.num_chunks else pa.array([])
    found: Counter[str] = Counter()
    for entry in counted:
        word = text(entry["values"].as_py())
        if word is not None:
            found[word] += entry["counts"].as_py()
    return found


def _words(column: Column, name: str) -> pa.ChunkedArray:
    """The column of an input, which holds one value a row."""
    if isinstance(column, np.ndarray):
        raise DataError(f"'{name}' has an array in each row {column.shape[1:]}; a category is one value a row.")
    return column


def _lookup(column: pa.ChunkedArray, words: list[str]) -> np.ndarray:
    """(N,) place of each value in `words`, -1 where it is missing or unknown."""
    place = {word: i for i, word in enumerate(words)}
    parts = []
    for chunk in column.chunks:
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        known = [place.get(text(value) or "", -1) for value in coded.dictionary.to_pylist()]
        table = np.array([*known, -1], np.int64)
        parts.append(table[pc.fill_null(coded.indices, len(known)).to_numpy(zero_copy_only=False)])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def width(categories: int, one_hot: int) -> int:
    """Features of a column: one a category, or the size of its embedding (fastai's rule of thumb)."""
    return categories if categories <= one_hot else min(64, round(1.6 * categories**0.56))


class Embed(nn.Module):
    """(B, columns) int codes -> (B, features): one-hot side by side, then embeddings."""

    def __init__(self, sizes: list[int], one_hot: int) -> None:
        super().__init__()
        small = [i for i, size in enumerate(sizes) if size <= one_hot]
        large = [i for i, size in enumerate(sizes) if size > one_hot]
        offsets = np.concatenate([[0], np.cumsum([sizes[i] for i in small])]).astype(np.int64)
        self.total = int(offsets[-1])
        self.large = large
        self.register_buffer("small", torch.tensor(small, dtype=torch.int64), persistent=False)
        self.register_buffer("offsets", torch.from_numpy(offsets[:-1]), persistent=False)
        self.tables = nn.ModuleList([nn.Embedding(sizes[i], width(sizes[i], one_hot)) for i in large])
        for table in self.tables:  # a category never seen says nothing, where none was missing in training either
            nn.init.zeros_(table.weight.data[0])  # type: ignore[index]

    small: Tensor
    offsets: Tensor

    def forward(self, codes: Tensor) -> Tensor:
        """(B, columns) -> (B, features)."""
        places = codes.index_select(1, self.small).long() + self.offsets  # (B, small)
        hot = torch.zeros(len(codes), self.total, device=codes.device).scatter_(1, places, 1.0)
        embedded = [table(codes[:, i].long()) for i, table in zip(self.large, self.tables, strict=True)]
        return torch.cat([hot, *embedded], 1)
