"""The accuracy that numbabn promises: 2e-6 of the float64 result, up to 1e6 sigma."""

from pathlib import Path

import numpy as np
import pytest

import numbabn
import reference
from arrays import JIT_DISABLED
from processes import run_python

OFFSETS = [0.0, 1e2, 1e4, 1e6]
# Plain Python sums a run term by term, where compiled code has many lanes: short runs there.
SHAPES = (
    {"channels-first": ((10, 2, 30), 1), "channels-last": ((20, 30, 2), -1)}
    if JIT_DISABLED
    else {
        "channels-first": ((32, 3, 64, 64), 1),
        "channels-last": ((32, 64, 64, 3), -1),
        "one long channel": ((1, 1, 400009), 1),
        "many short channels": ((400, 3, 101), 1),
        "wide channels-last": ((500, 1031), -1),
    }
)
# What stands first in each channel: an element like the others; one a hundred sigmas away;
# a zero, which is a million sigmas away at the largest offset.
FIRST = ["like the others", "a hundred sigmas away", "zero"]


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
    assert np.max(np.abs(actual - expected) / size) <= 2e-6


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("layout", SHAPES)
def test_statistics(layout, offset, first):
    x, _, axis = data(layout, offset, first)
    batch = numbabn.batch_statistics(x, axis=axis)
    expected = reference.statistics(x, axis=axis)
    stddev = np.sqrt(expected.variance)
    # A shift of the mean by 1e-6 sigma shifts every output by as much; half the relative error
    # of the variance reaches an output at one sigma.
    assert np.max(np.abs(batch.mean - expected.mean) / stddev) <= 1e-6
    assert np.max(np.abs(batch.variance / expected.variance - 1.0)) <= 1e-6


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("layout", SHAPES)
def test_forward(layout, offset, first):
    x, _, axis = data(layout, offset, first)
    y, _ = numbabn.batch_norm_forward(x, axis=axis)
    assert_within(y, reference.forward(x, axis=axis).y, first)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("layout", SHAPES)
def test_normalize(layout, offset, first):
    x, _, axis = data(layout, offset, first)
    batch = reference.statistics(x, axis=axis)
    y = numbabn.normalize(x, batch.mean, batch.variance, axis=axis)
    assert_within(y, reference.normalize(x, batch.mean, batch.variance, axis=axis), first)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("layout", SHAPES)
def test_backward(layout, offset, first):
    x, dy, axis = data(layout, offset, first)
    _, saved = numbabn.batch_norm_forward(x, axis=axis)
    dx, dgamma, dbeta = numbabn.batch_norm_backward(dy, x, saved)
    expected = reference.backward(dy, x, axis=axis)
    assert_within(dx, expected[0], first)
    # The sums grow as the root of the count for random signs; their error is that of float32.
    xhat = reference.forward(x, axis=axis).y
    for sums, wanted, terms in [(dgamma, expected[1], dy * xhat), (dbeta, expected[2], dy)]:
        size = np.sqrt(reference.channel_sums(np.square(terms, dtype=np.float64), axis))
        assert np.max(np.abs(sums - wanted) / np.maximum(1.0, size)) <= 2e-6


@pytest.mark.parametrize("axis", [1, -1])
def test_a_masked_out_outlier_spoils_nothing(axis):
    """A first element that no statistic counts must not serve as a pivot either."""
    rng = np.random.default_rng(12)
    x = rng.normal(1e6, 1.0, (40, 3, 3)).astype(np.float32)
    x[0] = -1e30
    mask = np.arange(40).reshape(40, 1, 1) > 0
    y, saved = numbabn.batch_norm_forward(x, axis=axis, mask=mask)
    expected = reference.forward(x[1:], axis=axis)
    assert_within(y[1:], expected.y)
    np.testing.assert_allclose(saved.statistics.variance, expected.statistics.variance, rtol=1e-6)


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
    batch = numbabn.batch_statistics(x, axis=axis, mask=mask)
    expected = reference.statistics(x, axis=axis, mask=mask)
    np.testing.assert_allclose(batch.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_drifting_mean(axis):
    """Each position has a mean of its own, so that no part of the data speaks for the rest."""
    rng = np.random.default_rng(17)
    shape = (1, 2, 900) if JIT_DISABLED else (1, 2, 200003)
    x = rng.normal(np.linspace(-1e4, 1e6, shape[-1]), 1.0, shape).astype(np.float32)
    x = x if axis == 1 else np.ascontiguousarray(np.swapaxes(x, 1, 2))
    batch = numbabn.batch_statistics(x, axis=axis)
    expected = reference.statistics(x, axis=axis)
    np.testing.assert_allclose(batch.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_constant_channel_has_no_variance_at_any_offset(axis):
    x = np.full((50, 3, 3), 1e6 + 0.0625, np.float32)
    y, saved = numbabn.batch_norm_forward(x, axis=axis)
    np.testing.assert_array_equal(saved.statistics.mean, 1e6 + 0.0625)
    np.testing.assert_array_equal(saved.statistics.variance, 0.0)
    np.testing.assert_array_equal(y, 0.0)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("value", [1e-15, 1e15])
def test_values_far_from_one(axis, value):
    rng = np.random.default_rng(13)
    x = (rng.normal(size=(20, 3, 3)) * value).astype(np.float32)
    batch = numbabn.batch_statistics(x, axis=axis)
    expected = reference.statistics(x, axis=axis)
    np.testing.assert_allclose(batch.mean, expected.mean, atol=1e-6 * value)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_float64_stays_float64(axis):
    rng = np.random.default_rng(14)
    x, dy = rng.normal(1e4, 1.0, (30, 3, 3)), rng.normal(size=(30, 3, 3))
    y, saved = numbabn.batch_norm_forward(x, axis=axis)
    dx, _, _ = numbabn.batch_norm_backward(dy, x, saved)
    # 1e-16 of the offset is 1e-12 of sigma; a few such roundings.
    np.testing.assert_allclose(y, reference.forward(x, axis=axis).y, atol=1e-11)
    np.testing.assert_allclose(dx, reference.backward(dy, x, axis=axis)[0], atol=1e-11)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(("dtype", "unit"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_16_bit_outputs_are_rounded_once(axis, dtype, unit):
    import ml_dtypes

    dtype = np.dtype({"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype])
    rng = np.random.default_rng(15)
    x = rng.normal(3.0, 1.0, (30, 3, 3)).astype(dtype)
    y, _ = numbabn.batch_norm_forward(x, axis=axis)
    expected = reference.forward(x, axis=axis).y
    error = np.abs(y.astype(np.float64) - expected)
    assert np.all(error <= unit * np.abs(expected) + 2e-6)


OLD_PROCESSOR = """
import sys
sys.path.insert(0, sys.argv[1])
import ml_dtypes, numpy as np
import numbabn, reference

rng = np.random.default_rng(18)
for shape, axis in [((32, 3, 64, 64), 1), ((32, 64, 64, 3), -1)]:
    for dtype, offset, rounding in [
        (np.float32, 1e6, 0.0), (np.float16, 4.0, 2.0**-11), (ml_dtypes.bfloat16, 4.0, 2.0**-8)
    ]:
        x = rng.normal(offset, 1.0, shape).astype(dtype)
        x[0, :1, :1, :1] = 0
        y, _ = numbabn.batch_norm_forward(x, axis=axis)
        expected = reference.forward(x, axis=axis).y
        error = np.abs(y.astype(np.float64) - expected) - rounding * np.abs(expected)
        worst = np.max(error / np.maximum(1, np.abs(expected)))
        assert worst <= 2e-6, (shape, dtype, worst)
"""


@pytest.mark.jit
def test_a_processor_without_wide_vectors_or_float16():
    """Narrow vectors sum more terms a lane, and not every processor knows float16."""
    run_python(OLD_PROCESSOR, str(Path(__file__).parent), NUMBA_CPU_NAME="generic")
