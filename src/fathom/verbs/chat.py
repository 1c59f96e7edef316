"""`fathom chat`: talk to a model of dialogues.

    chat(run, turns) -> text      the answer to a dialogue
    Conversation                  the same turn by turn, streamed, with what was said kept
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from fathom.algorithms.language import Choose
from fathom.core.errors import FathomError
from fathom.fields.text import END, START, TURN
from fathom.verbs.generate import Sampling, Writer
from fathom.verbs.result import Run, load

LONGEST = 100  # tokens of an answer


def chat(
    run: Run | str | Path,
    turns: str | Sequence[str],
    length: int = LONGEST,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
) -> str:
    """The next turn of a dialogue.

    Args:
        run: a finished run that was trained on dialogues.
        turns: what was said so far, the last turn that of the user; one turn may come as it is.
        length: tokens of the answer at most.
        temperature, top_k, top_p, seed: see `fathom.verbs.generate.Sampling`.

    Raises:
        FathomError: the run was not trained on dialogues, or nothing was said.
    """
    said = [turns] if isinstance(turns, str) else list(turns)
    if not said:
        raise FathomError("Nothing was said; give a turn, as in: fathom.chat(run, 'Hello !')")
    conversation = Conversation(run, length, Sampling(temperature, top_k, top_p, seed))
    conversation.turns = said[:-1]
    return "".join(conversation.answer(said[-1])).strip()


class Conversation:
    """A dialogue with a model.

    Args:
        run: a finished run that was trained on dialogues.
        length: tokens of an answer at most.
        sampling: how tokens are drawn.

    Attributes:
        turns: what was said, by both.
        tokens, seconds: written so far, and what that took.
    """

    def __init__(self, run: Run | str | Path, length: int = LONGEST, sampling: Sampling | None = None) -> None:
        run = load(run)
        if length < 1:
            raise FathomError(f"length = {length} should be 1 or more.")
        self.writer = Writer.of(run.predictor, str(run.path))
        if not self.writer.field.dialogue:
            raise FathomError(f"{run.path} was not trained on dialogues. Its verb is: fathom generate {run.path} --prompt TEXT")
        self.choose = (sampling or Sampling()).choice(self.writer.device)
        self.length = length
        self.turns: list[str] = []
        self.tokens = 0
        self.seconds = 0.0

    @property
    def tokens_a_second(self) -> float:
        """How fast it has written so far."""
        return self.tokens / max(self.seconds, 1e-9)

    def answer(self, text: str) -> Iterator[str]:
        """What the model says to the next turn, piece by piece; both are kept once it is whole."""
        said: list[str] = []
        for piece in self.writer.pieces(self._written(text)):
            said.append(piece)
            yield piece
        self.turns += [text, "".join(said).strip()]

    def _written(self, text: str) -> Iterator[int]:
        given = self.given([*self.turns, text])
        start = time.perf_counter()
        longest = min(self.length, max(1, self.writer.field.length - len(given)))
        for token in self.writer.tokens(given, longest, _not_empty(self.choose)):
            self.seconds, start = self.seconds + time.perf_counter() - start, time.perf_counter()
            if token == TURN:
                return
            self.tokens += 1
            yield token
            start = time.perf_counter()

    def given(self, turns: Sequence[str]) -> list[int]:
        """START and the last turns, a TURN after each: as many as leave room for an answer in the window."""
        window = self.writer.field.length
        room = max(window - 1 - min(self.length, window // 2), 1)
        kept: list[int] = []
        for turn in reversed(turns):
            tokens = [*self.writer.tokens_of([turn]), TURN]
            if kept and len(kept) + len(tokens) > room:
                break
            kept = tokens[-room:] + kept
        return [START, *kept]


def _not_empty(choose: Choose) -> Choose:
    """The same choice, but an answer does not end before it has begun."""
    begun = False

    def among(logits: Tensor) -> Tensor:
        nonlocal begun
        if not begun:
            logits[:, [TURN, END]] = -float("inf")
            begun = True
        return choose(logits)

    return among
