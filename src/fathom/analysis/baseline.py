"""What a network must beat: trivial and classical models, fitted on the same training rows.

    baselines(schema, train, test, seed) -> (name -> outputs of the test rows, notes)

    trivial      the class shares of the training rows, the mean, how frequent each label is
    linear       logistic or ridge regression on standardized columns, or on pixels averaged to at most 16 x 16
    boosted      histogram gradient boosting (Ke et al. 2017), where there are no images
    texts        logistic regression and NB-SVM on words (`baseline_text`), where an input is a text
    nearest      the class of the nearest series under time warping (`warping`), where the input is one short series
    boxes        the mean box of each class, the most frequent boxes (`detection`)
    forecasts    the last value, the season before, ridge on the past, boosting on lags (`baseline_series`)

Outputs have the form of a network's (log probabilities, standardized numbers, logits), so that evaluation
treats all alike. Each target has a model of its own. Inputs are read as encoded, never through a network's
layers: numbers with nan where missing, categories as codes with 0 for unknown, images as pixels, series as
what each channel was last, on average, at its ends, how often it was observed and how fast it rose.

Each has a fixed budget, which is part of what it is and keeps it under about 20 seconds on two cores:
float32, 100 iterations of lbfgs, 100 rounds of boosting (fewer for more than ten classes), and at most
200,000 rows, 2^26 values and 2^31 values times classes, drawn by the seed. A baseline that cannot be fitted
is left out, and a note says why.

In comments: N rows, D features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.analysis import baseline_series, baseline_text, detection, warping
from fathom.analysis.evaluate import encoded, row_weights
from fathom.core.contract import Field, Schema
from fathom.core.tensors import Batch, Ragged, TensorSet

SIDE = 16  # pixels to which an image is averaged at most
ITERATIONS = 100  # of lbfgs
STRENGTH = 1.0  # scikit-learn's C, for standardized columns
PIXELS_STRENGTH = 0.1  # the same for pixels, which are many and alike
PENALTY = 1.0  # of ridge regression
ROUNDS = 100  # of boosting, where there are at most ten classes
CLIP = 10.0  # standard deviations; a pixel that is almost always black would dominate otherwise
SHOWN = 64  # one-hot columns of one category column; rarer values share one
CATEGORIES = 255  # what boosting takes as categories; a column of more is read as ordered codes
ROWS = 200_000
VALUES = 2**26
WORK = 2**31
CHUNK = 2**25  # input values turned into features at once
TINY = 1e-7  # the least probability that is answered

TRIVIAL = {"category": "majority class", "labels": "label frequencies", "number": "mean"}
LINEAR = {"category": "logistic regression", "labels": "logistic regression", "number": "ridge"}
READABLE = ("image", "number", "series", "category")
NEAREST = "nearest neighbor under time warping"
TEXTS = 60_000  # texts that the models on words are fitted on

Answer = Callable[[np.ndarray], np.ndarray]  # prepared features (B, D) -> (B, outputs)


class UnfitError(Exception):
    """A baseline does not suit the rows; the text says why."""


Texts = tuple[Sequence[str], Sequence[str]]  # of the training rows and of the rows to answer


def baselines(
    schema: Schema, train: TensorSet, test: TensorSet, seed: int, texts: Texts | None = None
) -> tuple[dict[str, Batch], list[str]]:
    """Fit every baseline that suits the data.

    Args:
        schema: fitted inputs and targets.
        train: encoded training rows; a column `.weight` weights them.
        test: encoded rows to answer.
        seed: of the rows that are drawn where there are too many, and of the boosting.
        texts: the raw texts of both, where an input is a text; what its tokens say where None.

    Returns:
        name -> target -> (N, *outputs), the trivial baseline first; and sentences about what was left out or
        cut.
    """
    if [item.kind for item in schema.targets.values()] == ["forecast"]:
        return baseline_series.forecasts(schema, train, test, seed)
    if [item.kind for item in schema.targets.values()] == ["boxes"]:
        return detection.baselines(schema, train, test), []
    strange = [item.kind for item in schema.targets.values() if item.kind not in TRIVIAL]
    if strange:
        return {}, [f"There is no baseline for a target of kind {strange[0]}."]
    found = {_joined(schema, TRIVIAL): _trivial(schema, train, len(test))}
    if "text" in [item.kind for item in schema.inputs.values()]:
        on_words, notes = _on_words(schema, train, test, seed, texts)
        return {**found, **on_words}, notes
    unread = sorted({item.kind for item in schema.inputs.values()} - set(READABLE))
    if unread:
        return found, [f"There is no classical baseline: none reads inputs of kind {', '.join(unread)}."]
    fitted, notes = classical(schema, train, test, seed)
    found |= fitted
    if _is_labelled_series(schema):
        try:
            found[NEAREST] = _nearest(schema, train, test)
        except UnfitError as reason:
            notes.append(f"There is no baseline '{NEAREST}': {reason}.")
    return found, notes


def classical(schema: Schema, train: TensorSet, test: TensorSet, seed: int) -> tuple[dict[str, Batch], list[str]]:
    """The linear model and boosting on what `Layout` makes of the inputs.

    Args:
        schema, train, test, seed: as for `baselines`; every input is of a kind in `READABLE`.

    Returns:
        name -> target -> (N, *outputs); and sentences about what was left out or cut.
    """
    layout = Layout.of(schema, train)
    rows, notes = _chosen(schema, layout, len(train), seed)
    features = np.concatenate(list(layout.chunks(train, rows)))
    found = {}
    for approach in _approaches(schema, layout, features, seed):
        try:
            found[approach.name] = _fitted(approach, schema, layout, train, rows, features, test)
        except UnfitError as reason:
            notes.append(f"There is no baseline '{approach.name}': {reason}.")
    return found, notes


def _joined(schema: Schema, names: dict[str, str]) -> str:
    """ "majority class", or "majority class and mean" where targets differ in kind."""
    return " and ".join(dict.fromkeys(names[item.kind] for item in schema.targets.values()))


def _trivial(schema: Schema, train: TensorSet, rows: int) -> Batch:
    """The best answer that does not look at the inputs."""
    weight = row_weights(train)
    weight = torch.ones(len(train), dtype=torch.float64) if weight is None else weight
    share = weight / weight.sum()  # (N,)
    outputs = {}
    for name, item in schema.targets.items():
        target = encoded(train, name)
        if item.kind == "category":
            soft = target if target.ndim == 2 else F.one_hot(target.long(), item.outputs[0])
            answer = (share @ soft.double()).clamp(min=TINY).log()
        elif item.kind == "labels":
            answer = (share @ target.double()).clamp(TINY, 1 - TINY).logit()
        else:
            answer = share @ torch.from_numpy(_standardized(item, target))
        outputs[name] = answer.float().expand(rows, -1).contiguous()
    return outputs


def _standardized(item: Field, target: Tensor) -> np.ndarray:
    """(N, columns) float64: a number target as a network learns it."""
    scaled: np.ndarray = target.double().numpy() / item.state["std"]  # encoded numbers are centered already
    return scaled


# Texts and whole series


def _on_words(
    schema: Schema, train: TensorSet, test: TensorSet, seed: int, texts: Texts | None
) -> tuple[dict[str, Batch], list[str]]:
    """Models on words and word pairs, where one text decides on one class."""
    kinds = [item.kind for item in schema.inputs.values()]
    target = next(iter(schema.targets))
    item = schema.targets[target]
    if kinds.count("text") > 1 or len(schema.targets) > 1 or item.kind != "category":
        return {}, ["There is no classical baseline: the models on words read one text and answer one class."]
    name = next(name for name, field in schema.inputs.items() if field.kind == "text")
    notes = ["The baselines on words read the text alone, not the columns beside it."] if len(kinds) > 1 else []
    learnt, asked = texts or (_written(schema, name, train), _written(schema, name, test))
    truth = encoded(train, target)
    classes = (truth.argmax(1) if truth.ndim == 2 else truth).numpy()
    if len(learnt) > TEXTS:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(learnt))[:TEXTS])
        notes.append(f"The baselines on words are fitted on {TEXTS} of the {len(learnt)} texts, drawn by the seed.")
        learnt, classes = [learnt[i] for i in chosen], classes[chosen]
    try:
        found = baseline_text.bag_of_words(learnt, classes, asked, item.outputs[0])
    except ValueError as error:  # one class only, or no word twice
        reason = str(error).partition("\n")[0].rstrip(".")
        return {}, [*notes, f"There is no baseline on words: {reason}."]
    return {label: {target: torch.from_numpy(logs).float()} for label, logs in found.items()}, notes


def _written(schema: Schema, name: str, data: TensorSet) -> list[str]:
    """What the tokens of each row say."""
    rows = TensorSet({name: data.columns[name]}, data.index)
    write: Callable[[Tensor], list[str]] = schema.inputs[name].texts  # type: ignore[attr-defined]
    return [text for batch in rows.batches(512) for text in write(batch[name])]


def _is_labelled_series(schema: Schema) -> bool:
    """Whether one whole series decides on one class."""
    inputs, targets = list(schema.inputs.values()), list(schema.targets.values())
    return (
        [item.kind for item in inputs] == ["series"] and not inputs[0].window
        and [item.kind for item in targets] == ["category"]
    )  # fmt: skip


def _nearest(schema: Schema, train: TensorSet, test: TensorSet) -> Batch:
    """The class of the nearest series; refused where that takes more than seconds."""
    (name, series), (target, item) = *schema.inputs.items(), *schema.targets.items()
    std = np.array(series.state["std"], np.float32)
    learnt, asked = (_series(data, name, std) for data in (train, test))
    if (cells := warping.work(learnt, asked)) > warping.WORK:
        raise UnfitError(f"it would compare {cells:.1g} pairs of moments, more than {warping.WORK:.1g}")
    truth = encoded(train, target)
    classes = (truth.argmax(1) if truth.ndim == 2 else truth).numpy()
    logs = warping.answers(warping.nearest(learnt, asked), classes, item.outputs[0])
    return {target: torch.from_numpy(logs).float()}


def _series(data: TensorSet, name: str, std: np.ndarray) -> list[np.ndarray]:
    """Each row (T, C) standardized, gaps filled by the value before them."""
    column = data.columns[name]
    index = torch.arange(len(column)) if data.index is None else data.index
    if isinstance(column, Ragged):
        rows = [column.values[column.offsets[i] : column.offsets[i + 1]] for i in index.tolist()]
    else:
        rows = list(encoded(data, name))
    filled = [baseline_series.carried(row.float().numpy()[None] / std)[0] for row in rows]
    return [row if len(row) else np.zeros((1, len(std)), np.float32) for row in filled]


# Features


@dataclass(frozen=True)
class Layout:
    """The encoded inputs side by side as (N, D) float32: first pixels, then numbers, then series, then codes.

    Args:
        names: kind -> names of the inputs.
        widths: kind -> how many columns they fill together.
        size: values of one encoded row.
    """

    names: dict[str, tuple[str, ...]]
    widths: dict[str, int]
    size: int

    @staticmethod
    def of(schema: Schema, data: TensorSet) -> Layout:
        """The layout of these inputs."""
        names = {kind: tuple(name for name, item in schema.inputs.items() if item.kind == kind) for kind in READABLE}
        row = data.batch(torch.zeros(1, dtype=torch.int64))
        widths = {kind: sum(_flat(kind, row[name]).shape[1] for name in names[kind]) for kind in READABLE}
        return Layout(names, widths, sum(_numbers(data, name, row[name]) for name in schema.inputs))

    @property
    def width(self) -> int:
        """D."""
        return sum(self.widths.values())

    def place(self, kind: str) -> list[int]:
        """The columns of one kind."""
        start = sum(self.widths[other] for other in READABLE[: READABLE.index(kind)])
        return list(range(start, start + self.widths[kind]))

    def chunks(self, data: TensorSet, rows: Tensor) -> Iterator[np.ndarray]:
        """The features (B, D) of the rows, a bounded number at a time."""
        order = [(kind, name) for kind in READABLE for name in self.names[kind]]
        inputs = TensorSet({name: data.columns[name] for _, name in order}, data.index)
        step = max(1, CHUNK // self.size)
        for start in range(0, len(rows), step):
            batch = inputs.batch(rows[start : start + step])
            yield torch.cat([_flat(kind, batch[name]) for kind, name in order], 1).numpy()


def _numbers(data: TensorSet, name: str, row: Tensor) -> int:
    """Values of one encoded row, of the longest one where they differ."""
    column = data.columns[name]
    if isinstance(column, Ragged):
        return int(column.lengths().max()) * int(np.prod(column.values.shape[1:]))
    return row.numel()


def _flat(kind: str, column: Tensor) -> Tensor:
    """(B, ...) -> (B, D) float32; images are averaged over squares, so that no side is longer than 16."""
    if kind == "series":
        return summaries(column)
    if kind == "image":
        height, width = (-(-side // -(-side // SIDE)) for side in column.shape[2:])
        column = F.adaptive_avg_pool2d(column.float(), (height, width))
    return column.reshape(len(column), -1).float()


def summaries(series: Tensor) -> Tensor:
    """(B, T, C) with nan where nothing was observed -> (B, 6 C): what a channel did.

    The last observed value, mean, least and largest, how many were observed, and the slope a moment of the straight line
    through them (0 through one); nan where none was.
    """
    known = ~series.isnan()  # (B, T, C)
    values, count = series.nan_to_num(0.0).double(), known.sum(1).double()  # (B, T, C), (B, C)
    steps = torch.arange(series.shape[1], dtype=torch.float64)[:, None]  # (T, 1)
    last = torch.where(known, steps, -1.0).amax(1).clamp(min=0).long()  # (B, C)
    mean, center = (torch.where(known, part, 0.0).sum(1) / count for part in (values, steps))  # nan where none
    away = torch.where(known, steps - center[:, None], 0.0)
    slope = (away * values).sum(1) / away.square().sum(1).clamp(min=1e-12)
    found = [
        values.gather(1, last[:, None])[:, 0], mean,
        torch.where(known, values, torch.inf).amin(1), torch.where(known, values, -torch.inf).amax(1), slope,
    ]  # fmt: skip
    found = [torch.where(count > 0, part, torch.nan) for part in found]
    return torch.cat([*found, count], 1).float()


def _chosen(schema: Schema, layout: Layout, rows: int, seed: int) -> tuple[Tensor, list[str]]:
    """Which training rows the classical baselines are fitted on."""
    outputs = max(item.outputs[0] for item in schema.targets.values())
    width = max(layout.width, 1)
    limit = min(ROWS, VALUES // width, WORK // (width * outputs))
    if rows <= limit:
        return torch.arange(rows), []
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:limit].sort().values
    return drawn, [f"Classical baselines are fitted on {limit} of the {rows} training rows, drawn by the seed."]


# Classical models


@dataclass(frozen=True)
class Approach:
    """One way to learn any target.

    Args:
        name: as it is reported.
        prepare: fits on the features (N, D) and transforms them.
        classifier: makes an unfitted estimator with `predict_proba`.
        regressor: makes an unfitted estimator with `predict`.
    """

    name: str
    prepare: Any
    classifier: Callable[[], Any]
    regressor: Callable[[], Any]


def _approaches(schema: Schema, layout: Layout, features: np.ndarray, seed: int) -> list[Approach]:
    """What suits the inputs."""
    from sklearn.linear_model import LogisticRegression, Ridge

    suffix, strength = "", STRENGTH
    if layout.names["image"]:
        strength = PIXELS_STRENGTH
        suffix = " on pixels" if layout.width == layout.widths["image"] else " on pixels and columns"
    elif layout.names["series"]:
        suffix = " on summaries"
    linear = Approach(
        _joined(schema, LINEAR) + suffix,
        _linear_features(layout),
        lambda: LogisticRegression(C=strength, max_iter=ITERATIONS),
        lambda: Ridge(alpha=PENALTY),
    )
    return [linear] if layout.names["image"] else [linear, _boosting(schema, layout, features, seed)]


def _boosting(schema: Schema, layout: Layout, features: np.ndarray, seed: int) -> Approach:
    """Histogram gradient boosting with the library's defaults, without early stopping."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.preprocessing import FunctionTransformer

    codes = layout.place("category")
    outputs = max(item.outputs[0] for item in schema.targets.values())
    options = {
        "max_iter": max(10, min(ROUNDS, 10 * ROUNDS // outputs)),
        "early_stopping": False,
        "random_state": seed,
        "categorical_features": [place for place in codes if len(np.unique(features[:, place])) <= CATEGORIES],
    }
    return Approach(
        "gradient boosting",
        FunctionTransformer(_mark_unknown, kw_args={"codes": codes}),
        lambda: HistGradientBoostingClassifier(**options),
        lambda: HistGradientBoostingRegressor(**options),
    )


def _mark_unknown(features: np.ndarray, codes: list[int]) -> np.ndarray:
    """Code 0 becomes nan, which boosting treats as missing."""
    marked = features.copy()
    marked[:, codes] = np.where(marked[:, codes] == 0, np.nan, marked[:, codes])
    return marked


def _linear_features(layout: Layout) -> Any:
    """Standardized pixels; standardized numbers, a missing one at the mean and flagged; one-hot codes."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    numbers = make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler())
    steps = {
        "image": StandardScaler(),
        "number": numbers,
        "series": numbers,
        "category": OneHotEncoder(handle_unknown="ignore", max_categories=SHOWN, sparse_output=False, dtype=np.float32),
    }
    side_by_side = ColumnTransformer(
        [(kind, step, layout.place(kind)) for kind, step in steps.items() if layout.widths[kind]]
    )
    return make_pipeline(side_by_side, FunctionTransformer(np.clip, kw_args={"a_min": -CLIP, "a_max": CLIP}))


def _fitted(
    approach: Approach, schema: Schema, layout: Layout,
    train: TensorSet, rows: Tensor, features: np.ndarray, test: TensorSet,
) -> Batch:  # fmt: skip
    """Fit on the chosen training rows, answer every test row."""
    ready = approach.prepare.fit_transform(features)
    weight = row_weights(train)
    counted = None if weight is None else weight[rows].numpy()
    answers = {
        name: FIT[item.kind](approach, item, ready, encoded(train, name)[rows], counted)
        for name, item in schema.targets.items()
    }
    parts: dict[str, list[np.ndarray]] = {name: [] for name in answers}
    for chunk in layout.chunks(test, torch.arange(len(test))):
        prepared = approach.prepare.transform(chunk)
        for name, answer in answers.items():
            parts[name].append(answer(prepared).astype(np.float32))
    return {name: torch.from_numpy(np.concatenate(pieces)) for name, pieces in parts.items()}


def _estimate(estimator: Any, features: np.ndarray, target: np.ndarray, weight: np.ndarray | None) -> Any:
    """Fit one estimator. That lbfgs stops at its fixed budget is meant, and so no warning."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            return estimator.fit(features, target, sample_weight=weight)
        except (ValueError, np.linalg.LinAlgError) as error:
            raise UnfitError(str(error).partition("\n")[0].rstrip(".")) from error


def _fit_category(
    approach: Approach, item: Field, features: np.ndarray, target: Tensor, weight: np.ndarray | None
) -> Answer:
    """Log probabilities (B, K); a class that no training row holds gets next to none."""
    classes = item.outputs[0]
    truth = (target.argmax(1) if target.ndim == 2 else target).numpy()
    if len(np.unique(truth)) < 2:
        raise UnfitError("its training rows hold one class only")
    model = _estimate(approach.classifier(), features, truth, weight)

    def answer(features: np.ndarray) -> np.ndarray:
        share = np.full((len(features), classes), TINY)
        share[:, model.classes_] = model.predict_proba(features)
        logs: np.ndarray = np.log(share.clip(TINY))
        return logs

    return answer


def _fit_labels(
    approach: Approach, item: Field, features: np.ndarray, target: Tensor, weight: np.ndarray | None
) -> Answer:
    """Logits (B, K), each label by a model of its own; a label that all or no rows hold is answered so."""
    held = (target > 0.5).numpy()
    varied = [k for k in range(held.shape[1]) if 0 < held[:, k].sum() < len(held)]
    if not varied:
        raise UnfitError("no label is held by some training rows and not by others")
    models = {k: _estimate(approach.classifier(), features, held[:, k], weight) for k in varied}

    def answer(features: np.ndarray) -> np.ndarray:
        share = np.broadcast_to(held.mean(0), (len(features), held.shape[1])).copy()
        for k, model in models.items():
            share[:, k] = model.predict_proba(features)[:, 1]
        share = share.clip(TINY, 1 - TINY)
        logits: np.ndarray = np.log(share) - np.log1p(-share)
        return logits

    return answer


def _fit_number(
    approach: Approach, item: Field, features: np.ndarray, target: Tensor, weight: np.ndarray | None
) -> Answer:
    """Standardized numbers (B, columns), each column by a model of its own."""
    truth = _standardized(item, target)
    models = [_estimate(approach.regressor(), features, column, weight) for column in truth.T]
    return lambda features: np.column_stack([model.predict(features) for model in models])


FIT = {"category": _fit_category, "labels": _fit_labels, "number": _fit_number}
