"""How far back a network looks: the gradient of its loss by the distance of a step from the end of the row.

    gradient_curve(predictor, data)     [[distance, norm], ...] over up to 64 rows; empty where there is nothing to measure
    judgment(curve)                     the same in a sentence: how many steps count

    tokens or moments ──▶ vectors x_t (B, T, W) ──rest of the network──▶ loss of each row
                              ▲── ‖d loss / d x_t‖, mean over rows, by the steps that come after t

A recurrent network multiplies as many Jacobians as steps lie between: their product vanishes or explodes (Hochreiter
1991; Bengio et al. 1994; Pascanu et al. 2013), and what it cannot feel it cannot learn. What is measured is the trained
network, on rows that it has not seen: how strongly its loss still depends on each step.

The vectors are taken where the network first meets them: of a series what its preprocessing gives, of a text what the
embedding gives that is called with its tokens. A network that has no such place (a bag of words sums a table's rows, and
thresholds have no gradient) has no curve; nor has a masked language model, which looks to both sides of a gap.

In comments: B rows, T steps, W width of a step's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fathom.analysis.wording import percent
from fathom.core.contract import Batch, Field, Predictor, Schema, TensorSet
from fathom.core.device import undisturbed
from fathom.core.errors import count_text
from fathom.core.tensors import end_to_end

ROWS = 64  # measured at most
FEWEST = 8  # of them, however large the network
BUDGET = 1.5e10  # operations: about half a second of one core
SHARE = 4  # a distance counts where at least one in so many rows is as long
POINTS = 400  # kept of the curve
LEAST = 0.01  # share of the peak under which a step does not count


def gradient_curve(predictor: Predictor, data: TensorSet) -> list[list[float]]:
    """The norm of the gradient with respect to each step, as a share of the largest.

    Of a target that is a class, a number or a forecast the loss is the first that its field names; of a translation the
    nats of the whole answer; of a language model the nats of the last token alone. Of several targets the first counts.

    Args:
        predictor: what is deployed.
        data: encoded rows with their targets, which were not learnt from.

    Returns:
        [steps from the end of the row, norm], nearest first, 0 being the last step; empty where no input is a sequence
        of two steps or more, no row is there, hidden tokens are guessed from both sides, or the network gives its steps no
        gradient (or one that is not finite).
    """
    schema = predictor.schema
    written = next((name for name, item in schema.targets.items() if item.kind == "text"), None)
    name = next((name for name, item in schema.inputs.items() if item.kind in ("text", "series")), written)
    if name is None or not schema.targets or not len(data) or "masked" in predictor.scores:
        return []
    batch = _continued(schema, name, data, predictor) if name == written else _rows(name, data, predictor)
    if batch is None:
        return []
    device = next((p.device for layer in predictor.layers.values() for p in layer.parameters()), torch.device("cpu"))
    found = _gradient(predictor, name, {key: tensor.to(device) for key, tensor in batch.items()})
    return [] if found is None else _by_distance(*found)


# ---------------------------------------------------------------- which rows


def _affordable(predictor: Predictor, steps: int) -> int:
    """How many rows of `steps` steps the budget allows: forward and backward take six operations a weight and step."""
    tables = {
        id(m.weight) for layer in predictor.layers.values() for m in layer.modules() if isinstance(m, nn.Embedding)
    }
    weights = sum(p.numel() for layer in predictor.layers.values() for p in layer.parameters() if id(p) not in tables)
    return min(ROWS, max(FEWEST, int(BUDGET / max(1, 6 * weights * steps))))


def _spread(count: int, most: int) -> Tensor:
    """At most `most` of `count` numbers, evenly spread, so that a sorted set is not judged by its first rows."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _rows(name: str, data: TensorSet, predictor: Predictor) -> Batch:
    """Rows as they are; the rows of a first look tell how long they are."""
    few = data.batch(_spread(len(data), FEWEST))
    return data.batch(_spread(len(data), _affordable(predictor, few[name].shape[1])))


def _continued(schema: Schema, name: str, data: TensorSet, predictor: Predictor) -> Batch | None:
    """Stretches (B, T + 1) of the text as a language model reads it; None where it is shorter than two tokens."""
    stream = end_to_end(data, name)[0]
    length = min(schema.targets[name].shape[0] + 1, len(stream))
    if length < 2:
        return None
    first = _spread(len(stream) - length + 1, _affordable(predictor, length))
    return {name: stream[first[:, None] + torch.arange(length)]}


# ---------------------------------------------------------------- the gradient


def _gradient(predictor: Predictor, name: str, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """(B, T) norms at the steps of a sequence, and (B, T) which steps exist; None where there is no gradient.

    Args:
        predictor: what is deployed.
        name: of the sequence.
        batch: rows, targets included.
    """
    with undisturbed(), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        # cuDNN has no backward pass for recurrent networks in evaluation mode.
        with _cut(predictor, name, batch[name]) as vectors:
            loss = _loss(predictor, batch).sum()  # rows do not touch each other in evaluation mode
        if not vectors or not loss.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(loss, vectors[0], allow_unused=True)  # (B, T, W)
    if gradient is None or not gradient.isfinite().all():
        return None
    if predictor.schema.fields()[name].kind == "text":
        return gradient.norm(dim=2), batch[name][:, : gradient.shape[1]] != 0
    return gradient[..., :-1].norm(dim=2), vectors[0].detach()[..., -1] > 0  # the last channel says "exists"


@contextmanager
def _cut(predictor: Predictor, name: str, tokens: Tensor) -> Iterator[list[Tensor]]:
    """Cut the graph where the steps of a sequence become vectors; within, a pass forward leaves those in the list."""
    vectors: list[Tensor] = []

    def take(output: Tensor) -> Tensor:
        vectors.append(output.detach().requires_grad_())
        return vectors[0]

    if predictor.schema.fields()[name].kind == "text":
        handles = _on_embeddings(predictor.layers, tokens, vectors, take)
    else:
        place = list(predictor.schema.inputs).index(name)
        layer = predictor.layers["preprocess"][place]  # type: ignore[index]
        handles = [layer.register_forward_hook(lambda module, given, output: take(output))]
    try:
        yield vectors
    finally:
        for handle in handles:
            handle.remove()


def _on_embeddings(layers: Any, tokens: Tensor, vectors: list[Tensor], take: Callable[[Tensor], Tensor]) -> list[Any]:
    """Hooks that take what the first embedding called with these tokens (B, T), or all but their last, makes of them."""

    def hook(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        read = given[0] if given else None
        ours = isinstance(read, Tensor) and any(
            read.shape == part.shape and bool((read == part).all()) for part in (tokens, tokens[:, :-1])
        )
        return take(output) if ours and not vectors else output

    tables = [m for layer in layers.values() for m in layer.modules() if isinstance(m, nn.Embedding)]
    return [table.register_forward_hook(hook) for table in tables]


def _loss(predictor: Predictor, batch: Batch) -> Tensor:
    """(B,) what the gradient is taken of."""
    name, target = next(iter(predictor.schema.targets.items()))
    if target.kind != "text":
        return _first_loss(target, predictor.forward(batch)[name], batch[name])
    if predictor.schema.inputs:
        return predictor.scores["nats"](batch)
    text = batch[name]
    logits = predictor.forward({name: text[:, :-1]})[name][:, -1]  # (B, V) of the last token
    return nn.functional.cross_entropy(logits.float(), text[:, -1].long(), reduction="none")


def _first_loss(target: Field, output: Tensor, truth: Tensor) -> Tensor:
    loss = next(iter(target.losses.values()))
    return loss(output.float(), target.scale(truth) if hasattr(target, "scale") else truth)


# ---------------------------------------------------------------- the curve


def _by_distance(norms: Tensor, exists: Tensor) -> list[list[float]]:
    """The mean over rows by distance from the end, as shares of the largest; empty where all are zero.

    Args:
        norms: (B, T).
        exists: (B, T) which steps count.
    """
    after = exists.flip(1).cumsum(1).flip(1) - 1  # (B, T) steps that come after this one
    distance, norm = after[exists].cpu(), norms[exists].double().cpu()
    if not len(distance):
        return []
    rows = distance.bincount()
    means = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, distance, norm) / rows
    means = means[rows * SHARE >= len(norms)]  # how many rows are as long falls with the distance
    if len(means) < 2 or not means.any():
        return []
    peak = float(means.max())
    kept = _spread(len(means), POINTS).tolist()
    return [[place, float(f"{float(means[place]) / peak:.4g}")] for place in kept]


def judgment(curve: Sequence[tuple[int, float]]) -> str:
    """How many steps the answer depends on.

    Args:
        curve: as `gradient_curve` returns it, not empty.

    >>> judgment([(0, 1.0), (1, 0.02), (2, 0.009)])
    'The answer depends on the last 2 steps: beyond them the gradient is under 1 % of its peak.'
    """
    farthest = max((place for place, share in curve if share >= LEAST), default=0)
    last, share = curve[-1]
    if farthest == last:
        return (
            f"The answer depends on steps as far back as there are: {count_text(last, 'step')} before the end of a row, the "
            f"gradient is still {percent(share)} of its peak."
        )
    these = "step: before it" if farthest == 0 else f"{farthest + 1:,} steps: beyond them"
    return f"The answer depends on the last {these} the gradient is under {100 * LEAST:g} % of its peak."
