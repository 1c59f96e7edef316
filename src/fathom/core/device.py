"""Where the mathematics runs: device, precision, threads, random state.

device = Device.choose("auto")
with device.autocast(): ...
states = random_state(); set_random_state(states)
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fathom.core.errors import FathomError


@dataclass(frozen=True)
class Device:
    """A torch device and the precision of its matrix work."""

    torch: torch.device
    precision: str = "float32"

    @staticmethod
    def choose(name: str) -> Device:
        """The device called `name`; "auto" takes an accelerator where there is one.

        Raises:
            FathomError: no such device here.
        """
        available = ["cpu"]
        if torch.cuda.is_available():
            available += ["cuda", *[f"cuda:{i}" for i in range(torch.cuda.device_count())]]
        if torch.backends.mps.is_available():
            available.append("mps")
        if name == "auto":
            name = next((kind for kind in ("cuda", "mps") if kind in available), "cpu")
        if name not in available:
            raise FathomError(
                f"training.device = '{name}' is not on this machine; here: {', '.join(available)}. "
                "Leave the device out to take the best one."
            )
        return Device(torch.device(name))

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix work and convolutions in bfloat16, where that is the precision."""
        if self.precision == "bfloat16":
            return torch.autocast(self.torch.type, torch.bfloat16)
        return contextlib.nullcontext()

    def precisions(self) -> list[str]:
        """What is worth trying here, the exacter first: bfloat16 only where the hardware multiplies in it."""
        if self.torch.type == "cuda" and torch.cuda.is_bf16_supported():
            return ["float32", "bfloat16"]
        if self.torch.type == "cpu" and "avx512_bf16" in cpu_flags():
            return ["float32", "bfloat16"]
        return ["float32"]

    @property
    def reads_are_free(self) -> bool:
        """Whether looking at a number does not wait for the device."""
        return self.torch.type == "cpu"


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run with this many CPU threads, then go back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_threads(count: int | None) -> None:
    """Refuse more threads than cores, which wait for each other.

    Raises:
        FathomError: says how many cores there are.
    """
    if count is not None and count > cores():
        raise FathomError(
            f"training.threads = {count} is more than the {cores()} cores here, and threads that share a core wait for each "
            f"other. Give at most {cores()}, or leave it out to take the fastest."
        )


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_everything(seed: int) -> None:
    """Set the seed of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every global generator, as tensors and JSON."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": [str(name), int(position), int(has_gauss), float(cached)],
    }
    if torch.cuda.is_available():
        state["cuda"] = {str(i): s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Take back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, position, has_gauss, cached = state["numpy_rest"]
    np.random.set_state((name, state["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state["cuda"][str(i)] for i in range(len(state["cuda"]))])


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the random state as it was: what is drawn inside does not change training."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def machine() -> dict[str, Any]:
    """What this machine and its software are, for the run folder."""
    import platform

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    import platform

    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Instruction sets of the CPU, as Linux names them; empty elsewhere."""
    return set(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
