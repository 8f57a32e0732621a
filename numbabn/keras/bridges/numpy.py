"""NumPy: the forward alone, since Keras does not train on this backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..operations import COMPUTE, Arrays, Function
from . import read_late

SUPPORTS_JIT = True  # Keras compiles nothing here.


def apply(function: Function, inputs: Mapping[str, Any], attributes: Any) -> Arrays:
    """Run the forward of `function`; see the package's docstring."""
    arrays = {name: np.asarray(value) for name, value in read_late(inputs).items()}
    results = COMPUTE[function.forward.name](arrays, attributes, None, {})
    return {name: array for name, array in results.items() if name not in function.residuals}


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds: never here."""
    return False


def is_traced(tensor: Any) -> bool:
    """Whether `tensor` stands in a computation that is traced: never here."""
    return False


def paths() -> dict[str, str]:
    """What computes, and why, by the place that tensors are in."""
    return {
        "CPU": "Python calls the kernels over NumPy's own arrays",
        "CUDA": "nothing: NumPy has no arrays there",
        "other devices": "nothing: NumPy has no arrays there",
    }
