"""The launchers: which kernels, how many blocks, what scratch.

INTERFACE

    mask_of(on, layout)                 a mask as this target's kernels read it
    statistics(x, mask, saved)          count, mean and variance
    forward(x, mask, parameters, epsilon, reference, moving, out, saved)
                                        normalize by the batch's own statistics, and move `moving`
    normalize(x, mean, variance, parameters, epsilon, out)
                                        normalize by statistics that are given
    constants(mean, variance, gamma, saved)
                                        what a forward would save whose statistics these are
    backward(dy, x, saved, mask, epsilon, training, out, gradients)
                                        the gradient of a forward, or of `normalize`
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
    reference               a `Reference`: what renorm corrects against
    moving                  a `Moving`: statistics, and where they go once moved
    saved                   (SAVED, channels) float64: count, mean, variance, r, d, gamma
    gradients               (GRADIENTS, channels) float32, or float64 where x is: dgamma, dbeta
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

from ..arrays.device import FLOAT32, FLOAT64, DeviceArray
from ..channels import GAMMA, VARIANCE, Moving, Parameters, Reference
from ..layout import Layout
from . import compile, copies, elements, folds, kernels, masks
from .masks import Mask
from .partition import Partition, partition
from .runtime import on
from .submit import argument, launch

_NO_PARAMETERS = Parameters(None, None)


def mask_of(on: DeviceArray, layout: Layout) -> Mask:
    """A mask as kernels read it: where it is, or by way of bytes that lie closer."""
    if any(step < 0 for step in on.strides):
        on = _marked(on, on.shape, on.strides)
    steps = masks.steps_of(on, layout)
    if steps is None:
        # Too many axes that are broadcast in turn: one byte for every element.
        broadcast = tuple(
            0 if size == 1 else step for size, step in zip(on.shape, on.strides, strict=True)
        )
        on = _marked(on, layout.shape, broadcast)
        steps = masks.steps_of(on, layout)
    assert steps is not None  # one byte for every element has one axis in each group
    return Mask(on, steps)


def _marked(source: DeviceArray, shape: tuple[int, ...], strides: tuple[int, ...]) -> DeviceArray:
    target = source.library.empty(shape, "uint8", source)
    mark(source._replace(shape=shape, strides=strides), target)
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
    channels = x.shape[1]
    with on(x.device):
        cut, layout, kind = _cut(mask, x)
        partial, coefficients, _memory = _scratch(
            x, cut.splits * kernels.MOMENTS * cut.columns, kernels.FORWARD * channels
        )
        _launch_elements(
            "statistics", layout, kind, cut, x,
            (argument(x), argument(mask and mask.on), _steps(mask), cut, partial),
        )  # fmt: skip
        fold, blocks = folds.fold_of(cut, compile.FOLD_THREADS)
        against = (None, None) if reference is None else (reference.mean, reference.spread)
        given = (*parameters, *against)
        _launch_channels(
            "fold_forward", x, blocks,
            (
                partial, fold, *_parameters(*given), _correction(epsilon, reference),
                argument(saved), coefficients,
            ),
        )  # fmt: skip
        if moving is not None:
            _move(saved, epsilon, moving)
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
    channels = x.shape[1]
    _, coefficients, _memory = _scratch(x, 0, kernels.FORWARD * channels)
    _launch_channels(
        "given_coefficients", x, _blocks(channels),
        (*_parameters(*given), epsilon, channels, coefficients),
    )  # fmt: skip
    _apply(x, coefficients, out)


def constants(
    mean: DeviceArray, variance: DeviceArray, gamma: DeviceArray | None, saved: DeviceArray
) -> None:
    """Fill `saved` as a forward would have whose statistics are these, and no renorm."""
    channels = saved.shape[1]
    with on(saved.device):
        _launch_channels(
            "given_statistics", saved, _blocks(channels),
            (*_parameters(mean, variance, gamma), channels, argument(saved)),
        )  # fmt: skip


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
            _normalize(
                dy._replace(stream=x.stream),
                (None, _row(saved, VARIANCE), _row(saved, GAMMA), None), epsilon, out,
            )  # fmt: skip
        if gradients is None:
            return
        channels = x.shape[1]
        cut, layout, _ = _cut(None, dy, x)
        partial, coefficients, _memory = _scratch(
            x, cut.splits * kernels.SUMS * cut.columns, kernels.BACKWARD * channels
        )
        _launch_elements(
            "gradient_sums", layout, "", cut, x,
            (argument(dy), argument(x), argument(saved), cut, partial),
        )  # fmt: skip
        fold, blocks = folds.fold_of(cut, compile.FOLD_THREADS)
        _launch_channels(
            "fold_backward", x, blocks,
            (
                partial, fold, argument(saved), int(training), epsilon, argument(gradients),
                coefficients,
            ),
        )  # fmt: skip
        if out is None:
            return
        if not training:
            # No part of x is left in the gradient: scale · dy.
            _apply(dy._replace(stream=x.stream), coefficients, out)
            return
        cut, layout, kind = _cut(mask, dy, x, out)
        _launch_elements(
            "gradient", layout, kind, cut, x,
            (
                argument(dy), argument(x), argument(mask and mask.on), _steps(mask),
                coefficients, cut, argument(out),
            ),
        )  # fmt: skip


def _apply(x: DeviceArray, coefficients: Any, out: DeviceArray) -> None:
    cut, layout, _ = _cut(None, x, out)
    _launch_elements(
        "normalize", layout, "", cut, x, (argument(x), coefficients, cut, argument(out))
    )


def _row(table: DeviceArray, index: int) -> DeviceArray:
    channels = table.shape[1]
    return table.part(index * channels, (channels,))


def _move(saved: DeviceArray, epsilon: float, moving: Moving) -> None:
    """Move statistics to the batch's."""
    channels = saved.shape[1]
    dtype = moving.statistics[0].dtype.name
    # The kernel leaves alone what is not there.
    missing = (None,) * (5 - len(moving.statistics))
    old, new = (
        tuple(argument(each, dtype) for each in (*given, *missing))
        for given in (moving.statistics, moving.moved)
    )
    renorm_momentum = -1.0 if moving.renorm_momentum is None else moving.renorm_momentum
    variant = compile.channel_kernel("move_statistics", dtype)
    arguments = (
        argument(saved), epsilon, moving.momentum, renorm_momentum, channels, old, new,
    )  # fmt: skip
    launch(variant, _blocks(channels), saved, arguments)


def renorm_correction(
    mean: DeviceArray,
    variance: DeviceArray,
    reference: Reference,
    epsilon: float,
    corrections: DeviceArray,
) -> None:
    """Fill `corrections`, (2, n) float64: `r` and `d`."""
    given = (mean, variance, reference.mean, reference.spread)
    size = mean.size
    with on(mean.device):
        _launch_channels(
            "renorm_corrections", corrections, _blocks(size),
            (*_parameters(*given), _correction(epsilon, reference), size, argument(corrections)),
        )  # fmt: skip


def merge_statistics(
    one: tuple[DeviceArray, ...], other: tuple[DeviceArray, ...], merged: DeviceArray
) -> None:
    """Fill `merged`, (3, n) float64, from two counts, means and variances."""
    channels = merged.shape[1]
    with on(merged.device):
        _launch_channels(
            "merge_statistics", merged, _blocks(channels),
            (*_parameters(*one, *other), channels, argument(merged)),
        )  # fmt: skip


def copy(source: DeviceArray, target: DeviceArray) -> None:
    """target[...] = source, of one shape and dtype."""
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
    blocks = -(-source.size // (compile.FOLD_THREADS * 8))
    with on(source.device):
        variant = compile.word_kernel(kernel, size)
        arguments = (
            _first(argument(source, words), low), *keep,
            _first(argument(target, words if kernel == "copy" else "uint8"), target_low),
            starts, (1,) * fill + sizes, (0,) * fill + source_steps, (0,) * fill + target_steps,
            source.size,
        )  # fmt: skip
        launch(variant, blocks, target, arguments)


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


def _cut(mask: Mask | None, *arrays: DeviceArray) -> tuple[Partition, str, str]:
    """How the arrays are cut, and the variant's layout and kind of mask."""
    outer, channels, inner = arrays[0].shape
    aligned = not any(array.address % elements.VECTOR_BYTES for array in arrays)
    vector = compile.vector_of(arrays[0].dtype.name)
    cut, wide = partition(
        outer, channels, inner, vector, aligned, mask is not None, compile.THREADS
    )
    layout = "scalar" if not wide else "rows" if cut.by_rows else "runs"
    if mask is None:
        return cut, layout, ""
    return cut, layout, "rows" if cut.by_rows and mask.by_position else "elements"


def _scratch(x: DeviceArray, partial: int, coefficients: int) -> tuple[Any, Any, Any]:
    """New memory for both, as arguments, of the dtype that kernels compute with.

    The third is its owner, to be kept until the last launch: from then on the allocator may
    hand the memory on, to work that comes later on the stream.
    """
    dtype = FLOAT64 if x.dtype == FLOAT64 else FLOAT32
    memory = x.library.empty((partial + coefficients,), dtype, x)
    return (
        argument(memory.part(0, (partial,))),
        argument(memory.part(partial, (coefficients,))),
        memory.owner,
    )


def _steps(mask: Mask | None) -> tuple[int, ...]:
    return (0,) * masks.STEPS if mask is None else mask.steps


def _parameters(*given: DeviceArray | None) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Parameters and their kinds, as kernels over channels take them."""
    kinds = tuple(
        elements.ABSENT if each is None else elements.KINDS[each.dtype.name] for each in given
    )
    return tuple(map(argument, given)), kinds


def _correction(epsilon: float, reference: Reference | None) -> folds.Correction:
    if reference is None:
        return folds.Correction(epsilon)
    way = folds.BY_VARIANCE if reference.is_variance else folds.BY_STDDEV
    return folds.Correction(epsilon, way, *reference.limits)


def _blocks(channels: int) -> int:
    return -(-channels // compile.FOLD_THREADS)


def _launch_elements(
    kernel: str, layout: str, mask: str, cut: Partition, x: DeviceArray, arguments: tuple[Any, ...]
) -> None:
    variant = compile.element_kernel(kernel, x.dtype.name, layout, mask)
    launch(variant, cut.tiles * cut.splits, x, arguments)


def _launch_channels(
    kernel: str, like: DeviceArray, blocks: int, arguments: tuple[Any, ...]
) -> None:
    dtype = "float64" if like.dtype == FLOAT64 else "float32"
    variant = compile.channel_kernel(kernel, dtype)
    launch(variant, blocks, like, arguments)
