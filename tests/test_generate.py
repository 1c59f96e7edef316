"""Models that write: language models go on from a prompt, dialogues are answered, translations are told apart from both."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import fathom
from fathom.algorithms.language import sample
from fathom.analysis.evaluate import pooled
from fathom.analysis.plan import task_name
from fathom.analysis.wording import metric_label, metric_text
from fathom.core.contract import Columns, Schema
from fathom.core.errors import DataError, FathomError
from fathom.core.registry import fields
from fathom.fields.text import END, START, TURN, UNKNOWN
from fathom.verbs.chat import Conversation
from fathom.verbs.generate import Sampling, Writer
from kit import QUICK, cli

ANIMALS = ("cat", "dog", "owl", "fox", "hen")
COLORS = {"rot": "red", "blau": "blue", "alt": "old", "neu": "new"}
SMALL = ("--network", "gru", "network.units=48", "network.embedding=24", "--batch", "8", *QUICK)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs: `book` (characters), `talk` (dialogues) and `pairs` (a translation)."""
    folder, draw = tmp_path_factory.mktemp("written"), random.Random(0)
    book = "".join(f"The {draw.choice(ANIMALS)} has {draw.randrange(1000)} eggs.\n" for _ in range(400))
    (folder / "book.txt").write_text(book, "utf-8")
    with (folder / "talk.jsonl").open("w") as file:
        for i in range(120):
            animal = draw.choice(ANIMALS)
            turns = [f"who is number {i} ?", f"it is the {animal} .", "thanks .", "welcome ."]
            file.write(json.dumps({"turns": turns}) + "\n")
    with (folder / "pairs.tsv").open("w") as file:
        file.write("de\ten\tnumber\n")
        for i in range(200):
            words = [draw.choice(list(COLORS)) for _ in range(3)]
            file.write(f"{' '.join(words)} {i}\t{' '.join(COLORS[word] for word in words)} {i}\t{i}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FATHOM_CACHE", str(folder / "cache"))
        for name, words in {
            "book": ("book.txt", "data.text.length=32", "--steps", "150", "--lr", "0.01"),
            "talk": ("talk.jsonl", "data.text.length=48", "data.text.vocabulary=400", "--steps", "60", "--lr", "0.01"),
            "pairs": (
                "pairs.tsv", "--target", "en", "--input", "de", "data.text.vocabulary=300", "--steps", "80", "--lr", "0.01",
            ),
        }.items():  # fmt: skip
            said = cli("fit", *words, "--name", name, *SMALL)
            assert said.code == 0, said.err
            (folder / f"{name}.said").write_text(said.out, "utf-8")
    return folder


@pytest.fixture(autouse=True)
def _there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def writer(name: str) -> Writer:
    return Writer.of(fathom.load(name).predictor, name)


# ---------------------------------------------------------------- writing on


def test_a_text_goes_on_as_its_book_does() -> None:
    (text,) = fathom.generate("book", "The cat", length=40, temperature=0)
    assert text.startswith("The cat has ")
    assert " eggs." in text


def test_the_same_seed_writes_the_same_text() -> None:
    one, other = (fathom.generate("book", "The", length=60, seed=seed) for seed in (0, 1))
    assert one == fathom.generate("book", "The", length=60, seed=0)
    assert one != other


def test_the_first_text_does_not_depend_on_how_many_follow() -> None:
    three = fathom.generate("book", "The", length=30, n=3)
    assert fathom.generate("book", "The", length=30)[0] == three[0]
    assert len(set(three)) == 3


def test_length_counts_tokens_beyond_the_window() -> None:
    """200 characters by a network whose window is 32."""
    (text,) = fathom.generate("book", "The", length=200)
    assert len(text) == 203
    assert text.count(" has ") > 3


def test_the_network_never_sees_more_than_its_window() -> None:
    made = writer("book")
    seen: list[int] = []
    original = made._stream

    def watched(batch: Any, choose: Any, longest: int) -> Iterator[Any]:
        seen.append(batch["text"].shape[1] + longest)
        yield from original(batch, choose, longest)

    made._stream = watched  # type: ignore[method-assign]
    tokens = list(made.tokens([10] * 100, 100, Sampling().choice(made.device)))
    assert len(tokens) == 100
    assert max(seen) <= 32
    assert not {UNKNOWN, TURN, END} & set(tokens)


def test_without_a_prompt_a_book_begins_a_line() -> None:
    assert writer("book").prompted("") == writer("book").tokens_of(["\n"])
    assert fathom.generate("book", length=4, temperature=0)[0] == "The "


def test_what_no_training_text_has_is_told() -> None:
    told: list[str] = []
    fathom.generate("book", "Öl & z", length=3, tell=told.append)
    assert told == ["No training text has 'Ö', '&', 'z'; the model reads them as unknown."]
    said = cli("generate", "book", "--prompt", "The €", "--length", "3")
    assert said.code == 0
    assert "Note      No training text has '€'; the model reads it as unknown." in said.err
    assert said.out.startswith("The €")


def test_a_character_of_several_tokens_is_one_piece() -> None:
    """Byte pairs of a vocabulary that holds bytes only; a byte that begins no character is not waited for."""
    made = writer("talk")
    tokens = made.tokens_of(["né 🦊!"])
    assert len(tokens) > len("né 🦊!")
    pieces = list(made.pieces(iter(tokens)))
    assert "".join(pieces) == "né 🦊!"
    assert {"é", "🦊"} <= set(pieces)
    broken = tokens[1:2] * 5
    assert "".join(made.pieces(iter(broken))) == made.field.codec.decode(broken[:4]) + made.field.codec.decode(broken[4:])


def test_words_stand_apart() -> None:
    field = fields["text"].make(["t"], level="word")
    field.fit([Columns({"t": pa.chunked_array([["to be or not"]])})])
    made = writer("talk")
    made.field = field
    tokens = iter([*made.tokens_of(["to be"]), TURN, *made.tokens_of(["or not"])])
    assert "".join(made.pieces(tokens, begun=True)) == " to be\nor not"


def test_top_k_and_top_p_bound_the_draw() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).repeat(500, 1)
    generator = torch.Generator().manual_seed(0)
    assert set(sample(generator, 1.0, top_k=2)(logits).tolist()) == {1, 2}
    assert set(sample(generator, 1.0, top_p=0.5)(logits).tolist()) == {1}
    assert set(sample(generator, 5.0)(logits).tolist()) == {0, 1, 2, 3}


# ---------------------------------------------------------------- the command line


def test_generate_prints_the_text_and_json() -> None:
    words = ("generate", "book", "--prompt", "The", "--length", "20", "-n", "2", "--seed", "3")
    plain, printed = cli(*words), json.loads(cli(*words, "--json").out)
    assert plain.out == f"{printed[0]}\n\n----\n\n{printed[1]}\n"
    assert printed == fathom.load("book").generate("The", length=20, n=2, seed=3)


@pytest.mark.parametrize(("words", "parts"), [
    (("generate", "pairs"), ("writes 'en' from a source (de)", "fathom predict", '"a text"')),
    (("chat", "pairs", "--say", "x"), ("from a source", "fathom predict")),
    (("chat", "book", "--say", "x"), ("was not trained on dialogues", "fathom generate")),
    (("predict", "book", "x"), ("is a language model", "fathom generate")),
    (("generate", "book", "--temperature", "-1"), ("temperature = -1.0 should be 0 or more",)),
    (("generate", "book", "--top-p", "0"), ("top_p = 0.0 should be above 0",)),
    (("generate", "book", "--top-k", "-2"), ("top_k = -2 should be 0",)),
    (("generate", "book", "--length", "0"), ("--length",)),
])  # fmt: skip
def test_what_cannot_be_written_is_told(words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    said = cli(*words)
    assert said.code == 2
    assert all(part in said.last for part in parts), said.err


def test_python_tells_the_same() -> None:
    for wrong in ({"length": 0}, {"n": 0}, {"temperature": float("nan")}, {"top_p": 1.5}):
        with pytest.raises(FathomError, match="should be"):
            fathom.generate("book", "x", **wrong)
    with pytest.raises(FathomError, match="Nothing was said"):
        fathom.chat("talk", [])


# ---------------------------------------------------------------- dialogues


def test_a_dialogue_goes_on_in_lines() -> None:
    (text,) = fathom.generate("talk", "who is number 7 ?\n", length=60)
    assert text.startswith("who is number 7 ?\n")
    assert len(text) > len("who is number 7 ?\n")
    tokens = writer("talk").prompted("a ?\nb")
    assert tokens[0] == START
    assert tokens.count(TURN) == 1


def test_chat_answers_and_keeps_what_was_said() -> None:
    conversation = Conversation("talk", sampling=Sampling(temperature=0))
    answer = "".join(conversation.answer("who is number 3 ?")).strip()
    assert answer
    assert conversation.turns == ["who is number 3 ?", answer]
    assert answer == fathom.chat("talk", "who is number 3 ?", temperature=0)
    assert conversation.tokens > 0
    assert conversation.tokens_a_second > 0
    second = "".join(conversation.answer("thanks .")).strip()
    assert second == fathom.load("talk").chat(["who is number 3 ?", answer, "thanks ."], temperature=0)


def test_old_turns_leave_the_window() -> None:
    conversation = Conversation("talk", length=10)
    window = conversation.writer.field.length
    turns = [f"who is number {i} ?" for i in range(40)]
    given = conversation.given(turns)
    assert len(given) <= window - 10
    assert given[0] == START
    assert given[-1] == TURN
    written = conversation.writer.field.turns(torch.tensor([given]))[0][:-1]
    assert written == turns[-len(written) :]
    long = conversation.given(["who " * 200])
    assert len(long) <= window - 10
    assert long[-1] == TURN


def test_chat_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = cli("chat", "talk", "--say", "who is number 3 ?", "--say", "thanks .", "--temperature", "0", "--verbose")
    assert said.code == 0
    assert len(said.out.splitlines()) == 2
    assert said.err.count("a second") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("who is number 3 ?\n\nthanks .\nexit\nnever\n"))
    assert cli("chat", "talk", "--temperature", "0").out == said.out
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli("chat", "talk").out == ""


# ---------------------------------------------------------------- translations


def test_predict_translates_rows_and_strings() -> None:
    run = fathom.load("pairs")
    answers = run.predict("pairs.tsv")
    assert len(answers) == 200
    assert set(answers[0]) == {"input", "answer"}
    assert isinstance(answers[0]["answer"], str)
    texts = ["rot blau alt 0", "neu neu rot 1"]
    wanted = [answer["answer"] for answer in run.predict(texts)]
    assert all(wanted)
    assert [answer["answer"] for answer in run.predict([{"de": text} for text in texts])] == wanted
    assert [answer["answer"] for answer in run.predict(*texts)] == wanted
    assert json.loads(cli("predict", "pairs", texts[0], "--json").out)[0]["answer"] == wanted[0]


def test_predict_needs_the_source_only() -> None:
    Path("source.csv").write_text("number,de\n1,rot alt neu 5\n", "utf-8")
    assert len(fathom.load("pairs").predict("source.csv")) == 1
    Path("other.csv").write_text("fr\nrouge\n", "utf-8")
    with pytest.raises(DataError, match="de"):
        fathom.load("pairs").predict("other.csv")


# ---------------------------------------------------------------- judged, shown


def test_other_texts_can_be_judged() -> None:
    for name, other in (("pairs", "pairs.tsv"), ("book", "book.txt"), ("talk", "talk.jsonl")):
        results = fathom.load(name).evaluate(other)
        assert results["baseline"], results["evaluation_notes"]
        assert results["test"]["perplexity"]["value"] > 1


def test_reports_show_what_was_written() -> None:
    pages = {name: Path(f"runs/{name}/report.html").read_text("utf-8") for name in ("book", "talk", "pairs")}
    assert all("What it writes" in page and "Where it errs" not in page for page in pages.values())
    sample = fathom.load("book").results["sample"]
    assert len(sample) > 300
    assert sample[:20] in pages["book"]
    assert "<caption>Source, what a person wrote" in pages["pairs"]
    shown = fathom.load("pairs").results["targets"]["en"]["examples"][0]
    assert f"<td>{shown['source']}</td><td>{shown['reference']}</td>" in pages["pairs"]
    assert "sample" not in fathom.load("pairs").results
    assert "Bits per byte" in pages["book"]
    assert "chrF" in pages["pairs"]
    assert "Cross-validate" not in pages["book"]


def test_fit_ends_with_the_verb_of_its_task() -> None:
    said = {name: Path(f"{name}.said").read_text("utf-8") for name in ("book", "talk", "pairs")}
    assert 'Next      fathom generate runs/book --prompt "The "' in said["book"]
    assert "Next      fathom chat runs/talk" in said["talk"]
    assert 'Next      fathom predict runs/pairs "a text"' in said["pairs"]
    assert "bits per byte" in said["book"]
    assert "BLEU" in said["pairs"]


def test_tasks_have_names() -> None:
    def named(inputs: tuple[str, ...], target: str) -> str:
        made = {kind: fields[kind].make([kind]) for kind in inputs}
        return task_name(Schema(made, {"y": fields[target].make(["y"])}))

    assert named(("text",), "text") == "translation"
    assert named((), "text") == "language model"
    assert named(("text",), "category") == "text classification"
    assert named(("series",), "forecast") == "forecast"
    assert named(("series",), "category") == "series classification"
    assert named(("series", "number"), "category") == "series classification"
    assert named(("number", "category"), "number") == "table regression"
    assert named(("image",), "category") == "image classification"
    assert named(("text", "number"), "category") == "mixed classification"


def test_points_are_neither_shares_nor_cut_at_one() -> None:
    tables = [{"bleu": {"value": 34.2 + i, "low": 33.0, "high": 35.5}} for i in range(3)]
    mean = pooled(tables, folds=1)["bleu"]
    assert mean["value"] == pytest.approx(35.2)
    assert mean["high"] > 35.2
    assert pooled([{"bleu": {"value": 99.9, "low": 99.0, "high": 104.0}}], folds=1)["bleu"]["high"] == 100
    assert metric_text("bleu", 34.26) == "34.3"
    assert metric_label("chrf") == "chrF"
