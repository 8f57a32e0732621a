"""The kernels: sums over positions, and what is then applied; those of a forward are `moments`.

A training forward is three launches: `statistics` leaves the moments of every column in each
split, `fold_forward` merges them in float64 and makes of them what a forward saves and the
coefficients of each channel, and `normalize` applies those. A backward is three like them. The
folds are launches of their own rather than the work of the last block: a counter to find the
last block would need a launch to set it to zero, and a fold of its own needs no atomics, spreads
over blocks, and leaves the kernels over elements without float64 arithmetic.

`compile` binds these names for each variant:

    THREADS             threads of a block, a power of two
    COMPUTE             np.float32, or np.float64 where x is
    VECTOR              elements that a thread reads at once
    LANES               columns of a thread: VECTOR by rows, else 1
    CHUNK               reads in flight
    MASK                see `masks`
    VALUES, SHARED, OWN CHUNK * VECTOR, LANES * THREADS and 3 * LANES
    NUMBERS             LANES where the mask differs between columns, else 1
    IN_RUNS             False where positions are rows, as the layout of the variant says
    WORDS, FETCHED      words of what a thread reads at once, and of a chunk
    load, fetch, widen, store
                        of `elements`
    element_y, element_gradients, element_dx
                        of `formulas`, see `arithmetic`
    read                of `elements`: a parameter as COMPUTE
    absorb, apply       of `moments` and below, with the same constants

Constants, and not what follows from the length of an array, and loops that step over a chunk
rather than multiply: only loops of which every compiler sees the length from the start leave a
thread's arrays in registers.

and these are the arguments that kernels share:

    x, dy, out      (total,) float32, float64, uint16 (float16) or int16 (bfloat16)
    on              (n,) uint8, the mask
    steps           18 integers, see `masks`
    cut             a `Partition`
    partial         (splits, MOMENTS or SUMS, columns) COMPUTE
    saved           (SAVED, channels) float64, the rows named in `channels`
    coefficients    (FORWARD or BACKWARD, channels) COMPUTE
"""

from typing import Any

import numpy as np

from ..channels import MEAN
from . import elements
from .arithmetic import Backward, Forward, Mean, scale_shift, standard_deviation
from .elements import ABSENT
from .masks import ELEMENT, NONE, OUTER, ROW, offset
from .runtime import cuda
from .walk import address_of, channel_of, is_on, lanes_of, mask_start, next_of, start_of
from .work import PIVOT, PIVOT_DY, SCALE, SHIFT, SLOPE, SUM_DY, SUM_DY_X, SUMS

# What `compile` binds; these values are for readers only.
THREADS = 256
COMPUTE: Any = np.float32
VECTOR = 4
LANES = 4
CHUNK = 4
MASK = NONE
VALUES, SHARED, OWN, NUMBERS = 16, 1024, 12, 1
WORDS, FETCHED = 4, 16
IN_RUNS = True
load: Any = None
fetch: Any = None
widen: Any = None
store: Any = None
read: Any = elements.parameter
element_y: Any = None
element_gradients: Any = None
element_dx: Any = None


def gradient_sums(dy, x, saved, partial, cut):
    """Σ dy and Σ dy · (x − pivot) of a block's columns into `partial`.

    The pivot is the mean, rounded; the fold makes up for that.
    """
    zero = COMPUTE(0)
    words_dy = cuda.local.array(FETCHED, np.uint32)
    words_x = cuda.local.array(FETCHED, np.uint32)
    gradients = cuda.local.array(VECTOR, COMPUTE)
    values = cuda.local.array(VECTOR, COMPUTE)
    pivot = cuda.local.array(LANES, COMPUTE)
    sum_dy = cuda.local.array(LANES, COMPUTE)
    sum_dy_x = cuda.local.array(LANES, COMPUTE)
    chunk_dy = cuda.local.array(LANES, COMPUTE)
    chunk_dy_x = cuda.local.array(LANES, COMPUTE)
    there = cuda.local.array(CHUNK, np.bool_)
    thread, block = cuda.threadIdx.x, cuda.blockIdx.x
    vector, position, last = start_of(cut, block, thread)
    run, inner, address = address_of(cut, vector, position, VECTOR)
    for column in range(LANES):
        mean = saved[MEAN * cut.channels + channel_of(cut, vector * LANES + column)]
        pivot[column] = COMPUTE(mean)
        sum_dy[column], sum_dy_x[column] = zero, zero
    height = 1 << cut.y_bits
    while position < last:
        for k in range(CHUNK):
            there[k] = position + k * height < last and address < cut.total
            if there[k]:
                fetch(dy, address, words_dy, k * WORDS)
                fetch(x, address, words_x, k * WORDS)
            run, inner, address = next_of(cut, run, inner, address, IN_RUNS)
        # The chunk first, then all of it at once: fewer roundings at the size of the sum.
        for column in range(LANES):
            chunk_dy[column], chunk_dy_x[column] = zero, zero
        for k in range(CHUNK):
            if there[k]:
                widen(dy, words_dy, k * WORDS, gradients, 0)
                widen(x, words_x, k * WORDS, values, 0)
                for lane in range(VECTOR):
                    column = lane % LANES
                    c = Mean(pivot[column], zero)
                    term, product = element_gradients(gradients[lane], values[lane], c, True)
                    chunk_dy[column] += term
                    chunk_dy_x[column] += product
        for column in range(LANES):
            sum_dy[column] += chunk_dy[column]
            sum_dy_x[column] += chunk_dy_x[column]
        position += CHUNK * height
    shared_dy = cuda.shared.array(SHARED, COMPUTE)
    shared_dy_x = cuda.shared.array(SHARED, COMPUTE)
    x_lane, y_lane = lanes_of(cut, thread)
    width = 1 << cut.x_bits
    mine = (y_lane << cut.x_bits) + x_lane
    for column in range(LANES):
        shared_dy[column * THREADS + mine] = sum_dy[column]
        shared_dy_x[column * THREADS + mine] = sum_dy_x[column]
    cuda.syncthreads()
    half = THREADS // 2
    while half >= width:
        if mine < half:
            for column in range(LANES):
                place = column * THREADS + mine
                shared_dy[place] += shared_dy[place + half]
                shared_dy_x[place] += shared_dy_x[place + half]
        cuda.syncthreads()
        half //= 2
    if y_lane == 0:
        row = block // cut.tiles * SUMS * cut.columns
        for lane in range(LANES):
            column = vector * LANES + lane
            if column < cut.columns:
                place = lane * THREADS + mine
                partial[row + SUM_DY * cut.columns + column] = shared_dy[place]
                partial[row + SUM_DY_X * cut.columns + column] = shared_dy_x[place]


# Applying


def apply(x, out, cut, place, coefficients, values, addresses):
    """out = y at a thread's positions; `compile` makes it a device function.

    place               vector, position and last, as `start_of` gives them
    coefficients        (3, LANES) COMPUTE: pivot, scale and shift of the thread's columns
    values, addresses   (VALUES,) COMPUTE and (CHUNK,) int64, to work in
    """
    zero = COMPUTE(0)
    vector, position, last = place
    run, inner, address = address_of(cut, vector, position, VECTOR)
    height = 1 << cut.y_bits
    while position < last:
        for k in range(CHUNK):
            there = position + k * height < last and address < cut.total
            addresses[k] = address if there else -1
            if there:
                load(x, address, values, k * VECTOR)
            run, inner, address = next_of(cut, run, inner, address, IN_RUNS)
        for k in range(CHUNK):
            for lane in range(VECTOR):
                column, e = lane % LANES, k * VECTOR + lane
                c = Forward(
                    coefficients[column], zero, coefficients[LANES + column],
                    coefficients[2 * LANES + column],
                )  # fmt: skip
                values[e] = element_y(zero, values[e], c, True)
            if addresses[k] >= 0:
                store(out, addresses[k], values, k * VECTOR)
        position += CHUNK * height


def normalize(x, coefficients, out, cut):
    """out = y, last block first: it was read last."""
    own = cuda.local.array(OWN, COMPUTE)
    values = cuda.local.array(VALUES, COMPUTE)
    addresses = cuda.local.array(CHUNK, np.int64)
    place = start_of(cut, cuda.gridDim.x - 1 - cuda.blockIdx.x, cuda.threadIdx.x)
    for column in range(LANES):
        channel = channel_of(cut, place[0] * LANES + column)
        own[column] = coefficients[PIVOT * cut.channels + channel]
        own[LANES + column] = coefficients[SCALE * cut.channels + channel]
        own[2 * LANES + column] = coefficients[SHIFT * cut.channels + channel]
    apply(x, out, cut, place, own, values, addresses)


def normalize_given(x, out, epsilon, parameters, kinds, cut):
    """The same from statistics that are given: each thread makes the coefficients of its columns.

    parameters  mean, variance, gamma and beta, no wider than COMPUTE
    """
    zero, one = COMPUTE(0), COMPUTE(1)
    own = cuda.local.array(OWN, COMPUTE)
    values = cuda.local.array(VALUES, COMPUTE)
    addresses = cuda.local.array(CHUNK, np.int64)
    place = start_of(cut, cuda.blockIdx.x, cuda.threadIdx.x)
    for column in range(LANES):
        channel = channel_of(cut, place[0] * LANES + column)
        mean, variance, gamma, beta = zero, one, one, zero
        if kinds[0] != ABSENT:
            mean = read(parameters[0], kinds[0], channel)
        if kinds[1] != ABSENT:
            variance = read(parameters[1], kinds[1], channel)
        if kinds[2] != ABSENT:
            gamma = read(parameters[2], kinds[2], channel)
        if kinds[3] != ABSENT:
            beta = read(parameters[3], kinds[3], channel)
        rstd = one / standard_deviation(variance, COMPUTE(epsilon))
        own[column] = mean
        own[LANES + column], own[2 * LANES + column] = scale_shift(gamma, beta, rstd, one, zero)
    apply(x, out, cut, place, own, values, addresses)


def gradient(dy, x, on, coefficients, out, steps, cut):
    """out = dx."""
    zero = COMPUTE(0)
    words_dy = cuda.local.array(FETCHED, np.uint32)
    words_x = cuda.local.array(FETCHED, np.uint32)
    gradients = cuda.local.array(VECTOR, COMPUTE)
    values = cuda.local.array(VECTOR, COMPUTE)
    pivot = cuda.local.array(LANES, COMPUTE)
    scale = cuda.local.array(LANES, COMPUTE)
    shift = cuda.local.array(LANES, COMPUTE)
    pivot_dy = cuda.local.array(LANES, COMPUTE)
    slope = cuda.local.array(LANES, COMPUTE)
    starts = cuda.local.array(LANES, np.int64)
    thread, block = cuda.threadIdx.x, cuda.gridDim.x - 1 - cuda.blockIdx.x
    vector, position, last = start_of(cut, block, thread)
    run, inner, address = address_of(cut, vector, position, VECTOR)
    for column in range(LANES):
        channel = channel_of(cut, vector * LANES + column)
        pivot[column] = coefficients[PIVOT * cut.channels + channel]
        scale[column] = coefficients[SCALE * cut.channels + channel]
        shift[column] = coefficients[SHIFT * cut.channels + channel]
        pivot_dy[column] = coefficients[PIVOT_DY * cut.channels + channel]
        slope[column] = coefficients[SLOPE * cut.channels + channel]
        if MASK == ELEMENT:
            starts[column] = mask_start(cut, steps, vector * LANES + column)
    height = 1 << cut.y_bits
    addresses = cuda.local.array(CHUNK, np.int64)
    runs = cuda.local.array(CHUNK, np.int64)
    inners = cuda.local.array(CHUNK, np.int64)
    while position < last:
        for k in range(CHUNK):
            there = position + k * height < last and address < cut.total
            addresses[k], runs[k], inners[k] = address if there else -1, run, inner
            if there:
                fetch(dy, address, words_dy, k * WORDS)
                fetch(x, address, words_x, k * WORDS)
            run, inner, address = next_of(cut, run, inner, address, IN_RUNS)
        for k in range(CHUNK):
            if addresses[k] >= 0:
                widen(dy, words_dy, k * WORDS, gradients, 0)
                widen(x, words_x, k * WORDS, values, 0)
                counts = True
                if MASK == ROW:
                    counts = on[offset(steps, OUTER, runs[k])] != 0
                for lane in range(VECTOR):
                    column = lane % LANES
                    if MASK == ELEMENT:
                        counts = is_on(
                            cut, on, steps, starts[column], runs[k], inners[k] * VECTOR + lane
                        )
                    c = Backward(
                        pivot[column], zero, scale[column], shift[column], pivot_dy[column], zero,
                        slope[column],
                    )  # fmt: skip
                    values[lane] = element_dx(gradients[lane], values[lane], c, counts)
                store(out, addresses[k], values, 0)
        position += CHUNK * height
