"""Fathom: `fathom.fit` with an algorithm of our own that changes four things and nothing else of the loop.

    first weights    the shared ones, instead of those drawn from the seed
    batch order      the shared one, instead of Fathom's shuffle, whose batches are all of one size
    pixels           0 to 1 as in the other tools, instead of standardized: the same arithmetic, other constants
    clock            each epoch is timed from fetching its first batch to its last update, without validation

The rest is what a user gets: the recipe's layers, the loop with its guard, history, event files and report.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy
import torch
from common import BETAS, EPSILON, LEARNING_RATE, Measurement, Work
from torch import Tensor, nn

import fathom
from fathom.algorithms.supervised import Supervised
from fathom.core.contract import Batch, Stage
from fathom.core.registry import algorithm
from fathom.core.steppers import Adam

VALIDATION_ROWS = 200  # of the test rows; validation is not timed, and a run needs some


@algorithm("benchmark", suits=lambda schema: False)
class Benchmark(Supervised):
    """Supervised learning from shared first weights, in a shared order, with a clock."""

    measurement: Measurement

    def build(self) -> None:
        """Set the first weights and the scale of the pixels, then build as ever."""
        model = self.models["model"]
        for item in self.schema.inputs.values():
            item.state.update(mean=[0.0] * item.shape[0], std=[255.0] * item.shape[0])
        model.preprocess = nn.ModuleList([item.layer() for item in self.schema.inputs.values()])
        weights = fathom_weights(self.measurement.work, self.measurement.data.weights)
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                parameter.copy_(torch.from_numpy(weight))
        self.measurement.restart()  # Fathom may have tried some steps on a copy
        super().build()

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """The rows in the shared order."""
        measurement = self.measurement
        per_epoch = measurement.work.steps(len(stage.data))
        measurement.prepared()
        for step in count(start):
            epoch, position = divmod(step, per_epoch)
            if position == 0:
                measurement.epoch_begins()
                rows = measurement.data.order[epoch % measurement.epochs]
                order = torch.from_numpy(rows).split(measurement.work.batch)
            self.last = position == per_epoch - 1
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


def layers(work: Work) -> list[str]:
    """The network as the lines of a recipe, less the last layer, which Fathom adds."""
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
    return lines


def recipe(measurement: Measurement, folder: str) -> dict[str, Any]:
    """The tables of the run: constant rate, no extras, and no checkpoints, as in the other tools."""
    return {
        "network": {"layers": layers(measurement.work)},
        "training": {
            "algorithm": "benchmark",
            "optimizer": "adam",
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
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


def main() -> None:
    measurement = Measurement("fathom", ("fathom", "torch"))
    torch.set_num_threads(measurement.threads)
    torch.set_default_dtype(getattr(torch, measurement.data.dtype))
    Adam.betas, Adam.epsilon = tuple(BETAS), EPSILON
    Benchmark.measurement = measurement
    data = measurement.data
    few = slice(0, VALIDATION_ROWS)
    rest = slice(VALIDATION_ROWS, None)
    rows = {
        "train": (data.images, data.labels),
        "validation": (data.test_images[few], data.test_labels[few]),
        "test": (data.test_images[rest], data.test_labels[rest]),
    }
    with tempfile.TemporaryDirectory() as folder:
        run = fathom.fit(rows, recipe=recipe(measurement, folder))
        answers = run.predict(data.test_images)
    measurement.write(numpy.array([int(answer["answer"]) for answer in answers]))


if __name__ == "__main__":
    main()
