import itertools

import numpy as np
import pytest
from hypothesis import given

import numbabn
import reference
from arrays import (
    DTYPES,
    backwards,
    cases,
    dense,
    make_case,
    masked_case,
    read_only,
    same_memory_order,
    strided,
    unaligned,
)
from devices import (
    OWNERS,
    PAIRS,
    TELLING,
    assert_agrees,
    assert_same,
    assert_same_bits,
    backward,
    forward,
    get,
    on_target,
    put,
    strides_of,
    type_of,
    write,
)
from numbabn.functional import backward_from_saved

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = DTYPES


@given(cases())
def test_every_result_agrees_with_the_oracle(case):
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
    pytest.param((8, 16), -1, id="powers of two, channels-last"),
    pytest.param((4, 8, 8), 1, id="powers of two, channels-first"),
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
    pytest.param((2, 3, 4, 5), [-1, -2], id="channel axes together, at the end"),
    pytest.param((2, 3, 4, 5), [0, 1, 3], id="three channel axes"),
    pytest.param((2, 1, 3, 2, 1, 2, 2, 3), [1, 3, 6], id="rank eight"),
]
# More than is summed at once, and more than one block holds; small enough for plain Python.
SEVERAL_BLOCKS = [
    pytest.param((600, 3), -1, id="rows"),
    pytest.param((1, 2, 5000), 1, id="runs of a sample"),
    pytest.param((260, 2, 17), 1, id="runs of many samples"),
    pytest.param((700, 12), -1, id="many rows"),
    pytest.param((3, 400), -1, id="many columns"),
    pytest.param((2100, 3), -1, id="joined rows"),
    pytest.param((2, 2, 2600), 1, id="long runs"),
    pytest.param((30, 40, 5), 1, id="short runs"),
    pytest.param((2, 9, 16), 1, id="several channels in a block"),
]
# Above the size at which work goes to several threads, and each way to share it out.
LARGE_LAYOUTS = [
    pytest.param((40009, 3), -1, id="many rows, few channels"),
    pytest.param((65, 2053), -1, id="few rows, many channels"),
    pytest.param((600, 2053), -1, id="rows of two tiles"),
    pytest.param((6007, 64), -1, id="rows that hold several positions"),
    pytest.param((12, 15, 17, 65), -1, id="channels-last image, odd in every axis"),
    pytest.param((9, 65, 33, 31), 1, id="channels-first image, odd in every axis"),
    pytest.param((2, 3, 70001), 1, id="long channels"),
    pytest.param((70001, 2, 3), 1, id="short runs, few channels"),
    pytest.param((60, 500, 5), 1, id="short runs, many channels"),
    pytest.param((3, 100003), 0, id="channels outermost"),
    pytest.param((10, 40, 12, 50), [1, 3], id="channel axes apart"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
def test_shapes(shape, axis, dtype, renorm):
    assert_agrees(make_case(shape, axis, dtype, renorm=renorm))


# In float64 on the CPU, because plain Python adds up a run term by term, where compiled code has
# many lanes: thousands of float32 terms in one would show.
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("mask", ["none", "positions", "elements", "broadcast"])
@pytest.mark.parametrize(("shape", "axis"), SEVERAL_BLOCKS)
def test_shapes_of_several_blocks(shape, axis, mask, dtype):
    assert_agrees(masked_case(shape, axis, mask, dtype))


@pytest.mark.heavy
@pytest.mark.jit
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "positions", "elements", "broadcast"])
@pytest.mark.parametrize(("shape", "axis"), LARGE_LAYOUTS)
def test_large_shapes(shape, axis, mask, dtype):
    assert_agrees(masked_case(shape, axis, mask, dtype))


@pytest.mark.heavy
@pytest.mark.jit
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "positions", "elements"])
@pytest.mark.parametrize(("shape", "axis"), LARGE_LAYOUTS)
def test_large_shapes_in_place(shape, axis, mask, dtype):
    """The same bits as with an output apart: no element is read after it was written."""
    case = masked_case(shape, axis, mask, dtype)
    _, saved = forward(case)
    expected = backward(case, saved)
    for over in ("dy", "x"):
        arrays = {"dy": put(case.dy.copy()), "x": put(case.x.copy())}
        result = numbabn.batch_norm_backward(**arrays, saved=saved, out=arrays[over])
        assert_same_bits(result, expected)
    given = [put(each) for each in (*case.renorm[:2], case.gamma, case.beta)]
    y = numbabn.normalize(put(case.x), *given, axis=axis)
    x = put(case.x.copy())
    numbabn.normalize(x, *given, axis=axis, out=x)
    assert_same_bits([x], [y])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "elements"])
@pytest.mark.parametrize(("shape", "axis"), [((90, 24), -1), ((2, 3, 160), 1)], ids=str)
def test_masked_vectors(shape, axis, mask, dtype):
    assert_agrees(masked_case(shape, axis, mask, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(40, 6), (40, 1, 0), (40, 6, 0), (1, 6, 1), (1, 6, 0)], ids=str)
@pytest.mark.parametrize("width", [7, 8])
@pytest.mark.parametrize("axis", [1, -1])
def test_mask_forms(axis, width, sizes, dtype):
    mask_shape = tuple(size or width for size in sizes)
    mask = np.random.default_rng(5).random(mask_shape) < 0.5
    assert_agrees(make_case((40, 6, width), axis, dtype, mask=mask, renorm=True))


def test_a_mask_of_more_broadcast_axes_than_kernels_take():
    mask = np.random.default_rng(5).random((2, 1, 3, 1, 2, 1, 3, 1)) < 0.5
    assert_agrees(make_case((2, 2, 3, 2, 2, 2, 3, 4), -1, FLOAT32, mask=mask))


@pytest.mark.parametrize(("library", "dtype"), PAIRS, ids=str)
def test_libraries(library, dtype):
    case = make_case((20, 8), -1, dtype, mask=np.arange(20) % 3, renorm=True)
    assert_agrees(case, library)
    y, saved = forward(case, library)
    # One that nothing is known of has results of Numba's.
    wanted = type_of(library if library in OWNERS else "numba")
    assert isinstance(y, wanted)
    assert isinstance(saved.values, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_results_have_the_memory_order_of_x(axis, memory, dtype):
    case = make_case((4, 3, 5), axis, dtype)
    case.x = dense(case.x, memory)
    y, saved = forward(case)
    dx, _, _ = backward(case, saved)
    assert strides_of(y) == strides_of(dx) == case.x.strides
    assert_agrees(case)


@pytest.mark.parametrize("view", [strided, backwards, read_only, unaligned, np.asfortranarray])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views(view, masked, dtype):
    case = make_case((6, 5, 4), 1, dtype, renorm=True)
    case.x, case.dy = view(case.x), view(case.dy)
    case.gamma, case.beta = view(case.gamma), view(case.beta)
    case.renorm = (view(case.renorm[0]), view(case.renorm[1]), case.renorm[2])
    case.mask = view(np.arange(120).reshape(6, 5, 4) % 3 != 0) if masked else None
    assert_agrees(case, TELLING)


def test_broadcast_input():
    """A view whose strides are zero, as np.broadcast_to makes it."""
    case = make_case((6, 5, 4), 1, np.float32)
    case.x = np.broadcast_to(case.x[:, :, :1], case.x.shape)
    case.dy = np.broadcast_to(case.dy[:1], case.x.shape)
    assert_agrees(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [1, -1])
def test_out_is_filled_and_returned(axis, dtype):
    case = make_case((6, 5, 4), axis, dtype, renorm=True)
    wanted_y, saved = forward(case)
    wanted = backward(case, saved)
    for order in ((0, 1, 2), (2, 0, 1)):
        y, dx = (put(dense(np.full_like(case.x, 7), order)) for _ in range(2))
        given_y, saved = forward(case, out=y)
        given_dx, *sums = backward(case, saved, out=dx)
        assert given_y is y
        assert given_dx is dx
        assert_same((y, dx, *sums), (wanted_y, *wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("over", ["dy", "x"])
@pytest.mark.parametrize(
    ("order_of_x", "order_of_dy"),
    [(np.array, np.array), (np.asfortranarray, np.array), (strided, backwards)],
    ids=["C, C", "F, C", "strided, backwards"],
)
@pytest.mark.parametrize(
    ("shape", "axis", "mask_shape"),
    [
        ((6, 5, 4), 1, None),
        ((6, 5, 4), 1, (6, 1, 4)),
        ((6, 5, 4), 1, (6, 5, 4)),
        ((6, 5, 4), -1, (6, 1, 4)),
        ((24, 16), -1, None),
        ((24, 16), -1, (24, 16)),
    ],
    ids=str,
)
def test_dx_over_its_inputs(shape, axis, mask_shape, order_of_x, order_of_dy, over, dtype):
    mask = None if mask_shape is None else np.arange(np.prod(mask_shape)).reshape(mask_shape) % 3
    case = make_case(shape, axis, dtype, mask=mask)
    case.x, case.dy = order_of_x(case.x), order_of_dy(case.dy)
    _, saved = forward(case)
    expected = backward(case, saved)
    arrays = {"dy": put(case.dy), "x": put(case.x)}
    result = numbabn.batch_norm_backward(**arrays, saved=saved, out=arrays[over])
    assert result[0] is arrays[over]
    assert_same(result, expected)


@pytest.mark.parametrize("mask_shape", [None, (6, 1, 4), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("axis", [1, [0, 2]], ids=str)
def test_backward_takes_x_in_another_memory_order_than_forward(axis, mask_shape):
    """A caller may keep a contiguous copy of a permuted view for the backward pass."""
    mask = None if mask_shape is None else np.arange(np.prod(mask_shape)).reshape(mask_shape) % 3
    case = make_case((6, 5, 4), axis, np.float64, mask=mask, renorm=True)
    _, saved = forward(case)
    expected = backward(case, saved)
    case.x = dense(case.x, (2, 0, 1))
    result = backward(case, saved)
    assert same_memory_order(get(result[0]), case.x)
    for actual, wanted in zip(result, expected, strict=True):
        np.testing.assert_allclose(get(actual), get(wanted), atol=1e-12)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("axis", [1, -1])
def test_an_epsilon_of_zero(axis, dtype):
    case = make_case((6, 5, 8), axis, dtype)
    channel = (slice(None), 2) if axis == 1 else (..., 2)
    case.x[channel] = 4.0
    with np.errstate(all="ignore"):
        expected = reference.forward(case.x, axis=axis, epsilon=0)
        dx, _, _ = reference.backward(case.dy, case.x, axis=axis, epsilon=0)
    x = put(case.x)
    y, saved = numbabn.batch_norm_forward(x, axis=axis, epsilon=0)
    found = numbabn.batch_norm_backward(put(case.dy), x, saved)[0]
    # 0 / 0 where a channel has no spread, as anywhere, and nowhere else.
    for actual, wanted in ((get(y), expected.y), (get(found), dx)):
        assert np.isnan(wanted[channel]).all()
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_missing_gamma_is_one_and_missing_beta_zero(scale, center):
    case = make_case((6, 5), -1, np.float32, renorm=True)
    case.gamma = case.gamma if scale else None
    case.beta = case.beta if center else None
    assert_agrees(case)
    y, saved = forward(case)
    gradients = backward(case, saved)
    case.gamma = np.ones(5, np.float32) if case.gamma is None else case.gamma
    case.beta = np.zeros(5, np.float32) if case.beta is None else case.beta
    same_y, saved = forward(case)
    assert_same((y, *gradients), (same_y, *backward(case, saved)))


@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_saved_forward_serves_many_backward_calls(axis, renorm):
    case = make_case((6, 5, 4), axis, np.float32, renorm=renorm)
    _, saved = forward(case)
    assert_same(backward(case, saved), backward(case, saved))


def test_later_changes_of_parameters_do_not_reach_saved():
    """An optimizer may write the new gamma over the old one before it asks for gradients."""
    case = make_case((6, 5), -1, np.float64, renorm=True)
    arguments = on_target(case)
    _, saved = numbabn.batch_norm_forward(**arguments)
    expected = backward(case, saved)
    renorm = arguments["renorm"]
    for parameter in (arguments["gamma"], arguments["beta"], renorm.mean, renorm.stddev):
        write(parameter, get(parameter) + 1)
    assert_same(backward(case, saved), expected)


@pytest.mark.parametrize("mask_shape", [(6, 1, 4), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("axis", [1, [2, 0]], ids=str)
def test_backward_from_plain_arrays(axis, memory, mask_shape):
    """For adapters, which can keep arrays from the forward to the backward pass, and only those."""
    mask = np.arange(np.prod(mask_shape)).reshape(mask_shape) % 3
    case = make_case((6, 5, 4), axis, np.float64, mask=mask, renorm=True)
    case.x = dense(case.x, memory)
    _, saved = forward(case)
    dx, *gradients = backward(case, saved)
    assert get(saved.values).shape == (6, np.prod(case.parameter_shape))
    given = put(case.dy), put(case.x), saved.values
    options = {"axis": axis, "mask": put(mask), "epsilon": 1e-3}
    assert_same(backward_from_saved(*given, **options), (dx, *gradients))
    none, *alone = backward_from_saved(*given, **options, with_dx=False)
    assert none is None
    assert_same(alone, gradients)


@pytest.mark.parametrize(("shape", "axis"), [((700, 12), -1), ((2, 3, 900), 1)], ids=str)
def test_the_same_bits_on_every_run(shape, axis):
    case = masked_case(shape, axis, "elements", FLOAT32)
    runs = []
    for _ in range(3):
        y, saved = forward(case)
        runs.append([get(each).tobytes() for each in (y, saved.values, *backward(case, saved))])
    assert runs[0] == runs[1] == runs[2]
