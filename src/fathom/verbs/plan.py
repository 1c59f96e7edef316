"""`fathom plan`: the same guess as `fit`, without training: schema, network, rivals, layers, time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fathom.analysis import plan as planning
from fathom.core.device import Device, check_threads
from fathom.core.recipe import Recipe, options_of
from fathom.verbs.assemble import build, by_trial, open_task, oversized, two_rows
from fathom.verbs.fit import describe, refuse_more, request


def plan(
    data: Any = None, *more: Any, network: str | nn.Module | None = None, recipe: Any = None, **flags: Any
) -> dict[str, Any]:
    """What `fit` would do, and what it would cost.

    Args:
        data, more, network, recipe, flags: as for `fit`.

    Returns:
        "lines" (what was guessed, a sentence each), "network", "settings" (of the network), "reason", "rivals",
        "layers", "parameters", "steps", "seconds" (of training, from timed steps), "memory" (bytes),
        "recipe" (TOML).
    """
    refuse_more(more)
    data, tree, module = request(data, network, recipe, flags)
    asked = Recipe.parse(tree).training
    device = Device.choose(asked.device)
    check_threads(asked.threads)
    task = open_task(data, tree, module)
    task, measured = by_trial(task, device)
    assembly = build(task, device)
    layers = planning.layer_tables(assembly.models, assembly.algorithm.example(two_rows(task.prepared)))
    count = planning.parameters(assembly.models)
    training = task.recipe.training
    warned = oversized(assembly, task)
    made: Mapping[str, Any] = {
        "task": planning.task_name(task.schema, training.algorithm),
        "lines": [*describe(task), *(f"Note      {note}" for note in warned)],
        "network": task.choice.network,
        "reason": task.choice.reason,
        "rivals": task.choice.rivals,
        "settings": options_of(task.recipe.network),
        "layers": layers,
        "parameters": count,
        "steps": training.steps,
        "threads": measured.threads,
        "seconds": measured.training(task.recipe),
        "memory": planning.memory(count, layers, training.rows_per_batch(), task.prepared.store.nbytes()),
        "recipe": task.recipe.toml(),
    }
    return dict(made)
