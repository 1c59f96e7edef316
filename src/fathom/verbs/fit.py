"""`fathom fit`: infer the task, plan, train, evaluate, write the run folder.

fit(data, ...)          a new run
fit(resume=run)         go on with one that was stopped

open_task ─▶ complete ─▶ train_one ─▶ Run     one member, or several and their aggregate
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from fathom.analysis import plan
from fathom.core import bad_rows
from fathom.core import device as devices
from fathom.core.device import Device
from fathom.core.errors import FathomError, RunError, count_text
from fathom.core.recipe import BUDGETS, OWN, Recipe, StageTable, Training, flag_changes, in_shares, merge
from fathom.core.run import RunFolder, load_tensors, read_json, safe_name, sealed_json, write_atomic
from fathom.networks import own
from fathom.verbs import members, transfer
from fathom.verbs.assemble import Session, Task, Tell, by_timing, check_weights, complete, open_task, silent
from fathom.verbs.result import Run
from fathom.verbs.train import train_one

__all__ = ["fit"]


def fit(
    data: Any = None,
    *more: Any,
    network: str | nn.Module | None = None,
    loss: Any = None,
    recipe: Mapping[str, Any] | str | Path | None = None,
    resume: Run | str | Path | None = None,
    tell: Tell | None = None,
    progress: TextIO | None = None,
    **flags: Any,
) -> Run:
    """Train a network on your data and judge it.

    Args:
        data: a folder, file or built-in name; a frame, arrays, lists, a torch Dataset or DataLoader; or a recipe file.
        more: nothing; x and y come together, as `fit((x, y))`.
        network: a name, or your own `nn.Module`.
        loss: your own loss, (output, target) -> one number a row; or target -> loss.
        recipe: tables, or the path of a TOML file, that the other arguments override.
        resume: a run that was stopped; other arguments may change its budget.
        tell: is called with each line about what was guessed; silent where None.
        progress: where the line of each epoch is printed; a terminal's stderr where None.
        flags: `target="income"`, `epochs=5` ... (see `fathom.core.recipe.FLAGS`) and dotted keys,
            `**{"network.dropout": 0.5}`.

    Returns:
        The finished run.

    Raises:
        FathomError: anything wrong with the data, the recipe or the machine, in sentences.
    """
    refuse_more(more)
    progress = progress if progress is not None else (sys.stderr if sys.stderr.isatty() else None)
    if resume is not None:
        if recipe is not None:
            raise FathomError(
                "A run goes on with its own recipe: leave recipe= out, or start a new run without resume=."
            )
        name, module = named(network)
        changes = flag_changes({**flags, "network": name})
        folder = resume.folder if isinstance(resume, Run) else RunFolder.open(resume)
        with folder.lock():
            return _resume(folder, data, changes, Session(module, loss, tell or silent, progress))
    data, tree, module = request(data, network, recipe, flags)
    return _start(data, tree, Session(module, loss, tell or silent, progress))


def refuse_more(more: tuple[Any, ...]) -> None:
    """x and y as two arguments are what many are used to."""
    if more:
        raise FathomError("Give x and y together, as one pair: fathom.fit((x, y)).")


def request(
    data: Any, network: str | nn.Module | None, recipe: Any, flags: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], nn.Module | None]:
    """What the user said, as (data, nested tables, own network).

    Raises:
        FathomError: no data is named, or an argument is not known.
    """
    name, module = named(network)
    data, flags = _with_parts(data, flags)
    changes = flag_changes({**flags, "network": name})
    if isinstance(data, str) and not data.strip():
        raise FathomError(NOTHING)
    if isinstance(data, str | Path) and str(data).endswith(".toml"):
        if recipe is not None:
            raise FathomError(
                f"Two recipes came: {data} and recipe=. Give one, and what should differ as keys: **{{'network.dropout': 0.5}}."
            )
        data, recipe = None, data
    tree = dict(recipe) if isinstance(recipe, Mapping) else Recipe.read(Path(recipe)) if recipe else {}
    tree = merge(tree, changes)
    if data is None:
        data = tree.get("data", {}).get("location")
    if data is None and recipe is not None:
        Recipe.parse(tree, recipe if isinstance(recipe, str) else "")  # what is wrong in it may be why it names none
        raise FathomError(
            "The recipe names no data: it was made from data in memory. Give them as well: fathom.fit(data, recipe=...)"
        )
    if data is None:
        raise FathomError(NOTHING)
    if isinstance(data, str | Path):
        data = _absolute(str(data))
        tree = merge(tree, {"data.location": data})
    return data, tree, module


def _with_parts(data: Any, flags: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Data in memory for validation and test, which no recipe can hold, join the training data as parts of one mapping."""
    kinds = (str, float, int, os.PathLike, type(None))
    parts = {part: flags[part] for part in ("valid", "test") if not isinstance(flags.get(part), kinds)}
    rest = {name: value for name, value in flags.items() if name not in parts}
    if parts and (data is None or isinstance(data, str | Path)):
        raise FathomError(
            f"{next(iter(parts))}= holds data in memory, and the training data lie elsewhere. Give files for both, or both "
            "in memory."
        )
    return {"train": data, **parts} if parts else data, rest


NOTHING = "Nothing to learn from: name a folder, a file or a built-in set, as in: fathom fit digits"


def named(network: Any) -> tuple[str | None, nn.Module | None]:
    """What `network=` says, as a name or a module of the user's own.

    Raises:
        FathomError: it is neither.
    """
    if network is None or isinstance(network, str):
        return network, None
    if isinstance(network, nn.Module):
        return None, network
    if isinstance(network, type):
        raise FathomError(
            f"network= is the class {network.__name__}; give a module made from it, as in network={network.__name__}(...)."
        )
    raise FathomError(
        f"network= is a {type(network).__name__}; give a name or your own nn.Module. Settings of a network are keys: "
        "fathom.fit(data, network='mlp', **{'network.dropout': 0.5})."
    )


def _absolute(location: str) -> str:
    """A path that holds from anywhere, `$NAME` and `~` filled in; names of built-in sets stay as they are."""
    location = os.path.expandvars(os.path.expanduser(location))
    return str(Path(location).resolve()) if Path(location).exists() else location


def _start(data: Any, tree: dict[str, Any], session: Session) -> Run:
    begin = time.perf_counter()
    training = Recipe.parse(tree).training
    device = Device.choose(training.device)
    devices.check_threads(training.threads)
    own_name = type(session.module).__name__ if session.module is not None else "data"
    location = data if isinstance(data, str | Path) else own_name
    name, exact = training.name or safe_name(str(location)), training.name is not None
    RunFolder.check(Path(training.out), name, exact=exact)  # before the data are read, which may take long
    with bad_rows.listing(Path(training.out) / f"{name}-{bad_rows.FILE}"):
        task = open_task(data, tree, session.module, session.loss)
    check_weights(task)
    planned, task = task, complete(task, device)
    folder = RunFolder.create(Path(training.out), name, exact=exact)
    with folder.lock():
        _write_start(folder, task)
        _introduce(task, session.tell, folder, by_timing(planned, task.recipe, device))
        return _train(folder, task, data, device, session, time.perf_counter() - begin)


def _write_start(folder: RunFolder, task: Task) -> None:
    """What is true from the start; recipe.toml last, since it makes the folder a run."""
    about: dict[str, Any] = {
        **devices.machine(),
        "data": task.prepared.fingerprint,
        "fathom": _version(),
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    if task.earlier is not None:
        about["transfer"] = transfer.written(task.earlier, task.began)
    write_atomic(folder.file("environment.json"), sealed_json(about))
    write_atomic(folder.file("schema.json"), sealed_json(task.schema.to_json()))
    if task.prepared.bad:
        bad_rows.write(folder.file(bad_rows.FILE), task.prepared.bad)
    write_atomic(folder.file("recipe.toml"), task.recipe.toml().encode())


def _version() -> str:
    from importlib.metadata import version

    return version("fathom")


def _introduce(task: Task, tell: Tell, folder: RunFolder, timed: Sequence[str]) -> None:
    """Tell what was guessed and what a trial chose, and keep it in log.txt."""
    lines = [*describe(task), *(f"Note      {note}" for note in timed)]
    for line in lines:
        tell(line)
    folder.file("log.txt").write_text("\n".join(lines) + "\n", "utf-8")


def describe(task: Task) -> list[str]:
    """What was guessed from the data and decided, a line each."""
    training = task.recipe.training
    of_folds = f" in the first of {training.folds} folds" if training.folds > 1 else ""
    task_name = plan.task_name(task.schema, task.recipe.training.algorithm)
    lines = [f"Task      {task_name} ({task.prepared.extent()}{of_folds})"]
    lines += [f"Input     {name}: {item.describe()}" for name, item in task.schema.inputs.items()]
    lines += [f"Target    {name}: {item.describe()}" for name, item in task.schema.targets.items()]
    lines += [f"Note      {note}" for note in task.prepared.notes]
    lines.append(f"Network   {task.choice.network}: {task.choice.reason}")
    lines.append(
        f"Training  {training.optimizer}, rate {training.learning_rate:g}, batch {training.batch}, "
        f"{_length(training)}, {training.precision or 'float32'}, "
        f"{training.threads or 'any'} thread{'s' if training.threads != 1 else ''}"
    )
    if task.recipe.stage:
        lines.append(f"Stages    {'; then '.join(map(_stage, task.recipe.stage))}")
    return lines


def _stage(stage: StageTable) -> str:
    """A stage in words: how long, and what learns."""
    frozen = [glob for glob, rate in stage.rates.items() if rate == 0]
    learning = [glob.removesuffix(".*") for glob, rate in stage.rates.items() if rate > 0]
    what = f", {', '.join(learning)} alone" if "*" in frozen else f", all but {', '.join(frozen)}" if frozen else ""
    return f"{stage.name}: {count_text(stage.planned_steps(), 'step')}{what}"


def _length(training: Training) -> str:
    """How long it is trained, in words."""
    steps = count_text(training.planned_steps(), "step")
    return steps if training.environment_steps is None else f"{training.environment_steps:,} actions in {steps}"


def _train(folder: RunFolder, task: Task, data: Any, device: Device, session: Session, prepared_seconds: float) -> Run:
    """Train one member, or all; then aggregate."""
    training = task.recipe.training
    if training.folds == 1 and training.seeds == 1:
        train_one(folder, task, device, session, prepared_seconds, folder)
        return Run(folder, copy.deepcopy(session.module))
    made = []
    planned = members.plan(task.recipe)
    for number, (name, recipe) in enumerate(planned.items()):
        path = RunFolder(folder.file("members") / name)
        made.append(path)
        path.path.mkdir(parents=True, exist_ok=True)
        with path.lock():
            recipe = _take_up(path, recipe)
            if path.file("results.json").exists():
                continue
            session.tell(f"Member    {name} ({number + 1} of {len(planned)})")
            begin = time.perf_counter()
            member = _member(task, recipe, data, session)
            seconds = time.perf_counter() - begin + (prepared_seconds if number == 0 else 0.0)
            if not path.file("recipe.toml").exists():
                _write_start(path, member)
            _check_data(path, member)
            train_one(path, member, device, session, seconds, folder)
    members.aggregate(folder, made, training)
    return Run(folder, copy.deepcopy(session.module))


# What a resume may change. Members follow the run of which they are.
RESUMABLE = (*BUDGETS, "training.device", "training.threads")


def _take_up(folder: RunFolder, planned: Recipe) -> Recipe:
    """The recipe of a member: its own where it has begun, under the budget that the run has now."""
    if not folder.file("recipe.toml").exists():
        return planned
    begun = Recipe.parse(Recipe.read(folder.file("recipe.toml")))
    keys = [key.partition(".")[2] for key in RESUMABLE]
    changes = {key: getattr(planned.training, key) for key in keys}
    if begun.training.steps != planned.training.steps:
        changes |= {"stop_after": None, "replans": None}
    stages = planned.stage if in_shares(planned.stage) else begun.stage
    recipe = begun.model_copy(update={"training": begun.training.model_copy(update=changes), "stage": stages})
    if recipe != begun:
        _check_budget(folder, recipe.training.planned_steps())
        _begin_again(folder, recipe, extended=begun.training.steps != planned.training.steps)
    return recipe


def _begin_again(folder: RunFolder, recipe: Recipe, *, extended: bool) -> None:
    """Write a changed recipe. A larger budget unmakes the end of the run, first, so that a kill here leaves no wrong one."""
    if extended:
        folder.file("results.json").unlink(missing_ok=True)
    write_atomic(folder.file("recipe.toml"), recipe.toml().encode())


def _member(task: Task, recipe: Recipe, data: Any, session: Session) -> Task:
    """The task of one member; those that share the rows of the run's own task are not read again."""
    divided = task.recipe.training.seed if task.recipe.data.split_seed is None else task.recipe.data.split_seed
    if recipe.data.fold is None or (recipe.data.fold[0] == 1 and recipe.data.split_seed == divided):
        return replace(task, recipe=recipe)
    opened = open_task(data, recipe.tables(), session.module, session.loss, task.earlier)
    return _remembered(replace(opened, choice=task.choice, origin=task.origin), task.began)


def _remembered(task: Task, began: Sequence[str]) -> Task:
    """A task that was opened without what it began from, with what its run has written about that."""
    notes = [*task.prepared.notes, *(note for note in began if note not in task.prepared.notes)]
    return replace(task, prepared=replace(task.prepared, notes=notes), began=began)


def _resume(folder: RunFolder, data: Any, changes: Mapping[str, Any], session: Session) -> Run:
    """Go on where a run was stopped, or beyond its end where it has a larger budget now."""
    tree = Recipe.read(folder.file("recipe.toml"))
    begun = Recipe.parse(tree)
    foreign = [key for key in changes if key not in RESUMABLE]
    if foreign:
        asked = " ".join(f"{key}={changes[key]}" for key in foreign)
        raise FathomError(
            f"'{foreign[0]}' cannot change in a run that has begun; start a new one: "
            f"fathom fit {folder.file('recipe.toml')} {asked}"
        )
    _check_same_data(folder, data, begun.data.location)
    data = data if data is not None else begun.data.location
    if data is None:
        raise FathomError(
            f"{folder.path} was trained on data in memory; give them again: fathom.fit(data, resume={str(folder.path)!r})"
        )
    finished = folder.file("results.json").exists()
    if finished and not any(key in BUDGETS for key in changes):
        return _finished(folder, session)
    _check_module(folder, begun.network, session.module)
    begin = time.perf_counter()
    tree = merge(tree, changes)
    training = Recipe.parse(tree).training
    device = Device.choose(training.device)
    devices.check_threads(training.threads)
    earlier, began = transfer.remembered(read_json(folder.file("environment.json")))
    task = open_task(data, tree, session.module, session.loss, earlier)
    task = _remembered(task, began)
    _check_data(folder, task)
    task = complete(task, device)
    extended = task.recipe.training.planned_steps() != begun.training.steps
    if finished and not extended:
        return _finished(folder, session)
    _check_budget(folder, task.recipe.training.planned_steps())
    if changes:
        _begin_again(folder, task.recipe, extended=extended)
    session.tell(f"Resume    {folder.path}")
    return _train(folder, task, data, device, session, time.perf_counter() - begin)


def _check_same_data(folder: RunFolder, data: Any, began: str | None) -> None:
    """Refuse to name other data than a run's own, unless those have moved."""
    if data is None or began is None or (isinstance(data, str | Path) and _absolute(str(data)) == began):
        return
    if Path(began).exists() or not Path(began).is_absolute():
        came = f"'{data}'" if isinstance(data, str | Path) else f"the {type(data).__name__}"
        raise FathomError(f"{folder.path} goes on with its own data, {began}. Leave {came} out, or start a new run.")


def _check_module(folder: RunFolder, network: Mapping[str, Any], module: nn.Module | None) -> None:
    """Refuse another network than that which the run began with."""
    name = network.get("name")
    if name != OWN and module is not None:
        raise FathomError(f"{folder.path} trains the network '{name}'; leave your own module out, or start a new run.")
    if name != OWN or (module is not None and own.fingerprint(module) == network.get("fingerprint")):
        return
    came = "none came" if module is None else "the parameters of the one that came have other names or shapes"
    raise FathomError(
        f"{folder.path} trains your own module {network.get('class')}, and {came}. Go on in Python with: "
        f"fathom.fit(..., resume={str(folder.path)!r}, network={network.get('class')}())"
    )


def _finished(folder: RunFolder, session: Session) -> Run:
    """Nothing is left to do, but for the page where a kill came before it.

    Raises:
        DamagedError: the weights that were deployed have changed since they were written.
    """
    if (weights := folder.file("model") / transfer.WEIGHTS).exists():
        load_tensors(weights)
    if not folder.file("report.html").exists():
        from fathom.analysis.report import write_report

        write_report(folder)
    session.tell(f"{folder.path} is finished; give more --epochs to go on.")
    return Run(folder, copy.deepcopy(session.module))


def _check_data(folder: RunFolder, task: Task) -> None:
    """Refuse other data than those that a run began with."""
    if read_json(folder.file("environment.json"))["data"] != task.prepared.fingerprint:
        raise RunError(
            f"The data of {folder.path} have changed since the run began; a resume would mix two data sets. Start a new run."
        )


def _check_budget(folder: RunFolder, steps: int) -> None:
    """Refuse a budget that has been spent already, before anything is changed."""
    saved = folder.path.rglob("checkpoints/step-*.safetensors")
    done = max((int(path.stem.partition("-")[2]) for path in saved), default=0)
    if done > steps:
        raise RunError(
            f"{folder.path} has done {done:,} steps already, and the budget is {steps:,} steps in all. "
            "Give a larger one, or start a new run."
        )
