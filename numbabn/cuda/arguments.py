"""The array arguments of an operation on a device: checked, and laid out for kernels.

Nothing here waits for the device, or copies an array there or back: every array argument has to be
of one library and on one device.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from .. import layout as lay
from ..layout import Axis, Layout
from . import folds, launch, masks
from .device import BYTE, DeviceArray, contiguous_strides, library_of
from .launch import DeviceMask, Reference


class Prepared(NamedTuple):
    """An array to compute on, and how it lies in memory."""

    x: DeviceArray
    layout: Layout
    canonical: DeviceArray


def describe(array: Any, name: str, like: DeviceArray | None = None) -> DeviceArray:
    """What is known of an array argument.

    like: an array that it has to share library and device with

    Raises:
        TypeError: it is on no device, or on another one, or of another library.
    """
    library = library_of(array)
    if library is None or (like is not None and library is not like.library):
        wanted = "on a CUDA device" if like is None else f"{_kind(like)}, as x is"
        raise TypeError(f"{name} must be {wanted}, got {type(array).__name__}")
    described: DeviceArray = library.describe(array)
    if like is not None and described.device != like.device and described.size:
        raise ValueError(
            f"{name} must be on the device of x, {like.device}, got device {described.device}"
        )
    size = described.itemsize
    if described.address % size or any(step % size for step in described.strides):
        raise ValueError(f"{name} must be aligned to its elements of {size} bytes")
    # Work on it is ordered with the work on x.
    return described if like is None else described._replace(stream=like.stream)


def _kind(like: DeviceArray) -> str:
    if like.library.name == "interface":
        return "an array with the CUDA array interface"
    return f"an array of {like.library.name} on a CUDA device"


def prepare(x: Any, axis: Axis) -> Prepared:
    described = describe(x, "x")
    lay.check_array(described, "x")
    layout = lay.layout_of(described, axis)
    return Prepared(described, layout, in_canonical_form(described, layout))


def _transposed(array: DeviceArray, order: tuple[int, ...]) -> DeviceArray:
    return array._replace(
        shape=tuple(array.shape[axis] for axis in order),
        strides=tuple(array.strides[axis] for axis in order),
    )


def in_canonical_form(array: DeviceArray, layout: Layout) -> DeviceArray:
    """`array` as (outer, channels, inner), contiguous: as it lies, or a copy."""
    ordered = _transposed(array, layout.order)
    if not ordered.is_contiguous:
        dense = new_array(array, ordered.shape, ordered.dtype)
        launch.copy(ordered, dense)
        ordered = dense
    return _reshaped(ordered, layout.canonical_shape)


def _reshaped(array: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
    size = array.itemsize
    steps = contiguous_strides(shape)
    return array._replace(shape=shape, strides=tuple(step * size for step in steps))


def new_array(like: DeviceArray, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """New contiguous memory in the library of `like`, on its device and stream."""
    array = like.library.empty(shape, contiguous_strides(shape), dtype, like)
    described: DeviceArray = like.library.describe(array)
    return described._replace(stream=like.stream, device=like.device)


class Output:
    """An output in the caller's memory order, and in the canonical form that kernels write."""

    def __init__(self, prepared: Prepared, out: Any) -> None:
        x, self._layout, _ = prepared
        if out is None:
            array = x.library.empty(x.shape, _dense_steps(self._layout), x.dtype, x)
            self._target = x.library.describe(array)._replace(stream=x.stream, device=x.device)
        else:
            self._target = out
        ordered = _transposed(self._target, self._layout.order)
        # Memory that is not of x's order is written by way of a copy.
        self._by_copy = not ordered.is_contiguous
        if self._by_copy:
            ordered = new_array(x, ordered.shape, x.dtype)
        self.canonical = _reshaped(ordered, self._layout.canonical_shape)

    def finish(self) -> Any:
        """The output, written."""
        if self._by_copy:
            ordered = _transposed(self._target, self._layout.order)
            launch.copy(_reshaped(self.canonical, ordered.shape), ordered)
        return self._target.owner


def _dense_steps(layout: Layout) -> tuple[int, ...]:
    """The steps of a dense array of x's shape in x's memory order, in elements."""
    steps = [1] * len(layout.shape)
    step = 1
    for axis in reversed(layout.memory):
        steps[axis] = step
        step *= max(1, layout.shape[axis])
    return tuple(steps)


def channel_steps(layout: Layout) -> tuple[int, ...]:
    """The steps of per-channel values as the caller sees them, over (channels,) memory."""
    if len(layout.axes) == 1:
        return (1,)
    steps = [1] * len(layout.shape)
    step = 1
    for axis in reversed(layout.order):
        if axis in layout.axes:
            steps[axis] = step
            step *= max(1, layout.shape[axis])
    return tuple(steps)


def row(values: Any, index: int, layout: Layout) -> Any:
    """One of the rows of a (rows, channels) array, as the caller sees per-channel values."""
    library = library_of(values)
    return library.view(
        values, layout.channel_shape, channel_steps(layout), index * layout.channels
    )


def parameter_value(values: Any, name: str, prepared: Prepared) -> DeviceArray | None:
    """Per-channel values as (channels,) in the order of memory; None stays None."""
    if values is None:
        return None
    x, layout, _ = prepared
    described = describe(values, name, x)
    if lay.float_name(described.dtype) is None:
        raise TypeError(f"{name} must hold floats, got {described.dtype.name}")
    if described.shape != layout.channel_shape:
        raise ValueError(
            f"{name} must have shape {layout.channel_shape}, one value for each channel of x, "
            f"got {described.shape}"
        )
    return _flat(described, layout)


def parameter_values(
    given: dict[str, Any], prepared: Prepared, needed: tuple[str, ...]
) -> dict[str, Any]:
    for name in needed:
        # None is not on a device, and what it says of that is what there is to say.
        describe(given[name], name, prepared.x)
    return {name: parameter_value(each, name, prepared) for name, each in given.items()}


def _flat(values: DeviceArray, layout: Layout) -> DeviceArray:
    size = values.itemsize
    steps = channel_steps(layout)
    if any(
        length != 1 and stride != step * size
        for length, stride, step in zip(values.shape, values.strides, steps, strict=True)
    ):
        dense = new_array(values, (layout.channels,), values.dtype)
        target = dense._replace(shape=values.shape, strides=tuple(step * size for step in steps))
        launch.copy(values, target)
        return dense
    return values._replace(shape=(layout.channels,), strides=(size,))


def laid_mask(mask: Any, prepared: Prepared) -> DeviceMask | None:
    """A mask as kernels read it: in place where it is of bytes, otherwise by way of bytes."""
    if mask is None:
        return None
    x, layout, _ = prepared
    described = describe(mask, "mask", x)
    if described.dtype.kind not in "bfiu" and lay.float_name(described.dtype) is None:
        raise TypeError(f"mask must hold bools or real numbers, got {described.dtype.name}")
    given = described.shape
    if described.ndim == x.ndim - 1:
        described = described._replace(
            shape=(*given, 1), strides=(*described.strides, described.itemsize)
        )
    lay.check_mask_shape(given, described.shape, x.shape)
    if described.dtype.itemsize > 1 or any(step < 0 for step in described.strides):
        on = new_array(x, described.shape, BYTE)
        launch.mask_bytes(described, on)
        described = on
    steps = _mask_steps(described, layout)
    if steps is None:
        # Too many axes that are broadcast in turn: one byte for every element.
        wide = new_array(x, x.shape, BYTE)
        broadcast = tuple(
            0 if size == 1 else step
            for size, step in zip(described.shape, described.strides, strict=True)
        )
        launch.mask_bytes(described._replace(shape=x.shape, strides=broadcast), wide)
        described = wide
        steps = _mask_steps(described, layout)
    assert steps is not None  # one byte for every element has one axis in each group
    return DeviceMask(described, steps)


def _mask_steps(mask: DeviceArray, layout: Layout) -> tuple[int, ...] | None:
    """See `masks`; None where a group has more axes, or longer ones, than kernels take."""
    flat: list[int] = []
    ordered = _transposed(mask, layout.order)
    for sizes, strides in lay.mask_axes(ordered.shape, ordered.strides, layout):
        fill = masks.AXES - len(sizes)
        if fill < 0 or (len(sizes) > 1 and prod(sizes) > masks.MOST_POSITIONS):
            return None
        flat += [*[1] * fill, *sizes, *[0] * fill, *strides]
    return tuple(flat)


def reference_of(renorm: Any, prepared: Prepared, by_variance: bool) -> Reference | None:
    if renorm is None:
        return None
    mean = parameter_value(renorm.mean, "renorm.mean", prepared)
    spread = parameter_value(renorm.stddev, "renorm.stddev", prepared)
    if mean is None or spread is None:
        raise TypeError("renorm must have a mean and a stddev, got None")
    way = folds.BY_VARIANCE if by_variance else folds.BY_STDDEV
    return Reference(mean, spread, way, renorm.clipping.limits)


def check_out(
    out: Any, prepared: Prepared, inputs: dict[str, Any], over: tuple[str, ...] = ()
) -> DeviceArray:
    """As `layout.check_out`. Arrays count as overlapping where their ranges of addresses do."""
    x = prepared.x
    described = describe(out, "out", x)
    lay.check_like(described, "out", x)
    if described.read_only:
        raise ValueError("out must be writable, got a read-only array")
    lay.check_own_memory(described)
    for name, array in inputs.items():
        if array is None:
            continue
        other = array if isinstance(array, DeviceArray) else describe(array, name, x)
        low, high = other.extent
        mine_low, mine_high = described.extent
        if low >= mine_high or mine_low >= high:
            continue
        same = described.address == other.address and described.strides == other.strides
        if not (same and name in over):
            raise lay.overlap(name, over)
    return described


def reordered(
    values: DeviceArray, layout: Layout, steps: tuple[int, ...], wanted: tuple[int, ...]
) -> DeviceArray:
    """(rows, channels) values whose channels lie by `steps`, as ones where they lie by `wanted`."""
    if len(layout.axes) == 1 or _same_steps(layout.channel_shape, steps, wanted):
        return values
    size, rows, channels = values.itemsize, values.shape[0], layout.channels
    shape = (rows, *layout.channel_shape)
    target = new_array(values, values.shape, values.dtype)
    source, to = (
        each._replace(shape=shape, strides=tuple(step * size for step in (channels, *order)))
        for each, order in ((values, steps), (target, wanted))
    )
    launch.copy(source, to)
    return target


def _same_steps(shape: tuple[int, ...], one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(size == 1 or a == b for size, a, b in zip(shape, one, other, strict=True))


def check_values(values: DeviceArray, name: str, first: DeviceArray) -> None:
    if lay.float_name(values.dtype) is None:
        raise TypeError(f"{name} must hold floats, got {values.dtype.name}")
    if values.shape != first.shape:
        raise ValueError(f"{name} must have the shape of mean, {first.shape}, got {values.shape}")


def flat_values(values: Any, name: str, first: DeviceArray) -> DeviceArray:
    """Values of the shape of `first`, flat and contiguous."""
    described = describe(values, name, first)
    check_values(described, name, first)
    if not described.is_contiguous:
        dense = new_array(described, described.shape, described.dtype)
        launch.copy(described, dense)
        described = dense
    return _reshaped(described, (described.size,))
