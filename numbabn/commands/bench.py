"""Time forward and backward against a memory copy, and against torch where it is installed.

The contenders take turns within one run, in an order that changes with every turn, so that a slow
spell of the machine falls on all of them. torch gets as many threads as numbabn.

A memory copy is the measure because batch norm does next to no arithmetic: a forward has to read x
and write y, a backward to read dy and x and write dx. `out=` writes into an array that is there
already; the rows without it, and torch's, allocate their result on every call.
"""

import argparse
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

import numbabn

from .extras import load
from .table import table

Array = NDArray[Any]
Contenders = dict[str, Callable[[], object]]

# Activations of a convolutional network, in both layouts, a padded sequence's features, and a
# batch that fits in the caches, where the cost of a call shows.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "channels_first": [(32, 64, 56, 56), (32, 256, 14, 14)],
    "channels_last": [(32, 56, 56, 64), (8192, 512), (64, 64)],
}
COPY = "copy (np.copyto)"
# Threads that torch or Numba leave spinning after a call would take cores from the next one.
SETTLE_SECONDS = 0.003


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(length) for length in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(
            f"a shape is two or more lengths of at least 1, as in 32,56,56,64, got {text!r}"
        )
    return shape


def _turns(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        type=_shape,
        action="append",
        metavar="N,…",
        help="shape of x, e.g. 32,56,56,64; may be given more than once (default: five of both "
        "layouts)",
    )
    parser.add_argument(
        "--layout",
        choices=SHAPES,
        help="where the channels of --shape are (default: channels_last), or which of the default "
        "shapes to time (default: all)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float16", "bfloat16", "float32", "float64"],
        help="(default: %(default)s)",
    )
    parser.add_argument("--turns", type=_turns, default=30, help="(default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    progress = load("tqdm", "bench").tqdm
    dtype: Any = options.dtype
    if dtype == "bfloat16":
        dtype = load("ml_dtypes", "bench").bfloat16

    if options.shape:
        layout = options.layout or "channels_last"
        chosen = [(layout, shape) for shape in options.shape]
    else:
        layouts = [options.layout] if options.layout else list(SHAPES)
        chosen = [(layout, shape) for layout in layouts for shape in SHAPES[layout]]

    for _, shape in chosen:
        _check_memory(shape, np.dtype(dtype).itemsize)
    torch: Any = None
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        torch.set_num_threads(numba.get_num_threads())
    print(
        f"numbabn {numbabn.__version__}, {numba.get_num_threads()} threads, "
        + (f"torch {torch.__version__}" if torch else "torch is not installed")
    )
    for layout, shape in chosen:
        with progress(total=options.turns, desc=f"{shape}", unit="turn", leave=False) as bar:
            times = _times(_contenders(shape, layout, dtype, torch), options.turns, bar)
        print(f"\n{shape} {options.dtype}, {layout.replace('_', '-')}\n")
        print(_table(times))
    return 0


def _check_memory(shape: tuple[int, ...], itemsize: int) -> None:
    """End the program where arrays are larger than the memory: Linux would end it, and others."""
    if not hasattr(os, "sysconf"):
        return
    # x, dy, y, dx, torch's result, and float32 that x and dy are made of.
    needed = math.prod(shape) * (5 * itemsize + 4)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise SystemExit(
            f"--shape {','.join(map(str, shape))} needs {needed / 1e9:.3g} GB of memory, and this "
            f"machine has {there / 1e9:.3g} GB"
        )


def _contenders(shape: tuple[int, ...], layout: str, dtype: Any, torch: Any) -> Contenders:
    """What is timed, by name: functions that take nothing."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal(shape, np.float32).astype(dtype)
    dy = generator.standard_normal(shape, np.float32).astype(dtype)
    axis = 1 if layout == "channels_first" else -1
    parameter = np.float64 if x.dtype == np.float64 else np.float32
    gamma, beta = np.ones(shape[axis], parameter), np.zeros(shape[axis], parameter)
    # Written once, so that no contender is the first to touch their memory.
    y, dx = np.ones_like(x), np.ones_like(x)
    _, saved = numbabn.batch_norm_forward(x, gamma, beta, axis=axis, out=y)

    def forward(out: Array | None = None) -> object:
        return numbabn.batch_norm_forward(x, gamma, beta, axis=axis, out=out)

    def backward(out: Array | None = None) -> object:
        return numbabn.batch_norm_backward(dy, x, saved, out=out)

    contenders: Contenders = {
        COPY: lambda: np.copyto(dx, x),
        "forward, out=": lambda: forward(y),
        "forward": forward,
        "backward, out=": lambda: backward(dx),
        "backward": backward,
    }
    if torch:
        contenders.update(_torch_contenders(torch, x, dy, layout))
    return contenders


def _torch_contenders(torch: Any, x: Array, dy: Array, layout: str) -> Contenders:
    def tensor(array: Array) -> Any:
        """The array's memory as torch sees channels: second in shape, whatever the memory."""
        # torch takes no bfloat16 arrays from NumPy, but it takes their bits.
        if array.dtype.name == "bfloat16":
            shared = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            shared = torch.from_numpy(array)
        return shared.movedim(-1, 1) if layout == "channels_last" else shared

    parameter = torch.float64 if x.dtype == np.float64 else torch.float32
    images, gradient = tensor(x).requires_grad_(), tensor(dy)
    gamma = torch.ones(images.shape[1], dtype=parameter, requires_grad=True)
    beta = torch.zeros(images.shape[1], dtype=parameter, requires_grad=True)

    def forward() -> Any:
        return torch.nn.functional.batch_norm(images, None, None, gamma, beta, True, 0.01, 1e-3)

    result = forward()

    def untracked_forward() -> object:
        with torch.no_grad():
            return forward()

    def backward() -> object:
        return torch.autograd.grad(result, (images, gamma, beta), gradient, retain_graph=True)

    return {"torch forward": untracked_forward, "torch backward": backward}


def _times(contenders: Contenders, turns: int, bar: Any) -> dict[str, list[float]]:
    """Seconds of every call, by contender; a turn before the first compiles and warms up."""
    order = np.random.default_rng(0)
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + 1):
        for name in order.permutation(names):
            time.sleep(SETTLE_SECONDS)
            started = time.perf_counter()
            contenders[name]()
            if turn:
                times[name].append(time.perf_counter() - started)
        bar.update(turn > 0)
    return times


def _table(times: dict[str, list[float]]) -> str:
    copy = float(np.median(times[COPY]))
    rows = []
    for name, seconds in times.items():
        low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
        rows.append(
            [
                name,
                f"{1e3 * median:.3f} ms",
                f"{1e3 * low:.3f} to {1e3 * high:.3f} ms",
                f"{median / copy:.2f}",
            ]
        )
    return table(["", "median", "middle half", "copies"], rows)
