"""Estimates, intervals that cover, paired comparison, the verdict, and what the report shows of a test."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from fathom.analysis import evaluate as module
from fathom.analysis.evaluate import (
    Estimate,
    better,
    class_shares,
    compare,
    evaluate,
    mistakes,
    paired_shares,
    primary,
    resample_weights,
    results,
    strongest,
    verdict,
    wilson,
)
from fathom.analysis.evidence import calibration
from fathom.core.contract import Schema
from fathom.core.errors import DataError
from fathom.core.prepare import stretches
from fathom.core.tensors import WEIGHT, TensorSet
from fathom.fields.category import Category
from fathom.fields.labels import Labels
from fathom.fields.number import Number


def category(*names: str) -> Category:
    field = Category(["y"])
    field.state = {"classes": list(names), "vocabularies": [list(names)], "soft": False}
    return field


def number(mean: float = 0.0, std: float = 1.0) -> Number:
    field = Number(["y"])
    field.state = {"mean": [mean], "std": [std], "gaps": [False]}
    return field


def labels(*names: str) -> Labels:
    field = Labels(names)
    field.state = {"classes": list(names), "from_columns": True}
    return field


def schema(field, **more) -> Schema:
    return Schema({}, {"y": field, **more})


def logits(answers: torch.Tensor, classes: int, sure: float = 4.0) -> torch.Tensor:
    """Outputs that answer as told."""
    return torch.nn.functional.one_hot(answers, classes).float() * sure


def binary(seed: int, rows: int, shift: float = 1.2, share: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 2) outputs whose AUROC is Phi(shift / sqrt 2), and the classes."""
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(rows, generator=generator) < share).long()
    score = torch.randn(rows, generator=generator) + shift * (target - 0.5)
    return torch.stack([-score, score], 1), target


class TestEstimate:
    def test_shows_and_compares_like_its_value(self):
        one = Estimate(0.9481, 0.921, 0.969)
        assert str(one) == f"{one}" == "0.948 (0.921 to 0.969)"
        assert repr(one) == "Estimate(0.948, low=0.921, high=0.969)"
        assert f"{one:.1%}" == "94.8%"
        assert one > 0.9
        assert not one >= 0.95
        assert one == 0.9481
        assert one < Estimate(0.95, 0.9, 1.0)
        assert max([one, Estimate(0.7, 0.6, 0.8)]) is one
        assert float(one) == 0.9481
        assert hash(one) == hash(0.9481)
        with pytest.raises(TypeError):
            _ = one < "0.9"

    @pytest.mark.parametrize(
        ("figures", "shown"),
        [
            ((3005.23, 2811.1, 3200.9), "3005 (2811 to 3201)"),
            ((54.82, 53.02, 56.577), "54.82 (53.02 to 56.58)"),
            ((0.0001234, 0.0001, 0.00015), "0.000123 (0.000100 to 0.000150)"),
            ((0.0, 0.0, 0.0), "0.000 (0.000 to 0.000)"),
            ((-1.5, -2.0, 0.1), "-1.500 (-2.000 to 0.100)"),
        ],
    )
    def test_has_the_decimals_that_its_size_asks_for(self, figures, shown):
        assert str(Estimate(*figures)) == shown

    def test_survives_json(self):
        one = Estimate(0.5, 0.25, 0.75)
        back = Estimate.from_json(json.loads(json.dumps(one.to_json())))
        assert (back.value, back.low, back.high) == (0.5, 0.25, 0.75)


class TestResampling:
    def test_draws_as_many_rows_as_there_are_in_chunks_of_bounded_size(self, monkeypatch):
        whole = torch.cat(list(resample_weights(50, 40, seed=3)))
        monkeypatch.setattr(module, "CHUNK", 50 * 4 * 7)
        parts = list(resample_weights(50, 40, seed=3))
        assert [len(part) for part in parts] == [7, 7, 7, 7, 7, 5]
        assert torch.equal(torch.cat(parts), whole)
        assert (whole.sum(1) == 50).all()
        assert not torch.equal(whole, torch.cat(list(resample_weights(50, 40, seed=4))))

    def test_counts_are_multinomial(self):
        weight = torch.cat(list(resample_weights(100, 4000, seed=0)))
        assert float(weight.mean()) == 1
        assert float(weight.var(0).mean()) == pytest.approx(0.99, abs=0.03)

    def test_rows_of_a_block_are_drawn_together(self):
        blocks = np.array([7, 7, 2, 2, 2, 9])
        weight = torch.cat(list(resample_weights(6, 30, seed=0, blocks=blocks)))
        assert (weight[:, 0] == weight[:, 1]).all()
        assert (weight[:, 2] == weight[:, 4]).all()
        assert (weight[:, [0, 2, 5]].sum(1) == 3).all()

    def test_many_rows_get_fewer_resamples_and_a_normal_interval(self, monkeypatch):
        outputs, target = binary(0, 400)
        data, task = TensorSet({"y": target}), schema(category("a", "b"))
        full = evaluate({"y": outputs}, data, task, seed=0)
        monkeypatch.setattr(module, "DRAWS", 1)
        few = evaluate({"y": outputs}, data, task, seed=0)
        for name in ("f1", "log_loss", "auroc"):
            assert few[name].value == full[name].value
            assert few[name].high - few[name].low == pytest.approx(full[name].high - full[name].low, rel=0.3)
        assert few["f1"].high - few["f1"].value == pytest.approx(few["f1"].value - few["f1"].low)

    def test_an_area_near_one_leaves_more_room_below(self):
        outputs, target = binary(1, 200, shift=3.5)
        found = evaluate({"y": outputs}, TensorSet({"y": target}), schema(category("a", "b")), seed=0)["auroc"]
        assert 0.9 < found.low < found.value < found.high < 1
        assert found.value - found.low > found.high - found.value


def test_wilson_by_hand():
    low, high = wilson(1.0, 30)
    assert high == 1
    assert low == pytest.approx(30 / (30 + 1.959964**2))
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)


def test_agresti_and_min_by_hand():
    # b = 4, c = 0, n = 50: (4.5 - 0.5) / 52, and sqrt((5 - 16 / 52)) / 52 around it
    low, high = paired_shares(4 / 50, 0, 50)
    half = 1.959964 * math.sqrt(5 - 16 / 52) / 52
    assert (low, high) == pytest.approx((4 / 52 - half, 4 / 52 + half), abs=1e-6)
    assert low < 0  # four wins and no loss prove nothing


def simulate(count: int, rows: int, resamples: int) -> dict[str, float]:
    """The share of simulations whose interval holds the truth."""
    shift, share, noise = 1.2, 0.4, 0.7
    normal = NormalDist()
    truths = {
        "accuracy": normal.cdf(shift / 2),
        "recall": normal.cdf(shift / 2),
        "auroc": normal.cdf(shift / math.sqrt(2)),
        "r2": 1 - noise**2,
        "difference": normal.cdf(shift / 2) - normal.cdf(0.3),
        "auroc difference": normal.cdf(shift / math.sqrt(2)) - normal.cdf(0.6 / math.sqrt(2)),
    }
    held, task = dict.fromkeys(truths, 0), schema(category("a", "b"))
    for seed in range(count):
        outputs, target = binary(seed, rows, shift, share)
        generator = torch.Generator().manual_seed(10_000 + seed)
        side = torch.randn(rows, generator=generator) + 0.6 * (target - 0.5)
        weaker = torch.stack([-side, side], 1)
        data = TensorSet({"y": target})
        found = evaluate({"y": outputs}, data, task, seed, None, resamples)
        gap = compare({"y": outputs}, {"weaker": {"y": weaker}}, data, task, seed, None, resamples)
        values = torch.randn(rows, 1, generator=generator)
        answer = (1 - noise**2) * values + noise * math.sqrt(1 - noise**2) * torch.randn(
            values.shape, generator=generator
        )
        figure = evaluate({"y": answer}, TensorSet({"y": values}), schema(number()), seed, None, resamples)
        found.update(r2=figure["r2"], difference=gap["weaker"]["accuracy"])
        found["auroc difference"] = gap["weaker"]["auroc"]
        for name, truth in truths.items():
            held[name] += found[name].low <= truth <= found[name].high
    return {name: times / count for name, times in held.items()}


@pytest.mark.parametrize("rows", [300])
def test_intervals_hold_the_truth_as_often_as_they_say(rows):
    for name, share in simulate(200, rows, resamples=300).items():
        assert 0.90 <= share <= 0.975, f"{name}: {share}"


@pytest.mark.slow
@pytest.mark.parametrize("rows", [200, 500])
def test_intervals_hold_the_truth_in_many_simulations(rows):
    for name, share in simulate(400, rows, resamples=1000).items():
        assert 0.92 <= share <= 0.98, f"{name}: {share}"


def test_all_right_is_not_certain():
    target = torch.arange(60) % 3
    found = evaluate({"y": logits(target, 3)}, TensorSet({"y": target}), schema(category("a", "b", "c")), seed=0)
    for name in (
        "accuracy",
        "balanced_accuracy",
        "precision",
        "recall",
        "specificity",
        "f1",
        "auroc",
        "auprc",
    ):
        assert (found[name].value, found[name].high) == (1, 1)
        assert found[name].low == pytest.approx(60 / (60 + 1.959964**2)), name


def test_blocks_widen_the_interval():
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(40, generator=generator) < 0.6).long().repeat_interleave(10)  # 40 patients, 10 rows each
    data, outputs = TensorSet({"y": torch.ones(400, dtype=torch.int64)}), {"y": logits(right, 2)}
    rows = evaluate(outputs, data, schema(category("a", "b")), seed=0)["accuracy"]
    groups = evaluate(outputs, data, schema(category("a", "b")), seed=0, blocks=np.arange(400) // 10)["accuracy"]
    assert groups.value == rows.value
    assert groups.high - groups.low > 2.5 * (rows.high - rows.low)  # about the root of 10
    perfect = evaluate(
        {"y": logits(torch.ones(400, dtype=torch.int64), 2)},
        data,
        schema(category("a", "b")),
        0,
        np.arange(400) // 10,
    )
    assert perfect["accuracy"].low == pytest.approx(40 / (40 + 1.959964**2))


def test_stretches_of_time_hold_the_truth_where_single_rows_do_not():
    """Rows that are right come in runs, as in a series of measurements (a Markov chain with correlation 0.8)."""
    held = {"rows": 0, "stretches": 0}
    for seed in range(50):
        random = np.random.default_rng(seed)
        stay, fresh = random.random(400) < 0.8, random.random(400) < 0.7
        right = [bool(fresh[0])]
        for i in range(1, 400):
            right.append(right[-1] if stay[i] else bool(fresh[i]))
        answers = torch.tensor(right).long()
        data, outputs = TensorSet({"y": torch.ones(400, dtype=torch.int64)}), {"y": logits(answers, 2)}
        for name, blocks in (("rows", None), ("stretches", stretches(np.arange(400)))):
            found = evaluate(outputs, data, schema(category("a", "b")), seed, blocks, resamples=200)["accuracy"]
            held[name] += found.low <= 0.7 <= found.high
    assert held["rows"] < 30
    assert held["stretches"] > held["rows"] + 10


def test_row_weights_count():
    outputs, target = binary(1, 100)
    weight = torch.randint(1, 4, (100,), generator=torch.Generator().manual_seed(0)).float()
    weighted = evaluate({"y": outputs}, TensorSet({"y": target, WEIGHT: weight}), schema(category("a", "b")), seed=0)
    again = torch.arange(100).repeat_interleave(weight.long())
    copied = evaluate({"y": outputs[again]}, TensorSet({"y": target[again]}), schema(category("a", "b")), seed=0)
    assert {n: e.value for n, e in weighted.items()} == pytest.approx({n: e.value for n, e in copied.items()})
    width = weighted["accuracy"].high - weighted["accuracy"].low
    assert width > copied["accuracy"].high - copied["accuracy"].low  # copies are not more evidence


def test_a_view_of_a_set_is_read_in_its_own_order():
    outputs, target = binary(2, 50)
    index = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    found = evaluate({"y": outputs[index]}, TensorSet({"y": target}, index), schema(category("a", "b")), seed=0)
    plain = evaluate({"y": outputs}, TensorSet({"y": target}), schema(category("a", "b")), seed=0)
    assert found["auroc"].value == pytest.approx(plain["auroc"].value)


def test_what_is_not_defined_is_left_out():
    target = torch.zeros(20, dtype=torch.int64)
    found = evaluate({"y": logits(target, 2)}, TensorSet({"y": target}), schema(category("a", "b")), seed=0)
    assert "auroc" not in found
    assert "accuracy" in found
    assert all(math.isfinite(x) for e in found.values() for x in (e.value, e.low, e.high))


def test_several_targets_are_named():
    both = schema(category("a", "b"), size=number(10, 2))
    outputs, target = binary(3, 60)
    data = TensorSet({"y": target, "size": torch.randn(60, 1) * 2})
    found = evaluate({"y": outputs, "size": torch.zeros(60, 1)}, data, both, seed=0)
    assert {"y.accuracy", "size.r2", "size.mae"} <= set(found)
    assert primary(both, class_shares(data, both)) == "y.accuracy"


def test_faults_say_what_to_do():
    outputs, target = binary(0, 5)
    outputs[2, 1] = torch.nan
    with pytest.raises(DataError) as caught:
        evaluate({"y": outputs}, TensorSet({"y": target}), schema(category("a", "b")), seed=0)
    assert str(caught.value) == (
        "The answer of the network for 'y' is not a finite number in 1 of 5 rows, first in row 3. Train "
        "again with a smaller training.learning_rate, or look for inputs of extreme size in that row."
    )
    with pytest.raises(DataError, match=r"There are no rows to evaluate\. Give a test split"):
        evaluate({"y": outputs[:0]}, TensorSet({"y": target[:0]}), schema(category("a", "b")), seed=0)


class TestPrimary:
    def test_follows_the_kind_and_the_shares(self):
        even, rare = torch.tensor([0.5, 0.5]), torch.tensor([0.81, 0.19])
        assert primary(schema(category("a", "b")), {"y": even}) == "accuracy"
        assert primary(schema(category("a", "b")), {"y": rare}) == "auroc"
        assert primary(schema(number()), {}) == "r2"
        assert primary(schema(labels("a", "b")), {}) == "f1"

    def test_shares_are_weighted_and_soft_rows_count(self):
        field = category("a", "b")
        data = TensorSet({"y": torch.tensor([0, 1]), WEIGHT: torch.tensor([3.0, 1.0])})
        assert class_shares(data, schema(field))["y"].tolist() == [0.75, 0.25]
        soft = TensorSet({"y": torch.tensor([[0.5, 0.5], [1.0, 0.0]])})
        assert class_shares(soft, schema(field))["y"].tolist() == [0.75, 0.25]


class TestVerdict:
    def judge(self, network, baselines, target, field=None, metric="accuracy"):
        field = field or category("a", "b")
        told = results(network, baselines, TensorSet({"y": target}), schema(field), 0, metric)
        return told["verdict"]

    def test_says_better_not_better_and_worse(self):
        target = torch.arange(200) % 2
        good, poor = {"y": logits(target, 2)}, {"y": logits(torch.zeros_like(target), 2)}
        middling = {"y": logits(torch.where(torch.arange(200) < 100, target, 1 - target), 2)}
        told = self.judge(good, {"majority class": poor, "logistic regression": middling}, target)
        assert told.startswith("The network is better than the majority class: accuracy +0.500 (0.4")
        assert self.judge(middling, {"logistic regression": good}, target).startswith(
            "The network is worse than logistic regression: accuracy -0.500 (-0.5"
        )
        told = self.judge(middling, {"majority class": poor}, target)
        assert told.startswith("The network is not better than the majority class: accuracy +0.000 (-0.")

    def test_names_the_strongest_baseline(self):
        target = torch.arange(100) % 2
        half = {"y": logits(torch.where(torch.arange(100) < 60, target, 1 - target), 2)}
        told = self.judge(
            {"y": logits(target, 2)}, {"majority class": {"y": torch.zeros(100, 2)}, "boosting": half}, target
        )
        assert "better than boosting" in told

    def test_smaller_errors_are_better(self):
        gap = {"mean": {"mae": Estimate(-0.5, -0.6, -0.4)}, "ridge": {"mae": Estimate(0.1, 0.05, 0.2)}}
        tables = {"mean": {"mae": Estimate(2, 1, 3)}, "ridge": {"mae": Estimate(1, 0.5, 2)}}
        assert strongest(tables, "mae") == "ridge"
        assert verdict(tables, gap, "mae") == "The network is worse than ridge: MAE +0.100 (0.050 to 0.200)."
        del tables["ridge"]
        assert verdict(tables, gap, "mae") == "The network is better than the mean: MAE -0.500 (-0.600 to -0.400)."

    def test_without_a_baseline_it_says_so(self):
        assert verdict({}, {}, "r2") == "There is no baseline to compare the network's R² with."
        assert better({}, {}, "r2") is None

    def test_on_shuffled_labels_it_says_not_better(self):
        """A network that learnt noise, against the majority class, 40 times."""
        told = []
        for seed in range(40):
            outputs, target = binary(seed, 300, shift=0.0, share=0.5)
            told.append(self.judge({"y": outputs}, {"majority class": {"y": torch.zeros(300, 2)}}, target))
        assert sum("The network is better" in sentence for sentence in told) <= 2
        assert sum("is not better than the majority class" in sentence for sentence in told) >= 36

    def test_pairing_tells_what_separate_intervals_cannot(self):
        target = torch.arange(400) % 2
        hard = torch.arange(400) < 160
        weaker = torch.where(hard, 1 - target, target)
        stronger = torch.where(torch.arange(400) < 140, 1 - target, target)  # right wherever the other is, and 20 more
        data, field = TensorSet({"y": target}), schema(category("a", "b"))
        one, other = (evaluate({"y": logits(a, 2)}, data, field, seed=0)["accuracy"] for a in (stronger, weaker))
        assert one.low < other.high
        gap = compare({"y": logits(stronger, 2)}, {"b": {"y": logits(weaker, 2)}}, data, field, seed=0)["b"]["accuracy"]
        assert gap.low > 0


class TestResults:
    def test_of_classes_are_plain_json(self):
        target = torch.arange(90) % 3
        answer = torch.where(torch.arange(90) < 12, (target + 1) % 3, target)
        outputs = logits(answer, 3)
        outputs[5] *= 3  # the surest mistake
        data, task = TensorSet({"y": target}), schema(category("ant", "bee", "cat"))
        trivial = {"majority class": {"y": torch.zeros(90, 3)}}
        told = results({"y": outputs}, trivial, data, task, 0, "accuracy", resamples=200)
        again = json.loads(json.dumps(told, allow_nan=False))
        assert set(again) == {
            "test", "baseline", "difference", "primary", "others", "better", "verdict", "targets", "mistakes", "notes",
        }  # fmt: skip
        assert again["test"]["accuracy"]["value"] == pytest.approx(78 / 90)
        assert again["baseline"]["majority class"]["accuracy"]["value"] == pytest.approx(1 / 3)
        assert again["difference"]["majority class"]["accuracy"]["value"] == pytest.approx(78 / 90 - 1 / 3)
        shown = again["targets"]["y"]
        assert shown["kind"] == "category"
        assert shown["class_names"] == ["ant", "bee", "cat"]
        assert shown["confusion"] == [[26, 4, 0], [0, 26, 4], [4, 0, 26]]
        assert shown["classes"][1]["rows"] == 30
        assert sum(line["rows"] for line in shown["reliability"]) == 90
        assert len(again["mistakes"]) == 12
        first = again["mistakes"][0]
        assert (first["row"], first["target"], first["truth"], first["answer"]) == (5, "y", "cat", "ant")
        assert first["confidence"] > 0.99

    def test_the_surest_mistake_is_the_worst(self):
        """However little was left for the truth: an answer of which it is not sure is not the first to look at."""
        outputs = torch.tensor([[3.0, 1.0, 1.0, 1.0], [1.0, 0.99, 0.98, -9.0], [0.0, 2.0, 0.0, 0.0]])
        data, task = TensorSet({"y": torch.tensor([1, 3, 1])}), schema(category("a", "b", "c", "d"))
        told = module.mistakes({"y": outputs}, data, task)
        assert [item["row"] for item in told] == [0, 1]
        assert told[0]["confidence"] > 0.7 > told[1]["confidence"]

    def test_of_numbers_are_in_original_units(self):
        truth = torch.linspace(0, 20, 500)[:, None]
        outputs = (truth - 10) / 2
        outputs[7] += 3
        data, trivial = TensorSet({"y": truth - 10}), {"mean": {"y": torch.zeros(500, 1)}}
        told = results({"y": outputs}, trivial, data, schema(number(10, 2)), 0, "r2", resamples=200)
        shown = told["targets"]["y"]
        assert shown["kind"] == "number"
        assert len(shown["scatter"]) == 400
        assert sum(abs(a - b) > 1e-4 for a, b in shown["scatter"]) <= 1  # the one that is wrong, where it was drawn
        assert told["mistakes"][0]["row"] == 7
        assert told["mistakes"][0]["truth"] == pytest.approx(float(truth[7]), abs=1e-6), "the mean is added again"
        assert told["mistakes"][0]["answer"] - told["mistakes"][0]["truth"] == pytest.approx(6, abs=1e-4)
        assert told["verdict"].startswith("The network is better than the mean: R² +")
        json.dumps(told, allow_nan=False)

    def test_of_labels_name_them(self):
        target = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]).repeat(20, 1)
        outputs = (target * 2 - 1) * 3
        outputs[4] = torch.tensor([-5.0, 5.0])
        told = results(
            {"y": outputs},
            {},
            TensorSet({"y": target}),
            schema(labels("red", "round")),
            0,
            "f1",
            resamples=200,
        )
        assert told["mistakes"] == [
            {
                "row": 4,
                "target": "y",
                "truth": ["red"],
                "answer": ["round"],
                "confidence": pytest.approx(0.9933, abs=1e-4),
            }
        ]
        assert [line["name"] for line in told["targets"]["y"]["classes"]] == ["red", "round"]
        assert told["test"]["exact_match"]["value"] == pytest.approx(79 / 80)
        assert told["verdict"] == "There is no baseline to compare the network's F1 with."
        json.dumps(told, allow_nan=False)

    def test_take_another_metric_where_the_primary_one_is_not_defined(self):
        target = torch.zeros(20, dtype=torch.int64)
        told = results({"y": logits(target, 2)}, {}, TensorSet({"y": target}), schema(category("a", "b")), 0, "auroc")
        assert told["primary"] == "accuracy"
        assert told["notes"] == ["AUROC is not defined on these rows; accuracy decides instead."]

    def test_say_better_as_data_and_not_only_in_the_sentence(self):
        target = torch.arange(200) % 2
        good, poor = {"y": logits(target, 2)}, {"y": logits(torch.zeros_like(target), 2)}
        task, data = schema(category("a", "b")), TensorSet({"y": target})
        for network, baseline, expected in ((good, poor, "better"), (poor, good, "worse"), (poor, poor, "not better")):
            told = results(network, {"logistic regression": baseline}, data, task, 0, "accuracy", resamples=200)
            assert told["better"] == expected
            assert f"The network is {expected} than" in told["verdict"]
        assert results(good, {}, data, task, 0, "accuracy", resamples=200)["better"] is None

    def test_tables_agree_with_the_weighted_figures(self):
        outputs, target = binary(4, 300)
        weight = torch.rand(300, generator=torch.Generator().manual_seed(1)) * 5
        weight[:5] = 0
        data = TensorSet({"y": target, WEIGHT: weight})
        told = results({"y": outputs}, {}, data, schema(category("a", "b")), 0, "accuracy", resamples=200)
        test, shown = told["test"], told["targets"]["y"]
        matrix = torch.tensor(shown["confusion"])
        assert shown["weighted"]
        assert float(matrix.sum()) == pytest.approx(float(weight.double().sum()))
        assert float(matrix.trace() / matrix.sum()) == pytest.approx(test["accuracy"]["value"])
        for rate in ("precision", "recall", "specificity", "f1", "auroc"):
            assert shown["classes"][1][rate] == pytest.approx(test[rate]["value"])
        found = calibration(shown)
        assert found is not None
        assert (found.error, found.accuracy) == pytest.approx((test["ece"]["value"], test["accuracy"]["value"]))
        plain = results({"y": outputs}, {}, TensorSet({"y": target}), schema(category("a", "b")), 0, "accuracy")
        assert calibration(plain["targets"]["y"]).error == pytest.approx(plain["test"]["ece"]["value"])
        assert plain["targets"]["y"]["confusion"] != shown["confusion"]

    def test_labels_are_counted_by_their_threshold_and_weight(self):
        field = Labels(["red", "round"], threshold=0.9)
        field.state = {"classes": ["red", "round"], "from_columns": True}
        data = TensorSet({"y": torch.tensor([[1.0, 0.0], [1.0, 1.0]]), WEIGHT: torch.tensor([3.0, 1.0])})
        outputs = torch.tensor([[3.0, -3.0], [1.0, 3.0]])  # 0.95 and 0.73: the second is below 0.9
        told = results({"y": outputs}, {}, data, schema(field), 0, "f1", resamples=200)
        assert [line["recall"] for line in told["targets"]["y"]["classes"]] == [0.75, 1.0]

    def test_one_block_is_told_and_claims_no_certainty(self):
        outputs, target = binary(0, 100)
        told = results(
            {"y": outputs}, {}, TensorSet({"y": target}), schema(category("a", "b")), 0, "accuracy", np.zeros(100)
        )
        assert told["test"]["log_loss"]["low"] < told["test"]["log_loss"]["high"]
        assert told["notes"] == [module.ONE_BLOCK]

    def test_without_weight_nothing_can_be_judged(self):
        outputs, target = binary(0, 10)
        data = TensorSet({"y": target, WEIGHT: torch.zeros(10)})
        with pytest.raises(DataError, match=r"Every row to evaluate has the weight 0 \(data\.weight\)"):
            evaluate({"y": outputs}, data, schema(category("a", "b")), seed=0)

    def test_say_where_fewer_resamples_were_used(self):
        generator = torch.Generator().manual_seed(0)
        target = torch.randint(40, (7000,), generator=generator)
        outputs = {"y": torch.randn(7000, 40, generator=generator)}
        field = category(*[f"c{i:02}" for i in range(40)])
        told = results(outputs, {}, TensorSet({"y": target}), schema(field), 0, "accuracy", resamples=20)
        assert told["notes"] == ["Intervals rest on 20 resamples, except: AUROC (10), AUPRC (10)."]

    def test_mistakes_of_several_targets_take_turns(self):
        both = schema(category("a", "b"), size=number())
        target = torch.zeros(30, dtype=torch.int64)
        data = TensorSet({"y": target, "size": torch.randn(30, 1)})
        found = mistakes({"y": logits(1 - target, 2), "size": torch.zeros(30, 1)}, data, both)
        assert [line["target"] for line in found] == ["y", "size"] * 6
