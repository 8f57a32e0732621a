"""The folds: partial results merged in float64, and what follows from them for each channel.

A block folds a few channels, each by several threads, which merge the columns and splits of
the channel in turn and then each other's results, always in the same order.

    partial         as in `kernels`, its rows in `work`
    fold            a `Fold`
    parameters      a tuple of (channels,) parameters, of the dtypes that `kinds` says, see
                    `elements`; each function says which
    kinds           a kind for each of them
    saved           (SAVED, channels) float64, the rows named in `channels`
    coefficients    (FORWARD or BACKWARD, channels) COMPUTE
    gradients       (GRADIENTS, channels) COMPUTE, the rows named in `channels`
"""

from typing import Any, NamedTuple

import numpy as np

from .. import formulas
from ..channels import COUNT, DBETA, DGAMMA, GAMMA, MEAN, VARIANCE, D, R
from .arithmetic import scale_shift, standard_deviation
from .elements import ABSENT, parameter, store_parameter
from .partition import Partition
from .runtime import cuda, device_function
from .work import (
    COUNT_ON,
    HIGH,
    LOW,
    M2,
    MOMENTS,
    PIVOT,
    PIVOT_DY,
    SCALE,
    SHIFT,
    SLOPE,
    SUM_DY,
    SUM_DY_X,
    SUMS,
)

# Bound by `compile`, as in `kernels`, `write_forward` and `write_backward` too; these values are
# for readers only.
THREADS = 128
COMPUTE: Any = np.float32

# Of what a backward is: of statistics that are constants, of a whole batch, or of a part of it.
CONSTANT, TRAINING, OF_PART = range(3)
# What a forward corrects against: nothing, a standard deviation, or a variance.
PLAIN, BY_STDDEV, BY_VARIANCE = range(3)
# Partial results that a thread merges in turn, before the threads of a channel are merged in a
# tree: each costs a read of some 500 ns, a step of the tree far less.
WALK = 4
# Neighbouring channels that a block has at least, where there are as many: a sector of 32 bytes of
# each row of partial results, which one channel alone would read for the sake of 4.
TOGETHER = 8

merge = device_function(formulas.merge)
variance_of = device_function(formulas.variance_of)
renorm_r_d = device_function(formulas.renorm_r_d)
parameter_gradients = device_function(formulas.parameter_gradients)
input_gradient = device_function(formulas.input_gradient)
is_followed = device_function(formulas.is_followed)
moving_average = device_function(formulas.moving_average)
variance_from_stddev = device_function(formulas.variance_from_stddev)


class Correction(NamedTuple):
    """What a forward corrects by, and how it moves statistics; plain numbers, as kernels take them.

    renorm_momentum     negative where there are no statistics of renorm
    """

    epsilon: float
    way: int = PLAIN
    rmin: float = 0.0
    rmax: float = 0.0
    dmax: float = 0.0
    momentum: float = 0.0
    renorm_momentum: float = -1.0
    skip_nonfinite: float = 0.0  # or 1


class Fold(NamedTuple):
    """How partial results are shared out; plain integers, as the kernels take them."""

    splits: int
    columns: int
    channels: int
    repeat: int
    items: int  # partial results of a channel
    x_bits: int  # log2 of the channels of a block


def fold_of(cut: Partition, threads: int) -> tuple[Fold, int]:
    """The fold of a cut's partial results, and its number of blocks."""
    items = cut.splits * (cut.columns // cut.channels if cut.channels else 0)
    y_bits = max(0, -(-items // WALK) - 1).bit_length()
    x_bits = max(threads.bit_length() - 1 - y_bits, TOGETHER.bit_length() - 1)
    x_bits = min(x_bits, max(0, cut.channels - 1).bit_length())
    fold = Fold(cut.splits, cut.columns, cut.channels, cut.repeat, items, x_bits)
    return fold, -(-cut.channels >> x_bits)


@device_function
def in_two(value, zero):
    """A float64 as a number of the type of `zero`, and as float64 what rounding left."""
    high = type(zero)(value)
    # An infinite value leaves inf − inf, and that NaN would spoil finite elements.
    return high, value - np.float64(high) if abs(value) < np.inf else 0.0


@device_function
def place_of(fold, channel, item, rows):
    """Where a channel's partial result begins: the first of its `rows` rows in `partial`."""
    # 32 bits: a division of 64 takes a hundred instructions, and there are far fewer results.
    splits, repeats = np.uint32(fold.splits), np.uint32(fold.repeat)
    rest = np.uint32(np.uint32(item) // splits)
    joined = np.int64(np.uint32(rest // repeats))
    split = item - np.int64(rest) * fold.splits
    column = (joined * fold.channels + channel) * fold.repeat
    column += np.int64(rest) - joined * fold.repeat
    return split * rows * fold.columns + column


@device_function
def moments_at(partial, place, columns):
    """Count, mean and m2 of a partial result."""
    count = np.float64(partial[place + COUNT_ON * columns])
    mean = np.float64(partial[place + HIGH * columns])
    mean += np.float64(partial[place + LOW * columns])
    return count, mean, np.float64(partial[place + M2 * columns])


@device_function
def given(parameters, kinds, index, channel, default):
    """A parameter of a channel as float64, or `default` where there is none."""
    kind = kinds[index]
    return default if kind == ABSENT else parameter(parameters[index], kind, channel)


@device_function
def corrected(mean, stddev, reference_mean, spread, correction):
    """`formulas.renorm_r_d` by a `Correction`."""
    if correction.way == PLAIN:
        return 1.0, 0.0
    epsilon = correction.epsilon
    if correction.way == BY_VARIANCE:
        spread = standard_deviation(spread, epsilon)
    return renorm_r_d(
        mean, stddev, reference_mean, spread, epsilon,
        correction.rmin, correction.rmax, correction.dmax,
    )  # fmt: skip


@device_function
def move_statistics(count, mean, variance, channel, moving, kind, correction):
    """Move a channel's statistics to the batch's.

    moving      10 arrays of the dtype that `kind` says: those of `channels.Moving`, as they are and
                where they go; the last three of both are not there without renorm of its own
    """
    # A channel without a single element has nothing to move to: it keeps all of its values.
    moves = is_followed(count, mean, variance, correction.skip_nonfinite != 0.0)
    # NaN is NaN with a share of 0 too.
    mean, variance = mean if moves else 0.0, variance if moves else 0.0
    share = correction.momentum if moves else 1.0
    moved = moving_average(parameter(moving[0], kind, channel), mean, share)
    old = parameter(moving[1], kind, channel)
    if correction.renorm_momentum < 0.0:
        store_parameter(moving[5], kind, channel, moved)
        store_parameter(moving[6], kind, channel, moving_average(old, variance, share))
        return
    stddev = standard_deviation(variance, correction.epsilon)
    moved_stddev = moving_average(parameter(moving[2], kind, channel), stddev, share)
    variance = variance_from_stddev(moved_stddev, correction.epsilon) if moves else old
    share = correction.renorm_momentum if moves else 1.0
    renorm_mean = moving_average(parameter(moving[3], kind, channel), mean, share)
    renorm_stddev = moving_average(parameter(moving[4], kind, channel), stddev, share)
    store_parameter(moving[5], kind, channel, moved)
    store_parameter(moving[6], kind, channel, variance)
    store_parameter(moving[7], kind, channel, moved_stddev)
    store_parameter(moving[8], kind, channel, renorm_mean)
    store_parameter(moving[9], kind, channel, renorm_stddev)


def fold_forward(partial, saved, coefficients, parameters, moving, correction, kinds, fold):
    """What a forward saves, and the coefficients of `normalize`; statistics are moved.

    parameters  gamma, beta, and the mean and spread of the reference
    moving      see `move_statistics`; their kind is the last of `kinds`, ABSENT to move nothing
    correction  a `Correction`
    """
    counts = cuda.shared.array(THREADS, np.float64)
    means = cuda.shared.array(THREADS, np.float64)
    m2s = cuda.shared.array(THREADS, np.float64)
    thread = cuda.threadIdx.x
    width = 1 << fold.x_bits
    channels, columns = fold.channels, fold.columns
    channel = (cuda.blockIdx.x << fold.x_bits) + (thread & (width - 1))
    count, mean, m2 = 0.0, 0.0, 0.0
    if channel < channels:
        item, step = thread >> fold.x_bits, THREADS >> fold.x_bits
        part = 0.0, 0.0, 0.0
        if item < fold.items:
            part = moments_at(partial, place_of(fold, channel, item, MOMENTS), columns)
        while item < fold.items:
            # The next is read while this one is merged.
            item += step
            following = 0.0, 0.0, 0.0
            if item < fold.items:
                following = moments_at(partial, place_of(fold, channel, item, MOMENTS), columns)
            count, mean, m2 = merge(count, mean, m2, part[0], part[1], part[2])
            part = following
    counts[thread], means[thread], m2s[thread] = count, mean, m2
    cuda.syncthreads()
    half = THREADS // 2
    while half >= width:
        if thread < half:
            count, mean, m2 = merge(
                counts[thread], means[thread], m2s[thread],
                counts[thread + half], means[thread + half], m2s[thread + half],
            )  # fmt: skip
            counts[thread], means[thread], m2s[thread] = count, mean, m2
        cuda.syncthreads()
        half //= 2
    if thread < width and channel < channels:
        variance = variance_of(count, m2)
        write_forward(
            (count, mean, variance), (channel, channels), (saved, coefficients), parameters, kinds,
            correction,
        )  # fmt: skip
        # Last: the reference that was read may be among them.
        if kinds[4] != ABSENT:
            move_statistics(count, mean, variance, channel, moving, kinds[4], correction)


def write_forward(statistics, place, results, parameters, kinds, correction):
    """What a forward saves of a channel, and its coefficients; `compile` compiles it.

    statistics  its count, mean and variance
    place       the channel, and how many there are
    results     `saved` and `coefficients`
    parameters  as for `fold_forward`
    """
    count, mean, variance = statistics
    channel, channels = place
    saved, coefficients = results
    stddev = standard_deviation(variance, correction.epsilon)
    r, d = corrected(
        mean, stddev, given(parameters, kinds, 2, channel, 0.0),
        given(parameters, kinds, 3, channel, 1.0), correction,
    )  # fmt: skip
    gain = given(parameters, kinds, 0, channel, 1.0)
    saved[COUNT * channels + channel] = count
    saved[MEAN * channels + channel] = mean
    saved[VARIANCE * channels + channel] = variance
    saved[R * channels + channel] = r
    saved[D * channels + channel] = d
    saved[GAMMA * channels + channel] = gain
    offset = given(parameters, kinds, 1, channel, 0.0)
    scale, shift = scale_shift(gain, offset, 1.0 / stddev, r, d)
    high, low = in_two(mean, COMPUTE(0))
    coefficients[PIVOT * channels + channel] = high
    coefficients[SCALE * channels + channel] = scale
    coefficients[SHIFT * channels + channel] = shift - low * scale


@device_function
def write_gradients(sums, place, saved, gradients):
    """dgamma and dbeta of a channel.

    sums    Σ dy and Σ dy · x̂
    place   the channel, and how many there are
    """
    channel, channels = place
    r, d = saved[R * channels + channel], saved[D * channels + channel]
    dgamma, dbeta = parameter_gradients(sums[0], sums[1], r, d)
    gradients[DGAMMA * channels + channel] = dgamma
    gradients[DBETA * channels + channel] = dbeta


def write_backward(sums, place, saved, coefficients, epsilon, way):
    """The coefficients of `gradient` of a channel; `compile` compiles it.

    sums, place     as for `write_gradients`
    way             TRAINING; or CONSTANT where the statistics were: then the coefficients are those
                    with which `normalize` makes dx of dy
    """
    channel, channels = place
    high, low = in_two(saved[MEAN * channels + channel], COMPUTE(0))
    rstd = 1.0 / standard_deviation(saved[VARIANCE * channels + channel], epsilon)
    count, r = saved[COUNT * channels + channel], saved[R * channels + channel]
    if way == CONSTANT:
        count, high, low = 0.0, COMPUTE(0), 0.0
    scale, mean_dy, slope = input_gradient(
        saved[GAMMA * channels + channel], r, rstd, count, sums[0], sums[1]
    )
    high_dy, low_dy = in_two(mean_dy, COMPUTE(0))
    coefficients[PIVOT * channels + channel] = high
    coefficients[SCALE * channels + channel] = scale
    coefficients[SHIFT * channels + channel] = scale * (slope * low - low_dy)
    coefficients[PIVOT_DY * channels + channel] = high_dy
    coefficients[SLOPE * channels + channel] = slope


def fold_backward(partial, saved, gradients, coefficients, sums, epsilon, way, fold):
    """dgamma and dbeta, and the coefficients of `gradient`.

    sums    (SUMS, channels) float64: instead of coefficients, where the way is OF_PART
    way     of `write_backward`, or OF_PART
    """
    sums_dy = cuda.shared.array(THREADS, np.float64)
    sums_dy_x = cuda.shared.array(THREADS, np.float64)
    thread = cuda.threadIdx.x
    width = 1 << fold.x_bits
    channels, columns = fold.channels, fold.columns
    channel = (cuda.blockIdx.x << fold.x_bits) + (thread & (width - 1))
    sum_dy, sum_dy_x = 0.0, 0.0
    if channel < channels:
        for item in range(thread >> fold.x_bits, fold.items, THREADS >> fold.x_bits):
            place = place_of(fold, channel, item, SUMS)
            sum_dy += np.float64(partial[place + SUM_DY * columns])
            sum_dy_x += np.float64(partial[place + SUM_DY_X * columns])
    sums_dy[thread], sums_dy_x[thread] = sum_dy, sum_dy_x
    cuda.syncthreads()
    half = THREADS // 2
    while half >= width:
        if thread < half:
            sums_dy[thread] += sums_dy[thread + half]
            sums_dy_x[thread] += sums_dy_x[thread + half]
        cuda.syncthreads()
        half //= 2
    if thread < width and channel < channels:
        place = channel, channels
        sum_dy = sums_dy[thread]
        _, low = in_two(saved[MEAN * channels + channel], COMPUTE(0))
        rstd = 1.0 / standard_deviation(saved[VARIANCE * channels + channel], epsilon)
        sum_dy_xhat = (sums_dy_x[thread] - low * sum_dy) * rstd
        write_gradients((sum_dy, sum_dy_xhat), place, saved, gradients)
        if way == OF_PART:
            sums[channel], sums[channels + channel] = sum_dy, sum_dy_xhat
        else:
            write_backward((sum_dy, sum_dy_xhat), place, saved, coefficients, epsilon, way)


# What is given for each channel


def given_forward(saved, coefficients, parameters, moving, correction, kinds, channels):
    """`fold_forward` from statistics that are given.

    parameters  as there, and then count, mean and variance
    """
    channel = cuda.grid(1)
    if channel < channels:
        count = given(parameters, kinds, 4, channel, 0.0)
        mean = given(parameters, kinds, 5, channel, 0.0)
        variance = given(parameters, kinds, 6, channel, 1.0)
        write_forward(
            (count, mean, variance), (channel, channels), (saved, coefficients), parameters, kinds,
            correction,
        )  # fmt: skip
        if kinds[7] != ABSENT:
            move_statistics(count, mean, variance, channel, moving, kinds[7], correction)


def given_sums(saved, sums, gradients, coefficients, epsilon, channels):
    """`fold_backward` from Σ dy and Σ dy · x̂, (SUMS, channels) float64, of a training forward."""
    channel = cuda.grid(1)
    if channel < channels:
        place = channel, channels
        both = sums[channel], sums[channels + channel]
        write_gradients(both, place, saved, gradients)
        write_backward(both, place, saved, coefficients, epsilon, TRAINING)


def given_coefficients(coefficients, epsilon, parameters, kinds, channels):
    """The coefficients of `normalize` from mean, variance, gamma and beta as parameters."""
    channel = cuda.grid(1)
    if channel < channels:
        stddev = standard_deviation(given(parameters, kinds, 1, channel, 1.0), epsilon)
        gain = given(parameters, kinds, 2, channel, 1.0)
        offset = given(parameters, kinds, 3, channel, 0.0)
        scale, shift = scale_shift(gain, offset, 1.0 / stddev, 1.0, 0.0)
        high, low = in_two(given(parameters, kinds, 0, channel, 0.0), COMPUTE(0))
        coefficients[PIVOT * channels + channel] = high
        coefficients[SCALE * channels + channel] = scale
        coefficients[SHIFT * channels + channel] = shift - low * scale


def given_statistics(saved, parameters, kinds, channels):
    """What a forward would have saved whose mean, variance and gamma are these parameters."""
    channel = cuda.grid(1)
    if channel < channels:
        saved[COUNT * channels + channel] = 0.0
        saved[MEAN * channels + channel] = given(parameters, kinds, 0, channel, 0.0)
        saved[VARIANCE * channels + channel] = given(parameters, kinds, 1, channel, 1.0)
        saved[R * channels + channel] = 1.0
        saved[D * channels + channel] = 0.0
        saved[GAMMA * channels + channel] = given(parameters, kinds, 2, channel, 1.0)


def renorm_corrections(corrections, parameters, correction, kinds, channels):
    """`r` and `d`, (2, channels) float64, from mean, variance, and the reference's mean and stddev
    as parameters."""
    channel = cuda.grid(1)
    if channel < channels:
        variance = given(parameters, kinds, 1, channel, 1.0)
        r, d = corrected(
            given(parameters, kinds, 0, channel, 0.0),
            standard_deviation(variance, correction.epsilon),
            given(parameters, kinds, 2, channel, 0.0),
            given(parameters, kinds, 3, channel, 1.0),
            correction,
        )
        corrections[channel], corrections[channels + channel] = r, d


def merge_statistics(merged, parameters, kinds, channels):
    """The statistics of two sets together, (3, channels) float64, from count, mean and variance
    of each as parameters."""
    channel = cuda.grid(1)
    if channel < channels:
        count = given(parameters, kinds, 0, channel, 0.0)
        other = given(parameters, kinds, 3, channel, 0.0)
        number, mean, m2 = merge(
            count,
            given(parameters, kinds, 1, channel, 0.0),
            given(parameters, kinds, 2, channel, 0.0) * count,
            other,
            given(parameters, kinds, 4, channel, 0.0),
            given(parameters, kinds, 5, channel, 0.0) * other,
        )
        merged[channel], merged[channels + channel] = number, mean
        merged[2 * channels + channel] = variance_of(number, m2)
