"""`augment.policy`: a few random operations a row, all of one magnitude (RandAugment; Cubuk, Zoph, Shlens & Le 2020).

Each row draws two of fourteen operations, one after the other. What they do at magnitude 1, the paper's 30:

    identity
    rotate       30 degrees          shear_x, shear_y          0.3 pixels a pixel
    translate_x, translate_y         0.45 of the side          each with a random sign; the edge is repeated
    brightness, contrast, color, sharpness                     a factor of 1 - 0.9 or 1 + 0.9, as Pillow's enhancers
    posterize    4 bits kept         solarize                  every value at or above 0 inverted
    autocontrast, equalize           as Pillow's, of no magnitude

Rows of one operation are changed together. Bytes run from 0 to 255; arrays that are kept as they are run from their
batch's least to its greatest value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.core.contract import Batch, Schema
from fathom.core.registry import augmentation
from fathom.fields.augment import Maps, affine, like, move, rows_of, turns, warp

OPERATIONS_A_ROW = 2
ANGLE, SHEAR, TRANSLATION, FACTOR, BITS = math.pi / 6, 0.3, 0.45, 0.9, 4  # at magnitude 1
GRAY = (0.299, 0.587, 0.114)  # how bright red, green and blue are (ITU-R BT.601), as Pillow turns color into gray


@augmentation("policy", range=(0.0, 1.0), order=60)
def policy(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Two random operations a row of 14, geometry and color, at magnitude `strength` (RandAugment, Cubuk et al. 2020)."""
    shape = (OPERATIONS_A_ROW, rows_of(batch, schema))
    operations = torch.randint(len(GEOMETRY) + len(COLORS) + 1, shape, generator=generator)
    signs = torch.randint(2, shape, generator=generator) * 2.0 - 1.0
    for operation, sign in zip(operations, signs, strict=True):
        batch = _one_each(batch, schema, operation, sign * strength)
    return batch


def _one_each(batch: Batch, schema: Schema, operation: Tensor, magnitude: Tensor) -> Batch:
    """One operation (B,) a row; the last number is the identity."""
    maps = _maps(operation, magnitude)
    colors = [
        (change, (operation == len(GEOMETRY) + place).nonzero().squeeze(1)) for place, change in enumerate(COLORS)
    ]
    geometric = (operation < len(GEOMETRY)).nonzero().squeeze(1)

    def change(images: Tensor) -> Tensor:
        low, span = _range(images)
        changed = images.clone()
        turned = warp(images.index_select(0, geometric.to(images.device)), maps(*images.shape[2:])[geometric])
        changed.index_copy_(0, geometric.to(images.device), like(turned, images))
        for recolor, rows in colors:
            here = rows.to(images.device)
            values = (images.index_select(0, here) - low) * (255 / span)  # (n, C, H, W) float32, 0 to 255
            made = recolor(values, magnitude[rows].to(images.device)[:, None, None, None]).clamp(0, 255)
            changed.index_copy_(0, here, like(made * (span / 255) + low, images))
        return changed

    return move(batch, schema, maps, change)


def _range(images: Tensor) -> tuple[Tensor, Tensor]:
    """What stands for black, and how far white is from it."""
    if images.dtype == torch.uint8:
        return torch.zeros((), device=images.device), torch.full((), 255.0, device=images.device)
    low, high = images.aminmax()
    return low, (high - low).clamp(min=1e-12)


# ---- geometry: (B,) signed magnitudes -> what happens in pixels (B, 2, 2) and by how much of a half side (B, 2) -----


def _identity(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    return torch.eye(2).repeat(len(magnitude), 1, 1), torch.zeros(len(magnitude), 2)


def _rotate(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    return turns(magnitude * ANGLE), torch.zeros(len(magnitude), 2)


def _shear(axis: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def sheared(magnitude: Tensor) -> tuple[Tensor, Tensor]:
        linear, offset = _identity(magnitude)
        linear[:, axis, 1 - axis] = magnitude * SHEAR
        return linear, offset

    return sheared


def _translate(axis: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def translated(magnitude: Tensor) -> tuple[Tensor, Tensor]:
        linear, offset = _identity(magnitude)
        offset[:, axis] = 2 * magnitude * TRANSLATION
        return linear, offset

    return translated


GEOMETRY = (_rotate, _shear(0), _shear(1), _translate(0), _translate(1))


def _maps(operation: Tensor, magnitude: Tensor) -> Maps:
    """The maps of all rows; those of no geometric operation stay where they are."""
    linear, offset = _identity(magnitude)
    for number, make in enumerate(GEOMETRY):
        mine = operation == number
        linear[mine], offset[mine] = make(magnitude[mine])
    return affine(linear, offset)


# ---- color: (n, C, H, W) from 0 to 255 and signed magnitudes (n, 1, 1, 1) -> (n, C, H, W) --------------------------


def _gray(values: Tensor) -> Tensor:
    """(n, 1, H, W)."""
    if values.shape[1] == 1:
        return values
    return (values * values.new_tensor(GRAY)[:, None, None]).sum(1, keepdim=True)


def _brightness(values: Tensor, magnitude: Tensor) -> Tensor:
    return values * (1 + FACTOR * magnitude)


def _contrast(values: Tensor, magnitude: Tensor) -> Tensor:
    return torch.lerp(_gray(values).mean((1, 2, 3), keepdim=True), values, 1 + FACTOR * magnitude)


def _color(values: Tensor, magnitude: Tensor) -> Tensor:
    return torch.lerp(_gray(values), values, 1 + FACTOR * magnitude)


def _sharpness(values: Tensor, magnitude: Tensor) -> Tensor:
    """Away from, or towards, a mean in which the middle of 3 x 3 pixels counts five times; the border stays."""
    if min(values.shape[2:]) < 3:
        return values
    smooth = values.clone()
    smooth[:, :, 1:-1, 1:-1] = (9 * F.avg_pool2d(values, 3, 1) + 4 * values[:, :, 1:-1, 1:-1]) / 13
    return torch.lerp(smooth, values, 1 + FACTOR * magnitude)


def _posterize(values: Tensor, magnitude: Tensor) -> Tensor:
    step = 2 ** (BITS * magnitude.abs()).round()
    return (values / step).floor() * step


def _solarize(values: Tensor, magnitude: Tensor) -> Tensor:
    return torch.where(values >= 255 * (1 - magnitude.abs()), 255 - values, values)


def _autocontrast(values: Tensor, magnitude: Tensor) -> Tensor:
    """Each channel from its least to its greatest value; one of a single value stays."""
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    spread = (high - low).clamp(min=1e-6)
    return torch.where(high > low, (values - low) * (255 / spread), values)


def _equalize(values: Tensor, magnitude: Tensor) -> Tensor:
    """Each channel with as many pixels at each level (the integer arithmetic of Pillow's ImageOps.equalize)."""
    levels = values.round().long().flatten(2).flatten(0, 1)  # (n * C, H * W)
    counts = torch.zeros(len(levels), 256, dtype=torch.long, device=values.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    last = counts.gather(1, levels.amax(1, keepdim=True))
    step = (levels.shape[1] - last).div(255, rounding_mode="floor")  # (n * C, 1); 0 where there is too little to spread
    below = counts.cumsum(1) - counts
    table = ((step.div(2, rounding_mode="floor") + below).div(step.clamp(min=1), rounding_mode="floor")).clamp(max=255)
    spread = table.gather(1, levels).view_as(values).to(values.dtype)
    return torch.where(step.view(*values.shape[:2], 1, 1) > 0, spread, values)


COLORS = (
    _brightness, _contrast, _color, _sharpness, _posterize, _solarize, _autocontrast, _equalize,
)  # fmt: skip
