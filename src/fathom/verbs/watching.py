"""Watching a generator learn: what it makes of the same noise at every epoch, and how many classes it makes.

    Watch       draws from an algorithm as it stands: a strip of pictures, and the count of classes
    Strips      a watcher that writes a strip an epoch, beside the run and on TensorBoard
    over_time   the strips of a run, one under the other, for the report

A generator that collapses shows in all three: the strip repeats itself, classes are missing, and the discriminator knows
every made picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis import samples
from fathom.analysis.pictures import as_uri_of_grid, grid
from fathom.core.callbacks import History, TensorBoard, Watcher
from fathom.core.contract import Algorithm, Batch, Clock, Model, Verdict
from fathom.core.device import undisturbed
from fathom.core.prepare import Prepared
from fathom.core.run import write_atomic
from fathom.fields.copies import png
from fathom.verbs import frozen

WATCHED = 1_000  # samples whose classes are counted
STRIP = 20  # pictures of a strip
COLUMNS = 10
STRIPS = 6  # in the report
SEED = 0  # of the noise, always the same


class Watch:
    """Looks at what a generator makes, as it stands.

    Args:
        algorithm: that trains it.
        prepared: its rows.
    """

    def __init__(self, algorithm: Algorithm, prepared: Prepared) -> None:
        self.algorithm, self.prepared = algorithm, prepared

    @cached_property
    def extractor(self) -> samples.Extractor:
        """The frozen classifier, which is trained or read when it is first asked for."""
        return frozen.extractor(self.prepared, SEED)

    def measure(self) -> dict[str, float]:
        """How many classes are made about as often as they are real; nothing where no label is known."""
        if self.extractor.classes is None:
            return {}
        rows = min(WATCHED, len(self.prepared.sets["train"]))
        made = self._drawn(rows)
        truth, _ = samples.real(self.prepared.sets["train"], self.prepared.schema, rows, SEED)
        return {"modes": float(samples.modes(samples.shares_of(self.extractor, made, truth)))}

    def strip(self) -> Tensor:
        """(C, height, width) a few pictures of the same noise at every time."""
        return grid(self._drawn(STRIP), COLUMNS)

    def _drawn(self, count: int) -> Tensor:
        predictor = self.algorithm.predictor()
        assert predictor.sampler is not None, "it makes pictures"
        train = self.prepared.sets["train"]
        rows = torch.arange(min(count, len(train)))
        told: Batch = {name: train.subset(rows).column(name) for name in predictor.sampler.conditions}
        return samples.drawn(predictor, len(rows), SEED, told)


class Strips(Watcher):
    """Writes a strip at the end of every epoch.

    Args:
        history: tells the end of an epoch.
        draw: the strip now.
        folder: samples/ of the run.
        board: where it is shown as well.
    """

    def __init__(self, history: History, draw: Callable[[], Tensor], folder: Path, board: TensorBoard) -> None:
        self.history, self.draw, self.folder, self.board = history, draw, folder, board

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Draw, where an epoch has ended."""
        if self.history.fresh:
            with undisturbed():
                strip = self.draw()
            self.folder.mkdir(exist_ok=True)
            write_atomic(self.folder / f"step-{clock.total:08d}.png", png(strip))
            self.board.writer().add_image("samples", strip.numpy(), clock.total)
        return "continue"


def over_time(folder: Path) -> list[dict[str, Any]]:
    """A sentence and the strips of a run, evenly chosen; nothing where there are fewer than two.

    Args:
        folder: samples/ of the run.
    """
    from PIL import Image as Pillow

    files = sorted(folder.glob("step-*.png"))
    if len(files) < 2:
        return []
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(STRIPS, len(files))).round().astype(int)]
    strips = []
    for file in chosen:
        with Pillow.open(io.BytesIO(file.read_bytes())) as picture:
            pixels = torch.from_numpy(np.array(picture, np.float32) / 255)
        strips.append(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))
    steps = ", ".join(f"{int(file.stem.removeprefix('step-')):,}" for file in chosen)
    says = f"What the same noise became in training: after {steps} steps, from above."
    return [{"says": says, "picture": as_uri_of_grid(torch.cat(strips, 1))}]
