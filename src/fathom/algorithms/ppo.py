"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347), discrete and continuous.

    PPO            act for a while, then a few passes over what was met, no step far from the policy that acted
    advantages     generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438)
    Categorical    policy over discrete actions
    Gaussian       policy over numbers, with a deviation that does not depend on the state

Choices follow Andrychowicz et al. 2021 (arXiv:2006.05990) and Huang et al. 2022 ("The 37 implementation details"). An episode
that is only cut keeps the value of its last observation; one that is over is worth nothing after.

In comments: T actions of each of N copies, A outputs of the policy, B rows of a minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.algorithms.acting import Acting, Rows, Share, deployed, is_fresh, orthogonal
from fathom.core.contract import Batch, Model, Predictor, Schema, Stage, hyperparameter
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Training
from fathom.core.registry import algorithm, fields
from fathom.fields.action import PROBABILITIES
from fathom.fields.observation import Running

EPSILON = 1e-8
LARGEST_REWARD = 10.0  # deviations at which a normalized reward is cut
NEAR_ONE = 5.0  # the plan leaves observations as they are where random actions met nothing larger
PICTURES = {
    "ppo.rollout_steps": 128, "ppo.epochs": 4, "ppo.discount": 0.99, "ppo.gae_lambda": 0.95, "ppo.entropy": 0.01,
}  # fmt: skip
CONTINUOUS = {
    "training.batch": 64, "training.schedule": "constant", "training.environment_steps": 200_000, "ppo.environments": 4,
    "ppo.rollout_steps": 1024, "ppo.epochs": 10, "ppo.discount": 0.9, "ppo.gae_lambda": 0.95,
    "ppo.clip_schedule": "constant",
}  # fmt: skip


def _training(schema: Schema, network: str) -> dict[str, Any]:
    """Settings by what is shown and done (benchmarks/reinforcement.py; those of CartPole follow rl-zoo)."""
    changes: dict[str, Any] = {
        "training.optimizer": "adam", "training.schedule": "linear", "training.clip": 0.5, "training.threads": 1,
        "training.precision": "float32", "training.monitor": "return", "training.keep": "last",
        "training.learning_rate": 1e-3, "training.batch": 256, "training.environment_steps": 100_000,
        "ppo.normalize_observations": schema.inputs["observation"].state.get("largest", 0.0) > NEAR_ONE,
    }  # fmt: skip
    if network == "mlp":
        changes.update({"network.hidden": [64, 64], "network.activation": "tanh"})
    if schema.targets["action"].state["form"] == "box":  # numbers need longer rollouts and smaller minibatches
        changes.update(CONTINUOUS)
    if network == "cnn":
        changes.update({
            "network.channels": [16, 32], "network.padding": "same", "network.pool": "none", "network.dense": [128],
        })  # fmt: skip
    if schema.inputs["observation"].state["form"] == "image":  # where a pass costs much, few passes
        changes.update(PICTURES)
    return changes


@algorithm(
    "ppo",
    suits=lambda schema: any(target.kind == "action" for target in schema.targets.values()),
    acts=True,
    task="reinforcement learning",
    networks=("mlp", "cnn"),
    training=_training,
)
class PPO(Acting):
    """Act, estimate how much better each action was than expected, and make the better ones likelier, a little."""

    saved: ClassVar[tuple[str, ...]] = (*Acting.saved, "policy", "rollout", "reward_scale")
    environments: PositiveInt = hyperparameter(
        8, search=[8, 16, 32], help="copies of the environment that are acted in"
    )
    rollout_steps: PositiveInt = hyperparameter(32, search=[32, 128, 256], help="actions of each copy between updates")
    epochs: PositiveInt = hyperparameter(20, search=[4, 10, 20], help="passes over what was met between updates")
    discount: Share = hyperparameter(0.98, search=[0.98, 0.99, 0.999], help="worth of a reward one action later")
    gae_lambda: Share = hyperparameter(
        0.8, search=[0.8, 0.9, 0.95], help="how far advantages look ahead; 1 is to the end"
    )
    clip_range: PositiveFloat = hyperparameter(
        0.2, search=(0.1, 0.3), help="change of a probability that is still rewarded"
    )
    clip_schedule: Literal["constant", "linear"] = hyperparameter("linear", help="of the clip range, down to zero")
    value_clip: NonNegativeFloat = hyperparameter(
        0.0, help="change of a value that is still learnt from; 0 has no limit"
    )
    value_weight: NonNegativeFloat = hyperparameter(0.5, help="of the value's loss beside the policy's")
    entropy: NonNegativeFloat = hyperparameter(0.0, search=[0.0, 0.001, 0.01], help="reward for staying undecided")
    normalize_observations: bool = hyperparameter(True, help="whether numbers are centered and scaled by what was met")
    normalize_rewards: bool = hyperparameter(
        False, help="whether rewards are divided by the deviation of their returns"
    )
    normalize_advantages: bool = hyperparameter(
        True, help="whether advantages are centered and scaled in each minibatch"
    )
    orthogonal: bool = hyperparameter(True, help="whether the first weights are orthogonal")
    log_deviation: float = hyperparameter(0.0, help="of the first policy over numbers, as a logarithm")

    @classmethod
    def roles(cls, schema: Schema) -> dict[str, Schema]:
        """Two networks: what to do, and what the state is worth."""
        return {"actor": schema, "critic": Schema(schema.inputs, {"value": fields["number"].make(["value"])})}

    @classmethod
    def shape(cls, schema: Schema, options: Mapping[str, Any]) -> None:
        """Outputs of discrete actions are probabilities."""
        schema.targets["action"].state["scores"] = PROBABILITIES

    @classmethod
    def steps(cls, actions: int | None, training: Training, options: Mapping[str, Any]) -> int:
        """Minibatches of the rollouts that a budget of actions allows."""
        rows = options["environments"] * options["rollout_steps"]
        return max(1, (actions or 0) // rows) * options["epochs"] * math.ceil(rows / training.rows_per_batch())

    def make(self) -> None:
        """One optimizer over both networks and the policy's deviation."""
        training = self.context.recipe.training
        rows = self.environments * self.rollout_steps
        self.minibatches = math.ceil(rows / training.rows_per_batch())
        self.cycle = self.epochs * self.minibatches
        self.actor, self.critic = self.models["actor"], self.models["critic"]
        if self.orthogonal and is_fresh(self.context.recipe.network):
            orthogonal(self.actor, 0.01)
            orthogonal(self.critic, 1.0)
        discrete = self.action.form == "discrete"
        self.policy: Any = Categorical() if discrete else Gaussian(self.action.count, self.log_deviation)
        self.policy.to(self.context.device)
        owned = {"actor": self.actor, "critic": self.critic, "policy": self.policy}
        self.optimizers = {"agent": Optimizer(owned, training, self.context.clock)}
        self.reward_scale = RewardScale(self.environments, self.discount)
        self.rollout = Rows()

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """Minibatches of a rollout in an order of their own in each pass, then the next rollout."""
        seed, rows = self.context.recipe.training.seed, self.environments * self.rollout_steps
        cuts: tuple[Tensor, ...] = ()
        for step in count(start):
            turn, place = divmod(step, self.cycle)
            if place == 0:
                self._collect()
            epoch, number = divmod(place, self.minibatches)
            if self.minibatches == 1:  # all rows at once, whose order says nothing
                yield self.rollout.rows
                continue
            if number == 0 or not cuts:
                generator = torch.Generator().manual_seed((seed * 1_000_003 + turn * self.epochs + epoch) % 2**63)
                cuts = torch.randperm(rows, generator=generator).tensor_split(self.minibatches)
            index = cuts[number].to(self.context.device)
            yield {name: tensor[index] for name, tensor in self.rollout.rows.items()}

    def _collect(self) -> None:
        """Act T times in every copy, then judge every action."""
        if not self.arena.begun:
            self.arena.begin()
        if self.normalize_observations:
            self.normalization.apply()
        met = self._act()
        with torch.no_grad():
            self.rollout.rows = self._judged(met)
        if self.normalize_observations:
            self.normalization.add(torch.from_numpy(met.observation.reshape(-1, *self.environment.shape)))

    def _act(self) -> Met:
        """Only what depends on the step before is computed step by step: the policy, on all copies at once."""
        arena, steps, device = self.arena, self.rollout_steps, self.context.device
        met = Met.empty(steps, arena)
        with torch.inference_mode():
            noise = self.policy.noise((steps, self.environments, self.action.count)).to(device)  # (T, N, A)
            for t in range(steps):
                met.observation[t] = arena.observation
                output = self.actor.module(self.seen(arena.observation))
                chosen = self.policy.choose(output, noise[t]).cpu()
                met.action.append(chosen)
                self.act(chosen)
                met.reward[t], met.terminated[t], met.truncated[t] = arena.reward, arena.terminated, arena.truncated
                cut = np.flatnonzero(arena.truncated & ~arena.terminated)
                met.cut += [(t, i, arena.after[i].copy()) for i in cut.tolist()]
        return met

    def _judged(self, met: Met) -> dict[str, Tensor]:
        """The rows that are learnt from, (T * N, ...) each."""
        rows = self.rollout_steps * self.environments
        observation = self.seen(met.observation.reshape(rows, *self.environment.shape))
        action = torch.stack(met.action).flatten(0, 1).clone().to(self.context.device)
        log_probability = self.policy.log_probability(self.actor.module(observation), action)
        value = self.critic.module(observation)[:, 0]
        reward = self.reward_scale(met) if self.normalize_rewards else met.reward.copy()
        if met.cut:  # the time was over, not the task: what would have come is worth its value
            last = self._worth(np.stack([shown for _, _, shown in met.cut]))
            for (t, i, _), worth in zip(met.cut, last, strict=True):
                reward[t, i] += self.discount * worth
        table = value.cpu().numpy().reshape(self.rollout_steps, self.environments)
        ended = met.terminated | met.truncated
        gained = advantages(reward, table, self._worth(self.arena.observation), ended, self.discount, self.gae_lambda)
        advantage = torch.from_numpy(gained.reshape(rows)).to(self.context.device)
        return {
            "observation": observation, "action": action, "log_probability": log_probability,
            "advantage": advantage, "value": value, "target": advantage + value,
        }  # fmt: skip

    def _worth(self, observation: np.ndarray) -> np.ndarray:
        """(n, ...) -> (n,) values."""
        worth: np.ndarray = self.critic.module(self.seen(observation))[:, 0].cpu().numpy()
        return worth

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """The clipped loss of the policy, the squared error of the value, and entropy."""
        output = self.actor.module(batch["observation"])
        advantage = batch["advantage"]  # (B,)
        if self.normalize_advantages and len(advantage) > 1:
            advantage = (advantage - advantage.mean()) / (advantage.std() + EPSILON)
        change = self.policy.log_probability(output, batch["action"]) - batch["log_probability"]
        value_loss = self._value_loss(self.critic.module(batch["observation"])[:, 0], batch)
        loss = clipped(change, advantage, self._clip_range()) + self.value_weight * value_loss
        if self.entropy:
            loss = loss - self.entropy * self.policy.entropy(output)
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.models, batch, {"action": output})
        self.optimizers["agent"].minimize(loss)
        return self.measured(loss=loss, value_loss=value_loss, kl=-change.detach().mean())

    def _clip_range(self) -> float:
        return self.clip_range * (1 - self.context.clock.progress if self.clip_schedule == "linear" else 1.0)

    def _value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        if not self.value_clip:
            return F.mse_loss(value, batch["target"])
        near = batch["value"] + (value - batch["value"]).clamp(-self.value_clip, self.value_clip)
        return torch.maximum((value - batch["target"]).square(), (near - batch["target"]).square()).mean()

    @classmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """The actor."""
        return deployed(schema, models["actor"], log=schema.targets["action"].state["form"] == "discrete")


class Met:
    """What T actions in N copies led to.

    Args:
        observation: (T, N, ...) before each action.
        reward: (T, N) float32.
        terminated, truncated: (T, N) bool.
    """

    def __init__(
        self, observation: np.ndarray, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> None:
        self.observation, self.reward, self.terminated, self.truncated = observation, reward, terminated, truncated
        self.action: list[Tensor] = []  # T of (N,) or (N, numbers)
        self.cut: list[tuple[int, int, np.ndarray]] = []  # step, copy and last observation of each episode that was cut

    @staticmethod
    def empty(steps: int, arena: Any) -> Met:
        """Room for T steps of an arena."""
        shape = (steps, len(arena.copies))
        observation = np.empty((steps, *arena.observation.shape), arena.observation.dtype)
        return Met(observation, np.empty(shape, np.float32), np.empty(shape, bool), np.empty(shape, bool))


class RewardScale:
    """Rewards over the running deviation of the discounted return (Engstrom et al. 2020, arXiv:2005.12729).

    Args:
        copies: N.
        discount: of the return.
    """

    def __init__(self, copies: int, discount: float) -> None:
        self.discount = discount
        self.total = np.zeros(copies, np.float64)  # (N,) discounted return so far
        self.running = Running(1)

    def __call__(self, met: Met) -> np.ndarray:
        """(T, N) scaled rewards."""
        totals = np.empty(met.reward.shape, np.float64)
        for t, reward in enumerate(met.reward):
            self.total = self.total * self.discount + reward
            totals[t] = self.total
            self.total[met.terminated[t] | met.truncated[t]] = 0.0
        self.running.add(torch.from_numpy(totals.reshape(-1, 1)))
        scaled = met.reward / np.float32(self.running.deviation().item())
        return np.clip(scaled, -LARGEST_REWARD, LARGEST_REWARD)

    def state_dict(self) -> dict[str, Any]:
        """Returns under way, and their statistics."""
        return {"total": torch.from_numpy(self.total.copy()), "running": self.running.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.total = state["total"].numpy().copy()
        self.running.load_state_dict(state["running"])


def advantages(
    reward: np.ndarray, value: np.ndarray, last: np.ndarray, ended: np.ndarray, discount: float, gae_lambda: float
) -> np.ndarray:
    """How much better each action was than expected (Schulman et al. 2016, equation 16).

    Args:
        reward: (T, N); where an episode was cut, with the discounted value of its last observation.
        value: (T, N) of each observation.
        last: (N,) value of the observation after the last action.
        ended: (T, N) whether the action ended its episode.
        discount: of rewards.
        gae_lambda: 0 looks one action ahead, 1 to the end.

    Returns:
        (T, N) float32.
    """
    made = np.empty_like(value, dtype=np.float32)
    following, carried = last, np.zeros_like(last)
    for t in range(len(reward) - 1, -1, -1):
        goes_on = ~ended[t]
        surprise = reward[t] + discount * following * goes_on - value[t]
        carried = surprise + discount * gae_lambda * carried * goes_on
        made[t], following = carried, value[t]
    return made


def clipped(change: Tensor, advantage: Tensor, limit: float) -> Tensor:
    """The clipped surrogate (Schulman et al. 2017, equation 7), as a loss.

    min(r A, clip(r) A) is r A, and at most A + epsilon |A|; said so, it is half as many operations.

    Args:
        change: (B,) of the logarithm of the probability of each action.
        advantage: (B,).
        limit: epsilon.
    """
    most = torch.add(advantage, advantage.abs(), alpha=limit)
    return -(change.exp() * advantage).clamp_max(most).mean()


class Categorical(nn.Module):
    """A policy over discrete actions; outputs are logits."""

    def noise(self, shape: tuple[int, int, int]) -> Tensor:
        """(T, N, A) of Gumbel's distribution: the largest of logits and noise is a draw (Maddison et al. 2014)."""
        return -torch.empty(shape).exponential_().log_()

    def choose(self, output: Tensor, noise: Tensor) -> Tensor:
        """(N, A) -> (N,) actions."""
        return (output + noise).argmax(1)

    def log_probability(self, output: Tensor, action: Tensor) -> Tensor:
        """(B,) of each action."""
        return -F.cross_entropy(output, action, reduction="none")

    def entropy(self, output: Tensor) -> Tensor:
        """(), the mean over rows."""
        logs = output.log_softmax(1)
        return -(logs.exp() * logs).sum(1).mean()


class Gaussian(nn.Module):
    """A policy over numbers; outputs are means, the deviation is learnt beside them.

    Args:
        count: A, numbers of an action.
        log_deviation: at first.
    """

    def __init__(self, count: int, log_deviation: float) -> None:
        super().__init__()
        self.log_deviation = nn.Parameter(torch.full((count,), log_deviation))

    def noise(self, shape: tuple[int, int, int]) -> Tensor:
        """(T, N, A) standard normal."""
        return torch.randn(shape)

    def choose(self, output: Tensor, noise: Tensor) -> Tensor:
        """(N, A) -> (N, A) actions."""
        return output + self.log_deviation.exp() * noise

    def log_probability(self, output: Tensor, action: Tensor) -> Tensor:
        """(B,) of each action; of numbers a density."""
        scaled = (action - output) / self.log_deviation.exp()
        return -0.5 * scaled.square().sum(1) - self._constant(output.shape[1])

    def entropy(self, output: Tensor) -> Tensor:
        """(), the same in every state."""
        return self._constant(output.shape[1]) + 0.5 * output.shape[1]

    def _constant(self, count: int) -> Tensor:
        return self.log_deviation.sum() + 0.5 * math.log(2 * math.pi) * count
