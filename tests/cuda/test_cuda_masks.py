import numpy as np
import pytest

import numbabn
import reference
from arrays import DTYPES, make_case
from devices import get, put

AXES = [1, -1]


def run(x, dy, gamma, axis, mask):
    x, dy, gamma, mask = (put(each, "numba") for each in (x, dy, gamma, mask))
    y, saved = numbabn.batch_norm_forward(x, gamma, axis=axis, mask=mask)
    gradients = numbabn.batch_norm_backward(dy, x, saved)
    return get(y), saved.statistics.to_host(), [get(each) for each in gradients]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("form", ["positions", "elements", "rows"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_what_is_under_the_mask_reaches_nothing(garbage, form, axis):
    """The same bits as with harmless padding; dy is zero there, as under a masked loss."""
    case = make_case((6, 5, 16), axis, np.float32)
    mask_shape = {"positions": (6, 5), "elements": (6, 5, 16), "rows": (6, 1, 1)}[form]
    mask = np.random.default_rng(2).random(mask_shape) < 0.6
    on = reference.mask_on(mask, case.x.shape)
    dy = np.where(on, case.dy, 0).astype(np.float32)
    y, batch, gradients = run(case.x, dy, case.gamma, axis, mask)
    padded = np.where(on, case.x, garbage).astype(np.float32)
    padded_y, padded_batch, padded_gradients = run(padded, dy, case.gamma, axis, mask)
    np.testing.assert_array_equal(padded_y[on], y[on])
    for field in ("count", "mean", "variance"):
        np.testing.assert_array_equal(getattr(padded_batch, field), getattr(batch, field))
    for actual, wanted in zip(padded_gradients, gradients, strict=True):
        assert np.all(np.isfinite(actual))
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("axis", AXES)
def test_a_zero_dy_contributes_zero_without_a_mask_too(axis):
    """NaN rows in an unmasked channel spoil that channel; dbeta and other channels live."""
    case = make_case((6, 3, 3), axis, np.float32)
    case.dy[2] = 0.0
    _, _, expected = run(case.x, case.dy, case.gamma, axis, None)
    channel = (2, 1, slice(None)) if axis == 1 else (2, slice(None), 1)
    case.x[channel] = np.nan
    _, _, result = run(case.x, case.dy, case.gamma, axis, None)
    np.testing.assert_array_equal(result[2], expected[2])
    others = [0, 2]
    np.testing.assert_array_equal(result[1][others], expected[1][others])
    np.testing.assert_array_equal(
        np.take(result[0], others, axis), np.take(expected[0], others, axis)
    )
    assert np.isnan(result[1][1])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("mask_shape", [(6, 5), (6, 5, 4), (1, 1, 1)], ids=str)
def test_everything_masked(mask_shape, axis):
    case = make_case((6, 5, 4), axis, np.float64)
    y, batch, (dx, dgamma, dbeta) = run(
        case.x, case.dy, case.gamma, axis, np.zeros(mask_shape, bool)
    )
    for field in ("count", "mean", "variance"):
        np.testing.assert_array_equal(getattr(batch, field), np.zeros(case.parameter_shape))
    gamma = reference.broadcastable(case.gamma, case.x.shape, axis)
    rstd = 1 / np.sqrt(1e-3)
    np.testing.assert_allclose(y, gamma * case.x * rstd, rtol=1e-12)
    np.testing.assert_allclose(dx, gamma * case.dy * rstd, rtol=1e-12)
    np.testing.assert_allclose(dbeta, reference.channel_sums(case.dy, axis), atol=1e-12)
    np.testing.assert_allclose(
        dgamma, reference.channel_sums(case.dy * case.x * rstd, axis), atol=1e-10
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((0, 3), -1), ((0, 3, 4), 1), ((2, 3, 0), 1)])
def test_an_empty_batch(shape, axis, dtype):
    x = np.zeros(shape, dtype)
    for mask in (None, np.ones(shape[:-1], bool)):
        y, batch, (dx, dgamma, dbeta) = run(x, x, None, axis, mask)
        assert y.shape == dx.shape == shape
        for field in ("count", "mean", "variance"):
            np.testing.assert_array_equal(getattr(batch, field), np.zeros(3))
        np.testing.assert_array_equal(dgamma, np.zeros(3))
        np.testing.assert_array_equal(dbeta, np.zeros(3))


@pytest.mark.parametrize(
    "mask",
    [
        np.array([True, False, True]),
        np.array([1, 0, 255], np.uint8),
        np.array([-1, 0, 7], np.int8),
        np.array([-1, 0, 256], np.int64),  # 256 is 0 as a byte
        np.array([0.5, 0.0, -0.25], np.float32),
        np.array([1e-30, -0.0, np.nan]),
        np.array([1, 0, 1], np.float16),
        np.array([1, -0.0, 1], DTYPES[1]),
    ],
    ids=lambda mask: mask.dtype.name,
)
def test_nonzero_is_on(mask):
    x = np.float32([[1.0], [100.0], [3.0]])
    batch = numbabn.batch_statistics(put(x, "plain"), mask=put(mask, "plain")).to_host()
    np.testing.assert_array_equal(batch.count, [2])
    np.testing.assert_array_equal(batch.mean, [2.0])


@pytest.mark.parametrize("axis", AXES)
def test_a_masked_out_outlier_spoils_nothing(axis):
    rng = np.random.default_rng(12)
    x = rng.normal(1e6, 1.0, (40, 4, 4)).astype(np.float32)
    x[0] = -1e30
    mask = np.arange(40).reshape(40, 1, 1) > 0
    batch = numbabn.batch_statistics(put(x, "numba"), axis=axis, mask=put(mask, "numba")).to_host()
    expected = reference.statistics(x[1:], axis=axis)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=1e-6)
    np.testing.assert_allclose(batch.mean, expected.mean, atol=1e-6)
