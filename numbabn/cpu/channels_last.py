"""Blocks of rows: the channel is the fastest axis, and a row holds every channel.

The memory is seen as rows of `columns` elements. The loop over columns is the one that
LLVM vectorizes, with an accumulator for each column. The last row may be shorter than the
others, because narrow tensors are taken several positions a row (see `partition`).

What the functions share:

    x, dy, out              flat memory, as `half.load` reads it
    first_row, last_row     the block: a half-open range of rows
    first_column, width     the tile: a range of columns
    mask                    see `masks`
    starts                  (rows of a block,) int64, scratch: where rows begin in x
    sum_*, number           (width,) float64
    every other array       (width,) float32, or float64 where x is; one value a column
"""

import numpy as np

from .compile import elementwise, exact, reordering
from .half import load, prefetch, read, store, write
from .masks import ELEMENT, NONE, OFF, steps_to

# Rows that are added up in float32: their rounding does not show at 2e-6, not even with an
# outlier among them, and float64 once in so many rows costs nothing.
GROUP = 32
# Four rows at a time are four streams, and narrow rows are too short for the processor's own
# prefetch to find them: rows of up to so many columns are asked for so many elements ahead.
NARROW = 256
AHEAD = 2048
LINE = 16


@exact
def centered(value, mean_high, mean_low):
    """value − mean, for a mean held in two parts because float32 is not enough for it.

    Compiled without reordering: (value − high) − low is accurate where value − mean is
    small against the mean; value − (high + low) would lose all of `low`.
    """
    return (value - mean_high) - mean_low


@exact
def find_rows(total, columns, first_row, last_row, first_column, mask, starts):
    """Write where the block's full rows begin, those under the mask left out; their number."""
    kind, on = mask[0], mask[1]
    found = 0
    for row in range(first_row, min(last_row, total // columns)):
        if kind == NONE or on[row] != 0:
            starts[found] = row * columns + first_column
            found += 1
    return found


@exact
def short_row(total, columns, last_row, first_column, width):
    """Start and width of the shorter last row; width 0 where the block does not hold it."""
    full_rows = total // columns
    if last_row <= full_rows:
        return 0, 0
    start = full_rows * columns + first_column
    return start, max(0, min(width, total - start))


@reordering
def add_rows(x, starts, rows, width, pivot, part_1, part_2, sum_1, sum_2):
    """Add x − pivot and its square for `rows` rows.

    Four rows at a time, which spares the sums' memory; and `GROUP` rows in the precision of
    the parts, which spares float64.
    """
    ahead = AHEAD // width if width <= NARROW else rows
    for first in range(0, rows, GROUP):
        last = min(rows, first + GROUP)
        clear_parts(width, part_1, part_2)
        row = first
        while row + 4 <= last:
            for later in range(row + ahead, min(row + ahead + 4, rows)):
                for j in range(0, width, LINE):
                    prefetch(x, starts[later] + j)
            a, b, c, d = starts[row], starts[row + 1], starts[row + 2], starts[row + 3]
            for j in range(width):
                p = read(pivot, j)
                xa = load(x, a + j) - p
                xb = load(x, b + j) - p
                xc = load(x, c + j) - p
                xd = load(x, d + j) - p
                write(part_1, j, read(part_1, j) + ((xa + xb) + (xc + xd)))
                squares = (xa * xa + xb * xb) + (xc * xc + xd * xd)
                write(part_2, j, read(part_2, j) + squares)
            row += 4
        while row < last:
            add_row(x, starts[row], width, pivot, part_1, part_2)
            row += 1
        add_parts(width, part_1, part_2, sum_1, sum_2)


@exact
def clear_parts(width, part_1, part_2):
    for j in range(width):
        write(part_1, j, part_1.dtype.type(0))
        write(part_2, j, part_2.dtype.type(0))


@exact
def add_parts(width, part_1, part_2, sum_1, sum_2):
    for j in range(width):
        write(sum_1, j, read(sum_1, j) + np.float64(read(part_1, j)))
        write(sum_2, j, read(sum_2, j) + np.float64(read(part_2, j)))


@reordering
def add_row(x, start, width, pivot, sum_1, sum_2):
    for j in range(width):
        shifted = load(x, start + j) - read(pivot, j)
        write(sum_1, j, read(sum_1, j) + shifted)
        write(sum_2, j, read(sum_2, j) + shifted * shifted)


@reordering
def add_masked_row(x, start, width, on, on_start, on_offsets, pivot, number, sum_1, sum_2):
    """As `add_row`, with a mask of its own for each element: on[on_start + on_offsets[j]]."""
    for j in range(width):
        if read(on, on_start + read(on_offsets, j)) != 0:
            shifted = load(x, start + j) - read(pivot, j)
            number[j] += 1
            sum_1[j] += shifted
            sum_2[j] += shifted * shifted


@exact
def block_sums(
    x, total, columns, first_row, last_row, first_column, width, mask, starts,
    pivot, number, part_1, part_2, sum_1, sum_2,
):  # fmt: skip
    """Add the block to Σ 1, Σ (x − pivot) and Σ (x − pivot)² of each column."""
    if mask[0] == ELEMENT:
        on_offsets = mask[3][first_column : first_column + width]
        for row in range(first_row, last_row):
            start = row * columns + first_column
            row_width = min(width, total - start)
            on_start = steps_to(mask[2], row)
            add_masked_row(
                x, start, row_width, mask[1], on_start, on_offsets, pivot, number, sum_1, sum_2
            )
        return
    rows = find_rows(total, columns, first_row, last_row, first_column, mask, starts)
    add_rows(x, starts, rows, width, pivot, part_1, part_2, sum_1, sum_2)
    for j in range(width):
        number[j] += rows
    start, row_width = short_row(total, columns, last_row, first_column, width)
    add_row(x, start, row_width, pivot, sum_1, sum_2)
    for j in range(row_width):
        number[j] += 1


@elementwise
def normalize_rows(x, out, start, columns, rows, width, mean_high, mean_low, scale, shift):
    """`rows` rows, four at a time: what belongs to a column is read once for the four."""
    row = 0
    while row + 4 <= rows:
        a = start + row * columns
        b, c, d = a + columns, a + 2 * columns, a + 3 * columns
        for j in range(width):
            high, low, by, to = (
                read(mean_high, j),
                read(mean_low, j),
                read(scale, j),
                read(shift, j),
            )
            store(out, a + j, centered(load(x, a + j), high, low) * by + to)
            store(out, b + j, centered(load(x, b + j), high, low) * by + to)
            store(out, c + j, centered(load(x, c + j), high, low) * by + to)
            store(out, d + j, centered(load(x, d + j), high, low) * by + to)
        row += 4
    while row < rows:
        normalize_row(x, out, start + row * columns, width, mean_high, mean_low, scale, shift)
        row += 1


@elementwise
def normalize_row(x, out, start, width, mean_high, mean_low, scale, shift):
    for j in range(width):
        value = centered(load(x, start + j), read(mean_high, j), read(mean_low, j))
        store(out, start + j, value * read(scale, j) + read(shift, j))


@exact
def normalize_block(
    x, out, total, columns, first_row, last_row, first_column, width,
    mean_high, mean_low, scale, shift,
):  # fmt: skip
    """out = (x − mean) · scale + shift"""
    rows = max(0, min(last_row, total // columns) - first_row)
    start = first_row * columns + first_column
    normalize_rows(x, out, start, columns, rows, width, mean_high, mean_low, scale, shift)
    start, width = short_row(total, columns, last_row, first_column, width)
    normalize_row(x, out, start, width, mean_high, mean_low, scale, shift)


@reordering
def add_gradient_rows(
    dy, x, start, columns, rows, width, mean_high, mean_low, part_dy, part_dy_x, sum_dy, sum_dy_x
):
    """Add dy and dy · (x − mean) for `rows` rows, as `add_rows` does."""
    ahead = AHEAD // width if width <= NARROW else rows
    for first in range(0, rows, GROUP):
        last = min(rows, first + GROUP)
        clear_parts(width, part_dy, part_dy_x)
        row = first
        while row + 4 <= last:
            a = start + row * columns
            for later in range(row + ahead, min(row + ahead + 4, rows)):
                for i in range(start + later * columns, start + later * columns + width, LINE):
                    prefetch(dy, i)
                    prefetch(x, i)
            b, c, d = a + columns, a + 2 * columns, a + 3 * columns
            for j in range(width):
                high, low = read(mean_high, j), read(mean_low, j)
                ga, gb, gc, gd = load(dy, a + j), load(dy, b + j), load(dy, c + j), load(dy, d + j)
                pa = product(ga, centered(load(x, a + j), high, low))
                pb = product(gb, centered(load(x, b + j), high, low))
                pc = product(gc, centered(load(x, c + j), high, low))
                pd = product(gd, centered(load(x, d + j), high, low))
                write(part_dy, j, read(part_dy, j) + ((ga + gb) + (gc + gd)))
                write(part_dy_x, j, read(part_dy_x, j) + ((pa + pb) + (pc + pd)))
            row += 4
        while row < last:
            add_gradient_row(
                dy, x, start + row * columns, width, mean_high, mean_low, part_dy, part_dy_x
            )
            row += 1
        add_parts(width, part_dy, part_dy_x, sum_dy, sum_dy_x)


@reordering
def product(gradient, value):
    """gradient · value, and 0 where the gradient is 0, whatever the value is."""
    return gradient * value if gradient != 0 else gradient


@reordering
def add_gradient_row(dy, x, start, width, mean_high, mean_low, sum_dy, sum_dy_x):
    for j in range(width):
        gradient = load(dy, start + j)
        value = centered(load(x, start + j), read(mean_high, j), read(mean_low, j))
        write(sum_dy, j, read(sum_dy, j) + gradient)
        write(sum_dy_x, j, read(sum_dy_x, j) + product(gradient, value))


@exact
def gradient_block_sums(
    dy, x, total, columns, first_row, last_row, first_column, width,
    mean_high, mean_low, part_dy, part_dy_x, sum_dy, sum_dy_x,
):  # fmt: skip
    """Add the block to Σ dy and Σ dy · (x − mean) of each column."""
    rows = max(0, min(last_row, total // columns) - first_row)
    start = first_row * columns + first_column
    add_gradient_rows(
        dy, x, start, columns, rows, width, mean_high, mean_low,
        part_dy, part_dy_x, sum_dy, sum_dy_x,
    )  # fmt: skip
    start, width = short_row(total, columns, last_row, first_column, width)
    add_gradient_row(dy, x, start, width, mean_high, mean_low, sum_dy, sum_dy_x)


@elementwise
def scale_rows(dy, out, start, columns, rows, width, scale):
    """out = dy · scale: the gradient where x had no part in the statistics."""
    for first in range(start, start + rows * columns, columns):
        for j in range(width):
            store(out, first + j, load(dy, first + j) * read(scale, j))


@elementwise
def gradient_rows(
    dy, x, out, start, columns, rows, width,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """out = scale · ((dy − mean_dy) − slope · (x − mean)), two rows at a time."""
    row = 0
    while row + 2 <= rows:
        a = start + row * columns
        b = a + columns
        for j in range(width):
            high, low, by = read(mean_high, j), read(mean_low, j), read(slope, j)
            dy_high, dy_low, to = read(mean_dy_high, j), read(mean_dy_low, j), read(scale, j)
            inside_a = centered(load(dy, a + j), dy_high, dy_low)
            inside_b = centered(load(dy, b + j), dy_high, dy_low)
            store(out, a + j, to * (inside_a - by * centered(load(x, a + j), high, low)))
            store(out, b + j, to * (inside_b - by * centered(load(x, b + j), high, low)))
        row += 2
    if row < rows:
        gradient_row(
            dy, x, out, start + row * columns, width,
            mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
        )  # fmt: skip


@elementwise
def gradient_row(
    dy, x, out, start, width, mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope
):
    for j in range(width):
        value = centered(load(x, start + j), read(mean_high, j), read(mean_low, j))
        inside = centered(load(dy, start + j), read(mean_dy_high, j), read(mean_dy_low, j))
        store(out, start + j, read(scale, j) * (inside - read(slope, j) * value))


@elementwise
def masked_gradient_row(
    dy, x, out, start, width, on, on_start, on_offsets,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """As `gradient_rows` or `scale_rows`, as the mask of each element says."""
    for j in range(width):
        gradient = load(dy, start + j)
        value = centered(load(x, start + j), read(mean_high, j), read(mean_low, j))
        inside = centered(gradient, read(mean_dy_high, j), read(mean_dy_low, j))
        inside -= read(slope, j) * value
        chosen = inside if read(on, on_start + read(on_offsets, j)) != 0 else gradient
        store(out, start + j, read(scale, j) * chosen)


@exact
def gradient_block(
    dy, x, out, total, columns, first_row, last_row, first_column, width, mask,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """The gradient of x for a block."""
    kind, on = mask[0], mask[1]
    if kind == ELEMENT:
        on_offsets = mask[3][first_column : first_column + width]
        for row in range(first_row, last_row):
            start = row * columns + first_column
            masked_gradient_row(
                dy, x, out, start, min(width, total - start),
                on, steps_to(mask[2], row), on_offsets,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
        return
    full_rows = min(last_row, total // columns)
    row = first_row
    while row < full_rows:
        end = alike_until(kind, on, row, full_rows)
        start = row * columns + first_column
        if kind == NONE or (kind != OFF and on[row] != 0):
            gradient_rows(
                dy, x, out, start, columns, end - row, width,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
        else:
            scale_rows(dy, out, start, columns, end - row, width, scale)
        row = end
    start, width = short_row(total, columns, last_row, first_column, width)
    if kind == OFF:
        scale_rows(dy, out, start, columns, 1, width, scale)
    else:
        gradient_row(
            dy, x, out, start, width,
            mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
        )  # fmt: skip


@exact
def alike_until(kind, on, row, last_row):
    """The first row after `row` that the mask says something else of, or `last_row`."""
    if kind in (NONE, OFF):
        return last_row
    end = row + 1
    while end < last_row and (on[end] != 0) == (on[row] != 0):
        end += 1
    return end
