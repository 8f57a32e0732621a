"""The layer against the oracle and against Keras's own layer."""

import doctest
import importlib
import inspect
import re

import keras
import numpy as np
import pytest
from backends import BACKEND, MODES, TRAINS, array, on_one_backend, step, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import numbabn
import reference
from numbabn.keras import BatchNormalization

# (atol = rtol) of a result rounded once to the dtype, with a few units of room for its value.
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 5e-6, "float64": 1e-11}
# Sums of a few hundred products, in at least float32.
SUM_TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 5e-5, "float64": 1e-10}


def policy(dtype):
    return f"mixed_{dtype}" if dtype in ("float16", "bfloat16") else dtype


def rounded(values, dtype):
    """The values that a tensor of that dtype holds, as float64."""
    return array(ops.cast(ops.convert_to_tensor(values), dtype))


def check_against_oracle(layer, x, mask=None, training=True, mode="eager", clipping=None):
    """Run one step; the outputs, gradients and all weights must be the oracle's."""
    dtype = layer.compute_dtype
    rng = np.random.default_rng(1)
    x, dy = rounded(x, dtype), rounded(rng.normal(size=x.shape), dtype)
    if not layer.built:
        layer.build(x.shape)
        for weight in layer.weights:  # Not at their neutral start.
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    before = weights_of(layer)
    gamma, beta = before.get("gamma"), before.get("beta")
    axis, epsilon = layer.axis, layer.epsilon
    got = step(layer, x, dy, mask=mask, training=training, mode=mode)
    if training and layer.trainable:
        result, after = reference.training_step(
            before, x, axis=axis, mask=mask, momentum=layer.momentum, epsilon=epsilon,
            renorm=layer.renorm, renorm_momentum=layer.renorm_momentum, clipping=clipping,
        )  # fmt: skip
        y = result.y
        dx, dgamma, dbeta = reference.backward(
            dy, x, gamma, axis=axis, mask=mask, epsilon=epsilon, r=result.r, d=result.d
        )
    else:
        after = before
        moving = before["moving_mean"], before["moving_variance"]
        y = reference.normalize(x, *moving, gamma, beta, axis=axis, epsilon=epsilon)
        dx, dgamma, dbeta = reference.normalize_backward(
            dy, x, *moving, gamma, axis=axis, epsilon=epsilon
        )
    tolerance, sums = TOLERANCE[dtype], SUM_TOLERANCE[dtype]
    np.testing.assert_allclose(got.y, y, tolerance, tolerance)
    for name, values in weights_of(layer).items():
        weight_tolerance = max(TOLERANCE[layer.variable_dtype], 1e-6 * (dtype != "float64"))
        np.testing.assert_allclose(values, after[name], weight_tolerance, weight_tolerance, name)
    if TRAINS:
        np.testing.assert_allclose(got.dx, dx, tolerance, tolerance)
        expected = {"gamma": dgamma, "beta": dbeta}
        for name, values in got.gradients.items():
            np.testing.assert_allclose(values, expected[name], sums, sums, name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_one_step(axis, dtype, training, mode):
    x = np.random.default_rng(0).normal(2, 3, (6, 5, 4, 3))
    check_against_oracle(
        BatchNormalization(axis, dtype=policy(dtype)), x, training=training, mode=mode
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [[1, 3], [-1], [0, -1], [3, 1], (2,)])
def test_list_of_axes(axis, mode):
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 6, 3))
    layer = BatchNormalization(axis, renorm=True)
    check_against_oracle(layer, x, mode=mode, clipping={})
    shape = reference.parameter_shape(x.shape, axis)
    assert {tuple(weight.shape) for weight in layer.weights} == {shape}
    axis = list(axis)
    assert layer.get_config()["axis"] == axis
    again = BatchNormalization.from_config(layer.get_config())
    again.build(x.shape)
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in layer.weights]
    assert tuple(layer.compute_output_shape(x.shape)) == x.shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("renorm_momentum", [0.9, None])
@pytest.mark.parametrize("clipping", [None, {"rmax": 1.5, "dmax": 0.5}, {"rmin": 0.9, "rmax": 1.1}])
@pytest.mark.parametrize("shape", [(8, 3), (4, 6, 3)])
def test_renorm(shape, clipping, renorm_momentum, mode):
    layer = BatchNormalization(
        momentum=0.8, renorm=True, renorm_clipping=clipping, renorm_momentum=renorm_momentum
    )
    x = np.random.default_rng(0).normal(2, 3, shape)
    mask = np.random.default_rng(1).random(shape[:-1]) < 0.7
    for _ in range(3):
        check_against_oracle(layer, x, mask=mask, mode=mode, clipping=clipping or {})
    assert len(layer.weights) == (4 if renorm_momentum is None else 7)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_center_and_scale(scale, center, training):
    x = np.random.default_rng(0).normal(2, 3, (6, 5, 3))
    layer = BatchNormalization(scale=scale, center=center)
    check_against_oracle(layer, x, training=training)
    assert len(layer.trainable_weights) == scale + center


@pytest.mark.parametrize("mode", MODES)
def test_not_trainable_means_inference(mode):
    x = np.random.default_rng(0).normal(2, 3, (6, 5, 3))
    layer = BatchNormalization()
    layer.trainable = False
    check_against_oracle(layer, x, training=True, mode=mode)


def test_training_none_is_inference():
    layer = BatchNormalization(renorm=True)
    x = ops.ones((4, 3)) * 5
    np.testing.assert_array_equal(array(layer(x)), array(layer(x, training=False)))
    assert array(layer.moving_mean).tolist() == [0, 0, 0]


def size_of_terms(layer, x, dy, mask, clipping):
    """The greatest of the terms whose difference is dx in training: gamma · r · rstd · dy."""
    weights = weights_of(layer)
    result, _ = reference.training_step(
        weights, x, axis=layer.axis, mask=mask, momentum=layer.momentum, epsilon=layer.epsilon,
        renorm=layer.renorm, renorm_momentum=layer.renorm_momentum, clipping=clipping,
    )  # fmt: skip
    g = weights.get("gamma", 1.0) * result.r
    g = g / np.sqrt(result.statistics.variance + layer.epsilon)
    terms = dy * reference.broadcastable(g, x.shape, layer.axis)
    return max(1.0, np.abs(terms).max())


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_like_keras_over_several_steps(data):
    """Random configurations, the same weights after several steps as Keras's own layer."""
    rank = data.draw(st.integers(2, 4), label="rank")
    shape = tuple(data.draw(st.integers(2, 6)) for _ in range(rank))
    axis = data.draw(st.sampled_from([-1, 1, rank - 1]), label="axis")
    renorm = data.draw(st.booleans(), label="renorm")
    arguments = {
        "axis": axis,
        "momentum": data.draw(st.sampled_from([0.5, 0.99])),
        "epsilon": data.draw(st.sampled_from([1e-3, 1e-5])),
        "center": data.draw(st.booleans()),
        "scale": data.draw(st.booleans()),
        "renorm": renorm,
        "renorm_clipping": {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0} if renorm else None,
        "renorm_momentum": data.draw(st.sampled_from([0.7, 0.99])),
    }
    channels = shape[axis]
    # Keras's masked variance needs two channels: see test_one_masked_channel.
    masked = data.draw(st.booleans(), label="mask") and axis % rank == rank - 1 and channels > 1
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    ours, keras_own = BatchNormalization(**arguments), keras.layers.BatchNormalization(**arguments)
    for layer in (ours, keras_own):
        layer.build(shape)
    for _ in range(3):
        x, dy = rng.normal(1, 2, shape), rng.normal(size=shape)
        mask = None
        if masked:
            mask = rng.random(shape[:-1]) < 0.8
            mask.flat[0] = True  # One position is enough: see test_fully_masked_batch.
        terms = size_of_terms(ours, x, dy, mask, arguments["renorm_clipping"])
        got, expected = (step(layer, x, dy, mask=mask) for layer in (ours, keras_own))
        # Variances of two or three elements are small, and gradients divide by their roots.
        np.testing.assert_allclose(got.y, expected.y, 1e-3, 1e-3)
        if TRAINS:
            # A difference of terms, in the float32 of Keras's layer.
            np.testing.assert_allclose(got.dx, expected.dx, 0, 2e-5 * terms)
            for name, values in expected.gradients.items():
                np.testing.assert_allclose(got.gradients[name], values, 2e-3, 2e-3)
    for name, values in weights_of(keras_own).items():
        np.testing.assert_allclose(weights_of(ours)[name], values, 1e-5, 1e-5, name)
    x = rng.normal(1, 2, shape).astype(np.float32)
    np.testing.assert_allclose(array(ours(x)), array(keras_own(x)), 1e-5, 1e-5)


# What differs from Keras's layer on purpose, as a list in docs/guide.md.


@pytest.mark.parametrize("mode", MODES)
def test_fully_masked_batch(mode):
    """Keras moves the statistics to 0; ours stay, as there is nothing to move to."""
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 3)).astype(np.float32)
    mask = np.zeros((4, 5), bool)
    layer = BatchNormalization(momentum=0.5, renorm=True)
    check_against_oracle(layer, x, mask=mask, mode=mode, clipping={})
    keras_own = keras.layers.BatchNormalization(momentum=0.5, moving_mean_initializer="ones")
    keras_own(x, training=True, mask=ops.convert_to_tensor(mask))
    assert array(keras_own.moving_mean).max() == 0.5


@pytest.mark.parametrize("mode", MODES)
def test_nan_padding(mode):
    """Gradients stay finite where padding holds NaN, if the loss leaves the padding out."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(2, 3, (2, 4, 5, 3)).astype(np.float32)
    mask = rng.random((4, 5)) < 0.7
    x[~mask], dy[~mask] = np.nan, 0
    ours, keras_own = BatchNormalization(), keras.layers.BatchNormalization()
    results = []
    for layer in (ours, keras_own):
        layer.build(x.shape)
        results.append(step(layer, x, dy, mask=mask, mode=mode))
    got, expected = results
    assert np.isfinite(got.y[mask]).all()
    assert all(np.isfinite(values).all() for values in weights_of(ours).values())
    if TRAINS:
        assert np.isfinite(got.dx).all()
        assert np.isfinite(got.gradients["gamma"]).all()
        assert not np.isfinite(expected.gradients["gamma"]).all()
        clean = np.where(mask[..., None], x, 0)
        _, dgamma, _ = reference.backward(dy, clean, np.ones(3), mask=mask)
        np.testing.assert_allclose(got.gradients["gamma"], dgamma, 5e-5, 5e-5)


def test_one_masked_channel():
    """Keras squeezes the statistics of a single channel to a number, and fails or warns."""
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 1))
    check_against_oracle(BatchNormalization(), x, mask=np.arange(20).reshape(4, 5) % 3 > 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_large_offsets(offset, mode):
    """Data far from zero: 2e-6 of the float64 result, where Keras loses all or most of it."""
    x = (np.random.default_rng(0).normal(size=(64, 16, 3)) + offset).astype(np.float32)
    layer = BatchNormalization(epsilon=1e-3)
    layer.build(x.shape)
    dy = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    got = step(layer, x, dy, mode=mode)
    expected = reference.forward(x).y
    assert np.abs(got.y - expected).max() < 2e-6 * np.abs(expected).max()
    with np.errstate(invalid="ignore"):
        keras_own = array(keras.layers.BatchNormalization()(x, training=True))
    assert not np.abs(keras_own - expected).max() < 1e-4
    if TRAINS:
        dx, dgamma, _ = reference.backward(dy, x)
        np.testing.assert_allclose(got.dx, dx, 1e-5, 1e-5)
        np.testing.assert_allclose(got.gradients["gamma"], dgamma, 1e-4, 1e-4)


# Clipping limits.


def test_limits_of_every_kind():
    variable = keras.Variable(2.0, trainable=False)
    factor = [1.5]
    layer = BatchNormalization(
        renorm=True,
        renorm_clipping={"rmin": 0.5, "rmax": variable, "dmax": lambda: factor[0]},
    )
    x = np.random.default_rng(0).normal(2, 3, (6, 3))
    check_against_oracle(layer, x, clipping={"rmin": 0.5, "rmax": 2.0, "dmax": 1.5})
    variable.assign(1.25)
    factor[0] = 0.25
    check_against_oracle(layer, x, clipping={"rmin": 0.5, "rmax": 1.25, "dmax": 0.25})
    layer.renorm_clipping = numbabn.RenormClipping(1, 1, 0)
    check_against_oracle(layer, x, clipping={"rmin": 1, "rmax": 1, "dmax": 0})
    layer.renorm_clipping = None
    check_against_oracle(layer, x, clipping={})
    assert len(layer.weights) == 7  # The Variable has not become a weight.


@on_one_backend
def test_limits_in_the_configuration():
    layer = BatchNormalization(
        renorm=True,
        renorm_clipping={
            "rmin": lambda: 0.5,
            "rmax": keras.Variable(2.0),
            "dmax": float("inf"),
        },
    )
    config = layer.get_config()
    assert config["renorm_clipping"] == {"rmin": 0.5, "rmax": 2.0}
    assert BatchNormalization.from_config(config).renorm_clipping == {"rmin": 0.5, "rmax": 2.0}
    assert BatchNormalization().get_config()["renorm_clipping"] is None


def test_none_is_no_limit():
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": None, "dmax": 1.0})
    x = np.random.default_rng(0).normal(2, 3, (6, 3))
    check_against_oracle(layer, x, clipping={"dmax": 1.0})


@on_one_backend
@pytest.mark.parametrize(
    ("clipping", "error", "message"),
    [
        (
            {"rmx": 3},
            ValueError,
            "Received invalid keys for renorm clipping: 'rmx'; expected rmin, rmax and dmax",
        ),
        (
            {"rmin": 2, "rmax": 1},
            ValueError,
            "renorm clipping: rmax should be at least rmin, got rmin=2.0 and rmax=1.0",
        ),
        ({"dmax": -1}, ValueError, "renorm clipping: dmax should be non-negative, got -1.0"),
        (
            3.0,
            TypeError,
            "renorm clipping must be a RenormClipping, or a dictionary with the keys rmin, rmax "
            "and dmax, got float",
        ),
    ],
)
def test_wrong_limits(clipping, error, message):
    with pytest.raises(error) as caught:
        BatchNormalization(renorm=True, renorm_clipping=clipping)
    assert str(caught.value) == message
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": 2.0})
    with pytest.raises(error):
        layer.renorm_clipping = clipping
    assert layer.renorm_clipping == {"rmax": 2.0}


def test_wrong_limit_found_when_it_is_read():
    layer = BatchNormalization(renorm=True, renorm_clipping={"dmax": lambda: -1.0})
    with pytest.raises(Exception, match=r"renorm clipping: dmax should be non-negative, got -1\.0"):
        layer(ops.ones((4, 3)), training=True)


# Arguments and shapes.


@on_one_backend
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"axis": "last"}, TypeError, "axis must be an int or a list of ints, got 'last'"),
        ({"axis": 1.0}, TypeError, "axis must be an int or a list of ints, got 1.0"),
        ({"momentum": 1.5}, ValueError, "momentum must be a number from 0 to 1, got 1.5"),
        ({"epsilon": -1}, ValueError, "epsilon must be a finite number of at least 0, got -1"),
        (
            {"renorm_momentum": -1},
            ValueError,
            "renorm_momentum must be a number from 0 to 1, got -1",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error) as caught:
        BatchNormalization(**arguments)
    assert str(caught.value) == message


@on_one_backend
@pytest.mark.parametrize(
    ("axis", "shape", "message"),
    [
        (3, (4, 3), "axis 3 is out of range for x of shape (4, 3): expected -2 to 1"),
        ([1, -1], (4, 3), "axis must name each axis once, got [1, -1] for shape (4, 3)"),
        (
            [0, 1],
            (4, 3),
            "x must have an axis besides the channel axis to take statistics over, got shape "
            "(4, 3) with axis=[0, 1]",
        ),
        (
            -1,
            (4, None),
            "the channels must be known when the layer is built, got an input of shape "
            "(4, None) with axis=-1",
        ),
    ],
)
def test_wrong_shapes(axis, shape, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BatchNormalization(axis).build(shape)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="the one backend that synchronizes")
def test_synchronized_is_for_tensorflow():
    with pytest.raises(ValueError, match="only supported with the TensorFlow backend"):
        BatchNormalization(synchronized=True)


@pytest.mark.parametrize("module", ["layer", "convert", "schedule"])
def test_examples_of_docstrings(module):
    tested = doctest.testmod(importlib.import_module(f"numbabn.keras.{module}"))
    assert (tested.failed, tested.attempted > 0) == (0, True)


def test_integers_are_cast():
    x = np.arange(12).reshape(4, 3)
    layer = BatchNormalization()
    y = layer(ops.convert_to_tensor(x), training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    np.testing.assert_allclose(array(y), reference.forward(x).y, 1e-5, 1e-5)


@on_one_backend
def test_keras_arguments_in_keras_order():
    ours, keras_own = (
        list(inspect.signature(layer.__init__).parameters.values())
        for layer in (BatchNormalization, keras.layers.BatchNormalization)
    )
    assert [(each.name, each.default) for each in ours if each.kind != each.KEYWORD_ONLY] == [
        (each.name, each.default) for each in keras_own
    ]
    assert [each.name for each in ours if each.kind == each.KEYWORD_ONLY] == ["skip_nonfinite"]
    assert issubclass(BatchNormalization, keras.layers.BatchNormalization)


def test_initializers_regularizers_constraints():
    layer = BatchNormalization(
        beta_initializer="ones", gamma_initializer=keras.initializers.Constant(2.0),
        moving_mean_initializer="ones",
        moving_variance_initializer=keras.initializers.Constant(4.0),
        gamma_regularizer=keras.regularizers.L2(0.5), beta_constraint="non_neg", renorm=True,
    )  # fmt: skip
    layer.build((None, 3))
    values = {name: values.tolist() for name, values in weights_of(layer).items()}
    assert values == {
        "gamma": [2] * 3, "beta": [1] * 3, "moving_mean": [1] * 3, "moving_variance": [4] * 3,
        "moving_stddev": [2] * 3, "renorm_mean": [1] * 3, "renorm_stddev": [2] * 3,
    }  # fmt: skip
    assert float(array(layer.losses[0])) == 6.0
    assert layer.beta.constraint is not None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("renorm", [False, True])
def test_statistics_that_are_not_finite_are_skipped_on_request(renorm, mode):
    layer = BatchNormalization(renorm=renorm, momentum=0.9, skip_nonfinite=True)
    layer = BatchNormalization.from_config(layer.get_config())
    layer.build((8, 5))
    x = np.random.default_rng(0).normal(2.0, 3.0, (8, 5)).astype(np.float32)
    before = weights_of(layer)
    x[2, 1], x[3, 4] = np.nan, np.inf
    step(layer, x, np.ones_like(x), mode=mode)
    for name, values in weights_of(layer).items():
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values[[1, 4]], before[name][[1, 4]])
        if name not in ("gamma", "beta"):
            assert (values[[0, 2, 3]] != before[name][[0, 2, 3]]).all()


@on_one_backend
def test_settings_are_checked_when_they_are_changed():
    layer = BatchNormalization()
    for name, value, expected in (
        ("momentum", 5, "a number from 0 to 1"),
        ("renorm_momentum", -1, "a number from 0 to 1"),
        ("epsilon", -1, "a finite number of at least 0"),
    ):
        before = getattr(layer, name)
        with pytest.raises(ValueError, match=rf"^{name} must be {expected}, got {value}$"):
            setattr(layer, name, value)
        assert getattr(layer, name) == before
