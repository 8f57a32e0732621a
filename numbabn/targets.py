"""Which library an array is of, and which launchers serve that.

No array library is imported here: an array of one that the caller has not imported
cannot have come.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from .arrays import Array, Library, Place, is_on_device
from .arrays.numpy import NUMPY
from .cpu import launch as cpu


def library_of(array: Any) -> Library:
    """The library of an array; NumPy for all that is on no device.

    Raises:
        RuntimeError: it is on a device, and nothing can run there; it says what to install.
    """
    if type(array) is np.ndarray or not is_on_device(array):
        return NUMPY
    for library in device_libraries().values():
        if library.owns(array):
            break
    # The last owns what no other does.
    return library


def launchers_of(library: Library) -> ModuleType:
    """The launchers for arrays of a library."""
    return cpu if library is NUMPY else cuda()


@lru_cache(maxsize=1)
def cuda() -> ModuleType:
    """The launchers for CUDA devices.

    Raises:
        RuntimeError: nothing can run on a device here; it says what to install.
    """
    from .cuda.availability import why_unavailable

    reason = why_unavailable()
    if reason is not None:
        raise RuntimeError(reason)
    from .cuda import launch

    return launch


@lru_cache(maxsize=1)
def device_libraries() -> dict[str, Any]:
    """The libraries of arrays on devices, by the names that callers give them."""
    cuda()
    from .arrays.cuda_interface import INTERFACE
    from .arrays.cupy import CUPY
    from .arrays.torch import TORCH

    return {"torch": TORCH, "cupy": CUPY, "numba": INTERFACE}


def device_place(device: str | int, library: str | None, now: Place) -> Place:
    """Where `BatchNormalization.to` moves weights that are at `now`."""
    libraries = device_libraries()
    from .cuda.runtime import device_count

    number = device
    if isinstance(device, str):
        kind, _, digits = device.partition(":")
        number = int(digits or "0") if kind == "cuda" and (digits or device == kind) else -1
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"device must be a string or a number, got {type(device).__name__}")
    if not 0 <= number < device_count():
        raise ValueError(
            f"device must be 'cpu', 'cuda', or one of {device_count()} devices by number, as in "
            f"'cuda:0', got {device!r}"
        )
    if library is None:
        here = now.device is None
        return Place(libraries[_imported()] if here else now.library, number)
    if library not in libraries:
        raise ValueError(f"library must be one of {', '.join(libraries)}, got {library!r}")
    return Place(libraries[library], number)


def _imported() -> str:
    """The first of them that the caller has imported, with a device of its own to use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return "torch"
    return "cupy" if "cupy" in sys.modules else "numba"


def to_host(array: Array) -> Any:
    """An array of any library in NumPy; waits for a device."""
    return library_of(array).to_host(array)


def copy(source: Array, target: Array) -> None:
    """target[...] = source, of arrays of one library, shape and dtype."""
    library = library_of(target)
    into = library.describe(target, "target")
    launchers_of(library).copy(library.describe(source, "source", into), into)
