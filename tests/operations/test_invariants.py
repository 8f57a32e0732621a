"""What holds of batch normalization whatever the values are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import numbabn
import reference
from arrays import cases, make_case
from devices import assert_same, copies, forward, get, put

SEEDS = st.integers(0, 2**32 - 1)


def run(x, dy, **options):
    """y, dx, dgamma and dbeta, in NumPy."""
    x, dy = put(x), put(dy)
    y, saved = numbabn.batch_norm_forward(x, axis=1, **options)
    return [get(each) for each in (y, *numbabn.batch_norm_backward(dy, x, saved))]


@given(SEEDS, st.sampled_from([(12, 5, 3), (40, 3)]))
def test_output_has_zero_mean_and_unit_variance(seed, shape):
    case = make_case(shape, 1, np.float64, seed=seed, offset=5.0, affine=False)
    y, *_ = run(case.x, case.dy, epsilon=1e-14)
    batch = reference.statistics(y, axis=1)
    np.testing.assert_allclose(batch.mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(batch.variance, 1.0, rtol=1e-11)


@given(SEEDS)
def test_permuting_the_batch_permutes_the_output(seed):
    case = make_case((9, 3, 4), 1, np.float64, seed=seed)
    order = np.random.default_rng(seed).permutation(9)
    y, dx, *sums = run(case.x, case.dy)
    permuted_y, permuted_dx, *permuted_sums = run(case.x[order], case.dy[order])
    np.testing.assert_allclose(permuted_y, y[order], atol=1e-13)
    np.testing.assert_allclose(permuted_dx, dx[order], atol=1e-13)
    np.testing.assert_allclose(permuted_sums, sums, atol=1e-12)


@given(SEEDS, st.floats(-100, 100))
def test_shifting_the_input_changes_nothing(seed, shift):
    case = make_case((9, 3, 4), 1, np.float64, seed=seed)
    y, *_ = run(case.x, case.dy)
    shifted, *_ = run(case.x + shift, case.dy)
    np.testing.assert_allclose(shifted, y, atol=1e-11)


@given(SEEDS)
def test_the_gradient_is_orthogonal_to_shifts_and_nearly_to_scaling(seed):
    """Without a mask y does not change with a shift of x: the sum of dx is zero. With epsilon
    near zero neither does it change with a scale: the sum of dx * xhat is zero.
    """
    case = make_case((9, 3, 4), 1, np.float64, seed=seed)
    y, dx, *_ = run(case.x, case.dy, epsilon=1e-14)
    np.testing.assert_allclose(reference.channel_sums(dx, 1), 0.0, atol=1e-12)
    np.testing.assert_allclose(reference.channel_sums(dx * y, 1), 0.0, atol=1e-11)


@given(cases())
def test_masked_out_positions_change_no_statistic_but_are_normalized(case):
    y, saved = forward(case)
    assert get(y).shape == case.x.shape
    on = reference.mask_on(case.mask, case.x.shape)
    (y,), statistics = copies([y]), saved.statistics
    case.x = case.x.copy(order="K")  # the same memory order, for the same bits
    case.x[~on] = 123
    other_y, other_saved = forward(case)
    other = other_saved.statistics
    assert_same((statistics.mean, statistics.variance), (other.mean, other.variance))
    np.testing.assert_array_equal(y[on], get(other_y)[on])
