"""The oracle: batch normalization in plain NumPy and float64, to be read beside the formulas.

Arrays have any rank, and `axis` is an int or a list of ints. Per-channel arrays go in and come
out in `parameter_shape`. Nothing here imports numbabn; test_reference.py checks the gradients
against finite differences.
"""

from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """Per-channel statistics over the positions whose mask is on."""

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class Forward(NamedTuple):
    """The training forward: the output, the batch's statistics and the renorm correction."""

    y: np.ndarray
    statistics: Statistics
    r: np.ndarray
    d: np.ndarray


def channel_axes(rank, axis):
    """The channel axes as increasing, non-negative numbers."""
    return tuple(sorted(int(a) % rank for a in np.atleast_1d(axis)))


def reduced_axes(rank, axis):
    """Every axis that is not a channel axis."""
    return tuple(a for a in range(rank) if a not in channel_axes(rank, axis))


def parameter_shape(shape, axis):
    """`(channels,)` for one axis; for several, `shape` with 1 on every reduced axis."""
    axes = channel_axes(len(shape), axis)
    if len(axes) == 1:
        return (shape[axes[0]],)
    return tuple(length if a in axes else 1 for a, length in enumerate(shape))


def broadcastable(values, shape, axis):
    """A per-channel array (or a number) in the form that broadcasts against `shape`."""
    values = np.asarray(values, np.float64)
    if values.ndim == 0:
        return values
    axes = channel_axes(len(shape), axis)
    return values.reshape([length if a in axes else 1 for a, length in enumerate(shape)])


def channel_sums(values, axis):
    """The sums over the reduced axes, in `parameter_shape`."""
    sums = np.sum(values, axis=reduced_axes(values.ndim, axis))
    return sums.reshape(parameter_shape(values.shape, axis))


def mask_on(mask, shape):
    """The positions whose mask is on; a mask of one axis less than `shape` gets a trailing one."""
    if mask is None:
        return np.ones(shape, bool)
    on = np.asarray(mask) != 0
    if on.ndim == len(shape) - 1:
        on = on[..., np.newaxis]
    return np.broadcast_to(on, shape)


def statistics(x, *, axis=-1, mask=None):
    """Count, mean and biased variance over the positions that are on; zeros where none is."""
    x = np.asarray(x, np.float64)
    on = mask_on(mask, x.shape)
    count = channel_sums(on, axis)
    n = np.maximum(count, 1)
    mean = channel_sums(np.where(on, x, 0.0), axis) / n
    centred = np.where(on, x - broadcastable(mean, x.shape, axis), 0.0)
    # A second pass takes the rounding of the first out of the mean: it matters at 1e6 sigma.
    correction = channel_sums(centred, axis) / n
    centred = np.where(on, centred - broadcastable(correction, x.shape, axis), 0.0)
    return Statistics(count, mean + correction, channel_sums(centred**2, axis) / n)


def standardize(x, mean, variance, *, axis=-1, epsilon=1e-3):
    """xhat = (x - mean) / sqrt(variance + epsilon)."""
    x = np.asarray(x, np.float64)
    variance = broadcastable(variance, x.shape, axis)
    return (x - broadcastable(mean, x.shape, axis)) / np.sqrt(variance + epsilon)


def normalize(x, mean, variance, gamma=None, beta=None, *, axis=-1, epsilon=1e-3, r=1.0, d=0.0):
    """y = gamma * (xhat * r + d) + beta."""
    x = np.asarray(x, np.float64)
    gamma, beta = (1.0 if gamma is None else gamma), (0.0 if beta is None else beta)
    gamma, beta, r, d = (broadcastable(each, x.shape, axis) for each in (gamma, beta, r, d))
    with np.errstate(invalid="ignore"):  # masked-out positions may hold inf, and inf * 0 is NaN
        return gamma * (standardize(x, mean, variance, axis=axis, epsilon=epsilon) * r + d) + beta


def renorm_correction(
    mean,
    variance,
    reference_mean,
    reference_stddev,
    *,
    epsilon=1e-3,
    rmin=0.0,
    rmax=np.inf,
    dmax=np.inf,
):
    """The factor r and the shift d of batch renormalization (arXiv 1702.03275, section 3)."""
    mean, variance, m_ref, s_ref = (
        np.asarray(each, np.float64) for each in (mean, variance, reference_mean, reference_stddev)
    )
    s_ref = np.maximum(s_ref, np.sqrt(epsilon))
    r = np.clip(np.sqrt(variance + epsilon) / s_ref, rmin, rmax)
    d = np.clip((mean - m_ref) / s_ref, -dmax, dmax)
    return r, d


def forward(x, gamma=None, beta=None, *, axis=-1, mask=None, epsilon=1e-3, renorm=None):
    """The training forward; `renorm` is the reference `(mean, stddev, clipping dict)` or None."""
    batch = statistics(x, axis=axis, mask=mask)
    r, d = np.ones_like(batch.mean), np.zeros_like(batch.mean)
    if renorm is not None:
        reference_mean, reference_stddev, clipping = renorm
        r, d = renorm_correction(
            batch.mean,
            batch.variance,
            reference_mean,
            reference_stddev,
            epsilon=epsilon,
            **clipping,
        )
    y = normalize(x, batch.mean, batch.variance, gamma, beta, axis=axis, epsilon=epsilon, r=r, d=d)
    return Forward(y, batch, r, d)


def product(dy, factor):
    """dy * factor, where a zero dy gives zero whatever the factor is."""
    return np.where(dy == 0, 0.0, dy * np.where(dy == 0, 0.0, factor))


def backward(dy, x, gamma=None, *, axis=-1, mask=None, epsilon=1e-3, r=1.0, d=0.0):
    """The gradients (dx, dgamma, dbeta) of the training forward; r and d are constants."""
    dy, x = np.asarray(dy, np.float64), np.asarray(x, np.float64)
    batch = statistics(x, axis=axis, mask=mask)
    on = mask_on(mask, x.shape)
    n, rstd, gamma, r, d = (
        broadcastable(each, x.shape, axis)
        for each in (
            np.maximum(batch.count, 1),
            1.0 / np.sqrt(batch.variance + epsilon),
            1.0 if gamma is None else gamma,
            r,
            d,
        )
    )
    xhat = standardize(x, batch.mean, batch.variance, axis=axis, epsilon=epsilon)
    dbeta = channel_sums(dy, axis)
    dgamma = channel_sums(product(dy, xhat * r + d), axis)
    sum_dy = broadcastable(dbeta, x.shape, axis)
    sum_dy_xhat = broadcastable(channel_sums(product(dy, xhat), axis), x.shape, axis)
    through_statistics = np.where(on, (sum_dy + np.where(on, xhat, 0.0) * sum_dy_xhat) / n, 0.0)
    return gamma * r * rstd * (dy - through_statistics), dgamma, dbeta


def normalize_backward(dy, x, mean, variance, gamma=None, *, axis=-1, epsilon=1e-3):
    """The gradients (dx, dgamma, dbeta) of the inference forward: statistics are constants."""
    dy, x = np.asarray(dy, np.float64), np.asarray(x, np.float64)
    scale = np.broadcast_to(1.0 if gamma is None else gamma, np.shape(variance))
    scale = scale / np.sqrt(np.asarray(variance, np.float64) + epsilon)
    xhat = standardize(x, mean, variance, axis=axis, epsilon=epsilon)
    dx = broadcastable(scale, x.shape, axis) * dy
    return dx, channel_sums(product(dy, xhat), axis), channel_sums(dy, axis)


def moving_average(moving, batch, momentum, count):
    """moving * momentum + batch * (1 - momentum); channels without a position stay as they are."""
    return np.where(count > 0, moving * momentum + batch * (1.0 - momentum), moving)


def training_step(
    weights,
    x,
    *,
    axis=-1,
    mask=None,
    momentum=0.99,
    epsilon=1e-3,
    renorm=False,
    renorm_momentum=0.99,
    clipping=None,
):
    """One training call of the layer: its Forward, and its weights (by name) afterwards.

    With renorm, `renorm_momentum=None` takes the moving statistics as the reference (shared);
    a number keeps a second pair of statistics for it (separate).
    """
    weights = {name: np.asarray(each, np.float64) for name, each in weights.items()}
    reference = None
    if renorm and renorm_momentum is None:
        stddev = np.sqrt(weights["moving_variance"] + epsilon)
        reference = (weights["moving_mean"], stddev, clipping or {})
    elif renorm:
        reference = (weights["renorm_mean"], weights["renorm_stddev"], clipping or {})
    result = forward(
        x,
        weights.get("gamma"),
        weights.get("beta"),
        axis=axis,
        mask=mask,
        epsilon=epsilon,
        renorm=reference,
    )
    count, mean, variance = result.statistics
    stddev = np.sqrt(variance + epsilon)

    def moved(name, batch, rate):
        return moving_average(weights[name], batch, rate, count)

    after = dict(weights, moving_mean=moved("moving_mean", mean, momentum))
    if renorm and renorm_momentum is not None:
        after["moving_stddev"] = moved("moving_stddev", stddev, momentum)
        after["renorm_mean"] = moved("renorm_mean", mean, renorm_momentum)
        after["renorm_stddev"] = moved("renorm_stddev", stddev, renorm_momentum)
        moving_variance = np.maximum(after["moving_stddev"] ** 2 - epsilon, 0.0)
        after["moving_variance"] = np.where(count > 0, moving_variance, weights["moving_variance"])
    else:
        after["moving_variance"] = moved("moving_variance", variance, momentum)
    return result, after
