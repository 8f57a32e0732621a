"""JAX: kernels that XLA calls, inside JAX's own rule for the gradient.

On the CPU XLA calls them itself. On CUDA devices `buffer_callback` calls Python, which launches
them on XLA's stream, over XLA's memory. Elsewhere, and where the kernels are missing, a
`pure_callback` computes on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ...embedded import xla
from ...embedded.operations import Operation, Shaped
from ...targets import copy
from ..operations import COMPUTE, Function
from . import SECOND_DERIVATIVE, Late, read_late

SUPPORTS_JIT = True

Tensors = dict[str, Any]


class _Trace(NamedTuple):
    """What is known when a computation is traced."""

    function: Function
    attributes: Any
    late: tuple[tuple[str, Late], ...]


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Wanted:
    """The arguments, and those whose gradient is asked for with their dtypes.

    Kept for the backward beside arrays, without being one.
    """

    arguments: tuple[str, ...]
    dtypes: tuple[tuple[str, Any], ...]


def apply(function: Function, inputs: Mapping[str, Any], attributes: Any) -> Tensors:
    """Run `function`, differentiably; see the package's docstring."""
    late = tuple((name, value) for name, value in inputs.items() if isinstance(value, Late))
    tensors = {name: value for name, value in inputs.items() if not isinstance(value, Late)}
    arguments = {name: tensors.pop(name) for name in function.arguments if name in tensors}
    if xla.is_available():
        arguments = xla.vary_alike(arguments, tensors)
    results = _apply(_Trace(function, attributes, late), arguments, tensors)
    return {name: value for name, value in results.items() if name not in function.residuals}


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds."""
    return isinstance(tensor, jax.core.Tracer)


def is_traced(tensor: Any) -> bool:
    """Whether `tensor` stands in a computation that is traced."""
    return isinstance(tensor, jax.core.Tracer)


def paths() -> dict[str, str]:
    """What computes, and why, by the place that tensors are in."""
    reason = xla.why_unavailable()
    python = "Python, over copies on the host, by pure_callback"
    return {
        "CPU": f"{python}: {reason}"
        if reason is not None
        else "XLA calls the kernels, by a handler",
        "CUDA": "Python launches the kernels on XLA's stream, by buffer_callback"
        if device_is_available()
        else f"{python}: numba-cuda, or jax.experimental.buffer_callback, is not installed",
        "other devices": f"{python}: there are no kernels for them",
    }


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(trace: _Trace, arguments: Tensors, constants: Tensors) -> Tensors:
    return _call(trace, trace.function.forward, {**arguments, **constants})


def _apply_forward(trace: _Trace, arguments: Any, constants: Any) -> tuple[Tensors, Any]:
    # With symbolic zeros JAX says which of the inputs a gradient is asked for.
    wanted = tuple(
        (name, primal.value.dtype) for name, primal in arguments.items() if primal.perturbed
    )
    given = {name: primal.value for name, primal in {**arguments, **constants}.items()}
    results = _call(trace, trace.function.forward, given)
    everything = {**given, **results}
    kept = {name: everything[name] for name in trace.function.kept if name in everything}
    return results, (kept, _Wanted(tuple(arguments), wanted))


def _apply_backward(trace: _Trace, residuals: Any, cotangents: Tensors) -> tuple[Any, None]:
    kept, wanted = residuals
    function = trace.function
    dy = cotangents[function.result]
    if isinstance(dy, jax.custom_derivatives.SymbolicZero):
        return None, None
    inputs = {**kept, "d" + function.result: dy}
    names = tuple("d" + name for name, _ in wanted.dtypes)
    found = _call(trace._replace(late=()), function.backward, inputs, names)
    gradients: dict[str, Any] = dict.fromkeys(trace.function.arguments)
    gradients |= {name: found["d" + name].astype(dtype) for name, dtype in wanted.dtypes}
    return {name: gradients[name] for name in wanted.arguments}, None


_apply.defvjp(_apply_forward, _apply_backward, symbolic_zeros=True)


def _call(
    trace: _Trace, operation: Operation, tensors: Tensors, wanted: tuple[str, ...] | None = None
) -> Tensors:
    """The results of `operation`, all of them or those that are `wanted`."""
    residuals = trace.function.residuals
    known = {name: Shaped(value.shape, value.dtype.name) for name, value in tensors.items()}
    shapes = operation.results_of(known, trace.attributes)
    names = tuple(shapes) if wanted is None else wanted
    shapes = {name: shapes[name] for name in names}

    def host(arrays: Mapping[str, Any]) -> Tensors:
        given = {name: np.asarray(value) for name, value in arrays.items()}
        given |= {name: _unpacked(given[name]) for name in residuals if name in given}
        given |= read_late(dict(trace.late))
        results = COMPUTE[operation.name](given, trace.attributes, names, {})
        return {
            name: _packed(array) if name in residuals else array for name, array in results.items()
        }

    outputs = {name: _type_of(shape, name in residuals) for name, shape in shapes.items()}
    call_back = partial(jax.pure_callback, host, outputs, vmap_method="sequential")

    def call_kernels(tensors: Tensors) -> Tensors:
        numbers = xla.read_numbers([value.read for _, value in trace.late]) if trace.late else ()
        late = {name: numbers[i] for i, (name, _) in enumerate(trace.late)}
        return xla.call(operation.name, {**tensors, **late}, trace.attributes, names)

    def call_device(tensors: Tensors) -> Tensors:
        if device_is_available():
            return _on_device(trace, operation, shapes, tensors)
        return call_back(tensors)

    on_cpu = call_kernels if xla.is_available() else call_back
    run = partial(_on_platform, on_cpu, call_device, call_back)
    return _undifferentiable(operation.name, run, tensors)


def _on_platform(cpu: Any, cuda: Any, other: Any, tensors: Tensors) -> Tensors:
    if jax.default_backend() == "cpu":
        # There is no other: JAX puts the CPU last.
        return cpu(tensors)
    return jax.lax.platform_dependent(tensors, cpu=cpu, cuda=cuda, default=other)


def device_is_available() -> bool:
    """Whether there are kernels for CUDA devices here, and a JAX that calls them."""
    needed = ("numba_cuda", "jax.experimental.buffer_callback")
    return all(find_spec(name) is not None for name in needed)


def _on_device(
    trace: _Trace, operation: Operation, shapes: Mapping[str, Shaped], tensors: Tensors
) -> Tensors:
    """The outputs named in `shapes`, computed in XLA's buffers on a CUDA device."""
    from jax.experimental.buffer_callback import buffer_callback

    residuals = trace.function.residuals
    # What is moved on a device has at least 32 bits.
    moved = {name: tensors[name].dtype for name in operation.moved if name in tensors}
    narrow = [name for name, dtype in moved.items() if dtype.itemsize < 4]
    tensors = {**tensors, **{name: tensors[name].astype(np.float32) for name in narrow}}
    kinds = {name: each.dtype.name for name, each in tensors.items()}
    shapes = {
        name: shape._replace(dtype="float32") if name in narrow else shape
        for name, shape in shapes.items()
    }

    def fill(context: Any, outputs: Tensors, inputs: Tensors) -> None:
        def array(name: str, buffer: Any, kind: str) -> _Buffer:
            return _Buffer(buffer, kind, name in residuals, context)

        given = {name: array(name, each, kinds[name]) for name, each in inputs.items()}
        into = {name: array(name, each, shapes[name].dtype) for name, each in outputs.items()}
        given |= read_late(dict(trace.late))
        results = COMPUTE[operation.name](given, trace.attributes, tuple(into), into)
        for name, target in into.items():
            if results[name] is not target:
                copy(results[name], target)

    types = {
        name: _type_of(shape._replace(dtype=_BITS.get(shape.dtype, shape.dtype)), name in residuals)
        for name, shape in shapes.items()
    }
    call = buffer_callback(fill, types, vmap_method="sequential")
    found = call({name: _as_bits(each) for name, each in tensors.items()})
    found = {
        name: each if name in residuals else _from_bits(each, shapes[name].dtype)
        for name, each in found.items()
    }
    return {**found, **{name: found[name].astype(dtype) for name, dtype in moved.items()}}


# The CUDA array interface, by which buffers come, has no bfloat16.
_BITS = {"bfloat16": "uint16"}


def _as_bits(tensor: Any) -> Any:
    bits = _BITS.get(tensor.dtype.name)
    return tensor if bits is None else jax.lax.bitcast_convert_type(tensor, bits)


def _from_bits(tensor: Any, kind: str) -> Any:
    return jax.lax.bitcast_convert_type(tensor, jnp.bfloat16) if kind in _BITS else tensor


class _Buffer:
    """A buffer of XLA's as an array on its device: its memory, dtype and stream."""

    def __init__(self, buffer: Any, kind: str, packed: bool, context: Any) -> None:
        interface = dict(buffer.__cuda_array_interface__)
        if kind == "bfloat16":
            interface["typestr"] = "<V2"  # as torch has it
        if packed:
            interface["typestr"], interface["shape"] = "<f8", interface["shape"][:-1]
        # Buffers are row-major. The default stream has a number of its own in the interface.
        interface |= {"strides": None, "stream": context.stream or 1}
        self.__cuda_array_interface__ = interface


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _undifferentiable(name: str, run: Callable[[Tensors], Tensors], tensors: Tensors) -> Tensors:
    return run(tensors)


@_undifferentiable.defjvp
def _raise(name: str, run: Any, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(SECOND_DERIVATIVE.format(name))


# Float64 without jax_enable_x64: its bits, as a last axis of two uint32.


def _packed(array: NDArray[np.float64]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(array).view(np.uint32).reshape(*array.shape, 2)


def _unpacked(array: NDArray[np.uint32]) -> NDArray[np.float64]:
    return np.ascontiguousarray(array).view(np.float64)[..., 0]


def _type_of(shaped: Shaped, packed: bool) -> Any:
    if packed:
        return jax.ShapeDtypeStruct((*shaped.shape, 2), np.uint32)
    return jax.ShapeDtypeStruct(shaped.shape, shaped.dtype)
