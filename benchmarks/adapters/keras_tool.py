"""Keras 3 on the backend named by KERAS_BACKEND (tensorflow or torch): `model.fit` on numpy arrays.

Keras reads arrays fastest in their own order, so the rows of each epoch are laid out in the shared order
before its clock starts, and `fit` is called once an epoch with `shuffle=False`. Texts of unequal length are arrays of
one length as well, whose empty steps the embedding masks.
"""

from __future__ import annotations

import keras
import numpy
from common import BETAS, EPSILON, LEARNING_RATE, Measurement, Prepared, Work

DISTRIBUTIONS = {"tensorflow": ("keras", "tensorflow-cpu"), "torch": ("keras", "torch")}
LAYOUT_CHUNK = 4096  # rows


def limit_threads(threads: int) -> None:
    """Give the backend its threads."""
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)
    else:
        import tensorflow

        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(threads)


def network(work: Work, shape: tuple[int, ...]) -> keras.Model:
    """The network of a work, channels last as Keras has it, each relu inside the layer before it."""
    layers = []
    for (kind, *sizes), following in zip(work.layers, (*work.layers[1:], (None,)), strict=True):
        activation = "relu" if following[0] == "relu" else None
        if kind == "conv":
            layers.append(keras.layers.Conv2D(sizes[1], sizes[2], activation=activation))
        elif kind == "dense":
            layers.append(keras.layers.Dense(sizes[1], activation=activation))
        elif kind == "pool":
            layers.append(keras.layers.MaxPooling2D(sizes[0]))
        elif kind == "flatten":
            layers.append(keras.layers.Flatten())
        elif kind == "embedding":
            layers.append(keras.layers.Embedding(*sizes, mask_zero=work.name == "lstm"))
        elif kind == "lstm":
            layers.append(keras.layers.LSTM(sizes[1]))
    return keras.Sequential([keras.layers.Input(shape, dtype="int32" if work.reads_text else None), *layers])


def set_weights(model: keras.Model, weights: dict[str, numpy.ndarray]) -> None:
    """Copy weights in PyTorch layout: kernels are transposed, rows after a flatten go from CHW to HWC.

    The four gates of an LSTM stand in the same order; its one bias is the sum of PyTorch's two.
    """
    values = iter(weights.values())
    flattened: tuple[int, ...] = ()
    for layer in model.layers:
        if isinstance(layer, keras.layers.Flatten):
            flattened = layer.input.shape[1:]  # (H, W, C)
        if not layer.weights:
            continue
        if isinstance(layer, keras.layers.Embedding):
            layer.set_weights([next(values)])
            continue
        if isinstance(layer, keras.layers.LSTM):
            kernel, recurrent = next(values).T, next(values).T
            layer.set_weights([kernel, recurrent, next(values).astype(layer.dtype) + next(values)])
            continue
        kernel, bias = next(values), next(values)
        if isinstance(layer, keras.layers.Conv2D):
            kernel = kernel.transpose(2, 3, 1, 0)  # (outputs, inputs, H, W) -> (H, W, inputs, outputs)
        elif flattened:
            height, width, channels = flattened
            kernel = kernel.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
            kernel = kernel.reshape(height * width * channels, -1)
            flattened = ()
        else:
            kernel = kernel.T
        layer.set_weights([kernel, bias])


def lay_out(data: Prepared, epoch: int, inputs: numpy.ndarray, labels: numpy.ndarray) -> None:
    """Fill `inputs` and `labels` in the order of one epoch, a chunk at a time to spare memory."""
    order = data.order[epoch]
    for start in range(0, len(order), LAYOUT_CHUNK):
        rows = order[start : start + LAYOUT_CHUNK]
        inputs[start : start + len(rows)] = data.ready(data.inputs[rows], channels_first=False)
        labels[start : start + len(rows)] = data.labels[rows]


class Clock(keras.callbacks.Callback):
    """Times every epoch and records the losses of a curve."""

    def __init__(self, measurement: Measurement):
        super().__init__()
        self.measurement = measurement

    def on_epoch_begin(self, epoch, logs=None):
        self.measurement.epoch_begins()

    def on_epoch_end(self, epoch, logs=None):
        self.measurement.epoch_ends()


class Curve(keras.callbacks.Callback):
    """Records the loss of every batch; Keras logs a running mean, which is restarted here."""

    def __init__(self, measurement: Measurement):
        super().__init__()
        self.measurement = measurement

    def on_train_batch_end(self, batch, logs=None):
        self.measurement.loss(logs["loss"])
        self.model.reset_metrics()


def main() -> None:
    measurement = Measurement(f"keras-{keras.backend.backend()}", DISTRIBUTIONS[keras.backend.backend()])
    limit_threads(measurement.threads)
    data = measurement.data
    keras.config.set_floatx(data.dtype)
    dtype = data.inputs.dtype if measurement.work.reads_text else data.dtype
    inputs, labels = numpy.empty(data.inputs.shape, dtype), numpy.array(data.labels)
    lay_out(data, 0, inputs, labels)
    model = network(measurement.work, inputs.shape[1:])
    set_weights(model, data.weights)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE, *BETAS, EPSILON),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    callbacks = [Clock(measurement), *([Curve(measurement)] if measurement.curve else [])]
    measurement.prepared()

    for epoch in range(measurement.epochs):
        if epoch:
            lay_out(data, epoch, inputs, labels)
        model.fit(inputs, labels, measurement.work.batch, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)

    measurement.trained()
    answers = model.predict(data.ready(data.test_inputs, channels_first=False), batch_size=1000, verbose=0)
    measurement.write(answers.argmax(1))


if __name__ == "__main__":
    main()
