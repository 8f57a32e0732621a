"""The operations in JAX programs: XLA calls the kernels, without Python and without a copy.

XLA's foreign function interface calls a C function, the *handler*, with a *call frame*:
pointers to buffers and attributes (`c_api`). One handler serves every operation (`handler`).
Which kernels it runs, and on which buffers, an attribute of the call says: the *plan*, integers
that follow from shapes and dtypes and are part of the program (`plans`). A program may outlive
the process (JAX keeps compiled ones on disk), so it holds no address: a plan names its kernels
by their place in a table, which each process fills as it traces (`table`, `registration`).

Tasks go to the threads of XLA, as those of its own operations do (`jobs`). Numba's threads
would contend with XLA's, start a team for each thread that XLA calls from, and abort the
process where the layer is `workqueue`. What only Python knows, the handlers ask it for
(`callbacks`).

An operation has the name, inputs and outputs of one of `numbabn.keras.operations`; its
attributes have `axis`, `epsilon`, `momentum`, `renorm` and `renorm_momentum`. The output
`values`, (6, channels) float64, goes as its bits, (6, channels, 2) uint32: JAX has no float64
unless it is told to.
"""

from .operations import OPERATIONS, forward, is_available, normalize, read_numbers
from .sharding import vary_alike

__all__ = [
    "OPERATIONS",
    "forward",
    "is_available",
    "normalize",
    "read_numbers",
    "vary_alike",
]
