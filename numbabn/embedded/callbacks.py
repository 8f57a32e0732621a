"""What only Python knows: numbers that are read late, and what is wrong with limits.

Compiled functions run without the GIL, and ask by a *request*: words, to a C function that
takes it.
"""

import ctypes
import logging
from collections.abc import Callable

import numpy as np
from numba import carray

from ..cpu.compile import exact
from ..renorm import RenormClipping
from . import table
from .memory import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, call, pointer, words

logger = logging.getLogger("numbabn")

# To `read_late`: how many numbers, the address of their indices and that of the float32 that they
# become; and if one cannot be had, why. To `explain_limits`: the limits as float64, and what is
# wrong. The reason is a C string.
REASON, REQUEST = 3, 40

_readers: list[Callable[[], float]] = []


def index_of(reader):
    """The number by which a program asks for what `reader` returns."""
    # A program may outlive the layer that a reader belongs to.
    if reader not in _readers:
        _readers.append(reader)
    return _readers.index(reader)


# All of them at once: a thread that is not Python's gets a state of its own for each callback.
@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def read_late(address):
    """Answer a request; 0 where a number cannot be had."""
    size, indices, numbers = (ctypes.c_int64 * 3).from_address(address)
    try:
        for k, index in enumerate((ctypes.c_int64 * size).from_address(indices)):
            ctypes.c_float.from_address(numbers + 4 * k).value = float(_readers[index]())
    except Exception as error:
        # Nothing can be raised into a framework. It gets the text, and raises an error itself.
        logger.exception("a number that a compiled program reads cannot be read")
        give_reason(address, f"{type(error).__name__}: {error}")
        return 0
    return 1


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def explain_limits(address):
    """Say what is wrong with limits as everywhere else."""
    try:
        RenormClipping(*(ctypes.c_double * 3).from_address(address))
    except (TypeError, ValueError) as error:
        give_reason(address, str(error))
    return 0


def give_reason(address, text):
    """Put a text where an unanswered request has its reason."""
    encoded = text.encode()[: 8 * (REQUEST - REASON) - 1] + b"\0"
    ctypes.memmove(address + 8 * REASON, encoded, len(encoded))


@exact
def fail_limits(limits, source, fail):
    """Fail for limits of renorm, (3,) float64, that are none; see `execution` for `fail`."""
    address = call(table.entry(table.AT.allocate), (8 * REQUEST,))
    if address == 0:
        return call(fail, (source, RESOURCE_EXHAUSTED, table.entry(table.AT.no_memory)))
    carray(pointer(address), (3,), np.float64)[:] = limits
    call(table.entry(table.AT.explain_limits), (address,))
    failure = call(fail, (source, INVALID_ARGUMENT, address + 8 * REASON))
    call(table.entry(table.AT.free), (address,))
    return failure


@exact
def read_numbers(size, indices, numbers, source, fail):
    """Read the numbers of these indices; 0, or what `fail` returned.

    indices, numbers: addresses of words, and of float32
    """
    if size == 0:
        return 0
    address = call(table.entry(table.AT.allocate), (8 * REQUEST,))
    if address == 0:
        return call(fail, (source, RESOURCE_EXHAUSTED, table.entry(table.AT.no_memory)))
    request = words(address, REQUEST)
    request[0], request[1], request[2] = size, indices, numbers
    failure = 0
    if call(table.entry(table.AT.read_late), (address,)) == 0:
        failure = call(fail, (source, INVALID_ARGUMENT, address + 8 * REASON))
    call(table.entry(table.AT.free), (address,))
    return failure
