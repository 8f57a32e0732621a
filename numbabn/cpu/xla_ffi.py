"""The launchers of JAX programs: XLA calls the kernels, without Python and without a copy.

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

    x, dy           row-major JAX arrays, traced or not
    layout          `Layout` of such an array
    mask            bool of the rank of `x`, or None
    gamma, beta, mean, variance     (channels,) float32 or float64, or None
    reference       (mean, stddev, limits), the limits (3,): rmin, rmax, dmax; or None
    saved           (6, channels, 2) uint32: the bits of the `saved` of `launch`, because
                    JAX has no float64 unless it is told to
"""

import ctypes
import math
import os
import sys
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, config, types
from numba.extending import intrinsic

from .. import layout as lay
from . import kernels, launch, masks, tasks, threads
from .compile import c_function, exact
from .partition import Partition, partition

# The structs of `c_api.h`, as offsets in words of 8 bytes.
_API_VERSION = 3 << 32  # 0.3: int32 major, int32 minor
_FRAME_EXTENSION, _FRAME_API, _FRAME_CONTEXT, _FRAME_OPERANDS, _FRAME_RESULTS = 1, 2, 3, 9, 14
_FRAME_ATTRIBUTES, _FRAME = 20, 21
_BUFFER_DTYPE, _BUFFER_DATA, _BUFFER_RANK, _BUFFER_DIMENSIONS, _BUFFER = 2, 3, 4, 5, 6
_ARRAY_SIZE, _ARRAY_DATA, _ARRAY = 1, 2, 3
_EXTENSION_TYPE, _EXTENSION_NEXT, _EXTENSION_METADATA, _EXTENSION = 1, 2, 3, 4
_METADATA_VERSION, _METADATA = 3, 4
_API_ERROR_CREATE, _API_SCHEDULE, _API_THREADS, _API = 6, 17, 18, 19
_METADATA_TYPE = 1
_INVALID_ARGUMENT, _RESOURCE_EXHAUSTED, _FAILED_PRECONDITION = 3, 8, 9
_F32, _F64 = 11, 12
_DTYPES = {"float16": 10, "bfloat16": 16, "float32": _F32, "float64": _F64}


class _Plan(NamedTuple):
    """The head of a plan; the words of the kernels follow. -1 is for none."""

    # Places of the steps in `_table`.
    prepare: int
    measure: int
    combine: int
    apply: int
    dtype: int  # XLA's number of x's dtype
    epsilon: int  # the bits of a float64
    # Indices of operands.
    x: int
    dy: int
    mask: int
    saved: int
    mean: int
    variance: int
    gamma: int
    beta: int
    reference_mean: int
    reference_stddev: int
    limits: int
    # Indices of results.
    out: int
    saved_out: int
    rows_out: int
    first_row: int  # the row of `values` at which the rows of `rows_out` begin
    scaled: int  # whether gamma is to be divided by the standard deviation


_PREPARE, _DTYPE, _EPSILON, _X, _DY, _MASK, _SAVED, _LIMITS = (
    _Plan._fields.index(name)
    for name in ("prepare", "dtype", "epsilon", "x", "dy", "mask", "saved", "limits")
)
_OUT, _SAVED_OUT, _ROWS_OUT, _FIRST_ROW, _SCALED = (
    _Plan._fields.index(name) for name in ("out", "saved_out", "rows_out", "first_row", "scaled")
)
_HEAD = len(_Plan._fields)
# The operands that rows of `values` come from, and what a row is without one: as if the
# statistics were of nothing, and constants for the gradient.
_ROWS = (
    (kernels.MEAN, _Plan._fields.index("mean"), 0.0),
    (kernels.VARIANCE, _Plan._fields.index("variance"), 0.0),
    (kernels.GAMMA, _Plan._fields.index("gamma"), 1.0),
    (kernels.BETA, _Plan._fields.index("beta"), 0.0),
    (kernels.REFERENCE_MEAN, _Plan._fields.index("reference_mean"), 0.0),
    (kernels.REFERENCE_STDDEV, _Plan._fields.index("reference_stddev"), 0.0),
    (kernels.COUNT, -1, 0.0),
    (kernels.R, -1, 1.0),
    (kernels.D, -1, 0.0),
)

_TOTAL, _CHANNELS, _COLUMNS, _TILES, _SPLITS = (
    Partition._fields.index(name) for name in ("total", "channels", "columns", "tiles", "splits")
)

# The table: functions of the C library, messages, then every step for each dtype and layout.
(
    _ALLOCATE, _FREE, _YIELD, _FORMAT, _HELP_TASK, _PARALLEL,
    _NOT_LOADED, _MISFIT, _NO_MEMORY, _BAD_LIMITS,
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
# Numbers and scratch follow the job, at an address that is good for any vector.
_JOB = 40
_ARGUMENT_COUNT = 9


@intrinsic
def _pointer(typing_context, address):
    """An address as `carray` takes it."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


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
def _format(typing_context, function, text, size, form, first, second, third):
    """snprintf of three numbers to an address."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        function_type = ir.FunctionType(ir.IntType(32), [word, word, word], var_arg=True)
        builder.call(builder.inttoptr(arguments[0], function_type.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4, *(types.float64,) * 3), generate


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


# What the intrinsic below refers to; `_handler` gives it the table's address in this process.
_SYMBOL = "numbabn_xla_table"


@intrinsic
def _table_entry(typing_context, place):
    """The entry of `_table` at a place."""

    def generate(context, builder, signature, arguments):
        first = context.get_c_value(builder, ir.IntType(64), _SYMBOL)
        return builder.load(builder.gep(first, [arguments[0]]))

    return types.int64(types.int64), generate


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
                tasks._call(words[_JOB_STEPS + step], arguments, task)
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
def _run(job, api, context, size, tiles, splits):
    """Run a job, with as many threads of XLA as it gives work to."""
    words = _words(job, _JOB)
    most = _set_phases(words, tiles, splits)
    words[_HOLDERS] = 1
    if size >= threads.LEAST_PARALLEL and _table_entry(_PARALLEL) != 0:
        number = np.zeros(1, np.int64)
        query = np.zeros(4, np.int64)
        query[0], query[2], query[3] = 32, context, number.ctypes.data
        # An error means that there is no pool.
        pool = number[0] if _call(api[_API_THREADS], query) == 0 else 0
        helpers = min(pool - 1, most - 1, size // (threads.LEAST_PARALLEL // 2) - 1)
        request = np.zeros(5, np.int64)
        request[0], request[2], request[3], request[4] = 40, context, _table_entry(_HELP_TASK), job
        for _ in range(helpers):
            _add(job + 8 * _HOLDERS, 1)
            if _call(api[_API_SCHEDULE], request) != 0:
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
    channels = words[_CHANNELS]
    if _elements(x) != words[_TOTAL] or _int32(x + 8 * _BUFFER_DTYPE) != plan[_DTYPE]:
        return False
    if _elements(operands[plan[_DY]]) != words[_TOTAL]:
        return False
    if plan[_MASK] >= 0 and _elements(operands[plan[_MASK]]) != words[kernels.MASK_BYTES]:
        return False
    if plan[_SAVED] >= 0 and _elements(operands[plan[_SAVED]]) != kernels.SAVED * channels * 2:
        return False
    for _, source, _ in _ROWS:
        if source >= 0 and plan[source] >= 0 and _elements(operands[plan[source]]) != channels:
            return False
    return True


@exact
def _fill(plan, operands, values):
    """The rows of `values` that the kernels start from."""
    for row, source, default in _ROWS:
        if source >= 0 and plan[source] >= 0:
            _get(operands[plan[source]], values[row])
        else:
            values[row] = default
    if plan[_SAVED] >= 0:
        saved = values[: kernels.SAVED]
        saved[:] = carray(_pointer(_data(operands[plan[_SAVED]])), saved.shape, np.float64)


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

    _words(numbers_address, 1)[0] = plan[_EPSILON]
    numbers[1], numbers[2], numbers[3] = 0.0, np.inf, np.inf
    if plan[_LIMITS] >= 0:
        _get(operands[plan[_LIMITS]], numbers[1:])
        # So written, NaN is refused too.
        if not (numbers[1] <= numbers[2] and numbers[3] >= 0.0):
            # The job holds nothing yet: the message fits in it.
            _format(
                _table_entry(_FORMAT), job, 8 * _JOB, _table_entry(_BAD_LIMITS),
                numbers[1], numbers[2], numbers[3],
            )  # fmt: skip
            error = _error(api, _INVALID_ARGUMENT, job)
            _call(_table_entry(_FREE), job)
            return error
    _fill(plan, operands, values)
    if plan[_SCALED] != 0:
        for channel in range(channels):
            rstd = 1.0 / kernels.standard_deviation(values[kernels.VARIANCE, channel], numbers[0])
            values[kernels.GAMMA, channel], values[kernels.BETA, channel] = kernels.scale_shift(
                values[kernels.GAMMA, channel], values[kernels.BETA, channel], rstd, 1.0, 0.0
            )

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

    if plan[_SAVED_OUT] >= 0:
        saved = values[: kernels.SAVED]
        carray(_pointer(_data(results[plan[_SAVED_OUT]])), saved.shape, np.float64)[:] = saved
    if plan[_ROWS_OUT] >= 0:
        buffer = results[plan[_ROWS_OUT]]
        number = _elements(buffer) // max(1, channels)
        _put(buffer, values[plan[_FIRST_ROW] : plan[_FIRST_ROW] + number])
    _release(job)
    return 0


# The process


_MESSAGES = {
    _NOT_LOADED: "numbabn: the kernels of this program are not loaded: it was not traced in this "
    "process",
    _MISFIT: "numbabn: the size or dtype of a buffer is not what this program was traced for",
    _NO_MEMORY: "numbabn: no memory for the scratch of a kernel",
    _BAD_LIMITS: "renorm clipping: rmin must not exceed rmax and dmax must not be negative, "
    "got rmin=%g, rmax=%g and dmax=%g",
}


def _c_functions():
    """Functions of C, by their place in the table; all of them work without the GIL."""
    python = ctypes.pythonapi
    system = ctypes.windll.kernel32 if sys.platform == "win32" else ctypes.CDLL(None)
    return {
        _ALLOCATE: python.PyMem_RawMalloc,
        _FREE: python.PyMem_RawFree,
        _YIELD: system.SwitchToThread if sys.platform == "win32" else system.sched_yield,
        _FORMAT: python.PyOS_snprintf,
    }


@lru_cache(maxsize=1)
def _target():
    """The name under which XLA knows the handler; it is compiled, or loaded, and registered."""
    llvmlite.binding.add_symbol(_SYMBOL, _table.ctypes.data)
    for place, function in _c_functions().items():
        _table[place] = ctypes.cast(function, ctypes.c_void_p).value
    for place, message in _MESSAGES.items():
        text = ctypes.create_string_buffer(message.encode())
        _kept.append(text)
        _table[place] = ctypes.addressof(text)
    words = types.CPointer(types.int64)
    helper = c_function(_help, "xla_help", types.void(types.int64))
    handler = c_function(_execute, "xla_execute", types.int64(words))
    _kept.extend((helper, handler))
    _table[_HELP_TASK] = helper.address
    _table[_PARALLEL] = not threads.in_forked_child()
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    # XLA asks for a capsule of this name, and the capsule keeps the pointer to it.
    jax.ffi.register_ffi_target(
        handler.__name__, capsule(handler.address, _CAPSULE, None), platform="cpu"
    )
    # The name has a digest of the sources in it: an exported program of another version
    # does not find it, and plans are read by the code that they are for.
    return handler.__name__


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
    """Whether JAX's XLA calls the handler on the CPU: it must have the interface it was made for."""
    if config.DISABLE_JIT or ctypes.sizeof(ctypes.c_void_p) != 8 or not hasattr(jax, "ffi"):
        return False
    layout = lay.layout_of(np.zeros((2, 1), np.float32), -1)
    try:
        with (
            jax.ensure_compile_time_eval(),
            jax.default_device(jax.local_devices(backend="cpu")[0]),
        ):
            x = jnp.asarray([[1.0], [3.0]], jnp.float32)
            y = jax.jit(lambda x: normalize(x, layout, None, None, None, None, 1.0))(x)
            return bool((y == x).all())
    except (RuntimeError, NotImplementedError):
        # RuntimeError: XLA refuses the version, or there is no CPU backend.
        return False


# The launchers


def forward(x, layout, mask, gamma, beta, epsilon, reference=None):
    """Normalize `x` by its own statistics.

    Returns `y`, `saved`, and the six rows of `saved` rounded: (6, channels) of the
    dtype of parameters, count, mean, variance, r, d and gamma.
    """
    operands = {"gamma": gamma, "beta": beta}
    if reference is not None:
        operands["reference_mean"], operands["reference_stddev"], operands["limits"] = reference
    results = {
        "out": _like(x),
        "saved_out": jax.ShapeDtypeStruct((kernels.SAVED, layout.channels, 2), jnp.uint32),
        "rows_out": jax.ShapeDtypeStruct((kernels.SAVED, layout.channels), _parameter_dtype(x)),
    }
    return _launch(launch._FORWARD, x, layout, mask, operands, results, epsilon, kernels.COUNT)


def normalize(x, layout, mean, variance, gamma, beta, epsilon):
    """y = gamma · (x − mean) / sqrt(variance + epsilon) + beta"""
    operands = {"mean": mean, "variance": variance, "gamma": gamma, "beta": beta}
    results = {"out": _like(x)}
    (y,) = _launch(launch._NORMALIZE, x, layout, None, operands, results, epsilon, scaled=True)
    return y


def backward(dy, x, layout, mask, saved, epsilon):
    """The gradient of `forward`: dx, and (2, channels) dgamma and dbeta."""
    return _launch(
        launch._BACKWARD, x, layout, mask, {"dy": dy, "saved": saved}, _gradients(x, layout),
        epsilon, kernels.DGAMMA,
    )  # fmt: skip


def normalize_backward(dy, x, layout, mean, variance, gamma, epsilon):
    """The gradient of `normalize`, whose statistics are constants, as `backward` returns it."""
    operands = {"dy": dy, "mean": mean, "variance": variance, "gamma": gamma}
    return _launch(
        launch._BACKWARD, x, layout, None, operands, _gradients(x, layout), epsilon,
        kernels.DGAMMA, kind=masks.OFF,
    )  # fmt: skip


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _parameter_dtype(x):
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _gradients(x, layout):
    rows = jax.ShapeDtypeStruct((2, layout.channels), _parameter_dtype(x))
    return {"out": _like(x), "rows_out": rows}


def _launch(
    steps, x, layout, mask, operands, results, epsilon, first_row=0, scaled=False, kind=None
):
    """Call the handler: `results` by way of `steps`."""
    canonical = jax.ShapeDtypeStruct(layout.canonical_shape, x.dtype)
    on, geometry = _canonical_mask(mask, layout)
    renorm = "reference_mean" in operands
    run = launch._plan_for(steps, canonical, geometry, renorm, kind)
    places = _load_steps(steps, run.steps, canonical)
    operands = {"x": x, "mask": on, **operands}
    operands = {name: each for name, each in operands.items() if each is not None}
    # JAX arrays are row-major. Only channel axes that others lie between change places.
    memory = [axis for axis in layout.order if layout.shape[axis] != 1]
    order = None if memory == sorted(memory) else layout.order
    for name in ("x", "dy"):
        if order is not None and name in operands:
            operands[name] = operands[name].transpose(order)
    if order is not None:
        results = {**results, "out": _like(operands["x"])}
    indices = {**_numbered(operands), **_numbered(results)}
    indices.setdefault("dy", indices["x"])
    head = _Plan(
        *places,
        dtype=_DTYPES[x.dtype.name],
        epsilon=int(np.float64(epsilon).view(np.int64)),
        **{name: indices.get(name, -1) for name in _BUFFERS},
        first_row=first_row,
        scaled=scaled,
    )
    call = jax.ffi.ffi_call(_target(), _typed(results, operands), vmap_method="sequential")
    answers = call(*operands.values(), plan=np.concatenate((np.array(head, np.int64), run.words)))
    if order is None:
        return answers
    return answers[0].transpose(np.argsort(order)), *answers[1:]


_BUFFERS = _Plan._fields[_X : _OUT + 3]


def _numbered(buffers):
    return {name: index for index, name in enumerate(buffers)}


def _canonical_mask(mask, layout):
    """A mask as the kernels take it: what JAX has to compute, and its `layout.Mask`."""
    if mask is None:
        return None, None
    # Where its elements are follows from its shape. Any mask of that shape tells.
    geometry = lay.canonical_mask(np.zeros(mask.shape, np.bool_), layout)
    ordered = mask.transpose(layout.order)
    if geometry.axes is None:
        sizes = [1 if axis in layout.axes else layout.shape[axis] for axis in layout.order]
        ordered = jnp.broadcast_to(ordered, sizes)
    return ordered, geometry


def _load_steps(steps, addresses, canonical):
    """Enter steps into the table; their places there."""
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


def _typed(results, operands):
    """The results' types; inside `shard_map` they vary over the axes that operands vary over."""
    return list(results.values())
