"""What a framework's call comes to: a plan, carried out on buffers.

A framework's package passes, beside the buffers, the addresses of C functions, which are called
with a word of its own, `source`:

    count_others(source)                    how many threads there are besides the caller's
    schedule(source, function, argument)    have one of them call a C function, some time;
                                            whether one will
    fail(source, code, message)             what the caller returns for an error: it has a code of
                                            `memory`, and a text, a C string
"""

import numpy as np

from .. import channels as rows
from ..channels import STATISTICS
from ..cpu import jobs, steps, tasks, work
from ..cpu.addresses import call
from ..cpu.addresses import words as words_at
from ..cpu.compile import exact
from ..cpu.elements import array_at, read_fields
from ..cpu.partition import Partition
from ..cpu.threads import LEAST_PARALLEL
from . import callbacks, memory, table
from .memory import DATA, DTYPE, ELEMENTS
from .operations import (
    MASK,
    NUMBER,
    RUN_FORWARD,
    RUN_RENORM_FORWARD,
    SAVED,
    SUMS,
    TENSOR,
)
from .plans import AT, HEAD, KINDS

# The most moving statistics that there are; in a plan they lie side by side.
_MOVING = len(STATISTICS)

_move_statistics = exact(steps.move_statistics)
_places = exact(work.places)


@exact
def execute(plan_address, plan_size, operands, results, source, count_others, schedule, fail):
    """Carry out a plan; 0, or what `fail` returned.

    operands, results: (n, memory.BUFFER) words
    """
    plan = words_at(plan_address, HEAD)
    words_address = plan_address + 8 * HEAD
    words = words_at(words_address, plan_size - HEAD)
    if not _is_loaded(plan):
        code, message = memory.FAILED_PRECONDITION, table.entry(table.AT.not_loaded)
        return call(fail, (source, code, message))
    if not _fits(plan, operands, words):
        code, message = memory.INVALID_ARGUMENT, table.entry(table.AT.misfit)
        return call(fail, (source, code, message))
    limits = _limits(plan, operands)
    if not _are_limits(limits):
        return callbacks.fail_limits(limits, source, fail)

    # One piece of memory for the job, the scratch of its steps and the moving statistics.
    cut = read_fields(words, 0, Partition)
    at, channels = _places(cut), cut.channels
    parts = 1
    if cut.total >= LEAST_PARALLEL and table.entry(table.AT.is_parallel) != 0:
        others = call(count_others, (source,))
        parts = jobs.parts_of(cut.total, cut.tiles, cut.splits, others + 1)
    size = jobs.size_of(parts) + at.size + _MOVING * channels
    job = call(table.entry(table.AT.allocate), (8 * size,))
    if job == 0:
        code, message = memory.RESOURCE_EXHAUSTED, table.entry(table.AT.no_memory)
        return call(fail, (source, code, message))
    scratch = job + 8 * jobs.size_of(parts)
    numbers = array_at(scratch, at.numbers, (work.NUMBERS,), np.float64)
    epsilon = memory.double(plan[AT.epsilon])
    numbers[0], numbers[1:] = epsilon, limits
    shape = (work.PER_CHANNEL, channels)
    per_channel = array_at(scratch, at.per_channel, shape, np.float64)
    moving = array_at(scratch, at.size, (_MOVING, channels), np.float64)
    _fill(plan, operands, per_channel)

    x = operands[plan[AT.x], DATA]
    arguments = (
        x,
        operands[plan[AT.dy], DATA],
        results[plan[AT.out], DATA] if plan[AT.out] >= 0 else x,
        operands[plan[AT.mask], DATA] if plan[AT.mask] >= 0 else 0,
        words_address,
        scratch,
    )
    addresses = (
        _step_at(plan[AT.prepare]),
        _step_at(plan[AT.prepare + 1]),
        _step_at(plan[AT.prepare + 2]),
        _step_at(plan[AT.prepare + 3]),
    )
    jobs.fill(job, addresses, arguments)
    jobs.run(job, cut.tiles, cut.splits, parts, source, schedule)

    _give_rows(plan, operands, results, per_channel, moving, epsilon)
    jobs.release(job)
    return 0


@exact
def _step_at(place):
    """The address of a step at a place; 0 of none."""
    return table.step_at(place) if place >= 0 else 0


# Is the plan for this call?


@exact
def _is_loaded(plan):
    """Whether this process has the steps of the plan."""
    for place in plan[AT.prepare : AT.apply + 1]:
        if place >= 0 and table.step_at(place) == 0:
            return False
    return True


@exact
def _fits(plan, operands, words):
    """Whether the buffers have the sizes and the dtype that the plan was made for."""
    if operands[plan[AT.x], DTYPE] != plan[AT.dtype]:
        return False
    cut, called = read_fields(words, 0, Partition), read_fields(words, tasks.CALL, work.Call)
    channels = cut.channels
    for place in range(AT.x, AT.out):
        expected, kind = channels, KINDS[place - AT.x]
        if kind == TENSOR:
            expected = cut.total
        elif kind == MASK:
            expected = called.mask_bytes
        elif kind == SAVED:
            expected = rows.SAVED * channels
        elif kind == SUMS:
            expected = rows.SUMS * channels
        elif kind == NUMBER:
            expected = 1
        if plan[place] >= 0 and operands[plan[place], ELEMENTS] != expected:
            return False
    return True


@exact
def _limits(plan, operands):
    """rmin, rmax and dmax; where they are not given, ones that limit nothing."""
    limits = np.zeros(3)
    limits[1:] = np.inf
    for k in range(3):
        if plan[AT.rmin + k] >= 0:
            memory.read_floats(operands[plan[AT.rmin + k]], limits[k : k + 1])
    return limits


@exact
def _are_limits(limits):
    """Whether limits leave anything; so written, NaN is refused too."""
    return limits[0] <= limits[1] and limits[2] >= 0.0


# Rows of channels, in and out


@exact
def _fill(plan, operands, per_channel):
    """The rows of `per_channel` that the steps start from."""
    per_channel[rows.GAMMA] = 1.0
    per_channel[work.BETA] = 0.0
    for place, row in ((AT.gamma, rows.GAMMA), (AT.beta, work.BETA)):
        if plan[place] >= 0:
            memory.read_floats(operands[plan[place]], per_channel[row])
    if plan[AT.saved] >= 0:
        saved = per_channel[: rows.SAVED]
        saved[:] = memory.array_of(operands[plan[AT.saved]], saved.shape, np.float64)
        if plan[AT.sums] >= 0:
            sums = _sums_of(per_channel)
            sums[:] = memory.array_of(operands[plan[AT.sums]], sums.shape, np.float64)
    elif plan[AT.run] == RUN_RENORM_FORWARD:
        mean, spread = per_channel[work.REFERENCE_MEAN], per_channel[work.REFERENCE_SPREAD]
        if plan[AT.renorm_mean] >= 0:
            memory.read_floats(operands[plan[AT.renorm_mean]], mean)
            memory.read_floats(operands[plan[AT.renorm_stddev]], spread)
        else:
            memory.read_floats(operands[plan[AT.moving_mean]], mean)
            memory.read_floats(operands[plan[AT.moving_variance]], spread)
    elif plan[AT.run] != RUN_FORWARD:
        # Statistics that are constants: as if they were of nothing.
        per_channel[rows.COUNT] = 0.0
        per_channel[rows.MEAN] = 0.0
        per_channel[rows.R] = 1.0
        per_channel[rows.D] = 0.0
        memory.read_floats(operands[plan[AT.moving_variance]], per_channel[rows.VARIANCE])
        if plan[AT.moving_mean] >= 0:
            memory.read_floats(operands[plan[AT.moving_mean]], per_channel[rows.MEAN])


@exact
def _sums_of(per_channel):
    return per_channel[work.SUM_DY : work.SUM_DY + rows.SUMS]


@exact
def _give_rows(plan, operands, results, per_channel, moving, epsilon):
    """The results that are rows of channels, after the last step."""
    if plan[AT.new_saved] >= 0:
        saved = per_channel[: rows.SAVED]
        memory.array_of(results[plan[AT.new_saved]], saved.shape, np.float64)[:] = saved
    if plan[AT.new_sums] >= 0:
        sums = _sums_of(per_channel)
        memory.array_of(results[plan[AT.new_sums]], sums.shape, np.float64)[:] = sums
    if plan[AT.new_moving_mean] >= 0:
        _move(plan, operands, results, per_channel, moving, epsilon)
    for place, row in ((AT.new_dgamma, work.DGAMMA), (AT.new_dbeta, work.DBETA)):
        if plan[place] >= 0:
            memory.write_floats(results[plan[place]], per_channel[row])


@exact
def _move(plan, operands, results, per_channel, moving, epsilon):
    """Every moving statistic after the batch."""
    count = _MOVING if plan[AT.new_moving_stddev] >= 0 else 2
    for k in range(count):
        memory.read_floats(operands[plan[AT.moving_mean + k]], moving[k])
    momentum = memory.double(plan[AT.momentum])
    renorm_momentum = memory.double(plan[AT.renorm_momentum])
    skip_nonfinite = memory.double(plan[AT.skip_nonfinite]) != 0.0
    _move_statistics(
        moving[:count], per_channel, epsilon, momentum, renorm_momentum, skip_nonfinite
    )
    for k in range(count):
        memory.write_floats(results[plan[AT.new_moving_mean + k]], moving[k])
