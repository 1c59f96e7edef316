"""Every metric as a pure function of tensors, for one set of rows or for many resamples of it at once.

    classification(probability, target, weight, positive)   one answer a row: accuracy, F1, AUROC, log loss, ECE ...
    multilabel(probability, target, weight)                 several yes-or-no answers a row
    regression(prediction, target, weight)                  a number a row: MSE, RMSE, MAE, R2

The tables and pictures behind the figures stand in `analysis/breakdown`.

`weight` says how often each row counts: None (once), (N,), or (R, N) with one line for each of R resamples;
results have shape () or (R,). Sums are taken in float64. A quotient that is not defined is nan: a class that
no row holds is left out of a macro mean, and the result is nan only where no class is left. Scores are sorted
once for all resamples, so that a resample costs a gather and a running sum for each class.

In comments: N rows, K classes or labels, R resamples, P rows of the positive class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**26  # bytes of float64 weights worked on at once
PIECE = 2**20  # weights sorted and summed at once: what a processor's cache holds
RANKED = 2**18  # rows times classes above which the ranking metrics of many classes look at fewer resamples
MANY = 20  # what "many classes" means: that share of the resamples is looked at which keeps the time that of 20
BINS = 15  # of the expected calibration error, as in Guo et al. 2017

Measure = Callable[[Tensor], dict[str, Tensor]]  # weights (R, N) -> name -> (R,)


def classification(
    probability: Tensor, target: Tensor, weight: Tensor | None = None, positive: int | None = None
) -> dict[str, Tensor]:
    """The metrics of one answer a row.

    Precision, recall, specificity, F1, AUROC and AUPRC are those of the positive class where there is one,
    and else the macro mean over the classes that some row holds; a class that is never answered has precision
    0. AUPRC is the average precision. Log loss bounds a probability by the machine precision of its dtype.
    ECE is the expected calibration error of the top answer (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"). The Brier score of two classes is that of the positive class, of more classes the sum over
    them (Brier 1950).

    Where K is above 20 and N x K above 2^18, AUROC and AUPRC are computed for the first 20 / K of the
    resamples, at least a tenth of them; the others are nan.

    Args:
        probability: (N, K) rows that sum to 1.
        target: (N,) int64 class of each row, or (N, K) soft rows: log loss and Brier score use them as they
            are, all else their largest class.
        weight: None, (N,) or (R, N).
        positive: the positive class; class 1 of two where None, and the macro mean of more.

    Returns:
        name -> () or (R,): accuracy, balanced_accuracy, precision, recall, specificity, f1, auroc, auprc,
        log_loss, ece, brier.
    """
    rows, classes = probability.shape
    truth, answer = hard(target), probability.argmax(1)  # (N,) each
    hit = answer == truth
    chosen = positive if positive is not None else (1 if classes == 2 else None)
    soft = target.double() if target.ndim == 2 else torch.nn.functional.one_hot(truth, classes).double()  # (N, K)
    losses = torch.stack([_log_loss(probability, soft), _brier(probability, soft, positive)], 1)  # (N, 2)
    confidence = probability.amax(1).double()
    place = bin_of(confidence, BINS)
    excess = confidence - hit.double()  # (N,) how much surer than right
    scored = range(classes) if chosen is None else [chosen]
    rankings = [Ranking.of(probability[:, k], truth == k) for k in scored]

    def measure(weight: Tensor) -> dict[str, Tensor]:
        total = weight.sum(1)  # (R,)
        held, answered = _count(weight, truth, classes), _count(weight, answer, classes)  # (R, K) each
        right = _count(weight[:, hit], truth[hit], classes)
        rates = _rates(held, answered, right, total[:, None])
        present = held > 0
        result = {"accuracy": right.sum(1) / total, "balanced_accuracy": _macro(rates["recall"], present)}
        for name, value in rates.items():  # (R, K)
            result[name] = _macro(value, present) if chosen is None else value[:, chosen]
        result["auroc"], result["auprc"] = _rank(rankings, weight)
        means = weight @ losses / total[:, None]  # (R, 2)
        gaps = _count(weight * excess, place, BINS).abs().sum(1) / total
        return {**result, "log_loss": means[:, 0], "ece": gaps, "brier": means[:, 1]}

    return resampled(measure, weight, rows)


def multilabel(
    probability: Tensor, target: Tensor, weight: Tensor | None = None, threshold: float = 0.5
) -> dict[str, Tensor]:
    """The metrics of several yes-or-no answers a row.

    F1, AUROC and AUPRC are macro means over the labels that some row holds. AUROC and AUPRC of many labels
    look at fewer resamples, as in `classification`.

    Args:
        probability: (N, K) of each label.
        target: (N, K) 0 or 1.
        weight: None, (N,) or (R, N).
        threshold: the probability from which an answer is yes.

    Returns:
        name -> () or (R,): accuracy (per decision), exact_match, f1, auroc, auprc, log_loss.
    """
    rows, labels = probability.shape
    truth, answer = target > 0.5, probability >= threshold  # (N, K)
    hit = truth == answer
    tables = [torch.stack([hit.double().mean(1), hit.all(1).double(), _binary_loss(probability, target)], 1)]
    tables += [truth.double(), answer.double(), (truth & answer).double()]
    table = torch.cat(tables, 1)  # (N, 3 + 3K)
    rankings = [Ranking.of(probability[:, k], truth[:, k]) for k in range(labels)]

    def measure(weight: Tensor) -> dict[str, Tensor]:
        total = weight.sum(1, keepdim=True)  # (R, 1)
        sums = weight @ table
        means = sums[:, :3] / total
        held, answered, right = sums[:, 3:].reshape(len(weight), 3, labels).unbind(1)  # (R, K) each
        f1 = _macro(_rates(held, answered, right, total)["f1"], held > 0)
        auroc, auprc = _rank(rankings, weight)
        result = {
            "accuracy": means[:, 0],
            "exact_match": means[:, 1],
            "f1": f1,
            "auroc": auroc,
            "auprc": auprc,
        }
        return {**result, "log_loss": means[:, 2]}

    return resampled(measure, weight, rows)


def regression(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """The metrics of a number a row. R2 is nan where all targets are equal.

    Args:
        prediction: (N,) in the units of the target.
        target: (N,).
        weight: None, (N,) or (R, N).

    Returns:
        name -> () or (R,): mse, rmse, mae, r2.
    """
    prediction, target = prediction.reshape(-1).double(), target.reshape(-1).double()
    error = prediction - target
    centered = target - target.mean()  # about the mean of all rows, or the variance would cancel badly
    table = torch.stack([error.square(), error.abs(), centered, centered.square()], 1)  # (N, 4)

    def measure(weight: Tensor) -> dict[str, Tensor]:
        mse, mae, mean, square = (weight @ table / weight.sum(1, keepdim=True)).unbind(1)  # (R,) each
        variance = square - mean.square()
        spread = variance > 1e-12 * square  # what rounding leaves of equal targets is no variance
        r2 = torch.where(spread, 1 - mse / variance, torch.nan)
        return {"mse": mse, "rmse": mse.sqrt(), "mae": mae, "r2": r2}

    return resampled(measure, weight, len(target))


@dataclass(frozen=True)
class Ranking:
    """The rows in the order of a score, made once, from which both areas of any resample follow.

    With T the running sum of weights in ascending order of the score, taken before (start) and after (end)
    the rows of equal score, a positive row i has rank (T_start(i) + T_end(i)) / 2 with ties halved, and

        AUROC = (sum_i w_i rank_i - W+^2 / 2) / (W+ W-)        Mann and Whitney 1947
        AP    = sum_i w_i / W+ * (positive weight at or above i) / (all weight at or above i)

    Args:
        order: (N,) rows by ascending score.
        positive: (P,) the positive rows in that order.
        start: (P,) place in `order` of the first row of the same score.
        end: (P,) place of the last.
        first: (P,) place among the positive rows of the first of the same score.
    """

    order: Tensor
    positive: Tensor
    start: Tensor
    end: Tensor
    first: Tensor

    @staticmethod
    def of(score: Tensor, positive: Tensor) -> Ranking:
        """Sort once.

        Args:
            score: (N,).
            positive: (N,) bool.
        """
        ordered, order = score.sort(stable=True)
        _, group, sizes = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        end = sizes.cumsum(0) - 1
        places = positive[order].nonzero()[:, 0]
        group = group[places]  # (P,) the tie that each positive row belongs to
        first = torch.searchsorted(group, group)
        return Ranking(order, order[places], (end - sizes + 1)[group], end[group], first)

    def areas(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """AUROC and AUPRC.

        Args:
            weight: (R, N) float64.

        Returns:
            (R,) each; nan where one of the two classes has no weight.
        """
        pieces = [self._areas(piece) for piece in _pieces(weight, PIECE)]
        return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])

    def _areas(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        ordered = weight.index_select(1, self.order)  # (R, N)
        running = ordered.cumsum(1)
        total = running[:, -1]  # (R,)
        before = running[:, self.start] - ordered[:, self.start]  # (R, P)
        own = weight[:, self.positive]  # (R, P)
        inside = own.sum(1)  # (R,) weight of the positive class
        outside = total - inside
        rank = (before + running[:, self.end]) / 2
        auroc = ((own * rank).sum(1) - inside.square() / 2) / (inside * outside)
        above = inside[:, None] - (own.cumsum(1) - own)[:, self.first]  # (R, P) positive weight at or above
        precision = above / (total[:, None] - before).clamp(min=1e-300)
        auprc = (own * precision).sum(1) / inside
        defined = (inside > 1e-9 * total) & (outside > 1e-9 * total)  # rounding leaves crumbs of an absent class
        return torch.where(defined, auroc, torch.nan), torch.where(defined, auprc, torch.nan)


def _rank(rankings: Sequence[Ranking], weight: Tensor) -> tuple[Tensor, Tensor]:
    """The macro means of AUROC and AUPRC (R,); nan for the resamples that are left out to save time."""
    many = len(rankings) > MANY and len(rankings) * weight.shape[1] > RANKED
    kept = weight[: math.ceil(len(weight) * max(0.1, MANY / len(rankings)))] if many else weight
    areas = [ranking.areas(kept) for ranking in rankings]
    absent = torch.full((len(weight) - len(kept),), torch.nan, dtype=torch.float64)
    auroc, auprc = (torch.stack(part).nanmean(0) for part in zip(*areas, strict=True))
    return torch.cat([auroc, absent]), torch.cat([auprc, absent])


def resampled(measure: Measure, weight: Tensor | None, rows: int) -> dict[str, Tensor]:
    """Apply `measure` to weights of any allowed shape, a bounded number of resamples at a time."""
    if weight is None:
        weight = torch.ones(rows)
    if weight.ndim == 1:
        return {name: value[0] for name, value in measure(weight[None].double()).items()}
    parts = [measure(part.double()) for part in _pieces(weight, CHUNK // 8)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _pieces(weight: Tensor, size: int) -> Iterator[Tensor]:
    """The resamples (R, N) in order, about `size` weights at a time."""
    step = max(1, size // max(weight.shape[1], 1))
    return (weight[start : start + step] for start in range(0, len(weight), step))


def _rates(held: Tensor, answered: Tensor, right: Tensor, total: Tensor) -> dict[str, Tensor]:
    """Precision, recall, specificity and F1 of each class.

    Args:
        held: (R, K) weight of the rows that hold the class.
        answered: (R, K) weight of the rows that got it as an answer.
        right: (R, K) weight of the rows where both is so.
        total: (R, 1) weight of all rows.

    Returns:
        name -> (R, K); nan where no row, or every row for the specificity, holds the class.
    """
    nowhere = torch.full_like(held, torch.nan)
    others = total - held
    specificity = torch.where(others > 1e-9 * total, 1 - (answered - right) / others, nowhere)
    precision = torch.where(answered > 0, right / answered, 0.0)
    f1 = 2 * right / (held + answered)
    rates = {"precision": precision, "recall": right / held, "specificity": specificity, "f1": f1}
    return {name: torch.where(held > 0, value, nowhere) for name, value in rates.items()}


def _macro(value: Tensor, present: Tensor) -> Tensor:
    """(R,) the mean over the classes (R, K) that are present and for which the value is defined."""
    return torch.where(present, value, torch.nan).nanmean(1)


def _count(weight: Tensor, place: Tensor, size: int) -> Tensor:
    """(R, size) how much weight (R, N) lies on each of the places (N,)."""
    return weight.new_zeros(len(weight), size).index_add_(1, place, weight)


def hard(target: Tensor) -> Tensor:
    """(N,) the class of each row, the largest of a soft one."""
    return target.argmax(1) if target.ndim == 2 else target.long()


def bin_of(confidence: Tensor, bins: int) -> Tensor:
    """(N,) which of the bins ((i / bins), (i + 1) / bins] a confidence falls into."""
    return ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)


def _log_loss(probability: Tensor, soft: Tensor) -> Tensor:
    """(N,) the cross-entropy of each row in nats."""
    tiny = torch.finfo(probability.dtype).eps
    return -(soft * probability.double().clamp(tiny, 1 - tiny).log()).sum(1)


def _brier(probability: Tensor, soft: Tensor, positive: int | None) -> Tensor:
    """(N,) the squared error of each row's probabilities."""
    square = (probability.double() - soft).square()
    if positive is not None:
        return square[:, positive]
    return square[:, 1] if probability.shape[1] == 2 else square.sum(1)


def _binary_loss(probability: Tensor, target: Tensor) -> Tensor:
    """(N,) the mean over the labels of the binary cross-entropy in nats."""
    tiny = torch.finfo(probability.dtype).eps
    yes, no = (part.double().clamp(tiny, 1 - tiny).log() for part in (probability, 1 - probability.double()))
    return -(target * yes + (1 - target.double()) * no).mean(1)
