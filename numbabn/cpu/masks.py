"""Masks: as launchers have them, and inside steps.

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
from .compile import elementwise, exact, inlined, uncounted
from .elements import read, read_row, write, write_row
from .vectors import full_line, lanes, read_line, write_line
from .work import NUMBER

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


class StepMask(NamedTuple):
    """A mask as steps have it; the tables are an ELEMENT mask's."""

    kind: int  # NONE, POSITION, ELEMENT or OFF
    on: Any  # (n,) uint8, nonzero is on
    # (2, k) int64: the sizes of the mask's axes that lead to an outer position, slowest first, and
    # the step of each in `on` (0: broadcast).
    outer: Any
    columns: Any  # (columns,) int64: the step in `on` to each column
    inner: Any  # as `outer`, the axes along a run; in channels-first only


@exact
def step_mask(call, on, tables):
    """The mask of a `work.Call`, from the words that follow it."""
    outer, inner = 2 * call.mask_outer, 2 * (call.mask_outer + call.mask_inner)
    return StepMask(
        call.mask_kind,
        on,
        tables[:outer].reshape(2, call.mask_outer),
        tables[inner:],
        tables[outer:inner].reshape(2, call.mask_inner),
    )


class On(NamedTuple):
    """Where the bytes of neighbouring elements are."""

    on: Any
    start: int
    offsets: Any  # from `start` to each, where they are apart


@elementwise
def everywhere(at, j):
    """As `on_at`, where no mask is."""
    return 1


@elementwise
def everywhere_in_line(at, j, like):
    return 1


@elementwise
def nowhere(at, j):
    """As `on_at`, where a mask is off all over."""
    return 0


@elementwise
def nowhere_in_line(at, j, like):
    return 0


@elementwise
def on_at(at, j):
    """The byte of element j."""
    return read(at.on, at.start + j)


@elementwise
def on_in_line(at, j, like):
    """Those of a line's elements, from j on."""
    return read_line(at.on, at.start + j, like)


@elementwise
def on_apart(at, j):
    """The byte of element j, where they do not follow each other."""
    return read(at.on, at.start + read(at.offsets, j))


@inlined
def steps_to(axes, position):
    """The step in `on` to a position: its digits, in the axes' sizes, times their strides."""
    steps = 0
    for axis in range(axes.shape[1] - 1, 0, -1):
        steps += position % axes[0, axis] * axes[1, axis]
        position //= axes[0, axis]
    if axes.shape[1] > 0:
        steps += position * axes[1, 0]
    return steps


@uncounted
def row_state(mask, fold, row):
    """Whether a row is EMPTY, MIXED or FULL under the mask; ELEMENT masks are not looked into."""
    if mask.kind == NONE:
        return FULL
    if mask.kind == OFF:
        return EMPTY
    if mask.kind == ELEMENT:
        return MIXED
    found = 0
    for position in range(row * fold, (row + 1) * fold):
        found += read(mask.on, position) != 0
    return EMPTY if found == 0 else (FULL if found == fold else MIXED)


@uncounted
def alike_until(mask, cut, row, last_row):
    """Where the rows that go the same way as `row` end, and which way: EMPTY, MIXED or FULL.

    The way of MIXED rows is open to all, and is that of others where few of a large tensor are
    alike. In a small one it is not: so a batch with padding behind it gives the bits of the
    batch alone.
    """
    least = LEAST_ALIKE if cut.large else 0
    if mask.kind in (NONE, OFF, ELEMENT):
        return last_row, row_state(mask, cut.fold, row)
    begin, state = row, row_state(mask, cut.fold, row)
    for later in range(row + 1, last_row + 1):
        after = row_state(mask, cut.fold, later) if later < last_row else MIXED
        if after != state or later == last_row:
            if state != MIXED and (later - begin) * cut.columns >= least:
                return (later, state) if begin == row else (begin, MIXED)
            begin, state = later, after
    return last_row, MIXED


@inlined
def spread_row(mask, cut, row, first_column, width, on_row):
    """Spread the mask of a row to a byte for each of `width` columns, in `on_row`."""
    if mask.kind == ELEMENT:
        start = steps_to(mask.outer, row)
        for j in range(width):
            write(on_row, j, read(mask.on, start + read(mask.columns, first_column + j)))
        return
    position, channels = row * cut.fold, cut.columns // cut.fold
    for begin in range(0, width, channels):
        inside = full_line(read(mask.on, position), on_row)
        # Whole lines: what is too much, the next position writes over.
        for j in range(begin, min(width, begin + channels), lanes(on_row)):
            write_line(on_row, j, inside)
        position += 1


@inlined
def count_row(mask, cut, width, on_row, sums):
    """Count what `spread_row` found; a POSITION mask in the first column of each position only."""
    if mask.kind == ELEMENT:
        # A loop of its own, of a step that LLVM knows.
        for j in range(width):
            write_row(sums, NUMBER, j, read_row(sums, NUMBER, j) + (read(on_row, j) != 0))
        return
    for j in range(0, width, cut.columns // cut.fold):
        write_row(sums, NUMBER, j, read_row(sums, NUMBER, j) + (read(on_row, j) != 0))


@uncounted
def spread_count(mask, cut, width, sums):
    """Give the other columns of each position what `count_row` counted in the first."""
    if mask.kind in (NONE, ELEMENT):
        return
    channels = cut.columns // cut.fold
    for begin in range(0, width, channels):
        for j in range(begin + 1, min(width, begin + channels)):
            write_row(sums, NUMBER, j, read_row(sums, NUMBER, begin))
