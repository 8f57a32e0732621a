"""Between the tensors of a framework and arrays: one module for each backend of Keras.

A bridge knows nothing of batch normalization, nor of which result has which gradient
(:mod:`..gradient`). It runs an `Operation` on its framework's tensors: over arrays by what goes
under its name in `numbabn.tensors.compute`, in compiled programs by `numbabn.embedded`. Each is a
module with

    run(operation, inputs, attributes, wanted=None) -> results
        `inputs` maps the names of the operands that are there to tensors, or to a `Late`.
        `results` maps the names of its results, those in `wanted`, to tensors.
    in_graph(tensor) -> bool
        whether a graph is being traced that may change what `tensor` holds.
    is_traced(tensor) -> bool
        whether `tensor`, a result, stands in a computation that is traced, and has no value yet.
    is_recomputed() -> bool
        whether a forward runs a second time, for a backward that kept nothing of the first.
    paths() -> dict
        what computes, and why, by the place that tensors are in; see `numbabn.keras.details`.
    SUPPORTS_JIT
        whether `run` may be in a function that is compiled by XLA.
    WIRING
        how gradients are wired on this framework, and beside it what :mod:`..gradient` asks there:

    derived_as(kernel, expression, tensors, names) -> results
        those of ``kernel(tensors)``, whose derivatives with respect to the tensors of these names
        are those of ``expression(tensors, results)``. A result that the expression lacks has none.
    corrections(saved) -> (r, d)
        the rows of what a forward saved.

What a bridge promises:

- An operation runs once for a call, on the tensors' own memory where the framework lets it be read.
- `saved`, which only a backward reads, is kept in any form that loses nothing (JAX, which has no
  float64 by default, has pairs of uint32).
- A `Late` input is read when the computation runs, compiled or not, never when it is traced.
"""

from __future__ import annotations

import importlib
from types import ModuleType

BACKENDS = ("torch", "tensorflow", "jax", "numpy")
# torch's compiler follows a look-up here, and no import.
_bridges: dict[str, ModuleType] = {}


def bridge_of(backend: str) -> ModuleType:
    """The bridge of the backend that Keras runs on; no other framework is imported.

    Raises:
        ValueError: there is none for it.
    """
    if backend not in _bridges:
        if backend not in BACKENDS:
            raise ValueError(
                f"numbabn.keras runs on the backends {', '.join(BACKENDS)}, and Keras runs on "
                f"{backend}: set KERAS_BACKEND before Keras is imported"
            )
        _bridges[backend] = importlib.import_module(f".{backend}", __name__)
    return _bridges[backend]
