"""What the command line shows people: tables of results, plans, answers, runs. Plain text where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

SHOWN = (
    "accuracy", "balanced_accuracy", "f1", "auroc", "auprc", "log_loss", "ece", "exact_match", "rmse", "mae", "r2",
    "negative_elbo", "nll", "kl", "bits_per_dimension", "psnr", "denoised_psnr", "scaled_mse", "denoised_scaled_mse",
    "return", "mean_return", "episode_length", "mase", "masked_accuracy", "perplexity",
    "bits_per_byte", "bleu", "chrf", "map", "map50", "map75",
    "classifier_fid", "classifier_kid", "pca_fid", "pca_kid", "sample_precision", "sample_recall", "modes",
)  # fmt: skip


def console() -> Console:
    """A console on stdout; color only on a terminal and without NO_COLOR."""
    # What is shown comes from users' files: nothing in it is markup.
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)


def table(*columns: str) -> Table:
    """A light table; the first column is text, others are numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i < 3)
    return made


def estimate(value: Mapping[str, float]) -> str:
    """0.948 (0.921 to 0.969)."""
    return f"{number(value['value'])} ({number(value['low'])} to {number(value['high'])})"


def number(value: float) -> str:
    """Four significant digits; three places between 0.1 and 10."""
    if abs(value) < 0.1:
        return f"{value:.4g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 10_000 else f"{value:,.0f}"


def words(metric: str) -> str:
    """A metric's name as people write it."""
    short = {
        "auroc": "AUROC",
        "auprc": "AUPRC",
        "ece": "ECE",
        "rmse": "RMSE",
        "mae": "MAE",
        "mse": "MSE",
        "r2": "R2",
        "f1": "F1",
        "mase": "MASE",
        "nll": "NLL (nats)",
        "kl": "KL (nats)",
        "negative_elbo": "negative ELBO (nats)",
        "psnr": "PSNR (dB)",
        "denoised_psnr": "denoised PSNR (dB)",
        "bleu": "BLEU",
        "chrf": "chrF",
        "map": "mAP",
        "map50": "mAP50",
        "map75": "mAP75",
        "classifier_fid": "classifier-FID",
        "classifier_kid": "classifier-KID",
        "pca_fid": "PCA-FID",
        "pca_kid": "PCA-KID",
    }
    head, _, last = metric.rpartition(".")
    return f"{head} {short.get(last, last.replace('_', ' '))}".strip()


def print_results(results: Mapping[str, Any]) -> None:
    """The network with its interval, the baselines beside it, and the verdict."""
    baselines = results.get("baseline", {})
    shown = table("test", "network", "95 % interval", *baselines)
    rates = positive_rates(results)
    for metric in [name for name in results["test"] if name.rpartition(".")[2] in SHOWN or name in rates]:
        mine = results["test"][metric]
        others = [number(values[metric]["value"]) if metric in values else "" for values in baselines.values()]
        interval = f"{number(mine['low'])} to {number(mine['high'])}"
        shown.add_row(
            rates.get(metric) or words(metric),
            number(mine["value"]),
            interval,
            *others,
            style="bold" if metric == results["primary"] else None,
        )
    out = console()
    out.print(shown)
    out.print(results["verdict"], soft_wrap=True)
    if results.get("early"):
        print_early(results["early"], results.get("member"))
    for note in results.get("evaluation_notes", []):
        out.print(f"Note: {note}", style="dim", soft_wrap=True)


def positive_rates(results: Mapping[str, Any]) -> dict[str, str]:
    """Recall and specificity where they are those of one class: metric -> how it is shown, the class named.

    Of many classes recall is the balanced accuracy, which is shown anyway.
    """
    targets = results.get("targets", {})
    made = {}
    for name, told in targets.items():
        if (positive := told.get("positive")) is not None:
            before, head = (f"{name}.", f"{name} ") if len(targets) > 1 else ("", "")
            made[f"{before}recall"] = f"{head}sensitivity to {positive}"
            made[f"{before}specificity"] = f"{head}specificity"
    return made


def print_early(told: Mapping[str, Any], member: str | None = None) -> None:
    """How early a series tells its class, and how many alarms that costs.

    Args:
        told: "early" of results.json.
        member: the one of which it tells, of several.
    """
    metric, lines = told["metric"], told["stretches"]
    rivals = list(lines[-1]["baseline"])
    alarms = told.get("alarms", {}).get("stretches", [{}] * len(lines))
    columns = [f"{told['unit']}s seen", words(metric), "95 % interval", *rivals]
    shown = table(*columns, *(["found", "alarms per event", "if they stay raised"] if "alarms" in told else []))
    for line, counts in zip(lines, alarms, strict=True):
        mine = line["test"].get(metric)
        cells = [number(mine["value"]), f"{number(mine['low'])} to {number(mine['high'])}"] if mine else ["", ""]
        others = [line["baseline"].get(name, {}) for name in rivals]
        cells += [number(other[metric]["value"]) if metric in other else "" for other in others]
        for way, figure in (("now", "sensitivity"), ("now", "alarms_per_event"), ("raised", "alarms_per_event")):
            if counts:
                cells.append(number(counts[way][figure]["value"]) if figure in counts[way] else "")
        shown.add_row(f"{line['seen']:g}", *cells)
    out = console()
    out.print(shown)
    if member:
        out.print(f"The table above is that of {member}, which is deployed.", soft_wrap=True)
    if told["says"]:
        out.print(told["says"][len(told["says"]) // 2], soft_wrap=True)
    if "alarms" in told:
        out.print(told["alarms"]["says"], soft_wrap=True)


def print_run(results: Mapping[str, Any]) -> None:
    """The result of a finished run, and what to type next."""
    print_results(results)
    out = console()
    seconds = results["seconds"]
    out.print(
        f"{results['parameters']:,} parameters; {results['kept']}; prepared in {seconds['prepare']:.1f} s, "
        f"trained in {seconds['train']:.1f} s, judged in {seconds['evaluate']:.1f} s"
    )
    out.print(f"\nRun       {results['run']}\nReport    {results['run']}/report.html", soft_wrap=True)
    for command in results["next"]:
        out.print(f"Next      {command}", soft_wrap=True)


def print_plan(made: Mapping[str, Any]) -> None:
    """What fit would do, its rivals, layers and cost."""
    out = console()
    for line in made["lines"]:
        out.print(line, soft_wrap=True)
    settings = [f"network.{key}={json_like(value)}" for key, value in made.get("settings", {}).items()]
    if settings:
        out.print(f"\nSettings  {'  '.join(settings)}", soft_wrap=True)
    if made["rivals"]:
        out.print("\nRivals")
        for rival in made["rivals"]:
            out.print(f"  {rival['name']:<12} + {rival['pros']}", soft_wrap=True)
            out.print(f"  {'':<12} - {rival['cons']}", soft_wrap=True)
    shown = table("layer", "type", "output", "parameters")
    for layer in made["layers"]:
        output = " x ".join(map(str, layer["output"]))
        shown.add_row(layer["name"], layer["type"], output, f"{layer['parameters']:,}" if layer["parameters"] else "")
    shown.add_row("all", "", "", f"{made['parameters']:,}", style="bold")
    out.print(shown)
    out.print(
        f"Time      about {duration(made['seconds'])} for {made['steps']:,} step{'s' * (made['steps'] != 1)}, "
        f"{made['threads']} thread{'s' * (made['threads'] != 1)}"
    )
    out.print(f"Memory    about {made['memory'] / 2**20:,.0f} MiB beside the libraries")


def print_play(played: Mapping[str, Any]) -> None:
    """What was drawn."""
    for i, (total, length) in enumerate(zip(played["returns"], played["lengths"], strict=True)):
        console().print(f"Episode {i + 1}: return {total:,.6g} in {length:,} action{'s' * (length != 1)}")
    console().print(f"{played['pictures']:,} pictures written to {played['file']}", soft_wrap=True)


def duration(seconds: float) -> str:
    """12 s, 3.5 minutes, 2.1 hours."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} minutes"
        if seconds < 5400
        else f"{seconds / 3600:.1f} hours"
    )


HIDDEN = {"probabilities", "columns"}  # of an answer: more than a line holds; --json shows them
NOTE = "note"  # of an answer: the command line tells it in a line of its own


def print_answers(answers: Sequence[dict[str, Any]]) -> None:
    """One row an input."""
    from fathom.verbs import drawing
    from fathom.verbs.predict import flatten

    flat = drawing.shown(answers) if drawing.are_boxes(answers) else [flatten(dict(answer)) for answer in answers]
    every = dict.fromkeys(name for row in flat for name in row)
    names = [name for name in every if name != NOTE and not HIDDEN & set(name.split(".")[:-1])]
    lines = [{name: _cell(row.get(name, "")) for name in names} for row in flat]
    screen = console()
    shown, room = table(*names), _left_for("input", lines, names, screen.width)
    for column, name in zip(shown.columns, names, strict=True):
        column.no_wrap = name == "input" or (room >= LEAST and _widest(lines, name) <= WORD)
    for line in lines:
        shown.add_row(*[_end(cell, max(room, LEAST)) if name == "input" else cell for name, cell in line.items()])
    screen.print(shown)


WORD = 24  # characters; a cell of more may stand in several lines
LEAST = 12  # characters that the end of a path keeps
GAP = 3  # between columns, and at the edges


def _widest(lines: Sequence[Mapping[str, str]], name: str) -> int:
    return max(len(name), *[len(line[name]) for line in lines]) if lines else len(name)


def _left_for(wanted: str, lines: Sequence[Mapping[str, str]], names: Sequence[str], width: int) -> int:
    """The characters that a column may take once all others have theirs: what is answered is told whole."""
    return width - GAP - sum(min(_widest(lines, name), WORD) + GAP for name in names if name != wanted)


def _end(path: str, most: int) -> str:
    """The end of a path, which tells one file from another, where the whole is too long."""
    return path if len(path) <= most else f"...{path[3 - most:]}"


def _cell(value: Any) -> str:
    """A value of an answer: three places, more where they would all be zero."""
    return str(value) if not isinstance(value, float) else f"{value:.3f}" if abs(value) >= 0.1 else number(value)


def print_embedding(made: Mapping[str, Any]) -> None:
    """How many vectors of how many numbers, and which inputs are nearest to each other."""
    rows, width = made["shape"]
    out = console()
    out.print(f"{rows:,} vector{'s' * (rows != 1)} of {width:,} numbers")
    if not made["nearest"]:
        if rows > 1:
            out.print("Among so many the nearest pairs are not searched.", style="dim")
        return
    shown = table("cosine", "between", "and")
    for column in shown.columns:
        column.justify, column.no_wrap = "left", False
    for first, second, cosine in made["nearest"]:
        shown.add_row(f"{cosine:.3f}", made["names"][first], made["names"][second])
    out.print(shown)


def print_runs(lines: Sequence[Mapping[str, Any]], out: str) -> None:
    """One row a run."""
    if not lines:
        console().print(f"No runs in {out}/ yet. Start with: fathom fit digits")
        return
    rows = [
        {
            "run": line["name"],
            "task": line.get("task", ""),
            "network": line.get("network", ""),
            "result": f"{words(line['metric'])} {estimate(line)}" if line["state"] == "finished" else line["state"],
            "seconds": str(line.get("seconds", "")),
        }
        for line in lines
    ]
    screen = console()
    names = _fitting(rows, screen.width, spare=("seconds", "task", "network"))
    shown = table(*names)
    for row in rows:
        shown.add_row(*[row[name] for name in names])
    screen.print(shown)


def _fitting(rows: Sequence[Mapping[str, str]], width: int, spare: Sequence[str]) -> list[str]:
    """The columns that fit side by side; those that can be spared go first, in this order."""
    sizes = {name: 3 + max(len(name), *[len(row[name]) for row in rows]) for name in rows[0]}
    for name in spare:
        if sum(sizes.values()) > width:
            del sizes[name]
    return list(sizes)


def print_comparison(compared: Mapping[str, Any]) -> None:
    """Runs as columns: metrics, cost, and the keys in which their recipes differ."""
    shown = table("", *compared["runs"])
    for metric, values in compared["metrics"].items():
        if metric.rpartition(".")[2] in SHOWN:
            shown.add_row(words(metric), *map(estimate, values))
    shown.add_row("seconds of training", *[f"{value:.1f}" for value in compared["seconds"]])
    shown.add_row("parameters", *[f"{value:,}" for value in compared["parameters"]])
    for key, values in compared["recipe"].items():
        shown.add_row(key, *["" if value is None else str(value) for value in values], style="dim")
    console().print(shown)


def print_listing(entries: Sequence[Mapping[str, Any]]) -> None:
    """Every component with its hyperparameters."""
    out = console()
    for entry in entries:
        year = f" ({entry['year']})" if entry.get("year") else ""
        out.print(Text(entry["name"], "bold"), f"{year}  {entry['summary']}", sep="", soft_wrap=True)
        for key, sign in (("pros", "+"), ("cons", "-"), ("paper", "paper:")):
            if entry.get(key):
                out.print(f"    {sign} {entry[key]}", soft_wrap=True)
        if sizes := _parameters(entry):
            out.print(f"    parameters: {'; '.join(sizes)}", soft_wrap=True)
        for knob in entry["hyperparameters"]:
            default = json_like(knob["default"])
            out.print(f"    {knob['name']}={default}  {knob['help']}", soft_wrap=True, style="dim")
    planned = next((entry["planned"] for entry in entries if entry.get("planned")), None)
    if planned:
        out.print(f"\n{planned}", soft_wrap=True)


def _parameters(entry: Mapping[str, Any]) -> list[str]:
    """How many parameters a network has, and for which pictures."""
    counted, sizes = entry.get("counted"), []
    if counted:
        sizes.append(f"{counted['parameters']:,} ({counted['at']})")
    if entry.get("parameters"):
        sizes.append(f"{entry['parameters']:,} as published ({entry.get('published', '3 x 224 x 224, 1000 classes')})")
    return sizes


def json_like(value: Any) -> str:
    """A default as one would type it."""
    import json

    return "" if value is None else json.dumps(value)
