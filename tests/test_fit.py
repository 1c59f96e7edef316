"""`fathom.fit` from end to end in Python: every kind of data that people hold, own networks and losses, members."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fathom
from fathom.core.errors import FathomError

QUICK = {"epochs": 3, "training.threads": 1}


def table(rows: int = 200) -> pa.Table:
    generator = np.random.default_rng(0)
    x, color = generator.normal(size=rows), generator.choice(["red", "blue"], rows)
    y = np.where(x + (color == "red") > 0.5, "yes", "no")
    return pa.table({"x": x, "color": color, "y": y, "z": 3 * x + generator.normal(size=rows) * 0.1})


def images(rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Bright on the left or on the right."""
    generator = np.random.default_rng(1)
    y = generator.integers(0, 2, rows)
    x = generator.integers(0, 80, (rows, 8, 8)).astype(np.uint8)
    x[y == 0, :, :4] += 120
    x[y == 1, :, 4:] += 120
    return x, y


def test_results_have_the_promised_form() -> None:
    run = fathom.fit(table(), target="y", **QUICK)
    results = json.loads((run.path / "results.json").read_bytes())
    assert results["task"] == "table classification"
    assert set(results["splits"]) == {"train", "validation", "test"}
    assert set(results["seconds"]) == {"prepare", "train", "evaluate"}
    for estimates in [results["test"], *results["baseline"].values()]:
        for value in estimates.values():
            assert set(value) == {"value", "low", "high"}
            assert value["low"] <= value["high"]
    assert results["parameters"] == sum(p.numel() for p in run.module.parameters())
    names = {path.name for path in run.path.iterdir()}
    assert names >= {
        "recipe.toml", "schema.json", "metrics.jsonl", "results.json", "report.html", "environment.json", "log.txt",
        "model", "checkpoints", "tensorboard",
    }  # fmt: skip
    assert {path.name for path in (run.path / "model").iterdir()} == {"weights.safetensors", "model.json", "README.md"}


@pytest.mark.parametrize("kind", ["arrow", "pairs", "lists", "tensors", "dataset", "loader", "dict"])
def test_fit_takes_what_people_hold(kind: str) -> None:
    x, y = images()
    tensors = TensorDataset(torch.from_numpy(x).float()[:, None] / 255, torch.from_numpy(y))
    given = {
        "arrow": table().select(["x", "color", "y"]),
        "pairs": (x, y),
        "lists": (x.reshape(len(x), -1).tolist(), y.tolist()),
        "tensors": (torch.from_numpy(x), torch.from_numpy(y)),
        "dataset": tensors,
        "loader": DataLoader(tensors, batch_size=16),
        "dict": {"train": (x[:80], y[:80]), "test": (x[80:], y[80:])},
    }[kind]
    run = fathom.fit(given, network="mlp", **{**QUICK, "epochs": 20})
    assert run.metrics["test"]["accuracy"] > 0.8


def test_a_dataset_that_augments_by_itself_is_refused() -> None:
    class Noisy(Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return torch.rand(1, 8, 8), i % 2

    with pytest.raises(FathomError, match="augment"):
        fathom.fit(Noisy(), **QUICK)


def test_own_module_and_loss_train_and_load_again() -> None:
    x, y = images()
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(len(output))
        return nn.functional.cross_entropy(output, target, reduction="none")

    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    before = module[1].weight.detach().clone()
    run = fathom.fit((x, y), network=module, loss=loss, **{**QUICK, "epochs": 20})
    assert calls
    assert run.metrics["test"]["accuracy"] > 0.8
    assert torch.equal(module[1].weight, before), "the user's own module is left as it was"
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    answers = fathom.load(run.path, module=fresh).predict(x[:4])
    assert [int(answer["answer"]) for answer in answers] == y[:4].tolist()
    with pytest.raises(FathomError, match="whose code is not saved"):
        fathom.load(run.path).predict(x[:4])


def test_predict_equals_evaluate() -> None:
    """One preprocessing path: answers to raw rows give the accuracy that evaluate reports."""
    rows = table()
    run = fathom.fit(rows, target="y", **QUICK)
    answers = run.predict(rows.drop_columns(["y"]))
    share = np.mean([a["answer"] == y for a, y in zip(answers, rows["y"].to_pylist(), strict=True)])
    assert run.evaluate(rows)["test"]["accuracy"]["value"] == pytest.approx(share, abs=1e-6)


def test_two_targets_and_two_kinds_of_input() -> None:
    run = fathom.fit(table(), target="y,z", **{**QUICK, "epochs": 30})
    assert {"y.accuracy", "z.r2"} <= set(run.results["test"])
    answer = run.predict({"x": 2.0, "color": "red"})[0]
    assert answer["y"]["answer"] == "yes"
    assert answer["z"]["answer"] > 2


def test_seeds_and_folds_are_aggregated() -> None:
    seeds = fathom.fit(table(), target="y", seeds=2, **QUICK)
    assert [member["name"] for member in seeds.results["members"]] == ["seed-0", "seed-1"]
    values = [member["test"]["accuracy"]["value"] for member in seeds.results["members"]]
    assert seeds.metrics["test"]["accuracy"].value == pytest.approx(np.mean(values))
    assert seeds.predict({"x": 5.0, "color": "red", "z": 15.0})[0]["answer"] == "yes"
    folds = fathom.fit(table(), target="y", folds=3, **QUICK)
    assert len(folds.results["members"]) == 3


def test_same_seed_same_results(tmp_path: Path) -> None:
    one, other = (fathom.fit(table(), target="y", out=tmp_path / name, **QUICK) for name in ("a", "b"))
    assert one.results["test"] == other.results["test"]
    assert (one.path / "model/weights.safetensors").read_bytes() == (other.path / "model/weights.safetensors").read_bytes()


def test_minutes_become_steps_and_are_kept() -> None:
    run = fathom.fit(table(), target="y", minutes=0.02)
    assert run.recipe.training.steps
    assert run.results["seconds"]["train"] < 0.02 * 60 * 1.5 + 1
    assert fathom.fit(table(), recipe=run.path / "recipe.toml").recipe.training.steps == run.recipe.training.steps


def test_fathom_reads_real_pictures(data_folder: Path) -> None:
    run = fathom.fit(data_folder / "brain-mri", **{"data.image": {"size": 16}, "epochs": 2, "training.threads": 1})
    assert run.results["splits"]["test"] > 40
    picture = next((data_folder / "brain-mri" / "yes").iterdir())
    assert run.predict(picture)[0]["answer"] in ("yes", "no")
