"""Single kernels on a GPU: once each for a profiler, against predictions, or cut in other ways.

    python -m benchmarks.gpu_kernels once [--small]
    python -m benchmarks.gpu_kernels predictions
    python -m benchmarks.gpu_kernels bounds

`once` makes each call once after a first that loads kernels, for `ncu` and `compute-sanitizer`;
`predictions` times the calls that times were predicted for; `bounds` times forwards and backwards
with other bounds of blocks and of what a thread walks.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numbabn
from numbabn.commands.table import table
from numbabn.cuda import partition, plans

from . import common
from .gpu import Device, buffers_of


class Case(NamedTuple):
    """A training step that times were predicted for, in µs, of a copy at 4.3 TB/s."""

    shape: tuple[int, ...]
    axis: int
    dtype: str
    forward: int
    backward: int


CASES = [
    Case((128, 56, 56, 256), -1, "float16", 163, 260),
    Case((128, 256, 56, 56), 1, "float32", 298, 500),
]
SMALL = [
    Case((8, 14, 14, 64), -1, "float16", 0, 0),
    Case((8, 14, 14, 100), -1, "float16", 0, 0),
    Case((8, 64, 14, 16), 1, "float32", 0, 0),
]
TURNS = 11
# By the names of `numbabn.cuda.partition`.
BOUNDS = {"CHUNKS": (4, 8, 16), "MOST_BLOCKS": (1024, 2048, 4096), "LEAST_BLOCKS": (264, 528, 1056)}


def steps(device: Device, case: Case) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """A step's calls by name, on an `x` and a `dy`."""
    torch = device.torch
    mask_shape = tuple(1 if i == case.axis % 4 else n for i, n in enumerate(case.shape))
    mask = torch.rand(mask_shape, device="cuda") < 0.5
    axis = case.axis

    def backward(given: dict[str, Any]) -> Any:
        if "saved" not in given:
            given["saved"] = numbabn.batch_norm_forward(given["x"], axis=axis)[1]
        return numbabn.batch_norm_backward(given["dy"], given["x"], given["saved"])

    return {
        "forward": lambda given: numbabn.batch_norm_forward(given["x"], axis=axis),
        "backward": backward,
        "statistics": lambda given: numbabn.batch_statistics(given["x"], axis=axis),
        "statistics, half masked": lambda given: numbabn.batch_statistics(
            given["x"], axis=axis, mask=mask
        ),
    }


def inputs(device: Device, case: Case, seed: int) -> dict[str, Any]:
    """An `x` and a `dy`."""
    torch = device.torch
    generator = torch.Generator("cuda").manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    return {
        name: torch.randn(case.shape, generator=generator, device="cuda", dtype=dtype)
        for name in ("x", "dy")
    }


def once(device: Device, cases: list[Case]) -> None:
    for case in cases:
        given = inputs(device, case, 0)
        for call in steps(device, case).values():
            call(given)
            call(given)
    device.torch.cuda.synchronize()


def times(device: Device, case: Case) -> dict[str, float]:
    """Microseconds of each call of a step."""
    size = device.itemsize(case.dtype)
    for each in case.shape:
        size *= each
    buffers = [inputs(device, case, seed) for seed in range(buffers_of(size, device.cache))]
    runs: dict[Any, Callable[[], int]] = {
        name: lambda call=call: len([call(given) for given in buffers])
        for name, call in {**steps(device, case), "copy": lambda given: given["x"].clone()}.items()
    }
    found = device.time_calls(runs, TURNS)
    return {name: each.median * 1e6 for name, each in found.items()}


def predictions(device: Device) -> None:
    rows = []
    for case in CASES:
        found = times(device, case)
        rows.append(
            [
                f"{case.shape}, {case.dtype}",
                *(f"{found[name]:.0f}" for name in found),
                f"{case.forward} and {case.backward}",
            ]
        )
    print(table(["µs", *found, "predicted forward and backward, of a 4.3 TB/s copy"], rows))


def cuts() -> Iterator[dict[str, int]]:
    """Values of all bounds together."""
    for values in product(*BOUNDS.values()):
        yield dict(zip(BOUNDS, values, strict=True))


def bounds(device: Device) -> None:
    for case in CASES:
        print(f"\n{case.shape}, {case.dtype}\n", flush=True)
        rows = []
        for chosen in cuts():
            for name, value in chosen.items():
                setattr(partition, name, value)
            partition.partition.cache_clear()
            plans.forget()
            found = times(device, case)
            rows.append([*map(str, chosen.values()), *(f"{each:.0f}" for each in found.values())])
            print(rows[-1], flush=True)
        print(table([*BOUNDS, *found], rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["once", "predictions", "bounds"])
    parser.add_argument("--small", action="store_true", help="small arrays, of `once`")
    options = parser.parse_args()
    if not common.installed("torch"):
        raise SystemExit("This needs torch, which is not installed")
    device = Device()
    if options.what == "once":
        once(device, SMALL if options.small else CASES)
    else:
        {"predictions": predictions, "bounds": bounds}[options.what](device)


if __name__ == "__main__":
    main()
