"""The operations of `numbabn.keras` on arrays of a CUDA device.

They stand beside the `host` functions of :mod:`.operations`, by the names of the operations:

    (inputs that are there, attributes, wanted, outputs) -> the outputs

`inputs` are device arrays of one library, but numbers may be on the host. What `outputs` holds is
written there; the rest is new memory of the same library. 16-bit statistics are not moved here: a
bridge widens what is moved. Everything goes to the stream of `x`, and nothing waits
for it, but for limits that are on the device.

numba-cuda is imported with the first array; where it is missing, that says what to install.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..embedded.operations import LIMITS, STATISTICS, Attributes
from ..renorm import Renorm, RenormClipping
from ..targets import device_operations
from .operations import with_dx

Arrays = dict[str, Any]
Inputs = Mapping[str, Any]


def is_available() -> bool:
    """Whether there are kernels for devices here."""
    return find_spec("numba_cuda") is not None


def _forward(
    inputs: Inputs, attributes: Attributes, wanted: tuple[str, ...] | None, outputs: Arrays
) -> Arrays:
    operations = device_operations()
    found = operations.forward(
        inputs["x"], inputs.get("gamma"), inputs.get("beta"), attributes.axis,
        inputs.get("mask"), attributes.epsilon,
        _reference(inputs, attributes) if attributes.renorm else None,
        outputs.get("y"),
        by_variance=attributes.renorm_momentum is None,
    )  # fmt: skip
    moved = {
        name: _copied(inputs[name], outputs.get(name)) for name in STATISTICS if name in inputs
    }
    momentum = attributes.renorm_momentum if attributes.renorm else None
    operations.move_statistics(
        found.values, found.layout, attributes.epsilon, attributes.momentum, momentum,
        list(moved.values()),
    )  # fmt: skip
    values = operations.in_c_order(found.values, found.layout)
    if "saved" in outputs:
        values = _copied(values, outputs["saved"])
    return {"y": found.y, "saved": values, **moved}


def _reference(inputs: Inputs, attributes: Attributes) -> Renorm:
    clipping = RenormClipping(*(_number(inputs[name]) for name in LIMITS))
    if attributes.renorm_momentum is None:
        # Its square root is taken on the device.
        return Renorm(inputs["moving_mean"], inputs["moving_variance"], clipping)
    return Renorm(inputs["renorm_mean"], inputs["renorm_stddev"], clipping)


def _number(value: Any) -> float:
    from ..cuda import device

    library = device.library_of(value)
    return float(value if library is None else library.to_host(value))


def _backward(
    inputs: Inputs, attributes: Attributes, wanted: tuple[str, ...] | None, outputs: Arrays
) -> Arrays:
    operations = device_operations()
    gradients = operations.backward(
        inputs["dy"], inputs["x"], inputs["saved"], None, attributes.axis, attributes.epsilon,
        inputs.get("mask"), None, True, outputs.get("dx"), with_dx(wanted),
    )  # fmt: skip
    return _wanted(gradients, wanted, outputs)


def _wanted(gradients: Any, wanted: tuple[str, ...] | None, outputs: Arrays) -> Arrays:
    found = dict(zip(("dx", "dgamma", "dbeta"), gradients, strict=True))
    chosen = {name: found[name] for name in (found if wanted is None else wanted)}
    return {
        name: _copied(array, outputs[name]) if name != "dx" and name in outputs else array
        for name, array in chosen.items()
    }


def _normalize(
    inputs: Inputs, attributes: Attributes, wanted: tuple[str, ...] | None, outputs: Arrays
) -> Arrays:
    operations = device_operations()
    y = operations.normalize(
        inputs["x"], inputs["moving_mean"], inputs["moving_variance"], inputs.get("gamma"),
        inputs.get("beta"), attributes.axis, attributes.epsilon, outputs.get("y"),
    )  # fmt: skip
    return {"y": y}


def _normalize_backward(
    inputs: Inputs, attributes: Attributes, wanted: tuple[str, ...] | None, outputs: Arrays
) -> Arrays:
    operations = device_operations()
    mean, variance, gamma = inputs["moving_mean"], inputs["moving_variance"], inputs.get("gamma")
    if wanted == ("dx",):
        # dx = gamma · rstd · dy: no sum over the batch, and x is not read.
        dx = operations.normalize(
            inputs["dy"], _zeros(mean), variance, gamma, None, attributes.axis,
            attributes.epsilon, outputs.get("dx"),
        )  # fmt: skip
        return {"dx": dx}
    gradients = operations.normalize_backward(
        inputs["dy"], inputs["x"], mean, variance, gamma, attributes.axis, attributes.epsilon,
        outputs.get("dx"), with_dx(wanted),
    )  # fmt: skip
    return _wanted(gradients, wanted, outputs)


# By the names of the operations of `numbabn.keras`.
OPERATIONS: dict[str, Callable[..., Arrays]] = {
    "batch_norm_forward": _forward,
    "batch_norm_backward": _backward,
    "normalize": _normalize,
    "normalize_backward": _normalize_backward,
}


def _copied(array: Any, target: Any = None) -> Any:
    """A copy of an array, in `target` if there is one."""
    from ..cuda import device, launch

    source = device.library_of(array).describe(array)
    if target is None:
        target = _new(source, source.dtype)
    launch.copy(source, device.library_of(target).describe(target))
    return target


def _zeros(array: Any) -> Any:
    """Zeros of the shape of an array."""
    from ..cuda import device, launch

    like = device.library_of(array).describe(array)
    zero = like.library.describe(_zero(like.library, like.device))
    target = _new(like, zero.dtype)
    launch.copy(
        zero._replace(shape=like.shape, strides=(0,) * like.ndim), like.library.describe(target)
    )
    return target


@lru_cache(maxsize=64)
def _zero(library: Any, device: int) -> Any:
    """One zero on a device, for good: to bring one there takes as long as all else."""
    return library.from_host(np.zeros(1, np.float32), device)


def _new(like: Any, dtype: Any) -> Any:
    """New memory of the shape of a described array."""
    from ..cuda import device

    return like.library.empty(like.shape, device.contiguous_strides(like.shape), dtype, like)
