"""The walk of a thread: which positions it has, where they are, and where the bytes of a mask are.

By rows a position is a row, and a thread has some of its columns; by runs it is a vector of a run.
"""

import numpy as np

from .masks import CHANNEL, INNER, OUTER, offset
from .runtime import device_function


@device_function
def lanes_of(cut, thread):
    """Which vector of its block, and which position, a thread begins with."""
    if cut.by_rows != 0:
        return thread & ((1 << cut.x_bits) - 1), thread >> cut.x_bits
    return thread >> cut.y_bits, thread & ((1 << cut.y_bits) - 1)


@device_function
def start_of(cut, block, thread):
    """A thread's vector, and its half-open range of positions."""
    x, y = lanes_of(cut, thread)
    # 32 bits: a division of 64 takes a hundred instructions.
    split = np.int64(np.uint32(block) // np.uint32(cut.tiles))
    vector = (block - split * cut.tiles << cut.x_bits) + x
    first = split * cut.split
    last = min(first + cut.split, cut.positions)
    # A lane beyond the last vector has no positions.
    return vector, first + y, last if vector < cut.vectors else 0


@device_function
def address_of(cut, vector, position, width):
    """The run, the place in it, and the address of a position."""
    run, inner = position, 0
    if cut.run > 1:
        run, inner = position // cut.run, position % cut.run
    return run, inner, run * cut.run_step + inner * width + vector * cut.vector_step


@device_function
def advance(cut, run, inner, address):
    """The same for a thread's next position."""
    run += cut.step_runs
    inner += cut.step_inner
    address += cut.step
    if inner >= cut.run:
        inner -= cut.run
        run += 1
        address += cut.carry
    return run, inner, address


@device_function
def next_of(cut, run, inner, address, in_runs):
    """`advance`, where the compiler may know that a position is a row."""
    if in_runs:
        return advance(cut, run, inner, address)
    return run + cut.step_runs, inner, address + cut.step


@device_function
def is_whole(cut, position, last, address, chunk):
    """Whether a thread has a chunk of positions before it."""
    further = chunk - 1
    if position + (further << cut.y_bits) >= last:
        return False
    # Rows that are joined leave the last one short.
    return address + further * cut.step < cut.total or cut.by_rows == 0


@device_function
def channel_of(cut, column):
    """The channel of a column; columns beyond the last have one too, and no part in it."""
    channel = column
    if cut.repeat > 1:
        # The partition sees to it that 32 bits are enough.
        channel = np.int64(np.uint32(column) // np.uint32(cut.repeat))
    # Rows that are joined have every channel a few times.
    while channel >= cut.channels:
        channel -= cut.channels
    return channel


@device_function
def mask_start(cut, steps, column):
    """The steps in `on` to a column: to its channel, and by rows to its place in a run too."""
    start = offset(steps, CHANNEL, channel_of(cut, column))
    if cut.by_rows != 0:
        start += offset(steps, INNER, column % cut.repeat)
    return start


@device_function
def is_on(cut, on, steps, start, run, element):
    """Whether an element is on; start: of its column, element: of its run, by runs."""
    place = start + offset(steps, OUTER, run)
    if cut.by_rows == 0:
        place += offset(steps, INNER, element)
    return on[place] != 0


@device_function
def is_row_on(on, steps, row, last):
    """The byte of a row, 0 or 1; 0 beyond the last."""
    byte = np.uint8(0)
    if row < last:
        byte = on[offset(steps, OUTER, row)]
    return np.uint8(byte != 0)
