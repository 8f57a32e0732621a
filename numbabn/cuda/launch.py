"""The launchers: which kernels, how many blocks, what scratch.

INTERFACE

    mask_of(on, layout)                 a mask as this target's kernels read it
    statistics(x, mask, saved)          count, mean and variance
    forward(x, mask, parameters, epsilon, reference, moving, out, saved)
                                        normalize by the batch's own statistics, and move `moving`
    forward_given(x, statistics, parameters, epsilon, reference, moving, out, saved)
                                        the same of a part of a batch, by those of the whole
    normalize(x, mean, variance, parameters, epsilon, out)
                                        normalize by statistics that are given
    constants(mean, variance, gamma, saved)
                                        what a forward would save whose statistics these are
    backward(dy, x, saved, mask, epsilon, training, out, gradients)
                                        the gradient of a forward, or of `normalize`
    gradient_sums(dy, x, saved, epsilon, sums, gradients)
                                        what the gradient of `x` takes of a part of a batch
    gradient(dy, x, saved, mask, epsilon, sums, out, gradients)
                                        the gradients of a part of a batch, by those of the whole
    renorm_correction(mean, variance, reference, epsilon, corrections)
    merge_statistics(one, other, merged)
    copy(source, target)                target[...] = source
    mark(source, target)                target[...] = source != 0, in bytes

Arrays are in canonical form and contiguous, what is filled is given by the caller, and None is
what is not there, or not wanted.

    x, dy, out              (outer, channels, inner) float16, bfloat16, float32 or float64
    on                      bool or uint8, of x's rank as the caller has it; each size x's, or 1
    mask                    what `mask_of` gave
    parameters              `Parameters`: gamma and beta, (channels,)
    mean, variance, gamma   (channels,)
    statistics              count, mean and variance, each (channels,) float64
    reference               a `Reference`: what renorm corrects against
    moving                  a `Moving`: statistics, and where they go once moved
    saved                   (SAVED, channels) float64: count, mean, variance, r, d, gamma
    gradients               (GRADIENTS, channels) float32, or float64 where x is: dgamma, dbeta
    sums                    (SUMS, channels) float64: Σ dy, Σ dy · x̂
    training                False where the statistics were constants: `mask` plays no part, and
                            without `gradients` neither does x
    corrections             (2, n) float64: r and d of n channels
    one, other              (count, mean, variance), each (n,)
    merged                  (3, n) float64: the same of both together
    source, target          of one shape

END OF INTERFACE

Arrays are `DeviceArray`s. Everything goes to the stream of `x`, and nothing waits for it. Scratch
comes from the library of `x`, whose allocator hands memory on in the order of that stream, and
lives as long as the call: CUDA graphs can be captured, and calls on two streams share nothing.
"""

from __future__ import annotations

from typing import Any

from ..arrays.device import FLOAT64, DeviceArray, form_of
from ..channels import GAMMA, VARIANCE, Moving, Parameters, Reference
from ..layout import Layout
from . import compile, copies, elements, folds, masks, plans, work
from .masks import Mask
from .runtime import SIMULATED, on
from .submit import Step, argument

_NO_PARAMETERS = Parameters(None, None)
_NOT_MOVED = (argument(None),) * 10


def mask_of(on: DeviceArray, layout: Layout) -> Mask:
    """A mask as kernels read it: where it is, or by way of bytes that lie closer."""
    if any(step < 0 for step in on.strides):
        on = _marked(on, on.shape, on.strides)
    steps = masks.steps_of(on.form, layout)
    if steps is None:
        # Too many axes that are broadcast in turn: one byte for every element.
        broadcast = tuple(
            0 if size == 1 else step for size, step in zip(on.shape, on.strides, strict=True)
        )
        on = _marked(on, layout.shape, broadcast)
        steps = masks.steps_of(on.form, layout)
    assert steps is not None  # one byte for every element has one axis in each group
    return Mask(on, steps)


def _marked(source: DeviceArray, shape: tuple[int, ...], strides: tuple[int, ...]) -> DeviceArray:
    target = source.library.empty(shape, "uint8", source)
    mark(source.of_form(form_of(shape, strides, source.dtype)), target)
    return target


def statistics(x: DeviceArray, mask: Mask | None, saved: DeviceArray) -> None:
    """Fill `saved`, whose first rows are count, mean and variance."""
    forward(x, mask, _NO_PARAMETERS, 1.0, None, None, None, saved)


def forward(
    x: DeviceArray,
    mask: Mask | None,
    parameters: Parameters,
    epsilon: float,
    reference: Reference | None,
    moving: Moving | None,
    out: DeviceArray | None,
    saved: DeviceArray,
) -> None:
    """Normalize `x` by its own statistics into `out`, or nowhere if None; fills `saved`."""
    plan = plans.of_forward(x.form, plans.aligned(x), plans.steps_of(mask))
    against = (None, None) if reference is None else (reference.mean, reference.spread)
    given, kinds = _parameters((*parameters, *against))
    moved, kind, correction = _moving(epsilon, reference, moving)
    with on(x.device):
        partial, coefficients, _memory = _scratch(x, plan.scratch)
        plan.statistics(x, (argument(x), argument(mask and mask.on), partial))
        plan.fold((*kinds, kind))(
            x, (partial, argument(saved), coefficients), given, moved, correction
        )
        if out is not None:
            _apply(x, coefficients, out)


def forward_given(
    x: DeviceArray,
    statistics: tuple[DeviceArray, ...],
    parameters: Parameters,
    epsilon: float,
    reference: Reference | None,
    moving: Moving | None,
    out: DeviceArray | None,
    saved: DeviceArray,
) -> None:
    """Normalize `x` by the statistics of the batch that it is a part of, as `forward` does."""
    against = (None, None) if reference is None else (reference.mean, reference.spread)
    given, kinds = _parameters((*parameters, *against, *statistics))
    moved, kind, correction = _moving(epsilon, reference, moving)
    channels = x.shape[1]
    with on(x.device):
        _, coefficients, _memory = _scratch(x, plans.scratch(x.dtype, 0, work.FORWARD * channels))
        prepare = plans.over_channels("given_forward", x.dtype, channels, (*kinds, kind))
        prepare(x, (argument(saved), coefficients), given, moved, correction)
        if out is not None:
            _apply(x, coefficients, out)


def normalize(
    x: DeviceArray,
    mean: DeviceArray,
    variance: DeviceArray,
    parameters: Parameters,
    epsilon: float,
    out: DeviceArray,
) -> None:
    """Normalize `x` by statistics that are given, into `out`."""
    with on(x.device):
        _normalize(x, (mean, variance, *parameters), epsilon, out)


def _normalize(
    x: DeviceArray, given: tuple[DeviceArray | None, ...], epsilon: float, out: DeviceArray
) -> None:
    """given: mean, variance, gamma and beta; None for 0, 1 and 0 where it may be missing"""
    memory, kinds = _parameters(given)
    step = plans.normalize_given(x.form, plans.aligned(x, out), kinds)
    if step is not None:
        step(x, (argument(x), argument(out), epsilon), memory)
        return
    # Parameters that are wider than what is computed with: by way of coefficients.
    channels = x.shape[1]
    _, coefficients, _memory = _scratch(x, plans.scratch(x.dtype, 0, work.FORWARD * channels))
    prepare = plans.over_channels("given_coefficients", x.dtype, channels, kinds)
    prepare(x, (coefficients, epsilon), memory)
    _apply(x, coefficients, out)


def constants(
    mean: DeviceArray, variance: DeviceArray, gamma: DeviceArray | None, saved: DeviceArray
) -> None:
    """Fill `saved` as a forward would have whose statistics are these, and no renorm."""
    memory, kinds = _parameters((mean, variance, gamma))
    with on(saved.device):
        step = plans.over_channels("given_statistics", FLOAT64, saved.shape[1], kinds)
        step(saved, (argument(saved),), memory)


def backward(
    dy: DeviceArray,
    x: DeviceArray,
    saved: DeviceArray,
    mask: Mask | None,
    epsilon: float,
    training: bool,
    out: DeviceArray | None,
    gradients: DeviceArray | None,
) -> None:
    """The gradient of `x` into `out`, or nowhere if None; fills `gradients`.

    training: False where the statistics were constants, and `mask` plays no part
    """
    with on(x.device):
        if gradients is None and out is not None:
            # dx = gamma · rstd · dy: no sum over the batch, and x is not read.
            given = (None, _row(saved, VARIANCE), _row(saved, GAMMA), None)
            _normalize(_ordered(dy, x), given, epsilon, out)
        if gradients is None:
            return
        plan = plans.of_backward(x.form, plans.aligned(dy, x))
        partial, coefficients, _memory = _scratch(x, plan.scratch)
        sums, results = argument(saved), argument(gradients)
        plan.sums(x, (argument(dy), argument(x), sums, partial))
        way = folds.TRAINING if training else folds.CONSTANT
        plan.fold(x, (partial, sums, results, coefficients, argument(None), epsilon, way))
        if out is None:
            return
        if not training:
            # No part of x is left in the gradient: scale · dy.
            _apply(_ordered(dy, x), coefficients, out)
            return
        _apply_gradient(dy, x, mask, coefficients, out)


def gradient_sums(
    dy: DeviceArray,
    x: DeviceArray,
    saved: DeviceArray,
    epsilon: float,
    sums: DeviceArray,
    gradients: DeviceArray,
) -> None:
    """Fill `sums` with Σ dy and Σ dy · x̂; fills `gradients`."""
    with on(x.device):
        plan = plans.of_backward(x.form, plans.aligned(dy, x))
        partial, coefficients, _memory = _scratch(x, plan.scratch)
        of_forward, results = argument(saved), (argument(gradients), coefficients, argument(sums))
        plan.sums(x, (argument(dy), argument(x), of_forward, partial))
        plan.fold(x, (partial, of_forward, *results, epsilon, folds.OF_PART))


def gradient(
    dy: DeviceArray,
    x: DeviceArray,
    saved: DeviceArray,
    mask: Mask | None,
    epsilon: float,
    sums: DeviceArray,
    out: DeviceArray,
    gradients: DeviceArray,
) -> None:
    """The gradient of `x` into `out`, by sums over the batch that it is a part of.

    Fills `gradients`, those of the batch.
    """
    channels = x.shape[1]
    with on(x.device):
        _, coefficients, _memory = _scratch(x, plans.scratch(x.dtype, 0, work.BACKWARD * channels))
        prepare = plans.over_channels("given_sums", x.dtype, channels, ())
        prepare(x, (argument(saved), argument(sums), argument(gradients), coefficients, epsilon))
        _apply_gradient(dy, x, mask, coefficients, out)


def _apply_gradient(
    dy: DeviceArray, x: DeviceArray, mask: Mask | None, coefficients: Any, out: DeviceArray
) -> None:
    step = plans.gradient(x.form, plans.aligned(dy, x, out), plans.steps_of(mask))
    step(x, (argument(dy), argument(x), argument(mask and mask.on), coefficients, argument(out)))


def _apply(x: DeviceArray, coefficients: Any, out: DeviceArray) -> None:
    step = plans.normalize(x.form, plans.aligned(x, out))
    step(x, (argument(x), coefficients, argument(out)))


def _ordered(array: DeviceArray, like: DeviceArray) -> DeviceArray:
    return array.library.on_stream_of(array, like)


def _row(table: DeviceArray, index: int) -> DeviceArray:
    channels = table.shape[1]
    return table.part(index * channels, (channels,))


def renorm_correction(
    mean: DeviceArray,
    variance: DeviceArray,
    reference: Reference,
    epsilon: float,
    corrections: DeviceArray,
) -> None:
    """Fill `corrections`, (2, n) float64: `r` and `d`."""
    memory, kinds = _parameters((mean, variance, reference.mean, reference.spread))
    with on(mean.device):
        step = plans.over_channels("renorm_corrections", FLOAT64, mean.size, kinds)
        _, _, correction = _moving(epsilon, reference, None)
        step(corrections, (argument(corrections),), memory, correction)


def merge_statistics(
    one: tuple[DeviceArray, ...], other: tuple[DeviceArray, ...], merged: DeviceArray
) -> None:
    """Fill `merged`, (3, n) float64, from two counts, means and variances."""
    memory, kinds = _parameters((*one, *other))
    with on(merged.device):
        step = plans.over_channels("merge_statistics", FLOAT64, merged.shape[1], kinds)
        step(merged, (argument(merged),), memory)


def copy(source: DeviceArray, target: DeviceArray) -> None:
    """target[...] = source, of one shape and dtype."""
    if not source.library.assign(source, target):
        _copy("copy", source, target, ())


def mark(source: DeviceArray, target: DeviceArray) -> None:
    """target[...] = (source != 0), as uint8."""
    is_integer = source.dtype.kind in "biu"
    keep = -1 if is_integer else (1 << 8 * source.itemsize - 1) - 1
    _copy("bytes_on", source, target, (keep,))


def _copy(kernel: str, source: DeviceArray, target: DeviceArray, keep: tuple[int, ...]) -> None:
    size = source.dtype.itemsize
    sizes, source_steps, target_steps = _common_axes(source, target)
    if len(sizes) > copies.AXES:
        raise ValueError(
            f"an array of shape {source.shape} and strides {source.strides} has more than "
            f"{copies.AXES} axes that cannot be joined: copy it into a dense array before"
        )
    fill = copies.AXES - len(sizes)
    low, target_low = source.extent[0], target.extent[0]
    starts = (
        (source.address - low) // size,
        (target.address - target_low) // target.dtype.itemsize,
    )
    words = f"int{8 * size}"
    # Some eight elements for each thread, which it takes one by one.
    blocks = -(-source.size // (compile.CHANNEL_THREADS * 8))
    with on(source.device):
        step = Step(
            compile.word_kernel(kernel, size), blocks,
            starts, (1,) * fill + sizes, (0,) * fill + source_steps, (0,) * fill + target_steps,
            source.size,
        )  # fmt: skip
        both = (words, words if kernel == "copy" else "uint8")
        memory = (
            _first(argument(each, word), first)
            for each, word, first in zip((source, target), both, (low, target_low), strict=True)
        )
        step(target, (*memory, *keep))


def _first(memory: Any, low: int) -> Any:
    """Memory from its lowest address on, where it is an address; simulated memory is so already."""
    return low if isinstance(memory, int) else memory


def _common_axes(source: DeviceArray, target: DeviceArray) -> tuple[tuple[int, ...], ...]:
    """Sizes and steps of both with as few axes as there can be."""
    merged: list[tuple[int, int, int]] = []
    width, target_width = source.dtype.itemsize, target.dtype.itemsize
    for size, step, target_step in zip(source.shape, source.strides, target.strides, strict=True):
        if size == 1:
            continue
        here, there = step // width, target_step // target_width
        if merged and merged[-1][1:] == (size * here, size * there):
            merged[-1] = (merged[-1][0] * size, here, there)
        else:
            merged.append((size, here, there))
    return tuple(zip(*merged, strict=True)) if merged else ((), (), ())


def _scratch(x: DeviceArray, scratch: plans.Scratch) -> tuple[Any, ...]:
    """New memory for partial results, and for coefficients, as arguments.

    The last is its owner, to be kept until the last launch: from then on the allocator may
    hand the memory on, to work that comes later on the stream.
    """
    memory = x.library.scratch(scratch.form, x)
    if not SIMULATED:
        return memory.address, memory.address + scratch.offset, memory.owner
    first = scratch.offset // memory.itemsize
    partial, coefficients = memory.part(0, (first,)), memory.part(first, (memory.size - first,))
    return argument(partial), argument(coefficients), memory.owner


def _parameters(given: tuple[DeviceArray | None, ...]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Parameters and their kinds, as kernels over channels take them."""
    memory, kinds = [], []
    for each in given:
        memory.append(argument(each))
        kinds.append(elements.ABSENT if each is None else elements.KINDS[each.form.dtype.name])
    return tuple(memory), tuple(kinds)


def _moving(
    epsilon: float, reference: Reference | None, moving: Moving | None
) -> tuple[tuple[Any, ...], int, folds.Correction]:
    """The statistics to be moved and where they go, their kind, and by what they are."""
    way, limits = folds.PLAIN, (0.0, 0.0, 0.0)
    if reference is not None:
        way = folds.BY_VARIANCE if reference.is_variance else folds.BY_STDDEV
        limits = reference.limits
    if moving is None:
        return _NOT_MOVED, elements.ABSENT, folds.Correction(epsilon, way, *limits)
    # The kernel leaves alone what is not there.
    missing = (argument(None),) * (5 - len(moving.statistics))
    memory = (
        *map(argument, moving.statistics), *missing, *map(argument, moving.moved), *missing,
    )  # fmt: skip
    renorm_momentum = -1.0 if moving.renorm_momentum is None else moving.renorm_momentum
    correction = folds.Correction(
        epsilon, way, *limits, moving.momentum, renorm_momentum, float(moving.skip_nonfinite)
    )
    return memory, elements.KINDS[moving.statistics[0].dtype.name], correction
