"""The kernels: what one task does, over the tasks of a partition.

A training forward has three steps: `statistics`, `forward_coefficients` and `normalize`;
a backward three like them. `tasks.load` compiles each for a dtype and a layout, and
`tasks.run` runs them over tasks and tiles. The loops over elements are in
`channels_last` and `channels_first`, the mathematics in `formulas`.

The arguments of every task (an array that a step does not use is empty):

    x, dy, out      (total,) flat memory: float32, float64, uint16 (float16) or int16 (bfloat16)
    on              (n,) uint8, the mask
    words           (n,) int64: the `Partition`, then the mask (see WORDS below)
    numbers         (4,) float64: epsilon, rmin, rmax, dmax
    values          (VALUES, channels) float64, the rows named below
    partial         (splits, 3, columns) float64: what `statistics` or `gradient_sums` found
    coefficients    (COEFFICIENTS, columns) float32, or float64 where x is: what the last step
                    applies to each column
    task            index of the task, or of the tile in a step between
    by_rows, inner  (True, None) for channels-last, (None, length of a run) for channels-first.
                    It takes two, because Numba drops a branch when it compiles only where
                    the branch asks whether an argument is None, and the argument is.
"""

import numpy as np

from .. import formulas
from . import rows, runs
from .compile import exact
from .elements import borrowed, keep, read, read_row, write, write_row
from .partition import Partition
from .vectors import LINE_BYTES, fence

# Words after those of the partition.
PARTITION_WORDS = len(Partition._fields)
LENGTH, INNER, REFERENCE, MASK_KIND, MASK_BYTES, MASK_OUTER, MASK_INNER = range(
    PARTITION_WORDS, PARTITION_WORDS + 7
)
WORDS = PARTITION_WORDS + 7
# What the word REFERENCE says of a forward's: what its spread is, if it has one.
NO_REFERENCE, BY_STDDEV, BY_VARIANCE = range(3)
# Rows of `values`. The first six are what a forward saves for its backward.
COUNT, MEAN, VARIANCE, R, D, GAMMA = range(6)
SAVED = 6
BETA, REFERENCE_MEAN, REFERENCE_SPREAD = range(6, 9)
DGAMMA, DBETA = range(6, 8)
VALUES = 9
# Rows of `partial`: COUNT, MEAN and M2 in a forward, the others in a backward.
M2 = 2
SUM_DY, SUM_DY_X = range(2)
# Rows of `coefficients`: the first three always, SHIFT in a forward, the rest in a backward.
MEAN_HIGH, MEAN_LOW, SCALE, SHIFT = range(4)
MEAN_DY_HIGH, MEAN_DY_LOW, SLOPE = range(3, 6)
COEFFICIENTS = 6
# A block's mean may be two of its standard deviations from the pivot: that costs at most
# 5 roundings of float32 in the variance, and a block of ordinary data needs no second pass.
PIVOT_RATIO = 4.0

merge = exact(formulas.merge)
block_moments = exact(formulas.block_moments)
variance_of = exact(formulas.variance_of)
standard_deviation = exact(formulas.standard_deviation)
renorm_r_d = exact(formulas.renorm_r_d)
scale_shift = exact(formulas.scale_shift)
parameter_gradients = exact(formulas.parameter_gradients)
input_gradient = exact(formulas.input_gradient)
moving_average = exact(formulas.moving_average)
variance_from_stddev = exact(formulas.variance_from_stddev)


def reference_kind(is_variance):
    """The word REFERENCE, by whether a reference has a variance; None where there is none."""
    return NO_REFERENCE if is_variance is None else BY_VARIANCE if is_variance else BY_STDDEV


@exact
def partition_of(words):
    """The words' partition."""
    return Partition(
        words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7],
        words[8], words[9], words[10], words[11], words[12], words[13],
    )  # fmt: skip


@exact
def mask_of(words, on):
    """The words' mask, as `masks` has it: its tables follow the other words."""
    outer = WORDS + 2 * words[MASK_OUTER]
    inner = outer + 2 * words[MASK_INNER]
    return (
        words[MASK_KIND],
        on,
        words[WORDS:outer].reshape(2, words[MASK_OUTER]),
        words[inner:],
        words[outer:inner].reshape(2, words[MASK_INNER]),
    )


@exact
def tile_columns(cut, tile):
    """Half-open range of a tile's columns."""
    first = tile * cut.tile
    return first, min(first + cut.tile, cut.columns)


@exact
def split_blocks(cut, split):
    """Half-open range of a split's blocks."""
    blocks = (cut.rows + cut.block_rows - 1) // cut.block_rows * cut.pieces
    first = split * cut.split_blocks
    return first, min(first + cut.split_blocks, blocks)


@exact
def block_bounds(cut, inner, block):
    """Half-open ranges of a block's rows, and of its part of each run."""
    first_row = block // cut.pieces * cut.block_rows
    last_row = min(first_row + cut.block_rows, cut.rows)
    if inner is None:
        return first_row, last_row, 0, 0
    first = block % cut.pieces * cut.piece
    return first_row, last_row, first, min(first + cut.piece, inner)


@exact
def tile_channels(cut, first_column, last_column):
    """Half-open range of the channels whose columns a tile holds."""
    if cut.fold > 1:
        return 0, cut.channels
    return first_column // cut.repeat, last_column // cut.repeat


@exact
def in_two(table, value):
    """`value` as the table's dtype has it, and what rounding left."""
    high = table.dtype.type(value)
    # An infinite value leaves inf − inf, and that NaN would spoil finite elements.
    return high, value - np.float64(high) if abs(value) < np.inf else 0.0


@exact
def spread(cut, first, last, table, first_row, last_row):
    """Give every column of the channels [first, last) what the channel's first column has."""
    if cut.fold * cut.repeat == 1:
        return
    for row in range(first_row, last_row):
        for position in range(cut.fold):
            for channel in range(first, last):
                value = table[row, channel * cut.repeat]
                column = (position * cut.channels + channel) * cut.repeat
                for j in range(column, column + cut.repeat):
                    table[row, j] = value


# Forward


@exact
def add_block(
    x, cut, mask, block, columns, chosen, pivot, number, part_1, part_2, sum_1, sum_2,
    by_rows, inner,
):  # fmt: skip
    """Add a block to Σ 1, Σ (x − pivot) and Σ (x − pivot)² of the columns of a tile."""
    first_row, last_row, first, last = block_bounds(cut, inner, block)
    first_column, width = columns[0], columns[1] - columns[0]
    if by_rows is not None:
        rows.block_sums(
            x, cut.total, cut.columns, cut.fold, first_row, last_row, first_column, width,
            mask, chosen, cut.large, pivot, number, part_1, part_2, sum_1, sum_2,
        )  # fmt: skip
    if inner is not None:
        runs.block_sums(
            x, inner, cut.columns, first_row, last_row, first_column, width, first, last, mask,
            pivot, number, sum_1, sum_2,
        )  # fmt: skip


@exact
def choose_pivots(number, sum_1, sum_2, pivot):
    """Move the pivots that are far from their block's mean; whether any were."""
    found = False
    for j in range(number.size):
        n = read(number, j)
        shift = read(sum_1, j) / (n + (n == 0))
        # Cancellation multiplies rounding by one more than the ratio of these.
        far = read(sum_1, j) * shift > PIVOT_RATIO * (read(sum_2, j) - read(sum_1, j) * shift)
        write(pivot, j, pivot.dtype.type(read(pivot, j) + (shift if far else 0.0)))
        found |= far
    return found


@exact
def absorb(number, sum_1, sum_2, pivot, count, mean, m2):
    """Merge a block's sums into the moments so far, and make its mean the next pivot.

    Neighbouring blocks are alike as a rule, so the next one seldom needs a second pass.
    """
    for j in range(count.size):
        n, p = read(number, j), np.float64(read(pivot, j))
        block_mean, block_m2 = block_moments(n, p, read(sum_1, j), read(sum_2, j))
        merged = merge(read(count, j), read(mean, j), read(m2, j), n, block_mean, block_m2)
        write(count, j, merged[0])
        write(mean, j, merged[1])
        write(m2, j, merged[2])
        write(pivot, j, pivot.dtype.type(block_mean))


def statistics(x, dy, out, on, words, numbers, values, partial, coefficients, task, by_rows, inner):
    """Count, mean and m2 of a task's columns into `partial`."""
    cut = partition_of(words)
    mask = mask_of(words, on)
    tile, split = task // cut.splits, task % cut.splits
    columns = tile_columns(cut, tile)
    width = columns[1] - columns[0]
    count = partial[split, 0][columns[0] : columns[1]]
    mean = partial[split, 1][columns[0] : columns[1]]
    m2 = partial[split, 2][columns[0] : columns[1]]
    count[:] = 0
    mean[:] = 0
    m2[:] = 0
    bytes_memory = np.empty(width + LINE_BYTES, np.uint8)
    parts_memory = np.zeros((3, width), coefficients.dtype)
    sums_memory = np.empty((3, width), np.float64)
    chosen, parts, sums = borrowed(bytes_memory), borrowed(parts_memory), borrowed(sums_memory)
    pivot, part_1, part_2 = parts[0], parts[1], parts[2]
    number, sum_1, sum_2 = sums[0], sums[1], sums[2]
    first, last = split_blocks(cut, split)
    for block in range(first, last):
        for attempt in range(2):
            number[:] = 0
            sum_1[:] = 0
            sum_2[:] = 0
            add_block(
                x, cut, mask, block, columns, chosen, pivot, number, part_1, part_2,
                sum_1, sum_2, by_rows, inner,
            )  # fmt: skip
            # Sums about a far pivot are good for finding a near one only.
            if attempt > 0 or not choose_pivots(number, sum_1, sum_2, pivot):
                break
        absorb(number, sum_1, sum_2, pivot, count, mean, m2)
    keep(bytes_memory)
    keep(parts_memory)
    keep(sums_memory)


@exact
def merge_splits(cut, columns, partial):
    """Merge the moments of all splits into those of the first."""
    moments = partial[0]
    for split in range(1, cut.splits):
        other = partial[split]
        for j in range(columns[0], columns[1]):
            count, mean, m2 = merge(
                read_row(moments, COUNT, j), read_row(moments, MEAN, j), read_row(moments, M2, j),
                read_row(other, COUNT, j), read_row(other, MEAN, j), read_row(other, M2, j),
            )  # fmt: skip
            write_row(moments, COUNT, j, count)
            write_row(moments, MEAN, j, mean)
            write_row(moments, M2, j, m2)


@exact
def save_moments(cut, first, last, moments, values):
    """Count, mean and variance of the channels [first, last), from those of their columns."""
    if cut.fold * cut.repeat == 1:
        for channel in range(first, last):
            count = read_row(moments, COUNT, channel)
            write_row(values, COUNT, channel, count)
            write_row(values, MEAN, channel, read_row(moments, MEAN, channel))
            m2 = read_row(moments, M2, channel)
            write_row(values, VARIANCE, channel, variance_of(count, m2))
        return
    for channel in range(first, last):
        count, mean, m2 = 0.0, 0.0, 0.0
        for position in range(cut.fold):
            column = (position * cut.channels + channel) * cut.repeat
            for j in range(column, column + cut.repeat):
                count, mean, m2 = merge(
                    count, mean, m2, moments[COUNT, j], moments[MEAN, j], moments[M2, j]
                )
        values[COUNT, channel] = count
        values[MEAN, channel] = mean
        values[VARIANCE, channel] = variance_of(count, m2)


@exact
def save_corrections(first, last, reference, numbers, values):
    """`r` and `d` of the channels [first, last)."""
    epsilon, rmin, rmax, dmax = numbers[0], numbers[1], numbers[2], numbers[3]
    for channel in range(first, last):
        r, d = 1.0, 0.0
        if reference != NO_REFERENCE:
            spread = read_row(values, REFERENCE_SPREAD, channel)
            if reference == BY_VARIANCE:
                spread = standard_deviation(spread, epsilon)
            r, d = renorm_r_d(
                read_row(values, MEAN, channel),
                standard_deviation(read_row(values, VARIANCE, channel), epsilon),
                read_row(values, REFERENCE_MEAN, channel),
                spread, epsilon, rmin, rmax, dmax,
            )  # fmt: skip
        write_row(values, R, channel, r)
        write_row(values, D, channel, d)


def forward_coefficients(
    x, dy, out, on, words, numbers, values, partial, coefficients, task, by_rows, inner
):
    """From the moments of a tile: what a forward saves, and the coefficients of its columns."""
    cut = partition_of(words)
    epsilon = numbers[0]
    columns = tile_columns(cut, task)
    first, last = tile_channels(cut, columns[0], columns[1])
    # One loop for each table that is written, and no branch that differs between channels:
    # LLVM vectorizes these, and with few rows they are half of the time.
    merge_splits(cut, columns, partial)
    save_moments(cut, first, last, partial[0], values)
    save_corrections(first, last, words[REFERENCE], numbers, values)
    for channel in range(first, last):
        rstd = 1.0 / standard_deviation(read_row(values, VARIANCE, channel), epsilon)
        scale, shift = scale_shift(
            read_row(values, GAMMA, channel), read_row(values, BETA, channel), rstd,
            read_row(values, R, channel), read_row(values, D, channel),
        )  # fmt: skip
        high, low = in_two(coefficients, read_row(values, MEAN, channel))
        column = channel * cut.repeat
        write_row(coefficients, MEAN_HIGH, column, high)
        write_row(coefficients, MEAN_LOW, column, low)
        write_row(coefficients, SCALE, column, scale)
        write_row(coefficients, SHIFT, column, shift)
    spread(cut, first, last, coefficients, MEAN_HIGH, SHIFT + 1)


def given_coefficients(
    x, dy, out, on, words, numbers, values, partial, coefficients, task, by_rows, inner
):
    """The coefficients of a tile, from a mean and a variance that are given."""
    cut = partition_of(words)
    epsilon = numbers[0]
    columns = tile_columns(cut, task)
    first, last = tile_channels(cut, columns[0], columns[1])
    for channel in range(first, last):
        rstd = 1.0 / standard_deviation(read_row(values, VARIANCE, channel), epsilon)
        scale, shift = scale_shift(
            read_row(values, GAMMA, channel), read_row(values, BETA, channel), rstd, 1.0, 0.0
        )
        high, low = in_two(coefficients, read_row(values, MEAN, channel))
        column = channel * cut.repeat
        write_row(coefficients, MEAN_HIGH, column, high)
        write_row(coefficients, MEAN_LOW, column, low)
        write_row(coefficients, SCALE, column, scale)
        write_row(coefficients, SHIFT, column, shift)
    spread(cut, first, last, coefficients, MEAN_HIGH, SHIFT + 1)


def normalize(x, dy, out, on, words, numbers, values, partial, coefficients, task, by_rows, inner):
    """out = (x − mean) · scale + shift over a task, last block first: it is in the cache."""
    cut = partition_of(words)
    # Tasks of one tile follow each other: the last split was read last.
    tile, split = task // cut.splits, cut.splits - 1 - task % cut.splits
    first_column, last_column = tile_columns(cut, tile)
    width = last_column - first_column
    mean_high = coefficients[MEAN_HIGH][first_column:last_column]
    mean_low = coefficients[MEAN_LOW][first_column:last_column]
    scale = coefficients[SCALE][first_column:last_column]
    shift = coefficients[SHIFT][first_column:last_column]
    first_block, last_block = split_blocks(cut, split)
    for block in range(last_block - 1, first_block - 1, -1):
        first_row, last_row, first, last = block_bounds(cut, inner, block)
        if by_rows is not None:
            rows.normalize_block(
                x, out, cut.total, cut.columns, first_row, last_row, first_column, width, cut.large,
                mean_high, mean_low, scale, shift,
            )  # fmt: skip
        if inner is not None:
            runs.normalize_block(
                x, out, inner, cut.columns, first_row, last_row, first_column, width,
                first, last, cut.large, mean_high, mean_low, scale, shift,
            )  # fmt: skip
    if cut.large:
        fence()


# Backward


def mean_coefficients(
    x, dy, out, on, words, numbers, values, partial, coefficients, task, by_rows, inner
):
    """The mean of a tile's columns, before the sums need it."""
    cut = partition_of(words)
    columns = tile_columns(cut, task)
    first, last = tile_channels(cut, columns[0], columns[1])
    for channel in range(first, last):
        high, low = in_two(coefficients, read_row(values, MEAN, channel))
        write_row(coefficients, MEAN_HIGH, channel * cut.repeat, high)
        write_row(coefficients, MEAN_LOW, channel * cut.repeat, low)
    spread(cut, first, last, coefficients, MEAN_HIGH, MEAN_LOW + 1)


def gradient_sums(
    x, dy, out, on, words, numbers, values, partial, coefficients, task, by_rows, inner
):
    """Σ dy and Σ dy · (x − mean) of a task's columns into `partial`."""
    cut = partition_of(words)
    tile, split = task // cut.splits, task % cut.splits
    first_column, last_column = tile_columns(cut, tile)
    width = last_column - first_column
    sum_dy = partial[split, 0][first_column:last_column]
    sum_dy_x = partial[split, 1][first_column:last_column]
    sum_dy[:] = 0
    sum_dy_x[:] = 0
    mean_high = coefficients[MEAN_HIGH][first_column:last_column]
    mean_low = coefficients[MEAN_LOW][first_column:last_column]
    memory = np.empty((2, width), coefficients.dtype)
    parts = borrowed(memory)
    part_dy, part_dy_x = parts[0], parts[1]
    first_block, last_block = split_blocks(cut, split)
    for block in range(first_block, last_block):
        first_row, last_row, first, last = block_bounds(cut, inner, block)
        if by_rows is not None:
            rows.gradient_block_sums(
                dy, x, cut.total, cut.columns, first_row, last_row, first_column, width,
                cut.large, mean_high, mean_low, part_dy, part_dy_x, sum_dy, sum_dy_x,
            )  # fmt: skip
        if inner is not None:
            runs.gradient_block_sums(
                dy, x, inner, cut.columns, first_row, last_row, first_column, width,
                first, last, mean_high, mean_low, sum_dy, sum_dy_x,
            )  # fmt: skip
    keep(memory)


@exact
def save_sums(cut, columns, first, last, partial, values):
    """Σ dy · (x − mean) and Σ dy of the channels [first, last) into DGAMMA and DBETA."""
    sums = partial[0]
    for split in range(1, cut.splits):
        other = partial[split]
        for j in range(columns[0], columns[1]):
            write_row(sums, SUM_DY, j, read_row(sums, SUM_DY, j) + read_row(other, SUM_DY, j))
            sum_dy_x = read_row(sums, SUM_DY_X, j) + read_row(other, SUM_DY_X, j)
            write_row(sums, SUM_DY_X, j, sum_dy_x)
    if cut.fold * cut.repeat == 1:
        for channel in range(first, last):
            write_row(values, DGAMMA, channel, read_row(sums, SUM_DY_X, channel))
            write_row(values, DBETA, channel, read_row(sums, SUM_DY, channel))
        return
    for channel in range(first, last):
        sum_dy, sum_dy_x = 0.0, 0.0
        for position in range(cut.fold):
            column = (position * cut.channels + channel) * cut.repeat
            for j in range(column, column + cut.repeat):
                sum_dy += sums[SUM_DY, j]
                sum_dy_x += sums[SUM_DY_X, j]
        values[DGAMMA, channel] = sum_dy_x
        values[DBETA, channel] = sum_dy


def backward_coefficients(
    x, dy, out, on, words, numbers, values, partial, coefficients, task, by_rows, inner
):
    """From the sums of a tile: dgamma and dbeta, and the coefficients of dx."""
    cut = partition_of(words)
    epsilon = numbers[0]
    columns = tile_columns(cut, task)
    first, last = tile_channels(cut, columns[0], columns[1])
    save_sums(cut, columns, first, last, partial, values)
    for channel in range(first, last):
        rstd = 1.0 / standard_deviation(read_row(values, VARIANCE, channel), epsilon)
        r = read_row(values, R, channel)
        sum_dy = read_row(values, DBETA, channel)
        sum_dy_xhat = read_row(values, DGAMMA, channel) * rstd
        dgamma, dbeta = parameter_gradients(sum_dy, sum_dy_xhat, r, read_row(values, D, channel))
        scale, mean_dy, slope = input_gradient(
            read_row(values, GAMMA, channel), r, rstd, read_row(values, COUNT, channel),
            sum_dy, sum_dy_xhat,
        )  # fmt: skip
        high, low = in_two(coefficients, mean_dy)
        column = channel * cut.repeat
        write_row(values, DGAMMA, channel, dgamma)
        write_row(values, DBETA, channel, dbeta)
        write_row(coefficients, SCALE, column, scale)
        write_row(coefficients, MEAN_DY_HIGH, column, high)
        write_row(coefficients, MEAN_DY_LOW, column, low)
        write_row(coefficients, SLOPE, column, slope)
    spread(cut, first, last, coefficients, SCALE, SLOPE + 1)


def gradient(x, dy, out, on, words, numbers, values, partial, coefficients, task, by_rows, inner):
    """The gradient of x over a task, last block first: it is in the cache."""
    cut = partition_of(words)
    mask = mask_of(words, on)
    tile, split = task // cut.splits, cut.splits - 1 - task % cut.splits
    first_column, last_column = tile_columns(cut, tile)
    width = last_column - first_column
    memory = np.empty(width + LINE_BYTES, np.uint8)
    chosen = borrowed(memory)
    mean_high = coefficients[MEAN_HIGH][first_column:last_column]
    mean_low = coefficients[MEAN_LOW][first_column:last_column]
    scale = coefficients[SCALE][first_column:last_column]
    mean_dy_high = coefficients[MEAN_DY_HIGH][first_column:last_column]
    mean_dy_low = coefficients[MEAN_DY_LOW][first_column:last_column]
    slope = coefficients[SLOPE][first_column:last_column]
    first_block, last_block = split_blocks(cut, split)
    for block in range(last_block - 1, first_block - 1, -1):
        first_row, last_row, first, last = block_bounds(cut, inner, block)
        if by_rows is not None:
            rows.gradient_block(
                dy, x, out, cut.total, cut.columns, cut.fold, first_row, last_row,
                first_column, width, mask, chosen, cut.large,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
        if inner is not None:
            runs.gradient_block(
                dy, x, out, inner, cut.columns, first_row, last_row, first_column, width,
                first, last, mask, cut.large,
                mean_high, mean_low, scale, mean_dy_high, mean_dy_low, slope,
            )  # fmt: skip
    keep(memory)
    if cut.large:
        fence()


def renorm_corrections(
    mean, variance, reference_mean, reference_spread, is_variance, limits, epsilon, corrections
):
    """`r` and `d` of each channel into the rows of `corrections`."""
    rmin, rmax, dmax = limits
    for channel in range(mean.size):
        reference_stddev = np.float64(reference_spread[channel])
        if is_variance:
            reference_stddev = standard_deviation(reference_stddev, epsilon)
        corrections[0, channel], corrections[1, channel] = renorm_r_d(
            np.float64(mean[channel]),
            standard_deviation(np.float64(variance[channel]), epsilon),
            np.float64(reference_mean[channel]),
            reference_stddev,
            epsilon, rmin, rmax, dmax,
        )  # fmt: skip


def move_statistics(moving, saved, epsilon, momentum, renorm_momentum):
    """Move statistics to those of a batch; a channel without a single element has none.

    moving: (2, channels) float64, mean and variance; or (5, channels): then stddev, which the
        variance follows, renorm mean and renorm stddev besides
    """
    for channel in range(saved.shape[1]):
        if saved[COUNT, channel] > 0:
            mean, variance = saved[MEAN, channel], saved[VARIANCE, channel]
            moving[0, channel] = moving_average(moving[0, channel], mean, momentum)
            if moving.shape[0] == 2:
                moving[1, channel] = moving_average(moving[1, channel], variance, momentum)
            else:
                stddev = standard_deviation(variance, epsilon)
                moving[2, channel] = moving_average(moving[2, channel], stddev, momentum)
                moving[1, channel] = variance_from_stddev(moving[2, channel], epsilon)
                moving[3, channel] = moving_average(moving[3, channel], mean, renorm_momentum)
                moving[4, channel] = moving_average(moving[4, channel], stddev, renorm_momentum)
