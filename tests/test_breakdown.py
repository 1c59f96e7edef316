"""The tables behind a test's figures, against scikit-learn and by hand."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from fathom.analysis.breakdown import confusion, per_class, per_label, reliability
from fathom.fields.metrics import classification


def problem(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (N, K), classes (N,), weights (N,) of which some are 0."""
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(rows, classes, generator=generator, dtype=torch.float64).softmax(1)
    target = torch.randint(classes, (rows,), generator=generator)
    return probability, target, torch.randint(0, 4, (rows,), generator=generator).double()


@pytest.mark.parametrize("weighted", [False, True])
def test_classes_and_confusion_are_those_of_scikit_learn(weighted: bool) -> None:
    probability, target, weight = problem(7, 80, 3)
    given = weight if weighted else None
    answer = probability.argmax(1).numpy()
    matrix = confusion(probability, target, given)
    assert matrix.is_floating_point() == weighted
    assert matrix.tolist() == sk.confusion_matrix(target, answer, sample_weight=given).tolist()
    for k, line in enumerate(per_class(probability, target, ["a", "b", "c"], given)):
        truth, said = (target == k).numpy(), answer == k
        assert line["rows"] == int(truth.sum())  # rows are counted, whatever they weigh
        assert line["precision"] == pytest.approx(sk.precision_score(truth, said, sample_weight=given))
        assert line["recall"] == pytest.approx(sk.recall_score(truth, said, sample_weight=given))
        assert line["specificity"] == pytest.approx(sk.recall_score(~truth, ~said, sample_weight=given))
        assert line["f1"] == pytest.approx(sk.f1_score(truth, said, sample_weight=given))
        assert line["auroc"] == pytest.approx(sk.roc_auc_score(truth, probability[:, k], sample_weight=given))


def test_what_no_row_holds_is_none() -> None:
    lines = per_class(torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor([0, 0]), ["no", "yes"])
    nothing = dict.fromkeys(("precision", "recall", "specificity", "f1", "auroc"))
    assert lines[1] == {"name": "yes", "rows": 0, **nothing}
    assert lines[0] == {
        "name": "no", "rows": 2, "precision": 1.0, "recall": 0.5, "specificity": None,
        "f1": pytest.approx(2 / 3), "auroc": None,
    }  # fmt: skip
    weightless = per_class(torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor([0, 1]), ["no", "yes"], torch.eye(2)[0])
    assert weightless[1] == {"name": "yes", "rows": 1, **nothing}


def test_labels_one_by_one() -> None:
    positive = torch.tensor([[1, 0], [1, 1], [0, 1]]).bool()
    probability = torch.tensor([[0.9, 0.2], [0.4, 0.8], [0.6, 0.7]], dtype=torch.float64)
    first, second = per_label(probability, positive, probability >= 0.5, ["red", "round"])
    assert (first["rows"], first["precision"], first["recall"], first["specificity"]) == (2, 0.5, 0.5, 0.0)
    assert (second["f1"], second["auroc"]) == (1.0, 1.0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_bins_add_up_to_the_calibration_error(weighted: bool) -> None:
    probability, target, weight = problem(3, 200, 3)
    given = weight if weighted else None
    bins = reliability(probability, target, given)
    total = sum(item["weight"] for item in bins)
    gap = sum(item["weight"] * abs(item["confidence"] - item["accuracy"]) for item in bins) / total
    assert gap == pytest.approx(float(classification(probability, target, given)["ece"]))
    assert sum(item["rows"] for item in bins) == 200


def test_a_bin_without_weight_is_left_out() -> None:
    probability = torch.tensor([[0.9, 0.1], [0.55, 0.45]])
    (only,) = reliability(probability, torch.tensor([0, 1]), torch.tensor([0.0, 2.0]), bins=10)
    assert (only["low"], only["rows"], only["weight"], only["accuracy"]) == (0.5, 1, 2.0, 0.0)
