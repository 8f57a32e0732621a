"""Batch normalization and its gradient as expressions, for frameworks to differentiate.

What kernels compute, once more, as functions of tensors:

    y      = gamma · (x̂ · r + d) + beta        x̂ = (x − mean) · rstd
    dbeta  = Σ dy
    dgamma = Σ dy · (x̂ · r + d)
    dx     = gamma · r · rstd · (dy − on · (Σ dy + x̂ · Σ dy · x̂) / n)

where in training mean, rstd and n are functions of x and of the mask, and r and d constants; and
in inference mean and variance are constants, r = 1, d = 0 and dx = gamma · rstd · dy. Ioffe and
Szegedy 2015 (arXiv 1502.03167), section 3; Ioffe 2017 (arXiv 1702.03275), section 3.

Every function takes the operands of an operation by name, and:

    ops            `keras.ops`, or what has the same functions: `torch_ops`
    attributes     of the layer
    corrections    r and d, (channels,) each; None for 1 and 0

They compute in float32, or in float64 where x is. Where the mask is off, x is not finite, and dy is
0 in a gradient, there is padding: it takes no part, and no derivative is NaN for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..embedded.operations import Attributes, rows_dtype

Tensors = Mapping[str, Any]
Corrections = tuple[Any, Any] | None


def y_of_training(
    ops: Any, tensors: Tensors, attributes: Attributes, corrections: Corrections
) -> Any:
    """y, a function of x, gamma and beta."""
    given, mask = _Given(ops, tensors["x"], attributes), tensors.get("mask")
    x = given.x if mask is None else _without_padding(ops, given.x, given.on(mask))
    xhat, _, _ = _normalized(x, given, mask, attributes.epsilon)
    if corrections is not None:
        r, d = map(given.along, corrections)
        xhat = xhat * r + d
    return _affine(xhat, tensors, given)


def y_of_inference(
    ops: Any, tensors: Tensors, attributes: Attributes, corrections: Corrections
) -> Any:
    """y, a function of x, gamma and beta."""
    given = _Given(ops, tensors["x"], attributes)
    mean, rstd = _constants(tensors, given, attributes.epsilon)
    return _affine((given.x - mean) * rstd, tensors, given)


def gradients_of_training(
    ops: Any, tensors: Tensors, attributes: Attributes, corrections: Corrections
) -> dict[str, Any]:
    """dx, dgamma and dbeta, functions of dy, x and gamma."""
    given = _Given(ops, tensors["x"], attributes)
    dy = given.as_computed(tensors["dy"])
    mask = tensors.get("mask")
    x, on = given.x, None if mask is None else given.on(mask)
    if on is not None:
        x = _without_padding(ops, x, ops.logical_or(on, dy != 0))
    xhat, rstd, count = _normalized(x, given, mask, attributes.epsilon)
    sum_dy, sum_dy_xhat = given.sum(dy), given.sum(dy * xhat)
    inside = (sum_dy + xhat * sum_dy_xhat) / count
    if on is not None:
        inside = ops.where(on, inside, ops.zeros_like(inside))
    scale, dgamma = _gamma(tensors, given) * rstd, sum_dy_xhat
    if corrections is not None:
        r, d = map(given.along, corrections)
        scale, dgamma = scale * r, sum_dy_xhat * r + sum_dy * d
    return given.results(scale * (dy - inside), dgamma, sum_dy)


def gradients_of_inference(
    ops: Any, tensors: Tensors, attributes: Attributes, corrections: Corrections
) -> dict[str, Any]:
    """dx, dgamma and dbeta, functions of dy, x and gamma; where x is not there, dx alone."""
    given = _Given(ops, tensors.get("x", tensors["dy"]), attributes)
    dy = given.as_computed(tensors["dy"])
    mean, rstd = _constants(tensors, given, attributes.epsilon)
    dx = _gamma(tensors, given) * rstd * dy
    xhat = (_without_padding(ops, given.x, dy != 0) - mean) * rstd
    return given.results(dx, given.sum(dy * xhat), given.sum(dy))


class _Given:
    """x as it is computed with, and where its channels are."""

    def __init__(self, ops: Any, x: Any, attributes: Attributes) -> None:
        self.ops = ops
        shape, axis = x.shape, attributes.axis
        named = (axis,) if isinstance(axis, int) else axis
        axes = {each % len(shape) for each in named}
        self.dtype = rows_dtype(_dtype(x))
        self.x = self.as_computed(x)
        self._dtype_of_x = _dtype(x)
        self._reduced = tuple(i for i in range(len(shape)) if i not in axes)
        # The shape in which values of channels stand beside x, and that in which they are results.
        # A single one is left to `reshape`: where a program is traced, its size may be no number.
        self._along = tuple(
            (-1 if len(axes) == 1 else int(size)) if i in axes else 1
            for i, size in enumerate(shape)
        )
        self._of_rows = (-1,) if len(axes) == 1 else self._along

    def as_computed(self, tensor: Any) -> Any:
        return self.ops.cast(tensor, self.dtype)

    def along(self, values: Any) -> Any:
        """Values of channels beside x."""
        return self.ops.reshape(self.as_computed(values), self._along)

    def sum(self, tensor: Any) -> Any:
        return self.ops.sum(tensor, axis=self._reduced, keepdims=True)

    def on(self, mask: Any) -> Any:
        """Where a mask is on, of the shape of x."""
        on = mask if _dtype(mask) == "bool" else mask != 0
        if len(on.shape) < len(self.x.shape):
            on = self.ops.expand_dims(on, -1)
        return self.ops.broadcast_to(on, self.ops.shape(self.x))

    def results(self, dx: Any, dgamma: Any, dbeta: Any) -> dict[str, Any]:
        return {
            "dx": self.ops.cast(dx, self._dtype_of_x),
            "dgamma": self.ops.reshape(dgamma, self._of_rows),
            "dbeta": self.ops.reshape(dbeta, self._of_rows),
        }


def _normalized(x: Any, given: _Given, mask: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """x̂, rstd and n by the statistics of x, about a constant near the mean: nothing cancels."""
    ops, on = given.ops, None if mask is None else given.on(mask)
    count = given.sum(ops.ones_like(x) if on is None else ops.cast(on, given.dtype))
    count = ops.maximum(count, 1)  # An empty set has a mean and a variance of 0.

    def chosen(values: Any) -> Any:
        return values if on is None else ops.where(on, values, ops.zeros_like(values))

    # Replaced before anything is computed of it: the derivative of a NaN would be one, times 0 too.
    chosen_x = chosen(x)
    pivot = ops.stop_gradient(given.sum(chosen_x) / count)
    mean = given.sum(chosen(chosen_x - pivot)) / count
    centered = chosen(chosen_x - pivot - mean)
    rstd = 1 / ops.sqrt(given.sum(centered * centered) / count + epsilon)
    return (x - pivot - mean) * rstd, rstd, count


def _constants(tensors: Tensors, given: _Given, epsilon: float) -> tuple[Any, Any]:
    """The mean, 0 where it is not there, and rstd of statistics that are given."""
    mean = tensors.get("moving_mean")
    variance = given.along(tensors["moving_variance"])
    return 0.0 if mean is None else given.along(mean), 1 / given.ops.sqrt(variance + epsilon)


def _gamma(tensors: Tensors, given: _Given) -> Any:
    gamma = tensors.get("gamma")
    return 1.0 if gamma is None else given.along(gamma)


def _affine(xhat: Any, tensors: Tensors, given: _Given) -> Any:
    beta = tensors.get("beta")
    y = xhat * _gamma(tensors, given)
    y = y if beta is None else y + given.along(beta)
    return given.ops.cast(y, _dtype(tensors["x"]))


def _without_padding(ops: Any, x: Any, read: Any) -> Any:
    """x, but 0 where it is not finite and not `read`."""
    return ops.where(ops.logical_or(read, ops.isfinite(x)), x, ops.zeros_like(x))


def _dtype(tensor: Any) -> str:
    # "float32", numpy.dtype("float32"), tf.float32 and torch.float32 alike.
    return str(getattr(tensor.dtype, "name", tensor.dtype)).removeprefix("torch.")
