"""The report: one offline page that says what a run learned, how well, compared with what, and what is next.

    write_report(folder)      run folder -> report.html: under 1 MB, no script, no network, light and dark
    read_evidence(folder)     run folder -> Evidence
    view(evidence)            Evidence -> the numbers and texts that the template draws, a function a section
    result_table(results)     one row a metric: the network beside its baselines, the best one marked

    run folder ──evidence──▶ Evidence ──advice, charts, wording──▶ view ──report.html.j2──▶ report.html

Everything that stands on the page comes from the files of the run. A file that is missing or damaged costs
its section, which then says so. Every text is escaped by the template: a name is data and never markup. The
page forbids scripts and requests (CSP). It stays under the limit because every list has a most, and says what
it leaves out.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.analysis import decision
from fathom.analysis.advice import suggestions
from fathom.analysis.charts import (
    EPOCHS,
    MATRIX,
    Axis,
    confidence_chart,
    confusion,
    curves,
    early_chart,
    horizon_chart,
    memory_chart,
    reliability_chart,
    scatter_chart,
    stretch_charts,
    thin,
)
from fathom.analysis.early import FIGURES
from fathom.analysis.evidence import (
    Evidence,
    Table,
    badness,
    calibration,
    estimate,
    is_better,
    primary_metric,
    ranked,
    read_evidence,
)
from fathom.analysis.memory import LEAST, judgment
from fathom.analysis.wording import (
    capital,
    finite,
    interval_text,
    is_share,
    listed,
    metric_label,
    metric_text,
    number_text,
    percent,
    seconds_text,
    sentence,
    shape_text,
    shorten,
    tick_text,
)
from fathom.core.contract import Field
from fathom.core.errors import count_text
from fathom.core.registry import fields as kinds_of_field
from fathom.core.run import RunFolder, write_atomic

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["read_evidence", "result_table", "view", "write_report"]

LIMIT = 1_000_000  # bytes of a report
# (bytes of pictures, targets shown), tried in turn until the page is under the limit.
BUDGETS = ((600_000, 12), (150_000, 12), (0, 3), (0, 1))
MODELS, METRICS, COLUMNS, MISTAKES, VALUES, CLASSES = 12, 40, 24, 24, 8, 200
ERRORS = ("rmse", "mae", "rmse_to", "mae_to")  # of a forecast at each step ahead
FIELDS, LAYERS, NOTES, ENTRIES, RIVALS, TEXT = 40, 200, 40, 80, 8, 60_000
EXAMPLES, SAMPLE, STAGES = 12, 2_000, 20


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
    shown = [target_view(name, target, pictures // 2) for name, target in targets[:most_targets]]
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
        "agent": bool(results.get("episodes")),
        "evaluation_notes": [str(note) for note in results.get("evaluation_notes", [])][:NOTES],
        "asked": asked(evidence),
        "charts": curves(evidence),
        "training": training_sentence(evidence),
        "stages": stage_rows(evidence),
        "epochs": epoch_table(evidence),
        "targets": shown,
        "sample": shorten(str(results.get("sample") or ""), SAMPLE),
        "more_targets": [name for name, _ in targets[most_targets:]],
        "early": early_view(results),
        "mistakes": mistakes(results, pictures - sum(len(item["picture"]) for part in shown for item in part["pictures"])),
        "memory": memory_view(results),
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


# ---- the result beside its baselines


@dataclass(frozen=True)
class Cell:
    """One model's value of one metric.

    Args:
        model: its name; "network" for ours.
        value: None where it was not measured.
        text: the value as text.
        interval: the interval as text, or "".
        best: whether no other model is better.
        point, left, width: where the value and its interval stand, in percent of the row's scale.
        beyond: "left" or "right" where the value lies off the scale.
    """

    model: str
    value: float | None
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
    test, baselines, primary = results.get("test", {}), results.get("baseline", {}), primary_metric(results)
    models = {"network": test, **{name: baselines[name] for name in ranked(baselines, primary)}}
    names = sorted((name for name in test if not _told_twice(name, results)), key=lambda name: name != primary)
    return [_result_row(name, models, name == primary) for name in names]


def _told_twice(metric: str, results: Table) -> bool:
    """Whether this is the recall of many classes, which is their balanced accuracy; that of one class is told."""
    target, _, name = metric.rpartition(".")
    targets = results.get("targets", {})
    told = targets.get(target, {}) if target else next(iter(targets.values()), {})
    balanced = f"{target}.balanced_accuracy".lstrip(".")
    return name == "recall" and balanced in results["test"] and len(told.get("classes") or []) > 2


def _result_row(metric: str, models: Mapping[str, Table], primary: bool) -> ResultRow:
    found = {model: estimate(values.get(metric)) for model, values in models.items()}
    values = [value for value, _, _ in found.values() if value is not None]
    best = min((badness(metric, value) for value in values), default=math.inf)
    axis = _scale(metric, list(found.values()))
    cells, differ = [], len({metric_text(metric, value) for value in values}) > 1
    for model, (value, low, high) in found.items():
        is_best = differ and value is not None and badness(metric, value) == best
        text, interval = metric_text(metric, value), interval_text(metric, low, high)
        cells.append(Cell(model, value, text, interval, is_best, *_place(axis, value, low, high)))
    return ResultRow(metric, metric_label(metric), primary, cells, axis)


def _scale(metric: str, found: Sequence[tuple[float | None, ...]]) -> Axis:
    """A range around the network and the best of the others."""
    mine, *others = found
    rival = min(others, key=lambda other: badness(metric, other[0]), default=())
    most = 1.0 if is_share(metric) else math.inf
    return Axis.around(min(number, most) for number in (*mine, *rival) if number is not None)


def _place(axis: Axis, value: float | None, low: float | None, high: float | None) -> tuple[float, float, float, str]:
    """Where a value and its interval stand on the scale, cut at its ends: point, left, width, beyond."""
    if value is None:
        return 0.0, 0.0, 0.0, ""
    beyond = "left" if value < axis.low - 1e-12 else "right" if value > axis.high + 1e-12 else ""
    ends = (value, value if low is None else low, value if high is None else high)
    point, left, right = (min(100.0, max(0.0, axis.at(end))) for end in ends)
    return round(point, 2), round(left, 2), round(right - left, 2), beyond


# ---- the sections, in the order of the page


def headline(evidence: Evidence, rows: Sequence[ResultRow]) -> dict[str, Any]:
    """The answer: what was learned, the figure that decides, and whether it is better than the baseline."""
    if not rows:
        return _no_headline(evidence)
    results, row, mine = evidence.results, rows[0], rows[0].cells[0]
    test, members = results.get("splits", {}).get("test"), len(results.get("members") or [])
    played = len((results.get("episodes") or {}).get("network") or [])
    if played:
        several = f"the interquartile mean over {count_text(members, 'seed')}, each judged " if members else ""
        lead = f"{several}on {count_text(played, 'fresh episode')}, without exploration"
    elif members:
        lead = f"on average over {count_text(members, 'member')}, each tested on rows that it had never seen"
    else:
        lead = f"on {count_text(test, 'test row') if test else 'rows'} that the network had never seen"
    return {
        "figure": f"{mine.text} {row.label}" if mine.text.endswith("%") else f"{capital(row.label)} {mine.text}",
        "lead": lead + (f". 95 % interval: {mine.interval}." if mine.interval else "."),
        "better": is_better(results),
        "cells": row.cells[:5],
        "ticks": row.axis.ticks(partial(tick_text, row.metric)),
        "label": row.label,
    }


def _no_headline(evidence: Evidence) -> dict[str, Any]:
    done = evidence.length if evidence.lines else "no epoch"
    figure = "Not evaluated" if evidence.results else "Not finished"
    lead = f"The run ended after {done}; nothing has been tested yet."
    if evidence.is_damaged:
        figure = "Damaged"
        lead = "The results of this run changed after they were written, so they are not shown."
    return {"figure": figure, "lead": lead, "better": None, "cells": [], "ticks": [], "label": ""}


def member_rows(results: Table) -> list[dict[str, str]]:
    """Members of a run with seeds or folds: name and the primary metric of each."""
    metric, rows = primary_metric(results), []
    for member in results.get("members") or []:
        value, low, high = estimate(member.get("test", {}).get(metric))
        text, interval = metric_text(metric, value), interval_text(metric, low, high)
        rows.append({"name": str(member.get("name")), "text": text, "interval": interval})
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
        "fields": fields[:FIELDS],
        "more_fields": max(0, len(fields) - FIELDS),
        "notes": notes[:NOTES],
        "more_notes": max(0, len(notes) - NOTES),
    }


def described(item: Table) -> str:
    """What a field guessed and learned, in its own words."""
    if item.get("kind") in kinds_of_field:
        return Field.from_json(item).describe()
    return listed(item.get("columns", []), 6)


def training_sentence(evidence: Evidence) -> str:
    """What was kept, and when the validation loss was lowest."""
    losses, epochs = evidence.series("validation/loss"), len(evidence.lines)
    parts: list[str] = []
    if evidence.results.get("members"):
        parts.append("The curves are those of the member that is deployed.")
    if evidence.is_game:
        parts.append("Two networks play against each other, so neither loss says how good the pictures are.")
    elif losses:
        least = min(losses)
        lowest = next(
            epoch for epoch, line in zip(evidence.epochs, evidence.lines, strict=True) if line.get("validation/loss") == least
        )
        parts.append(f"Validation loss was lowest at epoch {lowest:,g} of {evidence.epochs[-1]:,g} ({number_text(least)}).")
    if evidence.results.get("kept"):
        parts.append(f"Kept: {shorten(evidence.results['kept'], 200)}.")
    broken = len(evidence.broken_epochs())
    if broken:
        parts.append(f"In {count_text(broken, 'epoch')} the loss was not a finite number; the curve is broken there.")
    if epochs > EPOCHS:
        parts.append(f"Of {epochs:,} epochs, one in {-(-epochs // EPOCHS)} is drawn.")
    return " ".join(parts)


def stage_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """The stages of a run that has several: name, steps, and which parameters learn how fast."""
    stages = list(evidence.setting("stage", []))
    if len(stages) < 2:
        return []
    return [
        {
            "name": str(stage.get("name", "")) or f"stage {number}",
            "steps": stage.get("steps"),
            "augmented": stage.get("augment", True),
            "rates": _rates(stage.get("rates") or {}),
        }
        for number, stage in enumerate(stages[:STAGES], 1)
    ]


def _rates(rates: Table) -> str:
    """Patterns of parameters and the multiple of the learning rate that each learns at, the fastest first."""
    found = sorted(rates.items(), key=lambda item: (item[0] == "*", -(finite(item[1]) or 0.0)))
    words = [f"{shorten(glob, 60) if glob != '*' else 'all others'} {_multiple(rate)}" for glob, rate in found]
    more = f" and {len(words) - COLUMNS} more" if len(words) > COLUMNS else ""
    return ", ".join(words[:COLUMNS]) + more


def _multiple(rate: Any) -> str:
    """How fast something learns."""
    return f"× {float(f'{rate:.2g}'):g}" if finite(rate) else "frozen"


def epoch_table(evidence: Evidence) -> dict[str, Any]:
    """The numbers behind the curves."""
    lines = evidence.lines
    keys = list(dict.fromkeys(key for line in lines for key in line if "/" in key or key in ("rate", "seconds")))
    shown = thin(len(lines), 100)
    return {
        "heads": [_column_head(key) for key in keys[:COLUMNS]],
        "rows": [[f"{evidence.epochs[i]:,g}", *(number_text(lines[i].get(key)) for key in keys[:COLUMNS])] for i in shown],
        "all": len(shown) == len(lines) and len(keys) <= COLUMNS,
    }


def _column_head(key: str) -> str:
    part, _, metric = key.partition("/")
    return capital(f"{part} {metric_label(metric)}" if metric else part)


def target_view(name: str, target: Table, budget: int) -> dict[str, Any]:
    """Confusion, calibration and classes of a category; the scatter of a number; pictures with boxes, up to a budget of bytes."""
    return {
        "name": name,
        "confusion": confusion(target),
        "reliability": [chart for chart in (reliability_chart(target), confidence_chart(target)) if chart],
        "calibration": _calibration_sentence(target),
        "decision": decision_view(target),
        "scatter": scatter_chart(target),
        "forecast": forecast_view(target),
        "written": target.get("kind") == "text",
        "made": target.get("kind") == "image_sample",
        "examples": examples(target),
        "detected": detected(target),
        "pictures": named_pictures(target, budget),
        "shown": shown_figures(target, budget),
        **class_rows(target),
    }


def decision_view(target: Table) -> dict[str, Any] | None:
    """The threshold and what it does beside the likelier class, and the precision at the top; None where neither is told."""
    made = target.get("decision")
    if not made:
        return None
    ways = {"at the threshold": made.get("figures") or {}, "by the likelier class": made["likelier"]}
    names = list(made["likelier"])
    rows = [
        {"name": way, "cells": [metric_cell(figures.get(name)) for name in names]} for way, figures in ways.items() if figures
    ]
    top = [{"rows": f"{int(k):,}", "share": percent(share)} for k, share in made["top"].items()]
    heads = [capital(decision.NAMES.get(name, name)) for name in names]
    return {
        "says": made.get("says", ""), "heads": heads, "rows": rows, "top": top, "positive": made["positive"],
        "chart": decision.chart(target),
    }  # fmt: skip


def metric_cell(figure: Table | None) -> str:
    """A figure with its interval, in three digits."""
    return f"{figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})" if figure else ""


def detected(target: Table) -> dict[str, Any] | None:
    """Average precision of each class of boxes, and how right the answered ones are; None for other targets."""
    lines = [
        only(item, "name", "boxes", "ap", "ap50", "ap75", "answered", "precision", "recall")
        | {"color": COLOR.fullmatch(str(item.get("color"))) and item["color"]}
        for item in target.get("detected") or []
    ]
    return {"lines": lines[:CLASSES], "confidence": target.get("confidence"), "all": len(lines)} if lines else None


COLOR = re.compile(r"#[0-9a-f]{6}")


def fitting(pictures: Sequence[str], budget: int) -> list[str]:
    """The pictures, as far as the budget of bytes goes; what is no PNG is left out."""
    shown = []
    for picture in pictures:
        if len(picture) <= budget and PNG.fullmatch(picture):
            shown.append(picture)
            budget -= len(picture)
    return shown


def named_pictures(target: Table, budget: int) -> list[dict[str, str]]:
    """Pictures with their names, as far as the budget of bytes goes."""
    told = [item for item in target.get("pictures") or [] if isinstance(item, Mapping)]
    found = {str(item.get("picture")): str(item.get("name")) for item in told}
    return [{"picture": picture, "name": found[picture]} for picture in fitting(list(found), budget)]


def shown_figures(target: Table, budget: int) -> list[dict[str, str]]:
    """Sentences with a picture each, as far as the budget of bytes goes."""
    told = [(str(item.get("says")), str(item.get("picture"))) for item in target.get("pictured") or []]
    kept = set(fitting([picture for _, picture in told], budget))
    return [{"says": says, "picture": picture} for says, picture in told if picture in kept]


def forecast_view(target: Table) -> dict[str, Any] | None:
    """Sentences, charts and tables of a forecast; None for other targets."""
    lines = list(target.get("horizons") or [])
    if not lines:
        return None
    names = [name for name in lines[0] if name != "step"]
    judgment = None if target.get("returns") else target.get("judgment")  # that of prices stands beside the result
    return {
        "says": [text for text in (judgment, _test_sentence(target), _direction_sentence(target)) if text],
        "charts": [chart for chart in (*stretch_charts(target), horizon_chart(target)) if chart is not None],
        "names": names[:MODELS],
        "horizons": [
            {"step": line["step"], "cells": [[number_text(line[n].get(k)) for k in ERRORS] for n in names[:MODELS]]}
            for line in lines
        ],
        "trading": _trading(target.get("trading")),
    }


def early_view(results: Table) -> dict[str, Any] | None:
    """How early a series tells its class, and the alarms; None where the rows are no series."""
    told = results.get("early")
    if not told:
        return None
    metric, lines = str(told["metric"]), told["stretches"]
    names = ranked(lines[-1]["baseline"], metric)
    chart = early_chart(told, names[:2])
    metrics = [name for name in dict.fromkeys([metric, "auprc"]) if name in lines[-1]["test"]]
    return {
        "says": " ".join(told["says"]),
        "chart": chart,
        "unit": told["unit"],
        "names": ["network", *names],
        "tables": [
            {"label": metric_label(name), "rows": [_early_row(name, line, names) for line in lines]} for name in metrics
        ],
        "alarms": _alarm_view(told),
    }


def _early_row(metric: str, line: Table, names: Sequence[str]) -> dict[str, Any]:
    tables = [line["test"], *(line["baseline"].get(name, {}) for name in names)]
    found = [estimate(table.get(metric)) for table in tables]
    return {
        "seen": f"{line['seen']:g}",
        "cells": [(metric_text(metric, value), interval_text(metric, low, high)) for value, low, high in found],
    }


def _alarm_view(told: Table) -> dict[str, Any] | None:
    """What alarms find and cost, once by the answers of the moment and once where they stay raised."""
    alarms = told.get("alarms")
    if not alarms:
        return None
    rows = [
        {"seen": f"{line['seen']:g}", **{way: [_alarm_cell(counts[way], name) for name in FIGURES] for way in ("now", "raised")}}
        for line, counts in zip(told["stretches"], alarms["stretches"], strict=True)
    ]
    return {"says": alarms.get("says", ""), "rows": rows, "event": alarms["event"]}


def _alarm_cell(counts: Table, name: str) -> tuple[str, str]:
    value, low, high = estimate(counts.get(name))
    shown = "alarms" if name == "alarms_per_event" else "precision"  # all but that one are shares
    return metric_text(shown, value), interval_text(shown, low, high)


def _test_sentence(target: Table) -> str:
    """What the test of Diebold and Mariano says."""
    test = target.get("test")
    if not test:
        return ""
    p = finite(test.get("p"))
    found = "smaller" if test["statistic"] < 0 else "larger"
    sure = "" if p is not None and p < 0.05 else ", which chance alone may explain"
    shown = "below 0.001" if p is not None and p < 0.001 else f"= {number_text(round(p, 3) if p is not None else None)}"
    return f"Its squared errors are {found} than those of the {test['against']} (Diebold and Mariano: p {shown}){sure}."


def _direction_sentence(target: Table) -> str:
    """How often the sign of a return was right, beside always saying "up"."""
    found = target.get("direction")
    if not found:
        return ""
    span = f"95 % interval {percent(found['low'])} to {percent(found['high'])}"
    return (
        f"The direction of the next return was right in {percent(found['value'])} of {count_text(found['rows'], 'moment')} "
        f"({span}); always saying 'up' is right in {percent(found['rises'])}."
    )


def _trading(found: Table | None) -> dict[str, Any] | None:
    """The stated rule beside buying and holding."""
    if not found:
        return None
    rows = [
        {
            "name": name,
            "return": percent(found[key].get("return")),
            "volatility": percent(found[key].get("volatility")),
            "sharpe": metric_text("sharpe", found[key].get("sharpe")),
        }
        for name, key in (("The rule", "rule"), ("Buy and hold", "hold"))
    ]
    says = (
        f"The rule: hold where the forecast of the next return is positive, else hold nothing; each of its "
        f"{count_text(found['changes'], 'change')} costs {10_000 * found['cost']:g} basis points. It was invested in "
        f"{percent(found['invested'])} of {count_text(found['rows'], 'moment')}, of which a year has {found['year']:,.0f} "
        f"({found['moment']}). What a rule earned in the past says little about what it will earn."
    )
    return {"rows": rows, "says": says}


def _calibration_sentence(target: Table) -> str:
    found = calibration(target)
    if found is None:
        return ""
    judged = f"It is too {'sure' if found.confidence > found.accuracy else 'unsure'}"
    if found.error <= 0.05:
        judged = "Its confidence can be trusted"
    figures = f"on average {percent(found.confidence)} sure, {percent(found.accuracy)} right"
    return f"{judged}: {figures}. Expected calibration error {found.error:.3f}."


def examples(target: Table) -> list[dict[str, str]]:
    """Texts that were written, beside their source and what a person wrote."""
    found = list(target.get("examples") or [])[:EXAMPLES]
    return [{name: shorten(str(item.get(name) or ""), 400) for name in ("source", "reference", "answer")} for item in found]


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
    """The worst mistakes with their pictures, as far as the budget of bytes goes, or their values."""
    found = list(results.get("mistakes") or [])
    cards, left_out, strange = [], 0, 0
    for item in found[:MISTAKES]:
        picture = item.get("picture") or ""
        if picture and not PNG.fullmatch(picture):
            picture, strange = "", strange + 1
        if len(picture) > budget:
            picture, left_out = "", left_out + 1
        budget -= len(picture)
        values = [(str(name), shorten(value, 60)) for name, value in (item.get("values") or {}).items()]
        cards.append(
            {
                **only(item, "row", "name", "target", "truth", "answer", "confidence", "at"),
                "shown": values[:VALUES],
                "more_values": max(0, len(values) - VALUES),
                "picture": picture,
                "small": _is_small(picture),
                "off": _off(item),
            }
        )
    return {"cards": cards, "more": max(0, len(found) - MISTAKES), "left_out": left_out, "strange": strange}


def _is_small(picture: str) -> bool:
    """Whether a PNG is so narrow that its pixels should stay visible when it is enlarged."""
    header = base64.b64decode(picture.partition(",")[2][:32])  # the width is in bytes 16 to 19
    return len(header) == 24 and int.from_bytes(header[16:20], "big") < 64


def _off(item: Table) -> str:
    """How far a number's answer is from the truth."""
    truth, answer = finite(item.get("truth")), finite(item.get("answer"))
    if truth is None or answer is None or item.get("confidence") is not None:
        return ""
    return number_text(abs(answer - truth))


def only(item: Table, *names: str) -> dict[str, Any]:
    """These entries of a table, None where one is not there."""
    return {name: item.get(name) for name in names}


def memory_view(results: Table) -> dict[str, Any] | None:
    """How far back the network looks: a sentence and the curve; None where no sequence was read."""
    pairs = [(finite(distance), finite(share)) for distance, share in results.get("memory") or []]
    curve = [(int(distance), share) for distance, share in pairs if distance is not None and share is not None]
    return {"says": judgment(curve), "chart": memory_chart(curve, LEAST)} if curve else None


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
        capital=capital,
        sentence=sentence,
        counted=count_text,
        shape=shape_text,
        listed=lambda names: listed(names, 12),
        auroc=lambda value: metric_text("auroc", value),
    )
    return environment.from_string(resources.files("fathom.analysis").joinpath("report.html.j2").read_text("utf-8"))
