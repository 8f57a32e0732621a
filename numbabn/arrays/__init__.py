"""Arrays of every library that numbabn reads: one file a library, NumPy is one of them.

A *library* tells how its arrays are described, allocated and viewed. What launchers take, and
what is checked, is an array's *description*. That of a NumPy array is the array itself; that of an
array on a CUDA device is a `device.DeviceArray`, which answers to NumPy's words. Nothing here
computes, and no library is imported that the caller has not imported already.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Array = Any  # an array of some library
Described = Any  # its description: an ndarray, or a DeviceArray
DType = Any  # NumPy's, or what `device` has in its place


class Library(ABC):
    """What is asked of a library."""

    name: str
    where: str  # the library's arrays are, in words
    # Whether moving statistics are moved in the arrays that hold them, which a captured CUDA graph
    # needs. Otherwise new ones take their place all at once, which an interrupt cannot split.
    moves_in_place: bool
    # Whether what `parameter` gives is contiguous, if of rank 1.
    parameters_are_dense: bool

    def __reduce__(self) -> str:
        # There is one of each, also after pickling: the name of the global that it is.
        return type(self).__name__.upper()

    # Arguments, described

    @abstractmethod
    def describe(self, array: Array, name: str, like: Described | None = None) -> Described:
        """What is known of an array argument.

        like: an array that it has to share library and device with

        Raises:
            TypeError: it is not an array of this library.
            ValueError: it is on another device, or its memory cannot be read.
        """

    @abstractmethod
    def out(self, array: Array, like: Described) -> Described:
        """`describe` for memory that the caller gives for a result."""

    @abstractmethod
    def is_writable(self, described: Described) -> bool:
        """Whether an array is not read-only."""

    @abstractmethod
    def parameter(self, values: Any, name: str, like: Described | None) -> Described:
        """Values that kernels read as one float a channel, of any shape."""

    @abstractmethod
    def check_not_negative(self, described: Described, name: str) -> None:
        """Raise ValueError where a value is negative, unless a device would be waited for."""

    @abstractmethod
    def reals(self, values: Any, name: str, like: Described | None) -> Described:
        """Values of the shape of `like`, in float64 where that takes no launch."""

    @abstractmethod
    def counts(self, values: Any, like: Described) -> Described:
        """Numbers of elements, of the shape of `like`."""

    @abstractmethod
    def mask(self, mask: Any, like: Described) -> Described:
        """A mask, of any dtype and shape."""

    @abstractmethod
    def assignable(self, values: Any, name: str, old: Array) -> Described:
        """Values that are to take the place of an array, of its shape and dtype."""

    # Descriptions

    @abstractmethod
    def is_dense(self, described: Described) -> bool:
        """Whether its memory is its elements in C order, as kernels read them."""

    @abstractmethod
    def with_last_axis(self, described: Described) -> Described:
        """The same with one more axis, of size 1."""

    @abstractmethod
    def overlaps(self, described: Described, other: Any, name: str) -> bool:
        """Whether an output may share memory with an argument, whose name is for errors."""

    @abstractmethod
    def is_same(self, described: Described, other: Any, name: str) -> bool:
        """Whether each element of the one is where it is in the other."""

    @abstractmethod
    def place(self, described: Described) -> Place:
        """Where an array is."""

    @abstractmethod
    def stream(self, described: Described) -> Any:
        """What the library's work and memory is ordered by; None where there is no such thing."""

    @abstractmethod
    def on_stream_of(self, described: Described, like: Described) -> Described:
        """The same, work on which is ordered with the work on `like`."""

    @abstractmethod
    def seal(self, described: Described) -> None:
        """Make an array read-only, where there is such a thing."""

    # New arrays

    @abstractmethod
    def empty(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        like: Described,
        order: tuple[int, ...] | None = None,
    ) -> Described:
        """New memory where `like` is, its axes in this order, slowest first; None for C order."""

    @abstractmethod
    def array(self, described: Described) -> Array:
        """The array that was described, as its caller knows it."""

    @abstractmethod
    def alias(self, array: Array) -> Array:
        """The same memory as an array whose shape and flags may be changed."""

    @abstractmethod
    def rows(
        self, table: Described, shape: tuple[int, ...], steps: tuple[int, ...] | None = None
    ) -> tuple[Array, ...]:
        """Each row of a contiguous table as an array of this shape, without a copy.

        steps: elements from one to the next along each axis; None for C order
        """

    # NumPy, and back

    @abstractmethod
    def to_host(self, array: Array) -> Any:
        """The array in NumPy; waits for a device."""

    @abstractmethod
    def from_host(self, array: Any, device: Any) -> Array:
        """A NumPy array on a device."""

    @abstractmethod
    def dtype_on_host(self, array: Array) -> Any:
        """The dtype that NumPy has for it."""


class Place(NamedTuple):
    """Where arrays are."""

    library: Library
    device: int | None = None  # None for the host

    def __str__(self) -> str:
        if self.device is None:
            return "in NumPy"
        name = "Numba" if self.library.name == "interface" else self.library.name
        return f"arrays of {name} on CUDA device {self.device}"

    def array(self, values: Any) -> Array:
        """A NumPy array there."""
        return self.library.from_host(values, self.device)


def is_on_device(array: Any) -> bool:
    """Whether `array` is one on a CUDA device."""
    if isinstance(array, np.ndarray):
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        # Its array interface raises for tensors that require a gradient.
        return bool(array.is_cuda)
    # The second is what simulated device arrays have.
    return hasattr(array, "__cuda_array_interface__") or hasattr(array, "__cuda_ndarray__")


@lru_cache(maxsize=4096)
def c_steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one to the next along each axis, in C order."""
    return steps_in_order(shape, tuple(range(len(shape))))


@lru_cache(maxsize=4096)
def steps_in_order(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """The same where memory has the axes in this order, slowest first."""
    steps, step = [1] * len(shape), 1
    for axis in reversed(order):
        steps[axis] = step
        step *= max(1, shape[axis])
    return tuple(steps)
