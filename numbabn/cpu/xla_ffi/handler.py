"""The handler: the C function by which XLA runs every operation."""

import numpy as np
from numba import carray

from ... import formulas
from .. import kernels
from ..compile import exact
from ..partition import Partition
from . import c_api, callbacks, jobs, table
from .plans import AT, FORWARD, HEAD, NORMALIZE, RENORM_FORWARD

_TOTAL, _CHANNELS, _COLUMNS, _TILES, _SPLITS = (
    Partition._fields.index(name) for name in ("total", "channels", "columns", "tiles", "splits")
)
# What steps read beside rows of channels: epsilon, rmin, rmax, dmax.
_NUMBERS = 4

_moving_average = exact(formulas.moving_average)
_variance_from_stddev = exact(formulas.variance_from_stddev)


def execute(frame):
    """Run the call that a call frame describes; the address of an error, or 0.

    frame: (c_api.FRAME,) words of an XLA_FFI_CallFrame
    """
    frame = carray(frame, (c_api.FRAME,))
    if c_api.answers_metadata(frame):
        return 0
    api = c_api.api_of(frame)
    operands, results = c_api.operands_of(frame), c_api.results_of(frame)
    plan_address, plan_size = c_api.attribute_of(frame)
    plan = c_api.words(plan_address, HEAD)
    words_address = plan_address + 8 * HEAD
    words = c_api.words(words_address, plan_size - HEAD)
    if not _is_loaded(plan):
        return c_api.error(api, c_api.FAILED_PRECONDITION, table.entry(table.NOT_LOADED))
    if not _fits(plan, operands, words):
        return c_api.error(api, c_api.INVALID_ARGUMENT, table.entry(table.MISFIT))
    limits = _limits(plan, operands)
    if not _are_limits(limits):
        return callbacks.limits_error(api, limits)

    # One piece of memory for the job and the scratch of its steps. float32 coefficients fill
    # half of their part.
    channels, columns = words[_CHANNELS], words[_COLUMNS]
    values_size, partial_size = kernels.VALUES * channels, words[_SPLITS] * 3 * columns
    size = jobs.JOB + _NUMBERS + values_size + partial_size + kernels.COEFFICIENTS * columns
    job = c_api.call(table.entry(table.ALLOCATE), 8 * size)
    if job == 0:
        return c_api.error(api, c_api.RESOURCE_EXHAUSTED, table.entry(table.NO_MEMORY))
    numbers_address = job + 8 * jobs.JOB
    values_address = numbers_address + 8 * _NUMBERS
    partial_address = values_address + 8 * values_size

    epsilon = c_api.double(plan[AT.epsilon])
    numbers = carray(c_api.pointer(numbers_address), (_NUMBERS,), np.float64)
    numbers[0], numbers[1:] = epsilon, limits
    values = carray(c_api.pointer(values_address), (kernels.VALUES, channels), np.float64)
    _fill(plan, operands, values, epsilon)

    x = c_api.data(operands[plan[AT.x]])
    arguments = (
        x,
        c_api.data(operands[plan[AT.dy]]),
        c_api.data(results[plan[AT.out]]) if plan[AT.out] >= 0 else x,
        c_api.data(operands[plan[AT.mask]]) if plan[AT.mask] >= 0 else 0,
        words_address,
        numbers_address,
        values_address,
        partial_address,
        partial_address + 8 * partial_size,
    )
    shared = c_api.words(job, jobs.JOB)
    for k in range(len(arguments)):
        shared[jobs.ARGUMENTS + k] = arguments[k]
    for step in range(4):
        place = plan[AT.prepare + step]
        shared[jobs.STEPS + step] = table.entry(place) if place >= 0 else 0
    context = frame[c_api.FRAME_CONTEXT]
    jobs.run(job, api, context, words[_TOTAL], words[_TILES], words[_SPLITS])

    _give_rows(plan, operands, results, values, epsilon)
    jobs.release(job)
    return 0


# Is the plan for this call?


@exact
def _is_loaded(plan):
    """Whether this process has the steps of the plan."""
    for place in plan[AT.prepare : AT.apply + 1]:
        if place >= 0 and table.entry(place) == 0:
            return False
    return True


@exact
def _fits(plan, operands, words):
    """Whether the buffers have the sizes and the dtype that the plan was made for."""
    if c_api.dtype_of(operands[plan[AT.x]]) != plan[AT.dtype]:
        return False
    channels = words[_CHANNELS]
    for place in range(AT.x, AT.out):
        expected = channels
        if place in (AT.x, AT.dy):
            expected = words[_TOTAL]
        elif place == AT.mask:
            expected = words[kernels.MASK_BYTES]
        elif place == AT.values:
            expected = 2 * kernels.SAVED * channels
        elif place >= AT.rmin:
            expected = 1
        if plan[place] >= 0 and c_api.elements(operands[plan[place]]) != expected:
            return False
    return True


@exact
def _limits(plan, operands):
    """rmin, rmax and dmax; where they are not given, ones that limit nothing."""
    limits = np.zeros(3)
    limits[1:] = np.inf
    for k in range(3):
        if plan[AT.rmin + k] >= 0:
            c_api.read_floats(operands[plan[AT.rmin + k]], limits[k : k + 1])
    return limits


@exact
def _are_limits(limits):
    """Whether limits leave anything; so written, NaN is refused too."""
    return limits[0] <= limits[1] and limits[2] >= 0.0


# Rows of channels, in and out


@exact
def _fill(plan, operands, values, epsilon):
    """The rows of `values` that the steps start from."""
    values[kernels.GAMMA] = 1.0
    values[kernels.BETA] = 0.0
    for place, row in ((AT.gamma, kernels.GAMMA), (AT.beta, kernels.BETA)):
        if plan[place] >= 0:
            c_api.read_floats(operands[plan[place]], values[row])
    if plan[AT.values] >= 0:
        saved = values[: kernels.SAVED]
        saved[:] = c_api.array_of(operands[plan[AT.values]], saved.shape, np.float64)
    elif plan[AT.mode] == RENORM_FORWARD:
        mean, stddev = values[kernels.REFERENCE_MEAN], values[kernels.REFERENCE_STDDEV]
        if plan[AT.renorm_mean] >= 0:
            c_api.read_floats(operands[plan[AT.renorm_mean]], mean)
            c_api.read_floats(operands[plan[AT.renorm_stddev]], stddev)
        else:
            c_api.read_floats(operands[plan[AT.moving_mean]], mean)
            c_api.read_floats(operands[plan[AT.moving_variance]], stddev)
            for channel in range(stddev.size):
                stddev[channel] = kernels.standard_deviation(stddev[channel], epsilon)
    elif plan[AT.mode] != FORWARD:
        # Statistics that are constants: as if they were of nothing.
        values[kernels.COUNT] = 0.0
        values[kernels.MEAN] = 0.0
        values[kernels.R] = 1.0
        values[kernels.D] = 0.0
        variance = values[kernels.VARIANCE]
        c_api.read_floats(operands[plan[AT.moving_variance]], variance)
        if plan[AT.moving_mean] >= 0:
            c_api.read_floats(operands[plan[AT.moving_mean]], values[kernels.MEAN])
        if plan[AT.mode] == NORMALIZE:
            for channel in range(variance.size):
                rstd = 1.0 / kernels.standard_deviation(variance[channel], epsilon)
                values[kernels.GAMMA, channel] *= rstd


@exact
def _give_rows(plan, operands, results, values, epsilon):
    """The results that are rows of channels, after the last step."""
    if plan[AT.saved] >= 0:
        saved = values[: kernels.SAVED]
        c_api.array_of(results[plan[AT.saved]], saved.shape, np.float64)[:] = saved
    if plan[AT.next_moving_mean] >= 0:
        _move_all(plan, operands, results, values, epsilon)
    for place, row in ((AT.dgamma, kernels.DGAMMA), (AT.dbeta, kernels.DBETA)):
        if plan[place] >= 0:
            c_api.write_floats(results[plan[place]], values[row])


@exact
def _move_all(plan, operands, results, values, epsilon):
    """Every moving statistic after the batch."""
    momentum = c_api.double(plan[AT.momentum])
    count, mean, variance = values[kernels.COUNT], values[kernels.MEAN], values[kernels.VARIANCE]
    # The forward is through with these rows.
    moving, stddev = values[kernels.REFERENCE_MEAN], values[kernels.REFERENCE_STDDEV]
    moving_mean, next_mean = operands[plan[AT.moving_mean]], results[plan[AT.next_moving_mean]]
    _move(moving_mean, next_mean, mean, count, momentum, moving)
    moving_variance = operands[plan[AT.moving_variance]]
    next_variance = results[plan[AT.next_moving_variance]]
    if plan[AT.next_moving_stddev] < 0:
        _move(moving_variance, next_variance, variance, count, momentum, moving)
        return
    for channel in range(stddev.size):
        stddev[channel] = kernels.standard_deviation(variance[channel], epsilon)
    renorm_momentum = c_api.double(plan[AT.renorm_momentum])
    for operand, result, batch, weight in (
        (AT.renorm_mean, AT.next_renorm_mean, mean, renorm_momentum),
        (AT.renorm_stddev, AT.next_renorm_stddev, stddev, renorm_momentum),
        (AT.moving_stddev, AT.next_moving_stddev, stddev, momentum),
    ):
        _move(operands[plan[operand]], results[plan[result]], batch, count, weight, moving)
    # `moving` is the standard deviation now, which the variance follows.
    c_api.read_floats(moving_variance, stddev)
    for channel in range(stddev.size):
        if count[channel] > 0:
            stddev[channel] = _variance_from_stddev(moving[channel], epsilon)
    c_api.write_floats(next_variance, stddev)


@exact
def _move(operand, result, batch, count, momentum, moving):
    """A moving statistic after the batch, into `result`, and into `moving` on the way."""
    c_api.read_floats(operand, moving)
    for channel in range(moving.size):
        # A channel without a single element has nothing to move to.
        if count[channel] > 0:
            moving[channel] = _moving_average(moving[channel], batch[channel], momentum)
    c_api.write_floats(result, moving)
