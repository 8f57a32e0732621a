"""torch: CUDA tensors, on the current stream of their device. Gradients are not tracked."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from ..cuda.runtime import LEGACY_STREAM
from .device import BFLOAT16, DeviceArray, Form, OnDevice, described_as, dtype_of, form_of


class Torch(OnDevice):
    """See :class:`.Library`."""

    name = "torch"

    def owns(self, array: Any) -> bool:
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(array, torch.Tensor) and array.is_cuda

    def read(self, array: Any, like: DeviceArray | None = None) -> DeviceArray:
        torch = sys.modules["torch"]
        if array.layout != torch.strided:
            raise TypeError(f"a torch tensor must be dense, got one of layout {array.layout}")
        # A view may say of its memory that it is to be negated.
        array = array.resolve_neg()
        form = _form_of(array.shape, array.stride(), array.dtype)
        device = array.get_device()
        if like is None:
            stream = torch.cuda.current_stream(device).cuda_stream or LEGACY_STREAM
        else:
            stream = like.stream
        return described_as(array.data_ptr(), form, device, stream, self, array)

    def address(self, array: Any) -> int:
        return array.data_ptr()

    def allocate(self, form: Form, like: DeviceArray) -> Any:
        shape, steps, dtype = _arguments_of(form)
        empty = sys.modules["torch"].empty_strided
        return empty(shape, steps, dtype=dtype, device=like.owner.device)

    def view(self, array: Any, shape: tuple[int, ...], steps: tuple[int, ...], first: int) -> Any:
        array = array.detach() if array.requires_grad else array
        return array.as_strided(shape, steps, array.storage_offset() + first)

    def assign(self, source: DeviceArray, target: DeviceArray) -> bool:
        _tensor(target).copy_(_tensor(source))
        return True

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


def _tensor(described: DeviceArray) -> Any:
    """A described array as a tensor over its memory."""
    owner, form = described.owner.detach(), described.form
    first = owner.storage_offset() + (described.address - owner.data_ptr()) // form.itemsize
    return owner.as_strided(form.shape, [step // form.itemsize for step in form.strides], first)


@lru_cache(maxsize=4096)
def _form_of(shape: Any, steps: tuple[int, ...], dtype: Any) -> Form:
    known = _dtypes().get(dtype)
    if known is None:
        raise TypeError(f"torch's {dtype} is not a dtype that can be read")
    return form_of(tuple(shape), tuple(step * known.itemsize for step in steps), known)


@lru_cache(maxsize=4096)
def _arguments_of(form: Form) -> tuple[Any, ...]:
    """Shape, strides in elements, and dtype, as torch takes them."""
    steps = tuple(step // form.itemsize for step in form.strides)
    return form.shape, steps, getattr(sys.modules["torch"], form.dtype.name)


TORCH = Torch()
