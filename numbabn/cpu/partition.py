"""How a tensor is cut into tasks and blocks.

The cut follows from the shape, the item size and the kind of mask, never from the number
of threads: so the same input gives the same bits with any number of them.

A *task* is what one thread does at a stretch: a tile of columns over one split of the
blocks. A *block* is what the statistics take in one step, two-pass where needed, so it
fits in the cache. With one split a task sees all of its columns, and goes on to the second
half (normalize, or the gradient) while they are in the cache; with several, all tasks
finish the first half, the results are merged, and the tensor is swept a second time.
"""

from functools import lru_cache
from math import ceil, lcm
from typing import NamedTuple

# A run shorter than a 512-bit vector of float32 leaves lanes empty: such tensors go by rows.
LEAST_RUN = 16
# Rows of at least four vectors, so that loop overhead is small against them.
LEAST_ROW = 64
# float32 sums of a block: 4096 terms in 64 lanes lose nothing that shows at 2e-6, and
# 16 KB of float32 stay in a 32 KB first-level cache for a second pass.
RUN_BLOCK = 4096
# Rows of a block: the block's moments are merged in float64 once in so many rows, which
# must not show beside the rows themselves.
ROW_BLOCK = 256
# Columns of a tile: sums and pivot of 512 columns are 6 KB of first-level cache.
ROW_TILE = 512
# Half of the smallest second-level cache in common use (1 MB): what a fused task may hold.
FUSED_BYTES = 512 * 1024
# Contiguous bytes worth a jump: below half a page, hardware prefetch is lost at each row.
LEAST_CONTIGUOUS = 2048
# Enough tasks for the threads of a large machine to share evenly,
TASKS = 32
# of so many elements at least: a task costs a microsecond besides, they some ten.
TASK_ELEMENTS = 1 << 14


class Partition(NamedTuple):
    """The cut; plain integers, as the kernels take them.

    A column is a channel, or, in row layout, one of several that belong to one channel:
    column j holds channel ``j // repeat % channels``, `fold` positions a row.
    """

    total: int  # elements of the tensor
    channels: int
    columns: int  # channels * repeat * fold
    fold: int  # positions that share a row (row layout of narrow tensors)
    repeat: int  # neighbouring columns of one channel (row layout of short runs)
    rows: int  # outer positions, or rows
    tile: int  # columns of a task
    tiles: int
    block_rows: int
    piece: int  # elements of a run that a block takes
    pieces: int
    splits: int
    split_blocks: int  # blocks of a split


@lru_cache(maxsize=1024)
def partition(outer: int, channels: int, inner: int, itemsize: int, masked: bool):
    """The cut of an (outer, channels, inner) tensor, and whether it goes by rows."""
    if outer * channels * inner == 0:
        # Nothing to read, and still a result for each channel.
        return _by_rows(0, channels, 1, itemsize, masked), True
    if inner < LEAST_RUN:
        return _by_rows(outer, channels, inner, itemsize, masked), True
    return _by_runs(outer, channels, inner, itemsize), False


def _task_limit(total):
    """How many tasks a tensor of `total` elements is worth."""
    return max(1, min(TASKS, total // TASK_ELEMENTS))


def _by_rows(outer, channels, inner, itemsize, masked):
    total = outer * channels * inner
    width = channels * inner
    fold = 1
    if 0 < width < LEAST_ROW and not masked:
        fold = lcm(width, LEAST_RUN) // width
        fold *= ceil(LEAST_ROW / (fold * width))
    columns = fold * channels * inner
    rows = ceil(total / max(1, columns))
    # A tile may not cut a channel's neighbours apart, nor a folded row.
    step = columns if fold > 1 else inner
    fused = FUSED_BYTES // max(1, rows * itemsize)
    tasks = _task_limit(total)
    if fused >= LEAST_ROW and columns >= tasks * LEAST_ROW:
        tile, splits = min(fused, ROW_TILE, ceil(columns / tasks)), 1
    else:
        tile, splits = ROW_TILE, tasks
    tile = max(1, min(columns, max(1, tile // step) * step))
    tiles = ceil(columns / tile)
    # Tiles of one width, nearly: a narrow last one would leave its thread without work.
    unit = step * LEAST_RUN if step * LEAST_RUN <= tile else step
    tile = max(1, min(columns, ceil(columns / (tiles * unit)) * unit)) if tiles else tile
    tiles = ceil(columns / tile)
    blocks = ceil(rows / ROW_BLOCK)
    return _cut(
        total, channels, columns, fold, inner, rows, tile, tiles, ROW_BLOCK, 1, 1, blocks,
        1 if splits == 1 else ceil(splits / max(1, tiles)),
    )  # fmt: skip


def _by_runs(outer, channels, inner, itemsize):
    channel_bytes = max(1, outer * inner * itemsize)
    tile = max(FUSED_BYTES // channel_bytes, ceil(LEAST_CONTIGUOUS / (inner * itemsize)))
    tasks = _task_limit(outer * channels * inner)
    tile = max(1, min(tile, channels // tasks))
    tiles = ceil(channels / tile)
    piece = min(inner, RUN_BLOCK)
    pieces = ceil(inner / piece)
    block_rows = max(1, RUN_BLOCK // inner)
    blocks = ceil(outer / block_rows) * pieces
    splits = 1 if tiles >= tasks // 2 else ceil(tasks / max(1, tiles))
    return _cut(
        outer * channels * inner, channels, channels, 1, 1, outer, tile, tiles, block_rows,
        piece, pieces, blocks, splits,
    )  # fmt: skip


def _cut(
    total, channels, columns, fold, repeat, rows, tile, tiles, block_rows, piece, pieces,
    blocks, splits,
):  # fmt: skip
    split_blocks = max(1, ceil(blocks / splits))
    splits = max(1, ceil(blocks / split_blocks))
    return Partition(
        total, channels, columns, fold, repeat, rows, tile, tiles, block_rows, piece, pieces,
        splits, split_blocks,
    )  # fmt: skip
