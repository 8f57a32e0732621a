"""Numba's device arrays, and whatever else has `__cuda_array_interface__`.

On the stream that the interface names, else the default one. Results are Numba's device arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cuda.runtime import SIMULATED, cuda, on
from . import c_steps, is_on_device
from .cupy import CUPY
from .device import DeviceArray, Form, OnDevice, dtype_of, form_of
from .torch import TORCH


class Interface(OnDevice):
    """See :class:`.Library`."""

    name = "interface"

    def owns(self, array: Any) -> bool:
        return is_on_device(array) and not (TORCH.owns(array) or CUPY.owns(array))

    @property
    def _kind(self) -> str:
        return "an array with the CUDA array interface"

    def read(self, array: Any, like: DeviceArray | None = None) -> DeviceArray:
        interface = _interface_of(array)
        if interface.get("mask") is not None:
            raise TypeError("an array with a mask of its own cannot be read: pass it as mask=")
        dtype = dtype_of(interface["typestr"])
        shape = tuple(interface["shape"])
        strides = interface.get("strides")
        if strides is None:
            strides = tuple(step * dtype.itemsize for step in c_steps(shape))
        address = interface["data"][0] or 0
        stream = interface.get("stream") or 0
        return DeviceArray(
            address,
            form_of(shape, tuple(strides), dtype),
            _device_of(array, address),
            stream if like is None else like.stream,
            self,
            array,
            bool(interface["data"][1]),
        )

    def address(self, array: Any) -> int:
        return _interface_of(array)["data"][0] or 0

    def allocate(self, form: Form, like: DeviceArray) -> Any:
        with on(like.device):
            # The interface of a result names the stream that it is made on.
            stream = cuda.external_stream(like.stream) if like.stream else 0
            return cuda.device_array(
                form.shape, form.dtype.on_host, strides=form.strides, stream=stream
            )

    def view(self, array: Any, shape: tuple[int, ...], steps: tuple[int, ...], first: int) -> Any:
        itemsize = array.dtype.itemsize
        strides = tuple(step * itemsize for step in steps)
        flat = array.reshape(array.size)[first : first + 1 + _reach(shape, steps)]
        if SIMULATED:
            return type(array)(np.lib.stride_tricks.as_strided(flat._ary, shape, strides))
        return type(array)(shape, strides, array.dtype, array.stream, flat.gpu_data)

    def to_host(self, array: Any) -> Any:
        if hasattr(array, "copy_to_host"):
            return array.copy_to_host()
        return cuda.as_cuda_array(array).copy_to_host()

    def from_host(self, array: Any, device: Any) -> Any:
        with on(device):
            return cuda.to_device(np.ascontiguousarray(array))


def _interface_of(array: Any) -> dict[str, Any]:
    interface = getattr(array, "__cuda_array_interface__", None)
    # Simulated device arrays have the host's.
    return array._ary.__array_interface__ if interface is None else interface


def _reach(shape: tuple[int, ...], steps: tuple[int, ...]) -> int:
    """Elements from the first to the last."""
    return sum((size - 1) * step for size, step in zip(shape, steps, strict=True) if size)


def _device_of(array: Any, address: int) -> int:
    if SIMULATED or address == 0:
        return 0
    memory = getattr(array, "gpu_data", None)
    if memory is not None:
        return int(memory.context.device.id)
    from cuda.bindings import driver

    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    error, device = driver.cuPointerGetAttribute(attribute, address)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise ValueError(f"an array's address, {address:#x}, is on no CUDA device ({error.name})")
    return int(device)


INTERFACE = Interface()
