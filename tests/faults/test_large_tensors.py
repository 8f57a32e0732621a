"""Tensors of more than 2**31 elements, of 16 bits, with masks: ``pytest tests/faults --large``."""

import numpy as np
import pytest

import numbabn

pytestmark = [pytest.mark.jit, pytest.mark.large, pytest.mark.timeout(3600)]

CHANNELS, BLOCKS, INNER = 4, 2, 300_000_000


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_more_than_int32_counts(layout):
    """x is 4.8 GB, and y another: what is beyond the 2**31st element is looked at apart."""
    shape, axis, mask_shape = (BLOCKS, CHANNELS, INNER), 1, (BLOCKS, 1, INNER)
    if layout == "channels last":
        shape, axis, mask_shape = (BLOCKS, INNER, CHANNELS), -1, (BLOCKS, INNER, 1)
    x = np.zeros(shape, np.float16)
    on = np.zeros(mask_shape, bool)
    # The ends count, and hold 1 and 3; the rest holds 0 and does not.
    first, last = (0, slice(None)), (-1, slice(None))
    for block, value in (first, 1.0), (last, 3.0):
        edge = slice(0, 1000) if value == 1.0 else slice(INNER - 1000, INNER)
        rows = (block[0], slice(None), edge) if axis == 1 else (block[0], edge)
        x[rows] = value
        on[rows] = True
    assert x.size > 2**31
    y = np.empty_like(x)
    _, saved = numbabn.batch_norm_forward(x, axis=axis, mask=on, epsilon=1e-6, out=y)
    np.testing.assert_allclose(saved.statistics.count, 2000)
    np.testing.assert_allclose(saved.statistics.mean, 2.0, rtol=1e-12)
    np.testing.assert_allclose(saved.statistics.variance, 1.0, rtol=1e-12)
    flat = y.reshape(-1)
    # -1 and 1 at the ends, and -2 where 0 was.
    np.testing.assert_allclose(flat[:1], -1.0, rtol=1e-3)
    np.testing.assert_allclose(flat[-1:], 1.0, rtol=1e-3)
    middle = flat[2**31 - 500 : 2**31 + 500]
    np.testing.assert_allclose(middle, -2.0, rtol=1e-3)
    numbabn.batch_norm_backward(y, x, saved, out=y)
    assert np.isfinite(flat[2**31 :: 1_000_003]).all()
