"""What compiled code knows of a framework's tensor.

A *buffer* is three words: where the elements are, how many, and which of `DTYPES` they have, or
-1 for another (a mask's).
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from ..cpu.compile import exact
from ..cpu.elements import pointer

DTYPES = ("float16", "bfloat16", "float32", "float64")
OTHER = -1
_FLOAT64 = DTYPES.index("float64")

DATA, ELEMENTS, DTYPE, BUFFER = range(4)

# What XLA and TensorFlow both number so, in an error.
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, FAILED_PRECONDITION = 3, 8, 9


@intrinsic
def double(typing_context, bits):
    """The float64 that has these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@exact
def int32(address):
    """The int32 at an address."""
    return carray(pointer(address), (1,), np.int32)[0]


@exact
def array_of(buffer, shape, dtype):
    """A buffer's elements as an array."""
    return carray(pointer(buffer[DATA]), shape, dtype)


@exact
def read_floats(buffer, values):
    """Copy a buffer of float32 or float64 to `values`."""
    if buffer[DTYPE] == _FLOAT64:
        values[:] = array_of(buffer, values.shape, np.float64)
    else:
        values[:] = array_of(buffer, values.shape, np.float32)


@exact
def write_floats(buffer, values):
    """Copy `values` to a buffer of float32 or float64."""
    if buffer[DTYPE] == _FLOAT64:
        array_of(buffer, values.shape, np.float64)[:] = values
    else:
        array_of(buffer, values.shape, np.float32)[:] = values
