"""The kernel of statistics: running moments of a thread's columns, merged over the block.

The names that `compile` binds and the arguments are those of `kernels`.
"""

import numpy as np

from .arithmetic import merge_in_two
from .kernels import (
    CHUNK,
    COMPUTE,
    FETCHED,
    IN_RUNS,
    LANES,
    MASK,
    NUMBERS,
    SHARED,
    THREADS,
    VALUES,
    VECTOR,
    WORDS,
    fetch,
    load,
    widen,
)
from .masks import ELEMENT, NONE, ROW
from .runtime import cuda, device_function
from .walk import (
    address_of,
    is_on,
    is_row_on,
    is_whole,
    lanes_of,
    mask_start,
    next_of,
    start_of,
)
from .work import COUNT_ON, HIGH, LOW, M2, MOMENTS

# Rows whose bytes are read at a time, before those of the rows before are used up: with half of
# them on, a chunk of four.
WINDOW = 8


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
