"""The report: one offline page that says what a run learnt, how well, compared with what, and what is next.

    write_report(folder)      run folder -> report.html: under 1 MB, no script, no network, light and dark
    result_table(results)     one row a metric: the network beside its baselines, the best one marked
    suggestions(evidence)     what to try next: the `RULES`, each a pure function (Evidence) -> Advice or None

    run folder ──read──▶ Evidence ──view──▶ numbers and texts ──report.html.j2──▶ report.html

Everything that stands on the page comes from the files of the run. A file that is missing or damaged costs
its section, which then says so. Python computes positions in percent; the template draws them as SVG and CSS.
Every text is escaped by the template: a name is data and never markup. The page forbids scripts and requests
(CSP). It stays under the limit because every list has a most, and says what it leaves out.
"""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cmp_to_key
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.core import callbacks
from fathom.core.contract import Field
from fathom.core.errors import FathomError, RunError
from fathom.core.recipe import Recipe
from fathom.core.registry import fields as kinds_of_field
from fathom.core.run import SEAL, RunFolder, read_json, read_lines, write_atomic

if TYPE_CHECKING:
    from jinja2 import Template

LIMIT = 1_000_000  # bytes of a report
# (bytes of pictures, targets shown), tried in turn until the page is under the limit.
BUDGETS = ((600_000, 12), (150_000, 12), (0, 3), (0, 1))
MODELS, METRICS, COLUMNS = 12, 40, 24
MISTAKES, VALUES, CLASSES, MATRIX, PAIRS = 24, 8, 200, 20, 20
FIELDS, LAYERS, POINTS, EPOCHS, NOTES, ENTRIES, RIVALS, TEXT = 40, 200, 2000, 400, 40, 80, 8, 60_000

Table = Mapping[str, Any]


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` into the run folder from the files that lie there.

    Args:
        folder: a run, finished or not.

    Returns:
        The path of the page.

    Raises:
        RunError: the page cannot be written.
    """
    evidence = read_evidence(folder)
    page = b""
    for pictures, targets in BUDGETS:
        page = _template().render(view(evidence, pictures, targets)).encode()
        if len(page) < LIMIT:
            break
    path = folder.file("report.html")
    write_atomic(path, page)
    return path


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

    def series(self, name: str) -> list[float]:
        """The finite values of one number over the epochs."""
        return [value for line in self.lines if (value := finite(line.get(name))) is not None]


def read_evidence(folder: RunFolder) -> Evidence:
    """Read all that the report needs; what cannot be read is told in `missing`."""
    missing: dict[str, str] = {}
    lines = read_lines(folder.file("metrics.jsonl"))
    if not lines:
        missing["metrics.jsonl"] = "No epoch was finished, so there is nothing to draw."
    recipe, text = _read_recipe(folder.file("recipe.toml"), missing)
    results, schema, environment = (
        _read(folder.file(name), missing) for name in ("results.json", "schema.json", "environment.json")
    )
    name = folder.path.resolve().name
    return Evidence(name, str(folder.path), results, lines, recipe, text, schema, environment, missing)


def _read(path: Path, missing: dict[str, str]) -> Table:
    """A JSON file, checked against its seal where it carries one."""
    try:
        if not path.exists():
            return read_json(path)  # says what is missing
        plain = json.loads(path.read_bytes())
        return read_json(path) if not isinstance(plain, dict) or SEAL in plain else plain
    except RunError as error:
        missing[path.name] = str(error)
    except (OSError, ValueError) as error:
        missing[path.name] = f"{path} is damaged ({error})."
    return {}


def _read_recipe(path: Path, missing: dict[str, str]) -> tuple[Table, str]:
    try:
        return Recipe.read(path), path.read_text("utf-8")
    except FathomError as error:
        missing[path.name] = str(error)
        return {}, ""


# ---- numbers as text

NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "f1": "F1",
    "r2": "R²",
    "mse": "MSE",
    "rmse": "RMSE",
    "mae": "MAE",
    "log_loss": "log loss",
}
SHARES = {"accuracy", "precision", "recall", "specificity", "f1"}  # read as percent
FIXED = {"auroc", "auprc", "ece", "r2", "brier"}  # read with three decimals
NONE = "–"


def finite(value: Any) -> float | None:
    """A number, or None for what is missing, text, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def words(name: str) -> list[str]:
    """The parts of a metric's name: "income.f1" -> income, f1."""
    return [word for word in re.split(r"[/._\s]+", name.lower()) if word]


def parted(name: str) -> tuple[str, str]:
    """(target, metric) of a metric's name; the target is "" where there is only one.

    >>> parted("income.auroc"), parted("auroc")
    (('income', 'auroc'), ('', 'auroc'))
    """
    target, _, metric = name.rpartition(".")
    return target, metric


def better(name: str, one: float, other: float) -> bool:
    """Whether `one` is a better value of this metric than `other`."""
    return callbacks.better(parted(name)[1], one, other)


def metric_label(name: str) -> str:
    """A metric's name as people write it.

    >>> metric_label("balanced_accuracy"), metric_label("income.auroc"), metric_label("r2")
    ('balanced accuracy', 'income: AUROC', 'R²')
    """
    target, metric = parted(name)
    text = NAMES.get(metric) or " ".join(NAMES.get(word, word) for word in metric.split("_"))
    return f"{target}: {text}" if target else text


def metric_text(name: str, value: Any) -> str:
    """A metric's value as people read it.

    >>> metric_text("accuracy", 0.98057), metric_text("auroc", 0.9), metric_text("mse", 2859.69)
    ('98.1 %', '0.900', '2,860')
    """
    number = finite(value)
    if number is None:
        return NONE
    if is_share(name):
        return percent(number)
    if FIXED & set(words(parted(name)[1])):
        return f"{number:z.3f}"
    return f"{number:#.4g}" if 1e-4 <= abs(number) < 1000 else number_text(number)


def is_share(name: str) -> bool:
    """Whether a metric is read as percent."""
    return bool(SHARES & set(words(parted(name)[1])))


def interval_text(name: str, low: Any, high: Any) -> str:
    """An interval with its unit once; empty where there is none.

    >>> interval_text("accuracy", 0.964, 0.992)
    '96.4 – 99.2 %'
    """
    if finite(low) is None or finite(high) is None:
        return ""
    return f"{metric_text(name, low).removesuffix(' %')} – {metric_text(name, high)}"


def percent(share: Any) -> str:
    """A share as percent.

    >>> percent(0.98057), percent(None)
    ('98.1 %', '–')
    """
    number = finite(share)
    return NONE if number is None else f"{100 * number:.1f} %"


def number_text(value: Any) -> str:
    """Any value as short text: four digits that count, thousands parted; others as they are.

    >>> number_text(1150), number_text(0.123456), number_text(2859.69), number_text(3.2e-7), number_text(True)
    ('1,150', '0.1235', '2,860', '3.2e-07', 'True')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE if value is None else str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e9):
        return f"{int(value):,}"
    if not math.isfinite(value) or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def seconds_text(value: Any) -> str:
    """A duration.

    >>> seconds_text(8.44), seconds_text(252), seconds_text(7320)
    ('8.4 s', '4 min 12 s', '2 h 2 min')
    """
    seconds = finite(value)
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count_text(count: int, one: str) -> str:
    """A number with its noun.

    >>> count_text(1, "row"), count_text(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def shorten(value: Any, length: int = 80) -> str:
    """Text cut to a length, with a sign that it was."""
    if isinstance(value, list | tuple):
        return shorten(listed(value, 8) or "none", length)
    text = number_text(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def shape_text(value: Any) -> str:
    """A tensor's shape.

    >>> shape_text([32, 26, 26]), shape_text("10")
    ('32 × 26 × 26', '10')
    """
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def sentence(text: Any) -> str:
    """A remark as a sentence.

    >>> sentence("quick, few settings")
    'Quick, few settings.'
    """
    text = capital(str(text).strip())
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def capital(text: str) -> str:
    """The text with a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


# ---- the result beside its baselines


@dataclass(frozen=True)
class Cell:
    """One model's value of one metric.

    Args:
        model: its name; "network" for ours.
        value: None where it was not measured.
        low, high: the interval, None where there is none.
        text: the value as text.
        interval: the interval as text, or "".
        best: whether no other model is better.
        point, left, width: where the value and its interval stand, in percent of the row's scale.
        beyond: "left" or "right" where the value lies off the scale.
    """

    model: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    interval: str
    best: bool
    point: float = 0.0
    left: float = 0.0
    width: float = 0.0
    beyond: str = ""


@dataclass(frozen=True)
class ResultRow:
    """One metric of all models: the network first.

    Args:
        metric: its key in results.json.
        label: its name as people write it.
        primary: whether it is the figure that decides.
        cells: one a model.
        axis: the scale, which holds the network and the best baseline: a hopeless one must not flatten it.
    """

    metric: str
    label: str
    primary: bool
    cells: list[Cell]
    axis: Axis


def result_table(results: Table) -> list[ResultRow]:
    """The network beside its baselines, one row a metric, the primary one first.

    Args:
        results: what results.json holds.

    Returns:
        The rows; empty where nothing was tested.
    """
    test, primary = results.get("test", {}), primary_metric(results)
    models = {"network": test, **_ranked(results.get("baseline", {}), primary)}
    names = sorted(test, key=lambda name: name != primary)
    return [_result_row(name, models, name == primary) for name in names]


def _ranked(models: Mapping[str, Table], metric: str) -> dict[str, Table]:
    """The models, best first; those without a value of the metric last."""

    def compare(one: str, other: str) -> int:
        first, second = (estimate(models[name].get(metric))[0] for name in (one, other))
        if first is None or second is None:
            return (first is None) - (second is None)
        return better(metric, second, first) - better(metric, first, second)

    return {name: models[name] for name in sorted(models, key=cmp_to_key(compare))}


def primary_metric(results: Table) -> str:
    """The metric that decides: the one the run names, else the first one."""
    test = results.get("test", {})
    named = results.get("primary")
    return str(named) if named in test else next(iter(test), "")


def _result_row(metric: str, models: Mapping[str, Table], primary: bool) -> ResultRow:
    found = {model: estimate(values.get(metric)) for model, values in models.items()}
    axis = _scale(metric, found)
    values = [value for value, _, _ in found.values() if value is not None]
    cells = []
    for model, (value, low, high) in found.items():
        beaten = value is None or any(better(metric, other, value) for other in values)
        best = len(values) > 1 and not beaten
        text, interval = metric_text(metric, value), interval_text(metric, low, high)
        cells.append(Cell(model, value, low, high, text, interval, best, *_place(axis, value, low, high)))
    return ResultRow(metric, metric_label(metric), primary, cells, axis)


def _scale(metric: str, found: Mapping[str, tuple[float | None, float | None, float | None]]) -> Axis:
    """A range around the network and the best of the others."""
    mine, *others = found.values()
    rival: tuple[float | None, ...] = ()
    for other in others:
        if other[0] is not None and (not rival or better(metric, other[0], rival[0] or 0.0)):
            rival = other
    most = 1.0 if is_share(metric) else math.inf
    return Axis.around([min(number, most) for number in [*mine, *rival] if number is not None])


def _place(axis: Axis, value: float | None, low: float | None, high: float | None) -> tuple[float, float, float, str]:
    """Where a value and its interval stand on the scale, cut at its ends: point, left, width, beyond."""
    if value is None:
        return 0.0, 0.0, 0.0, ""
    beyond = "left" if value < axis.low - 1e-12 else "right" if value > axis.high + 1e-12 else ""
    ends = (value, value if low is None else low, value if high is None else high)
    point, left, right = (min(100.0, max(0.0, axis.at(end))) for end in ends)
    return round(point, 2), round(left, 2), round(right - left, 2), beyond


def estimate(value: Any) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of what results.json holds for a metric: an estimate or a plain number."""
    if isinstance(value, Mapping):
        return finite(value.get("value")), finite(value.get("low")), finite(value.get("high"))
    return finite(value), None, None


def is_better(results: Table) -> bool | None:
    """What the verdict says: the network is better, is not, or None where nothing was compared."""
    found = re.search(r"\bis (better|worse|not better)\b", str(results.get("verdict") or ""))
    return found.group(1) == "better" if found else None


def best_baseline(results: Table) -> str | None:
    """The baseline that did best on the primary metric."""
    metric, models = primary_metric(results), results.get("baseline", {})
    able = [name for name in _ranked(models, metric) if estimate(models[name].get(metric))[0] is not None]
    return able[0] if able else None


# ---- what to try next


@dataclass(frozen=True)
class Advice:
    """One thing to try.

    Args:
        title: what to do, in plain words.
        why: the evidence for it.
        command: the exact command, or the keys to set; empty where nothing can be typed.
    """

    title: str
    why: str
    command: str = ""


def is_damaged(evidence: Evidence) -> bool:
    """Whether there are results that cannot be trusted."""
    return "is damaged" in evidence.missing.get("results.json", "")


def repeat_damaged(evidence: Evidence) -> Advice | None:
    """The results were changed after they were written."""
    if not is_damaged(evidence):
        return None
    return Advice("Repeat this run", "Its results are damaged and cannot be trusted.", evidence.repeat())


def go_on(evidence: Evidence) -> Advice | None:
    """The run stopped before it was evaluated."""
    if evidence.results or is_damaged(evidence):
        return None
    done = count_text(len(evidence.lines), "epoch")
    why = f"The run ended after {done}, before it was evaluated."
    return Advice("Finish this run", why, shlex.join(["fathom", "fit", "--resume", evidence.place]))


def broken_epochs(evidence: Evidence) -> list[int]:
    """The epochs whose training loss was not a finite number."""
    losses = [line.get("train/loss", 0.0) for line in evidence.lines]
    return [epoch for epoch, loss in enumerate(losses, 1) if finite(loss) is None]


def lower_the_rate(evidence: Evidence) -> Advice | None:
    """The loss was not finite."""
    broken = broken_epochs(evidence)
    if not broken:
        return None
    rate = finite(evidence.setting("training.learning_rate")) or finite(evidence.lines[0].get("rate")) or 1e-3
    why = f"Training loss was not a finite number at epoch {broken[0]}; most often the steps were too large."
    return Advice("Take smaller steps", why, evidence.repeat(f"training.learning_rate={rate / 10:.2g}"))


def prefer_the_baseline(evidence: Evidence) -> Advice | None:
    """The network is not better than a simpler model."""
    if is_better(evidence.results) is not False:
        return None
    name = best_baseline(evidence.results) or "the baseline"
    location = evidence.setting("data.location")
    why = f"{shorten(evidence.results['verdict'], 300)} The simpler model is cheaper and easier to explain."
    command = f"{shlex.join(['fathom', 'plan', str(location)])}  # other networks for this data"
    return Advice(f"Use {name} until a network is clearly better", why, command if location else "")


def regularize(evidence: Evidence) -> Advice | None:
    """Validation loss rose while training loss went on falling."""
    train, validation = evidence.series("train/loss"), evidence.series("validation/loss")
    if len(validation) < 3 or len(train) != len(validation):
        return None
    turn = min(range(len(validation)), key=validation.__getitem__)
    risen = validation[-1] - validation[turn]
    # Near zero any wiggle is a large share of the loss, so that of the first epoch counts too.
    if risen <= max(0.05 * abs(validation[turn]), 0.02 * abs(validation[0])) or train[-1] >= train[turn]:
        return None
    why = (
        f"Validation loss was lowest at epoch {turn + 1} ({number_text(validation[turn])}) and rose to "
        f"{number_text(validation[-1])} while training loss went on falling: it learns the rows by heart."
    )
    return Advice("Regularize more", why, evidence.repeat(*_regularization(evidence)))


def _regularization(evidence: Evidence) -> list[str]:
    """Keys that regularize: dropout where the network has it, else weight decay; images are shifted too."""
    network = evidence.setting("network", {})
    if "dropout" in network:
        changes = [f"network.dropout={min((finite(network['dropout']) or 0.0) + 0.2, 0.6):.2g}"]
    else:
        decay = finite(evidence.setting("training.weight_decay")) or 0.0
        changes = [f"training.weight_decay={max(5 * decay, 0.01):.2g}"]
    images = [item for item in evidence.schema.get("inputs", {}).values() if item.get("kind") == "image"]
    heights = [item.get("state", {}).get("shape", [1, 28])[1] for item in images]
    if heights and not evidence.setting("augment"):
        changes.append(f"augment.shift={max(1, round(min(heights) / 14))}")  # pixels
    return changes


def train_longer(evidence: Evidence) -> Advice | None:
    """Loss was still falling at the end; that of the validation rows, where it was measured."""
    train, validation = evidence.series("train/loss"), evidence.series("validation/loss")
    if len(train) < 3 or (validation and len(validation) != len(train)):
        return None
    loss = validation or train  # what a longer run is for, where it was measured
    quarter = max(1, len(loss) // 4)
    earlier, last = loss[-1 - quarter], loss[-1]
    if last > 0.95 * earlier or last > 1.01 * min(loss) or train[-1] > train[-1 - quarter]:
        return None
    epochs = finite(evidence.setting("training.epochs")) or len(evidence.lines)
    what = "Validation" if validation else "Training"
    fall = f"from {number_text(earlier)} to {number_text(last)} in the last quarter of the run"
    why = f"{what} loss was still falling: {fall}."
    return Advice("Train longer", why, evidence.repeat(f"training.epochs={2 * epochs:g}"))


def calibrate(evidence: Evidence) -> Advice | None:
    """Confidence and accuracy differ (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""
    for name, target in evidence.results.get("targets", {}).items():
        bins = _bins(target)
        error = calibration_error(bins)
        if error is None or error <= 0.05:
            continue
        confidence, accuracy = _mean(bins, "confidence"), _mean(bins, "accuracy")
        smoothing = finite(evidence.setting("training.label_smoothing")) or 0.0
        says = f"On average it is {percent(confidence)} sure and {percent(accuracy)} right (ECE {error:.3f})."
        if confidence > accuracy:
            change = f"training.label_smoothing={min(smoothing + 0.1, 0.3):.2g}"
            return Advice(f"Make it less sure of '{shorten(name)}'", says, evidence.repeat(change))
        if smoothing:
            return Advice(
                f"Let it be surer of '{shorten(name)}'", says, evidence.repeat("training.label_smoothing=0.0")
            )
    return None


def weigh_classes(evidence: Evidence) -> Advice | None:
    """A rare class is found less often than the others."""
    if evidence.setting(CLASS_WEIGHTS, "none") != "none":
        return None
    for target in evidence.results.get("targets", {}).values():
        classes = [c for c in target.get("classes", []) if finite(c.get("recall")) is not None and c.get("rows")]
        if target.get("kind") != "category" or len(classes) < 2:
            continue
        rare, common = min(classes, key=lambda c: c["rows"]), max(classes, key=lambda c: c["rows"])
        if rare["rows"] * 3 <= common["rows"] and rare["recall"] < 0.9 * common["recall"]:
            why = (
                f"'{shorten(rare['name'])}' has {count_text(rare['rows'], 'test row')}, "
                f"'{shorten(common['name'])}' {common['rows']:,}; {percent(rare['recall'])} of the first are "
                f"found and {percent(common['recall'])} of the second."
            )
            return Advice("Give rare classes more weight", why, evidence.repeat(f"{CLASS_WEIGHTS}=balanced"))
    return None


CLASS_WEIGHTS = "supervised.class_weights"


def cross_validate(evidence: Evidence) -> Advice | None:
    """So few test rows that the interval says little."""
    rows = evidence.results.get("splits", {}).get("test")
    if not rows or rows >= 200 or evidence.results.get("members"):
        return None
    why = f"Only {count_text(rows, 'row')} could be tested. Folds test every row once and narrow the interval."
    return Advice("Cross-validate", why, evidence.repeat("training.folds=5"))


def gather_rows(evidence: Evidence) -> Advice | None:
    """So few training rows that more of them is the best remedy."""
    rows = evidence.results.get("splits", {}).get("train")
    if not rows or rows >= 500:
        return None
    return Advice(
        "Gather more data",
        f"There were {count_text(rows, 'training row')}. No setting does as much as more rows.",
    )


Rule = Callable[[Evidence], Advice | None]
UNFINISHED: tuple[Rule, ...] = (repeat_damaged, go_on, lower_the_rate)
RULES: tuple[Rule, ...] = (
    lower_the_rate,
    prefer_the_baseline,
    regularize,
    train_longer,
    calibrate,
    weigh_classes,
    cross_validate,
    gather_rows,
)


def suggestions(evidence: Evidence) -> list[Advice]:
    """What the evidence says to try next, the most urgent first; never empty."""
    rules = RULES if evidence.results else UNFINISHED
    found = [advice for rule in rules if (advice := rule(evidence)) is not None]
    if found:
        return found
    why = "Curves, calibration and classes show no fault. Other seeds tell how much of the result was luck."
    return [Advice("Repeat it with other seeds", why, evidence.repeat("training.seeds=5"))]


def calibration_error(bins: Sequence[Table]) -> float | None:
    """Expected calibration error: the mean gap of confidence and accuracy (Naeini et al. 2015)."""
    total = sum(item["rows"] for item in bins)
    return sum(item["rows"] * abs(item["confidence"] - item["accuracy"]) for item in bins) / total if total else None


def _bins(target: Table) -> list[Table]:
    """The bins of a reliability diagram that hold rows."""
    return [item for item in target.get("reliability") or [] if item.get("rows")]


def _mean(bins: Sequence[Table], name: str) -> float:
    mean: float = sum(item["rows"] * item[name] for item in bins) / sum(item["rows"] for item in bins)
    return mean


# ---- charts: positions in percent, drawn by the template


@dataclass(frozen=True)
class Axis:
    """A range of values on a line of 0 to 100.

    Args:
        low, high: values at 0 and at 100.
        step: between ticks.
        log: whether ratios, not differences, are drawn to scale.
    """

    low: float
    high: float
    step: float
    log: bool = False

    @staticmethod
    def around(values: Iterable[float], count: int = 4) -> Axis:
        """The smallest range with round ends that holds all values."""
        found = list(values) or [0.0, 1.0]
        low, high = min(found), max(found)
        if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300):  # too near to be told apart
            low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
        step = round_step((high - low) / count)
        return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)

    @staticmethod
    def of_loss(values: Sequence[float]) -> Axis:
        """A linear range, or a logarithmic one where the largest is 50 times the smallest."""
        if values and min(values) > 0 and max(values) / min(values) > 50:
            return Axis(
                10 ** math.floor(math.log10(min(values))),
                10 ** math.ceil(math.log10(max(values))),
                1,
                log=True,
            )
        return Axis.around(values)

    def at(self, value: float | None) -> float:
        """Where a value stands, 0 to 100."""
        if value is None:
            return 0.0
        if self.log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self, text: Callable[[float], str] = lambda value: f"{value:.6g}") -> list[tuple[float, str]]:
        """(place, text) of each tick."""
        if self.log:
            decades = round(math.log10(self.high / self.low))
            every = max(1, decades // 5)
            values = [self.low * 10**i for i in range(0, decades + 1, every)]
        else:
            values = [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]
        return [(round(self.at(value), 2), text(0.0 if abs(value) < self.step * 1e-6 else value)) for value in values]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is not below `least`.

    >>> round_step(0.3), round_step(7)
    (0.5, 10.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


@dataclass(frozen=True)
class Chart:
    """What the template's `plot` macro draws. Positions are percent; paths count downward as SVG does.

    Args:
        title: above the chart.
        summary: the same in words, for those who do not see it.
        x, y: ticks (place, text).
        lines: (name, style, path of an SVG).
        bars: (left, top, width, height).
        dots: paths of zero-length strokes; several, so that dots that lie on each other grow darker.
        marks: (place, text) of vertical lines.
        x_label, y_label: of the axes.
        shape: "wide", "flat", "low" or "square".
    """

    title: str
    summary: str
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    bars: list[tuple[float, float, float, float]] = field(default_factory=list)
    dots: list[str] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    x_label: str = ""
    y_label: str = ""
    shape: str = "wide"


def path(points: Iterable[tuple[float, float] | None]) -> str:
    """An SVG path through points (x, y upward); None breaks it. A lone point becomes a dot.

    >>> path([(0, 0), (50, 100), None, (100, 20)])
    'M0 100L50 0M100 80h.01'
    """
    runs: list[list[str]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(f"{round(point[0], 2):g} {round(100 - point[1], 2):g}")
    return "".join(f"M{'L'.join(run)}{'h.01' if len(run) == 1 else ''}" for run in runs if run)


def dot_paths(points: Sequence[tuple[float, float]], each: int = 20) -> list[str]:
    """Dots as zero-length strokes, `each` to a path."""
    return ["".join(path([point]) for point in points[i : i + each]) for i in range(0, len(points), each)]


def curves(evidence: Evidence) -> list[Chart]:
    """Loss, primary validation metric and learning rate over the epochs."""
    lines = evidence.lines
    if not lines:
        return []
    marks = _marks(evidence)
    found = [_curve("Loss", {"Training": "train/loss", "Validation": "validation/loss"}, evidence, marks, "wide")]
    metric = _validation_metric(evidence)
    if metric:
        name = metric.removeprefix("validation/")
        title = f"Validation {metric_label(name)}"
        found.append(_curve(title, {"Validation": metric}, evidence, marks, "flat", lambda v: _tick(name, v)))
    found.append(_curve("Learning rate", {"Rate": "rate"}, evidence, [], "flat"))
    return [chart for chart in found if chart is not None]


def _tick(metric: str, value: float) -> str:
    return f"{100 * value:.4g} %" if is_share(metric) else f"{value:.6g}"


def _validation_metric(evidence: Evidence) -> str | None:
    """The key of the primary metric in the lines; the first other metric where it is not there."""
    primary = primary_metric(evidence.results)
    keys = [key for key in evidence.lines[-1] if key.startswith("validation/") and key != "validation/loss"]
    same = [key for key in keys if primary and (key == f"validation/{primary}" or key.endswith(f"/{primary}"))]
    return next(iter([*same, *keys]), None)


def _curve(
    title: str,
    names: Mapping[str, str],
    evidence: Evidence,
    marks: list[tuple[float, str]],
    shape: str,
    text: Callable[[float], str] = lambda value: f"{value:.6g}",
) -> Chart | None:
    values = [value for key in names.values() for value in evidence.series(key)]
    if not values:
        return None
    y = Axis.of_loss(values) if title == "Loss" else Axis.around(values, 3)
    shown = thin(len(evidence.lines), EPOCHS)
    lines = []
    for label, key in names.items():
        points = [_point(i, finite(evidence.lines[i].get(key)), len(evidence.lines), y) for i in shown]
        style = "quiet" if label == "Training" else "strong"
        if any(points):
            lines.append((label, style, path(points)))
    last = "; ".join(f"{label.lower()} ends at {text(evidence.series(names[label])[-1])}" for label, _, _ in lines)
    title += " (logarithmic)" if y.log else ""
    return Chart(
        title,
        f"{title} over {count_text(len(evidence.lines), 'epoch')}: {last}.",
        _epochs(len(evidence.lines)),
        y.ticks(text),
        lines,
        marks=marks,
        x_label="Epoch",
        shape=shape,
    )


def _point(i: int, value: float | None, count: int, y: Axis) -> tuple[float, float] | None:
    return None if value is None else (_epoch_at(i + 1, count), y.at(value))


def _epoch_at(epoch: int, count: int) -> float:
    return 100 * (epoch - 1) / (count - 1) if count > 1 else 50.0


def _epochs(count: int) -> list[tuple[float, str]]:
    """Ticks at the first epoch, at round ones and at the last."""
    step = max(1, math.ceil(round_step(count / 5)))
    inner = [epoch for epoch in range(step, count, step) if epoch > 1 and count - epoch > step / 2]
    return [(round(_epoch_at(epoch, count), 2), f"{epoch:,}") for epoch in dict.fromkeys([1, *inner, count])]


def thin(count: int, most: int) -> list[int]:
    """At most about `most` of `count` numbers, evenly, the last among them.

    >>> thin(10, 4), thin(3, 4)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    step = max(1, -(-count // most))
    return sorted({*range(0, count, step), count - 1}) if count else []


def _marks(evidence: Evidence) -> list[tuple[float, str]]:
    """The kept epoch, and where a new stage began."""
    count, marks = len(evidence.lines), []
    for i in range(1, count):
        if evidence.lines[i].get("stage") != evidence.lines[i - 1].get("stage"):
            marks.append((round(_epoch_at(i + 1, count), 2), f"stage {evidence.lines[i].get('stage', 0) + 1}"))
    kept = kept_epoch(evidence.results)
    if kept and kept <= count:
        marks.append((round(_epoch_at(kept, count), 2), "kept"))
    return marks


def kept_epoch(results: Table) -> int | None:
    """The epoch whose weights are deployed, where the results name one."""
    found = re.search(r"\bepoch (\d{1,9})\b", str(results.get("kept") or ""))
    return int(found.group(1)) if found else None


GAP = 0.6  # percent between bars


def reliability_chart(target: Table) -> Chart | None:
    """Accuracy against confidence; a calibrated network lies on the diagonal."""
    bins = _bins(target)
    if not bins:
        return None
    unit = Axis(0, 1, 0.25)
    bars = [
        (
            round(100 * b["low"] + GAP / 2, 2),
            round(100 - 100 * b["accuracy"], 2),
            round(100 * (b["high"] - b["low"]) - GAP, 2),
            round(100 * b["accuracy"], 2),
        )
        for b in bins
    ]
    dots = dot_paths([(100 * b["confidence"], 100 * b["accuracy"]) for b in bins])
    diagonal = [("Perfectly calibrated", "dashed", path([(0, 0), (100, 100)]))]
    words = "; ".join(f"{percent(b['confidence'])} sure, {percent(b['accuracy'])} right" for b in bins)
    ticks = unit.ticks(lambda value: f"{100 * value:g} %")
    return Chart(
        "How often it is right, by how sure it is",
        f"Reliability: {words}.",
        ticks,
        ticks,
        diagonal,
        bars,
        dots,
        x_label="confidence",
        y_label="share that is right",
        shape="square",
    )


def confidence_chart(target: Table) -> Chart | None:
    """How many test rows were answered with each confidence."""
    bins = _bins(target)
    if not bins:
        return None
    axis = Axis.around([0, max(b["rows"] for b in bins)], 2)
    bars = [
        (
            round(100 * b["low"] + GAP / 2, 2),
            round(100 - axis.at(b["rows"]), 2),
            round(100 * (b["high"] - b["low"]) - GAP, 2),
            round(axis.at(b["rows"]), 2),
        )
        for b in bins
    ]
    words = "; ".join(f"{b['rows']} rows near {percent(b['confidence'])}" for b in bins)
    ticks = Axis(0, 1, 0.25).ticks(lambda value: f"{100 * value:g} %")
    return Chart("Rows by confidence", f"{words}.", ticks, axis.ticks(), bars=bars, x_label="Confidence", shape="low")


def scatter_chart(target: Table) -> Chart | None:
    """Answers against truths; a perfect network lies on the diagonal."""
    pairs = [(finite(t), finite(a)) for t, a in target.get("scatter") or []]
    whole = [(t, a) for t, a in pairs if t is not None and a is not None]
    if not whole:
        return None
    axis = Axis.around([value for pair in whole for value in pair])
    shown = [whole[i] for i in thin(len(whole), POINTS)]
    ticks = axis.ticks(number_text)
    span = f"from {number_text(axis.low)} to {number_text(axis.high)}"
    summary = f"Answer against truth for {count_text(len(shown), 'test row')}, {span}."
    return Chart(
        "Answer against truth" + (f" ({len(shown):,} of {len(whole):,} rows)" if len(shown) < len(whole) else ""),
        summary,
        ticks,
        ticks,
        [("Perfect", "dashed", path([(0, 0), (100, 100)]))],
        dots=dot_paths([(axis.at(t), axis.at(a)) for t, a in shown]),
        x_label="truth",
        y_label="answer",
        shape="square",
    )


# ---- the page: what each section shows


def view(evidence: Evidence, pictures: int = BUDGETS[0][0], most_targets: int = BUDGETS[0][1]) -> dict[str, Any]:
    """All that the template draws.

    Args:
        evidence: of the run.
        pictures: bytes that pictures of mistakes may take.
        most_targets: how many targets get a section of their own.
    """
    results = evidence.results
    rows = result_table(results)
    targets = list(results.get("targets", {}).items())
    return {
        "name": evidence.name,
        "place": evidence.place,
        "verdict": shorten(results.get("verdict") or "", 600),
        "missing": evidence.missing,
        "headline": headline(evidence, rows),
        "rows": rows[:METRICS],
        "more_rows": max(0, len(rows) - METRICS),
        "models": MODELS,
        "more_models": max(0, len(rows[0].cells) - MODELS) if rows else 0,
        "members": member_rows(results),
        "evaluation_notes": [str(note) for note in results.get("evaluation_notes", [])][:NOTES],
        "asked": asked(evidence),
        "charts": curves(evidence),
        "training": training_sentence(evidence),
        "epochs": epoch_table(evidence),
        "targets": [target_view(name, target) for name, target in targets[:most_targets]],
        "more_targets": [name for name, _ in targets[most_targets:]],
        "mistakes": mistakes(results, pictures),
        "network": network(results),
        "recipe": evidence.recipe_text[:TEXT],
        "recipe_cut": len(evidence.recipe_text) > TEXT,
        "repeat": shlex.join(["fathom", "fit", f"{evidence.place}/recipe.toml"])
        if evidence.setting("data.location")
        else "",
        "environment": entries(evidence.environment),
        "advice": suggestions(evidence),
        "next": [str(command) for command in results.get("next", [])][:NOTES],
    }


def headline(evidence: Evidence, rows: Sequence[ResultRow]) -> dict[str, Any]:
    """The answer: what was learnt, the figure that decides, and whether it is better than the baseline."""
    results = evidence.results
    if not rows:
        done = count_text(len(evidence.lines), "epoch") if evidence.lines else "no epoch"
        figure = "Damaged" if is_damaged(evidence) else "Not evaluated" if results else "Not finished"
        lead = f"The run ended after {done}; nothing has been tested yet."
        if is_damaged(evidence):
            lead = "The results of this run changed after they were written, so they are not shown."
        return {"figure": figure, "lead": lead, "better": None, "cells": [], "ticks": [], "label": ""}
    row, test = rows[0], results.get("splits", {}).get("test")
    mine = row.cells[0]
    share = mine.text.endswith("%")
    members = len(results.get("members") or [])
    lead = (
        f"on {count_text(test, 'test row')} that the network had never seen"
        if test
        else "on rows that the network had never seen"
    )
    if members:
        lead = f"on average over {count_text(members, 'member')}, each tested on rows that it had never seen"
    return {
        "figure": f"{mine.text} {row.label}" if share else f"{capital(row.label)} {mine.text}",
        "lead": lead + (f". 95 % interval: {mine.interval}." if mine.interval else "."),
        "better": is_better(results),
        "cells": row.cells[:5],
        "ticks": row.axis.ticks(lambda value: _tick(row.metric, value)),
        "label": row.label,
    }


def member_rows(results: Table) -> list[dict[str, Any]]:
    """Members of a run with seeds or folds: name and the primary metric of each."""
    metric = primary_metric(results)
    rows = []
    for member in results.get("members") or []:
        value, low, high = estimate(member.get("test", {}).get(metric))
        rows.append(
            {
                "name": str(member.get("name")),
                "text": metric_text(metric, value),
                "interval": interval_text(metric, low, high),
            }
        )
    return rows


def asked(evidence: Evidence) -> dict[str, Any]:
    """The task, the rows of each split, the fields and what was guessed."""
    results = evidence.results
    splits = {str(name): int(rows) for name, rows in results.get("splits", {}).items()}
    total = sum(splits.values())
    notes = [str(note) for note in results.get("notes", [])]
    location = str(results.get("location") or evidence.setting("data.location") or "data in memory")
    fields = [
        {"role": role, "name": name, "kind": item.get("kind"), "about": described(item)}
        for role, part in (("target", "targets"), ("input", "inputs"))
        for name, item in evidence.schema.get(part, {}).items()
    ]
    return {
        "facts": {
            "Task": capital(str(results.get("task") or "")),
            "Data": location,
            "Seed": number_text(results.get("seed", evidence.setting("training.seed"))),
            "Special columns": listed([f"{k}: {v}" for k, v in (evidence.schema.get("special") or {}).items()], 8),
            "Time": ", ".join(f"{k} {seconds_text(v)}" for k, v in results.get("seconds", {}).items()),
        },
        "short": Path(location).name or location,
        "splits": [
            {"name": k, "rows": v, "share": round(100 * v / total, 2) if total else 0} for k, v in splits.items()
        ],
        "total": total,
        "fields": fields[:FIELDS],
        "more_fields": max(0, len(fields) - FIELDS),
        "notes": notes[:NOTES],
        "more_notes": max(0, len(notes) - NOTES),
    }


def listed(values: Sequence[Any], most: int) -> str:
    """Some values in a row, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    text = ", ".join(shorten(value, 40) for value in values[:most])
    return text + (f" and {len(values) - most} more" if len(values) > most else "")


def described(item: Table) -> str:
    """What a field guessed and learnt, in its own words."""
    if item.get("kind") in kinds_of_field:
        return Field.from_json(item).describe()
    return listed(item.get("columns", []), 6)


def training_sentence(evidence: Evidence) -> str:
    """What was kept, and when the validation loss was lowest."""
    losses = evidence.series("validation/loss")
    parts = ["The curves are those of the member that is deployed."] if evidence.results.get("members") else []
    if losses:
        lowest = losses.index(min(losses)) + 1
        parts.append(
            f"Validation loss was lowest at epoch {lowest} of {len(evidence.lines):,} ({number_text(min(losses))})."
        )
    if evidence.results.get("kept"):
        parts.append(f"Kept: {shorten(evidence.results['kept'], 200)}.")
    broken = sum("train/loss" in line and finite(line["train/loss"]) is None for line in evidence.lines)
    if broken:
        parts.append(f"In {count_text(broken, 'epoch')} the loss was not a finite number; the curve is broken there.")
    step = max(1, -(-len(evidence.lines) // EPOCHS))
    if step > 1:
        parts.append(f"Of {len(evidence.lines):,} epochs, one in {step} is drawn.")
    return " ".join(parts)


def epoch_table(evidence: Evidence) -> dict[str, Any]:
    """The numbers behind the curves."""
    keys = list(
        dict.fromkeys(key for line in evidence.lines for key in line if "/" in key or key in ("rate", "seconds"))
    )
    shown = thin(len(evidence.lines), 100)
    return {
        "heads": [_column_head(key) for key in keys[:COLUMNS]],
        "rows": [[i + 1, *(number_text(evidence.lines[i].get(key)) for key in keys[:COLUMNS])] for i in shown],
        "all": len(shown) == len(evidence.lines) and len(keys) <= COLUMNS,
    }


def _column_head(key: str) -> str:
    part, _, metric = key.partition("/")
    return capital(f"{part} {metric_label(metric)}" if metric else part)


def target_view(name: str, target: Table) -> dict[str, Any]:
    """Confusion, calibration and classes of a category; the scatter of a number."""
    bins = _bins(target)
    error = calibration_error(bins)
    return {
        "name": name,
        "confusion": confusion(target),
        "reliability": [chart for chart in (reliability_chart(target), confidence_chart(target)) if chart],
        "calibration": _calibration_sentence(bins, error),
        "scatter": scatter_chart(target),
        **class_rows(target),
    }


def _calibration_sentence(bins: Sequence[Table], error: float | None) -> str:
    if error is None:
        return ""
    confidence, accuracy = _mean(bins, "confidence"), _mean(bins, "accuracy")
    judged = (
        "Its confidence can be trusted"
        if error <= 0.05
        else f"It is too {'sure' if confidence > accuracy else 'unsure'}"
    )
    figures = f"on average {percent(confidence)} sure, {percent(accuracy)} right"
    return f"{judged}: {figures}. Expected calibration error {error:.3f}."


def confusion(target: Table) -> dict[str, Any] | None:
    """The confusion matrix (rows: truth, columns: answer); of many classes its largest entries."""
    counts, names = target.get("confusion"), target.get("class_names", [])
    if not counts:
        return None
    totals = [sum(row) for row in counts]
    wrong = sorted(
        ((count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count),
        reverse=True,
        key=lambda entry: (entry[0], -entry[1], -entry[2]),
    )
    pairs = [
        {
            "truth": names[i],
            "answer": names[j],
            "count": count,
            "total": totals[i],
            "share": round(100 * count / totals[i], 1),
        }
        for count, i, j in wrong[:PAIRS]
    ]
    return {
        "names": names,
        "pairs": pairs,
        "more": max(0, len(wrong) - PAIRS),
        "wrong": sum(entry[0] for entry in wrong),
        "total": sum(totals),
        "rows": [_matrix_row(names[i], row, i, totals[i]) for i, row in enumerate(counts)]
        if len(names) <= MATRIX
        else [],
    }


def _matrix_row(name: Any, counts: Sequence[int], place: int, total: int) -> dict[str, Any]:
    """One true class: each answer's count, share of the row, and depth of its tint (0 to 42 percent)."""
    cells = []
    for i, count in enumerate(counts):
        share = count / total if total else 0.0
        tint = 0 if not count else round(14 + 28 * share)
        cells.append({"count": count, "share": f"{100 * share:.0f}", "tint": tint, "right": i == place})
    return {"name": name, "total": total, "cells": cells}


def class_rows(target: Table) -> dict[str, Any]:
    """The per-class table; the weakest first where there are many."""
    names = ("name", "rows", "precision", "recall", "specificity", "f1", "auroc")
    classes = [only(item, *names) for item in target.get("classes") or []]
    scored = [c for c in classes if finite(c.get("f1")) is not None]
    weakest = min(scored, key=lambda c: c["f1"]) if len(scored) > 1 else None
    many = len(classes) > MATRIX
    if many:
        classes.sort(key=lambda c: (finite(c.get("f1")) is None, c.get("f1") or 0.0))
    return {"classes": classes[:CLASSES], "all_classes": len(classes), "weakest": weakest, "many": many}


# The signature of a PNG, its header, and nothing that could leave the attribute it stands in.
PNG = re.compile(r"data:image/png;base64,iVBORw0KGgo[A-Za-z0-9+/]{21,}={0,2}")


def mistakes(results: Table, budget: int) -> dict[str, Any]:
    """The worst mistakes with their pictures, as far as the budget goes, or their values."""
    found = list(results.get("mistakes") or [])
    cards, left_out = [], 0
    for item in found[:MISTAKES]:
        picture = item.get("picture") or ""
        if picture and (len(picture) > budget or not PNG.fullmatch(picture)):
            picture, left_out = "", left_out + 1
        budget -= len(picture)
        card = only(item, "row", "name", "target", "truth", "answer", "confidence")
        cards.append({**card, **_values(item), "picture": picture, "small": _is_small(picture), "off": _off(item)})
    return {"cards": cards, "more": max(0, len(found) - MISTAKES), "left_out": left_out}


def _values(item: Table) -> dict[str, Any]:
    values = item.get("values") or {}
    shown = [(str(name), shorten(value, 60)) for name, value in list(values.items())[:VALUES]]
    return {"shown": shown, "more_values": max(0, len(values) - VALUES)}


def _is_small(picture: str) -> bool:
    """Whether a PNG is so narrow that its pixels should stay visible when it is enlarged."""
    header = base64.b64decode(picture.partition(",")[2][:32])  # the width is in bytes 16 to 19
    return len(header) == 24 and int.from_bytes(header[16:20], "big") < 64


def only(item: Table, *names: str) -> dict[str, Any]:
    """These entries of a table, None where one is not there."""
    return {name: item.get(name) for name in names}


def _off(item: Table) -> str:
    """How far a number's answer is from the truth."""
    truth, answer = finite(item.get("truth")), finite(item.get("answer"))
    return (
        ""
        if truth is None or answer is None or item.get("confidence") is not None
        else number_text(abs(answer - truth))
    )


def network(results: Table) -> dict[str, Any]:
    """Why the network was chosen, its rivals, its layers."""
    about = results.get("network") or {}
    layers = list(about.get("layers") or [])
    counts = [finite(layer.get("parameters")) or 0.0 for layer in layers]
    most = max(counts, default=0.0) or 1.0
    paper = str(about.get("paper") or "")
    shown = [
        {**only(layer, "name", "type", "output", "parameters"), "share": round(100 * count / most, 1)}
        for layer, count in zip(layers, counts, strict=True)
    ]
    return {
        "name": about.get("name"),
        "reason": about.get("reason"),
        "rivals": [only(rival, "name", "pros", "cons") for rival in about.get("rivals") or []][:RIVALS],
        "layers": shown[:LAYERS],
        "more": max(0, len(layers) - LAYERS),
        "parameters": results.get("parameters"),
        "paper": paper,
        "link": paper if re.fullmatch(r"https://[\w./?=&%#:~+-]+", paper) else "",
    }


def entries(table: Table, prefix: str = "") -> list[tuple[str, str]]:
    """A nested table as (dotted name, text), cut after `ENTRIES`."""
    found: list[tuple[str, str]] = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            found += entries(value, f"{prefix}{name}.")
        else:
            text = listed(value, 12) if isinstance(value, list | tuple) else shorten(value, 300)
            found.append((f"{prefix}{name}", text))
    if not prefix and len(found) > ENTRIES:
        found = [*found[:ENTRIES], ("and more", f"{len(found) - ENTRIES} entries in environment.json")]
    return found


# ---- the template

# Control characters, direction overrides, lone surrogates: they hide or reorder text, or cannot be written.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(value: Any) -> Any:
    """Text with every unprintable character shown as the replacement character; other values as they are."""
    from markupsafe import Markup

    return UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=printable, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number_text,
        percent=percent,
        short=shorten,
        metric=metric_label,
        capital=capital,
        sentence=sentence,
        counted=count_text,
        shape=shape_text,
        listed=lambda names: listed(names, 12),
        auroc=lambda value: metric_text("auroc", value),
    )
    return environment.from_string(resources.files("fathom.analysis").joinpath("report.html.j2").read_text("utf-8"))
