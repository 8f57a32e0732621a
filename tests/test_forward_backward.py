import importlib.util
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbabn
import reference
from arrays import (
    DTYPES,
    assert_close,
    assert_results,
    backwards,
    cases,
    dense,
    make_case,
    read_only,
    same_memory_order,
    strided,
    unaligned,
)
from numbabn.functional import backward_from_saved


def forward(case, **options):
    renorm = None if case.renorm is None else numbabn.Renorm(*case.renorm)
    return numbabn.batch_norm_forward(
        case.x,
        case.gamma,
        case.beta,
        axis=case.axis,
        mask=case.mask,
        renorm=renorm,
        **options,
    )


def assert_agrees(case):
    """Every result of a forward and a backward call is the oracle's, and no argument changed."""
    before = [case.x.copy(), case.dy.copy()]
    y, saved = forward(case)
    dx, dgamma, dbeta = numbabn.batch_norm_backward(case.dy, case.x, saved)
    for was, now in zip(before, (case.x, case.dy), strict=True):
        np.testing.assert_array_equal(was, now)
    assert_results(
        case,
        y=y,
        statistics=saved.statistics,
        r=saved.r,
        d=saved.d,
        dx=dx,
        dgamma=dgamma,
        dbeta=dbeta,
    )


@given(cases())
def test_every_result_agrees_with_the_oracle(case):
    assert_agrees(case)


# (shape, axis), with the reason for each; without the JIT only the small ones
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
    pytest.param((6, 40), 0, id="channels outermost"),
    pytest.param((2, 3, 4, 5), [1, 3], id="channel axes apart"),
    pytest.param((2, 3, 4, 5), [2, 1], id="channel axes together, in the middle"),
    pytest.param((2, 3, 4, 5), [-1, -2], id="channel axes together, at the end"),
    pytest.param((2, 3, 4, 5), [0, 1, 3], id="three channel axes"),
    pytest.param((2, 1, 3, 2, 1, 2, 2, 3), [1, 3, 6], id="rank eight"),
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


def large_case(shape, axis, mask, dtype):
    channels = reference.channel_axes(len(shape), axis)
    mask_shape = {
        "positions": tuple(1 if a in channels else length for a, length in enumerate(shape)),
        "elements": shape,
        "broadcast": (1, *shape[1:]),
    }.get(mask)
    on = None if mask_shape is None else np.random.default_rng(3).random(mask_shape) < 0.8
    return make_case(shape, axis, dtype, renorm=True, offset=1.0, mask=on, zeros=0.1)


@pytest.mark.jit
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "positions", "elements", "broadcast"])
@pytest.mark.parametrize(("shape", "axis"), LARGE_LAYOUTS)
def test_large_shapes(shape, axis, mask, dtype):
    assert_agrees(large_case(shape, axis, mask, dtype))


@pytest.mark.jit
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "positions", "elements"])
@pytest.mark.parametrize(("shape", "axis"), LARGE_LAYOUTS)
def test_large_shapes_in_place(shape, axis, mask, dtype):
    """The same bits as with an output apart: no element is read after it was written."""
    case = large_case(shape, axis, mask, dtype)
    _, saved = forward(case)
    expected = numbabn.batch_norm_backward(case.dy, case.x, saved)
    for over in ("dy", "x"):
        arrays = {"dy": case.dy.copy(), "x": case.x.copy()}
        result = numbabn.batch_norm_backward(**arrays, saved=saved, out=arrays[over])
        for actual, wanted in zip(result, expected, strict=True):
            assert actual.tobytes() == wanted.tobytes()
    mean, stddev, _ = case.renorm
    y = numbabn.normalize(case.x, mean, stddev, case.gamma, case.beta, axis=axis)
    x = case.x.copy()
    numbabn.normalize(x, mean, stddev, case.gamma, case.beta, axis=axis, out=x)
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask_shape", [(40, 6), (40, 1, 7), (40, 6, 7), (1, 6, 1), (1, 6, 7)])
@pytest.mark.parametrize("axis", [1, -1])
def test_mask_forms(mask_shape, axis, dtype):
    mask = np.random.default_rng(5).random(mask_shape) < 0.5
    assert_agrees(make_case((40, 6, 7), axis, dtype, mask=mask, renorm=True))


@pytest.mark.parametrize("mask", ["none", "positions", "elements"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((600, 3), -1), ((1, 2, 5000), 1), ((260, 2, 17), 1)], ids=str
)
def test_shapes_of_several_blocks(shape, axis, mask):
    """Few elements, but more than are summed at once; small enough for plain Python.

    In float64, because plain Python adds up a run term by term, where compiled code has many
    lanes: thousands of float32 terms in one would show.
    """
    assert_agrees(large_case(shape, axis, mask, np.float64))


@pytest.mark.parametrize("mask", ["none", "positions", "elements"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((600, 5), -1), ((2100, 1), -1), ((12, 1, 500), 1), ((9, 3, 40), 1)]
)
def test_shapes_of_several_tasks(shape, axis, mask, cut):
    """Tasks of so few elements that small arrays are cut into several."""
    cut(TASK_ELEMENTS=64)
    assert_agrees(large_case(shape, axis, mask, np.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_results_have_the_memory_order_of_x(axis, memory, dtype):
    case = make_case((4, 3, 5), axis, dtype)
    plain, saved = forward(case)
    plain_dx, _, _ = numbabn.batch_norm_backward(case.dy, case.x, saved)
    case.x = dense(case.x, memory)
    y, saved = forward(case)
    dx, _, _ = numbabn.batch_norm_backward(case.dy, case.x, saved)
    assert same_memory_order(y, case.x)
    assert same_memory_order(dx, case.x)
    # Another order of summation, so close, but not the same bits.
    assert_close(y, plain.astype(np.float64), scale=4)
    assert_close(dx, plain_dx.astype(np.float64), scale=4)


@pytest.mark.parametrize("view", [strided, backwards, read_only, unaligned, np.asfortranarray])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views(view, dtype):
    case = make_case((6, 5, 4), 1, dtype, renorm=True)
    case.x, case.dy = view(case.x), view(case.dy)
    case.gamma, case.beta = view(case.gamma), view(case.beta)
    case.renorm = (view(case.renorm[0]), view(case.renorm[1]), case.renorm[2])
    assert_agrees(case)


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
    wanted_dx, *wanted = numbabn.batch_norm_backward(case.dy, case.x, saved)
    y, dx = np.full_like(case.x, 7), np.full_like(case.x, 7)
    given_y, saved = forward(case, out=y)
    given_dx, *given_sums = numbabn.batch_norm_backward(case.dy, case.x, saved, out=dx)
    assert given_y is y
    assert given_dx is dx
    np.testing.assert_array_equal(y, wanted_y)
    np.testing.assert_array_equal(dx, wanted_dx)
    np.testing.assert_array_equal(given_sums, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("over", ["dy", "x"])
@pytest.mark.parametrize(
    ("order_of_x", "order_of_dy"),
    [(np.array, np.array), (np.asfortranarray, np.array), (strided, backwards)],
    ids=["C, C", "F, C", "strided, backwards"],
)
def test_dx_over_its_inputs(order_of_x, order_of_dy, over, axis, dtype):
    case = make_case((6, 5, 4), axis, dtype, mask=np.arange(24).reshape(6, 1, 4) % 3)
    case.x, case.dy = order_of_x(case.x), order_of_dy(case.dy)
    _, saved = forward(case)
    expected = numbabn.batch_norm_backward(case.dy, case.x, saved)
    out = getattr(case, over)
    result = numbabn.batch_norm_backward(case.dy, case.x, saved, out=out)
    assert result[0] is out
    for actual, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("mask_shape", [None, (6, 1, 4), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("axis", [1, [0, 2]], ids=str)
def test_backward_takes_x_in_another_memory_order_than_forward(axis, mask_shape):
    """A caller may keep a contiguous copy of a permuted view for the backward pass."""
    mask = None if mask_shape is None else np.arange(np.prod(mask_shape)).reshape(mask_shape) % 3
    case = make_case((6, 5, 4), axis, np.float64, mask=mask, renorm=True)
    _, saved = forward(case)
    expected = numbabn.batch_norm_backward(case.dy, case.x, saved)
    x = dense(case.x, (2, 0, 1))
    result = numbabn.batch_norm_backward(case.dy, x, saved)
    assert same_memory_order(result[0], x)
    for actual, wanted in zip(result, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-12)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_missing_gamma_is_one_and_missing_beta_zero(scale, center):
    case = make_case((6, 5), -1, np.float32, renorm=True)
    case.gamma = case.gamma if scale else None
    case.beta = case.beta if center else None
    assert_agrees(case)
    y, saved = forward(case)
    gradients = numbabn.batch_norm_backward(case.dy, case.x, saved)
    case.gamma = np.ones(5, np.float32) if case.gamma is None else case.gamma
    case.beta = np.zeros(5, np.float32) if case.beta is None else case.beta
    same_y, saved = forward(case)
    np.testing.assert_array_equal(y, same_y)
    for one, other in zip(
        gradients, numbabn.batch_norm_backward(case.dy, case.x, saved), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_saved_forward_serves_many_backward_calls(axis, renorm):
    case = make_case((6, 5, 4), axis, np.float32, renorm=renorm)
    _, saved = forward(case)
    first = numbabn.batch_norm_backward(case.dy, case.x, saved)
    second = numbabn.batch_norm_backward(case.dy, case.x, saved)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_later_changes_of_parameters_do_not_reach_saved():
    """An optimizer may write the new gamma over the old one before it asks for gradients."""
    case = make_case((6, 5), -1, np.float64, renorm=True)
    _, saved = forward(case)
    expected = numbabn.batch_norm_backward(case.dy, case.x, saved)
    for parameter in (case.gamma, case.beta, *case.renorm[:2]):
        parameter += 1
    result = numbabn.batch_norm_backward(case.dy, case.x, saved)
    for actual, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("axis", [1, [2, 0]], ids=str)
def test_backward_from_plain_arrays(axis, memory):
    """For adapters, which can keep arrays from the forward to the backward pass, and only those."""
    mask = np.arange(24).reshape(6, 1, 4) % 3
    case = make_case((6, 5, 4), axis, np.float64, mask=mask, renorm=True)
    case.x = dense(case.x, memory)
    _, saved = forward(case)
    expected = numbabn.batch_norm_backward(case.dy, case.x, saved)
    result = backward_from_saved(case.dy, case.x, saved.values, axis=axis, mask=mask, epsilon=1e-3)
    for actual, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize(
    ("values", "came"),
    [
        (np.zeros((6, 4)), "float64 of shape (6, 4)"),
        (np.zeros((6, 5), "f4"), "float32 of shape (6, 5)"),
    ],
    ids=["shape", "dtype"],
)
def test_plain_arrays_that_no_forward_saved(values, came):
    x = np.ones((3, 5))
    message = f"values must be what a forward pass saved, float64 of shape (6, 5), got {came}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        backward_from_saved(x, x, values, axis=-1, mask=None, epsilon=1e-3)


# Invariants


@given(st.integers(0, 2**32 - 1), st.sampled_from([(12, 5, 3), (40, 3)]))
def test_output_has_zero_mean_and_unit_variance(seed, shape):
    case = make_case(shape, 1, np.float64, seed=seed, offset=5.0, affine=False)
    y, _ = numbabn.batch_norm_forward(case.x, axis=1, epsilon=1e-14)
    batch = reference.statistics(y, axis=1)
    np.testing.assert_allclose(batch.mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(batch.variance, 1.0, rtol=1e-11)


@given(st.integers(0, 2**32 - 1))
def test_permuting_the_batch_permutes_the_output(seed):
    case = make_case((9, 3, 4), 1, np.float64, seed=seed)
    order = np.random.default_rng(seed).permutation(9)
    y, saved = numbabn.batch_norm_forward(case.x, axis=1)
    dx, *sums = numbabn.batch_norm_backward(case.dy, case.x, saved)
    permuted_y, saved = numbabn.batch_norm_forward(case.x[order], axis=1)
    permuted_dx, *permuted_sums = numbabn.batch_norm_backward(case.dy[order], case.x[order], saved)
    np.testing.assert_allclose(permuted_y, y[order], atol=1e-13)
    np.testing.assert_allclose(permuted_dx, dx[order], atol=1e-13)
    np.testing.assert_allclose(permuted_sums, sums, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(-100, 100))
def test_shifting_the_input_changes_nothing(seed, shift):
    case = make_case((9, 3, 4), 1, np.float64, seed=seed)
    y, _ = numbabn.batch_norm_forward(case.x, axis=1)
    shifted, _ = numbabn.batch_norm_forward(case.x + shift, axis=1)
    np.testing.assert_allclose(shifted, y, atol=1e-11)


@given(st.integers(0, 2**32 - 1))
def test_the_gradient_is_orthogonal_to_shifts_and_nearly_to_scaling(seed):
    """Without a mask y does not change with a shift of x: the sum of dx is zero. With epsilon
    near zero neither does it change with a scale: the sum of dx * xhat is zero.
    """
    case = make_case((9, 3, 4), 1, np.float64, seed=seed)
    y, saved = numbabn.batch_norm_forward(case.x, axis=1, epsilon=1e-14)
    dx, _, _ = numbabn.batch_norm_backward(case.dy, case.x, saved)
    np.testing.assert_allclose(reference.channel_sums(dx, 1), 0.0, atol=1e-12)
    np.testing.assert_allclose(reference.channel_sums(dx * y, 1), 0.0, atol=1e-11)


@given(cases())
def test_masked_out_positions_change_no_statistic_but_are_normalized(case):
    y, saved = forward(case)
    assert y.shape == case.x.shape
    on = reference.mask_on(case.mask, case.x.shape)
    case.x = case.x.copy(order="K")  # the same memory order, for the same bits
    case.x[~on] = 123
    other_y, other_saved = forward(case)
    np.testing.assert_array_equal(saved.statistics.mean, other_saved.statistics.mean)
    np.testing.assert_array_equal(saved.statistics.variance, other_saved.statistics.variance)
    np.testing.assert_array_equal(y[on], other_y[on])


# An outside witness

torch_witness = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed (the test environment for Python 3.11 has it)",
)


@torch_witness
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
def test_torch_autograd_gives_the_same_gradients(masked, renorm):
    """The forward formula in torch, differentiated by torch, with r and d detached."""
    import torch

    mask = np.random.default_rng(2).random((8, 1, 5)) < 0.6 if masked else None
    case = make_case((8, 3, 5), 1, np.float64, renorm=renorm, mask=mask)
    y, saved = forward(case)
    results = (y, *numbabn.batch_norm_backward(case.dy, case.x, saved))

    x, gamma, beta = (
        torch.tensor(each, requires_grad=True)
        for each in (case.x, case.gamma[:, None], case.beta[:, None])
    )
    on = torch.tensor(reference.mask_on(mask, case.x.shape).copy())
    n = on.sum((0, 2), keepdim=True)
    mean = torch.where(on, x, 0.0).sum((0, 2), keepdim=True) / n
    variance = torch.where(on, (x - mean) ** 2, 0.0).sum((0, 2), keepdim=True) / n
    stddev = torch.sqrt(variance + 1e-3)
    r, d = 1.0, 0.0
    if renorm:
        m_ref, s_ref = (torch.tensor(each[:, None]) for each in case.renorm[:2])
        limits = case.renorm[2]
        r = (stddev / s_ref).clip(limits["rmin"], limits["rmax"]).detach()
        d = ((mean - m_ref) / s_ref).clip(-limits["dmax"], limits["dmax"]).detach()
    witness = gamma * ((x - mean) / stddev * r + d) + beta
    witness.backward(torch.tensor(case.dy))
    expected = (witness, x.grad, gamma.grad[:, 0], beta.grad[:, 0])
    for actual, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(actual, wanted.detach().numpy(), rtol=1e-11, atol=1e-12)


@torch_witness
def test_torch_batch_norm_gives_the_same():
    import torch

    case = make_case((8, 3, 5), 1, np.float32)
    y, saved = forward(case)
    results = (y, *numbabn.batch_norm_backward(case.dy, case.x, saved))
    x, gamma, beta = (
        torch.tensor(each, requires_grad=True) for each in (case.x, case.gamma, case.beta)
    )
    witness = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-3)
    witness.backward(torch.tensor(case.dy))
    for actual, wanted in zip(results, (witness, x.grad, gamma.grad, beta.grad), strict=True):
        # Both sides are rounded to float32, of terms up to 10.
        np.testing.assert_allclose(actual, wanted.detach().numpy(), rtol=1e-5, atol=1e-5)
