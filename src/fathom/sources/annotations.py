"""Formats of annotated pictures: each reader turns a folder into `Picture`s, and says what it left out.

    coco    annotations/instances_PART.json, or PART/_annotations.coco.json (Lin et al. 2014)
    voc     Annotations/*.xml, JPEGImages/, ImageSets/Main/PART.txt (Everingham et al. 2010)
    yolo    images/ and labels/*.txt, by part or not, class names in data.yaml or classes.txt (Redmon et al. 2016)

PART is train, val or test, or a word that means one of them. What cannot be read of one picture is its `fault`; what makes
a whole file worthless is a DataError. XML that declares a document type is refused, since such declarations can name
other files and grow without bound.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fathom.core.errors import DataError, count_text
from fathom.sources.base import PARTS
from fathom.sources.delimited import shorten
from fathom.sources.guess import IMAGES

Box = tuple[str, float, float, float, float]  # label and corners
MOST = 10**6  # pixels of a side
COCO_KEYS = ("images", "annotations", "categories")
NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "labels/classes.txt")


@dataclass
class Picture:
    """One picture and what an annotation file says of it.

    Args:
        path: of the picture file, which may be missing.
        boxes: label, x1, y1, x2, y2 of each, in pixels, or in shares of the picture's sides.
        size: (width, height) that the annotation states; None where it states none.
        part: "train", "validation", "test", or "" where the data name no parts.
        in_shares: whether the boxes are shares.
        fault: why its annotation cannot be read.
    """

    path: Path
    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    part: str = ""
    in_shares: bool = False
    fault: str | None = None


@dataclass
class Found:
    """What a reader made of a folder: its pictures, and sentences about what it left out."""

    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def reader(folder: Path) -> Callable[[Path], Found] | None:
    """The reader of a folder's format; None where it has none of them."""
    if not folder.is_dir():
        return None
    if coco_files(folder):
        return read_coco
    if _has(folder / "Annotations", ".xml"):
        return read_voc
    return read_yolo if yolo_folders(folder) else None


def part_of(name: str) -> str:
    """The part that a name holds as a word ("instances_val2017" is "validation"), or ""."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((PARTS[word] for word in words if word in PARTS), "")


def picture_names(folder: Path) -> list[str]:
    """The picture files of a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.name.lower().endswith(IMAGES))


def _has(folder: Path, ending: str) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(ending) and not entry.name.startswith(".") for entry in entries)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}.") from error


def _number(value: Any) -> float:
    """A finite or infinite number; nan for what is none, so that the fault names its box."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _stated(width: Any, height: Any) -> tuple[int, int] | None:
    """The size that an annotation states; None where it states none."""
    sides = [_number(side) for side in (width, height)]
    return (round(sides[0]), round(sides[1])) if all(0 < side < MOST for side in sides) else None


def _key(value: Any) -> int | str | None:
    """An id that can be looked up; None for what is none."""
    return value if isinstance(value, int | str) else None


def counted(count: int, one: str, many: str) -> str:
    """A number with its noun and verb: "1 picture has", "3 pictures have"."""
    return f"{count:,} {one if count == 1 else many}"


def _left_out(kind: str, folder: Path, names: Sequence[str], why: str) -> str:
    stand = "is" if len(names) == 1 else "are"
    return f"{count_text(len(names), kind)} of {folder} {stand} left out, {why}: {shorten(names, 3)}."


# ---------------------------------------------------------------- COCO


def coco_files(folder: Path) -> list[tuple[str, Path]]:
    """(part, file) of each file of annotations; parts are "" where no name says one."""
    kept = sorted((folder / "annotations").glob("*.json")) if (folder / "annotations").is_dir() else []
    kept = [path for path in kept if path.name.startswith("instances")] or kept
    if not kept:
        beside = [child / "_annotations.coco.json" for child in sorted(folder.iterdir()) if child.is_dir()]
        kept = [path for path in [folder / "_annotations.coco.json", *beside] if path.is_file()]
        return [("" if path.parent == folder else part_of(path.parent.name), path) for path in kept]
    return [(part_of(path.stem.removeprefix("instances")), path) for path in kept]


def read_coco(folder: Path) -> Found:
    """Files of annotations and the pictures that they name."""
    files = coco_files(folder)
    if len(files) > 1 and len({part for part, _ in files} - {""}) < len(files):
        names = shorten([path.name for _, path in files])
        raise DataError(
            f"{folder} holds several files of annotations, and their names do not say which part each is: {names}. Call them "
            "instances_train.json, instances_val.json and instances_test.json, or leave one."
        )
    found = Found()
    for part, path in files:
        _read_coco_file(folder, path, part, found)
    return found


def _read_coco_file(folder: Path, path: Path, part: str, found: Found) -> None:
    data = _coco_json(path)
    names = {_key(item.get("id")): str(item.get("name")) for item in data["categories"]}
    where = _picture_folder(folder, path, part, data["images"])
    pictures: dict[Any, Picture] = {}
    for item in data["images"]:
        number, name = _key(item.get("id")), item.get("file_name")
        if not isinstance(name, str) or number is None:
            raise DataError(f"{path}: an entry of 'images' has no id or no file_name: {str(item)[:80]}.")
        if number in pictures:
            raise DataError(f"{path}: two entries of 'images' have the id {number}; each picture needs one of its own.")
        pictures[number] = Picture(where / name, [], _stated(item.get("width"), item.get("height")), part)
    counts: Counter[str] = Counter()
    lost: list[str] = []
    for item in data["annotations"]:
        picture = pictures.get(_key(item.get("image_id")))
        if picture is None:
            lost.append(str(item.get("image_id")))
        elif item.get("iscrowd"):
            counts["crowd"] += 1
        else:
            _add_coco(picture, item, names)
    found.pictures += pictures.values()
    if lost:
        found.notes.append(
            f"{count_text(len(lost), 'annotation')} of {path.name} left out, for a picture that its list 'images' lacks: "
            f"image_id {shorten(list(dict.fromkeys(lost)), 3)}."
        )
    if counts["crowd"]:
        regions = count_text(counts["crowd"], "crowd region")
        found.notes.append(f"{regions} of {path.name} left out: a crowd is no box of one thing.")
    listed = {picture.path.name for picture in pictures.values()}
    extra = [name for name in picture_names(where) if name not in listed]
    if extra and part_is_alone(folder, where, part):
        found.notes.append(_left_out("picture", where, extra, f"since {path.name} does not list them"))


def part_is_alone(folder: Path, where: Path, part: str) -> bool:
    """Whether a folder of pictures belongs to one file of annotations alone."""
    return not part or part_of(where.name) == part


def _coco_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        data = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path} is no whole JSON file{where}. It may be cut off; copy or export it again.") from error
    lacking = [key for key in COCO_KEYS if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if lacking:
        raise DataError(
            f"{path} has no list '{lacking[0]}', so it is no file of COCO annotations, which have {', '.join(COCO_KEYS)}."
        )
    strange = next((key for key in COCO_KEYS if not all(isinstance(item, dict) for item in data[key])), None)
    if strange:
        raise DataError(f"{path}: '{strange}' holds something else than tables, so it is no file of COCO annotations.")
    return data


def _picture_folder(folder: Path, path: Path, part: str, images: Sequence[Mapping[str, Any]]) -> Path:
    """The folder that holds the first picture of the list; the likeliest where none does."""
    children = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    inside = [child for top in children for child in [*sorted(e for e in top.iterdir() if e.is_dir()), top]]
    mine = [child for child in inside if part and part_of(child.name) == part]
    likely = (
        [path.parent, *mine, folder / "images", folder]
        if path.name.startswith("_")
        else [*mine, folder / "images", folder]
    )
    first = [str(item.get("file_name")) for item in images[:20]]
    return max(likely, key=lambda place: sum((place / name).is_file() for name in first), default=folder)


def _add_coco(picture: Picture, item: Mapping[str, Any], names: Mapping[Any, str]) -> None:
    """One annotation; the first that cannot be read is the picture's fault."""
    name, box = names.get(_key(item.get("category_id"))), item.get("bbox")
    if name is None:
        picture.fault = picture.fault or (
            f"annotation {item.get('id')} has the category_id {item.get('category_id')}, which the list 'categories' lacks"
        )
    elif not isinstance(box, list) or len(box) != 4:
        picture.fault = (
            picture.fault or f"annotation {item.get('id')} has no bbox of x, y, width, height, but {str(box)[:40]}"
        )
    else:
        x, y, width, height = map(_number, box)
        picture.boxes.append((name, x, y, x + width, y + height))


# ---------------------------------------------------------------- Pascal VOC


def read_voc(folder: Path) -> Found:
    """An XML file a picture; the lists of ImageSets/Main say the parts."""
    pictures = next((folder / name for name in ("JPEGImages", "images", "Images") if (folder / name).is_dir()), None)
    if pictures is None:
        raise DataError(f"{folder} has Annotations but no folder JPEGImages with their pictures.")
    annotated = {
        path.stem: path for path in sorted((folder / "Annotations").glob("*.xml")) if not path.name.startswith(".")
    }
    files = {Path(name).stem: pictures / name for name in picture_names(pictures)}
    parts = _voc_parts(folder / "ImageSets" / "Main")
    found, hard = Found(), 0
    for name in parts or annotated:
        picture = Picture(files.get(name, pictures / f"{name}.jpg"), part=parts.get(name, ""))
        if name in annotated:
            hard += _read_voc_file(annotated[name], picture)
        else:
            picture.fault = f"{folder / 'Annotations' / name}.xml, its annotation, is missing"
        found.pictures.append(picture)
    alone = [path.name for name, path in files.items() if name not in annotated and name not in parts]
    if alone:
        found.notes.append(_left_out("picture", pictures, alone, "since there is no XML file of that name"))
    unlisted = [path.name for name, path in annotated.items() if parts and name not in parts]
    if unlisted:
        why = "since no list of ImageSets/Main names them"
        found.notes.append(_left_out("annotation", folder / "Annotations", unlisted, why))
    if hard:
        found.notes.append(
            f"{counted(hard, 'object marked as difficult counts', 'objects marked as difficult count')} like the others."
        )
    return found


def _voc_parts(folder: Path) -> dict[str, str]:
    """Name -> part, from lists such as train.txt; lists of one class (car_train.txt) are of another task."""
    parts: dict[str, str] = {}
    lists = {path: PARTS[path.stem.lower()] for path in sorted(folder.glob("*.txt")) if path.stem.lower() in PARTS}
    for path, part in lists.items():
        for line in _text(path).splitlines():
            name = line.split()[0] if line.split() else ""
            if parts.get(name, part) != part:
                raise DataError(
                    f"{path} names {name}, which another list of {folder} names too. A picture belongs to one part."
                )
            if name:
                parts[name] = part
    return parts


class _Plain(ElementTree.TreeBuilder):
    """A tree of XML without a document type."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Called where a document type is declared, before anything in it is read."""
        raise _DoctypeError(name)


class _DoctypeError(Exception):
    """XML that declares a document type."""


def _read_voc_file(path: Path, picture: Picture) -> int:
    """Fill in size and boxes; how many objects are marked as difficult."""
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_Plain())).getroot()
    except _DoctypeError:
        picture.fault = f"{path} declares a document type (<!DOCTYPE ...>), which is not read; remove it"
        return 0
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        picture.fault = f"{path} is no whole XML file ({error})"
        return 0
    picture.size = _stated(root.findtext("size/width"), root.findtext("size/height"))
    hard = 0
    for number, item in enumerate(root.findall("object"), 1):
        box, name = item.find("bndbox"), (item.findtext("name") or "").strip()
        if box is None or not name:
            picture.fault = picture.fault or f"object {number} of {path.name} has no {'bndbox' if name else 'name'}"
            continue
        x1, y1, x2, y2 = (_number(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
        picture.boxes.append((name, x1, y1, x2, y2))
        hard += (item.findtext("difficult") or "").strip() == "1"
    return hard


# ---------------------------------------------------------------- YOLO


def yolo_folders(folder: Path) -> list[tuple[str, Path, Path]]:
    """(part, folder of pictures, folder of labels): images/ and labels/, images/train and labels/train, or train/images ..."""
    images, labels = folder / "images", folder / "labels"
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    inside = sorted(child for child in images.iterdir() if child.is_dir()) if images.is_dir() else []
    pairs = [(part_of(child.name), child, labels / child.name) for child in inside]
    pairs += [
        (part_of(child.name), child / "images", child / "labels") for child in children if child.name.lower() in PARTS
    ]
    pairs.append(("", images, labels))
    return [pair for pair in pairs if pair[1].is_dir() and _has(pair[2], ".txt")]


def read_yolo(folder: Path) -> Found:
    """A text file a picture: class, center x, center y, width, height in each line, as shares of the picture."""
    names, found = class_names(folder), Found()
    if names is None:
        found.notes.append(f"{folder} has no data.yaml or classes.txt, so the classes have numbers for names.")
    for part, images, labels in yolo_folders(folder):
        files = {Path(name).stem: images / name for name in picture_names(images)}
        texts = {path.stem: path for path in sorted(labels.glob("*.txt")) if path.name not in NAMES}
        for name in sorted({**files, **texts}):
            picture = Picture(files.get(name, images / f"{name}.jpg"), part=part, in_shares=True)
            if name in texts:
                _read_yolo_file(texts[name], names, picture)
            found.pictures.append(picture)
        bare = [path.name for name, path in files.items() if name not in texts]
        if bare:
            stand = counted(len(bare), "picture has", "pictures have")
            found.notes.append(
                f"{images}: {stand} no file of labels; nothing is to be found there: {shorten(bare, 3)}."
            )
    return found


def _read_yolo_file(path: Path, names: list[str] | None, picture: Picture) -> None:
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        label = _yolo_class(words[0], names)
        if len(words) != 5:
            fault = f"has {count_text(len(words), 'number')}, not 5: class, center x, center y, width, height"
        elif label is None:
            known = f"0 to {len(names) - 1}" if names else "whole numbers"
            fault = f"has the class {words[0]}, but classes are {known}"
        else:
            x, y, width, height = map(_number, words[1:])
            picture.boxes.append((label, x - width / 2, y - height / 2, x + width / 2, y + height / 2))
            continue
        picture.fault = picture.fault or f"line {number} of {path} {fault}"


def _yolo_class(word: str, names: list[str] | None) -> str | None:
    if not word.isdecimal() or len(word) > 9:
        return None
    if names is None:
        return str(int(word))
    return names[int(word)] if int(word) < len(names) else None


def class_names(folder: Path) -> list[str] | None:
    """The names of classes 0, 1 ... from data.yaml or a list of words; None where there is no such file."""
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if path is None:
        return None
    if path.suffix not in (".yaml", ".yml"):
        return [line.strip() for line in _text(path).splitlines() if line.strip()]
    names = list(_yaml_names(_text(path)))
    if not names:
        raise DataError(f"{path} has no list 'names', as in: names: [car, bus].")
    return names


def _yaml_names(text: str) -> Iterator[str]:
    """The entry `names` of a YAML file: [a, b], lines "- a", or lines "0: a". No more of YAML is read."""
    lines = iter(text.splitlines())
    for line in lines:
        head = re.match(r"names\s*:\s*(.*)$", line)
        if head:
            yield from _yaml_list(_uncommented(head[1]), lines)
            return


def _yaml_list(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first.startswith(("[", "{")):
        while not first.endswith(("]", "}")) and (line := next(rest, None)) is not None:
            first += " " + _uncommented(line)
        for word in re.findall(r"\"[^\"]*\"|'[^']*'|[^,\[\]{}]+", first):
            if word.strip():
                yield _unquoted(word)
        return
    for line in rest:
        entry = re.match(r"\s*(?:-|\d+\s*:)\s+(.*)$", line)
        if not entry and line.strip() and not line.lstrip().startswith("#"):
            return
        if entry:
            yield _unquoted(_uncommented(entry[1]))


def _uncommented(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).strip()


@cache
def _unquoted(word: str) -> str:
    """A name without its quotes, and without its number where it has one (`{0: car}`)."""
    word = re.sub(r"^\s*\d+\s*:\s*", "", word).strip()
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" else word
