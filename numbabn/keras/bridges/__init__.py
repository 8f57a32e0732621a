"""Between the tensors of a framework and arrays: one module for each backend of Keras.

A bridge knows nothing of batch normalization. It is given a :class:`Function`: two
:class:`Operation` s over NumPy arrays, a forward one and the one that computes its gradient,
and it runs them on its framework's tensors, inside that framework's differentiation. The bridges
of torch and JAX find the same operations over arrays of a CUDA device, by their names, in
:mod:`numbabn.keras.device`. Each bridge is a module with

    apply(function, inputs, attributes) -> results
        `inputs` maps the names in `function.forward.inputs` to tensors, to a `Late`, or to
        None where there is no such input. `results` maps the names of the outputs that exist
        (see `Operation.outputs`) to tensors; the first is differentiable with respect to
        `function.arguments`, the others are constants, and those in `function.residuals`
        are left out.
    in_graph(tensor) -> bool
        whether a graph is being traced that may change what `tensor` holds.
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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BACKENDS = ("torch", "tensorflow", "jax", "numpy")

# What differentiating a gradient says; the name of the function is put in.
SECOND_DERIVATIVE = (
    "the gradient of {} is computed by a kernel that has no derivative of its own: second "
    "derivatives (gradient penalties, Hessians) need keras.layers.BatchNormalization, which "
    "numbabn.keras.convert(model, to_keras=True) puts back"
)


class Shaped(NamedTuple):
    """The shape and the name of the dtype of an array that is not there yet.

    A size is None where a graph leaves it open.
    """

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Late:
    """A number that is read anew whenever the computation runs: a float32 input of shape ().

    read: takes nothing, returns a float; the same object for every call of a layer, so that
        compiled functions can be found again
    """

    read: Callable[[], float]


Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Operation:
    """A computation over NumPy arrays, by the names of what goes in and what comes out.

    name: for messages, and for targets other than `host` to be found by
    inputs: the names of the arrays that it takes; each may be absent
    shapes: (a Shaped for every input that is there, attributes) -> a Shaped for every output
        that exists, the largest first
    host: (inputs that are there, attributes, wanted, out) -> the outputs named in `wanted`,
        or all that exist where that is None. It only reads its inputs. `out` is None, or a
        C-ordered array to write the first output to. Without `out` the first output takes the
        memory order of `x`.
    attributes: any hashable object, known when a computation is traced
    moved: the inputs of which new values come back, under their own names
    """

    name: str
    inputs: tuple[str, ...]
    shapes: Callable[[Mapping[str, Shaped], Any], dict[str, Shaped]]
    host: Callable[
        [Mapping[str, NDArray[Any]], Any, tuple[str, ...] | None, NDArray[Any] | None], Arrays
    ]
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Function:
    """An operation and its gradient.

    arguments: the inputs of `forward` that it is differentiated with respect to
    result: the output of `forward` that is differentiated
    residuals: outputs of `forward` that only `backward` reads
    apart: groups of outputs of `backward` that cost little more on their own than together: a
        graph that computes them apart leaves out those that nobody reads

    `backward` reads ``"d" + result``, and inputs and outputs of `forward` under their own
    names; its outputs are ``"d" + argument``.
    """

    forward: Operation
    backward: Operation
    arguments: tuple[str, ...]
    result: str
    residuals: tuple[str, ...]
    apart: tuple[tuple[str, ...], ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """The inputs and outputs of `forward` that `backward` reads."""
        return tuple(name for name in self.backward.inputs if name != "d" + self.result)


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
