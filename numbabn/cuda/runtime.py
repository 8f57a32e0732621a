"""The one door to `numba.cuda`.

NVIDIA's package `numba-cuda` replaces the target that Numba itself has, which is no longer
kept up. Nothing here is imported before a device array comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

# Numba's simulator runs kernels in plain Python, one thread of the process for each of theirs.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

_INSTALL = "pip install 'numbabn[cuda13]' (or 'numbabn[cuda12]', after the driver's CUDA version)"


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


def _import() -> ModuleType:
    from numba import cuda

    if not SIMULATED:
        # The module that asks for it; otherwise the first compilation imports it.
        with _with_row_stack():
            import numba.cuda.np.arrayobj  # noqa: F401
    return cuda


def why_unavailable() -> str | None:
    """One sentence on why no kernel can run here, or None where one can."""
    if find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed: {_INSTALL}"
    if not SIMULATED:
        from numba import cuda

        if not cuda.is_available():
            reason = cuda.cuda_error()
            detail = "no device was found" if reason is None else str(reason).splitlines()[0]
            return f"CUDA cannot be used: {detail}; it needs a driver, a device and {_INSTALL}"
    return None


if find_spec("numba_cuda") is None:
    raise ImportError(f"device arrays need numba-cuda, which is not installed: {_INSTALL}")

cuda: Any = _import()


def device_function(function: Any) -> Any:
    """`function` for kernels to call; inlined, so that what is constant there is constant here."""
    if SIMULATED:
        return function
    return cuda.jit(device=True, forceinline=True)(function)
