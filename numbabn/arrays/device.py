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


class Form:
    """What of an array follows from its shape, strides and dtype; made once for all like it.

    shape, strides      tuples; strides are in bytes
    low, high           the half-open range of addresses of its elements, from its own on
    is_contiguous       whether its memory is its elements in C order
    is_aligned          whether its strides are multiples of its elements
    is_float            whether kernels compute with its dtype
    """

    __slots__ = (
        "_ordered", "_shaped", "dtype", "high", "is_aligned", "is_contiguous", "is_float",
        "itemsize", "low", "shape", "size", "strides",
    )  # fmt: skip

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType) -> None:
        self.shape, self.strides, self.dtype = shape, strides, dtype
        self.itemsize, self.size = dtype.itemsize, prod(shape)
        self.is_contiguous = self.size == 0 or all(
            size == 1 or step == expected * self.itemsize
            for size, step, expected in zip(shape, strides, c_steps(shape), strict=True)
        )
        self.is_float = float_name(dtype) is not None
        self.is_aligned = not any(step % self.itemsize for step in strides)
        spans = [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
        self.low = self.high = 0
        if self.size:
            self.low = sum(span for span in spans if span < 0)
            self.high = sum(span for span in spans if span > 0) + self.itemsize
        self._ordered: dict[tuple[int, ...], Form] = {}
        self._shaped: dict[tuple[int, ...], Form] = {}

    def in_order(self, order: tuple[int, ...]) -> Form:
        """With its axes in this order."""
        found = self._ordered.get(order)
        if found is None:
            shape, strides = (
                tuple(each[axis] for axis in order) for each in (self.shape, self.strides)
            )
            found = self._ordered[order] = form_of(shape, strides, self.dtype)
        return found

    def of_shape(self, shape: tuple[int, ...]) -> Form:
        """Contiguous memory of the same dtype, in another shape."""
        found = self._shaped.get(shape)
        if found is None:
            found = self._shaped[shape] = dense_form(shape, self.dtype)
        return found


@lru_cache(maxsize=4096)
def form_of(shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType) -> Form:
    """The form of arrays of this shape, of strides in bytes, and of this dtype."""
    return Form(shape, strides, dtype)


@lru_cache(maxsize=4096)
def dense_form(shape: tuple[int, ...], dtype: Any, order: tuple[int, ...] | None = None) -> Form:
    """That of dense arrays, their axes in this order, slowest first; None for C order."""
    kind = dtype_of(dtype)
    steps = c_steps(shape) if order is None else steps_in_order(shape, order)
    return form_of(shape, tuple(step * kind.itemsize for step in steps), kind)


class DeviceArray(NamedTuple):
    """What kernels and checks need to know of an array."""

    address: int
    form: Form
    device: int
    stream: int  # what its library runs on now
    library: OnDevice
    owner: Array  # the array itself, which keeps the memory
    read_only: bool
    # As `form` has them: a field is found faster than a property, and these are asked for often.
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: DType

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self.form.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.form.size

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.form.itemsize

    @property
    def extent(self) -> tuple[int, int]:
        """The half-open range of addresses that its elements lie in."""
        return self.address + self.form.low, self.address + self.form.high

    def of_form(self, form: Form, offset: int = 0) -> DeviceArray:
        """Its memory from `offset` bytes on, as an array of another form."""
        shape_and_more = form.shape, form.strides, form.dtype
        return _new(DeviceArray, (self[0] + offset, form, *self[2:7], *shape_and_more))

    def transpose(self, order: tuple[int, ...]) -> DeviceArray:
        """Its axes in this order."""
        return self.of_form(self.form.in_order(order))

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        """Contiguous memory in another shape."""
        form = self.form.of_shape(shape)
        return self if form is self.form else self.of_form(form)

    def part(self, first: int, shape: tuple[int, ...]) -> DeviceArray:
        """Some of the elements of contiguous memory, from the `first` on."""
        return self.of_form(self.form.of_shape(shape), first * self.form.itemsize)


# Past the class's own way, which takes three times as long: a call makes a dozen of these.
_new = tuple.__new__


def described_as(
    address: int,
    form: Form,
    device: int,
    stream: int,
    library: OnDevice,
    owner: Array,
    read_only: bool = False,
) -> DeviceArray:
    """A `DeviceArray` of this form."""
    where = (address, form, device, stream, library, owner, read_only)
    return _new(DeviceArray, (*where, form.shape, form.strides, form.dtype))


class OnDevice(Library):
    """See :class:`Library`."""

    where = "on a CUDA device"
    moves_in_place = True
    parameters_are_dense = False

    @abstractmethod
    def read(self, array: Array, like: DeviceArray | None = None) -> DeviceArray:
        """What is known of an array of this library, work on which is to be ordered with `like`."""

    @abstractmethod
    def address(self, array: Array) -> int:
        """Where a new array of this library begins."""

    @abstractmethod
    def allocate(self, form: Form, like: DeviceArray) -> Array:
        """A new array of this form on the device of `like`."""

    @abstractmethod
    def view(
        self, array: Array, shape: tuple[int, ...], steps: tuple[int, ...], first: int
    ) -> Array:
        """Elements of a contiguous array, from its `first` on, as an array of such strides."""

    def scratch(self, form: Form, like: DeviceArray) -> DeviceArray:
        """Memory for the time of a call, on the stream of `like`; its owner is kept as long."""
        return self.new(form, like)

    def assign(self, source: DeviceArray, target: DeviceArray) -> bool:
        """target[...] = source, by the library's own copy; False where it has none."""
        return False

    @abstractmethod
    def owns(self, array: Any) -> bool:
        """Whether something is an array on a device, of this library and not of one with a file."""

    def describe(self, array: Any, name: str, like: DeviceArray | None = None) -> DeviceArray:
        if not self.owns(array):
            wanted = "on a CUDA device" if like is None else f"{self._kind}, as x is"
            raise TypeError(f"{name} must be {wanted}, got {type(array).__name__}")
        described = self.read(array, like)
        if like is not None and described.device != like.device and described.size:
            raise ValueError(
                f"{name} must be on the device of x, {like.device}, got device {described.device}"
            )
        form = described.form
        if described.address % form.itemsize or not form.is_aligned:
            raise ValueError(f"{name} must be aligned to its elements of {form.itemsize} bytes")
        return described

    @property
    def _kind(self) -> str:
        return f"an array of {self.name} on a CUDA device"

    def out(self, array: Any, like: DeviceArray) -> DeviceArray:
        return self.describe(array, "out", like)

    def is_writable(self, described: DeviceArray) -> bool:
        return not described.read_only

    def parameter(self, values: Any, name: str, like: DeviceArray | None) -> DeviceArray:
        described = self.describe(values, name, like)
        if not described.form.is_float:
            raise TypeError(f"{name} must hold floats, got {described.dtype.name}")
        return described

    def check_not_negative(self, described: DeviceArray, name: str) -> None:
        """Nothing: to look at the values would wait for the device."""

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
        return described.form.is_contiguous

    def with_last_axis(self, described: DeviceArray) -> DeviceArray:
        shape, strides = (*described.shape, 1), (*described.strides, described.itemsize)
        return described.of_form(form_of(shape, strides, described.dtype))

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
        return self.new(dense_form(shape, dtype, order), like)

    def new(self, form: Form, like: DeviceArray) -> DeviceArray:
        """`empty`, of a form that is dense in some order."""
        array = self.allocate(form, like)
        return described_as(self.address(array), form, like.device, like.stream, self, array)

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
