"""What a run left behind, and the questions that the report and its advice ask of it.

read_evidence(folder)                   run folder -> Evidence; a file that cannot be read is told, not raised
Evidence                                results, epochs, recipe, schema, environment
estimate, primary_metric, badness       one value of results.json; the metric that decides; how to rank values
ranked, best_baseline, is_better        the network among its baselines
kept_epoch, calibration                 what was deployed; how far its confidence can be trusted
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from fathom.analysis.wording import finite
from fathom.core.callbacks import smaller_is_better
from fathom.core.errors import DamagedError, FathomError
from fathom.core.recipe import Recipe
from fathom.core.run import RunFolder, read_json, read_lines

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a run left behind.

    Args:
        name: of the run.
        place: path of its folder, as commands name it.
        results: results.json; empty where there is none.
        lines: metrics.jsonl, a line an epoch.
        recipe: recipe.toml as nested tables.
        recipe_text: the same as text.
        schema: schema.json.
        environment: environment.json.
        missing: file -> the sentence that says why it is not there.
        damaged: those of the missing that are there, but cannot be trusted.
    """

    name: str = "run"
    place: str = "runs/run"
    results: Table = field(default_factory=dict)
    lines: Sequence[Table] = ()
    recipe: Table = field(default_factory=dict)
    recipe_text: str = ""
    schema: Table = field(default_factory=dict)
    environment: Table = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    damaged: frozenset[str] = frozenset()

    @property
    def is_damaged(self) -> bool:
        """Whether there are results that cannot be trusted."""
        return "results.json" in self.damaged

    def setting(self, key: str, default: Any = None) -> Any:
        """The recipe's value of a dotted key."""
        value: Any = self.recipe
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value

    def repeat(self, *changes: str) -> str:
        """The command that repeats the run with keys changed; only the keys where data came from memory."""
        if not self.setting("data.location"):
            return " ".join(shlex.quote(change) for change in changes)
        if self.setting("training.name"):  # a name can be taken once only
            changes = (*changes, f"training.name={self.name}-2")
        return shlex.join(["fathom", "fit", f"{self.place}/recipe.toml", *changes])

    @property
    def is_game(self) -> bool:
        """Whether two networks played against each other, whose losses say nothing about what was learnt."""
        return bool(self.series("validation/generator_loss"))

    def series(self, name: str) -> list[float]:
        """The finite values of one number over the epochs."""
        return [value for line in self.lines if (value := finite(line.get(name))) is not None]

    @property
    def epochs(self) -> list[float]:
        """The epoch at which each line was written; where a stage ended within one it is no whole number."""
        told = [finite(line.get("epoch")) for line in self.lines]
        known = [_whole(epoch) for epoch in told if epoch is not None]
        rising = all(one < other for one, other in pairwise(known))
        return known if rising and len(known) == len(told) else list(range(1, len(told) + 1))

    def broken_epochs(self) -> list[float]:
        """The epochs whose training loss was not a finite number."""
        pairs = zip(self.epochs, self.lines, strict=True)
        return [epoch for epoch, line in pairs if finite(line.get("train/loss", 0.0)) is None]

    @property
    def length(self) -> str:
        """How many epochs were finished, in words."""
        done = self.epochs[-1] if self.lines else 0
        return f"{done:,g} epoch{'s' * (done != 1)}"


def _whole(number: float) -> float:
    return int(number) if number.is_integer() else number


def read_evidence(folder: RunFolder) -> Evidence:
    """Read all that the report needs; what cannot be read is told in `missing`."""
    missing: dict[str, str] = {}
    damaged: set[str] = set()
    lines = read_lines(folder.file("metrics.jsonl"))
    if not lines:
        missing["metrics.jsonl"] = "No epoch was finished, so there is nothing to draw."
    recipe, text = _read_recipe(folder.file("recipe.toml"), missing)
    results, schema, environment = (
        _read(folder.file(name), missing, damaged) for name in ("results.json", "schema.json", "environment.json")
    )
    name, place = folder.path.resolve().name, str(folder.path)
    return Evidence(name, place, results, lines, recipe, text, schema, environment, missing, frozenset(damaged))


def _read(path: Path, missing: dict[str, str], damaged: set[str]) -> Table:
    try:
        return read_json(path)
    except FathomError as error:
        missing[path.name] = str(error)
        if isinstance(error, DamagedError):
            damaged.add(path.name)
        return {}


def _read_recipe(path: Path, missing: dict[str, str]) -> tuple[Table, str]:
    try:
        return Recipe.read(path), path.read_text("utf-8")
    except FathomError as error:
        missing[path.name] = str(error)
        return {}, ""


# ---- the network among its baselines


def estimate(value: Any) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of what results.json holds for a metric: an estimate or a plain number."""
    if isinstance(value, Mapping):
        return finite(value.get("value")), finite(value.get("low")), finite(value.get("high"))
    return finite(value), None, None


def primary_metric(results: Table) -> str:
    """The metric that decides: the one the run names, else the first one."""
    test, named = results.get("test", {}), results.get("primary")
    return str(named) if named in test else next(iter(test), "")


def badness(metric: str, value: float | None) -> float:
    """A number that is the smaller, the better the value; infinite where there is none."""
    if value is None:
        return math.inf
    return value if smaller_is_better(metric) else -value


def ranked(models: Mapping[str, Table], metric: str) -> list[str]:
    """The models' names, best first; those without a value of the metric last."""
    return sorted(models, key=lambda name: badness(metric, estimate(models[name].get(metric))[0]))


def best_baseline(results: Table) -> str | None:
    """The baseline that did best on the primary metric."""
    metric, models = primary_metric(results), results.get("baseline", {})
    measured = {name: model for name, model in models.items() if estimate(model.get(metric))[0] is not None}
    return next(iter(ranked(measured, metric)), None)


def is_better(results: Table) -> bool | None:
    """Whether the network is better than its baselines; None where nothing was compared."""
    judged = results.get("better")
    return None if judged is None else judged == "better"


# ---- the weights that are deployed


def kept_epoch(results: Table) -> float | None:
    """The epoch whose weights are deployed, where the results name one."""
    epoch = finite(results.get("kept_epoch"))
    return None if epoch is None else _whole(epoch)


class Calibration(NamedTuple):
    """How confidence compares with accuracy, averaged over the test rows.

    Args:
        error: expected calibration error, the mean gap between the two (Naeini et al. 2015): that of the metrics,
            since it comes from the same bins and weights.
        confidence, accuracy: their means.
    """

    error: float
    confidence: float
    accuracy: float


def filled_bins(target: Table) -> list[Table]:
    """The bins of a reliability diagram that hold rows."""
    return [item for item in target.get("reliability") or [] if item.get("rows")]


def calibration(target: Table) -> Calibration | None:
    """The calibration of one target of results.json; None where it has no reliability diagram."""
    bins = filled_bins(target)
    if not bins:
        return None
    weights = [item.get("weight", item["rows"]) for item in bins]

    def mean(values: Sequence[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

    confidence, accuracy = ([item[name] for item in bins] for name in ("confidence", "accuracy"))
    gaps = [abs(one - other) for one, other in zip(confidence, accuracy, strict=True)]
    return Calibration(mean(gaps), mean(confidence), mean(accuracy))
