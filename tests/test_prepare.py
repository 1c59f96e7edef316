"""From a source to tensors: cache, memory mapping, bad rows, limit, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from fathom.core import prepare as preparing
from fathom.core.contract import Columns, Schema
from fathom.core.errors import DataError
from fathom.core.prepare import Prepared, cache_folder, encode, prepare, stretches
from fathom.core.recipe import Data
from fathom.core.registry import fields
from fathom.core.tensors import CHUNK, WEIGHT
from fathom.fields import image
from fathom.sources import open_source

ROWS = 40


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 pictures."""
    generator = np.random.default_rng(0)
    for i in range(ROWS):
        path = tmp_path / "photos" / ["cat", "dog"][i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were opened."""
    opened: list[str] = []
    plain = image.open_picture

    def watched(value: Any, *more: Any) -> Any:
        opened.append(value)
        return plain(value, *more)

    monkeypatch.setattr(image, "open_picture", watched)
    return opened


def read(location: Any, **options: Any) -> Prepared:
    data = Data(**options)
    return prepare(open_source(location if not isinstance(location, Path) else str(location), data), data, seed=0)


def test_a_second_run_decodes_nothing_it_need_not(photos: Path, decoded: list[str]) -> None:
    first = read(photos)
    assert set(decoded) == {str(path) for path in photos.rglob("*.png")}
    looked_at = len(decoded) - ROWS  # at a few training rows, for size and colors
    assert looked_at <= image.PROBED
    decoded.clear()
    second = read(photos)
    assert len(decoded) == looked_at
    name = next(iter(second.schema.inputs))
    mapped = second.store.columns[name]
    assert isinstance(mapped, torch.Tensor)
    assert mapped.dtype == torch.uint8
    assert str(cache_folder() / "encoded") in Path("/proc/self/maps").read_text("utf-8") or not Path("/proc").exists()
    for name in first.store.columns:
        assert torch.equal(first.store.columns[name], second.store.columns[name])
    assert len(list((cache_folder() / "encoded").iterdir())) == 1


def test_the_folds_of_a_run_decode_once(photos: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fold measures another mean, which decides nothing about how pictures are decoded."""
    monkeypatch.setattr(image, "PROBED", 4)
    folds = [read(photos, fold=(k, 5)) for k in range(1, 6)]
    probed = 5 * 5  # 4 to 5 pictures a fold
    assert len(decoded) <= ROWS + probed
    states = [fold.schema.inputs["image"].state for fold in folds]
    assert len({str(state["mean"]) for state in states}) == 5, "each fold is measured on its own training rows"
    assert len({fold.fingerprint for fold in folds}) == 5
    assert len(list((cache_folder() / "encoded").iterdir())) == 1
    decoded.clear()
    read(photos, fields={"image": {"fit_by": "pad", "size": [8, 12]}})
    assert set(decoded) == {str(path) for path in photos.rglob("*.png")}, "another working size is decoded anew"


def test_what_prepare_measures_is_what_fit_measures(photos: Path) -> None:
    prepared = read(photos)
    alone = fields["image"].make(["image"])
    alone.fit([prepared.columns.take(prepared.splits["train"])])
    item = prepared.schema.inputs["image"]
    assert alone.state.keys() == item.state.keys()
    for key in ("mean", "std"):
        assert alone.state[key] == pytest.approx(item.state[key], rel=1e-6)


def test_black_and_white_pictures_are_measured_as_they_are_encoded(photos: Path) -> None:
    prepared = read(photos, fields={"image": {"binarize": "threshold", "channels": 1}})
    alone = fields["image"].make(["image"], binarize="threshold", channels=1)
    alone.fit([prepared.columns.take(prepared.splits["train"])])
    assert alone.state["std"] == pytest.approx(prepared.schema.inputs["image"].state["std"], rel=1e-6)
    assert prepared.store.columns["image"].unique().tolist() == [0, 255]


def test_of_large_pictures_fewer_training_rows_are_measured(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "MOST_MEASURED", 5 * 3 * 9 * 9 + 1)
    prepared = read(photos)
    train = prepared.splits["train"]
    few = prepared.store.columns["image"][train[[i * len(train) // 5 for i in range(5)]]].float()
    assert prepared.schema.inputs["image"].state["mean"] == pytest.approx(few.mean((0, 2, 3)).tolist(), rel=1e-5)


def test_few_training_rows_of_each_class_are_drawn_and_the_other_parts_stay_whole(photos: Path) -> None:
    whole, few = read(photos), read(photos, per_class=3)
    for part in ("validation", "test"):
        assert np.array_equal(few.splits[part], whole.splits[part])
    kept = few.splits["train"]
    assert np.array_equal(kept, np.sort(kept))
    assert set(kept) < set(whole.splits["train"])
    labels = few.columns["label"].take(pa.array(kept)).to_pylist()
    assert sorted(labels) == ["cat"] * 3 + ["dog"] * 3
    assert np.array_equal(read(photos, per_class=3).splits["train"], kept)
    assert few.schema.inputs["image"].state["mean"] != whole.schema.inputs["image"].state["mean"], "fitted on what is kept"
    assert any("6 of " in note and "data.per_class" in note for note in few.notes)
    many = read(photos, per_class=1000)
    assert np.array_equal(many.splits["train"], whole.splits["train"])
    assert any("Some classes have fewer than 1000" in note for note in many.notes)


def test_rows_of_each_class_need_classes() -> None:
    table = {"x": np.arange(40.0), "y": np.arange(40.0) ** 2 / 7}
    with pytest.raises(DataError, match=r"no target has classes: y \(number\)\. Use data\.limit"):
        read(table, target=["y"], per_class=3)


def test_an_animation_is_read_by_its_first_picture_and_told(photos: Path) -> None:
    """Also when the pictures come from the cache."""
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    frames[0].save(photos / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    for _ in range(2):
        prepared = read(photos)
        (note,) = (note for note in prepared.notes if "several pictures" in note)
        assert note.startswith("1 row to look at, ")
        assert note.endswith("moving.gif: it holds several pictures, of which the first is taken.")
        row = prepared.columns["image"].to_pylist().index(str(photos / "cat" / "moving.gif"))
        assert prepared.store.columns["image"][row].float().mean((1, 2)).tolist() == [255.0, 0.0, 0.0]  # type: ignore[index]


def test_a_changed_file_and_a_damaged_cache_are_noticed(photos: Path) -> None:
    first = read(photos)
    victim = photos / "cat" / "0.png"
    Image.new("RGB", (9, 9), "red").save(victim)
    second = read(photos)
    assert second.fingerprint != first.fingerprint
    name = next(iter(second.schema.inputs))
    row = second.columns[second.schema.inputs[name].columns[0]].to_pylist().index(str(victim))
    assert second.store.columns[name][row].float().mean((1, 2)).tolist() == [255.0, 0.0, 0.0]
    for hurt in (lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:]):
        for file in (cache_folder() / "encoded").rglob("values.bin"):
            file.write_bytes(hurt(file.read_bytes()))
        third = read(photos)
        assert torch.equal(third.store.columns[name], second.store.columns[name])


def test_a_damaged_cache_is_replaced(photos: Path, decoded: list[str]) -> None:
    read(photos)
    ((folder),) = (cache_folder() / "encoded").iterdir()
    (folder / "values.bin").write_bytes(b"")
    for _ in range(2):
        decoded.clear()
        read(photos)
        assert [path.name for path in (cache_folder() / "encoded").iterdir()] == [folder.name]
    assert len(set(decoded)) < ROWS, "the second time it is whole again"


def test_a_cache_that_cannot_be_written_costs_time_only(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "file"))
    assert len(read(photos).store) == ROWS


def numbers(rows: int) -> tuple[Schema, Columns]:
    values = np.random.default_rng(0).normal(size=(rows, 2))
    columns = Columns({"a": values[:, 0], "b": values[:, 1], "y": np.arange(rows) % 3})
    schema = Schema({"x": fields["number"].make(["a", "b"])}, {"y": fields["category"].make(["y"])})
    preparing.fit(schema, columns, np.arange(rows))
    return schema, columns


def test_beyond_the_budget_tensors_are_mapped_and_equal() -> None:
    schema, columns = numbers(CHUNK + 10)
    inside, _ = encode(schema, columns, memory=4.0)
    outside, _ = encode(schema, columns, memory=1e-9)
    for name in inside.columns:
        assert torch.equal(inside.columns[name], outside.columns[name])
    assert (cache_folder() / "mapped").is_dir()
    assert list((cache_folder() / "mapped").iterdir()) == [], (
        "the file lives as long as its tensor, and no name is left"
    )


def test_chunks_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    schema, columns = numbers(700)
    whole, _ = encode(schema, columns)
    monkeypatch.setattr(preparing, "_chunk_rows", lambda schema: 256)
    pieces, _ = encode(schema, columns)
    for name in whole.columns:
        assert torch.equal(whole.columns[name], pieces.columns[name])


def test_bad_rows_are_left_out_and_named(photos: Path) -> None:
    (photos / "cat" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(
        DataError, match=r"1 of 40 rows cannot be used: .*2\.png: it is not a picture.*data\.bad_rows=0\.0[34]"
    ):
        read(photos)
    prepared = read(photos, bad_rows=0.1)
    assert any("1 row is left out" in note and "2.png" in note for note in prepared.notes)
    left = np.concatenate(list(prepared.splits.values()))
    assert len(left) == ROWS - 1
    name = next(iter(prepared.schema.inputs.values())).columns[0]
    assert not any("/2.png" in prepared.columns[name][int(row)].as_py() for row in left)


def test_limit_draws_rows_by_the_seed(photos: Path) -> None:
    prepared = read(photos, limit=20)
    assert len(prepared.store) == 20
    assert sum(map(len, prepared.splits.values())) == 20
    assert any("Only 20 rows are used" in note for note in prepared.notes)
    assert read(photos, limit=20).fingerprint == prepared.fingerprint
    numbers = [prepared.number(row) for row in range(20)]
    assert numbers != list(range(1, 21)), "the limit has drawn"
    every = read(photos)
    assert [every.number(row) for row in (0, 5)] == [1, 6]
    name = next(iter(prepared.schema.inputs.values())).columns[0]
    assert all(every.columns[name][number - 1] == prepared.columns[name][row] for row, number in enumerate(numbers))
    assert len(read(photos, limit=4000).store) == ROWS


def frame(**more: list[Any]) -> pa.Table:
    return pa.table({"a": [float(i) for i in range(ROWS)], "y": ["no", "yes"] * (ROWS // 2), **more})


def test_weights_reach_the_batch_and_bad_ones_are_refused() -> None:
    weights = [1.0 + i % 2 for i in range(ROWS)]
    prepared = read(frame(w=weights), target=["y"], weight="w")
    assert list(next(iter(prepared.schema.inputs.values())).columns) == ["a"], "a weight is no input"
    assert prepared.sets["train"].batch(torch.tensor([0]))[WEIGHT].tolist() == [weights[prepared.splits["train"][0]]]
    assert read(frame(w=[5.0, *weights[1:]]), target=["y"], weight="w").fingerprint != prepared.fingerprint
    for bad in (-1.0, None, float("inf")):
        with pytest.raises(DataError, match=r"'w' has a missing, negative or infinite weight in row 4"):
            read(frame(w=[*weights[:3], bad, *weights[4:]]), target=["y"], weight="w")


def test_groups_stay_on_one_side_and_give_the_blocks_of_intervals() -> None:
    prepared = read(frame(who=[f"p{i // 4}" for i in range(ROWS)]), target=["y"], group="who")
    owner = {int(row): part for part, index in prepared.splits.items() for row in index}
    assert all(len({owner[row] for row in range(start, start + 4)}) == 1 for start in range(0, ROWS, 4))
    assert prepared.blocks is not None
    assert len(set(prepared.blocks.tolist())) == 10


def test_rows_without_a_group_are_told() -> None:
    for kind, missing in ((str, None), (float, None), (float, float("nan"))):
        who = [*[missing] * 10, *[kind(i // 3) for i in range(30)]]
        notes = read(frame(who=who), target=["y"], group="who").notes
        assert any("10 rows have no 'who' (data.group) and are taken as one group" in note for note in notes)
    notes = read(frame(who=[f"p{i // 4}" for i in range(ROWS)]), target=["y"], group="who").notes
    assert not any("data.group" in note for note in notes)


def test_rows_of_a_stretch_of_time_are_the_blocks_of_intervals() -> None:
    shuffled = np.random.default_rng(0).permutation(ROWS).tolist()
    prepared = read(frame(when=shuffled), target=["y"], time="when")
    assert prepared.blocks is not None
    test = prepared.splits["test"]
    assert len(test) == 8
    in_order = prepared.blocks[test][np.argsort(np.array(shuffled)[test])]
    assert in_order.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # the cube root of 8 rows is 2


def test_stretches_never_part_a_moment() -> None:
    assert len(set(stretches(np.arange(1000)).tolist())) == 100  # the cube root of 1000 is 10
    moments = np.array([5, 5, 5, 1, 2, 9, 9, 9])  # 2 rows a stretch; 1 2 | 5 5 5 | 9 9 9
    assert stretches(moments).tolist() == [1, 1, 1, 0, 0, 2, 2, 2]
    assert stretches(np.array([3])).tolist() == [0]


def test_classes_that_the_test_cannot_judge_are_told() -> None:
    table = frame().set_column(1, "y", [["no", "yes"] * 19 + ["perhaps", "no"]])
    assert any("Too few rows of perhaps to judge" in note for note in read(table, target=["y"]).notes)
