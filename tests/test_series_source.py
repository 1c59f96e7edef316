"""Series as people have them: unsorted, with gaps and duplicates, of one entity or many, beside tables of entities."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.contract import Schema
from fathom.core.errors import DataError
from fathom.core.prepare import Prepared, encode, prepare
from fathom.core.recipe import Recipe
from fathom.sources import open_source, read_inputs
from fathom.sources.entities import Entities
from fathom.sources.moments import Grid, Moments, find_grid, find_leak, origins, place, repeated_season
from fathom.sources.series import SeriesTable
from fathom.sources.tables import Tables

START = datetime(2024, 1, 1)


def hours(count: int) -> list[str]:
    return [f"{START + timedelta(hours=i):%Y-%m-%d %H:%M}" for i in range(count)]


def csv(path: Path, **columns: Any) -> str:
    rows = zip(*columns.values(), strict=True)
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in rows]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n", "utf-8")
    return str(path)


def ready(location: Any, **data: Any) -> tuple[Any, Prepared]:
    options = Recipe.parse({"data": data}).data
    source = open_source(location, options)
    return source, prepare(source, options, 0)


def refused(location: Any, **data: Any) -> str:
    with pytest.raises(DataError) as fault:
        ready(location, **data)
    assert len(str(fault.value).splitlines()) <= 6
    return str(fault.value)


def as_read(prepared: Prepared) -> Schema:
    """The inputs of a trained model, written and read again."""
    schema = Schema.from_json(json.loads(json.dumps(prepared.schema.to_json())))
    return Schema(schema.inputs, {}, {})


def raw(prepared: Prepared, name: str) -> torch.Tensor:
    """(N, T, C) in the original units, -1 where missing."""
    values = prepared.store.column(name) + torch.tensor(prepared.schema.inputs[name].state["mean"])
    return values.nan_to_num(-1)


def wavy(count: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.1, count)
    return (np.sin(np.arange(count) * 2 * np.pi / 24) + noise).round(4)


# ---------------------------------------------------------------- windows and parts


def test_windows_and_parts_by_hand(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", date=hours(40), y=np.arange(40) ** 2)
    _, prepared = ready(path, horizon=2, series={"past": 3, "clip": 0})
    assert prepared.splits["train"].tolist() == list(range(2, 26))  # 28 moments: forecast of 26 and 27 starts at 25
    assert prepared.splits["validation"].tolist() == list(range(27, 30))
    assert prepared.splits["test"].tolist() == list(range(31, 38))  # the last one forecasts 38 and 39
    series, target = prepared.schema.inputs["series"], prepared.schema.targets["y"]
    batch = prepared.sets["test"].batch(torch.tensor([0, 6]))
    read = batch["series"][..., 0] + series.state["mean"][0]  # type: ignore[operator]
    assert read.tolist() == [[29**2, 30**2, 31**2], [35**2, 36**2, 37**2]]
    assert target.original(batch["y"])[..., 0].tolist() == [[32**2, 33**2], [38**2, 39**2]]  # type: ignore[attr-defined]
    assert series.layer()(batch["series"]).shape == (2, *series.shape)
    assert prepared.blocks is not None  # intervals resample stretches of time


def test_statistics_come_from_training_rows_only(tmp_path: Path) -> None:
    values = wavy(200)
    changed = values.copy()
    changed[150:] += 100
    states = []
    for name, column in (("a.csv", values), ("b.csv", changed)):
        _, prepared = ready(csv(tmp_path / name, date=hours(200), y=column), horizon=3)
        states.append([item.state for item in prepared.schema.fields().values()])
    assert states[0] == states[1]


@given(
    st.lists(st.integers(5, 40), min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 5),
    st.lists(st.booleans(), min_size=120, max_size=120),
)  # fmt: skip
def test_every_origin_has_its_history_and_its_forecast(
    sizes: list[int], past: int, horizon: int, known: list[bool]
) -> None:
    ticks = np.concatenate([np.arange(size) for size in sizes])
    entity = np.repeat(np.arange(len(sizes)), sizes)
    moments = Moments(ticks, entity, np.zeros((len(ticks), 1)))
    there = np.array(known[: len(ticks)])
    cuts = (15, 25)
    part = np.searchsorted(np.array(cuts), ticks, "right")
    found = origins(moments, past, horizon, cuts, there)
    expected: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for i in range(len(ticks)):
        later = range(i + 1, i + horizon + 1)
        whole = i - past + 1 >= 0 and i + horizon < len(ticks) and len({*entity[[i - past + 1, i, i + horizon]]}) == 1
        if whole and len({*part[list(later)]}) == 1 and there[list(later)].any():
            expected[int(part[i + 1])].append(i)
    assert [rows.tolist() for rows in found.values()] == list(expected.values())


def test_shares_and_limit(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", date=hours(100), y=wavy(100))
    _, prepared = ready(path, horizon=1, test=0.5, validation=0.25, series={"past": 5})
    assert [len(prepared.splits[name]) for name in ("train", "validation", "test")] == [20, 25, 50]
    source, short = ready(path, horizon=1, limit=40, series={"past": 4})
    assert short.columns.rows == 40
    assert min(rows.min() for rows in short.splits.values()) == 3  # no window reaches before what is used
    assert "Only the last 40 moments are used (data.limit)." in source.notes()


# ---------------------------------------------------------------- rows to moments


def test_rows_are_sorted_averaged_and_gaps_filled(tmp_path: Path) -> None:
    stamps = [hours(60)[i] for i in range(60) if i not in (7, 8)]
    values = [float(i) for i in range(60) if i not in (7, 8)]
    order = [3, 0, 1, 2, *range(4, 58)]
    stamps, values = [stamps[i] for i in order], [values[i] for i in order]
    stamps.append(hours(60)[20])
    values.append(30.0)
    sky = ["sun"] * 58 + ["rain"]
    source, prepared = ready(csv(tmp_path / "a.csv", when=stamps, y=values, sky=sky), horizon=2, target="y")
    notes = " ".join(source.notes())
    assert "The rows were not in the order of 'when'; they are sorted." in notes
    assert (
        "1 of 59 rows share their time stamp with another: numbers are averaged, of words the first is kept." in notes
    )
    assert "At a distance of 1 hour, 2 moments (3.3 %) have no row; they count as missing." in notes
    column = np.array(prepared.columns["y"].to_pylist())  # type: ignore[union-attr]
    assert len(column) == 60
    assert np.isnan(column[[7, 8]].astype(float)).all()
    assert column[20] == 25.0
    assert column[21] == 21.0
    words = prepared.columns["sky=rain"].to_pylist()  # type: ignore[union-attr]  # of two words one channel is enough
    assert words[20] == 0.0  # the first row's word
    assert np.isnan(words[7])


def test_a_forecast_of_gaps_alone_is_no_row(tmp_path: Path) -> None:
    stamps = [stamp for i, stamp in enumerate(hours(100)) if not 30 <= i < 40]
    _, prepared = ready(csv(tmp_path / "a.csv", t=stamps, y=wavy(90)), horizon=2, time="t", series={"past": 4})
    assert 28 in prepared.splits["train"]
    assert not {29, 30, 37} & set(prepared.splits["train"].tolist())
    assert 38 in prepared.splits["train"]  # of its two moments one is known


@pytest.mark.parametrize(
    ("stamps", "grid", "why"),
    [
        ([f"2024-{m:02d}-01" for m in range(1, 13)], Grid("month", 1.0), ""),
        ([f"20{y}-{m:02d}-28" for y in (23, 24) for m in (3, 6, 9, 12)], Grid("month", 3.0), ""),
        ([f"{START + timedelta(days=i):%Y-%m-%d}" for i in range(30) if i % 7 < 5], None, "working days"),
        ([f"{START + timedelta(days=i):%Y-%m-%d}" for i in range(30)], Grid("time", 86_400e6), ""),
        ([f"{START + timedelta(seconds=5 * i + 2.3 * np.sin(i))}" for i in range(50)], None, "no common distance"),
    ],
)
def test_the_usual_distance(stamps: list[str], grid: Grid | None, why: str) -> None:
    ticks = np.array(stamps, "datetime64[us]").astype(np.int64)
    found, told = find_grid(ticks, np.zeros(len(ticks), np.int64), True)
    assert found == grid
    assert why in told


def test_months_of_unequal_length_are_neighbors() -> None:
    stamps = ["2023-11-30", "2023-12-31", "2024-01-31", "2024-03-31"]
    ticks = np.array(stamps, "datetime64[us]").astype(np.int64)
    grid, _ = find_grid(ticks, np.zeros(4, np.int64), True)
    placed = place(ticks, np.zeros(4, np.int64), np.arange(4.0)[:, None], grid, 1)
    assert placed.values[:, 0].tolist()[:3] == [0, 1, 2]
    assert np.isnan(placed.values[3, 0])
    assert placed.gaps == 1


def test_a_table_without_time_is_taken_in_order(tmp_path: Path) -> None:
    path = csv(tmp_path / "wide.csv", north=wavy(300), south=wavy(300, 1))
    source, prepared = ready(path, horizon=4)
    target = prepared.schema.targets["forecast"]
    assert target.columns == ("north", "south")
    assert target.season == 24  # type: ignore[attr-defined]  # seen in the training part
    assert prepared.schema.special == {"time": "moment"}
    assert "No column holds the time, so the rows are taken in their order, at equal distances." in source.notes()


def test_the_season_of_noise_and_of_a_trend_is_none() -> None:
    assert repeated_season(np.random.default_rng(0).normal(size=500)) == 1
    assert repeated_season(np.arange(500.0)) == 1
    assert repeated_season(np.full(500, np.nan)) == 1
    assert repeated_season(wavy(500)) == 24


def test_calendar_channels_follow_the_clock(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", date=hours(24 * 30), y=wavy(720))
    _, prepared = ready(path, horizon=24)
    channels = prepared.schema.inputs["series"].channels  # type: ignore[attr-defined]
    assert channels[1:] == (
        "hour of day (sin)", "hour of day (cos)", "day of week (sin)", "day of week (cos)",
    )  # fmt: skip
    sine = prepared.columns["hour of day (sin)"].to_numpy()  # type: ignore[union-attr]
    assert sine[[0, 6, 12, 30]] == pytest.approx([0, 1, 0, 1], abs=1e-9)
    week = prepared.columns["day of week (cos)"].to_numpy()  # type: ignore[union-attr]
    assert week[0] == pytest.approx(1.0)  # a Monday
    assert prepared.schema.inputs["series"].past == 72  # type: ignore[attr-defined]


def test_many_series_in_one_table(tmp_path: Path) -> None:
    shops = [shop for shop in "ba" for _ in range(60)]
    path = csv(tmp_path / "a.csv", shop=shops, day=hours(60) * 2, sold=np.arange(120))
    _, prepared = ready(path, horizon=2, group="shop", target="sold", series={"past": 5})
    every = np.concatenate(list(prepared.splits.values()))
    assert 59 not in every
    assert not set(range(58, 64)) & set(every.tolist())  # no window crosses from one shop to the next
    assert {64, 4} <= set(prepared.splits["train"].tolist())
    assert prepared.columns["shop"].to_pylist()[59:61] == ["b", "a"]  # type: ignore[union-attr]
    batch = prepared.sets["train"].batch(torch.tensor([list(prepared.splits["train"]).index(64)]))
    mean = prepared.schema.inputs["series"].state["mean"][0]
    assert (batch["series"][0, :, 0] + mean).tolist() == pytest.approx([60, 61, 62, 63, 64])


# ---------------------------------------------------------------- prices


def test_prices_become_returns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    close = (100 * np.exp(rng.normal(0, 0.01, 120).cumsum())).round(2)
    days = [f"{START + timedelta(days=i):%Y-%m-%d}" for i in range(170) if i % 7 < 5][:120]
    path = csv(tmp_path / "a.csv", Date=days, Open=close * 1.01, Close=close)
    source, prepared = ready(path, horizon=2)
    assert "'Close' is a price, so its log returns are read and forecast; Open are read" in " ".join(source.notes())
    returns = prepared.columns["Close"].to_numpy()  # type: ignore[union-attr]
    assert returns == pytest.approx(np.diff(np.log(close)))
    assert "Left out, since they are the price itself: Open." in source.notes()
    assert prepared.schema.targets["Close"].returns  # type: ignore[attr-defined]
    _, plain = ready(path, horizon=2, forecast={"returns": False})
    assert plain.columns["Close"].to_numpy() == pytest.approx(close)  # type: ignore[union-attr]
    assert "log returns need positive numbers, but 'x' has -1" in refused(
        csv(tmp_path / "b.csv", x=[3, -1, *range(1, 60)]), horizon=1, forecast={"returns": True}
    )


def test_a_return_after_a_gap_is_since_the_last_price(tmp_path: Path) -> None:
    price: list[Any] = [float(i) for i in range(1, 61)]
    price[10] = None
    _, prepared = ready(csv(tmp_path / "a.csv", date=hours(60), price=price), horizon=1)
    returns = prepared.columns["price"].to_numpy()  # type: ignore[union-attr]
    assert np.isnan(returns[9])
    assert returns[10] == pytest.approx(np.log(12 / 10))


# ---------------------------------------------------------------- refusals


def test_a_leak_is_refused_by_name(tmp_path: Path) -> None:
    y = wavy(200)
    path = csv(tmp_path / "a.csv", date=hours(200), later=[*y[3:], *y[:3]], fine=wavy(200, 3), y=y)
    text = refused(path, horizon=6, target="y")
    assert "'later' equals 'y' 3 moments later, so it tells what is to be forecast" in text
    assert "data.types.later=ignore" in text
    for kind in ("ignore", "number"):
        _, prepared = ready(path, horizon=6, target="y", types={"later": kind})
        assert ("later" in prepared.schema.inputs["series"].columns) == (kind == "number")
    assert find_leak(np.zeros((50, 1)), np.zeros((50, 1)), 3) is None  # zeros everywhere are no leak


def test_what_cannot_be_forecast(tmp_path: Path) -> None:
    flat = csv(tmp_path / "flat.csv", date=hours(50), y=[3] * 50, z=wavy(50))
    assert "the series 'y' is 3 at every moment; there is nothing to forecast" in refused(flat, horizon=2, target="y")
    short = csv(tmp_path / "short.csv", date=hours(50), y=wavy(50))
    text = refused(short, horizon=30)
    assert "short.csv has 50 moments, too few to forecast 30 (data.horizon)" in text
    assert "The longest possible horizon is 5" in text
    assert "none is possible" in refused(short, horizon=2, series={"past": 48})
    holes = csv(tmp_path / "holes.csv", date=[*hours(30)[:9], None, *hours(30)[10:]], y=wavy(30))
    text = refused(holes, horizon=2)
    assert "holes.csv, line 11: 'date' (data.time) is missing, and 1 rows lack it in all" in text
    words = csv(tmp_path / "words.csv", date=["1/2/2024", "2/2/2024", "3/2/2024"], y=[1, 2, 3])
    assert "'date' holds text such as '1/2/2024'. Write it as YYYY-MM-DD" in refused(words, horizon=1)
    assert "There is no column 'yy'" in refused(short, horizon=2, target="yy")
    assert "'date' holds no numbers, so it cannot be forecast" in refused(short, horizon=2, target="date")
    assert "leave no moments to learn from" in refused(short, horizon=2, test=0.6, validation=0.4)
    assert "a series is divided by time, so data.test is a share" in refused(short, horizon=2, test=short)
    assert "data.weight has no meaning" in refused(short, horizon=2, weight="y")
    named = csv(tmp_path / "named.csv", date=hours(30), y=wavy(30), who=["a", "b"] * 15)
    assert "'who' holds no numbers, so it cannot be forecast" in refused(named, horizon=1, target="who")
    assert "leaves the first fold too little to learn from" in refused(short, horizon=2, fold=[1, 8])
    infinite = csv(tmp_path / "inf.csv", date=hours(60), y=wavy(60), x=[*wavy(59), "inf"])
    assert "line 61: column 'x' holds an infinite or too large number" in refused(infinite, horizon=2, target="y")


def test_only_a_horizon_makes_a_table_a_series(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", date=hours(60), x=wavy(60), y=wavy(60, 1))
    assert isinstance(open_source(path, Recipe.parse({}).data), Tables)
    assert isinstance(open_source(path, Recipe.parse({"data": {"horizon": 3}}).data), SeriesTable)
    frame = pa.table({"y": wavy(60)})
    assert isinstance(open_source(frame, Recipe.parse({"data": {"horizon": 3}}).data), SeriesTable)


# ---------------------------------------------------------------- predict


def test_predict_reads_the_last_moments(tmp_path: Path) -> None:
    y, sky = wavy(100), ["sun", "rain", "fog", "sun"] * 25
    path = csv(tmp_path / "a.csv", date=hours(100), y=y, sky=sky)
    _, prepared = ready(path, horizon=3, target="y", series={"past": 10})
    schema = as_read(prepared)
    columns, names = read_inputs([path], schema)
    assert names == [f"{path}, after 2024-01-05 03:00"]
    rows, faults = encode(schema, columns)
    assert not faults
    whole = prepared.store.columns["series"].gather(torch.tensor([99]))  # type: ignore[union-attr]
    assert torch.equal(rows.batch(torch.tensor([0]))["series"], whole)
    mixed = csv(tmp_path / "b.csv", sky=sky[::-1], y=y[::-1], date=hours(100)[::-1])
    again, _ = encode(schema, read_inputs([mixed], schema)[0])
    assert torch.equal(again.batch(torch.tensor([0]))["series"], whole)
    records = [{"date": stamp, "y": value, "sky": word} for stamp, value, word in zip(hours(100), y, sky, strict=True)]
    stamped = [{**record, "date": datetime.fromisoformat(record["date"])} for record in records]
    third, _ = encode(schema, read_inputs(stamped, schema)[0])
    assert torch.equal(third.batch(torch.tensor([0]))["series"], whole)


def test_predict_says_what_is_lacking(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", date=hours(100), y=wavy(100))
    _, prepared = ready(path, horizon=3, series={"past": 10})
    schema = as_read(prepared)
    few = csv(tmp_path / "few.csv", date=hours(4), y=wavy(4))
    with pytest.raises(DataError, match=r"few.csv has 4 moments; a forecast reads the last 10. Give the rows before"):
        read_inputs([few], schema)
    with pytest.raises(DataError, match="lacks the column 'date'"):
        read_inputs([csv(tmp_path / "none.csv", y=wavy(20))], schema)
    with pytest.raises(DataError, match="'date' held dates in training, but int64 came"):
        read_inputs([csv(tmp_path / "int.csv", date=range(20), y=wavy(20))], schema)
    with pytest.raises(DataError, match="does not exist"):
        read_inputs([str(tmp_path / "missing.csv")], schema)


def test_predict_answers_every_entity(tmp_path: Path) -> None:
    shops = [shop for shop in "ba" for _ in range(60)]
    path = csv(tmp_path / "a.csv", shop=shops, day=hours(60) * 2, sold=np.arange(120) % 50)
    _, prepared = ready(path, horizon=2, group="shop", target="sold", series={"past": 5})
    columns, names = read_inputs([path], as_read(prepared))
    assert [name.split(", ")[1] for name in names] == ["shop 'b'", "shop 'a'"]
    assert columns.rows == 2


def test_other_data_are_read_by_the_layout_of_training(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", date=hours(100), y=wavy(100), sky=["sun", "rain", "fog", "sun"] * 25)
    _, prepared = ready(path, horizon=3, target="y", series={"past": 10})
    like = Schema.from_json(json.loads(json.dumps(prepared.schema.to_json())))
    other = csv(tmp_path / "b.csv", date=hours(50), y=wavy(50, 5), sky=["rain"] * 50)
    source = open_source(other, Recipe.parse({}).data, like)
    rows, faults = encode(like, source.columns())
    assert not faults
    assert source.given_splits()["test"].tolist() == list(range(9, 47))
    small = open_source(csv(tmp_path / "c.csv", date=hours(9), y=wavy(9), sky=["sun"] * 9), Recipe.parse({}).data, like)
    with pytest.raises(DataError, match="has 9 moments, too few to read 10 and forecast 3"):
        small.given_splits()
    assert rows.subset(torch.from_numpy(source.given_splits()["test"])).batch(torch.arange(38))["y"].shape == (38, 3, 1)


# ---------------------------------------------------------------- entities


def stays(folder: Path, count: int = 60) -> str:
    folder.mkdir()
    rng = np.random.default_rng(0)
    dead = np.arange(count) % 3 == 0
    csv(
        folder / "people.csv", id=range(100, 100 + count), age=rng.integers(20, 90, count),
        Survival=np.where(dead, 5, -1), score=np.where(dead, 9, 1), died=dead.astype(int),
        split=["train", "train", "train", "valid", "test"] * (count // 5),
    )  # fmt: skip
    who = np.repeat(np.arange(100, 100 + count - 1), 4)  # the last one was never measured
    hour = np.tile([3, 1, 0, 7], count - 1)
    pulse = (60 + 30 * dead[who - 100] + hour).astype(float).astype(str)
    pulse[5] = ""
    kind = np.tile(["day", "night", "day", "night"], count - 1)
    csv(folder / "pulse.csv", id=[*who, 999], hour=[*hour, 0], pulse=[*pulse, 1], kind=[*kind, "day"])
    return str(folder)


def test_entities_and_their_moments(tmp_path: Path) -> None:
    path = stays(tmp_path / "stays")
    source, prepared = ready(path, target="died")
    notes = " ".join(source.notes())
    assert isinstance(source, Entities)
    assert "people.csv has one row for each 'id', pulse.csv its moments." in notes
    assert "1 moments belong to no row of the entities ('id') and are left out." in notes
    assert "1 of 60 rows have no moment; their series is empty." in notes
    assert "Left out, since they may be known only after the outcome: Survival (data.types.Survival=number" in notes
    assert "it alone tells the classes of 'died' apart, as only what follows from them does: score" in notes
    assert prepared.schema.inputs["numbers"].columns == ("age",)
    series = prepared.schema.inputs["series"]
    assert series.channels == ("time", "pulse", "kind=night")  # type: ignore[attr-defined]
    assert [len(prepared.splits[part]) for part in ("train", "validation", "test")] == [36, 12, 12]
    batch = prepared.store.batch(torch.tensor([0, 1, 59]))
    mean = torch.tensor(series.state["mean"])
    assert (batch["series"][0] + mean).tolist() == [[0, 90, 0], [1, 91, 1], [3, 93, 0], [7, 97, 1]]
    assert batch["series"][1, 1, 1].isnan()  # the empty cell
    assert batch["series"][2].isnan().all()
    out = series.layer()(batch["series"])
    assert out.shape == (3, 4, series.shape[1])
    assert out[2].abs().sum() == 0


def test_what_is_left_out_can_be_asked_for(tmp_path: Path) -> None:
    path = stays(tmp_path / "stays")
    _, prepared = ready(path, target="died", types={"Survival": "number", "score": "number", "pulse": "ignore"})
    assert prepared.schema.inputs["numbers"].columns == ("age", "Survival", "score")
    assert prepared.schema.inputs["series"].channels == ("time", "kind=night")  # type: ignore[attr-defined]
    source, guessed = ready(path)
    assert list(guessed.schema.targets) == ["died"]
    assert "The target is 'died' (by its name)" in " ".join(source.notes())


def test_predict_reads_folders_of_entities(tmp_path: Path) -> None:
    path = stays(tmp_path / "stays")
    _, prepared = ready(path, target="died")
    schema = as_read(prepared)
    columns, names = read_inputs([path], schema)
    rows, _ = encode(schema, columns)
    assert len(names) == 60
    for name in schema.inputs:
        ours, theirs = rows.column(name), prepared.store.column(name)
        assert torch.equal(ours.nan_to_num(99), theirs.nan_to_num(99))
    with pytest.raises(DataError, match="this model reads a folder of entities and their moments"):
        read_inputs([f"{path}/people.csv"], schema)


def test_tables_that_do_not_join(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    csv(folder / "a.csv", id=[1, 2, 3], x=[1, 2, 3])
    csv(folder / "b.csv", id=[1, 2, 3], z=[1, 2, 3])
    assert "no column is unique in one (the entities) and repeated in the other" in refused(str(folder))


def test_one_series_a_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    moments = {f"t{i}": rng.normal(size=30).round(3) for i in range(10)}
    path = csv(tmp_path / "a.csv", label=[0, 1] * 15, **moments)
    source, prepared = ready(path)
    assert "t0 to t9 are read as one series of 10 moments a row; data.types.t0=number reads them" in " ".join(
        source.notes()
    )
    assert prepared.schema.inputs["series"].shape == (10, 2)
    first = prepared.store.column("series")[0, :, 0] + prepared.schema.inputs["series"].state["mean"][0]
    assert first.tolist() == pytest.approx([moments[f"t{i}"][0] for i in range(10)], abs=1e-6)
    columns, _ = read_inputs([path], as_read(prepared))
    assert torch.equal(encode(as_read(prepared), columns)[0].column("series"), prepared.store.column("series"))
    assert isinstance(open_source(path, Recipe.parse({"data": {"types": {"t0": "number"}}}).data), Tables)
    features = csv(tmp_path / "b.csv", label=[0, 1] * 15, **{name.replace("t", "V"): c for name, c in moments.items()})
    assert isinstance(open_source(features, Recipe.parse({}).data), Tables)


def test_series_that_end_early_are_shorter_rows(tmp_path: Path) -> None:
    rows = [[i % 2, i, *range(9 - 4 * (i % 2)), *[""] * 4 * (i % 2)] for i in range(30)]
    path = tmp_path / "a.csv"
    path.write_text(
        "\n".join([",".join(["label", *(f"t{i}" for i in range(10))]), *(",".join(map(str, r)) for r in rows)])
    )
    _, prepared = ready(str(path))
    assert prepared.store.lengths().tolist()[:2] == [10, 6]


@pytest.mark.parametrize("kind", ["lines", "parquet", "frame"])
def test_lists_of_channels_are_found_in_every_table(kind: str, tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = [{"x": [[i, 1.0, 2.0], [0.5, i, None]], "label": "ab"[i % 2]} for i in range(12)]
    frame = pa.Table.from_pylist(rows)
    location: Any = frame
    if kind == "lines":
        location = tmp_path / "rows.jsonl"
        location.write_text("\n".join(json.dumps(row) for row in rows))
    elif kind == "parquet":
        location = tmp_path / "rows.parquet"
        parquet.write_table(frame, location)
    assert Entities.accepts(location)
    schema = open_source(location, Recipe.parse({"data": {"target": "label"}}).data).schema()
    assert {name: item.kind for name, item in schema.inputs.items()} == {"x": "series"}
    assert schema.inputs["x"].state["layout"]["channels"] == ("x0", "x1")


def test_lists_of_channels_and_of_moments(tmp_path: Path) -> None:
    channels = [[[float(i), 2.0, 3.0][: 2 + i % 2], [5.0, None, 7.0][: 2 + i % 2]] for i in range(30)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"label": "ab"[i % 2], "x": x}) for i, x in enumerate(channels)))
    source, prepared = ready(str(path))
    assert (
        "'x' is read as a list of channels, each a list of moments: 2 channels, 2 to 3 moments a row." in source.notes()
    )
    assert raw(prepared, "x")[1].flatten().tolist() == pytest.approx([1, 5, 2, -1, 3, 7])
    moments = [list(zip(*x, strict=True)) for x in channels]
    path.write_text("\n".join(json.dumps({"label": "ab"[i % 2], "x": x}) for i, x in enumerate(moments)))
    _, same = ready(str(path))
    assert torch.allclose(raw(same, "x"), raw(prepared, "x"), atol=1e-5)
    path.write_text("\n".join(json.dumps({"label": "ab"[i % 2], "x": [[1, 2, 3], [1, 2 + i]]}) for i in range(20)))
    assert "the channels of 'x' have 3, 2 moments; each of 2 channels needs as many" in refused(str(path))


# ---------------------------------------------------------------- real data


def test_metro_traffic(data_folder: Path) -> None:
    source, prepared = ready(str(data_folder / "traffic" / "metro_interstate_traffic.csv.gz"), horizon=24)
    notes = " ".join(source.notes())
    assert "7,629 of 48,204 rows share their time stamp" in notes
    assert "11,976 moments (22.8 %) have no row" in notes
    assert list(prepared.schema.targets) == ["traffic_volume"]


def test_loop_detectors(data_folder: Path) -> None:
    _, prepared = ready(str(data_folder / "traffic" / "los_speed.csv.gz"), horizon=12, series={"past": 12})
    target = prepared.schema.targets["forecast"]
    assert target.outputs == (12, 207)
    assert target.season == 288  # type: ignore[attr-defined]  # a day of five minutes, found in the values


def test_patients(data_folder: Path) -> None:
    source, prepared = ready(str(data_folder / "patient"), target="in_hospital_death", limit=400)
    assert "known only after the outcome: Length_of_stay, Survival" in " ".join(source.notes())
    numbers = prepared.schema.inputs["numbers"].columns
    assert {"SAPS_I", "SOFA"} <= set(numbers)
    assert not {"split", "RecordID", "Survival"} & set(numbers)
    assert len(prepared.schema.inputs["series"].channels) == 38  # type: ignore[attr-defined]


def test_archive_sets(data_folder: Path) -> None:
    folder = data_folder / "ucr"
    _, points = ready(str(folder / "GunPoint_train.csv.gz"), test=str(folder / "GunPoint_test.csv.gz"))
    assert len(points.splits["test"]) == 150
    assert points.schema.inputs["series"].shape == (150, 2)
    vowels = str(folder / "JapaneseVowels_train.jsonl.gz"), str(folder / "JapaneseVowels_test.jsonl.gz")
    _, spoken = ready(vowels[0], test=vowels[1])
    assert len(spoken.schema.inputs["x"].channels) == 12  # type: ignore[attr-defined]
    assert spoken.store.lengths().max() == 29
