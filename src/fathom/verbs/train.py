"""Training one member of a run, from a planned task to a judged deployable in its folder.

build ─▶ resume where there is a checkpoint ─▶ train ─▶ keep ─▶ judge ─▶ bundle, results, report
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fathom.analysis import plan
from fathom.analysis.report import write_report
from fathom.core import callbacks
from fathom.core import device as devices
from fathom.core.contract import Clock, Predictor, Schema, Stage, TensorSet, epoch_steps
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.errors import FathomError, unknown
from fathom.core.loop import train
from fathom.core.run import RunFolder, sealed_json, write_atomic
from fathom.core.state import load_state, state_of
from fathom.deliver.bundle import write_bundle
from fathom.verbs.assemble import Assembly, Session, Task, build, resident, two_rows
from fathom.verbs.card import model_card
from fathom.verbs.judge import judge


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
    write_report(folder)
    with folder.file("log.txt").open("a", encoding="utf-8") as log:
        log.write(f"Kept      {kept}\nResult    {results['verdict']}\n")


def next_commands(folder: RunFolder, task: Task) -> list[str]:
    """What a user is likely to type next."""
    path = folder.path
    picture = any(item.kind == "image" for item in task.schema.inputs.values())
    return [f"fathom predict {path} {'picture.png' if picture else 'new.csv'}", f"fathom report {path}"]
