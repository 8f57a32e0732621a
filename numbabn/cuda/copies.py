"""Copies of arrays that do not lie in memory as kernels read them, and masks as bytes.

source          words of the size of an element, whatever they mean
sizes           (AXES,) integers, the shape, filled up with 1 in front
source_steps, target_steps
                (AXES,) integers, elements from one index to the next, along each axis
total           elements of the shape
"""

import numpy as np

from .runtime import cuda, device_function

# Axes that cannot be merged with a neighbour, at most.
AXES = 8


# Elements whose places 32 bits count: a division of 64 takes a hundred instructions.
NARROW = 1 << 32


@device_function
def offsets(index, starts, sizes, source_steps, target_steps, total):
    """Where an element is in either array, from its place in C order."""
    source, target = starts[0], starts[1]
    for axis in range(AXES - 1, -1, -1):
        size = sizes[axis]
        if size > 1:
            if total <= NARROW:
                rest = np.int64(np.uint32(np.uint32(index) // np.uint32(size)))
            else:
                rest = index // size
            place = index - rest * size
            source += place * source_steps[axis]
            target += place * target_steps[axis]
            index = rest
    return source, target


def copy(source, target, starts, sizes, source_steps, target_steps, total):
    """target[...] = source; two arrays of one shape."""
    for index in range(cuda.grid(1), total, cuda.gridsize(1)):
        here, there = offsets(index, starts, sizes, source_steps, target_steps, total)
        target[there] = source[here]


def bytes_on(source, target, keep, starts, sizes, source_steps, target_steps, total):
    """target[...] = 1 where source has a bit of `keep`, else 0.

    keep    an integer: all bits, or for floats all but the sign's, since −0 is 0
    target  uint8
    """
    for index in range(cuda.grid(1), total, cuda.gridsize(1)):
        here, there = offsets(index, starts, sizes, source_steps, target_steps, total)
        target[there] = 1 if source[here] & keep else 0
