"""PyTorch Lightning (the distribution `pytorch-lightning`): `Trainer.fit` without its bars and loggers."""

from __future__ import annotations

import logging
import warnings

import pytorch_lightning
import torch
from common import BETAS, EPSILON, LEARNING_RATE, Measurement
from torch import nn
from torch_parts import network, set_up, test_answers, training_loader


class Classifier(pytorch_lightning.LightningModule):
    """The network, its loss and its optimizer; the mean loss of an epoch is logged, as in the other tools."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, index):
        inputs, labels = batch
        loss = self.criterion(self.module(inputs), labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)


class Clock(pytorch_lightning.Callback):
    """Times every epoch and records the losses of a curve."""

    def __init__(self, measurement: Measurement):
        self.measurement = measurement

    def on_train_epoch_start(self, trainer, module):
        self.measurement.epoch_begins()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if self.measurement.curve:
            self.measurement.loss(outputs["loss"].item())

    def on_train_epoch_end(self, trainer, module):
        self.measurement.epoch_ends()


def main() -> None:
    measurement = Measurement("lightning", ("pytorch-lightning", "torch"))
    set_up(measurement)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    loader = training_loader(measurement.data)
    model = Classifier(network(measurement.data))
    trainer = pytorch_lightning.Trainer(
        max_epochs=measurement.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock(measurement)],
    )
    measurement.prepared()

    trainer.fit(model, loader)

    measurement.trained()
    measurement.write(test_answers(model.module, measurement.data))


if __name__ == "__main__":
    main()
