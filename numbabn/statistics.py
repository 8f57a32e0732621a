"""The statistics of a batch, and how those of parts make those of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from .arrays import Array, Described, Library
from .channels import STATISTICS, Reference
from .operands import dense
from .renorm import RenormClipping
from .targets import launchers_of, library_of, to_host


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
        ValueError: the shapes differ, or a count or a variance is negative.

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
        library = library_of(self.mean)
        mean = library.reals(self.mean, "mean", None)
        described = {
            "mean": mean,
            "variance": library.reals(self.variance, "variance", mean),
            "count": library.counts(self.count, mean),
        }
        library.check_not_negative(described["variance"], "variance")
        for name, values in described.items():
            object.__setattr__(self, name, library.array(values))

    def merge(self, other: BatchStatistics) -> BatchStatistics:
        """The statistics of both sets together, by Chan's formula.

        Chan, Golub and LeVeque 1979, equation 2.1; associative up to rounding.

        Raises:
            TypeError: `other` is not a BatchStatistics.
            ValueError: `other` has another number of channels.
        """
        if not isinstance(other, BatchStatistics):
            raise TypeError(f"other must be a BatchStatistics, got {type(other).__name__}")
        library = library_of(self.mean)
        first = library.parameter(self.mean, "mean", None)
        mine, others = self._described(library, first), other._described(library, first)
        if others[1].shape != first.shape:
            raise ValueError(
                f"statistics to be merged must have one shape, "
                f"got {first.shape} and {others[1].shape}"
            )
        flat = [dense(library, each).reshape((first.size,)) for each in (*mine, *others)]
        merged = library.empty((3, first.size), np.float64, first)
        launchers_of(library).merge_statistics(tuple(flat[:3]), tuple(flat[3:]), merged)
        return BatchStatistics(*library.rows(merged, first.shape))

    def _described(self, library: Library, like: Described) -> tuple[Described, ...]:
        given = {"count": self.count, "mean": self.mean, "variance": self.variance}
        return tuple(library.parameter(values, name, like) for name, values in given.items())

    def to_host(self) -> BatchStatistics:
        """The same as NumPy arrays; waits for the device where they are on one."""
        values = (self.count, self.mean, self.variance)
        found = [to_host(each) for each in values]
        if all(one is other for one, other in zip(found, values, strict=True)):
            return self
        return BatchStatistics(*found)

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


@dataclass
class MovingStatistics:
    """What a training step of a layer moves, and corrects against with renorm."""

    arrays: Mapping[str, Array]  # by the names in `STATISTICS`
    momentum: float
    renorm: bool
    renorm_momentum: float | None  # None to correct against the moving mean and variance
    clipping: RenormClipping
    skip_nonfinite: bool = False  # whether a batch's that are infinite or NaN move nothing
    moved: dict[str, Array] | None = None  # where they go, `arrays` itself included; None for new

    @property
    def separate(self) -> bool:
        """Whether renorm has statistics of its own."""
        return self.renorm and self.renorm_momentum is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that there are."""
        return STATISTICS if self.separate else STATISTICS[:2]

    def reference(self, arrays: Mapping[str, Array]) -> Reference | None:
        """What a forward corrects against, of these arrays."""
        if not self.renorm:
            return None
        limits = self.clipping.limits
        if self.separate:
            return Reference(arrays["renorm_mean"], arrays["renorm_stddev"], False, limits)
        return Reference(arrays["moving_mean"], arrays["moving_variance"], True, limits)
