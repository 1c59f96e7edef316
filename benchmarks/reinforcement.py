"""Agents beside Stable-Baselines3: actions a second, and seconds until CartPole is solved, in pairs.

    python benchmarks/reinforcement.py --work ppo dqn --pairs 5

Both tools learn CartPole with one thread and the settings of rl-zoo: PPO with 8 copies, rollouts of 32, 20 passes of
minibatches of 256, two networks of 64-64 tanh; DQN with one copy, a memory of 100,000, 128 batches of 64 after every 256
actions, a network of 256-256 relu. Stable-Baselines3 lives in an environment of its own, made at the first run
(`--envs`); every run is a process of its own, and pairs take turns in who comes first. Imports and construction are not
timed. What is left different: Adam's epsilon (1e-5 there for PPO, 1e-8 here), and that Fathom draws from the policy by
noise that is made once a rollout.

"Solved" is the first time that the mean return of the latest 20 episodes of training, exploration included, is 475.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from run import TOOLS, Tool, create_environment, interpreter, say

HERE = Path(__file__).resolve().parent
RIVAL = "stable-baselines3"
TOOLS[RIVAL] = Tool("Stable-Baselines3", "stable_baselines3_agent.py")
ACTIONS = {"ppo": 60_000, "dqn": 30_000}
RESAMPLES = 10_000


def measure(python: Path | str, adapter: str, work: str, actions: int, seed: int) -> dict:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        variables = {**os.environ, "PYTHONPATH": str(HERE / "adapters"), "OMP_NUM_THREADS": "1"}
        words = ["--work", work, "--actions", str(actions), "--seed", str(seed), "--json", str(path)]
        subprocess.run([str(python), str(HERE / "adapters" / adapter), *words], check=True, env=variables)
        return json.loads(path.read_text())


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median of paired ratios with the 95 % bootstrap interval of that median."""
    draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(draws, 1), [2.5, 97.5])
    return median(ratios), float(low), float(high)


def main() -> None:
    """Run the pairs and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=list(ACTIONS), default=list(ACTIONS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--actions", type=int, help="of each run; 60,000 of PPO and 30,000 of DQN where not given")
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "fathom-benchmarks")
    parser.add_argument("--out", type=Path, help="a .json for every measurement")
    options = parser.parse_args()
    create_environment(options.envs, RIVAL, sys.executable)
    told: dict[str, list[dict]] = {}
    for work in options.work:
        actions = options.actions or ACTIONS[work]
        pairs = []
        for pair in range(options.pairs):
            rival = (interpreter(options.envs, RIVAL), TOOLS[RIVAL].adapter)
            sides = {"fathom": (sys.executable, "fathom_agent.py"), RIVAL: rival}
            order = list(sides) if pair % 2 else list(reversed(sides))
            made = {name: measure(*sides[name], work, actions, seed=pair) for name in order}
            pairs.append(made)
            speeds = {name: made[name]["actions"] / made[name]["seconds"] for name in sides}
            say(f"{work} pair {pair + 1}: " + ", ".join(
                f"{name} {speeds[name]:,.0f} actions a second, solved after {_seconds(made[name]['solved'])}" for name in sides
            ))  # fmt: skip
        told[work] = pairs
        report(work, pairs)
    if options.out:
        options.out.write_text(json.dumps(told, indent=1))


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def report(work: str, pairs: list[dict]) -> None:
    """Ratios of one work."""
    for clock, what in (("seconds", "a second"), ("cpu", "a second of the processor")):
        speed = [p["fathom"]["actions"] / p["fathom"][clock] * p[RIVAL][clock] / p[RIVAL]["actions"] for p in pairs]
        value, low, high = interval(speed)
        print(f"{work}: {value:.2f} times the actions {what} ({low:.2f} to {high:.2f}, {len(pairs)} pairs)")
    both = [p for p in pairs if p["fathom"]["solved"] and p[RIVAL]["solved"]]
    if both:
        value, low, high = interval([p["fathom"]["solved"] / p[RIVAL]["solved"] for p in both])
        solved = f"both solved it in {len(both)} of {len(pairs)}"
        print(f"{work}: {value:.2f} of the seconds to 475 ({low:.2f} to {high:.2f}; {solved})")


if __name__ == "__main__":
    main()
