"""Which target an array belongs to.

No array library is imported here: an array of one that the caller has not imported
cannot have come.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from .cpu import launch as cpu


def on_device(x: Any) -> bool:
    """Whether `x` is an array on a CUDA device."""
    if isinstance(x, np.ndarray):
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        # Its array interface raises for tensors that require a gradient.
        return bool(x.is_cuda)
    # The second is what simulated device arrays have.
    return hasattr(x, "__cuda_array_interface__") or hasattr(x, "__cuda_ndarray__")


def device_operations() -> ModuleType:
    """The operations on device arrays.

    Raises:
        RuntimeError: nothing can run on a device here; it says what to install.
    """
    global _device_operations
    if _device_operations is None:
        from .cuda.availability import why_unavailable

        reason = why_unavailable()
        if reason is not None:
            raise RuntimeError(reason)
        from .cuda import operations

        _device_operations = operations
    return _device_operations


_device_operations: ModuleType | None = None


def target_of(x: Any, name: str) -> ModuleType:
    """The launchers for `x`.

    Raises:
        TypeError: `x` is not an array that a target reads.
    """
    # MaskedArray is an ndarray; to go on without its mask would be silently wrong.
    if isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray):
        return cpu
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array: pass {name}.data, and mask=~{name}.mask "
            "(True is on)"
        )
    if on_device(x):
        raise TypeError(
            f"{name} is on a CUDA device ({type(x).__name__}), and other arrays are not"
        )
    raise TypeError(
        f"{name} must be a NumPy array or an array on a CUDA device, got {type(x).__name__}"
    )
