"""The public operations on device arrays: check, lay out, allocate, launch.

`numbabn.functional` documents them, and calls these where an array is on a device. Nothing
here waits for the device, or copies an array there or back: every array argument has to be of
one library and on one device.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from .. import layout as lay
from ..layout import Axis, Layout
from . import folds, kernels, launch, masks
from .device import (
    BYTE,
    FLOAT32,
    FLOAT64,
    LIBRARIES,
    DeviceArray,
    contiguous_strides,
    device_count,
    imported_library,
    library_of,
)
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


def _prepare(x: Any, axis: Axis) -> Prepared:
    described = describe(x, "x")
    lay.check_array(described, "x")
    layout = lay.layout_of(described, axis)
    return Prepared(described, layout, _canonical(described, layout))


def _transposed(array: DeviceArray, order: tuple[int, ...]) -> DeviceArray:
    return array._replace(
        shape=tuple(array.shape[axis] for axis in order),
        strides=tuple(array.strides[axis] for axis in order),
    )


def _canonical(array: DeviceArray, layout: Layout) -> DeviceArray:
    """`array` as (outer, channels, inner), contiguous: as it lies, or a copy."""
    ordered = _transposed(array, layout.order)
    if not ordered.is_contiguous:
        dense = _empty(array, ordered.shape, ordered.dtype)
        launch.copy(ordered, dense)
        ordered = dense
    return _reshaped(ordered, layout.canonical_shape)


def _reshaped(array: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
    size = array.itemsize
    steps = contiguous_strides(shape)
    return array._replace(shape=shape, strides=tuple(step * size for step in steps))


def _empty(like: DeviceArray, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """New contiguous memory in the library of `like`, on its device and stream."""
    array = like.library.empty(shape, contiguous_strides(shape), dtype, like)
    described: DeviceArray = like.library.describe(array)
    return described._replace(stream=like.stream, device=like.device)


class _Output:
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
            ordered = _empty(x, ordered.shape, x.dtype)
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


def _channel_steps(layout: Layout) -> tuple[int, ...]:
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
        values, layout.channel_shape, _channel_steps(layout), index * layout.channels
    )


def _parameter(values: Any, name: str, prepared: Prepared) -> DeviceArray | None:
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


def _parameters(
    given: dict[str, Any], prepared: Prepared, needed: tuple[str, ...]
) -> dict[str, Any]:
    for name in needed:
        # None is not on a device, and what it says of that is what there is to say.
        describe(given[name], name, prepared.x)
    return {name: _parameter(each, name, prepared) for name, each in given.items()}


def _flat(values: DeviceArray, layout: Layout) -> DeviceArray:
    size = values.itemsize
    steps = _channel_steps(layout)
    if any(
        length != 1 and stride != step * size
        for length, stride, step in zip(values.shape, values.strides, steps, strict=True)
    ):
        dense = _empty(values, (layout.channels,), values.dtype)
        target = dense._replace(shape=values.shape, strides=tuple(step * size for step in steps))
        launch.copy(values, target)
        return dense
    return values._replace(shape=(layout.channels,), strides=(size,))


def _mask(mask: Any, prepared: Prepared) -> DeviceMask | None:
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
        on = _empty(x, described.shape, BYTE)
        launch.mask_bytes(described, on)
        described = on
    steps = _mask_steps(described, layout)
    if steps is None:
        # Too many axes that are broadcast in turn: one byte for every element.
        wide = _empty(x, x.shape, BYTE)
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


def _reference(renorm: Any, prepared: Prepared, by_variance: bool) -> Reference | None:
    if renorm is None:
        return None
    mean = _parameter(renorm.mean, "renorm.mean", prepared)
    spread = _parameter(renorm.stddev, "renorm.stddev", prepared)
    if mean is None or spread is None:
        raise TypeError("renorm must have a mean and a stddev, got None")
    way = folds.BY_VARIANCE if by_variance else folds.BY_STDDEV
    return Reference(mean, spread, way, renorm.clipping.limits)


def _check_out(
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


def statistics(x: Any, axis: Axis, mask: Any) -> tuple[Any, Layout]:
    """(6, channels) float64 on the device: count, mean and variance are its first rows."""
    prepared = _prepare(x, axis)
    laid = _mask(mask, prepared)
    saved = _empty(prepared.x, (kernels.SAVED, prepared.layout.channels), FLOAT64)
    launch.statistics(prepared.canonical, laid, saved)
    return saved.owner, prepared.layout


def normalize(
    x: Any, mean: Any, variance: Any, gamma: Any, beta: Any, axis: Axis, epsilon: float, out: Any
) -> Any:
    """See `numbabn.normalize`."""
    prepared = _prepare(x, axis)
    given = {"mean": mean, "variance": variance, "gamma": gamma, "beta": beta}
    parameters = _parameters(given, prepared, ("mean", "variance"))
    if out is not None:
        out = _check_out(out, prepared, {"x": prepared.x, **parameters}, over=("x",))
    result = _Output(prepared, out)
    launch.normalize(
        prepared.canonical, parameters["mean"], parameters["variance"], parameters["gamma"],
        parameters["beta"], epsilon, result.canonical,
    )  # fmt: skip
    return result.finish()


class Forward(NamedTuple):
    """What a forward returns, and what its backward needs."""

    y: Any
    values: Any  # (6, channels) float64 on the device, the channels in the order of memory
    layout: Layout
    dtype: Any
    mask: DeviceMask | None


def forward(
    x: Any, gamma: Any, beta: Any, axis: Axis, mask: Any, epsilon: float, renorm: Any, out: Any,
    by_variance: bool = False,
) -> Forward:  # fmt: skip
    """See `numbabn.batch_norm_forward`.

    by_variance: the reference's `stddev` is its variance
    """
    prepared = _prepare(x, axis)
    flat_gamma = _parameter(gamma, "gamma", prepared)
    flat_beta = _parameter(beta, "beta", prepared)
    reference = _reference(renorm, prepared, by_variance)
    if out is not None:
        inputs = {"x": prepared.x, "gamma": flat_gamma, "beta": flat_beta, "mask": mask}
        out = _check_out(out, prepared, inputs)
    laid = _mask(mask, prepared)
    saved = _empty(prepared.x, (kernels.SAVED, prepared.layout.channels), FLOAT64)
    result = _Output(prepared, out)
    launch.forward(
        prepared.canonical, laid, flat_gamma, flat_beta, epsilon, reference, result.canonical,
        saved,
    )  # fmt: skip
    return Forward(result.finish(), saved.owner, prepared.layout, prepared.x.dtype, laid)


def backward(
    dy: Any, x: Any, values: Any, order: Layout | None, axis: Axis, epsilon: float, mask: Any,
    laid: DeviceMask | None, training: bool, out: Any, with_dx: bool = True,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """See `numbabn.batch_norm_backward`.

    values: (6, channels) float64, what the forward saved
    order: the layout whose order its channels have; None for C order of the channel axes
    mask: as the caller gave it
    laid: the same as the forward read it, which holds in the layout `order`
    """
    prepared = _prepare(x, axis)
    layout = prepared.layout
    saved = describe(values, "values", prepared.x)
    if saved.shape != (kernels.SAVED, layout.channels) or saved.dtype != FLOAT64:
        raise ValueError(
            f"values must be what a forward pass saved, float64 of shape "
            f"{(kernels.SAVED, layout.channels)}, got {saved.dtype} of shape {saved.shape}"
        )
    steps = contiguous_strides(layout.channel_shape) if order is None else _channel_steps(order)
    saved = _reordered(saved, layout, steps, _channel_steps(layout))
    if not training:
        laid = None
    elif order is None or order.order != layout.order:
        laid = _mask(mask, prepared)
    return _backward(dy, prepared, saved, epsilon, laid, training, out, with_dx, {})


def normalize_backward(
    dy: Any,
    x: Any,
    mean: Any,
    variance: Any,
    gamma: Any,
    axis: Axis,
    epsilon: float,
    out: Any,
    with_dx: bool = True,
) -> tuple[Any, Any, Any]:
    """See `numbabn.normalize_backward`."""
    prepared = _prepare(x, axis)
    given = {"mean": mean, "variance": variance, "gamma": gamma}
    parameters = _parameters(given, prepared, ("mean", "variance"))
    saved = _empty(prepared.x, (kernels.SAVED, prepared.layout.channels), FLOAT64)
    launch.given_statistics(parameters["mean"], parameters["variance"], parameters["gamma"], saved)
    return _backward(dy, prepared, saved, epsilon, None, False, out, with_dx, parameters)


def _backward(
    dy: Any, prepared: Prepared, saved: DeviceArray, epsilon: float, mask: DeviceMask | None,
    training: bool, out: Any, with_dx: bool, inputs: dict[str, DeviceArray | None],
) -> tuple[Any, Any, Any]:  # fmt: skip
    x, layout, canonical = prepared
    described = describe(dy, "dy", x)
    lay.check_like(described, "dy", x)
    if out is not None:
        out = _check_out(out, prepared, {"dy": described, "x": x, **inputs}, over=("dy", "x"))
    result = _Output(prepared, out) if with_dx else None
    dtype = FLOAT64 if x.dtype == FLOAT64 else FLOAT32
    channels = layout.channels
    found = _empty(x, (2, channels), dtype)
    launch.backward(
        _canonical(described, layout), canonical, saved, epsilon, mask, training,
        None if result is None else result.canonical,
        launch.part(found, 0, channels), launch.part(found, channels, channels),
    )  # fmt: skip
    dx = None if result is None else result.finish()
    return dx, row(found.owner, 0, layout), row(found.owner, 1, layout)


def _reordered(
    values: DeviceArray, layout: Layout, steps: tuple[int, ...], wanted: tuple[int, ...]
) -> DeviceArray:
    """(rows, channels) values whose channels lie by `steps`, as ones where they lie by `wanted`."""
    if len(layout.axes) == 1 or _same_steps(layout.channel_shape, steps, wanted):
        return values
    size, rows, channels = values.itemsize, values.shape[0], layout.channels
    shape = (rows, *layout.channel_shape)
    target = _empty(values, values.shape, values.dtype)
    source, to = (
        each._replace(shape=shape, strides=tuple(step * size for step in (channels, *order)))
        for each, order in ((values, steps), (target, wanted))
    )
    launch.copy(source, to)
    return target


def _same_steps(shape: tuple[int, ...], one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(size == 1 or a == b for size, a, b in zip(shape, one, other, strict=True))


def in_c_order(values: Any, layout: Layout) -> Any:
    """What a forward saved, its channels in C order of the channel axes."""
    if len(layout.axes) == 1:
        return values
    described = describe(values, "values")
    wanted = contiguous_strides(layout.channel_shape)
    return _reordered(described, layout, _channel_steps(layout), wanted).owner


def renorm_correction(
    mean: Any, variance: Any, renorm_mean: Any, renorm_stddev: Any, epsilon: float,
    limits: tuple[float, float, float],
) -> tuple[Any, Any]:  # fmt: skip
    """See `numbabn.renorm_correction`."""
    first = describe(mean, "mean")
    given = {
        "mean": mean, "variance": variance, "renorm_mean": renorm_mean,
        "renorm_stddev": renorm_stddev,
    }  # fmt: skip
    flat = [_values(each, name, first) for name, each in given.items()]
    shape, size = first.shape, first.size
    found = _empty(first, (2, size), FLOAT64)
    reference = Reference(flat[2], flat[3], folds.BY_STDDEV, limits)
    r, d = launch.part(found, 0, size), launch.part(found, size, size)
    launch.renorm_correction(flat[0], flat[1], epsilon, reference, r, d)
    return _pieces(found, shape)


def merge(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """Count, mean and variance of two sets together, from those of each."""
    first = describe(one[1], "mean")
    names = ("count", "mean", "variance")
    flat = tuple(
        _values(each, name, first)
        for values in (one, other)
        for name, each in zip(names, values, strict=True)
    )
    merged = _empty(first, (3, first.size), FLOAT64)
    launch.merge_statistics(flat, merged)
    return _pieces(merged, first.shape)


def check_statistics(count: Any, mean: Any, variance: Any) -> None:
    """Raise unless the three are arrays of one shape, library and device."""
    first = describe(mean, "mean")
    for name, values in (("count", count), ("variance", variance)):
        _check_values(describe(values, name, first), name, first)


def _check_values(values: DeviceArray, name: str, first: DeviceArray) -> None:
    if lay.float_name(values.dtype) is None:
        raise TypeError(f"{name} must hold floats, got {values.dtype.name}")
    if values.shape != first.shape:
        raise ValueError(f"{name} must have the shape of mean, {first.shape}, got {values.shape}")


def _values(values: Any, name: str, first: DeviceArray) -> DeviceArray:
    """Values of the shape of `first`, flat and contiguous."""
    described = describe(values, name, first)
    _check_values(described, name, first)
    if not described.is_contiguous:
        dense = _empty(described, described.shape, described.dtype)
        launch.copy(described, dense)
        described = dense
    return _reshaped(described, (described.size,))


def _pieces(rows: DeviceArray, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The rows of an array, each in a shape."""
    steps = contiguous_strides(shape)
    return tuple(
        rows.library.view(rows.owner, shape, steps, index * rows.shape[1])
        for index in range(rows.shape[0])
    )


def to_host(array: Any) -> Any:
    """A copy as a NumPy array; waits for the device."""
    return library_of(array).to_host(array)


# What the layer needs


class Place(NamedTuple):
    """Where a layer's weights are."""

    device: int
    library: Any

    def __str__(self) -> str:
        name = "Numba" if self.library.name == "interface" else self.library.name
        return f"arrays of {name} on CUDA device {self.device}"

    def array(self, values: Any) -> Any:
        """A copy of a NumPy array there."""
        return self.library.from_host(values, self.device)

    def holds(self, array: DeviceArray) -> bool:
        """Whether an array is there too."""
        return self.library is array.library and self.device == array.device


def place(device: str | int, library: str | None, now: Place | None) -> Place:
    """See `BatchNormalization.to`."""
    number = device
    if isinstance(device, str):
        kind, _, digits = device.partition(":")
        number = int(digits or "0") if kind == "cuda" and (digits or device == kind) else -1
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"device must be a string or a number, got {type(device).__name__}")
    if not 0 <= number < device_count():
        raise ValueError(
            f"device must be 'cpu', 'cuda', or one of {device_count()} devices by number, as in "
            f"'cuda:0', got {device!r}"
        )
    if library is None:
        return Place(number, now.library if now is not None else imported_library())
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, got {library!r}")
    return Place(number, LIBRARIES[library])


def place_of(array: DeviceArray) -> Place:
    """Where an array is."""
    return Place(array.device, array.library)


def dtype_of(array: Any) -> Any:
    """The NumPy dtype of an array on a device."""
    return describe(array, "a weight").dtype.on_host


def copy_of(values: Any, name: str, old: Any, where: Place) -> Any:
    """A copy of `values`, which have to be as `old` is."""
    wanted = describe(old, name)
    given = describe(values, name)
    if not where.holds(given):
        raise TypeError(f"{name} must be in {where}, got {type(values).__name__}")
    if given.shape != wanted.shape:
        raise ValueError(f"{name} must have shape {wanted.shape}, got {given.shape}")
    if given.dtype != wanted.dtype:
        raise TypeError(f"{name} must have dtype {wanted.dtype}, got {given.dtype}")
    new = _empty(given, given.shape, given.dtype)
    launch.copy(given, new)
    return new.owner


def move_statistics(
    values: Any, layout: Layout, epsilon: float, momentum: float, renorm_momentum: float | None,
    moving: list[Any],
) -> None:  # fmt: skip
    """Move a layer's statistics, in place; see `launch.move_statistics`."""
    saved = describe(values, "values")
    described = tuple(describe(each, "a moving statistic", saved) for each in moving)
    steps = contiguous_strides(layout.channel_shape)
    in_order = _reordered(saved, layout, _channel_steps(layout), steps)
    launch.move_statistics(in_order, epsilon, momentum, renorm_momentum, described)
