"""Masks: both forms, given or implied by a layer before, and handed on."""

import keras
import numpy as np
import pytest
from backends import BACKEND, MODES, array
from keras import ops
from test_keras_layer import check_against_oracle

from numbabn.keras import BatchNormalization

SHAPE = (5, 4, 6, 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [-1, 1, [1, 3]])
@pytest.mark.parametrize(
    "mask_shape", [(5, 4, 6), (5, 4, 6, 3), (5, 4, 6, 1), (5, 1, 1), (1, 4, 1, 3), (1, 1, 1, 3)]
)
def test_shapes(mask_shape, axis, mode):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(2, 3, SHAPE), rng.random(mask_shape) < 0.6
    check_against_oracle(BatchNormalization(axis), x, mask=mask, mode=mode)


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_dtypes(dtype):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(2, 3, SHAPE), (rng.integers(0, 3, SHAPE[:-1])).astype(dtype)
    check_against_oracle(BatchNormalization(), x, mask=mask)


@pytest.mark.parametrize("mask_shape", [(5, 4), (4, 4, 6), (5, 4, 6, 2), ()])
def test_wrong_shape(mask_shape):
    layer = BatchNormalization()
    with pytest.raises(Exception, match="does not fit x of shape") as caught:
        layer(ops.ones(SHAPE), training=True, mask=ops.ones(mask_shape, "bool"))
    # The original text, wherever the framework puts it.
    assert f"mask of shape {mask_shape} does not fit x of shape {SHAPE}" in str(caught.value)
    assert array(layer.moving_mean).tolist() == [0, 0, 0]


def test_inference_takes_no_notice():
    x = np.random.default_rng(0).normal(2, 3, SHAPE)
    check_against_oracle(BatchNormalization(), x, mask=np.zeros(SHAPE[:-1], bool), training=False)


@pytest.mark.parametrize("functional", [True, False])
def test_from_masking(functional):
    """Masking before the layer: the statistics leave the padding out, and the mask goes on."""
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (6, 5, 3)).astype(np.float32)
    lengths = np.array([5, 1, 3, 2, 4, 5])
    mask = np.arange(5) < lengths[:, None]
    x[~mask] = 0.0
    masking, layer = keras.layers.Masking(0.0), BatchNormalization(momentum=0.0)
    probe = Probe()
    if functional:
        inputs = keras.Input((5, 3))
        model = keras.Model(inputs, probe(layer(masking(inputs))))
        model(x, training=True)
    else:
        probe(layer(masking(x), training=True))
    np.testing.assert_allclose(array(layer.moving_mean), x[mask].mean(0), 1e-5, 1e-5)
    np.testing.assert_allclose(array(layer.moving_variance), x[mask].var(0), 1e-5, 1e-5)
    np.testing.assert_array_equal(ops.convert_to_numpy(probe.mask), mask)


class Probe(keras.layers.Layer):
    """Keeps the mask that arrives."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.mask = None

    def call(self, x, mask=None):
        # Keras asks symbolically first.
        if mask is not None and not keras.backend.is_keras_tensor(mask):
            self.mask = mask
        return x

    def compute_output_shape(self, shape):
        return shape


def test_from_embedding():
    tokens = np.array([[3, 1, 0, 0], [2, 0, 0, 0], [1, 2, 3, 1]])
    embedding = keras.layers.Embedding(4, 5, mask_zero=True)
    layer = BatchNormalization(momentum=0.0)
    embedded = embedding(tokens)
    layer(embedded, training=True)
    expected = array(embedded)[tokens != 0]
    np.testing.assert_allclose(array(layer.moving_mean), expected.mean(0), 1e-5, 1e-5)


def test_explicit_wins_over_implicit():
    x = np.random.default_rng(0).normal(2, 3, (6, 5, 3)).astype(np.float32)
    x[:, 3:] = 0.0
    explicit = np.zeros((6, 5), bool)
    explicit[:, 0] = True
    layer = BatchNormalization(momentum=0.0)
    masked = keras.layers.Masking(0.0)(x)
    layer(masked, training=True, mask=ops.convert_to_tensor(explicit))
    np.testing.assert_allclose(array(layer.moving_mean), x[:, 0].mean(0), 1e-5, 1e-5)


@pytest.mark.skipif(BACKEND == "numpy", reason="the others differ in how they slice masks")
def test_time_distributed():
    x = np.random.default_rng(0).normal(2, 3, (6, 5, 3)).astype(np.float32)
    layer = keras.layers.TimeDistributed(BatchNormalization(momentum=0.5))
    y = layer(ops.convert_to_tensor(x), training=True)
    assert tuple(y.shape) == x.shape
    assert np.isfinite(array(y)).all()
