"""How long until the first result?

    python -m benchmarks.startup

Everything in processes of its own: imports; the first forward and backward with an empty cache of
kernels, and with the cache that this left; and `python -m numbabn warmup`, which compiles every
kernel, from nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from numbabn.commands.table import table

from . import common
from .common import Record

IMPORT = """
import time
started = time.perf_counter()
import {module}
print("[", time.perf_counter() - started, "]")
"""
# Serial kernels run for the small array, parallel ones for the large.
FIRST_CALLS = """
import json, time
import numpy as np
import numbabn
found = []
for shape in ((32, 64), (4096, 64)):
    x = np.ones(shape, np.float32)
    started = time.perf_counter()
    y, saved = numbabn.batch_norm_forward(x)
    forward = time.perf_counter()
    numbabn.batch_norm_backward(y, x, saved)
    found += [forward - started, time.perf_counter() - forward]
print(json.dumps(found))
"""
CALLS = [
    f"first {operation} of {shape} float32"
    for shape in ("(32, 64)", "(4096, 64)")
    for operation in ("forward", "backward")
]


def run(script: str, cache: Path | None = None) -> list[float]:
    """The seconds that a script prints, in a process of its own."""
    environment = dict(os.environ)
    if cache:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=common.ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return list(json.loads(found.stdout))


def record(what: str, cache: str, samples: list[float]) -> Record:
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return {
        "what": what,
        "cache": cache,
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "turns": len(samples),
    }


def imports(module: str, turns: int) -> Callable[[], list[Record]]:
    def measure() -> list[Record]:
        script = IMPORT.format(module=module)
        run(script)  # reads the files into the system's cache
        return [record(f"import {module}", "", [run(script)[0] for _ in range(turns)])]

    return measure


def first_calls(turns: int) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        # Once only: compilation takes so long that its spread matters little.
        cold = [run(FIRST_CALLS, Path(folder))]
        cached = [run(FIRST_CALLS, Path(folder)) for _ in range(turns)]
    return [
        record(what, cache, [turn[i] for turn in samples])
        for cache, samples in (("empty", cold), ("filled", cached))
        for i, what in enumerate(CALLS)
    ]


def everything() -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "numbabn", "warmup"],
            cwd=common.ROOT, env=environment, capture_output=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    what = f"python -m numbabn warmup ({common.size(size)} of kernels)"
    return [record(what, "empty", [seconds])]


def report(found: list[Record]) -> str:
    rows = [
        [
            r["what"] + (f", {r['cache']} cache" if r["cache"] else ""),
            common.duration(r["median"]),
            f"{common.duration(r['low'])} to {common.duration(r['high'])}",
            f"{r['turns']:.0f}",
        ]
        for r in found
    ]
    return table(["", "median", "middle half", "turns"], rows)


def main() -> None:
    options = common.options(__doc__)
    turns = 1 if options.quick else 5
    modules = ["numpy", "numba", "numbabn"] + ["torch"] * common.installed("torch")
    steps = {f"import {module}": imports(module, turns) for module in modules}
    steps["first calls"] = lambda: first_calls(turns)
    if not options.quick:
        steps["every kernel"] = everything
    found = common.measure(steps, "step")
    common.save(options, "startup", found, report(found))


if __name__ == "__main__":
    main()
