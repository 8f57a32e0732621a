"""torch: tensors on the CPU and on CUDA devices, as they lie in memory, without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from ml_dtypes import bfloat16

from ...cuda.availability import why_unavailable
from ...embedded.operations import Operation, Shaped
from ..operations import COMPUTE, Compute, Function, Wanted
from . import SECOND_DERIVATIVE, read_late

SUPPORTS_JIT = True  # torch.compile: apply() is a break in its graph.

Tensors = dict[str, Any]


def apply(function: Function, inputs: Mapping[str, Any], attributes: Any) -> Tensors:
    """Run `function`, differentiably where torch asks for it; see the package's docstring."""
    if torch.compiler.is_dynamo_compiling():
        # Dynamo follows NumPy calls into its own imitation of NumPy, which kernels cannot read. To
        # tell it so costs 10 µs a call, hence only where it listens.
        return _apply_outside(function, inputs, attributes)
    inputs = read_late(inputs)
    arguments = [inputs.get(name) for name in function.arguments]
    results: Tensors = {}
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in arguments
    ):
        # A tensor is differentiable where it is an argument here: those in `inputs` are not.
        result = _Differentiable.apply(function, attributes, inputs, results, *arguments)
        results[function.result] = result
    else:
        results = _compute_of(function.forward, inputs)(_arrays(inputs), attributes, None, {})
    return {name: _tensor(each) for name, each in results.items() if name not in function.residuals}


_apply_outside = torch.compiler.disable(apply)


class _Differentiable(torch.autograd.Function):
    """The forward and backward of a function; `results` is filled, and its result returned."""

    @staticmethod
    def forward(
        ctx: Any, function: Function, attributes: Any, inputs: Tensors, results: Tensors,
        *arguments: Any,
    ) -> Any:  # fmt: skip
        compute = _compute_of(function.forward, inputs)
        results.update(compute(_arrays(inputs), attributes, None, {}))
        everything = {**inputs, **results}
        kept = {name: everything[name] for name in function.kept if name in everything}
        # save_for_backward notices a tensor that is changed in place before the backward.
        ctx.names = tuple(name for name in kept if isinstance(kept[name], torch.Tensor))
        ctx.save_for_backward(*(kept.pop(name) for name in ctx.names))
        ctx.function, ctx.attributes, ctx.others = function, attributes, kept
        return _tensor(results[function.result])

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        function = ctx.function
        inputs = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        inputs |= {**ctx.others, "d" + function.result: gradient}
        needed = zip(function.arguments, ctx.needs_input_grad[4:], strict=True)
        wanted = tuple("d" + name for name, need in needed if need)
        compute = _compute_of(function.backward, inputs)
        found = compute(_arrays(inputs), ctx.attributes, wanted, {})
        tensors = [_tensor(found[name]) for name in wanted]
        if torch.is_grad_enabled():
            # The gradient is to be differentiated (create_graph=True): that must not be silent.
            tensors = _Undifferentiable.apply(
                function.forward.name, len(tensors), *tensors, *inputs.values()
            )
        gradients = dict(zip(wanted, tensors, strict=True))
        return (None, None, None, None, *(gradients.get("d" + name) for name in function.arguments))


class _Undifferentiable(torch.autograd.Function):
    """Hands on its first `count` tensors; whoever differentiates them is told why not."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Any) -> Any:
        ctx.name = name
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(SECOND_DERIVATIVE.format(ctx.name))


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
    """A tensor in the memory of a new NumPy array."""
    if isinstance(array, torch.Tensor):
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
