"""What to try next: rules that read the evidence of a run and name one change each.

suggestions(evidence)    the advice of every rule that applies, the most urgent first; never empty
RULES                    for a run with results;  UNFINISHED: for one without
a rule                   (Evidence) -> Advice or None: a pure function; its docstring is the symptom
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from fathom.analysis.evidence import Evidence, best_baseline, calibration, is_better
from fathom.analysis.wording import finite, metric_words, number_text, percent, shorten
from fathom.core.errors import count_text

CLASS_WEIGHTS = "supervised.class_weights"
IN_PIECES = ("language model", "masked language model")  # whose rows say nothing about how much text there is


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


def suggestions(evidence: Evidence) -> list[Advice]:
    """What the evidence says to try next, the most urgent first; never empty."""
    rules = RULES if evidence.results else UNFINISHED
    if evidence.results.get("episodes"):
        rules = ACTING
    found = [advice for rule in rules if (advice := rule(evidence)) is not None]
    if found:
        return found
    why = "Curves, calibration and classes show no fault. Other seeds tell how much of the result was luck."
    return [Advice("Repeat it with other seeds", why, evidence.repeat("training.seeds=5"))]


def repeat_damaged(evidence: Evidence) -> Advice | None:
    """The results were changed after they were written."""
    if not evidence.is_damaged:
        return None
    return Advice("Repeat this run", "Its results are damaged and cannot be trusted.", evidence.repeat())


def resume(evidence: Evidence) -> Advice | None:
    """The run stopped before it was evaluated."""
    if evidence.results or evidence.is_damaged:
        return None
    why = f"The run ended after {evidence.length}, before it was evaluated."
    return Advice("Finish this run", why, shlex.join(["fathom", "fit", "--resume", evidence.place]))


def lower_the_rate(evidence: Evidence) -> Advice | None:
    """The loss was not finite."""
    broken = evidence.broken_epochs()
    if not broken:
        return None
    rate = finite(evidence.setting("training.learning_rate")) or finite(evidence.lines[0].get("rate")) or 1e-3
    why = f"Training loss was not a finite number at epoch {broken[0]:,g}; most often the steps were too large."
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
    if evidence.is_game or len(validation) < 3 or len(train) != len(validation):
        return None
    turn = min(range(len(validation)), key=validation.__getitem__)
    risen = validation[-1] - validation[turn]
    # Near zero any wiggle is a large share of the loss, so that of the first epoch counts too.
    if risen <= max(0.05 * abs(validation[turn]), 0.02 * abs(validation[0])) or train[-1] >= train[turn]:
        return None
    why = (
        f"Validation loss was lowest at epoch {evidence.epochs[turn]:,g} ({number_text(validation[turn])}) and rose to "
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
    if evidence.is_game or len(train) < 3 or (validation and len(validation) != len(train)):
        return None
    loss = validation or train
    quarter = max(1, len(loss) // 4)
    earlier, last = loss[-1 - quarter], loss[-1]
    if last > 0.95 * earlier or last > 1.01 * min(loss) or train[-1] > train[-1 - quarter]:
        return None
    epochs = finite(evidence.setting("training.epochs")) or evidence.epochs[-1]
    why = (
        f"{'Validation' if validation else 'Training'} loss was still falling: "
        f"from {number_text(earlier)} to {number_text(last)} in the last quarter of the run."
    )
    return Advice("Train longer", why, evidence.repeat(f"training.epochs={2 * epochs:g}"))


def calibrate(evidence: Evidence) -> Advice | None:
    """Confidence and accuracy differ (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""
    smoothing = finite(evidence.setting("training.label_smoothing")) or 0.0
    for name, target in evidence.results.get("targets", {}).items():
        found = calibration(target)
        if found is None or found.error <= 0.05:
            continue
        says = (
            f"On average it is {percent(found.confidence)} sure and {percent(found.accuracy)} right "
            f"(ECE {found.error:.3f})."
        )
        if found.confidence > found.accuracy:
            change = f"training.label_smoothing={min(smoothing + 0.1, 0.3):.2g}"
            return Advice(f"Make it less sure of '{shorten(name)}'", says, evidence.repeat(change))
        if smoothing:
            change = "training.label_smoothing=0.0"
            return Advice(f"Let it be surer of '{shorten(name)}'", says, evidence.repeat(change))
    return None


def end_early(evidence: Evidence) -> Advice | None:
    """On the first part of each series the network is worse than a baseline that was fitted on as much."""
    told = evidence.results.get("early")
    if not told or evidence.setting("augment.cut"):
        return None
    metric = str(told["metric"])
    for line in told["stretches"][:-1]:
        gaps = [table[metric] for table in line["difference"].values() if metric in table]
        if any(gap["high"] < 0 for gap in gaps):
            why = (
                f"With {line['seen']:g} of {told['longest']:g} {told['unit']}s seen, the network is worse than a baseline "
                f"fitted on as much ({metric_words(metric)}): it has learnt from whole series only."
            )
            return Advice("Let it learn from series that end early", why, evidence.repeat("augment.cut=0.5"))
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


def cross_validate(evidence: Evidence) -> Advice | None:
    """So few test rows that the interval says little."""
    rows = evidence.results.get("splits", {}).get("test")
    if not rows or rows >= 200 or evidence.results.get("task") in IN_PIECES or evidence.results.get("members"):
        return None
    why = f"Only {count_text(rows, 'row')} could be tested. Folds test every row once and narrow the interval."
    return Advice("Cross-validate", why, evidence.repeat("training.folds=5"))


def gather_rows(evidence: Evidence) -> Advice | None:
    """So few training rows that more of them is the best remedy."""
    rows = evidence.results.get("splits", {}).get("train")
    if not rows or rows >= 500 or evidence.results.get("task") in IN_PIECES:
        return None
    why = f"There were {count_text(rows, 'training row')}. No setting does as much as more rows."
    return Advice("Gather more data", why)


def act_longer(evidence: Evidence) -> Advice | None:
    """Returns were still rising at the end of an agent's training."""
    returns = list((evidence.results.get("learning") or {}).get("return") or [])
    taken = finite(evidence.results.get("environment_steps"))
    if len(returns) < 8 or taken is None:
        return None
    quarter = len(returns) // 4
    before, last = (sum(part) / len(part) for part in (returns[-2 * quarter : -quarter], returns[-quarter:]))
    if last - before <= 0.05 * (max(returns) - min(returns)):
        return None
    why = f"The return was still rising: from {number_text(before)} to {number_text(last)} in the last quarter."
    return Advice("Let it act longer", why, evidence.repeat(f"training.environment_steps={int(2 * taken)}"))


def repeat_with_seeds(evidence: Evidence) -> Advice | None:
    """One seed of an agent, whose results differ more from seed to seed than those of other networks."""
    if evidence.results.get("members"):
        return None
    why = "Agents differ much from seed to seed, and one says little (Agarwal et al. 2021)."
    return Advice("Repeat it with other seeds", why, evidence.repeat("training.seeds=5"))


Rule = Callable[[Evidence], Advice | None]
UNFINISHED: tuple[Rule, ...] = (repeat_damaged, resume, lower_the_rate)
RULES: tuple[Rule, ...] = (
    lower_the_rate,
    prefer_the_baseline,
    regularize,
    train_longer,
    calibrate,
    end_early,
    weigh_classes,
    cross_validate,
    gather_rows,
)
ACTING: tuple[Rule, ...] = (lower_the_rate, prefer_the_baseline, act_longer, repeat_with_seeds)
