"""What each process does once: fill the tables, and find out whether a framework calls."""

import ctypes
import inspect
import logging
import os
import sys
import threading
from functools import lru_cache
from typing import Any

import numpy as np
from numba import config, types

from ..cpu import jobs, threads
from ..cpu.addresses import address_of
from ..cpu.compile import c_function
from . import callbacks
from .operations import IDENTITY
from .table import MESSAGES, TABLE

logger = logging.getLogger("numbabn")

# What the tables hold the addresses of.
_kept: list[Any] = []
_filling = threading.Lock()


def fill_table():
    """Fill the table of this package."""
    with _filling:
        _fill()


@lru_cache(maxsize=1)
def _fill():
    python = ctypes.pythonapi
    advise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
    jobs.fill_table()
    # Functions of Python's that need no GIL, or take it.
    TABLE.fill(
        allocate=address_of(python.PyMem_RawMalloc),
        free=address_of(python.PyMem_RawFree),
        advise=address_of(advise),
        interrupt=address_of(python.PyErr_SetInterrupt),
        explain_limits=address_of(callbacks.explain_limits),
        read_late=address_of(callbacks.read_late),
        is_parallel=not threads.in_forked_child(),
        **{name: address_of_text(message) for name, message in MESSAGES.items()},
    )


def enter(table, framework, *functions):
    """Compile functions of words that return one, and enter them into a table by their names."""
    for function in functions:
        number = len(inspect.signature(function).parameters)
        signature = types.int64(*[types.int64] * number)
        compiled = c_function(function, f"numbabn_{framework}_{function.__name__}", signature)
        _kept.append(compiled)
        table.fill(**{function.__name__: compiled.address})


def address_of_text(text):
    """The address of a C string, which stays."""
    buffer = ctypes.create_string_buffer(text.encode())
    _kept.append(buffer)
    return ctypes.addressof(buffer)


# Why a framework does not call the kernels, by its name.
_reasons: dict[str, str] = {}


def calls_kernels(framework, run, refusals):
    """Whether a framework calls the kernels, tried once; `why_not` has the reason.

    run: a function of the operands and attributes of `normalize` that returns outputs
    refusals: the errors by which the framework says that it does not
    """
    _reasons.pop(framework, None)
    reason = _refusal(run, refusals)
    if reason is None:
        logger.info("%s calls the kernels", framework)
        return True
    _reasons[framework] = reason
    logger.info("%s cannot call the kernels, so Python computes: %s", framework, reason)
    return False


def why_not(framework):
    """Why a framework that was tried does not call the kernels; None where it does."""
    return _reasons.get(framework)


def _refusal(run, refusals):
    if config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, and nothing is compiled"
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return "addresses have not 64 bits here"
    x = np.array([[1.0], [3.0]], np.float32)
    zeros = np.zeros(1, np.float32)
    try:
        outputs = run({"x": x, "moving_mean": zeros, "moving_variance": zeros}, IDENTITY)
        if all(np.array_equal(output, x) for output in outputs):
            return None
        return "a call of theirs gave other numbers than it should have"
    except refusals as error:
        return f"{type(error).__name__}: {error}"


def _stay_alone():
    """Other threads did not survive a fork."""
    TABLE.fill(is_parallel=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stay_alone)
