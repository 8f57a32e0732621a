"""The launchers: which steps, how many tasks, what scratch.

INTERFACE

    mask_of(on, layout)                 a mask as this target's kernels read it
    statistics(x, mask, saved)          count, mean and variance
    forward(x, mask, parameters, epsilon, reference, moving, out, saved)
                                        normalize by the batch's own statistics, and move `moving`
    forward_given(x, statistics, parameters, epsilon, reference, moving, out, saved)
                                        the same of a part of a batch, by those of the whole
    normalize(x, mean, variance, parameters, epsilon, out)
                                        normalize by statistics that are given
    constants(mean, variance, gamma, saved)
                                        what a forward would save whose statistics these are
    backward(dy, x, saved, mask, epsilon, training, out, gradients)
                                        the gradient of a forward, or of `normalize`
    gradient_sums(dy, x, saved, epsilon, sums, gradients)
                                        what the gradient of `x` takes of a part of a batch
    gradient(dy, x, saved, mask, epsilon, sums, out, gradients)
                                        the gradients of a part of a batch, by those of the whole
    renorm_correction(mean, variance, reference, epsilon, corrections)
    merge_statistics(one, other, merged)
    copy(source, target)                target[...] = source
    mark(source, target)                target[...] = source != 0, in bytes

Arrays are in canonical form and contiguous, what is filled is given by the caller, and None is
what is not there, or not wanted.

    x, dy, out              (outer, channels, inner) float16, bfloat16, float32 or float64
    on                      bool or uint8, of x's rank as the caller has it; each size x's, or 1
    mask                    what `mask_of` gave
    parameters              `Parameters`: gamma and beta, (channels,)
    mean, variance, gamma   (channels,)
    statistics              count, mean and variance, each (channels,) float64
    reference               a `Reference`: what renorm corrects against
    moving                  a `Moving`: statistics, and where they go once moved
    saved                   (SAVED, channels) float64: count, mean, variance, r, d, gamma
    gradients               (GRADIENTS, channels) float32, or float64 where x is: dgamma, dbeta
    sums                    (SUMS, channels) float64: Σ dy, Σ dy · x̂
    training                False where the statistics were constants: `mask` plays no part, and
                            without `gradients` neither does x
    corrections             (2, n) float64: r and d of n channels
    one, other              (count, mean, variance), each (n,)
    merged                  (3, n) float64: the same of both together
    source, target          of one shape

END OF INTERFACE

What belongs to channels is float32 or float64 and writable besides, since an operation is compiled
for the types of its arrays.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import channels, formulas
from ..channels import Parameters
from . import masks, pool, steps, tasks, threads, work
from .compile import exact, kernel
from .elements import BFLOAT, HALF
from .masks import mask_of as mask_of
from .partition import LEAST_RUN, partition
from .work import Call, places

# Read-only, as every mask is made: an operation is compiled for the types of its arrays, and
# those are then the same with a mask and without.
_NO_BYTES = np.zeros(0, np.uint8)
_NO_BYTES.flags.writeable = False

# The steps of `tasks.run`: prepare, measure, combine, apply.
STATISTICS = (None, steps.statistics, steps.forward_coefficients, None)
FORWARD = (*STATISTICS[:3], steps.normalize)
COEFFICIENTS = (steps.given_coefficients, None, None, None)
NORMALIZE = (*COEFFICIENTS[:3], steps.normalize)
SUMS = (steps.mean_coefficients, steps.gradient_sums, steps.backward_coefficients, None)
BACKWARD = (*SUMS[:3], steps.gradient)
GRADIENT = (steps.given_sums, None, None, steps.gradient)


def statistics(x, mask, saved):
    """Fill `saved`, whose first rows are count, mean and variance."""
    forward(x, mask, Parameters(None, None), 1.0, None, None, None, saved)


def forward(x, mask, parameters, epsilon, reference, moving, out, saved):
    """Normalize `x` by its own statistics into `out`; fills `saved`, and moves `moving`."""
    steps = STATISTICS if out is None else FORWARD
    kind, against = _against(reference)
    plan = plan_for(steps, x, mask, kind)
    gamma, beta = parameters
    _launch(
        _forward, plan, x, x, out, mask, epsilon,
        plan.absent if gamma is None else gamma, plan.absent if beta is None else beta,
        against, saved,
    )  # fmt: skip
    if moving is not None:
        _move(moving, saved, epsilon)


def forward_given(x, statistics, parameters, epsilon, reference, moving, out, saved):
    """Normalize `x` by the statistics of the batch that it is a part of, as `forward` does."""
    saved[channels.COUNT], saved[channels.MEAN], saved[channels.VARIANCE] = statistics
    kind, against = _against(reference)
    plan = plan_for(COEFFICIENTS if out is None else NORMALIZE, x, None, kind)
    gamma, beta = parameters
    _launch(
        _forward, plan, x, x, out, None, epsilon,
        plan.absent if gamma is None else gamma, plan.absent if beta is None else beta,
        against, saved,
    )  # fmt: skip
    if moving is not None:
        _move(moving, saved, epsilon)


def _against(reference):
    """The kind of a reference, and what compiled code takes of it."""
    if reference is None:
        return work.NO_REFERENCE, None
    mean, spread, is_variance, limits = reference
    return reference_kind(is_variance), (mean, spread, limits)


def normalize(x, mean, variance, parameters, epsilon, out):
    """Normalize `x` by statistics that are given, into `out`."""
    plan = plan_for(NORMALIZE, x, None)
    gamma, beta = parameters
    _launch(
        _normalize, plan, x, x, out, None, epsilon, mean, variance,
        plan.absent if gamma is None else gamma, plan.absent if beta is None else beta,
    )  # fmt: skip


def constants(mean, variance, gamma, saved):
    """Fill `saved` as a forward would have whose statistics are these, and no renorm."""
    saved[channels.COUNT] = saved[channels.D] = 0.0
    saved[channels.MEAN], saved[channels.VARIANCE], saved[channels.R] = mean, variance, 1.0
    saved[channels.GAMMA] = 1.0 if gamma is None else gamma


def backward(dy, x, saved, mask, epsilon, training, out, gradients):
    """The gradient of `x` into `out`; fills `gradients`.

    training: False where the statistics were constants, and `mask` plays no part
    """
    steps = backward_steps(training, out is not None, gradients is not None)
    if steps is NORMALIZE:
        x, saved = dy, saved.copy()
        saved[channels.MEAN] = 0.0
    plan = plan_for(steps, x, mask, kind=None if training else masks.OFF)
    if gradients is None:
        gradients = plan.absent.reshape(channels.GRADIENTS, 0)
    _launch(_backward, plan, x, dy, out, mask, epsilon, _kept(saved), training, gradients)


def gradient_sums(dy, x, saved, epsilon, sums, gradients):
    """Fill `sums` with Σ dy and Σ dy · x̂; fills `gradients`."""
    plan = plan_for(SUMS, x, None)
    _launch(_gradient_sums, plan, x, dy, None, None, epsilon, _kept(saved), sums, gradients)


def gradient(dy, x, saved, mask, epsilon, sums, out, gradients):
    """The gradient of `x` into `out`, by sums over the batch that it is a part of.

    Fills `gradients`, those of the batch.
    """
    plan = plan_for(GRADIENT, x, mask)
    _launch(_gradient, plan, x, dy, out, mask, epsilon, _kept(saved), _kept(sums), gradients)


def _kept(table):
    """A table read-only, as what was kept is: the types of a call's arrays are then the same."""
    if table.flags.writeable:
        table = table.view()
        table.flags.writeable = False
    return table


def backward_steps(training, with_dx, with_gradients):
    """The steps of a backward, by what is wanted of it."""
    if not with_dx:
        return SUMS
    # dx = gamma · rstd · dy of constant statistics: dy normalized, its mean 0, by the variance.
    # No sum over the batch, and x is not read.
    return BACKWARD if training or with_gradients else NORMALIZE


_renorm_corrections = kernel(steps.renorm_corrections, "renorm_corrections", parallel=False)


def renorm_correction(mean, variance, reference, epsilon, corrections):
    """Fill `corrections`, (2, n) float64, with `r` and `d` of statistics that are (n,)."""
    _renorm_corrections(mean, variance, *reference, epsilon, corrections)


def merge_statistics(one, other, merged):
    """Fill `merged`, (3, n) float64, from two counts, means and variances."""
    (count_a, mean_a, variance_a), (count_b, mean_b, variance_b) = one, other
    count, mean, m2 = formulas.merge(
        count_a, mean_a, variance_a * count_a, count_b, mean_b, variance_b * count_b
    )
    merged[...] = count, mean, formulas.variance_of(count, m2)


def copy(source, target):
    """target[...] = source"""
    target[...] = source


def mark(source, target):
    """target[...] = (source != 0), as uint8"""
    target[...] = source != 0


def _move_rows(moving, moved, saved, epsilon, momentum, renorm_momentum, skip_nonfinite):
    """Move statistics that are arrays, by way of a table; `moving` and `moved` are tuples."""
    table = np.empty((len(moving), saved.shape[1]))
    for row in range(len(moving)):
        for channel in range(saved.shape[1]):
            table[row, channel] = moving[row][channel]
    move_statistics(table, saved, epsilon, momentum, renorm_momentum, skip_nonfinite)
    for row in range(len(moving)):
        for channel in range(saved.shape[1]):
            moved[row][channel] = table[row, channel]


move_statistics = steps.move_statistics
_moved_rows = kernel(
    _move_rows, "move_rows", parallel=False, move_statistics=exact(steps.move_statistics)
)


def _move(moving, saved, epsilon):
    statistics, moved, momentum, renorm_momentum, skip_nonfinite = moving
    _moved_rows(statistics, moved, saved, epsilon, momentum, renorm_momentum or 0.0, skip_nonfinite)


# `per_channel`, in the scratch of a call: `places` has it after the numbers, whatever the cut.
_PER_CHANNEL = work.NUMBERS


def _fill(scratch, row, channels, given, default):
    """Fill a row of `per_channel`."""
    start = _PER_CHANNEL + row * channels
    for channel in range(channels):
        scratch[start + channel] = default if given.size == 0 else given[channel]


def _fill_rows(scratch, first, table):
    """Fill rows of `per_channel`, from `first` on."""
    for row in range(table.shape[0]):
        for channel in range(table.shape[1]):
            start = _PER_CHANNEL + (first + row) * table.shape[1]
            scratch[start + channel] = table[row, channel]


def _give(scratch, first, target):
    """Give rows of `per_channel`, from `first` on."""
    for row in range(target.shape[0]):
        for channel in range(target.shape[1]):
            start = _PER_CHANNEL + (first + row) * target.shape[1]
            target[row, channel] = scratch[start + channel]


# Loops: Numba takes longer to compile assignments of slices than all the rest of an operation.
fill = kernel(_fill, "fill", parallel=False)
fill_rows = kernel(_fill_rows, "fill_rows", parallel=False)
give = kernel(_give, "give", parallel=False)
memory, run = tasks.memory, tasks.run_parallel
# What these are in an operation that is compiled.
_COMPILED = {
    "fill": exact(_fill),
    "fill_rows": exact(_fill_rows),
    "give": exact(_give),
    "memory": exact(tasks.memory),
    "run": pool.run,
}


class _Operation:
    """A function compiled whole, and as it is, to run its steps on Numba's threads.

    Small work is over as soon as a call from Python to compiled code: so that is one call. Its
    arguments are plain: a NamedTuple takes longer to hand over than all of its arrays do.
    """

    def __init__(self, function):
        name = function.__name__.removeprefix("_")
        self.on_numba = function
        self.compiled = kernel(function, name, parallel=False, **_COMPILED)


@_Operation
def _forward(threads, steps, words, x, dy, out, on, epsilon, gamma, beta, reference, saved):
    scratch = memory(words)
    scratch[0] = epsilon
    if not steps[1]:
        # Nothing is measured: the statistics are given.
        fill_rows(scratch, 0, saved)
    fill(scratch, channels.GAMMA, saved.shape[1], gamma, 1.0)
    fill(scratch, work.BETA, saved.shape[1], beta, 0.0)
    if reference is not None:
        mean, spread, limits = reference
        scratch[1], scratch[2], scratch[3] = limits
        fill(scratch, work.REFERENCE_MEAN, saved.shape[1], mean, 0.0)
        fill(scratch, work.REFERENCE_SPREAD, saved.shape[1], spread, 0.0)
    run(steps, x, dy, out, on, words, scratch, threads)
    give(scratch, 0, saved)


@_Operation
def _normalize(threads, steps, words, x, dy, out, on, epsilon, mean, variance, gamma, beta):
    scratch = memory(words)
    scratch[0] = epsilon
    fill(scratch, channels.MEAN, x.shape[1], mean, 0.0)
    fill(scratch, channels.VARIANCE, x.shape[1], variance, 0.0)
    fill(scratch, channels.GAMMA, x.shape[1], gamma, 1.0)
    fill(scratch, work.BETA, x.shape[1], beta, 0.0)
    run(steps, x, dy, out, on, words, scratch, threads)


@_Operation
def _backward(threads, steps, words, x, dy, out, on, epsilon, saved, training, gradients):
    scratch = memory(words)
    scratch[0] = epsilon
    fill_rows(scratch, 0, saved)
    nothing = saved[0, :0]
    fill(scratch, work.BETA, saved.shape[1], nothing, 0.0)
    if not training:
        fill(scratch, channels.COUNT, saved.shape[1], nothing, 0.0)
    run(steps, x, dy, out, on, words, scratch, threads)
    give(scratch, work.DGAMMA, gradients)


@_Operation
def _gradient_sums(threads, steps, words, x, dy, out, on, epsilon, saved, sums, gradients):
    scratch = memory(words)
    scratch[0] = epsilon
    fill_rows(scratch, 0, saved)
    run(steps, x, dy, out, on, words, scratch, threads)
    give(scratch, work.SUM_DY, sums)
    give(scratch, work.DGAMMA, gradients)


@_Operation
def _gradient(threads, steps, words, x, dy, out, on, epsilon, saved, sums, gradients):
    scratch = memory(words)
    scratch[0] = epsilon
    fill_rows(scratch, 0, saved)
    fill_rows(scratch, work.SUM_DY, sums)
    run(steps, x, dy, out, on, words, scratch, threads)
    give(scratch, work.DGAMMA, gradients)


def _launch(operation, plan, x, dy, out, mask, *arguments):
    """Call an operation, on several threads where that pays."""
    if out is None:
        out = x
    if plan.bits is not None:
        x, dy, out = x.view(plan.bits), dy.view(plan.bits), out.view(plan.bits)
    on = _NO_BYTES
    if mask is not None:
        on = mask.on.reshape(-1)
        on.flags.writeable = False
    number = threads.number() if x.size >= threads.LEAST_PARALLEL else 1
    call = operation.compiled
    if number > 1:
        if threads.are_numba():
            call = operation.on_numba
        else:
            pool.start()
    call(number, plan.steps, plan.words, x, dy, out, on, *arguments)


class _Plan(NamedTuple):
    """All that follows from a call's shape, dtype and kind of mask."""

    steps: Any  # as `tasks.run` takes them
    words: NDArray[np.int64]  # what every step reads, see `steps`
    bits: Any  # the integers that kernels read 16-bit floats as, otherwise None
    absent: NDArray[Any]  # what stands for an array of parameters that is not there


def reference_kind(is_variance):
    """What `work.Call` says of a reference, by whether it has a variance."""
    return work.BY_VARIANCE if is_variance else work.BY_STDDEV


def plan_for(steps, x, mask, reference=work.NO_REFERENCE, kind=None):
    if kind is None:
        kind = masks.NONE if mask is None else masks.POSITION
        if is_of_elements(mask, x.shape[2]):
            kind = masks.ELEMENT
    if kind == masks.ELEMENT:
        # Its words hold the mask's own steps: such a plan serves once.
        return _plan.__wrapped__(steps, x.shape, x.dtype, reference, kind, mask)
    return _plan(steps, x.shape, x.dtype, reference, kind, None)


def is_of_elements(mask, inner):
    """Whether a mask is read an element at a time."""
    # Rows that hold several neighbouring positions need a mask of their columns.
    return mask is not None and (mask.axes is not None or 1 < inner < LEAST_RUN)


@lru_cache(maxsize=4096)
def _plan(steps, shape, dtype, reference, kind, mask):
    outer, channels, inner = shape
    cut, by_rows = partition(outer, channels, inner, dtype.itemsize, can_fold=kind != masks.ELEMENT)
    axes: Any = (((), ()), ((), ()))
    size, tables = outer * inner if kind == masks.POSITION else 0, []
    if kind == masks.ELEMENT:
        size, axes, columns = _element_tables(cut, by_rows, mask)
        tables = [np.array(each, np.int64).reshape(-1) for each in axes] + [columns]
    counts = [len(sizes) for sizes, _ in axes]
    head = (*cut, *Call(places(cut).size, reference, kind, size, *counts))
    words = np.concatenate((np.array(head, np.int64), *tables))
    compiled = tasks.load(steps, dtype.name, by_rows)
    bits = None
    if dtype.itemsize == 2:
        bits = HALF if dtype == np.float16 else BFLOAT
    absent = np.zeros(0, dtype if dtype == np.float64 else np.float32)
    return _Plan(compiled, words, bits, absent)


def _element_tables(cut, by_rows, mask):
    """Of an ELEMENT mask: its bytes, its outer and its inner axes, and its steps to columns."""
    if mask.axes is None:
        # One byte a position, seen from rows that hold several neighbouring positions.
        axes = (([cut.rows], [cut.inner]), ([cut.channels], [0]), ([cut.inner], [1]))
    else:
        axes = mask.axes
    outer_axes, channel_axes, inner_axes = axes
    columns = _offsets(*channel_axes)
    if by_rows:
        columns = (columns[:, None] + _offsets(*inner_axes)).reshape(-1)
        inner_axes = ([], [])
    return mask.on.size, (outer_axes, inner_axes), columns


def _offsets(sizes, strides):
    """Where each element of a group of axes is, as steps from the group's first."""
    steps = np.zeros(1, np.int64)
    for size, stride in zip(sizes, strides, strict=True):
        steps = (steps[:, None] + np.arange(size) * stride).reshape(-1)
    return steps
