"""Fields: what is fitted, encoded, decoded, and that the same comes back from JSON."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from fathom.core.contract import Columns, Field, Schema
from fathom.core.errors import DataError, RowFaults
from fathom.core.prepare import encode, prepare
from fathom.core.recipe import Data
from fathom.core.registry import fields
from fathom.fields.boxes import boxes_type
from fathom.fields.image import UnreadableError, open_picture
from fathom.sources import open_source


def fitted(kind: str, columns: Columns, **options: Any) -> Field:
    item: Field = fields[kind].make(list(columns), **options)
    item.fit([columns])
    return item


# ---- the contract: every registered kind -------------------------------------------------------------------


def example(kind: str) -> Columns:
    generator = np.random.default_rng(0)
    kind = kind.removesuffix("_copy").removesuffix("_sample")  # of what is to be reconstructed, or made
    if kind == "image":
        return Columns({"image": generator.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)})
    if kind == "number":
        return Columns({"a": pa.array([1.5, None, 3.0, -2.0]), "b": pa.array([1, 2, 3, 4])})
    if kind == "category":
        return Columns({"word": ["b", "a", None, "b"]})
    if kind == "text":
        return Columns({"text": ["the cat", "a cat and a dog", None, "dog"]})
    if kind == "series":
        rows = [[[1.0, 2.0], [3.0, None]], [[0.5, 1.0]], [[2.0, 2.0], [1.0, 4.0], [7.0, 0.0]]]
        return Columns({"series": pa.array(rows, pa.list_(pa.list_(pa.float64())))})
    if kind == "observation":
        return Columns({"x1": generator.normal(size=6), "x2": generator.normal(size=6)})
    if kind == "action":
        return Columns({"action": [0, 2, 1, 1]})
    if kind == "boxes":
        box = {"label": "cat", "x1": 1.0, "y1": 2.0, "x2": 8.0, "y2": 9.0}
        scenes = [{"width": 16, "height": 9, "fault": None, "objects": boxes} for boxes in ([box, box], [], [box])]
        return Columns({"boxes": pa.array(scenes, boxes_type())})
    if kind == "forecast":
        return Columns({"a": generator.normal(size=6), "b": generator.normal(size=6)})
    return Columns({"tags": [["x", "y"], [], ["y"], ["z"]]})


def gathered(item: Field, columns: Columns) -> torch.Tensor:
    """The rows as a batch holds them: filled up, or cut out of a series."""
    rows, faults = encode(Schema({"x": item}), columns)
    assert not faults
    if item.window is None:
        return rows.column("x")
    return rows.batch(torch.arange(len(rows) - sum(item.window) + 1))["x"]


@pytest.mark.parametrize("kind", fields.names())
def test_a_field_comes_back_from_json_and_encodes_alike(kind: str) -> None:
    columns = example(kind)
    item = fitted(kind, columns)
    again = Field.from_json(json.loads(json.dumps(item.to_json())))
    assert again.to_json() == item.to_json()
    encoded = gathered(item, columns)
    torch.testing.assert_close(encoded, gathered(again, columns), rtol=0, atol=0, equal_nan=True)
    torch.manual_seed(0)
    layer = item.layer()
    torch.manual_seed(0)
    assert torch.equal(layer(encoded), again.layer()(encoded))
    shape = tuple(layer(encoded).shape[1:])
    if kind == "text":  # a batch is as long as its longest row, within what the field allows
        assert shape[0] <= item.shape[0] == again.shape[0]
    elif kind == "boxes":  # of as many boxes as the fullest row
        assert shape[1:] == item.shape == again.shape
    else:
        assert shape == item.shape == again.shape
    assert layer(encoded).dtype == (torch.int32 if kind == "text" else torch.float32)
    assert bool(torch.isfinite(layer(encoded)).all())
    assert item.describe() == again.describe()
    schema = Schema({kind: item}, {}, {"group": "g"})
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))).to_json() == schema.to_json()


@pytest.mark.parametrize("kind", fields.names())
def test_an_unknown_option_is_refused(kind: str) -> None:
    with pytest.raises(TypeError, match="no option 'colour'"):
        fields[kind].make(["a"], colour=1)


# ---- numbers -----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=40), st.integers(1, 7))
def test_mean_and_spread_merged_over_chunks_are_those_of_numpy(values: list[float | None], size: int) -> None:
    columns = Columns({"a": pa.array(values, pa.float64())})
    item = fields["number"].make(["a"])
    item.fit(chunk for _, chunk in columns.chunks(size))
    known = np.array([value for value in values if value is not None])
    assert item.state["gaps"] == [len(known) < len(values)]
    if len(known):
        assert item.state["mean"][0] == pytest.approx(known.mean(), rel=1e-9, abs=1e-6)
        if known.std() > 1e-6:
            assert item.state["std"][0] == pytest.approx(known.std(), rel=1e-6)
    standardized = item.layer()(item.encode(columns))
    assert bool(torch.isfinite(standardized).all())


def test_numbers_are_standardized_and_gaps_flagged() -> None:
    columns = Columns({"a": pa.array([1.0, None, 3.0]), "b": [4, 5, 6]})
    item = fitted("number", columns)
    encoded = item.encode(columns)
    assert encoded[0].tolist() == [-1.0, -1.0], "minus the mean"
    assert encoded[1].isnan().tolist() == [True, False]
    spread = np.sqrt(2 / 3)
    expected = [[-1, -1 / spread, 0], [0, 0, 1], [1, 1 / spread, 0]]
    torch.testing.assert_close(item.layer()(encoded), torch.tensor(expected, dtype=torch.float32))
    far = item.encode(Columns({"a": [1e6], "b": [5]}))
    assert item.layer()(far)[0, 0] == 10.0, "outliers are cut"


def test_number_targets_go_to_standardized_units_and_back() -> None:
    columns = Columns({"a": [1.0, 2.0, 6.0], "b": [0.0, 0.0, 0.0]})
    item = fitted("number", columns)
    values = item.encode(columns, target=True)
    scaled = item.scale(values)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(2))
    torch.testing.assert_close(scaled[:, 0].std(correction=0), torch.tensor(1.0))
    assert [answer["answer"] for answer in item.decode(scaled)] == [pytest.approx([a, 0.0]) for a in (1, 2, 6)]
    one = fitted("number", Columns({"a": [1.0, 3.0]}))
    assert one.decode(torch.tensor([[1.0]])) == [{"answer": 3.0}]


def test_numbers_that_cannot_be_used_are_faults_of_their_rows() -> None:
    item = fitted("number", Columns({"a": [1.0, 2.0]}))
    with pytest.raises(RowFaults) as caught:
        item.encode(Columns({"a": ["1", "two", "", "1e300", "inf"]}))
    assert caught.value.reasons == {
        1: "'a' is 'two', which is not a number", 3: "'a' is infinite or too large", 4: "'a' is infinite or too large",
    }  # fmt: skip
    assert caught.value.partial[0].item() == -0.5
    with pytest.raises(RowFaults) as caught:
        item.encode(Columns({"a": pa.array([1.0, None])}), target=True)
    assert caught.value.reasons == {1: "'a' is missing"}
    assert item.encode(Columns({"a": [True, False]})).tolist() == [[-0.5], [-1.5]]


def test_large_numbers_that_differ_little_stay_apart() -> None:
    times = 1.7e9 + np.arange(200)
    item = fitted("number", Columns({"t": times}))
    encoded = item.encode(Columns({"t": times}))
    assert len(item.layer()(encoded).unique()) == 200
    standardized = (times - times.mean()) / times.std()
    np.testing.assert_allclose(item.layer()(encoded)[:, 0], standardized, rtol=1e-6)
    assert [answer["answer"] for answer in item.decode(item.scale(encoded))] == pytest.approx(times, abs=1e-4)
    errors = item.metrics(item.scale(encoded + 0.5), encoded)
    assert float(errors["mae"]) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("values", [[0.0, 3e-13, 6e-13], [1e-25, 3e-25], [-1e30, 1e30]])
def test_a_spread_of_any_size_is_standardized(values: list[float]) -> None:
    item = fitted("number", Columns({"a": values}))
    out = item.layer()(item.encode(Columns({"a": values})))
    assert float(out.std(correction=0)) == pytest.approx(1, rel=1e-5)
    still = fitted("number", Columns({"a": [0.1] * 7}))
    assert still.state["std"] == [1.0]


@given(st.lists(st.integers(-10**6, 10**6).map(lambda v: v / 100), min_size=2, max_size=30))
def test_original_units_come_back_without_the_noise_of_float32(values: list[float]) -> None:
    item = fitted("number", Columns({"a": pa.array(values, pa.float64())}))
    back = item.original(item.encode(Columns({"a": pa.array(values, pa.float64())})))[:, 0].tolist()
    assert back == pytest.approx(values, rel=1e-6, abs=1e-6 * item.state["std"][0])
    assert fitted("number", Columns({"a": [61.0, 44.5, 3.0]})).original(torch.tensor([[24.833334]])).item() == 61.0


@pytest.mark.parametrize("kind", ["number", "category"])
def test_an_array_a_row_is_no_single_value(kind: str) -> None:
    item = fitted(kind, Columns({"a": [1.0, 2.0]}))
    with pytest.raises(DataError, match=r"'a' has an array in each row \(3,\)"):
        item.encode(Columns({"a": np.zeros((4, 3))}))


def test_a_field_that_is_no_target_says_so() -> None:
    item = fitted("image", example("image"))
    for ask in (lambda: item.outputs, lambda: item.decode(torch.zeros(1)), lambda: item.metrics(*torch.zeros(2, 1))):
        with pytest.raises(DataError, match="'image' is of kind image, which cannot be a target here"):
            ask()


# ---- categories --------------------------------------------------------------------------------------------


def test_categories_number_their_words_in_natural_order() -> None:
    assert fitted("category", Columns({"c": ["10", "9", "b", "a", "2.5"]})).classes == ["2.5", "9", "10", "a", "b"]
    assert fitted("category", Columns({"c": [True, False]})).classes == ["False", "True"]


@given(st.permutations(["nan", "3", "inf", "1", "b", "2", "-inf", "", "a"]))
def test_the_order_of_classes_does_not_depend_on_the_rows(words: list[str]) -> None:
    assert fitted("category", Columns({"c": words})).classes == ["1", "2", "3", "", "-inf", "a", "b", "inf", "nan"]


def test_three_and_three_point_zero_are_one_class() -> None:
    item = fitted("category", Columns({"c": [3.0, 1.0]}))
    assert item.classes == ["1", "3"]
    for form in ([3, 1], [3.0, 1.0], ["3", "1"]):
        assert item.encode(Columns({"c": form}), target=True).tolist() == [1, 0]
    coded = pa.chunked_array([pa.array(["3", "1", "3"]).dictionary_encode()])
    assert item.encode(Columns({"c": coded}), target=True).tolist() == [1, 0, 1]


def test_unseen_and_missing_words_have_a_defined_place_as_inputs_and_are_faults_as_targets() -> None:
    item = fitted("category", Columns({"c": ["cat", "dog", ""]}))
    new = Columns({"c": ["dog", "dgo", None, ""]})
    assert item.encode(new).squeeze(1).tolist() == [3, 0, 0, 1]
    with pytest.raises(RowFaults) as caught:
        item.encode(new, target=True)
    assert caught.value.reasons == {
        1: "'c' is 'dgo', a class that no training row has (nearest: dog)", 2: "'c' is missing",
    }  # fmt: skip


def test_integer_string_and_one_hot_labels_mean_the_same() -> None:
    labels = [2, 0, 1, 2]
    forms = [labels * 9, [str(label) for label in labels * 9], np.eye(3, dtype=np.float32)[labels * 9]]
    for form in forms:
        source = open_source((np.arange(36.0)[:, None], form), Data())
        columns, item = source.columns(), source.schema().targets["y"]
        item.fit([columns.select(item.columns)])
        assert item.encode(columns, target=True).tolist() == labels * 9
    soft = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    item = fitted("category", Columns({"c": soft}))
    assert torch.equal(item.encode(Columns({"c": soft}), target=True), torch.from_numpy(soft))
    one_hot = np.eye(2, dtype=np.float32)
    assert torch.equal(item.encode(Columns({"c": one_hot}), target=True), torch.eye(2)), "a chunk decides nothing"
    with pytest.raises(RowFaults) as caught:
        item.encode(Columns({"c": np.array([[0.2, 0.8], [1.0, 1.0], [np.nan, 1.0]])}), target=True)
    assert sorted(caught.value.reasons) == [1, 2]
    assert "'c' holds no shares of classes" in caught.value.reasons[1]


def test_soft_rows_after_many_that_look_one_hot() -> None:
    shares = np.eye(3, dtype=np.float32)[np.arange(66_000) % 3]
    shares[-300:] = [0.2, 0.3, 0.5]
    data = Data()
    y = prepare(open_source((np.arange(66_000.0)[:, None], shares), data), data, 0).store.columns["y"]
    assert y.shape == (66_000, 3)
    assert torch.equal(y, torch.from_numpy(shares))


def test_one_hot_and_embedded_columns_stand_side_by_side() -> None:
    columns = Columns({"few": ["a", "b", "a"], "many": ["x", "y", "z"]})
    item = fitted("category", columns, one_hot=3)
    layer = item.layer()
    out = layer(item.encode(columns))
    assert out[:, :3].tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert tuple(out.shape) == (3, item.shape[0])
    assert [tuple(p.shape) for p in layer.parameters()] == [(4, item.shape[0] - 3)]


def test_answers_of_categories() -> None:
    item = fitted("category", Columns({"c": ["a", "b"]}))
    (answer,) = item.decode(torch.tensor([[0.0, np.log(3.0)]]))
    assert answer == {"answer": "b", "confidence": 0.75, "probabilities": {"a": 0.25, "b": 0.75}}
    lone = fitted("category", Columns({"c": ["a", "a"]}))
    with pytest.raises(DataError, match=r"'c' has one class only in the training rows"):
        lone.encode(Columns({"c": ["a"]}), target=True)


# ---- labels ------------------------------------------------------------------------------------------------


def test_labels_from_columns_and_from_lists_are_the_same() -> None:
    flags = Columns({"x": [1, 0, 1], "y": ["no", "yes", "true"]})
    lists = Columns({"tags": [["x"], ["y"], ["y", "x"]]})
    for columns in (flags, lists):
        item = fitted("labels", columns)
        assert item.state["classes"] == ["x", "y"]
        assert item.encode(columns, target=True).tolist() == [[1, 0], [0, 1], [1, 1]]
    answer = fitted("labels", lists).decode(torch.tensor([[5.0, -5.0]]))[0]
    assert answer["answer"] == ["x"]
    with pytest.raises(RowFaults) as caught:
        fitted("labels", flags).encode(Columns({"x": [1], "y": ["perhaps"]}), target=True)
    assert caught.value.reasons == {0: "'y' is 'perhaps', neither yes nor no"}
    with pytest.raises(RowFaults) as caught:
        fitted("labels", lists).encode(Columns({"tags": [["z"]]}), target=True)
    assert "'z', a label that no training row has" in caught.value.reasons[0]
    with pytest.raises(RowFaults) as caught:
        fitted("labels", lists).encode(Columns({"tags": [["x"], None, []]}), target=True)
    assert list(caught.value.reasons) == [1], "no label at all is an answer; a missing one is not"
    assert "'tags' is missing" in caught.value.reasons[1]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2)])
def test_labels_of_every_kind_of_list(kind: pa.DataType) -> None:
    columns = Columns({"tags": pa.chunked_array([pa.array([["x", "y"], ["z", "y"]], kind)])})
    item = fitted("labels", columns)
    assert item.encode(columns, target=True).tolist() == [[1, 1, 0], [0, 1, 1]]


LISTS = [[["a"], ["a", "b"], [], ["b", "c"]][i % 4] for i in range(48)]


def test_lists_of_words_are_learnt_from_a_table_and_from_parts() -> None:
    table = pa.table({"x": np.arange(48.0), "tags": LISTS})
    parts = {name: (np.arange(n * 1.0)[:, None] + n, LISTS[:n]) for name, n in (("train", 48), ("test", 13))}
    for given_data, target in ((table, "tags"), (parts, "y")):
        data = Data.model_validate({"target": [target]})
        prepared = prepare(open_source(given_data, data), data, 0)
        assert prepared.schema.targets[target].state["classes"] == ["a", "b", "c"]
        rows = prepared.store.columns[target]
        assert rows[:4].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]]
    again = Data.model_validate({"target": ["tags"]})
    changed = table.set_column(1, "tags", pa.array([*LISTS[:-1], ["a"]]))
    prints = [prepare(open_source(t, again), again, 0).fingerprint for t in (table, table, changed)]
    assert prints[0] == prints[1] != prints[2]


def test_lists_of_words_are_trained_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fathom

    monkeypatch.chdir(tmp_path)
    run = fathom.fit((np.random.default_rng(0).random((48, 2)), LISTS), epochs=1, device="cpu")
    (answer,) = run.predict(np.array([[0.5, 0.5]]))
    assert set(answer["probabilities"]) == {"a", "b", "c"}


def test_a_missing_list_of_words_is_a_fault() -> None:
    data = Data.model_validate({"target": ["y"], "bad_rows": 0.1})
    prepared = prepare(open_source((np.arange(48.0)[:, None], [*LISTS[:-1], None]), data), data, 0)
    assert sum(len(index) for index in prepared.splits.values()) == 47
    assert any("'y' is missing" in note for note in prepared.notes)


# ---- pictures ----------------------------------------------------------------------------------------------

RGB = np.random.default_rng(1).integers(0, 256, (3, 10, 12, 3), dtype=np.uint8)
ARRAYS = {
    "NHW": RGB[..., 0], "NHW1": RGB[..., :1], "N1HW": RGB[..., :1].transpose(0, 3, 1, 2),
    "NHWC": RGB, "NCHW": RGB.transpose(0, 3, 1, 2), "RGBA": np.concatenate([RGB, RGB[..., :1]], 3),
}  # fmt: skip


@pytest.mark.parametrize("layout", ARRAYS)
def test_arrays_in_every_layout(layout: str) -> None:
    columns = Columns({"image": ARRAYS[layout]})
    item = fitted("image", columns)
    gray = layout in ("NHW", "NHW1", "N1HW")
    expected = RGB.transpose(0, 3, 1, 2)[:, :1] if gray else RGB.transpose(0, 3, 1, 2)
    assert item.shape == expected.shape[1:]
    assert torch.equal(item.encode(columns), torch.from_numpy(expected.copy()))
    standardized = item.layer()(item.encode(columns))
    torch.testing.assert_close(standardized.mean((0, 2, 3)), torch.zeros(len(expected[0])), atol=1e-4, rtol=0)
    strides = standardized.stride()
    assert strides[1] == 1, "channels are innermost in memory"


def test_numbers_of_arrays_are_read_as_in_training() -> None:
    """What a 1 means is learnt from the training rows; a later picture alone cannot say."""
    dark = np.zeros((2, 10, 12, 3), np.uint8)
    dark[1, :5] = 1
    shares = (RGB / 255).astype(np.float32)
    for form, white in ((RGB, 1), (RGB.astype(np.float32), 1), (RGB.astype(np.int64), 1), (shares, 255)):
        item = fitted("image", Columns({"image": form}))
        assert torch.equal(item.encode(Columns({"image": form})), torch.from_numpy(RGB.transpose(0, 3, 1, 2).copy()))
        for kind in (np.uint8, np.int64, np.float32, np.float64, bool):
            assert item.encode(Columns({"image": dark.astype(kind)})).amax((1, 2, 3)).tolist() == [0, white]
    binary = fitted("image", Columns({"image": dark.astype(np.int64)}))
    for kind in (np.uint8, np.int64, np.float32, bool):
        assert binary.encode(Columns({"image": dark.astype(kind)})).max() == 255
    signed = fitted("image", Columns({"image": RGB.astype(np.float32) - 100}))
    assert "kept as they are" in signed.describe()
    assert torch.equal(signed.encode(Columns({"image": dark})), torch.from_numpy(dark.transpose(0, 3, 1, 2)).float())
    with pytest.raises(DataError, match="nothing says which number a byte"):
        signed.encode(Columns({"image": [b"picture"]}))


def test_numbers_that_do_not_fit_those_of_training_are_faults() -> None:
    mixed = np.stack([RGB[0] / 255, RGB[0], RGB[0] / 255 - 1, RGB[0] * np.nan])
    for form, good, told in (
        (RGB, 1, {0: "whole, from 0 to 255; multiply by 255", 2: "whole, from 0 to 255", 3: "not a number"}),
        (RGB / 255, 0, {1: "shares from 0 to 1; divide by 255", 2: "shares from 0 to 1", 3: "not a number"}),
    ):
        item = fitted("image", Columns({"image": form}))
        with pytest.raises(RowFaults) as caught:
            item.encode(Columns({"image": mixed}))
        assert sorted(caught.value.reasons) == sorted(told)
        for row, words in told.items():
            assert words in caught.value.reasons[row]
        assert np.array_equal(caught.value.partial[good].numpy(), RGB[0].transpose(2, 0, 1))


def test_a_served_array_is_read_by_the_factor_of_training() -> None:
    from fathom.sources import read_inputs

    images = np.random.default_rng(2).integers(0, 256, (24, 10, 12)) / 255
    data = Data()
    schema = prepare(open_source((images, np.arange(24) % 2), data), data, 0).schema
    columns, _ = read_inputs([images[:2] * 255 // 200], schema)
    assert schema.inputs["image"].encode(columns).max() == 255
    kept = np.concatenate([images[:20] - 0.5, images[:4]])
    schema = prepare(open_source((kept, np.arange(24) % 2), data), data, 0).schema
    columns, _ = read_inputs([np.eye(10, 12)], schema)
    assert schema.inputs["image"].encode(columns).max() == 1.0


def test_a_source_hands_shares_over_as_bytes() -> None:
    images = np.tile(RGB, (4, 1, 1, 1))
    labels = np.arange(12) % 2
    for form in (images, (images / 255).astype(np.float32), images.astype(np.float64)):
        source = open_source((form, labels), Data())
        columns, schema = source.columns(), source.schema()
        (item,) = schema.inputs.values()
        item.fit([columns.select(item.columns)])
        assert torch.equal(item.encode(columns), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


def encoded(
    picture: Pillow.Image, form: str = "PNG", shape: tuple[int, int, int] = (3, 4, 4), **save: Any
) -> np.ndarray:
    data = io.BytesIO()
    picture.save(data, form, **save)
    item: Field = fields["image"].make(["image"])
    item.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "factor": 1}
    rows: torch.Tensor = item.encode(Columns({"image": [data.getvalue()]}))
    return rows[0].numpy()


def test_every_mode_of_a_picture_becomes_plain_bytes() -> None:
    red = np.array([255, 0, 0], np.uint8)[:, None, None]
    cmyk = Pillow.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert np.abs(encoded(cmyk, "JPEG", quality=100).astype(int) - red).max() < 12
    deep = Pillow.fromarray(np.full((4, 4), 65535 // 2, np.uint16))
    assert set(encoded(deep, shape=(1, 4, 4)).ravel()) == {127}
    dark = Pillow.fromarray(np.full((4, 4), 200, np.uint16))
    assert set(encoded(dark, shape=(1, 4, 4)).ravel()) == {1}, "16 bits are 16 bits, however dark the picture"
    palette = Pillow.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert (encoded(palette) == red).all()
    assert (encoded(palette, transparency=1) == 255).all(), "what is transparent lies on white"
    assert (encoded(Pillow.new("RGBA", (4, 4), (0, 0, 0, 0))) == 255).all()
    assert (encoded(Pillow.new("LA", (4, 4), (0, 255)), shape=(1, 4, 4)) == 0).all()
    assert (encoded(Pillow.new("1", (4, 4), 1), shape=(1, 4, 4)) == 255).all()


def png(depth: int, color: int, row: bytes, key: bytes) -> bytes:
    """A PNG of one row of pixels, with the chunk tRNS; `color` 0 is gray and 2 red, green, blue."""
    pixels = 8 * len(row) // (depth * (3 if color == 2 else 1))
    header = struct.pack(">IIBBBBB", pixels, 1, depth, color, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": key, b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("file", "seen"),
    [
        (png(1, 0, bytes([0b01010101]), struct.pack(">H", 0)), [255] * 8),
        (png(1, 0, bytes([0b01010101]), struct.pack(">H", 1)), [0, 255] * 4),
        (png(2, 0, bytes([0b00011011]), struct.pack(">H", 1)), [0, 255, 170, 255]),
        (png(4, 0, bytes([0x5A]), struct.pack(">H", 5)), [255, 170]),
        (png(8, 0, bytes([7, 90]), struct.pack(">H", 7)), [255, 90]),
        (png(16, 0, struct.pack(">HH", 1000, 1001), struct.pack(">H", 1000)), [255, 4]),
        (png(8, 2, bytes([255, 0, 0, 1, 2, 3]), struct.pack(">HHH", 255, 0, 0)), [[255, 255, 255], [1, 2, 3]]),
        (png(16, 2, struct.pack(">6H", 300, 500, 700, 2560, 0, 0), struct.pack(">HHH", 300, 500, 700)),
         [[255, 255, 255], [10, 0, 0]]),
    ],
)  # fmt: skip
def test_a_transparent_value_lies_on_white(file: bytes, seen: list[Any]) -> None:
    """PNG has no alpha channel then, but one gray value or color that is transparent (W3C PNG, tRNS), of its own bits."""
    wanted = np.array(seen).reshape(len(seen), -1)
    assert (np.asarray(open_picture(file)).reshape(len(seen), -1) == wanted).all()


@pytest.mark.parametrize(("kind", "told"), [(np.float32, "floating-point"), (np.int32, "32-bit whole")])
def test_a_picture_of_unknown_range_is_a_fault(kind: type, told: str) -> None:
    with pytest.raises(RowFaults) as caught:
        encoded(Pillow.fromarray(np.full((4, 4), 1, kind)), "TIFF")
    assert f"{told} numbers, whose range is not known" in caught.value.reasons[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    """EXIF 2.32, tag 274: where row 0 and column 0 of the file lie in the picture that is seen."""
    seen = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.T, 6: np.rot90(seen, 1),
        7: seen[::-1, ::-1].T, 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Pillow.Exif()
    exif[274] = orientation
    picture = Pillow.fromarray(np.ascontiguousarray(stored))
    assert np.array_equal(encoded(picture, shape=(1, 4, 4), exif=exif)[0], seen)


def test_what_cannot_be_read_is_a_fault_of_its_row(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Pillow.fromarray(RGB[0]).save(good)
    names = {"cut.png": good.read_bytes()[:60], "text.png": b"hello", "empty.png": b""}
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(good), *(str(tmp_path / name) for name in names), str(tmp_path / "none.png"), None]
    item = fitted("image", Columns({"image": [str(good)]}))
    with pytest.raises(RowFaults) as caught:
        item.encode(Columns({"image": paths}))
    reasons = caught.value.reasons
    assert sorted(reasons) == [1, 2, 3, 4, 5]
    for row, word in enumerate(["damaged", "not a picture in JPEG", "is empty", "is missing", "no picture"], 1):
        assert word in reasons[row]
    assert np.array_equal(caught.value.partial[0].numpy(), RGB[0].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (3, "a path or an encoded picture is expected, but 3 came"),
        ({"bytes": None, "path": None}, "neither a picture nor a path"),
        ({}, "neither a picture nor a path"),
        (2.5, "but 2.5 came"),
    ],
)
def test_what_is_no_picture_at_all_is_refused(value: Any, told: str) -> None:
    with pytest.raises(UnreadableError, match=told):
        open_picture(value)


def test_damaged_bytes_are_faults_whatever_their_decoder_raises() -> None:
    """Bits turned anywhere in a picture with EXIF or TIFF tags: an answer or a fault, never a traceback."""
    exif = Pillow.Exif()
    exif[274], exif[271] = 6, "maker"
    draw = np.random.default_rng(0)
    for form in ("JPEG", "TIFF", "PNG", "WEBP"):
        data = io.BytesIO()
        Pillow.fromarray(RGB[0]).save(data, form, exif=exif)
        for _ in range(150):
            damaged = np.frombuffer(data.getvalue(), np.uint8).copy()
            damaged[draw.integers(0, min(len(damaged), 400), 4)] = draw.integers(0, 256, 4)
            with warnings.catch_warnings(), contextlib.suppress(UnreadableError):
                warnings.simplefilter("ignore")
                assert open_picture(damaged.tobytes()).mode in ("L", "RGB")


def test_an_exif_block_that_struct_cannot_read_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageOps

    for error in (struct.error("unpack requires 2 bytes"), TypeError("tag"), KeyError(0), IndexError(), AttributeError()):
        def fail(_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ImageOps, "exif_transpose", fail)
        with pytest.raises(UnreadableError, match="it is damaged"):
            open_picture(Pillow.fromarray(RGB[0]))


def test_working_size_and_color_are_seen_from_the_files(tmp_path: Path) -> None:
    gray = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in gray:
        Pillow.fromarray(np.repeat(RGB[0, :, :, :1], 3, 2)).save(path)
    assert fitted("image", Columns({"image": gray})).shape == (1, 10, 12), "gray in three channels is gray"
    Pillow.fromarray(RGB[0]).resize((200, 100)).save(gray[0])
    assert fitted("image", Columns({"image": gray})).shape == (3, 10, 10)
    assert fitted("image", Columns({"image": gray}), size=16, channels=1).shape == (1, 16, 16)


def test_color_is_seen_in_pictures_that_come_late(tmp_path: Path) -> None:
    """Folders are sorted by class: the first hundreds of pictures may all be of a gray one, and so a whole chunk."""
    Pillow.fromarray(RGB[0, :, :, 0]).save(tmp_path / "gray.png")
    Pillow.fromarray(RGB[0]).save(tmp_path / "color.png")
    sorted_paths = [str(tmp_path / "gray.png")] * 300 + [str(tmp_path / "color.png")] * 100
    assert fitted("image", Columns({"image": sorted_paths})).shape[0] == 3
    item: Field = fields["image"].make(["image"])
    item.fit(chunk for _, chunk in Columns({"image": sorted_paths}).chunks(200))
    assert item.shape[0] == 3


@pytest.mark.parametrize("way", ["stretch", "crop", "pad"])
def test_another_shape_becomes_square(way: str) -> None:
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 255
    data = io.BytesIO()
    Pillow.fromarray(wide).save(data, "PNG")
    item = fields["image"].make(["image"], fit_by=way)
    item.state = {"shape": [1, 8, 8], "mean": [0.0], "std": [1.0], "factor": 1}
    share = item.encode(Columns({"image": [data.getvalue()]})).float().mean().item() / 255
    assert share == pytest.approx({"stretch": 0.5, "crop": 1.0, "pad": 0.25}[way], abs=0.07)
