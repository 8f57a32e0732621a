"""Batch normalization and batch renormalization on arrays: masked, exact, accurate, fast."""

from .functional import (
    batch_norm_backward,
    batch_norm_forward,
    batch_statistics,
    gradient_sums,
    normalize,
    normalize_backward,
    renorm_correction,
)
from .layer import BatchNormalization
from .renorm import Renorm, RenormClipping
from .statistics import BatchStatistics

__version__ = "0.1.0"

__all__ = [
    "BatchNormalization",
    "BatchStatistics",
    "Renorm",
    "RenormClipping",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_statistics",
    "gradient_sums",
    "normalize",
    "normalize_backward",
    "renorm_correction",
]
