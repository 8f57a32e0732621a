"""Blocks of runs: each channel holds `inner` neighbouring elements at every outer position.

Sums take a run in lines (see `vectors`), outputs that go past the cache are written in lines. The
rest, and whatever is short, is left to the loops that LLVM vectorizes.

What the functions share: `work` and its parts, the `block`, and what it is added to, `adding`
(see `work`); `start`, where a run, or a part of one, begins in memory, and its `length`; `c`,
what belongs to its channel (see `arithmetic`); `at`, where the mask has its bytes (see `masks.On`).
"""

from typing import Any

from . import arithmetic
from .arithmetic import writer_of, writer_of_part
from .compile import bound, reordering, uncounted
from .elements import load, read, read_column, read_row, write, write_row
from .masks import (
    ELEMENT,
    NONE,
    OFF,
    On,
    everywhere,
    everywhere_in_line,
    on_apart,
    on_at,
    on_in_line,
    steps_to,
)
from .vectors import lanes, load_line, total, zero_line
from .work import NUMBER, SUM_1, SUM_2, Backward, Forward

# float32 sums of a run: 4096 terms in 32 lanes or more lose nothing that shows at 2e-6. The sums
# of longer runs go on in float64.
SEGMENT = 4096
# How far ahead of a run what comes next is asked for, in lines: the processor's own prefetch
# starts anew at every run, and 4 KB take about as long to come as they take to add up.
AHEAD = 64
# A run of fewer lines is not summed in lines: four are added up at a time.
LONG = 4
# A run of fewer lines is not streamed: the lines that it shares with its neighbours would be
# written twice, and read before.
LEAST_STREAM = 8

# What each compilation is bound to, see `arithmetic`.
TERMS: Any = None
KIND: Any = None
DY: Any = None
DY_OF_LINE: Any = None
ASK: Any = None
ON: Any = None
ON_LINE: Any = None
LINES = 4
MASKED = True
COUNTED = False
SHORT_SUMS: Any = None
LONG_SUMS: Any = None
ADD_RUNS: Any = None
ADD_MASKED_RUNS: Any = None
ADD_ELEMENT_MASKED_RUNS: Any = None


@uncounted
def runs_ahead(x, inner, length):
    """How many runs are `AHEAD` lines; 0 where a segment is less than a run."""
    return (AHEAD * lanes(x) + inner - 1) // inner if length == inner else 0


@uncounted
def distance_ahead(x, cut, width, j, runs):
    """From run j of `width` neighbours to the run that is read `runs` later."""
    if runs == 0:
        return AHEAD * lanes(x)
    # Where the neighbours end, it goes on at the next outer position.
    return (runs if j + runs < width else runs + cut.columns - width) * cut.inner


# Sums


def _short_sums(arrays, first, last, c, at, sum_1, sum_2):
    """Add the elements [first, last) to sums; how many are on, where they are COUNTED."""
    number = 0
    for i in range(last - first):
        place, on = first + i, ON(at, i)
        term_1, term_2 = TERMS(DY(arrays.dy, place), load(arrays.x, place), c, on)
        if COUNTED:
            number += on != 0
        sum_1 += term_1
        sum_2 += term_2
    return number, sum_1, sum_2


def _long_sums(arrays, first, last, c, at, ahead):
    """The sums of the elements [first, last), in lines; what lies `ahead` is asked for."""
    dy, x, none = arrays.dy, arrays.x, zero_line(arrays.x)
    step = lanes(x)
    a_1, a_2, b_1, b_2, c_1, c_2, d_1, d_2 = none, none, none, none, none, none, none, none
    while first + LINES * step <= last:
        second, third, fourth = first + step, first + 2 * step, first + 3 * step
        ASK(arrays, first + ahead)
        ASK(arrays, second + ahead)
        dy_a, dy_b = DY_OF_LINE(dy, first), DY_OF_LINE(dy, second)
        term_1, term_2 = TERMS(dy_a, load_line(x, first), c, ON_LINE(at, 0, x))
        a_1, a_2 = a_1 + term_1, a_2 + term_2
        term_1, term_2 = TERMS(dy_b, load_line(x, second), c, ON_LINE(at, step, x))
        b_1, b_2 = b_1 + term_1, b_2 + term_2
        if LINES == 4:
            ASK(arrays, third + ahead)
            ASK(arrays, fourth + ahead)
            dy_c, dy_d = DY_OF_LINE(dy, third), DY_OF_LINE(dy, fourth)
            term_1, term_2 = TERMS(dy_c, load_line(x, third), c, ON_LINE(at, 2 * step, x))
            c_1, c_2 = c_1 + term_1, c_2 + term_2
            term_1, term_2 = TERMS(dy_d, load_line(x, fourth), c, ON_LINE(at, 3 * step, x))
            d_1, d_2 = d_1 + term_1, d_2 + term_2
        first += LINES * step
        at = On(at.on, at.start + LINES * step, at.offsets)
    sum_1, sum_2 = total((a_1 + b_1) + (c_1 + d_1)), total((a_2 + b_2) + (c_2 + d_2))
    if MASKED:
        return SHORT_SUMS(arrays, first, last, c, at, sum_1, sum_2)
    for place in range(first, last, step):
        ASK(arrays, place + ahead)
    zero = type(sum_1)(0)
    number, rest_1, rest_2 = SHORT_SUMS(arrays, first, last, c, at, zero, zero)
    return number, sum_1 + rest_1, sum_2 + rest_2


def _add_runs(arrays, cut, start, length, width, adding, at):
    """Add the same part of `width` neighbouring runs."""
    sums, zero, step = adding.sums, adding.columns.dtype.type(0), lanes(arrays.x)
    runs, short = runs_ahead(arrays.x, cut.inner, length), length < LONG * step
    for j in range(width):
        run, ahead = start + j * cut.inner, distance_ahead(arrays.x, cut, width, j, runs)
        c = read_column(adding.columns, j, KIND)
        if short and not MASKED:
            for place in range(run, run + length, step):
                ASK(arrays, place + ahead)
            _, sum_1, sum_2 = SHORT_SUMS(arrays, run, run + length, c, at, zero, zero)
        else:
            _, sum_1, sum_2 = LONG_SUMS(arrays, run, run + length, c, at, ahead)
        write_row(sums, SUM_1, j, read_row(sums, SUM_1, j) + sum_1)
        write_row(sums, SUM_2, j, read_row(sums, SUM_2, j) + sum_2)


def _add_element_masked_runs(work, block, row, start, length, adding, offsets):
    """`_add_runs` under an ELEMENT mask; counts what it adds."""
    mask, sums, zero = work.mask, adding.sums, adding.columns.dtype.type(0)
    row_start = steps_to(mask.outer, row)
    for j in range(block.width):
        at = On(mask.on, row_start + mask.columns[block.first_column + j], offsets)
        c, run = read_column(adding.columns, j, KIND), start + j * work.cut.inner
        number, sum_1, sum_2 = SHORT_SUMS(work.arrays, run, run + length, c, at, zero, zero)
        write_row(sums, NUMBER, j, read_row(sums, NUMBER, j) + number)
        write_row(sums, SUM_1, j, read_row(sums, SUM_1, j) + sum_1)
        write_row(sums, SUM_2, j, read_row(sums, SUM_2, j) + sum_2)


@reordering
def number_on(on, start, length):
    """How many of on[start : start + length] are not 0."""
    number = 0
    for i in range(length):
        number += read(on, start + i) != 0
    return number


@uncounted
def add_number(found, width, sums):
    for j in range(width):
        write_row(sums, NUMBER, j, read_row(sums, NUMBER, j) + found)


@uncounted
def fill_offsets(mask, block, offsets):
    """For an ELEMENT mask, the steps in `on` to each position of the block's part of a run."""
    for i in range(block.last - block.first if mask.kind == ELEMENT else 0):
        write(offsets, i, steps_to(mask.inner, block.first + i))


def _block_sums(work, block, adding):
    """Add the block to the sums of each channel; where there can be a mask, count it too."""
    arrays, cut, mask, width = work.arrays, work.cut, work.mask, block.width
    if MASKED:
        offsets = adding.scratch.offsets
        fill_offsets(mask, block, offsets)
    for row in range(block.first_row, block.last_row):
        for begin in range(block.first, block.last, SEGMENT):
            length = min(SEGMENT, block.last - begin)
            start = (row * cut.columns + block.first_column) * cut.inner + begin
            at, found = On(mask.on, row * cut.inner + begin, mask.columns), length
            if MASKED:
                if mask.kind == ELEMENT:
                    part = offsets[begin - block.first :]
                    ADD_ELEMENT_MASKED_RUNS(work, block, row, start, length, adding, part)
                    found = 0
                elif mask.kind != NONE:
                    found = number_on(mask.on, at.start, length)
                    if 0 < found < length:
                        ADD_MASKED_RUNS(arrays, cut, start, length, width, adding, at)
                    add_number(found, width, adding.sums)
            if found == length:
                ADD_RUNS(arrays, cut, start, length, width, adding, at)
    if MASKED and mask.kind == NONE:
        number = (block.last_row - block.first_row) * (block.last - block.first)
        add_number(number, width, adding.sums)


def _bound_to(terms):
    """`_block_sums` for some `Terms`."""

    def adder(add, on, on_line=None, **changed):
        own = {**terms._asdict(), **changed, "ON": on, "ON_LINE": on_line}
        own["SHORT_SUMS"] = reordering(bound(_short_sums, **own))
        if on_line is not None:
            own["LONG_SUMS"] = reordering(bound(_long_sums, **own))
        return uncounted(bound(add, **own))

    own = {"MASKED": terms.MASKED}
    own["ADD_RUNS"] = adder(_add_runs, everywhere, everywhere_in_line, MASKED=False)
    if terms.MASKED:
        own["ADD_MASKED_RUNS"] = adder(_add_runs, on_at, on_in_line, LINES=2)
        own["ADD_ELEMENT_MASKED_RUNS"] = adder(_add_element_masked_runs, on_apart, COUNTED=True)
    return uncounted(bound(_block_sums, **own))


block_sums = _bound_to(arithmetic.MOMENTS)
gradient_block_sums = _bound_to(arithmetic.GRADIENTS)


# Results


@uncounted
def _own(c, j, kind):
    """What belongs to a channel, at all of a run."""
    return c


@uncounted
def _own_in_line(c, j, kind, like):
    return c


write_y, write_dx, write_dx_off, write_dx_masked = (
    writer_of(result, _own, _own_in_line)
    for result in (arithmetic.Y, arithmetic.DX, arithmetic.DX_OFF, arithmetic.DX_MASKED)
)
write_dx_apart = writer_of_part(arithmetic.DX._replace(ON=on_apart), _own)


@uncounted
def normalize_block(work, block):
    """y of a block."""
    arrays, cut, length = work.arrays, work.cut, block.last - block.first
    stream = cut.large and length >= LEAST_STREAM * lanes(arrays.out)
    for row in range(block.first_row, block.last_row):
        start = (row * cut.columns + block.first_column) * cut.inner + block.first
        for j in range(block.width):
            c = read_column(work.coefficients, block.first_column + j, Forward)
            write_y(arrays, start + j * cut.inner, length, c, None, stream)


@uncounted
def gradient_block(work, block, scratch):
    """dx of a block."""
    arrays, cut, mask, length = work.arrays, work.cut, work.mask, block.last - block.first
    stream = cut.large and length >= LEAST_STREAM * lanes(arrays.out)
    offsets = scratch.offsets
    fill_offsets(mask, block, offsets)
    for row in range(block.first_row, block.last_row):
        block_start = (row * cut.columns + block.first_column) * cut.inner + block.first
        on_start, found = row * cut.inner + block.first, length
        if mask.kind == OFF:
            found = 0
        elif mask.kind == ELEMENT:
            on_start = steps_to(mask.outer, row)
        elif mask.kind != NONE:
            found = number_on(mask.on, on_start, length)
        for j in range(block.width):
            column, start = block.first_column + j, block_start + j * cut.inner
            c = read_column(work.coefficients, column, Backward)
            if found == 0:
                write_dx_off(arrays, start, length, c, None, stream)
            elif mask.kind == ELEMENT:
                at = On(mask.on, on_start + mask.columns[column], offsets)
                write_dx_apart(arrays, start, 0, length, c, at)
            elif found < length:
                at = On(mask.on, on_start, mask.columns)
                write_dx_masked(arrays, start, length, c, at, stream)
            else:
                write_dx(arrays, start, length, c, None, stream)
