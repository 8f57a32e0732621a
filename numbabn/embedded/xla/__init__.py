"""The operations in JAX programs: XLA calls the kernels, without Python and without a copy.

XLA's foreign function interface calls a C function, the *handler*, with a *call frame*:
pointers to buffers and attributes (`c_api`). One handler serves every operation (`handler`); the
plan that it carries out is an attribute of the call, made when a program is traced,
and part of the program. A program may outlive the process: JAX keeps compiled ones on disk.

Tasks go to the threads of XLA, as those of its own operations do.

An operation has the name, inputs and outputs of one of `numbabn.keras.operations`; its
attributes have `axis`, `epsilon`, `momentum`, `renorm` and `renorm_momentum`. The output
`values`, (6, channels) float64, goes as its bits, (6, channels, 2) uint32: JAX has no float64
unless it is told to.
"""

from .calls import OPERATIONS, forward, is_available, normalize, read_numbers
from .sharding import vary_alike

__all__ = [
    "OPERATIONS",
    "forward",
    "is_available",
    "normalize",
    "read_numbers",
    "vary_alike",
]
