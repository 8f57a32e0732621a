"""The handlers, the C functions that XLA calls, and how they become known to it."""

import ctypes
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from numba import carray, types

from ...cpu.addresses import Table, words
from ...cpu.compile import c_function
from .. import callbacks, execution, memory, process
from . import c_api

# What `execution` calls back.
TABLE = Table("xla", ("count_others", "schedule", "fail"))
_AT, _entry = TABLE.at, TABLE.entry


def execute(frame):
    """Run the call that a call frame describes; the address of an error, or 0.

    frame: (c_api.FRAME,) words of an XLA_FFI_CallFrame
    """
    frame = carray(frame, (c_api.FRAME,))
    if c_api.answers_metadata(frame):
        return 0
    plan_address, plan_size = c_api.attribute_of(frame)
    operands, results = c_api.operands_of(frame), c_api.results_of(frame)
    count, schedule, fail = _entry(_AT.count_others), _entry(_AT.schedule), _entry(_AT.fail)
    source = frame.ctypes.data
    return execution.execute(
        plan_address, plan_size, operands, results, source, count, schedule, fail
    )


def read(frame):
    """Read the numbers whose indices are the call's attribute into its result.

    A handler, as `execute`.
    """
    frame = carray(frame, (c_api.FRAME,))
    if c_api.answers_metadata(frame):
        return 0
    address, size = c_api.attribute_of(frame)
    numbers = c_api.results_of(frame)[0][memory.DATA]
    return callbacks.read_numbers(size, address, numbers, frame.ctypes.data, _entry(_AT.fail))


# What `execution` calls back; the source is the frame.


def count_others(source):
    """How many threads XLA's pool has besides the caller's."""
    frame = words(source, c_api.FRAME)
    return c_api.thread_count(c_api.api_of(frame), frame[c_api.FRAME_CONTEXT]) - 1


def schedule(source, function, argument):
    """Have a thread of XLA's pool call a C function."""
    frame = words(source, c_api.FRAME)
    return c_api.schedule(c_api.api_of(frame), frame[c_api.FRAME_CONTEXT], function, argument)


def fail(source, code, message):
    """The address of a new error."""
    return c_api.error(c_api.api_of(words(source, c_api.FRAME)), code, message)


# Registration

# XLA asks for a capsule of this name, and the capsule keeps the pointer to it.
_CAPSULE = b"xla._CUSTOM_CALL_TARGET"

# What XLA holds the addresses of.
_kept: list[Any] = []
_registering = threading.Lock()


class _Targets(NamedTuple):
    """The names under which XLA knows the handlers."""

    execute: str
    read: str


def targets():
    """The names of the handlers, which are registered by now."""
    # XLA refuses a second handler of one name.
    with _registering:
        return _registered()


@lru_cache(maxsize=1)
def _registered():
    process.fill_table()
    process.enter(TABLE, "xla", count_others, schedule, fail)
    return _Targets(_register(execute, "numbabn_execute"), _register(read, "numbabn_read"))


def _register(function, name):
    """Compile a handler, or load it, and make it known to XLA; its name there."""
    compiled = c_function(function, name, types.int64(types.CPointer(types.int64)))
    _kept.append(compiled)
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    # The name has a digest of the sources in it: a program that another version exported
    # does not find it, and plans are read by the code that they are for.
    jax.ffi.register_ffi_target(
        compiled.__name__, capsule(compiled.address, _CAPSULE, None), platform="cpu"
    )
    return compiled.__name__
