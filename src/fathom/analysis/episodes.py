"""How good an agent is: fresh episodes without exploration, beside a random and a linear policy in the same episodes.

    results(...)       the test part of results.json, from one agent
    pooled(...)        of several seeds: interquartile mean, stratified bootstrap, probability of improvement
    linear_policy(...) augmented random search (Mania, Guy & Recht 2018, arXiv:1803.07055)

Episode k begins alike for everybody, so differences are paired, and episodes are what is resampled. Several seeds are
judged as Agarwal et al. 2021 (arXiv:2108.13264) advise: seeds are resampled, and the middle half of them is averaged.

In comments: E episodes, S seeds, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis.evaluate import CONFIDENCE, RESAMPLES, Estimate, better, percentiles, resample_weights, verdict
from fathom.core.contract import Predictor
from fathom.core.environments import BASELINE, LONGEST, TEST, Copy, Environment, episode_seed, play
from fathom.core.errors import count_text
from fathom.fields.action import Action, greedy
from fathom.fields.observation import Running

EPISODES = 100
RETURN = "return"
RANDOM, LINEAR = "random policy", "linear policy"
NETWORK = "network"
BUDGET = 50_000  # actions of the search for a linear policy, at most; never more than the agent had
WIDEST = 2_000  # numbers of an observation that a linear policy still reads
Policy = Callable[[np.ndarray], Any]  # (n, ...) observations -> what each of n copies gets
Returns = Mapping[str, np.ndarray]  # name -> (E,)


def results(
    environment: Environment, predictor: Predictor, seed: int, actions: int | None, episodes: int = EPISODES
) -> dict[str, Any]:
    """The test part of results.json.

    Args:
        environment: where.
        predictor: the agent.
        seed: of the run; its test episodes are none that it learnt from.
        actions: that the agent learnt from, which bounds those of the baseline; None where unknown.
        episodes: E.

    Returns:
        test, baseline, difference, verdict and the rest, as `evaluate.results` has them; "episodes" holds the returns.
    """
    schema, budget = predictor.schema, min(BUDGET, actions or BUDGET)
    action = schema.targets["action"]
    assert isinstance(action, Action)
    policies: dict[str, Policy] = {NETWORK: greedy(predictor), RANDOM: random_policy(action, seed)}
    notes = [f"Judged on {count_text(episodes, 'fresh episode')} without exploration; baselines play the same ones."]
    if int(np.prod(environment.shape)) <= WIDEST and predictor.schema.inputs["observation"].state["form"] != "discrete":
        policies[LINEAR] = linear_policy(environment, action, seed, budget)
        notes.append(f"The linear policy was found by random search within {budget:,} actions.")
    played = {name: play(environment, policy, episodes, seed, TEST) for name, policy in policies.items()}
    endless = int((played[NETWORK][1] >= LONGEST).sum()) if environment.horizon is None else 0
    if endless:
        notes.append(f"{count_text(endless, 'episode')} had no end of its own and was cut after {LONGEST:,} actions.")
    returns = {name: returns for name, (returns, _) in played.items()}
    lengths = played[NETWORK][1].astype(np.float64)
    return {**judged(returns, lengths, seed), "evaluation_notes": notes}


def judged(returns: Returns, lengths: np.ndarray, seed: int) -> dict[str, Any]:
    """Estimates over episodes of the network, its baselines and their paired differences.

    Args:
        returns: name -> (E,), the network among them.
        lengths: (E,) actions of the network's episodes.
        seed: of the resampling.
    """
    mine, others = returns[NETWORK], {name: values for name, values in returns.items() if name != NETWORK}
    baseline = {name: {RETURN: mean_of(values, seed)} for name, values in others.items()}
    difference = {name: {RETURN: mean_of(mine - values, seed)} for name, values in others.items()}
    test = {RETURN: mean_of(mine, seed), "episode_length": mean_of(lengths, seed)}
    return {
        "test": plain(test),
        "baseline": {name: plain(table) for name, table in baseline.items()},
        "difference": {name: plain(table) for name, table in difference.items()},
        "primary": RETURN,
        "others": [],
        "better": better(baseline, difference, RETURN),
        "verdict": verdict(baseline, difference, RETURN),
        "targets": {},
        "mistakes": [],
        "episodes": {name: values.round(6).tolist() for name, values in returns.items()},
    }


def plain(table: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Estimates as JSON."""
    return {name: estimate.to_json() for name, estimate in table.items()}


def mean_of(values: np.ndarray, seed: int) -> Estimate:
    """The mean over episodes, with the percentile interval of a bootstrap of them."""
    tensor = torch.from_numpy(values).double()
    counts = torch.cat(list(resample_weights(len(values), RESAMPLES, seed))).double()  # (R, E)
    value = float(tensor.mean())
    low, high = percentiles(value, counts @ tensor / len(values), CONFIDENCE)
    return Estimate(value, min(low, value), max(high, value))


# ---- several seeds


def pooled(tables: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """What stands in place of the members' figures where several seeds were trained.

    Args:
        tables: results.json of each member.
        seed: of the resampling.

    Returns:
        test: "return" (the interquartile mean over seeds), "mean_return" and "episode_length"; baseline and difference
        alike; "improvement": baseline -> the share of pairs of seeds in which the network's is better; better,
        verdict, learning and notes.
    """
    names = [NETWORK, *[name for name in tables[0]["baseline"] if all(name in table["baseline"] for table in tables)]]
    scores = {
        name: torch.tensor([_score(table, name) for table in tables], dtype=torch.float64) for name in names
    }  # (S,)
    seeds = len(tables)
    drawn = torch.randint(seeds, (RESAMPLES, seeds), generator=torch.Generator().manual_seed(seed))  # (R, S)
    lengths = torch.tensor([table["test"]["episode_length"]["value"] for table in tables], dtype=torch.float64)

    def estimate(figure: Callable[[Tensor], Tensor], values: Tensor) -> Estimate:
        value = float(figure(values))
        low, high = percentiles(value, figure(values[drawn]), CONFIDENCE)
        return Estimate(value, min(low, value), max(high, value))

    def table(values: Tensor) -> dict[str, Estimate]:
        return {RETURN: estimate(interquartile_mean, values), "mean_return": estimate(lambda x: x.mean(-1), values)}

    others = [name for name in names if name != NETWORK]
    baseline = {name: table(scores[name]) for name in others}
    difference = {name: _gap(scores[NETWORK], scores[name], drawn) for name in others}
    improvement = {name: improvement_of(scores[NETWORK], scores[name], seed).to_json() for name in others}
    test = {**table(scores[NETWORK]), "episode_length": estimate(lambda x: x.mean(-1), lengths)}
    told = [
        f"Of all pairs of seeds the network's beats the {name}'s in {share['value']:.0%} ({share['low']:.0%} to "
        f"{share['high']:.0%})."
        for name, share in improvement.items()
    ]
    return {
        "test": plain(test),
        "baseline": {name: plain(estimates) for name, estimates in baseline.items()},
        "difference": {name: plain(estimates) for name, estimates in difference.items()},
        "improvement": improvement,
        "better": better(baseline, difference, RETURN),
        "verdict": verdict(baseline, difference, RETURN),
        "learning": learning_band([table["learning"] for table in tables]),
        "evaluation_notes": [
            f"The return is the interquartile mean over {count_text(seeds, 'seed')}; intervals come from resampled seeds "
            "(Agarwal et al. 2021).",
            *told,
        ],
    }


def _score(table: Mapping[str, Any], name: str) -> float:
    """The mean return of one seed."""
    return float(np.mean(table["episodes"][name]))


def _gap(mine: Tensor, other: Tensor, drawn: Tensor) -> dict[str, Estimate]:
    """The difference of interquartile means, the same seeds drawn for both."""
    value = float(interquartile_mean(mine) - interquartile_mean(other))
    low, high = percentiles(value, interquartile_mean(mine[drawn]) - interquartile_mean(other[drawn]), CONFIDENCE)
    return {RETURN: Estimate(value, min(low, value), max(high, value))}


def interquartile_mean(scores: Tensor) -> Tensor:
    """(..., S) -> (...): the mean without the lowest and the highest quarter, rounded down."""
    cut = scores.shape[-1] // 4
    ordered = scores.sort(-1).values
    return ordered[..., cut : scores.shape[-1] - cut].mean(-1)


def improvement_of(mine: Tensor, other: Tensor, seed: int) -> Estimate:
    """The share of pairs of seeds in which mine is better, ties counting half (Agarwal et al. 2021, section 4.3).

    Args:
        mine: (S,) returns.
        other: (T,) returns.
        seed: of the resampling; each side is resampled by itself.
    """
    generator = torch.Generator().manual_seed(seed + 1)

    def share(a: Tensor, b: Tensor) -> Tensor:
        left, right = a.unsqueeze(-1), b.unsqueeze(-2)
        return ((left > right).double() + 0.5 * (left == right).double()).mean((-1, -2))

    ours = mine[torch.randint(len(mine), (RESAMPLES, len(mine)), generator=generator)]
    theirs = other[torch.randint(len(other), (RESAMPLES, len(other)), generator=generator)]
    value = float(share(mine, other))
    low, high = percentiles(value, share(ours, theirs), CONFIDENCE)
    return Estimate(value, min(low, value), max(high, value))


def learning_band(curves: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The mean learning curve of several seeds, and the range in which they all are.

    Args:
        curves: "environment_steps" and "return" of each.

    Returns:
        environment_steps, return, low, high; over the stretch where every seed has ended an episode.
    """
    known = [curve for curve in curves if curve["return"]]
    if not known:
        return {"environment_steps": [], "return": [], "low": [], "high": []}
    longest = max(known, key=lambda curve: len(curve["environment_steps"]))["environment_steps"]
    start = max(curve["environment_steps"][0] for curve in known)
    grid = np.array([at for at in longest if at >= start] or [longest[-1]], np.float64)
    table = np.stack([np.interp(grid, curve["environment_steps"], curve["return"]) for curve in known])  # (S, points)
    return {
        "environment_steps": grid.astype(np.int64).tolist(), "return": table.mean(0).round(6).tolist(),
        "low": table.min(0).round(6).tolist(), "high": table.max(0).round(6).tolist(),
    }  # fmt: skip


# ---- policies


def random_policy(action: Action, seed: int) -> Policy:
    """Any action is as likely as another."""
    generator = torch.Generator().manual_seed(seed)
    return lambda observation: action.perform(action.random(len(observation), generator))


class Linear:
    """Scores that are linear in the normalized observation; the largest is done, or the scores themselves.

    Args:
        weights: (A, W + 1), the last column a constant.
        running: statistics of the observations as they are now.
        action: what is chosen.
    """

    def __init__(self, weights: np.ndarray, running: Running, action: Action) -> None:
        self.matrix = weights[:, :-1] / running.deviation().numpy()  # (A, W)
        self.constant = weights[:, -1] - self.matrix @ running.mean.numpy()
        self.action = action

    def __call__(self, shown: np.ndarray) -> Any:
        """(n, ...) observations -> what each of n copies gets."""
        scores = shown.reshape(len(shown), -1) @ self.matrix.T + self.constant
        return self.action.perform(self.action.greedy(torch.from_numpy(scores).float()))


def linear_policy(
    environment: Environment, action: Action, seed: int, budget: int,
    directions: int = 8, best: int = 4, rate: float = 0.02, noise: float = 0.05,
) -> Policy:  # fmt: skip
    """A linear policy by augmented random search.

    Each round tries some random changes of the weights and their opposites for an episode each, and moves along those that
    reached most by what they gained. What did best on average over a round is kept.

    Args:
        environment: where.
        action: what is chosen.
        seed: of changes and episodes, which are none that are judged.
        budget: actions of the search.
        directions: changes a round.
        best: of them that are followed.
        rate, noise: sizes of moves and of changes.
    """
    copy, running = Copy(environment), Running(int(np.prod(environment.shape)))
    draw = np.random.default_rng(episode_seed(seed, BASELINE, 0, 0))
    weights = np.zeros((action.count, len(running.mean) + 1))
    kept, value, taken, episode = Linear(weights, running, action), -np.inf, 0, 0
    while taken < budget:
        begun, pairs = Linear(weights, running, action), []
        changes = draw.normal(size=(directions, *weights.shape)) * noise
        for change in changes:
            gained = []
            for sign in (1, -1):
                policy = Linear(weights + sign * change, running, action)
                total, rows = _episode(copy, policy, episode_seed(seed, BASELINE, 1, episode), max(1, budget - taken))
                running.add(torch.from_numpy(rows))
                gained.append(total)
                taken += len(rows)
            pairs.append(gained)
            episode += 1
            if taken >= budget:
                break
        gains = np.array(pairs)  # (directions, 2)
        if gains.mean() >= value:
            kept, value = begun, float(gains.mean())
        order = gains.max(1).argsort()[::-1][:best]
        if (spread := gains[order].std()) > 0:
            moves = (gains[order, 0] - gains[order, 1])[:, None, None] * changes[order] / noise
            weights = weights + rate / spread * moves.mean(0)
    copy.close()
    return kept


def _episode(copy: Copy, policy: Policy, seed: int, most: int) -> tuple[float, np.ndarray]:
    """Return and observations (actions, W) of an episode, of at most so many actions."""
    shown, total, rows = copy.reset(seed), 0.0, []
    for _ in range(min(LONGEST, most)):
        flat = np.asarray(shown, np.float64).reshape(1, -1)
        rows.append(flat)
        shown, reward, terminated, truncated = copy.step(policy(flat)[0])
        total += float(reward)
        if terminated or truncated:
            break
    return total, np.concatenate(rows)
