"""Object detection: a network that says at every place what has its middle there, and how far it reaches.

    Detection      one `minimize` a step: heat map and boxes
    heat_loss      penalty-reduced focal loss of the heat map (Law & Deng 2018; Zhou et al. 2019)
    giou           generalized intersection over union (Rezatofighi et al. 2019)
    aims           what the network should say: a Gaussian around every middle, and the box of every place near one
    found          dense output -> boxes: peaks, then non-maximum suppression

After TTFNet (Liu et al. 2020) every place in the inner part of a box learns its sides, not its middle alone: many times
as many examples from each picture, so that it learns in a fraction of the steps. Each box counts by the logarithm of its
area, shared among its places by the Gaussian.

In comments: B pictures, M boxes of one, K classes, h and w cells of the dense output, D answered boxes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.core.contract import Algorithm, Batch, Model, Predictor, Schema, TensorSet, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.optimize import Optimizer
from fathom.core.registry import algorithm
from fathom.fields import box_metrics

ALPHA = 0.54  # three sigmas of a Gaussian, and what is learnt, reach so far from the middle to the sides (TTFNet)
PENALTY, FOCUS = 4.0, 2.0  # beta and alpha of the focal loss
FARTHEST = 7.0  # e^7 cells is farther than any side
CANDIDATES = 4  # times the boxes that are answered at most: peaks that suppression chooses from
VALIDATED = 32  # pictures at once


def target_of(schema: Schema) -> str:
    """The name of the target of boxes."""
    return next(name for name, item in schema.targets.items() if item.kind == "boxes")


@algorithm(
    "detection",
    task="object detection",
    suits=lambda schema: any(item.kind == "boxes" for item in schema.targets.values()),
)
class Detection(Algorithm):
    """Boxes with classes in a picture."""

    box_weight: float = hyperparameter(
        5.0, search=(1.0, 10.0, "log"), help="how much the loss of the boxes counts beside that of the heat map"
    )

    @classmethod
    def roles(cls, schema: Schema) -> dict[str, Schema]:
        """One network.

        Raises:
            FathomError: there are other targets beside the boxes, rows have weights, or answers are means over views.
        """
        views = max((item.options.get("views", 1) for item in schema.inputs.values()), default=1)
        if views > 1:
            raise FathomError(
                f"data.image.views = {views} takes the mean of answers, and boxes have none; leave it out."
            )
        if "weight" in schema.special:
            raise FathomError(f"data.weight = '{schema.special['weight']}' has no meaning for boxes yet; leave it out.")
        if len(schema.targets) > 1:
            names, target = ", ".join(schema.targets), target_of(schema)
            raise FathomError(f"Boxes are learnt alone, but the targets are {names}. Name one: --target {target}.")
        return {"model": schema}

    def build(self) -> None:
        """One optimizer. What boxes are judged by is looked for before anything is learnt."""
        box_metrics.require_coco()
        self.model, self.target = self.models["model"], target_of(self.schema)
        self.optimizers = {"model": Optimizer(self.models, self.context.recipe.training, self.context.clock)}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Look, measure, minimize."""
        for regularizer in self.regularizers:
            batch = regularizer.batch(batch)
        outputs = self.model(batch)
        heat, boxes = losses(outputs[self.target].float(), batch[self.target])
        loss = heat + self.box_weight * boxes
        measured = {"loss": loss.detach(), "heat": heat.detach(), "boxes": boxes.detach()}
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.models, batch, outputs)
        self.optimizers["model"].minimize(loss)
        return measured

    def validate(self, data: TensorSet) -> dict[str, float]:
        """The loss that is trained, penalties apart, and COCO's metrics."""
        target, device = self.schema.targets[self.target], self.context.device
        total, answers = 0.0, []
        self.model.eval()
        with torch.inference_mode():
            for batch in data.batches(VALIDATED):
                moved = {name: tensor.to(device) for name, tensor in batch.items()}
                dense = self.model(moved)[self.target].float()
                heat, boxes = losses(dense, moved[self.target])
                total += float(heat + self.box_weight * boxes) * len(dense)
                answers.append(answered(dense, target).cpu())
        metrics = target.metrics(torch.cat(answers), data.column(self.target))
        return {"loss": total / len(data), **{name: float(value) for name, value in metrics.items()}}

    @classmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """The network in evaluation mode; its answer is boxes."""
        model, name = models["model"], target_of(schema)

        def forward(batch: Batch) -> Batch:
            model.eval()
            return dict(model(batch))

        def answer(batch: Batch) -> Batch:
            rows = torch.arange(len(next(iter(batch.values())))).split(VALIDATED)  # maps of whole pictures are large
            parts = [{key: tensor[index] for key, tensor in batch.items()} for index in rows]
            return {name: torch.cat([answered(forward(part)[name].float(), schema.targets[name]) for part in parts])}

        return Predictor(schema, {"preprocess": model.preprocess, "network": model.module}, forward, answer)


def answered(dense: Tensor, target: object) -> Tensor:
    """(B, D, 6) the boxes that a dense output (B, 4 + K, h, w) says, under the options of their field."""
    return found(dense, target.most, target.overlap)  # type: ignore[attr-defined]


# What is learnt


def losses(dense: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of the heat map and that of the boxes, each a scalar.

    Args:
        dense: (B, 4 + K, h, w) of the network.
        boxes: (B, M, 5) corners in shares and class, -1 where there is no box.
    """
    heat, wanted, weight = aims(boxes, dense.shape[1] - 4, (dense.shape[2], dense.shape[3]))
    overlap = giou(sides_to_boxes(dense[:, :4]), wanted)  # (B, h, w)
    return heat_loss(dense[:, 4:], heat), ((1 - overlap) * weight).sum() / weight.sum().clamp(min=1e-6)


def aims(boxes: Tensor, classes: int, cells: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """What the network should say (Liu et al. 2020, section 3.2).

    Args:
        boxes: (B, M, 5).
        classes: K.
        cells: (h, w).

    Returns:
        heat (B, K, h, w): 1 in the cell of each middle, falling off as a Gaussian of the box's shape; wanted (B, 4, h, w):
        the box of each cell in cells, of the smallest box where several reach there; weight (B, h, w): how much it counts.
    """
    height, width = cells
    exists = boxes[..., 4] >= 0  # (B, M)
    corners = boxes[..., :4] * boxes.new_tensor([width, height, width, height])  # (B, M, 4) in cells
    across, along = _spread(corners, 0, width), _spread(corners, 1, height)  # (B, M, w), (B, M, h)
    gauss = along[..., None] * across[..., None, :] * exists[..., None, None]  # (B, M, h, w)
    heat = gauss.new_zeros(len(boxes), classes, height, width)
    place = boxes[..., 4].clamp(min=0).long()[..., None, None].expand_as(gauss)
    heat.scatter_reduce_(1, place, gauss, "amax")
    area = (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)  # (B, M)
    area = area.masked_fill(~exists, torch.inf)
    owner = torch.where(gauss > 0, area[..., None, None], torch.inf).min(1)  # (B, h, w) each
    mine = gauss.gather(1, owner.indices[:, None])[:, 0]  # (B, h, w) of the smallest box that reaches a cell
    share = gauss.sum((2, 3)).clamp(min=1e-6)  # (B, M)
    each = (area.masked_fill(~exists, 1.0) + 1).log() / share  # (B, M)
    weight = mine * each.gather(1, owner.indices.flatten(1)).view_as(mine)
    wanted = corners.gather(1, owner.indices.flatten(1)[..., None].expand(-1, -1, 4))  # (B, h w, 4)
    return heat, wanted.transpose(1, 2).reshape(len(boxes), 4, height, width), weight


def _spread(corners: Tensor, axis: int, cells: int) -> Tensor:
    """(B, M, cells) the Gaussian of each box along one axis, 1 in the cell of its middle, 0 beyond three sigmas."""
    low, high = corners[..., axis], corners[..., axis + 2]  # (B, M)
    middle = ((low + high) / 2).floor().clamp(0, cells - 1)
    reach = ((high - low) / 2 * ALPHA).floor().clamp(min=0)  # cells to each side
    distance = torch.arange(cells, device=corners.device) - middle[..., None]  # (B, M, cells)
    sigma = ((2 * reach + 1) / 6)[..., None]
    return torch.exp(-distance.square() / (2 * sigma.square())) * (distance.abs() <= reach[..., None])


def heat_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """The focal loss that forgives near misses, by the number of middles (Zhou et al. 2019, equation 1).

    Args:
        logits: (B, K, h, w).
        wanted: the same shape; 1 in the cell of a middle, below it less the farther.
    """
    probability = logits.sigmoid()
    middle = wanted == 1
    there = (1 - probability) ** FOCUS * F.logsigmoid(logits)
    elsewhere = (1 - wanted) ** PENALTY * probability**FOCUS * F.logsigmoid(-logits)
    return -torch.where(middle, there, elsewhere).sum() / middle.sum().clamp(min=1)


def giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalized intersection over union, -1 to 1 (Rezatofighi et al. 2019).

    Args:
        one: (B, 4, ...) x1, y1, x2, y2 with x1 <= x2 and y1 <= y2.
        other: the same shape.

    Returns:
        (B, ...).
    """
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    union = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - shared
    hull = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(1)
    return shared / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def sides_to_boxes(sides: Tensor) -> Tensor:
    """(B, 4, h, w) logarithms of the distances to the sides -> corners in cells, seen from the middle of each cell."""
    height, width = sides.shape[2:]
    x = torch.arange(width, device=sides.device) + 0.5  # (w,)
    y = torch.arange(height, device=sides.device)[:, None] + 0.5  # (h, 1)
    left, up, right, down = sides.clamp(max=FARTHEST).exp().unbind(1)
    return torch.stack([x - left, y - up, x + right, y + down], 1)


# What is answered


def found(dense: Tensor, most: int, overlap: float) -> Tensor:
    """Boxes of a dense output: the highest of each 3 x 3 places, less those that overlap a surer one of their class.

    Args:
        dense: (B, 4 + K, h, w).
        most: D.
        overlap: intersection over union from which the surer one stays.

    Returns:
        (B, D, 6) corners in shares, confidence, class; the surest first, zeros and the class -1 where there are fewer.
    """
    height, width = dense.shape[2:]
    heat = dense[:, 4:].sigmoid()  # (B, K, h, w)
    peaks = heat * (heat == F.max_pool2d(heat, 3, stride=1, padding=1))
    score, place = peaks.flatten(1).topk(min(CANDIDATES * most, peaks[0].numel()), dim=1)  # (B, n)
    label, cell = place // (height * width), place % (height * width)
    corners = (
        sides_to_boxes(dense[:, :4]).flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).transpose(1, 2)
    )  # (B, n, 4)
    corners = (corners / corners.new_tensor([width, height, width, height])).clamp(0, 1)
    keep = kept(corners, label, overlap) & (score > 0) & (corners[..., 2:] > corners[..., :2]).all(-1)
    boxes = torch.cat([corners, score[..., None], label[..., None].to(corners)], 2)  # (B, n, 6)
    nothing = boxes.new_tensor([0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
    boxes = torch.where(keep[..., None], boxes, nothing)
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # the surest first already
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 6))
    return torch.cat([boxes, nothing.expand(len(boxes), most - boxes.shape[1], 6)], 1)


def kept(corners: Tensor, label: Tensor, overlap: float) -> Tensor:
    """Non-maximum suppression, class by class.

    Args:
        corners: (B, n, 4), the surest first.
        label: (B, n) class of each.
        overlap: a box that overlaps a kept one of its class by more is dropped.

    Returns:
        (B, n) bool.
    """
    meets = (intersection_over_union(corners) > overlap) & (label[:, :, None] == label[:, None])  # (B, n, n)
    keep = torch.ones_like(label, dtype=torch.bool)
    for i in range(label.shape[1] - 1):
        keep[:, i + 1 :] &= ~(meets[:, i, i + 1 :] & keep[:, i : i + 1])
    return keep


def intersection_over_union(corners: Tensor) -> Tensor:
    """(B, n, 4) -> (B, n, n), each box with each."""
    low = torch.maximum(corners[:, :, None, :2], corners[:, None, :, :2])
    high = torch.minimum(corners[:, :, None, 2:], corners[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)  # (B, n)
    return shared / (area[:, :, None] + area[:, None] - shared).clamp(min=1e-12)
