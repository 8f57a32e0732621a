"""Batch normalization as the operations that bridges run: over NumPy arrays, without state.

The moving statistics go in as arrays and come out moved. They are moved here, in float64,
and rounded once: a framework's float32 would lose what the kernels found (and JAX has no
float64 by default).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import formulas
from ..functional import (
    backward_from_values,
    batch_norm_forward,
    gradients_of_normalize,
    normalize,
)
from ..layout import Axis
from ..renorm import Renorm, RenormClipping
from .bridges import Arrays, Function, Operation, Shaped

# Those of Keras's layer, in its order; the last three exist with renorm only.
STATISTICS = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
LIMITS = ("rmin", "rmax", "dmax")
ARGUMENTS = ("x", "gamma", "beta")


@dataclass(frozen=True)
class Attributes:
    """What is fixed for a layer.

    renorm_momentum: None where the moving statistics are the reference (see numbabn.Renorm)
    """

    axis: int | tuple[int, ...]
    epsilon: float
    momentum: float
    renorm: bool
    renorm_momentum: float | None


def channels_of(x: Shaped, axis: Axis) -> int:
    """How many channels there are."""
    axes = (axis,) if isinstance(axis, int) else axis
    sizes = [x.shape[each] for each in axes]
    return prod(size for size in sizes if size is not None)  # Channels are always known.


def _forward_shapes(inputs: Mapping[str, Shaped], attributes: Attributes) -> dict[str, Shaped]:
    x = inputs["x"]
    moved = {name: inputs[name] for name in STATISTICS if name in inputs}
    values = Shaped((6, channels_of(x, attributes.axis)), "float64")
    return {"y": x, "values": values, **moved}


def _forward(
    inputs: Mapping[str, NDArray[Any]],
    attributes: Attributes,
    wanted: tuple[str, ...] | None,
    out: NDArray[Any] | None,
) -> Arrays:
    reference = _reference(inputs, attributes) if attributes.renorm else None
    y, saved = batch_norm_forward(
        inputs["x"], inputs.get("gamma"), inputs.get("beta"),
        axis=attributes.axis, mask=inputs.get("mask"), epsilon=attributes.epsilon,
        renorm=reference, out=out,
    )  # fmt: skip
    return {"y": y, "values": saved.values, **_moved(inputs, saved.values, attributes)}


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


def _gradient_shapes(inputs: Mapping[str, Shaped], attributes: Attributes) -> dict[str, Shaped]:
    x = inputs["x"]
    axis = attributes.axis
    shape: tuple[int | None, ...]
    if isinstance(axis, int):
        shape = (x.shape[axis],)
    else:
        axes = [each % len(x.shape) for each in axis]
        shape = tuple(size if i in axes else 1 for i, size in enumerate(x.shape))
    parameter = Shaped(shape, "float64" if x.dtype == "float64" else "float32")
    return {"dx": x, "dgamma": parameter, "dbeta": parameter}


def _backward(
    inputs: Mapping[str, NDArray[Any]],
    attributes: Attributes,
    wanted: tuple[str, ...] | None,
    out: NDArray[Any] | None,
) -> Arrays:
    gradients = backward_from_values(
        inputs["dy"], inputs["x"], inputs["values"],
        axis=attributes.axis, mask=inputs.get("mask"), epsilon=attributes.epsilon,
        with_dx=with_dx(wanted), out=out,
    )  # fmt: skip
    return _wanted(gradients, wanted)


def with_dx(wanted: tuple[str, ...] | None) -> bool:
    return wanted is None or "dx" in wanted


def _wanted(gradients: tuple[Any, ...], wanted: tuple[str, ...] | None) -> Arrays:
    found = dict(zip(("dx", "dgamma", "dbeta"), gradients, strict=True))
    return found if wanted is None else {name: found[name] for name in wanted}


def _normalize_shapes(inputs: Mapping[str, Shaped], attributes: Attributes) -> dict[str, Shaped]:
    return {"y": inputs["x"]}


def _normalize(
    inputs: Mapping[str, NDArray[Any]],
    attributes: Attributes,
    wanted: tuple[str, ...] | None,
    out: NDArray[Any] | None,
) -> Arrays:
    y = normalize(
        inputs["x"], inputs["moving_mean"], inputs["moving_variance"],
        inputs.get("gamma"), inputs.get("beta"),
        axis=attributes.axis, epsilon=attributes.epsilon, out=out,
    )  # fmt: skip
    return {"y": y}


def _normalize_backward(
    inputs: Mapping[str, NDArray[Any]],
    attributes: Attributes,
    wanted: tuple[str, ...] | None,
    out: NDArray[Any] | None,
) -> Arrays:
    variance, gamma = inputs["moving_variance"], inputs.get("gamma")
    if wanted == ("dx",):
        # dx = gamma · rstd · dy: no sum over the batch, and x is not read.
        dx = normalize(
            inputs["dy"], np.zeros_like(variance), variance, gamma,
            axis=attributes.axis, epsilon=attributes.epsilon, out=out,
        )  # fmt: skip
        return {"dx": dx}
    gradients = gradients_of_normalize(
        inputs["dy"], inputs["x"], inputs["moving_mean"], variance, gamma,
        axis=attributes.axis, epsilon=attributes.epsilon, with_dx=with_dx(wanted), out=out,
    )  # fmt: skip
    return _wanted(gradients, wanted)


TRAINING = Function(
    forward=Operation(
        "batch_norm_forward",
        (*ARGUMENTS, "mask", *LIMITS, *STATISTICS),
        _forward_shapes,
        _forward,
        moved=STATISTICS,
    ),
    backward=Operation(
        "batch_norm_backward",
        ("dy", "x", "mask", "values"),
        _gradient_shapes,
        _backward,
    ),
    arguments=ARGUMENTS,
    result="y",
    residuals=("values",),
)

INFERENCE = Function(
    forward=Operation(
        "normalize",
        (*ARGUMENTS, "moving_mean", "moving_variance"),
        _normalize_shapes,
        _normalize,
    ),
    backward=Operation(
        "normalize_backward",
        ("dy", "x", "gamma", "moving_mean", "moving_variance"),
        _gradient_shapes,
        _normalize_backward,
    ),
    arguments=ARGUMENTS,
    result="y",
    residuals=(),
    # dx = gamma · rstd · dy needs none of the sums.
    apart=(("dx",), ("dgamma", "dbeta")),
)
