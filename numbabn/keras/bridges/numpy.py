"""NumPy: the forward alone, since Keras does not train on this backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...embedded.operations import Operation
from ...tensors.compute import COMPUTE, Arrays, Wanted
from ...tensors.late import read_late

SUPPORTS_JIT = True  # Keras compiles nothing here.
WIRING = "none"


def run(
    operation: Operation, inputs: Mapping[str, Any], attributes: Any, wanted: Wanted = None
) -> Arrays:
    """Run an operation; see the package's docstring."""
    arrays = {name: np.asarray(value) for name, value in read_late(inputs).items()}
    return COMPUTE[operation.name](arrays, attributes, wanted, {})


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds: never here."""
    return False


def is_traced(tensor: Any) -> bool:
    """Whether `tensor` stands in a computation that is traced: never here."""
    return False


def is_recomputed() -> bool:
    """Whether a forward runs once more, for a backward: nothing tells here."""
    return False


def paths() -> dict[str, str]:
    """What computes, and why, by the place that tensors are in."""
    return {
        "CPU": "Python calls the kernels over NumPy's own arrays",
        "CUDA": "nothing: NumPy has no arrays there",
        "other devices": "nothing: NumPy has no arrays there",
    }
