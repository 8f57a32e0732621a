"""Parts of a batch, by the statistics and the sums of the whole: what the whole would give."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbabn
import reference
from arrays import DTYPES, assert_results, cases, dense, make_case, raises
from devices import LIBRARIES, LIBRARY, assert_same_bits, get, on_target, put

# As far from 0 as the accuracy is promised.
OFFSET = 1e6


def part_of(values, along, piece):
    """A piece of an array along an axis, its memory in the same order."""
    if values is None:
        return None
    order = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
    return dense(values[(slice(None),) * along + (piece,)], order)


def pieces_of(size, cuts):
    return list(itertools.starmap(slice, itertools.pairwise([0, *sorted(cuts), size])))


def whole_mask(case):
    if case.mask is None:
        return None
    mask = case.mask if case.mask.ndim == case.x.ndim else case.mask[..., None]
    return np.broadcast_to(mask != 0, case.x.shape).copy()


def run(case, along, cuts, library=LIBRARY):
    """y, dx, and of the whole: what every part saved, dgamma and dbeta."""
    mask, arguments = whole_mask(case), on_target(case, library)
    parts = [
        {
            "x": put(part_of(case.x, along, piece), library),
            "mask": put(part_of(mask, along, piece), library),
            "dy": put(part_of(case.dy, along, piece), library),
        }
        for piece in pieces_of(case.x.shape[along], cuts)
    ]
    merged = numbabn.BatchStatistics.merge_all(
        numbabn.batch_statistics(each["x"], axis=case.axis, mask=each["mask"]) for each in parts
    )
    forwards = [
        numbabn.batch_norm_forward(
            each["x"], arguments["gamma"], arguments["beta"], axis=case.axis, mask=each["mask"],
            renorm=arguments["renorm"], statistics=merged,
        )
        for each in parts
    ]  # fmt: skip
    sums = [
        get(numbabn.gradient_sums(each["dy"], each["x"], saved))
        for each, (_, saved) in zip(parts, forwards, strict=True)
    ]
    backwards = [
        numbabn.batch_norm_backward(
            each["dy"], each["x"], saved, sums=put(np.sum(sums, axis=0), library)
        )
        for each, (_, saved) in zip(parts, forwards, strict=True)
    ]
    return {
        "y": np.concatenate([get(y) for y, _ in forwards], axis=along),
        "dx": np.concatenate([get(dx) for dx, _, _ in backwards], axis=along),
        "saved": [saved for _, saved in forwards],
        "gradients": [tuple(map(get, gradients)) for _, *gradients in backwards],
        "sums": sums,
    }


def assert_parts_agree(case, along, cuts, library=LIBRARY):
    found = run(case, along, cuts, library)
    for saved, (dgamma, dbeta) in zip(found["saved"], found["gradients"], strict=True):
        # Every part has what the whole batch has.
        assert_results(
            case, y=found["y"], statistics=saved.statistics.to_host(), r=get(saved.r),
            d=get(saved.d), dx=found["dx"], dgamma=dgamma, dbeta=dbeta,
        )  # fmt: skip


@given(cases(), st.data())
def test_parts_agree_with_the_oracle_of_the_whole(case, data):
    along = data.draw(st.sampled_from(reference.reduced_axes(case.x.ndim, case.axis)))
    cuts = data.draw(st.lists(st.integers(0, case.x.shape[along]), max_size=3))
    assert_parts_agree(case, along, cuts)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((9, 40), -1), ((9, 3, 50), 1), ((9, 2, 3), [1, 2])])
def test_parts_that_are_masked_and_empty(shape, axis, dtype, library):
    rng = np.random.default_rng(5)
    mask = rng.random(shape) < 0.6
    mask[4:7] = False
    case = make_case(shape, axis, dtype, mask=mask, renorm=True, zeros=0.3, offset=3.0)
    # Of 2, 0, 2, 3 that are masked, and 2.
    assert_parts_agree(case, 0, [2, 2, 4, 7], library)


@pytest.mark.parametrize(("shape", "axis"), [((600, 3), -1), ((4, 3, 700), 1)])
def test_large_offsets_do_not_cancel(shape, axis):
    case = make_case(shape, axis, np.float32, offset=OFFSET)
    y = run(case, 0, [shape[0] // 3])["y"]
    np.testing.assert_allclose(y, case.forward.y, atol=2e-6 * np.abs(case.forward.y).max())


def test_one_part_is_the_whole_to_the_bit():
    case = make_case((50, 40), -1, np.float32, renorm=True, mask=np.arange(50) % 3 > 0)
    arguments = on_target(case)
    y, saved = numbabn.batch_norm_forward(**arguments)
    x, dy = arguments["x"], put(case.dy)
    expected = y, saved.values, *numbabn.batch_norm_backward(dy, x, saved)
    given_y, given_saved = numbabn.batch_norm_forward(**arguments, statistics=saved.statistics)
    sums = numbabn.gradient_sums(dy, x, saved)
    gradients = numbabn.batch_norm_backward(dy, x, given_saved, sums=sums)
    assert_same_bits((given_y, given_saved.values, *gradients), expected)


def test_the_gradient_of_part_goes_over_dy():
    case = make_case((50, 40), -1, np.float32)
    arguments, dy = on_target(case), put(case.dy)
    _, saved = numbabn.batch_norm_forward(**arguments)
    sums = numbabn.gradient_sums(dy, arguments["x"], saved)
    expected = get(numbabn.batch_norm_backward(dy, arguments["x"], saved, sums=sums)[0]).copy()
    numbabn.batch_norm_backward(dy, arguments["x"], saved, sums=sums, out=dy)
    assert_same_bits([dy], [expected])


def test_statistics_must_be_such():
    case = make_case((5, 3), -1, np.float32)
    with raises(TypeError, "statistics must be a BatchStatistics, got tuple"):
        numbabn.batch_norm_forward(put(case.x), statistics=(1, 2, 3))
