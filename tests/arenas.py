"""Environments for the tests of agents: small ones whose best return is known, and ones that break.

Chain      five states in a row; walking right to the end is worth 1            best return 1
Endless    nothing to decide, reward 1 at every action, cut after ten actions    value 1 / (1 - discount)
Catch      a ball falls, a paddle catches it: pictures of 10 x 5 bytes           best return 1 (Osband et al. 2019, bsuite)
Reach      numbers in, numbers out: name the number that is shown                best return 0
Faulty     breaks in the way that it is told to
Wandering  is not deterministic
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Chain(gymnasium.Env[int, int]):
    """Walk along five states; the way back to the start is as cheap as the way on."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = Discrete(5), Discrete(2)
        self.place = self.actions = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.actions = 0
        return self.place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.place = max(0, self.place + (1 if action else -1))
        self.actions += 1
        return self.place, float(self.place == 4), self.place == 4, self.actions >= 20, {}


class Endless(gymnasium.Env[np.ndarray, int]):
    """Reward 1 for ever, in episodes that are cut after ten actions."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = Box(-1, 1, (1,)), Discrete(2)
        self.actions = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.actions = 0
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions += 1
        return np.ones(1, np.float32), 1.0, False, self.actions >= 10, {}


class Catch(gymnasium.Env[np.ndarray, int]):
    """A ball falls down ten rows in one of five columns; the paddle below moves left, stays or moves right."""

    ROWS, COLUMNS = 10, 5
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = Box(0, 255, (self.ROWS, self.COLUMNS, 1), np.uint8)
        self.action_space = Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.row, self.column = 0, int(self.np_random.integers(self.COLUMNS))
        self.paddle = self.COLUMNS // 2
        return self._picture(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.paddle = min(self.COLUMNS - 1, max(0, self.paddle + action - 1))
        self.row += 1
        over = self.row == self.ROWS - 1
        reward = (1.0 if self.paddle == self.column else -1.0) if over else 0.0
        return self._picture(), reward, over, False, {}

    def _picture(self) -> np.ndarray:
        picture = np.zeros((self.ROWS, self.COLUMNS, 1), np.uint8)
        picture[self.row, self.column] = picture[self.ROWS - 1, self.paddle] = 255
        return picture


class Reach(gymnasium.Env[np.ndarray, np.ndarray]):
    """Name the number that is shown, between -2 and 2; five times an episode."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = Box(-1, 1, (1,)), Box(-2, 2, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.actions = 0
        return self._draw(), {}

    def _draw(self) -> np.ndarray:
        self.shown = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.shown

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action.shape == (1,)
        assert -2 <= action[0] <= 2
        self.actions += 1
        reward = -float((action[0] - 2 * self.shown[0]) ** 2)
        return self._draw(), reward, False, self.actions >= 5, {}


class Faulty(gymnasium.Env[np.ndarray, int]):
    """Breaks at an action of every episode.

    Args:
        how: "raises", "observation" (NaN), "reward" (NaN), "shape", "four" (values of step) or "reset" (one value).
        at: the action.
    """

    def __init__(self, how: str, at: int = 100) -> None:
        self.observation_space, self.action_space = Box(-1, 1, (2,)), Discrete(2)
        self.how, self.at, self.actions = how, at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.actions = 0
        return np.zeros(2, np.float32) if self.how == "reset" else (np.zeros(2, np.float32), {})

    def step(self, action: int) -> Any:
        self.actions += 1
        shown, reward = np.zeros(2, np.float32), 0.0
        if self.actions >= self.at:
            if self.how == "raises":
                raise RuntimeError("the motor is hot")
            shown = {"observation": np.full(2, np.nan, np.float32), "shape": np.zeros(3, np.float32)}.get(
                self.how, shown
            )
            reward = np.nan if self.how == "reward" else 0.0
        if self.how == "four":
            return shown, reward, False, {}
        return shown, reward, False, self.actions >= 200, {}


class Wandering(Endless):
    """Shows a number that no seed decides."""

    numbers = itertools.count()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        shown, *rest = super().step(action)
        return shown * (next(self.numbers) % 97) / 97, *rest
