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
# Rows of 2 KB of float32: 256 are too short for what is done once a row, 1024 take a quarter
# longer in the caches; so long as there are so many rows that what belongs to a column does not
# show.
GOOD_ROW = 512
LEAST_ROWS = 512
# A fused task's rows, of 1 KB: narrower ones are too far apart for the processor's prefetch.
FUSED_ROW = 256
# Elements of a channel in a block of runs: its moments are merged once in so many, in some
# 100 ns against 1000 and more, and a second pass finds 64 KB in the second-level cache.
RUN_BLOCK = 1 << 14
# Rows of a block: the block's moments are merged in float64 once in so many rows, which
# must not show beside the rows themselves.
ROW_BLOCK = 256
# Columns of a tile: rows of 8 KB are long enough for the processor's own prefetch, and what
# belongs to 2048 columns, 40 to 60 KB, is still in the second-level cache.
ROW_TILE = 2048
# Half of the smallest second-level cache in common use (1 MB): what a fused task may hold.
FUSED_BYTES = 512 * 1024
# Contiguous bytes worth a jump: the processor's prefetch starts anew after it. Worth more than
# a task that fits in the second-level cache.
LEAST_CONTIGUOUS = 64 * 1024
# Tensors from so many bytes on are read from memory and written past the cache: with a last-level
# cache of 32 MB, 8 MB of float32 took 1.3 times as long so, 12 MB as long, 16 MB 0.8.
LARGE_BYTES = 12 << 20
# Enough tasks for the threads of a large machine to share evenly,
TASKS = 32
# of so many elements at least: a task costs a microsecond besides, they three or more.
TASK_ELEMENTS = 1 << 15


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
    inner: int  # elements of a run
    rows: int  # outer positions, or rows
    tile: int  # columns of a task
    tiles: int
    block_rows: int
    piece: int  # elements of a run that a block takes
    pieces: int
    splits: int
    split_blocks: int  # blocks of a split
    large: bool  # whether tensor and output are too large for the last-level cache


@lru_cache(maxsize=1024)
def partition(outer: int, channels: int, inner: int, itemsize: int, can_fold: bool):
    """The cut of an (outer, channels, inner) tensor, and whether it goes by rows."""
    if outer * channels * inner == 0:
        # Nothing to read, and still a result for each channel.
        return _by_rows(0, channels, 1, itemsize, can_fold), True
    if inner < LEAST_RUN:
        return _by_rows(outer, channels, inner, itemsize, can_fold), True
    return _by_runs(outer, channels, inner, itemsize), False


def _task_limit(total):
    """How many tasks a tensor of `total` elements is worth."""
    return max(1, min(TASKS, total // TASK_ELEMENTS))


def _by_rows(outer, channels, inner, itemsize, can_fold):
    total = outer * channels * inner
    width = channels * inner
    fold = 1
    least = max(LEAST_ROW, min(GOOD_ROW, total // LEAST_ROWS))
    if 0 < width < least and can_fold:
        fold = lcm(width, LEAST_RUN) // width
        fold *= ceil(least / (fold * width))
    columns = fold * channels * inner
    rows = ceil(total / max(1, columns))
    # A tile may not cut a channel's neighbours apart, nor a folded row.
    step = columns if fold > 1 else inner
    fused = FUSED_BYTES // max(1, rows * itemsize)
    tasks = _task_limit(total)
    # Rows of several positions cannot be cut.
    if fold == 1 and fused >= FUSED_ROW and columns >= tasks * LEAST_ROW:
        tile, splits = min(fused, ROW_TILE, ceil(columns / tasks)), 1
    else:
        tile, splits = ROW_TILE, tasks
    tile = max(1, min(columns, max(1, tile // step) * step))
    tiles = ceil(columns / tile)
    # Tiles of one width, nearly: a narrow last one would leave its thread without work.
    unit = step * LEAST_RUN if step * LEAST_RUN <= tile else step
    tile = max(1, min(columns, ceil(columns / (tiles * unit)) * unit)) if tiles else tile
    tiles = ceil(columns / tile)
    return _cut(
        ceil(rows / ROW_BLOCK), 1 if splits == 1 else ceil(splits / max(1, tiles)), itemsize,
        total=total, channels=channels, columns=columns, fold=fold, repeat=inner, inner=inner,
        rows=rows, tile=tile, tiles=tiles, block_rows=ROW_BLOCK, piece=1, pieces=1,
    )  # fmt: skip


def _by_runs(outer, channels, inner, itemsize):
    channel_bytes = max(1, outer * inner * itemsize)
    tile = max(FUSED_BYTES // channel_bytes, ceil(LEAST_CONTIGUOUS / (inner * itemsize)))
    total = outer * channels * inner
    tasks = _task_limit(total)
    tile = max(1, min(tile, channels // tasks))
    tiles = ceil(channels / tile)
    piece = min(inner, RUN_BLOCK)
    pieces = ceil(inner / piece)
    block_rows = max(1, RUN_BLOCK // inner)
    return _cut(
        ceil(outer / block_rows) * pieces,
        1 if tiles >= tasks // 2 else ceil(tasks / max(1, tiles)), itemsize,
        total=total, channels=channels, columns=channels, fold=1, repeat=1, inner=inner,
        rows=outer, tile=tile, tiles=tiles, block_rows=block_rows, piece=piece, pieces=pieces,
    )  # fmt: skip


def _cut(blocks, splits, itemsize, **sizes):
    """The cut of these sizes whose blocks make so many splits, or fewer."""
    split_blocks = max(1, ceil(blocks / splits))
    splits = max(1, ceil(blocks / split_blocks))
    large = sizes["total"] * itemsize >= LARGE_BYTES
    return Partition(splits=splits, split_blocks=split_blocks, large=large, **sizes)
