"""The operations as operators of torch's: what its compiler, its export and its tracer put into
programs, where Python's kernels would break them.

    numbabn::batch_norm_forward(x, gamma?, beta?, mask?, rmin?, …, attributes) -> results
    numbabn::batch_norm_backward(dy, x, gamma?, mask?, saved, wanted, attributes) -> results
    numbabn::normalize(x, gamma?, beta?, moving_mean, moving_variance, attributes) -> results
    numbabn::normalize_backward(…)

An operation has its operands in their order, None for those that are not there, and gives those
of its results that there are, in theirs. Each has a kernel, which is `torch.run`; a shape, by which
programs are made; and a gradient, which is another of them. Eagerly they take three times as long
as `torch.run`, and are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ..embedded.operations import (
    BACKWARD,
    FORWARD,
    NORMALIZE,
    NORMALIZE_BACKWARD,
    RESULTS,
    ROWS,
    TENSOR,
    Attributes,
    Operation,
)
from . import expressions, torch_ops
from .compute import Wanted
from .late import Late, read_number
from .torch import Tensors, run, shaped

# Of a forward and what computes its gradient.
PAIRS = ((FORWARD, BACKWARD), (NORMALIZE, NORMALIZE_BACKWARD))
# What stands behind the operands: see `_arguments`.
_ATTRIBUTES = (
    "str late, str wanted, int[] axis, float epsilon, float momentum, bool renorm, "
    "float? renorm_momentum, bool skip_nonfinite"
)
_COUNT = 8


def in_program() -> bool:
    """Whether torch makes a program of what Python does: compiles, exports or traces it."""
    return bool(torch.compiler.is_compiling() or torch._C._is_tracing())


def call(operation: Operation, inputs: Mapping[str, Any], attributes: Attributes) -> Tensors:
    """The results of a forward, by name, those that have a gradient with one.

    inputs: as of `torch.run`; a number may also be a float
    """
    transformed = torch._C._are_functorch_transforms_active() or torch.onnx.is_in_onnx_export()
    if operation is NORMALIZE and transformed:
        # ONNX has no operators of ours, and torch.func does not differentiate any.
        return {"y": expressions.y_of_inference(torch_ops, inputs, attributes, None)}
    results = _OPERATORS[operation.name](*_arguments(operation, inputs, attributes, ""))
    return dict(zip(operation.results_beside(inputs), results, strict=True))


def _arguments(
    operation: Operation, inputs: Mapping[str, Any], attributes: Attributes, wanted: str
) -> tuple[Any, ...]:
    """What an operator takes, in its order.

    late: the operands that are read when the program runs, as "rmin=number", commas between
    wanted: the names of the results of a backward that are, likewise
    """
    tensors, late = [], []
    for name in operation.operands:
        value = inputs.get(name)
        if isinstance(value, Late):
            late.append(f"{name}={value.number}")
            value = None
        elif isinstance(value, float):
            value = torch.full((), value, dtype=torch.float32)
        tensors.append(value)
    axis = attributes.axis
    return (
        *tensors,
        ",".join(late),
        wanted,
        [axis] if isinstance(axis, int) else list(axis),
        attributes.epsilon,
        attributes.momentum,
        attributes.renorm,
        attributes.renorm_momentum,
        attributes.skip_nonfinite,
    )


def _read(
    operation: Operation, arguments: tuple[Any, ...]
) -> tuple[Tensors, str, Wanted, Attributes]:
    """The other way round: the operands that are there, and what else `_arguments` has."""
    tensors, (late, wanted, axis, *others) = arguments[:-_COUNT], arguments[-_COUNT:]
    inputs = {
        name: value
        for name, value in zip(operation.operands, tensors, strict=True)
        if value is not None
    }
    attributes = Attributes(axis[0] if len(axis) == 1 else tuple(axis), *others)
    return inputs, late, tuple(wanted.split(",")) if wanted else None, attributes


def _names(operation: Operation, inputs: Tensors, wanted: Wanted) -> tuple[str, ...]:
    return operation.results_beside(inputs) if wanted is None else wanted


def _run(operation: Operation, *arguments: Any) -> list[Any]:
    """The kernel of an operator."""
    inputs, late, wanted, attributes = _read(operation, arguments)
    for each in filter(None, late.split(",")):
        name, number = each.split("=")
        inputs[name] = np.float32(read_number(int(number)))
    results = run(operation, inputs, attributes, wanted)
    first = inputs[operation.operands[0]]
    return [
        _own(name, results[name], inputs["x"], first) for name in _names(operation, inputs, wanted)
    ]


def _own(name: str, result: Any, x: Any, like: Any) -> Any:
    """A result as the program expects it: in the memory order of x, and in memory of its own."""
    if isinstance(result, np.ndarray):
        return torch.from_numpy(result.copy())  # read-only
    if RESULTS[name] == TENSOR:
        strides = torch.empty_like(x, device="meta").stride()
        if result.stride() == strides:
            return result
        return torch.empty_strided(
            result.shape, strides, dtype=result.dtype, device=result.device
        ).copy_(result)
    return result.clone() if RESULTS[name] == ROWS else result


def _shapes(operation: Operation, *arguments: Any) -> list[Any]:
    """The results of an operator, without values."""
    inputs, _, wanted, attributes = _read(operation, arguments)
    x = inputs["x"]
    shapes = operation.results_of({name: shaped(each) for name, each in inputs.items()}, attributes)
    return [
        torch.empty_like(x)
        if RESULTS[name] == TENSOR
        else torch.empty(
            shapes[name].shape, dtype=getattr(torch, shapes[name].dtype), device=x.device
        )
        for name in _names(operation, inputs, wanted)
    ]


def _keep(operation: Operation, backward: Operation, ctx: Any, inputs: Any, output: Any) -> None:
    """Keep what the gradient of an operator reads."""
    given, _, _, ctx.attributes = _read(operation, inputs)
    everything = {**given, **dict(zip(operation.results_beside(given), output, strict=True))}
    kept = {name: everything[name] for name in backward.operands if name in everything}
    ctx.names = tuple(kept)
    ctx.save_for_backward(*kept.values())
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(operation: Operation, backward: Operation, ctx: Any, gradients: Any) -> Any:
    """The gradients of an operator's inputs."""
    inputs = {**dict(zip(ctx.names, ctx.saved_tensors, strict=True)), "dy": gradients[0]}
    asked = dict(zip(operation.operands, ctx.needs_input_grad, strict=False))
    wanted = [name for name in backward.results if asked[name[1:]]]
    arguments = _arguments(backward, inputs, ctx.attributes, ",".join(wanted))
    found = dict(zip(wanted, _OPERATORS[backward.name](*arguments), strict=True))
    return (
        *(found.get("d" + name) for name in operation.operands),
        *((None,) * _COUNT),
    )


def _operator(operation: Operation) -> Any:
    """An operation as an operator of torch's."""
    optional = operation.operands[1:]
    operands = ", ".join(
        f"Tensor{'?' if name in optional else ''} {name}" for name in operation.operands
    )
    operator = torch.library.custom_op(
        f"numbabn::{operation.name}",
        partial(_run, operation),
        mutates_args=(),
        schema=f"({operands}, {_ATTRIBUTES}) -> Tensor[]",
    )
    operator.register_fake(partial(_shapes, operation))
    return operator


_OPERATORS: dict[str, Any] = {each.name: _operator(each) for pair in PAIRS for each in pair}
for _forward, _backward in PAIRS:
    _OPERATORS[_forward.name].register_autograd(
        partial(_differentiate, _forward, _backward),
        setup_context=partial(_keep, _forward, _backward),
    )
