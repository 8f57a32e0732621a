"""The one door to `numba.cuda`.

NVIDIA's package `numba-cuda` replaces the target that Numba itself has, which is no longer
kept up. Nothing here is imported before a device array comes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

# Numba's simulator runs kernels in plain Python, one thread of the process for each of theirs.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


@contextmanager
def _with_row_stack() -> Iterator[None]:
    """NumPy's `row_stack`, which NumPy 2.5 removed and numba-cuda 0.30 overloads on import."""
    if "row_stack" in vars(np):
        yield
        return
    namespace: Any = np
    namespace.row_stack = np.vstack
    try:
        yield
    finally:
        del namespace.row_stack


@contextmanager
def _with_generic_nat() -> Iterator[None]:
    """NumPy 2.5 warns of what numba-cuda 0.30 asks of it on import, a NaT without a unit.

    The one warning of the one module: where a program turns warnings into errors, numba-cuda
    could not be imported at all.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message="The 'generic' unit for NumPy timedelta is deprecated",
            category=DeprecationWarning,
            module=r"numba\.cuda\.np\.npdatetime_helpers",
        )
        yield


def _import() -> ModuleType:
    with _with_generic_nat():
        from numba import cuda

    if not SIMULATED:
        # The module that asks for it; otherwise the first compilation imports it.
        with _with_row_stack():
            import numba.cuda.np.arrayobj  # noqa: F401
    return cuda


cuda: Any = _import()


@lru_cache(maxsize=1)
def device_count() -> int:
    """How many devices there are."""
    return 1 if SIMULATED else len(cuda.gpus)


_ANY = nullcontext()


def on(device: int) -> AbstractContextManager[Any]:
    """The context in which launches and allocations go to `device`."""
    if device_count() == 1:
        # The only context there can be: found without being named.
        return _ANY
    context: AbstractContextManager[Any] = cuda.gpus[device]
    return context


def bound(function: Any, name: str = "", **constants: Any) -> Any:
    """A copy of `function` under a name of its own, with `constants` among its globals."""
    name = name or function.__name__
    copy = FunctionType(function.__code__, {**function.__globals__, **constants}, name)
    copy.__qualname__ = name
    return copy


def device_function(function: Any) -> Any:
    """`function` for kernels to call; inlined, so that what is constant there is constant here."""
    if SIMULATED:
        return function
    return cuda.jit(device=True, forceinline=True)(function)
