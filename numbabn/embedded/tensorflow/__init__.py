"""The operations in TensorFlow programs: a kernel of TensorFlow's, without Python or a copy.

TensorFlow's C API takes C functions for the kernel of a new operator (`operator`). One
operator serves every operation, eagerly and in graphs. Its attribute `spec` is the number of a
*spec*, what is known of a call when it is traced (`records`); graphs may leave sizes open, so the
plan (see `embedded`) is found by the shapes of a call when it runs. The kernel looks among the
*records* that were made for its spec (`kernel`), and has Python make one for shapes that are new.

TensorFlow lends C functions no threads: tasks go to those of `cpu.pool`.

The operations are those of `embedded.operations`.
"""

from .calls import call, context_of, is_available, serves, why_unavailable
from .operator import OPERATOR

__all__ = ["OPERATOR", "call", "context_of", "is_available", "serves", "why_unavailable"]
