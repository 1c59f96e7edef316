"""Pictures: any working size, where a picture lands in it, odd files one by one, and answers over several views."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, Model, Schema
from fathom.core.errors import RecipeError, RowFaults
from fathom.core.recipe import Recipe
from fathom.core.registry import algorithms, fields
from fathom.core.tensors import FEATURES
from fathom.core.views import over_views
from fathom.fields.image import UnreadableError, open_picture, placed, to_pixels
from kit import QUICK, cli
from test_bad_input import bomb

WAYS = ("stretch", "crop", "pad")


def made(shape: tuple[int, int, int], **options: Any) -> Field:
    """A fitted field of pictures, whose values go into the network as they are."""
    item: Field = fields["image"].make(["image"], **options)
    item.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "factor": 1}
    return item


# ---- working size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "wanted"), [(16, (16, 16)), ([12, 20], (12, 20)), ((12, 20), (12, 20)), (None, (9, 10))]
)
def test_the_working_size_is_one_side_or_two(size: Any, wanted: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 10, 3), dtype=np.uint8)
    item = fields["image"].make(["image"], size=size)
    item.fit([Columns({"image": pixels})])
    again = Field.from_json(json.loads(json.dumps(item.to_json())))
    for one in (item, again):
        assert one.shape == (3, *wanted)
        assert one.encode(Columns({"image": pixels})).shape == (6, 3, *wanted)
        assert f"{wanted[0]} x {wanted[1]}" in one.describe()
    assert Recipe.parse({"data": {"image": {"size": size}}}).data.fields["image"]["size"] == size


@pytest.mark.parametrize("size", [7, 4097, 24.5, "a", [16], [16, 16, 16], [16, 7], [16, "x"], [True, 16], {}])
def test_no_other_working_size_is_taken(size: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"data": {"image": {"size": size}}})
    (fault,) = caught.value.faults
    assert fault.startswith("data.image.size = ")
    assert fault.endswith("it should be one side or [height, width], in whole pixels from 8 to 4096.")


# ---- where a picture lands -----------------------------------------------------------------------------------


def test_where_a_picture_lands_by_hand() -> None:
    wide, shape = (200, 100), (3, 50, 50)  # Pillow's width before height
    assert placed(wide, shape, "stretch") == (1, 1, 0, 0)
    assert placed(wide, shape, "crop") == (2, 1, -0.5, 0)  # a quarter is cut off on either side
    assert placed(wide, shape, "pad") == (1, 0.5, 0, 0.24)  # 25 of 50 rows, 12 above them
    assert placed((100, 100), (3, 20, 40), "pad") == (0.5, 1, 0.25, 0)
    assert placed((100, 100), (3, 20, 40), "crop") == (1, 2, 0, -0.5)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 64), st.integers(8, 64), st.sampled_from(WAYS))
def test_a_picture_covers_lies_within_or_fills(width: int, height: int, rows: int, columns: int, way: str) -> None:
    picture = Pillow.new("L", (width, height), 255)
    scale_x, scale_y, offset_x, offset_y = placed(picture.size, (1, rows, columns), way)
    pixels = to_pixels(picture, (1, rows, columns), way)
    assert pixels.shape == (1, rows, columns)
    if way == "pad":
        assert max(scale_x, scale_y) == 1
        assert (pixels > 0).sum() == round(scale_x * columns) * round(scale_y * rows)
        assert offset_x >= 0 <= offset_y
    else:
        assert min(scale_x, scale_y) == 1
        assert pixels.min() == 255, "no part of the working picture is empty"
        assert offset_x <= 0 >= offset_y


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(160, 90), (90, 160), (101, 97)])
def test_files_and_arrays_land_where_it_is_said(way: str, size: tuple[int, int]) -> None:
    """A small bright mark, found again in the working picture."""
    shape, x, y = (1, 40, 56), 0.4, 0.55
    width, height = size
    far = (np.arange(width) + 0.5 - x * width) ** 2 + ((np.arange(height) + 0.5 - y * height) ** 2)[:, None]
    pixels = (255 * np.exp(-far / 40)).round().astype(np.uint8)
    data = io.BytesIO()
    Pillow.fromarray(pixels).save(data, "PNG")
    scale_x, scale_y, offset_x, offset_y = placed(size, shape, way)
    for column in ([data.getvalue()], pixels[None]):
        item = made(shape, fit_by=way)
        found = item.encode(Columns({"image": column}))[0, 0].double()  # type: ignore[index]
        ys, xs = ((torch.arange(side) + 0.5) / side for side in found.shape)
        assert float((found.sum(0) * xs).sum() / found.sum()) == pytest.approx(offset_x + scale_x * x, abs=0.006)
        assert float((found.sum(1) * ys).sum() / found.sum()) == pytest.approx(offset_y + scale_y * y, abs=0.006)


# ---- odd files -----------------------------------------------------------------------------------------------


def saved(picture: Pillow.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_in_a_file_the_first_is_taken_and_told(form: str) -> None:
    frames = [Pillow.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if form == "WEBP" else {}
    several = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    item = made((3, 8, 8))
    rows = item.encode(Columns({"image": [saved(frames[1], form, **options), several]}))
    assert rows.float().mean((2, 3)).round().tolist() == [[0, 0, 255], [255, 0, 0]]  # type: ignore[union-attr]
    assert item.remarks == {1: "it holds several pictures, of which the first is taken"}
    item.encode(Columns({"image": [several[:], saved(frames[0], form, **options)]}))
    assert list(item.remarks) == [0], "of the rows last encoded"


def test_one_pixel_fills_the_working_picture() -> None:
    item = made((3, 8, 12))
    rows = item.encode(Columns({"image": [saved(Pillow.new("RGB", (1, 1), "red"), "PNG")]}))
    assert rows.float().mean((2, 3)).tolist() == [[255, 0, 0]]  # type: ignore[union-attr]


def test_the_content_counts_and_not_the_extension(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(saved(Pillow.new("RGB", (8, 8), "red"), "PNG"))
    assert np.asarray(open_picture(str(tmp_path / "picture.jpg"))).mean((0, 1)).tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("side", "told"), [(50_000, "more than 89 million"), (9_800, "9800 x 9800 pixels, more than 89")]
)
def test_a_huge_header_is_refused_before_it_is_decoded(tmp_path: Path, side: int, told: str) -> None:
    bomb(tmp_path / "huge.png", side)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error" if side < 10_000 else "always")
        with pytest.raises(UnreadableError, match="more than 89 million pixels" if side < 10_000 else told):
            open_picture(str(tmp_path / "huge.png"))
    assert not seen


def test_a_photo_is_decoded_at_no_less_than_the_working_size() -> None:
    photo = saved(Pillow.new("L", (4000, 2400)), "JPEG")
    assert open_picture(photo).size == (2000, 1200)  # half: a quarter would be less than 1024 high
    assert open_picture(photo, detail=2048).size == (4000, 2400)


ODD: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "cut.jpg": ("it is damaged", lambda p: p.write_bytes(saved(Pillow.effect_noise((90, 90), 60), "JPEG")[:900])),
    "empty.jpg": ("the file is empty", lambda p: p.write_bytes(b"")),
    "text.jpg": ("it is not a picture in JPEG", lambda p: p.write_text("hello", "utf-8")),
    "huge.png": ("it has more than 89 million pixels", bomb),
}


def test_every_odd_file_is_listed_with_its_path_and_reason(tmp_path: Path) -> None:
    """On the command line: first the refusal, then what a share of bad rows leaves out and what is read in part."""
    draw = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "bird").mkdir()
    for name, (_, write) in ODD.items():
        write(tmp_path / "photos" / "cat" / name)
    frames = [Pillow.new("RGB", (9, 9), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "photos" / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    said = cli("fit", "photos", *QUICK)
    assert said.code == 2
    assert "4 of 45 rows cannot be used" in said.last
    for name in ("cut.jpg", "empty.jpg", "huge.png"):  # three are shown, and one more is counted
        assert f"cat/{name}: {ODD[name][0]}" in said.last
    assert "and 1 more" in said.last
    said = cli("fit", "photos", "data.bad_rows=0.1", "data.image.size=[10,16]", "--steps", "2", "--name", "odd", *QUICK)
    assert said.code == 0, said.err
    assert "No class, for want of a picture in the folder: bird" in said.err
    assert "4 rows are left out" in said.err
    assert "1 row to look at" in said.err
    assert "moving.gif: it holds several pictures, of which the first is taken" in said.err
    assert "10 x 16" in said.err
    answered = cli("predict", "runs/odd", "photos/dog/moving.gif", "photos/cat/0.png", "--json")
    assert answered.code == 0, answered.err
    notes = [answer.get("note") for answer in json.loads(answered.out)]
    assert notes == ["It holds several pictures, of which the first is taken.", None]
    for name, (reason, _) in ODD.items():
        said = cli("predict", "runs/odd", f"photos/cat/{name}")
        assert said.code == 2
        assert f"photos/cat/{name} cannot be answered: " in said.last
        assert reason in said.last


# ---- views ---------------------------------------------------------------------------------------------------


class Sides(nn.Module):
    """A row is of class 1 by as much as its left half is brighter than its right one."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[3] // 2
        weight = torch.linspace(1, 2, half)  # so that a pixel's move is seen
        lead = (images[..., :half] * weight).mean((1, 2, 3)) - (images[..., half:] * weight.flip(0)).mean((1, 2, 3))
        return torch.stack([-lead, lead], 1)


def task(views: int) -> tuple[Schema, Model]:
    picture, label = made((1, 6, 8), views=views), fields["category"].make(["label"])
    label.fit([Columns({"label": ["a", "b"]})])
    schema = Schema({"image": picture}, {"label": label})
    return schema, Model(schema, Sides())


IMAGES = torch.randint(0, 256, (5, 1, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("views", [1, 2, 6])
def test_an_answer_is_the_mean_over_the_views(views: int) -> None:
    schema, model = task(views)
    schema = Schema.from_json(json.loads(json.dumps(schema.to_json())))  # deployed with the schema
    predictor = algorithms["supervised"].make.deploy(schema, {"model": model})
    outputs = predictor.forward({"image": IMAGES})["label"]
    padded = nn.functional.pad(IMAGES.float(), (1, 1, 1, 1), mode="replicate")
    moved = [padded[:, :, y : y + 6, y : y + 8] for y in (1, 2, 0)][: max(1, views // 2)]
    seen = [each for picture in moved for each in (picture, picture.flip(3))][:views]
    by_hand = [model({"image": picture})["label"] for picture in seen]
    assert len(by_hand) == views
    torch.testing.assert_close(outputs, torch.stack(by_hand).mean(0), atol=1e-3, rtol=1e-5)
    shares = torch.stack([each.log_softmax(1) for each in by_hand]).mean(0).softmax(1)
    torch.testing.assert_close(outputs.softmax(1), shares, atol=1e-5, rtol=0)  # the mean of log-probabilities


def test_what_only_tells_left_from_right_is_even_over_mirrored_views() -> None:
    for views, even in ((1, False), (2, True)):
        schema, model = task(views)
        forward = algorithms["supervised"].make.deploy(schema, {"model": model}).forward
        assert bool((forward({"image": IMAGES})["label"].abs() < 1e-4).all()) == even
        assert ("mean over 2 views" in schema.inputs["image"].describe()) == even


def test_the_mean_over_views_can_be_differentiated_and_cached_features_are_seen_once() -> None:
    schema, _ = task(6)
    model = Model(schema, nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
    asked: list[int] = []

    def forward(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        asked.append(1)
        return dict(model(batch))

    images = IMAGES.float().requires_grad_()
    over_views(schema, forward)({"image": images})["label"][:, 1].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert len(asked) == 6
    asked.clear()

    def from_features(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        asked.append(1)
        return {"label": batch[FEATURES]}

    over_views(schema, from_features)({"image": IMAGES, FEATURES: torch.zeros(5, 2)})
    assert len(asked) == 1


def test_several_pictures_are_viewed_together_and_other_inputs_stay() -> None:
    left, right, number = made((1, 6, 8), views=2), made((1, 6, 8), views=2), fields["number"].make(["n"])
    number.fit([Columns({"n": [0.0, 1.0]})])
    schema = Schema({"left": left, "right": right, "number": number})
    seen: list[dict[str, Tensor]] = []

    def forward(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(batch)
        return {"y": batch["number"]}

    batch = {"left": IMAGES, "right": IMAGES.flip(2), "number": torch.ones(5, 1)}
    assert torch.equal(over_views(schema, forward)(batch)["y"], batch["number"])
    assert torch.equal(seen[1]["left"], IMAGES.flip(3))
    assert torch.equal(seen[1]["right"], IMAGES.flip(2).flip(3))
    assert torch.equal(seen[1]["number"], batch["number"])


def test_damaged_rows_have_no_remark() -> None:
    item = made((3, 8, 8))
    with pytest.raises(RowFaults):
        item.encode(Columns({"image": [b"nothing"]}))
    assert item.remarks == {}
