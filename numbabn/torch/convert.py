"""Modules with every batch normalization exchanged: torch's for numbabn's, and back."""

from __future__ import annotations

from typing import Any

import torch

from .modules import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d

_OURS: dict[type, type] = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}
# What `convert` may change in the modules that it makes.
_CHANGES = ("renorm", "renorm_clipping", "unbiased")


def convert(module: Any, *, to_torch: bool = False, **changes: Any) -> Any:
    """Exchange every `torch.nn.BatchNorm1d`, `2d` and `3d` in a module for numbabn's.

    As `torch.nn.SyncBatchNorm.convert_sync_batchnorm` does: submodules are replaced where they
    hang, and the parameters and buffers of a new one are those of the old one, so optimizers go on
    with them. Subclasses of torch's modules stay, as their computation is their own, and so do
    `SyncBatchNorm` and lazy modules that have seen no input yet.

    Args:
        module: a `torch.nn.Module`, which is changed.
        to_torch: the way back: numbabn's modules become torch's. Renorm, which torch has not, is
            left out: in evaluation they compute the same.
        **changes: arguments for the new modules: `renorm`, `renorm_clipping`, `unbiased`.

    Returns:
        `module`, or what takes its place where it is itself such a module.

    Raises:
        TypeError: `module` is not a module, or there is no such change.
        ValueError: a module that torch has no equal of: a :class:`BatchNorm` of any rank, or with
            another channel axis than 1. Nothing is changed then.

    >>> import torch
    >>> convert(torch.nn.Sequential(torch.nn.BatchNorm1d(4)), renorm=True)[0].renorm
    True
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    allowed = () if to_torch else _CHANGES
    for name in changes:
        if name not in allowed:
            expected = f"one of {', '.join(allowed)}" if allowed else "none with to_torch=True"
            raise TypeError(f"changes must be {expected}, got {name}")
    make = _torchs if to_torch else _ours
    # All of them are made before one is exchanged.
    exchanged = {
        each: make(name, each, changes)
        for name, each in module.named_modules()
        if (isinstance(each, BatchNorm) if to_torch else type(each) in _OURS)
    }
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in exchanged:
                parent._modules[name] = exchanged[child]
    return exchanged.get(module, module)


def _ours(name: str, old: Any, changes: dict[str, Any]) -> Any:
    new = _OURS[type(old)](*_arguments(old), device="meta", **changes)
    return _with_state(new, old)


def _torchs(name: str, old: Any, changes: dict[str, Any]) -> Any:
    torchs = _TORCHS.get(type(old))
    if torchs is None or old.axis != 1:
        raise ValueError(
            f"{name or 'module'} cannot become one of torch's: a numbabn.torch."
            f"{type(old).__name__} with axis={old.axis} has no equal there"
        )
    return _with_state(torchs(*_arguments(old), device="meta"), old)


def _arguments(old: Any) -> tuple[Any, ...]:
    return old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats


def _with_state(new: Any, old: Any) -> Any:
    """`new` with the parameters, buffers and mode of `old`."""
    for name in ("weight", "bias"):
        new.register_parameter(name, getattr(old, name))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        new.register_buffer(name, getattr(old, name))
    return new.train(old.training)
