"""What the tools built on PyTorch share: the network, the tensors and the fixed batch order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
from common import PAD, Measurement, Prepared, text_lengths
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset


def set_up(measurement: Measurement) -> None:
    """Give PyTorch its threads and its type of numbers."""
    torch.set_num_threads(measurement.threads)
    torch.set_default_dtype(getattr(torch, measurement.data.dtype))


class FixedTexts(nn.Sequential):
    """Embedding, LSTM and dense layer for texts of one length: the dense layer reads the last state."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, classes)."""
        embedding, lstm, dense = self
        _, (state, _) = lstm(embedding(tokens))
        return dense(state[-1])


class PackedTexts(nn.Sequential):
    """The same for texts of unequal length, packed as in the tutorials."""

    def forward(self, texts: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T) tokens and (B,) lengths -> (B, classes)."""
        embedding, lstm, dense = self
        tokens, lengths = texts
        packed = pack_padded_sequence(embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, (state, _) = lstm(packed)
        return dense(state[-1])


def network(data: Prepared) -> nn.Sequential:
    """The network of the work, with the shared first weights."""
    makers = {
        "conv": nn.Conv2d, "relu": nn.ReLU, "pool": nn.MaxPool2d, "flatten": nn.Flatten, "dense": nn.Linear,
        "embedding": lambda size, width: nn.Embedding(size, width, padding_idx=PAD),
        "lstm": lambda inputs, units: nn.LSTM(inputs, units, batch_first=True),
    }  # fmt: skip
    container = {"lstm": PackedTexts, "lstm-fixed": FixedTexts}.get(data.work.name, nn.Sequential)
    module = container(*(makers[kind](*sizes) for kind, *sizes in data.work.layers))
    module.load_state_dict({name: torch.from_numpy(weight) for name, weight in data.weights.items()})
    return module


def training_tensors(data: Prepared) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), or tokens (N, T), and labels (N,)."""
    inputs = torch.from_numpy(data.ready(data.inputs, channels_first=True))
    return inputs, torch.from_numpy(numpy.array(data.labels))


class Texts(Dataset):
    """Texts of unequal length, each with its label."""

    def __init__(self, data: Prepared):
        lengths = text_lengths(data.inputs)
        self.texts = [torch.tensor(row[:length]) for row, length in zip(data.inputs, lengths, strict=True)]
        self.labels = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.texts[row], self.labels[row]


def collate(rows: list[tuple[Tensor, int]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Texts filled up to the longest of the batch, with their lengths, and labels."""
    texts, labels = zip(*rows, strict=True)
    lengths = torch.tensor([len(text) for text in texts])
    return (pad_sequence(texts, batch_first=True, padding_value=PAD), lengths), torch.tensor(labels)


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
    order = FixedOrder(data.order)
    if data.work.name == "lstm":
        return DataLoader(Texts(data), data.work.batch, sampler=order, collate_fn=collate)
    return DataLoader(TensorDataset(*training_tensors(data)), data.work.batch, sampler=order)


@torch.no_grad()
def test_answers(module: nn.Module, data: Prepared) -> numpy.ndarray:
    """The predicted class of every test row."""
    module.eval()
    answers = []
    for part in numpy.array_split(data.test_inputs, 10):
        inputs = torch.from_numpy(data.ready(part, channels_first=True))
        if data.work.name == "lstm":
            inputs = (inputs, torch.from_numpy(text_lengths(part)))
        answers.append(module(inputs).argmax(1).numpy())
    return numpy.concatenate(answers)
