"""Learning text token by token: language models, translation, dialogue.

    Language            next-token cross-entropy with teacher forcing (Sutskever et al. 2014)
    greedy, sample      one token after the other: the likeliest, or drawn (temperature, top-k, top-p)
    beam                the likeliest whole answer among a few that are kept (Graves 2012; Wu et al. 2016)
    token_loss          nats of each token
    windows             stretches of one long text, drawn anew for each step
    mean_state          one vector a text: the mean of what the network makes of its tokens

A network for language gives logits of the token after each given one, `forward(*sources, given (B, T)) -> (B, T, V)`,
and continues without computing the past again: `start(*sources) -> state`, `extend(given (B, t), state) -> (B, t, V),
state`. A state is nested tuples, lists or dicts of tensors whose first dimension is the row. One that also has
`states(*sources) -> (B, T, D), (B, T)`, or `states(given)` where nothing is translated, can embed: what it makes of each
step, and which steps exist.

In comments: B rows, T tokens, V words of the vocabulary, K beams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from fathom.core.contract import Algorithm, Batch, Model, Predictor, Schema, Stage
from fathom.core.errors import FathomError
from fathom.core.optimize import Optimizer
from fathom.core.registry import algorithm
from fathom.core.tensors import TensorSet, end_to_end
from fathom.fields.text import END, PAD, START

if TYPE_CHECKING:
    from fathom.core.recipe import Training

Choose = Callable[[Tensor], Tensor]  # logits (B, V) -> tokens (B,)
BEAMS = 5
VALIDATED = 64  # rows measured at once
LENGTH_PENALTY = 1.0  # Wu et al. 2016, equation 14


def target_of(schema: Schema) -> str:
    """The name of the text that is learnt."""
    return next(name for name, item in schema.targets.items() if item.kind == "text")


@algorithm(
    "language",
    suits=lambda schema: any(item.kind == "text" for item in schema.targets.values()),
    watches=("perplexity",),
)
class Language(Algorithm):
    """Each token from those before it, and from the source where there is one.

    Without a source the training texts stand end to end, and a batch is cut out of them anywhere, `data.text.length`
    tokens a row.
    """

    @classmethod
    def roles(cls, schema: Schema) -> dict[str, Schema]:
        """One network; it reads the sources and the tokens so far.

        Raises:
            FathomError: there are other targets beside the text.
        """
        target = target_of(schema)
        if len(schema.targets) > 1:
            names = ", ".join(schema.targets)
            raise FathomError(f"A text is learnt alone, but the targets are {names}. Name one: --target {target}.")
        return {"model": Schema({**schema.inputs, target: schema.targets[target]}, {target: schema.targets[target]})}

    def build(self) -> None:
        """One optimizer."""
        training = self.context.recipe.training
        self.model, self.target = self.models["model"], target_of(self.schema)
        self.smoothing = training.label_smoothing
        self.optimizers = {"model": Optimizer(self.models, training, self.context.clock)}

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """Rows with a source as they are; without one, windows of all training text, drawn by the seed and the step."""
        if self.schema.inputs:
            yield from super().batches(stage, start)
            return
        stream, training = end_to_end(stage.data, self.target)[0], self.context.recipe.training
        length = self.schema.targets[self.target].shape[0] + 1
        for tokens in windows(stream, length, training.rows_per_batch(), training.seed, start):
            yield {self.target: tokens.to(self.context.device)}

    @classmethod
    def epoch(cls, schema: Schema, data: TensorSet, training: Training) -> int:
        """Batches of one pass: over the rows, or over all tokens where windows are cut."""
        if schema.inputs:
            return super().epoch(schema, data, training)
        target = target_of(schema)
        tokens = len(end_to_end(data, target)[0])
        return max(1, tokens // (training.rows_per_batch() * schema.targets[target].shape[0]))

    def validate(self, data: TensorSet) -> dict[str, float]:
        """Nats a token, without smoothing, and its exponential, over the whole split."""
        nats = tokens = 0.0
        with torch.inference_mode():
            for batch in self._whole(data):
                moved = {name: tensor.to(self.context.device) for name, tensor in batch.items()}
                text = moved[self.target]
                self.model.eval()
                output = self.model({**moved, self.target: text[:, :-1]})[self.target]
                losses, exists = token_loss(output, text[:, 1:])
                nats, tokens = nats + float(losses.sum()), tokens + float(exists.sum())
        mean = nats / max(tokens, 1)
        return {"loss": mean, "perplexity": math.exp(min(mean, 50.0))}

    def _whole(self, data: TensorSet) -> Iterator[Batch]:
        """Every row once; of a language model every token once, in windows end to end."""
        if self.schema.inputs:
            yield from data.batches(VALIDATED)
            return
        length = self.schema.targets[self.target].shape[0]
        stream = end_to_end(data, self.target)[0]
        windows = [stream[start : start + length + 1] for start in range(0, len(stream) - 1, length)]
        for start in range(0, len(windows), VALIDATED):
            yield {self.target: pad_sequence(windows[start : start + VALIDATED], batch_first=True, padding_value=PAD)}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Predict every next token, minimize its mean cross-entropy."""
        for regularizer in self.regularizers:
            batch = regularizer.batch(batch)
        tokens = batch[self.target]
        outputs = self.model({**batch, self.target: tokens[:, :-1]})
        losses, exists = token_loss(outputs[self.target], tokens[:, 1:], self.smoothing)
        loss = losses.sum() / exists.sum().clamp(min=1)
        measured = loss.detach()
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.models, batch, outputs)
        self.optimizers["model"].minimize(loss)
        return {"loss": measured}

    @classmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """The network in evaluation mode, with decoding."""
        model, target = models["model"], target_of(schema)

        def forward(batch: Batch) -> Batch:
            model.eval()
            return dict(model(batch))

        def answer(batch: Batch, beams: int = BEAMS, penalty: float = LENGTH_PENALTY, longest: int = 0) -> Batch:
            model.eval()
            sources = read_sources(model, batch)
            longest = longest or longest_answer(batch, schema)
            return {target: beam(model.module, sources, rows_of(batch), beams, longest, penalty)}

        def stream(batch: Batch, choose: Choose, longest: int = 200) -> Iterator[Batch]:
            model.eval()
            for token in continued(model.module, read_sources(model, batch), batch[target], longest, choose):
                yield {target: token[:, None]}

        def nats(batch: Batch) -> Tensor:
            tokens = batch[target]
            return token_loss(forward({**batch, target: tokens[:, :-1]})[target], tokens[:, 1:])[0].sum(1)

        def embed(batch: Batch) -> Tensor:
            model.eval()
            if not schema.inputs:
                return mean_state(model.module.states, batch[target], schema.targets[target].shape[0])  # type: ignore[arg-type]
            states, exists = model.module.states(*read_sources(model, batch))  # type: ignore[operator]
            return sum_over(states, exists) / exists.sum(1, keepdim=True)

        layers = {"preprocess": model.preprocess, "network": model.module}
        scores = {"nats": nats, "embed": embed} if hasattr(model.module, "states") else {"nats": nats}
        return Predictor(schema, layers, forward, answer if schema.inputs else None, stream, scores)


def windows(stream: Tensor, length: int, rows: int, seed: int, start: int) -> Iterator[Tensor]:
    """Endless batches (rows, length) of stretches of a text, drawn by the seed and the step alone.

    Args:
        stream: (N,) the text.
        length: tokens of a stretch; all of a shorter text.
        rows: of a batch.
        seed: of the run.
        start: the first step.
    """
    steps = torch.arange(min(length, len(stream)))
    for step in count(start):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        first = torch.randint(len(stream) - len(steps) + 1, (rows, 1), generator=generator)
        yield stream[first + steps]


def mean_state(read: Callable[[Tensor], tuple[Tensor, Tensor]], tokens: Tensor, window: int) -> Tensor:
    """(B, D) the mean over all tokens of what a network makes of each.

    Args:
        read: (B, T) tokens -> (B, T, D) states, and which of them exist.
        tokens: (B, T), PAD where a row has ended.
        window: tokens that the network sees at once; longer rows are read a window after the other.
    """
    exists = tokens != PAD  # not what `read` says: of a window without a token it counts the first, so as to see something
    parts = zip(tokens.split(window, 1), exists.split(window, 1), strict=True)
    sums = [sum_over(read(part)[0], there) for part, there in parts]
    return torch.stack(sums).sum(0) / exists.sum(1, keepdim=True).clamp(min=1)


def sum_over(states: Tensor, exists: Tensor) -> Tensor:
    """(B, D) the sum of states (B, T, D) over the steps that exist (B, T)."""
    return (states.float() * exists[..., None]).sum(1)


def token_loss(logits: Tensor, wanted: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each token.

    Args:
        logits: (B, T, V).
        wanted: (B, T) tokens; PAD where a row has ended.
        smoothing: share of the probability spread over all tokens (Szegedy et al. 2016).

    Returns:
        (B, T) nats, 0 where there is no token, and (B, T) where there is one.
    """
    wanted = wanted.long()
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction="none"
    )
    return losses.view(wanted.shape), wanted != PAD


# Decoding


def read_sources(model: Model, batch: Batch) -> list[Tensor]:
    """The source inputs as the network reads them: all but the last, which is the text itself."""
    names = model.input_names[:-1]
    return [layer(batch[name]) for name, layer in zip(names, model.preprocess, strict=False)]


def rows_of(batch: Batch) -> int:
    """B."""
    return len(next(iter(batch.values())))


def longest_answer(batch: Batch, schema: Schema) -> int:
    """Tokens at which an answer is cut: twice the longest source and some."""
    return 2 * max(batch[name].shape[1] for name in schema.inputs) + 20


def greedy(logits: Tensor) -> Tensor:
    """(B, V) -> (B,) the likeliest token."""
    return logits.argmax(1)


def sample(generator: torch.Generator, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Choose:
    """A choice that draws.

    Args:
        generator: makes the draws repeatable.
        temperature: logits are divided by it; near 0 it is greedy.
        top_k: draw from this many likeliest tokens only; 0 from all.
        top_p: draw from the fewest likeliest tokens that hold this share (nucleus; Holtzman et al. 2020).
    """

    def choose(logits: Tensor) -> Tensor:
        logits = logits.float() / max(temperature, 1e-6)
        if top_k:
            least = logits.topk(min(top_k, logits.shape[1]), dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if top_p < 1:
            ordered, places = logits.sort(1, descending=True)
            share = ordered.softmax(1)
            beyond = share.cumsum(1) - share >= top_p
            beyond[:, 0] = False
            logits = logits.scatter(1, places, ordered.masked_fill(beyond, -torch.inf))
        return torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]

    return choose


@torch.inference_mode()  # a decorator, so that what stands between two tokens is not inside
def continued(network: Any, sources: list[Tensor], given: Tensor, longest: int, choose: Choose) -> Iterator[Tensor]:
    """Tokens (B,) one after the other, until every row has ended; PAD follows a row's END.

    Args:
        network: as this file describes.
        sources: as `read_sources` gives them.
        given: (B, t) the tokens so far, START at least.
        longest: tokens at most.
        choose: logits (B, V) -> tokens (B,).
    """
    state = network.start(*sources)
    ended = torch.zeros(len(given), dtype=torch.bool, device=given.device)
    for _ in range(longest):
        logits, state = network.extend(given, state)
        last = logits[:, -1].float()
        last[:, [PAD, START]] = -torch.inf
        token = torch.where(ended, PAD, choose(last))
        yield token
        ended = ended | (token == END)
        if ended.all():
            return
        given = token[:, None]


def beam(network: Any, sources: list[Tensor], rows: int, beams: int, longest: int, penalty: float) -> Tensor:
    """The answer of each row with the largest log probability / ((5 + length) / 6) ** penalty, among K that are kept.

    Args:
        network: as this file describes.
        sources: as `read_sources` gives them.
        rows: B.
        beams: K; 1 is greedy.
        longest: tokens at most.
        penalty: 0 favours short answers.

    Returns:
        (B, T) tokens from START to END, PAD after it.
    """
    with torch.inference_mode():
        device = sources[0].device if sources else torch.device("cpu")
        state = reorder(network.start(*sources), torch.arange(rows, device=device).repeat_interleave(beams))
        tokens = torch.full((rows * beams, 1), START, dtype=torch.long, device=device)
        scores = torch.full((rows, beams), -torch.inf, device=device)
        scores[:, 0] = 0  # all beams of a row begin alike; one of them counts
        first = torch.arange(rows, device=device)[:, None] * beams
        for _ in range(longest):
            logits, state = network.extend(tokens[:, -1:], state)
            likely = logits[:, -1].float().log_softmax(1)  # (B K, V)
            likely[:, [PAD, START]] = -torch.inf
            ended = (tokens[:, -1] == END) | (tokens[:, -1] == PAD)
            likely[ended] = -torch.inf
            likely[ended, PAD] = 0
            words = likely.shape[1]
            total = scores[:, :, None] + likely.view(rows, beams, words)
            scores, place = total.flatten(1).topk(beams, dim=1)  # (B, K)
            origin = (first + place // words).flatten()
            tokens = torch.cat([tokens[origin], (place % words).view(-1, 1)], 1)
            state = reorder(state, origin)
            if bool(((tokens[:, -1] == END) | (tokens[:, -1] == PAD)).all()):
                break
        lengths = (tokens != PAD).sum(1).view(rows, beams) - 1
        best = (scores / ((5 + lengths) / 6) ** penalty).argmax(1, keepdim=True)  # (B, 1)
        chosen = tokens[(first + best).flatten()]
        return chosen[:, : int((chosen != PAD).sum(1).max())]


def reorder(state: Any, index: Tensor) -> Any:
    """The rows `index` of every tensor of a state."""
    if isinstance(state, Tensor):
        return state.index_select(0, index)
    if isinstance(state, Mapping):
        return {name: reorder(part, index) for name, part in state.items()}
    return type(state)(reorder(part, index) for part in state)
