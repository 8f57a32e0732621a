"""torch: tensors on the CPU and on CUDA devices, as they lie in memory, without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from ml_dtypes import bfloat16
from torch.autograd import forward_ad

from ...channels import D, R
from ...cuda.availability import why_unavailable
from ...embedded.operations import Operation, Shaped
from ..compute import COMPUTE, Compute, Wanted
from . import read_late

SUPPORTS_JIT = True  # torch.compile: `run` is a break in its graph.
WIRING = "before"

Tensors = dict[str, Any]


def run(
    operation: Operation, inputs: Mapping[str, Any], attributes: Any, wanted: Wanted = None
) -> Tensors:
    """Run an operation; see the package's docstring."""
    given = read_late(inputs)
    results = _compute_of(operation, given)(_arrays(given), attributes, wanted, {})
    return {name: _tensor(each) for name, each in results.items()}


def is_compiling() -> bool:
    """Whether Dynamo follows. It knows an imitation of NumPy only, which kernels cannot read."""
    return bool(torch.compiler.is_dynamo_compiling())


@torch.compiler.disable
def outside(function: Any, *arguments: Any) -> Any:
    """Call a function outside of the graph that Dynamo makes: a break in it."""
    return function(*arguments)


def leaves_out() -> bool:
    """Whether what nobody reads is not computed: here it is not asked for."""
    return False


def check_differentiable(inputs: Mapping[str, Any]) -> None:
    """Raise where torch differentiates without asking: a kernel says nothing of derivatives."""
    refused = ""
    if torch._C._are_functorch_transforms_active():
        refused = "under the transforms of torch.func"
    elif forward_ad._current_level >= 0 and any(map(_is_dual, inputs.values())):
        refused = "in torch's forward mode (torch.autograd.forward_ad)"
    if refused:
        raise NotImplementedError(
            f"numbabn.keras.BatchNormalization does not run {refused}: differentiate with "
            "torch.autograd.grad, or use keras.layers.BatchNormalization, which "
            "numbabn.keras.convert(model, to_keras=True) puts back"
        )


def _is_dual(value: Any) -> bool:
    return is_tensor(value) and forward_ad.unpack_dual(value).tangent is not None


def is_tensor(value: Any) -> bool:
    """Whether autograd can save `value`."""
    return isinstance(value, torch.Tensor)


def is_wanted(tensor: Any) -> bool:
    """Whether the gradient with respect to `tensor` is asked for."""
    return bool(torch.is_grad_enabled() and tensor.requires_grad)


def cloned(tensor: Any) -> Any:
    """The same values in memory of their own, differentiable with respect to `tensor`."""
    return tensor.clone()


def derived_as(kernel: Any, expression: Any, tensors: Tensors, names: tuple[str, ...]) -> Tensors:
    """See the package's docstring."""
    # In a backward, with create_graph=True.
    found: Tensors = expression(tensors, {}) if torch.is_grad_enabled() else kernel(tensors)
    return found


def corrections(saved: Any) -> tuple[Any, Any]:
    """See the package's docstring."""
    if isinstance(saved, torch.Tensor):
        return saved[R], saved[D]
    r, d = (torch.from_numpy(saved[row].copy()) for row in (R, D))
    return r, d


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
    given = {
        name: Shaped(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in inputs.items()
    }
    results = operation.results_of(given, attributes)
    return {
        name: torch.empty(each.shape, dtype=getattr(torch, each.dtype), device="meta")
        for name, each in results.items()
        if wanted is None or name in wanted
    }


def _arrays(inputs: Tensors) -> Tensors:
    """The memory of tensors as NumPy arrays; those that are not on the CPU stay tensors."""
    return {name: _array(value, name) for name, value in inputs.items()}


def _array(value: Any, name: str) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach()
    if tensor.is_cuda or tensor.is_meta:
        return tensor
    if value.device.type != "cpu":
        raise TypeError(
            f"{name} is on the device {value.device}: numbabn.keras computes on the CPU or on a "
            "CUDA device, where x and all other inputs have to be (see keras.device)"
        )
    if tensor.dtype == torch.bfloat16:
        # NumPy knows bfloat16 by ml_dtypes only; torch hands over its bits.
        return tensor.view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()


def _tensor(array: Any) -> Any:
    """A tensor in the memory of a new NumPy array; a read-only one stays: torch has no such."""
    if isinstance(array, torch.Tensor) or not array.flags.writeable:
        return array
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds: never here."""
    return False


def is_traced(tensor: Any) -> bool:
    """Whether `tensor` stands in a computation that is traced."""
    return torch.compiler.is_dynamo_compiling()


def paths() -> dict[str, str]:
    """What computes, and why, by the place that tensors are in."""
    reason = why_unavailable()
    return {
        "CPU": "Python calls the kernels over torch's own memory; torch.compile breaks its graph "
        "there",
        "CUDA": f"nothing: {reason}"
        if reason is not None
        else "Python launches the kernels on torch's stream, over its own memory",
        "other devices": "nothing: there are no kernels for them",
    }
