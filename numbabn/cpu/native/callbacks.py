"""What only Python knows: numbers that are read late, and what is wrong with limits.

Compiled functions run without the GIL, and ask by a *request*: words, to a C function that
takes it.
"""

import ctypes
import logging
from collections.abc import Callable

import numpy as np
from numba import carray

from ...renorm import RenormClipping
from ..compile import exact
from . import table
from .memory import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, call, double, pointer, words

logger = logging.getLogger("numbabn")

# To `read_number`: which number, the number as float64, and if there is none, why. To
# `explain_limits`: the limits as float64, and what is wrong. The reason is a C string.
_INDEX, _NUMBER, REASON, REQUEST = 0, 1, 3, 40

_readers: list[Callable[[], float]] = []


def index_of(reader):
    """The number by which a program asks for what `reader` returns."""
    # A program may outlive the layer that a reader belongs to.
    if reader not in _readers:
        _readers.append(reader)
    return _readers.index(reader)


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def read_number(address):
    """Answer a request; 0 where the number cannot be had."""
    index = ctypes.c_int64.from_address(address).value
    try:
        number = float(_readers[index]())
    except Exception as error:
        # Nothing can be raised into a framework. It gets the text, and raises an error itself.
        logger.exception("a number that a compiled program reads cannot be read")
        give_reason(address, f"{type(error).__name__}: {error}")
        return 0
    ctypes.c_double.from_address(address + 8 * _NUMBER).value = number
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
    address = call(table.entry(table.ALLOCATE), (8 * REQUEST,))
    if address == 0:
        return call(fail, (source, RESOURCE_EXHAUSTED, table.entry(table.NO_MEMORY)))
    carray(pointer(address), (3,), np.float64)[:] = limits
    call(table.entry(table.EXPLAIN_LIMITS), (address,))
    failure = call(fail, (source, INVALID_ARGUMENT, address + 8 * REASON))
    call(table.entry(table.FREE), (address,))
    return failure


@exact
def read_numbers(indices, numbers, source, fail):
    """Read the numbers of these indices into `numbers`; 0, or what `fail` returned."""
    address = call(table.entry(table.ALLOCATE), (8 * REQUEST,))
    if address == 0:
        return call(fail, (source, RESOURCE_EXHAUSTED, table.entry(table.NO_MEMORY)))
    request = words(address, REQUEST)
    failure = 0
    for k in range(indices.size):
        request[_INDEX] = indices[k]
        if call(table.entry(table.READ_NUMBER), (address,)) == 0:
            failure = call(fail, (source, INVALID_ARGUMENT, address + 8 * REASON))
            break
        numbers[k] = double(request[_NUMBER])
    call(table.entry(table.FREE), (address,))
    return failure
