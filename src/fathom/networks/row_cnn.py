"""A convolution over the columns of a row: the network that overviews write down for fraud, for the record.

    numbers side by side ─ conv 64 ─ dense 128 ─ head

A convolution gains where neighbors belong together and patterns repeat, as in pictures and sound. The columns of a table
have no such order: shuffle them and the table says the same, but this network learns something else.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Schema, hyperparameter
from fathom.core.errors import FathomError
from fathom.core.registry import network
from fathom.networks.parts import ALIKE, flat_size, output_size, rows_alike, unfit


class RowCNN(nn.Module):
    """Conv over the columns, dense, head.

    Args:
        inputs: numbers of one row.
        channels: filters of the convolution.
        kernel: columns that a filter sees at once.
        hidden: units of the dense layer.
        outputs: numbers returned.
    """

    def __init__(self, inputs: int, channels: int, kernel: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, channels, kernel)
        self.dense = nn.Linear(channels * (inputs - kernel + 1), hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, ...) each -> (B, outputs)."""
        row = torch.cat([x.flatten(1) for x in inputs], 1)  # (B, columns)
        seen = F.relu(self.conv(row[:, None]))  # (B, channels, columns - kernel + 1)
        return self.head(F.relu(self.dense(seen.flatten(1))))


@network(
    "row_cnn",
    reason="the network that overviews write down for fraud",
    pros="for comparison with the overviews' listing",
    cons="columns have no order that a convolution could use; an mlp or the network for tables learns more",
    paper="",
    year=None,
    suits=lambda schema, rows: 0.0,
    takes=rows_alike,
)
def row_cnn(
    schema: Schema,
    role: str,
    *,
    channels: PositiveInt = hyperparameter(64, help="filters of the convolution"),
    kernel: PositiveInt = hyperparameter(3, help="columns that a filter sees at once"),
    hidden: PositiveInt = hyperparameter(128, help="units of the dense layer"),
) -> nn.Module:
    """One convolution over the columns, one dense layer, a linear head."""
    if not rows_alike(schema):
        raise unfit(schema, "row_cnn", ALIKE)
    columns = flat_size(schema)
    if kernel > columns:
        raise FathomError(
            f"network.kernel = {kernel} is wider than a row, which has {columns} numbers. Use {columns} or less."
        )
    return RowCNN(columns, channels, kernel, hidden, output_size(schema))
