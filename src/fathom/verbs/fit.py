"""`fathom fit`: infer the task, plan, train, evaluate, write the run folder.

fit(data, ...)          a new run
fit(resume=run)         go on with one that was stopped

open_task ─▶ measure ─▶ build ─▶ train ─▶ judge ─▶ bundle, results, report
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from fathom.analysis import plan
from fathom.core import callbacks
from fathom.core import device as devices
from fathom.core.contract import Clock, Predictor, Schema, Stage, TensorSet, epoch_steps
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.errors import FathomError, RunError, unknown
from fathom.core.loop import train
from fathom.core.recipe import BUDGETS, Recipe, flag_changes, merge
from fathom.core.run import RunFolder, read_json, safe_name, sealed_json, write_atomic
from fathom.core.state import load_state, state_of
from fathom.deliver.bundle import write_bundle
from fathom.verbs import members
from fathom.verbs.assemble import Assembly, Divide, Task, Tell, build, measure, open_task, resident, silent, two_rows
from fathom.verbs.card import model_card
from fathom.verbs.judge import judge
from fathom.verbs.result import Run

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


@dataclass(frozen=True)
class Session:
    """What the caller brought along that no recipe can hold."""

    module: nn.Module | None
    loss: Any
    tell: Tell
    progress: TextIO | None


def _absolute(location: str) -> str:
    """A path that holds from anywhere, `$NAME` and `~` filled in; names of built-in sets stay as they are."""
    location = os.path.expandvars(os.path.expanduser(location))
    return str(Path(location).resolve()) if Path(location).exists() else location


def _start(data: Any, tree: dict[str, Any], session: Session) -> Run:
    begin = time.perf_counter()
    training = Recipe.parse(tree).training
    device = Device.choose(training.device)
    task = open_task(data, tree, session.module, session.loss)
    task = _measured(task, device, session.tell)
    location = data if isinstance(data, str | Path) else type(data).__name__
    name = training.name or safe_name(str(location))
    folder = RunFolder.create(Path(training.out), name, exact=training.name is not None)
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


def train_one(folder: RunFolder, task: Task, device: Device, session: Session, prepared_seconds: float) -> None:
    """Train, keep the weights that the recipe asks for, judge them, write everything."""
    training = task.recipe.training
    with folder.lock(), devices.threads(training.threads):
        assembly = build(task, device)
        watchers, stack = _watchers(folder, task, assembly, session, device)
        state, notes = folder.checkpoints.load()
        for note in notes:
            session.tell(f"Note      {note}")
        if state is not None:
            load_state(state, assembly.algorithm, assembly.clock, _named(watchers))
        with stack:
            stages = assembly.algorithm.stages(resident(task.prepared.sets, device))
            if _was_stopped(watchers, assembly.clock, stages):
                stages = []
            way = replace(device, precision=training.precision or "float32")
            train(assembly.algorithm, stages, list(watchers.values()), assembly.clock, way, non_finite)
        kept = _keep(task, assembly, watchers)
        _finish(folder, task, assembly, watchers, kept, prepared_seconds)


def _was_stopped(watchers: Mapping[str, Any], clock: Clock, stages: Sequence[Stage]) -> bool:
    """Whether early stopping had ended the run before it was killed; a larger budget takes it up again."""
    early_stop = watchers.get("early_stop")
    return bool(early_stop and early_stop.stopped and clock.steps >= stages[clock.stage].steps)


def _named(watchers: Mapping[str, Any]) -> dict[str, Any]:
    """The watchers whose state must survive."""
    return {
        name: watcher for name, watcher in watchers.items() if name not in ("checkpoint", "progress", "tensorboard")
    }


def _watchers(
    folder: RunFolder, task: Task, assembly: Assembly, session: Session, device: Device
) -> tuple[dict[str, Any], ExitStack]:
    training, algorithm = task.recipe.training, assembly.algorithm
    optimizer = next(iter(algorithm.optimizers.values()))
    every = epoch_steps(len(task.prepared.splits["train"]), training.rows_per_batch())

    def validate() -> dict[str, float]:
        with optimizer.averaged():
            measured = validation(algorithm.predictor(), task.prepared.sets["validation"], task.schema)
        for model in assembly.models.values():
            model.train()
        return measured

    def weights() -> dict[str, Tensor]:
        with optimizer.averaged():
            return {
                f"{r}/{n}": t.detach().clone() for r, m in assembly.models.items() for n, t in m.state_dict().items()
            }

    history = callbacks.History(every, validate, lambda: optimizer.learning_rate, folder.file("metrics.jsonl"))
    _check_monitor(training.monitor, algorithm.predictor(), task)
    watchers: dict[str, Any] = {"history": history}
    if training.keep == "best" or training.early_stopping:
        watchers["best"] = callbacks.Best(history, training.monitor, weights)
    if training.early_stopping:
        watchers["early_stop"] = callbacks.EarlyStop(watchers["best"], training.early_stopping)
    if training.minutes:
        watchers["deadline"] = callbacks.Deadline(training.minutes)
    watchers["tensorboard"] = callbacks.TensorBoard(history, folder.file("tensorboard"))
    if session.progress is not None:
        shown = next((n for n in ("accuracy", "r2", "f1") if n in _names(task.schema)), training.monitor)
        watchers["progress"] = callbacks.Progress(
            history, shown, math.ceil(training.planned_steps() / every), session.progress
        )
    checkpoint = callbacks.Checkpoint(
        folder.checkpoints,
        lambda: state_of(algorithm, assembly.clock, _named(watchers)),
        training.checkpoint_seconds,
        history,
    )
    watchers["checkpoint"] = checkpoint
    stack = ExitStack()
    stack.enter_context(checkpoint.on_signals())
    return watchers, stack


def _names(schema: Schema) -> set[str]:
    kinds = {"category": "accuracy", "number": "r2", "labels": "f1"}
    return {kinds.get(target.kind, "loss") for target in schema.targets.values()}


def validation(predictor: Predictor, data: TensorSet, schema: Schema) -> dict[str, float]:
    """Loss and every metric of the validation rows; several targets have their name before the metric's."""
    outputs = predictor.outputs(data)
    everything = data.batch(torch.arange(len(data)))
    measured = {"loss": 0.0}
    for name, target in schema.targets.items():
        prefix = f"{name}." if len(schema.targets) > 1 else ""
        truth = everything[name]
        compared = target.scale(truth) if target.kind == "number" else truth  # type: ignore[attr-defined]
        loss = next(iter(target.losses.values()))(outputs[name], compared)
        measured["loss"] += float(loss.mean())
        measured.update(
            {prefix + metric: float(value) for metric, value in target.metrics(outputs[name], truth).items()}
        )
    return measured


def _check_monitor(monitor: str, predictor: Predictor, task: Task) -> None:
    if monitor == "loss":
        return
    few = task.prepared.sets["validation"].subset(torch.arange(min(64, len(task.prepared.sets["validation"]))))
    with devices.undisturbed():
        known = validation(predictor, few, task.schema)
    if monitor not in known:
        raise FathomError(unknown("metric", monitor, known, "training.monitor"))


def _keep(task: Task, assembly: Assembly, watchers: Mapping[str, Any]) -> str:
    """Put the weights that are deployed into the models; say which they are."""
    training = task.recipe.training
    best = watchers.get("best")
    if training.keep == "best" and best is not None and best.kept:
        for role, model in assembly.models.items():
            mine = {name.partition("/")[2]: t for name, t in best.kept.items() if name.partition("/")[0] == role}
            model.load_state_dict(mine)
        return f"best weights, epoch {best.epoch} by validation {training.monitor}"
    epoch = len(watchers["history"].lines)
    optimizer = next(iter(assembly.algorithm.optimizers.values()))
    if training.average and optimizer.averages:
        optimizer.keep_average()
        return f"moving average of the weights, epoch {epoch}"
    return f"last weights, epoch {epoch}"


def _finish(
    folder: RunFolder,
    task: Task,
    assembly: Assembly,
    watchers: Mapping[str, Any],
    kept: str,
    prepared_seconds: float,
) -> None:
    for model in assembly.models.values():
        model.eval()
    start = time.perf_counter()
    results = judge(task.prepared, assembly.algorithm.predictor(), task.recipe.training.seed)
    evaluated = time.perf_counter() - start
    results = {
        "task": plan.task_name(task.schema),
        "location": str(task.recipe.data.location or "data in memory"),
        "seed": task.recipe.training.seed,
        "splits": {name: len(index) for name, index in task.prepared.splits.items()},
        **results,
        "seconds": {"prepare": prepared_seconds, "train": assembly.clock.seconds, "evaluate": evaluated},
        "parameters": plan.parameters(assembly.models),
        "network": {
            "name": task.choice.network, "reason": task.choice.reason, "paper": task.choice.paper, "rivals": task.choice.rivals,
            "layers": plan.layer_table(next(iter(assembly.models.values())), two_rows(task.prepared)),
        },
        "notes": task.prepared.notes,
        "kept": kept,
        "next": next_commands(folder, task),
    }  # fmt: skip
    write_bundle(
        folder.file("model"), assembly.models, task.schema, task.recipe.network,
        task.recipe.training.algorithm or "", model_card(folder.name, results),
    )  # fmt: skip
    write_atomic(folder.file("schema.json"), sealed_json(task.schema.to_json()))
    write_atomic(folder.file("results.json"), sealed_json(results))
    from fathom.analysis.report import write_report

    write_report(folder)
    with folder.file("log.txt").open("a", encoding="utf-8") as log:
        log.write(f"Kept      {kept}\nResult    {results['verdict']}\n")


def next_commands(folder: RunFolder, task: Task) -> list[str]:
    """What a user is likely to type next."""
    path = folder.path
    picture = any(item.kind == "image" for item in task.schema.inputs.values())
    return [f"fathom predict {path} {'picture.png' if picture else 'new.csv'}", f"fathom report {path}"]


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
