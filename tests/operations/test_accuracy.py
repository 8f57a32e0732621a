"""The accuracy that numbabn promises: 2e-6 of the float64 result, up to 1e6 sigma."""

import ml_dtypes
import numpy as np
import pytest

import numbabn
import reference
from arrays import JIT_DISABLED
from devices import SIMULATED, get, put

# Plain Python sums a run term by term, where compiled code has many lanes: short runs there.
LARGE_SHAPES = {
    "channels-first": ((32, 3, 64, 64), 1),
    "channels-last": ((32, 64, 64, 3), -1),
    "one long channel": ((1, 1, 400009), 1),
    "many short channels": ((400, 3, 101), 1),
    "wide channels-last": ((500, 1031), -1),
}
SMALL_SHAPES = {"channels-first": ((10, 2, 30), 1), "channels-last": ((20, 30, 2), -1)}
SIMULATED_SHAPES = {
    "channels-first": ((10, 2, 160), 1),
    "channels-last": ((1600, 2), -1),
    "many short channels": ((400, 2, 5), 1),
}
SHAPES = SIMULATED_SHAPES if SIMULATED else SMALL_SHAPES if JIT_DISABLED else LARGE_SHAPES
# What stands first in each channel: an element like the others; one a hundred sigmas away;
# a zero, which is a million sigmas away at the largest offset.
FIRST = ["like the others", "a hundred sigmas away", "zero"]
CASES = [
    pytest.mark.parametrize("first", FIRST),
    pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6]),
    pytest.mark.parametrize("layout", SHAPES),
]


def every_case(test):
    """A test of each layout, offset and first element."""
    for mark in CASES:
        test = mark(test)
    return pytest.mark.heavy(test)


def data(layout, offset, first):
    shape, axis = SHAPES[layout]
    rng = np.random.default_rng(11)
    x = rng.normal(offset, 1.0, shape).astype(np.float32)
    position = [0] * len(shape)
    position[axis] = slice(None)
    if first != "like the others":
        x[tuple(position)] = 0.0 if first == "zero" else offset + 100.0
    return x, rng.normal(size=shape).astype(np.float32), axis


def assert_within(actual, expected, first="like the others"):
    """Within 2e-6: absolute, but relative above one where an outlier itself lies far out."""
    size = 1.0 if first == "like the others" else np.maximum(1.0, np.abs(expected))
    assert np.max(np.abs(get(actual) - expected) / size) <= 2e-6


def assert_statistics(batch, expected):
    batch, stddev = batch.to_host(), np.sqrt(expected.variance)
    # A shift of the mean by 1e-6 sigma shifts every output by as much; half the relative error
    # of the variance reaches an output at one sigma.
    assert np.max(np.abs(batch.mean - expected.mean) / stddev) <= 1e-6
    assert np.max(np.abs(batch.variance / expected.variance - 1.0)) <= 1e-6


@every_case
def test_statistics(layout, offset, first):
    x, _, axis = data(layout, offset, first)
    assert_statistics(
        numbabn.batch_statistics(put(x), axis=axis), reference.statistics(x, axis=axis)
    )


@every_case
def test_normalize(layout, offset, first):
    x, _, axis = data(layout, offset, first)
    batch = reference.statistics(x, axis=axis)
    y = numbabn.normalize(put(x), put(batch.mean), put(batch.variance), axis=axis)
    assert_within(y, reference.normalize(x, batch.mean, batch.variance, axis=axis), first)


@every_case
def test_forward_and_backward(layout, offset, first):
    x, dy, axis = data(layout, offset, first)
    y, saved = numbabn.batch_norm_forward(put(x), axis=axis)
    wanted = reference.forward(x, axis=axis)
    assert_statistics(saved.statistics, wanted.statistics)
    assert_within(y, wanted.y, first)
    dx, dgamma, dbeta = numbabn.batch_norm_backward(put(dy), put(x), saved)
    expected = reference.backward(dy, x, axis=axis)
    assert_within(dx, expected[0], first)
    # The sums grow as the root of the count for random signs; their error is that of float32.
    for sums, each, terms in [(dgamma, expected[1], dy * wanted.y), (dbeta, expected[2], dy)]:
        size = np.sqrt(reference.channel_sums(np.square(terms, dtype=np.float64), axis))
        assert np.max(np.abs(get(sums) - each) / np.maximum(1.0, size)) <= 2e-6


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_masked_out_outlier_spoils_nothing(axis, width):
    """A first element that no statistic counts must not serve as a pivot either."""
    rng = np.random.default_rng(12)
    x = rng.normal(1e6, 1.0, (40, width, width)).astype(np.float32)
    x[0] = -1e30
    mask = np.arange(40).reshape(40, 1, 1) > 0
    y, saved = numbabn.batch_norm_forward(put(x), axis=axis, mask=put(mask))
    expected = reference.forward(x[1:], axis=axis)
    assert_within(get(y)[1:], expected.y)
    batch = saved.statistics.to_host()
    np.testing.assert_allclose(batch.variance, expected.statistics.variance, rtol=1e-6)
    np.testing.assert_allclose(batch.mean, expected.statistics.mean, atol=1e-6)


@pytest.mark.heavy
@pytest.mark.jit
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("gap", [256, 4096, 5000])
def test_a_lone_outlier_before_masked_out_positions(gap, axis):
    """One element that counts, then nothing for a while, then all the others far away."""
    rng = np.random.default_rng(16)
    x = rng.normal(1e4, 1.0, (1, 200003, 2)).astype(np.float32)
    x[0, 0] = 0.0
    mask = np.ones((1, 200003, 1), bool)
    mask[0, 1:gap] = False
    if axis == 1:
        x, mask = (np.ascontiguousarray(np.swapaxes(each, 1, 2)) for each in (x, mask))
    batch = numbabn.batch_statistics(put(x), axis=axis, mask=put(mask)).to_host()
    expected = reference.statistics(x, axis=axis, mask=mask)
    np.testing.assert_allclose(batch.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_drifting_mean(axis):
    """Each position has a mean of its own, so that no part of the data speaks for the rest."""
    rng = np.random.default_rng(17)
    shape = (1, 2, 900) if JIT_DISABLED or SIMULATED else (1, 2, 200003)
    x = rng.normal(np.linspace(-1e4, 1e6, shape[-1]), 1.0, shape).astype(np.float32)
    x = x if axis == 1 else np.ascontiguousarray(np.swapaxes(x, 1, 2))
    batch = numbabn.batch_statistics(put(x), axis=axis).to_host()
    expected = reference.statistics(x, axis=axis)
    np.testing.assert_allclose(batch.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_constant_channel_has_no_variance_at_any_offset(axis):
    x = np.full((50, 3, 3), 1e6 + 0.0625, np.float32)
    y, saved = numbabn.batch_norm_forward(put(x), axis=axis)
    batch = saved.statistics.to_host()
    np.testing.assert_array_equal(batch.mean, 1e6 + 0.0625)
    np.testing.assert_array_equal(batch.variance, 0.0)
    np.testing.assert_array_equal(get(y), 0.0)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("value", [1e-15, 1e15])
def test_values_far_from_one(axis, value):
    rng = np.random.default_rng(13)
    x = (rng.normal(size=(20, 3, 3)) * value).astype(np.float32)
    batch = numbabn.batch_statistics(put(x), axis=axis).to_host()
    expected = reference.statistics(x, axis=axis)
    np.testing.assert_allclose(batch.mean, expected.mean, atol=1e-6 * value)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_float64_stays_float64(axis):
    rng = np.random.default_rng(14)
    x, dy = rng.normal(1e4, 1.0, (30, 3, 3)), rng.normal(size=(30, 3, 3))
    y, saved = numbabn.batch_norm_forward(put(x), axis=axis)
    dx, _, _ = numbabn.batch_norm_backward(put(dy), put(x), saved)
    # 1e-16 of the offset is 1e-12 of sigma; a few such roundings.
    np.testing.assert_allclose(get(y), reference.forward(x, axis=axis).y, atol=1e-11)
    np.testing.assert_allclose(get(dx), reference.backward(dy, x, axis=axis)[0], atol=1e-11)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(("dtype", "unit"), [(np.float16, 2.0**-11), (ml_dtypes.bfloat16, 2.0**-8)])
def test_16_bit_outputs_are_rounded_once(axis, dtype, unit):
    rng = np.random.default_rng(15)
    x = rng.normal(3.0, 1.0, (30, 3, 3)).astype(dtype)
    y, _ = numbabn.batch_norm_forward(put(x), axis=axis)
    expected = reference.forward(x, axis=axis).y
    error = np.abs(get(y).astype(np.float64) - expected)
    assert np.all(error <= unit * np.abs(expected) + 2e-6)
