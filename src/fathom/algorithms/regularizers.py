"""Terms that compose with any gradient algorithm.

Penalty   l1 times the sum of |w| plus l2 times the sum of w squared, for the whole network or single layers
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fathom.core.contract import PENALTY, Batch, Model, Stage


class Penalty:
    """L1 and L2 on every parameter that is a matrix or filter (not on biases or normalization).

    Args:
        l1, l2: strengths for every layer; those that a layer carries itself (PENALTY) replace them for that layer.
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = l1
        self.l2 = l2

    def batch(self, batch: Batch) -> Batch:
        """Unchanged."""
        return batch

    def penalty(self, models: Mapping[str, Model], batch: Batch, outputs: Batch) -> Tensor | float:
        """The sum over all weights of all roles."""
        total: Tensor | float = 0.0
        for weight, l1, l2 in self._terms(models):
            if l1:
                total = total + l1 * weight.abs().sum()
            if l2:
                total = total + l2 * weight.square().sum()
        return total

    def _terms(self, models: Mapping[str, Model]) -> Iterator[tuple[Tensor, float, float]]:
        seen: set[int] = set()  # layers may share a parameter
        for layer in (layer for model in models.values() for layer in model.modules()):
            own = getattr(layer, PENALTY, {})
            l1, l2 = own.get("l1", self.l1), own.get("l2", self.l2)
            for parameter in layer.parameters(recurse=False) if l1 or l2 else ():
                if parameter.ndim > 1 and parameter.is_floating_point() and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter, l1, l2

    def finish(self, stage: Stage) -> None:
        """Nothing to do."""

    def applies(self, module: nn.Module) -> bool:
        """Whether there is anything to add for this network."""
        return bool(self.l1 or self.l2) or any(hasattr(layer, PENALTY) for layer in module.modules())


def regularizers(l1: float, l2: float, modules: Mapping[str, nn.Module]) -> tuple[Penalty, ...]:
    """The penalties that a recipe and its networks ask for; none where every strength is zero."""
    penalty = Penalty(l1, l2)
    return (penalty,) if any(penalty.applies(module) for module in modules.values()) else ()


__all__ = ["Penalty", "regularizers"]
