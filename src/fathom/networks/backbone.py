"""Pretrained backbones for pictures: what was learnt from a million photos, and a head of one's own.

    efficientnet-lite0        Fathom's own blocks and the weights of a package whose file is listed by checksum
    timm:NAME                 any model of timm (resnet50.a1_in1k, vit_small_patch16_224.augreg_in21k ...)
    torchvision:NAME          any classifier of torchvision (resnet50, convnext_tiny ...)
    hf:OWNER/NAME, a folder   a vision model in Hugging Face layout

    pixels ─standardized by the field─▶ Restored ─as published─▶ body ─(B, D)─▶ LayerNorm ─▶ Dropout ─▶ head

    tune = "all"     the head learns first, on features that are computed once; then all learn, the body slower than the
                     head and its lower parts slower than the upper ones: two [[stage]] tables of the recipe. Batch
                     normalization keeps the statistics of a million photos, since those of a few batches are worse
    tune = "head"    the body stays as it was published

A run's own folder holds all weights. It is loaded without the file or hub that they came from; only a body that another
library builds needs that library.

In comments: B rows, C channels, H x W places, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.contract import Schema
from fathom.core.device import cores
from fathom.core.errors import FathomError
from fathom.fields import published
from fathom.networks.efficientnet import EfficientNet, published_names
from fathom.networks.parts import output_size, rows_alike, unfit
from fathom.networks.reading import (
    BODY_RATE,
    HEAD_RATE,
    HEAD_SHARE,
    IMAGENET,
    SIDE,
    Restored,
    in_bytes,
    normalization_globs,
)

WEIGHTS = "efficientnet-lite0"  # where nobody names others
LIBRARIES = ("timm", "torchvision", "hf")


@dataclass(frozen=True)
class Body:
    """A published body and what it expects.

    Args:
        module: (B, 3, H, W) pixels as published -> (B, D) features.
        mean, std: of each channel, in bytes: it reads (byte - mean) / std.
        tensors: its published weights by the names of `module`.
        depth: its parts from the input up, as prefixes of parameters.
    """

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tensors: Callable[[], Mapping[str, Tensor]]
    depth: tuple[str, ...] = field(default=())


# ---------------------------------------------------------------- bodies


def body_of(weights: str, config: Mapping[str, Any]) -> Body:
    """Build a body, its weights still random.

    Args:
        weights: as the user wrote it.
        config: of a Hugging Face model (see `hugging_face_config`); empty for others.

    Raises:
        FathomError: there is no such name, or the library that builds it is not installed.
    """
    library, _, name = weights.partition(":")
    if library == "timm":
        return _timm(name)
    if library == "torchvision":
        return _torchvision(name)
    if config:
        return _hugging_face(config, weights)
    published.require_listed(weights, "image", "network.weights")
    return _lite0()


def _lite0() -> Body:
    """EfficientNet-Lite0 (Liu 2020), which reads (byte - 127) / 128."""
    module = EfficientNet("lite0", 3, 1)
    depth = module.depth
    return Body(_Features(module), (127.0,) * 3, (128.0,) * 3, _lite0_tensors, tuple(f"net.{part}" for part in depth))


def _lite0_tensors() -> dict[str, Tensor]:
    theirs = published.converted("efficientnet-lite0")
    names = {ours: name for ours, name in published_names("lite0").items() if not ours.startswith("head.")}
    return {f"net.{ours}": theirs[name] for ours, name in names.items()}


class _Features(nn.Module):
    """The body of a network that can be cut in two (see `core/features.py`), without its head."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        net.head = nn.Identity()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        made: Tensor = self.net.features(images)
        return made


def _missing(library: str, weights: str) -> FathomError:
    return FathomError(
        f"network.weights = '{weights}' is built by the library {library}, which is not installed. "
        f"Install it: pip install {library}, or use the backbone that needs none: network.weights={WEIGHTS}"
    )


def _timm(name: str) -> Body:
    """A model of timm, which names its own normalization."""
    try:
        import timm
    except ImportError as error:
        raise _missing("timm", f"timm:{name}") from error
    try:
        module = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise FathomError(f"timm knows no model '{name}' ({_first_line(error)}). See timm.list_models().") from error
    expected = timm.data.resolve_model_data_config(module)

    def tensors() -> Mapping[str, Tensor]:
        made = timm.create_model(name, pretrained=True, num_classes=0)
        return dict(made.state_dict())

    return Body(module, *in_bytes(expected["mean"], expected["std"]), tensors)


def _torchvision(name: str) -> Body:
    """A classifier of torchvision, without its last layer."""
    try:
        from torchvision import models
    except ImportError as error:
        raise _missing("torchvision", f"torchvision:{name}") from error
    try:
        listed = models.get_model_weights(name).DEFAULT
    except ValueError as error:
        raise FathomError(
            f"torchvision knows no model '{name}' ({_first_line(error)}). See torchvision.models.list_models()."
        ) from error
    module: nn.Module = models.get_model(name, weights=None)
    last = without_last_linear(module)
    expected = listed.transforms()

    def tensors() -> Mapping[str, Tensor]:
        # The listed file has its checksum in its name; it is read as tensors alone (law 5).
        made = torch.hub.load_state_dict_from_url(listed.url, progress=False, check_hash=True, weights_only=True)
        return {key: tensor for key, tensor in made.items() if not key.startswith(f"{last}.")}

    return Body(module, *in_bytes(expected.mean, expected.std), tensors)


def without_last_linear(module: nn.Module) -> str:
    """Let features through where the classes were; returns the name of the layer that is gone.

    Raises:
        FathomError: the network has no linear layer.
    """
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise FathomError("The network has no linear layer at its end, so that no head can take its place.")
    parent, _, own = linear[-1].rpartition(".")
    setattr(module.get_submodule(parent), own, nn.Identity())
    return linear[-1]


class _HuggingFace(nn.Module):
    """A vision model of transformers: the first token of what is a row of tokens, the mean of what is a map."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        states: Tensor = self.net(pixel_values=images).last_hidden_state
        return states.mean((2, 3)) if states.ndim == 4 else states[:, 0]


def _hugging_face(config: Mapping[str, Any], weights: str) -> Body:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise _missing("transformers", weights) from error
    model = {key: value for key, value in config["model"].items() if key not in ("model_type", "auto_map")}
    try:
        net: nn.Module = AutoModel.from_config(AutoConfig.for_model(config["model"]["model_type"], **model))
    except (ValueError, KeyError, TypeError) as error:
        raise FathomError(
            f"transformers cannot build the backbone '{config['model']['model_type']}': {_first_line(error)}"
        ) from error

    def tensors() -> Mapping[str, Tensor]:
        files = published.find(_plain_name(weights), "image")
        prefix = f"{getattr(net, 'base_model_prefix', '')}."
        found = published.tensors(files, config["files"])
        named = {f"net.{name.removeprefix(prefix)}": tensor.float() for name, tensor in found.items()}
        ours = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
        unread = {name: tensor for name, tensor in ours.items() if "pooler" in name}  # decides nothing that we read
        return {**unread, **{name: tensor for name, tensor in named.items() if name in ours}}

    return Body(_HuggingFace(net.float()), *in_bytes(config["mean"], config["std"]), tensors)


def hugging_face_config(weights: str) -> dict[str, Any]:
    """What a vision model is built from, plain JSON for the recipe, so that a run needs its folder no more.

    Returns:
        "model" (config.json), "files" (checksums of the weights), "mean", "std" (of shares) and "size".

    Raises:
        FathomError: the folder or name is not there, or is none of a vision model.
    """
    files = published.find(_plain_name(weights), "image")
    told = files.tree(published.PREPROCESSOR) if files.has(published.PREPROCESSOR) else {}
    model = files.tree(published.CONFIG)
    if not isinstance(model.get("model_type"), str):
        raise FathomError(
            f"{files.place / published.CONFIG} names no model_type, so that nothing can be built from it."
        )
    size = told.get("crop_size") or told.get("size") or model.get("image_size") or SIDE
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge") or SIDE
    mean, std = told.get("image_mean") or IMAGENET[0], told.get("image_std") or IMAGENET[1]
    sums = {name: published.checksum(files.read(name)) for name in published.weight_files(files)}
    return {"model": model, "files": sums, "mean": list(mean), "std": list(std), "size": int(size)}


def _plain_name(weights: str) -> str:
    return weights.removeprefix("hf:")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


# ---------------------------------------------------------------- the network


class PretrainedPicture(nn.Module):
    """A picture's features, and ordinary inputs beside it -> one row of outputs.

    Args:
        schema: one input of kind image.
        body: published.
        dropout: share of features silenced in training.
        tune: "head" or "all".
    """

    head_share, head_rate, body_rate = HEAD_SHARE, HEAD_RATE, BODY_RATE

    def __init__(self, schema: Schema, body: Body, dropout: float, tune: str) -> None:
        super().__init__()
        items = list(schema.inputs.values())
        self.place = next(i for i, item in enumerate(items) if item.kind == "image")
        state = items[self.place].state
        self.restored = Restored(state, body.mean, body.std)
        self.body = body.module
        self.published = body.tensors
        self.depth = tuple(f"body.{part}" for part in body.depth)
        self.settled = tuple(f"body.{glob}" for glob in normalization_globs(self.body))
        width = self._width(items[self.place].shape)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # one scale for every body, so that one rate fits
        self.dropout = nn.Dropout(dropout)
        beside = sum(math.prod(other.shape) for i, other in enumerate(items) if i != self.place)
        self.head = nn.Linear(width + beside, output_size(schema))
        if tune == "head":
            self.rates = {"*": 1.0, "body.*": 0.0}

    @torch.no_grad()
    def _width(self, shape: tuple[int, ...]) -> int:
        """D, seen from one picture, since each library calls it by another name."""
        learns = self.body.training
        made = self.body.eval()(torch.zeros(1, 3, *shape[1:]))
        self.body.train(learns)
        if made.ndim != 2:
            raise FathomError(f"The body gives {tuple(made.shape)} for one picture; a row of features is needed.")
        return int(made.shape[1])

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, C, H, W) picture and (B, ...) others -> (B, outputs)."""
        return self.decide(self.features(*inputs))

    def features(self, *inputs: Tensor) -> Tensor:
        """(B, C, H, W) picture and (B, ...) others -> (B, D)."""
        vector = self.norm(self.body(self.restored(inputs[self.place])))
        others = [x.flatten(1) for i, x in enumerate(inputs) if i != self.place]
        return torch.cat([vector, *others], 1)

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        return self.head(self.dropout(features))

    def begin(self) -> None:
        """Put the published weights in place, before training; a saved run brings its own.

        Raises:
            FathomError: the files are not there, or are not those that are listed.
        """
        tensors, own = self.published(), self.body.state_dict()
        wrong = next((n for n, t in own.items() if n not in tensors or tensors[n].shape != t.shape), None)
        if wrong is not None:
            raise FathomError(f"The published weights hold no '{wrong}' of shape {tuple(own[wrong].shape)}.")
        self.body.load_state_dict({name: tensors[name] for name in own})


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The working size is the body's own. What the user says comes before all of it.

    Args:
        options: the network's.
    """
    tune, weights = options["tune"] or "all", options["weights"] or WEIGHTS
    settled: dict[str, Any] = {
        "network.weights": weights,
        "network.tune": tune,
        "data.image.size": SIDE,
        "training.batch": 32,
        "training.threads": cores(),  # a backbone is fastest on all of them; a trial would take longer than it saves
    }
    if weights.startswith("hf:") or Path(published.absolute(weights)).is_dir():
        config = options["config"] or hugging_face_config(published.absolute(weights))
        settled.update({"network.weights": published.absolute(weights), "network.config": config})
        settled["data.image.size"] = config["size"]
    return settled


def check(weights: str) -> None:
    """Refuse weights that cannot be had, before a run begins; one that goes on needs them no more.

    Raises:
        FathomError: their package is not installed.
    """
    if weights in published.LISTED:
        published.find(weights, "image")


def epochs(rows: int) -> int:
    """Passes over the training rows: five, or as many as make a hundred steps of few rows.

    Args:
        rows: of the training split.
    """
    return max(5, min(100, 3_200 // max(rows, 1)))


def takes(schema: Schema) -> bool:
    """Whether one of the inputs is a picture, and all rows are alike."""
    return rows_alike(schema) and sum(item.kind == "image" for item in schema.inputs.values()) == 1


def build(schema: Schema, weights: str, config: Mapping[str, Any], dropout: float, tune: str) -> PretrainedPicture:
    """A published backbone and a linear head.

    Raises:
        FathomError: the inputs or targets do not fit, or the backbone cannot be had.
    """
    if not takes(schema):
        raise unfit(schema, "pretrained", "one picture, with ordinary inputs beside it or none")
    return PretrainedPicture(schema, body_of(weights, config), dropout, tune)
