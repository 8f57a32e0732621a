"""The kernels: what one task does, over the tasks of a partition.

A training forward has three steps: `statistics`, `forward_coefficients` and `normalize`;
a backward three like them. `tasks.load` compiles each for a dtype and a layout, and
`tasks.run` runs them over tasks and tiles. The loops over elements are in `rows` and `runs`,
the mathematics in `formulas`.

Every step takes the `Work` of its call, and the index of its task, or of its tile where it is one
between.
"""

from typing import Any

import numpy as np

from .. import formulas
from ..channels import COUNT, GAMMA, MEAN, VARIANCE, D, R
from . import rows
from .compile import bound, exact
from .elements import read_column, read_row, write_column, write_row
from .masks import ELEMENT
from .vectors import LINE_BYTES, fence
from .work import (
    BETA,
    BY_VARIANCE,
    COEFFICIENTS,
    DGAMMA,
    NO_REFERENCE,
    NUMBER,
    PARTS,
    REFERENCE_MEAN,
    REFERENCE_SPREAD,
    SUM_1,
    SUM_2,
    SUM_DY,
    SUM_DY_XHAT,
    Adding,
    Backward,
    Block,
    Forward,
    MaskScratch,
    Mean,
    Moments,
    Pivot,
)

# `rows` or `runs`: each compilation has its own, see `tasks`.
LAYOUT: Any = rows
# A block's mean may be two of its standard deviations from the pivot: that costs at most
# 5 roundings of float32 in the variance, and a block of ordinary data needs no second pass.
PIVOT_RATIO = 4.0
# Rows of coefficients.
_MEAN, _FORWARD = len(Mean._fields), len(Forward._fields)

merge = exact(formulas.merge)
block_moments = exact(formulas.block_moments)
variance_of = exact(formulas.variance_of)
standard_deviation = exact(
    bound(formulas.standard_deviation, square_root=exact(formulas.square_root))
)
renorm_r_d = exact(formulas.renorm_r_d)
scale_shift = exact(formulas.scale_shift)
parameter_gradients = exact(formulas.parameter_gradients)
input_gradient = exact(formulas.input_gradient)
is_followed = exact(formulas.is_followed)
moving_average = exact(formulas.moving_average)
variance_from_stddev = exact(formulas.variance_from_stddev)


@exact
def tile_columns(cut, tile):
    """Half-open range of a tile's columns."""
    first = tile * cut.tile
    return first, min(first + cut.tile, cut.columns)


@exact
def tile_channels(cut, tile):
    """Half-open range of the channels whose columns a tile holds."""
    if cut.fold > 1:
        return 0, cut.channels
    first, last = tile_columns(cut, tile)
    return first // cut.repeat, last // cut.repeat


@exact
def split_blocks(cut, split):
    """Half-open range of a split's blocks."""
    blocks = (cut.rows + cut.block_rows - 1) // cut.block_rows * cut.pieces
    first = split * cut.split_blocks
    return first, min(first + cut.split_blocks, blocks)


@exact
def block_of(cut, tile, index):
    """A block of a tile, by its index."""
    first_row = index // cut.pieces * cut.block_rows
    first = index % cut.pieces * cut.piece
    first_column, last_column = tile_columns(cut, tile)
    return Block(
        first_row,
        min(first_row + cut.block_rows, cut.rows),
        first,
        min(first + cut.piece, cut.inner),
        first_column,
        last_column - first_column,
    )


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


@exact
def clear(table):
    """Zeros in the first three rows."""
    for row in range(3):
        for j in range(table.shape[1]):
            table[row, j] = 0


# Forward


@exact
def choose_pivots(sums, parts):
    """Move the pivots that are far from their block's mean; whether any were."""
    found = False
    for j in range(sums.shape[1]):
        n, sum_1 = read_row(sums, NUMBER, j), read_row(sums, SUM_1, j)
        shift = sum_1 / (n + (n == 0))
        # Cancellation multiplies rounding by one more than the ratio of these.
        far = sum_1 * shift > PIVOT_RATIO * (read_row(sums, SUM_2, j) - sum_1 * shift)
        pivot = read_column(parts, j, Pivot).pivot
        write_column(parts, j, Pivot(pivot + (shift if far else 0.0)))
        found |= far
    return found


@exact
def absorb(sums, parts, moments):
    """Merge a block's sums into the moments so far, and make its mean the next pivot.

    Neighbouring blocks are alike as a rule, so the next one seldom needs a second pass.
    """
    for j in range(sums.shape[1]):
        n, pivot = read_row(sums, NUMBER, j), np.float64(read_column(parts, j, Pivot).pivot)
        sum_1, sum_2 = read_row(sums, SUM_1, j), read_row(sums, SUM_2, j)
        block_mean, block_m2 = block_moments(n, pivot, sum_1, sum_2)
        count, mean, m2 = read_column(moments, j, Moments)
        count, mean, m2 = merge(count, mean, m2, n, block_mean, block_m2)
        write_column(moments, j, Moments(count, mean, m2))
        write_column(parts, j, Pivot(block_mean))


@exact
def mask_scratch(work, width):
    """Scratch for the mask of a task of `width` columns."""
    offsets = work.cut.piece if work.mask.kind == ELEMENT else 0
    return MaskScratch(np.empty(width + LINE_BYTES, np.uint8), np.empty(offsets, np.int64))


def statistics(work, task):
    """Count, mean and m2 of a task's columns into `partial`."""
    cut = work.cut
    tile, split = task // cut.splits, task % cut.splits
    first_column, last_column = tile_columns(cut, tile)
    width = last_column - first_column
    moments = work.partial[split][:, first_column:last_column]
    clear(moments)
    parts = np.empty((PARTS, width), work.coefficients.dtype)
    sums = np.empty((PARTS, width), np.float64)
    clear(parts)
    adding = Adding(parts, parts, sums, mask_scratch(work, width))
    first, last = split_blocks(cut, split)
    for index in range(first, last):
        block = block_of(cut, tile, index)
        for attempt in range(2):
            clear(sums)
            LAYOUT.block_sums(work, block, adding)
            # Sums about a far pivot are good for finding a near one only.
            if attempt > 0 or not choose_pivots(sums, parts):
                break
        absorb(sums, parts, moments)


@exact
def merge_splits(cut, tile, partial):
    """Merge the moments of all splits into those of the first."""
    moments = partial[0]
    first, last = tile_columns(cut, tile)
    for split in range(1, cut.splits):
        other = partial[split]
        for j in range(first, last):
            count, mean, m2 = read_column(moments, j, Moments)
            other_count, other_mean, other_m2 = read_column(other, j, Moments)
            count, mean, m2 = merge(count, mean, m2, other_count, other_mean, other_m2)
            write_column(moments, j, Moments(count, mean, m2))


@exact
def save_moments(cut, first, last, moments, per_channel):
    """Count, mean and variance of the channels [first, last), from those of their columns."""
    single = cut.fold * cut.repeat == 1
    if single:
        for channel in range(first, last):
            count, mean, m2 = read_column(moments, channel, Moments)
            write_row(per_channel, COUNT, channel, count)
            write_row(per_channel, MEAN, channel, mean)
            write_row(per_channel, VARIANCE, channel, variance_of(count, m2))
        return
    for channel in range(first, last):
        count, mean, m2 = 0.0, 0.0, 0.0
        for position in range(cut.fold):
            column = (position * cut.channels + channel) * cut.repeat
            for j in range(column, column + cut.repeat):
                other_count, other_mean, other_m2 = read_column(moments, j, Moments)
                count, mean, m2 = merge(count, mean, m2, other_count, other_mean, other_m2)
        per_channel[COUNT, channel] = count
        per_channel[MEAN, channel] = mean
        per_channel[VARIANCE, channel] = variance_of(count, m2)


@exact
def save_corrections(first, last, reference, numbers, per_channel):
    """`r` and `d` of the channels [first, last)."""
    epsilon = numbers.epsilon
    for channel in range(first, last):
        r, d = 1.0, 0.0
        if reference != NO_REFERENCE:
            spread = read_row(per_channel, REFERENCE_SPREAD, channel)
            if reference == BY_VARIANCE:
                spread = standard_deviation(spread, epsilon)
            r, d = renorm_r_d(
                read_row(per_channel, MEAN, channel),
                standard_deviation(read_row(per_channel, VARIANCE, channel), epsilon),
                read_row(per_channel, REFERENCE_MEAN, channel),
                spread,
                epsilon,
                numbers.rmin,
                numbers.rmax,
                numbers.dmax,
            )
        write_row(per_channel, R, channel, r)
        write_row(per_channel, D, channel, d)


def forward_coefficients(work, tile):
    """From the moments of a tile: what a forward saves, and the coefficients of its columns."""
    cut, per_channel = work.cut, work.per_channel
    first, last = tile_channels(cut, tile)
    # One loop for each table that is written, and no branch that differs between channels:
    # LLVM vectorizes these, and with few rows they are half of the time.
    merge_splits(cut, tile, work.partial)
    save_moments(cut, first, last, work.partial[0], per_channel)
    write_forward(work, first, last)


@exact
def write_forward(work, first, last):
    """From the statistics of the channels [first, last): r and d, and the coefficients of y."""
    cut, per_channel, coefficients = work.cut, work.per_channel, work.coefficients
    save_corrections(first, last, work.reference, work.numbers, per_channel)
    for channel in range(first, last):
        variance = read_row(per_channel, VARIANCE, channel)
        rstd = 1.0 / standard_deviation(variance, work.numbers.epsilon)
        gamma, beta = read_row(per_channel, GAMMA, channel), read_row(per_channel, BETA, channel)
        r, d = read_row(per_channel, R, channel), read_row(per_channel, D, channel)
        scale, shift = scale_shift(gamma, beta, rstd, r, d)
        high, low = in_two(coefficients, read_row(per_channel, MEAN, channel))
        write_column(coefficients, channel * cut.repeat, Forward(high, low, scale, shift))
    spread(cut, first, last, coefficients, 0, _FORWARD)


def given_coefficients(work, tile):
    """The same from statistics that are given."""
    first, last = tile_channels(work.cut, tile)
    write_forward(work, first, last)


def normalize(work, task):
    """y of a task, last block first: it is in the cache."""
    cut = work.cut
    # Tasks of one tile follow each other: the last split was read last.
    tile, split = task // cut.splits, cut.splits - 1 - task % cut.splits
    first, last = split_blocks(cut, split)
    for index in range(last - 1, first - 1, -1):
        LAYOUT.normalize_block(work, block_of(cut, tile, index))
    if cut.large:
        fence()


# Backward


def mean_coefficients(work, tile):
    """The mean of a tile's columns, before the sums need it."""
    first, last = tile_channels(work.cut, tile)
    write_means(work, first, last)


@exact
def write_means(work, first, last):
    """The means of the columns of the channels [first, last)."""
    cut, coefficients = work.cut, work.coefficients
    for channel in range(first, last):
        high, low = in_two(coefficients, read_row(work.per_channel, MEAN, channel))
        write_column(coefficients, channel * cut.repeat, Mean(high, low))
    spread(cut, first, last, coefficients, 0, _MEAN)


def gradient_sums(work, task):
    """Σ dy and Σ dy · (x − mean) of a task's columns into `partial`."""
    cut = work.cut
    tile, split = task // cut.splits, task % cut.splits
    first_column, last_column = tile_columns(cut, tile)
    sums = work.partial[split][:, first_column:last_column]
    clear(sums)
    parts = np.empty((PARTS, last_column - first_column), work.coefficients.dtype)
    means = work.coefficients[:, first_column:last_column]
    adding = Adding(means, parts, sums, MaskScratch(work.mask.on, work.mask.columns))
    first, last = split_blocks(cut, split)
    for index in range(first, last):
        LAYOUT.gradient_block_sums(work, block_of(cut, tile, index), adding)


@exact
def save_sums(cut, tile, partial, per_channel):
    """Σ dy · (x − mean) and Σ dy of a tile's channels into SUM_DY_XHAT and SUM_DY."""
    sums = partial[0]
    first_column, last_column = tile_columns(cut, tile)
    for split in range(1, cut.splits):
        other = partial[split]
        for j in range(first_column, last_column):
            write_row(sums, SUM_1, j, read_row(sums, SUM_1, j) + read_row(other, SUM_1, j))
            write_row(sums, SUM_2, j, read_row(sums, SUM_2, j) + read_row(other, SUM_2, j))
    first, last = tile_channels(cut, tile)
    if cut.fold * cut.repeat == 1:
        for channel in range(first, last):
            write_row(per_channel, SUM_DY_XHAT, channel, read_row(sums, SUM_2, channel))
            write_row(per_channel, SUM_DY, channel, read_row(sums, SUM_1, channel))
        return
    for channel in range(first, last):
        sum_dy, sum_dy_x = 0.0, 0.0
        for position in range(cut.fold):
            column = (position * cut.channels + channel) * cut.repeat
            for j in range(column, column + cut.repeat):
                sum_dy += sums[SUM_1, j]
                sum_dy_x += sums[SUM_2, j]
        per_channel[SUM_DY_XHAT, channel] = sum_dy_x
        per_channel[SUM_DY, channel] = sum_dy


def backward_coefficients(work, tile):
    """From the sums of a tile: dgamma and dbeta, and the coefficients of dx."""
    cut, per_channel = work.cut, work.per_channel
    save_sums(cut, tile, work.partial, per_channel)
    first, last = tile_channels(cut, tile)
    for channel in range(first, last):
        variance = read_row(per_channel, VARIANCE, channel)
        rstd = 1.0 / standard_deviation(variance, work.numbers.epsilon)
        sum_dy_xhat = read_row(per_channel, SUM_DY_XHAT, channel) * rstd
        write_row(per_channel, SUM_DY_XHAT, channel, sum_dy_xhat)
    write_backward(work, first, last)


@exact
def write_backward(work, first, last):
    """From the sums of the channels [first, last): dgamma, and the coefficients of dx."""
    cut, per_channel, coefficients = work.cut, work.per_channel, work.coefficients
    for channel in range(first, last):
        variance = read_row(per_channel, VARIANCE, channel)
        rstd = 1.0 / standard_deviation(variance, work.numbers.epsilon)
        r, gamma = read_row(per_channel, R, channel), read_row(per_channel, GAMMA, channel)
        sum_dy = read_row(per_channel, SUM_DY, channel)
        sum_dy_xhat = read_row(per_channel, SUM_DY_XHAT, channel)
        d, count = read_row(per_channel, D, channel), read_row(per_channel, COUNT, channel)
        # dbeta is Σ dy, and that is where it is to be.
        dgamma, _ = parameter_gradients(sum_dy, sum_dy_xhat, r, d)
        scale, mean_dy, slope = input_gradient(gamma, r, rstd, count, sum_dy, sum_dy_xhat)
        write_row(per_channel, DGAMMA, channel, dgamma)
        high, low = in_two(coefficients, mean_dy)
        mean = read_column(coefficients, channel * cut.repeat, Mean)
        column = Backward(mean.mean_high, mean.mean_low, scale, high, low, slope)
        write_column(coefficients, channel * cut.repeat, column)
    spread(cut, first, last, coefficients, _MEAN, COEFFICIENTS)


def given_sums(work, tile):
    """The same from sums that are given."""
    first, last = tile_channels(work.cut, tile)
    write_means(work, first, last)
    write_backward(work, first, last)


def gradient(work, task):
    """dx of a task, last block first: it is in the cache."""
    cut = work.cut
    tile, split = task // cut.splits, cut.splits - 1 - task % cut.splits
    first_column, last_column = tile_columns(cut, tile)
    scratch = mask_scratch(work, last_column - first_column)
    first, last = split_blocks(cut, split)
    for index in range(last - 1, first - 1, -1):
        LAYOUT.gradient_block(work, block_of(cut, tile, index), scratch)
    if cut.large:
        fence()


# Beside the steps


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


def move_statistics(moving, saved, epsilon, momentum, renorm_momentum, skip_nonfinite):
    """Move statistics to those of a batch, where these count: see `formulas.is_followed`.

    moving: (2, channels) float64, mean and variance; or (5, channels): then stddev, which the
        variance follows, renorm mean and renorm stddev besides
    """
    for channel in range(saved.shape[1]):
        mean, variance = saved[MEAN, channel], saved[VARIANCE, channel]
        if is_followed(saved[COUNT, channel], mean, variance, skip_nonfinite):
            moving[0, channel] = moving_average(moving[0, channel], mean, momentum)
            if moving.shape[0] == 2:
                moving[1, channel] = moving_average(moving[1, channel], variance, momentum)
            else:
                stddev = standard_deviation(variance, epsilon)
                moving[2, channel] = moving_average(moving[2, channel], stddev, momentum)
                moving[1, channel] = variance_from_stddev(moving[2, channel], epsilon)
                moving[3, channel] = moving_average(moving[3, channel], mean, renorm_momentum)
                moving[4, channel] = moving_average(moving[4, channel], stddev, renorm_momentum)
