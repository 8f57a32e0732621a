"""What the benchmarks share: timing, the machine's name, and files of results.

    options = common.options(__doc__)            # --quick, --output
    times = common.time_calls(calls, seconds)    # name -> Timing(median, low, high, turns)
    records = common.measure(steps, "shape")     # of functions that return records, with a bar
    common.save(options, "small", records, text, figure)

`records` are dictionaries with the same keys, one a measurement: the rows of NAME.csv, which
:func:`read` gives back. `text` is Markdown, for NAME.md. :func:`lines` and :func:`bars` draw.
"""

import argparse
import csv
import gc
import importlib.metadata
import importlib.util
import os
import platform
import re
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding
import numba
import numpy as np

import numbabn

Name = TypeVar("Name", bound=Hashable)
Record = dict[str, Any]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# git ignores it: a quick run is for seeing that the scripts work, and no result.
QUICK_RESULTS = ROOT / "build" / "benchmarks"

# Threads that a library leaves spinning after a call would take cores from the next one; GNU
# OpenMP's spin for 300 000 pauses, which is 4 ms on a Zen 5 and more elsewhere. So sleeps precede a
# call until one passes in which the process computes next to nothing; but no more than the most,
# in case threads were told to spin for ever.
SLEEP_SECONDS, IDLE_SECONDS, MOST_SLEEPS = 0.001, 0.0002, 50
# Shorter calls are repeated within a turn for so long, after one that is not timed: the sleep has
# put threads to bed and let others into the caches, which would be most of what is measured.
LEAST_SECONDS = 0.001
# Fewer turns than the least say nothing about spread; more than the most say nothing more.
LEAST_TURNS, MOST_TURNS = 7, 200

COPY = "np.copyto"
COLOURS = {
    COPY: "#7f7f7f",
    "forward": "#1f77b4",
    "backward": "#d95f02",
    "torch": "#d62728",
    "torch.compile": "#9467bd",
    "jax.jit": "#2ca02c",
}


class Timing(NamedTuple):
    """Seconds of one call: the median over turns, the quartiles, and how many turns there were."""

    median: float
    low: float
    high: float
    turns: int


def options(question: str) -> argparse.Namespace:
    """The options of every benchmark: `quick`, and `output`, the folder of the results.

    question: the docstring of the benchmark
    """
    parser = argparse.ArgumentParser(
        description=question, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few turns and small sizes, to see that it works: the times mean nothing",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the results go (default: benchmarks/results/HARDWARE; with --quick, "
        "build/benchmarks)",
    )
    chosen = parser.parse_args()
    if chosen.output is None:
        chosen.output = QUICK_RESULTS if chosen.quick else RESULTS / hardware()
    return chosen


def measure(steps: dict[str, Callable[[], list[Record]]], unit: str) -> list[Record]:
    """The records of all steps, under a progress bar that names the one under way.

    unit: what a step is, e.g. "shape"
    """
    from tqdm import tqdm

    found: list[Record] = []
    with tqdm(total=len(steps), unit=unit, dynamic_ncols=True) as bar:
        for name, step in steps.items():
            bar.set_postfix_str(name)
            found += step()
            bar.update()
    return found


def time_calls(
    calls: dict[Name, Callable[[], object]],
    seconds: float,
    *,
    quick: bool = False,
    before: Callable[[Name], object] = lambda name: None,
) -> dict[Name, Timing]:
    """Time contenders in turns, each once a turn, in an order that changes with every turn.

    A slow spell of the machine so falls on all of them. Each call is made before the first turn,
    untimed, which compiles and warms up.

    calls: functions that take nothing, by name
    seconds: for how long turns are made, all contenders together
    quick: two turns, whatever `seconds` says
    before: called with the name before its turn, untimed: for the number of threads
    """
    names = list(calls)
    repeats = {}
    for name in names:
        before(name)
        calls[name]()
        shortest = _elapsed(calls[name], 1)
        if shortest < 10 * LEAST_SECONDS:  # a longer one will not be repeated
            shortest = min(shortest, *(_elapsed(calls[name], 1) for _ in range(3)))
        repeats[name] = max(1, int(LEAST_SECONDS / max(shortest, 1e-7)))

    order = np.random.default_rng(0)
    times: dict[Name, list[float]] = {name: [] for name in names}
    least, most = (2, 2) if quick else (LEAST_TURNS, MOST_TURNS)
    turn, end = 0, time.perf_counter() + seconds
    with _no_collection():
        while turn < least or (turn < most and time.perf_counter() < end):
            for i in order.permutation(len(names)):
                name = names[i]
                before(name)
                _settle()
                if repeats[name] > 1:
                    calls[name]()
                times[name].append(_elapsed(calls[name], repeats[name]))
            turn += 1
    return {name: _timing(samples) for name, samples in times.items()}


def _settle() -> None:
    """Wait until no thread of this process computes."""
    for _ in range(MOST_SLEEPS):
        started = time.process_time()
        time.sleep(SLEEP_SECONDS)
        if time.process_time() - started < IDLE_SECONDS:
            return


def _elapsed(call: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


@contextmanager
def _no_collection() -> Any:
    """Without garbage collection, which would fall on whichever contender is running."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _timing(samples: list[float]) -> Timing:
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return Timing(float(median), float(low), float(high), len(samples))


def geometric_mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int) -> None:
    """The same number for Numba and, where it is installed, torch."""
    numba.set_num_threads(threads)
    if installed("torch"):
        import torch

        torch.set_num_threads(threads)


def thread_counts() -> list[int]:
    """1, 2, 4, … up to the number that Numba uses, and that number."""
    most = numba.config.NUMBA_NUM_THREADS
    return sorted({2**i for i in range(most.bit_length()) if 2**i < most} | {most})


def hardware() -> str:
    """The processor and its cores as the name of a folder, e.g. amd-epyc-znver5-2-cores."""
    # A virtual machine may hide the model, but not what the compiler makes of it.
    words = [_processor(), llvmlite.binding.get_host_cpu_name(), f"{cores()} cores"]
    text = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", " ".join(words[:1]).lower())
    return re.sub(r"[^a-z0-9]+", "-", " ".join([text, *words[1:]]).lower()).strip("-")


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> str:
    """A sentence on what ran: versions, threads and processor."""
    packages = filter(installed, ["numba", "numpy", "torch", "jax"])
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return (
        f"numbabn {numbabn.__version__}, {', '.join(versions)}, Python "
        f"{platform.python_version()}; {numba.get_num_threads()} threads of {_processor()} "
        f"({llvmlite.binding.get_host_cpu_name()}), {cores()} cores."
    )


def size(count: float) -> str:
    """Bytes for reading: 64 KiB, 98 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def duration(seconds: float) -> str:
    """Seconds for reading: 12.3 µs, 4.56 ms, 7.89 s."""
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def save(
    chosen: argparse.Namespace,
    name: str,
    records: list[Record],
    text: str,
    figure: Any = None,
    command: str | None = None,
) -> None:
    """Print `text`, and write NAME.csv, NAME.md and, with a figure, NAME.png.

    chosen: what :func:`options` returned
    name: of the benchmark, e.g. "small"
    figure: of matplotlib
    command: what prints `text`, where that is not the module of this name
    """
    if chosen.quick:
        text = f"A quick run: the figures mean nothing.\n\n{text}"
    chosen.output.mkdir(parents=True, exist_ok=True)
    with (chosen.output / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    command = command or f"python -m benchmarks.{name}"
    (chosen.output / f"{name}.md").write_text(f"`{command}`\n\n{machine()}\n\n{text}\n")
    if figure:
        figure.savefig(chosen.output / f"{name}.png", dpi=110)
    print(f"\n{text}\n\n{machine()}\nWritten to {chosen.output / name}.*")


def read(folder: Path, name: str) -> list[Record]:
    """The records of NAME.csv, with numbers where there were numbers."""
    with (folder / f"{name}.csv").open(newline="") as file:
        return [{key: _value(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def _value(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def figure(columns: int, rows: int = 1, width: float = 5.5, height: float = 4.2) -> tuple[Any, Any]:
    """A figure without a window, and its axes as matplotlib gives them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained"
    )


def lines(axes: Any, series: dict[str, dict[float, Timing]]) -> None:
    """Time over bytes, both logarithmic, with the middle half shaded; the copy is dashed.

    series: name -> bytes of the array -> time of a call
    """
    for name, points in series.items():
        x = sorted(points)
        colour = COLOURS.get(name)
        style = {"linestyle": "--"} if name == COPY else {"marker": "o", "markersize": 3}
        axes.plot(x, [points[b].median for b in x], label=name, color=colour, **style)
        low, high = [points[b].low for b in x], [points[b].high for b in x]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="bytes of x", ylabel="seconds a call")
    axes.grid(which="major", alpha=0.3)
    axes.legend()


def bars(
    axes: Any, labels: Sequence[str], series: dict[str, Sequence[float]], *, logarithmic: bool
) -> None:
    """Horizontal bars, a group a label, the first label on top; a line at 1; NaN for no bar."""
    positions, thickness = np.arange(len(labels)), 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        at = positions + (i - (len(series) - 1) / 2) * thickness
        drawn = axes.barh(at, values, thickness, label=name, color=COLOURS.get(name))
        texts = ["" if np.isnan(value) else f"{value:.2f}" for value in values]
        axes.bar_label(drawn, texts, padding=2, fontsize=7)
    axes.set_yticks(positions, labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    if logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.2)  # room for the figures
    axes.legend(fontsize=8)
