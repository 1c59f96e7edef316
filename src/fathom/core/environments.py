"""Environments: what an agent acts in, as data.

    Environment       how to make it, what it shows and takes, and a first look at it as rows; `Stage.data` of an agent
    Copy              one running copy: every answer is checked, every fault says where it happened
    Arena             copies that are stepped together; an ended episode begins again in the same step
    play              whole episodes by a policy that does not learn, for validation, tests and baselines
    episode_seed      the seed of an episode: a function of the run's seed, the purpose, the copy and the episode

A copy cannot be saved, so it is played again: each reset is seeded, the actions since are kept, and a resumed arena
repeats them. Where the observation then differs, the environment is not deterministic; that copy begins a new episode
and the promise of an exact resume is withdrawn in words.

In comments: N copies, (...) the shape of one observation or action.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fathom.core.errors import DataError
from fathom.core.tensors import TensorSet

LOOKS = 64  # actions of the first look
LOOK, TRAINING, VALIDATION, TEST, BASELINE = range(5)  # purposes; their episodes never have a seed in common
FIRST_HISTORY = 64  # actions an episode for which there is room at first
INTACT = "What was saved is intact: mend the environment, then go on with: fathom fit --resume RUN"
MEND = "Mend the environment; nothing has been learnt yet."


def episode_seed(seed: int, purpose: int, copy: int, episode: int) -> int:
    """31 bits that no other combination gives but by chance."""
    return int(np.random.SeedSequence((seed, purpose, copy, episode)).generate_state(1)[0] >> 1)


class Environment(TensorSet):
    """An environment as data. Its rows are a first look: observations that random actions led to.

    Args:
        name: as users call it.
        make: render mode -> a gymnasium environment.
        shape: of one observation.
        dtype: in which observations are kept.
        horizon: actions after which an episode is cut; None where the environment sets no limit.
    """

    def __init__(
        self, name: str, make: Callable[[str | None], Any], shape: tuple[int, ...], dtype: np.dtype[Any],
        horizon: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__({}, torch.arange(LOOKS))
        self.name = name
        self.make = make
        self.shape = shape
        self.dtype = dtype
        self.horizon = horizon

    def to(self, device: torch.device) -> TensorSet:
        """Itself: environments run on the CPU."""
        return self

    @property
    def episodes(self) -> str:
        """How long an episode may last, in words."""
        return f"episodes of at most {self.horizon:,} actions" if self.horizon else "episodes without a limit"


class Copy:
    """One running copy of an environment.

    Args:
        environment: of which.
        number: of the copy, from 0.
        render: render mode, where it is to be drawn.
        remedy: what to do about a fault.
    """

    def __init__(
        self, environment: Environment, number: int = 0, render: str | None = None, remedy: str = INTACT
    ) -> None:
        self.environment = environment
        self.number = number
        self.remedy = remedy
        self.episode = 0
        self.actions = 0
        self.unwrapped = environment.make(render)
        self._step, self._shape = self.unwrapped.step, environment.shape

    def reset(self, seed: int, episode: int = 0) -> np.ndarray:
        """Begin an episode; (...) the first observation.

        Raises:
            DataError: the environment raises, or breaks gymnasium's interface.
        """
        self.episode, self.actions = episode, 0
        try:
            answer = self.unwrapped.reset(seed=seed)
        except Exception as error:  # the user's own code: whatever it raises is told
            raise self._raised(error, "reset") from error
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise DataError(
                f"{self.environment.name}: reset returned {_came(answer)}, where gymnasium wants (observation, info). "
                "Environments of the old gym API need to be ported first."
            )
        return self._checked(answer[0])

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Act; observation (...), reward, whether the episode is over for good, whether it was cut.

        Raises:
            DataError: the environment raises, or breaks gymnasium's interface.
        """
        self.actions += 1
        try:
            observation, reward, terminated, truncated, _ = self._step(action)
        except Exception as error:  # the user's own code: whatever it raises is told
            raise self._raised(error, "step") from error
        return self._checked(observation), reward, terminated, truncated

    def _checked(self, observation: Any) -> np.ndarray:
        if np.shape(observation) != self._shape:
            raise DataError(
                f"{self.environment.name} returned an observation of shape {np.shape(observation)} {self._where()}; its "
                f"observation_space says {self._shape}. {self.remedy}"
            )
        return observation

    def _where(self) -> str:
        return f"after action {self.actions:,} of episode {self.episode + 1:,} of copy {self.number + 1}"

    def _raised(self, error: Exception, method: str) -> DataError:
        if method == "step" and isinstance(error, ValueError) and "unpack" in str(error):
            return DataError(
                f"{self.environment.name}: step does not return the five values that gymnasium wants (observation, "
                "reward, terminated, truncated, info); environments of the old gym API return four. Split `done` into "
                "terminated (the task is over) and truncated (only the time is)."
            )
        return DataError(
            f"{self.environment.name} raised {type(error).__name__} in {method} {self._where()}: {error}. {self.remedy}"
        )

    def bad_number(self, what: str, value: Any) -> DataError:
        """The error for an observation or a reward that is not finite."""
        return DataError(
            f"{self.environment.name} returned {what} that is not a finite number ({value}) {self._where()}. Learning from "
            f"it would spoil the weights. {self.remedy}"
        )

    def close(self) -> None:
        """Give back what it holds."""
        self.unwrapped.close()


def _came(answer: Any) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__} alone"


class Arena:
    """Copies that are stepped together.

    An episode that ends begins again in the same step: `after` then holds its last observation and `observation` the
    first of the next, so that a value can be taken at the end of an episode that was only cut.

    Args:
        environment: what is copied.
        count: N.
        seed: of the run.
        purpose: of the episodes.

    Attributes:
        observation: (N, ...) what each copy shows now.
        after: (N, ...) what each showed after the last action.
        reward: (N,) float32 of the last action.
        terminated: (N,) bool, whether the last action ended the episode for good.
        truncated: (N,) bool, whether it was only cut.
        finished: (return, actions) of each episode that the last step ended.
        notes: sentences about copies that could not be played again.
    """

    def __init__(self, environment: Environment, count: int, seed: int, purpose: int = TRAINING) -> None:
        self.environment, self.seed, self.purpose = environment, seed, purpose
        remedy = MEND if purpose == LOOK else INTACT
        self.copies = [Copy(environment, i, remedy=remedy) for i in range(count)]
        self.observation = np.zeros((count, *environment.shape), environment.dtype)
        self.after = np.zeros_like(self.observation)
        self.reward = np.zeros(count, np.float32)
        self.terminated, self.truncated = np.zeros(count, bool), np.zeros(count, bool)
        self.finished: list[tuple[float, int]] = []
        self.notes: list[str] = []
        self.episode = np.full(count, -1)  # (N,) number of the episode under way
        self.length = np.zeros(count, np.int64)  # (N,) actions of it
        self.total = np.zeros(count)  # (N,) reward of it
        self.history: np.ndarray | None = None  # (N, L, ...) actions of it
        self._rows = np.arange(count)
        self._longest = 0  # no episode under way is longer; counting is quicker than looking at every step
        self._floats = self.observation.dtype.kind == "f"
        self.begun = False
        weakref.finalize(self, _close, self.copies)

    def begin(self) -> None:
        """The first episode of every copy."""
        for i in range(len(self.copies)):
            self._next_episode(i)
        self.begun = True

    def _next_episode(self, i: int) -> None:
        self.episode[i] += 1
        self.length[i], self.total[i] = 0, 0.0
        episode = int(self.episode[i])
        self.observation[i] = self.copies[i].reset(episode_seed(self.seed, self.purpose, i, episode), episode)
        self._check(self.observation)

    def step(self, actions: Sequence[Any] | np.ndarray) -> None:
        """Act once in every copy.

        Args:
            actions: (N,) or (N, ...), what each copy gets.

        Raises:
            DataError: an environment raises, breaks the interface, or returns what is not a finite number.
        """
        self._remember(actions)
        after, reward, terminated, truncated = self.after, self.reward, self.terminated, self.truncated
        for i, copy in enumerate(self.copies):
            after[i], reward[i], terminated[i], truncated[i] = copy.step(actions[i])
        self._check(after)
        self.total += reward
        self.finished = []
        self.observation[:] = after
        ended = terminated | truncated
        if ended.any():
            for i in np.flatnonzero(ended).tolist():
                self.finished.append((float(self.total[i]), int(self.length[i])))
                self._next_episode(i)

    def _remember(self, actions: Sequence[Any] | np.ndarray) -> None:
        """Keep what is done, to do it again after a resume."""
        taken = np.asarray(actions)
        if self.history is None:
            self.history = np.zeros((len(taken), FIRST_HISTORY, *taken.shape[1:]), taken.dtype)
        if self._longest >= self.history.shape[1]:
            self._longest = int(self.length.max())
        if self._longest >= self.history.shape[1]:
            self.history = np.concatenate([self.history, np.zeros_like(self.history)], 1)
        self.history[self._rows, self.length] = taken
        self.length += 1
        self._longest += 1

    def _check(self, observation: np.ndarray) -> None:
        """Refuse what is not finite, at once and by name."""
        if self._floats and not np.isfinite(observation).all():
            i = int((~np.isfinite(observation.reshape(len(observation), -1)).all(1)).argmax())
            flat = observation[i].reshape(-1)
            place = int((~np.isfinite(flat)).argmax())
            raise self.copies[i].bad_number(f"an observation (place {place + 1} of {flat.size})", flat[place])
        if not math.isfinite(float(self.reward.sum())):
            i = int((~np.isfinite(self.reward)).argmax())
            raise self.copies[i].bad_number("a reward", self.reward[i])

    def state_dict(self) -> dict[str, Any]:
        """The episodes under way: their number, actions and return so far, and what each copy shows."""
        if not self.begun:
            return {"begun": False}
        longest = max(int(self.length.max()), 1)
        history = self.history[:, :longest] if self.history is not None else np.zeros((len(self.copies), 1))
        return {
            "begun": True,
            "episode": torch.from_numpy(self.episode.copy()),
            "length": torch.from_numpy(self.length.copy()),
            "total": torch.from_numpy(self.total.copy()),
            "history": torch.from_numpy(history.copy()),
            "observation": torch.from_numpy(self.observation.copy()),
            "notes": list(self.notes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play every episode under way again, up to where it was."""
        if not state["begun"]:
            return
        self.begun, self.notes[:] = True, state["notes"]
        self.episode, self.length, self.total = (state[name].numpy().copy() for name in ("episode", "length", "total"))
        shown, history = state["observation"].numpy(), state["history"].numpy()
        self.history, self._longest = history.copy(), int(self.length.max())
        strayed = [i for i in range(len(self.copies)) if not self._repeat(i, history[i], shown[i])]
        for i in strayed:
            self._next_episode(i)
        if strayed:
            self.notes.append(
                f"{self.environment.name} is not deterministic: the same seed and actions did not lead {len(strayed)} of "
                f"{len(self.copies)} copies back to what they showed, so their episodes began anew. This resume is not exact."
            )

    def _repeat(self, i: int, actions: np.ndarray, shown: np.ndarray) -> bool:
        """Whether copy i, played again, shows what it showed."""
        episode, copy = int(self.episode[i]), self.copies[i]
        observation: Any = copy.reset(episode_seed(self.seed, self.purpose, i, episode), episode)
        for action in actions[: self.length[i]].tolist() if actions.ndim == 1 else actions[: self.length[i]]:
            observation, _, terminated, truncated = copy.step(action)
            if terminated or truncated:
                return False
        self.observation[i] = observation
        return bool(np.array_equal(self.observation[i], shown))


def _close(copies: Sequence[Copy]) -> None:
    for copy in copies:
        copy.close()


LONGEST = 10_000  # actions of an episode that has no end of its own
TOGETHER = 25  # copies that are played at once


def play(
    environment: Environment, choose: Callable[[np.ndarray], Any], count: int, seed: int, purpose: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whole episodes by a policy that does not learn.

    Episode k begins from the same seed whoever plays it, so that policies can be compared in pairs.

    Args:
        environment: where.
        choose: (n, ...) observations -> what each of n copies gets.
        count: E, episodes.
        seed: of the run.
        purpose: of the episodes, as VALIDATION or TEST.

    Returns:
        (E,) returns and (E,) lengths. An episode without an end is cut after `LONGEST` actions.
    """
    copies = [Copy(environment, i) for i in range(min(count, TOGETHER))]
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    shown = np.zeros((len(copies), *environment.shape), environment.dtype)
    waiting = iter(range(count))
    playing: list[tuple[int, int]] = []  # copy, episode

    def begin(number: int) -> None:
        if (episode := next(waiting, None)) is not None:
            shown[number] = copies[number].reset(episode_seed(seed, purpose, 0, episode), episode)
            playing.append((number, episode))

    for number in range(len(copies)):
        begin(number)
    while playing:
        current, playing = playing, []
        actions = choose(shown[[number for number, _ in current]])
        for (number, episode), action in zip(current, actions, strict=True):
            observation, reward, terminated, truncated = copies[number].step(action)
            shown[number] = observation
            returns[episode] += reward
            lengths[episode] += 1
            if terminated or truncated or lengths[episode] >= LONGEST:
                begin(number)
            else:
                playing.append((number, episode))
    _close(copies)
    return returns, lengths
