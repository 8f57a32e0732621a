"""Of `keras.ops` what `expressions` is made of, for torch without Keras."""

from __future__ import annotations

from typing import Any

import torch
from torch import (
    broadcast_to,
    isfinite,
    logical_or,
    ones_like,
    reshape,
    sqrt,
    where,
    zeros_like,
)
from torch import unsqueeze as expand_dims

__all__ = [
    "broadcast_to",
    "cast",
    "expand_dims",
    "isfinite",
    "logical_or",
    "maximum",
    "ones_like",
    "reshape",
    "shape",
    "sqrt",
    "stop_gradient",
    "sum",
    "where",
    "zeros_like",
]


def cast(tensor: Any, dtype: str) -> Any:
    return tensor.to(getattr(torch, dtype))


def maximum(tensor: Any, number: float) -> Any:
    return tensor.clamp(min=number)


def shape(tensor: Any) -> Any:
    return tensor.shape


def stop_gradient(tensor: Any) -> Any:
    return tensor.detach()


def sum(tensor: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return tensor.sum(axis, keepdim=keepdims)
