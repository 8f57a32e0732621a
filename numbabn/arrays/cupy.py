"""CuPy's arrays, on the current stream."""

from __future__ import annotations

import sys
from typing import Any

from ..cuda.runtime import LEGACY_STREAM
from .device import DeviceArray, Form, OnDevice, described_as, dtype_of, form_of


class CuPy(OnDevice):
    """See :class:`.Library`."""

    name = "cupy"

    def owns(self, array: Any) -> bool:
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(array, cupy.ndarray)

    def read(self, array: Any, like: DeviceArray | None = None) -> DeviceArray:
        device = array.device.id
        if like is None:
            stream = sys.modules["cupy"].cuda.get_current_stream(device).ptr or LEGACY_STREAM
        else:
            stream = like.stream
        form = form_of(array.shape, array.strides, dtype_of(array.dtype))
        return described_as(array.data.ptr, form, device, stream, self, array)

    def address(self, array: Any) -> int:
        return array.data.ptr

    def allocate(self, form: Form, like: DeviceArray) -> Any:
        cupy = sys.modules["cupy"]
        wanted = like.owner.dtype if form.dtype == like.dtype else form.dtype.on_host
        with cupy.cuda.Device(like.device):
            memory = cupy.empty(form.size, wanted)
        return cupy.ndarray(form.shape, wanted, memory.data, form.strides)

    def view(self, array: Any, shape: tuple[int, ...], steps: tuple[int, ...], first: int) -> Any:
        strides = tuple(step * array.itemsize for step in steps)
        memory = array.data + first * array.itemsize
        return sys.modules["cupy"].ndarray(shape, array.dtype, memory, strides)

    def assign(self, source: DeviceArray, target: DeviceArray) -> bool:
        with sys.modules["cupy"].cuda.Device(target.device):
            _array(target)[...] = _array(source)
        return True

    def to_host(self, array: Any) -> Any:
        return sys.modules["cupy"].asnumpy(array)

    def from_host(self, array: Any, device: Any) -> Any:
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            return cupy.asarray(array)


def _array(described: DeviceArray) -> Any:
    """A described array as CuPy's over its memory."""
    owner, form = described.owner, described.form
    memory = owner.data + (described.address - owner.data.ptr)
    return sys.modules["cupy"].ndarray(form.shape, owner.dtype, memory, form.strides)


CUPY = CuPy()
