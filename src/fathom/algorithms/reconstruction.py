"""Learning rows by making them again: autoencoders, denoising ones, variational ones.

    Reconstruction      one network, inputs -> the same inputs; the network decides the objective: error
                        of its output (autoencoder); the evidence lower bound (Kingma & Welling 2014), with beta (Higgins
                        et al. 2017) and free bits (Kingma et al. 2016, arXiv:1606.04934, appendix C.8)
    importance_bound    the tighter bound of K samples (Burda et al. 2016, arXiv:1509.00519, equation 8)
    contraction         squared Frobenius norm of the code's Jacobian (Rifai et al. 2011), estimated
    Recast              a source whose inputs are also its targets
    recast              which likelihood its pictures have, where the user left that open

Nothing is to be predicted: a column that is known to be the label stays out, beside the rows, to color the codes and to
judge the anomaly score; or it is told to both halves of the network (`network.conditional`). Every kind of input has a copy
of itself as its target (see `fields/copies`), which says likelihood and error. Rows are summed over pixels and columns, and
the divergence over latent numbers, so that the sum is in nats a row. What is learnt from noise is compared with the clean row.

A network with `encode` has codes, one with `posterior` a distribution of them (see `networks/autoencoder`); any other is
trained on its output alone. The anomaly score is the error of the reconstruction, and a row is called an anomaly where that
is larger than in all but a few validation rows.

In comments: B rows, D numbers of a code, K samples, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field as Limits
from pydantic import PositiveInt
from torch import Tensor

from fathom.core.contract import (
    ROW,
    WEIGHT,
    Algorithm,
    Batch,
    Columns,
    Field,
    Index,
    Model,
    Predictor,
    Sampler,
    Schema,
    Source,
    Stage,
    hyperparameter,
)
from fathom.core.errors import DataError, FathomError
from fathom.core.optimize import Optimizer
from fathom.core.prepare import beyond, with_options
from fathom.core.recipe import Data, Recipe
from fathom.core.registry import algorithm, networks
from fathom.core.tensors import TensorSet
from fathom.fields.copies import COPIES, LABEL, NOISY, THRESHOLD, Copy, copies_of, drawn_by_row, fixed_noise, noised

MEASURED = 512  # rows measured at once
BOUND = 500  # samples of the bound that evaluation tells
AT_ONCE = 2**20  # pixels or columns of samples that are made at once
SALT = 0x5641  # so that samples are not drawn by the very numbers that the same seed gave elsewhere
NonNegative = Annotated[float, Limits(ge=0)]
Remake = Callable[[Schema, Recipe, str], tuple[Schema, list[str]]]
Objective = Callable[[list[Tensor], Batch], "tuple[Tensor, Tensor, Batch]"]


# Which task it is


class Recast(Source):
    """A source whose inputs are what is asked.

    Args:
        source: whose columns, parts and guesses hold.
        recipe: complete as far as pictures go.
        remake: (guessed schema, recipe, what the user called the data) -> the schema of the task, and sentences about it;
            `reconstructed` where None.
    """

    def __init__(self, source: Source, recipe: Recipe, remake: Remake | None = None) -> None:
        super().__init__(source.location, recipe.data)
        self.source, self.recipe, self.remake = source, recipe, remake or reconstructed
        self._told: list[str] = []

    @classmethod
    def accepts(cls, location: Any, options: Any) -> bool:
        """Nothing: it is made of another one."""
        return False

    def columns(self) -> Columns:
        """As of the source."""
        return self.source.columns()

    def given_splits(self) -> dict[str, Index]:
        """As of the source."""
        return self.source.given_splits()

    def notes(self) -> list[str]:
        """Those of the source, and what became of the label."""
        return [*self.source.notes(), *self._told]

    def schema(self) -> Schema:
        """Inputs, a copy of each as its target, and the label beside them."""
        guessed = with_options(self.source.schema(), beyond(self.recipe.data, self.source))
        made, self._told = self.remake(guessed, self.recipe, str(self.location))
        return made


def recast(source: Source, recipe: Recipe) -> tuple[Source, dict[str, Any]]:
    """The source as what is to be reconstructed.

    Args:
        source: as the data were opened.
        recipe: as far as it is known.

    Returns:
        The other source, and the keys that were left open: the likelihood of pictures, and whether they become binary.
    """
    changes: dict[str, Any] = {}
    pictures = [item for item in source.schema().inputs.values() if item.kind == "image"]
    name = recipe.network.get("name")
    probabilistic = isinstance(name, str) and name in networks and bool(networks[name].about.get("probabilistic"))
    likelihood = recipe.algorithm.get("likelihood", "auto")
    if pictures and likelihood == "auto":
        gray = all(_is_gray(source.columns()[item.columns[0]]) for item in pictures)
        likelihood = "squared" if not probabilistic else "bernoulli" if gray else "logistic"
        changes["reconstruction.likelihood"] = likelihood
    given = recipe.data.fields.get("image", {})
    if pictures and probabilistic and likelihood == "bernoulli" and "binarize" not in given:
        changes["data.image.binarize"] = "stochastic"
    return Recast(source, recipe.change({"training.algorithm": "reconstruction", **changes})), changes


def _is_gray(column: Any) -> bool:
    """Whether it holds arrays of one channel; files are photos until they are opened."""
    if not isinstance(column, np.ndarray):
        return False
    return column.ndim == 3 or 1 in (column.shape[1], column.shape[-1])


def reconstructed(schema: Schema, recipe: Recipe, where: str) -> tuple[Schema, list[str]]:
    """The schema of the task.

    Args:
        schema: as it was guessed; its target, where there is one, is the label.
        recipe: the tables `network` and `reconstruction` are read.
        where: what the user called the data.

    Returns:
        The schema, and sentences about the label.

    Raises:
        DataError: an input cannot be reconstructed, there is none, its answers are to be means over views, or there is no
            label where one is to be told to the network.
    """
    options = recipe.algorithm
    refuse_views(schema)
    strange = {name: item for name, item in schema.inputs.items() if item.kind not in COPIES}
    if strange or not schema.inputs:
        name, item = next(iter(strange.items()), ("", None))
        came = f"'{name}' is of kind {item.kind}" if item is not None else "there is no input"
        advice = f" Leave it out with data.types.{item.columns[0]}=ignore." if item is not None else ""
        raise DataError(f"{where}: {came}; what can be reconstructed is numbers, categories and pictures.{advice}")
    noise = float(options.get("noise", 0.0))
    if noise and all(item.kind == "category" for item in schema.inputs.values()):
        raise DataError(
            f"{where}: reconstruction.noise = {noise:g} is added to pixels and numbers, and all inputs are categories. "
            "Leave it out."
        )
    targets: dict[str, Field] = {}
    for name, item in schema.inputs.items():
        more = {key: options[key] for key in ("likelihood", "sigma") if item.kind == "image" and key in options}
        if more.get("likelihood") == "auto":
            del more["likelihood"]
        targets[name] = COPIES[item.kind].of_input(item, noise=noise, **more)
    inputs, told, special = dict(schema.inputs), [], dict(schema.special)
    label = label_field(schema)
    if condition := told_label(schema, recipe, where):
        inputs[condition[0]] = condition[1]
        told = [f"'{condition[1].columns[0]}' is told to the network and is not reconstructed."]
    elif schema.targets:
        names = ", ".join(f"'{item.columns[0]}'" for item in schema.targets.values())
        told = [f"{names} is not learnt from; it stays beside the rows as what is known of them."]
    if label is not None:
        special[LABEL] = label[1].columns[0]
    if noise and any(item.kind == "category" for item in schema.inputs.values()):
        told.append("Noise is added to numbers and pixels alone; categories stay as they are.")
    return replace(schema, inputs=inputs, targets=targets, special=special), told


def refuse_views(schema: Schema) -> None:
    """Pictures that are made are no answers about pictures.

    Raises:
        DataError: answers are to be means over views.
    """
    views = max((item.options.get("views", 1) for item in schema.inputs.values()), default=1)
    if views > 1:
        raise DataError(
            f"data.image.views = {views} takes the mean of answers over mirrored pictures, and what is made of each is another "
            "picture; leave it out."
        )


def told_label(schema: Schema, recipe: Recipe, where: str) -> tuple[str, Field] | None:
    """The label, where `network.conditional` tells it to the networks.

    Raises:
        DataError: no column of classes is known as one.
    """
    if not recipe.network.get("conditional"):
        return None
    if (label := label_field(schema)) is None:
        raise DataError(
            f"{where}: network.conditional = true tells the network a label, and no column of classes is known as one. Name it "
            "with --target COLUMN."
        )
    return label


def label_field(schema: Schema) -> tuple[str, Field] | None:
    """The one target, where it has classes."""
    found = [(name, item) for name, item in schema.targets.items() if item.kind == "category"]
    return found[0] if len(found) == len(schema.targets) == 1 else None


def settings(data: Data) -> dict[str, Any]:
    """Nothing is to be predicted, unless the user names a label.

    Args:
        data: as the user gave it; what stands there stays.
    """
    return {"data.target": []} if data.target is None else {}


# Objectives


def total_nats(copies: Mapping[str, Copy], outputs: Batch, batch: Batch) -> Tensor:
    """(B,) minus the log likelihood of each row, summed over its inputs."""
    return torch.stack([item.nats(outputs[name], batch[name]) for name, item in copies.items()]).sum(0)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B, D) of each latent number from the standard normal, in nats (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def weighted(rows: Tensor, batch: Batch) -> Tensor:
    """The mean of (B, ...) over rows, by their weights where they have some."""
    if WEIGHT not in batch:
        return rows.mean(0)
    share = batch[WEIGHT] / batch[WEIGHT].sum().clamp(min=1e-12)
    return torch.tensordot(share, rows, 1)


def importance_bound(nats: Tensor, code: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Minus the importance-weighted bound of the log likelihood.

    Args:
        nats: (K, B) minus log p(x | code).
        code: (K, B, D) drawn from the posterior.
        mean, log_variance: (B, D) of the posterior.

    Returns:
        (B,) nats; the negative ELBO where K is 1, nearer to -log p(x) the larger K is.
    """
    return math.log(len(nats)) - torch.logsumexp(log_weights(nats, code, mean, log_variance), 0)


def log_weights(nats: Tensor, code: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """(K, B) log p(x, code) - log q(code | x); arguments as for `importance_bound`."""
    prior = -0.5 * code.square().sum(2)
    posterior = -0.5 * ((code - mean).square() * torch.exp(-log_variance) + log_variance).sum(2)  # constants cancel
    return prior - posterior - nats


def contraction(encode: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
    """(B,) the squared Frobenius norm of the code's Jacobian, unbiased from one projection (Hutchinson 1990).

    Args:
        encode: inputs -> (B, D).
        inputs: (B, ...) each.
    """
    watched = [x.detach().requires_grad_() for x in inputs]
    code = encode(*watched)
    gradients = torch.autograd.grad((code * torch.randn_like(code)).sum(), watched, create_graph=True)
    return torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)


@algorithm(
    "reconstruction",
    suits=lambda schema: bool(schema.targets) and len([c for c in copies_of(schema).values() if c.given]) == len(schema.targets),
    settings=settings,
    recast=recast,
    networks=("autoencoder", "vae"),
    task="reconstruction",
)
class Reconstruction(Algorithm):
    """Learn to make each row again."""

    likelihood: Literal["auto", "squared", "bernoulli", "gaussian", "logistic"] = hyperparameter(
        "auto", help="of pictures; auto: squared error, of a vae bernoulli (gray arrays) or discretized logistic"
    )
    sigma: NonNegative = hyperparameter(0.0, help="of a gaussian pixel from 0 to 1; learned for each pixel where 0")
    noise: NonNegative = hyperparameter(
        0.0, help="standard deviation of noise to be taken away: of pixels from 0 to 1, of standardized numbers"
    )
    beta: NonNegative = hyperparameter(1.0, search=(0.1, 10.0, "log"), help="weight of a vae's divergence")
    warmup: Annotated[float, Limits(ge=0, le=1)] = hyperparameter(
        0.0, help="share of the steps in which beta rises from 0 (Sonderby et al. 2016)"
    )
    free_bits: NonNegative = hyperparameter(0.0, help="nats of each latent number that cost nothing")
    importance_samples: PositiveInt = hyperparameter(1, help="samples a row; above 1 the bound of Burda et al. 2016")
    sparse: NonNegative = hyperparameter(0.0, help="times the mean absolute value of the code, summed over its numbers")
    contractive: NonNegative = hyperparameter(0.0, help="times the squared norm of the code's Jacobian")
    quantile: Annotated[float, Limits(gt=0, lt=1)] = hyperparameter(
        0.99, help="share of the validation rows whose score is no anomaly"
    )

    def build(self) -> None:
        """One optimizer, and the objective that the network is for."""
        self.model = self.models["model"]
        self.module: Any = self.model.module
        self.copies = copies_of(self.schema)
        self.optimizers = {"model": Optimizer(self.models, self.context.recipe.training, self.context.clock)}
        self.objective: Objective = self._error
        if hasattr(self.module, "posterior"):
            self.objective = self._elbo if self.importance_samples == 1 else self._importance
        self._check()

    def _check(self) -> None:
        """Refuse terms that the network has no place for."""
        coded, variational = hasattr(self.module, "encode"), hasattr(self.module, "posterior")
        for name, wanted, there, what in (
            ("sparse", self.sparse, coded, "a code"),
            ("contractive", self.contractive, coded, "a code"),
            ("importance_samples", self.importance_samples > 1, variational, "a distribution of codes"),
            ("free_bits", self.free_bits, variational, "a distribution of codes"),
            ("warmup", self.warmup, variational, "a distribution of codes"),
            ("beta", self.beta != 1, variational, "a distribution of codes"),
        ):
            if wanted and not there:
                fitting = "vae" if what.startswith("a distribution") else "autoencoder"
                raise FathomError(
                    f"reconstruction.{name} = {getattr(self, name):g} needs a network with {what}; use --network {fitting}."
                )

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """Shuffled rows; with noise beside each, drawn by the seed and the step."""
        seed = self.context.recipe.training.seed
        for step, batch in zip(count(start), super().batches(stage, start), strict=False):
            if self.noise:
                generator = torch.Generator().manual_seed((seed * 1_000_003 + step + SALT) % 2**63)
                batch = {**batch, **noised(self.copies, batch, partial(drawn, generator))}
            yield batch

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Make the rows again, minimize what is missed."""
        for regularizer in self.regularizers:
            batch = regularizer.batch(batch)
        inputs = read(self.model, batch)
        nats, divergences, outputs = self.objective(inputs, batch)
        loss = weighted(nats, batch)
        measured = {"loss": loss.detach()}
        if divergences.numel():
            each = weighted(divergences, batch)  # (D,)
            loss = loss + self._beta() * each.clamp(min=self.free_bits).sum()
            measured = {"loss": measured["loss"] + each.detach().sum(), "kl": each.detach().sum()}
        for term in self._code_terms(inputs, batch):
            loss = loss + term
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.models, batch, outputs)
        self.optimizers["model"].minimize(loss)
        return measured

    def _beta(self) -> float:
        return self.beta * min(1.0, self.context.clock.progress / self.warmup if self.warmup else 1.0)

    def _code_terms(self, inputs: list[Tensor], batch: Batch) -> Iterator[Tensor]:
        if self.sparse:
            yield self.sparse * weighted(self.module.encode(*inputs).abs().sum(1), batch)
        if self.contractive:
            yield self.contractive * weighted(contraction(self.module.encode, inputs), batch)

    def _error(self, inputs: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """Of a network with a plain output: nats of each row, and no divergence."""
        outputs = self.model.split(self.module(*inputs))
        nats = total_nats(self.copies, outputs, batch)
        return nats, nats.new_zeros(len(nats), 0), outputs

    def _elbo(self, inputs: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """Nats of each row from one code of its posterior, and the divergence (B, D)."""
        mean, log_variance = self.module.posterior(*inputs)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        outputs = self.model.split(self.module.rebuild(code, *inputs[len(self.copies) :]))
        return total_nats(self.copies, outputs, batch), divergence(mean, log_variance), outputs

    def _importance(self, inputs: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """The bound of several codes, which has the divergence in it."""
        mean, log_variance = self.module.posterior(*inputs)
        code = sampled(mean, log_variance, torch.randn(self.importance_samples, *mean.shape, device=mean.device))
        nats, outputs = nats_of_codes(self.model, self.copies, code, inputs[len(self.copies) :], batch)
        bound = importance_bound(nats, code, mean, log_variance)
        return bound, bound.new_zeros(len(bound), 0), outputs

    def validate(self, data: TensorSet) -> dict[str, float]:
        """The loss without penalties, at beta 1, from the same noise at every time; and every metric."""
        sums: dict[str, float] = {}
        missed: dict[str, list[Tensor]] = {name: [] for name in self.copies}
        weights = [torch.zeros(0, dtype=torch.float64)]
        with torch.no_grad():
            self.model.eval()
            for batch in data.batches(MEASURED):
                weight = batch.get(WEIGHT, torch.ones(len(batch[ROW]))).double()
                weights.append(weight)
                moved = {name: tensor.to(self.context.device) for name, tensor in batch.items()}
                if self.noise:
                    moved |= noised(self.copies, moved, partial(drawn_by_row, batch[ROW]))
                rows, outputs = measured_rows(self.model, self.copies, moved)
                for name, row in rows.items():
                    sums[name] = sums.get(name, 0.0) + float(row.cpu().double() @ weight)
                for name, item in self.copies.items():
                    missed[name].append(item.missed(item.shown(outputs[name]), moved[name]).cpu())
        share = torch.cat(weights)
        found = {name: value / max(float(share.sum()), 1e-12) for name, value in sums.items()}
        for name, item in self.copies.items():
            prefix = f"{name}." if len(self.copies) > 1 else ""
            mean = (torch.cat(missed[name]).double() @ share) / share.sum().clamp(min=1e-12)
            found.update({prefix + key: float(value) for key, value in item.summary(mean).items()})
        return found

    def settle(self, data: Mapping[str, TensorSet]) -> None:
        """The score that a share `quantile` of the validation rows stays under."""
        predictor = self.predictor()
        rows = data["validation"] if len(data["validation"]) else data["train"]
        with torch.inference_mode():
            each = [predictor.scores["anomaly"](self._moved(batch)).cpu() for batch in rows.batches(MEASURED)]
        first = next(iter(self.copies.values()))
        threshold = float(np.quantile(torch.cat(each).double().numpy(), self.quantile))
        first.state = {**first.state, THRESHOLD: threshold, "quantile": self.quantile}

    def _moved(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.context.device) for name, tensor in batch.items()}

    @classmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """The network in evaluation mode, with what it makes possible.

        `scores`: "anomaly" (B,) the error of the row; "columns" (B, C) its error by column; "embed" (B, D) where there is a
        code; "bound" (B, 3) of a vae: negative ELBO, minus the bound of 500 samples, divergence, in nats.
        """
        model, copies = models["model"], copies_of(schema)
        module: Any = model.module

        def forward(batch: Batch) -> Batch:
            model.eval()
            return dict(model.split(module(*read(model, batch))))

        def columns(batch: Batch) -> Tensor:
            outputs = forward(batch)
            return torch.cat([item.errors(outputs[name], batch[name]) for name, item in copies.items()], 1)

        def embed(batch: Batch) -> Tensor:
            model.eval()
            made: Tensor = module.encode(*read(model, batch))
            return made

        def bound(batch: Batch) -> Tensor:
            model.eval()
            return bounds(model, copies, batch)

        def make(codes: Tensor, conditions: Batch) -> Batch:
            model.eval()
            layers = dict(zip(model.input_names, model.preprocess, strict=True))
            given = [layers[name](conditions[name]) for name in told]
            return model.split(module.rebuild(codes, *given))

        scores = {"anomaly": lambda batch: columns(batch).sum(1), "columns": columns}
        told = tuple(name for name in schema.inputs if name not in copies)
        sampler = None
        if hasattr(module, "encode"):
            scores["embed"] = embed
        if hasattr(module, "posterior"):
            scores["bound"] = bound
            sampler = Sampler(lambda n, generator: torch.randn(n, module.size, generator=generator), make, told)
        layers = {"preprocess": model.preprocess, "network": module}
        return Predictor(schema, layers, forward, scores=scores, sampler=sampler)


# What training and evaluation share


def read(model: Model, batch: Batch) -> list[Tensor]:
    """The inputs as the network reads them, with noise where the batch holds some."""
    pairs = zip(model.input_names, model.preprocess, strict=True)
    return [layer(batch.get(NOISY + name, batch[name])) for name, layer in pairs]


def drawn(generator: torch.Generator, x: Tensor) -> Tensor:
    """Standard normal numbers of the shape of `x`."""
    return torch.randn(x.shape, generator=generator)


def sampled(mean: Tensor, log_variance: Tensor, draws: Tensor) -> Tensor:
    """(K, B, D) codes of a posterior (B, D) from standard normal draws (K, B, D)."""
    return mean + draws * torch.exp(0.5 * log_variance)


def nats_of_codes(
    model: Model, copies: Mapping[str, Copy], code: Tensor, conditions: list[Tensor], batch: Batch
) -> tuple[Tensor, Batch]:
    """(K, B) minus log p(x | code) of codes (K, B, D), and what was made of them (K B, ...)."""
    samples, rows = code.shape[:2]
    module: Any = model.module
    outputs = model.split(module.rebuild(code.flatten(0, 1), *[repeated(c, samples) for c in conditions]))
    truth = {name: repeated(batch[name], samples) for name in copies}
    return total_nats(copies, outputs, truth).view(samples, rows), outputs


def repeated(x: Tensor, times: int) -> Tensor:
    """(B, ...) -> (times * B, ...), the rows one after the other."""
    return x.expand(times, *x.shape).flatten(0, 1)


def measured_rows(model: Model, copies: Mapping[str, Copy], batch: Batch) -> tuple[dict[str, Tensor], Batch]:
    """What is watched of each row: "loss", of a vae "kl" as well; and the outputs.

    The code of a vae is drawn by the numbers of the rows alone, so that one epoch can be compared with another.
    """
    module: Any = model.module
    inputs = read(model, batch)
    if not hasattr(module, "posterior"):
        outputs = model.split(module(*inputs))
        return {"loss": total_nats(copies, outputs, batch)}, outputs
    mean, log_variance = module.posterior(*inputs)
    draws = fixed_noise(batch[ROW].cpu(), tuple(mean.shape[1:])).to(mean.device)
    code = sampled(mean, log_variance, draws[None])
    nats, outputs = nats_of_codes(model, copies, code, inputs[len(copies) :], batch)
    kl = divergence(mean, log_variance).sum(1)
    return {"loss": nats[0] + kl, "kl": kl}, outputs


def bounds(model: Model, copies: Mapping[str, Copy], batch: Batch, samples: int = BOUND) -> Tensor:
    """(B, 3) negative ELBO, minus the importance-weighted bound, and divergence of each row, in nats.

    Args:
        model: of a vae.
        copies: what it reconstructs.
        batch: encoded, with the numbers of its rows, of which the first seeds the samples.
        samples: K.
    """
    module: Any = model.module
    inputs = read(model, batch)
    mean, log_variance = module.posterior(*inputs)
    generator = torch.Generator().manual_seed(SALT + int(batch[ROW][0]))
    size = max(1, AT_ONCE // (len(mean) * sum(int(np.prod(item.outputs)) for item in copies.values())))
    parts, sums = [], mean.new_zeros(len(mean), dtype=torch.float64)
    for start in range(0, samples, size):
        draws = torch.randn(min(size, samples - start), *mean.shape, generator=generator).to(mean.device)
        code = sampled(mean, log_variance, draws)
        nats, _ = nats_of_codes(model, copies, code, inputs[len(copies) :], batch)
        sums += nats.double().sum(0)
        parts.append(log_weights(nats.double(), code.double(), mean.double(), log_variance.double()))
    kl = divergence(mean, log_variance).double().sum(1)
    bound = math.log(samples) - torch.logsumexp(torch.cat(parts), 0)
    return torch.stack([sums / samples + kl, bound, kl], 1)
