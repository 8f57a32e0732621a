"""Tables: what compiled code finds by its place, and each process has elsewhere.

Compiled code is cached, and holds places. So a table belongs to one module, which says what is in
it, and no place depends on what else is loaded. Here is what every call needs; `process` fills it
in, and has the tables of frameworks filled.
"""

from collections import namedtuple
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..cpu import steps
from .memory import DTYPES


class Table:
    """Words that have a place by their name, and then as many more as there are to be.

    at: the places, as a named tuple
    entry: a function for compiled code, of a place
    """

    def __init__(self, owner, names, more=0):
        self.at: Any = namedtuple("Places", names)(*range(len(names)))
        self.entries = np.zeros(len(names) + more, np.int64)
        symbol = f"numbabn_{owner}"
        llvmlite.binding.add_symbol(symbol, self.entries.ctypes.data)
        self.entry = _reader_of(symbol)

    def fill(self, **entries):
        """Put words in their places."""
        for name, word in entries.items():
            self.entries[getattr(self.at, name)] = word


def _reader_of(symbol):
    @intrinsic
    def entry(typing_context, place):
        """The entry at a place."""

        def generate(context, builder, signature, arguments):
            first = context.get_c_value(builder, ir.IntType(64), symbol)
            return builder.load(builder.gep(first, [arguments[0]]))

        return types.int64(types.int64), generate

    return entry


_C_FUNCTIONS = (
    "allocate",
    "free",
    "give_way",
    "advise",
    "interrupt",
    "explain_limits",
    "read_late",
)
MESSAGES = {
    "not_loaded": "numbabn: the kernels of this program are not loaded: it was not traced in this "
    "process",
    "misfit": "numbabn: the size or dtype of a buffer is not what this program was traced for",
    "no_memory": "numbabn: no memory for the scratch of a kernel",
}
TABLE = Table("table", (*_C_FUNCTIONS, *MESSAGES, "help_task", "is_parallel"))
AT, entry = TABLE.at, TABLE.entry

# Every step for each dtype and layout.
_FUNCTIONS = (
    steps.statistics,
    steps.forward_coefficients,
    steps.normalize,
    steps.given_coefficients,
    steps.mean_coefficients,
    steps.gradient_sums,
    steps.backward_coefficients,
    steps.given_sums,
    steps.gradient,
)
_LAYOUTS = 2

STEPS = Table("steps", (), len(_FUNCTIONS) * len(DTYPES) * _LAYOUTS)
step_at = STEPS.entry


def place_of(step, dtype_name, by_rows):
    """The place of a step of `cpu.steps`."""
    dtype = list(DTYPES).index(dtype_name)
    return (_FUNCTIONS.index(step) * len(DTYPES) + dtype) * _LAYOUTS + by_rows
