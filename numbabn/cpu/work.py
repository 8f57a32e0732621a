"""What steps work on: arrays, their cut, the tables beside them, and where in memory these are.

A table is (rows, n): a row holds one value of every column, or channel, in memory without gaps.
The rows of some are the fields of a NamedTuple, and are read and written so, a column at a time.
"""

from typing import Any, NamedTuple

from ..channels import SAVED


class Pivot(NamedTuple):
    """What the moments of a column are taken about."""

    pivot: Any


class Mean(NamedTuple):
    """The mean of a column, in two parts; see `formulas.centered`."""

    mean_high: Any
    mean_low: Any


class Forward(NamedTuple):
    """The coefficients of y = (x − mean) · scale + shift."""

    mean_high: Any
    mean_low: Any
    scale: Any
    shift: Any


class Backward(NamedTuple):
    """The coefficients of dx = scale · ((dy − mean_dy) − slope · (x − mean))."""

    mean_high: Any
    mean_low: Any
    scale: Any
    mean_dy_high: Any
    mean_dy_low: Any
    slope: Any


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations."""

    count: Any
    mean: Any
    m2: Any


class Numbers(NamedTuple):
    """What steps read beside tables."""

    epsilon: float
    rmin: float
    rmax: float
    dmax: float


NUMBERS = len(Numbers._fields)


class Call(NamedTuple):
    """Words of a call, after those of its `Partition`; the tables of an ELEMENT mask follow."""

    scratch: int  # the size of its scratch, in float64
    reference: int  # NO_REFERENCE, BY_STDDEV or BY_VARIANCE
    mask_kind: int  # see `masks`
    mask_bytes: int
    # How many axes of the mask lead to outer positions, and to those of a run.
    mask_outer: int
    mask_inner: int


# What a forward of renorm corrects against: what the reference's spread is.
NO_REFERENCE, BY_STDDEV, BY_VARIANCE = range(3)

# Rows of `per_channel`, float64: those of `channels` that a forward saves, then what it has
# besides, or what a backward finds.
BETA, REFERENCE_MEAN, REFERENCE_SPREAD = range(SAVED, SAVED + 3)
DGAMMA, DBETA, SUM_DY_XHAT = range(SAVED, SAVED + 3)
SUM_DY = DBETA  # which it is
PER_CHANNEL = SAVED + 3
# Rows of sums over a block or, of gradients, over a split, float64.
NUMBER, SUM_1, SUM_2 = range(3)
# Rows of sums in the dtype of the coefficients, after the pivot.
PART_1, PART_2 = range(1, 3)
PARTS = 3
# Rows of `partial`: `Moments` in a forward, sums in a backward.
PARTIAL = 3
# Rows of `coefficients`: those of a `Mean`, a `Forward` or a `Backward`, the first ones.
COEFFICIENTS = len(Backward._fields)


class Arrays(NamedTuple):
    """Flat memory, as `elements.load` reads it: float32, float64, uint16 (float16 bits) or
    int16 (bfloat16 bits)."""

    x: Any
    dy: Any
    out: Any


class Work(NamedTuple):
    """What every step of a call gets; what a step has no use for may be anything."""

    arrays: Arrays
    cut: Any  # a `Partition`
    mask: Any  # a `masks.StepMask`
    reference: int
    numbers: Numbers
    per_channel: Any  # (PER_CHANNEL, channels) float64
    partial: Any  # (splits, PARTIAL, columns) float64: what each split found
    # (COEFFICIENTS, columns) float32, or float64 where x is: what the last step applies
    coefficients: Any


class Block(NamedTuple):
    """A block of a tile: half-open ranges."""

    first_row: int
    last_row: int
    # Of each run.
    first: int
    last: int
    # Of columns.
    first_column: int
    width: int


class MaskScratch(NamedTuple):
    """Where a task puts what it finds out of a mask."""

    on_row: Any  # (width + a line,) uint8: the mask of a row, a byte for each column
    offsets: Any  # int64, one for each element of a run: where its byte is, in channels-first


class Adding(NamedTuple):
    """What a block is added to, and what that takes; a column of tables is one of the block."""

    columns: Any  # table of what the terms of a column are taken with: its pivot, or its mean
    parts: Any  # (PARTS, width), scratch
    sums: Any  # (3, width), float64
    scratch: Any  # a `MaskScratch`; of gradients, which know no mask, not used


class Places(NamedTuple):
    """Where in the scratch of a call its parts begin, and its size, in float64."""

    numbers: int
    per_channel: int
    partial: int
    coefficients: int  # float32 ones fill half of their part
    size: int


def places(cut):
    """The places for a cut."""
    per_channel = NUMBERS
    partial = per_channel + PER_CHANNEL * cut.channels
    coefficients = partial + cut.splits * PARTIAL * cut.columns
    size = coefficients + COEFFICIENTS * cut.columns
    return Places(0, per_channel, partial, coefficients, size)
