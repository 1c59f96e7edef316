"""Boxes: what stands where in a picture, each box with a class; the target of object detection.

A column holds a scene a row:

    {"width": 640, "height": 480, "fault": None, "objects": [{"label": "car", "x1": 12.0, "y1": 30.5, "x2": 80.0, "y2": 66.0}]}

Numbers are pixels of the upright picture, counted along its edges: (x1, y1) is the upper left corner, the first pixel
runs from 0 to 1, and a box of all of a picture from 0 to its width. A picture with nothing in it has an empty list.
`fault` is what a source found wrong in the row, for errors. Encoded, a box is (x1, y1, x2, y2, class) with corners in
shares of the working picture, so that nothing depends on its size. A network answers `most` boxes, the surest first:
(x1, y1, x2, y2, confidence, class). Where there is no box, the class is -1.

Where the working picture is a part of the original one (data.image.fit_by=crop), a box is cut at its edge, and one that
keeps less than 30 % of its area is left out, as where an augmentation moves a picture; each row of which a box is left
out says so. Classes are those of all training boxes, whether they are left out or not.

    scene_fault     what is wrong with a scene, or None
    bad_box         which of its boxes cannot be, and why
    transformed     boxes under an affine map, as an augmentation of the picture moves them
    boxes_type      the Arrow type of the column

In comments: N or B rows, M boxes of a row, K classes, D answered boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field as Bounds
from pydantic import PositiveInt
from torch import Tensor

from fathom.core.contract import Columns, Field, Ragged, hyperparameter
from fathom.core.errors import DataError, RowFaults, hint
from fathom.core.registry import fields
from fathom.core.tensors import to_list
from fathom.fields import box_metrics
from fathom.fields.image import placed

if TYPE_CHECKING:
    import pyarrow as pa

Share = Annotated[float, Bounds(ge=0, le=1)]
Scene = Mapping[str, Any]
Corners = tuple[float, float, float, float]

SIDES = ("x1", "y1", "x2", "y2")
NONE = -1.0  # the class where there is no box
KEPT = 0.3  # a box that keeps less of its area when a picture is moved is gone
DIGITS = 6


def boxes_type() -> pa.DataType:
    """The Arrow type of a column of scenes."""
    import pyarrow as pa

    item = pa.struct([("label", pa.string()), *((side, pa.float64()) for side in SIDES)])
    return pa.struct(
        [("width", pa.int32()), ("height", pa.int32()), ("fault", pa.string()), ("objects", pa.list_(item))]
    )


@fields.register("boxes")
class Boxes(Field):
    """Boxes with classes in one picture a row."""

    kind = "boxes"
    headline = "map50"
    confidence: Share = hyperparameter(0.3, help="least confidence of a box that is answered; metrics count all")
    overlap: Share = hyperparameter(
        0.6, help="of two boxes of one class that overlap by more (intersection over union), the surer stays"
    )
    most: PositiveInt = hyperparameter(100, help="boxes a picture that are answered at most")

    picture: Field | None = None  # the image that the boxes stand in, see `beside`

    @property
    def shape(self) -> tuple[int, ...]:
        """One box."""
        return (5,)

    @property
    def outputs(self) -> tuple[int, ...]:
        """(D, 6): corners, confidence, class; what a predictor answers, not what the network's last layer returns."""
        return (self.most, 6)

    def beside(self, inputs: Mapping[str, Field]) -> None:
        """The picture that the boxes stand in."""
        self.picture = next((item for item in inputs.values() if item.kind == "image"), self.picture)

    def fit(self, chunks: Iterable[Columns]) -> None:
        """The classes, the median size of each, and how the picture is laid into its working size."""
        self.state = {"placing": self._placing()}
        first, counts = "", list[int]()
        sizes: dict[str, list[tuple[float, float]]] = {}  # of boxes that are seen
        cut: dict[str, list[tuple[float, float]]] = {}  # of those that are left out
        for chunk in chunks:
            for scene in to_list(chunk[self.columns[0]]):
                fault = scene_fault(scene)
                if fault:
                    first = first or fault
                    continue
                counts.append(len(scene["objects"]))
                for label, whole, seen in self._shares(scene):
                    x1, y1, x2, y2 = seen or whole
                    (sizes if seen else cut).setdefault(label, []).append((x2 - x1, y2 - y1))
        if not sizes:
            raise DataError(self._nothing(first, sum(map(len, cut.values()))))
        self.state["classes"] = sorted({*sizes, *cut})
        measured = [sizes.get(label) or cut[label] for label in self.state["classes"]]
        self.state["sizes"] = [np.median(each, 0).round(DIGITS).tolist() for each in measured]
        self.state["counts"] = [len(sizes.get(label, ())) for label in self.state["classes"]]
        self.state["most"] = max(counts)
        if cut:
            self.state["cut"] = sum(map(len, cut.values()))

    def _nothing(self, first: str, cut: int) -> str:
        """Why no training picture has a box.

        Args:
            first: what is wrong with the first scene that cannot be read, "" where all can.
            cut: boxes that the working picture does not hold.
        """
        if cut:
            return (
                f"All {cut} training boxes lie outside the working picture, or less than {KEPT:.0%} of each lies in it "
                f"({self._fitting()}), so there is nothing to learn. Use data.image.fit_by=pad or stretch."
            )
        return f"No training picture has a box that can be read, so there is nothing to learn{': ' * bool(first)}{first}."

    def _fitting(self) -> str:
        """The setting by which the working picture may be a part of the original one."""
        return f"data.image.fit_by={self.state['placing']['fit_by']}"

    def _placing(self) -> dict[str, Any]:
        """How a picture of any shape becomes the working picture."""
        if self.picture is None:
            return {"shape": [1, 1, 1], "fit_by": "stretch"}
        return {"shape": list(self.picture.shape), "fit_by": self.picture.options["fit_by"]}

    def encode(self, columns: Columns, target: bool = False) -> Ragged:
        """(M, 5) float32 a row: corners in shares of the working picture, and the class. Rows that lose boxes are remarked."""
        places = {label: place for place, label in enumerate(self.state["classes"])}
        rows: list[list[tuple[float, ...]]] = []
        faults: dict[int, str] = {}
        self.remarks = {}
        for row, scene in enumerate(to_list(columns[self.columns[0]])):
            fault = scene_fault(scene, places)
            if fault:
                faults[row] = fault
            found = [] if fault else self._shares(scene)
            rows.append([(*seen, float(places[label])) for label, _, seen in found if seen])
            if lost := len(found) - len(rows[-1]):
                boxes = "1 box is" if lost == 1 else f"{lost} boxes are"
                self.remarks[row] = f"{boxes} left out, for lying outside the working picture or nearly so ({self._fitting()})"
        offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
        values = torch.tensor([box for row in rows for box in row], dtype=torch.float32).reshape(-1, 5)
        # Filling up costs nothing, so that batches need no pictures of as many boxes.
        encoded = Ragged(values, offsets, fill=NONE, even=True)
        if faults and target:
            raise RowFaults(faults, encoded)
        return encoded

    def _shares(self, scene: Scene) -> list[tuple[str, Corners, Corners | None]]:
        """The boxes of a scene in shares of the working picture: label, all of it, and what is seen of it, if enough is."""
        size = (scene["width"], scene["height"])
        scale_x, scale_y, offset_x, offset_y = self._where(size)
        found: list[tuple[str, Corners, Corners | None]] = []
        for item in scene["objects"]:
            x1, x2 = (item[side] / size[0] * scale_x + offset_x for side in ("x1", "x2"))
            y1, y2 = (item[side] / size[1] * scale_y + offset_y for side in ("y1", "y2"))
            found.append((item["label"], (x1, y1, x2, y2), _seen((x1, y1, x2, y2))))
        return found

    def _where(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        placing = self.state["placing"]
        return placed(size, tuple(placing["shape"]), placing["fit_by"])

    def in_pixels(self, box: Sequence[float], size: tuple[int, int]) -> list[float]:
        """A box in shares of the working picture as pixels of the original one.

        Args:
            box: x1, y1, x2, y2.
            size: (width, height) of the upright original picture.
        """
        scale_x, scale_y, offset_x, offset_y = self._where(size)
        scales, offsets, sides = (scale_x, scale_y) * 2, (offset_x, offset_y) * 2, size * 2
        shares = [(value - offset) / scale for value, offset, scale in zip(box, offsets, scales, strict=True)]
        return [round(min(max(share, 0.0), 1.0) * side, 1) for share, side in zip(shares, sides, strict=True)]

    def moved(self, values: Tensor, matrices: Tensor) -> Tensor:
        """The boxes (B, M, 5) of pictures that were resampled through `matrices` (B, 2, 3); see `transformed`."""
        return transformed(values, matrices)

    def decode(self, output: Tensor) -> list[Any]:
        """The boxes (D, 6) a row of at least `confidence`, the surest first, each {"label", "confidence", "box"}.

        A box is x1, y1, x2, y2 in shares of the working picture; `in_pixels` makes pixels of it.
        """
        names = self.state["classes"]
        return [
            {
                "answer": [
                    {
                        "label": names[int(box[5])],
                        "confidence": round(box[4], DIGITS),
                        "box": [round(v, DIGITS) for v in box[:4]],
                    }
                    for box in sorted(row, key=lambda box: -box[4])
                    if box[5] >= 0 and box[4] >= self.confidence
                ]
            }
            for row in output.tolist()
        ]

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """COCO's mean average precision (see `box_metrics`): map, map50, map75, and ap_CLASS of each class."""
        return box_metrics.mean_average_precision(output, target, self.state["classes"], weight)

    def describe(self) -> str:
        """Classes and sizes."""
        if "classes" not in self.state:
            return "boxes in pictures"
        names = [f"{name} ({count})" for name, count in zip(self.state["classes"], self.state["counts"], strict=True)]
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        lost = self.state.get("cut", 0)
        left_out = f"; {lost:,} more in training pictures left out ({self._fitting()})" if lost else ""
        return f"boxes of {shown}, up to {self.state['most']} a picture{left_out}"


def _seen(box: Corners) -> Corners | None:
    """What of a box lies in the picture, in shares; None where it is less than 30 % of its area."""
    x1, y1, x2, y2 = (min(max(side, 0.0), 1.0) for side in box)
    area, whole = (x2 - x1) * (y2 - y1), (box[2] - box[0]) * (box[3] - box[1])
    return (x1, y1, x2, y2) if area > 0 and area >= KEPT * whole else None


def scene_fault(scene: Scene | None, places: Mapping[str, int] | None = None) -> str | None:
    """What is wrong with a scene.

    Args:
        scene: of one row.
        places: the classes that are known; any is good where None.
    """
    if scene is None:
        return "there is no list of boxes (a picture with nothing in it has an empty one)"
    if scene["fault"]:
        return str(scene["fault"])
    found = bad_box(scene, places)
    return found[1] if found else None


def bad_box(scene: Scene, places: Mapping[str, int] | None = None) -> tuple[int, str] | None:
    """The first box of a scene that cannot be, counted from 0, and why; arguments as for `scene_fault`."""
    for place, item in enumerate(scene["objects"]):
        fault = _box_fault([item[side] for side in SIDES], (scene["width"], scene["height"]))
        if fault:
            return place, f"box {place + 1} ('{item['label']}') {fault}"
        if places is not None and item["label"] not in places:
            near = hint(item["label"], places)
            return place, f"box {place + 1} is of the class '{item['label']}', which no training picture has{near}"
    return None


def _box_fault(box: Sequence[float | None], size: tuple[int, int]) -> str | None:
    x1, y1, x2, y2 = (math.nan if value is None else value for value in box)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return f"has a side that is no number ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    for name, low, high, most in (("x", x1, x2, size[0]), ("y", y1, y2, size[1])):
        if high < low:
            return f"ends before it begins: {name} runs from {low:g} to {high:g}"
        if high == low:
            pixel = f"corners are edges, so a box of this one pixel ends at {low + 1:g}"
            return f"has no area: {name} runs from {low:g} to {high:g}; {pixel}"
        if low < 0 or high > most:
            return f"leaves its picture of {size[0]} x {size[1]} pixels: {name} runs from {low:g} to {high:g}"
    return None


def transformed(values: Tensor, matrices: Tensor) -> Tensor:
    """Boxes where an affine map puts them: the upright hull of their corners, cut at the edges of the picture.

    Args:
        values: (B, M, 5) corners in shares and class; -1 where there is no box.
        matrices: (B, 2, 3) maps of the output onto the input in [-1, 1], as `torch.nn.functional.affine_grid` takes them.

    Returns:
        (B, M, 5); a box of which less than 30 % stays in the picture is gone: its class becomes -1.
    """
    (a, b, right), (c, d, down) = (matrices[:, row].to(values).unbind(1) for row in (0, 1))  # (B,) each
    across, along = values[..., [0, 2, 2, 0]] * 2 - 1, values[..., [1, 1, 3, 3]] * 2 - 1  # (B, M, 4)
    x, y = across - right[:, None, None], along - down[:, None, None]
    a, b, c, d = (part[:, None, None] / (a * d - b * c)[:, None, None] for part in (a, b, c, d))
    # Written out, since a matrix product would be one of bfloat16 where training is.
    corners = (torch.stack([d * x - b * y, a * y - c * x], -1) + 1) / 2  # (B, M, 4, 2) from input to output
    low, high = corners.amin(2), corners.amax(2)  # (B, M, 2)
    cut = torch.cat([low.clamp(0, 1), high.clamp(0, 1)], -1)  # (B, M, 4)
    whole, left = (high - low).prod(-1), (cut[..., 2:] - cut[..., :2]).prod(-1)
    stays = (values[..., 4] >= 0) & (left >= KEPT * whole) & (left > 0)
    result = torch.cat([cut, values[..., 4:]], -1)
    return torch.where(stays[..., None], result, torch.full_like(result, NONE))
