"""Batch normalization of torch's tensors, as a function."""

from __future__ import annotations

from typing import Any

import torch

from ..checks import check_epsilon
from ..embedded.operations import LIMITS, Attributes
from ..layout import Axis, plain_axis
from ..renorm import Renorm
from ..tensors import torch_ops
from ..tensors.autograd import INFERENCE, TRAINING, apply, transform_of
from ..tensors.expressions import y_of_inference
from ..tensors.operators import in_program


def batch_norm(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    mean: Any = None,
    variance: Any = None,
    axis: Axis = 1,
    mask: Any = None,
    epsilon: float = 1e-5,
    renorm: Renorm | None = None,
) -> Any:
    """Batch normalization of a tensor, differentiable with respect to x, gamma and beta.

        y = gamma · (x̂ · r + d) + beta          x̂ = (x − mean) / sqrt(variance + epsilon)

    By default mean and variance are those of each channel of `x`, over the positions whose mask
    is on, and gradients take their way through them; r = 1 and d = 0 unless `renorm` is given.
    Where `mean` and `variance` are given, as in inference, they are constants. Gradients can be
    differentiated once more. Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithms 1 and 2;
    Ioffe 2017 (arXiv 1702.03275), section 3.

    Args:
        x: float16, bfloat16, float32 or float64 of rank 2 or more, in any memory order, on the
            CPU or on a CUDA device.
        gamma, beta: one value a channel: ``(channels,)``, or for a list of several axes the rank
            of `x` with 1 on every reduced axis; None for 1 and 0.
        mean, variance: as `gamma`; both or neither.
        axis: the channel axis, or a list of them; negative ones count from the last.
        mask: bool, integer or float, nonzero is on. Of the rank of `x`, or, with one channel
            axis, of one less: then it has every axis but the channels'. Sizes are those of `x`,
            or 1.
        epsilon: added to the variance.
        renorm: a :class:`numbabn.Renorm` of tensors, the reference to correct against.

    Returns:
        y, of the dtype and memory order of `x`.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or value, or arguments that exclude each other.
        NotImplementedError: by the batch's statistics under a transform of `torch.func`, or in
            torch's forward mode.

    >>> import torch
    >>> x = torch.tensor([[1.0], [3.0], [torch.nan]])
    >>> batch_norm(x, mask=torch.tensor([True, True, False]), epsilon=1e-12).ravel()
    tensor([-1.,  1., nan])
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a torch tensor, got {type(x).__name__}")
    if (mean is None) != (variance is None):
        given, other = ("mean", "variance") if variance is None else ("variance", "mean")
        raise ValueError(f"mean and variance must be given together, got {given} without {other}")
    inputs = {"x": x, **_there(gamma=gamma, beta=beta)}
    if mean is not None:
        for name, value in (("mask", mask), ("renorm", renorm)):
            if value is not None:
                raise ValueError(
                    f"{name} must be None where mean and variance are given: it changes the "
                    "batch's statistics, which are not used"
                )
        return infer(inputs, mean, variance, axis, epsilon)
    reference: tuple[Any, ...] = ()
    if renorm is not None:
        if not isinstance(renorm, Renorm):
            raise TypeError(f"renorm must be a Renorm, got {type(renorm).__name__}")
        # Of a stddev below sqrt(epsilon) it makes that, as the arrays' functions do.
        spread = (renorm.stddev.double().square() - epsilon).clamp(min=0)
        reference = renorm.mean.double(), spread, renorm.clipping.limits
    return train(inputs, mask, reference, axis, epsilon)["y"]


def infer(inputs: dict[str, Any], mean: Any, variance: Any, axis: Axis, epsilon: float) -> Any:
    """y by given statistics. inputs: x, and gamma and beta where they are there."""
    given = {**inputs, "moving_mean": mean, "moving_variance": variance}
    attributes = _attributes(axis, epsilon, False)
    if _transform(given):
        return y_of_inference(torch_ops, given, attributes, None)
    return apply(INFERENCE, given, attributes)["y"]


def train(
    inputs: dict[str, Any], mask: Any, reference: tuple[Any, ...], axis: Axis, epsilon: float
) -> dict[str, Any]:
    """y, and what else a forward gives, by the batch's statistics.

    reference: mean, variance and limits to correct against; empty for no renorm
    """
    where = _transform(inputs)
    if where:
        raise NotImplementedError(
            f"numbabn.torch does not train {where}: differentiate with torch.autograd.grad, or use "
            "torch.nn's modules, which numbabn.torch.convert(module, to_torch=True) puts back"
        )
    given = dict(inputs)
    if mask is not None:
        given["mask"] = _of_full_rank(mask, inputs["x"], axis)
    if reference:
        given["moving_mean"], given["moving_variance"], limits = reference
        given |= dict(zip(LIMITS, limits, strict=True))
    return apply(TRAINING, given, _attributes(axis, epsilon, bool(reference)))


def _there(**tensors: Any) -> dict[str, Any]:
    for name, value in tensors.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    return {name: value for name, value in tensors.items() if value is not None}


def _attributes(axis: Axis, epsilon: float, renorm: bool) -> Attributes:
    plain = plain_axis(axis)
    return Attributes(
        plain if isinstance(plain, int) else tuple(plain),
        check_epsilon(epsilon),
        momentum=0.0,
        renorm=renorm,
        renorm_momentum=None,
    )


def _of_full_rank(mask: Any, x: Any, axis: Axis) -> Any:
    """A mask with the channel axis, which it may lack."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask must be a torch tensor, got {type(mask).__name__}")
    plain = plain_axis(axis)
    if mask.ndim == x.ndim - 1 and isinstance(plain, int) and -x.ndim <= plain < x.ndim:
        return mask.unsqueeze(plain % x.ndim)
    return mask


def _transform(tensors: dict[str, Any]) -> str:
    return "" if in_program() else transform_of(tensors)
