"""The operations with their gradients, on torch's tensors: eagerly, and in programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad

from ..embedded.operations import (
    BACKWARD,
    FORWARD,
    NORMALIZE,
    NORMALIZE_BACKWARD,
    OPERANDS,
    ROWS,
    Attributes,
    Operation,
)
from . import expressions, operators, torch_ops
from .torch import Tensors, corrections, run


@dataclass(frozen=True, eq=False)
class Differentiable:
    """An operation, the one that computes its gradient, and that once more as an expression."""

    forward: Operation
    backward: Operation
    gradients: Callable[..., dict[str, Any]]

    def kept(self, everything: Mapping[str, Any]) -> Tensors:
        """Of operands and results of `forward`, those that `backward` reads."""
        return {name: everything[name] for name in self.backward.operands if name in everything}


TRAINING = Differentiable(FORWARD, BACKWARD, partial(expressions.gradients_of_training, torch_ops))
INFERENCE = Differentiable(
    NORMALIZE, NORMALIZE_BACKWARD, partial(expressions.gradients_of_inference, torch_ops)
)


def transform_of(tensors: Mapping[str, Any]) -> str:
    """What differentiates or batches without asking, as ends a sentence; empty where nothing does.

    A kernel says nothing of derivatives, and they would be lost in silence. (Operators do.)
    """
    if torch._C._are_functorch_transforms_active():
        return "under the transforms of torch.func"
    if forward_ad._current_level >= 0 and any(map(_is_dual, tensors.values())):
        return "in torch's forward mode (torch.autograd.forward_ad)"
    return ""


def _is_dual(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def apply(function: Differentiable, inputs: Tensors, attributes: Attributes) -> Tensors:
    """The results of `function.forward`, by name.

    Its first, y, is differentiable with respect to x, gamma and beta, and so is its gradient.

    Args:
        inputs: the operands that are there, by name: tensors, or floats.
    """
    if operators.in_program():
        return operators.call(function.forward, inputs, attributes)
    results = run(function.forward, inputs, attributes)
    arguments: Tensors = {name: inputs[name] for name in ("x", "gamma", "beta") if name in inputs}
    if not (torch.is_grad_enabled() and any(each.requires_grad for each in arguments.values())):
        return results
    kept = function.kept({**inputs, **results})
    # An optimizer may change parameters between a forward and its backward.
    tensors = {
        name: each.clone() if OPERANDS[name] == ROWS else each
        for name, each in (arguments | kept).items()
        if isinstance(each, torch.Tensor)
    }
    others = {name: each for name, each in kept.items() if name not in tensors}
    call = _Call(function, attributes, tuple(tensors), others, results.pop("y"))
    return {"y": _Function.apply(call, *tensors.values()), **results}


@dataclass(eq=False)
class _Call:
    """What a backward has to know of its forward.

    names: of the tensors that autograd has
    others: what else the backward reads, by name
    y: the result, until autograd has it
    """

    function: Differentiable
    attributes: Attributes
    names: tuple[str, ...]
    others: Tensors
    y: Any

    def gradients(self, dy: Any, saved: tuple[Any, ...], wanted: tuple[str, ...]) -> Tensors:
        """Those of the tensors that are wanted, by name."""
        names = tuple("d" + name for name in wanted)
        inputs = {**dict(zip(self.names, saved, strict=True)), **self.others, "dy": dy}
        inputs = self.function.kept(inputs)
        if not torch.is_grad_enabled():
            return run(self.function.backward, inputs, self.attributes, names)
        # With create_graph=True. A kernel has no derivative.
        renorm = self.attributes.renorm and "saved" in inputs
        found = self.function.gradients(
            inputs, self.attributes, corrections(inputs["saved"]) if renorm else None
        )
        return {name: found[name] for name in names}


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Any) -> Any:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        y, call.y = call.y, None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        call, wanted = ctx.call, ctx.needs_input_grad[1:]
        names = tuple(name for name, each in zip(call.names, wanted, strict=True) if each)
        found = call.gradients(dy, ctx.saved_tensors, names)
        return (None, *(found.get("d" + name) for name in call.names))
