"""Environments of gymnasium: by id (`CartPole-v1`), as an object, or as a function that makes one.

    Environments      chosen where a location looks like an id; makes fields from the spaces and takes a first look
    spaces            Box of numbers or of pictures, Discrete; actions Discrete or Box

An id that imports a module ("package:Name-v0") is refused: no recipe may run code. Import the package and register the
environment first, or give a function from Python.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.core.contract import Columns, Schema, Source
from fathom.core.environments import LOOK, LOOKS, Arena, Environment
from fathom.core.errors import DataError, FathomError, nearest
from fathom.core.prepare import Prepared
from fathom.core.recipe import Data
from fathom.core.registry import fields, source

ID = re.compile(r"([\w:.-]+/)?[\w:.-]+-v\d+")
MEANT_FOR_ROWS = ("target", "input", "compare", "group", "time", "horizon", "weight", "validation", "test", "limit")


@source("environments", order=5, reads="a gymnasium id, an environment, or a function that makes one")
class Environments(Source):
    """A gymnasium environment: an id, an object, or a function that makes one."""

    @classmethod
    def accepts(cls, location: Any, options: Any = None) -> bool:
        """Whether it is an environment, a function, or a word that reads as an id and names no file."""
        if isinstance(location, str):
            return not Path(location).exists() and (bool(ID.fullmatch(location)) or location in _registered())
        return _is_environment(location) or (callable(location) and not hasattr(location, "__len__"))

    def columns(self) -> Columns:
        """None: an environment has no rows."""
        return Columns({}, 0)

    def schema(self) -> Schema:
        """Fields of what it shows and takes."""
        return self.prepare(self.options, 0).schema

    def prepare(self, data: Data, seed: int, earlier: Schema | None = None) -> Prepared:
        """Make it once, read its spaces, and act a little.

        Args:
            data: the recipe's table.
            seed: unused: the first look is the same for every run.

        Raises:
            DataError: there is no such environment, a space is not supported, or it breaks gymnasium's interface.
        """
        start = time.perf_counter()
        _refuse(data)
        make = _factory(self.location, data.environment)
        first = make(None)
        name = self.location if isinstance(self.location, str) else _name(first)
        schema = _schema(first, name, data.fields)
        shown, horizon = schema.inputs["observation"], _horizon(first)
        frames = shown.options["frames"]
        first.close()
        stacked = _stacking(make, frames) if frames > 1 else make
        environment = Environment(name, stacked, tuple(shown.state["shape"]), _dtype(schema), horizon)
        about = {"name": name, "options": data.environment, "schema": schema.to_json(), "horizon": horizon}
        fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        look = _look(environment, schema)
        environment.columns = {"observation": look}
        if shown.state["form"] == "vector":  # what is about 1 already need not be scaled
            shown.state["largest"] = float(look.abs().max())
        empty = np.zeros(0, np.int64)
        return Prepared(
            schema, environment, {}, Columns({}, 0), empty, None, None, [], empty, fingerprint,
            time.perf_counter() - start, environment=environment,
        )  # fmt: skip


def _refuse(data: Data) -> None:
    """Keys about rows have no meaning where there are none."""
    given = [key for key in MEANT_FOR_ROWS if getattr(data, key) is not None]
    given += ["types"] if data.types else []
    if given:
        raise DataError(
            f"data.{given[0]} is about rows of data, and an environment has none; leave it out. How long to act is "
            "training.environment_steps."
        )


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise FathomError("Environments need gymnasium. Install it with: pip install gymnasium") from error
    return gymnasium


def _registered() -> Any:
    """The ids that are known already; gymnasium is not loaded to find out whether a word is one."""
    known = sys.modules.get("gymnasium")
    return known.registry if known is not None else ()


def _is_environment(location: Any) -> bool:
    wanted = ("reset", "step", "observation_space", "action_space")
    return all(hasattr(location, name) for name in wanted) and not isinstance(location, type)


def _name(location: Any) -> str:
    if isinstance(location, str):
        return location
    if _is_environment(location):
        return type(getattr(location, "unwrapped", location)).__name__
    return str(getattr(location, "__name__", type(location).__name__))


def _factory(location: Any, options: dict[str, Any]) -> Callable[[str | None], Any]:
    """Render mode -> a new environment."""
    if isinstance(location, str):
        return lambda render: _make(location, options, render)
    if options:
        raise DataError(
            "data.environment holds options of an id; an environment given from Python has its own already."
        )
    if not _is_environment(location):
        return lambda render: _made(location)
    if getattr(location, "spec", None) is not None:
        return lambda render: _gymnasium().make(location.spec, disable_env_checker=True, render_mode=render)
    return lambda render: _copied(location)


def _make(name: str, options: dict[str, Any], render: str | None) -> Any:
    gymnasium = _gymnasium()
    if ":" in name:
        raise DataError(
            f"'{name}' would import a module, which no recipe may do. Import it first, and give the id that it registers."
        )
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise DataError(_unknown(name, list(gymnasium.registry))) from error
    try:
        return gymnasium.make(spec, disable_env_checker=True, render_mode=render, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise DataError(f"{name} needs a package that is not installed: {error}.") from error
    except TypeError as error:
        raise DataError(f"{name} does not take the options data.environment = {options}: {error}.") from error
    except gymnasium.error.Error as error:
        raise DataError(f"{name} cannot be made: {error}.") from error


def _unknown(name: str, known: list[str]) -> str:
    """The sentence for an id that is not registered."""
    text = f"There is no environment '{name}' in gymnasium, and no file or folder of that name."
    stems: dict[str, list[str]] = {}
    for one in known:  # what all ids share, their version, must not make them alike
        stems.setdefault(one.rpartition("-v")[0] or one, []).append(one)
    guess = nearest(name.rpartition("-v")[0] or name, stems)
    if guess is None:
        return f"{text} Built in, among others: CartPole-v1, Acrobot-v1, Pendulum-v1, FrozenLake-v1."
    meant = "' or '".join(stems[guess])
    return f"{text} Did you mean '{meant}'?"


def _made(make: Callable[[], Any]) -> Any:
    made = make()
    if not _is_environment(made):
        raise DataError(
            f"The function {_name(make)} returned a {type(made).__name__}; to be acted in it has to return a gymnasium "
            "environment (reset, step, observation_space, action_space)."
        )
    return made


def _copied(environment: Any) -> Any:
    try:
        return copy.deepcopy(environment)
    except Exception as error:  # the user's own object: whatever its copy raises is told
        raise DataError(
            f"{_name(environment)} cannot be copied ({type(error).__name__}: {error}), and agents act in several copies. "
            f"Give a function that makes one: fathom.fit(lambda: {_name(environment)}())"
        ) from error


def _stacking(make: Callable[[str | None], Any], frames: int) -> Callable[[str | None], Any]:
    """The last few pictures as one observation; the first one several times at the start."""
    wrapper = _gymnasium().wrappers.FrameStackObservation
    return lambda render: wrapper(make(render), frames, padding_type="reset")


def _horizon(environment: Any) -> int | None:
    spec = getattr(environment, "spec", None)
    return getattr(spec, "max_episode_steps", None)


# ---- spaces


def _schema(environment: Any, name: str, options: dict[str, dict[str, Any]]) -> Schema:
    strange = set(options) - {"observation", "action"}
    if strange:
        raise DataError(
            f"data.{min(strange)} has no meaning for an environment, whose fields are observation and action."
        )
    shown = _observation(environment.observation_space, name, options.get("observation", {}))
    done = _action(environment.action_space, name, options.get("action", {}))
    return Schema({"observation": shown}, {"action": done})


def _observation(space: Any, name: str, options: dict[str, Any]) -> Any:
    spaces = _gymnasium().spaces
    make = fields["observation"].make
    if isinstance(space, spaces.Discrete):
        made = make(["observation"], **options)
        made.state = {"form": "discrete", "shape": [], "count": int(space.n), "start": int(space.start)}
    elif isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3):
        made = make(["observation"], **options)
        shape = [made.frames, *space.shape] if made.frames > 1 else list(space.shape)
        made.state = {"form": "image", "shape": shape}
    elif isinstance(space, spaces.Box) and math.prod(space.shape) > 0:
        made = make([f"x{i + 1}" for i in range(math.prod(space.shape))], **options)
        made.state = {"form": "vector", "shape": list(space.shape)}
    else:
        raise DataError(
            f"{name} shows a {_space_name(space)}; agents read a Box of numbers, a Box of uint8 pictures, or a Discrete. "
            f"{_remedy(space, 'observation')}"
        )
    if made.frames > 1 and made.form != "image":
        raise DataError(f"data.observation.frames joins pictures, and {name} shows {made.describe()}; leave it out.")
    return made


def _action(space: Any, name: str, options: dict[str, Any]) -> Any:
    spaces = _gymnasium().spaces
    made = fields["action"].make(["action"], **options)
    if isinstance(space, spaces.Discrete):
        made.state = {"form": "discrete", "count": int(space.n), "start": int(space.start)}
        return made
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and math.prod(space.shape) > 0:
        low, high = (
            [float(b) if np.isfinite(b) else None for b in bound.reshape(-1)] for bound in (space.low, space.high)
        )
        made.state = {"form": "box", "low": low, "high": high, "shape": list(space.shape)}
        return made
    raise DataError(
        f"{name} takes a {_space_name(space)}; agents act in a Discrete or a Box of fractional numbers. "
        f"{_remedy(space, 'action')}"
    )


def _space_name(space: Any) -> str:
    text = str(space)
    return text if len(text) <= 80 else f"{type(space).__name__} space"


def _remedy(space: Any, what: str) -> str:
    kind = type(space).__name__
    if what == "observation" and kind in ("Dict", "Tuple", "MultiDiscrete", "MultiBinary"):
        return "Wrap it: gymnasium.wrappers.FlattenObservation makes one Box of it; give a function that returns the wrapped one."
    if kind in ("MultiDiscrete", "MultiBinary"):
        return "Wrap it so that every combination is one number of a Discrete; give a function that returns the wrapped one."
    return f"Wrap it in a gymnasium.{what.capitalize()}Wrapper, and give a function that returns the wrapped one."


def _dtype(schema: Schema) -> np.dtype[Any]:
    form = schema.inputs["observation"].state["form"]
    return np.dtype({"image": np.uint8, "discrete": np.int64}.get(form, np.float32))


def _look(environment: Environment, schema: Schema) -> torch.Tensor:
    """(LOOKS, ...) what random actions led to; every fault of the interface shows here."""
    arena, generator = Arena(environment, 1, 0, LOOK), torch.Generator().manual_seed(0)
    arena.begin()
    action: Any = schema.targets["action"]
    rows = []
    for _ in range(LOOKS):
        rows.append(arena.observation[0].copy())
        arena.step(action.perform(action.random(1, generator)))
    return encoded(np.stack(rows), schema)


def encoded(rows: np.ndarray, schema: Schema) -> torch.Tensor:
    """Observations (N, ...) as the field's layer reads them."""
    tensor = torch.from_numpy(rows)
    return tensor.flatten(1) if schema.inputs["observation"].state["form"] == "vector" else tensor
