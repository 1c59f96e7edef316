"""`fathom list KIND`: every component with its hyperparameters, and every key of a recipe with its default and help."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from fathom.core.errors import FathomError, unknown
from fathom.core.recipe import Data, StageTable, Training
from fathom.core.registry import REGISTRIES, Entry, Hyperparameter, algorithms, augmentations, fields, networks
from fathom.verbs.counting import counted

PLANNED = "The plan chooses other defaults where your data call for them; `fathom plan DATA` shows those of your data."


def listing(kind: str = "networks") -> list[dict[str, Any]]:
    """What there is of one kind.

    Args:
        kind: networks, fields, sources, algorithms or augmentations; keys, optimizers, schedules or losses.

    Returns:
        name, summary, what the decorator states, and "hyperparameters" (name, default, search, help); of networks of
        pictures also "counted" (parameters by their defaults, and at: for which pictures).

    Raises:
        FathomError: there is no such kind.
    """
    made = {**dict.fromkeys(REGISTRIES, _components), "keys": _keys, "losses": _losses, **dict.fromkeys(CHOICES, _choices)}
    if kind not in made:
        raise FathomError(unknown("list of", kind, made))
    return made[kind](kind)


def _components(kind: str) -> list[dict[str, Any]]:
    return [_component(entry, kind) for entry in REGISTRIES[kind]]


def _component(entry: Entry, kind: str) -> dict[str, Any]:
    told = {key: value for key, value in entry.about.items() if isinstance(value, str | int | tuple) or value is None}
    planned = {"planned": PLANNED} if entry.about.get("training") else {}
    size = counted(entry) if kind == "networks" else None
    sized = {"counted": {"parameters": size.parameters, "at": size.at}} if size else {}
    knobs = {"hyperparameters": _knobs(entry.hyperparameters)}
    return {"name": entry.name, "summary": entry.summary, **told, **sized, **planned, **knobs}


def _knobs(knobs: Mapping[str, Hyperparameter], prefix: str = "") -> list[dict[str, Any]]:
    return [
        {"name": prefix + name, "default": knob.default, "search": knob.search, "help": knob.help}
        for name, knob in knobs.items()
    ]


def _keys(kind: str) -> list[dict[str, Any]]:
    """Every key that a recipe may hold, as it is typed: section.key."""
    data = {name: info for name, info in Data.model_fields.items() if name != "fields"}
    sections = [_section("data", "What is learnt from what, and how rows are divided.", _of_model(data, "data."))]
    sections += [
        _section(
            f"data.{entry.name}", f"Options of every {entry.name} field.",
            _knobs(entry.hyperparameters, f"data.{entry.name}."),
        )
        for entry in fields
        if entry.hyperparameters
    ]  # fmt: skip
    sections.append(_section("training", "How it is learnt.", _of_model(Training.model_fields, "training.")))
    strengths = [_key(f"augment.{entry.name}", None, _range(entry)) for entry in augmentations]
    sections.append(_section("augment", "Changes of the training rows, drawn at random; none where not given.", strengths))
    for registry, prefix in ((networks, "network."), (algorithms, "")):
        sections += [
            _section(
                f"network.name={entry.name}" if prefix else entry.name, entry.summary,
                _knobs(entry.hyperparameters, prefix or f"{entry.name}."),
            )
            for entry in registry
        ]  # fmt: skip
    stages = _of_model(StageTable.model_fields, "stage.")
    return [*sections, _section("[[stage]]", "One stretch of training; a recipe file may hold several.", stages)]


def _section(name: str, summary: str, keys: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "summary": summary, "hyperparameters": keys}


def _key(name: str, default: Any, help: str) -> dict[str, Any]:
    return {"name": name, "default": default, "search": None, "help": help}


def _range(entry: Entry) -> str:
    low, high = entry.about["range"]
    return f"{entry.summary.rstrip('.')} (from {low} to {high})"


def _of_model(infos: Mapping[str, FieldInfo], prefix: str) -> list[dict[str, Any]]:
    return [
        _key(prefix + name, info.default if not info.is_required() else None, _help(info)) for name, info in infos.items()
    ]


def _help(info: FieldInfo) -> str:
    choices = ", ".join(map(str, _literals(info.annotation)))
    return "; ".join(part for part in (choices, info.description) if part)


def _literals(kind: Any) -> list[Any]:
    """The words that a type allows, where it names them."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [word for part in typing.get_args(kind) for word in _literals(part)]


CHOICES = {"optimizers": "optimizer", "schedules": "schedule"}  # kind -> key of `training`


def _choices(kind: str) -> list[dict[str, Any]]:
    key = CHOICES[kind]
    info = Training.model_fields[key]
    return [_section(word, _chosen(key, word, word == info.default), []) for word in _literals(info.annotation)]


def _chosen(key: str, word: str, is_default: bool) -> str:
    return f"training.{key}={word}" + (" (where nothing else is said)" if is_default else "")


def _losses(kind: str) -> list[dict[str, Any]]:
    """The losses of each kind of target; the first is the default."""
    made = []
    for entry in fields:
        named: Mapping[str, Callable[..., Any]] = getattr(entry.make, "losses", {})
        made += [
            _section(name, f"{(loss.__doc__ or '').partition('.')[0]}, of {entry.name} targets: supervised.loss={name}", [])
            for name, loss in named.items()
        ]
    return made
