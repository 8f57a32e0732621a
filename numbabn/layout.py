"""Axes, memory order and masks, brought to a canonical form; and what is refused.

Batch normalization does not care about the order of the reduced axes. So an array in any
dense memory order is ``(outer, channels, inner)`` over its memory, without a copy:
channels-last has ``inner = 1``, channels-first more. Only arrays with gaps (slices), and
channel axes that other axes lie between in memory, are copied.

Everything that a caller may pass wrongly is checked here. Nothing is computed here.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from math import inf, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .targets import on_device

Axis = Any  # int | Sequence[int]: what callers pass as `axis`
FLOATS = ("float16", "bfloat16", "float32", "float64")
_PARAMETERS = frozenset(map(np.dtype, ("float32", "float64")))


# Sizes and strides of a group of axes.
Steps = tuple[list[int], list[int]]


class Layout(NamedTuple):
    """How the arrays of one call lie in memory, and where their channels are."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]  # the channel axes, ascending
    memory: tuple[int, ...]  # the axes, slowest first, as x has them in memory
    order: tuple[int, ...]  # the same as the kernels get them: the channel axes adjacent
    canonical_shape: tuple[int, int, int]  # (outer, channels, inner)
    channel_shape: tuple[int, ...]  # what per-channel arrays look like to the caller
    plain: bool  # whether memory and kernels have the axes in C order

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return self.canonical_shape[1]

    def canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """`array` as (outer, channels, inner): a view where its memory allows, else a copy."""
        view = self.view(array)
        if view is None:
            ordered = np.ascontiguousarray(array.transpose(self.order))
            view = ordered.reshape(self.canonical_shape)
        return view

    def view(self, array: NDArray[Any]) -> NDArray[Any] | None:
        """`array` as (outer, channels, inner) without a copy, or None."""
        # A small call takes as long as its calls to NumPy: one less here.
        ordered = array if self.plain else array.transpose(self.order)
        flags = ordered.flags
        if flags.c_contiguous and flags.aligned:
            return ordered.reshape(self.canonical_shape)
        return None

    def restore(self, canonical: NDArray[Any], array: NDArray[Any]) -> None:
        """Write an (outer, channels, inner) array into `array`."""
        ordered = array.transpose(self.order)
        ordered[...] = canonical.reshape(ordered.shape)

    def empty(self, dtype: Any) -> NDArray[Any]:
        """A new array of x's shape, in x's memory order."""
        memory = np.empty([self.shape[axis] for axis in self.memory], dtype)
        return memory.transpose(_inverse(self.memory))

    def flatten(self, values: NDArray[Any]) -> NDArray[Any]:
        """Per-channel values as the caller has them -> (channels,)."""
        if len(self.axes) == 1:
            return values
        return values.transpose(self.order).reshape(-1)

    def unflatten(self, values: NDArray[Any]) -> NDArray[Any]:
        """(channels,) -> per-channel values as the caller has them."""
        if len(self.axes) == 1:
            return values
        ordered = values.reshape([self.channel_shape[axis] for axis in self.order])
        return ordered.transpose(_inverse(self.order))


def _inverse(order: tuple[int, ...]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def layout_of(x: Any, axis: Axis) -> Layout:
    """The layout of `x` with its channels along `axis`.

    Raises:
        TypeError: `axis` is neither an int nor a list of ints.
        ValueError: `axis` is out of range, named twice, empty, or every axis that x has.
    """
    return _layout(x.shape, x.strides, plain_axis(axis))


def plain_axis(axis: Axis) -> int | tuple[int, ...]:
    """`axis` as a Python int or a tuple of them; TypeError for anything else."""
    if type(axis) is int:
        return axis
    listed = isinstance(axis, (list, tuple))
    if not any(isinstance(each, bool) for each in (axis if listed else (axis,))):
        try:
            return tuple(map(operator.index, axis)) if listed else operator.index(axis)
        except TypeError:
            pass  # One message for everything that is neither, below.
    raise TypeError(f"axis must be an int or a list of ints, got {axis!r}")


@lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...], axis: int | tuple[int]) -> Layout:
    axes = _channel_axes(shape, axis)
    # Axes of size 1 have no place of their own in memory: they go first.
    single = [i for i in range(len(shape)) if shape[i] == 1]
    memory = [i for i in range(len(shape)) if shape[i] != 1]
    # Where a step is 0 (a broadcast array, or an empty one) memory has no order to follow.
    if 0 not in shape and all(strides[i] for i in memory):
        memory.sort(key=lambda i: -abs(strides[i]))
    order = memory
    places = [place for place, i in enumerate(memory) if i in axes]
    if places and places[-1] - places[0] + 1 != len(places):
        order = [i for i in memory if i not in axes] + [i for i in memory if i in axes]
        places = list(range(len(order) - len(places), len(order)))
    # A single channel has no axis here: its elements are one run.
    low, high = (places[0], places[-1]) if places else (0, -1)
    sizes = [shape[i] for i in order]
    canonical = (prod(sizes[:low]), prod(sizes[low : high + 1]), prod(sizes[high + 1 :]))
    if len(axes) == 1:
        channel_shape: tuple[int, ...] = (shape[axes[0]],)
    else:
        channel_shape = tuple(shape[i] if i in axes else 1 for i in range(len(shape)))
    plain = order == memory == sorted(memory)
    return Layout(
        shape, axes, (*single, *memory), (*single, *order), canonical, channel_shape, plain
    )


def _channel_axes(shape: tuple[int, ...], axis: int | tuple[int]) -> tuple[int, ...]:
    rank = len(shape)
    if rank == 0:
        raise ValueError("x must have at least 2 axes, got a single number of shape ()")
    named = (axis,) if isinstance(axis, int) else axis
    if not named:
        raise ValueError("axis must name at least one axis, got an empty list")
    for each in named:
        if not -rank <= each < rank:
            raise ValueError(
                f"axis {each} is out of range for x of shape {shape}: "
                f"expected {-rank} to {rank - 1}"
            )
    axes = tuple(sorted(each % rank for each in named))
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis must name each axis once, got {list(named)} for shape {shape}")
    if len(axes) == rank:
        raise ValueError(
            f"x must have an axis besides the channel axis to take statistics over, "
            f"got shape {shape} with axis={axis if isinstance(axis, int) else list(axis)}"
        )
    return axes


@lru_cache(maxsize=64)
def float_name(dtype: np.dtype[Any]) -> str | None:
    """The name of a dtype that kernels compute with, else None."""
    return dtype.name if dtype.name in FLOATS and dtype.isnative else None


def check_array(x: Any, name: str) -> None:
    """Raise TypeError unless `x` holds floats that kernels compute with."""
    if float_name(x.dtype) is None:
        order = "" if x.dtype.isnative else " in another byte order than this machine's"
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype.name}{order}"
        )


def check_like(array: Any, name: str, x: Any) -> None:
    """Raise unless `array` has the shape and dtype of `x`."""
    if array.dtype == x.dtype and array.shape == x.shape:
        return
    check_array(array, name)
    if array.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {x.shape}, got {array.shape}")
    raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {array.dtype}")


def check_out(
    out: NDArray[Any], x: NDArray[Any], inputs: dict[str, Any], over: tuple[str, ...] = ()
) -> None:
    """Raise unless results shaped as `x` can be written to `out` while `inputs` are read.

    over: names of the inputs that `out` may be, element for element
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    check_like(out, "out", x)
    if not out.flags.writeable:
        raise ValueError("out must be writable, got a read-only array")
    check_own_memory(out)
    for name, array in inputs.items():
        if not isinstance(array, np.ndarray) or not np.shares_memory(out, array):
            continue
        same = (
            name in over
            and out.strides == array.strides
            and out.__array_interface__["data"][0] == array.__array_interface__["data"][0]
        )
        if not same:
            raise overlap(name, over)


def overlap(name: str, over: tuple[str, ...]) -> ValueError:
    """The error for an `out` that lies over an input in a way that it may not."""
    allowed = f"only be {' or '.join(over)} itself" if over else "not be an input"
    return ValueError(
        f"out overlaps {name} in memory, which would give wrong results; it may {allowed}"
    )


def check_own_memory(out: Any) -> None:
    """Raise ValueError where two elements of `out` may share memory.

    They never do in whatever slicing and permuting makes.
    """
    extent = out.itemsize
    for stride, size in sorted(zip(map(abs, out.strides), out.shape, strict=True)):
        if size > 1 and stride < extent and out.size > 0:
            raise ValueError(
                f"out must have memory of its own for each element, got strides {out.strides} "
                f"for shape {out.shape}"
            )
        extent += stride * (size - 1)


def check_saved(values: Any, layout: Layout) -> None:
    """Raise ValueError unless `values` can be what a forward pass saved."""
    shape = (6, layout.channels)
    if values.shape != shape or float_name(values.dtype) != "float64":
        raise ValueError(
            f"values must be what a forward pass saved, float64 of shape {shape}, "
            f"got {values.dtype} of shape {values.shape}"
        )


def check_epsilon(epsilon: Any) -> float:
    """`epsilon` as a float; ValueError unless it is positive and finite."""
    number = _number(epsilon, "epsilon", "a positive number")
    if not 0 < number < inf:
        raise ValueError(f"epsilon must be a positive number, got {epsilon}")
    return number


def check_momentum(momentum: Any, name: str) -> float:
    """`momentum` as a float; ValueError unless it is in [0, 1]."""
    number = _number(momentum, name, "a number from 0 to 1")
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {momentum}")
    return number


def _number(value: Any, name: str, expected: str) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError("float would read it")
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}") from error


def channel_values(values: Any, name: str, layout: Layout) -> NDArray[Any]:
    """Per-channel values as (channels,), float32 or float64."""
    array = _real(values, name)
    if array.shape != layout.channel_shape:
        raise ValueError(
            f"{name} must have shape {layout.channel_shape}, one value for each channel of x, "
            f"got {array.shape}"
        )
    return layout.flatten(array)


def real_values(values: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Values of a given shape as float64."""
    array = _real(values, name)
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape of mean, {shape}, got {array.shape}")
    return array.astype(np.float64, copy=False)


def _host_array(values: Any, name: str) -> NDArray[Any]:
    """`values` as a NumPy array; TypeError where that would wait for a device, unasked."""
    if not isinstance(values, np.ndarray) and on_device(values):
        raise TypeError(
            f"{name} is on a CUDA device ({type(values).__name__}), and other arrays are not"
        )
    return np.asarray(values)


def _real(values: Any, name: str) -> NDArray[Any]:
    """Real numbers as an array of float32 where they are, otherwise of float64.

    A copy unless the array is as plain as most are: compiled code knows no others.
    """
    array = values if type(values) is np.ndarray else _host_array(values, name)
    if array.dtype in _PARAMETERS:
        return array if array.flags.carray else array.copy()
    if array.dtype.kind not in "fiu" and float_name(array.dtype) is None:
        raise TypeError(f"{name} must hold real numbers, got {array.dtype.name}")
    return array.astype(np.float64)


def check_mask(mask: Any, x: NDArray[Any]) -> NDArray[np.bool_] | None:
    """`mask` as a bool array of x's rank, each size x's or 1; None stays None.

    Two forms are accepted: the rank of `x`, or one less; then a last axis is added.

    Raises:
        TypeError: its dtype is neither bool nor a real number.
        ValueError: its shape fits in neither form.
    """
    if mask is None:
        return None
    on = _host_array(mask, "mask")
    if on.dtype.kind not in "bfiu" and float_name(on.dtype) is None:
        raise TypeError(f"mask must hold bools or real numbers, got {on.dtype.name}")
    full = on[..., None] if on.ndim == x.ndim - 1 else on
    check_mask_shape(on.shape, full.shape, x.shape)
    return full if full.dtype == np.bool_ else full != 0


def check_mask_shape(given: tuple[int, ...], full: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a mask fits x.

    given: its shape as the caller has it
    full: the same, with a last axis added where its rank is one less than x's
    shape: of x
    """
    if len(full) != len(shape) or any(
        size not in (1, expected) for size, expected in zip(full, shape, strict=True)
    ):
        raise ValueError(
            f"mask of shape {given} does not fit x of shape {shape}: expected the rank of x, "
            "or one less (then a last axis is added), and each size to be that of x or 1"
        )


def mask_axes(
    shape: tuple[int, ...], strides: tuple[int, ...], layout: Layout
) -> tuple[Steps, Steps, Steps]:
    """The steps of a mask of bytes along the outer, the channel and the inner axes.

    shape, strides: the mask's, its axes in the order of `layout.order`
    """
    sizes = [layout.shape[axis] for axis in layout.order]
    steps = [0 if size == 1 else step for size, step in zip(shape, strides, strict=True)]
    along = [
        place
        for place, axis in enumerate(layout.order)
        if axis in layout.axes and layout.shape[axis] != 1
    ]
    # A single channel has no axis here: as in `_layout`, its elements are one run.
    first, last = (along[0], along[-1] + 1) if along else (0, 0)
    return (
        _merged(sizes[:first], steps[:first]),
        _merged(sizes[first:last], steps[first:last]),
        _merged(sizes[last:], steps[last:]),
    )


def _merged(sizes: list[int], strides: list[int]) -> Steps:
    """The same steps with as few axes as there can be: none of size 1, none that go on."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return [size for size, _ in merged], [stride for _, stride in merged]
