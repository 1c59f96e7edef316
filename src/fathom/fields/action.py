"""Actions: what an agent does, as the target that its network answers.

discrete   one of so many actions; an output each (a value, or the logarithm of a probability)
box        numbers within bounds; an output each, -1 to 1 standing for the bounds where both are finite
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from fathom.core.contract import Columns, Field, Predictor
from fathom.core.registry import fields
from fathom.fields.observation import OneHot

PROBABILITIES, VALUES = "probabilities", "values"


@fields.register("action")
class Action(Field):
    """What an agent does: one of several actions, or numbers within bounds.

    Attributes:
        state: "form"; of discrete actions "count", "start" (the first one's number), "scores" (what outputs are) and
            "dueling" (whether a network also answers the value of the state); of a box "low", "high" (None where there
            is no bound) and "shape".
    """

    kind = "action"
    headline = "return"

    @property
    def form(self) -> str:
        """ "discrete" or "box"."""
        return str(self.state["form"])

    @property
    def count(self) -> int:
        """Discrete actions, or numbers of one."""
        return int(self.state["count"]) if self.form == "discrete" else math.prod(self.state["shape"])

    @property
    def shape(self) -> tuple[int, ...]:
        """One number an action, or those of one."""
        return (self.count,)

    @property
    def outputs(self) -> tuple[int, ...]:
        """An output for each; before them the value of the state, where streams are dueling."""
        return (self.count + bool(self.state.get("dueling")),)

    def fit(self, chunks: Iterable[Columns]) -> None:
        """The actions or bounds, from actions that were taken."""
        parts = [self._numbers(chunk) for chunk in chunks]
        rows = np.concatenate(parts) if parts else np.zeros((0, len(self.columns)))
        if len(self.columns) == 1 and len(rows) and (rows == np.floor(rows)).all():
            first = int(rows.min())
            self.state = {"form": "discrete", "count": int(rows.max()) - first + 1, "start": first}
        else:
            self.state = {
                "form": "box",
                "low": rows.min(0).tolist(),
                "high": rows.max(0).tolist(),
                "shape": [rows.shape[1]],
            }

    def encode(self, columns: Columns, target: bool = False) -> Tensor:
        """(N,) int64 from 0, or (N, numbers) float32."""
        rows = torch.from_numpy(self._numbers(columns))
        return (rows[:, 0] - self.state["start"]).long() if self.form == "discrete" else rows.float()

    def _numbers(self, columns: Columns) -> np.ndarray:
        return np.column_stack([np.asarray(pc.cast(columns[name], pa.float64()).to_numpy()) for name in self.columns])

    def layer(self) -> nn.Module:
        """One-hot, or the numbers as they are."""
        return OneHot(self.count) if self.form == "discrete" else nn.Identity()

    def perform(self, chosen: Any) -> Any:
        """What the environment gets.

        Args:
            chosen: (N,) actions from 0, as a tensor or an array; or (N, numbers) as a tensor.

        Returns:
            (N) whole numbers, or (N, *shape) float32 within the bounds.
        """
        if self.form == "discrete":
            start = self.state["start"]
            return (chosen + start).tolist() if start else chosen.tolist()
        low, high = self._bounds()
        both = torch.isfinite(low) & torch.isfinite(high)
        spread = torch.where(both, (high - low) / 2, 1.0)
        center = torch.where(both, (high + low) / 2, 0.0)
        cut = torch.where(both, chosen.clamp(-1, 1), chosen) * spread + center
        return torch.maximum(torch.minimum(cut, high), low).reshape(-1, *self.state["shape"]).numpy()

    def _bounds(self) -> tuple[Tensor, Tensor]:
        low = torch.tensor([-math.inf if bound is None else bound for bound in self.state["low"]])
        high = torch.tensor([math.inf if bound is None else bound for bound in self.state["high"]])
        return low, high

    def greedy(self, output: Tensor) -> Tensor:
        """(N, outputs) -> the best action of each row, (N,), or the numbers themselves."""
        return output.argmax(1) if self.form == "discrete" else output

    def random(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """(N,) actions or (N, numbers), each as likely as another; without bounds a standard normal."""
        if self.form == "discrete":
            return torch.randint(self.count, (rows,), generator=generator)
        low, high = self._bounds()
        both = torch.isfinite(low) & torch.isfinite(high)
        even, normal = (
            torch.rand(rows, self.count, generator=generator),
            torch.randn(rows, self.count, generator=generator),
        )
        return torch.where(both, even * 2 - 1, normal)

    def decode(self, output: Tensor) -> list[Any]:
        """The action of each row; of discrete ones also what speaks for each: probabilities or values."""
        done = self.perform(self.greedy(output.float()))
        if self.form == "box":
            return [{"answer": row.tolist() if row.size > 1 else float(row.reshape(-1)[0])} for row in done]
        scores = self.state.get("scores", PROBABILITIES)
        rows = output.float().softmax(1) if scores == PROBABILITIES else output.float()
        names = [str(self.state["start"] + i) for i in range(self.count)]
        made = []
        for action, row in zip(done, rows.tolist(), strict=True):
            line: dict[str, Any] = {"answer": action}
            if scores == PROBABILITIES:
                line["confidence"] = round(max(row), 6)
            made.append({**line, scores: {name: round(value, 6) for name, value in zip(names, row, strict=True)}})
        return made

    def describe(self) -> str:
        """What can be done."""
        if self.form == "discrete":
            return f"{self.count} actions"
        low, high = self.state["low"], self.state["high"]
        bounds = (
            f" from {low[0]:g} to {high[0]:g}" if None not in (*low, *high) and len({*low}) == len({*high}) == 1 else ""
        )
        return f"{self.count} number{'s' * (self.count != 1)}{bounds}"


def greedy(predictor: Predictor) -> Callable[[np.ndarray], Any]:
    """The policy that is deployed: (n, ...) observations -> what each of n copies gets, without exploration."""
    action = predictor.schema.targets["action"]
    assert isinstance(action, Action), "only agents act"
    device = next((p.device for layer in predictor.layers.values() for p in layer.parameters()), torch.device("cpu"))
    answer = predictor.answer or predictor.forward

    @torch.inference_mode()
    def choose(observation: np.ndarray) -> Any:
        output = answer({"observation": torch.from_numpy(observation).to(device)})["action"]
        return action.perform(action.greedy(output.cpu()))

    return choose
