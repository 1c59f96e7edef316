"""Names to components: how one new file with a decorator becomes part of Fathom.

    @network("mlp", paper="...")        networks.register(...)
    def build(schema, role, *, hidden=hyperparameter((128, 64), help="units of each layer")): ...

A `Registry` imports every module of its folder the first time somebody asks for a name. An import error is never
swallowed. A `Hyperparameter` is stated once, as a default in the signature or class body; from there it feeds the
recipe's validation, `fathom list`, the tuner and the docs.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from fathom.core.errors import FathomError, plain, unknown


@dataclass(frozen=True)
class Hyperparameter:
    """One knob: its default, the range a search may try, and a line of help."""

    default: Any
    search: Any = None
    help: str = ""
    type: Any = Any


def hyperparameter(default: Any, search: Any = None, help: str = "") -> Any:
    """State a knob beside the code that reads it.

    Args:
        default: the value where nobody sets one.
        search: what a tuner may try: a tuple `(low, high)`, `(low, high, "log")`, or a list of choices.
        help: one line, no full stop.
    """
    return Hyperparameter(default, search, help)


@dataclass(frozen=True)
class Entry:
    """One registered component.

    Args:
        name: what users type.
        make: the function or class.
        hyperparameters: its knobs by name.
        about: free keyword arguments of the decorator (`paper`, `pros`, `cons`, `suits` ...).
    """

    name: str
    make: Any
    hyperparameters: Mapping[str, Hyperparameter]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the component's docstring."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    def options(self, given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
        """Complete and check `given`.

        Returns:
            The value of every knob, and a sentence for each fault (unknown key, wrong type).
        """
        faults = [
            unknown("key", f"{where}.{key}", [f"{where}.{name}" for name in self.hyperparameters])
            for key in given
            if key not in self.hyperparameters
        ]
        fields: dict[str, Any] = {name: (knob.type, knob.default) for name, knob in self.hyperparameters.items()}
        model = create_model("Options", __config__=ConfigDict(extra="ignore", allow_inf_nan=False), **fields)
        truths = truth_faults(given, {name: knob.type for name, knob in self.hyperparameters.items()}, where)
        if truths:
            return {}, faults + truths
        try:
            checked = model.model_validate(dict(given))
        except ValidationError as error:
            return {}, faults + [sentence(where, fault) for fault in error.errors()]
        return {name: getattr(checked, name) for name in fields}, faults

    def build(self, *args: Any, **given: Any) -> Any:
        """Call the component with every knob filled in.

        Raises:
            FathomError: a knob is unknown or its value does not fit.
        """
        options, faults = self.options(given, self.name)
        if faults:
            raise FathomError("\n".join(faults))
        return self.make(*args, **options)


class Registry:
    """The components of one kind.

    Args:
        kind: what an entry is called in errors ("network").
        package: the folder whose modules register themselves ("fathom.networks").
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def register(self, name: str, **about: Any) -> Callable[[Any], Any]:
        """The decorator. A name may be taken once only."""

        def add(make: Any) -> Any:
            if name in self._entries and self._entries[name].make is not make:
                raise FathomError(f"The {self.kind} '{name}' is registered twice; give one another name.")
            self._entries[name] = Entry(name, make, _knobs(make), about)
            return make

        return add

    def load(self) -> None:
        """Import every module of the folder. Import errors are raised as they are."""
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True

    def __getitem__(self, name: str) -> Entry:
        self.load()
        if name not in self._entries:
            raise FathomError(unknown(self.kind, name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self.load()
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        self.load()
        return iter([self._entries[name] for name in sorted(self._entries)])

    def names(self) -> list[str]:
        """All names, sorted."""
        return [entry.name for entry in self]


def _knobs(make: Any) -> dict[str, Hyperparameter]:
    """The hyperparameters of a function's signature or a class's body, with their types."""
    owners = [cls for cls in reversed(make.__mro__) if cls is not object] if inspect.isclass(make) else [make]
    knobs: dict[str, Hyperparameter] = {}
    for owner in owners:
        stated = vars(owner) if inspect.isclass(owner) else _defaults(owner)
        mine = {name: knob for name, knob in stated.items() if isinstance(knob, Hyperparameter)}
        hints = _hints(owner, mine)
        knobs.update({n: Hyperparameter(k.default, k.search, k.help, hints.get(n, Any)) for n, k in mine.items()})
    return knobs


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(function).parameters.values()}


def _hints(owner: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The types of these names only; other annotations may name what is imported for type checkers alone."""
    annotations = {k: v for k, v in getattr(owner, "__annotations__", {}).items() if k in names}
    holder = type("Hints", (), {"__annotations__": annotations})
    return typing.get_type_hints(holder, vars(sys.modules[owner.__module__]), include_extras=True)


def sentence(where: str, fault: Any) -> str:
    """One pydantic fault as a sentence that names the key, what came and what is allowed."""
    key = ".".join([where, *[str(part) for part in fault["loc"] if not str(part).startswith("function")]])
    message = plain(str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be "))
    return f"{key} = {shown(fault.get('input'))} is not allowed: it should be {message}."


def shown(value: Any) -> str:
    """What came, in a sentence: a short value as it is, anything else by its type."""
    if isinstance(value, Mapping):
        return "a table"
    if not isinstance(value, str | int | float | list | tuple | None):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def truth_faults(given: Mapping[str, Any], types: Mapping[str, Any], where: str) -> list[str]:
    """A sentence for each true or false that stands where a number belongs, which pydantic would take for 1 or 0."""
    return [
        f"{where}.{key} = {value!r} is not allowed: it should be a number."
        for key, value in given.items()
        if isinstance(value, bool) and key in types and _takes_numbers(types[key])
    ]


def _takes_numbers(kind: Any) -> bool:
    """Whether a type takes numbers and no booleans."""
    parts = [kind]
    for part in parts:
        parts.extend(typing.get_args(part))
    return bool not in parts and (int in parts or float in parts)


networks = Registry("network", "fathom.networks")
fields = Registry("field", "fathom.fields")
sources = Registry("source", "fathom.sources")
algorithms = Registry("algorithm", "fathom.algorithms")
augmentations = Registry("augmentation", "fathom.fields")

network = networks.register
source = sources.register
algorithm = algorithms.register
augmentation = augmentations.register
REGISTRIES = {
    "networks": networks,
    "fields": fields,
    "sources": sources,
    "algorithms": algorithms,
    "augmentations": augmentations,
}
