"""The table that every call of a framework's needs, and that of the steps.

`process` fills them in, and has the tables of frameworks filled.
"""

from ..cpu import steps
from ..cpu.addresses import Table
from .memory import DTYPES

_C_FUNCTIONS = (
    "allocate",
    "free",
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
TABLE = Table("table", (*_C_FUNCTIONS, *MESSAGES, "is_parallel"))
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
