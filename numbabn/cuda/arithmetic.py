"""What is computed of elements: `formulas`, compiled for devices, and what belongs to a column.

Of means in two parts the low ones are 0 here: what they come to is one number for each channel,
`shift`, which the folds find in float64. That is a subtraction less for each element, and a
coefficient less for each column.

    zero    0 of the dtype that kernels compute with: numbers of another would widen the others
"""

from functools import cache
from math import sqrt
from typing import Any, NamedTuple

from .. import formulas
from .runtime import SIMULATED, bound, device_function

merge_in_two = device_function(formulas.merge_in_two)
_OWN = {
    "centered": device_function(formulas.centered),
    "where": device_function(formulas.where),
}
_where = _OWN["where"]


def _square_root(value):
    return sqrt(value)


square_root = device_function(formulas.square_root if SIMULATED else _square_root)
standard_deviation = device_function(bound(formulas.standard_deviation, square_root=square_root))
scale_shift = device_function(formulas.scale_shift)

# Bound by `scaled_for`.
ZERO: Any = None


class Mean(NamedTuple):
    """The mean of a column, rounded."""

    mean_high: Any
    mean_low: Any


class Forward(NamedTuple):
    """The coefficients of y = (x − mean) · scale + shift."""

    mean_high: Any
    mean_low: Any
    scale: Any
    shift: Any


class Backward(NamedTuple):
    """The coefficients of dx = scale · ((dy − mean_dy) − slope · (x − mean)) + shift."""

    mean_high: Any
    mean_low: Any
    scale: Any
    shift: Any
    mean_dy_high: Any
    mean_dy_low: Any
    slope: Any


def _scaled(value, c, on):
    return c.scale * value + _where(on, c.shift, ZERO)


@cache
def element_functions(compute: Any) -> dict[str, Any]:
    """`formulas.element_y`, `element_gradients` and `element_dx` for a dtype, by name."""
    own = {**_OWN, "scaled": device_function(bound(_scaled, ZERO=compute(0)))}
    return {
        name: device_function(bound(getattr(formulas, name), **own))
        for name in ("element_y", "element_gradients", "element_dx")
    }
