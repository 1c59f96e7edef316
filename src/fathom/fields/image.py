"""Images: files, encoded bytes or arrays, held as uint8 at the working size and standardized by a layer.

Every file is opened in the same way: formats from a list, a cap on pixels, EXIF orientation applied, CMYK and palettes
turned into RGB, transparency laid on white, 16 bits scaled to 8. What cannot be read is a fault of its row, never a
black picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, hyperparameter
from fathom.core.device import cores
from fathom.core.errors import DataError, RowFaults
from fathom.core.registry import fields
from fathom.core.tensors import Column, to_list

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 100_000_000
WORKING_SIZE = 64  # of photos, unless data.image.size says otherwise
SMALL = 64  # pictures up to this side, all of one size, are kept as they are
SAMPLE = 2_000  # training rows that mean and spread are measured on


@fields.register("image")
class Image(Field):
    """One picture a row."""

    kind = "image"
    size: int | None = hyperparameter(None, help="side in pixels; small pictures of one size keep theirs")
    channels: Literal[1, 3] | None = hyperparameter(None, help="1 grey or 3 colour; seen from the pictures")
    fit_by: Literal["stretch", "crop", "pad"] = hyperparameter("stretch", help="how another shape becomes square")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.state["shape"])

    def fit(self, chunks: Iterable[Columns]) -> None:
        """Working size and channels, then the mean and spread of each channel."""
        pixels: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        kept = 0
        for chunk in chunks:
            column = chunk[self.columns[0]]
            wanted = max(1, SAMPLE // 4)
            sample = (
                column[:: max(1, len(column) // wanted)] if isinstance(column, np.ndarray) else _every(column, wanted)
            )
            if isinstance(column, np.ndarray):
                self.state["shape"], self.state["float"] = (
                    _array_shape(column, self),
                    column.dtype != np.uint8,
                )
            elif "shape" not in self.state:
                sizes = _probe(sample, self)
                self.state["shape"], self.state["float"] = _file_shape(sizes, self), False
            if kept < SAMPLE:
                part = self._readable(sample)
                kept += len(part)
                pixels.append(part)
        if not pixels or sum(len(part) for part in pixels) == 0:
            raise DataError(f"No picture of '{self.columns[0]}' can be read.")
        values = torch.cat(pixels).float()
        mean, deviation = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0)
        self.state["mean"] = mean.tolist()
        self.state["std"] = torch.where(deviation > 1e-6, deviation, torch.ones(())).tolist()

    def _readable(self, sample: Column) -> Tensor:
        encoded, faults = self._encode(sample)
        good = [row for row in range(len(encoded)) if row not in faults]
        return encoded[good]

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """(N, C, H, W) uint8; float32 where the arrays were neither 0 to 255 nor 0 to 1."""
        encoded, faults = self._encode(columns[self.columns[0]])
        if faults:
            raise RowFaults(faults, encoded)
        return encoded

    def _encode(self, column: Column) -> tuple[Tensor, dict[int, str]]:
        if isinstance(column, np.ndarray):
            return self._arrays(column), {}
        channels, height, width = self.shape
        encoded = np.zeros((len(column), channels, height, width), np.uint8)
        faults: dict[int, str] = {}

        def one(row: int, value: Any) -> None:
            try:
                encoded[row] = to_pixels(open_picture(value), self.shape, self.fit_by)
            except UnreadableError as error:
                faults[row] = str(error)

        values = to_list(column)
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(one, range(len(values)), values))
        return torch.from_numpy(encoded), faults

    def _arrays(self, column: np.ndarray) -> Tensor:
        """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, C, H, W) at the working size."""
        values = torch.from_numpy(np.ascontiguousarray(column))
        if values.ndim == 3:
            values = values[:, None]
        elif values.shape[1] not in (1, 3) and values.shape[-1] in (1, 3, 4):
            values = values[..., :3].movedim(-1, 1)
        channels, height, width = self.shape
        if values.shape[1] != channels:
            values = (
                values.float().mean(1, keepdim=True).to(values.dtype) if channels == 1 else values.expand(-1, 3, -1, -1)
            )
        if values.shape[2:] != (height, width):
            resized = nn.functional.interpolate(values.float(), (height, width), mode="bilinear", antialias=True)
            values = resized.round().clamp(0, 255).to(values.dtype) if values.dtype == torch.uint8 else resized
        if not self.state["float"] and values.dtype != torch.uint8:
            values = _to_bytes(values)
        return values.float().contiguous() if self.state["float"] else values.contiguous()

    def layer(self) -> nn.Module:
        """uint8 -> standardized float, channels last in memory."""
        return Pixels(self.state["mean"], self.state["std"])

    def describe(self) -> str:
        """Size and colour."""
        if "shape" not in self.state:
            return "pictures"
        channels, height, width = self.shape
        return f"pictures, {'grey' if channels == 1 else 'colour'}, {height} x {width}"


def _to_bytes(values: Tensor) -> Tensor:
    """Numbers of a later array for a field that was fitted on bytes: 0 to 1 is stretched, 0 to 255 is rounded."""
    values = values.float()
    scaled = values * 255 if float(values.max()) <= 1.0 else values
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _every(column: Any, wanted: int) -> Any:
    import pyarrow as pa

    return column.take(pa.array(np.arange(0, len(column), max(1, len(column) // wanted))))


def _array_shape(column: np.ndarray, item: Image) -> list[int]:
    if column.ndim == 3:
        channels, height, width = 1, column.shape[1], column.shape[2]
    elif (column.shape[1] in (1, 3) and column.shape[-1] not in (1, 3, 4)) or column.shape[1] in (1, 3):
        channels, height, width = column.shape[1:]
    else:
        height, width, channels = column.shape[1], column.shape[2], min(column.shape[3], 3)
    if item.size:
        height = width = item.size
    return [item.channels or channels, height, width]


def _probe(sample: Any, item: Image) -> list[tuple[int, int]]:
    """Sizes of a sample, and whether all of it is grey (kept in the state)."""
    sizes, grey = [], True
    for value in to_list(sample)[:64]:
        try:
            picture = open_picture(value)
        except UnreadableError:
            continue
        sizes.append(picture.size)
        if grey and picture.mode != "L":
            small = np.asarray(picture.resize((32, 32)), np.int16)
            grey = bool(np.abs(small - small.mean(2, keepdims=True)).max() <= 2)
    item.state["grey"] = grey
    return sizes


def _file_shape(sizes: list[tuple[int, int]], item: Image) -> list[int]:
    channels = item.channels or (1 if item.state.pop("grey") else 3)
    item.state.pop("grey", None)
    if not sizes:
        raise DataError(f"None of the first pictures of '{item.columns[0]}' can be read; are they pictures?")
    if item.size:
        return [channels, item.size, item.size]
    if len(set(sizes)) == 1 and max(sizes[0]) <= SMALL:
        return [channels, sizes[0][1], sizes[0][0]]
    side = min(WORKING_SIZE, max(8, int(np.median([min(size) for size in sizes]))))
    return [channels, side, side]


class UnreadableError(Exception):
    """Why a picture cannot be read."""


def open_picture(value: Any) -> Any:
    """Open a path, bytes or Pillow image as an upright RGB or grey Pillow image.

    Raises:
        UnreadableError: says why.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps, UnidentifiedImageError

    if value is None:
        raise UnreadableError("there is no picture")
    if isinstance(value, dict):  # Hugging Face's struct of bytes and path
        value = value.get("bytes") or value.get("path")
    try:
        file = io.BytesIO(value) if isinstance(value, bytes) else value
        given = isinstance(value, Pillow.Image)
        with nullcontext(value) if given else Pillow.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UnreadableError(
                    f"it has {picture.width} x {picture.height} pixels, more than {MOST_PIXELS // 10**6} million"
                )
            if picture.format == "JPEG":
                picture.draft(None, (1024, 1024))  # decodes huge photos at a half or a quarter
            picture.load()
            return _plain(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise UnreadableError("the file is missing") from None
    except Pillow.DecompressionBombError:
        raise UnreadableError(f"it has more than {MOST_PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        empty = isinstance(value, str) and _size(value) == 0
        raise UnreadableError(
            "the file is empty" if empty else f"it is not a picture in {', '.join(FORMATS)}"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnreadableError(f"it is damaged ({error})") from None


def _size(path: str) -> int:
    import os

    return os.path.getsize(path)


def _plain(picture: Any) -> Any:
    """Any mode -> "L" or "RGB"."""
    from PIL import Image as Pillow

    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float32)
        deep = picture.mode.startswith("I;16") or values.max() > 255
        top = 65535.0 if deep else 255.0
        return Pillow.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in ("LA", "PA", "La"):
        picture = picture.convert("RGBA")
    if picture.mode in ("RGBA", "RGBa"):
        picture = picture.convert("RGBA")
        ground = Pillow.new("RGBA", picture.size, "white")
        return Pillow.alpha_composite(ground, picture).convert("RGB")
    if picture.mode == "1":
        return picture.convert("L")
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def to_pixels(picture: Any, shape: Sequence[int], fit_by: str) -> np.ndarray:
    """A Pillow image -> (C, H, W) uint8."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    channels, height, width = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = RESIZES[fit_by](picture, (width, height), ImageOps, Pillow.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


RESIZES: dict[str, Callable[..., Any]] = {
    "stretch": lambda picture, size, ops, how: picture.resize(size, how, reducing_gap=2.0),
    "crop": lambda picture, size, ops, how: ops.fit(picture, size, how),
    "pad": lambda picture, size, ops, how: ops.pad(picture, size, how),
}


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
