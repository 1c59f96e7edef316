"""The whole state of a run: what a checkpoint holds, taken apart and put together.

state_of(algorithm, clock, watchers)   weights, optimizers, saved attributes, clock, random state, watchers
load_state(state, ...)                 the same, back
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from fathom.core.contract import Algorithm, Callback, Clock
from fathom.core.device import random_state, set_random_state
from fathom.core.errors import NonFiniteError


def state_of(algorithm: Algorithm, clock: Clock, watchers: Mapping[str, Callback]) -> dict[str, Any]:
    """Everything that decides what happens next, as nested tensors and JSON.

    Raises:
        NonFiniteError: an update was not finite; what it left behind must not be taken up again.
    """
    for optimizer in algorithm.optimizers.values():
        if optimizer.first_bad_step() >= 0:
            raise NonFiniteError(f"The update of step {optimizer.first_bad_step() + 1} was not finite.")
    return {
        "clock": asdict(clock),
        "algorithm": {
            "models": {role: model.state_dict() for role, model in algorithm.models.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in algorithm.optimizers.items()},
            "saved": {name: _part(getattr(algorithm, name)) for name in algorithm.saved},
        },
        "watchers": {name: watcher.state_dict() for name, watcher in watchers.items()},
        "random": random_state(),
    }


def load_state(state: Mapping[str, Any], algorithm: Algorithm, clock: Clock, watchers: Mapping[str, Callback]) -> None:
    """Put a run back where `state_of` saw it. The random state comes last, since building draws from it."""
    for name, value in state["clock"].items():
        setattr(clock, name, value)
    inner = state["algorithm"]
    for role, model in algorithm.models.items():
        model.load_state_dict(inner["models"][role])
    for name, optimizer in algorithm.optimizers.items():
        optimizer.load_state_dict(inner["optimizers"][name])
    for name in algorithm.saved:
        _put(algorithm, name, inner["saved"][name])
    for name, watcher in watchers.items():
        if name in state["watchers"]:  # a watcher that came with a new budget begins here
            watcher.load_state_dict(state["watchers"][name])
    set_random_state(state["random"])


def _part(value: Any) -> Any:
    return value.state_dict() if hasattr(value, "state_dict") else value


def _put(algorithm: Algorithm, name: str, value: Any) -> None:
    current = getattr(algorithm, name)
    if hasattr(current, "load_state_dict"):
        current.load_state_dict(value)
    else:
        setattr(algorithm, name, value.clone() if isinstance(value, Tensor) else value)
