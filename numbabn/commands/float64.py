"""Batch normalization in float64 and plain NumPy, which `check` compares with.

Written from the formulas, apart from the code it judges. Arrays have one column a channel:

    x, dy     (positions, channels)
    on        (positions, channels) bool, the positions whose mask is on
    others    (channels,)
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Batch(NamedTuple):
    """What a forward found, by channel: statistics over the `n` positions that are on, r and d."""

    n: Array
    mean: Array
    variance: Array
    r: Array
    d: Array


def statistics(x: Array, on: Array) -> Batch:
    n = on.sum(axis=0)
    divisor = np.maximum(n, 1)
    mean = np.where(on, x, 0).sum(axis=0) / divisor
    # The rounding of the first mean shows where the offset is large; the rest takes it out.
    mean += np.where(on, x - mean, 0).sum(axis=0) / divisor
    variance = (np.where(on, x - mean, 0) ** 2).sum(axis=0) / divisor
    return Batch(n, mean, variance, np.ones_like(mean), np.zeros_like(mean))


def renormed(
    batch: Batch, reference_mean: Array, reference_stddev: Array, limits: Any, epsilon: float
) -> Batch:
    """`batch` with the correction towards a reference (Ioffe 2017, section 3).

    limits: has rmin, rmax and dmax
    """
    reference = np.maximum(reference_stddev, np.sqrt(epsilon))
    r = np.clip(np.sqrt(batch.variance + epsilon) / reference, limits.rmin, limits.rmax)
    d = np.clip((batch.mean - reference_mean) / reference, -limits.dmax, limits.dmax)
    return batch._replace(r=r, d=d)


def forward(x: Array, batch: Batch, gamma: Array, beta: Array, epsilon: float) -> Array:
    xhat = (x - batch.mean) / np.sqrt(batch.variance + epsilon)
    return gamma * (xhat * batch.r + batch.d) + beta


def backward(
    dy: Array, x: Array, batch: Batch, gamma: Array, on: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """dx, dgamma, dbeta of `forward`, through the statistics of the positions that are on.

    With `on` False everywhere the statistics are constants: the gradient of inference.
    """
    rstd = 1 / np.sqrt(batch.variance + epsilon)
    # A zero dy counts for nothing, whatever x holds there.
    xhat = np.where(on | (dy != 0), (x - batch.mean) * rstd, 0)
    dgamma = (dy * (xhat * batch.r + batch.d)).sum(axis=0)
    dbeta = dy.sum(axis=0)
    through = (dbeta + xhat * (dy * xhat).sum(axis=0)) / np.maximum(batch.n, 1)
    return gamma * batch.r * rstd * (dy - np.where(on, through, 0)), dgamma, dbeta
