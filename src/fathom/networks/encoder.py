"""Pretrained encoders of text: what was learnt from a large corpus, and a head of one's own.

A network of the BERT family (Devlin et al. 2019) is built from Fathom's own blocks, and its published weights are put
into it by a table of names; others are built by the library `transformers`. The vector of a text is the mean over its
tokens, as MiniLM was trained (Wang et al. 2020; Reimers & Gurevych 2019), and the head is linear.

    tune = "head"    the encoder is frozen, each text is encoded once, and a step of training takes milliseconds
    tune = "all"     everything learns, the encoder slower than the head and its lower blocks slower than the upper ones
                     (Howard & Ruder 2018, section 3.2)

[[stage]] tables say otherwise, as in head first, then all. A run's own folder holds all weights: loading it needs neither
the package nor the folder that they came from.

In comments: B rows, T tokens, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fathom.core.contract import Schema
from fathom.core.device import cores
from fathom.core.errors import FathomError
from fathom.fields import published
from fathom.networks.parts import output_size
from fathom.networks.sequence import pool, pooled_width, present
from fathom.networks.transformer import Block, places_of

WEIGHTS = "minilm"  # where nobody names others
Pooling = Literal["mean", "first", "max", "mean_max"]
SLOWER = 0.03  # rate of the encoder as a multiple of the head's: 3e-5 beside 1e-3
PROJECTED = ("query", "key", "value")
FALL = 0.9  # of the rate from one block to the one below (Sun et al. 2019 found 0.95 and less to forget least)


# ---------------------------------------------------------------- encoders


class Bert(nn.Module):
    """The encoder of Devlin et al. 2019: (B, T) tokens, 0 where there is none -> (B, T, W).

    Args:
        config: the content of config.json.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, heads, hidden = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
        dropout = config.get("hidden_dropout_prob", 0.1)
        self.tokens = nn.Embedding(config["vocab_size"], width, padding_idx=0)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.kinds = nn.Embedding(config.get("type_vocab_size", 2), width)  # of first and second text
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        count = config["num_hidden_layers"]
        self.blocks = nn.ModuleList([Block(width, heads, hidden, dropout, False, after=True) for _ in range(count)])
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = config.get("layer_norm_eps", 1e-12)

    def forward(self, tokens: Tensor, exists: Tensor) -> Tensor:
        """Read all tokens at once.

        Args:
            tokens: (B, T) int.
            exists: (B, T) which of them are tokens, at least one a row.
        """
        places = places_of(exists)
        x = self.tokens(tokens) + self.positions(places) + self.kinds.weight[0]  # (B, T, W)
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x, _ = block(x, places, exists[:, None, None])
        return x

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Put published weights in place.

        Args:
            weights: by the names that transformers gives them.

        Raises:
            FathomError: one is missing or has another shape.
        """
        mine = {own: joined(weights, theirs) for own, theirs in bert_names(len(self.blocks)).items()}
        for name, tensor in self.state_dict().items():
            if mine[name].shape != tensor.shape:
                raise FathomError(
                    f"The published weights of '{name}' have shape {tuple(mine[name].shape)}, but config.json says "
                    f"{tuple(tensor.shape)}. The files of the encoder do not belong together."
                )
        self.load_state_dict(mine)


def bert_names(blocks: int) -> dict[str, tuple[str, ...]]:
    """Each of our parameters, and the published ones that it is made of, one under the other."""
    embeddings, layer = "embeddings.", "encoder.layer.{}."
    names = {
        "tokens": (embeddings + "word_embeddings",),
        "positions": (embeddings + "position_embeddings",),
        "kinds": (embeddings + "token_type_embeddings",),
    }
    both: dict[str, tuple[str, ...]] = {"norm": (embeddings + "LayerNorm",)}
    for i in range(blocks):
        theirs = layer.format(i)
        both.update(
            {
                f"blocks.{i}.attention.project": tuple(f"{theirs}attention.self.{part}" for part in PROJECTED),
                f"blocks.{i}.attention.out": (f"{theirs}attention.output.dense",),
                f"blocks.{i}.norms.0": (f"{theirs}attention.output.LayerNorm",),
                f"blocks.{i}.dense.0": (f"{theirs}intermediate.dense",),
                f"blocks.{i}.dense.2": (f"{theirs}output.dense",),
                f"blocks.{i}.norms.1": (f"{theirs}output.LayerNorm",),
            }
        )
    table = {f"{own}.weight": tuple(f"{name}.weight" for name in theirs) for own, theirs in {**names, **both}.items()}
    return table | {f"{own}.bias": tuple(f"{name}.bias" for name in theirs) for own, theirs in both.items()}


def joined(weights: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """The published tensors of these names, one under the other, as float32."""
    return torch.cat([published_tensor(weights, name) for name in names]).float()


def published_tensor(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor under the name it has alone, within a larger network ("bert."), or had in the first releases."""
    older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    for spelled in (name, f"bert.{name}", older, f"bert.{older}"):
        if spelled in weights:
            return weights[spelled]
    raise FathomError(f"The published weights hold no '{name}', which an encoder of the BERT family has.")


class Foreign(nn.Module):
    """An encoder of another family, built by `transformers`: (B, T) tokens, 0 where there is none -> (B, T, W).

    Args:
        config: the content of config.json.
        shift: how much larger our tokens are than theirs.
    """

    def __init__(self, config: Mapping[str, Any], shift: int) -> None:
        super().__init__()
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise FathomError(
                f"An encoder of the family '{config['model_type']}' is built by the library transformers, which is not "
                f"installed. Install it: {published.INSTALL}, or choose one of the BERT family, as network.weights=minilm."
            ) from error
        plain = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
        try:
            self.body: nn.Module = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **plain))
        except (ValueError, KeyError, TypeError) as error:
            raise FathomError(
                f"transformers cannot build the encoder '{config['model_type']}': {str(error).partition(chr(10))[0]}"
            ) from error
        self.body.float()
        self.shift = shift
        self.filling = config.get("pad_token_id") or 0

    def forward(self, tokens: Tensor, exists: Tensor) -> Tensor:
        """Read all tokens at once."""
        theirs = torch.where(exists, (tokens.long() - self.shift).clamp(min=0), self.filling)
        states: Tensor = self.body(input_ids=theirs, attention_mask=exists.long()).last_hidden_state
        return states

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Put published weights in place; those of a head that is not ours are left out.

        Raises:
            FathomError: one is missing or has another shape.
        """
        prefix = f"{getattr(self.body, 'base_model_prefix', '')}."
        plain = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        mine = {}
        for name, tensor in self.body.state_dict().items():
            if name in plain and plain[name].shape == tensor.shape:
                mine[name] = plain[name].float() if tensor.is_floating_point() else plain[name]
            elif "pooler" not in name and not name.endswith("position_ids"):  # neither decides what we read
                raise FathomError(
                    f"The published weights hold no '{name}' of shape {tuple(tensor.shape)}, which config.json asks for."
                )
        self.body.load_state_dict(mine, strict=False)


def is_bert(config: Mapping[str, Any]) -> bool:
    """Whether our own blocks compute exactly what this encoder does."""
    activation, places = config.get("hidden_act", "gelu"), config.get("position_embedding_type") or "absolute"
    plain = config["model_type"] == "bert" and activation == "gelu" and places == "absolute"
    return plain and config.get("pad_token_id") == 0 and not config.get("is_decoder")


# ---------------------------------------------------------------- the network


class PretrainedText(nn.Module):
    """An encoded text, and ordinary inputs beside it -> one row of outputs.

    Args:
        schema: one input of kind text, of level "pretrained".
        pooling: how the vectors of tokens become one.
        dropout: share of features silenced in training.
        tune: "head" or "all"; `rates` follow from it.
    """

    def __init__(self, schema: Schema, pooling: Pooling, dropout: float, tune: str) -> None:
        super().__init__()
        items = list(schema.inputs.values())
        self.place = next(i for i, item in enumerate(items) if item.kind == "text")
        item: Any = items[self.place]
        self.source: str = item.weights
        self.checksums: dict[str, str] = item.state["encoder"]["files"]
        config = item.state["encoder"]["config"]
        self.encoder: Any = Bert(config) if is_bert(config) else Foreign(config, item.state["vocabulary"]["shift"])
        self.pooling: Pooling = pooling
        width = config["hidden_size"] if pooling == "first" else pooled_width(config["hidden_size"], pooling)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # one scale for every encoder, so that one rate fits
        self.dropout = nn.Dropout(dropout)
        beside = sum(math.prod(other.shape) for i, other in enumerate(items) if i != self.place)
        self.head = nn.Linear(width + beside, output_size(schema))
        self.rates = rates_of(self.encoder, tune)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, T) tokens and (B, ...) others -> (B, outputs)."""
        return self.decide(self.features(*inputs))

    def features(self, *inputs: Tensor) -> Tensor:
        """(B, T) tokens and (B, ...) others -> (B, D)."""
        tokens = inputs[self.place]
        exists = present(tokens)
        first = torch.arange(tokens.shape[1], device=tokens.device) == 0
        states = self.encoder(tokens, exists | (first & ~exists.any(1, keepdim=True)))  # (B, T, W)
        vector = states[:, 0] if self.pooling == "first" else pool(states, exists, self.pooling)
        others = [x.flatten(1) for i, x in enumerate(inputs) if i != self.place]
        return torch.cat([self.norm(vector), *others], 1)

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        return self.head(self.dropout(features))

    def begin(self) -> None:
        """Put the published weights in place, before training; a saved run brings its own.

        Raises:
            FathomError: the files are gone, or are no longer those with which the data were read.
        """
        files = published.find(self.source)
        self.encoder.load_published(published.tensors(files, self.checksums))


def rates_of(encoder: nn.Module, tune: str) -> dict[str, float]:
    """Parameter glob -> multiple of the learning rate, where no stage says otherwise."""
    if tune == "head":
        return {"*": 1.0, "encoder.*": 0.0}
    count = len(encoder.blocks) if isinstance(encoder, Bert) else 0
    rates = {"*": 1.0, "encoder.*": SLOWER * FALL**count}
    return rates | {f"encoder.blocks.{i}.*": SLOWER * FALL ** (count - 1 - i) for i in range(count)}


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens are the encoder's own, which must be known before the data are read; the budget follows from `tune`.

    Args:
        options: the network's.
    """
    tune = options["tune"] or "head"
    head = tune == "head"
    way = {"training.precision": "float32"} if head else {}  # for the features too, which are computed once
    weights = published.absolute(options["weights"] or WEIGHTS)  # holds from anywhere, so that a run goes on elsewhere
    return {
        **way,
        "network.weights": weights,
        "network.tune": tune,
        "data.text.level": "pretrained",
        "data.text.weights": weights,
        "data.text.length": 256,
        "training.batch": 32 if head else 16,
        "training.epochs": 20 if head else 2,
        "training.threads": cores(),  # an encoder is fastest on all of them; a trial would take longer than it saves
    }


def _texts(schema: Schema) -> list[Any]:
    return [item for item in schema.inputs.values() if item.kind == "text"]


def takes(schema: Schema) -> bool:
    """Whether one of the inputs is a text in the tokens of an encoder, and none is to be written."""
    texts = _texts(schema)
    written = any(item.kind == "text" for item in schema.targets.values())
    return len(texts) == 1 and "encoder" in texts[0].state and not written


def build(schema: Schema, weights: str, pooling: Pooling, dropout: float, tune: str) -> PretrainedText:
    """A published encoder and a linear head.

    Raises:
        FathomError: the inputs, or their tokens, are not those of the encoder.
    """
    texts: list[Any] = _texts(schema)
    if len(texts) != 1 or any(item.kind == "text" for item in schema.targets.values()):
        raise FathomError(
            f"The network 'pretrained' reads one text and writes none; the inputs are {', '.join(schema.inputs)}, the "
            f"targets {', '.join(schema.targets)}. Say which column is a text with data.types, or which are read with --input."
        )
    if "encoder" not in texts[0].state:
        raise FathomError(
            "The network 'pretrained' needs the tokens of its encoder. Leave out data.text.level, or set it to pretrained."
        )
    if texts[0].options["weights"] != published.absolute(weights):
        raise FathomError(
            f"data.text.weights = '{texts[0].options['weights']}' and network.weights = '{weights}' name different encoders. "
            "Leave data.text.weights out."
        )
    return PretrainedText(schema, pooling, dropout, tune)
