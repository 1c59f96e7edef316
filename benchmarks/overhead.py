"""What the loop costs beside the mathematics: microseconds a step.

    python benchmarks/overhead.py --steps 3000 --pairs 7

The network is the overviews' MLP 784-128-64-10 on random bytes, batch 64, one thread. "Bare" is the same preprocessed
mathematics with the same fused Adam over a ready index, with no logging: index, scale, forward, loss, backward, step. Both
are timed in turn, and the difference of each pair is reported as median and range.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import nn

from fathom.core.contract import Stage
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.loop import train
from fathom.verbs.assemble import build, open_task

BATCH = 64


def main() -> None:
    """Time both and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (20_000, 28, 28), np.uint8)
    labels = generator.integers(0, 10, 20_000)
    training = {
        "batch": BATCH,
        "steps": options.steps,
        "optimizer": "adam",
        "schedule": "constant",
        "learning_rate": 1e-3,
    }
    task = open_task((pixels, labels), {"network": {"name": "mlp"}, "training": training})
    assembly, device = build(task, Device.choose("cpu")), Device.choose("cpu")
    data = task.prepared.sets["train"]

    def fathom() -> float:
        assembly.clock.step = assembly.clock.stage = 0
        start = time.perf_counter()
        train(assembly.algorithm, [Stage("train", options.steps, data)], [], assembly.clock, device, non_finite)
        return (time.perf_counter() - start) / options.steps * 1e6

    rows = data.batch(torch.arange(len(data)))
    images, targets = rows["image"], rows[next(iter(task.schema.targets))]
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    order = torch.randperm(len(data)).split(BATCH)[:-1]
    criterion = nn.CrossEntropyLoss()

    def bare() -> float:
        start = time.perf_counter()
        for step in range(options.steps):
            index = order[step % len(order)]
            optimizer.zero_grad()
            criterion(net(images[index] / 255), targets[index]).backward()
            optimizer.step()
        return (time.perf_counter() - start) / options.steps * 1e6

    fathom(), bare()
    pairs = [(fathom(), bare()) for _ in range(options.pairs)]
    gaps = sorted(one - other for one, other in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"fathom {ours:.0f} us a step, bare mathematics {theirs:.0f}; "
        f"difference {statistics.median(gaps):+.0f} ({gaps[0]:+.0f} to {gaps[-1]:+.0f})"
    )


if __name__ == "__main__":
    main()
