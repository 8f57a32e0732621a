"""The launchers: which steps, how many tasks, what scratch.

Arrays come in canonical form, (outer, channels, inner) over contiguous memory, and
outputs are given by the caller. `numbabn.cuda.launch` has the same names and signatures.

    x, dy, out              (outer, channels, inner) float16, bfloat16, float32 or float64
    mask                    a `layout.Mask`, or None
    gamma, beta             (channels,), or None for 1 and 0
    mean, scale, shift      (channels,)
    reference               (mean, stddev, (rmin, rmax, dmax)), the arrays (channels,), or None
    saved                   (6, channels) float64: count, mean, variance, r, d, gamma
"""

from functools import lru_cache

import numpy as np

from . import kernels, masks, tasks
from .compile import kernel
from .half import BFLOAT, HALF
from .partition import partition

_NO_BYTES = np.zeros(0, np.uint8)
_NO_LIMITS = (0.0, np.inf, np.inf)


def statistics(x, mask):
    """`saved` of `x`: count, mean and variance are its first rows."""
    return forward(x, mask, None, None, 1.0, None, None)


def forward(x, mask, gamma, beta, epsilon, reference, out):
    """Normalize `x` by its own statistics into `out`, or nowhere if None; returns `saved`."""
    values = np.empty((kernels.VALUES, x.shape[1]))
    values[kernels.GAMMA] = 1.0 if gamma is None else gamma
    values[kernels.BETA] = 0.0 if beta is None else beta
    limits = _NO_LIMITS
    if reference is not None:
        values[kernels.REFERENCE_MEAN], values[kernels.REFERENCE_STDDEV], limits = reference
    steps = (None, kernels.statistics, kernels.forward_coefficients, kernels.normalize)
    _run(steps, x, x, out, mask, (epsilon, *limits), values, reference is not None)
    return values[: kernels.SAVED]


def normalize(x, mean, scale, shift, out):
    """out = (x − mean) · scale + shift"""
    values = np.empty((kernels.VALUES, x.shape[1]))
    values[kernels.MEAN], values[kernels.GAMMA], values[kernels.BETA] = mean, scale, shift
    steps = (kernels.given_coefficients, None, None, kernels.normalize)
    _run(steps, x, x, out, None, (0.0, *_NO_LIMITS), values)


def backward(dy, x, saved, epsilon, mask, training, out):
    """The gradient of `x` into `out`, or nowhere if None; returns dgamma and dbeta.

    training: False where the statistics were constants, and `mask` plays no part
    """
    values = np.empty((kernels.VALUES, x.shape[1]))
    values[: kernels.SAVED] = saved
    if not training:
        values[kernels.COUNT] = 0.0
    steps = (
        kernels.mean_coefficients,
        kernels.gradient_sums,
        kernels.backward_coefficients,
        kernels.gradient,
    )
    _run(steps, x, dy, out, mask, (epsilon, *_NO_LIMITS), values, off=not training)
    return values[kernels.DGAMMA], values[kernels.DBETA]


_renorm_corrections = kernel(kernels.renorm_corrections, "renorm_corrections", parallel=False)


def renorm_correction(mean, stddev, epsilon, reference):
    """`r` and `d`, (channels,) float64, of statistics that are (channels,) float64 as well."""
    reference_mean, reference_stddev, limits = reference
    r, d = np.empty(mean.size), np.empty(mean.size)
    _renorm_corrections(mean, stddev, reference_mean, reference_stddev, epsilon, limits, r, d)
    return r, d


def _run(steps, x, dy, out, mask, numbers, values, renorm=False, off=False):
    """Run the four `steps` of `tasks.run`, on several threads where that pays."""
    outer, channels, inner = x.shape
    cut, by_rows = partition(outer, channels, inner, x.dtype.itemsize, mask is not None)
    if off:
        kind, on = masks.OFF, _NO_BYTES
    elif mask is None:
        kind, on = masks.NONE, _NO_BYTES
    else:
        kind = masks.POSITION if mask.axes is None else masks.ELEMENT
        on = mask.on.reshape(-1)
    if kind == masks.ELEMENT or (kind == masks.POSITION and by_rows and cut.repeat > 1):
        words = _element_words(cut, by_rows, inner, renorm, mask)
    else:
        words = _words(cut, inner, renorm, kind, on.size)
    compute_dtype = np.float64 if x.dtype == np.float64 else np.float32
    scratch = (
        np.array(numbers),
        values,
        np.empty((cut.splits, 3, cut.columns)),
        np.empty((kernels.COEFFICIENTS, cut.columns), compute_dtype),
    )
    flat = _bits(x)
    memory = (flat, _bits(dy), flat if out is None else _bits(out), on, words, *scratch)
    if out is None:
        steps = (*steps[:3], None)
    name = x.dtype.name
    calls = [step and tasks.step(step, name, by_rows, inner) for step in steps]
    tasks.launch(x.size, calls, cut, memory)


def _bits(array):
    """The flat memory of a canonical array, 16-bit floats as the integers that kernels read."""
    flat = array.reshape(-1)
    if flat.dtype.itemsize == 2:
        return flat.view(HALF if flat.dtype == np.float16 else BFLOAT)
    return flat


@lru_cache(maxsize=1024)
def _words(cut, inner, renorm, kind, mask_bytes):
    """The integers that every step reads, for a mask without tables; see `kernels`."""
    return np.array((*cut, kernels.WORDS, inner, renorm, kind, mask_bytes, 0, 0), np.int64)


def _element_words(cut, by_rows, inner, renorm, mask):
    """As `_words`, for a mask that differs between the columns of a row, or along a run."""
    if mask.axes is None:
        # One byte a position, seen from rows that hold several neighbouring positions.
        axes = (([cut.rows], [inner]), ([cut.channels], [0]), ([inner], [1]))
    else:
        axes = mask.axes
    outer_axes, channel_axes, inner_axes = axes
    columns = _offsets(*channel_axes)
    if by_rows:
        columns = (columns[:, None] + _offsets(*inner_axes)).reshape(-1)
        inner_axes = ([], [])
    tables = [np.array(axes, np.int64).reshape(-1) for axes in (outer_axes, inner_axes)]
    length = kernels.WORDS + tables[0].size + tables[1].size + columns.size
    head = (
        *cut, length, inner, renorm, masks.ELEMENT, mask.on.size,
        len(outer_axes[0]), len(inner_axes[0]),
    )  # fmt: skip
    return np.concatenate((np.array(head, np.int64), *tables, columns))


def _offsets(sizes, strides):
    """Where each element of a group of axes is, as steps from the group's first."""
    steps = np.zeros(1, np.int64)
    for size, stride in zip(sizes, strides, strict=True):
        steps = (steps[:, None] + np.arange(size) * stride).reshape(-1)
    return steps
