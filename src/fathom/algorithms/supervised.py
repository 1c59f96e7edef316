"""Supervised learning: one network, one loss, one `minimize` a step.

The loss is the sum over targets of `loss_weight[target]` times the weighted mean of its rows. Numbers are standardized,
so that a loss of 1.0 means "as bad as always answering the mean", and fair beside others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.core.contract import (
    WEIGHT,
    Algorithm,
    Batch,
    Field,
    Loss,
    Model,
    Predictor,
    Schema,
    TensorSet,
    hyperparameter,
)
from fathom.core.errors import FathomError, unknown
from fathom.core.optimize import Optimizer
from fathom.core.registry import algorithm
from fathom.core.validation import validation
from fathom.core.views import over_views


@algorithm("supervised", suits=lambda schema: bool(schema.targets))
class Supervised(Algorithm):
    """Learn targets from inputs."""

    loss: str | dict[str, str] = hyperparameter(
        "", help="name of a loss, or one for each target; the field's first where empty"
    )
    loss_weight: dict[str, float] = hyperparameter({}, help="target -> how much its loss counts, 1.0 where not named")
    class_weights: Literal["none", "balanced"] = hyperparameter(
        "none", search=["none", "balanced"], help="rare classes count more"
    )

    def build(self) -> None:
        """One optimizer over the whole network."""
        context = self.context
        self.model = self.models["model"]
        self.optimizers = {"model": Optimizer({"model": self.model}, context.recipe.training, context.clock)}
        self.terms = {name: self._term(name, target) for name, target in self.schema.targets.items()}

    def _term(self, name: str, target: Field) -> Callable[[Tensor, Tensor], Tensor]:
        """(output, encoded target) -> (B,) losses, with smoothing, class weights and scaling settled beforehand."""
        loss = self._loss(name, target)
        smoothing = self.context.recipe.training.label_smoothing
        weights = self.context.class_weights.get(name)
        if hasattr(target, "scale"):
            return lambda output, truth: loss(output, target.scale(truth))
        if target.kind != "category":
            return loss

        def category(output: Tensor, truth: Tensor) -> Tensor:
            each = loss(output, smooth(truth, output.shape[1], smoothing) if smoothing else truth)
            if weights is None:
                return each
            shares = weights[truth] if truth.ndim == 1 else truth @ weights
            return each * shares

        return category

    def _loss(self, name: str, target: Field) -> Loss:
        if name in self.context.losses:
            return checked(self.context.losses[name], name)
        wanted = self.loss.get(name, "") if isinstance(self.loss, dict) else self.loss
        if not wanted:
            return next(iter(target.losses.values()))
        if wanted not in target.losses:
            raise FathomError(unknown("loss", wanted, target.losses, f"supervised.loss for '{name}', a {target.kind}"))
        return target.losses[wanted]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Predict, measure, minimize."""
        for regularizer in self.regularizers:
            batch = regularizer.batch(batch)
        outputs = self.model(batch)
        loss = self.total(outputs, batch)
        measured = loss.detach()
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.models, batch, outputs)
        self.optimizers["model"].minimize(loss)
        return {"loss": measured}

    def total(self, outputs: Batch, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar; penalties are not in it."""
        total: Tensor | None = None
        for name, term in self.terms.items():
            each = over_members(term, outputs[name].float(), batch[name], len(self.schema.targets[name].outputs))  # (B,)
            mean = (
                each.mean()
                if WEIGHT not in batch
                else (each * batch[WEIGHT]).sum() / batch[WEIGHT].sum().clamp(min=1e-12)
            )
            weight = self.loss_weight.get(name, 1.0)
            mean = mean if weight == 1.0 else mean * weight
            total = mean if total is None else total + mean
        assert total is not None, "a schema without targets"
        return total

    def validate(self, data: TensorSet) -> dict[str, float]:
        """The loss that is trained, penalties apart, and every metric."""
        return validation(self, self.total, self.watched(data))

    @classmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """The network in evaluation mode, its answers averaged over the views that the inputs state."""
        model = models["model"]

        def forward(batch: Batch) -> Batch:
            model.eval()
            return dict(model(batch))

        def embed(batch: Batch) -> Tensor:
            model.eval()
            return model.features(batch).flatten(1)

        divided = hasattr(model.module, "features") and hasattr(model.module, "decide")
        layers = {"preprocess": model.preprocess, "network": model.module}
        return Predictor(schema, layers, over_views(schema, forward), scores={"embed": embed} if divided else {})


def over_members(term: Loss, output: Tensor, truth: Tensor, dimensions: int) -> Tensor:
    """(B,) losses; of a network of k members the mean of their own losses, so that each learns by itself.

    Args:
        term: (output, target) -> (B,).
        output: (B, *outputs), or (B, k, *outputs) from a network of members in training.
        truth: (B, ...) encoded target.
        dimensions: of the outputs of one row.
    """
    if output.ndim == 1 + dimensions:
        return term(output, truth)
    rows, members = output.shape[:2]
    each = term(output.flatten(0, 1), truth.repeat_interleave(members, 0))  # (B * k,)
    return each.reshape(rows, members).mean(1)


def smooth(truth: Tensor, classes: int, share: float) -> Tensor:
    """(B,) or (B, K) targets -> (B, K) with `share` spread over all classes (Szegedy et al. 2016)."""
    rows = F.one_hot(truth, classes).float() if truth.ndim == 1 else truth
    return rows * (1 - share) + share / classes


def checked(loss: Loss, name: str) -> Loss:
    """A user's own loss: one value a row, or one for the batch."""

    def call(output: Tensor, target: Tensor) -> Tensor:
        value = loss(output, target)
        if not isinstance(value, Tensor) or value.shape not in (torch.Size([]), output.shape[:1]):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise FathomError(
                f"The loss given for '{name}' returned {shape}; "
                f"it should return one number a row, ({len(output)},), or one in all."
            )
        return value.expand(len(output)) if value.ndim == 0 else value

    return call
