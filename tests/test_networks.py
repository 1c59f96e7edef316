"""Networks: shapes, gradients and parameter counts of every entry; layers from the recipe; modules of the user."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sequences
from fathom.core.contract import Columns, Field, Model, Schema
from fathom.core.errors import FathomError
from fathom.core.features import at_rest, head_alone, head_of
from fathom.core.registry import fields, networks
from fathom.core.tensors import FEATURES
from fathom.networks.cnn import convolution
from fathom.networks.own import adopt, fingerprint

ROWS = 4


def columns(side: int, channels: int, classes: int) -> Columns:
    generator = np.random.default_rng(0)
    rows = max(ROWS, classes)
    return Columns(
        {
            "image": generator.integers(0, 256, (rows, channels, side, side), dtype=np.uint8),
            "a": [1.0, None, 3.0, *range(rows - 3)],
            "b": generator.normal(size=rows),
            "word": ["x", "y", "z", *["x"] * (rows - 3)],
            "class": np.arange(rows) % classes,
            "size": generator.normal(size=rows),
        }
    )


def task(
    inputs: dict[str, tuple[str, list[str]]], targets: tuple[str, ...] = ("class",), side: int = 8, channels: int = 1,
    classes: int = 3,
) -> tuple[Schema, dict[str, Tensor]]:  # fmt: skip
    """A fitted schema and an encoded batch."""
    kinds = {"class": "category", "size": "number"}
    schema = Schema(
        {name: fields[kind].make(names) for name, (kind, names) in inputs.items()},
        {name: fields[kinds[name]].make([name]) for name in targets},
    )
    data = columns(side, channels, classes)
    for item in schema.fields().values():
        item.fit([data])
    batch = {name: item.encode(data) for name, item in schema.inputs.items()}
    return schema, {name: tensor[:ROWS] for name, tensor in batch.items()}


PICTURE = {"image": ("image", ["image"])}
TABLE = {"numbers": ("number", ["a", "b"]), "words": ("category", ["word"])}
SCHEMAS: dict[str, dict[str, Any]] = {
    "picture": {"inputs": PICTURE, "side": 12},
    "colour": {"inputs": PICTURE, "channels": 3, "side": 16},
    "table": {"inputs": TABLE},
    "mixed": {"inputs": {**PICTURE, **TABLE}},
    "two targets": {"inputs": TABLE, "targets": ("class", "size")},
    "pictures, two targets": {"inputs": PICTURE, "targets": ("class", "size"), "side": 12},
}
NEEDED = {"layers": {"layers": ["dense 5 relu"]}, "bag": {"pairs": 100}, "gpt": {"size": "tiny"}}


@cache
def sample(kind: str) -> tuple[Schema, dict[str, Tensor]]:
    """The schema of a task, and a batch; of a text that is written the tokens but the last, as it is given."""
    if kind in SCHEMAS:
        return task(**SCHEMAS[kind])
    schema, rows = sequences.task(kind)
    batch = rows.batch(torch.arange(ROWS))
    return schema, {key: tensor[:, :-1] if key in sequences.WRITTEN else tensor for key, tensor in batch.items()}


@pytest.mark.parametrize("kind", [*SCHEMAS, *sequences.KINDS])
@pytest.mark.parametrize("name", networks.names())
def test_every_network_on_every_schema(name: str, kind: str) -> None:
    """It answers with one output a target and learns in every weight, or refuses a schema that it says it does not suit."""
    whole, batch = sample(kind)
    schema = sequences.role(whole)
    torch.manual_seed(0)
    module, refused = None, ""
    try:
        module = networks[name].build(schema, "model", **NEEDED.get(name, {}))
    except FathomError as error:
        refused = str(error)
    about = networks[name].about
    takes = about["takes"](whole) if "takes" in about else about["suits"](whole, 100) > 0
    if module is None:
        assert not takes, refused
        assert refused.startswith(f"The network '{name}' ")
        return
    assert takes, "it takes what it says it does not suit"
    model = Model(schema, module)
    with torch.no_grad():  # a head that begins at zero, as some are published, teaches the body nothing in its first step
        [part.normal_() for part in module.head.parameters() if not part.any()]
    outputs = model(batch)
    steps = {key: batch[key].shape[1:] for key in sequences.WRITTEN if key in batch}
    members = [module.members] if hasattr(module, "members") else []  # each answers by itself while it learns
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        key: (ROWS, *members, *(steps[key] + target.outputs[1:] if key in steps else target.outputs))
        for key, target in schema.targets.items()
    }
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.any()), f"nothing is learnt in {key}"
    assert isinstance(module.head, nn.Module), "`.head` names the last layer"
    model.eval()
    torch.testing.assert_close(model(batch), model(batch), msg="evaluation draws nothing")


@pytest.mark.parametrize("name", networks.names())
def test_kept_features_are_those_of_the_full_pass(name: str) -> None:
    """Where the head alone learns, its body neither drops out nor follows the batches, kept features or not."""
    about = networks[name].about
    kinds = [kind for kind in (*SCHEMAS, *sequences.KINDS) if about["takes"](sample(kind)[0])] if "takes" in about else []
    kinds = kinds or [kind for kind in (*SCHEMAS, *sequences.KINDS) if about["suits"](sample(kind)[0], 100) > 0]
    if not kinds:
        assert about.get("algorithm"), "made for another way of learning, in which no head learns alone"
        return
    whole, batch = sample(kinds[0])
    options = {**NEEDED.get(name, {}), **({"dropout": 0.4} if "dropout" in networks[name].hyperparameters else {})}
    torch.manual_seed(0)
    module = networks[name].build(sequences.role(whole), "model", **options)
    if not (hasattr(module, "features") and hasattr(module, "decide")):
        assert not head_alone(module), "what cannot be cut in two keeps no features"
        return
    model = Model(sequences.role(whole), module)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith(f"module.{head_of(module)}."))
    model.train()
    assert head_alone(module)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad(), at_rest(module):
        features = model.features(batch)
    torch.manual_seed(1)
    kept = model({**batch, FEATURES: features})
    after = {key: tensor.clone() for key, tensor in model.state_dict().items()}  # statistics that `decide` follows
    model.load_state_dict(before)
    torch.manual_seed(1)
    torch.testing.assert_close(model(batch), kept)
    torch.testing.assert_close(dict(model.state_dict()), after)
    assert module.training, "the head still learns"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("lstm", "picture", "one text or series, with ordinary inputs beside it or none; here 'image' (image) should tell"),
        ("bert", "translation", "which it does not write; here 'text' (text) should tell 'answer' (text)"),
        ("gpt", "text", "nothing but the text that it continues; here 'text' (text) should tell 'class' (category)"),
        ("linear", "forecast of another column", "forecasts channels of it from their own past"),
        ("mlp", "language", "and no text; here nothing is given to learn 'answer' (text). What fits: transformer"),
        ("resnet", "text", "one picture alone; here 'text' (text) should tell 'class' (category). What fits: bag"),
        ("lstm", "text and series", "should tell 'class' (category). No network fits this data."),
    ],
)
def test_a_network_that_cannot_take_the_data_says_what_can(name: str, kind: str, words: str) -> None:
    with pytest.raises(FathomError) as caught:
        networks[name].build(sequences.role(sample(kind)[0]), "model", **NEEDED.get(name, {}))
    assert words in str(caught.value)
    if kind == "picture":
        assert str(caught.value).endswith("What fits: cnn, resnet, mlp, composite.")


@pytest.mark.parametrize(
    ("name", "options", "side", "channels", "count"),
    [
        ("cnn", {"channels": [32], "dense": [64]}, 28, 1, 347_146),
        ("cnn", {"channels": [32, 64], "dense": [128], "pool": "last"}, 28, 1, 1_199_882),
        ("cnn", {"channels": [32, 64], "dense": [64]}, 32, 3, 167_562),
        ("mlp", {"hidden": [128, 64]}, 28, 1, 109_386),
        ("layers", {"layers": ["conv 32 3 relu", "maxpool 2", "flatten", "dense 64 relu"]}, 28, 1, 347_146),
    ],
)
def test_parameter_counts_of_the_overviews(name: str, options: Any, side: int, channels: int, count: int) -> None:
    schema, batch = task(PICTURE, side=side, channels=channels, classes=10)
    module = networks[name].build(schema, "model", **options)
    assert sum(p.numel() for p in module.parameters()) == count
    assert Model(schema, module)(batch)["class"].shape == (ROWS, 10)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "linear", "gelu", "silu"])
def test_the_cheaper_order_is_the_usual_function(activation: str) -> None:
    torch.manual_seed(0)
    block = convolution(3, 5, 3, 1, activation, "none", pool=True)
    images = torch.randn(2, 3, 9, 9)
    usual = [layer for layer in block if not isinstance(layer, nn.MaxPool2d)] + [nn.MaxPool2d(2)]
    torch.testing.assert_close(nn.Sequential(*block)(images), nn.Sequential(*usual)(images))
    swapped = isinstance(block[1], nn.MaxPool2d)
    assert swapped == (activation not in ("gelu", "silu")), "only what never falls may be swapped"


def test_layers_of_the_recipe_swap_too_and_build_what_they_say() -> None:
    schema, _ = task(PICTURE, side=10)
    lines = [
        "conv 4 3 relu stride=2 padding=1",
        "maxpool 2",
        "batchnorm",
        "globalpool",
        "dropout 0.5",
        "dense 6 tanh",
        "layernorm",
    ]
    module = networks["layers"].build(schema, "model", layers=lines)
    kinds = [type(layer).__name__ for layer in module.body]
    assert kinds == [
        "Conv2d",
        "MaxPool2d",
        "ReLU",
        "BatchNorm2d",
        "AdaptiveAvgPool2d",
        "Flatten",
        "Dropout",
        "Linear",
        "Tanh",
        "LayerNorm",
    ]
    assert module.head.in_features == 6


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["conv 4 3", "dens 5"], ["line 2", "no layer 'dens'", "did you mean 'dense'"]),
        (["conv 4 3", "flatten", "conv 4 3"], ["line 3", "conv needs a picture, but its input is flat"]),
        (["conv 4 30"], ["line 1", "30 x 30 is larger than its input of 8 x 8"]),
        (["conv 4"], ["line 1", "conv FILTERS KERNEL"]),
        (["dense"], ["line 1", "dense UNITS"]),
        (["dense many"], ["UNITS should be a whole number from 1, but 'many' came"]),
        (["dense 5 rellu"], ["no activation 'rellu'", "did you mean 'relu'"]),
        (["dropout 1.5"], ["from 0 up to 1, but '1.5' came"]),
        (["maxpool 20"], ["a pool of 20 does not fit"]),
        (["dense 5 l2=much"], ["l2 should be a number, but 'much' came"]),
        (["dense 5 stride=2"], ["'stride' has no meaning for dense"]),
        (["flatten l2=0.1"], ["flatten has no weights"]),
        ([], ["network.layers is empty"]),
        ([""], ["line 1", "is empty"]),
        (["dense 5 relu tanh"], ["'tanh'"]),
        (["maxpool 2 relu"], ["'relu'"]),
        (["conv 4 3 stride=0"], ["stride should be a whole number from 1"]),
        (["conv 4 3 stride=1.5"], ["stride should be a whole number from 1"]),
        (["conv 4 3 padding=-1"], ["padding should be a whole number from 0"]),
        (["flatten", "globalpool"], ["line 2", "globalpool needs a picture"]),
    ],
)
def test_faults_of_layers_name_the_line(lines: list[str], words: list[str]) -> None:
    schema, _ = task(PICTURE)
    with pytest.raises(FathomError) as caught:
        networks["layers"].build(schema, "model", layers=lines)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_pictures_that_are_too_small_are_refused(name: str) -> None:
    schema, _ = task(PICTURE, side=8)
    with pytest.raises(FathomError, match="Pictures of 8 x 8"):
        networks[name].build(schema, "model", channels=[4] * 5)


# ---- the user's own module -----------------------------------------------------------------------------------


def samples(schema: Schema, batch: dict[str, Tensor]) -> list[Tensor]:
    return [item.layer()(batch[name]) for name, item in schema.inputs.items()]


def own(module: nn.Module, classes: int = 3, **options: Any) -> tuple[nn.Module, list[Tensor]]:
    schema, batch = task(options.pop("inputs", {"x": ("number", ["b"])}), classes=classes, **options)
    given = samples(schema, batch)
    return adopt(module, schema, given), given


class Functional(nn.Module):
    """Ends in a function, which no layer shows."""

    def __init__(self, end: Any) -> None:
        super().__init__()
        self.inner, self.end = nn.Linear(1, 3), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.inner(x))


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.Sequential(nn.Linear(1, 3), nn.Softmax(1)), "softmax"),
        (nn.Sequential(nn.Linear(1, 3), nn.LogSoftmax(1)), "log-softmax"),
        (nn.Sequential(nn.Linear(1, 3), nn.Sigmoid()), "sigmoid"),
        (Functional(lambda x: x.softmax(1)), "softmax"),
        (Functional(lambda x: x.log_softmax(1)), "log-softmax"),
    ],
)
def test_a_module_that_ends_in_probabilities_is_refused(module: nn.Module, word: str) -> None:
    with pytest.raises(FathomError, match=rf"ends in a {word}\. Fathom's losses take logits"):
        own(module)


def test_a_module_of_logits_is_taken_as_it_is() -> None:
    module = nn.Linear(1, 3)
    adopted, given = own(module)
    assert torch.equal(adopted(*given), module(*given))
    assert module.training
    assert fingerprint(module) == fingerprint(nn.Linear(1, 3)) != fingerprint(nn.Linear(1, 4))


def test_a_wrong_width_and_a_failing_module_are_told() -> None:
    with pytest.raises(
        FathomError, match=r"Linear returns 5 numbers a row; 'class' needs 3\. Make its last layer 3 wide"
    ):
        own(nn.Linear(1, 5))
    with pytest.raises(FathomError, match=r"Linear fails on a batch of inputs of shape \(4, 1\): RuntimeError"):
        own(nn.Linear(2, 3))


def test_one_logit_answers_two_classes() -> None:
    module = nn.Linear(1, 1)
    adopted, given = own(module, classes=2)
    torch.testing.assert_close(adopted(*given).softmax(1)[:, 1], module(*given).sigmoid()[:, 0])


def test_one_number_does_not_answer_two_numbers() -> None:
    """Only two classes can be told apart by one logit; two regression columns cannot be answered by one number."""
    schema, batch = task({"x": ("number", ["b"])}, targets=())
    target: Field = fields["number"].make(["b", "size"])
    target.fit([columns(8, 1, 3)])
    schema = Schema(schema.inputs, {"both": target})
    with pytest.raises(FathomError, match="returns 1 numbers a row; 'both' needs 2"):
        adopt(nn.Linear(1, 1), schema, samples(schema, batch))


def test_keras_on_torch() -> None:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("keras is not installed (pip install fathom[test])")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        import keras

        if keras.backend.backend() != "torch":
            pytest.skip("keras runs on another backend in this process")
        layers = keras.layers
        build = lambda *last: keras.Sequential(  # noqa: E731
            [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), *last]
        )
        plain, soft = build(layers.Dense(3)), build(layers.Dense(3, activation="softmax"))
        late = build(layers.Dense(3), layers.Softmax())
        adopted, given = own(plain, inputs=PICTURE, channels=3)
        expected = plain(given[0].permute(0, 2, 3, 1))
        torch.testing.assert_close(adopted(*given), expected)
        for module in (soft, late):
            with pytest.raises(FathomError, match="ends in a softmax"):
                own(module, inputs=PICTURE, channels=3)


# ---- what a user's module returns and takes ---------------------------------------------------------------------


class Viewing(nn.Module):
    """The usual first network of a tutorial: `view` needs memory in the order of the dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.filters(x).relu()
        return self.head(x.view(x.size(0), -1))


def test_view_works_on_pictures() -> None:
    adopted, (pictures,) = own(Viewing(), inputs=PICTURE)
    assert not pictures.is_contiguous() or pictures.shape[1] == 1
    assert adopted(pictures.to(memory_format=torch.channels_last)).shape == (ROWS, 3)


class Returns(nn.Module):
    """Answers with whatever `make` makes of one linear layer's output."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.inner, self.make = nn.Linear(1, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.inner(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda y: (y, y), "returns 2 values; there are 3 targets: class, size, other. Return one tensor for each"),
        (lambda y: {"class": y, "size": y[:, :1]}, "a dict of 'class', 'size', without the target 'other'"),
        (lambda y: {}, "a dict of nothing, without the target 'class'"),
        (lambda y: (y, y, y[:, :1]), "returns 3 numbers a row for 'size', which needs 1. Make its last layer 1 wide"),
        (lambda y: (y, y[:, :1], None), "returns a NoneType for 'other'; return a tensor"),
        (lambda y: None, "returns a NoneType; return a tensor, a tuple with one tensor a target"),
        (lambda y: y.sum(), "returns shape () for 4 rows"),
        (lambda y: (y.sum(), y, y), "returns shape () for 4 rows"),
        (lambda y: y[:1], "returns shape (1, 3) for 4 rows; its first dimension should be the rows of the batch"),
    ],
)
def test_what_does_not_answer_every_target_is_told(make: Any, words: str) -> None:
    schema, batch = task({"x": ("number", ["b"])}, targets=("class", "size"))
    schema = Schema(schema.inputs, {**schema.targets, "other": schema.targets["size"]})
    with pytest.raises(FathomError) as caught:
        adopt(Returns(make), schema, samples(schema, batch))
    assert words in str(caught.value)


@pytest.mark.parametrize("make", [lambda y: (y, y[:, :1]), lambda y: {"size": y[:, :1], "more": y, "class": y}])
def test_a_tuple_and_a_dict_that_fit_are_taken(make: Any) -> None:
    schema, batch = task({"x": ("number", ["b"])}, targets=("class", "size"))
    outputs = Model(schema, adopt(Returns(make), schema, samples(schema, batch)))(batch)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {"class": (ROWS, 3), "size": (ROWS, 1)}


def test_one_target_takes_one_value() -> None:
    with pytest.raises(FathomError, match="returns 2 values; there is 1 target: class"):
        own(Returns(lambda y: (y, y)))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6])
def test_padding_same_keeps_the_size(kernel: int) -> None:
    schema, batch = task(PICTURE, side=12)
    module = networks["cnn"].build(schema, "model", kernel=kernel, padding="same", pool="none", channels=[2, 3])
    pictures = samples(schema, batch)[0]
    assert module.body(pictures).shape == (ROWS, 3, 12, 12)
