"""Vision Transformer: a picture is a sentence of patches (Dosovitskiy et al. 2020).

The picture is cut into squares; each becomes a token by one linear map; a class token is set before them, positions are
added, and the encoder of 2017 does the rest. Nothing in it knows that a picture has two dimensions, so it needs very
many pictures (or weights learnt on them) to be as good as filters.

    mini     width 128, 4 blocks, 4 heads     ours, for small pictures
    tiny     192, 12, 3                       5,717,416 parameters at 224 x 224, patches of 16, 1000 classes
    small    384, 12, 6                       22,050,664
    base     768, 12, 12                      86,567,656, ViT-B/16 of the paper

tiny and small are those of Touvron et al. 2020. Patches are 16 pixels a side, as published; 4 in the small form, for
pictures up to 64 pixels. Weights begin small (a normal distribution of spread 0.02, cut off) and the head at zero.

    Embedding ─▶ Block (of transformer.py, norms before each part) ─▶ VisionTransformer

In comments: B rows, T tokens (patches and one more), W width, P pixels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import STEM_HELP, StemName, image_shape, is_picture, is_small, output_size, unfit
from fathom.networks.transformer import Block

Share = Annotated[float, Field(ge=0, lt=1)]
SizeName = Literal["mini", "tiny", "small", "base"]
PATCH, SMALL_PATCH = 16, 4  # pixels a side


@dataclass(frozen=True)
class Form:
    """The shape of one size; the dense layers of a block are four times as wide."""

    width: int
    blocks: int
    heads: int


FORMS: dict[str, Form] = {
    "mini": Form(128, 4, 4),
    "tiny": Form(192, 12, 3),
    "small": Form(384, 12, 6),
    "base": Form(768, 12, 12),
}


class Embedding(nn.Module):
    """Patches as tokens, behind a class token, with a learnt position each.

    Args:
        shape: (C, H, W) of the pictures.
        patch: pixels a side of a patch; it divides H and W.
        width: of a token.
    """

    def __init__(self, shape: tuple[int, ...], patch: int, width: int) -> None:
        super().__init__()
        channels, height, length = shape
        tokens = (height // patch) * (length // patch) + 1
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)  # one linear map of the pixels of a patch
        self.summary = nn.Parameter(torch.zeros(1, 1, width))  # the class token
        self.positions = nn.Parameter(torch.zeros(1, tokens, width))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, W)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (B, T - 1, W)
        tokens = torch.cat([self.summary.expand(patches.shape[0], -1, -1), patches], 1)
        return tokens + self.positions


class VisionTransformer(nn.Module):
    """(B, C, H, W) -> (B, outputs).

    Args:
        size: mini, tiny, small or base.
        shape: (C, H, W) of the pictures.
        patch: pixels a side of a patch; it divides H and W.
        outputs: numbers returned.
        dropout: share of what each part adds that is silenced in training.
    """

    def __init__(self, size: SizeName, shape: tuple[int, ...], patch: int, outputs: int, dropout: float) -> None:
        super().__init__()
        form = FORMS[size]
        self.embedding = Embedding(shape, patch, form.width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            [Block(form.width, form.heads, 4 * form.width, dropout, rotary=False) for _ in range(form.blocks)]
        )
        self.norm = nn.LayerNorm(form.width)
        self.head = nn.Linear(form.width, outputs)
        self.depth = ("embedding", *(f"blocks.{i}" for i in range(form.blocks)), "norm")
        _initialize(self)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, W) the class token after all blocks."""
        x = self.dropout(self.embedding(images))  # (B, T, W)
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)  # unread: positions are in the tokens
        for block in self.blocks:
            x, _ = block(x, places, None)
        return self.norm(x[:, 0])

    def decide(self, features: Tensor) -> Tensor:
        """(B, W) -> (B, outputs)."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(images))


def _initialize(made: VisionTransformer) -> None:
    """As published; the head at zero says that every class is as likely, until something is learnt."""
    nn.init.trunc_normal_(made.embedding.positions, std=0.02)
    nn.init.trunc_normal_(made.embedding.summary, std=0.02)
    for layer in made.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-6
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    nn.init.zeros_(made.head.weight)


@network(
    "vit",
    reason="patches as words: the Transformer, which sees the whole picture in its first layer",
    pros="the better, the more pictures it has seen; the plan of today's large models",
    cons="with few pictures far behind networks of filters; its time grows with the square of the patches",
    paper="Dosovitskiy et al. 2020, An image is worth 16x16 words: Transformers for image recognition at scale",
    year=2020,
    parameters=86_567_656,
    published="size=base, 3 x 224 x 224, 1000 classes",
    suits=lambda schema, rows: 0.0,  # never unasked: a network of history
    takes=is_picture,
    training=lambda schema, rows: {
        "training.learning_rate": 1e-3, "training.weight_decay": 0.05, "training.clip": 1.0,
        "training.epochs": 40 if rows < 10_000 else 10, "augment.shift": 2,
    },
)  # fmt: skip
def vit(
    schema: Schema,
    role: str,
    *,
    size: SizeName = hyperparameter(
        "mini", search=["mini", "tiny"], help="mini for small pictures; base as in the paper"
    ),
    stem: StemName = hyperparameter("auto", help=STEM_HELP),
    patch: PositiveInt | None = hyperparameter(
        None, search=[2, 4, 8, 16], help="pixels a side; 16, of small pictures 4"
    ),
    dropout: Share = hyperparameter(
        0.0, search=(0.0, 0.3), help="share of what each part adds that is silenced in training"
    ),
) -> nn.Module:
    """A Transformer over the patches of a picture."""
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, "vit", "one picture alone")
    patch = patch or (SMALL_PATCH if is_small(shape, stem) else PATCH)
    if shape[1] % patch or shape[2] % patch:
        side = max(patch, round(min(shape[1:]) / patch) * patch)
        raise FathomError(
            f"Pictures of {shape[1]} x {shape[2]} cannot be cut into patches of {patch} x {patch}. "
            f"Use data.image.size={side}, or a network.patch that divides both sides."
        )
    return VisionTransformer(size, shape, patch, output_size(schema), dropout)
