"""What a layer computes: an operation, the one that computes its gradient, and both as expressions.

A kernel has no derivative of its own. Whoever differentiates a gradient, or a forward in JAX's
forward mode, differentiates an expression in its place, which is of the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from keras import ops

from ..embedded.operations import (
    BACKWARD,
    FORWARD,
    NORMALIZE,
    NORMALIZE_BACKWARD,
    Operation,
)
from ..tensors import expressions

Tensors = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Function:
    """An operation and its gradient.

    arguments: the operands of `forward` that it is differentiated with respect to
    result: the result of `forward` that is differentiated
    residuals: results of `forward` that only `backward` reads
    apart: groups of results of `backward` that cost little more on their own than together: a
        graph that computes them apart leaves out those that nobody reads
    y, gradients: the same in `keras.ops`, see `numbabn.tensors.expressions`

    `backward` reads ``"d" + result``, and operands and results of `forward` under their own
    names; its results are ``"d" + argument``.
    """

    forward: Operation
    backward: Operation
    arguments: tuple[str, ...]
    result: str
    y: Callable[..., Any]
    gradients: Callable[..., dict[str, Any]]
    residuals: tuple[str, ...] = ()
    apart: tuple[tuple[str, ...], ...] = ()

    def kept(self, everything: Tensors) -> dict[str, Any]:
        """Of the operands and results of `forward`, those that `backward` reads."""
        names = (name for name in self.backward.operands if name != "d" + self.result)
        return {name: everything[name] for name in names if name in everything}


TRAINING = Function(
    FORWARD,
    BACKWARD,
    ("x", "gamma", "beta"),
    "y",
    partial(expressions.y_of_training, ops),
    partial(expressions.gradients_of_training, ops),
    residuals=("saved",),
)
# dx = gamma · rstd · dy needs none of the sums.
INFERENCE = Function(
    NORMALIZE,
    NORMALIZE_BACKWARD,
    ("x", "gamma", "beta"),
    "y",
    partial(expressions.y_of_inference, ops),
    partial(expressions.gradients_of_inference, ops),
    apart=(("dx",), ("dgamma", "dbeta")),
)
