"""What is said of detected boxes: baselines that do not look, figures of each class, worst pictures, drawings.

    baselines       the boxes that the training pictures suggest, the same in every picture
    details         average precision, precision and recall of each class
    worst           the pictures with most misses and false boxes
    drawn           a picture with boxes in it

A figure of a network for boxes means little by itself: where things stand at the same place in every picture, boxes drawn
with eyes shut score well. So two such answers stand beside it. Each is a list of boxes with the share of training pictures
in which it would have hit as its confidence, which is the best order that can be known without looking.

In comments: N pictures, M boxes of one, T training boxes of a class, D answered boxes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.core.contract import Field, Schema
from fathom.core.tensors import Batch, TensorSet
from fathom.fields import box_metrics

CLASS_MEANS, FREQUENT = "mean box of each class", "most frequent boxes"
HIT = 0.5  # intersection over union
TRIED = 400  # training boxes of a class that may be the most frequent ones, at even steps through all
COLORS = (  # of classes, in their order; the ones that differ most come first
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#469990", "#9a6324",
    "#ffe119", "#000075", "#fabed4", "#800000", "#aaffc3", "#808000", "#dcbeff", "#ffd8b1", "#a9a9a9", "#004d40",
)  # fmt: skip
LIGHT = 140  # of 255; words on a color that is lighter are black
TRUTH = "#ffffff"

Box = tuple[str, float, float, float, float, float | None]  # label, corners in shares, confidence


def baselines(schema: Schema, train: TensorSet, test: TensorSet) -> dict[str, Batch]:
    """Answers that do not look at the picture.

    Args:
        schema: whose one target is of kind boxes.
        train: encoded training rows.
        test: encoded rows to answer.

    Returns:
        "mean box of each class" and "most frequent boxes" -> target -> (N, D, 6).
    """
    ((name, item),) = schema.targets.items()
    boxes = train.column(name)  # (N, M, 5)
    means, frequent = [], []
    for label in range(len(item.state["classes"])):
        picture, place = (boxes[..., 4] == label).nonzero(as_tuple=True)
        mine = boxes[picture, place, :4].double()  # (T, 4)
        means.append(_surest(mine.mean(0, keepdim=True), mine, picture, len(boxes), label))
        frequent.append(_surest(mine[:: max(1, -(-len(mine) // TRIED))], mine, picture, len(boxes), label))
    answers = {CLASS_MEANS: means, FREQUENT: frequent}
    return {
        called: {name: _everywhere(torch.cat(rows), len(test), item.outputs[0])} for called, rows in answers.items()
    }


def _surest(tried: Tensor, boxes: Tensor, picture: Tensor, pictures: int, label: int) -> Tensor:
    """Boxes (n, 6) out of those tried (n, 4), the most frequent first; each hits what none before it has hit.

    Args:
        tried: candidates.
        boxes: (T, 4) all training boxes of the class.
        picture: (T,) where each is.
        pictures: N.
        label: the class.
    """
    hits = overlaps(tried, boxes) >= HIT  # (n, T)
    free = torch.ones(len(boxes), dtype=torch.bool)
    rows: list[list[float]] = []
    while len(rows) < box_metrics.MOST and bool(free.any()):
        counts = (hits & free).sum(1)
        best = int(counts.argmax())
        if counts[best] == 0:
            break
        hit_in = picture[hits[best] & free].unique()
        rows.append([*tried[best].tolist(), len(hit_in) / pictures, label])
        free &= ~hits[best]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


def _everywhere(rows: Tensor, count: int, most: int) -> Tensor:
    """(N, D, 6) the same boxes in every picture, the surest of all classes first."""
    rows = rows[rows[:, 4].argsort(descending=True, stable=True)][:most]
    padded = torch.zeros(most, 6)
    padded[:, 5] = -1
    padded[: len(rows)] = rows
    return padded.expand(count, -1, -1).contiguous()


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """(n, m) intersection over union of boxes (n, 4) and (m, 4)."""
    low, high = torch.maximum(one[:, None, :2], other[:, :2]), torch.minimum(one[:, None, 2:], other[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-12)


# What the report says


def details(item: Field, output: Tensor, target: Tensor) -> dict[str, Any]:
    """What results.json and the report say of a target of boxes.

    Args:
        item: the fitted field.
        output: (N, D, 6).
        target: (N, M, 5).

    Returns:
        kind, confidence (from which a box is answered) and detected: of each class its name, color, boxes, average precision
        (the mean over overlaps, at 0.5 and at 0.75), and precision and recall of what is answered, at 0.5.
    """
    names, confidence = item.state["classes"], float(item.confidence)  # type: ignore[attr-defined]
    lines, colors = [], colors_of(names)
    answered = _answered(output, confidence)
    judged = zip(names, *(box_metrics.matches(rows, target, len(names)) for rows in (output, answered)), strict=True)
    for name, all_of_it, said in judged:
        precision = box_metrics.average_precision(all_of_it).tolist()
        count, right = int(said.boxes.sum()), int(said.hit[0].sum())
        lines.append(
            {
                "name": name,
                "color": colors[name][0],
                "boxes": count,
                "ap": _known(float(np.mean(precision))),
                "ap50": _known(precision[0]),
                "ap75": _known(precision[5]),
                "answered": len(said.picture),
                "precision": right / len(said.picture) if len(said.picture) else None,
                "recall": right / count if count else None,
            }
        )
    return {"kind": item.kind, "confidence": confidence, "detected": lines}


def _known(value: float) -> float | None:
    """The value, or None for one that is not defined."""
    return value if np.isfinite(value) else None


def _answered(output: Tensor, confidence: float) -> Tensor:
    """The output less the boxes that are not sure enough to be answered."""
    kept = output.clone()
    kept[..., 5] = torch.where(output[..., 4] >= confidence, output[..., 5], -1.0)
    return kept


def worst(item: Field, output: Tensor, target: Tensor, count: int) -> list[tuple[int, dict[str, Any]]]:
    """The pictures with the most boxes that were missed or are false, at an overlap of 0.5.

    Returns:
        row, and {"truth", "answer"} in words, {"confidence": None}.
    """
    names = item.state["classes"]
    answered = _answered(output, float(item.confidence))  # type: ignore[attr-defined]
    wrong = torch.zeros(len(target), dtype=torch.float64)
    for one in box_metrics.matches(answered, target, len(names)):
        hits = torch.bincount(one.picture[one.hit[0]], minlength=len(target))
        wrong += one.boxes + torch.bincount(one.picture, minlength=len(target)) - 2 * hits
    order = wrong.argsort(descending=True, stable=True)[: min(count, int((wrong > 0).sum()))].tolist()
    return [
        (row, {"truth": in_words(target[row], names), "answer": in_words(answered[row], names), "confidence": None})
        for row in order
    ]


def in_words(boxes: Tensor, names: Sequence[str]) -> str:
    """How many boxes of each class there are: "11 RBC, 1 WBC"."""
    counts = Counter(names[int(label)] for label in boxes[:, -1].tolist() if label >= 0)
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing"


# Drawings


def drawn(picture: Any, answer: Sequence[Box], truth: Sequence[Box] = (), classes: Sequence[str] = ()) -> Any:
    """A copy of a picture with boxes: answers in the color of their class with label and confidence, the truth in white.

    Args:
        picture: a Pillow image.
        answer: boxes with corners in shares of the picture.
        truth: boxes that a person drew.
        classes: all that can be answered, in their order, so that each has its own color in every picture; those of the
            answer where none are given.

    Returns:
        A Pillow image in RGB.
    """
    from PIL import ImageDraw, ImageFont

    made = picture.convert("RGB")
    pen, line = ImageDraw.Draw(made), max(1, round(max(made.size) / 320))
    font = ImageFont.load_default(size=max(9, round(max(made.size) / 50)))
    colors = colors_of(list(dict.fromkeys([*classes, *sorted({box[0] for box in answer})])))
    for box in truth:
        pen.rectangle(_corners(box, made.size), outline=TRUTH, width=line)
    for box in sorted(answer, key=lambda box: box[5] or 0.0):  # the surest on top
        color, ink = colors[box[0]]
        x1, y1, x2, y2 = _corners(box, made.size)
        pen.rectangle((x1, y1, x2, y2), outline=color, width=line)
        words = box[0] if box[5] is None else f"{box[0]} {box[5]:.2f}"
        across, up = pen.textbbox((0, 0), words, font=font)[2:]
        place = (min(x1, max(0, made.width - across - 2)), y1 - up - 2 if y1 >= up + 2 else y1)
        pen.rectangle((*place, place[0] + across + 2, place[1] + up + 2), fill=color)
        pen.text((place[0] + 1, place[1]), words, fill=ink, font=font)
    return made


def outlined(picture: Any, answer: Sequence[Box], truth: Sequence[Box], classes: Sequence[str]) -> Any:
    """A copy of a small picture with boxes and no words, which would hide it; a legend beside tells the colors.

    Args:
        picture: a Pillow image.
        answer: boxes with corners in shares of the picture, drawn in the colors of their classes.
        truth: boxes that a person drew, in white within black, so that they show on every ground.
        classes: all that can be answered, in their order.

    Returns:
        A Pillow image in RGB, the colors of the boxes exact.
    """
    from PIL import ImageDraw

    made = picture.convert("RGB")
    pen, colors = ImageDraw.Draw(made), colors_of(classes)
    for box in truth:
        x1, y1, x2, y2 = _corners(box, made.size)
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black")
        pen.rectangle((x1, y1, x2, y2), outline=TRUTH, width=2)
    for box in sorted(answer, key=lambda box: box[5] or 0.0):
        pen.rectangle(_corners(box, made.size), outline=colors[box[0]][0], width=2)
    return made


def colors_of(classes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Class -> its color, and black or white for words on it; the colors come again after twenty classes."""
    from PIL import ImageColor

    found = {}
    for place, name in enumerate(classes):
        color = COLORS[place % len(COLORS)]
        red, green, blue = ImageColor.getrgb(color)[:3]
        found[name] = (color, "black" if 0.299 * red + 0.587 * green + 0.114 * blue > LIGHT else "white")
    return found


def _corners(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The corners in pixels, the last one inside the picture."""
    x1, y1, x2, y2 = (share * side for share, side in zip(box[1:5], size * 2, strict=True))
    x2, y2 = min(x2, size[0] - 1), min(y2, size[1] - 1)
    return min(x1, x2), min(y1, y2), x2, y2


def listed(boxes: Tensor, names: Sequence[str], confidence: float = 0.0) -> list[Box]:
    """Encoded boxes (M, 5), or answered ones (D, 6) of at least `confidence`, as they are drawn."""
    return [
        (names[int(row[-1])], row[0], row[1], row[2], row[3], row[4] if len(row) > 5 else None)
        for row in boxes.tolist()
        if row[-1] >= 0 and (len(row) < 6 or row[4] >= confidence)
    ]
