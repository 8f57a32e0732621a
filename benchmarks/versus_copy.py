"""How far from a memory copy are forward and backward?

    python -m benchmarks.versus_copy

A forward has to read x and write y, a backward to read dy and x and write dx; their arithmetic is
next to nothing. The yardstick is np.copyto of an array of the same bytes, in turns with them. It
runs on one thread; a copy on all threads shows what the memory gives beyond it.

Arrays of 103 MB, in three dtypes and both layouts, without a mask and with two that are off at
half of the positions: the second half of each sample (padding), and at random. Then float32 arrays
from 1 KB up, which fit in caches, for the picture.
"""

from functools import partial

import numpy as np

from numbabn.commands.table import table

from . import common
from .common import COPY, Record, Timing
from .contenders import FIRST, LAST, Array, Call, copies, data, layer, ours, threaded_copies

DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = (FIRST, LAST)
# How many copies of the array a call may take. Masked calls may take no longer than others.
AIMS = {
    (FIRST, "forward"): 1.15,
    (FIRST, "backward"): 1.7,
    (LAST, "forward"): 1.6,
    (LAST, "backward"): 2.6,
}
# Where a result goes other than to `out=`, as the report says it.
OUTPUTS = {"fresh": ", fresh output", "kept": ", layer, reused output"}
SIZES = [4**i * 1024 for i in range(9)] + [1 << 27]
CHANNELS = 64


def large_shape(layout: str, dtype: str, quick: bool) -> tuple[int, ...]:
    """Images of 103 MB; the 16-bit ones are twice as many."""
    images = (1 if quick else 128) * (1 if dtype == "float32" else 2)
    return (images, 64, 56, 56) if layout == FIRST else (images, 56, 56, 64)


def shape_of(layout: str, size: int) -> tuple[int, ...]:
    """A float32 array of `size` bytes."""
    positions = size // 4 // CHANNELS
    if layout == LAST:
        return (positions, CHANNELS)
    inner = min(positions, 1024)
    return (positions // inner, CHANNELS, inner)


def masks(x: Array, layout: str) -> dict[str, Array]:
    """Masks by position that are off at half of them."""
    samples, *others = x.shape
    positions = others[1:] if layout == FIRST else others[:-1]
    padding = np.ones((samples, int(np.prod(positions))), bool)
    padding[:, padding.shape[1] // 2 :] = False
    random = np.random.default_rng(0).permuted(padding.ravel()).reshape(padding.shape)
    shape = (samples, 1, *positions) if layout == FIRST else (samples, *positions)
    return {"padding": padding.reshape(shape), "random": random.reshape(shape)}


def measure_large(layout: str, dtype: str, seconds: float, quick: bool) -> list[Record]:
    given = data(large_shape(layout, dtype, quick), layout, dtype)
    calls = copies(given) | threaded_copies(given)
    calls |= ours(given, name="none") | layer(given, name="none")
    for name, mask in masks(given.x, layout).items():
        masked = ours(given, mask, name)
        calls |= {call: f for call, f in masked.items() if call.output == "given"}
    times = common.time_calls(calls, seconds, quick=quick)
    return records("large", layout, dtype, given.x, times)


def measure_size(layout: str, size: int, seconds: float, quick: bool) -> list[Record]:
    given = data(shape_of(layout, size), layout)
    calls = copies(given)
    calls |= {call: f for call, f in ours(given, name="none").items() if call.output == "given"}
    times = common.time_calls(calls, seconds, quick=quick)
    return records("size", layout, "float32", given.x, times)


def records(
    part: str, layout: str, dtype: str, x: Array, times: dict[Call, Timing]
) -> list[Record]:
    copy = times[Call(COPY, "copy", "given")].median
    return [
        {
            "part": part,
            "layout": layout,
            "dtype": dtype,
            "bytes": x.nbytes,
            "shape": "x".join(map(str, x.shape)),
            # What is copied has no mask.
            "mask": "" if call.operation == "copy" else call.contender,
            "operation": call.contender if call.operation == "copy" else call.operation,
            "output": call.output,
            **timing._asdict(),
            "copies": timing.median / copy,
        }
        for call, timing in times.items()
    ]


def summary(found: list[Record]) -> str:
    """The aims: float32 without a mask against numbers, the others against what it has."""
    large = {
        (r["layout"], r["dtype"], r["mask"], r["operation"]): r
        for r in found
        if r["part"] == "large" and r["output"] == "given"
    }
    rows = []
    for (layout, dtype, mask, operation), record in large.items():
        if not mask:
            continue
        copies_taken = record["copies"]
        aim = AIMS[layout, operation]
        if mask != "none":
            aim = large[layout, dtype, "none", operation]["copies"]
        rows.append(
            [
                f"{layout}, {dtype}, {operation}" + (f", mask: {mask}" if mask != "none" else ""),
                common.duration(record["median"]),
                f"{common.duration(record['low'])} to {common.duration(record['high'])}",
                f"{copies_taken:.2f}",
                f"{aim:.2f}",
                f"{100 * (copies_taken / aim - 1):+.0f}%",
            ]
        )
    header = ["", "median", "middle half", "copies", "at most", "beyond"]
    return table(header, rows)


def report(found: list[Record]) -> str:
    other = [r for r in found if r["part"] == "large" and (not r["mask"] or r["output"] in OUTPUTS)]
    others = [
        [
            f"{r['layout']}, {r['dtype']}, {r['operation']}" + OUTPUTS.get(r["output"], ""),
            common.duration(r["median"]),
            f"{r['copies']:.2f}",
        ]
        for r in other
    ]
    sizes = sorted({r["bytes"] for r in found if r["part"] == "size"})
    by_size = [
        [f"{layout}, {operation}"]
        + [
            f"{r['copies']:.2f}"
            for size in sizes
            for r in found
            if r["part"] == "size"
            and (r["layout"], r["operation"], r["bytes"]) == (layout, operation, size)
        ]
        for layout in LAYOUTS
        for operation in ("forward", "backward")
    ]
    return "\n\n".join(
        [
            f"Copies of the array that a call takes, {_large_bytes(found)}, `out=` given. The aim "
            "of a masked call is the same call without a mask.",
            summary(found),
            "The yardstick itself, calls that allocate their output, and a layer with "
            "`reuse_outputs`:",
            table(["", "median", "copies"], others),
            "Copies that a call takes, by the bytes of a float32 array:",
            table(["", *map(common.size, sizes)], by_size),
        ]
    )


def _large_bytes(found: list[Record]) -> str:
    return f"arrays of {common.size(max(r['bytes'] for r in found if r['part'] == 'large'))}"


def draw(found: list[Record]) -> object:
    figure, (first, last, right) = common.figure(3)
    for axes, layout in ((first, FIRST), (last, LAST)):
        series: dict[str, dict[float, Timing]] = {}
        for r in found:
            if r["part"] == "size" and r["layout"] == layout:
                timing = Timing(*(r[field] for field in Timing._fields))
                series.setdefault(r["operation"], {})[r["bytes"]] = timing
        common.lines(axes, series)
        axes.set_title(f"{layout}, float32, {CHANNELS} channels")
    labels, ratios = [], {"forward": [], "backward": []}
    for layout in LAYOUTS:
        for dtype in DTYPES:
            for mask in ("none", "padding"):
                labels.append(f"{layout}, {dtype}" + (", mask" if mask != "none" else ""))
                for operation, values in ratios.items():
                    values += [
                        r["copies"]
                        for r in found
                        if (r["part"], r["output"]) == ("large", "given")
                        and (r["layout"], r["dtype"], r["mask"], r["operation"])
                        == (layout, dtype, mask, operation)
                    ]
    common.bars(right, labels, ratios, logarithmic=False)
    right.set_title(f"copies that a call takes, {_large_bytes(found)}")
    return figure


def main() -> None:
    options = common.options(__doc__)
    quick = options.quick
    common.set_threads(common.thread_counts()[-1])
    steps = {
        f"{layout}, {dtype}": partial(measure_large, layout, dtype, seconds=10, quick=quick)
        for layout in LAYOUTS
        for dtype in DTYPES
    }
    steps |= {
        f"{layout}, {common.size(size)}": partial(measure_size, layout, size, 3, quick)
        for layout in LAYOUTS
        for size in (SIZES[::3] if quick else SIZES)
    }
    found = common.measure(steps, "array")
    common.save(options, "versus_copy", found, report(found), draw(found))


if __name__ == "__main__":
    main()
