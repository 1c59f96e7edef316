"""ResNet-18, 34 and 50: the published residual networks (He, Zhang, Ren & Sun 2015).

Deeper plain networks had become worse even on their training pictures. Here each block adds what it learns to what it was
given, so that a block with nothing to say leaves its input alone, and depth stops hurting.

    resnet18   2, 2, 2, 2 plain blocks          11,689,512 parameters, 1000 classes
    resnet34   3, 4, 6, 3 plain blocks          21,797,672
    resnet50   3, 4, 6, 3 bottlenecks           25,557,032

At 3 x 224 x 224 they are the published ones, under the names that libraries ship them with (`conv1.weight`,
`layer1.0.bn1.bias` ... `fc.weight`); as there, a bottleneck halves the picture in its 3 x 3 filters, not in its first ones.
Small form, for pictures up to 64 pixels, as section 4.2 of the paper has it for CIFAR-10: 3 x 3 filters with stride 1 and no
pooling before the first block. `resnet` (resnet.py) is our own small one, made for two cores.

In comments: B rows, C channels, H x W places.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import STEM_HELP, StemName, image_shape, is_picture, is_small, output_size, unfit
from fathom.networks.reading import READS_HELP, Layout, ReadsName, careful, read_shape, reader

CHANNELS = (64, 128, 256, 512)  # of the four stages


def filters(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Filters without bias, since normalization follows, which keep the side where the stride is 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class PlainBlock(nn.Module):
    """x + two layers of 3 x 3 filters, then ReLU.

    Args:
        inputs: channels that come in.
        channels: of both layers.
        stride: by which the first layer narrows the picture.
    """

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = filters(inputs, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = filters(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        made = self.relu(self.bn1(self.conv1(x)))
        made = self.bn2(self.conv2(made))
        return self.relu(made + self.downsample(x))


class Bottleneck(nn.Module):
    """x + 1 x 1 filters that narrow the channels, 3 x 3 filters, and 1 x 1 filters that widen them again; then ReLU.

    Args:
        inputs: channels that come in.
        channels: of the narrow layers; four times as many come out.
        stride: by which the 3 x 3 filters narrow the picture.
    """

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = filters(inputs, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = filters(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = filters(channels, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        made = self.relu(self.bn1(self.conv1(x)))
        made = self.relu(self.bn2(self.conv2(made)))
        made = self.bn3(self.conv3(made))
        return self.relu(made + self.downsample(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """What is added: the input itself, or 1 x 1 filters of it where its shape would not fit (option B of the paper)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(filters(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """(B, C, H, W) -> (B, outputs).

    Args:
        block: PlainBlock or Bottleneck.
        blocks: how many in each of the four stages.
        inputs: channels of a picture.
        outputs: numbers returned.
        small: whether the stem keeps the resolution.
        reads: what comes before the first filters, where anything does.
    """

    layout: ClassVar = Layout("conv1.weight", "conv1.weight", full=(64, 3, 7, 7), small=(64, 3, 3, 3))
    head_name = "fc"
    depth = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self, block: type[PlainBlock | Bottleneck], blocks: tuple[int, ...], inputs: int, outputs: int, small: bool,
        reads: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.reads = reads or nn.Identity()
        self.conv1 = filters(inputs, 64, 3) if small else filters(inputs, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        widths = [64, *(channels * block.expansion for channels in CHANNELS)]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(block, widths[i], channels, count, stride=1 if i == 0 else 2)
            for i, (channels, count) in enumerate(zip(CHANNELS, blocks, strict=True))
        )
        self.fc = nn.Linear(widths[-1], outputs)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # He et al. 2015, Delving deep into rectifiers
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def pieces(self) -> list[nn.Module]:
        """Its body in pieces that follow each other, each of which ends with a map (see `levels.py`)."""
        first = [] if isinstance(self.reads, nn.Identity) else [self.reads]
        stem = [*first, self.conv1, self.bn1, self.relu, self.maxpool]
        return [*stem, self.layer1, self.layer2, self.layer3, self.layer4]

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) the mean over all places."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.reads(images)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))

    def decide(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, outputs)."""
        return self.fc(features)

    def forward(self, images: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(images))


def _stage(block: type[PlainBlock | Bottleneck], inputs: int, channels: int, count: int, stride: int) -> nn.Sequential:
    """Blocks of one resolution; the first narrows the picture."""
    first = block(inputs, channels, stride)
    return nn.Sequential(first, *(block(channels * block.expansion, channels, 1) for _ in range(count - 1)))


def _build(
    name: str, block: type[PlainBlock | Bottleneck], blocks: tuple[int, ...], schema: Schema, stem: StemName, reads: ReadsName
) -> nn.Module:
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, name, "one picture alone")
    channels, small = read_shape(shape, reads)[0], is_small(shape, stem)
    return careful(ResNet(block, blocks, channels, output_size(schema), small, reader(schema, reads)), reads)


def _training(schema: Schema, rows: int) -> dict[str, object]:
    settings: dict[str, object] = {
        "training.learning_rate": 2e-3, "training.weight_decay": 0.05, "training.label_smoothing": 0.1,
        "training.epochs": 20 if rows < 10_000 else 8, "augment.shift": 2,
    }  # fmt: skip
    if (image_shape(schema) or (1,))[0] == 3:
        settings["augment.flip"] = 0.5
    return settings


ABOUT: dict[str, Any] = {
    "reason": "each block adds to what it was given, so that depth does not hurt",
    "paper": "He, Zhang, Ren & Sun 2015, Deep residual learning for image recognition",
    "year": 2015,
    "suits": lambda schema, rows: 0.0,  # never unasked: a network of history
    "takes": is_picture,
    "training": _training,
    "layout": ResNet.layout,
    "pieces": ResNet.pieces,
    "as_body": {"stem": "full"},
}
STEM = hyperparameter("auto", help=STEM_HELP)
READS = hyperparameter("rows", help=READS_HELP)


@network(
    "resnet18",
    pros="the usual yardstick of image classification; published weights fit it by name",
    cons="eleven million weights, slow on a CPU; our own resnet is as good on small pictures in less time",
    parameters=11_689_512,
    **ABOUT,
)
def resnet18(schema: Schema, role: str, *, stem: StemName = STEM, reads: ReadsName = READS) -> nn.Module:
    """Eight residual blocks of two layers each."""
    return _build("resnet18", PlainBlock, (2, 2, 2, 2), schema, stem, reads)


@network(
    "resnet34",
    pros="more accurate than resnet18 where there are very many pictures; published weights fit it by name",
    cons="twice the time of resnet18",
    parameters=21_797_672,
    **ABOUT,
)
def resnet34(schema: Schema, role: str, *, stem: StemName = STEM, reads: ReadsName = READS) -> nn.Module:
    """Sixteen residual blocks of two layers each."""
    return _build("resnet34", PlainBlock, (3, 4, 6, 3), schema, stem, reads)


@network(
    "resnet50",
    pros="bottlenecks give depth for little arithmetic; the usual backbone, and published weights fit it by name",
    cons="wants a graphics card, and a hundred thousand pictures or published weights",
    parameters=25_557_032,
    **ABOUT,
)
def resnet50(schema: Schema, role: str, *, stem: StemName = STEM, reads: ReadsName = READS) -> nn.Module:
    """Sixteen residual bottlenecks of three layers each."""
    return _build("resnet50", Bottleneck, (3, 4, 6, 3), schema, stem, reads)
