"""What does a call cost from Python, where the work is small?

    python -m benchmarks.small

Forward, backward and normalize (inference) of arrays of at most 64 KiB, checks of the arguments
included, beside torch's kernels called directly, without autograd around them.
"""

from functools import partial
from typing import Any

import numpy as np

import numbabn
from numbabn.commands.table import table

from . import common, contenders
from .common import Record
from .contenders import EPSILON, FIRST, LAST, Call, Calls, Data, data, ours

SHAPES: list[tuple[str, tuple[int, ...]]] = [
    (LAST, (1, 16)),
    (LAST, (32, 64)),
    (LAST, (64, 256)),
    (LAST, (4, 8, 8, 16)),
    (LAST, (32, 1030)),
    (FIRST, (4, 16, 8, 8)),
    (FIRST, (8, 256, 7)),
]
OPERATIONS = ("forward", "backward", "normalize")


def normalize_calls(given: Data) -> Calls:
    """Inference: numbabn's normalize, and torch's batch norm by given statistics."""
    mean, variance = given.beta, given.gamma

    def normalize(out: Any = None) -> Any:
        return numbabn.normalize(
            given.x, mean, variance, given.gamma, given.beta,
            axis=given.axis, epsilon=EPSILON, out=out,
        )  # fmt: skip

    calls: Calls = {
        Call("numbabn", "normalize", "given"): lambda: normalize(given.y),
        Call("numbabn", "normalize", "fresh"): normalize,
    }
    if common.installed("torch"):
        import torch

        x, gamma, beta = map(torch.from_numpy, (given.x, given.gamma, given.beta))
        images = x if given.layout == FIRST else x.movedim(-1, 1)

        def torch_normalize() -> Any:
            return torch.native_batch_norm(
                images, gamma, beta, beta, gamma, False, 0.0, EPSILON
            )  # fmt: skip

        calls[Call("torch", "normalize", "fresh")] = torch_normalize
    return calls


def measure(layout: str, shape: tuple[int, ...], quick: bool) -> list[Record]:
    given = data(shape, layout)
    calls = ours(given) | normalize_calls(given)
    mask = np.arange(given.x.size // given.x.shape[given.axis]) % 2 == 0
    positions = tuple(length for a, length in enumerate(shape) if a != given.axis % len(shape))
    mask = mask.reshape(positions if layout == LAST else (positions[0], 1, *positions[1:]))
    calls |= {call: f for call, f in ours(given, mask, "masked").items() if call.output == "given"}
    if common.installed("torch"):
        calls |= contenders.torch_calls(given)
    contenders.check(given, {call: f for call, f in calls.items() if call.contender != "masked"})
    return [
        {
            "layout": layout,
            "shape": "x".join(map(str, shape)),
            "bytes": given.x.nbytes,
            **call._asdict(),
            **timing._asdict(),
        }
        for call, timing in common.time_calls(calls, seconds=4, quick=quick).items()
    ]


def report(found: list[Record]) -> str:
    columns = list(dict.fromkeys((r["contender"], r["output"]) for r in found))
    header = ["", *(f"{contender}, {output}" for contender, output in columns)]
    rows = []
    for layout, shape in dict.fromkeys((r["layout"], r["shape"]) for r in found):
        for operation in OPERATIONS:
            cells = {
                (r["contender"], r["output"]): f"{1e6 * r['median']:.1f} µs"
                for r in found
                if (r["layout"], r["shape"], r["operation"]) == (layout, shape, operation)
            }
            rows.append(
                [f"{operation}, {shape}, {layout}", *(cells.get(key, "–") for key in columns)]
            )
    return table(header, rows)


def draw(found: list[Record]) -> object:
    labels, series = [], {"numbabn": [], "torch": []}
    for layout, shape in dict.fromkeys((r["layout"], r["shape"]) for r in found):
        for operation in OPERATIONS:
            labels.append(f"{operation}, {shape}, {layout}")
            for contender, values in series.items():
                values += [
                    1e6 * r["median"]
                    for r in found
                    if (r["layout"], r["shape"], r["operation"]) == (layout, shape, operation)
                    and (r["contender"], r["output"]) == (contender, "fresh")
                ] or [np.nan]
    figure, axes = common.figure(1, width=8, height=6.5)
    common.bars(axes, labels, series, logarithmic=False)
    axes.set_title("µs a call, fresh outputs")
    return figure


def main() -> None:
    options = common.options(__doc__)
    common.set_threads(common.thread_counts()[-1])
    shapes = SHAPES[1:3] if options.quick else SHAPES
    steps = {
        f"{shape}, {layout}": partial(measure, layout, shape, options.quick)
        for layout, shape in shapes
    }
    found = common.measure(steps, "shape")
    common.save(options, "small", found, report(found), draw(found))


if __name__ == "__main__":
    main()
