"""Vocabularies: texts to token numbers and back, at the level of words, characters or byte pairs.

    train(level, batches, size, lowercase) -> state     plain JSON, from batches of texts that are streamed once
    read(state) -> Codec                                .encode .decode .size .token_bytes; published ones as well

Words and byte pairs are the library `tokenizers`, whose own JSON is the state; characters are a sorted string. Byte
pairs (Sennrich et al. 2016, over bytes as in Radford et al. 2019) and characters decode to exactly the text that was
encoded; words lose white space and, where that is wanted, upper case.

Numbers 0 to 4 are special in every vocabulary. The names of special tokens hold blanks, which no token of a text does,
so that nothing a user writes can ever be read as one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np

from fathom.core.errors import DataError
from fathom.fields.published import Pieces

Level = Literal["word", "character", "bytepair", "pretrained"]

PAD, UNKNOWN, START, END, TURN = range(5)
SPECIAL = ("< pad >", "< unknown >", "< start >", "< end >", "< turn >")
SIZES: dict[Level, int] = {"word": 30_000, "bytepair": 8_000}  # characters: all that were seen
BYTES = 256
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what an unknown word or character is written as


class Codec(Protocol):
    """Texts to token numbers and back."""

    size: int

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> (sum of lengths,) int32 tokens end to end, and (N,) int64 lengths."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens that are not special (but for UNKNOWN) -> text."""
        ...

    def token_bytes(self) -> np.ndarray:
        """(size,) float64, bytes of UTF-8 that each token stands for: 0 for special ones, nan where that is not known."""
        ...


def train(level: Level, batches: Iterable[Sequence[str]], size: int | None, lowercase: bool) -> dict[str, Any]:
    """Learn a vocabulary.

    Args:
        level: what a token is.
        batches: lists of texts, read once.
        size: most tokens, the five special ones among them; the level's default where None.
        lowercase: whether upper case is given up.

    Returns:
        The state that `read` takes, plain JSON.

    Raises:
        DataError: `size` holds no vocabulary of this level.
    """
    wanted = size or SIZES.get(level)
    least = len(SPECIAL) + (BYTES if level == "bytepair" else 1)
    if wanted is not None and wanted < least:
        what = (
            f"{BYTES} bytes and {len(SPECIAL)} special tokens" if level == "bytepair" else "special tokens and one more"
        )
        raise DataError(
            f"data.text.vocabulary = {wanted} is too small: a {level} vocabulary holds {what}, so it needs {least} or more."
        )
    if level == "character":
        return _train_characters(batches, wanted, lowercase)
    return _train_tokens(level, batches, wanted or least, lowercase)


def read(state: Mapping[str, Any]) -> Codec:
    """The vocabulary that `train` learned, or a published one."""
    if "prefix" in state:
        return Pieces(state)
    if "characters" in state:
        return Characters(state["characters"], state["lowercase"])
    return Tokens(state["tokenizer"])


# ---------------------------------------------------------------- characters


def _train_characters(batches: Iterable[Sequence[str]], size: int | None, lowercase: bool) -> dict[str, Any]:
    counts: Counter[int] = Counter()
    for texts in batches:
        codes, number = np.unique(_code_points("".join(texts), lowercase), return_counts=True)
        counts.update(dict(zip(codes.tolist(), number.tolist(), strict=True)))
    ranked = sorted(counts, key=lambda code: (-counts[code], code))
    kept = ranked if size is None else ranked[: size - len(SPECIAL)]
    return {"characters": "".join(map(chr, sorted(kept))), "lowercase": lowercase}


def _code_points(text: str, lowercase: bool) -> np.ndarray:
    """(characters,) uint32."""
    return np.frombuffer((text.lower() if lowercase else text).encode("utf-32-le"), np.uint32)


class Characters:
    """One token a character; those that no training text had are UNKNOWN.

    Args:
        characters: the known ones, sorted.
        lowercase: whether upper case is given up.
    """

    def __init__(self, characters: str, lowercase: bool) -> None:
        self.characters = characters
        self.lowercase = lowercase
        self.size = len(SPECIAL) + len(characters)
        self._codes = _code_points(characters, False)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All texts at once: a binary search of each character."""
        given = [text.lower() for text in texts] if self.lowercase else texts
        codes = _code_points("".join(given), False)
        places = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(places, len(self._codes) - 1)] == codes if len(self._codes) else codes < 0
        tokens = np.where(known, places + len(SPECIAL), UNKNOWN).astype(np.int32)
        return tokens, np.fromiter(map(len, given), np.int64, len(given))

    def decode(self, tokens: Sequence[int]) -> str:
        """The characters one after the other."""
        first = len(SPECIAL)
        return "".join(REPLACEMENT if token == UNKNOWN else self.characters[token - first] for token in tokens)

    def token_bytes(self) -> np.ndarray:
        """Bytes of each character in UTF-8."""
        return np.array([0.0] * len(SPECIAL) + [len(character.encode()) for character in self.characters])


# ---------------------------------------------------------------- words and byte pairs


def _train_tokens(level: Level, batches: Iterable[Sequence[str]], size: int, lowercase: bool) -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made: Any
    trainer: Any
    if level == "word":
        made = Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
        spread = normalizers.BertNormalizer(  # a word a Chinese character, since no blanks stand between words there
            clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=lowercase
        )
        made.normalizer = normalizers.Sequence([normalizers.NFC(), spread])
        made.pre_tokenizer = pre_tokenizers.Whitespace()  # words, and runs of punctuation
        trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    else:
        made = Tokenizer(models.BPE())
        if lowercase:
            made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )  # fmt: skip
    made.train_from_iterator(_lists(batches), trainer)
    tree = json.loads(made.to_str())
    tree["added_tokens"] = []  # else their names would be searched in every text
    return {"tokenizer": tree}


def _lists(batches: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    return (list(texts) for texts in batches)


class Tokens:
    """Words or byte pairs.

    Args:
        tree: the tokenizer's own JSON.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(json.dumps(tree))
        self._byte_level = tree["decoder"] is not None
        self.size = self._tokenizer.get_vocab_size()
        self._names = [""] * self.size
        for name, token in self._tokenizer.get_vocab().items():
            self._names[token] = name

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All texts at once, on all cores."""
        found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        return np.fromiter(chain.from_iterable(found), np.int32, int(lengths.sum())), lengths

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes joined and read as UTF-8, or words with blanks between them."""
        if self._byte_level:
            text: str = self._tokenizer.decode(
                [token for token in tokens if token != UNKNOWN], skip_special_tokens=False
            )
            return text
        return " ".join(REPLACEMENT if token == UNKNOWN else self._names[token] for token in tokens)

    def token_bytes(self) -> np.ndarray:
        """Bytes of each byte pair, which are the letters of its name; words do not say what stood between them."""
        known = [float(len(name)) if self._byte_level else float("nan") for name in self._names[len(SPECIAL) :]]
        return np.array([0.0] * len(SPECIAL) + known)
