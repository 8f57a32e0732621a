"""The operations in JAX programs: XLA calls the kernels, without Python and without a copy.

XLA's foreign function interface calls a C function, the *handler*, with a *call frame*:
pointers to buffers and attributes (`c_api`). One handler serves every operation (`handlers`); the
plan that it carries out is an attribute of the call, made when a program is traced,
and part of the program. A program may outlive the process: JAX keeps compiled ones on disk.

Tasks go to the threads of XLA, as those of its own operations do.

The operations are those of `embedded.operations`. What a forward keeps, (6, channels) float64, goes
as its bits, (6, channels, 2) uint32: JAX has no float64 unless it is told to.
"""

from .calls import call, is_available, read_numbers, why_unavailable
from .sharding import vary_alike

__all__ = ["call", "is_available", "read_numbers", "vary_alike", "why_unavailable"]
