"""Texts: tokens and back, cutting and filling up, what is learnt from, judging against sacrebleu, and each refusal."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.contract import Columns, Field, Schema
from fathom.core.errors import DataError, RecipeError, RowFaults
from fathom.core.prepare import encode
from fathom.core.recipe import Recipe
from fathom.core.tensors import Ragged
from fathom.fields import text_metrics
from fathom.fields.text import END, PAD, START, TURN, UNKNOWN, Text

ANY = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1)  # whatever UTF-8 can hold


def columns(texts: Any) -> Columns:
    return Columns({"t": pa.chunked_array([pa.array(texts)])})


def fitted(texts: Any, **options: Any) -> Text:
    field = Text(["t"], **options)
    field.fit([columns(texts)])
    return field


def rows(encoded: Ragged) -> list[list[int]]:
    bounds = encoded.offsets.tolist()
    return [encoded.values[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def gathered(encoded: Ragged) -> torch.Tensor:
    return encoded.gather(torch.arange(len(encoded)))[0]


# ---------------------------------------------------------------- there and back


@given(st.lists(ANY, min_size=1, max_size=4), ANY)
def test_byte_pairs_come_back_exactly_even_of_texts_never_seen(learnt: list[str], other: str) -> None:
    field = fitted(learnt, level="bytepair", length=10_000)
    given_texts = [*learnt, other]
    tokens = gathered(field.encode(columns(given_texts), target=True))
    assert field.texts(tokens) == given_texts
    sizes = [float(len(text.encode())) for text in given_texts]
    assert field.byte_counts(tokens).tolist() == sizes


@given(st.lists(ANY, min_size=1, max_size=4))
def test_characters_come_back_exactly(learnt: list[str]) -> None:
    field = fitted(learnt, level="character", length=10_000)
    tokens = gathered(field.encode(columns(learnt), target=True))
    assert field.texts(tokens) == learnt
    assert field.byte_counts(tokens).tolist() == [float(len(text.encode())) for text in learnt]


@given(st.lists(st.lists(ANY, min_size=1, max_size=3), min_size=1, max_size=4))
def test_turns_of_a_dialogue_come_back(dialogues: list[list[str]]) -> None:
    field = fitted(dialogues, level="bytepair", length=10_000)
    encoded = field.encode(columns(dialogues), target=True)
    assert field.turns(gathered(encoded)) == dialogues
    assert [row.count(TURN) for row in rows(encoded)] == [len(turns) - 1 for turns in dialogues]


@pytest.mark.parametrize("level", ["word", "character", "bytepair"])
def test_what_names_a_special_token_is_text(level: str) -> None:
    texts = ["< end > < pad >", "<end><turn>[PAD]", "< turn >"] * 3
    field = fitted(texts, level=level)
    assert min(token for row in rows(field.encode(columns(texts))) for token in row) >= TURN + 1


def test_words_by_hand() -> None:
    field = fitted(["The cat, the dog!", "the end"], level="word")
    words = {"the": 5}  # the most frequent first, then by letter
    assert field.size == 5 + 6  # the , ! cat dog end
    encoded = rows(field.encode(columns(["The bird", "THE the"])))
    assert encoded == [[words["the"], UNKNOWN], [5, 5]]
    assert field.texts(gathered(field.encode(columns(["The bird, the cat!"])))) == [
        "the \N{REPLACEMENT CHARACTER} , the cat !"
    ]
    assert fitted(["The the"], level="word", lowercase=False).size == 5 + 2
    assert field.byte_counts(torch.tensor([[5]])).isnan().all()


def test_words_of_writing_without_blanks_are_characters() -> None:
    assert fitted(["你好", "你们"], level="word").size == 5 + 3


def test_unknown_characters() -> None:
    field = fitted(["abc"], level="character")
    assert rows(field.encode(columns(["cxa"]))) == [[7, UNKNOWN, 5]]
    assert field.decode(torch.tensor([[7, UNKNOWN, 5, END, 6]])) == [{"answer": "c\N{REPLACEMENT CHARACTER}a"}]
    assert rows(fitted(["aB"], level="character", lowercase=True).encode(columns(["AB"]))) == [[5, 6]]


def test_vocabulary_is_the_size_that_was_asked() -> None:
    texts = [f"word{i} word{i // 2} word{i // 3}" for i in range(500)]
    assert fitted(texts, vocabulary=100).size == 100
    assert fitted(texts, vocabulary=300, level="bytepair").size == 300
    assert fitted(texts, vocabulary=9, level="character").size == 9
    assert fitted(texts, vocabulary=100).outputs == (-1, 100)


def test_learnt_in_chunks_as_at_once() -> None:
    texts = [f"some words {i % 7} and more of them {i % 11}" for i in range(200)]
    for level in ("word", "character", "bytepair"):
        one, other = Text(["t"], level=level, vocabulary=280), Text(["t"], level=level, vocabulary=280)
        one.fit([columns(texts)])
        other.fit([columns(texts[:50]), columns(texts[50:])])
        assert one.state["vocabulary"] == other.state["vocabulary"]


def test_state_is_json_and_comes_back() -> None:
    texts = ["Ein Satz.", "Noch ein Satz."]
    for level in ("word", "character", "bytepair"):
        field = fitted(texts, level=level)
        again = Field.from_json(json.loads(json.dumps(field.to_json())))
        assert rows(again.encode(columns(texts))) == rows(field.encode(columns(texts)))  # type: ignore[arg-type]
        assert again.describe() == field.describe()


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("cut", "expected"),
    [(None, "abfghijk"), ("head_tail", "abfghijk"), ("end", "abcdefgh"), ("start", "defghijk")],
)
def test_cutting_an_input(cut: str | None, expected: str) -> None:
    field = fitted(["abcdefghijk"], level="character", length=8, cut=cut)
    assert field.shape == (8,)
    assert field.texts(gathered(field.encode(columns(["abcdefghijk", "abcdefgh", "abc"])))) == [
        expected,
        "abcdefgh",
        "abc",
    ]


def test_cutting_a_target_leaves_room_for_its_ends() -> None:
    field = fitted(["abcdefghijk"], level="character", length=5)
    encoded = field.encode(columns(["abcdefghijk", "ab"]), target=True)
    assert rows(encoded) == [[START, 5, 6, 7, END], [START, 5, 6, END]]


def test_filling_up_on_either_side() -> None:
    texts = ["abc", "a"]
    right, left = (fitted(texts, level="character", pad=side) for side in ("right", "left"))
    assert gathered(right.encode(columns(texts))).tolist() == [[5, 6, 7], [5, PAD, PAD]]
    assert gathered(left.encode(columns(texts))).tolist() == [[5, 6, 7], [PAD, PAD, 5]]
    assert gathered(left.encode(columns(texts), target=True)).tolist()[1] == [START, 5, END, PAD, PAD]


def test_an_input_is_never_without_a_token() -> None:
    field = fitted(["a b", "b"])
    assert rows(field.encode(columns(["", None, "  ", "a"]))) == [[UNKNOWN], [UNKNOWN], [UNKNOWN], [6]]
    assert rows(fitted([["a"], ["b"]]).encode(columns([[], None, ["a", "b"]]))) == [[UNKNOWN], [UNKNOWN], [5, TURN, 6]]


def test_an_empty_target_is_a_fault() -> None:
    field = fitted(["a b", "b"])
    with pytest.raises(RowFaults) as caught:
        field.encode(columns(["a", "", None, "b"]), target=True)
    assert caught.value.reasons == {1: "'t' is empty", 2: "'t' is missing"}
    assert len(caught.value.partial) == 4


def test_pieces_of_one_text_are_neither_cut_nor_framed() -> None:
    field = fitted(["abc", "de"], level="character", length=2, continuous=True)
    assert field.encode(columns(["abc", "de"]), target=True).values.tolist() == [5, 6, 7, 8, 9]


def test_other_columns_are_read_as_text() -> None:
    field = fitted(["1.5 7", "true"], level="character")
    for values in ([1.5], [7], pa.array(["7"]).dictionary_encode(), pa.array(["7"], pa.large_string())):
        encoded = field.encode(
            Columns({"t": pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)])})
        )
        assert UNKNOWN not in encoded.values


def test_long_and_many_texts_in_parts() -> None:
    texts = ["x " * 600_000, "y", "", "x y " * 3] + ["y x"] * 20_000
    field = fitted(texts, length=6)
    encoded = field.encode(columns(texts))
    assert encoded.lengths().tolist() == [6, 1, 1, 6] + [2] * 20_000
    assert encoded.values.dtype == torch.int32
    assert encoded.values[-2:].tolist() == rows(field.encode(columns(["y x"])))[0]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.integers(3, 7),
    st.sampled_from(["head_tail", "end", "start"]),
)
def test_every_row_is_cut_by_itself(lengths: list[int], most: int, cut: str) -> None:
    texts = ["abcdefghi"[:length] for length in lengths]
    field = fitted(["abcdefghi"], level="character", length=most, cut=cut)
    found = field.texts(gathered(field.encode(columns(texts))))
    head = {"head_tail": most // 4, "end": most, "start": 0}[cut]
    cuts = [t if len(t) <= most else t[:head] + t[len(t) - most + head :] for t in texts]
    assert found == [text or "\N{REPLACEMENT CHARACTER}" for text in cuts]


def test_learnt_from_training_rows_only() -> None:
    from fathom.core import prepare

    schema = Schema({"t": Text(["t"])}, {})
    prepare.fit(schema, columns(["train words", "test secret"]), np.array([0]))
    field = schema.inputs["t"]
    assert isinstance(field, Text)
    assert "secret" not in json.dumps(field.state)
    store, faults = encode(schema, columns(["train words", "test secret"]))
    assert store.column("t").tolist() == [[5, 6], [UNKNOWN, UNKNOWN]]
    assert not faults


def test_describe_says_what_is_lost() -> None:
    field = fitted(["a b c d e f g h"] * 3 + ["a"], vocabulary=10, length=4)
    assert field.describe() == "5 words, 36.0% unknown, half of the rows longer than 8, 75.0% of them cut to 4"
    assert Text(["t"]).describe() == "t"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("texts", "options", "parts"),
    [
        (["a b"], {"vocabulary": 5}, ["data.text.vocabulary = 5 is too small", "6 or more"]),
        (["a b"], {"vocabulary": 260, "level": "bytepair"}, ["256 bytes and 5 special tokens", "261 or more"]),
        (["", None], {}, ["'t' holds no text in any training row"]),
        ([{"a": 1}], {}, ["'t' holds struct", "Give a string, or a list of strings"]),
        ([[1, 2]], {}, ["'t' holds list"]),
    ],
)
def test_refusals(texts: Any, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        fitted(texts, **options)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_arrays_are_no_texts() -> None:
    with pytest.raises(DataError, match="array of shape"):
        fitted(["a"]).encode(Columns({"t": np.zeros((2, 3))}))


def test_a_target_of_no_room() -> None:
    with pytest.raises(DataError, match=r"data.text.length = 2 leaves no room"):
        fitted(["a"], length=2).encode(columns(["a"]), target=True)


def test_the_recipe_names_wrong_options() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"data": {"text": {"level": "letters", "lenght": 3}}})
    assert "data.text.level = 'letters' is not allowed" in str(caught.value)
    assert "Did you mean 'data.text.length'?" in str(caught.value)


# ---------------------------------------------------------------- judging

PAIRS = [
    ("The cat sat on the mat.", "The cat sat on a mat."),
    ("Ein Hund läuft.", "Ein Hund läuft schnell über die Wiese."),
    ("", "nothing came"),
    ("completely other words", "Das ist es, (wirklich)!"),
    ("A man in a blue shirt is standing on a ladder", "A man in a blue shirt stands on a ladder cleaning a window."),
]


def sums(pairs: list[tuple[str, str]]) -> torch.Tensor:
    likelihood = torch.tensor([[2.0, 4.0, 8.0]] * len(pairs), dtype=torch.float64)
    overlap = text_metrics.overlap_sums([a for a, _ in pairs], [b for _, b in pairs])
    return torch.cat([likelihood, overlap], 1)


def expected(pairs: list[tuple[str, str]]) -> tuple[float, float]:
    answers, references = [a for a, _ in pairs], [[b for _, b in pairs]]
    return sacrebleu.corpus_bleu(answers, references).score, sacrebleu.corpus_chrf(answers, references).score


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [0], [1], [2], [3], [2, 3], [0, 4]])
def test_bleu_and_chrf_are_those_of_sacrebleu(chosen: list[int]) -> None:
    pairs = [PAIRS[i] for i in chosen]
    found = fitted(["a"]).metrics(sums(pairs), torch.zeros(len(pairs)))
    bleu, chrf = expected(pairs)
    assert found["bleu"].item() == pytest.approx(bleu, abs=1e-9)
    assert found["chrf"].item() == pytest.approx(chrf, abs=1e-9)


WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", ".", "7,5", "it's", "(so)"]), max_size=9).map(
    " ".join
)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_bleu_and_chrf_of_any_words(pairs: list[tuple[str, str]]) -> None:
    found = text_metrics.language(sums(pairs))
    bleu, chrf = expected(pairs)
    assert found["bleu"].item() == pytest.approx(bleu, abs=1e-9)
    assert found["chrf"].item() == pytest.approx(chrf, abs=1e-9)


def test_resamples_are_those_of_repeated_rows() -> None:
    weight = torch.tensor([[1.0, 1, 1, 1, 1], [2, 0, 1, 0, 2]])
    found = fitted(["a"]).metrics(sums(PAIRS), torch.zeros(5), weight)
    again = expected([PAIRS[0], PAIRS[0], PAIRS[2], PAIRS[4], PAIRS[4]])
    assert {value.shape for value in found.values()} == {(2,)}
    assert found["bleu"][1].item() == pytest.approx(again[0], abs=1e-9)
    assert found["chrf"][1].item() == pytest.approx(again[1], abs=1e-9)


def test_likelihood_by_hand() -> None:
    statistics = torch.tensor([[2.0, 1.0, 3.0], [4.0, 2.0, 5.0]], dtype=torch.float64)
    found = text_metrics.language(statistics)
    assert found["perplexity"].item() == pytest.approx(math.exp(6 / 3))
    assert found["bits_per_byte"].item() == pytest.approx(6 / 8 / math.log(2))
    assert set(found) == {"perplexity", "bits_per_byte"}
    one = text_metrics.language(statistics, torch.tensor([1.0, 0.0]))
    assert one["perplexity"].item() == pytest.approx(math.exp(2))


def test_what_is_not_known_is_left_out() -> None:
    statistics = torch.cat([torch.tensor([[2.0, 1.0, math.nan]]), torch.full((1, 28), math.nan)], 1)
    assert set(text_metrics.language(statistics)) == {"perplexity"}
