"""`fathom list KIND`: every component, with its hyperparameters."""

from __future__ import annotations

from typing import Any

from fathom.core.errors import FathomError, unknown
from fathom.core.registry import REGISTRIES


def listing(kind: str = "networks") -> list[dict[str, Any]]:
    """What there is of one kind.

    Args:
        kind: networks, fields, sources, algorithms or augmentations.

    Returns:
        name, summary, what the decorator states, and "hyperparameters" (name, default, search, help).

    Raises:
        FathomError: there is no such kind.
    """
    if kind not in REGISTRIES:
        raise FathomError(unknown("list of", kind, REGISTRIES))
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            **{
                key: value
                for key, value in entry.about.items()
                if isinstance(value, str | int | tuple) or value is None
            },
            "hyperparameters": [
                {"name": name, "default": knob.default, "search": knob.search, "help": knob.help}
                for name, knob in entry.hyperparameters.items()
            ],
        }
        for entry in REGISTRIES[kind]
    ]
