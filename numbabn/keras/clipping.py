"""The limits of a layer's correction: numbers, Variables or functions, read when a step runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from ..embedded.operations import LIMITS
from ..renorm import RenormClipping
from ..tensors.late import Late

_NO_LIMITS = dict(zip(LIMITS, RenormClipping().limits, strict=True))


class Clipping:
    """The limits of a layer's correction, which may change between two steps of a run.

    Keras tracks whatever is assigned to a layer, and would make weights of the Variables in
    a dictionary: this object keeps them out of the layer's state.
    """

    def __init__(self) -> None:
        self.given: Mapping[str, Any] = {}
        # One object a limit, for good: a compiled computation holds on to it.
        self._late = {name: Late(self._reader(name)) for name in LIMITS}

    def set(self, clipping: Any) -> None:
        if isinstance(clipping, RenormClipping):
            clipping = dict(zip(LIMITS, clipping.limits, strict=True))
        given = {} if clipping is None else clipping
        if isinstance(given, Mapping):
            # What is known only later is checked when it is read.
            known: dict[str, Any] = {
                name: _NO_LIMITS.get(name) if _is_open(limit) else limit
                for name, limit in given.items()
            }
            RenormClipping.of(known)
        else:
            RenormClipping.of(given)
        # The caller's own dictionary: to change an entry changes the limit too.
        self.given = given

    def _reader(self, name: str) -> Callable[[], float]:
        def read() -> float:
            limit = self.given.get(name)
            if limit is None:
                return _NO_LIMITS[name]
            if isinstance(limit, keras.Variable):
                limit = limit.value
            number = limit() if callable(limit) else limit
            # torch warns where a tensor that a gradient is kept for becomes a number.
            return float(number.detach() if hasattr(number, "detach") else number)

        return read

    def inputs(self, in_graph: Callable[[Any], bool]) -> dict[str, Any]:
        """rmin, rmax and dmax as inputs of an operation."""
        found: dict[str, Any] = dict(self._late)
        for name, limit in self.given.items():
            # A graph that may itself change a Variable has to read it in its own order.
            if isinstance(limit, keras.Variable) and in_graph(limit.value):
                found[name] = ops.cast(limit.value, "float32")
        return found

    def values(self) -> dict[str, float]:
        """The limits as they are now; infinite ones, which JSON lacks, are left out."""
        found = {name: self._late[name].read() for name in self.given}
        return {name: limit for name, limit in found.items() if math.isfinite(limit)}


def _is_open(limit: Any) -> bool:
    return limit is None or isinstance(limit, keras.Variable) or callable(limit)
