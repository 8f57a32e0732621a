"""Masks inside kernels.

NONE      there is none
ROW       one byte a position, by rows: where it is 0 the row is not read
ELEMENT   any other

A mask lies in memory as the caller has it, a byte an element. Where the byte of an element
is follows from the sizes and steps of three groups of axes, AXES to a group, slowest first,
filled up with axes of size 1 in front:

    steps   (18,) int: sizes and steps of the outer axes, of the channel axes, of the inner axes
"""

from .runtime import device_function

NONE, ROW, ELEMENT = range(3)
AXES = 3
STEPS = 6 * AXES
OUTER, CHANNEL, INNER = 0, 2 * AXES, 4 * AXES


@device_function
def offset(steps, group, position):
    """The steps from the start of the mask to a position of a group of axes."""
    fastest = position
    if steps[group] * steps[group + 1] == 1:
        return fastest * steps[group + 5]
    rest = fastest // steps[group + 2]
    return (
        fastest % steps[group + 2] * steps[group + 5]
        + rest % steps[group + 1] * steps[group + 4]
        + rest // steps[group + 1] * steps[group + 3]
    )
