"""What belongs to channels, as launchers take it.

Arrays are (channels,), as the library of `x` describes them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Rows of `saved`, (SAVED, channels) float64: what a forward keeps for its backward.
COUNT, MEAN, VARIANCE, R, D, GAMMA = range(6)
SAVED = 6
# The statistics that a layer moves, in Keras's order; the last three exist with renorm only.
STATISTICS = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
# Rows of what a backward gives, (GRADIENTS, channels).
DGAMMA, DBETA = range(2)
GRADIENTS = 2
# Rows of the sums over a batch that its gradients take, (SUMS, channels) float64.
SUM_DY, SUM_DY_XHAT = range(2)
SUMS = 2


class Parameters(NamedTuple):
    """The affine parameters; None for 1 and 0."""

    gamma: Any
    beta: Any


class Reference(NamedTuple):
    """What a forward of renorm corrects against."""

    mean: Any
    spread: Any
    is_variance: bool  # whether `spread` is a variance, of which epsilon makes a deviation
    limits: tuple[float, float, float]  # rmin, rmax, dmax


class Moving(NamedTuple):
    """The statistics that a training forward moves, and where they go.

    Without `renorm_momentum` there are two, mean and variance; with it there are five: mean,
    variance, stddev, renorm mean and renorm stddev. All of one dtype, float32 or float64.
    """

    statistics: tuple[Any, ...]
    moved: tuple[Any, ...]  # may be the same arrays
    momentum: float
    renorm_momentum: float | None
    skip_nonfinite: bool  # whether statistics that are infinite or NaN move nothing
