"""What every verb needs put together: source, prepared rows, plan, networks, algorithm.

open_task(data, tree)    read, divide, fit, encode, choose          -> Task
build(task)              one network a role, the algorithm, a clock -> Assembly
complete(task)           the rest of the recipe, by a trial where something is left open
by_trial(task)           the same with what the trial showed
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
from fathom.core.errors import FathomError, unknown
from fathom.core.prepare import Prepared, prepare
from fathom.core.recipe import BUDGETS, OWN, Data, Recipe, StageTable, Training, merge
from fathom.core.registry import algorithms, networks
from fathom.core.tensors import TensorSet
from fathom.fields.augment import transform
from fathom.networks import own
from fathom.sources import open_source

Tell = Callable[[str], None]


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


def open_task(data: Any, tree: Mapping[str, Any], module: nn.Module | None = None, losses: Any = None) -> Task:
    """From what the user said to a task; of a run of several folds, that of the first.

    Args:
        data: location, frame, arrays, Dataset, DataLoader.
        tree: the user's recipe as nested tables.
        module: their own network.
        losses: a loss of theirs, or target -> loss.

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
    tree = _with_settings(tree, Recipe.parse(tree).network)
    asked = Recipe.parse(tree)
    source = open_source(data, asked.data)
    prepared = prepare(source, _division(asked), asked.training.seed)
    rows = len(prepared.splits["train"])
    choice = plan.choose(prepared.schema, rows, tree)
    stages = tree.get("stage", [])
    chosen = {key: value for key, value in choice.changes.items() if not (stages and key in BUDGETS)}
    recipe = Recipe.parse({**merge(merge({}, chosen), _dotted(tree)), "stage": stages})
    recipe = _settle(recipe, prepared, asked.training.keep)
    _check_monitor(recipe.training.monitor, prepared)
    return Task(recipe, prepared, choice, module, _losses(losses, prepared.schema))


def _with_settings(tree: Mapping[str, Any], network: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a network needs that must be known before the data are read, beneath what the user said.

    Options of its own that it returns are the user's, written out (a path that holds from anywhere).

    Args:
        tree: the user's recipe as nested tables.
        network: its checked table, complete where it names a network of the registry.
    """
    name = network.get("name", OWN)
    settings = networks[name].about.get("settings") if name != OWN else None
    if settings is None:
        return tree
    settled = settings(network).items()
    wanted = {key: value for key, value in settled if key.startswith("network.") or not plan.is_given(tree, key)}
    if tree.get("stage") or any(plan.is_given(tree, key) for key in BUDGETS):
        wanted = {key: value for key, value in wanted.items() if key not in BUDGETS}
    return merge(tree, wanted)


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables -> dotted keys, two deep."""
    flat: dict[str, Any] = {}
    for section, table in tree.items():
        if isinstance(table, Mapping):
            flat.update({f"{section}.{key}": value for key, value in table.items()})
    return flat


def _division(recipe: Recipe) -> Data:
    """The data table by which rows are divided: of a run of several folds the first fold stands for all."""
    folds = recipe.training.folds
    if folds == 1:
        return recipe.data
    if recipe.data.fold is not None:
        raise FathomError(f"data.fold trains one fold and training.folds = {folds} trains all; leave one of them out.")
    return recipe.data.model_copy(update={"fold": (1, folds)})


def _check_monitor(monitor: str, prepared: Prepared) -> None:
    """Refuse a metric that no target has, before anything is trained or written."""
    targets, rows = prepared.schema.targets, prepared.sets["validation"]
    few = rows.subset(torch.arange(min(64, len(rows))))
    known = ["loss"]
    for name, target in targets.items() if monitor != "loss" else ():
        prefix = f"{name}." if len(targets) > 1 else ""
        metrics = target.metrics(torch.zeros(len(few), *target.outputs), few.column(name))
        known += [prefix + metric for metric in metrics]
    if monitor not in known:
        raise FathomError(unknown("metric", monitor, known, "training.monitor"))


def _settle(recipe: Recipe, prepared: Prepared, keep: str | None) -> Recipe:
    """Epochs become steps by arithmetic; a batch is never larger than the training rows.

    Args:
        recipe: with what the plan chose.
        prepared: the rows.
        keep: which weights the user wants; where they left it open, an average is made to be used.
    """
    training = recipe.training
    changes: dict[str, Any] = {"batch": min(training.rows_per_batch(), len(prepared.splits["train"]))}
    per_epoch = _per_epoch(training.model_copy(update=changes), prepared)
    stages = [_settled_stage(stage, per_epoch) for stage in recipe.stage]
    if stages:
        changes["steps"] = sum(stage.planned_steps() for stage in stages)
    elif training.steps is None and training.epochs is not None and training.minutes is None:
        changes["steps"] = max(1, round(training.epochs * per_epoch))
    if keep is None and training.keep == "last" and training.average:
        changes["keep"] = "average"
    if training.keep == "average" and not training.average:
        changes["average"] = 0.999
    return recipe.model_copy(update={"training": training.model_copy(update=changes), "stage": stages})


def _per_epoch(training: Training, prepared: Prepared) -> int:
    """Batches of one pass over the training rows."""
    make: type[Algorithm] = algorithms[training.algorithm or ""].make
    return make.epoch(prepared.schema, prepared.sets["train"], training)


def _settled_stage(stage: StageTable, per_epoch: int) -> StageTable:
    if stage.epochs is None:
        return stage
    return stage.model_copy(update={"epochs": None, "steps": max(1, round(stage.epochs * per_epoch))})


def _losses(losses: Any, schema: Schema) -> dict[str, Loss]:
    if losses is None:
        return {}
    if callable(losses):
        return dict.fromkeys(schema.targets, losses)
    strange = set(losses) - set(schema.targets)
    if strange:
        raise FathomError(
            f"A loss is given for '{min(strange)}', which is no target. Targets: {', '.join(schema.targets)}."
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
        _check_single_rows(model, task)
        models[role] = (model if task.module is not None else to_memory_format(model)).to(device.torch)
    clock = Clock()
    context = Context(
        schema, models, recipe, clock, device.torch,
        transform=transform(recipe.augment, schema, recipe.training.seed),
        regularizers=regularizers(recipe.training.l1, recipe.training.l2, models),
        losses=task.losses,
        class_weights=class_weights(task, device.torch),
    )  # fmt: skip
    built = algorithm(context, **recipe.algorithm)
    for stage in recipe.stage:  # a wrong name in the last stage is told before the first one
        for optimizer in built.optimizers.values():
            optimizer.check(stage.rates)
    return Assembly(built, clock, models)


def _check_single_rows(model: Model, task: Task) -> None:
    """Refuse batches of one row where the network normalizes over the rows of a batch.

    Raises:
        FathomError: says which batch is large enough.
    """
    rows = len(task.prepared.splits["train"])
    smallest = rows // epoch_steps(rows, task.recipe.training.rows_per_batch())
    if smallest > 1 or not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in model.modules()):
        return
    try:
        with torch.no_grad(), devices.undisturbed():
            copy.deepcopy(model).train()(task.prepared.sets["train"].batch(torch.tensor([0])))
    except ValueError as error:
        raise FathomError(
            f"training.batch = {task.recipe.training.batch} makes batches of one row of {rows}, and the network's batch "
            "normalization cannot take the mean over one. Use a larger --batch, or another normalization."
        ) from error


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
    made: Any = networks[name].build(schema, role, **table)
    if hasattr(made, "begin"):  # published weights; those of a saved run come from its folder
        made.begin()
    built: nn.Module = made
    return built


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
            truth = task.prepared.sets["train"].column(name)
            count = torch.bincount(truth if truth.ndim == 1 else truth.argmax(1), minlength=target.outputs[0]).float()
            weights[name] = (count.sum() / (len(count) * count.clamp(min=1))).to(device)
    return weights


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


def by_trial(task: Task, device: Device) -> tuple[Task, Measured]:
    """A trial, and the recipe with what only a trial can tell: threads, precision, and steps where minutes were given."""
    training = task.recipe.training
    measured = measure(task, device)
    changes: dict[str, Any] = {"threads": measured.threads, "precision": measured.precision}
    if training.steps is None:
        seconds = 60 * (training.minutes or 1) * 0.95  # the rest is for validation
        changes["steps"] = max(1, int(seconds / measured.seconds))
        changes["epochs"] = round(max(changes["steps"] / _per_epoch(training, task.prepared), 0.01), 2)
    settled = task.recipe.model_copy(update={"training": training.model_copy(update=changes)})
    return replace(task, recipe=settled), measured


def complete(task: Task, device: Device) -> Task:
    """The task with a complete recipe; a trial is made only where something is left open."""
    training = task.recipe.training
    left_open = training.threads is None or training.precision is None or training.steps is None
    return by_trial(task, device)[0] if left_open else task


def _precisions(task: Task, device: Device) -> list[str]:
    """Convolutions and transformers gain from bfloat16; small dense networks lose, and rounding costs forecasts."""
    gains = any(item.kind in ("image", "text") for item in task.schema.fields().values())
    return device.precisions() if gains or device.torch.type == "cuda" else ["float32"]


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
