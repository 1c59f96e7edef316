"""Series and forecasts as fields: what is standardized, what fills a gap, what a missing value may not change."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional as F

from fathom.core.contract import Columns, Field, Ragged
from fathom.core.errors import DataError, RowFaults
from fathom.core.registry import fields
from fathom.core.tensors import Windows
from fathom.fields.series import HISTORY, Forecast, Series, Steps, Summary, huber, mae, mse, quantile

NAN = float("nan")


def fitted(made: Any, columns: Columns, chunk: int = 1000) -> Any:
    made.fit(part for _, part in columns.chunks(chunk))
    return made


def reread(made: Field) -> Any:
    return Field.from_json(json.loads(json.dumps(made.to_json())))


def steps(*rows: list[list[float | None]]) -> Columns:
    return Columns({"x": pa.chunked_array([pa.array(list(rows), pa.list_(pa.list_(pa.float64())))])})


# ---------------------------------------------------------------- series


def test_windows_end_with_their_moment_and_targets_follow_it() -> None:
    columns = Columns({"a": np.arange(10.0)})
    series = fitted(fields["series"].make(["a"], past=3, clip=0.0), columns)
    target = fitted(fields["forecast"].make(["a"], horizon=2, clip=0.0), columns)
    read = Windows(series.encode(columns), *series.window).gather(torch.tensor([4]))
    later = Windows(target.encode(columns, True), *target.window).gather(torch.tensor([4]))
    assert (read + 4.5).flatten().tolist() == [2.0, 3.0, 4.0]  # encoded is centered
    assert target.original(later).flatten().tolist() == [5.0, 6.0]
    assert series.shape == (3, 2)
    assert target.outputs == (2, 1)


def test_what_is_read_and_what_is_forecast_have_one_unit() -> None:
    values = np.random.default_rng(0).lognormal(size=(500, 2))
    columns = Columns({"a": values[:, 0], "b": values[:, 1]})
    series = fitted(fields["series"].make(["a", "b"], past=2), columns)
    target = fitted(fields["forecast"].make(["b"], horizon=2), columns)
    assert target.state["mean"][0] == series.state["mean"][1]
    assert target.state["std"][0] == series.state["std"][1]


def test_missing_values_are_filled_with_the_last_observed_one_and_flagged() -> None:
    layer = Steps([2.0, 1.0], np.array([-99.0, -99]), np.array([99.0, 99]), True, "last")
    row = torch.tensor([[[NAN, 1.0], [4.0, NAN], [NAN, NAN], [NAN, 3.0], [6.0, 5.0]]])
    out = layer(row)[0]
    assert out[:, :2].tolist() == [[0.0, 1.0], [2.0, 1.0], [0.0, 0.0], [2.0, 3.0], [3.0, 5.0]]  # a lost step is 0
    assert out[:, 2:4].tolist() == [[0, 1], [1, 0], [0, 0], [0, 1], [1, 1]]
    assert out[:, 4].tolist() == [1, 1, 0, 1, 1]
    mean = Steps([2.0, 1.0], np.array([-99.0, -99]), np.array([99.0, 99]), False, "mean")(row)[0]
    assert mean.tolist() == [[0, 1, 1], [2, 0, 1], [0, 0, 0], [0, 3, 1], [3, 5, 1]]


@given(
    hnp.arrays(np.float32, (2, 6, 3), elements=st.one_of(st.just(NAN), st.floats(-5, 5, width=32))),
    st.sampled_from(["last", "mean"]),
    st.integers(1, 4),
)
def test_filling_never_changes_what_was_observed(values: np.ndarray, fill: str, more: int) -> None:
    layer = Steps([1.0, 2.0, 3.0], np.full(3, -50.0), np.full(3, 50.0), True, fill)
    given_rows = torch.from_numpy(values)
    out = layer(given_rows)
    known = ~given_rows.isnan()
    assert torch.equal(out[..., :3][known], (given_rows * (1 / torch.tensor([1.0, 2.0, 3.0])))[known])
    assert torch.equal(out[..., -1] > 0, known.any(2))
    assert out.isfinite().all()
    longer = torch.cat([given_rows, torch.full((2, more, 3), NAN)], 1)  # filled up to a longer row of the batch
    assert torch.equal(layer(longer)[:, :6], out)
    assert not layer(longer)[:, 6:, :3].any()


def test_rows_of_lists_become_ragged_rows() -> None:
    columns = steps([[1.0, None], [3.0, 4.0]], [[5.0, 6.0]], [])
    series = fitted(fields["series"].make(["x"], clip=0.0), columns)
    made = series.encode(columns)
    assert isinstance(made, Ragged)
    values, mask = made.gather(torch.arange(3))
    assert mask.tolist() == [[True, True], [True, False], [False, False]]
    assert (values[0] + torch.tensor(series.state["mean"]))[1].tolist() == [3.0, 4.0]
    assert values[0, 0, 1].isnan()
    assert values[1, 1].isnan().all()
    assert series.shape == (2, 5)
    assert series.channels == ("x0", "x1")
    assert series.layer()(values)[2].abs().sum() == 0  # a row without moments
    again = reread(series).encode(columns)
    assert torch.equal(again.values.nan_to_num(7), made.values.nan_to_num(7))


def test_chunks_make_no_difference() -> None:
    values = np.random.default_rng(1).normal(size=(300, 2))
    values[5, 0] = NAN
    columns = Columns({"a": values[:, 0], "b": values[:, 1]})
    for name, options in (("series", {"past": 4}), ("forecast", {"horizon": 3, "season": 7})):
        one, many = (fitted(fields[name].make(["a", "b"], **options), columns, size) for size in (1000, 5))
        naive = [made.state.pop("naive", []) for made in (one, many)]
        assert one.state == many.state
        assert naive[0] == pytest.approx(naive[1], rel=1e-12)


def test_entry_errors_do_not_decide_the_scale() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(7.4, 0.1, 5000), [735.0, -50.0]])
    columns = Columns({"ph": values})
    series = fitted(fields["series"].make(["ph"], past=1), columns)
    assert series.state["std"][0] == pytest.approx(0.1, rel=0.05)
    out = series.layer()(series.encode(columns)[-2:, None])
    assert out[..., 0].abs().max() < 40  # cut, where 735 were 7,000 deviations
    rare = np.zeros(5000)
    rare[7] = 1
    event = fitted(fields["series"].make(["a"], past=1), Columns({"a": rare}))
    assert event.layer()(event.encode(Columns({"a": rare}))[7:8, None])[0, 0, 0] > 1  # a rare event is no error


def test_a_sample_of_many_moments_is_fair_and_the_same_every_time() -> None:
    values = np.random.default_rng(0).normal(3, 2, (20_000, 1))
    one, other = Summary(2000), Summary(2000)
    one.add(values)
    for part in np.array_split(values, 17):
        other.add(part)
    first = one.result(0.0)
    assert first[0][0] == pytest.approx(3, abs=0.2)
    assert first[1][0] == pytest.approx(2, abs=0.2)
    assert other.held <= 4000
    assert [part.tolist() for part in other.result(0.0)] == [part.tolist() for part in first]


def test_errors_of_series() -> None:
    series = fitted(fields["series"].make(["x"]), steps([[1.0, 2.0]], [[3.0, 4.0]]))
    with pytest.raises(DataError, match="'x', row 2: a moment has 1 values, others have 2"):
        series.encode(steps([[1.0, 2.0]], [[1.0]]))
    with pytest.raises(DataError, match="has 3 values a moment; the model reads 2: x0, x1"):
        series.encode(steps([[1.0, 2.0, 3.0]]))
    with pytest.raises(RowFaults) as fault:
        series.encode(steps([[1.0, 2.0]], [[1.0, 2.0], [1.0, float("inf")]]))
    assert fault.value.reasons == {1: "'x1' holds an infinite or too large value"}
    with pytest.raises(DataError, match="'w' holds string; a series reads numbers"):
        fitted(fields["series"].make(["w"], past=1), Columns({"w": ["a", "b"]}))


def test_a_history_stands_for_all_columns() -> None:
    columns = Columns({"a": np.arange(6.0), "b": np.arange(6.0) ** 2})
    series = fitted(fields["series"].make(["a", "b"], past=2), columns)
    flat = Windows(series.encode(columns), *series.window).gather(torch.tensor([5]))
    history = Columns({HISTORY: pa.chunked_array([pa.array([[[4.0, 16.0], [5.0, 25.0]]])])})
    assert torch.equal(series.encode(history).gather(torch.tensor([0]))[0], flat)


# ---------------------------------------------------------------- losses


def test_losses_leave_missing_targets_out() -> None:
    output, target = torch.randn(4, 5, 2), torch.randn(4, 5, 2)
    for ours, theirs in ((mse, F.mse_loss), (mae, F.l1_loss), (huber, F.huber_loss)):
        expected = theirs(output, target, reduction="none").flatten(1).mean(1)
        assert torch.allclose(ours(output, target), expected)
    holes = target.clone()
    holes[0, 1:] = NAN
    holes[1] = NAN
    guess = output.clone().requires_grad_()
    each = mse(guess, holes)
    assert torch.allclose(each[0], (output - target)[0, 0].square().mean())
    assert each[1] == 0
    each.sum().backward()
    assert guess.grad is not None
    assert guess.grad.isfinite().all()
    assert not guess.grad[1].any()


def test_the_pinball_loss_by_hand() -> None:
    output = torch.tensor([[[[1.0, 3.0]]]])  # levels 0.1 and 0.9
    target = torch.tensor([[[2.0]]])
    assert quantile(output, target, (0.1, 0.9)).item() == pytest.approx((0.1 * 1 + 0.1 * 1) / 2)
    assert quantile(output, target + 2, (0.1, 0.9)).item() == pytest.approx((0.1 * 3 + 0.9 * 1) / 2)


# ---------------------------------------------------------------- forecast


def forecast(values: np.ndarray, **options: Any) -> tuple[Forecast, Columns]:
    columns = Columns({f"y{i}": values[:, i] for i in range(values.shape[1])})
    return fitted(fields["forecast"].make(list(columns), **options), columns, 13), columns


def test_metrics_by_hand() -> None:
    rng = np.random.default_rng(0)
    made, _ = forecast(rng.normal(50, 9, (200, 2)).cumsum(0), horizon=3, season=2, clip=0.0)
    truth = rng.normal(50, 9, (30, 3, 2))
    guess = truth + rng.normal(0, 2, truth.shape)
    truth[4, 1, 0] = NAN
    mean, std = np.array(made.state["mean"]), np.array(made.state["std"])
    output, target = torch.from_numpy((guess - mean) / std), torch.from_numpy(truth - mean)
    found = made.metrics(output, target)
    error = guess - truth
    squares, sizes = np.nanmean(error**2, (0, 1)), np.nanmean(np.abs(error), (0, 1))
    assert found["rmse"].item() == pytest.approx(np.sqrt(squares.mean()))
    assert found["mae"].item() == pytest.approx(sizes.mean())
    assert found["mase"].item() == pytest.approx((sizes / made.state["naive"]).mean())
    assert found["r2"].item() == pytest.approx((1 - squares / np.nanvar(truth, (0, 1))).mean())
    assert found["scaled_mse"].item() == pytest.approx((squares / std**2).mean())


def test_resamples_are_repeated_rows() -> None:
    made, _ = forecast(np.random.default_rng(0).normal(size=(60, 1)), horizon=2)
    output, target = torch.randn(9, 2, 1), torch.randn(9, 2, 1)
    target[3, 0] = NAN
    rows = torch.tensor([[0, 3, 3, 5, 8, 8, 8, 1, 2], [1, 1, 4, 4, 7, 7, 6, 6, 3]])
    weight = torch.stack([torch.bincount(one, minlength=9) for one in rows]).double()
    found = made.metrics(output, target, weight)
    for i, one in enumerate(rows):
        alone = made.metrics(output[one], target[one])
        assert all(found[name][i].item() == pytest.approx(alone[name].item()) for name in found)


def test_the_naive_error_is_that_of_the_season_and_of_no_return() -> None:
    values = np.array([1.0, 5, 2, 8, 4, 8])[:, None]
    made, _ = forecast(values, horizon=1, season=2)
    assert made.state["naive"] == [pytest.approx(np.mean([1, 3, 2, 0]))]
    returns, _ = forecast(np.array([0.1, -0.3, 0.2])[:, None], horizon=1, returns=True)
    assert returns.state["naive"] == [pytest.approx(0.2)]
    long, _ = forecast(np.random.default_rng(0).normal(size=(100, 1)), horizon=1, season=24)  # chunks of 13 rows
    column = np.random.default_rng(0).normal(size=100)
    assert long.state["naive"][0] == pytest.approx(np.abs(column[24:] - column[:-24]).mean())


def test_answers_are_in_the_original_units() -> None:
    made, columns = forecast(np.array([[10.0, 1e6], [20, 3e6], [30, 2e6]]), horizon=2)
    standard = made.scale(made.encode(columns, True)[:2])[None]
    (answer,) = made.decode(standard)
    assert answer == {"answer": {"y0": [10.0, 20.0], "y1": [1e6, 3e6]}}
    single, columns = forecast(np.array([[10.0], [20], [30]]), horizon=2)
    assert single.decode(single.scale(single.encode(columns)[1:])[None]) == [{"answer": [20.0, 30.0]}]


def test_quantiles_are_in_order_and_judged() -> None:
    values = np.random.default_rng(0).normal(10, 2, (400, 1))
    made, _ = forecast(values, horizon=2, quantiles=[0.9, 0.1, 0.5])
    made = reread(made)
    assert made.quantiles == (0.1, 0.5, 0.9)
    assert made.outputs == (2, 1, 3)
    assert list(made.losses) == ["quantile"]
    crossed = torch.tensor([[[[1.28, 0.0, -1.28]], [[-1.28, 0.0, 1.28]]]])
    (answer,) = made.decode(crossed)
    assert answer["low"][0] < answer["answer"][0] < answer["high"][0]
    assert answer["answer"][0] == pytest.approx(made.state["mean"][0], abs=1e-4)
    targets = torch.from_numpy(values.reshape(200, 2, 1) - made.state["mean"][0])
    found = made.metrics(crossed.expand(200, 2, 1, 3), targets)
    assert found["coverage"].item() == pytest.approx(0.8, abs=0.05)
    plain = quantile(crossed.expand(200, 2, 1, 3).sort(-1).values, targets / made.state["std"][0], (0.1, 0.5, 0.9))
    assert made.metrics(crossed.sort(-1).values.expand(200, 2, 1, 3), targets)["quantile_loss"].item() == pytest.approx(
        plain.mean().item()
    )


def test_losses_that_do_not_fit_are_not_offered() -> None:
    assert list(fields["forecast"].make(["a"]).losses) == ["mse", "mae", "huber"]


def test_a_missing_target_is_no_fault() -> None:
    made, _ = forecast(np.array([[1.0], [NAN], [3.0]]), horizon=1)
    assert made.encode(Columns({"y0": [1.0, NAN]}), target=True).isnan().flatten().tolist() == [False, True]
    with pytest.raises(RowFaults, match="1 rows"):
        made.encode(Columns({"y0": [float("inf")]}), target=True)


def test_a_column_without_a_known_value_is_left_out() -> None:
    made, _ = forecast(np.random.default_rng(0).normal(size=(20, 2)), horizon=1)
    target = torch.randn(5, 1, 2)
    target[..., 1] = NAN
    found = made.metrics(torch.zeros(5, 1, 2), target)
    assert found["mae"].isfinite()
    assert made.metrics(torch.zeros(5, 1, 2), torch.full((5, 1, 2), NAN))["mae"].isnan()


def test_series_exports() -> None:
    series = Series(["a"], past=3)
    fitted(series, Columns({"a": [1.0, 2.0, NAN, 4.0]}))
    scripted = torch.export.export(series.layer(), (torch.randn(2, 3, 1),)).module()
    row = torch.tensor([[[1.0], [NAN], [2.0]], [[NAN], [NAN], [2.0]]])
    assert torch.allclose(scripted(row), series.layer()(row))
