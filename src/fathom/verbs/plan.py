"""`fathom plan`: the same guess as `fit`, without training: schema, network, rivals, layers, time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fathom.analysis import plan as planning
from fathom.core.device import Device
from fathom.core.recipe import Recipe
from fathom.verbs.assemble import build, measure, open_task, two_rows
from fathom.verbs.fit import describe, request


def plan(
    data: Any = None, *, network: str | nn.Module | None = None, recipe: Any = None, **flags: Any
) -> dict[str, Any]:
    """What `fit` would do, and what it would cost.

    Args:
        data, network, recipe, flags: as for `fit`.

    Returns:
        "lines" (what was guessed, a sentence each), "network", "reason", "rivals", "layers", "parameters", "steps",
        "seconds" (of training, from timed steps), "memory" (bytes), "recipe" (TOML).
    """
    data, tree, module = request(data, network, recipe, flags)
    device = Device.choose(Recipe.parse(tree).training.device)
    task = open_task(data, tree, module)
    measured = measure(task, device)
    settled = task.recipe.training.model_copy(update={"threads": measured.threads, "precision": measured.precision})
    task = replace(task, recipe=task.recipe.model_copy(update={"training": settled}))
    assembly = build(task, device)
    model = next(iter(assembly.models.values()))
    layers = planning.layer_table(model, two_rows(task.prepared))
    count = planning.parameters(assembly.models)
    training = task.recipe.training
    seconds = measured.seconds * training.steps if training.steps else 60 * (training.minutes or 0)
    made: Mapping[str, Any] = {
        "task": planning.task_name(task.schema),
        "lines": describe(task),
        "network": task.choice.network,
        "reason": task.choice.reason,
        "rivals": task.choice.rivals,
        "layers": layers,
        "parameters": count,
        "steps": training.steps,
        "threads": measured.threads,
        "seconds": seconds,
        "memory": planning.memory(count, layers, training.rows_per_batch(), task.prepared.store.nbytes()),
        "recipe": task.recipe.toml(),
    }
    return dict(made)
