"""Augmentations that move what a picture shows move places in it alike; mirroring by turns; the random policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageOps
from torch import Tensor

from fathom.core.contract import ROW, Batch, Columns, Field, Schema
from fathom.core.errors import FathomError
from fathom.fields import augment_policy
from fathom.fields.augment import transform, warp
from test_augment import apply, batch, schema

GEOMETRY = ("flip", "alternating_flip", "shift", "crop", "rotate", "scale", "policy")


def pictures(images: Tensor) -> Batch:
    """A batch of these pictures, with targets that say nothing."""
    rows = len(images)
    return {
        "image": images, "category": torch.zeros(rows).long(), "number": torch.zeros(rows, 1), ROW: torch.arange(rows)
    }  # fmt: skip


def along(side: int) -> Tensor:
    """(side,) the middle of each pixel, from -1 to 1."""
    return (2 * torch.arange(side) + 1) / side - 1


# ---- mirrored by turns ---------------------------------------------------------------------------------------


def mirrored(given: Batch, changed: Batch) -> Tensor:
    """(B,) which rows are mirrored; the others must be as they were."""
    turned = (changed["image"] == given["image"].flip(3)).flatten(1).all(1)
    assert torch.equal(changed["image"][~turned], given["image"][~turned])
    return turned


def test_alternating_flip_shows_both_sides_in_two_epochs() -> None:
    """Which side comes first depends on the seed and the number of the row, wherever in a batch it stands."""
    given = pictures(torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8))
    even, odd = (mirrored(given, apply("alternating_flip", given, epoch=epoch)) for epoch in (4, 7))
    assert torch.equal(even, ~odd)
    assert 150 < int(even.sum()) < 250
    assert torch.equal(even, mirrored(given, apply("alternating_flip", given, step=99, epoch=0)))
    shuffled = {name: tensor.flip(0) for name, tensor in given.items()}
    assert torch.equal(mirrored(shuffled, apply("alternating_flip", shuffled)), even.flip(0))
    other = mirrored(given, apply("alternating_flip", given, seed=1))
    assert 150 < int((other ^ even).sum()) < 250
    some = [mirrored(given, apply("alternating_flip", given, strength=0.5, epoch=epoch)) for epoch in (0, 1)]
    assert not (some[0] & some[1]).any()
    assert 150 < int((some[0] | some[1]).sum()) < 250, "half of the rows take part"


def test_two_ways_of_mirroring_are_refused() -> None:
    with pytest.raises(FathomError, match=r"Use one: augment\.flip=0 beside augment\.alternating_flip=1"):
        transform({"flip": 0.5, "alternating_flip": 1.0}, schema(), 0)
    assert transform({"flip": 0.0, "alternating_flip": 1.0}, schema(), 0) is not None


# ---- places in pictures --------------------------------------------------------------------------------------


class Place(Field):
    """One place (x, y) a picture, from -1 to 1."""

    kind = "place"
    shape = (2,)

    def __init__(self) -> None:
        self.columns, self.options, self.state = ("place",), {}, {}

    def fit(self, chunks: Any) -> None:
        raise NotImplementedError

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        raise NotImplementedError

    def moved(self, values: Tensor, matrices: Tensor) -> Tensor:
        """The new place is the one that the map takes to the old place."""
        return torch.linalg.solve(matrices[:, :, :2], values - matrices[:, :, 2])


def spots(place: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H, W) pictures of a soft spot at each place (B, 2)."""
    x, y = place.T[:, :, None, None]
    far = ((along(width) - x) * width / 2) ** 2 + ((along(height)[:, None] - y) * height / 2) ** 2  # in pixels
    return (255 * torch.exp(-far / 8)).round().to(torch.uint8)[:, None]


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("name", GEOMETRY)
def test_places_in_a_picture_move_with_it(name: str, size: tuple[int, int]) -> None:
    rows = 128
    place = torch.rand(rows, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    task = Schema(schema(1).inputs, {"place": Place()})
    given = {"image": spots(place, *size), "place": place, ROW: torch.arange(rows)}
    change = transform({name: {"shift": 4, "rotate": 40.0, "policy": 0.6}.get(name, 0.5)}, task, 0)
    assert change is not None
    changed = change(given, 3, 0)
    image = changed["image"][:, 0].float()  # (B, H, W)
    dark, bright = image.median(2).values.median(1).values, image.amax((1, 2))
    seen = (dark < 30) & (bright > 30)  # neither inverted nor black, as the policy may make it
    inside = (changed["place"].abs() < 0.7).all(1) & seen
    assert inside.sum() > rows / 3
    assert ((changed["place"] - place)[inside].abs().amax(1) > 0.05).sum() > rows / 8
    light = (image[inside] / 255) ** 4
    found = torch.stack([(light.sum(1) * along(size[1])).sum(1), (light.sum(2) * along(size[0])).sum(1)], 1)
    found = found / light.sum((1, 2))[:, None]
    pixels = (found - changed["place"][inside]).abs() * torch.tensor([size[1], size[0]]) / 2
    assert pixels.max() < 1


def test_what_has_no_half_is_not_mixed() -> None:
    task = Schema(schema(1).inputs, {"place": Place()})
    for name in ("mixup", "cutmix"):
        with pytest.raises(FathomError, match=rf"augment\.{name} mixes .* of 'place' \(place\) there is no mixture"):
            transform({name: 0.5}, task, 0)
    assert transform({"cutout": 0.5, "color": 0.5}, task, 0) is not None


def test_warp_is_what_affine_grid_and_grid_sample_make() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 2, 7, 11, generator=generator)
    matrices = torch.randn(5, 2, 3, generator=generator)
    grid = torch.nn.functional.affine_grid(matrices, [5, 2, 7, 11], align_corners=False)
    expected = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(warp(images, matrices), expected, atol=1e-5, rtol=0)


def test_a_crop_lies_within_the_picture_and_is_of_the_area_and_shape_it_may_have() -> None:
    """Seen by pictures that hold their own coordinates."""
    rows, side = 500, 64
    picture = torch.stack([along(side).expand(side, side), along(side)[:, None].expand(side, side)])
    task = Schema({"image": schema().inputs["image"]})
    change = transform({"crop": 0.5}, task, 0)
    assert change is not None
    changed = change({"image": picture.expand(rows, 2, side, side).contiguous()}, 0, 0)["image"]
    whole = float(along(side)[-1] - along(side)[0])
    width, height = (
        (changed[:, 0, 0, -1] - changed[:, 0, 0, 0]) / whole,
        (changed[:, 1, -1, 0] - changed[:, 1, 0, 0]) / whole,
    )
    assert changed.abs().max() <= 1
    assert (width * height).min() == pytest.approx(0.25, abs=0.03)
    assert (width * height).max() > 0.9
    most = (4 / 3) ** 0.5
    assert 1 / most * 0.98 < (width / height).min() < 1 / most * 1.05
    assert most * 0.95 < (width / height).max() < most * 1.02
    assert float(changed[:, 0].mean()) == pytest.approx(0, abs=0.05)


# ---- the policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("magnitude", [0.3, 1.0])
def test_the_operations_on_colors_are_those_of_pillow(magnitude: float, sign: float) -> None:
    noise = torch.randint(0, 256, (3, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise[1] = noise[1] // 3 + 60
    noise[2] = 77  # of one color
    factor = 1 + 0.9 * sign * magnitude
    references: dict[str, Any] = {
        "brightness": lambda p: ImageEnhance.Brightness(p).enhance(factor),
        "contrast": lambda p: ImageEnhance.Contrast(p).enhance(factor),
        "color": lambda p: ImageEnhance.Color(p).enhance(factor),
        "sharpness": lambda p: ImageEnhance.Sharpness(p).enhance(factor),
        "posterize": lambda p: ImageOps.posterize(p, 8 - round(4 * magnitude)),
        "solarize": lambda p: ImageOps.solarize(p, 255 * (1 - magnitude)),
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
    }
    exact = (
        "posterize",
        "solarize",
        "equalize",
    )  # of the others Pillow cuts results, and gray values, to whole numbers
    names = [change.__name__.strip("_") for change in augment_policy.COLORS]
    assert names == list(references)
    for name, change in zip(names, augment_policy.COLORS, strict=True):
        made = change(noise.float(), torch.full((3, 1, 1, 1), sign * magnitude)).clamp(0, 255)
        for row in range(3):
            picture = Pillow.fromarray(noise[row].permute(1, 2, 0).numpy())
            expected = torch.from_numpy(np.array(references[name](picture))).permute(2, 0, 1)
            assert (made[row] - expected).abs().max() <= (0 if name in exact else 2), (name, row)


def test_the_policy_changes_bytes_and_numbers_alike() -> None:
    given = batch()
    given["image"][:, :, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)  # each picture from black to white
    numbers, shifted = given["image"].float(), given["image"].float() / 50 - 3
    one, two, three = (
        apply("policy", {**given, "image": image}, strength=0.5)["image"]
        for image in (given["image"], numbers, shifted)
    )
    assert (one.dtype, two.dtype, three.dtype) == (torch.uint8, torch.float32, torch.float32)
    assert (
        (two - one.float()).abs() <= 3
    ).float().mean() > 0.97  # rounding in between may move a value to another level
    assert (((three + 3) * 50 - two).abs() <= 3).float().mean() > 0.97


def test_each_operation_of_the_policy_is_drawn_as_often() -> None:
    """At the smallest magnitude only autocontrast and equalize, two of fourteen, do much."""
    given = pictures(
        torch.randint(90, 160, (3000, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    changed = apply("policy", given, strength=1e-4)["image"]
    much = ((changed.float() - given["image"].float()).abs().amax((1, 2, 3)) > 10).float().mean()
    assert float(much) == pytest.approx(1 - (12 / 14) ** 2, abs=0.03)


def test_a_gray_picture_of_few_pixels_goes_through_the_policy() -> None:
    given = pictures(torch.randint(0, 256, (40, 1, 2, 1), dtype=torch.uint8))
    assert apply("policy", given, strength=1.0)["image"].shape == (40, 1, 2, 1)
