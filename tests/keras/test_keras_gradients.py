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
from numbabn.keras.functions import INFERENCE, TRAINING
from numbabn.tensors.compute import COMPUTE


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


LIMITS = {"rmin": 0.75, "rmax": 1.25, "dmax": 0.25}  # All the same in float32.
CASES = {
    "training": {},
    "inference": {"training": False},
    "mask": {"masked": True},
    "renorm": {"renorm": True, "renorm_clipping": LIMITS},
    "shared renorm, mask": {
        "renorm": True, "renorm_momentum": None, "renorm_clipping": LIMITS, "masked": True
    },
    "channels first": {"axis": 1},
    "several axes": {"axis": (0, 2)},
    "neither scale nor center": {"scale": False, "center": False},
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_gradient_penalty(case, mode):
    """The gradient of a gradient, as a framework finds it in the textbook's formula, in float64."""
    rng = np.random.default_rng(0)
    arguments = dict(CASES[case])
    training, masked = arguments.pop("training", True), arguments.pop("masked", False)
    x, weights = rng.normal(2, 3, (4, 5, 3)), rng.normal(size=(4, 5, 3))
    mask = rng.random((4, 5)) < 0.6 if masked else None
    found = []
    for kind in (BatchNormalization, Textbook):
        layer = kind(dtype="float64", **arguments)
        layer.build(x.shape)
        for name, first in (("gamma", 0.5), ("moving_mean", -1.0), ("moving_variance", 3.0)):
            weight = getattr(layer, name)
            if weight is not None:
                values = first + 0.1 * np.arange(np.prod(weight.shape))
                weight.assign(values.reshape(weight.shape))
        found.append(PENALTIES[BACKEND](layer, x, weights, training, mask, mode))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-9, 1e-9 * np.abs(theirs).max())


class Textbook(BatchNormalization):
    """The same layer by plain operations, which the framework differentiates."""

    def call(self, x, training=None, mask=None):
        named = [self.axis] if isinstance(self.axis, int) else self.axis
        axes = {axis % x.ndim for axis in named}
        shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
        over = [axis for axis in range(x.ndim) if axis not in axes]

        def beside(weight):
            return ops.reshape(weight.value, shape)

        moving = beside(self.moving_mean), beside(self.moving_variance)
        mean, variance, r, d = *moving, 1.0, 0.0
        if training:
            on = ops.ones_like(x) if mask is None else ops.cast(mask, x.dtype)[..., None]
            on = on * ops.ones_like(x)
            count = ops.sum(on, over, keepdims=True)
            mean = ops.sum(x * on, over, keepdims=True) / count
            variance = ops.sum((x - mean) ** 2 * on, over, keepdims=True) / count
            if self.renorm:
                stddev = ops.sqrt(variance + self.epsilon)
                reference = moving[0], ops.sqrt(moving[1] + self.epsilon)
                if self.renorm_momentum is not None:
                    reference = beside(self.renorm_mean), beside(self.renorm_stddev)
                r = ops.clip(stddev / reference[1], LIMITS["rmin"], LIMITS["rmax"])
                d = ops.clip((mean - reference[0]) / reference[1], -LIMITS["dmax"], LIMITS["dmax"])
                r, d = ops.stop_gradient(r), ops.stop_gradient(d)
        y = (x - mean) / ops.sqrt(variance + self.epsilon) * r + d
        if self.scale:
            y = y * beside(self.gamma)
        return y + beside(self.beta) if self.center else y


def test_gradient_penalty_over_padding():
    """NaN where the mask is off and no loss reads: all is as if it were finite there."""
    rng = np.random.default_rng(1)
    x, weights = rng.normal(2, 3, (4, 5, 3)), rng.normal(size=(4, 5, 3))
    mask = rng.random((4, 5)) < 0.6
    mask[0, 0] = False
    weights[~mask] = 0.0
    padded = np.where(mask[..., None], x, np.nan)
    layer = BatchNormalization(dtype="float64")
    layer.build(x.shape)
    penalty = PENALTIES[BACKEND]
    found, expected = (penalty(layer, each, weights, True, mask, "eager") for each in (padded, x))
    for ours, clean in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, clean, 1e-12, 1e-12)


def _penalty_torch(layer, x, weights, training, mask, mode):
    import torch

    x, weights = torch.tensor(x, requires_grad=True), torch.tensor(weights)
    mask = None if mask is None else torch.tensor(mask)
    parameters = [each.value for each in layer.trainable_weights]
    # Where no loss reads a position, no NaN is to come of it.
    y = torch.where(weights != 0, layer(x, training=training, mask=mask), 0.0)
    gradients = torch.autograd.grad((weights * y**2).sum(), [x, *parameters], create_graph=True)
    total = sum((each**3).sum() for each in gradients)
    second = torch.autograd.grad(total, [x, *parameters], allow_unused=True)
    return [array(each) for each in (*gradients, *second) if each is not None]


def _penalty_tensorflow(layer, x, weights, training, mask, mode):
    import tensorflow as tf

    x, weights = tf.constant(x), tf.constant(weights)
    mask = None if mask is None else tf.constant(mask)

    def run(x):
        watched = [x, *(each.value for each in layer.trainable_weights)]
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.where(weights != 0, layer(x, training=training, mask=mask), 0.0)
                loss = tf.reduce_sum(weights * y**2)
            gradients = inner.gradient(loss, watched)
            total = tf.add_n([tf.reduce_sum(each**3) for each in gradients])
        second = outer.gradient(total, watched)
        return [each for each in (*gradients, *second) if each is not None]

    return [array(each) for each in (tf.function(run) if mode == "graph" else run)(x)]


def _penalty_jax(layer, x, weights, training, mask, mode):
    import jax

    trainable = [each.value for each in layer.trainable_variables]
    others = [each.value for each in layer.non_trainable_variables]

    def loss(x, trainable):
        y, _ = layer.stateless_call(trainable, others, x, training=training, mask=mask)
        return (weights * jax.numpy.where(weights != 0, y, 0.0) ** 2).sum()

    def total(x, trainable):
        dx, gradients = jax.grad(loss, (0, 1))(x, trainable)
        return sum((each**3).sum() for each in (dx, *gradients)), (dx, *gradients)

    run = jax.grad(total, (0, 1), has_aux=True)
    (ddx, second), gradients = (jax.jit(run) if mode == "jit" else run)(x, trainable)
    return [array(each) for each in (*gradients, ddx, *second)]


PENALTIES = {
    "torch": _penalty_torch, "tensorflow": _penalty_tensorflow, "jax": _penalty_jax
}  # fmt: skip


@pytest.mark.skipif(BACKEND != "jax", reason="a transformation of JAX")
@pytest.mark.parametrize("case", CASES)
def test_hessian(case):
    """Forward mode over a gradient, and a gradient over forward mode's."""
    import jax

    rng = np.random.default_rng(0)
    arguments = dict(CASES[case])
    training, masked = arguments.pop("training", True), arguments.pop("masked", False)
    x, weights = rng.normal(2, 3, (3, 2, 2)), rng.normal(size=(3, 2, 2))
    mask = np.array([[1, 0], [1, 1], [0, 1]], bool) if masked else None
    found = []
    for kind in (BatchNormalization, Textbook):
        layer = kind(dtype="float64", **arguments)
        layer.build(x.shape)
        trainable = [each.value for each in layer.trainable_variables]
        others = [each.value for each in layer.non_trainable_variables]

        def loss(x, layer=layer, trainable=trainable, others=others):
            y, _ = layer.stateless_call(trainable, others, x, training=training, mask=mask)
            return (weights * y**2).sum()

        found.append((jax.hessian(loss)(x), jax.jacrev(jax.grad(loss))(x)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-8, 1e-8 * np.abs(theirs).max())


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
