"""The accuracy that numbabn promises: 2e-6 of the float64 result, up to 1e6 sigma."""

import numpy as np
import pytest

import numbabn
import reference
from devices import ON_HARDWARE, get, put

SHAPES = (
    {
        "runs": ((32, 3, 64, 64), 1),
        "rows": ((32, 64, 64, 3), -1),
        "one long channel": ((1, 1, 400009), 1),
        "short runs": ((400, 3, 101), 1),
        "wide": ((500, 1031), -1),
    }
    if ON_HARDWARE
    else {"runs": ((10, 2, 160), 1), "rows": ((1600, 2), -1), "short runs": ((400, 2, 5), 1)}
)
FIRST = ["like the others", "a hundred sigmas away", "zero"]


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("layout", SHAPES)
def test_forward_and_backward(layout, offset, first):
    shape, axis = SHAPES[layout]
    rng = np.random.default_rng(11)
    x = rng.normal(offset, 1.0, shape).astype(np.float32)
    position = [0] * len(shape)
    position[axis] = slice(None)
    if first != "like the others":
        x[tuple(position)] = 0.0 if first == "zero" else offset + 100.0
    dy = rng.normal(size=shape).astype(np.float32)
    on_x, on_dy = put(x, "numba"), put(dy, "numba")
    y, saved = numbabn.batch_norm_forward(on_x, axis=axis)
    batch, expected = saved.statistics.to_host(), reference.forward(x, axis=axis)
    stddev = np.sqrt(expected.statistics.variance)
    assert np.max(np.abs(batch.mean - expected.statistics.mean) / stddev) <= 1e-6
    assert np.max(np.abs(batch.variance / expected.statistics.variance - 1.0)) <= 1e-6
    assert_within(get(y), expected.y, first)
    dx, dgamma, dbeta = numbabn.batch_norm_backward(on_dy, on_x, saved)
    wanted = reference.backward(dy, x, axis=axis)
    assert_within(get(dx), wanted[0], first)
    for sums, each, terms in [(dgamma, wanted[1], dy * expected.y), (dbeta, wanted[2], dy)]:
        size = np.sqrt(reference.channel_sums(np.square(terms, dtype=np.float64), axis))
        assert np.max(np.abs(get(sums) - each) / np.maximum(1.0, size)) <= 2e-6


def assert_within(actual, expected, first):
    """Within 2e-6: absolute, but relative above one where an outlier itself lies far out."""
    size = 1.0 if first == "like the others" else np.maximum(1.0, np.abs(expected))
    assert np.max(np.abs(actual - expected) / size) <= 2e-6
