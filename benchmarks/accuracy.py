"""How far from the float64 result are others, when the data are far from zero?

    python -m benchmarks.accuracy

Unit-variance float32 data at an offset of 0 to 1e6 standard deviations, normalized as training
does it. Each contender gets the same float32 array, and the float64 result is that of the same
array: what is measured is the computation, not what float32 lost of the data.
"""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import numbabn
from numbabn.commands.table import table
from tests import reference

Array = NDArray[Any]
Contender = Callable[[Array, int], Array]

EPSILON = 1e-3
OFFSETS = (0.0, 1e2, 1e4, 1e6)
SHAPES = {"channels-first": ((32, 16, 32, 32), 1), "channels-last": ((32, 32, 32, 16), -1)}


def fused(x: Array, axis: int) -> Array:
    y, _ = numbabn.batch_norm_forward(x, axis=axis, epsilon=EPSILON)
    return y


def one_pass(x: Array, axis: int) -> Array:
    """The textbook's one pass, E[x²] − E[x]², in float32."""
    axes = reference.reduced_axes(x.ndim, axis)
    mean = x.mean(axis=axes, keepdims=True)
    variance = (x * x).mean(axis=axes, keepdims=True) - mean * mean
    return (x - mean) / np.sqrt(variance + np.float32(EPSILON))


def two_pass(x: Array, axis: int) -> Array:
    """NumPy's mean and var, in float32."""
    axes = reference.reduced_axes(x.ndim, axis)
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + np.float32(EPSILON))


def torch_contender() -> Contender:
    import torch

    def torch_batch_norm(x: Array, axis: int) -> Array:
        images = torch.from_numpy(x).movedim(axis, 1)
        y = torch.nn.functional.batch_norm(images, None, None, training=True, eps=EPSILON)
        return y.movedim(1, axis).numpy()

    return torch_batch_norm


def contenders() -> dict[str, Contender]:
    found: dict[str, Contender] = {"numbabn": fused}
    if importlib.util.find_spec("torch"):
        found["torch"] = torch_contender()
    found["NumPy, mean and var"] = two_pass
    found["NumPy, E[x²] − E[x]²"] = one_pass
    return found


def error(x: Array, axis: int, contender: Contender) -> str:
    expected = reference.forward(x, axis=axis, epsilon=EPSILON).y
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a contender may take the root of a negative variance
        return f"{np.max(np.abs(contender(x, axis) - expected)):.1e}"


def main() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for name, contender in contenders().items():
        for layout, (shape, axis) in SHAPES.items():
            data = generator.standard_normal(shape)
            errors = [error((data + o).astype(np.float32), axis, contender) for o in OFFSETS]
            rows.append([f"{name}, {layout}", *errors])
    print(table(["largest error at an offset of", *(f"{offset:.0e}" for offset in OFFSETS)], rows))


if __name__ == "__main__":
    main()
