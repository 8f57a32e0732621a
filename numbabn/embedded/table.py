"""The table: what compiled code finds by its place, and each process has elsewhere.

This module says what is where; `process` fills in C functions and messages, a framework's
package what it calls there, `plans` the steps.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..cpu import steps
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
    steps.statistics,
    steps.forward_coefficients,
    steps.normalize,
    steps.given_coefficients,
    steps.mean_coefficients,
    steps.gradient_sums,
    steps.backward_coefficients,
    steps.gradient,
)
_LAYOUTS = 2

entries = np.zeros(STEPS + len(_FUNCTIONS) * len(DTYPES) * _LAYOUTS, np.int64)

# What `entry` refers to; `process` gives it the address of `entries` in this process.
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
