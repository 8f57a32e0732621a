"""The operations that compiled programs run, as data: what goes in, what comes out, what follows.

Nothing here knows a framework or a kernel, and whoever brings an operation into a framework finds
here what its operands and results are. They go by name, and a name is of one kind everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any, NamedTuple

from .. import channels
from ..channels import STATISTICS
from ..renorm import RenormClipping

# Kinds: like x; a mask; one value a channel; tables of float64, (rows, channels): what a forward
# keeps for its backward, and the sums of a gradient (see `channels`); a single float32.
TENSOR, MASK, ROWS, SAVED, SUMS, NUMBER = range(6)
# Rows of each kind of table.
TABLES = {SAVED: channels.SAVED, SUMS: channels.SUMS}

LIMITS = tuple(limit.name for limit in fields(RenormClipping))
_OF_CHANNELS = ("gamma", "beta", *STATISTICS)
OPERANDS: dict[str, int] = {
    **dict.fromkeys(("x", "dy"), TENSOR),
    "mask": MASK,
    "saved": SAVED,
    "sums": SUMS,
    **dict.fromkeys(_OF_CHANNELS, ROWS),
    **dict.fromkeys(LIMITS, NUMBER),
}
RESULTS: dict[str, int] = {
    **dict.fromkeys(("y", "dx"), TENSOR),
    "saved": SAVED,
    "sums": SUMS,
    **dict.fromkeys((*STATISTICS, "dgamma", "dbeta"), ROWS),
}


class Shaped(NamedTuple):
    """The shape and the name of the dtype of an array that is not there yet.

    A size is None where a graph leaves it open.
    """

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Attributes:
    """What is fixed for a layer.

    renorm_momentum: None where the moving statistics are the reference (see numbabn.Renorm)
    """

    axis: int | tuple[int, ...]
    epsilon: float
    momentum: float
    renorm: bool
    renorm_momentum: float | None
    skip_nonfinite: bool = False


# With these `normalize` gives x back, by statistics of 0.
IDENTITY = Attributes(-1, 1.0, 0.0, renorm=False, renorm_momentum=None)


@dataclass(frozen=True)
class Operation:
    """What goes in and what comes out of an operation.

    name: for messages, and for whoever carries it out
    operands: those that it may have; x, or dy, is there and comes first, others may be absent
    results: that which is like the first operand comes first; where statistics were among the
        operands, new ones come back under their names
    """

    name: str
    operands: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def moved(self) -> tuple[str, ...]:
        """The operands of which new values come back."""
        return tuple(name for name in self.results if name in self.operands)

    def results_beside(self, inputs: Mapping[str, Any]) -> tuple[str, ...]:
        """The results that there are, by the operands that are there."""
        return tuple(name for name in self.results if name in inputs or name not in self.operands)

    def results_of(self, inputs: Mapping[str, Shaped], attributes: Attributes) -> dict[str, Shaped]:
        """What each of them is."""
        dtypes = {name: each.dtype for name, each in inputs.items()}
        return {
            name: Shaped(
                result_shape(name, inputs["x"].shape, attributes.axis), result_dtype(name, dtypes)
            )
            for name in self.results_beside(inputs)
        }


FORWARD = Operation(
    "batch_norm_forward",
    ("x", "gamma", "beta", "mask", *LIMITS, *STATISTICS),
    ("y", "saved", *STATISTICS),
)
# Its gamma is that which was saved; the operand is there to be differentiated with respect to.
BACKWARD = Operation(
    "batch_norm_backward", ("dy", "x", "gamma", "mask", "saved"), ("dx", "dgamma", "dbeta")
)
NORMALIZE = Operation("normalize", ("x", "gamma", "beta", "moving_mean", "moving_variance"), ("y",))
NORMALIZE_BACKWARD = Operation(
    "normalize_backward",
    ("dy", "x", "gamma", "moving_mean", "moving_variance"),
    ("dx", "dgamma", "dbeta"),
)


def result_shape(name: str, shape: tuple[Any, ...], axis: int | tuple[int, ...]) -> tuple[Any, ...]:
    """The shape of a result beside an x of `shape`, whose channels are known."""
    if RESULTS[name] == TENSOR:
        return shape
    named = (axis,) if isinstance(axis, int) else axis
    axes = [each % len(shape) for each in named]
    if RESULTS[name] in TABLES:
        return TABLES[RESULTS[name]], prod(shape[each] for each in axes)
    if len(axes) == 1:
        return (shape[axes[0]],)
    return tuple(size if i in axes else 1 for i, size in enumerate(shape))


def result_dtype(name: str, dtypes: Mapping[str, str]) -> str:
    """The dtype of a result, of those of the operands; a moved statistic keeps its own."""
    if RESULTS[name] == TENSOR:
        return dtypes["x"]
    return "float64" if RESULTS[name] in TABLES else dtypes.get(name, rows_dtype(dtypes["x"]))


def rows_dtype(dtype: str) -> str:
    """The dtype of per-channel values beside an array of `dtype`, and that they are read in."""
    return "float64" if dtype == "float64" else "float32"


def read_dtype(name: str, dtype: str) -> str:
    """The dtype in which compiled code reads an operand of `dtype`."""
    if OPERANDS[name] == MASK:
        return "bool"
    return dtype if OPERANDS[name] in (TENSOR, *TABLES) else rows_dtype(dtype)


# What compiled code computes, of an operation and what is wanted of it. Renorm's reference are
# `renorm_mean` and `renorm_stddev`, or where those are not there, the moving statistics. A backward
# may run as its sums, and then dx from these.
RUN_FORWARD, RUN_RENORM_FORWARD, RUN_NORMALIZE, RUN_SUMS, RUN_GRADIENT, RUN_BACKWARD = range(6)


def run_of(
    operation: str, inputs: Mapping[str, Any], attributes: Attributes, wanted: tuple[str, ...]
) -> tuple[int, dict[str, Any]]:
    """Which of these it is, and the inputs that it takes."""
    given = dict(inputs)
    if operation == FORWARD.name:
        return (RUN_RENORM_FORWARD if attributes.renorm else RUN_FORWARD), given
    if operation == NORMALIZE_BACKWARD.name and tuple(wanted) == ("dx",):
        # dx = gamma · rstd · dy: no sum over the batch, and x is not read.
        given["x"] = given.pop("dy")
        del given["moving_mean"]
        return RUN_NORMALIZE, given
    if operation == NORMALIZE.name:
        return RUN_NORMALIZE, given
    return (RUN_BACKWARD if "dx" in wanted else RUN_SUMS), given
