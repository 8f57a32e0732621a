"""The public operations on device arrays: check, lay out, allocate, launch.

`numbabn.functional` documents them, and calls these where an array is on a device; the layer too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import layout as lay
from ..layout import Axis, Layout
from . import folds, kernels, launch
from .arguments import (
    Output,
    Prepared,
    channel_steps,
    check_out,
    check_values,
    describe,
    flat_values,
    in_canonical_form,
    laid_mask,
    new_array,
    parameter_value,
    parameter_values,
    prepare,
    reference_of,
    reordered,
    row,
)
from .device import (
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


def statistics(x: Any, axis: Axis, mask: Any) -> tuple[Any, Layout]:
    """(6, channels) float64 on the device: count, mean and variance are its first rows."""
    prepared = prepare(x, axis)
    laid = laid_mask(mask, prepared)
    saved = new_array(prepared.x, (kernels.SAVED, prepared.layout.channels), FLOAT64)
    launch.statistics(prepared.canonical, laid, saved)
    return saved.owner, prepared.layout


def normalize(
    x: Any, mean: Any, variance: Any, gamma: Any, beta: Any, axis: Axis, epsilon: float, out: Any
) -> Any:
    """See `numbabn.normalize`."""
    prepared = prepare(x, axis)
    given = {"mean": mean, "variance": variance, "gamma": gamma, "beta": beta}
    parameters = parameter_values(given, prepared, ("mean", "variance"))
    if out is not None:
        out = check_out(out, prepared, {"x": prepared.x, **parameters}, over=("x",))
    result = Output(prepared, out)
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
    prepared = prepare(x, axis)
    flat_gamma = parameter_value(gamma, "gamma", prepared)
    flat_beta = parameter_value(beta, "beta", prepared)
    reference = reference_of(renorm, prepared, by_variance)
    if out is not None:
        inputs = {"x": prepared.x, "gamma": flat_gamma, "beta": flat_beta, "mask": mask}
        out = check_out(out, prepared, inputs)
    laid = laid_mask(mask, prepared)
    saved = new_array(prepared.x, (kernels.SAVED, prepared.layout.channels), FLOAT64)
    result = Output(prepared, out)
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
    prepared = prepare(x, axis)
    layout = prepared.layout
    saved = describe(values, "values", prepared.x)
    lay.check_saved(saved, layout)
    steps = contiguous_strides(layout.channel_shape) if order is None else channel_steps(order)
    saved = reordered(saved, layout, steps, channel_steps(layout))
    if not training:
        laid = None
    elif order is None or order.order != layout.order:
        laid = laid_mask(mask, prepared)
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
    prepared = prepare(x, axis)
    given = {"mean": mean, "variance": variance, "gamma": gamma}
    parameters = parameter_values(given, prepared, ("mean", "variance"))
    saved = new_array(prepared.x, (kernels.SAVED, prepared.layout.channels), FLOAT64)
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
        out = check_out(out, prepared, {"dy": described, "x": x, **inputs}, over=("dy", "x"))
    result = Output(prepared, out) if with_dx else None
    dtype = FLOAT64 if x.dtype == FLOAT64 else FLOAT32
    channels = layout.channels
    found = new_array(x, (2, channels), dtype)
    launch.backward(
        in_canonical_form(described, layout), canonical, saved, epsilon, mask, training,
        None if result is None else result.canonical,
        launch.part(found, 0, channels), launch.part(found, channels, channels),
    )  # fmt: skip
    dx = None if result is None else result.finish()
    return dx, row(found.owner, 0, layout), row(found.owner, 1, layout)


def in_c_order(values: Any, layout: Layout) -> Any:
    """What a forward saved, its channels in C order of the channel axes."""
    if len(layout.axes) == 1:
        return values
    described = describe(values, "values")
    wanted = contiguous_strides(layout.channel_shape)
    return reordered(described, layout, channel_steps(layout), wanted).owner


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
    flat = [flat_values(each, name, first) for name, each in given.items()]
    shape, size = first.shape, first.size
    found = new_array(first, (2, size), FLOAT64)
    reference = Reference(flat[2], flat[3], folds.BY_STDDEV, limits)
    r, d = launch.part(found, 0, size), launch.part(found, size, size)
    launch.renorm_correction(flat[0], flat[1], epsilon, reference, r, d)
    return _pieces(found, shape)


def merge(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """Count, mean and variance of two sets together, from those of each."""
    first = describe(one[1], "mean")
    names = ("count", "mean", "variance")
    flat = tuple(
        flat_values(each, name, first)
        for values in (one, other)
        for name, each in zip(names, values, strict=True)
    )
    merged = new_array(first, (3, first.size), FLOAT64)
    launch.merge_statistics(flat, merged)
    return _pieces(merged, first.shape)


def check_statistics(count: Any, mean: Any, variance: Any) -> None:
    """Raise unless the three are arrays of one shape, library and device."""
    first = describe(mean, "mean")
    for name, values in (("count", count), ("variance", variance)):
        check_values(describe(values, name, first), name, first)


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
    new = new_array(given, given.shape, given.dtype)
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
    in_order = reordered(saved, layout, channel_steps(layout), steps)
    launch.move_statistics(in_order, epsilon, momentum, renorm_momentum, described)
