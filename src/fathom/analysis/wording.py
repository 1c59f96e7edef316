"""Numbers, metrics and names as the short text that people read on the report.

    finite                                       what counts as a number
    number_text, percent, seconds_text,          numbers: four significant digits, thousands parted
    shape_text
    metric_label, metric_words                   metrics: their name at a figure and in a sentence
    metric_text, interval_text, tick_text        metrics: value, interval and tick, as percent, with three
                                                 decimals or with four digits
    shorten, listed, capital, sentence           texts

What is not there, or is no number, reads as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

NONE = "–"
NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "f1": "F1",
    "r2": "R²",
    "mse": "MSE",
    "rmse": "RMSE",
    "mae": "MAE",
    "mase": "MASE",
    "nll": "NLL",
    "kl": "KL",
    "elbo": "ELBO",
    "psnr": "PSNR",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ap": "AP",
    "map": "mAP",
    "map50": "mAP50",
    "map75": "mAP75",
}
WHOLE = {  # distances in the features of our own classifier, or of principal components
    "classifier_fid": "classifier-FID",
    "classifier_kid": "classifier-KID",
    "pca_fid": "PCA-FID",
    "pca_kid": "PCA-KID",
}
SHARES = {"accuracy", "precision", "recall", "specificity", "f1"}  # read as percent
FIXED = {"auroc", "auprc", "ece", "r2", "brier", "ap", "map", "map50", "map75"}  # read with three decimals
POINTS = {"bleu", "chrf"}  # from 0 to 100, read with one decimal


def finite(value: Any) -> float | None:
    """A number, or None for what is missing, text, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


# ---- numbers


def number_text(value: Any) -> str:
    """Any value as short text: four significant digits, thousands parted; what is no number as it is.

    >>> number_text(1150), number_text(0.123456), number_text(2859.69), number_text(3.2e-7), number_text(True)
    ('1,150', '0.1235', '2,860', '3.2e-07', 'True')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE if value is None else str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e9):
        return f"{int(value):,}"
    if not math.isfinite(value) or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: Any) -> str:
    """A share as percent.

    >>> percent(0.98057), percent(None)
    ('98.1 %', '–')
    """
    number = finite(share)
    return NONE if number is None else f"{100 * number:.1f} %"


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
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shape_text(value: Any) -> str:
    """A tensor's shape.

    >>> shape_text([32, 26, 26]), shape_text("10")
    ('32 × 26 × 26', '10')
    """
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---- metrics: "auroc", or "income.auroc" where a run has several targets


def metric_label(name: str) -> str:
    """A metric's name.

    >>> metric_label("balanced_accuracy"), metric_label("income.auroc"), metric_label("r2")
    ('balanced accuracy', 'income: AUROC', 'R²')
    """
    target, text = _parted(name)
    return f"{target}: {text}" if target else text


def metric_words(name: str) -> str:
    """A metric's name as it stands in a sentence.

    >>> metric_words("auroc"), metric_words("income.balanced_accuracy")
    ('AUROC', "balanced accuracy of 'income'")
    """
    target, text = _parted(name)
    return f"{text} of '{target}'" if target else text


def _parted(name: str) -> tuple[str, str]:
    """The target ("" where there is one only) and the metric as people write it."""
    target, _, metric = name.rpartition(".")
    if metric in WHOLE:
        return target, WHOLE[metric]
    return target, " ".join(NAMES.get(word, word) for word in metric.split("_"))


def metric_text(name: str, value: Any) -> str:
    """A metric's value.

    >>> metric_text("accuracy", 0.98057), metric_text("auroc", 0.9), metric_text("mse", 2859.69), metric_text("bleu", 34.26)
    ('98.1 %', '0.900', '2,860', '34.3')
    """
    number = finite(value)
    if number is None:
        return NONE
    if is_share(name):
        return percent(number)
    if FIXED & _words(name):
        return f"{number:z.3f}"
    if POINTS & _words(name):
        return f"{number:z.1f}"
    return f"{number:#.4g}" if 1e-4 <= abs(number) < 1000 else number_text(number)


def interval_text(name: str, low: Any, high: Any) -> str:
    """An interval with its unit once; empty where there is none.

    >>> interval_text("accuracy", 0.964, 0.992)
    '96.4 – 99.2 %'
    """
    if finite(low) is None or finite(high) is None:
        return ""
    return f"{metric_text(name, low).removesuffix(' %')} – {metric_text(name, high)}"


def tick_text(name: str, value: float) -> str:
    """A metric's value at a tick of an axis, with no more digits than it needs.

    >>> tick_text("accuracy", 0.975), tick_text("rmse", 0.5)
    ('97.5 %', '0.5')
    """
    return f"{100 * value:.4g} %" if is_share(name) else f"{value:.6g}"


def is_share(name: str) -> bool:
    """Whether a metric is read as percent."""
    return bool(SHARES & _words(name))


def _words(name: str) -> set[str]:
    return set(name.rpartition(".")[2].split("_"))


# ---- texts


def shorten(value: Any, length: int = 80) -> str:
    """Text cut to a length, with a sign that it was."""
    if isinstance(value, list | tuple):
        return shorten(listed(value, 8) or "none", length)
    text = number_text(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def listed(values: Sequence[Any], most: int) -> str:
    """Some values in a row, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    text = ", ".join(shorten(value, 40) for value in values[:most])
    return text + (f" and {len(values) - most} more" if len(values) > most else "")


def capital(text: str) -> str:
    """The text with a capital first letter, the others as they are; a word that has capitals within keeps its spelling.

    >>> capital("accuracy of 'y'"), capital("mAP50")
    ("Accuracy of 'y'", 'mAP50')
    """
    first = text.partition(" ")[0]
    return text if first[1:] != first[1:].lower() else text[:1].upper() + text[1:]


def sentence(text: Any) -> str:
    """A remark as a sentence.

    >>> sentence("quick, few settings")
    'Quick, few settings.'
    """
    text = capital(str(text).strip())
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
