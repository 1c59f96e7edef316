"""Agents: formulas by hand, learning on closed problems, trajectories that resume bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arenas import Catch, Chain, Endless, Reach, Wandering
from fathom.algorithms.acting import Episodes
from fathom.algorithms.dqn import Replay, annealed, dueling
from fathom.algorithms.ppo import Categorical, Gaussian, RewardScale, advantages, clipped
from fathom.core.callbacks import Watcher
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.environments import LOOK, TRAINING, VALIDATION, Arena, Environment, episode_seed, play
from fathom.core.loop import train
from fathom.core.run import CheckpointStore
from fathom.core.state import load_state, state_of
from fathom.fields.action import Action, greedy
from fathom.fields.observation import Normalize, Observation, Running, picture_shape
from fathom.verbs.assemble import Assembly, build, open_task

QUICK = {"training.threads": 1}
PPO = {
    "training.algorithm": "ppo",
    "ppo.environments": 4,
    "ppo.rollout_steps": 8,
    "ppo.epochs": 2,
    "training.batch": 16,
}
DQN = {
    "training.algorithm": "dqn", "dqn.environments": 2, "dqn.starts": 20, "dqn.train_every": 4, "dqn.updates": 3,
    "training.batch": 16, "network.hidden": [16],
}  # fmt: skip


def nested(keys: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = value
    return tree


def assemble(make: Callable[[], Any], **keys: Any) -> tuple[Assembly, list[Any]]:
    task = open_task(make, nested({**QUICK, **keys}))
    assembly = build(task, Device.choose("cpu"))
    return assembly, assembly.algorithm.stages(task.prepared.sets)


def learn(make: Callable[[], Any], **keys: Any) -> Assembly:
    assembly, stages = assemble(make, **keys)
    train(assembly.algorithm, stages, [], assembly.clock, Device.choose("cpu"), non_finite)
    for model in assembly.models.values():
        model.eval()
    return assembly


def greedy_return(assembly: Assembly, episodes: int = 20) -> float:
    algorithm: Any = assembly.algorithm
    policy = greedy(algorithm.predictor())
    return float(play(algorithm.environment, policy, episodes, 0, VALIDATION)[0].mean())


# ---- formulas


def test_advantages_by_hand() -> None:
    """Three actions, discount 0.5, lambda 0.5: delta_t = r + 0.5 v' - v, each carries a quarter of the next."""
    reward = np.array([[1.0], [2.0], [3.0]], np.float32)
    value = np.array([[0.5], [1.0], [2.0]], np.float32)
    deltas = [1 + 0.5 * 1 - 0.5, 2 + 0.5 * 2 - 1, 3 + 0.5 * 4 - 2]
    expected = [deltas[0] + 0.25 * (deltas[1] + 0.25 * deltas[2]), deltas[1] + 0.25 * deltas[2], deltas[2]]
    made = advantages(reward, value, np.array([4.0], np.float32), np.zeros((3, 1), bool), 0.5, 0.5)
    np.testing.assert_allclose(made[:, 0], expected)


def test_advantages_stop_at_the_end_of_an_episode() -> None:
    reward, value = np.ones((3, 1), np.float32), np.full((3, 1), 10.0, np.float32)
    ended = np.array([[False], [True], [False]])
    made = advantages(reward, value, np.array([7.0], np.float32), ended, 0.9, 1.0)
    np.testing.assert_allclose(made[:, 0], [1 + 0.9 * 1 - 10, 1 - 10, 1 + 0.9 * 7 - 10], rtol=1e-6)


def memory(places: int = 6) -> Replay:
    """One copy; rewards 1, 2, 4, ...; the third action ends its episode for good, the fifth only cuts it."""
    replay = Replay(places, 1, (1,), np.dtype(np.float32))

    class Shown:
        after = np.zeros((1, 1), np.float32)
        reward = np.zeros(1, np.float32)
        terminated = truncated = np.zeros(1, bool)

    for i in range(6):
        Shown.after, Shown.reward = np.array([[i + 1.0]], np.float32), np.array([2.0**i], np.float32)
        Shown.terminated, Shown.truncated = np.array([i == 2]), np.array([i == 4])
        replay.add(np.array([[float(i)]], np.float32), np.array([i % 2]), Shown)
    return replay


def test_n_step_returns_by_hand() -> None:
    replay, places = memory(), np.arange(4)
    last, reward, factor = replay._ahead(places, np.zeros(4, np.int64), 3, 0.5)
    assert reward.tolist() == [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4, 8 + 0.5 * 16]
    assert replay.after[last, 0, 0].tolist() == [3, 3, 3, 5]
    assert factor.tolist() == [0, 0, 0, 0.25]  # over for good at the third action; only cut at the fifth


def test_one_step_samples_hold_what_was_met() -> None:
    torch.manual_seed(0)
    batch = memory().sample(200, 1, 0.9)
    assert set(batch) == {"observation", "action", "reward", "after", "discount"}
    place = batch["observation"][:, 0]
    assert set(place.tolist()) == set(map(float, range(6)))
    torch.testing.assert_close(batch["after"][:, 0], place + 1)
    torch.testing.assert_close(batch["reward"], 2.0**place)
    torch.testing.assert_close(batch["discount"], torch.where(place == 2, 0.0, 0.9))


def test_the_memory_forgets_the_oldest_and_keeps_whole_windows() -> None:
    replay = memory(places=4)  # holds actions 2 to 5
    assert (replay.filled, replay.head) == (4, 2)
    torch.manual_seed(0)
    assert set(replay.sample(200, 3, 0.9)["observation"][:, 0].tolist()) == {2.0, 3.0}
    again = Replay(4, 1, (1,), np.dtype(np.float32))
    again.load_state_dict(replay.state_dict())
    torch.manual_seed(0)
    one = replay.sample(32, 2, 0.9)
    torch.manual_seed(0)
    other = again.sample(32, 2, 0.9)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_memory_that_is_not_full_saves_its_filled_part() -> None:
    replay = memory(places=100)
    assert {len(array) for array in replay.state_dict()["arrays"].values()} == {6}


def test_prioritized_sampling_probabilities_and_weights() -> None:
    """Shares are priority to the exponent; weights are (N share)^-beta over the largest (Schaul et al. 2016)."""
    replay = memory()
    replay.priority = np.array([[1.0], [4.0], [0.0], [9.0], [1.0], [1.0]])
    torch.manual_seed(0)
    batch = replay.sample(20_000, 1, 0.9, exponent=0.5, correction=1.0)
    found = np.bincount(batch["place"].numpy(), minlength=6) / 20_000
    shares = np.array([1, 2, 0, 3, 1, 1]) / 8
    np.testing.assert_allclose(found, shares, atol=0.012)
    weights = dict(zip(batch["place"].tolist(), batch["weight"].tolist(), strict=True))
    assert weights == pytest.approx({0: 1.0, 1: 0.5, 3: 1 / 3, 4: 1.0, 5: 1.0})
    replay.reweigh(torch.tensor([0, 2]), torch.tensor([5.0, 20.0]))
    assert replay.priority[[0, 2], 0] == pytest.approx([5, 20], abs=1e-5)
    assert replay.greatest == pytest.approx(20, abs=1e-5)


def test_dueling_streams_by_hand() -> None:
    output = torch.tensor([[10.0, 1.0, 2.0, 6.0]])
    assert dueling(output).tolist() == [[8.0, 9.0, 13.0]]


def test_chance_is_lowered_along_a_line() -> None:
    assert [annealed(taken, 10, 0.2) for taken in (0, 5, 10, 20)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_policies_agree_with_torch() -> None:
    torch.manual_seed(0)
    logits, actions = torch.randn(50, 3), torch.randint(3, (50,))
    reference: Any = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(Categorical().log_probability(logits, actions), reference.log_prob(actions))
    torch.testing.assert_close(Categorical().entropy(logits), reference.entropy().mean())
    policy, means, numbers = Gaussian(2, -0.5), torch.randn(50, 2), torch.randn(50, 2)
    reference = torch.distributions.Normal(means, policy.log_deviation.exp().expand(50, 2))
    torch.testing.assert_close(policy.log_probability(means, numbers), reference.log_prob(numbers).sum(1))
    torch.testing.assert_close(policy.entropy(means), reference.entropy().sum(1).mean())


def test_the_clipped_loss_is_the_smaller_of_two() -> None:
    """As the paper writes it: the mean of min(r A, clip(r) A)."""
    torch.manual_seed(0)
    change, advantage = torch.randn(200, requires_grad=True), torch.randn(200)
    ratio = change.exp()
    paper = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    made = clipped(change, advantage, 0.2)
    torch.testing.assert_close(made, paper)
    torch.testing.assert_close(*(torch.autograd.grad(loss, change)[0] for loss in (made, paper)))


def test_gumbel_noise_draws_by_probability() -> None:
    torch.manual_seed(0)
    logits, policy = torch.tensor([0.5, 0.3, 0.2]).log(), Categorical()
    drawn = policy.choose(logits.expand(20_000, 3), policy.noise((1, 20_000, 3))[0])
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.5, 0.3, 0.2], atol=0.012)


def test_running_statistics_are_those_of_all_rows() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(3, 5, (97, 2)))
    running = Running(2)
    for part in rows.split(13):
        running.add(part)
    torch.testing.assert_close(running.mean, rows.mean(0))
    torch.testing.assert_close(running.deviation(), rows.std(0, correction=0))


def test_rewards_are_scaled_by_the_deviation_of_returns() -> None:
    class Met:
        reward = np.array([[1.0], [3.0], [1.0]], np.float32)
        terminated = np.array([[False], [True], [False]])
        truncated = np.zeros((3, 1), bool)

    scale = RewardScale(1, 0.5)
    returns = np.array([1.0, 3.5, 1.0])  # the third begins anew
    made: Any = scale(Met())  # type: ignore[arg-type]
    np.testing.assert_allclose(made[:, 0], Met.reward[:, 0] / returns.std(), rtol=1e-6)
    assert scale.total.tolist() == [1.0]


def test_normalization_leaves_numbers_alone_until_it_knows_them() -> None:
    layer = Normalize(2, clip=2.0)
    rows = torch.tensor([[100.0, -3.0]])
    assert torch.equal(layer(rows), rows)
    layer.set(torch.tensor([90.0, 0.0]), torch.tensor([1.0, 3.0]))
    assert layer(rows).tolist() == [[2.0, -1.0]]


@pytest.mark.parametrize(
    ("space", "channels_first"),
    [((8, 6), (1, 8, 6)), ((8, 6, 3), (3, 8, 6)), ((3, 8, 6), (3, 8, 6)), ((4, 8, 6), (4, 8, 6)),
     ((4, 8, 6, 3), (12, 8, 6)), ((8, 6, 1), (1, 8, 6))],
)  # fmt: skip
def test_pictures_come_channels_first(space: tuple[int, ...], channels_first: tuple[int, ...]) -> None:
    shown = Observation(["observation"])
    shown.state = {"form": "image", "shape": list(space)}
    assert shown.shape == picture_shape(space) == channels_first
    pixels = torch.randint(0, 256, (2, *space), dtype=torch.uint8)
    seen = shown.layer()(pixels)
    assert seen.shape[1:] == channels_first
    if space == (8, 6, 3):
        torch.testing.assert_close(seen[1, 2, 5, 4], pixels[1, 5, 4, 2] / 255)
    if space == (4, 8, 6, 3):
        torch.testing.assert_close(seen[1, 5, 5, 4], pixels[1, 1, 5, 4, 2] / 255)


def test_numbers_are_brought_within_bounds() -> None:
    action = Action(["action"])
    action.state = {"form": "box", "low": [-2.0, None], "high": [4.0, None], "shape": [2]}
    done = action.perform(torch.tensor([[0.0, 50.0], [9.0, -7.0], [-9.0, 0.0]]))
    np.testing.assert_allclose(done, [[1.0, 50.0], [4.0, -7.0], [-2.0, 0.0]])


# ---- the arena


def arena_of(make: Callable[[], Any], count: int = 3, seed: int = 0) -> Arena:
    environment = open_task(make, nested(QUICK)).prepared.environment
    assert environment is not None
    arena = Arena(environment, count, seed)
    arena.begin()
    return arena


def test_an_ended_episode_begins_again_in_the_same_step() -> None:
    arena = arena_of(Endless, 2)
    arena.after[:] = 0
    for _ in range(10):
        arena.step([0, 1])
    assert arena.truncated.all()
    assert not arena.terminated.any()
    assert arena.finished == [(10.0, 10), (10.0, 10)]
    assert (arena.length == 0).all()
    assert (arena.episode == 1).all()
    arena.step([0, 1])
    assert arena.finished == []
    assert not arena.truncated.any()


def test_the_last_observation_is_kept_for_its_value() -> None:
    arena = arena_of(Chain, 1)
    for _ in range(4):
        arena.step([1])
    assert (arena.after.tolist(), arena.observation.tolist(), arena.terminated.tolist()) == ([4], [0], [True])


def test_episodes_of_all_purposes_have_seeds_of_their_own() -> None:
    seeds = {
        episode_seed(seed, purpose, copy, episode)
        for seed in range(3) for purpose in (LOOK, TRAINING, VALIDATION) for copy in range(8) for episode in range(20)
    }  # fmt: skip
    assert len(seeds) == 3 * 3 * 8 * 20


def test_an_arena_is_played_again_to_where_it_was() -> None:
    arena, draw = arena_of(lambda: Catch()), np.random.default_rng(0)
    for _ in range(23):
        arena.step(draw.integers(3, size=3).tolist())
    state = arena.state_dict()
    again = Arena(arena.environment, 3, 0)
    again.load_state_dict(state)
    assert again.notes == []
    for _ in range(15):
        actions = draw.integers(3, size=3).tolist()
        arena.step(actions)
        again.step(actions)
        for name in ("observation", "after", "reward", "terminated", "total", "length", "episode"):
            np.testing.assert_array_equal(getattr(arena, name), getattr(again, name), err_msg=name)


def test_an_environment_that_is_not_deterministic_is_told() -> None:
    arena = arena_of(Wandering)
    for _ in range(5):
        arena.step([0, 0, 0])
    again = Arena(arena.environment, 3, 0)
    again.load_state_dict(arena.state_dict())
    assert again.notes == [
        "Wandering is not deterministic: the same seed and actions did not lead 3 of 3 copies back to what they showed, so "
        "their episodes began anew. This resume is not exact."
    ]
    assert (again.episode == arena.episode + 1).all()
    assert (again.length == 0).all()


def test_played_episodes_do_not_depend_on_who_plays_beside() -> None:
    environment: Environment = arena_of(lambda: Catch(), 1).environment
    returns, lengths = play(environment, lambda shown: [1] * len(shown), 60, 5, VALIDATION)
    alone = [play(environment, lambda shown: [1] * len(shown), count, 5, VALIDATION)[0] for count in (1, 7)]
    assert lengths.tolist() == [9] * 60
    assert returns[:7].tolist() == alone[1].tolist()
    assert set(returns.tolist()) == {-1.0, 1.0}


def test_the_learning_curve_is_the_mean_of_each_stretch() -> None:
    episodes = Episodes()
    for at in range(10, 2001, 10):
        episodes.add(at, float(at <= 1000), 10)
    curve = episodes.curve()
    assert len(curve["return"]) == 100
    assert curve["environment_steps"][:2] == [20, 40]
    assert curve["return"] == [1.0] * 50 + [0.0] * 50
    assert float(episodes.recent) == 0.0
    again = Episodes()
    again.load_state_dict(episodes.state_dict())
    assert again.curve() == curve


# ---- learning


@pytest.mark.parametrize("keys", [
    {**PPO, "training.environment_steps": 1600, "training.learning_rate": 5e-3},
    {**DQN, "training.environment_steps": 1000, "training.learning_rate": 5e-3, "dqn.discount": 0.9},
    {**DQN, "training.environment_steps": 1000, "training.learning_rate": 5e-3, "dqn.discount": 0.9, "dqn.dueling": True,
     "dqn.n_step": 3, "dqn.prioritized": True, "dqn.double": False},
], ids=["ppo", "dqn", "dqn with everything"])  # fmt: skip
def test_agents_learn_the_chain(keys: dict[str, Any]) -> None:
    assembly = learn(Chain, **keys)
    assert greedy_return(assembly) == 1.0
    assert assembly.clock.environment_steps <= keys["training.environment_steps"]


def test_numbers_are_learnt_by_ppo() -> None:
    keys = {**PPO, "ppo.rollout_steps": 32, "ppo.epochs": 10, "ppo.discount": 0.0, "training.batch": 64}
    assembly = learn(Reach, **keys, **{"training.environment_steps": 4000, "training.learning_rate": 5e-3})
    assert greedy_return(assembly) > -0.5  # doing nothing is worth -6.7
    deviation = assembly.algorithm.policy.log_deviation  # type: ignore[attr-defined]
    assert float(deviation.detach()) < -0.5, "the deviation is learnt too"


@pytest.mark.parametrize("keys", [
    {**PPO, "training.environment_steps": 3200, "training.learning_rate": 1e-2, "ppo.discount": 0.8,
     "ppo.normalize_observations": False},
    {**DQN, "training.environment_steps": 1000, "training.learning_rate": 1e-2, "dqn.discount": 0.8},
    {**DQN, "training.environment_steps": 1000, "training.learning_rate": 1e-2, "dqn.discount": 0.8, "dqn.n_step": 3},
], ids=["ppo", "dqn", "dqn of 3 steps"])  # fmt: skip
def test_a_cut_is_no_end(keys: dict[str, Any]) -> None:
    """Reward 1 for ever is worth 1 / (1 - 0.8) = 5, though no episode is longer than ten actions."""
    assembly = learn(Endless, **keys)
    model = assembly.models.get("critic") or assembly.models["q"]
    with torch.no_grad():
        worth = model({"observation": torch.ones(1, 1)})
    assert float(next(iter(worth.values())).max()) == pytest.approx(5.0, abs=0.4)


def test_a_dueling_agent_is_deployed_with_its_streams_joined() -> None:
    assembly, _ = assemble(Chain, **DQN, **{"dqn.dueling": True, "training.steps": 3})
    batch = {"observation": torch.arange(5)}
    output = assembly.models["q"](batch)["action"]
    assert output.shape == (5, 3)
    torch.testing.assert_close(assembly.algorithm.predictor().forward(batch)["action"], dueling(output))


def test_first_weights_of_ppo_are_orthogonal_and_its_first_policy_nearly_uniform() -> None:
    assembly, _ = assemble(Endless, **PPO, **{"training.steps": 4})
    hidden = assembly.models["actor"].module.hidden[2].weight.detach()  # type: ignore[index, union-attr]
    torch.testing.assert_close(hidden @ hidden.T, 2 * torch.eye(64), atol=1e-4, rtol=0)
    shares = assembly.algorithm.predictor().forward({"observation": torch.randn(9, 1)})["action"].exp()
    torch.testing.assert_close(shares, torch.full((9, 2), 0.5), atol=0.02, rtol=0)


# ---- budgets


def test_actions_become_steps_by_arithmetic() -> None:
    task = open_task(Chain, nested({**QUICK, **PPO, "training.environment_steps": 100}))
    assert task.recipe.training.steps == 3 * 2 * 2  # 3 rollouts of 32, 2 passes of 2 minibatches
    task = open_task(Chain, nested({**QUICK, **DQN, "training.environment_steps": 100}))
    assert task.recipe.training.steps == (1 + 80 // 4) * 3
    assembly = learn(Chain, **DQN, **{"training.environment_steps": 103})
    assert assembly.clock.environment_steps == 100


# ---- resume


class Trace(Watcher):
    """The bytes of all weights after every step; saves at one step and then stops everything, as a kill would."""

    def __init__(self, assembly: Assembly, store: CheckpointStore | None = None, at: int = -1) -> None:
        self.assembly, self.store, self.at = assembly, store, at
        self.weights: dict[int, bytes] = {}

    def after_step(self, clock: Any, metrics: Any, models: Any) -> Any:
        parts = [p.detach().numpy().tobytes() for m in models.values() for p in m.state_dict().values()]
        self.weights[clock.total] = b"".join(parts)
        if self.store is not None and clock.total == self.at:
            self.store.save(state_of(self.assembly.algorithm, clock, {}), clock.total)
            raise KeyboardInterrupt
        return "continue"


def run(assembly: Assembly, stages: list[Any], watcher: Watcher) -> None:
    train(assembly.algorithm, stages, [watcher], assembly.clock, Device.choose("cpu"), non_finite)


EVERYTHING = {"ppo.normalize_rewards": True, "ppo.value_clip": 0.2, "ppo.entropy": 0.01}
ALL_OF_DQN = {"dqn.dueling": True, "dqn.n_step": 2, "dqn.prioritized": True, "dqn.normalize_observations": True}


@pytest.mark.parametrize(
    ("make", "keys"),
    [(Chain, PPO), (Reach, {**PPO, **EVERYTHING}), (Catch, {**PPO, "network.channels": [4], "network.dense": [8]}),
     (Chain, DQN), (Endless, {**DQN, **ALL_OF_DQN})],
    ids=["ppo", "ppo on numbers", "ppo on pictures", "dqn", "dqn with everything"],
)  # fmt: skip
def test_a_killed_agent_goes_on_bit_for_bit(make: Any, keys: dict[str, Any], tmp_path: Path) -> None:
    keys = {**keys, "training.steps": 14}
    assembly, stages = assemble(make, **keys)
    whole = Trace(assembly)
    run(assembly, stages, whole)
    taken = assembly.clock.environment_steps
    for at in (1, 4, 5, 11):
        store = CheckpointStore(tmp_path / str(at))
        assembly, stages = assemble(make, **keys)
        first = Trace(assembly, store, at)
        with pytest.raises(KeyboardInterrupt):
            run(assembly, stages, first)
        assembly, stages = assemble(make, **keys)
        torch.manual_seed(999)  # another process has another random state
        np.random.seed(999)
        state, _ = store.load()
        assert state is not None
        load_state(state, assembly.algorithm, assembly.clock, {})
        second = Trace(assembly)
        run(assembly, stages, second)
        assert {**first.weights, **second.weights} == whole.weights, f"cut at step {at}"
        assert assembly.clock.environment_steps == taken
        assert assembly.algorithm.notes == []


@pytest.mark.parametrize("keys", [PPO, DQN], ids=["ppo", "dqn"])
def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(keys: dict[str, Any]) -> None:
    endings = []
    for seed in (0, 0, 1):
        assembly, stages = assemble(Chain, **keys, **{"training.steps": 6, "training.seed": seed})
        trace = Trace(assembly)
        run(assembly, stages, trace)
        endings.append(trace.weights[6])
    assert endings[0] == endings[1] != endings[2]
