"""What the verbs do where an agent acts.

settle(recipe, schema)          a recipe without rows: actions become steps by arithmetic; what is about rows is refused
evaluate(run, data, count)      fresh episodes, baselines beside them
environment_of(run, data)       where a run's agent acts
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fathom.analysis import episodes
from fathom.core.contract import Schema
from fathom.core.environments import Environment
from fathom.core.errors import DataError, FathomError, unknown
from fathom.core.recipe import Recipe, Training
from fathom.core.registry import algorithms
from fathom.sources import open_source

if TYPE_CHECKING:
    from fathom.verbs.result import Run

SPACES = ("form", "shape", "count", "start")  # of a field's state: what an environment shows and takes
WATCHED = ("loss", "return")  # what `training.monitor` may name


def settle(recipe: Recipe, schema: Schema) -> Recipe:
    """The recipe with a number of steps, where no minutes are to be measured first.

    Args:
        recipe: with what the plan chose.
        schema: what is shown and done; the algorithm may add to the state of its fields.

    Raises:
        FathomError: a key is about rows, which an environment has none of.
    """
    training = recipe.training
    _refuse(recipe)
    if training.monitor not in WATCHED:
        raise FathomError(unknown("metric", training.monitor, WATCHED, "training.monitor"))
    make: Any = algorithms[training.algorithm or ""].make
    make.shape(schema, recipe.algorithm)
    changes: dict[str, Any] = {}
    if recipe.stage:
        changes["steps"] = sum(stage.planned_steps() for stage in recipe.stage)
    elif training.steps is None and training.minutes is None:
        changes["steps"] = make.steps(training.environment_steps, training, recipe.algorithm)
    if training.keep == "average" and not training.average:
        changes["average"] = 0.999
    return recipe.model_copy(update={"training": training.model_copy(update=changes)})


def _refuse(recipe: Recipe) -> None:
    training, plain = recipe.training, Training()
    for key in ("folds", "tokens", "label_smoothing", "epochs"):
        if getattr(training, key) != getattr(plain, key):
            raise FathomError(
                f"training.{key} is about rows of data, and an environment has none; leave it out. How long to act is "
                "training.environment_steps."
            )
    if recipe.data.fold is not None:
        raise FathomError("data.fold is about rows of data, and an environment has none; leave it out.")
    if recipe.augment:
        raise FathomError("Augmentations change rows of data, and an environment has none; leave [augment] out.")
    for stage in recipe.stage:
        if stage.steps is None:
            raise FathomError(
                f"The stage '{stage.name}' has to count steps: where an agent acts, nothing else is known."
            )


def evaluate(run: Run, data: Any, count: int | None) -> dict[str, Any]:
    """Judge an agent on fresh episodes.

    Args:
        run: of an agent.
        data: another environment with the same spaces; its own where None.
        count: episodes; as many as `fit` played where None.

    Returns:
        The test part of results.json.
    """
    environment = environment_of(run, data)
    recipe = run.deployed.recipe
    taken = run.results.get("environment_steps")
    found = episodes.results(environment, run.predictor, recipe.training.seed, taken, count or episodes.EPISODES)
    if member := run.results.get("member"):
        found["evaluation_notes"].append(f"Judged is {member}, which is deployed; fit told the figures of all seeds.")
    return found


def environment_of(run: Run, data: Any = None) -> Environment:
    """Where an agent acts.

    Args:
        run: of an agent.
        data: an environment; that of the run where None.

    Raises:
        FathomError: it is in memory only, or shows or takes something else than the agent learnt.
    """
    recipe = run.deployed.recipe
    place = data if data is not None else recipe.data.location
    if place is None:
        raise FathomError(
            f"{run.path} learnt in an environment given from Python; give it again, as an object or a function."
        )
    options = recipe.data if data is None else recipe.data.model_copy(update={"environment": {}})
    prepared = open_source(place, options).prepare(options, recipe.training.seed)
    if prepared.environment is None:
        raise DataError(f"'{place}' is rows of data, and {run.path} is an agent: name an environment, as CartPole-v1.")
    for mine, other in zip(run.schema.fields().values(), prepared.schema.fields().values(), strict=True):
        if {key: mine.state.get(key) for key in SPACES} != {key: other.state.get(key) for key in SPACES}:
            raise DataError(
                f"{prepared.environment.name} has another {mine.kind} than the agent learnt: {other.describe()}, where it "
                f"had {mine.describe()}."
            )
    return prepared.environment
