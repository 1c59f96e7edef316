"""Judging samples: distances against reference libraries and by hand, and a generator that knows its rows by heart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image as Pillow
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import fathom
from fathom.analysis import evidence, samples
from fathom.analysis.samples import PPCA, Extractor, frechet, kernel_distance, mixture, precision_recall
from fathom.core.contract import Columns, Predictor, Sampler, Schema, TensorSet
from fathom.core.errors import DataError
from fathom.fields.made import ImageSample
from kit import QUICK, cli

SMALL = (
    "network.form=dense", "network.hidden=[48]", "adversarial.latent=8", "training.steps=60", "training.batch=64",
    "--limit", "700", "training.precision=float32", *QUICK,
)  # fmt: skip


def drawn(rows: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(rows, width)) @ generator.normal(size=(width, width))
    return torch.from_numpy(mixed + shift).float()


def test_the_frechet_distance_is_that_of_the_formula() -> None:
    x, y = drawn(200, 5, 0), drawn(150, 5, 1, 0.7)
    a, b = np.cov(x.double().numpy().T), np.cov(y.double().numpy().T)
    means = x.double().mean(0).numpy() - y.double().mean(0).numpy()
    root = scipy.linalg.sqrtm(a @ b)
    expected = means @ means + np.trace(a) + np.trace(b) - 2 * np.trace(root).real
    assert frechet(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_of_one_feature_it_is_known_by_hand() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0]])
    assert frechet(x, y) == pytest.approx(16 + 2), "means 1 and 5, variances 2 and 0"


def test_a_covariance_without_full_rank_has_a_root() -> None:
    x, y = drawn(10, 30, 0), drawn(12, 30, 1)
    a, b = (torch.cov(z.double().T) for z in (x, y))
    values = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    expected = (x.double().mean(0) - y.double().mean(0)).square().sum() + a.trace() + b.trace() - 2 * values
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-4)


def test_the_kernel_distance_is_the_unbiased_sum_over_pairs() -> None:
    x, y = drawn(17, 4, 0).double(), drawn(11, 4, 1, 0.5).double()

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((torch.dot(a, b) / 4 + 1) ** 3)

    xx = [kernel(x[i], x[j]) for i in range(17) for j in range(17) if i != j]
    yy = [kernel(y[i], y[j]) for i in range(11) for j in range(11) if i != j]
    xy = [kernel(a, b) for a in x for b in y]
    assert kernel_distance(x, y) == pytest.approx(np.mean(xx) + np.mean(yy) - 2 * np.mean(xy), rel=1e-9)


def test_groups_left_out_are_the_distances_of_the_rest() -> None:
    x, y = drawn(40, 3, 0), drawn(40, 3, 1)
    distance, kernel = samples._jackknifed(x, y)
    keep = torch.arange(40) % samples.GROUPS != 0
    left = [
        (frechet(x[torch.arange(40) % 10 != g], y[torch.arange(40) % 10 != g]),
         kernel_distance(x[torch.arange(40) % 10 != g], y[torch.arange(40) % 10 != g]))
        for g in range(10)
    ]  # fmt: skip
    assert int(keep.sum()) == 36
    for found, parts, value in zip(
        (distance, kernel), np.array(left).T, (frechet(x, y), kernel_distance(x, y)), strict=True
    ):
        spread = np.sqrt(0.9 * np.square(parts - parts.mean()).sum())
        assert found.value == pytest.approx(value)
        assert found.high - found.value == pytest.approx(2.262 * spread, rel=1e-6)


def test_precision_and_recall_are_those_of_nearest_neighbors() -> None:
    real, made = drawn(60, 3, 0).numpy(), drawn(50, 3, 1, 1.0).numpy()

    def covered(rows: np.ndarray, by: np.ndarray) -> float:
        radius = NearestNeighbors(n_neighbors=4).fit(by).kneighbors(by)[0][:, 3]
        distances = np.linalg.norm(rows[:, None] - by[None], axis=2)
        return float((distances <= radius).any(1).mean())

    found = precision_recall(torch.from_numpy(real), torch.from_numpy(made))
    assert found == pytest.approx((covered(made, real), covered(real, made)))
    assert precision_recall(torch.from_numpy(real), torch.from_numpy(real)) == (1.0, 1.0)
    assert precision_recall(torch.from_numpy(real), torch.from_numpy(real + 1000)) == (0.0, 0.0)


def test_modes_are_classes_within_twice_their_share() -> None:
    shares = [
        {"made": m, "real": r} for m, r in ((0.1, 0.1), (0.2, 0.1), (0.21, 0.1), (0.05, 0.1), (0.04, 0.1), (0.4, 0.5))
    ]
    assert samples.modes(shares) == 4


def test_the_rivals_have_the_moments_of_their_rows() -> None:
    generator = np.random.default_rng(0)
    pictures = torch.from_numpy(0.5 + 0.1 * generator.normal(size=(2_000, 2)) @ generator.normal(size=(2, 16))).float()
    pictures = pictures.clamp(0.01, 0.99).view(-1, 1, 4, 4)
    for made in (PPCA(pictures, 2).sample(4_000, 0), mixture(pictures, 4_000, 0)):
        assert made.shape == (4_000, 1, 4, 4)
        assert torch.allclose(made.mean(0), pictures.mean(0), atol=0.03)
        assert torch.allclose(torch.cov(made.flatten(1).T), torch.cov(pictures.flatten(1).T), atol=0.01)


# A generator that knows its rows by heart, and one that makes one picture


def digits() -> tuple[Schema, TensorSet]:
    from sklearn.datasets import load_digits

    pixels = (load_digits().images * 255 / 16).round().astype(np.uint8)
    columns = Columns({"image": pixels})
    item = ImageSample(["image"], latent=1)
    item.fit([columns])
    encoded = item.encode(columns)
    assert isinstance(encoded, Tensor)
    return Schema({}, {"image": item}), TensorSet({"image": encoded})


def of_rows(schema: Schema, pool: Tensor) -> Predictor:
    """Codes choose rows of a pool of pictures."""

    def make(codes: Tensor, conditions: Any) -> dict[str, Tensor]:
        chosen = (torch.special.ndtr(codes[:, 0].double()) * len(pool)).long().clamp(0, len(pool) - 1)
        return {"image": pool[chosen] * 2 - 1}

    sampler = Sampler(lambda n, generator: torch.randn(n, 1, generator=generator), make)
    return Predictor(schema, {}, lambda batch: {}, sampler=sampler)


def test_what_is_made_by_heart_is_at_the_floor_and_found_out() -> None:
    schema, rows = digits()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    train, test = rows.subset(order[:1_200]), rows.subset(order[1_200:])
    item = schema.targets["image"]
    assert isinstance(item, ImageSample)
    pool = item.truth(train.column("image"))
    extractor = samples.principal(pool, 20)
    heart = samples.results(of_rows(schema, pool), train, test, 0, extractor)
    assert heart["primary"] == "pca_fid"
    assert heart["test"]["pca_fid"]["value"] < 2 * heart["floor"]["pca_fid"]["value"]
    assert "samples that are much nearer than test rows are copies" in " ".join(heart["evaluation_notes"])
    assert "No column of classes is known" in heart["evaluation_notes"][0]
    assert len(heart["targets"]["image"]["pictured"]) == 2
    one = samples.results(of_rows(schema, pool[:1]), train, test, 0, extractor)
    assert one["test"]["sample_recall"]["value"] < 0.05
    edges = replace(extractor, features=lambda p: (p > 0.5).flatten(1).float())  # which a Gaussian has not
    sharp = samples.results(of_rows(schema, pool), train, test, 0, edges)
    assert (sharp["better"], one["better"]) == ("better", "worse")
    assert "better than the best simple rival" in sharp["verdict"]
    assert (evidence.is_better(sharp), evidence.is_better(one)) == (True, False)
    assert "worse than the best simple rival" in one["verdict"]
    brightness = Extractor(
        "classifier", extractor.features, lambda p: (p.mean((1, 2, 3)) > 0.3).long(), ["dark", "light"], "S."
    )
    told = samples.results(of_rows(schema, pool[:1]), train, test, 0, brightness)
    assert told["test"]["modes"]["value"] == 0
    assert "0 of 2 classes are made about as often as they should be" in told["verdict"]
    with pytest.raises(
        DataError, match="Samples are judged beside as many test rows, and there are 10; give 50 or more"
    ):
        samples.results(of_rows(schema, pool), train, test.subset(torch.arange(10)), 0, extractor)


# Through the command line


def test_a_generator_from_the_command_line() -> None:
    said = cli("fit", "digits", "--network", "gan", "--name", "gan", *SMALL)
    assert said.code == 0, said.err
    assert "Task      picture generation" in said.err
    assert "pictures like these, made of 8 numbers of noise" in said.err
    assert "'label' is not learnt from; it stays beside the rows, to judge the samples by." in said.err
    assert "classifier-FID" in said.out
    assert "times that of real pictures" in said.out
    assert "fathom generate runs/gan -n 64 -o samples.png" in said.out
    results = json.loads(Path("runs/gan/results.json").read_text("utf-8"))
    assert set(results["baseline"]) == {"GMM", "PPCA"}
    assert len(results["targets"]["image"]["classes_made"]) == 10
    assert {line["name"].partition(".")[0] for line in results["network"]["layers"]} == {"generator", "discriminator"}
    lines = [json.loads(line) for line in Path("runs/gan/metrics.jsonl").read_text("utf-8").splitlines()]
    assert {"loss", "generator_loss", "real_accuracy", "made_accuracy", "modes"} <= {
        key.removeprefix("validation/") for key in lines[-1] if key.startswith("validation/")
    }
    assert len(list(Path("runs/gan/samples").glob("step-*.png"))) == len(lines)
    page = Path("runs/gan/report.html").read_text("utf-8")
    assert "below the nearest of" in page
    assert "What it makes" in page
    assert "neither loss says how good the pictures are" in page
    assert "Validation loss was lowest" not in page
    assert "Where it errs" not in page
    assert "What the same noise became in training" in page
    said = cli("generate", "gan", "-n", "9", "-o", "grid.png")
    assert said.err == "9 samples written to grid.png\n"
    with Pillow.open("grid.png") as grid:
        assert grid.size == (392, 392)
    assert cli("generate", "gan", "--walk", "-o", "walk.gif").code == 0
    assert "knows no classes" in cli("generate", "gan", "--class", "7").last
    assert cli("chat", "gan", "--say", "hello").last == (
        "fathom: runs/gan writes no text (what it answers is of kind image_sample). Its verb is: fathom generate runs/gan -n 64 "
        "-o samples.png\n"
    )
    assert (
        "makes pictures of noise and answers no rows. Its verb is: fathom generate"
        in cli("predict", "gan", "grid.png").last
    )
    run = fathom.load("gan")
    assert run.evaluate()["test"] == run.results["test"]
    again = fathom.fit("runs/gan/recipe.toml", name="again")
    assert again.results["test"] == run.results["test"]


def test_a_conditional_generator_makes_the_class_that_is_asked() -> None:
    said = cli("fit", "digits", "--network", "gan", "network.conditional=true", "--name", "told", *SMALL)
    assert said.code == 0, said.err
    assert "'label' is told to both networks." in said.err
    assert "--class CLASS" in said.out
    assert cli("generate", "told", "--class", "7", "-n", "4", "-o", "seven.png").code == 0
    assert "There is no class '12'" in cli("generate", "told", "--class", "12").last
    run = fathom.load("told")
    one, other = (run.samples(3, of_class=word).pictures for word in ("1", "2"))
    assert not torch.equal(one, other)


def test_a_bare_picture_of_a_conditional_network_is_refused_plainly() -> None:
    small = ("network.hidden=[16]", "network.code=4", "training.steps=5", "training.batch=32", "--limit", "300", *QUICK)
    assert cli("fit", "digits", "--network", "vae", "network.conditional=true", "--name", "cvae", *small).code == 0
    Pillow.new("L", (8, 8)).save("x.png")
    said = cli("predict", "cvae", "x.png").last
    assert "x.png is a picture alone, and this model reads 'label' beside it" in said
    answer = fathom.load("cvae").predict({"image": "x.png", "label": "3"})
    assert answer[0]["answer"] in ("anomaly", "normal")


def test_a_cleaned_picture_is_written() -> None:
    small = ("network.hidden=[16]", "network.code=4", "training.steps=5", "training.batch=32", "--limit", "300", *QUICK)
    assert (
        cli("fit", "digits", "--network", "autoencoder", "reconstruction.noise=0.3", "--name", "clean", *small).code
        == 0
    )
    for name in ("a", "b"):
        Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(f"{name}.png")
    said = cli("predict", "clean", "a.png", "-o", "out.png")
    assert said.err == "1 picture written to out.png\n"
    with Pillow.open("out.png") as made:
        assert made.size == (8, 8)
    assert cli("predict", "clean", "a.png", "b.png", "-o", "folder").err == "2 pictures written to folder\n"
    assert sorted(path.name for path in Path("folder").iterdir()) == ["a.png", "b.png"]
    for words, told in (
        (
            ("a.png", "b.png", "-o", "out.png"),
            "2 pictures were made, and out.png is one file; name a folder, as in -o clean",
        ),
        (("a.png", "-o", "a.png"), "a.png is one of the inputs and would be overwritten"),
    ):
        assert told in cli("predict", "clean", *words).last
