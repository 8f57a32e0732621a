"""The handlers: the C functions that XLA calls."""

from numba import carray

from .. import callbacks, execution, memory, table
from . import frame as c_api

# In the table: what `execution` calls back.
COUNT_OTHERS, SCHEDULE, FAIL = range(table.OF_XLA, table.OF_XLA + 3)


def execute(frame):
    """Run the call that a call frame describes; the address of an error, or 0.

    frame: (c_api.FRAME,) words of an XLA_FFI_CallFrame
    """
    frame = carray(frame, (c_api.FRAME,))
    if c_api.answers_metadata(frame):
        return 0
    plan_address, plan_size = c_api.attribute_of(frame)
    return execution.execute(
        plan_address, plan_size, c_api.operands_of(frame), c_api.results_of(frame),
        frame.ctypes.data, table.entry(COUNT_OTHERS), table.entry(SCHEDULE), table.entry(FAIL),
    )  # fmt: skip


def read(frame):
    """Read the numbers whose indices are the call's attribute into its result.

    A handler, as `execute`.
    """
    frame = carray(frame, (c_api.FRAME,))
    if c_api.answers_metadata(frame):
        return 0
    address, size = c_api.attribute_of(frame)
    numbers = c_api.results_of(frame)[0][memory.DATA]
    return callbacks.read_numbers(size, address, numbers, frame.ctypes.data, table.entry(FAIL))


# What `execution` calls back; the source is the frame.


def count_others(source):
    """How many threads XLA's pool has besides the caller's."""
    frame = memory.words(source, c_api.FRAME)
    return c_api.thread_count(c_api.api_of(frame), frame[c_api.FRAME_CONTEXT]) - 1


def schedule(source, function, argument):
    """Have a thread of XLA's pool call a C function."""
    frame = memory.words(source, c_api.FRAME)
    return c_api.schedule(c_api.api_of(frame), frame[c_api.FRAME_CONTEXT], function, argument)


def fail(source, code, message):
    """The address of a new error."""
    return c_api.error(c_api.api_of(memory.words(source, c_api.FRAME)), code, message)
