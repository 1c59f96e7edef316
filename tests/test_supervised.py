"""Supervised learning: losses against torch and by hand, weights of rows, classes and targets, penalties, and learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.algorithms.regularizers import Penalty, regularizers
from fathom.algorithms.supervised import Supervised
from fathom.core.contract import WEIGHT, Batch, Clock, Columns, Context, Model, Schema, TensorSet
from fathom.core.device import Device, seed_everything
from fathom.core.diagnose import non_finite
from fathom.core.errors import FathomError
from fathom.core.loop import train
from fathom.core.recipe import Recipe
from fathom.core.registry import fields, networks
from fathom.fields import losses
from fathom.verbs.assemble import class_weights

ROWS, CLASSES = 24, 3
LOGITS = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))
TRUTH = torch.arange(ROWS) % CLASSES
ONE_HOT = F.one_hot(TRUTH, CLASSES).float()


def build(
    columns: Columns, inputs: dict[str, str], targets: dict[str, str],
    module: Callable[[Schema], nn.Module] | None = None, tree: dict[str, Any] | None = None, **context: Any,
) -> tuple[Supervised, Batch, TensorSet]:  # fmt: skip
    """An algorithm over fields named like their columns, the batch of all rows, and the rows as a set."""
    seed_everything(0)
    schema = Schema(
        {name: fields[kind].make([name]) for name, kind in inputs.items()},
        {name: fields[kind].make([name]) for name, kind in targets.items()},
    )
    for item in schema.fields().values():
        item.fit([columns])
    given = tree or {}
    training = {"batch": 8, "steps": 10, "learning_rate": 0.01, "algorithm": "supervised"}
    recipe = Recipe.parse({**given, "training": {**training, **given.get("training", {})}})
    models = {"model": Model(schema, module(schema) if module else networks["perceptron"].build(schema, "model"))}
    penalties = regularizers(recipe.training.l1, recipe.training.l2, models)
    whole = Context(schema, models, recipe, Clock(), torch.device("cpu"), regularizers=penalties, **context)
    data = TensorSet({name: item.encode(columns, target=name in targets) for name, item in schema.fields().items()})
    return Supervised(whole, **recipe.algorithm), data.batch(torch.arange(len(data))), data


def classes_of(form: Any = None, **more: Any) -> tuple[Supervised, Batch, TensorSet]:
    x = np.random.default_rng(0).normal(size=ROWS)
    return build(
        Columns({"x": x, "y": TRUTH.numpy() if form is None else form}), {"x": "number"}, {"y": "category"}, **more
    )


def total(algorithm: Supervised, batch: Batch, **outputs: Tensor) -> float:
    return float(algorithm.total(outputs, batch))


# ---- losses by formula -----------------------------------------------------------------------------------------


def focal_by_hand(output: Tensor, target: Tensor) -> Tensor:
    p = output.softmax(1).gather(1, target[:, None]).squeeze(1)
    return -((1 - p) ** 2) * p.log()


def binary_focal_by_hand(output: Tensor, target: Tensor) -> Tensor:
    p = torch.where(target > 0, output.sigmoid(), 1 - output.sigmoid())
    return (-((1 - p) ** 2) * p.log()).mean(1)


Y = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1))
FORMULAS: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]] = {
    "cross_entropy": (losses.cross_entropy, TRUTH, -LOGITS.log_softmax(1)[torch.arange(ROWS), TRUTH]),
    "focal": (losses.focal, TRUTH, focal_by_hand(LOGITS, TRUTH)),
    "binary_cross_entropy": (
        losses.binary_cross_entropy, ONE_HOT,
        -(ONE_HOT * LOGITS.sigmoid().log() + (1 - ONE_HOT) * (1 - LOGITS.sigmoid()).log()).mean(1),
    ),
    "binary_focal": (losses.binary_focal, ONE_HOT, binary_focal_by_hand(LOGITS, ONE_HOT)),
    "mse": (losses.mse, Y, ((LOGITS - Y) ** 2).mean(1)),
    "mae": (losses.mae, Y, (LOGITS - Y).abs().mean(1)),
    "huber": (
        losses.huber, Y,
        torch.where((LOGITS - Y).abs() < 1, (LOGITS - Y) ** 2 / 2, (LOGITS - Y).abs() - 0.5).mean(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_give_one_value_a_row_by_their_formula(name: str) -> None:
    function, target, expected = FORMULAS[name]
    each = function(LOGITS, target)
    assert each.shape == (ROWS,)
    torch.testing.assert_close(each, expected)


def test_every_loss_of_every_field_is_covered_here() -> None:
    known = {function for function, _, _ in FORMULAS.values()}
    elsewhere = {"forecast"}  # tests/test_series.py
    assert {loss for entry in fields if entry.name not in elsewhere for loss in entry.make.losses.values()} == known


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_soft_rows_are_legal_and_one_hot_rows_equal_classes(name: str) -> None:
    function = FORMULAS[name][0]
    torch.testing.assert_close(function(LOGITS, ONE_HOT), function(LOGITS, TRUTH))
    soft = torch.full((ROWS, CLASSES), 1 / CLASSES)
    whole = torch.stack([function(LOGITS, torch.full((ROWS,), k)) for k in range(CLASSES)]).mean(0)
    torch.testing.assert_close(function(LOGITS, soft), whole)


# ---- the loss of a batch ---------------------------------------------------------------------------------------


def test_integer_string_and_one_hot_labels_give_the_same_loss() -> None:
    forms = (None, [f"class {k}" for k in TRUTH.tolist()], ONE_HOT.numpy())
    found = [total(*classes_of(form)[:2], y=LOGITS) for form in forms]
    assert found == pytest.approx([float(F.cross_entropy(LOGITS, TRUTH))] * 3)


def test_label_smoothing_is_that_of_torch() -> None:
    algorithm, batch, _ = classes_of(tree={"training": {"label_smoothing": 0.1}})
    expected = F.cross_entropy(LOGITS, TRUTH, label_smoothing=0.1)
    assert total(algorithm, batch, y=LOGITS) == pytest.approx(float(expected))
    soft = {**batch, "y": ONE_HOT}
    assert total(algorithm, soft, y=LOGITS) == pytest.approx(float(expected))


def test_class_weights_by_hand() -> None:
    algorithm, batch, _ = classes_of(class_weights={"y": torch.tensor([1.0, 2.0, 4.0])})
    each = F.cross_entropy(LOGITS, TRUTH, reduction="none") * torch.tensor([1.0, 2.0, 4.0])[TRUTH]
    assert total(algorithm, batch, y=LOGITS) == pytest.approx(float(each.mean()))
    assert total(algorithm, {**batch, "y": ONE_HOT}, y=LOGITS) == pytest.approx(float(each.mean()))


def test_balanced_weights_come_from_the_training_rows_alone() -> None:
    """rows / (K * rows of the class): 4 rows of class 0 and 12 of class 1 weigh 2 and 2/3."""
    labels = np.array([0] * 4 + [1] * 12 + [0] * 50)
    algorithm, _, data = build(Columns({"x": np.zeros(66), "y": labels}), {"x": "number"}, {"y": "category"})
    prepared = SimpleNamespace(sets={"train": data.subset(torch.arange(16)), "test": data.subset(torch.arange(16, 66))})
    recipe = Recipe.parse({"supervised": {"class_weights": "balanced"}, "training": {"algorithm": "supervised"}})
    task = SimpleNamespace(recipe=recipe, schema=algorithm.schema, prepared=prepared)
    assert class_weights(task, torch.device("cpu"))["y"].tolist() == pytest.approx([2.0, 2 / 3])


def test_a_row_of_weight_two_is_the_row_twice() -> None:
    algorithm, batch, _ = classes_of()
    weights = torch.ones(ROWS)
    weights[5] = 2
    twice = torch.cat([torch.arange(ROWS), torch.tensor([5])])
    doubled = {name: tensor[twice] for name, tensor in batch.items()}
    assert total(algorithm, {**batch, WEIGHT: weights}, y=LOGITS) == pytest.approx(
        total(algorithm, doubled, y=LOGITS[twice])
    )
    assert total(algorithm, {**batch, WEIGHT: weights}, y=LOGITS) != pytest.approx(total(algorithm, batch, y=LOGITS))


def test_two_targets_are_summed_with_their_weights_and_numbers_are_standardized() -> None:
    z = np.random.default_rng(1).normal(5, 30, ROWS)
    columns = Columns({"x": np.zeros(ROWS), "y": TRUTH.numpy(), "z": z})
    tree = {"supervised": {"loss_weight": {"z": 0.25}, "loss": {"z": "mae"}}}
    algorithm, batch, _ = build(columns, {"x": "number"}, {"y": "category", "z": "number"}, tree=tree)
    answer = torch.zeros(ROWS, 1)
    expected = float(F.cross_entropy(LOGITS, TRUTH)) + 0.25 * np.abs((z - z.mean()) / z.std()).mean()
    assert total(algorithm, batch, y=LOGITS, z=answer) == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_one_is_as_bad_as_always_answering_the_mean() -> None:
    columns = Columns({"x": np.zeros(ROWS), "z": np.random.default_rng(1).normal(1e3, 30, ROWS)})
    algorithm, batch, _ = build(columns, {"x": "number"}, {"z": "number"})
    assert total(algorithm, batch, z=torch.zeros(ROWS, 1)) == pytest.approx(1.0, rel=1e-3)


def test_the_users_own_loss() -> None:
    def margin(output: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(output, target, reduction="none")

    algorithm, batch, _ = classes_of(losses={"y": margin})
    assert total(algorithm, batch, y=LOGITS) == pytest.approx(float(F.multi_margin_loss(LOGITS, TRUTH)))
    mean, batch, _ = classes_of(losses={"y": F.cross_entropy})  # one number for the batch
    assert total(mean, batch, y=LOGITS) == pytest.approx(float(F.cross_entropy(LOGITS, TRUTH)))
    wrong, batch, _ = classes_of(losses={"y": lambda output, target: output})
    with pytest.raises(
        FathomError, match=r"loss given for 'y' returned \(24, 3\); it should return one number a row, \(24,\)"
    ):
        total(wrong, batch, y=LOGITS)


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(
        FathomError, match=r"no loss 'focl' in supervised\.loss for 'y', a category\. Did you mean 'focal'"
    ):
        classes_of(tree={"supervised": {"loss": "focl"}})


# ---- penalties -------------------------------------------------------------------------------------------------


def test_penalties_by_hand_on_weights_only() -> None:
    algorithm, batch, _ = classes_of(tree={"training": {"l1": 0.1, "l2": 0.01}})
    weight = algorithm.model.module.head.weight
    (penalty,) = algorithm.regularizers
    expected = 0.1 * weight.abs().sum() + 0.01 * (weight**2).sum()
    torch.testing.assert_close(penalty.penalty(algorithm.models, batch, {}), expected)
    assert regularizers(0.0, 0.0, algorithm.models) == ()


def test_normalization_and_biases_are_not_penalized() -> None:
    def lines(schema: Schema) -> nn.Module:
        return networks["layers"].build(schema, "model", layers=["dense 4", "layernorm"])

    algorithm, batch, _ = classes_of(module=lines)
    first, head = (layer for layer in algorithm.model.modules() if isinstance(layer, nn.Linear))
    expected = 0.5 * ((first.weight**2).sum() + (head.weight**2).sum())
    torch.testing.assert_close(Penalty(0.0, 0.5).penalty(algorithm.models, batch, {}), expected)


def test_the_penalty_is_in_the_gradient_and_not_in_the_reported_loss() -> None:
    plain, batch, _ = classes_of(tree={"training": {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant"}})
    pulled, _, _ = classes_of(
        tree={"training": {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "l2": 0.5}}
    )
    before = plain.model.module.head.weight.detach().clone()
    assert float(plain.step(batch)["loss"]) == pytest.approx(float(pulled.step(batch)["loss"]))
    apart = plain.model.module.head.weight - pulled.model.module.head.weight
    torch.testing.assert_close(apart.detach(), 0.01 * 2 * 0.5 * before)


def test_a_layer_of_the_recipe_has_its_own_penalty() -> None:
    def lines(schema: Schema) -> nn.Module:
        return networks["layers"].build(schema, "model", layers=["dense 4 relu l2=0.01", "dense 5 l1=0.2 l2=0"])

    algorithm, batch, _ = classes_of(module=lines)
    first, second = (layer for layer in algorithm.model.module.body if isinstance(layer, nn.Linear))
    expected = 0.01 * (first.weight**2).sum() + 0.2 * second.weight.abs().sum()
    torch.testing.assert_close(algorithm.regularizers[0].penalty(algorithm.models, batch, {}), expected)
    both = Penalty(0.0, 0.5).penalty(algorithm.models, batch, {})
    torch.testing.assert_close(both, expected + 0.5 * (algorithm.model.module.head.weight**2).sum())


# ---- learning --------------------------------------------------------------------------------------------------


def learn(algorithm: Supervised, data: TensorSet, steps: int) -> dict[str, Tensor]:
    algorithm.context.clock.steps = steps
    stages = [stage.__class__(stage.name, steps, data) for stage in algorithm.stages({"train": data})]
    train(algorithm, stages, [], algorithm.context.clock, Device.choose("cpu"), non_finite)
    return algorithm.predictor().outputs(data)


def exclusive_or(name: str, **options: Any) -> float:
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 8, np.float32)
    columns = Columns({"a": corners[:, 0], "b": corners[:, 1], "y": np.logical_xor(*corners.T).astype(int)})
    tree = {"training": {"batch": 16, "learning_rate": 0.03}}
    build_network = lambda schema: networks[name].build(schema, "model", **options)  # noqa: E731
    algorithm, batch, data = build(columns, {"a": "number", "b": "number"}, {"y": "category"}, build_network, tree)
    return float((learn(algorithm, data, 300)["y"].argmax(1) == batch["y"]).float().mean())


def test_exclusive_or_needs_a_hidden_layer() -> None:
    """Minsky & Papert 1969: no straight line parts the four corners, so one of them at least stays wrong."""
    assert exclusive_or("mlp", hidden=[16]) == 1.0
    assert exclusive_or("perceptron") <= 0.75


def test_a_cnn_finds_a_pattern_wherever_it_is_planted() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 60, (96, 12, 12), dtype=np.uint8)
    labels = np.arange(96) % 2
    for i in range(96):
        y, x = generator.integers(0, 10, 2)
        bar = (slice(y, y + 3), x) if labels[i] else (y, slice(x, x + 3))  # upright or lying
        images[i][bar] = 255
    cnn = lambda schema: networks["cnn"].build(schema, "model", channels=[8, 16], dense=[16])  # noqa: E731
    tree = {"training": {"batch": 16, "learning_rate": 0.01}}
    algorithm, batch, data = build(
        Columns({"image": images, "y": labels}), {"image": "image"}, {"y": "category"}, cnn, tree
    )
    learn(algorithm, data.subset(torch.arange(64)), 150)
    judged = algorithm.predictor().outputs(data.subset(torch.arange(64, 96)))["y"]
    assert float((judged.argmax(1) == batch["y"][64:]).float().mean()) >= 0.9, "pictures it has not seen"


def test_a_perceptron_recovers_the_coefficients_of_a_line() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(3, 2, 200), generator.normal(-1, 0.5, 200)
    columns = Columns({"a": a, "b": b, "z": 4 + 1.5 * a - 8 * b})
    tree = {"training": {"batch": 50, "learning_rate": 0.05, "l2": 0.0}}
    algorithm, _, data = build(columns, {"a": "number", "b": "number"}, {"z": "number"}, tree=tree)
    answers = algorithm.schema.targets["z"].unscale(learn(algorithm, data, 400)["z"])
    torch.testing.assert_close(answers.squeeze(1), torch.from_numpy(4 + 1.5 * a - 8 * b), atol=0.02, rtol=0)
    head = algorithm.model.module.head.weight.detach().squeeze(0)
    spread = algorithm.schema.targets["z"].state["std"][0]
    assert (head * spread / torch.tensor([a.std(), b.std()])).tolist() == pytest.approx([1.5, -8.0], abs=0.01)
    assert math.isfinite(spread)


class Named(nn.Module):
    """Attributes called l1 and l2 are layers here, as people name them."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(1, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(self.l1(x).relu())


def test_a_layer_may_be_called_l1() -> None:
    algorithm, batch, _ = classes_of(module=lambda schema: Named(), tree={"training": {"l2": 0.5}})
    module = algorithm.models["model"].module
    expected = 0.5 * (module.l1.weight.square().sum() + module.l2.weight.square().sum())
    torch.testing.assert_close(Penalty(0.0, 0.5).penalty(algorithm.models, batch, {}), expected)
    algorithm.step(batch)


def test_the_penalty_holds_every_matrix_whatever_its_name() -> None:
    """An LSTM has no `weight`; a parameter that two layers share counts once."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.one, self.other = nn.LSTM(2, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.other.weight = self.one.weight

    module = Shared()
    model = SimpleNamespace(modules=module.modules)
    expected = sum(p.square().sum() for p in module.parameters() if p.ndim > 1)
    penalty = Penalty(0.0, 1.0).penalty({"model": model}, {}, {})  # type: ignore[dict-item]
    torch.testing.assert_close(penalty, expected)
    assert penalty > 0  # type: ignore[operator]
