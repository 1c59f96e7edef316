"""Transfer: what a network takes over from an earlier run or a published file, and how it learns from there.

    origin_of(location)        a run folder, its model/, or a .safetensors file   -> Origin
    beneath(tree, origin)      the earlier network and reading of the data as defaults beneath what the user said
    around(tree, ...)          the earlier network as a part of another one
    written, remembered        what a run keeps of its origin
    match(model, ...)          the tensors that are taken over, and those that start anew  -> Match
    stage_tables(module, ...)  head first, then all with rates that fall with depth

Tensors go by name and shape. The last layer starts anew wherever other things are asked than were learnt, even where its
shape agrees by chance. A run that was begun so needs what it came from no more once it has a checkpoint.

A file says less than a run. Of a network whose file has a known layout (`networks/reading.py`) the shapes in it say which
form it is for, and with it all else: torchvision's weights are read at 224 pixels, through the published stem, standardized
by ImageNet's mean and spread. What the user says comes before that and is told, but for a form that the weights do not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.contract import Model, Schema
from fathom.core.errors import DamagedError, FathomError, RunError, hint
from fathom.core.features import head_of
from fathom.core.prepare import heirs
from fathom.core.recipe import FROM, OWN, network_name, options_of
from fathom.core.registry import networks
from fathom.core.run import HEADER, RunFolder
from fathom.deliver.bundle import read_weights
from fathom.networks.parts import image_shape
from fathom.networks.reading import SIDE, Layout, Restored

# Shares of all steps: while the head learns on kept features a step costs next to nothing, and what is random settles
# early; then the body follows (Howard & Ruder 2018 thaw little by little; Kumar et al. 2022 show why the head goes first).
HEAD_SHARE = 0.3
# Of the part of a body next to the head, as a multiple of the head's rate. Chosen on validation rows of clothes, from a small
# network that knew digits: 0.3 did better than 0.1 and than 1.
BODY_RATE = 0.3
FALL = 0.9  # of the rate from one part of a body to the one below
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".keras")
WEIGHTS = "weights.safetensors"  # of a run, beside its model.json
SHOWN = 4  # names of tensors in a sentence
WHOLE = {"size": None, "fit_by": "stretch", "views": 1}  # how pictures are read in which something is to be found
OF_SOURCE = ("continuous",)  # options that the data decide: rows may follow a book
COUNTER = ".num_batches_tracked"  # of batch normalization, which nothing here reads; old files have none
BATCH = 32  # pictures of 224 x 224 that are learnt from at once


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Args:
        location: what the user named.
        tensors: role -> name in the `Model` -> tensor; one role "" where a file names none.
        network: the network's table of a run; empty for a file.
        schema: fitted inputs and targets of a run; empty for a file.
    """

    location: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    network: Mapping[str, Any]
    schema: Schema

    @property
    def shown(self) -> str:
        """The location as it is shortest from here."""
        path, here = Path(self.location), Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else self.location

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of the tensor that a file calls so, within a part that wraps the whole network or not; None where there is none."""
        tensors = self.of_role("")
        names = [key.removeprefix("module.") for key in tensors]
        found = next((tensors[f"module.{more}{name}"] for more in ("", _wrap(names)) if f"{more}{name}" in names), None)
        return None if found is None else tuple(found.shape)

    def of_role(self, role: str) -> Mapping[str, Tensor]:
        """The tensors for a role: those of the same one, or of the only one."""
        alone = next(iter(self.tensors.values())) if len(self.tensors) == 1 else {}
        return self.tensors.get(role, alone)

    def asked(self, schema: Schema) -> bool:
        """Whether the same was asked there: targets of the same kinds, with the same classes, in the same order."""
        ours, theirs = list(schema.targets.values()), list(self.schema.targets.values())
        return len(ours) == len(theirs) > 0 and all(a.is_alike(b) for a, b in zip(ours, theirs, strict=True))


# ---------------------------------------------------------------- where they come from


def origin_of(location: str) -> Origin:
    """Read what the user named with `--from`.

    Args:
        location: a run folder or its model/, the name of a run under runs/, or a .safetensors file.

    Raises:
        RunError: it is not there, is none of these, or is damaged.
    """
    path = Path(location)
    path = path.parent if (path.parent / "model.json").is_file() and path.name == WEIGHTS else path
    if path.suffix == ".safetensors":
        return Origin(location, {"": _file_tensors(path)}, {}, Schema({}))
    if path.is_file():
        raise RunError(_no_origin(path))
    folder = path if (path / "model.json").is_file() else RunFolder.open(location).file("model")
    if not (folder / "model.json").is_file():
        raise RunError(
            f"{folder.parent} has not finished, so it has no weights to begin with. "
            f"Go on with: fathom fit --resume {folder.parent}"
        )
    about, tensors = read_weights(folder)
    return Origin(location, tensors, about["network"], _as_read(Schema.from_json(about["schema"])))


def _as_read(schema: Schema) -> Schema:
    """A text that was learnt by itself was read as well: it is an input for what comes after."""
    texts = {name: item for name, item in schema.targets.items() if item.kind == "text"}
    return schema if schema.inputs else replace(schema, inputs=texts)


def written(earlier: Schema, began: Sequence[str]) -> dict[str, Any]:
    """What environment.json of a run keeps of its origin, which a resume and a later evaluation then need no more.

    Args:
        earlier: the schema whose states the inputs took over.
        began: what was taken over, in sentences.
    """
    return {"notes": list(began), "schema": earlier.to_json()}


def remembered(environment: Mapping[str, Any]) -> tuple[Schema | None, list[str]]:
    """What `written` wrote, from environment.json of a run: None and nothing where it began from no other."""
    told = environment.get("transfer")
    return (Schema.from_json(told["schema"]), list(told["notes"])) if told else (None, [])


def _no_origin(path: Path) -> str:
    if path.suffix in PICKLED:
        return (
            f"{path} is a {path.suffix} file, which can hold code that runs when it is read, so Fathom never reads it. "
            "Where you trust the file, write its tensors as safetensors, in Python: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
        )
    return f"network.from = '{path}' is neither a run folder nor a .safetensors file; give one of them."


def _file_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that was written elsewhere, under the names that they have in a `Model`.

    Raises:
        RunError: it is not there, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise RunError(f"There is no file {path}, from which the network should begin (network.from).")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > HEADER:
        raise DamagedError(f"{path} is no safetensors file, or is damaged: its header claims {size:,} bytes.")
    try:
        with safe_open(path, "pt") as opened:
            return {f"module.{name}": opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{path} is damaged ({error}). Take it from a copy.") from error


def beneath(tree: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """What the earlier run says, beneath what the user said: its network, and how it read inputs of each kind.

    Args:
        tree: the user's recipe as nested tables.
        origin: of its weights.

    Raises:
        FathomError: no network is named, and the origin names none that can be built.
    """
    result = {**tree, "network": dict(tree.get("network", {})), "data": dict(tree.get("data", {}))}
    named = network_name(result["network"])
    if named is None and not origin.network:
        raise FathomError(
            f"{origin.location} holds tensors and names no network for them. Say which it is, as in: --network resnet50"
        )
    theirs = origin.network.get("name")
    if named is None and theirs == OWN:
        raise FathomError(
            f"{origin.location} trained your own module {origin.network['class']}, whose code is not saved. "
            f"Give it in Python: fathom.fit(data, from_={origin.location!r}, network={origin.network['class']}())"
        )
    if theirs is not None and theirs != OWN and named in (None, theirs):
        result["network"] = {"name": theirs, **options_of(origin.network), **result["network"]}
    for item in origin.schema.inputs.values():
        wanted = {key: value for key, value in item.options.items() if value is not None and key not in OF_SOURCE}
        result["data"][item.kind] = {**wanted, **result["data"].get(item.kind, {})}
    layout = None if origin.network or named in (None, OWN) else networks[named].about.get("layout")
    return result if layout is None else _in_form(result, layout, origin)


def around(tree: Mapping[str, Any], name: str, options: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """The recipe of a network that is built around the body of another one, beneath what the user said.

    Such a network says where something is, so pictures are read whole and at the size that these data ask for; how large the
    pictures of the earlier run were decides nothing.

    Args:
        tree: the user's recipe as nested tables.
        name: of the network.
        options: of it, which name the other network and its options (`backbone`, `body`); none where a file names neither.
        origin: of the weights.
    """
    given = tree.get("network", {})
    network = {"name": name, **options, **given}
    if options and network["backbone"] == options["backbone"]:
        network["body"] = {**options["body"], **given.get("body", {})}
    inner = str(network.get("backbone"))
    layout = networks[inner].about.get("layout") if not origin.network and inner in networks else None
    if layout is not None:
        formed = _in_form({"network": {"name": inner, **network.get("body", {})}, "data": {}}, layout, origin)
        network["body"] = options_of(formed["network"])
    data = tree.get("data", {})
    return {**tree, "network": network, "data": {**data, "image": {**WHOLE, **data.get("image", {})}}}


def _in_form(tree: Mapping[str, Any], layout: Layout, origin: Origin) -> dict[str, Any]:
    """The form that a file of a known layout is for, and how its pictures were read, beneath what the user said.

    Args:
        tree: nested tables, in which a network is named.
        layout: of this network's files.
        origin: the file.

    Raises:
        FathomError: the file is for another network, or the user asks for the other form.
    """
    telling, first = origin.shape(layout.telling), origin.shape(layout.first)
    if telling is None or first is None:
        return dict(tree)  # `match` says what the file does not tell
    name, asked = tree["network"]["name"], tree["network"].get("stem", "auto")
    form = layout.form(telling)
    if form is None:
        raise FathomError(
            f"{origin.location} is for another network: its '{layout.telling}' has shape {telling}, and that of {name} has "
            f"{layout.full} as published (network.stem=full) or {layout.small} for small pictures (network.stem=small). "
            "Choose the network that the file was made for, with --network."
        )
    if asked not in ("auto", form):
        raise FathomError(
            f"network.stem = '{asked}' builds a '{layout.telling}' of shape {getattr(layout, asked)}; that of "
            f"{origin.location} has {telling}, which is network.stem={form}. Leave network.stem out: it follows from the file."
        )
    network = {**tree["network"], "stem": form}
    if not _as_torchvision(form, first):
        return {**tree, "network": network}
    image = {"size": SIDE, **tree["data"].get("image", {})}
    training = {"batch": BATCH, **tree.get("training", {})}
    return {**tree, "network": {"reads": "imagenet", **network}, "data": {**tree["data"], "image": image}, "training": training}


def _as_torchvision(form: str | None, first: Sequence[int]) -> bool:
    """Whether a file of this form, whose first filters have this shape, is as torchvision's: the published form, of color."""
    return form == "full" and first[1] == 3


# ---------------------------------------------------------------- what is taken over


@dataclass(frozen=True)
class Match:
    """Tensors of a model that an origin has.

    Args:
        taken: name -> tensor, of the same name and shape.
        new: names of those that start anew.
        location: of the origin.
        remarks: sentences about how its weights are read here, and how they were read.
    """

    taken: dict[str, Tensor]
    new: list[str]
    location: str
    remarks: Sequence[str] = ()

    def sentence(self) -> str:
        """What was taken over, for the console and the report."""
        total = len(self.taken) + len(self.new)
        names = [name.removeprefix("module.") for name in self.new]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        rest = f"; new: {', '.join(names[:SHOWN])}{more}" if names else ""
        return " ".join([f"Taken over: {len(self.taken)} of {total} tensors from {self.location}{rest}.", *self.remarks])


def match(model: Model, schema: Schema, role: str, origin: Origin) -> Match:
    """The tensors of `model` that begin as the origin has them.

    Args:
        model: of one role, freshly built.
        schema: of the role, fitted.
        role: its name.
        origin: of the weights.

    Raises:
        FathomError: less than half of the tensors below the head are there, or one of a file of a known layout has another
            shape; says which is the first that differs.
    """
    own = model.state_dict()
    borrowed = _borrowed(model.module, origin.of_role(role), own)
    theirs = borrowed or (_spelled(origin.of_role(role), own) if not origin.network else dict(origin.of_role(role)))
    head = f"module.{head_name(model.module)}."
    anew = [f"preprocess.{i}." for i in _strange_inputs(schema, origin)]
    anew += [] if origin.asked(schema) else [head]
    fits = [n for n, t in own.items() if n in theirs and theirs[n].shape == t.shape and not n.startswith(tuple(anew))]
    body = [name for name in own if not name.startswith(head) and (name in theirs or not borrowed)]
    layout = None if origin.network else getattr(model.module, "layout", None)
    differs = layout is not None and any(name in theirs and name not in fits for name in body)
    if 2 * sum(name in fits for name in body) < len(body) or not fits or differs:
        raise FathomError(_misfit(own, theirs, body or list(own), fits, origin))
    taken = {name: theirs[name].to(own[name].dtype) for name in fits}
    bad = next((name for name, tensor in taken.items() if not bool(torch.isfinite(tensor).all())), None)
    if bad is not None:
        raise FathomError(
            f"{origin.location}: tensor '{bad}' holds values that are not finite; begin with other weights."
        )
    new = [name for name in own if name not in taken and (origin.network or not name.endswith(COUNTER))]
    unread = [name for name in theirs if name not in own] if not origin.network else []
    return Match(taken, new, origin.shown, [*_unread(unread), *_reading(layout, model.module, schema, origin)])


def _unread(names: Sequence[str]) -> list[str]:
    """A sentence about tensors of a file that the network has no place for."""
    if not names:
        return []
    shown = ", ".join(name.removeprefix("module.") for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"Not used, since the network has none of these: {shown}{more}."]


def _reading(layout: Layout | None, module: nn.Module, schema: Schema, origin: Origin) -> list[str]:
    """Sentences about how the pictures of a file of a known layout were read, and how these are."""
    if layout is None:
        return []
    telling, first = origin.shape(layout.telling), origin.shape(layout.first)
    if telling is None or first is None:
        return [
            f"The file has no '{layout.telling}' to tell which form it is for; where its weights are torchvision's, give "
            f"network.stem=full network.reads=imagenet data.image.size={SIDE}."
        ]
    restored = any(isinstance(part, Restored) for part in module.modules())
    if not _as_torchvision(layout.form(telling), first):
        return [] if restored else ["It does not say how its pictures were standardized; here the training rows decide."]
    shape = image_shape(schema)
    assert shape is not None, "the network was built"
    told = []
    if not restored:
        told.append("Its weights learnt with ImageNet's mean and spread, and here the training rows decide (network.reads).")
    if shape[1:] != (SIDE, SIDE):
        sides = f"{SIDE} x {SIDE}, and these are {shape[1]} x {shape[2]} (data.image.size)"
        told.append(f"Its weights learnt from pictures of {sides}.")
    return told or [f"Read as they learnt: {SIDE} x {SIDE} pixels, ImageNet's mean and spread."]


def _borrowed(module: nn.Module, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a whole network under the names that its body has in one that is built around it.

    Args:
        module: whose `borrowed` says which of its tensors is which of the other network.
        theirs: "module." and the name there -> tensor.
        own: of our model.

    Returns:
        All of them, those above the body as they are called there; empty where they are of no such network.
    """
    names = {f"module.{name}": f"module.{ours}" for ours, name in (getattr(module, "borrowed", None) or {}).items()}
    inside = {name: tensor for name, tensor in theirs.items() if name.startswith("module.")}
    spelled = _spelled(inside, dict.fromkeys(names, torch.empty(0))) if names else {}
    renamed = {names.get(name, name): tensor for name, tensor in spelled.items()}
    return renamed if sum(name in own for name in renamed) > sum(name in own for name in theirs) else {}


def _spelled(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under our names: a part that wraps the whole network, there or here, is no difference.

    Args:
        theirs: "module." and the name in the file -> tensor.
        own: of our model.
    """
    names = [name.removeprefix("module.") for name in theirs]
    less = _wrap(names)
    more = _wrap(name.removeprefix("module.") for name in own if name.startswith("module."))
    ways = [(cut, add) for cut in ("", less) for add in ("", more)]
    spelled = [
        {f"module.{add}{name.removeprefix(cut)}": theirs[f"module.{name}"] for name in names} for cut, add in ways
    ]
    return max(spelled, key=lambda tensors: sum(name in own for name in tensors))


def _wrap(names: Iterable[str]) -> str:
    """The part that all names begin with, and its dot; nothing where there is none."""
    outer = {name.partition(".")[0] for name in names}
    return f"{outer.pop()}." if len(outer) == 1 else ""


def _strange_inputs(schema: Schema, origin: Origin) -> list[int]:
    """Places of the inputs that stand elsewhere in the earlier run, or are none of its."""
    places, handed_down = list(origin.schema.inputs.values()), heirs(schema, origin.schema)
    return [i for i, name in enumerate(schema.inputs) if places[i : i + 1] != [handed_down.get(name)]]


def _misfit(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], body: Sequence[str], fits: Sequence[str], origin: Origin
) -> str:
    """Why the weights are refused."""
    strange = [name for name in body if name not in fits and not name.endswith(COUNTER)]
    first = next((name for name in strange if name in theirs), strange[0] if strange else body[0])
    plain = first.removeprefix("module.")
    names = [name.removeprefix("module.") for name in theirs]
    shape = tuple(own[first].shape)
    if first in theirs:
        differs = f"'{plain}' has shape {tuple(theirs[first].shape)} there and {shape} here"
    else:
        differs = f"'{plain}', of shape {shape} here, is not there{hint(plain, names)}"
    there = f" (network {origin.network['name']})" if origin.network else ""
    remedy = (
        "Leave --network and its options out to take those of the run."
        if origin.network
        else "Choose the network that the file was made for, with --network, and its options."
    )
    return (
        f"The weights of {origin.location}{there} do not fit this network: {sum(name in fits for name in body)} of its "
        f"{len(body)} tensors below the last layer have the same name and shape there.\n"
        f"The first that differs: {differs}.\n{remedy}"
    )


def put(model: Model, found: Match) -> None:
    """Put what is taken over in place."""
    model.load_state_dict({**model.state_dict(), **found.taken})


# ---------------------------------------------------------------- how it learns from there


def head_name(module: nn.Module) -> str:
    """Where the last layer stands in a network's state: where it says so, else the last linear layer."""
    told = head_of(module)
    if any(name.startswith(f"{told}.") for name, _ in module.named_parameters()):
        return told
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and name]
    return linear[-1] if linear else told


def stage_tables(module: nn.Module, new: Sequence[str]) -> list[dict[str, Any]]:
    """The [[stage]] tables of a network whose body knows something and whose head may not.

    First what is new learns alone, unaugmented, so that features are computed once where that is the head; then all learn,
    the body slower than the head and its lower parts slower than the upper ones (Howard & Ruder 2018, section 3.2).

    Args:
        module: a network. Its `depth` names the parts of its body in order, as prefixes of parameters; `head_share`,
            `head_rate` and `body_rate` say otherwise than is said here; `settled` are globs of what never thaws.
        new: names of the tensors that start anew; nothing needs protection from them where there are none.

    Returns:
        Tables as a recipe has them; none where the head cannot be told from the body.
    """
    head, names = head_name(module), [name for name, _ in module.named_parameters()]
    if not any(name.startswith(f"{head}.") for name in names) or all(name.startswith(f"{head}.") for name in names):
        return []
    parts = dict.fromkeys(_globs([name for name in new if not name.startswith(f"{head}.") and name in names], names), 1.0)
    everything = {"name": "all", "share": 1.0, "rates": {**thawed_rates(module), **parts}}
    if not new:
        return [everything]
    share = float(getattr(module, "head_share", HEAD_SHARE))
    first = {"name": "head", "share": share, "augment": False, "rates": {"*": 0.0, **parts, f"{head}.*": 1.0}}
    return [first, {**everything, "share": round(1 - share, 6)}]


def _globs(new: Sequence[str], names: Sequence[str]) -> list[str]:
    """The largest parts of a network that are all new, as globs.

    Args:
        new: parameters that start anew, the head's apart.
        names: all parameters.
    """
    old = [name for name in names if name not in set(new)]
    globs: dict[str, None] = {}
    for name in new:
        words = name.split(".")
        parts = (f"{'.'.join(words[:i])}." for i in range(1, len(words)))
        part = next((part for part in parts if not any(other.startswith(part) for other in old)), None)
        globs[f"{part}*" if part else name] = None
    return list(globs)


def thawed_rates(module: nn.Module) -> dict[str, float]:
    """Parameter glob -> multiple of the learning rate, rising from the input to the head."""
    slower, head = float(getattr(module, "body_rate", BODY_RATE)), float(getattr(module, "head_rate", 1.0))
    names = [name for name, _ in module.named_parameters()]
    parts = [part for part in getattr(module, "depth", ()) if any(name.startswith(f"{part}.") for name in names)]
    rates = {f"{part}.*": round(slower * FALL ** (len(parts) - 1 - i), 6) for i, part in enumerate(parts)}
    settled = dict.fromkeys(getattr(module, "settled", ()), 0.0)
    return {"*": slower, **rates, **settled, f"{head_name(module)}.*": head}


__all__ = [
    "FROM",
    "Match",
    "Origin",
    "beneath",
    "head_name",
    "match",
    "origin_of",
    "put",
    "stage_tables",
    "thawed_rates",
]
