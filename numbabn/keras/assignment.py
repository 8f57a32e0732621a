"""Assigning the statistics of a step: all of them, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..interrupts import Uninterrupted


def value_of(variable: Any) -> Any:
    """What a Variable holds now, and does not change with it."""
    value = variable.value
    if hasattr(value, "read_value"):
        # TensorFlow gives its own Variable.
        return value.value()
    # torch assigns in place; JAX and NumPy put a new array in.
    return value.clone() if hasattr(value, "detach") else value


def assign_all(
    variables: Sequence[Any], before: Sequence[Any], values: Sequence[Any], traced: bool
) -> None:
    """Assign values to Variables; where one cannot be, those ahead have what was `before` again.

    An interrupt waits until all are assigned. In a computation that is traced (`traced`) nothing
    is assigned now, and when it runs, it runs whole.
    """
    if traced:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return
    with Uninterrupted():
        done = 0
        try:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
                done += 1
        except BaseException:
            for variable, value in list(zip(variables, before, strict=True))[:done]:
                variable.assign(value)
            raise
