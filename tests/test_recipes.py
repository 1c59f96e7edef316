"""Every recipe runs two steps, and the networks of the overviews have the number of parameters they are known by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fathom
from fathom.core.contract import Columns, Schema
from fathom.core.recipe import Recipe
from fathom.core.registry import fields, networks

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
SMALLER = {"brain-mri-cnn": {"data.image": {"size": 32}, "data.limit": 60}, "brain-mri": {"data.limit": 60}}
PARAMETERS = {
    "digits-mlp": (109_386, (1, 28, 28), 10),
    "digits-cnn": (347_146, (1, 28, 28), 10),
    "digits-deeper-cnn": (1_199_882, (1, 28, 28), 10),
    "cifar10-cnn": (167_562, (3, 32, 32), 10),
    "brain-mri-cnn": (132_129_794, (1, 256, 256), 2),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_two_steps(path: Path, request: pytest.FixtureRequest) -> None:
    if path.name != "digits.toml" and 'location = "digits"' not in path.read_text("utf-8"):
        request.getfixturevalue("data_folder")
    changes = {"data.limit": 300, "training.threads": 1, "training.steps": 2, **SMALLER.get(path.stem, {})}
    if path.name == "digits.toml":
        request.getfixturevalue("data_folder")
    run = fathom.fit(path, **changes)
    assert run.results["seconds"]["train"] > 0
    assert 0 < run.results["splits"]["train"] < 300
    assert run.recipe.training.steps == 2


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_overviews_networks_have_their_parameters(name: str) -> None:
    count, shape, classes = PARAMETERS[name]
    recipe = Recipe.parse(Recipe.read(next(path for path in RECIPES if path.stem == name)))
    table = {key: value for key, value in recipe.network.items() if key != "name"}
    with torch.device("meta"):
        module = networks[recipe.network["name"]].build(schema(shape, classes), "model", **table)
    assert sum(p.numel() for p in module.parameters()) == count


def schema(shape: tuple[int, ...], classes: int) -> Schema:
    image, label = fields["image"].make(["image"]), fields["category"].make(["label"])
    label.fit([Columns({"label": np.arange(classes)})])
    image.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "factor": 1}
    return Schema({"image": image}, {"label": label})
