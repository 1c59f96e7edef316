"""Every row that cannot be read, or is read otherwise than one might think, stands in a file with its path and reason."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fathom.core.bad_rows import BadRow, BadRowsError, listing, named, told, write
from fathom.core.contract import Columns
from fathom.core.registry import fields
from kit import QUICK, cli, table


def picture(path: Path, size: tuple[int, int] = (12, 10), form: str | None = None, **options: Any) -> None:
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 255, (*size[::-1], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path, form, **options)


def cut(path: Path) -> None:
    picture(path, (64, 64))
    path.write_bytes(path.read_bytes()[:900])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {  # four of different kinds
    "cut.png": (cut, "it is damaged"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "the file is empty"),
    "range.tif": (lambda path: Image.new("F", (9, 9)).save(path), "it holds floating-point numbers"),
    "text.png": (lambda path: path.write_text("hello", "utf-8"), "it is not a picture in JPEG"),
}
POINT = "it has 1 x 1 pixels, too few to show anything"
NAMED = "its content is PNG and its name ends in .jpg, so that programs which go by the name may refuse it"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, four files that cannot be read, and three that can and are worth a look."""
    folder = tmp_path / "photos"
    for i in range(40):
        picture(folder / ("cat", "dog")[i % 2] / f"{i}.png")
    for name, (spoil, _) in FAULTS.items():
        spoil(folder / "cat" / name)
    picture(folder / "dog" / "point.png", (1, 1))
    for name in ("wrong1.jpg", "wrong2.JPG"):
        picture(folder / "dog" / name, form="PNG")
    return folder


def lines(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def unread(rows: list[list[str]], folder: str) -> bool:
    """Whether all four stand there, each with its path and reason."""
    return [(row[0], row[2]) for row in rows] == [(f"{folder}/cat/{name}", "no") for name in FAULTS] and all(
        row[1].startswith(reason) for row, (_, reason) in zip(rows, FAULTS.values(), strict=True)
    )


def test_a_refusal_names_three_and_the_list_of_all(photos: Path) -> None:
    said = cli("fit", "photos", "--steps", 2, *QUICK)
    assert said.code == 2
    assert "4 of 47 rows cannot be used: " in said.last
    assert all(f"cat/{name}: {FAULTS[name][1]}" in said.last for name in ("cut.png", "empty.jpg", "range.tif"))
    assert (
        "and 1 more. All are listed in runs/photos-bad-rows.csv. Mend them, or leave them out with data.bad_rows=0.11."
        in (said.last)
    )
    head, *rows = lines(Path("runs/photos-bad-rows.csv"))
    assert head == ["path", "reason", "used"]
    assert unread(rows, str(photos))
    assert cli("runs").code == 0, "the list is no run"


def test_a_run_lists_what_is_left_out_and_what_is_worth_a_look(photos: Path) -> None:
    """From the cache of decoded pictures too, and `plan` tells the same."""
    words = ("photos", "data.bad_rows=0.11", *QUICK)
    planned = cli("plan", *words, "--steps", 2)
    assert planned.code == 0, planned.err
    for _ in range(2):
        said = cli("fit", *words, "--steps", 2)
        assert said.code == 0, said.err
    for text in (planned.out, said.err):
        flat = " ".join(text.split())
        assert f"4 rows are left out: {photos}/cat/cut.png: it is damaged" in flat
        assert "and 1 more. " in flat
        assert f"1 row to look at, {photos}/dog/point.png: {POINT}." in flat
        assert f"2 rows to look at, the first {photos}/dog/wrong1.jpg: {NAMED}." in flat
        assert "bad-rows.csv in the run's folder lists these 7 rows." in flat
    first, second = (lines(Path("runs") / f"photos-{i}" / "bad-rows.csv") for i in (1, 2))
    assert first == second
    assert unread([row for row in first[1:] if row[2] == "no"], str(photos))
    used = {Path(row[0]).name: row[1] for row in first[1:] if row[2] == "yes"}
    assert used == {"point.png": POINT, "wrong1.jpg": NAMED, "wrong2.JPG": NAMED}


def test_a_prediction_and_an_evaluation_list_theirs(photos: Path) -> None:
    assert cli("fit", "photos", "data.bad_rows=0.11", "--steps", 2, "--name", "run", *QUICK).code == 0
    said = cli("predict", "runs/run", *(f"photos/cat/{name}" for name in FAULTS))
    assert said.code == 2
    assert "4 of 4 rows cannot be answered: photos/cat/cut.png: it is damaged" in said.last
    assert "All are listed in runs/run/bad-rows-predict.csv. Mend them, or leave them out." in said.last
    assert unread(lines(Path("runs/run/bad-rows-predict.csv"))[1:], "photos")
    said = cli("predict", "runs/run", "photos/dog/point.png", "photos/dog/wrong1.jpg")
    assert said.code == 0, said.err
    assert f"Note      photos/dog/point.png: I{POINT[1:]}." in said.err
    said = cli("evaluate", "runs/run", "photos")
    assert said.code == 0, said.err
    assert "bad-rows-evaluate.csv in the run's folder lists these 7 rows" in " ".join(said.out.split())
    assert len(lines(Path("runs/run/bad-rows-evaluate.csv"))) == 8


def test_a_prediction_answers_what_can_be_read(photos: Path) -> None:
    """Each bad row is named with its reason where it came, remarks stay with their rows, and it is no success."""
    assert cli("fit", "photos", "data.bad_rows=0.11", "--steps", 2, "--name", "run", *QUICK).code == 0
    Path("photos/cat/scan.heic").write_bytes(b"-")
    said = cli("predict", "runs/run", "photos", "--json")
    assert said.code == 2
    answers = json.loads(said.out)
    assert [answer["input"] for answer in answers] == sorted(answer["input"] for answer in answers)
    bad = {answer["input"]: answer for answer in answers if "error" in answer}
    assert list(bad) == [f"photos/cat/{name}" for name in FAULTS]
    for name, (_, reason) in FAULTS.items():
        assert set(bad[f"photos/cat/{name}"]) == {"input", "error"}
        assert f"Bad       photos/cat/{name}: {reason}" in said.err
    (point,) = (answer for answer in answers if answer["input"].endswith("point.png"))
    assert point["note"] == f"I{POINT[1:]}."
    assert said.err.count("photos/dog/point.png") == 1
    assert "1 file left out, with the extension of no picture (.heic): photos/cat/scan.heic." in said.err
    assert "4 inputs of 47 could not be read; the others are answered." in said.err
    alone = cli("predict", "runs/run", "photos/dog/point.png", "--json")
    assert alone.code == 0
    assert json.loads(alone.out)[0]["confidence"] == pytest.approx(point["confidence"], abs=1e-5)
    said = cli("predict", "runs/run", "photos", "-o", "answers.csv")
    assert said.code == 2
    assert "43 answers written to answers.csv" in said.err
    head, *rows = lines(Path("answers.csv"))
    assert [row[0] for row in rows if row[head.index("error")]] == list(bad)
    assert len(rows) == 47


def test_rows_of_a_table_are_listed_by_their_number(tmp_path: Path) -> None:
    table(tmp_path / "t.csv", extra="0.5,0.5,x,\n0.1,0.2,y,\n")
    said = cli("fit", "t.csv", "--target", "label", "--steps", 2, "data.bad_rows=0.1", "--network", "mlp", *QUICK)
    assert said.code == 0, said.err
    rows = lines(Path("runs/t-1/bad-rows.csv"))[1:]
    assert [row[0] for row in rows] == ["row 61", "row 62"]


def test_nothing_is_written_where_nothing_is_bad(tmp_path: Path) -> None:
    table(tmp_path / "t.csv")
    assert cli("fit", "t.csv", "--target", "label", "--steps", 2, "--network", "mlp", *QUICK).code == 0
    assert not list(tmp_path.rglob("bad-rows*"))


@pytest.mark.parametrize(
    ("ending", "form", "remark"),
    [
        (".jpg", "JPEG", ""), (".JPEG", "JPEG", ""), (".png", "PNG", ""), (".tif", "TIFF", ""), (".pgm", "PPM", ""),
        (".other", "PNG", ""), (".png", "JPEG", "its content is JPEG and its name ends in .png"),
        (".gif", "WEBP", "its content is WEBP and its name ends in .gif"),
    ],
)  # fmt: skip
def test_a_name_that_says_another_format_is_remarked(ending: str, form: str, remark: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    picture(path, form=form)
    item = fields["image"].make(["image"])
    item.state = {"shape": [3, 8, 8], "mean": [0.0] * 3, "std": [1.0] * 3, "factor": 1}
    item.encode(Columns({"image": [str(path)]}))
    assert list(item.remarks) == ([0] if remark else [])
    assert item.remarks.get(0, "").startswith(remark)
    item.encode(Columns({"image": [path.read_bytes()]}))
    assert not item.remarks, "bytes have no name"


def test_two_remarks_about_one_picture_are_both_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", (1, 3), "PNG")
    item = fields["image"].make(["image"])
    item.state = {"shape": [3, 8, 8], "mean": [0.0] * 3, "std": [1.0] * 3, "factor": 1}
    item.encode(Columns({"image": [str(tmp_path / "a.jpg")]}))
    assert item.remarks[0] == f"it has 1 x 3 pixels, too few to show anything; {NAMED}"


# ---------------------------------------------------------------- the sentences


def test_sentences_name_three() -> None:
    rows = [BadRow(f"{i}.png", "why", used=False) for i in range(5)]
    assert named(rows[:2]) == "0.png: why; 1.png: why"
    assert named(rows) == "0.png: why; 1.png: why; 2.png: why and 2 more"
    assert told([]) == []
    assert told(rows[:1]) == ["1 row is left out: 0.png: why.", "bad-rows.csv in the run's folder lists this row."]


def test_a_path_is_no_formula(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", [BadRow("=1+1.png", "it, too", used=True), BadRow("-a.png", "b", used=False)])
    assert lines(tmp_path / "b.csv")[1:] == [["./=1+1.png", "it, too", "yes"], ["./-a.png", "b", "no"]]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = BadRowsError("2 of 3 rows cannot be used", [BadRow("a", "b", used=False)], "Mend them.")
    with pytest.raises(BadRowsError) as caught, listing(tmp_path / "file" / "bad-rows.csv"):
        raise error
    said = str(caught.value)
    assert said.startswith("2 of 3 rows cannot be used: a: b. They cannot be listed in a file: ")
    assert said.endswith(" Mend them.")
    assert caught.value.rows == error.rows
