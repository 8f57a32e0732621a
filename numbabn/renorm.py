"""What a renormalized forward corrects against, and how far the correction may go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any


@dataclass(frozen=True)
class RenormClipping:
    """The limits of batch renormalization's correction.

    ``r`` is clipped to [rmin, rmax] and ``d`` to [-dmax, dmax] (Ioffe 2017, arXiv
    1702.03275, section 3). The defaults clip nothing; ``RenormClipping(1, 1, 0)`` is plain
    batch normalization, and a limit of 1 for ``rmax`` alone is not: an ``r`` below 1 still shrinks
    what the reference spreads wider than the batch. :meth:`ramp` leads from the one to the other.

    Args:
        rmin, rmax: least and greatest ``r``.
        dmax: greatest magnitude of ``d``.

    Raises:
        TypeError: a limit is not a number.
        ValueError: a limit is NaN, ``rmin`` exceeds ``rmax``, or ``dmax`` is negative.

    >>> RenormClipping(rmax=3, dmax=5)
    RenormClipping(rmin=0.0, rmax=3.0, dmax=5.0)
    """

    rmin: float = 0.0
    rmax: float = inf
    dmax: float = inf

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _limit(field.name, getattr(self, field.name)))
        if self.rmin > self.rmax:
            raise ValueError(
                f"renorm clipping: rmax should be at least rmin, "
                f"got rmin={self.rmin} and rmax={self.rmax}"
            )
        if self.dmax < 0:
            raise ValueError(f"renorm clipping: dmax should be non-negative, got {self.dmax}")

    @classmethod
    def of(cls, clipping: RenormClipping | Mapping[str, float] | None) -> RenormClipping:
        """The clipping that a dictionary, or None, stands for."""
        if isinstance(clipping, cls):
            return clipping
        if clipping is None:
            return cls()
        if not isinstance(clipping, Mapping):
            raise TypeError(
                "renorm clipping must be a RenormClipping, or a dictionary with the keys "
                f"rmin, rmax and dmax, got {type(clipping).__name__}"
            )
        unknown = [key for key in clipping if key not in ("rmin", "rmax", "dmax")]
        if unknown:
            raise ValueError(
                # In Keras's words, for those who look for them.
                f"Received invalid keys for renorm clipping: {unknown[0]!r}; expected rmin, rmax "
                "and dmax"
            )
        return cls(**clipping)

    @classmethod
    def ramp(cls, progress: float, rmax: float = 3.0, dmax: float = 5.0) -> RenormClipping:
        """The limits on the way from plain batch normalization to `rmax` and `dmax`.

        With ``p = min(max(progress, 0), 1)``, ``r`` limited alike in both directions:

            rmax(p) = 1 + (rmax − 1) · p        rmin(p) = 1 / rmax(p)        dmax(p) = dmax · p

        Ioffe 2017 (arXiv 1702.03275), section 4.2, has `rmax` 3 and `dmax` 5, after a start of
        plain batch normalization.

        Args:
            progress: 0 for the start, 1 for the end; beyond these the limits stay.
            rmax: where ``rmax`` ends, at least 1.
            dmax: where ``dmax`` ends, at least 0.

        Raises:
            TypeError: an argument is not a number.
            ValueError: it is none of these numbers, or NaN.

        >>> RenormClipping.ramp(0)
        RenormClipping(rmin=1.0, rmax=1.0, dmax=0.0)
        >>> RenormClipping.ramp(0.5)
        RenormClipping(rmin=0.5, rmax=2.0, dmax=2.5)
        """
        p = min(max(_limit("progress", progress), 0.0), 1.0)
        widest = 1.0 + (_end("rmax", rmax, 1.0) - 1.0) * p
        return cls(1.0 / widest, widest, _end("dmax", dmax, 0.0) * p)

    @property
    def limits(self) -> tuple[float, float, float]:
        """(rmin, rmax, dmax)"""
        return self.rmin, self.rmax, self.dmax


def _limit(name: str, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError("float would read it")
        limit = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"renorm clipping: {name} must be a number, got {type(value).__name__}"
        ) from error
    if limit != limit:
        raise ValueError(f"renorm clipping: {name} must be a number, got nan")
    return limit


def _end(name: str, value: Any, least: float) -> float:
    number = _limit(name, value)
    if not least <= number < inf:
        raise ValueError(
            f"renorm clipping: {name} must be a finite number of at least {least}, got {value}"
        )
    return number


@dataclass(frozen=True)
class Renorm:
    """The reference that a training forward corrects against (Ioffe 2017, section 3).

    With it, ``batch_norm_forward`` returns ``y = gamma · (x̂ · r + d) + beta`` where

        r = clip(s / stddev, rmin, rmax)            s = sqrt(variance + epsilon)
        d = clip((mean − self.mean) / stddev, −dmax, dmax)

    and a ``stddev`` below sqrt(epsilon) counts as sqrt(epsilon). ``r`` and ``d`` are
    constants for the gradient.

    Args:
        mean, stddev: moving statistics from before this batch, one value a channel.
        clipping: a :class:`RenormClipping`, a dictionary with its keys, or None for no limits.

    >>> Renorm(mean=[0.0, 0.0], stddev=[1.0, 1.0], clipping={"rmax": 3}).clipping.rmax
    3.0
    """

    mean: Any
    stddev: Any
    clipping: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "clipping", RenormClipping.of(self.clipping))
