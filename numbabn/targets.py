"""Which target an array belongs to.

No array library is imported here: an array of one that the caller has not imported
cannot have come.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from .cpu import launch as cpu


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
    if hasattr(x, "__cuda_array_interface__"):
        raise TypeError(
            f"{name} is on a CUDA device ({type(x).__name__}), and this version of numbabn "
            "computes on the CPU: copy it to a NumPy array"
        )
    raise TypeError(f"{name} must be a NumPy array, got {type(x).__name__}")


def check_target(array: Any, name: str, x: Any) -> None:
    """Raise TypeError unless `array` belongs to the target that computes on `x`."""
    if target_of(array, name) is not target_of(x, "x"):
        raise TypeError(
            f"{name} and x must be of one array library, "
            f"got {type(array).__name__} and {type(x).__name__}"
        )
