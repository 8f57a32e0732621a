import numpy as np
import pytest

import numbabn
import reference
from arrays import DTYPES, make_case
from devices import LIBRARIES, get, put


def assert_same(actual, expected):
    for field in ("count", "mean", "variance"):
        np.testing.assert_allclose(
            getattr(actual, field), getattr(expected, field), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("axis", [-1, 1, [2, 0]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(dtype, axis):
    x = make_case((6, 4, 5), axis, dtype).x
    batch = numbabn.batch_statistics(put(x, "numba"), axis=axis)
    assert_same(batch.to_host(), reference.statistics(x, axis=axis))


@pytest.mark.parametrize("library", LIBRARIES)
def test_merging_parts_gives_the_whole(library):
    x = make_case((9, 4), -1, np.float32, offset=100.0).x
    parts = [
        numbabn.batch_statistics(put(part, library)) for part in (x[:2], x[2:2], x[2:8], x[8:])
    ]
    merged = numbabn.BatchStatistics.merge_all(parts)
    assert type(merged.mean) is type(parts[0].mean)
    assert_same(merged.to_host(), reference.statistics(x))


def test_statistics_of_arrays_that_a_caller_has():
    """Any float, any strides; the two parts may differ."""
    rng = np.random.default_rng(3)
    mean, variance = rng.normal(size=5), rng.uniform(1, 2, 5)
    one = numbabn.BatchStatistics(
        *(put(each.astype(np.float32), "plain") for each in (np.full(5, 3), mean, variance))
    )
    strided = np.zeros((3, 10))
    strided[:, ::2] = np.full(5, 4), mean + 1, variance
    other = numbabn.BatchStatistics(*(put(each[::2], "numba") for each in strided))
    expected = numbabn.BatchStatistics(3, mean, variance).merge(
        numbabn.BatchStatistics(4, mean + 1, variance)
    )
    assert_same(one.merge(other).to_host(), expected)


def test_host_statistics_are_on_the_host():
    batch = numbabn.batch_statistics(np.zeros((3, 2), np.float32))
    assert batch.to_host() is batch


@pytest.mark.parametrize("clipping", [None, {"rmin": 0.9, "rmax": 1.1, "dmax": 0.2}])
@pytest.mark.parametrize("shape", [(5,), (1, 4, 3)], ids=str)
def test_renorm_correction(shape, clipping):
    rng = np.random.default_rng(7)
    mean, reference_mean = rng.normal(size=(2, *shape))
    variance, stddev = rng.uniform(0.2, 2.0, (2, *shape))
    stddev.reshape(-1)[0] = 0.0
    r, d = numbabn.renorm_correction(
        *(put(each, "numba") for each in (mean, variance, reference_mean, stddev)),
        clipping=clipping,
    )
    expected = reference.renorm_correction(
        mean, variance, reference_mean, stddev, **(clipping or {})
    )
    for actual, wanted in zip((r, d), expected, strict=True):
        assert get(actual).shape == shape
        np.testing.assert_allclose(get(actual), wanted, rtol=1e-12)
