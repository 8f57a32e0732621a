"""Numbers that are read when a computation runs, compiled or not, never when it is traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

_numbers = count()
# By their numbers, by which compiled programs name them.
_read_by: WeakValueDictionary[int, Late] = WeakValueDictionary()


@dataclass(frozen=True)
class Late:
    """A number that is read anew whenever the computation runs: a float32 input of shape ().

    read: takes nothing, returns a float; the same object for every call of a layer, so that
        compiled functions can be found again
    number: its own in this process
    """

    read: Callable[[], float]
    number: int = field(default_factory=lambda: next(_numbers), init=False)

    def __post_init__(self) -> None:
        _read_by[self.number] = self


def read_number(number: int) -> float:
    """The number that the `Late` of this number reads now.

    Raises:
        RuntimeError: there is none, since its layer is gone, or was made in another process.
    """
    late = _read_by.get(number)
    if late is None:
        raise RuntimeError(
            "the limits of renorm cannot be read: the layer that this program was made of is gone, "
            "or was in another process"
        )
    return late.read()


def read_late(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` with the numbers that are read when the computation runs, read."""
    return {
        name: np.float32(value.read()) if isinstance(value, Late) else value
        for name, value in inputs.items()
    }
