"""`fathom embed`: each input as one vector, near to those of inputs that are alike.

    embed(run, *inputs) -> (N, D)       the vectors
    embedding(run, *inputs)             the same with the names of the rows
    nearest(vectors)                    the pairs whose vectors point the same way most
    write_codes(made, path)             as .npy, .csv or .parquet

What the vector is, the algorithm says (`scores["embed"]` of its predictor): the mean of what a network makes of the tokens
of a text, or what the last layer reads.

In comments: N rows, D numbers of a vector.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.analysis.language import ROWS
from fathom.core.contract import Predictor, Schema
from fathom.core.errors import DataError, FathomError
from fathom.core.run import write_atomic
from fathom.core.tensors import TensorSet, to_list
from fathom.verbs.generate import text_target
from fathom.verbs.predict import encode_all, harmless, read_some, refuse_input
from fathom.verbs.result import Run, load

PAIRS = 5  # shown
COMPARED = 2_000  # rows whose pairs are searched; all pairs of more take too long to be of use
LONGEST = 50  # characters of an input that is shown
ENDINGS = (".npy", ".csv", ".parquet")


@dataclass(frozen=True)
class Embedding:
    """Vectors and what they stand for.

    Args:
        names: of the rows, N.
        vectors: (N, D) float32.
    """

    names: list[str]
    vectors: np.ndarray


def embed(run: Run | str | Path, *inputs: Any) -> np.ndarray:
    """Turn inputs into vectors.

    Args:
        run: a finished run.
        inputs: files, folders, frames, arrays, texts or dicts, of the kind that the run was trained on.

    Returns:
        (N, D) float32, a row for each input row.

    Raises:
        FathomError: the model makes no vectors.
        DataError: an input cannot be read, lacks a column, or holds no rows.
    """
    return embedding(run, *inputs).vectors


def embedding(run: Run | str | Path, *inputs: Any) -> Embedding:
    """The same with a name for each row: its file, its text where it is a short one, or its number."""
    run = load(run)
    predictor = run.predictor
    _require_embedding(run, predictor)
    if not inputs:
        raise DataError("embed needs something to turn into vectors: a text, a file, a folder or rows.")
    reads, encodes = _read_as(run.schema)
    columns, names = read_some(inputs, reads)
    rows = encode_all(run, encodes, columns, names, "turned into a vector")
    texts = [item.columns[0] for item in reads.inputs.values() if item.kind == "text"]
    if len(reads.inputs) == len(texts) == 1:
        told = zip(names, to_list(columns[texts[0]]), strict=True)
        names = [_shown(name, text) for name, text in told]
    return Embedding(names, vectors_of(predictor, rows))


def vectors_of(predictor: Predictor, rows: TensorSet) -> np.ndarray:
    """(N, D) float32 of encoded rows."""
    score = predictor.scores["embed"]
    device = next((p.device for layer in predictor.layers.values() for p in layer.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        parts = [
            score({name: tensor.to(device) for name, tensor in batch.items()}).float().cpu()
            for batch in rows.batches(ROWS)
        ]
    made: np.ndarray = torch.cat(parts).numpy()
    return made


def _require_embedding(run: Run, predictor: Predictor) -> None:
    if "embed" not in predictor.scores:
        name = run.bundle.about["network"]["name"]
        raise FathomError(
            f"{run.path} makes no vectors: its network ({name}) cannot be read before its last layer. Those that can: cnn and "
            "resnet for pictures; transformer, bert, lstm and bag for text; pretrained for both."
        )


def _read_as(schema: Schema) -> tuple[Schema, Schema]:
    """How the inputs are read, and how they are encoded: where a text is learnt by itself, it is what is read."""
    target = text_target(schema)
    if schema.inputs or target is None:
        inputs = replace(schema, targets={}, special={})
        return inputs, inputs
    name, item = target
    return Schema({name: item}), Schema({}, {name: item})


def _shown(name: str, text: Any) -> str:
    """A text itself where it came as one, shortened; a file by its name."""
    if not name.startswith("row ") or not isinstance(text, str):
        return name
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def nearest(vectors: np.ndarray, most: int = PAIRS) -> list[tuple[int, int, float]]:
    """The pairs of rows whose vectors point the same way most, the nearest first.

    Args:
        vectors: (N, D).
        most: pairs.

    Returns:
        (row, later row, cosine) of each; none where there is one row, or more than `COMPARED`.
    """
    if not 1 < len(vectors) <= COMPARED:
        return []
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(length, 1e-12)  # a vector of zeros is like none
    first, second = np.triu_indices(len(vectors), 1)
    cosine = (unit @ unit.T)[first, second]
    order = np.argsort(-cosine, kind="stable")[:most]
    return [(int(first[i]), int(second[i]), float(cosine[i])) for i in order]


def check_place(path: Path, inputs: Sequence[Any] = ()) -> None:
    """Refuse a place for vectors before anything is computed.

    Raises:
        DataError: another ending, a folder, or one of the inputs.
    """
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"Vectors cannot be written as '{path.suffix or path}'; use .npy, .csv or .parquet.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file for the vectors, as in {path / 'codes.npy'}.")
    refuse_input(path, inputs)


def write_codes(made: Embedding, path: Path) -> None:
    """Write vectors: .npy holds them alone; .csv and .parquet have a column "input" before those of the vector.

    Raises:
        DataError: another ending, or a folder.
    """
    check_place(path)
    names = [f"d{i}" for i in range(made.vectors.shape[1])]
    if path.suffix.lower() == ".npy":
        data = io.BytesIO()
        np.save(data, made.vectors, allow_pickle=False)
        write_atomic(path, data.getvalue())
    elif path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        columns = {"input": made.names, **{name: made.vectors[:, i] for i, name in enumerate(names)}}
        pq.write_table(pa.table(columns), sink)
        write_atomic(path, sink.getvalue().to_pybytes())
    else:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["input", *names])
        writer.writerows([harmless(name), *map(str, row)] for name, row in zip(made.names, made.vectors, strict=True))
        write_atomic(path, text.getvalue().encode())
