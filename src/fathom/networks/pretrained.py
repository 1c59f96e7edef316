"""Published bodies with a head of one's own: one name for pictures and for texts.

    pictures    networks/backbone.py: EfficientNet-Lite0, or a backbone of timm, torchvision or Hugging Face
    texts       networks/encoder.py: MiniLM, or another encoder of Hugging Face

What is read decides which weights are the default, and what learns: of a text the head on kept features, of a picture
the head first and then all (`tune`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks import backbone, encoder
from fathom.networks.encoder import Pooling

Share = Annotated[float, Field(ge=0, lt=1)]


def _reads(schema: Schema) -> str:
    """The kind of input that the published body reads: text, image, or none."""
    kinds = {item.kind for item in schema.inputs.values()}
    return next((kind for kind in ("text", "image") if kind in kinds), "")


def _settings(options: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """What must be known before the data are encoded; nothing where there is nothing to read."""
    made = {"text": encoder.settings, "image": backbone.settings}.get(_reads(schema))
    return made(options) if made else {}


@network(
    "pretrained",
    reason="it has seen more than any training set holds",
    pros="the most accurate on few labelled pictures or texts; frozen, it trains in the time that reading them once takes",
    cons="millions of weights to keep and run; the weights are a package, a folder or a download",
    paper="Tan & Le 2019, EfficientNet; Wang et al. 2020, MiniLM; Devlin et al. 2019, BERT: pre-training of deep "
    "bidirectional transformers",
    year=2020,
    algorithm="supervised",
    suits=lambda schema, rows: 0.0,  # never unasked, since weights are to be had first
    takes=lambda schema: (encoder if _reads(schema) == "text" else backbone).takes(schema),
    settings=_settings,
    check=lambda schema, options: backbone.check(options["weights"]) if _reads(schema) == "image" else None,
    thaws=lambda schema, options: _reads(schema) == "image" and options["tune"] != "head",
    training=lambda schema, rows: {
        "training.learning_rate": 1e-3, "training.weight_decay": 0.01, "training.clip": 1.0, "training.keep": "best",
        "training.epochs": backbone.epochs(rows),  # of texts `settings` has said it
    },
)  # fmt: skip
def pretrained(
    schema: Schema,
    role: str,
    *,
    weights: str = hyperparameter(
        "", help="efficientnet-lite0, minilm, timm:NAME, torchvision:NAME, hf:OWNER/NAME, or a Hugging Face folder"
    ),
    tune: Literal["head", "all"] | None = hyperparameter(
        None, help="what learns, where no [[stage]] table says so; texts: head, pictures: head first, then all"
    ),
    pooling: Pooling = hyperparameter(
        "mean", search=["mean", "first", "max"], help="how the vectors of tokens become one (texts)"
    ),
    dropout: Share = hyperparameter(0.1, search=(0.0, 0.5), help="share of features silenced in training"),
    config: dict[str, Any] = hyperparameter({}, help="a Hugging Face backbone's own, found by Fathom (pictures)"),
) -> nn.Module:
    """A published body, for pictures or for texts, and a linear head."""
    reads = _reads(schema)
    if reads == "text":
        return encoder.build(schema, weights or encoder.WEIGHTS, pooling, dropout, tune or "head")
    if reads == "image":
        return backbone.build(schema, weights or backbone.WEIGHTS, config, dropout, tune or "all")
    raise FathomError(
        f"The network 'pretrained' reads one picture or one text; the inputs are "
        f"{', '.join(f'{name} ({item.kind})' for name, item in schema.inputs.items())}. "
        "Say which column is one with data.types."
    )
