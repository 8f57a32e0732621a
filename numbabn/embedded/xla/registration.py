"""What each process does once: make the handlers known to XLA."""

import ctypes
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from numba import types

from ...cpu.compile import c_function
from .. import process
from . import handlers

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
    process.enter(
        {
            handlers.COUNT_OTHERS: (handlers.count_others, 1),
            handlers.SCHEDULE: (handlers.schedule, 3),
            handlers.FAIL: (handlers.fail, 3),
        },
        "xla",
    )
    return _Targets(
        _register(handlers.execute, "numbabn_execute"), _register(handlers.read, "numbabn_read")
    )


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
