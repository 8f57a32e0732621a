"""Running the steps of `kernels` over tasks.

A step is compiled once for a dtype and a layout, as a C function. `run` calls up to four
of them; it is compiled with `parallel=True` and, from the same body, serial, for small
work and forked children. Both call the same machine code, so both give the same bits; and
Numba's parallel pass, which takes seconds over large functions, sees a small one, once
for all dtypes.
"""

from typing import Any

from llvmlite import ir
from numba import carray, config, prange, types
from numba.extending import intrinsic

from . import kernels
from .compile import c_function, exact, kernel
from .kernels import COEFFICIENTS, VALUES
from .partition import Partition

_TOTAL, _CHANNELS, _COLUMNS, _SPLITS = (
    Partition._fields.index(name) for name in ("total", "channels", "columns", "splits")
)
_WORDS, _INNER, _LENGTH, _MASK = kernels.WORDS, kernels.INNER, kernels.LENGTH, kernels.MASK_BYTES

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
        carray(numbers, (4,)),
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


def run(steps, tiles, splits, arguments):
    """Run four steps, each the address of a C function, or 0 for none.

    steps: prepare, once for each tile; measure, once for each task, a split of a tile;
        combine, once for each tile; apply, once for each task
    arguments: tuple of addresses, the arguments of every step
    """
    prepare, measure, combine, apply = steps
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


run_serial = kernel(run, "run_serial", parallel=False)
run_parallel = kernel(run, "run_parallel", parallel=True)

_ELEMENTS = {
    "float16": (types.uint16, types.float32),
    "bfloat16": (types.int16, types.float32),
    "float32": (types.float32, types.float32),
    "float64": (types.float64, types.float64),
}
_steps: dict[Any, Any] = {}


def step(function, dtype_name, by_rows, inner):
    """A step of `kernels` as `run` takes it; compiled, or loaded, on first use."""
    if config.DISABLE_JIT:
        layout = (True, None) if by_rows else (None, inner)
        return lambda *arguments: function(*arguments, *layout)
    key = (function, dtype_name, by_rows)
    compiled = _steps.get(key)
    if compiled is None:
        compiled = _steps[key] = _compile(function, dtype_name, by_rows)
    return compiled.address


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


def _addresses(x, dy, out, on, scratch):
    return x.ctypes.data, dy.ctypes.data, out.ctypes.data, on.ctypes.data, scratch.ctypes.data


# Compiled for the types of a call: that reads five addresses in less than the time in which
# NumPy tells one.
addresses = kernel(_addresses, "addresses", parallel=False)
if config.DISABLE_JIT:

    def addresses(*arrays):
        return arrays


def memory(array):
    """An array as `run` takes it among the arguments: its address."""
    return array if config.DISABLE_JIT else array.__array_interface__["data"][0]


def scratch_memory(scratch, address, plan):
    """A plan's scratch as `run` takes it: numbers, values, partial, coefficients.

    address: of `scratch`, from `addresses`
    """
    cut = plan.cut
    partial = 4 + VALUES * cut.channels
    coefficients = partial + cut.splits * 3 * cut.columns
    if config.DISABLE_JIT:
        table = scratch[coefficients:].view(plan.compute_dtype)[: COEFFICIENTS * cut.columns]
        return (
            scratch[:4],
            scratch[4:partial].reshape(VALUES, cut.channels),
            scratch[partial:coefficients].reshape(cut.splits, 3, cut.columns),
            table.reshape(COEFFICIENTS, cut.columns),
        )
    return address, address + 32, address + 8 * partial, address + 8 * coefficients
