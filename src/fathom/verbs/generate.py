"""`fathom generate`: let a language model write on from a prompt.

    generate(run, prompt, ...) -> [text]     whole texts
    stream(run, prompt, ...)                 the same, piece by piece as it is written
    Sampling                                 how the next token is drawn

    Writer                                   a predictor that writes: tokens after tokens, and their text
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fathom.algorithms.language import Choose, greedy, sample
from fathom.analysis.samples import makes
from fathom.core import device as devices
from fathom.core.contract import Predictor, Schema
from fathom.core.errors import FathomError
from fathom.fields.text import END, START, TURN, UNKNOWN, Text
from fathom.fields.vocabulary import REPLACEMENT
from fathom.verbs.assemble import Tell, silent
from fathom.verbs.result import Run, load

LENGTH = 300  # tokens
HELD = 4  # tokens that can begin a character which they do not end: a character has at most four bytes


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: logits are divided by it: below 1 safer, above 1 wilder; 0 takes the likeliest.
        top_k: draw from this many likeliest tokens only (Fan et al. 2018); 0 from all.
        top_p: draw from the fewest likeliest tokens that hold this share (Holtzman et al. 2020).
        seed: of the draws.

    Raises:
        FathomError: a value is out of its range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise FathomError(f"temperature = {self.temperature} should be 0 or more; 0 takes the likeliest token.")
        if self.top_k < 0:
            raise FathomError(f"top_k = {self.top_k} should be 0 (all tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise FathomError(f"top_p = {self.top_p} should be above 0 and at most 1 (all tokens).")

    def choice(self, device: torch.device) -> Choose:
        """Logits (B, V) -> tokens (B,), repeatable from here on."""
        if self.temperature == 0:
            return greedy
        generator = torch.Generator(device).manual_seed(self.seed)
        return sample(generator, self.temperature, self.top_k, self.top_p)


def generate(
    run: Run | str | Path,
    prompt: str = "",
    length: int = LENGTH,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    n: int = 1,
    tell: Tell = silent,
) -> list[str]:
    """Texts that a language model writes.

    Args:
        run: a finished run of a language model.
        prompt: what the texts begin with; of a dialogue its turns in lines.
        length: tokens to write at most.
        temperature, top_k, top_p, seed: see `Sampling`.
        n: how many texts; all from one seed, so that the first is the same whatever n is.
        tell: is called with what there is to know about the prompt.

    Returns:
        n texts, prompt included.

    Raises:
        FathomError: the run writes no text, or only from a source; an argument is out of its range.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    return ["".join(text) for text in stream(run, prompt, length, sampling, n, tell)]


def stream(
    run: Run | str | Path, prompt: str, length: int, sampling: Sampling, n: int = 1, tell: Tell = silent
) -> Iterator[Iterator[str]]:
    """Texts one after the other, each piece by piece; arguments as for `generate`."""
    for name, number in (("length", length), ("n", n)):
        if number < 1:
            raise FathomError(f"{name} = {number} should be 1 or more.")
    run = load(run)
    writer = Writer.of(run.predictor, str(run.path))
    if unknown := writer.unknown(prompt):
        shown = ", ".join(map(repr, unknown[:8])) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        tell(f"No training text has {shown}; the model reads {'it' if len(unknown) == 1 else 'them'} as unknown.")
    choose = sampling.choice(writer.device)
    return (writer.texts(prompt, length, choose) for _ in range(n))


def written_sample(predictor: Predictor, seed: int, length: int = 400) -> str:
    """What a language model writes of its own accord, for the report.

    Args:
        predictor: of a language model.
        seed: of the draws.
        length: tokens.
    """
    writer = Writer.of(predictor, "the model")
    return "".join(writer.texts("", length, Sampling(seed=seed).choice(writer.device))).strip("\n")


def text_target(schema: Schema) -> tuple[str, Text] | None:
    """Name and field of the text that is written; None where none is."""
    return next(((name, item) for name, item in schema.targets.items() if isinstance(item, Text)), None)


def writes_on(predictor: Predictor) -> bool:
    """Whether it writes a text from nothing but what stands before."""
    return text_target(predictor.schema) is not None and not predictor.schema.inputs and predictor.stream is not None


class Writer:
    """A predictor that writes.

    Args:
        predictor: of a language model.
        name: of the target.
        field: its vocabulary.
    """

    def __init__(self, predictor: Predictor, name: str, field: Text) -> None:
        assert predictor.stream is not None, "what writes text streams"
        self.name, self.field = name, field
        self._stream = predictor.stream
        parameters = (p for layer in predictor.layers.values() for p in layer.parameters())
        self.device = next((p.device for p in parameters), torch.device("cpu"))
        # Never learnt as something to write, so a draw of them would be noise.
        self.never = [UNKNOWN, TURN, END] if field.continuous else [UNKNOWN]

    @staticmethod
    def of(predictor: Predictor, what: str) -> Writer:
        """The writer of a language model.

        Raises:
            FathomError: it writes no text, or only from a source; names the verb that it is for.
        """
        found = text_target(predictor.schema)
        if found is None:
            kinds = ", ".join(item.kind for item in predictor.schema.targets.values())
            verb = f"generate {what} -n 64 -o samples.png" if makes(predictor.schema) else f"predict {what} INPUT"
            raise FathomError(f"{what} writes no text (what it answers is of kind {kinds}). Its verb is: fathom {verb}")
        if predictor.schema.inputs:
            sources = ", ".join(predictor.schema.inputs)
            raise FathomError(
                f"{what} writes '{found[0]}' from a source ({sources}), not from a prompt. "
                f'Its verb is: fathom predict {what} "a text"'
            )
        if not writes_on(predictor):
            raise FathomError(
                f"{what} fills gaps in '{found[0]}' and cannot write on: it learnt tokens from those on both sides. Its verb "
                f'is: fathom embed {what} "a text". What it learnt begins another run with: fathom fit DATA --from {what}'
            )
        return Writer(predictor, *found)

    # ------------------------------------------------------------ tokens

    def tokens_of(self, turns: list[str]) -> list[int]:
        """Turns -> tokens, joined by TURN."""
        values, lengths = self.field.codec.encode(turns)
        ends = lengths.cumsum()
        parts = [values[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True)]
        return [token for i, part in enumerate(parts) for token in ([TURN] if i else []) + part]

    def prompted(self, prompt: str) -> list[int]:
        """The tokens that a text begins with: START, or of one long text a line's beginning where nothing was given."""
        if not self.field.continuous:
            return [START, *self.tokens_of(prompt.split("\n") if self.field.dialogue else [prompt])]
        return self.tokens_of([prompt]) or self.tokens_of(["\n"]) or [UNKNOWN]

    def unknown(self, prompt: str) -> list[str]:
        """The characters or words of a prompt that the vocabulary does not hold."""
        parts = list(dict.fromkeys(prompt if self.field.level == "character" else prompt.split()))
        if not parts:
            return []
        values, lengths = self.field.codec.encode(parts)
        starts = lengths.cumsum() - lengths
        found = [values[a : a + size] for a, size in zip(starts, lengths, strict=True)]
        return [part for part, tokens in zip(parts, found, strict=True) if (tokens == UNKNOWN).any()]

    def tokens(self, given: list[int], longest: int, choose: Choose) -> Iterator[int]:
        """Tokens one after the other, up to END (which is left out).

        The network sees at most the window that it was trained on: where that is full, its second half goes on.

        Args:
            given: one token or more.
            longest: tokens at most.
            choose: logits (1, V) -> tokens (1,).
        """
        window, past = self.field.length, list(given)
        while longest > 0:
            kept = past if len(past) < window else past[-max(1, window // 2) :]
            room = min(longest, max(1, window - len(kept)))
            batch = {self.name: torch.tensor([kept], device=self.device)}
            written = self._stream(batch, self._allowed(choose), room)
            while True:
                with devices.threads(1):  # a token is little work: a second thread would only be waited for
                    made = next(written, None)
                if made is None:
                    break
                token = int(made[self.name])
                if token == END:
                    return
                past.append(token)
                yield token
            longest -= room

    def _allowed(self, choose: Choose) -> Choose:
        def among(logits: Tensor) -> Tensor:
            logits[:, self.never] = -torch.inf
            return choose(logits)

        return among

    # ------------------------------------------------------------ text

    def texts(self, prompt: str, length: int, choose: Choose) -> Iterator[str]:
        """The prompt, then what follows it, piece by piece."""
        if prompt:
            yield prompt
        given = self.prompted(prompt)
        begun = bool(prompt) and not prompt.endswith(("\n", " "))
        yield from self.pieces(self.tokens(given, length, choose), begun)

    def pieces(self, tokens: Iterator[int], begun: bool = False) -> Iterator[str]:
        """Tokens -> pieces of text; a character whose bytes come in several tokens is one piece.

        Args:
            tokens: as they are written; TURN is a line's end.
            begun: whether a word stands before the first one.
        """
        between = " " if self.field.level == "word" else ""
        held: list[int] = []
        for token in tokens:
            if token == TURN:
                yield self._written(held) + "\n"
                held, begun = [], False
                continue
            held.append(token)
            text = self._written(held)
            if text.endswith(REPLACEMENT) and len(held) < HELD and self.field.level == "bytepair":
                continue
            yield (between if begun else "") + text
            held, begun = [], True
        if held:
            yield self._written(held)

    def _written(self, tokens: list[int]) -> str:
        return self.field.codec.decode(tokens) if tokens else ""
