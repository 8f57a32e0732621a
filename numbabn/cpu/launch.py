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

from . import kernels, masks, tasks, threads
from .compile import kernel
from .half import BFLOAT, HALF
from .partition import LEAST_RUN, partition

_NO_BYTES = np.zeros(0, np.uint8)

standard_deviation, scale_shift = kernels.standard_deviation, kernels.scale_shift

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
    values, scratch = plan.memory(epsilon)
    values[kernels.GAMMA] = 1.0 if gamma is None else gamma
    values[kernels.BETA] = 0.0 if beta is None else beta
    if reference is not None:
        values[kernels.REFERENCE_MEAN], values[kernels.REFERENCE_STDDEV], limits = reference
        scratch[1:4] = limits
    _run(plan, x, x, out, mask, values, scratch)
    return values[: kernels.SAVED]


def normalize(x, mean, variance, gamma, beta, epsilon, out):
    """Normalize `x` by statistics that are given, into `out`."""
    plan = plan_for(NORMALIZE, x, None)
    values, scratch = plan.memory(epsilon)
    _fill_given(values, mean, variance, gamma, beta, epsilon)
    _run(plan, x, x, out, None, values, scratch)


def _given_values(values, mean, variance, gamma, beta, epsilon):
    """The rows of `values` that `kernels.given_coefficients` reads."""
    for channel in range(values.shape[1]):
        rstd = 1.0 / standard_deviation(variance[channel], epsilon)
        scale, shift = scale_shift(
            1.0 if gamma is None else gamma[channel], 0.0 if beta is None else beta[channel],
            rstd, 1.0, 0.0,
        )  # fmt: skip
        values[kernels.MEAN, channel] = mean[channel]
        values[kernels.GAMMA, channel] = scale
        values[kernels.BETA, channel] = shift


# Compiled for the types of a call, as `tasks.run_serial` is.
_fill_given = kernel(_given_values, "given_values", parallel=False)


def backward(dy, x, saved, epsilon, mask, training, out):
    """The gradient of `x` into `out`, or nowhere if None; returns dgamma and dbeta.

    training: False where the statistics were constants, and `mask` plays no part
    """
    steps = BACKWARD if out is not None else SUMS
    plan = plan_for(steps, x, mask, kind=None if training else masks.OFF)
    values, scratch = plan.memory(epsilon)
    values[: kernels.SAVED] = saved
    if not training:
        values[kernels.COUNT] = 0.0
    _run(plan, x, dy, out, mask, values, scratch)
    return values[kernels.DGAMMA : kernels.DBETA + 1]


_renorm_corrections = kernel(kernels.renorm_corrections, "renorm_corrections", parallel=False)


def renorm_correction(mean, stddev, epsilon, reference):
    """`r` and `d`, (channels,) float64, of statistics that are (channels,) float64 as well."""
    reference_mean, reference_stddev, limits = reference
    r, d = np.empty(mean.size), np.empty(mean.size)
    _renorm_corrections(mean, stddev, reference_mean, reference_stddev, epsilon, limits, r, d)
    return r, d


class _Plan(NamedTuple):
    """All that follows from a call's shape, dtype and kind of mask."""

    steps: Any  # as `tasks.run` takes them
    words: NDArray[np.int64]  # what every step reads, see `kernels`
    values: tuple[int, int]  # the shape
    scratch: int  # the size
    bits: Any  # the integers that kernels read 16-bit floats as, otherwise None

    def memory(self, epsilon):
        """`values` and `scratch` of a call; apart, since `values` outlives it."""
        scratch = np.empty(self.scratch)
        scratch[0] = epsilon
        return np.empty(self.values), scratch


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
    masked = kind in (masks.POSITION, masks.ELEMENT)
    cut, by_rows = partition(outer, channels, inner, dtype.itemsize, masked)
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
    return _Plan(
        compiled, words, (kernels.VALUES, channels), tasks.scratch_size(cut), bits
    )


def _run(plan, x, dy, out, mask, values, scratch):
    """Run a plan's steps over its tasks, on Numba's threads where that pays."""
    if out is None:
        out = x
    if plan.bits is not None:
        x, dy, out = x.view(plan.bits), dy.view(plan.bits), out.view(plan.bits)
    on = _NO_BYTES if mask is None else mask.on.reshape(-1)
    if threads.is_parallel(x.size):
        arguments = tasks.arguments(x, dy, out, on, plan.words, values, scratch)
        with threads.launching():
            tasks.run_parallel(plan.steps, plan.words, arguments)
    else:
        tasks.run_serial(plan.steps, x, dy, out, on, plan.words, values, scratch)


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
