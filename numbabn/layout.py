"""Axes and memory orders, brought to a canonical form.

Batch normalization does not care about the order of the reduced axes. So an array in any
dense memory order is ``(outer, channels, inner)`` over its memory, without a copy:
channels-last has ``inner = 1``, channels-first more. Only arrays with gaps (slices), and
channel axes that other axes lie between in memory, are copied.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from .arrays import steps_in_order

Axis = Any  # int | Sequence[int]: what callers pass as `axis`
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
    # Elements from one of those to the next, along each axis, over (channels,) memory.
    channel_steps: tuple[int, ...]
    plain: bool  # whether memory and kernels have the axes in C order

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return self.canonical_shape[1]


def layout_of(x: Any, axis: Axis) -> Layout:
    """The layout of `x` with its channels along `axis`.

    Raises:
        TypeError: `axis` is neither an int nor a list of ints.
        ValueError: `axis` is out of range, named twice, empty, or every axis that x has.
    """
    return _layout(x.shape, x.strides, axis if type(axis) is int else plain_axis(axis))


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
    axes = channel_axes(shape, axis)
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
    whole = (*single, *order)
    channel_steps: tuple[int, ...] = (1,)
    if len(axes) > 1:
        channel_steps = steps_in_order(channel_shape, whole)
    plain = order == memory == sorted(memory)
    return Layout(
        shape, axes, (*single, *memory), whole, canonical, channel_shape, channel_steps, plain
    )


def channel_axes(shape: tuple[int | None, ...], axis: int | tuple[int, ...]) -> tuple[int, ...]:
    """The channel axes of an x of this shape, ascending; ValueError where they are none."""
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
