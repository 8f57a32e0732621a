"""The operations in JAX programs: XLA calls the kernels, without Python and without a copy.

XLA's foreign function interface calls a C function with a *call frame*: pointers to
buffers and attributes (`xla/ffi/api/c_api.h`, which jaxlib installs). One C function,
`_execute`, serves every operation. Which kernels it runs, and on which buffers, an attribute of
the call says: the *plan*, integers that follow from shapes and dtypes and are part of the
program. A program may outlive the process (JAX keeps compiled ones on disk), so it holds
no address: a plan names its kernels by their place in `_table`, which each process fills
as it traces.

Tasks go to the threads of XLA, as those of its own operations do: `_execute` schedules
`_help` a few times and works itself. Whoever is free takes the next task, so nobody waits
for a thread that never comes. Numba's threads would contend with XLA's, start a team for
each thread that XLA calls from, and abort the process where the layer is `workqueue`.

An operation has the name, inputs and outputs of one of `numbabn.keras.operations`; its
attributes have `axis`, `epsilon`, `momentum`, `renorm` and `renorm_momentum`. The output
`values`, (6, channels) float64, goes as its bits, (6, channels, 2) uint32: JAX has no float64
unless it is told to.
"""

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, config, types
from numba.extending import intrinsic

from .. import formulas
from .. import layout as lay
from ..renorm import RenormClipping
from . import kernels, launch, masks, tasks, threads
from .compile import c_function, exact
from .partition import Partition, partition

logger = logging.getLogger("numbabn")

# The structs of `c_api.h`, as offsets in words of 8 bytes.
_API_VERSION = 3 << 32  # 0.3: int32 major, int32 minor
_FRAME_EXTENSION, _FRAME_API, _FRAME_CONTEXT, _FRAME_OPERANDS, _FRAME_RESULTS = 1, 2, 3, 9, 14
_FRAME_ATTRIBUTES, _FRAME = 20, 21
_BUFFER_DTYPE, _BUFFER_DATA, _BUFFER_RANK, _BUFFER_DIMENSIONS, _BUFFER = 2, 3, 4, 5, 6
_ARRAY_SIZE, _ARRAY_DATA, _ARRAY = 1, 2, 3
_EXTENSION_TYPE, _EXTENSION_NEXT, _EXTENSION_METADATA, _EXTENSION = 1, 2, 3, 4
_METADATA_VERSION, _METADATA = 3, 4
_API_ERROR_CREATE, _API_ERROR_DESTROY, _API_SCHEDULE, _API_THREADS, _API = 6, 8, 17, 18, 19
_METADATA_TYPE = 1
_INVALID_ARGUMENT, _RESOURCE_EXHAUSTED, _FAILED_PRECONDITION = 3, 8, 9
_F32, _F64 = 11, 12
_DTYPES = {"float16": 10, "bfloat16": 16, "float32": _F32, "float64": _F64}


class _Plan(NamedTuple):
    """The head of a plan; the words of the kernels follow."""

    mode: int
    dtype: int  # XLA's number of x's dtype
    # Places of the steps in `_table`, or -1.
    prepare: int
    measure: int
    combine: int
    apply: int
    # The bits of float64.
    epsilon: int
    momentum: int
    renorm_momentum: int
    # Indices of operands, or -1.
    x: int
    dy: int
    mask: int
    values: int
    gamma: int
    beta: int
    moving_mean: int
    moving_variance: int
    moving_stddev: int
    renorm_mean: int
    renorm_stddev: int
    rmin: int
    rmax: int
    dmax: int
    # Indices of results, or -1.
    out: int
    saved: int
    next_moving_mean: int
    next_moving_variance: int
    next_moving_stddev: int
    next_renorm_mean: int
    next_renorm_stddev: int
    dgamma: int
    dbeta: int


(
    _MODE, _DTYPE, _PREPARE, _, _, _, _EPSILON, _MOMENTUM, _RENORM_MOMENTUM,
    _X, _DY, _MASK, _VALUES, _GAMMA, _BETA, _MOVING_MEAN, _MOVING_VARIANCE, _MOVING_STDDEV,
    _RENORM_MEAN, _RENORM_STDDEV, _RMIN, _RMAX, _DMAX,
    _OUT, _SAVED, _NEXT_MEAN, _NEXT_VARIANCE, _NEXT_STDDEV, _NEXT_RENORM_MEAN,
    _NEXT_RENORM_STDDEV, _DGAMMA, _DBETA,
) = range(len(_Plan._fields))  # fmt: skip
_HEAD = len(_Plan._fields)
_OPERANDS, _RESULTS = _Plan._fields[_X:_OUT], _Plan._fields[_OUT:]
# Modes. A forward of renorm has its reference in `renorm_mean` and `renorm_stddev`, or, where
# those are not there, in the moving statistics.
_FORWARD, _RENORM_FORWARD, _NORMALIZE, _BACKWARD = range(4)

_TOTAL, _CHANNELS, _COLUMNS, _TILES, _SPLITS = (
    Partition._fields.index(name) for name in ("total", "channels", "columns", "tiles", "splits")
)

# The table: functions of the C library, messages, then every step for each dtype and layout.
(
    _ALLOCATE, _FREE, _YIELD, _EXPLAIN, _HELP_TASK, _READ, _PARALLEL,
    _NOT_LOADED, _MISFIT, _NO_MEMORY,
) = range(10)  # fmt: skip
_STEPS = 10
_FUNCTIONS = (
    kernels.statistics,
    kernels.forward_coefficients,
    kernels.normalize,
    kernels.given_coefficients,
    kernels.mean_coefficients,
    kernels.gradient_sums,
    kernels.backward_coefficients,
    kernels.gradient,
)
_table = np.zeros(_STEPS + len(_FUNCTIONS) * len(_DTYPES) * 2, np.int64)

# A *job* is what the threads that work on one call share, in words: how many of them hold
# it, the arguments and addresses of the steps, then the phases that all pass one by one.
_HOLDERS, _ARGUMENTS, _JOB_STEPS, _PHASES, _FIRST_PHASE = 0, 1, 10, 14, 15
# Of a phase: the next task and how many are done, how many there are, and which steps each takes.
_NEXT, _DONE, _COUNT, _FIRST_STEP, _LAST_STEP, _PHASE = range(6)
# Numbers and scratch follow the job.
_JOB = 40


@intrinsic
def _pointer(typing_context, address):
    """An address as `carray` takes it."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def _double(typing_context, bits):
    """The float64 that has these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@intrinsic
def _call(typing_context, function, argument):
    """Call a C function of one pointer or integer; the array stays alive during the call."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        value = arguments[1]
        if isinstance(signature.args[1], types.Array):
            array = context.make_array(signature.args[1])(context, builder, value)
            value = builder.ptrtoint(array.data, word)
        pointer = builder.inttoptr(arguments[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(pointer, [value])

    kept = argument if isinstance(argument, types.Array) else types.int64
    return types.int64(types.int64, kept), generate


@intrinsic
def _add(typing_context, address, amount):
    """Add to the word at an address, atomically; what it was."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _load(typing_context, address):
    """The word at an address, after all that was written before it was."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


# What the intrinsic below refers to; `_targets` gives it the table's address in this process.
_SYMBOL = "numbabn_xla_table"


@intrinsic
def _table_entry(typing_context, place):
    """The entry of `_table` at a place."""

    def generate(context, builder, signature, arguments):
        first = context.get_c_value(builder, ir.IntType(64), _SYMBOL)
        return builder.load(builder.gep(first, [arguments[0]]))

    return types.int64(types.int64), generate


moving_average = exact(formulas.moving_average)
variance_from_stddev = exact(formulas.variance_from_stddev)


@exact
def _words(address, size):
    return carray(_pointer(address), (size,), np.int64)


@exact
def _int32(address):
    return carray(_pointer(address), (1,), np.int32)[0]


# A job


@exact
def _work(job):
    """Take part in a job until it is done."""
    words = _words(job, _JOB)
    arguments = (
        words[_ARGUMENTS], words[_ARGUMENTS + 1], words[_ARGUMENTS + 2], words[_ARGUMENTS + 3],
        words[_ARGUMENTS + 4], words[_ARGUMENTS + 5], words[_ARGUMENTS + 6],
        words[_ARGUMENTS + 7], words[_ARGUMENTS + 8],
    )  # fmt: skip
    for phase in range(_FIRST_PHASE, _FIRST_PHASE + words[_PHASES] * _PHASE, _PHASE):
        count = words[phase + _COUNT]
        while True:
            task = _add(job + 8 * (phase + _NEXT), 1)
            if task >= count:
                break
            for step in range(words[phase + _FIRST_STEP], words[phase + _LAST_STEP]):
                tasks.call(words[_JOB_STEPS + step], arguments, task)
            _add(job + 8 * (phase + _DONE), 1)
        # The next phase reads what all tasks of this one wrote.
        while _load(job + 8 * (phase + _DONE)) < count:
            _call(_table_entry(_YIELD), 0)


@exact
def _release(job):
    """Let go of a job; the last one frees it."""
    if _add(job + 8 * _HOLDERS, -1) == 1:
        _call(_table_entry(_FREE), job)


def _help(job):
    """What XLA's threads run: it may be long after the job was done."""
    _work(job)
    _release(job)


@exact
def _set_phases(words, tiles, splits):
    """The phases of `tasks.run`; the greatest number of tasks in one."""
    if splits == 1:
        _set_phase(words, 0, tiles, 0, 4)
        words[_PHASES] = 1
        return tiles
    for step in range(4):
        count = tiles if step % 2 == 0 else tiles * splits
        _set_phase(words, step, count if words[_JOB_STEPS + step] != 0 else 0, step, step + 1)
    words[_PHASES] = 4
    return tiles * splits


@exact
def _set_phase(words, phase, count, first_step, last_step):
    first = _FIRST_PHASE + phase * _PHASE
    words[first + _NEXT] = 0
    words[first + _DONE] = 0
    words[first + _COUNT] = count
    words[first + _FIRST_STEP] = first_step
    words[first + _LAST_STEP] = last_step


@exact
def _succeeds(api, function, request):
    """Whether a function of XLA did what it was asked for."""
    error = _call(api[function], request)
    if error == 0:
        return True
    request = np.zeros(3, np.int64)
    request[0], request[2] = 24, error
    _call(api[_API_ERROR_DESTROY], request)
    return False


@exact
def _run(job, api, context, size, tiles, splits):
    """Run a job, with as many threads of XLA as it gives work to."""
    words = _words(job, _JOB)
    most = _set_phases(words, tiles, splits)
    words[_HOLDERS] = 1
    if size >= threads.LEAST_PARALLEL and _table_entry(_PARALLEL) != 0:
        # No pool, no threads.
        number = np.zeros(1, np.int64)
        query = np.zeros(4, np.int64)
        query[0], query[2], query[3] = 32, context, number.ctypes.data
        _succeeds(api, _API_THREADS, query)
        helpers = min(number[0] - 1, most - 1, size // (threads.LEAST_PARALLEL // 2) - 1)
        request = np.zeros(5, np.int64)
        request[0], request[2], request[3], request[4] = 40, context, _table_entry(_HELP_TASK), job
        for _ in range(helpers):
            _add(job + 8 * _HOLDERS, 1)
            if not _succeeds(api, _API_SCHEDULE, request):
                _add(job + 8 * _HOLDERS, -1)
                break
    _work(job)


# The handler


@exact
def _error(api, code, message):
    request = np.zeros(4, np.int64)
    request[0], request[2], request[3] = 28, message, code
    return _call(api[_API_ERROR_CREATE], request)


@exact
def _describe(extension):
    """Answer XLA's question for the version of the interface that the handler is of."""
    while extension != 0:
        words = _words(extension, _EXTENSION)
        if _int32(extension + 8 * _EXTENSION_TYPE) == _METADATA_TYPE:
            _words(words[_EXTENSION_METADATA], _METADATA)[_METADATA_VERSION] = _API_VERSION
        extension = words[_EXTENSION_NEXT]


@exact
def _elements(buffer):
    """How many elements a buffer has."""
    words = _words(buffer, _BUFFER)
    number = 1
    for size in _words(words[_BUFFER_DIMENSIONS], words[_BUFFER_RANK]):
        number *= size
    return number


@exact
def _data(buffer):
    return _words(buffer, _BUFFER)[_BUFFER_DATA]


@exact
def _get(buffer, values):
    """Copy a buffer of float32 or float64 to `values`."""
    address = _pointer(_data(buffer))
    if _int32(buffer + 8 * _BUFFER_DTYPE) == _F64:
        values[:] = carray(address, values.shape, np.float64)
    else:
        values[:] = carray(address, values.shape, np.float32)


@exact
def _put(buffer, values):
    """Copy `values` to a buffer of float32 or float64."""
    address = _pointer(_data(buffer))
    if _int32(buffer + 8 * _BUFFER_DTYPE) == _F64:
        carray(address, values.shape, np.float64)[:] = values
    else:
        carray(address, values.shape, np.float32)[:] = values


@exact
def _fits(plan, operands, words):
    """Whether the buffers have the sizes and the dtype that the plan was made for."""
    x = operands[plan[_X]]
    if _int32(x + 8 * _BUFFER_DTYPE) != plan[_DTYPE]:
        return False
    channels = words[_CHANNELS]
    for place in range(_X, _OUT):
        expected = channels
        if place in (_X, _DY):
            expected = words[_TOTAL]
        elif place == _MASK:
            expected = words[kernels.MASK_BYTES]
        elif place == _VALUES:
            expected = 2 * kernels.SAVED * channels
        elif place >= _RMIN:
            expected = 1
        if plan[place] >= 0 and _elements(operands[plan[place]]) != expected:
            return False
    return True


@exact
def _limits(plan, operands, numbers):
    """The limits of renorm into `numbers`; False where they are none."""
    numbers[1], numbers[2], numbers[3] = 0.0, np.inf, np.inf
    for k in range(3):
        if plan[_RMIN + k] >= 0:
            _get(operands[plan[_RMIN + k]], numbers[1 + k : 2 + k])
    # So written, NaN is refused too.
    return numbers[1] <= numbers[2] and numbers[3] >= 0.0


@exact
def _fill(plan, operands, values, epsilon):
    """The rows of `values` that the steps start from."""
    values[kernels.GAMMA] = 1.0
    values[kernels.BETA] = 0.0
    for place, row in ((_GAMMA, kernels.GAMMA), (_BETA, kernels.BETA)):
        if plan[place] >= 0:
            _get(operands[plan[place]], values[row])
    if plan[_VALUES] >= 0:
        saved = values[: kernels.SAVED]
        saved[:] = carray(_pointer(_data(operands[plan[_VALUES]])), saved.shape, np.float64)
    elif plan[_MODE] == _RENORM_FORWARD:
        mean, stddev = values[kernels.REFERENCE_MEAN], values[kernels.REFERENCE_STDDEV]
        if plan[_RENORM_MEAN] >= 0:
            _get(operands[plan[_RENORM_MEAN]], mean)
            _get(operands[plan[_RENORM_STDDEV]], stddev)
        else:
            _get(operands[plan[_MOVING_MEAN]], mean)
            _get(operands[plan[_MOVING_VARIANCE]], stddev)
            for channel in range(stddev.size):
                stddev[channel] = kernels.standard_deviation(stddev[channel], epsilon)
    elif plan[_MODE] != _FORWARD:
        # Statistics that are constants: as if they were of nothing.
        values[kernels.COUNT] = 0.0
        values[kernels.MEAN] = 0.0
        values[kernels.R] = 1.0
        values[kernels.D] = 0.0
        variance = values[kernels.VARIANCE]
        _get(operands[plan[_MOVING_VARIANCE]], variance)
        if plan[_MOVING_MEAN] >= 0:
            _get(operands[plan[_MOVING_MEAN]], values[kernels.MEAN])
        if plan[_MODE] == _NORMALIZE:
            for channel in range(variance.size):
                rstd = 1.0 / kernels.standard_deviation(variance[channel], epsilon)
                values[kernels.GAMMA, channel] *= rstd


@exact
def _move(operand, result, batch, count, momentum, moving):
    """A moving statistic after the batch, into `result`, and into `moving` on the way."""
    _get(operand, moving)
    for channel in range(moving.size):
        # A channel without a single element has nothing to move to.
        if count[channel] > 0:
            moving[channel] = moving_average(moving[channel], batch[channel], momentum)
    _put(result, moving)


@exact
def _move_all(plan, operands, results, values, epsilon, momentum, renorm_momentum):
    """Every moving statistic after the batch."""
    count, mean, variance = values[kernels.COUNT], values[kernels.MEAN], values[kernels.VARIANCE]
    # The forward is through with these rows.
    moving, stddev = values[kernels.REFERENCE_MEAN], values[kernels.REFERENCE_STDDEV]
    first, second = operands[plan[_MOVING_MEAN]], operands[plan[_MOVING_VARIANCE]]
    _move(first, results[plan[_NEXT_MEAN]], mean, count, momentum, moving)
    if plan[_NEXT_STDDEV] < 0:
        _move(second, results[plan[_NEXT_VARIANCE]], variance, count, momentum, moving)
        return
    for channel in range(stddev.size):
        stddev[channel] = kernels.standard_deviation(variance[channel], epsilon)
    for operand, result, batch in (
        (_RENORM_MEAN, _NEXT_RENORM_MEAN, mean),
        (_RENORM_STDDEV, _NEXT_RENORM_STDDEV, stddev),
    ):
        _move(operands[plan[operand]], results[plan[result]], batch, count, renorm_momentum, moving)
    _move(
        operands[plan[_MOVING_STDDEV]], results[plan[_NEXT_STDDEV]], stddev, count, momentum, moving
    )
    _get(second, stddev)
    for channel in range(stddev.size):
        if count[channel] > 0:
            stddev[channel] = variance_from_stddev(moving[channel], epsilon)
    _put(results[plan[_NEXT_VARIANCE]], stddev)


def _execute(frame):
    """Run the call that a call frame describes; the address of an error, or 0.

    frame: (_FRAME,) words of an XLA_FFI_CallFrame
    """
    frame = carray(frame, (_FRAME,))
    if frame[_FRAME_EXTENSION] != 0:
        _describe(frame[_FRAME_EXTENSION])
        return 0
    api = _words(frame[_FRAME_API], _API)
    attribute = _words(_words(frame[_FRAME_ATTRIBUTES], 1)[0], _ARRAY)
    plan = _words(attribute[_ARRAY_DATA], _HEAD)
    words_address = attribute[_ARRAY_DATA] + 8 * _HEAD
    words = _words(words_address, attribute[_ARRAY_SIZE] - _HEAD)
    operands = _words(frame[_FRAME_OPERANDS], frame[_FRAME_OPERANDS - 2])
    results = _words(frame[_FRAME_RESULTS], frame[_FRAME_RESULTS - 2])
    for step in range(4):
        if plan[_PREPARE + step] >= 0 and _table_entry(plan[_PREPARE + step]) == 0:
            return _error(api, _FAILED_PRECONDITION, _table_entry(_NOT_LOADED))
    if not _fits(plan, operands, words):
        return _error(api, _INVALID_ARGUMENT, _table_entry(_MISFIT))

    channels, columns = words[_CHANNELS], words[_COLUMNS]
    numbers_size, values_size = 4, kernels.VALUES * channels
    partial_size = words[_SPLITS] * 3 * columns
    # float32 coefficients fill half of their part.
    size = _JOB + numbers_size + values_size + partial_size + kernels.COEFFICIENTS * columns
    job = _call(_table_entry(_ALLOCATE), 8 * size)
    if job == 0:
        return _error(api, _RESOURCE_EXHAUSTED, _table_entry(_NO_MEMORY))
    numbers_address = job + 8 * _JOB
    values_address = numbers_address + 8 * numbers_size
    partial_address = values_address + 8 * values_size
    numbers = carray(_pointer(numbers_address), (4,), np.float64)
    values = carray(_pointer(values_address), (kernels.VALUES, channels), np.float64)

    epsilon = _double(plan[_EPSILON])
    numbers[0] = epsilon
    if not _limits(plan, operands, numbers):
        # The job holds nothing yet, and Python writes into it what is wrong.
        request = carray(_pointer(job), (3,), np.float64)
        request[:] = numbers[1:]
        _call(_table_entry(_EXPLAIN), job)
        error = _error(api, _INVALID_ARGUMENT, job + 8 * _REASON)
        _call(_table_entry(_FREE), job)
        return error
    _fill(plan, operands, values, epsilon)

    shared = _words(job, _JOB)
    x = _data(operands[plan[_X]])
    shared[_ARGUMENTS] = x
    shared[_ARGUMENTS + 1] = _data(operands[plan[_DY]])
    shared[_ARGUMENTS + 2] = _data(results[plan[_OUT]]) if plan[_OUT] >= 0 else x
    shared[_ARGUMENTS + 3] = _data(operands[plan[_MASK]]) if plan[_MASK] >= 0 else 0
    shared[_ARGUMENTS + 4] = words_address
    shared[_ARGUMENTS + 5] = numbers_address
    shared[_ARGUMENTS + 6] = values_address
    shared[_ARGUMENTS + 7] = partial_address
    shared[_ARGUMENTS + 8] = partial_address + 8 * partial_size
    for step in range(4):
        place = plan[_PREPARE + step]
        shared[_JOB_STEPS + step] = _table_entry(place) if place >= 0 else 0
    _run(job, api, frame[_FRAME_CONTEXT], words[_TOTAL], words[_TILES], words[_SPLITS])

    if plan[_SAVED] >= 0:
        saved = values[: kernels.SAVED]
        carray(_pointer(_data(results[plan[_SAVED]])), saved.shape, np.float64)[:] = saved
    if plan[_NEXT_MEAN] >= 0:
        momenta = _double(plan[_MOMENTUM]), _double(plan[_RENORM_MOMENTUM])
        _move_all(plan, operands, results, values, epsilon, momenta[0], momenta[1])
    for place, row in ((_DGAMMA, kernels.DGAMMA), (_DBETA, kernels.DBETA)):
        if plan[place] >= 0:
            _put(results[plan[place]], values[row])
    _release(job)
    return 0


# Numbers that Python knows

# A request to Python, in words. To `_read_number`: which number, the number as float64, and
# if there is none, why. To `_explain_limits`: the limits as float64, and what is wrong.
_INDEX, _NUMBER, _REASON, _REQUEST = 0, 1, 3, 40


def _execute_read(frame):
    """Read the numbers whose indices are the call's attribute into its result."""
    frame = carray(frame, (_FRAME,))
    if frame[_FRAME_EXTENSION] != 0:
        _describe(frame[_FRAME_EXTENSION])
        return 0
    api = _words(frame[_FRAME_API], _API)
    attribute = _words(_words(frame[_FRAME_ATTRIBUTES], 1)[0], _ARRAY)
    indices = _words(attribute[_ARRAY_DATA], attribute[_ARRAY_SIZE])
    result = carray(
        _pointer(_data(_words(frame[_FRAME_RESULTS], 1)[0])), (indices.size,), np.float32
    )
    address = _call(_table_entry(_ALLOCATE), 8 * _REQUEST)
    if address == 0:
        return _error(api, _RESOURCE_EXHAUSTED, _table_entry(_NO_MEMORY))
    request = _words(address, _REQUEST)
    error = 0
    for k in range(indices.size):
        request[_INDEX] = indices[k]
        if error == 0:
            if _call(_table_entry(_READ), address) != 0:
                result[k] = _double(request[_NUMBER])
            else:
                error = _error(api, _INVALID_ARGUMENT, address + 8 * _REASON)
    _call(_table_entry(_FREE), address)
    return error


_readers: list[Callable[[], float]] = []


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def _read_number(address):
    """Answer a request; 0 where the number cannot be had. Takes the GIL."""
    index = ctypes.c_int64.from_address(address).value
    try:
        number = float(_readers[index]())
    except Exception as error:
        # Nothing can be raised into XLA. It gets the text, and raises an error of its own.
        logger.exception("a number that a JAX program reads cannot be read")
        _give_reason(address, f"{type(error).__name__}: {error}")
        return 0
    ctypes.c_double.from_address(address + 8 * _NUMBER).value = number
    return 1


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def _explain_limits(address):
    """Say what is wrong with limits as everywhere else. Takes the GIL."""
    try:
        RenormClipping(*(ctypes.c_double * 3).from_address(address))
    except (TypeError, ValueError) as error:
        _give_reason(address, str(error))
    return 0


def _give_reason(address, text):
    encoded = text.encode()[: 8 * (_REQUEST - _REASON) - 1] + b"\0"
    ctypes.memmove(address + 8 * _REASON, encoded, len(encoded))


def read_numbers(readers):
    """Numbers that are read whenever the program runs: (len(readers),) float32.

    readers: functions without arguments that return a float
    """
    indices = []
    for reader in readers:
        # A program may outlive the layer that a reader belongs to.
        if reader not in _readers:
            _readers.append(reader)
        indices.append(_readers.index(reader))
    call = jax.ffi.ffi_call(
        _targets()[1], jax.ShapeDtypeStruct((len(indices),), np.float32), vmap_method="sequential"
    )
    return call(indices=np.array(indices, np.int64))


# The process


_MESSAGES = {
    _NOT_LOADED: "numbabn: the kernels of this program are not loaded: it was not traced in this "
    "process",
    _MISFIT: "numbabn: the size or dtype of a buffer is not what this program was traced for",
    _NO_MEMORY: "numbabn: no memory for the scratch of a kernel",
}


def _c_functions():
    """C functions by their place in the table; those of Python need no GIL, or take it."""
    python = ctypes.pythonapi
    give_way: Any
    if sys.platform == "win32":
        give_way = ctypes.windll.kernel32.SwitchToThread
    else:
        give_way = ctypes.CDLL(None).sched_yield
    return {
        _ALLOCATE: python.PyMem_RawMalloc,
        _FREE: python.PyMem_RawFree,
        _YIELD: give_way,
        _EXPLAIN: _explain_limits,
        _READ: _read_number,
    }


_registering = threading.Lock()


def _targets():
    """The names under which XLA knows `_execute` and `_execute_read`, registered by now."""
    # XLA refuses a second handler of one name.
    with _registering:
        return _registered()


@lru_cache(maxsize=1)
def _registered():
    llvmlite.binding.add_symbol(_SYMBOL, _table.ctypes.data)
    for place, function in _c_functions().items():
        _table[place] = ctypes.cast(function, ctypes.c_void_p).value or 0
    for place, message in _MESSAGES.items():
        text = ctypes.create_string_buffer(message.encode())
        _kept.append(text)
        _table[place] = ctypes.addressof(text)
    helper = c_function(_help, "numbabn_help", types.void(types.int64))
    _kept.append(helper)
    _table[_HELP_TASK] = helper.address
    _table[_PARALLEL] = not threads.in_forked_child()
    return _register(_execute, "numbabn_execute"), _register(_execute_read, "numbabn_read")


def _register(function, name):
    """Compile a handler, or load it, and make it known to XLA; its name there."""
    handler = c_function(function, name, types.int64(types.CPointer(types.int64)))
    _kept.append(handler)
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    # The name has a digest of the sources in it: a program that another version exported
    # does not find it, and plans are read by the code that they are for.
    jax.ffi.register_ffi_target(
        handler.__name__, capsule(handler.address, _CAPSULE, None), platform="cpu"
    )
    return handler.__name__


# XLA asks for a capsule of this name, and the capsule keeps the pointer to it.
_CAPSULE = b"xla._CUSTOM_CALL_TARGET"
# What the table holds the addresses of.
_kept: list[Any] = []


def _stay_alone():
    """XLA's threads did not survive a fork."""
    _table[_PARALLEL] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stay_alone)


@lru_cache(maxsize=1)
def is_available():
    """Whether JAX, on the CPU, calls the handler: both must be made for the same interface."""
    if config.DISABLE_JIT or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    attributes = SimpleNamespace(axis=-1, epsilon=1.0, momentum=0.0, renorm_momentum=None)

    def identity(x):
        zeros = jnp.zeros(1, jnp.float32)
        inputs = {"x": x, "moving_mean": zeros, "moving_variance": zeros}
        return normalize(inputs, attributes, ("y",))["y"]

    try:
        with jax.ensure_compile_time_eval(), jax.default_device(jax.devices("cpu")[0]):
            x = jnp.asarray([[1.0], [3.0]], jnp.float32)
            return bool((jax.jit(identity)(x) == x).all())
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        # AttributeError: another jax. RuntimeError: another jaxlib, whose XLA refuses the
        # handler, or no CPU backend.
        logger.info("XLA cannot call the kernels: %s", error)
        return False


# The operations


def forward(inputs, attributes, wanted):
    """Normalize x by its own statistics, and move the moving ones."""
    mode = _RENORM_FORWARD if attributes.renorm else _FORWARD
    return _run_operation(mode, launch.FORWARD, inputs, attributes, wanted)


def backward(inputs, attributes, wanted):
    """The gradient of `forward`."""
    steps = launch.BACKWARD if "dx" in wanted else launch.SUMS
    return _run_operation(_BACKWARD, steps, inputs, attributes, wanted)


def normalize(inputs, attributes, wanted):
    """Normalize x by the moving statistics."""
    return _run_operation(_NORMALIZE, launch.NORMALIZE, inputs, attributes, wanted)


def normalize_backward(inputs, attributes, wanted):
    """The gradient of `normalize`."""
    if wanted == ("dx",):
        # dx = gamma · rstd · dy: no sum over the batch, and x is not read.
        inputs = {**inputs, "x": inputs["dy"]}
        for name in ("dy", "moving_mean"):
            del inputs[name]
        return {"dx": normalize(inputs, attributes, ("y",))["y"]}
    return backward(inputs, attributes, wanted)


# By the names of the operations of `numbabn.keras`.
OPERATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "batch_norm_forward": forward,
    "batch_norm_backward": backward,
    "normalize": normalize,
    "normalize_backward": normalize_backward,
}


# The plan's names of outputs, where they are others.
_RESULT_OF = {
    "y": "out",
    "dx": "out",
    "values": "saved",
    **{name.removeprefix("next_"): name for name in _RESULTS if name.startswith("next_")},
}


def _run_operation(mode, steps, inputs, attributes, wanted):
    """Call the handler; the outputs that are wanted, by name."""
    x = inputs["x"]
    if not all(isinstance(size, int) for size in x.shape):
        raise ValueError(f"x must have known sizes, got {x.shape}")
    # A view of a single element has no memory order of its own: it is taken as row-major,
    # which JAX's arrays are.
    layout = lay.layout_of(np.broadcast_to(np.zeros((), x.dtype), x.shape), attributes.axis)
    on, mask = _canonical_mask(inputs.get("mask"), x, layout)
    given = {name: inputs.get(name) for name in _OPERANDS} | {"mask": on}
    operands = {
        name: _operand(name, value, layout) for name, value in given.items() if value is not None
    }
    results = {name: _result(name, operands, layout) for name in wanted}
    canonical = jax.ShapeDtypeStruct(layout.canonical_shape, x.dtype)
    kind = masks.OFF if mode == _BACKWARD and "values" not in operands else None
    run = launch.plan_for(steps, canonical, mask, mode == _RENORM_FORWARD, kind)
    places = {name: index for index, name in enumerate(operands)}
    places.setdefault("dy", places["x"])
    places |= {_RESULT_OF.get(name, name): index for index, name in enumerate(results)}
    momenta = (attributes.momentum, attributes.renorm_momentum or 0.0)
    head = _Plan(
        mode,
        _DTYPES[x.dtype.name],
        *_load_steps(steps, run.steps, canonical),
        *(int(np.float64(number).view(np.int64)) for number in (attributes.epsilon, *momenta)),
        *(places.get(name, -1) for name in (*_OPERANDS, *_RESULTS)),
    )
    call = jax.ffi.ffi_call(
        _targets()[0],
        _varying(results.values(), operands.values()),
        vmap_method="sequential",
        input_output_aliases=_aliases(x, operands, results),
    )
    plan = np.concatenate((np.array(head, np.int64), run.words))
    found = call(*operands.values(), plan=plan)
    return {
        name: _restored(name, value, inputs, layout)
        for name, value in zip(results, found, strict=True)
    }


# From this size on a result goes over an input. glibc takes so much from the kernel anew each
# time (M_MMAP_THRESHOLD_MAX), and those page faults cost more than the copy that XLA makes
# of an input that is still needed. Below it, only an input that is not needed would pay.
_LEAST_ALIASED = 32 * 1024 * 1024


def _aliases(x, operands, results):
    """Which operand's memory a result takes; XLA copies an operand that is needed later."""
    if x.size * x.dtype.itemsize < _LEAST_ALIASED or "values" in results:
        # After a training forward, x is always needed.
        return {}
    over = "dy" if "dy" in operands else "x"
    return {
        list(operands).index(over): index
        for index, name in enumerate(results)
        if name in ("y", "dx")
    }


def _operand(name, value, layout):
    """An input as the handler reads it."""
    if name in ("mask", "values"):
        return value
    if name in ("x", "dy"):
        return value.transpose(_order(layout))
    dtype = _rows_dtype(value.dtype)
    return (value if value.ndim == 0 else layout.flatten(value)).astype(dtype)


def _result(name, operands, layout):
    """The type of an output as the handler writes it."""
    if name in ("y", "dx"):
        return jax.ShapeDtypeStruct(operands["x"].shape, operands["x"].dtype)
    if name == "values":
        return jax.ShapeDtypeStruct((kernels.SAVED, layout.channels, 2), np.uint32)
    return jax.ShapeDtypeStruct(
        (layout.channels,), _rows_dtype(operands.get(name, operands["x"]).dtype)
    )


def _restored(name, value, inputs, layout):
    """An output as the caller takes it."""
    if name in ("y", "dx"):
        return value.transpose(np.argsort(_order(layout)))
    if name == "values":
        return value
    value = layout.unflatten(value)
    return value.astype(inputs[name].dtype) if name in inputs else value


def _rows_dtype(dtype):
    """The dtype of per-channel values beside an array of `dtype`."""
    return np.float64 if dtype == np.float64 else np.float32


def _order(layout):
    """How the axes of a row-major array are permuted before the kernels take it: seldom.

    Only channel axes that other axes lie between change places. Axes of size 1 may be
    anywhere.
    """
    memory = [axis for axis in layout.order if layout.shape[axis] != 1]
    return tuple(range(len(layout.shape))) if memory == sorted(memory) else layout.order


def _canonical_mask(mask, x, layout):
    """A mask as the handler reads it, and where the kernels find its elements."""
    if mask is None:
        return None, None
    # That follows from its shape: any mask of this shape tells.
    on: Any = lay.check_mask(np.zeros(mask.shape, mask.dtype), x)
    geometry: Any = lay.canonical_mask(on, layout)
    ordered = mask.astype(np.bool_).reshape(on.shape).transpose(layout.order)
    if geometry.axes is None:
        sizes = [1 if axis in layout.axes else layout.shape[axis] for axis in layout.order]
        ordered = jnp.broadcast_to(ordered, sizes)
    return ordered, geometry


def _load_steps(steps, addresses, canonical):
    """Enter steps into the table; their places there, -1 for none."""
    _, by_rows = partition(*canonical.shape, canonical.dtype.itemsize, False)
    variant = list(_DTYPES).index(canonical.dtype.name) * 2 + by_rows
    places = []
    for step, address in zip(steps, addresses, strict=True):
        place = -1
        if step is not None:
            place = _STEPS + _FUNCTIONS.index(step) * len(_DTYPES) * 2 + variant
            _table[place] = address
        places.append(place)
    return places


def _varying_axes(operands):
    """The mesh axes, inside `jax.shard_map`, that any operand differs along."""
    return frozenset[Any]().union(*(jax.typeof(each).manual_axis_type.varying for each in operands))


def _varying(results, operands):
    """The types of results, which differ between devices wherever an operand does."""
    axes = _varying_axes(operands)
    if not axes:
        return list(results)
    sharding = jax.sharding.NamedSharding(
        jax.sharding.get_abstract_mesh(), jax.sharding.PartitionSpec()
    )
    varying = jax.sharding.ManualAxisType(varying=axes)
    return [
        jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding, manual_axis_type=varying)
        for each in results
    ]


def vary_alike(tensors, others):
    """Tensors, by name, as ones that differ between devices wherever any of them, or of
    `others`, does.

    Inside `jax.shard_map`, a parameter that is the same everywhere has the sum of all
    devices' gradients: JAX takes it where the parameter begins to differ.
    """
    axes = _varying_axes((*tensors.values(), *others.values()))
    return {
        name: jax.lax.pcast(each, tuple(axes - _varying_axes((each,))), to="varying")
        for name, each in tensors.items()
    }
