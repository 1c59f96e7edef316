"""Fathom with the same settings: the real loop with its history, one thread."""

from __future__ import annotations

import torch
from agents import ENVIRONMENT, Watch, arguments, write

from fathom.core.callbacks import History
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.loop import train
from fathom.verbs.assemble import build, open_task

SETTINGS = {
    "ppo": {
        "training": {"algorithm": "ppo", "learning_rate": 1e-3, "schedule": "linear", "batch": 256, "clip": 0.5},
        "network": {"name": "mlp", "hidden": [64, 64], "activation": "tanh"},
        "ppo": {"environments": 8, "rollout_steps": 32, "epochs": 20, "discount": 0.98, "gae_lambda": 0.8,
                "clip_range": 0.2, "clip_schedule": "linear", "normalize_observations": False},
    },
    "dqn": {
        "training": {"algorithm": "dqn", "learning_rate": 2.3e-3, "schedule": "constant", "batch": 64, "clip": 10.0},
        "network": {"name": "mlp", "hidden": [256, 256], "activation": "relu"},
        "dqn": {"environments": 1, "memory": 100_000, "starts": 1000, "discount": 0.99, "target_every": 10,
                "train_every": 256, "updates": 128, "exploration": 0.16, "epsilon": 0.04, "double": False},
    },
}  # fmt: skip


def main() -> None:
    """Learn and write what was measured."""
    options = arguments()
    torch.set_num_threads(1)
    tree = SETTINGS[options.work]
    tree["training"] |= {"environment_steps": options.actions, "seed": options.seed, "threads": 1}
    task, device = open_task(ENVIRONMENT, tree), Device.choose("cpu")
    assembly = build(task, device)
    algorithm, clock, watch = assembly.algorithm, assembly.clock, Watch()
    add = algorithm.episodes.add

    def told(at: int, total: float, length: int) -> None:
        watch.add(total)
        add(at, total, length)

    algorithm.episodes.add = told
    every = algorithm.epoch(task.schema, task.prepared.sets["train"], task.recipe.training)
    history = History(every, None, lambda: 0.0)
    watch.start()
    train(algorithm, algorithm.stages(task.prepared.sets), [history], clock, device, non_finite)
    write(options.json, watch, clock.environment_steps)


if __name__ == "__main__":
    main()
