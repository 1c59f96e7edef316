"""Pictures: class folders, split folders, idx files, Parquet with encoded pictures.

    photos/cats/1.jpg              a folder a class
    photos/train/cats/1.jpg        train, valid or val or validation, and test, each with a folder a class
    mnist/train-images-idx3-ubyte  idx files, plain or .gz, with their labels beside them
    data.parquet                   encoded pictures beside labels; or train.parquet, test.parquet

Columns are "image" (paths, bytes or an array) and "label". Files without the extension of a picture are
left out and counted; a file with such an extension never is: if it cannot be read, its row is named later.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fathom.core.contract import Columns, Index, Schema
from fathom.core.errors import DataError, count_text, hint, nearest, unknown
from fathom.core.recipe import Data
from fathom.core.registry import source
from fathom.core.tensors import to_list
from fathom.sources.arrays import Arrays
from fathom.sources.base import PARTS, Guessed
from fathom.sources.delimited import open_bytes, shorten, unpacking
from fathom.sources.guess import DEFAULTS, IMAGES, Setting
from fathom.sources.tables import PARQUET, SUFFIXES, Tables, open_parquet, picture_columns, read_parquet, suffix

LABELS = ("label_name", "label", "class", "target", "y", "category")
IDX = re.compile(r"^(?P<part>.*?)[-_.]?(?P<role>images|labels)[-_.]idx\d[-_.]ubyte(\.gz)?$")
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GROUP = "group"
UNBOXED = {  # folders of pictures with boxes -> where those of the format are expected
    "images": "labels/*.txt (YOLO) or annotations/instances.json (COCO)",
    "jpegimages": "Annotations/*.xml (Pascal VOC)",
}
LEFT_BEHIND = ("__MACOSX", "__pycache__")
LAYOUT = "Expected: FOLDER/cats/1.jpg, FOLDER/dogs/2.jpg, or FOLDER/train/cats/1.jpg and FOLDER/test/cats/2.jpg."


@source(
    "images",
    order=20,
    reads="a folder of class folders, train and test folders, idx files, Parquet with pictures",
)
class Images(Guessed):
    """Folders of pictures, idx files, Parquet with pictures."""

    def __init__(self, location: Any, options: Data) -> None:
        super().__init__(str(location), options)
        self.path = Path(location)
        self._label = "label"
        self._image = "image"

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """A folder, a picture (to explain what is needed), idx files, or a Parquet file with encoded
        pictures."""
        if not isinstance(location, str | Path):
            return False
        path = Path(location)
        if path.is_dir() or bool(idx_files(path)):
            return True
        if path.is_file() and suffix(path) in PARQUET:
            return _holds_pictures(path)
        return path.is_file() and path.suffix.lower() in IMAGES

    def _setting(self, columns: Columns) -> Setting:
        """A picture in, a class out, unless the options say otherwise."""
        known = {self._image: "image"} | ({self._label: "category"} if self._label in columns else {})
        return Setting(self.location, known=known, target=[self._label], inputs=[self._image])

    def _guess_options(self, columns: Columns) -> Data:
        """Groups from a file of their own stand in the column of groups."""
        if self.options.group is None or self.options.group in columns:
            return self.options
        return self.options.model_copy(update={"group": GROUP})

    def _read(self) -> Columns:
        return self._with_groups(self._pictures())

    def _pictures(self) -> Columns:
        if pairs := idx_files(self.path):
            return self._idx(pairs)
        if files := parquet_files(self.path):
            return self._parquet(files)
        if self.path.is_file():
            raise DataError(f"{self.path} is one picture; give a folder of them to learn from. {LAYOUT}")
        return self._folders()

    # ------------------------------------------------------------ folders

    def _folders(self) -> Columns:
        children = subfolders(self.path)
        parts = {child: PARTS[child.name.lower()] for child in children if child.name.lower() in PARTS}
        if "train" not in parts.values():
            _require_no_parts(self.path, list(parts), children)
            parts = {}
        _require_layout(self.path, children)
        paths: list[str] = []
        labels: list[str] = []
        skipped: list[str] = []
        classes: dict[str, set[str]] = {}
        splits: dict[str, list[Index]] = {}
        for folder, part in parts.items() or [(self.path, "")]:
            start, names = len(paths), set()
            for label, files in class_files(folder, skipped):
                names.add(label)
                paths += files
                labels += [label] * len(files)
            if part:
                splits.setdefault(part, []).append(np.arange(start, len(paths)))
            classes[folder.name] = names
            _require_classes(folder, names, part in ("", "train"))
            empty = [child.name for child in subfolders(folder) if child.name not in names]
            if empty:
                self.reading_notes.append(f"No class, for want of a picture in the folder: {shorten(empty)} (in {folder}).")
        if parts:
            others = [child.name for child in children if child not in parts]
            if others:
                self.reading_notes.append(f"Left out beside train and test: {shorten(others)}.")
            train = set().union(*(classes[folder.name] for folder, part in parts.items() if part == "train"))
            for folder in parts:
                _require_known(self.path, folder.name, classes[folder.name], train)
        self._splits = {part: np.concatenate(index) for part, index in splits.items() if sum(map(len, index))}
        self._judge_by_validation()
        self.reading_notes += not_pictures([os.path.relpath(name, self.path) for name in skipped])
        return Columns({"image": paths, "label": labels})

    # ------------------------------------------------------------ idx

    def _idx(self, pairs: Mapping[str, tuple[Path, Path]]) -> Columns:
        images, labels = [], []
        start = 0
        for part, (image_file, label_file) in pairs.items():
            image, label = read_idx(image_file), read_idx(label_file)
            if len(image) != len(label):
                raise DataError(
                    f"{image_file} holds {len(image)} pictures, {label_file} {len(label)} labels. They must be as many."
                )
            images.append(image)
            labels.append(label)
            if part:
                self._splits[part] = np.arange(start, start + len(image))
            start += len(image)
        if len({image.shape[1:] for image in images}) > 1:
            raise DataError(
                f"{self.path}: the parts hold pictures of different sizes: {[image.shape[1:] for image in images]}."
            )
        self._judge_by_validation()
        return Columns({"image": np.concatenate(images), "label": np.concatenate(labels).astype(np.int64)})

    # ------------------------------------------------------------ Parquet

    def _parquet(self, files: Sequence[tuple[str, Path]]) -> Columns:
        tables = []
        start = 0
        rows: dict[str, list[Index]] = {}
        for part, path in files:
            table = self._with_names(read_parquet(path, self.options.memory * 2**30 / 4, self.reading_notes), path)
            if part:
                rows.setdefault(part, []).append(np.arange(start, start + table.num_rows))
            start += table.num_rows
            tables.append(table)
        self._splits = {part: np.concatenate(index) for part, index in rows.items()}
        self._judge_by_validation()
        names = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
        columns = {
            name: pa.chunked_array([chunk for table in tables for chunk in table.column(name).chunks]) for name in names
        }
        found = picture_columns(columns)
        if not found:
            raise DataError(f"{self.path} has no column of encoded pictures. It has: {shorten(names)}.")
        self._image = found[0]
        self._label = self._label_of(names)
        if self._image != "image" and "image" not in columns:
            columns = {"image" if name == self._image else name: column for name, column in columns.items()}
            self._image = "image"
        others = [name for name in columns if name not in (self._image, self._label)]
        if others and not self.options.input:
            self.reading_notes.append(
                f"Not used as inputs: {shorten(others)} (data.input={self._image},{others[0]} would)."
            )
        return Columns(columns)

    def _with_names(self, table: pa.Table, path: Path) -> pa.Table:
        """Hugging Face's picture structs as bytes, and class numbers as the names that the file states."""
        names = _class_names(open_parquet(path).schema_arrow.metadata)
        for place, column in enumerate(table.columns):
            name = table.column_names[place]
            if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
                flat = [chunk.field("bytes") for chunk in column.chunks]
                table = table.set_column(place, name, pa.chunked_array(flat))
            elif name in names and pa.types.is_integer(column.type):
                words = pa.array(names[name])
                inside = [chunk.fill_null(-1).to_numpy() for chunk in column.chunks]
                if all(((code >= 0) & (code < len(words))).all() for code in inside):
                    table = table.set_column(
                        place, name, pa.chunked_array([words.take(chunk) for chunk in column.chunks])
                    )
        return table

    def _label_of(self, names: Sequence[str]) -> str:
        if self.options.target:
            for name in self.options.target:
                if name not in names:
                    raise DataError(unknown("column", name, names, f"{self.path} (data.target)"))
            return str(self.options.target[0])
        found = [name for wanted in LABELS for name in names if name.lower() == wanted]
        if not found:
            raise DataError(
                f"{self.path} has no column of labels by its name. Name it with --target: {shorten(list(names))}."
            )
        return found[0]

    # ------------------------------------------------------------ groups

    def _with_groups(self, columns: Columns) -> Columns:
        """The column of groups, from a CSV of file names and groups where data.group names one."""
        given = self.options.group
        if given is None or given in columns:
            return columns
        path = next((p for p in (Path(given), self.path / given) if p.is_file()), None)
        if path is None:
            raise DataError(
                f"data.group = '{given}' is neither a column ({shorten(list(columns))}) nor a CSV file "
                "of file names and groups."
            )
        return self._grouped(columns, path)

    def _grouped(self, columns: Columns, path: Path) -> Columns:
        image = columns[self._image]
        if isinstance(image, np.ndarray) or not pa.types.is_string(image.type):
            raise DataError(
                f"data.group = {path} needs a folder of files; {self.path} holds pictures without file names."
            )
        table = Tables(path, DEFAULTS).raw()
        if len(table) < 2:
            raise DataError(
                f"{path} has {len(table)} column; a column of file names and a column of groups are expected."
            )
        relative = [Path(os.path.relpath(name, self.path)).as_posix() for name in to_list(image)]
        names, groups = _group_columns(table, set(relative), path)
        of = {str(name): str(group) for name, group in zip(names, groups, strict=True) if group is not None}
        absent = [name for name in of if name not in set(relative)]
        if absent:
            self.reading_notes.append(
                f"{len(absent)} files of {path.name} are not in the folder: {shorten(absent, 3)}."
            )
        alone = sum(name not in of for name in relative)
        if alone:
            self.reading_notes.append(f"{count_text(alone, 'file')} not in {path.name}; each is a group of its own.")
        values = [f"group {of[name]}" if name in of else f"file {name}" for name in relative]
        return Columns({**columns, GROUP: values}, columns.rows)

    @classmethod
    def read_rows(cls, inputs: list[Any], schema: Schema) -> Columns:
        """Files and folders of pictures, or arrays, to the picture column of a fitted schema."""
        (name,) = next(iter(schema.inputs.values())).columns
        paths = [isinstance(item, str | Path | os.PathLike) for item in inputs]
        if not any(paths):
            return Arrays.read_rows(inputs, schema)
        if not all(paths):
            raise DataError("Files and arrays came together; give one or the other.")
        return Columns({name: [file for item in inputs for file in picture_files(Path(item))]})


def _require_layout(path: Path, children: Sequence[Path]) -> None:
    """Explain what is missing in a folder that holds no class folders."""
    if children:
        return
    files = [entry for entry in sorted(path.iterdir()) if entry.is_file() and not entry.name.startswith(".")]
    pictures = [entry for entry in files if entry.suffix.lower() in IMAGES]
    tables = [entry.name for entry in files if suffix(entry) in SUFFIXES or entry.suffix == ".npz"]
    if pictures:
        raise DataError(
            f"{path} holds {count_text(len(pictures), 'picture')} ({shorten([entry.name for entry in pictures], 1)}) but no "
            "class folders, so nothing says what "
            f"they show. Put each class into a folder of its own. {LAYOUT}"
        )
    if tables:
        raise DataError(
            f"{path} holds no pictures. It holds tables; name one: {shorten([str(path / name) for name in tables], 4)}."
        )
    what = "is empty" if not files else f"holds no pictures (found: {shorten([entry.name for entry in files], 4)})"
    raise DataError(f"The folder {path} {what}. {LAYOUT}")


def _require_no_parts(path: Path, parts: Sequence[Path], children: Sequence[Path]) -> None:
    """Refuse test and validation folders without a train folder; a class may still be called "test"."""
    if not parts:
        return
    if len(parts) == len(children) or any(subfolders(child) for child in parts):
        names = shorten([child.name for child in parts])
        raise DataError(
            f"{path} has the folder {names} and no train folder, so there is nothing to learn from. Name the folder "
            f"of the training pictures 'train', or rename {parts[0].name} if it is a class. {LAYOUT}"
        )


def _require_classes(folder: Path, names: set[str], learnt: bool) -> None:
    if not names:
        raise DataError(f"The folder {folder} holds no pictures ({', '.join(IMAGES)}) in its folders. {LAYOUT}")
    if learnt and len(names) == 1:
        only = next(iter(names))
        inner = [child.name for child in subfolders(folder / only) if any(True for _ in _pictures(child, []))]
        hint = (
            f" {folder / only} has folders of its own ({shorten(inner, 4)}): is that the one?" if len(inner) > 1 else ""
        )
        if only.lower() in UNBOXED:
            hint = f" To find things in the pictures, put the boxes beside '{only}': {UNBOXED[only.lower()]}."
        raise DataError(
            f"The folder {folder} has one class folder only, '{only}', so there is nothing to tell "
            f"apart.{hint} {LAYOUT}"
        )


def _require_known(path: Path, part: str, names: set[str], train: set[str]) -> None:
    new = sorted(names - train)
    if new:
        raise DataError(
            f"{path / part} has the class '{new[0]}', which the train folder has not"
            f"{hint(new[0], train)}. Train has: {shorten(sorted(train))}."
        )


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, sorted by name, less those that systems leave behind."""
    return sorted(
        entry
        for entry in path.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in LEFT_BEHIND
    )


def class_files(folder: Path, skipped: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Class and sorted picture files of each class folder; other files are added to `skipped`."""
    skipped += [
        str(entry)
        for entry in sorted(folder.iterdir())
        if entry.is_file() and not entry.name.startswith(".") and entry.suffix.lower() not in IMAGES
    ]
    loose = sorted(
        e.name for e in folder.iterdir() if e.is_file() and not e.name.startswith(".") and e.suffix.lower() in IMAGES
    )
    children = subfolders(folder)
    if loose and children:
        raise DataError(
            f"{folder} holds {count_text(len(loose), 'picture')} beside its class folders ({shorten(loose, 3)}), and "
            "nothing says what they "
            "show. Move each into the folder of its class, or out."
        )
    for child in children:
        files = sorted(_pictures(child, skipped))
        if files:
            yield child.name, files


def _pictures(folder: Path, skipped: list[str]) -> Iterator[str]:
    """Picture files of a folder and of the folders in it; hidden files are the system's."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in IMAGES:
                yield os.path.join(root, name)
            else:
                skipped.append(os.path.join(root, name))


def picture_files(path: Path) -> list[str]:
    """One picture, or all of a folder, sorted.

    Raises:
        DataError: nothing is there, or a folder holds no picture.
    """
    if path.is_dir():
        files = sorted(_pictures(path, []))
        if not files:
            raise DataError(f"The folder {path} holds no pictures ({', '.join(IMAGES)}).")
        return files
    require_file(path)
    return [str(path)]


def other_files(path: Path) -> list[str]:
    """A sentence about the files of a folder whose names are not those of pictures; none where there are none."""
    skipped: list[str] = []
    for _ in _pictures(path, skipped):
        pass
    return not_pictures(skipped)


def not_pictures(skipped: Sequence[str]) -> list[str]:
    """A sentence about files that were left out by their names; none where there are none."""
    if not skipped:
        return []
    kinds = sorted({Path(name).suffix.lower() or Path(name).name for name in skipped})
    return [
        f"{count_text(len(skipped), 'file')} left out, with the extension of no picture ({shorten(kinds)}): "
        f"{shorten(sorted(skipped), 5)}."
    ]


def require_file(path: Path) -> None:
    """Name the nearest sibling of a path that is not there."""
    if path.exists():
        return
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    guess_ = nearest(path.name, siblings)
    hint = f" Did you mean {path.parent / guess_}?" if guess_ else ""
    where = "" if path.parent.is_dir() else f" The folder {path.parent} does not exist either."
    raise DataError(f"{path} does not exist.{hint}{where}")


def _group_columns(table: Columns, files: set[str], path: Path) -> tuple[list[Any], list[Any]]:
    """The column whose words are file names, and the one that says groups."""
    scores = {name: sum(str(value) in files for value in to_list(column)) for name, column in table.items()}
    best = max(scores, key=lambda name: scores[name])
    if not scores[best]:
        raise DataError(
            f"No column of {path} holds names of files relative to the folder, as in 'cats/1.jpg'. It "
            f"has: {shorten(list(table))}."
        )
    others = [name for name in table if name != best]
    group = next((name for name in others if "group" in name.lower()), others[0])
    return to_list(table[best]), to_list(table[group])


# ---------------------------------------------------------------- files


def idx_files(path: Path) -> dict[str, tuple[Path, Path]]:
    """Part -> files of pictures and labels, from a folder, one of the files, or their common beginning."""
    folder, beginning = (path, "") if path.is_dir() else (path.parent, path.name)
    if not folder.is_dir() or (not path.is_dir() and not beginning):
        return {}
    match = IDX.match(beginning)
    beginning = match["part"] if match else beginning
    found: dict[str, dict[str, Path]] = {}
    for entry in sorted(folder.iterdir()):
        named = IDX.match(entry.name)
        if named and entry.name.startswith(beginning):
            found.setdefault(named["part"], {}).setdefault(named["role"], entry)
    for part, roles in found.items():
        if len(roles) < 2:
            (role,) = roles
            lacking = "labels" if role == "images" else "images"
            raise DataError(
                f"{roles[role]} has no file of {lacking} beside it. Expected: "
                f"{part}-{lacking}-idx*-ubyte or the same with .gz."
            )
    pairs = {_idx_part(part): (roles["images"], roles["labels"]) for part, roles in found.items()}
    if len(pairs) < len(found):
        raise DataError(f"{path} holds several sets of idx files: {shorten(sorted(found))}. Name one by its beginning.")
    order = ("train", "validation", "test", "")
    return {part: pairs[part] for part in order if part in pairs}


def _idx_part(name: str) -> str:
    words = re.split(r"[-_.]", name.lower())
    if "t10k" in words:
        return "test"
    return next((PARTS[word] for word in reversed(words) if word in PARTS), "")


def read_idx(path: Path) -> np.ndarray:
    """An array from LeCun's idx format: two zero bytes, type, dimensions, sizes, values, all big-endian.

    Raises:
        DataError: the file is no idx file, or holds fewer or more values than its header says.
    """
    with unpacking(path), open_bytes(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or head[3] == 0:
            raise DataError(
                f"{path} is no idx file: it begins with {head.hex(' ') or 'nothing'}, and 00 00 TYPE "
                "DIMENSIONS is expected."
            )
        kind, dimensions = np.dtype(IDX_TYPES[head[2]]), head[3]
        sizes = file.read(4 * dimensions)
        if len(sizes) < 4 * dimensions:
            raise DataError(f"{path} ends within its header; {dimensions} sizes are expected. Copy or fetch it again.")
        shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
        expected = kind.itemsize
        for size in shape:
            expected *= size
        data = _read_exactly(file, expected)
        rest = file.read(1)
    if len(data) != expected or rest:
        came = f"{len(data)}" if len(data) != expected else f"more than {expected}"
        raise DataError(
            f"{path} holds {came} bytes of values; its header says {expected} for {shape}. Copy or fetch it again."
        )
    return np.frombuffer(data, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)


def _read_exactly(file: Any, size: int, step: int = 1 << 24) -> bytearray:
    """Up to `size` bytes; memory follows what is there and not what a header claims."""
    data = bytearray()
    while len(data) < size and (part := file.read(min(step, size - len(data)))):
        data += part
    return data


def parquet_files(path: Path) -> list[tuple[str, Path]]:
    """(part, file) of a Parquet file, or of a folder with train.parquet and others (also in shards,
    train-00000-of-2.parquet)."""
    if path.is_file():
        return [("", path)] if suffix(path) in PARQUET else []
    found = []
    for folder in (path, path / "data"):
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        for entry in entries:
            part = PARTS.get(re.split(r"[-_.]", entry.name.lower())[0])
            if part and entry.suffix.lower() in PARQUET and entry.is_file():
                found.append((part, entry))
    if not any(part == "train" for part, _ in found):
        return []
    return sorted(found, key=lambda pair: ("train", "validation", "test").index(pair[0]))


def _holds_pictures(path: Path) -> bool:
    """Whether a Parquet file has a column of encoded pictures; looks at its first rows."""
    try:
        file = open_parquet(path)
        kinds = {item.name: item.type for item in file.schema_arrow}
        held = [
            n for n, k in kinds.items() if pa.types.is_binary(k) or pa.types.is_large_binary(k) or pa.types.is_struct(k)
        ]
        if not held or file.metadata.num_rows == 0:
            return False
        table = pa.Table.from_batches([next(file.iter_batches(4, columns=held))])
    except (pa.ArrowInvalid, OSError, DataError):
        return False  # `tables` says what is wrong with it
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_struct(column.type):
            if column.type.get_field_index("bytes") < 0:
                continue
            column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
        columns[name] = column
    return bool(picture_columns(columns))


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> class names, from what Hugging Face's datasets writes into a file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(word) for word in item["names"]]
            for name, item in features.items()
            if isinstance(item, dict) and "names" in item
        }
    except (KeyError, ValueError, TypeError):
        return {}
