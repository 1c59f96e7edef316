"""Splits: shares of every class, units on one side, order of time, folds, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.errors import DataError
from fathom.core.split import check_given, divide, folds, units

SHARES = {"test": 0.2, "validation": 0.1}


@given(st.integers(30, 400), st.integers(1, 4), st.integers(0, 9))
def test_every_row_falls_into_one_part_with_the_shares_of_its_class(rows: int, classes: int, seed: int) -> None:
    strata = np.random.default_rng(seed).integers(0, classes, rows)
    parts = divide(np.arange(rows), SHARES, seed, strata)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(rows))
    for name, share in SHARES.items():
        for value in np.unique(strata):
            wanted = share * (strata == value).sum()
            assert abs((strata[parts[name]] == value).sum() - wanted) <= 1


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 25)), min_size=60, max_size=120),
    st.integers(0, 5),
    st.booleans(),
)
def test_equal_rows_and_groups_stay_on_one_side(pairs: list[tuple[int, int]], seed: int, grouped: bool) -> None:
    hashes = np.array([one for one, _ in pairs], np.uint64)
    groups = np.array([other for _, other in pairs]) if grouped else None
    unit = units(hashes, groups)
    try:
        parts = divide(unit, SHARES, seed)
    except DataError:
        assert len(np.unique(unit)) < 20, "only few units can leave a part empty"
        return
    owner = np.empty(len(pairs), object)
    for name, index in parts.items():
        owner[index] = name
    for keys in (hashes, groups):
        for key in [] if keys is None else np.unique(keys):
            assert len(set(owner[keys == key])) == 1


def test_units_chain_rows_and_groups() -> None:
    """Row 0 equals row 1, row 1 is of the group of row 2: all three must stay together."""
    unit = units(np.array([7, 7, 8, 9], np.uint64), np.array([0, 1, 1, 2]))
    assert unit[0] == unit[1] == unit[2] != unit[3]


def test_large_units_do_not_overfill_a_part() -> None:
    unit = np.repeat(np.arange(10), [100, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    parts = divide(unit, SHARES, 0)
    assert 0 in unit[parts["train"]]
    assert len(parts["test"]) in range(25, 36)


@given(st.lists(st.integers(0, 30), min_size=40, max_size=80), st.integers(0, 3))
def test_time_runs_from_train_to_validation_to_test(moments: list[int], seed: int) -> None:
    time = np.array(moments)
    try:
        parts = divide(np.arange(len(time)), SHARES, seed, time=time)
    except DataError:
        return
    assert time[parts["train"]].max() < time[parts["validation"]].min()
    assert time[parts["validation"]].max() < time[parts["test"]].min(), "rows of one moment stay together"
    assert sum(map(len, parts.values())) == len(time)


@given(st.integers(2, 6), st.integers(6, 60), st.integers(1, 30), st.integers(0, 3))
def test_folds_hold_every_row_once_and_none_is_empty(count: int, rows: int, classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    strata = generator.integers(0, classes, rows)
    parts = folds(np.arange(rows), count, seed, strata)
    assert len(parts) == count
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert min(map(len, parts)) > 0
    for value in np.unique(strata):
        sizes = [(strata[part] == value).sum() for part in parts]
        assert max(sizes) - min(sizes) <= 1, "each fold has its share of each class"


@given(st.lists(st.integers(1, 9), min_size=6, max_size=20), st.integers(2, 6), st.integers(1, 5))
def test_folds_keep_units_together_and_none_is_empty(sizes: list[int], count: int, classes: int) -> None:
    unit = np.repeat(np.arange(len(sizes)), sizes)
    parts = folds(unit, count, 0, unit % classes)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(unit)))
    assert min(map(len, parts)) > 0
    for part in parts:
        assert all((unit == one).sum() == (unit[part] == one).sum() for one in np.unique(unit[part]))


def test_the_seed_decides_and_nothing_else() -> None:
    one, same, other = (divide(np.arange(100), SHARES, seed)["test"] for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(DataError, match=r"validation split would be empty: 3 rows, 3 of them .*data\.validation=0\.3"):
        divide(np.arange(3), {"test": 0.3, "validation": 0.01}, 0)
    with pytest.raises(DataError, match="1 of them different"):
        divide(np.zeros(50, np.int64), SHARES, 0)
    with pytest.raises(DataError, match=r"training\.folds = 5 needs at least 5 different rows; there are 2"):
        folds(np.repeat([0, 1], 20), 5, 0)


def test_given_splits_with_the_same_rows_are_refused_by_name() -> None:
    hashes = np.arange(20, dtype=np.uint64)
    hashes[10:16] = hashes[:6]
    splits = {"train": np.arange(10), "test": np.arange(10, 20)}
    names = {"train": "a.csv", "test": "b.csv"}
    with pytest.raises(DataError, match=r"b\.csv \(test\) and a\.csv \(train\) hold the same rows: 6 of 10"):
        check_given(splits, hashes, names)
    hashes[11:16] = np.arange(100, 105)
    assert check_given(splits, hashes, names) == ["1 row of test stands in train too; the result is a little too good."]
    hashes[10] = 999
    assert check_given(splits, hashes, names) == []


@pytest.mark.parametrize("time", [None, np.arange(50)])
def test_shares_that_leave_nothing_to_learn_from_are_refused(time: np.ndarray | None) -> None:
    with pytest.raises(DataError, match=r"data\.test = 0\.6 and data\.validation = 0\.6 leave no rows to learn from"):
        divide(np.arange(50), {"test": 0.6, "validation": 0.6}, 0, time=time)


def test_an_empty_training_split_asks_for_a_smaller_share_of_another() -> None:
    with pytest.raises(DataError, match=r"train split would be empty.* a smaller share as data\.test=0\.4\."):
        divide(np.arange(2), {"test": 0.8, "validation": 0.1}, 0)
