"""What both tools of the agents' benchmark share: works, and the time at which CartPole is solved.

Settings are those of rl-zoo for CartPole, the same in both tools; see `benchmarks/reinforcement.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

ENVIRONMENT = "CartPole-v1"
SOLVED, WINDOW = 475.0, 20  # mean return of the latest episodes of training, exploration included
WORKS = ("ppo", "dqn")


class Watch:
    """When each episode ended, and what it returned."""

    def __init__(self) -> None:
        self.begin, self.cpu = time.perf_counter(), time.process_time()
        self.times: list[float] = []
        self.returns: list[float] = []

    def start(self) -> None:
        """The first action is about to be taken."""
        self.begin, self.cpu = time.perf_counter(), time.process_time()

    def add(self, total: float) -> None:
        """An episode has ended."""
        self.times.append(time.perf_counter() - self.begin)
        self.returns.append(total)

    def solved(self) -> float | None:
        """Seconds until the mean of the latest episodes was first 475; None where it never was."""
        for end in range(WINDOW, len(self.returns) + 1):
            if sum(self.returns[end - WINDOW : end]) / WINDOW >= SOLVED:
                return self.times[end - 1]
        return None


def arguments() -> argparse.Namespace:
    """The command line of an adapter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--actions", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def write(path: Path, watch: Watch, actions: int) -> None:
    """What was measured; time of the processor beside that of the clock, which a busy machine stretches."""
    seconds, cpu = time.perf_counter() - watch.begin, time.process_time() - watch.cpu
    told = {
        "actions": actions,
        "seconds": seconds,
        "cpu": cpu,
        "solved": watch.solved(),
        "episodes": len(watch.returns),
    }
    path.write_text(json.dumps(told))
