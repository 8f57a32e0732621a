"""What is computed of elements, and the body that writes results, bound to each.

The mathematics is `formulas`'; one function serves an element and a line of them. What the
functions share:

    dy, x       the element, or a line of them; `nothing` where dy plays no part
    c           what belongs to its column: a `work.Pivot`, `Mean`, `Forward` or `Backward`
    on          whether the mask is on: a number, or a line of bytes
    start       index of the first of neighbouring elements
    at          where a mask has their bytes, a `masks.On`
"""

from typing import Any, NamedTuple

from .. import formulas
from .compile import bound, elementwise, exact, reordering
from .elements import load, prefetch, store
from .masks import everywhere, everywhere_in_line, nowhere, nowhere_in_line, on_at, on_in_line
from .vectors import lanes, load_line, stream_line, to_line, where
from .work import Backward, Forward, Mean, Pivot

_OWN = {
    "centered": exact(formulas.centered),
    "where": where,
    "scaled": elementwise(formulas.scaled),
}


@elementwise
def nothing(array, index):
    """As `load` and `load_line`, of an array that plays no part."""
    return 0


@elementwise
def _ask_x(arrays, place):
    prefetch(arrays.x, place)


@elementwise
def _ask_both(arrays, place):
    prefetch(arrays.dy, place)
    prefetch(arrays.x, place)


class Terms(NamedTuple):
    """What is added up of each element: two terms."""

    TERMS: Any
    KIND: Any  # of `c`
    DY: Any
    DY_OF_LINE: Any
    ASK: Any  # asks for memory that is to be read later
    LINES: int  # how many lines of a run are added up at a time: four, or two
    MASKED: bool  # whether there can be a mask


MOMENTS = Terms(
    reordering(bound(formulas.element_moments, **_OWN)),
    Pivot, nothing, nothing, _ask_x, LINES=4, MASKED=True,
)  # fmt: skip
GRADIENTS = Terms(
    reordering(bound(formulas.element_gradients, **_OWN)),
    Mean, load, load_line, _ask_both, LINES=2, MASKED=False,
)  # fmt: skip


class Result(NamedTuple):
    """What is written for each element."""

    RESULT: Any
    KIND: Any  # of `c`
    DY: Any
    DY_OF_LINE: Any
    # How a mask is read, see `masks`.
    ON: Any
    ON_LINE: Any


Y = Result(
    elementwise(bound(formulas.element_y, **_OWN)),
    Forward, nothing, nothing, everywhere, everywhere_in_line,
)  # fmt: skip
DX = Result(
    elementwise(bound(formulas.element_dx, **_OWN)),
    Backward, load, load_line, everywhere, everywhere_in_line,
)  # fmt: skip
# Where x had no part in the statistics: scale · dy.
DX_OFF = DX._replace(ON=nowhere, ON_LINE=nowhere_in_line)
DX_MASKED = DX._replace(ON=on_at, ON_LINE=on_in_line)

# What each compilation is bound to.
RESULT: Any = None
DY: Any = None
DY_OF_LINE: Any = None
ON: Any = None
ON_LINE: Any = None
KIND: Any = None
AT: Any = None
AT_LINE: Any = None
PART: Any = None


def _write_part(arrays, start, first, last, columns, at):
    for j in range(first, last):
        place = start + j
        c, dy, x = AT(columns, j, KIND), DY(arrays.dy, place), load(arrays.x, place)
        store(arrays.out, place, RESULT(dy, x, c, ON(at, j)))


def _write(arrays, start, length, columns, at, stream):
    """Results of neighbouring elements; past the cache, in lines, where `stream`.

    columns: what AT finds `c` in
    """
    j, out = 0, arrays.out
    if stream:
        j = min(length, to_line(out, start))
        PART(arrays, start, 0, j, columns, at)
        while j + lanes(out) <= length:
            place, c = start + j, AT_LINE(columns, j, KIND, out)
            dy, x = DY_OF_LINE(arrays.dy, place), load_line(arrays.x, place)
            stream_line(out, place, RESULT(dy, x, c, ON_LINE(at, j, out)))
            j += lanes(out)
    PART(arrays, start, j, length, columns, at)


def writer_of_part(result, at):
    """`_write_part` of a `Result`, where `at` is the layout's AT."""
    return elementwise(bound(_write_part, **result._asdict(), AT=at))


def writer_of(result, at, at_line):
    """`_write` of a `Result`."""
    part = writer_of_part(result, at)
    return elementwise(bound(_write, PART=part, AT_LINE=at_line, **result._asdict()))
