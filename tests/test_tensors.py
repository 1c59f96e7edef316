"""Columns, content hashes, ragged rows and tensor sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.tensors import ROW, Columns, Ragged, TensorSet, as_column, row_hashes, to_list


def test_columns_are_cut_filtered_and_joined_alike() -> None:
    columns = Columns({"a": [1, 2, 3, 4], "b": np.arange(8).reshape(4, 2), "c": ["x", None, "y", "x"]})
    assert columns.rows == 4
    assert to_list(columns.take(np.array([3, 0]))["c"]) == ["x", "x"]
    assert columns.slice(1, 9)["b"].tolist() == [[2, 3], [4, 5], [6, 7]]
    assert to_list(columns.where(np.array([False, True, False, True]))["a"]) == [2, 4]
    assert columns.where(np.ones(4, bool)) is columns
    pieces = list(columns.chunks(3))
    assert [(start, piece.rows) for start, piece in pieces] == [(0, 3), (3, 1)]
    again = Columns.concatenate([piece for _, piece in pieces])
    assert all(to_list(again[name]) == to_list(columns[name]) for name in columns)
    with pytest.raises(ValueError, match="unequal length"):
        Columns({"a": [1], "b": [1, 2]})
    assert Columns({}, rows=3).take(np.array([0, 1])).rows == 2


def test_what_becomes_a_column() -> None:
    assert isinstance(as_column(torch.ones(2, 3)), np.ndarray)
    assert to_list(as_column(torch.tensor([1, 2]))) == [1, 2]
    assert to_list(as_column([Path("a/b.png")])) == [str(Path("a/b.png"))]
    assert to_list(as_column(np.array(["a", None], object))) == ["a", None]


@given(st.lists(st.tuples(st.integers(0, 3) | st.none(), st.sampled_from(["a", "b", None])), min_size=1, max_size=30))
def test_equal_rows_have_equal_hashes_and_others_do_not(rows: list[tuple[int | None, str | None]]) -> None:
    numbers = pa.array([row[0] for row in rows], pa.float64())
    columns = Columns({"n": numbers, "w": pa.array([row[1] for row in rows], pa.string())})
    hashes = row_hashes(columns, ["n", "w"])
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            assert (hashes[i] == hashes[j]) == (one == other)


def test_hashes_see_content_not_form(tmp_path: Path) -> None:
    floats, integers = Columns({"a": [1.0, -0.0, 2.0]}), Columns({"a": [1, 0, 2]})
    assert row_hashes(floats, ["a"]).tolist() == row_hashes(integers, ["a"]).tolist()
    plain = pa.array(["x", "y", "x"])
    coded = Columns({"a": pa.chunked_array([plain.dictionary_encode()])})
    assert row_hashes(Columns({"a": plain}), ["a"]).tolist() == row_hashes(coded, ["a"]).tolist()
    pieces = Columns({"a": pa.chunked_array([["x"], ["y", "x"]])})
    assert row_hashes(pieces, ["a"]).tolist() == row_hashes(coded, ["a"]).tolist()
    two = Columns({"a": [1, 2], "b": [2, 1]})
    assert len(set(row_hashes(two, ["a", "b"]).tolist())) == 2, "the order of columns counts"
    for name in ("one", "copy"):
        (tmp_path / name).write_bytes(b"same")
    (tmp_path / "other").write_bytes(b"different")
    paths = Columns({"p": [str(tmp_path / name) for name in ("one", "copy", "other", "missing")]})
    one, copy, other, missing = row_hashes(paths, ["p"], files=["p"])
    assert one == copy
    assert len({one, other, missing}) == 3


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=8), st.randoms())
def test_ragged_rows_are_gathered_and_padded(rows: list[list[int]], chance: object) -> None:
    values = torch.tensor([value for row in rows for value in row] or [0])
    ragged = Ragged(values, torch.tensor([0, *np.cumsum([len(row) for row in rows])]))
    index = torch.tensor([chance.randrange(len(rows)) for _ in range(4)])
    padded, mask = ragged.gather(index)
    for row, place in enumerate(index.tolist()):
        assert padded[row][mask[row]].tolist() == rows[place]
        assert not padded[row][~mask[row]].any()


def test_subsets_are_views_of_the_same_rows() -> None:
    data = TensorSet({"x": torch.arange(10.0), "y": torch.arange(10) % 2})
    for index in (torch.tensor([2, 3, 4]), torch.tensor([7, 1, 4])):
        part = data.subset(index)
        assert part.batch(torch.arange(3))["x"].tolist() == index.tolist()
        assert part.subset(torch.tensor([2, 0])).batch(torch.arange(2))["x"].tolist() == index[[2, 0]].tolist()
    assert data.subset(torch.tensor([2, 3, 4])).columns["x"].data_ptr() == data.columns["x"][2:].data_ptr()
    assert len(data.subset(torch.tensor([], dtype=torch.int64))) == 0
    batches = list(data.batches(4))
    assert [len(batch["x"]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch[ROW] for batch in batches]).tolist() == list(range(10))
    assert data.nbytes() == 10 * 4 + 10 * 8


def test_a_ragged_set_knows_its_lengths() -> None:
    data = TensorSet({"t": Ragged(torch.arange(6), torch.tensor([0, 1, 4, 6])), "y": torch.arange(3)})
    assert data.lengths().tolist() == [1, 3, 2]
    part = data.subset(torch.tensor([1, 2]))
    assert part.lengths().tolist() == [3, 2]
    batch = part.batch(torch.tensor([1, 0]))
    assert batch["t"].tolist() == [[4, 5, 0], [1, 2, 3]]
    assert batch["t.mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["y"].tolist() == [2, 1]


def test_lists_and_records_have_a_content_too() -> None:
    rows = [["a", "b"], ["a", "b"], ["ab"], [], None, ["b", "a"]]
    kinds = (pa.list_(pa.string()), pa.large_list(pa.string()))
    first, second = (row_hashes(Columns({"a": pa.array(rows, kind)}), ["a"]) for kind in kinds)
    assert first.tolist() == second.tolist()
    assert first[0] == first[1]
    assert len(set(first.tolist())) == 5
    records = row_hashes(Columns({"a": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}]}), ["a"])
    assert records[0] != records[1]
