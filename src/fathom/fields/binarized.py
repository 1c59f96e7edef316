"""Gray pictures as black and white ones, each pixel decided once.

    binarized(pixels, how) -> pixels of 0 and 255

`stochastic` makes a pixel white with its gray value as the probability (Salakhutdinov & Murray 2008, On the quantitative
analysis of deep belief networks): statically binarized MNIST. The draws of a picture follow from its content alone, so
that it is the same picture in every epoch, in evaluation and wherever the model is asked. `threshold` makes a pixel white
where it is brighter than the middle. Only binary pixels have a Bernoulli likelihood: figures in nats of the two ways
cannot be compared with each other, nor with those of gray pixels in cross-entropy, which are no likelihood at all.

In comments: N rows.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fathom.core.errors import DataError

How = Literal["none", "stochastic", "threshold"]
WHITE = 255


def binarized(pixels: Tensor, how: How) -> Tensor:
    """Decide every pixel.

    Args:
        pixels: (N, C, H, W) uint8.
        how: as this file describes.

    Returns:
        The same shape, 0 or 255; `pixels` itself where `how` is "none".

    Raises:
        DataError: the pixels are no bytes, so no share of white is known.
    """
    if how == "none":
        return pixels
    if pixels.dtype != torch.uint8:
        raise DataError(
            f"data.image.binarize = {how} needs pixels from 0 to 255 or shares from 0 to 1; these arrays hold other numbers. "
            "Scale them, or leave data.image.binarize out."
        )
    if how == "threshold":
        return (pixels > WHITE // 2).to(torch.uint8) * WHITE
    rows = pixels.contiguous().numpy()
    made = np.empty_like(rows)
    for picture, out in zip(rows, made, strict=True):
        np.multiply(_draws(picture) * WHITE < picture, WHITE, out=out, casting="unsafe")
    return torch.from_numpy(made)


def _draws(picture: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), one a pixel, that follow from the content of the picture."""
    key = int.from_bytes(hashlib.blake2b(picture.data, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).random(picture.shape, dtype=np.float32)
