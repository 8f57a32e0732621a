"""Handing a kernel and its arguments to a device."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from ..arrays.device import DeviceArray
from .compile import Variant, compiled
from .runtime import SIMULATED, cuda


def argument(memory: DeviceArray | None, words: str | None = None) -> Any:
    """An array's memory as kernels take it: its address.

    The simulator takes no addresses, so there it is the flat memory itself, whose elements
    are of the dtype that `words` names, or as kernels have the array's own.
    """
    if not SIMULATED:
        return 0 if memory is None else memory.address
    if memory is None:
        return cuda.device_array(0, np.uint8)
    low, high = memory.extent
    dtype = np.dtype(words or _WORDS.get(memory.dtype.name, memory.dtype.name))
    raw: Any = (ctypes.c_char * max(1, high - low)).from_address(low or ctypes.addressof(_NOTHING))
    flat = np.frombuffer(raw, dtype, (high - low) // dtype.itemsize)
    return type(cuda.device_array(0, np.uint8))(flat)


_NOTHING = ctypes.c_char()
# 16-bit floats travel as the integers of `elements`; a bool is a byte.
_WORDS = {"float16": "uint16", "bfloat16": "int16", "bool": "uint8"}


@lru_cache(maxsize=256)
def _core_stream(device: int, handle: int) -> Any:
    from numba.cuda.cudadrv import driver

    return driver._to_core_stream(cuda.external_stream(handle) if handle else 0)


@lru_cache(maxsize=4096)
def _configuration(blocks: int, threads: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=blocks, block=threads)


def launch(variant: Variant, blocks: int, like: DeviceArray, arguments: tuple[Any, ...]) -> None:
    """Launch a kernel on the device and the stream of an array.

    arguments: numbers, memory as `argument` gives it, and tuples of numbers
    """
    if blocks == 0:
        return
    kernel = compiled(variant, like.device)
    if SIMULATED:
        kernel[blocks, variant.threads](*arguments)
        return
    from cuda.core import launch as launch_now

    # Past Numba's dispatcher, which takes a microsecond and more for each number, and warns of
    # grids that are small because the work is. An int is 8 bytes to this launch, and a float too.
    flat: list[Any] = []
    for each in arguments:
        if isinstance(each, tuple):
            flat.extend(each)
        else:
            flat.append(each)
    configuration = _configuration(blocks, variant.threads)
    launch_now(_core_stream(like.device, like.stream), configuration, kernel, *flat)
