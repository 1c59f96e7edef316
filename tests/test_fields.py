"""Fields: what is fitted, encoded, decoded, and that the same comes back from JSON."""

from __future__ import annotations

import io
import json
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
from fathom.core.registry import fields
from fathom.sources import open_source


def fitted(kind: str, columns: Columns, **options: Any) -> Field:
    item: Field = fields[kind].make(list(columns), **options)
    item.fit([columns])
    return item


# ---- the contract: every registered kind -------------------------------------------------------------------


def example(kind: str) -> Columns:
    generator = np.random.default_rng(0)
    if kind == "image":
        return Columns({"image": generator.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)})
    if kind == "number":
        return Columns({"a": pa.array([1.5, None, 3.0, -2.0]), "b": pa.array([1, 2, 3, 4])})
    if kind == "category":
        return Columns({"word": ["b", "a", None, "b"]})
    return Columns({"tags": [["x", "y"], [], ["y"], ["z"]]})


@pytest.mark.parametrize("kind", fields.names())
def test_a_field_comes_back_from_json_and_encodes_alike(kind: str) -> None:
    columns = example(kind)
    item = fitted(kind, columns)
    again = Field.from_json(json.loads(json.dumps(item.to_json())))
    assert again.to_json() == item.to_json()
    encoded = item.encode(columns)
    torch.testing.assert_close(encoded, again.encode(columns), rtol=0, atol=0, equal_nan=True)
    torch.manual_seed(0)
    layer = item.layer()
    torch.manual_seed(0)
    assert torch.equal(layer(encoded), again.layer()(encoded))
    assert tuple(layer(encoded).shape[1:]) == item.shape == again.shape
    assert layer(encoded).dtype == torch.float32
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
    assert encoded[0].tolist() == [1.0, 4.0]
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
    assert caught.value.partial[0].item() == 1.0
    with pytest.raises(RowFaults) as caught:
        item.encode(Columns({"a": pa.array([1.0, None])}), target=True)
    assert caught.value.reasons == {1: "'a' is missing"}
    assert item.encode(Columns({"a": [True, False]})).tolist() == [[1.0], [0.0]]


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
    forms = [labels, [str(label) for label in labels], np.eye(3, dtype=np.float32)[labels]]
    encoded = [fitted("category", Columns({"c": form})).encode(Columns({"c": form}), target=True) for form in forms]
    for one in encoded:
        assert one.tolist() == labels
    soft = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    item = fitted("category", Columns({"c": soft}))
    assert torch.equal(item.encode(Columns({"c": soft}), target=True), torch.from_numpy(soft))


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
    grey = layout in ("NHW", "NHW1", "N1HW")
    expected = RGB.transpose(0, 3, 1, 2)[:, :1] if grey else RGB.transpose(0, 3, 1, 2)
    assert item.shape == expected.shape[1:]
    assert torch.equal(item.encode(columns), torch.from_numpy(expected.copy()))
    standardized = item.layer()(item.encode(columns))
    torch.testing.assert_close(standardized.mean((0, 2, 3)), torch.zeros(len(expected[0])), atol=1e-4, rtol=0)
    strides = standardized.stride()
    assert strides[1] == 1, "channels are innermost in memory"


def test_floats_of_bytes_are_scaled_once() -> None:
    """0 to 255 as bytes, as floats and as shares are one and the same picture to a field fitted on bytes."""
    item = fitted("image", Columns({"image": RGB}))
    for form in (RGB.astype(np.float32), (RGB / 255).astype(np.float32), RGB.astype(np.int64)):
        assert torch.equal(item.encode(Columns({"image": form})), item.encode(Columns({"image": RGB})))


def test_a_source_hands_shares_over_as_bytes() -> None:
    from fathom.core.recipe import Data

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
    item.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "float": False}
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


def test_working_size_and_colour_are_seen_from_the_files(tmp_path: Path) -> None:
    grey = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in grey:
        Pillow.fromarray(np.repeat(RGB[0, :, :, :1], 3, 2)).save(path)
    assert fitted("image", Columns({"image": grey})).shape == (1, 10, 12), "grey in three channels is grey"
    Pillow.fromarray(RGB[0]).resize((200, 100)).save(grey[0])
    assert fitted("image", Columns({"image": grey})).shape == (3, 10, 10)
    assert fitted("image", Columns({"image": grey}), size=16, channels=1).shape == (1, 16, 16)


@pytest.mark.parametrize("way", ["stretch", "crop", "pad"])
def test_another_shape_becomes_square(way: str) -> None:
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 255
    data = io.BytesIO()
    Pillow.fromarray(wide).save(data, "PNG")
    item = fields["image"].make(["image"], fit_by=way)
    item.state = {"shape": [1, 8, 8], "mean": [0.0], "std": [1.0], "float": False}
    share = item.encode(Columns({"image": [data.getvalue()]})).float().mean().item() / 255
    assert share == pytest.approx({"stretch": 0.5, "crop": 1.0, "pad": 0.25}[way], abs=0.07)
