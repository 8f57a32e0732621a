import numpy as np
import pytest

import numbabn
import reference
from arrays import DTYPES, assert_close, make_case
from devices import TELLING, assert_same, get, put

AXES = [1, -1]
STATISTICS = ("count", "mean", "variance")


def run(x, dy, gamma, axis, mask):
    """y, the statistics and the gradients, in NumPy."""
    x, dy, gamma, mask = (put(each) for each in (x, dy, gamma, mask))
    y, saved = numbabn.batch_norm_forward(x, gamma, axis=axis, mask=mask)
    gradients = numbabn.batch_norm_backward(dy, x, saved)
    return get(y), saved.statistics.to_host(), [get(each) for each in gradients]


def fields(batch):
    return [getattr(batch, name) for name in STATISTICS]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("width", [4, 16])
@pytest.mark.parametrize("form", ["positions", "elements", "rows"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_what_is_under_the_mask_reaches_nothing(garbage, form, width, axis, dtype):
    """The same bits as with harmless padding; dy is zero there, as under a masked loss."""
    case = make_case((6, 5, width), axis, dtype)
    mask_shape = {"positions": (6, 5), "elements": (6, 5, width), "rows": (6, 1, 1)}[form]
    mask = np.random.default_rng(2).random(mask_shape) < 0.6
    on = reference.mask_on(mask, case.x.shape)
    dy = np.where(on, case.dy.astype(np.float64), 0).astype(dtype)
    y, batch, gradients = run(case.x, dy, case.gamma, axis, mask)
    padded = np.where(on, case.x.astype(np.float64), garbage).astype(dtype)
    padded_y, padded_batch, padded_gradients = run(padded, dy, case.gamma, axis, mask)
    np.testing.assert_array_equal(padded_y[on], y[on])
    assert_same(fields(padded_batch), fields(batch))
    assert_same(padded_gradients, gradients)
    assert all(np.isfinite(each.astype(np.float64)).all() for each in padded_gradients)


@pytest.mark.parametrize("axis", AXES)
def test_padding_changes_nothing(axis):
    """Three rows of padding give the results of the batch without them."""
    case = make_case((6, 5, 4), axis, np.float64)
    y, batch, (dx, dgamma, dbeta) = run(case.x, case.dy, case.gamma, axis, None)
    padding = [(0, 3), (0, 0), (0, 0)]
    padded_x = np.pad(case.x, padding, constant_values=np.nan)
    padded_dy = np.pad(case.dy, padding)
    mask = np.arange(9).reshape(9, 1, 1) < 6
    padded = run(padded_x, padded_dy, case.gamma, axis, mask)
    np.testing.assert_array_equal(padded[1].count, batch.count)
    np.testing.assert_allclose(padded[0][:6], y, atol=1e-13)
    np.testing.assert_allclose(padded[2][0][:6], dx, atol=1e-13)
    np.testing.assert_array_equal(padded[2][0][6:], 0.0)
    np.testing.assert_allclose(padded[2][1], dgamma, atol=1e-12)
    np.testing.assert_allclose(padded[2][2], dbeta, atol=1e-12)


@pytest.mark.parametrize("axis", AXES)
def test_masked_out_positions_have_an_exact_gradient(axis):
    """They depend on the statistics of others, and no statistic on them: dx = g * dy."""
    case = make_case((6, 5, 4), axis, np.float64)
    mask = np.random.default_rng(2).random((6, 5, 4)) < 0.5
    _, batch, (dx, _, _) = run(case.x, case.dy, case.gamma, axis, mask)
    rstd = 1 / np.sqrt(batch.variance + 1e-3)
    g = reference.broadcastable(case.gamma * rstd, case.x.shape, axis)
    np.testing.assert_allclose(dx[~mask], (g * case.dy)[~mask], rtol=1e-12)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("mask_shape", [(6, 5), (6, 5, 4), (1, 1, 1), (1, 1), (6, 1, 1)], ids=str)
def test_everything_masked(mask_shape, axis, dtype):
    case = make_case((6, 5, 4), axis, dtype)
    y, batch, (dx, dgamma, dbeta) = run(
        case.x, case.dy, case.gamma, axis, np.zeros(mask_shape, bool)
    )
    assert_same(fields(batch), [np.zeros(case.parameter_shape)] * 3)
    gamma = reference.broadcastable(case.gamma, case.x.shape, axis)
    x, dy = case.x.astype(np.float64), case.dy.astype(np.float64)
    rstd = 1 / np.sqrt(1e-3)
    assert_close(y, gamma * x * rstd, scale=100)
    assert_close(dx, gamma * dy * rstd, scale=100)
    assert_close(dbeta, reference.channel_sums(dy, axis), scale=np.sum(np.abs(dy)))
    assert_close(
        dgamma, reference.channel_sums(dy * x * rstd, axis), scale=np.sum(np.abs(dy * x)) * rstd
    )


@pytest.mark.parametrize("axis", AXES)
def test_one_fully_masked_channel(axis):
    case = make_case((6, 3, 3), axis, np.float32)
    mask = np.ones((1, 3, 1) if axis == 1 else (1, 1, 3), np.uint8)
    mask[0, 1 if axis == 1 else 0, 0 if axis == 1 else 1] = 0
    _, batch, _ = run(case.x, case.dy, case.gamma, axis, mask)
    whole = numbabn.batch_statistics(put(case.x), axis=axis).to_host()
    np.testing.assert_array_equal(batch.count, [18, 0, 18])
    np.testing.assert_allclose(batch.mean, whole.mean * [1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(batch.variance, whole.variance * [1, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((0, 3), -1), ((0, 3, 4), 1), ((2, 3, 0), 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_batch(shape, axis, masked, dtype):
    x = np.zeros(shape, dtype)
    mask = np.ones(shape[:-1], bool) if masked else None
    y, batch, (dx, *gradients) = run(x, x, None, axis, mask)
    assert y.shape == dx.shape == shape
    assert_same([*fields(batch), *gradients], [np.zeros(3)] * 5)


@pytest.mark.parametrize("axis", AXES)
def test_a_mask_of_one_axis_less_gets_a_trailing_axis_whatever_axis_is(axis):
    case = make_case((6, 5, 4), axis, np.float32)
    mask = np.random.default_rng(2).random((6, 5)) < 0.5
    short, full = (
        numbabn.batch_statistics(put(case.x), axis=axis, mask=put(each))
        for each in (mask, mask[..., None])
    )
    assert_same(fields(short), fields(full))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    "mask_shape", [(6, 1, 1), (1, 5, 1), (1, 1, 4), (6, 5, 1), (6, 1, 4), (1, 5, 4)], ids=str
)
def test_a_broadcast_mask_is_the_expanded_mask(mask_shape, axis):
    case = make_case((6, 5, 4), axis, np.float64)
    mask = np.random.default_rng(2).random(mask_shape) < 0.6
    results = [
        run(case.x, case.dy, case.gamma, axis, each)
        for each in (mask, np.broadcast_to(mask, case.x.shape), np.tile(mask, (1, 1, 1)))
    ]
    for y, batch, gradients in results[1:]:
        np.testing.assert_allclose(y, results[0][0], atol=1e-12)
        np.testing.assert_array_equal(batch.count, results[0][1].count)
        for one, other in zip(gradients, results[0][2], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(
    "mask",
    [
        np.array([True, False, True]),
        np.array([1, 0, 255], np.uint8),
        np.array([-1, 0, 7], np.int8),
        np.array([-1, 0, 256], np.int64),  # 256 is 0 as a byte
        np.array([0.5, 0.0, -0.25], np.float32),
        np.array([1e-30, -0.0, 1.0]),
        np.array([1e-30, -0.0, np.nan]),
        np.array([1, 0, 1], np.float16),
        np.array([1, -0.0, 1], DTYPES[1]),
        # In NumPy; on a device an array of the same.
        [True, False, True],
        (1, 0, 1),
    ],
    ids=lambda mask: str(getattr(mask, "dtype", type(mask).__name__)),
)
def test_nonzero_is_on(mask):
    x = np.float32([[1.0], [100.0], [3.0]])
    batch = numbabn.batch_statistics(put(x, TELLING), mask=put(mask, TELLING)).to_host()
    np.testing.assert_array_equal(batch.count, [2])
    np.testing.assert_array_equal(batch.mean, [2.0])


def test_a_mask_that_is_all_on_is_no_mask():
    case = make_case((6, 5, 4), 1, np.float32)
    y, batch, _ = run(case.x, case.dy, case.gamma, 1, None)
    masked_y, masked, _ = run(case.x, case.dy, case.gamma, 1, np.ones((6, 5)))
    assert_close(masked_y, y.astype(np.float64), scale=4)
    np.testing.assert_array_equal(masked.count, batch.count)
