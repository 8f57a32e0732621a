"""How a tensor is cut into blocks of threads.

The cut follows from the shape, the item size and the kind of mask, never from the device: so
the same input gives the same bits wherever it runs.

A thread keeps to one *vector* of neighbouring elements in each row, and walks along
*positions*; a block is `x_lanes` vectors wide and `y_lanes` positions deep, both powers of two.

- By rows (channels-last, and short runs): a vector is 16 bytes of a row, each element of it a
  channel of its own, and a position is a row. Neighbouring threads have neighbouring vectors.
- By runs (channels-first): a thread keeps to one channel, and its positions are the vectors of
  that channel's runs. Neighbouring threads have neighbouring positions.

Both are one walk: from position to position the address moves by `step`, and by `carry` besides
where a run ends; a row is a run of one vector.
"""

from functools import lru_cache
from math import gcd, prod
from typing import NamedTuple

# Threads of a block: enough to hide latency with few blocks on a multiprocessor, and few enough
# that a block with little work wastes little.
THREADS = 256
# A run shorter than this many vectors of 16 bytes leaves sectors of 32 bytes half used, because
# a warp spans many runs: such tensors go by rows.
LEAST_RUN = 4
# Rows that are worth walking where runs cannot be read in vectors and rows can.
LEAST_ROWS = 16
# Columns of several to a channel: what 32 bits count.
MOST_COLUMNS = 1 << 31
# Vectors that a thread reads before it computes, of which splits are made, so that no chunk but a
# column's last is in part beyond the end.
CHUNK = 4
# Chunks that a thread walks at least, where there are that many: one until there are blocks for
# four on each multiprocessor of a large device, which hide more than a block costs that idles
# while it reduces; from then on eight, since reducing costs as much as some ten vectors.
LEAST_CHUNKS, LEAST_BLOCKS = 1, 528
CHUNKS = 8
# Blocks at most: some four waves of the largest device, so that the last wave's idle part is
# small; and each block leaves a partial result to be folded.
MOST_BLOCKS = 2048
# The same of kernels that leave nothing to be folded: a thread has coefficients to read first,
# which costs as much as a chunk.
APPLIED_CHUNKS, MOST_APPLIED = 4, 1 << 16


class Partition(NamedTuple):
    """The cut; plain integers, as the kernels take them."""

    total: int  # elements of the tensor
    channels: int
    columns: int  # partial results of a split: elements of a row, or channels
    repeat: int  # neighbouring columns of one channel
    vectors: int  # vectors of a row, or channels
    vector_step: int  # elements between two of them
    positions: int  # of each
    run: int  # positions of a run
    run_step: int  # elements between the starts of two runs
    step: int  # elements from a thread's position to its next
    carry: int  # elements more where that passes the end of a run
    step_runs: int  # the same in runs
    step_inner: int  # and positions within a run
    split: int  # positions of a block
    splits: int
    tiles: int
    x_bits: int  # log2 of x_lanes
    y_bits: int
    by_rows: int


class Walk(NamedTuple):
    """What there is to cut: the vectors of a tensor, and the positions of each."""

    columns: int
    repeat: int
    vectors: int
    vector_step: int
    positions: int
    run: int
    run_step: int
    vector: int  # elements between two positions of a run
    by_rows: bool


@lru_cache(maxsize=4096)
def partition(
    outer: int,
    channels: int,
    inner: int,
    vector: int,
    aligned: bool,
    masked: bool,
    folded: bool = True,
    threads: int = THREADS,
) -> tuple[Partition, int]:
    """The cut of an (outer, channels, inner) tensor, and how many elements are read at once.

    vector: elements in 16 bytes
    aligned: the memory begins at a multiple of them
    masked: rows may not be joined, since each has its own mask
    folded: every block leaves partial results
    """
    total, width = outer * channels * inner, channels * inner
    joined = 1 if masked or not width else vector // gcd(width, vector)
    wide_rows = aligned and width * joined % vector == 0 and total % vector == 0
    wide_runs = aligned and inner % vector == 0
    # Runs that vectors do not fit go by rows where those do, and there are enough of them.
    worth_rows = wide_rows and joined == 1 and outer >= LEAST_ROWS and not wide_runs
    if (inner >= LEAST_RUN * vector and not worth_rows) or (inner > 1 and width >= MOST_COLUMNS):
        wide = vector if wide_runs else 1
        cut = _by_runs((outer, channels, inner), wide, threads, folded)
        return cut, wide
    half = vector // 2
    if not wide_rows and joined == 1 and aligned and width % half == 0 and masked:
        # A mask has rows of their own.
        vector = half
    elif not wide_rows:
        joined, vector = 1, 1
    cut = _by_rows((outer, channels, inner), joined * width, vector, threads, folded)
    return cut, vector


def _by_rows(
    shape: tuple[int, int, int], columns: int, vector: int, threads: int, folded: bool
) -> Partition:
    _, channels, inner = shape
    total = prod(shape)
    vectors = columns // vector
    # A warp's width of vectors is 512 contiguous bytes.
    x_lanes = min(_power(vectors), 32, threads)
    rows = -(-total // max(1, columns))
    walk = Walk(
        columns=columns, repeat=inner, vectors=vectors, vector_step=vector,
        positions=rows, run=1, run_step=columns, vector=vector, by_rows=True,
    )  # fmt: skip
    return _cut(total, channels, walk, x_lanes, threads, folded)


def _by_runs(shape: tuple[int, int, int], vector: int, threads: int, folded: bool) -> Partition:
    outer, channels, inner = shape
    run = inner // vector
    # Several channels share a block where one has too few positions for its threads.
    x_lanes = max(1, min(threads // _power(outer * run), _power(channels)))
    walk = Walk(
        columns=channels, repeat=1, vectors=channels, vector_step=inner,
        positions=outer * run, run=run, run_step=channels * inner, vector=vector, by_rows=False,
    )  # fmt: skip
    return _cut(outer * channels * inner, channels, walk, x_lanes, threads, folded)


def _cut(
    total: int, channels: int, walk: Walk, x_lanes: int, threads: int, folded: bool
) -> Partition:
    y_lanes = threads // x_lanes
    tiles = -(-walk.vectors // x_lanes)
    chunks = walk.positions * walk.vectors // (threads * CHUNK)
    if folded:
        blocks = max(min(LEAST_BLOCKS, chunks // LEAST_CHUNKS), chunks // CHUNKS)
        blocks = min(MOST_BLOCKS, blocks)
    else:
        blocks = max(min(LEAST_BLOCKS, chunks), chunks // APPLIED_CHUNKS)
        blocks = min(MOST_APPLIED, blocks)
    splits = max(1, blocks // max(1, tiles))
    # Whole chunks, so that no thread has more than one more than another.
    whole = y_lanes * CHUNK
    split = max(1, -(-walk.positions // (splits * whole))) * whole
    splits = max(1, -(-walk.positions // split))
    step_runs, step_inner = divmod(y_lanes, walk.run)
    return Partition(
        total=total,
        channels=channels,
        columns=walk.columns,
        repeat=walk.repeat,
        vectors=walk.vectors,
        vector_step=walk.vector_step,
        positions=walk.positions,
        run=walk.run,
        run_step=walk.run_step,
        step=step_runs * walk.run_step + step_inner * walk.vector,
        carry=walk.run_step - walk.run * walk.vector,
        step_runs=step_runs,
        step_inner=step_inner,
        split=split,
        splits=splits,
        tiles=tiles,
        x_bits=x_lanes.bit_length() - 1,
        y_bits=y_lanes.bit_length() - 1,
        by_rows=int(walk.by_rows),
    )


def _power(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()
