"""Choosing a source, built-in sets and their download, arrays, tensors, Datasets, and every source through `prepare`."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler, default_collate

from fathom.core.errors import DataError
from fathom.core.prepare import prepare
from fathom.core.recipe import Data
from fathom.core.registry import fields, sources
from fathom.core.tensors import Columns, to_list
from fathom.sources import builtin, open_source, read_inputs
from fathom.sources.arrays import pictures

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + b"".join(s.to_bytes(4, "big") for s in array.shape)
        + array.astype("u1").tobytes()
    )


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("digts", ["no file, folder or built-in set 'digts'", "Did you mean 'digits'?", "Built-in: digits"]),
        ("fotos", ["Did you mean 'photos'?"]),
        ("photos/trian", ["Did you mean 'photos/train'?"]),
        ("nowhere/x.csv", ["The folder nowhere does not exist"]),
        ("x.docx", ["exists, but files that end in '.docx' are not read", ".csv", ".parquet", ".npz"]),
        ("x.zip", ["Unpack it first"]),
        ("plain", ["files without an extension"]),
        (None, ["A NoneType cannot be read"]),
        (7, ["A int cannot be read", "(x, y) arrays"]),
    ],
)
def test_what_nothing_reads_is_refused_with_the_nearest(tmp_path: Path, location: Any, parts: list[str]) -> None:
    (tmp_path / "photos" / "train").mkdir(parents=True)
    for name in ("x.docx", "x.zip", "plain"):
        (tmp_path / name).write_bytes(b"-")
    with pytest.raises(DataError) as caught:
        open_source(location, Data())
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_every_source_says_what_it_reads() -> None:
    names = "arrays builtin entities environments images scenes series tables texts"
    assert [entry.name for entry in sources] == names.split()
    assert all(entry.about["reads"] and entry.summary for entry in sources)


# ---------------------------------------------------------------- built-in


@pytest.mark.parametrize(
    ("name", "rows", "width", "classes"),
    [
        ("iris", 150, 4, ["setosa", "versicolor", "virginica"]),
        ("wine", 178, 13, ["class_0", "class_1", "class_2"]),
        ("breast_cancer", 569, 30, ["benign", "malignant"]),
        ("Breast-Cancer", 569, 30, ["benign", "malignant"]),
        ("diabetes", 442, 10, None),
    ],
)
def test_tables_of_scikit_learn(name: str, rows: int, width: int, classes: list[str] | None) -> None:
    source = open_source(name, Data())
    schema = source.schema()
    assert source.columns().rows == rows
    assert len(schema.inputs["numbers"].columns) == width
    assert schema.targets["target"].kind == ("category" if classes else "number")
    if classes:
        assert sorted(set(to_list(source.columns()["target"]))) == classes


def test_digits_are_pictures() -> None:
    from sklearn.datasets import load_digits

    columns = open_source("digits", Data()).columns()
    image = columns["image"]
    assert isinstance(image, np.ndarray)
    assert image.shape == (1797, 8, 8)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.round(load_digits().images * 255 / 16))
    assert image.max() == 255


def test_a_folder_with_the_name_of_a_set_is_told(tmp_path: Path) -> None:
    (tmp_path / "iris").mkdir()
    assert "write ./iris" in " ".join(open_source("iris", Data()).notes())


def test_a_set_that_is_not_there_says_both_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FATHOM_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"'mnist' is not on this machine.*set FATHOM_DATA.*--download"):
        open_source("mnist", Data()).columns()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the local address that serves it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    folder = tmp_path / "served"
    folder.mkdir()
    serving = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()
    thread.join()


def small_mnist() -> dict[str, bytes]:
    files = {}
    for part, rows in (("train", 12), ("t10k", 6)):
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(RNG.integers(0, 256, (rows, 4, 4))))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(np.arange(rows) % 3))
    return files


def listed(files: dict[str, bytes], address: str) -> list[builtin.Remote]:
    return [builtin.Remote(f"{address}/{name}", hashlib.sha256(data).hexdigest()) for name, data in files.items()]


def test_a_set_is_fetched_checked_and_kept(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, address = server
    files = small_mnist()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    monkeypatch.delenv("FATHOM_DATA", raising=False)
    monkeypatch.setitem(builtin.REMOTES, "fashion-mnist", listed(files, address))
    source = open_source("fashion-mnist", Data(download=True))
    assert {part: len(index) for part, index in source.given_splits().items()} == {"train": 12, "test": 6}
    assert to_list(source.columns()["label"])[:3] == ["T-shirt/top", "Trouser", "Pullover"]
    assert "Fetched fashion-mnist" in " ".join(source.notes())
    cached = tmp_path / "cache" / "data" / "fashion-mnist"
    assert sorted(path.name for path in cached.iterdir()) == sorted(files)
    for path in folder.iterdir():
        path.unlink()
    assert open_source("fashion-mnist", Data()).columns().rows == 18  # from the cache


def test_wrong_bytes_are_refused_and_leave_nothing(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, address = server
    files = small_mnist()
    monkeypatch.delenv("FATHOM_DATA", raising=False)
    monkeypatch.setitem(builtin.REMOTES, "mnist", listed(files, address))
    with pytest.raises(DataError, match=r"could not be fetched: .*[Nn]ot [Ff]ound"):
        open_source("mnist", Data(download=True)).columns()
    for name, data in files.items():
        (folder / name).write_bytes(data + b"!")
    with pytest.raises(DataError, match=r"SHA-256 .* is expected. Nothing was kept"):
        open_source("mnist", Data(download=True)).columns()
    assert not list((tmp_path / "cache" / "data" / "mnist").iterdir())


def cifar_batch(rows: int) -> bytes:
    pixels = RNG.integers(0, 256, (rows, 3072)).astype(np.uint8)
    return np.column_stack([np.arange(rows, dtype=np.uint8) % 10, pixels]).tobytes()


def archive(members: dict[str, bytes], evil: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        if evil:
            link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
            outside = tarfile.TarInfo("../../escaped.bin")
            outside.size = 3
            tar.addfile(outside, io.BytesIO(b"abc"))
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_cifar10_is_fetched_and_only_its_files_are_taken(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, address = server
    batches = {f"cifar-10-batches-bin/data_batch_{i}.bin": cifar_batch(4) for i in range(1, 6)}
    batches["cifar-10-batches-bin/test_batch.bin"] = cifar_batch(3)
    data = archive(batches, evil=True)
    (folder / "cifar-10-binary.tar.gz").write_bytes(data)
    monkeypatch.delenv("FATHOM_DATA", raising=False)
    monkeypatch.setitem(builtin.REMOTES, "cifar10", listed({"cifar-10-binary.tar.gz": data}, address))
    source = open_source("cifar10", Data(download=True))
    image = source.columns()["image"]
    assert isinstance(image, np.ndarray)
    assert image.shape == (23, 32, 32, 3)
    first = np.frombuffer(batches["cifar-10-batches-bin/data_batch_1.bin"], np.uint8)[1:3073]
    assert np.array_equal(image[0], first.reshape(3, 32, 32).transpose(1, 2, 0))
    assert to_list(source.columns()["label"])[:2] == ["airplane", "automobile"]
    assert len(source.given_splits()["test"]) == 3
    cached = tmp_path / "cache" / "data" / "cifar10"
    assert len(list(cached.iterdir())) == 7
    assert not list(tmp_path.rglob("escaped.bin"))


def test_an_archive_that_lacks_a_batch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive({"x/data_batch_1.bin": cifar_batch(1)}))
    with pytest.raises(DataError, match=r"lacks data_batch_2.bin, data_batch_3.bin"):
        builtin.unpack_cifar10(path, tmp_path)
    path.write_bytes(b"\x1f\x8bno")
    with pytest.raises(DataError, match="damaged archive"):
        builtin.unpack_cifar10(path, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "label"),
    [("mnist", (70000, 28, 28), 5), ("fashion-mnist", (70000, 28, 28), "Ankle boot")],
)
def test_sets_of_the_data_folder(data_folder: Path, name: str, shape: tuple[int, ...], label: Any) -> None:
    if not (data_folder / name).is_dir():
        pytest.skip(f"{name} is not there")
    source = open_source(name, Data())
    assert source.columns()["image"].shape == shape  # type: ignore[union-attr]
    assert to_list(source.columns()["label"])[0] == label
    assert {part: len(index) for part, index in source.given_splits().items()} == {"train": 60000, "test": 10000}


def test_cifar10_of_the_data_folder(data_folder: Path) -> None:
    if not (data_folder / "cifar10").is_dir():
        pytest.skip("cifar10 is not there")
    source = open_source("cifar10", Data())
    assert set(to_list(source.columns()["label"])) == set(builtin.CIFAR10)
    assert {part: len(index) for part, index in source.given_splits().items()} == {"train": 50000, "test": 10000}


# ---------------------------------------------------------------- pictures from arrays

BYTES = RNG.integers(0, 256, (5, 6, 7)).astype(np.uint8)
COLOR = RNG.integers(0, 256, (5, 6, 7, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (BYTES, BYTES),
        (BYTES.astype(np.int64), BYTES),
        (BYTES.astype(np.float32), BYTES),
        (BYTES.astype(np.float64) / 255, BYTES),
        ((BYTES / 255).astype(np.float32), BYTES),
        (BYTES[:, None], BYTES),
        (BYTES[..., None], BYTES),
        (COLOR, COLOR),
        (COLOR.transpose(0, 3, 1, 2), COLOR),
        (np.concatenate([COLOR, COLOR[..., :1]], -1), COLOR),
        (BYTES > 100, (BYTES > 100) * np.uint8(255)),
        (BYTES.astype(np.uint16) * 200, (BYTES.astype(np.float32) * 200)),
        (BYTES.astype(np.float32) - 100, BYTES.astype(np.float32) - 100),
        (BYTES.astype(np.float32) / 300, BYTES.astype(np.float32) / 300),
        (BYTES.astype(np.float32) * 0.7, BYTES.astype(np.float32) * np.float32(0.7)),
    ],
)
def test_layouts_and_ranges(array: np.ndarray, expected: np.ndarray) -> None:
    columns = Columns({"x": pictures(array, "x", [])})
    item = fields["image"].make(["x"])
    item.fit([columns])
    read = item.encode(columns).numpy()
    assert read.dtype == (np.uint8 if expected.dtype == np.uint8 else np.float32)
    np.testing.assert_allclose(read, expected[:, None] if expected.ndim == 3 else expected.transpose(0, 3, 1, 2), 1e-6)


@pytest.mark.parametrize(
    ("shape", "expected", "told"),
    [
        ((4, 3, 9, 9), (4, 9, 9, 3), False),
        ((4, 3, 5, 3), (4, 3, 3, 5), True),
        ((4, 3, 3, 3), (4, 3, 3, 3), True),
        ((4, 1, 9, 3), (4, 3, 1, 9), True),
    ],
)
def test_ambiguous_layouts_follow_the_rule(shape: tuple[int, ...], expected: tuple[int, ...], told: bool) -> None:
    notes: list[str] = []
    assert pictures(np.zeros(shape, np.uint8), "x", notes).shape == expected
    assert bool(notes) is told


def test_pictures_of_arrays_reach_the_network_alike() -> None:
    y = np.array([0, 1, 0, 1] * 10)
    base = RNG.integers(0, 256, (40, 9, 8, 3)).astype(np.uint8)
    encoded = [
        prepare(open_source((x, y), Data()), Data(), 0).store.columns["image"]
        for x in (base, base.transpose(0, 3, 1, 2), base / 255.0, torch.from_numpy(base), base.tolist())
    ]
    for other in encoded[1:]:
        assert torch.equal(encoded[0], other)  # type: ignore[arg-type]
    assert encoded[0].shape == (40, 3, 9, 8)  # type: ignore[union-attr]


# ---------------------------------------------------------------- other arrays

X = RNG.normal(size=(40, 3))
Y = np.arange(40) % 4


@pytest.mark.parametrize(
    ("y", "kind", "names"),
    [
        (Y, "category", ["y"]),
        (Y.tolist(), "category", ["y"]),
        (torch.from_numpy(Y), "category", ["y"]),
        ([f"c{v}" for v in Y], "category", ["y"]),
        (Y > 1, "category", ["y"]),
        (Y[:, None], "category", ["y"]),
        (Y.astype(float), "category", ["y"]),
        (np.eye(4)[Y], "category", ["y"]),
        (np.full((40, 4), 0.25) + np.eye(4)[Y] * 0.2 - 0.05, "category", ["y"]),
        ((np.arange(40)[:, None] >> np.arange(3)) & 1, "labels", ["y"]),
        ([["a"], ["a", "b"], [], ["b"]] * 10, "labels", ["y"]),
        (X[:, 0], "number", ["y"]),
        (np.arange(40) * 7, "number", ["y"]),
        (RNG.normal(size=(40, 2)), "number", ["y0", "y1"]),
    ],
)
def test_kind_of_y(y: Any, kind: str, names: list[str]) -> None:
    source = open_source((X, y), Data())
    schema = source.schema()
    assert schema.inputs["numbers"].columns == ("x0", "x1", "x2")
    assert {name: item.kind for name, item in schema.targets.items()} == dict.fromkeys(names, kind)
    assert source.columns().rows == 40


def test_many_class_codes_are_classes_and_counts_are_numbers() -> None:
    codes = np.arange(400) % 100
    assert open_source((RNG.normal(size=(400, 2)), codes), Data()).schema().targets["y"].kind == "category"
    assert open_source((RNG.normal(size=(400, 2)), codes * 3), Data()).schema().targets["y"].kind == "number"
    (note,) = open_source((RNG.normal(size=(400, 2)), codes), Data()).notes()
    assert "the whole numbers 0 to 99, each 4 times on average, so they are taken as 100 classes" in note
    assert "data.types.y=number" in note
    assert "data.types.y=number" in " ".join(open_source((X, Y), Data()).notes())
    table = pa.table({"x": RNG.normal(size=400), "y": codes})
    assert open_source(table, Data()).schema().targets["y"].kind == "number"
    options = Data(types={"y": "number"})
    assert open_source((X, Y), options).schema().targets["y"].kind == "number"


def test_named_columns_and_splits() -> None:
    source = open_source({"age": X[:, 0], "town": ["a", "b"] * 20, "label": Y}, Data())
    assert list(source.schema().targets) == ["label"]
    assert source.schema().inputs["categories"].columns == ("town",)
    source = open_source({"train": (X, Y), "val": (X[:4], Y[:4]), "test": {"x": X[:6], "y": Y[:6]}}, Data())
    assert {name: len(index) for name, index in source.given_splits().items()} == {
        "train": 40,
        "validation": 4,
        "test": 6,
    }
    assert to_list(source.columns().take(source.given_splits()["test"])["x0"]) == X[:6, 0].tolist()


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    assert open_source(str(tmp_path / "a.npz"), Data()).columns().rows == 40
    np.savez(tmp_path / "b.npz", x_train=BYTES, y_train=[0, 1, 0, 1, 0], x_test=BYTES[:2], y_test=[0, 1])
    source = open_source(tmp_path / "b.npz", Data())
    assert {name: len(index) for name, index in source.given_splits().items()} == {"train": 5, "test": 2}
    assert source.schema().inputs["image"].kind == "image"
    np.savez(tmp_path / "c.npz", a=X)
    with pytest.raises(DataError, match=r"holds a; x and y are expected"):
        open_source(tmp_path / "c.npz", Data()).columns()
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], object), y=[1])
    with pytest.raises(DataError, match=r"no readable \.npz file of plain arrays"):
        open_source(tmp_path / "d.npz", Data()).columns()
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04rot")
    with pytest.raises(DataError, match=r"no readable \.npz file"):
        open_source(tmp_path / "e.npz", Data()).columns()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ((X, Y[:5]), ["differ in length", "40", "5"]),
        ({"train": (X, Y), "test": (X[:3], Y[:2])}, ["test: x has 3 rows and y has 2"]),
        ((X,), ["(x, y) is expected, but 1 arrays came"]),
        (X, ["(x, y) is expected", "ndarray"]),
        ((X[:0], np.zeros((0, 2))), ["no rows"]),
        ((X[:0], []), ["no rows"]),
        (([[1.0, 2.0], [3.0]], [0, 1]), ["unequal size", "row 2 has 1"]),
        ((np.array([object(), object()]), [0, 1]), ["objects"]),
        ((np.zeros((4, 5, 6, 2)), Y[:4]), ["1, 3 or 4 channels"]),
        ((np.zeros((4, 5, 6, 2, 2)), Y[:4]), ["(N, H, W)"]),
        ((np.where(np.arange(40)[:, None] == 7, np.inf, X), Y), ["row 8", "'x0'", "infinite"]),
        ((X, np.zeros(40, int)), ["'y' is '0' in every row"]),
        ((X, np.zeros((40, 2, 2))), ["shape (40, 2, 2)"]),
        ((X, None), ["x came without y"]),
        ((np.zeros(40, complex), Y), ["complex"]),
    ],
)
def test_bad_arrays_are_refused(given: Any, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        open_source(given, Data()).schema()
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


def test_a_picture_that_holds_nan_is_a_fault_of_its_row() -> None:
    images = RNG.random((40, 5, 6))
    images[3, 0, 0] = np.nan
    given = (images, np.arange(40) % 2)
    with pytest.raises(DataError, match="1 of 40 rows cannot be used: row 4: the picture holds a value that is not a"):
        prepare(open_source(given, Data()), Data(), 0)
    data = Data(bad_rows=0.1)
    assert sum(map(len, prepare(open_source(given, data), data, 0).splits.values())) == 39


@pytest.mark.parametrize(
    ("given", "types", "told"),
    [
        ("image", {"image": "number"}, ["data.types.image=number", "(5, 6)", "image or ignore"]),
        ("image", {"image": "category"}, ["data.types.image=category", "image or ignore"]),
        ("labels", {"y": "number"}, ["data.types.y=number", "(3,)", "category or labels or ignore"]),
    ],
)
def test_an_array_a_row_is_never_cut_to_one_value(given: str, types: dict[str, str], told: list[str]) -> None:
    labels = np.tile([[1, 1, 0], [0, 1, 1]], (20, 1))
    arrays = (RNG.random((40, 5, 6)), np.arange(40) % 2) if given == "image" else (RNG.random((40, 2)), labels)
    with pytest.raises(DataError) as caught:
        open_source(arrays, Data(types=types)).schema()
    assert not [part for part in told if part not in str(caught.value)], str(caught.value)


# ---------------------------------------------------------------- torch


class Noisy(Dataset):
    """Gives other items at every read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3), i % 2


class Stream(IterableDataset):
    """Rows one after the other, with no length."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, str]]:
        return iter((X[i], "uv"[i % 2]) for i in range(12))


class Named(Dataset):
    """Rows as dicts, with class names."""

    classes = ["cat", "dog"]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[dict[str, Any], int]:
        return {"image": BYTES[i % 5], "age": i / 3}, i % 2


class Listed(Dataset):
    """The items of a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


TENSORS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


@pytest.mark.parametrize(
    "given",
    [
        TENSORS,
        DataLoader(TENSORS, batch_size=7),
        DataLoader(TENSORS, batch_size=7, shuffle=True),
        DataLoader(TENSORS, batch_size=7, collate_fn=lambda rows: tuple(map(torch.stack, zip(*rows, strict=True)))),
        DataLoader(
            TENSORS,
            batch_size=7,
            shuffle=True,
            collate_fn=lambda rows: tuple(map(torch.stack, zip(*rows, strict=True))),
        ),
        torch.utils.data.Subset(TENSORS, range(40)),
    ],
)
def test_datasets_and_loaders_are_read_in_order(given: Any) -> None:
    source = open_source(given, Data())
    assert to_list(source.columns()["x1"]) == X[:, 1].tolist()
    assert to_list(source.columns()["y"]) == Y.tolist()
    assert source.schema().targets["y"].kind == "category"


def test_streams_dicts_and_class_names() -> None:
    assert to_list(open_source(Stream(), Data()).columns()["y"])[:2] == ["u", "v"]
    source = open_source(Named(), Data())
    assert {name: item.kind for name, item in source.schema().inputs.items()} == {"image": "image", "numbers": "number"}
    assert to_list(source.columns()["y"])[:2] == ["cat", "dog"]
    source = open_source({"train": TENSORS, "test": torch.utils.data.Subset(TENSORS, range(5))}, Data())
    assert len(source.given_splits()["test"]) == 5


def test_random_items_are_refused_with_the_augment_keys() -> None:
    for given in (Noisy(), DataLoader(Noisy(), batch_size=4)):
        with pytest.raises(DataError, match=r"Item 0 of the dataset differs.*augment\.flip=0\.5 augment\.shift=2"):
            open_source(given, Data()).columns()


def test_a_sampler_that_draws_is_named() -> None:
    sampler = WeightedRandomSampler([1.0] * 40, 40)
    with pytest.raises(DataError, match=r"its WeightedRandomSampler draws other rows each time.*Give the dataset"):
        open_source(DataLoader(TENSORS, batch_size=7, sampler=sampler), Data()).columns()


def test_batches_of_mappings_are_rows() -> None:
    loader = DataLoader(Named(), batch_size=5, collate_fn=lambda rows: default_collate(rows))  # one of the user's own
    source = open_source(loader, Data())
    assert to_list(source.columns()["age"]) == [i / 3 for i in range(12)]
    assert source.schema().inputs["image"].kind == "image"
    uneven = DataLoader(TENSORS, batch_size=7, collate_fn=lambda rows: (torch.zeros(7, 2), torch.zeros(3)))
    with pytest.raises(DataError, match=r"parts of \[7, 3\] rows"):
        open_source(uneven, Data()).columns()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([0, 0.15, 0.25, 1], [0, 0.15, 0.25, 1]),
        ([True, 2, 3, 0.5], [1, 2, 3, 0.5]),
        ([0, 1, "b", 1], ["0", "1", "b", "1"]),
    ],
)
def test_items_of_a_dataset_keep_their_values(targets: list[Any], expected: list[Any]) -> None:
    source = open_source(Listed([(X[i], targets[i % 4]) for i in range(12)]), Data())
    assert [type(e)(v) for v, e in zip(to_list(source.columns()["y"]), expected, strict=False)] == expected


@pytest.mark.parametrize(
    ("items", "part"),
    [
        ([(np.zeros((3, 3)), 0), (np.zeros((4, 3)), 1)], r"Item 1 .* shape \(4, 3\), the first one \(3, 3\)"),
        ([(1, 2, 3)], "Item 0 of the dataset is 3 values"),
        ([], "is empty"),
        ([({"a": 1.0, "b": 2.0}, 0), ({"a": 1.0}, 1)], "Item 1 of the dataset lacks 'b', which the first one has"),
        ([({"a": 1.0}, 0), ({"a": 1.0, "b": 2.0}, 1)], "Item 1 of the dataset has 'b', which the first one has not"),
        ([({"a": 1.0}, 0), ({"b": 2.0}, 1)], "Item 1 of the dataset lacks 'a'.* and has 'b'"),
    ],
)
def test_bad_datasets_are_refused(items: list[Any], part: str) -> None:
    with pytest.raises(DataError, match=part):
        open_source(Listed(items), Data()).columns()


# ---------------------------------------------------------------- whole


def test_predict_reads_arrays() -> None:
    schema = open_source((X, Y), Data()).schema()
    columns, names = read_inputs([X[0], X[1:3]], schema)
    assert to_list(columns["x2"]) == X[:3, 2].tolist()
    assert names == ["row 1", "row 2", "row 3"]
    columns, _ = read_inputs([0.5, 1, 2], schema)
    assert to_list(columns["x0"]) == [0.5]
    with pytest.raises(DataError, match="row 1 has 2 values; the model reads 3"):
        read_inputs([X[0, :2]], schema)


def test_rows_of_arrays_are_in_the_order_of_the_training_data() -> None:
    x = np.c_[np.arange(40) % 3, X[:, 0], np.zeros(40), X[:, 1]]
    options = Data(types={"x0": "category"})
    schema = prepare(open_source((x, Y), options), options, 0).schema
    for row in (x[:1], x[:1, [0, 1, 3]], x[0].tolist()):  # all columns, or those that are read (x2 is constant)
        columns, _ = read_inputs([row], schema)
        assert {name: to_list(column) for name, column in columns.items()} == {
            "x1": [x[0, 1]],
            "x3": [x[0, 3]],
            "x0": [0.0],
        }


def test_a_fitted_schema_reads_another_file_in_the_same_way(tmp_path: Path) -> None:
    body = "".join(f"{i / 3},{['1.0', '2.0', 'u'][i % 3]},{'pq'[i % 2]}\n" for i in range(30))
    (tmp_path / "a.csv").write_text("a,code,y\n" + body)
    (tmp_path / "b.csv").write_text("a,code,y\n7,1.0,p\n")
    prepared = prepare(open_source("a.csv", Data()), Data(), 0)
    columns = open_source("b.csv", Data(), like=prepared.schema).columns()
    assert to_list(columns["code"]) == ["1.0"]
    assert prepared.schema.inputs["categories"].encode(columns).tolist() == [[1]]


@pytest.mark.parametrize(
    "given",
    [
        "digits",
        "iris",
        "diabetes",
        (X, Y),
        (X, np.eye(4)[Y]),
        (X, (np.arange(40)[:, None] >> np.arange(3)) & 1),
        pa.table(
            {
                "a": RNG.normal(size=40),
                "b": ["u", None, "v", "u"] * 10,
                "y": pa.array(["p", "q"] * 20).dictionary_encode(),
            }
        ),
    ],
)
def test_every_source_goes_through_prepare(given: Any) -> None:
    prepared = prepare(open_source(given, Data()), Data(), seed=0)
    assert sum(len(index) for index in prepared.splits.values()) == len(prepared.store)
    assert all(len(prepared.sets[part]) for part in ("train", "validation", "test"))
    assert prepared.schema.from_json(prepared.schema.to_json()).to_json() == prepared.schema.to_json()


def test_groups_with_gaps_and_codes_go_through_prepare() -> None:
    table = pa.table(
        {
            "a": RNG.normal(size=60),
            "who": pa.array(["u", "v", None, "w", "x", "z"] * 10).dictionary_encode(),
            "y": ["p", "q"] * 30,
        }
    )
    prepared = prepare(open_source(table, Data(group="who")), Data(group="who", test=0.3, validation=0.3), seed=0)
    assert prepared.blocks is not None
    assert len(set(prepared.blocks)) == 6
    sides = [set(prepared.blocks[index]) for index in prepared.splits.values()]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
