"""The operations on arrays: check, lay out, allocate, launch, wrap the result.

Arrays are NumPy's, or are on a CUDA device: torch's CUDA tensors, CuPy's arrays, Numba's device
arrays, and whatever else has `__cuda_array_interface__`. The arrays of a call are of one library.
Then every result is of that library and on that device (Numba's where the library is none of
these), the work goes to the stream that the library runs on, and nothing waits for the device.
Gradients of torch are not tracked: tensors that require one are read as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import checks
from .arrays import Array, Described, Library
from .channels import GRADIENTS, SAVED, SUMS, Moving, Reference
from .layout import Axis, Layout
from .operands import Mask, Operands, dense, from_c_order, parameter_dtype, to_c_order
from .renorm import Renorm, RenormClipping
from .statistics import BatchStatistics, MovingStatistics
from .targets import launchers_of, library_of


@dataclass(eq=False, slots=True)
class Saved:
    """What a training forward keeps for its backward: per-channel values and the mask.

    Attributes:
        statistics: the :class:`BatchStatistics` that `x` was normalized with.
        r, d: the correction of renorm; 1 and 0 without it. Float64, one value a channel.

    Its arrays are read-only. A bool mask is referred to, not copied: like `x`, it is to stay as
    it is until the backward pass. Of an `x` on a device, all of it is there too.
    """

    _saved: Described = field(repr=False)  # (SAVED, channels), as launchers have it
    _layout: Layout = field(repr=False)
    _dtype: Any = field(repr=False)
    _axis: Axis = field(repr=False)
    _epsilon: float = field(repr=False)
    _mask: Mask | None = field(repr=False)
    _library: Library = field(repr=False)

    @property
    def values(self) -> Array:
        """All per-channel values as one array, for :func:`backward_from_saved`.

        (6, channels) float64: count, mean, variance, r, d and gamma; the channels of a
        list of axes in C order.
        """
        return self._library.array(to_c_order(self._library, self._saved, self._layout))

    @property
    def mask(self) -> Array | None:
        """What is read of the mask: the caller's own array, where that is of bools."""
        return None if self._mask is None else self._library.array(self._mask.on)

    @property
    def statistics(self) -> BatchStatistics:
        return BatchStatistics(*self._rows()[:3])

    @property
    def r(self) -> Array:
        return self._rows()[3]

    @property
    def d(self) -> Array:
        return self._rows()[4]

    def _rows(self) -> tuple[Array, ...]:
        layout = self._layout
        return self._library.rows(self._saved, layout.channel_shape, layout.channel_steps)

    def _check(self, x: Described, name: str) -> None:
        """Raise unless `x` can be what the forward pass had."""
        if x.dtype == self._dtype and x.shape == self._layout.shape:
            return
        checks.check_floats(x, name)
        had = f"{name} must be what the forward pass had"
        if x.shape != self._layout.shape:
            raise ValueError(f"{had}, of shape {self._layout.shape}, got {x.shape}")
        raise TypeError(f"{had}, of dtype {self._dtype}, got {x.dtype}")


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
    operands = Operands(x, axis)
    on = operands.mask(mask)
    saved = operands.table(SAVED)
    operands.launch.statistics(operands.canonical_x, on and on.canonical, saved)
    return BatchStatistics(*operands.rows(saved)[:3])


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
            the rank of `x` with 1 on every reduced axis. Off a device a number serves for all.
        gamma, beta: as `mean`; None for 1 and 0. On a device all four are arrays of floats.
        axis: the channel axis, or a list of them.
        epsilon: added to the variance, at least 0. With 0, a variance of 0 divides by zero.
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
    return normalized(
        x, mean, variance, gamma, beta, axis=axis, epsilon=epsilon, out=out, checked=False
    )


def normalized(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None,
    beta: Array | None,
    *,
    axis: Axis,
    epsilon: float,
    out: Array | None,
    checked: bool = True,
) -> Array:
    """:func:`normalize` for layers.

    checked: whether the variance is known not to be negative
    """
    epsilon = checks.check_epsilon(epsilon)
    operands = Operands(x, axis)
    flat_mean = operands.parameter(mean, "mean")
    flat_variance = operands.parameter(variance, "variance")
    if not checked:
        operands.library.check_not_negative(flat_variance, "variance")
    parameters = operands.parameters(gamma, beta)
    if out is not None:
        inputs = {"x": x, "mean": mean, "variance": variance, "gamma": gamma, "beta": beta}
        out = operands.checked_out(out, inputs, over=("x",))
    y = operands.output(out)
    operands.launch.normalize(
        operands.canonical_x, flat_mean, flat_variance, parameters, epsilon, y[1]
    )
    return operands.finish(y)


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
    return gradients_of_normalize(
        dy, x, mean, variance, gamma, axis=axis, epsilon=epsilon, out=out, checked=False
    )


def gradients_of_normalize(
    dy: Array,
    x: Array | None,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    *,
    axis: Axis,
    epsilon: float,
    with_dx: bool = True,
    with_parameters: bool = True,
    out: Array | None = None,
    checked: bool = True,
) -> tuple[Array, Array, Array]:
    """:func:`normalize_backward` for layers.

    Args:
        with_dx: False where dx is not to be computed; it is None then.
        with_parameters: False where dgamma and dbeta are not; they are None then, and so may
            `x` be, which dx does not depend on.
        checked: whether the variance is known not to be negative.
    """
    epsilon = checks.check_epsilon(epsilon)
    operands = Operands(x if with_parameters else dy, axis)
    flat_mean = operands.parameter(mean, "mean")
    flat_variance = operands.parameter(variance, "variance")
    if not checked:
        operands.library.check_not_negative(flat_variance, "variance")
    flat_gamma = None if gamma is None else operands.parameter(gamma, "gamma")
    saved = operands.table(SAVED)
    operands.launch.constants(flat_mean, flat_variance, flat_gamma, saved)
    inputs = {"mean": mean, "variance": variance, "gamma": gamma}
    return _backward(
        operands, dy, saved, None, epsilon, inputs,
        training=False, with_dx=with_dx, with_parameters=with_parameters, out=out,
    )  # fmt: skip


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
        epsilon: added to the variance, at least 0. With 0, a variance of 0 divides by zero.
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
    epsilon = checks.check_epsilon(epsilon)
    limits = RenormClipping.of(clipping).limits
    library = library_of(mean)
    first = library.reals(mean, "mean", None)
    flat_mean, flat_variance, reference_mean, reference_stddev = (
        dense(library, library.reals(values, name, first)).reshape((first.size,))
        for name, values in (
            ("mean", mean),
            ("variance", variance),
            ("renorm_mean", renorm_mean),
            ("renorm_stddev", renorm_stddev),
        )
    )
    library.check_not_negative(flat_variance, "variance")
    library.check_not_negative(reference_stddev, "renorm_stddev")
    reference = Reference(reference_mean, reference_stddev, False, limits)
    corrections = library.empty((2, first.size), np.float64, first)
    launchers_of(library).renorm_correction(
        flat_mean, flat_variance, reference, epsilon, corrections
    )
    r, d = library.rows(corrections, first.shape)
    return r, d


def batch_norm_forward(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: Axis = -1,
    mask: Array | None = None,
    epsilon: float = 1e-3,
    renorm: Renorm | None = None,
    statistics: BatchStatistics | None = None,
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
            the rank of `x` with 1 on every reduced axis; None for 1 and 0. Off a device a
            number serves for all channels; on one they are arrays of floats, as the reference is.
        axis: the channel axis, or a list of them.
        mask: as for :func:`batch_statistics`.
        epsilon: added to the variance, at least 0. With 0, a variance of 0 divides by zero.
        renorm: a :class:`Renorm`, the reference to correct against.
        statistics: of the batch that `x` is a part of, where it is not all of it: the merged
            :func:`batch_statistics` of all parts. Then `mask` serves the backward pass only.
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
    epsilon = checks.check_epsilon(epsilon)
    operands = Operands(x, axis)
    parameters = operands.parameters(gamma, beta)
    reference = operands.reference(renorm)
    on = operands.mask(mask)
    whole = None if statistics is None else _of_whole(operands, statistics)
    if out is not None:
        out = operands.checked_out(out, {"x": x, "gamma": gamma, "beta": beta, "mask": mask})
    y = operands.output(out)
    saved = operands.table(SAVED)
    if whole is None:
        operands.launch.forward(
            operands.canonical_x, on and on.canonical, parameters, epsilon, reference, None,
            y[1], saved,
        )  # fmt: skip
    else:
        operands.launch.forward_given(
            operands.canonical_x, whole, parameters, epsilon, reference, None, y[1], saved
        )
    return operands.finish(y), _saved(operands, saved, axis, epsilon, on)


def _of_whole(operands: Operands, statistics: BatchStatistics) -> tuple[Described, ...]:
    """Count, mean and variance that are given, as launchers take them."""
    if not isinstance(statistics, BatchStatistics):
        raise TypeError(f"statistics must be a BatchStatistics, got {type(statistics).__name__}")
    return tuple(
        operands.parameter(getattr(statistics, name), f"statistics.{name}")
        for name in ("count", "mean", "variance")
    )


def _saved(
    operands: Operands, saved: Described, axis: Axis, epsilon: float, mask: Mask | None
) -> Saved:
    operands.library.seal(saved)
    return Saved(saved, operands.layout, operands.x.dtype, axis, epsilon, mask, operands.library)


def train(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    statistics: MovingStatistics,
    *,
    axis: Axis,
    mask: Array | None,
    epsilon: float,
    out: Array | None = None,
) -> tuple[Array, Saved, dict[str, Array]]:
    """:func:`batch_norm_forward` of a layer: it moves the statistics, and corrects against them.

    Returns:
        y, what the backward needs, and the moved statistics by name, each of the dtype it had.
    """
    operands = Operands(x, axis)
    parameters = operands.parameters(gamma, beta)
    moving = {name: operands.parameter(statistics.arrays[name], name) for name in statistics.names}
    on = operands.mask(mask)
    moved = {
        name: operands.channels_output(statistics.arrays[name], flat.dtype, statistics.moved, name)
        for name, flat in moving.items()
    }
    if out is not None:
        out = operands.checked_out(out, {"x": x, "gamma": gamma, "beta": beta, "mask": mask})
    y = operands.output(out)
    saved = operands.table(SAVED)
    operands.launch.forward(
        operands.canonical_x, on and on.canonical, parameters, epsilon,
        statistics.reference(moving),
        Moving(
            tuple(moving.values()),
            tuple(canonical for _, canonical, _ in moved.values()),
            statistics.momentum,
            statistics.renorm_momentum if statistics.separate else None,
            statistics.skip_nonfinite,
        ),
        y[1], saved,
    )  # fmt: skip
    results = {name: operands.finish(each) for name, each in moved.items()}
    return operands.finish(y), _saved(operands, saved, axis, epsilon, on), results


def batch_norm_backward(
    dy: Array, x: Array, saved: Saved, *, sums: Array | None = None, out: Array | None = None
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
        sums: of the batch that `x` is a part of, where it is not all of it: the
            :func:`gradient_sums` of all parts, added. dgamma and dbeta are the whole batch's then.
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
    operands, table, mask = _operands_of_saved(x, saved)
    if sums is None:
        return _backward(operands, dy, table, mask, saved._epsilon, out=out)
    return _backward_of_part(operands, dy, table, mask, saved._epsilon, sums, out=out)


def gradient_sums(dy: Array, x: Array, saved: Saved) -> Array:
    """What the gradients of a batch take of a part of it, to be added up over all parts.

        Σ dy        Σ dy · x̂        x̂ = (x − mean) / sqrt(variance + epsilon)

    over all positions, by the statistics of the forward pass: those of the whole batch, which
    :func:`batch_norm_forward` was given. Where `dy` is 0 nothing is added, whatever `x` holds.
    Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3.

    Args:
        dy, x, saved: as for :func:`batch_norm_backward`.

    Returns:
        (2, channels) float64, the channels of a list of axes in C order; where `x` is.

    Raises:
        TypeError: a wrong type or dtype, or arrays of several libraries.
        ValueError: a wrong shape.

    >>> import numpy as np
    >>> x, dy = np.array([[1.0], [2.0], [6.0]]), np.array([[1.0], [0.0], [2.0]])
    >>> parts = [slice(0, 1), slice(1, 3)]
    >>> whole = BatchStatistics.merge_all(batch_statistics(x[part]) for part in parts)
    >>> saved = [batch_norm_forward(x[part], statistics=whole)[1] for part in parts]
    >>> sums = sum(gradient_sums(dy[part], x[part], one) for part, one in zip(parts, saved))
    >>> dx = [
    ...     batch_norm_backward(dy[part], x[part], one, sums=sums)[0]
    ...     for part, one in zip(parts, saved)
    ... ]
    >>> _, saved = batch_norm_forward(x)
    >>> bool(np.allclose(np.concatenate(dx), batch_norm_backward(dy, x, saved)[0]))
    True
    """
    operands, table, _ = _operands_of_saved(x, saved)
    described = operands.canonical(operands.like_x(dy, "dy"))
    sums = operands.table(SUMS)
    # dgamma and dbeta of a part are no one's: `batch_norm_backward` gives those of the whole.
    gradients = operands.table(GRADIENTS, parameter_dtype(operands.x.dtype))
    operands.launch.gradient_sums(
        described, operands.canonical_x, table, saved._epsilon, sums, gradients
    )
    return operands.library.array(to_c_order(operands.library, sums, operands.layout))


def _operands_of_saved(x: Array, saved: Saved) -> tuple[Operands, Described, Any]:
    """The operands of a backward, and what was saved, and the mask, as launchers take them."""
    if not isinstance(saved, Saved):
        raise TypeError(f"saved must come from batch_norm_forward, got {type(saved).__name__}")
    library = saved._library
    if library_of(x) is not library:
        raise TypeError(
            f"x must be what the forward pass had, {library.where}, got {type(x).__name__}"
        )
    operands = Operands(x, saved._axis, saved._check)
    table, mask = library.on_stream_of(saved._saved, operands.x), saved._mask
    canonical_mask = mask and mask.canonical
    if operands.layout.order != saved._layout.order:
        # The same values in another memory order.
        table = to_c_order(library, table, saved._layout)
        table = from_c_order(library, table, operands.layout)
        if mask is not None:
            on = library.on_stream_of(mask.on, operands.x)
            canonical_mask = operands.launch.mask_of(on, operands.layout)
    return operands, table, canonical_mask


def backward_from_saved(
    dy: Array,
    x: Array,
    values: Array,
    *,
    axis: Axis,
    mask: Array | None,
    epsilon: float,
    with_dx: bool = True,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """:func:`batch_norm_backward` for callers that can keep arrays only: the adapters.

    Args:
        dy, x, out: as there.
        values: ``saved.values`` of the forward pass.
        axis, mask, epsilon: as they were given to the forward pass.
        with_dx: False where dx is not to be computed; it is None then.
    """
    operands = Operands(x, axis)
    saved = operands.saved(values)
    on = operands.mask(mask)
    return _backward(operands, dy, saved, on and on.canonical, epsilon, with_dx=with_dx, out=out)


def _backward_of_part(
    operands: Operands,
    dy: Array,
    saved: Described,
    mask: Any,
    epsilon: float,
    sums: Array,
    out: Array | None,
) -> tuple[Array, Array, Array]:
    """`_backward`, by the sums over the batch that x is a part of."""
    described = operands.like_x(dy, "dy")
    flat_sums = operands.sums(sums)
    if out is not None:
        given = {"dy": dy, "x": operands.library.array(operands.x), "sums": sums}
        out = operands.checked_out(out, given, over=("dy", "x"))
    dx = operands.output(out)
    gradients = operands.table(GRADIENTS, parameter_dtype(operands.x.dtype))
    operands.launch.gradient(
        operands.canonical(described), operands.canonical_x, saved, mask, epsilon, flat_sums,
        dx[1], gradients,
    )  # fmt: skip
    return operands.finish(dx), *operands.rows(gradients)


def _backward(
    operands: Operands,
    dy: Array,
    saved: Described,
    mask: Any,
    epsilon: float,
    inputs: dict[str, Any] | None = None,
    *,
    training: bool = True,
    with_dx: bool = True,
    with_parameters: bool = True,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """See :func:`gradients_of_normalize` for what is wanted; training: see `cpu.launch.backward`.

    Keywords, since a call names the few in which it differs.
    """
    described = operands.like_x(dy, "dy")
    dx = None
    if with_dx:
        if out is not None:
            given = {"dy": dy, "x": operands.library.array(operands.x), **(inputs or {})}
            out = operands.checked_out(out, given, over=("dy", "x"))
        dx = operands.output(out)
    gradients = None
    if with_parameters:
        gradients = operands.table(GRADIENTS, parameter_dtype(operands.x.dtype))
    operands.launch.backward(
        operands.canonical(described), operands.canonical_x, saved, mask, epsilon, training,
        dx and dx[1], gradients,
    )  # fmt: skip
    dgamma, dbeta = (None, None) if gradients is None else operands.rows(gradients)
    return dx and operands.finish(dx), dgamma, dbeta
