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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from fathom.algorithms.regularizers import regularizers
from fathom.analysis import decision, plan, scores
from fathom.core import device as devices
from fathom.core.batching import rows_at_a_time
from fathom.core.contract import (
    Algorithm,
    Batch,
    Clock,
    Context,
    Loss,
    Model,
    Schema,
    Source,
    Stage,
    epoch_steps,
)
from fathom.core.device import Device
from fathom.core.errors import FathomError, count_text, unknown
from fathom.core.features import Served
from fathom.core.prepare import Prepared
from fathom.core.recipe import (
    BUDGETS,
    FROM,
    OWN,
    Data,
    Recipe,
    StageTable,
    Training,
    divided,
    in_shares,
    merge,
    network_name,
    options_of,
)
from fathom.core.registry import algorithms, networks
from fathom.core.tensors import TensorSet
from fathom.fields.augment import transform as augmentation
from fathom.networks import own
from fathom.sources import open_source
from fathom.verbs import acting, transfer

Tell = Callable[[str], None]
LOOKED_AT = 5_000  # training rows that a network sees before training begins, where it asks for some
MOST_VALUES = 1 << 26  # of these rows, as float32 a quarter of a GiB


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
        origin: the run or file that the weights begin from, as `network.from` names it; read once more where None.
        earlier: the fitted schema whose states the inputs take over, empty where weights came from a file alone; None where
            nothing is taken over.
        began: what was taken over, in sentences; a run that goes on reads it in its own folder.
    """

    recipe: Recipe
    prepared: Prepared
    choice: plan.Choice
    module: nn.Module | None = None
    losses: Mapping[str, Loss] = field(default_factory=dict)
    origin: transfer.Origin | None = None
    earlier: Schema | None = None
    began: Sequence[str] = ()

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
    data: Any, tree: Mapping[str, Any], module: nn.Module | None = None, losses: Any = None, earlier: Schema | None = None
) -> Task:
    """From what the user said to a task; of a run of several folds, that of the first.

    Args:
        data: location, frame, arrays, Dataset, DataLoader.
        tree: the user's recipe as nested tables.
        module: their own network.
        losses: a loss of theirs, or target -> loss.
        earlier: what the inputs of this very run have taken over, where one goes on that began with other weights
            (`network.from`), so that those need not be there any more.

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
    location = Recipe.parse(tree).network.get(FROM)
    origin = transfer.origin_of(location) if location and earlier is None else None
    named = network_name(tree.get("network", {})) is not None
    if origin is not None:
        tree = transfer.beneath(_around(data, tree, origin), origin)
        earlier = origin.schema
    tree = _for_algorithm(tree)
    asked = Recipe.parse(tree)
    compare = asked.data.compare or []
    source = open_source(data, _apart(asked.data))
    if compare:
        scores.check(compare, source.columns())
    tree = _with_settings(tree, asked.network, source)
    source, tree = _recast(source, tree)
    asked = Recipe.parse(tree)
    prepared = source.prepare(_division(asked), asked.training.seed, earlier)
    if compare:
        scores.check_target(prepared.schema)
        prepared.notes.append(f"No inputs, but what the network is compared with (data.compare): {', '.join(compare)}.")
    rows = len(prepared.sets["train"])
    choice = plan.choose(prepared.schema, rows, tree)
    if origin is not None and (choice.network == origin.network.get("name") or not named):
        choice = replace(choice, reason=f"its weights come from {origin.shown}")
    stages = tree.get("stage", [])
    fixed = stages and not in_shares(stages)
    chosen = {key: value for key, value in choice.changes.items() if not (fixed and key in BUDGETS)}
    merged = merge(merge({}, chosen), _dotted(tree))
    recipe = Recipe.parse({**merged, "stage": stages})
    task = Task(recipe, prepared, choice, module, _losses(losses, prepared.schema), origin, earlier)
    if prepared.environment is not None:
        return _in_stages(replace(task, recipe=acting.settle(recipe, prepared.schema)), merged)
    decision.check_remedies(recipe, prepared.schema)
    decision.check(prepared.schema, prepared.sets)
    augmentation(recipe.augment, prepared.schema, recipe.training.seed)  # refuses what does not fit before a run is begun
    task = _in_stages(task, merged)
    recipe = _settle(task.recipe, prepared, asked.training.keep)
    _check_monitor(recipe.training, prepared)
    return _watching(replace(task, recipe=recipe), plan.is_given(tree, "training.monitor"))


def _around(data: Any, tree: Mapping[str, Any], origin: transfer.Origin) -> Mapping[str, Any]:
    """The recipe of a network that is built around the body of the origin's network, where these data ask for one.

    Args:
        data: location, frame, arrays, Dataset, DataLoader.
        tree: the user's recipe as nested tables.
        origin: of the weights.

    Raises:
        FathomError: only such a network fits the data, and none can be built around this body.
    """
    named, theirs = network_name(tree.get("network", {})), origin.network.get("name")
    builders = [entry for entry in networks if "around" in entry.about and named in (None, entry.name)]
    pictures = [tuple(item.shape) for item in origin.schema.inputs.values() if item.kind == "image"]
    if not builders or theirs in (OWN, named) or not (pictures or named):
        return tree
    asked = open_source(data, _apart(Recipe.parse(tree).data)).schema()
    entry = next((entry for entry in builders if entry.about["suits"](asked, 0) > 0), None)
    if entry is None:
        return tree
    found = entry.about["around"](theirs, options_of(origin.network), pictures[0]) if pictures else None
    if theirs is not None and found is None:
        known = ", ".join(other.name for other in networks if "pieces" in other.about)
        raise FathomError(
            f"{origin.shown} trained the network {theirs}, and no {entry.name} can be built around its body. Those around whose "
            f"body one can be built: {known}. Or leave network.from out."
        )
    return transfer.around(tree, entry.name, found or {}, origin)


def _watching(task: Task, given: bool) -> Task:
    """The task with a monitored metric that the validation rows define."""
    recipe, prepared = task.recipe, task.prepared
    monitor, told = decision.watched(recipe.training.monitor, given, prepared.schema, prepared.sets["validation"])
    if not told:
        return task
    training = recipe.training.model_copy(update={"monitor": monitor})
    changed = recipe.model_copy(update={"training": training})
    return replace(task, recipe=changed, prepared=replace(prepared, notes=[*prepared.notes, *told]))


def _in_stages(task: Task, tree: Mapping[str, Any]) -> Task:
    """The task with what is taken over, and the stages of transfer where nobody wrote others.

    Args:
        task: its recipe is checked, its budget not settled yet.
        tree: the same recipe as nested tables.
    """
    recipe = task.recipe
    if task.origin is None and (recipe.stage or not _thaws(task)):
        return task
    algorithm: type[Algorithm] = algorithms[recipe.training.algorithm or ""].make
    roles = algorithm.roles(task.schema)
    with devices.undisturbed():
        models = {role: Model(part, network(task, part, role)) for role, part in roles.items()}
    found = {}
    if task.origin is not None:
        found = {role: transfer.match(models[role], part, role, task.origin) for role, part in roles.items()}
        began = [match.sentence() for match in found.values()]
        told = replace(task.prepared, notes=[*task.prepared.notes, *began])
        task = replace(task, prepared=told, began=began)
    module = next(iter(models.values())).module
    states_rates = getattr(module, "rates", None) is not None
    if recipe.stage or len(models) > 1 or states_rates or algorithm.stages is not Algorithm.stages:
        return task
    new = [name.removeprefix("module.") for match in found.values() for name in match.new]
    tables = transfer.stage_tables(module, new if found else [transfer.head_name(module)])
    return replace(task, recipe=Recipe.parse({**tree, "stage": tables}))


def check_weights(task: Task) -> None:
    """Refuse to begin with published weights that cannot be had, before a run folder is made.

    Raises:
        FathomError: says what to install.
    """
    table = task.recipe.network
    check = networks[table["name"]].about.get("check") if table["name"] != OWN else None
    if check is not None and task.earlier is None:
        check(task.schema, options_of(table))


def _thaws(task: Task) -> bool:
    """Whether the network begins with a published body that is to thaw after its head has learnt."""
    table = task.recipe.network
    thaws = networks[table["name"]].about.get("thaws") if table["name"] != OWN else None
    return task.earlier is None and thaws is not None and bool(thaws(task.schema, options_of(table)))


def _with_settings(tree: Mapping[str, Any], network: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
    """What a network needs that must be known before the data are encoded, beneath what the user said.

    Options of its own that it returns are the user's, written out (a path that holds from anywhere).

    Args:
        tree: the user's recipe as nested tables.
        network: its checked table, complete where it names a network of the registry.
        source: of the data; its guessed schema is asked for.
    """
    name = network.get("name", OWN)
    settings = networks[name].about.get("settings") if name != OWN else None
    if settings is None:
        return tree
    settled = settings(network, source.schema()).items()
    wanted = {key: value for key, value in settled if key.startswith("network.") or not plan.is_given(tree, key)}
    stages = tree.get("stage", [])
    if (stages and not in_shares(stages)) or any(plan.is_given(tree, key) for key in BUDGETS):
        wanted = {key: value for key, value in wanted.items() if key not in BUDGETS}
    return merge(tree, wanted)


def _recast(source: Source, tree: Mapping[str, Any]) -> tuple[Source, Mapping[str, Any]]:
    """The source and the recipe of an algorithm that asks something else of the rows than what was guessed."""
    asked = Recipe.parse(tree)
    recast = algorithms[asked.training.algorithm].about.get("recast") if asked.training.algorithm else None
    if recast is None:
        return source, tree
    source, changes = recast(source, asked)
    return source, merge(tree, changes)


def _for_algorithm(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe with what a named algorithm needs that must be known before the data are read.

    A network that is for an algorithm which asks something of its own of the rows names that algorithm as well.
    """
    asked = Recipe.parse(tree)
    name = asked.network.get("name")
    meant = networks[name].about.get("algorithm") if name is not None and name != OWN else None
    if meant is not None and asked.training.algorithm is None and "recast" in algorithms[meant].about:
        tree = merge(tree, {"training.algorithm": meant})
        asked = Recipe.parse(tree)
    settings = algorithms[asked.training.algorithm].about.get("settings") if asked.training.algorithm else None
    return merge(tree, settings(asked.data)) if settings else tree


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables -> dotted keys, two deep."""
    flat: dict[str, Any] = {}
    for section, table in tree.items():
        if isinstance(table, Mapping):
            flat.update({f"{section}.{key}": value for key, value in table.items()})
    return flat


def _apart(data: Data) -> Data:
    """The data table with its known scores as no inputs.

    Raises:
        FathomError: one of them has another part as well.
    """
    for name in data.compare or []:
        given = {"data.target": data.target or [], "data.input": data.input or []}
        taken = next((key for key, names in given.items() if name in names), None)
        if data.types.get(name, "ignore") != "ignore":
            taken = f"data.types.{name}"
        if taken is not None:
            raise FathomError(
                f"'{name}' stands in data.compare, so it is no input and no target, but it stands in {taken} as well; leave it "
                "out of one."
            )
    return data.model_copy(update={"types": {**data.types, **dict.fromkeys(data.compare or [], "ignore")}})


def _division(recipe: Recipe) -> Data:
    """The data table by which rows are divided: of a run of several folds the first fold stands for all."""
    folds = recipe.training.folds
    if folds == 1:
        return recipe.data
    if recipe.data.fold is not None:
        raise FathomError(f"data.fold trains one fold and training.folds = {folds} trains all; leave one of them out.")
    return recipe.data.model_copy(update={"fold": (1, folds)})


def _check_monitor(training: Training, prepared: Prepared) -> None:
    """Refuse a metric that is not watched, before anything is trained or written."""
    monitor, watched = training.monitor, algorithms[training.algorithm or ""].about.get("watches")
    targets, rows = prepared.schema.targets, prepared.sets["validation"]
    few = rows.subset(torch.arange(min(64, len(rows))))
    known = ["loss", *(watched or ())]  # an algorithm that names none watches every metric of its targets
    for name, target in targets.items() if monitor != "loss" and watched is None else ():
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
    if training.steps is None and training.epochs is not None and training.minutes is None:
        changes["steps"] = max(1, round(training.epochs * per_epoch))
    if in_shares(stages) and (total := changes.get("steps", training.steps)) is not None:
        stages = _in_proportion(stages, total)
    if all(stage.steps is not None for stage in stages) and stages:
        changes["steps"] = sum(stage.planned_steps() for stage in stages)
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


def _in_proportion(stages: Sequence[StageTable], total: int) -> list[StageTable]:
    """Stages of a share, with their steps of `total`."""
    steps = divided(total, [stage.share or 0.0 for stage in stages])
    return [stage.model_copy(update={"steps": count}) for stage, count in zip(stages, steps, strict=True)]


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


def build(task: Task, device: Device, fresh: bool = False) -> Assembly:
    """One model a role from the seed, the algorithm around them, and a clock at zero.

    Args:
        task: planned.
        device: where it runs.
        fresh: whether training begins with these models, so that a network which asks for it sees training rows, and
            published or earlier weights are put in place; a checkpoint brings its own, and a trial or a plan needs none.
    """
    recipe, schema = task.recipe, task.schema
    devices.seed_everything(recipe.training.seed)
    algorithm = algorithms[recipe.training.algorithm or ""].make
    models = {}
    for role, part in algorithm.roles(schema).items():
        model = Model(part, network(task, part, role))
        if fresh:
            _look(model, task)
            _begin(model, part, role, task)
        _check_single_rows(model, task)
        models[role] = (model if task.module is not None else to_memory_format(model)).to(device.torch)
    clock = Clock()
    context = Context(
        schema, models, recipe, clock, device.torch,
        transform=augmentation(recipe.augment, schema, recipe.training.seed),
        regularizers=regularizers(recipe.training.l1, recipe.training.l2, models),
        losses=task.losses,
        class_weights=class_weights(task, device.torch),
        environment=task.prepared.environment,
    )  # fmt: skip
    built = algorithm(context, **recipe.algorithm)
    for stage in recipe.stage:  # a wrong name in the last stage is told before the first one
        for optimizer in built.optimizers.values():
            optimizer.check(stage.rates)
    return Assembly(built, clock, models)


def oversized(assembly: Assembly, task: Task) -> list[str]:
    """A sentence where the networks are far too large for the rows; weights that come from elsewhere know something."""
    if FROM in task.recipe.network or task.prepared.environment is not None:
        return []
    random = {role: model for role, model in assembly.models.items() if not hasattr(model.module, "begin")}
    return plan.oversized(random, task.schema, len(task.prepared.sets["train"]))


def _check_single_rows(model: Model, task: Task) -> None:
    """Refuse batches of one row where the network normalizes over the rows of a batch.

    Raises:
        FathomError: says which batch is large enough.
    """
    rows = len(task.prepared.sets["train"])
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
    """The network of one role, from the registry or the user, before any weights are put in place."""
    name = task.recipe.network["name"]
    if name == OWN:
        if task.module is None:
            raise FathomError(
                "This recipe was made for your own module; call fathom.fit(..., network=module) from Python."
            )
        return own.adopt(copy.deepcopy(task.module), schema, samples(task.prepared, schema))
    built: nn.Module = networks[name].build(schema, role, **options_of(task.recipe.network))
    return built


def _begin(model: Model, schema: Schema, role: str, task: Task) -> None:
    """Put the weights in place that training begins with: an earlier run's, else published ones."""
    location = task.recipe.network.get(FROM)
    if location is not None:
        transfer.put(model, transfer.match(model, schema, role, task.origin or transfer.origin_of(location)))
    elif hasattr(model.module, "begin"):
        model.module.begin()  # type: ignore[operator]


@torch.no_grad()
def _look(model: Model, task: Task) -> None:
    """Show preprocessed training rows, drawn evenly, to a network that asks for them (`look`); its own inputs, in order."""
    prepared, look = task.prepared, getattr(model.module, "look", None)
    if look is None or prepared.environment is not None:
        return
    train = prepared.sets["train"]
    values = sum(int(np.prod(item.shape)) for item in prepared.schema.inputs.values())
    count = min(len(train), LOOKED_AT, max(1, MOST_VALUES // values))
    batch = train.batch(torch.arange(count) * len(train) // count)
    look(*(layer(batch[name]) for name, layer in zip(model.input_names, model.preprocess, strict=True)))


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
        threads: CPU threads on which training is fastest.
        precision: of matrix work.
        stages: seconds a step of each stage.
        once: seconds for the features that a frozen body makes of all rows.
        looks: seconds of validation that come upon each step, spread over an epoch; measured where minutes are to be kept.
    """

    threads: int
    precision: str
    stages: tuple[float, ...]
    once: float = 0.0
    looks: float = 0.0

    def training(self, recipe: Recipe) -> float:
        """Seconds of the whole training of a complete recipe."""
        steps = [stage.planned_steps() for stage in recipe.stage] or [recipe.training.planned_steps()]
        return self.once + sum(count * (seconds + self.looks) for count, seconds in zip(steps, self.stages, strict=True))

    def steps(self, seconds: float, shares: Sequence[float]) -> int:
        """Steps in all that fit into a time, where each stage takes its share of them."""
        each = self.looks + sum(share * cost for share, cost in zip(shares, self.stages, strict=True))
        return max(1, int((seconds - self.once) / each))

    def cost(self, recipe: Recipe) -> float:
        """What makes one way dearer than another: seconds of the whole training, or, of given minutes, the part of a step."""
        if recipe.training.steps is not None:
            return self.training(recipe)
        return 1 / self.steps(60 * (recipe.training.minutes or 1), shares_of(recipe))


def shares_of(recipe: Recipe) -> list[float]:
    """The part of all steps that each stage takes."""
    return [stage.share or 0.0 for stage in recipe.stage] or [1.0]


def measure(task: Task, device: Device, budget: float = 0.3) -> Measured:
    """Time real steps on copies, in each way that is open, and keep the fastest.

    Tiny networks run best on one thread; with another process on the machine all threads can be many times slower. The
    plainer way wins unless the other takes a fifth less time, so that a busy machine does not decide by chance. All
    stages count, and so do features that are made once.

    Args:
        task: planned.
        device: where it will run.
        budget: seconds spent on each way.
    """
    training = task.recipe.training
    many = 1_000_000  # steps, where the trial shall tell how many
    changes: dict[str, Any] = {
        "training": training.model_copy(update={"steps": training.steps or many}),
        "stage": [stage.model_copy(update={"steps": stage.steps or many}) for stage in task.recipe.stage],
    }
    with devices.undisturbed():
        assembly = build(replace(task, recipe=task.recipe.model_copy(update=changes)), device)
        stages = assembly.algorithm.stages(resident(task.prepared.sets, device))
        stages = stages if task.recipe.stage else stages[:1]
        best: Measured | None = None
        for precision in [training.precision] if training.precision else _precisions(task, device):
            for threads in [training.threads] if training.threads else _threads(device):
                tried = _tried(assembly, stages, task, threads, replace(device, precision=precision), budget)
                if best is None or tried.cost(task.recipe) < 0.8 * best.cost(task.recipe):
                    best = tried
        assert best is not None, "there is always a way"
        looks = _seconds_of_validation(assembly, task, best.threads) if training.steps is None else 0.0
    return replace(best, looks=looks)


def _tried(
    assembly: Assembly, stages: Sequence[Stage], task: Task, threads: int, device: Device, budget: float
) -> Measured:
    """What one way costs: a step of each stage, and the features that are made once."""
    costs, once = [], 0.0
    for stage in stages:
        batches = _trial_batches(assembly, stage, task)
        costs.append(_seconds_a_step(assembly, batches, threads, device, budget))
        once += _seconds_once(assembly, stage, task, threads, device)
    return Measured(threads, device.precision, tuple(costs), once)


def _trial_batches(assembly: Assembly, stage: Stage, task: Task) -> Any:
    """The batches of a stage as it begins; features are made for a few rows only, so that what a step costs shows."""
    algorithm = assembly.algorithm
    for optimizer in algorithm.optimizers.values():
        optimizer.begin(stage.rates)
    if not isinstance(stage.data, TensorSet) or not isinstance(algorithm.rows(stage), Served):
        return algorithm.batches(stage, 0)
    few = stage.data.subset(torch.arange(min(len(stage.data), task.recipe.training.rows_per_batch())))
    return algorithm.batches(replace(stage, data=few), 0)


def _seconds_once(assembly: Assembly, stage: Stage, task: Task, threads: int, device: Device) -> float:
    """Seconds that the features of all training and validation rows take once, where the stage keeps them; else none."""
    rows = assembly.algorithm.rows(stage) if isinstance(stage.data, TensorSet) else None
    if not isinstance(rows, Served):
        return 0.0
    with devices.threads(threads):
        return rows.seconds_a_row(device) * sum(len(task.prepared.sets[part]) for part in ("train", "validation"))


def _seconds_of_validation(assembly: Assembly, task: Task, threads: int) -> float:
    """Seconds of validation that come upon each step, spread over an epoch; some rows tell. Environments are played, not read."""
    prepared, training = task.prepared, task.recipe.training
    if prepared.environment is not None or not len(rows := prepared.sets["validation"]):
        return 0.0
    some = rows.subset(torch.arange(min(len(rows), rows_at_a_time(rows, rows.device))))
    with devices.threads(threads):
        assembly.algorithm.validate(some)  # warms up, and makes the features that are kept
        start = time.perf_counter()
        assembly.algorithm.validate(some)
        seconds = time.perf_counter() - start
    return seconds * len(rows) / len(some) / _per_epoch(training, prepared)


def by_trial(task: Task, device: Device) -> tuple[Task, Measured]:
    """A trial, and the recipe with what only a trial can tell: threads, precision, and steps where minutes were given."""
    training = task.recipe.training
    measured = measure(task, device)
    changes: dict[str, Any] = {"threads": measured.threads, "precision": measured.precision}
    if training.steps is None:
        seconds = 60 * (training.minutes or 1) * 0.95  # the rest is for checkpoints and what the trial missed
        changes["steps"] = measured.steps(seconds, shares_of(task.recipe))
        if task.prepared.environment is None:
            changes["epochs"] = round(max(changes["steps"] / _per_epoch(training, task.prepared), 0.01), 2)
    settled = task.recipe.model_copy(update={"training": training.model_copy(update=changes)})
    if in_shares(settled.stage):
        stages = _in_proportion(settled.stage, settled.training.planned_steps())
        settled = settled.model_copy(update={"stage": stages})
    return replace(task, recipe=settled), measured


def complete(task: Task, device: Device) -> Task:
    """The task with a complete recipe; a trial is made only where something is left open."""
    training = task.recipe.training
    left_open = training.threads is None or training.precision is None or training.steps is None
    return by_trial(task, device)[0] if left_open else task


def by_timing(task: Task, settled: Recipe, device: Device) -> list[str]:
    """A sentence about what a trial chose among several ways, which may differ from run to run; none where it chose nothing.

    Args:
        task: as it was before the trial.
        settled: the recipe with what the trial showed.
        device: where it runs.
    """
    asked, chosen = task.recipe.training, settled.training
    ways = {
        f"precision {chosen.precision}": asked.precision is None and len(_precisions(task, device)) > 1,
        count_text(chosen.threads or 1, "thread"): asked.threads is None and len(_threads(device)) > 1,
        count_text(chosen.planned_steps(), "step"): asked.steps is None,
    }
    found = [way for way, timed in ways.items() if timed]
    told = f"Chosen by timing: {', '.join(found)}. Another run may choose otherwise; this run's recipe.toml repeats it exactly."
    return [told] if found else []


def _precisions(task: Task, device: Device) -> list[str]:
    """Convolutions and transformers gain from bfloat16; small dense networks lose, and rounding costs forecasts."""
    gains = any(item.kind.startswith(("image", "text")) for item in task.schema.fields().values())
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
            for _ in range(assembly.algorithm.cycle):
                assembly.algorithm.step(next(batches))
            if device.torch.type == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) / assembly.algorithm.cycle)
    return float(np.quantile(times[2:], 0.25))
