"""Reconstruction: likelihoods against torch.distributions, bounds against a model whose likelihood is known, a linear
autoencoder against PCA, and what each term and each network does."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal, kl_divergence

from fathom.algorithms.reconstruction import (
    Reconstruction,
    bounds,
    contraction,
    divergence,
    importance_bound,
    log_weights,
    sampled,
)
from fathom.analysis.anomaly import known
from fathom.analysis.baseline_copies import Linear, Trivial, matrix, parted
from fathom.analysis.copied import judged
from fathom.analysis.pictures import grid
from fathom.core.contract import ROW, Clock, Columns, Context, Field, Model, Schema, Stage, TensorSet
from fathom.core.errors import DataError, FathomError
from fathom.core.recipe import Recipe
from fathom.core.registry import fields, networks
from fathom.fields.binarized import binarized
from fathom.fields.copies import (
    COPIES,
    NOISY,
    CategoryCopy,
    Copy,
    ImageCopy,
    NumberCopy,
    copies_of,
    discretized_logistic,
)
from fathom.networks.autoencoder import halved
from fathom.verbs.samples import arc

ROWS = 24


def pictures(rows: int = ROWS, side: int = 8, channels: int = 1, **options: Any) -> tuple[Schema, TensorSet]:
    """Random gray or colored pictures, as the task sees them."""
    generator = np.random.default_rng(0)
    columns = Columns({"image": generator.integers(0, 256, (rows, channels, side, side), dtype=np.uint8)})
    return task({"image": ("image", ["image"])}, columns, **options)


def table(rows: int = ROWS) -> tuple[Schema, TensorSet]:
    """Two numbers with a gap, two words."""
    generator = np.random.default_rng(0)
    values = generator.normal(3, 2, (rows, 2))
    columns = Columns(
        {
            "a": pa.array([None, *values[1:, 0]]),
            "b": values[:, 1],
            "c": [str(i % 3) for i in range(rows)],
            "d": ["x" if i % 4 else "y" for i in range(rows)],
        }
    )
    return task({"numbers": ("number", ["a", "b"]), "categories": ("category", ["c", "d"])}, columns)


def task(inputs: dict[str, tuple[str, list[str]]], columns: Columns, **options: Any) -> tuple[Schema, TensorSet]:
    """A fitted schema of inputs and their copies, and encoded rows."""
    made = {name: fields[kind].make(names) for name, (kind, names) in inputs.items()}
    targets: dict[str, Field] = {
        name: COPIES[item.kind].of_input(item, **(options if item.kind == "image" else {})) for name, item in made.items()
    }
    for item in targets.values():
        item.fit([columns])
    return Schema(made, targets), TensorSet({name: item.encode(columns) for name, item in targets.items()})  # type: ignore[arg-type]


def algorithm(
    schema: Schema, name: str, network: dict[str, Any], steps: int = 50, rate: float = 1e-2, schedule: str = "constant",
    **options: Any,
) -> Reconstruction:  # fmt: skip
    """The algorithm around a network of the registry."""
    torch.manual_seed(0)
    training = {"algorithm": "reconstruction", "batch": 8, "steps": steps, "learning_rate": rate, "schedule": schedule}
    models = {"model": Model(schema, networks[name].build(schema, "model", **network))}
    recipe = Recipe.parse({"training": training})
    return Reconstruction(Context(schema, models, recipe, Clock(steps=steps), torch.device("cpu")), **options)


# ---------------------------------------------------------------- likelihoods


def copy_of(likelihood: str, sigma: float = 0.0, channels: int = 1) -> tuple[ImageCopy, Tensor]:
    schema, rows = pictures(channels=channels, likelihood=likelihood, sigma=sigma)
    item = schema.targets["image"]
    assert isinstance(item, ImageCopy)
    return item, rows.column("image")


def test_bernoulli_nats_are_those_of_torch() -> None:
    item, pixels = copy_of("bernoulli")
    pixels = binarized(pixels, "stochastic")
    output = torch.randn(ROWS, *item.outputs)
    expected = -Independent(Bernoulli(logits=output), 3).log_prob(pixels.float() / 255)
    torch.testing.assert_close(item.nats(output, pixels), expected)


def test_gaussian_nats_are_those_of_torch_with_a_fixed_and_a_learned_scale() -> None:
    item, pixels = copy_of("gaussian", sigma=0.3)
    output = torch.rand(ROWS, *item.outputs)
    expected = -Independent(Normal(output, 0.3), 3).log_prob(pixels.float() / 255)
    torch.testing.assert_close(item.nats(output, pixels), expected)
    item, pixels = copy_of("gaussian", channels=3)
    assert item.outputs == (6, 8, 8)
    output = torch.randn(ROWS, *item.outputs)
    mean, log_scale = output.chunk(2, 1)
    expected = -Independent(Normal(mean, log_scale.exp()), 3).log_prob(pixels.float() / 255)
    torch.testing.assert_close(item.nats(output, pixels), expected)


@given(st.floats(-0.5, 1.5), st.floats(-6, 2))
def test_the_discretized_logistic_is_a_distribution_over_bytes(mean: float, log_scale: float) -> None:
    x = torch.arange(256, dtype=torch.float64) / 255
    nats = discretized_logistic(torch.tensor(mean, dtype=torch.float64), torch.tensor(log_scale, dtype=torch.float64), x)
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_discretized_logistic_learns_through_extreme_scales() -> None:
    output = torch.tensor([[0.5], [-9.0]], requires_grad=True)
    discretized_logistic(output[0], output[1], torch.tensor([0.5])).sum().backward()
    assert output.grad is not None
    assert bool(output.grad.isfinite().all())


def test_numbers_and_categories_are_summed_over_columns_and_gaps_cost_nothing() -> None:
    schema, rows = table()
    numbers, words = schema.targets["numbers"], schema.targets["categories"]
    assert isinstance(numbers, NumberCopy)
    assert isinstance(words, CategoryCopy)
    x = rows.column("numbers")
    output = torch.randn(ROWS, 2)
    truth = numbers.truth(x)
    each = -Normal(output, 1.0).log_prob(truth.nan_to_num())
    each[truth.isnan()] = 0
    torch.testing.assert_close(numbers.nats(output, x), each.sum(1))
    assert numbers.errors(output, x)[0].tolist()[0] == 0
    logits, codes = torch.randn(ROWS, *words.outputs), rows.column("categories").long()
    parts = logits.split(words.sizes, 1)
    expected = sum(-Categorical(logits=part).log_prob(codes[:, i]) for i, part in enumerate(parts))
    torch.testing.assert_close(words.nats(logits, rows.column("categories")), expected)
    assert words.decode(nn.functional.one_hot(torch.tensor([1]), words.outputs[0]).float())[0]["answer"]["c"] == "0"


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_comes_back_from_json_and_encodes_as_its_input(kind: str) -> None:
    schema, _ = pictures() if kind == "image" else table()
    name = next(name for name, item in schema.inputs.items() if item.kind == kind)
    again = Field.from_json(json.loads(json.dumps(schema.targets[name].to_json())))
    assert isinstance(again, Copy)
    assert again.state == schema.inputs[name].state == schema.targets[name].state
    assert again.inner.to_json() == schema.inputs[name].to_json()
    assert again.files is (kind == "image")


# ---------------------------------------------------------------- binary pictures


@given(arrays(np.uint8, (3, 1, 4, 4)))
def test_binary_pixels_are_black_or_white_and_follow_from_the_picture_alone(pixels: np.ndarray) -> None:
    made = binarized(torch.from_numpy(pixels), "stochastic")
    assert set(made.unique().tolist()) <= {0, 255}
    assert bool((made[torch.from_numpy(pixels) == 0] == 0).all())
    assert bool((made[torch.from_numpy(pixels) == 255] == 255).all())
    alone = torch.cat([binarized(torch.from_numpy(pixels[i : i + 1]), "stochastic") for i in (2, 0, 1)])
    assert torch.equal(made[[2, 0, 1]], alone)
    assert torch.equal(binarized(torch.from_numpy(pixels), "threshold") > 0, torch.from_numpy(pixels) > 127)


def test_a_pixel_is_white_as_often_as_it_is_bright() -> None:
    generator = np.random.default_rng(0)
    gray = generator.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8)
    white = binarized(torch.from_numpy(gray), "stochastic").numpy() > 0
    for low in range(0, 256, 64):
        chosen = (gray >= low) & (gray < low + 64)
        assert white[chosen].mean() == pytest.approx(gray[chosen].mean() / 255, abs=0.02)


def test_pixels_that_are_no_bytes_have_no_share_of_white() -> None:
    with pytest.raises(DataError, match=r"data\.image\.binarize = stochastic needs pixels from 0 to 255"):
        binarized(torch.randn(1, 1, 2, 2), "stochastic")


# ---------------------------------------------------------------- bounds


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def linear_gaussian() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x = W z + noise of variance 1: its likelihood and the posterior of z are known."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.diag(torch.tensor([1.5, 0.5])).double()
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    precision = 1 + weight.diagonal() ** 2
    mean = x * weight.diagonal() / precision
    log_variance = -precision.log().expand(4, 2)
    exact = MultivariateNormal(torch.zeros(2).double(), weight @ weight.T + torch.eye(2).double()).log_prob(x)
    return weight, x, mean, log_variance, exact


def nats_of(code: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return -Independent(Normal(code @ weight.T, 1.0), 1).log_prob(x)


@pytest.mark.parametrize("samples", [1, 7])
def test_the_bound_is_exact_where_the_posterior_is(samples: int) -> None:
    weight, x, mean, log_variance, exact = linear_gaussian()
    code = sampled(mean, log_variance, torch.randn(samples, *mean.shape, dtype=torch.float64))
    bound = importance_bound(nats_of(code, weight, x), code, mean, log_variance)
    torch.testing.assert_close(bound, -exact)


def test_the_bound_tightens_with_samples_and_is_the_elbo_with_one() -> None:
    weight, x, mean, log_variance, exact = linear_gaussian()
    mean, log_variance = mean + 0.7, log_variance + 0.5  # a posterior that is wrong
    torch.manual_seed(0)
    found = []
    for samples in (1, 10, 100):
        code = sampled(mean, log_variance, torch.randn(4_000 * samples, *mean.shape, dtype=torch.float64))
        nats = nats_of(code, weight, x).view(samples, 4_000, 4)
        parts = code.view(samples, 4_000, *mean.shape)
        each = [importance_bound(nats[:, i], parts[:, i], mean, log_variance) for i in range(0, 4_000, 4)]
        found.append(float(torch.stack(each).mean()))
    elbo = nats_of(code, weight, x).mean(0) + divergence(mean, log_variance).sum(1)
    assert found[0] == pytest.approx(float(elbo.mean()), rel=0.03)
    assert found[0] > found[1] > found[2] > float(-exact.mean()) - 0.02
    assert found[2] == pytest.approx(float(-exact.mean()), rel=0.02)


def test_log_weights_are_those_of_torch() -> None:
    _, _, mean, log_variance, _ = linear_gaussian()
    code = sampled(mean, log_variance, torch.randn(3, *mean.shape, dtype=torch.float64))
    nats = torch.rand(3, 4).double()
    prior = Independent(Normal(torch.zeros(2).double(), 1.0), 1).log_prob(code)
    posterior = Independent(Normal(mean, (0.5 * log_variance).exp()), 1).log_prob(code)
    torch.testing.assert_close(log_weights(nats, code, mean, log_variance), prior - posterior - nats)


def test_contraction_is_the_norm_of_the_jacobian_on_average() -> None:
    torch.manual_seed(0)
    encode = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(2, 4)
    exact = torch.stack([torch.autograd.functional.jacobian(encode, row).square().sum() for row in x])  # type: ignore[no-untyped-call]
    drawn = torch.stack([contraction(encode, [x]).detach() for _ in range(3_000)]).mean(0)
    torch.testing.assert_close(drawn, exact, rtol=0.08, atol=0)


def test_the_bound_of_evaluation_repeats_and_is_in_order() -> None:
    schema, rows = pictures(likelihood="bernoulli")
    made = algorithm(schema, "vae", {"hidden": [16], "code": 3})
    batch = rows.batch(torch.arange(6))
    with torch.no_grad():
        one, two = (bounds(made.model, copies_of(schema), batch, 64) for _ in range(2))
    assert torch.equal(one, two)
    assert bool((one[:, 1] <= one[:, 0] + 1e-6).all()), "the bound of several samples is no larger than their mean"
    assert bool((one[:, 2] > 0).all())


# ---------------------------------------------------------------- networks


def test_the_overviews_autoencoder_has_its_parameters() -> None:
    schema, _ = pictures(side=28)
    module = networks["autoencoder"].build(schema, "model", hidden=[256], code=64)
    assert sum(p.numel() for p in module.parameters()) == 784 * 256 + 256 + 256 * 64 + 64 + 64 * 256 + 256 + 256 * 784 + 784
    assert sum(p.numel() for p in module.parameters()) == 435_536


@settings(max_examples=12)
@given(
    st.integers(4, 21), st.integers(4, 21), st.sampled_from([1, 3]), st.sampled_from(["autoencoder", "vae"]),
    st.sampled_from([[], [7], [7, 5]]), st.integers(0, 2),
)  # fmt: skip
def test_the_convolutional_form_gives_back_every_size(
    height: int, width: int, channels: int, name: str, hidden: list[int], blocks: int
) -> None:
    columns = Columns({"image": np.random.default_rng(0).integers(0, 256, (3, channels, height, width), dtype=np.uint8)})
    schema, rows = task({"image": ("image", ["image"])}, columns)
    options = {"channels": [4, 6], "code": 5, "hidden": hidden, "blocks": blocks}
    module = networks[name].build(schema, "model", form="convolution", **options)
    outputs = Model(schema, module)(rows.batch(torch.arange(3)))
    assert outputs["image"].shape == (3, channels, height, width)
    filters = [layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    dense = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    assert (len(filters), len(dense)) == (2 * (2 + 2 * 2 * blocks), 2 * (1 + len(hidden)))


def test_the_recipe_of_the_vae_has_the_parameters_that_its_page_says() -> None:
    schema, _ = pictures(side=28)
    options = {"form": "convolution", "channels": [16, 32], "blocks": 0, "hidden": [256], "code": 32, "activation": "relu"}
    module = networks["vae"].build(schema, "model", **options)
    assert sum(p.numel() for p in module.parameters()) == 842_801


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_the_convolutional_form_has_filters(name: str) -> None:
    schema, _ = pictures(side=8)
    with pytest.raises(FathomError, match="The convolutional form has one filter or more"):
        networks[name].build(schema, "model", form="convolution", channels=[])


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
@pytest.mark.parametrize("form", ["dense", "convolution"])
def test_every_weight_learns(name: str, form: str) -> None:
    schema, rows = pictures(likelihood="logistic")
    made = algorithm(schema, name, {"form": form, "hidden": [8], "channels": [4], "code": 3})
    nats, divergences, _ = made.objective(
        [layer(rows.column("image")) for layer in made.model.preprocess], rows.batch(torch.arange(ROWS))
    )
    (nats.mean() + divergences.sum()).backward()
    for key, parameter in made.model.named_parameters():
        assert bool(parameter.grad.any()), key  # type: ignore[union-attr]
    head = made.module.head
    assert getattr(head, "weight", None) is dict(made.module.named_parameters())[f"{made.module.head_name}.weight"]


def test_halved_rounds_up() -> None:
    assert halved((1, 28, 28), 2) == (7, 7)
    assert halved((1, 9, 5), 3) == (2, 1)


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_they_refuse_what_is_not_to_be_reconstructed(name: str) -> None:
    schema, _ = pictures()
    label = fields["category"].make(["y"])
    label.fit([Columns({"y": ["a", "b"]})])
    with pytest.raises(FathomError, match=f"The network '{name}' takes numbers, categories and pictures that are to be rec"):
        networks[name].build(Schema(schema.inputs, {"y": label}), "model")
    schema, _ = table()
    with pytest.raises(FathomError, match="takes one picture in its convolutional form"):
        networks[name].build(schema, "model", form="convolution")


# ---------------------------------------------------------------- what is learnt


def test_a_linear_autoencoder_is_pca() -> None:
    from sklearn.datasets import load_digits

    digits = np.round(load_digits().images[:200] * (255 / 16)).astype(np.uint8)
    schema, rows = task({"image": ("image", ["image"])}, Columns({"image": digits}))
    network = {"hidden": [], "code": 8}
    made = algorithm(schema, "autoencoder", network, steps=2_500, rate=3e-2, schedule="one_cycle")
    batch = rows.batch(torch.arange(200))
    for step in range(2_500):
        made.context.clock.step = step
        missed = made.step(batch)["loss"]
    pca = float(Linear(made.copies, rows, 8, 0).errors(made.copies, rows).mean())
    assert float(missed) == pytest.approx(pca, rel=0.01)


def test_a_linear_activation_makes_it_linear() -> None:
    schema, _ = pictures()
    module = networks["autoencoder"].build(schema, "model", hidden=[9, 7], code=3, activation="linear")
    one, two, zero = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    torch.testing.assert_close(module(one + two) + module(zero), module(one) + module(two), rtol=1e-4, atol=1e-5)
    bent = networks["autoencoder"].build(schema, "model", hidden=[9, 7], code=3)
    assert not torch.allclose(bent(one + two) + bent(zero), bent(one) + bent(two), atol=1e-3)


def test_noise_follows_from_seed_and_step() -> None:
    schema, rows = pictures(noise=0.3)
    made = algorithm(schema, "autoencoder", {"hidden": [8], "code": 3}, noise=0.3)
    stage = Stage("train", 50, rows)
    straight = list(itertools.islice(made.batches(stage, 0), 5))
    (later,) = itertools.islice(made.batches(stage, 4), 1)
    assert torch.equal(straight[4][NOISY + "image"], later[NOISY + "image"])
    added = torch.cat([batch[NOISY + "image"] - batch["image"].float() for batch in straight]) / 255
    assert float(added.std()) == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(straight[0][NOISY + "image"], straight[3][NOISY + "image"])


def test_beta_rises_and_free_bits_cost_nothing() -> None:
    schema, rows = pictures(likelihood="bernoulli")
    made = algorithm(schema, "vae", {"hidden": [8], "code": 3}, warmup=0.5, beta=4.0)
    rates = []
    for step in (0, 12, 25, 50):
        made.context.clock.step = step
        rates.append(made._beta())
    assert rates == pytest.approx([0.0, 1.92, 4.0, 4.0])
    free = algorithm(schema, "vae", {"hidden": [8], "code": 3}, free_bits=1e3)
    free.step(rows.batch(torch.arange(8)))
    _, divergences, _ = free.objective([free.model.preprocess[0](rows.column("image")[:8])], rows.batch(torch.arange(8)))
    assert not divergences.mean(0).clamp(min=free.free_bits).sub(1e3).any()


def test_several_samples_are_the_bound_of_burda() -> None:
    schema, rows = pictures(likelihood="bernoulli")
    made = algorithm(schema, "vae", {"hidden": [16], "code": 3}, rate=3e-2, importance_samples=5)
    batch = {"image": binarized(rows.column("image")[:8], "threshold")}
    first = float(made.step(batch)["loss"])
    for _ in range(100):
        last = float(made.step(batch)["loss"])
    assert last < 0.8 * first


def test_a_sparse_code_is_smaller() -> None:
    schema, rows = pictures()
    sizes = []
    for sparse in (0.0, 1.0):
        made = algorithm(schema, "autoencoder", {"hidden": [16], "code": 6}, sparse=sparse)
        for _ in range(80):
            made.step(rows.batch(torch.arange(ROWS)))
        code = made.module.encode(made.model.preprocess[0](rows.column("image")))
        sizes.append(float(code.detach().abs().mean()))
    assert sizes[1] < 0.5 * sizes[0]


def test_a_contractive_code_moves_less() -> None:
    schema, rows = pictures()
    moves = []
    for strength in (0.0, 10.0):
        made = algorithm(schema, "autoencoder", {"hidden": [16], "code": 6, "activation": "tanh"}, contractive=strength)
        for _ in range(60):
            made.step(rows.batch(torch.arange(ROWS)))
        x = [made.model.preprocess[0](rows.column("image"))]
        moves.append(float(torch.stack([contraction(made.module.encode, x).mean().detach() for _ in range(20)]).mean()))
    assert moves[1] < 0.5 * moves[0]


@pytest.mark.parametrize("key", ["beta", "warmup", "free_bits", "importance_samples"])
def test_terms_need_a_network_that_has_them(key: str) -> None:
    schema, _ = pictures()
    value = 3 if key == "importance_samples" else 0.5
    with pytest.raises(FathomError, match=rf"reconstruction\.{key} = .* needs a network with a distribution of codes; use --net"):
        algorithm(schema, "autoencoder", {"hidden": [8]}, **{key: value})
    with pytest.raises(FathomError, match=r"reconstruction\.sparse = 0\.5 needs a network with a code"):
        algorithm(schema, "mlp", {"hidden": [8]}, sparse=0.5)


def test_any_network_can_reconstruct() -> None:
    schema, rows = table()
    made = algorithm(schema, "mlp", {"hidden": [16]})
    losses = [float(made.step(rows.batch(torch.arange(ROWS)))["loss"]) for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]
    assert set(made.predictor().scores) == {"anomaly", "columns"}
    assert made.predictor().sampler is None


def test_validation_is_the_same_at_every_time_and_leaves_the_random_state() -> None:
    schema, rows = pictures(likelihood="bernoulli", noise=0.2)
    made = algorithm(schema, "vae", {"hidden": [8], "code": 3}, noise=0.2)
    before = torch.get_rng_state()
    one, two = made.validate(rows), made.validate(rows)
    assert one == two
    assert set(one) == {"loss", "kl", "psnr", "mse"}
    assert torch.equal(before, torch.get_rng_state())


def test_the_threshold_lies_above_the_share_that_was_asked() -> None:
    schema, rows = table(200)
    made = algorithm(schema, "autoencoder", {"hidden": [8], "code": 1}, quantile=0.9)
    made.settle({"validation": rows})
    threshold = schema.targets["numbers"].state["threshold"]
    scores = made.predictor().scores["anomaly"](rows.batch(torch.arange(200)))
    assert float((scores > threshold).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert "threshold" not in schema.inputs["numbers"].state


# ---------------------------------------------------------------- judging


def test_matrix_and_parted_are_inverse() -> None:
    schema, rows = table()
    copies = copies_of(schema)
    batch = rows.batch(torch.arange(ROWS))
    answers = parted(copies, matrix(copies, batch))
    assert torch.equal(answers["categories"], batch["categories"].long())
    known_ones = ~batch["numbers"].isnan()
    assert torch.equal(answers["numbers"][known_ones], schema.targets["numbers"].truth(batch["numbers"])[known_ones])  # type: ignore[attr-defined]


def test_pca_is_that_of_numpy_and_the_mean_is_the_mean() -> None:
    schema, rows = pictures()
    copies = copies_of(schema)
    x = rows.column("image").flatten(1).numpy() / 255
    mean = x.mean(0)
    _, _, axes = np.linalg.svd(x - mean, full_matrices=False)
    again = (x - mean) @ axes[:5].T @ axes[:5] + mean
    found = Linear(copies, rows, 5, 0).rows(copies, rows, "")["image"]
    np.testing.assert_allclose(found.numpy(), ((again.clip(0, 1) - x) ** 2).mean(1), rtol=1e-4)
    trivial = Trivial(copies, rows).rows(copies, rows, "")["image"]
    np.testing.assert_allclose(trivial.numpy(), ((mean - x) ** 2).mean(1), rtol=1e-4)


def test_the_likelihood_of_each_pixel_alone_is_that_of_its_counts() -> None:
    schema, rows = pictures(likelihood="bernoulli")
    white = rows.column("image") > 127
    rows = TensorSet({"image": white.to(torch.uint8) * 255})
    share = (white.double().sum(0) + 1) / (ROWS + 2)
    expected = -Independent(Bernoulli(probs=share), 3).log_prob(white.double())
    torch.testing.assert_close(Trivial(copies_of(schema), rows).nats(copies_of(schema), rows), expected, rtol=1e-5, atol=1e-5)


def test_intervals_hold_the_mean_and_differences_are_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    error = torch.rand(300, generator=generator).double()
    rival = error + 0.1
    mine, others, gap = judged({"network": {"e": error}, "rival": {"e": rival}}, dict, None, 0, None)
    assert mine["e"].low < float(error.mean()) < mine["e"].high
    assert mine["e"].high - mine["e"].low == pytest.approx(4 * float(error.std()) / math.sqrt(300), rel=0.2)
    assert gap["rival"]["e"].value == pytest.approx(-0.1)
    assert gap["rival"]["e"].high - gap["rival"]["e"].low < 1e-9, "the same rows are drawn for both"
    assert others["rival"]["e"].value == pytest.approx(float(rival.mean()))


def test_the_rarer_class_is_the_anomaly() -> None:
    told = known(pa.chunked_array([["bad", *["fine"] * 8, None]]))
    assert told is not None
    assert told.rare == "bad"
    assert told.rows.tolist() == list(range(9))
    assert known(pa.chunked_array([["a", "b", "c"]])) is None


def test_a_grid_holds_every_picture() -> None:
    made = grid(torch.arange(5).view(5, 1, 1, 1).expand(-1, 1, 2, 3) / 10, 2)
    assert made.shape == (1, 10, 9)
    assert float(made[0, 7, 1]) == pytest.approx(0.4)


def test_a_walk_keeps_its_length_and_its_ends() -> None:
    ends = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    made = arc(ends, 7)
    torch.testing.assert_close(made[[0, -1]], ends)
    lengths = made.norm(dim=1)
    assert float(lengths.min()) > 0.9 * float(ends.norm(dim=1).min())
    assert torch.equal(arc(torch.ones(2, 3), 3), torch.ones(3, 3))


def test_noise_of_rows_depends_on_their_number_alone() -> None:
    schema, rows = pictures(noise=0.3)
    made = algorithm(schema, "autoencoder", {"hidden": [8], "code": 3}, noise=0.3)
    from fathom.analysis.copied import with_noise

    whole = with_noise(made.copies, rows.batch(torch.arange(6)))[NOISY + "image"]
    part = with_noise(made.copies, rows.batch(torch.tensor([4])))[NOISY + "image"]
    assert torch.equal(whole[4:5], part)
    assert ROW in rows.batch(torch.tensor([4]))
