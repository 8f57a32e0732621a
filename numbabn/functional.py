"""The operations on arrays: check, lay out, allocate, call the target, wrap the result.

Arrays are NumPy's, or are on a CUDA device: torch's CUDA tensors, CuPy's arrays, Numba's device
arrays, and whatever else has `__cuda_array_interface__`. The arrays of a call are of one library.
Then every result is of that library and on that device (Numba's where the library is none of
these), the work goes to the stream that the library runs on, and nothing waits for the device.
Gradients of torch are not tracked: tensors that require one are read as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import layout as lay
from .channels import SAVED, Parameters, Reference
from .layout import Axis, Layout
from .renorm import Renorm, RenormClipping
from .statistics import BatchStatistics
from .targets import device_operations, on_device, target_of

Array = Any  # an array of x's library


@dataclass(eq=False)
class Saved:
    """What a training forward keeps for its backward: per-channel values and the mask.

    Attributes:
        statistics: the :class:`BatchStatistics` that `x` was normalized with.
        r, d: the correction of renorm; 1 and 0 without it. Float64, one value a channel.

    Its arrays are read-only. A bool mask is referred to, not copied: like `x`, it is to stay as
    it is until the backward pass. Of an `x` on a device, all of it is there too.
    """

    _values: Any = field(repr=False)  # (6, channels), as launchers have it
    _layout: Layout = field(repr=False)
    _dtype: Any = field(repr=False)
    _axis: Axis = field(repr=False)
    _epsilon: float = field(repr=False)
    _on: Any = field(repr=False)
    _mask: Any = field(repr=False)  # `_on` as the target's launchers have it

    @property
    def values(self) -> Array:
        """All per-channel values as one array, for :func:`backward_from_values`.

        (6, channels) float64: count, mean, variance, r, d and gamma; the channels of a
        list of axes in C order.
        """
        if len(self._layout.axes) == 1:
            return self._values
        if on_device(self._values):
            return device_operations().in_c_order(self._values, self._layout)
        return np.stack([self._layout.unflatten(row).reshape(-1) for row in self._values])

    @property
    def statistics(self) -> BatchStatistics:
        return BatchStatistics(self._row(0), self._row(1), self._row(2))

    @property
    def r(self) -> Array:
        return self._row(3)

    @property
    def d(self) -> Array:
        return self._row(4)

    def _row(self, index: int) -> Array:
        if on_device(self._values):
            return device_operations().row(self._values, index, self._layout)
        return self._layout.unflatten(self._values[index])


def _prepare(x: Array, axis: Axis) -> tuple[ModuleType, Layout]:
    target = target_of(x, "x")
    lay.check_array(x, "x")
    return target, lay.layout_of(x, axis)


def _output(layout: Layout, dtype: Any, out: Array | None) -> tuple[Array, Array, bool]:
    """An output in the caller's memory order; what kernels write; whether that is apart."""
    if out is None and layout.plain:
        array = np.empty(layout.shape, dtype)
        return array, array.reshape(layout.canonical_shape), False
    array = layout.empty(dtype) if out is None else out
    view = layout.view(array)
    if view is not None:
        return array, view, False
    # Memory that is not of x's order is written by way of a copy.
    return array, np.empty(layout.canonical_shape, dtype), True


def batch_statistics(x: Array, *, axis: Axis = -1, mask: Array | None = None) -> BatchStatistics:
    """Count, mean and biased variance of each channel.

        mean = Σ_S x / n        variance = Σ_S (x − mean)² / n        n = |S|

    where S are the positions of a channel whose mask is on, or all of them. What a
    masked-out position holds, NaN included, has no effect. Ioffe and Szegedy 2015 (arXiv
    1502.03167), algorithm 1.

    Args:
        x: float16, bfloat16, float32 or float64 of rank 2 or more, in any memory order: a
            NumPy array, or one on a CUDA device.
        axis: the channel axis, or a list of them; negative ones count from the last.
        mask: bool, integer or float, nonzero is on. Of the rank of `x`, or one less (then
            a last axis is added, whatever `axis` is); each size that of `x`, or 1.

    Returns:
        A :class:`BatchStatistics` of float64 arrays of shape ``(channels,)``; for a list of
        several axes, of the rank of `x` with 1 on every reduced axis. Where n is 0, mean
        and variance are 0. Of an `x` on a device they are there too.

    Raises:
        TypeError: `x` is not an array of such floats; `axis` or `mask` has a wrong type, or
            `mask` is not of the library of `x`.
        ValueError: `axis` is out of range, or `mask` does not fit.
        RuntimeError: `x` is on a device, and nothing can run there.

    >>> import numpy as np
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0], [np.nan, np.nan]])
    >>> batch_statistics(x, mask=np.array([True, True, False])).mean
    array([ 2., 20.])
    """
    if on_device(x):
        device = device_operations()
        values, layout = device.statistics(x, axis, mask)
        return BatchStatistics(*(device.row(values, index, layout) for index in range(3)))
    target, layout = _prepare(x, axis)
    on = lay.check_mask(mask, x)
    values = np.empty((SAVED, layout.channels))
    target.statistics(layout.canonical(x), target.mask_of(on, layout), values)
    count, mean, variance = (layout.unflatten(row) for row in values[:3])
    return BatchStatistics(count, mean, variance)


def normalize(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: Axis = -1,
    epsilon: float = 1e-3,
    out: Array | None = None,
) -> Array:
    """Normalize by statistics that are given: batch normalization's inference.

        y = gamma · (x − mean) / sqrt(variance + epsilon) + beta

    Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 2. The subtraction comes first and
    carries more than float32, so data far from 0 lose nothing.

    Args:
        x: float16, bfloat16, float32 or float64 of rank 2 or more, in any memory order: a
            NumPy array, or one on a CUDA device.
        mean, variance: one value a channel: ``(channels,)``, or for a list of several axes
            the rank of `x` with 1 on every reduced axis.
        gamma, beta: as `mean`; None for 1 and 0. On a device all four are arrays of floats.
        axis: the channel axis, or a list of them.
        epsilon: added to the variance.
        out: where to write the result; of the shape and dtype of `x`, possibly `x` itself.

    Returns:
        `out`, or a new array of the dtype and memory order of `x`.

    Raises:
        TypeError: a wrong type or dtype, or arrays of several libraries.
        ValueError: a wrong shape or value, or an `out` that overlaps an input otherwise.

    >>> import numpy as np
    >>> normalize(np.array([[1.0, 2.0], [3.0, 6.0]]), [2.0, 4.0], [1.0, 4.0], epsilon=1e-12)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    epsilon = lay.check_epsilon(epsilon)
    if on_device(x):
        return device_operations().normalize(x, mean, variance, gamma, beta, axis, epsilon, out)
    target, layout = _prepare(x, axis)
    flat_mean = lay.channel_values(mean, "mean", layout)
    flat_variance = lay.channel_values(variance, "variance", layout)
    flat_gamma = None if gamma is None else lay.channel_values(gamma, "gamma", layout)
    flat_beta = None if beta is None else lay.channel_values(beta, "beta", layout)
    if out is not None:
        inputs = {"x": x, "mean": mean, "variance": variance, "gamma": gamma, "beta": beta}
        lay.check_out(out, x, inputs, over=("x",))
    y, canonical_y, apart = _output(layout, x.dtype, out)
    target.normalize(
        layout.canonical(x),
        flat_mean,
        flat_variance,
        Parameters(flat_gamma, flat_beta),
        epsilon,
        canonical_y,
    )
    if apart:
        layout.restore(canonical_y, y)
    return y


def normalize_backward(
    dy: Array,
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    *,
    axis: Axis = -1,
    epsilon: float = 1e-3,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The gradient of :func:`normalize`, whose statistics are constants.

        dx = gamma · rstd · dy      dgamma = Σ dy · x̂      dbeta = Σ dy
        rstd = 1 / sqrt(variance + epsilon)      x̂ = (x − mean) · rstd

    Where `dy` is 0 nothing is added, whatever `x` holds there.

    Args:
        dy: the gradient with respect to the result; of the shape and dtype of `x`.
        x, mean, variance, gamma, axis, epsilon: as they were given to :func:`normalize`.
        out: where to write `dx`; possibly `dy` or `x` itself.

    Returns:
        dx, of the dtype and memory order of `x`, and dgamma and dbeta, one value a
        channel: float64 where `x` is, otherwise float32.

    Raises:
        TypeError: a wrong type or dtype, or arrays of several libraries.
        ValueError: a wrong shape or value, or an `out` that overlaps an input otherwise.

    >>> import numpy as np
    >>> x, ones = np.array([[1.0], [3.0]]), np.ones((2, 1))
    >>> dx, dgamma, dbeta = normalize_backward(ones, x, [2.0], [0.25], epsilon=1e-12)
    >>> dx.ravel(), dgamma, dbeta
    (array([2., 2.]), array([0.]), array([2.]))
    """
    return gradients_of_normalize(dy, x, mean, variance, gamma, axis=axis, epsilon=epsilon, out=out)


def gradients_of_normalize(
    dy: Array,
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    *,
    axis: Axis,
    epsilon: float,
    with_dx: bool = True,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """:func:`normalize_backward` for the adapters; without `with_dx`, dx is None, not computed."""
    epsilon = lay.check_epsilon(epsilon)
    if on_device(x):
        return device_operations().normalize_backward(
            dy, x, mean, variance, gamma, axis, epsilon, out, with_dx
        )
    target, layout = _prepare(x, axis)
    flat_mean = lay.channel_values(mean, "mean", layout)
    flat_variance = lay.channel_values(variance, "variance", layout)
    flat_gamma = None if gamma is None else lay.channel_values(gamma, "gamma", layout)
    values = np.empty((SAVED, layout.channels))
    target.constants(flat_mean, flat_variance, flat_gamma, values)
    inputs = {"mean": mean, "variance": variance, "gamma": gamma}
    return _backward(target, layout, dy, x, values, epsilon, None, False, out, inputs, with_dx)


def renorm_correction(
    mean: Array,
    variance: Array,
    renorm_mean: Array,
    renorm_stddev: Array,
    *,
    epsilon: float = 1e-3,
    clipping: RenormClipping | dict[str, float] | None = None,
) -> tuple[Array, Array]:
    """The correction of batch renormalization: how far a batch is from its reference.

        r = clip(s / renorm_stddev, rmin, rmax)         s = sqrt(variance + epsilon)
        d = clip((mean − renorm_mean) / renorm_stddev, −dmax, dmax)

    A `renorm_stddev` below sqrt(epsilon) counts as sqrt(epsilon). Ioffe 2017 (arXiv
    1702.03275), section 3.

    Args:
        mean, variance: statistics of a batch, arrays of one shape.
        renorm_mean, renorm_stddev: the reference, of the same shape.
        epsilon: added to the variance.
        clipping: a :class:`RenormClipping`, a dictionary with its keys, or None for no limits.

    Returns:
        r and d, float64, of the shape of `mean`, on its device.

    Raises:
        TypeError: something other than real numbers, or arrays of several libraries.
        ValueError: the shapes differ, or a value is out of range.

    >>> r, d = renorm_correction([3.0], [4.0], [0.0], [1.0], epsilon=1e-9, clipping={"dmax": 1})
    >>> r.round(6), d
    (array([2.]), array([1.]))
    """
    epsilon = lay.check_epsilon(epsilon)
    limits = RenormClipping.of(clipping).limits
    if on_device(mean):
        return device_operations().renorm_correction(
            mean, variance, renorm_mean, renorm_stddev, epsilon, limits
        )
    first = np.asarray(mean)
    arrays = [
        lay.real_values(values, name, first.shape).reshape(-1)
        for name, values in (
            ("mean", mean),
            ("variance", variance),
            ("renorm_mean", renorm_mean),
            ("renorm_stddev", renorm_stddev),
        )
    ]
    reference = Reference(arrays[2], arrays[3], False, limits)
    r, d = corrections = np.empty((2, first.size))
    target = target_of(first, "mean")
    target.renorm_correction(arrays[0], arrays[1], reference, epsilon, corrections)
    return r.reshape(first.shape), d.reshape(first.shape)


def batch_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: Axis = -1,
    mask: Array | None = None,
    epsilon: float = 1e-3,
    renorm: Renorm | None = None,
    out: Array | None = None,
) -> tuple[Array, Saved]:
    """Normalize by the batch's own statistics: the forward pass of training.

        y = gamma · (x̂ · r + d) + beta
        x̂ = (x − mean) / sqrt(variance + epsilon)

    with mean and variance as :func:`batch_statistics` takes them (the mask decides what
    enters them; every position is normalized), and r = 1, d = 0 unless `renorm` is given;
    then as :func:`renorm_correction`. Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm
    1; Ioffe 2017 (arXiv 1702.03275), section 3.

    Args:
        x: float16, bfloat16, float32 or float64 of rank 2 or more, in any memory order: a
            NumPy array, or one on a CUDA device.
        gamma, beta: one value a channel: ``(channels,)``, or for a list of several axes
            the rank of `x` with 1 on every reduced axis; None for 1 and 0. On a device they
            are arrays of floats, as the reference is.
        axis: the channel axis, or a list of them.
        mask: as for :func:`batch_statistics`.
        epsilon: added to the variance.
        renorm: a :class:`Renorm`, the reference to correct against.
        out: where to write `y`; of the shape and dtype of `x`, and apart from it, since
            the backward pass reads `x` again.

    Returns:
        y, of the dtype and memory order of `x`, and what :func:`batch_norm_backward`
        needs: per-channel values and the mask, with the attributes `statistics`, `r`, `d`.

    Raises:
        TypeError: a wrong type or dtype, or arrays of several libraries.
        ValueError: a wrong shape or value, or an `out` that overlaps an input.

    >>> import numpy as np
    >>> y, saved = batch_norm_forward(np.array([[1.0], [3.0]]), epsilon=1e-12)
    >>> y.ravel(), saved.statistics.mean
    (array([-1.,  1.]), array([2.]))
    """
    epsilon = lay.check_epsilon(epsilon)
    if on_device(x):
        return forward_on_device(x, gamma, beta, axis, mask, epsilon, renorm, out)
    target, layout = _prepare(x, axis)
    flat_gamma = None if gamma is None else lay.channel_values(gamma, "gamma", layout)
    flat_beta = None if beta is None else lay.channel_values(beta, "beta", layout)
    reference = _reference(renorm, layout)
    on = lay.check_mask(mask, x)
    if out is not None:
        lay.check_out(out, x, {"x": x, "gamma": gamma, "beta": beta, "mask": mask})
    canonical_mask = target.mask_of(on, layout)
    y, canonical_y, apart = _output(layout, x.dtype, out)
    values = np.empty((SAVED, layout.channels))
    target.forward(
        layout.canonical(x),
        canonical_mask,
        Parameters(flat_gamma, flat_beta),
        epsilon,
        reference,
        None,
        canonical_y,
        values,
    )
    if apart:
        layout.restore(canonical_y, y)
    values.setflags(write=False)
    return y, Saved(values, layout, x.dtype, axis, epsilon, on, canonical_mask)


def forward_on_device(
    x: Array, gamma: Array, beta: Array, axis: Axis, mask: Array, epsilon: float,
    renorm: Renorm | None, out: Array | None, by_variance: bool = False,
) -> tuple[Array, Saved]:  # fmt: skip
    """:func:`batch_norm_forward` of an array on a device.

    by_variance: `renorm.stddev` holds variances, to which epsilon is to be added
    """
    _check_renorm(renorm)
    done = device_operations().forward(
        x, gamma, beta, axis, mask, epsilon, renorm, out, by_variance
    )
    return done.y, Saved(done.values, done.layout, done.dtype, axis, epsilon, mask, done.mask)


def _check_renorm(renorm: Renorm | None) -> None:
    if renorm is not None and not isinstance(renorm, Renorm):
        raise TypeError(f"renorm must be a Renorm, got {type(renorm).__name__}")


def _reference(renorm: Renorm | None, layout: Layout) -> Reference | None:
    _check_renorm(renorm)
    if renorm is None:
        return None
    return Reference(
        lay.channel_values(renorm.mean, "renorm.mean", layout),
        lay.channel_values(renorm.stddev, "renorm.stddev", layout),
        False,
        renorm.clipping.limits,
    )


def batch_norm_backward(
    dy: Array, x: Array, saved: Saved, *, out: Array | None = None
) -> tuple[Array, Array, Array]:
    """The gradient of :func:`batch_norm_forward`, exact for masked positions too.

        dbeta  = Σ_A dy
        dgamma = Σ_A dy · (x̂ · r + d)
        dx     = g · (dy − on · (Σ_A dy + x̂ · Σ_A dy · x̂) / n)      g = gamma · r · rstd

    over all positions A; `on` is 1 where the mask is on and 0 elsewhere. r and d are
    constants. Where `dy` is 0 nothing is added, whatever `x` holds there: padding with NaN
    under a masked loss leaves every gradient finite. Ioffe and Szegedy 2015 (arXiv
    1502.03167), section 3; Ioffe 2017 (arXiv 1702.03275), section 3.

    Args:
        dy: the gradient with respect to `y`; of the shape and dtype of `x`.
        x: what was given to the forward pass, unchanged.
        saved: what the forward pass returned.
        out: where to write `dx`; possibly `dy` or `x` itself.

    Returns:
        dx, of the dtype and memory order of `x`, and dgamma and dbeta, one value a
        channel: float64 where `x` is, otherwise float32.

    Raises:
        TypeError: a wrong type or dtype, or arrays of several libraries.
        ValueError: a wrong shape, or an `out` that overlaps an input otherwise.

    >>> import numpy as np
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, saved = batch_norm_forward(x)
    >>> dx, dgamma, dbeta = batch_norm_backward(np.ones_like(x), x, saved)
    >>> dx.ravel(), dbeta
    (array([0., 0., 0.]), array([3.]))
    """
    if not isinstance(saved, Saved):
        raise TypeError(f"saved must come from batch_norm_forward, got {type(saved).__name__}")
    device_saved = on_device(saved._values)
    if on_device(x) is not device_saved:
        where = "on a CUDA device" if device_saved else "in NumPy"
        raise TypeError(f"x must be what the forward pass had, {where}, got {type(x).__name__}")
    if device_saved:
        device = device_operations()
        _check_same(device.describe(x, "x"), saved)
        return device.backward(
            dy, x, saved._values, saved._layout, saved._axis, saved._epsilon, saved._on,
            saved._mask, True, out,
        )  # fmt: skip
    target = target_of(x, "x")
    _check_same(x, saved)
    layout, values, mask = lay.layout_of(x, saved._axis), saved._values, saved._mask
    if layout.order != saved._layout.order:
        # The same values in another memory order.
        values = np.stack([layout.flatten(saved._layout.unflatten(row)) for row in values])
        mask = target.mask_of(saved._on, layout)
    return _backward(target, layout, dy, x, values, saved._epsilon, mask, True, out, {})


def _check_same(x: Any, saved: Saved) -> None:
    """Raise unless `x` can be what the forward pass had."""
    if x.dtype == saved._dtype and x.shape == saved._layout.shape:
        return
    lay.check_array(x, "x")
    if x.shape != saved._layout.shape:
        raise ValueError(
            f"x must be what the forward pass had, of shape {saved._layout.shape}, got {x.shape}"
        )
    raise TypeError(f"x must be what the forward pass had, of dtype {saved._dtype}, got {x.dtype}")


def backward_from_values(
    dy: Array,
    x: Array,
    values: Array,
    *,
    axis: Axis,
    mask: Array | None,
    epsilon: float,
    training: bool = True,
    with_dx: bool = True,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """:func:`batch_norm_backward` for callers that can keep arrays only: the adapters.

    Args:
        dy, x, out: as there.
        values: ``saved.values`` of the forward pass.
        axis, mask, epsilon: as they were given to the forward pass.
        training: False where the statistics were constants: then as
            :func:`normalize_backward`, with mean, variance and gamma from `values`.
        with_dx: False where dx is not to be computed; it is None then.
    """
    if on_device(x):
        return device_operations().backward(
            dy, x, values, None, axis, epsilon, mask, None, training, out, with_dx
        )
    target, layout = _prepare(x, axis)
    lay.check_saved(values, layout)
    values = np.require(values, requirements=("C", "A")).view()
    values.setflags(write=False)
    if len(layout.axes) > 1:
        logical = values.reshape(-1, *layout.channel_shape)
        values = np.stack([layout.flatten(row) for row in logical])
    on = target.mask_of(lay.check_mask(mask, x), layout) if training else None
    return _backward(target, layout, dy, x, values, epsilon, on, training, out, {}, with_dx)


def _backward(
    target: ModuleType, layout: Layout, dy: Array, x: Array, values: NDArray[np.float64],
    epsilon: float, mask: Any, training: bool, out: Array | None,
    inputs: dict[str, Array], with_dx: bool = True,
) -> tuple[Array, Array, Array]:  # fmt: skip
    target_of(dy, "dy")
    lay.check_like(dy, "dy", x)
    if out is not None:
        lay.check_out(out, x, {"dy": dy, "x": x, **inputs}, over=("dy", "x"))
    dx: Any = None
    canonical_dx: Any = None
    apart = False
    if with_dx:
        dx, canonical_dx, apart = _output(layout, x.dtype, out)
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    dgamma, dbeta = gradients = np.empty((2, layout.channels), dtype)
    target.backward(
        layout.canonical(dy),
        layout.canonical(x),
        values,
        mask,
        epsilon,
        training,
        canonical_dx,
        gradients,
    )
    if apart:
        layout.restore(canonical_dx, dx)
    return dx, layout.unflatten(dgamma), layout.unflatten(dbeta)
