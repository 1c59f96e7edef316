"""What every tool of the benchmark shares: works, data, first weights, batch order and the measurement.

The preparation (`python benchmarks/common.py --data FOLDER --work mlp --rows 12000`) reads the data sets that
FATHOM_DATA names once and writes plain numpy files, so that every tool reads the same bytes:

    mnist-train-inputs.npy    (N, H, W, C) uint8; the same for `test`
    imdb-train-inputs.npy     (N, 256) int32 tokens, zeros after the end of a text
    mnist-train-labels.npy    (N,) int64
    mlp-weights.npz           first weights, named and laid out as in the state of an `nn.Sequential`
    mnist-12000-order.npy     (EPOCHS, rows) int64; row e is the order in which epoch e visits the rows

An adapter parses its command line and writes its result through `Measurement`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import re
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy

IMPORTED_AT = time.time()
# Adam's constants, as float32 has them, since some tools keep them in float32 and some in float64. PyTorch
# and Keras add epsilon at different places, so it is too small to be seen.
LEARNING_RATE, *BETAS = (float(numpy.float32(value)) for value in (1e-3, 0.9, 0.999))
EPSILON = 1e-16
CURVE_STEPS = 100
EPOCHS = 20  # how many epochs of batch order are written
SEED = 0
# Tokens of a text. Fathom keeps 0 to 4 for itself, so the words begin at 5 for all tools; 2 to 4 never occur.
VOCABULARY, LENGTH = 1000, 256
PAD, UNKNOWN, FIRST_WORD = 0, 1, 5
FILLER = VOCABULARY - 1  # no word: stands before the shorter texts where all rows are of one length


class BenchmarkError(Exception):
    """Something the reader can put right; its text is one or two sentences."""


@dataclass(frozen=True)
class Work:
    """One network on one data set with one batch size.

    Args:
        layers: as an `nn.Sequential` would list them.
        parameters: of PyTorch's layers; Keras' LSTM has one bias where PyTorch's has two.
        order: "shared", or "own" where each tool makes its batches as its users do, so that losses are not compared.
        apart: tools that train other parameters, so that only the first loss must be equal.
        without: tools that have no adapter for this work.
    """

    name: str
    title: str
    data: str
    batch: int
    layers: tuple[tuple, ...]
    parameters: int
    order: str = "shared"
    apart: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def reads_text(self) -> bool:
        """Whether rows are tokens instead of pixels."""
        return self.layers[0][0] == "embedding"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight and bias, under its `nn.Sequential` name."""
        shapes = {}
        for position, (kind, *sizes) in enumerate(self.layers):
            if kind == "conv":
                inputs, outputs, kernel = sizes
                shapes[f"{position}.weight"] = (outputs, inputs, kernel, kernel)
                shapes[f"{position}.bias"] = (outputs,)
            elif kind == "dense":
                inputs, outputs = sizes
                shapes[f"{position}.weight"] = (outputs, inputs)
                shapes[f"{position}.bias"] = (outputs,)
            elif kind == "embedding":
                shapes[f"{position}.weight"] = tuple(sizes)
            elif kind == "lstm":
                inputs, units = sizes
                shapes[f"{position}.weight_ih_l0"] = (4 * units, inputs)
                shapes[f"{position}.weight_hh_l0"] = (4 * units, units)
                shapes[f"{position}.bias_ih_l0"] = shapes[f"{position}.bias_hh_l0"] = (4 * units,)
        return shapes

    def steps(self, rows: int) -> int:
        """Batches in one epoch; the partial batch at the end counts."""
        return -(-rows // self.batch)


WORKS = {
    work.name: work
    for work in (
        Work(
            name="cnn",
            title="MNIST, conv 32 3x3 relu, max-pool 2, dense 64 relu, dense 10; Adam 1e-3, batch 32",
            data="mnist",
            batch=32,
            layers=(
                ("conv", 1, 32, 3), ("relu",), ("pool", 2),
                ("flatten",), ("dense", 5408, 64), ("relu",), ("dense", 64, 10),
            ),
            parameters=347_146,
        ),
        Work(
            name="mlp",
            title="MNIST, dense 128 relu, dense 64 relu, dense 10; Adam 1e-3, batch 64",
            data="mnist",
            batch=64,
            layers=(
                ("flatten",),
                ("dense", 784, 128), ("relu",), ("dense", 128, 64), ("relu",), ("dense", 64, 10),
            ),
            parameters=109_386,
        ),
        Work(
            name="cifar",
            title="CIFAR-10, conv 32 3x3 relu, max-pool 2, conv 64 3x3 relu, max-pool 2, dense 64 relu, "
            "dense 10; Adam 1e-3, batch 32",
            data="cifar10",
            batch=32,
            layers=(
                ("conv", 3, 32, 3), ("relu",), ("pool", 2), ("conv", 32, 64, 3), ("relu",), ("pool", 2),
                ("flatten",), ("dense", 2304, 64), ("relu",), ("dense", 64, 10),
            ),
            parameters=167_562,
        ),
        Work(
            name="lstm",
            title="IMDB, up to 256 of 1000 words, embedding 32, LSTM 32, dense 2; Adam 1e-3, batch 32; "
            "each tool batches the texts in its own way",
            data="imdb",
            batch=32,
            layers=(("embedding", VOCABULARY, 32), ("lstm", 32, 32), ("dense", 32, 2)),
            parameters=40_514,
            order="own",
            without=("skorch",),
        ),
        Work(
            name="lstm-fixed",
            title="IMDB, exactly 256 of 1000 words, embedding 32, LSTM 32, dense 2; Adam 1e-3, batch 32",
            data="imdb",
            batch=32,
            layers=(("embedding", VOCABULARY, 32), ("lstm", 32, 32), ("dense", 32, 2)),
            parameters=40_514,
            apart=("keras-tensorflow", "keras-torch"),
        ),
    )
}  # fmt: skip


# ---------------------------------------------------------------- preparation


def data_folder() -> Path:
    """The folder of data sets, named by FATHOM_DATA."""
    folder = os.environ.get("FATHOM_DATA")
    if not folder:
        raise BenchmarkError("FATHOM_DATA is not set. Set it to the folder that holds the data sets.")
    return Path(folder)


def read_idx(path: Path) -> numpy.ndarray:
    """An array from a gzipped idx file: two zero bytes, type, number of sizes, the sizes, the values."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = numpy.frombuffer(content, ">i4", dimensions, offset=4)
    return numpy.frombuffer(content, numpy.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_mnist(split: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """MNIST as (N, 28, 28, 1) uint8 and (N,) int64."""
    prefix = {"train": "train", "test": "t10k"}[split]
    images = read_idx(data_folder() / "mnist" / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(data_folder() / "mnist" / f"{prefix}-labels-idx1-ubyte.gz")
    return images[..., None], labels.astype(numpy.int64)


def read_cifar10(split: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """CIFAR-10 as (N, 32, 32, 3) uint8 and (N,) int64."""
    import pyarrow.parquet
    from PIL import Image

    path = data_folder() / "cifar10" / f"{split}.parquet"
    table = pyarrow.parquet.read_table(path, columns=["image", "label"])
    images = numpy.empty((len(table), 32, 32, 3), numpy.uint8)
    for row, content in enumerate(table["image"]):
        images[row] = numpy.asarray(Image.open(io.BytesIO(content.as_py())).convert("RGB"))
    return images, table["label"].to_numpy().astype(numpy.int64)


def imdb_reviews(split: str) -> list[tuple[str, int]]:
    """Texts and labels in a shuffled order, since the file is sorted by class."""
    with gzip.open(data_folder() / "sentiment" / f"imdb_{split}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file)]
    return [rows[place] for place in numpy.random.default_rng(SEED).permutation(len(rows))]


def words(text: str) -> list[str]:
    """Words and runs of punctuation, in lower case."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


@cache
def imdb_vocabulary() -> dict[str, int]:
    """The most frequent words of the training texts, and their tokens."""
    counts = Counter(word for text, _ in imdb_reviews("train") for word in words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: token for token, word in enumerate(ranked[: FILLER - FIRST_WORD], FIRST_WORD)}


def read_imdb(split: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """IMDB as (N, LENGTH) int32 tokens, the first of each text, and (N,) int64."""
    vocabulary, reviews = imdb_vocabulary(), imdb_reviews(split)
    tokens = numpy.full((len(reviews), LENGTH), PAD, numpy.int32)
    for row, (text, _) in enumerate(reviews):
        found = [vocabulary.get(word, UNKNOWN) for word in words(text)[:LENGTH]]
        tokens[row, : len(found)] = found
    return tokens, numpy.array([label for _, label in reviews])


def text_lengths(tokens: numpy.ndarray) -> numpy.ndarray:
    """(N,) int64, the tokens of each row."""
    return (tokens != PAD).sum(1)


def fixed(tokens: numpy.ndarray) -> numpy.ndarray:
    """(N, LENGTH) the same texts with FILLER before the shorter ones, so that every row has LENGTH steps."""
    places = numpy.arange(LENGTH) - (LENGTH - text_lengths(tokens))[:, None]
    return numpy.where(places >= 0, numpy.take_along_axis(tokens, places.clip(0), 1), numpy.int32(FILLER))


READERS = {"mnist": read_mnist, "cifar10": read_cifar10, "imdb": read_imdb}


def first_weights(work: Work) -> dict[str, numpy.ndarray]:
    """PyTorch's default start, uniform within 1/sqrt(inputs of a unit), drawn by numpy from a fixed seed."""
    generator = numpy.random.default_rng(SEED)
    weights, bound = {}, 0.0
    for name, shape in work.shapes.items():
        if "weight" in name:
            bound = 1 / numpy.sqrt(numpy.prod(shape[1:]))
        weights[name] = generator.uniform(-bound, bound, shape).astype(numpy.float32)
    assert sum(weight.size for weight in weights.values()) == work.parameters
    return weights


def prepare(work: Work, rows: int | None, folder: Path) -> int:
    """Write what is missing in `folder`, and return the number of training rows of this work."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        paths = [folder / f"{work.data}-{split}-{part}.npy" for part in ("inputs", "labels")]
        if not all(path.exists() for path in paths):
            for path, array in zip(paths, READERS[work.data](split), strict=True):
                numpy.save(path, array)
    available = len(numpy.load(folder / f"{work.data}-train-labels.npy", mmap_mode="r"))
    rows = rows or available
    if not 1 <= rows <= available:
        raise BenchmarkError(f"--rows {rows} is not possible: {work.data} has {available} training rows.")
    order = [numpy.random.default_rng((SEED, epoch)).permutation(rows) for epoch in range(EPOCHS)]
    numpy.save(folder / f"{work.data}-{rows}-order.npy", numpy.stack(order))
    numpy.savez(folder / f"{work.name}-weights.npz", **first_weights(work))
    return rows


# ---------------------------------------------------------------- what an adapter reads and writes


class Prepared:
    """The prepared files of one work, as an adapter reads them."""

    def __init__(self, folder: Path, work: Work, rows: int, epochs: int, dtype: str):
        self.work = work
        self.dtype = dtype
        self.weights = dict(numpy.load(folder / f"{work.name}-weights.npz"))
        self.order = numpy.load(folder / f"{work.data}-{rows}-order.npy")[:epochs]  # (epochs, rows)
        self.inputs, self.labels, self.test_inputs, self.test_labels = (
            numpy.load(folder / f"{work.data}-{split}-{part}.npy", mmap_mode="r")
            for split in ("train", "test")
            for part in ("inputs", "labels")
        )
        self.inputs, self.labels = self.inputs[:rows], self.labels[:rows]
        if work.name == "lstm-fixed":
            self.inputs, self.test_inputs = fixed(self.inputs), fixed(self.test_inputs)

    def ready(self, inputs: numpy.ndarray, channels_first: bool) -> numpy.ndarray:
        """What a network reads: tokens as they are; pixels between 0 and 1, as (N, C, H, W) or (N, H, W, C)."""
        if self.work.reads_text:
            return numpy.array(inputs)
        if channels_first:
            inputs = inputs.transpose(0, 3, 1, 2)
        return numpy.divide(inputs, 255, out=numpy.empty(inputs.shape, self.dtype), dtype=self.dtype)


class Measurement:
    """The command line of one adapter, its clocks, and the JSON it writes.

    The clocks: imports end when the measurement is made, preparation ends with `prepared()`, and every epoch
    lies between `epoch_begins()` and `epoch_ends()`.
    """

    def __init__(self, tool: str, distributions: tuple[str, ...]):
        now = time.time()
        parser = argparse.ArgumentParser(description=f"One run of {tool}; prints and writes one JSON object.")
        parser.add_argument("--work", choices=WORKS, required=True)
        parser.add_argument("--rows", type=int, required=True, help="training rows, as prepared")
        parser.add_argument("--epochs", type=int, default=2)
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--data", type=Path, required=True, help="folder written by `common.py`")
        parser.add_argument("--json", type=Path, help="file to write the result to")
        parser.add_argument("--curve", action="store_true", help=f"record the first {CURVE_STEPS} losses")
        parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
        options = parser.parse_args()
        if not 1 <= options.epochs <= EPOCHS:
            parser.error(f"--epochs {options.epochs} is not possible, use 1 to {EPOCHS}")
        if not (options.data / f"{WORKS[options.work].data}-{options.rows}-order.npy").exists():
            parser.error(f"{options.data} holds no order of {options.rows} rows: run common.py first")
        self.curve: bool = options.curve
        self.epochs: int = options.epochs
        self.threads: int = options.threads
        self.work = WORKS[options.work]
        self._json: Path | None = options.json
        self._losses: list[float] = []
        self._epoch_seconds: list[float] = []
        self._result = {
            "tool": tool,
            "work": self.work.name,
            "rows": options.rows,
            "threads": options.threads,
            "dtype": options.dtype,
            "versions": {name: version(name) for name in distributions},
            "import_seconds": now - float(os.environ.get("BENCHMARK_STARTED", IMPORTED_AT)),
            "steps": options.epochs * self.work.steps(options.rows),
        }
        self._clock = time.perf_counter()
        self.data = Prepared(options.data, self.work, options.rows, options.epochs, options.dtype)

    def prepared(self) -> None:
        """Data, network and trainer are ready."""
        self._result["prepare_seconds"] = time.perf_counter() - self._clock

    def restart(self) -> None:
        """Forget epochs and losses: those so far were a trial."""
        self._epoch_seconds.clear()
        self._losses.clear()

    def epoch_begins(self) -> None:
        """The first batch of an epoch is about to be fetched."""
        self._clock = time.perf_counter()

    def epoch_ends(self) -> None:
        """The last update of an epoch is done."""
        self._epoch_seconds.append(time.perf_counter() - self._clock)

    def loss(self, value: float) -> None:
        """The mean loss of one batch, before its update; call it only where `curve` is set."""
        if len(self._losses) < CURVE_STEPS:
            self._losses.append(float(value))

    def trained(self) -> None:
        """Read the largest memory of the process now, before the test rows are loaded."""
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._result["peak_rss_mb"] = kilobytes / (1024 * 1024 if sys.platform == "darwin" else 1024)

    def write(self, test_answers: numpy.ndarray) -> None:
        """Score the predicted classes of the test rows; print and write the result."""
        accuracy = float((test_answers == self.data.test_labels).mean())
        result = {**self._result, "epoch_seconds": self._epoch_seconds, "test_accuracy": accuracy}
        if self.curve:
            result["losses"] = self._losses
        text = json.dumps(result)
        print(text)
        if self._json:
            self._json.write_text(text)


def main() -> None:
    """Prepare one work and print the number of training rows."""
    parser = argparse.ArgumentParser(description="Write the numpy files that every tool reads.")
    parser.add_argument("--data", type=Path, required=True, help="folder to write to")
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--rows", type=int, help="training rows to use (default: all)")
    options = parser.parse_args()
    try:
        print(prepare(WORKS[options.work], options.rows, options.data))
    except BenchmarkError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
