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
    every other array       (width,), one value for each column of the tile
"""

from .compile import exact, reordering
from .half import load, store
from .masks import ELEMENT, NONE, OFF, row_offset


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
def add_rows(x, starts, rows, width, pivot, sum_1, sum_2):
    """Add x − pivot and its square for `rows` rows, four at a time to spare the sums' memory."""
    row = 0
    while row + 4 <= rows:
        a, b, c, d = starts[row], starts[row + 1], starts[row + 2], starts[row + 3]
        for j in range(width):
            p = load(pivot, j)
            xa = load(x, a + j) - p
            xb = load(x, b + j) - p
            xc = load(x, c + j) - p
            xd = load(x, d + j) - p
            store(sum_1, j, load(sum_1, j) + ((xa + xb) + (xc + xd)))
            store(sum_2, j, load(sum_2, j) + ((xa * xa + xb * xb) + (xc * xc + xd * xd)))
        row += 4
    while row < rows:
        add_row(x, starts[row], width, pivot, sum_1, sum_2)
        row += 1


@reordering
def add_row(x, start, width, pivot, sum_1, sum_2):
    for j in range(width):
        shifted = load(x, start + j) - load(pivot, j)
        store(sum_1, j, load(sum_1, j) + shifted)
        store(sum_2, j, load(sum_2, j) + shifted * shifted)


@reordering
def add_masked_row(x, start, width, on, on_start, on_offsets, pivot, number, sum_1, sum_2):
    """As `add_row`, with a mask of its own for each element: on[on_start + on_offsets[j]]."""
    for j in range(width):
        if load(on, on_start + load(on_offsets, j)) != 0:
            shifted = load(x, start + j) - load(pivot, j)
            number[j] += 1
            sum_1[j] += shifted
            sum_2[j] += shifted * shifted


@exact
def block_sums(
    x, total, columns, first_row, last_row, first_column, width, mask, starts,
    pivot, number, sum_1, sum_2,
):  # fmt: skip
    """Add the block to Σ 1, Σ (x − pivot) and Σ (x − pivot)² of each column."""
    if mask[0] == ELEMENT:
        on_offsets = mask[4][first_column : first_column + width]
        for row in range(first_row, last_row):
            start = row * columns + first_column
            row_width = min(width, total - start)
            on_start = row_offset(mask, row)
            add_masked_row(
                x, start, row_width, mask[1], on_start, on_offsets, pivot, number, sum_1, sum_2
            )
        return
    rows = find_rows(total, columns, first_row, last_row, first_column, mask, starts)
    add_rows(x, starts, rows, width, pivot, sum_1, sum_2)
    for j in range(width):
        number[j] += rows
    start, row_width = short_row(total, columns, last_row, first_column, width)
    add_row(x, start, row_width, pivot, sum_1, sum_2)
    for j in range(row_width):
        number[j] += 1


@reordering
def normalize_block(
    x, out, total, columns, first_row, last_row, first_column, width,
    mean_high, mean_low, scale, shift,
):  # fmt: skip
    """out = (x − mean) · scale + shift"""
    for row in range(first_row, last_row):
        start = row * columns + first_column
        for j in range(min(width, total - start)):
            value = centered(load(x, start + j), load(mean_high, j), load(mean_low, j))
            store(out, start + j, value * load(scale, j) + load(shift, j))


@reordering
def gradient_block_sums(
    dy, x, total, columns, first_row, last_row, first_column, width,
    mean_high, mean_low, sum_dy, sum_dy_x,
):  # fmt: skip
    """Add the block to Σ dy and Σ dy · (x − mean) of each column; where dy is 0, x is not used."""
    for row in range(first_row, last_row):
        start = row * columns + first_column
        for j in range(min(width, total - start)):
            gradient = load(dy, start + j)
            value = centered(load(x, start + j), load(mean_high, j), load(mean_low, j))
            product = gradient * value
            store(sum_dy, j, load(sum_dy, j) + gradient)
            store(sum_dy_x, j, load(sum_dy_x, j) + (product if gradient != 0 else gradient))


@reordering
def scale_row(dy, out, start, width, scale):
    """out = dy · scale: the gradient where x had no part in the statistics."""
    for j in range(width):
        store(out, start + j, load(dy, start + j) * load(scale, j))


@reordering
def gradient_row(
    dy, x, out, start, width, mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope
):
    """out = scale · ((dy − mean_dy) − slope · (x − mean))"""
    for j in range(width):
        value = centered(load(x, start + j), load(mean_high, j), load(mean_low, j))
        gradient = centered(load(dy, start + j), load(mean_dy_high, j), load(mean_dy_low, j))
        store(out, start + j, load(scale, j) * (gradient - load(slope, j) * value))


@reordering
def masked_gradient_row(
    dy, x, out, start, width, on, on_start, on_offsets,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """`gradient_row` or `scale_row`, as the mask of each element says."""
    for j in range(width):
        gradient = load(dy, start + j)
        if load(on, on_start + load(on_offsets, j)) != 0:
            value = centered(load(x, start + j), load(mean_high, j), load(mean_low, j))
            gradient = centered(gradient, load(mean_dy_high, j), load(mean_dy_low, j))
            gradient -= load(slope, j) * value
        store(out, start + j, load(scale, j) * gradient)


@exact
def gradient_block(
    dy, x, out, total, columns, first_row, last_row, first_column, width, mask,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """The gradient of x for a block."""
    kind, on = mask[0], mask[1]
    for row in range(first_row, last_row):
        start = row * columns + first_column
        row_width = min(width, total - start)
        if kind == OFF:
            scale_row(dy, out, start, row_width, scale)
        elif kind == ELEMENT:
            masked_gradient_row(
                dy, x, out, start, row_width,
                on, row_offset(mask, row), mask[4][first_column : first_column + width],
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
        elif kind == NONE or on[row] != 0:
            gradient_row(
                dy, x, out, start, row_width,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
        else:
            scale_row(dy, out, start, row_width, scale)
