"""Pictures with boxes: COCO, Pascal VOC and YOLO folders say the same; every fault is named with its file."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fathom.core.errors import DataError
from fathom.core.prepare import prepare
from fathom.core.recipe import Data
from fathom.core.tensors import to_list
from fathom.sources import open_source
from fathom.sources.annotations import _yaml_names, yaml_folders
from fathom.sources.scenes import Scenes, upright_size

WIDTH, HEIGHT = 80, 64
Box = tuple[str, float, float, float, float]
BOXES: dict[str, list[Box]] = {
    "a": [("cat", 8, 4, 40, 36), ("dog", 0, 0, 80, 64)],
    "b": [("dog", 10.5, 20, 30.5, 60)],
    "c": [],
    "d": [("cat", 16, 16, 32, 48)],
}
MANY = BOXES | {f"more{i}": BOXES["d"] for i in range(8)}
CATS = dict.fromkeys(MANY, BOXES["d"])  # one class, so that any division has it in each part


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed + sum(map(ord, path.stem))).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    Image.fromarray(noise).save(path)
    return path


def voc(folder: Path, boxes: dict[str, list[Box]] = BOXES, parts: dict[str, str] | None = None) -> Path:
    for name, found in boxes.items():
        picture(folder / "JPEGImages" / f"{name}.png")
        write_voc(folder / "Annotations" / f"{name}.xml", found)
    for part, names in (parts or {}).items():
        path = folder / "ImageSets" / "Main" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names.split()))
    return folder


def write_voc(path: Path, boxes: list[Box], extra: str = "", head: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{label}</name>{extra}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for label, x1, y1, x2, y2 in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    path.write_text(f"{head}<annotation>{size}{objects}</annotation>")


def coco_data(boxes: dict[str, list[Box]] = BOXES) -> dict[str, Any]:
    classes = ["cat", "dog"]
    images = [{"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT} for i, name in enumerate(boxes)]
    annotations = [
        {"id": 10 * i + k, "image_id": i, "category_id": classes.index(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, found in enumerate(boxes.values())
        for k, (label, x1, y1, x2, y2) in enumerate(found)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def coco(folder: Path, data: dict[str, Any] | None = None, name: str = "instances_train.json") -> Path:
    for image in (data or coco_data())["images"]:
        picture(folder / "images" / str(image.get("file_name", "a.png")))
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / name).write_text(json.dumps(data or coco_data()))
    return folder


def yolo(folder: Path, boxes: dict[str, list[Box]] = BOXES, part: str = "", names: str = "names: [cat, dog]\n") -> Path:
    for name, found in boxes.items():
        picture(folder / part / "images" / f"{name}.png")
        lines = []
        for label, x1, y1, x2, y2 in found:
            middle = f"{(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT}"
            lines.append(f"{['cat', 'dog'].index(label)} {middle} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}")
        path = folder / part / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    (folder / "data.yaml").write_text(names)
    return folder


def scenes(folder: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], Scenes]:
    source = open_source(str(folder), Data(**options))
    assert isinstance(source, Scenes)
    columns = source.columns()
    names = [Path(path).stem for path in to_list(columns["image"])]
    return dict(zip(names, to_list(columns["boxes"]), strict=True)), source


def boxes_of(scene: dict[str, Any]) -> list[Box]:
    return [(item["label"], *(round(item[side], 6) for side in ("x1", "y1", "x2", "y2"))) for item in scene["objects"]]


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("write", [voc, coco, yolo])
def test_every_format_says_the_same(tmp_path: Path, write: Any) -> None:
    found, source = scenes(write(tmp_path))
    assert {name: boxes_of(scene) for name, scene in found.items()} == BOXES
    assert all((scene["width"], scene["height"], scene["fault"]) == (WIDTH, HEIGHT, None) for scene in found.values())
    assert any("1 picture has no box" in note for note in source.notes())
    schema = source.schema()
    assert [item.kind for item in schema.fields().values()] == ["image", "boxes"]
    assert schema.inputs["image"].size == (HEIGHT, WIDTH)
    assert any("read at 64 x 80 (data.image.size=[64, 80])" in note for note in source.notes())


@pytest.mark.parametrize(
    "names",
    ["names: [cat, dog]", "names: ['cat', \"dog\"]  # two", "nc: 2\nnames:\n  - cat\n  - dog\npath: x",
     "names:\n  0: cat\n  1: dog\n", "names: {0: cat, 1: dog}", "names: [\n  cat,\n  dog\n]"],
)  # fmt: skip
def test_names_of_yolo_classes(tmp_path: Path, names: str) -> None:
    found, _ = scenes(yolo(tmp_path, names=names))
    assert {name: boxes_of(scene) for name, scene in found.items()} == BOXES


@given(
    st.lists(
        st.text(st.characters(codec="ascii", exclude_characters="'\"\n\r#,:[]{}\\", min_codepoint=32), min_size=1),
        min_size=1,
    )
)
def test_names_of_classes_are_read_back(names: list[str]) -> None:
    kept = [name.strip() or "x" for name in names]
    assert list(_yaml_names("names: [" + ", ".join(f"'{name}'" for name in kept) + "]")) == kept
    assert list(_yaml_names("names:\n" + "".join(f"  - '{name}'\n" for name in kept) + "train: x")) == kept


def test_parts_that_the_data_name(tmp_path: Path) -> None:
    halves = {"train": {k: BOXES[k] for k in "ab"}, "valid": {"c": BOXES["c"]}, "test": {"d": BOXES["d"]}}
    for part, boxes in halves.items():
        yolo(tmp_path / "yolo", boxes, part)
    _, source = scenes(tmp_path / "yolo")
    assert {part: len(index) for part, index in source.given_splits().items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    _, source = scenes(voc(tmp_path / "voc", parts={"train": "a b", "val": "c d", "cat_train": "a 1"}))
    assert {part: index.tolist() for part, index in source.given_splits().items()} == {"train": [0, 1], "test": [2, 3]}
    assert "There is no test part" in " ".join(source.notes())
    coco(tmp_path / "coco", coco_data({k: BOXES[k] for k in "ab"}), "instances_train2017.json")
    coco(tmp_path / "coco", coco_data({k: BOXES[k] for k in "cd"}), "instances_val2017.json")
    _, source = scenes(tmp_path / "coco")
    assert {part: len(index) for part, index in source.given_splits().items()} == {"train": 2, "test": 2}


def test_a_picture_turned_by_its_camera_has_the_size_that_people_see(tmp_path: Path) -> None:
    voc(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "JPEGImages" / "a.png", exif=exif)  # stored on its side
    assert (scenes(tmp_path)[0]["a"]["width"], scenes(tmp_path)[0]["a"]["fault"]) == (WIDTH, None)


def test_videos_stay_whole(tmp_path: Path) -> None:
    boxes = {f"ride_{i % 3}_t{i}": [("cat", 1.0, 1.0, 20.0, 20.0)] for i in range(30)}
    part = {"train": " ".join(list(boxes)[:20]), "test": " ".join(list(boxes)[20:])}
    _, source = scenes(voc(tmp_path, boxes, part))
    assert set(to_list(source.columns()["video"])) == {"ride_0", "ride_1", "ride_2"}
    assert set(source.given_splits()) == {"train", "test"}
    source = open_source(str(tmp_path), Data(group="video"))
    assert source.given_splits() == {}
    assert "The given parts hold pictures of the same 'video' (3 of 3), so they are set aside" in " ".join(
        source.notes()
    )
    options = Data(group="video", validation=0.3, test=0.3)
    made = prepare(open_source(str(tmp_path), options), options, 0)
    videos = to_list(made.columns["video"])
    held = [{videos[row] for row in index} for index in made.splits.values()]
    assert sorted(map(len, held)) == [1, 1, 1]
    assert len(set.union(*held)) == 3


# ---------------------------------------------------------------- faults

SHARES: dict[str, Any] = {"validation": 0.3, "test": 0.3}


def faults(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare(open_source(str(folder), Data(**SHARES)), Data(**SHARES), 0)
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (("cat", 10, 10, 90, 20), "box 1 ('cat') leaves its picture of 80 x 64 pixels: x runs from 10 to 90"),
        (("cat", -5, 10, 20, 20), "box 1 ('cat') leaves its picture of 80 x 64 pixels: x runs from -5 to 20"),
        (("cat", 50, 10, 20, 20), "box 1 ('cat') ends before it begins: x runs from 50 to 20"),
        (("cat", 10, 30, 20, 30),
         "box 1 ('cat') has no area: y runs from 30 to 30; corners are edges, so a box of this one pixel ends at 31"),
        (("cat", "left", 30, 20, 40), "box 1 ('cat') has a side that is no number (nan, 30, 20, 40)"),
    ],
)  # fmt: skip
def test_a_box_that_is_none_is_a_fault_of_its_picture(tmp_path: Path, box: Any, words: str) -> None:
    voc(tmp_path, {**BOXES, "z": [box]}, {"train": "a b c", "test": "d z"})
    told = faults(tmp_path)
    assert words in told
    assert str(tmp_path / "JPEGImages" / "z.png") in told
    assert "data.bad_rows=" in told
    options = Data(bad_rows=0.5, **SHARES)
    made = prepare(open_source(str(tmp_path), options), options, 0)
    assert any("1 row is left out" in note and words in note for note in made.notes)


def test_a_box_that_rounding_put_over_the_edge_is_cut_and_told(tmp_path: Path) -> None:
    found, source = scenes(voc(tmp_path, {"a": [("cat", -0.4, 0, 80.9, 64)], "b": BOXES["b"]}))
    assert boxes_of(found["a"]) == [("cat", 0, 0, 80, 64)]
    assert "1 box leaves its picture by less than a pixel, as rounding makes it: cut at the edge." in source.notes()


def test_a_class_that_train_lacks(tmp_path: Path) -> None:
    voc(tmp_path, {**BOXES, "z": [("dogs", 1, 1, 9, 9)]}, {"train": "a b d", "test": "c z"})
    told = faults(tmp_path)
    assert "z.png: box 1 is of the class 'dogs', which no training picture has (nearest: dog)" in told


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "JPEGImages" / "a.png").unlink(),
         "JPEGImages holds no a.jpg, .png or other picture for a.xml"),
        (lambda f: (f / "JPEGImages" / "a.png").write_bytes(b"no picture"), "it is not a picture in JPEG"),
        (lambda f: (f / "Annotations" / "a.xml").write_text("<annotation><object>"), "a.xml is no whole XML file (no el"),
        (lambda f: (f / "Annotations" / "a.xml").write_bytes(b"\xff\xfe\x00"), "a.xml is no whole XML file"),
        (lambda f: (f / "Annotations" / "a.xml").unlink(), "Annotations/a.xml, its annotation, is missing"),
        (lambda f: write_voc(f / "Annotations" / "a.xml", [], head='<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'),
         "a.xml declares a document type (<!DOCTYPE ...>), which is not read; remove it"),
        (lambda f: (f / "Annotations" / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>"),
         "object 1 of a.xml has no bndbox"),
        (lambda f: picture(f / "JPEGImages" / "a.png", (40, 32)),
         "its annotation is for a picture of 80 x 64 pixels, but it has 40 x 32; export the annotations for this size"),
    ],
)  # fmt: skip
def test_pascal_voc_that_is_spoilt(tmp_path: Path, spoil: Any, words: str) -> None:
    voc(tmp_path, parts={"train": "a b d", "test": "c"})
    spoil(tmp_path)
    told = faults(tmp_path)
    assert words in told
    assert "a.png: " in told or "JPEGImages/a: its picture is missing" in told


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    """A billion laughs is refused before it laughs."""
    head = (
        '<!DOCTYPE a [<!ENTITY a0 "ha">'
        + "".join(f'<!ENTITY a{i + 1} "&a{i};&a{i};&a{i};&a{i};">' for i in range(40))
        + "]>"
    )
    voc(tmp_path)
    write_voc(tmp_path / "Annotations" / "a.xml", [("&a40;", 1, 1, 9, 9)], head=head)
    assert "declares a document type" in scenes(tmp_path)[0]["a"]["fault"]


def test_pascal_voc_tells_what_it_leaves_out(tmp_path: Path) -> None:
    voc(tmp_path, parts={"train": "a b", "test": "d"})
    picture(tmp_path / "JPEGImages" / "alone.png")
    write_voc(tmp_path / "Annotations" / "b.xml", BOXES["b"], extra="<difficult>1</difficult>")
    notes = " ".join(scenes(tmp_path)[1].notes())
    assert "1 picture of" in notes
    assert "left out, since there is no XML file of that name: alone.png." in notes
    assert "since no list of ImageSets/Main names them: c.xml." in notes
    assert "1 object marked as difficult counts like the others." in notes
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("a\nd")
    with pytest.raises(DataError, match="names a, which another list of"):
        scenes(tmp_path)


def changed(**changes: Any) -> dict[str, Any]:
    return {**coco_data(MANY), **changes}


def with_annotation(**changes: Any) -> dict[str, Any]:
    data = coco_data(MANY)
    data["annotations"][0].update(changes)
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_annotation(category_id=7), "annotation 0 of instances_train.json has the category_id 7, which the list 'cat"),
        (with_annotation(bbox=[1, 2, 3]), "0 of instances_train.json has no bbox of x, y, width, height, but [1, 2, 3]"),
        (with_annotation(bbox=[30, 10, -10, 10]), "ends before it begins: x runs from 30 to 20"),
        (
            changed(images=coco_data()["images"] + [{"id": 0, "file_name": "a.png"}]),
            "two entries of 'images' have the id 0",
        ),
        (changed(images=[{"id": 0}]), "an entry of 'images' has no id or no file_name"),
        (changed(categories=[{"id": 1}]), "an entry of 'categories' has no id or no name: {'id': 1}"),
        (changed(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]), "'categories' have the id 1"),
        (changed(categories=3), "has no list 'categories', so it is no file of COCO annotations"),
        (changed(annotations=[3]), "'annotations' holds something else than tables"),
        (changed(annotations=[]), "has no box in any of its annotations"),
        (changed(images=[], annotations=[]), "has annotations that name no picture"),
    ],
)
def test_coco_that_is_spoilt(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    assert words in faults(coco(tmp_path, data))


def test_coco_that_is_cut_off(tmp_path: Path) -> None:
    coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_text(path.read_text()[:-40])
    assert f"{path} is no whole JSON file (line 1, column" in faults(tmp_path)


def test_coco_tells_what_it_leaves_out(tmp_path: Path) -> None:
    data = coco_data()
    data["annotations"] += [{"id": 90, "image_id": 99, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    data["annotations"] += [{"id": 91, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 1}]
    coco(tmp_path, data, "instances.json")
    picture(tmp_path / "images" / "alone.png")
    notes = " ".join(scenes(tmp_path)[1].notes())
    assert "1 annotation of instances.json left out, for a picture that its list 'images' lacks: image_id 99." in notes
    assert "1 crowd region of instances.json left out" in notes
    assert "left out, since instances.json does not list them: alone.png." in notes
    coco(tmp_path, data, "instances_extra.json")
    with pytest.raises(
        DataError, match=r"their names do not say which part each is: instances\.json, instances_extra\.json"
    ):
        scenes(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 .5 .5 .1 .1", "line 1 of {} has the class 2, but classes are 0 to 1"),
        ("cat .5 .5 .1 .1", "line 1 of {} has the class cat, but classes are 0 to 1"),
        ("0 .5 .5 .1", "line 1 of {} has 4 numbers, not 5: class, center x, center y, width, height"),
        ("0 .5 .5 .1 nan", "has a side that is no number"),
        ("0 40 20 10 10", "leaves its picture"),
    ],
)
def test_yolo_that_is_spoilt(tmp_path: Path, line: str, words: str) -> None:
    yolo(tmp_path, MANY)
    path = tmp_path / "labels" / "a.txt"
    path.write_text(line)
    assert words.format(path) in faults(tmp_path)


def test_yolo_tells_what_it_takes_for_granted(tmp_path: Path) -> None:
    yolo(tmp_path, MANY)
    (tmp_path / "labels" / "c.txt").unlink()
    (tmp_path / "data.yaml").unlink()
    found, source = scenes(tmp_path)
    notes = " ".join(source.notes())
    assert "1 picture has no file of labels; nothing is to be found there: c.png." in notes
    assert "no data.yaml or classes.txt, so the classes have numbers for names" in notes
    assert boxes_of(found["d"])[0][0] == "0"
    (tmp_path / "labels" / "gone.txt").write_text("0 .5 .5 .2 .2")
    assert "images/gone: its picture is missing: " in faults(tmp_path)
    (tmp_path / "data.yaml").write_text("nc: 2\n")
    with pytest.raises(DataError, match="has no list 'names'"):
        scenes(tmp_path)


def without(folder: Path, gone: str) -> Path:
    shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
    return folder


@pytest.mark.parametrize(
    ("write", "gone", "words"),
    [
        (yolo, "test/labels", "{0}/test/images holds 1 picture of the test part, and {0}/test/labels holds no file of labels"),
        (coco, "annotations/instances_test.json", "{0}/images/test holds 1 picture of the test part, and no annotation is of"),
        (coco, "annotations/instances_test.json", "Add {0}/annotations/instances_test.json for them, or move the pictures out"),
    ],
)
def test_a_part_without_annotations_does_not_vanish(tmp_path: Path, write: Any, gone: str, words: str) -> None:
    if write is yolo:
        yolo(tmp_path, MANY, "train")
        yolo(tmp_path, {"z": BOXES["d"]}, "test")
    else:
        for part, boxes in (("train", MANY), ("test", {"z": BOXES["d"]})):
            coco(tmp_path, coco_data(boxes), f"instances_{part}.json")
            (tmp_path / "images" / part).mkdir()
            for name in boxes:
                (tmp_path / "images" / f"{name}.png").rename(tmp_path / "images" / part / f"{name}.png")
    assert set(scenes(tmp_path)[1].given_splits()) == {"train", "test"}
    assert words.format(tmp_path) in faults(without(tmp_path, gone))


def test_folders_of_parts_beside_what_is_annotated(tmp_path: Path) -> None:
    picture(voc(tmp_path / "voc", MANY) / "test" / "z.png")
    assert f"{tmp_path}/voc/test holds 1 picture of the test part, and no annotation is of" in faults(tmp_path / "voc")
    picture(yolo(tmp_path / "yolo", MANY, "train") / "val" / "z.png")
    assert "Put them into {0}/images, and their labels into {0}/labels".format(f"{tmp_path}/yolo/val") in faults(
        tmp_path / "yolo"
    )
    picture(yolo(tmp_path / "more", CATS) / "images" / "spare" / "z.png")
    assert "images/spare is left out, since" in " ".join(scenes(tmp_path / "more")[1].notes())
    (tmp_path / "more" / "labels" / "extra").mkdir()
    (tmp_path / "more" / "labels" / "extra" / "y.txt").write_text("0 .5 .5 .1 .1")
    assert "images/extra/y: its picture is missing" in faults(tmp_path / "more")


def test_parts_that_are_empty(tmp_path: Path) -> None:
    coco(tmp_path / "coco", coco_data(MANY), "instances_train.json")
    coco(tmp_path / "coco", {**coco_data(MANY), "images": [], "annotations": []}, "instances_val.json")
    assert "instances_val.json lists no picture, so the validation part is empty" in faults(tmp_path / "coco")
    voc(tmp_path / "voc", MANY, {"train": "a b", "test": " "})
    assert "test.txt names no picture. Fill it in, or remove it" in faults(tmp_path / "voc")


PARTS_OF_YAML = [
    "train: images/tr\nval: images/va\n",
    "path: ../elsewhere\ntrain: ../images/tr  # as exports write it\nval: './images/va'\ntest:\n",
    "train:\n  - images/tr\nval: [images/va]\ntest: null\n",
    "train: images\\tr\nvalid: images/va/\n",
]


@pytest.mark.parametrize("text", PARTS_OF_YAML)
def test_parts_that_data_yaml_names(tmp_path: Path, text: str) -> None:
    two_halves(tmp_path, text)
    found, source = scenes(tmp_path)
    rows = list(found)
    assert {part: {rows[row] for row in index} for part, index in source.given_splits().items()} == {
        "train": {"a", "b"},
        "test": {"d"},
    }
    assert boxes_of(found["d"]) == BOXES["d"]


def two_halves(folder: Path, text: str) -> Path:
    """images/tr and images/va, and their labels; `text` in data.yaml beside the names."""
    for part, names in (("tr", "ab"), ("va", "d")):
        yolo(folder / part, {name: BOXES[name] for name in names}, names=text + "names: [cat, dog]\n")
        for kind in ("images", "labels"):
            (folder / kind).mkdir(exist_ok=True)
            (folder / part / kind).rename(folder / kind / part)
    (folder / "va" / "data.yaml").rename(folder / "data.yaml")
    for part in ("tr", "va"):
        shutil.rmtree(folder / part)
    return folder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/nowhere\n", "data.yaml names images/nowhere as its train part, which is no folder in"),
        ("train: /elsewhere/images/tr\n", "data.yaml names /elsewhere/images/tr as its train part, which is no folder in"),
        ("train: train.txt\n", "Write the folder of the pictures as it lies beside data.yaml, as in train: images/train"),
        ("train: images/tr\nval: images/tr\n", "data.yaml names images/tr for two parts, train and validation."),
        ("train: labels/tr\n", "data.yaml names labels/tr as its train part, which holds no picture"),
        ("val: images/va\n", "names validation pictures and none to train on"),
    ],
)
def test_parts_of_data_yaml_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    assert words in faults(two_halves(tmp_path, text))


def test_a_part_of_data_yaml_without_labels(tmp_path: Path) -> None:
    two_halves(tmp_path, PARTS_OF_YAML[0])
    told = faults(without(tmp_path, "labels/va"))
    assert f"{tmp_path}/images/va holds 1 picture of the validation part, and {tmp_path}/labels/va holds no file" in told
    assert f"{tmp_path}/images/tr holds 2 pictures of the train part" in faults(without(tmp_path, "labels"))


@given(st.text(max_size=60))
def test_data_yaml_with_any_text_stays_in_its_folder(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-yaml"
    picture(folder / "images" / "a.png")
    (folder / "data.yaml").write_text(f"train: {text}", "utf-8", newline="")
    try:
        named = yaml_folders(folder)
    except DataError:
        return
    assert all(place.resolve().is_relative_to(folder.resolve()) for place in named)


@pytest.mark.parametrize(("write", "kind"), [(voc, "JPEGImages"), (yolo, "images")])
def test_two_pictures_of_one_annotation(tmp_path: Path, write: Any, kind: str) -> None:
    picture(write(tmp_path, CATS) / kind / "a.jpg")
    told = faults(tmp_path)
    assert told.startswith("2 of 13 rows")
    assert f"{kind}/a.jpg: a.jpg and a.png share the annotation a." in told
    assert f"{kind}/a.png: a.jpg and a.png share" in told


def test_one_picture_of_two_entries(tmp_path: Path) -> None:
    data = coco_data(CATS)
    data["images"][3]["file_name"] = "./c.png"
    told = faults(coco(tmp_path, data))
    assert "c.png: its file is listed 2 times, and each picture has one entry: image 2 of instances_train.json, image 3" in told
    assert told.startswith("2 of 12 rows")


@pytest.mark.parametrize(("write", "kind"), [(voc, "JPEGImages"), (yolo, "images")])
def test_a_picture_under_a_strange_name(tmp_path: Path, write: Any, kind: str) -> None:
    """The file of that name is opened: its content says what it is, as everywhere."""
    write(tmp_path, MANY)
    (tmp_path / kind / "a.png").rename(tmp_path / kind / "a.heic")
    assert boxes_of(scenes(tmp_path)[0]["a"]) == BOXES["a"]
    (tmp_path / kind / "a.heic").write_bytes(b"ftypheic")
    assert f"{kind}/a.heic: it is not a picture in JPEG" in faults(tmp_path)


def test_annotations_in_capitals(tmp_path: Path) -> None:
    voc(tmp_path / "voc")
    (tmp_path / "voc" / "Annotations" / "a.xml").rename(tmp_path / "voc" / "Annotations" / "a.XML")
    yolo(tmp_path / "yolo")
    (tmp_path / "yolo" / "labels" / "a.txt").rename(tmp_path / "yolo" / "labels" / "a.TXT")
    for folder in ("voc", "yolo"):
        assert boxes_of(scenes(tmp_path / folder)[0]["a"]) == BOXES["a"]
    write_voc(tmp_path / "voc" / "Annotations" / "a.xml", [])
    assert scenes(tmp_path / "voc")[0]["a"]["fault"] == "it has several annotations, a.XML and a.xml; keep one"


@pytest.mark.parametrize(
    ("write", "place"),
    [(voc, "object 2 of z.xml"), (coco, "annotation 121 of instances_train.json"), (yolo, "line 2 of z.txt")],
)
def test_where_a_wrong_box_is_written(tmp_path: Path, write: Any, place: str) -> None:
    boxes = {**MANY, "z": [("cat", 1, 1, 9, 9), ("dog", 60, 1, 99, 9)]}
    told = faults(write(tmp_path, coco_data(boxes) if write is coco else boxes))
    assert f"box 2 ('dog') leaves its picture of {WIDTH} x {HEIGHT} pixels: x runs from 60 to 99; see {place}" in told


def test_labels_that_are_no_text_are_a_fault_of_their_row(tmp_path: Path) -> None:
    path = yolo(tmp_path, CATS) / "labels" / "a.txt"
    path.write_bytes(b"\xff\xfe\x00")
    told = faults(tmp_path)
    assert told.startswith("1 of 12 rows")
    assert f"a.png: {path} is not UTF-8 text: byte 0 is 0xff" in told


def test_a_file_of_annotations_given_for_its_folder(tmp_path: Path) -> None:
    voc(tmp_path / "voc"), coco(tmp_path / "coco"), yolo(tmp_path / "yolo")
    for path in ("voc/Annotations/a.xml", "coco/annotations/instances_train.json", "yolo/data.yaml"):
        with pytest.raises(DataError, match=f"give the folder, {tmp_path / Path(path).parts[0]}[.] Known"):
            open_source(str(tmp_path / path), Data())
    (tmp_path / "alone.json").write_text("{}")
    with pytest.raises(DataError, match="give the folder that holds it and the pictures"):
        open_source(str(tmp_path / "alone.json"), Data())


@pytest.mark.parametrize(("kind", "words"), [("images", "labels/*.txt (YOLO)"), ("JPEGImages", "Annotations/*.xml (Pascal")])
def test_a_folder_of_pictures_that_lacks_its_annotations(tmp_path: Path, kind: str, words: str) -> None:
    picture(tmp_path / kind / "a.png")
    told = faults(tmp_path)
    assert f"To find things in the pictures, put the boxes beside '{kind}': {words}" in told


def test_options_that_a_network_settles_reach_the_boxes(tmp_path: Path) -> None:
    """A picture made anew with another size is the one that the boxes stand in."""
    source = open_source(str(voc(tmp_path, CATS)), Data(**SHARES))
    made = prepare(source, Data(**SHARES, fields={"image": {"size": 32, "fit_by": "pad"}}), 0)
    assert made.schema.targets["boxes"].state["placing"] == {"shape": [3, 32, 32], "fit_by": "pad"}


def test_what_is_asked_of_scenes(tmp_path: Path) -> None:
    voc(tmp_path)
    with pytest.raises(DataError, match=r"data.target can be 'boxes' alone; leave it out"):
        open_source(str(tmp_path), Data(target=["label"])).schema()
    assert open_source(str(tmp_path), Data(target=["boxes"], input=["image"])).schema().targets["boxes"].kind == "boxes"
    assert open_source(str(tmp_path), Data(fields={"image": {"size": 96}})).schema().inputs["image"].size == 96
    with pytest.raises(DataError, match="names test pictures and none to train on"):
        scenes(voc(tmp_path / "other", {"a": BOXES["a"]}, {"test": "a"}))


def test_a_folder_of_classes_is_none_of_these(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        picture(tmp_path / name / "a.png")
        picture(tmp_path / name / "b.png")
    assert not Scenes.accepts(str(tmp_path))
    assert not Scenes.accepts(str(tmp_path / "nowhere"))


@given(st.lists(st.tuples(*[st.floats(-20, 100, allow_nan=False)] * 4), max_size=4))
def test_no_box_is_changed_in_silence(boxes: list[tuple[float, ...]]) -> None:
    """Each box is kept as it is, cut by less than a pixel, or its picture is a fault."""
    from fathom.fields.boxes import scene_fault
    from fathom.sources.annotations import Picture
    from fathom.sources.scenes import _scene

    cut = [0]
    made = _scene(Picture(Path("x"), [("a", *box) for box in boxes]), (WIDTH, HEIGHT), cut)
    kept = [tuple(item[side] for side in ("x1", "y1", "x2", "y2")) for item in made["objects"]]
    assert all(
        max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1 for one, other in zip(boxes, kept, strict=True)
    )
    assert cut[0] == sum(one != other for one, other in zip(boxes, kept, strict=True))
    inside = all(0 <= a < c <= WIDTH and 0 <= b < d <= HEIGHT for a, b, c, d in kept)
    assert (scene_fault(made, {"a": 0}) is None) == inside


def spoilt(value: Any, draw: Any) -> Any:
    """A copy of nested data in which one value is another one."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: spoilt(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], spoilt(value[place], draw), *value[place + 1 :]]
    odd = [None, True, -1, 0, 10**12, 1e308, float("nan"), "", "x", [], {}, [1, 2], {"id": 1}, [{}]]
    return draw(st.sampled_from(odd))


@given(st.data())
def test_coco_with_any_value_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances.json").write_text(json.dumps(spoilt(coco_data(), data.draw)))
    read(folder)


@given(st.sampled_from(["", "cut", "swap"]), st.integers(0, 200), st.text(max_size=8))
def test_xml_with_any_text_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, how: str, place: int, text: str
) -> None:
    folder = tmp_path_factory.mktemp("voc")
    (folder / "JPEGImages").mkdir()
    path = folder / "Annotations" / "a.xml"
    write_voc(path, BOXES["a"])
    whole = path.read_text()
    path.write_text(
        whole[:place] + ("" if how == "cut" else text + whole[place + (len(text) if how == "swap" else 0) :]), "utf-8"
    )
    read(folder)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_yolo_with_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("yolo")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text(text, "utf-8")
    read(folder)
    (folder / "data.yaml").write_text("names: " + text, "utf-8")
    read(folder)


def read(folder: Path) -> None:
    """Rows whose faults are told, or one DataError; nothing else is raised."""
    source = open_source(str(folder), Data())
    refused, found = "", []
    try:
        found = to_list(source.columns()["boxes"])
    except DataError as error:
        refused = str(error)
    assert bool(refused) != bool(found)
    assert len(refused.splitlines()) <= 6
    assert all(scene["fault"] for scene in found), "no picture is there"


@pytest.mark.parametrize(
    ("name", "form", "size", "told"),
    [
        ("a.jpg", "TGA", (8, 8), "it is not a picture in JPEG, PNG"),
        ("a.png", "PCX", (8, 8), "it is not a picture in JPEG, PNG"),
        ("a.png", "PNG", (12_000, 10_000), "it has 12000 x 10000 pixels, more than 89 million"),
        ("a.png", "PNG", (20_000, 20_000), "it has more than 89 million pixels"),
    ],
)
def test_a_header_is_read_by_the_rules_of_all_pictures(
    tmp_path: Path, name: str, form: str, size: tuple[int, int], told: str
) -> None:
    """Formats by content and from the list, and the cap on pixels, before anything is decoded or warned of."""
    Image.new("1" if form == "PNG" else "RGB", size).save(tmp_path / name, form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        said = upright_size(tmp_path / name)
    assert isinstance(said, str)
    assert told in said


def test_real_sets(data_folder: Path) -> None:
    """The counts that SOURCE.md states."""
    found, source = scenes(data_folder / "detection-bccd")
    assert {part: len(index) for part, index in source.given_splits().items()} == {
        "train": 205,
        "validation": 87,
        "test": 72,
    }
    labels = [label for scene in found.values() for label, *_ in boxes_of(scene)]
    assert {label: labels.count(label) for label in set(labels)} == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    found, source = scenes(data_folder / "detection-road")
    assert {part: len(index) for part, index in source.given_splits().items()} == {"train": 200, "test": 60}
    assert sum(len(scene["objects"]) for scene in found.values()) == 317
    assert not any(math.isnan(item["x1"]) or scene["fault"] for scene in found.values() for item in scene["objects"])
