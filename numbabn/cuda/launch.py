"""The launchers: which kernels, how many blocks, what scratch.

The names and arguments are those of `numbabn.cpu.launch`, with one difference: every result is
memory that the caller gives. All arguments are `device.DeviceArray`s.

    x, dy, out              in canonical form, (outer, channels, inner), contiguous
    mask                    a `DeviceMask`, or None
    gamma, beta             (channels,) of any float, or None for 1 and 0
    mean, variance          (channels,) of any float
    reference               a `Reference`, or None
    saved                   (6, channels) float64: count, mean, variance, r, d, gamma
    dgamma, dbeta           (channels,) float32, or float64 where x is

Everything goes to the stream of `x`, and nothing waits for it. Scratch comes from the library
of `x`, whose allocator hands memory on in the order of that stream, and lives as long as the
call: CUDA graphs can be captured, and calls on two streams share nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import compile, copies, elements, folds, kernels, masks
from .device import FLOAT32, FLOAT64, DeviceArray, argument, launch, on
from .partition import Partition, partition


class DeviceMask(NamedTuple):
    """A mask as kernels read it: bytes, and how they are found; see `masks`."""

    memory: DeviceArray
    steps: tuple[int, ...]

    @property
    def by_position(self) -> bool:
        """Whether it is the same all along a channel axis and a run."""
        channel = self.steps[masks.CHANNEL + masks.AXES : masks.INNER]
        return not any(channel) and not any(self.steps[masks.INNER + masks.AXES :])


class Reference(NamedTuple):
    """What a forward corrects against."""

    mean: DeviceArray
    spread: DeviceArray
    kind: int  # folds.BY_STDDEV or folds.BY_VARIANCE
    limits: tuple[float, float, float]


def statistics(x: DeviceArray, mask: DeviceMask | None, saved: DeviceArray) -> None:
    """Fill `saved`, whose first rows are count, mean and variance."""
    forward(x, mask, None, None, 1.0, None, None, saved)


def forward(
    x: DeviceArray,
    mask: DeviceMask | None,
    gamma: DeviceArray | None,
    beta: DeviceArray | None,
    epsilon: float,
    reference: Reference | None,
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
            (argument(x), argument(mask and mask.memory), _steps(mask), cut, partial),
        )  # fmt: skip
        fold, blocks = folds.fold_of(cut, compile.FOLD_THREADS)
        mean = spread = None
        way, limits = folds.PLAIN, (0.0, 0.0, 0.0)
        if reference is not None:
            mean, spread, way, limits = reference
        _launch_channels(
            "fold_forward", x, blocks,
            (
                partial, fold, argument(gamma), argument(beta), argument(mean), argument(spread),
                _kinds(gamma, beta, mean, spread), way, epsilon, *limits, argument(saved),
                coefficients,
            ),
        )  # fmt: skip
        if out is not None:
            _apply(x, coefficients, out)


def normalize(
    x: DeviceArray,
    mean: DeviceArray,
    variance: DeviceArray,
    gamma: DeviceArray | None,
    beta: DeviceArray | None,
    epsilon: float,
    out: DeviceArray,
) -> None:
    """Normalize `x` by statistics that are given, into `out`."""
    channels = x.shape[1]
    with on(x.device):
        _, coefficients, _memory = _scratch(x, 0, kernels.FORWARD * channels)
        _launch_channels(
            "given_coefficients", x, _blocks(channels),
            (
                argument(mean), argument(variance), argument(gamma), argument(beta),
                _kinds(mean, variance, gamma, beta), epsilon, channels, coefficients,
            ),
        )  # fmt: skip
        _apply(x, coefficients, out)


def backward(
    dy: DeviceArray,
    x: DeviceArray,
    saved: DeviceArray,
    epsilon: float,
    mask: DeviceMask | None,
    training: bool,
    out: DeviceArray | None,
    dgamma: DeviceArray,
    dbeta: DeviceArray,
) -> None:
    """The gradient of `x` into `out`, or nowhere if None; fills `dgamma` and `dbeta`.

    training: False where the statistics were constants, and `mask` plays no part
    """
    channels = x.shape[1]
    with on(x.device):
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
                partial, fold, argument(saved), int(training), epsilon, argument(dgamma),
                argument(dbeta), coefficients,
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
                argument(dy), argument(x), argument(mask and mask.memory), _steps(mask),
                coefficients, cut, argument(out),
            ),
        )  # fmt: skip


def _apply(x: DeviceArray, coefficients: Any, out: DeviceArray) -> None:
    cut, layout, _ = _cut(None, x, out)
    _launch_elements(
        "normalize", layout, "", cut, x, (argument(x), coefficients, cut, argument(out))
    )


def given_statistics(
    mean: DeviceArray, variance: DeviceArray, gamma: DeviceArray | None, saved: DeviceArray
) -> None:
    """Fill `saved` as a forward would have whose statistics are these, and no renorm."""
    channels = saved.shape[1]
    parameters = (argument(mean), argument(variance), argument(gamma))
    with on(mean.device):
        _launch_channels(
            "given_statistics", saved, _blocks(channels),
            (*parameters, _kinds(mean, variance, gamma), channels, argument(saved)),
        )  # fmt: skip


def renorm_correction(
    mean: DeviceArray,
    variance: DeviceArray,
    epsilon: float,
    reference: Reference,
    r: DeviceArray,
    d: DeviceArray,
) -> None:
    """Fill `r` and `d`, (n,) float64."""
    parameters = (mean, variance, reference.mean, reference.spread)
    with on(mean.device):
        _launch_channels(
            "renorm_corrections", r, _blocks(r.size),
            (
                *map(argument, parameters), _kinds(*parameters), epsilon, *reference.limits,
                r.size, argument(r), argument(d),
            ),
        )  # fmt: skip


def merge_statistics(parameters: tuple[DeviceArray, ...], merged: DeviceArray) -> None:
    """Fill `merged`, (3, channels) float64, from two counts, means and variances."""
    channels = merged.shape[1]
    with on(merged.device):
        _launch_channels(
            "merge_statistics", merged, _blocks(channels),
            (
                *map(argument, parameters), _kinds(*parameters), channels,
                *(argument(part(merged, row * channels, channels)) for row in range(3)),
            ),
        )  # fmt: skip


def move_statistics(
    saved: DeviceArray,
    epsilon: float,
    momentum: float,
    renorm_momentum: float | None,
    moving: tuple[DeviceArray, ...],
) -> None:
    """Move statistics to the batch's, in place.

    renorm_momentum: None where there is nothing but the mean and the variance
    moving: mean and variance, and with renorm stddev, renorm mean and renorm stddev; (channels,)
        of one dtype, float32 or float64
    """
    channels = saved.shape[1]
    separate = renorm_momentum is not None
    # The kernel leaves alone what is not there.
    all_five = moving if separate else (*moving, None, None, None)
    memory = [argument(each, moving[0].dtype.name) for each in all_five]
    with on(saved.device):
        variant = compile.channel_kernel("move_statistics", moving[0].dtype.name)
        arguments = (
            argument(saved), epsilon, momentum, renorm_momentum if separate else 0.0,
            int(separate), channels, *memory,
        )  # fmt: skip
        launch(variant, _blocks(channels), saved, arguments)


def copy(source: DeviceArray, target: DeviceArray) -> None:
    """target[...] = source, of one shape and dtype."""
    _copy("copy", source, target, ())


def mask_bytes(source: DeviceArray, target: DeviceArray) -> None:
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


def part(memory: DeviceArray, first: int, count: int) -> DeviceArray:
    """Some of the elements of contiguous memory."""
    size = memory.dtype.itemsize
    return memory._replace(address=memory.address + first * size, shape=(count,), strides=(size,))


def _cut(mask: DeviceMask | None, *arrays: DeviceArray) -> tuple[Partition, str, str]:
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
    memory = x.library.describe(x.library.empty((partial + coefficients,), (1,), dtype, x))
    return (
        argument(part(memory, 0, partial)),
        argument(part(memory, partial, coefficients)),
        memory.owner,
    )


def _steps(mask: DeviceMask | None) -> tuple[int, ...]:
    return (0,) * masks.STEPS if mask is None else mask.steps


def _kinds(*parameters: DeviceArray | None) -> tuple[int, ...]:
    return tuple(
        elements.ABSENT if each is None else elements.KINDS[each.dtype.name] for each in parameters
    )


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
