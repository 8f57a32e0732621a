"""Blocks of runs: each channel holds `inner` neighbouring elements at every outer position.

Sums take a run in lines (see `vectors`), outputs that go past the cache are written in lines. The
rest, and whatever is short, is left to the loops that LLVM vectorizes.

What the functions share:

    x, dy, out              flat memory, as `elements.load` reads it
    columns                 how many channels there are
    first_row, last_row     the block: a half-open range of outer positions,
    first_column, width       a range of channels,
    first, last               and a half-open range within each run
    mask                    see `masks`
    stream                  whether outputs go past the cache
    sum_*, number           (width,) float64
    every other array       (width,) float32, or float64 where x is; one value a channel
"""

import numpy as np

from .compile import elementwise, exact, reordering
from .elements import load, prefetch, read, store, write
from .masks import ELEMENT, NONE, OFF, steps_to
from .rows import centered, line_product, product
from .vectors import lanes, load_line, read_line, stream_line, to_line, total, where, zero_line

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


@exact
def runs_ahead(x, inner, length):
    """How many runs are `AHEAD` lines; 0 where a segment is less than a run."""
    return (AHEAD * lanes(x) + inner - 1) // inner if length == inner else 0


@exact
def distance_ahead(x, inner, columns, width, j, runs):
    """From run j of `width` neighbours to the run that is read `runs` later."""
    if runs == 0:
        return AHEAD * lanes(x)
    # Where the neighbours end, it goes on at the next outer position.
    return (runs if j + runs < width else runs + columns - width) * inner


@reordering
def run_sums(x, start, length, pivot):
    """Σ (x − pivot) and Σ (x − pivot)² of one run."""
    sum_1 = type(pivot)(0)
    sum_2 = type(pivot)(0)
    for i in range(start, start + length):
        shifted = load(x, i) - pivot
        sum_1 += shifted
        sum_2 += shifted * shifted
    return sum_1, sum_2


@reordering
def long_run_sums(x, start, length, pivot, ahead):
    """`run_sums` in lines; what lies `ahead` is asked for."""
    step, last = lanes(x), start + length
    a_1, b_1, c_1, d_1 = zero_line(x), zero_line(x), zero_line(x), zero_line(x)
    a_2, b_2, c_2, d_2 = zero_line(x), zero_line(x), zero_line(x), zero_line(x)
    while start + 4 * step <= last:
        b, c, d = start + step, start + 2 * step, start + 3 * step
        prefetch(x, start + ahead)
        prefetch(x, b + ahead)
        prefetch(x, c + ahead)
        prefetch(x, d + ahead)
        xa, xb = load_line(x, start, x) - pivot, load_line(x, b, x) - pivot
        xc, xd = load_line(x, c, x) - pivot, load_line(x, d, x) - pivot
        a_1, b_1, c_1, d_1 = a_1 + xa, b_1 + xb, c_1 + xc, d_1 + xd
        a_2, b_2, c_2, d_2 = a_2 + xa * xa, b_2 + xb * xb, c_2 + xc * xc, d_2 + xd * xd
        start += 4 * step
    for i in range(start, last, step):
        prefetch(x, i + ahead)
    rest_1, rest_2 = run_sums(x, start, last - start, pivot)
    sum_1, sum_2 = (a_1 + b_1) + (c_1 + d_1), (a_2 + b_2) + (c_2 + d_2)
    return total(sum_1) + rest_1, total(sum_2) + rest_2


@reordering
def masked_run_sums(x, start, length, on, on_start, pivot, ahead):
    """`run_sums` where on[on_start + i] is not 0; what lies elsewhere is not used."""
    step, none = lanes(x), zero_line(x)
    a_1, b_1, a_2, b_2 = none, none, none, none
    begin = 0
    while begin + 2 * step <= length:
        a, b = start + begin, start + begin + step
        prefetch(x, a + ahead)
        prefetch(x, b + ahead)
        xa = where(read_line(on, on_start + begin, x), load_line(x, a, x) - pivot, none)
        xb = where(read_line(on, on_start + begin + step, x), load_line(x, b, x) - pivot, none)
        a_1, b_1, a_2, b_2 = a_1 + xa, b_1 + xb, a_2 + xa * xa, b_2 + xb * xb
        begin += 2 * step
    sum_1, sum_2 = total(a_1 + b_1), total(a_2 + b_2)
    for i in range(begin, length):
        shifted = load(x, start + i) - pivot
        shifted = shifted if read(on, on_start + i) != 0 else type(pivot)(0)
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
                add_segments(x, inner, columns, start, length, width, pivot, sum_1, sum_2)
            elif mask[0] == ELEMENT:
                add_element_masked_segments(
                    x, inner, start, length, width, mask, row, first_column,
                    on_offsets[begin - first :], pivot, number, sum_1, sum_2,
                )  # fmt: skip
            else:
                add_masked_segments(
                    x, inner, columns, start, length, width, mask[1], row * inner + begin,
                    pivot, number, sum_1, sum_2,
                )  # fmt: skip
    if mask[0] == NONE:
        for j in range(width):
            number[j] += (last_row - first_row) * (last - first)


@exact
def add_segments(x, inner, columns, start, length, width, pivot, sum_1, sum_2):
    """Add the same segment of `width` neighbouring runs."""
    runs, short = runs_ahead(x, inner, length), length < LONG * lanes(x)
    for j in range(width):
        run = start + j * inner
        ahead = distance_ahead(x, inner, columns, width, j, runs)
        if short:
            for i in range(run, run + length, lanes(x)):
                prefetch(x, i + ahead)
            run_1, run_2 = run_sums(x, run, length, read(pivot, j))
        else:
            run_1, run_2 = long_run_sums(x, run, length, read(pivot, j), ahead)
        write(sum_1, j, read(sum_1, j) + run_1)
        write(sum_2, j, read(sum_2, j) + run_2)


@exact
def add_masked_segments(
    x, inner, columns, start, length, width, on, on_start, pivot, number, sum_1, sum_2
):
    found = number_on(on, on_start, length)
    if found == length:
        add_segments(x, inner, columns, start, length, width, pivot, sum_1, sum_2)
    elif found > 0:
        runs = runs_ahead(x, inner, length)
        for j in range(width):
            ahead = distance_ahead(x, inner, columns, width, j, runs)
            run_1, run_2 = masked_run_sums(
                x, start + j * inner, length, on, on_start, pivot[j], ahead
            )
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


@elementwise
def stream_normalized_run(x, out, start, length, mean_high, mean_low, scale, shift):
    """`normalize_run` past the cache."""
    last = start + length
    first_line = min(last, start + to_line(out, start))
    normalize_run(x, out, start, first_line - start, mean_high, mean_low, scale, shift)
    start = first_line
    while start + lanes(out) <= last:
        line = centered(load_line(x, start, out), mean_high, mean_low) * scale + shift
        stream_line(out, start, line)
        start += lanes(out)
    normalize_run(x, out, start, last - start, mean_high, mean_low, scale, shift)


@exact
def normalize_block(
    x, out, inner, columns, first_row, last_row, first_column, width, first, last, stream,
    mean_high, mean_low, scale, shift,
):  # fmt: skip
    """out = (x − mean) · scale + shift"""
    stream = stream and last - first >= LEAST_STREAM * lanes(out)
    for row in range(first_row, last_row):
        start = (row * columns + first_column) * inner + first
        for j in range(width):
            if stream:
                stream_normalized_run(
                    x, out, start + j * inner, last - first,
                    mean_high[j], mean_low[j], scale[j], shift[j],
                )  # fmt: skip
            else:
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


@reordering
def long_gradient_run_sums(dy, x, start, length, mean_high, mean_low, ahead):
    """`gradient_run_sums` in lines; what lies `ahead` is asked for."""
    step, last = lanes(x), start + length
    a_1, b_1, a_2, b_2 = zero_line(x), zero_line(x), zero_line(x), zero_line(x)
    while start + 2 * step <= last:
        b = start + step
        prefetch(dy, start + ahead)
        prefetch(x, start + ahead)
        prefetch(dy, b + ahead)
        prefetch(x, b + ahead)
        ga, gb = load_line(dy, start, x), load_line(dy, b, x)
        xa = centered(load_line(x, start, x), mean_high, mean_low)
        xb = centered(load_line(x, b, x), mean_high, mean_low)
        a_1, b_1 = a_1 + ga, b_1 + gb
        a_2, b_2 = a_2 + line_product(ga, xa), b_2 + line_product(gb, xb)
        start += 2 * step
    for i in range(start, last, step):
        prefetch(dy, i + ahead)
        prefetch(x, i + ahead)
    rest_dy, rest_dy_x = gradient_run_sums(dy, x, start, last - start, mean_high, mean_low)
    return total(a_1 + b_1) + rest_dy, total(a_2 + b_2) + rest_dy_x


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
            runs, short = runs_ahead(x, inner, length), length < LONG * lanes(x)
            for j in range(width):
                run = start + j * inner
                ahead = distance_ahead(x, inner, columns, width, j, runs)
                if short:
                    for i in range(run, run + length, lanes(x)):
                        prefetch(dy, i + ahead)
                        prefetch(x, i + ahead)
                    run_dy, run_dy_x = gradient_run_sums(
                        dy, x, run, length, mean_high[j], mean_low[j]
                    )
                else:
                    run_dy, run_dy_x = long_gradient_run_sums(
                        dy, x, run, length, mean_high[j], mean_low[j], ahead
                    )
                sum_dy[j] += run_dy
                sum_dy_x[j] += run_dy_x


@elementwise
def scale_run(dy, out, start, length, scale):
    """out = dy · scale: the gradient where x had no part in the statistics."""
    for i in range(start, start + length):
        store(out, i, load(dy, i) * scale)


@elementwise
def stream_scaled_run(dy, out, start, length, scale):
    """`scale_run` past the cache."""
    last = start + length
    first_line = min(last, start + to_line(out, start))
    scale_run(dy, out, start, first_line - start, scale)
    start = first_line
    while start + lanes(out) <= last:
        stream_line(out, start, load_line(dy, start, out) * scale)
        start += lanes(out)
    scale_run(dy, out, start, last - start, scale)


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
def stream_gradient_run(
    dy, x, out, start, length, mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope
):
    """`gradient_run` past the cache."""
    last = start + length
    first_line = min(last, start + to_line(out, start))
    gradient_run(
        dy, x, out, start, first_line - start,
        mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
    )  # fmt: skip
    start = first_line
    while start + lanes(out) <= last:
        value = centered(load_line(x, start, out), mean_high, mean_low)
        gradient = centered(load_line(dy, start, out), mean_dy_high, mean_dy_low)
        stream_line(out, start, scale * (gradient - slope * value))
        start += lanes(out)
    gradient_run(
        dy, x, out, start, last - start,
        mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
    )  # fmt: skip


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
def stream_masked_gradient_run(
    dy, x, out, start, length, on, on_start,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """`masked_gradient_run` past the cache."""
    begin = min(length, to_line(out, start))
    masked_gradient_run(
        dy, x, out, start, begin, on, on_start,
        mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
    )  # fmt: skip
    while begin + lanes(out) <= length:
        gradient = load_line(dy, start + begin, out)
        value = centered(load_line(x, start + begin, out), mean_high, mean_low)
        inside = centered(gradient, mean_dy_high, mean_dy_low) - slope * value
        chosen = where(read_line(on, on_start + begin, out), inside, gradient)
        stream_line(out, start + begin, scale * chosen)
        begin += lanes(out)
    masked_gradient_run(
        dy, x, out, start + begin, length - begin, on, on_start + begin,
        mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
    )  # fmt: skip


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
    mask, stream,
    mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
):  # fmt: skip
    """The gradient of x for a block."""
    kind, on = mask[0], mask[1]
    length = last - first
    stream = stream and length >= LEAST_STREAM * lanes(out)
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
            if found == 0 and stream:
                stream_scaled_run(dy, out, start, length, scale[j])
            elif found == 0:
                scale_run(dy, out, start, length, scale[j])
            elif kind == ELEMENT:
                element_masked_gradient_run(
                    dy, x, out, start, length,
                    on, on_start + mask[3][first_column + j], on_offsets,
                    mean_high[j], mean_low[j], scale[j],
                    mean_dy_high[j], mean_dy_low[j], slope[j],
                )  # fmt: skip
            elif found < length and stream:
                stream_masked_gradient_run(
                    dy, x, out, start, length, on, on_start,
                    mean_high[j], mean_low[j], scale[j],
                    mean_dy_high[j], mean_dy_low[j], slope[j],
                )  # fmt: skip
            elif found < length:
                masked_gradient_run(
                    dy, x, out, start, length, on, on_start,
                    mean_high[j], mean_low[j], scale[j],
                    mean_dy_high[j], mean_dy_low[j], slope[j],
                )  # fmt: skip
            elif stream:
                stream_gradient_run(
                    dy, x, out, start, length,
                    mean_high[j], mean_low[j], scale[j],
                    mean_dy_high[j], mean_dy_low[j], slope[j],
                )  # fmt: skip
            else:
                gradient_run(
                    dy, x, out, start, length,
                    mean_high[j], mean_low[j], scale[j],
                    mean_dy_high[j], mean_dy_low[j], slope[j],
                )  # fmt: skip
