"""Watchers of training: they read, never write (but for the end of a run of minutes), and leave the random state as it was.

    History      loss and validation metrics of each epoch, metrics.jsonl
    Best         keeps a copy of the best weights
    EarlyStop    ends a stage when nothing improves
    Checkpoint   writes all that a resume needs; on SIGTERM and SIGINT too
    Progress     one line an epoch on a terminal
    TensorBoard  event files
    Deadline     keeps to the minutes: plans the end anew, and ends the run when they are over

They share one `History`: the list of epochs so far. Order matters: it fills the epoch's line, the others read it.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from fathom.core.contract import Clock, Model, Verdict
from fathom.core.device import undisturbed
from fathom.core.errors import Interrupted
from fathom.core.run import CheckpointStore, disk_error


class Watcher:
    """A callback that does nothing; others override what they need.

    Attributes:
        stopped: whether it has ended the run, or its stage: what is killed afterwards must not train on there when resumed.
    """

    stopped = False

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Look at one step."""
        return "continue"

    def after_stage(self, clock: Clock, models: Mapping[str, Model]) -> None:
        """Look at the end of a stage."""

    def at_end(self, clock: Clock, models: Mapping[str, Model]) -> None:
        """Look at the end of training."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a kill."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""


class History(Watcher):
    """Loss and metrics of each epoch; every other watcher that speaks of epochs reads `lines`.

    Args:
        every: steps an epoch.
        validate: measures the validation split: name -> number; None where there is no such split.
        rate: the learning rate now.
        path: metrics.jsonl.
    """

    def __init__(
        self,
        every: int,
        validate: Callable[[], Mapping[str, float]] | None,
        rate: Callable[[], float],
        path: Path | None = None,
    ) -> None:
        self.every = every
        self.validate = validate
        self.rate = rate
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.fresh = False
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Add up; at the end of an epoch write a line."""
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        self.fresh = clock.step % self.every == 0 or clock.step == clock.end
        if self.fresh:
            self._close(clock, models)
        return "continue"

    def _close(self, clock: Clock, models: Mapping[str, Model]) -> None:
        line: dict[str, Any] = {
            "stage": clock.stage, "step": clock.total, "epoch": passes(clock.total, self.every),
            "seconds": round(clock.seconds, 3), "rate": self.rate(),
            **{f"train/{name}": float(total) / self._count for name, total in self._sums.items()},
        }  # fmt: skip
        if self.validate:
            with undisturbed():
                line.update({f"validation/{name}": value for name, value in self.validate().items()})
        self._sums, self._count = {}, 0
        self.lines.append(line)
        if self.path:
            text = "".join(json.dumps(finite(entry)) + "\n" for entry in self.lines)
            try:
                self.path.write_text(text, "utf-8")
            except OSError as error:
                raise disk_error(self.path, len(text), error) from error

    def state_dict(self) -> dict[str, Any]:
        """The lines, and the sums of the epoch that is under way."""
        return {"lines": self.lines, "sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.lines, self._sums, self._count = list(state["lines"]), dict(state["sums"]), state["count"]


def passes(steps: int, every: int) -> float:
    """The epochs that so many steps are, of the whole run: a stage may end within one.

    >>> passes(20, 10), passes(8, 10), passes(2, 1_500)
    (2, 0.8, 0.0013)
    """
    if steps % every == 0:
        return steps // every
    return round(steps / every, 2) if steps > every else float(f"{steps / every:.2g}")


def finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line with NaN and infinity written as text, which JSON cannot hold as numbers."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


SMALLER = (
    "loss", "log_loss", "mse", "rmse", "mae", "ece", "error", "brier",
    "scaled_mse", "mase", "quantile_loss", "perplexity", "bits_per_byte",
    "denoised_mse", "denoised_scaled_mse", "negative_elbo", "nll", "kl", "bits_per_dimension",
    "classifier_fid", "classifier_kid", "pca_fid", "pca_kid",
)  # fmt: skip


def smaller_is_better(name: str) -> bool:
    """Whether this is an error or a loss; every other metric is better when larger.

    >>> smaller_is_better("validation/income.log_loss"), smaller_is_better("r2")
    (True, False)
    """
    return re.split(r"[/.]", name)[-1] in SMALLER


def better(name: str, one: float, other: float) -> bool:
    """Whether `one` is a better value of this metric than `other`. NaN is never better."""
    if math.isnan(one):
        return False
    return math.isnan(other) or (one < other if smaller_is_better(name) else one > other)


class Best(Watcher):
    """Keeps a copy of the weights that did best on the validation split.

    Args:
        history: where the metric stands.
        monitor: the metric's name.
        weights: a snapshot of the weights now, averaged where an average is kept.
    """

    def __init__(self, history: History, monitor: str, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self.history = history
        self.monitor = f"validation/{monitor}"
        self.weights = weights
        self.value = math.nan
        self.epoch: float = 0
        self.line = 0  # of the history, from 1
        self.kept: dict[str, Tensor] = {}

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Compare at the end of an epoch."""
        if self.history.fresh and self.monitor in self.history.lines[-1]:
            value = self.history.lines[-1][self.monitor]
            if better(self.monitor, value, self.value):
                self.value, self.epoch, self.line = value, self.history.lines[-1]["epoch"], len(self.history.lines)
                self.kept = {name: tensor.detach().clone() for name, tensor in self.weights().items()}
        return "continue"

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {
            "value": None if math.isnan(self.value) else self.value,
            "epoch": self.epoch,
            "line": self.line,
            "kept": self.kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.value = math.nan if state["value"] is None else state["value"]
        self.epoch, self.line, self.kept = state["epoch"], state["line"], dict(state["kept"])


class EarlyStop(Watcher):
    """Ends a stage after `patience` epochs of it without a better value, and with the last stage the run.

    Args:
        best: knows when the last one was.
        patience: epochs.
        stages: of the run.
    """

    def __init__(self, best: Best, patience: int, stages: int = 1) -> None:
        self.best = best
        self.patience = patience
        self.stages = stages
        self.begun = 0  # lines of the history before this stage

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Count epochs since the best one, or since the stage began."""
        waited = len(self.best.history.lines) - max(self.best.line, self.begun)
        self.stopped = self.best.history.fresh and waited >= self.patience
        if not self.stopped:
            return "continue"
        return "end_run" if clock.stage + 1 == self.stages else "end_stage"

    def after_stage(self, clock: Clock, models: Mapping[str, Model]) -> None:
        """The next one has its own patience."""
        self.stopped, self.begun = False, len(self.best.history.lines)

    def state_dict(self) -> dict[str, Any]:
        """Whether it has ended the stage, and when that began."""
        return {"stopped": self.stopped, "begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.stopped, self.begun = state["stopped"], state["begun"]


class Deadline(Watcher):
    """Keeps to the minutes: plans the end of the last stage anew where steps take longer than in the trial, and ends the run.

    The one watcher that moves something: where the clock ends. A schedule then falls to its end in time.

    Args:
        minutes: of training.
        stages: of the run.
        stop_after: the step at which they were over in the run that is repeated; it then counts instead of the clock.
        replans: (step, end) of the run that is repeated.
    """

    looks = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)  # parts of the minutes after which the plan is looked at
    slack = 1.03  # how much too long a plan may be

    def __init__(
        self, minutes: float, stages: int = 1, stop_after: int | None = None, replans: Sequence[tuple[int, int]] | None = None
    ) -> None:
        self.seconds = minutes * 60
        self.stages = stages
        self.stop_after = stop_after
        self.given = None if stop_after is None and replans is None else dict(replans or ())
        self.looked = 0
        self.seen: tuple[int, float] | None = None  # step and seconds at the last look, in the last stage

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Look at the clock."""
        if clock.stage + 1 == self.stages:
            end = self._measured_end(clock) if self.given is None else self.given.get(clock.step)
            if end is not None:
                clock.replans.append((clock.step, end))
        over = clock.seconds > self.seconds if self.given is None else clock.total >= (self.stop_after or math.inf)
        self.stopped = over or (bool(clock.replans) and clock.step >= clock.end)
        return "end_run" if self.stopped else "continue"

    def _measured_end(self, clock: Clock) -> int | None:
        """Where the stage should end by the pace since the last look; None where the plan may stay."""
        looked = sum(clock.seconds >= look * self.seconds for look in self.looks)
        if self.seen is None:
            self.seen, self.looked = (clock.step, clock.seconds), looked
        if looked == self.looked or clock.step == self.seen[0]:
            return None
        pace = (clock.seconds - self.seen[1]) / (clock.step - self.seen[0])
        self.seen, self.looked = (clock.step, clock.seconds), looked
        end = min(clock.step + max(1, int((self.seconds - clock.seconds) / pace)), clock.steps)
        kept = end <= clock.end <= clock.step + self.slack * (end - clock.step)
        return None if kept else end

    def state_dict(self) -> dict[str, Any]:
        """Whether it has ended the run, and what it saw last."""
        return {"stopped": self.stopped, "looked": self.looked, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.stopped, self.looked = state["stopped"], state["looked"]
        self.seen = None if state["seen"] is None else (int(state["seen"][0]), float(state["seen"][1]))


class Checkpoint(Watcher):
    """Saves all that a resume needs: every `seconds`, at the end of epochs, and when a signal asks to stop.

    Args:
        store: where.
        state: the whole state now.
        seconds: at most this much work is lost; 0 saves at every step.
        history: tells the end of an epoch.
        command: by which the run goes on, told when a signal stops it.
    """

    def __init__(
        self,
        store: CheckpointStore,
        state: Callable[[], Mapping[str, Any]],
        seconds: float,
        history: History,
        command: str = "fathom fit --resume RUN",
    ) -> None:
        self.store = store
        self.state = state
        self.seconds = seconds
        self.history = history
        self.command = command
        self.signal: int | None = None
        self._last = time.monotonic()
        self._saved = -1

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Save when it is time."""
        waited = time.monotonic() - self._last
        # Short epochs are not saved one by one: a tenth of the interval must have passed.
        due = waited >= self.seconds or (self.history.fresh and waited >= self.seconds / 10)
        if due or self.signal is not None or clock.step == clock.end:
            self._save(clock)
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            raise Interrupted(f"{name} came: the work is saved. Go on with: {self.command}")
        return "continue"

    def at_end(self, clock: Clock, models: Mapping[str, Model]) -> None:
        """A run that another watcher ended is saved where it stands; its own last step was saved already."""
        if clock.step > 0 and self._saved != clock.total:
            self._save(clock)

    def _save(self, clock: Clock) -> None:
        self.store.save(self.state(), clock.total)
        self._last, self._saved = time.monotonic(), clock.total

    @contextmanager
    def on_signals(self) -> Any:
        """Save and leave on the first SIGTERM or SIGINT; a second one stops at once."""
        import threading

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def handle(number: int, frame: object) -> None:
            if self.signal is not None:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self.signal = number

        for number in before:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Progress(Watcher):
    """One line an epoch on a terminal: loss, metric, rate, time, what is left.

    Args:
        history: the epochs.
        monitor: the metric shown beside the loss.
        stream: where it is printed.
        stages: names of the stages, shown where there are several; epochs and time left are those of a stage.
    """

    def __init__(self, history: History, monitor: str, stream: TextIO, stages: Sequence[str] = ()) -> None:
        self.history = history
        self.monitor = monitor
        self.stream = stream
        self.stages = stages if len(stages) > 1 else ()
        self._drawn = 0.0
        self._began = (-1, 0, 0.0)  # stage, and its first step and second that were seen

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Print at the end of an epoch; draw a running line a few times a second before."""
        now = time.monotonic()
        if clock.stage != self._began[0]:
            self._began = (clock.stage, clock.step, clock.seconds)
        if self.history.fresh:
            self._print(self._line(self.history.lines[-1], clock), end="\n")
        elif now - self._drawn > 0.25:
            self._drawn = now
            self._print(f"step {clock.step}/{clock.end}   {self._left(clock)}", end="")
        return "continue"

    def _line(self, line: Mapping[str, Any], clock: Clock) -> str:
        name = f"{self.stages[clock.stage]}   " if self.stages else ""
        epoch, epochs = (math.ceil(steps / self.history.every) for steps in (clock.step, clock.end))
        parts = [f"{name}epoch {epoch:>3}/{epochs}", f"loss {line['train/loss']:.4f}"]
        for name in dict.fromkeys(["loss", self.monitor]):
            if f"validation/{name}" in line:
                parts.append(f"validation {name.replace('_', ' ')} {line[f'validation/{name}']:.4f}")
        return "   ".join([*parts, f"rate {line['rate']:.1e}", f"{line['seconds']:.1f} s", self._left(clock)])

    def _left(self, clock: Clock) -> str:
        _, step, seconds = self._began
        seen = clock.step - step  # steps of this stage
        pace = (clock.seconds - seconds) / seen if seen else clock.seconds / max(clock.total, 1)
        return f"{pace * (clock.end - clock.step):.0f} s left"

    def _print(self, text: str, end: str) -> None:
        self.stream.write(f"\r\x1b[2K{text}{end}")
        self.stream.flush()


class TensorBoard(Watcher):
    """Event files for TensorBoard: every number of every epoch, and histograms of the weights at the end.

    Args:
        history: the epochs.
        folder: tensorboard/ of the run.
    """

    def __init__(self, history: History, folder: Path) -> None:
        self.history = history
        self.folder = folder
        self._writer: Any = None

    def writer(self) -> Any:
        """What writes the event files, opened when it is first asked for."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.folder))
        return self._writer

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """Write the epoch's line."""
        if self.history.fresh:
            line = self.history.lines[-1]
            for name, value in line.items():
                # What is not finite stands in metrics.jsonl; the writer would only complain on stderr.
                if ("/" in name or name == "rate") and math.isfinite(value):
                    self.writer().add_scalar(name, value, clock.total)
        return "continue"

    def at_end(self, clock: Clock, models: Mapping[str, Model]) -> None:
        """Histograms, then close."""
        for role, model in models.items():
            for name, parameter in model.named_parameters():
                if bool(torch.isfinite(parameter).all()):
                    self.writer().add_histogram(f"{role}/{name}", parameter.detach().float().cpu().numpy(), clock.total)
        self.writer().close()
