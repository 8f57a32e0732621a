"""Between the tensors of a framework and arrays: one module for each backend of Keras.

A bridge knows nothing of batch normalization. It is given a `Function` of :mod:`..operations`:
the descriptions of an operation and of the one that computes its gradient. It runs them on its
framework's tensors, inside that framework's differentiation, by what goes by their names: over
arrays in `COMPUTE` there, in compiled programs in `numbabn.embedded`. Each bridge is a module with

    apply(function, inputs, attributes) -> results
        `inputs` maps the names of the operands of `function.forward` that are there to
        tensors, or to a `Late`. `results` maps the names of its results to tensors; that
        which is `function.result` is differentiable with respect to `function.arguments`, the
        others are constants, and those in `function.residuals` are left out.
    in_graph(tensor) -> bool
        whether a graph is being traced that may change what `tensor` holds.
    is_traced(tensor) -> bool
        whether `tensor`, a result, stands in a computation that is traced, and has no value yet.
    paths() -> dict
        what computes, and why, by the place that tensors are in; see `numbabn.keras.details`.
    SUPPORTS_JIT
        whether `apply` may run in a function that is compiled by XLA.

What a bridge promises:

- The forward runs once for a forward and the backward once for a backward, on the tensors'
  own memory where the framework lets it be read.
- No gradient flows into an input outside of `function.arguments`, and one that nobody asks
  for is not computed, where the framework says so.
- Differentiating the gradient raises an error with `SECOND_DERIVATIVE`.
- `residuals` are what only the backward reads: a bridge keeps them in any form that loses
  nothing (JAX, which has no float64 by default, as pairs of uint32).
- A `Late` input is read when the computation runs, compiled or not, never when it is traced.

Why the gradient is wired here and not by `keras.ops.custom_gradient`: on JAX that closes over
the forward's output, so `jax.grad` of a `jax.jit` function, `jax.checkpoint` and `keras.remat`
fail on an escaped tracer; and on torch it says nothing of which gradients are wanted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

BACKENDS = ("torch", "tensorflow", "jax", "numpy")

# What differentiating a gradient says; the name of the function is put in.
SECOND_DERIVATIVE = (
    "the gradient of {} is computed by a kernel that has no derivative of its own: second "
    "derivatives (gradient penalties, Hessians) need keras.layers.BatchNormalization, which "
    "numbabn.keras.convert(model, to_keras=True) puts back"
)


@dataclass(frozen=True)
class Late:
    """A number that is read anew whenever the computation runs: a float32 input of shape ().

    read: takes nothing, returns a float; the same object for every call of a layer, so that
        compiled functions can be found again
    """

    read: Callable[[], float]


def bridge_of(backend: str) -> ModuleType:
    """The bridge of the backend that Keras runs on; no other framework is imported.

    Raises:
        ValueError: there is none for it.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"numbabn.keras runs on the backends {', '.join(BACKENDS)}, and Keras runs on "
            f"{backend}: set KERAS_BACKEND before Keras is imported"
        )
    return importlib.import_module(f".{backend}", __name__)


def read_late(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` with the numbers that are read when the computation runs, read."""
    return {
        name: np.float32(value.read()) if isinstance(value, Late) else value
        for name, value in inputs.items()
    }
