"""fastai: `Learner.fit` with fastai's own Adam, set to the shared constants (its defaults differ)."""

from __future__ import annotations

from functools import partial

from common import BETAS, EPSILON, LEARNING_RATE, Measurement
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Recorder
from fastai.optimizer import Adam
from torch import nn
from torch_parts import network, set_up, test_answers, training_loader


class Clock(Callback):
    """Times the training part of every epoch, skips validation, and records the losses of a curve."""

    def __init__(self, measurement: Measurement):
        self.measurement = measurement

    def before_train(self):
        self.measurement.epoch_begins()

    def after_batch(self):
        if self.measurement.curve:
            self.measurement.loss(self.learn.loss.item())

    def after_train(self):
        self.measurement.epoch_ends()

    def before_validate(self):
        raise CancelValidException


def main() -> None:
    measurement = Measurement("fastai", ("fastai", "torch"))
    set_up(measurement)
    loader = training_loader(measurement.data)
    model = network(measurement.data)
    learner = Learner(
        DataLoaders(loader, loader),
        model,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(Adam, mom=BETAS[0], sqr_mom=BETAS[1], eps=EPSILON, wd=0.0),
        cbs=[Clock(measurement)],
    )
    if measurement.data.dtype == "float64":
        learner.remove_cb(Recorder)  # its running mean is kept in float32
    measurement.prepared()

    with learner.no_logging():
        learner.fit(measurement.epochs, LEARNING_RATE)

    measurement.trained()
    measurement.write(test_answers(model, measurement.data))


if __name__ == "__main__":
    main()
