"""Agents through the verbs: fit, resume, evaluate, predict, play, several seeds; and what is said when something is wrong."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from PIL import Image

import fathom
from arenas import Catch, Chain, Faulty, Reach, Wandering
from fathom.analysis.episodes import improvement_of, interquartile_mean, learning_band, linear_policy, pooled
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.environments import TEST, play
from fathom.core.errors import FathomError
from fathom.core.loop import train
from fathom.core.recipe import Recipe, merge
from fathom.core.registry import algorithms
from fathom.core.run import read_json
from fathom.verbs.assemble import build, open_task
from kit import QUICK, Killable, cli, trained

SHORT = ("ppo.environments=4", "ppo.rollout_steps=16", "ppo.epochs=2", "network.hidden=[8]", *QUICK)
TINY = {
    "training.threads": 1, "ppo.environments": 2, "ppo.rollout_steps": 8, "ppo.epochs": 1, "training.batch": 16,
    "training.environment_steps": 64,
}  # fmt: skip
DQN = {
    "training.threads": 1, "training.algorithm": "dqn", "dqn.starts": 16, "dqn.train_every": 8, "dqn.updates": 2,
    "training.batch": 16, "training.environment_steps": 64, "network.hidden": [8],
}  # fmt: skip


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of PPO on CartPole, made by the command line."""
    folder = tmp_path_factory.mktemp("cartpole")
    said = cli("fit", "CartPole-v1", "--out", str(folder), "--name", "agent", "training.environment_steps=640", *SHORT)
    assert said.code == 0, said.err
    assert "Task      reinforcement learning (episodes of at most 500 actions)" in said.err
    assert "640 actions in 20 steps" in said.err
    assert "Next      fathom play" in said.out
    return folder / "agent"


# ---- one run


def test_a_run_holds_what_every_run_holds(cartpole: Path) -> None:
    results = read_json(cartpole / "results.json")
    assert results["task"] == "reinforcement learning"
    assert results["environment_steps"] == 640
    assert list(results["baseline"]) == ["random policy", "linear policy"]
    low, value, high = (results["test"]["return"][key] for key in ("low", "value", "high"))
    assert low <= value <= high
    assert value == pytest.approx(np.mean(results["episodes"]["network"]))
    gap = results["difference"]["random policy"]["return"]["value"]
    assert gap == pytest.approx(value - np.mean(results["episodes"]["random policy"]))
    assert results["learning"]["environment_steps"][-1] <= 640 + 7
    assert results["monitored"]["metric"] == "return"
    assert results["monitored"]["value"] > 0
    assert "Weights: last weights" in (cartpole / "model" / "README.md").read_text("utf-8")
    recipe = fathom.load(cartpole).recipe
    assert (recipe.training.steps, recipe.training.environment_steps, recipe.training.threads) == (20, 640, 1)


def test_the_report_draws_the_learning_curve(cartpole: Path) -> None:
    page = (cartpole / "report.html").read_text("utf-8")
    assert "Learning curve" in page
    assert "on 100 fresh episodes, without exploration" in page
    assert "simpler policies in the same episodes" in page
    assert "Repeat it with other seeds" in page


def test_what_is_deployed_is_the_policy_alone(cartpole: Path) -> None:
    from safetensors import safe_open

    with safe_open(cartpole / "model" / "weights.safetensors", "pt") as file:
        names = set(file.keys())
    assert "actor/preprocess.0.mean" in names, "statistics of observations go with the network"
    assert not any("log_deviation" in name or "rollout" in name for name in names)
    run = fathom.load(cartpole)
    assert set(run.predictor.layers) == {"preprocess", "network"}


def test_evaluate_plays_fresh_episodes(cartpole: Path) -> None:
    said = cli("evaluate", str(cartpole), "--episodes", "7", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    told = read_json(cartpole / "results.json")["episodes"]
    assert {name: len(returns) for name, returns in found["episodes"].items()} == dict.fromkeys(told, 7)
    assert found["episodes"]["network"] == told["network"][:7], "the same first episodes as fit played"
    assert "7 fresh episodes" in found["evaluation_notes"][0]


def test_predict_reads_observations(cartpole: Path, tmp_path: Path) -> None:
    (tmp_path / "seen.csv").write_text("x1,x2,x3,x4\n0,0,0.1,0.2\n0,0,-0.1,-0.2\n", "utf-8")
    said = cli("predict", str(cartpole), "seen.csv", "--json")
    assert said.code == 0, said.err
    answers = json.loads(said.out)
    assert {line["answer"] for line in answers} <= {0, 1}
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    (one,) = fathom.load(cartpole).predict([0, 0, 0.1, 0.2])
    assert one["probabilities"] == answers[0]["probabilities"]
    with pytest.raises(FathomError, match="has 3 values; the model reads 4"):
        fathom.load(cartpole).predict([0, 0, 0.1])


def test_a_run_is_repeated_by_its_recipe(cartpole: Path) -> None:
    said = cli("fit", str(cartpole / "recipe.toml"), "--out", "again", "training.name=agent")
    assert said.code == 0, said.err
    assert trained(Path("again/agent")) == trained(cartpole)


def test_a_larger_budget_goes_on_where_the_run_ended(cartpole: Path) -> None:
    import shutil

    shutil.copytree(cartpole, "longer")
    said = cli("fit", "--resume", "longer", "training.environment_steps=1280")
    assert said.code == 0, said.err
    assert read_json(Path("longer/results.json"))["environment_steps"] == 1280


def test_plan_shows_networks_and_time() -> None:
    said = cli("plan", "CartPole-v1", *SHORT)
    assert said.code == 0, said.err
    assert "reinforcement learning" in said.out
    assert "Time" in said.out


def test_the_best_weights_are_chosen_on_episodes_of_their_own() -> None:
    keys = {**TINY, "training.keep": "best"}
    run = fathom.fit(Chain, **keys)
    assert run.results["kept"].startswith("best weights")
    assert any("validation/return" in line for line in run.history[:-1])


def test_minutes_are_a_budget(tmp_path: Path) -> None:
    keys = {key: value for key, value in TINY.items() if key != "training.environment_steps"}
    run = fathom.fit(Chain, **keys, minutes=0.005)
    assert run.results["environment_steps"] >= 16
    assert run.recipe.training.epochs is None


# ---- killed and resumed


@pytest.mark.parametrize("words", [
    ("training.environment_steps=1600", *SHORT),
    ("--algorithm", "dqn", "training.environment_steps=400", "dqn.starts=200", "dqn.train_every=16", "dqn.updates=4",
     "network.hidden=[8]", *QUICK),
], ids=["ppo", "dqn"])  # fmt: skip
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, words: tuple[str, ...]) -> None:
    line = ("fit", "CartPole-v1", "training.checkpoint_seconds=0", *words, "--name")
    whole = Killable(tmp_path, *line, "whole")
    assert whole.wait() == 0, whole.said().err
    killed = Killable(tmp_path, *line, "killed")
    assert killed.until(tmp_path / "runs/killed/checkpoints/step-000000037.safetensors")
    killed.kill()
    assert not (tmp_path / "runs/killed/results.json").exists()
    resumed = Killable(tmp_path, "fit", "--resume", "runs/killed")
    assert resumed.wait() == 0, resumed.said().err
    assert trained(tmp_path / "runs/killed") == trained(tmp_path / "runs/whole")
    ours, theirs = (read_json(tmp_path / f"runs/{name}/results.json") for name in ("killed", "whole"))
    assert ours["episodes"] == theirs["episodes"]
    assert ours["learning"] == theirs["learning"]


# ---- several seeds


def test_seeds_are_judged_together() -> None:
    run = fathom.fit(Chain, **TINY, seeds=3)
    results = run.results
    scores = [
        np.mean(read_json(path / "results.json")["episodes"]["network"]) for path in sorted(run.path.glob("members/*"))
    ]
    assert results["test"]["return"]["value"] == pytest.approx(float(interquartile_mean(torch.tensor(scores))))
    assert results["test"]["mean_return"]["value"] == pytest.approx(np.mean(scores))
    assert set(results["improvement"]) == set(results["baseline"])
    assert len(results["learning"]["low"]) == len(results["learning"]["return"])
    assert "interquartile mean over 3 seeds" in results["evaluation_notes"][0]
    page = (run.path / "report.html").read_text("utf-8")
    assert "Learning curve, all seeds" in page
    assert 'class="band"' in page


def test_the_interquartile_mean_is_that_of_scipy() -> None:
    from scipy.stats import trim_mean

    for count in (1, 2, 3, 4, 5, 10, 11):
        scores = torch.randn(count, dtype=torch.float64)
        assert float(interquartile_mean(scores)) == pytest.approx(trim_mean(scores.numpy(), 0.25))


def test_the_probability_of_improvement_by_hand() -> None:
    mine, other = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])
    found = improvement_of(mine, other, 0)
    assert found.value == (0.5 + 0 + 1 + 1) / 4
    assert 0 <= found.low <= found.value <= found.high <= 1
    sure = improvement_of(torch.tensor([3.0, 4.0]), torch.tensor([1.0]), 0)
    assert (sure.low, sure.value, sure.high) == (1, 1, 1)


def test_intervals_of_seeds_are_stratified() -> None:
    """Ten seeds of 100 and 200: the interval is that of the seeds, however many episodes each played."""
    tables = [_table([100.0 + 100 * (seed % 2)] * 50, [0.0] * 50) for seed in range(10)]
    found = pooled(tables, seed=0)
    estimate = found["test"]["return"]
    assert estimate["value"] == 150
    assert 100 <= estimate["low"] < 125 < 175 < estimate["high"] <= 200
    assert found["better"] == "better"
    assert found["improvement"]["random policy"]["value"] == 1


def _table(network: list[float], random: list[float]) -> dict[str, Any]:
    return {
        "episodes": {"network": network, "random policy": random},
        "baseline": {"random policy": {}},
        "test": {"episode_length": {"value": 1.0}},
        "learning": {"environment_steps": [10, 20], "return": [0.0, 1.0]},
    }


def test_the_band_of_learning_curves() -> None:
    band = learning_band([
        {"environment_steps": [10, 20, 30], "return": [0.0, 1.0, 2.0]},
        {"environment_steps": [20, 30], "return": [3.0, 4.0]},
        {"environment_steps": [], "return": []},
    ])  # fmt: skip
    assert band == {"environment_steps": [20, 30], "return": [2.0, 3.0], "low": [1.0, 2.0], "high": [3.0, 4.0]}


# ---- baselines


def test_the_linear_policy_finds_what_is_linear() -> None:
    task = open_task(Reach, {})
    action: Any = task.schema.targets["action"]
    assert task.prepared.environment is not None
    policy = linear_policy(task.prepared.environment, action, seed=0, budget=6_000, noise=0.1, rate=0.1)
    returns, _ = play(task.prepared.environment, policy, 20, 0, TEST)
    assert returns.mean() > -1.0  # doing nothing is worth -6.7


# ---- play


def test_play_draws_what_an_agent_sees(tmp_path: Path) -> None:
    run = fathom.fit(Catch, **TINY, **{"network.channels": [2], "network.dense": [8]})
    drawn = run.play(tmp_path / "agent.gif", episodes=2, environment=Catch)
    assert drawn["lengths"] == [9, 9]
    with Image.open(tmp_path / "agent.gif") as picture:
        assert picture.n_frames == drawn["pictures"] == 18
        assert picture.height == 240


@pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="the built-in environments are drawn by pygame")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pygame's own packaging
def test_play_draws_cartpole(cartpole: Path) -> None:
    said = cli("play", str(cartpole), "-o", "agent.gif")
    assert said.code == 0, said.err
    assert re.search(r"Episode 1: return \d+ in \d+ actions", said.out)
    with Image.open("agent.gif") as picture:
        assert picture.size == (600 + 190, 400)


def test_play_says_what_it_cannot_draw(cartpole: Path) -> None:
    run = fathom.fit(Chain, **TINY)
    with pytest.raises(FathomError, match="learnt in an environment given from Python; give it again"):
        run.play("agent.gif")
    with pytest.raises(FathomError, match=r"Chain draws nothing .* and shows no pictures"):
        run.play("agent.gif", environment=Chain)
    assert "cannot be written as '.png'; use .gif or .mp4" in cli("play", str(cartpole), "-o", "agent.png").last
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        assert "An .mp4 needs imageio-ffmpeg" in cli("play", str(cartpole), "-o", "agent.mp4").last


# ---- what is wrong


@pytest.mark.parametrize(("words", "sentence"), [
    (("CartPol-v1",), "There is no environment 'CartPol-v1' in gymnasium, and no file or folder of that name. Did you mean "
                      "'CartPole-v0' or 'CartPole-v1'?"),
    (("CartPole-v7",), "Did you mean 'CartPole-v0' or 'CartPole-v1'?"),
    (("nothing-v1",), "Built in, among others: CartPole-v1"),
    (("os:CartPole-v1",), "would import a module, which no recipe may do"),
    (("Pendulum-v1", "--algorithm", "dqn"), "here an action is numbers. Use --algorithm ppo."),
    (("CartPole-v1", "--limit", "5"), "data.limit is about rows of data, and an environment has none"),
    (("CartPole-v1", "--epochs", "5"), "training.epochs is about rows of data"),
    (("CartPole-v1", "--folds", "3"), "training.folds"),
    (("CartPole-v1", "augment.shift=1"), "Augmentations change rows of data"),
    (("CartPole-v1", "--algorithm", "supervised"), "no rows for supervised to learn from; it is learnt by: dqn, ppo."),
    (("digits", "--algorithm", "ppo"), "ppo learns by acting in an environment, and these data are rows."),
    (("CartPole-v1", "training.monitor=accuracy"), "There is no metric 'accuracy' in training.monitor."),
    (("CartPole-v1", "--algorithm", "dqn", "training.environment_steps=100"), "ends before dqn learns: it first acts 1,000"),
    (("CartPole-v1", "data.environment.colour=1"), "does not take the options data.environment = {'colour': 1}"),
    (("CartPole-v1", "data.observation.frames=4"), "data.observation.frames joins pictures, and CartPole-v1 shows 4 numbers"),
    (("CartPole-v1", "ppo.gae=1"), "Did you mean 'ppo.gae_lambda'?"),
])  # fmt: skip
def test_every_wrong_request_is_a_sentence(words: tuple[str, ...], sentence: str) -> None:
    said = cli("fit", *words)
    assert said.code == 2
    assert sentence in said.last
    assert "Traceback" not in said.err
    assert not list(Path("runs").glob("*/recipe.toml")) if Path("runs").exists() else True


def with_spaces(observation: Any, action: Any) -> Callable[[], Any]:
    def make() -> Any:
        environment = Chain()
        environment.observation_space, environment.action_space = observation, action
        return environment

    return make


@pytest.mark.parametrize(("make", "sentence"), [
    (with_spaces(Dict({"a": Discrete(2)}), Discrete(2)), r"Chain shows a Dict\('a': Discrete\(2\)\); .*\.FlattenObservation"),
    (with_spaces(MultiBinary(3), Discrete(2)), r"shows a MultiBinary\(3\)"),
    (with_spaces(Discrete(5), MultiDiscrete([2, 3])), r"takes a MultiDiscrete\(\[2 3\]\).*every combination is one number"),
    (with_spaces(Discrete(5), Box(0, 3, (1,), np.int32)), "a Discrete or a Box of fractional numbers"),
    (partial(Faulty, "reset"), r"Faulty: reset returned a ndarray alone, where gymnasium wants \(observation, info\)"),
    (partial(Faulty, "four"), "Faulty: step does not return the five values that gymnasium wants"),
    (partial(Faulty, "shape", 3), r"observation of shape \(3,\) after action 3 of episode 1 of copy 1; its observation_space"),
    (lambda: "no environment", "returned a str; to be acted in it has to return a gymnasium environment"),
])  # fmt: skip
def test_an_environment_that_cannot_be_acted_in_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(FathomError, match=sentence):
        fathom.fit(make, **TINY)
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


@pytest.mark.parametrize(("how", "sentence"), [
    ("raises", "Faulty raised RuntimeError in step after action 100 of episode 1 of copy 1: the motor is hot"),
    ("observation", r"Faulty returned an observation \(place 1 of 2\) that is not a finite number \(nan\) after action 100"),
    ("reward", r"Faulty returned a reward that is not a finite number \(nan\) after action 100 of episode 1 of copy 1"),
])  # fmt: skip
def test_an_environment_that_breaks_leaves_a_run_that_goes_on(how: str, sentence: str) -> None:
    """It breaks in training; the run folder is whole, and goes on once the environment is mended."""
    keys = {**TINY, "training.environment_steps": 480, "training.checkpoint_seconds": 0}
    with pytest.raises(FathomError, match=sentence) as caught:
        fathom.fit(partial(Faulty, how), **keys)
    assert "What was saved is intact" in str(caught.value)
    (folder,) = Path("runs").iterdir()
    assert list(folder.glob("checkpoints/step-*.safetensors"))
    run = fathom.fit(partial(Faulty, "never"), resume=folder)
    assert run.results["environment_steps"] == 480


def test_an_environment_that_is_not_deterministic_withdraws_the_promise() -> None:
    keys = {**TINY, "training.checkpoint_seconds": 0}

    class Breaking(Wandering):
        taken, last = 0, 64 + 2 * 36  # the first look, then some of training, within an episode

        def step(self, action: int) -> Any:
            Breaking.taken += 1
            if Breaking.taken > Breaking.last:
                raise RuntimeError("stop here")
            return super().step(action)

    with pytest.raises(FathomError, match="stop here"):
        fathom.fit(Breaking, **{**keys, "training.environment_steps": 640})
    Breaking.last = 10**9
    (folder,) = Path("runs").iterdir()
    told: list[str] = []
    run = fathom.fit(Breaking, resume=folder, tell=told.append)
    assert any("Breaking is not deterministic" in line and "not exact" in line for line in told)
    assert any("is not deterministic" in note for note in run.results["notes"])


def test_only_agents_play(cartpole: Path) -> None:
    run = fathom.fit((np.arange(40.0)[:, None], [0, 1] * 20), steps=2, **{"training.threads": 1})
    assert "learnt from rows; only agents play" in cli("play", str(run.path), "-o", "agent.gif").last
    assert "Only agents play episodes" in cli("evaluate", str(run.path), "--episodes", "3").last
    assert (
        "Acrobot-v1 has another observation than the agent learnt" in cli("evaluate", str(cartpole), "Acrobot-v1").last
    )
    assert "'digits' is rows of data" in cli("evaluate", str(cartpole), "digits").last


# ---- what is given from Python, and the contract of every agent


def test_an_object_is_copied_and_a_function_is_called() -> None:
    made = gymnasium.make("CartPole-v1")
    assert fathom.fit(made, **TINY).results["environment_steps"] == 64
    assert fathom.fit(Chain(), **TINY).results["environment_steps"] == 64
    run = fathom.fit(lambda: Chain(), **TINY)
    assert run.evaluate(Chain, episodes=3)["test"]["return"]["value"] >= 0


def test_pictures_that_are_seen_together() -> None:
    run = fathom.fit(Catch, **TINY, **{"data.observation.frames": 3, "network.channels": [2], "network.dense": [8]})
    assert run.schema.inputs["observation"].shape == (3, 10, 5)
    assert run.recipe.network["name"] == "cnn"


RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
ACTING = [path for path in RECIPES if re.search(r'location = "\w+-v\d+"', path.read_text("utf-8"))]


@pytest.mark.parametrize("path", ACTING, ids=lambda path: path.stem)
def test_a_recipe_of_an_agent_runs_two_steps(path: Path) -> None:
    """Judged it is not: a hundred episodes of Acrobot take half a minute."""
    tree = merge(Recipe.read(path), {"training.steps": 2})
    task, device = open_task(tree["data"]["location"], tree), Device.choose("cpu")
    assembly = build(task, device)
    train(assembly.algorithm, assembly.algorithm.stages(task.prepared.sets), [], assembly.clock, device, non_finite)
    assert assembly.clock.total == task.recipe.training.steps == 2
    assert assembly.clock.environment_steps > 0


@pytest.mark.parametrize("name", [entry.name for entry in algorithms if entry.about.get("acts")])
@pytest.mark.parametrize("make", [Chain, Catch], ids=["states", "pictures"])
def test_every_agent_keeps_the_contract(name: str, make: Any) -> None:
    """Fit, judge, save, load, answer alike; the loop, the bundle and the report know none of them by name."""
    keys = TINY if name == "ppo" else DQN
    small = {"network.channels": [2], "network.dense": [8]} if make is Catch else {"network.hidden": [8]}
    keys = {key: value for key, value in keys.items() if not key.startswith("network")}
    run = fathom.fit(
        make, algorithm=name, **{key: v for key, v in keys.items() if key != "training.algorithm"}, **small
    )
    again = fathom.load(run.path)
    shown = torch.arange(5) if make is Chain else torch.randint(0, 256, (5, 10, 5, 1), dtype=torch.uint8)
    batch = {"observation": shown}
    torch.testing.assert_close(run.predictor.forward(batch), again.predictor.forward(batch))
    assert len(again.schema.targets["action"].decode(again.predictor.forward(batch)["action"])) == 5
    assert (run.path / "report.html").stat().st_size < 1_000_000
