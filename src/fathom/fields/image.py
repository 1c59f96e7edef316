"""Images: files, encoded bytes or arrays, held as uint8 at the working size and standardized by a layer.

Every file is opened in the same way: formats from a list, a cap on pixels, EXIF orientation applied, CMYK and palettes
turned into RGB, transparency laid on white, 16 bits scaled to 8, of several pictures in a file the first. That is
remarked, and so are a picture of a side of one pixel and a content that is not what the name ends in. What cannot be
read is a fault of its row, never a black picture. `placed` says where a picture lands in the working
picture; whatever has places in pictures (boxes) goes the same way.

What the numbers of arrays mean is decided once, from the training rows, and kept as the state's `factor`, which turns
them into bytes: 255 where they are shares (multiples of 1/255 up to 1), 1 where they are whole numbers from 0 to 255,
and none where they are neither, which keeps them as they are. A later array is read by the same factor, and what does
not fit it is a fault: one picture alone cannot say whether its 1 is white or nearly black.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, Ragged, hyperparameter
from fathom.core.device import cores
from fathom.core.errors import DataError, RowFaults
from fathom.core.registry import fields
from fathom.core.tensors import Column, to_list
from fathom.fields.binarized import How, binarized

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 89_478_485  # what Pillow takes for a decompression bomb
WORKING_SIZE = 64  # of photos, unless data.image.size says otherwise
SIDES = (8, 4096)  # the least and the greatest side of a working size that is asked for
SMALL = 64  # pictures up to this side, all of one size, are kept as they are
SEVERAL = ("GIF", "WEBP", "PNG", "TIFF")  # animations and scans of many pages; a JPEG's further pictures are previews
ENDINGS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG", ".gif": "GIF",
    ".bmp": "BMP", ".dib": "BMP", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM",
    ".pbm": "PPM", ".pnm": "PPM",
}  # fmt: skip
DETAIL = 1024  # huge JPEG photos are decoded at a half, a quarter or an eighth, but no side smaller than this
SAMPLE = 2_000  # training rows that mean and spread are measured on
PROBED = 64  # training rows that working size and channels are seen from
SLICE = 1 << 24  # values looked at at once
# What Pillow makes of a gray value of 2 or 4 bits, and of a color of 16.
KEY_SCALES: dict[Any, Callable[[int], int]] = {
    "L;2": lambda value: value * 85, "L;4": lambda value: value * 17, "RGB;16B": lambda value: value >> 8,
}  # fmt: skip
# What Pillow's decoders raise on damaged bytes: broken EXIF and TIFF tags end in any of these.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, TypeError, AttributeError, KeyError, IndexError)


def _checked(size: Any) -> Any:
    """Refuse a working size in one sentence; a union would say one for each of its types."""
    given = [size] if isinstance(size, int) else size
    least, most = SIDES
    fits = isinstance(given, list | tuple) and (isinstance(size, int) or len(given) == 2)
    if size is not None and not (fits and all(type(side) is int and least <= side <= most for side in given)):
        raise ValueError(f"one side or [height, width], in whole pixels from {least} to {most}")
    return size


@fields.register("image")
class Image(Field):
    """One picture a row."""

    kind = "image"
    files = True
    size: Annotated[int | tuple[int, int] | None, BeforeValidator(_checked)] = hyperparameter(
        None,
        help="side in pixels, or [height, width]; small pictures of one size keep theirs, others become at most 64",
    )
    channels: Literal[1, 3] | None = hyperparameter(None, help="1 gray or 3 color; seen from the pictures")
    fit_by: Literal["stretch", "crop", "pad"] = hyperparameter(
        "stretch", help="how another shape becomes the working one: distorted, cut at two sides, or with black ones"
    )
    views: Literal[1, 2, 6] = hyperparameter(
        1, help="what an answer is the mean of: 1 the picture, 2 its mirror image too, 6 both also moved by one pixel"
    )

    binarize: How = hyperparameter(
        "none", help="black and white pixels: stochastic by the gray value, once for each picture, or by a threshold"
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.state["shape"])

    def fit(self, chunks: Iterable[Columns]) -> None:
        """Working size and channels, then the mean and spread of each channel."""
        encoded, faults = self._encode(_spaced(self._begun(chunks), SAMPLE))
        good = [row for row in range(len(encoded)) if row not in faults]
        if not good:
            raise DataError(f"No picture of '{self.columns[0]}' can be read.")
        self.measure(binarized(encoded[good], self.binarize))

    def begin(self, chunks: Iterable[Columns]) -> None:
        """What the numbers of arrays mean, working size and channels."""
        self._begun(chunks)

    def _begun(self, chunks: Iterable[Columns]) -> Column:
        """The same; returns rows from all over the column."""
        name = self.columns[0]
        values = Values()
        samples: list[Column] = []  # from every chunk, for rows are often sorted by class
        for chunk in chunks:
            column = chunk[name]
            if isinstance(column, np.ndarray):
                values.see(column)
            samples.append(_spaced(column, SAMPLE // 4 if len(samples) < 4 else PROBED))
        if not samples:
            raise DataError(f"No picture of '{name}' can be read.")
        self.state = {"factor": values.factor()}
        sample = _joined(samples)
        if isinstance(sample, np.ndarray):
            self.state["shape"] = _array_shape(sample, self)
        else:
            self.state["shape"] = _file_shape(*_probe(_spaced(sample, PROBED)), self)
        return sample

    def adopt(self, earlier: Field, chunks: Iterable[Columns]) -> None:
        """The shape, mean and spread of earlier pictures; what the numbers of arrays mean is seen from these rows.

        Raises:
            DataError: earlier pictures were arrays whose numbers were no bytes, or these are.
        """
        values = Values()
        for chunk in chunks:
            column = chunk[self.columns[0]]
            if isinstance(column, np.ndarray):
                values.see(column)
        factor = values.factor()
        if (factor is None) != (earlier.state["factor"] is None):
            raise DataError(
                f"The numbers of '{self.columns[0]}' and of the earlier run's pictures cannot be compared: one are bytes of "
                "pictures or shares from 0 to 1, the others neither. Give arrays like those of the earlier run."
            )
        channels, height, width = earlier.state["shape"]
        if self.channels not in (None, channels):
            raise DataError(
                f"data.image.channels = {self.channels} does not go with the earlier run, whose pictures have {channels}. "
                "Leave it out; pictures are then read as they were there."
            )
        size = self.working_size or (height, width)
        self.state = {**earlier.state, "factor": factor, "shape": [channels, *size]}

    def measure(self, encoded: Tensor | Ragged) -> None:
        """Mean and spread of each channel of encoded training rows (N, C, H, W)."""
        if "mean" in self.state:
            return
        assert isinstance(encoded, Tensor), "pictures are of one size"
        pixels = encoded[:: max(1, len(encoded) // SAMPLE)].float()
        mean, deviation = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
        self.state["mean"] = mean.tolist()
        self.state["std"] = torch.where(deviation > 1e-6, deviation, torch.ones(())).tolist()

    def encoding(self) -> dict[str, Any]:
        """Not mean and spread: another fold of the same pictures measures others."""
        made = {"shape": self.state["shape"], "factor": self.state["factor"], "fit_by": self.fit_by}
        return made if self.binarize == "none" else {**made, "binarize": self.binarize}

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """(N, C, H, W) uint8; float32 where the arrays of training were neither 0 to 255 nor 0 to 1."""
        encoded, faults = self._encode(columns[self.columns[0]])
        encoded = binarized(encoded, self.binarize)
        if faults:
            raise RowFaults(faults, encoded)
        return encoded

    def _encode(self, column: Column) -> tuple[Tensor, dict[int, str]]:
        self.remarks = {}
        if isinstance(column, np.ndarray):
            return self._arrays(column)
        if self.state["factor"] is None:
            raise DataError(
                f"The model was trained on arrays whose numbers are neither 0 to 1 nor 0 to 255, so nothing says which "
                f"number a byte of a picture file is. Give '{self.columns[0]}' as arrays like those of training."
            )
        channels, height, width = self.shape
        encoded = np.zeros((len(column), channels, height, width), np.uint8)
        faults: dict[int, str] = {}
        detail = max(DETAIL, height, width)

        def one(row: int, value: Any) -> None:
            def tell(remark: str) -> None:
                self.remarks[row] = "; ".join(filter(None, [self.remarks.get(row), remark]))

            try:
                encoded[row] = to_pixels(open_picture(value, detail, tell), self.shape, self.fit_by)
            except UnreadableError as error:
                faults[row] = str(error)

        values = to_list(column)
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(one, range(len(values)), values))
        return torch.from_numpy(encoded), faults

    def _arrays(self, column: np.ndarray) -> tuple[Tensor, dict[int, str]]:
        """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, C, H, W) at the working size, and the faulty rows."""
        factor = self.state["factor"]
        faults = _misfits(column, factor)
        values = _as_float(column, faults) if factor is None else _as_bytes(column, factor, faults)
        return self._resized(values).contiguous(), faults

    def _resized(self, values: Tensor) -> Tensor:
        if values.ndim == 3:
            values = values[:, None]
        elif values.shape[1] not in (1, 3) and values.shape[-1] in (1, 3, 4):
            values = values[..., :3].movedim(-1, 1)
        channels, height, width = self.shape
        if values.shape[1] != channels:
            values = (
                _like(values.float().mean(1, keepdim=True), values) if channels == 1 else values.expand(-1, 3, -1, -1)
            )
        if values.shape[2:] == (height, width):
            return values
        inner_height, inner_width, top, left = _window((values.shape[3], values.shape[2]), self.shape, self.fit_by)
        resized = nn.functional.interpolate(
            values.float(), (inner_height, inner_width), mode="bilinear", antialias=True
        )
        sides = (left, width - left - inner_width, top, height - top - inner_height)  # a negative side is cut off
        return _like(nn.functional.pad(resized, sides), values)

    def layer(self) -> nn.Module:
        """uint8 -> standardized float, channels last in memory."""
        return Pixels(self.state["mean"], self.state["std"])

    def viewed(self, encoded: Tensor) -> list[Tensor]:
        """As they are, mirrored, and both also one pixel up and left, or down and right (test-time augmentation; Jordan 2024)."""
        if self.views == 1:
            return [encoded]
        pictures = [encoded] if self.views == 2 else [encoded, _nudged(encoded, 1), _nudged(encoded, -1)]
        return [view for picture in pictures for view in (picture, picture.flip(3))]

    @property
    def working_size(self) -> tuple[int, int] | None:
        """(height, width) that was asked for."""
        if self.size is None:
            return None
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width

    def describe(self) -> str:
        """Size and color."""
        if "shape" not in self.state:
            return "pictures"
        channels, height, width = self.shape
        kept = "; the numbers are kept as they are and standardized" if self.state["factor"] is None else ""
        views = f"; an answer is the mean over {self.views} views" if self.views > 1 else ""
        color = "color" if channels > 1 else "gray" if self.binarize == "none" else f"black and white ({self.binarize})"
        return f"pictures, {color}, {height} x {width}{kept}{views}"


def _nudged(images: Tensor, move: int) -> Tensor:
    """(B, C, H, W) whose pixel (y, x) is that at (y + move, x + move); the edge is repeated."""
    height, width = images.shape[2:]
    ys, xs = ((torch.arange(side, device=images.device) + move).clamp(0, side - 1) for side in (height, width))
    return images.index_select(2, ys).index_select(3, xs)


class Values:
    """What the numbers of arrays are, seen over all training rows; files and bytes run from 0 to 255."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self.is_whole = self.is_share = True

    def see(self, column: np.ndarray) -> None:
        """More rows (N, ...); a picture that holds what is not finite does not count."""
        for _, part in slices(column):
            if part.dtype.kind == "f":
                flat = part.reshape(len(part), -1)
                part = flat[np.isfinite(flat).all(1)]
                self.is_whole = self.is_whole and bool((part == np.round(part)).all())
            if part.size:
                self.low, self.high = min(self.low, float(part.min())), max(self.high, float(part.max()))
            if part.dtype.kind == "f" and self.high <= 1:
                self.is_share = self.is_share and bool((np.abs(part - np.round(part * 255.0) / 255.0) <= 1e-6).all())

    def factor(self) -> int | None:
        """What turns them into bytes; None where nothing does without loss."""
        if self.low < 0 or self.high > 255:
            return None
        if 0 < self.high <= 1 and self.is_share:
            return 255
        return 1 if self.is_whole else None


def slices(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of an array, a bounded number of values at a time, each part with the number of its first row."""
    size = max(1, SLICE // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), size):
        yield start, array[start : start + size]


def _misfits(column: np.ndarray, factor: int | None) -> dict[int, str]:
    """The rows whose numbers do not fit those of training."""
    if column.dtype == np.uint8 and factor != 255:
        return {}
    faults: dict[int, str] = {}
    for start, part in slices(column):
        flat = part.reshape(len(part), -1)
        low, high = (flat.min(1), flat.max(1)) if flat.shape[1] else (np.zeros(len(part)), np.zeros(len(part)))
        misfit = ~np.isfinite(low) | ~np.isfinite(high)  # nan goes through both
        if factor is not None:
            misfit |= (low * 1.0 * factor < -0.5) | (high * 1.0 * factor >= 255.5)
        if factor == 1 and part.dtype.kind == "f":
            misfit |= (high <= 1) & (flat != np.round(flat)).any(1)
        for row in np.flatnonzero(misfit).tolist():
            faults[start + row] = _misfit(float(low[row]), float(high[row]), factor)
    return faults


def _misfit(low: float, high: float, factor: int | None) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return "the picture holds a value that is not a number or infinite"
    came = f"the picture holds numbers from {low:g} to {high:g}, those of training are "
    if factor == 255:
        return f"{came}shares from 0 to 1{'; divide by 255' if low >= 0 and high <= 255 else ''}"
    return f"{came}whole, from 0 to 255{'; multiply by 255' if low >= 0 and high <= 1 else ''}"


def _as_float(column: np.ndarray, faults: Iterable[int]) -> Tensor:
    values = torch.from_numpy(np.array(column, np.float32))
    values[list(faults)] = 0.0
    return values


def _as_bytes(column: np.ndarray, factor: int, faults: Iterable[int]) -> Tensor:
    if column.dtype == np.uint8 and factor == 1:
        return torch.from_numpy(np.ascontiguousarray(column))
    good = np.ones(len(column), bool)
    good[list(faults)] = False
    result = np.zeros(column.shape, np.uint8)
    for start, part in slices(column):
        rows = slice(start, start + len(part))
        result[rows][good[rows]] = np.round(part[good[rows]] * float(factor))
    return torch.from_numpy(result)


def _like(values: Tensor, original: Tensor) -> Tensor:
    """Float values in the type of the original."""
    return values.round().clamp(0, 255).to(torch.uint8) if original.dtype == torch.uint8 else values


def _spaced(column: Any, wanted: int) -> Any:
    """About `wanted` rows from all over the column."""
    import pyarrow as pa

    rows = np.arange(0, len(column), max(1, len(column) // max(1, wanted)))
    return column[rows] if isinstance(column, np.ndarray) else column.take(pa.array(rows))


def _joined(parts: Sequence[Any]) -> Any:
    import pyarrow as pa

    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)


def _array_shape(column: np.ndarray, item: Image) -> list[int]:
    if column.ndim == 3:
        channels, height, width = 1, column.shape[1], column.shape[2]
    elif column.shape[1] in (1, 3):
        channels, height, width = column.shape[1:]
    else:
        height, width, channels = column.shape[1], column.shape[2], min(column.shape[3], 3)
    return [item.channels or channels, *(item.working_size or (height, width))]


def _probe(sample: Any) -> tuple[list[tuple[int, int]], bool]:
    """Sizes of a sample, and whether all of it is gray."""
    sizes, gray = [], True
    for value in to_list(sample):
        try:
            picture = open_picture(value)
        except UnreadableError:
            continue
        sizes.append(picture.size)
        if gray and picture.mode != "L":
            small = np.asarray(picture.resize((32, 32)), np.int16)
            gray = bool(np.abs(small - small.mean(2, keepdims=True)).max() <= 2)
    return sizes, gray


def _file_shape(sizes: list[tuple[int, int]], gray: bool, item: Image) -> list[int]:
    channels = item.channels or (1 if gray else 3)
    if not sizes:
        raise DataError(f"None of the first pictures of '{item.columns[0]}' can be read; are they pictures?")
    if item.working_size:
        return [channels, *item.working_size]
    if len(set(sizes)) == 1 and max(sizes[0]) <= SMALL:
        return [channels, sizes[0][1], sizes[0][0]]
    side = min(WORKING_SIZE, max(8, int(np.median([min(size) for size in sizes]))))
    return [channels, side, side]


class UnreadableError(Exception):
    """Why a picture cannot be read."""


def open_picture(value: Any, detail: int = DETAIL, tell: Callable[[str], None] | None = None) -> Any:
    """Open a path, bytes or Pillow image as an upright RGB or gray Pillow image.

    Args:
        value: a path, an encoded picture, or Hugging Face's struct of both.
        detail: no side of a huge JPEG photo is decoded at less.
        tell: is told each thing about the file that one might not think, what is left out of it first of all.

    Raises:
        UnreadableError: says why.
    """
    from PIL import ImageOps

    with opened(value) as picture:
        if picture.format == "JPEG":
            picture.draft(None, (detail, detail))
        if tell:
            for remark in _remarks(picture, value):
                tell(remark)
        picture.load()
        return _plain(ImageOps.exif_transpose(picture), picture.format)


@contextmanager
def opened(value: Any) -> Iterator[Any]:
    """A path, bytes or Pillow image as a Pillow image of which nothing but the header is read yet.

    Whatever users give is opened here: in one of `FORMATS`, with no more pixels than the cap, and what is raised until it is
    closed again is one kind of error.

    Args:
        value: as for `open_picture`.

    Raises:
        UnreadableError: says why.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    if value is None:
        raise UnreadableError("there is no picture")
    if isinstance(value, dict):  # Hugging Face's struct of bytes and path
        value = value.get("bytes") or value.get("path")
        if value is None:
            raise UnreadableError("there is neither a picture nor a path of one")
    given = isinstance(value, Pillow.Image)
    if not given and not isinstance(value, str | os.PathLike | bytes):
        raise UnreadableError(f"a path or an encoded picture is expected, but {value!r:.40} came")
    _leave_size_to_our_own_cap()
    try:
        file = io.BytesIO(value) if isinstance(value, bytes) else value
        with nullcontext(value) if given else Pillow.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UnreadableError(
                    f"it has {picture.width} x {picture.height} pixels, more than {MOST_PIXELS // 10**6} million"
                )
            if not given:
                _scale_key(picture)
            yield picture
    except FileNotFoundError:
        raise UnreadableError("the file is missing") from None
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):  # a warning where warnings are errors
        raise UnreadableError(f"it has more than {MOST_PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        empty = isinstance(value, str) and _size(value) == 0
        raise UnreadableError(
            "the file is empty" if empty else f"it is not a picture in {', '.join(FORMATS)}"
        ) from None
    except DAMAGED as error:
        raise UnreadableError(f"it is damaged ({error})") from None


def _remarks(picture: Any, value: Any) -> Iterator[str]:
    """What one might not think of a picture that can be read.

    Args:
        picture: just opened, so that its header is known.
        value: what it was opened from.
    """
    if picture.format in SEVERAL and getattr(picture, "is_animated", False):
        yield "it holds several pictures, of which the first is taken"
    if min(picture.size) == 1:
        yield f"it has {picture.width} x {picture.height} pixels, too few to show anything"
    ending = os.path.splitext(value)[1].lower() if isinstance(value, str | os.PathLike) else ""
    content = "JPEG" if picture.format == "MPO" else picture.format  # several pictures of a stereo camera in one JPEG
    if content != ENDINGS.get(ending, content):
        yield f"its content is {content} and its name ends in {ending}, so that programs which go by the name may refuse it"


def _scale_key(picture: Any) -> None:
    """Bring the gray value or color that a PNG says is transparent (tRNS) to 8 bits, as Pillow brings the pixels.

    Args:
        picture: just opened; of few bits a pixel, or of 16 and color.
    """
    scale = KEY_SCALES.get(picture.tile[0][3] if picture.format == "PNG" and picture.tile else None)
    key = picture.info.get("transparency")
    if scale is not None and key is not None:
        picture.info["transparency"] = tuple(map(scale, key)) if isinstance(key, tuple) else scale(key)


@cache
def _leave_size_to_our_own_cap() -> None:
    """Silence Pillow's warning about large pictures: beyond that size they are refused here, in a sentence."""
    from PIL import Image as Pillow

    warnings.filterwarnings("ignore", category=Pillow.DecompressionBombWarning)


def _size(path: str) -> int:
    return os.path.getsize(path)


def _plain(picture: Any, form: str | None) -> Any:
    """Any mode -> "L" or "RGB".

    Raises:
        UnreadableError: the numbers have no known range, so nothing says which of them is white.
    """
    from PIL import Image as Pillow

    if picture.mode.startswith("I;16") or (picture.mode == "I" and form in ("PNG", "PPM")):  # these end at 16 bits
        values = np.array(picture, np.float32)
        values[values == picture.info.get("transparency")] = 65535
        return Pillow.fromarray((values.clip(0, 65535) / 65535 * 255).round().astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise UnreadableError(
            f"it holds {'32-bit whole' if picture.mode == 'I' else 'floating-point'} numbers, whose range is not known; "
            "save it with 8 or 16 bits, or give an array"
        )
    keyed = picture.mode in ("1", "L", "RGB", "P") and "transparency" in picture.info  # one value or color, or a palette's
    if keyed or picture.mode in ("LA", "PA", "La"):
        picture = picture.convert("RGBA")
    if picture.mode in ("RGBA", "RGBa"):
        picture = picture.convert("RGBA")
        ground = Pillow.new("RGBA", picture.size, "white")
        return Pillow.alpha_composite(ground, picture).convert("RGB")
    if picture.mode == "1":
        return picture.convert("L")
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def placed(size: tuple[int, int], shape: Sequence[int], fit_by: str) -> tuple[float, float, float, float]:
    """Where a picture lands in the working picture.

    Args:
        size: (width, height) of the upright picture, as Pillow's `size`.
        shape: (C, H, W) of the working picture.
        fit_by: stretch, crop or pad.

    Returns:
        (scale_x, scale_y, offset_x, offset_y): the place (x, y) in shares of the picture's sides is the place
        (offset_x + scale_x * x, offset_y + scale_y * y) in shares of the working picture's. Of a picture that is
        cut off, some places lie outside 0 to 1.
    """
    inner_height, inner_width, top, left = _window(size, shape, fit_by)
    _, height, width = shape
    return inner_width / width, inner_height / height, left / width, top / height


def _window(size: tuple[int, int], shape: Sequence[int], fit_by: str) -> tuple[int, int, int, int]:
    """(height, width, top, left) of the whole picture in pixels of the working picture, which it may exceed."""
    _, height, width = shape
    if fit_by == "stretch":
        return height, width, 0, 0
    across, down = width / size[0], height / size[1]
    scale = max(across, down) if fit_by == "crop" else min(across, down)
    inner_height = max(1, round(size[1] * scale))
    inner_width = max(1, round(size[0] * scale))
    return inner_height, inner_width, (height - inner_height) // 2, (width - inner_width) // 2


def to_pixels(picture: Any, shape: Sequence[int], fit_by: str) -> np.ndarray:
    """A Pillow image -> (C, H, W) uint8."""
    from PIL import Image as Pillow

    channels, height, width = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        inner_height, inner_width, top, left = _window(picture.size, shape, fit_by)
        shown = (min(inner_width, width), min(inner_height, height))  # the part that lies within the working picture
        across, down = picture.width / inner_width, picture.height / inner_height  # of its pixels to one of these
        x, y = max(-left, 0) * across, max(-top, 0) * down
        box = (x, y, min(x + shown[0] * across, picture.width), min(y + shown[1] * down, picture.height))
        picture = picture.resize(shown, Pillow.Resampling.BILINEAR, box, reducing_gap=2.0)
    if picture.size != (width, height):
        ground = Pillow.new(picture.mode, (width, height))
        ground.paste(picture, (max(left, 0), max(top, 0)))
        picture = ground
    pixels = np.asarray(picture, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


class Pixels(nn.Module):
    """(B, C, H, W) uint8 -> standardized float32 in channels-last memory, which convolutions are fastest on."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        scale = 1 / torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", -torch.tensor(mean).view(-1, 1, 1) * scale, persistent=False)

    scale: Tensor
    shift: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return channels_last(pixels * self.scale + self.shift)  # one pass converts and scales


def channels_last(images: Tensor) -> Tensor:
    """The same (B, C, H, W) values with the channels innermost in memory.

    With one channel torch takes either memory format for the other and keeps the first; the convolution then runs in
    the slow one. Explicit strides settle it.
    """
    _, channels, height, width = images.shape
    if channels == 1:
        return images.as_strided(images.shape, (height * width, 1, width, 1))
    return images.contiguous(memory_format=torch.channels_last)
