"""Batch normalization for torch, without Keras: a function, modules, and their exchange."""

from .convert import convert
from .functional import batch_norm
from .modules import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert"]
