"""The frozen classifier that samples are seen with: trained once on the training rows, then kept.

    extractor(prepared, seed)       features of its last hidden layer, and classes; principal components where no label is known
    classifier(prepared, seed)      the classifier itself, from the cache where it is there

It is a small network of the registry, trained by the ordinary loop. What decides it (rows, label, recipe) is the key under
which it lies in the cache folder, so that all runs on the same rows are seen with the same eyes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis import plan
from fathom.analysis.reconstruction import label_of
from fathom.analysis.samples import COUNT, Extractor, principal, real
from fathom.core import device as devices
from fathom.core.contract import Columns, Predictor, Schema
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.errors import RunError
from fathom.core.loop import train
from fathom.core.prepare import Prepared, cache_folder, input_hashes
from fathom.core.recipe import Recipe
from fathom.core.registry import algorithms, fields
from fathom.core.tensors import TensorSet
from fathom.deliver.bundle import read_bundle, write_bundle
from fathom.fields.copies import LABEL
from fathom.verbs.assemble import Task, build

FIT_SEED = 0  # of the classifier: one for all runs on the same rows
STEPS = 1_200  # at most
EPOCHS = 4  # at most
BATCH = 128
NETWORK = {"name": "cnn", "channels": [32, 64], "padding": "same", "dense": [64], "dropout": 0.25}
LABELLED = "label"


def extractor(prepared: Prepared, seed: int) -> Extractor:
    """What samples of this task are seen with.

    Args:
        prepared: rows of a task that makes pictures.
        seed: of the rows that principal components are made of, where no label is known.
    """
    made = classifier(prepared)
    if made is None:
        return principal(real(prepared.sets["train"], prepared.schema, COUNT, seed)[0])
    predictor, accuracy = made
    name = next(iter(predictor.schema.inputs))
    target = predictor.schema.targets[LABELLED]
    words = [str(word) for word in target.state["classes"]]

    def encoded(pictures: Tensor) -> dict[str, Tensor]:
        return {name: pictures.clamp(0, 1).mul(255).round().to(torch.uint8)}

    def features(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return predictor.scores["embed"](encoded(pictures)).float()

    def classes(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return predictor.forward(encoded(pictures))[LABELLED].argmax(1)

    says = (
        f"Samples are seen with the features of a classifier that was trained on the training rows and frozen (accuracy on test "
        f"rows {accuracy:.1%}). Distances in them cannot be compared with published FID, nor with those of another classifier."
    )
    return Extractor("classifier", features, classes, words, says)


def classifier(prepared: Prepared) -> tuple[Predictor, float] | None:
    """The classifier of a task's label and its accuracy on the test rows; None where no label of two classes is known."""
    task = _task(prepared)
    if task is None:
        return None
    folder = _place(task)
    predictor = _read(folder)
    if predictor is None:
        predictor = _trained(task, folder)
    return predictor, _accuracy(predictor, task.prepared.sets["test"])


def _task(prepared: Prepared) -> Task | None:
    """The label from the picture, learnt from the same training rows."""
    schema = prepared.schema
    picture = next(name for name, item in schema.targets.items() if len(item.outputs) == 3)
    rows = np.arange(prepared.columns.rows)
    label = label_of(schema, prepared.columns, rows)
    if label is None or isinstance(label, np.ndarray):
        return None
    target = fields["category"].make([schema.special[LABEL]])
    known = Columns({target.columns[0]: label})
    index = prepared.splits["train"]
    target.fit([known.take(index)])
    if len(target.state["classes"]) < 2:
        return None
    codes = torch.from_numpy(_codes(label, target.state["classes"]))
    store = TensorSet({picture: prepared.store.columns[picture], LABELLED: codes})
    seen = {part: rows_of[codes[torch.from_numpy(rows_of)].numpy() >= 0] for part, rows_of in prepared.splits.items()}
    asked = Schema({picture: schema.inputs[picture]}, {LABELLED: target})
    steps = min(STEPS, max(200, EPOCHS * len(seen["train"]) // BATCH))
    recipe = Recipe.parse({
        "network": NETWORK,
        "training": {
            "algorithm": "supervised", "steps": steps, "batch": min(BATCH, len(seen["train"])), "learning_rate": 3e-3,
            "seed": FIT_SEED, "device": "cpu", "precision": "float32", "threads": torch.get_num_threads(),
        },
    })  # fmt: skip
    choice = plan.Choice("cnn", "", "", [], {})
    return Task(recipe, replace(prepared, schema=asked, store=store, splits=seen), choice)


def _codes(label: Any, classes: Iterable[Any]) -> np.ndarray:
    """(N,) int64 places among the classes; -1 where the label is missing or none of them."""
    places = {str(word): place for place, word in enumerate(classes)}
    return np.array([places.get(str(word), -1) if word is not None else -1 for word in label.to_pylist()], np.int64)


def _place(task: Task) -> Path:
    """Where the classifier of these very rows lies."""
    prepared = task.prepared
    hashes = input_hashes(prepared.columns, prepared.schema)[prepared.splits["train"]]
    labels = prepared.sets["train"].column(LABELLED).numpy()
    training = {**task.recipe.tables()["training"], "threads": 0}  # which change its last bits only
    way = json.dumps([task.recipe.network, training, task.schema.to_json()], sort_keys=True)
    digest = hashlib.sha256(hashes.tobytes() + labels.tobytes() + way.encode())
    return cache_folder() / "classifiers" / digest.hexdigest()[:32]


def _read(folder: Path) -> Predictor | None:
    """The classifier that an earlier run trained; None where there is none or it is damaged."""
    try:
        bundle = read_bundle(folder)
    except RunError:
        return None
    made: Predictor = algorithms[bundle.algorithm].make.deploy(bundle.schema, bundle.models)
    return made


def _trained(task: Task, folder: Path) -> Predictor:
    """Train, and keep for later. A cache that cannot be written costs time, not the run."""
    device = Device.choose("cpu")
    with devices.undisturbed():
        assembly = build(task, device, fresh=True)
        stages = assembly.algorithm.stages(task.prepared.sets)
        train(assembly.algorithm, stages, [], assembly.clock, device, non_finite)
    for model in assembly.models.values():
        model.eval()
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        write_bundle(
            beside, assembly.models, task.schema, task.recipe.network, "supervised", "The frozen classifier.\n"
        )
        shutil.rmtree(folder, ignore_errors=True)  # one that is there was found damaged, or it would have been read
        os.replace(beside, folder)
    except (OSError, RunError):
        shutil.rmtree(beside, ignore_errors=True)
    return assembly.algorithm.predictor()


def _accuracy(predictor: Predictor, test: TensorSet) -> float:
    """The share of test rows that it knows; not a number where there are none."""
    if not len(test):
        return float("nan")
    right = predictor.outputs(test)[LABELLED].argmax(1) == test.column(LABELLED)
    return float(right.float().mean())
