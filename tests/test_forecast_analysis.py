"""Forecasts: their baselines, skill, tests by hand, the trading rule, the report, walk-forward folds; and labelled series."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge

from fathom.analysis import baseline_series as module
from fathom.analysis import forecast, report, warping
from fathom.analysis.baseline import baselines, summaries
from fathom.analysis.baseline_series import Gram, Task, carried, forecasts, read, seasonal_means
from fathom.analysis.charts import horizon_chart, stretch_charts
from fathom.analysis.evaluate import primary, results
from fathom.analysis.evidence import Evidence
from fathom.core.contract import Columns, Schema
from fathom.core.errors import DataError
from fathom.core.prepare import overlapping
from fathom.core.split import walk_forward
from fathom.core.tensors import Ragged, TensorSet, Windows
from fathom.fields.category import Category
from fathom.fields.series import Forecast, Series

DATA = Path(os.environ.get("FATHOM_DATA", "nowhere"))


def columns(**values) -> Columns:
    return Columns({name: np.asarray(value, np.float64) for name, value in values.items()})


def series(raw: Columns, targets=("y",), past=4, horizon=3, **options) -> tuple[Schema, TensorSet]:
    """A fitted schema and all moments as one set."""
    read_field = Series(list(raw), past=past)
    target = Forecast(list(targets), horizon=horizon, **options)
    read_field.fit([raw])
    target.fit([raw])
    store = TensorSet(
        {
            "series": Windows(read_field.encode(raw), *read_field.window),
            "y": Windows(target.encode(raw, target=True), *target.window),
        }
    )
    rows = torch.arange(past - 1, raw.rows - horizon)
    return Schema({"series": read_field}, {"y": target}), store.subset(rows)


def parts(data: TensorSet, share: float = 0.7, gap: int = 0) -> tuple[TensorSet, TensorSet]:
    cut = int(share * len(data))
    return data.subset(torch.arange(cut)), data.subset(torch.arange(cut + gap, len(data)))


def wave(count: int, season: int = 12, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    moments = np.arange(count)
    return np.sin(2 * np.pi * moments / season) + noise * np.random.default_rng(seed).normal(size=count)


class TestNaive:
    def test_repeats_the_last_known_value_and_the_season_before(self):
        raw = columns(y=[1, 2, 3, 4, 5, 6, 7, math.nan, 9, 10, 11, 12, 13, 14, 15, 16])
        schema, data = series(raw, past=4, horizon=5, season=3)
        item = schema.targets["y"]
        found, _ = forecasts(schema, data, data.subset(torch.tensor([4])), seed=0)  # from moment 7, which is missing
        assert item.unscale(found["last value"]["y"])[0, :, 0].tolist() == pytest.approx([7] * 5, abs=1e-5)
        # 8 <- 5, 9 <- 6, 10 <- 7 is missing at 10 - 3, so the last value; 11 <- 5, 12 <- 6 two seasons before
        assert item.unscale(found["seasonal naive"]["y"])[0, :, 0].tolist() == pytest.approx([6, 7, 7, 6, 7], abs=1e-5)

    def test_of_returns_is_the_last_price(self):
        raw = columns(y=np.random.default_rng(0).normal(0.001, 0.01, 80))
        schema, data = series(raw, returns=True)
        found, _ = forecasts(schema, *parts(data), seed=0)
        assert list(found)[:2] == ["last price", "mean return"]
        item = schema.targets["y"]
        assert item.unscale(found["last price"]["y"]).abs().max() < 1e-9
        assert float(item.unscale(found["mean return"]["y"])[0, 0, 0]) == pytest.approx(item.state["mean"][0])

    def test_does_not_reach_into_another_series(self):
        raw = columns(y=wave(100))
        schema, data = series(raw, past=4, season=12)
        grouped = Schema(schema.inputs, schema.targets, {"group": "who"})
        found, notes = forecasts(grouped, *parts(data), seed=0)
        assert "seasonal naive" not in found
        assert notes == [
            "There is no baseline 'seasonal naive': a season has 12 moments, and 4 of each series are seen."
        ]

    def test_gaps_are_filled_by_the_value_before(self):
        past = np.array([[[math.nan], [2.0], [math.nan], [3.0]]])
        assert carried(past)[0, :, 0].tolist() == [0, 2, 2, 3]

    def test_seasonal_means_know_training_moments_only(self):
        values = np.tile([1.0, 2.0, 3.0], 20)
        values[40:] = 1000.0
        schema, data = series(columns(y=values), past=3, horizon=1, season=3)
        task = Task.of(schema)
        train = data.subset(torch.arange(30))
        means = seasonal_means(task, read(task, train))
        item = schema.targets["y"]
        assert item.unscale(torch.from_numpy(means))[:, 0].tolist() == pytest.approx([1, 2, 3], rel=1e-4)


class TestRidge:
    def test_is_that_of_scikit_learn_with_the_seasonal_mean_as_a_feature(self):
        random = np.random.default_rng(0)
        given_, means, wanted = random.normal(size=(50, 4)), random.normal(size=(50, 2)), random.normal(size=(50, 2))
        gram = Gram(4, 2)
        gram.add(given_[:20], means[:20], wanted[:20])
        gram.add(given_[20:], means[20:], wanted[20:])
        values, vectors = np.linalg.eigh(gram.given)
        _, weights, seasonal = gram._solve(values, vectors, 3.0)
        for h in range(2):
            expected = SklearnRidge(alpha=3.0, fit_intercept=False).fit(
                np.column_stack([given_, means[:, h]]), wanted[:, h]
            )
            assert weights[:, h] == pytest.approx(expected.coef_[:4], abs=1e-10)
            assert seasonal[h] == pytest.approx(expected.coef_[4], abs=1e-10)

    def test_cross_validation_is_that_of_the_formula(self):
        random = np.random.default_rng(1)
        given_, wanted = random.normal(size=(40, 3)), random.normal(size=(40, 1))
        gram = Gram(3, 1)
        gram.add(given_, np.zeros((40, 1)), wanted)
        score, weights, _ = gram._solve(*np.linalg.eigh(gram.given), 2.0)
        hat = given_ @ np.linalg.inv(given_.T @ given_ + 2 * np.eye(3)) @ given_.T
        residual = wanted - hat @ wanted
        assert (given_ @ weights) == pytest.approx(hat @ wanted)
        assert score == pytest.approx(float((residual**2).sum()) / (1 - (np.trace(hat) + 1) / 40) ** 2)

    def test_foretells_what_is_linear_in_the_past(self):
        schema, data = series(columns(y=wave(400, 12, 0.0)), past=24, horizon=6, season=12)
        found, notes = forecasts(schema, *parts(data), seed=0)
        _, test = parts(data)
        assert notes == []
        error = found["ridge on the past"]["y"] - schema.targets["y"].scale(test.column("y"))
        assert float(error.abs().max()) < 0.02

    def test_shares_weights_between_many_columns(self):
        raw = columns(**{f"c{i}": wave(200, 12, 0.05, i) * (i + 1) for i in range(10)})
        schema, data = series(raw, targets=list(raw), past=12, horizon=3)
        train, test = parts(data)
        task = Task.of(schema)
        fitted = module.Ridge.fit(task, read(task, train), None, 0)
        assert fitted.weights.shape == (1, 13 + fitted.level, 3)  # 12 moments less the last one, and a 1
        assert fitted.answer(read(task, test), test.index.numpy()).shape == (len(test), 3, 10)

    def test_a_level_counts_only_where_the_series_returns_to_it(self):
        random = np.random.default_rng(0)
        noise, drift = random.normal(size=600), random.normal(size=600).cumsum()
        for values, steady in ((noise, True), (drift + np.arange(600), False)):
            schema, data = series(columns(y=values), past=2, horizon=2)
            task = Task.of(schema)
            assert module.Ridge.fit(task, read(task, data), None, 0).level is steady

    def test_too_few_rows_leave_a_note(self):
        values = wave(40)
        values[5::2] = math.nan
        schema, data = series(columns(y=values), past=4, horizon=3)
        found, notes = forecasts(schema, *parts(data), seed=0)
        assert list(found) == ["last value"]
        assert notes == [
            "There is no baseline 'ridge on the past': too few training rows have all of their moments ahead."
        ]


def test_boosting_reads_the_other_columns_but_not_their_future():
    random = np.random.default_rng(0)
    other = random.normal(size=400)
    target = np.concatenate([[0.0], other[:-1]])  # follows the other one by one moment
    schema, data = series(columns(y=target, x=other), past=4, horizon=2)
    found, _ = forecasts(schema, *parts(data), seed=0)
    _, test = parts(data)
    truth = schema.targets["y"].scale(test.column("y"))
    error = (found["gradient boosting"]["y"] - truth).square().mean((0, 2))
    assert float(error[0]) < 0.15  # what the other one is now
    assert float(error[1]) > 0.8  # what it will be is unknown


def test_quantiles_stand_around_the_forecast():
    schema, data = series(columns(y=np.random.default_rng(0).normal(size=800)), quantiles=(0.1, 0.5, 0.9))
    train, test = parts(data)
    found, _ = forecasts(schema, train, test, seed=0)
    outputs = found["last value"]["y"]
    assert outputs.shape == (len(test), 3, 1, 3)
    plain, _ = forecasts(series(columns(y=np.random.default_rng(0).normal(size=800)))[0], train, test, seed=0)
    assert torch.allclose(outputs[..., 1], plain["last value"]["y"], atol=1e-6)
    assert 0.7 < float(schema.targets["y"].metrics(outputs, test.column("y"))["coverage"]) < 0.9


class TestTests:
    def test_diebold_mariano_by_hand(self):
        # d = 1, 2, 3, 4; mean 2.5, centered -1.5 -0.5 0.5 1.5; g0 = 5/4, g1 = (0.75 - 0.25 + 0.75)/4 = 1.25/4
        statistic, p = forecast.diebold_mariano(np.array([1.0, 2.0, 3.0, 4.0]), 1)
        plain = 2.5 / math.sqrt(1.25 / 4)
        assert statistic == pytest.approx(plain * math.sqrt((4 + 1 - 2 + 0) / 4))
        assert p == pytest.approx(2 * 0.0148, abs=2e-3)  # t of 3 degrees at 3.873
        difference = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
        # centered -2 -1 0 1 2: g0 = 10/5, g1 = (2 + 0 + 0 + 2)/5; long run 2 + 1.6 = 3.6
        statistic, _ = forecast.diebold_mariano(difference, 2)
        assert statistic == pytest.approx(3 / math.sqrt(3.6 / 5) * math.sqrt((5 + 1 - 4 + 2 / 5) / 5))

    def test_diebold_mariano_where_it_is_not_defined(self):
        assert forecast.diebold_mariano(np.zeros(20), 1) is None
        assert forecast.diebold_mariano(np.arange(4.0), 2) is None
        assert forecast.diebold_mariano(np.array([1.0, -1.0] * 10), 2) is not None  # a negative sum is weighted

    def test_size_of_the_test_is_near_its_level(self):
        random = np.random.default_rng(0)
        rejected = [forecast.diebold_mariano(random.normal(size=60), 1)[1] < 0.05 for _ in range(400)]
        assert 0.02 < np.mean(rejected) < 0.09

    def test_skill_and_what_it_says(self):
        naive, good = torch.rand(300, generator=torch.Generator().manual_seed(0)) + 1, torch.full((300,), 0.75)
        gained = forecast.skill(good, naive, 0, np.arange(300) // 10)
        assert gained.value == pytest.approx(1 - 225 / float(naive.sum()), abs=1e-6)
        assert gained.low < gained.value < gained.high
        item = Forecast(["p"], returns=True)
        assert forecast.judgment(item, gained, "last price").startswith("The forecasts have skill: 49.2% less")
        none = forecast.skill(naive, naive, 0, None)
        assert "no skill against the last price" in forecast.judgment(item, none, "last price")
        assert "does not lie above zero" in forecast.judgment(item, none, "last price")

    def test_direction_counts_moves_only(self):
        found = forecast.direction(torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([0.5, -0.5, 0.0, math.nan]))
        assert (found["value"], found["rows"], found["rises"]) == (1.0, 2, 0.5)
        assert found["low"] == pytest.approx(0.342, abs=1e-3)  # Wilson, 2 of 2

    def test_trading_by_hand(self):
        truth = np.log([1.1, 0.9, 1.1, 1.2])
        found = forecast.trade(np.array([1.0, -1.0, 1.0, 1.0]), truth, 4, "quarters", cost=0.01)
        gains = np.array([1.1 * 0.99, 0.99, 1.1 * 0.99, 1.2])  # in, out, in, stay
        assert found["changes"] == 3
        assert found["invested"] == 0.75
        assert found["rule"]["return"] == pytest.approx(gains.prod() - 1)
        assert found["rule"]["volatility"] == pytest.approx(gains.std(ddof=1) * 2)
        assert found["rule"]["sharpe"] == pytest.approx((gains - 1).mean() * 4 / (gains.std(ddof=1) * 2))
        assert found["hold"]["return"] == pytest.approx(1.1 * 0.9 * 1.1 * 1.2 * 0.99 - 1)

    def test_never_invested_has_no_sharpe_ratio(self):
        found = forecast.trade(-np.ones(5), np.zeros(5), 252, "working days")
        assert found["rule"] == {"return": 0.0, "volatility": 0.0, "sharpe": None}

    def test_a_year_is_that_of_the_distance(self):
        day = Series(["y"], past=3)
        for grid, moments in ((None, 252), (["time", 86_400e6], 365.2425), (["month", 1.0], 12)):
            day.state = {"layout": {"grid": grid}}
            assert forecast.a_year(Schema({"series": day}))[0] == pytest.approx(moments)


def judged(returns: bool = False, quantiles: tuple[float, ...] = ()) -> dict:
    values = np.random.default_rng(1).normal(0, 0.01, 400) if returns else wave(400)
    schema, data = series(columns(y=values), past=12, horizon=6, season=12, returns=returns, quantiles=quantiles)
    train, test = parts(data)
    found, _ = baselines(schema, train, test, seed=0)
    assert primary(schema, {}) == "rmse"
    blocks = overlapping(np.arange(len(test)), 6)
    return results(found["ridge on the past"], found, test, schema, 0, "rmse", blocks, resamples=200)


class TestResults:
    def test_are_plain_json_with_a_table_of_horizons(self):
        told = json.loads(json.dumps(judged(), allow_nan=False))
        target = told["targets"]["y"]
        assert [line["step"] for line in target["horizons"]] == [1, 2, 3, 4, 5, 6]
        last = target["horizons"][-1]
        assert last["network"]["rmse_to"] == pytest.approx(told["test"]["rmse"]["value"])
        assert last["network"]["mae_to"] == pytest.approx(told["test"]["mae"]["value"])
        assert last["last value"]["rmse"] > last["network"]["rmse"]
        assert target["skill"]["low"] > 0
        assert target["judgment"].startswith("The forecasts have skill")
        assert target["test"]["against"] == "seasonal naive"
        assert target["test"]["statistic"] < 0
        assert "direction" not in target
        assert told["verdict"].startswith("The network is not better than ridge on the past")
        rows = [line["row"] for line in told["mistakes"]]
        assert all(abs(a - b) >= 6 for i, a in enumerate(rows) for b in rows[:i])
        assert "moment" in told["mistakes"][0]["at"]

    def test_of_returns_claim_no_skill_and_say_so(self):
        told = judged(returns=True)
        target = told["targets"]["y"]
        assert "The forecasts of the price show no skill" in target["judgment"]
        assert target["judgment"] in told["notes"]
        assert set(target["trading"]["rule"]) == {"return", "volatility", "sharpe"}
        assert 0.3 < target["direction"]["value"] < 0.7
        view = report.forecast_view(target)
        assert "always saying 'up'" in view["says"][-1]
        assert "5 basis points" in view["trading"]["says"]

    def test_few_stretches_are_told(self):
        schema, data = series(columns(y=wave(100)), past=4, horizon=10)
        train, test = parts(data)
        found, _ = baselines(schema, train, test, 0)
        told = results(found["last value"], found, test, schema, 0, "rmse", overlapping(np.arange(len(test)), 10))
        assert told["notes"][-1] == "Intervals rest on 3 stretches of time only, and may be too narrow."

    def test_are_drawn_with_a_band(self):
        told = judged(quantiles=(0.1, 0.5, 0.9))
        target = told["targets"]["y"]
        drawn = stretch_charts(target)
        assert [chart.title for chart in drawn] == ["y, 1 moment ahead", "y, 3 moments ahead", "y, 6 moments ahead"]
        assert drawn[0].areas[0].endswith("Z")
        assert horizon_chart(target).lines[-1][:2] == ("Network", "strong")
        page = report._template().render(report.view(Evidence(results=told)))
        assert page.count('class="band"') == 3
        assert "Error by moments ahead" in page
        assert stretch_charts({}) == []
        assert horizon_chart({}) is None
        assert report.forecast_view({"kind": "number"}) is None


class TestWalkForward:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(60, 400), st.integers(1, 5), st.integers(1, 8), st.integers(1, 20))
    def test_nothing_that_is_judged_was_learnt(self, moments, count, horizon, past):
        rows = np.arange(past - 1, moments - horizon)
        try:
            made = walk_forward(rows, count, horizon, past)
        except DataError:
            return
        assert len(made) == count
        judged_before, learnt_before = -1, 0
        for train, held, test in made:
            assert rows[train].max() + horizon <= rows[held].min()  # the last moment learnt, the first one held out
            assert rows[held].max() + horizon <= rows[test].min()
            assert rows[test].min() > judged_before
            assert len(train) > learnt_before
            judged_before, learnt_before = rows[test].max(), len(train)
        tests = np.concatenate([test for _, _, test in made])
        assert len(np.unique(tests)) == len(tests)
        assert tests.max() == len(rows) - 1

    def test_series_that_share_moments_are_cut_together(self):
        rows = np.tile(np.arange(50), 3)
        for train, _, test in walk_forward(rows, 3, 2, 4):
            assert rows[train].max() < rows[test].min()
            assert set(np.bincount(rows[test])) <= {0, 3}

    def test_too_little_is_refused(self):
        with pytest.raises(DataError, match=r"training\.folds = 5 leaves the first fold too little .* fewer folds"):
            walk_forward(np.arange(20), 5, 4, 3)

    def test_a_gap_before_a_test_stretch_leaves_rows_to_choose_by(self) -> None:
        rows = np.concatenate([np.arange(400), np.arange(600, 1000)])  # as where a sensor was away for months
        for train, held, test in walk_forward(rows, 4, 5, 10):
            assert len(held) >= 5
            assert abs(len(test) - 160) <= 1, "as many rows in each fold, wherever the gap lies"
            assert rows[train].max() + 5 <= rows[held].min()
            assert rows[held].max() + 5 <= rows[test].min()


def test_stretches_are_no_shorter_than_the_horizon():
    assert overlapping(np.array([3, 4, 4, 5, 9, 11]), 2).tolist() == [0, 0, 0, 1, 1, 2]
    assert np.bincount(overlapping(np.arange(1000), 4)).max() == 10


# ---- labelled series


def test_summaries_by_hand():
    rows = torch.tensor([[[1.0], [math.nan], [5.0], [math.nan]], [[math.nan]] * 4, [[2.0], *[[math.nan]] * 3]])
    found = summaries(rows)
    assert found[0].tolist() == [5, 3, 1, 5, 2, 2]  # last, mean, least, largest, slope, count
    assert found[1, :5].isnan().all()
    assert found[1, 5] == 0
    assert found[2].tolist() == [2, 2, 2, 2, 0, 1]


def labelled(lengths: np.ndarray, seed: int = 0) -> tuple[Schema, TensorSet]:
    """Rising and falling series of these lengths."""
    random = np.random.default_rng(seed)
    classes = np.arange(len(lengths)) % 2
    rows = [
        torch.tensor(np.sin(np.arange(n) * (0.3 + 0.3 * k)) + 0.1 * random.normal(size=n), dtype=torch.float32)
        for n, k in zip(lengths, classes, strict=True)
    ]
    item = Series(["x"])
    item.state = {"channels": ["x"], "mean": [0.0], "std": [1.0], "missing": False, "length": int(lengths.max())}
    target = Category(["y"])
    target.state = {"classes": ["a", "b"], "vocabularies": [["a", "b"]], "soft": False}
    ragged = Ragged(
        torch.cat(rows)[:, None], torch.tensor([0, *np.cumsum(lengths)]), float("nan")
    )
    return Schema({"x": item}, {"y": target}), TensorSet({"x": ragged, "y": torch.from_numpy(classes)})


@pytest.mark.parametrize("lengths", [np.full(60, 30), np.random.default_rng(0).integers(20, 30, 60)])
def test_labelled_series_have_summaries_and_a_nearest_neighbor(lengths):
    schema, data = labelled(lengths)
    train, test = parts(data)
    found, notes = baselines(schema, train, test, seed=0)
    assert notes == []
    assert list(found) == [
        "majority class", "logistic regression on summaries", "gradient boosting", "nearest neighbor under time warping",
    ]  # fmt: skip
    right = found["nearest neighbor under time warping"]["y"].argmax(1) == test.column("y")
    assert float(right.double().mean()) > 0.9


def test_too_much_warping_is_left_out_with_a_note(monkeypatch):
    monkeypatch.setattr(warping, "WORK", 10)
    schema, data = labelled(np.full(20, 30))
    found, notes = baselines(schema, *parts(data), seed=0)
    assert "nearest neighbor under time warping" not in found
    assert "it would compare" in notes[0]


def slowly(one: np.ndarray, other: np.ndarray) -> float:
    """Dynamic time warping as it is written in books."""
    n, m = len(one), len(other)
    band = max(math.ceil(warping.BAND * max(n, m)), abs(n - m))
    table = np.full((n + 1, m + 1), np.inf)
    table[0, 0] = 0
    for i in range(n):
        for j in range(m):
            if abs(i - j) <= band:
                near = min(table[i, j], table[i, j + 1], table[i + 1, j])
                table[i + 1, j + 1] = ((one[i] - other[j]) ** 2).sum() + near
    return float(table[n, m])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 15), min_size=1, max_size=4), st.lists(st.integers(1, 15), min_size=1, max_size=4),
    st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_warping_is_that_of_the_books(ones, others, channels, seed):
    random = np.random.default_rng(seed)
    train, test = ([random.normal(size=(n, channels)) for n in lengths] for lengths in (ones, others))
    expected = [[slowly(a, b) for b in test] for a in train]
    assert warping.nearest(train, test) == pytest.approx(np.array(expected), rel=1e-4)


def test_warping_answers_the_class_of_the_nearest():
    logs = warping.answers(np.array([[1.0, 9.0], [4.0, 1.0], [16.0, 25.0]]), np.array([0, 2, 0]), 3)
    assert logs.argmax(1).tolist() == [0, 2]
    assert np.exp(logs).sum(1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.skipif(not (DATA / "ucr").is_dir(), reason="needs FATHOM_DATA/ucr")
def test_warping_on_a_known_set():
    def load(part):
        rows = np.genfromtxt(DATA / "ucr" / f"GunPoint_{part}.csv.gz", delimiter=",", skip_header=1)
        return rows[:, 0], list(rows[:, 1:, None])

    (learnt, train), (truth, test) = load("train"), load("test")
    answer = learnt[warping.nearest(train, test).argmin(0)]
    assert 0.90 < (answer == truth).mean() < 0.96  # the archive says 0.907 without a band, 0.913 with the best one


# ---- texts


def test_texts_are_read_by_models_on_words():
    texts = ["good film"] * 10 + ["bad film"] * 10
    classes = torch.tensor([0] * 10 + [1] * 10)
    target = Category(["y"])
    target.state = {"classes": ["a", "b"], "vocabularies": [["a", "b"]], "soft": False}
    words = SimpleNamespace(kind="text", texts=lambda tokens: [texts[int(row[0])] for row in tokens])
    data = TensorSet({"x": torch.arange(20)[:, None], "y": classes})
    schema = Schema({"x": words, "n": SimpleNamespace(kind="number")}, {"y": target})
    found, notes = baselines(schema, data, data, seed=0)
    assert list(found) == ["majority class", "logistic regression on words", "NB-SVM on words and pairs"]
    assert notes == ["The baselines on words read the text alone, not the columns beside it."]
    for name in list(found)[1:]:
        assert (found[name]["y"].argmax(1) == classes).all()
    given_, _ = baselines(schema, data, data, seed=0, texts=(texts, texts[::-1]))
    assert (given_["logistic regression on words"]["y"].argmax(1) == classes.flip(0)).all()
    one = TensorSet({"x": data.columns["x"], "y": torch.zeros(20, dtype=torch.int64)})
    _, notes = baselines(Schema({"x": words}, {"y": target}), one, one, seed=0)
    assert notes[0].startswith("There is no baseline on words: ")
