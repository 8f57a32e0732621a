"""JAX: kernels that XLA calls.

On the CPU XLA calls them itself. On CUDA devices `buffer_callback` calls Python, which launches
them on XLA's stream, over XLA's memory. Elsewhere, and where the kernels are missing, a
`pure_callback` computes on the host.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ...channels import D, R
from ...embedded import xla
from ...embedded.operations import OPERANDS, RESULTS, TABLES, Operation, Shaped
from ...targets import copy
from ...tensors.compute import COMPUTE
from ...tensors.late import Late, read_late

logger = logging.getLogger("numbabn")

SUPPORTS_JIT = True
WIRING = "inside"

Tensors = dict[str, Any]
Readers = tuple[tuple[str, Late], ...]


def run(
    operation: Operation,
    inputs: Mapping[str, Any],
    attributes: Any,
    wanted: tuple[str, ...] | None = None,
) -> Tensors:
    """Run an operation; see the package's docstring."""
    late = tuple((name, value) for name, value in inputs.items() if isinstance(value, Late))
    tensors = {name: value for name, value in inputs.items() if not isinstance(value, Late)}
    paths = jax.default_backend(), xla.is_available(), device_is_available()
    if late and paths[:2] == ("cpu", True):
        # Outside of what is kept, which then serves every layer.
        numbers = xla.read_numbers([value.read for _, value in late])
        tensors |= {name: numbers[i] for i, (name, _) in enumerate(late)}
        late = ()
    results: Tensors = _traced(operation, attributes, wanted, late, paths)(tensors)
    return results


@lru_cache(maxsize=1024)
def _traced(
    operation: Operation,
    attributes: Any,
    wanted: tuple[str, ...] | None,
    late: Readers,
    paths: tuple[Any, ...],
) -> Any:
    """An operation as JAX traces it: once, also where the step around it is not compiled.

    paths: what decides who computes, beside the rest
    """
    return jax.jit(partial(_call, operation, attributes, wanted, late), inline=True)


def prepared(tensors: Tensors, arguments: tuple[str, ...]) -> Tensors:
    """The tensors, of which `arguments` are to be differentiated with respect to."""
    if not xla.is_available():
        return tensors
    others = {name: value for name, value in tensors.items() if name not in arguments}
    named = {name: value for name, value in tensors.items() if name in arguments}
    return {**tensors, **xla.vary_alike(named, others)}


def derived_as(kernel: Any, expression: Any, tensors: Tensors, names: tuple[str, ...]) -> Tensors:
    """See the package's docstring."""

    @jax.custom_jvp
    def derived(tensors: Tensors) -> Tensors:
        found: Tensors = kernel(tensors)
        return found

    @derived.defjvp
    def jvp(primals: Any, tangents: Any) -> Any:
        ((given,), (moved,)) = primals, tangents
        results = derived(given)
        named = [name for name in names if name in given]

        def of(values: Any) -> Tensors:
            found: Tensors = expression({**given, **dict(zip(named, values, strict=True))}, results)
            return found

        _, found = jax.jvp(
            of, ([given[name] for name in named],), ([moved[name] for name in named],)
        )
        return results, {
            name: found[name].astype(value.dtype) if name in found else _no_tangent(value)
            for name, value in results.items()
        }

    found: Tensors = derived(tensors)
    return found


def _no_tangent(value: Any) -> Any:
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)


def leaves_out() -> bool:
    """Whether what nobody reads is not computed: in programs, but not outside of them."""
    return True


def corrections(saved: Any) -> tuple[Any, Any]:
    """See the package's docstring."""
    if jax.config.jax_enable_x64:
        rows = jax.lax.bitcast_convert_type(saved, np.float64)
        return rows[R], rows[D]
    return _rounded(saved[R]), _rounded(saved[D])


def _rounded(bits: Any) -> Any:
    """Float64 as pairs of uint32, in float32: towards 0, and to 0 or inf what is out of range."""
    low, high = bits[..., 0], bits[..., 1]
    sign, exponent = high & 0x80000000, (high >> 20) & 0x7FF
    fraction = ((high & 0xFFFFF) << 3) | (low >> 29)
    # Of float64 the exponent is more by 1023, of float32 by 127.
    within = sign | ((exponent - 896) << 23) | fraction
    clipped = jnp.where(
        exponent <= 896, sign, jnp.where(exponent >= 1151, sign | 0x7F800000, within)
    )
    return jax.lax.bitcast_convert_type(clipped.astype(np.uint32), np.float32)


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds."""
    return isinstance(tensor, jax.core.Tracer)


is_traced = in_graph  # There, nothing has a value yet.


def is_recomputed() -> bool:
    """Whether a forward runs once more, for a backward: nothing tells here."""
    return False


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


def _call(
    operation: Operation,
    attributes: Any,
    wanted: tuple[str, ...] | None,
    late: Readers,
    tensors: Tensors,
) -> Tensors:
    """The results of `operation`, all of them or those that are `wanted`."""
    known = {name: Shaped(value.shape, value.dtype.name) for name, value in tensors.items()}
    shapes = operation.results_of(known, attributes)
    names = tuple(shapes) if wanted is None else wanted
    shapes = {name: shapes[name] for name in names}

    def host(arrays: Mapping[str, Any]) -> Tensors:
        given = {name: np.asarray(value) for name, value in arrays.items()}
        given |= {name: _unpacked(given[name]) for name in given if _is_packed(name)}
        given |= read_late(dict(late))
        results = COMPUTE[operation.name](given, attributes, names, {})
        return {
            name: _packed(array) if _is_packed(name) else array for name, array in results.items()
        }

    outputs = {name: _type_of(name, shape) for name, shape in shapes.items()}
    call_back = partial(jax.pure_callback, host, outputs, vmap_method="sequential")

    def call_kernels(tensors: Tensors) -> Tensors:
        numbers = xla.read_numbers([value.read for _, value in late]) if late else ()
        read = {name: numbers[i] for i, (name, _) in enumerate(late)}
        return xla.call(operation.name, {**tensors, **read}, attributes, names)

    def call_device(tensors: Tensors) -> Tensors:
        if device_is_available():
            return _on_device(operation, attributes, late, shapes, tensors)
        _say_what_computes()
        return call_back(tensors)

    return _on_platform(
        call_kernels if xla.is_available() else call_back, call_device, call_back, tensors
    )


@lru_cache(maxsize=1)
def _say_what_computes() -> None:
    """Log, once, that devices do without kernels."""
    logger.info("JAX beside the CPU: on CUDA devices %s", paths()["CUDA"])


def _is_packed(name: str) -> bool:
    """Whether an operand or result is float64, which goes as its bits."""
    return {**OPERANDS, **RESULTS}[name] in TABLES


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
    operation: Operation,
    attributes: Any,
    late: Readers,
    shapes: Mapping[str, Shaped],
    tensors: Tensors,
) -> Tensors:
    """The outputs named in `shapes`, computed in XLA's buffers on a CUDA device."""
    from jax.experimental.buffer_callback import buffer_callback

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
            return _Buffer(buffer, kind, _is_packed(name), context)

        given = {name: array(name, each, kinds[name]) for name, each in inputs.items()}
        into = {name: array(name, each, shapes[name].dtype) for name, each in outputs.items()}
        given |= read_late(dict(late))
        results = COMPUTE[operation.name](given, attributes, tuple(into), into)
        for name, target in into.items():
            if results[name] is not target:
                copy(results[name], target)

    types = {
        name: _type_of(name, shape._replace(dtype=_BITS.get(shape.dtype, shape.dtype)))
        for name, shape in shapes.items()
    }
    call = buffer_callback(fill, types, vmap_method="sequential")
    found = call({name: _as_bits(each) for name, each in tensors.items()})
    found = {
        name: each if _is_packed(name) else _from_bits(each, shapes[name].dtype)
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


# Float64 without jax_enable_x64: its bits, as a last axis of two uint32.


def _packed(array: NDArray[np.float64]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(array).view(np.uint32).reshape(*array.shape, 2)


def _unpacked(array: NDArray[np.uint32]) -> NDArray[np.float64]:
    return np.ascontiguousarray(array).view(np.float64)[..., 0]


def _type_of(name: str, shaped: Shaped) -> Any:
    if _is_packed(name):
        return jax.ShapeDtypeStruct((*shaped.shape, 2), np.uint32)
    return jax.ShapeDtypeStruct(shaped.shape, shaped.dtype)
