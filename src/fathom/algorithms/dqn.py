"""Deep Q-learning (Mnih et al. 2015) with its usual improvements, each a hyperparameter.

    DQN        act, store, sample; the temporal difference against a target network
    Replay     what was met, as preallocated arrays; the filled part is saved
    annealed   how often an action is still drawn at random

    double         van Hasselt et al. 2016, arXiv:1509.06461    the network chooses, the target judges
    dueling        Wang et al. 2016, arXiv:1511.06581           value of the state plus advantage of each action
    n_step         Sutton 1988                                  rewards of several actions before the estimate
    prioritized    Schaul et al. 2016, arXiv:1511.05952         what was surprising is seen again sooner

An episode that is only cut keeps the value of its last observation; one that is over is worth nothing after.

In comments: N copies, T places of each in the memory, B rows, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from fathom.algorithms.acting import Acting, Rows, Share, deployed, is_fresh, orthogonal
from fathom.core.contract import Batch, Model, Predictor, Schema, Stage, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Training
from fathom.core.registry import algorithm
from fathom.fields.action import VALUES

AT_ONCE = 2**18  # numbers of observations that are sampled together, for fewer and larger operations
LEAST_PRIORITY = 1e-6  # added to every surprise, so that nothing is never seen again


def _training(schema: Schema, network: str) -> dict[str, Any]:
    """Settings that solve small tasks (those of CartPole in rl-zoo)."""
    changes: dict[str, Any] = {
        "training.optimizer": "adam", "training.schedule": "constant", "training.clip": 10.0, "training.threads": 1,
        "training.precision": "float32", "training.monitor": "return", "training.keep": "last",
        "training.learning_rate": 2.3e-3, "training.batch": 64, "training.environment_steps": 50_000,
    }  # fmt: skip
    if network == "mlp":
        changes["network.hidden"] = [256, 256]
    if network == "cnn":
        changes.update({
            "network.channels": [16, 32], "network.padding": "same", "network.pool": "none", "network.dense": [128],
            "training.learning_rate": 1e-3,
        })  # fmt: skip
    return changes


@algorithm(
    "dqn",
    suits=lambda schema: False,  # for those who name it: ppo takes every kind of action
    acts=True,
    task="reinforcement learning",
    networks=("mlp", "cnn"),
    training=_training,
)
class DQN(Acting):
    """Learn what every action is worth from a memory of what was met, and take the best one, but for some at random."""

    saved: ClassVar[tuple[str, ...]] = (*Acting.saved, "replay", "target", "synced", "drawn")
    memory: PositiveInt = hyperparameter(100_000, search=[10_000, 50_000, 100_000], help="actions that are remembered")
    starts: NonNegativeInt = hyperparameter(1000, help="actions at random before anything is learnt")
    train_every: PositiveInt = hyperparameter(256, search=[4, 16, 256], help="actions between turns of learning")
    updates: PositiveInt = hyperparameter(128, search=[1, 4, 128], help="batches that each turn learns from")
    target_every: PositiveInt = hyperparameter(10, help="actions after which the target is renewed, at a turn's start")
    exploration: Share = hyperparameter(
        0.16, search=(0.05, 0.5), help="share of all actions over which chance is lowered"
    )
    epsilon: Share = hyperparameter(0.04, search=(0.01, 0.1), help="share of actions at random in the end")
    double: bool = hyperparameter(True, search=[True, False], help="whether the network chooses what the target judges")
    dueling: bool = hyperparameter(False, search=[True, False], help="whether the state's value is learnt apart")
    n_step: PositiveInt = hyperparameter(1, search=[1, 3, 5], help="rewards that are added before the estimate")
    prioritized: bool = hyperparameter(False, search=[True, False], help="whether surprises are sampled more often")
    priority_exponent: Share = hyperparameter(0.6, help="how much more often; 0 is evenly")
    importance: Share = hyperparameter(0.4, help="how much of that is corrected at first; all of it in the end")
    normalize_observations: bool = hyperparameter(
        False, help="whether numbers are scaled by what the first actions met"
    )
    orthogonal: bool = hyperparameter(False, help="whether the first weights are orthogonal")

    @classmethod
    def roles(cls, schema: Schema) -> dict[str, Schema]:
        """One network: what each action is worth."""
        return {"q": schema}

    @classmethod
    def shape(cls, schema: Schema, options: Mapping[str, Any]) -> None:
        """Outputs are values; a dueling network also answers that of the state.

        Raises:
            FathomError: actions are numbers, none of which could be the best of a few.
        """
        state = schema.targets["action"].state
        if state["form"] != "discrete":
            raise FathomError(
                "dqn chooses the best of several actions, and here an action is numbers. Use --algorithm ppo."
            )
        state["scores"], state["dueling"] = VALUES, bool(options["dueling"])

    @classmethod
    def steps(cls, actions: int | None, training: Training, options: Mapping[str, Any]) -> int:
        """Batches that the turns within a budget of actions learn from.

        Raises:
            FathomError: not one turn fits into the budget.
        """
        copies, every = options["environments"], _rounds(options["train_every"], options["environments"])
        first = _rounds(max(options["starts"], every * copies), copies) * copies
        if (actions or 0) < first:
            raise FathomError(
                f"training.environment_steps = {actions} ends before dqn learns: it first acts {first:,} times "
                "(dqn.starts, dqn.train_every). Give more, or lower those."
            )
        return (1 + ((actions or 0) - first) // (every * copies)) * int(options["updates"])

    def make(self) -> None:
        """The optimizer, the target and the memory."""
        self.cycle = self.updates
        self.q = self.models["q"]
        if self.orthogonal and is_fresh(self.context.recipe.network):
            orthogonal(self.q, 1.0)
        self.target = copy.deepcopy(self.q)
        for parameter in self.target.parameters():
            parameter.requires_grad_(False)
        self.target.eval()
        self.optimizers = {"q": Optimizer({"q": self.q}, self.context.recipe.training, self.context.clock)}
        self.replay = Replay(
            max(2, self.memory // self.environments), self.environments, self.environment.shape, self.environment.dtype
        )
        self.synced = 0  # actions taken when the target was renewed last
        self.drawn = Rows()
        rows, width = self.context.recipe.training.rows_per_batch(), max(1, int(np.prod(self.environment.shape)))
        self.together = 1 if self.prioritized else max(1, min(self.updates, AT_ONCE // (rows * width)))
        turns = self.context.recipe.training.planned_steps() / self.updates
        self.planned = self.starts + turns * self.train_every  # actions in all
        if self.prioritized:
            self.replay.priority = np.zeros((self.replay.places, self.environments))

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """Turns: some actions, then batches out of the memory."""
        rows = self.context.recipe.training.rows_per_batch()
        cuts: dict[str, tuple[Tensor, ...]] = {}
        for step in count(start):
            turn = step % self.updates
            if turn == 0:
                self._collect()
            place = turn % self.together
            if place == 0:
                self.drawn.rows = self._draw(rows * min(self.together, self.updates - turn))
            if place == 0 or not cuts:
                cuts = {name: tensor.split(rows) for name, tensor in self.drawn.rows.items()}
            yield {name: parts[place] for name, parts in cuts.items()}

    def _draw(self, rows: int) -> Batch:
        """Several batches at once, since memory and target stay as they are until the next turn; judged by the target."""
        sampled = self.replay.sample(rows, self.n_step, self.discount, self.priority_exponent, self._correction())
        batch = {name: tensor.to(self.context.device) for name, tensor in sampled.items()}
        with torch.no_grad():
            batch["judged"] = self.values(self.target.module(self.layer(batch["after"])))  # (rows, A)
        return batch

    def _collect(self) -> None:
        """Act until the next turn; the first time, at random until there is enough to learn from."""
        if not self.arena.begun:
            self.arena.begin()
        clock = self.context.clock
        first = not self.replay.filled
        rounds = _rounds(self.train_every, self.environments)
        if first:
            rounds = _rounds(max(self.starts, rounds * self.environments), self.environments)
        # Arrays, since the few numbers of one round are handled faster so than as tensors.
        random = self.action.random(rounds * self.environments).view(rounds, self.environments).numpy()
        chance = torch.rand(rounds, self.environments).numpy()
        with torch.inference_mode():
            for t in range(rounds):
                explore = chance[t] < (1.0 if clock.environment_steps < self.starts else self._chance())
                chosen = random[t] if explore.all() else np.where(explore, random[t], self._greedy())
                shown = self.arena.observation.copy()
                self.act(chosen)
                self.replay.add(shown, chosen, self.arena)
        if first and self.normalize_observations:
            self.normalization.add(torch.from_numpy(self.replay.recent()))
            self.normalization.apply()
            self.target.load_state_dict(self.q.state_dict())
        if clock.environment_steps - self.synced >= self.target_every:
            self.target.load_state_dict(self.q.state_dict())
            self.synced = clock.environment_steps

    def _chance(self) -> float:
        return annealed(self.context.clock.environment_steps, self.exploration * self.planned, self.epsilon)

    def _greedy(self) -> np.ndarray:
        """(N,) the best action of each copy."""
        best: np.ndarray = self.values(self.q.module(self.seen(self.arena.observation))).argmax(1).cpu().numpy()
        return best

    def _correction(self) -> float:
        """How much of the uneven sampling is corrected now."""
        return self.importance + (1 - self.importance) * self.context.clock.progress

    def values(self, output: Tensor) -> Tensor:
        """What the network returns -> (B, A) values of the actions."""
        return dueling(output) if self.dueling else output

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Huber's loss of the temporal difference."""
        judged = batch["judged"]  # (B, A) what the target says of the actions after
        with torch.no_grad():
            if self.double:
                after = self.values(self.q.module(self.layer(batch["after"])))
                worth = judged.gather(1, after.argmax(1, keepdim=True))[:, 0]
            else:
                worth = judged.amax(1)
            wanted = batch["reward"] + batch["discount"] * worth
        output = self.q.module(self.layer(batch["observation"]))
        known = self.values(output).gather(1, batch["action"][:, None])[:, 0]
        if self.prioritized:
            loss = (F.smooth_l1_loss(known, wanted, reduction="none") * batch["weight"]).mean()
        else:
            loss = F.smooth_l1_loss(known, wanted)
        measured = loss
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.models, batch, {"action": output})
        self.optimizers["q"].minimize(loss)
        if self.prioritized:
            self.replay.reweigh(batch["place"], (known.detach() - wanted).abs())
        return self.measured(loss=measured, value=known.detach().mean())

    @classmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """The network, its streams joined."""
        plain = deployed(schema, models["q"], log=False)
        if not schema.targets["action"].state.get("dueling"):
            return plain

        def forward(batch: Batch) -> Batch:
            return {"action": dueling(plain.forward(batch)["action"])}

        return Predictor(schema, plain.layers, forward)


def _rounds(actions: int, copies: int) -> int:
    """How often all copies act for so many actions."""
    return -(-actions // copies)


def annealed(taken: int, over: float, end: float) -> float:
    """A straight line from 1 to `end` over the first `over` actions.

    >>> annealed(0, 100, 0.1), annealed(50, 100, 0.1), annealed(1000, 100, 0.1)
    (1.0, 0.55, 0.1)
    """
    return end if taken >= over else 1.0 + (end - 1.0) * taken / over


def dueling(output: Tensor) -> Tensor:
    """(B, 1 + A) value and advantages -> (B, A) values of actions (Wang et al. 2016, equation 9)."""
    advantage = output[:, 1:]
    return output[:, :1] + advantage - advantage.mean(1, keepdim=True)


class Replay:
    """The latest of what was met, in arrays that are made once.

    Args:
        places: T, of each copy.
        copies: N.
        shape: of an observation.
        dtype: of an observation.

    Attributes:
        filled: places that hold something.
        head: the next place.
        priority: (T, N) where surprises are sampled more often, else None.
    """

    def __init__(self, places: int, copies: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.places, self.copies = places, copies
        self.filled = self.head = 0
        # Untouched pages of large zeroed arrays cost no memory, so a memory that is never full costs what it holds.
        self.observation = np.zeros((places, copies, *shape), dtype)
        self.after = np.zeros_like(self.observation)
        self.action = np.zeros((places, copies), np.int64)
        self.reward = np.zeros((places, copies), np.float32)
        self.terminated = np.zeros((places, copies), bool)
        self.ended = np.zeros((places, copies), bool)
        sampled = ("observation", "action", "reward", "after", "terminated")
        self.views = {name: torch.from_numpy(getattr(self, name)).flatten(0, 1) for name in sampled}  # the same memory
        self.priority: np.ndarray | None = None
        self.greatest = 1.0  # priority of what has not been sampled yet

    def add(self, observation: np.ndarray, action: np.ndarray, arena: Any) -> None:
        """What an action in every copy led to, over the oldest."""
        t = self.head
        self.observation[t], self.action[t] = observation, action
        self.after[t], self.reward[t], self.terminated[t] = arena.after, arena.reward, arena.terminated
        self.ended[t] = arena.terminated | arena.truncated
        if self.priority is not None:
            self.priority[t] = self.greatest
        self.head = (t + 1) % self.places
        self.filled = min(self.filled + 1, self.places)

    def recent(self) -> np.ndarray:
        """(rows, ...) all observations."""
        return self.observation[: self.filled].reshape(-1, *self.observation.shape[2:])

    def sample(
        self, rows: int, n_step: int, discount: float, exponent: float = 0.0, correction: float = 1.0
    ) -> dict[str, Tensor]:
        """A batch.

        Args:
            rows: B.
            n_step: rewards that are added, fewer where the episode ends before.
            discount: of each.
            exponent: of priorities.
            correction: of the uneven sampling, 0 to 1.

        Returns:
            observation and after (B, ...), action, reward (the sum), discount (of what comes after; 0 where the episode
            was over); with priorities also weight, and place (B,) for `reweigh`.
        """
        usable = max(1, self.filled - n_step + 1)  # so that all n steps are there
        if n_step == 1 and self.priority is None:
            return self._plain(rows, usable, discount)
        if self.priority is None:
            flat = torch.randint(usable * self.copies, (rows,)).numpy()
            age, n = flat // self.copies, flat % self.copies  # from the oldest on
            weighted: dict[str, Tensor] = {}
        else:
            age, n, weight = self._surprising(rows, usable, exponent, correction)
            weighted = {"weight": weight}
        t = (self.head - self.filled + age) % self.places
        if self.priority is not None:
            weighted["place"] = torch.from_numpy(t * self.copies + n)
        last, reward, factor = self._ahead(t, n, n_step, discount)
        return {
            "observation": torch.from_numpy(self.observation[t, n]),
            "action": torch.from_numpy(self.action[t, n]),
            "reward": torch.from_numpy(reward),
            "after": torch.from_numpy(self.after[last, n]),
            "discount": torch.from_numpy(factor),
            **weighted,
        }

    def _plain(self, rows: int, usable: int, discount: float) -> dict[str, Tensor]:
        """What nearly every batch is, in few operations: single steps, each as likely as another."""
        drawn = torch.randint(usable * self.copies, (rows,))
        if self.filled == self.places:
            drawn = (drawn + self.head * self.copies) % (self.places * self.copies)
        made = {name: view.index_select(0, drawn) for name, view in self.views.items()}
        made["discount"] = (~made.pop("terminated")) * discount
        return made

    def _ahead(
        self, t: np.ndarray, n: np.ndarray, n_step: int, discount: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B,) place of the last of n steps, sum of their discounted rewards, and discount of what comes after."""
        last, reward = t, self.reward[t, n]
        factor = np.full(len(t), discount, np.float32)
        going = ~self.ended[t, n]
        for _ in range(n_step - 1):
            following = (last + 1) % self.places
            reward = reward + np.where(going, factor * self.reward[following, n], np.float32(0))
            last = np.where(going, following, last)
            factor = np.where(going, factor * np.float32(discount), factor)
            going = going & ~self.ended[last, n]
        return last, reward, factor * ~self.terminated[last, n]

    def _surprising(
        self, rows: int, usable: int, exponent: float, correction: float
    ) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """(B,) age, copy and weight of rows drawn in proportion to a power of their priority."""
        assert self.priority is not None
        order = (self.head - self.filled + np.arange(usable)) % self.places
        shares = (self.priority[order].reshape(-1) ** exponent).cumsum()
        drawn = torch.rand(rows, dtype=torch.float64).numpy() * shares[-1]
        flat = np.minimum(shares.searchsorted(drawn, side="right"), len(shares) - 1)
        share = np.diff(shares, prepend=0.0)[flat] / shares[-1]
        weight = (len(shares) * share) ** -correction
        return flat // self.copies, flat % self.copies, torch.from_numpy((weight / weight.max()).astype(np.float32))

    def reweigh(self, place: Tensor, surprise: Tensor) -> None:
        """New priorities of what was sampled."""
        assert self.priority is not None
        found = surprise.double().cpu().numpy() + LEAST_PRIORITY
        self.priority.reshape(-1)[place.cpu().numpy()] = found
        self.greatest = max(self.greatest, float(found.max()))

    def state_dict(self) -> dict[str, Any]:
        """The filled part, as tensors."""
        kept = {name: torch.from_numpy(array[: self.filled]) for name, array in self._arrays().items()}
        return {"filled": self.filled, "head": self.head, "greatest": self.greatest, "arrays": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.filled, self.head, self.greatest = state["filled"], state["head"], state["greatest"]
        for name, array in self._arrays().items():
            array[: self.filled] = state["arrays"][name].numpy()

    def _arrays(self) -> dict[str, np.ndarray]:
        names = ("observation", "after", "action", "reward", "terminated", "ended", "priority")
        return {name: array for name in names if (array := getattr(self, name)) is not None}
