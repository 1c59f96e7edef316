"""Room for tensors that are larger than the memory they may take: unlinked files, mapped, that leave nothing behind.

empty(shape, dtype, memory)   in memory up to `memory` GiB, in a file beyond
cache_folder()                where Fathom keeps what it can make again
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fathom.core.errors import RunError


def cache_folder() -> Path:
    """Where Fathom keeps what it can make again: FATHOM_CACHE, else the user's cache folder."""
    return Path(os.environ.get("FATHOM_CACHE") or Path.home() / ".cache" / "fathom")


def mapped_folder() -> Path:
    """Where unlinked files lie."""
    folder = cache_folder() / "mapped"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fits(shape: Sequence[int], dtype: torch.dtype, memory: float) -> bool:
    """Whether a tensor takes no more than `memory` GiB."""
    return math.prod(shape) * dtype.itemsize <= memory * 2**30


def empty(shape: Sequence[int], dtype: torch.dtype, memory: float, what: str = "encoded data") -> Tensor:
    """An uninitialised tensor, in an unlinked file where it is larger than `memory` GiB.

    Args:
        shape, dtype: of the tensor.
        memory: GiB, `data.memory`.
        what: it holds, for the error.

    Raises:
        RunError: the disk has too little room for it.
    """
    if fits(shape, dtype, memory):
        return torch.empty(tuple(shape), dtype=dtype)
    size, folder = math.prod(shape) * dtype.itemsize, mapped_folder()
    free = shutil.disk_usage(folder).free
    if free < size:
        raise RunError(
            f"{size / 2**30:.1f} GiB of {what} are more than data.memory = {memory:g} GiB, and {folder} has only "
            f"{free / 2**30:.1f} GiB free for it. Set FATHOM_CACHE to a larger disk, or use data.limit."
        )
    descriptor, path = tempfile.mkstemp(dir=folder)
    os.truncate(path, size)
    tensor = torch.from_file(path, shared=True, size=math.prod(shape), dtype=dtype).reshape(tuple(shape))
    os.close(descriptor)
    os.unlink(path)  # the mapping lives as long as the tensor, and leaves nothing behind
    return tensor
