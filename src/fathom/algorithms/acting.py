"""What agents share: they act in copies of an environment, and what they meet is the data.

    Acting           an algorithm whose batches come from an arena; budgets, validation and the learning curve
    Rows             what was met or sampled, while it is learnt from
    Normalization    running statistics of observations, handed to the models' layers when the algorithm says so
    Episodes         return and length of every episode of training
    orthogonal       the initialization of agents' networks

`ppo` and `dqn` say what is collected and how it is learnt. The greedy policy alone is deployed: exploration, memories and
statistics of rewards stay behind.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fathom.core.contract import Algorithm, Batch, Model, Predictor, Schema, TensorSet, hyperparameter
from fathom.core.environments import VALIDATION, Arena, Environment, play
from fathom.core.recipe import OWN, Training
from fathom.fields.action import greedy
from fathom.fields.observation import Normalize, Running

Share = Annotated[float, Field(ge=0, le=1)]
VALIDATED = 20  # episodes of a validation
RECENT = 100  # episodes whose mean return is told while training
LINES = 50  # of the history of a run
POINTS = 100  # of a learning curve


class Acting(Algorithm):
    """An algorithm that acts.

    Attributes:
        arena: the copies that it acts in.
        episodes: those of training that have ended.
        normalization: of observations that are numbers.
    """

    divisible: ClassVar[bool] = False
    saved: ClassVar[tuple[str, ...]] = ("arena", "episodes", "normalization")
    environments: PositiveInt = hyperparameter(
        1, search=[1, 4, 8, 16], help="copies of the environment that are acted in"
    )
    discount: Share = hyperparameter(0.99, search=[0.98, 0.99, 0.995, 0.999], help="worth of a reward one action later")

    def build(self) -> None:
        """The arena, then whatever the algorithm itself lasts on."""
        environment = self.context.environment
        assert environment is not None, "an agent is given an environment"
        self.environment: Environment = environment
        self.action: Any = self.schema.targets["action"]
        self.arena = Arena(environment, self.environments, self.context.recipe.training.seed)
        self.arena.notes = self.notes
        self.episodes = Episodes()
        self.normalization = Normalization(self.models)
        self.layer = next(iter(self.models.values())).preprocess[0]
        self.make()

    @abstractmethod
    def make(self) -> None:
        """Optimizers and memories."""

    @classmethod
    def shape(cls, schema: Schema, options: Mapping[str, Any]) -> None:
        """Write into the state of the fields what the networks and answers will mean; called once the recipe is settled.

        Args:
            schema: of the task.
            options: the algorithm's own table, complete.

        Raises:
            FathomError: it cannot act so.
        """

    @classmethod
    @abstractmethod
    def steps(cls, actions: int | None, training: Training, options: Mapping[str, Any]) -> int:
        """How many steps a budget of actions allows, at least 1; no more actions are taken.

        Args:
            actions: `training.environment_steps`.
            training: the recipe's table.
            options: the algorithm's own table, complete.
        """

    @classmethod
    def epoch(cls, schema: Schema, data: TensorSet, training: Training) -> int:
        """Steps of a line of the history; there is no pass over rows that an epoch could be."""
        return max(1, math.ceil((training.steps or LINES) / LINES))

    def act(self, actions: Tensor | np.ndarray) -> None:
        """One action in every copy, counted and logged.

        Args:
            actions: (N,) of either kind, or (N, numbers) as a tensor.
        """
        self.arena.step(self.action.perform(actions))
        clock = self.context.clock
        clock.environment_steps += self.environments
        for total, length in self.arena.finished:
            self.episodes.add(clock.environment_steps, total, length)

    def seen(self, observation: np.ndarray) -> Tensor:
        """(N, ...) what copies show, as the networks read it: on the device, normalized."""
        shown: Tensor = self.layer(torch.from_numpy(observation).to(self.context.device))
        return shown

    def validate(self, data: TensorSet) -> dict[str, float]:
        """The mean return of some fresh episodes without exploration, where it decides something, and at the end."""
        training, clock = self.context.recipe.training, self.context.clock
        if training.keep != "best" and not training.early_stopping and clock.step < clock.steps:
            return {}
        policy = greedy(self.predictor())
        returns, _ = play(self.environment, policy, VALIDATED, training.seed, VALIDATION)
        return {"return": float(returns.mean())}

    def told(self) -> dict[str, Any]:
        """The actions that were taken, and the learning curve."""
        return {"environment_steps": self.context.clock.environment_steps, "learning": self.episodes.curve()}

    def measured(self, **values: Tensor) -> dict[str, Tensor]:
        """What a step logs: the loss and its parts, and the mean return of the latest episodes of training."""
        return {**{name: value.detach() for name, value in values.items()}, "return": self.episodes.recent}


def deployed(schema: Schema, model: Model, log: bool) -> Predictor:
    """The policy alone, in evaluation mode.

    Args:
        schema: of the task.
        model: observation -> outputs of the action.
        log: whether discrete outputs are given as the logarithm of probabilities.
    """

    def forward(batch: Batch) -> Batch:
        model.eval()
        output = model(batch)["action"]
        return {"action": output.log_softmax(1) if log else output}

    return Predictor(schema, {"preprocess": model.preprocess, "network": model.module}, forward)


class Rows:
    """Rows that are learnt from in several steps; a resume goes on with them."""

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """All of them."""
        return dict(self.rows)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.rows = {name: tensor.clone() for name, tensor in state.items()}


class Normalization:
    """Statistics of observations: they grow with every action, and change what networks see only when told to.

    Args:
        models: whose first layers read the observation.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.layers = [model.preprocess[0] for model in models.values() if isinstance(model.preprocess[0], Normalize)]
        self.running = Running(len(self.layers[0].mean)) if self.layers else None

    def add(self, rows: Tensor) -> None:
        """More observations, (B, ...)."""
        if self.running is not None:
            self.running.add(rows.flatten(1))

    def apply(self) -> None:
        """From now on networks see what is normalized by all that was met."""
        if self.running is not None and self.running.count > 1:
            for layer in self.layers:
                layer.set(self.running.mean, self.running.deviation())

    def state_dict(self) -> dict[str, Any]:
        """The statistics; what networks see is saved with these."""
        return self.running.state_dict() if self.running is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        if self.running is not None:
            self.running.load_state_dict(state)


class Episodes:
    """Every episode of training that has ended: actions taken by then in all copies, return, length.

    Attributes:
        recent: () mean return of the latest; NaN before the first has ended.
    """

    def __init__(self) -> None:
        self.rows = np.zeros((256, 3))
        self.count = 0
        self.recent = torch.tensor(math.nan)

    def add(self, at: int, total: float, length: int) -> None:
        """One more."""
        if self.count == len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        self.rows[self.count] = at, total, length
        self.count += 1
        self.recent = torch.tensor(float(self.rows[max(0, self.count - RECENT) : self.count, 1].mean()))

    def curve(self) -> dict[str, list[float]]:
        """The learning curve: mean return of the episodes that ended in each of up to a hundred stretches of actions."""
        done = self.rows[: self.count]
        if not self.count:
            return {"environment_steps": [], "return": []}
        width = max(1, math.ceil(done[-1, 0] / POINTS))
        stretch = ((done[:, 0] - 1) // width).astype(np.int64)
        sums, counts = np.bincount(stretch, done[:, 1]), np.bincount(stretch)
        filled = np.flatnonzero(counts)
        return {
            "environment_steps": ((filled + 1) * width).tolist(),
            "return": (sums[filled] / counts[filled]).round(6).tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """All of them."""
        return {"rows": torch.from_numpy(self.rows[: self.count].copy()), "recent": self.recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        rows = state["rows"].numpy()
        self.count, self.recent = len(rows), state["recent"].clone()
        self.rows = np.concatenate([rows, np.zeros((max(256, len(rows)), 3))])


@torch.no_grad()
def orthogonal(model: Model, gain: float) -> None:
    """Orthogonal weights and zero biases (Saxe et al. 2014), as agents learn best from (Andrychowicz et al. 2021).

    Args:
        model: its hidden layers get a gain of the root of 2.
        gain: of the last layer; a small one makes the first policy nearly uniform.
    """
    layers = [layer for layer in model.module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in layers:
        last = layer is layers[-1]
        drawn = torch.empty(layer.weight.shape)  # filters may lie channels-last, which the initializer cannot fill
        layer.weight.copy_(nn.init.orthogonal_(drawn, gain if last else math.sqrt(2)))
        if layer.bias is not None:
            layer.bias.zero_()


def is_fresh(network: Mapping[str, Any]) -> bool:
    """Whether a network's weights may be drawn anew: none of the user's own, none that name an initializer."""
    return network.get("name") != OWN and network.get("initializer", "default") == "default"
