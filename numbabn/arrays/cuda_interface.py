"""Numba's device arrays, and whatever else has `__cuda_array_interface__`.

On the stream that the interface names, else the default one. Results are Numba's device arrays.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..cuda.runtime import SIMULATED, cuda, on, order
from . import c_steps, is_on_device
from .cupy import CUPY
from .device import DeviceArray, Form, OnDevice, described_as, dtype_of, form_of
from .torch import TORCH

# Bytes of scratch that are kept at least; most calls need less.
_LEAST_KEPT = 1 << 20
_kept = threading.local()


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
        device, stream = _device_of(array, address), interface.get("stream") or 0
        if like is not None:
            # Of version 3: nobody is to touch the array before what is on its stream has run.
            if stream and stream != like.stream:
                order(device, stream, like.stream)
            stream = like.stream
        return described_as(
            address,
            form_of(shape, tuple(strides), dtype),
            device,
            stream,
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

    def scratch(self, form: Form, like: DeviceArray) -> DeviceArray:
        """Kept for each thread and stream: the driver's own allocator waits for the device.

        Calls of one thread on one stream follow each other, and take it in turns.
        """
        kept = _kept.__dict__.setdefault("by_stream", {})
        key = (like.device, like.stream)
        size = form.size * form.itemsize
        if key not in kept or kept[key].size < size:
            # With room for larger calls to come: to free it waits.
            kept[key] = self.empty((max(size + size // 2, _LEAST_KEPT),), np.uint8, like)
        return kept[key].of_form(form)

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
