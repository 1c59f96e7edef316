"""Augmentations: pure functions on a batch, `f(batch, schema, generator, strength) -> batch`.

    geometry   flip, shift, crop, rotate, scale        what a picture shows does not change
    color      color
    erasing    cutout
    mixing     mixup, cutmix                           targets become soft

`transform(...)` composes those that a recipe names. What it draws depends on (seed, step) alone, so that a resumed run
draws the same. What is drawn for a row holds for all pictures of that row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.core.contract import WEIGHT, Batch, Schema
from fathom.core.errors import FathomError
from fathom.core.registry import augmentation, augmentations

ORDER = ("flip", "shift", "crop", "rotate", "scale", "color", "cutout", "mixup", "cutmix")


def transform(strengths: Mapping[str, float], schema: Schema, seed: int) -> Callable[[Batch, int], Batch] | None:
    """The augmentations of a recipe as one function of (batch, step); None where there are none.

    Raises:
        FathomError: augmentations are asked for and no input is a picture.
    """
    chosen = [(augmentations[name].make, strengths[name]) for name in ORDER if strengths.get(name)]
    if not chosen:
        return None
    if not image_names(schema):
        first = next(name for name in ORDER if strengths.get(name))
        raise FathomError(
            f"augment.{first} works on pictures, and the inputs are {', '.join(schema.inputs)}; leave it out."
        )

    mixing = [name for name in ("mixup", "cutmix") if strengths.get(name)]
    if mixing and len(image_names(schema)) < len(schema.inputs):
        raise FathomError(f"augment.{mixing[0]} mixes pictures only, and this task has other inputs too; leave it out.")

    def apply(batch: Batch, step: int) -> Batch:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step * 7919 + 17) % 2**63)
        for function, strength in chosen:
            batch = function(batch, schema, generator, strength)
        return batch

    return apply


def image_names(schema: Schema) -> list[str]:
    """The inputs that are pictures."""
    return [name for name, item in schema.inputs.items() if item.kind == "image"]


def _each(batch: Batch, schema: Schema, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every picture (B, C, H, W) changed, in the type it came in."""
    changed = dict(batch)
    for name in image_names(schema):
        changed[name] = _like(change(batch[name]), batch[name])
    return changed


def _like(values: Tensor, original: Tensor) -> Tensor:
    if original.dtype == torch.uint8 and values.dtype != torch.uint8:
        return values.round_().clamp_(0, 255).to(torch.uint8)
    return values


def _rows(batch: Batch, schema: Schema) -> int:
    return len(batch[image_names(schema)[0]])


def _uniform(generator: torch.Generator, rows: int, low: float, high: float) -> Tensor:
    """(B,) one number a row."""
    return torch.rand(rows, generator=generator) * (high - low) + low


def _matrices(rows: int, diagonal: Tensor) -> Tensor:
    """(B, 2, 3) affine maps that scale both sides by `diagonal` (B,)."""
    matrices = torch.zeros(rows, 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = diagonal
    return matrices


@augmentation("flip", range=(0.0, 1.0))
def flip(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Mirror left and right with probability `strength`."""
    mirrored = torch.rand(_rows(batch, schema), generator=generator) < strength

    def change(images: Tensor) -> Tensor:
        return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)

    return _each(batch, schema, change)


@augmentation("shift", range=(0, 64))
def shift(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Move by up to `strength` whole pixels each way; the edge is repeated."""
    most = int(strength)
    moves = torch.randint(-most, most + 1, (2, _rows(batch, schema)), generator=generator)

    def change(images: Tensor) -> Tensor:
        _, channels, height, width = images.shape
        moved = moves.to(images.device)
        ys = (torch.arange(height, device=images.device) + moved[0][:, None]).clamp(0, height - 1)  # (B, H)
        xs = (torch.arange(width, device=images.device) + moved[1][:, None]).clamp(0, width - 1)  # (B, W)
        places = (ys[:, :, None] * width + xs[:, None, :]).flatten(1)[:, None]  # (B, 1, H * W)
        return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(images)

    return _each(batch, schema, change)


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample (B, C, H, W) through (B, 2, 3) affine maps of the output onto the input."""
    grid = F.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


@augmentation("crop", range=(0.0, 0.9))
def crop(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Cut out a part with at least `1 - strength` of each side and enlarge it."""
    rows = _rows(batch, schema)
    side = _uniform(generator, rows, 1 - strength, 1.0)
    matrices = _matrices(rows, side)
    matrices[:, 0, 2] = _uniform(generator, rows, -1, 1) * (1 - side)
    matrices[:, 1, 2] = _uniform(generator, rows, -1, 1) * (1 - side)
    return _each(batch, schema, lambda images: _warp(images, matrices))


@augmentation("rotate", range=(0.0, 180.0))
def rotate(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Turn by up to `strength` degrees each way."""
    rows = _rows(batch, schema)
    angle = _uniform(generator, rows, -strength, strength) * math.pi / 180

    def change(images: Tensor) -> Tensor:
        ratio = images.shape[3] / images.shape[2]
        matrices = _matrices(rows, angle.cos())
        matrices[:, 0, 1] = -angle.sin() / ratio
        matrices[:, 1, 0] = angle.sin() * ratio
        return _warp(images, matrices)

    return _each(batch, schema, change)


@augmentation("scale", range=(0.0, 0.9))
def scale(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Enlarge or shrink by up to the share `strength`."""
    rows = _rows(batch, schema)
    matrices = _matrices(rows, 1 / _uniform(generator, rows, 1 - strength, 1 + strength))
    return _each(batch, schema, lambda images: _warp(images, matrices))


@augmentation("color", range=(0.0, 1.0))
def color(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Change brightness, contrast and saturation by up to the share `strength`."""

    rows = _rows(batch, schema)
    drawn = torch.stack([_uniform(generator, rows, 1 - strength, 1 + strength) for _ in range(3)])  # (3, B)

    def change(images: Tensor) -> Tensor:
        light, contrast, saturation = drawn.to(images.device)[:, :, None, None, None]  # (B, 1, 1, 1) each
        values = images.float() * light
        middle = values.mean((1, 2, 3), keepdim=True)
        values = middle + (values - middle) * contrast
        gray = values.mean(1, keepdim=True)
        return gray + (values - gray) * saturation

    return _each(batch, schema, change)


@augmentation("cutout", range=(0.0, 0.9))
def cutout(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Cover a square of `strength` of the side with the picture's mean (DeVries & Taylor 2017)."""
    rows = _rows(batch, schema)
    center, side = torch.rand(2, rows, generator=generator), torch.full((rows,), strength)

    def change(images: Tensor) -> Tensor:
        hidden = _boxes(images, center, side)
        mean = images.float().mean((2, 3), keepdim=True)
        return torch.where(hidden[:, None], mean, images.float())

    return _each(batch, schema, change)


def _boxes(images: Tensor, center: Tensor, side: Tensor) -> Tensor:
    """(B, H, W) true inside a box around `center` (2, B) of `side` (B,), both as shares of the picture's sides."""
    height, width = images.shape[2:]
    ys, xs = torch.arange(height), torch.arange(width)
    y, x = center
    inside_y = (ys - (y * height)[:, None]).abs() <= (side * height / 2)[:, None]  # (B, H)
    inside_x = (xs - (x * width)[:, None]).abs() <= (side * width / 2)[:, None]  # (B, W)
    return (inside_y[:, :, None] & inside_x[:, None, :]).to(images.device)


@augmentation("mixup", range=(0.0, 2.0))
def mixup(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Blend each row with another, and their targets alike; shares from Beta(strength, strength) (Zhang et al. 2018)."""
    share, partner = _partners(batch, schema, generator, strength)

    def change(images: Tensor) -> Tensor:
        mine = share.to(images.device)[:, None, None, None]
        return images.float() * mine + images.float()[partner.to(images.device)] * (1 - mine)

    return _mix_targets(_each(batch, schema, change), schema, share, partner)


@augmentation("cutmix", range=(0.0, 2.0))
def cutmix(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Paste a box of another row, and mix the targets by area (Yun et al. 2019)."""
    share, partner = _partners(batch, schema, generator, strength)
    center, side = torch.rand(2, len(share), generator=generator), (1 - share).sqrt()
    kept = []  # (B,) of each picture; of several sizes, each rounds the box to its own pixels

    def change(images: Tensor) -> Tensor:
        pasted = _boxes(images, center, side)  # (B, H, W)
        kept.append(1 - pasted.float().mean((1, 2)).cpu())
        return torch.where(pasted[:, None], images[partner.to(images.device)], images)

    mixed = _each(batch, schema, change)
    return _mix_targets(mixed, schema, torch.stack(kept).mean(0), partner)


def _partners(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> tuple[Tensor, Tensor]:
    """(B,) the share that each row keeps, and (B,) the row it is mixed with."""
    rows = _rows(batch, schema)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    share = torch.from_numpy(np.random.default_rng(seed).beta(strength, strength, rows).astype(np.float32))
    return torch.maximum(share, 1 - share), torch.randperm(rows, generator=generator)


def _mix_targets(batch: Batch, schema: Schema, share: Tensor, partner: Tensor) -> Batch:
    mixed = dict(batch)
    for name, item in schema.targets.items():
        target = batch[name]
        if item.kind == "category" and target.ndim == 1:
            target = F.one_hot(target, item.outputs[0])
        mine = share.to(target.device).reshape(-1, *[1] * (target.ndim - 1))
        mixed[name] = target.float() * mine + target.float()[partner.to(target.device)] * (1 - mine)
    if WEIGHT in batch:
        mine = share.to(batch[WEIGHT].device)
        mixed[WEIGHT] = batch[WEIGHT] * mine + batch[WEIGHT][partner.to(mine.device)] * (1 - mine)
    return mixed
