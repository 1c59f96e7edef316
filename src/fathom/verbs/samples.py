"""`fathom generate` where rows are made from nothing: pictures as a grid or a walk, rows of a table.

    asks_rows(run, ...)          whether rows are asked of a run, and not a text
    samples(run, n, ...)         -> Samples: what was made, by target
    write(made, path)            a grid as .png, .jpg or .gif; rows as .csv, .parquet or .json

A code is drawn from the distribution that training assumed (a vae's prior, a generator's noise), and the network makes a row
of it. A walk goes from one code to another along the arc between them, on which codes are as long as drawn ones are (White
2016, arXiv:1609.04468).

In comments: n rows, D numbers of a code, H x W pixels, C channels.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.analysis.pictures import grid
from fathom.core.contract import Batch, Columns, Predictor, Sampler, Schema
from fathom.core.errors import DataError, FathomError, unknown
from fathom.core.run import write_atomic
from fathom.verbs.predict import write_answers
from fathom.verbs.result import Run, load

COUNT = 64  # rows, where nobody says how many
STEPS = 10  # of a walk
ENLARGED = 400  # pixels of a grid's side at least
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")


@dataclass(frozen=True)
class Samples:
    """What was made.

    Args:
        pictures: (n, C, H, W) from 0 to 1; None where rows are no pictures.
        rows: column -> value, of rows that are no pictures.
        columns: of the grid in which pictures are shown: a square, or a walk in one line.
    """

    pictures: Tensor | None
    rows: list[dict[str, Any]]
    columns: int = 1

    def __len__(self) -> int:
        return len(self.rows) if self.pictures is None else len(self.pictures)


def asks_rows(run: Run, output: str | Path | None, walk: bool, of_class: str | None) -> bool:
    """Whether rows are asked of a run, and not a text.

    Raises:
        FathomError: what only rows have is asked of a language model.
    """
    predictor = run.predictor
    if not any(item.kind == "text" for item in predictor.schema.targets.values()):
        return predictor.sampler is not None or "anomaly" in predictor.scores
    given = {"--output": output, "--walk": walk, "--class": of_class}
    for name, value in given.items():
        if value:
            raise FathomError(
                f"{run.path} writes text, and {name} is for pictures and rows made from nothing; leave it out."
            )
    return False


def samples(
    run: Run | str | Path, n: int | None = None, seed: int = 0, walk: bool = False, of_class: str | None = None
) -> Samples:
    """Rows that the network makes.

    Args:
        run: a finished run of a vae or a generator.
        n: how many; 64 where None, 10 of a walk.
        seed: of the codes.
        walk: whether all lie between the first two codes.
        of_class: what a conditional network is told; the classes take turns where None.

    Raises:
        FathomError: the network makes nothing from nothing, knows no classes or not this one, or n is below 1.
    """
    run = load(run)
    predictor = run.predictor
    sampler = _sampler(run, predictor)
    n = (STEPS if walk else COUNT) if n is None else n
    least = 2 if walk else 1
    if n < least:
        raise FathomError(f"n = {n} should be {least} or more{' for a walk' if walk else ''}.")
    generator = torch.Generator().manual_seed(seed)
    codes = arc(sampler.draw(2, generator), n) if walk else sampler.draw(n, generator)
    conditions = _conditions(predictor.schema, sampler, n, walk, of_class, str(run.path))
    device = next((p.device for layer in predictor.layers.values() for p in layer.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        made = sampler.make(codes.to(device), {name: value.to(device) for name, value in conditions.items()})
    answers = _answers(predictor.schema, {name: output.float().cpu() for name, output in made.items()})
    return replace(answers, columns=n if walk else math.isqrt(n - 1) + 1)


def _sampler(run: Run, predictor: Predictor) -> Sampler:
    if predictor.sampler is not None:
        return predictor.sampler
    if "anomaly" in predictor.scores:
        raise FathomError(
            f"{run.path} is a plain autoencoder: it says nothing about which codes are likely, so there is nothing to draw "
            "from. A network that does: fathom fit DATA --network vae"
        )
    kinds = ", ".join(item.kind for item in predictor.schema.targets.values())
    raise FathomError(
        f"{run.path} makes nothing from nothing (its target is a {kinds}). Its verb is: fathom predict {run.path} INPUT"
    )


def arc(ends: Tensor, n: int) -> Tensor:
    """(2, D) -> (n, D) steps along the arc between two codes, ends included (Shoemake 1985)."""
    first, last = ends.double()
    cosine = torch.dot(first, last) / (first.norm() * last.norm()).clamp(min=1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    share = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    if float(torch.sin(angle)) < 1e-6:  # they point the same way
        return torch.lerp(first[None], last[None], share).to(ends.dtype)
    made = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / torch.sin(angle)
    return made.to(ends.dtype)


def _conditions(schema: Schema, sampler: Sampler, n: int, walk: bool, of_class: str | None, where: str) -> Batch:
    """Encoded (n, 1) by the name of its input; empty where the network is told nothing."""
    if not sampler.conditions:
        if of_class is not None:
            raise FathomError(
                f"{where} knows no classes, so --class {of_class} cannot be asked of it. One that does is trained with "
                "network.conditional=true."
            )
        return {}
    (name,) = sampler.conditions
    item = schema.inputs[name]
    words = list(item.state["vocabularies"][0])
    if of_class is not None and of_class not in words:
        raise FathomError(unknown("class", of_class, words, where))
    chosen = [of_class] if of_class is not None else words[:1] if walk else words
    encoded = item.encode(Columns({item.columns[0]: [chosen[i % len(chosen)] for i in range(n)]}))
    assert isinstance(encoded, Tensor), "one word a row"
    return {name: encoded}


def _answers(schema: Schema, made: Batch) -> Samples:
    pictures = [name for name, item in schema.targets.items() if len(item.outputs) == 3]
    if pictures:
        item: Any = schema.targets[pictures[0]]
        return Samples(item.shown(made[pictures[0]]), [])
    decoded = [[line["answer"] for line in item.decode(made[name])] for name, item in schema.targets.items()]
    return Samples(
        None, [{key: value for part in row for key, value in part.items()} for row in zip(*decoded, strict=True)]
    )


def check_place(path: Path, walk: bool = False) -> None:
    """Refuse a place for samples before anything is computed.

    Raises:
        DataError: another ending, or a folder.
    """
    if path.suffix.lower() not in (*PICTURES, ".csv", ".parquet", ".json"):
        raise DataError(
            f"Samples cannot be written as '{path.suffix or path}'; use .png (a grid), .gif (a walk), or .csv for rows."
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file, as in {path / 'samples.png'}.")


def write(made: Samples, path: Path) -> None:
    """Write a grid of pictures, a walk as an animation (.gif), or rows.

    Raises:
        DataError: another ending, a folder, or one that does not go with what was made.
    """
    check_place(path)
    is_picture = path.suffix.lower() in PICTURES
    if is_picture != (made.pictures is not None):
        fitting = ".png for a grid" if made.pictures is not None else ".csv, .parquet or .json"
        what = "pictures" if made.pictures is not None else "rows of a table"
        raise DataError(f"{path}: {what} were made, which cannot be written as '{path.suffix}'; use {fitting}.")
    if made.pictures is None:
        write_answers(made.rows, path)
        return
    write_atomic(path, _file(made.pictures, made.columns, path.suffix.lower()))


def _file(pictures: Tensor, columns: int, ending: str) -> bytes:
    """The pictures as a grid, or one after the other in a .gif."""
    from PIL import Image as Pillow

    shown = list(pictures) if ending == ".gif" else [grid(pictures, columns)]
    frames = []
    for picture in shown:
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
        times = max(1, ENLARGED // max(pixels.shape[1:]))
        pixels = pixels.repeat_interleave(times, 1).repeat_interleave(times, 2)
        flat = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous()
        frames.append(Pillow.fromarray(flat.numpy()))
    file = io.BytesIO()
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(ending, ending[1:].upper())
    more: dict[str, Any] = (
        {"save_all": True, "append_images": frames[1:], "duration": 120, "loop": 0} if ending == ".gif" else {}
    )
    frames[0].save(file, kind, **more)
    return file.getvalue()
