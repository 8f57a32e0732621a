"""The operations, as functions of JAX's arrays."""

import ctypes
import logging
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numba import config

from ... import layout as lay
from ...cpu import launch, steps
from .. import callbacks, plans
from ..plans import OPERANDS, make_plan
from .registration import targets
from .sharding import varying

logger = logging.getLogger("numbabn")


def forward(inputs, attributes, wanted):
    """Normalize x by its own statistics, and move the moving ones."""
    mode = plans.RENORM_FORWARD if attributes.renorm else plans.FORWARD
    return _run_operation(mode, launch.FORWARD, inputs, attributes, wanted)


def backward(inputs, attributes, wanted):
    """The gradient of `forward`."""
    steps = launch.BACKWARD if "dx" in wanted else launch.SUMS
    return _run_operation(plans.BACKWARD, steps, inputs, attributes, wanted)


def normalize(inputs, attributes, wanted):
    """Normalize x by the moving statistics."""
    return _run_operation(plans.NORMALIZE, launch.NORMALIZE, inputs, attributes, wanted)


def normalize_backward(inputs, attributes, wanted):
    """The gradient of `normalize`."""
    if wanted == ("dx",):
        # dx = gamma · rstd · dy: no sum over the batch, and x is not read.
        inputs = {**inputs, "x": inputs["dy"]}
        for name in ("dy", "moving_mean"):
            del inputs[name]
        return {"dx": normalize(inputs, attributes, ("y",))["y"]}
    return backward(inputs, attributes, wanted)


# By the names of the operations of `numbabn.keras`.
OPERATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "batch_norm_forward": forward,
    "batch_norm_backward": backward,
    "normalize": normalize,
    "normalize_backward": normalize_backward,
}


def read_numbers(readers):
    """Numbers that are read whenever the program runs: (len(readers),) float32.

    readers: functions without arguments that return a float
    """
    indices = np.array([callbacks.index_of(reader) for reader in readers], np.int64)
    result = jax.ShapeDtypeStruct(indices.shape, np.float32)
    call = jax.ffi.ffi_call(targets().read, result, vmap_method="sequential")
    return call(indices=indices)


@lru_cache(maxsize=1)
def is_available():
    """Whether JAX, on the CPU, calls the handler: both must be made for the same interface."""
    if config.DISABLE_JIT or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    attributes = SimpleNamespace(axis=-1, epsilon=1.0, momentum=0.0, renorm_momentum=None)

    def identity(x):
        zeros = jnp.zeros(1, jnp.float32)
        inputs = {"x": x, "moving_mean": zeros, "moving_variance": zeros}
        return normalize(inputs, attributes, ("y",))["y"]

    try:
        with jax.ensure_compile_time_eval(), jax.default_device(jax.devices("cpu")[0]):
            x = jnp.asarray([[1.0], [3.0]], jnp.float32)
            return bool((jax.jit(identity)(x) == x).all())
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        # AttributeError: another jax. RuntimeError: another jaxlib, whose XLA refuses the
        # handler, or no CPU backend.
        logger.info("XLA cannot call the kernels: %s", error)
        return False


# A call


def _run_operation(mode, steps, inputs, attributes, wanted):
    """Call the handler; the outputs that are wanted, by name."""
    x = inputs["x"]
    if not all(isinstance(size, int) for size in x.shape):
        raise ValueError(f"x must have known sizes, got {x.shape}")
    # A view of a single element has no memory order of its own: it is taken as row-major,
    # which JAX's arrays are.
    layout = lay.layout_of(np.broadcast_to(np.zeros((), x.dtype), x.shape), attributes.axis)
    on, mask = _canonical_mask(inputs.get("mask"), x, layout)
    given = {name: inputs.get(name) for name in OPERANDS} | {"mask": on}
    operands = {
        name: _operand(name, value, layout) for name, value in given.items() if value is not None
    }
    results = {name: _result(name, operands, layout) for name in wanted}
    canonical = jax.ShapeDtypeStruct(layout.canonical_shape, x.dtype)
    plan = make_plan(mode, steps, canonical, mask, attributes, operands, results)
    call = jax.ffi.ffi_call(
        targets().execute,
        varying(results.values(), operands.values()),
        vmap_method="sequential",
        input_output_aliases=_aliases(x, operands, results),
    )
    found = call(*operands.values(), plan=plan)
    return {
        name: _restored(name, value, inputs, layout)
        for name, value in zip(results, found, strict=True)
    }


# From this size on a result goes over an input. glibc takes so much from the kernel anew each
# time (M_MMAP_THRESHOLD_MAX), and those page faults cost more than the copy that XLA makes
# of an input that is still needed. Below it, only an input that is not needed would pay.
LEAST_ALIASED = 32 * 1024 * 1024


def _aliases(x, operands, results):
    """Which operand's memory a result takes; XLA copies an operand that is needed later."""
    if x.size * x.dtype.itemsize < LEAST_ALIASED or "values" in results:
        # After a training forward, x is always needed.
        return {}
    over = "dy" if "dy" in operands else "x"
    return {
        list(operands).index(over): index
        for index, name in enumerate(results)
        if name in ("y", "dx")
    }


def _operand(name, value, layout):
    """An input as the handler reads it."""
    if name in ("mask", "values"):
        return value
    if name in ("x", "dy"):
        return value.transpose(_order(layout))
    dtype = _rows_dtype(value.dtype)
    return (value if value.ndim == 0 else layout.flatten(value)).astype(dtype)


def _result(name, operands, layout):
    """The type of an output as the handler writes it."""
    if name in ("y", "dx"):
        return jax.ShapeDtypeStruct(operands["x"].shape, operands["x"].dtype)
    if name == "values":
        return jax.ShapeDtypeStruct((steps.SAVED, layout.channels, 2), np.uint32)
    return jax.ShapeDtypeStruct(
        (layout.channels,), _rows_dtype(operands.get(name, operands["x"]).dtype)
    )


def _restored(name, value, inputs, layout):
    """An output as the caller takes it."""
    if name in ("y", "dx"):
        return value.transpose(np.argsort(_order(layout)))
    if name == "values":
        return value
    value = layout.unflatten(value)
    return value.astype(inputs[name].dtype) if name in inputs else value


def _rows_dtype(dtype):
    """The dtype of per-channel values beside an array of `dtype`."""
    return np.float64 if dtype == np.float64 else np.float32


def _order(layout):
    """How the axes of a row-major array are permuted before the kernels take it: seldom.

    Only channel axes that other axes lie between change places. Axes of size 1 may be
    anywhere.
    """
    memory = [axis for axis in layout.order if layout.shape[axis] != 1]
    return tuple(range(len(layout.shape))) if memory == sorted(memory) else layout.order


def _canonical_mask(mask, x, layout):
    """A mask as the handler reads it, and where the kernels find its elements."""
    if mask is None:
        return None, None
    # That follows from its shape: any mask of this shape tells.
    on: Any = lay.check_mask(np.zeros(mask.shape, mask.dtype), x)
    geometry: Any = launch.mask_of(on, layout)
    ordered = mask.astype(np.bool_).reshape(on.shape).transpose(layout.order)
    if geometry.axes is None:
        sizes = [1 if axis in layout.axes else layout.shape[axis] for axis in layout.order]
        ordered = jnp.broadcast_to(ordered, sizes)
    return ordered, geometry
