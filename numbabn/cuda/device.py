"""Arrays on a device: where their memory is, and how to make more in the same library.

Nothing is copied and no library is imported here that the caller has not imported. Three
kinds of arrays are told apart, because results are of the kind that came:

- torch: CUDA tensors. The current stream of their device. Gradients are not tracked.
- cupy: the current stream.
- interface: Numba's device arrays, and all else with `__cuda_array_interface__`. The stream
  that the interface names, else the default one. Results are Numba's device arrays.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .compile import Variant, compiled
from .runtime import SIMULATED, cuda


class DType(NamedTuple):
    """What is asked of a dtype, of NumPy's by their names: NumPy alone has no bfloat16.

    And it takes longer to say the name of one than all else that is asked here.
    """

    name: str
    kind: str
    itemsize: int
    isnative: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def on_host(self) -> Any:
        """The same for NumPy; two bytes for bfloat16 where ml_dtypes is not imported."""
        if self.kind != "V":
            return np.dtype(self.name)
        known = sys.modules.get("ml_dtypes")
        return np.dtype("V2") if known is None else np.dtype(known.bfloat16)


BFLOAT16 = DType("bfloat16", "V", 2)


@lru_cache(maxsize=64)
def dtype_of(dtype: Any) -> DType:
    """From a NumPy dtype, or from the type string of an array interface."""
    resolved = np.dtype(dtype)
    # The array interface has no bfloat16: it comes as two bytes without a meaning.
    if resolved.name in ("bfloat16", "void16"):
        return BFLOAT16
    return DType(resolved.name, resolved.kind, resolved.itemsize, resolved.isnative)


BYTE, FLOAT32, FLOAT64 = (dtype_of(each) for each in (np.uint8, np.float32, np.float64))


class DeviceArray(NamedTuple):
    """What kernels and checks need to know of an array."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: DType
    device: int
    stream: int  # what its library runs on now
    library: Any  # one of the classes below
    owner: Any  # the array itself, which keeps the memory
    read_only: bool = False

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether its memory is its elements in C order."""
        return is_contiguous(self.shape, self.strides, self.dtype.itemsize)

    @property
    def extent(self) -> tuple[int, int]:
        """The half-open range of addresses that its elements lie in."""
        if self.size == 0:
            return self.address, self.address
        spans = [(size - 1) * step for size, step in zip(self.shape, self.strides, strict=True)]
        low = self.address + sum(span for span in spans if span < 0)
        high = self.address + sum(span for span in spans if span > 0)
        return low, high + self.dtype.itemsize


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether memory of such strides is its elements in C order."""
    expected = itemsize
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and step != expected:
            return 0 in shape
        expected *= size
    return True


@lru_cache(maxsize=4096)
def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps of C order, in elements."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= max(1, size)
    return tuple(reversed(steps))


class Torch:
    """torch's CUDA tensors."""

    name = "torch"

    @staticmethod
    def describe(array: Any) -> DeviceArray:
        """See the module."""
        torch = sys.modules["torch"]
        if array.layout != torch.strided:
            raise TypeError(f"a torch tensor must be dense, got one of layout {array.layout}")
        # A view may say of its memory that it is to be negated.
        array = array.resolve_neg()
        dtype = _torch_dtypes().get(array.dtype)
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
            Torch,
            array,
        )

    @staticmethod
    def empty(
        shape: tuple[int, ...], steps: tuple[int, ...], dtype: DType, like: DeviceArray
    ) -> Any:
        """A new array of such strides, in elements, on the device of `like`."""
        torch = sys.modules["torch"]
        wanted = getattr(torch, dtype.name)
        return torch.empty_strided(shape, steps, dtype=wanted, device=like.owner.device)

    @staticmethod
    def view(array: Any, shape: tuple[int, ...], steps: tuple[int, ...], first: int) -> Any:
        """Elements of a contiguous array, from its `first` on, as an array of such strides."""
        return array.detach().as_strided(shape, steps, array.storage_offset() + first)

    @staticmethod
    def to_host(array: Any) -> Any:
        """A copy as a NumPy array."""
        return array.detach().cpu().numpy()

    @staticmethod
    def from_host(array: Any, device: int) -> Any:
        """A copy on a device."""
        torch = sys.modules["torch"]
        return torch.from_numpy(np.ascontiguousarray(array)).to(torch.device("cuda", device))


@lru_cache(maxsize=1)
def _torch_dtypes() -> dict[Any, Any]:
    torch = sys.modules["torch"]
    names = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
    return {
        torch.bfloat16: BFLOAT16,
        **{getattr(torch, name): dtype_of(name) for name in names},
    }


class CuPy:
    """CuPy's arrays."""

    name = "cupy"

    @staticmethod
    def describe(array: Any) -> DeviceArray:
        """See the module."""
        stream = sys.modules["cupy"].cuda.get_current_stream(array.device.id).ptr
        return DeviceArray(
            array.data.ptr, array.shape, array.strides, dtype_of(array.dtype),
            array.device.id, stream, CuPy, array,
        )  # fmt: skip

    @staticmethod
    def empty(
        shape: tuple[int, ...], steps: tuple[int, ...], dtype: DType, like: DeviceArray
    ) -> Any:
        """As `Torch.empty`."""
        cupy = sys.modules["cupy"]
        wanted = like.owner.dtype if dtype == like.dtype else dtype.on_host
        with cupy.cuda.Device(like.device):
            memory = cupy.empty(prod(shape), wanted)
        return CuPy.view(memory, shape, steps, 0)

    @staticmethod
    def view(array: Any, shape: tuple[int, ...], steps: tuple[int, ...], first: int) -> Any:
        """As `Torch.view`."""
        cupy = sys.modules["cupy"]
        strides = tuple(step * array.itemsize for step in steps)
        memory = array.data + first * array.itemsize
        return cupy.ndarray(shape, array.dtype, memory, strides)

    @staticmethod
    def to_host(array: Any) -> Any:
        """As `Torch.to_host`."""
        return sys.modules["cupy"].asnumpy(array)

    @staticmethod
    def from_host(array: Any, device: int) -> Any:
        """As `Torch.from_host`."""
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            return cupy.asarray(array)


class Interface:
    """Numba's device arrays, and whatever else has the CUDA array interface."""

    name = "interface"

    @staticmethod
    def describe(array: Any) -> DeviceArray:
        """See the module."""
        # Simulated device arrays have the host's interface.
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            interface = array._ary.__array_interface__
        if interface.get("mask") is not None:
            raise TypeError("an array with a mask of its own cannot be read: pass it as mask=")
        dtype = dtype_of(interface["typestr"])
        shape = tuple(interface["shape"])
        strides = interface.get("strides")
        if strides is None:
            strides = tuple(step * dtype.itemsize for step in contiguous_strides(shape))
        address = interface["data"][0] or 0
        stream = interface.get("stream") or 0
        return DeviceArray(
            address, shape, tuple(strides), dtype, _device_of(array, address), stream,
            Interface, array, bool(interface["data"][1]),
        )  # fmt: skip

    @staticmethod
    def empty(
        shape: tuple[int, ...], steps: tuple[int, ...], dtype: DType, like: DeviceArray
    ) -> Any:
        """As `Torch.empty`."""
        strides = tuple(step * dtype.itemsize for step in steps)
        with on(like.device):
            # The interface of a result names the stream that it is made on.
            stream = cuda.external_stream(like.stream) if like.stream else 0
            return cuda.device_array(shape, dtype.on_host, strides=strides, stream=stream)

    @staticmethod
    def view(array: Any, shape: tuple[int, ...], steps: tuple[int, ...], first: int) -> Any:
        """As `Torch.view`."""
        itemsize = array.dtype.itemsize
        strides = tuple(step * itemsize for step in steps)
        flat = array.reshape(array.size)[first : first + 1 + _reach(shape, steps)]
        if SIMULATED:
            return type(array)(np.lib.stride_tricks.as_strided(flat._ary, shape, strides))
        return type(array)(shape, strides, array.dtype, array.stream, flat.gpu_data)

    @staticmethod
    def to_host(array: Any) -> Any:
        """As `Torch.to_host`."""
        if hasattr(array, "copy_to_host"):
            return array.copy_to_host()
        return cuda.as_cuda_array(array).copy_to_host()

    @staticmethod
    def from_host(array: Any, device: int) -> Any:
        """As `Torch.from_host`."""
        with on(device):
            return cuda.to_device(np.ascontiguousarray(array))


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


def library_of(array: Any) -> Any:
    """The class above that knows `array`, or None where it is on no device."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(array, torch.Tensor):
        return Torch if array.is_cuda else None
    if cupy is not None and isinstance(array, cupy.ndarray):
        return CuPy
    if hasattr(array, "__cuda_array_interface__") or hasattr(array, "__cuda_ndarray__"):
        return Interface
    return None


LIBRARIES: dict[str, Any] = {"torch": Torch, "cupy": CuPy, "numba": Interface}


def imported_library() -> Any:
    """The first of them that the caller has imported, with a device of its own to use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return Torch
    return CuPy if "cupy" in sys.modules else Interface


@lru_cache(maxsize=1)
def device_count() -> int:
    """How many devices there are."""
    return 1 if SIMULATED else len(cuda.gpus)


def on(device: int) -> AbstractContextManager[Any]:
    """The context in which launches and allocations go to `device`."""
    if device_count() == 1:
        # The only context there can be: found without being named.
        return nullcontext()
    context: AbstractContextManager[Any] = cuda.gpus[device]
    return context


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
