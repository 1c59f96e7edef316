"""Pictures as a network makes them again, as files: what `fathom predict RUN noisy.png -o clean.png` writes.

    rebuilds(run)               whether a run makes pictures again
    rebuilt(run, *inputs)       -> the pictures that it makes of raw inputs, and their names
    write(pictures, names, to)  one as a file, several into a folder

A network that takes noise away is given the input as it is: its noise is there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.analysis.copied import moved
from fathom.analysis.reconstruction import reconstructs
from fathom.core.errors import DataError
from fathom.core.run import write_atomic
from fathom.fields.copies import ImageCopy, png
from fathom.verbs.predict import encode_all, read_some, refuse_input
from fathom.verbs.result import Run, load

ROWS = 512  # made again at once
ENDING = ".png"


def rebuilds(run: Run | str | Path) -> bool:
    """Whether a run makes pictures again, and nothing else."""
    targets = list(load(run).schema.targets.values())
    return reconstructs(load(run).schema) and len(targets) == 1 and isinstance(targets[0], ImageCopy)


def wanted(run: Run | str | Path, output: Path) -> bool:
    """Whether pictures are to be written, and not a table of answers."""
    return (output.suffix.lower() == ENDING or not output.suffix or output.is_dir()) and rebuilds(run)


def rebuilt(run: Run | str | Path, *inputs: Any) -> tuple[Tensor, list[str]]:
    """The pictures (N, C, H, W), from 0 to 1, that a run makes of raw inputs, and a name for each."""
    run = load(run)
    schema = replace(run.schema, targets={}, special={})
    columns, names = read_some(inputs, schema)
    rows = encode_all(run, schema, columns, names, "made again")
    predictor = run.predictor
    ((name, item),) = predictor.schema.targets.items()
    assert isinstance(item, ImageCopy), "it makes pictures again"
    with torch.inference_mode():
        made = [item.shown(predictor.forward(moved(predictor, batch))[name]).cpu() for batch in rows.batches(ROWS)]
    return torch.cat(made), names


def write(pictures: Tensor, names: Sequence[str], to: Path, inputs: Sequence[Any] = ()) -> list[Path]:
    """Write one picture as a .png, or several into a folder, each under the name of its input.

    Args:
        pictures: (N, C, H, W) from 0 to 1.
        names: of the rows.
        to: the file or folder.
        inputs: which must not be overwritten.

    Raises:
        DataError: several pictures and one file, or an input would be overwritten.
    """
    if to.suffix and not to.is_dir():
        if len(pictures) > 1:
            raise DataError(f"{len(pictures)} pictures were made, and {to} is one file; name a folder, as in -o clean")
        places = [to]
    else:
        places = [to / f"{_stem(name, i)}{ENDING}" for i, name in enumerate(names)]
        if twice := next((place for place in places if places.count(place) > 1), None):
            raise DataError(f"Two inputs would both be written to {twice}; give them one at a time.")
    for place in places:
        refuse_input(place, inputs)
    for place, picture in zip(places, pictures, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, png(picture))
    return places


def _stem(name: str, row: int) -> str:
    """The file's name without its ending; of what is no file its number."""
    return Path(name).stem if Path(name).suffix else f"row-{row + 1}"
