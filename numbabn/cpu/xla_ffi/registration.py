"""What each process does once: fill the table, and make the handlers known to XLA."""

import ctypes
import os
import sys
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import llvmlite.binding
from numba import types

from .. import threads
from ..compile import c_function
from . import callbacks, handler, jobs, table

_MESSAGES = {
    table.NOT_LOADED: "numbabn: the kernels of this program are not loaded: it was not traced in "
    "this process",
    table.MISFIT: "numbabn: the size or dtype of a buffer is not what this program was traced for",
    table.NO_MEMORY: "numbabn: no memory for the scratch of a kernel",
}
# XLA asks for a capsule of this name, and the capsule keeps the pointer to it.
_CAPSULE = b"xla._CUSTOM_CALL_TARGET"

# What the table and XLA hold the addresses of.
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
    llvmlite.binding.add_symbol(table.SYMBOL, table.entries.ctypes.data)
    for place, function in _c_functions().items():
        table.entries[place] = ctypes.cast(function, ctypes.c_void_p).value or 0
    for place, message in _MESSAGES.items():
        text = ctypes.create_string_buffer(message.encode())
        _kept.append(text)
        table.entries[place] = ctypes.addressof(text)
    helper = c_function(jobs.help_task, "numbabn_help", types.void(types.int64))
    _kept.append(helper)
    table.entries[table.HELP_TASK] = helper.address
    table.entries[table.PARALLEL] = not threads.in_forked_child()
    return _Targets(
        _register(handler.execute, "numbabn_execute"), _register(callbacks.read, "numbabn_read")
    )


def _c_functions():
    """C functions by their place in the table; those of Python need no GIL, or take it."""
    python = ctypes.pythonapi
    give_way: Any
    if sys.platform == "win32":
        give_way = ctypes.windll.kernel32.SwitchToThread
    else:
        give_way = ctypes.CDLL(None).sched_yield
    return {
        table.ALLOCATE: python.PyMem_RawMalloc,
        table.FREE: python.PyMem_RawFree,
        table.YIELD: give_way,
        table.EXPLAIN_LIMITS: callbacks.explain_limits,
        table.READ_NUMBER: callbacks.read_number,
    }


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


def _stay_alone():
    """XLA's threads did not survive a fork."""
    table.entries[table.PARALLEL] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stay_alone)
