"""Masks inside kernels.

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

from .compile import exact

NONE, POSITION, ELEMENT, OFF = range(4)


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
