"""Baselines: what each answers, that only training rows teach it, and that odd data leaves a note."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from fathom.analysis import baseline as module
from fathom.analysis.baseline import baselines
from fathom.analysis.evaluate import class_shares, evaluate, primary, results
from fathom.core.contract import Schema
from fathom.core.tensors import WEIGHT, TensorSet
from fathom.fields.category import Category
from fathom.fields.labels import Labels
from fathom.fields.number import Number

NUMBERS, CODES, IMAGE, SOUND = (SimpleNamespace(kind=kind) for kind in ("number", "category", "image", "sound"))


def category(classes: int) -> Category:
    field = Category(["y"])
    names = [str(i) for i in range(classes)]
    field.state = {"classes": names, "vocabularies": [names], "soft": False}
    return field


def number(values: torch.Tensor) -> Number:
    field = Number(["y"])
    field.state = {"mean": [float(values.mean())], "std": [float(values.std())], "gaps": [False]}
    return field


def labels(count: int) -> Labels:
    names = [f"label {i}" for i in range(count)]
    field = Labels(names)
    field.state = {"classes": names, "from_columns": True}
    return field


def halves(data: TensorSet, share: float = 0.7) -> tuple[TensorSet, TensorSet]:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    cut = int(share * len(data))
    return data.subset(order[:cut]), data.subset(order[cut:])


def table(rows: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers (N, 3), codes (N, 2) from 1, and a class that both decide."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, 3, generator=generator)
    codes = torch.randint(1, 5, (rows, 2), generator=generator, dtype=torch.int32)
    score = numbers[:, 0] + (codes[:, 0] == 2) * 2 - 0.5 + 0.3 * torch.randn(rows, generator=generator)
    return numbers, codes, (score > 0).long()


def test_class_shares_are_answered_where_nothing_is_read():
    target = torch.tensor([0, 0, 0, 1])
    data = TensorSet({"x": torch.zeros(4, 1), "y": target})
    found, _ = baselines(Schema({"x": NUMBERS}, {"y": category(3)}), data, data.subset(torch.tensor([0, 1])), seed=0)
    shares = found["majority class"]["y"].softmax(1)
    assert shares.shape == (2, 3)
    assert shares[0].tolist() == pytest.approx([0.75, 0.25, 0.0], abs=1e-6)


def test_trivial_answers_are_weighted():
    weight = torch.tensor([1.0, 1.0, 6.0])
    answers = torch.tensor([[0.0], [2.0], [4.0]])
    several = Schema({"x": NUMBERS}, {"y": category(2), "size": number(answers), "tags": labels(2)})
    data = TensorSet(
        {
            "x": torch.zeros(3, 1),
            "y": torch.tensor([0, 1, 1]),
            "size": answers - answers.mean(),  # as a number field encodes it
            "tags": torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]),
            WEIGHT: weight,
        }
    )
    found, _ = baselines(several, data, data, seed=0)
    told = found["majority class and mean and label frequencies"]
    assert told["y"].softmax(1)[0].tolist() == pytest.approx([0.125, 0.875])
    assert several.targets["size"].unscale(told["size"])[0].item() == pytest.approx((2 + 24) / 8)
    assert told["tags"].sigmoid()[0].tolist() == pytest.approx([7 / 8, 0], abs=1e-6)


def test_soft_rows_make_soft_shares():
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    data = TensorSet({"x": torch.zeros(2, 1), "y": soft})
    found, _ = baselines(Schema({"x": NUMBERS}, {"y": category(2)}), data, data, seed=0)
    assert found["majority class"]["y"].softmax(1)[0].tolist() == pytest.approx([0.75, 0.25])


def test_linear_and_boosted_models_are_those_of_scikit_learn():
    source = load_breast_cancer()
    data = TensorSet({"x": torch.from_numpy(source.data).float(), "y": torch.from_numpy(source.target)})
    train, test = halves(data)
    found, notes = baselines(Schema({"x": NUMBERS}, {"y": category(2)}), train, test, seed=0)
    assert notes == []
    assert list(found) == ["majority class", "logistic regression", "gradient boosting"]
    x, y = source.data.astype(np.float32)[train.index], source.target[train.index]
    scaler = StandardScaler().fit(x)
    straight = LogisticRegression(C=1.0, max_iter=100).fit(scaler.transform(x).clip(-10, 10), y)
    other = source.data.astype(np.float32)[test.index]
    expected = straight.predict_proba(scaler.transform(other).clip(-10, 10))
    assert found["logistic regression"]["y"].softmax(1).numpy() == pytest.approx(expected, abs=1e-4)
    boosted = HistGradientBoostingClassifier(early_stopping=False, random_state=0).fit(x, y).predict_proba(other)
    assert found["gradient boosting"]["y"].softmax(1).numpy() == pytest.approx(boosted, abs=1e-5)


def test_columns_of_both_kinds_with_gaps_and_unknown_codes():
    numbers, codes, target = table()
    numbers[::7, 0] = torch.nan
    data = TensorSet({"numbers": numbers, "codes": codes, "y": target})
    train, test = halves(data)
    strange = test.columns["codes"].clone()
    strange[test.index[:20]] = 0  # never seen in training
    test = TensorSet({**test.columns, "codes": strange}, test.index)
    schema = Schema({"numbers": NUMBERS, "codes": CODES}, {"y": category(2)})
    found, notes = baselines(schema, train, test, seed=0)
    assert notes == []
    for name in ("logistic regression", "gradient boosting"):
        assert evaluate(found[name], test, schema, seed=0, resamples=100)["auroc"] > 0.9


def test_only_training_rows_teach():
    numbers, codes, target = table()
    train = TensorSet({"numbers": numbers[:300], "codes": codes[:300], "y": target[:300]})
    schema = Schema({"numbers": NUMBERS, "codes": CODES}, {"y": category(2)})
    one, _ = baselines(schema, train, TensorSet({"numbers": numbers[300:], "codes": codes[300:]}), seed=0)
    both = {
        "numbers": torch.cat([numbers[300:], numbers[:50] * 100]),
        "codes": torch.cat([codes[300:], codes[:50]]),
    }
    other, _ = baselines(schema, train, TensorSet(both), seed=0)
    for name in one:
        assert torch.allclose(one[name]["y"], other[name]["y"][:100], atol=1e-5)


def test_row_weights_reach_the_estimators():
    numbers, _, target = table(300)
    weight = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(1)).float()
    schema = Schema({"numbers": NUMBERS}, {"y": category(2)})
    again = torch.arange(300).repeat_interleave(weight.long())
    plain = {
        "numbers": numbers * 0 + (numbers > 0).float(),
        "y": target,
    }  # 0 and 1: equal after standardizing or not
    weighted, _ = baselines(schema, TensorSet({**plain, WEIGHT: weight}), TensorSet(plain), seed=0)
    unweighted, _ = baselines(schema, TensorSet(plain), TensorSet(plain), seed=0)
    copied, _ = baselines(schema, TensorSet(plain).subset(again), TensorSet(plain), seed=0)
    far = (weighted["logistic regression"]["y"] - unweighted["logistic regression"]["y"]).abs().max()
    near = (weighted["logistic regression"]["y"] - copied["logistic regression"]["y"]).abs().max()
    assert near < 0.2 * far


def test_ridge_answers_in_standardized_units():
    numbers, _, _ = table()
    truth = (50 + 8 * numbers[:, :1] - 3 * numbers[:, 1:2]).float()
    train, test = halves(TensorSet({"x": numbers, "y": truth - truth.mean()}))
    schema = Schema({"x": NUMBERS}, {"y": number(truth)})
    found, _ = baselines(schema, train, test, seed=0)
    assert list(found) == ["mean", "ridge", "gradient boosting"]
    assert found["ridge"]["y"].shape == (120, 1)
    assert evaluate(found["ridge"], test, schema, seed=0, resamples=100)["r2"] > 0.999
    x = StandardScaler().fit(numbers[train.index])
    straight = Ridge(alpha=1.0).fit(x.transform(numbers[train.index]), truth[train.index])
    expected = straight.predict(x.transform(numbers[test.index])).reshape(120, 1)
    assert schema.targets["y"].unscale(found["ridge"]["y"]).numpy() == pytest.approx(expected, rel=1e-3)


def test_labels_have_a_model_each_and_constant_ones_are_answered_as_they_are():
    numbers, _, target = table()
    tags = torch.stack([target.float(), torch.ones(400), torch.zeros(400)], 1)
    train, test = halves(TensorSet({"x": numbers, "y": tags}))
    found, notes = baselines(Schema({"x": NUMBERS}, {"y": labels(3)}), train, test, seed=0)
    assert notes == []
    for name in ("label frequencies", "logistic regression", "gradient boosting"):
        share = found[name]["y"].sigmoid()
        assert share.shape == (120, 3)
        assert share[0, 1:].tolist() == pytest.approx([1, 0], abs=1e-5)


def test_images_are_averaged_to_at_most_sixteen_pixels_a_side():
    image = torch.arange(2 * 3 * 28 * 40, dtype=torch.float32).reshape(2, 3, 28, 40)
    small = module._flat("image", image)
    assert small.shape == (2, 3 * 14 * 14)  # squares of 2 of 28, of 3 of 40 rounded
    assert float(small[0, 0]) == pytest.approx(float(image[0, 0, :2, :3].mean()))
    assert module._flat("image", image[:, :1, :8, :8]).shape == (2, 64)


def test_digits_are_told_apart_by_pixels():
    source = load_digits()
    pixels = torch.from_numpy(source.images * 15).to(torch.uint8)[:, None]
    train, test = halves(TensorSet({"image": pixels, "y": torch.from_numpy(source.target)}))
    schema = Schema({"image": IMAGE}, {"y": category(10)})
    found, notes = baselines(schema, train, test, seed=0)
    assert list(found) == ["majority class", "logistic regression on pixels"]
    assert notes == []
    metric = primary(schema, class_shares(train, schema))
    told = results(found["logistic regression on pixels"], found, test, schema, 0, metric, resamples=200)
    assert told["test"]["accuracy"]["value"] > 0.94
    assert told["baseline"]["majority class"]["accuracy"]["high"] < 0.2
    assert told["baseline"]["majority class"]["log_loss"]["value"] == pytest.approx(2.3, abs=0.05)
    assert told["verdict"].startswith("The network is not better than logistic regression on pixels: accuracy +0.000")


def test_images_beside_columns():
    numbers, _, target = table(120)
    data = TensorSet({"image": torch.rand(120, 1, 8, 8), "x": numbers, "y": target})
    found, _ = baselines(Schema({"image": IMAGE, "x": NUMBERS}, {"y": category(2)}), *halves(data), seed=0)
    assert list(found) == ["majority class", "logistic regression on pixels and columns"]


def test_a_class_without_training_rows_gets_next_to_no_probability():
    numbers, _, target = table()
    data = TensorSet({"x": numbers, "y": target * 2})
    found, _ = baselines(Schema({"x": NUMBERS}, {"y": category(3)}), data, data, seed=0)
    for name in ("logistic regression", "gradient boosting"):
        share = found[name]["y"].softmax(1)
        assert float(share[:, 1].max()) < 1e-5
        assert torch.allclose(found[name]["y"].exp().sum(1), torch.ones(400), atol=1e-5)


def test_what_cannot_be_fitted_is_left_out_with_a_note():
    data = TensorSet({"x": torch.randn(10, 2), "y": torch.zeros(10, dtype=torch.int64)})
    found, notes = baselines(Schema({"x": NUMBERS}, {"y": category(2)}), data, data, seed=0)
    assert list(found) == ["majority class"]
    assert notes == [
        "There is no baseline 'logistic regression': its training rows hold one class only.",
        "There is no baseline 'gradient boosting': its training rows hold one class only.",
    ]
    _, notes = baselines(Schema({"x": SOUND}, {"y": category(2)}), data, data, seed=0)
    assert notes == ["There is no classical baseline: none reads inputs of kind sound."]
    assert baselines(Schema({"x": NUMBERS}, {"y": SOUND}), data, data, seed=0) == (
        {},
        ["There is no baseline for a target of kind sound."],
    )


def test_too_many_rows_are_drawn_by_the_seed_and_said(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 150)
    numbers, _, target = table()
    data = TensorSet({"x": numbers, "y": target})
    schema = Schema({"x": NUMBERS}, {"y": category(2)})
    found, notes = baselines(schema, data, data, seed=0)
    assert notes == ["Classical baselines are fitted on 150 of the 400 training rows, drawn by the seed."]
    again, _ = baselines(schema, data, data, seed=0)
    assert all(torch.equal(found[name]["y"], again[name]["y"]) for name in found)


def test_features_are_read_in_chunks_of_bounded_size(monkeypatch):
    numbers, codes, target = table()
    data = TensorSet({"x": numbers, "codes": codes, "y": target})
    schema = Schema({"x": NUMBERS, "codes": CODES}, {"y": category(2)})
    layout = module.Layout.of(schema, data)
    whole = np.concatenate(list(layout.chunks(data, torch.arange(400))))
    monkeypatch.setattr(module, "CHUNK", 5 * 33)
    parts = list(layout.chunks(data, torch.arange(400)))
    assert max(len(part) for part in parts) == 33
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.shape == (400, 5)


def test_many_categories_are_read_as_ordered_codes_by_boosting():
    codes = torch.arange(600, dtype=torch.int32)[:, None] % 300 + 1
    data = TensorSet({"codes": codes, "y": (codes[:, 0] > 150).long()})
    schema = Schema({"codes": CODES}, {"y": category(2)})
    found, notes = baselines(schema, data, data, seed=0)
    assert notes == []
    assert evaluate(found["gradient boosting"], data, schema, seed=0, resamples=50)["accuracy"] > 0.99
