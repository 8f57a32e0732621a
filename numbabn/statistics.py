"""The statistics of a batch, and how those of parts make those of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from . import formulas
from .layout import real_values
from .targets import device_operations, on_device


@dataclass(frozen=True, eq=False)
class BatchStatistics:
    """Count, mean and biased variance of each channel, in float64.

    On a device they are arrays there, of one library, and stay as they are: reading their
    values would wait for the device. :meth:`to_host` does.

    Args:
        count: how many elements each channel has; a number serves for every channel, but not
            on a device.
        mean, variance: arrays of one shape, one value a channel. 0 where the count is 0.

    Raises:
        TypeError: something other than real numbers.
        ValueError: the shapes differ, or a count is negative.

    >>> import numpy as np
    >>> parts = np.split(np.arange(12.0).reshape(6, 2), [1, 4])
    >>> whole = BatchStatistics.merge_all(batch_statistics(part) for part in parts)
    >>> whole.mean, whole.variance
    (array([5., 6.]), array([11.66666667, 11.66666667]))
    """

    count: Any
    mean: Any
    variance: Any

    def __post_init__(self) -> None:
        if on_device(self.mean):
            device_operations().check_statistics(self.count, self.mean, self.variance)
            return
        mean = real_values(self.mean, "mean", np.shape(self.mean))
        variance = real_values(self.variance, "variance", mean.shape)
        count = real_values(self.count, "count", np.shape(self.count))
        if count.shape not in ((), mean.shape):
            raise ValueError(
                f"count must be a number or have the shape of mean, {mean.shape}, got {count.shape}"
            )
        if (count < 0).any():
            raise ValueError(f"count must not be negative, got {count.min()}")
        if count.shape != mean.shape:
            count = np.broadcast_to(count, mean.shape)
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "variance", variance)

    def merge(self, other: BatchStatistics) -> BatchStatistics:
        """The statistics of both sets together, by Chan's formula.

        Chan, Golub and LeVeque 1979, equation 2.1; associative up to rounding.

        Raises:
            TypeError: `other` is not a BatchStatistics.
            ValueError: `other` has another number of channels.
        """
        if not isinstance(other, BatchStatistics):
            raise TypeError(f"other must be a BatchStatistics, got {type(other).__name__}")
        if on_device(self.mean) or on_device(other.mean):
            return BatchStatistics(
                *device_operations().merge(
                    (self.count, self.mean, self.variance),
                    (other.count, other.mean, other.variance),
                )
            )
        if other.mean.shape != self.mean.shape:
            raise ValueError(
                f"statistics to be merged must have one shape, "
                f"got {self.mean.shape} and {other.mean.shape}"
            )
        count, mean, m2 = formulas.merge(
            self.count, self.mean, self.variance * self.count,
            other.count, other.mean, other.variance * other.count,
        )  # fmt: skip
        return BatchStatistics(count, mean, formulas.variance_of(count, m2))

    def to_host(self) -> BatchStatistics:
        """The same as NumPy arrays; waits for the device where they are on one."""
        if not on_device(self.mean):
            return self
        copy = device_operations().to_host
        return BatchStatistics(copy(self.count), copy(self.mean), copy(self.variance))

    @staticmethod
    def merge_all(statistics: Iterable[BatchStatistics]) -> BatchStatistics:
        """The statistics of all sets together.

        Raises:
            ValueError: there are none, or their shapes differ.
        """
        parts = list(statistics)
        for part in parts:
            if not isinstance(part, BatchStatistics):
                raise TypeError(f"merge_all needs BatchStatistics, got {type(part).__name__}")
        if not parts:
            raise ValueError("merge_all needs at least one BatchStatistics, got none")
        return reduce(BatchStatistics.merge, parts)
