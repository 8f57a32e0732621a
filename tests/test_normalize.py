import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbabn
import reference
from arrays import DTYPES, assert_close, axes, cases, dense, make_case, same_memory_order


def arguments(case):
    """x, mean, variance, gamma, beta with statistics that are not those of x."""
    mean, stddev, _ = case.renorm
    return case.x, mean, stddev**2, case.gamma, case.beta


@given(st.data())
def test_normalize_agrees_with_the_oracle(data):
    case = data.draw(cases())
    channels = case.parameter_shape
    rng = np.random.default_rng(6)
    mean, variance = rng.normal(size=channels), rng.uniform(0.1, 3.0, channels)
    epsilon = data.draw(st.sampled_from([1e-3, 1e-7, 0.5]))
    y = numbabn.normalize(
        case.x, mean, variance, case.gamma, case.beta, axis=case.axis, epsilon=epsilon
    )
    expected = reference.normalize(
        case.x, mean, variance, case.gamma, case.beta, axis=case.axis, epsilon=epsilon
    )
    assert y.dtype == case.x.dtype
    assert_close(y, expected, scale=np.max(np.abs(expected), initial=0.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)], ids=str)
def test_normalize_into_its_own_input(dtype, memory):
    case = make_case((4, 3, 5), 1, dtype, renorm=True)
    expected = numbabn.normalize(*arguments(case), axis=1)
    x = dense(case.x, memory)
    y = numbabn.normalize(x, *arguments(case)[1:], axis=1, out=x)
    assert y is x
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalize_into_out(dtype):
    case = make_case((4, 3, 5), 1, dtype, renorm=True)
    out = np.full_like(case.x, 7)
    assert numbabn.normalize(*arguments(case), axis=1, out=out) is out
    np.testing.assert_array_equal(out, numbabn.normalize(*arguments(case), axis=1))


@pytest.mark.parametrize("memory", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1), (0, 3, 1, 2)])
def test_output_has_the_memory_order_of_the_input(memory):
    case = make_case((2, 3, 4, 5), 1, np.float32, renorm=True)
    x = dense(case.x, memory)
    assert same_memory_order(numbabn.normalize(x, *arguments(case)[1:], axis=1), x)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_missing_gamma_is_one_and_missing_beta_zero(scale, center):
    x, mean, variance, gamma, beta = arguments(make_case((6, 4), -1, np.float32, renorm=True))
    y = numbabn.normalize(x, mean, variance, gamma if scale else None, beta if center else None)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    full = numbabn.normalize(x, mean, variance, gamma if scale else ones, beta if center else zeros)
    np.testing.assert_array_equal(y, full)


def test_normalize_holds_the_mean_to_more_than_float32():
    """At 1e6 the mean's last place in float32 is 0.06, a visible shift of every output."""
    mean = np.array([1e6 + 0.03])
    x = np.float32([[1e6], [1e6 + 1.0], [1e6 - 1.0]])
    y = numbabn.normalize(x, mean, np.ones(1), epsilon=1e-12)
    assert_close(y, np.array([[-0.03], [0.97], [-1.03]]), scale=2)


@given(st.integers(2, 4).flatmap(lambda rank: st.tuples(st.just(rank), axes(rank))))
def test_parameters_may_have_any_float_dtype(rank_and_axis):
    rank, axis = rank_and_axis
    case = make_case((3, 2, 4, 3)[:rank], axis, np.float32, renorm=True)
    x, *parameters = arguments(case)
    expected = numbabn.normalize(x, *parameters, axis=axis)
    doubles = [each.astype(np.float64) for each in parameters]
    np.testing.assert_array_equal(numbabn.normalize(x, *doubles, axis=axis), expected)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("gamma", [1.0, 1.0 + 2.0**-9, -3.0, 2.0**-20])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_16_bit_value_is_read_and_rounded_as_numpy_does(axis, gamma, dtype):
    """All bit patterns: zeros, subnormals, infinities, NaN; ties, overflow and underflow."""
    x = np.arange(2**16, dtype=np.uint16).view(dtype).reshape((1, -1) if axis == 0 else (-1, 1))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (x.astype(np.float32) * np.float32(gamma)).astype(dtype)
    # variance + epsilon is one exactly, so the arithmetic is one multiplication.
    y = numbabn.normalize(x, [0.0], [0.75], [gamma], axis=axis, epsilon=0.25)
    # As float32, whose NaN NumPy knows how to compare.
    np.testing.assert_array_equal(y.astype(np.float32), expected.astype(np.float32))
