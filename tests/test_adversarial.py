"""Adversarial networks: losses and penalties by hand, the two networks, one game that is learnt, and killed and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fathom.algorithms import adversarial
from fathom.algorithms.adversarial import (
    DISCRIMINATOR,
    GENERATOR,
    LOSSES,
    NOISE,
    both,
    gradient_penalty,
    squared_gradient,
)
from fathom.core.contract import Columns, Model, Schema
from fathom.core.device import Device
from fathom.core.diagnose import non_finite
from fathom.core.errors import DataError, FathomError, NonFiniteError
from fathom.core.loop import train
from fathom.core.recipe import Recipe
from fathom.core.registry import fields, networks
from fathom.core.run import CheckpointStore
from fathom.core.state import load_state, state_of
from fathom.fields.made import ImageSample
from fathom.verbs.assemble import Assembly, Task, _precisions, build, open_task

CPU = Device(torch.device("cpu"))


def bars(rows: int = 256, side: int = 8) -> np.ndarray:
    """Pictures of one bright row each, the upper or the lower half as often."""
    pictures = np.zeros((rows, side, side), np.uint8)
    places = np.random.default_rng(0).integers(0, side, rows)
    pictures[np.arange(rows), places] = 255
    return pictures


def task(*labels: np.ndarray, **changes: Any) -> Task:
    """A small task on bars."""
    tree: dict[str, Any] = {
        "network": {"name": "gan", "form": "dense", "hidden": [32]},
        "training": {"steps": 12, "batch": 16, "threads": 1, "precision": "float32"},
        "adversarial": {"latent": 4},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        tree[section][name] = value
    data = bars()
    return open_task((data, labels[0] if labels else np.arange(len(data)) % 2), tree)


def play(made: Assembly, prepared: Any, steps: int) -> None:
    """Train for some steps."""
    stage = replace(made.algorithm.stages(prepared.sets)[0], steps=steps)
    train(made.algorithm, [stage], [], made.clock, CPU, non_finite)


def test_pictures_that_are_made_are_tried_in_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "precisions", lambda self: ["float32", "bfloat16"])
    assert _precisions(task(), CPU) == ["float32", "bfloat16"]
    numbers = [float(i) for i in range(80)]
    table = open_task({"x": numbers, "y": numbers}, {"data": {"target": "y"}})
    assert _precisions(table, CPU) == ["float32"]


@pytest.mark.parametrize(("conditional", "mapping"), [(False, (128,)), (True, ())])
def test_dense_layers_are_for_gray_pictures_whose_label_nobody_told(conditional: bool, mapping: tuple[int, ...]) -> None:
    tree = {"network": {"name": "gan", "conditional": conditional}}
    assert open_task((bars(), np.arange(256) % 2), tree).recipe.network["mapping"] == mapping
    color = np.repeat(bars()[..., None], 3, 3)
    assert open_task((color, np.arange(256) % 2), tree).recipe.network["mapping"] == ()


def test_the_convolutional_form_has_filters() -> None:
    with pytest.raises(FathomError, match="The convolutional form has one filter or more"):
        build(task(network__form="convolution", network__channels=[]), CPU)


# Losses


def test_losses_by_hand() -> None:
    real, made = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])

    def soft(x: float) -> float:
        return float(np.log1p(np.exp(x)))

    expected = {
        "non_saturating": (
            (soft(-1) + soft(2)) / 2 + (soft(0.5) + soft(3)) / 2, (soft(-0.5) + soft(-3)) / 2,
        ),
        "hinge": ((0 + 3) / 2 + (1.5 + 4) / 2, -1.75),
        "wgan_gp": (1.75 - (-0.5), -1.75),
        "relativistic": ((soft(-0.5) + soft(5)) / 2, (soft(0.5) + soft(-5)) / 2),
    }  # fmt: skip
    assert set(expected) == set(LOSSES)
    for name, figures in expected.items():
        found = tuple(float(loss(real, made)) for loss in LOSSES[name])
        assert found == pytest.approx(figures, rel=1e-5), name


def test_penalties_of_a_plane_are_its_slope() -> None:
    plane = nn.Linear(9, 1, bias=False)
    with torch.no_grad():
        plane.weight.mul_(3 / plane.weight.norm())

    def critic(pictures: Tensor) -> Tensor:
        return plane(pictures.flatten(1)).squeeze(1)

    real, made = torch.randn(5, 1, 3, 3, requires_grad=True), torch.randn(5, 1, 3, 3)
    assert squared_gradient(critic(real), real).tolist() == pytest.approx([9.0] * 5, rel=1e-5)
    assert float(gradient_penalty(critic, real.detach(), made).detach()) == pytest.approx(4.0, rel=1e-5)
    squared_gradient(critic(real), real).mean().backward()
    assert plane.weight.grad is not None
    assert torch.allclose(plane.weight.grad, 2 * plane.weight), "the penalty reaches the weights"


def test_the_penalty_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    found = float(squared_gradient(net(x).squeeze(1), x).detach())
    steps = 1e-6 * torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)
    slopes = (net(x + steps) - net(x - steps)) / 2e-6
    assert found == pytest.approx(float(slopes.detach().square().sum()), rel=1e-5)


# Networks


def role_schemas(
    shape: tuple[int, int, int] = (1, 8, 8), conditional: bool = False, latent: int = 5
) -> dict[str, Schema]:
    pictures = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    columns = Columns({"image": pictures, "label": ["a", "b", "c"] * 2})
    image, label = fields["image"].make(["image"]), fields["category"].make(["label"])
    made = ImageSample.of_input(image, latent=latent)
    image.fit([columns])
    label.fit([columns])
    made.state = image.state
    return both(Schema({"image": image, **({"label": label} if conditional else {})}, {"image": made}))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14), (1, 8, 11)])
@pytest.mark.parametrize("form", ["convolution", "dense"])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_pair_fits_any_picture(shape: tuple[int, int, int], form: str, conditional: bool) -> None:
    roles = role_schemas(shape, conditional)
    options = {"form": form, "channels": (4, 6), "hidden": (7,), "conditional": conditional, "normalization": "batch"}
    models = {role: Model(part, networks["gan"].build(part, role, **options)) for role, part in roles.items()}
    told = {"label": torch.tensor([[1], [2], [3]], dtype=torch.int32)} if conditional else {}
    made = models[GENERATOR]({NOISE: torch.randn(3, 5), **told})["image"]
    assert made.shape == (3, *shape)
    assert float(made.detach().abs().max()) <= 1
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    answer = models[DISCRIMINATOR]({"image": pixels, **told})["real"]
    assert answer.shape == (3, 1)
    answer.sum().backward()
    assert all(p.grad is not None for p in models[DISCRIMINATOR].parameters())
    assert all(isinstance(model.module.head, nn.Module) for model in models.values())


def test_the_overviews_pair_has_its_parameters() -> None:
    recipe = Recipe.parse(Recipe.read(Path(__file__).parent.parent / "recipes" / "gan-dense.toml"))
    table = {key: value for key, value in recipe.network.items() if key != "name"}
    roles = role_schemas((1, 28, 28), latent=recipe.algorithm["latent"])
    counts = {
        role: sum(p.numel() for p in networks["gan"].build(part, role, **table).parameters())
        for role, part in roles.items()
    }
    assert counts == {GENERATOR: 100 * 256 + 256 + 256 * 784 + 784, DISCRIMINATOR: 784 * 256 + 256 + 256 + 1}
    assert counts == {GENERATOR: 227_344, DISCRIMINATOR: 201_217}


def test_a_label_changes_what_both_say() -> None:
    roles = role_schemas(conditional=True)
    models = {role: Model(part, networks["gan"].build(part, role)) for role, part in roles.items()}
    noise, pixels = torch.randn(1, 5), torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
    one, other = (torch.tensor([[code]], dtype=torch.int32) for code in (1, 2))
    for role, batch in ((GENERATOR, {NOISE: noise}), (DISCRIMINATOR, {"image": pixels})):
        first, second = ({**batch, "label": code} for code in (one, other))
        a, b = (next(iter(models[role](given).values())) for given in (first, second))
        assert not torch.equal(a, b), role


def test_spectral_norm_holds_every_matrix() -> None:
    part = role_schemas()[DISCRIMINATOR]
    net = networks["gan"].build(part, DISCRIMINATOR, spectral=True, form="dense", hidden=(16,))
    for _ in range(60):
        net(torch.randn(2, 1, 8, 8))
    net.eval()
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1.0, abs=0.02)


def test_pixels_and_answers_share_a_scale() -> None:
    item = next(iter(role_schemas()[GENERATOR].targets.values()))
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    scaled = item.layer()(pixels)
    assert scaled.flatten().tolist() == pytest.approx([-1, 2 * 128 / 255 - 1, 1], abs=1e-6)
    assert torch.allclose(item.shown(scaled), item.truth(pixels))


# Training


def test_each_optimizer_moves_its_own_network() -> None:
    given = task(adversarial__ratio=3)
    made = build(given, CPU, fresh=True)
    made.clock.steps = 12
    batches = made.algorithm.batches(made.algorithm.stages(given.prepared.sets)[0], 0)

    def weights(role: str) -> list[Tensor]:
        return [p.detach().clone() for p in made.models[role].parameters()]

    moved = []
    for _ in range(4):
        before = {role: weights(role) for role in made.models}
        made.algorithm.step(next(batches))
        made.clock.step += 1
        moved.append(
            {r: any(not torch.equal(a, b) for a, b in zip(before[r], weights(r), strict=True)) for r in before}
        )
    assert [m[DISCRIMINATOR] for m in moved] == [True] * 4
    assert [m[GENERATOR] for m in moved] == [True, False, False, True], "one update of the generator in three steps"


def test_a_lazy_penalty_counts_in_every_kth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    given = task(adversarial__lazy=4, adversarial__r2=1.0)
    made = build(given, CPU, fresh=True)
    calls: list[int] = []
    plain = adversarial.squared_gradient

    def counted(answers: Tensor, pictures: Tensor) -> Tensor:
        calls.append(made.clock.step)
        return plain(answers, pictures)

    monkeypatch.setattr(adversarial, "squared_gradient", counted)
    batches = made.algorithm.batches(made.algorithm.stages(given.prepared.sets)[0], 0)
    for _ in range(9):
        made.algorithm.step(next(batches))
        made.clock.step += 1
    assert calls == [0, 0, 4, 4, 8, 8], "of real and made pictures"


def test_a_network_that_couples_rows_gets_real_and_made_apart() -> None:
    given = task()
    made = build(given, CPU, fresh=True)
    algorithm: Any = made.algorithm
    assert not algorithm.apart
    assert adversarial.normalizes(nn.Sequential(nn.BatchNorm1d(3)))
    seen: list[int] = []
    made.models[DISCRIMINATOR].module.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    real = torch.randn(3, 1, 8, 8)
    together = algorithm._judge_both(real, -real, [])
    algorithm.apart = True
    apart = algorithm._judge_both(real, -real, [])
    assert seen == [6, 3, 3]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_learns_the_bars(loss: str) -> None:
    """Eight pictures are all there is: samples come near to one of them, and half of them are made."""
    penalty = {"adversarial__r1": 0.0} if loss == "wgan_gp" else {"adversarial__r1": 0.1, "adversarial__r2": 0.1}
    given = task(
        adversarial__loss=loss, training__steps=800, training__batch=32, training__learning_rate=2e-3,
        network__hidden=[64], **penalty,
    )  # fmt: skip
    made = build(given, CPU, fresh=True)
    play(made, given.prepared, 800)
    made.algorithm.optimizers[GENERATOR].keep_average()
    predictor = made.algorithm.predictor()
    assert predictor.sampler is not None
    with torch.no_grad():
        pictures = predictor.sampler.make(predictor.sampler.draw(200, torch.Generator().manual_seed(0)), {})["image"]
    shown = (pictures[:, 0] + 1) / 2
    truth = torch.stack([torch.eye(8)[i][:, None].expand(8, 8) for i in range(8)])
    nearest = (shown[:, None] - truth).square().mean((2, 3)).min(1)
    assert float(nearest.values.median()) < 0.03, f"{loss}: a picture of the mean is at 0.1"
    assert len(nearest.indices.unique()) >= 4, f"{loss}: modes"


def test_a_killed_game_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = {"adversarial__lazy": 2, "training__average": 0.9, "network__spectral": True}

    def fresh() -> tuple[Assembly, Task]:
        given = task(**settings)
        return build(given, CPU, fresh=True), given

    def state(made: Assembly) -> list[Tensor]:
        averages = made.algorithm.optimizers[GENERATOR].averages
        return [
            *(t.clone() for m in made.models.values() for t in m.state_dict().values()),
            *(a.clone() for a in averages),
        ]

    whole, given = fresh()
    train(whole.algorithm, whole.algorithm.stages(given.prepared.sets), [], whole.clock, CPU, non_finite)
    for cut in (1, 5):
        first, given = fresh()
        stage = first.algorithm.stages(given.prepared.sets)[0]

        class Stop:
            at, clock = cut, first.clock

            def after_step(self, clock: Any, metrics: Any, models: Any) -> Any:
                if clock.total == self.at:
                    raise KeyboardInterrupt
                return "continue"

        with pytest.raises(KeyboardInterrupt):
            train(first.algorithm, [stage], [Stop()], first.clock, CPU, non_finite)  # type: ignore[list-item]
        store = CheckpointStore(tmp_path / str(cut))
        store.save(state_of(first.algorithm, first.clock, {}), cut)
        second, given = fresh()
        torch.manual_seed(99)
        kept, _ = store.load()
        assert kept is not None
        load_state(kept, second.algorithm, second.clock, {})
        train(second.algorithm, second.algorithm.stages(given.prepared.sets), [], second.clock, CPU, non_finite)
        assert all(torch.equal(a, b) for a, b in zip(state(whole), state(second), strict=True)), cut


@pytest.mark.parametrize("role", [GENERATOR, DISCRIMINATOR])
def test_what_is_not_finite_stops_either_network(role: str) -> None:
    given = task()
    made = build(given, CPU, fresh=True)
    with torch.no_grad():
        made.models[role].module.head.bias.fill_(float("nan"))
    before = [p.detach().clone() for p in made.models[DISCRIMINATOR].module.body.parameters()]
    with pytest.raises(NonFiniteError, match="step 1"):
        play(made, given.prepared, 3)
    after = made.models[DISCRIMINATOR].module.body.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "it did not reach the weights"


def test_beta1_and_beta2_are_those_of_torch() -> None:
    from fathom.core.contract import Clock
    from fathom.core.optimize import Optimizer
    from fathom.core.recipe import Training

    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    training = Training(optimizer="adam", learning_rate=0.1, schedule="constant", beta1=0.0, beta2=0.9)
    optimizer, reference = (
        Optimizer({"m": ours}, training, Clock()),
        torch.optim.Adam(theirs.parameters(), 0.1, (0.0, 0.9)),
    )
    for _ in range(3):
        x = torch.randn(4, 3)
        optimizer.minimize(ours(x).square().mean())
        reference.zero_grad()
        theirs(x).square().mean().backward()
        reference.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


# Errors


def test_errors_name_what_is_missing() -> None:
    numbers = {"a": np.arange(100.0), "b": np.arange(100.0)}
    with pytest.raises(DataError, match=r"there must be one picture a row, and there is 'numbers' \(number\)"):
        open_task(numbers, {"network": {"name": "gan"}})
    with pytest.raises(DataError, match=r"network.conditional = true tells the network a label, and no column"):
        open_task((bars(), np.linspace(0, 1, 256)), {"network": {"name": "gan", "conditional": True}})
    with pytest.raises(DataError, match=r"are neither 0 to 1 nor 0 to 255, so nothing says what black and white are"):
        build(
            open_task(
                (bars() / 50.0 - 1.0, np.arange(256) % 2), {"network": {"name": "gan"}, "training": {"steps": 2}}
            ),
            CPU,
        )
    with pytest.raises(FathomError, match=r"adversarial.loss = 'hing' is not allowed"):
        task(adversarial__loss="hing")
    with pytest.raises(FathomError, match=r"Pictures of 8 x 8 cannot be halved 3 times; name fewer filters"):
        build(task(network__form="convolution", network__channels=[4, 4, 4]), CPU)
    with pytest.raises(FathomError, match=r"The network 'gan' takes noise and makes pictures of it"):
        networks["gan"].build(Schema({NOISE: fields["noise"].make([NOISE])}, {}), "model")
