"""JAX: kernels that XLA calls, or `jax.pure_callback`, inside its own rule for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from ...cpu import xla_ffi
from . import SECOND_DERIVATIVE, Function, Late, Operation, Shaped, read_late

SUPPORTS_JIT = True

Tensors = dict[str, Any]


class _Plan(NamedTuple):
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
    given = {name: value for name, value in inputs.items() if value is not None}
    late = tuple((name, value) for name, value in given.items() if isinstance(value, Late))
    arguments = {name: given.pop(name) for name in function.arguments if name in given}
    constants = {name: value for name, value in given.items() if not isinstance(value, Late)}
    if xla_ffi.is_available():
        arguments = xla_ffi.vary_alike(arguments, constants)
    results = _apply(_Plan(function, attributes, late), arguments, constants)
    return {name: value for name, value in results.items() if name not in function.residuals}


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds."""
    return isinstance(tensor, jax.core.Tracer)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(plan: _Plan, arguments: Tensors, constants: Tensors) -> Tensors:
    return _call(plan, plan.function.forward, {**arguments, **constants})


def _apply_forward(plan: _Plan, arguments: Any, constants: Any) -> tuple[Tensors, Any]:
    # With symbolic zeros JAX says which of the inputs a gradient is asked for.
    wanted = tuple(
        (name, primal.value.dtype) for name, primal in arguments.items() if primal.perturbed
    )
    given = {name: primal.value for name, primal in {**arguments, **constants}.items()}
    results = _call(plan, plan.function.forward, given)
    everything = {**given, **results}
    kept = {name: everything[name] for name in plan.function.kept if name in everything}
    return results, (kept, _Wanted(tuple(arguments), wanted))


def _apply_backward(plan: _Plan, residuals: Any, cotangents: Tensors) -> tuple[Any, None]:
    kept, wanted = residuals
    function = plan.function
    dy = cotangents[function.result]
    if isinstance(dy, jax.custom_derivatives.SymbolicZero):
        return None, None
    inputs = {**kept, "d" + function.result: dy}
    names = tuple("d" + name for name, _ in wanted.dtypes)
    found = _call(plan._replace(late=()), function.backward, inputs, names)
    gradients: dict[str, Any] = dict.fromkeys(plan.function.arguments)
    gradients |= {name: found["d" + name].astype(dtype) for name, dtype in wanted.dtypes}
    return {name: gradients[name] for name in wanted.arguments}, None


_apply.defvjp(_apply_forward, _apply_backward, symbolic_zeros=True)


def _call(
    plan: _Plan, operation: Operation, tensors: Tensors, wanted: tuple[str, ...] | None = None
) -> Tensors:
    """The outputs of `operation`, all of them or those that are `wanted`."""
    residuals = plan.function.residuals
    specs = {
        name: Shaped(value.shape, value.dtype.name)
        for name, value in tensors.items()
        if name not in residuals
    }
    specs |= {name: Shaped((), "float32") for name, _ in plan.late}
    shapes = operation.shapes(specs, plan.attributes)
    shapes = {name: shapes[name] for name in (shapes if wanted is None else wanted)}

    def host(arrays: Mapping[str, Any]) -> Tensors:
        given: dict[str, Any] = {
            name: _unpacked(np.asarray(value)) if name in residuals else np.asarray(value)
            for name, value in arrays.items()
        }
        given |= read_late(dict(plan.late))
        results = operation.host(given, plan.attributes, tuple(shapes), None)
        return {
            name: _packed(array) if name in residuals else array for name, array in results.items()
        }

    outputs = {
        name: _shape_of_packed(shape) if name in residuals
        else jax.ShapeDtypeStruct(shape.shape, shape.dtype)
        for name, shape in shapes.items()
    }  # fmt: skip
    call_back = partial(jax.pure_callback, host, outputs, vmap_method="sequential")

    def call_kernels(tensors: Tensors) -> Tensors:
        numbers = xla_ffi.read_numbers([value.read for _, value in plan.late]) if plan.late else ()
        late = {name: numbers[i] for i, (name, _) in enumerate(plan.late)}
        kernels = xla_ffi.OPERATIONS[operation.name]
        return kernels({**tensors, **late}, plan.attributes, tuple(shapes))

    run = call_back
    if operation.name in xla_ffi.OPERATIONS and xla_ffi.is_available():
        run = partial(_on_platform, call_kernels, call_back)
    return _undifferentiable(operation.name, run, tensors)


def _on_platform(cpu: Any, other: Any, tensors: Tensors) -> Tensors:
    if jax.default_backend() == "cpu":
        # There is no other: JAX puts the CPU last.
        return cpu(tensors)
    return jax.lax.platform_dependent(tensors, cpu=cpu, default=other)


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


def _shape_of_packed(shape: Shaped) -> Any:
    return jax.ShapeDtypeStruct((*shape.shape, 2), np.uint32)
