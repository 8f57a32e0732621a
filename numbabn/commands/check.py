"""Compare every operation with a float64 computation, on this machine.

Each case is one dtype, layout, size and kind of mask. The data are off center by several standard
deviations, and NaN and infinity stand under the mask. An error is the largest difference from the
float64 result, relative to the largest value of that result where it exceeds one.

A case passes where its error is at most 2e-6 (in float64 1e-9), and in float16 and bfloat16 one
rounding more. The exit status is 0 where all pass, and 1 with a line for each that does not.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

import numbabn

from . import float64
from .extras import load
from .table import table

Array = NDArray[Any]

# A small case runs on the serial kernels, a large one on the parallel ones, in several blocks: a
# run of 72 · 72 is longer than a block, and 12 channels several times to a row. No length but 32
# is a multiple of a vector's.
SHAPES = {
    "channels-first": {"small": (4, 9, 20), "large": (6, 10, 72, 72)},
    "channels-last": {"small": (10, 8, 9), "large": (24, 32, 32, 12)},
}
MASKS = ("no mask", "position mask", "element mask")
EPSILON = 1e-3
# Offset of the data in standard deviations: what each dtype can hold without losing the data.
OFFSETS = {"float16": 4.0, "bfloat16": 4.0, "float32": 1e3, "float64": 1e6}
# What may be lost in the statistics and the arithmetic, by the dtype that holds them. 2e-6 is the
# target of the library. In float64 the oracle rounds as much as the kernels: at an offset of 1e6
# either may be off by 1e6 · 2⁻⁵³ in the mean.
ARITHMETIC = {"float16": 2e-6, "bfloat16": 2e-6, "float32": 2e-6, "float64": 1e-9}
# What rounding the result once, to nearest, may add.
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8}


@dataclass(frozen=True)
class Case:
    dtype: np.dtype[Any]
    layout: str
    size: str
    mask: str

    def __str__(self) -> str:
        return f"{self.dtype.name}, {self.layout}, {self.size}, {self.mask}"


@dataclass
class Operation:
    """How one operation did in one dtype."""

    worst: float = 0.0
    failures: list[str] = field(default_factory=list)


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    progress = load("tqdm", "bench").tqdm
    dtypes: list[Any] = [np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)]
    if importlib.util.find_spec("ml_dtypes"):
        dtypes.insert(1, np.dtype(load("ml_dtypes", "bench").bfloat16))
    cases = [
        Case(dtype, layout, size, mask)
        for dtype, layout, size, mask in product(dtypes, SHAPES, ("small", "large"), MASKS)
    ]
    found: dict[tuple[str, str], Operation] = {}
    for case in progress(cases, unit="case"):
        for name, got, want in _comparisons(case):
            operation = found.setdefault((name, case.dtype.name), Operation())
            error = _error(got, want)
            bound = _bound(got, case)
            operation.worst = max(operation.worst, error)
            # The negation catches an error that is NaN.
            if not error <= bound:
                operation.failures.append(f"{name}: {error:.1e}, above {bound:.1e}, in {case}")

    names = list(dict.fromkeys(name for name, _ in found))
    rows = [[name, *(f"{found[name, d.name].worst:.1e}" for d in dtypes)] for name in names]
    print("\nLargest error, over both layouts, small and large arrays and every kind of mask:\n")
    print(table(["operation", *(dtype.name for dtype in dtypes)], rows))
    if len(dtypes) == 3:
        print("\nbfloat16 was left out: it needs ml_dtypes, which the extra bench brings.")
    failures = [failure for operation in found.values() for failure in operation.failures]
    print("\n" + ("\n".join(failures) if failures else f"{len(cases)} cases agree with float64."))
    return 1 if failures else 0


def _comparisons(case: Case) -> Iterator[tuple[str, Array, Array]]:
    """(operation, result, float64 result), per-channel or with a column a channel."""
    data = _Data(case)
    x, dy, gamma, beta, axis = data.x, data.dy, data.gamma, data.beta, data.axis
    limits = numbabn.RenormClipping(rmin=0.5, rmax=1.5, dmax=1.0)
    # In float64 from here on; the columns hold what the dtype rounded the data to.
    x64, dy64, on = data.columns(x), data.columns(dy), data.on
    batch = float64.statistics(x64, on)
    # References that some channels reach the limits with and others do not.
    reference_mean = batch.mean + np.linspace(-2, 2, len(batch.mean))
    reference_stddev = np.sqrt(batch.variance + EPSILON) * np.linspace(0.5, 2, len(batch.mean))
    corrected = float64.renormed(batch, reference_mean, reference_stddev, limits, EPSILON)

    got = numbabn.batch_statistics(x, axis=axis, mask=data.mask)
    for result, want in zip((got.count, got.mean, got.variance), batch, strict=False):
        yield "batch_statistics", result, want

    half = x.shape[0] // 2
    parts = (slice(None, half), slice(half, None))
    got = numbabn.BatchStatistics.merge_all(
        numbabn.batch_statistics(x[part], axis=axis, mask=data.part_of_mask(part)) for part in parts
    )
    for result, want in zip((got.count, got.mean, got.variance), batch, strict=False):
        yield "BatchStatistics.merge_all", result, want

    forwards = [
        numbabn.batch_norm_forward(
            x[part], gamma, beta, axis=axis, mask=data.part_of_mask(part), epsilon=EPSILON,
            statistics=got,
        )
        for part in parts
    ]  # fmt: skip
    y = np.concatenate([y for y, _ in forwards])
    yield "parts of a batch", data.columns(y), float64.forward(x64, batch, gamma, beta, EPSILON)
    both = list(zip(parts, (saved for _, saved in forwards), strict=True))
    sums = sum(numbabn.gradient_sums(dy[part], x[part], saved) for part, saved in both)
    backwards = [
        numbabn.batch_norm_backward(dy[part], x[part], saved, sums=sums) for part, saved in both
    ]
    gradients = np.concatenate([dx for dx, _, _ in backwards]), *backwards[0][1:]
    want_gradients = float64.backward(dy64, x64, batch, gamma, on, EPSILON)
    yield from data.gradients("parts of a batch", gradients, want_gradients)

    y = numbabn.normalize(x, batch.mean, batch.variance, gamma, beta, axis=axis, epsilon=EPSILON)
    plain = float64.forward(x64, batch, gamma, beta, EPSILON)
    yield "normalize", data.columns(y), plain

    gradients = numbabn.normalize_backward(
        dy, x, batch.mean, batch.variance, gamma, axis=axis, epsilon=EPSILON
    )
    constant = np.zeros_like(on)
    want_gradients = float64.backward(dy64, x64, batch, gamma, constant, EPSILON)
    yield from data.gradients("normalize_backward", gradients, want_gradients)

    r, d = numbabn.renorm_correction(
        batch.mean,
        batch.variance,
        reference_mean,
        reference_stddev,
        epsilon=EPSILON,
        clipping=limits,
    )
    yield "renorm_correction", r, corrected.r
    yield "renorm_correction", d, corrected.d

    renorm = numbabn.Renorm(reference_mean, reference_stddev, limits)
    for name, reference, expected in [("", None, batch), (", renorm", renorm, corrected)]:
        y, saved = numbabn.batch_norm_forward(
            x, gamma, beta, axis=axis, mask=data.mask, epsilon=EPSILON, renorm=reference
        )
        want = float64.forward(x64, expected, gamma, beta, EPSILON)
        yield "batch_norm_forward" + name, data.columns(y), want
        gradients = numbabn.batch_norm_backward(dy, x, saved)
        want_gradients = float64.backward(dy64, x64, expected, gamma, on, EPSILON)
        yield from data.gradients("batch_norm_backward" + name, gradients, want_gradients)

    layer = numbabn.BatchNormalization(axis=axis, momentum=0.5, epsilon=EPSILON)
    y = layer(x, training=True, mask=data.mask)
    ones, zeros = np.ones_like(batch.mean), np.zeros_like(batch.mean)
    yield "layer", data.columns(y), float64.forward(x64, batch, ones, zeros, EPSILON)
    # From 0 and 1 half the way, but for channels that no position was on for.
    counted = batch.n > 0
    yield "layer", layer.moving_mean, np.where(counted, 0.5 * batch.mean, 0)
    yield "layer", layer.moving_variance, np.where(counted, 0.5 + 0.5 * batch.variance, 1)


class _Data:
    """The arrays of a case, as the library gets them and as columns in float64."""

    def __init__(self, case: Case) -> None:
        shape = SHAPES[case.layout][case.size]
        self.axis = 1 if case.layout == "channels-first" else -1
        generator = np.random.default_rng(0)
        channels = shape[self.axis]
        full: Array = generator.standard_normal(shape) + OFFSETS[case.dtype.name]
        gradient: Array = generator.standard_normal(shape)
        # Not a plain 1 and 0, which would hide a factor that is missing.
        parameter = np.float64 if case.dtype == np.float64 else np.float32
        self.gamma = np.linspace(0.5, 1.5, channels).astype(parameter)
        self.beta = np.linspace(-1, 1, channels).astype(parameter)

        self.mask: Array | None = None
        self._channels = channels
        self.on = np.ones((full.size // channels, channels), bool)
        if case.mask != "no mask":
            masked = list(shape)
            if case.mask == "position mask":
                masked[self.axis] = 1
            self.mask = generator.random(masked) < 0.7
            everywhere = np.broadcast_to(self.mask, shape)
            self.on = self.columns(everywhere).astype(bool)
            # Some of what is off is NaN or infinite, without a gradient as under a masked loss; the
            # rest is finite and has one.
            nan, infinite = ~everywhere & (gradient > 0.5), ~everywhere & (gradient < -0.5)
            full = np.where(nan, np.nan, np.where(infinite, np.inf, full))
            gradient = np.where(nan | infinite, 0, gradient)
        self.x = full.astype(case.dtype)
        self.dy = gradient.astype(case.dtype)

    def columns(self, array: Array) -> Array:
        moved = np.moveaxis(np.asarray(array), self.axis, -1)
        return moved.reshape(-1, self._channels).astype(np.float64)

    def part_of_mask(self, part: slice) -> Array | None:
        return None if self.mask is None else self.mask[part]

    def gradients(
        self, name: str, got: tuple[Array, Array, Array], want: tuple[Array, Array, Array]
    ) -> Iterator[tuple[str, Array, Array]]:
        yield name, self.columns(got[0]), want[0]
        yield name, got[1], want[1]
        yield name, got[2], want[2]


def _error(got: Array, want: Array) -> float:
    """The largest difference, over max(1, the largest value); infinite if NaNs differ."""
    got = np.asarray(got, np.float64)
    finite = np.isfinite(want)
    if got.shape != want.shape or not np.array_equal(np.isfinite(got), finite):
        return np.inf
    scale = np.max(np.abs(want), where=finite, initial=1)
    # Only finite places are compared; what NaN and infinity leave elsewhere is no warning.
    difference = np.subtract(got, want, where=finite, out=np.zeros_like(got))
    return float(np.max(np.abs(difference), initial=0) / scale)


def _bound(got: Array, case: Case) -> float:
    # Per-channel results are float32 or float64 and are not rounded to 16 bits.
    rounding = 0.0 if got.ndim == 1 else ROUNDING.get(case.dtype.name, 0.0)
    return ARITHMETIC[case.dtype.name] + rounding
