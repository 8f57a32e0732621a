"""Writing past the caches.

An ordinary store first reads the cache line that it writes to. Where an output is too
large to stay in the cache for whoever reads it next, that is a third of a forward's memory
traffic for nothing: nontemporal stores write whole lines without it. They want aligned
lines, so results are gathered in a small buffer, which stays in the first-level cache, and
leave it line by line.
"""

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import exact

# Bytes of a cache line.
LINE = 64
# Bytes of the buffer: a quarter of a 32 KB first-level cache, beside what is read. The line
# that two flushes share is written the ordinary way; that is one in 128.
BUFFER = 8192
# Outputs from this size on are streamed. Half of a common last-level cache: what is smaller
# is better left there for the layer that comes next.
STREAMED_BYTES = 16 << 20


def _misaligned(array, index):
    """How many bytes past the start of a cache line ``array[index]`` is."""
    return (array.__array_interface__["data"][0] + index * array.itemsize) % LINE


def _copy_lines(target, target_index, source, source_index, lines):
    """Copy whole cache lines of `target`; the first begins at ``target[target_index]``."""
    count = lines * LINE // target.itemsize
    target[target_index : target_index + count] = source[source_index : source_index + count]


def _fence():
    """Make lines that were copied visible to other threads, in order."""


def _pointer(context, builder, array_type, array, index_type, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [context.cast(builder, index, index_type, types.intp)])


def _compiled_misaligned(typing_context, array, index):
    def generate(context, builder, signature, arguments):
        array_type, index_type = signature.args
        pointer = _pointer(context, builder, array_type, arguments[0], index_type, arguments[1])
        address = builder.ptrtoint(pointer, ir.IntType(64))
        return builder.and_(address, ir.IntType(64)(LINE - 1))

    return types.int64(array, index), generate


def _compiled_copy_lines(typing_context, target, target_index, source, source_index, lines):
    def generate(context, builder, signature, arguments):
        line = ir.VectorType(ir.IntType(32), LINE // 4).as_pointer()
        to, at = (
            builder.bitcast(
                _pointer(
                    context, builder, signature.args[i], arguments[i],
                    signature.args[i + 1], arguments[i + 1],
                ),
                line,
            )
            for i in (0, 2)
        )  # fmt: skip
        nontemporal = builder.module.add_metadata([ir.IntType(32)(1)])
        count = context.cast(builder, arguments[4], signature.args[4], types.intp)
        with cgutils.for_range(builder, count) as loop:
            item_bytes = signature.args[2].dtype.bitwidth // 8
            value = builder.load(builder.gep(at, [loop.index]), align=item_bytes)
            store = builder.store(value, builder.gep(to, [loop.index]), align=LINE)
            store.set_metadata("nontemporal", nontemporal)
        return context.get_dummy_value()

    return types.void(target, target_index, source, source_index, lines), generate


def _compiled_fence(typing_context):
    def generate(context, builder, signature, arguments):
        # On x86 this waits for nontemporal stores too, which `release` would not.
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


if not config.DISABLE_JIT:
    _misaligned = intrinsic(_compiled_misaligned)
    _copy_lines = intrinsic(_compiled_copy_lines)
    fence = intrinsic(_compiled_fence)
else:
    fence = _fence


@exact
def flush(buffer, count, out, start):
    """out[start : start + count] = buffer[:count], whole cache lines past the caches."""
    past = _misaligned(out, start)
    head = 0 if past == 0 else min(count, (LINE - past) // out.itemsize)
    for i in range(head):
        out[start + i] = buffer[i]
    lines = (count - head) * out.itemsize // LINE
    _copy_lines(out, start + head, buffer, head, lines)
    for i in range(head + lines * LINE // out.itemsize, count):
        out[start + i] = buffer[i]


@exact
def buffer_for(out, width, streamed):
    """A buffer for results of `width` elements at a time; empty where `out` is written itself."""
    return np.empty(max(BUFFER // out.itemsize, width) if streamed else 0, out.dtype)


@exact
def place_for(buffer, held, first, out, start, count):
    """Where in `buffer` the results of out[start : start + count] go.

    buffer: its first `held` elements are those of `out` from `first` on; they leave it where
        the new ones do not follow them, or do not fit
    Returns the new `held`, to which `count` is to be added, and the new `first`.
    """
    if held > 0 and (first + held != start or held + count > buffer.size):
        flush(buffer, held, out, first)
        held = 0
    return held, start - held
