"""Handing kernels and their arguments to a device."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from ..arrays.device import DeviceArray
from .compile import Variant, compiled, is_loaded
from .runtime import SIMULATED, cuda, is_capturing

if not SIMULATED:
    from cuda.core import launch as launch_now

_NOTHING = ctypes.c_char()
# 16-bit floats travel as the integers of `elements`; a bool is a byte.
_WORDS = {"float16": "uint16", "bfloat16": "int16", "bool": "uint8"}


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


@lru_cache(maxsize=256)
def _core_stream(device: int, handle: int) -> Any:
    from numba.cuda.cudadrv import driver

    return driver._to_core_stream(cuda.external_stream(handle) if handle else 0)


class Step:
    """A launch that is prepared: a kernel, its grid, and the arguments that are always the same."""

    __slots__ = ("_configuration", "_flat", "_kernels", "blocks", "constants", "variant")

    def __init__(self, variant: Variant, blocks: int, *constants: Any) -> None:
        """
        Args:
            constants: the last arguments: integers, and tuples of them.
        """
        self.variant, self.blocks, self.constants = variant, blocks, constants
        self._flat = _flattened(constants)
        self._kernels: dict[int, Any] = {}
        self._configuration: Any = None

    def __call__(self, like: DeviceArray, arguments: tuple[Any, ...], *groups: Any) -> None:
        """Launch it on the device and the stream of an array.

        arguments, groups: what differs from call to call, in the kernel's order: numbers and memory
            as `argument` gives it, and then tuples of such
        """
        if self.blocks == 0:
            return
        kernel = self._kernels.get(like.device)
        if kernel is None:
            kernel = self._kernels[like.device] = self._loaded(like)
        if SIMULATED:
            kernel[self.blocks, self.variant.threads](*arguments, *groups, *self.constants)
            return
        if self._configuration is None:
            from cuda.core import LaunchConfig

            self._configuration = LaunchConfig(grid=self.blocks, block=self.variant.threads)
        for group in groups:
            arguments += group
        # Past Numba's dispatcher, which takes a microsecond and more for each number, and warns of
        # grids that are small because the work is. An int is 8 bytes to this launch, a float too.
        stream = _core_stream(like.device, like.stream)
        launch_now(stream, self._configuration, kernel, *arguments, *self._flat)

    def _loaded(self, like: DeviceArray) -> Any:
        device = like.device
        if not (SIMULATED or is_loaded(self.variant, device)) and is_capturing(device, like.stream):
            raise RuntimeError(
                f"{self.variant.name} cannot be loaded while a CUDA graph is captured: make the "
                "same call once before, with arrays of these shapes and dtypes"
            )
        return compiled(self.variant, device)


def _flattened(constants: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(
        each
        for constant in constants
        for each in (constant if isinstance(constant, tuple) else (constant,))
    )
