"""Watchers: what each writes, when each stops the run, and what survives a kill."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fathom.core.callbacks import Best, Checkpoint, Deadline, EarlyStop, History, Progress, TensorBoard, better
from fathom.core.contract import Clock
from fathom.core.errors import Interrupted, RunError
from fathom.core.loop import _ask
from fathom.core.run import CheckpointStore, read_lines


def run(
    watchers: list[Any], steps: int, stop_at: str = "end_run", clock: Clock | None = None, models: Any = None
) -> Clock:
    """The loop without training: each step's loss is its number."""
    clock = clock or Clock(steps=steps)
    while clock.step < steps:
        clock.step += 1
        clock.total += 1
        clock.seconds += 0.5
        loss = {"loss": torch.tensor(float(clock.total))}
        if _ask(watchers, SimpleNamespace(models=models or {}), clock, loss) == stop_at:
            break
    return clock


def history(values: list[float], every: int = 2, path: Path | None = None) -> History:
    measured: Iterator[float] = iter(values)
    return History(every, lambda: {"loss": next(measured)}, lambda: 0.1, path)


def test_history_has_a_line_an_epoch_with_the_mean_loss(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = history([0.5, math.nan, 0.25], path=path)
    run([lines], 5)
    assert [line["train/loss"] for line in lines.lines] == [1.5, 3.5, 5.0]
    assert [line["epoch"] for line in lines.lines] == [1, 2, 2.5], "of the whole run, the last one cut short"
    assert [line["step"] for line in lines.lines] == [2, 4, 5]
    written = read_lines(path)
    assert [line["validation/loss"] for line in written] == [0.5, "nan", 0.25], "NaN is told, as text"
    assert all(json.loads(json.dumps(line, allow_nan=False)) for line in written)


def test_epochs_are_those_of_the_whole_run_where_stages_end_within_one() -> None:
    """Two stages of 3 and 5 steps, two steps an epoch: four epochs in five lines, and the best is told by its epoch."""
    lines = history([3.0, 2.0, 2.5, 1.0, 1.5])
    best, stream = Best(lines, "loss", dict), StringIO()
    shown = Progress(lines, "loss", stream, ["head", "all"])
    for stage, steps in enumerate((3, 5)):
        run([lines, best, shown], steps, clock=Clock(stage=stage, total=3 * stage, steps=steps))
    assert [line["epoch"] for line in lines.lines] == [1, 1.5, 2.5, 3.5, 4]
    assert (best.epoch, best.line) == (3.5, 4)
    assert "all   epoch   3/3" in stream.getvalue(), "a line of progress counts within its stage"


def test_history_says_that_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not be written"):
        run([history([1.0], path=tmp_path)], 2)


def test_history_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = history([1.0, 1.0], every=4)
    run([whole], 8)
    first = history([1.0], every=4)
    clock = run([first], 3, clock=Clock(steps=8))
    second = history([1.0, 1.0], every=4)
    second.load_state_dict(first.state_dict())
    run([second], 8, clock=clock)
    assert [line["train/loss"] for line in second.lines] == [line["train/loss"] for line in whole.lines]


@given(st.floats(), st.floats())
def test_better_is_an_order_in_which_nan_is_last(one: float, other: float) -> None:
    for name in ("loss", "validation/income.log_loss", "accuracy"):
        assert not (better(name, one, other) and better(name, other, one))
        assert not better(name, math.nan, other)
    if not math.isnan(one) and not math.isnan(other):
        assert better("validation/loss", one, other) == (one < other)
        assert better("validation/accuracy", one, other) == (one > other)


def test_best_keeps_a_copy_of_the_best_weights() -> None:
    module = nn.Linear(1, 1, bias=False)
    lines = history([3.0, 1.0, math.nan, 2.0])

    class Learn:
        def after_step(self, clock: Clock, metrics: Any, models: Any) -> str:
            module.weight.data.fill_(clock.step)
            return "continue"

    best = Best(lines, "loss", module.state_dict)
    run([Learn(), lines, best], 8)
    assert (best.value, best.epoch, best.line) == (1.0, 2, 2)
    assert best.kept["weight"].item() == 4.0, "a copy, not a view of what trained on"
    again = Best(lines, "loss", module.state_dict)
    again.load_state_dict(best.state_dict())
    assert (again.value, again.epoch, again.line, again.kept["weight"].item()) == (1.0, 2, 2, 4.0)


def test_early_stopping_counts_epochs_without_progress() -> None:
    lines = history([3.0, 2.0, 2.5, 2.1, 1.0])
    best = Best(lines, "loss", dict)
    stop = EarlyStop(best, patience=2)
    assert run([lines, best, stop], 10).step == 8
    assert stop.stopped
    patient = history([3.0, 2.0, 2.5, 2.1, 1.0])
    best = Best(patient, "loss", dict)
    assert run([patient, best, EarlyStop(best, patience=3)], 10).step == 10


def test_each_stage_has_its_own_patience() -> None:
    lines = history([1.0, *[2.0] * 20])
    best = Best(lines, "loss", dict)
    stop = EarlyStop(best, patience=3, stages=2)
    watchers = [lines, best, stop]
    clock = Clock(steps=20)
    verdicts = []
    for stage in range(2):
        clock.stage, clock.step = stage, 0
        verdict = "continue"
        while verdict == "continue":
            clock.step, clock.total = clock.step + 1, clock.total + 1
            verdict = [watcher.after_step(clock, {"loss": torch.tensor(1.0)}, {}) for watcher in watchers][-1]
        verdicts.append((verdict, clock.total))
        kept = EarlyStop(best, patience=3, stages=2)
        kept.load_state_dict(stop.state_dict())
        assert kept.stopped, "a run that is killed here goes on with the next stage"
        for watcher in watchers:
            watcher.after_stage(clock, {})
        assert not stop.stopped
    assert verdicts == [("end_stage", 8), ("end_run", 14)], "the best epoch is the first; an epoch has two steps"


def test_the_deadline_ends_the_run() -> None:
    assert run([Deadline(1.2 / 60)], 10).step == 3


def test_checkpoints_are_saved_in_time_and_two_are_kept(tmp_path: Path) -> None:
    lines = history([1.0] * 9)
    store = CheckpointStore(tmp_path)
    saved: list[int] = []
    checkpoint = Checkpoint(store, lambda: saved.append(1) or {"x": torch.ones(1)}, 0, lines)
    run([lines, checkpoint], 5)
    assert len(saved) == 5
    assert len(store.paths()) == 2
    idle = Checkpoint(CheckpointStore(tmp_path / "idle"), lambda: {"x": torch.ones(1)}, 3600, lines)
    clock = run([lines, idle], 3, clock=Clock(steps=4))
    assert idle.store.paths() == []
    idle.at_end(clock, {})
    assert [path.name for path in idle.store.paths()] == ["step-000000003.safetensors"], "what ended early is saved"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    lines = history([1.0] * 9)
    checkpoint = Checkpoint(
        CheckpointStore(tmp_path / "run" / "checkpoints"), lambda: {"x": torch.ones(1)}, 3600, lines, "go on"
    )
    before = signal.getsignal(number)

    class Kill:
        def after_step(self, clock: Clock, metrics: Any, models: Any) -> str:
            if clock.step == 3:
                signal.raise_signal(number)
            return "continue"

    with checkpoint.on_signals(), pytest.raises(Interrupted, match=rf"{number.name} came.*: go on$") as caught:
        run([lines, Kill(), checkpoint], 9)
    assert caught.value.exit_code == 130
    assert [path.name for path in checkpoint.store.paths()] == ["step-000000003.safetensors"]
    assert signal.getsignal(number) == before


def test_progress_prints_a_line_an_epoch() -> None:
    lines, stream = history([0.5, 0.25]), StringIO()
    run([lines, Progress(lines, "loss", stream)], 4)
    shown = [line for line in stream.getvalue().split("\n") if "epoch" in line]
    assert len(shown) == 2
    assert "epoch   2/2   loss 3.5000   validation loss 0.2500   rate 1.0e-01   2.0 s   0 s left" in shown[1]


def test_tensorboard_files_hold_the_numbers(tmp_path: Path) -> None:
    lines = history([0.5, 0.25])
    board = TensorBoard(lines, tmp_path)
    models = {"model": nn.Linear(2, 2)}
    clock = run([lines, board], 4, models=models)
    board.at_end(clock, models)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for tag in (b"train/loss", b"validation/loss", b"rate", b"model/weight"):
        assert tag in content
    assert [path.suffix for path in tmp_path.iterdir()] != [".pkl"]


def test_the_gravest_verdict_counts() -> None:
    class Say:
        def __init__(self, word: str) -> None:
            self.word = word

        def after_step(self, clock: Clock, metrics: Any, models: Any) -> str:
            return self.word

    for words, verdict in [
        (["continue", "end_stage", "end_run"], "end_run"),
        (["end_stage", "continue"], "end_stage"),
        (["continue"], "continue"),
        ([], "continue"),
    ]:
        assert _ask([Say(word) for word in words], SimpleNamespace(models={}), Clock(), {}) == verdict
