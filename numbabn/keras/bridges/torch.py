"""torch: tensors on the CPU and on CUDA devices, as they lie in memory, without a copy.

Where torch makes a program of what Python does, an operator of its own is in it, whose gradient is
registered beside it (`numbabn.tensors.operators`).
"""

from __future__ import annotations

from typing import Any

import torch

from ...cuda.availability import why_unavailable
from ...tensors import operators
from ...tensors.autograd import transform_of
from ...tensors.torch import Tensors, corrections, run

__all__ = ["corrections", "run", "transform_of"]

SUPPORTS_JIT = True
WIRING = "before"

in_program = operators.in_program
call_in_program = operators.call


def leaves_out() -> bool:
    """Whether what nobody reads is not computed: here it is not asked for."""
    return False


def refusal(where: str) -> Exception:
    """The error for a training call under what `transform_of` names."""
    return NotImplementedError(
        f"numbabn.keras.BatchNormalization does not train {where}: differentiate with "
        "torch.autograd.grad, or use keras.layers.BatchNormalization, which "
        "numbabn.keras.convert(model, to_keras=True) puts back"
    )


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


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds."""
    return in_program()


def is_traced(tensor: Any) -> bool:
    """Whether `tensor` stands in a computation that is traced."""
    return in_program()


def is_recomputed() -> bool:
    """Whether a forward runs within a backward: once more, for one that was checkpointed."""
    return not in_program() and bool(torch._C._current_graph_task_id() != -1)


def paths() -> dict[str, str]:
    """What computes, and why, by the place that tensors are in."""
    reason = why_unavailable()
    return {
        "CPU": "Python calls the kernels over torch's own memory",
        "CUDA": f"nothing: {reason}"
        if reason is not None
        else "Python launches the kernels on torch's stream, over its own memory",
        "other devices": "nothing: there are no kernels for them",
    }
