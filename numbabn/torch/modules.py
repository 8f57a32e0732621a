"""Batch normalization as modules of torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..channels import COUNT, MEAN, VARIANCE
from ..checks import check_epsilon, check_momentum
from ..interrupts import Uninterrupted
from ..renorm import RenormClipping
from ..tensors.operators import in_program
from ..tensors.torch import array_of
from .functional import infer, train


class BatchNorm(_BatchNorm):
    """`torch.nn.BatchNorm1d` and its kin for any rank, computed by Numba kernels, with masks.

    In training, per channel, over the positions S whose mask is on (all without a mask):

        y = weight · (x̂ · r + d) + bias         x̂ = (x − mean) / sqrt(variance + eps)
        mean = Σ_S x / n       variance = Σ_S (x − mean)² / n       n = |S|
        running = running · (1 − momentum) + batch · momentum       r = 1, d = 0 without renorm

    and in evaluation the running statistics take the place of mean and variance. With `renorm`,

        r = clip(s / s_ref, rmin, rmax)         s = sqrt(variance + eps)
        d = clip((mean − running_mean) / s_ref, −dmax, dmax)        s_ref = sqrt(running_var + eps)

    by the running statistics from before the batch. Parameters, buffers and state dictionaries
    are those of torch's modules, so either loads what the other saved. It is one of torch's
    (`torch.nn.modules.batchnorm._BatchNorm`), and what looks for these finds it.

    Different on purpose: padding that a mask leaves out may hold NaN; a channel whose mask is off
    everywhere keeps its running statistics; data far from 0 lose nothing; a channel of a single
    value gives `bias` and no error. See Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3, and
    Ioffe 2017 (arXiv 1702.03275), section 3.

    Args:
        num_features: the number of channels.
        eps: added to the variance.
        momentum: of the running statistics, in [0, 1]; None for their average over all batches.
        affine: whether there are `weight` and `bias`.
        track_running_stats: whether there are running statistics; without them evaluation takes
            the batch's.
        device, dtype: of parameters and buffers.
        bias: whether there is a `bias`, beside `weight`.
        axis: the channel axis.
        renorm: whether to correct the batch's statistics against the running ones.
        renorm_clipping: a :class:`numbabn.RenormClipping`, a dictionary with its keys, or None
            for no limits; may be replaced between steps.
        unbiased: whether `running_var` follows the variance over n − 1 rather than n. None for
            torch's way, True, or False with `renorm`, where s and s_ref are to agree.

    Call arguments:
        x: float16, bfloat16, float32 or float64 of rank 2 or more.
        mask: bool, integer or float, nonzero is on. Of the rank of `x`, or of one less: then it
            has every axis but the channels'. Sizes are those of `x`, or 1.

    Raises:
        TypeError, ValueError: an argument of a wrong type, or out of range.

    >>> import torch
    >>> norm = BatchNorm(3, axis=-1)
    >>> y = norm(torch.ones(2, 5, 3), mask=torch.ones(2, 5))
    >>> list(norm.state_dict())
    ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        axis: int = 1,
        renorm: bool = False,
        renorm_clipping: Any = None,
        unbiased: bool | None = None,
    ) -> None:
        if not isinstance(axis, int) or isinstance(axis, bool):
            raise TypeError(f"axis must be an int, got {type(axis).__name__}")
        if renorm and not track_running_stats:
            raise ValueError(
                "renorm=True needs track_running_stats=True: it corrects against these statistics"
            )
        super().__init__(
            num_features,
            check_epsilon(eps),
            None if momentum is None else check_momentum(momentum, "momentum"),
            affine,
            track_running_stats,
            device,
            dtype,
        )
        if not bias:
            self.register_parameter("bias", None)
        self.axis = axis
        self.renorm = bool(renorm)
        self.renorm_clipping = renorm_clipping
        self.unbiased = not renorm if unbiased is None else bool(unbiased)

    @property
    def renorm_clipping(self) -> RenormClipping:
        """The limits of the correction; may be replaced at any time."""
        return self._clipping

    @renorm_clipping.setter
    def renorm_clipping(self, clipping: Any) -> None:
        self._clipping = RenormClipping.of(clipping)
        # What a program reads: it would be made anew for every other number.
        self._limits = torch.tensor(self._clipping.limits)

    def forward(self, x: Any, mask: Any = None) -> Any:
        """Normalize `x`; in training by its own statistics, which the running ones follow."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a torch tensor, got {type(x).__name__}")
        self._check_input_dim(x)
        inputs = {"x": x}
        if self.weight is not None:
            inputs["gamma"] = self.weight
        if self.bias is not None:
            inputs["beta"] = self.bias
        if self.running_mean is not None and not self.training:
            return infer(inputs, self.running_mean, self.running_var, self.axis, self.eps)
        reference: tuple[Any, ...] = ()
        if self.renorm:
            limits = self._limits.unbind() if in_program() else self._clipping.limits
            reference = self.running_mean, self.running_var, limits
        results = train(inputs, mask, reference, self.axis, self.eps)
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._move(results["saved"])
        return results["y"]

    def _check_input_dim(self, x: Any) -> None:
        if x.ndim < 2:
            raise ValueError(f"x must have rank 2 or more, got {x.ndim}")

    def _move(self, saved: Any) -> None:
        """Move the running statistics towards those of a batch."""
        if in_program():
            self._assign(saved)
        else:
            with Uninterrupted():
                self._assign(saved)

    def _assign(self, saved: Any) -> None:
        count, mean, variance = saved[COUNT], saved[MEAN], saved[VARIANCE]
        if self.unbiased:
            variance = variance * (count / (count - 1).clip(1))
        self.num_batches_tracked.add_(1)
        part = self.momentum
        if part is None:
            part = 1 / self.num_batches_tracked.double()
        for running, batch in ((self.running_mean, mean), (self.running_var, variance)):
            if isinstance(saved, torch.Tensor):
                running.copy_(_moved(torch, running, batch, count, part))
            else:
                # On the CPU, eagerly: NumPy takes half the time of torch for so little.
                before = array_of(running, "running statistics").astype(np.float64)
                moved = _moved(np, before, batch, count, float(part))
                running.copy_(torch.from_numpy(moved))

    def extra_repr(self) -> str:
        """What differs from torch's modules is last."""
        text = f"{super().extra_repr()}, axis={self.axis}"
        if self.renorm:
            text += f", renorm=True, renorm_clipping={self.renorm_clipping}"
        return text if self.unbiased is not self.renorm else f"{text}, unbiased={self.unbiased}"


def _moved(library: Any, running: Any, batch: Any, count: Any, part: Any) -> Any:
    """Where a channel has no value, nothing moves. library: numpy, or torch"""
    return library.where(count > 0, running + (batch - running) * part, running)


class BatchNorm1d(BatchNorm):
    """:class:`BatchNorm` for (batch, channels) and (batch, channels, length)."""

    def _check_input_dim(self, x: Any) -> None:
        if x.ndim not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {x.ndim}D input)")


class BatchNorm2d(BatchNorm):
    """:class:`BatchNorm` for (batch, channels, height, width)."""

    def _check_input_dim(self, x: Any) -> None:
        if x.ndim != 4:
            raise ValueError(f"expected 4D input (got {x.ndim}D input)")


class BatchNorm3d(BatchNorm):
    """:class:`BatchNorm` for (batch, channels, depth, height, width)."""

    def _check_input_dim(self, x: Any) -> None:
        if x.ndim != 5:
            raise ValueError(f"expected 5D input (got {x.ndim}D input)")
