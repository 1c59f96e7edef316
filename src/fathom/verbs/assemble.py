"""What every verb needs put together: source, prepared rows, plan, networks, algorithm.

open_task(data, tree)    read, divide, fit, encode, choose          -> Task
build(task)              one network a role, the algorithm, a clock -> Assembly
measure(task)            threads and seconds a step, by a short trial on copies
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from fathom.algorithms.regularizers import regularizers
from fathom.analysis import plan
from fathom.core import device as devices
from fathom.core.contract import Algorithm, Batch, Clock, Context, Loss, Model, Schema, epoch_steps
from fathom.core.device import Device
from fathom.core.errors import FathomError
from fathom.core.prepare import Prepared, prepare
from fathom.core.recipe import OWN, Recipe, merge
from fathom.core.registry import algorithms, networks
from fathom.core.tensors import Index, TensorSet
from fathom.fields.augment import transform
from fathom.networks import own
from fathom.sources import open_source

Tell = Callable[[str], None]
Divide = Callable[[Any, Any], dict[str, Index]]


def silent(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Session:
    """What the caller brought along that no recipe can hold."""

    module: nn.Module | None
    loss: Any
    tell: Tell
    progress: TextIO | None


@dataclass
class Task:
    """A task ready to be trained: data, recipe, plan.

    Args:
        recipe: complete but for what only a trial can tell (threads; steps, where minutes were given).
        prepared: the encoded rows.
        choice: the plan.
        module: the user's own network.
        losses: target -> the user's own loss.
    """

    recipe: Recipe
    prepared: Prepared
    choice: plan.Choice
    module: nn.Module | None = None
    losses: Mapping[str, Loss] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        """Fitted inputs and targets."""
        return self.prepared.schema


@dataclass
class Assembly:
    """Networks and algorithm, built."""

    algorithm: Algorithm
    clock: Clock
    models: dict[str, Model]


def open_task(
    data: Any,
    tree: Mapping[str, Any],
    module: nn.Module | None = None,
    losses: Any = None,
    divide: Divide | None = None,
) -> Task:
    """From what the user said to a task.

    Args:
        data: location, frame, arrays, Dataset, DataLoader.
        tree: the user's recipe as nested tables.
        module: their own network.
        losses: a loss of theirs, or target -> loss.
        divide: makes the splits, where the caller does (folds).

    Raises:
        FathomError: the recipe, the data or the combination is wrong.
    """
    if module is not None:
        tree = merge(
            tree,
            {
                "network.name": OWN,
                "network.class": type(module).__name__,
                "network.fingerprint": own.fingerprint(module),
            },
        )
    asked = Recipe.parse(tree)
    source = open_source(data, asked.data)
    prepared = prepare(source, asked.data, asked.training.seed, divide)
    rows = len(prepared.splits["train"])
    choice = plan.choose(prepared.schema, rows, tree)
    recipe = Recipe.parse({**merge(merge({}, choice.changes), _dotted(tree)), "stage": tree.get("stage", [])})
    recipe = _settle(recipe, rows)
    return Task(recipe, prepared, choice, module, _losses(losses, prepared.schema))


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables -> dotted keys, two deep."""
    flat: dict[str, Any] = {}
    for section, table in tree.items():
        if isinstance(table, Mapping):
            flat.update({f"{section}.{key}": value for key, value in table.items()})
    return flat


def _settle(recipe: Recipe, rows: int) -> Recipe:
    """Epochs become steps by arithmetic; a batch is never larger than the training rows."""
    training = recipe.training
    changes: dict[str, Any] = {"batch": min(training.rows_per_batch(), rows)}
    if training.steps is None and training.epochs is not None and training.minutes is None:
        changes["steps"] = max(1, round(training.epochs * epoch_steps(rows, changes["batch"])))
    if training.keep == "average" and not training.average:
        changes["average"] = 0.999
    return recipe.model_copy(update={"training": training.model_copy(update=changes)})


def _losses(losses: Any, schema: Schema) -> dict[str, Loss]:
    if losses is None:
        return {}
    if callable(losses):
        return dict.fromkeys(schema.targets, losses)
    unknown = set(losses) - set(schema.targets)
    if unknown:
        raise FathomError(
            f"A loss is given for '{min(unknown)}', which is no target. Targets: {', '.join(schema.targets)}."
        )
    return dict(losses)


def build(task: Task, device: Device) -> Assembly:
    """One model a role from the seed, the algorithm around them, and a clock at zero."""
    recipe, schema = task.recipe, task.schema
    devices.seed_everything(recipe.training.seed)
    algorithm = algorithms[recipe.training.algorithm or ""].make
    models = {}
    for role, part in algorithm.roles(schema).items():
        model = Model(part, network(task, part, role))
        models[role] = to_memory_format(model).to(device.torch)
    clock = Clock()
    context = Context(
        schema, models, recipe, clock, device.torch,
        transform=transform(recipe.augment, schema, recipe.training.seed),
        regularizers=regularizers(recipe.training.l1, recipe.training.l2, models),
        losses=task.losses,
        class_weights=class_weights(task, device.torch),
    )  # fmt: skip
    return Assembly(algorithm(context, **recipe.algorithm), clock, models)


def resident(sets: Mapping[str, TensorSet], device: Device) -> dict[str, TensorSet]:
    """The splits, with the training rows on the accelerator where half of its free memory holds them.

    A batch is then gathered there, and nothing crosses the bus in the loop.
    """
    if device.torch.type != "cuda":
        return dict(sets)
    free, _ = torch.cuda.mem_get_info(device.torch)
    train = sets["train"]
    return {**sets, "train": train.to(device.torch)} if train.nbytes() < free / 2 else dict(sets)


def to_memory_format(model: Model) -> Model:
    """Filters in channels-last memory, which convolutions are fastest on."""
    filters = any(parameter.ndim == 4 for parameter in model.parameters())
    return model.to(memory_format=torch.channels_last) if filters else model  # type: ignore[call-overload]


def network(task: Task, schema: Schema, role: str) -> nn.Module:
    """The network of one role, from the registry or the user."""
    table = dict(task.recipe.network)
    name = table.pop("name")
    if name == OWN:
        if task.module is None:
            raise FathomError(
                "This recipe was made for your own module; call fathom.fit(..., network=module) from Python."
            )
        return own.adopt(copy.deepcopy(task.module), schema, samples(task.prepared, schema))
    made: nn.Module = networks[name].build(schema, role, **table)
    return made


def samples(prepared: Prepared, schema: Schema) -> list[Tensor]:
    """Two preprocessed rows of each input."""
    batch = two_rows(prepared)
    return [item.layer()(batch[name]) for name, item in schema.inputs.items()]


def two_rows(prepared: Prepared) -> Batch:
    """A batch of two training rows (twice the first, where there is one only)."""
    return prepared.sets["train"].batch(torch.tensor([0, min(1, len(prepared.sets["train"]) - 1)]))


def class_weights(task: Task, device: torch.device) -> dict[str, Tensor]:
    """(K,) for each category target: rows / (K * rows of the class), from the training rows (King & Zeng 2001)."""
    if task.recipe.algorithm.get("class_weights", "none") == "none":
        return {}
    weights = {}
    for name, target in task.schema.targets.items():
        if target.kind == "category":
            truth = column(task.prepared, name, "train")
            count = torch.bincount(truth if truth.ndim == 1 else truth.argmax(1), minlength=target.outputs[0]).float()
            weights[name] = (count.sum() / (len(count) * count.clamp(min=1))).to(device)
    return weights


def column(prepared: Prepared, name: str, part: str) -> Tensor:
    """(N, ...) one encoded field of one split."""
    everything = prepared.sets[part].batch(torch.arange(len(prepared.sets[part])))
    return everything[name]


@dataclass(frozen=True)
class Measured:
    """What a trial showed.

    Args:
        threads: CPU threads on which a step is fastest.
        precision: of matrix work.
        seconds: a step.
    """

    threads: int
    precision: str
    seconds: float


def measure(task: Task, device: Device, budget: float = 0.3) -> Measured:
    """Time real steps on copies, in each way that is open, and keep the fastest.

    Tiny networks run best on one thread; with another process on the machine all threads can be many times slower. The
    plainer way wins unless the other takes a fifth less time, so that a busy machine does not decide by chance.

    Args:
        task: planned.
        device: where it will run.
        budget: seconds spent on each way.
    """
    training = task.recipe.training
    steps = training.steps or 1_000_000
    recipe = task.recipe.model_copy(update={"training": training.model_copy(update={"steps": steps})})
    with devices.undisturbed():
        assembly = build(replace(task, recipe=recipe), device)
        batches = assembly.algorithm.batches(assembly.algorithm.stages(resident(task.prepared.sets, device))[0], 0)
        best: Measured | None = None
        for precision in [training.precision] if training.precision else _precisions(task, device):
            for threads in [training.threads] if training.threads else _threads(device):
                way = replace(device, precision=precision)
                seconds = _seconds_a_step(assembly, batches, threads, way, budget)
                if best is None or seconds < 0.8 * best.seconds:
                    best = Measured(threads, precision, seconds)
    assert best is not None, "there is always a way"
    return best


def _precisions(task: Task, device: Device) -> list[str]:
    """Convolutions gain from bfloat16; small dense networks lose."""
    pictures = any(item.kind == "image" for item in task.schema.inputs.values())
    return device.precisions() if pictures or device.torch.type == "cuda" else ["float32"]


def _threads(device: Device) -> list[int]:
    return sorted({1, devices.cores()}) if device.reads_are_free else [devices.cores()]


def _seconds_a_step(assembly: Assembly, batches: Any, threads: int, device: Device, budget: float) -> float:
    """The lower quartile of a few steps, after two that warm up."""
    times: list[float] = []
    with devices.threads(threads), device.autocast():
        begin = time.perf_counter()
        while len(times) < 4 or (time.perf_counter() - begin < budget and len(times) < 40):
            start = time.perf_counter()
            assembly.algorithm.step(next(batches))
            if device.torch.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return float(np.quantile(times[2:], 0.25))
