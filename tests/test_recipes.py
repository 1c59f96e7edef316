"""Every recipe runs two steps, and the networks of the overviews have the number of parameters they are known by."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import fathom
from fathom.core.contract import Columns, Schema
from fathom.core.recipe import Recipe
from fathom.core.registry import fields, networks

ALL = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
RECIPES = [path for path in ALL if not re.search(r'location = "\w+-v\d+"', path.read_text("utf-8"))]  # others act
SHORT_TEXTS = {"data.text.length": 32, "training.batch": 8, "data.limit": 60, "data.text.vocabulary": 500}
SMALLER = {
    **{f"detection-{name}": {"data.image": {"size": 96}, "data.limit": 60} for name in ("bccd", "road", "road-videos")},
    **{name: {"data.image": {"size": 32}, "data.limit": 60} for name in ("ants-bees", "cats-vs-dogs-pretrained")},
    "brain-mri-cnn": {"data.image": {"size": 32}, "data.limit": 60},
    "brain-mri": {"data.limit": 60},
    "chat": SHORT_TEXTS,
    "chat-lstm": SHORT_TEXTS,
    "fraud": {"data.limit": 3_000},  # of which some twenty are frauds
    "fraud-random": {"data.limit": 3_000},
    "fraud-cnn": {"data.limit": 3_000},
    "shakespeare": {"data.text.length": 32, "training.batch": 8, "data.limit": 60},
    "shakespeare-lstm": {"data.text.length": 32, "training.batch": 8, "data.limit": 60},
    "translation": {**SHORT_TEXTS, "data.limit": 200},
    "translation-transformer": {**SHORT_TEXTS, "data.limit": 200, "network.width": 32},
}
PARAMETERS = {
    "digits-mlp": (109_386, (1, 28, 28), 10),
    "digits-cnn": (347_146, (1, 28, 28), 10),
    "digits-deeper-cnn": (1_199_882, (1, 28, 28), 10),
    "cifar10-cnn": (167_562, (3, 32, 32), 10),
    "brain-mri-cnn": (132_129_794, (1, 256, 256), 2),
}
WORDS = {"sentiment-rnn": 34_178, "sentiment-lstm": 40_514, "sentiment-gru": 38_402}


# Judged by a classifier of their own, as gan-conditional is; and large networks of history, whose outputs are tested elsewhere.
SLOW = {"gan", "gan-dense", "history-alexnet", "history-efficientnet", "history-resnet", "history-vgg"}


def marked(path: Path) -> Any:
    """A recipe, among the slow ones where it costs much and another one like it runs anyway."""
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])


@pytest.mark.parametrize("path", [marked(path) for path in RECIPES])
def test_a_recipe_runs_two_steps(path: Path, request: pytest.FixtureRequest) -> None:
    if path.name != "digits.toml" and 'location = "digits"' not in path.read_text("utf-8"):
        request.getfixturevalue("data_folder")
    quick = {"training.threads": 1, "training.precision": "float32", "training.steps": 2}  # no trial is made
    changes = {"data.limit": 300, **quick, **SMALLER.get(path.stem, {})}
    if path.name == "digits.toml":
        request.getfixturevalue("data_folder")
    run = fathom.fit(path, **changes)
    assert run.results["seconds"]["train"] > 0
    assert 0 < run.results["splits"]["train"] < changes["data.limit"]
    assert run.recipe.training.steps == 2


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_overviews_networks_have_their_parameters(name: str) -> None:
    count, shape, classes = PARAMETERS[name]
    recipe = Recipe.parse(Recipe.read(next(path for path in RECIPES if path.stem == name)))
    table = {key: value for key, value in recipe.network.items() if key != "name"}
    with torch.device("meta"):
        module = networks[recipe.network["name"]].build(schema(shape, classes), "model", **table)
    assert sum(p.numel() for p in module.parameters()) == count


@pytest.mark.parametrize("name", WORDS)
def test_the_overviews_recurrent_networks_have_their_parameters(name: str) -> None:
    """1000 words x 32, and 32 units: PyTorch has two biases a gate where Keras has one, and an output for each class."""
    recipe = Recipe.parse(Recipe.read(next(path for path in RECIPES if path.stem == name)))
    text, label = fields["text"].make(["text"], **recipe.data.fields["text"]), fields["category"].make(["label"])
    words = [f"word{i}" for i in range(1_200)]
    text.fit([Columns({"text": pa.chunked_array([words])})])
    label.fit([Columns({"label": np.arange(2)})])
    table = {key: value for key, value in recipe.network.items() if key != "name"}
    module = networks[recipe.network["name"]].build(Schema({"text": text}, {"label": label}), "model", **table)
    assert sum(p.numel() for p in module.parameters()) == WORDS[name]


def test_the_smallest_network_of_the_overviews_has_its_parameters() -> None:
    """10-20-1."""
    run = fathom.fit(next(path for path in RECIPES if path.stem == "two-layer"), **{"training.threads": 1, "training.steps": 2})
    assert run.results["parameters"] == 241


def schema(shape: tuple[int, ...], classes: int) -> Schema:
    image, label = fields["image"].make(["image"]), fields["category"].make(["label"])
    label.fit([Columns({"label": np.arange(classes)})])
    image.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "factor": 1}
    return Schema({"image": image}, {"label": label})
