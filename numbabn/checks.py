"""What is refused, and in which words: the shapes, dtypes and numbers that callers pass wrongly.

Nothing is computed here. Arrays are anything that answers to NumPy's words.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import Any

FLOATS = ("float16", "bfloat16", "float32", "float64")


@lru_cache(maxsize=64)
def float_name(dtype: Any) -> str | None:
    """The name of a dtype that kernels compute with, else None."""
    name: str = dtype.name
    return name if name in FLOATS and dtype.isnative else None


def check_floats(x: Any, name: str) -> None:
    """Raise TypeError unless `x` holds floats that kernels compute with."""
    if float_name(x.dtype) is None:
        order = "" if x.dtype.isnative else " in another byte order than this machine's"
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype.name}{order}"
        )


def check_like(array: Any, name: str, x: Any) -> None:
    """Raise unless `array` has the shape and dtype of `x`."""
    if array.dtype == x.dtype and array.shape == x.shape:
        return
    check_floats(array, name)
    if array.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {x.shape}, got {array.shape}")
    raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {array.dtype}")


def check_shape_of_mean(shape: tuple[int, ...], name: str, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless values have the shape of the mean that they go with."""
    if shape != expected:
        raise ValueError(f"{name} must have the shape of mean, {expected}, got {shape}")


def channel_shape(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> ValueError:
    """The error for values that are not one a channel."""
    return ValueError(
        f"{name} must have shape {expected}, one value for each channel of x, got {got}"
    )


def overlap(name: str, over: tuple[str, ...]) -> ValueError:
    """The error for an `out` that lies over an input in a way that it may not."""
    allowed = f"only be {' or '.join(over)} itself" if over else "not be an input"
    return ValueError(
        f"out overlaps {name} in memory, which would give wrong results; it may {allowed}"
    )


def check_own_memory(out: Any) -> None:
    """Raise ValueError where two elements of `out` may share memory.

    They never do in whatever slicing and permuting makes.
    """
    extent = out.itemsize
    for stride, size in sorted(zip(map(abs, out.strides), out.shape, strict=True)):
        if size > 1 and stride < extent and out.size > 0:
            raise ValueError(
                f"out must have memory of its own for each element, got strides {out.strides} "
                f"for shape {out.shape}"
            )
        extent += stride * (size - 1)


def check_rows(values: Any, name: str, origin: str, shape: tuple[int, int]) -> None:
    """Raise ValueError unless `values` can be rows of channels that another call returned."""
    if values.shape != shape or float_name(values.dtype) != "float64":
        raise ValueError(
            f"{name} must be what {origin}, float64 of shape {shape}, "
            f"got {values.dtype} of shape {values.shape}"
        )


def check_mask_dtype(dtype: Any) -> None:
    """Raise TypeError unless a mask holds what is zero or not."""
    if dtype.kind not in "bfiu" and float_name(dtype) is None:
        raise TypeError(f"mask must hold bools or real numbers, got {dtype.name}")


def check_mask_shape(given: tuple[int, ...], full: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a mask fits x.

    given: its shape as the caller has it
    full: the same, with a last axis added where its rank is one less than x's
    shape: of x
    """
    if len(full) != len(shape) or any(
        size not in (1, expected) for size, expected in zip(full, shape, strict=True)
    ):
        raise ValueError(
            f"mask of shape {given} does not fit x of shape {shape}: expected the rank of x, "
            "or one less (then a last axis is added), and each size to be that of x or 1"
        )


def check_epsilon(epsilon: Any) -> float:
    """`epsilon` as a float; ValueError unless it is finite and not negative."""
    number = _number(epsilon, "epsilon", "a number of at least 0")
    if not 0 <= number < inf:
        raise ValueError(f"epsilon must be a finite number of at least 0, got {epsilon}")
    return number


def check_momentum(momentum: Any, name: str) -> float:
    """`momentum` as a float; ValueError unless it is in [0, 1]."""
    number = _number(momentum, name, "a number from 0 to 1")
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {momentum}")
    return number


def checked_setting(name: str, value: Any) -> Any:
    """`value` as a layer has its attribute `name`; raises where it cannot be."""
    if name == "epsilon":
        return check_epsilon(value)
    if name == "momentum" or (name == "renorm_momentum" and value is not None):
        return check_momentum(value, name)
    return value


def _number(value: Any, name: str, expected: str) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError("float would read it")
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}") from error
