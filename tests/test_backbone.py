"""Published backbones for pictures: verified before they are read, fed as they were trained, head first and then all."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fathom
from fathom.core.contract import Clock, Columns, Context, Model, Schema, TensorSet
from fathom.core.device import Device, seed_everything
from fathom.core.errors import FathomError
from fathom.core.features import only_head
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Recipe
from fathom.core.registry import algorithms, fields, networks
from fathom.core.tensors import FEATURES
from fathom.fields import published
from fathom.networks import backbone
from fathom.networks.efficientnet import EfficientNet, published_names
from fathom.verbs.assemble import build, open_task
from kit import QUICK, Killable, cli, trained

LITE0 = "efficientnet-lite0"
ONE_THREAD = {"training.threads": 1, "training.precision": "float32", "training.device": "cpu"}


def pictures(rows: int = 24, side: int = 16, channels: int = 3) -> dict[str, Any]:
    """Red or blue ones (dark or light ones where there is one channel)."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 80, (rows, side, side, channels), np.uint8)
    for i, image in enumerate(images):
        image[..., -(i % 2)] += 100 + 50 * (i % 2)
    return {"image": images if channels == 3 else images[..., 0], "label": ["red", "blue"] * (rows // 2)}


def schema_of(shown: dict[str, Any]) -> tuple[Schema, TensorSet]:
    columns = Columns({"image": shown["image"], "label": np.arange(len(shown["image"])) % 2})
    schema = Schema({"image": fields["image"].make(["image"])}, {"label": fields["category"].make(["label"])})
    for item in schema.fields().values():
        item.fit([columns])
    store = {"image": schema.inputs["image"].encode(columns), "label": schema.targets["label"].encode(columns, True)}
    return schema, TensorSet(store)


@pytest.fixture(scope="module")
def made_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as the package has them, but random."""
    torch.manual_seed(0)
    net = EfficientNet("lite0", 3, 1000)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
    names, state = published_names("lite0"), net.state_dict()
    path = tmp_path_factory.mktemp("made") / "efficientnet-lite0-57934424.pth"
    torch.save({theirs: state[ours].clone() for ours, theirs in names.items()}, path)
    return path


@pytest.fixture
def package(made_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with these weights, listed by their checksum; returns its file."""
    root, listed = tmp_path / "packages", published.LISTED[LITE0]
    name, inside = "made-up-lite0", "made_up_lite0/models"  # never the real package, which may be installed
    (root / inside).mkdir(parents=True)
    (root / inside).parent.joinpath("__init__.py").write_text("raise RuntimeError('code of the package ran')")
    about = root / f"{name.replace('-', '_')}-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    file = Path(shutil.copy(made_file, root / inside))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    monkeypatch.setitem(published.LISTED, LITE0, replace(listed, packages={name: inside}, files=sums))
    monkeypatch.syspath_prepend(str(root))
    return file


def network(schema: Schema, **options: Any) -> Any:
    made = networks["pretrained"].build(schema, "model", **options)
    made.begin()
    return made


# ---------------------------------------------------------------- the file


def test_weights_are_read_once_and_then_from_a_sealed_copy(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = published.converted(LITE0)
    assert set(first) == set(published_names("lite0").values())
    monkeypatch.setattr(torch, "load", None)
    package.unlink()
    again = published.converted(LITE0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    (copy,) = (Path(published.cache_folder()) / "published").glob("*.safetensors")
    content = bytearray(copy.read_bytes())
    content[-9] ^= 1
    copy.write_bytes(content)
    with pytest.raises(FathomError, match=r"has no efficientnet-lite0-57934424\.pth"):
        published.converted(LITE0)  # what rotted is not read; it would be made again


def test_another_file_is_refused_before_anything_looks_into_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", None)
    package.write_bytes(package.read_bytes() + b"more")
    with pytest.raises(FathomError, match=r"is not the file that Fathom lists .* It was not read"):
        published.converted(LITE0)


def test_a_missing_package_is_named(package: Path) -> None:
    shutil.rmtree(package.parent.parent.parent)
    with pytest.raises(FathomError, match=r"come with the package made-up-lite0.*fathom\[pretrained\]"):
        published.converted(LITE0)


def test_our_body_is_the_published_one(package: Path) -> None:
    schema, data = schema_of(pictures())
    made = network(schema).eval()
    whole = EfficientNet("lite0", 3, 1000)
    theirs = torch.load(package, weights_only=True)
    whole.load_state_dict({ours: theirs[name] for ours, name in published_names("lite0").items()})
    images = data.batch(torch.arange(3))["image"]
    with torch.no_grad():
        wanted = whole.eval().features((images.float() - 127) / 128)
        found = made.body(made.restored(schema.inputs["image"].layer()(images)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- what the body sees


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_what_the_body_was_trained_on(package: Path, channels: int) -> None:
    schema, data = schema_of(pictures(channels=channels))
    images = data.batch(torch.arange(4))["image"]
    restored = network(schema).restored(schema.inputs["image"].layer()(images))
    assert restored.shape == (4, 3, 16, 16)
    torch.testing.assert_close(restored, ((images.float() - 127) / 128).expand(4, 3, 16, 16), rtol=1e-5, atol=1e-5)


def test_ordinary_inputs_stand_beside_the_picture(package: Path) -> None:
    schema, _ = schema_of(pictures())
    number = fields["number"].make(["a"])
    number.fit([Columns({"a": np.arange(5.0)})])
    both = Schema({"a": number, **schema.inputs}, schema.targets)
    made = network(both).eval()
    assert made.head.in_features == 1280 + 1
    assert made(torch.zeros(2, 1), torch.zeros(2, 3, 16, 16)).shape == (2, 2)


# ---------------------------------------------------------------- how it learns


def algorithm(tree: dict[str, Any]) -> tuple[Any, TensorSet]:
    schema, data = schema_of(pictures())
    recipe = Recipe.parse(
        {"training": {"algorithm": "supervised", "steps": 6, "batch": 8, "learning_rate": 1e-2}, **tree}
    )
    seed_everything(1)
    model = Model(schema, network(schema, tune="head", dropout=0.3))
    return algorithms["supervised"].make(Context(schema, {"model": model}, recipe, Clock(), torch.device("cpu"))), data


def losses(full: bool) -> list[float]:
    made, data = algorithm({})
    model = made.models["model"]
    model.train()
    (stage,) = made.stages({"train": data})
    assert only_head(model, stage.rates)
    made.optimizers["model"].begin(stage.rates)
    batches, seen = made.batches(stage, 0), []
    seed_everything(2)
    for _ in range(6):
        batch = next(batches)
        assert FEATURES in batch
        if full:
            del batch[FEATURES]
        seen.append(float(made.step(batch)["loss"]))
    return seen


def test_kept_features_give_the_answers_of_the_full_pass(package: Path) -> None:
    np.testing.assert_allclose(losses(full=False), losses(full=True), rtol=1e-5, atol=1e-5)


def task(**tree: Any) -> Any:
    said = {"data": {"target": ["label"], "image": {"size": 16}}, "network": {"name": "pretrained"}, **tree}
    said["training"] = {"threads": 1, "precision": "float32", **tree.get("training", {})}
    return open_task(pictures(), said)


def test_pictures_learn_head_first_and_then_all(package: Path) -> None:
    made = task(training={"steps": 10})
    head, everything = made.recipe.stage
    assert (head.name, head.steps, head.augment) == ("head", 8, False)
    assert head.rates == {"*": 0.0, "head.*": 1.0}
    assert (everything.name, everything.steps) == ("all", 2)
    assert everything.rates["body.net.stem.*"] < everything.rates["body.net.top.*"] < everything.rates["head.*"] == 0.1
    assert everything.rates["body.*.norm.*"] == 0.0, "statistics of a few batches are worse than the published ones"
    assert (made.recipe.network["weights"], made.recipe.network["tune"]) == (LITE0, "all")
    assert not made.began, "nothing is taken over from a run"
    stages = build(made, Device.choose("cpu")).algorithm.stages(made.prepared.sets)
    assert [stage.rates for stage in stages] == [head.rates, everything.rates]
    model = build(made, Device.choose("cpu")).models["model"]
    Optimizer({"model": model}, made.recipe.training, Clock()).begin(everything.rates)
    for name, layer in model.train().named_modules():
        if name.startswith("module.body") and not any(layer.children()) and list(layer.parameters()):
            assert layer.training != isinstance(layer, nn.BatchNorm2d), name


def test_the_head_alone_is_one_stage(package: Path) -> None:
    made = task(network={"name": "pretrained", "tune": "head"})
    assert made.recipe.stage == []
    assert made.recipe.training.precision == "float32"
    assert made.recipe.training.epochs == 100, "few rows are passed over often"
    assert [backbone.epochs(rows) for rows in (10, 220, 1_400, 50_000)] == [100, 14, 5, 5]
    (stage,) = build(made, Device.choose("cpu")).algorithm.stages(made.prepared.sets)
    assert stage.rates == {"*": 1.0, "body.*": 0.0}


def test_the_working_size_is_the_bodys_unless_the_user_says_another(package: Path) -> None:
    said = {"data": {"target": ["label"]}, "network": {"name": "pretrained"}, "training": {"threads": 1, "steps": 2}}
    assert open_task(pictures(rows=12), said).schema.inputs["image"].shape == (3, 224, 224)
    assert task().schema.inputs["image"].shape == (3, 16, 16)


def test_what_a_picture_reads_is_no_matter_of_texts() -> None:
    with pytest.raises(FathomError, match="There is no backbone for pictures 'minilm'"):
        task(network={"name": "pretrained", "weights": "minilm"})
    with pytest.raises(FathomError, match="Did you mean 'efficientnet-lite0'"):
        task(network={"name": "pretrained", "weights": "efficientnet-lite1"})
    with pytest.raises(FathomError, match="reads one picture or one text; the inputs are numbers"):
        networks["pretrained"].build(numbers(), "model")
    image, targets = schema_of(pictures())[0].inputs["image"], schema_of(pictures())[0].targets
    with pytest.raises(
        FathomError,
        match=r"takes one picture, with ordinary inputs beside it or none; here 'a' \(image\), 'b' \(image\)",
    ):
        networks["pretrained"].build(Schema({"a": image, "b": image}, targets), "model")


def numbers() -> Schema:
    item = fields["number"].make(["a"])
    item.fit([Columns({"a": np.arange(5.0)})])
    return Schema({"numbers": item}, schema_of(pictures())[0].targets)


def test_normalization_is_named_shortly_where_its_name_is_its_own() -> None:
    def part(name: str, layer: nn.Module) -> nn.Module:
        made = nn.Module()
        made.add_module(name, layer)
        return made

    net = nn.Sequential(
        part("norm", nn.BatchNorm2d(2)), part("norm", nn.BatchNorm2d(3)), part("conv", nn.Conv2d(1, 1, 1))
    )
    assert backbone.normalization_globs(net) == ["*.norm.*"]
    net.append(part("norm", nn.LayerNorm(4)))
    assert backbone.normalization_globs(net) == ["0.norm.*", "1.norm.*"]
    assert backbone.normalization_globs(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))) == ["1.*"]


# ---------------------------------------------------------------- the whole way


def test_a_run_needs_nothing_but_its_folder_and_is_one_to_begin_from(package: Path, tmp_path: Path) -> None:
    given = {**ONE_THREAD, "data.image.size": 16, "out": str(tmp_path / "runs")}
    run = fathom.fit(pictures(), target="label", network="pretrained", steps=4, **given)
    wanted = [answer["answer"] for answer in run.predict(pictures()["image"][:4])]
    shutil.rmtree(package.parent.parent.parent)
    shutil.rmtree(published.cache_folder())
    assert [answer["answer"] for answer in fathom.load(run.path).predict(pictures()["image"][:4])] == wanted
    later = fathom.fit(pictures(), target="label", from_=run, steps=2, out=str(tmp_path / "runs"), **ONE_THREAD)
    assert later.recipe.network["weights"] == LITE0
    assert later.schema.inputs["image"].state == run.schema.inputs["image"].state
    assert [stage.name for stage in later.recipe.stage] == ["all"], "the same classes: nothing starts anew"


def test_a_killed_run_resumes_to_equal_bits(tmp_path: Path) -> None:
    try:
        published.find(LITE0, "image")
    except FathomError:
        pytest.skip("the package of EfficientNet-Lite0 is not installed")
    shown = pictures()
    np.savez(tmp_path / "two.npz", x=shown["image"], y=np.arange(24) % 2)
    words = (
        "fit", "two.npz", "--network", "pretrained", "--steps", 10, "training.batch=8", "augment.flip=0.5",
        "data.image.size=32", "training.precision=float32", "training.checkpoint_seconds=0", *QUICK,
    )  # fmt: skip
    whole = Killable(tmp_path, *words, "--name", "whole").said()
    assert whole.code == 0, whole.err
    assert "Stages    head: 8 steps, head alone; then all: 2 steps, all but body.*.norm.*" in whole.err
    cut = Killable(tmp_path, *words, "--name", "cut")
    assert cut.until(tmp_path / "runs" / "cut" / "checkpoints" / "step-000000009.safetensors")
    cut.kill()
    said = Killable(tmp_path, "fit", "--resume", "runs/cut").said()
    assert said.code == 0, said.err
    assert trained(tmp_path / "runs" / "cut") == trained(tmp_path / "runs" / "whole")


# ---------------------------------------------------------------- bodies of other libraries


class Small(nn.Module):
    """A classifier as torchvision has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 1000))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.conv(images).mean((2, 3)))


def test_a_classifier_of_torchvision_loses_its_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    trained_there, asked = Small(), {}
    transforms = types.SimpleNamespace(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2])
    entry = types.SimpleNamespace(url="https://there/small-0a1b2c3d.pth", transforms=lambda: transforms)

    def of_name(name: str) -> Any:
        if name != "small":
            raise ValueError(f"Unknown model {name}")
        return types.SimpleNamespace(DEFAULT=entry)

    models = types.SimpleNamespace(get_model_weights=of_name, get_model=lambda name, weights: Small())
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(models=models))

    def fetch(url: str, **options: Any) -> dict[str, Tensor]:
        asked.update(options, url=url)
        return trained_there.state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    schema, data = schema_of(pictures())
    made = network(schema, weights="torchvision:small").eval()
    assert asked == {"url": entry.url, "progress": False, "check_hash": True, "weights_only": True}
    assert made.head.in_features == 6
    images = data.batch(torch.arange(2))["image"]
    shares = images.float() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    wanted = trained_there.conv(shares / 0.2).mean((2, 3))
    torch.testing.assert_close(
        made.body(made.restored(schema.inputs["image"].layer()(images))), wanted, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(FathomError, match=r"torchvision knows no model 'large' \(Unknown model large\)"):
        networks["pretrained"].build(schema, "model", weights="torchvision:large")
    with pytest.raises(FathomError, match="no linear layer at its end"):
        backbone.without_last_linear(nn.ReLU())


def test_a_model_of_timm_brings_its_own_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    class Body(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)
            nn.init.constant_(self.conv.weight, fill)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images).mean((2, 3))

    def create(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        if name != "body":
            raise RuntimeError(f"Unknown model ({name})\nmore")
        assert num_classes == 0
        return Body(2.0 if pretrained else 0.0)

    expected = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    data = types.SimpleNamespace(resolve_model_data_config=lambda module: expected)
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create, data=data))
    schema, _ = schema_of(pictures())
    made = network(schema, weights="timm:body")
    assert float(made.body.conv.weight.detach().mean()) == 2.0
    assert made.restored.scale.flatten().tolist() == pytest.approx(
        [std / (0.25 * 255) for std in schema.inputs["image"].state["std"]]
    )
    with pytest.raises(FathomError, match=r"timm knows no model 'other' \(Unknown model \(other\)\)"):
        networks["pretrained"].build(schema, "model", weights="timm:other")


def vision_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {"model_type": "made", "hidden_size": 4}
    (folder / "config.json").write_text(json.dumps(config))
    told = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 24, "width": 24}}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    save_file(
        {"made.conv.weight": torch.ones(4, 3, 1, 1), "made.conv.bias": torch.zeros(4)}, folder / "model.safetensors"
    )
    return folder


def with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Made(nn.Module):
        base_model_prefix = "made"

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.pooler = nn.Linear(4, 4)  # which the file does not have, and nobody reads

        def forward(self, pixel_values: Tensor) -> Any:
            return types.SimpleNamespace(last_hidden_state=self.conv(pixel_values))

    def for_model(kind: str, **config: Any) -> dict[str, Any]:
        if kind != "made":
            raise ValueError(f"Unrecognized model identifier: {kind}")
        return config

    library = types.SimpleNamespace(
        AutoConfig=types.SimpleNamespace(for_model=for_model),
        AutoModel=types.SimpleNamespace(from_config=lambda c: Made()),
    )
    monkeypatch.setitem(sys.modules, "transformers", library)


def test_a_folder_in_hugging_face_layout_is_written_into_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_transformers(monkeypatch)
    folder = vision_folder(tmp_path / "vision")
    said = {"data": {"target": ["label"]}, "network": {"name": "pretrained", "weights": str(folder)}}
    said["training"] = {"threads": 1, "steps": 4, "precision": "float32"}
    made = open_task(pictures(), said)
    assert made.schema.inputs["image"].shape == (3, 24, 24), "the size of the model's own preprocessing"
    model = build(made, Device.choose("cpu"), fresh=True).models["model"]
    body: Any = model.module.body
    assert torch.equal(body.net.conv.weight, torch.ones(4, 3, 1, 1))
    assert made.recipe.stage[1].rates == {"*": 0.03, "head.*": 0.1}, "its depth is not known"
    run = fathom.fit(pictures(), recipe=said, out=str(tmp_path / "runs"), **ONE_THREAD)
    shutil.rmtree(folder)
    assert len(fathom.load(run.path).predict(pictures()["image"][:2])) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(FathomError, match=r"has no config\.json. A pretrained backbone for pictures is a folder"):
        open_task(pictures(), {**said, "network": {"name": "pretrained", "weights": str(tmp_path / "empty")}})


def test_a_hugging_face_body_whose_weights_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_transformers(monkeypatch)
    folder = vision_folder(tmp_path / "vision")
    config = backbone.hugging_face_config(str(folder))
    schema, _ = schema_of(pictures())
    save_file({"made.conv.weight": torch.zeros(4, 3, 1, 1)}, folder / "model.safetensors")
    with pytest.raises(FathomError, match="has changed since the data were read"):
        network(schema, weights=str(folder), config=config)
    config = backbone.hugging_face_config(str(folder))
    with pytest.raises(FathomError, match=r"The published weights hold no 'net\.conv\.bias' of shape \(4,\)"):
        network(schema, weights=str(folder), config=config)
    other = {**config, "model": {"model_type": "other"}}
    with pytest.raises(FathomError, match="transformers cannot build the backbone 'other': Unrecognized model"):
        networks["pretrained"].build(schema, "model", weights=str(folder), config=other)


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_a_library_that_is_missing_is_named(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    schema, _ = schema_of(pictures())
    config = {"model": {"model_type": "vit"}, "mean": [0.5] * 3, "std": [0.5] * 3} if library == "transformers" else {}
    weights = "hf:owner/name" if library == "transformers" else f"{library}:some"
    with pytest.raises(
        FathomError, match=rf"is built by the library {library}, which is not installed.*pip install {library}"
    ):
        networks["pretrained"].build(schema, "model", weights=weights, config=config)


def test_the_command_line_names_the_package_that_is_missing(package: Path, tmp_path: Path) -> None:
    shutil.rmtree(package.parent.parent.parent)
    np.savez(tmp_path / "two.npz", x=pictures()["image"], y=np.arange(24) % 2)
    given = ("--network", "pretrained", "--steps", 2, "data.image.size=16", "training.precision=float32", *QUICK)
    said = cli("fit", "two.npz", *given)
    assert said.code == 2
    assert "its weights come with the package made-up-lite0" in said.last
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir()), "before a run folder is made"
    assert len(said.last.splitlines()) <= 6
