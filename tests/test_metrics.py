"""Metrics against scikit-learn, with ties, weights and resamples, and where a figure is not defined."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fathom.analysis.breakdown import confusion, per_class, per_label, reliability
from fathom.fields.metrics import classification, multilabel, regression


def problem(seed: int, rows: int, classes: int, levels: int, weights: str = "counts"):
    """Probabilities (many ties where `levels` is small), targets that hold every class, and row weights."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(1, levels + 1, (rows, classes)).astype(np.float64)
    probability = torch.from_numpy(raw / raw.sum(1, keepdims=True))
    target = torch.from_numpy(np.concatenate([np.arange(classes), generator.integers(0, classes, rows - classes)]))
    weight = torch.from_numpy(generator.integers(1, 4, rows) if weights == "counts" else generator.random(rows) + 0.1)
    return probability, target, weight.float()


def reference(probability, target, weight):
    """The same figures from scikit-learn."""
    p, t, w = probability.numpy(), target.numpy(), weight.double().numpy()
    classes = p.shape[1]
    answer = p.argmax(1)
    hot = np.eye(classes)[t]
    binary = classes == 2
    prf = sk.precision_recall_fscore_support(
        t, answer, labels=range(classes), sample_weight=w, zero_division=0, **({"average": None})
    )
    pick = (lambda values: values[1]) if binary else np.mean
    over = [1] if binary else range(classes)
    return {
        "accuracy": sk.accuracy_score(t, answer, sample_weight=w),
        "balanced_accuracy": sk.recall_score(t, answer, average="macro", sample_weight=w, zero_division=0),
        "precision": pick(prf[0]),
        "recall": pick(prf[1]),
        "f1": pick(prf[2]),
        "specificity": pick([sk.recall_score(t != k, answer != k, sample_weight=w) for k in range(classes)]),
        "auroc": np.mean([sk.roc_auc_score(hot[:, k], p[:, k], sample_weight=w) for k in over]),
        "auprc": np.mean([sk.average_precision_score(hot[:, k], p[:, k], sample_weight=w) for k in over]),
        "log_loss": sk.log_loss(t, p, labels=range(classes), sample_weight=w),
        "brier": sk.brier_score_loss(t, p[:, 1] if binary else p, sample_weight=w, labels=range(classes)),
    }


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(8, 60),
    classes=st.integers(2, 5),
    levels=st.sampled_from([2, 3, 1000]),
    weights=st.sampled_from(["counts", "real"]),
)
def test_classification_is_that_of_scikit_learn(seed, rows, classes, levels, weights):
    probability, target, weight = problem(seed, rows, classes, levels, weights)
    mine = classification(probability, target, weight)
    for name, value in reference(probability, target, weight).items():
        assert float(mine[name]) == pytest.approx(value, abs=1e-9), name


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 4))
def test_every_resample_is_that_of_its_own_weights(seed, classes):
    probability, target, _ = problem(seed, 30, classes, 3)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(0, 4, (7, 30), generator=generator).float()
    weight[:, :classes] += 1  # every class is there
    together = classification(probability, target, weight)
    for i, line in enumerate(weight):
        alone = classification(probability, target, line)
        kept = line > 0
        named = reference(probability[kept], target[kept], line[kept])
        for name, value in together.items():
            assert value.shape == (7,)
            assert float(value[i]) == pytest.approx(float(alone[name]), abs=1e-12)
            if name in named:
                assert float(value[i]) == pytest.approx(named[name], abs=1e-9)


def test_a_count_is_a_repeated_row():
    probability, target, weight = problem(3, 40, 3, 4)
    repeated = torch.arange(40).repeat_interleave(weight.long())
    counted, copied = (
        classification(probability, target, weight),
        classification(probability[repeated], target[repeated]),
    )
    for name in counted:
        assert float(counted[name]) == pytest.approx(float(copied[name]), abs=1e-12)


def test_calibration_error_by_hand():
    probability = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], dtype=torch.float64)
    target = torch.tensor([0, 1, 0, 1])
    # confidences 0.9 (one of two right), 0.6 (right), 0.8 (right): 2/4*0.4 + 1/4*0.4 + 1/4*0.2
    assert float(classification(probability, target)["ece"]) == pytest.approx(0.35)
    bins = reliability(probability, target, bins=10)
    assert [(b["low"], b["rows"], b["accuracy"]) for b in bins] == [
        (0.5, 1, 1.0),
        (0.7, 1, 1.0),
        (0.8, 2, 0.5),
    ]
    assert bins[2]["confidence"] == pytest.approx(0.9)


def test_soft_targets_count_by_their_largest_class():
    probability = torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=torch.float64)
    soft = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    result = classification(probability, soft)
    expected = -(0.9 * math.log(0.7) + 0.1 * math.log(0.3) + 0.2 * math.log(0.4) + 0.8 * math.log(0.6)) / 2
    assert float(result["accuracy"]) == 1
    assert float(result["log_loss"]) == pytest.approx(expected, abs=1e-6)
    assert float(result["brier"]) == pytest.approx((0.2**2 + 0.2**2) / 2, abs=1e-6)


def test_the_positive_class_can_be_named():
    probability, target, weight = problem(5, 50, 3, 5)
    mine = classification(probability, target, weight, positive=2)
    answer = probability.argmax(1).numpy()
    assert float(mine["recall"]) == pytest.approx(sk.recall_score(target == 2, answer == 2, sample_weight=weight))
    assert float(mine["auroc"]) == pytest.approx(sk.roc_auc_score(target == 2, probability[:, 2], sample_weight=weight))
    first = classification(probability[:, :2], target % 2, positive=0)
    assert float(first["auprc"]) == pytest.approx(sk.average_precision_score(target % 2 == 0, probability[:, 0]))


def test_an_absent_class_is_left_out_of_the_macro_mean():
    probability, target, _ = problem(1, 60, 4, 50)
    kept = target != 3
    mine = classification(probability[kept], target[kept])
    p, t = probability[kept].numpy(), target[kept].numpy()
    answer = p.argmax(1)
    assert float(mine["recall"]) == pytest.approx(np.mean([sk.recall_score(t == k, answer == k) for k in range(3)]))
    assert float(mine["auroc"]) == pytest.approx(np.mean([sk.roc_auc_score(t == k, p[:, k]) for k in range(3)]))
    assert all(math.isfinite(value) for value in mine.values())


def test_what_is_wholly_undefined_is_nan_and_the_rest_is_not():
    probability = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    mine = classification(probability, torch.tensor([0, 0]))
    assert {name for name, value in mine.items() if math.isnan(value)} == {
        "auroc",
        "auprc",
        "precision",
        "recall",
        "f1",
        "specificity",
    }
    assert float(mine["accuracy"]) == 0.5
    lines = per_class(probability, torch.tensor([0, 0]), ["no", "yes"])
    assert lines[1] == {
        "name": "yes",
        "rows": 0,
        "precision": None,
        "recall": None,
        "specificity": None,
        "f1": None,
        "auroc": None,
    }
    assert lines[0]["recall"] == 0.5
    assert lines[0]["auroc"] is None


def test_a_resample_without_a_class_is_not_mistaken_by_rounding():
    probability, target, _ = problem(2, 40, 2, 100)
    weight = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) * (target == 1)
    assert classification(probability, target, weight)["auroc"].isnan().all()


def test_a_class_that_is_never_answered_has_precision_zero():
    probability = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    mine = classification(probability, torch.tensor([0, 1]))
    assert (float(mine["precision"]), float(mine["recall"]), float(mine["f1"])) == (0, 0, 0)


def test_saturated_probabilities_keep_the_log_loss_finite():
    mine = classification(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert float(mine["log_loss"]) == pytest.approx(-math.log(torch.finfo(torch.float32).eps))


def test_per_class_and_confusion_against_scikit_learn():
    probability, target, _ = problem(7, 80, 3, 6)
    answer = probability.argmax(1).numpy()
    assert confusion(probability, target).tolist() == sk.confusion_matrix(target, answer).tolist()
    named = sk.classification_report(target, answer, target_names=["a", "b", "c"], output_dict=True, zero_division=0)
    for k, line in enumerate(per_class(probability, target, ["a", "b", "c"])):
        assert line["precision"] == pytest.approx(named[line["name"]]["precision"])
        assert line["recall"] == pytest.approx(named[line["name"]]["recall"])
        assert line["f1"] == pytest.approx(named[line["name"]]["f1-score"])
        assert line["rows"] == named[line["name"]]["support"]
        assert line["auroc"] == pytest.approx(sk.roc_auc_score(target == k, probability[:, k]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(3, 60), offset=st.sampled_from([0.0, 1e5]))
def test_regression_is_that_of_scikit_learn(seed, rows, offset):
    generator = np.random.default_rng(seed)
    target, weight = generator.normal(offset, 3, rows), generator.integers(1, 5, rows)
    answer = target + generator.normal(0, 1, rows)
    mine = regression(torch.from_numpy(answer), torch.from_numpy(target), torch.from_numpy(weight))
    assert float(mine["mse"]) == pytest.approx(sk.mean_squared_error(target, answer, sample_weight=weight))
    assert float(mine["rmse"]) == pytest.approx(sk.root_mean_squared_error(target, answer, sample_weight=weight))
    assert float(mine["mae"]) == pytest.approx(sk.mean_absolute_error(target, answer, sample_weight=weight))
    assert float(mine["r2"]) == pytest.approx(sk.r2_score(target, answer, sample_weight=weight), rel=1e-6)


def test_r2_of_equal_targets_is_not_defined():
    mine = regression(torch.tensor([0.1, 0.2, 0.3]), torch.full((3,), 0.1))
    assert math.isnan(mine["r2"])
    assert float(mine["mae"]) == pytest.approx(0.1, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(6, 50), labels=st.integers(1, 4))
def test_multilabel_is_that_of_scikit_learn(seed, rows, labels):
    generator = np.random.default_rng(seed)
    p = generator.integers(0, 12, (rows, labels)) / 11
    t = generator.integers(0, 2, (rows, labels))
    t[0], t[1] = 0, 1  # every label is held by some row and not by all
    w = generator.integers(1, 4, rows)
    mine = multilabel(torch.from_numpy(p), torch.from_numpy(t).float(), torch.from_numpy(w))
    answer = (p >= 0.5).astype(int)
    columns = range(labels)
    areas = {"auroc": sk.roc_auc_score, "auprc": sk.average_precision_score}
    average = {
        name: np.mean([area(t[:, k], p[:, k], sample_weight=w) for k in columns]) for name, area in areas.items()
    }
    expected = {
        **average,
        "accuracy": np.mean([sk.accuracy_score(t[:, k], answer[:, k], sample_weight=w) for k in columns]),
        "exact_match": np.average((t == answer).all(1), weights=w),
        "f1": np.mean([sk.f1_score(t[:, k], answer[:, k], sample_weight=w, zero_division=0) for k in columns]),
        "log_loss": np.mean([sk.log_loss(t[:, k], p[:, k], sample_weight=w, labels=[0, 1]) for k in columns]),
    }
    for name, value in expected.items():
        assert float(mine[name]) == pytest.approx(value, abs=1e-9), name
    assert set(mine) == set(expected)


def test_labels_one_by_one():
    probability, positive = (
        torch.tensor([[0.9, 0.2], [0.4, 0.6]]),
        torch.tensor([[True, False], [True, True]]),
    )
    first, second = per_label(probability, positive, probability >= 0.5, ["red", "round"])
    assert (first["rows"], first["recall"], first["specificity"], first["auroc"]) == (2, 0.5, None, None)
    assert (second["rows"], second["precision"], second["auroc"]) == (1, 1.0, 1.0)


def test_many_classes_rank_fewer_resamples_and_say_so():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(6000, 50, generator=generator).softmax(1)
    target = torch.randint(50, (6000,), generator=generator)
    weight = torch.randint(0, 3, (10, 6000), generator=generator).float()
    result = classification(probability, target, weight)
    assert int(result["auroc"].isfinite().sum()) == 4  # 20 / 50 of them
    assert result["accuracy"].isfinite().all()


def test_resamples_cost_a_small_part_of_what_scikit_learn_takes():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(10_000, 10, generator=generator).softmax(1)
    target = torch.randint(10, (10_000,), generator=generator)
    weight = torch.ones(100, 10_000)
    start = time.perf_counter()
    classification(probability, target, weight)
    mine = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(10):
        sk.roc_auc_score(target, probability, multi_class="ovr")
        sk.average_precision_score(target, probability)
    assert mine < 5 * (time.perf_counter() - start)  # 100 resamples in less than 50 of scikit-learn's two figures
