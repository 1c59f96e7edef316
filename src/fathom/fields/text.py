"""Texts as rows of token numbers: what a user wrote, an answer to write, a dialogue, or a piece of a book.

    encode      cells -> Ragged of int32 tokens, cut to `length`; as a target START + tokens + END
    texts       tokens -> texts, up to END
    turns       tokens -> the turns of a dialogue
    metrics     perplexity, bits a byte, BLEU and chrF, from sums over rows

A cell is a string or a list of strings (the turns of a dialogue, joined by TURN). What a token is stands in
`vocabulary`. The vocabulary is learnt from the training rows, which are streamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import PositiveInt
from torch import Tensor

from fathom.core.contract import Columns, Field, Ragged, hyperparameter
from fathom.core.errors import DataError, RowFaults
from fathom.core.registry import fields
from fathom.core.tensors import is_list
from fathom.fields import published, text_metrics
from fathom.fields.vocabulary import END, PAD, SPECIAL, START, TURN, UNKNOWN, Codec, Level, read, train

__all__ = ["END", "PAD", "SPECIAL", "START", "TURN", "UNKNOWN", "Text"]

PART = 1 << 17  # bytes of text that are tokenized at once: the tokenizer's own objects need a hundred times the tokens
SAMPLE = 4_000  # training rows that `describe` speaks of


@fields.register("text")
class Text(Field):
    """A text in each row."""

    kind = "text"
    level: Level = hyperparameter("word", help="what a token is; targets: bytepair, a book: character, where not said")
    weights: str | None = hyperparameter(None, help="of level pretrained: minilm, a folder, or a name on the hub")
    vocabulary: PositiveInt | None = hyperparameter(
        None, search=(1_000, 50_000, "log"), help="most tokens, 5 special ones among them; 30000 words, 8000 byte pairs"
    )
    length: PositiveInt = hyperparameter(
        512, search=[64, 128, 256, 512], help="most tokens of a row; longer ones are cut"
    )
    cut: Literal["head_tail", "end", "start"] | None = hyperparameter(
        None, help="where a long text is cut: behind its first quarter, at its end or its start; targets: at the end"
    )
    pad: Literal["right", "left"] = hyperparameter("right", help="side on which short inputs of a batch are filled up")
    lowercase: bool | None = hyperparameter(None, help="give up upper case; words do where not said")
    continuous: bool = hyperparameter(False, help="rows are pieces of one text: not cut, without start and end")

    def __init__(self, columns: Iterable[str], **options: Any) -> None:
        super().__init__(tuple(columns), **options)
        self._codec: tuple[dict[str, Any], Codec] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Most tokens of a row."""
        return (self.length,)

    @property
    def size(self) -> int:
        """V, all tokens, special ones included."""
        return self.codec.size if self.state else len(SPECIAL)

    @property
    def outputs(self) -> tuple[int, ...]:
        """One logit a token of the vocabulary, at each place."""
        return (-1, self.size)

    @property
    def dialogue(self) -> bool:
        """Whether rows have several turns."""
        return bool(self.state and self.state["about"].get("dialogue"))

    @property
    def codec(self) -> Codec:
        """The learnt vocabulary."""
        if self._codec is None or self._codec[0] is not self.state:
            self._codec = (self.state, read(self.state["vocabulary"]))
        return self._codec[1]

    @property
    def _unknown(self) -> int:
        """The token of what the vocabulary does not hold; -1 where it holds everything."""
        told = self.state["vocabulary"].get("unknown", UNKNOWN)
        return -1 if told is None else int(told)

    @property
    def _turn(self) -> int:
        """What stands between the turns of a dialogue: TURN, or what a published encoder ends a text with."""
        return int((self.state["vocabulary"].get("suffix") or [TURN])[-1])

    # ------------------------------------------------------------ learning the vocabulary

    def fit(self, chunks: Iterable[Columns]) -> None:
        """Learn the vocabulary from the training rows.

        Raises:
            DataError: no row holds a token, or `vocabulary` is too small.
        """
        if self.level == "pretrained":
            self._adopt(chunks)
            return
        sample: list[Columns] = []
        lowercase = self.level == "word" if self.lowercase is None else self.lowercase
        learnt = train(self.level, self._batches(chunks, sample), self.vocabulary, lowercase)
        self.state = {"vocabulary": learnt}
        self.state["about"] = self._about(sample)

    def adopt(self, earlier: Field, chunks: Iterable[Columns]) -> None:
        """The vocabulary of earlier texts; what `describe` says is counted in these rows.

        Raises:
            DataError: an option asks for another vocabulary.
        """
        for name in ("level", "weights", "vocabulary", "lowercase"):
            mine, theirs = getattr(self, name), earlier.options[name]
            if mine != theirs:
                raise DataError(
                    f"data.text.{name} = {mine!r} does not go with the earlier run, whose vocabulary was made with {theirs!r} "
                    "and is what its network knows. Leave it out."
                )
        self.state = dict(earlier.state)
        sample: list[Columns] = []
        for chunk in chunks:
            self._look(chunk, sample)
        about = self._about(sample)
        self.state["about"] = {**about, "dialogue": False} if self.level == "pretrained" else about

    def _batches(self, chunks: Iterable[Columns], sample: list[Columns]) -> Iterator[list[str]]:
        """All texts, a few at a time; some rows of each chunk are put into `sample`."""
        for chunk in chunks:
            self._look(chunk, sample)
            for rows in self._rows(chunk):
                yield [turn for row in rows for turn in row]

    def _look(self, chunk: Columns, sample: list[Columns]) -> None:
        """Put some rows of a chunk into `sample`, as long as there is room."""
        room = SAMPLE - sum(part.rows for part in sample)
        if room:
            places = np.linspace(0, chunk.rows - 1, min(room, chunk.rows, SAMPLE // 4)).astype(np.int64)
            sample.append(chunk.select(self.columns).take(places))

    def _adopt(self, chunks: Iterable[Columns]) -> None:
        """Take over the vocabulary of a published encoder, all of it, so that a saved run needs no other file."""
        if self.weights is None:
            raise DataError("data.text.level = 'pretrained' needs a name or folder: data.text.weights=minilm")
        for name in ("vocabulary", "lowercase"):
            if getattr(self, name) is not None:
                raise DataError(f"data.text.{name} has no meaning beside level 'pretrained', whose vocabulary is made already.")
        files = published.find(self.weights)
        encoder, learnt = published.encoder(files), published.vocabulary(files)
        least = len(learnt["prefix"]) + len(learnt["suffix"]) + 1
        if not least <= self.length <= encoder["longest"]:
            raise DataError(
                f"data.text.length = {self.length} does not fit '{self.weights}', which reads {least} to "
                f"{encoder['longest']} tokens."
            )
        self.state = {"vocabulary": learnt, "encoder": encoder}
        sample: list[Columns] = []
        for chunk in chunks:
            self._look(chunk, sample)
        self.state["about"] = {**self._about(sample), "dialogue": False}

    def _about(self, sample: list[Columns]) -> dict[str, Any]:
        """What `describe` says, from a sample of the training rows."""
        tokens, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for chunk in sample:
            for rows in self._rows(chunk):
                values, count = self._tokens(rows)
                tokens.append(values)
                lengths.append(count)
        values, count = np.concatenate(tokens), np.concatenate(lengths)
        if not len(values):
            raise DataError(f"'{self.columns[0]}' holds no text in any training row, so there is nothing to learn.")
        return {
            "median": int(np.median(count)),
            "unknown": round(float((values == self._unknown).mean()), 4),
            "cut": 0.0 if self.continuous else round(float((count > self.length).mean()), 4),
            "dialogue": bool((values == TURN).any()),
        }

    # ------------------------------------------------------------ texts to tokens

    def encode(self, columns: Columns, target: bool = False) -> Ragged:
        """(N rows) int32 tokens. An empty input is one UNKNOWN; an empty target is a fault."""
        parts, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for rows in self._rows(columns):
            values, count = self._tokens(rows)
            values, count = self._framed(values, count) if target else self._given(values, count)
            parts.append(values)
            lengths.append(count)
        count = np.concatenate(lengths)
        offsets = torch.from_numpy(np.concatenate([[0], count.cumsum()]))
        left = self.pad == "left" and not target
        encoded = Ragged(torch.from_numpy(np.concatenate(parts)), offsets, fill=float(PAD), left=left)
        if target:
            self._require_text(columns, count, encoded)
        return encoded

    def _tokens(self, rows: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of each row, the turns of a row joined by TURN."""
        values, lengths = self.codec.encode([turn for row in rows for turn in row])
        turns = np.fromiter(map(len, rows), np.int64, len(rows))
        if (turns == 1).all():
            return values, lengths
        first = np.zeros(len(lengths) + 1, bool)  # which turns begin a row
        first[turns.cumsum() - turns] = True
        starts = lengths.cumsum() - lengths
        joined = np.insert(values, starts[~first[:-1]], self._turn)
        row = np.repeat(np.arange(len(rows)), turns)
        total = np.bincount(row, lengths, len(rows)).astype(np.int64) + np.maximum(turns - 1, 0)
        return joined, total

    def _given(self, values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As an input: cut, and never without a token."""
        if self.level == "pretrained":
            return self._between(values, lengths)
        values, lengths = _cut(values, lengths, self.length, self.cut or "head_tail")
        empty = lengths == 0
        if not empty.any():
            return values, lengths
        return np.insert(values, (lengths.cumsum() - lengths)[empty], UNKNOWN), lengths + empty

    def _between(self, values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As an input of a published encoder: cut, between the special tokens that it expects around a text."""
        before, after = self.state["vocabulary"]["prefix"], self.state["vocabulary"]["suffix"]
        added = len(before) + len(after)
        values, lengths = _cut(values, lengths, self.length - added, self.cut or "head_tail")
        ends = lengths.cumsum()
        places = np.repeat(np.stack([ends - lengths, ends], 1).ravel(), np.tile([len(before), len(after)], len(ends)))
        return np.insert(values, places, np.tile([*before, *after], len(ends))), lengths + added

    def _framed(self, values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As a target: cut, with START and END, unless the rows are pieces of one text."""
        if self.level == "pretrained":
            raise DataError(
                f"'{self.columns[0]}' is to be written, but data.text.level = 'pretrained' is for texts that are read. "
                "Leave it out; network gpt or transformer learns to write."
            )
        if self.continuous:
            return values, lengths
        if self.length < 3:
            raise DataError(
                f"data.text.length = {self.length} leaves no room for a target, which begins and ends with a special "
                "token. Set it to 3 or more."
            )
        values, lengths = _cut(values, lengths, self.length - 2, self.cut or "end")
        ends = lengths.cumsum()
        places = np.stack([ends - lengths, ends], 1).ravel()
        return np.insert(values, places, np.tile([START, END], len(lengths))), lengths + 2

    def _require_text(self, columns: Columns, lengths: np.ndarray, encoded: Ragged) -> None:
        empty = np.flatnonzero(lengths == (0 if self.continuous else 2))
        if len(empty):
            column = columns[self.columns[0]]
            what = {row: "is missing" if column[row].as_py() is None else "is empty" for row in empty.tolist()}
            raise RowFaults({row: f"'{self.columns[0]}' {word}" for row, word in what.items()}, encoded)

    def _rows(self, columns: Columns) -> Iterator[list[list[str]]]:
        """The turns of each row, about `PART` bytes at a time; a missing text is an empty one."""
        column = columns[self.columns[0]]
        if isinstance(column, np.ndarray) or not _is_readable(column.type):
            held = f"an array of shape {column.shape[1:]}" if isinstance(column, np.ndarray) else str(column.type)
            raise DataError(
                f"'{self.columns[0]}' holds {held} in each row, which is no text. Give a string, or a list of strings."
            )
        if is_list(column.type):
            flat = column
        else:
            flat = column if pa.types.is_string(column.type) else pc.cast(column, pa.string())
        size = int(np.clip(PART * len(flat) // max(flat.nbytes, 1), 1, 16_384))
        for start in range(0, len(flat), size):
            yield [_turns(value) for value in flat.slice(start, size).to_pylist()]

    # ------------------------------------------------------------ tokens to texts

    def decode(self, output: Tensor) -> list[Any]:
        """Tokens (B, T) -> {"answer": text} a row."""
        return [{"answer": text} for text in self.texts(output)]

    def texts(self, tokens: Tensor) -> list[str]:
        """Tokens (B, T) -> B texts, up to END; the turns of a dialogue stand in lines."""
        return ["\n".join(row) for row in self.turns(tokens)]

    def turns(self, tokens: Tensor) -> list[list[str]]:
        """Tokens (B, T) -> the turns of each row, up to END; a text that is no dialogue is one turn."""
        return [self._written(row) for row in tokens.long().tolist()]

    def _written(self, row: list[int]) -> list[str]:
        if self.level == "pretrained":
            return [self.codec.decode([token for token in row if token != PAD])]
        turns: list[list[int]] = [[]]
        for token in row:
            if token == END:
                break
            if token == TURN:
                turns.append([])
            elif token not in (PAD, START):
                turns[-1].append(token)
        return [self.codec.decode(turn) for turn in turns]

    def byte_counts(self, tokens: Tensor) -> Tensor:
        """(B,) float64, bytes of UTF-8 that tokens (B, T) stand for; nan for words. Special tokens stand for none."""
        table: Tensor = torch.from_numpy(self.codec.token_bytes()).to(tokens.device)
        return table[tokens.long()].sum(-1)

    # ------------------------------------------------------------ judging

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Perplexity, bits a byte, and for texts with a reference BLEU and chrF.

        Args:
            output: (N, S) float64 statistics of each row (see `text_metrics`), instead of logits.
            target: not read.
            weight: (N,) or (R, N): how often each row counts.
        """
        return text_metrics.language(output, weight)

    def describe(self) -> str:
        """Vocabulary and lengths."""
        if not self.state:
            return super().describe()
        about = self.state["about"]
        unit = {"word": "words", "character": "characters", "bytepair": "byte pairs", "pretrained": "pieces of words"}[self.level]
        told = [f"{self.size - (len(SPECIAL) if self.level != 'pretrained' else 0):,} {unit}"]
        told += [f"of {self.weights}"] if self.level == "pretrained" else []
        told += [f"{about['unknown']:.1%} unknown"] if about["unknown"] else []
        told += [f"half of the rows longer than {about['median']:,}"] if not self.continuous else []
        told += [f"{about['cut']:.1%} of them cut to {self.length:,}"] if about["cut"] else []
        return ", ".join(told)


def _turns(value: Any) -> list[str]:
    if isinstance(value, list):
        return [turn or "" for turn in value]
    return [value or ""]


def _is_readable(kind: pa.DataType) -> bool:
    """Strings, what can be written as one, and lists of strings."""
    if is_list(kind):
        return _is_string(kind.value_type)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_string(kind) or pa.types.is_primitive(kind)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _cut(values: np.ndarray, lengths: np.ndarray, most: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most `most` tokens.

    Of reviews and articles the beginning and, more so, the end say most (Sun et al. 2019: 128 and 382 of 512 tokens).

    Args:
        values: the tokens of all rows end to end.
        lengths: (N,) of each row.
        most: tokens that stay.
        how: "head_tail", "end" (the beginning stays) or "start" (the end stays).
    """
    if (lengths <= most).all():
        return values, lengths
    head = {"head_tail": most // 4, "end": most, "start": 0}[how]
    whole = np.repeat(lengths, lengths)
    place = np.arange(len(values)) - np.repeat(lengths.cumsum() - lengths, lengths)
    kept = (whole <= most) | (place < head) | (place >= whole - (most - head))
    return values[kept], np.minimum(lengths, most)
