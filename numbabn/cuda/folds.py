"""The folds: partial results merged in float64, and what follows from them for each channel.

A block folds a few channels, each by several threads, which merge the columns and splits of
the channel in turn and then each other's results, always in the same order.

    partial         as in `kernels`
    fold            a `Fold`
    gamma, beta, reference_mean, reference_spread
                    (channels,) parameters, of the dtypes that `kinds` says, see `elements`
    kinds           a kind for each parameter, in the order of the arguments
    limits          rmin, rmax, dmax
    saved           (SAVED, channels) float64, the rows named in `channels`
    coefficients    (FORWARD or BACKWARD, channels) COMPUTE
    dgamma, dbeta   (channels,) COMPUTE
"""

from typing import Any, NamedTuple

import numpy as np

from .. import formulas
from ..channels import COUNT, GAMMA, MEAN, VARIANCE, D, R
from .elements import ABSENT, parameter
from .kernels import (
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
from .partition import Partition
from .runtime import cuda, device_function

# Bound by `compile`, as in `kernels`; these values are for readers only.
THREADS = 128
COMPUTE: Any = np.float32

# What a forward corrects against: nothing, a standard deviation, or a variance.
PLAIN, BY_STDDEV, BY_VARIANCE = range(3)
# Partial results that a thread merges in turn, before the threads of a channel are merged in a
# tree: each costs a read of some 500 ns, a step of the tree far less.
WALK = 4

merge = device_function(formulas.merge)
variance_of = device_function(formulas.variance_of)
standard_deviation = device_function(formulas.standard_deviation)
renorm_r_d = device_function(formulas.renorm_r_d)
scale_shift = device_function(formulas.scale_shift)
parameter_gradients = device_function(formulas.parameter_gradients)
input_gradient = device_function(formulas.input_gradient)
moving_average = device_function(formulas.moving_average)
variance_from_stddev = device_function(formulas.variance_from_stddev)


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
    x_bits = min(max(0, threads.bit_length() - 1 - y_bits), max(0, cut.channels - 1).bit_length())
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
    split, rest = item % fold.splits, item // fold.splits
    joined, repeat = rest // fold.repeat, rest % fold.repeat
    column = (joined * fold.channels + channel) * fold.repeat + repeat
    return split * rows * fold.columns + column


@device_function
def parameter_or(memory, kind, channel, default):
    """A parameter of a channel as float64, or `default` where there is none."""
    return default if kind == ABSENT else parameter(memory, kind, channel)


def fold_forward(
    partial, fold, gamma, beta, reference_mean, reference_spread, kinds, reference, epsilon,
    rmin, rmax, dmax, saved, coefficients,
):  # fmt: skip
    """What a forward saves, and the coefficients of `normalize`.

    reference   what the forward corrects against: PLAIN, BY_STDDEV or BY_VARIANCE
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
        for item in range(thread >> fold.x_bits, fold.items, THREADS >> fold.x_bits):
            place = place_of(fold, channel, item, MOMENTS)
            part = np.float64(partial[place + HIGH * columns])
            part += np.float64(partial[place + LOW * columns])
            count, mean, m2 = merge(
                count, mean, m2,
                np.float64(partial[place + COUNT_ON * columns]), part,
                np.float64(partial[place + M2 * columns]),
            )  # fmt: skip
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
        stddev = standard_deviation(variance, epsilon)
        r, d = 1.0, 0.0
        if reference != PLAIN:
            spread = parameter(reference_spread, kinds[3], channel)
            if reference == BY_VARIANCE:
                spread = standard_deviation(spread, epsilon)
            r, d = renorm_r_d(
                mean, stddev, parameter(reference_mean, kinds[2], channel), spread, epsilon,
                rmin, rmax, dmax,
            )  # fmt: skip
        gain = parameter_or(gamma, kinds[0], channel, 1.0)
        saved[COUNT * channels + channel] = count
        saved[MEAN * channels + channel] = mean
        saved[VARIANCE * channels + channel] = variance
        saved[R * channels + channel] = r
        saved[D * channels + channel] = d
        saved[GAMMA * channels + channel] = gain
        scale, shift = scale_shift(
            gain, parameter_or(beta, kinds[1], channel, 0.0), 1.0 / stddev, r, d
        )
        high, low = in_two(mean, COMPUTE(0))
        coefficients[PIVOT * channels + channel] = high
        coefficients[SCALE * channels + channel] = scale
        coefficients[SHIFT * channels + channel] = shift - low * scale


def fold_backward(partial, fold, saved, training, epsilon, dgamma, dbeta, coefficients):
    """dgamma and dbeta, and the coefficients of `gradient`.

    training    0 where the statistics were constants: then the coefficients are those with
                which `normalize` makes dx of dy
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
        sum_dy, mean = sums_dy[thread], saved[MEAN * channels + channel]
        high, low = in_two(mean, COMPUTE(0))
        rstd = 1.0 / standard_deviation(saved[VARIANCE * channels + channel], epsilon)
        sum_dy_xhat = (sums_dy_x[thread] - low * sum_dy) * rstd
        r, d = saved[R * channels + channel], saved[D * channels + channel]
        gradients = parameter_gradients(sum_dy, sum_dy_xhat, r, d)
        dgamma[channel], dbeta[channel] = gradients
        count = saved[COUNT * channels + channel]
        if training == 0:
            count, high, low = 0.0, COMPUTE(0), 0.0
        scale, mean_dy, slope = input_gradient(
            saved[GAMMA * channels + channel], r, rstd, count, sum_dy, sum_dy_xhat
        )
        high_dy, low_dy = in_two(mean_dy, COMPUTE(0))
        coefficients[PIVOT * channels + channel] = high
        coefficients[SCALE * channels + channel] = scale
        coefficients[SHIFT * channels + channel] = scale * (slope * low - low_dy)
        coefficients[PIVOT_DY * channels + channel] = high_dy
        coefficients[SLOPE * channels + channel] = slope


# What is given for each channel


def given_coefficients(mean, variance, gamma, beta, kinds, epsilon, channels, coefficients):
    """The coefficients of `normalize` from statistics as parameters."""
    channel = cuda.grid(1)
    if channel < channels:
        stddev = standard_deviation(parameter(variance, kinds[1], channel), epsilon)
        scale, shift = scale_shift(
            parameter_or(gamma, kinds[2], channel, 1.0),
            parameter_or(beta, kinds[3], channel, 0.0),
            1.0 / stddev, 1.0, 0.0,
        )  # fmt: skip
        high, low = in_two(parameter_or(mean, kinds[0], channel, 0.0), COMPUTE(0))
        coefficients[PIVOT * channels + channel] = high
        coefficients[SCALE * channels + channel] = scale
        coefficients[SHIFT * channels + channel] = shift - low * scale


def given_statistics(mean, variance, gamma, kinds, channels, saved):
    """What a forward would have saved whose statistics are these parameters."""
    channel = cuda.grid(1)
    if channel < channels:
        saved[COUNT * channels + channel] = 0.0
        saved[MEAN * channels + channel] = parameter(mean, kinds[0], channel)
        saved[VARIANCE * channels + channel] = parameter(variance, kinds[1], channel)
        saved[R * channels + channel] = 1.0
        saved[D * channels + channel] = 0.0
        saved[GAMMA * channels + channel] = parameter_or(gamma, kinds[2], channel, 1.0)


def renorm_corrections(
    mean, variance, reference_mean, reference_stddev, kinds, epsilon, rmin, rmax, dmax,
    channels, r, d,
):  # fmt: skip
    """`r` and `d` of each channel, (channels,) float64, from parameters."""
    channel = cuda.grid(1)
    if channel < channels:
        r[channel], d[channel] = renorm_r_d(
            parameter(mean, kinds[0], channel),
            standard_deviation(parameter(variance, kinds[1], channel), epsilon),
            parameter(reference_mean, kinds[2], channel),
            parameter(reference_stddev, kinds[3], channel),
            epsilon, rmin, rmax, dmax,
        )  # fmt: skip


def move_statistics(
    saved, epsilon, momentum, renorm_momentum, separate, channels,
    moving_mean, moving_variance, moving_stddev, renorm_mean, renorm_stddev,
    moved_mean, moved_variance, moved_stddev, moved_renorm_mean, moved_renorm_stddev,
):  # fmt: skip
    """Statistics of a layer, moved to the batch's.

    separate            0 where there are no statistics of renorm: then three are not read
    moving_mean, ...    (channels,) COMPUTE
    moved_mean, ...     (channels,) COMPUTE, where they go; may be the same
    """
    channel = cuda.grid(1)
    if channel >= channels:
        return
    mean, variance = saved[MEAN * channels + channel], saved[VARIANCE * channels + channel]
    # A channel without a single element has nothing to move to: it keeps all of its values.
    moves = saved[COUNT * channels + channel] > 0
    share = momentum if moves else 1.0
    renorm_share = renorm_momentum if moves else 1.0
    moved_mean[channel] = moving_average(np.float64(moving_mean[channel]), mean, share)
    if separate == 0:
        old = np.float64(moving_variance[channel])
        moved_variance[channel] = moving_average(old, variance, share)
        return
    stddev = standard_deviation(variance, epsilon)
    moved = moving_average(np.float64(moving_stddev[channel]), stddev, share)
    moved_stddev[channel] = moved
    old = np.float64(moving_variance[channel])
    moved_variance[channel] = variance_from_stddev(moved, epsilon) if moves else old
    old = np.float64(renorm_mean[channel])
    moved_renorm_mean[channel] = moving_average(old, mean, renorm_share)
    old = np.float64(renorm_stddev[channel])
    moved_renorm_stddev[channel] = moving_average(old, stddev, renorm_share)


def merge_statistics(
    count_a, mean_a, variance_a, count_b, mean_b, variance_b, kinds, channels, count, mean,
    variance,
):  # fmt: skip
    """The statistics of two sets together, (channels,) float64, from parameters."""
    channel = cuda.grid(1)
    if channel < channels:
        number_a = parameter(count_a, kinds[0], channel)
        number_b = parameter(count_b, kinds[3], channel)
        number, merged, m2 = merge(
            number_a,
            parameter(mean_a, kinds[1], channel),
            parameter(variance_a, kinds[2], channel) * number_a,
            number_b,
            parameter(mean_b, kinds[4], channel),
            parameter(variance_b, kinds[5], channel) * number_b,
        )
        count[channel], mean[channel] = number, merged
        variance[channel] = variance_of(number, m2)
