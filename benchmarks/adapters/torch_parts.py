"""What the tools built on PyTorch share: the network, the tensors and the fixed batch order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
from common import Measurement, Prepared
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset


def set_up(measurement: Measurement) -> None:
    """Give PyTorch its threads and its type of numbers."""
    torch.set_num_threads(measurement.threads)
    torch.set_default_dtype(getattr(torch, measurement.data.dtype))


def network(data: Prepared) -> nn.Sequential:
    """The network of the work, with the shared first weights."""
    makers = {
        "conv": nn.Conv2d, "relu": nn.ReLU, "pool": nn.MaxPool2d, "flatten": nn.Flatten, "dense": nn.Linear,
    }  # fmt: skip
    module = nn.Sequential(*(makers[kind](*sizes) for kind, *sizes in data.work.layers))
    module.load_state_dict({name: torch.from_numpy(weight) for name, weight in data.weights.items()})
    return module


def training_tensors(data: Prepared) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,)."""
    images = torch.from_numpy(data.scaled(data.images, channels_first=True))
    return images, torch.from_numpy(numpy.array(data.labels))


class FixedOrder(Sampler[int]):
    """Visits the rows in the shared order, one line of it an epoch."""

    def __init__(self, order: numpy.ndarray):
        self.order = order  # (epochs, rows)
        self.epoch = 0

    def __len__(self) -> int:
        return self.order.shape[1]

    def __iter__(self) -> Iterator[int]:
        rows = self.order[self.epoch].tolist()
        self.epoch += 1
        return iter(rows)


def training_loader(data: Prepared) -> DataLoader:
    """The loader of the PyTorch tutorials, in the shared order."""
    return DataLoader(TensorDataset(*training_tensors(data)), data.work.batch, sampler=FixedOrder(data.order))


@torch.no_grad()
def test_answers(module: nn.Module, data: Prepared) -> numpy.ndarray:
    """The predicted class of every test row."""
    module.eval()
    parts = numpy.array_split(data.test_images, 10)
    return numpy.concatenate(
        [module(torch.from_numpy(data.scaled(part, channels_first=True))).argmax(1).numpy() for part in parts]
    )
