"""Running the steps of `steps` over tasks.

A step is compiled once for a dtype and a layout, as a C function. `run` calls up to four
of them; it is compiled with `parallel=True` and, from the same body, serial, for small
work and forked children. Both call the same machine code, so both give the same bits; and
Numba's parallel pass, which takes seconds over large functions, sees a small one, once
for all dtypes.
"""

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, config, prange, types
from numba.extending import intrinsic

from . import steps as kernels
from . import threads
from .compile import c_function, exact, kernel
from .partition import Partition
from .steps import COEFFICIENTS, VALUES

_TOTAL, _CHANNELS, _COLUMNS, _TILES, _SPLITS = (
    Partition._fields.index(name) for name in ("total", "channels", "columns", "tiles", "splits")
)
_WORDS, _INNER, _LENGTH, _MASK = kernels.WORDS, kernels.INNER, kernels.LENGTH, kernels.MASK_BYTES
# epsilon, rmin, rmax, dmax
_NUMBERS = 4

# What `_step` runs, and in which layout: each compilation has its own, see `_compile`.
STEP: Any = None
BY_ROWS = True


def _step(x, dy, out, on, words, numbers, values, partial, coefficients, task):
    """STEP over memory that is given as pointers."""
    head = carray(words, (_WORDS,))
    total, columns = (head[_TOTAL],), head[_COLUMNS]
    arrays = (
        carray(x, total),
        carray(dy, total),
        carray(out, total),
        carray(on, (head[_MASK],)),
        carray(words, (head[_LENGTH],)),
        carray(numbers, (_NUMBERS,)),
        carray(values, (VALUES, head[_CHANNELS])),
        carray(partial, (head[_SPLITS], 3, columns)),
        carray(coefficients, (COEFFICIENTS, columns)),
    )
    if BY_ROWS:
        STEP(*arrays, task, True, None)
    else:
        STEP(*arrays, task, None, head[_INNER])


def call(step, arguments, task):
    """Run a step on a task; where it is 0, nothing.

    step: address of a C function
    arguments: tuple of addresses, the step's arguments before `task`
    """
    if step:
        step(*arguments, task)


def _compiled_call(typing_context, step, arguments, task):
    def generate(context, builder, signature, values):
        address, pointers, task = values
        word = ir.IntType(64)
        with builder.if_then(builder.icmp_unsigned("!=", address, word(0))):
            words = [builder.extract_value(pointers, i) for i in range(signature.args[1].count)]
            function_type = ir.FunctionType(ir.VoidType(), [word] * (len(words) + 1))
            function = builder.inttoptr(address, function_type.as_pointer())
            builder.call(function, [*words, task])
        return context.get_dummy_value()

    return types.void(types.int64, arguments, types.int64), generate


if not config.DISABLE_JIT:
    call = intrinsic(_compiled_call)


def run(steps, words, arguments):
    """Run four steps, each the address of a C function, or 0 for none.

    steps: prepare, once for each tile; measure, once for each task, a split of a tile;
        combine, once for each tile; apply, once for each task
    words: as every step reads them
    arguments: tuple of addresses, the arguments of every step
    """
    tiles, splits = words[_TILES], words[_SPLITS]
    prepare, measure, combine, apply = steps[0], steps[1], steps[2], steps[3]
    if splits == 1:
        # A task has all of its columns: it goes through while they are in the cache.
        for tile in prange(tiles):
            call(prepare, arguments, tile)
            call(measure, arguments, tile)
            call(combine, arguments, tile)
            call(apply, arguments, tile)
    else:
        for tile in prange(tiles):
            call(prepare, arguments, tile)
        for task in prange(tiles * splits):
            call(measure, arguments, task)
        for tile in prange(tiles):
            call(combine, arguments, tile)
        for task in prange(tiles * splits):
            call(apply, arguments, task)


def memory(words):
    """`values` for a partition, and its scratch: numbers, partial and coefficients."""
    size = _NUMBERS + (3 * words[_SPLITS] + COEFFICIENTS) * words[_COLUMNS]
    return np.empty((VALUES, words[_CHANNELS])), np.empty(size)


def _addresses(x, dy, out, on, words, values, scratch):
    """The arguments of every step, from the arrays of a call.

    x, dy, out: (outer, channels, inner), 16-bit floats as the integers that kernels read
    """
    numbers = np.int64(scratch.ctypes.data)
    partial = numbers + 8 * _NUMBERS
    return (
        np.int64(x.ctypes.data),
        np.int64(dy.ctypes.data),
        np.int64(out.ctypes.data),
        np.int64(on.ctypes.data),
        np.int64(words.ctypes.data),
        numbers,
        np.int64(values.ctypes.data),
        partial,
        partial + 8 * 3 * words[_SPLITS] * words[_COLUMNS],
    )


def _views(x, dy, out, on, words, values, scratch):
    """What is at `_addresses`, as arrays."""
    splits, columns = words[_SPLITS], words[_COLUMNS]
    numbers, moments, table = np.split(scratch, (_NUMBERS, _NUMBERS + 3 * splits * columns))
    table = table.view(np.float64 if x.dtype == np.float64 else np.float32)
    return (
        x.reshape(-1), dy.reshape(-1), out.reshape(-1), on, words, numbers, values,
        moments.reshape(splits, 3, columns),
        table[: COEFFICIENTS * columns].reshape(COEFFICIENTS, columns),
    )  # fmt: skip


arguments_of = _views if config.DISABLE_JIT else kernel(_addresses, "addresses", parallel=False)
_compiled_arguments_of = exact(_views if config.DISABLE_JIT else _addresses)
_compiled_run = exact(run)
_run_parallel = kernel(run, "run_parallel", parallel=True)


@exact
def run_serial(steps, x, dy, out, on, words, values, scratch):
    """`run` on arrays, from what is compiled; its caller holds on to their memory."""
    _compiled_run(steps, words, _compiled_arguments_of(x, dy, out, on, words, values, scratch))


def run_parallel(steps, x, dy, out, on, words, values, scratch):
    """`run` on arrays, from Python, on Numba's threads."""
    arguments = arguments_of(x, dy, out, on, words, values, scratch)
    with threads.launching():
        _run_parallel(steps, words, arguments)


_ELEMENTS = {
    "float16": (types.uint16, types.float32),
    "bfloat16": (types.int16, types.float32),
    "float32": (types.float32, types.float32),
    "float64": (types.float64, types.float64),
}
_compiled: dict[Any, Any] = {}


def load(steps, dtype_name, by_rows, inner):
    """Steps of `steps` as `run` takes them; compiled, or loaded, on first use."""
    if config.DISABLE_JIT:
        layout = (True, None) if by_rows else (None, inner)
        return [step and partial(_call_with, step, layout) for step in steps]
    return np.array([_address(step, dtype_name, by_rows) for step in steps], np.int64)


def _call_with(step, layout, *arguments):
    step(*arguments, *layout)


def _address(step, dtype_name, by_rows):
    if step is None:
        return 0
    key = (step, dtype_name, by_rows)
    if key not in _compiled:
        _compiled[key] = _compile(*key)
    return _compiled[key].address


def _compile(function, dtype_name, by_rows):
    element, coefficient = _ELEMENTS[dtype_name]
    elements = types.CPointer(element)
    words, doubles = types.CPointer(types.int64), types.CPointer(types.float64)
    signature = types.void(
        elements, elements, elements, types.CPointer(types.uint8), words, doubles,
        doubles, doubles, types.CPointer(coefficient), types.int64,
    )  # fmt: skip
    layout = "channels_last" if by_rows else "channels_first"
    name = f"{function.__name__}_{layout}_{dtype_name}"
    return c_function(_step, name, signature, STEP=exact(function), BY_ROWS=by_rows)
