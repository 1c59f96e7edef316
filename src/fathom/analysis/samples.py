"""Judging pictures that a network makes from nothing, by looking at many of them and at as many real ones.

    results(...)            the test part of results.json
    frechet(x, y)           distance of two Gaussians fitted to features (Frechet 1957; Heusel et al. 2017, arXiv:1706.08500)
    kernel_distance(x, y)   unbiased squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018, arXiv:1801.01401)
    precision_recall(x, y)  share of samples near to real pictures, and of real ones near to samples (Kynkaanniemi et al. 2019,
                            arXiv:1904.06991, k = 3)
    Extractor               what pictures are seen with: features, and classes where it knows some
    principal(...)          an extractor where there are no labels: principal components of the training rows
    PPCA, mixture(...)      the honest rivals: samples of a Gaussian (Tipping & Bishop 1999) and of a mixture of Gaussians

The features are those of a small classifier that was trained once on the training rows and then frozen, so the distance is
called classifier-FID: it cannot be compared with figures from Inception features, nor with those of another classifier.
Samples are compared with test rows, as many of both. The floor is what as many training rows get in their place: a
generator that has learnt the distribution comes down to it, and so does one that has learnt rows by heart, which the
nearest training rows are shown for.

This file sees a Predictor and pictures, never an algorithm. In comments: N, M pictures, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis.copied import device_of
from fathom.analysis.evaluate import Estimate, better
from fathom.analysis.pictures import as_uri_of_grid, grid
from fathom.analysis.wording import metric_words
from fathom.core.contract import Batch, Predictor, Sampler, Schema, TensorSet
from fathom.core.errors import DataError, count_text
from fathom.fields.copies import ImageCopy
from fathom.fields.made import ImageSample

COUNT = 10_000  # samples, and real pictures, where there are as many
LEAST = 50  # fewer say nothing
NEIGHBOR = 3
GROUPS = 10  # of the jackknife
STUDENT = 2.262  # 97.5 % point of Student's t with nine degrees of freedom
AT_ONCE = 512  # pictures made or looked at at once
ROWS = 2_000  # rows of a matrix of distances at once
FITTED = 10_000  # training rows that the rivals are fitted on
COMPONENTS, CLUSTERS = 64, 20
SHOWN = 10
NAMED = 20  # classes that are told one by one
FLOOR = "training rows"


@dataclass(frozen=True)
class Extractor:
    """What pictures are seen with.

    Args:
        name: "classifier" or "pca".
        features: (N, C, H, W) from 0 to 1 -> (N, F).
        classes: the same -> (N,) class; None where it knows none.
        words: of the classes.
        says: a sentence about it.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    classes: Callable[[Tensor], Tensor] | None
    words: Sequence[str]
    says: str


def makes(schema: Schema) -> bool:
    """Whether pictures are made from nothing, and nothing else is asked."""
    return bool(schema.targets) and all(isinstance(item, ImageSample) for item in schema.targets.values())


# Distances


def frechet(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to (N, F) and (M, F).

    |m_x - m_y|^2 + trace(S_x + S_y - 2 (S_x^1/2 S_y S_x^1/2)^1/2), whose root is taken of a symmetric matrix and so is real.
    """
    x, y = x.double(), y.double()
    root = _root(torch.atleast_2d(torch.cov(x.T)))
    inner = torch.linalg.eigvalsh(root @ torch.atleast_2d(torch.cov(y.T)) @ root).clamp(min=0)
    traces = x.var(0).sum() + y.var(0).sum() - 2 * inner.sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + traces)


def _root(matrix: Tensor) -> Tensor:
    """The root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    made: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return made


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD between (N, F) and (M, F) under (a.b / F + 1)^3."""
    return _discrepancy(*_kernel_sums([x]), *_kernel_sums([y]), _cross_sums([x], [y]))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    made: Tensor = (x @ y.T / x.shape[1] + 1) ** 3
    return made


def _kernel_sums(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(G, G) sums of the kernel between groups, pairs of a row with itself left out; and (G,) rows of each."""
    sizes = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    sums = _cross_sums(groups, groups)
    for i, group in enumerate(groups):
        sums[i, i] -= ((group.double().square().sum(1) / group.shape[1] + 1) ** 3).sum()
    return sums, sizes


def _cross_sums(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """(G, H) float64."""
    return torch.stack([torch.stack([_kernel(a.double(), b.double()).sum() for b in others]) for a in ones])


def _discrepancy(xx: Tensor, n: Tensor, yy: Tensor, m: Tensor, xy: Tensor) -> float:
    rows, others = n.sum(), m.sum()
    within = xx.sum() / (rows * (rows - 1)) + yy.sum() / (others * (others - 1))
    return float(within - 2 * xy.sum() / (rows * others))


def precision_recall(real: Tensor, made: Tensor, k: int = NEIGHBOR) -> tuple[float, float]:
    """Share of `made` (M, F) within the k-th nearest distance of some row of `real` (N, F), and the other way round."""
    return float(_covered(made, real, k).mean()), float(_covered(real, made, k).mean())


def _covered(rows: Tensor, by: Tensor, k: int) -> Tensor:
    """(N,) 1 where a row lies in the ball of some row of `by` that reaches to that row's k-th nearest neighbor."""
    radius = torch.cat(
        [_distances(part, by).kthvalue(min(k + 1, len(by)), 1).values for part in by.split(ROWS)]
    )  # itself first
    inside = [(_distances(part, by) <= radius).any(1) for part in rows.split(ROWS)]
    return torch.cat(inside).double()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) float64, as a product of matrices: many times faster than one by one, and near enough in this precision."""
    return torch.cdist(x.double(), y.double(), compute_mode="use_mm_for_euclid_dist")


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) distance to the nearest row of `y`, and which one it is."""
    found = [torch.cdist(part.float(), y.float()).min(1) for part in x.split(ROWS // 4)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


# Features


def principal(pictures: Tensor, components: int = COMPONENTS) -> Extractor:
    """An extractor where no label is known.

    Args:
        pictures: (N, C, H, W) from 0 to 1, of training rows.
        components: F at most.
    """
    flat = pictures[:FITTED].flatten(1).double()
    mean = flat.mean(0)
    axes = torch.linalg.eigh(torch.cov(flat.T)).eigenvectors[:, -min(components, flat.shape[1]) :].float()  # (P, F)

    def features(shown: Tensor) -> Tensor:
        made: Tensor = (shown.flatten(1).float() - mean.float()) @ axes
        return made

    says = (
        f"No column of classes is known, so pictures are seen through {axes.shape[1]} principal components: differences of shape "
        "count little in them, and samples that are wrong can come out near. Name a label with --target."
    )
    return Extractor("pca", features, None, (), says)


def _seen(look: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """(N, ...) what is made of pictures, some at a time."""
    return torch.cat([look(part) for part in pictures.split(AT_ONCE)])


# Samples


def drawn(predictor: Predictor, count: int, seed: int, conditions: Batch | None = None) -> Tensor:
    """(N, C, H, W) from 0 to 1.

    Args:
        predictor: of a network that makes pictures.
        count: N.
        seed: of the codes.
        conditions: encoded (N, ...) by the name of their input.
    """
    sampler, device = _sampler(predictor), device_of(predictor)
    name, item = _picture(predictor.schema)
    codes, told = sampler.draw(count, torch.Generator().manual_seed(seed)), conditions or {}
    parts = []
    with torch.inference_mode():
        for start in range(0, count, AT_ONCE):
            stop = start + AT_ONCE
            given = {key: value[start:stop].to(device) for key, value in told.items()}
            parts.append(item.shown(sampler.make(codes[start:stop].to(device), given)[name]).cpu())
    return torch.cat(parts)


def _sampler(predictor: Predictor) -> Sampler:
    assert predictor.sampler is not None, "it makes pictures"
    return predictor.sampler


def _picture(schema: Schema) -> tuple[str, ImageCopy]:
    for name, item in schema.targets.items():
        if isinstance(item, ImageCopy):
            return name, item
    raise DataError("Only pictures can be judged so, and the network makes rows of a table.")


def real(data: TensorSet, schema: Schema, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) from 0 to 1 of rows drawn by the seed, and (N,) which they are."""
    name, item = _picture(schema)
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    return item.truth(data.subset(rows).column(name)), rows


class PPCA:
    """A Gaussian whose covariance is that of the largest components, and the same in all other directions.

    Args:
        pictures: (N, C, H, W) from 0 to 1.
        components: of the code.
    """

    def __init__(self, pictures: Tensor, components: int = COMPONENTS) -> None:
        self.shape = pictures.shape[1:]
        flat = pictures.flatten(1).double()
        self.mean = flat.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        kept = min(components, flat.shape[1] - 1)
        self.noise = values[:-kept].mean().clamp(min=0).sqrt()  # maximum likelihood: the mean of what is left out
        self.axes = vectors[:, -kept:] * (values[-kept:] - self.noise.square()).clamp(min=0).sqrt()  # (P, D)

    def sample(self, count: int, seed: int) -> Tensor:
        """(N, C, H, W), cut to 0 to 1."""
        generator = torch.Generator().manual_seed(seed)
        code = torch.randn(count, self.axes.shape[1], generator=generator, dtype=torch.float64)
        pixels = self.mean + code @ self.axes.T
        pixels += self.noise * torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
        return pixels.clamp(0, 1).float().view(count, *self.shape)


def mixture(pictures: Tensor, count: int, seed: int) -> Tensor:
    """(N, C, H, W) samples of Gaussians with full covariances, fitted to principal components of the pictures."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    flat = pictures.flatten(1).numpy()
    reduced = PCA(min(COMPONENTS // 2, *flat.shape), random_state=seed).fit(flat)
    codes = reduced.transform(flat)
    clusters = max(1, min(CLUSTERS, len(flat) // (2 * codes.shape[1])))
    fitted = GaussianMixture(
        clusters, reg_covar=1e-4, random_state=seed, max_iter=30, tol=1e-2, init_params="k-means++"
    )
    _quietly(fitted, codes)
    generator = np.random.default_rng(seed)
    places = generator.choice(clusters, count, p=fitted.weights_)
    made = generator.standard_normal((count, codes.shape[1]))
    for cluster in range(clusters):  # of precision P P^T, whose inverse is the covariance
        rows = places == cluster
        made[rows] = fitted.means_[cluster] + made[rows] @ np.linalg.inv(fitted.precisions_cholesky_[cluster])
    pixels = reduced.inverse_transform(made)
    return torch.from_numpy(pixels.astype(np.float32)).clamp(0, 1).view(count, *pictures.shape[1:])


def _quietly(fitted: Any, codes: np.ndarray) -> None:
    """Fit; that the last iteration still moved a little does not matter to a rival."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(codes)


# The judgment


def results(
    predictor: Predictor, train: TensorSet, test: TensorSet, seed: int, extractor: Extractor,
) -> dict[str, Any]:  # fmt: skip
    """What results.json and the report say, as `evaluate.results` has it.

    Args:
        predictor: of a network that makes pictures.
        train: encoded training rows, for the floor, the rivals and the nearest neighbors.
        test: encoded rows that samples are compared with.
        seed: of the samples.
        extractor: what pictures are seen with.

    Raises:
        DataError: there are too few rows.
    """
    count = min(COUNT, len(test), len(train))
    if count < LEAST:
        raise DataError(f"Samples are judged beside as many test rows, and there are {count}; give {LEAST} or more.")
    schema = predictor.schema
    truth, rows = real(test, schema, count, seed)
    known, _ = real(train, schema, max(count, FITTED), seed)
    told = {name: test.subset(rows).column(name) for name in _sampler(predictor).conditions}
    made = drawn(predictor, count, seed, told)
    rivals = {"GMM": mixture(known[:FITTED], count, seed), "PPCA": PPCA(known[:FITTED]).sample(count, seed)}
    look = extractor.features
    seen = _seen(look, truth)
    judged = {name: _judged(seen, _seen(look, each), extractor.name) for name, each in rivals.items()}
    mine, floor = (
        _judged(seen, _seen(look, made), extractor.name),
        _judged(seen, _seen(look, known[:count]), extractor.name),
    )
    primary = f"{extractor.name}_fid"
    ratio = mine[primary].value / floor[primary].value if floor[primary].value > 0 else float("nan")
    shares = shares_of(extractor, made, truth)
    if shares:
        mine["modes"] = _counted(shares)
    differences = {name: _difference(mine, table) for name, table in judged.items()}
    how = better(judged, differences, primary)
    first, item = _picture(schema)
    return {
        "test": _plain(mine),
        "baseline": {name: _plain(table) for name, table in judged.items()},
        "difference": {name: _plain(table) for name, table in differences.items()},
        "floor": _plain(floor),
        "primary": primary,
        "others": [],
        "better": how,
        "verdict": _verdict(mine, floor, judged, primary, ratio, shares, how),
        "targets": {first: {"kind": item.kind, "pictured": _figures(made, known, look), "classes_made": shares}},
        "mistakes": [],
        "evaluation_notes": _notes(extractor, count, floor, primary, ratio, shares, made, truth, known),
    }  # fmt: skip


def _judged(seen: Tensor, made: Tensor, name: str) -> dict[str, Estimate]:
    """Distances and shares of samples (M, F) from real pictures (N, F), with their intervals."""
    distance, kernel = _jackknifed(seen, made)
    near, met = _covered(made, seen, NEIGHBOR), _covered(seen, made, NEIGHBOR)
    return {
        f"{name}_fid": distance,
        f"{name}_kid": kernel,
        "sample_precision": _share(near),
        "sample_recall": _share(met),
    }


def _jackknifed(x: Tensor, y: Tensor) -> tuple[Estimate, Estimate]:
    """Both distances, with intervals from leaving out a tenth of either side in turn (Efron & Stein 1981).

    A bootstrap would draw rows twice, which both distances take for a difference.
    """
    ones, others = _grouped(x), _grouped(y)
    xx, n = _kernel_sums(ones)
    yy, m = _kernel_sums(others)
    xy = _cross_sums(ones, others)
    distances, kernels = [], []
    for left_out in range(GROUPS):
        kept = torch.arange(GROUPS) != left_out
        distances.append(frechet(*(torch.cat([g for i, g in enumerate(s) if i != left_out]) for s in (ones, others))))
        kernels.append(_discrepancy(xx[kept][:, kept], n[kept], yy[kept][:, kept], m[kept], xy[kept][:, kept]))
    return _interval(frechet(x, y), distances), _interval(_discrepancy(xx, n, yy, m, xy), kernels)


def _grouped(x: Tensor) -> list[Tensor]:
    return [x[i::GROUPS] for i in range(GROUPS)]


def _interval(value: float, left_out: Sequence[float]) -> Estimate:
    parts = np.array(left_out)
    half = STUDENT * float(np.sqrt((GROUPS - 1) / GROUPS * np.square(parts - parts.mean()).sum()))
    return Estimate(value, value - half, value + half)


def _share(hits: Tensor) -> Estimate:
    """A share with its interval (Wilson 1927)."""
    p, n, z = float(hits.mean()), len(hits), 1.96
    middle, half = p + z * z / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return Estimate(p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))


def _difference(mine: Mapping[str, Estimate], theirs: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Ours less theirs; samples of two models are independent of each other."""
    made = {}
    for name, rival in theirs.items():
        one = mine[name]
        half = float(np.hypot((one.high - one.low) / 2, (rival.high - rival.low) / 2))
        made[name] = Estimate(one.value - rival.value, one.value - rival.value - half, one.value - rival.value + half)
    return made


def shares_of(extractor: Extractor, made: Tensor, truth: Tensor) -> list[dict[str, Any]]:
    """The share of each class among samples and real pictures, as the extractor sees both."""
    if extractor.classes is None:
        return []
    counts = [
        torch.bincount(_seen(extractor.classes, pictures), minlength=len(extractor.words)) / len(pictures)
        for pictures in (made, truth)
    ]
    return [
        {"class": word, "made": float(counts[0][i]), "real": float(counts[1][i])}
        for i, word in enumerate(extractor.words)
    ]


def modes(shares: Sequence[Mapping[str, Any]]) -> int:
    """Classes of which between half and twice as much is made as there should be."""
    return sum(line["real"] / 2 <= line["made"] <= line["real"] * 2 for line in shares)


def _counted(shares: Sequence[Mapping[str, Any]]) -> Estimate:
    return Estimate(float(modes(shares)), float(modes(shares)), float(modes(shares)))


def _plain(table: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {metric: value.to_json() for metric, value in table.items()}


def _verdict(
    mine: Mapping[str, Estimate], floor: Mapping[str, Estimate], rivals: Mapping[str, Mapping[str, Estimate]], primary: str,
    ratio: float, shares: Sequence[Mapping[str, Any]], how: str | None,
) -> str:  # fmt: skip
    best = min(rivals, key=lambda name: rivals[name][primary].value)
    label = metric_words(primary)
    of_classes = (
        f"; {modes(shares)} of {len(shares)} classes are made about as often as they should be" if shares else ""
    )
    return (
        f"{label} {mine[primary]}, {ratio:.1f} times that of real pictures ({floor[primary].value:.3g}); {how} than the best "
        f"simple rival, {best} ({rivals[best][primary].value:.3g}){of_classes}."
    )


def _notes(
    extractor: Extractor, count: int, floor: Mapping[str, Estimate], primary: str, ratio: float,
    shares: Sequence[Mapping[str, Any]], made: Tensor, truth: Tensor, known: Tensor,
) -> list[str]:  # fmt: skip
    lines = [
        extractor.says,
        f"{count:,} samples against {count:,} test rows. Floor, {count:,} training rows in place of samples: "
        + ", ".join(f"{metric_words(name)} {value}" for name, value in floor.items())
        + f". The network is at {ratio:.2f} times the floor.",
    ]
    if count < COUNT:
        lines.append(
            f"Distances of fewer than {COUNT:,} samples come out too large; compare them at equal numbers only."
        )
    if shares:
        listed = ", ".join(f"{s['class']} {s['made']:.1%} ({s['real']:.1%})" for s in shares[:NAMED])
        lines.append(f"Classes of the samples as the classifier sees them, and of the test rows: {listed}.")
    few = min(1_000, count)
    samples, tested = (float(nearest(p[:few].flatten(1), known.flatten(1))[0].median()) for p in (made, truth))
    lines.append(
        f"Nearest of {count_text(len(known), 'training row')}, in pixels: half of the samples lie within {samples:.3g}, half of "
        f"the test rows within {tested:.3g}"
        + ("; samples that are much nearer than test rows are copies." if samples < 0.5 * tested else ".")
    )
    return lines


def _figures(made: Tensor, known: Tensor, look: Callable[[Tensor], Tensor]) -> list[dict[str, str]]:
    """Samples; and some of them above the training rows that are nearest in the features."""
    _, places = nearest(_seen(look, made[:SHOWN]), _seen(look, known))
    pairs = torch.cat([made[:SHOWN], known[places]])
    return [
        {"says": "Pictures that the network makes, the first ones and not the best.",
         "picture": as_uri_of_grid(grid(made[: SHOWN * 8], SHOWN))},
        {"says": f"Above samples, below the nearest of {len(known):,} training rows by the features: copies would be equal.",
         "picture": as_uri_of_grid(grid(pairs, SHOWN))},
    ]  # fmt: skip
