"""Small tasks with texts and series, fitted and encoded, for tests that try every network.

task(kind)              one of KINDS           -> (schema of the whole task, rows)
role(schema)            what the network sees of it
words(texts, ...)       a text field and its encoded rows
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fathom.core.contract import Columns, Field, Schema, TensorSet
from fathom.core.prepare import encode
from fathom.core.registry import algorithms, fields

TEXTS = ["the cat sat", "a dog", "the dog sat on the cat", "a", "cat and dog and cat", "the end of it"]
ANSWERS = ["die Katze sass", "ein Hund", "der Hund sass auf der Katze", "ein", "Katze und Hund", "das Ende"]
PAST, AHEAD, MOMENTS = 6, 2, 20


def _series() -> list[list[list[float | None]]]:
    """Six rows of two channels, of unequal length, with gaps."""
    random = np.random.default_rng(0)
    rows: list[list[list[float | None]]] = [random.normal(size=(length, 2)).tolist() for length in (3, 5, 1, 4, 2, 5)]
    rows[1][2][0] = None
    return rows


ROWS = Columns(
    {
        "text": TEXTS, "answer": ANSWERS, "series": pa.array(_series()), "class": ["x", "y", "z"] * 2, "size": np.arange(6.0),
        "a": np.random.default_rng(1).normal(size=6),
    }
)  # fmt: skip
MANY = Columns({name: np.random.default_rng(i).normal(size=MOMENTS) for i, name in enumerate("abc")})
MANY = Columns({**MANY, "class": [("x", "y", "z")[i % 3] for i in range(MOMENTS)]})

TEXT: dict[str, Any] = {"text": ("text", ["text"], {})}
ROW: dict[str, Any] = {"series": ("series", ["series"], {})}
WINDOW: dict[str, Any] = {"series": ("series", ["a", "b"], {"past": PAST})}
TABLE: dict[str, Any] = {"numbers": ("number", ["a"], {})}
CLASS: dict[str, Any] = {"class": ("category", ["class"], {})}
SIZE: dict[str, Any] = {"size": ("number", ["size"], {})}
WRITTEN: dict[str, Any] = {"answer": ("text", ["answer"], {"level": "character"})}


def _forecast(*columns: str, **options: Any) -> dict[str, Any]:
    return {"next": ("forecast", list(columns), {"horizon": AHEAD, **options})}


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": (TEXT, CLASS),
    "text and table": ({**TABLE, **TEXT}, CLASS),
    "text, two targets": (TEXT, {**CLASS, **SIZE}),
    "series": (ROW, CLASS),
    "series and table": ({**ROW, **TABLE}, SIZE),
    "window": (WINDOW, CLASS),
    "forecast": (WINDOW, _forecast("b")),
    "forecast, two columns": (WINDOW, _forecast("b", "a")),
    "forecast, quantiles": (WINDOW, _forecast("a", "b", quantiles=(0.1, 0.5, 0.9))),
    "forecast of another column": (WINDOW, _forecast("c")),
    "language": ({}, WRITTEN),
    "translation": (TEXT, WRITTEN),
    "series to text": (ROW, WRITTEN),
    "text and series": ({**TEXT, **ROW}, CLASS),
    "two texts to one": ({**TEXT, "more": ("text", ["answer"], {})}, WRITTEN),
}


def task(kind: str) -> tuple[Schema, TensorSet]:
    """The fitted schema of a task, and its rows."""
    inputs, targets = KINDS[kind]
    schema = Schema(*({name: fields[k].make(c, **o) for name, (k, c, o) in part.items()} for part in (inputs, targets)))
    windows = any(item.window for item in schema.fields().values())
    columns = MANY if windows else ROWS
    for item in schema.fields().values():
        item.fit([columns.select(item.columns)])
    rows, faults = encode(schema, columns)
    assert not faults
    return schema, rows.subset(torch.arange(PAST - 1, MOMENTS - AHEAD)) if windows else rows


def role(schema: Schema) -> Schema:
    """What the network of a task sees: a text that is written is read as well."""
    entry = next(entry for entry in algorithms if entry.about["suits"](schema))
    part: Schema = entry.make.roles(schema)["model"]
    return part


def words(texts: list[Any], target: bool = False, **options: Any) -> tuple[Field, torch.Tensor]:
    """A text field of whole words, and the rows (N, T) filled up."""
    item = fields["text"].make(["t"], **{"level": "word", **options})
    columns = Columns({"t": pa.chunked_array([pa.array(texts)])})
    item.fit([columns])
    return item, item.encode(columns, target=target).gather(torch.arange(len(texts)))[0]
