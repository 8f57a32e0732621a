import itertools

import numpy as np
import pytest
from hypothesis import given, settings

import numbabn
import reference
from arrays import (
    DTYPES,
    assert_close,
    backwards,
    cases,
    dense,
    make_case,
    read_only,
    same_memory_order,
    strided,
)
from devices import LIBRARIES, ON_HARDWARE, assert_agrees, get, on_device, put, strides_of
from numbabn.functional import backward_from_saved

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = DTYPES


@settings(max_examples=60 if ON_HARDWARE else 20)
@given(cases())
def test_every_result_agrees_with_the_oracle(case):
    # Elements that are not aligned are refused, and test_cuda_errors.py asserts it.
    case.x, case.dy = (each if each.flags.aligned else each.copy() for each in (case.x, case.dy))
    assert_agrees(case)


# (shape, axis), with the reason for each
LAYOUTS = [
    pytest.param((1, 1), -1, id="one element"),
    pytest.param((5, 1), -1, id="one channel, channels-last"),
    pytest.param((2, 1, 7), 1, id="one channel, channels-first"),
    pytest.param((1, 5), -1, id="one row"),
    pytest.param((0, 5), -1, id="empty batch"),
    pytest.param((3, 0), -1, id="no channels"),
    pytest.param((2, 3, 0), 1, id="empty image"),
    pytest.param((17, 13), -1, id="primes, channels-last"),
    pytest.param((3, 5, 7), 1, id="primes, channels-first"),
    pytest.param((24, 16), -1, id="vectors by rows"),
    pytest.param((40, 3), -1, id="rows joined to vectors"),
    pytest.param((41, 3), -1, id="rows that cannot be joined"),
    pytest.param((42, 6), -1, id="rows joined, and the last one short"),
    pytest.param((2, 3, 64), 1, id="vectors by runs"),
    pytest.param((2, 3, 67), 1, id="runs of single elements"),
    pytest.param((20, 4, 35), 1, id="runs read as rows, in vectors"),
    pytest.param((6, 40), 0, id="channels outermost"),
    pytest.param((2, 3, 4, 5), [1, 3], id="channel axes apart"),
    pytest.param((2, 3, 4, 5), [2, 1], id="channel axes together, in the middle"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_shapes(shape, axis, dtype):
    assert_agrees(make_case(shape, axis, dtype, renorm=True))


# More than one block holds.
SEVERAL_BLOCKS = [
    pytest.param((700, 12), -1, id="many rows"),
    pytest.param((3, 400), -1, id="many columns"),
    pytest.param((2100, 3), -1, id="joined rows"),
    pytest.param((2, 2, 2600), 1, id="long runs"),
    pytest.param((30, 40, 5), 1, id="short runs"),
    pytest.param((2, 9, 16), 1, id="several channels in a block"),
]


def masked_case(shape, axis, mask, dtype):
    channels = reference.channel_axes(len(shape), axis)
    mask_shape = {
        "positions": tuple(1 if a in channels else length for a, length in enumerate(shape)),
        "elements": shape,
        "broadcast": (1, *shape[1:]),
    }.get(mask)
    on = None if mask_shape is None else np.random.default_rng(3).random(mask_shape) < 0.8
    return make_case(shape, axis, dtype, renorm=True, offset=1.0, mask=on, zeros=0.1)


@pytest.mark.parametrize("mask", ["none", "positions", "elements", "broadcast"])
@pytest.mark.parametrize(("shape", "axis"), SEVERAL_BLOCKS)
def test_shapes_of_several_blocks(shape, axis, mask):
    assert_agrees(masked_case(shape, axis, mask, FLOAT32))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT64], ids=str)
@pytest.mark.parametrize("mask", ["none", "elements"])
@pytest.mark.parametrize(("shape", "axis"), [((90, 24), -1), ((2, 3, 160), 1)], ids=str)
def test_masked_vectors(shape, axis, mask, dtype):
    assert_agrees(masked_case(shape, axis, mask, dtype))


@pytest.mark.parametrize("mask_shape", [(40, 6), (40, 1, 8), (40, 6, 8), (1, 6, 1), (1, 6, 8)])
@pytest.mark.parametrize("axis", [1, -1])
def test_mask_forms(mask_shape, axis):
    mask = np.random.default_rng(5).random(mask_shape) < 0.5
    assert_agrees(make_case((40, 6, 8), axis, FLOAT32, mask=mask, renorm=True))


def test_a_mask_of_more_broadcast_axes_than_kernels_take():
    mask = np.random.default_rng(5).random((2, 1, 3, 1, 2, 1, 3, 1)) < 0.5
    assert_agrees(make_case((2, 2, 3, 2, 2, 2, 3, 4), -1, FLOAT32, mask=mask))


# CuPy has no bfloat16.
PAIRS = [
    (library, dtype)
    for library in LIBRARIES
    for dtype in DTYPES
    if (library, dtype) != ("cupy", BFLOAT16)
]


@pytest.mark.parametrize(("library", "dtype"), PAIRS, ids=str)
def test_libraries(library, dtype):
    case = make_case((20, 8), -1, dtype, mask=np.arange(20) % 3, renorm=True)
    assert_agrees(case, library)
    y, saved = numbabn.batch_norm_forward(**on_device(case, library))
    wanted = type(put(case.x, "numba" if library == "plain" else library))
    assert isinstance(y, wanted)
    assert isinstance(saved.values, wanted)


@pytest.mark.parametrize("memory", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_results_have_the_memory_order_of_x(axis, memory):
    case = make_case((4, 3, 5), axis, FLOAT32)
    case.x = dense(case.x, memory)
    y, saved = numbabn.batch_norm_forward(**on_device(case, "numba"))
    dx, _, _ = numbabn.batch_norm_backward(put(case.dy, "numba"), put(case.x, "numba"), saved)
    assert strides_of(y) == strides_of(dx) == case.x.strides
    assert_agrees(case)


@pytest.mark.parametrize("view", [strided, backwards, read_only, np.asfortranarray])
@pytest.mark.parametrize("dtype", [FLOAT16, FLOAT32], ids=str)
def test_views(view, dtype):
    case = make_case((6, 5, 4), 1, dtype, renorm=True)
    case.x, case.dy = view(case.x), view(case.dy)
    case.gamma, case.beta = view(case.gamma), view(case.beta)
    case.renorm = (view(case.renorm[0]), view(case.renorm[1]), case.renorm[2])
    case.mask = view(np.arange(120).reshape(6, 5, 4) % 3 != 0)
    assert_agrees(case, "plain")


def test_memory_that_is_not_aligned_to_vectors():
    """It starts one element after a boundary, so it is read element by element."""
    case = make_case((24, 16), -1, FLOAT32)
    holder = np.zeros(case.x.size + 1, np.float32)
    holder[1:] = case.x.reshape(-1)
    x = put(holder, "plain")
    interface = x.__cuda_array_interface__
    interface["data"] = (interface["data"][0] + 4, False)
    interface["shape"], interface["strides"] = case.x.shape, None
    y, _ = numbabn.batch_norm_forward(x, put(case.gamma, "numba"), put(case.beta, "numba"))
    assert_close(get(y), case.forward.y, scale=4)


@pytest.mark.parametrize("axis", [1, -1])
def test_out_is_filled_and_returned(axis):
    case = make_case((6, 5, 4), axis, FLOAT32, renorm=True)
    arguments, dy = on_device(case, "numba"), put(case.dy, "numba")
    wanted_y, saved = numbabn.batch_norm_forward(**arguments)
    wanted = numbabn.batch_norm_backward(dy, arguments["x"], saved)
    for order in ((0, 1, 2), (2, 0, 1)):
        y, dx = (put(dense(np.full_like(case.x, 7), order), "numba") for _ in range(2))
        given_y, saved = numbabn.batch_norm_forward(**arguments, out=y)
        given = numbabn.batch_norm_backward(dy, arguments["x"], saved, out=dx)
        assert given_y is y
        assert given[0] is dx
        np.testing.assert_array_equal(get(y), get(wanted_y))
        for one, other in zip(given, wanted, strict=True):
            np.testing.assert_array_equal(get(one), get(other))


@pytest.mark.parametrize("mask", ["none", "elements"])
@pytest.mark.parametrize("over", ["dy", "x"])
@pytest.mark.parametrize(("shape", "axis"), [((6, 5, 4), 1), ((24, 16), -1)], ids=str)
def test_dx_over_its_inputs(shape, axis, over, mask):
    case = masked_case(shape, axis, mask, FLOAT32)
    arguments = on_device(case, "numba")
    _, saved = numbabn.batch_norm_forward(**arguments)
    expected = numbabn.batch_norm_backward(put(case.dy, "numba"), arguments["x"], saved)
    arrays = {"dy": put(case.dy, "numba"), "x": put(case.x, "numba")}
    result = numbabn.batch_norm_backward(**arrays, saved=saved, out=arrays[over])
    assert result[0] is arrays[over]
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(get(one), get(other))


@pytest.mark.parametrize("mask_shape", [None, (6, 5, 4)], ids=str)
@pytest.mark.parametrize("axis", [1, [0, 2]], ids=str)
def test_backward_takes_x_in_another_memory_order_than_forward(axis, mask_shape):
    mask = None if mask_shape is None else np.arange(np.prod(mask_shape)).reshape(mask_shape) % 3
    case = make_case((6, 5, 4), axis, FLOAT64, mask=mask, renorm=True)
    arguments, dy = on_device(case, "numba"), put(case.dy, "numba")
    _, saved = numbabn.batch_norm_forward(**arguments)
    expected = numbabn.batch_norm_backward(dy, arguments["x"], saved)
    x = dense(case.x, (2, 0, 1))
    result = numbabn.batch_norm_backward(dy, put(x, "numba"), saved)
    assert same_memory_order(get(result[0]), x)
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(get(one), get(other), atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("axis", [1, [2, 0]], ids=str)
def test_backward_from_plain_arrays(axis, memory, training):
    mask = np.arange(120).reshape(6, 5, 4) % 3
    case = make_case((6, 5, 4), axis, FLOAT64, mask=mask)
    case.x = dense(case.x, memory)
    arguments, dy = on_device(case, "numba"), put(case.dy, "numba")
    _, saved = numbabn.batch_norm_forward(**arguments)
    x, mask = arguments["x"], arguments["mask"]
    result = backward_from_saved(
        dy, x, saved.values, axis=axis, mask=mask, epsilon=1e-3, training=training
    )
    if training:
        expected = numbabn.batch_norm_backward(dy, x, saved)
    else:
        statistics = saved.statistics
        expected = numbabn.normalize_backward(
            dy, x, statistics.mean, statistics.variance, arguments["gamma"], axis=axis
        )
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(get(one), get(other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "bare"])
def test_normalize_and_its_gradient(affine, axis, dtype):
    case = make_case((6, 5, 8), axis, dtype, affine=affine, zeros=0.3)
    rng = np.random.default_rng(4)
    channels = case.x.shape[axis]
    mean, variance = rng.normal(size=channels), rng.uniform(0.5, 2.0, channels)
    x, dy, gamma, beta = (put(each, "numba") for each in (case.x, case.dy, case.gamma, case.beta))
    given = put(mean, "numba"), put(variance, "numba")
    y = get(numbabn.normalize(x, *given, gamma, beta, axis=axis))
    wanted = reference.normalize(case.x, mean, variance, case.gamma, case.beta, axis=axis)
    assert_close(y, wanted, scale=8)
    dx, dgamma, dbeta = numbabn.normalize_backward(dy, x, *given, gamma, axis=axis)
    expected = reference.normalize_backward(case.dy, case.x, mean, variance, case.gamma, axis=axis)
    for actual, each in zip((dx, dgamma, dbeta), expected, strict=True):
        assert_close(get(actual), each, scale=40)
    same = numbabn.normalize(x, *given, gamma, beta, axis=axis, out=x)
    assert same is x
    np.testing.assert_array_equal(get(x), y)


@pytest.mark.parametrize(("shape", "axis"), [((700, 12), -1), ((2, 3, 900), 1)], ids=str)
def test_the_same_bits_on_every_run(shape, axis):
    case = masked_case(shape, axis, "elements", FLOAT32)
    arguments, dy = on_device(case, "numba"), put(case.dy, "numba")
    runs = []
    for _ in range(3):
        y, saved = numbabn.batch_norm_forward(**arguments)
        gradients = numbabn.batch_norm_backward(dy, arguments["x"], saved)
        runs.append([get(each).tobytes() for each in (y, saved.values, *gradients)])
    assert runs[0] == runs[1] == runs[2]
