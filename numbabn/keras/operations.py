"""Batch normalization as the operations that bridges run: over NumPy arrays, without state.

The moving statistics go in as arrays and come out moved. They are moved here, in float64,
and rounded once: a framework's float32 would lose what the kernels found (and JAX has no
float64 by default).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import formulas
from ..embedded.operations import (
    BACKWARD,
    FORWARD,
    LIMITS,
    NORMALIZE,
    NORMALIZE_BACKWARD,
    Attributes,
    Operation,
)
from ..functional import (
    backward_from_values,
    batch_norm_forward,
    gradients_of_normalize,
    normalize,
)
from ..renorm import Renorm, RenormClipping

Arrays = dict[str, Any]
Inputs = Mapping[str, Any]
Wanted = tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Function:
    """An operation and its gradient.

    arguments: the operands of `forward` that it is differentiated with respect to
    result: the result of `forward` that is differentiated
    residuals: results of `forward` that only `backward` reads
    apart: groups of results of `backward` that cost little more on their own than together: a
        graph that computes them apart leaves out those that nobody reads

    `backward` reads ``"d" + result``, and operands and results of `forward` under their own
    names; its results are ``"d" + argument``.
    """

    forward: Operation
    backward: Operation
    arguments: tuple[str, ...]
    result: str
    residuals: tuple[str, ...] = ()
    apart: tuple[tuple[str, ...], ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """The operands and results of `forward` that `backward` reads."""
        return tuple(name for name in self.backward.operands if name != "d" + self.result)


TRAINING = Function(FORWARD, BACKWARD, ("x", "gamma", "beta"), "y", residuals=("saved",))
# dx = gamma · rstd · dy needs none of the sums.
INFERENCE = Function(
    NORMALIZE,
    NORMALIZE_BACKWARD,
    ("x", "gamma", "beta"),
    "y",
    apart=(("dx",), ("dgamma", "dbeta")),
)


def _forward(inputs: Inputs, attributes: Attributes, wanted: Wanted, outputs: Inputs) -> Arrays:
    reference = _reference(inputs, attributes) if attributes.renorm else None
    y, saved = batch_norm_forward(
        inputs["x"], inputs.get("gamma"), inputs.get("beta"),
        axis=attributes.axis, mask=inputs.get("mask"), epsilon=attributes.epsilon,
        renorm=reference, out=outputs.get("y"),
    )  # fmt: skip
    return {"y": y, "saved": saved.values, **_moved(inputs, saved.values, attributes)}


def _reference(inputs: Mapping[str, NDArray[Any]], attributes: Attributes) -> Renorm:
    clipping = RenormClipping(*(float(inputs[name]) for name in LIMITS))
    if attributes.renorm_momentum is not None:
        return Renorm(inputs["renorm_mean"], inputs["renorm_stddev"], clipping)
    variance = inputs["moving_variance"].astype(np.float64)
    stddev = formulas.standard_deviation(variance, attributes.epsilon)
    return Renorm(inputs["moving_mean"], stddev, clipping)


def _moved(
    inputs: Mapping[str, NDArray[Any]], values: NDArray[np.float64], attributes: Attributes
) -> Arrays:
    """The statistics after the batch."""
    epsilon = attributes.epsilon
    count, mean, variance = values[:3].reshape(3, *inputs["moving_mean"].shape)
    moved: dict[str, NDArray[Any]] = {}

    def move(name: str, batch: NDArray[np.float64], momentum: float) -> None:
        moving = inputs[name].astype(np.float64)
        moved[name] = formulas.moving_average(moving, batch, momentum)

    move("moving_mean", mean, attributes.momentum)
    if attributes.renorm and attributes.renorm_momentum is not None:
        stddev = formulas.standard_deviation(variance, epsilon)
        move("moving_stddev", stddev, attributes.momentum)
        moved["moving_variance"] = formulas.variance_from_stddev(moved["moving_stddev"], epsilon)
        move("renorm_mean", mean, attributes.renorm_momentum)
        move("renorm_stddev", stddev, attributes.renorm_momentum)
    else:
        move("moving_variance", variance, attributes.momentum)
    if not count.all():
        # A channel without a single element has nothing to move to.
        moved = {name: np.where(count > 0, each, inputs[name]) for name, each in moved.items()}
    return {name: each.astype(inputs[name].dtype) for name, each in moved.items()}


def _backward(inputs: Inputs, attributes: Attributes, wanted: Wanted, outputs: Inputs) -> Arrays:
    gradients = backward_from_values(
        inputs["dy"], inputs["x"], inputs["saved"],
        axis=attributes.axis, mask=inputs.get("mask"), epsilon=attributes.epsilon,
        with_dx=with_dx(wanted), out=outputs.get("dx"),
    )  # fmt: skip
    return _wanted(gradients, wanted)


def with_dx(wanted: Wanted) -> bool:
    return wanted is None or "dx" in wanted


def _wanted(gradients: tuple[Any, ...], wanted: Wanted) -> Arrays:
    found = dict(zip(("dx", "dgamma", "dbeta"), gradients, strict=True))
    return found if wanted is None else {name: found[name] for name in wanted}


def _normalize(inputs: Inputs, attributes: Attributes, wanted: Wanted, outputs: Inputs) -> Arrays:
    y = normalize(
        inputs["x"], inputs["moving_mean"], inputs["moving_variance"],
        inputs.get("gamma"), inputs.get("beta"),
        axis=attributes.axis, epsilon=attributes.epsilon, out=outputs.get("y"),
    )  # fmt: skip
    return {"y": y}


def _normalize_backward(
    inputs: Inputs, attributes: Attributes, wanted: Wanted, outputs: Inputs
) -> Arrays:
    variance, gamma = inputs["moving_variance"], inputs.get("gamma")
    if wanted == ("dx",):
        # dx = gamma · rstd · dy: no sum over the batch, and x is not read.
        dx = normalize(
            inputs["dy"], np.zeros_like(variance), variance, gamma,
            axis=attributes.axis, epsilon=attributes.epsilon, out=outputs.get("dx"),
        )  # fmt: skip
        return {"dx": dx}
    gradients = gradients_of_normalize(
        inputs["dy"], inputs["x"], inputs["moving_mean"], variance, gamma,
        axis=attributes.axis, epsilon=attributes.epsilon, with_dx=with_dx(wanted),
        out=outputs.get("dx"),
    )  # fmt: skip
    return _wanted(gradients, wanted)


# By the names of operations: (operands, attributes, wanted, outputs) -> the results named in
# `wanted`, or all that exist where that is None. Operands are only read; what `outputs` holds
# is written there.
COMPUTE: dict[str, Callable[[Inputs, Attributes, Wanted, Inputs], Arrays]] = {
    FORWARD.name: _forward,
    BACKWARD.name: _backward,
    NORMALIZE.name: _normalize,
    NORMALIZE_BACKWARD.name: _normalize_backward,
}
