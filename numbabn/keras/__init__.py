"""Batch normalization for Keras 3, on torch, TensorFlow, JAX and NumPy."""

from .installed import check_keras

check_keras()  # Before anything imports Keras, and says less of what is missing.

from .convert import convert  # noqa: E402
from .details import backend_details  # noqa: E402
from .layer import BatchNormalization  # noqa: E402
from .schedule import RenormClippingSchedule  # noqa: E402

__all__ = ["BatchNormalization", "RenormClippingSchedule", "backend_details", "convert"]
