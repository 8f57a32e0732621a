import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbabn
import reference
from arrays import DTYPES, assert_close, axes, cases, make_case, shapes
from devices import LIBRARIES, TELLING, assert_same, copies, get, put

MERGED = {"rtol": 1e-13, "atol": 1e-13}  # rounding of a few float64 operations


def statistics(x, library=TELLING, **options):
    return numbabn.batch_statistics(put(x, library), **options)


def parts(count=6, channels=3):
    """Statistics of pieces of different sizes and places, an empty one among them."""
    rng = np.random.default_rng(4)
    return [
        statistics(rng.normal(10.0 * part, 1.0 + part, (part * part, channels)))
        for part in range(count)
    ]


def fields(batch):
    return batch.count, batch.mean, batch.variance


def assert_close_to(actual, expected, close=MERGED):
    actual, expected = actual.to_host(), expected.to_host()
    np.testing.assert_array_equal(actual.count, expected.count)
    np.testing.assert_allclose(actual.mean, expected.mean, **close)
    np.testing.assert_allclose(actual.variance, expected.variance, **close)


@given(cases())
def test_statistics_agree_with_the_oracle(case):
    before = case.x.copy()
    x = put(case.x)
    given = numbabn.batch_statistics(x, axis=case.axis, mask=put(case.mask))
    assert isinstance(given, numbabn.BatchStatistics)
    batch = given.to_host()
    expected = reference.statistics(case.x, axis=case.axis, mask=case.mask)
    for field in fields(batch):
        assert field.shape == case.parameter_shape
    assert batch.mean.dtype == batch.variance.dtype == np.float64
    np.testing.assert_array_equal(batch.count, expected.count)
    # Sums are in float32 or better: 1e-6 of the spread, and 1e-7 of the offset.
    close = 1e-12 if case.x.dtype == np.float64 else 2e-6
    np.testing.assert_allclose(batch.mean, expected.mean, rtol=close / 10, atol=close)
    np.testing.assert_allclose(batch.variance, expected.variance, rtol=close, atol=close)
    assert_same([x], [before])


@pytest.mark.parametrize("axis", [-1, 1, [2, 0]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_of_each_dtype(dtype, axis):
    x = make_case((6, 4, 5), axis, dtype).x
    expected = numbabn.BatchStatistics(*reference.statistics(x, axis=axis))
    assert_close_to(statistics(x, axis=axis), expected, {"rtol": 1e-6, "atol": 1e-6})


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
        statistics(piece, axis=axis, mask=put(on)) for piece, on in pieces
    )
    assert_close_to(merged, statistics(case.x, axis=axis, mask=put(mask)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_merging_parts_gives_the_whole(library):
    x = make_case((9, 4), -1, np.float32, offset=100.0).x
    pieces = [statistics(part, library) for part in (x[:2], x[2:2], x[2:8], x[8:])]
    merged = numbabn.BatchStatistics.merge_all(pieces)
    assert type(merged.mean) is type(pieces[0].mean)
    expected = numbabn.BatchStatistics(*reference.statistics(x))
    assert_close_to(merged, expected, {"rtol": 1e-6, "atol": 1e-6})


def test_merging_is_associative_and_commutative_to_rounding():
    a, b, c = parts()[-3:]
    assert_close_to(a.merge(b).merge(c), a.merge(b.merge(c)))
    for order in itertools.permutations([a, b, c]):
        assert_close_to(numbabn.BatchStatistics.merge_all(order), a.merge(b).merge(c))


def test_merging_keeps_float64():
    merged = numbabn.BatchStatistics.merge_all(parts())
    assert all(get(each).dtype == np.float64 for each in fields(merged))


@pytest.mark.parametrize("order", [(0, 3), (3, 0)])
def test_merging_with_an_empty_part_changes_nothing(order):
    pieces = parts()
    merged = pieces[order[0]].merge(pieces[order[1]])
    assert_same(fields(merged), fields(pieces[3]))


def test_merging_two_empty_parts_gives_zeros():
    empty = parts()[0]
    assert_same(fields(empty.merge(empty)), [np.zeros(3)] * 3)


@pytest.mark.parametrize(("shape", "axis"), [((3, 0), -1), ((0, 2, 2), [0, 1])], ids=str)
def test_there_may_be_no_channels(shape, axis):
    batch = statistics(np.zeros(shape), axis=axis)
    for field in (*fields(batch), *fields(batch.merge(batch))):
        assert get(field).shape == reference.parameter_shape(shape, axis)


def test_merging_does_not_cancel_at_a_large_offset():
    rng = np.random.default_rng(8)
    x = rng.normal(1e6, 1.0, (64, 2))
    merged = numbabn.BatchStatistics.merge_all(statistics(row) for row in x[:, None]).to_host()
    expected = reference.statistics(x)
    # An error of 1e-16 a merge in the mean (1e-10 at this offset), once in the variance's terms.
    np.testing.assert_allclose(merged.mean, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.variance, expected.variance, rtol=1e-8)


def test_merging_leaves_its_operands_alone():
    a, b = parts()[2:4]
    before = copies((*fields(a), *fields(b)))
    a.merge(b)
    assert_same((*fields(a), *fields(b)), before)


def test_statistics_of_arrays_that_a_caller_has():
    """Any float, any strides; the two parts may differ."""
    rng = np.random.default_rng(3)
    mean, variance = rng.normal(size=5), rng.uniform(1, 2, 5)
    one = numbabn.BatchStatistics(
        *(put(each.astype(np.float32), TELLING) for each in (np.full(5, 3), mean, variance))
    )
    strided = np.zeros((3, 10))
    strided[:, ::2] = np.full(5, 4), mean + 1, variance
    other = numbabn.BatchStatistics(*(put(each[::2]) for each in strided))
    expected = numbabn.BatchStatistics(3, mean, variance).merge(
        numbabn.BatchStatistics(4, mean + 1, variance)
    )
    assert_close_to(one.merge(other), expected, {"rtol": 1e-6, "atol": 1e-6})


def test_statistics_in_numpy_are_on_the_host():
    batch = numbabn.batch_statistics(np.zeros((3, 2), np.float32))
    assert batch.to_host() is batch


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
    assert_same(fields(statistics(x, axis=axis)), ([1, 1, 1], [2.0, -3.0, 0.5], [0.0, 0.0, 0.0]))


def test_moments_of_normalized_output_are_zero_and_one():
    case = make_case((50, 4, 3), 1, np.float32, offset=30.0, affine=False)
    y, _ = numbabn.batch_norm_forward(put(case.x), axis=1, epsilon=1e-12)
    batch = numbabn.batch_statistics(y, axis=1).to_host()
    assert_close(batch.mean.astype(np.float32), np.zeros(4))
    assert_close(batch.variance.astype(np.float32), np.ones(4), scale=2)
