"""The run folder and what is written into it, in a way that survives kills, full disks and rot.

    runs/<name>/  recipe.toml · schema.json · metrics.jsonl · results.json · report.html · environment.json · log.txt
                  model/ · checkpoints/ · tensorboard/ · members/ · bad-rows.csv where there are any

    RunFolder        names, makes, finds and reads run folders
    write_atomic     beside, fsync, rename, fsync the folder: a reader sees the old file or the new one
    save_tensors     safetensors with a checksum inside; load_tensors refuses what does not match
    CheckpointStore  two generations of checkpoints; a damaged one is told and the previous one is used

Nothing here can execute code: JSON, TOML and safetensors only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.core.errors import DamagedError, FathomError, RunError, nearest

if TYPE_CHECKING:  # results and listings are read without torch, whose import takes a second
    from torch import Tensor

FORMAT = 1
HEADER = 4 * 2**20  # bytes of a safetensors header: some ten thousand tensors
SEAL = "sha256"


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` last, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it was.

    Raises:
        RunError: the disk is full or cannot be written; says how much was needed and is free.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise disk_error(path, len(data), error) from error


def disk_error(path: Path, needed: int, error: OSError) -> RunError:
    """The sentence for a write that failed."""
    folder = next((p for p in [path.parent, *path.parents] if p.exists()), Path("/"))
    free = shutil.disk_usage(folder).free
    cause = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    return RunError(
        f"{path} could not be written: {cause} ({needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free). "
        "What was saved before is intact; make room and go on with: fathom fit --resume RUN"
    )


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """JSON with a checksum of its own content under "sha256"."""
    return (json.dumps({**value, SEAL: _seal(value)}, indent=1, allow_nan=False) + "\n").encode()


def _seal(value: Mapping[str, Any]) -> str:
    content = json.dumps({k: v for k, v in value.items() if k != SEAL}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read what `sealed_json` wrote.

    Raises:
        RunError: missing; a `DamagedError` where it is not JSON or has changed since it was written.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        go_on = f" Go on with: fathom fit --resume {path.parent}" if path.name == "results.json" else ""
        raise RunError(f"{path} is missing; the run is not complete.{go_on}") from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} is damaged ({error}). {REPAIR}") from error
    if not isinstance(value, dict) or value.get(SEAL) != _seal(value):
        raise DamagedError(f"{path} is damaged: its checksum does not match its content. {REPAIR}")
    return {name: item for name, item in value.items() if name != SEAL}


REPAIR = "Take the file from a copy, or repeat the run from its recipe.toml."


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, sealed by a checksum over names, shapes and bytes."""
    from safetensors.torch import save

    dense = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {**(about or {}), SEAL: _tensor_seal(dense, about or {})}
    write_atomic(path, save(dense, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_tensors` wrote.

    Returns:
        The tensors by name, and the texts saved beside them.

    Raises:
        RunError: missing; a `DamagedError` where it is unreadable or has changed since it was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _check_header(path)
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing.") from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{path} is damaged ({error}). {REPAIR}") from error
    seal = about.pop(SEAL, None)
    if seal != _tensor_seal(tensors, about):
        raise DamagedError(f"{path} is damaged: its checksum does not match its content. {REPAIR}")
    return tensors, about


def _check_header(path: Path) -> None:
    """Refuse a header that is larger than any of ours before it is parsed, since parsing costs memory and time."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > HEADER:
        raise ValueError(f"its header claims {size:,} bytes; at most {HEADER:,} are read")


def _tensor_seal(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def flatten(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Part a nested state into tensors by path and JSON that holds their places."""
    from torch import Tensor

    if isinstance(tree, Tensor):
        return {prefix: tree}, {"$tensor": prefix}
    if isinstance(tree, Mapping):
        tensors: dict[str, Tensor] = {}
        plain = {}
        for key, value in tree.items():
            inner, plain[str(key)] = flatten(value, f"{prefix}/{key}")
            tensors.update(inner)
        return tensors, plain
    return {}, tree


def unflatten(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested state that `flatten` parted."""
    if isinstance(plain, Mapping):
        if set(plain) == {"$tensor"}:
            return tensors[plain["$tensor"]]
        return {key: unflatten(value, tensors) for key, value in plain.items()}
    return plain


class CheckpointStore:
    """Checkpoints of one run: the newest two, so that one may rot.

    Args:
        folder: `checkpoints/` of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: Mapping[str, Any], step: int) -> Path:
        """Write `state` (nested tensors and JSON) and forget all but two."""
        tensors, plain = flatten(state)
        path = self.folder / f"step-{step:09d}.safetensors"
        save_tensors(path, tensors, {"state": json.dumps(plain), "format": str(FORMAT)})
        for old in self.paths()[:-2]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest state that is whole.

        A damaged checkpoint that is passed over is set aside as "*.damaged", where it pushes out no good one.

        Returns:
            The state, None where nothing was saved yet; and a sentence for each damaged checkpoint passed over.

        Raises:
            DamagedError: there are checkpoints, and all are damaged.
            RunError: the newest one that is whole is of another format.
        """
        notes: list[str] = []
        damaged: list[Path] = []
        for path in reversed(self.paths()):
            try:
                tensors, about = load_tensors(path)
                state = unflatten(json.loads(about["state"]), tensors)
            except (RunError, KeyError, ValueError) as error:
                notes.append(f"{error} The checkpoint before it is used instead.")
                damaged.append(path)
                continue
            _check_format(path, about)
            for rotten in damaged:
                os.replace(rotten, rotten.with_name(f"{rotten.name}.damaged"))
            return state, notes
        if notes:
            raise DamagedError(f"Every checkpoint in {self.folder} is damaged; nothing can be resumed. {REPAIR}")
        return None, notes


def _check_format(path: Path, about: Mapping[str, str]) -> None:
    if about.get("format") != str(FORMAT):
        raise RunError(
            f"{path} is a checkpoint of format {about.get('format')}; this Fathom reads format {FORMAT}. "
            "Go on with the version of Fathom that began the run, or repeat the run from its recipe.toml."
        )


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def checkpoints(self) -> CheckpointStore:
        """Where training can go on."""
        return CheckpointStore(self.path / "checkpoints")

    def file(self, name: str) -> Path:
        """A file or folder of the run."""
        return self.path / name

    @staticmethod
    def check(out: Path, name: str, *, exact: bool) -> None:
        """Refuse a name or place where no run can be made, making the folder of runs where it is not there yet.

        Raises:
            RunError: says what is in the way, and what to choose instead.
        """
        if name != Path(name).name or name in ("", ".", ".."):
            raise RunError(
                f"training.name = '{name}' is not the name of a folder: leave out '/', and choose the place with --out."
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"The folder {out} for runs cannot be made: {error.strerror}. Choose another with --out."
            ) from error
        path = out / name
        if exact and (path / "recipe.toml").exists():
            raise RunError(
                f"There is a run {path} already. Go on with it (fathom fit --resume {path}), or choose another --name."
            )
        if exact and path.exists():
            raise RunError(f"{path} is there, but no run has begun in it. Remove it, or choose another --name.")

    @staticmethod
    def create(out: Path, name: str, *, exact: bool) -> RunFolder:
        """A new folder, safe against other processes that make one at the same time.

        Args:
            out: folder of runs.
            name: its name; `exact` refuses an existing one, else a number is added.
        """
        RunFolder.check(out, name, exact=exact)
        taken = {_number(path.name, name) for path in out.glob(f"{name}-*")}
        number = max(taken, default=0)
        while True:
            number += 1
            path = out / (name if exact else f"{name}-{number}")
            try:
                path.mkdir()
                return RunFolder(path)
            except FileExistsError:
                RunFolder.check(out, name, exact=exact)  # another process was quicker; a numbered run tries the next
            except OSError as error:
                raise RunError(
                    f"The run folder {path} cannot be made: {error.strerror}. Choose another with --out."
                ) from error

    @staticmethod
    def open(location: str | Path, out: Path = Path("runs")) -> RunFolder:
        """The run at `location`: a path, or a name under `out`.

        Raises:
            RunError: it is not a run folder; names the nearest one.
        """
        for path in (Path(location), out / str(location)):
            if (path / "recipe.toml").is_file():
                return RunFolder(path)
        if (parent := Path(location).parent) != Path() and parent.is_dir():
            out = parent  # the runs beside what was named, not those of the usual folder
        known = [path.name for path in RunFolder.all(out) if path.name != Path(location).name]
        guess = nearest(Path(location).name, known)
        hint = f" Did you mean '{out / guess}'?" if guess else f" Runs in {out}/: {_last(known)}."
        what = "is not a run folder (it has no recipe.toml)" if Path(location).exists() else "does not exist"
        raise RunError(f"'{location}' {what}.{hint}")

    @staticmethod
    def all(out: Path) -> list[Path]:
        """Every run folder in `out`, oldest first."""
        found = [path.parent for path in out.glob("*/recipe.toml")]
        return sorted(found, key=lambda path: ((path / "recipe.toml").stat().st_mtime, path.name))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process from training in the same folder.

        Raises:
            RunError: another process does.
        """
        if os.name != "posix":
            yield
            return
        import fcntl

        folder = os.open(self.path, os.O_RDONLY)  # the folder itself is locked, so that no file is left behind
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for unfinished in self.path.rglob(".*.part"):  # what a killed process was writing
                unfinished.unlink(missing_ok=True)
            yield
        except BlockingIOError as error:
            raise RunError(f"Another process is training in {self.path}; wait for it or stop it.") from error
        finally:
            os.close(folder)


def _last(names: list[str], most: int = 5) -> str:
    """The newest names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[-most:]) or "none") + more


def _number(folder: str, name: str) -> int:
    match = re.fullmatch(re.escape(name) + r"-(\d+)", folder)
    return int(match.group(1)) if match else 0


def safe_name(location: str) -> str:
    """A folder name from a location: its last part, letters, digits, '.', '_' and '-' only."""
    stem = Path(location.rstrip("/\\")).name or "run"
    stem = re.sub(r"(\.(csv|tsv|parquet|jsonl|json|npz|txt|gz|toml))+$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.")[:60] or "run"


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that do not fit.

    Raises:
        RunError: names the first tensor that is missing, left over, of another shape or type, or not finite.
    """
    import torch

    for name, tensor in expected.items():
        if name not in found:
            raise RunError(f"{where} has no tensor '{name}', which the network needs. {REPAIR}")
        if found[name].shape != tensor.shape:
            raise RunError(
                f"{where}: tensor '{name}' has shape {tuple(found[name].shape)}; the network needs {tuple(tensor.shape)}. "
                "The weights belong to another network or schema."
            )
        if found[name].dtype != tensor.dtype:
            raise RunError(f"{where}: tensor '{name}' is {found[name].dtype}; the network needs {tensor.dtype}.")
        if found[name].is_floating_point() and not bool(torch.isfinite(found[name]).all()):
            raise RunError(f"{where}: tensor '{name}' holds values that are not finite.")
    extra = set(found) - set(expected)
    if extra:
        raise RunError(f"{where} holds a tensor '{min(extra)}' that the network does not have.")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


__all__ = [
    "CheckpointStore", "FathomError", "RunFolder", "check_weights", "flatten", "load_tensors", "read_json",
    "read_lines", "safe_name", "save_tensors", "sealed_json", "unflatten", "write_atomic",
]  # fmt: skip
