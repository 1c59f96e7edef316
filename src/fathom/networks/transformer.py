"""Transformers: every step looks at every other (Vaswani et al. 2017, "Attention is all you need").

transformer   four jobs, decided by the schema: a class or number from a sequence (`Encoder` and a head), the next token
              (`Decoder`), a text from a text (`Translator`: encoder and decoder), the hidden tokens of a text (`Encoder`
              and a guess at each token). Norms before each part (Xiong et al. 2020)
gpt           the decoder in the shapes of Radford et al. 2018 and 2019
bert          the encoder in the shapes of Devlin et al. 2019 and Turc et al. 2019: norms after each part, a pooled head,
              or a guess at each token

    Attention ─┐
    FeedForward┴─▶ Block ─▶ Encoder, Decoder ─▶ TransformerHead, TransformerLanguage, Translator, MaskedTransformer
                        └─▶ BertEncoder ─▶ Bert, MaskedBert

An encoder's parameters have the same names whatever stands on it, so that what one run learnt another can begin with.
Positions are counted over the steps that exist, so that filling up a row anywhere never changes an answer.

In comments: B rows, T steps, S source steps, W width, H heads, D = W / H.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import USUAL, output_size, unfit, writes
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
PositionName = Literal["sinusoidal", "learned", "rotary"]
LONGEST = 4096  # steps that learned positions know where the field states no length


# ---------------------------------------------------------------- positions


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """(B, T) -> (B, T, W) sines and cosines of falling frequency (Vaswani et al. 2017, section 3.5)."""
    half = torch.arange(width // 2, device=positions.device)
    angles = positions[..., None] * torch.exp(half * (-math.log(10_000.0) / max(width // 2, 1)))  # (B, T, W / 2)
    return F.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, width % 2))


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Turn pairs of (B, H, T, D) by an angle that grows with the position (B, T) (Su et al. 2021, RoFormer)."""
    half = x.shape[-1] // 2
    speed = 10_000.0 ** (-torch.arange(half, device=x.device) / half)  # (D / 2,)
    angles = (positions[..., None] * speed)[:, None]  # (B, 1, T, D / 2)
    sine, cosine = angles.sin().to(x.dtype), angles.cos().to(x.dtype)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * cosine - two * sine, one * sine + two * cosine], -1)


# ---------------------------------------------------------------- parts


class Attention(nn.Module):
    """Multi-head attention over the steps themselves, with rotary positions where asked."""

    def __init__(self, width: int, heads: int, dropout: float, rotary: bool) -> None:
        super().__init__()
        if width % heads or (rotary and (width // heads) % 2):
            raise FathomError(
                f"network.width = {width} cannot be shared by network.heads = {heads}"
                f"{' with rotary positions, which need an even share' if rotary and not width % heads else ''}. "
                f"Choose a width that is a multiple of {2 * heads}."
            )
        self.heads, self.rotary, self.dropout = heads, rotary, dropout
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, causal: bool, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend.

        Args:
            x: (B, T, W).
            positions: (B, T).
            mask: (B, 1, 1 or T, S) true where a step may be seen; None where all may.
            causal: whether a step sees only itself and those before.
            past: keys and values (B, H, P, D) of earlier steps.

        Returns:
            (B, T, W), and the keys and values of all steps so far.
        """
        query, key, value = (split_heads(part, self.heads) for part in self.project(x).chunk(3, -1))  # (B, H, T, D)
        if self.rotary:
            query, key = rotate(query, positions), rotate(key, positions)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            if causal and query.shape[2] > 1:
                mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=x.device).tril(past[0].shape[2])
            causal = False
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
        return self.out(join_heads(mixed)), (key, value)


class SourceAttention(nn.Module):
    """Multi-head attention from a text being written to its source."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of the source, which every step reads."""
        key, value = (split_heads(part, self.heads) for part in self.memory(memory).chunk(2, -1))
        return key, value

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        query = split_heads(self.query(x), self.heads)
        dropout = self.dropout if self.training else 0.0
        return self.out(join_heads(F.scaled_dot_product_attention(query, *memory, mask, dropout)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, W) -> (B, H, T, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, W)."""
    return x.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Attention, source attention where there is a source, and two dense layers; each added to what came in.

    Args:
        after: norms after each part, as in 2017, instead of before it.
        source: whether a source is read.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, rotary: bool, after: bool = False, source: bool = False
    ) -> None:
        super().__init__()
        self.after = after
        self.attention = Attention(width, heads, dropout, rotary)
        self.source = SourceAttention(width, heads, dropout) if source else None
        self.dense = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3 if source else 2)])
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, causal: bool = False,
        past: Any = None, memory: tuple[Tensor, Tensor] | None = None, memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """(B, T, W) -> (B, T, W), and the keys and values of all steps so far."""
        norms = iter(self.norms)
        norm = next(norms)
        mixed, kept = self.attention(x if self.after else norm(x), positions, mask, causal, past)
        x = self._add(x, mixed, norm)
        if self.source is not None:
            norm = next(norms)
            x = self._add(x, self.source(x if self.after else norm(x), memory, memory_mask), norm)
        norm = next(norms)
        return self._add(x, self.dense(x if self.after else norm(x)), norm), kept

    def _add(self, x: Tensor, change: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.dropout(change)
        return norm(x) if self.after else x


class Steps(nn.Module):
    """Steps embedded, with their positions: what encoder and decoder begin with.

    Args:
        item: an input of kind text or series.
    """

    def __init__(self, item: Any, width: int, positions: str, dropout: float) -> None:
        super().__init__()
        self.embed = StepEmbedding(item, width)
        self.positions = positions
        if item.kind == "text":
            nn.init.normal_(self.embed.embed.weight, std=width**-0.5)
            self.embed.embed.weight.data[0] = 0
        length = item.shape[0] if item.shape and item.shape[0] > 0 else LONGEST
        self.table = nn.Embedding(length, width) if positions == "learned" else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.02)
        self.scale = math.sqrt(width) if item.kind == "text" else 1.0
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor, places: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Steps (B, T, ...) at places (B, T) -> (B, T, W); a vector (W,) stands for tokens past the last of the table."""
        x = (self.embed(steps) if hidden is None else self._embed_hidden(steps, hidden)) * self.scale
        if self.table is not None:
            x = x + self.table(places.clamp(max=self.table.num_embeddings - 1))
        elif self.positions == "sinusoidal":
            x = x + sinusoids(places, x.shape[-1]).to(x.dtype)
        return self.dropout(x)

    def _embed_hidden(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        known = tokens < len(self.embed.embed.weight)  # (B, T)
        return torch.where(known[..., None], self.embed(tokens.masked_fill(~known, 0)), hidden)


def places_of(exists: Tensor) -> Tensor:
    """(B, T) the number of each step among those of its row that exist, from 0."""
    return (exists.cumsum(1) - 1).clamp(min=0)


class Encoder(nn.Module):
    """Steps that see each other both ways."""

    def __init__(
        self, item: Any, width: int, heads: int, layers: int, hidden: int, dropout: float, positions: str
    ) -> None:
        super().__init__()
        self.steps = Steps(item, width, positions, dropout)
        self.blocks = nn.ModuleList(
            [Block(width, heads, hidden, dropout, positions == "rotary") for _ in range(layers)]
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, steps: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read.

        Args:
            steps: (B, T, ...).
            hidden: (W,) what stands for tokens past the last of the table, where there are any.

        Returns:
            (B, T, W), and (B, T) which steps exist (the first, where a row has none).
        """
        exists = at_least_one(present(steps))
        places = places_of(exists)
        mask = None if surely(exists.all()) else exists[:, None, None]  # (B, 1, 1, T)
        x = self.steps(steps, places, hidden)
        for block in self.blocks:
            x, _ = block(x, places, mask)
        return self.norm(x), exists


class Decoder(nn.Module):
    """Tokens that see those before them, and a source where there is one."""

    def __init__(
        self, item: Any, width: int, heads: int, layers: int, hidden: int, dropout: float, positions: str,
        tied: bool, source: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.steps = Steps(item, width, positions, dropout)
        self.blocks = nn.ModuleList(
            [Block(width, heads, hidden, dropout, positions == "rotary", source=source) for _ in range(layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, item.size, bias=False)
        if tied:
            self.head.weight = self.steps.embed.embed.weight  # Press & Wolf 2017

    def start(self, memory: Tensor | None = None, exists: Tensor | None = None) -> Any:
        """Nothing written yet; the source's keys and values are computed once."""
        if memory is None or exists is None:
            return {}
        sources = [block.source.remember(memory) for block in self.blocks]  # type: ignore[union-attr, operator]
        return {"source": sources, "mask": exists[:, None, None]}

    def extend(self, given: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, T, V) after each given token (B, T), and the state after the last."""
        states, state = self.read(given, state)
        return self.head(states), state

    def read(self, given: Tensor, state: Any) -> tuple[Tensor, Any]:
        """What the head reads (B, T, W) at each given token (B, T), and the state after the last."""
        past = state.get("past", [None] * len(self.blocks))
        done = past[0][0].shape[2] if past[0] is not None else 0
        places = torch.arange(done, done + given.shape[1], device=given.device).expand(len(given), -1)
        x, kept = self.steps(given, places), []
        for i, block in enumerate(self.blocks):
            memory = state["source"][i] if "source" in state else None
            x, keys = block(x, places, None, True, past[i], memory, state.get("mask"))
            kept.append(keys)
        return self.norm(x), {**state, "past": kept}


class TokenGuess(nn.Module):
    """A guess at each token: a dense layer, GELU, a norm, and the table of tokens (Devlin et al. 2019, appendix A).

    Args:
        table: of the encoder's tokens.
        tied: whether it is the last layer's too.
    """

    def __init__(self, table: nn.Embedding, tied: bool) -> None:
        super().__init__()
        size, width = table.weight.shape
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, size)
        nn.init.zeros_(self.head.bias)
        if tied:
            self.head.weight = table.weight  # Press & Wolf 2017

    def forward(self, states: Tensor) -> Tensor:
        """(..., W) -> (..., V) logits."""
        return self.head(self.norm(F.gelu(self.dense(states))))


def hidden_vector(width: int) -> nn.Parameter:
    """What stands for a hidden token; it begins as the vectors of other tokens do."""
    return nn.Parameter(torch.empty(width).normal_(std=width**-0.5))


# ---------------------------------------------------------------- networks


class TransformerHead(nn.Module):
    """One sequence, and ordinary inputs beside it -> one row of outputs."""

    def __init__(
        self, schema: Schema, width: int, heads: int, layers: int, hidden: int, dropout: float, positions: str,
        pooling: PoolName,
    ) -> None:  # fmt: skip
        super().__init__()
        items = list(schema.inputs.values())
        self.place = next(i for i, item in enumerate(items) if is_sequence(item))
        self.encoder = Encoder(items[self.place], width, heads, layers, hidden, dropout, positions)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.pooled = pooled_width(width, pooling)
        beside = sum(math.prod(item.shape) for i, item in enumerate(items) if i != self.place)
        self.head = nn.Linear(self.pooled + beside, output_size(schema))

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, T) tokens or (B, T, F) values, and (B, ...) others -> (B, outputs)."""
        return self.decide(self.features(*inputs))

    def features(self, *inputs: Tensor) -> Tensor:
        """(B, T) tokens or (B, T, F) values, and (B, ...) others -> (B, D)."""
        states, exists = self.encoder(inputs[self.place])
        others = [x.flatten(1) for i, x in enumerate(inputs) if i != self.place]
        return torch.cat([pool(states, exists, self.pooling), *others], 1)

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs). Of what stands beside the sequence nothing is silenced."""
        vector, others = features[:, : self.pooled], features[:, self.pooled :]
        return self.head(torch.cat([self.dropout(vector), others], 1))


class TransformerLanguage(nn.Module):
    """The next token from the tokens so far."""

    def __init__(
        self, schema: Schema, width: int, heads: int, layers: int, hidden: int, dropout: float, positions: str, tied: bool
    ) -> None:
        super().__init__()
        (item,) = schema.inputs.values()
        self.decoder = Decoder(item, width, heads, layers, hidden, dropout, positions, tied, source=False)

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.decoder.head

    def start(self) -> Any:
        """Nothing is known yet."""
        return self.decoder.start()

    def extend(self, given: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, T, V) after each given token (B, T), and the state after the last."""
        return self.decoder.extend(given, state)

    def states(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> (B, T, W) what the head reads, and (B, T) which tokens exist."""
        return self.decoder.read(given, self.start())[0], present(given)

    def forward(self, given: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        return self.extend(given, self.start())[0]


class Translator(nn.Module):
    """An encoder over the source, a decoder that reads it."""

    def __init__(
        self, schema: Schema, width: int, heads: int, layers: int, hidden: int, dropout: float, positions: str, tied: bool
    ) -> None:
        super().__init__()
        source, item = schema.inputs.values()
        self.encoder = Encoder(source, width, heads, layers, hidden, dropout, positions)
        self.decoder = Decoder(item, width, heads, layers, hidden, dropout, positions, tied, source=True)

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.decoder.head

    def start(self, source: Tensor) -> Any:
        """Read the source (B, S)."""
        return self.decoder.start(*self.states(source))

    def states(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B, S, W) what the decoder reads of the source, and (B, S) which steps exist."""
        states, exists = self.encoder(source)
        return states, exists

    def extend(self, given: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, T, V) after each given token (B, T), and the state after the last."""
        return self.decoder.extend(given, state)

    def forward(self, source: Tensor, given: Tensor) -> Tensor:
        """(B, S) source and (B, T) given -> (B, T, V)."""
        return self.extend(given, self.start(source))[0]


class MaskedTransformer(nn.Module):
    """The hidden tokens of a text from those around them (Devlin et al. 2019); a hidden token has the number V."""

    def __init__(
        self, schema: Schema, width: int, heads: int, layers: int, hidden: int, dropout: float, positions: str, tied: bool
    ) -> None:
        super().__init__()
        (item,) = schema.inputs.values()
        self.encoder = Encoder(item, width, heads, layers, hidden, dropout, positions)
        self.hidden = hidden_vector(width)
        self.guess = TokenGuess(self.encoder.steps.embed.embed, tied)  # type: ignore[arg-type]

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.guess.head

    def states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> (B, T, W), and (B, T) which tokens exist."""
        states, exists = self.encoder(tokens, self.hidden)
        return states, exists

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        return self.guess(self.states(tokens)[0])


def _suits(schema: Schema, rows: int) -> float:
    return {"answer": 0.6, "continue": 1.0, "translate": 1.0, "restore": 1.0, "none": 0.0}[job(schema)]


def _suits_bert(schema: Schema, rows: int) -> float:
    if job(schema) == "restore":
        return 0.7
    return 0.3 if job(schema) == "answer" and [item.kind for item in schema.inputs.values()] == ["text"] else 0.0


def _training(schema: Schema, rows: int) -> dict[str, object]:
    """Warm-up, clipped gradients and label smoothing, without which transformers on small data diverge or overfit."""
    settings: dict[str, object] = {
        "training.learning_rate": 1e-3, "training.clip": 1.0, "training.schedule": "cosine", "training.warmup": 0.1,
        "training.weight_decay": 0.05, "training.epochs": 10,
    }  # fmt: skip
    if not writes(schema) or job(schema) == "restore":
        return settings
    if not schema.inputs:
        return {
            **settings, "training.learning_rate": 2e-3, "training.batch": 32, "training.epochs": 12,
            "network.width": 192, "network.layers": 4, "network.heads": 6,
        }  # fmt: skip
    return {
        **settings, "training.learning_rate": 2e-3, "training.label_smoothing": 0.1, "training.average": 0.998,
        "training.keep": "average", "training.tokens": 3000, "training.epochs": 15, "network.width": 192,
        "network.layers": 3, "network.heads": 6, "network.dropout": 0.2, "network.positions": "sinusoidal",
    }  # fmt: skip


@network(
    "transformer",
    reason="every step sees every other at once, however far apart",
    pros="the best network for language, parallel over the steps of a sequence",
    cons="wants more data than a recurrent network, and memory grows with the square of the length",
    paper="Vaswani et al. 2017, Attention is all you need",
    year=2017,
    suits=_suits,
    training=_training,
)
def transformer(
    schema: Schema,
    role: str,
    *,
    width: PositiveInt = hyperparameter(128, search=[64, 128, 256], help="of a step's vector"),
    heads: PositiveInt = hyperparameter(4, search=[2, 4, 8], help="that look at different things"),
    layers: PositiveInt = hyperparameter(2, search=[1, 2, 4], help="of encoder and decoder each"),
    hidden: NonNegativeInt = hyperparameter(0, help="units between the two dense layers of a block; 4 x width where 0"),
    dropout: Share = hyperparameter(0.1, search=(0.0, 0.5), help="share of values silenced in training"),
    positions: PositionName = hyperparameter(
        "rotary", search=["sinusoidal", "learned", "rotary"], help="how a step knows its place"
    ),
    pooling: PoolName = hyperparameter("mean", search=["mean", "max", "mean_max"], help="how steps become one vector"),
    tied: bool = hyperparameter(True, help="one table for tokens in and out"),
) -> nn.Module:
    """Encoder, decoder or both, as the schema asks."""
    hidden = hidden or 4 * width
    asked = job(schema)
    if asked == "none":
        raise unfit(schema, "transformer", STEPS)
    if asked == "answer":
        return TransformerHead(schema, width, heads, layers, hidden, dropout, positions, pooling)
    made = {"continue": TransformerLanguage, "translate": Translator, "restore": MaskedTransformer}[asked]
    return made(schema, width, heads, layers, hidden, dropout, positions, tied)


GPT = {"tiny": (2, 128, 4), "mini": (4, 256, 4), "gpt": (12, 768, 12), "gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16)}


@network(
    "gpt",
    reason="the decoder that large language models grew from",
    pros="one network for any text; the published shapes by name",
    cons="the published sizes need far more text and time than a workstation has",
    paper="Radford et al. 2018, Improving language understanding; 2019, Language models are unsupervised multitask learners",
    year=2018,
    algorithm="language",
    suits=lambda schema, rows: 0.4 if job(schema) == "continue" else 0.0,
    training=_training,
)
def gpt(
    schema: Schema,
    role: str,
    *,
    size: Literal["tiny", "mini", "gpt", "gpt2", "gpt2-medium"] = hyperparameter("mini", help="a published shape, or smaller"),
    dropout: Share = hyperparameter(0.1, search=(0.0, 0.5), help="share of values silenced in training"),
) -> nn.Module:
    """A decoder with learned positions and tied tables."""
    if job(schema) != "continue":
        raise unfit(schema, "gpt", "nothing but the text that it continues")
    layers, width, heads = GPT[size]
    return TransformerLanguage(schema, width, heads, layers, 4 * width, dropout, "learned", tied=True)


BERT = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}  # Turc et al. 2019


class BertEncoder(nn.Module):
    """Tokens that see each other both ways, with norms after each part (Devlin et al. 2019)."""

    def __init__(self, schema: Schema, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        (item,) = schema.inputs.values()
        self.steps = Steps(item, width, "learned", 0.0)
        self.steps.scale = 1.0
        self.kinds = nn.Parameter(torch.zeros(2, width))  # of first and second text; one text has the first
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, 4 * width, dropout, False, after=True) for _ in range(layers)])

    def read(self, tokens: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T) -> (B, T, W), and (B, T) which tokens exist; `hidden` as for `Encoder`."""
        exists = at_least_one(present(tokens))
        places = places_of(exists)
        x = self.dropout(self.norm(self.steps(tokens, places, hidden) + self.kinds[0]))
        for block in self.blocks:
            x, _ = block(x, places, exists[:, None, None])
        return x, exists


class Bert(BertEncoder):
    """The encoder, read at its first step through a tanh layer."""

    def __init__(self, schema: Schema, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__(schema, width, heads, layers, dropout)
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, output_size(schema))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, outputs)."""
        return self.decide(self.features(tokens))

    def features(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, W)."""
        x, exists = self.read(tokens)
        first = exists.int().argmax(1)
        return torch.tanh(self.pooler(x[torch.arange(len(x), device=x.device), first]))

    def decide(self, features: Tensor) -> Tensor:
        """(B, W) -> (B, outputs)."""
        return self.head(self.dropout(features))


class MaskedBert(BertEncoder):
    """The encoder, and a guess at each token; a hidden token has the number V."""

    def __init__(self, schema: Schema, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__(schema, width, heads, layers, dropout)
        self.hidden = hidden_vector(width)
        self.guess = TokenGuess(self.steps.embed.embed, tied=True)  # type: ignore[arg-type]

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.guess.head

    def states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> (B, T, W), and (B, T) which tokens exist."""
        return self.read(tokens, self.hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        return self.guess(self.states(tokens)[0])


@network(
    "bert",
    reason="the encoder that made pretraining the rule for text",
    pros="the published shapes by name, to compare with",
    cons="from scratch it is no better than a small transformer; its strength is pretraining",
    paper="Devlin et al. 2019, BERT: pre-training of deep bidirectional transformers",
    year=2018,
    suits=_suits_bert,
    training=lambda schema, rows: {**_training(schema, rows), "training.learning_rate": 3e-4},
)
def bert(
    schema: Schema,
    role: str,
    *,
    size: Literal["tiny", "mini", "small", "base"] = hyperparameter("tiny", help="a published shape"),
    dropout: Share = hyperparameter(0.1, search=(0.0, 0.5), help="share of values silenced in training"),
) -> nn.Module:
    """An encoder read at its first step, or at each hidden token."""
    if not _suits_bert(schema, USUAL):
        raise unfit(schema, "bert", "one text alone, which it does not write")
    layers, width, heads = BERT[size]
    made = MaskedBert if job(schema) == "restore" else Bert
    return made(schema, width, heads, layers, dropout)
