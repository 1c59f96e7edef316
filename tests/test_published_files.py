"""Files of weights in torchvision's layout: their shapes say which form they are for, and with it how pictures are read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fathom
from fathom.core.contract import Columns, Schema
from fathom.core.device import Device
from fathom.core.errors import DataError, FathomError
from fathom.core.registry import fields, networks
from fathom.core.tensors import FEATURES
from fathom.networks.reading import IMAGENET, Restored
from fathom.verbs import transfer
from fathom.verbs.assemble import build, open_task
from kit import QUICK, cli

QUICKLY = {"threads": 1, "precision": "float32", "device": "cpu", "steps": 2}
NAMED = ("resnet18", "resnet34", "resnet50", "vgg11", "vgg16", "alexnet")


def pictures(rows: int = 12, side: int = 16, channels: int = 3) -> dict[str, Any]:
    """Dark or light ones of two classes."""
    images = np.random.default_rng(0).integers(0, 120, (rows, side, side, channels), np.uint8)
    images[1::2] += 100
    return {"image": images if channels == 3 else images[..., 0], "label": ["dark", "light"] * (rows // 2)}


def module_of(name: str, shape: tuple[int, ...], stem: str, classes: int = 1000) -> nn.Module:
    """A network as the library that wrote the file has it."""
    image, label = fields["image"].make(["image"]), fields["category"].make(["label"])
    label.fit([Columns({"label": np.arange(classes)})])
    image.state = {"shape": list(shape), "mean": [0.0] * shape[0], "std": [1.0] * shape[0], "factor": 1}
    made: nn.Module = networks[name].build(Schema({"image": image}, {"label": label}), "model", stem=stem)
    return made


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random weights in the layout and with the names of torchvision's resnet18."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "resnet18.safetensors"
    save_file(module_of("resnet18", (3, 224, 224), "full").state_dict(), path)
    yield path
    path.unlink()


@pytest.fixture(autouse=True)
def _leave_nothing(tmp_path: Path) -> Iterator[None]:
    """Eleven million weights a file are not kept for looking at."""
    yield
    shutil.rmtree(tmp_path)


def task(
    location: Path, shown: dict[str, Any] | None = None, image: dict[str, Any] | None = None, **network: Any
) -> Any:
    table = {"name": "resnet18", "from": str(location), **network}
    data = {"target": ["label"], **({"image": image} if image else {})}
    return open_task(shown or pictures(), {"data": data, "network": table, "training": QUICKLY})


def origin(tensors: dict[str, Tensor]) -> transfer.Origin:
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return transfer.Origin("net.safetensors", {"": named}, {}, Schema({}))


def settled(name: str, tensors: dict[str, Tensor], **tree: Any) -> dict[str, Any]:
    network = {"name": name, **tree.pop("network", {})}
    return transfer.beneath({**tree, "network": network}, origin(tensors))


# ---------------------------------------------------------------- as it was meant


@pytest.mark.parametrize("name", NAMED)
def test_the_shapes_in_a_file_settle_form_size_and_standardization(name: str) -> None:
    with torch.device("meta"):
        forms = {stem: module_of(name, (3, 224, 224), stem).state_dict() for stem in ("full", "small")}
    made = settled(name, forms["full"])
    assert (made["network"]["stem"], made["network"]["reads"]) == ("full", "imagenet")
    assert made["data"]["image"] == {"size": 224}
    assert made["training"] == {"batch": 32}
    wrapped = {f"model.{key}": tensor for key, tensor in forms["full"].items()}
    assert settled(name, wrapped)["network"] == made["network"]
    small = settled(name, forms["small"])
    assert small["network"] == {"name": name, "stem": "small"}, "nothing says how its pictures were standardized"
    assert small["data"] == {}
    said = settled(name, forms["full"], network={"reads": "rows"}, data={"image": {"size": 96}}, training={"batch": 8})
    assert said["network"] == {"name": name, "stem": "full", "reads": "rows"}
    assert (said["data"]["image"], said["training"]) == ({"size": 96}, {"batch": 8})


def test_a_file_is_used_as_it_was_meant(resnet18: Path) -> None:
    made = task(resnet18)
    assert made.schema.inputs["image"].shape == (3, 224, 224)
    (began,) = made.began
    assert began.startswith("Taken over: 120 of 122 tensors from ")
    assert began.endswith("new: fc.weight, fc.bias. Read as they learnt: 224 x 224 pixels, ImageNet's mean and spread.")
    head, everything = made.recipe.stage
    assert head.rates == {"*": 0.0, "fc.*": 1.0}
    assert everything.rates["*.bn2.*"] == everything.rates["layer2.0.downsample.1.*"] == 0.0, "its statistics stay"
    assert everything.rates["fc.*"] == 0.1
    assembly = build(made, Device.choose("cpu"), fresh=True)
    model = assembly.models["model"]
    assert not model.module.conv1.weight.equal(module_of("resnet18", (3, 224, 224), "full").conv1.weight)  # type: ignore
    rows = made.prepared.sets["train"].batch(torch.arange(2))["image"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    seen = model.module.reads(model.preprocess[0](rows))
    torch.testing.assert_close(seen, (rows / 255 - mean) / std, rtol=1e-4, atol=1e-4)
    stage = assembly.algorithm.stages(made.prepared.sets)[0]
    assembly.algorithm.optimizers["model"].begin(stage.rates)
    batch = next(assembly.algorithm.batches(stage, 0))
    assert batch[FEATURES].shape[1] == 512, "the frozen body is passed through once"


def test_gray_pictures_become_three_equal_channels(resnet18: Path) -> None:
    made = task(resnet18, pictures(channels=1), {"size": 32})
    model = build(made, Device.choose("cpu"), fresh=True).models["model"].eval()
    assert made.schema.inputs["image"].shape == (1, 32, 32)
    rows = made.prepared.sets["train"].batch(torch.arange(2))["image"]
    seen = model.module.reads(model.preprocess[0](rows))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    torch.testing.assert_close(seen, (rows.expand(-1, 3, -1, -1) / 255 - mean) / std, rtol=1e-4, atol=1e-4)


def test_a_run_needs_the_file_no_more(resnet18: Path, tmp_path: Path) -> None:
    file = tmp_path / "body.safetensors"
    file.write_bytes(resnet18.read_bytes())
    quick = {f"training.{key}": value for key, value in QUICKLY.items() if key != "steps"}
    given = {**quick, "data.image.size": 48, "out": str(tmp_path / "runs"), "steps": 2}
    run = fathom.fit(pictures(), target="label", network="resnet18", from_=file, **given)
    file.unlink()
    wanted = [answer["probabilities"] for answer in run.predict(pictures()["image"][:3])]
    again = fathom.load(run.path)
    assert [answer["probabilities"] for answer in again.predict(pictures()["image"][:3])] == wanted
    assert "conv1.weight" in again.module.module.state_dict(), "torchvision's names stay"
    named = task(run.path / "model" / "weights.safetensors", name="resnet18")
    assert named.recipe.network["reads"] == "imagenet", "the weights of a run are known to be a run's"
    assert named.schema.inputs["image"].state == run.schema.inputs["image"].state
    assert "Taken over: 122 of 122 tensors from" in named.began[0]
    assert len(named.recipe.stage) == 1, "the same is asked: nothing starts anew"


# ---------------------------------------------------------------- otherwise


@pytest.mark.parametrize(
    ("image", "network", "words"),
    [
        ({"size": 64}, {}, ["Its weights learnt from pictures of 224 x 224, and these are 64 x 64 (data.image.size)."]),
        ({"size": 32}, {"reads": "rows"}, [
            "Its weights learnt with ImageNet's mean and spread, and here the training rows decide (network.reads).",
            "these are 32 x 32",
        ]),
    ],
)  # fmt: skip
def test_what_the_user_says_comes_first_and_is_told(
    resnet18: Path, image: dict[str, Any], network: dict[str, Any], words: list[str]
) -> None:
    made = task(resnet18, None, image, **network)
    assert made.schema.inputs["image"].shape[1] == image["size"]
    assert all(word in made.began[0] for word in words), made.began
    assert made.recipe.stage[0].rates == {"*": 0.0, "fc.*": 1.0}


def test_a_form_that_the_weights_do_not_fit_is_refused(resnet18: Path, tmp_path: Path) -> None:
    with pytest.raises(FathomError) as caught:
        task(resnet18, stem="small")
    assert "network.stem = 'small' builds a 'conv1.weight' of shape (64, 3, 3, 3); that of" in str(caught.value)
    assert "has (64, 3, 7, 7), which is network.stem=full. Leave network.stem out" in str(caught.value)
    with pytest.raises(FathomError) as caught:
        settled("resnet50", {"conv1.weight": torch.zeros(32, 3, 5, 5)})
    assert str(caught.value) == (
        "net.safetensors is for another network: its 'conv1.weight' has shape (32, 3, 5, 5), and that of resnet50 has "
        "(64, 3, 7, 7) as published (network.stem=full) or (64, 3, 3, 3) for small pictures (network.stem=small). "
        "Choose the network that the file was made for, with --network."
    )
    np.savez(tmp_path / "two.npz", x=pictures()["image"], y=np.arange(12) % 2)
    said = cli(
        "fit", "two.npz", "--from", resnet18, "--network", "resnet50", "--steps", 2, "data.image.size=32", *QUICK
    )
    assert said.code == 2
    assert "do not fit this network" in said.last
    assert "'layer1.0.conv1.weight' has shape (64, 64, 3, 3) there and (64, 64, 1, 1) here" in said.last


def test_pictures_of_other_channels_than_the_first_filters_are_refused(resnet18: Path) -> None:
    with pytest.raises(FathomError, match=r"'conv1\.weight' has shape \(64, 3, 7, 7\) there and \(64, 1, 7, 7\) here"):
        task(resnet18, pictures(channels=1), {"size": 32}, reads="rows")


def test_what_a_file_cannot_tell_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = tmp_path / "small.safetensors"
    save_file(module_of("resnet18", (1, 28, 28), "small").state_dict(), small)
    made = task(small, pictures(channels=1))
    assert made.recipe.network["stem"] == "small"
    assert made.schema.inputs["image"].shape == (1, 16, 16)
    assert made.began[0].endswith("It does not say how its pictures were standardized; here the training rows decide.")
    filters = {key: t for key, t in module_of("vgg11", (3, 16, 16), "small").state_dict().items() if "features" in key}
    alone = tmp_path / "filters.safetensors"
    save_file(filters, alone)
    told = task(alone, name="vgg11").began[0]
    assert "The file has no 'classifier.0.weight' to tell which form it is for" in told
    assert "network.stem=full network.reads=imagenet data.image.size=224" in told


def test_old_files_without_counters_and_files_with_more(resnet18: Path, tmp_path: Path) -> None:
    tensors = module_of("resnet18", (3, 224, 224), "full").state_dict()
    older = {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}
    save_file({**older, "layer1.2.conv1.weight": torch.zeros(2)}, tmp_path / "older.safetensors")
    began = task(tmp_path / "older.safetensors", None, {"size": 32}).began[0]
    assert "Taken over: 100 of 102 tensors" in began
    assert "new: fc.weight, fc.bias." in began
    assert "Not used, since the network has none of these: layer1.2.conv1.weight." in began


# ---------------------------------------------------------------- numbers that are no bytes


@pytest.mark.parametrize("network", [{}, {"name": "pretrained", "weights": "efficientnet-lite0"}])
def test_numbers_that_are_no_bytes_are_refused(network: dict[str, str], resnet18: Path) -> None:
    numbers = {**pictures(), "image": np.random.default_rng(0).normal(size=(12, 16, 16, 3)).astype(np.float32)}
    table = network or {"name": "resnet18", "from": str(resnet18)}
    tree = {"data": {"target": ["label"], "image": {"size": 32}}, "network": table, "training": QUICKLY}
    with pytest.raises(DataError) as caught:
        open_task(numbers, tree)
    assert str(caught.value) == (
        "Published weights read bytes of pictures, and these arrays hold numbers that are neither whole from 0 to 255 nor "
        "shares of 255 from 0 to 1, so nothing says which of them is black or white. Give them so, or picture files; or take "
        "a network without published weights."
    )


def test_shares_of_255_are_bytes() -> None:
    state = {"mean": [100.0], "std": [50.0], "factor": 255}
    made = Restored(state, *IMAGENET)
    assert made(torch.zeros(2, 1, 4, 4)).shape == (2, 3, 4, 4)
    with pytest.raises(DataError, match="Published weights read bytes"):
        Restored({**state, "factor": None}, *IMAGENET)
