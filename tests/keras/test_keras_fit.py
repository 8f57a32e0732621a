"""Training with `fit`: compiled and not, in mixed precision, with limits that change."""

import keras
import numpy as np
import pytest
from backends import BACKEND, array, weights_of
from keras import layers, ops

from numbabn.keras import BatchNormalization

rng = np.random.default_rng(0)
X = rng.normal(2, 3, (32, 8, 8, 2)).astype(np.float32)
Y = rng.integers(0, 3, 32)


def convolutional(layer_class, seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, use_bias=False),
            layer_class(name="bn", momentum=0.8, **arguments),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, dtype="float32"),
        ]
    )


def fit(model, run_eagerly=False, epochs=2, callbacks=None, **compiled):
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=run_eagerly,
        **compiled,
    )
    history = model.fit(
        X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
    )
    return history.history["loss"]


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize(
    "arguments", [{}, {"renorm": True, "renorm_clipping": {"rmax": 1.5, "dmax": 0.5}}]
)
def test_like_keras(arguments, run_eagerly):
    ours, keras_own = (
        convolutional(each, **arguments)
        for each in (BatchNormalization, keras.layers.BatchNormalization)
    )
    losses = [fit(model, run_eagerly) for model in (ours, keras_own)]
    np.testing.assert_allclose(*losses, 1e-4)
    for old, new in zip(ours.weights, keras_own.weights, strict=True):
        np.testing.assert_allclose(array(old.value), array(new.value), 2e-3, 2e-3)
    np.testing.assert_allclose(
        ours.predict(X, verbose=0), keras_own.predict(X, verbose=0), 5e-3, 5e-3
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_precisions(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = convolutional(BatchNormalization, renorm=True)
    finally:
        keras.config.set_dtype_policy("float32")
    losses = fit(model, epochs=6)
    assert losses[-1] < losses[0]
    layer = model.get_layer("bn")
    wide = "float64" if policy == "float64" else "float32"
    assert {keras.backend.standardize_dtype(each.dtype) for each in layer.weights} == {wide}
    assert np.isfinite(model.predict(X, verbose=0)).all()


def test_frozen_layer_stays():
    model = convolutional(BatchNormalization)
    model.get_layer("bn").trainable = False
    before = weights_of(model.get_layer("bn"))
    fit(model)
    for name, values in weights_of(model.get_layer("bn")).items():
        np.testing.assert_array_equal(values, before[name])


class Replace(keras.callbacks.Callback):
    """Counts traces, and replaces the limits from the third step on."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        self.steps = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.steps += 1
        if self.steps == 3:
            self.change()

    def on_train_batch_end(self, batch, logs=None):
        """Has Keras wait for the step, which JAX computes while Python goes on."""


class CountTraces(BatchNormalization):
    """Counts how often its call is run in Python: in training, once where it is compiled."""

    calls = 0

    def call(self, inputs, training=None, mask=None):
        type(self).calls += bool(training)
        return super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize("kind", ["replaced", "entry", "variable", "function"])
def test_limits_change_within_a_fit(kind):
    """As if the limits had been so from the start of the step, and nothing is traced again."""
    variable = keras.Variable(1.0, trainable=False)
    plain = {"rmin": 1.0, "rmax": 1.0, "dmax": 0.0}
    value = [1.0]
    given = {
        "replaced": dict(plain), "entry": dict(plain), "variable": {**plain, "rmax": variable},
        "function": {**plain, "rmax": lambda: value[0]},
    }[kind]  # fmt: skip
    model = convolutional(CountTraces, renorm=True, renorm_clipping=given)
    layer = model.get_layer("bn")

    def change():
        if kind == "replaced":
            layer.renorm_clipping = {**plain, "rmax": 3.0}
        elif kind == "entry":
            given["rmax"] = 3.0
        elif kind == "variable":
            variable.assign(3.0)
        else:
            value[0] = 3.0

    CountTraces.calls = 0
    losses = fit(model, epochs=1, callbacks=[Replace(change)])
    calls = CountTraces.calls
    # The same, in two parts.
    expected = convolutional(BatchNormalization, renorm=True, renorm_clipping=dict(plain))
    expected.compile(
        keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    for start in range(0, 32, 8):
        if start == 16:
            expected.get_layer("bn").renorm_clipping = {**plain, "rmax": 3.0}
        expected.train_on_batch(X[start : start + 8], Y[start : start + 8])
    for old, new in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_allclose(array(old.value), array(new.value), 1e-4, 1e-5)
    assert np.isfinite(losses).all()
    if BACKEND in ("tensorflow", "jax"):
        assert calls <= 2


def test_masked_sequences():
    """Masking before the layer, inside a compiled model."""
    keras.utils.set_random_seed(0)
    x = rng.normal(2, 3, (32, 7, 3)).astype(np.float32)
    lengths = rng.integers(1, 8, 32)
    x[np.arange(7) >= lengths[:, None]] = 0.0
    inputs = keras.Input((None, 3))
    hidden = layers.Masking(0.0)(inputs)
    bn = BatchNormalization(momentum=0.0)
    outputs = layers.Dense(3)(layers.LSTM(4)(bn(hidden)))
    model = keras.Model(inputs, outputs)
    fit_sequences(model, x)
    last = x[24:]
    inside = last[np.arange(7) < lengths[24:, None]]
    np.testing.assert_allclose(array(bn.moving_mean), inside.mean(0), 1e-4, 1e-4)
    np.testing.assert_allclose(array(bn.moving_variance), inside.var(0), 1e-4, 1e-4)


def fit_sequences(model, x):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)


@pytest.mark.skipif(BACKEND != "torch", reason="Keras's remat takes no training= in graphs")
def test_rematerialized():
    """keras.remat runs the forward again for the backward."""
    plain = convolutional(BatchNormalization)
    with keras.RematScope(mode="full"):
        remat = convolutional(BatchNormalization)
    for each in (remat, plain):
        fit(each, epochs=1)
    for old, new in zip(remat.weights, plain.weights, strict=True):
        np.testing.assert_allclose(array(old.value), array(new.value), 1e-4, 1e-5)


def test_a_layer_rematerialized():
    """It keeps nothing that could be computed anew, and so runs once."""
    with keras.RematScope(mode="full"):
        layer = BatchNormalization(momentum=0.5)
    model = keras.Sequential([keras.Input((6,)), layer])
    once = BatchNormalization(momentum=0.5)
    x = np.random.default_rng(0).normal(2, 3, (16, 6)).astype(np.float32)
    once(x, training=True)
    model.compile("sgd", "mse")
    model.fit(x, x, batch_size=16, epochs=1, verbose=0)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(array(getattr(layer, name)), array(getattr(once, name)), 1e-6)


def test_predict_does_not_move_statistics():
    model = convolutional(BatchNormalization)
    before = weights_of(model.get_layer("bn"))
    model.predict(ops.convert_to_tensor(X), verbose=0)
    for name, values in weights_of(model.get_layer("bn")).items():
        np.testing.assert_array_equal(values, before[name])
