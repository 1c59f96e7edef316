"""Keras 3 on the backend named by KERAS_BACKEND (tensorflow or torch): `model.fit` on numpy arrays.

Keras reads arrays fastest in their own order, so the rows of each epoch are laid out in the shared order before its
clock starts, and `fit` is called once an epoch with `shuffle=False`.
"""

from __future__ import annotations

import os

import keras
import numpy
from common import LEARNING_RATE, Measurement, Prepared, Work

LAYOUT_CHUNK = 4096


def limit_threads(threads: int) -> tuple[str, ...]:
    """Give the backend its threads; returns the distributions whose versions count."""
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)
        return ("keras", "torch")
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(threads)
    return ("keras", "tensorflow-cpu")


def network(work: Work, shape: tuple[int, ...], weights: dict[str, numpy.ndarray]) -> keras.Model:
    """The network of a work, channels last as Keras has it, with the shared first weights."""
    makers = {
        "conv": lambda inputs, outputs, kernel: keras.layers.Conv2D(outputs, kernel),
        "relu": keras.layers.ReLU,
        "pool": keras.layers.MaxPooling2D,
        "flatten": keras.layers.Flatten,
        "dense": lambda inputs, outputs: keras.layers.Dense(outputs),
    }
    layers = [makers[kind](*sizes) for kind, *sizes in fused(work.layers)]
    model = keras.Sequential([keras.layers.Input(shape), *layers])
    return model
