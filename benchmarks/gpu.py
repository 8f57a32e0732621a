"""How close to a copy's bandwidth on a GPU, and how much faster than torch?

    python -m benchmarks.gpu

A training forward has to read x twice and write y, which is 3N bytes for an array of N; a backward
reads dy and x twice and writes dx, 5N. The share of a call is the time that those bytes take at the
bandwidth of a device copy of the same array, over the time of the call: 1 is as good as a copy.

Beside numbabn: torch's native kernels and cuDNN, in float32, float16 and bfloat16 and both memory
formats, all called directly, without autograd around them; statistics with a mask that is off at
half of the rows, beside those without; and small arrays once more under CUDA graphs, without the
cost of launching. All are timed by CUDA events, in turns. Every call gets an input that no cache
holds, and a fresh output.
"""

import argparse
import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import numpy as np

import numbabn
from numbabn.commands.table import table
from numbabn.cuda.availability import why_unavailable

from . import common
from .common import Record, Timing

DTYPES = ("float32", "float16", "bfloat16")
FIRST, LAST = "channels-first", "channels-last"
LAYOUTS = (FIRST, LAST)
MIB = 1 << 20
SIZES = [MIB << i for i in (0, 2, 4, 6, 7, 8, 9, 10, 11)]
QUICK_SIZES = [1 * MIB, 64 * MIB]
# What the aims are about.
LARGE = 100_000_000
# Above, a launch is lost in the time of the kernel.
LARGEST_IN_GRAPH = 16 * MIB
STATISTICS_BYTES = 512 * MIB
CHANNELS, SIDE = 64, 32
EPSILON = 1e-3
TURNS, QUICK_TURNS = 21, 3
# Cycles that the device idles before the clock starts, for each call: 100 µs and more, in which the
# host queues work that would otherwise be waited for.
CYCLES_TO_QUEUE = 200_000

COPY, OURS, NATIVE, CUDNN = "copy", "numbabn", "torch native", "cuDNN"
OPERATIONS = ("forward", "backward")
# Bytes that have to go through memory, in bytes of x.
TRAFFIC = {"copy": 2, "forward": 3, "backward": 5}
COLOURS = {OURS: "#1f77b4", NATIVE: "#d62728", CUDNN: "#2ca02c"}
STYLES = {"float32": "-", "float16": "--", "bfloat16": ":"}
MASKS = ("padding", "random")

# An array's inputs, by name; a call takes those of one buffer and returns its results.
Inputs = dict[str, Any]
Calls = dict[tuple[str, str], Callable[[Inputs], Any]]


class Aim(NamedTuple):
    """What is to be reached: `found` is the least over all measurements that it is about."""

    what: str
    found: float
    least: float


def shape_of(size: int, itemsize: int) -> tuple[int, int, int, int]:
    """(images, channels, height, width) of `size` bytes."""
    return (max(1, size // (itemsize * CHANNELS * SIDE * SIDE)), CHANNELS, SIDE, SIDE)


def buffers_of(size: int, cache: int) -> int:
    """How many inputs of `size` bytes take turns, so that none is in the cache when it comes.

    The inputs beside one are four times the cache, so that others displace it; and there are at
    least two of them: a call leaves a part of the largest input behind, and its output.
    """
    return max(3, 1 + ceil(4 * cache / size))


def memory_of(size: int, buffers: int) -> int:
    """Bytes that timing needs: inputs, gradients and outputs, and results in float32 to compare."""
    return 3 * size * buffers + 8 * size


def share(operation: str, seconds: float, copy_seconds: float) -> float:
    """The time of the bytes that an operation has to move at a copy's bandwidth, over its time."""
    return TRAFFIC[operation] / TRAFFIC["copy"] * copy_seconds / seconds


def records(
    part: str, layout: str, dtype: str, shape: Sequence[int], size: int,
    times: dict[tuple[str, str], Timing],
) -> list[Record]:  # fmt: skip
    """A record for every timing of one array; the copy among them is the yardstick."""
    copy = times[COPY, "copy"].median
    return [
        {
            "part": part,
            "layout": layout,
            "dtype": dtype,
            "bytes": size,
            "shape": "x".join(map(str, shape)),
            "contender": contender,
            "operation": operation,
            **timing._asdict(),
            "share": share(operation, timing.median, copy) if operation in TRAFFIC else "",
        }
        for (contender, operation), timing in times.items()
    ]


Key = tuple[str, str, str, int, str]


def by_array(found: list[Record], value: str) -> dict[Key, dict[str, float]]:
    """A column's numbers by contender, for every part, layout, dtype, size and operation."""
    arrays: dict[Key, dict[str, float]] = {}
    for r in found:
        key = (r["part"], r["layout"], r["dtype"], int(r["bytes"]), r["operation"])
        arrays.setdefault(key, {})[r["contender"]] = r[value]
    return arrays


def speedups(found: list[Record], other: str) -> dict[Key, float]:
    """How many times as long as numbabn another contender takes, where both ran."""
    return {
        key: medians[other] / medians[OURS]
        for key, medians in by_array(found, "median").items()
        if OURS in medians and other in medians
    }


def masked_speedups(found: list[Record]) -> dict[tuple[str, str, str], float]:
    """By layout, dtype and mask: how many times as fast as without a mask statistics are."""
    ratios = {}
    for (_, layout, dtype, _, operation), medians in by_array(found, "median").items():
        if operation == "statistics":
            ratios |= {(layout, dtype, m): medians["none"] / medians[m] for m in MASKS}
    return ratios


def aims(found: list[Record]) -> list[Aim]:
    """The aims that something was measured for."""

    def about(key: Key) -> bool:
        return key[0] == "size" and key[3] > LARGE

    shares = {key: each[OURS] for key, each in by_array(found, "share").items() if OURS in each}
    over_native, over_cudnn = speedups(found, NATIVE), speedups(found, CUDNN)
    above = f"above {LARGE // 10**6} MB"
    candidates: list[tuple[str, list[float], float]] = [
        (
            f"share, {operation}, {above}",
            [each for key, each in shares.items() if about(key) and key[4] == operation],
            0.85,
        )
        for operation in OPERATIONS
    ]
    candidates += [
        (
            f"times as fast as {NATIVE}, {above}",
            [each for key, each in over_native.items() if about(key)],
            1.5,
        ),
        (
            f"times as fast as {CUDNN}, {LAST}, float16, {above}",
            [
                each
                for key, each in over_cudnn.items()
                if about(key) and key[1:3] == (LAST, "float16")
            ],
            1.0,
        ),
        (
            f"times as fast with half of the rows off, statistics, {LAST}",
            [each for key, each in masked_speedups(found).items() if key[0] == LAST],
            1.5,
        ),
    ]
    return [Aim(what, min(values), least) for what, values, least in candidates if values]


def report(found: list[Record]) -> str:
    parts = [
        "The least of all measurements, against the aims:",
        table(
            ["", "found", "aim", "reached"],
            [
                [what, f"{least:.2f}", f"{aim:.2f}", "yes" if least >= aim else "no"]
                for what, least, aim in aims(found)
            ],
        ),
        "Share of a copy's bandwidth, and how many times as long as numbabn the others take:",
        _table_of(found, "size"),
    ]
    if any(r["part"] == "graph" for r in found):
        parts += ["The same calls replayed from a CUDA graph:", _table_of(found, "graph")]
    masked = masked_speedups(found)
    if masked:
        parts += [
            "Statistics, how many times as fast with a mask that is off at half of the rows:",
            table(
                ["", *MASKS],
                [
                    [f"{layout}, {dtype}", *(f"{masked[layout, dtype, m]:.2f}" for m in MASKS)]
                    for layout, dtype in dict.fromkeys(key[:2] for key in masked)
                ],
            ),
        ]
    return "\n\n".join(parts)


def _table_of(found: list[Record], part: str) -> str:
    shares, medians = by_array(found, "share"), by_array(found, "median")
    rows = []
    for key, times in medians.items():
        _, layout, dtype, size, operation = key
        if key[0] != part or OURS not in times:
            continue
        others = [
            cell
            for other in (NATIVE, CUDNN)
            for cell in (
                (f"{shares[key][other]:.2f}", f"{times[other] / times[OURS]:.2f}")
                if other in times
                else ("–", "–")
            )
        ]
        rows.append(
            [
                f"{layout}, {dtype}, {operation}, {common.size(size)}",
                common.duration(times[OURS]),
                f"{shares[key][OURS]:.2f}",
                *others,
            ]
        )
    return table(["", OURS, "share", f"{NATIVE}, share", "times", f"{CUDNN}, share", "times"], rows)


def draw(found: list[Record]) -> object:
    figure, grid = common.figure(2, rows=2)
    shares = by_array(found, "share")
    for axes_of_row, operation in zip(grid, OPERATIONS, strict=True):
        for axes, layout in zip(axes_of_row, LAYOUTS, strict=True):
            for dtype in DTYPES:
                for contender, colour in COLOURS.items():
                    points = {
                        key[3]: each[contender]
                        for key, each in shares.items()
                        if key[:3] == ("size", layout, dtype)
                        and key[4] == operation
                        and contender in each
                    }
                    x = sorted(points)
                    label = f"{contender}, {dtype}"
                    axes.plot(
                        x, [points[b] for b in x], STYLES[dtype], color=colour, label=label
                    )  # fmt: skip
            axes.axhline(0.85, color="black", linewidth=1)
            axes.set(xscale="log", xlabel="bytes of x", ylabel="share of a copy's bandwidth")
            axes.set_title(f"{operation}, {layout}")
            axes.grid(which="major", alpha=0.3)
    grid[0][0].legend(fontsize=7)
    return figure


# From here on everything needs a device.


class Device:
    """The device that torch computes on."""

    def __init__(self) -> None:
        if not common.installed("torch"):
            raise SystemExit("This benchmark compares with torch, which is not installed")
        self.torch = importlib.import_module("torch")
        if not self.torch.cuda.is_available():
            raise SystemExit(
                "This benchmark needs an NVIDIA GPU, and torch "
                f"{self.torch.__version__} finds none here"
            )
        missing = why_unavailable()
        if missing is not None:
            raise SystemExit(f"This benchmark cannot run: {missing}")
        properties = self.torch.cuda.get_device_properties(0)
        self.name: str = properties.name
        self.cache: int = properties.L2_cache_size

    def free_memory(self) -> int:
        self.torch.cuda.empty_cache()
        free: int = self.torch.cuda.mem_get_info()[0]
        return free

    def itemsize(self, dtype: str) -> int:
        size: int = getattr(self.torch, dtype).itemsize
        return size

    def inputs(self, shape: Sequence[int], layout: str, dtype: str, seed: int) -> Inputs:
        """An array and its gradient, with channels second in shape, and parameters."""
        torch = self.torch
        generator = torch.Generator("cuda").manual_seed(seed)
        order = torch.channels_last if layout == LAST else torch.contiguous_format

        def normal() -> Any:
            values = torch.empty(
                shape, dtype=getattr(torch, dtype), device="cuda", memory_format=order
            )
            return values.normal_(generator=generator)

        gamma = torch.linspace(0.5, 1.5, shape[1], device="cuda")
        return {"x": normal(), "dy": normal(), "gamma": gamma, "beta": torch.zeros_like(gamma)}

    def time_calls(self, calls: dict[Any, Callable[[], int]], turns: int) -> dict[Any, Timing]:
        """Seconds of one call on the device, by CUDA events, in an order that changes.

        calls: functions that make a number of calls and return how many
        """
        torch = self.torch
        numbers = {name: call() for name, call in calls.items()}
        torch.cuda.synchronize()
        order = np.random.default_rng(0)
        names = list(calls)
        times: dict[Any, list[float]] = {name: [] for name in names}
        for _ in range(turns):
            for i in order.permutation(len(names)):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda._sleep(CYCLES_TO_QUEUE * numbers[names[i]])
                start.record()
                number = calls[names[i]]()
                end.record()
                end.synchronize()
                times[names[i]].append(start.elapsed_time(end) / 1e3 / number)
        return {name: _timing(samples) for name, samples in times.items()}


def _timing(samples: Sequence[float]) -> Timing:
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return Timing(float(median), float(low), float(high), len(samples))


def ours() -> Calls:
    """numbabn's calls; the backward reads what a forward has left under the contender's name."""

    def forward(given: Inputs) -> Any:
        return numbabn.batch_norm_forward(
            given["x"], given["gamma"], given["beta"], axis=1, epsilon=EPSILON
        )

    def backward(given: Inputs) -> Any:
        return numbabn.batch_norm_backward(given["dy"], given["x"], given[OURS])

    return {(OURS, "forward"): forward, (OURS, "backward"): backward}


def native(aten: Any) -> Calls:
    """torch's own kernels."""

    def forward(given: Inputs) -> Any:
        return aten.native_batch_norm(
            given["x"], given["gamma"], given["beta"], None, None, True, 0.0, EPSILON
        )

    def backward(given: Inputs) -> Any:
        mean, rstd = given[NATIVE]
        return aten.native_batch_norm_backward(
            given["dy"], given["x"], given["gamma"], None, None, mean, rstd, True, EPSILON,
            [True, True, True],
        )  # fmt: skip

    return {(NATIVE, "forward"): forward, (NATIVE, "backward"): backward}


def cudnn(aten: Any) -> Calls:
    """cuDNN's, as torch calls them."""

    def forward(given: Inputs) -> Any:
        return aten.cudnn_batch_norm(
            given["x"], given["gamma"], given["beta"], None, None, True, 0.0, EPSILON
        )

    def backward(given: Inputs) -> Any:
        mean, rstd, reserve = given[CUDNN]
        return aten.cudnn_batch_norm_backward(
            given["x"], given["dy"], given["gamma"], None, None, mean, rstd, EPSILON, reserve
        )

    return {(CUDNN, "forward"): forward, (CUDNN, "backward"): backward}


def cudnn_takes(aten: Any, given: Inputs) -> bool:
    """Whether cuDNN computes on such arrays: an error is all that it says of it."""
    try:
        cudnn(aten)[CUDNN, "forward"](given)
    except RuntimeError:
        return False
    return True


def contenders(device: Device, buffers: list[Inputs]) -> Calls:
    """Every call, by contender and operation; `buffers` get what backwards need."""
    aten = device.torch.ops.aten
    calls = ours() | native(aten)
    if device.torch.backends.cudnn.is_available() and cudnn_takes(aten, buffers[0]):
        calls |= cudnn(aten)
    for (contender, operation), call in calls.items():
        if operation == "forward":
            for given in buffers:
                kept = call(given)[1:]
                given[contender] = kept[0] if contender == OURS else kept
    return {(COPY, "copy"): lambda given: given["x"].clone(), **calls}


def check(calls: Calls, given: Inputs) -> None:
    """Raise AssertionError unless all calls of an operation agree on the array they return."""
    # bfloat16 is off by 2⁻⁸ of values up to 8, and what computes something else by 1 and more.
    tolerance = 0.1
    expected: dict[str, Any] = {}
    for (contender, operation), call in calls.items():
        if operation == "copy":
            continue
        result = call(given)[0].float()
        worst = float((result - expected.setdefault(operation, result)).abs().max())
        assert worst < tolerance, f"{contender}, {operation}: {worst:.1e} from the others"


def all_buffers(call: Callable[[Inputs], Any], buffers: list[Inputs]) -> Callable[[], int]:
    """The call on one buffer after the other; no result takes the memory of another."""

    def run() -> int:
        return len([call(given) for given in buffers])

    return run


def in_graph(device: Device, run: Callable[[], int]) -> Callable[[], int]:
    """`run` as a CUDA graph."""
    torch = device.torch
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        number = run()

    def replay() -> int:
        graph.replay()
        return number

    return replay


def measure_size(device: Device, layout: str, dtype: str, size: int, quick: bool) -> list[Record]:
    """Forwards and backwards of one array; none where the device lacks the memory."""
    number = buffers_of(size, device.cache)
    if memory_of(size, number) > device.free_memory():
        return []
    shape = shape_of(size, device.itemsize(dtype))
    buffers = [device.inputs(shape, layout, dtype, seed) for seed in range(number)]
    calls = contenders(device, buffers)
    check(calls, buffers[0])
    turns = QUICK_TURNS if quick else TURNS
    runs = {name: all_buffers(call, buffers) for name, call in calls.items()}
    found = records("size", layout, dtype, shape, size, device.time_calls(runs, turns))
    if size <= LARGEST_IN_GRAPH:
        graphs = {name: in_graph(device, run) for name, run in runs.items()}
        found += records("graph", layout, dtype, shape, size, device.time_calls(graphs, turns))
    return found


def masks(device: Device, shape: Sequence[int]) -> dict[str, Any]:
    """No mask, and masks that are off at half of the positions."""
    torch = device.torch
    images, _, height, width = shape
    padding = torch.ones((images, 1, height, width), dtype=torch.bool, device="cuda")
    padding[:, :, height // 2 :] = False
    generator = torch.Generator("cuda").manual_seed(0)
    order = torch.randperm(padding.numel(), generator=generator, device="cuda")
    return {"none": None, "padding": padding, "random": padding.view(-1)[order].view_as(padding)}


def measure_statistics(device: Device, layout: str, dtype: str, quick: bool) -> list[Record]:
    """Statistics without a mask, and with half of the rows off."""
    size = QUICK_SIZES[-1] if quick else STATISTICS_BYTES
    number = buffers_of(size, device.cache)
    if memory_of(size, number) > device.free_memory():
        return []
    shape = shape_of(size, device.itemsize(dtype))
    buffers = [device.inputs(shape, layout, dtype, seed) for seed in range(number)]
    runs: dict[Any, Callable[[], int]] = {
        (name, "statistics"): all_buffers(
            lambda given, mask=mask: numbabn.batch_statistics(given["x"], axis=1, mask=mask),
            buffers,
        )
        for name, mask in masks(device, shape).items()
    }
    runs[COPY, "copy"] = all_buffers(lambda given: given["x"].clone(), buffers)
    times = device.time_calls(runs, QUICK_TURNS if quick else TURNS)
    return records("statistics", layout, dtype, shape, size, times)


def measure(steps: dict[str, Callable[[], list[Record]]]) -> list[Record]:
    """As `common.measure`; a line a step where tqdm is not installed."""
    if common.installed("tqdm"):
        return common.measure(steps, "array")
    found: list[Record] = []
    for i, (name, step) in enumerate(steps.items()):
        print(f"{i + 1} of {len(steps)}: {name}", flush=True)
        found += step()
    return found


def options_of(device_name: str, chosen: argparse.Namespace) -> argparse.Namespace:
    """`chosen`, with the device's folder in the place of the processor's."""
    if chosen.output == common.RESULTS / common.hardware():
        folder = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
        chosen.output = common.RESULTS / folder
    return chosen


def main() -> None:
    chosen = common.options(__doc__)
    device = Device()
    options = options_of(device.name, chosen)
    quick = options.quick
    steps = {
        f"{layout}, {dtype}, {common.size(size)}": partial(
            measure_size, device, layout, dtype, size, quick
        )
        for size in (QUICK_SIZES if quick else SIZES)
        for layout in LAYOUTS
        for dtype in DTYPES
    }
    steps |= {
        f"statistics, {layout}, {dtype}": partial(measure_statistics, device, layout, dtype, quick)
        for layout in LAYOUTS
        for dtype in DTYPES
    }
    found = measure(steps)
    if not found:
        raise SystemExit(f"{device.name} has no memory free for the smallest array")
    text = f"On one {device.name}.\n\n{report(found)}"
    figure = draw(found) if common.installed("matplotlib") else None
    common.save(options, "gpu", found, text, figure)


if __name__ == "__main__":
    main()
