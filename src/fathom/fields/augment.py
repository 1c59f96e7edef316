"""Augmentations: pure functions on a batch, `f(batch, schema, generator, strength) -> batch`.

    geometry   flip, alternating_flip, shift, crop, rotate, scale     what a picture shows does not change
    color      color
    erasing    cutout
    mixing     mixup, cutmix                                          targets become soft

`transform(...)` composes those that a recipe names, in the order that each states. What it draws depends on (seed, step)
alone, so that a resumed run draws the same; only `alternating_flip` reads the epoch too. What is drawn for a row holds
for all pictures of that row.

Whatever moves what a picture shows does so by affine maps of the new picture onto the old (`Maps`), and the targets that
are places in the picture (boxes) move by the same maps: `move` does both. Other files add augmentations with the same
decorator (`policy`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.core.contract import ROW, WEIGHT, Batch, Field, Schema
from fathom.core.errors import FathomError
from fathom.core.registry import Entry, augmentation, augmentations

Maps = Callable[[int, int], Tensor]  # (height, width) -> (B, 2, 3), as F.affine_grid reads them
READS = {"image": "pictures", "series": "series", "text": "texts"}  # kind of field -> what the sentence calls it
MIXED = ("category", "number", "labels")  # kinds of targets of which there is a half
RATIO = 4 / 3  # how far apart the sides of a part are at most (Szegedy et al. 2015)


class Draw(torch.Generator):
    """What the augmentations of one step draw from: a generator of (seed, step), which also knows seed and epoch.

    Args:
        seed: of the run.
        step: of the stage.
        epoch: pass over the training rows within the stage.
    """

    def __new__(cls, *_: int) -> Draw:
        """A generator on the CPU, so that every device draws the same."""
        return super().__new__(cls)

    def __init__(self, seed: int, step: int, epoch: int) -> None:
        self.run_seed = seed
        self.epoch = epoch
        self.manual_seed((seed * 1_000_003 + step * 7919 + 17) % 2**63)


def transform(strengths: Mapping[str, float], schema: Schema, seed: int) -> Callable[[Batch, int, int], Batch] | None:
    """The augmentations of a recipe as one function of (batch, step, epoch); None where there are none.

    Raises:
        FathomError: an augmentation does not fit the inputs, the targets, or another one.
    """
    chosen = sorted((entry for entry in augmentations if strengths.get(entry.name)), key=_place)
    if not chosen:
        return None
    for entry in chosen:
        _require_fit(entry, schema)
    if strengths.get("flip") and strengths.get("alternating_flip"):
        raise FathomError(
            "augment.flip draws which rows are mirrored and augment.alternating_flip takes turns; both together are no "
            "more than the first. Use one: augment.flip=0 beside augment.alternating_flip=1."
        )
    functions = [(entry.make, strengths[entry.name]) for entry in chosen]

    def apply(batch: Batch, step: int, epoch: int) -> Batch:
        draw = Draw(seed, step, epoch)
        for function, strength in functions:
            batch = function(batch, schema, draw, strength)
        return batch

    return apply


def _place(entry: Entry) -> Any:
    return entry.about.get("order", 0), entry.name


def _require_fit(entry: Entry, schema: Schema) -> None:
    """Refuse an augmentation that has nothing to change, or that cannot change all that belongs together."""
    wanted = str(entry.about.get("reads", "image"))
    held = [item for item in schema.inputs.values() if item.kind == wanted]
    if not held:
        raise FathomError(
            f"augment.{entry.name} works on {READS.get(wanted, wanted)}, and the inputs are {', '.join(schema.inputs)}; "
            "leave it out."
        )
    if entry.about.get("whole") and any(item.window for item in held):
        raise FathomError(
            f"augment.{entry.name} works on whole {READS.get(wanted, wanted)}, and here each row is a window of a longer one; "
            "leave it out."
        )
    if not entry.about.get("mixes"):
        return
    if any(item.kind != wanted for item in schema.inputs.values()):
        raise FathomError(
            f"augment.{entry.name} mixes {READS.get(wanted, wanted)} only, and this task has other inputs too; leave it out."
        )
    whole = next((name for name, item in schema.targets.items() if item.kind not in MIXED), None)
    if whole is not None:
        raise FathomError(
            f"augment.{entry.name} mixes the targets of two rows, and of '{whole}' ({schema.targets[whole].kind}) there is "
            "no mixture; leave it out. augment.cutout, flip, shift, crop, rotate and scale fit."
        )


# ---- what augmentations are made of --------------------------------------------------------------------------


def image_names(schema: Schema) -> list[str]:
    """The inputs that are pictures."""
    return [name for name, item in schema.inputs.items() if item.kind == "image"]


def rows_of(batch: Batch, schema: Schema) -> int:
    """B."""
    return len(batch[image_names(schema)[0]])


def uniform(generator: torch.Generator, rows: int, low: float, high: float) -> Tensor:
    """(B,) one number a row."""
    return torch.rand(rows, generator=generator) * (high - low) + low


def each_picture(batch: Batch, schema: Schema, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every picture (B, C, H, W) changed, in the type it came in."""
    changed = dict(batch)
    for name in image_names(schema):
        changed[name] = like(change(batch[name]), batch[name])
    return changed


def like(values: Tensor, original: Tensor) -> Tensor:
    """Values, which it may overwrite, in the type of the original."""
    if original.dtype == torch.uint8 and values.dtype != torch.uint8:
        rounded = values.add_(0.5).clamp_(0, 255.5).to(torch.int32)  # on the way to bytes: a third of the time
        return rounded.to(torch.uint8)
    return values


def floats(images: Tensor) -> Tensor:
    """A float32 copy that may be overwritten; one pass, and then products in place, beats a product of mixed types."""
    return images.to(torch.float32, copy=True)


def move(batch: Batch, schema: Schema, maps: Maps, change: Callable[[Tensor], Tensor] | None = None) -> Batch:
    """The batch with every picture, and every target that has places in it, moved alike.

    Args:
        batch: B rows.
        schema: its fields.
        maps: where each place of the new picture comes from.
        change: the same move of pictures (B, C, H, W) by a shorter way.
    """
    changed = each_picture(batch, schema, change or (lambda images: warp(images, maps(*images.shape[2:]))))
    height, width = batch[image_names(schema)[0]].shape[2:]
    for name, item in schema.targets.items():
        if type(item).moved is not Field.moved:  # the others stay, and nothing is sent to their device
            changed[name] = item.moved(batch[name], maps(height, width).to(batch[name].device))
    return changed


def affine(linear: Tensor, offset: Tensor) -> Maps:
    """Maps from what happens in pixels around the center.

    Args:
        linear: (B, 2, 2) a place of the new picture to one of the old, x before y.
        offset: (B, 2) what is added, in half sides of the picture.
    """

    def maps(height: int, width: int) -> Tensor:
        matrices = torch.cat([linear, offset[:, :, None]], 2)  # (B, 2, 3)
        matrices[:, 0, 1] *= height / width
        matrices[:, 1, 0] *= width / height
        return matrices

    return maps


def stretches(across: Tensor, down: Tensor) -> Tensor:
    """(B, 2, 2) maps that multiply x by `across` (B,) and y by `down` (B,)."""
    return torch.diag_embed(torch.stack([across, down], 1))


def turns(angle: Tensor) -> Tensor:
    """(B, 2, 2) maps that turn by an angle (B,), in radians."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample pictures through affine maps; the edge is repeated.

    Args:
        images: (B, C, H, W).
        matrices: (B, 2, 3) maps of the output onto the input.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = images.shape[2:]
    ys, xs = (_centers(side, images.device) for side in (height, width))
    across, down, offset = matrices.to(images.device)[:, :, :, None, None].unbind(2)  # (B, 2, 1, 1) each
    # What affine_grid gives with align_corners=False, whose product of thin matrices takes 30 times as long
    grid = (across * xs + offset) + down * ys[:, None]  # (B, 2, H, W)
    return F.grid_sample(images.float(), grid.movedim(1, 3), padding_mode="border", align_corners=False)


def _centers(side: int, device: torch.device) -> Tensor:
    """(side,) the middle of each pixel, the picture reaching from -1 to 1."""
    return (2 * torch.arange(side, device=device) + 1) / side - 1


# ---- geometry ------------------------------------------------------------------------------------------------


@augmentation("flip", range=(0.0, 1.0), order=10)
def flip(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Mirror left and right with probability `strength`."""
    return _mirror(batch, schema, torch.rand(rows_of(batch, schema), generator=generator) < strength)


@augmentation("alternating_flip", range=(0.0, 1.0), order=11)
def alternating_flip(batch: Batch, schema: Schema, draw: Draw, strength: float) -> Batch:
    """Mirror the share `strength` of the rows in every second epoch, half of them in the even ones (Jordan 2024)."""
    coin = _coin(batch[ROW], draw.run_seed)  # (B,)
    mirrored = ((coin & 1) ^ (draw.epoch & 1)).bool() & ((coin >> 1) < strength * 2**31)
    return _mirror(batch, schema, mirrored)


def _mirror(batch: Batch, schema: Schema, mirrored: Tensor) -> Batch:
    """The rows of a mask (B,) mirrored."""
    sign = torch.where(mirrored, -1.0, 1.0)

    def change(images: Tensor) -> Tensor:
        return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)

    return move(batch, schema, affine(stretches(sign, sign.abs()), sign.new_zeros(len(sign), 2)), change)


def _coin(rows: Tensor, seed: int) -> Tensor:
    """(B,) 32 bits of each row number, as good as drawn (Wellons 2018, lowbias32)."""
    value = rows + (seed * 0x9E3779B1 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        value = value & 0xFFFFFFFF
        value = (value ^ (value >> shift)) * factor
    return value


@augmentation("shift", range=(0, 64), order=20)
def shift(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Move by up to `strength` whole pixels each way; the edge is repeated."""
    most = int(strength)
    moves = torch.randint(-most, most + 1, (2, rows_of(batch, schema)), generator=generator)  # y before x

    def maps(height: int, width: int) -> Tensor:
        ones = torch.ones(moves.shape[1])
        offset = torch.stack([2 * moves[1] / width, 2 * moves[0] / height], 1)
        return affine(stretches(ones, ones), offset)(height, width)

    def change(images: Tensor) -> Tensor:
        _, channels, height, width = images.shape
        moved = moves.to(images.device)
        ys = (torch.arange(height, device=images.device) + moved[0][:, None]).clamp(0, height - 1)  # (B, H)
        xs = (torch.arange(width, device=images.device) + moved[1][:, None]).clamp(0, width - 1)  # (B, W)
        places = (ys[:, :, None] * width + xs[:, None, :]).flatten(1)[:, None]  # (B, 1, H * W)
        return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(images)

    return move(batch, schema, maps, change)


@augmentation("crop", range=(0.0, 0.9), order=30)
def crop(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Cut out a part with about `1 - strength` of each side or more, up to 4:3 in shape, and enlarge it (Szegedy et al. 2015)."""
    rows = rows_of(batch, schema)
    side = uniform(generator, rows, (1 - strength) ** 2, 1.0).sqrt()  # uniform in area
    uneven = RATIO ** (strength * uniform(generator, rows, -0.5, 0.5))
    part = torch.stack([side * uneven, side / uneven], 1).clamp(max=1.0)  # (B, 2) shares of width and height
    offset = torch.stack([uniform(generator, rows, -1, 1) for _ in range(2)], 1) * (1 - part)
    return move(batch, schema, affine(torch.diag_embed(part), offset))


@augmentation("rotate", range=(0.0, 180.0), order=40)
def rotate(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Turn by up to `strength` degrees each way."""
    rows = rows_of(batch, schema)
    angle = uniform(generator, rows, -strength, strength) * math.pi / 180
    return move(batch, schema, affine(turns(angle), torch.zeros(rows, 2)))


@augmentation("scale", range=(0.0, 0.9), order=50)
def scale(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Enlarge or shrink by up to the share `strength`."""
    rows = rows_of(batch, schema)
    size = 1 / uniform(generator, rows, 1 - strength, 1 + strength)
    return move(batch, schema, affine(stretches(size, size), torch.zeros(rows, 2)))


# ---- color, erasing ------------------------------------------------------------------------------------------


@augmentation("color", range=(0.0, 1.0), order=70)
def color(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Change brightness, contrast and saturation by up to the share `strength`."""
    rows = rows_of(batch, schema)
    drawn = torch.stack([uniform(generator, rows, 1 - strength, 1 + strength) for _ in range(3)])  # (3, B)

    def change(images: Tensor) -> Tensor:
        light, contrast, saturation = drawn.to(images.device)[:, :, None, None, None]  # (B, 1, 1, 1) each
        values = floats(images)
        gray = values.mean(1, keepdim=True)  # (B, 1, H, W)
        middle = gray.mean((2, 3), keepdim=True)
        # One after the other, as one sum: contrast keeps the mean of the picture, saturation that of each pixel.
        flat = light * (1 - contrast) * middle + (light * contrast * (1 - saturation)) * gray
        return values.mul_(light * contrast * saturation).add_(flat)

    return each_picture(batch, schema, change)


@augmentation("cutout", range=(0.0, 0.9), order=80)
def cutout(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Cover a square of `strength` of the side with the picture's mean (DeVries & Taylor 2017)."""
    rows = rows_of(batch, schema)
    center, side = torch.rand(2, rows, generator=generator), torch.full((rows,), strength)

    def change(images: Tensor) -> Tensor:
        hidden = _boxes(images, center, side)
        mean = like(images.mean((2, 3), keepdim=True, dtype=torch.float32), images)
        return torch.where(hidden[:, None], mean, images)

    return each_picture(batch, schema, change)


def _boxes(images: Tensor, center: Tensor, side: Tensor) -> Tensor:
    """(B, H, W) true inside a box around `center` (2, B) of `side` (B,), both as shares of the picture's sides."""
    height, width = images.shape[2:]
    ys, xs = torch.arange(height), torch.arange(width)
    y, x = center
    inside_y = (ys - (y * height)[:, None]).abs() <= (side * height / 2)[:, None]  # (B, H)
    inside_x = (xs - (x * width)[:, None]).abs() <= (side * width / 2)[:, None]  # (B, W)
    return inside_y.to(images.device)[:, :, None] & inside_x.to(images.device)[:, None, :]


# ---- mixing --------------------------------------------------------------------------------------------------


@augmentation("mixup", range=(0.0, 2.0), order=90, mixes=True)
def mixup(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Blend each row with another, and their targets alike; shares from Beta(strength, strength) (Zhang et al. 2018)."""
    share, partner = _partners(batch, schema, generator, strength)

    def change(images: Tensor) -> Tensor:
        mine = share.to(images.device)[:, None, None, None]
        return floats(images).mul_(mine).add_(floats(images.index_select(0, partner.to(images.device))).mul_(1 - mine))

    return _mix_targets(each_picture(batch, schema, change), schema, share, partner)


@augmentation("cutmix", range=(0.0, 2.0), order=91, mixes=True)
def cutmix(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> Batch:
    """Paste a box of another row, and mix the targets by area (Yun et al. 2019)."""
    share, partner = _partners(batch, schema, generator, strength)
    center, side = torch.rand(2, len(share), generator=generator), (1 - share).sqrt()
    kept = []  # (B,) of each picture; of several sizes, each rounds the box to its own pixels

    def change(images: Tensor) -> Tensor:
        pasted = _boxes(images, center, side)  # (B, H, W)
        kept.append(1 - pasted.float().mean((1, 2)).cpu())
        return torch.where(pasted[:, None], images.index_select(0, partner.to(images.device)), images)

    mixed = each_picture(batch, schema, change)
    return _mix_targets(mixed, schema, torch.stack(kept).mean(0), partner)


def _partners(batch: Batch, schema: Schema, generator: torch.Generator, strength: float) -> tuple[Tensor, Tensor]:
    """(B,) the share that each row keeps, and (B,) the row it is mixed with."""
    rows = rows_of(batch, schema)
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
