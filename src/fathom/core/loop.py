"""The loop. It knows progress and nothing else: no algorithm, no network, no kind of data.

for each stage:
    begin the stage                     (freeze, group parameters)
    for each batch of the algorithm:    (resumed at the clock)
        algorithm.step(batch)           inside the device's autocast
        stop if an update was not finite
        callbacks look, and may end the stage or the run
    algorithm.finish(stage)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from torch import Tensor

from fathom.core.contract import Algorithm, Batch, Callback, Clock, Stage, Verdict
from fathom.core.device import Device
from fathom.core.errors import NonFiniteError

NonFinite = Callable[[Algorithm, Batch, int], Exception]
LOOK_EVERY = 50  # steps between looks at the guard where looking waits for the device


def train(
    algorithm: Algorithm, stages: Sequence[Stage], callbacks: Sequence[Callback], clock: Clock, device: Device,
    non_finite: NonFinite,
) -> None:  # fmt: skip
    """Run the stages from where the clock stands.

    Args:
        algorithm: what learns.
        stages: what it is trained on; the same list at every resume.
        callbacks: watchers, asked in order.
        clock: where training is; moved by this function alone.
        device: its autocast surrounds every step.
        non_finite: makes the error that names the cause, from the batch and the first bad step.
    """
    models = algorithm.models
    for model in models.values():
        model.train()
    for number in range(clock.stage, len(stages)):
        stage = stages[number]
        clock.stage, clock.steps = number, stage.steps
        if clock.step == 0:
            for optimizer in algorithm.optimizers.values():
                optimizer.begin(stage.rates)
        if _run_stage(algorithm, stage, callbacks, clock, device, non_finite) == "end_run":
            break
        algorithm.finish(stage)
        for callback in callbacks:
            callback.after_stage(clock, models)
        clock.step = 0
    for callback in callbacks:
        callback.at_end(clock, models)


def _run_stage(
    algorithm: Algorithm, stage: Stage, callbacks: Sequence[Callback], clock: Clock, device: Device, non_finite: NonFinite
) -> Verdict:  # fmt: skip
    before, autocast = time.perf_counter(), device.autocast()
    for batch in islice(algorithm.batches(stage, clock.step), stage.steps - clock.step):
        with autocast:
            metrics = algorithm.step(batch)
        clock.step += 1
        clock.total += 1
        clock.rows += len(next(iter(batch.values())))
        now = time.perf_counter()
        clock.seconds, before = clock.seconds + now - before, now
        if device.reads_are_free or clock.step % LOOK_EVERY == 0 or clock.step == stage.steps:
            _look(algorithm, stage, batch, clock, non_finite)
        try:
            verdict = _ask(callbacks, algorithm, clock, metrics)
        except NonFiniteError:  # of a checkpoint that was due; the cause can be told better
            _look(algorithm, stage, batch, clock, non_finite)
            raise
        if verdict != "continue":
            _look(algorithm, stage, batch, clock, non_finite)
            return verdict
    return "continue"


def _look(algorithm: Algorithm, stage: Stage, batch: Batch, clock: Clock, non_finite: NonFinite) -> None:
    """Stop where an update was not finite. The batch of an earlier step is made again, to be replayed."""
    first = min((s for o in algorithm.optimizers.values() if (s := o.first_bad_step()) >= 0), default=clock.total)
    if first < clock.total - 1:
        batch = next(algorithm.batches(stage, first - (clock.total - clock.step)))
    if first < clock.total:
        raise non_finite(algorithm, batch, first)


def _ask(callbacks: Sequence[Callback], algorithm: Algorithm, clock: Clock, metrics: Mapping[str, Tensor]) -> Verdict:
    """Every callback looks; the gravest verdict counts."""
    verdicts = {callback.after_step(clock, metrics, algorithm.models) for callback in callbacks}
    return "end_run" if "end_run" in verdicts else "end_stage" if "end_stage" in verdicts else "continue"
