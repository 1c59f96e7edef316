"""Object detection: metrics against COCO's own, losses by hand, suppression against a slow reference, learning, pictures."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import fathom
from fathom.algorithms import detection
from fathom.analysis import detection as analysis
from fathom.core.contract import Columns, Field, Model, Schema, TensorSet
from fathom.core.errors import DataError, FathomError, RowFaults
from fathom.core.mapped import cache_folder
from fathom.core.registry import augmentations, fields, networks
from fathom.fields import box_metrics, image, published
from fathom.fields.augment import transform
from fathom.fields.boxes import NONE, boxes_type, transformed
from fathom.networks.efficientnet import EfficientNet, published_names
from fathom.verbs import drawing
from fathom.verbs.assemble import open_task
from kit import QUICK, Killable, cli, trained

CLASSES = ["cat", "dog"]
COCOTOOLS = "pycocotools"


def scene(boxes: list[tuple[Any, ...]], size: tuple[int, int] = (100, 50), fault: str | None = None) -> dict[str, Any]:
    objects = [dict(zip(("label", "x1", "y1", "x2", "y2"), box, strict=True)) for box in boxes]
    return {"width": size[0], "height": size[1], "fault": fault, "objects": objects}


def columns(scenes: list[Any]) -> Columns:
    import pyarrow as pa

    return Columns({"boxes": pa.chunked_array([pa.array(scenes, boxes_type())])})


def fitted(shape: tuple[int, int, int] = (3, 64, 64), fit_by: str = "stretch", **options: Any) -> Field:
    """A field that knows a cat and a dog."""
    item = fields["boxes"].make(["boxes"], **options)
    item.picture = fields["image"].make(["image"], fit_by=fit_by)
    item.picture.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "factor": 1}
    item.fit([columns([scene([("dog", 0, 0, 50, 25), ("cat", 10, 10, 20, 20)]), scene([("cat", 0, 0, 20, 10)])])])
    return item


def schema_of(item: Field) -> Schema:
    return Schema({"image": item.picture}, {"boxes": item})  # type: ignore[attr-defined]


# ---------------------------------------------------------------- the field


def test_what_the_field_learns_and_encodes() -> None:
    item = fitted()
    assert item.state["classes"] == CLASSES
    assert item.state["sizes"] == [[0.15, 0.2], [0.5, 0.5]]
    encoded = item.encode(columns([scene([("dog", 25, 25, 75, 50)]), scene([])]), target=True)
    values, mask = encoded.gather(torch.tensor([0, 1]))
    assert values.tolist() == [[[0.25, 0.5, 0.75, 1.0, 1.0]], [[NONE] * 5]]
    assert mask.tolist() == [[True], [False]]
    again = Field.from_json(json.loads(json.dumps(item.to_json())))
    assert torch.equal(again.encode(columns([scene([("dog", 25, 25, 75, 50)])])).values, encoded.values)
    assert again.describe() == "boxes of cat (2), dog (1), up to 2 a picture"


def test_faults_are_those_of_their_rows() -> None:
    item = fitted()
    with pytest.raises(RowFaults) as caught:
        item.encode(
            columns([scene([("cat", 0, 0, 9, 9)]), None, scene([("cow", 0, 0, 9, 9)]), scene([], fault="spoilt")]),
            target=True,
        )
    assert caught.value.reasons == {
        1: "there is no list of boxes (a picture with nothing in it has an empty one)",
        2: "box 1 is of the class 'cow', which no training picture has",
        3: "spoilt",
    }
    assert caught.value.partial.lengths().tolist() == [1, 0, 0, 0]
    with pytest.raises(DataError, match=r"nothing to learn: box 1 \('cat'\) has no area: x runs from 5 to 5"):
        item.fit([columns([scene([("cat", 5, 0, 5, 9)])])])


sides = st.tuples(st.floats(0, 0.8), st.floats(0.05, 0.2))


@given(st.integers(20, 400), st.integers(20, 400), sides, sides, st.sampled_from(["stretch", "pad"]))
def test_boxes_come_back_in_pixels(width: int, height: int, across: Any, down: Any, fit_by: str) -> None:
    """Encoded in shares of the working picture, and back in pixels of the original, whatever its shape."""
    item = fitted((3, 64, 96), fit_by)
    x1, x2, y1, y2 = (width * across[0], width * sum(across), height * down[0], height * sum(down))
    encoded = item.encode(columns([scene([("cat", x1, y1, x2, y2)], (width, height))])).values[0]
    assert bool(((encoded[:4] >= 0) & (encoded[:4] <= 1)).all())
    pixels = item.in_pixels(encoded[:4].tolist(), (width, height))  # type: ignore[attr-defined]
    assert pixels == pytest.approx([x1, y1, x2, y2], abs=0.11)


@pytest.mark.parametrize("fit_by", ["stretch", "pad", "crop"])
def test_boxes_stand_where_the_picture_shows_them(fit_by: str) -> None:
    """A white rectangle in a black picture, seen at the working size, and the box that the field says."""
    item = fitted((1, 64, 96), fit_by)
    pixels = np.zeros((120, 100), np.uint8)
    pixels[40:70, 20:80] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    seen = item.picture.encode(Columns({"image": [file.getvalue()]}))[0, 0] > 128  # type: ignore[attr-defined]
    box = item.encode(columns([scene([("cat", 20, 40, 80, 70)], (100, 120))])).values[0]
    rows, places = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    shown = [places[0] / 96, rows[0] / 64, (places[-1] + 1) / 96, (rows[-1] + 1) / 64]
    assert box[:4].tolist() == pytest.approx([float(value) for value in shown], abs=0.02)


EDGE = ("dog", 0, 0, 20, 20)  # of 100 x 50 pixels, 25 on each side lie outside the working picture where it is a square


def cropped() -> Field:
    """A field whose dogs all lie outside the working picture."""
    item = fitted((3, 64, 64), "crop")
    item.fit([columns([scene([EDGE, ("cat", 40, 0, 60, 50)])])])
    return item


def test_boxes_outside_the_working_picture_are_counted_and_told() -> None:
    item = cropped()
    assert item.state["classes"] == CLASSES, "a class is known whether its boxes are seen or not"
    assert item.state["counts"] == [1, 0]
    assert item.state["sizes"] == [[0.4, 1.0], [0.4, 0.4]], "of what is never seen, the size that it would have"
    assert item.describe() == (
        "boxes of cat (1), dog (0), up to 2 a picture; 1 more in training pictures left out (data.image.fit_by=crop)"
    )
    encoded = item.encode(columns([scene([EDGE, ("cat", 20, 0, 50, 50)]), scene([EDGE, EDGE]), scene([])]), target=True)
    torch.testing.assert_close(encoded.values, torch.tensor([[0.0, 0.0, 0.5, 1.0, 0.0]]))
    assert encoded.lengths().tolist() == [1, 0, 0]
    why = "left out, for lying outside the working picture or nearly so (data.image.fit_by=crop)"
    assert item.remarks == {0: f"1 box is {why}", 1: f"2 boxes are {why}"}
    item.encode(columns([scene([])]))
    assert item.remarks == {}


@pytest.mark.parametrize(("right", "stays"), [(35, False), (36, True), (45, True)])
def test_of_a_box_enough_must_be_seen(right: int, stays: bool) -> None:
    """As where an augmentation moves the picture: 30 % of its area; of 0 to 35 the working picture shows 25 to 35."""
    item = cropped()
    encoded = item.encode(columns([scene([("cat", 0, 10, right, 30)])]))
    assert bool(len(encoded.values)) == stays == (right - 25 >= 0.3 * right)
    if stays:
        torch.testing.assert_close(encoded.values, torch.tensor([[0.0, 0.2, (right - 25) / 50, 0.6, 0.0]]))


def test_where_no_training_box_lies_in_the_working_picture() -> None:
    with pytest.raises(DataError) as caught:
        fitted((3, 64, 64), "crop").fit([columns([scene([EDGE, ("cat", 80, 0, 99, 9)])])])
    assert str(caught.value) == (
        "All 2 training boxes lie outside the working picture, or less than 30% of each lies in it (data.image.fit_by=crop), so "
        "there is nothing to learn. Use data.image.fit_by=pad or stretch."
    )


def test_what_is_answered() -> None:
    item = fitted(most=3, confidence=0.4)
    rows = torch.tensor(
        [[[0.1, 0.1, 0.2, 0.2, 0.5, 0], [0, 0, 1, 1, 0.9, 1], [0, 0, 1, 1, 0.39, 1]], [[0.0, 0, 0, 0, 0, -1]] * 3]
    )
    assert item.decode(rows) == [
        {
            "answer": [
                {"label": "dog", "confidence": 0.9, "box": [0, 0, 1, 1]},
                {"label": "cat", "confidence": 0.5, "box": [0.1, 0.1, 0.2, 0.2]},
            ]
        },
        {"answer": []},
    ]


# ---------------------------------------------------------------- moved pictures


def one_box(*box: float) -> Tensor:
    return torch.tensor([[[*box, 0.0], [NONE] * 5]])


def test_boxes_are_mirrored_cut_and_dropped() -> None:
    mirrored = transformed(one_box(0.1, 0.2, 0.3, 0.6), torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]))
    torch.testing.assert_close(mirrored, one_box(0.7, 0.2, 0.9, 0.6))
    for shift, stays in ((0.3, True), (0.6, True), (0.8, False)):  # of a box of width 0.4 at the left edge
        moved = transformed(one_box(0.0, 0.2, 0.4, 0.6), torch.tensor([[[1.0, 0, 2 * shift * 0.4], [0, 1, 0]]]))
        assert bool(moved[0, 0, 4] == 0) == stays
        if stays:
            torch.testing.assert_close(moved, one_box(0.0, 0.2, 0.4 * (1 - shift), 0.6))
    assert bool((moved[0] == NONE).all())


def test_boxes_are_moved_exactly_where_training_is_in_half_precision() -> None:
    boxes, turned = one_box(0.123456, 0.2, 0.3, 0.654321), torch.tensor([[[0.9, 0.2, 0.1], [-0.1, 1.1, 0.2]]])
    with torch.autocast("cpu", torch.bfloat16):
        moved = transformed(boxes, turned)
    assert torch.equal(moved, transformed(boxes, turned))


@pytest.mark.parametrize("strengths", [{"flip": 1.0}, {"shift": 8}, {"crop": 0.4}, {"rotate": 30.0}, {"scale": 0.4}])
def test_a_box_follows_its_picture(strengths: dict[str, float]) -> None:
    """Every augmentation that moves pictures: the bright rectangle is where its box says, as far as it is still there."""
    item = fitted((1, 64, 96))
    corners = torch.tensor([0.25, 0.375, 0.5, 0.75])
    pictures = torch.zeros(16, 1, 64, 96)
    pictures[:, :, 24:48, 24:48] = 255
    boxes = torch.cat([corners, torch.zeros(1)]).expand(16, 1, 5).clone()
    apply = transform(strengths, schema_of(item), 0)
    assert apply is not None
    moved = apply({"image": pictures, "boxes": boxes}, 3, 0)
    for seen, box in zip(moved["image"][:, 0] > 127, moved["boxes"][:, 0], strict=True):
        if box[4] < 0:
            continue
        rows, places = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
        shown = [places[0] / 96, rows[0] / 64, (places[-1] + 1) / 96, (rows[-1] + 1) / 64]
        assert box[:4].tolist() == pytest.approx([float(value) for value in shown], abs=0.035)
    assert bool((moved["boxes"][:, 0, 4] >= 0).any())
    assert bool((moved["boxes"] != boxes).any())


def test_pictures_with_boxes_are_not_mixed() -> None:
    for name in (entry.name for entry in augmentations if entry.about.get("mixes")):
        with pytest.raises(FathomError, match=rf"augment.{name} mixes the targets of two rows, and of 'boxes'"):
            transform({name: 1.0}, schema_of(fitted()), 0)


# ---------------------------------------------------------------- metrics


def detections(seed: int, pictures: int = 12, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Boxes, and answers near and far from them; some pictures have neither."""
    draw = np.random.default_rng(seed)
    target, output = np.full((pictures, 6, 5), NONE), np.zeros((pictures, 15, 6))
    output[..., 5] = -1
    for i in range(pictures):
        for k in range(draw.integers(0, 7)):
            corner, size = draw.random(2) * 0.6, 0.1 + draw.random(2) * 0.3
            target[i, k] = [*corner, *(corner + size), draw.integers(0, classes - 1)]  # the last class has no boxes
            output[i, k] = target[i, k][[0, 1, 2, 3, 0, 4]]
            output[i, k, :4] += draw.normal(0, 0.03, 4)
        for k in range(6, 6 + draw.integers(0, 9)):
            corner = draw.random(2) * 0.6
            output[i, k] = [*corner, *(corner + 0.2), 0, draw.integers(0, classes)]
        output[i, :, 4] = np.where(output[i, :, 5] >= 0, draw.integers(1, 8, 15) / 8, 0)  # with ties
    output[..., 2:4] = np.maximum(output[..., 2:4], output[..., :2] + 0.01)
    return torch.tensor(output, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)


def official(output: Tensor, target: Tensor, classes: int) -> dict[str, float]:
    """COCO's own figures, all of it."""
    coco, cocoeval = pytest.importorskip(f"{COCOTOOLS}.coco"), pytest.importorskip(f"{COCOTOOLS}.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(target))],
            "annotations": box_metrics._annotations(target),
            "categories": [{"id": k} for k in range(classes)],
        }
        truth.createIndex()
        answers = [
            [i, x1, y1, x2 - x1, y2 - y1, score, label]
            for i, rows in enumerate(output.double().tolist())
            for x1, y1, x2, y2, score, label in rows
            if label >= 0
        ]
        judge = cocoeval.COCOeval(truth, truth.loadRes(np.array(answers)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(("map", "map50", "map75"), judge.stats[:3], strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_metrics_are_those_of_coco(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    output, target = detections(seed)
    ours = box_metrics.mean_average_precision(output, target, ["a", "b", "c"])
    for name, value in official(output, target, 3).items():
        assert float(ours[name]) == pytest.approx(value, abs=1e-6)
    assert math.isnan(float(ours["ap_c"]))
    assert capfd.readouterr().out == ""


def test_a_resample_is_the_same_pictures_again() -> None:
    """Weights are how often a picture counts: COCO's figures of the pictures that were drawn, written out."""
    output, target = detections(0)
    weight = torch.tensor(np.random.default_rng(1).multinomial(12, [1 / 12] * 12, 5), dtype=torch.float32)
    ours = box_metrics.mean_average_precision(output, target, ["a", "b", "c"], weight)
    assert ours["map"].shape == (5,)
    for k, counts in enumerate(weight):
        drawn = torch.arange(12).repeat_interleave(counts.long())
        for name, value in official(output[drawn], target[drawn], 3).items():
            assert float(ours[name][k]) == pytest.approx(value, abs=1e-3)  # ties stand in another order
    once = box_metrics.mean_average_precision(output, target, ["a", "b", "c"], torch.ones(12))
    torch.testing.assert_close(
        once, box_metrics.mean_average_precision(output, target, ["a", "b", "c"]), equal_nan=True
    )


def test_metrics_by_hand() -> None:
    """Two boxes; the surest answer hits, the next is false, the third hits: precision 1 up to a recall of 1/2, then 2/3."""
    boxes = torch.tensor([[[0.1, 0.1, 0.3, 0.3, 0], [0.5, 0.5, 0.9, 0.9, 0]]])
    answers = torch.tensor([[[0.1, 0.1, 0.3, 0.3, 0.9, 0], [0.0, 0.6, 0.1, 0.7, 0.8, 0], [0.5, 0.5, 0.9, 0.9, 0.7, 0]]])
    found = box_metrics.mean_average_precision(answers, boxes, ["a"])
    assert float(found["map50"]) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert set(found) == {"map", "map50", "map75"}
    nothing = torch.zeros(1, 3, 6)
    nothing[..., 5] = -1
    assert float(box_metrics.mean_average_precision(nothing, boxes, ["a"])["map"]) == 0
    assert math.isnan(float(box_metrics.mean_average_precision(answers, boxes[:, :0], ["a"])["map"]))


def test_without_the_package_of_coco(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"{COCOTOOLS}.coco", None)
    with pytest.raises(
        FathomError, match=r"pycocotools is not installed. Install it with: pip install 'fathom\[detection\]'"
    ):
        box_metrics.mean_average_precision(*detections(0), ["a", "b", "c"])


# ---------------------------------------------------------------- losses


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([0.0, 2.0, -1.0]).view(1, 1, 1, 3)
    wanted = torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 1, 3)
    p = torch.tensor([0.0, 2.0, -1.0]).sigmoid()
    by_hand = -((1 - p[0]) ** 2 * p[0].log() + 0.5**4 * p[1] ** 2 * (1 - p[1]).log() + p[2] ** 2 * (1 - p[2]).log())
    torch.testing.assert_close(detection.heat_loss(logits, wanted), by_hand)
    twice = detection.heat_loss(logits.expand(2, -1, -1, -1), wanted.expand(2, -1, -1, -1))
    torch.testing.assert_close(twice, by_hand)  # by the number of middles
    assert float(detection.heat_loss(torch.full((1, 1, 4, 4), -90.0), torch.zeros(1, 1, 4, 4))) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 9),
        ((0, 0, 1, 1), (3, 0, 4, 1), -(4 - 2) / 4),
        ((0, 0, 4, 4), (1, 1, 2, 2), 1 / 16),
    ],
)
def test_generalized_overlap_by_hand(one: Any, other: Any, expected: float) -> None:
    boxes = [torch.tensor(box, dtype=torch.float64)[None] for box in (one, other)]
    assert float(detection.giou(*boxes)) == pytest.approx(expected)


def test_what_the_network_should_say() -> None:
    """A large dog with a cat in it, on 16 x 16 cells: the cat's places learn the cat, and padding nothing."""
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0, 1], [0.5, 0.5, 0.75, 0.75, 0], [NONE] * 5]])
    heat, wanted, weight = detection.aims(boxes, 2, (16, 16))
    assert heat.shape == (1, 2, 16, 16)
    assert (heat == 1).nonzero().tolist() == [[0, 0, 10, 10], [0, 1, 8, 8]]
    assert heat[0, 1, 8, 4] == heat[0, 1, 4, 8] == heat[0, 1, 8, 12] < 1  # the same to each side
    assert wanted[0, :, 10, 10].tolist() == [8, 8, 12, 12]
    assert wanted[0, :, 8, 8].tolist() == [0, 0, 16, 16]
    assert float(weight[0, 10, 10]) > 0
    assert float(weight[0, 0, 0]) == 0
    cat, dog = (weight[0][(wanted[0, 2] == side)].sum() for side in (12, 16))
    assert float(cat) == pytest.approx(math.log(17), rel=1e-4)  # each box counts by the logarithm of its area
    assert 0.8 * math.log(257) < float(dog) < math.log(257)  # less what the cat has taken
    alone = detection.aims(torch.full((1, 2, 5), NONE), 2, (16, 16))
    assert not bool(alone[0].any())
    assert not bool(alone[2].any())


def perfect(boxes: Tensor, classes: int, cells: tuple[int, int]) -> Tensor:
    """The dense output that says these boxes."""
    heat, wanted, _ = detection.aims(boxes, classes, cells)
    y, x = torch.meshgrid(torch.arange(cells[0]) + 0.5, torch.arange(cells[1]) + 0.5, indexing="ij")
    sides = torch.stack([x - wanted[:, 0], y - wanted[:, 1], wanted[:, 2] - x, wanted[:, 3] - y], 1)
    return torch.cat([sides.clamp(min=1e-3).log(), (heat * 0.98 + 0.01).logit()], 1)


def test_boxes_come_back_from_a_perfect_output() -> None:
    boxes = torch.tensor(
        [[[0.1, 0.1, 0.4, 0.3, 1], [0.5, 0.5, 0.9, 0.9, 0], [0.52, 0.1, 0.6, 0.2, 1]], [[NONE] * 5] * 3]
    )
    answer = detection.found(perfect(boxes, 2, (32, 40)), 20, 0.6)
    assert answer.shape == (2, 20, 6)
    sure = answer[0][answer[0, :, 4] > 0.9]
    order = sure[:, 0].argsort()
    torch.testing.assert_close(sure[order][:, [0, 1, 2, 3, 5]], boxes[0], atol=1e-3, rtol=0)
    assert not bool((answer[1, :, 4] > 0.1).any())
    heat, sides = detection.losses(perfect(boxes, 2, (32, 40)), boxes)
    assert float(sides) < 1e-3
    assert float(heat) < 0.2
    assert float(box_metrics.mean_average_precision(answer, boxes, CLASSES)["map"]) == pytest.approx(1)


coordinate = st.integers(0, 20)
drawn_box = st.tuples(coordinate, coordinate, st.integers(1, 12), st.integers(1, 12), st.integers(0, 1))


@given(st.lists(drawn_box, min_size=1, max_size=12), st.sampled_from([0.0, 0.3, 0.6, 0.99]))
def test_suppression_is_that_of_a_slow_reference(boxes: list[tuple[int, ...]], overlap: float) -> None:
    corners = [(x, y, x + width, y + height) for x, y, width, height, _ in boxes]
    expected: list[int] = []
    for i, box in enumerate(boxes):
        rivals = [j for j in expected if boxes[j][4] == box[4]]
        if all(reference_overlap(corners[i], corners[j]) <= overlap for j in rivals):
            expected.append(i)
    keep = detection.kept(
        torch.tensor([corners], dtype=torch.float64), torch.tensor([[box[4] for box in boxes]]), overlap
    )
    assert keep[0].nonzero()[:, 0].tolist() == expected


def reference_overlap(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("size", [(64, 64), (72, 104)])
def test_the_detector_answers_everywhere_and_learns_in_every_weight(size: tuple[int, int]) -> None:
    item = fitted((3, *size))
    torch.manual_seed(0)
    module = networks["detector"].build(schema_of(item), "model", channels=(8, 8, 16, 16), width=8)
    model = Model(schema_of(item), module)
    batch = {"image": torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)}
    dense = model(batch)["boxes"]
    said = dense.detach()
    assert dense.shape == (2, 6, size[0] // 4, size[1] // 4)
    assert float(said[:, 4:].sigmoid().mean()) == pytest.approx(0.1, abs=0.02)  # at first nearly nothing is anywhere
    medians = [0.15 * size[1] / 8, 0.2 * size[0] / 8]  # of the smaller class, half of it in cells
    assert said[:, :2].mean((0, 2, 3)).exp().tolist() == pytest.approx(medians, rel=0.2)
    heat, boxes = detection.losses(dense, torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0]], [[0.2, 0.3, 0.9, 0.8, 1]]]))
    (heat + boxes).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), f"nothing is learnt in {name}"
    assert isinstance(module.head, torch.nn.Module)


def test_published_weights_of_a_backbone() -> None:
    """The maps are those of the whole published network, and learn slower than the rest."""
    try:
        tensors = published.converted("efficientnet-lite0")
    except FathomError as error:
        pytest.skip(str(error))
    item = fitted((1, 64, 64))  # gray pictures, of another mean and spread than the published
    item.picture.state |= {"mean": [100.0], "std": [50.0]}  # type: ignore[attr-defined]
    options = {"backbone": "efficientnet-lite0", "weights": "efficientnet-lite0"}
    made = networks["detector"].build(schema_of(item), "model", **options).eval()
    made.begin()
    assert made.rates == {"*": 1.0, "backbone.*": 0.1}
    whole = EfficientNet("lite0", 3, 1000)
    whole.load_state_dict({ours: tensors[theirs] for ours, theirs in published_names("lite0").items()})
    bytes_ = torch.randint(0, 256, (1, 1, 64, 64)).float()
    with torch.no_grad():
        ours = made.backbone((bytes_ - 100) / 50)[-1]
        theirs = whole.eval().blocks(whole.stem((bytes_.expand(-1, 3, -1, -1) - 127) / 128))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    with pytest.raises(FathomError, match="There are no published weights 'efficientnet-lite0' for the backbone small"):
        networks["detector"].build(schema_of(item), "model", weights="efficientnet-lite0")


def test_who_detects_and_who_does_not() -> None:
    schema = schema_of(fitted())
    assert [entry.name for entry in networks if entry.about["suits"](schema, 100) > 0] == ["detector"]
    for name in ("resnet", "mlp"):
        with pytest.raises(FathomError, match=r"should tell 'boxes' \(boxes\). What fits: detector"):
            networks[name].build(schema, "model")
    label = fields["category"].make(["label"])
    label.fit([Columns({"label": [0, 1]})])
    with pytest.raises(FathomError, match="The network 'detector' takes one picture alone, in which it finds boxes"):
        networks["detector"].build(Schema(schema.inputs, {"label": label}), "model")
    with pytest.raises(FathomError, match=r"Pictures of 32 x 64 are too small .* give data.image.size of 64 or more"):
        networks["detector"].build(schema_of(fitted((3, 32, 64))), "model")
    with pytest.raises(FathomError, match=r"data.weight = 'much' has no meaning for boxes yet; leave it out."):
        detection.Detection.roles(Schema(schema.inputs, schema.targets, {"weight": "much"}))
    with pytest.raises(
        FathomError, match=r"Boxes are learnt alone, but the targets are boxes, label. Name one: --target boxes"
    ):
        detection.Detection.roles(Schema(schema.inputs, {**schema.targets, "label": label}))


# ---------------------------------------------------------------- baselines


def rows(scenes: list[Any]) -> tuple[Schema, TensorSet]:
    item = fitted()
    return schema_of(item), TensorSet({"boxes": item.encode(columns(scenes))})


def test_where_things_never_move_the_baseline_is_right() -> None:
    still = [scene([("cat", 10, 10, 40, 40), ("dog", 60, 5, 90, 45)])] * 10
    schema, data = rows(still)
    answers = analysis.baselines(schema, data, data)
    item = schema.targets["boxes"]
    for answer in answers.values():
        assert float(item.metrics(answer["boxes"], data.column("boxes"))["map"]) == pytest.approx(1)
        assert answer["boxes"][0, :3, 5].tolist() == [0, 1, -1]


def test_the_confidence_of_a_baseline_is_how_often_it_would_have_hit() -> None:
    often, seldom = ("cat", 0, 0, 20, 20), ("cat", 60, 20, 90, 40)
    schema, data = rows([scene([often])] * 6 + [scene([seldom])] * 2 + [scene([])] * 2)
    answers = analysis.baselines(schema, data, data)
    frequent = answers[analysis.FREQUENT]["boxes"][0]
    assert frequent[:3, 4].tolist() == pytest.approx([0.6, 0.2, 0.0])
    torch.testing.assert_close(frequent[0, :4], torch.tensor([0.0, 0.0, 0.2, 0.4]))
    assert float(answers[analysis.CLASS_MEANS]["boxes"][0, 0, 4]) == 0  # the mean of two places is neither


# ---------------------------------------------------------------- from a folder to answers


def draw_scene(path: Path, seed: int) -> list[tuple[str, int, int, int, int]]:
    """Up to two rectangles, bright ones are cats and dark ones dogs, on gray noise."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(100, 140, (64, 80, 3))
    boxes = []
    for half in range(2):
        if seed % 7 == 0 or draw.random() < 0.2:
            continue
        width, height = draw.integers(14, 30, 2)
        x, y = half * 40 + draw.integers(0, 40 - width), draw.integers(0, 64 - height)
        label = CLASSES[draw.integers(2)]
        pixels[y : y + height, x : x + width] = 240 if label == "cat" else 15
        boxes.append((label, int(x), int(y), int(x + width), int(y + height)))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return boxes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of 60 drawn scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    made: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    made["categories"] = [{"id": k, "name": name} for k, name in enumerate(CLASSES)]
    for i in range(60):
        boxes = draw_scene(folder / "images" / f"{i:02d}.png", i)
        made["images"].append({"id": i, "file_name": f"{i:02d}.png", "width": 80, "height": 64})
        for label, x1, y1, x2, y2 in boxes:
            box = {"id": len(made["annotations"]), "image_id": i, "category_id": CLASSES.index(label)}
            made["annotations"].append({**box, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0})
    (folder / "annotations" / "instances.json").write_text(json.dumps(made))
    return folder


SMALL = ["network.channels=[8,16,16,16]", "network.width=16", "training.batch=8", "training.precision=float32"]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt to find them."""
    pytest.importorskip(COCOTOOLS)
    out = tmp_path_factory.mktemp("runs")
    said = cli(
        "fit",
        str(data),
        *QUICK,
        *SMALL,
        "--epochs",
        "25",
        "training.learning_rate=0.01",
        "--name",
        "found",
        "--out",
        str(out),
    )
    assert said.code == 0, said.err
    assert "mAP50" in said.out
    return out / "found"


def test_a_small_problem_is_learnt(run: Path) -> None:
    results = fathom.load(run).results
    assert results["task"] == "object detection"
    assert results["primary"] == "map"
    assert results["test"]["map50"]["value"] > 0.9
    assert results["test"]["map"]["value"] > 0.5
    assert results["better"] == "better"
    assert set(results["baseline"]) == {"mean box of each class", "most frequent boxes"}
    assert [line["name"] for line in results["targets"]["boxes"]["detected"]] == CLASSES
    history = fathom.load(run).history
    assert {"train/heat", "train/boxes", "validation/loss", "validation/map50"} <= set(history[-1])


def test_the_report_shows_pictures_and_classes(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    assert page.count('<img src="data:image/png;base64,') >= 4
    assert "Average precision of each class" in page
    assert "with true and answered boxes" in page
    assert "mAP50" in page
    results = fathom.load(run).results
    shown = [picture["name"] for picture in results["targets"]["boxes"]["pictures"]]
    assert shown
    assert all(Path(name).exists() and Path(name).name in page for name in shown)
    assert not set(shown) & {mistake["name"] for mistake in results["mistakes"]}
    colors = {line["name"]: line["color"] for line in results["targets"]["boxes"]["detected"]}
    assert colors == {name: color for name, (color, _) in analysis.colors_of(CLASSES).items()}
    assert all(f'style="--chip:{color}"></span>{name}' in page for name, color in colors.items())


def test_boxes_of_a_new_picture(run: Path, tmp_path: Path) -> None:
    boxes = draw_scene(tmp_path / "new.png", 101)
    assert boxes
    (answer,) = fathom.load(run).predict(tmp_path / "new.png")
    assert answer["size"] == [80, 64]
    found = sorted(answer["answer"], key=lambda box: box["box"][0])
    assert [box["label"] for box in found] == [box[0] for box in boxes]
    for ours, (_, *truth) in zip(found, boxes, strict=True):
        assert reference_overlap(tuple(ours["box"]), tuple(truth)) > 0.5
    large = tmp_path / "large.png"
    with Image.open(tmp_path / "new.png") as picture:
        picture.resize((160, 128)).save(large)
    (twice,) = fathom.load(run).predict(large)
    assert twice["size"] == [160, 128]
    for one, other in zip(answer["answer"], twice["answer"], strict=True):
        assert [2 * side for side in one["box"]] == pytest.approx(other["box"], abs=4)


def test_boxes_are_drawn_into_a_copy(run: Path, tmp_path: Path) -> None:
    draw_scene(tmp_path / "a.png", 101)
    draw_scene(tmp_path / "b.png", 7)  # with nothing in it
    before = (tmp_path / "a.png").read_bytes()
    said = cli("predict", str(run), "a.png", "-o", "out.jpg")
    assert said.code == 0, said.err
    assert "1 answer (2 boxes) written to out.jpg" in said.err
    assert "x1 y1 x2 y2" in said.out
    assert pixels_of(tmp_path / "out.jpg").shape == (64, 80, 3)
    assert (tmp_path / "a.png").read_bytes() == before
    said = cli("predict", str(run), "a.png", "b.png", "-o", "drawn/")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a.png", "b.png"]
    assert "nothing found" in said.out
    assert np.array_equal(pixels_of(tmp_path / "drawn" / "b.png"), pixels_of(tmp_path / "b.png"))
    assert not np.array_equal(pixels_of(tmp_path / "drawn" / "a.png"), pixels_of(tmp_path / "a.png"))


def test_boxes_are_drawn_here_where_no_place_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "photos/b.png", "photos/sub/c.png"]):
        draw_scene(tmp_path / name, 101 + i)
    before = (tmp_path / "a.png").read_bytes()
    said = cli("predict", str(run), "a.png")
    assert said.code == 0, said.err
    assert "Boxes drawn into a-boxes.png\n" in said.err
    assert "x1 y1 x2 y2" in said.out
    assert (tmp_path / "a.png").read_bytes() == before
    made = (tmp_path / "a-boxes.png").read_bytes()
    cli("predict", str(run), "a.png", "-o", "named.png")
    assert (tmp_path / "named.png").read_bytes() == made
    assert "Boxes drawn into a-boxes.png\n" in cli("predict", str(run), "a.png").err, "the same drawing stands there"
    (tmp_path / "a-boxes.png").write_bytes(b"mine")
    assert "Boxes drawn into a-boxes-2.png\n" in cli("predict", str(run), "a.png").err
    assert (tmp_path / "a-boxes.png").read_bytes() == b"mine"
    assert (tmp_path / "a-boxes-2.png").read_bytes() == made
    for folder in ("photos-boxes", "photos-boxes-2"):
        assert f"Boxes drawn into 2 pictures in {folder}/\n" in cli("predict", str(run), "photos").err
        assert pixels_of(tmp_path / folder / "b.png").shape == pixels_of(tmp_path / folder / "sub" / "c.png").shape
    assert "Boxes drawn into b-boxes.png, c-boxes.png\n" in cli("predict", str(run), "photos/b.png", "photos/sub/c.png").err
    there = sorted(tmp_path.iterdir())
    for words in (["--json"], ["-o", "named.png"]):
        assert "drawn" not in cli("predict", str(run), "a.png", *words).err
    assert sorted(tmp_path.iterdir()) == there


def test_drawings_that_cannot_be_written_do_not_cost_the_answers(run: Path, tmp_path: Path) -> None:
    """Read-only for everybody, the superuser too: the name that a drawing is written under first is a folder."""
    draw_scene(tmp_path / "a.png", 101)
    (tmp_path / f".a-boxes.png.{os.getpid()}.part").mkdir()
    said = cli("predict", str(run), "a.png")
    assert said.code == 2
    assert "x1 y1 x2 y2" in said.out
    assert "a-boxes.png cannot be written (" in said.last
    assert "name another place for the boxes with -o." in said.last


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_each_class_has_its_own_color_in_every_picture() -> None:
    names = ["car", "bus", "truck", "person", "traffic light"]
    colors = analysis.colors_of(names)
    assert len({color for color, _ in colors.values()}) == len(names)
    assert len({color for color, _ in analysis.colors_of(list(map(str, range(20)))).values()}) == 20
    assert dict(analysis.colors_of(list(map(str, range(20)))).values())["#42d4f4"] == "black"  # cyan
    assert colors["car"] == ("#e6194b", "white")
    ground = Image.new("RGB", (40, 40))
    for name in names:
        box = (name, 0.1, 0.5, 0.9, 0.9, 0.5)
        alone, among = (np.asarray(analysis.drawn(ground, boxes, classes=names)) for boxes in ([box], [box] * 2))
        assert np.array_equal(alone, among)
        assert "#{:02x}{:02x}{:02x}".format(*alone[36, 20]) == colors[name][0]


def test_pictures_of_the_report_keep_the_colors_of_the_classes() -> None:
    """However many colors a photograph has; the truth shows on white and on black, and no word hides anything."""
    item = fields["boxes"].make(["boxes"])
    item.state = {"classes": ["RBC", "WBC"]}
    pixels = np.random.default_rng(0).integers(0, 256, (3, 80, 80)).astype(np.uint8)
    pixels[:, :, :20] = 255
    output = torch.tensor([[0.5, 0.5, 0.9, 0.9, 0.9, 1.0], [0.1, 0.1, 0.2, 0.2, 0.01, 0.0]])
    target = torch.tensor([[0.05, 0.1, 0.4, 0.4, 0.0]])
    uri = drawing.report_picture(pixels, item, output, target)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        made = np.asarray(picture.convert("RGB"))
    assert made.shape == (320, 320, 3)
    assert "#{:02x}{:02x}{:02x}".format(*made[160, 224]) == analysis.colors_of(["RBC", "WBC"])["WBC"][0]
    assert made[32, 80].tolist() == [255, 255, 255]
    assert made[31, 80].tolist() == [0, 0, 0]
    assert len(np.unique(made.reshape(-1, 3), axis=0)) <= drawing.SHADES + 3


def test_pictures_at_even_steps_do_not_come_twice() -> None:
    assert drawing.sampled(6, [0, 1, 2, 3, 4, 5]) == []
    assert drawing.sampled(6, [0, 2, 3]) == [1, 4, 5]
    assert drawing.sampled(100, [0]) == [1, 25, 49, 73]


def untouched(path: Path) -> np.ndarray:
    """The pixels of a picture that is drawn with no box."""
    with Image.open(path) as picture:
        size = list(picture.size)
    (made,) = drawing.draw([{"input": str(path), "answer": [], "size": size}], path.parent / "drawn.png")
    return pixels_of(made)


def test_boxes_are_drawn_into_what_the_network_saw(tmp_path: Path) -> None:
    """16 bits are scaled, transparency lies on white, rotated photos stand upright and large ones keep their size."""
    Image.fromarray(np.full((6, 8), 32_896, np.uint16)).save(tmp_path / "deep.png")
    assert set(untouched(tmp_path / "deep.png").ravel()) == {128}
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert set(untouched(tmp_path / "clear.png").ravel()) == {255}
    Image.new("RGB", (8, 6), "red").save(tmp_path / "keyed.png", transparency=(255, 0, 0))
    assert set(untouched(tmp_path / "keyed.png").ravel()) == {255}
    Image.new("L", (4_200, 2_100)).save(tmp_path / "large.jpg")
    assert untouched(tmp_path / "large.jpg").shape == (2_100, 4_200, 3)
    (tmp_path / "gone.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"Boxes cannot be drawn into .*gone.png: it is not a picture in JPEG"):
        drawing.draw([{"input": str(tmp_path / "gone.png"), "answer": [], "size": [1, 1]}], tmp_path / "drawn.png")


def test_boxes_as_tables(run: Path, tmp_path: Path) -> None:
    draw_scene(tmp_path / "a.png", 101)
    draw_scene(tmp_path / "b.png", 7)
    assert cli("predict", str(run), "a.png", "b.png", "-o", "out.csv").code == 0
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "input,label,confidence,x1,y1,x2,y2"
    assert lines[-1] == "b.png,,,,,,"
    answers = json.loads(cli("predict", str(run), "a.png", "--json").out)
    assert set(answers[0]["answer"][0]) == {"label", "confidence", "box"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.png", "-o", "a.png"], "a.png is one of the inputs and would be overwritten"),
        (["a.png", "-o", "."], "a.png is one of the inputs and would be overwritten; name another place"),
        (["a.png", "b.png", "-o", "c.jpg"], "c.jpg is one picture, and 2 were answered; name a folder, as in -o c/"),
        (["a.png", "-o", "c.gif"], "Boxes cannot be drawn into '.gif'; use .jpg or .png for one picture"),
        (["a.png", "folder/a.png", "-o", "out/"], "Two inputs are called a.png"),
        (["spoilt.png"], "spoilt.png cannot be answered"),
    ],
)
def test_where_boxes_cannot_be_drawn(run: Path, tmp_path: Path, words: list[str], told: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("a.png", "b.png", "folder/a.png"):
        draw_scene(tmp_path / name, 101)
    (tmp_path / "spoilt.png").write_bytes(b"no picture")
    said = cli("predict", str(run), *words)
    assert said.code == 2
    assert told in said.last


def test_the_same_figures_again(run: Path, data: Path) -> None:
    """`evaluate` judges as `fit` did, and other data of any format."""
    again = json.loads(cli("evaluate", str(run), "--json").out)
    assert again["test"]["map"] == fathom.load(run).results["test"]["map"]
    other = json.loads(cli("evaluate", str(run), str(data), "--json").out)
    assert other["rows"] == 60
    assert any("learnt from" in note for note in other["evaluation_notes"])


def test_a_plan_and_a_wrong_metric(data: Path) -> None:
    said = cli("fit", str(data), *QUICK, *SMALL, "--steps", "1", "training.monitor=mpa50")
    assert "There is no metric 'mpa50' in training.monitor. Did you mean 'map50'?" in said.last
    said = cli("fit", str(data), *QUICK, *SMALL, "--steps", "1", "data.image.views=2")
    assert "data.image.views = 2 takes the mean of answers, and boxes have none; leave it out." in said.last


# ---------------------------------------------------------------- going on


def test_a_kill_anywhere_resumes_to_equal_bits(data: Path, tmp_path: Path) -> None:
    """Weights, and losses and figures of every epoch; pictures and boxes are mirrored and moved by seed and step."""
    pytest.importorskip(COCOTOOLS)
    words = (
        "fit", data, "--steps", 12, *SMALL, "augment.flip=0.5", "augment.shift=4", "training.keep=best",
        "training.checkpoint_seconds=0", *QUICK,
    )  # fmt: skip
    whole = Killable(tmp_path, *words, "--name", "whole").said()
    assert whole.code == 0, whole.err
    for at in (2, 7):  # within the first epoch of five steps, and in the second
        cut = Killable(tmp_path, *words, "--name", f"cut-{at}")
        assert cut.until(tmp_path / "runs" / f"cut-{at}" / "checkpoints" / f"step-{at:09d}.safetensors")
        cut.kill()
        said = Killable(tmp_path, "fit", "--resume", f"runs/cut-{at}").said()
        assert said.code == 0, said.err
        assert trained(tmp_path / "runs" / f"cut-{at}") == trained(tmp_path / "runs" / "whole")


def test_a_fit_tells_which_pictures_lose_boxes(data: Path) -> None:
    """Of 80 x 64 pixels a crop to a square leaves out 8 on each side; one that keeps a strip leaves out whole boxes."""
    tree = {"data": {"location": str(data), "image": {"size": [64, 64], "fit_by": "crop"}}, "training": {"steps": 1, "batch": 8}}
    assert not any("left out" in note for note in open_task(str(data), tree).prepared.notes)
    tree["data"]["image"]["size"] = [256, 64]  # type: ignore[index]
    prepared = open_task(str(data), tree).prepared
    item = prepared.schema.targets["boxes"]
    lost = sum(int(remark.split()[0]) for remark in item.remarks.values())
    assert lost + len(prepared.store.columns["boxes"].values) == total(data)  # type: ignore[union-attr]
    (told, *_) = [note for note in prepared.notes if "lying outside the working picture or nearly so" in note]
    assert "rows to look at" in told
    assert f"{item.state['cut']} more in training pictures left out (data.image.fit_by=crop)" in item.describe()


def total(data: Path) -> int:
    """Boxes in all pictures."""
    return len(json.loads((data / "annotations" / "instances.json").read_text())["annotations"])


def test_pictures_beside_boxes_are_decoded_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the working size, into the mapped cache of all pictures; a box that is mended costs no picture."""
    tree = {"data": {"location": str(data)}, "training": {"steps": 1, "batch": 8}}
    first = open_task(str(data), tree).prepared
    assert first.store.columns["image"].dtype == torch.uint8
    monkeypatch.setattr(image, "to_pixels", lambda *given: pytest.fail("a picture was decoded again"))
    again = open_task(str(data), tree).prepared
    assert torch.equal(again.store.columns["image"], first.store.columns["image"])
    assert str(cache_folder() / "encoded") in Path("/proc/self/maps").read_text("utf-8") or not Path("/proc").exists()
    fold = open_task(str(data), {**tree, "data": {"location": str(data), "fold": [1, 3]}}).prepared
    assert len(fold.sets["test"]) == 20
    annotations = data / "annotations" / "instances.json"
    before = annotations.read_text()
    told = json.loads(before)
    told["annotations"][0]["bbox"][2] -= 1
    annotations.write_text(json.dumps(told))
    mended = open_task(str(data), tree).prepared
    annotations.write_text(before)
    assert not torch.equal(mended.store.columns["boxes"].values, first.store.columns["boxes"].values)
    assert mended.fingerprint != first.fingerprint
