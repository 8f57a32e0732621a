"""The one door to `numba.cuda`.

NVIDIA's package `numba-cuda` replaces the target that Numba itself has, which is no longer
kept up. Nothing here is imported before a device array comes.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

# The default stream that all of a device's work once waited for, by its own name: 0 means another
# one where a program asks the driver for a default stream of each thread.
LEGACY_STREAM = 1

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
_thread = threading.local()


def on(device: int) -> AbstractContextManager[Any]:
    """The context in which launches and allocations go to `device`."""
    if device_count() == 1:
        # The only context there can be: found without being named, once the thread has it. One that
        # others started for their own ends, as torch does for gradients, may have none yet.
        if not getattr(_thread, "has_context", False):
            cuda.current_context()
            _thread.has_context = True
        return _ANY
    context: AbstractContextManager[Any] = cuda.gpus[device]
    return context


def order(device: int, before: int, after: int) -> None:
    """Let what comes on the stream `after` wait for what is on `before`; the host does not wait."""
    with on(device):
        event = cuda.event(timing=False)
        event.record(_stream(before))
        event.wait(_stream(after))


def _stream(handle: int) -> Any:
    return cuda.external_stream(handle) if handle else cuda.default_stream()


def is_capturing(device: int, stream: int) -> bool:
    """Whether what comes on a stream goes into a CUDA graph instead of being run."""
    from cuda.bindings import driver

    with on(device):
        error, status = driver.cuStreamIsCapturing(driver.CUstream(stream))
    if error != driver.CUresult.CUDA_SUCCESS:
        # It may not even be asked of the default stream while another one captures.
        return True
    return bool(status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


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
