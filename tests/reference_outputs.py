"""What reference implementations answer, kept beside the tests so that these need neither library: reference_outputs.json.

Weights and the picture are made by a formula of integers, the same on every machine: a multiplicative hash (Knuth, The art of
computer programming, volume 3, 6.4) of the place and of the tensor's name here, scaled as He et al. 2015 scale filters, so that
numbers neither vanish nor overflow on their way. They are copied into the reference, tensor by tensor, and its first logits are
written down. Made anew, where timm and torchvision are installed, with

    python tests/reference_outputs.py

What is kept was made in float64 with timm 1.0.31 and the model definitions of torchvision 0.29.2 (whose compiled part has no
build for the pinned torch, and none of these networks needs it) on torch 2.13.0.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FILE = Path(__file__).with_suffix(".json")
SHAPE, KEPT = (1, 3, 224, 224), 8
PERIOD = 1_000_003  # a prime, so that what repeats after as many values stands at other places of every filter


@dataclass(frozen=True)
class Case:
    """A network of ours, and the one that it should be.

    Args:
        network: our name.
        library: timm or torchvision.
        theirs: its name there.
        options: of ours.
    """

    network: str
    library: str
    theirs: str
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "resnet18": Case("resnet18", "torchvision", "resnet18"),
    "resnet34": Case("resnet34", "torchvision", "resnet34"),
    "resnet50": Case("resnet50", "torchvision", "resnet50"),
    "alexnet": Case("alexnet", "torchvision", "alexnet"),
    "vgg11": Case("vgg11", "torchvision", "vgg11"),
    "vgg16": Case("vgg16", "torchvision", "vgg16"),
    "efficientnet-b0": Case("efficientnet", "timm", "tf_efficientnet_b0", {"size": "b0"}),
    "efficientnet-lite0": Case("efficientnet", "timm", "tf_efficientnet_lite0", {"size": "lite0"}),
    "vit-tiny": Case("vit", "timm", "vit_tiny_patch16_224", {"size": "tiny"}),
    "vit-small": Case("vit", "timm", "vit_small_patch16_224", {"size": "small"}),
}


def spread(name: str, count: int) -> np.ndarray:
    """(count,) float32 from -1 to 1, even, the same for a name on every machine."""
    place = np.arange(min(count, PERIOD), dtype=np.uint32)
    mixed = (place + np.uint32(zlib.crc32(name.encode()))) * np.uint32(2_654_435_761)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(2_246_822_519)
    mixed ^= mixed >> np.uint32(13)
    return np.resize(mixed.astype(np.float32) / np.float32(2**31) - np.float32(1), count)


def made(name: str, shape: torch.Size) -> Tensor:
    """The weights of a tensor under our name: filters as wide as their inputs ask, norms near what they begin with."""
    values = torch.from_numpy(spread(name, shape.numel())).reshape(shape)
    if name.endswith("running_var"):
        return 1 + values / 2
    if len(shape) == 1:
        return (1 if name.endswith("weight") else 0) + values / 10
    if shape[0] == 1:  # a token, or positions
        return values / 2
    return values * (6 / shape[1:].numel()) ** 0.5


def filled(module: nn.Module) -> nn.Module:
    """The same module in evaluation mode, its weights by the formula."""
    state = {name: made(name, t.shape) for name, t in module.state_dict().items() if t.is_floating_point()}
    module.load_state_dict(state, strict=False)
    return module.eval()


def picture() -> Tensor:
    """(1, 3, 224, 224), from -1 to 1."""
    return torch.from_numpy(spread("picture", int(np.prod(SHAPE)))).reshape(SHAPE)


def reference() -> dict[str, dict[str, Any]]:
    """Case -> the library, the first logits and the standard deviation of all."""
    return dict(json.loads(FILE.read_text("utf-8")))


# ---------------------------------------------------------------- making it, which needs both libraries


def renamed(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names: the same ones, else those of a ViT, else in the order in which they are used."""
    if set(ours) == set(theirs):
        return dict(ours)
    words = {
        "embedding.summary": "cls_token", "embedding.positions": "pos_embed", "embedding.patches": "patch_embed.proj",
        "attention.project": "attn.qkv", "attention.out": "attn.proj", "dense.0": "mlp.fc1", "dense.2": "mlp.fc2",
        "norms.0": "norm1", "norms.1": "norm2",
    }  # fmt: skip
    spelled = {}
    for name, tensor in ours.items():
        for word, other in words.items():
            name = name.replace(word, other)
        spelled[name] = tensor
    if set(spelled) == set(theirs):
        return spelled
    assert [t.shape for t in ours.values()] == [t.shape for t in theirs.values()], "they are used in another order"
    return dict(zip(theirs, ours.values(), strict=True))


def main() -> None:
    """Ask the libraries, and write down what they answer."""
    import timm
    import torchvision

    from test_networks_history import build

    answers = {}
    for name, case in CASES.items():
        ours = filled(build(case.network, SHAPE[1:], 1000, **case.options))
        library = timm if case.library == "timm" else torchvision.models
        make = timm.create_model if case.library == "timm" else torchvision.models.get_model
        theirs = make(case.theirs, **({"pretrained": False} if library is timm else {"weights": None})).eval()
        theirs.load_state_dict(renamed(ours.state_dict(), theirs.state_dict()))
        with torch.inference_mode():
            logits, mine = theirs.double()(picture().double())[0], ours.double()(picture().double())[0]
        version = timm.__version__ if library is timm else torchvision.__version__
        answers[name] = {
            "library": f"{case.library} {version}, {case.theirs}",
            "deviation": float(logits.std()), "logits": [round(float(value), 9) for value in logits[:KEPT]],
        }  # fmt: skip
        print(
            f"{name}: largest difference {float((logits - mine).abs().max()):.1e}, logits of {float(logits.std()):.3g}"
        )
    FILE.write_text(json.dumps(answers, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
