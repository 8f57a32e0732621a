"""One training step of a layer on its own, on any backend, as NumPy arrays in and out."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

BACKEND = keras.backend.backend()
# How a computation can be run: as it is written, and compiled.
MODES = {
    "torch": ("eager",),
    "tensorflow": ("eager", "graph"),
    "jax": ("eager", "jit"),
    "numpy": ("eager",),
}[BACKEND]
TRAINS = BACKEND != "numpy"
on_one_backend = pytest.mark.skipif(
    BACKEND != "torch", reason="no backend plays a part: once is enough"
)


class Step(NamedTuple):
    """A call's output and gradients; the gradients are None where the backend has none."""

    y: np.ndarray
    dx: np.ndarray | None
    gradients: dict  # by the name of the weight


def array(tensor):
    """A tensor as a float64 array."""
    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float64")))


def weights_of(layer):
    """The weights by name, as float64."""
    return {weight.name: array(weight.value) for weight in layer.weights}


def step(layer, x, dy, *, mask=None, training=True, mode="eager"):
    """Call the layer, which is built, and differentiate the sum of its output times `dy`."""
    x = ops.cast(ops.convert_to_tensor(x), layer.compute_dtype)
    dy = ops.cast(ops.convert_to_tensor(dy), layer.compute_dtype)
    mask = None if mask is None else ops.convert_to_tensor(mask)
    return _STEPS[BACKEND](layer, x, dy, mask, training, mode)


def _torch(layer, x, dy, mask, training, mode):
    import torch

    x = x.clone().requires_grad_()
    y = layer(x, training=training, mask=mask)
    names = [weight.name for weight in layer.trainable_weights]
    values = [weight.value for weight in layer.trainable_weights]
    dx, *gradients = torch.autograd.grad(y, [x, *values], dy)
    named = dict(zip(names, map(array, gradients), strict=True))
    return Step(array(y.detach()), array(dx), named)


def _tensorflow(layer, x, dy, mask, training, mode):
    import tensorflow as tf

    variables = layer.trainable_weights

    def run(x, dy, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training, mask=mask)
        return y, tape.gradient(y, [x, *[each.value for each in variables]], dy)

    y, (dx, *gradients) = (tf.function(run) if mode == "graph" else run)(x, dy, mask)
    names = [weight.name for weight in variables]
    return Step(array(y), array(dx), dict(zip(names, map(array, gradients), strict=True)))


def _jax(layer, x, dy, mask, training, mode):
    import jax

    trainable = [each.value for each in layer.trainable_variables]
    others = [each.value for each in layer.non_trainable_variables]

    def run(x, trainable, others, dy, mask):
        def forward(x, trainable):
            return layer.stateless_call(trainable, others, x, training=training, mask=mask)

        y, pull, others = jax.vjp(forward, x, trainable, has_aux=True)
        return y, pull(dy), others

    run = jax.jit(run) if mode == "jit" else run
    y, (dx, gradients), others = run(x, trainable, others, dy, mask)
    for variable, value in zip(layer.non_trainable_variables, others, strict=True):
        variable.assign(value)
    names = [variable.name for variable in layer.trainable_variables]
    return Step(array(y), array(dx), dict(zip(names, map(array, gradients), strict=True)))


def _numpy(layer, x, dy, mask, training, mode):
    return Step(array(layer(x, training=training, mask=mask)), None, {})


_STEPS = {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax, "numpy": _numpy}
