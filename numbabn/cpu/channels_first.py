"""Blocks of runs: each channel holds `inner` neighbouring elements at every outer position.

The loop along a run is the one that LLVM vectorizes; the statistics of a channel are
scalars in it.

What the functions share:

    x, dy, out              flat memory, as `half.load` reads it
    columns                 how many channels there are
    first_row, last_row     the block: a half-open range of outer positions,
    first_column, width       a range of channels,
    first, last               and a half-open range within each run
    mask                    see `masks`
    sum_*, number           (width,) float64
    every other array       (width,) float32, or float64 where x is; one value a channel
"""

import numpy as np

from .channels_last import centered, product
from .compile import elementwise, exact, reordering
from .half import load, prefetch, read, store, write
from .masks import ELEMENT, NONE, OFF, steps_to

# float32 sums of a run: 4096 terms in 64 lanes lose nothing that shows at 2e-6. The sums of
# longer runs go on in float64.
SEGMENT = 4096
# How far ahead of a run its successors are asked for, in elements: the processor's own prefetch
# starts anew at every run, and 4 KB take about as long to come as they take to add up.
AHEAD = 1024
# Elements of a cache line of float32; of 16-bit floats, it asks for each line twice.
LINE = 16


@reordering
def run_sums(x, start, length, pivot):
    """Σ (x − pivot) and Σ (x − pivot)² of one run."""
    sum_1 = type(pivot)(0)
    sum_2 = type(pivot)(0)
    for i in range(length):
        shifted = load(x, start + i) - pivot
        sum_1 += shifted
        sum_2 += shifted * shifted
    return sum_1, sum_2


@reordering
def masked_run_sums(x, start, length, on, on_start, pivot):
    """`run_sums` where on[on_start + i] is not 0; what lies elsewhere is not used."""
    zero = type(pivot)(0)
    sum_1 = zero
    sum_2 = zero
    for i in range(length):
        shifted = load(x, start + i) - pivot
        shifted = shifted if read(on, on_start + i) != 0 else zero
        sum_1 += shifted
        sum_2 += shifted * shifted
    return sum_1, sum_2


@reordering
def element_masked_run_sums(x, start, length, on, on_start, on_offsets, pivot):
    """`masked_run_sums` with the mask at on[on_start + on_offsets[i]]; and the number."""
    zero = type(pivot)(0)
    number = 0
    sum_1 = zero
    sum_2 = zero
    for i in range(length):
        if read(on, on_start + read(on_offsets, i)) != 0:
            shifted = load(x, start + i) - pivot
            number += 1
            sum_1 += shifted
            sum_2 += shifted * shifted
    return number, sum_1, sum_2


@reordering
def number_on(on, start, length):
    """How many of on[start : start + length] are not 0."""
    number = 0
    for i in range(length):
        number += read(on, start + i) != 0
    return number


@exact
def run_offsets(mask, first, last):
    """For an ELEMENT mask, the steps in `on` to each position of [first, last) of a run."""
    offsets = np.empty(last - first if mask[0] == ELEMENT else 0, np.int64)
    for i in range(offsets.size):
        offsets[i] = steps_to(mask[4], first + i)
    return offsets


@exact
def block_sums(
    x, inner, columns, first_row, last_row, first_column, width, first, last, mask,
    pivot, number, sum_1, sum_2,
):  # fmt: skip
    """Add the block to Σ 1, Σ (x − pivot) and Σ (x − pivot)² of each channel."""
    on_offsets = run_offsets(mask, first, last)
    for row in range(first_row, last_row):
        for begin in range(first, last, SEGMENT):
            length = min(SEGMENT, last - begin)
            start = (row * columns + first_column) * inner + begin
            if mask[0] == NONE:
                add_segments(x, inner, start, length, width, pivot, sum_1, sum_2)
            elif mask[0] == ELEMENT:
                add_element_masked_segments(
                    x, inner, start, length, width, mask, row, first_column,
                    on_offsets[begin - first :], pivot, number, sum_1, sum_2,
                )  # fmt: skip
            else:
                add_masked_segments(
                    x, inner, start, length, width, mask[1], row * inner + begin,
                    pivot, number, sum_1, sum_2,
                )  # fmt: skip
    if mask[0] == NONE:
        for j in range(width):
            number[j] += (last_row - first_row) * (last - first)


@exact
def add_segments(x, inner, start, length, width, pivot, sum_1, sum_2):
    """Add the same segment of `width` neighbouring runs."""
    for j in range(width):
        run = start + j * inner
        for i in range(run, run + length, LINE):
            prefetch(x, i + AHEAD)
        run_1, run_2 = run_sums(x, run, length, read(pivot, j))
        write(sum_1, j, read(sum_1, j) + run_1)
        write(sum_2, j, read(sum_2, j) + run_2)


@exact
def add_masked_segments(x, inner, start, length, width, on, on_start, pivot, number, sum_1, sum_2):
    found = number_on(on, on_start, length)
    if found == length:
        add_segments(x, inner, start, length, width, pivot, sum_1, sum_2)
    elif found > 0:
        for j in range(width):
            run_1, run_2 = masked_run_sums(x, start + j * inner, length, on, on_start, pivot[j])
            sum_1[j] += run_1
            sum_2[j] += run_2
    for j in range(width):
        number[j] += found


@exact
def add_element_masked_segments(
    x, inner, start, length, width, mask, row, first_column, on_offsets,
    pivot, number, sum_1, sum_2,
):  # fmt: skip
    row_start = steps_to(mask[2], row)
    for j in range(width):
        on_start = row_start + mask[3][first_column + j]
        found, run_1, run_2 = element_masked_run_sums(
            x, start + j * inner, length, mask[1], on_start, on_offsets, pivot[j]
        )
        number[j] += found
        sum_1[j] += run_1
        sum_2[j] += run_2


@elementwise
def normalize_run(x, out, start, length, mean_high, mean_low, scale, shift):
    for i in range(start, start + length):
        store(out, i, centered(load(x, i), mean_high, mean_low) * scale + shift)


@exact
def normalize_block(
    x, out, inner, columns, first_row, last_row, first_column, width, first, last,
    mean_high, mean_low, scale, shift,
):  # fmt: skip
    """out = (x − mean) · scale + shift"""
    for row in range(first_row, last_row):
        start = (row * columns + first_column) * inner + first
        for j in range(width):
            normalize_run(
                x, out, start + j * inner, last - first,
                mean_high[j], mean_low[j], scale[j], shift[j],
            )  # fmt: skip


@reordering
def gradient_run_sums(dy, x, start, length, mean_high, mean_low):
    """Σ dy and Σ dy · (x − mean) of one run; where dy is 0, x is not used."""
    sum_dy = type(mean_low)(0)
    sum_dy_x = type(mean_low)(0)
    for i in range(start, start + length):
        gradient = load(dy, i)
        sum_dy += gradient
        sum_dy_x += product(gradient, centered(load(x, i), mean_high, mean_low))
    return sum_dy, sum_dy_x


@exact
def gradient_block_sums(
    dy, x, inner, columns, first_row, last_row, first_column, width, first, last,
    mean_high, mean_low, sum_dy, sum_dy_x,
):  # fmt: skip
    """Add the block to Σ dy and Σ dy · (x − mean) of each channel."""
    for row in range(first_row, last_row):
        for begin in range(first, last, SEGMENT):
            length = min(SEGMENT, last - begin)
            start = (row * columns + first_column) * inner + begin
            for j in range(width):
                run = start + j * inner
                for i in range(run, run + length, LINE):
                    prefetch(dy, i + AHEAD)
                    prefetch(x, i + AHEAD)
                run_dy, run_dy_x = gradient_run_sums(dy, x, run, length, mean_high[j], mean_low[j])
                sum_dy[j] += run_dy
                sum_dy_x[j] += run_dy_x


@elementwise
def scale_run(dy, out, start, length, scale):
    """out = dy · scale: the gradient where x had no part in the statistics."""
    for i in range(start, start + length):
        store(out, i, load(dy, i) * scale)


@elementwise
def gradient_run(
    dy, x, out, start, length, mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope
):
    """out = scale · ((dy − mean_dy) − slope · (x − mean))"""
    for i in range(start, start + length):
        value = centered(load(x, i), mean_high, mean_low)
        gradient = centered(load(dy, i), mean_dy_high, mean_dy_low)
        store(out, i, scale * (gradient - slope * value))


@elementwise
def masked_gradient_run(
    dy, x, out, start, length, on, on_start,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """`gradient_run` where on[on_start + i] is not 0, `scale_run` elsewhere."""
    for i in range(length):
        gradient = load(dy, start + i)
        value = centered(load(x, start + i), mean_high, mean_low)
        inside = centered(gradient, mean_dy_high, mean_dy_low) - slope * value
        chosen = inside if read(on, on_start + i) != 0 else gradient
        store(out, start + i, scale * chosen)


@elementwise
def element_masked_gradient_run(
    dy, x, out, start, length, on, on_start, on_offsets,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """`masked_gradient_run` with the mask at on[on_start + on_offsets[i]]."""
    for i in range(length):
        gradient = load(dy, start + i)
        value = centered(load(x, start + i), mean_high, mean_low)
        inside = centered(gradient, mean_dy_high, mean_dy_low) - slope * value
        chosen = inside if read(on, on_start + read(on_offsets, i)) != 0 else gradient
        store(out, start + i, scale * chosen)


@exact
def gradient_block(
    dy, x, out, inner, columns, first_row, last_row, first_column, width, first, last,
    mask,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """The gradient of x for a block."""
    kind, on = mask[0], mask[1]
    length = last - first
    on_offsets = run_offsets(mask, first, last)
    for row in range(first_row, last_row):
        block_start = (row * columns + first_column) * inner + first
        on_start = row * inner + first
        found = length
        if kind == OFF:
            found = 0
        elif kind == ELEMENT:
            on_start = steps_to(mask[2], row)
        elif kind != NONE:
            found = number_on(on, on_start, length)
        for j in range(width):
            start = block_start + j * inner
            if found == 0:
                scale_run(dy, out, start, length, scale[j])
            elif kind == ELEMENT:
                element_masked_gradient_run(
                    dy, x, out, start, length,
                    on, on_start + mask[3][first_column + j], on_offsets,
                    mean_high[j], mean_low[j], scale[j],
                    mean_dy_high[j], mean_dy_low[j], slope[j],
                )  # fmt: skip
            elif found < length:
                masked_gradient_run(
                    dy, x, out, start, length, on, on_start,
                    mean_high[j], mean_low[j], scale[j],
                    mean_dy_high[j], mean_dy_low[j], slope[j],
                )  # fmt: skip
            else:
                gradient_run(
                    dy, x, out, start, length,
                    mean_high[j], mean_low[j], scale[j],
                    mean_dy_high[j], mean_dy_low[j], slope[j],
                )  # fmt: skip
