"""The network for tables: its pieces against formulas, its members against networks of their own, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer
from torch.nn import functional as F

import fathom
from fathom.algorithms.supervised import over_members
from fathom.core.contract import Columns, Model, Schema
from fathom.core.errors import FathomError
from fathom.core.registry import fields, networks
from fathom.fields import losses
from fathom.fields.number import Sample, distribution
from fathom.networks.table import PiecewiseLinear, _edges, _mean
from kit import QUICK, cli

STATED = {"training.threads": 1, "training.device": "cpu"}


def numbers(values: np.ndarray) -> Any:
    """A fitted number field of the columns of `values`."""
    names = [f"x{i}" for i in range(values.shape[1])]
    item = fields["number"].make(names)
    item.fit([Columns(dict(zip(names, values.T, strict=True)))])
    return item


def schema(values: np.ndarray, target: np.ndarray, kind: str = "number") -> Schema:
    made = fields[kind].make(["y"])
    made.fit([Columns({"y": target})])
    return Schema({"numbers": numbers(values)}, {"y": made})


# ---------------------------------------------------------------- the distribution of a number


def test_few_values_are_all_kept_with_their_mid_ranks() -> None:
    """Of 0 0 0 1 2, with mean 0.6: half of three of five rows lie below 0, three and a half below 1."""
    column = np.array([[0.0], [0.0], [0.0], [1.0], [2.0]])
    state = numbers(column).state
    std = column.std()
    assert state["points"][0] == pytest.approx([(v - 0.6) / std for v in (0, 1, 2)], rel=1e-6)
    assert state["shares"][0] == pytest.approx([0.3, 0.7, 0.9])


def test_many_values_are_cut_where_sklearn_cuts_them() -> None:
    """Points lie equally many values apart, as quantile bins do."""
    values = np.random.default_rng(0).gamma(2.0, size=(5_000, 1))
    points, shares = distribution(values, np.zeros(1), np.ones(1))
    assert len(points[0]) == 257
    bins = KBinsDiscretizer(256, strategy="quantile", encode="ordinal", quantile_method="inverted_cdf").fit(values)
    assert np.abs(np.array(points[0]) - bins.bin_edges_[0]).max() < 0.2  # the tail is thin
    assert np.median(np.abs(np.array(points[0]) - bins.bin_edges_[0])) < 2e-3
    assert np.all(np.diff(points[0]) > 0)
    assert np.all(np.diff(shares[0]) > 0)


def test_a_state_stays_small_and_very_wide_fields_have_no_points() -> None:
    wide = np.random.default_rng(0).normal(size=(300, 1_000))
    assert {len(column) for column in numbers(wide).state["points"]} == {65}
    points, _ = distribution(np.zeros((10, 5_000)), np.zeros(5_000), np.ones(5_000))
    assert not any(points)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), most=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_sample_is_every_kth_row_however_rows_come(sizes: list[int], most: int) -> None:
    total = sum(sizes)
    sample, start = Sample(most), 0
    for size in sizes:
        sample.add(np.arange(start, start + size, dtype=np.float64)[:, None])
        start += size
    kept = sample.rows()[:, 0].tolist()
    assert kept == list(range(0, total, sample.every))
    assert len(kept) <= most


def test_only_training_rows_are_looked_at(tmp_path: Path) -> None:
    """Points come from `fit`, which sees the training rows; encoding others changes nothing."""
    item = numbers(np.arange(10.0)[:, None])
    before = list(item.state["points"][0])
    item.encode(Columns({"x0": np.array([1e6])}))
    assert item.state["points"][0] == before


# ---------------------------------------------------------------- the embedding


def test_bins_fill_as_the_paper_says() -> None:
    """Gorishniy et al. 2022, equation 1: 1 below, (x - b) / (b' - b) inside, 0 above; weights of 1 count the filling."""
    layer = PiecewiseLinear([[-1.0, 0.0, 2.0]], [[0.1, 0.5, 0.9]], bins=48, width=1)
    with torch.no_grad():
        layer.slope.zero_()
        layer.bias.zero_()
        layer.piece.fill_(1.0)
    x = torch.tensor([[-5.0], [-1.0], [-0.5], [0.0], [1.0], [2.0], [9.0]])
    torch.testing.assert_close(layer(x)[:, 0], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0]))


def test_it_begins_as_the_normal_score() -> None:
    """Before it learns a value is told by its quantile alone, through a line."""
    points, shares = [-1.0, 0.0, 2.0], [0.1, 0.5, 0.9]
    layer = PiecewiseLinear([points], [shares], bins=48, width=1)
    made = layer(torch.tensor(points)[:, None])[:, 0]
    scores = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(shares))
    torch.testing.assert_close(made - made[0], (scores - scores[0]) * layer.slope.flatten())


def test_columns_of_unequal_bins_stand_side_by_side() -> None:
    one = PiecewiseLinear([[0.0, 1.0, 2.0], [5.0]], [[0.2, 0.5, 0.8], [0.5]], bins=8, width=3)
    made = one(torch.tensor([[0.5, 5.0], [0.5, -7.0]]))
    assert made.shape == (2, 6)
    torch.testing.assert_close(made[0], made[1], msg="a column of one value says nothing")


def test_half_of_the_bins_follow_the_values() -> None:
    """A column that is zero in nine rows of ten keeps bins for the rest."""
    values = np.concatenate([np.zeros(9_000), np.random.default_rng(0).lognormal(3, 1, 1_000)])[:, None]
    points, shares = distribution(values, np.zeros(1), np.ones(1))
    edges, _ = _edges(points[0], shares[0], 16)
    assert (edges > 0).sum() >= 8


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_edges_rise_and_hold_all_values(values: list[float], bins: int) -> None:
    points, shares = distribution(np.array(values)[:, None], np.zeros(1), np.ones(1))
    edges, scores = _edges(points[0], shares[0], bins)
    assert len(edges) <= bins + 1
    assert np.all(np.diff(edges) > 0)
    assert np.all(np.diff(scores) >= 0)
    assert edges[0] == pytest.approx(min(values), rel=1e-5, abs=1e-6)
    assert len(edges) == 1 or edges[-1] == pytest.approx(max(values), rel=1e-5, abs=1e-6)


# ---------------------------------------------------------------- members


def test_the_answer_is_the_mean_of_the_members_probabilities() -> None:
    answers = torch.randn(5, 4, 3)
    torch.testing.assert_close(_mean(answers, "category").softmax(1), answers.softmax(2).mean(1))
    torch.testing.assert_close(_mean(answers, "labels").sigmoid(), answers.sigmoid().mean(1))
    torch.testing.assert_close(_mean(answers, "number"), answers.mean(1))


def test_each_member_is_judged_by_itself() -> None:
    """The loss is the mean of the members' losses, not the loss of their mean; soft targets too."""
    output, truth = torch.randn(6, 4, 3), torch.randint(3, (6,))
    wanted = torch.stack([F.cross_entropy(output[:, k], truth, reduction="none") for k in range(4)]).mean(0)
    torch.testing.assert_close(over_members(losses.cross_entropy, output, truth, 1), wanted)
    soft = F.one_hot(truth, 3).float()
    torch.testing.assert_close(over_members(losses.cross_entropy, output, soft, 1), wanted)
    alone = output[:, 0]
    torch.testing.assert_close(over_members(losses.cross_entropy, alone, truth, 1), losses.cross_entropy(alone, truth))


def test_members_in_training_one_voice_in_evaluation_and_gaps_are_told() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    values[::7, 1] = np.nan
    whole = schema(values, (values[:, 0] > 0).astype(int), "category")
    model = Model(whole, networks["table"].build(whole, "model", members=5, width=8, blocks=1))
    batch = {"numbers": whole.inputs["numbers"].encode(Columns({f"x{i}": values[:, i] for i in range(3)}))}
    assert model(batch)["y"].shape == (40, 5, 2)
    model.eval()
    out = model(batch)["y"]
    assert out.shape == (40, 2)
    torch.testing.assert_close(model.module.decide(model.features(batch)), out)
    torch.testing.assert_close(out.logsumexp(1), torch.zeros(40), atol=1e-6, rtol=0)


def test_several_targets_and_no_target_it_cannot_average() -> None:
    values = np.random.default_rng(0).normal(size=(30, 2))
    whole = schema(values, values[:, 0])
    other = fields["category"].make(["z"])
    other.fit([Columns({"z": np.arange(30) % 3})])
    both = Schema(whole.inputs, {**whole.targets, "z": other})
    model = Model(both, networks["table"].build(both, "model", members=4, width=8))
    made = model({"numbers": torch.zeros(6, 2)})
    assert {name: tuple(part.shape) for name, part in made.items()} == {"y": (6, 4, 1), "z": (6, 4, 3)}
    assert tuple(model.eval()({"numbers": torch.zeros(6, 2)})["z"].shape) == (6, 3)


def test_a_distribution_from_before_is_asked_for() -> None:
    whole = schema(np.random.default_rng(0).normal(size=(30, 2)), np.arange(30.0))
    del whole.inputs["numbers"].state["points"]
    with pytest.raises(FathomError, match=r"fitted by an earlier Fathom.*Leave --from out.*network\.name=mlp"):
        networks["table"].build(whole, "model")


# ---------------------------------------------------------------- learning


def test_it_is_chosen_and_learns_what_no_line_tells(tmp_path: Path) -> None:
    """A step, a saw tooth and a product in 900 rows; saved, loaded and told again, the answers are the same."""
    random = np.random.default_rng(0)
    x = random.uniform(-2, 2, (900, 3))
    y = (x[:, 0] > 0.5) * 2.0 + (x[:, 1] % 1.0) + 0.5 * x[:, 0] * x[:, 2]
    frame = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y}
    run = fathom.fit(
        frame, target=["y"], **STATED, **{"training.epochs": 25, "network.width": 64, "training.batch": 32}
    )
    assert run.results["network"]["name"] == "table"
    assert run.metrics["test"]["r2"] > 0.85
    rows = pa.table({name: values[:5] for name, values in frame.items() if name != "y"})
    again = fathom.load(run.path).predict(rows)
    assert [row["answer"] for row in again] == pytest.approx([row["answer"] for row in run.predict(rows)])


def test_a_convolution_over_the_row_has_the_listings_parameters() -> None:
    """30 columns: conv 64 of width 3, dense 128, two outputs."""
    whole = schema(np.random.default_rng(0).normal(size=(30, 30)), np.arange(30) % 2, "category")
    module = networks["row_cnn"].build(whole, "model")
    assert sum(p.numel() for p in module.parameters()) == 64 * 3 + 64 + 28 * 64 * 128 + 128 + 128 * 2 + 2
    with pytest.raises(
        FathomError, match=r"network\.kernel = 31 is wider than a row, which has 30 numbers\. Use 30 or less"
    ):
        networks["row_cnn"].build(whole, "model", kernel=31)


# ---------------------------------------------------------------- bad input


def planned(path: Path, columns: dict[str, Any], *words: str) -> Any:
    """What `fathom plan` says of a table."""
    keys = list(columns)
    rows = zip(*[columns[key] for key in keys], strict=True)
    path.write_text("\n".join([",".join(keys), *[",".join(map(str, row)) for row in rows]]) + "\n", "utf-8")
    return cli("plan", str(path), *words, *QUICK)


ROWS = 200
RANDOM = np.random.default_rng(0)
A, B, X = RANDOM.integers(1, 50, ROWS), RANDOM.integers(1, 90, ROWS), RANDOM.normal(size=ROWS).round(4)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": A, "b": B, "x": X, "y": A + B}, "'a' + 'b' is 'y' in every row"),
        ({"a": A, "b": B, "x": X, "y": A - B}, "'a' - 'b' is 'y' in every row"),
        ({"a": A, "x": X, "y": X}, "x alone decides 'y' in every row"),
        ({"a": [""] * ROWS, "x": X, "y": X * 2 + A}, "Left out, for they hold no value: a."),
        (
            {"a": [7] * ROWS, "x": X, "y": X * 2 + A},
            "Left out, for every value is the same: a (data.types.a=number uses it).",
        ),
        ({"a": [f"{v:.1f}" for v in X], "x": X, "y": X * 2 + A}, "numeric: a, x"),
        ({"a": [f'"{v}"'.replace(".", ",") for v in X], "x": X, "y": X * 2 + A}, "numbers with a decimal comma"),
        ({"a": [f"{v:03d}" for v in A], "x": X, "y": X * 2 + A}, "which may be codes: a (data.types.a=number uses it)"),
        ({"a": range(ROWS), "x": X, "y": X * 2 + A}, "(data.types.a=category uses it)"),
        ({"a": [f"user{i}" for i in range(ROWS)], "x": X, "y": X + A}, "(data.types.a=category uses it)"),
    ],
    ids=["sum", "difference", "copy", "empty", "constant", "text", "comma", "padded", "identifier", "names"],
)
def test_what_spoils_a_table_is_named_with_its_remedy(columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    said = planned(tmp_path / "t.csv", columns, "--target", "y")
    assert said.code == 0, said.err
    assert words in " ".join(said.out.split())


def test_a_sum_that_holds_in_most_rows_only_is_none(tmp_path: Path) -> None:
    total = A + B
    total[-1] += 1
    said = planned(tmp_path / "t.csv", {"a": A, "b": B, "x": X, "y": total}, "--target", "y")
    assert "in every row" not in said.out


def test_rare_categories_beyond_the_limit_are_counted_and_unknown_ones_say_nothing() -> None:
    item = fields["category"].make(["c"], limit=40, one_hot=8)
    item.fit([Columns({"c": pa.chunked_array([[f"w{i}" for i in range(100)]])})])
    assert "60 rarer ones are read as unknown (data.category.limit = 40)" in item.describe()
    codes = item.encode(Columns({"c": pa.chunked_array([["never seen", None]])}))
    assert not item.layer()(codes).any()


def test_one_class_is_refused(tmp_path: Path) -> None:
    said = planned(tmp_path / "t.csv", {"x": X, "y": ["no"] * ROWS}, "--target", "y")
    assert said.code == 2
    assert "the target 'y' is 'no' in every row; there is nothing to learn" in said.last
