"""Training one member of a run, from a planned task to a judged deployable in its folder.

build ─▶ resume where there is a checkpoint ─▶ train ─▶ keep ─▶ judge ─▶ bundle, results, report
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from fathom.analysis import plan
from fathom.analysis.report import write_report
from fathom.core import callbacks
from fathom.core import device as devices
from fathom.core.contract import Clock, Stage
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.loop import train
from fathom.core.run import RunFolder, sealed_json, write_atomic
from fathom.core.state import load_state, state_of
from fathom.deliver.bundle import write_bundle
from fathom.verbs.assemble import Assembly, Session, Task, build, resident, two_rows
from fathom.verbs.card import model_card
from fathom.verbs.generate import text_target
from fathom.verbs.judge import judge


def train_one(
    folder: RunFolder, task: Task, device: Device, session: Session, prepared_seconds: float, run: RunFolder
) -> None:
    """Train, keep the weights that the recipe asks for, judge them, write everything.

    Args:
        folder: of the member, locked by the caller.
        task: its rows and recipe.
        device: where it runs.
        session: what the caller brought along.
        prepared_seconds: what reading the data took.
        run: the run that goes on where a signal stops this one: the folder itself, or that whose member it is.
    """
    training = task.recipe.training
    with devices.threads(training.threads):
        assembly = build(task, device)
        watchers, stack = _watchers(folder, task, assembly, session, run)
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
        task = _cut_short(folder, task, assembly.clock, watchers)
        _finish(folder, task, assembly, kept, prepared_seconds, run)


def _was_stopped(watchers: Mapping[str, Any], clock: Clock, stages: Sequence[Stage]) -> bool:
    """Whether a watcher had ended the run before it was killed; a larger budget takes it up again."""
    return any(watcher.stopped for watcher in watchers.values()) and clock.steps >= stages[clock.stage].steps


def _cut_short(folder: RunFolder, task: Task, clock: Clock, watchers: Mapping[str, Any]) -> Task:
    """Where the minutes were over before the planned steps were done, the recipe says so, and a repeat ends there too."""
    training = task.recipe.training
    planned = training.planned_steps()
    if "deadline" not in watchers or not watchers["deadline"].stopped or clock.total >= planned:
        return task
    recipe = task.recipe.change({"training.stop_after": clock.total})
    write_atomic(folder.file("recipe.toml"), recipe.toml().encode())
    note = f"Training ended at step {clock.total:,} of {planned:,}: its {training.minutes:g} minutes were over."
    return replace(task, recipe=recipe, prepared=replace(task.prepared, notes=[*task.prepared.notes, note]))


def _named(watchers: Mapping[str, Any]) -> dict[str, Any]:
    """The watchers whose state must survive."""
    return {
        name: watcher for name, watcher in watchers.items() if name not in ("checkpoint", "progress", "tensorboard")
    }


def _watchers(
    folder: RunFolder, task: Task, assembly: Assembly, session: Session, run: RunFolder
) -> tuple[dict[str, Any], ExitStack]:
    training, algorithm = task.recipe.training, assembly.algorithm
    optimizer = next(iter(algorithm.optimizers.values()))
    every = algorithm.epoch(task.schema, task.prepared.sets["train"], training)

    # What is measured and kept is what would be deployed: the last weights as they are, else their average.
    deployed = nullcontext if training.keep == "last" else optimizer.averaged

    def validate() -> dict[str, float]:
        with deployed():
            measured = algorithm.validate(task.prepared.sets["validation"])
        for model in assembly.models.values():
            model.train()
        return measured

    def weights() -> dict[str, Tensor]:
        with deployed():
            return {
                f"{r}/{n}": t.detach().clone() for r, m in assembly.models.items() for n, t in m.state_dict().items()
            }

    history = callbacks.History(every, validate, lambda: optimizer.learning_rate, folder.file("metrics.jsonl"))
    watchers: dict[str, Any] = {"history": history}
    if training.keep == "best" or training.early_stopping:
        watchers["best"] = callbacks.Best(history, training.monitor, weights)
    if training.early_stopping:
        watchers["early_stop"] = callbacks.EarlyStop(watchers["best"], training.early_stopping)
    if training.minutes:
        watchers["deadline"] = callbacks.Deadline(training.minutes, training.stop_after)
    watchers["tensorboard"] = callbacks.TensorBoard(history, folder.file("tensorboard"))
    if session.progress is not None:
        shown = next((target.headline for target in task.schema.targets.values()), "") or training.monitor
        watchers["progress"] = callbacks.Progress(
            history, shown, math.ceil(training.planned_steps() / every), session.progress
        )
    checkpoint = callbacks.Checkpoint(
        folder.checkpoints,
        lambda: state_of(algorithm, assembly.clock, _named(watchers)),
        training.checkpoint_seconds,
        history,
        resume_command(run, task),
    )
    watchers["checkpoint"] = checkpoint
    stack = ExitStack()
    stack.enter_context(checkpoint.on_signals())
    return watchers, stack


class Kept(NamedTuple):
    """The weights that are deployed: what they are, of which epoch, and their value of the monitored metric."""

    what: str
    epoch: int
    value: float


def _keep(task: Task, assembly: Assembly, watchers: Mapping[str, Any]) -> Kept:
    """Put the weights that are deployed into the models; say which they are."""
    training = task.recipe.training
    best = watchers.get("best")
    if training.keep == "best" and best is not None and best.kept:
        for role, model in assembly.models.items():
            mine = {name.partition("/")[2]: t for name, t in best.kept.items() if name.partition("/")[0] == role}
            model.load_state_dict(mine)
        return Kept(f"best weights, epoch {best.epoch} by validation {training.monitor}", best.epoch, best.value)
    lines = watchers["history"].lines
    epoch, value = len(lines), lines[-1].get(f"validation/{training.monitor}", math.nan) if lines else math.nan
    if training.keep == "average":
        next(iter(assembly.algorithm.optimizers.values())).keep_average()
        return Kept(f"moving average of the weights, epoch {epoch}", epoch, value)
    return Kept(f"last weights, epoch {epoch}", epoch, value)


def _finish(
    folder: RunFolder, task: Task, assembly: Assembly, kept: Kept, prepared_seconds: float, run: RunFolder
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
        "kept": kept.what,
        "kept_epoch": kept.epoch,
        "monitored": {"metric": task.recipe.training.monitor, "value": kept.value if math.isfinite(kept.value) else None},
        "steps": assembly.clock.total,
        "next": next_commands(run, task),
    }  # fmt: skip
    write_bundle(
        folder.file("model"), assembly.models, task.schema, task.recipe.network,
        task.recipe.training.algorithm or "", model_card(run.name, results),
    )  # fmt: skip
    write_atomic(folder.file("schema.json"), sealed_json(task.schema.to_json()))
    write_atomic(folder.file("results.json"), sealed_json(results))
    write_report(folder)
    with folder.file("log.txt").open("a", encoding="utf-8") as log:
        log.write(f"Kept      {kept.what}\nResult    {results['verdict']}\n")


def resume_command(run: RunFolder, task: Task) -> str:
    """What the user types to go on."""
    if task.recipe.data.location is None or task.module is not None:
        own = ", network=module" if task.module is not None else ""
        return f"fathom.fit(data, resume={str(run.path)!r}{own})"
    return f"fathom fit --resume {run.path}"


def next_commands(folder: RunFolder, task: Task) -> list[str]:
    """What a user is likely to type next."""
    path, kinds = folder.path, {item.kind for item in task.schema.inputs.values()}
    written = text_target(task.schema)
    if written is not None and not kinds:
        talk = f"fathom chat {path}" if written[1].dialogue else f'fathom generate {path} --prompt "The "'
        return [talk, f"fathom report {path}"]
    given = "picture.png" if "image" in kinds else '"a text"' if kinds == {"text"} else "new.csv"
    return [f"fathom predict {path} {given}", f"fathom report {path}"]
