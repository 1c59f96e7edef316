"""Where texts come from: tables, books, aligned lines, dialogues, and what comes to predict; with each refusal."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.contract import Schema
from fathom.core.errors import DataError
from fathom.core.prepare import prepare
from fathom.core.recipe import Data, Recipe
from fathom.core.tensors import to_list
from fathom.fields.text import END, START, TURN, Text
from fathom.sources import open_source, read_inputs
from fathom.sources.texts import PIECE, lines, pieces, read_text


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def kinds(source: Any) -> dict[str, str]:
    schema = source.schema()
    return {name: item.kind for name, item in schema.fields().items()}


def sentences(count: int) -> list[str]:
    return [f"this is sentence number {i} of them" for i in range(count)]


def options(**given_options: Any) -> Data:
    return Recipe.parse({"data": given_options}).data


# ---------------------------------------------------------------- tables


def test_texts_are_inputs_of_their_own() -> None:
    table = pa.table(
        {
            "id": [f"a/{i}_7.txt" for i in range(60)],
            "title": sentences(60),
            "text": sentences(60)[::-1],
            "label": [0, 1] * 30,
        }
    )
    source = open_source(table, options(text={"vocabulary": 50, "length": 3}))
    schema = source.schema()
    assert {name: (item.kind, item.columns) for name, item in schema.inputs.items()} == {
        "title": ("text", ("title",)),
        "text": ("text", ("text",)),
    }
    title = schema.inputs["title"]
    assert isinstance(title, Text)
    assert (title.level, title.vocabulary, title.length) == ("word", 50, 3)
    assert "they number or name the rows: id" in " ".join(source.notes())


def test_single_words_are_left_out_and_kinds_can_be_said() -> None:
    table = pa.table({"code": [f"C{i % 45}" for i in range(90)], "x": [i / 7 for i in range(90)], "y": ["a", "b"] * 45})
    assert "single words with many different values: code" in " ".join(open_source(table, Data()).notes())
    schema = open_source(table, Data(types={"code": "text", "x": "text"})).schema()
    assert [item.kind for item in schema.inputs.values()] == ["text", "text"]


def test_a_text_named_as_the_numbers_are() -> None:
    table = pa.table(
        {"numbers": sentences(60), ".row": sentences(60), "x": [i / 7 for i in range(60)], "y": [0, 1] * 30}
    )
    assert list(open_source(table, Data()).schema().inputs) == ["numbers", "numbers (text)", "row"]


def test_one_column_that_decides_alone_is_told() -> None:
    stars = [1, 2, 3, 8, 9, 10] * 20
    table = pa.table({"rating": stars, "other": [i % 7 for i in range(120)], "label": [int(s > 5) for s in stars]})
    told = [note for note in open_source(table, Data()).notes() if "alone decides" in note]
    assert told == [
        "rating alone decides 'label' in every row. Where it is known only afterwards, leave it out with "
        "data.types.rating=ignore."
    ]
    stars[3] = 1  # one row speaks against it
    table = table.set_column(0, "rating", pa.array(stars))
    assert not [note for note in open_source(table, Data()).notes() if "alone decides" in note]


def test_translation_is_guessed() -> None:
    table = pa.table(
        {"en": sentences(60), "de": [f"das ist Satz Nummer {i} davon" for i in range(60)], "fr": sentences(60)}
    )
    schema = open_source(table, Data(input=["de"], target=["en"])).schema()
    assert (list(schema.inputs), list(schema.targets)) == (["de"], ["en"])
    fields = schema.fields()
    assert {name: (item.kind, item.level) for name, item in fields.items() if isinstance(item, Text)} == {
        "de": ("text", "bytepair"),
        "en": ("text", "bytepair"),
    }
    assert list(open_source(table, Data()).schema().inputs) == ["en", "de"]


def test_prompt_and_reply_with_a_category() -> None:
    table = pa.table({"topic": ["a", "b"] * 30, "prompt": sentences(60), "reply": sentences(60)[::-1]})
    source = open_source(table, Data())
    assert kinds(source) == {"prompt": "text", "reply": "text"}
    assert "Left out, since 'reply' is written from texts: topic." in source.notes()


def test_texts_without_an_input() -> None:
    table = pa.table({"n": range(60), "joke": sentences(60)})
    assert kinds(open_source(table, Data(target=["joke"], types={"joke": "text", "n": "ignore"}))) == {"joke": "text"}
    assert kinds(open_source(table.select(["joke"]), Data(types={"joke": "text"}))) == {"joke": "text"}


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ({"target": ["t"]}, ["'t' is text with 60 different values", "no classes", "=text, to write it"]),
        ({"target": ["t"], "types": {"t": "text"}}, ["'t' is written from texts, and x is none", "data.types.x=text"]),
        ({"target": ["t"], "types": {"t": "text"}, "input": ["x", "u"]}, ["'t' is written from texts, and x is none"]),
        ({"target": ["t", "y"], "types": {"t": "text"}}, ["'t' is a text to be written, which stands alone"]),
    ],
)
def test_texts_are_not_written_from_numbers(asked: dict[str, Any], parts: list[str]) -> None:
    table = pa.table({"x": [i / 7 for i in range(60)], "y": [0, 1] * 30, "t": sentences(60), "u": sentences(60)})
    if "input" not in asked:
        table = table.drop_columns(["u"] if "y" in asked["target"] else ["u", "y"])
    with pytest.raises(DataError) as caught:
        open_source(table, Data(**asked)).schema()
    assert all(part in str(caught.value) for part in parts), caught.value


def test_numbers_and_dates_in_a_text_stay_as_they_are(tmp_path: Path) -> None:
    body = "".join(f"007,{s},{'ab'[i % 2]}\n" for i, s in enumerate(sentences(60)))
    path = write(tmp_path / "t.csv", "code,text,label\n" + body)
    source = open_source(path, Data(types={"code": "text"}))
    assert to_list(source.columns()["code"])[0] == "007"
    field = Text(["text"])
    schema = Schema({"text": field}, {})
    one = write(tmp_path / "one.csv", "text\n2024-01-01\n")
    assert to_list(read_inputs([str(one)], schema)[0]["text"]) == ["2024-01-01"]


def test_python_lists() -> None:
    texts: list[str | None] = [*sentences(59), None]
    source = open_source((texts, [0, 1] * 30), Data())
    (field,) = source.schema().inputs.values()
    assert field.kind == "text"
    assert to_list(source.columns()[field.columns[0]])[-1] is None


# ---------------------------------------------------------------- a book


@given(st.text(alphabet=st.sampled_from("ab \n\r\t.é\u2028"), min_size=1, max_size=500))
def test_pieces_end_to_end_are_the_text(text: str) -> None:
    found = pieces(text)
    assert "".join(found) == text
    assert all(found)


def test_pieces_end_with_lines() -> None:
    text = "".join(f"{i} {'word ' * (i % 20)}\n" for i in range(20_000))
    found = pieces(text)
    assert all(piece.endswith("\n") for piece in found)
    assert max(map(len, found)) < PIECE + 120
    assert min(map(len, found[:-1])) >= PIECE


def test_a_line_of_a_megabyte() -> None:
    for text in ("x" * 1_000_000, "xy " * 333_333):
        found = pieces(text)
        assert "".join(found) == text
        assert max(map(len, found)) <= 2 * PIECE


def test_book(tmp_path: Path) -> None:
    text = "".join(f"Line {i} of the book.\r\n" for i in range(5000))
    for path in (write(tmp_path / "b.txt", text), write(tmp_path / "b.txt.gz", gzip.compress(text.encode()))):
        source = open_source(path, Data())
        schema = source.schema()
        assert (schema.inputs, list(schema.targets)) == ({}, ["text"])
        field = schema.targets["text"]
        assert isinstance(field, Text)
        assert (field.level, field.continuous) == ("character", True)
        assert "".join(to_list(source.columns()["text"])) == text
        parts = source.given_splits()
        order = [row for part in ("train", "validation", "test") for row in parts[part].tolist()]
        assert order == list(range(source.columns().rows))
        shares = {name: len(index) / len(order) for name, index in parts.items()}
        assert shares == pytest.approx({"train": 0.85, "validation": 0.05, "test": 0.1}, abs=0.02)
    asked = open_source(path, options(validation=0.2, test=0.3, text={"level": "bytepair"}))
    shares = {name: len(index) / len(order) for name, index in asked.given_splits().items()}
    assert shares == pytest.approx({"train": 0.5, "validation": 0.2, "test": 0.3}, abs=0.02)
    assert asked.schema().targets["text"].level == "bytepair"  # type: ignore[attr-defined]


def test_book_is_prepared_from_its_beginning(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(3000)) + "\N{GREEK SMALL LETTER OMEGA}\n"
    prepared = prepare(open_source(write(tmp_path / "b.txt", text), Data()), Data(), 0)
    field = prepared.schema.targets["text"]
    assert isinstance(field, Text)
    train = prepared.store.subset(torch.from_numpy(prepared.splits["train"]))
    tokens = train.columns["text"].values[: len("line 0\nline 1\n")]  # type: ignore[union-attr]
    assert field.texts(tokens[None]) == ["line 0\nline 1\n"]
    assert "\N{GREEK SMALL LETTER OMEGA}" not in field.state["vocabulary"]["characters"]


def test_book_with_parts_of_its_own(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "".join(f"line {i}\n" for i in range(3000)))
    test = write(tmp_path / "test.txt", "".join(f"row {i}\n" for i in range(2000)))
    source = open_source(train, Data(test=str(test)))
    splits, texts = source.given_splits(), to_list(source.columns()["text"])
    assert "".join(texts[i] for i in splits["test"]) == test.read_text()
    assert "".join(texts[i] for part in ("train", "validation") for i in splits[part]) == train.read_text()
    assert not source.notes()


@pytest.mark.parametrize("data", ["Grüße\n".encode(), b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe\n", "Grüße\n".encode("utf-16")])
def test_encodings(tmp_path: Path, data: bytes) -> None:
    assert read_text(write(tmp_path / "b.txt", data)) == "Grüße\n"


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["is empty"]),
        (b" \n", ["is empty"]),
        (b"one\ntwo \xff three\n", ["is no UTF-8", "0xff at offset 8 (line 2)", "Save it as UTF-8"]),
        (b"one\nt\0wo\n", ["a NUL byte at offset 5 (line 2)"]),
        ("one".encode("utf-16") + b"\x00", ["is no UTF-16"]),
        ("o\0ne".encode("utf-16"), ["a NUL character at character 1"]),
        (b"ab", ["pieces of text are too few"]),
    ],
)
def test_books_that_cannot_be_read(tmp_path: Path, data: bytes, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        open_source(write(tmp_path / "b.txt", data), Data()).columns()
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_book_has_no_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "b.txt", "one line\n" * 200)
    with pytest.raises(DataError, match=r"learnt as it stands.*'label' is none of its columns"):
        open_source(path, Data(target=["label"])).schema()


# ---------------------------------------------------------------- aligned lines


def aligned(folder: Path, stem: str, first: list[str], second: list[str]) -> tuple[Path, Path]:
    return (
        write(folder / f"{stem}.de", "".join(f"{line}\n" for line in first)),
        write(folder / f"{stem}.en", "\r\n".join(second)),
    )


def test_two_files(tmp_path: Path) -> None:
    one, two = aligned(tmp_path, "train", ["Ein\u2028Satz", "", "zwei"], ["a sentence", "nothing", "two"])
    for target in (str(two), "train.en"):
        source = open_source(one, Data(target=[target]))
        assert kinds(source) == {"de": "text", "en": "text"}
        assert (list(source.schema().inputs), list(source.schema().targets)) == (["de"], ["en"])
        assert to_list(source.columns()["de"]) == ["Ein\u2028Satz", "", "zwei"]
        assert to_list(source.columns()["en"]) == ["a sentence", "nothing", "two"]
    aligned(tmp_path, "valid", ["drei"], ["three"])
    joined = open_source(one, Data(target=["train.en"], validation=str(tmp_path / "valid.de")))
    assert to_list(joined.columns()["en"])[-1] == "three"
    assert joined.given_splits()["validation"].tolist() == [3]


def test_two_files_of_one_ending(tmp_path: Path) -> None:
    one, two = write(tmp_path / "german.txt", "eins\nzwei\n"), write(tmp_path / "english.txt", "one\ntwo")
    assert kinds(open_source(one, Data(target=[str(two)]))) == {"source": "text", "target": "text"}


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    one, _ = aligned(tmp_path, "train", ["a", "b", "c"], ["x", "y"])
    with pytest.raises(DataError) as caught:
        open_source(one, Data(target=["train.en"])).schema()
    assert "train.de has 3 lines, and" in str(caught.value)
    assert "train.en has 2. Line i of one" in str(caught.value)


def test_a_column_with_the_name_of_a_file_stays_a_column(tmp_path: Path) -> None:
    write(tmp_path / "label", "something else")
    path = write(tmp_path / "t.csv", "a,label\n" + "".join(f"{i / 3},{i % 2}\n" for i in range(40)))
    assert kinds(open_source(path, Data(target=["label"])))["label"] == "category"


def test_lines_end_with_line_feeds_only() -> None:
    assert lines("a\x0bb\n\nc\r\n\x85d") == ["a\x0bb", "", "c", "\x85d"]


# ---------------------------------------------------------------- dialogues


@pytest.mark.parametrize(
    "record",
    [
        {"turns": ["Hi", "Hello", "Bye"]},
        {"dialogue": ["Hi", "Hello", "Bye"]},
        {"messages": [{"role": "user", "content": word} for word in ("Hi", "Hello", "Bye")]},
    ],
)
def test_dialogues(tmp_path: Path, record: dict[str, Any]) -> None:
    body = "".join(json.dumps({**record, "place": i}) + "\n" for i in range(30))
    source = open_source(write(tmp_path / "d.jsonl", body), Data())
    schema = source.schema()
    assert (schema.inputs, kinds(source)) == ({}, {"dialogue": "text"})
    assert schema.targets["dialogue"].level == "bytepair"  # type: ignore[attr-defined]
    assert to_list(source.columns()["dialogue"])[0] == ["Hi", "Hello", "Bye"]
    assert source.notes() == ["Left out, since dialogues are learnt by themselves: place."]
    field = schema.targets["dialogue"]
    field.fit([source.columns()])
    encoded = field.encode(source.columns(), target=True)
    row = encoded.values[: encoded.offsets[1]].tolist()  # type: ignore[union-attr]
    assert (row[0], row[-1], row.count(TURN)) == (START, END, 2)


def test_dialogues_of_a_group(tmp_path: Path) -> None:
    body = "".join(json.dumps({"turns": ["Hi", f"you {i}"], "who": f"p{i % 5}"}) + "\n" for i in range(30))
    source = open_source(write(tmp_path / "d.jsonl", body), Data(group="who"))
    assert source.schema().special == {"group": "who"}


def test_other_json_lines_stay_tables(tmp_path: Path) -> None:
    body = "".join(json.dumps({"turns": i / 7, "y": i % 2}) + "\n" for i in range(40))
    assert kinds(open_source(write(tmp_path / "t.jsonl", body), Data())) == {"numbers": "number", "y": "category"}
    body = "".join(json.dumps({"turns": ["Hi"], "x": i / 7, "y": i % 2}) + "\n" for i in range(40))
    path = write(tmp_path / "u.jsonl", body)
    assert kinds(open_source(path, Data(target=["y"]))) == {"numbers": "number", "y": "category"}


def test_turns_that_are_no_strings(tmp_path: Path) -> None:
    body = json.dumps({"messages": [{"role": "u", "content": "Hi"}]}) + "\n" + json.dumps({"messages": [{"role": "u"}]})
    source = open_source(write(tmp_path / "d.jsonl", body), Data())
    assert to_list(source.columns()["dialogue"]) == [["Hi"], [None]]


# ---------------------------------------------------------------- predict


@pytest.fixture
def reads_text() -> Schema:
    return Schema({"review": Text(["review"])}, {})


def test_plain_texts_come_to_predict(tmp_path: Path, reads_text: Schema) -> None:
    book = write(tmp_path / "one.txt", "a whole\nfile")
    table = write(tmp_path / "two.csv", "review,more\nfrom a table,1\n3.50,2\n")
    found, names = read_inputs(
        ["a great film", book, str(table), {"review": "of a dict"}, ["listed, once", "twice"], "x" * 5000], reads_text
    )
    assert to_list(found["review"]) == [
        "a great film", "a whole\nfile", "from a table", "3.50", "of a dict", "listed, once", "twice", "x" * 5000,
    ]  # fmt: skip
    assert names == ["row 1", str(book), *(f"row {i}" for i in range(3, 9))]


@pytest.mark.parametrize(
    ("item", "parts"),
    [
        ("reviews.csv", ["reviews.csv"]),
        ("note.txt", ["note.txt"]),
        (7, ["int is no row"]),
        ({"reviw": "x"}, ["lacks the column 'review'"]),
    ],
)
def test_what_is_no_text(item: Any, parts: list[str], reads_text: Schema) -> None:
    with pytest.raises(DataError) as caught:
        read_inputs([item, "x"], reads_text)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_picture_is_no_text(tmp_path: Path, reads_text: Schema) -> None:
    path = write(tmp_path / "cat.png", b"-")
    with pytest.raises(DataError, match="neither a text nor a table"):
        read_inputs([path], reads_text)


# ---------------------------------------------------------------- real data


def test_real_reviews(data_folder: Path) -> None:
    folder = data_folder / "sentiment"
    source = open_source(folder / "imdb_train.csv.gz", Data(test=str(folder / "imdb_test.csv.gz")))
    told = " ".join(source.notes())
    assert kinds(source) == {"numbers": "number", "text": "text", "label": "category"}
    assert "they number or name the rows: id" in told
    assert "rating alone decides 'label'" in told
    assert kinds(open_source(folder / "sst2_train.tsv", Data())) == {"sentence": "text", "label": "category"}


def test_real_translation_and_chat(data_folder: Path) -> None:
    asked = Data(input=["de"], target=["en"])
    assert kinds(open_source(data_folder / "translation/multi30k_valid.tsv.gz", asked)) == {"de": "text", "en": "text"}
    chat = data_folder / "chat"
    assert kinds(open_source(chat / "chatterbot_english.csv.gz", Data())) == {"prompt": "text", "reply": "text"}
    daily = open_source(chat / "dailydialog_valid.jsonl.gz", Data(test=str(chat / "dailydialog_test.jsonl.gz")))
    assert kinds(daily) == {"dialogue": "text"}
    assert len(daily.given_splits()["test"]) == 996


def test_real_book(data_folder: Path) -> None:
    path = data_folder / "language_model/tinyshakespeare.txt"
    prepared = prepare(open_source(path, Data()), Data(), 0)
    field = prepared.schema.targets["text"]
    assert isinstance(field, Text)
    assert field.size == 5 + 65
    values = prepared.store.columns["text"].values  # type: ignore[union-attr]
    assert len(values) == 1_115_394
    assert "".join(field.texts(values[None])) == path.read_text("utf-8")
