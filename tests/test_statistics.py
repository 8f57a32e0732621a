import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbabn
import reference
from arrays import DTYPES, assert_close, axes, cases, make_case, shapes

MERGED = {"rtol": 1e-13, "atol": 1e-13}  # rounding of a few float64 operations


def parts(count=6, channels=3):
    """Statistics of pieces of different sizes and places, an empty one among them."""
    rng = np.random.default_rng(4)
    return [
        numbabn.batch_statistics(rng.normal(10.0 * part, 1.0 + part, (part * part, channels)))
        for part in range(count)
    ]


def assert_same(actual, expected):
    np.testing.assert_array_equal(actual.count, expected.count)
    np.testing.assert_allclose(actual.mean, expected.mean, **MERGED)
    np.testing.assert_allclose(actual.variance, expected.variance, **MERGED)


@given(cases())
def test_statistics_agree_with_the_oracle(case):
    before = case.x.copy()
    batch = numbabn.batch_statistics(case.x, axis=case.axis, mask=case.mask)
    expected = reference.statistics(case.x, axis=case.axis, mask=case.mask)
    assert isinstance(batch, numbabn.BatchStatistics)
    for field in (batch.count, batch.mean, batch.variance):
        assert field.shape == case.parameter_shape
    assert batch.mean.dtype == batch.variance.dtype == np.float64
    np.testing.assert_array_equal(batch.count, expected.count)
    # Sums are in float32 or better: 1e-6 of the spread, and 1e-7 of the offset.
    close = 1e-12 if case.x.dtype == np.float64 else 2e-6
    np.testing.assert_allclose(batch.mean, expected.mean, rtol=close / 10, atol=close)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=close, atol=close)
    np.testing.assert_array_equal(case.x, before)


@given(st.data())
def test_statistics_of_parts_merge_to_those_of_the_whole(data):
    shape = data.draw(shapes())
    axis = data.draw(axes(len(shape)))
    case = make_case(shape, axis, np.float64, seed=data.draw(st.integers(0, 2**32 - 1)))
    mask = np.random.default_rng(1).random(shape) < 0.7
    along = data.draw(st.sampled_from(reference.reduced_axes(len(shape), axis)))
    cuts = sorted(data.draw(st.lists(st.integers(0, shape[along]), max_size=4)))
    pieces = zip(np.split(case.x, cuts, axis=along), np.split(mask, cuts, axis=along), strict=True)
    merged = numbabn.BatchStatistics.merge_all(
        numbabn.batch_statistics(piece, axis=axis, mask=on) for piece, on in pieces
    )
    assert_same(merged, numbabn.batch_statistics(case.x, axis=axis, mask=mask))


def test_merging_is_associative_and_commutative_to_rounding():
    a, b, c = parts()[-3:]
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    for order in itertools.permutations([a, b, c]):
        assert_same(numbabn.BatchStatistics.merge_all(order), a.merge(b).merge(c))


def test_merging_keeps_float64():
    merged = numbabn.BatchStatistics.merge_all(parts())
    assert merged.mean.dtype == merged.variance.dtype == np.float64


@pytest.mark.parametrize("order", [(0, 3), (3, 0)])
def test_merging_with_an_empty_part_changes_nothing(order):
    pieces = parts()
    merged = pieces[order[0]].merge(pieces[order[1]])
    np.testing.assert_array_equal(merged.count, pieces[3].count)
    np.testing.assert_array_equal(merged.mean, pieces[3].mean)
    np.testing.assert_array_equal(merged.variance, pieces[3].variance)


def test_merging_two_empty_parts_gives_zeros():
    empty = parts()[0]
    merged = empty.merge(empty)
    for field in (merged.count, merged.mean, merged.variance):
        np.testing.assert_array_equal(field, np.zeros(3))


def test_merging_does_not_cancel_at_a_large_offset():
    rng = np.random.default_rng(8)
    x = rng.normal(1e6, 1.0, (64, 2))
    merged = numbabn.BatchStatistics.merge_all(numbabn.batch_statistics(row) for row in x[:, None])
    expected = reference.statistics(x)
    # An error of 1e-16 a merge in the mean (1e-10 at this offset), once in the variance's terms.
    np.testing.assert_allclose(merged.mean, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.variance, expected.variance, rtol=1e-8)


def test_merging_leaves_its_operands_alone():
    a, b = parts()[2:4]
    before = [np.copy(field) for each in (a, b) for field in (each.count, each.mean, each.variance)]
    a.merge(b)
    after = [field for each in (a, b) for field in (each.count, each.mean, each.variance)]
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was, now)


def test_given_fields_are_kept():
    made = numbabn.BatchStatistics([2, 3], [1.0, 2.0], [0.5, 0.25])
    other = numbabn.BatchStatistics(count=[2, 3], mean=[3.0, 2.0], variance=[0.5, 0.25])
    merged = made.merge(other)
    np.testing.assert_array_equal(merged.count, [4, 6])
    np.testing.assert_allclose(merged.mean, [2.0, 2.0])
    np.testing.assert_allclose(merged.variance, [1.5, 0.25])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [1, -1])
def test_one_value_a_channel_has_no_variance(dtype, axis):
    x = np.array([[2.0, -3.0, 0.5]], dtype)
    x = x.reshape((1, 3, 1) if axis == 1 else (1, 1, 3))
    batch = numbabn.batch_statistics(x, axis=axis)
    np.testing.assert_array_equal(batch.count, [1, 1, 1])
    np.testing.assert_array_equal(batch.mean, [2.0, -3.0, 0.5])
    np.testing.assert_array_equal(batch.variance, [0.0, 0.0, 0.0])


def test_moments_of_normalized_output_are_zero_and_one():
    case = make_case((50, 4, 3), 1, np.float32, offset=30.0, affine=False)
    y, _ = numbabn.batch_norm_forward(case.x, axis=1, epsilon=1e-12)
    batch = numbabn.batch_statistics(y, axis=1)
    assert_close(batch.mean.astype(np.float32), np.zeros(4))
    assert_close(batch.variance.astype(np.float32), np.ones(4), scale=2)
