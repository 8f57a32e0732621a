"""Tensors that are read from memory and written past the cache, and small ones taken as such.

And small ones in as many tasks as large ones are.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import numbabn
from arrays import DTYPES, cases, masked_case
from devices import assert_agrees, forward
from numbabn.cpu.partition import partition

pytestmark = pytest.mark.heavy

LAYOUTS = [
    pytest.param((3, 5, 700), 1, id="runs"),
    pytest.param((2, 2, 8209), 1, id="runs of several segments"),
    pytest.param((9, 4, 49), 1, id="runs of few lines"),
    pytest.param((70, 64), -1, id="rows"),
    pytest.param((701, 3), -1, id="rows of several positions, the last one short"),
    pytest.param((35, 1030), -1, id="rows of an odd length"),
    pytest.param((60, 40, 5), 1, id="rows of short runs"),
]


def shifted(values, by):
    """A copy in C order whose memory begins `by` elements after a cache line."""
    holder = np.empty(values.size + 128, values.dtype)
    start = -(holder.ctypes.data // holder.itemsize) % (64 // holder.itemsize) + by
    view = holder[start : start + values.size].reshape(values.shape)
    view[...] = values
    return view


@pytest.mark.parametrize(
    ("megabytes", "large"), [(11.9, False), (12.1, True)], ids=["smaller", "larger"]
)
@pytest.mark.parametrize("inner", [1, 100], ids=["channels-last", "channels-first"])
def test_what_is_large(inner, megabytes, large):
    outer = int(megabytes * (1 << 20)) // (10 * inner * 4)
    cut, _ = partition(outer, 10, inner, 4, True)
    assert cut.large is large


@pytest.mark.jit
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((65, 16, 3137), 1), ((50001, 65), -1)], ids=str)
def test_a_tensor_of_its_size(shape, axis, dtype):
    assert_agrees(masked_case(shape, axis, "half", dtype))


@pytest.mark.jit
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "half", "padding", "elements"])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_every_result_agrees_with_the_oracle(shape, axis, mask, dtype, cut):
    cut(LARGE_BYTES=0)
    assert_agrees(masked_case(shape, axis, mask, dtype))


@given(cases())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_small_cases_agree_with_the_oracle(cut, case):
    cut(LARGE_BYTES=0)
    assert_agrees(case)


@pytest.mark.parametrize("mask", ["none", "half", "elements"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((300, 5), -1), ((3, 2, 150), 1), ((5, 600), -1)], ids=str
)
def test_shapes_of_some_lines(shape, axis, mask, cut):
    """Small enough for plain Python."""
    cut(LARGE_BYTES=0)
    assert_agrees(masked_case(shape, axis, mask, np.float64))


@pytest.mark.jit
@pytest.mark.parametrize("by", [1, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "half"])
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 700), 1), ((70, 64), -1)], ids=str)
def test_memory_that_begins_anywhere_in_a_line(shape, axis, mask, dtype, by, cut):
    cut(LARGE_BYTES=0)
    case = masked_case(shape, axis, mask, dtype)
    y, saved = forward(case)
    dx, *_ = numbabn.batch_norm_backward(case.dy, case.x, saved)
    x, dy, out = case.x, case.dy, np.empty_like(case.x)
    case.x, case.dy, given = shifted(x, by), shifted(dy, 2 * by), shifted(out, 3 * by)
    same_y, saved = forward(case, out=given)
    assert same_y is given
    assert same_y.tobytes() == y.tobytes()
    same_dx, *_ = numbabn.batch_norm_backward(case.dy, case.x, saved, out=given)
    assert same_dx.tobytes() == dx.tobytes()


@pytest.mark.jit
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "half", "padding", "elements"])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_in_place(shape, axis, mask, dtype, cut):
    """No element is read after it was written."""
    cut(LARGE_BYTES=0)
    case = masked_case(shape, axis, mask, dtype)
    _, saved = forward(case)
    expected, *_ = numbabn.batch_norm_backward(case.dy, case.x, saved)
    for over in ("dy", "x"):
        arrays = {"dy": case.dy.copy(), "x": case.x.copy()}
        result, *_ = numbabn.batch_norm_backward(**arrays, saved=saved, out=arrays[over])
        assert result.tobytes() == expected.tobytes()
    mean, stddev, _ = case.renorm
    y = numbabn.normalize(case.x, mean, stddev, case.gamma, case.beta, axis=axis)
    x = case.x.copy()
    numbabn.normalize(x, mean, stddev, case.gamma, case.beta, axis=axis, out=x)
    assert x.tobytes() == y.tobytes()


@pytest.mark.jit
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_past_the_cache_or_not_gives_the_same_elements(shape, axis, dtype, cut):
    """Where no sum is taken, nothing but the way to memory differs."""
    case = masked_case(shape, axis, "none", dtype)
    arguments = (case.x, *case.renorm[:2], case.gamma, case.beta)
    expected = numbabn.normalize(*arguments, axis=axis)
    cut(LARGE_BYTES=0)
    assert numbabn.normalize(*arguments, axis=axis).tobytes() == expected.tobytes()


@pytest.mark.parametrize("mask", ["none", "positions", "elements"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((600, 5), -1), ((2100, 1), -1), ((12, 1, 500), 1), ((9, 3, 40), 1)]
)
def test_shapes_of_several_tasks(shape, axis, mask, cut):
    """Tasks of so few elements that small arrays are cut into several."""
    cut(TASK_ELEMENTS=64)
    assert_agrees(masked_case(shape, axis, mask, np.float64))
