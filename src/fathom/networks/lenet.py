"""LeNet-5: filters, subsampling and dense layers, trained as one from pixels to digits (LeCun et al. 1998).

It read a tenth of the checks in the United States, and its plan stood for every convolutional network since: narrower
and deeper step by step, then dense layers.

    picture ─▶ 6 filters 5 x 5 ─▶ halve ─▶ 16 filters 5 x 5 ─▶ halve ─▶ 120 ─▶ 84 ─▶ outputs      61,706 parameters

Other than in the paper: all 16 filters see all 6 maps (there a table of connections left some out), halving is a plain
mean without weights of its own, the activation is a plain tanh, and the last layer is linear instead of distances to
drawn digits. The network wants 32 x 32: smaller pictures are widened at the edges, 28 x 28 by 2 pixels as in the paper.
"""

from __future__ import annotations

from torch import Tensor, nn

from fathom.core.contract import Schema, hyperparameter
from fathom.core.registry import network
from fathom.networks.parts import ACTIVATIONS, ActivationName, image_shape, is_picture, output_size, unfit

SIDE = 32  # pixels that the two rounds of filters and halving were made for


class LeNet(nn.Module):
    """(B, C, H, W) -> (B, outputs).

    Args:
        shape: (C, H, W) of the pictures.
        outputs: numbers returned.
        activation: after filters and dense layers.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, activation: str) -> None:
        super().__init__()
        channels, height, width = shape
        bend = ACTIVATIONS[activation]
        over, left = (max(SIDE - side, 0) // 2 for side in (height, width))
        under, right = max(SIDE - height, 0) - over, max(SIDE - width, 0) - left
        self.edge = nn.ReplicationPad2d((left, right, over, under))  # the edge repeated: a background goes on
        self.conv1 = nn.Sequential(nn.Conv2d(channels, 6, 5), bend(), nn.AvgPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(6, 16, 5), bend(), nn.AvgPool2d(2))
        places = after_filters(max(height, SIDE)) * after_filters(max(width, SIDE))
        self.dense1 = nn.Sequential(nn.Linear(16 * places, 120), bend())
        self.dense2 = nn.Sequential(nn.Linear(120, 84), bend())
        self.head = nn.Linear(84, outputs)
        self.depth = ("conv1", "conv2", "dense1", "dense2")

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 84)."""
        maps = self.conv2(self.conv1(self.edge(images)))  # (B, 16, 5, 5) of 32 x 32
        return self.dense2(self.dense1(maps.flatten(1)))

    def decide(self, features: Tensor) -> Tensor:
        """(B, 84) -> (B, outputs)."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Both."""
        return self.decide(self.features(images))


def after_filters(side: int) -> int:
    """Places along a side after two rounds of 5 x 5 filters and halving: 5 of 32."""
    return ((side - 4) // 2 - 4) // 2


@network(
    "lenet",
    reason="the first network to read digits for a living",
    pros="61,706 weights, trains in seconds, small enough to look at every map",
    cons="made for digits; a residual network is far better on photos",
    paper="LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning applied to document recognition",
    year=1998,
    parameters=61_706,
    published="1 x 28 x 28, 10 classes",
    suits=lambda schema, rows: 0.0,  # never unasked: a network of history
    takes=is_picture,
    training=lambda schema, rows: {
        "training.learning_rate": 4e-3, "training.weight_decay": 0.01, "training.epochs": 20 if rows < 10_000 else 5,
    },
)  # fmt: skip
def lenet(
    schema: Schema,
    role: str,
    *,
    activation: ActivationName = hyperparameter("tanh", search=["tanh", "relu"], help="after filters and dense layers"),
) -> nn.Module:
    """LeNet-5: two rounds of filters and halving, then three dense layers."""
    shape = image_shape(schema)
    if shape is None:
        raise unfit(schema, "lenet", "one picture alone")
    return LeNet(shape, output_size(schema), activation)
