"""CuPy's arrays, on the current stream."""

from __future__ import annotations

import sys
from math import prod
from typing import Any

from .device import DeviceArray, DType, OnDevice, dtype_of


class CuPy(OnDevice):
    """See :class:`.Library`."""

    name = "cupy"

    def owns(self, array: Any) -> bool:
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(array, cupy.ndarray)

    def read(self, array: Any) -> DeviceArray:
        stream = sys.modules["cupy"].cuda.get_current_stream(array.device.id).ptr
        return DeviceArray(
            array.data.ptr,
            array.shape,
            array.strides,
            dtype_of(array.dtype),
            array.device.id,
            stream,
            self,
            array,
        )

    def allocate(
        self, shape: tuple[int, ...], steps: tuple[int, ...], dtype: DType, like: DeviceArray
    ) -> Any:
        cupy = sys.modules["cupy"]
        wanted = like.owner.dtype if dtype == like.dtype else dtype.on_host
        with cupy.cuda.Device(like.device):
            memory = cupy.empty(prod(shape), wanted)
        return self.view(memory, shape, steps, 0)

    def view(self, array: Any, shape: tuple[int, ...], steps: tuple[int, ...], first: int) -> Any:
        strides = tuple(step * array.itemsize for step in steps)
        memory = array.data + first * array.itemsize
        return sys.modules["cupy"].ndarray(shape, array.dtype, memory, strides)

    def to_host(self, array: Any) -> Any:
        return sys.modules["cupy"].asnumpy(array)

    def from_host(self, array: Any, device: Any) -> Any:
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            return cupy.asarray(array)


CUPY = CuPy()
