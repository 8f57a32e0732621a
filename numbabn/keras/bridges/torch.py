"""torch: tensors on the CPU and on CUDA devices, as they lie in memory, without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from .. import device
from . import SECOND_DERIVATIVE, Function, Operation, Shaped, read_late

SUPPORTS_JIT = True  # torch.compile: apply() is a break in its graph.

Tensors = dict[str, Any]


def apply(function: Function, inputs: Mapping[str, Any], attributes: Any) -> Tensors:
    """Run `function`, differentiably where torch asks for it; see the package's docstring."""
    # Dynamo follows NumPy calls into its own imitation of NumPy, which kernels cannot read. To
    # tell it so costs 10 µs a call, hence only where it listens.
    run = _apply_uncompiled if torch.compiler.is_compiling() else _apply
    return run(function, inputs, attributes)


def _apply(function: Function, inputs: Mapping[str, Any], attributes: Any) -> Tensors:
    given = {name: value for name, value in read_late(inputs).items() if value is not None}
    arguments = [given.get(name) for name in function.arguments]
    if not torch.is_grad_enabled() or not any(
        tensor is not None and tensor.requires_grad for tensor in arguments
    ):
        return _public(
            function, _run(function.forward, given, attributes, residuals=function.residuals)
        )
    constants = {name: given[name] for name in given if name not in function.arguments}
    results: Tensors = {}
    result = _Differentiable.apply(function, attributes, constants, results, *arguments)
    return {**_public(function, results), function.result: result}


def _public(function: Function, results: Tensors) -> Tensors:
    return {name: value for name, value in results.items() if name not in function.residuals}


_apply_uncompiled = torch.compiler.disable(_apply)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Function, attributes: Any, constants: Tensors, results: Tensors,
        *arguments: Any,
    ) -> Any:  # fmt: skip
        given = dict(zip(function.arguments, arguments, strict=True))
        given = {name: value for name, value in given.items() if value is not None}
        found = _run(
            function.forward, {**given, **constants}, attributes, residuals=function.residuals
        )
        ctx.function, ctx.attributes = function, attributes
        everything = {**given, **constants, **found}
        kept = {name: everything[name] for name in function.kept if name in everything}
        # save_for_backward notices a tensor that is changed in place before the backward.
        ctx.names = tuple(name for name in kept if isinstance(kept[name], torch.Tensor))
        ctx.save_for_backward(*(kept[name] for name in ctx.names))
        ctx.numbers = {name: kept[name] for name in kept if name not in ctx.names}
        result = found.pop(function.result)
        results.update(found)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        function = ctx.function
        inputs = {
            **dict(zip(ctx.names, ctx.saved_tensors, strict=True)),
            **ctx.numbers,
            "d" + function.result: gradient,
        }
        needed = ctx.needs_input_grad[4:]
        wanted = tuple(
            "d" + name for name, need in zip(function.arguments, needed, strict=True) if need
        )
        found = _run(function.backward, inputs, ctx.attributes, wanted)
        tensors = [found[name] for name in wanted]
        if torch.is_grad_enabled():
            # The gradient is to be differentiated (create_graph=True): that must not be silent.
            names = tuple(inputs)
            tensors = _Undifferentiable.apply(
                function.forward.name, len(tensors), *tensors, *(inputs[name] for name in names)
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


def _run(
    operation: Operation,
    inputs: Tensors,
    attributes: Any,
    wanted: tuple[str, ...] | None = None,
    residuals: tuple[str, ...] = (),
) -> Tensors:
    """The outputs of `operation`, all of them or those that are `wanted`."""
    kind = inputs["x"].device.type
    if kind == "cuda":
        return _on_device(operation, inputs, attributes, wanted)
    if kind == "meta":
        return _meta(operation, inputs, attributes, wanted)
    arrays = {name: _array(value, name) for name, value in inputs.items()}
    results = operation.host(arrays, attributes, wanted, None)
    # What only the backward reads stays an array, as it is.
    return {name: array if name in residuals else _tensor(array) for name, array in results.items()}


def _on_device(
    operation: Operation, inputs: Tensors, attributes: Any, wanted: tuple[str, ...] | None
) -> Tensors:
    """The same on the current stream of a CUDA device, where everything stays a tensor."""
    given = {
        name: value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    narrow = {
        name: given[name].dtype
        for name in operation.moved
        if name in given and given[name].itemsize < 4
    }
    given |= {name: given[name].float() for name in narrow}
    results = device.OPERATIONS[operation.name](given, attributes, wanted, {})
    return {**results, **{name: results[name].to(dtype) for name, dtype in narrow.items()}}


def _meta(
    operation: Operation, inputs: Tensors, attributes: Any, wanted: tuple[str, ...] | None
) -> Tensors:
    """Tensors without memory, with which Keras finds out shapes."""
    specs = {
        name: Shaped(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in inputs.items()
    }
    outputs = operation.shapes(specs, attributes)
    return {
        name: torch.empty(outputs[name].shape, dtype=getattr(torch, outputs[name].dtype),
                          device="meta")
        for name in (outputs if wanted is None else wanted)
    }  # fmt: skip


def _array(value: Any, name: str) -> NDArray[Any]:
    """The memory of a tensor as a NumPy array."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    if value.device.type != "cpu":
        raise TypeError(
            f"{name} is on the device {value.device}: numbabn.keras computes on the CPU or on a "
            "CUDA device, where x and all other inputs have to be (see keras.device)"
        )
    tensor = value.detach()
    if tensor.dtype == torch.bfloat16:
        # NumPy knows bfloat16 by ml_dtypes only; torch hands over its bits.
        return tensor.view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()


def _tensor(array: NDArray[Any]) -> Any:
    """A tensor in the memory of a new NumPy array."""
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds: never here."""
    return False
