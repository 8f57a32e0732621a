"""Inputs of the operations that compiled programs run."""

import numpy as np

from numbabn.embedded.operations import STATISTICS


def make_inputs(shape, axis, dtype=np.float32, *, renorm=None, mask=None, seed=0):
    """The inputs of a training forward; `renorm` is None, "separate" or "shared"."""
    rng = np.random.default_rng(seed)
    axes = [each % len(shape) for each in ([axis] if isinstance(axis, int) else axis)]
    kept = tuple(size if i in axes else 1 for i, size in enumerate(shape))
    channels = (shape[axis],) if isinstance(axis, int) else kept
    parameters = np.float64 if dtype == np.float64 else np.float32

    def normal(mean, stddev):
        return rng.normal(mean, stddev, channels).astype(parameters)

    inputs = {"x": rng.normal(3.0, 1.0, shape).astype(dtype)}
    inputs |= {"gamma": normal(1.0, 0.5), "beta": normal(0.0, 1.0)}
    moving = [normal(3.0, 0.5), normal(5.0, 0.1), normal(2.0, 0.1), normal(3.0, 0.2)]
    statistics = dict(zip(STATISTICS, [*moving, normal(2.0, 0.1)], strict=True))
    inputs |= {
        name: values
        for name, values in statistics.items()
        if renorm == "separate" or name in STATISTICS[:2]
    }
    if renorm:
        inputs |= {"rmin": np.float32(0.5), "rmax": np.float32(1.5), "dmax": np.float32(1.0)}
    if mask is not None:
        inputs["mask"] = rng.random(mask) < 0.7
    return inputs


def training_outputs(inputs):
    """The names of what a training forward gives."""
    return ("y", "saved", *(name for name in STATISTICS if name in inputs))
