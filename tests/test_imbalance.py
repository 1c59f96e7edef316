"""Rare classes: what is measured and watched, remedies one at a time, and thresholds from validation rows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score

import fathom
from fathom.analysis import decision
from fathom.analysis.evaluate import class_shares, primary
from fathom.core.batching import Epochs, balanced_order
from fathom.core.contract import Columns, Schema, TensorSet
from fathom.core.errors import DataError, FathomError
from fathom.core.recipe import Recipe
from fathom.core.registry import fields
from kit import QUICK, cli

STATED = {"training.threads": 1, "training.device": "cpu"}


def category(words: list[str], **options: Any) -> Any:
    item = fields["category"].make(["y"], **options)
    item.fit([Columns({"y": pa.chunked_array([words])})])
    return item


def rare(rows: int = 1_000, share: float = 0.03, seed: int = 0) -> dict[str, Any]:
    """A score that tells a rare class, though not surely, and the hour of each row."""
    random = np.random.default_rng(seed)
    positive = random.random(rows) < share
    return {
        "hour": np.arange(rows), "x": random.normal(size=rows) + 2.2 * positive, "z": random.normal(size=rows),
        "class": np.where(positive, "fraud", "ok"),
    }  # fmt: skip


def logits(probability: torch.Tensor) -> torch.Tensor:
    return torch.stack([(1 - probability).log(), probability.log()], 1)


# ---------------------------------------------------------------- the threshold

SCORES = st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=2, max_size=40)


@given(SCORES, st.floats(0.1, 100), st.floats(0.1, 100))
@settings(max_examples=80, deadline=None)
def test_no_threshold_costs_less(rows: list[tuple[int, bool]], miss: float, alarm: float) -> None:
    """The chosen one against every other, by hand."""
    score, truth = torch.tensor([s / 100 for s, _ in rows]).double(), torch.tensor([t for _, t in rows])
    item = category(["a", "b"], cost={"miss": miss, "alarm": alarm})
    made = decision.choose(item, logits(score), truth.long())
    assert made is not None

    def cost(threshold: float) -> float:
        raised = score >= threshold
        return miss * float((truth & ~raised).sum()) + alarm * float((~truth & raised).sum())

    least = min(cost(t) for t in [0.0, *(s / 100 + 0.005 for s, _ in rows)])
    assert cost(made["threshold"]) == pytest.approx(least)


@given(SCORES.filter(lambda rows: any(t for _, t in rows)), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_f_beta_is_that_of_sklearn(rows: list[tuple[int, bool]], beta: float) -> None:
    score, truth = np.array([s / 100 for s, _ in rows]), np.array([t for _, t in rows])
    made = decision.choose(
        category(["a", "b"], beta=beta), logits(torch.from_numpy(score)), torch.from_numpy(truth).long()
    )
    assert made is not None
    values = [
        fbeta_score(truth, score >= t, beta=beta, zero_division=0) for t in [0, *(s / 100 + 0.005 for s, _ in rows)]
    ]
    assert fbeta_score(truth, score >= made["threshold"], beta=beta, zero_division=0) == pytest.approx(max(values))


@given(SCORES, st.floats(1, 900))
@settings(max_examples=60, deadline=None)
def test_alerts_stay_within_their_budget(rows: list[tuple[int, bool]], budget: float) -> None:
    score, truth = torch.tensor([s / 100 for s, _ in rows]).double(), torch.tensor([t for _, t in rows])
    made = decision.choose(category(["a", "b"], alerts=budget), logits(score), truth.long())
    assert made is not None
    raised = int((score >= made["threshold"]).sum())
    assert 1000 * raised / len(rows) <= budget + 1e-6
    more = [int((score >= s / 100 - 0.005).sum()) for s, _ in rows]
    assert all(count <= raised or 1000 * count / len(rows) > budget for count in more), "it could have raised more"


def test_weights_count() -> None:
    """A positive row of weight 3 is missed three times."""
    score, truth = torch.tensor([0.2, 0.4, 0.6]).double(), torch.tensor([1, 0, 0])
    item = category(["a", "b"], cost={"miss": 1.0, "alarm": 1.0})
    plain = decision.choose(item, logits(score), truth)
    heavy = decision.choose(item, logits(score), truth, torch.tensor([3.0, 1.0, 1.0]).double())
    assert plain is not None
    assert heavy is not None
    assert plain["threshold"] > 0.6
    assert heavy["threshold"] < 0.2


def test_decode_answers_by_the_threshold_and_says_so() -> None:
    item = category(["no", "yes"])
    before = item.decode(logits(torch.tensor([0.3, 0.05])))
    assert [row["answer"] for row in before] == ["no", "no"]
    assert "threshold" not in before[0]
    item.state["decision"] = {"positive": 1, "threshold": 0.1}
    after = item.decode(logits(torch.tensor([0.3, 0.05])))
    assert [(row["answer"], row["threshold"]) for row in after] == [("yes", 0.1), ("no", 0.1)]
    assert after[0]["confidence"] == pytest.approx(0.3)
    three = category(["a", "b", "c"], positive="a")
    three.state["decision"] = {"positive": 0, "threshold": 0.6}
    assert three.decide(torch.tensor([[0.5, 0.2, 0.3], [0.7, 0.2, 0.1]])).tolist() == [2, 0]


# ---------------------------------------------------------------- through the verbs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on a rare class, with a price."""
    return fathom.fit(
        rare(), target=["class"], **STATED,
        **{
            "data.category": {"positive": "fraud", "cost": {"miss": 30.0, "alarm": 1.0}}, "network": "mlp",
            "data.types": {"hour": "ignore"}, "training.epochs": 15, "training.out": str(tmp_path_factory.mktemp("runs")),
        },
    )  # fmt: skip


def test_a_rare_class_is_watched_and_judged_by_its_precision(run: Any) -> None:
    assert run.results["primary"] == "auprc"
    assert run.recipe.training.monitor == "auprc"
    counts = {"y": torch.tensor([0.96, 0.04])}
    assert primary(Schema({}, {"y": category(["a", "b"])}), counts) == "auprc"
    assert primary(Schema({}, {"y": category(["a", "b"], positive="a")}), counts) == "auroc"


def test_the_threshold_ships_with_the_model_and_predict_uses_it(run: Any) -> None:
    told = run.results["targets"]["class"]["decision"]
    again = fathom.load(run.path)
    assert again.schema.targets["class"].state["decision"]["threshold"] == told["threshold"] < 0.5
    rows = pa.table({"x": np.linspace(-3, 6, 40), "z": np.zeros(40)})
    answers = again.predict(rows)
    for row in answers:
        assert (row["answer"] == "fraud") == (row["probabilities"]["fraud"] >= row["threshold"] - 1e-6)
    assert {row["answer"] for row in answers} == {"fraud", "ok"}


def test_figures_of_the_decision_have_intervals_and_stand_on_the_page(run: Any) -> None:
    told = run.results["targets"]["class"]["decision"]
    for ways in ("figures", "likelier"):
        assert {"alerts_per_1000", "recall", "cost_per_1000"} <= set(told[ways])
        assert all(f["low"] <= f["value"] <= f["high"] for f in told[ways].values())
    assert told["curve"][0]["alerts"] == 0
    assert told["curve"][-1]["recall"] == 1
    assert any("chosen on validation rows (a miss costs 30" in note for note in run.results["evaluation_notes"])
    page = Path(run.path, "report.html").read_text("utf-8")
    assert "Deciding for fraud" in page
    assert "What alerts cost" in page


def test_it_decides_alike_on_the_same_rows_again(run: Any) -> None:
    """`evaluate` on other data counts what `predict` answers."""
    rows = rare(400, seed=3)
    told = run.evaluate({name: values for name, values in rows.items() if name != "hour"})["targets"]["class"][
        "decision"
    ]
    answers = run.predict(pa.table({"x": rows["x"], "z": rows["z"]}))
    raised = np.array([row["answer"] == "fraud" for row in answers])
    assert told["figures"]["alerts_per_1000"]["value"] == pytest.approx(1000 * raised.mean())
    assert told["figures"]["recall"]["value"] == pytest.approx(raised[rows["class"] == "fraud"].mean())


# ---------------------------------------------------------------- remedies


def test_balanced_sampling_is_a_function_of_seed_and_epoch() -> None:
    classes = torch.tensor([0] * 95 + [1] * 5)
    order = balanced_order(classes, 1, 2)
    assert torch.equal(order, balanced_order(classes, 1, 2))
    assert not torch.equal(order, balanced_order(classes, 1, 3))
    assert classes[order].bincount().tolist() == [50, 50]
    epochs = Epochs(TensorSet({"x": torch.zeros(100, 1)}), 10, seed=1, classes=classes)
    assert torch.equal(torch.cat(epochs.cuts(2)), order)


REMEDIES: list[dict[str, Any]] = [
    {"supervised": {"class_weights": "balanced"}},
    {"supervised": {"loss": "focal"}},
    {"training": {"sampling": "balanced"}},
]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(REMEDIES, 2)))
def test_two_remedies_at_once_are_refused_by_name(one: dict[str, Any], other: dict[str, Any]) -> None:
    tree: dict[str, dict[str, Any]] = {"training": {"algorithm": "supervised"}}
    for part in (one, other):
        for section, table in part.items():
            tree.setdefault(section, {}).update(table)
    with pytest.raises(FathomError, match="each give rare classes more weight, and together too much") as caught:
        decision.check_remedies(Recipe.parse(tree), Schema({}, {"y": category(["a", "b"])}))
    assert len(str(caught.value).splitlines()) == 1


def test_what_a_remedy_does_to_probabilities_is_said() -> None:
    made = fathom.fit(
        rare(), target=["class"], **STATED,
        **{
            "training.sampling": "balanced", "data.category.positive": "fraud", "network": "mlp", "training.epochs": 4,
            "data.types": {"hour": "ignore"},
        },
    )  # fmt: skip
    note = next(note for note in made.results["evaluation_notes"] if note.startswith("With balanced sampling"))
    assert "its probabilities are no longer shares" in note


# ---------------------------------------------------------------- what cannot be


def data(words: list[str], item: Any) -> dict[str, TensorSet]:
    truth = item.encode(Columns({"y": pa.chunked_array([words])}), target=True)
    return {"validation": TensorSet({"y": truth})}


@pytest.mark.parametrize(
    ("options", "words", "text"),
    [
        (
            {"beta": 1.0, "alerts": 5.0},
            "ab",
            "data.category.beta and data.category.alerts each choose a threshold for 'y'",
        ),
        ({"cost": {"miss": 3.0}}, "ab", "both above 0, as in data.category.cost={miss = 100, alarm = 1}"),
        ({"cost": {"miss": 3.0, "alarm": -1.0}}, "ab", "should say what a miss and a false alarm cost"),
        ({"beta": -1.0}, "ab", "data.category.beta = -1 should be above 0"),
        ({"alerts": 1000.0}, "ab", "above 0 and below 1000"),
        ({"beta": 1.0}, "abc", "Say which with data.category.positive=a"),
        ({"beta": 1.0}, "a", "which hold no row of 'b' (1 rows). Use more of them, as data.validation=0.3"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused(options: dict[str, Any], words: str, text: str) -> None:
    item = category(list(words) if words != "a" else ["a", "b"], **options)
    with pytest.raises(DataError) as caught:
        decision.check(Schema({}, {"y": item}), data(list(words), item))
    assert text in str(caught.value)


def test_validation_rows_without_the_rare_class_are_told(tmp_path: Path) -> None:
    """By time, all frauds come at the start and the end: the loss decides, a chosen metric is refused."""
    rows = rare()
    rows["class"] = np.where((rows["hour"] < 25) | (rows["hour"] > 985), "fraud", "ok")
    path = tmp_path / "t.csv"
    lines = zip(*rows.values(), strict=True)
    path.write_text("\n".join([",".join(rows), *[",".join(map(str, line)) for line in lines]]) + "\n", "utf-8")
    words = (str(path), "--target", "class", "--time", "hour", "data.category.positive=fraud", *QUICK)
    said = cli("plan", *words)
    assert said.code == 0, said.err
    told = " ".join(said.out.split())
    assert "every validation row is 'ok', so auprc is not defined on them: the loss decides" in told
    refused = cli("plan", *words, "training.monitor=auprc")
    assert refused.code == 2
    assert "Use more of them, as data.validation=0.3, or training.monitor=loss." in refused.last
    ruled = cli("plan", *words, "data.category.alerts=5")
    assert ruled.code == 2
    assert "which hold no row of 'fraud'" in ruled.last


def test_sampling_without_classes_is_refused() -> None:
    number = fields["number"].make(["y"])
    with pytest.raises(FathomError, match="no target has classes: y \\(number\\)"):
        decision.check_remedies(Recipe.parse({"training": {"sampling": "balanced"}}), Schema({}, {"y": number}))


def test_shares_are_those_of_the_rows() -> None:
    item = category(["a", "b", "b", "b"])
    assert item.state["counts"] == [1, 3]
    truth = item.encode(Columns({"y": pa.chunked_array([["a", "b", "b", "b"]])}), target=True)
    assert class_shares(TensorSet({"y": truth}), Schema({}, {"y": item}))["y"].tolist() == [0.25, 0.75]
