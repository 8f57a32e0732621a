"""Blocks of rows: the channel is the fastest axis, and a row holds every channel.

The memory is seen as rows of `columns` elements, with an accumulator for each column. In the cache
several rows are taken at a time, by loops over columns that LLVM vectorizes; out of memory and
under a mask one at a time, in lines (see `vectors`). The last row may be shorter than the
others, because narrow tensors are taken several positions a row (see `partition`).

Under a mask a row is full, empty or mixed. Full and empty ones take loops that know no mask; the
mask of a mixed row is spread to a byte for each column first (see `masks`).

What the functions share:

    x, dy, out              flat memory, as `elements.load` reads it
    fold                    positions of a row
    first_row, last_row     the block: a half-open range of rows
    first_column, width     the tile: a range of columns
    mask                    see `masks`
    chosen                  (width + a line,) uint8, scratch: the mask of a mixed row
    large                   whether tensors are read from memory, and written past the cache
    sum_*, number           (width,) float64
    every other array       (width,) float32, or float64 where x is; one value a column
"""

import numpy as np

from .compile import elementwise, exact, reordering
from .elements import load, prefetch, read, store, write
from .masks import (
    ELEMENT,
    EMPTY,
    FULL,
    NONE,
    OFF,
    alike_until,
    choose_elements,
    choose_positions,
    count_elements,
    count_positions,
    spread_count,
    steps_to,
)
from .vectors import (
    lanes,
    load_line,
    read_line,
    stream_line,
    to_line,
    where,
    write_line,
    zero_line,
)

# Rows that are added up in float32: their rounding does not show at 2e-6, not even with an
# outlier among them, and float64 once in so many rows costs nothing.
GROUP = 32
# How far ahead of a row later ones are asked for, in lines: 4 KB take about as long to come as
# they take to add up; 8 KB are as good.
AHEAD = 64
# A row of fewer lines is not streamed: those that it shares with its neighbours are written
# twice, and read before.
LEAST_STREAM = 4


@exact
def centered(value, mean_high, mean_low):
    """value − mean, for a mean held in two parts because float32 is not enough for it.

    Compiled without reordering: (value − high) − low is accurate where value − mean is
    small against the mean; value − (high + low) would lose all of `low`.
    """
    return (value - mean_high) - mean_low


@exact
def short_row(total, columns, last_row, first_column, width):
    """Start and width of the shorter last row; width 0 where the block does not hold it."""
    full_rows = total // columns
    if last_row <= full_rows:
        return 0, 0
    start = full_rows * columns + first_column
    return start, max(0, min(width, total - start))


@reordering
def add_rows(x, start, columns, rows, width, large, pivot, part_1, part_2):
    """Add x − pivot and its square for `rows` rows.

    Out of the cache four rows at a time, which spares the parts' memory; out of memory one
    by one, a single stream, whose later rows are asked for.
    """
    while rows >= 4 and not large:
        a, b, c, d = start, start + columns, start + 2 * columns, start + 3 * columns
        for j in range(width):
            p = read(pivot, j)
            xa = load(x, a + j) - p
            xb = load(x, b + j) - p
            xc = load(x, c + j) - p
            xd = load(x, d + j) - p
            write(part_1, j, read(part_1, j) + ((xa + xb) + (xc + xd)))
            squares = (xa * xa + xb * xb) + (xc * xc + xd * xd)
            write(part_2, j, read(part_2, j) + squares)
        start += 4 * columns
        rows -= 4
    step, ahead = lanes(x), distance_ahead(x, columns, width)
    for row in range(start, start + rows * columns, columns):
        j = 0
        while j + step <= width:
            prefetch(x, row + j + ahead)
            shifted = load_line(x, row + j, x) - read_line(pivot, j, x)
            write_line(part_1, j, read_line(part_1, j, x) + shifted)
            write_line(part_2, j, read_line(part_2, j, x) + shifted * shifted)
            j += step
        add_part_of_row(x, row, j, width, pivot, part_1, part_2)


@exact
def distance_ahead(x, columns, width):
    """From a row to one that is read `AHEAD` lines later."""
    return max(1, AHEAD * lanes(x) // width) * columns


@exact
def clear(width, part):
    for j in range(width):
        write(part, j, part.dtype.type(0))


@exact
def add_part(width, part, total):
    """Add a part to its sum in float64, and begin it anew."""
    for j in range(width):
        write(total, j, read(total, j) + np.float64(read(part, j)))
    clear(width, part)


@reordering
def add_part_of_row(x, start, first, last, pivot, part_1, part_2):
    """The columns [first, last) of a row that begins at `start`."""
    for j in range(first, last):
        shifted = load(x, start + j) - read(pivot, j)
        write(part_1, j, read(part_1, j) + shifted)
        write(part_2, j, read(part_2, j) + shifted * shifted)


@reordering
def add_mixed_rows(
    x, columns, fold, row, rows, first_column, width, mask, chosen, pivot, number, part_1, part_2
):
    """`add_rows` where the mask is on; what lies elsewhere is not used."""
    step, none, ahead = lanes(x), zero_line(x), distance_ahead(x, columns, width)
    kind, on, outer, offsets = mask[0], mask[1], mask[2], mask[3]
    channels = columns // fold
    for mixed in range(row, row + rows):
        if kind == ELEMENT:
            choose_elements(on, steps_to(outer, mixed), offsets, first_column, width, chosen)
            count_elements(width, chosen, number)
        else:
            choose_positions(on, mixed * fold, channels, width, chosen)
            count_positions(on, mixed * fold, channels, width, number)
        start, j = mixed * columns + first_column, 0
        while j + step <= width:
            prefetch(x, start + j + ahead)
            shifted = load_line(x, start + j, x) - read_line(pivot, j, x)
            shifted = where(read_line(chosen, j, x), shifted, none)
            write_line(part_1, j, read_line(part_1, j, x) + shifted)
            write_line(part_2, j, read_line(part_2, j, x) + shifted * shifted)
            j += step
        for i in range(j, width):
            if read(chosen, i) != 0:
                shifted = load(x, start + i) - read(pivot, i)
                write(part_1, i, read(part_1, i) + shifted)
                write(part_2, i, read(part_2, i) + shifted * shifted)


@exact
def block_sums(
    x, total, columns, fold, first_row, last_row, first_column, width, mask, chosen,
    large, pivot, number, part_1, part_2, sum_1, sum_2,
):  # fmt: skip
    """Add the block to Σ 1, Σ (x − pivot) and Σ (x − pivot)² of each column."""
    full, held = 0, 0
    row, end = first_row, min(last_row, total // columns)
    clear(width, part_1)
    clear(width, part_2)
    while row < end:
        until, state = alike_until(mask, fold, columns, large, row, end)
        full += until - row if state == FULL else 0
        while state != EMPTY and row < until:
            rows = min(until - row, GROUP - held)
            if state == FULL:
                start = row * columns + first_column
                add_rows(x, start, columns, rows, width, large, pivot, part_1, part_2)
            else:
                add_mixed_rows(
                    x, columns, fold, row, rows, first_column, width, mask, chosen,
                    pivot, number, part_1, part_2,
                )  # fmt: skip
            row += rows
            held += rows
            if held == GROUP:
                add_part(width, part_1, sum_1)
                add_part(width, part_2, sum_2)
                held = 0
        row = until
    start, row_width = short_row(total, columns, last_row, first_column, width)
    if row_width > 0 and mask[0] != NONE:
        add_mixed_rows(
            x, columns, fold, total // columns, 1, first_column, row_width, mask, chosen,
            pivot, number, part_1, part_2,
        )  # fmt: skip
    elif row_width > 0:
        add_part_of_row(x, start, 0, row_width, pivot, part_1, part_2)
        for j in range(row_width):
            write(number, j, read(number, j) + 1)
    add_part(width, part_1, sum_1)
    add_part(width, part_2, sum_2)
    if mask[0] != NONE:
        spread_count(mask, fold, columns, number)
    for j in range(width):
        write(number, j, read(number, j) + full)


@elementwise
def normalize_rows(x, out, start, columns, rows, width, stream, mean_high, mean_low, scale, shift):
    """`rows` rows; in the cache four at a time: what belongs to a column is read once for four."""
    while rows >= 4 and not stream:
        a, b, c, d = start, start + columns, start + 2 * columns, start + 3 * columns
        for j in range(width):
            high, low = read(mean_high, j), read(mean_low, j)
            by, to = read(scale, j), read(shift, j)
            store(out, a + j, centered(load(x, a + j), high, low) * by + to)
            store(out, b + j, centered(load(x, b + j), high, low) * by + to)
            store(out, c + j, centered(load(x, c + j), high, low) * by + to)
            store(out, d + j, centered(load(x, d + j), high, low) * by + to)
        start += 4 * columns
        rows -= 4
    for row in range(start, start + rows * columns, columns):
        first = 0
        if stream:
            first = min(width, to_line(out, row))
            normalize_part(x, out, row, 0, first, mean_high, mean_low, scale, shift)
            while first + lanes(out) <= width:
                high, low = read_line(mean_high, first, out), read_line(mean_low, first, out)
                by, to = read_line(scale, first, out), read_line(shift, first, out)
                value = centered(load_line(x, row + first, out), high, low)
                stream_line(out, row + first, value * by + to)
                first += lanes(out)
        normalize_part(x, out, row, first, width, mean_high, mean_low, scale, shift)


@elementwise
def normalize_part(x, out, start, first, last, mean_high, mean_low, scale, shift):
    """The columns [first, last) of a row that begins at `start`."""
    for j in range(first, last):
        value = centered(load(x, start + j), read(mean_high, j), read(mean_low, j))
        store(out, start + j, value * read(scale, j) + read(shift, j))


@exact
def normalize_block(
    x, out, total, columns, first_row, last_row, first_column, width, large,
    mean_high, mean_low, scale, shift,
):  # fmt: skip
    """out = (x − mean) · scale + shift"""
    stream = large and width >= LEAST_STREAM * lanes(out)
    rows = max(0, min(last_row, total // columns) - first_row)
    start = first_row * columns + first_column
    normalize_rows(x, out, start, columns, rows, width, stream, mean_high, mean_low, scale, shift)
    start, width = short_row(total, columns, last_row, first_column, width)
    normalize_part(x, out, start, 0, width, mean_high, mean_low, scale, shift)


@reordering
def add_gradient_rows(
    dy, x, start, columns, rows, width, large, mean_high, mean_low, part_dy, part_dy_x
):
    """Add dy and dy · (x − mean) for `rows` rows, as `add_rows` does."""
    while rows >= 4 and not large:
        a, b, c, d = start, start + columns, start + 2 * columns, start + 3 * columns
        for j in range(width):
            high, low = read(mean_high, j), read(mean_low, j)
            ga, gb, gc, gd = load(dy, a + j), load(dy, b + j), load(dy, c + j), load(dy, d + j)
            pa = product(ga, centered(load(x, a + j), high, low))
            pb = product(gb, centered(load(x, b + j), high, low))
            pc = product(gc, centered(load(x, c + j), high, low))
            pd = product(gd, centered(load(x, d + j), high, low))
            write(part_dy, j, read(part_dy, j) + ((ga + gb) + (gc + gd)))
            write(part_dy_x, j, read(part_dy_x, j) + ((pa + pb) + (pc + pd)))
        start += 4 * columns
        rows -= 4
    step, ahead = lanes(x), distance_ahead(x, columns, width)
    for row in range(start, start + rows * columns, columns):
        j = 0
        while j + step <= width:
            prefetch(dy, row + j + ahead)
            prefetch(x, row + j + ahead)
            high, low = read_line(mean_high, j, x), read_line(mean_low, j, x)
            gradient = load_line(dy, row + j, x)
            value = line_product(gradient, centered(load_line(x, row + j, x), high, low))
            write_line(part_dy, j, read_line(part_dy, j, x) + gradient)
            write_line(part_dy_x, j, read_line(part_dy_x, j, x) + value)
            j += step
        add_part_of_gradient_row(dy, x, row, j, width, mean_high, mean_low, part_dy, part_dy_x)


@reordering
def product(gradient, value):
    """gradient · value, and 0 where the gradient is 0, whatever the value is."""
    return gradient * value if gradient != 0 else gradient


@reordering
def line_product(gradient, value):
    """`product` of lines."""
    return where(gradient, gradient * value, gradient)


@reordering
def add_part_of_gradient_row(dy, x, start, first, last, mean_high, mean_low, sum_dy, sum_dy_x):
    """The columns [first, last) of a row that begins at `start`."""
    for j in range(first, last):
        gradient = load(dy, start + j)
        value = centered(load(x, start + j), read(mean_high, j), read(mean_low, j))
        write(sum_dy, j, read(sum_dy, j) + gradient)
        write(sum_dy_x, j, read(sum_dy_x, j) + product(gradient, value))


@exact
def gradient_block_sums(
    dy, x, total, columns, first_row, last_row, first_column, width, large,
    mean_high, mean_low, part_dy, part_dy_x, sum_dy, sum_dy_x,
):  # fmt: skip
    """Add the block to Σ dy and Σ dy · (x − mean) of each column."""
    rows = max(0, min(last_row, total // columns) - first_row)
    start = first_row * columns + first_column
    clear(width, part_dy)
    clear(width, part_dy_x)
    for first in range(0, rows, GROUP):
        add_gradient_rows(
            dy, x, start + first * columns, columns, min(GROUP, rows - first), width, large,
            mean_high, mean_low, part_dy, part_dy_x,
        )  # fmt: skip
        add_part(width, part_dy, sum_dy)
        add_part(width, part_dy_x, sum_dy_x)
    start, width = short_row(total, columns, last_row, first_column, width)
    add_part_of_gradient_row(dy, x, start, 0, width, mean_high, mean_low, sum_dy, sum_dy_x)


@elementwise
def scale_rows(dy, out, start, columns, rows, width, stream, scale):
    """out = dy · scale: the gradient where x had no part in the statistics."""
    for row in range(start, start + rows * columns, columns):
        first = 0
        if stream:
            first = min(width, to_line(out, row))
            scale_part(dy, out, row, 0, first, scale)
            while first + lanes(out) <= width:
                gradient = load_line(dy, row + first, out)
                stream_line(out, row + first, gradient * read_line(scale, first, out))
                first += lanes(out)
        scale_part(dy, out, row, first, width, scale)


@elementwise
def scale_part(dy, out, start, first, last, scale):
    """The columns [first, last) of a row that begins at `start`."""
    for j in range(first, last):
        store(out, start + j, load(dy, start + j) * read(scale, j))


@elementwise
def gradient_rows(
    dy, x, out, start, columns, rows, width, stream,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """out = scale · ((dy − mean_dy) − slope · (x − mean)), in the cache two rows at a time."""
    while rows >= 2 and not stream:
        a, b = start, start + columns
        for j in range(width):
            high, low, by = read(mean_high, j), read(mean_low, j), read(slope, j)
            dy_high, dy_low, to = read(mean_dy_high, j), read(mean_dy_low, j), read(scale, j)
            inside_a = centered(load(dy, a + j), dy_high, dy_low)
            inside_b = centered(load(dy, b + j), dy_high, dy_low)
            store(out, a + j, to * (inside_a - by * centered(load(x, a + j), high, low)))
            store(out, b + j, to * (inside_b - by * centered(load(x, b + j), high, low)))
        start += 2 * columns
        rows -= 2
    for row in range(start, start + rows * columns, columns):
        first = 0
        if stream:
            first = min(width, to_line(out, row))
            gradient_part(
                dy, x, out, row, 0, first,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
            while first + lanes(out) <= width:
                high, low = read_line(mean_high, first, out), read_line(mean_low, first, out)
                dy_high = read_line(mean_dy_high, first, out)
                dy_low = read_line(mean_dy_low, first, out)
                by, to = read_line(slope, first, out), read_line(scale, first, out)
                inside = centered(load_line(dy, row + first, out), dy_high, dy_low)
                value = centered(load_line(x, row + first, out), high, low)
                stream_line(out, row + first, to * (inside - by * value))
                first += lanes(out)
        gradient_part(
            dy, x, out, row, first, width,
            mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
        )  # fmt: skip


@elementwise
def gradient_part(
    dy, x, out, start, first, last, mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope
):
    """The columns [first, last) of a row that begins at `start`."""
    for j in range(first, last):
        value = centered(load(x, start + j), read(mean_high, j), read(mean_low, j))
        inside = centered(load(dy, start + j), read(mean_dy_high, j), read(mean_dy_low, j))
        store(out, start + j, read(scale, j) * (inside - read(slope, j) * value))


@elementwise
def mixed_gradient_rows(
    dy, x, out, columns, fold, row, rows, first_column, width, mask, chosen, stream,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """As `gradient_rows` where the mask is on, as `scale_rows` elsewhere."""
    kind, on, outer, offsets = mask[0], mask[1], mask[2], mask[3]
    channels = columns // fold
    for mixed in range(row, row + rows):
        if kind == ELEMENT:
            choose_elements(on, steps_to(outer, mixed), offsets, first_column, width, chosen)
        else:
            choose_positions(on, mixed * fold, channels, width, chosen)
        start, first = mixed * columns + first_column, 0
        if stream:
            first = min(width, to_line(out, start))
            mixed_gradient_part(
                dy, x, out, start, 0, first, chosen,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
            while first + lanes(out) <= width:
                high, low = read_line(mean_high, first, out), read_line(mean_low, first, out)
                dy_high = read_line(mean_dy_high, first, out)
                dy_low = read_line(mean_dy_low, first, out)
                by, to = read_line(slope, first, out), read_line(scale, first, out)
                gradient = load_line(dy, start + first, out)
                value = centered(load_line(x, start + first, out), high, low)
                inside = centered(gradient, dy_high, dy_low) - by * value
                result = where(read_line(chosen, first, out), inside, gradient)
                stream_line(out, start + first, to * result)
                first += lanes(out)
        mixed_gradient_part(
            dy, x, out, start, first, width, chosen,
            mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
        )  # fmt: skip


@elementwise
def mixed_gradient_part(
    dy, x, out, start, first, last, chosen,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """The columns [first, last) of a row that begins at `start`."""
    for j in range(first, last):
        gradient = load(dy, start + j)
        value = centered(load(x, start + j), read(mean_high, j), read(mean_low, j))
        inside = centered(gradient, read(mean_dy_high, j), read(mean_dy_low, j))
        inside = inside - read(slope, j) * value
        result = inside if read(chosen, j) != 0 else gradient
        store(out, start + j, read(scale, j) * result)


@exact
def gradient_block(
    dy, x, out, total, columns, fold, first_row, last_row, first_column, width, mask, chosen,
    large, mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """The gradient of x for a block."""
    stream = large and width >= LEAST_STREAM * lanes(out)
    row, last_full = first_row, min(last_row, total // columns)
    while row < last_full:
        end, state = alike_until(mask, fold, columns, large, row, last_full)
        start, rows = row * columns + first_column, end - row
        if state == EMPTY:
            scale_rows(dy, out, start, columns, rows, width, stream, scale)
        elif state == FULL:
            gradient_rows(
                dy, x, out, start, columns, rows, width, stream,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
        else:
            mixed_gradient_rows(
                dy, x, out, columns, fold, row, rows, first_column, width, mask, chosen, stream,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
        row = end
    start, width = short_row(total, columns, last_row, first_column, width)
    if mask[0] == OFF:
        scale_part(dy, out, start, 0, width, scale)
    elif mask[0] == NONE:
        gradient_part(
            dy, x, out, start, 0, width,
            mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
        )  # fmt: skip
    elif width > 0:
        mixed_gradient_rows(
            dy, x, out, columns, fold, total // columns, 1, first_column, width, mask, chosen,
            False,
            mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
        )  # fmt: skip
