"""Pictures with boxes: Pascal VOC, COCO and YOLO folders (`annotations` reads each).

Columns are "image" (paths) and "boxes" (a scene a row, see `fields/boxes.py`), and "video" where every name says from which
video and moment its picture is (`ride_001_t1054.jpg`): with --group video no video is in two parts.

What is wrong with a box or an annotation is a fault of its row: nothing is swapped, cut or left out in silence. One thing
is mended and told: a box that leaves its picture by less than a pixel, as rounding makes them, is cut at the edge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fathom.core.contract import Columns, Schema
from fathom.core.device import cores
from fathom.core.errors import DataError, count_text
from fathom.core.prepare import codes
from fathom.core.recipe import Data
from fathom.core.registry import fields, source
from fathom.core.tensors import to_list
from fathom.fields.boxes import SIDES, bad_box, boxes_type
from fathom.fields.image import UnreadableError, opened
from fathom.sources.annotations import Picture, counted, reader
from fathom.sources.base import Guessed
from fathom.sources.guess import Setting, make_inputs, special_columns

VIDEO = re.compile(r"(?P<video>.+)_t\d+$")
LONGEST = 640  # pixels of the longer side at which pictures are read, unless the user says otherwise
STEP = 8  # sides are multiples of it, so that a map of stride 4 covers the picture evenly
SMALLEST = 64
ORIENTATION = 274  # the EXIF tag
TURNED = (5, 6, 7, 8)  # its values where width and height are exchanged


@source("scenes", order=12, reads="pictures with boxes: Pascal VOC (XML), COCO (JSON) or YOLO (text) folders")
class Scenes(Guessed):
    """Pictures with boxes, of Pascal VOC, COCO or YOLO."""

    def __init__(self, location: Any, options: Data) -> None:
        super().__init__(str(location), options)
        self.path = Path(location)

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """A folder with annotations of one of the formats."""
        return isinstance(location, str | Path) and reader(Path(location)) is not None

    def _setting(self, columns: Columns) -> Setting:
        """A picture in, boxes out."""
        return Setting(self.location, known={"image": "image", "boxes": "boxes"}, target=["boxes"], inputs=["image"])

    def schema(self) -> Schema:
        """A picture in, boxes out; nothing is guessed.

        Raises:
            DataError: the options name other targets or inputs, or kinds.
        """
        columns = self.columns()
        if self._schema is None:
            for key, given, only in (("target", self.options.target, "boxes"), ("input", self.options.input, "image")):
                if given not in (None, [only]):
                    raise DataError(
                        f"{self.location} has pictures with boxes: data.{key} can be '{only}' alone; leave it out."
                    )
            special = special_columns(columns, self.options, self.location)
            inputs = make_inputs({"image": "image"}, self._at_their_size(columns), self.location)
            boxes = fields["boxes"].make(["boxes"], **self.options.fields.get("boxes", {}))
            boxes.beside(inputs)
            self._schema = Schema(inputs, {"boxes": boxes}, special, ("image",))
        return self._schema

    def _at_their_size(self, columns: Columns) -> Data:
        """The options, with a working size near the pictures' own where none is asked for: what is small must stay visible."""
        given = self.options.fields.get("image", {})
        if given.get("size") is not None:
            return self.options
        sizes = [(scene["height"], scene["width"]) for scene in to_list(columns["boxes"]) if scene["width"]]
        height, width = np.median(sizes, 0) if sizes else (LONGEST, LONGEST)
        scale = min(1.0, LONGEST / max(height, width))
        sides = [max(SMALLEST, round(side * scale / STEP) * STEP) for side in (height, width)]
        self.reading_notes.append(
            f"Pictures are read at {sides[0]} x {sides[1]} (data.image.size=[{sides[0]}, {sides[1]}])."
        )
        return self.options.model_copy(
            update={"fields": {**self.options.fields, "image": {**given, "size": tuple(sides)}}}
        )

    def _read(self) -> Columns:
        read = reader(self.path)
        assert read is not None, "it was accepted"
        found = read(self.path)
        self.reading_notes += found.notes
        if not found.pictures:
            raise DataError(f"{self.location} has annotations that name no picture, so there is nothing to learn from.")
        if not any(picture.boxes for picture in found.pictures):
            raise DataError(f"{self.location} has no box in any of its annotations, so there is nothing to learn.")
        scenes = self._scenes(found.pictures)
        columns = {"image": [str(picture.path) for picture in found.pictures], "boxes": pa.array(scenes, boxes_type())}
        columns |= _videos(found.pictures)
        self._name_parts(found.pictures)
        made = Columns(columns)
        self._keep_groups(made)
        return made

    def _scenes(self, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        """A scene a picture, boxes in pixels."""
        with ThreadPoolExecutor(cores()) as pool:
            sizes = list(pool.map(upright_size, [picture.path for picture in pictures]))
        cut = [0]
        scenes = [_scene(picture, size, cut) for picture, size in zip(pictures, sizes, strict=True)]
        if cut[0]:
            stand = counted(cut[0], "box leaves its picture", "boxes leave their picture")
            self.reading_notes.append(f"{stand} by less than a pixel, as rounding makes it: cut at the edge.")
        empty = sum(not scene["objects"] and not scene["fault"] for scene in scenes)
        if empty:
            stand = counted(empty, "picture has", "pictures have")
            self.reading_notes.append(f"{stand} no box; nothing is to be found there.")
        return scenes

    def _name_parts(self, pictures: Sequence[Picture]) -> None:
        parts = np.array([picture.part for picture in pictures])
        self._splits = {
            part: np.flatnonzero(parts == part) for part in ("train", "validation", "test") if (parts == part).any()
        }
        if self._splits and "train" not in self._splits:
            raise DataError(
                f"{self.location} names {' and '.join(self._splits)} pictures and none to train on. Name that part 'train', or "
                "leave the parts out and Fathom divides the pictures."
            )
        if "" in parts and self._splits:
            count = int((parts == "").sum())
            self.reading_notes.append(f"{count_text(count, 'picture')} of no part left out.")
        self._judge_by_validation()

    def _keep_groups(self, columns: Columns) -> None:
        """Set the given parts aside where they part a group that should stay together."""
        group = self.options.group
        if group is None or group not in columns or len(self._splits) < 2:
            return
        code = codes(columns, group)
        assert code is not None, "there is such a column"
        held = [set(code[index].tolist()) for index in self._splits.values()]
        shared = [one & other for i, one in enumerate(held) for other in held[i + 1 :]]
        if any(shared):
            count = len(set().union(*shared))
            self._splits = {}
            self.reading_notes.append(
                f"The given parts hold pictures of the same '{group}' ({count} of {len(set().union(*held))}), so they are set "
                f"aside: Fathom divides anew, and keeps each '{group}' on one side."
            )


def upright_size(path: Any) -> tuple[int, int] | str:
    """(width, height) of a picture as people see it, from the header of a file or its bytes; why it cannot be read."""
    try:
        with opened(path) as header:
            width, height = header.size
            return (height, width) if header.getexif().get(ORIENTATION) in TURNED else (width, height)
    except UnreadableError as error:
        return str(error)


def _scene(picture: Picture, size: tuple[int, int] | str, cut: list[int]) -> dict[str, Any]:
    """A row of the column "boxes"; `cut` counts the boxes that rounding put over the edge."""
    if isinstance(size, str):
        return {"width": None, "height": None, "fault": picture.fault or size, "objects": []}
    fault = picture.fault
    if fault is None and picture.size and picture.size != size:
        stated, found = (f"{width} x {height}" for width, height in (picture.size, size))
        fault = f"its annotation is for a picture of {stated} pixels, but it has {found}; export the annotations for this size"
    scale = size if picture.in_shares else (1, 1)
    boxes = [
        (label, x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1]) for label, x1, y1, x2, y2 in picture.boxes
    ]
    inside = [_rounded(box, size) for box in boxes]
    cut[0] += sum(one != other for one, other in zip(boxes, inside, strict=True) if not any(v != v for v in one[1:]))
    objects = [dict(zip(("label", *SIDES), box, strict=True)) for box in inside]
    made = {"width": size[0], "height": size[1], "fault": fault, "objects": objects}
    bad = None if fault else bad_box(made)
    if bad and picture.written:
        made["fault"] = f"{bad[1]}; see {picture.written[bad[0]]}"  # the field would say the same, but not where it is written
    return made


def _rounded(
    box: tuple[str, float, float, float, float], size: tuple[int, int]
) -> tuple[str, float, float, float, float]:
    """A box with the sides that leave the picture by less than a pixel at its edge."""
    label, x1, y1, x2, y2 = box
    sides = [_to_edge(value, most) for value, most in zip((x1, y1, x2, y2), (*size, *size), strict=True)]
    return (label, *sides)  # type: ignore[return-value]


def _to_edge(value: float, most: int) -> float:
    if -1 < value < 0:
        return 0.0
    return float(most) if most < value < most + 1 else value


def _videos(pictures: Sequence[Picture]) -> dict[str, list[str]]:
    """The column "video", where every name says its video and moment."""
    named = [VIDEO.match(picture.path.stem) for picture in pictures]
    return {"video": [match["video"] for match in named if match]} if all(named) else {}
