"""The laws of the design, read off the source with `ast` or shown by running it.

Imports, size of the loop, nothing that executes what it loads, one `.backward()`, the frozen table of flags, purity of
`stages()`, callbacks that leave no trace, nothing fitted on rows that are not training rows.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fathom
from fathom.core.callbacks import Best, Checkpoint, EarlyStop, History, Progress, TensorBoard
from fathom.core.contract import Algorithm, Clock, Columns, Context, Model, Schema, TensorSet
from fathom.core.device import Device, random_state, seed_everything
from fathom.core.diagnose import non_finite
from fathom.core.flags import FLAGS
from fathom.core.loop import train
from fathom.core.prepare import prepare
from fathom.core.recipe import Data, Recipe
from fathom.core.registry import algorithms, fields, networks, sources
from fathom.core.run import CheckpointStore
from fathom.core.state import state_of
from fathom.sources import open_source

SOURCE = Path(fathom.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in FILES}

LAYERS = ("sources", "networks", "algorithms", "analysis", "deliver")
MAY_IMPORT = {
    "core": {"core"},
    "fields": {"core", "fields"},
    **{layer: {"core", "fields", layer} for layer in LAYERS},
    "verbs": {"core", "fields", *LAYERS, "verbs"},
    "cli": {"verbs", "console", "core.errors", "core.flags", "core.recipe"},
    "console": {"verbs", "core"},
    "__main__": {"cli"},
    "__init__": {"verbs", "core"},
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names below `fathom` that a file imports, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            if (node.module or "").split(".")[0] == "fathom":
                for name in node.names:
                    yield f"{node.module}.{name.name}".removeprefix("fathom").removeprefix(".")
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "fathom":
                    yield name.name.removeprefix("fathom").removeprefix(".")


@pytest.mark.parametrize("file", TREES)
def test_imports_follow_the_arrows(file: str) -> None:
    layer = file.split("/")[0].removesuffix(".py")
    allowed = MAY_IMPORT[layer]
    for name in imported(TREES[file]):
        inside = any(name == part or name.startswith(f"{part}.") for part in allowed)
        assert inside, f"{file} imports fathom.{name}; {layer} may import {', '.join(sorted(allowed))}"


def test_the_import_reader_sees_every_form() -> None:
    text = "import fathom.verbs.fit\nfrom fathom.core import split\ndef f():\n    from fathom import fields"
    assert sorted(imported(ast.parse(text))) == ["core.split", "fields", "verbs.fit"]


@pytest.mark.parametrize(
    "code", ["import fathom", "import sys; sys.argv = ['fathom', '--help']; from fathom.cli import main; main()"]
)
def test_start_loads_nothing_heavy(code: str) -> None:
    heavy = ("torch", "pyarrow", "sklearn", "matplotlib", "scipy", "pydantic")
    watched = f"import atexit, sys; atexit.register(lambda: print('LOADED', [m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{watched}\n{code}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.rstrip().endswith("LOADED []")


def test_the_loop_is_short_and_names_nobody() -> None:
    text = (SOURCE / "core" / "loop.py").read_text("utf-8")
    assert len(text.splitlines()) < 100
    words = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    words |= {str(node.value) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    named = {name for registry in (algorithms, networks, sources) for name in registry.names()}
    assert {word.lower() for word in words} & named == set()


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "yaml.load", "numpy.load", "torch.hub.load"}
FORBIDDEN_NAMES = {"eval", "exec", "__import__"}
# Law 5: a file whose checksum is listed, of which tensors alone are read.
EXCEPTIONS = {
    "fields/published.py": ["torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)"],
}


def executes(tree: ast.AST) -> Iterator[str]:
    """Whatever in a file could run code that it loads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.jit"):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            pickles = any(
                word.arg == "allow_pickle" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
                for word in node.keywords
            )
            if called in FORBIDDEN_CALLS | FORBIDDEN_NAMES or pickles:
                yield ast.unparse(node)


@pytest.mark.parametrize("file", TREES)
def test_nothing_that_is_loaded_can_run(file: str) -> None:
    assert list(executes(TREES[file])) == EXCEPTIONS.get(file, [])


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "torch.load(p)", "eval('1')", "np.load(p, allow_pickle=True)",
     "torch.jit.load(p)", "np.load(p, allow_pickle=flag)", "import yaml"],
)  # fmt: skip
def test_the_scan_finds_what_it_looks_for(text: str) -> None:
    assert list(executes(ast.parse(text)))


def test_backward_is_called_in_one_place() -> None:
    callers = {
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    }
    assert callers == {"core/optimize.py"}


def test_no_fault_is_swallowed() -> None:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{file}: a bare except"


def test_the_flags_are_frozen() -> None:
    """Users write these names in scripts; changing one is a decision, noted in the CHANGELOG."""
    assert {name: flag.key for name, flag in FLAGS.items()} == {
        "target": "data.target",
        "input": "data.input",
        "time": "data.time",
        "horizon": "data.horizon",
        "group": "data.group",
        "valid": "data.validation",
        "test": "data.test",
        "limit": "data.limit",
        "network": "network.name",
        "from": "network.from",
        "algorithm": "training.algorithm",
        "epochs": "training.epochs",
        "steps": "training.steps",
        "minutes": "training.minutes",
        "batch": "training.batch",
        "lr": "training.learning_rate",
        "seed": "training.seed",
        "seeds": "training.seeds",
        "folds": "training.folds",
        "device": "training.device",
        "name": "training.name",
        "out": "training.out",
    }


def task(steps: int = 12) -> tuple[Algorithm, Clock, dict[str, TensorSet]]:
    seed_everything(3)
    x = np.random.default_rng(0).normal(size=(40, 2))
    columns = Columns({"a": x[:, 0], "b": x[:, 1], "y": (x[:, 0] > 0).astype(int)})
    schema = Schema({"x": fields["number"].make(["a", "b"])}, {"y": fields["category"].make(["y"])})
    for item in schema.fields().values():
        item.fit([columns])
    data = TensorSet({"x": schema.inputs["x"].encode(columns), "y": schema.targets["y"].encode(columns, target=True)})
    recipe = Recipe.parse({"training": {"steps": steps, "batch": 10, "average": 0.9}})
    module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    clock = Clock()
    context = Context(schema, {"model": Model(schema, module)}, recipe, clock, torch.device("cpu"))
    return algorithms["supervised"].make(context), clock, {"train": data}


def test_stages_are_pure() -> None:
    algorithm, _, data = task()
    before = random_state()
    first, second = algorithm.stages(data), algorithm.stages(data)
    assert [(s.name, s.steps, dict(s.rates)) for s in first] == [(s.name, s.steps, dict(s.rates)) for s in second]
    assert all(one.data is other.data for one, other in zip(first, second, strict=True))
    assert torch.equal(before["torch"], random_state()["torch"])


def test_callbacks_leave_no_trace_in_training(tmp_path: Path) -> None:
    """Every watcher at once, with a validation that draws random numbers: weights and random state end the same."""
    endings = []
    for watched in (False, True):
        algorithm, clock, data = task()
        watchers = []
        if watched:
            history = History(4, lambda: {"loss": float(torch.rand(()))}, lambda: 0.1, tmp_path / "metrics.jsonl")
            best = Best(history, "loss", algorithm.models["model"].state_dict)
            store = CheckpointStore(tmp_path / "checkpoints")
            watchers = [
                history, best, EarlyStop(best, 99), TensorBoard(history, tmp_path / "tensorboard"),
                Progress(history, "loss", StringIO()),
                Checkpoint(store, lambda a=algorithm, c=clock: state_of(a, c, {}), 0, history),
            ]  # fmt: skip
        train(algorithm, algorithm.stages(data), watchers, clock, Device.choose("cpu"), non_finite)
        endings.append((algorithm.models["model"].state_dict(), random_state()))
    (bare, bare_random), (seen, seen_random) = endings
    assert all(torch.equal(bare[name], seen[name]) for name in bare)
    assert torch.equal(bare_random["torch"], seen_random["torch"])
    assert torch.equal(bare_random["numpy"], seen_random["numpy"])
    assert bare_random["python"] == seen_random["python"]


def test_nothing_is_fitted_on_rows_that_judge() -> None:
    """Law 3: other values, words and gaps in validation and test rows leave what was fitted as it was."""
    generator = np.random.default_rng(0)
    rows = 60
    parts = {"train": np.arange(40), "validation": np.arange(40, 50), "test": np.arange(50, 60)}
    frame = {
        "number": generator.normal(size=rows).tolist(),
        "word": [f"w{i % 5}" for i in range(rows)],
        "y": [["no", "yes"][i % 2] for i in range(rows)],
    }
    other = {name: list(values) for name, values in frame.items()}
    for row in range(40, 60):
        other["number"][row], other["word"][row] = 1e6 + row, "unseen"
    other["number"][45] = None

    def fitted(table: dict[str, list[object]], training: dict[str, np.ndarray]) -> object:
        import pyarrow as pa

        source = open_source(pa.table(table), Data(target=["y"]))
        source.given_splits = lambda: training
        return prepare(source, Data(target=["y"]), seed=0).schema.to_json()

    assert fitted(frame, parts) == fitted(other, parts)
    moved = {"train": np.arange(20, 60), "validation": np.arange(10), "test": np.arange(10, 20)}
    assert fitted(frame, parts) != fitted(other, moved), "the comparison can fail"
