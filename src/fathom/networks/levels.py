"""Backbones: maps of strides 4, 8, 16 and 32, for networks that must say where something is.

    small              from scratch, residual, as wide as one likes
    NAME, NAME-SIZE    the body of any network of the registry that says of what pieces it is made (resnet, resnet18,
                       resnet50, vgg16, efficientnet-b0 ...), its head left behind
    efficientnet-lite0 one of them, of which published weights are to be had
    timm:NAME          any model of timm that gives maps, where timm is installed; its published weights on request

What makes a network a backbone is stated with it: `@network(..., pieces=f)`, where `f` returns of a built module the parts of
its body that follow each other; `as_body={...}` may name options for this use. The last piece of each stride gives the map.
Where a body ends before stride 32, filters that halve the map go on; one whose finest map is coarser than 4 is none. Each
backbone gives a list of maps, the finest first, and has

    widths      the channels of each map
    borrowed    its tensors -> what each is called in the network whose body it is, by which weights of a whole network
                find their place (`--from`, published files)

In comments: B rows, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.contract import Field, Schema
from fathom.core.errors import FathomError, unknown
from fathom.core.registry import Entry, fields, networks
from fathom.fields import published
from fathom.networks.efficientnet import published_names
from fathom.networks.parts import is_small
from fathom.networks.reading import Restored, in_bytes
from fathom.networks.resnet import Block

STRIDES = (4, 8, 16, 32)
SMALL = "small"
PUBLISHED = "efficientnet-lite0"
READS = ((127.0,) * 3, (128.0,) * 3)  # it was trained on (byte - 127) / 128
SLOWER = 0.1  # rate of a published backbone as a multiple of the rest
TIMM = "timm:"


class Small(nn.Module):
    """Residual stages (He et al. 2015) after a stem of stride 4.

    Args:
        inputs: channels of the picture.
        widths: filters of each stage.
        blocks: residual blocks of each stage.
    """

    def __init__(self, inputs: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.borrowed: dict[str, str] = {}
        half = max(widths[0] // 2, 8)
        self.stem = nn.Sequential(halved(inputs, half), halved(half, widths[0]))
        stages: list[nn.Module] = []
        for before, width in zip((widths[0], *widths), widths, strict=False):
            first = [halved(before, width)] if stages else []
            stages.append(nn.Sequential(*first, *(Block(width, "relu") for _ in range(blocks))))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map of each stride."""
        return in_turn(self.stem(images), self.stages)


def halved(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3 filters that halve the map, with normalization and activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def in_turn(x: Tensor, stages: nn.ModuleList) -> list[Tensor]:
    """What each stage makes of the one before."""
    levels = []
    for stage in stages:
        x = stage(x)
        levels.append(x)
    return levels


# ---------------------------------------------------------------- the body of another network


class Levels(nn.Module):
    """The body of a network as maps of each stride.

    Args:
        name: of the network, for errors.
        net: the network, freshly built.
        pieces: the parts of its body, one after the other.
        inputs: channels of a picture.

    Raises:
        FathomError: no piece ends with a map of stride 4 or finer.
    """

    def __init__(self, name: str, net: nn.Module, pieces: Sequence[nn.Module], inputs: int) -> None:
        super().__init__()
        strides, widths = measured(pieces, inputs)
        further = onwards(strides[-1], widths[-1])
        pieces = [*pieces, *further]
        strides += [strides[-1] * 2 ** (i + 1) for i in range(len(further))]
        last = ends(name, strides)
        self.widths = tuple([*widths, *[widths[-1]] * len(further)][place] for place in last)
        cuts = [last[0], *(place + 1 for place in last)]
        self.stem = nn.Sequential(*pieces[: cuts[0]])
        self.stages = nn.ModuleList([joined(pieces[start:stop]) for start, stop in pairwise(cuts)])
        theirs = {id(tensor): key for key, tensor in net.state_dict(keep_vars=True).items()}
        ours = self.state_dict(keep_vars=True).items()
        self.borrowed = {key: theirs[id(tensor)] for key, tensor in ours if id(tensor) in theirs}

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map of each stride."""
        return in_turn(self.stem(images), self.stages)


def joined(pieces: Sequence[nn.Module]) -> nn.Module:
    """Pieces as one; a single one keeps its names."""
    return pieces[0] if len(pieces) == 1 else nn.Sequential(*pieces)


@torch.no_grad()
def measured(pieces: Sequence[nn.Module], inputs: int) -> tuple[list[float], list[int]]:
    """Stride and channels of the map after each piece, seen from one picture that every stride divides.

    Args:
        pieces: freshly built, in training mode, and so again afterwards.
        inputs: channels of the picture.
    """
    side = 2 * STRIDES[-1]
    x = torch.zeros(1, inputs, side, side)
    strides, widths = [], []
    for piece in pieces:
        x = piece.eval()(x)
        piece.train()
        strides.append(side / x.shape[-1])
        widths.append(x.shape[1])
    return strides, widths


def onwards(stride: float, width: int) -> list[nn.Module]:
    """Filters that halve a map until stride 32 is reached; none where it is.

    Args:
        stride: at which a body ends.
        width: channels of its last map, which they keep.
    """
    made: list[nn.Module] = []
    while stride * 2 ** len(made) < STRIDES[-1]:
        made.append(halved(width, width))
    return made


def ends(name: str, strides: Sequence[float]) -> list[int]:
    """Places of the last map of strides 4, 8, 16 and 32.

    Raises:
        FathomError: there is none of one of them.
    """
    lacking = [wanted for wanted in STRIDES if wanted not in strides]
    if lacking:
        seen = ", ".join(f"{stride:g}" for stride in dict.fromkeys(strides))
        raise FathomError(
            f"network.backbone = '{name}' gives maps of strides {seen}, and none of stride {lacking[0]}, which is needed to find "
            f"things of every size. Choose another backbone, such as {SMALL} or resnet18."
        )
    return [max(i for i, stride in enumerate(strides) if stride == wanted) for wanted in STRIDES]


def body_of(name: str, picture: Field, options: Mapping[str, Any], inputs: int | None = None) -> Levels:
    """The body of a network of the registry.

    Args:
        name: the network, or "NAME-SIZE" where it has sizes.
        picture: the fitted field of the picture.
        options: of the network; where they say nothing, in the form that it names for this (`as_body`).
        inputs: channels of the picture, where they are not those of the field.

    Raises:
        FathomError: there is no such network, it is not made of pieces, or an option is wrong.
    """
    entry, given = entry_of(name, options)
    given = {**entry.about.get("as_body", {}), **given}
    shape = [inputs or picture.shape[0], *picture.shape[1:]]
    seen = Field.from_json({**picture.to_json(), "state": {**picture.state, "shape": shape}})
    one = fields["number"].make(["one"])  # a head is needed to build it, and left behind
    net = entry.build(Schema({"image": seen}, {"one": one}), "model", **given)
    return Levels(name, net, entry.about["pieces"](net), shape[0])


def entry_of(name: str, options: Mapping[str, Any]) -> tuple[Entry, dict[str, Any]]:
    """The network that a backbone is the body of, and its options.

    Raises:
        FathomError: there is none.
    """
    for network, given in ((name, {}), (name.rpartition("-")[0], {"size": name.rpartition("-")[2]})):
        if network not in networks or "pieces" not in networks[network].about:
            continue
        if given.keys() <= networks[network].hyperparameters.keys():
            return networks[network], {**given, **options}
    raise FathomError(unknown("backbone", name, [*known(), f"{TIMM}NAME"], "network.backbone"))


def inherited(name: str, options: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any] | None:
    """The backbone that is the body of a network which an earlier run trained, as keys of the detector.

    Args:
        name, options: of that network.
        shape: (C, H, W) of its pictures.

    Returns:
        "backbone" and "body"; None where the network is not made of pieces.
    """
    if name not in networks or "pieces" not in networks[name].about:
        return None
    form = {"stem": "small" if is_small(tuple(shape), options["stem"]) else "full"} if "stem" in options else {}
    return {"backbone": name, "body": {**options, **form}}


def known() -> list[str]:
    """The names of all backbones but those of timm."""
    names = [SMALL]
    for entry in networks:
        if "pieces" in entry.about:
            sizes = entry.hyperparameters["size"].search if "size" in entry.hyperparameters else ()
            names += [f"{entry.name}-{size}" for size in sizes] or [entry.name]
    return names


# ---------------------------------------------------------------- published


class Published(nn.Module):
    """A backbone with published weights, which reads pixels as it was trained on them.

    Args:
        state: of the field of the picture: mean and spread of each channel.
        mean, std: of the published network in bytes, three.
        net: the backbone, its weights still random.
        tensors: the published weights by the names of `net`.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
        net: Levels | Timm,
        tensors: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        super().__init__()
        self.restored = Restored(state, mean, std)
        self.net = net
        self.tensors = tensors
        self.widths = net.widths
        self.borrowed = {f"net.{ours}": theirs for ours, theirs in net.borrowed.items()}

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) standardized by the field -> a map of each stride."""
        made: list[Tensor] = self.net(self.restored(images))
        return made

    def begin(self) -> None:
        """Put the published weights in place, before training; a saved run brings its own.

        Raises:
            FathomError: the file is not there, or is not the one that is listed.
        """
        self.net.load_state_dict({**self.net.state_dict(), **self.tensors()})


def _published_lite0(picture: Field) -> Published:
    """EfficientNet-Lite0 (Liu 2020), which reads (byte - 127) / 128."""
    net = body_of(PUBLISHED, picture, {}, inputs=3)

    def tensors() -> dict[str, Tensor]:
        theirs, names = published.converted(PUBLISHED), published_names("lite0")
        return {ours: theirs[names[whole]] for ours, whole in net.borrowed.items()}

    return Published(picture.state, *READS, net, tensors)


class Timm(nn.Module):
    """The maps of a model of timm.

    Args:
        name: of the model, for errors.
        net: built with `features_only`, so that it gives its maps, the finest first.
        inputs: channels of a picture.

    Raises:
        FathomError: it takes pictures of one size only, or what it gives are no such maps.
    """

    def __init__(self, name: str, net: nn.Module, inputs: int) -> None:
        super().__init__()
        self.net = net
        strides, widths = _seen(name, net, inputs)
        self.further = nn.ModuleList(onwards(strides[-1], widths[-1]))
        more = range(1, len(self.further) + 1)
        self.places = ends(name, [*strides, *(strides[-1] * 2**i for i in more)])
        self.widths = tuple([*widths, *(widths[-1] for _ in more)][place] for place in self.places)
        self.borrowed: dict[str, str] = {}

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map of each stride."""
        maps = list(self.net(images))
        maps += in_turn(maps[-1], self.further)
        return [maps[place] for place in self.places]


@torch.no_grad()
def _seen(name: str, net: nn.Module, inputs: int) -> tuple[list[float], list[int]]:
    """Stride and channels of each map that a model of timm gives, from one square picture."""
    side = 2 * STRIDES[-1]
    try:
        maps = [tuple(made.shape) for made in net.eval()(torch.zeros(1, inputs, side, side))]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise FathomError(
            f"'{name}' cannot read pictures of any size ({_first_line(error)}); choose another backbone."
        ) from error
    net.train()
    strange = next((shape for shape in maps if len(shape) != 4 or shape[2] != shape[3]), None)
    if strange is not None:
        raise FathomError(
            f"'{name}' gives {strange} for one picture, and not a map of (1, channels, height, width); choose another backbone."
        )
    return [side / shape[3] for shape in maps], [shape[1] for shape in maps]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _timm(name: str, picture: Field, weights: bool) -> Timm | Published:
    """A model of timm, which names its own normalization.

    Args:
        name: of the model.
        picture: the fitted field of the picture.
        weights: whether its published weights are put in place before training.

    Raises:
        FathomError: timm is not installed, has no such model, or it gives no maps.
    """
    try:
        import timm
    except ImportError as error:
        raise FathomError(
            f"network.backbone = '{TIMM}{name}' is built by the library timm, which is not installed. Install it: pip install "
            f"timm, or take a backbone that needs none: {', '.join(known())}."
        ) from error

    inputs = 3 if weights else picture.shape[0]

    def built(pretrained: bool) -> Any:
        return timm.create_model(name, pretrained=pretrained, features_only=True, in_chans=inputs)

    try:
        net = built(False)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise FathomError(
            f"timm has no model '{name}' that gives maps ({_first_line(error)}). See timm.list_models()."
        ) from error
    levels = Timm(f"{TIMM}{name}", net, inputs)
    if not weights:
        return levels
    expected = timm.data.resolve_model_data_config(net)
    bytes_ = in_bytes(expected["mean"], expected["std"])
    return Published(
        picture.state, *bytes_, levels, lambda: {f"net.{key}": value for key, value in built(True).state_dict().items()}
    )


def check(weights: str) -> None:
    """Refuse weights that cannot be had, before a run begins; one that goes on needs them no more.

    Raises:
        FathomError: their package is not installed.
    """
    if weights == PUBLISHED:
        published.find(PUBLISHED, "image")


def backbone_of(
    name: str, weights: str, picture: Field, options: Mapping[str, Any], widths: Sequence[int], blocks: int
) -> Small | Levels | Timm | Published:
    """A backbone by name.

    Args:
        name: see the top of this file.
        weights: "" for random ones, or the name of published ones.
        picture: the fitted field of the picture.
        options: of the network whose body it is.
        widths, blocks: of the small one.

    Raises:
        FathomError: there is no such backbone, an option is wrong, or no such weights are published for it.
    """
    if weights and (weights != name or not (name == PUBLISHED or name.startswith(TIMM))):
        raise FathomError(
            f"There are no published weights '{weights}' for the backbone {name}. Published are those of {PUBLISHED}: "
            f"network.backbone={PUBLISHED} network.weights={PUBLISHED}, and of timm where it is installed: "
            f"network.backbone={TIMM}NAME network.weights={TIMM}NAME."
        )
    if options and (weights or name == SMALL or name.startswith(TIMM)):
        raise FathomError(
            f"network.body has options of a network of Fathom whose body is the backbone, and network.backbone = '{name}' "
            f"{'has its published form' if weights else 'takes none'}; leave network.body out."
        )
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), picture, bool(weights))
    if weights:
        return _published_lite0(picture)
    return Small(picture.shape[0], widths, blocks) if name == SMALL else body_of(name, picture, options)
