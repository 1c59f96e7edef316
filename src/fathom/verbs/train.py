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

from fathom.analysis import decision, memory, plan
from fathom.analysis.report import write_report
from fathom.analysis.samples import makes as makes_pictures
from fathom.core import callbacks
from fathom.core import device as devices
from fathom.core.contract import Clock, Predictor, Stage
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.loop import train
from fathom.core.run import RunFolder, sealed_json, write_atomic
from fathom.core.state import load_state, state_of
from fathom.deliver.bundle import write_bundle
from fathom.verbs.assemble import Assembly, Session, Task, build, oversized, resident, two_rows
from fathom.verbs.card import model_card
from fathom.verbs.generate import text_target
from fathom.verbs.judge import judge
from fathom.verbs.watching import Strips, Watch, over_time


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
        state, notes = folder.checkpoints.load()
        for note in notes:
            session.tell(f"Note      {note}")
        assembly = build(task, device, fresh=state is None)
        warned = oversized(assembly, task)
        _tell_once(warned, run, session)
        watchers, stack = _watchers(folder, task, assembly, session, run)
        if state is not None:
            load_state(state, assembly.algorithm, assembly.clock, _named(watchers))
            for note in assembly.algorithm.notes:
                session.tell(f"Note      {note}")
        with stack:
            stages = assembly.algorithm.stages(resident(task.prepared.sets, device))
            if assembly.clock.steps != stages[assembly.clock.stage].steps:
                assembly.clock.replans = []  # of another budget
            if _was_stopped(watchers, assembly.clock, stages):
                stages = _after_stop(watchers, assembly.clock, stages)
            way = replace(device, precision=training.precision or "float32")
            train(assembly.algorithm, stages, list(watchers.values()), assembly.clock, way, non_finite)
        kept = _keep(task, assembly, watchers)
        task = _cut_short(folder, task, assembly.clock, watchers)
        task = replace(task, prepared=replace(task.prepared, notes=[*task.prepared.notes, *warned]))
        _finish(folder, task, assembly, kept, prepared_seconds, run)


def _tell_once(notes: Sequence[str], run: RunFolder, session: Session) -> None:
    """Notes about the networks, told by the first member alone, and kept in the log of the run."""
    log = run.file("log.txt")
    before = log.read_text("utf-8") if log.exists() else ""
    for line in (f"Note      {note}" for note in notes):
        if line not in before:
            session.tell(line)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def _was_stopped(watchers: Mapping[str, Any], clock: Clock, stages: Sequence[Stage]) -> bool:
    """Whether a watcher had ended the run, or its stage, before it was killed; a larger budget takes it up again."""
    return any(watcher.stopped for watcher in watchers.values()) and clock.steps >= stages[clock.stage].steps


def _after_stop(watchers: Mapping[str, Any], clock: Clock, stages: Sequence[Stage]) -> list[Stage]:
    """What is left of the stages: a stage that did not improve ends where it stands, and with the minutes all end."""
    if "deadline" in watchers and watchers["deadline"].stopped:
        return []
    return [replace(stage, steps=clock.step) if number == clock.stage else stage for number, stage in enumerate(stages)]


def _cut_short(folder: RunFolder, task: Task, clock: Clock, watchers: Mapping[str, Any]) -> Task:
    """Where the minutes ended the run before the planned steps were done, the recipe says how, and a repeat does the same."""
    training = task.recipe.training
    planned = training.planned_steps()
    if "deadline" not in watchers or not watchers["deadline"].stopped or clock.total >= planned:
        return task
    recipe = task.recipe.change({"training.stop_after": clock.total, "training.replans": clock.replans or None})
    write_atomic(folder.file("recipe.toml"), recipe.toml().encode())
    note = f"Training ended at step {clock.total:,} of {planned:,}: its {training.minutes:g} minutes were over."
    if clock.step >= clock.end:
        note = (
            f"Training ended at step {clock.total:,} instead of {planned:,}: steps took longer than in the trial, so the end "
            f"was planned anew to keep to {training.minutes:g} minutes."
        )
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

    watch = Watch(algorithm, task.prepared) if makes_pictures(task.schema) else None

    def validate() -> dict[str, float]:
        with deployed():
            measured = algorithm.validate(task.prepared.sets["validation"])
            measured |= watch.measure() if watch else {}
        for model in assembly.models.values():
            model.train()
        return measured

    def weights() -> dict[str, Tensor]:
        with deployed():
            return {
                f"{r}/{n}": t.detach().clone() for r, m in assembly.models.items() for n, t in m.state_dict().items()
            }

    def strip() -> Tensor:
        assert watch is not None, "a generator is watched"
        with deployed():
            made = watch.strip()
        for model in assembly.models.values():
            model.train()
        return made

    history = callbacks.History(every, validate, lambda: optimizer.learning_rate, folder.file("metrics.jsonl"))
    watchers: dict[str, Any] = {"history": history}
    if training.keep == "best" or training.early_stopping:
        watchers["best"] = callbacks.Best(history, training.monitor, weights)
    if training.early_stopping:
        watchers["early_stop"] = callbacks.EarlyStop(
            watchers["best"], training.early_stopping, max(1, len(task.recipe.stage))
        )
    if training.minutes:
        watchers["deadline"] = callbacks.Deadline(
            training.minutes, max(1, len(task.recipe.stage)), training.stop_after, training.replans
        )
    watchers["tensorboard"] = callbacks.TensorBoard(history, folder.file("tensorboard"))
    if watch is not None:
        watchers["samples"] = Strips(history, strip, folder.file("samples"), watchers["tensorboard"])
    if session.progress is not None:
        shown = next((target.headline for target in task.schema.targets.values()), "") or training.monitor
        names = [stage.name for stage in task.recipe.stage]
        watchers["progress"] = callbacks.Progress(history, shown, session.progress, names)
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
    epoch: float
    value: float


def _keep(task: Task, assembly: Assembly, watchers: Mapping[str, Any]) -> Kept:
    """Put the weights that are deployed into the models; say which they are."""
    training = task.recipe.training
    best = watchers.get("best")
    if training.keep == "best" and best is not None and best.kept:
        for role, model in assembly.models.items():
            mine = {name.partition("/")[2]: t for name, t in best.kept.items() if name.partition("/")[0] == role}
            model.load_state_dict(mine)
        return Kept(f"best weights, epoch {best.epoch:,g} by validation {training.monitor}", best.epoch, best.value)
    lines = watchers["history"].lines
    last = lines[-1] if lines else {}
    epoch, value = last.get("epoch", 0), last.get(f"validation/{training.monitor}", math.nan)
    if training.keep == "average":
        next(iter(assembly.algorithm.optimizers.values())).keep_average()
        return Kept(f"moving average of the weights, epoch {epoch:,g}", epoch, value)
    return Kept(f"last weights, epoch {epoch:,g}", epoch, value)


def _finish(
    folder: RunFolder, task: Task, assembly: Assembly, kept: Kept, prepared_seconds: float, run: RunFolder
) -> None:
    for model in assembly.models.values():
        model.eval()
    start = time.perf_counter()
    seed, compare = task.recipe.training.seed, task.recipe.data.compare or ()
    assembly.algorithm.settle(task.prepared.sets)
    predictor = assembly.algorithm.predictor()
    _decide(task, predictor)
    told = assembly.algorithm.told()
    results = judge(task.prepared, predictor, seed, compare, told.get("environment_steps"))
    if makes_pictures(task.schema):
        first = next(iter(results["targets"].values()))
        first["pictured"] += over_time(folder.file("samples"))
    for remedy in decision.remedies(task.recipe).values():
        test = task.prepared.sets["test"]
        results["evaluation_notes"] += decision.shift(task.schema, predictor.outputs(test), test, remedy)
    looks_back = memory.gradient_curve(predictor, task.prepared.sets["test"])
    evaluated = time.perf_counter() - start
    results = {
        "task": plan.task_name(task.schema, task.recipe.training.algorithm),
        "location": str(task.recipe.data.location or "data in memory"),
        "seed": task.recipe.training.seed,
        "splits": {name: len(index) for name, index in task.prepared.splits.items()},
        **results,
        **({"memory": looks_back} if looks_back else {}),
        **told,
        "seconds": {"prepare": prepared_seconds, "train": assembly.clock.seconds, "evaluate": evaluated},
        "parameters": plan.parameters(assembly.models),
        "network": {
            "name": task.choice.network, "reason": task.choice.reason, "paper": task.choice.paper, "rivals": task.choice.rivals,
            "layers": plan.layer_tables(assembly.models, assembly.algorithm.example(two_rows(task.prepared))),
        },
        "notes": [*task.prepared.notes, *assembly.algorithm.notes],
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


def _decide(task: Task, predictor: Predictor) -> None:
    """Choose the thresholds that targets ask for, on the validation rows; they ship with the schema, earlier ones do not."""
    for item in task.schema.targets.values():
        item.state.pop("decision", None)
    if any(decision.rule(item) for item in task.schema.targets.values()):
        rows = task.prepared.sets["validation"]
        decision.settle(task.schema, predictor.outputs(rows), rows)


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
    if task.recipe.training.algorithm == "masked":
        return [f'fathom embed {path} "a text" "another text"', f"fathom fit DATA --from {path}", f"fathom report {path}"]
    if written is not None and not kinds:
        talk = f"fathom chat {path}" if written[1].dialogue else f'fathom generate {path} --prompt "The "'
        return [talk, f"fathom report {path}"]
    if plan.acts(task.schema):
        return [f"fathom play {path} -o agent.gif", f"fathom evaluate {path} --episodes 1000", f"fathom report {path}"]
    if task.recipe.training.algorithm == "reconstruction":
        new = "picture.png" if "image" in kinds else "new.csv"
        samples = [f"fathom generate {path} -n 64"] if task.recipe.network.get("name") == "vae" else []
        return [*samples, f"fathom predict {path} {new}", f"fathom embed {path} {new}", f"fathom report {path}"]
    if makes_pictures(task.schema):
        told = len(task.schema.inputs) > 1
        return [f"fathom generate {path} -n 64{' --class CLASS' if told else ''} -o samples.png", f"fathom report {path}"]
    given = "picture.png" if "image" in kinds else '"a text"' if kinds == {"text"} else "new.csv"
    return [f"fathom predict {path} {given}", f"fathom report {path}"]
