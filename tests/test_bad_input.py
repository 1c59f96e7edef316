"""What users do wrong: each case leaves with exit code 2 and at most six lines that name the place and the remedy.

A case is a maker of the command line and the words that the answer must hold. The makers write tiny data beside them.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fathom.core.run import CheckpointStore, RunFolder, load_tensors, save_tensors
from kit import QUICK, cli, table

Words = list[str]


# ---------------------------------------------------------------- data


def picture(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (12, 10), **options: object) -> Path:
    """A picture of noise; the ending says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def photos(folder: Path, classes: tuple[str, ...] = ("cats", "dogs"), each: int = 10) -> Path:
    """A folder of class folders."""
    for number, name in enumerate(classes):
        for i in range(each):
            picture(folder / name / f"{i}.png", 100 * number + i)
    return folder


def written(path: Path, content: str | bytes) -> Path:
    """A file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def bomb(path: Path, side: int = 50_000) -> Path:
    """A small PNG whose header claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return written(path, b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@dataclass(frozen=True)
class Place:
    """Where a case works: its own folder, and two finished runs that it must not change."""

    folder: Path
    tabular: Path
    pictorial: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def table(self, extra: str = "", rows: int = 60) -> str:
        """The path of a small table."""
        return str(table(self.folder / "t.csv", rows, extra=extra))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a table with two checkpoints, and one on pictures."""
    folder = tmp_path_factory.mktemp("finished")
    out = ("--out", str(folder / "runs"), "--steps", "6", "--batch", "8", *QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_CACHE", str(folder / "cache"))
        made = table(folder / "t.csv")
        assert cli("fit", made, *out, "--name", "table", "training.checkpoint_seconds=0").code == 0
        assert cli("fit", photos(folder / "photos"), *out, "--name", "photos").code == 0
    return folder / "runs" / "table", folder / "runs" / "photos"


@pytest.fixture
def place(tmp_path: Path, finished: tuple[Path, Path]) -> Place:
    """A fresh folder, and copies of the finished runs."""
    import shutil

    copies = [Path(shutil.copytree(run, tmp_path / "runs" / run.name)) for run in finished]
    return Place(tmp_path, *copies)


# ---------------------------------------------------------------- makers of command lines


def lacking_class(place: Place) -> Words:
    return ["fit", str(photos(place / "photos", ("cats",)))]


def beside_photos(place: Place) -> Words:
    photos(place / "photos", each=1)
    return ["fit", str(place / "phots")]


def empty_folder(place: Place) -> Words:
    (place / "nothing").mkdir()
    return ["fit", str(place / "nothing")]


def one_bad_picture(name: str, content: Callable[[Path], object]) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        folder = photos(place / "photos")
        content(folder / "cats" / name)
        return ["fit", str(folder)]

    return make


def cut_picture(path: Path) -> None:
    picture(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:900])


def csv(content: str | bytes, *words: str) -> Callable[[Place], Words]:
    return lambda place: ["fit", str(written(place / "d.csv", content)), *words]


def good(*words: str) -> Callable[[Place], Words]:
    """A sound table, and words that are wrong."""
    return lambda place: ["fit", place.table(), *words]


def pictures(*words: str) -> Callable[[Place], Words]:
    """Sound pictures, and words that are wrong."""
    return lambda place: ["fit", str(photos(place / "photos")), *words]


def file(name: str, content: str | bytes, *words: str) -> Callable[[Place], Words]:
    return lambda place: ["fit", str(written(place / name, content)), *words]


def rows(*lines: str, repeat: int = 1) -> str:
    """Lines of a CSV with the header a,b,label."""
    return "\n".join(["a,b,label", *(lines * repeat)]) + "\n"


def recipe(content: str) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        place.table()
        return ["fit", str(written(place / "r.toml", content))]

    return make


def many(count: int = 24) -> list[str]:
    """Different sound rows of a,b,label."""
    return [f"{i},{i * 7 % 11},{'yes' if i % 2 else 'no'}" for i in range(count)]


def wide(place: Place) -> Words:
    """10^5 columns, and one cell too few in the second row."""
    names = ",".join(f"c{i}" for i in range(100_000))
    cells = ",".join(["1"] * 100_000)
    return ["fit", str(written(place / "w.csv", f"{names}\n{cells}\n{cells},1\n"))]


def same_rows(place: Place) -> Words:
    return ["fit", place.table(), "--valid", str(table(place / "v.csv")), "--test", str(table(place / "v2.csv"))]


def strange_test_class(place: Place) -> Words:
    folder = photos(place / "photos" / "train").parent
    photos(folder / "test", ("cats", "dgs"), 3)
    return ["fit", str(folder)]


def reshaped(place: Place) -> Words:
    path = place.tabular / "model" / "weights.safetensors"
    tensors, about = load_tensors(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    save_tensors(path, tensors, about)
    return ["predict", str(place.tabular), place.table()]


def not_finite(place: Place) -> Words:
    path = place.tabular / "model" / "weights.safetensors"
    tensors, about = load_tensors(path)
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = float("nan")
    save_tensors(path, tensors, about)
    return ["predict", str(place.tabular), place.table()]


def turned(name: str, *words: str) -> Callable[[Place], Words]:
    """One byte of a file of the run is another."""

    def make(place: Place) -> Words:
        path = place.tabular / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x01
        path.write_bytes(data)
        return [words[0], str(place.tabular), *words[1:], *([place.table()] if words[0] == "predict" else [])]

    return make


def without(name: str) -> Callable[[Place], Words]:
    def make(place: Place) -> Words:
        (place.tabular / name).unlink()
        return ["predict", str(place.tabular), place.table()]

    return make


def all_checkpoints_bad(place: Place) -> Words:
    for path in CheckpointStore(place.tabular / "checkpoints").paths():
        path.write_bytes(path.read_bytes()[:100])
    (place.tabular / "results.json").unlink()
    return ["fit", "--resume", str(place.tabular)]


def changed_data(place: Place) -> Words:
    made = table(place / "t.csv", seed=1)
    text = (place.tabular / "recipe.toml").read_text("utf-8")
    location = next(line for line in text.splitlines() if line.startswith("location"))
    (place.tabular / "recipe.toml").write_text(text.replace(location, f"location = {json.dumps(str(made))}"), "utf-8")
    (place.tabular / "results.json").unlink()
    return ["fit", "--resume", str(place.tabular)]


def on_run(verb: str, *words: str, kind: str = "tabular") -> Callable[[Place], Words]:
    return lambda place: [verb, str(getattr(place, kind)), *words]


def predict(
    content: str | bytes, name: str = "new.csv", kind: str = "tabular", *words: str
) -> Callable[[Place], Words]:
    return lambda place: ["predict", str(getattr(place, kind)), str(written(place / name, content)), *words]


def resume(*words: str) -> Callable[[Place], Words]:
    return lambda place: ["fit", "--resume", str(place.tabular), *words]


def no_target(place: Place) -> Words:
    return ["evaluate", str(place.tabular), str(written(place / "n.csv", "a,b,c\n1,2,x\n2,3,y\n"))]


def out_is_a_file(place: Place) -> Words:
    return ["fit", place.table(), "--out", str(written(place / "taken", "x"))]


def object_npz(path: Path) -> bytes:
    np.savez(path, x=np.array([{"a": 1}, {"b": 2}], dtype=object), y=np.arange(2))
    return path.read_bytes()


THREE = '[training]\nepochs = -1\noptimzer = "adam"\n[network]\nname = "mpl"\n[data]\nlocation = "t.csv"\n'
SAME = [f"{i},{i * 7 % 11},yes" for i in range(12)]
ENDS = [*many(), "1,2", "3,4,no"]

CASES: dict[str, tuple[Callable[[Place], Words], tuple[str, ...]]] = {
    # paths and folders
    "nothing named": (lambda place: ["fit"], ("fathom fit digits",)),
    "missing path": (beside_photos, ("phots", "Did you mean", "photos")),
    "misspelt built-in": (lambda place: ["fit", "digit"], ("'digit'", "'digits'")),
    "empty folder": (empty_folder, ("nothing is empty", "FOLDER/cats/1.jpg")),
    "one class": (lacking_class, ("one class folder only", "'cats'")),
    "unread extension": (file("model.docx", "x"), (".docx", ".csv")),
    "archive": (file("data.zip", "PK"), ("Unpack it first",)),
    # pictures
    "cut picture": (one_bad_picture("cut.png", cut_picture), ("cut.png", "damaged", "data.bad_rows=")),
    "empty picture": (one_bad_picture("empty.jpg", lambda path: written(path, b"")), ("empty.jpg", "is empty")),
    "page as picture": (one_bad_picture("page.jpg", lambda p: written(p, "<html>")), ("page.jpg", "not a picture", "JPEG")),
    "huge picture": (one_bad_picture("huge.png", bomb), ("huge.png", "pixels")),
    "class in test only": (strange_test_class, ("'dgs'", "dogs")),
    # tables
    "ragged rows": (csv("a,b,label\n" + "\n".join(ENDS) + "\n"), ("line 26", "3")),
    "bad encoding": (csv(rows("é,2,yes", "4,5,no").encode() + b"\xff,3,no\n"), ("0xff", "line 4", "UTF-8")),
    "damaged UTF-16": (csv(rows("1,2,yes").encode("utf-16") + b"\x00\xd8\x0a\x00"), ("UTF-16", "line 3", "UTF-8")),
    "duplicate header": (csv("a,a,label\n1,2,yes\n2,3,no\n"), ("'a' (2 times)", "line 1")),
    "NUL bytes": (csv(b"a,b,label\n1,2,yes\n3,\x00,no\n"), ("NUL", "line 3")),
    "10^5 columns": (wide, ("w.csv", "line 3", "100001", "100000")),
    "empty table": (csv(""), ("is empty", "header")),
    "header only": (csv("a,b,label\n"), ("no rows",)),
    "open quote": (csv('a,b,label\n1,2,yes\n3,"4,no\n5,6,yes\n'), ("quote", "line 3")),
    "unknown target": (good("--target", "lable"), ("'lable'", "'label'", "t.csv")),
    "constant target": (csv(rows(*SAME)), ("'label'", "'yes' in every row", "--target")),
    "target without a value": (csv("a,b,label\n" + "1,2,\n3,4,\n5,6,\n"), ("'label'", "no value")),
    "mixed types": (csv(rows(*many(), "oops,3,no")), ("line 26", "'a'", "'oops'", "data.types.a")),
    "infinite number": (csv(rows(*many(), "1e999,3,no")), ("line 26", "'a'", "infinite")),
    "too few rows": (csv(rows("1,2,yes", "2,3,no")), ("split would be empty", "2 rows")),
    "same validation and test": (same_rows, ("v.csv", "hold the same rows", "60 of 60")),
    "unknown input": (good("--input", "a,bb"), ("'bb'", "'b'", "data.input")),
    "unknown group": (good("--group", "grp"), ("'grp'", "data.group")),
    "words as time": (good("--time", "c"), ("data.time", "'c'", "YYYY-MM-DD")),
    "damaged gzip": (file("d.csv.gz", gzip.compress(b"a,b\n" * 500)[:40]), ("d.csv.gz", "damaged")),
    "damaged Parquet": (file("d.parquet", b"PAR1 nothing PAR1"), ("d.parquet",)),
    "bad JSON line": (file("d.jsonl", '{"a": 1, "label": "x"}\n{"a": 2,\n'), ("d.jsonl", "line 2")),
    "npz without arrays": (file("d.npz", b"PK nothing"), ("d.npz", "readable .npz")),
    "npz of objects": (lambda place: (object_npz(place / "o.npz"), ["fit", str(place / "o.npz")])[1], ("o.npz", "plain arrays")),
    # words on the command line
    "misspelt verb": (lambda place: ["fitt", "digits"], ("fitt", "fit")),
    "misspelt flag": (good("--epoch", "3"), ("--epoch", "--epochs")),
    "flag of another type": (good("--seed", "abc"), ("--seed", "whole number", "fathom fit --help")),
    "misspelt key": (good("network.droput=0.5", "--network", "mlp"), ("network.droput", "'network.dropout'")),
    "misspelt key, network guessed": (good("network.droput=0.5"), ("network.droput", "network.dropout")),
    "misspelt section": (good("trainin.epochs=1"), ("'trainin'", "'training'")),
    "misspelt network": (good("--network", "resnt"), ("'resnt'", "'resnet'")),
    "misspelt algorithm": (good("--algorithm", "supervized"), ("'supervized'", "'supervised'")),
    "misspelt augmentation": (pictures("augment.flp=0.5"), ("'flp'", "'flip'")),
    "misspelt loss": (good("supervised.loss=cros_entropy"), ("cros_entropy", "cross_entropy")),
    "misspelt optimizer": (good("training.optimizer=adma"), ("training.optimizer = 'adma'", "'adam'")),
    "misspelt monitor": (good("training.monitor=acuracy"), ("'acuracy'", "'accuracy'", "training.monitor")),
    "value out of range": (good("network.dropout=1.5", "--network", "mlp"), ("network.dropout = 1.5", "less than")),
    "negative budget": (good("--epochs", "-1"), ("training.epochs = -1", "greater than 0")),
    "augmentation too strong": (pictures("augment.flip=7"), ("augment.flip = 7", "from 0")),
    "word that is no key": (good("dropout"), ("'dropout'", "section.key=value")),
    "network for other data": (good("--network", "cnn"), ("cnn", "picture", "mlp")),
    "misspelt layer": (pictures('network.layers=["conv 8 3 rel", "flatten"]'), ("rel", "relu")),
    "unknown positive class": (good("data.category.positive=ye"), ("'ye'", "yes")),
    "too many folds": (lambda place: ["fit", place.table(rows=12), "--folds", "50"], ("training.folds = 50", "12")),
    "absent GPU": (good("--device", "cuda:7"), ("cuda:7", "cpu")),
    "--out is a file": (out_is_a_file, ("taken", "--out")),
    "--out impossible": (good("--out", "/proc/none/runs"), ("/proc/none/runs", "--out")),
    "name is taken": (good("--name", "table"), ("runs/table", "--resume", "--name")),
    "name leaves the folder": (good("--name", "../gone"), ("../gone", "--out")),
    # recipes
    "three faults": (recipe(THREE), ("3 faults", "training.epochs = -1", "'training.optimizer'", "'mlp'")),
    "no TOML": (recipe("[data\nlocation = 1"), ("r.toml", "line 1")),
    "missing recipe": (lambda place: ["fit", "gone.toml"], ("gone.toml",)),
    "class path": (recipe('data.location = "t.csv"\n[network]\nname = "mlp"\n_target_ = "os.system"\n'), ("network._target_",)),
    "table is no table": (recipe('network = 3\n[data]\nlocation = "t.csv"\n'), ("network should be a table", "3")),
    # runs
    "evaluate what is no run": (lambda place: ["evaluate", str(place.folder)], ("not a run folder", "recipe.toml")),
    "misspelt run": (lambda place: ["report", "tabel"], ("'tabel'", "runs/table")),
    "predict what is no run": (lambda place: ["predict", "nowhere", "x.csv"], ("'nowhere'", "does not exist")),
    "resume what is no run": (lambda place: ["fit", "--resume", "tabel"], ("'tabel'", "runs/table")),
    "compare with nothing": (on_run("compare"), ("two or more",)),
    "compare what is no run": (on_run("compare", "tabel"), ("'tabel'", "runs/table")),
    "misspelt list": (lambda place: ["list", "network"], ("'network'", "'networks'")),
    "resume with another rate": (resume("--lr", "0.1"), ("training.learning_rate", "new")),
    "resume on other data": (changed_data, ("data", "changed")),
    "weights of another shape": (reshaped, ("weights.safetensors", "tensor", "(")),
    "weights that are not finite": (not_finite, ("weights.safetensors", "not finite")),
    "damaged weights": (turned("model/weights.safetensors", "predict"), ("weights.safetensors", "damaged", "checksum")),
    "damaged model.json": (turned("model/model.json", "predict"), ("model.json", "damaged")),
    "damaged results": (turned("results.json", "compare", "runs/photos"), ("results.json", "damaged")),
    "missing model.json": (without("model/model.json"), ("model.json is missing",)),
    "missing weights": (without("model/weights.safetensors"), ("weights.safetensors is missing",)),
    "every checkpoint damaged": (all_checkpoints_bad, ("Every checkpoint", "damaged")),
    # new inputs
    "missing column at predict": (predict("a,bb,c\n1,2,x\n"), ("new.csv", "'b'", "'bb'")),
    "word for a number at predict": (predict("a,b,c\n1,two,x\n"), ("new.csv", "line 2", "'b'", "'two'")),
    "missing file at predict": (on_run("predict", "nwe.csv"), ("nwe.csv does not exist",)),
    "picture for a table": (predict(b"\x89PNG", "cat.png"), ("cat.png", "no table", ".csv")),
    "damaged picture at predict": (predict(b"\x89PNG", "cat.png", "pictorial"), ("cat.png", "cannot be answered")),
    "ending of the answers": (predict("a,b,c\n1,2,x\n", "new.csv", "tabular", "-o", "answers.xls"), ("'.xls'", ".csv")),
    "evaluate without the target": (no_target, ("n.csv", "'label'")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, place: Place) -> None:
    """Exit code 2, at most six lines, no traceback; the place and the nearest valid choice are named."""
    make, expected = CASES[name]
    words = make(place)
    said = cli(*words)
    assert said.code == 2, said
    assert "Traceback" not in said.err
    assert said.last.strip().count("\n") < 6, said.last
    assert said.out == ""
    for text in expected:
        assert text in said.last, said.last


def test_enough_cases() -> None:
    """The table may grow, not shrink."""
    assert len(CASES) >= 80


def test_words_that_no_case_has_seen(place: Place) -> None:
    """Every one-letter slip in the name of a network, optimizer or key is answered with the right name."""
    made = place.table()
    for wrong, right in (("ml", "mlp"), ("reset", "resnet"), ("compsite", "composite"), ("cn", "cnn")):
        assert f"'{right}'" in cli("fit", made, "--network", wrong).last
    for wrong, right in (("adamv", "adamw"), ("sdg", "sgd"), ("rmsporp", "rmsprop")):
        assert f"'{right}'" in cli("fit", made, f"training.optimizer={wrong}").last


# ---------------------------------------------------------------- what has a defined answer


def pixels(path: Path) -> np.ndarray:
    """What the image field makes of one file."""
    from fathom.fields.image import open_picture

    return np.asarray(open_picture(str(path)))


def test_odd_pictures_are_decoded_right(tmp_path: Path) -> None:
    """CMYK, 16 bits, palettes with transparency and rotated photos are read as they look, and train."""
    white = Image.new("RGB", (16, 12), "white")
    folder = photos(tmp_path / "photos")
    white.convert("CMYK").save(folder / "cats" / "cmyk.jpg")
    assert pixels(folder / "cats" / "cmyk.jpg").shape == (12, 16, 3)
    assert pixels(folder / "cats" / "cmyk.jpg").min() > 250  # CMYK white is not black
    deep = np.linspace(0, 65535, 16 * 12).reshape(12, 16).astype(np.uint16)
    Image.fromarray(deep).save(folder / "cats" / "deep.png")
    grey = pixels(folder / "cats" / "deep.png")
    assert grey.dtype == np.uint8
    assert np.abs(grey - deep / 257).max() <= 1
    clear = Image.new("RGBA", (16, 12), (255, 0, 0, 0))
    clear.save(folder / "dogs" / "clear.png")
    assert pixels(folder / "dogs" / "clear.png").min() == 255  # laid on white
    left = np.zeros((12, 16, 3), np.uint8)
    left[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: the left half belongs at the top
    Image.fromarray(left).save(folder / "dogs" / "turned.jpg", exif=exif, quality=95)
    upright = pixels(folder / "dogs" / "turned.jpg")
    assert upright.shape == (16, 12, 3)
    assert upright[:6].mean() > 240
    assert upright[10:].mean() < 15
    said = cli("fit", str(folder), "--steps", "4", "--json", *QUICK)
    assert said.code == 0, said.err
    assert sum(json.loads(said.out)["splits"].values()) == 24  # none was dropped


def test_a_new_category_is_answered(place: Place) -> None:
    """A word that training did not see is answered like an unknown one, and missing cells too."""
    new = written(place / "new.csv", "a,b,c\n0.9,0.1,never seen\n,0.1,x\n0.2,,\n")
    said = cli("predict", str(place.tabular), str(new), "--json")
    assert said.code == 0, said.err
    answers = json.loads(said.out)
    assert len(answers) == 3
    assert all(answer["answer"] in ("yes", "no") for answer in answers)


def test_what_cannot_be_judged_or_learnt_is_told(place: Place) -> None:
    """A class of one row and a column without values do not stop training; both are named."""
    lines = [f"{i},{i * 7 % 11},,{'yes' if i % 2 else 'no'}" for i in range(40)] + ["5,6,,maybe"]
    said = cli("fit", str(written(place / "d.csv", "\n".join(["a,b,hollow,label", *lines]))), "--steps", "3", *QUICK)
    assert said.code == 0, said.err
    assert "Too few rows of maybe" in said.err
    assert "hold no value: hollow" in said.err


def test_few_bad_pictures_are_left_out_by_name(tmp_path: Path) -> None:
    """Below the share of data.bad_rows training goes on, and the file and reason are told."""
    folder = photos(tmp_path / "photos")
    written(folder / "cats" / "page.jpg", "<html>")
    said = cli("fit", str(folder), "data.bad_rows=0.1", "--steps", "3", *QUICK)
    assert said.code == 0, said.err
    assert "1 row is left out" in said.err
    assert "page.jpg: it is not a picture" in said.err


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(place: Place) -> None:
    """The run goes on from the previous checkpoint and ends with the same weights."""
    wanted = (place.tabular / "model" / "weights.safetensors").read_bytes()
    before, last = CheckpointStore(place.tabular / "checkpoints").paths()
    last.write_bytes(last.read_bytes()[:-20])
    (place.tabular / "results.json").unlink()
    (place.tabular / "model" / "weights.safetensors").unlink()
    said = cli("fit", "--resume", str(place.tabular))
    assert said.code == 0, said.err
    assert f"{last.name} is damaged" in said.err
    assert "The checkpoint before it is used instead." in said.err
    assert before.name < last.name
    assert (place.tabular / "model" / "weights.safetensors").read_bytes() == wanted


# ---------------------------------------------------------------- disks


def full(*_: object, **__: object) -> None:
    """A disk without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_saved(function: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says how much was needed and is free; the old checkpoints are whole and no half file is left."""
    store = RunFolder(place.tabular).checkpoints
    names = [path.name for path in store.paths()]
    (place.tabular / "results.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(f"fathom.core.run.os.{function}", full)
        said = cli("fit", "--resume", str(place.tabular), "--steps", "9", "training.threads=1")
    assert said.code == 2
    assert "the disk is full" in said.last
    assert "MB needed" in said.last
    assert [path.name for path in store.paths()] == names
    assert not list(place.tabular.rglob("*.part"))
    assert store.load()[0] is not None
    assert cli("fit", "--resume", str(place.tabular)).code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only, and not in every container")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle(small_disk: Path, tmp_path: Path) -> None:
    """A real full disk: one sentence, and the newest whole checkpoint is still read."""
    made = table(tmp_path / "t.csv")
    words = ("--out", str(small_disk), "--steps", "30", "--name", "run", "training.checkpoint_seconds=0", *QUICK)
    said = cli("fit", made, *words)
    assert said.code == 2, said
    assert "the disk is full" in said.last
    assert "Traceback" not in said.err
    state, notes = RunFolder(small_disk / "run").checkpoints.load()
    assert state is None or state["clock"]["total"] >= 1
    assert notes == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(place: Place) -> None:
    """Read-only --out is refused with the way out."""
    folder = place / "locked"
    folder.mkdir(mode=0o500)
    said = cli("fit", place.table(), "--out", str(folder))
    assert said.code == 2
    assert "Choose another with --out" in said.last


def test_answers_that_cannot_be_written(place: Place) -> None:
    """A path that is no place for a file."""
    said = cli("predict", str(place.tabular), place.table(), "-o", "/proc/none/answers.csv")
    assert said.code == 2
    assert "answers.csv could not be written" in said.last


def test_python_raises_the_same_sentences(place: Place) -> None:
    """`fathom.fit` says what the command line says."""
    import fathom
    from fathom.core.errors import FathomError

    with pytest.raises(FathomError, match="Did you mean 'epochs'"):
        fathom.fit(place.table(), epoch=3)
    with pytest.raises(FathomError, match="Did you mean 'resnet'"):
        fathom.fit(place.table(), network="resnt")
    with pytest.raises(FathomError, match="cannot be read as data"):
        fathom.fit(object())
    with pytest.raises(FathomError, match="has 3, y has 2 rows"):
        fathom.fit((np.zeros((3, 2)), [0, 1]))


def test_debug_shows_where(place: Place) -> None:
    """`--debug` lets the error through with its traceback."""
    from fathom.core.errors import FathomError

    with pytest.raises(FathomError, match="digit"):
        cli("--debug", "fit", "digit")


def test_empty_stream_is_named(tmp_path: Path) -> None:
    """An empty gzip file is an empty table."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb"):
        pass
    said = cli("fit", str(written(tmp_path / "e.csv.gz", buffer.getvalue())))
    assert said.code == 2
    assert "e.csv.gz is empty" in said.last
