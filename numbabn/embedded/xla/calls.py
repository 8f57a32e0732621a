"""The operations, as functions of JAX's arrays."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from .. import callbacks
from ..operations import (
    MASK,
    NORMALIZE,
    OPERANDS,
    RESULTS,
    ROWS,
    RUN_BACKWARD,
    RUN_GRADIENT,
    RUN_SUMS,
    TABLES,
    TENSOR,
    Shaped,
    read_dtype,
    result_dtype,
    result_shape,
    run_of,
)
from ..plans import geometry_of, make_plan, passes_are_apart
from ..process import calls_kernels, why_not
from .handlers import targets
from .sharding import varying

# From this size on a result goes over an input. glibc takes so much from the kernel anew each
# time (M_MMAP_THRESHOLD_MAX), and those page faults cost more than the copy that XLA makes
# of an input that is still needed. Below it, only an input that is not needed would pay.
LEAST_ALIASED = 32 * 1024 * 1024

_FRAMEWORK = "XLA"


def call(operation, inputs, attributes, wanted):
    """Run an operation: its results that are wanted, by name.

    operation: a name of `embedded.operations`
    inputs: its operands, by name
    """
    run, given = run_of(operation, inputs, attributes, wanted)
    shapes = {name: Shaped(each.shape, each.dtype.name) for name, each in given.items()}
    x = shapes["x"]
    if not all(isinstance(size, int) for size in x.shape):
        raise ValueError(f"x must have known sizes, got {x.shape}")
    geometry = geometry_of(x, shapes.get("mask"), attributes.axis, expand=True)
    if run == RUN_BACKWARD and "saved" in given and passes_are_apart(geometry):
        # In two, at less than a microsecond: XLA leaves out dx where nobody reads it, which a call
        # that has other results besides cannot.
        others = tuple(name for name in wanted if name != "dx")
        found = _run(RUN_SUMS, given, attributes, (*others, "sums"), geometry)
        given["sums"] = found.pop("sums")
        return {**_run(RUN_GRADIENT, given, attributes, ("dx",), geometry), **found}
    return _run(run, given, attributes, wanted, geometry)


def _run(run, inputs, attributes, wanted, geometry):
    """One call of the handler: its results that are wanted, by name."""
    operands = {name: _operand(name, inputs[name], geometry) for name in OPERANDS if name in inputs}
    results = {name: _result(name, operands, geometry.layout) for name in wanted}
    plan = make_plan(run, geometry, attributes, operands, results)
    kernels = jax.ffi.ffi_call(
        targets().execute,
        varying(results.values(), operands.values()),
        vmap_method="sequential",
        input_output_aliases=_aliases(operands, results),
    )
    found = kernels(*operands.values(), plan=plan)
    return {
        name: _restored(name, value, inputs, geometry.layout)
        for name, value in zip(results, found, strict=True)
    }


def read_numbers(readers):
    """Numbers that are read whenever the program runs: (len(readers),) float32.

    readers: functions without arguments that return a float
    """
    indices = np.array([callbacks.index_of(reader) for reader in readers], np.int64)
    result = jax.ShapeDtypeStruct(indices.shape, np.float32)
    numbers = jax.ffi.ffi_call(targets().read, result, vmap_method="sequential")(indices=indices)
    if isinstance(numbers, jax.core.Tracer):
        # A program that is compiled may outlive everything in Python.
        callbacks.keep(readers)
    return numbers


@lru_cache(maxsize=1)
def is_available():
    """Whether JAX, on the CPU, calls the handler: both must be made for the same interface."""
    # AttributeError: another jax. RuntimeError: another jaxlib, whose XLA refuses the handler,
    # or no CPU backend.
    return calls_kernels(_FRAMEWORK, _try, (AttributeError, NotImplementedError, RuntimeError))


def why_unavailable():
    """Why JAX, on the CPU, does not call the handler; None where it does."""
    return None if is_available() else why_not(_FRAMEWORK)


def _try(inputs, attributes):
    with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        inputs = jax.tree.map(jnp.asarray, inputs)
        return [jax.jit(lambda each: call(NORMALIZE.name, each, attributes, ("y",))["y"])(inputs)]


# Operands and results


def _operand(name, value, geometry):
    """An input as the handler reads it."""
    kind = OPERANDS[name]
    if kind == MASK:
        return _canonical_mask(value, geometry)
    if kind == TENSOR:
        return value.transpose(_order(geometry.layout))
    if kind in TABLES:
        return value
    if kind == ROWS and value.ndim > 1:
        value = value.transpose(geometry.layout.order).reshape(-1)
    return value.astype(read_dtype(name, value.dtype.name))


def _canonical_mask(mask, geometry):
    layout = geometry.layout
    ordered = mask.astype(np.bool_).reshape(geometry.mask_shape).transpose(layout.order)
    if geometry.mask.axes is None:
        sizes = [1 if axis in layout.axes else layout.shape[axis] for axis in layout.order]
        return jnp.broadcast_to(ordered, sizes)
    return ordered


def _result(name, operands, layout):
    """The type of an output as the handler writes it."""
    dtype = result_dtype(name, {name: each.dtype.name for name, each in operands.items()})
    if RESULTS[name] == TENSOR:
        return jax.ShapeDtypeStruct(operands["x"].shape, dtype)
    if RESULTS[name] in TABLES:
        # As its bits: without jax_enable_x64 there is no float64.
        shape = result_shape(name, layout.shape, layout.axes)
        return jax.ShapeDtypeStruct((*shape, 2), np.uint32)
    return jax.ShapeDtypeStruct((layout.channels,), dtype)


def _restored(name, value, inputs, layout):
    """An output as the caller takes it."""
    if RESULTS[name] == TENSOR:
        return value.transpose(np.argsort(_order(layout)))
    if RESULTS[name] in TABLES:
        return value
    if len(layout.channel_shape) > 1:
        ordered = value.reshape([layout.channel_shape[axis] for axis in layout.order])
        value = ordered.transpose(np.argsort(layout.order))
    return value.astype(inputs[name].dtype) if name in inputs else value


def _order(layout):
    """How the axes of a row-major array are permuted before the kernels take it: seldom.

    Only channel axes that other axes lie between change places. Axes of size 1 may be
    anywhere.
    """
    memory = [axis for axis in layout.order if layout.shape[axis] != 1]
    return tuple(range(len(layout.shape))) if memory == sorted(memory) else layout.order


def _aliases(operands, results):
    """Which operand's memory a result takes; XLA copies an operand that is needed later."""
    x = operands["x"]
    if x.size * x.dtype.itemsize < LEAST_ALIASED or "saved" in results:
        # After a training forward, x is always needed.
        return {}
    over = list(operands).index("dy" if "dy" in operands else "x")
    return next(({over: i} for i, name in enumerate(results) if RESULTS[name] == TENSOR), {})
