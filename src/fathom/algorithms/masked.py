"""Learning a text by filling its gaps: the masked language model of BERT (Devlin et al. 2019).

    Masked              cross-entropy of the hidden tokens, from those on both sides of them
    asked               what the network is asked: a text for its hidden tokens
    settings            the text alone is read of a table

A network for it reads tokens (B, T), of which those with the number V are hidden, and gives logits (B, T, V). One that has
`states(tokens) -> (B, T, W), (B, T)` and `guess(states (..., W)) -> (..., V)` is asked at the hidden places only, which
saves most of the work where the vocabulary is large, and can embed.

What is learnt here is a beginning for networks that read text: `fathom fit DATA --from RUN`. Which tokens are hidden
stands in `fields/masking`; training hides others at every step (Liu et al. 2019), measuring always the same.

In comments: B rows, T tokens, K places, V words of the vocabulary, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fathom.algorithms.language import VALIDATED, Language, mean_state, token_loss, windows
from fathom.core.contract import ROW, Algorithm, Batch, Model, Predictor, Schema, Stage, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.optimize import Optimizer
from fathom.core.registry import algorithm
from fathom.core.tensors import TensorSet, end_to_end
from fathom.fields.masking import SHARE, drawn, fixed, hide, plain
from fathom.fields.text import PAD, Text

if TYPE_CHECKING:
    from fathom.core.recipe import Data, Training


def asked(schema: Schema) -> Schema:
    """What the network is asked: the text, as it is given, for its hidden tokens.

    The target has a name of its own, so that a network can tell this from writing on (see `job` in networks/sequence).

    Raises:
        FathomError: there is anything else to learn, or to learn from.
    """
    name, item = next(iter(schema.targets.items()), ("", None))
    if schema.inputs or len(schema.targets) > 1 or not isinstance(item, Text):
        given = [f"'{key}' ({field.kind})" for key, field in schema.inputs.items()]
        wanted = [f"'{key}' ({field.kind})" for key, field in schema.targets.items()]
        raise FathomError(
            f"Algorithm masked learns one text from itself; here {', '.join(given) or 'nothing'} should tell "
            f"{', '.join(wanted) or 'nothing'}. Name the column of texts alone: --algorithm masked --target COLUMN, "
            "or give a .txt file."
        )
    return Schema({name: item}, {wanted_name(name): item})


def settings(data: Data) -> dict[str, Any]:
    """The one target is a text, and no other column is read.

    Args:
        data: as the user gave it; what stands there stays.
    """
    if data.target is None:
        return {}
    types = {**dict.fromkeys(data.target, "text"), **data.types}
    return {"data.types": types, "data.input": [] if data.input is None else data.input}


@algorithm(
    "masked",
    suits=lambda schema: False,  # for those who name it: any text can be learnt so
    asks=asked,
    settings=settings,
    task="masked language model",
    watches=("masked_accuracy", "perplexity"),
    paper="Devlin et al. 2019, BERT: pre-training of deep bidirectional transformers",
)
class Masked(Algorithm):
    """Hidden tokens from those on both sides of them."""

    share: Annotated[float, Field(gt=0, lt=1)] = hyperparameter(
        SHARE, search=[0.15, 0.3, 0.4], help="of the tokens that training hides; measured is always with 0.15"
    )

    @classmethod
    def roles(cls, schema: Schema) -> dict[str, Schema]:
        """One network."""
        return {"model": asked(schema)}

    def build(self) -> None:
        """One optimizer."""
        training = self.context.recipe.training
        self.model = self.models["model"]
        self.name, self.field = text_of(self.schema)
        self.smoothing = training.label_smoothing
        self.optimizers = {"model": Optimizer(self.models, training, self.context.clock)}

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """Rows with hidden tokens, others at each step; of one long text windows drawn by the seed and the step."""
        seed = self.context.recipe.training.seed
        for step, tokens in zip(count(start), self._tokens(stage, start), strict=False):
            given, wanted = hide(tokens, drawn(tokens.shape, seed, step), self.field.size, self.share)
            yield {self.name: given, wanted_name(self.name): wanted}

    def _tokens(self, stage: Stage, start: int) -> Iterator[Tensor]:
        """(B, T) the tokens of each batch, none of them hidden."""
        if not self.field.continuous:
            yield from (plain(batch[self.name], False) for batch in super().batches(stage, start))
            return
        training = self.context.recipe.training
        stream = end_to_end(stage.data, self.name)[0]
        for tokens in windows(stream, self.field.length, training.rows_per_batch(), training.seed, start):
            yield tokens.to(self.context.device)

    @classmethod
    def epoch(cls, schema: Schema, data: TensorSet, training: Training) -> int:
        """Batches of one pass: over the rows, or over all tokens where windows are cut."""
        continuous = text_of(schema)[1].continuous
        return Language.epoch(schema, data, training) if continuous else super().epoch(schema, data, training)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Guess the hidden tokens, minimize their mean cross-entropy."""
        for regularizer in self.regularizers:
            batch = regularizer.batch(batch)
        wanted = batch[wanted_name(self.name)]
        logits, wanted = guesses(self.model, batch[self.name], wanted, int(self.share * wanted.shape[1]) + 1)
        losses, exists = token_loss(logits, wanted, self.smoothing)
        loss = losses.sum() / exists.sum().clamp(min=1)
        measured = loss.detach()
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.models, batch, {wanted_name(self.name): logits})
        self.optimizers["model"].minimize(loss)
        return {"loss": measured}

    def validate(self, data: TensorSet) -> dict[str, float]:
        """Nats a hidden token, without smoothing, its exponential, and the share guessed right; always the same tokens."""
        measure = self.predictor().scores["masked"]
        sums = torch.zeros(4, dtype=torch.float64)
        with torch.inference_mode():
            for batch in data.batches(VALIDATED):
                moved = {name: tensor.to(self.context.device) for name, tensor in batch.items()}
                sums += measure(moved).sum(0).cpu()
        nats, tokens, _, right = sums.tolist()
        mean = nats / max(tokens, 1)
        return {
            "loss": mean, "masked_accuracy": right / max(tokens, 1), "perplexity": math.exp(min(mean, 50.0)),
        }  # fmt: skip

    @classmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """The network in evaluation mode, with what is measured and one vector a text.

        `forward` reads tokens as they are; `scores["masked"]` hides some by the number of the row and counts, (B, 4): nats,
        tokens, 0 (bytes, which are not known of single tokens), tokens guessed right.
        """
        model, (name, field) = models["model"], text_of(schema)
        read = getattr(model.module, "states", None)

        def forward(batch: Batch) -> Batch:
            model.eval()
            return {name: model(batch)[wanted_name(name)]}

        def masked(batch: Batch) -> Tensor:
            model.eval()
            tokens = plain(batch[name], field.continuous)
            given, wanted = hide(tokens, fixed(batch[ROW], tokens.shape[1]), field.size)
            parts = zip(given.split(field.length, 1), wanted.split(field.length, 1), strict=True)
            return torch.stack([counted(model, part, there) for part, there in parts]).sum(0)

        def embed(batch: Batch) -> Tensor:
            model.eval()
            return mean_state(read, plain(batch[name], field.continuous), field.length)  # type: ignore[arg-type]

        layers = {"preprocess": model.preprocess, "network": model.module}
        scores = {"masked": masked, "embed": embed} if read else {"masked": masked}
        return Predictor(schema, layers, forward, scores=scores)


def text_of(schema: Schema) -> tuple[str, Text]:
    """Name and field of the text.

    Raises:
        FathomError: see `asked`.
    """
    name, item = next(iter(asked(schema).inputs.items()))
    assert isinstance(item, Text), "asked for a text"
    return name, item


def wanted_name(name: str) -> str:
    """Of the tokens to be guessed, in a batch: what `asked` calls them."""
    return f"{name} (masked)"


def guesses(model: Model, given: Tensor, wanted: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """What the network guesses where there is something to guess.

    The places are gathered to a size that is known beforehand, so that nothing waits for the device.

    Args:
        model: as this file describes.
        given: (B, T) tokens.
        wanted: (B, T) what is to be guessed, PAD elsewhere.
        most: K, places of a row at most.

    Returns:
        (B, K, V) logits, and (B, K) what is wanted there; PAD where a row has fewer.
    """
    places = (wanted == PAD).int().argsort(dim=1, stable=True)[:, :most]  # (B, K)
    (name,), (target,) = model.input_names, model.target_shapes
    network: Any = model.module
    if hasattr(network, "states") and hasattr(network, "guess"):
        (layer,) = model.preprocess
        states = network.states(layer(given))[0]  # (B, T, W)
        logits = network.guess(chosen(states, places))
    else:
        logits = chosen(model({name: given})[target], places)
    return logits, wanted.gather(1, places)


def chosen(steps: Tensor, places: Tensor) -> Tensor:
    """(B, T, W) steps at places (B, K) -> (B, K, W)."""
    return steps.gather(1, places[..., None].expand(-1, -1, steps.shape[2]))


def counted(model: Model, given: Tensor, wanted: Tensor) -> Tensor:
    """(B, 4) float64: nats, tokens, 0, and tokens guessed right; arguments as for `guesses`."""
    logits, wanted = guesses(model, given, wanted, max(1, int((wanted != PAD).sum(1).max())))
    nats, exists = token_loss(logits, wanted)
    right = exists & (logits.argmax(2) == wanted)
    sums = [nats.double().sum(1), exists.sum(1), torch.zeros(len(given), device=given.device), right.sum(1)]
    return torch.stack([each.double() for each in sums], 1)
