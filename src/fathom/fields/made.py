"""What a pair of adversarial networks speaks of: noise, and pictures that are made of it.

    image_sample    a picture to be made from nothing: the copy of a picture, which the generator is not given
    noise           numbers that a generator makes a picture of; they are in no column

A generator answers from -1 to 1 (tanh), and `layer` puts real pixels on the same scale, so that a discriminator reads both
alike. `shown` puts answers back on 0 to 1.

In comments: B rows, L numbers of noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, Ragged, hyperparameter
from fathom.core.errors import DataError
from fathom.core.registry import fields
from fathom.fields.copies import ImageCopy, data_uri, fixed_noise

BYTE = 255.0


class Symmetric(nn.Module):
    """Bytes (B, C, H, W) -> floats from -1 to 1, channels last in memory."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale."""
        return pixels.float().mul(2 / BYTE).sub(1).contiguous(memory_format=torch.channels_last)


@fields.register("image_sample")
class ImageSample(ImageCopy):
    """Pictures, to be made from noise."""

    kind = "image_sample"
    headline = ""
    given = False
    latent: PositiveInt = hyperparameter(64, help="numbers of noise that a picture is made of")

    @property
    def outputs(self) -> tuple[int, ...]:
        """(C, H, W) from -1 to 1."""
        return self.shape

    def layer(self) -> nn.Module:
        """Bytes -> floats from -1 to 1.

        Raises:
            DataError: the pictures are arrays whose numbers are no bytes, so nothing says which number is white.
        """
        if self.state.get("factor", 1) is None:
            raise DataError(
                f"The numbers of '{self.columns[0]}' are neither 0 to 1 nor 0 to 255, so nothing says what black and white are, "
                "which a generator must know. Scale them to 0 to 1."
            )
        return Symmetric()

    def shown(self, output: Tensor) -> Tensor:
        """(B, C, H, W) pixels from 0 to 1."""
        return (output.float() + 1).mul(0.5).clamp(0, 1)

    def decode(self, output: Tensor) -> list[Any]:
        """A picture a row, as the text of a PNG data URI."""
        return [{"answer": data_uri(picture)} for picture in self.shown(output)]

    def describe(self) -> str:
        """What is made of what."""
        return f"pictures like these, made of {self.latent} numbers of noise"


@fields.register("noise")
class Noise(Field):
    """Numbers from a standard normal distribution, which a network is given and no column holds."""

    kind = "noise"
    size: PositiveInt = hyperparameter(64, help="how many")

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.size,)

    def fit(self, chunks: Iterable[Columns]) -> None:
        """Nothing is learnt."""

    def encode(self, columns: Columns, target: bool = False) -> Tensor | Ragged:
        """(N, L) float32, whatever stands there: drawn by the place of the row, the same at every time."""
        return fixed_noise(torch.arange(columns.rows), self.shape)

    def describe(self) -> str:
        """How many numbers."""
        return f"{self.size} numbers of noise"
