"""Fathom: from your own data to a deep network you can trust, in one command per step.

    import fathom
    run = fathom.fit("photos/", epochs=10)
    run.metrics["test"]["accuracy"]
    run.predict("new.jpg")

The public names are loaded when they are first used, so that `import fathom` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fathom.core.errors import FathomError
    from fathom.core.registry import hyperparameter, network
    from fathom.verbs.chat import chat
    from fathom.verbs.embed import embed
    from fathom.verbs.evaluate import evaluate
    from fathom.verbs.fit import fit
    from fathom.verbs.generate import generate
    from fathom.verbs.listing import listing
    from fathom.verbs.plan import plan
    from fathom.verbs.play import play
    from fathom.verbs.predict import predict
    from fathom.verbs.report import report
    from fathom.verbs.result import Run, load
    from fathom.verbs.runs import compare, runs

_HOMES = {
    "FathomError": "fathom.core.errors",
    "Run": "fathom.verbs.result",
    "chat": "fathom.verbs.chat",
    "compare": "fathom.verbs.runs",
    "embed": "fathom.verbs.embed",
    "evaluate": "fathom.verbs.evaluate",
    "fit": "fathom.verbs.fit",
    "generate": "fathom.verbs.generate",
    "hyperparameter": "fathom.core.registry",
    "listing": "fathom.verbs.listing",
    "load": "fathom.verbs.result",
    "network": "fathom.core.registry",
    "plan": "fathom.verbs.plan",
    "play": "fathom.verbs.play",
    "predict": "fathom.verbs.predict",
    "report": "fathom.verbs.report",
    "runs": "fathom.verbs.runs",
}

__all__ = [
    "FathomError", "Run", "chat", "compare", "embed", "evaluate", "fit", "generate", "hyperparameter", "listing", "load",
    "network", "plan", "play", "predict", "report", "runs",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"fathom has no '{name}'; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
