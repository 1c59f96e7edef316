"""Decisions: from which probability on a row is answered as the positive class, and what that costs.

    check_remedies(recipe, schema) refuses two remedies for imbalance at once: each hurts calibration, together they ruin it
    check(schema, data)            refuses rules that contradict each other or cannot be applied, before training
    choose(item, output, target)   the threshold by the rule, from validation rows
    judged(schema, outputs, data)  what it does to the test rows, with intervals, beside the likelier class
    shift(schema, outputs, data)   a sentence about what a remedy for imbalance did to the probabilities

A rule is one of three options of a category (`data.category`): `cost = {miss = 100, alarm = 1}` takes the least cost, `beta`
the best F-beta (van Rijsbergen 1979), `alerts` the lowest threshold that stays within so many alerts per 1,000 rows. The
threshold is part of the field's state, so it ships with the model. It is chosen on validation rows only: chosen on the test
it would be too good, on training rows too sure.

In comments: N rows, K classes, T thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis import evaluate
from fathom.analysis.charts import Axis, Chart, path
from fathom.analysis.wording import finite, percent
from fathom.core.contract import Field, Schema
from fathom.core.errors import DataError, FathomError
from fathom.core.recipe import Recipe
from fathom.core.tensors import Batch, TensorSet
from fathom.fields.metrics import hard

RULES = ("cost", "beta", "alerts")
PRICES = ("miss", "alarm")
TOP = (10, 30, 100, 300, 1_000)  # rows of the highest probability whose precision is told
POINTS = 120  # of a curve in results.json


def rule(item: Field) -> str | None:
    """The name of the rule that a target asks for; None where it answers by the likeliest class."""
    given = [name for name in RULES if getattr(item, name, None)]
    return given[0] if given else None


def positive(item: Field) -> int | None:
    """The class for which a threshold is chosen: the named one, else the second of two; None of more."""
    named: int | None = item.positive_index()  # type: ignore[attr-defined]
    return 1 if named is None and item.outputs[0] == 2 else named


def check(schema: Schema, data: Mapping[str, TensorSet]) -> None:
    """Refuse a rule that cannot be applied.

    Args:
        schema: fitted.
        data: part -> encoded rows; those of validation choose.

    Raises:
        DataError: two rules, a price that is none, no positive class, or validation rows that hold none of it.
    """
    for name, item in schema.targets.items():
        if item.kind != "category" or rule(item) is None:
            continue
        _check_options(item, name)
        chosen = positive(item) or 0
        truth: Tensor = torch.eq(hard(data["validation"].column(name)), chosen)
        if not truth.any() or truth.all():
            word, held = item.state["classes"][chosen], "no row" if not truth.any() else "only rows"
            raise DataError(
                f"data.category.{rule(item)} chooses a threshold on the validation rows, which hold {held} of '{word}' "
                f"({len(truth):,} rows). Use more of them, as data.validation=0.3, or name a file; without data.time rows "
                "are divided so that each part has its share."
            )


def watched(monitor: str, given: bool, schema: Schema, data: TensorSet) -> tuple[str, list[str]]:
    """The metric that decides which weights are best, where the validation rows define it.

    Args:
        monitor: of the recipe.
        given: whether the user said so.
        schema: fitted.
        data: the validation rows.

    Returns:
        The metric, "loss" where the one that Fathom chose is not defined; and a sentence about it.

    Raises:
        DataError: the one that the user chose is not defined.
    """
    prefix, _, metric = monitor.rpartition(".")
    name = prefix or next(iter(schema.targets), "")
    if metric not in evaluate.AREAS or name not in schema.targets or schema.targets[name].kind != "category":
        return monitor, []
    present = hard(data.column(name)).unique()
    if len(present) > 1:
        return monitor, []
    only = schema.targets[name].state["classes"][int(present[0])]
    why = f"every validation row is '{only}', so {monitor} is not defined on them"
    remedy = "Use more of them, as data.validation=0.3"
    if given:
        raise DataError(f"training.monitor = {monitor}: {why}. {remedy}, or training.monitor=loss.")
    return "loss", [f"In the validation split {why}: the loss decides which weights are best. {remedy}."]


def _check_options(item: Any, name: str) -> None:
    given = [rule for rule in RULES if getattr(item, rule)]
    if len(given) > 1:
        raise DataError(
            f"data.category.{given[0]} and data.category.{given[1]} each choose a threshold for '{name}'. Keep one: cost, beta "
            "or alerts."
        )
    if positive(item) is None:
        raise DataError(
            f"data.category.{given[0]} chooses a threshold for one class, and '{name}' has {item.outputs[0]}. Say which with "
            f"data.category.positive={item.classes[0]}."
        )
    if item.cost and (sorted(item.cost) != sorted(PRICES) or min(item.cost.values()) <= 0):
        raise DataError(
            f"data.category.cost = {item.cost} should say what a miss and a false alarm cost, both above 0, as in "
            "data.category.cost={miss = 100, alarm = 1}."
        )
    if item.beta is not None and item.beta <= 0:
        raise DataError(f"data.category.beta = {item.beta:g} should be above 0; 1 is F1, 2 cares more for recall.")
    if item.alerts is not None and not 0 < item.alerts < 1000:
        raise DataError(f"data.category.alerts = {item.alerts:g} are alerts per 1,000 rows: above 0 and below 1000.")


def remedies(recipe: Recipe) -> dict[str, str]:
    """Key -> words, of every remedy for imbalance that a recipe asks for."""
    table, found = recipe.algorithm, {}
    losses = table.get("loss", "")
    if table.get("class_weights", "none") != "none":
        found["supervised.class_weights"] = "class weights"
    if "focal" in (losses.values() if isinstance(losses, dict) else [losses]):
        found["supervised.loss"] = "focal loss"
    if recipe.training.sampling != "shuffled":
        found["training.sampling"] = "balanced sampling"
    return found


def check_remedies(recipe: Recipe, schema: Schema) -> None:
    """Refuse two remedies at once, and sampling without classes.

    Raises:
        FathomError: names both keys.
    """
    found = remedies(recipe)
    if len(found) > 1:
        (one, words), (other, more) = list(found.items())[:2]
        raise FathomError(
            f"{one} ({words}) and {other} ({more}) each give rare classes more weight, and together too much: probabilities then "
            "say little. Keep one of them; a threshold (data.category.cost) goes with any and with none."
        )
    kinds = {item.kind for item in schema.targets.values()}
    if recipe.training.sampling == "balanced" and "category" not in kinds:
        raise FathomError(
            f"training.sampling = balanced draws every class equally often, but no target has classes: "
            f"{', '.join(f'{name} ({item.kind})' for name, item in schema.targets.items()) or 'none'}. Leave it out."
        )


# ---------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Sweep:
    """Every decision that the scores of some rows allow, from none to all alarmed.

    Args:
        threshold: (T,) falling; a row of at least this score is an alarm.
        alarms, hits: (T,) weight of the alarms, and of the positive rows among them.
        held, total: weight of the positive rows, and of all.
    """

    threshold: Tensor
    alarms: Tensor
    hits: Tensor
    held: float
    total: float

    @staticmethod
    def of(score: Tensor, truth: Tensor, weight: Tensor | None = None) -> Sweep:
        """Sort the rows.

        Args:
            score: (N,) probability of the positive class.
            truth: (N,) bool.
            weight: (N,), or None where all count alike.
        """
        score = score.double()
        weight = torch.ones_like(score) if weight is None else weight.double()
        order = score.argsort(descending=True, stable=True)
        score, weight, positive = score[order], weight[order], truth[order].double()
        last = torch.cat([score[1:] != score[:-1], torch.ones(1, dtype=torch.bool)])  # of the rows of one score
        here = score[last]
        between = torch.cat([(here[:-1] + here[1:]) / 2, here[-1:] / 2])  # below each score, above the next
        none = torch.full((1,), float((here[0] + 1) / 2 if here[0] < 1 else 2.0), dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        alarms = torch.cat([zero, weight.cumsum(0)[last]])
        hits = torch.cat([zero, (weight * positive).cumsum(0)[last]])
        return Sweep(torch.cat([none, between]), alarms, hits, float(hits[-1]), float(alarms[-1]))

    def cost(self, prices: Mapping[str, float]) -> Tensor:
        """(T,) per 1,000 rows."""
        return (
            1000 * (prices["miss"] * (self.held - self.hits) + prices["alarm"] * (self.alarms - self.hits)) / self.total
        )

    def f(self, beta: float) -> Tensor:
        """(T,) F-beta: (1 + beta^2) hits / (beta^2 held + alarms)."""
        return (1 + beta**2) * self.hits / (beta**2 * self.held + self.alarms)

    def per_thousand(self) -> Tensor:
        """(T,) alarms of 1,000 rows."""
        return 1000 * self.alarms / self.total


def choose(item: Any, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Any] | None:
    """The threshold by the rule that the target asks for.

    Args:
        item: the target.
        output: (N, K) logits of validation rows.
        target: (N,) classes, or (N, K) soft rows.
        weight: (N,) of the rows.

    Returns:
        rule, says, positive (index), threshold, as plain JSON; None where there is no rule.
    """
    name, chosen = rule(item), positive(item)
    if name is None or chosen is None:
        return None
    sweep = Sweep.of(output.double().softmax(1)[:, chosen], hard(target) == chosen, weight)
    if name == "cost":
        place = int(sweep.cost(item.cost).argmin())
        says = f"a miss costs {item.cost['miss']:g} and a false alarm {item.cost['alarm']:g}"
    elif name == "beta":
        place = int(sweep.f(item.beta).argmax())
        says = f"the best F-beta with beta {item.beta:g}"
    else:
        place = int((sweep.per_thousand() <= item.alerts + 1e-9).sum()) - 1
        says = f"at most {item.alerts:g} alerts per 1,000 rows"
    return {"rule": name, "says": says, "positive": chosen, "threshold": float(sweep.threshold[place])}


def settle(schema: Schema, outputs: Batch, data: TensorSet) -> None:
    """Write the thresholds into the states of the targets.

    Args:
        schema: fitted; its targets are changed in place.
        outputs: target -> (N, K) of the validation rows.
        data: these rows.
    """
    for name, item in schema.targets.items():
        if item.kind == "category":
            made = choose(item, outputs[name], data.column(name), evaluate.row_weights(data))
            item.state.update({"decision": made} if made else {})


# ---------------------------------------------------------------- judging


def judged(
    schema: Schema, outputs: Batch, data: TensorSet, seed: int, blocks: np.ndarray | None = None
) -> dict[str, Any]:
    """What the decisions do to the test rows.

    Args:
        schema: with the thresholds; two-class targets of a rare class are told of without one too.
        outputs: target -> (N, K).
        data: the N rows.
        seed, blocks: of the resampling, as in `evaluate`.

    Returns:
        target -> "figures" of the decision and "likelier" of the likelier class, name -> value, low, high; "top", the
        precision among the k rows of the highest probability; "curve" of all thresholds; "says", a sentence.
    """
    found = {}
    for name, item in schema.targets.items():
        if item.kind != "category" or (chosen := positive(item)) is None:
            continue
        truth = hard(data.column(name)) == chosen
        share = float(truth.double().mean())
        decision = item.state.get("decision")
        if share in (0.0, 1.0) or (decision is None and share >= evaluate.RARE):
            continue
        score = outputs[name].double().softmax(1)  # (N, K)
        found[name] = _one(item, decision, score, truth, chosen, evaluate.row_weights(data), seed, blocks)
    return found


def _one(
    item: Any, decision: dict[str, Any] | None, probability: Tensor, truth: Tensor, chosen: int, weight: Tensor | None,
    seed: int, blocks: np.ndarray | None,
) -> dict[str, Any]:  # fmt: skip
    score = probability[:, chosen]
    order = score.argsort(descending=True, stable=True)
    made: dict[str, Any] = {
        "positive": item.classes[chosen],
        "share": float(truth.double().mean()),
        "top": {str(k): float(truth[order[:k]].double().mean()) for k in TOP if k < len(truth)},
        "likelier": _figures(item, probability.argmax(1) == chosen, truth, weight, seed, blocks),
    }
    if decision is None:
        return made
    alarm = item.decide(probability) == chosen
    figures = _figures(item, alarm, truth, weight, seed, blocks)
    made |= {"rule": decision["rule"], "threshold": decision["threshold"], "figures": figures}
    made["curve"] = _curve(item, Sweep.of(score, truth, weight))
    made["says"] = _sentence(made, decision["says"])
    return made


def _figures(
    item: Any, alarm: Tensor, truth: Tensor, weight: Tensor | None, seed: int, blocks: np.ndarray | None
) -> dict[str, dict[str, float]]:
    """Alarms, precision, recall, and what the rule counts, with intervals from the resampling of `evaluate`."""
    table = torch.stack([torch.ones(len(truth)), alarm, alarm & truth, truth], 1).double()  # (N, 4)
    once = torch.ones(len(truth), dtype=torch.float64) if weight is None else weight
    resamples = evaluate.resample_weights(len(truth), evaluate.affordable(len(truth)), seed, _several(blocks))
    counts = [(drawn.double() * once) @ table for drawn in resamples]
    values, draws = _rates(item, (once @ table)[None]), _rates(item, torch.cat(counts))
    found = {}
    for name, value in values.items():
        if finite(figure := float(value[0])) is not None:
            low, high = evaluate.percentiles(figure, draws[name], evaluate.CONFIDENCE)
            found[name] = {"value": figure, "low": min(low, figure), "high": max(high, figure)}
    return found


def _several(blocks: np.ndarray | None) -> np.ndarray | None:
    """Blocks, where there are several."""
    return blocks if blocks is not None and len(np.unique(blocks)) > 1 else None


def _rates(item: Any, sums: Tensor) -> dict[str, Tensor]:
    """(R, 4) sums of all, alarms, hits and positive rows -> name -> (R,)."""
    total, alarms, hits, held = sums.unbind(1)
    found = {"alerts_per_1000": 1000 * alarms / total, "precision": hits / alarms, "recall": hits / held}
    if item.cost:
        lost = item.cost["miss"] * (held - hits) + item.cost["alarm"] * (alarms - hits)
        found["cost_per_1000"] = 1000 * lost / total
    if item.beta is not None:
        square = item.beta**2
        found["f_beta"] = (1 + square) * hits / (square * held + alarms)
    return found


def _curve(item: Any, sweep: Sweep) -> list[dict[str, float]]:
    """Up to 120 decisions from none to all alarmed, evenly spread over the logarithm of the alarms."""
    last = len(sweep.threshold) - 1
    wanted = torch.logspace(0, np.log10(max(float(sweep.total), 2.0)), POINTS, dtype=torch.float64)
    places = [0, *torch.searchsorted(sweep.alarms, wanted).clamp(max=last).unique().tolist()]
    counted = sweep.cost(item.cost) if item.cost else sweep.f(item.beta) if item.beta is not None else None
    return [
        {
            "threshold": float(sweep.threshold[i]), "alerts": float(sweep.per_thousand()[i]),
            "recall": float(sweep.hits[i]) / sweep.held,
            **({"precision": float(sweep.hits[i] / sweep.alarms[i])} if sweep.alarms[i] > 0 else {}),
            **({"cost" if item.cost else "f_beta": float(counted[i])} if counted is not None else {}),
        }
        for i in dict.fromkeys(places)
    ]  # fmt: skip


NAMES = {"alerts_per_1000": "alerts per 1,000 rows", "cost_per_1000": "cost per 1,000 rows", "f_beta": "F-beta"}


def _sentence(made: Mapping[str, Any], says: str) -> str:
    """The threshold and what it does, beside the likelier class."""

    def told(figures: Mapping[str, Mapping[str, float]]) -> str:
        return ", ".join(f"{NAMES.get(name, name)} {figure['value']:.3g}" for name, figure in figures.items())

    return (
        f"'{made['positive']}' is answered from a probability of {made['threshold']:.3g} on, chosen on validation rows ({says}). "
        f"On the test rows: {told(made['figures'])}. By the likelier class: {told(made['likelier'])}."
    )


def notes(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The sentences for the console: the decision, and the precision at the top."""
    lines = []
    for made in found.values():
        lines += [made["says"]] if "says" in made else []
        top = ", ".join(f"{percent(share)} of the first {int(k):,}" for k, share in made["top"].items())
        lines += [f"By falling probability of '{made['positive']}', so many are: {top}."] if top else []
    return lines


# ---------------------------------------------------------------- what a remedy does, and the picture


def shift(schema: Schema, outputs: Batch, data: TensorSet, remedy: str) -> list[str]:
    """How far the probabilities of the positive class are from how often it comes.

    Args:
        schema: whose two-class targets, or those with a positive class, are told of.
        outputs: target -> (N, K).
        data: the N rows.
        remedy: for imbalance, in words ("balanced sampling").
    """
    lines = []
    for name, item in schema.targets.items():
        if item.kind != "category" or (chosen := positive(item)) is None:
            continue
        said = float(outputs[name].double().softmax(1)[:, chosen].mean())
        share = float((hard(data.column(name)) == chosen).double().mean())
        judged = "its probabilities are no longer shares" if abs(said - share) > 0.2 * share else "that is close"
        lines.append(
            f"With {remedy} the network gives '{item.state['classes'][chosen]}' a probability of {said:.3g} on average, where "
            f"{share:.3g} of the test rows are: {judged}. A threshold (data.category.cost) needs no such remedy."
        )
    return lines


def chart(target: Mapping[str, Any]) -> Chart | None:
    """What each number of alerts costs or catches; None where no rule was asked for."""
    made = target.get("decision") or {}
    curve = made.get("curve") or []
    key = "cost" if "cost" in (curve[-1] if curve else {}) else "recall"
    points = [(line["alerts"], line[key]) for line in curve if line["alerts"] > 0]
    if len(points) < 2:
        return None
    x = Axis.around([0.0, min(1000.0, 20 * made["figures"]["alerts_per_1000"]["value"] + 10)])
    shown = [point for point in points if point[0] <= x.high]
    y = Axis.around([0.0, *[value for _, value in shown]], 3)
    label = "cost per 1,000 rows" if key == "cost" else "share of the positive rows that is found"
    here = made["figures"]["alerts_per_1000"]["value"]
    return Chart(
        "What alerts cost" if key == "cost" else "What alerts find",
        f"{label} by alerts per 1,000 rows; {here:.3g} alerts were chosen.",
        x.ticks(),
        y.ticks(),
        [(label, "strong", path([(x.at(a), y.at(b)) for a, b in shown]))],
        marks=[(round(x.at(here), 2), "chosen")],
        x_label="alerts per 1,000 rows",
        y_label=label,
        shape="wide",
    )
