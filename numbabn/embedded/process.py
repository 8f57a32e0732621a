"""What each process does once: fill the table."""

import ctypes
import os
import sys
import threading
from functools import lru_cache
from typing import Any

import llvmlite.binding
from numba import types

from ..cpu import threads
from ..cpu.compile import c_function
from . import callbacks, jobs, table

_MESSAGES = {
    table.NOT_LOADED: "numbabn: the kernels of this program are not loaded: it was not traced in "
    "this process",
    table.MISFIT: "numbabn: the size or dtype of a buffer is not what this program was traced for",
    table.NO_MEMORY: "numbabn: no memory for the scratch of a kernel",
}

# What the table holds the addresses of.
_kept: list[Any] = []
_filling = threading.Lock()


def fill_table():
    """Fill the table, but for the kernels and what is a framework's own."""
    with _filling:
        _fill()


@lru_cache(maxsize=1)
def _fill():
    llvmlite.binding.add_symbol(table.SYMBOL, table.entries.ctypes.data)
    for place, function in _c_functions().items():
        table.entries[place] = address_of(function)
    for place, message in _MESSAGES.items():
        text = ctypes.create_string_buffer(message.encode())
        _kept.append(text)
        table.entries[place] = ctypes.addressof(text)
    helper = c_function(jobs.help_task, "numbabn_help", types.void(types.int64))
    _kept.append(helper)
    table.entries[table.HELP_TASK] = helper.address
    table.entries[table.PARALLEL] = not threads.in_forked_child()


def enter(functions, prefix):
    """Compile functions of words that return one, and enter them into the table.

    functions: by their place there, each with the number of its arguments
    """
    for place, (function, number) in functions.items():
        signature = types.int64(*[types.int64] * number)
        compiled = c_function(function, f"numbabn_{prefix}_{function.__name__}", signature)
        _kept.append(compiled)
        table.entries[place] = compiled.address


def address_of(function):
    """The address of a C function that ctypes has found or made."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


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
        table.ADVISE: ctypes.CDLL(None).madvise if sys.platform == "linux" else None,
        table.EXPLAIN_LIMITS: callbacks.explain_limits,
        table.READ_LATE: callbacks.read_late,
    }


def _stay_alone():
    """Other threads did not survive a fork."""
    table.entries[table.PARALLEL] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stay_alone)
