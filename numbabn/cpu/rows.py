"""Blocks of rows: the channel is the fastest axis, and a row holds every channel.

The memory is seen as rows of `columns` elements, with an accumulator for each column. In the cache
several rows are taken at a time, by loops over columns that LLVM vectorizes; out of memory and
under a mask one at a time, in lines (see `vectors`). The last row may be shorter than the
others, because narrow tensors are taken several positions a row (see `partition`).

Under a mask a row is full, empty or mixed. Full and empty ones take loops that know no mask; the
mask of a mixed row is spread to a byte for each column first (see `masks`).

What the functions share: `work` and its parts, the `block`, and what it is added to, `adding`
(see `work`); `start`, where a row of the block begins in memory, and `width`, how many of its
columns count.
"""

from typing import Any

import numpy as np

from . import arithmetic
from .arithmetic import writer_of
from .compile import bound, elementwise, inlined, reordering, uncounted
from .elements import load, read_column, read_row, store, write_row
from .masks import (
    EMPTY,
    FULL,
    NONE,
    OFF,
    On,
    alike_until,
    count_row,
    everywhere,
    everywhere_in_line,
    on_at,
    on_in_line,
    spread_count,
    spread_row,
)
from .vectors import lanes, load_line, read_column_line, read_row_line, write_row_line
from .work import NUMBER, PART_1, PART_2, SUM_1, SUM_2

# Rows that are added up in float32: their rounding does not show at 2e-6, not even with an
# outlier among them, and float64 once in so many rows costs nothing.
GROUP = 32
# How far ahead of a row later ones are asked for, in lines: 4 KB take about as long to come as
# they take to add up; 8 KB are as good.
AHEAD = 64
# A row of fewer lines is not streamed: those that it shares with its neighbours are written
# twice, and read before.
LEAST_STREAM = 4

# What each compilation is bound to, see `arithmetic`.
TERMS: Any = None
RESULT: Any = None
KIND: Any = None
DY: Any = None
DY_OF_LINE: Any = None
ASK: Any = None
ON: Any = None
ON_LINE: Any = None
MASKED = True
ADD_PART: Any = None
ADD_ROW: Any = None
ADD_ROWS: Any = None
ADD_MIXED_ROW: Any = None
WRITE: Any = None
STORE: Any = None
SEVERAL = 4


@uncounted
def short_row(cut, block):
    """Start and width of the shorter last row; width 0 where the block does not hold it."""
    full_rows = cut.total // cut.columns
    if block.last_row <= full_rows:
        return 0, 0
    start = full_rows * cut.columns + block.first_column
    return start, max(0, min(block.width, cut.total - start))


# Sums


def _add_part(arrays, start, first, last, adding):
    """Add the columns [first, last) of a row."""
    parts = adding.parts
    at = On(adding.scratch.on_row, 0, adding.scratch.on_row)
    for j in range(first, last):
        c = read_column(adding.columns, j, KIND)
        dy, x = DY(arrays.dy, start + j), load(arrays.x, start + j)
        term_1, term_2 = TERMS(dy, x, c, ON(at, j))
        write_row(parts, PART_1, j, read_row(parts, PART_1, j) + term_1)
        write_row(parts, PART_2, j, read_row(parts, PART_2, j) + term_2)


def _add_row(arrays, start, width, ahead, adding):
    """Add a row, in lines; what lies `ahead` is asked for."""
    like, parts, j = arrays.x, adding.parts, 0
    at = On(adding.scratch.on_row, 0, adding.scratch.on_row)
    while j + lanes(like) <= width:
        ASK(arrays, start + j + ahead)
        c = read_column_line(adding.columns, j, KIND, like)
        dy, x = DY_OF_LINE(arrays.dy, start + j), load_line(arrays.x, start + j)
        term_1, term_2 = TERMS(dy, x, c, ON_LINE(at, j, like))
        write_row_line(parts, PART_1, j, read_row_line(parts, PART_1, j, like) + term_1)
        write_row_line(parts, PART_2, j, read_row_line(parts, PART_2, j, like) + term_2)
        j += lanes(like)
    ADD_PART(arrays, start, j, width, adding)


def _add_rows(arrays, cut, start, rows, width, adding):
    """Add `rows` rows to the parts.

    In the cache four rows at a time, which spares the parts' memory; out of memory one by one,
    a single stream, whose later rows are asked for.
    """
    columns, parts = cut.columns, adding.parts
    while rows >= 4 and not cut.large:
        for j in range(width):
            c, place = read_column(adding.columns, j, KIND), start + j
            second, third, fourth = place + columns, place + 2 * columns, place + 3 * columns
            dy_a, dy_b = DY(arrays.dy, place), DY(arrays.dy, second)
            dy_c, dy_d = DY(arrays.dy, third), DY(arrays.dy, fourth)
            a_1, a_2 = TERMS(dy_a, load(arrays.x, place), c, 1)
            b_1, b_2 = TERMS(dy_b, load(arrays.x, second), c, 1)
            c_1, c_2 = TERMS(dy_c, load(arrays.x, third), c, 1)
            d_1, d_2 = TERMS(dy_d, load(arrays.x, fourth), c, 1)
            write_row(parts, PART_1, j, read_row(parts, PART_1, j) + ((a_1 + b_1) + (c_1 + d_1)))
            write_row(parts, PART_2, j, read_row(parts, PART_2, j) + ((a_2 + b_2) + (c_2 + d_2)))
        start += 4 * columns
        rows -= 4
    ahead = distance_ahead(arrays.x, columns, width)
    for row in range(start, start + rows * columns, columns):
        ADD_ROW(arrays, row, width, ahead, adding)


@uncounted
def distance_ahead(x, columns, width):
    """From a row to one that is read `AHEAD` lines later."""
    return max(1, AHEAD * lanes(x) // width) * columns


@uncounted
def clear_parts(width, parts):
    for j in range(width):
        write_row(parts, PART_1, j, parts.dtype.type(0))
        write_row(parts, PART_2, j, parts.dtype.type(0))


@uncounted
def add_parts(width, parts, sums):
    """Add parts to their sums in float64, and begin them anew."""
    for j in range(width):
        part_1, part_2 = np.float64(read_row(parts, PART_1, j)), read_row(parts, PART_2, j)
        write_row(sums, SUM_1, j, read_row(sums, SUM_1, j) + part_1)
        write_row(sums, SUM_2, j, read_row(sums, SUM_2, j) + np.float64(part_2))
    clear_parts(width, parts)


def _add_mixed_row(work, block, row, width, adding):
    """Add a row where the mask is on, and count it; what lies elsewhere is not used."""
    cut, start = work.cut, row * work.cut.columns + block.first_column
    spread_row(work.mask, cut, row, block.first_column, width, adding.scratch.on_row)
    count_row(work.mask, cut, width, adding.scratch.on_row, adding.sums)
    ahead = distance_ahead(work.arrays.x, cut.columns, width)
    ADD_ROW(work.arrays, start, width, ahead, adding)


def _block_sums(work, block, adding):
    """Add the block to the sums of each column; where there can be a mask, count it too."""
    arrays, cut, mask = work.arrays, work.cut, work.mask
    columns, width, parts, sums = cut.columns, block.width, adding.parts, adding.sums
    row, end, held, full = block.first_row, min(block.last_row, cut.total // columns), 0, 0
    clear_parts(width, parts)
    while row < end:
        until, state = alike_until(mask, cut, row, end) if MASKED else (end, FULL)
        full += until - row if state == FULL else 0
        while state != EMPTY and row < until:
            rows = min(until - row, GROUP - held)
            if state == FULL:
                start = row * columns + block.first_column
                ADD_ROWS(arrays, cut, start, rows, width, adding)
            elif MASKED:
                for mixed in range(row, row + rows):
                    ADD_MIXED_ROW(work, block, mixed, width, adding)
            row += rows
            held += rows
            if held == GROUP:
                add_parts(width, parts, sums)
                held = 0
        row = until
    start, short = short_row(cut, block)
    if MASKED and mask.kind != NONE:
        if short > 0:
            ADD_MIXED_ROW(work, block, end, short, adding)
    else:
        if not MASKED:
            # What a short row adds to gradients goes to float64 at once.
            add_parts(width, parts, sums)
        ADD_PART(arrays, start, 0, short, adding)
    add_parts(width, parts, sums)
    if MASKED:
        if mask.kind == NONE:
            for j in range(short):
                write_row(sums, NUMBER, j, read_row(sums, NUMBER, j) + 1)
        spread_count(mask, cut, width, sums)
        for j in range(width):
            write_row(sums, NUMBER, j, read_row(sums, NUMBER, j) + full)


def _bound_to(terms):
    """`_block_sums` for some `Terms`."""
    own = terms._asdict()

    def row_adder(on, on_line):
        part = reordering(bound(_add_part, ON=on, **own))
        return part, reordering(bound(_add_row, ON_LINE=on_line, ADD_PART=part, **own))

    add_part, add_row = row_adder(everywhere, everywhere_in_line)
    add_rows = reordering(bound(_add_rows, ADD_ROW=add_row, **own))
    add_mixed_row = None
    if terms.MASKED:
        _, add_masked_row = row_adder(on_at, on_in_line)
        add_mixed_row = inlined(bound(_add_mixed_row, ADD_ROW=add_masked_row))
    adders = {"ADD_PART": add_part, "ADD_ROWS": add_rows, "ADD_MIXED_ROW": add_mixed_row}
    return uncounted(bound(_block_sums, **adders, **own))


block_sums = _bound_to(arithmetic.MOMENTS)
gradient_block_sums = _bound_to(arithmetic.GRADIENTS)


# Results


def _write_rows(arrays, cut, start, rows, width, columns, stream):
    """Results of `rows` rows.

    In the cache several at a time: what belongs to a column is read once for all of them.
    """
    step = cut.columns
    while rows >= SEVERAL and not stream:
        for j in range(width):
            c, on = read_column(columns, j, KIND), ON(None, j)
            STORE(arrays, start + j, c, on)
            STORE(arrays, start + step + j, c, on)
            if SEVERAL == 4:
                STORE(arrays, start + 2 * step + j, c, on)
                STORE(arrays, start + 3 * step + j, c, on)
        start += SEVERAL * step
        rows -= SEVERAL
    for row in range(start, start + rows * step, step):
        WRITE(arrays, row, width, columns, None, stream)


def _store(arrays, place, c, on):
    store(arrays.out, place, RESULT(DY(arrays.dy, place), load(arrays.x, place), c, on))


def _writers_of(result, several):
    """Of a `Result`: for a row, and for rows, `several` at a time."""
    own = result._asdict()
    write = writer_of(result, read_column, read_column_line)
    store_one = elementwise(bound(_store, **own))
    rows = bound(_write_rows, WRITE=write, STORE=store_one, SEVERAL=several, **own)
    return write, elementwise(rows)


write_y, write_y_rows = _writers_of(arithmetic.Y, 4)
write_dx, write_dx_rows = _writers_of(arithmetic.DX, 2)
write_dx_off, write_dx_off_rows = _writers_of(arithmetic.DX_OFF, 2)
write_dx_masked = writer_of(arithmetic.DX_MASKED, read_column, read_column_line)


@uncounted
def normalize_block(work, block):
    """y of a block."""
    arrays, cut, width = work.arrays, work.cut, block.width
    columns = work.coefficients[:, block.first_column : block.first_column + width]
    stream = cut.large and width >= LEAST_STREAM * lanes(arrays.out)
    rows = max(0, min(block.last_row, cut.total // cut.columns) - block.first_row)
    start = block.first_row * cut.columns + block.first_column
    write_y_rows(arrays, cut, start, rows, width, columns, stream)
    start, short = short_row(cut, block)
    write_y(arrays, start, short, columns, None, False)


@uncounted
def gradient_block(work, block, scratch):
    """dx of a block."""
    arrays, cut, mask, width = work.arrays, work.cut, work.mask, block.width
    columns = work.coefficients[:, block.first_column : block.first_column + width]
    stream = cut.large and width >= LEAST_STREAM * lanes(arrays.out)
    row, end = block.first_row, min(block.last_row, cut.total // cut.columns)
    while row < end:
        until, state = alike_until(mask, cut, row, end)
        start = row * cut.columns + block.first_column
        if state == EMPTY:
            write_dx_off_rows(arrays, cut, start, until - row, width, columns, stream)
        elif state == FULL:
            write_dx_rows(arrays, cut, start, until - row, width, columns, stream)
        else:
            for mixed in range(row, until):
                write_mixed_row(work, block, mixed, width, scratch.on_row, columns, stream)
        row = until
    start, short = short_row(cut, block)
    if mask.kind == OFF:
        write_dx_off(arrays, start, short, columns, None, False)
    elif mask.kind == NONE:
        write_dx(arrays, start, short, columns, None, False)
    elif short > 0:
        write_mixed_row(work, block, end, short, scratch.on_row, columns, False)


@inlined
def write_mixed_row(work, block, row, width, on_row, columns, stream):
    """dx of a row that is neither full nor empty."""
    spread_row(work.mask, work.cut, row, block.first_column, width, on_row)
    start = row * work.cut.columns + block.first_column
    write_dx_masked(work.arrays, start, width, columns, On(on_row, 0, on_row), stream)
