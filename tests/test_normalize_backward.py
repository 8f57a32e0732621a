import numpy as np
import pytest
from hypothesis import given

import numbabn
import reference
from arrays import DTYPES, assert_close, cases, dense, make_case, parameter_dtype, same_memory_order


def assert_agrees(case, mean, variance):
    dx, dgamma, dbeta = numbabn.normalize_backward(
        case.dy, case.x, mean, variance, case.gamma, axis=case.axis
    )
    expected = reference.normalize_backward(
        case.dy, case.x, mean, variance, case.gamma, axis=case.axis
    )
    assert dx.dtype == case.x.dtype
    assert dgamma.dtype == dbeta.dtype == parameter_dtype(case.x.dtype)
    scale = np.max(np.abs(expected[0]), initial=0.0)
    assert_close(dx, expected[0], scale=scale)
    xhat = reference.standardize(case.x, mean, variance, axis=case.axis)
    dy = case.dy.astype(np.float64)
    assert_close(dgamma, expected[1], scale=np.sum(np.abs(dy * xhat)))
    assert_close(dbeta, expected[2], scale=np.sum(np.abs(dy)))


@given(cases())
def test_gradients_agree_with_the_oracle(case):
    rng = np.random.default_rng(6)
    mean = rng.normal(size=case.parameter_shape)
    assert_agrees(case, mean, rng.uniform(0.1, 3.0, case.parameter_shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("over", ["dy", "x"])
def test_dx_over_its_inputs(dtype, over):
    case = make_case((4, 3, 5), 1, dtype, renorm=True)
    mean, stddev, _ = case.renorm
    expected = numbabn.normalize_backward(case.dy, case.x, mean, stddev**2, case.gamma, axis=1)
    out = getattr(case, over)
    result = numbabn.normalize_backward(
        case.dy, case.x, mean, stddev**2, case.gamma, axis=1, out=out
    )
    assert result[0] is out
    for actual, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 1, 0), (0, 2, 1)], ids=str)
def test_dx_has_the_memory_order_of_x(memory):
    case = make_case((4, 3, 5), 1, np.float32, renorm=True)
    mean, stddev, _ = case.renorm
    x = dense(case.x, memory)
    dx, _, _ = numbabn.normalize_backward(case.dy, x, mean, stddev**2, axis=1)
    assert same_memory_order(dx, x)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_zero_dy_contributes_zero_whatever_x_holds(axis):
    case = make_case((4, 3, 3), axis, np.float32, renorm=True)
    mean, stddev, _ = case.renorm
    case.dy[1] = 0.0
    expected = numbabn.normalize_backward(case.dy, case.x, mean, stddev**2, case.gamma, axis=axis)
    case.x[1, 0], case.x[1, 1] = np.nan, np.inf
    result = numbabn.normalize_backward(case.dy, case.x, mean, stddev**2, case.gamma, axis=axis)
    for actual, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
