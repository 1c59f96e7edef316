"""Reconstruction through the command line: fit, predict, generate, embed, evaluate, report; and what is said where something
is missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import fathom
from fathom.core.recipe import Recipe
from kit import QUICK, cli

SMALL = ("network.hidden=[32]", "network.code=6", "training.steps=30", "training.batch=64", "data.limit=400", *QUICK)


def sensors(path: Path, rows: int = 300, label: bool = True) -> Path:
    """Three numbers of which one follows from another, two words; the last rows break the rule."""
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["speed", "load", "heat", "state", *(["class"] if label else [])])
        for row in range(rows):
            x, y = generator.normal(size=2)
            odd = row % 25 == 24
            heat = x + 0.05 * generator.normal() + (8 if odd else 0)
            known = [str(int(odd))] if label else []
            writer.writerow([f"{x:.4f}", f"{y:.4f}", f"{heat:.4f}", "on" if y > 0 else "off", *known])
    return path


def test_pictures_are_reconstructed_without_a_label() -> None:
    said = cli("fit", "digits", "--network", "autoencoder", "--name", "ae", *SMALL)
    assert said.code == 0, said.err
    assert "Target    image: the same images, to be reconstructed (squared error)" in said.err
    assert "'label' is not learnt from; it stays beside the rows" in said.err
    assert "PSNR (dB)" in said.out
    results = json.loads(Path("runs/ae/results.json").read_text("utf-8"))
    assert results["task"] == "reconstruction"
    assert set(results["baseline"]) == {"PCA", "mean"}
    assert len(results["targets"]["image"]["pictured"]) == 2, "reconstructions and codes"
    page = Path("runs/ae/report.html").read_text("utf-8")
    assert "below what the network makes of their codes" in page
    assert "Codes of test rows on their first two principal components" in page
    assert results["anomaly"]["threshold"] > 0
    recipe = Recipe.read(Path("runs/ae/recipe.toml"))
    assert recipe["training"]["algorithm"] == "reconstruction"
    assert recipe["reconstruction"]["likelihood"] == "squared"


def test_a_run_repeats_evaluates_embeds_and_answers() -> None:
    run = fathom.fit("digits", network="autoencoder", **changes())
    again = fathom.fit(run.path / "recipe.toml")
    assert again.results["test"] == run.results["test"]
    assert run.evaluate()["test"] == run.results["test"]
    Pillow.fromarray((np.random.default_rng(0).random((8, 8)) * 255).astype(np.uint8)).save("noise.png")
    assert run.embed("noise.png").shape == (1, 6)
    (answer,) = run.predict("noise.png")
    assert answer["answer"] == "anomaly"
    assert answer["score"] > answer["threshold"]
    loaded = fathom.load(run.path)
    assert loaded.predict("noise.png") == [answer]


def changes(**more: Any) -> dict[str, Any]:
    """The small network as keys."""
    return {
        "network.hidden": [32], "network.code": 6, "training.steps": 30, "training.batch": 64, "data.limit": 400,
        "training.threads": 1, "training.device": "cpu", **more,
    }  # fmt: skip


def test_noise_is_taken_away() -> None:
    keys = {"reconstruction.noise": 0.3, "training.steps": 250, "training.learning_rate": 5e-3, "data.limit": 1_500}
    run = fathom.fit("digits", network="autoencoder", **changes(**keys))
    assert run.results["primary"] == "denoised_psnr"
    noisy = run.metrics["baseline"]["noisy picture"]["denoised_psnr"]
    assert noisy.value == pytest.approx(-20 * np.log10(0.3), abs=0.15), "10.46 dB"
    assert run.metrics["test"]["denoised_psnr"] > noisy.value + 2
    assert "with noise of 0.3" in " ".join(run.results["evaluation_notes"])


def test_a_vae_makes_pictures() -> None:
    said = cli("fit", "digits", "--network", "vae", "--name", "vae", *SMALL)
    assert said.code == 0, said.err
    assert "black and white (stochastic)" in said.err
    assert "negative ELBO (nats)" in said.out
    results = json.loads(Path("runs/vae/results.json").read_text("utf-8"))
    test = {name: value["value"] for name, value in results["test"].items()}
    assert test["nll"] < test["negative_elbo"]
    assert test["kl"] > 0
    assert results["primary"] == "nll"
    assert "nll" in results["baseline"]["mean"]
    assert "fathom generate runs/vae -n 64" in said.out
    assert cli("generate", "vae", "-n", "9", "-o", "grid.png").err == "9 samples written to grid.png\n"
    with Pillow.open("grid.png") as grid:
        assert grid.size == (392, 392), "3 x 3 pictures of 8 x 8 with lines between, 14 times as large"
    first = Path("grid.png").read_bytes()
    cli("generate", "vae", "-n", "9", "-o", "grid.png")
    assert Path("grid.png").read_bytes() == first, "the seed decides"
    cli("generate", "vae", "-n", "9", "-o", "grid.png", "--seed", "1")
    assert Path("grid.png").read_bytes() != first
    assert cli("generate", "vae", "--walk", "-o", "walk.gif").code == 0
    with Pillow.open("walk.gif") as walk:
        assert walk.n_frames == 10  # type: ignore[attr-defined]
    made = fathom.load("vae").samples(5)
    assert made.pictures is not None
    assert made.pictures.shape == (5, 1, 8, 8)
    for words, told in (
        (("--class", "7"), "knows no classes, so --class 7 cannot be asked of it."),
        (("-o", "x.txt"), "Samples cannot be written as '.txt'; use .png (a grid), .gif (a walk), or .csv for rows."),
        (("-o", "x.csv"), "pictures were made, which cannot be written as '.csv'; use .png for a grid."),
        (("-n", "1", "--walk"), "n = 1 should be 2 or more for a walk."),
    ):
        assert told in cli("generate", "vae", *words).last


def test_a_conditional_vae_makes_what_is_asked() -> None:
    said = cli("fit", "digits", "--network", "vae", "network.conditional=true", "--name", "cvae", *SMALL)
    assert said.code == 0, said.err
    assert "'label' is told to the network and is not reconstructed." in said.err
    assert cli("generate", "cvae", "-n", "4", "--class", "7", "-o", "seven.png").code == 0
    seven, three = (fathom.load("cvae").samples(4, of_class=word).pictures for word in "73")
    assert seven is not None
    assert three is not None
    assert not seven.equal(three)
    assert "There is no class '17' in runs/cvae. Did you mean '7'?" in cli("generate", "cvae", "--class", "17").last


def test_what_has_no_prior_makes_nothing() -> None:
    cli("fit", "digits", "--network", "autoencoder", "--name", "ae", *SMALL)
    assert "runs/ae is a plain autoencoder: it says nothing about which codes are likely" in cli("generate", "ae").last


def test_a_table_has_scores_and_the_columns_that_contribute() -> None:
    path = sensors(Path("sensors.csv"))
    run = fathom.fit(path, algorithm="reconstruction", seed=1, **{"training.threads": 1, "training.steps": 300})
    assert list(run.schema.targets) == ["numbers", "categories"]
    assert run.schema.special == {"label": "class"}
    told = run.results["anomaly"]
    assert told["positive"] == "1"
    assert set(told["baseline"]) == {"PCA error", "isolation forest", "nearest rows"}
    assert told["test"]["auroc"]["value"] > 0.9
    assert "which was not learnt from" in " ".join(run.results["evaluation_notes"])
    normal, odd = run.predict([{"speed": 0.5, "load": 1.0, "heat": 0.5, "state": "on"},
                               {"speed": 0.0, "load": 1.0, "heat": 9.0, "state": "on"}])  # fmt: skip
    assert normal["answer"] == "normal"
    assert odd["answer"] == "anomaly"
    assert next(iter(odd["columns"])) in ("heat", "speed")
    assert sum(odd["columns"].values()) == pytest.approx(1, abs=1e-3)
    assert odd["mostly"].split()[0] == next(iter(odd["columns"]))
    shown = cli("predict", run.path, path)
    assert "mostly" in shown.out
    assert "columns.heat" not in shown.out
    other = run.evaluate(sensors(Path("other.csv"), rows=120))
    assert other["rows"] == 120
    assert other["anomaly"]["test"]["auroc"]["value"] > 0.9
    alone = run.evaluate(sensors(Path("bare.csv"), rows=120, label=False))
    assert "test" not in alone["anomaly"], "no label, no areas"


def test_a_table_without_a_label_keeps_every_column() -> None:
    path = sensors(Path("sensors.csv"), label=False)
    run = fathom.fit(path, network="vae", **{"training.threads": 1, "training.steps": 60})
    assert [name for item in run.schema.inputs.values() for name in item.columns] == ["speed", "load", "heat", "state"]
    assert run.schema.special == {}
    assert run.results["primary"] == "nll"
    assert cli("generate", run.path, "-n", "3", "-o", "made.csv").code == 0
    with Path("made.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert set(rows[0]) == {"speed", "load", "heat", "state"}


@pytest.mark.parametrize(
    ("columns", "words", "told"),
    [
        ({"a": "text of many words", "b": 1}, (), "'a' is of kind text; what can be reconstructed is numbers, categories and"),
        ({"a": 1, "b": 1}, (), "has no column to learn from (a, b: every value is the same)"),
        ({"a": "x", "class": 1}, ("reconstruction.noise=0.2",), "reconstruction.noise = 0.2 is added to pixels and numbers"),
        ({"a": 1, "b": 2}, ("network.conditional=true",), "network.conditional = true tells the network a label"),
        ({"a": 1, "b": 2}, ("reconstruction.nois=0.2",), "There is no key 'reconstruction.nois'. Did you mean"),
        ({"a": 1, "b": 2}, ("reconstruction.beta=2",), "needs a network with a distribution of codes; use --network vae."),
        ({"a": 1, "b": 2}, ("network.form=convolution",), "takes one picture in its convolutional form"),
    ],
)
def test_what_cannot_be_done_is_said(columns: dict[str, Any], words: tuple[str, ...], told: str) -> None:
    def value(kind: Any, row: int) -> str:
        if kind == "x":
            return "pqrs"[row % 4]
        if isinstance(kind, str):
            return f"the {row} cats sat on {row * 7} mats"
        return str((row * 37 % 101) / 10) if told != columns and "every value" not in told else "5"

    lines = [",".join(columns), *(",".join(value(kind, row) for kind in columns.values()) for row in range(60))]
    Path("t.csv").write_text("\n".join(lines) + "\n", "utf-8")
    said = cli("fit", "t.csv", "--network", "autoencoder", "--steps", "2", *words, *QUICK)
    assert said.code == 2
    assert told in said.last
    assert len(said.last.splitlines()) <= 6


def test_text_is_written_and_not_sampled() -> None:
    Path("book.txt").write_text(" ".join(f"the {n} cats sat on {n * n} mats." for n in range(90)), "utf-8")
    said = cli("fit", "book.txt", "--steps", "2", "--name", "book", "data.text.length=16", "training.batch=4", *QUICK)
    assert said.code == 0, said.err
    assert "runs/book writes text, and --walk is for pictures" in cli("generate", "book", "--walk").last
    assert cli("generate", "book", "--length", "3").code == 0


def test_statically_binarized_mnist_is_the_same_twice(data_folder: Path) -> None:
    keys = changes(**{"training.steps": 3})
    one, two = (fathom.fit("mnist", network="vae", **keys) for _ in range(2))
    assert one.results["test"] == two.results["test"]
    assert one.results["baseline"]["mean"]["nll"]["value"] == pytest.approx(206, abs=12), "206.9 nats with all rows"


@pytest.mark.parametrize("network", ["autoencoder", "gan"])
def test_views_are_refused_where_nothing_is_averaged(network: str) -> None:
    said = cli("fit", "digits", "--network", network, "data.image.views=2", *QUICK)
    assert said.code == 2
    assert "data.image.views = 2 takes the mean of answers over mirrored pictures" in said.last
    assert "leave it out" in said.last
