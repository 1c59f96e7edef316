"""The same work in Fathom and in its rivals, in turns, as a table of paired ratios.

    python benchmarks/run.py --work mlp --tools fathom tutorial keras-tensorflow --pairs 5 --rows 12000

Every tool lives in its own virtual environment. First each tool records the losses of its first 100 steps,
which must equal those of the tutorial loop; then the tools run in turns, and each round gives one pair with
Fathom and one with the tutorial loop. `README.md` has the rules.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import numpy
from common import CURVE_STEPS, EPOCHS, WORKS, BenchmarkError, Work

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-3
FEWEST_PAIRS = 5
RESAMPLES = 10_000
REFERENCES = ("fathom", "tutorial")


@dataclass(frozen=True)
class Tool:
    """One row of the table: the adapter it runs, and what its environment needs."""

    title: str
    adapter: str
    variables: dict[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()  # beside the pinned ones


TOOLS = {
    "fathom": Tool("Fathom", "fathom_tool.py", packages=("--editable", str(HERE.parent))),
    "tutorial": Tool("PyTorch tutorial loop", "tutorial.py"),
    "keras-tensorflow": Tool("Keras on TensorFlow", "keras_tool.py", {"KERAS_BACKEND": "tensorflow"}),
    "keras-torch": Tool("Keras on PyTorch", "keras_tool.py", {"KERAS_BACKEND": "torch"}),
    "lightning": Tool("PyTorch Lightning", "lightning_tool.py"),
    "fastai": Tool("fastai", "fastai_tool.py"),
    "skorch": Tool("skorch", "skorch_tool.py"),
}


def say(text: str) -> None:
    """Progress, on the error stream."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- environments and runs


def call(command: list[str | Path], what: str, **options) -> None:
    """Run a program quietly; when it fails, say which and show the end of what it wrote."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, check=False, **output, **options)
    if done.returncode:
        ending = done.stdout[-2000:]
        raise BenchmarkError(f"{what} failed with exit code {done.returncode}. It ended with:\n{ending}")


def interpreter(environments: Path, name: str) -> Path:
    """The Python of one tool's environment."""
    return environments / name / "bin" / "python"


def create_environment(environments: Path, name: str, python: str) -> None:
    """Make the environment of a tool unless it already holds what its requirement file asks for."""
    requirements = HERE / "environments" / f"{name}.txt"
    installed = environments / name / "requirements.txt"
    if installed.exists() and installed.read_text() == requirements.read_text():
        return
    say(f"Installing {name} into {environments / name}")
    call([python, "-m", "venv", "--clear", environments / name], f"Making the environment of {name}")
    pip = [interpreter(environments, name), "-m", "pip", "install", "--quiet"]
    call([*pip, "--no-deps", "--requirement", requirements], f"Installing {requirements.name}")
    if TOOLS[name].packages:
        call([*pip, "--no-deps", *TOOLS[name].packages], f"Installing {TOOLS[name].title}")
    installed.write_text(requirements.read_text())


@dataclass(frozen=True)
class Setting:
    """What all runs of one work share."""

    work: Work
    rows: int
    environments: Path
    data: Path

    def run(self, name: str, threads: int, epochs: int, *flags: str) -> dict:
        """One run of one tool, in a process of its own; the result its adapter wrote."""
        tool = TOOLS[name]
        variables = {
            **os.environ,
            **tool.variables,
            "PYTHONPATH": str(HERE),
            "OMP_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "BENCHMARK_STARTED": str(time.time()),
        }
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "result.json"
            command = [
                interpreter(self.environments, name), HERE / "adapters" / tool.adapter,
                "--work", self.work.name, "--rows", str(self.rows), "--epochs", str(epochs),
                "--threads", str(threads), "--data", self.data, "--json", output, *flags,
            ]  # fmt: skip
            call(command, f"{tool.title} on {self.work.name}", env=variables, cwd=folder)
            return json.loads(output.read_text())


# ---------------------------------------------------------------- curves, rounds, ratios


def compare_curves(setting: Setting, names: list[str], threads: int) -> dict[str, dict[str, float]]:
    """The largest difference of the first losses to the tutorial loop, by number type and tool.

    In float64 it must stay within the tolerance: over all steps, or at the first step where a tool trains other
    parameters (`Work.apart`). In float32 it is only told, because rounding alone is enough to part the curves of the
    larger network.
    """
    epochs = -(-CURVE_STEPS // setting.work.steps(setting.rows))
    if epochs > EPOCHS:
        raise BenchmarkError(f"--rows {setting.rows} is too few for {CURVE_STEPS} steps in {EPOCHS} epochs.")
    differences: dict[str, dict[str, float]] = {}
    unequal = []
    for dtype in ("float64", "float32"):
        losses = {}
        for name in ("tutorial", *(name for name in names if name != "tutorial")):
            losses[name] = setting.run(name, threads, epochs, "--curve", "--dtype", dtype)["losses"]
            if len(losses[name]) != CURVE_STEPS:
                raise BenchmarkError(f"{name} recorded {len(losses[name])} losses instead of {CURVE_STEPS}.")
            each = numpy.abs(numpy.subtract(losses[name], losses["tutorial"]))
            difference = float(each.max())
            differences.setdefault(dtype, {})[name] = difference
            judged = each[:1] if name in setting.work.apart else each
            if dtype == "float64" and not judged.max() <= TOLERANCE:
                unequal.append(name)
            say(f"{setting.work.name}: {name} differs from the tutorial loop by {difference:.1e} in {dtype}")
    if unequal:
        raise BenchmarkError(
            f"{', '.join(unequal)} did not do the same work as the tutorial loop on {setting.work.name}: the "
            f"first {CURVE_STEPS} losses differ by more than {TOLERANCE}. Repair the adapter; --no-curves goes on "
            f"without the comparison."
        )
    return differences


def rounds(setting: Setting, names: list[str], threads: list[int], pairs: int, epochs: int) -> list[dict]:
    """Run all tools in turns, `pairs` times; every round begins with another tool."""
    results = []
    for turn in range(pairs):
        start = turn % len(names)
        for name in (*names[start:], *names[:start]):
            for count in threads:
                result = {**setting.run(name, count, epochs), "round": turn, "tool": name}
                results.append(result)
                where = f"{setting.work.name}: round {turn + 1} of {pairs}"
                say(f"{where}, {name}, {count} threads: {steady(result):.3f} s an epoch")
    return results


def steady(result: dict) -> float:
    """Seconds an epoch from the second on."""
    return median(result["epoch_seconds"][1:])


def at_best_threads(results: list[dict], name: str) -> list[dict]:
    """The runs of a tool at the number of threads with its shortest median epoch, in the order of rounds."""
    by_threads: dict[int, list[dict]] = {}
    for result in results:
        if result["tool"] == name:
            by_threads.setdefault(result["threads"], []).append(result)
    return min(by_threads.values(), key=lambda runs: median(map(steady, runs)))


def ratio(runs: list[dict], reference: list[dict]) -> tuple[float, float, float]:
    """The median of the paired ratios of time, with the 95 % bootstrap interval of that median."""
    ratios = numpy.array([steady(run) / steady(other) for run, other in zip(runs, reference, strict=True)])
    samples = numpy.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = numpy.quantile(numpy.median(samples, axis=1), (0.025, 0.975))
    return float(numpy.median(ratios)), float(low), float(high)


# ---------------------------------------------------------------- the page


def machine() -> dict[str, str | int]:
    """The processor, its cores and the system."""
    processor = platform.processor() or platform.machine()
    description = Path("/proc/cpuinfo")
    if description.exists():
        models = [line for line in description.read_text().splitlines() if line.startswith("model name")]
        processor = models[0].split(":", 1)[1].strip() if models else processor
    return {"processor": processor, "cores": os.cpu_count() or 0, "system": platform.system()}


def table(report: dict) -> list[str]:
    """One line a tool, the fastest first."""
    results, names = report["results"], report["tools"]
    best = {name: at_best_threads(results, name) for name in names}
    references = [name for name in REFERENCES if name in names]
    heads = ["tool", "threads", "s/epoch", *(f"time ÷ {TOOLS[name].title}" for name in references)]
    heads += ["peak RSS MB", "imports s", "preparation s", "test accuracy", "curve float64", "curve float32"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in sorted(names, key=lambda name: median(map(steady, best[name]))):
        runs = best[name]
        cells = [TOOLS[name].title, str(runs[0]["threads"]), f"{median(map(steady, runs)):.3f}"]
        for reference in references:
            middle, low, high = ratio(runs, best[reference])
            cells.append("1" if reference == name else f"{middle:.2f} ({low:.2f} to {high:.2f})")
        cells += [
            f"{median(run['peak_rss_mb'] for run in runs):.0f}",
            f"{median(run['import_seconds'] for run in runs):.1f}",
            f"{median(run['prepare_seconds'] for run in runs):.1f}",
            f"{runs[0]['test_accuracy']:.4f}",
        ]
        for dtype in ("float64", "float32"):
            difference = report["curves"].get(dtype, {}).get(name)
            told = "not compared" if difference is None else f"{difference:.0e}"
            cells.append(f"({told})" if difference is not None and name in WORKS[report["work"]].apart else told)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def section(report: dict) -> list[str]:
    """The text of one work."""
    work, computer, results = WORKS[report["work"]], report["machine"], report["results"]
    versions = {f"{name} {number}" for result in results for name, number in result["versions"].items()}
    where = (
        f"{report['date']}, {computer['processor']}, {computer['cores']} cores, {computer['system']}; "
        f"load {report['load'][0]:.1f} before and {report['load'][1]:.1f} after. {work.parameters:,} parameters, "
        f"{results[0]['rows']:,} training rows, {len(results[0]['epoch_seconds'])} epochs a run, "
        f"{report['pairs']} round{'s' if report['pairs'] > 1 else ''}."
    )
    lines = [f"## {work.name}: {work.title}", "", where, ""]
    if report["pairs"] < FEWEST_PAIRS:
        lines += [f"**Fewer than {FEWEST_PAIRS} rounds: a trial of the harness, not a result.**", ""]
    return [*lines, *table(report), "", f"Versions: {', '.join(sorted(versions))}.", ""]


def page(reports: dict[str, dict]) -> str:
    """The whole Markdown page, one section a work."""
    lines = [
        "# The same work in Fathom and in other tools",
        "",
        "Written by `benchmarks/run.py`; the rules are in `benchmarks/README.md`. Same network, first weights,",
        "batch order, loss and optimizer. Seconds are those of an epoch from the second on, without validation,",
        "each tool at its better number of threads. A ratio above 1 means that the tool of the row takes longer;",
        "it is the median of paired rounds with its 95 % bootstrap interval. `curve` is the largest difference of",
        f"the first {CURVE_STEPS} losses to those of the tutorial loop; in float64 it must stay below {TOLERANCE:g}",
        "(in brackets: the tool trains other parameters, so that only its first loss must).",
        "",
    ]
    for name in WORKS:
        if name in reports:
            lines += section(reports[name])
    return "\n".join(lines)


def main() -> None:
    """Run the works one after the other; write the page and, beside it, every measurement."""
    parser = argparse.ArgumentParser(description="The same work in Fathom and in its rivals, in turns.")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--pairs", type=int, default=FEWEST_PAIRS, help="rounds; five make a result")
    parser.add_argument("--rows", type=int, help="training rows (default: all)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs a run; the first is not counted")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="each tool keeps its best")
    parser.add_argument("--no-curves", action="store_true", help="do not compare the first losses")
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "fathom-benchmarks")
    parser.add_argument("--python", default=sys.executable, help="Python 3.11 that makes the environments")
    parser.add_argument("--out", type=Path, help="Markdown page; every measurement goes beside it")
    options = parser.parse_args()
    options.envs = options.envs.expanduser().absolute()
    try:
        if not 2 <= options.epochs <= EPOCHS:
            raise BenchmarkError(f"--epochs {options.epochs} is not possible. Use 2 to {EPOCHS}; one is not counted.")
        if options.pairs < 1:
            raise BenchmarkError(f"--pairs {options.pairs} is not possible. Use 1 or more; 5 make a result.")
        print(benchmark(options))
    except BenchmarkError as error:
        say(f"Error: {error}")
        sys.exit(2)


def benchmark(options: argparse.Namespace) -> str:
    """Measure what the command line asks for; return the page."""
    tools = options.tools if options.no_curves else [*options.tools, "tutorial"]
    for name in dict.fromkeys(tools):
        create_environment(options.envs, name, options.python)
    measurements = options.out.with_suffix(".json") if options.out else None
    reports = json.loads(measurements.read_text()) if measurements and measurements.exists() else {}
    for name in options.work:
        names = [tool for tool in dict.fromkeys(options.tools) if tool not in WORKS[name].without]
        if not names:
            say(f"None of {', '.join(options.tools)} has an adapter for {name}, so it is left out.")
            continue
        data = options.envs / "data"
        command = [sys.executable, HERE / "common.py", "--data", data, "--work", name]
        call([*command, *(["--rows", str(options.rows)] if options.rows else [])], f"Preparing {name}")
        rows = options.rows or len(numpy.load(data / f"{WORKS[name].data}-train-labels.npy", mmap_mode="r"))
        setting = Setting(WORKS[name], rows, options.envs, data)
        compared = setting.work.order == "shared" and not options.no_curves
        curves = compare_curves(setting, names, max(options.threads)) if compared else {}
        load = os.getloadavg()[0]
        results = rounds(setting, names, options.threads, options.pairs, options.epochs)
        reports[name] = {
            "work": name,
            "date": date.today().isoformat(),
            "machine": machine(),
            "load": [load, os.getloadavg()[0]],
            "tools": names,
            "pairs": options.pairs,
            "curves": curves,
            "results": results,
        }
        if measurements:
            measurements.parent.mkdir(parents=True, exist_ok=True)
            measurements.write_text(json.dumps(reports, indent=1) + "\n")
            options.out.write_text(page(reports))
    return page(reports)


if __name__ == "__main__":
    main()
