"""How many parameters a network of pictures has, counted where it is listed, at one size of pictures for all.

A network is built by its own defaults for each example that it takes: pictures of ten classes, pictures to be made again,
pictures to be made of noise, pictures with boxes. Its weights are never drawn, so that what has a hundred million of them
is counted in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fathom.core.contract import Algorithm, Columns, Field, Schema
from fathom.core.registry import Entry, algorithms, fields
from fathom.fields.boxes import boxes_type
from fathom.fields.copies import ImageCopy
from fathom.fields.image import WORKING_SIZE
from fathom.fields.made import ImageSample

SHAPE, CLASSES, ROWS = (3, WORKING_SIZE, WORKING_SIZE), 10, 1_000  # of photos, where nobody says otherwise
SIZE = " x ".join(map(str, SHAPE))


@dataclass(frozen=True)
class Counted:
    """What was counted.

    Args:
        parameters: of all networks that play a role.
        at: for which pictures, in words.
    """

    parameters: int
    at: str


class Undrawn(TorchFunctionMode):
    """Within, no random weights are drawn: most keep whatever is in their memory, which is then never touched."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand the tensor of an initializer back, zeros where numbers are drawn otherwise; do anything else."""
        named = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return named["tensor"] if "tensor" in named else args[0]
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0].zero_()  # some initializers draw until what they got lies within limits
        return func(*args, **named)


def counted(entry: Entry) -> Counted | None:
    """The parameters of a network by its defaults; None of one that takes none of the examples.

    Args:
        entry: of the registry.
    """
    if entry.about.get("written"):  # line by line, by the user: it has as many as they write
        return None
    for schema, at in _examples():
        learnt = next(other for other in algorithms if other.about["suits"](schema))
        if entry.about.get("algorithm") not in (None, learnt.name) or not _takes(entry, learnt.about, schema):
            continue
        make: type[Algorithm] = learnt.make
        with Undrawn():
            built: list[nn.Module] = [entry.build(part, role) for role, part in make.roles(schema).items()]
        return Counted(sum(p.numel() for module in built for p in module.parameters()), at)
    return None


def _takes(entry: Entry, about: Any, schema: Schema) -> bool:
    """Whether the network can be asked what an algorithm asks it of a schema."""
    asked = about.get("asks", lambda schema: schema)(schema)
    return bool(entry.about["suits"](asked, ROWS) > 0 or ("takes" in entry.about and entry.about["takes"](asked)))


@cache
def _examples() -> list[tuple[Schema, str]]:
    """Fitted schemas, and what their pictures are in words."""
    return [*_made()]


def _made() -> Iterator[tuple[Schema, str]]:
    image = fields["image"].make(["image"])
    image.state = {"shape": list(SHAPE), "mean": [127.5] * 3, "std": [64.0] * 3, "factor": 1}
    of_classes = f"{SIZE}, {CLASSES} classes"
    label = fields["category"].make(["label"])
    label.fit([Columns({"label": np.arange(CLASSES)})])
    yield Schema({"image": image}, {"label": label}), of_classes
    for kind in (ImageCopy, ImageSample):
        again: Field = kind.of_input(image)
        again.state = dict(image.state)
        yield Schema({"image": image}, {"image": again}), SIZE
    boxes = fields["boxes"].make(["boxes"])
    boxes.picture = image
    objects = [{"label": str(i), "x1": 0.0, "y1": 0.0, "x2": 9.0, "y2": 9.0} for i in range(CLASSES)]
    scene = {"width": SHAPE[2], "height": SHAPE[1], "fault": None, "objects": objects}
    boxes.fit([Columns({"boxes": pa.chunked_array([pa.array([scene], boxes_type())])})])
    yield Schema({"image": image}, {"boxes": boxes}), of_classes
