"""`fathom runs` and `fathom compare`: what was run, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.core.errors import DamagedError, FathomError, RunError
from fathom.core.recipe import Recipe
from fathom.core.run import RunFolder, read_json

if TYPE_CHECKING:
    from fathom.verbs.result import Run


def runs(out: str | Path = "runs") -> list[dict[str, Any]]:
    """Every run in a folder, oldest first: name, state, task, network, primary metric, seconds.

    Raises:
        RunError: there is no such folder; the usual one may be missing, before the first run.
    """
    if not Path(out).is_dir() and (Path(out).exists() or str(out) != "runs"):
        what = "is a file" if Path(out).exists() else "does not exist"
        raise RunError(f"'{out}' {what}; give the folder that holds the run folders, as in: fathom runs --out runs")
    return [_line(RunFolder(path)) for path in RunFolder.all(Path(out))]


def _line(folder: RunFolder) -> dict[str, Any]:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.file("recipe.toml").stat().st_mtime))
    line: dict[str, Any] = {"name": folder.name, "state": "unfinished", "began": began}
    try:
        results = read_json(folder.file("results.json"))
    except DamagedError:
        return {**line, "state": "damaged"}
    except RunError:
        return line
    primary = results["primary"]
    return {
        **line, "state": "finished", "task": results["task"], "network": results["network"]["name"], "metric": primary,
        **results["test"][primary], "seconds": round(results["seconds"]["train"], 1), "parameters": results["parameters"],
    }  # fmt: skip


def compare(*chosen: Run | str | Path) -> dict[str, Any]:
    """Results and recipe differences of two or more runs.

    Returns:
        "runs" (names), "metrics" (metric -> an estimate for each run), "recipe" (key -> a value for each run, only
        where they differ), "seconds", "parameters".

    Raises:
        FathomError: fewer than two runs.
    """
    if len(chosen) < 2:
        raise FathomError("compare needs two or more runs, as in: fathom compare runs/digits-1 runs/digits-2")
    opened = [RunFolder.open(run) if isinstance(run, str | Path) else run.folder for run in chosen]
    results = [read_json(folder.file("results.json")) for folder in opened]
    shared = [m for m in results[0]["test"] if all(m in r["test"] for r in results)]
    return {
        "runs": [str(folder.path) for folder in opened],
        "metrics": {m: [r["test"][m] for r in results] for m in shared},
        "recipe": differences([Recipe.read(folder.file("recipe.toml")) for folder in opened]),
        "seconds": [r["seconds"]["train"] for r in results],
        "parameters": [r["parameters"] for r in results],
    }


def differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dotted keys whose values differ, of recipes as nested tables."""
    flat = [_flat(recipe) for recipe in recipes]
    keys = sorted({key for table in flat for key in table} - {"training.name", "training.out", "training.threads"})
    found = {key: [table.get(key) for table in flat] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
