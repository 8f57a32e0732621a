import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbabn
import reference
from arrays import DTYPES, assert_close, axes, cases, dense, make_case, parameter_dtype
from devices import assert_same, get, put, strides_of
from numbabn.functional import gradients_of_normalize


def arguments(case):
    """x, mean, variance, gamma, beta with statistics that are not those of x."""
    mean, stddev, _ = case.renorm
    return [put(each) for each in (case.x, mean, stddev**2, case.gamma, case.beta)]


def gradients(case, **options):
    """dx, dgamma and dbeta with the same."""
    x, mean, variance, gamma, _ = arguments(case)
    given = {"dy": put(case.dy), "x": x, **options}
    return numbabn.normalize_backward(
        **given, mean=mean, variance=variance, gamma=gamma, axis=case.axis
    )


def assert_agree(case, mean, variance, epsilon=1e-3):
    """The output and every gradient are the oracle's."""
    x, dy, gamma, beta, *given = (
        put(each) for each in (case.x, case.dy, case.gamma, case.beta, mean, variance)
    )
    options = {"axis": case.axis, "epsilon": epsilon}
    y = get(numbabn.normalize(x, *given, gamma, beta, **options))
    wanted = reference.normalize(case.x, mean, variance, case.gamma, case.beta, **options)
    assert y.dtype == case.x.dtype
    assert_close(y, wanted, scale=np.max(np.abs(wanted), initial=0.0))
    dx, dgamma, dbeta = map(get, numbabn.normalize_backward(dy, x, *given, gamma, **options))
    expected = reference.normalize_backward(case.dy, case.x, mean, variance, case.gamma, **options)
    assert dx.dtype == case.x.dtype
    assert dgamma.dtype == dbeta.dtype == parameter_dtype(case.x.dtype)
    assert_close(dx, expected[0], scale=np.max(np.abs(expected[0]), initial=0.0))
    xhat = reference.standardize(case.x, mean, variance, **options)
    terms = case.dy.astype(np.float64)
    assert_close(dgamma, expected[1], scale=np.sum(np.abs(terms * xhat)))
    assert_close(dbeta, expected[2], scale=np.sum(np.abs(terms)))


@given(cases(), st.sampled_from([1e-3, 1e-7, 0.5, 0]))
def test_every_result_agrees_with_the_oracle(case, epsilon):
    rng = np.random.default_rng(6)
    mean = rng.normal(size=case.parameter_shape)
    assert_agree(case, mean, rng.uniform(0.1, 3.0, case.parameter_shape), epsilon)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "bare"])
def test_each_dtype(affine, axis, dtype):
    case = make_case((6, 5, 8), axis, dtype, affine=affine, zeros=0.3)
    rng = np.random.default_rng(4)
    channels = case.x.shape[axis]
    assert_agree(case, rng.normal(size=channels), rng.uniform(0.5, 2.0, channels))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)], ids=str)
def test_normalize_into_its_own_input(dtype, memory):
    case = make_case((4, 3, 5), 1, dtype, renorm=True)
    expected = numbabn.normalize(*arguments(case), axis=1)
    x = put(dense(case.x, memory))
    y = numbabn.normalize(x, *arguments(case)[1:], axis=1, out=x)
    assert y is x
    assert_same([y], [expected])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalize_into_out(dtype):
    case = make_case((4, 3, 5), 1, dtype, renorm=True)
    out = put(np.full_like(case.x, 7))
    assert numbabn.normalize(*arguments(case), axis=1, out=out) is out
    assert_same([out], [numbabn.normalize(*arguments(case), axis=1)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("over", ["dy", "x"])
def test_dx_over_its_inputs(dtype, over):
    case = make_case((4, 3, 5), 1, dtype, renorm=True)
    expected = gradients(case)
    given = {"dy": put(case.dy.copy()), "x": put(case.x.copy())}
    result = gradients(case, **given, out=given[over])
    assert result[0] is given[over]
    assert_same(result, expected)


@pytest.mark.parametrize("memory", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1), (0, 3, 1, 2)])
def test_results_have_the_memory_order_of_x(memory):
    case = make_case((2, 3, 4, 5), 1, np.float32, renorm=True)
    case.x = dense(case.x, memory)
    y = numbabn.normalize(*arguments(case), axis=1)
    assert strides_of(y) == strides_of(gradients(case)[0]) == case.x.strides


@pytest.mark.only_on("cpu")
@pytest.mark.parametrize("axis", [1, [0, 2]])
def test_a_number_serves_for_all_channels(axis, rng):
    x, dy = rng.normal(size=(2, 4, 3, 5))
    shape = (3,) if axis == 1 else (4, 1, 5)
    numbers = {"mean": 0.5, "variance": 2, "gamma": np.float32(3.0), "beta": 1.0}
    arrays = {name: np.full(shape, float(value)) for name, value in numbers.items()}
    given = [numbers, arrays]
    one, other = (numbabn.normalize(x, **each, axis=axis) for each in given)
    np.testing.assert_array_equal(one, other)
    for each in given:
        each.pop("beta")
    assert_same(*(numbabn.normalize_backward(dy, x, **each, axis=axis) for each in given))
    for each in given:
        del each["variance"], each["mean"]
    ys, saved = zip(
        *(numbabn.batch_norm_forward(x, **each, axis=axis) for each in given), strict=True
    )
    np.testing.assert_array_equal(*ys)
    found = [numbabn.batch_norm_backward(dy, x, each) for each in saved]
    assert_same(*found)
    assert found[0][1].shape == shape


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_missing_gamma_is_one_and_missing_beta_zero(scale, center):
    x, *statistics, gamma, beta = arguments(make_case((6, 4), -1, np.float32, renorm=True))
    ones, zeros = put(np.ones(4, np.float32)), put(np.zeros(4, np.float32))
    y = numbabn.normalize(x, *statistics, gamma if scale else None, beta if center else None)
    full = numbabn.normalize(x, *statistics, gamma if scale else ones, beta if center else zeros)
    assert_same([y], [full])


@pytest.mark.parametrize("axis", [1, -1])
def test_gradients_that_are_not_wanted_are_none(axis):
    """The others stay as they are; of dx alone, which does not depend on x, x may be missing."""
    case = make_case((4, 3, 5), axis, np.float32, renorm=True)
    x, mean, variance, gamma, _ = arguments(case)
    given = {"mean": mean, "variance": variance, "gamma": gamma, "axis": axis, "epsilon": 1e-3}
    dx, *sums = gradients(case)
    alone, *none = gradients_of_normalize(put(case.dy), None, **given, with_parameters=False)
    assert none == [None, None]
    assert_close(get(alone), get(dx).astype(np.float64), scale=4)
    nothing, *others = gradients_of_normalize(put(case.dy), x, **given, with_dx=False)
    assert nothing is None
    assert_same(others, sums)


def test_normalize_holds_the_mean_to_more_than_float32():
    """At 1e6 the mean's last place in float32 is 0.06, a visible shift of every output."""
    mean, variance = put(np.array([1e6 + 0.03])), put(np.ones(1))
    x = put(np.float32([[1e6], [1e6 + 1.0], [1e6 - 1.0]]))
    y = numbabn.normalize(x, mean, variance, epsilon=1e-12)
    assert_close(get(y), np.array([[-0.03], [0.97], [-1.03]]), scale=2)


@given(st.integers(2, 4).flatmap(lambda rank: st.tuples(st.just(rank), axes(rank))))
def test_parameters_may_have_any_float_dtype(rank_and_axis):
    rank, axis = rank_and_axis
    case = make_case((3, 2, 4, 3)[:rank], axis, np.float32, renorm=True)
    x, *parameters = arguments(case)
    expected = numbabn.normalize(x, *parameters, axis=axis)
    doubles = [put(get(each).astype(np.float64)) for each in parameters]
    assert_same([numbabn.normalize(x, *doubles, axis=axis)], [expected])


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("gamma", [1.0, 1.0 + 2.0**-9, -3.0, 2.0**-20])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_16_bit_value_is_read_and_rounded_as_numpy_does(axis, gamma, dtype):
    """All bit patterns: zeros, subnormals, infinities, NaN; ties, overflow and underflow."""
    x = np.arange(2**16, dtype=np.uint16).view(dtype).reshape((1, -1) if axis == 0 else (-1, 1))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (x.astype(np.float32) * np.float32(gamma)).astype(dtype)
    # variance + epsilon is one exactly, so the arithmetic is one multiplication.
    mean, variance, scale = (put(np.array([each])) for each in (0.0, 0.75, gamma))
    y = numbabn.normalize(put(x), mean, variance, scale, axis=axis, epsilon=0.25)
    # As float32, whose NaN NumPy knows how to compare.
    np.testing.assert_array_equal(get(y).astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("axis", [1, -1])
def test_a_zero_dy_contributes_zero_whatever_x_holds(axis):
    case = make_case((4, 3, 3), axis, np.float32, renorm=True)
    case.dy[1] = 0.0
    expected = gradients(case)
    case.x[1, 0], case.x[1, 1] = np.nan, np.inf
    assert_same(gradients(case), expected)
