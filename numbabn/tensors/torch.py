"""torch's tensors, on the CPU and on CUDA devices, as they lie in memory, without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ..channels import D, R
from ..embedded.operations import Operation, Shaped
from .compute import COMPUTE, Compute, Wanted
from .late import read_late

try:
    # NumPy knows bfloat16 by ml_dtypes only.
    from ml_dtypes import bfloat16
except ModuleNotFoundError:
    bfloat16 = None

Tensors = dict[str, Any]


def run(
    operation: Operation, inputs: Mapping[str, Any], attributes: Any, wanted: Wanted = None
) -> Tensors:
    """Run an operation, eagerly.

    Args:
        inputs: the operands that are there, by name: tensors, or a `Late`.
        wanted: the names of the results that are; None for all.

    Returns:
        The results by name. What is read-only, `saved` on the CPU, stays a NumPy array.
    """
    given = read_late(inputs)
    results = _compute_of(operation, given)(_arrays(given), attributes, wanted, {})
    return {name: _tensor(each) for name, each in results.items()}


def corrections(saved: Any) -> tuple[Any, Any]:
    """r and d of what a forward saved."""
    if isinstance(saved, torch.Tensor):
        return saved[R], saved[D]
    r, d = (torch.from_numpy(saved[row].copy()) for row in (R, D))
    return r, d


def shaped(tensor: Any) -> Shaped:
    """The shape and the name of the dtype of a tensor."""
    return Shaped(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _compute_of(operation: Operation, inputs: Tensors) -> Compute:
    """What computes `operation` where its inputs are: they go there as `_arrays`."""
    first = inputs[operation.operands[0]]
    if first.is_meta:
        return partial(_compute_shapes, operation)
    return partial(_compute_on_device, operation) if first.is_cuda else COMPUTE[operation.name]


def _compute_on_device(operation: Operation, inputs: Tensors, *others: Any) -> Tensors:
    # What is moved on a device has at least 32 bits.
    moved = {name: inputs[name] for name in operation.moved if name in inputs}
    wide = {name: each.float() for name, each in moved.items() if each.itemsize < 4}
    results = COMPUTE[operation.name]({**inputs, **wide}, *others)
    return {**results, **{name: results[name].to(each.dtype) for name, each in moved.items()}}


def _compute_shapes(
    operation: Operation, inputs: Tensors, attributes: Any, wanted: Wanted, outputs: Tensors
) -> Tensors:
    """Tensors without memory, with which Keras finds out shapes."""
    given = {name: shaped(value) for name, value in inputs.items()}
    results = operation.results_of(given, attributes)
    return {
        name: torch.empty(each.shape, dtype=getattr(torch, each.dtype), device="meta")
        for name, each in results.items()
        if wanted is None or name in wanted
    }


def _arrays(inputs: Tensors) -> Tensors:
    """The memory of tensors as NumPy arrays; those that are not on the CPU stay tensors."""
    return {name: array_of(value, name) for name, value in inputs.items()}


def array_of(value: Any, name: str) -> Any:
    """The memory of a tensor, as `_arrays` has it."""
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach()
    if tensor.is_cuda or tensor.is_meta:
        return tensor
    if value.device.type != "cpu":
        raise TypeError(
            f"{name} is on the device {value.device}: numbabn computes on the CPU or on a CUDA "
            "device, where x and all other inputs have to be"
        )
    if tensor.dtype == torch.bfloat16:
        if bfloat16 is None:
            raise TypeError(
                f"{name} is of dtype bfloat16, which needs ml_dtypes: pip install ml_dtypes"
            )
        # torch hands over its bits.
        return tensor.view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()


def _tensor(array: Any) -> Any:
    """A tensor in the memory of a new NumPy array; a read-only one stays: torch has no such."""
    if isinstance(array, torch.Tensor) or not array.flags.writeable:
        return array
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
