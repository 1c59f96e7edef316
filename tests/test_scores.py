"""Known scores beside a network: their order against scikit-learn, and every sentence that refuses one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from fathom.analysis import evaluate, scores
from fathom.core.contract import Columns, Schema, TensorSet
from fathom.core.errors import DataError
from fathom.core.registry import fields
from kit import QUICK, cli

ROWS = 60


def classes(truth: list[str], **options: Any) -> tuple[Schema, TensorSet]:
    target = fields["category"].make(["y"], **options)
    columns = Columns({"y": truth})
    target.fit([columns])
    return Schema({}, {"y": target}), TensorSet({"y": target.encode(columns, target=True)})


def alone(schema: Schema, data: TensorSet, known: Any, asked: Any) -> Any:
    return scores.alone(schema, Columns({"s": known}), data, Columns({"s": asked}))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=4, max_size=40), st.sampled_from([1.0, -1.0, 1e-9, 1e12]))
def test_areas_are_those_of_the_raw_number(rows: list[tuple[int, bool]], unit: float) -> None:
    truth = np.array([event for _, event in rows])
    if truth.all() or not truth.any():
        return
    score = np.array([value for value, _ in rows]) * unit
    schema, data = classes(["yes" if event else "no" for event in truth])
    found, notes = alone(schema, data, score, score)
    assert notes == []
    metrics = schema.targets["y"].metrics(found["s alone"]["y"], data.column("y"))
    area = sk.roc_auc_score(truth, score)
    way = -1 if area < 0.5 else 1
    assert float(metrics["auroc"]) == pytest.approx(max(area, 1 - area))
    assert float(metrics["auprc"]) == pytest.approx(sk.average_precision_score(truth, way * score))


def test_the_training_rows_decide_the_direction() -> None:
    schema, data = classes(["no", "yes"] * 20)
    rising, falling = np.arange(40) % 2 * 1.0, np.arange(40) % 2 * -1.0
    asked = np.array([0.0, 1.0])
    for known, larger in ((rising, True), (falling, False)):
        answer = alone(schema, data, known, asked)[0]["s alone"]["y"].softmax(1)[:, 1]
        assert bool(answer[1] > answer[0]) == larger, "whatever holds in the rows to answer"


def test_the_named_class_is_the_positive_one() -> None:
    schema, data = classes(["no", "yes"] * 20, positive="no")
    score = np.arange(40) % 2 * 1.0
    metrics = schema.targets["y"].metrics(alone(schema, data, score, score)[0]["s alone"]["y"], data.column("y"))
    assert float(metrics["auroc"]) == 1.0


def test_a_missing_score_is_the_median_and_told() -> None:
    schema, data = classes(["no", "yes"] * 20)
    known = np.where(np.arange(40) < 3, np.nan, np.arange(40) * 1.0)
    found, notes = alone(schema, data, known, np.array([np.nan, 21.0, 0.0, 39.0]))
    answer = found["s alone"]["y"][:, 1]
    assert answer[0] == answer[1]
    assert notes == ["1 of 4 rows have no 's'; as a baseline they get 21, the median of the training rows."]


def test_scores_that_are_not_there_are_told() -> None:
    schema, data = classes(["no", "yes"] * 2)
    found, notes = scores.alone(schema, Columns({"s": [1.0] * 4}), data, Columns({"other": [1.0]}))
    assert (found, notes) == ({}, ["There is no baseline 's alone': these rows have no column 's'."])
    found, notes = alone(schema, data, np.full(4, np.nan), np.ones(4))
    assert (found, notes) == ({}, ["There is no baseline 's alone': no training row has a 's'."])


def test_beside_a_number_it_is_an_estimate_in_its_unit() -> None:
    target = fields["number"].make(["y"])
    columns = Columns({"y": np.array([10.0, 20.0, 40.0])})
    target.fit([columns])
    schema, data = Schema({}, {"y": target}), TensorSet({"y": target.encode(columns, target=True)})
    found, _ = alone(schema, data, np.ones(3), np.array([13.0, 20.0, 44.0]))
    assert float(target.metrics(found["s alone"]["y"], data.column("y"))["mae"]) == pytest.approx(7 / 3)


def test_only_areas_are_told_of_an_order() -> None:
    schema, data = classes(["no", "yes"] * 20)
    score = np.arange(40) * 1.0
    known, _ = alone(schema, data, score, score)
    network = {"y": torch.stack([torch.zeros(40), torch.from_numpy(score).float() - 20], 1)}
    results = evaluate.results(network, known, data, schema, 0, "auroc", orders=set(known))
    assert set(results["baseline"]["s alone"]) == set(results["difference"]["s alone"]) == {"auroc", "auprc"}
    assert results["better"] == "not better"
    whole = evaluate.results(network, known, data, schema, 0, "auroc")
    assert "accuracy" in whole["baseline"]["s alone"]


def table(path: Path) -> Path:
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 2)).round(3)
    lines = [f"{a},{b},{3 * a:.2f},{'xyz'[i % 3]},{'yes' if a + b > 0 else 'no'},{i % 3}" for i, (a, b) in enumerate(x)]
    path.write_text("\n".join(["a,b,score,word,label,three", *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.compare=scor"], "data.compare: there is no column 'scor' (nearest: score). It has: a, b, score"),
        (["data.compare=word"], "data.compare: 'word' holds no numbers, and a score is one number a row"),
        (["data.compare=score,a", "data.input=a,b"], "'a' stands in data.compare, so it is no input and no target, but it "),
        (["data.compare=score", "data.types.score=number"], "data.types.score as well"),
        (["data.compare=label"], "data.target as well"),
        (
            ["data.compare=score", "data.target=three"],
            "data.compare needs one target, a number or of two classes, and here ",
        ),
        (["data.compare=score", "data.target=label,a"], "data.compare needs one target"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("fit", table(tmp_path / "t.csv"), *words, *([] if "data.target" in str(words) else ["data.target=label"]), *QUICK)
    assert said.code == 2
    assert sentence in said.last
    assert len(said.last.splitlines()) <= 6
    assert not list(tmp_path.glob("runs/*"))


def test_a_score_is_no_input_and_stands_beside_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("fit", table(tmp_path / "t.csv"), "--target", "label", "--steps", "5", "data.compare=score", *QUICK)
    assert said.code == 0, said.err
    assert "No inputs, but what the network is compared with (data.compare): score." in said.err + said.out
    assert "score alone" in said.out
    assert "compare = [" in next(Path("runs").glob("*/recipe.toml")).read_text()


def test_a_score_without_a_number_is_refused() -> None:
    with pytest.raises(DataError, match="'s' holds no number; leave it out"):
        scores.check(["s"], Columns({"s": np.full(3, np.nan)}))
