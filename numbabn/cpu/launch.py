"""The launchers: which steps, how many tasks, what scratch.

Arrays come in canonical form, (outer, channels, inner) over contiguous memory, and
outputs are given by the caller. `numbabn.cuda.launch` has the same names and signatures.

    x, dy, out              (outer, channels, inner) float16, bfloat16, float32 or float64
    mask                    a `layout.Mask`, or None
    gamma, beta             (channels,), or None for 1 and 0
    mean, variance          (channels,)
    reference               (mean, stddev, (rmin, rmax, dmax)), the arrays (channels,), or None
    saved                   (6, channels) float64: count, mean, variance, r, d, gamma
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import masks, tasks, threads
from . import steps as kernels
from .compile import exact, kernel
from .elements import BFLOAT, HALF
from .partition import LEAST_RUN, partition

# Read-only, as every mask is made: an operation is compiled for the types of its arrays, and
# those are then the same with a mask and without.
_NO_BYTES = np.zeros(0, np.uint8)
_NO_BYTES.flags.writeable = False

# The steps of `tasks.run`: prepare, measure, combine, apply.
STATISTICS = (None, kernels.statistics, kernels.forward_coefficients, None)
FORWARD = (None, kernels.statistics, kernels.forward_coefficients, kernels.normalize)
NORMALIZE = (kernels.given_coefficients, None, None, kernels.normalize)
SUMS = (kernels.mean_coefficients, kernels.gradient_sums, kernels.backward_coefficients, None)
BACKWARD = (*SUMS[:3], kernels.gradient)


def statistics(x, mask):
    """`saved` of `x`: count, mean and variance are its first rows."""
    return forward(x, mask, None, None, 1.0, None, None)


def forward(x, mask, gamma, beta, epsilon, reference, out):
    """Normalize `x` by its own statistics into `out`, or nowhere if None; returns `saved`."""
    plan = plan_for(FORWARD if out is not None else STATISTICS, x, mask, reference is not None)
    saved = np.empty((kernels.SAVED, x.shape[1]))
    _launch(_forward, plan, x, x, out, mask, epsilon, gamma, beta, reference, saved)
    return saved


def normalize(x, mean, variance, gamma, beta, epsilon, out):
    """Normalize `x` by statistics that are given, into `out`."""
    plan = plan_for(NORMALIZE, x, None)
    _launch(_normalize, plan, x, x, out, None, epsilon, mean, variance, gamma, beta)


def backward(dy, x, saved, epsilon, mask, training, out):
    """The gradient of `x` into `out`, or nowhere if None; returns dgamma and dbeta.

    training: False where the statistics were constants, and `mask` plays no part
    """
    steps = BACKWARD if out is not None else SUMS
    plan = plan_for(steps, x, mask, kind=None if training else masks.OFF)
    found = np.empty((2, x.shape[1]), plan.gradients)
    _launch(_backward, plan, x, dy, out, mask, epsilon, saved, training, found)
    return found[0], found[1]


_renorm_corrections = kernel(kernels.renorm_corrections, "renorm_corrections", parallel=False)


def renorm_correction(mean, stddev, epsilon, reference):
    """`r` and `d`, (channels,) float64, of statistics that are (channels,) float64 as well."""
    reference_mean, reference_stddev, limits = reference
    r, d = np.empty(mean.size), np.empty(mean.size)
    _renorm_corrections(mean, stddev, reference_mean, reference_stddev, epsilon, limits, r, d)
    return r, d


def _fill_row(row, given, default):
    for channel in range(row.size):
        row[channel] = default if given is None else given[channel]


def _copy_rows(source, first, target, rows):
    for row in range(rows):
        for channel in range(target.shape[1]):
            target[row, channel] = source[first + row, channel]


# Loops: Numba takes longer to compile assignments of slices than all the rest of an operation.
fill = kernel(_fill_row, "fill", parallel=False)
copy_rows = kernel(_copy_rows, "copy_rows", parallel=False)
memory, run = tasks.memory, tasks.run_parallel
# What these are in an operation that is compiled.
_COMPILED = {
    "fill": exact(_fill_row),
    "copy_rows": exact(_copy_rows),
    "memory": exact(tasks.memory),
    "run": tasks.run_serial,
}


class _Operation:
    """A function compiled whole, serial; and as it is, to run its steps on Numba's threads.

    Small work is over as soon as a call from Python to compiled code: so that is one call.
    """

    def __init__(self, function):
        name = function.__name__.removeprefix("_")
        self.threaded = function
        self.serial = kernel(function, name, parallel=False, **_COMPILED)


@_Operation
def _forward(steps, words, x, dy, out, on, epsilon, gamma, beta, reference, saved):
    values, scratch = memory(words)
    scratch[0] = epsilon
    fill(values[kernels.GAMMA], gamma, 1.0)
    fill(values[kernels.BETA], beta, 0.0)
    if reference is not None:
        mean, stddev, limits = reference
        fill(values[kernels.REFERENCE_MEAN], mean, 0.0)
        fill(values[kernels.REFERENCE_STDDEV], stddev, 0.0)
        scratch[1], scratch[2], scratch[3] = limits
    run(steps, x, dy, out, on, words, values, scratch)
    copy_rows(values, 0, saved, kernels.SAVED)


@_Operation
def _normalize(steps, words, x, dy, out, on, epsilon, mean, variance, gamma, beta):
    values, scratch = memory(words)
    scratch[0] = epsilon
    fill(values[kernels.MEAN], mean, 0.0)
    fill(values[kernels.VARIANCE], variance, 0.0)
    fill(values[kernels.GAMMA], gamma, 1.0)
    fill(values[kernels.BETA], beta, 0.0)
    run(steps, x, dy, out, on, words, values, scratch)


@_Operation
def _backward(steps, words, x, dy, out, on, epsilon, saved, training, found):
    values, scratch = memory(words)
    scratch[0] = epsilon
    copy_rows(saved, 0, values, kernels.SAVED)
    if not training:
        fill(values[kernels.COUNT], None, 0.0)
    run(steps, x, dy, out, on, words, values, scratch)
    copy_rows(values, kernels.DGAMMA, found, 2)


def _launch(operation, plan, x, dy, out, mask, *arguments):
    """Call an operation, on Numba's threads where that pays."""
    if out is None:
        out = x
    if plan.bits is not None:
        x, dy, out = x.view(plan.bits), dy.view(plan.bits), out.view(plan.bits)
    on = _NO_BYTES
    if mask is not None:
        on = mask.on.reshape(-1)
        on.flags.writeable = False
    call = operation.threaded if threads.is_parallel(x.size) else operation.serial
    call(plan.steps, plan.words, x, dy, out, on, *arguments)


class _Plan(NamedTuple):
    """All that follows from a call's shape, dtype and kind of mask."""

    steps: Any  # as `tasks.run` takes them
    words: NDArray[np.int64]  # what every step reads, see `steps`
    bits: Any  # the integers that kernels read 16-bit floats as, otherwise None
    gradients: np.dtype[Any]  # of gamma and beta


def plan_for(steps, x, mask, renorm=False, kind=None):
    if kind is None:
        kind = _kind(mask, x.shape[2])
    if kind == masks.ELEMENT:
        # Its words hold the mask's own steps: such a plan serves once.
        return _plan.__wrapped__(steps, x.shape, x.dtype, renorm, kind, mask)
    return _plan(steps, x.shape, x.dtype, renorm, kind, None)


def _kind(mask, inner):
    if mask is None:
        return masks.NONE
    # Rows that hold several neighbouring positions need a mask of their columns.
    shared = 1 < inner < LEAST_RUN
    return masks.POSITION if mask.axes is None and not shared else masks.ELEMENT


@lru_cache(maxsize=4096)
def _plan(steps, shape, dtype, renorm, kind, mask):
    outer, channels, inner = shape
    cut, by_rows = partition(outer, channels, inner, dtype.itemsize, can_fold=kind != masks.ELEMENT)
    if kind == masks.ELEMENT:
        words = _element_words(cut, by_rows, inner, renorm, mask)
    else:
        mask_bytes = outer * inner if kind == masks.POSITION else 0
        head = (*cut, kernels.WORDS, inner, renorm, kind, mask_bytes, 0, 0)
        words = np.array(head, np.int64)
    compiled = tasks.load(steps, dtype.name, by_rows, inner)
    bits = None
    if dtype.itemsize == 2:
        bits = HALF if dtype == np.float16 else BFLOAT
    gradients = dtype if dtype == np.float64 else np.dtype(np.float32)
    return _Plan(compiled, words, bits, gradients)


def _element_words(cut, by_rows, inner, renorm, mask):
    """The words of a plan for an ELEMENT mask: its steps through memory follow the others."""
    if mask.axes is None:
        # One byte a position, seen from rows that hold several neighbouring positions.
        axes = (([cut.rows], [inner]), ([cut.channels], [0]), ([inner], [1]))
    else:
        axes = mask.axes
    outer_axes, channel_axes, inner_axes = axes
    columns = _offsets(*channel_axes)
    if by_rows:
        columns = (columns[:, None] + _offsets(*inner_axes)).reshape(-1)
        inner_axes = ([], [])
    tables = [np.array(axes, np.int64).reshape(-1) for axes in (outer_axes, inner_axes)]
    length = kernels.WORDS + tables[0].size + tables[1].size + columns.size
    head = (
        *cut, length, inner, renorm, masks.ELEMENT, mask.on.size,
        len(outer_axes[0]), len(inner_axes[0]),
    )  # fmt: skip
    return np.concatenate((np.array(head, np.int64), *tables, columns))


def _offsets(sizes, strides):
    """Where each element of a group of axes is, as steps from the group's first."""
    steps = np.zeros(1, np.int64)
    for size, stride in zip(sizes, strides, strict=True):
        steps = (steps[:, None] + np.arange(size) * stride).reshape(-1)
    return steps
