"""Recurrent networks: one state, carried from step to step.

rnn     s' = tanh(W x + U s) (Elman 1990); forgets within some twenty steps
lstm    a cell that gates keep or overwrite (Hochreiter & Schmidhuber 1997)
gru     the same idea with two gates instead of three (Cho et al. 2014)

Gates forget within a few steps at first, too; where hundreds must be bridged, `memory` says how many (`_remember`).

Each does three jobs, decided by the schema: a class or number from a sequence (`Recurrent`), the next token
(`RecurrentLanguage`), and a text from a text, with attention over the source (`RecurrentTranslator`; Luong et al. 2015).

In comments: B rows, T steps, S source steps, H units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import output_size, unfit
from fathom.networks.sequence import (
    STEPS,
    PoolName,
    StepEmbedding,
    at_least_one,
    is_sequence,
    job,
    pool,
    pooled_width,
    present,
    surely,
)

Share = Annotated[float, Field(ge=0, lt=1)]
CellName = Literal["rnn", "lstm", "gru"]
CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def cells(cell: str, inputs: int, units: int, layers: int = 1, dropout: float = 0.0, memory: int = 0) -> nn.RNNBase:
    """Layers of one kind of cell, one direction, rows first.

    Weights: orthogonal from state to state (Saxe et al. 2014), forget gates open at first (Gers et al. 2000).

    Args:
        cell: rnn, lstm or gru.
        inputs: width of a step.
        units: H.
        layers: on top of each other.
        dropout: between them.
        memory: steps for which gates remember at first, see `_remember`; 0 leaves them as above.
    """
    made = CELLS[cell](inputs, units, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
    for name, weight in made.named_parameters():
        if "weight_hh" in name:
            for gate in weight.data.split(units):
                nn.init.orthogonal_(gate)
        elif "weight_ih" in name:
            nn.init.xavier_uniform_(weight)
        else:
            nn.init.zeros_(weight)
            if memory and "bias_ih" in name:
                _remember(weight.data, cell, units, memory)
            elif cell == "lstm" and "bias_ih" in name:
                weight.data[units : 2 * units] = 1.0
    return made


def _remember(bias: Tensor, cell: str, units: int, memory: int) -> None:
    """Biases by which units forget at rates spread from one step to `memory` steps (Tallec & Ollivier 2018, section 3).

    A gate of value 1 - 1/t keeps a state for about t steps, and sigmoid(log(t - 1)) is that value. What is kept long is
    written seldom, or it would be washed out: the input gate's bias is the negative (a GRU's one gate does both).
    """
    keep = torch.empty(units).uniform_(1.0, max(memory - 1.0, 1.0)).log()
    bias[units : 2 * units] = keep  # torch's order: input, forget, cell, output; of a GRU reset, update, new
    if cell == "lstm":
        bias[:units] = -keep


class Steps(nn.Module):
    """Recurrent layers over rows of unequal length: (B, T, width) -> (B, T, H or 2 H).

    Steps that exist are moved to the front, where what follows them cannot touch them; the backward direction reads each
    row reversed up to its own end. So nothing is packed, and every layer runs as one call.
    """

    def __init__(
        self, cell: str, inputs: int, units: int, layers: int, both: bool, dropout: float, memory: int = 0
    ) -> None:
        super().__init__()
        self.width = units * (2 if both else 1)
        sizes = [inputs] + [self.width] * (layers - 1)
        self.forwards = nn.ModuleList([cells(cell, size, units, memory=memory) for size in sizes])
        self.backwards = nn.ModuleList([cells(cell, size, units, memory=memory) for size in sizes if both])
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor, exists: Tensor) -> Tensor:
        """The state after each step; zeros where there is none."""
        in_front = surely((exists[:, 1:] <= exists[:, :-1]).all())
        order = None if in_front else (~exists).int().argsort(dim=1, stable=True)
        steps = steps if order is None else moved(steps, order)
        length = exists.sum(1, keepdim=True)  # (B, 1)
        places = torch.arange(exists.shape[1], device=exists.device)  # (T,)
        turned_around = torch.where(places < length, length - 1 - places, places)  # (B, T)
        for i, forwards in enumerate(self.forwards):
            states = forwards(self.dropout(steps) if i else steps)[0]
            if self.backwards:
                back = self.backwards[i](moved(steps, turned_around))[0]
                states = torch.cat([states, moved(back, turned_around)], 2)
            steps = states
        return (steps if order is None else moved(steps, order.argsort(1))) * exists[..., None]


def moved(steps: Tensor, places: Tensor) -> Tensor:
    """(B, T, W) steps in another order, (B, T)."""
    return steps.gather(1, places[..., None].expand_as(steps))


class Recurrent(nn.Module):
    """One sequence, and ordinary inputs beside it -> one row of outputs.

    Args:
        schema: one input of kind text or series; others are flattened and join before the head.
        embedding: width of an embedded token; measured values go in as they are.
    """

    def __init__(
        self, schema: Schema, cell: str, embedding: int, units: int, layers: int, both: bool,
        pooling: PoolName, dropout: float, memory: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        items = list(schema.inputs.values())
        self.place = next(i for i, item in enumerate(items) if is_sequence(item))
        item = items[self.place]
        self.embed: nn.Module = StepEmbedding(item, embedding) if item.kind == "text" else nn.Identity()
        width = embedding if item.kind == "text" else item.shape[-1]
        self.steps = Steps(cell, width, units, layers, both, dropout, memory)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.pooled = pooled_width(self.steps.width, pooling)
        beside = sum(math.prod(other.shape) for other in items if other is not item)
        self.head = nn.Linear(self.pooled + beside, output_size(schema))

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, T) tokens or (B, T, F) values, and (B, ...) others -> (B, outputs)."""
        return self.decide(self.features(*inputs))

    def features(self, *inputs: Tensor) -> Tensor:
        """(B, T) tokens or (B, T, F) values, and (B, ...) others -> (B, D)."""
        steps = inputs[self.place]
        exists = present(steps)
        states = self.steps(self.dropout(self.embed(steps)), exists)
        others = [x.flatten(1) for i, x in enumerate(inputs) if i != self.place]
        return torch.cat([pool(states, exists, self.pooling), *others], 1)

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs). Of what stands beside the sequence nothing is silenced."""
        vector, others = features[:, : self.pooled], features[:, self.pooled :]
        return self.head(torch.cat([self.dropout(vector), others], 1))


class RecurrentLanguage(nn.Module):
    """The next token from the tokens so far."""

    def __init__(
        self, schema: Schema, cell: str, embedding: int, units: int, layers: int, dropout: float, memory: int = 0
    ) -> None:
        super().__init__()
        (item,) = schema.inputs.values()
        self.embed = StepEmbedding(item, embedding)
        self.cell = cells(cell, embedding, units, layers, dropout, memory)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(units, item.size)  # type: ignore[attr-defined]

    def start(self) -> Any:
        """Nothing is known yet."""
        return ()

    def states(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> (B, T, H), and (B, T) which tokens exist."""
        return self.cell(self.dropout(self.embed(given)))[0], present(given)

    def extend(self, given: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, T, V) after each given token (B, T), and the state after the last."""
        states, state = self.cell(self.dropout(self.embed(given)), turned(state) if len(state) else None)
        return self.head(self.dropout(states)), turned(state)

    def forward(self, given: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        return self.extend(given, ())[0]


def turned(state: Any) -> Any:
    """torch keeps states as (layers, B, H), decoding needs rows first; turning twice gives the first back."""
    return state.transpose(0, 1).contiguous() if isinstance(state, Tensor) else tuple(turned(part) for part in state)


class RecurrentTranslator(nn.Module):
    """A bidirectional encoder, and a decoder that attends to the source by dot products (Luong et al. 2015)."""

    def __init__(
        self, schema: Schema, cell: str, embedding: int, units: int, layers: int, dropout: float, memory: int = 0
    ) -> None:
        super().__init__()
        source, item = schema.inputs.values()
        self.read = StepEmbedding(source, embedding)
        self.encoder = Steps(cell, embedding, max(1, units // 2), layers, True, dropout, memory)
        width = self.encoder.width
        self.embed = StepEmbedding(item, embedding)
        self.decoder = cells(cell, embedding, width, layers, dropout, memory)
        self.bridge = nn.Linear(width, width)
        self.query = nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(2 * width, embedding)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(embedding, item.size)  # type: ignore[attr-defined]
        self.layers, self.gated = layers, cell == "lstm"

    def start(self, source: Tensor) -> Any:
        """Read the source (B, S)."""
        memory, exists = self.states(source)
        first = torch.tanh(self.bridge(pool(memory, exists, "mean")))  # (B, H)
        hidden = first[:, None].expand(-1, self.layers, -1).contiguous()  # (B, layers, H)
        return {"memory": memory, "exists": exists, "state": (hidden, torch.zeros_like(hidden)) if self.gated else hidden}

    def states(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B, S, H) what the decoder reads of the source, and (B, S) which steps exist."""
        exists = at_least_one(present(source))
        return self.encoder(self.dropout(self.read(source)), exists), exists

    def extend(self, given: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, T, V) after each given token (B, T), and the state after the last."""
        states, after = self.decoder(self.dropout(self.embed(given)), turned(state["state"]))  # (B, T, H)
        scores = self.query(states) @ state["memory"].transpose(1, 2)  # (B, T, S)
        weights = scores.masked_fill(~state["exists"][:, None], -torch.inf).softmax(2)
        seen = weights @ state["memory"]  # (B, T, H)
        mixed = torch.tanh(self.mix(torch.cat([states, seen], 2)))
        return self.head(self.dropout(mixed)), {**state, "state": turned(after)}

    def forward(self, source: Tensor, given: Tensor) -> Tensor:
        """(B, S) source and (B, T) given -> (B, T, V)."""
        return self.extend(given, self.start(source))[0]


def _make(
    schema: Schema, cell: str, embedding: int, units: int, layers: int, both: bool, pooling: PoolName, dropout: float,
    memory: int = 0,
) -> nn.Module:  # fmt: skip
    """The network for the job that the schema states."""
    asked = job(schema)
    if asked in ("none", "restore"):
        raise unfit(schema, cell, STEPS)
    if asked == "answer":
        return Recurrent(schema, cell, embedding, units, layers, both, pooling, dropout, memory)
    made = RecurrentLanguage if asked == "continue" else RecurrentTranslator
    return made(schema, cell, embedding, units, layers, dropout, memory)


def _suits(score: float) -> Any:
    return lambda schema, rows: score if job(schema) not in ("none", "restore") else 0.0


def _training(schema: Schema, rows: int) -> dict[str, object]:
    """Clipped gradients, since products of many steps can explode (Pascanu et al. 2013); chosen on validation rows."""
    settings: dict[str, object] = {"training.learning_rate": 3e-3, "training.clip": 1.0, "training.epochs": 10}
    if job(schema) == "continue":  # one long text has few rows: of small batches there are steps enough
        return {**settings, "training.batch": 16}
    if job(schema) != "answer":
        return settings
    texts = any(item.kind == "text" for item in schema.inputs.values())
    if texts:
        return {**settings, "training.epochs": 5, "network.dropout": 0.5, "network.pooling": "mean_max"}
    return {**settings, "training.epochs": 6, "network.dropout": 0.3}


# What all three can be told.
EMBEDDING = hyperparameter(128, search=[32, 64, 128, 256], help="width of an embedded token")
UNITS = hyperparameter(128, search=[32, 64, 128, 256], help="of the state, each direction")
LAYERS = hyperparameter(1, search=[1, 2], help="on top of each other")
BIDIRECTIONAL = hyperparameter(False, search=[False, True], help="read backwards too (not for texts out)")
POOLING = hyperparameter("last", search=["last", "mean_max"], help="how the states become one vector")
DROPOUT = hyperparameter(0.0, search=(0.0, 0.6), help="share of values silenced in training")
# What gates can be told.
MEMORY = hyperparameter(
    0, search=[0, 30, 100, 300], help="steps that gates remember at first (chrono biases); 0: a few steps"
)


@network(
    "lstm",
    reason="reads step by step and keeps what its gates let through",
    pros="any length, little memory, good on short and middle-long sequences",
    cons="slow on long ones, since every step waits for the one before",
    paper="Hochreiter & Schmidhuber 1997, Long short-term memory",
    year=1997,
    suits=_suits(0.8),
    training=_training,
)
def lstm(
    schema: Schema,
    role: str,
    *,
    embedding: PositiveInt = EMBEDDING,
    units: PositiveInt = UNITS,
    layers: PositiveInt = LAYERS,
    bidirectional: bool = BIDIRECTIONAL,
    pooling: PoolName = POOLING,
    dropout: Share = DROPOUT,
    memory: NonNegativeInt = MEMORY,
) -> nn.Module:
    """Long short-term memory."""
    return _make(schema, "lstm", embedding, units, layers, bidirectional, pooling, dropout, memory)


@network(
    "gru",
    reason="a lighter LSTM: two gates, a quarter fewer weights",
    pros="about as good as an LSTM, a little quicker",
    cons="counts worse than an LSTM over long stretches",
    paper="Cho et al. 2014, Learning phrase representations using RNN encoder-decoder",
    year=2014,
    suits=_suits(0.7),
    training=_training,
)
def gru(
    schema: Schema,
    role: str,
    *,
    embedding: PositiveInt = EMBEDDING,
    units: PositiveInt = UNITS,
    layers: PositiveInt = LAYERS,
    bidirectional: bool = BIDIRECTIONAL,
    pooling: PoolName = POOLING,
    dropout: Share = DROPOUT,
    memory: NonNegativeInt = MEMORY,
) -> nn.Module:
    """Gated recurrent unit."""
    return _make(schema, "gru", embedding, units, layers, bidirectional, pooling, dropout, memory)


@network(
    "rnn",
    reason="the simplest network with a memory; shows why gates were invented",
    pros="few weights, one equation",
    cons="forgets after some twenty steps: its gradient vanishes",
    paper="Elman 1990, Finding structure in time",
    year=1990,
    suits=_suits(0.2),
    training=_training,
)
def rnn(
    schema: Schema,
    role: str,
    *,
    embedding: PositiveInt = EMBEDDING,
    units: PositiveInt = UNITS,
    layers: PositiveInt = LAYERS,
    bidirectional: bool = BIDIRECTIONAL,
    pooling: PoolName = POOLING,
    dropout: Share = DROPOUT,
) -> nn.Module:
    """Simple recurrent network."""
    return _make(schema, "rnn", embedding, units, layers, bidirectional, pooling, dropout)
