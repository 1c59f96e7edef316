"""How good written text is: perplexity, bits a byte, BLEU and chrF, each a function of weighted sums over the rows.

    statistics (N, 3), (N, 4) or (N, 31)    one row a text: LIKELIHOOD columns; then those guessed right of its hidden
                                            tokens, or the columns of BLEU and chrF
    language(statistics, weight)    every metric whose sums are known
    overlap_sums(answers, references) -> (N, 28)    the columns of BLEU and chrF

Since every metric reads sums only, a thousand resamples are one matrix product. Formulas and settings are those of
sacrebleu (Post 2018): BLEU (Papineni et al. 2002) over its 13a tokens with exponential smoothing, chrF (Popović 2015)
over one to six characters with beta = 2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

LIKELIHOOD = 3  # nats, tokens, bytes
MASKED = LIKELIHOOD + 1  # and how many of the hidden tokens were guessed right
ORDERS = 4  # of BLEU: one to four words
BLEU = 2 + 2 * ORDERS  # sys_len, ref_len, correct[1..4], total[1..4]
LETTERS = 6  # of chrF: one to six characters
CHRF = 3 * LETTERS  # [answer, reference, match] of each


def language(statistics: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Every metric whose sums are known (not nan).

    Args:
        statistics: (N, S) float64: nats, tokens, bytes; then, for texts with a reference, the sums of BLEU and chrF; or
            for texts whose hidden tokens were guessed, how many were right.
        weight: (N,) or (R, N): how often each row counts.

    Returns:
        perplexity, bits_per_byte, bleu, chrf, masked_accuracy -> tensor of shape () or (R,).
    """
    statistics = statistics.double()
    rows = torch.ones(len(statistics), dtype=torch.float64) if weight is None else weight.double()
    sums = rows @ statistics  # (S,) or (R, S)
    nats, tokens, size = sums[..., :LIKELIHOOD].unbind(-1)
    found = {"perplexity": (nats / tokens).exp(), "bits_per_byte": nats / size / math.log(2)}
    if statistics.shape[1] == MASKED:
        return {"masked_accuracy": sums[..., LIKELIHOOD] / tokens, "perplexity": found["perplexity"]}
    if statistics.shape[1] > LIKELIHOOD:
        overlap = sums[..., LIKELIHOOD:]
        found |= {"bleu": bleu(overlap[..., :BLEU]), "chrf": chrf(overlap[..., BLEU : BLEU + CHRF])}
    return {name: value for name, value in found.items() if not value.isnan().all()}


def bleu(sums: Tensor) -> Tensor:
    """(..., 10) sums -> (...) BLEU, 0 to 100.

    Args:
        sums: sys_len, ref_len, then how many of one to four words are correct, then how many there are.
    """
    ours, theirs = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    missed = ((correct == 0) & (total > 0)).cumsum(-1)
    smoothed = 1 / (2.0**missed * total)  # Chen and Cherry 2014, method 3
    precision = torch.where(correct > 0, correct / total, smoothed)
    brevity = torch.where(ours < theirs, (1 - theirs / ours).exp(), 1.0)
    score = 100 * brevity * precision.log().mean(-1).exp()
    impossible = (total == 0).any(-1) | (correct == 0).all(-1)
    return torch.where(sums.isnan().any(-1), torch.nan, score.masked_fill(impossible, 0.0))


def chrf(sums: Tensor) -> Tensor:
    """(..., 18) sums -> (...) chrF, 0 to 100.

    Args:
        sums: for one to six characters: how many the answer has, the reference has, and both have.
    """
    ours, theirs, both = sums.unflatten(-1, (LETTERS, 3)).unbind(-1)  # (..., 6)
    usable = (ours > 0) & (theirs > 0)
    orders = usable.sum(-1).clamp(min=1)
    precision = torch.where(usable, both / ours, 0.0).sum(-1) / orders
    recall = torch.where(usable, both / theirs, 0.0).sum(-1) / orders
    score = 100 * 5 * precision * recall / (4 * precision + recall)
    score = score.masked_fill(precision + recall == 0, 0.0)
    return torch.where(sums.isnan().any(-1), torch.nan, score)


def overlap_sums(answers: Sequence[str], references: Sequence[str]) -> Tensor:
    """(N, 28) float64: what BLEU and chrF are made of, for each row.

    Args:
        answers: N texts that were written.
        references: N texts that are right.
    """
    from sacrebleu.metrics import bleu as scoring

    scorer = scoring.BLEU(effective_order=True)  # the counts of one sentence; their smoothing is not used
    rows = []
    for answer, reference in zip(answers, references, strict=True):
        counted = scorer.sentence_score(answer, [reference])
        words = [counted.sys_len, counted.ref_len, *counted.counts, *counted.totals]
        rows.append([*words, *_shared_letters(answer, reference)])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, BLEU + CHRF)


def _shared_letters(answer: str, reference: str) -> list[int]:
    """[answer, reference, match] of one to six characters, white space left out."""
    ours, theirs = "".join(answer.split()), "".join(reference.split())
    found: list[int] = []
    for size in range(1, LETTERS + 1):
        mine, wanted = _pieces(ours, size), _pieces(theirs, size)
        found += [mine.total() if wanted else 0, wanted.total(), (mine & wanted).total()]
    return found


def _pieces(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))
