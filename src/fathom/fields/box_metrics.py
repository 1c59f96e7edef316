"""Average precision of detected boxes, as COCO defines it (Lin et al. 2014), also on resamples of the pictures.

    mean_average_precision(output, target, ...)   map, map50, map75 and ap_CLASS
    matches(output, target, classes)              which detection hits which box, by pycocotools

Detections are matched to boxes picture by picture, class by class, at intersections over union of 0.5, 0.55 ... 0.95, the
surest first, a hundred a picture, with no cut of confidence. Matching does not depend on other pictures. So it is done
once, and a resample of the pictures only counts the matches anew: a thousand resamples take seconds.

In comments: N pictures, D detections of a class in all pictures, P of them that hit, R resamples.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fathom.core.errors import FathomError

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = torch.linspace(0, 1, 101, dtype=torch.float64)
MOST = 100  # detections of a picture that count
CHUNK = 2**24  # counts held at once, where pictures are resampled
NAMED = 20  # classes whose average precision is a metric of its own


@dataclass(frozen=True)
class Matches:
    """The detections of one class in all pictures, the surest first.

    Args:
        picture: (D,) int64, where each is.
        hit: (10, D) bool, whether it hits a box at each overlap.
        boxes: (N,) float64, boxes of the class in each picture.
    """

    picture: Tensor
    hit: Tensor
    boxes: Tensor


def mean_average_precision(
    output: Tensor, target: Tensor, classes: Sequence[str], weight: Tensor | None = None
) -> dict[str, Tensor]:
    """COCO's metrics.

    Args:
        output: (N, D, 6) corners in shares, confidence, class; class -1 where there is nothing.
        target: (N, M, 5) corners and class; -1 where there is nothing.
        classes: K names.
        weight: (N,) or (R, N): how often each picture counts, in each of R resamples.

    Returns:
        map (the mean over overlaps 0.5 to 0.95 and classes), map50, map75, and ap_CLASS where there are at most 20 classes;
        of shape () or (R,). A class without boxes counts in no mean; nan where none has any.

    Raises:
        FathomError: pycocotools is not installed.
    """
    found = matches(output, target, len(classes))
    each = torch.stack([average_precision(one, weight) for one in found])  # (K, 10) or (K, 10, R)
    mean = each.nanmean(0)  # (10,) or (10, R)
    named = {f"ap_{name.replace('.', '_')}": value.mean(0) for name, value in zip(classes, each, strict=True)}
    overall = {"map": mean.mean(0), "map50": mean[0], "map75": mean[5]}
    return {**overall, **(named if 1 < len(classes) <= NAMED else {})}


def average_precision(found: Matches, weight: Tensor | None = None) -> Tensor:
    """(10,) or (10, R): precision at 101 recalls, each the best at that recall or a higher one; nan without boxes."""
    if weight is None or weight.ndim == 1:
        once = torch.ones(1, len(found.boxes), dtype=torch.float64) if weight is None else weight.double()[None]
        return _weighted(found, once)[:, 0]
    size = max(1, CHUNK // max(len(found.picture), 1))
    return torch.cat([_weighted(found, part.double()) for part in weight.split(size)], 1)


def _weighted(found: Matches, weight: Tensor) -> Tensor:
    """(10, R) for weights (R, N)."""
    boxes = (weight @ found.boxes)[:, None]  # (R, 1)
    counts = weight[:, found.picture]  # (R, D)
    seen = counts.cumsum(1)
    lines = []
    for hit in found.hit:
        place = hit.nonzero()[:, 0]  # recall rises at hits alone, and precision is best there
        hits = counts[:, place].cumsum(1)  # (R, P)
        precision = hits / seen[:, place].clamp(min=torch.finfo(torch.float64).eps)
        best = precision.flip(1).cummax(1).values.flip(1)
        first = torch.searchsorted(hits / boxes.clamp(min=1e-300), RECALLS.expand(len(weight), -1).contiguous())
        padded = torch.cat([best, best.new_zeros(len(best), 1)], 1)  # a recall that is never reached
        lines.append(padded.gather(1, first).mean(1))
    return torch.where(boxes[:, 0] > 0, torch.stack(lines), torch.nan)


def require_coco() -> None:
    """Refuse to judge boxes where COCO's own code is not there.

    Raises:
        FathomError: says how to install it.
    """
    try:
        import pycocotools.coco  # noqa: F401
    except ImportError as error:
        raise FathomError(
            "Boxes are judged by COCO's own code, and the package pycocotools is not installed. Install it with: "
            "pip install 'fathom[detection]'"
        ) from error


def matches(output: Tensor, target: Tensor, classes: int) -> list[Matches]:
    """The matches of every class.

    Args:
        output: (N, D, 6) as for `mean_average_precision`.
        target: (N, M, 5) likewise.
        classes: K.

    Raises:
        FathomError: pycocotools is not installed.
    """
    require_coco()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth, found = COCO(), COCO()
        for data, rows in ((truth, _annotations(target)), (found, _annotations(output))):
            data.dataset = {"images": [{"id": i} for i in range(len(target))], "annotations": rows,
                            "categories": [{"id": k} for k in range(classes)]}  # fmt: skip
            data.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, 1e10]], ["all"], [MOST]
        judge.evaluate()
    pictures = len(target)
    return [_collected(judge.evalImgs[k * pictures : (k + 1) * pictures]) for k in range(classes)]


def _annotations(boxes: Tensor) -> list[dict[str, object]]:
    """COCO's annotations of (N, M, 5) boxes, or (N, D, 6) with a confidence before the class."""
    rows: list[dict[str, object]] = []
    picture, place = (boxes[..., -1] >= 0).nonzero(as_tuple=True)
    for image, line in zip(picture.tolist(), boxes[picture, place].double().tolist(), strict=True):
        x1, y1, x2, y2, *score, label = line
        width, height = x2 - x1, y2 - y1
        rows.append(
            {"id": len(rows) + 1, "image_id": image, "category_id": int(label), "bbox": [x1, y1, width, height],
             "area": width * height, "iscrowd": 0, "score": score[0] if score else 1.0}
        )  # fmt: skip
    return rows


def _collected(judged: Sequence[dict[str, np.ndarray] | None]) -> Matches:
    """What pycocotools found in each picture of one class, None where there was nothing."""
    scores = [np.asarray(one["dtScores"]) if one else np.zeros(0) for one in judged]
    hits = [np.asarray(one["dtMatches"]) > 0 if one else np.zeros((len(OVERLAPS), 0), bool) for one in judged]
    picture = np.repeat(np.arange(len(judged)), [len(one) for one in scores])
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    boxes = [len(one["gtIds"]) if one else 0 for one in judged]
    return Matches(
        torch.from_numpy(picture[order]),
        torch.from_numpy(np.concatenate(hits, 1)[:, order]),
        torch.tensor(boxes, dtype=torch.float64),
    )
