"""What several tests share: small data, the command line in this process, and the command line in one that can be killed.

cli(*words)               run the command line here      -> Said(code, out, err)
Killable(folder, *words)  run it in a process of its own that can be killed; starts at once (forked)
table(path, ...)          a small table to learn from
hurt(path, random)        one random fault in a file: a flipped bit, a cut, a zeroed stretch
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

QUICK = ("training.threads=1", "training.device=cpu")


@dataclass(frozen=True)
class Said:
    """What the command line answered."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The error alone: what stands from "fathom: " on, without the lines about what was guessed."""
        return self.err[self.err.rfind("fathom: ") :] if "fathom: " in self.err else ""


def cli(*words: str) -> Said:
    """Run `fathom WORDS` in this process."""
    from fathom.cli import main

    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["fathom", *map(str, words)]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as leaving:
        code = leaving.code or 0
    finally:
        sys.argv = before
    return Said(code, out.getvalue(), err.getvalue())


def table(path: Path, rows: int = 60, seed: int = 0, extra: str = "") -> Path:
    """A CSV of two numbers, a word and the answer; `extra` is added as it is."""
    numbers = np.random.default_rng(seed).random((rows, 2)).round(4)
    lines = [f"{a},{b},{'xyz'[i % 3]},{'yes' if a > b else 'no'}" for i, (a, b) in enumerate(numbers)]
    path.write_text("\n".join(["a,b,c,label", *lines]) + "\n" + extra, "utf-8")
    return path


# ---------------------------------------------------------------- processes that can be killed

PRELOADED = [
    "fathom.verbs.fit", "fathom.console", "fathom.networks.mlp", "fathom.algorithms.supervised", "torch._dynamo",
    "sklearn.ensemble", "sklearn.linear_model", "tensorboardX", "jinja2", "pyarrow.csv", "kit",
]  # fmt: skip


def _child(folder: str, words: list[str], environment: dict[str, str]) -> None:
    """The command line in a forked process; its output goes to said.out and said.err."""
    os.chdir(folder)
    os.environ.update(environment)
    for stream, name in ((1, "said.out"), (2, "said.err")):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    import torch

    torch.set_num_threads(1)
    sys.argv = ["fathom", *words]
    from fathom.cli import main

    main()


def _server() -> Any:
    """A clean process that has imported everything once; others are forked from it within milliseconds."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Killable:
    """`fathom WORDS` in a process of its own.

    Args:
        folder: where it runs; its output is written there.
        words: the command line.
    """

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.folder = folder
        given = {"FATHOM_CACHE": str(folder / "cache"), **environment}
        self.process = _server().Process(target=_child, args=(str(folder), [str(w) for w in words], given))
        self.process.start()

    def send(self, number: int) -> None:
        """A signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> int:
        """SIGKILL, then wait."""
        self.send(signal.SIGKILL)
        return self.wait()

    def wait(self, seconds: float = 120) -> int:
        """Exit code; minus the signal where one ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "the process did not end"
        return int(self.process.exitcode)

    def until(self, path: Path, seconds: float = 60) -> bool:
        """Wait for a file, or for the end of the process; true where the file came."""
        limit = time.monotonic() + seconds
        while not path.exists() and self.process.is_alive() and time.monotonic() < limit:
            time.sleep(0.001)
        return path.exists()

    def said(self) -> Said:
        """Output after the end."""
        code = self.wait()
        return Said(code, (self.folder / "said.out").read_text("utf-8"), (self.folder / "said.err").read_text("utf-8"))


def trained(run: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """What must be equal after a resume: the weights as bytes, and every epoch less its wall time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return (
        (run / "model" / "weights.safetensors").read_bytes(),
        [{name: value for name, value in line.items() if name != "seconds"} for line in lines],
    )


# ---------------------------------------------------------------- rot


def hurt(path: Path, draw: random.Random) -> str:
    """Damage a file at a random place, as a disk or a copy does; says how."""
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    how = draw.choice(("flip", "flip", "cut", "zeros"))
    if how == "flip":
        data[place] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[place:]
    else:
        stop = min(len(data), place + 512)
        if not any(data[place:stop]):
            data[place] ^= 0xFF  # zeros already: turn them instead
        else:
            data[place:stop] = bytes(stop - place)
    path.write_bytes(data)
    return f"{how} at byte {place} of {path.name}"


@contextlib.contextmanager
def damaged(path: Path, draw: random.Random) -> Iterator[str]:
    """A file with one random fault, mended afterwards."""
    whole = path.read_bytes()
    try:
        yield hurt(path, draw)
    finally:
        path.write_bytes(whole)
