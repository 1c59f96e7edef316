"""What the report shows of a network that makes rows again: pictures beside their copies, samples, codes in two dimensions.

    figures(...)    a sentence and a PNG each
    grid            many pictures as one
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fathom.analysis.copied import device_of, moved, with_noise
from fathom.core.contract import Predictor, TensorSet
from fathom.core.tensors import Column
from fathom.fields.copies import (
    NOISY,
    Copy,
    ImageCopy,
    png,
)

SHOWN = 10  # pictures side by side
SAMPLES = 40
DOTS = 1_000
# Ten hues that stay apart for most eyes (Tableau 10).
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")



def figures(
    predictor: Predictor,
    copies: Mapping[str, Copy],
    test: TensorSet,
    codes: Tensor | None,
    label: Column | None,
    seed: int,
) -> list[dict[str, str]]:
    """What the report shows: a sentence and a PNG each."""
    made = []
    pictures = [name for name, item in copies.items() if isinstance(item, ImageCopy)]
    if pictures:
        made.append(_side_by_side(predictor, copies, pictures[0], test))
    if pictures and predictor.sampler is not None and not predictor.sampler.conditions:
        codes_drawn = predictor.sampler.draw(SAMPLES, torch.Generator().manual_seed(seed)).to(device_of(predictor))
        with torch.inference_mode():
            drawn = copies[pictures[0]].shown(predictor.sampler.make(codes_drawn, {})[pictures[0]])
        says = "Pictures that the network makes of codes drawn from its prior."
        made.append({"says": says, "picture": as_uri_of_grid(grid(drawn, SHOWN))})
    if codes is not None and codes.shape[1] > 1 and len(codes) > 2:
        made.append(_scatter(codes, label))
    return made


def _side_by_side(predictor: Predictor, copies: Mapping[str, Copy], name: str, test: TensorSet) -> dict[str, str]:
    """Originals at even steps through the test rows, with noise where that is taken away, above what was made of them."""
    item = copies[name]
    batch = test.batch(torch.linspace(0, len(test) - 1, min(SHOWN, len(test))).round().long())
    given = with_noise(copies, batch) if item.noise else batch
    with torch.inference_mode():
        again = item.shown(predictor.forward(moved(predictor, given))[name]).cpu()
    lines = [item.truth(batch[name])]
    lines += [item.truth(given[NOISY + name])] if item.noise else []
    below = (
        "then the same with noise, below without it." if item.noise else "below what the network makes of their codes."
    )
    says = f"Test pictures at even steps, not the best ones: above the originals, {below}"
    return {"says": says, "picture": as_uri_of_grid(grid(torch.cat([*lines, again]), len(batch[name])))}


def grid(pictures: Tensor, columns: int, gap: int = 1) -> Tensor:
    """(N, C, H, W) from 0 to 1 -> (C, height, width), white between them."""
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    made = torch.ones(channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, picture in enumerate(pictures.cpu()):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        made[:, top : top + height, left : left + width] = picture.clamp(0, 1)
    return made


def as_uri_of_grid(picture: Tensor) -> str:
    """A grid as the text of a data URI, small pictures enlarged."""
    times = max(1, 480 // picture.shape[2])
    return _as_uri(png(picture.repeat_interleave(times, 1).repeat_interleave(times, 2)))


def _as_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _scatter(codes: Tensor, label: Column | None) -> dict[str, str]:
    """The codes of test rows on their first two principal components."""
    rows = range(0, len(codes), max(1, -(-len(codes) // DOTS)))
    chosen = codes[list(rows)].double()
    centered = chosen - chosen.mean(0)
    _, spread, axes = torch.linalg.svd(centered, full_matrices=False)
    share = float(spread[:2].square().sum() / spread.square().sum().clamp(min=1e-12))
    words = (
        [""] * len(rows) if label is None or isinstance(label, np.ndarray) else [str(label[i].as_py()) for i in rows]
    )
    groups = sorted(set(words))
    colored = 1 < len(groups) <= len(COLORS)
    places = [groups.index(word) for word in words] if colored else [0] * len(words)
    says = f"Codes of test rows on their first two principal components, which hold {share:.0%} of their variance"
    says += ", colored by what is known of the rows and was not learnt from." if colored else "."
    return {"says": says, "picture": _as_uri(_dots((centered @ axes[:2].T).numpy(), places, groups if colored else []))}


def _dots(points: np.ndarray, places: Sequence[int], names: Sequence[str]) -> bytes:
    """A scatter plot as PNG: points (N, 2), the color of each, and the names of the colors."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    width, height, edge, key = 560, 400, 12, 100
    drawn = Pillow.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(drawn)
    low, size = points.min(0), np.maximum(np.ptp(points, 0), 1e-9)
    inner = np.array([width - 2 * edge - (key if names else 0), height - 2 * edge])
    for (x, y), place in zip((points - low) / size * inner + edge, places, strict=True):
        pen.ellipse((x - 2, height - y - 2, x + 2, height - y + 2), fill=COLORS[place])
    for i, name in enumerate(names):
        top = edge + 18 * i
        pen.rectangle((width - key, top, width - key + 10, top + 10), fill=COLORS[i])
        pen.text((width - key + 16, top - 1), name[:12], fill="black")
    file = io.BytesIO()
    drawn.quantize(32).save(file, "PNG", optimize=True)
    return file.getvalue()
