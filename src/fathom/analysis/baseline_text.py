"""What a network for text must beat: counts, in seconds.

    bag_of_words(...)    logistic regression and NB-SVM on words and word pairs (Wang & Manning 2012)
    NGrams               a language model that counts, interpolated after Witten & Bell 1991
    Dictionary           word for word, with the translations of IBM's model 1 (Brown et al. 1993)

All are fitted on training rows. In comments: N rows or tokens, V words of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

ORDER = 5  # tokens that the n-gram model looks at, the next one included
WORD = re.compile(r"\w+|[^\w\s]")
ROUNDS = 5  # of expectation maximization
SCALE = np.uint64(0x9E3779B97F4A7C15)  # spreads token numbers over 64 bits (Knuth's golden ratio)


def bag_of_words(
    train: Sequence[str], target: np.ndarray, test: Sequence[str], classes: int
) -> dict[str, np.ndarray]:
    """Answers of two linear models on words and word pairs.

    Args:
        train: N texts.
        target: (N,) their classes.
        test: texts to answer.
        classes: K.

    Returns:
        name -> (rows of test, K) log probabilities.
    """
    import scipy.sparse as sparse
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    counts = CountVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=WORD.pattern)
    learnt, asked = counts.fit_transform(train), counts.transform(test)
    weighting = TfidfTransformer(sublinear_tf=True).fit(learnt)
    linear = LogisticRegression(C=10.0, max_iter=100).fit(weighting.transform(learnt), target)
    found = {"logistic regression on words": _whole(linear, weighting.transform(asked), classes)}
    present, shown = (learnt > 0).astype(np.float32), (asked > 0).astype(np.float32)
    scores = np.full((len(test), classes), -np.inf)
    for label in range(classes) if classes > 2 else [1]:
        mine = target == label
        if not mine.any() or mine.all():
            continue
        more, less = (1 + np.asarray(present[side].sum(0)).ravel() for side in (mine, ~mine))
        ratio = sparse.diags_array(np.log((more / more.sum()) / (less / less.sum())).astype(np.float32))
        model = LogisticRegression(C=1.0, solver="liblinear", dual=True, tol=1e-2).fit(present @ ratio, mine)
        scores[:, label] = model.decision_function(shown @ ratio)
    if classes == 2:
        scores = np.stack([np.zeros(len(test)), scores[:, 1]], 1)
    found["NB-SVM on words and pairs"] = _log_softmax(scores)
    return found


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    from scipy.special import log_softmax

    lowest = scores[np.isfinite(scores)].min(initial=0.0)
    result: np.ndarray = log_softmax(np.where(np.isfinite(scores), scores, lowest - 5), axis=1)
    return result


def _whole(model: object, rows: object, classes: int) -> np.ndarray:
    """(N, K) log probabilities, tiny for classes that the training rows lack."""
    logs = np.full((rows.shape[0], classes), np.log(1e-7))  # type: ignore[attr-defined]
    logs[:, model.classes_] = model.predict_log_proba(rows).clip(min=np.log(1e-7))  # type: ignore[attr-defined]
    return logs


class NGrams:
    """The probability of a token after the `order` - 1 before it, by counting.

    P(w | h) = (count(h w) + kinds(h) P(w | h')) / (count(h) + kinds(h)), where kinds(h) is how many different tokens
    follow h, and h' is h without its first token (Witten & Bell 1991; Bell, Cleary & Witten 1990).

    Args:
        tokens: (N,) the training text.
        size: V.
        order: 5 sees four tokens back.
    """

    def __init__(self, tokens: np.ndarray, size: int, order: int = ORDER) -> None:
        self.size, self.order = size, order
        self.tables = [self._count(tokens, length) for length in range(1, order + 1)]

    def _count(self, tokens: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
        """Sorted hashes of all stretches with their counts, and of their contexts with counts and kinds."""
        whole = stretches(tokens, length)
        grams, counts = np.unique(whole, return_counts=True)
        contexts = stretches(tokens, length - 1)[: len(whole)]  # those that something follows
        known, totals = np.unique(contexts, return_counts=True)
        first = np.unique(whole, return_index=True)[1]
        kinds = np.bincount(np.searchsorted(known, contexts[first]), minlength=len(known))
        return grams, counts, known, totals, kinds

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """(N,) the surprise of each token of a text after those before it."""
        probability = np.full(len(tokens), 1 / self.size)
        for length, (grams, counts, known, totals, kinds) in enumerate(self.tables, 1):
            if len(tokens) < length:
                break
            whole, contexts = stretches(tokens, length), stretches(tokens, length - 1)[: len(tokens) - length + 1]
            seen = looked_up(grams, counts, whole)
            total, kind = looked_up(known, totals, contexts), looked_up(known, kinds, contexts)
            ours = probability[length - 1 :]
            mixed = (seen + kind * ours) / np.maximum(total + kind, 1)
            probability[length - 1 :] = np.where(total > 0, mixed, ours)
        nats: np.ndarray = -np.log(probability)
        return nats


def stretches(tokens: np.ndarray, length: int) -> np.ndarray:
    """(N - length + 1,) a 64-bit hash of each stretch of `length` tokens."""
    total = np.zeros(len(tokens) - length + 1, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(length):
            part = tokens[place : len(tokens) - length + 1 + place].astype(np.uint64) + np.uint64(1)
            total = (total ^ (total >> np.uint64(29))) * SCALE + part * SCALE
    return total


def looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where there is none; `keys` are sorted."""
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


class Dictionary:
    """Each word by its likeliest translation, in the order of the source (Brown et al. 1993, model 1).

    Args:
        sources: N texts.
        targets: N texts that say the same.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        source_words = [WORD.findall(text) for text in sources]
        target_words = [WORD.findall(text) for text in targets]
        ours = {word: i for i, word in enumerate(sorted({w for line in source_words for w in line}))}
        theirs = sorted({w for line in target_words for w in line})
        place = {word: i for i, word in enumerate(theirs)}
        one, two, group = _pairs(source_words, target_words, ours, place)
        keys, pair = np.unique(one.astype(np.int64) * len(theirs) + two, return_inverse=True)
        likely: Any = np.ones(len(keys))  # t(target word | source word), unnormalized
        for _ in range(ROUNDS):
            share = likely[pair]
            share /= np.bincount(group, share)[group]
            likely = np.bincount(pair, share)
            likely /= np.bincount(keys // len(theirs), likely)[keys // len(theirs)]
        order = np.lexsort((likely, keys // len(theirs)))
        last = np.flatnonzero(np.diff(keys[order] // len(theirs), append=-1))
        best = keys[order][last]
        words = list(ours)
        self.table = {words[key // len(theirs)]: theirs[key % len(theirs)] for key in best.tolist()}

    def answer(self, text: str) -> str:
        """The text word for word; words never seen stay as they are."""
        written = " ".join(self.table.get(word, word) for word in WORD.findall(text))
        return re.sub(r"\s+([.,!?;:])", r"\1", written)


def _pairs(
    sources: list[list[str]], targets: list[list[str]], ours: dict[str, int], theirs: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every source word beside every target word of its row; the last array numbers the target words."""
    ones, twos, groups, count = [], [], [], 0
    for source, target in zip(sources, targets, strict=True):
        one = np.fromiter((ours[w] for w in source), np.int32, len(source))
        two = np.fromiter((theirs[w] for w in target), np.int32, len(target))
        ones.append(np.tile(one, len(two)))
        twos.append(two.repeat(len(one)))
        groups.append(np.arange(count, count + len(two)).repeat(len(one)))
        count += len(two)
    return np.concatenate(ones), np.concatenate(twos), np.concatenate(groups)
