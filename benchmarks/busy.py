"""How much slower is a call while other processes keep the processors busy?

    python -m benchmarks.busy

A training forward while 0, 1, 2 and 8 processes compute for ever: numbabn's functions, as they come
and on two of Numba's threading layers, beside torch and TensorFlow, where installed; the functions
in a process in which torch, or TensorFlow, has just computed the same on its own threads; and
numbabn's Keras layer, forward and backward, on each backend.

Each contender has a process of its own, and they take turns. With k processes that are busy and c
cores, a call on all of these gets c/(c + k) of them at the least: so "fair" is the quiet time times
(c + k)/c, and the share a multiple of that.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np

from numbabn.commands.table import table

from . import common
from .common import Record

Step = Callable[[], Any]

BUSY = (0, 1, 2, 8)
SHAPES: list[tuple[int, ...]] = [
    (32, 64),  # one thread
    (256, 512),
    (64, 196, 64),
    (1024, 1024),
    (24, 3136, 64),  # beyond the caches
]
QUICK_SHAPES = SHAPES[:2]
# For so long all contenders take turns at a shape, with so many processes busy.
SECONDS = 10.0
# A contender calls for so long in a turn, or so many times: turns are as long as what a scheduler
# gives to one process before the next (some 3 ms) a few times over.
TURN_SECONDS, MOST_CALLS = 0.1, 100
# Before a turn: threads of the contender before have stopped to spin by then.
REST_SECONDS = 0.02


class Contender(NamedTuple):
    """Who is timed: what its process is to compute, and its environment there."""

    name: str
    steps: str  # of `_STEPS`
    environment: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()

    def is_here(self) -> bool:
        """Whether what it needs is installed."""
        return all(importlib.util.find_spec(each) is not None for each in self.needs)


# TensorFlow tells much about itself.
_QUIET = ("TF_CPP_MIN_LOG_LEVEL", "2")


def _keras(backend: str) -> Contender:
    environment = (("KERAS_BACKEND", backend), _QUIET)
    return Contender(f"layer on {backend}", "keras_layer", environment, ("keras", backend))


OURS = "numbabn"
CONTENDERS = [
    Contender(OURS, "functions"),
    Contender("numbabn, omp", "functions", (("NUMBA_THREADING_LAYER", "omp"),),
              ("numba.np.ufunc.omppool",)),
    Contender("numbabn, workqueue", "functions", (("NUMBA_THREADING_LAYER", "workqueue"),)),
    Contender("torch", "torch_kernel", (), ("torch",)),
    Contender("TensorFlow", "tensorflow_kernel", (_QUIET,), ("tensorflow",)),
    Contender("numbabn beside torch", "beside_torch", (), ("torch",)),
    Contender("numbabn beside TensorFlow", "beside_tensorflow", (_QUIET,),
              ("tensorflow",)),
    *map(_keras, ("torch", "tensorflow", "jax")),
]  # fmt: skip


# In a contender's process: of a shape, what is called before each call that is timed, and that one.


def functions(shape: tuple[int, ...]) -> tuple[Step | None, Step]:
    from . import contenders

    calls = contenders.ours(contenders.data(shape, contenders.LAST))
    return None, calls[contenders.Call("numbabn", "forward", "given")]


def torch_kernel(shape: tuple[int, ...]) -> tuple[Step | None, Step]:
    from . import contenders

    calls = contenders.torch_calls(contenders.data(shape, contenders.LAST))
    return None, calls[contenders.Call("torch", "forward", "given")]


def tensorflow_kernel(shape: tuple[int, ...]) -> tuple[Step | None, Step]:
    import tensorflow as tf

    from . import contenders

    given = contenders.data(shape, contenders.LAST)
    x = tf.constant(given.x.reshape(shape[0], -1, 1, shape[-1]))
    gamma, beta = tf.constant(given.gamma), tf.constant(given.beta)

    @tf.function
    def forward(x: Any) -> Any:
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=contenders.EPSILON,
            is_training=True,
        )[0]  # fmt: skip

    return None, lambda: forward(x)


def beside_torch(shape: tuple[int, ...]) -> tuple[Step | None, Step]:
    return torch_kernel(shape)[1], functions(shape)[1]


def beside_tensorflow(shape: tuple[int, ...]) -> tuple[Step | None, Step]:
    return tensorflow_kernel(shape)[1], functions(shape)[1]


def keras_layer(shape: tuple[int, ...]) -> tuple[Step | None, Step]:
    from . import keras_layer as layers

    calls = layers.calls_of(layers.Case(shape))
    return None, next(step for (name, _), step in calls.items() if name == layers.OURS)


_STEPS = {
    each.__name__: each
    for each in (
        functions, torch_kernel, tensorflow_kernel, beside_torch, beside_tensorflow, keras_layer
    )
}  # fmt: skip


def serve(steps: str) -> None:
    """Time calls for whoever asks: a line with a shape, answered by a line of seconds."""
    made: dict[tuple[int, ...], tuple[Step | None, Step]] = {}
    for line in sys.stdin:
        shape = tuple(json.loads(line))
        if shape not in made:
            made[shape] = _STEPS[steps](shape)
            made[shape][1]()
        print(json.dumps(_turn(*made[shape])), flush=True)


def _turn(before: Step | None, call: Step) -> list[float]:
    call()  # The caches are someone else's before.
    seconds: list[float] = []
    end = time.perf_counter() + TURN_SECONDS
    while not seconds or (len(seconds) < MOST_CALLS and time.perf_counter() < end):
        if before is not None:
            before()
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


# In the process that asks.


@contextmanager
def _processes(chosen: list[Contender]) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """A process for each contender, by its name."""
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for each in chosen:
            running[each.name] = subprocess.Popen(
                [sys.executable, "-c", f"from benchmarks.busy import serve; serve({each.steps!r})"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=common.ROOT,
                env={**os.environ, **dict(each.environment)},
            )  # fmt: skip
        yield running
    finally:
        _end(list(running.values()))


@contextmanager
def _busy(number: int) -> Iterator[None]:
    """While so many processes compute for ever."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        time.sleep(0.5 if loops else 0.0)  # until they compute
        yield
    finally:
        _end(loops)


def _end(processes: "list[subprocess.Popen[Any]]") -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


def _ask(process: "subprocess.Popen[str]", shape: tuple[int, ...]) -> list[float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(shape) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit("A contender's process has ended; what it said is above")
    found: list[float] = json.loads(answer)
    return found


def measure(
    processes: dict[str, "subprocess.Popen[str]"], shape: tuple[int, ...], busy: int, quick: bool
) -> list[Record]:
    """A record for each contender, at a shape and with so many processes busy."""
    for process in processes.values():
        _ask(process, shape)  # compiles
    times: dict[str, list[float]] = {name: [] for name in processes}
    order, names = np.random.default_rng(0), list(processes)
    with _busy(busy):
        end = time.perf_counter() + (0.0 if quick else SECONDS)
        while not times[names[-1]] or time.perf_counter() < end:
            for i in order.permutation(len(names)):
                time.sleep(REST_SECONDS)
                times[names[i]] += _ask(processes[names[i]], shape)
    return [
        {
            "shape": "x".join(map(str, shape)),
            "busy": busy,
            "contender": name,
            "median": float(np.median(found)),
            "p90": float(np.quantile(found, 0.9)),
            "calls": len(found),
        }
        for name, found in times.items()
    ]


def share(busy: int) -> float:
    """By how much a call takes longer that gets its fair share of the cores."""
    return (common.cores() + busy) / common.cores()


def report(found: list[Record]) -> str:
    """A table for each shape: medians and 90th percentiles, and the medians over the fair time."""
    quiet = {(r["shape"], r["contender"]): r["median"] for r in found if r["busy"] == 0}
    numbers = sorted({r["busy"] for r in found})
    parts = [
        "Median / 90th percentile of a call by how many other processes are busy; and in brackets "
        "the median over what a fair share of the cores gives."
    ]
    for shape in dict.fromkeys(r["shape"] for r in found):
        at = {(r["contender"], r["busy"]): r for r in found if r["shape"] == shape}
        rows = []
        for name in dict.fromkeys(name for name, _ in at):
            row = [name]
            for number in numbers:
                r = at[name, number]
                cell = f"{common.duration(r['median'])} / {common.duration(r['p90'])}"
                if number:
                    fair = quiet[shape, name] * share(number)
                    cell += f" ({r['median'] / fair:.2f})"
                row.append(cell)
            rows.append(row)
        parts.append(table([shape, *map(str, numbers)], rows))
    return "\n\n".join(parts)


def draw(found: list[Record]) -> Any:
    """For the largest shape, each contender's median over how many processes are busy."""
    shape = found[-1]["shape"]
    figure, axes = common.figure(1, width=8, height=5)
    for name in dict.fromkeys(r["contender"] for r in found):
        points = [r for r in found if (r["shape"], r["contender"]) == (shape, name)]
        points.sort(key=lambda r: r["busy"])
        style = {"linewidth": 2.5} if name == OURS else {}
        axes.plot(
            [r["busy"] for r in points], [r["median"] for r in points], marker="o", label=name,
            **style,
        )  # fmt: skip
    axes.set(yscale="log", xlabel="busy processes", ylabel="seconds a call", title=shape)
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Measure, print and save."""
    options = common.options(__doc__)
    shapes, numbers = (QUICK_SHAPES, BUSY[:2]) if options.quick else (SHAPES, BUSY)
    chosen = [each for each in CONTENDERS if each.is_here()]
    if common.cores() > numba.config.NUMBA_NUM_THREADS:
        raise SystemExit("A fair share is counted of all cores: unset NUMBA_NUM_THREADS")
    with _processes(chosen) as processes:
        found = common.measure(
            {
                f"{'x'.join(map(str, shape))}, {number} busy": partial(
                    measure, processes, shape, number, options.quick
                )
                for shape in shapes
                for number in numbers
            },
            "step",
        )
    common.save(options, "busy", found, report(found), draw(found))


if __name__ == "__main__":
    main()
