"""`fathom fit`: infer the task, plan, train, evaluate, write the run folder.

fit(data, ...)          a new run
fit(resume=run)         go on with one that was stopped

open_task ─▶ measure ─▶ train_one ─▶ Run     one member, or several and their aggregate
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from fathom.analysis import plan
from fathom.core import device as devices
from fathom.core.contract import epoch_steps
from fathom.core.device import Device
from fathom.core.errors import FathomError, RunError
from fathom.core.recipe import BUDGETS, Recipe, flag_changes, merge
from fathom.core.run import RunFolder, read_json, safe_name, sealed_json, write_atomic
from fathom.verbs import members
from fathom.verbs.assemble import Divide, Session, Task, Tell, measure, open_task, silent
from fathom.verbs.result import Run
from fathom.verbs.train import train_one

__all__ = ["fit"]


def fit(
    data: Any = None,
    *,
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
    progress = progress if progress is not None else (sys.stderr if sys.stderr.isatty() else None)
    if resume is not None:
        module = network if isinstance(network, nn.Module) else None
        return _resume(resume, data, flag_changes(flags), Session(module, loss, tell or silent, progress))
    data, tree, module = request(data, network, recipe, flags)
    return _start(data, tree, Session(module, loss, tell or silent, progress))


def request(
    data: Any, network: str | nn.Module | None, recipe: Any, flags: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], nn.Module | None]:
    """What the user said, as (data, nested tables, own network).

    Raises:
        FathomError: no data is named, or an argument is not known.
    """
    module = network if isinstance(network, nn.Module) else None
    changes = flag_changes({**flags, "network": network if isinstance(network, str) else None})
    if isinstance(data, str | Path) and str(data).endswith(".toml"):
        data, recipe = None, recipe or data
    tree = dict(recipe) if isinstance(recipe, Mapping) else Recipe.read(Path(recipe)) if recipe else {}
    tree = merge(tree, changes)
    if data is None:
        data = tree.get("data", {}).get("location")
    if data is None and recipe is not None:
        raise FathomError(
            "The recipe names no data: it was made from data in memory. Give them as well: fathom.fit(data, recipe=...)"
        )
    if data is None:
        raise FathomError("Nothing to learn from: name a folder, a file or a built-in set, as in: fathom fit digits")
    if isinstance(data, str | Path):
        data = _absolute(str(data))
        tree = merge(tree, {"data.location": data})
    return data, tree, module


def _absolute(location: str) -> str:
    """A path that holds from anywhere, `$NAME` and `~` filled in; names of built-in sets stay as they are."""
    location = os.path.expandvars(os.path.expanduser(location))
    return str(Path(location).resolve()) if Path(location).exists() else location


def _start(data: Any, tree: dict[str, Any], session: Session) -> Run:
    begin = time.perf_counter()
    training = Recipe.parse(tree).training
    device = Device.choose(training.device)
    location = data if isinstance(data, str | Path) else type(data).__name__
    name, exact = training.name or safe_name(str(location)), training.name is not None
    RunFolder.check(Path(training.out), name, exact=exact)  # before the data are read, which may take long
    task = open_task(data, tree, session.module, session.loss)
    task = _measured(task, device, session.tell)
    folder = RunFolder.create(Path(training.out), name, exact=exact)
    _write_start(folder, task)
    _introduce(task, session.tell, folder)
    return _train(folder, task, data, tree, device, session, time.perf_counter() - begin)


def _measured(task: Task, device: Device, tell: Tell) -> Task:
    """The recipe with what only a trial can tell: threads, precision, and steps where minutes were given."""
    training = task.recipe.training
    if training.threads is not None and training.precision is not None and training.steps is not None:
        return task
    measured = measure(task, device)
    changes: dict[str, Any] = {"threads": measured.threads, "precision": measured.precision}
    if training.steps is None:
        seconds = 60 * (training.minutes or 1) * 0.95  # the rest is for validation
        rows = len(task.prepared.splits["train"])
        changes["steps"] = max(1, int(seconds / measured.seconds))
        changes["epochs"] = round(max(changes["steps"] / epoch_steps(rows, training.rows_per_batch()), 0.01), 2)
    return replace(task, recipe=task.recipe.model_copy(update={"training": training.model_copy(update=changes)}))


def _write_start(folder: RunFolder, task: Task) -> None:
    """What is true from the start; recipe.toml last, since it makes the folder a run."""
    about = {
        **devices.machine(),
        "data": task.prepared.fingerprint,
        "fathom": _version(),
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_atomic(folder.file("environment.json"), sealed_json(about))
    write_atomic(folder.file("schema.json"), sealed_json(task.schema.to_json()))
    write_atomic(folder.file("recipe.toml"), task.recipe.toml().encode())


def _version() -> str:
    from importlib.metadata import version

    return version("fathom")


def _introduce(task: Task, tell: Tell, folder: RunFolder) -> None:
    """Tell what was guessed, and keep it in log.txt."""
    lines = describe(task)
    for line in lines:
        tell(line)
    folder.file("log.txt").write_text("\n".join(lines) + "\n", "utf-8")


def describe(task: Task) -> list[str]:
    """What was guessed from the data and decided, a line each."""
    rows = ", ".join(f"{len(index):,} {name}" for name, index in task.prepared.splits.items())
    training = task.recipe.training
    lines = [f"Task      {plan.task_name(task.schema)} ({rows} rows)"]
    lines += [f"Input     {name}: {item.describe()}" for name, item in task.schema.inputs.items()]
    lines += [f"Target    {name}: {item.describe()}" for name, item in task.schema.targets.items()]
    lines += [f"Note      {note}" for note in task.prepared.notes]
    lines.append(f"Network   {task.choice.network}: {task.choice.reason}")
    lines.append(
        f"Training  {training.optimizer}, rate {training.learning_rate:g}, batch {training.batch}, {training.steps:,} steps, "
        f"{training.precision or 'float32'}, {training.threads or 'any'} thread{'s' if training.threads != 1 else ''}"
    )
    return lines


def _train(
    folder: RunFolder,
    task: Task,
    data: Any,
    tree: Mapping[str, Any],
    device: Device,
    session: Session,
    prepared_seconds: float,
) -> Run:
    """Train one member, or all; then aggregate."""
    training = task.recipe.training
    if training.folds == 1 and training.seeds == 1:
        train_one(folder, task, device, session, prepared_seconds)
        return Run(folder)
    with folder.lock():
        made = []
        for number, (name, changes, divide) in enumerate(members.plan(training)):
            path = RunFolder(folder.file("members") / name)
            made.append(path)
            if path.file("results.json").exists():
                continue
            session.tell(f"Member    {name} ({number + 1} of {training.folds * training.seeds})")
            member = _member(task, data, tree, changes, divide, session, device)
            path.path.mkdir(parents=True, exist_ok=True)
            if not path.file("recipe.toml").exists():
                _write_start(path, member)
            train_one(path, member, device, session, 0.0)
        members.aggregate(folder, made, training)
    return Run(folder)


def _member(
    task: Task,
    data: Any,
    tree: Mapping[str, Any],
    changes: Mapping[str, Any],
    divide: Divide | None,
    session: Session,
    device: Device,
) -> Task:
    """The task of one member: another seed over the same rows, or the same seed over another fold."""
    if divide is None:
        return replace(task, recipe=task.recipe.change({**changes, "training.seeds": 1}))
    fold = open_task(data, merge(tree, changes), session.module, session.loss, divide)
    settled = fold.recipe.training.model_copy(
        update={
            "threads": task.recipe.training.threads,
            "precision": task.recipe.training.precision,
            "folds": 1,
            "seeds": 1,
        }
    )
    return _measured(replace(fold, recipe=fold.recipe.model_copy(update={"training": settled})), device, session.tell)


def _resume(resume: Run | str | Path, data: Any, changes: Mapping[str, Any], session: Session) -> Run:
    """Go on where a run was stopped."""
    folder = resume.folder if isinstance(resume, Run) else RunFolder.open(resume)
    tree = Recipe.read(folder.file("recipe.toml"))
    foreign = [key for key in changes if key not in BUDGETS and key not in ("training.device", "training.threads")]
    if foreign:
        raise FathomError(
            f"'{foreign[0]}' cannot change in a run that has begun; start a new one: fathom fit {folder.file('recipe.toml')} ..."
        )
    tree = merge(tree, changes)
    data = data if data is not None else tree.get("data", {}).get("location")
    if data is None:
        raise FathomError(
            f"{folder.path} was trained on data in memory; give them again: fathom.fit(data, resume={str(folder.path)!r})"
        )
    if folder.file("results.json").exists() and not changes:
        if not folder.file("report.html").exists():  # killed between the results and the page
            from fathom.analysis.report import write_report

            with folder.lock():
                write_report(folder)
        session.tell(f"{folder.path} is finished; give more --epochs to go on.")
        return Run(folder)
    begin = time.perf_counter()
    device = Device.choose(Recipe.parse(tree).training.device)
    task = open_task(data, tree, session.module, session.loss)
    if read_json(folder.file("environment.json"))["data"] != task.prepared.fingerprint:
        raise RunError(
            f"The data of {folder.path} have changed since the run began; a resume would mix two data sets. Start a new run."
        )
    task = _measured(task, device, session.tell)
    if changes:
        write_atomic(folder.file("recipe.toml"), task.recipe.toml().encode())
    session.tell(f"Resume    {folder.path}")
    return _train(folder, task, data, tree, device, session, time.perf_counter() - begin)
