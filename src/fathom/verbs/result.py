"""A finished run in Python: its results, its network, and the verbs that go on from it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fathom.core.contract import Model, Predictor, Schema
from fathom.core.errors import RunError
from fathom.core.recipe import Recipe
from fathom.core.registry import algorithms
from fathom.core.run import RunFolder, read_json, read_lines
from fathom.deliver.bundle import Bundle, read_bundle


class Run:
    """One run folder.

    Args:
        folder: where it lies.
        module: the user's own network, where the run was trained with one.
    """

    def __init__(self, folder: RunFolder, module: nn.Module | None = None) -> None:
        self.folder = folder
        self._own = module

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    def __fspath__(self) -> str:
        """So that a run stands where its path may: `fathom.fit(data, from_=run)`."""
        return str(self.path)

    @cached_property
    def results(self) -> dict[str, Any]:
        """The content of results.json."""
        self._require_finished()
        return read_json(self.folder.file("results.json"))

    def _require_finished(self) -> None:
        if not self.folder.file("results.json").exists() and not self.folder.file("model").exists():
            raise RunError(f"{self.path} has not finished, so it has no model yet. Go on with: fathom fit --resume {self.path}")

    @property
    def metrics(self) -> dict[str, Any]:
        """{"test": {metric: Estimate}, "baseline": {name: {metric: Estimate}}}."""
        from fathom.analysis.evaluate import Estimate

        def estimates(table: Mapping[str, Any]) -> dict[str, Estimate]:
            return {name: Estimate.from_json(value) for name, value in table.items()}

        baseline = {name: estimates(table) for name, table in self.results["baseline"].items()}
        return {"test": estimates(self.results["test"]), "baseline": baseline}

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe.parse(Recipe.read(self.folder.file("recipe.toml")))

    @property
    def deployed(self) -> Run:
        """The run whose weights are deployed: the member that was chosen, or the run itself.

        Its recipe says on which rows the weights were trained.
        """
        member = self.results.get("member")
        return self if member is None else Run(RunFolder(self.folder.file("members") / member), self._own)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Loss and metrics of each epoch."""
        return read_lines(self.folder.file("metrics.jsonl"))

    @cached_property
    def bundle(self) -> Bundle:
        """The loaded deployable."""
        self._require_finished()
        return read_bundle(self.folder.file("model"), self._own, adopt)

    @property
    def module(self) -> Model:
        """The network as a plain `torch.nn.Module`: encoded inputs by name -> outputs by target;
        or encoded inputs as tensors, in order -> the output of the one target."""
        return next(iter(self.bundle.models.values()))

    @property
    def schema(self) -> Schema:
        """Fitted inputs and targets."""
        return self.bundle.schema

    @property
    def predictor(self) -> Predictor:
        """What analysis and delivery work with."""
        made: Predictor = algorithms[self.bundle.algorithm].make.deploy(self.schema, self.bundle.models)
        return made

    def predict(self, *inputs: Any) -> list[dict[str, Any]]:
        """Answers for raw inputs: `run.predict("new.jpg")`, `run.predict(frame)`."""
        from fathom.verbs.predict import predict

        return predict(self, *inputs)

    def embed(self, *inputs: Any) -> np.ndarray:
        """One vector (N, D) an input row, near to those of rows that are alike: `run.embed("a text", "another")`."""
        from fathom.verbs.embed import embed

        return embed(self, *inputs)

    def generate(self, prompt: str = "", **options: Any) -> list[str]:
        """Texts that a language model writes: `run.generate("To be", length=100, temperature=0.8)`."""
        from fathom.verbs.generate import generate

        return generate(self, prompt, **options)

    def samples(self, n: int | None = None, **options: Any) -> Any:
        """Rows made from nothing: `run.samples(64).pictures` (n, C, H, W), `run.samples(10, walk=True)`, `of_class="7"`."""
        from fathom.verbs.samples import samples

        return samples(self, n, **options)

    def chat(self, turns: str | Sequence[str], **options: Any) -> str:
        """The next turn of a dialogue: `run.chat("Hello !")`, `run.chat(["Hello !", "Hi .", "How are you ?"])`."""
        from fathom.verbs.chat import chat

        return chat(self, turns, **options)

    def evaluate(self, data: Any = None, episodes: int | None = None) -> dict[str, Any]:
        """Metrics with intervals on other data, or on the test split again; of an agent on fresh episodes."""
        from fathom.verbs.evaluate import evaluate

        return evaluate(self, data, episodes)

    def play(self, output: str | Path, **options: Any) -> dict[str, Any]:
        """Watch an agent: `run.play("agent.gif", episodes=2)`."""
        from fathom.verbs.play import play

        return play(self, output, **options)

    def report(self) -> Path:
        """Write report.html again and say where it is."""
        from fathom.analysis.report import write_report

        return write_report(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = []
        for name, table in [("network", self.metrics["test"]), *self.metrics["baseline"].items()]:
            cells = "".join(f"<td>{html.escape(str(estimate))}</td>" for estimate in list(table.values())[:4])
            rows.append(f"<tr><th style='text-align:left'>{html.escape(name)}</th>{cells}</tr>")
        head = "".join(f"<th>{html.escape(metric.replace('_', ' '))}</th>" for metric in list(self.metrics["test"])[:4])
        told = html.escape(self.results["verdict"])
        return (
            f"<p><b>{html.escape(str(self.path))}</b>: {told}</p><table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
        )


def adopt(module: nn.Module, schema: Schema) -> nn.Module:
    """A user's own network behind the interface of ours, checked on two made-up rows."""
    from fathom.networks import own

    return own.adopt(module, schema, [torch.zeros(2, *item.shape) for item in schema.inputs.values()])


def load(run: str | Path | Run, module: nn.Module | None = None) -> Run:
    """A run from its folder or name.

    Args:
        run: path, or name under runs/.
        module: your own network, where the run was trained with one.

    Raises:
        RunError: there is no such run, or a file of it is damaged.
    """
    return (
        run
        if isinstance(run, Run) and module is None
        else Run(run.folder if isinstance(run, Run) else RunFolder.open(run), module)
    )
