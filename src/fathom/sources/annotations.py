"""Formats of annotated pictures: each reader turns a folder into `Picture`s, and says what it left out.

    coco    annotations/instances_PART.json, or PART/_annotations.coco.json (Lin et al. 2014)
    voc     Annotations/*.xml, JPEGImages/, ImageSets/Main/PART.txt (Everingham et al. 2010)
    yolo    images/ and labels/*.txt, by part or not, class names in data.yaml or classes.txt (Redmon et al. 2016)

Corners are taken as the files have them, as edges: x runs from 0, left of the first pixel, to the width. COCO and YOLO mean
it so. Pascal VOC's own tools counted pixels from 1 and inclusively, so that (1, 1, 60, 40) was all of a picture of 60 x 40;
LabelImg and Roboflow, which write most of such files now, write edges, and users of torchvision read them so. Of files of
the first kind the left and upper sides are a pixel further in than was meant, and a box of one pixel has no area.

PART is train, val or test, or a word that means one of them; of YOLO data.yaml may name the folder of each. What cannot be
read of one picture is its `fault`; what makes a whole file or a whole part worthless is a DataError.
XML that declares a document type is refused, since such declarations can name other files and grow without bound.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
YAMLS = ("data.yaml", "data.yml", "dataset.yaml")
NAMES = (*YAMLS, "classes.txt", "obj.names", "labels/classes.txt")
ENDINGS = (".json", ".xml", ".yaml", ".yml")  # of files that describe pictures and are no data by themselves
TEXTS = (".json", ".txt", ".xml")  # what annotations are written in: never a picture under a strange name


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
        written: where each box is written, as "line 3 of a.txt".
    """

    path: Path
    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    part: str = ""
    in_shares: bool = False
    fault: str | None = None
    written: list[str] = field(default_factory=list)

    def add(self, box: Box, written: str) -> None:
        """One box, and where it is written."""
        self.boxes.append(box)
        self.written.append(written)


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
    if _files(folder / "Annotations", ".xml"):
        return read_voc
    return read_yolo if is_yolo(folder) else None


def folder_of(path: Path) -> str:
    """What is to be given in place of a file of annotations, in words."""
    place = path.absolute().parent
    deeper = place.name.lower() == "annotations" or path.name.startswith("_annotations")
    found = next((folder for folder in (place, place.parent)[: 1 + deeper] if reader(folder)), None)
    return f"the folder, {found}" if found else "the folder that holds it and the pictures"


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


def _files(folder: Path, *endings: str) -> list[Path]:
    """The files of a folder that end in one of these, in letters of either case, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return [folder / name for name in sorted(names) if name.lower().endswith(endings)]


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none where there is no such folder."""
    return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def _by_stem(paths: Sequence[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.stem, []).append(path)
    return found


def _pictures_of(folder: Path, stems: Iterable[str]) -> dict[str, list[Path]]:
    """Stem of an annotation -> the pictures of that name, or else files of other kinds: their content says what they are."""
    pictures = _by_stem([folder / name for name in picture_names(folder)])
    others = _by_stem([path for path in _files(folder, "") if path.suffix.lower() not in TEXTS])
    return {stem: pictures.get(stem) or others.get(stem, []) for stem in stems}


def _own(stem: str, folder: Path, files: Sequence[Path], annotations: Sequence[Path], part: str) -> list[Picture]:
    """The pictures of one stem; a fault where an annotation has none, or several, or a picture has several."""
    fault = None
    if not files and annotations:
        fault = f"its picture is missing: {folder} holds no {stem}.jpg, .png or other picture for {annotations[0].name}"
    elif len(files) > 1 and annotations:
        names = " and ".join(path.name for path in files)
        fault = f"{names} share the annotation {annotations[0].name}, which can be of one alone; rename or remove the other"
    elif len(annotations) > 1:
        fault = f"it has several annotations, {' and '.join(path.name for path in annotations)}; keep one"
    return [Picture(path, part=part, fault=fault) for path in files or [folder / stem]]


def _require_parts(folder: Path, found: Found, remedy: Callable[[Path, str], str]) -> None:
    """Refuse a folder that is called like a part, holds pictures, and of which no picture is annotated.

    Args:
        folder: of the data.
        found: all pictures that are annotated.
        remedy: what to do about such a folder and its part, the beginning of a sentence.

    Raises:
        DataError: there is one; left out, it would vanish in silence.
    """
    used = {place for picture in found.pictures for place in (picture.path.parent, *picture.path.parent.parents)}
    named = [child for top in _folders(folder) for child in (top, *_folders(top)) if _as_part(child.name)]
    for place in [holder for child in named for holder in (child, child / "images")]:
        names = picture_names(place)
        if names and place not in used:
            part = _as_part(place.name) or _as_part(place.parent.name)
            raise _unlabeled(folder, place, part, "no annotation is of one of them", remedy(place, part))


def _as_part(name: str) -> str:
    """The part that a name is the word of, with a year or without ("val2017"), or ""."""
    return PARTS.get(name.lower().rstrip("0123456789"), "")


def _unlabeled(folder: Path, place: Path, part: str, lacking: str, remedy: str) -> DataError:
    return DataError(
        f"{place} holds {count_text(len(picture_names(place)), 'picture')} of the {part} part, and {lacking}. {remedy}, or move "
        f"the pictures out of {folder}."
    )


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
    listed: dict[Path, list[tuple[str, Picture]]] = {}
    for part, path in files:
        pictures = _read_coco_file(folder, path, part, found)
        if not pictures and len(files) > 1:
            raise DataError(
                f"{path} lists no picture, so the {part} part is empty. Export it again, or remove it with its pictures."
            )
        for number, picture in pictures.items():
            listed.setdefault(picture.path, []).append((f"image {number} of {path.name}", picture))
    for several in (entries for entries in listed.values() if len(entries) > 1):
        places = shorten([place for place, _ in several], 4)
        for _, picture in several:
            picture.fault = f"its file is listed {len(several)} times, and each picture has one entry: {places}"
    beside = files[0][1].name.startswith("_")
    _require_parts(
        folder,
        found,
        lambda place, part: f"Add {place / '_annotations.coco.json' if beside else _coco_name(folder, part)} for them",
    )
    return found


def _coco_name(folder: Path, part: str) -> Path:
    """The usual name of the annotations of a part."""
    return folder / "annotations" / f"instances_{'val' if part == 'validation' else part}.json"


def _read_coco_file(folder: Path, path: Path, part: str, found: Found) -> dict[Any, Picture]:
    """Add the pictures of one file; returns them by their ids."""
    data = _coco_json(path)
    names = _coco_classes(data["categories"], path)
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
            _add_coco(picture, item, names, path.name)
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
    return pictures


def _coco_classes(categories: Sequence[Mapping[str, Any]], path: Path) -> dict[Any, str]:
    """Id -> name of each class."""
    names: dict[Any, str] = {}
    for item in categories:
        number, name = _key(item.get("id")), item.get("name")
        if number is None or not isinstance(name, str | int) or not str(name).strip():
            raise DataError(f"{path}: an entry of 'categories' has no id or no name: {str(item)[:80]}.")
        if number in names:
            raise DataError(f"{path}: two entries of 'categories' have the id {number}; each class needs one of its own.")
        names[number] = str(name)
    return names


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


def _add_coco(picture: Picture, item: Mapping[str, Any], names: Mapping[Any, str], file: str) -> None:
    """One annotation of a file; the first that cannot be read is the picture's fault."""
    name, box = names.get(_key(item.get("category_id"))), item.get("bbox")
    written = f"annotation {item.get('id')} of {file}"
    if name is None:
        picture.fault = picture.fault or (
            f"{written} has the category_id {item.get('category_id')}, which the list 'categories' lacks"
        )
    elif not isinstance(box, list) or len(box) != 4:
        picture.fault = picture.fault or f"{written} has no bbox of x, y, width, height, but {str(box)[:40]}"
    else:
        x, y, width, height = map(_number, box)
        picture.add((name, x, y, x + width, y + height), written)


# ---------------------------------------------------------------- Pascal VOC


def read_voc(folder: Path) -> Found:
    """An XML file a picture; the lists of ImageSets/Main say the parts."""
    pictures = next((folder / name for name in ("JPEGImages", "images", "Images") if (folder / name).is_dir()), None)
    if pictures is None:
        raise DataError(f"{folder} has Annotations but no folder JPEGImages with their pictures.")
    annotated = _by_stem(_files(folder / "Annotations", ".xml"))
    parts = _voc_parts(folder / "ImageSets" / "Main")
    found, hard = Found(), 0
    for name, files in _pictures_of(pictures, parts or annotated).items():
        for picture in _own(name, pictures, files, annotated.get(name, []), parts.get(name, "")):
            if name not in annotated:
                picture.fault = f"{folder / 'Annotations' / name}.xml, its annotation, is missing"
            elif picture.fault is None:
                hard += _read_voc_file(annotated[name][0], picture)
            found.pictures.append(picture)
    known = {*annotated, *parts}
    alone = [name for name in picture_names(pictures) if Path(name).stem not in known]
    if alone:
        found.notes.append(_left_out("picture", pictures, alone, "since there is no XML file of that name"))
    unlisted = [path.name for name, paths in annotated.items() for path in paths if parts and name not in parts]
    if unlisted:
        why = "since no list of ImageSets/Main names them"
        found.notes.append(_left_out("annotation", folder / "Annotations", unlisted, why))
    if hard:
        found.notes.append(
            f"{counted(hard, 'object marked as difficult counts', 'objects marked as difficult count')} like the others."
        )
    _require_parts(
        folder,
        found,
        lambda place, part: f"Put them into {pictures}, an XML file of each into {folder / 'Annotations'}, and their names "
        f"into {folder / 'ImageSets' / 'Main'}/{'val' if part == 'validation' else part}.txt",
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
        if part not in parts.values():
            raise DataError(f"{path} names no picture. Fill it in, or remove it and Fathom cuts this part from the others.")
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
        picture.add((name, x1, y1, x2, y2), f"object {number} of {path.name}")
        hard += (item.findtext("difficult") or "").strip() == "1"
    return hard


# ---------------------------------------------------------------- YOLO


def is_yolo(folder: Path) -> bool:
    """Whether a folder has labels where the layout has them, or a data.yaml with classes and parts."""
    if any(_labels(labels) for labels in yolo_folders(folder).values()):
        return True
    text = next((_text(folder / name) for name in YAMLS if (folder / name).is_file()), "")
    return any(_yaml_names(text)) and any(_yaml_parts(text))


def yolo_folders(folder: Path) -> dict[Path, Path]:
    """Folder of pictures -> of labels: images/ and labels/, images/train and labels/train, or train/images ..."""
    images, labels = folder / "images", folder / "labels"
    inside = sorted({child.name for child in (*_folders(images), *_folders(labels))})
    parts = [child for child in _folders(folder) if child.name.lower() in PARTS]
    return (
        {images / name: labels / name for name in inside}
        | {child / "images": child / "labels" for child in parts}
        | {images: labels}
    )


def _labels(folder: Path) -> list[Path]:
    """The files of labels in a folder."""
    return [path for path in _files(folder, ".txt") if path.name not in NAMES]


def read_yolo(folder: Path) -> Found:
    """A text file a picture: class, center x, center y, width, height in each line, as shares of the picture."""
    names, found = class_names(folder), Found()
    if names is None:
        found.notes.append(f"{folder} has no data.yaml or classes.txt, so the classes have numbers for names.")
    named, places = yaml_folders(folder), yolo_folders(folder)
    for images, labels in {**{images: _labels_beside(folder, images) for images in named}, **places}.items():
        word = images.parent.name if images.name == "images" and images.parent != folder else images.name
        part = named.get(images) or ("" if images == folder / "images" else part_of(word))
        texts, pictures = _by_stem(_labels(labels)), picture_names(images)
        if texts:
            _read_yolo_folder(images, texts, names, part, found)
        elif pictures and part:
            lacking = f"{labels} holds no file of labels for them"
            raise _unlabeled(folder, images, part, lacking, "Add one for each, empty where nothing is to be found")
        elif pictures:
            found.notes.append(_left_out("picture", images, pictures, f"since {labels} holds no file of labels for them"))
    _require_parts(folder, found, lambda place, part: f"Put them into {place}/images, and their labels into {place}/labels")
    return found


def _read_yolo_folder(
    images: Path, texts: Mapping[str, list[Path]], names: list[str] | None, part: str, found: Found
) -> None:
    stems = sorted({*(Path(name).stem for name in picture_names(images)), *texts})
    bare = []
    for name, files in _pictures_of(images, stems).items():
        for picture in _own(name, images, files, texts.get(name, []), part):
            picture.in_shares = True
            if name not in texts:
                bare.append(picture.path.name)
            elif picture.fault is None:
                _read_yolo_file(texts[name][0], names, picture)
            found.pictures.append(picture)
    if bare:
        stand = counted(len(bare), "picture has", "pictures have")
        found.notes.append(f"{images}: {stand} no file of labels; nothing is to be found there: {shorten(bare, 3)}.")


def yaml_folders(folder: Path) -> dict[Path, str]:
    """Folder of pictures -> part, as data.yaml names them; none where it names none.

    Raises:
        DataError: a name is of no folder of pictures inside `folder`, or two parts have one folder.
    """
    path = next((folder / name for name in YAMLS if (folder / name).is_file()), None)
    found: dict[Path, str] = {}
    if path is None:
        return found
    for key, value in _yaml_parts(_text(path)):
        part, place = PARTS[key], _inside(folder, value)
        if place is None:
            raise DataError(
                f"{path} names {value} as its {key} part, which is no folder in {folder}. Write the folder of the pictures as "
                f"it lies beside {path.name}, as in {key}: images/{key}, or remove the line."
            )
        if not picture_names(place):
            place /= "images"
        if not picture_names(place):
            raise DataError(f"{path} names {value} as its {key} part, which holds no picture. Mend or remove the line.")
        if found.setdefault(place, part) != part:
            raise DataError(
                f"{path} names {value} for two parts, {found[place]} and {part}. A picture belongs to one; remove the line "
                f"'{key}: {value}', and Fathom cuts that part from the others."
            )
    return found


def _inside(folder: Path, name: str) -> Path | None:
    """A folder in `folder`, as data.yaml names it; None where there is none.

    Exports write ../train/images for the folder train/images beside data.yaml, so leading steps upward are tried without.
    """
    name = name.replace("\\", "/")
    root = os.path.abspath(folder)
    for way in (name, re.sub(r"^(?:\.\.?/)+", "", name)):
        place = os.path.relpath(os.path.join(root, way), root)
        if not place.startswith("..") and (folder / place).is_dir():
            return folder / place
    return None


def _labels_beside(folder: Path, images: Path) -> Path:
    """Where the labels of a folder of pictures are: under "labels" in place of the last "images", or beside the pictures."""
    words = list(images.relative_to(folder).parts)
    if "images" not in words:
        return images
    words[len(words) - 1 - words[::-1].index("images")] = "labels"
    return folder.joinpath(*words)


def _read_yolo_file(path: Path, names: list[str] | None, picture: Picture) -> None:
    try:
        lines = _text(path).splitlines()
    except (DataError, OSError) as error:
        picture.fault = str(error).rstrip(".")
        return
    for number, line in enumerate(lines, 1):
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
            sides = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            picture.add((label, *sides), f"line {number} of {path.name}")
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


def _yaml_parts(text: str) -> Iterator[tuple[str, str]]:
    """The entries `train`, `val`, `test` ... of a YAML file: word and folder; a list makes several."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        head = re.match(r"(\w+)\s*:(?:\s+(.*))?$", line)
        if not head or head[1] not in PARTS:
            continue
        first = _uncommented(head[2] or "")
        listed = not first or first.startswith("[")
        values = _yaml_list(first, iter(lines[number:])) if listed else [_unquoted(first)]
        yield from ((head[1], value) for value in values if value not in ("", "~", "null"))


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
