"""Boxes in pictures: for `predict`, in pixels and drawn into copies of the inputs; for the report, beside the truth.

in_pixels(...)      decoded boxes in shares -> in pixels of each original picture
lines(answers)      one flat line a box, for files; `shown` for people
draw(answers, to)   a picture, or a folder of pictures, with the boxes of the answers
draw_here(...)      the same in the current folder under new names, where no place is named
report_picture(...) a small picture with truth and answer, as the text of a data URI
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis import detection
from fathom.core.contract import Field, Schema
from fathom.core.errors import DataError, RunError, count_text
from fathom.core.run import write_atomic
from fathom.core.tensors import Batch, Column, TensorSet, to_list
from fathom.fields.image import MOST_PIXELS, UnreadableError, open_picture
from fathom.sources.guess import IMAGES
from fathom.sources.scenes import upright_size

PICTURES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
SIDE = 320  # pixels of a report's picture
SHADES = 48  # colors of one, which keeps it small
SHOWN = 4  # pictures that are neither the best nor the worst

Answers = Sequence[dict[str, Any]]


def boxes_of(schema: Schema) -> tuple[str, Field] | None:
    """The target that boxes are answered for, and its name; None where there is none."""
    return next(((name, item) for name, item in schema.targets.items() if item.kind == "boxes"), None)


def classes_of(schema: Schema) -> Sequence[str]:
    """The classes of the boxes that are answered, in their order; none where no boxes are."""
    found = boxes_of(schema)
    return found[1].state["classes"] if found else ()


def in_pixels(decoded: Answers, target: Field, pictures: Column) -> list[dict[str, Any]]:
    """The answers with "box" in pixels of the upright original, and its "size" (width, height).

    Args:
        decoded: what `target.decode` made.
        target: the fitted field.
        pictures: the raw column: paths, bytes or arrays.
    """
    made = []
    for answer, value in zip(
        decoded, to_list(pictures) if not isinstance(pictures, np.ndarray) else pictures, strict=True
    ):
        size = _size(value)
        boxes = [{**box, "box": target.in_pixels(box["box"], size)} for box in answer["answer"]]  # type: ignore[attr-defined]
        made.append({"answer": boxes, "size": list(size)})
    return made


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, np.ndarray):
        height, width = value.shape[-2:] if value.ndim == 2 or value.shape[0] in (1, 3) else value.shape[:2]
        return width, height
    size = upright_size(value)
    assert not isinstance(size, str), "it was decoded before"
    return size


def lines(answers: Answers) -> list[dict[str, Any]]:
    """One line a box: input, label, confidence, x1, y1, x2, y2; a picture in which nothing was found has one without."""
    flat = []
    for answer in answers:
        head = {"input": answer["input"]}
        rest = {"note": answer["note"]} if "note" in answer else {}
        flat += [
            {**head, "label": box["label"], "confidence": box["confidence"],
             **dict(zip(("x1", "y1", "x2", "y2"), box["box"], strict=True)), **rest}
            for box in answer["answer"]
        ] or [{**head, "label": "", **rest}]  # fmt: skip
    return flat


def shown(answers: Answers) -> list[dict[str, Any]]:
    """The same lines as people read them: corners in whole pixels in one column."""
    told = []
    for line in lines(answers):
        corners = [str(round(line.pop(side))) for side in ("x1", "y1", "x2", "y2") if side in line]
        told.append(
            {
                **line,
                "label": line["label"] or "nothing found",
                **({"x1 y1 x2 y2": " ".join(corners)} if corners else {}),
            }
        )
    return told


def are_boxes(answers: Answers) -> bool:
    """Whether these are answers of a run that finds boxes."""
    return bool(answers) and "size" in answers[0] and isinstance(answers[0].get("answer"), list)


def is_picture(path: Path) -> bool:
    """Whether answers are to be drawn: into a .jpg or .png, or into a folder."""
    return path.suffix.lower() in PICTURES or path.is_dir() or not path.suffix


def seems_picture(path: Path) -> bool:
    """Whether a user who writes this may mean a picture, of whatever format."""
    return is_picture(path) or path.suffix.lower() in IMAGES


def is_drawn(answers: Answers, path: Path) -> bool:
    """Whether these answers are boxes, and their place is that of pictures."""
    return are_boxes(answers) and is_picture(path)


def draw(answers: Answers, to: Path, classes: Sequence[str] = ()) -> list[Path]:
    """Draw the boxes of each answer into a copy of its picture.

    Args:
        answers: of `predict`; "input" is the file.
        to: a .jpg or .png for one picture, else a folder.
        classes: of the run, each of which has its own color; those of each picture's answer where none are given.

    Returns:
        The files that were written.

    Raises:
        DataError: an input is no file, or a picture would be written over an input or another one.
    """
    places = _places(answers, to)
    for answer, place in zip(answers, places, strict=True):
        source = Path(answer["input"])
        if place.exists() and source.exists() and place.samefile(source):
            raise DataError(f"{place} is one of the inputs and would be overwritten; name another place with -o.")
    for answer, place in zip(answers, places, strict=True):
        write_atomic(place, _drawn(answer, place, classes))
    return places


def _drawn(answer: dict[str, Any], place: Path, classes: Sequence[str]) -> bytes:
    """The file of a picture with the boxes of its answer, of the kind that the name of its place asks for."""
    width, height = answer["size"]
    boxes: list[detection.Box] = []
    for box in answer["answer"]:
        x1, y1, x2, y2 = box["box"]
        boxes.append((box["label"], x1 / width, y1 / height, x2 / width, y2 / height, box["confidence"]))
    made = detection.drawn(_whole(Path(answer["input"])), boxes, classes=classes)
    return _encoded(made, PICTURES[place.suffix.lower()])


def draw_here(answers: Answers, inputs: Sequence[str], classes: Sequence[str] = ()) -> list[str]:
    """Draw the boxes of each answer into a copy of its picture in the current folder.

    Of a picture NAME.jpg the copy is NAME-boxes.jpg; those of the pictures of a folder NAME stand in a folder NAME-boxes.
    Nothing is replaced, since nobody has named the place: where a name is taken by something else, a number is added.

    Args:
        answers: of `predict`; "input" is the file.
        inputs: what they are the answers of: files and folders.
        classes: as for `draw`.

    Returns:
        Sentences about what was written where; none where no input is a file.
    """
    folders = {Path(word): _free(Path(f"{Path(word).resolve().name}-boxes")) for word in inputs if Path(word).is_dir()}
    single: list[Path] = []
    counts = dict.fromkeys(folders.values(), 0)
    for answer in answers:
        source = Path(answer["input"])
        if not source.is_file():
            continue
        folder = next((folder for folder in folders if source.is_relative_to(folder)), None)
        if folder is None:
            name = Path(source.with_stem(f"{source.stem}-boxes").name)
            single.append(_write_new(_as_written(name), answer, classes))
        else:
            _write_new(folders[folder] / _as_written(source.relative_to(folder)), answer, classes)
            counts[folders[folder]] += 1
    told = [f"Boxes drawn into {', '.join(map(str, single[:SHOWN]))}"] if single else []
    told = [line + f" and {len(single) - SHOWN} more" * (len(single) > SHOWN) for line in told]
    return told + [f"Boxes drawn into {count_text(count, 'picture')} in {to}/" for to, count in counts.items() if count]


def _free(path: Path) -> Path:
    """A path at which nothing stands: this one, or with a number."""
    ending = path.suffix if path.suffix.lower() in PICTURES else ""
    stem = path.name.removesuffix(ending)
    names = chain([path], (path.with_name(f"{stem}-{number}{ending}") for number in count(2)))
    return next(name for name in names if not name.exists())


def _write_new(place: Path, answer: dict[str, Any], classes: Sequence[str]) -> Path:
    """Write a drawing at a place or, where something else stands there, at a free one beside; returns where it stands."""
    content = _drawn(answer, place, classes)
    if place.is_file() and place.read_bytes() == content:
        return place  # drawn before
    free = _free(place)
    try:
        write_atomic(free, content)
    except RunError as error:
        raise DataError(
            f"{free} cannot be written ({error.__cause__}); name another place for the boxes with -o."
        ) from error
    return free


def _as_written(path: Path) -> Path:
    """A place for a copy of a picture: as it is called, or with .png added where it can be drawn into no such file."""
    return path if path.suffix.lower() in PICTURES else path.with_name(f"{path.name}.png")


def _places(answers: Answers, to: Path) -> list[Path]:
    """Where each picture is written."""
    missing = [answer["input"] for answer in answers if not Path(answer["input"]).is_file()]
    if missing:
        raise DataError(f"Boxes are drawn into copies of picture files, and {missing[0]} is none; use .csv or .json.")
    if to.suffix.lower() in PICTURES:
        if len(answers) > 1:
            raise DataError(
                f"{to} is one picture, and {len(answers)} were answered; name a folder, as in -o {to.stem}/"
            )
        return [to]
    places = [to / _as_written(Path(Path(answer["input"]).name)) for answer in answers]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise DataError(
            f"Two inputs are called {twice.name}, and one would be written over the other; answer them one by one."
        )
    return places


def _whole(path: Path) -> Any:
    """The upright picture in full size, decoded as the network reads it."""
    try:
        return open_picture(path, detail=MOST_PIXELS)
    except UnreadableError as error:
        raise DataError(f"Boxes cannot be drawn into {path}: {error}.") from error


def _encoded(picture: Any, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 92} if kind == "JPEG" else {"optimize": True}))
    return file.getvalue()


# For the report


def of_rows(outputs: Batch, test: TensorSet, schema: Schema, rows: Sequence[int]) -> list[str]:
    """A picture of each row with truth and answer, as the text of a data URI; "" where no boxes are answered.

    Args:
        outputs: target -> (N, D, 6).
        test: the N rows.
        schema: fitted.
        rows: which of them.
    """
    found = boxes_of(schema)
    if found is None:
        return [""] * len(rows)
    name, item = found
    made = []
    for row in rows:
        batch = test.batch(torch.tensor([row]))
        pixels = batch[next(iter(schema.inputs))][0].numpy()
        made.append(report_picture(pixels, item, outputs[name][row], batch[name][0]))
    return made


def sampled(count: int, shown: Sequence[int]) -> list[int]:
    """A few of `count` rows, at even steps through those that are not shown already."""
    rows = sorted(set(range(count)) - set(shown))
    return rows[:: max(1, len(rows) // SHOWN)][:SHOWN]


def report_picture(pixels: np.ndarray, item: Field, output: Tensor, target: Tensor) -> str:
    """A picture with the true boxes in white and the answered ones in color, as the text of a data URI.

    The photograph is reduced to a few colors before the boxes are drawn, so that a class has its own in every picture.

    Args:
        pixels: (C, H, W) encoded.
        item: the fitted field of the boxes.
        output: (D, 6) of the row.
        target: (M, 5) of the row.
    """
    from PIL import Image as Pillow

    names = item.state["classes"]
    picture = Pillow.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).astype(np.uint8))
    scale = SIDE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    answer = detection.listed(output, names, float(item.confidence))  # type: ignore[attr-defined]
    made = detection.outlined(picture.convert("RGB").quantize(SHADES), answer, detection.listed(target, names), names)
    exact = made.quantize(256)  # more than it has
    return "data:image/png;base64," + base64.b64encode(_encoded(exact, "PNG")).decode()
