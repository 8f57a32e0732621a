"""NumPy's arrays: they describe themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_shape_of_mean, float_name
from . import Library, Place, is_on_device

_PARAMETERS = frozenset(map(np.dtype, ("float32", "float64")))


class NumPy(Library):
    """See :class:`Library`."""

    name, where = "numpy", "in NumPy"
    moves_in_place = False
    parameters_are_dense = True

    def describe(self, array: Any, name: str, like: Any = None) -> NDArray[Any]:
        if type(array) is np.ndarray:
            return array
        if not isinstance(array, np.ndarray):
            _refuse_device(array, name)
            raise TypeError(
                f"{name} must be a NumPy array or an array on a CUDA device, "
                f"got {type(array).__name__}{_what_to_pass(array, name)}"
            )
        # MaskedArray is an ndarray; to go on without its mask would be silently wrong.
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(
                f"{name} must not be a masked array: pass {name}.data, and mask=~{name}.mask "
                "(True is on)"
            )
        # All that is made of one is a matrix again, of two axes.
        if isinstance(array, np.matrix):
            raise TypeError(f"{name} must not be an np.matrix: pass np.asarray({name})")
        return array

    def out(self, array: Any, like: Any) -> NDArray[Any]:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"out must be a NumPy array, got {type(array).__name__}")
        return array

    def is_writable(self, described: Any) -> bool:
        return bool(described.flags.writeable)

    def parameter(self, values: Any, name: str, like: Any) -> NDArray[Any]:
        array = values if type(values) is np.ndarray else _host_array(values, name)
        if array.dtype in _PARAMETERS:
            # A copy unless the array is as plain as most are: compiled code knows no others.
            return array if array.flags.carray else array.copy()
        if array.dtype.kind not in "fiu" and float_name(array.dtype) is None:
            raise TypeError(f"{name} must hold real numbers, got {array.dtype.name}")
        return array.astype(np.float64)

    def check_not_negative(self, described: Any, name: str) -> None:
        if described.size == 0:
            return
        # In a fourth of the time that `min` takes; of NaNs it finds the first.
        place = described.argmin()
        if described.item(place) < 0:
            raise ValueError(f"{name} must not be negative, got {described.flat[place]}")

    def reals(self, values: Any, name: str, like: Any) -> NDArray[np.float64]:
        array = self.parameter(values, name, like)
        if like is not None:
            check_shape_of_mean(array.shape, name, like.shape)
        return array.astype(np.float64, copy=False)

    def counts(self, values: Any, like: Any) -> NDArray[np.float64]:
        count = self.reals(values, "count", None)
        if count.shape not in ((), like.shape):
            raise ValueError(
                f"count must be a number or have the shape of mean, {like.shape}, got {count.shape}"
            )
        if (count < 0).any():
            raise ValueError(f"count must not be negative, got {count.min()}")
        return count if count.shape == like.shape else np.broadcast_to(count, like.shape)

    def mask(self, mask: Any, like: Any) -> NDArray[Any]:
        return _host_array(mask, "mask")

    def assignable(self, values: Any, name: str, old: Any) -> NDArray[Any]:
        new = np.array(values, old.dtype)
        if new.shape != old.shape:
            raise ValueError(f"{name} must have shape {old.shape}, got {new.shape}")
        return new

    def is_dense(self, described: Any) -> bool:
        flags = described.flags
        dense: bool = flags.c_contiguous and flags.aligned
        return dense

    def with_last_axis(self, described: Any) -> NDArray[Any]:
        array: NDArray[Any] = described[..., None]
        return array

    def overlaps(self, described: Any, other: Any, name: str) -> bool:
        return isinstance(other, np.ndarray) and np.shares_memory(described, other)

    def is_same(self, described: Any, other: Any, name: str) -> bool:
        return described.strides == other.strides and _address(described) == _address(other)

    def place(self, described: Any) -> Place:
        return HOST

    def stream(self, described: Any) -> None:
        return None

    def on_stream_of(self, described: Any, like: Any) -> NDArray[Any]:
        array: NDArray[Any] = described
        return array

    def seal(self, described: Any) -> None:
        described.setflags(write=False)

    def empty(
        self, shape: tuple[int, ...], dtype: Any, like: Any, order: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        if order is None:
            return np.empty(shape, dtype)
        memory = np.empty([shape[axis] for axis in order], dtype)
        return memory.transpose(sorted(range(len(order)), key=order.__getitem__))

    def array(self, described: Any) -> NDArray[Any]:
        array: NDArray[Any] = described
        return array

    def alias(self, array: Any) -> NDArray[Any]:
        view: NDArray[Any] = array.view()
        return view

    def rows(
        self, table: Any, shape: tuple[int, ...], steps: tuple[int, ...] | None = None
    ) -> tuple[NDArray[Any], ...]:
        if len(shape) == 1 and len(table) == 2:
            # As every backward has them: whatever goes over rows takes three times as long.
            return table[0], table[1]
        if len(shape) == 1:
            return tuple(table)
        if steps is None:
            return tuple(table.reshape(len(table), *shape))
        strides = [step * table.itemsize for step in steps]
        return tuple(np.ndarray(shape, table.dtype, row, 0, strides) for row in table)

    def to_host(self, array: Any) -> NDArray[Any]:
        return np.asarray(array)

    def from_host(self, array: Any, device: Any) -> NDArray[Any]:
        values: NDArray[Any] = array
        return values

    def dtype_on_host(self, array: Any) -> np.dtype[Any]:
        dtype: np.dtype[Any] = array.dtype
        return dtype


def _refuse_device(values: Any, name: str) -> None:
    """Raise TypeError where reading `values` would wait for a device, unasked."""
    if is_on_device(values):
        raise TypeError(
            f"{name} is on a CUDA device ({type(values).__name__}), and other arrays are not"
        )


def _what_to_pass(values: Any, name: str) -> str:
    """The one call that makes a NumPy array of an array of another library, if there is one."""
    library = type(values).__module__.split(".")[0]
    call = ""
    if isinstance(values, (list, tuple)):
        call = f"np.asarray({name}, np.float32)"
    elif library == "torch":
        detached = f"{name}.detach()" if values.requires_grad else name
        # NumPy has no bfloat16 of its own.
        wide = ".float()" if str(values.dtype) == "torch.bfloat16" else ""
        call = f"{detached}{wide}.numpy()"
    elif library == "pandas":
        call = f"{name}.to_numpy(np.float32)"
    elif hasattr(values, "__array__"):
        call = f"np.asarray({name})"
    return f": pass {call}" if call else ""


def _host_array(values: Any, name: str) -> NDArray[Any]:
    if type(values) is np.ndarray:
        return values
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array, whose own mask would be lost: pass "
            f"{name}.filled(0)"
        )
    if not isinstance(values, np.ndarray):
        _refuse_device(values, name)
        if getattr(values, "requires_grad", False) is True:
            raise TypeError(
                f"{name} requires a gradient, which nothing here passes on to it: pass "
                f"{name}.detach()"
            )
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, and cannot be made one: {error}") from error


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


NUMPY = NumPy()
HOST = Place(NUMPY)
