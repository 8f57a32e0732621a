"""Masks: as launchers have them, and inside steps.

A kernel gets its mask as a tuple:

    kind            NONE, POSITION, ELEMENT or OFF
    on              (n,) uint8, nonzero is on
    outer           the outer axes of the mask, ELEMENT only: (2, k) int64, their sizes,
                    slowest first, and the step of each in `on` (0: broadcast)
    columns         (columns,) int64, ELEMENT only: the step in `on` to each column
    inner           as `outer`, the axes along a run; ELEMENT in channels-first only

POSITION is a mask that is the same for every channel: `on` has one byte a position, in
memory order. ELEMENT is any other; `on` is as small as the caller's mask, and what is
broadcast is a step of 0. OFF is off everywhere: statistics that are constants for the
gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import layout as lay
from .compile import exact
from .elements import read, write
from .vectors import full_line, lanes, write_line

NONE, POSITION, ELEMENT, OFF = range(4)
# What a mask says of a row of `fold` positions.
EMPTY, MIXED, FULL = range(3)
# Elements of alike rows that are worth a call of their own, which takes some 50 ns.
LEAST_ALIKE = 2048


class Mask(NamedTuple):
    """A mask in canonical form.

    on: uint8, nonzero is on; (outer, inner) where `axes` is None, otherwise flat
    axes: None for a mask that is the same for every channel; otherwise where an element's
        byte is, as steps in `on`: (sizes, strides) of the outer axes, those of the channel
        axes and those of the inner axes, slowest first
    """

    on: NDArray[np.uint8]
    axes: tuple[lay.Steps, lay.Steps, lay.Steps] | None


def mask_of(on: NDArray[Any] | None, layout: lay.Layout, expand: bool = True) -> Mask | None:
    """A mask in canonical form; it never grows to the size of x.

    on: bool or uint8, of x's rank, each size x's or 1; None stays None
    expand: False where the mask must stay as it is, broadcast axes and all
    """
    if on is None:
        return None
    outer, _, inner = layout.canonical_shape
    ordered = on.transpose(layout.order)
    sizes = [layout.shape[axis] for axis in layout.order]
    if all(on.shape[axis] == 1 for axis in layout.axes):
        positions = [
            1 if axis in layout.axes else size
            for axis, size in zip(layout.order, sizes, strict=True)
        ]
        if expand or ordered.size == outer * inner:
            expanded = np.ascontiguousarray(np.broadcast_to(ordered, positions))
            return Mask(expanded.reshape(outer, inner).view(np.uint8), None)
    ordered = np.ascontiguousarray(ordered)
    axes = lay.mask_axes(ordered.shape, ordered.strides, layout)
    return Mask(ordered.reshape(-1).view(np.uint8), axes)


@exact
def steps_to(axes, position):
    """The step in `on` to a position: its digits, in the axes' sizes, times their strides."""
    steps = 0
    for axis in range(axes.shape[1] - 1, 0, -1):
        steps += position % axes[0, axis] * axes[1, axis]
        position //= axes[0, axis]
    if axes.shape[1] > 0:
        steps += position * axes[1, 0]
    return steps


@exact
def row_state(mask, fold, row):
    """Whether a row is EMPTY, MIXED or FULL under the mask; ELEMENT masks are not looked into."""
    kind, on = mask[0], mask[1]
    if kind == NONE:
        return FULL
    if kind == OFF:
        return EMPTY
    if kind == ELEMENT:
        return MIXED
    found = 0
    for position in range(row * fold, (row + 1) * fold):
        found += read(on, position) != 0
    return EMPTY if found == 0 else (FULL if found == fold else MIXED)


@exact
def alike_until(mask, fold, columns, large, row, last_row):
    """Where the rows that go the same way as `row` end, and which way: EMPTY, MIXED or FULL.

    The way of MIXED rows is open to all, and is that of others where few of a large tensor are
    alike. In a small one it is not: so a batch with padding behind it gives the bits of the
    batch alone.
    """
    least = LEAST_ALIKE if large else 0
    if mask[0] in (NONE, OFF, ELEMENT):
        return last_row, row_state(mask, fold, row)
    begin, state = row, row_state(mask, fold, row)
    for later in range(row + 1, last_row + 1):
        after = row_state(mask, fold, later) if later < last_row else MIXED
        if after != state or later == last_row:
            if state != MIXED and (later - begin) * columns >= least:
                return (later, state) if begin == row else (begin, MIXED)
            begin, state = later, after
    return last_row, MIXED


@exact
def choose_positions(on, position, channels, width, chosen):
    """Spread a POSITION mask to `width` columns of the row that begins at `position`."""
    begin = 0
    while begin < width:
        inside = full_line(read(on, position), chosen)
        # Whole lines: what is too much, the next position writes over.
        for j in range(begin, min(width, begin + channels), lanes(chosen)):
            write_line(chosen, j, inside)
        begin += channels
        position += 1


@exact
def choose_elements(on, start, offsets, first_column, width, chosen):
    """Spread an ELEMENT mask to `width` columns of the row whose steps in `on` are `start`."""
    for j in range(width):
        write(chosen, j, read(on, start + read(offsets, first_column + j)))


@exact
def count_positions(on, position, channels, width, number):
    """Count a row, each position in its first column only."""
    for j in range(0, width, channels):
        write(number, j, read(number, j) + (read(on, position) != 0))
        position += 1


@exact
def count_elements(width, chosen, number):
    """Count a row, each element in its column."""
    for j in range(width):
        write(number, j, read(number, j) + (read(chosen, j) != 0))


@exact
def spread_count(mask, fold, columns, number):
    """Give the other columns of each position what `count_positions` counted in the first."""
    if mask[0] == ELEMENT:
        return
    channels = columns // fold
    for begin in range(0, number.size, channels):
        for j in range(begin + 1, min(number.size, begin + channels)):
            write(number, j, read(number, begin))
