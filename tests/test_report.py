"""The report: what stands on the page, that names cannot become markup, its size, and what it advises.

Runs are made up but complete: ten classes with pictures, a binary table, a regression, one hundred classes,
a run that was stopped, one with hostile names.
"""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fathom.analysis import advice as rules
from fathom.analysis import charts, report
from fathom.analysis.advice import suggestions
from fathom.analysis.charts import Axis
from fathom.analysis.evidence import Evidence, best_baseline, calibration, is_better, kept_epoch, read_evidence
from fathom.analysis.report import result_table, write_report
from fathom.core.errors import DamagedError
from fathom.core.run import RunFolder, read_json, sealed_json

HOSTILE = "<script>alert(1)</script>"


# ---- made-up runs


def picture(seed: int, size: int = 16) -> str:
    from PIL import Image

    pixels = bytes(random.Random(seed).randrange(256) for _ in range(size * size))
    file = io.BytesIO()
    Image.frombytes("L", (size, size), pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def estimate(value: float, half: float = 0.015) -> dict[str, float]:
    top = 1.0 if value <= 1 else math.inf
    return {
        "value": value,
        "low": max(value - half, 0.0) if value >= 0 else value - half,
        "high": min(value + half, top),
    }


def epochs(count: int, metric: str = "accuracy", turn: int | None = None) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; validation loss rises after the epoch `turn`."""
    lines = []
    for epoch in range(1, count + 1):
        train = 2.2 * math.exp(-4.5 * epoch / count) + 0.03
        extra = 0.02 * max(0, epoch - turn) if turn else 0.0
        lines.append(
            {
                "stage": 0,
                "step": 18 * epoch,
                "epoch": epoch,
                "seconds": 0.4 * epoch,
                "rate": 0.003 * math.sin(math.pi * epoch / (count + 1)),
                "train/loss": train,
                "validation/loss": train * 1.1 + 0.05 + extra,
                f"validation/{metric}": 0.985 - 0.6 * math.exp(-5 * epoch / count),
            }
        )
    return lines


def category(names: list[str], seed: int = 0, rows: int = 36) -> dict[str, Any]:
    rng = random.Random(seed)
    count = len(names)
    confusion = [[0] * count for _ in names]
    for truth in range(count):
        for _ in range(rows):
            confusion[truth][truth if rng.random() < 0.94 else rng.randrange(count)] += 1
    classes = []
    for i, name in enumerate(names):
        found, answered = confusion[i][i], sum(row[i] for row in confusion)
        recall, precision = found / rows, found / max(answered, 1)
        classes.append(
            {
                "name": name,
                "rows": rows,
                "precision": precision,
                "recall": recall,
                "specificity": 0.99,
                "f1": 2 * recall * precision / max(recall + precision, 1e-9),
                "auroc": 0.99,
            }
        )
    bins = [
        {
            "low": i / 10,
            "high": (i + 1) / 10,
            "confidence": i / 10 + 0.06,
            "accuracy": min(1.0, i / 10 + 0.08),
            "rows": 3 + i**3 // 4,
        }
        for i in range(3, 10)
    ]
    return {"kind": "category", "class_names": names, "confusion": confusion, "classes": classes, "reliability": bins}


NETWORK = {
    "name": "cnn",
    "reason": "Small pictures in ten classes: convolutions see a stroke at every place.",
    "rivals": [
        {"name": "mlp", "pros": "Trains in a second.", "cons": "Has to learn a stroke anew at every place."},
        {
            "name": "resnet",
            "pros": "More accurate on large color pictures.",
            "cons": "Ten times slower here, for no gain.",
        },
    ],
    "layers": [
        {"name": "convolution1", "type": "Conv2d", "output": [32, 8, 8], "parameters": 320},
        {"name": "pool", "type": "MaxPool2d", "output": [32, 4, 4], "parameters": 0},
        {"name": "dense1", "type": "Linear", "output": [64], "parameters": 32832},
        {"name": "head", "type": "Linear", "output": [10], "parameters": 650},
    ],
    "paper": "https://doi.org/10.1109/5.726791",
}


def digits_results() -> dict[str, Any]:
    names = [str(i) for i in range(10)]
    metrics = {
        "accuracy": 0.9806,
        "balanced_accuracy": 0.9803,
        "f1_macro": 0.9804,
        "auroc": 0.9992,
        "log_loss": 0.0731,
        "ece": 0.0123,
    }
    linear = {
        "accuracy": 0.9556,
        "balanced_accuracy": 0.955,
        "f1_macro": 0.9549,
        "auroc": 0.9981,
        "log_loss": 0.1622,
        "ece": 0.0201,
    }
    guess = {
        "accuracy": 0.1028,
        "balanced_accuracy": 0.1,
        "f1_macro": 0.0186,
        "auroc": 0.5,
        "log_loss": 2.3026,
        "ece": 0.004,
    }
    return {
        "task": "image classification",
        "location": "digits",
        "seed": 0,
        "splits": {"train": 1150, "validation": 287, "test": 360},
        "test": {name: estimate(value, 0.013 if name != "log_loss" else 0.03) for name, value in metrics.items()},
        "baseline": {
            "majority class": {name: estimate(value, 0.012) for name, value in guess.items()},
            "logistic regression on pixels": {name: estimate(value, 0.021) for name, value in linear.items()},
        },
        "difference": {"accuracy": estimate(0.025)},
        "primary": "accuracy",
        "better": "better",
        "verdict": "The network is better than logistic regression: accuracy +0.025 (0.008 to 0.04).",
        "seconds": {"prepare": 0.31, "train": 6.84, "evaluate": 0.92},
        "parameters": 33802,
        "network": NETWORK,
        "notes": [
            "'label' has 10 different values and is taken as a category.",
            "Pictures are 8 × 8 gray, 0 to 16; scaled to 0 to 1.",
            "No test rows were given: 20 % were set aside, stratified by class.",
        ],
        "kept": "best weights, epoch 17 by validation loss",
        "kept_epoch": 17,
        "targets": {"label": category(names)},
        "mistakes": [
            {
                "row": 7 * i,
                "name": f"digits/{7 * i}.png",
                "target": "label",
                "truth": str(i % 10),
                "answer": str((i + 5) % 10),
                "confidence": 0.98 - i / 50,
                "picture": picture(i, 8),
            }
            for i in range(8)
        ],
        "next": ["fathom predict runs/digits-1 new.png", "fathom report runs/digits-1"],
    }


def adult_results() -> dict[str, Any]:
    target = category(["<=50K", ">50K"], rows=600)
    target["classes"][1]["rows"], target["classes"][1]["recall"] = 180, 0.61
    values = {
        "age": 38,
        "workclass": "Private",
        "education": "HS-grad",
        "hours.per.week": 40,
        "capital.gain": 7688.0,
        "sex": "Male",
        "native.country": "United-States",
        "relationship": "Husband",
        "marital.status": "Married",
        "fnlwgt": 284582,
    }
    return {
        "task": "binary classification",
        "location": "adult.csv",
        "seed": 0,
        "splits": {"train": 28000, "validation": 4500, "test": 780},
        "primary": "auroc",
        "test": {"accuracy": estimate(0.852), "auroc": estimate(0.908), "ece": estimate(0.081, 0.01)},
        "baseline": {
            "logistic regression": {"accuracy": estimate(0.848), "auroc": estimate(0.906)},
            "gradient boosting": {"accuracy": estimate(0.871), "auroc": estimate(0.926)},
        },
        "better": "not better",
        "verdict": "The network is not better than gradient boosting: AUROC -0.018 (-0.040 to 0.004).",
        "seconds": {"prepare": 1.2, "train": 81.0, "evaluate": 2.0},
        "parameters": 18433,
        "network": {**NETWORK, "name": "mlp", "paper": "Rumelhart, Hinton, Williams 1986"},
        "notes": [],
        "kept": "last weights",
        "targets": {"income": target},
        "mistakes": [
            {
                "row": i,
                "name": None,
                "target": "income",
                "truth": ">50K",
                "answer": "<=50K",
                "confidence": 0.97,
                "values": values,
            }
            for i in range(5)
        ],
        "next": [],
    }


def housing_results() -> dict[str, Any]:
    rng = random.Random(1)
    pairs = [[truth, truth + rng.gauss(0, 0.5)] for truth in (rng.uniform(0.2, 5) for _ in range(4128))]
    return {
        "task": "regression",
        "location": "housing.csv",
        "seed": 3,
        "splits": {"train": 14448, "validation": 2064, "test": 4128},
        "test": {"rmse": estimate(0.5031), "mae": estimate(0.334), "r2": estimate(0.807)},
        "primary": "rmse",
        "baseline": {
            "mean": {"rmse": estimate(1.146), "mae": estimate(0.906), "r2": estimate(-0.0002, 1e-4)},
            "ridge regression": {"rmse": estimate(0.7281), "mae": estimate(0.533), "r2": estimate(0.596)},
        },
        "better": "better",
        "verdict": "The network is better than ridge regression: RMSE smaller by 0.225 (0.208 to 0.241).",
        "seconds": {"prepare": 0.4, "train": 31.0, "evaluate": 1.0},
        "parameters": 9217,
        "network": {**NETWORK, "name": "mlp"},
        "notes": [],
        "kept": "average of the weights",
        "targets": {"price": {"kind": "number", "scatter": pairs}},
        "mistakes": [
            {
                "row": 9,
                "name": "row 9",
                "target": "price",
                "truth": 5.0,
                "answer": 1.25,
                "confidence": None,
                "values": {"rooms": 3, "age": 52.0},
            }
        ],
        "next": [],
        "members": [{"name": f"seed-{i}", "test": {"rmse": estimate(0.5 + i / 100)}} for i in range(3)],
    }


def many_results() -> dict[str, Any]:
    names = [f"class number {i} with a rather long name" for i in range(100)]
    big = (
        "data:image/png;base64,"
        + base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(0).randbytes(60_000)).decode()
    )
    return {
        **digits_results(),
        "targets": {"label": category(names, rows=20)},
        "mistakes": [
            {
                "row": i,
                "name": f"{i}.png",
                "target": "label",
                "truth": "a",
                "answer": "b",
                "confidence": 0.9,
                "picture": big,
            }
            for i in range(60)
        ],
        "notes": ["A long note. " * 100] * 500,
    }


def hostile_results() -> dict[str, Any]:
    names = [
        HOSTILE,
        '" onmouseover="alert(1)',
        "</style><script>alert(2)</script>",
        "{{ 7 * 7 }}",
        "\u202egnp.exe\ud800\x00",
    ]
    value = digits_results()
    value.update(
        task=HOSTILE,
        location=HOSTILE,
        verdict=HOSTILE,
        kept=HOSTILE,
        notes=names,
        next=names,
        primary=HOSTILE,
        test={HOSTILE: estimate(0.5), "accuracy": estimate(0.5)},
        baseline={HOSTILE: {HOSTILE: estimate(0.4)}},
        targets={HOSTILE: category(names)},
        mistakes=[
            {
                "row": 1,
                "name": "javascript:alert(1)",
                "target": HOSTILE,
                "truth": names[1],
                "answer": HOSTILE,
                "confidence": 0.9,
                "picture": bad,
                "values": {HOSTILE: names[1]},
            }
            for bad in (
                "data:image/svg+xml;base64,PHN2Zz4=",
                'data:image/png;base64,AAAA" onerror="alert(1)',
                "https://example.org/x.png",
            )
        ],
        network={
            **NETWORK,
            "name": HOSTILE,
            "reason": HOSTILE,
            "paper": "javascript:alert(1)",
            "rivals": [{"name": HOSTILE, "pros": HOSTILE, "cons": HOSTILE}],
            "layers": [{"name": HOSTILE, "type": HOSTILE, "output": HOSTILE, "parameters": 3}],
        },
        members=[{"name": HOSTILE, "test": {HOSTILE: estimate(0.4)}}],
    )
    return value


RECIPE = {
    "data": {"location": "digits", "bad_rows": 0.01, "memory": 4.0},
    "network": {"name": "cnn", "dropout": 0.1, "filters": [32], "dense": [64]},
    "training": {
        "algorithm": "supervised",
        "epochs": 20,
        "batch": 64,
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "seed": 0,
    },
}
SCHEMA = {
    "inputs": {
        "image": {
            "kind": "image",
            "columns": ["image"],
            "options": {},
            "state": {"shape": [1, 8, 8], "factor": 1, "mean": [0.305], "std": [0.376]},
        }
    },
    "targets": {
        "label": {
            "kind": "category",
            "columns": ["label"],
            "options": {},
            "state": {"vocabularies": [[*"0123456789"]], "classes": [*"0123456789"], "soft": False},
        }
    },
    "special": {},
}
ENVIRONMENT = {
    "fathom": "0.1.0",
    "python": "3.11.2",
    "torch": "2.13.0",
    "device": "cpu",
    "cpu": {"cores": 2, "threads": 2},
}


def make_run(
    out: Path,
    results: dict[str, Any] | None,
    name: str = "digits-1",
    lines: list[dict[str, Any]] | None = None,
    **parts: Any,
) -> RunFolder:
    """A run folder; what is None is left out."""
    folder = RunFolder(out / name)
    folder.path.mkdir(parents=True)
    files = {"recipe": RECIPE, "schema": SCHEMA, "environment": ENVIRONMENT, **parts}
    if files["recipe"] is not None:
        folder.file("recipe.toml").write_text(tomli_w.dumps(files["recipe"]), "utf-8")
    for file, value in {**files, "results": results}.items():
        if file != "recipe" and value is not None:
            folder.file(f"{file}.json").write_bytes(sealed_json(value))
    if lines is None:
        lines = epochs(20, turn=17)
    folder.file("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


# ---- reading the page


class Page(HTMLParser):
    """The elements, attributes and text of a page, and whether its tags match."""

    VOID = {"meta", "img", "br", "path", "rect", "link"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(self.source)
        assert not self.open
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append((self.open[-1], data))
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def safe(page: Page) -> None:
    """Nothing on the page can run or fetch."""
    tags = {name for name, _ in page.elements}
    assert not tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "input",
        "foreignObject",
        "animate",
        "use",
    }
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert set(attributes) & {"src", "srcset", "action", "formaction", "xlink:href", "background"} <= (
            {"src"} if tag == "img" else set()
        )
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
            assert attributes["alt"]
        if tag == "a":
            assert (attributes["href"] or "").startswith(("#", "https://"))
        if "style" in attributes:
            assert all(part[0] in ("left", "bottom", "width", "--mix") for part in styles(attributes["style"] or ""))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "url(" not in page.source
    assert "@import" not in page.source


def styles(text: str) -> list[tuple[str, float]]:
    """Inline styles; each must be a number in percent."""
    return [(name, float(value.removesuffix("%"))) for name, value in (part.split(":") for part in text.split(";"))]


@pytest.fixture
def digits(tmp_path: Path) -> Page:
    return Page(write_report(make_run(tmp_path, digits_results())))


# ---- what stands on the page


def test_answer_comes_first(digits: Page) -> None:
    assert digits.headings[0] == ("h1", "98.1 % accuracy")
    assert "on 360 test rows that the network had never seen. 95 % interval: 96.8 – 99.4 %." in digits.text
    assert (
        digits.text.index("98.1 % accuracy")
        < digits.text.index("The network is better than logistic")
        < digits.text.index("F1 macro")
    )


def test_sections_in_order(digits: Page) -> None:
    wanted = [
        "Result",
        "What was asked and guessed",
        "Training",
        "Where it errs",
        "Worst mistakes",
        "Network: cnn",
        "Recipe",
        "Environment",
        "What to try next",
    ]
    assert [text for tag, text in digits.headings if tag == "h2"] == wanted


def test_page_is_offline_small_and_accessible(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path, digits_results()))
    page = Page(path)
    safe(page)
    assert path == tmp_path / "digits-1" / "report.html"
    assert path.stat().st_size < 150_000
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(item.get("aria-label") for item in page.all("div") if item.get("role") in ("img", "region"))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert "prefers-color-scheme: dark" in page.source
    assert "@media print" in page.source


def test_asked_and_guessed(digits: Page) -> None:
    for text in (
        "Image classification",
        "1,150 rows",
        "287 rows",
        "360 rows",
        "pictures, ",
        "8 x 8",
        "10 classes: 0, 1, 2",
        "'label' has 10 different values",
        "train 6.8 s",
    ):
        assert text in digits.text


def test_curves_mark_the_kept_epoch(digits: Page) -> None:
    labels = chart_labels(digits)
    assert any(label.startswith("Loss over 20 epochs: training ends at") for label in labels)
    assert any(label.startswith("Validation accuracy over 20 epochs") for label in labels)
    assert any(label.startswith("Learning rate over 20 epochs") for label in labels)
    (left,) = {item["style"] for item in digits.all("span") if (item.get("class") or "").startswith("flag")}
    assert left == "left:84.21%"  # epoch 17 of 20: 16 / 19


def test_confusion_calibration_and_classes(digits: Page) -> None:
    assert "Confusion matrix: rows are the truth" in digits.text
    assert "Its confidence can be trusted" in digits.text
    assert "weakest" in digits.text
    assert "Specificity" in digits.text


def test_mistakes_show_pictures_or_values(tmp_path: Path, digits: Page) -> None:
    assert len(digits.all("img")) == 8
    assert digits.all("img")[0]["alt"] == "digits/0.png: truth 0, answered 5"
    page = Page(write_report(make_run(tmp_path, adult_results(), "adult-1")))
    assert "Answer <=50K Truth >50K 97.0 % sure" in page.text
    assert "capital.gain 7,688" in page.text
    assert "and 2 more" in page.text


def test_network_recipe_environment_and_next(digits: Page) -> None:
    for text in (
        "Has to learn a stroke anew",
        "32 × 8 × 8",
        "32,832",
        "33,802",
        "[training]",
        'optimizer = "adamw"',
        "cpu.cores",
        "fathom predict runs/digits-1 new.png",
    ):
        assert text in digits.text
    assert digits.all("a")[-1] == {"href": NETWORK["paper"], "rel": "noopener noreferrer"}


def test_binary_table(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, adult_results(), "adult-1")))
    safe(page)
    assert page.headings[0] == ("h1", "AUROC 0.908")
    assert "Use gradient boosting until a network is clearly better" in page.text
    assert {"class": "verdict no"} in page.all("p")


def test_regression(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, housing_results(), "housing-1", epochs(20, "rmse"))))
    safe(page)
    assert page.headings[0] == ("h1", "RMSE 0.5031")
    assert "Answer against truth (1,377 of 4,128 rows)" in page.text
    assert "on average over 3 members" in page.text
    assert "Of the member that is deployed" in page.text
    assert "off by 3.75" in page.text
    assert "seed-2" in page.text
    assert "R²" in page.text
    assert "Confusion" not in page.text


def test_unfinished_run_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, None, lines=epochs(3), environment=None, schema=None)
    page = Page(write_report(run))
    safe(page)
    assert page.headings[0] == ("h1", "Not finished")
    assert "The run ended after 3 epochs; nothing has been tested yet." in page.text
    for file in ("results.json", "schema.json", "environment.json"):
        assert f"{run.file(file)} is missing" in page.text
    assert f"fathom fit --resume {run.path}" in page.text
    assert "Train longer" not in page.text


def test_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, None, lines=[], recipe=None, schema=None, environment=None)
    page = Page(write_report(run))
    assert "No epoch was finished, so there is nothing to draw." in page.text
    assert "recipe.toml cannot be read" in page.text


@pytest.mark.parametrize("file", ["results.json", "environment.json"])
def test_damage_is_told_and_not_shown(tmp_path: Path, file: str) -> None:
    run = make_run(tmp_path, digits_results())
    path = run.file(file)
    path.write_bytes(path.read_bytes().replace(b"digits", b"didgit").replace(b"2.13.0", b"2.14.0"))
    page = Page(write_report(run))
    assert f"{path} is damaged: its checksum does not match its content." in page.text
    assert "2.14.0" not in page.text
    assert ("Repeat this run" in page.text) == (file == "results.json")
    assert "Finish this run" not in page.text


def test_partial_results_are_enough(tmp_path: Path) -> None:
    """Every single key of results.json may be missing."""
    whole = digits_results()
    for i, key in enumerate(whole):
        rest = {name: value for name, value in whole.items() if name != key}
        write_report(make_run(tmp_path, rest, f"run-{i}"))
    Page(write_report(make_run(tmp_path, {"task": "x"}, "bare", recipe={"training": {"epochs": 3}})))


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    lines = epochs(6)
    lines[3]["train/loss"] = lines[3]["validation/loss"] = "nan"
    results = digits_results()
    results["test"]["auroc"] = {"value": None, "low": None, "high": None}
    results["targets"]["label"]["classes"][0]["auroc"] = None
    page = Page(write_report(make_run(tmp_path, results, lines=lines)))
    assert "In 1 epoch the loss was not a finite number; the curve is broken there." in page.text
    assert "Take smaller steps" in page.text
    assert "nan" not in " ".join(chart_labels(page))


def chart_labels(page: Page) -> list[str]:
    """What is said of each chart to those who do not see it."""
    return [item["aria-label"] or "" for item in page.all("div") if item.get("role") == "img"]


def test_stages_have_their_names_and_rates(tmp_path: Path) -> None:
    lines = [{**line, "epoch": at, "stage": stage} for line, (at, stage) in zip(
        epochs(5), [(1, 0), (1.6, 0), (2.6, 1), (3.6, 1), (4, 1)], strict=True)]  # fmt: skip
    stages = [
        {"name": "head", "steps": 8, "augment": False, "rates": {"*": 0.0, "head.*": 1.0}},
        {"name": HOSTILE, "steps": 12, "rates": {"*": 0.03, "body.0.*": 0.005003, "body.norm.*": 0.0, "head.*": 0.1}},
    ]
    results = {**digits_results(), "kept": "last weights, epoch 4", "kept_epoch": 4}
    page = Page(write_report(make_run(tmp_path, results, lines=lines, recipe={**RECIPE, "stage": stages})))
    safe(page)
    assert "head not augmented 8 head.* × 1, all others frozen" in page.text
    assert "head.* × 0.1, body.0.* × 0.005, body.norm.* frozen, all others × 0.03" in page.text
    assert "lowest at epoch 4 of 4" in page.text
    assert "Loss over 4 epochs" in " ".join(chart_labels(page))
    flags = {item["style"] for item in page.all("span") if (item.get("class") or "").startswith("flag")}
    assert flags == {"left:20.0%", "left:100.0%"}, "the second stage begins where the first one ended, after 1.6 epochs"


def test_one_epoch_is_drawn_as_dots(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, digits_results(), lines=epochs(1))))
    assert len([item for item in page.all("path") if item.get("class") == "dot"]) >= 4
    assert "Loss over 1 epoch:" in " ".join(chart_labels(page))


def test_what_is_told_twice_or_ties_is_not_emphasized() -> None:
    """Of many classes recall is the balanced accuracy; where all models show one figure none is the best."""
    results = digits_results()
    for table in (results["test"], *results["baseline"].values()):
        table |= {"recall": table["balanced_accuracy"], "map75": {"value": 0.0001, "low": 0.0, "high": 0.001}}
    results["test"]["map75"]["value"] = 0.0002
    rows = {row.metric: row for row in result_table(results)}
    assert "recall" not in rows
    assert not any(cell.best for cell in rows["map75"].cells)
    assert [cell.best for cell in rows["accuracy"].cells] == [True, False, False]
    results["targets"]["label"] = category(["no", "yes"])
    assert "recall" in {row.metric for row in result_table(results)}


def test_several_targets(tmp_path: Path) -> None:
    results = digits_results()
    results["targets"]["price"] = housing_results()["targets"]["price"]
    page = Page(write_report(make_run(tmp_path, results)))
    assert [text for _, text in page.headings if text.startswith("Where")] == [
        "Where it errs of 'label'",
        "Where it errs of 'price'",
    ]


# ---- names are data


def hostile_run(out: Path) -> RunFolder:
    field = {"kind": HOSTILE, "columns": [HOSTILE], "options": {HOSTILE: HOSTILE}, "state": {HOSTILE: [HOSTILE]}}
    recipe = {**RECIPE, "data": {"location": "x; rm -rf '" + HOSTILE}}
    return make_run(
        out,
        hostile_results(),
        "<img src=x onerror=alert(1)>",
        [{**line, f"validation/{HOSTILE}": 0.5} for line in epochs(4)],
        recipe=recipe,
        schema={"inputs": {HOSTILE: field}, "targets": {HOSTILE: field}, "special": {HOSTILE: HOSTILE}},
        environment={HOSTILE: {HOSTILE: HOSTILE}},
    )


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = Page(write_report(hostile_run(tmp_path)))
    safe(page)
    assert HOSTILE in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not page.all("img")
    assert "3 pictures left out" in page.text
    assert "\u202e" not in page.source
    assert "\x00" not in page.source
    assert "\ufffdgnp.exe" in page.source


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_browser_runs_nothing(tmp_path: Path) -> None:
    """A script would change the page; the browser's own view of it must hold none."""
    path = write_report(hostile_run(tmp_path))
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--dump-dom",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        path.as_uri(),
    ]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    view = tmp_path / "seen.html"
    view.write_text(seen, "utf-8")
    assert "<script" not in seen
    assert "onerror=alert" not in seen.replace("&lt;img src=x onerror=alert", "")
    assert "98.1" not in seen
    assert "Where it errs" in seen


@given(st.text(max_size=60))
def test_any_text_is_escaped_and_can_be_written(text: str) -> None:
    evidence = Evidence(name=text, results={"task": text, "verdict": text, "notes": [text], "next": [text]})
    page = report._template().render(report.view(evidence))
    assert page.encode()
    assert page.count("<script") == 0
    assert page.count("<!--") == 0


# ---- size


def test_hundred_classes_stay_under_the_limit(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path, many_results(), "many", epochs(3000)))
    page = Page(path)
    safe(page)
    assert path.stat().st_size < report.LIMIT
    assert "The classes most often confused, of 100" in page.text
    assert "100 classes, the weakest first" in page.text
    assert "36 more mistakes in results.json." in page.text
    assert "17 pictures left out to keep this page under 1 MB" in page.text
    assert "460 more in log.txt." in page.text
    assert "Of 3,000 epochs, one in 8 is drawn." in page.text


def test_pictures_give_way_when_all_else_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two budgets are too much here: no picture is left, and three targets."""
    monkeypatch.setattr(report, "LIMIT", 200_000)
    results = many_results()
    results["notes"] = []
    results["baseline"] = {f"baseline {i}": {name: estimate(0.5) for name in results["test"]} for i in range(150)}
    both = {**category([f"class {i}" for i in range(25)]), **housing_results()["targets"]["price"]}
    results["targets"] = {f"target {i}": both for i in range(5)}
    path = write_report(make_run(tmp_path, results))
    assert path.stat().st_size < report.LIMIT
    page = Page(path)
    assert not page.all("img")
    assert "2 more targets are in results.json" in page.text
    assert "139 more baselines in results.json" in page.text


# ---- the result table


def test_result_table_marks_the_best() -> None:
    rows = result_table(digits_results())
    assert next(row.metric for row in rows) == "accuracy"
    assert rows[0].primary
    assert [cell.model for cell in rows[0].cells] == ["network", "logistic regression on pixels", "majority class"]
    best = {row.metric: [cell.model for cell in row.cells if cell.best] for row in rows}
    assert best["accuracy"] == ["network"]
    assert best["log_loss"] == ["network"]
    assert best["ece"] == ["majority class"]  # smaller is better
    assert rows[0].cells[0].text == "98.1 %"
    assert rows[0].cells[0].interval == "96.8 – 99.4 %"
    assert all(
        0 <= cell.left <= cell.point <= cell.left + cell.width + 0.01 <= 100.02 for row in rows for cell in row.cells
    )
    assert [cell.beyond for cell in rows[0].cells] == ["", "", "left"]  # the scale holds the network and its best rival


def test_errors_of_several_targets_are_better_when_smaller() -> None:
    results = {"test": {"price.rmse": estimate(0.5)}, "baseline": {"mean": {"price.rmse": estimate(0.9)}}}
    (row,) = result_table(results)
    assert row.label == "price: RMSE"
    assert [cell.best for cell in row.cells] == [True, False]
    assert (
        best_baseline({**results, "baseline": {**results["baseline"], "tree": {"price.rmse": estimate(0.6)}}}) == "tree"
    )


def test_result_table_without_baseline_or_results() -> None:
    assert result_table({}) == []
    (row,) = result_table({"test": {"mse": 4.0}})
    assert row.cells[0].text == "4.000"
    assert not row.cells[0].best
    assert row.cells[0].interval == ""


@pytest.mark.parametrize(
    ("better", "answer"), [("better", True), ("not better", False), ("worse", False), (None, None)]
)
def test_verdict_is_read_as_data(better: str | None, answer: bool | None) -> None:
    """A baseline may be called anything: the sentence is for people."""
    verdict = "The network is worse than a model whose name is better than ours: epoch 3 is damaged."
    assert is_better({"better": better, "verdict": verdict}) is answer
    assert is_better({"verdict": verdict}) is None
    assert kept_epoch({"kept": "member epoch 3, last weights, epoch 9", "kept_epoch": 9}) == 9
    assert kept_epoch({"kept": "epoch 3"}) is None


def test_damage_is_known_by_its_type(tmp_path: Path) -> None:
    """A missing file whose path says "is damaged" is not damaged."""
    found = read_evidence(make_run(tmp_path, None, "what is damaged"))
    assert "is damaged" in found.missing["results.json"]
    assert not found.is_damaged
    run = make_run(tmp_path, digits_results())
    run.file("results.json").write_text("{")
    with pytest.raises(DamagedError, match="is damaged"):
        read_json(run.file("results.json"))
    assert read_evidence(run).is_damaged


def test_weighted_tables_say_so(tmp_path: Path) -> None:
    value = digits_results()
    target = value["targets"]["label"]
    target["confusion"] = [[1.25 * count for count in row] for row in target["confusion"]]
    plain = Page(write_report(make_run(tmp_path, value, "plain")))
    assert "beneath each count" in plain.text
    target["weighted"] = True
    page = Page(write_report(make_run(tmp_path, value, "weighted")))
    assert "beneath each sum of row weights, its percentage of the row" in page.text
    assert re.search(r"\d % of the weight of the test rows is on wrong answers\. Most often", page.text)
    assert "test rows are wrong" not in page.text


# ---- advice


def evidence(
    lines: list[dict[str, Any]] | None = None, recipe: dict[str, Any] | None = None, **changes: Any
) -> Evidence:
    results = {**digits_results(), **changes}
    return Evidence("d", "runs/d", results, epochs(20) if lines is None else lines, recipe or RECIPE, "", SCHEMA)


def flat(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same run after it has converged: the last third repeats one epoch."""
    keep = len(lines) * 2 // 3
    return [*lines[:keep], *[{**lines[keep], "epoch": i + 1} for i in range(keep, len(lines))]]


def test_rising_validation_loss_asks_for_regularization() -> None:
    advice = rules.regularize(evidence(epochs(20, turn=12)))
    assert advice is not None
    assert advice.command == "fathom fit runs/d/recipe.toml network.dropout=0.3 augment.shift=1"
    assert "and rose to" in advice.why
    assert rules.regularize(evidence()) is None
    assert rules.regularize(evidence(epochs(20, turn=19))) is None  # one wiggle is no trend


def test_the_losses_of_a_game_advise_nothing() -> None:
    rising, falling = ([{**line, "validation/generator_loss": 1.0} for line in epochs(20, **t)] for t in ({"turn": 12}, {}))
    assert rules.regularize(evidence(epochs(20, turn=12))) is not None
    assert rules.train_longer(evidence(epochs(20))) is not None
    assert rules.regularize(evidence(rising)) is None
    assert rules.train_longer(evidence(falling)) is None


def test_regularization_without_dropout_is_weight_decay() -> None:
    recipe = {**RECIPE, "network": {"name": "perceptron"}, "training": {"weight_decay": 0.01}, "augment": {"flip": 0.5}}
    advice = rules.regularize(evidence(epochs(20, turn=12), recipe))
    assert advice is not None
    assert advice.command.endswith("recipe.toml training.weight_decay=0.05")


def test_falling_loss_asks_for_more_epochs() -> None:
    advice = rules.train_longer(evidence())
    assert advice is not None
    assert advice.command.endswith("training.epochs=40")
    assert rules.train_longer(evidence(flat(epochs(21)))) is None
    assert rules.train_longer(evidence(epochs(20, turn=5))) is None


def test_poor_calibration_asks_for_label_smoothing() -> None:
    sure = {"label": {"reliability": [{"low": 0.9, "high": 1.0, "confidence": 0.97, "accuracy": 0.8, "rows": 10}]}}
    unsure = {"label": {"reliability": [{"low": 0.6, "high": 0.7, "confidence": 0.65, "accuracy": 0.9, "rows": 10}]}}
    advice = rules.calibrate(evidence(targets=sure))
    assert advice is not None
    assert advice.command.endswith("training.label_smoothing=0.1")
    assert "ECE 0.170" in advice.why
    assert rules.calibrate(evidence()) is None
    assert rules.calibrate(evidence(targets=unsure)) is None
    smoothed = {**RECIPE, "training": {"label_smoothing": 0.2}}
    advice = rules.calibrate(evidence(recipe=smoothed, targets=unsure))
    assert advice is not None
    assert advice.command.endswith("training.label_smoothing=0.0")


def test_calibration_by_hand() -> None:
    bins = [
        {"confidence": 0.9, "accuracy": 0.8, "rows": 30},
        {"confidence": 0.5, "accuracy": 0.7, "rows": 10},
        {"confidence": 0.0, "accuracy": 0.0, "rows": 0},
    ]
    weighted = [{**item, "weight": weight} for item, weight in zip(bins, (1.0, 3.0, 0.0), strict=True)]
    assert calibration({"reliability": weighted}).error == pytest.approx((1 * 0.1 + 3 * 0.2) / 4)  # type: ignore[union-attr]
    found = calibration({"reliability": bins})
    assert found is not None
    assert found.error == pytest.approx((30 * 0.1 + 10 * 0.2) / 40)
    assert found.confidence == pytest.approx((30 * 0.9 + 10 * 0.5) / 40)
    assert found.accuracy == pytest.approx((30 * 0.8 + 10 * 0.7) / 40)
    assert calibration({"reliability": bins[2:]}) is None


def test_rare_class_asks_for_weights() -> None:
    targets = adult_results()["targets"]
    advice = rules.weigh_classes(evidence(targets=targets))
    assert advice is not None
    assert rules.CLASS_WEIGHTS in advice.command
    assert "'>50K' has 180 test rows, '<=50K' 600; 61.0 % of the first are found" in advice.why
    assert rules.weigh_classes(evidence()) is None


def test_baseline_is_preferred_where_the_network_is_not_better() -> None:
    value = adult_results()
    advice = rules.prefer_the_baseline(evidence(**value))
    assert advice is not None
    assert advice.title == "Use gradient boosting until a network is clearly better"
    assert rules.prefer_the_baseline(evidence()) is None


def test_few_rows() -> None:
    few = {"splits": {"train": 90, "validation": 10, "test": 40}}
    titles = [advice.title for advice in suggestions(evidence(**few))]
    assert titles[-2:] == ["Cross-validate", "Gather more data"]
    assert rules.cross_validate(evidence()) is None
    assert rules.gather_rows(evidence()) is None


def test_loss_that_was_not_finite_asks_for_smaller_steps() -> None:
    lines = epochs(4)
    lines[2]["train/loss"] = "inf"
    advice = rules.lower_the_rate(evidence(lines))
    assert advice is not None
    assert advice.command.endswith("training.learning_rate=0.0003")
    assert "epoch 3" in advice.why


def test_unfinished_run_is_resumed_first() -> None:
    assert suggestions(Evidence(place="runs/my run"))[0].command == "fathom fit --resume 'runs/my run'"


def test_nothing_wrong_asks_for_other_seeds() -> None:
    assert [advice.title for advice in suggestions(evidence(flat(epochs(21))))] == ["Repeat it with other seeds"]


def test_data_from_memory_gets_keys_instead_of_a_command() -> None:
    advice = rules.train_longer(evidence(recipe={"training": {"epochs": 20}}))
    assert advice is not None
    assert advice.command == "training.epochs=40"


def test_commands_quote_what_a_shell_would_read() -> None:
    command = Evidence(place="runs/a; b", recipe=RECIPE).repeat("network.dropout=0.3")
    assert command == "fathom fit 'runs/a; b/recipe.toml' network.dropout=0.3"


# ---- charts


def test_no_axis_of_shares_goes_beyond_the_whole() -> None:
    axis = Axis.around([0.975, 0.975], 3, most=1.0)
    assert [text for _, text in axis.ticks()] == ["0", "0.5", "1"]



@given(
    st.lists(st.floats(-1e9, 1e9, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-300), min_size=1, max_size=20)
)
def test_axis_holds_all_values(values: list[float]) -> None:
    axis = Axis.around(values)
    assert all(-1e-6 <= axis.at(value) <= 100 + 1e-6 for value in values)
    assert 2 <= len(axis.ticks()) <= 12


def test_loss_with_a_wide_range_is_logarithmic() -> None:
    axis = Axis.of_loss([2.0, 0.01])
    assert axis.log
    assert [text for _, text in axis.ticks()] == ["0.01", "0.1", "1", "10"]
    assert axis.at(0.01) == 0
    assert axis.at(10) == pytest.approx(100)
    assert not Axis.of_loss([2.0, 0.1]).log


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 100, 3000])
def test_epoch_ticks(count: int) -> None:
    ticks = charts.epoch_ticks(count)
    assert ticks[0][1] == "1"
    assert ticks[-1][1] == f"{count:,}"
    assert len(ticks) <= 8


@given(st.integers(0, 5000), st.integers(1, 500))
def test_thin_keeps_the_ends(count: int, most: int) -> None:
    found = charts.thin(count, most)
    assert found == sorted(set(found))
    assert len(found) <= most + 1
    assert not count or (found[0] == 0 and found[-1] == count - 1)


def test_single_epoch_is_drawn_as_a_dot(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, digits_results(), lines=epochs(1))))
    assert any(
        (item.get("d") or "").endswith("h.01") for item in page.all("path") if item.get("class") == "line strong"
    )
