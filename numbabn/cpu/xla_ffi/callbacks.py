"""What only Python knows: numbers that are read late, and what is wrong with limits.

Handlers run without the GIL, and ask by a *request*: words, to a C function that takes it.
"""

import ctypes
import logging
from collections.abc import Callable

import numpy as np
from numba import carray

from ...renorm import RenormClipping
from ..compile import exact
from . import c_api, table

logger = logging.getLogger("numbabn")

# To `read_number`: which number, the number as float64, and if there is none, why. To
# `explain_limits`: the limits as float64, and what is wrong. The reason is a C string.
_INDEX, _NUMBER, _REASON, _REQUEST = 0, 1, 3, 40

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
        # Nothing can be raised into XLA. It gets the text, and raises an error of its own.
        logger.exception("a number that a JAX program reads cannot be read")
        _give_reason(address, f"{type(error).__name__}: {error}")
        return 0
    ctypes.c_double.from_address(address + 8 * _NUMBER).value = number
    return 1


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def explain_limits(address):
    """Say what is wrong with limits as everywhere else."""
    try:
        RenormClipping(*(ctypes.c_double * 3).from_address(address))
    except (TypeError, ValueError) as error:
        _give_reason(address, str(error))
    return 0


def _give_reason(address, text):
    encoded = text.encode()[: 8 * (_REQUEST - _REASON) - 1] + b"\0"
    ctypes.memmove(address + 8 * _REASON, encoded, len(encoded))


@exact
def limits_error(api, limits):
    """XLA's error for limits of renorm, (3,) float64, that are none."""
    address = c_api.call(table.entry(table.ALLOCATE), 8 * _REQUEST)
    if address == 0:
        return c_api.error(api, c_api.RESOURCE_EXHAUSTED, table.entry(table.NO_MEMORY))
    carray(c_api.pointer(address), (3,), np.float64)[:] = limits
    c_api.call(table.entry(table.EXPLAIN_LIMITS), address)
    error = c_api.error(api, c_api.INVALID_ARGUMENT, address + 8 * _REASON)
    c_api.call(table.entry(table.FREE), address)
    return error


def read(frame):
    """Read the numbers whose indices are the call's attribute into its result.

    A handler, as `handler.execute`.
    """
    frame = carray(frame, (c_api.FRAME,))
    if c_api.answers_metadata(frame):
        return 0
    api = c_api.api_of(frame)
    address, size = c_api.attribute_of(frame)
    indices = c_api.words(address, size)
    result = c_api.array_of(c_api.results_of(frame)[0], (size,), np.float32)
    address = c_api.call(table.entry(table.ALLOCATE), 8 * _REQUEST)
    if address == 0:
        return c_api.error(api, c_api.RESOURCE_EXHAUSTED, table.entry(table.NO_MEMORY))
    request = c_api.words(address, _REQUEST)
    error = 0
    for k in range(size):
        request[_INDEX] = indices[k]
        if c_api.call(table.entry(table.READ_NUMBER), address) == 0:
            error = c_api.error(api, c_api.INVALID_ARGUMENT, address + 8 * _REASON)
            break
        result[k] = c_api.double(request[_NUMBER])
    c_api.call(table.entry(table.FREE), address)
    return error
