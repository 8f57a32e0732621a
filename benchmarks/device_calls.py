"""What does a call on a CUDA device cost in Python, before the driver has any work?

    python -m benchmarks.device_calls [--against FOLDER]

No device is needed: kernels are stand-ins that take their arguments as cuda-core's launch does,
and arrays are torch's on the CPU, taken for arrays on a device. What is left is what numbabn does
on the host for each call: checking, describing, allocating, and handing kernels over. Beside the
times stand the launches of a call, and the pieces of memory that it asks torch for.

With --against, the sources in another folder are measured too, in turns with these, each turn in a
process of its own.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any

from numbabn.commands.table import table

from . import common

SHAPE = (8, 14, 14, 64)
TURNS = 5
REPEATS, CALLS = 60, 50


class FakeDevice:
    """Stands where numbabn asks for a driver and a device."""

    def __init__(self) -> None:
        self.launches = self.allocations = 0
        self.torch = torch = import_module("torch")
        arguments = import_module("cuda.core._kernel_arg_handler").ParamHolder
        core: Any = import_module("cuda.core")
        availability: Any = import_module("numbabn.cuda.availability")
        runtime: Any = import_module("numbabn.cuda.runtime")
        availability.why_unavailable = lambda: None
        runtime.device_count = lambda: 1
        if hasattr(runtime, "_thread"):
            runtime._thread.has_context = True

        def launch(stream: Any, configuration: Any, kernel: Any, *given: Any) -> None:
            self.launches += 1
            arguments(given)

        core.launch = launch
        compiling: Any = import_module("numbabn.cuda.compile")
        compiling._load = lambda *given: object()
        submit: Any = import_module("numbabn.cuda.submit")
        submit._core_stream = lambda device, handle: None
        submit.is_capturing = lambda device, stream: False
        if hasattr(submit, "launch_now"):
            submit.launch_now = launch
        stream = SimpleNamespace(cuda_stream=0)
        torch.cuda.current_stream = lambda device=None: stream
        for name in ("numbabn.arrays", "numbabn.arrays.device", "numbabn.targets"):
            module: Any = import_module(name)
            module.is_on_device = lambda array: isinstance(array, torch.Tensor)
        library: Any = import_module("numbabn.arrays.torch").Torch
        library.owns = lambda _, array: isinstance(array, torch.Tensor)

    def calls(self) -> dict[str, Callable[[], Any]]:
        """What is timed, by name."""
        import numbabn

        torch = self.torch
        x = torch.ones(SHAPE, dtype=torch.float16)
        dy, mask = torch.ones_like(x), torch.ones(SHAPE[:-1], dtype=torch.bool)
        gamma, beta, mean, variance = (torch.ones(SHAPE[-1]) for _ in range(4))
        saved = numbabn.batch_norm_forward(x, gamma, beta)[1]
        library = numbabn.targets.library_of(x)
        layers = {}
        for name, options in (("layer", {}), ("layer with renorm", {"renorm": True})):
            layer = numbabn.BatchNormalization(**options)
            layer._place = library.place(library.describe(x, "x"))
            library.from_host = lambda array, device: torch.from_numpy(array)
            layer(x, training=True)
            layers[name] = layer
        plain = layers["layer"]
        return {
            "forward": lambda: numbabn.batch_norm_forward(x, gamma, beta),
            "forward, masked": lambda: numbabn.batch_norm_forward(x, gamma, beta, mask=mask),
            "backward": lambda: numbabn.batch_norm_backward(dy, x, saved),
            "normalize": lambda: numbabn.normalize(x, mean, variance, gamma, beta),
            "layer, training": lambda: plain(x, training=True),
            "layer with renorm, training": lambda: layers["layer with renorm"](x, training=True),
            "layer, inference": lambda: plain(x),
        }

    def counts(self, call: Callable[[], Any]) -> tuple[int, int]:
        """Launches of a call, and pieces of memory."""
        torch, before = self.torch, self.launches
        empty, self.allocations = torch.empty_strided, 0

        def counted(*given: Any, **options: Any) -> Any:
            self.allocations += 1
            return empty(*given, **options)

        torch.empty_strided = counted
        try:
            call()
        finally:
            torch.empty_strided = empty
        return self.launches - before, self.allocations


def measure() -> dict[str, Any]:
    """Microseconds, launches and allocations of each call."""
    device = FakeDevice()
    found = {}
    for name, call in device.calls().items():
        for _ in range(20):
            call()
        counts = device.counts(call)
        gc.collect()
        times = []
        for _ in range(REPEATS):
            start = perf_counter()
            for _ in range(CALLS):
                call()
            times.append((perf_counter() - start) / CALLS)
        # The least: nothing that is not the call's makes it faster.
        found[name] = (min(times) * 1e6, *counts)
    return found


def in_process(folder: str) -> Any:
    """`measure` of the sources in a folder, by this program."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(common.ROOT)])}
    program = "from benchmarks import device_calls as d; print(d.json.dumps(d.measure()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    """The median of the turns of each folder, side by side."""
    header, rows = [""], []
    for folder in found:
        header += [f"µs, {folder}", "launches", "allocations"]
    for call in next(iter(found.values()))[0]:
        row = [call]
        for turns in found.values():
            each = [turn[call] for turn in turns]
            row += [f"{median(time for time, *_ in each):.1f}", *map(str, each[0][1:])]
        rows.append(row)
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", help="a folder with the sources to compare with")
    against = parser.parse_args().against
    folders = {"before": against} if against else {}
    folders["now"] = str(common.ROOT)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
    for _ in range(TURNS):
        for name, folder in folders.items():
            found[name].append(in_process(folder))
    shape = "x".join(map(str, SHAPE))
    print(f"On a fake device, {shape} float16, the median of {TURNS} turns:\n")
    print(report(found))


if __name__ == "__main__":
    main()
