"""torch: CUDA tensors, on the current stream of their device. Gradients are not tracked."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from .device import BFLOAT16, DeviceArray, DType, OnDevice, dtype_of


class Torch(OnDevice):
    """See :class:`.Library`."""

    name = "torch"

    def owns(self, array: Any) -> bool:
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(array, torch.Tensor)

    def read(self, array: Any) -> DeviceArray:
        torch = sys.modules["torch"]
        if array.layout != torch.strided:
            raise TypeError(f"a torch tensor must be dense, got one of layout {array.layout}")
        # A view may say of its memory that it is to be negated.
        array = array.resolve_neg()
        dtype = _dtypes().get(array.dtype)
        if dtype is None:
            raise TypeError(f"torch's {array.dtype} is not a dtype that can be read")
        device = array.device.index
        itemsize = dtype.itemsize
        return DeviceArray(
            array.data_ptr(),
            tuple(array.shape),
            tuple(step * itemsize for step in array.stride()),
            dtype,
            device,
            torch.cuda.current_stream(device).cuda_stream,
            self,
            array,
        )

    def allocate(
        self, shape: tuple[int, ...], steps: tuple[int, ...], dtype: DType, like: DeviceArray
    ) -> Any:
        torch = sys.modules["torch"]
        wanted = getattr(torch, dtype.name)
        return torch.empty_strided(shape, steps, dtype=wanted, device=like.owner.device)

    def view(self, array: Any, shape: tuple[int, ...], steps: tuple[int, ...], first: int) -> Any:
        return array.detach().as_strided(shape, steps, array.storage_offset() + first)

    def to_host(self, array: Any) -> Any:
        return array.detach().cpu().numpy()

    def from_host(self, array: Any, device: Any) -> Any:
        torch = sys.modules["torch"]
        return torch.from_numpy(np.ascontiguousarray(array)).to(torch.device("cuda", device))


@lru_cache(maxsize=1)
def _dtypes() -> dict[Any, Any]:
    torch = sys.modules["torch"]
    names = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
    return {
        torch.bfloat16: BFLOAT16,
        **{getattr(torch, name): dtype_of(name) for name in names},
    }


TORCH = Torch()
