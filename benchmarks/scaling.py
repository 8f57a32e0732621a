"""What do more threads bring, by the size of the array and the number of channels?

    python -m benchmarks.scaling

Forward and backward in float32, `out=` given, with 1, 2, 4, … threads in turns, and torch beside
them. A speed-up is the median with one thread over that with more.
"""

from functools import partial

from numbabn.commands.table import table

from . import common, contenders
from .common import Record, Timing
from .contenders import FIRST, LAST, Call, data, ours

CHANNELS = 64
# Below the size at which threads are used; within a core's L2; within L3; beyond the caches.
SIZES = (1 << 16, 1 << 19, 1 << 20, 1 << 22, 1 << 24, 100 << 20)
# At 8 MiB. One channel leaves nothing to share out but its own positions.
CHANNEL_COUNTS = (1, 3, 16, 256, 1030, 2048)
CHANNELS_SIZE = 8 << 20


def shape_of(layout: str, size: int, channels: int) -> tuple[int, ...]:
    """A float32 array of about `size` bytes."""
    positions = size // 4 // channels
    if layout == LAST:
        return (positions, channels)
    inner = 784 if positions >= 784 else positions
    return (positions // inner, channels, inner)


def measure(layout: str, size: int, channels: int, quick: bool) -> list[Record]:
    given = data(shape_of(layout, size, channels), layout)
    by_library = {call: f for call, f in ours(given).items() if call.output == "given"}
    if common.installed("torch"):
        torch = contenders.torch_calls(given)
        by_library |= {call: f for call, f in torch.items() if call.output == "fresh"}
    calls = {
        (call, threads): f for call, f in by_library.items() for threads in common.thread_counts()
    }

    def set_threads(name: tuple[Call, int]) -> None:
        common.set_threads(name[1])

    times = common.time_calls(calls, seconds=3, quick=quick, before=set_threads)
    common.set_threads(common.thread_counts()[-1])
    return [
        {
            "layout": layout,
            "shape": "x".join(map(str, given.x.shape)),
            "bytes": given.x.nbytes,
            "channels": channels,
            **call._asdict(),
            "threads": threads,
            **timing._asdict(),
            "speed_up": times[call, 1].median / timing.median,
        }
        for (call, threads), timing in times.items()
    ]


def report(found: list[Record]) -> str:
    counts = sorted({r["threads"] for r in found})
    header = ["", "1 thread", *(f"speed-up, {count}" for count in counts if count > 1)]
    rows: dict[str, list[str]] = {}
    for r in found:
        name = (
            f"{r['contender']} {r['operation']}, {r['layout']}, {r['shape']}, "
            f"{common.size(r['bytes'])}"
        )
        one = r["threads"] == 1
        cell = common.duration(r["median"]) if one else f"{r['speed_up']:.2f}"
        rows.setdefault(name, [name]).append(cell)
    return table(header, sorted(rows.values(), key=lambda row: row[0].split()[:2], reverse=True))


def draw(found: list[Record]) -> object:
    figure, both = common.figure(2)
    for axes, layout in zip(both, (FIRST, LAST), strict=True):
        series: dict[str, dict[float, Timing]] = {}
        for r in found:
            if (r["layout"], r["channels"], r["contender"]) == (layout, CHANNELS, "numbabn"):
                timing = Timing(*(r[field] for field in Timing._fields))
                plural = "thread" if r["threads"] == 1 else "threads"
                name = f"{r['operation']}, {r['threads']} {plural}"
                series.setdefault(name, {})[r["bytes"]] = timing
        common.lines(axes, series)
        axes.set_title(f"{layout}, float32, {CHANNELS} channels")
    return figure


def main() -> None:
    options = common.options(__doc__)
    sizes = SIZES[:2] if options.quick else SIZES
    counts = CHANNEL_COUNTS[:1] if options.quick else CHANNEL_COUNTS
    chosen = [(size, CHANNELS) for size in sizes] + [(CHANNELS_SIZE, count) for count in counts]
    steps = {
        f"{layout}, {common.size(size)}, {channels} channels": partial(
            measure, layout, size, channels, options.quick
        )
        for size, channels in chosen
        for layout in (FIRST, LAST)
    }
    found = common.measure(steps, "array")
    text = report(found)
    if common.thread_counts() == [1]:
        text = f"Numba has one thread here, so there is nothing to compare.\n\n{text}"
    common.save(options, "scaling", found, text, draw(found))


if __name__ == "__main__":
    main()
