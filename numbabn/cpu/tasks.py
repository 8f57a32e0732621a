"""Running the steps of `steps` over tasks.

A step is compiled once for a dtype and a layout, as a C function. `run` calls up to four
of them; it is compiled serial, for small work and forked children, and, from the same body,
with `parallel=True`, for whoever chose a threading layer of Numba's. By default `pool` has
several threads call them, by the same rules (`jobs`). All of these call the same machine code, so
all give the same bits; and Numba's parallel pass, which takes seconds over large functions, sees a
small one, once for all dtypes.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, prange, types
from numba.extending import intrinsic

from . import rows, runs, work
from .compile import bound, c_function, exact, kernel
from .elements import array_at, read_fields
from .masks import ELEMENT as ELEMENT_MASK
from .masks import step_mask
from .partition import Partition
from .threads import launching
from .work import Arrays, Call, Numbers, Work

_TILES, _SPLITS = Partition._fields.index("tiles"), Partition._fields.index("splits")
# Of what `work.Call` has.
CALL = len(Partition._fields)
_SCRATCH = CALL + Call._fields.index("scratch")
TABLES = CALL + len(Call._fields)

_places = exact(work.places)

# What `_step` runs, on which elements, and the dtype of coefficients: each compilation has its
# own, see `_compile`.
STEP: Any = None
ELEMENT = COEFFICIENT = np.float32


def _step(x, dy, out, on, words, scratch, task):
    """STEP over memory that is given by its address."""
    head = array_at(words, 0, (TABLES,), np.int64)
    cut, call = read_fields(head, 0, Partition), read_fields(head, CALL, Call)
    at, total, columns = _places(cut), (cut.total,), cut.columns
    arrays = Arrays(
        array_at(x, 0, total, ELEMENT),
        array_at(dy, 0, total, ELEMENT),
        array_at(out, 0, total, ELEMENT),
    )
    size = 2 * (call.mask_outer + call.mask_inner) + (
        columns if call.mask_kind == ELEMENT_MASK else 0
    )
    tables = array_at(words, TABLES, (size,), np.int64)
    mask = step_mask(call, array_at(on, 0, (call.mask_bytes,), np.uint8), tables)
    numbers = array_at(scratch, at.numbers, (work.NUMBERS,), np.float64)
    STEP(
        Work(
            arrays,
            cut,
            mask,
            call.reference,
            read_fields(numbers, 0, Numbers),
            array_at(scratch, at.per_channel, (work.PER_CHANNEL, cut.channels), np.float64),
            array_at(scratch, at.partial, (cut.splits, work.PARTIAL, columns), np.float64),
            array_at(scratch, at.coefficients, (work.COEFFICIENTS, columns), COEFFICIENT),
        ),
        task,
    )


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
    """The scratch of a call; see `work.Places`."""
    return np.empty(words[_SCRATCH])


def _addresses(x, dy, out, on, words, scratch):
    """The arguments of every step, from the arrays of a call.

    x, dy, out: (outer, channels, inner), 16-bit floats as the integers that kernels read
    """
    return (
        np.int64(x.ctypes.data),
        np.int64(dy.ctypes.data),
        np.int64(out.ctypes.data),
        np.int64(on.ctypes.data),
        np.int64(words.ctypes.data),
        np.int64(scratch.ctypes.data),
    )


def _arrays(*arrays):
    """`_addresses`, where the JIT is off."""
    return arrays


arguments_of = _arrays if config.DISABLE_JIT else kernel(_addresses, "addresses", parallel=False)
# The same for what is compiled; its caller holds on to the memory of the arrays.
compiled_arguments_of = exact(_arrays if config.DISABLE_JIT else _addresses)
run_serial = exact(run)
_run_parallel = kernel(run, "run_parallel", parallel=True)


def run_parallel(steps, x, dy, out, on, words, scratch, threads):
    """`run` on arrays, from Python, on Numba's threads; it asks Numba itself how many."""
    arguments = arguments_of(x, dy, out, on, words, scratch)
    with launching():
        _run_parallel(steps, words, arguments)


# 16-bit floats as the integers that kernels read; and the dtype of coefficients.
_ELEMENTS = {
    "float16": (np.uint16, np.float32),
    "bfloat16": (np.int16, np.float32),
    "float32": (np.float32, np.float32),
    "float64": (np.float64, np.float64),
}
_compiled: dict[Any, Any] = {}


def load(steps, dtype_name, by_rows):
    """Steps of `steps` as `run` takes them; compiled, or loaded, on first use."""
    if config.DISABLE_JIT:
        return [step and bound(_step, **_bindings(step, dtype_name, by_rows)) for step in steps]
    return np.array([_address(step, dtype_name, by_rows) for step in steps], np.int64)


def _bindings(step, dtype_name, by_rows):
    element, coefficient = _ELEMENTS[dtype_name]
    step = bound(step, LAYOUT=rows if by_rows else runs)
    return {"STEP": exact(step), "ELEMENT": element, "COEFFICIENT": coefficient}


def _address(step, dtype_name, by_rows):
    if step is None:
        return 0
    key = (step, dtype_name, by_rows)
    if key not in _compiled:
        _compiled[key] = _compile(*key)
    return _compiled[key].address


def _compile(step, dtype_name, by_rows):
    signature = types.void(*[types.int64] * 7)
    name = f"{step.__name__}_{'channels_last' if by_rows else 'channels_first'}_{dtype_name}"
    return c_function(_step, name, signature, **_bindings(step, dtype_name, by_rows))
