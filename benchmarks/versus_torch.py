"""How much faster than what a user could pick instead, on many shapes?

    python -m benchmarks.versus_torch

torch's native_batch_norm and its backward, in the memory format that torch is fastest in; the same
operations by torch.compile (inductor); and jax.jit of the formulas. All get the same float32 data
and as many threads as numbabn, and take turns. Before that their results are compared.

Fresh outputs are compared with fresh ones. torch's forward can also write into a given array, as
numbabn can, and those two are compared as well.
"""

from functools import partial

import numpy as np

from numbabn.commands.table import table

from . import common, contenders
from .common import Record
from .contenders import FIRST, LAST, Calls, compiled_calls, copies, data, jax_calls, ours

SHAPES: list[tuple[str, tuple[int, ...]]] = [
    (LAST, (32, 64)),  # the least work: what a call costs
    (LAST, (256, 512)),
    (LAST, (8192, 512)),  # a padded sequence's features
    (LAST, (4096, 2048)),  # many channels
    (LAST, (32, 56, 56, 64)),
    (LAST, (128, 56, 56, 64)),  # beyond any cache
    (LAST, (16, 128, 128, 3)),  # few channels
    (LAST, (32, 512, 512, 3)),
    (LAST, (32, 7, 7, 1030)),  # no power of two anywhere
    (FIRST, (8, 16, 8, 8)),
    (FIRST, (32, 256, 14, 14)),
    (FIRST, (32, 64, 56, 56)),
    (FIRST, (128, 64, 56, 56)),
    (FIRST, (16, 3, 224, 224)),
    (FIRST, (32, 1030, 7, 7)),
    (FIRST, (32, 2048, 7, 7)),
]
QUICK_SHAPES = [SHAPES[0], SHAPES[9]]
OTHERS = ("torch", "torch.compile", "jax.jit")
OPERATIONS = ("forward", "backward")


def measure(
    layout: str, shape: tuple[int, ...], compiled: bool, jax: bool, quick: bool
) -> list[Record]:
    given = data(shape, layout)
    calls: Calls = copies(given) | ours(given) | contenders.torch_calls(given)
    if compiled:
        calls |= compiled_calls(given)
    if jax:
        calls |= jax_calls(given)
    contenders.check(given, calls)
    return [
        {
            "layout": layout,
            "shape": "x".join(map(str, shape)),
            "bytes": given.x.nbytes,
            **call._asdict(),
            **timing._asdict(),
        }
        for call, timing in common.time_calls(calls, seconds=6, quick=quick).items()
    ]


def _medians(found: list[Record]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Medians by contender, operation and output, and then by "shape, layout"."""
    medians: dict[tuple[str, str, str], dict[str, float]] = {}
    for r in found:
        key = (r["contender"], r["operation"], r["output"])
        medians.setdefault(key, {})[f"{r['shape']}, {r['layout']}"] = r["median"]
    return medians


def ratios(found: list[Record], other: str, operation: str, output: str) -> dict[str, float]:
    """By shape, how many times as long as numbabn the other takes; empty where it did not run."""
    medians = _medians(found)
    own = medians["numbabn", operation, output]
    return {
        shape: seconds / own[shape]
        for shape, seconds in medians.get((other, operation, output), {}).items()
    }


def summary(found: list[Record]) -> str:
    """Geometric means and the worst shape, against each of the others."""
    rows = []
    for other in OTHERS:
        for operation in OPERATIONS:
            for output in ("fresh", "given"):
                by_shape = ratios(found, other, operation, output)
                if by_shape:
                    worst = min(by_shape, key=by_shape.__getitem__)
                    rows.append(
                        [
                            f"{operation}, {other}"
                            + (", into a given array" if output == "given" else ""),
                            f"{common.geometric_mean(list(by_shape.values())):.2f}",
                            f"{by_shape[worst]:.2f}",
                            worst,
                        ]
                    )
    return table(["times as fast as", "geometric mean", "least", "at"], rows)


def report(found: list[Record], missing: list[str]) -> str:
    medians = _medians(found)
    parts = [*missing, summary(found)]
    for operation in OPERATIONS:
        columns = [key for key in medians if key[1] in (operation, "copy")]
        header = ["shape", *(f"{key[0]}, {key[2]}" for key in columns)]
        rows = [
            [shape, *(common.duration(medians[key][shape]) for key in columns)]
            for shape in medians["numbabn", operation, "fresh"]
        ]
        parts += [f"The {operation}, medians:", table(header, rows)]
    return "\n\n".join(parts)


def draw(found: list[Record]) -> object:
    figure, both = common.figure(2, height=6.5)
    for axes, operation in zip(both, OPERATIONS, strict=True):
        by_other = {other: ratios(found, other, operation, "fresh") for other in OTHERS}
        by_other = {other: by_shape for other, by_shape in by_other.items() if by_shape}
        labels = list(by_other["torch"])
        series = {
            other: [by_shape.get(label, np.nan) for label in labels]
            for other, by_shape in by_other.items()
        }
        common.bars(axes, labels, series, logarithmic=True)
        axes.set_title(f"{operation}: time of others over numbabn's")
    return figure


def main() -> None:
    options = common.options(__doc__)
    if not common.installed("torch"):
        raise SystemExit("This benchmark compares with torch, which is not installed")
    common.set_threads(common.thread_counts()[-1])
    no_compiler, no_jax = contenders.why_not_compiled(), contenders.why_not_jax()
    missing = [sentence for sentence in (no_compiler, no_jax) if sentence]
    shapes = QUICK_SHAPES if options.quick else SHAPES
    steps = {
        f"{shape}, {layout}": partial(
            measure, layout, shape, not no_compiler, not no_jax, options.quick
        )
        for layout, shape in shapes
    }
    found = common.measure(steps, "shape")
    common.save(options, "versus_torch", found, report(found, missing), draw(found))


if __name__ == "__main__":
    main()
