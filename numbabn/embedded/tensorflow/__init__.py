"""The operations in TensorFlow programs: a kernel of TensorFlow's, without Python or a copy.

TensorFlow's C API takes C functions for the kernel of a new operator (`registration`). One
operator serves every operation, eagerly and in graphs. Its attribute `spec` is the number of a
*spec*, what is known of a call when it is traced (`specs`); graphs may leave sizes open, so the
plan (see `embedded`) is found by the shapes of a call when it runs. The kernel looks among the
*records* that were made for its spec (`kernel`), and has Python make one for shapes that are new.

TensorFlow lends C functions no threads: tasks go to those of `embedded.pool`.

An operation has the name, inputs and outputs of one of `numbabn.keras.operations`; its
attributes have `axis`, `epsilon`, `momentum`, `renorm` and `renorm_momentum`.
"""

from .calls import call, context_of, is_available, serves
from .operator import OPERATOR

__all__ = ["OPERATOR", "call", "context_of", "is_available", "serves"]
