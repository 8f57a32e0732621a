"""Batch normalization for Keras 3, on torch, TensorFlow, JAX and NumPy."""

from .convert import convert
from .details import backend_details
from .layer import BatchNormalization
from .schedule import RenormClippingSchedule

__all__ = ["BatchNormalization", "RenormClippingSchedule", "backend_details", "convert"]
