"""Two networks against each other: one makes pictures of noise, one tells them from real ones (Goodfellow et al. 2014).

    Adversarial         discriminator, then generator, one update each; what is deployed is the generator alone
    LOSSES              of a batch of real and made answers, as pure functions
        non_saturating  Goodfellow et al. 2014, arXiv:1406.2661, section 3
        hinge           Lim & Ye 2017; Miyato et al. 2018, arXiv:1802.05957
        wgan_gp         Gulrajani et al. 2017, arXiv:1704.00028: differences of means, with the two-sided gradient penalty
        relativistic    Jolicoeur-Martineau 2018, arXiv:1807.00734: a real answer against a made one, in pairs; with r1 and r2
                        the loss of R3GAN (Huang et al. 2025, arXiv:2501.05441)
    squared_gradient    R1 and R2, zero-centered (Mescheder et al. 2018, arXiv:1801.04406), in every k-th step k times as
                        strong (Karras et al. 2020, arXiv:1912.04958)
    asked               what generator and discriminator are asked

Real and made pictures go through the discriminator in one batch: no network of ours couples the rows there, so this is the
mathematics of two batches at the cost of one. One that normalizes over the batch gets them apart. Noise is drawn by the seed
and the step.

The generator's average (`training.average`) is what is watched and deployed; that of its rival is of no use and not kept.

In comments: B rows, L numbers of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Annotated, Any, Literal

import torch
from pydantic import Field as Limits
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.algorithms.reconstruction import Recast, label_field, refuse_views, settings, told_label
from fathom.core.contract import (
    ROW,
    Algorithm,
    Batch,
    Field,
    Model,
    Predictor,
    Sampler,
    Schema,
    Source,
    Stage,
    hyperparameter,
)
from fathom.core.errors import DataError
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Recipe
from fathom.core.registry import algorithm, fields
from fathom.core.tensors import TensorSet
from fathom.fields.copies import LABEL, fixed_noise
from fathom.fields.made import ImageSample

GENERATOR, DISCRIMINATOR, NOISE, REAL = "generator", "discriminator", "noise", "real"
SALT = 0x47414E  # so that noise is not drawn by the very numbers that the same seed gave elsewhere
MEASURED = 512  # rows measured at once
NonNegative = Annotated[float, Limits(ge=0)]
LossName = Literal["non_saturating", "hinge", "wgan_gp", "relativistic"]
Pair = Callable[[Tensor, Tensor], Tensor]  # (real answers (B,), made answers (B,)) -> a scalar


# Which task it is


def recast(source: Source, recipe: Recipe) -> tuple[Source, dict[str, Any]]:
    """The source as pictures to be made; nothing that was left open has to be known beforehand."""
    return Recast(source, recipe.change({"training.algorithm": "adversarial"}), generated), {}


def generated(schema: Schema, recipe: Recipe, where: str) -> tuple[Schema, list[str]]:
    """The schema of the task: the picture, what is made like it, and the label where the networks are told it.

    Args:
        schema: as it was guessed; its target, where there is one, is the label.
        recipe: the tables `network` and `adversarial` are read.
        where: what the user called the data.

    Returns:
        The schema, and sentences about what is left out.

    Raises:
        DataError: there is not one picture, answers are to be means over views, or there is no label where one is to be told.
    """
    refuse_views(schema)
    pictures = {name: item for name, item in schema.inputs.items() if item.kind == "image"}
    if len(pictures) != 1:
        came = ", ".join(f"'{name}' ({item.kind})" for name, item in schema.inputs.items()) or "no input"
        raise DataError(
            f"{where}: adversarial networks make pictures, so there must be one picture a row, and there is {came}. Rows of "
            "numbers and categories are made by: --network vae"
        )
    ((name, picture),) = pictures.items()
    left = [f"'{other}'" for other in schema.inputs if other != name]
    told = [f"{', '.join(left)} is left out: pictures alone are made."] if left else []
    label, inputs, special = label_field(schema), {name: picture}, dict(schema.special)
    if condition := told_label(schema, recipe, where):
        inputs[condition[0]] = condition[1]
        told.append(f"'{condition[1].columns[0]}' is told to both networks.")
    elif label is not None:
        told.append(f"'{label[1].columns[0]}' is not learnt from; it stays beside the rows, to judge the samples by.")
    if label is not None:
        special[LABEL] = label[1].columns[0]
    made = ImageSample.of_input(picture, latent=recipe.algorithm.get("latent", 64))
    return replace(schema, inputs=inputs, targets={name: made}, special=special), told


def asked(schema: Schema) -> Schema:
    """What the generator is asked."""
    return both(schema)[GENERATOR]


def both(schema: Schema) -> dict[str, Schema]:
    """Role -> what goes in and out; the label, where there is one, goes into both."""
    name, made = sample_of(schema)
    told = conditions_of(schema)
    noise: Field = fields["noise"].make([NOISE], size=made.latent)
    return {
        GENERATOR: Schema({NOISE: noise, **told}, {name: made}),
        DISCRIMINATOR: Schema({name: made, **told}, {REAL: fields["number"].make([REAL])}),
    }


def sample_of(schema: Schema) -> tuple[str, ImageSample]:
    """Name and field of the picture that is made.

    Raises:
        DataError: there is none.
    """
    for name, item in schema.targets.items():
        if isinstance(item, ImageSample):
            return name, item
    raise DataError(
        "Adversarial networks make pictures, and none is asked for. Start from: fathom fit DATA --network gan"
    )


def conditions_of(schema: Schema) -> dict[str, Field]:
    """The inputs that are told to both networks."""
    return {name: item for name, item in schema.inputs.items() if name not in schema.targets}


# Losses


def non_saturating(real: Tensor, made: Tensor) -> Tensor:
    """Of the discriminator: cross-entropy of "real"."""
    return F.softplus(-real).mean() + F.softplus(made).mean()


def non_saturating_generator(real: Tensor, made: Tensor) -> Tensor:
    """Cross-entropy of what is made with "real"."""
    return F.softplus(-made).mean()


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Of the discriminator: answers beyond one are right enough."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def wasserstein(real: Tensor, made: Tensor) -> Tensor:
    """Of the critic: minus the difference of means."""
    return made.mean() - real.mean()


def raised(real: Tensor, made: Tensor) -> Tensor:
    """Of the generator: minus the mean answer, for hinge and Wasserstein."""
    return -made.mean()


def relativistic(real: Tensor, made: Tensor) -> Tensor:
    """Of the discriminator: each real picture is to look more real than the made one beside it."""
    return F.softplus(made - real).mean()


def relativistic_generator(real: Tensor, made: Tensor) -> Tensor:
    """The other way round."""
    return F.softplus(real - made).mean()


LOSSES: dict[str, tuple[Pair, Pair]] = {  # of the discriminator, of the generator
    "non_saturating": (non_saturating, non_saturating_generator),
    "hinge": (hinge, raised),
    "wgan_gp": (wasserstein, raised),
    "relativistic": (relativistic, relativistic_generator),
}


def squared_gradient(answers: Tensor, pictures: Tensor) -> Tensor:
    """(B,) the squared norm of each answer's gradient by its picture, differentiable.

    Args:
        answers: (B,) of a network that does not couple rows.
        pictures: (B, C, H, W) that require gradients.
    """
    (gradient,) = torch.autograd.grad(answers.sum(), pictures, create_graph=True)
    return gradient.float().square().flatten(1).sum(1)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, made: Tensor) -> Tensor:
    """How far the critic's slope is from one between real and made pictures (Gulrajani et al. 2017, algorithm 1).

    Args:
        critic: (B, C, H, W) -> (B,).
        real, made: (B, C, H, W).
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = torch.lerp(made, real, share).requires_grad_()
    return ((squared_gradient(critic(between), between) + 1e-12).sqrt() - 1).square().mean()


@algorithm(
    "adversarial",
    suits=lambda schema: any(isinstance(item, ImageSample) for item in schema.targets.values()),
    asks=asked,
    settings=settings,
    recast=recast,
    networks=("gan",),
    watches=("generator_loss", "real_accuracy", "made_accuracy"),
    task="picture generation",
    paper="Goodfellow et al. 2014, Generative adversarial nets (arXiv:1406.2661)",
)
class Adversarial(Algorithm):
    """Learn to make pictures that a second network cannot tell from real ones."""

    loss: LossName = hyperparameter(
        "relativistic",
        search=["non_saturating", "hinge", "wgan_gp", "relativistic"],
        help="non_saturating, hinge, wgan_gp or relativistic",
    )
    latent: PositiveInt = hyperparameter(64, search=[32, 64, 128], help="numbers of noise that a picture is made of")
    r1: NonNegative = hyperparameter(
        0.1, search=(0.1, 10.0, "log"), help="times half the squared gradient at real pictures"
    )
    r2: NonNegative = hyperparameter(
        0.1, search=(0.1, 10.0, "log"), help="times half the squared gradient at made pictures"
    )
    gradient_penalty: NonNegative = hyperparameter(10.0, help="of wgan_gp: times its penalty")
    lazy: PositiveInt = hyperparameter(8, help="r1 and r2 count in every k-th step, k times as strong")
    ratio: PositiveInt = hyperparameter(1, help="updates of the discriminator for each of the generator")

    def build(self) -> None:
        """An optimizer a network, the generator's first: its average is what is watched and deployed."""
        training, clock = self.context.recipe.training, self.context.clock
        self.name, _ = sample_of(self.schema)
        self.conditions = tuple(conditions_of(self.schema))
        plain = training.model_copy(update={"average": 0.0})
        self.optimizers = {
            GENERATOR: Optimizer({GENERATOR: self.models[GENERATOR]}, training, clock, exclusive=False),
            DISCRIMINATOR: Optimizer({DISCRIMINATOR: self.models[DISCRIMINATOR]}, plain, clock, exclusive=False),
        }
        self.of_discriminator, self.of_generator = LOSSES[self.loss]
        self.apart = normalizes(self.models[DISCRIMINATOR])
        self.cycle = self.ratio * self.lazy

    @classmethod
    def roles(cls, schema: Schema) -> dict[str, Schema]:
        """Generator and discriminator."""
        return both(schema)

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """Shuffled rows with noise beside each, drawn by the seed and the step."""
        seed, latent = self.context.recipe.training.seed, sample_of(self.schema)[1].latent
        for step, batch in zip(count(start), super().batches(stage, start), strict=False):
            generator = torch.Generator().manual_seed((seed * 1_000_003 + step + (SALT << 32)) % 2**63)
            noise = torch.randn(len(batch[ROW]), latent, generator=generator)
            yield {**batch, NOISE: noise.to(self.context.device)}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Tell real from made and learn from it; then make pictures that are harder to tell."""
        told = self._told(batch)
        real = self._real(batch)
        learns = self.context.clock.step % self.ratio == 0
        with torch.set_grad_enabled(learns):
            made = self._make(batch[NOISE], told)
        measured = self._discriminate(real, made.detach(), told)
        if learns:
            measured |= self._generate(real, made, told)
        return measured

    def example(self, batch: Batch) -> Batch:
        """With noise."""
        return {
            **batch,
            NOISE: fixed_noise(batch[ROW].cpu(), (sample_of(self.schema)[1].latent,)).to(self.context.device),
        }

    def _told(self, batch: Batch) -> list[Tensor]:
        """What both networks are told of the rows."""
        model = self.models[GENERATOR]
        layers = dict(zip(model.input_names, model.preprocess, strict=True))
        return [layers[name](batch[name]) for name in self.conditions]

    def _real(self, batch: Batch) -> Tensor:
        """(B, C, H, W) from -1 to 1."""
        made: Tensor = self.models[DISCRIMINATOR].preprocess[0](batch[self.name])
        return made

    def _make(self, noise: Tensor, told: list[Tensor]) -> Tensor:
        made: Tensor = self.models[GENERATOR].module(noise, *told)
        return made

    def _judge(self, pictures: Tensor, told: list[Tensor]) -> Tensor:
        """(B,)."""
        answers: Tensor = self.models[DISCRIMINATOR].module(pictures, *told)
        return answers.float().squeeze(1)

    def _judge_both(self, real: Tensor, made: Tensor, told: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(B,) each, in one batch unless its rows would see each other."""
        if self.apart:
            return self._judge(real, told), self._judge(made, told)
        answers = self._judge(torch.cat([real, made]), [torch.cat([c, c]) for c in told])
        return answers[: len(real)], answers[len(real) :]

    def _discriminate(self, real: Tensor, made: Tensor, told: list[Tensor]) -> dict[str, Tensor]:
        """One update of the discriminator."""
        penalized = self.context.clock.step % self.lazy == 0
        if penalized:
            real.requires_grad_(self.r1 > 0)
            made.requires_grad_(self.r2 > 0)
        on_real, on_made = self._judge_both(real, made, told)
        loss = self.of_discriminator(on_real, on_made)
        measured = {"loss": loss.detach()}
        if penalized and self.r1:
            loss = loss + 0.5 * self.lazy * self.r1 * squared_gradient(on_real, real).mean()
        if penalized and self.r2:
            loss = loss + 0.5 * self.lazy * self.r2 * squared_gradient(on_made, made).mean()
        if self.loss == "wgan_gp":
            loss = loss + self.gradient_penalty * gradient_penalty(
                lambda x: self._judge(x, told), real.detach(), made.detach()
            )
        for regularizer in self.regularizers:
            loss = loss + regularizer.penalty(self.models, {}, {})
        self.optimizers[DISCRIMINATOR].minimize(loss)
        return measured

    def _generate(self, real: Tensor, made: Tensor, told: list[Tensor]) -> dict[str, Tensor]:
        """One update of the generator, against the discriminator as it is now."""
        on_real = made.new_zeros(())
        if self.loss == "relativistic":  # the others ask nothing of real pictures here
            with torch.no_grad():
                on_real = self._judge(real.detach(), told)
        loss = self.of_generator(on_real, self._judge(made, told))
        self.optimizers[GENERATOR].minimize(loss)
        return {"generator_loss": loss.detach()}

    def validate(self, data: TensorSet) -> dict[str, float]:
        """The discriminator's loss on validation rows and pictures of fixed noise, and the share of each that it knows.

        Where the loss compares answers only, the limit between the two is the mean of all.
        """
        for model in self.models.values():
            model.eval()
        real, made = [torch.zeros(0)], [torch.zeros(0)]
        with torch.no_grad():
            for batch in data.batches(MEASURED):
                moved = {name: tensor.to(self.context.device) for name, tensor in batch.items()}
                told = self._told(moved)
                noise = fixed_noise(batch[ROW], (sample_of(self.schema)[1].latent,)).to(self.context.device)
                real.append(self._judge(self._real(moved), told).cpu())
                made.append(self._judge(self._make(noise, told), told).cpu())
        on_real, on_made = torch.cat(real), torch.cat(made)
        if not len(on_real):
            return {}
        limit = 0.0 if self.loss in ("non_saturating", "hinge") else float((on_real.mean() + on_made.mean()) / 2)
        return {
            "loss": float(self.of_discriminator(on_real, on_made)),
            "generator_loss": float(self.of_generator(on_real, on_made)),
            "real_accuracy": float((on_real > limit).float().mean()),
            "made_accuracy": float((on_made <= limit).float().mean()),
        }

    @classmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """The generator in evaluation mode. `forward` draws the noise of a row by its number."""
        model, (_, field) = models[GENERATOR], sample_of(schema)
        layers = dict(zip(model.input_names, model.preprocess, strict=True))
        told = tuple(conditions_of(schema))

        def make(codes: Tensor, conditions: Batch) -> Batch:
            model.eval()
            return model.split(model.module(codes, *[layers[key](conditions[key]) for key in told]))

        def forward(batch: Batch) -> Batch:
            device = next(model.parameters()).device
            return make(fixed_noise(batch[ROW].cpu(), (field.latent,)).to(device), batch)

        sampler = Sampler(lambda n, generator: torch.randn(n, field.latent, generator=generator), make, told)
        return Predictor(schema, {"preprocess": model.preprocess, "network": model.module}, forward, sampler=sampler)


def normalizes(model: nn.Module) -> bool:
    """Whether it normalizes over the rows of a batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())
