"""Writing past the caches gives the same bits as writing through them."""

import ml_dtypes
import numpy as np
import pytest

import numbabn
from numbabn.cpu import launch

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
# Both layouts; runs and rows shorter than a cache line, than the buffer, and longer; a tile
# that is not as wide as its rows; a last row that is shorter; several positions a row.
SHAPES = {
    "long runs": ((2, 3, 9001), 1),
    "short runs": ((5, 70, 17), 1),
    "rows": ((301, 100), -1),
    "tiles": ((40, 1030), -1),
    "narrow": ((5003, 3), -1),
    "short runs as rows": ((31, 20, 5), 1),
    "one element": ((1, 1, 1), 1),
}


@pytest.fixture
def streamed(monkeypatch):
    """Stream outputs of any size."""

    def start():
        launch._plan.cache_clear()
        monkeypatch.setattr(launch, "STREAMED_BYTES", 0)

    yield start
    launch._plan.cache_clear()


def results(x, dy, axis, mask, offset):
    """Every output, written `offset` elements past the start of an allocation."""
    count = x.size
    y = np.zeros(count + offset, x.dtype)[offset:].reshape(x.shape)
    dx = np.zeros(count + offset, x.dtype)[offset:].reshape(x.shape)
    _, saved = numbabn.batch_norm_forward(x, axis=axis, mask=mask, out=y)
    numbabn.batch_norm_backward(dy, x, saved, out=dx)
    return y, dx


@pytest.mark.jit
@pytest.mark.parametrize("masked", [None, "positions", "elements"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", SHAPES)
def test_the_same_bits(name, dtype, masked, streamed):
    shape, axis = SHAPES[name]
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    positions = [1 if place == axis % len(shape) else size for place, size in enumerate(shape)]
    mask_shape = {"positions": positions, "elements": shape}.get(masked)
    mask = None if mask_shape is None else rng.random(mask_shape) < 0.7
    expected = [results(x, dy, axis, mask, offset) for offset in (0, 3)]
    streamed()
    for offset, (y, dx) in zip((0, 3), expected, strict=True):
        streamed_y, streamed_dx = results(x, dy, axis, mask, offset)
        assert streamed_y.tobytes() == y.tobytes()
        assert streamed_dx.tobytes() == dx.tobytes()


def test_in_place(streamed):
    x = np.random.default_rng(1).standard_normal((50, 1030)).astype(np.float32)
    mean, variance = x.mean(0), x.var(0)
    expected = numbabn.normalize(x, mean, variance)
    streamed()
    assert numbabn.normalize(x, mean, variance, out=x) is x
    np.testing.assert_array_equal(x, expected)
