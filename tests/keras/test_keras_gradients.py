"""Differentiation beyond one step: what is not asked for, and second derivatives."""

import keras
import numpy as np
import pytest
from backends import BACKEND, MODES, array, step
from callers import attributes_of
from keras import ops
from operands import make_inputs

import reference
from numbabn.cpu import launch
from numbabn.keras import BatchNormalization
from numbabn.keras.operations import COMPUTE, INFERENCE, TRAINING


@pytest.mark.parametrize("training", [True, False])
def test_central_differences(training):
    """The gradients that a framework computes through the layer, against differences."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(2, 3, (4, 3)), rng.normal(size=(4, 3))
    clipping = {"rmin": 1, "rmax": 1, "dmax": 0}  # r and d are constants for the gradient.
    layer = BatchNormalization(dtype="float64", renorm=True, renorm_clipping=clipping)
    layer.build(x.shape)
    got = step(layer, x, dy, training=training)
    weights = layer.get_weights()

    def loss(x):
        layer.set_weights(weights)
        y = layer(ops.convert_to_tensor(x), training=training)
        return float(np.sum(array(y) * dy))

    for position in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[position] = 1e-5
        difference = (loss(x + shift) - loss(x - shift)) / 2e-5
        np.testing.assert_allclose(got.dx[position], difference, 1e-6, 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_zero_dy_contributes_nothing(mode):
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 3)).astype(np.float32)
    x[0, 0] = np.nan
    dy = np.ones_like(x)
    dy[0, 0] = 0
    mask = np.ones((4, 5), bool)
    mask[0, 0] = False
    layer = BatchNormalization()
    layer.build(x.shape)
    got = step(layer, x, dy, mask=mask, mode=mode)
    expected = reference.backward(dy, np.nan_to_num(x), np.ones(3), mask=mask)
    np.testing.assert_allclose(got.dx, expected[0], 1e-5, 1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_second_derivative_raises(training):
    layer = BatchNormalization()
    layer.build((4, 3))
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(2, 3, (4, 3)).astype(np.float32))
    with pytest.raises(Exception, match="has no derivative of its own") as caught:
        SECOND[BACKEND](layer, x, training)
    assert "numbabn.keras.convert(model, to_keras=True)" in str(caught.value)


def _second_torch(layer, x, training):
    import torch

    x = x.clone().requires_grad_()
    y = layer(x, training=training)
    (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    dx.sum().backward()


def _second_tensorflow(layer, x, training):
    import tensorflow as tf

    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(layer(x, training=training) ** 2)
        dx = inner.gradient(loss, x)
    outer.gradient(dx, x)


def _second_jax(layer, x, training):
    import jax

    trainable = [each.value for each in layer.trainable_variables]
    others = [each.value for each in layer.non_trainable_variables]

    def loss(x):
        y, _ = layer.stateless_call(trainable, others, x, training=training)
        return (y**2).sum()

    jax.grad(lambda x: jax.grad(loss)(x).sum())(x)


SECOND = {"torch": _second_torch, "tensorflow": _second_tensorflow, "jax": _second_jax}


def test_layer_used_twice():
    """One layer at two places: both contribute, and its statistics move twice."""
    x = np.random.default_rng(0).normal(2, 3, (6, 3)).astype(np.float32)
    layers = BatchNormalization(momentum=0.5), keras.layers.BatchNormalization(momentum=0.5)
    results = []
    for layer in layers:
        layer.build(x.shape)
        results.append(step(Twice(layer), x, np.ones_like(x) * x))
    np.testing.assert_allclose(results[0].y, results[1].y, 1e-4, 1e-4)
    np.testing.assert_allclose(results[0].dx, results[1].dx, 1e-3, 1e-3)
    for ours, keras_own in zip(layers[0].weights, layers[1].weights, strict=True):
        np.testing.assert_allclose(array(ours.value), array(keras_own.value), 1e-5, 1e-5)


class Twice(keras.layers.Layer):
    """A layer applied to what it gives."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.built = True

    def call(self, x, training=None, mask=None):
        return self.layer(self.layer(x, training=training) * 2 + 1, training=training)


@pytest.mark.skipif(BACKEND != "jax", reason="transformations of JAX")
@pytest.mark.parametrize("training", [True, False])
def test_jit_and_checkpoint_inside_of_grad(training):
    """The forward's output may not be closed over: here it would be a tracer of the past."""
    import jax

    layer = BatchNormalization(dtype="float32")
    layer.build((4, 3))
    trainable = [each.value for each in layer.trainable_variables]
    others = [each.value for each in layer.non_trainable_variables]
    x = np.random.default_rng(0).normal(2, 3, (4, 3)).astype(np.float32)

    def loss(x):
        y, _ = layer.stateless_call(trainable, others, x, training=training)
        return (y**3).sum()

    expected = array(jax.grad(loss)(x))
    for wrap in (jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))):
        np.testing.assert_allclose(array(jax.grad(wrap(loss))(x)), expected, 1e-5, 1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", [("dgamma", "dbeta"), ("dbeta",), ("dx", "dgamma")])
def test_operations_compute_no_dx_that_is_not_wanted(training, wanted, monkeypatch):
    """The launcher is given nowhere to write dx, and no sum changes for it."""
    inputs = make_inputs((6, 4, 3), -1)
    function, attributes = TRAINING if training else INFERENCE, attributes_of()
    inputs |= COMPUTE[function.forward.name](inputs, attributes, None, {})
    inputs = {name: inputs[name] for name in function.backward.operands if name in inputs}
    inputs["dy"] = inputs["x"][::-1].copy()
    backward = COMPUTE[function.backward.name]
    expected = backward(inputs, attributes, None, {})
    outs = []

    def spy(dy, x, saved, mask, epsilon, training, out, gradients, run=launch.backward):
        outs.append(out)
        run(dy, x, saved, mask, epsilon, training, out, gradients)

    monkeypatch.setattr(launch, "backward", spy)
    found = backward(inputs, attributes, wanted, {})
    assert [out is None for out in outs] == ["dx" not in wanted]
    assert tuple(found) == wanted
    for name in wanted:
        np.testing.assert_array_equal(found[name], expected[name])
