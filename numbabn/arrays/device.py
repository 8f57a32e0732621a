"""What the libraries of arrays on a CUDA device share: descriptions, and what follows from them.

Nothing here waits for a device, and nothing knows Numba.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..checks import check_shape_of_mean, float_name
from . import Array, Library, Place, c_steps, is_on_device, steps_in_order


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
    if isinstance(dtype, DType):
        return dtype
    resolved = np.dtype(dtype)
    # The array interface has no bfloat16: it comes as two bytes without a meaning.
    if resolved.name in ("bfloat16", "void16"):
        return BFLOAT16
    return DType(resolved.name, resolved.kind, resolved.itemsize, resolved.isnative)


FLOAT32, FLOAT64 = dtype_of(np.float32), dtype_of(np.float64)


class DeviceArray(NamedTuple):
    """What kernels and checks need to know of an array."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: DType
    device: int
    stream: int  # what its library runs on now
    library: OnDevice
    owner: Array  # the array itself, which keeps the memory
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
        expected = self.dtype.itemsize
        for size, step in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and step != expected:
                return 0 in self.shape
            expected *= size
        return True

    @property
    def extent(self) -> tuple[int, int]:
        """The half-open range of addresses that its elements lie in."""
        if self.size == 0:
            return self.address, self.address
        spans = [(size - 1) * step for size, step in zip(self.shape, self.strides, strict=True)]
        low = self.address + sum(span for span in spans if span < 0)
        high = self.address + sum(span for span in spans if span > 0)
        return low, high + self.dtype.itemsize

    def transpose(self, order: tuple[int, ...]) -> DeviceArray:
        """Its axes in this order."""
        return self._replace(
            shape=tuple(self.shape[axis] for axis in order),
            strides=tuple(self.strides[axis] for axis in order),
        )

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        """Contiguous memory in another shape."""
        return self._replace(
            shape=shape, strides=tuple(step * self.itemsize for step in c_steps(shape))
        )

    def part(self, first: int, shape: tuple[int, ...]) -> DeviceArray:
        """Some of the elements of contiguous memory, from the `first` on."""
        return self._replace(address=self.address + first * self.itemsize).reshape(shape)


class OnDevice(Library):
    """See :class:`Library`."""

    where = "on a CUDA device"
    moves_in_place = True
    parameters_are_dense = False

    @abstractmethod
    def read(self, array: Array) -> DeviceArray:
        """What is known of an array of this library."""

    @abstractmethod
    def allocate(
        self, shape: tuple[int, ...], steps: tuple[int, ...], dtype: DType, like: DeviceArray
    ) -> Array:
        """A new array of such strides, in elements, on the device of `like`."""

    @abstractmethod
    def view(
        self, array: Array, shape: tuple[int, ...], steps: tuple[int, ...], first: int
    ) -> Array:
        """Elements of a contiguous array, from its `first` on, as an array of such strides."""

    @abstractmethod
    def owns(self, array: Any) -> bool:
        """Whether an array on a device is of this library, and not of one that has its own file."""

    def describe(self, array: Any, name: str, like: DeviceArray | None = None) -> DeviceArray:
        if not (is_on_device(array) and self.owns(array)):
            wanted = "on a CUDA device" if like is None else f"{self._kind}, as x is"
            raise TypeError(f"{name} must be {wanted}, got {type(array).__name__}")
        described = self.read(array)
        if like is not None and described.device != like.device and described.size:
            raise ValueError(
                f"{name} must be on the device of x, {like.device}, got device {described.device}"
            )
        size = described.itemsize
        if described.address % size or any(step % size for step in described.strides):
            raise ValueError(f"{name} must be aligned to its elements of {size} bytes")
        # Work on it is ordered with the work on x.
        return described if like is None else described._replace(stream=like.stream)

    @property
    def _kind(self) -> str:
        return f"an array of {self.name} on a CUDA device"

    def out(self, array: Any, like: DeviceArray) -> DeviceArray:
        return self.describe(array, "out", like)

    def is_writable(self, described: DeviceArray) -> bool:
        return not described.read_only

    def parameter(self, values: Any, name: str, like: DeviceArray | None) -> DeviceArray:
        described = self.describe(values, name, like)
        if float_name(described.dtype) is None:
            raise TypeError(f"{name} must hold floats, got {described.dtype.name}")
        return described

    def reals(self, values: Any, name: str, like: DeviceArray | None) -> DeviceArray:
        described = self.parameter(values, name, like)
        if like is not None:
            check_shape_of_mean(described.shape, name, like.shape)
        return described

    def counts(self, values: Any, like: DeviceArray) -> DeviceArray:
        return self.reals(values, "count", like)

    def mask(self, mask: Any, like: DeviceArray) -> DeviceArray:
        return self.describe(mask, "mask", like)

    def assignable(self, values: Any, name: str, old: Any) -> DeviceArray:
        wanted = self.read(old)
        if not is_on_device(values):
            values = self.from_host(np.array(values, wanted.dtype.on_host), wanted.device)
        place = self.place(wanted)
        if not self.owns(values) or self.place(self.read(values)) != place:
            raise TypeError(f"{name} must be in {place}, got {type(values).__name__}")
        given = self.describe(values, name)
        if given.shape != wanted.shape:
            raise ValueError(f"{name} must have shape {wanted.shape}, got {given.shape}")
        if given.dtype != wanted.dtype:
            raise TypeError(f"{name} must have dtype {wanted.dtype}, got {given.dtype}")
        return given

    def is_dense(self, described: DeviceArray) -> bool:
        return described.is_contiguous

    def with_last_axis(self, described: DeviceArray) -> DeviceArray:
        return described._replace(
            shape=(*described.shape, 1), strides=(*described.strides, described.itemsize)
        )

    def overlaps(self, described: DeviceArray, other: Any, name: str) -> bool:
        """Arrays count as overlapping where their ranges of addresses do."""
        if not is_on_device(other):
            return False
        low, high = described.extent
        first, end = self.describe(other, name).extent
        return first < high and low < end

    def is_same(self, described: DeviceArray, other: Any, name: str) -> bool:
        found = self.describe(other, name)
        return described.address == found.address and described.strides == found.strides

    def place(self, described: DeviceArray) -> Place:
        return Place(self, described.device)

    def stream(self, described: DeviceArray) -> int:
        return described.stream

    def on_stream_of(self, described: DeviceArray, like: DeviceArray) -> DeviceArray:
        return described._replace(stream=like.stream)

    def seal(self, described: DeviceArray) -> None:
        pass  # No library of arrays on devices has it.

    def empty(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        like: DeviceArray,
        order: tuple[int, ...] | None = None,
    ) -> DeviceArray:
        steps = c_steps(shape) if order is None else steps_in_order(shape, order)
        array = self.allocate(shape, steps, dtype_of(dtype), like)
        return self.read(array)._replace(stream=like.stream, device=like.device)

    def array(self, described: DeviceArray) -> Array:
        return described.owner

    def alias(self, array: Array) -> Array:
        return array

    def rows(
        self, table: DeviceArray, shape: tuple[int, ...], steps: tuple[int, ...] | None = None
    ) -> tuple[Array, ...]:
        count, width = table.shape
        steps = c_steps(shape) if steps is None else steps
        return tuple(self.view(table.owner, shape, steps, row * width) for row in range(count))

    def dtype_on_host(self, array: Array) -> Any:
        return self.read(array).dtype.on_host
