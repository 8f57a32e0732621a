"""How operations are computed over arrays, for the bridges.

The arrays of a call are NumPy's, or of one library on a CUDA device. Statistics go in and come out
moved; they are moved in float64 and rounded once, where a framework's float32 would lose what the
kernels found (and JAX has no float64 by default).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..channels import STATISTICS
from ..embedded.operations import (
    BACKWARD,
    FORWARD,
    LIMITS,
    NORMALIZE,
    NORMALIZE_BACKWARD,
    Attributes,
)
from ..functional import (
    backward_from_saved,
    batch_norm_forward,
    gradients_of_normalize,
    normalized,
    train,
)
from ..renorm import RenormClipping
from ..statistics import MovingStatistics
from ..targets import to_host

Arrays = dict[str, Any]
Inputs = Mapping[str, Any]
Wanted = tuple[str, ...] | None
Compute = Callable[..., Arrays]  # see COMPUTE


def _forward(inputs: Inputs, attributes: Attributes, wanted: Wanted, outputs: Inputs) -> Arrays:
    if STATISTICS[0] not in inputs:
        y, saved = batch_norm_forward(
            inputs["x"],
            inputs.get("gamma"),
            inputs.get("beta"),
            axis=attributes.axis,
            mask=inputs.get("mask"),
            epsilon=attributes.epsilon,
        )
        return {"y": y, "saved": saved.values}
    y, saved, moved = train(
        inputs["x"],
        inputs.get("gamma"),
        inputs.get("beta"),
        MovingStatistics(
            {name: inputs[name] for name in STATISTICS if name in inputs},
            attributes.momentum,
            attributes.renorm,
            attributes.renorm_momentum,
            RenormClipping(*(float(to_host(inputs[name])) for name in LIMITS if name in inputs)),
            attributes.skip_nonfinite,
            {name: outputs[name] for name in STATISTICS if name in outputs} or None,
        ),
        axis=attributes.axis,
        mask=inputs.get("mask"),
        epsilon=attributes.epsilon,
        out=outputs.get("y"),
    )
    return {"y": y, "saved": saved.values, **moved}


def _backward(inputs: Inputs, attributes: Attributes, wanted: Wanted, outputs: Inputs) -> Arrays:
    wanted = wanted or BACKWARD.results
    gradients = backward_from_saved(
        inputs["dy"],
        inputs["x"],
        inputs["saved"],
        axis=attributes.axis,
        mask=inputs.get("mask"),
        epsilon=attributes.epsilon,
        with_dx="dx" in wanted,
        out=outputs.get("dx"),
    )
    found = dict(zip(BACKWARD.results, gradients, strict=True))
    return {name: found[name] for name in wanted}


def _normalize(inputs: Inputs, attributes: Attributes, wanted: Wanted, outputs: Inputs) -> Arrays:
    y = normalized(
        inputs["x"],
        inputs["moving_mean"],
        inputs["moving_variance"],
        inputs.get("gamma"),
        inputs.get("beta"),
        axis=attributes.axis,
        epsilon=attributes.epsilon,
        out=outputs.get("y"),
    )
    return {"y": y}


def _normalize_backward(
    inputs: Inputs, attributes: Attributes, wanted: Wanted, outputs: Inputs
) -> Arrays:
    wanted = wanted or NORMALIZE_BACKWARD.results
    gradients = gradients_of_normalize(
        inputs["dy"],
        inputs["x"],
        inputs["moving_mean"],
        inputs["moving_variance"],
        inputs.get("gamma"),
        axis=attributes.axis,
        epsilon=attributes.epsilon,
        with_dx="dx" in wanted,
        with_parameters=wanted != ("dx",),
        out=outputs.get("dx"),
    )
    found = dict(zip(NORMALIZE_BACKWARD.results, gradients, strict=True))
    return {name: found[name] for name in wanted}


# By the names of operations: (operands, attributes, wanted, outputs) -> the results named in
# `wanted`, or all that exist where that is None. Operands are only read. What `outputs` holds is
# written there where that saves a copy: the first result, and statistics, all or none. On a device
# statistics have at least 32 bits.
COMPUTE: dict[str, Compute] = {
    FORWARD.name: _forward,
    BACKWARD.name: _backward,
    NORMALIZE.name: _normalize,
    NORMALIZE_BACKWARD.name: _normalize_backward,
}
