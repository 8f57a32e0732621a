"""The kernels: sums over positions, folds over partial results, and what is then applied.

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
    absorb, apply       the functions below, with the same constants

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
from .arithmetic import Backward, Forward, Mean, merge_in_two, scale_shift, standard_deviation
from .elements import ABSENT
from .masks import CHANNEL, ELEMENT, INNER, NONE, OUTER, ROW, offset
from .runtime import cuda, device_function

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

# Rows whose bytes are read at a time, before those of the rows before are used up: with half of
# them on, a chunk of four.
WINDOW = 8

# Rows of `partial`.
COUNT_ON, HIGH, LOW, M2 = range(4)
MOMENTS = 4
SUM_DY, SUM_DY_X = range(2)
SUMS = 2
# Rows of `coefficients`: the first three always, the others in a backward. What rounding leaves
# of the means, a low part, is in SHIFT: it is the same for every element of a channel.
PIVOT, SCALE, SHIFT = range(3)
FORWARD = 3
PIVOT_DY, SLOPE = range(3, 5)
BACKWARD = 5


# The walk


@device_function
def lanes_of(cut, thread):
    """Which vector of its block, and which position, a thread begins with."""
    if cut.by_rows != 0:
        return thread & ((1 << cut.x_bits) - 1), thread >> cut.x_bits
    return thread >> cut.y_bits, thread & ((1 << cut.y_bits) - 1)


@device_function
def start_of(cut, block, thread):
    """A thread's vector, and its half-open range of positions."""
    x, y = lanes_of(cut, thread)
    # 32 bits: a division of 64 takes a hundred instructions.
    split = np.int64(np.uint32(block) // np.uint32(cut.tiles))
    vector = (block - split * cut.tiles << cut.x_bits) + x
    first = split * cut.split
    last = min(first + cut.split, cut.positions)
    # A lane beyond the last vector has no positions.
    return vector, first + y, last if vector < cut.vectors else 0


@device_function
def address_of(cut, vector, position, width):
    """The run, the place in it, and the address of a position."""
    run, inner = position, 0
    if cut.run > 1:
        run, inner = position // cut.run, position % cut.run
    return run, inner, run * cut.run_step + inner * width + vector * cut.vector_step


@device_function
def advance(cut, run, inner, address):
    """The same for a thread's next position."""
    run += cut.step_runs
    inner += cut.step_inner
    address += cut.step
    if inner >= cut.run:
        inner -= cut.run
        run += 1
        address += cut.carry
    return run, inner, address


@device_function
def next_of(cut, run, inner, address, in_runs):
    """`advance`, where the compiler may know that a position is a row."""
    if in_runs:
        return advance(cut, run, inner, address)
    return run + cut.step_runs, inner, address + cut.step


@device_function
def is_whole(cut, position, last, address, chunk):
    """Whether a thread has a chunk of positions before it."""
    further = chunk - 1
    if position + (further << cut.y_bits) >= last:
        return False
    # Rows that are joined leave the last one short.
    return address + further * cut.step < cut.total or cut.by_rows == 0


@device_function
def channel_of(cut, column):
    """The channel of a column; columns beyond the last have one too, and no part in it."""
    channel = column
    if cut.repeat > 1:
        # The partition sees to it that 32 bits are enough.
        channel = np.int64(np.uint32(column) // np.uint32(cut.repeat))
    # Rows that are joined have every channel a few times.
    while channel >= cut.channels:
        channel -= cut.channels
    return channel


@device_function
def mask_start(cut, steps, column):
    """The steps in `on` to a column: to its channel, and by rows to its place in a run too."""
    start = offset(steps, CHANNEL, channel_of(cut, column))
    if cut.by_rows != 0:
        start += offset(steps, INNER, column % cut.repeat)
    return start


@device_function
def is_on(cut, on, steps, start, run, element):
    """Whether an element is on; start: of its column, element: of its run, by runs."""
    place = start + offset(steps, OUTER, run)
    if cut.by_rows == 0:
        place += offset(steps, INNER, element)
    return on[place] != 0


@device_function
def is_row_on(on, steps, row, last):
    """The byte of a row, 0 or 1; 0 beyond the last."""
    byte = np.uint8(0)
    if row < last:
        byte = on[offset(steps, OUTER, row)]
    return np.uint8(byte != 0)


# Moments


def absorb(values, weights, whole, number, high, low, m2):
    """Merge a chunk into running moments; `compile` makes it a device function.

    The chunk's own moments are taken in two passes over registers, about the running mean, so
    that no pivot far from the data can spoil them; Chan's formula merges the two.

    values      (VALUES,) the chunk, which is spoilt; element e belongs to column e % LANES
    weights     (VALUES,) 1 where an element counts, else 0
    whole       whether all of them are 1
    number      (NUMBERS,) how many elements there were before, in each column or in all
    high, low   (LANES,) their mean, in two parts: float32 alone is too coarse far from 0
    m2          (LANES,) their sum of squared deviations
    """
    zero, one = COMPUTE(0), COMPUTE(1)
    for column in range(LANES):
        before = number[column % NUMBERS]
        added = zero
        for first in range(0, VALUES, LANES):
            added += one if whole else weights[first + column]
        share = added / max(before + added, one)
        if before == zero:
            # The first that counts is near enough to begin with.
            for back in range(0, VALUES, LANES):
                e = VALUES - LANES - back + column
                high[column] = values[e] if whole or weights[e] != zero else high[column]
        pivot = high[column]
        shift = zero
        for first in range(0, VALUES, LANES):
            e = first + column
            # Selection: what does not count may be NaN.
            rest = values[e] - pivot
            values[e] = rest if whole or weights[e] != zero else zero
            shift += values[e]
        shift /= max(added, one)
        squares = zero
        for first in range(0, VALUES, LANES):
            e = first + column
            rest = values[e] - shift
            rest = rest if whole or weights[e] != zero else zero
            squares += rest * rest
        high[column], low[column], m2[column] = merge_in_two(
            before, pivot, low[column], m2[column], share, shift - low[column], squares
        )
    for column in range(NUMBERS):
        for first in range(0, VALUES, LANES):
            number[column] += one if whole else weights[first + column]


@device_function
def merge_into(number, high, low, m2, one, other):
    """Merge the moments at `one + other` into those at `one`, by Chan's formula.

    number, high, low, m2   (THREADS,) those of a column in each thread
    """
    added = number[one + other]
    before = number[one]
    if before == 0:
        number[one], high[one] = added, high[one + other]
        low[one], m2[one] = low[one + other], m2[one + other]
    elif added != 0:
        total = before + added
        delta = (high[one + other] - high[one]) + (low[one + other] - low[one])
        number[one] = total
        high[one], low[one], m2[one] = merge_in_two(
            before, high[one], low[one], m2[one], added / total, delta, m2[one + other]
        )


def statistics(x, on, partial, steps, cut):
    """The moments of a block's columns into `partial`; what is masked out is not used."""
    zero, one = COMPUTE(0), COMPUTE(1)
    values = cuda.local.array(VALUES, COMPUTE)
    weights = cuda.local.array(VALUES, COMPUTE)
    words = cuda.local.array(FETCHED, np.uint32)
    high = cuda.local.array(LANES, COMPUTE)
    low = cuda.local.array(LANES, COMPUTE)
    m2 = cuda.local.array(LANES, COMPUTE)
    number = cuda.local.array(NUMBERS, COMPUTE)
    ahead = cuda.local.array(WINDOW, np.uint8)
    starts = cuda.local.array(LANES, np.int64)
    for column in range(LANES):
        high[column], low[column], m2[column] = zero, zero, zero
        number[column % NUMBERS] = zero
    thread, block = cuda.threadIdx.x, cuda.blockIdx.x
    vector, position, last = start_of(cut, block, thread)
    run, inner, address = address_of(cut, vector, position, VECTOR)
    if MASK == ELEMENT:
        for column in range(LANES):
            starts[column] = mask_start(cut, steps, vector * LANES + column)
    height = 1 << cut.y_bits
    # The rule: chunks of which every element counts, without a question for each.
    while MASK == NONE and is_whole(cut, position, last, address, CHUNK):
        for k in range(0, FETCHED, WORDS):
            fetch(x, address, words, k)
            run, inner, address = next_of(cut, run, inner, address, IN_RUNS)
        place = 0
        for k in range(0, FETCHED, WORDS):
            widen(x, words, k, values, place)
            place += VECTOR
        absorb(values, weights, True, number, high, low, m2)
        position += CHUNK * height
    # Rows that are on, closed up: `bits` says which are, of those from `base` on that were asked.
    bits, base, asked = np.int64(0), position, position
    if MASK == ROW:
        for j in range(WINDOW):
            ahead[j] = is_row_on(on, steps, asked + j * height, last)
    while MASK == ROW and (bits != 0 or asked < last):
        if bits != 0:
            first = cuda.ffs(np.uint32(bits)) - 1
            bits >>= first
            base += first << cut.y_bits
        while (
            asked < last
            and cuda.popc(np.uint32(bits)) < CHUNK
            and asked - base <= (32 - WINDOW) << cut.y_bits
        ):
            if bits == 0:
                base = asked
            # Their bytes were read a while ago, so that nobody waits for them.
            found = np.int64(0)
            for j in range(WINDOW):
                found |= np.int64(ahead[j]) << j
            bits |= found << (asked - base >> cut.y_bits)
            asked += WINDOW << cut.y_bits
            for j in range(WINDOW):
                ahead[j] = is_row_on(on, steps, asked + j * height, last)
        if bits != 0:
            counts = True
            place = 0
            for k in range(0, FETCHED, WORDS):
                counts = bits != 0
                if counts:
                    row = base + (np.int64(cuda.ffs(np.uint32(bits)) - 1) << cut.y_bits)
                    fetch(x, row * cut.run_step + vector * cut.vector_step, words, k)
                    bits &= bits - 1
                for lane in range(VECTOR):
                    weights[place + lane] = one if counts else zero
                place += VECTOR
            place = 0
            for k in range(0, FETCHED, WORDS):
                widen(x, words, k, values, place)
                place += VECTOR
            if counts:
                absorb(values, weights, True, number, high, low, m2)
            else:
                absorb(values, weights, False, number, high, low, m2)
    while MASK != ROW and position < last:
        any_on = False
        for k in range(CHUNK):
            # Rows that are joined leave the last one short.
            there = position + k * height < last and address < cut.total
            counts_any = there and MASK != ELEMENT
            for lane in range(VECTOR):
                counts = there
                if MASK == ELEMENT and there:
                    start = starts[lane % LANES]
                    counts = is_on(cut, on, steps, start, run, inner * VECTOR + lane)
                    counts_any = counts_any or counts
                weights[k * VECTOR + lane] = one if counts else zero
            if counts_any:
                load(x, address, values, k * VECTOR)
            any_on = any_on or counts_any
            run, inner, address = next_of(cut, run, inner, address, IN_RUNS)
        if any_on:
            absorb(values, weights, False, number, high, low, m2)
        position += CHUNK * height
    shared_number = cuda.shared.array(SHARED, COMPUTE)
    shared_high = cuda.shared.array(SHARED, COMPUTE)
    shared_low = cuda.shared.array(SHARED, COMPUTE)
    shared_m2 = cuda.shared.array(SHARED, COMPUTE)
    x_lane, y_lane = lanes_of(cut, thread)
    width = 1 << cut.x_bits
    mine = (y_lane << cut.x_bits) + x_lane
    for column in range(LANES):
        shared_number[column * THREADS + mine] = number[column % NUMBERS]
        shared_high[column * THREADS + mine] = high[column]
        shared_low[column * THREADS + mine] = low[column]
        shared_m2[column * THREADS + mine] = m2[column]
    cuda.syncthreads()
    half = THREADS // 2
    while half >= width:
        if mine < half:
            for column in range(LANES):
                merge_into(
                    shared_number, shared_high, shared_low, shared_m2,
                    column * THREADS + mine, half,
                )  # fmt: skip
        cuda.syncthreads()
        half //= 2
    if y_lane == 0:
        row = block // cut.tiles * MOMENTS * cut.columns
        for lane in range(LANES):
            column = vector * LANES + lane
            if column < cut.columns:
                place = lane * THREADS + mine
                partial[row + COUNT_ON * cut.columns + column] = shared_number[place]
                partial[row + HIGH * cut.columns + column] = shared_high[place]
                partial[row + LOW * cut.columns + column] = shared_low[place]
                partial[row + M2 * cut.columns + column] = shared_m2[place]


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
