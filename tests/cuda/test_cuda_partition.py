"""The cut covers every element once, whatever the shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbabn.cuda import folds
from numbabn.cuda.partition import MOST_BLOCKS, partition

# As on hardware; in simulation kernels run with fewer.
THREADS = 256


@st.composite
def tensors(draw):
    outer, inner = draw(st.integers(0, 40)), draw(st.sampled_from([0, 1, 2, 5, 16, 49, 64, 300]))
    return outer, draw(st.integers(0, 40)), inner


def visits(cut, vector):
    """How often each element is read, as `walk` has it, all threads at once."""
    seen = np.zeros(cut.total, int)
    lanes = np.arange(1 << cut.x_bits), np.arange(1 << cut.y_bits)
    for block in range(cut.tiles * cut.splits):
        tile, split = block % cut.tiles, block // cut.tiles
        for x in lanes[0]:
            column = (tile << cut.x_bits) + x
            if column >= cut.vectors:
                continue
            last = min((split + 1) * cut.split, cut.positions)
            for y in lanes[1]:
                position = split * cut.split + y
                run, inner = divmod(position, cut.run)
                address = run * cut.run_step + inner * vector + column * cut.vector_step
                while position < last:
                    if address < cut.total:
                        seen[address : address + vector] += 1
                    position += 1 << cut.y_bits
                    run, inner = run + cut.step_runs, inner + cut.step_inner
                    address += cut.step
                    if inner >= cut.run:
                        inner, run, address = inner - cut.run, run + 1, address + cut.carry
    return seen


@given(tensors(), st.sampled_from([2, 4, 8]), st.booleans(), st.booleans(), st.booleans())
def test_every_element_is_read_once(shape, vector, aligned, masked, folded):
    cut, read = partition(*shape, vector, aligned, masked, folded, 32)
    assert cut.total == np.prod(shape)
    np.testing.assert_array_equal(visits(cut, read), np.ones(cut.total))


@given(tensors(), st.sampled_from([2, 4, 8]), st.booleans(), st.booleans())
def test_every_partial_result_is_folded_once(shape, vector, aligned, masked):
    cut, _ = partition(*shape, vector, aligned, masked, True, 32)
    fold, blocks = folds.fold_of(cut, 32)
    found = [
        (channel, item % fold.splits, place)
        for channel in range(fold.channels)
        for item in range(fold.items)
        for place in [folds.place_of(fold, channel, item, 0)]
    ]
    columns = sorted((split, place) for _, split, place in found)
    expected = sorted((split, place) for split in range(cut.splits) for place in range(cut.columns))
    assert columns == expected
    for channel, _, place in found:
        assert place // cut.repeat % cut.channels == channel
    assert blocks << fold.x_bits >= fold.channels


@pytest.mark.parametrize(
    ("shape", "vector", "wide", "by_rows"),
    [
        ((1 << 20, 64, 1), 4, True, True),
        ((1 << 20, 3, 1), 4, True, True),  # rows are joined
        ((128, 64, 56 * 56), 4, True, False),
        ((128, 512, 49), 4, True, True),  # runs that vectors do not fit
        ((1, 512, 49), 4, False, False),  # and too few rows of them
        ((128, 64, 56 * 56), 8, True, False),
        ((1 << 20, 1030, 1), 8, True, True),
    ],
    ids=str,
)
def test_how_common_shapes_are_read(shape, vector, wide, by_rows):
    cut, read = partition(*shape, vector, True, False, threads=THREADS)
    assert (read, bool(cut.by_rows)) == (vector if wide else 1, by_rows)
    assert 90 < cut.tiles * cut.splits <= 2 * MOST_BLOCKS or shape[0] == 1


def test_masked_rows_are_not_joined():
    cut, read = partition(1 << 20, 3, 1, 4, True, True, threads=THREADS)
    assert (cut.columns, read) == (3, 1)


def test_masked_rows_that_vectors_do_not_fit_are_read_by_half_of_them():
    cut, read = partition(1 << 20, 100, 1, 8, True, True, threads=THREADS)
    assert (cut.columns, cut.vectors, read) == (100, 25, 4)


def test_the_cut_does_not_depend_on_a_device():
    """256 threads and a number of blocks that follows from the shape alone."""
    cut, _ = partition(1 << 20, 64, 1, 4, True, False, threads=THREADS)
    assert (cut.splits, cut.tiles, cut.x_bits, cut.y_bits) == (MOST_BLOCKS, 1, 4, 4)
