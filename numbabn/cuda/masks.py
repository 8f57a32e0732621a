"""Masks inside kernels.

NONE      there is none
ROW       one byte a position, by rows: where it is 0 the row is not read
ELEMENT   any other

A mask lies in memory as the caller has it, a byte an element. Where the byte of an element
is follows from the sizes and steps of three groups of axes, AXES to a group, slowest first,
filled up with axes of size 1 in front:

    steps   (18,) int: sizes and steps of the outer axes, of the channel axes, of the inner axes
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from ..arrays.device import DeviceArray, Form
from ..layout import Layout, mask_axes
from .runtime import device_function

NONE, ROW, ELEMENT = range(3)
AXES = 3
# Positions of a group of several axes: what 32 bits count.
MOST_POSITIONS = 1 << 32
STEPS = 6 * AXES
OUTER, CHANNEL, INNER = 0, 2 * AXES, 4 * AXES


class Mask(NamedTuple):
    """A mask as kernels read it: bytes, and how they are found."""

    on: DeviceArray
    steps: tuple[int, ...]


def by_position(steps: tuple[int, ...]) -> bool:
    """Whether a mask is the same all along a channel axis and a run."""
    return not any(steps[CHANNEL + AXES : INNER]) and not any(steps[INNER + AXES :])


@lru_cache(maxsize=4096)
def steps_of(on: Form, layout: Layout) -> tuple[int, ...] | None:
    """How the bytes of a mask are found; None where a group has more axes, or longer ones, than
    kernels take."""
    flat: list[int] = []
    ordered = on.in_order(layout.order)
    for sizes, strides in mask_axes(ordered.shape, ordered.strides, layout):
        fill = AXES - len(sizes)
        if fill < 0 or (len(sizes) > 1 and prod(sizes) > MOST_POSITIONS):
            return None
        flat += [*[1] * fill, *sizes, *[0] * fill, *strides]
    return tuple(flat)


@device_function
def offset(steps, group, position):
    """The steps from the start of the mask to a position of a group of axes."""
    if steps[group] * steps[group + 1] == 1:
        return position * steps[group + 5]
    # 32 bits: a division of 64 takes a hundred instructions. Launchers see to it that they do.
    width, height = np.uint32(steps[group + 2]), np.uint32(steps[group + 1])
    fastest = np.uint32(position)
    middle = np.uint32(fastest // width)
    slowest = np.uint32(middle // height)
    return (
        np.int64(np.uint32(fastest - middle * width)) * steps[group + 5]
        + np.int64(np.uint32(middle - slowest * height)) * steps[group + 4]
        + np.int64(slowest) * steps[group + 3]
    )
