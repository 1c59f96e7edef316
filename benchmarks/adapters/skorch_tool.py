"""skorch: `NeuralNetClassifier.fit` on numpy arrays, without validation and without printing."""

from __future__ import annotations

import numpy
import torch
from common import BETAS, EPSILON, LEARNING_RATE, Measurement
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn
from torch_parts import FixedOrder, network, set_up, test_answers


class Clock(Callback):
    """Times every epoch and records the losses of a curve."""

    def __init__(self, measurement: Measurement):
        self.measurement = measurement

    def on_epoch_begin(self, net, **kwargs):
        self.measurement.epoch_begins()

    def on_batch_end(self, net, batch=None, training=None, loss=None, **kwargs):
        if self.measurement.curve:
            self.measurement.loss(loss.item())

    def on_epoch_end(self, net, **kwargs):
        self.measurement.epoch_ends()


def main() -> None:
    measurement = Measurement("skorch", ("skorch", "torch"))
    set_up(measurement)
    data = measurement.data
    inputs, labels = data.ready(data.inputs, channels_first=True), numpy.array(data.labels)
    net = NeuralNetClassifier(
        network(data),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=LEARNING_RATE,
        optimizer__betas=BETAS,
        optimizer__eps=EPSILON,
        batch_size=measurement.work.batch,
        max_epochs=measurement.epochs,
        iterator_train__sampler=FixedOrder(data.order),
        train_split=None,
        verbose=0,
        callbacks=[Clock(measurement)],
    )
    net.initialize()
    measurement.prepared()

    net.partial_fit(inputs, labels)

    measurement.trained()
    measurement.write(test_answers(net.module_, data))


if __name__ == "__main__":
    main()
