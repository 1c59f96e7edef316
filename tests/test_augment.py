"""Augmentations: shape and type stay, (seed, step) decides all, and each does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.core.contract import ROW, WEIGHT, Batch, Columns, Schema
from fathom.core.errors import FathomError
from fathom.core.registry import augmentations, fields
from fathom.fields.augment import transform

ROWS = 12
NAMES = [entry.name for entry in augmentations if entry.about.get("reads", "image") == "image"]
STRENGTHS = {"flip": 1.0, "alternating_flip": 1.0, "shift": 2, "rotate": 20.0}


def schema(channels: int = 3) -> Schema:
    picture, target, number = (fields[kind].make([kind]) for kind in ("image", "category", "number"))
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, channels, 8, 8), dtype=np.uint8)
    columns = Columns({"image": pixels, "category": np.arange(ROWS) % 3, "number": np.arange(ROWS) * 1.0})
    for item in (picture, target, number):
        item.fit([columns])
    return Schema({"image": picture}, {"category": target, "number": number})


def batch(channels: int = 3, dtype: torch.dtype = torch.uint8) -> Batch:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (ROWS, channels, 8, 8), dtype=np.uint8))
    return {
        "image": pixels.to(dtype), "category": torch.arange(ROWS) % 3, "number": torch.arange(ROWS)[:, None] * 1.0,
        ROW: torch.arange(ROWS), WEIGHT: torch.ones(ROWS),
    }  # fmt: skip


def apply(
    name: str, given: Batch, seed: int = 0, step: int = 0, strength: float | None = None, epoch: int = 0
) -> Batch:
    chosen = {name: STRENGTHS.get(name, 0.5) if strength is None else strength}
    change = transform(chosen, schema(given["image"].shape[1]), seed)
    assert change is not None
    return change(given, step, epoch)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_shape_type_and_purity(name: str, channels: int, dtype: torch.dtype) -> None:
    given, untouched = batch(channels, dtype), batch(channels, dtype)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    once, again = apply(name, given, 3, 7), apply(name, given, 3, 7)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert once["image"].shape == given["image"].shape
    assert once["image"].dtype == given["image"].dtype
    for key in once:
        assert torch.equal(once[key], again[key])
        assert torch.equal(given[key], untouched[key]), "the batch that came is left as it was"
    assert not torch.equal(once["image"], given["image"])
    assert set(once) == set(given)
    if name not in ("flip", "alternating_flip"):
        assert not torch.equal(once["image"], apply(name, given, 3, 8)["image"]), "another step draws anew"
        assert not torch.equal(once["image"], apply(name, given, 4, 7)["image"]), "another seed draws anew"


def test_flip_mirrors_with_its_probability() -> None:
    given = batch()
    assert torch.equal(apply("flip", given)["image"], given["image"].flip(3))
    half = apply("flip", given, strength=0.5)["image"]
    mirrored = (half == given["image"].flip(3)).flatten(1).all(1)
    assert torch.equal(half[~mirrored], given["image"][~mirrored])
    assert 0 < int(mirrored.sum()) < ROWS


def test_shift_moves_whole_pixels_and_repeats_the_edge() -> None:
    given = batch()
    moved = apply("shift", given, strength=2)["image"]
    padded = torch.nn.functional.pad(given["image"].float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    for row in range(ROWS):
        windows = [padded[row, :, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
        assert any(torch.equal(moved[row], window) for window in windows)


def test_a_full_turn_of_a_round_picture_changes_nothing_in_its_middle() -> None:
    given = batch()
    ys, xs = torch.meshgrid(torch.arange(8) - 3.5, torch.arange(8) - 3.5, indexing="ij")
    given["image"] = (255 * torch.exp(-(ys**2 + xs**2) / 8)).round().to(torch.uint8).expand(ROWS, 3, 8, 8)
    turned = apply("rotate", given, strength=180.0)["image"]
    apart = (turned.float() - given["image"].float()).abs()
    assert apart[:, :, 2:6, 2:6].max() < 15
    assert apart.max() < 60, "the edge is repeated, never black"


def test_color_keeps_grey_pictures_grey() -> None:
    given = batch()
    given["image"] = given["image"][:, :1].expand(-1, 3, -1, -1).contiguous()
    changed = apply("color", given)["image"].float()
    assert (changed - changed.mean(1, keepdim=True)).abs().max() <= 1


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_targets_follow_the_shares(name: str) -> None:
    given = batch()
    given["image"] = torch.arange(ROWS)[:, None, None, None].expand(ROWS, 3, 8, 8).to(torch.float32).contiguous() * 10
    mixed = apply(name, given, strength=1.0)
    shares: Tensor = mixed["category"]
    assert shares.shape == (ROWS, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(ROWS))
    # Both the mean of the pixels and the number target are linear in the row's number, so they mix alike.
    torch.testing.assert_close(mixed["image"].mean((1, 2, 3)) / 10, mixed["number"].squeeze(1), rtol=1e-4, atol=1e-4)


def test_without_pictures_or_strength() -> None:
    tables = Schema({"number": schema().targets["number"]}, {"category": schema().targets["category"]})
    with pytest.raises(FathomError, match=r"augment\.flip works on pictures, and the inputs are number; leave it out"):
        transform({"flip": 0.5}, tables, 0)
    assert transform({"flip": 0.0}, tables, 0) is None
    assert transform({}, schema(), 0) is None


def two_sizes() -> tuple[Schema, Batch]:
    """Two pictures a row, of different size; the second is the first, twice as large."""
    names, small = ("left", "right"), batch()["image"]
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    pictures = {}
    for name, pixels in zip(names, (small, large), strict=True):
        pictures[name] = fields["image"].make([name])
        pictures[name].fit([Columns({name: pixels.numpy()})])
    return Schema(pictures, schema().targets), {**batch(), "left": small, "right": large}


@pytest.mark.parametrize("name", NAMES)
def test_all_pictures_of_a_row_change_alike(name: str) -> None:
    task, given = two_sizes()
    change = transform({name: STRENGTHS.get(name, 0.5) if name != "shift" else 1}, task, 0)
    assert change is not None
    changed = change(given, 3, 0)
    assert changed["right"].shape == given["right"].shape
    if name in ("crop", "scale", "rotate", "color", "flip", "mixup"):
        pooled = torch.nn.functional.avg_pool2d(changed["right"].float(), 2)
        difference = (pooled - changed["left"].float()).abs().mean()
        apart = (given["left"].float() - given["left"].float().roll(1, 0)).abs().mean()
        assert difference < 0.4 * apart, "drawn once a row, and so for both pictures of it"
    if name == "cutmix":
        share = changed["category"].max(1).values  # what the targets keep is what the pictures show
        same = [(changed[n] == given[n]).all(1).float().mean((1, 2)) for n in ("left", "right")]
        torch.testing.assert_close(share, torch.stack(same).mean(0), atol=0.51, rtol=0)


def test_the_augmentation_that_is_refused_is_the_one_in_use() -> None:
    numbers = fields["number"].make(["a"])
    with pytest.raises(FathomError, match=r"augment.crop works on pictures"):
        transform({"flip": 0.0, "crop": 0.5}, Schema({"a": numbers}), 0)
