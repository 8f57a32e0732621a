"""What follows from the shapes of a call, made once: kernels, grids, constants, and scratch.

Keys are forms of arrays in canonical form, of which there is one for all arrays like it; whether
their memory is aligned to vectors; and a mask's steps, None for no mask.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from ..arrays.device import FLOAT32, FLOAT64, DeviceArray, Form, dense_form
from . import compile, elements, folds, masks, work
from .masks import Mask
from .partition import Partition, partition
from .submit import Step

MaskSteps = tuple[int, ...] | None
_KEPT = 4096
_NO_STEPS = (0,) * masks.STEPS


class Scratch(NamedTuple):
    """Memory for partial results, and for coefficients after them."""

    form: Form
    offset: int  # bytes of partial results


def scratch(dtype: Any, partial: int, coefficients: int) -> Scratch:
    """Scratch for so many numbers of what kernels for `dtype` compute with."""
    compute = FLOAT64 if dtype == FLOAT64 else FLOAT32
    return Scratch(dense_form((partial + coefficients,), compute), partial * compute.itemsize)


class Forward:
    """The sums of a forward; what it applies is `normalize`."""

    __slots__ = ("_blocks", "_dtype", "_fold", "_folds", "scratch", "statistics")

    def __init__(self, x: Form, aligned: bool, mask: MaskSteps) -> None:
        cut, layout, kind = _cut(x, aligned, mask)
        self.statistics = _over_elements("statistics", x, layout, kind, cut, mask or _NO_STEPS)
        self._fold, self._blocks = folds.fold_of(cut, compile.FOLD_THREADS)
        self._dtype = _compute_dtype(x.dtype)
        self._folds: dict[tuple[int, ...], Step] = {}
        partial = cut.splits * work.MOMENTS * cut.columns
        self.scratch = scratch(x.dtype, partial, work.FORWARD * x.shape[1])

    def fold(self, kinds: tuple[int, ...]) -> Step:
        """The fold for parameters of these kinds."""
        found = self._folds.get(kinds)
        if found is None:
            variant = compile.channel_kernel("fold_forward", self._dtype)
            found = self._folds[kinds] = Step(variant, self._blocks, kinds, self._fold)
        return found


class Backward(NamedTuple):
    """The sums of a backward; what it applies is `gradient`."""

    sums: Step
    fold: Step
    scratch: Scratch


@lru_cache(maxsize=_KEPT)
def of_forward(x: Form, aligned: bool, mask: MaskSteps) -> Forward:
    """How the statistics of `x` are taken."""
    return Forward(x, aligned, mask)


@lru_cache(maxsize=_KEPT)
def of_backward(x: Form, aligned: bool) -> Backward:
    """How the sums of a gradient are taken."""
    cut, layout, _ = _cut(x, aligned, None)
    fold, blocks = folds.fold_of(cut, compile.FOLD_THREADS)
    variant = compile.channel_kernel("fold_backward", _compute_dtype(x.dtype))
    return Backward(
        _over_elements("gradient_sums", x, layout, "", cut),
        Step(variant, blocks, fold),
        scratch(x.dtype, cut.splits * work.SUMS * cut.columns, work.BACKWARD * x.shape[1]),
    )


@lru_cache(maxsize=_KEPT)
def normalize(x: Form, aligned: bool) -> Step:
    """How coefficients are applied."""
    cut, layout, _ = _cut(x, aligned, None, folded=False)
    return _over_elements("normalize", x, layout, "", cut)


@lru_cache(maxsize=_KEPT)
def normalize_given(x: Form, aligned: bool, kinds: tuple[int, ...]) -> Step | None:
    """The same from parameters; None where those are wider than what kernels compute with."""
    if elements.FLOAT64 in kinds and x.dtype != FLOAT64:
        return None
    cut, layout, _ = _cut(x, aligned, None, folded=False)
    return _over_elements("normalize_given", x, layout, "", cut, kinds)


@lru_cache(maxsize=_KEPT)
def gradient(x: Form, aligned: bool, mask: MaskSteps) -> Step:
    """How the coefficients of a gradient are applied."""
    cut, layout, kind = _cut(x, aligned, mask, folded=False)
    return _over_elements("gradient", x, layout, kind, cut, mask or _NO_STEPS)


@lru_cache(maxsize=_KEPT)
def over_channels(kernel: str, dtype: Any, channels: int, kinds: tuple[int, ...]) -> Step:
    """A kernel over channels, and parameters of these kinds where it has any."""
    variant = compile.channel_kernel(kernel, _compute_dtype(dtype))
    constants = (kinds, channels) if kinds else (channels,)
    return Step(variant, -(-channels // compile.CHANNEL_THREADS), *constants)


def forget() -> None:
    """Plan anew, for other bounds of `partition`."""
    for kept in (of_forward, of_backward, normalize, normalize_given, gradient, over_channels):
        kept.cache_clear()


def aligned(*arrays: DeviceArray) -> bool:
    """Whether the memory of all begins at a multiple of a vector."""
    together = 0
    for array in arrays:
        together |= array.address
    return together % elements.VECTOR_BYTES == 0


def steps_of(mask: Mask | None) -> MaskSteps:
    """A mask's part of a key."""
    return None if mask is None else mask.steps


def _over_elements(
    kernel: str, x: Form, layout: str, mask: str, cut: Partition, *constants: Any
) -> Step:
    variant = compile.element_kernel(kernel, x.dtype.name, layout, mask)
    return Step(variant, cut.tiles * cut.splits, *constants, cut)


def _cut(
    x: Form, aligned: bool, mask: MaskSteps, folded: bool = True
) -> tuple[Partition, str, str]:
    """How an array is cut, and the variant's layout and kind of mask."""
    outer, channels, inner = x.shape
    vector = compile.vector_of(x.dtype.name)
    masked = mask is not None
    cut, read = partition(outer, channels, inner, vector, aligned, masked, folded, compile.THREADS)
    if read < vector:
        layout = "narrow" if read > 1 else "scalar"
    else:
        layout = "rows" if cut.by_rows else "runs"
    if mask is None:
        return cut, layout, ""
    return cut, layout, "rows" if cut.by_rows and masks.by_position(mask) else "elements"


def _compute_dtype(dtype: Any) -> str:
    return "float64" if dtype == FLOAT64 else "float32"
