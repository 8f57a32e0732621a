"""Plans: what is to be done with the buffers of a call, made once for their shapes."""

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np

from .. import layout as lay
from ..checks import check_mask_dtype, check_mask_shape
from ..cpu import launch, masks
from ..cpu.partition import partition
from ..cpu.work import NO_REFERENCE
from .memory import DTYPES
from .operations import (
    OPERANDS,
    RESULTS,
    RUN_BACKWARD,
    RUN_FORWARD,
    RUN_GRADIENT,
    RUN_NORMALIZE,
    RUN_RENORM_FORWARD,
    RUN_SUMS,
)
from .table import STEPS, place_of

# The steps of each run, as `launch` has them.
_STEPS = {
    RUN_FORWARD: launch.FORWARD,
    RUN_RENORM_FORWARD: launch.FORWARD,
    RUN_NORMALIZE: launch.NORMALIZE,
    RUN_SUMS: launch.SUMS,
    RUN_GRADIENT: launch.GRADIENT,
    RUN_BACKWARD: launch.BACKWARD,
}

# Where in a plan a result's index is, by its name: y and dx go to the same place.
_RESULTS = {name: f"new_{name}" for name in RESULTS} | {"y": "out", "dx": "out"}

# The head of a plan, word for word; the words of the kernels follow.
_HEAD = (
    "run",  # of `operations`
    "dtype",  # of x, in `DTYPES`
    # Places of the steps in their table, or -1.
    *("prepare", "measure", "combine", "apply"),
    # The bits of float64.
    *("epsilon", "momentum", "renorm_momentum", "skip_nonfinite"),
    # Indices of operands, then of results, or -1.
    *OPERANDS,
    *dict.fromkeys(_RESULTS.values()),
)
HEAD = len(_HEAD)
# Where in a plan each of its fields is.
AT: Any = namedtuple("_Head", _HEAD)(*range(HEAD))
# Of each operand, in that order.
KINDS = tuple(OPERANDS.values())


class Geometry(NamedTuple):
    """How the operands of a call lie, as their shapes tell."""

    layout: lay.Layout
    dtype: np.dtype[Any]  # of x
    mask: masks.Mask | None  # without its bytes
    mask_shape: tuple[int, ...]  # of x's rank


class _Canonical(NamedTuple):
    """x in canonical form."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]


def geometry_of(x, mask, axis, expand):
    """The geometry of a row-major x and of its mask, or None; both are `Shaped`.

    expand: whether the mask will be expanded along x's reduced axes
    """
    # Of these no element is read. A view of a single one has no memory order of its own: it is
    # taken as row-major.
    array = np.broadcast_to(np.zeros((), x.dtype), x.shape)
    layout = lay.layout_of(array, axis)
    if mask is None:
        return Geometry(layout, array.dtype, None, ())
    check_mask_dtype(np.dtype(mask.dtype))
    full = (*mask.shape, 1) if len(mask.shape) == array.ndim - 1 else mask.shape
    check_mask_shape(mask.shape, full, array.shape)
    on = np.broadcast_to(np.zeros((), np.bool_), full)
    return Geometry(layout, array.dtype, launch.mask_of(on, layout, expand), full)


def passes_are_apart(geometry):
    """Whether a backward goes over x for its sums, and over all of it again for dx."""
    dtype, canonical = geometry.dtype, geometry.layout.canonical_shape
    can_fold = not launch.is_of_elements(geometry.mask, canonical[2])
    cut, _ = partition(*canonical, dtype.itemsize, can_fold)
    return cut.splits > 1


def make_plan(run, geometry, attributes, operands, results):
    """The plan of a call: words. Its steps are in their table by now.

    operands, results: the names of the call's, in their order
    """
    # Without saved statistics those of the backward are constants.
    is_backward = run in (RUN_SUMS, RUN_BACKWARD)
    kind = masks.OFF if is_backward and "saved" not in operands else None
    steps, x = _STEPS[run], _Canonical(geometry.layout.canonical_shape, geometry.dtype)
    reference = NO_REFERENCE
    if run == RUN_RENORM_FORWARD:
        reference = launch.reference_kind("renorm_mean" not in operands)
    of_kernels = launch.plan_for(steps, x, geometry.mask, reference, kind)
    places = {name: index for index, name in enumerate(operands)}
    places.setdefault("dy", places["x"])
    places |= {_RESULTS[name]: index for index, name in enumerate(results)}
    numbers = (
        attributes.epsilon, attributes.momentum, attributes.renorm_momentum or 0.0,
        float(attributes.skip_nonfinite),
    )  # fmt: skip
    head = (
        run,
        DTYPES.index(x.dtype.name),
        *_load_steps(steps, of_kernels.steps, x),
        *(int(np.float64(number).view(np.int64)) for number in numbers),
        *(places.get(name, -1) for name in _HEAD[AT.x :]),
    )
    return np.concatenate((np.array(head, np.int64), of_kernels.words))


def _load_steps(steps, addresses, x):
    """Enter steps into their table; their places there, -1 for none."""
    _, by_rows = partition(*x.shape, x.dtype.itemsize, True)
    places = []
    for step, address in zip(steps, addresses, strict=True):
        place = -1
        if step is not None:
            place = place_of(step, x.dtype.name, by_rows)
            STEPS.entries[place] = address
        places.append(place)
    return places
