"""Fathom: `fathom.fit` with an algorithm of our own that changes five things and nothing else of the loop.

    first weights    the shared ones, instead of those drawn from the seed
    batch order      the shared one, instead of Fathom's shuffle, whose batches are all of one size (not for `lstm`)
    pixels           0 to 1 as in the other tools, instead of standardized: the same arithmetic, other constants
    tokens           those of the shared vocabulary, instead of one that Fathom learns
    clock            each epoch is timed from fetching its first batch to its last update, without validation

The rest is what a user gets: the recipe's layers, the loop with its guard, history, event files and report.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import numpy
import pyarrow
import torch
from common import BETAS, EPSILON, FIRST_WORD, LEARNING_RATE, VOCABULARY, Measurement, Work, text_lengths
from torch import Tensor, nn

import fathom
from fathom.algorithms.supervised import Supervised
from fathom.core.contract import Batch, Columns, Stage
from fathom.core.registry import algorithm
from fathom.core.steppers import Adam
from fathom.fields.text import Text

VALIDATION_ROWS = 200  # of the test rows; validation is not timed, and a run needs some
NO_CLIP = 1e30  # Fathom clips the gradients of an LSTM where nothing is said; the norm is computed all the same
# A text is handed over as one character a token, so that Fathom's tokens are the shared ones.
LETTERS = "".join(map(chr, range(0x4E00, 0x4E00 + VOCABULARY)))


@algorithm("benchmark", suits=lambda schema: False)
class Benchmark(Supervised):
    """Supervised learning from shared first weights, in a shared order, with a clock."""

    measurement: Measurement

    def build(self) -> None:
        """Set the first weights and the scale of the pixels, then build as ever."""
        model = self.models["model"]
        for item in self.schema.inputs.values():
            if item.kind == "image":
                item.state.update(mean=[0.0] * item.shape[0], std=[255.0] * item.shape[0])
        model.preprocess = nn.ModuleList([item.layer() for item in self.schema.inputs.values()])
        weights = fathom_weights(self.measurement.work, self.measurement.data.weights)
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                parameter.copy_(torch.from_numpy(weight))
        self.measurement.restart()  # Fathom may have tried some steps on a copy
        super().build()

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """The rows in the shared order, or in Fathom's own, under the clock."""
        work = self.measurement.work
        per_epoch = work.steps(len(stage.data))
        batches = super().batches(stage, start) if work.order == "own" else self.shared(stage, start)
        self.measurement.prepared()
        for step in count(start):
            position = step % per_epoch
            if position == 0:
                self.measurement.epoch_begins()
            self.last = position == per_epoch - 1
            yield next(batches)

    def shared(self, stage: Stage, start: int) -> Iterator[Batch]:
        """The rows in the shared order."""
        measurement = self.measurement
        per_epoch = measurement.work.steps(len(stage.data))
        for step in count(start):
            epoch, position = divmod(step, per_epoch)
            if position == 0:
                rows = measurement.data.order[epoch % measurement.epochs]
                order = torch.from_numpy(rows).split(measurement.work.batch)
            yield stage.data.batch(order[position])

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step as ever; look at the clock after the last one of an epoch."""
        metrics = super().step(batch)
        if self.measurement.curve:
            self.measurement.loss(metrics["loss"].item())
        if self.last:
            self.measurement.epoch_ends()
        return metrics

    def total(self, outputs: Batch, batch: Batch) -> Tensor:
        """The loss as ever, in float32; in float64 where a curve is compared in it."""
        if self.measurement.data.dtype == "float32":
            return super().total(outputs, batch)
        (name,) = outputs
        return self.terms[name](outputs[name], batch[name]).mean()

    def finish(self, stage: Stage) -> None:
        """Training is over; what follows is evaluation and the report."""
        super().finish(stage)
        self.measurement.trained()


def fathom_weights(work: Work, weights: dict[str, numpy.ndarray]) -> list[numpy.ndarray]:
    """The first weights in the order of Fathom's layers; its flatten puts channels last, PyTorch's first."""
    converted = []
    channels = 1
    for position, (kind, *sizes) in enumerate(work.layers):
        if kind == "conv":
            channels = sizes[1]
        if kind in ("embedding", "lstm"):  # the same layout in both
            converted += [weight for name, weight in weights.items() if name.startswith(f"{position}.")]
        if kind not in ("conv", "dense"):
            continue
        weight = weights[f"{position}.weight"]
        if kind == "dense" and channels > 1:
            side = round((sizes[0] / channels) ** 0.5)
            pictures = weight.reshape(-1, channels, side, side)  # (outputs, C, H, W)
            weight = pictures.transpose(0, 2, 3, 1).reshape(weight.shape)
            channels = 1
        converted += [weight, weights[f"{position}.bias"]]
    return converted


def network(work: Work) -> dict[str, Any]:
    """The network as the table of a recipe, less the last layer, which Fathom adds."""
    if work.reads_text:
        (_, _, width), (_, _, units), _ = work.layers
        return {"name": "lstm", "embedding": width, "units": units, "pooling": "last", "dropout": 0.0}
    lines: list[str] = []
    for kind, *sizes in work.layers[:-1]:
        if kind == "relu":
            lines[-1] += " relu"
        elif kind == "conv":
            lines.append(f"conv {sizes[1]} {sizes[2]}")
        elif kind == "dense":
            lines.append(f"dense {sizes[1]}")
        else:
            lines.append({"pool": "maxpool 2", "flatten": "flatten"}[kind])
    return {"layers": lines}


def recipe(measurement: Measurement, folder: str) -> dict[str, Any]:
    """The tables of the run: constant rate, no extras, and no checkpoints, as in the other tools."""
    texts = {"types": {"text": "text"}, "text": {"level": "character"}}
    return {
        "data": texts if measurement.work.reads_text else {},
        "network": network(measurement.work),
        "training": {
            "algorithm": "benchmark",
            "optimizer": "adam",
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "clip": NO_CLIP,
            "batch": measurement.work.batch,
            "epochs": measurement.epochs,
            "keep": "last",
            "threads": measurement.threads,
            "precision": "float32",  # else a trial decides
            "device": "cpu",
            "checkpoint_seconds": 1e9,
            "out": folder,
        },
    }


def letters(tokens: numpy.ndarray) -> list[str]:
    """(N, T) tokens as N texts, one character a token."""
    rows = zip(tokens, text_lengths(tokens), strict=True)
    return ["".join(map(LETTERS.__getitem__, row[:length])) for row, length in rows]


def named(inputs: Any, labels: numpy.ndarray) -> tuple[Any, Any]:
    """x and y as `fathom.fit` takes them; a text is a column with a name."""
    return ({"text": inputs}, {"label": labels}) if isinstance(inputs, list) else (inputs, labels)


def share_vocabulary() -> None:
    """Let Fathom's text field read characters as the shared tokens; those that stand for no word are unknown."""
    learn = Text.fit

    def fit(field: Text, chunks: Iterable[Columns]) -> None:
        learn(field, chunks)
        field.state = {**field.state, "vocabulary": {"characters": LETTERS[FIRST_WORD:], "lowercase": False}}

    Text.fit = fit


def main() -> None:
    measurement = Measurement("fathom", ("fathom", "torch"))
    torch.set_num_threads(measurement.threads)
    torch.set_default_dtype(getattr(torch, measurement.data.dtype))
    Adam.betas, Adam.epsilon = tuple(BETAS), EPSILON
    Benchmark.measurement = measurement
    data = measurement.data
    few = slice(0, VALIDATION_ROWS)
    rest = slice(VALIDATION_ROWS, None)
    inputs, tested = data.inputs, data.test_inputs
    if measurement.work.reads_text:
        share_vocabulary()
        inputs, tested = letters(inputs), letters(tested)
    rows = {
        "train": named(inputs, data.labels),
        "validation": named(tested[few], data.test_labels[few]),
        "test": named(tested[rest], data.test_labels[rest]),
    }
    with tempfile.TemporaryDirectory() as folder:
        run = fathom.fit(rows, recipe=recipe(measurement, folder))
        answers = run.predict(pyarrow.table({"text": tested}) if measurement.work.reads_text else tested)
    measurement.write(numpy.array([int(answer["answer"]) for answer in answers]))


if __name__ == "__main__":
    main()
