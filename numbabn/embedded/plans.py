"""Plans: what is to be done with the buffers of a call, made once for their shapes."""

from typing import NamedTuple

import numpy as np

from ..cpu import launch, masks
from ..cpu.partition import partition
from ..cpu.steps import reference_kind
from . import table
from .memory import DTYPES

# Modes. A forward of renorm has its reference in `renorm_mean` and `renorm_stddev`, or, where
# those are not there, in the moving statistics.
FORWARD, RENORM_FORWARD, NORMALIZE, BACKWARD = range(4)


class _Plan(NamedTuple):
    """The head of a plan; the words of the kernels follow."""

    mode: int
    dtype: int  # of x, in `DTYPES`
    # Places of the steps in the table, or -1.
    prepare: int
    measure: int
    combine: int
    apply: int
    # The bits of float64.
    epsilon: int
    momentum: int
    renorm_momentum: int
    # Indices of operands, or -1.
    x: int
    dy: int
    mask: int
    values: int
    gamma: int
    beta: int
    moving_mean: int
    moving_variance: int
    moving_stddev: int
    renorm_mean: int
    renorm_stddev: int
    rmin: int
    rmax: int
    dmax: int
    # Indices of results, or -1.
    out: int
    saved: int
    next_moving_mean: int
    next_moving_variance: int
    next_moving_stddev: int
    next_renorm_mean: int
    next_renorm_stddev: int
    dgamma: int
    dbeta: int


HEAD = len(_Plan._fields)
# Where in a plan each of its fields is.
AT = _Plan(*range(HEAD))
OPERANDS, _RESULTS = _Plan._fields[AT.x : AT.out], _Plan._fields[AT.out :]

# The plan's names of outputs, where they are others.
_RESULT_OF = {
    "y": "out",
    "dx": "out",
    "values": "saved",
    **{name.removeprefix("next_"): name for name in _RESULTS if name.startswith("next_")},
}


def make_plan(mode, steps, x, mask, attributes, operands, results):
    """The plan of a call: words. Its steps are in the table by now.

    steps: as in `launch`
    x: the shape and dtype of x in canonical form
    mask: a `masks.Mask`, or None
    operands, results: the names of the call's, in their order
    """
    # Without saved statistics those of the backward are constants.
    kind = masks.OFF if mode == BACKWARD and "values" not in operands else None
    is_variance = "renorm_mean" not in operands if mode == RENORM_FORWARD else None
    run = launch.plan_for(steps, x, mask, reference_kind(is_variance), kind)
    places = {name: index for index, name in enumerate(operands)}
    places.setdefault("dy", places["x"])
    places |= {_RESULT_OF.get(name, name): index for index, name in enumerate(results)}
    numbers = (attributes.epsilon, attributes.momentum, attributes.renorm_momentum or 0.0)
    head = _Plan(
        mode,
        DTYPES.index(x.dtype.name),
        *_load_steps(steps, run.steps, x),
        *(int(np.float64(number).view(np.int64)) for number in numbers),
        *(places.get(name, -1) for name in (*OPERANDS, *_RESULTS)),
    )
    return np.concatenate((np.array(head, np.int64), run.words))


def _load_steps(steps, addresses, x):
    """Enter steps into the table; their places there, -1 for none."""
    _, by_rows = partition(*x.shape, x.dtype.itemsize, True)
    places = []
    for step, address in zip(steps, addresses, strict=True):
        place = -1
        if step is not None:
            place = table.place_of(step, x.dtype.name, by_rows)
            table.entries[place] = address
        places.append(place)
    return places
