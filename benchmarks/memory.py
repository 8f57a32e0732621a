"""How much memory do forward and backward take beyond their input?

    python -m benchmarks.memory

Each contender runs one forward and its backward in a process of its own, where x and dy are there
already and kernels are compiled. Two accounts: what NumPy allocated at the peak (tracemalloc), and
by how much the peak of the process's memory grew, which is all there is to know of torch. y and dx
alone are twice the bytes of x where they are fresh, and nothing where they are given.
"""

import json
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import numbabn
from numbabn.commands.table import table

from . import common
from .common import Record
from .contenders import EPSILON, FIRST, LAST

# Beyond any peak that imports and compilation left behind, so that the peak is the run's.
SHAPES = {FIRST: (128, 64, 56, 56), LAST: (128, 56, 56, 64)}
QUICK_SHAPES = {FIRST: (96, 64, 56, 56), LAST: (96, 56, 56, 64)}
CONTENDERS = [
    "numbabn, given",
    "numbabn, fresh",
    "numbabn, fresh, mask",
    "numbabn, fresh, strided",
    "torch, kernels",
    "torch, autograd",
    "NumPy, the formulas",
]


def numpy_forward_backward(x: Any, dy: Any, axis: int) -> Any:
    """The formulas in NumPy, as one would write them down."""
    axes = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    mean = x.mean(axes, keepdims=True)
    rstd = 1 / np.sqrt(x.var(axes, keepdims=True) + np.float32(EPSILON))
    y = (x - mean) * rstd
    xhat = (x - mean) * rstd
    through = dy.mean(axes, keepdims=True) + xhat * (dy * xhat).mean(axes, keepdims=True)
    return y, rstd * (dy - through)


def call_of(contender: str, x: Any, dy: Any, layout: str) -> Any:
    """One forward and its backward, as a function that returns what they return."""
    axis = 1 if layout == FIRST else -1
    channels = x.shape[axis]
    gamma, beta = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    if contender.startswith("NumPy"):
        return lambda: numpy_forward_backward(x, dy, axis)
    if contender.startswith("torch"):
        return _torch_call(contender, x, dy, layout)

    mask, outputs = None, (None, None)
    if "mask" in contender:
        mask = np.arange(x.size // channels).reshape(np.delete(x.shape, axis)) % 2 == 0
        mask = np.expand_dims(mask, axis)
    if "given" in contender:
        outputs = (np.ones_like(x), np.ones_like(x))
    # Every other image: an array with gaps, which is copied.
    if "strided" in contender:
        x, dy = x[::2], dy[::2]

    def call() -> Any:
        y, saved = numbabn.batch_norm_forward(
            x, gamma, beta, axis=axis, mask=mask, epsilon=EPSILON, out=outputs[0]
        )
        return y, numbabn.batch_norm_backward(dy, x, saved, out=outputs[1])

    return call


def _torch_call(contender: str, x: Any, dy: Any, layout: str) -> Any:
    import torch

    images, gradient = torch.from_numpy(x), torch.from_numpy(dy)
    if layout == LAST:
        images, gradient = images.movedim(-1, 1), gradient.movedim(-1, 1)
    gamma, beta = torch.ones(images.shape[1]), torch.zeros(images.shape[1])

    def kernels() -> Any:
        y, mean, rstd = torch.native_batch_norm(images, gamma, beta, None, None, True, 0.0, EPSILON)
        return y, torch.ops.aten.native_batch_norm_backward(
            gradient, images, gamma, None, None, mean, rstd, True, EPSILON, [True, True, True]
        )

    def autograd() -> Any:
        leaf = images.detach().requires_grad_()
        y = torch.nn.functional.batch_norm(leaf, None, None, gamma, beta, True, 0.0, EPSILON)
        y.backward(gradient)
        return y, leaf.grad

    return autograd if "autograd" in contender else kernels


def peak() -> int:
    """The most bytes of memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would do, but a process inherits its parent's.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(contender: str, layout: str, shape: tuple[int, ...]) -> dict[str, int]:
    """In a process of its own: the bytes of x, and of the two peaks above what was there."""
    generator = np.random.default_rng(0)
    # As large as parallel kernels need to be chosen, and no larger.
    small = generator.standard_normal((4, *shape[1:]), np.float32)
    call_of(contender, small, small, layout)()
    x, dy = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for array in (x, dy):
        generator.standard_normal(out=array, dtype=np.float32)
    call = call_of(contender, x, dy, layout)

    before = peak()
    call()
    resident = peak() - before
    tracemalloc.start()
    call()
    traced = tracemalloc.get_traced_memory()[1]
    # The strided array is every other image of x.
    used = x.nbytes // 2 if "strided" in contender else x.nbytes
    return {"bytes": used, "traced": traced, "resident": resident}


def measure(contender: str, layout: str, shape: tuple[int, ...]) -> list[Record]:
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--run", contender, layout, json.dumps(shape)],
        cwd=common.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured = json.loads(found.stdout)
    return [
        {
            "contender": contender,
            "layout": layout,
            "shape": "x".join(map(str, shape)),
            **measured,
            "traced_over_x": measured["traced"] / measured["bytes"],
            "resident_over_x": measured["resident"] / measured["bytes"],
        }
    ]


def report(found: list[Record]) -> str:
    rows = [
        [
            f"{r['contender']}, {r['layout']}",
            # NumPy knows nothing of torch's memory.
            "–" if r["contender"].startswith("torch") else f"{r['traced_over_x']:.2f}",
            f"{r['resident_over_x']:.2f}",
        ]
        for r in found
    ]
    sizes = " or ".join(dict.fromkeys(common.size(r["bytes"]) for r in found))
    return (
        f"Peak of forward and backward beyond x and dy, as a multiple of x ({sizes}):\n\n"
        + table(["", "NumPy's memory", "the process's"], rows)
    )


def draw(found: list[Record]) -> object:
    figure, axes = common.figure(1, width=7)
    labels = list(dict.fromkeys(r["contender"] for r in found))
    series = {
        layout: [
            r["resident_over_x"]
            for label in labels
            for r in found
            if (r["contender"], r["layout"]) == (label, layout)
        ]
        for layout in (FIRST, LAST)
    }
    common.bars(axes, labels, series, logarithmic=False)
    axes.set_title("peak beyond x and dy, in multiples of x")
    return figure


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        contender, layout, shape = sys.argv[2:]
        print(json.dumps(run(contender, layout, tuple(json.loads(shape)))))
        return
    options = common.options(__doc__)
    steps = {
        f"{contender}, {layout}": partial(measure, contender, layout, shape)
        for contender in CONTENDERS
        if common.installed("torch") or not contender.startswith("torch")
        for layout, shape in (QUICK_SHAPES if options.quick else SHAPES).items()
    }
    found = common.measure(steps, "process")
    common.save(options, "memory", found, report(found), draw(found))


if __name__ == "__main__":
    main()
