"""The loop of the PyTorch tutorials: a DataLoader, and `loss.item()` at every step for the running mean."""

from __future__ import annotations

import torch
from common import BETAS, EPSILON, LEARNING_RATE, Measurement
from torch import nn
from torch_parts import network, set_up, test_answers, training_loader


def main() -> None:
    measurement = Measurement("tutorial", ("torch",))
    set_up(measurement)
    loader = training_loader(measurement.data)
    model = network(measurement.data)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    measurement.prepared()

    for _ in range(measurement.epochs):
        measurement.epoch_begins()
        model.train()
        running_loss = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item() * len(labels)
            if measurement.curve:
                measurement.loss(loss.item())
        measurement.epoch_ends()

    measurement.trained()
    measurement.write(test_answers(model, measurement.data))


if __name__ == "__main__":
    main()
