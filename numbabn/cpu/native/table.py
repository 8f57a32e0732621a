"""The table: what compiled code finds by its place, and each process has elsewhere.

This module says what is where; `registration` fills in C functions and messages, a framework's
package what it calls there, `plans` the kernels.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import kernels
from .memory import DTYPES

# C functions, whether work may go to other threads, messages (C strings), the threads of `pool`,
# what the package of
# each framework needs, then every step for each dtype and layout.
(
    ALLOCATE, FREE, YIELD, ADVISE, EXPLAIN_LIMITS, READ_LATE, HELP_TASK, PARALLEL,
    NOT_LOADED, MISFIT, NO_MEMORY, ACQUIRE, RELEASE, SEATS, SEAT_COUNT, OF_XLA,
) = range(16)  # fmt: skip
OF_TENSORFLOW = OF_XLA + 3
STEPS = OF_TENSORFLOW + 22
_FUNCTIONS = (
    kernels.statistics,
    kernels.forward_coefficients,
    kernels.normalize,
    kernels.given_coefficients,
    kernels.mean_coefficients,
    kernels.gradient_sums,
    kernels.backward_coefficients,
    kernels.gradient,
)
_LAYOUTS = 2

entries = np.zeros(STEPS + len(_FUNCTIONS) * len(DTYPES) * _LAYOUTS, np.int64)

# What `entry` refers to; `registration` gives it the address of `entries` in this process.
SYMBOL = "numbabn_table"


@intrinsic
def entry(typing_context, place):
    """The entry at a place."""

    def generate(context, builder, signature, arguments):
        first = context.get_c_value(builder, ir.IntType(64), SYMBOL)
        return builder.load(builder.gep(first, [arguments[0]]))

    return types.int64(types.int64), generate


def place_of(step, dtype_name, by_rows):
    """The place of a step of `kernels`."""
    dtype = list(DTYPES).index(dtype_name)
    return STEPS + (_FUNCTIONS.index(step) * len(DTYPES) + dtype) * _LAYOUTS + by_rows
