"""Pictures as sources: folders, idx files, Parquet, groups, and each refusal with the layout that is expected."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import parquet

from fathom.core.errors import DataError
from fathom.core.recipe import Data
from fathom.core.tensors import to_list
from fathom.sources import open_source, read_inputs
from fathom.sources.images import read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def picture(seed: int = 0, size: tuple[int, int] = (6, 5), kind: str = "PNG") -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def photos(root: Path, names: list[str]) -> Path:
    return folder(root, {name: picture(i) for i, name in enumerate(names)})


def idx(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.newbyteorder("=").str[1:]]
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, code, array.ndim]) + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def relative(source: Any, root: Path) -> list[str]:
    return [Path(name).relative_to(root).as_posix() for name in to_list(source.columns()["image"])]


# ---------------------------------------------------------------- folders


def test_one_loose_picture_is_one_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 1 picture \(a\.png\) but no class folders"):
        open_source(str(photos(tmp_path / "p", ["a.png"])), Data()).columns()
    with pytest.raises(DataError, match=r"holds 1 picture beside its class folders \(a\.png\)"):
        open_source(str(photos(tmp_path / "q", ["a.png", "cats/1.png", "dogs/1.png"])), Data()).columns()


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ["dogs/b.JPG", "dogs/a.png", "cats/x/1.jpeg", "cats/0.webp"])
    folder(
        root,
        {"SOURCE.md": b"-", "cats/Thumbs.db": b"-", ".hidden/1.png": b"-", "cats/.DS_Store": b"-", "empty.csv": b""},
    )
    source = open_source(str(root), Data())
    assert relative(source, root) == ["cats/0.webp", "cats/x/1.jpeg", "dogs/a.png", "dogs/b.JPG"]
    assert to_list(source.columns()["label"]) == ["cats", "cats", "dogs", "dogs"]
    schema = source.schema()
    assert schema.inputs["image"].kind == "image"
    assert schema.targets["label"].kind == "category"
    assert source.given_splits() == {}
    (note,) = source.notes()
    assert note == (
        "3 files left out, with the extension of no picture (.csv, .db, .md): SOURCE.md, cats/Thumbs.db, empty.csv."
    )


def test_unreadable_pictures_are_not_left_out_here(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", {"a/1.png": picture(), "a/2.png": b"", "b/1.jpg": b"<html>", "b/2.jpg": picture()})
    assert open_source(str(root), Data()).columns().rows == 4


@pytest.mark.parametrize(
    ("parts", "splits"),
    [
        (["train", "test"], {"train": 4, "test": 2}),
        (["train", "valid", "test"], {"train": 4, "validation": 2, "test": 2}),
        (["Train", "VAL", "Test"], {"train": 4, "validation": 2, "test": 2}),
        (["train", "val"], {"train": 4, "test": 2}),
        (["train"], {"train": 4}),
    ],
)
def test_split_folders(tmp_path: Path, parts: list[str], splits: dict[str, int]) -> None:
    names = [
        f"{part}/{label}/{i}.png"
        for part in parts
        for label in "ab"
        for i in range(2 if part.lower() == "train" else 1)
    ]
    root = photos(tmp_path / "p", names)
    source = open_source(str(root), Data())
    assert {name: len(index) for name, index in source.given_splits().items()} == splits
    for part, index in source.given_splits().items():
        taken = to_list(source.columns().take(index)["image"])
        assert all(("train" in Path(name).parent.parent.name.lower()) == (part == "train") for name in taken)
    assert ("There is no test part" in " ".join(source.notes())) == (parts == ["train", "val"])


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    source = open_source(str(photos(tmp_path / "p", ["test/1.png", "control/1.png"])), Data())
    assert source.given_splits() == {}
    assert to_list(source.columns()["label"]) == ["control", "test"]


def test_a_class_may_begin_with_underscores(tmp_path: Path) -> None:
    source = open_source(str(photos(tmp_path / "p", ["a/1.png", "__other__/1.png", "__MACOSX/b/1.png"])), Data())
    assert to_list(source.columns()["label"]) == ["__other__", "a"]


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ([], ["is empty", "Expected: FOLDER/cats/1.jpg"]),
        (["a/1.png", "a/2.png"], ["one class folder only, 'a'", "Expected"]),
        (["p/a/1.png", "p/b/2.png"], ["one class folder only, 'p'", "folders of its own (a, b)"]),
        (["1.png", "2.png"], ["2 pictures", "no class folders", "Expected"]),
        (["a/1.png", "b/1.png", "loose.png"], ["1 picture beside its class folders", "loose.png"]),
        (["a/1.txt", "b/2.txt"], ["no pictures", ".jpg"]),
        (["x.csv", "y.txt"], ["It holds tables", "x.csv"]),
        (["notes.txt"], ["holds no pictures (found: notes.txt)"]),
        (["train/a/1.png", "train/b/1.png", "test/A/1.png"], ["the class 'A'", "nearest: a", "Train has: a, b"]),
        (["train/a/1.png", "test/a/1.png"], ["train has one class folder only"]),
        (["test/1.png", "val/1.png"], ["test, val", "no train folder", "Expected"]),
        (["test/a/1.png", "test/b/1.png", "val/a/1.png"], ["test, val", "no train folder"]),
        (["test/a/1.png", "test/b/1.png", "other/a/1.png"], ["no train folder", "rename test if it is a class"]),
    ],
)
def test_bad_folders_are_refused_with_the_layout(tmp_path: Path, files: list[str], parts: list[str]) -> None:
    root = photos(tmp_path / "photos", files)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        open_source(str(root), Data()).columns()
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


def test_one_picture_is_no_data_set(tmp_path: Path) -> None:
    photos(tmp_path, ["cat.jpg"])
    with pytest.raises(DataError, match=r"is one picture; give a folder of them to learn from"):
        open_source("cat.jpg", Data()).columns()


# ---------------------------------------------------------------- groups


def test_groups_from_a_csv(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ["a/1.png", "a/2 b.png", "b/1.png", "b/3.png"])
    folder(root, {"duplicates.csv": b"group,file\n1,a/1.png\n1,b/1.png\n2,b/gone.png\n"})
    for given_path in ("duplicates.csv", str(root / "duplicates.csv")):
        source = open_source(str(root), Data(group=given_path))
        column = source.schema().special["group"]
        groups = to_list(source.columns()[column])
        assert groups[0] == groups[2]
        assert len(set(groups)) == 3
        told = " ".join(source.notes())
        assert "1 files of duplicates.csv are not in the folder: b/gone.png" in told
        assert "2 files not in duplicates.csv" in told


@pytest.mark.parametrize(
    ("group", "text", "part"),
    [
        ("g.csv", "file,group\nnope.png,1\n", "No column of"),
        ("g.csv", "file\na/1.png\n", "1 column"),
        ("none.csv", "", "neither a column (image, label) nor a CSV file"),
    ],
)
def test_bad_groups_are_refused(tmp_path: Path, group: str, text: str, part: str) -> None:
    root = photos(tmp_path / "p", ["a/1.png", "b/1.png"])
    folder(root, {"g.csv": text.encode() or b"a,b\n1,2\n"})
    with pytest.raises(DataError) as caught:
        open_source(str(root), Data(group=group)).schema()
    assert part in str(caught.value)


# ---------------------------------------------------------------- idx


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=st.sampled_from(list(CODES)).flatmap(
        lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
    ),
    packed=st.booleans(),
    cut=st.integers(1, 40),
)
def test_idx_files_are_read_back_or_refused(tmp_path: Path, array: np.ndarray, packed: bool, cut: int) -> None:
    path = tmp_path / "x-idx"
    data = idx(array)
    path.write_bytes(gzip.compress(data) if packed else data)
    read = read_idx(path)
    assert read.dtype == array.dtype
    assert read.tobytes() == array.tobytes()
    for broken in (data[: max(0, len(data) - cut)], data + b"x"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"x-idx (holds|ends|is no idx)"):
            read_idx(path)


def test_a_lying_idx_header_costs_no_memory(tmp_path: Path) -> None:
    (tmp_path / "x-idx").write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"abc")
    with pytest.raises(DataError, match="holds 3 bytes of values"):
        read_idx(tmp_path / "x-idx")


@pytest.mark.parametrize("location", [".", "train", "train-images-idx3-ubyte"])
@pytest.mark.parametrize(
    "style", ["{part}-{role}-idx{n}-ubyte", "{part}-{role}.idx{n}-ubyte", "{part}-{role}-idx{n}-ubyte.gz"]
)
def test_idx_folders_and_beginnings(tmp_path: Path, location: str, style: str) -> None:
    rng = np.random.default_rng(0)
    for part, rows in (("train", 6), ("t10k", 3)):
        for role, n, array in (
            ("images", 3, rng.integers(0, 256, (rows, 4, 4)).astype("u1")),
            ("labels", 1, (np.arange(rows) % 2).astype("u1")),
        ):
            data = idx(array)
            name = style.format(part=part, role=role, n=n)
            (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    if location.startswith("train-"):
        location = style.format(part="train", role="images", n=3)
    source = open_source(str(tmp_path / location), Data())
    sizes = {name: len(index) for name, index in source.given_splits().items()}
    assert sizes == ({"train": 6, "test": 3} if location == "." else {"train": 6})
    assert source.columns()["image"].shape[1:] == (4, 4)  # type: ignore[union-attr]
    assert source.schema().targets["label"].kind == "category"


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"train-images-idx3-ubyte": np.zeros((2, 2, 2), "u1")}, "no file of labels beside it"),
        (
            {"train-images-idx3-ubyte": np.zeros((2, 2, 2), "u1"), "train-labels-idx1-ubyte": np.zeros(3, "u1")},
            "holds 2 pictures",
        ),
    ],
)
def test_bad_idx_sets_are_refused(tmp_path: Path, files: dict[str, np.ndarray], part: str) -> None:
    folder(tmp_path, {name: idx(array) for name, array in files.items()})
    with pytest.raises(DataError, match=part):
        open_source(str(tmp_path), Data()).columns()


# ---------------------------------------------------------------- Parquet


def test_parquet_prefers_the_names_of_labels(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": [picture(i) for i in range(4)],
            "label": [0, 1, 0, 1],
            "label_name": ["u", "v", "u", "v"],
            "file": list("abcd"),
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"), Data())
    schema = source.schema()
    assert list(schema.inputs) == ["image"]
    assert list(schema.targets) == ["label_name"]
    assert "Not used as inputs: label, file" in " ".join(source.notes())
    source = open_source(str(tmp_path / "x.parquet"), Data(target=["label"], group="file"))
    assert list(source.schema().targets) == ["label"]
    assert source.schema().special == {"group": "file"}


def test_hugging_face_parquet(tmp_path: Path) -> None:
    struct = pa.StructArray.from_arrays(
        [pa.array([picture(i) for i in range(4)]), pa.array(["a", "b", "c", "d"])], ["bytes", "path"]
    )
    table = pa.table({"img": struct, "label": pa.array([0, 1, 1, 0])})
    about = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        (tmp_path / "data").mkdir(exist_ok=True)
        parquet.write_table(table, tmp_path / "data" / f"{name}.parquet")
    source = open_source(str(tmp_path), Data())
    assert {name: len(index) for name, index in source.given_splits().items()} == {"train": 8, "test": 4}
    assert to_list(source.columns()["label"])[:4] == ["cat", "dog", "dog", "cat"]
    assert source.schema().inputs["image"].columns == ("image",)
    assert to_list(source.columns()["image"])[0].startswith(b"\x89PNG")


def test_pictures_and_columns_together(tmp_path: Path) -> None:
    table = pa.table({"image": [picture(i) for i in range(30)], "age": np.linspace(0, 1, 30), "label": ["u", "v"] * 15})
    parquet.write_table(table, tmp_path / "x.parquet")
    schema = open_source(str(tmp_path / "x.parquet"), Data(input=["image", "age"])).schema()
    assert {name: item.kind for name, item in schema.inputs.items()} == {"image": "image", "numbers": "number"}


def test_parquet_without_labels_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": [picture()], "what": ["u"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"no column of labels by its name. Name it with --target: image, what"):
        open_source(str(tmp_path / "x.parquet"), Data()).columns()


# ---------------------------------------------------------------- joined and predict


def test_joined_folders(tmp_path: Path) -> None:
    main = photos(tmp_path / "p", ["train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"])
    other = photos(tmp_path / "q", ["a/3.png", "b/3.png", "b/4.png"])
    source = open_source(str(main), Data(validation=str(other)))
    assert {k: len(v) for k, v in source.given_splits().items()} == {"train": 2, "test": 2, "validation": 3}
    source = open_source(str(main), Data(test=str(other)))
    assert {k: len(v) for k, v in source.given_splits().items()} == {"train": 2, "test": 3}
    assert "has a test part of 2 rows; it is not used" in " ".join(source.notes())
    assert source.columns().rows == 7


def test_arrays_and_files_do_not_join(tmp_path: Path) -> None:
    main = folder(
        tmp_path / "i",
        {"images-idx3-ubyte": idx(np.zeros((4, 3, 3), "u1")), "labels-idx1-ubyte": idx(np.arange(4).astype("u1"))},
    )
    other = photos(tmp_path / "q", ["a/3.png", "b/3.png"])
    with pytest.raises(DataError, match="do not fit together"):
        open_source(str(main), Data(test=str(other))).columns()


def test_predict_reads_files_folders_and_arrays(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", ["a/1.png", "a/2.png", "b/1.png"])
    source = open_source(str(root), Data())
    schema = source.schema()
    schema.inputs["image"].fit([source.columns()])
    schema.inputs["image"].state["shape"][0] = 3
    columns, names = read_inputs([root / "b" / "1.png", str(root / "a")], schema)
    assert names == to_list(columns["image"]) == [str(root / name) for name in ("b/1.png", "a/1.png", "a/2.png")]
    columns, names = read_inputs([np.zeros((6, 5, 3), np.uint8), np.zeros((2, 6, 5, 3))], schema)
    assert columns["image"].shape == (3, 6, 5, 3)  # type: ignore[union-attr]
    assert names == ["row 1", "row 2", "row 3"]
    columns, names = read_inputs([{"image": str(root / "a" / "1.png")}], schema)
    assert names == ["row 1"]
    with pytest.raises(DataError, match=r"2.pgn does not exist. Did you mean .*2.png"):
        read_inputs([str(root / "a" / "2.pgn")], schema)
    with pytest.raises(DataError, match="holds no pictures"):
        read_inputs([str(folder(tmp_path / "none", {"x.txt": b""}))], schema)
    with pytest.raises(DataError, match="one or the other"):
        read_inputs([np.zeros((6, 5)), str(root / "a")], schema)
    schema.inputs["image"].state["shape"][0] = 1
    columns, names = read_inputs([np.zeros((3, 6, 5), np.uint8)], schema)
    assert len(names) == 3, "three gray pictures, not one in color"


def test_real_folders(data_folder: Path) -> None:
    for name, rows, splits in (
        ("cats-vs-dogs", 2000, {}),
        ("brain-mri", 253, {}),
        ("ants-bees", 398, {"train": 245, "test": 153}),
    ):
        if not (data_folder / name).is_dir():
            continue
        source = open_source(str(data_folder / name), Data())
        assert source.columns().rows == rows
        assert {part: len(index) for part, index in source.given_splits().items()} == splits


def test_brain_mri_groups(data_folder: Path) -> None:
    root = data_folder / "brain-mri"
    if not root.is_dir():
        pytest.skip("the brain-mri set is not there")
    source = open_source(str(root), Data(group="duplicates.csv"))
    groups = to_list(source.columns()[source.schema().special["group"]])
    assert len(groups) - len(set(groups)) == 47 - 22
