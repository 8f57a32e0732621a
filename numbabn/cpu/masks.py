"""Masks inside kernels.

A kernel gets its mask as a tuple:

    kind            NONE, POSITION, ELEMENT or OFF
    on              (n,) uint8, nonzero is on
    outer_sizes     (k,) int64, ELEMENT only: the outer axes of the mask, slowest first,
    outer_strides   (k,) int64                and the step of each in `on` (0: broadcast)
    column_offsets  (columns,) int64, ELEMENT only: the step in `on` to each column
    inner_offsets   (inner,) int64, ELEMENT only: the step in `on` to each inner position

POSITION is a mask that is the same for every channel: `on` has one byte a position, in
memory order. ELEMENT is any other; `on` is as small as the caller's mask, and a broadcast
axis is a step of 0. OFF is off everywhere: statistics that are constants for the gradient.
"""

from .compile import exact

NONE, POSITION, ELEMENT, OFF = range(4)


@exact
def row_offset(mask, row):
    """The step in `on` to outer position `row`: its digits in `outer_sizes` times the strides."""
    sizes, strides = mask[2], mask[3]
    offset = 0
    for axis in range(sizes.size - 1, 0, -1):
        offset += row % sizes[axis] * strides[axis]
        row //= sizes[axis]
    if sizes.size > 0:
        offset += row * strides[0]
    return offset
