"""Backbones of the detector: maps of every stride from any network made of pieces, their names, their weights, and learning."""

from __future__ import annotations

import json
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fathom
from fathom.algorithms import detection
from fathom.core.contract import Columns, Model, Schema
from fathom.core.device import Device
from fathom.core.errors import FathomError, RunError
from fathom.core.registry import fields, networks
from fathom.networks import levels
from fathom.verbs.assemble import build, check_weights, open_task
from kit import QUICK, cli
from test_detection import CLASSES, draw_scene, fitted, schema_of

PIECES = [entry.name for entry in networks if "pieces" in entry.about]
STEMS = {"stem": "small"}
NARROW = {"channels": (8, 16)}  # of the small resnet, which ends at stride 4


def backbone(name: str, options: dict[str, Any] | None = None, shape: tuple[int, int, int] = (3, 96, 64)) -> Any:
    picture: Any = fitted(shape).picture  # type: ignore[attr-defined]
    torch.manual_seed(0)
    return levels.backbone_of(name, "", picture, options or {}, (8, 8, 16, 16), 1)


# ---------------------------------------------------------------- maps


def test_what_can_be_a_backbone() -> None:
    assert set(PIECES) == {"resnet", "resnet18", "resnet34", "resnet50", "vgg11", "vgg16", "efficientnet"}
    sizes = ["efficientnet-lite0", "efficientnet-b0"]
    assert set(levels.known()) == {"small", *sizes, *PIECES} - {"efficientnet"}


FORMS = [*((name, {}) for name in levels.known()), ("resnet", NARROW), ("resnet", {"channels": (8,)}),
         ("resnet18", STEMS), ("efficientnet", {"size": "b0", **STEMS}), ("vgg11", {"stem": "full"}),
         ("resnet18", {"reads": "imagenet"})]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_every_backbone_gives_maps_of_every_stride(name: str, options: dict[str, Any]) -> None:
    body = backbone(name, options)
    with torch.no_grad():
        maps = body.eval()(torch.zeros(2, 3, 96, 64))
    assert [tuple(made.shape) for made in maps] == [
        (2, width, 96 // stride, 64 // stride) for width, stride in zip(body.widths, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", ["resnet", "resnet18", "vgg11", "efficientnet-b0"])
def test_a_detector_around_it_learns_in_every_weight(name: str) -> None:
    item = fitted((1, 64, 64))
    torch.manual_seed(0)
    module = networks["detector"].build(schema_of(item), "model", backbone=name, width=8)
    model = Model(schema_of(item), module)
    dense = model({"image": torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)})["boxes"]
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0]], [[0.2, 0.3, 0.9, 0.8, 1]]] * 2)
    sum(detection.losses(dense, boxes)).backward()  # type: ignore[union-attr]
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.any()), f"nothing is learnt in {key}"


def whole(name: str, **options: Any) -> tuple[Any, nn.Module]:
    """A registered network for pictures with its head, in evaluation, and its body as a backbone with the same weights."""
    schema = schema_of(fitted((3, 64, 64)))
    label = fields["category"].make(["label"])
    label.fit([Columns({"label": np.arange(3)})])
    torch.manual_seed(1)
    net = networks[name].build(Schema(schema.inputs, {"label": label}), "model", **options)
    with torch.no_grad():
        [part.normal_() for part in net.state_dict().values() if part.ndim == 1 and part.is_floating_point()]
        [part.abs_() for key, part in net.state_dict().items() if "running_var" in key]
    body = backbone(name, options, (3, 64, 64))
    theirs = net.state_dict()
    body.load_state_dict({**body.state_dict(), **{ours: theirs[key] for ours, key in body.borrowed.items()}})
    return net.eval(), body.eval()


@pytest.mark.parametrize("name", PIECES)
def test_the_body_is_that_of_the_whole_network(name: str) -> None:
    """Weights find their place by name, and the maps are what the network makes of the picture on its way to the head."""
    net, body = whole(name, **networks[name].about.get("as_body", {}))
    x = torch.randn(2, 3, 64, 64)
    seen: list[Tensor] = []
    with torch.no_grad():
        maps = body(x)
        made = x
        for piece in networks[name].about["pieces"](net):
            made = piece(made)
            seen.append(made)
        last = net.top(made) if name == "efficientnet" else made
        torch.testing.assert_close(last.mean((2, 3)), net.features(x))
    for one in maps[: 2 if name == "resnet" else 4]:  # of the small resnet two maps, and two that filters add
        assert any(one.shape == other.shape and torch.equal(one, other) for other in seen)


def test_names_of_weights_stay_as_they_are() -> None:
    """Of the backbones that trained runs have: their files are read by these names."""
    names = {name: list(backbone(name).state_dict()) for name in ("small", "resnet18", "efficientnet-lite0")}
    assert {name: len(found) for name, found in names.items()} == {
        "small": 78,
        "resnet18": 120,
        "efficientnet-lite0": 288,
    }
    assert {"stem.0.0.weight", "stages.0.0.first.0.weight", "stages.3.1.second.1.bias"} <= set(names["small"])
    assert {"stem.0.weight", "stem.1.bias", "stages.0.0.conv1.weight", "stages.3.1.bn2.bias"} <= set(names["resnet18"])
    assert {"stem.0.conv.weight", "stem.1.depthwise.conv.weight"} <= set(names["efficientnet-lite0"])
    assert {"stages.0.1.expand.conv.weight", "stages.3.15.project.norm.bias"} <= set(names["efficientnet-lite0"])
    assert backbone("efficientnet-lite0").borrowed["stages.3.15.project.norm.bias"] == "blocks.15.project.norm.bias"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backbone": "resnet19"}, "There is no backbone 'resnet19' in network.backbone. Did you mean 'resnet18'?"),
        ({"backbone": "vit"}, "There is no backbone 'vit' in network.backbone. Known: efficientnet-b0, efficientnet-lite0,"),
        ({"backbone": "efficientnet-b7"}, "efficientnet.size = 'b7' is not allowed: it should be 'lite0' or 'b0'"),
        ({"backbone": "resnet", "body": {"chanels": [8]}}, "There is no key 'resnet.chanels'. Did you mean 'resnet.channels'?"),
        ({"body": {"blocks": 1}}, "and network.backbone = 'small' takes none; leave network.body out"),
        ({"backbone": "resnet18", "weights": "resnet18"},
         "There are no published weights 'resnet18' for the backbone resnet18. Published are those of efficientnet-lite0"),
        ({"backbone": "timm:resnet18"}, "'timm:resnet18' is built by the library timm, which is not installed. Install it: pip"),
    ],
)  # fmt: skip
def test_what_is_no_backbone(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], told: str) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FathomError) as caught:
        networks["detector"].build(schema_of(fitted()), "model", **options)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_strides_that_are_left_out() -> None:
    with pytest.raises(
        FathomError, match=r"'patches' gives maps of strides 16, 32, and none of stride 4, which is needed"
    ):
        levels.ends("patches", [16.0, 32.0])
    pieces = [nn.Conv2d(3, 4, 16, stride=16)]
    with pytest.raises(FathomError, match="'patches' gives maps of strides 16, 32, and none of stride 4"):
        levels.Levels("patches", pieces[0], pieces, 3)
    assert levels.ends("jumps", [2.0, 4.0, 4.0, 8.0, 16.0, 32.0]) == [2, 3, 4, 5]


# ---------------------------------------------------------------- another library's


class Maps(nn.Module):
    """What timm builds with `features_only`: maps of strides 2 to 16."""

    def __init__(self, inputs: int, fill: float) -> None:
        super().__init__()
        widths = [4, 6, 8, 10]
        self.layers = nn.ModuleList(
            [nn.Conv2d(a, b, 2, stride=2) for a, b in zip([inputs, *widths], widths, strict=False)]
        )
        nn.init.constant_(self.layers[0].weight, fill)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> list[Tensor]:
        made = []
        for layer in self.layers:
            images = layer(images)
            made.append(images)
        return made


def test_a_model_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneSize(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            raise AssertionError("Input height (64) doesn't match model (224).")

    class ChannelsLast(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [torch.zeros(1, 16, 16, 96)]

    def create(name: str, pretrained: bool, features_only: bool, in_chans: int) -> nn.Module:
        if name == "vit":
            raise RuntimeError("features_only not implemented for Vision Transformer models.")
        assert features_only
        made = {"maps": Maps(in_chans, 2.0 if pretrained else 0.0), "one size": OneSize(), "swin": ChannelsLast()}
        return made[name]

    expected = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    data = types.SimpleNamespace(resolve_model_data_config=lambda module: expected)
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create, data=data))
    schema = schema_of(fitted((1, 64, 96)))
    schema.inputs["image"].state |= {"mean": [100.0], "std": [50.0]}
    x = torch.randn(2, 1, 64, 96)
    plain = networks["detector"].build(schema, "model", backbone="timm:maps")
    assert plain.backbone.widths == (6, 8, 10, 10)
    assert [tuple(made.shape[1:]) for made in plain.backbone(x)] == [(6, 16, 24), (8, 8, 12), (10, 4, 6), (10, 2, 3)]
    assert plain.rates is None
    made = networks["detector"].build(schema, "model", backbone="timm:maps", weights="timm:maps")
    assert made.backbone.restored.scale.flatten().tolist() == pytest.approx([50 / (0.25 * 255)] * 3)
    assert not made.backbone.net.net.layers[0].weight.any()
    made.begin()
    assert bool((made.backbone.net.net.layers[0].weight == 2).all())
    assert made.rates == {"*": 1.0, "backbone.*": 0.1}
    assert made(x)["boxes"].shape == (2, 6, 16, 24)
    for name, told in (
        (
            "vit",
            r"timm has no model 'vit' that gives maps \(features_only not implemented for Vision Transformer models\)",
        ),
        (
            "one size",
            r"'timm:one size' cannot read pictures of any size \(Input height \(64\) doesn't match model \(224\)\)",
        ),
        ("swin", r"'timm:swin' gives \(1, 16, 16, 96\) for one picture, and not a map of"),
    ):
        with pytest.raises(FathomError, match=told):
            networks["detector"].build(schema, "model", backbone=f"timm:{name}")


def test_weights_that_cannot_be_had_are_refused_before_the_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = {"backbone": "efficientnet-lite0", "weights": "efficientnet-lite0"}
    task = open_task(str(data), tree(published))
    monkeypatch.setattr(levels.published, "find", lambda *given: (_ for _ in ()).throw(FathomError("not installed")))
    with pytest.raises(FathomError, match="not installed"):
        check_weights(task)


# ---------------------------------------------------------------- from data to answers, and from an earlier run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of 60 drawn scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    made: dict[str, list[Any]] = {"images": [], "annotations": []}
    made["categories"] = [{"id": k, "name": name} for k, name in enumerate(CLASSES)]
    for i in range(60):
        made["images"].append({"id": i, "file_name": f"{i:02d}.png", "width": 80, "height": 64})
        for label, x1, y1, x2, y2 in draw_scene(folder / "images" / f"{i:02d}.png", i):
            box = {"id": len(made["annotations"]), "image_id": i, "category_id": CLASSES.index(label)}
            made["annotations"].append({**box, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    (folder / "annotations" / "instances.json").write_text(json.dumps(made))
    return folder


def classified(out: Path, network: str, **options: Any) -> Path:
    """A run that tells bright pictures from dark ones, read cut and from two sides, as no detector should."""
    draw = np.random.default_rng(0)
    images = draw.integers(100, 140, (24, 20, 24, 3), dtype=np.uint8)
    images[::2, 5:15, 5:15] = 240
    shown = {"image": images, "label": ["bright", "dark"] * 12}
    reading = {"data.image.views": 2, "data.image.fit_by": "crop", "data.image.size": 16}
    given = {"training.threads": 1, "training.precision": "float32", "training.device": "cpu", **reading}
    return fathom.fit(shown, target="label", network=network, steps=1, out=str(out), **options, **given).path  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small resnet on pictures of 16 pixels."""
    return classified(tmp_path_factory.mktemp("runs"), "resnet", **{"network.channels": [8, 16]})


def tree(network: dict[str, Any], **image: Any) -> dict[str, Any]:
    quick = {"threads": 1, "precision": "float32", "device": "cpu", "steps": 4, "batch": 8}
    return {"network": {"width": 8, **network}, "training": quick, "data": {"image": image} if image else {}}


def test_a_new_backbone_learns_and_is_read_again(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    said = cli(
        "fit", str(data), *QUICK, "network.backbone=resnet", "network.body={channels=[8,16]}", "network.width=16",
        "training.batch=8", "training.precision=float32", "training.learning_rate=0.01", "--epochs", "20", "--name", "found",
    )  # fmt: skip
    assert said.code == 0, said.err
    run = fathom.load("runs/found")
    assert run.results["test"]["map50"]["value"] > 0.8
    boxes = draw_scene(tmp_path / "new.png", 101)
    (answer,) = run.predict(tmp_path / "new.png")
    assert [box["label"] for box in sorted(answer["answer"], key=lambda box: box["box"][0])] == [
        box[0] for box in boxes
    ]


def test_a_detector_around_the_body_of_an_earlier_run(data: Path, earlier: Path) -> None:
    """Its filters and how it standardizes pictures; at the size of these pictures, whole."""
    task = open_task(str(data), tree({"from": str(earlier)}))
    table = task.recipe.network
    assert (table["name"], table["backbone"], table["width"]) == ("detector", "resnet", 8)
    assert table["body"]["channels"] == [8, 16]
    assert task.choice.reason == f"its weights come from {earlier}"
    assert "Taken over: 36 of 112 tensors from" in task.began[0]
    image = task.schema.inputs["image"]
    old = fathom.load(earlier)
    assert image.shape == (3, 64, 80)
    assert (image.options["fit_by"], image.options["views"]) == ("stretch", 1)
    assert image.state["mean"] == old.schema.inputs["image"].state["mean"]
    head, everything = task.recipe.stage
    assert (head.rates["*"], head.rates["pyramid.*"], everything.rates["pyramid.*"]) == (0.0, 1.0, 1.0)
    model = build(task, Device.choose("cpu"), fresh=True).models["model"].state_dict()
    theirs = old.module.state_dict()
    assert torch.equal(model["module.backbone.stages.0.7.first.0.weight"], theirs["module.body.7.first.0.weight"])
    again = open_task(str(data), tomllib.loads(task.recipe.toml()))
    assert again.recipe.network == table, "its own recipe says the same"
    asked = open_task(str(data), tree({"from": str(earlier), "name": "detector"}, size=96, fit_by="pad"))
    assert asked.schema.inputs["image"].shape == (3, 96, 96)
    assert asked.schema.inputs["image"].options["fit_by"] == "pad"


def test_a_run_from_an_earlier_one_needs_it_no_more(data: Path, earlier: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in ("model", "recipe.toml", "schema.json", "results.json", "environment.json"):
        (copy / path).symlink_to(earlier / path)
    said = cli("fit", str(data), *QUICK, "--from", str(copy), "network.width=8", "--steps", "4", "--name", "after")
    assert said.code == 0, said.err
    assert (
        "Stages    head: 1 step, backbone.stages.1, backbone.stages.2, backbone.stages.3, pyramid, head alone"
        in said.err
    )
    for path in list(copy.iterdir()):
        path.unlink()
    assert cli("evaluate", "runs/after", "--json").code == 0
    with pytest.raises(RunError):
        open_task(str(data), tree({"from": str(copy)}))


def test_bodies_around_which_nothing_is_built(data: Path, tmp_path: Path) -> None:
    run = classified(tmp_path / "runs", "cnn")
    for named in ({}, {"name": "detector"}):
        with pytest.raises(FathomError) as caught:
            open_task(str(data), tree({"from": str(run), **named}))
        assert "trained the network cnn, and no detector can be built around its body. Those around" in str(
            caught.value
        )


def test_a_small_stem_stays_small(tmp_path: Path, data: Path) -> None:
    """What `auto` was where the weights learnt, not what it would be here."""
    run = classified(tmp_path / "runs", "resnet18")
    task = open_task(str(data), tree({"from": str(run)}, size=64))
    assert task.recipe.network["body"] == {"stem": "small", "reads": "rows"}
    assert task.began[0].startswith("Taken over: 120 of 190 tensors")


def test_a_file_of_published_weights(tmp_path: Path, data: Path) -> None:
    """Under torchvision's names: form and reading follow from it, as for a classifier, and the head is not used."""
    torch.manual_seed(0)
    body = backbone("resnet18")
    named = {theirs: body.state_dict()[ours] for ours, theirs in body.borrowed.items() if "num_batches" not in ours}
    save_file(
        {**named, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "r18.safetensors"
    )
    network = {"from": str(tmp_path / "r18.safetensors"), "name": "detector", "backbone": "resnet18"}
    task = open_task(str(data), tree(network))
    assert task.recipe.network["body"] == {"stem": "full", "reads": "imagenet"}
    assert "Not used, since the network has none of these: fc.bias, fc.weight." in task.began[0]
    assert task.schema.inputs["image"].shape == (3, 64, 80)
    model = build(task, Device.choose("cpu"), fresh=True).models["model"]
    assert torch.equal(model.state_dict()["module.backbone.stem.1.weight"], named["conv1.weight"])
    pixels = torch.randint(0, 256, (1, 3, 64, 80), dtype=torch.uint8)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    first = model.module.backbone.stem[0](model.preprocess[0](pixels))  # type: ignore[index, union-attr]
    torch.testing.assert_close(first, (pixels / 255 - mean) / std, atol=1e-4, rtol=1e-4)
