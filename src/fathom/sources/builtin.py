"""Sets by name: five that scikit-learn ships, and three that are found, or fetched when asked.

    digits, iris, wine, breast-cancer, diabetes   always there
    mnist, fashion-mnist, cifar10                 in FATHOM_DATA/NAME or the cache, or fetched with --download

What is fetched is checked against its SHA-256 before it gets its name.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fathom.core.contract import Columns, Index
from fathom.core.errors import DataError
from fathom.core.prepare import cache_folder
from fathom.core.recipe import Data
from fathom.core.registry import source
from fathom.core.run import disk_error
from fathom.sources.base import Guessed
from fathom.sources.delimited import shorten
from fathom.sources.guess import DEFAULTS, Setting
from fathom.sources.images import Images, idx_files, parquet_files

FASHION = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Args:
        url: where it lies.
        sha256: of its bytes.
    """

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_IDX = [f"{part}-{role}-ubyte.gz" for part in ("train", "t10k") for role in ("images-idx3", "labels-idx1")]
_MNIST_SHA256 = (
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
_FASHION_SHA256 = (
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
REMOTES: dict[str, list[Remote]] = {
    "mnist": [Remote(f"{_MNIST}/{name}", digest) for name, digest in zip(_IDX, _MNIST_SHA256, strict=True)],
    "fashion-mnist": [Remote(f"{_FASHION}/{name}", digest) for name, digest in zip(_IDX, _FASHION_SHA256, strict=True)],
    "cifar10": [Remote(_CIFAR10, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")],
}
SHIPPED = ("digits", "iris", "wine", "breast-cancer", "diabetes")
NAMES = (*SHIPPED, *REMOTES)
CIFAR_PARTS = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR_ROW = 1 + 3 * 32 * 32


@source("builtin", order=0, reads=f"a name: {', '.join(NAMES)}")
class Builtin(Guessed):
    """A set by its name."""

    def __init__(self, location: Any, options: Data) -> None:
        self.name = str(location).lower().replace("_", "-")
        super().__init__(self.name, options)
        if Path(str(location)).exists():
            self.reading_notes.append(
                f"'{location}' is the built-in set; write ./{location} to mean the one in this folder."
            )

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """One of the names, with - or _."""
        return isinstance(location, str) and location.lower().replace("_", "-") in NAMES

    def _read(self) -> Columns:
        return _shipped(self.name) if self.name in SHIPPED else self._remote()

    def _setting(self, columns: Columns) -> Setting:
        """The kinds are known here."""
        target = "target" if "target" in columns else "label"
        known = {target: "number" if self.name == "diabetes" else "category"}
        if "image" in columns:
            known["image"] = "image"
        return Setting(self.name, known=known, target=[target])

    def _remote(self) -> Columns:
        folder = self._folder()
        if self.name == "cifar10" and not parquet_files(folder):
            columns, self._splits = read_cifar10(folder)
            return columns
        inner = Images(folder, DEFAULTS)
        columns, self._splits = inner.columns(), inner.given_splits()
        if self.name == "fashion-mnist":
            columns = Columns({"image": columns["image"], "label": _named(columns["label"], FASHION)})
        elif self.name == "cifar10":
            columns = Columns({"image": columns["image"], "label": columns["label_name"]})
        return columns

    def _folder(self) -> Path:
        """Where the files are; fetched where that was asked.

        Raises:
            DataError: they are nowhere; says both ways to get them.
        """
        given = os.environ.get("FATHOM_DATA")
        cached = cache_folder() / "data" / self.name
        for folder in ([Path(given) / self.name] if given else []) + [cached]:
            if folder.is_dir() and _complete(self.name, folder):
                return folder
        if not self.options.download:
            looked = f"{given}/{self.name} and {cached}" if given else str(cached)
            raise DataError(
                f"The set '{self.name}' is not on this machine (looked in {looked}). Either set "
                "FATHOM_DATA to a folder that "
                f"holds {self.name}/, or add --download (data.download=true) to fetch it."
            )
        for remote in REMOTES[self.name]:
            fetch(remote, cached / remote.name)
        if self.name == "cifar10":
            unpack_cifar10(cached / REMOTES["cifar10"][0].name, cached)
        origin = REMOTES[self.name][0].url.rsplit("/", 1)[0]
        self.reading_notes.append(f"Fetched {self.name} from {origin} into {cached}.")
        return cached


def _complete(name: str, folder: Path) -> bool:
    if name == "cifar10":
        return bool(parquet_files(folder)) or all(
            (folder / file).is_file() for files in CIFAR_PARTS.values() for file in files
        )
    return {"train", "test"} <= set(idx_files(folder))


def _named(labels: Any, names: list[str]) -> Any:
    return pc.take(pa.array(names), labels.combine_chunks())


def _shipped(name: str) -> Columns:
    """A set of scikit-learn as columns."""
    from sklearn import datasets

    load: Callable[[], Any] = getattr(datasets, f"load_{name.replace('-', '_')}")
    bunch = load()
    if name == "digits":
        image = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), 0..16 -> 0..255
        return Columns({"image": image, "label": bunch.target.astype(np.int64)})
    columns: dict[str, Any] = {str(n): bunch.data[:, i].copy() for i, n in enumerate(bunch.feature_names)}
    names = getattr(bunch, "target_names", None)
    columns["target"] = bunch.target if names is None else pa.array([str(names[code]) for code in bunch.target])
    return Columns(columns)


# ---------------------------------------------------------------- fetching


@contextmanager
def _fetching(remote: Remote) -> Iterator[None]:
    try:
        yield
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{remote.url} could not be fetched: {reason}. Try again, or fetch it by hand and set "
            "FATHOM_DATA to the folder above it."
        ) from error


def fetch(remote: Remote, place: Path) -> None:
    """Fetch a file, unless it is there.

    The bytes are written beside and renamed after their checksum was found right.

    Raises:
        DataError: the address does not answer, or the bytes are other ones.
        RunError: the disk is full.
    """
    if place.is_file() and _sha256(place) == remote.sha256:
        return
    beside = place.with_name(f".{place.name}.{os.getpid()}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with _fetching(remote), urllib.request.urlopen(remote.url, timeout=60) as answer:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                file = open(beside, "wb")  # noqa: SIM115 (the error of opening is another one than that of reading)
            except OSError as error:
                raise disk_error(place, 0, error) from error
            with file:
                while part := answer.read(1 << 20):
                    digest.update(part)
                    size += len(part)
                    _write(file, part, place, size)
                file.flush()
                os.fsync(file.fileno())
        if digest.hexdigest() != remote.sha256:
            raise DataError(
                f"{remote.url} gave {size} bytes with the SHA-256 {digest.hexdigest()[:16]}..., and "
                f"{remote.sha256[:16]}... is "
                "expected. Nothing was kept. Try again, or fetch it by hand and set FATHOM_DATA to the "
                "folder above it."
            )
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)


def _write(file: Any, part: bytes, place: Path, size: int) -> None:
    try:
        file.write(part)
    except OSError as error:
        raise disk_error(place, size, error) from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack_cifar10(archive: Path, folder: Path) -> None:
    """Copy the six batches out of the archive: regular files of the expected names and sizes, and
    nothing else."""
    wanted = {name for names in CIFAR_PARTS.values() for name in names}
    found = set()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if not member.isfile() or name not in wanted or name in found or member.size % CIFAR_ROW:
                    continue
                handle = tar.extractfile(member)
                assert handle is not None, "a regular file has content"
                _place(folder / name, handle)
                found.add(name)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive} is a damaged archive ({error}). Delete it and fetch it again.") from error
    if missing := sorted(wanted - found):
        raise DataError(f"{archive} lacks {shorten(missing)}. Delete it and fetch it again.")


def _place(place: Path, handle: Any) -> None:
    beside = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            while part := handle.read(1 << 20):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    except OSError as error:
        raise disk_error(place, CIFAR_ROW * 10_000, error) from error
    finally:
        beside.unlink(missing_ok=True)


def read_cifar10(folder: Path) -> tuple[Columns, dict[str, Index]]:
    """The binary version: rows of one label byte and 3 x 32 x 32 bytes, channels first."""
    images, labels = [], []
    splits: dict[str, Index] = {}
    start = 0
    for part, names in CIFAR_PARTS.items():
        begin = start
        for name in names:
            data = np.fromfile(folder / name, np.uint8)
            if len(data) == 0 or len(data) % CIFAR_ROW:
                _damaged(folder / name, len(data))
            rows = data.reshape(-1, CIFAR_ROW)
            if rows[:, 0].max() >= len(CIFAR10):
                _damaged(folder / name, len(data))
            labels.append(rows[:, 0])
            images.append(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # (N, 32, 32, 3)
            start += len(rows)
        splits[part] = np.arange(begin, start)
    words = pa.array(CIFAR10).take(pa.array(np.concatenate(labels).astype(np.int64)))
    return Columns({"image": np.concatenate(images), "label": words}), splits


def _damaged(path: Path, size: int) -> NoReturn:
    raise DataError(
        f"{path} is damaged: {size} bytes are no rows of {CIFAR_ROW} bytes with a label of 0 to 9. "
        "Delete it and fetch it again."
    )
