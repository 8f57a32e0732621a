"""Failures of other libraries that this one must never have; each test names its failure."""

import numpy as np
import pytest

import numbabn
import reference


def test_nan_padding_under_a_masked_loss_gives_finite_gradients():
    """Keras and flax return NaN gradients: 0 * NaN in the sums of dy * xhat."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 6, 3)).astype(np.float32)
    dy = rng.normal(size=(4, 6, 3)).astype(np.float32)
    mask = np.arange(6) < np.array([[6], [4], [2], [5]])
    x[~mask], dy[~mask] = np.nan, 0.0
    _, saved = numbabn.batch_norm_forward(x, mask=mask)
    for gradient in numbabn.batch_norm_backward(dy, x, saved):
        assert np.all(np.isfinite(gradient))


def test_nan_padding_leaves_the_moving_statistics_finite():
    """Keras multiplies by the mask: 0 * NaN makes every later inference NaN."""
    layer = numbabn.BatchNormalization()
    x = np.ones((4, 3), np.float32)
    x[3] = np.nan
    layer(x, training=True, mask=np.array([1, 1, 1, 0]))
    assert np.all(np.isfinite(layer.moving_mean))
    assert np.all(np.isfinite(layer.moving_variance))


@pytest.mark.parametrize("axis", [1, -1])
def test_shifted_data_gives_no_nan(axis):
    """Keras on torch: E[x²] - E[x]² is negative at an offset of 1e4, and its root is NaN."""
    x = np.random.default_rng(2).normal(1e4, 1.0, (64, 8, 8)).astype(np.float32)
    y, saved = numbabn.batch_norm_forward(x, axis=axis, epsilon=1e-5)
    assert np.all(saved.statistics.variance > 0.5)
    assert np.max(np.abs(y - reference.forward(x, axis=axis, epsilon=1e-5).y)) < 2e-6


@pytest.mark.parametrize("axis", [1, -1])
def test_an_outlier_in_the_first_place_is_no_pivot(axis):
    """Statistics shifted by the first element cancel when that element lies far from the rest."""
    x = np.random.default_rng(3).normal(1e4, 1.0, (64, 8, 8)).astype(np.float32)
    x[0, 0, 0] = 0.0
    variance = numbabn.batch_statistics(x, axis=axis).variance
    np.testing.assert_allclose(variance, reference.statistics(x, axis=axis).variance, rtol=1e-6)


def test_the_mean_is_not_folded_into_the_bias():
    """torch channels-last and Keras on JAX: x * a + b with b near 1e4 is off by 1e-3 to 6e-2."""
    x = np.random.default_rng(4).normal(1e4, 1.0, (512, 4)).astype(np.float32)
    mean, variance = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    y = numbabn.normalize(x, mean, variance)
    assert np.max(np.abs(y - reference.normalize(x, mean, variance))) < 2e-6


def test_renorm_needs_no_limit_and_takes_any_of_them():
    """fleras needs all three of rmin, rmax and dmax."""
    for clipping in (None, {}, {"rmax": 2.0}, {"dmax": 0.5}, {"rmin": 0.5}):
        layer = numbabn.BatchNormalization(renorm=True, renorm_clipping=clipping)
        y = layer(np.random.default_rng(5).normal(size=(8, 2)).astype(np.float32), training=True)
        assert np.all(np.isfinite(y))


def test_renorm_obeys_the_mask():
    """fleras ignores masks in its statistics."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(8, 2)).astype(np.float32)
    padded = np.concatenate([x, np.full((4, 2), 1e3, np.float32)])
    one, other = (numbabn.BatchNormalization(renorm=True) for _ in range(2))
    y = one(x, training=True)
    padded_y = other(padded, training=True, mask=np.arange(12) < 8)
    np.testing.assert_allclose(padded_y[:8], y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other.renorm_mean, one.renorm_mean, rtol=1e-6, atol=1e-7)


def test_renorm_is_consistent_with_the_biased_variance():
    """fleras takes Bessel's correction into r but not into xhat: with n = 2 they differ by 1.4.

    With shared references that equal the batch's own statistics, r is one and d zero.
    """
    x = np.array([[1.0], [3.0]])
    layer = numbabn.BatchNormalization(renorm=True, renorm_momentum=None, momentum=0.0)
    layer(x, training=True)
    np.testing.assert_array_equal(layer.moving_variance, [1.0])
    np.testing.assert_allclose(layer(x, training=True), layer(x), rtol=1e-15)


def test_half_precision_sums_do_not_overflow():
    """A sum of float16 values in float16 overflows at 65504."""
    x = np.full((400, 2), 1000.0, np.float16)
    x[::2] += 100
    batch = numbabn.batch_statistics(x)
    np.testing.assert_allclose(batch.mean, [1050.0, 1050.0], rtol=1e-12)
    np.testing.assert_allclose(batch.variance, [2500.0, 2500.0], rtol=1e-12)


def test_a_full_rank_mask_is_not_taken_for_a_position_mask():
    """Keras refuses masks of the input's rank, and guesses nothing; neither does this."""
    x = np.arange(12.0).reshape(4, 3)
    mask = np.ones((4, 3))
    mask[0, 0] = 0
    np.testing.assert_array_equal(numbabn.batch_statistics(x, mask=mask).count, [3, 4, 4])


def test_a_frozen_layer_leaves_its_statistics_alone():
    """tf.keras 1 moved the statistics of a layer whose trainable was False."""
    layer = numbabn.BatchNormalization()
    layer.trainable = False
    layer(np.random.default_rng(7).normal(5.0, 1.0, (8, 2)), training=True)
    np.testing.assert_array_equal(layer.moving_mean, [0.0, 0.0])
    np.testing.assert_array_equal(layer.moving_variance, [1.0, 1.0])
