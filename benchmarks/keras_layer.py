"""Does the Keras layer train faster than Keras's own, and in how much memory?

    KERAS_BACKEND=torch python -m benchmarks.keras_layer

One forward and one backward of the layer alone, in training, numbabn's beside Keras's in the
same run, each in the fastest ordinary mode of the backend that KERAS_BACKEND names: eager on
torch, `tf.function` on TensorFlow (for Keras's layer also with `jit_compile=True`; the faster
counts), `jax.jit` on JAX. Memory is what a step needs at its peak beyond what there was before.
"""

import ctypes
import time
from collections.abc import Callable
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from numbabn.commands.table import table
from numbabn.keras import BatchNormalization

from . import common
from .common import Record

BACKEND = keras.backend.backend()
OURS, THEIRS = "numbabn", "Keras"
CLIPPING = {"rmin": 1 / 3, "rmax": 3.0, "dmax": 5.0}


class Case(NamedTuple):
    """A layer's input, and what the layer does with it."""

    shape: tuple[int, ...]
    axis: int = -1
    masked: bool = False
    renorm: bool = False
    permuted: bool = False  # channels last in shape, channels first in memory

    @property
    def label(self) -> str:
        """The case in a few words."""
        words = ["x".join(map(str, self.shape))]
        words += ["channels first"] if self.axis == 1 else []
        words += [name for name in ("masked", "renorm", "permuted") if getattr(self, name)]
        return ", ".join(words)


CASES = [
    Case((32, 64)),
    Case((32, 64), renorm=True),
    Case((256, 512)),
    Case((4096, 256)),
    Case((32, 32, 32, 64)),
    Case((32, 64, 32, 32), axis=1),
    Case((32, 32, 32, 64), permuted=True),
    Case((32, 32, 32, 64), renorm=True),
    Case((32, 56, 56, 64)),
    Case((32, 7, 7, 512)),
    Case((32, 128, 64), masked=True),
    Case((64, 200, 128), masked=True),
    Case((64, 200, 128), masked=True, renorm=True),
]
QUICK = [Case((32, 64)), Case((8, 16, 4), masked=True, renorm=True)]


def calls_of(case: Case) -> dict[tuple[str, str], Callable[[], Any]]:
    """(whose layer, mode) -> a step on data that is the same for all."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(1, 2, (2, *case.shape)).astype(np.float32)
    mask = None
    if case.masked:
        lengths = rng.integers(1, case.shape[1] + 1, case.shape[0])
        mask = np.arange(case.shape[1]) < lengths[:, None]
    found = {}
    for name, layer_class in (
        (OURS, BatchNormalization),
        (THEIRS, keras.layers.BatchNormalization),
    ):
        for mode in MODES[BACKEND]:
            if name == OURS and mode == "XLA" and BACKEND == "tensorflow":
                continue  # It has no such mode.
            layer = layer_class(
                axis=case.axis,
                renorm=case.renorm,
                renorm_clipping=CLIPPING if case.renorm else None,
            )
            layer.build(case.shape)
            found[name, mode] = STEPS[BACKEND](layer, x, dy, mask, mode, case.permuted)
    return found


def _torch(layer: Any, x: Any, dy: Any, mask: Any, mode: str, permuted: bool) -> Callable[[], Any]:
    import torch

    def tensor(array: Any) -> Any:
        own = torch.from_numpy(array)
        return own.movedim(-1, 1).contiguous().movedim(1, -1) if permuted else own

    x, dy = tensor(x).requires_grad_(), tensor(dy)
    mask = None if mask is None else torch.from_numpy(mask)
    values = [weight.value for weight in layer.trainable_weights]

    def step() -> Any:
        y = layer(x, training=True, mask=mask)
        return y, torch.autograd.grad(y, [x, *values], dy)

    return step


def _tensorflow(
    layer: Any, x: Any, dy: Any, mask: Any, mode: str, permuted: bool
) -> Callable[[], Any]:
    import tensorflow as tf

    x, dy = tf.constant(x), tf.constant(dy)
    mask = None if mask is None else tf.constant(mask)
    values = [weight.value for weight in layer.trainable_weights]

    @tf.function(jit_compile=mode == "XLA")
    def step(x: Any, dy: Any, mask: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        # The output too: XLA would leave out what nobody reads.
        return y, tape.gradient(y, [x, *values], dy)

    return partial(step, x, dy, mask)


def _jax(layer: Any, x: Any, dy: Any, mask: Any, mode: str, permuted: bool) -> Callable[[], Any]:
    import jax

    x, dy = ops.convert_to_tensor(x), ops.convert_to_tensor(dy)
    mask = None if mask is None else ops.convert_to_tensor(mask)
    trainable = [each.value for each in layer.trainable_variables]
    others = [each.value for each in layer.non_trainable_variables]

    @jax.jit
    def step(x: Any, trainable: Any, others: Any, dy: Any, mask: Any) -> Any:
        def forward(x: Any, trainable: Any) -> Any:
            return layer.stateless_call(trainable, others, x, training=True, mask=mask)

        y, pull, moved = jax.vjp(forward, x, trainable, has_aux=True)
        return y, pull(dy), moved

    return lambda: jax.block_until_ready(step(x, trainable, others, dy, mask))


STEPS = {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax}
MODES = {"torch": ("eager",), "tensorflow": ("graph", "XLA"), "jax": ("XLA",)}


# Of the C library's `mallopt`: how much free memory it keeps, and from how many bytes on memory
# comes straight from the system. What it keeps for later calls would hide what this one needs.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = (-1, 0), (-3, 1 << 16)


def peak_bytes(step: Callable[[], Any]) -> float:
    """What a step needs at its peak beyond what there was before; NaN where nobody says."""
    if BACKEND == "tensorflow":
        return float("nan")  # It has a pool of its own, where a step's peak does not show.
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    try:
        for setting in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(*setting)
        step()
        # Results are freed by other threads, now and then.
        time.sleep(0.1)
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")  # The peak starts anew.
        before = read("VmRSS")
        result = step()
        after = read("VmHWM")
        del result
    except (OSError, AttributeError):
        return float("nan")
    return after - before


def add_peaks(case: Case, records: list[Record]) -> None:
    """Fill in the peaks of a case; after all timings, which `mallopt` would change."""
    calls = calls_of(case)
    for record in records:
        step = calls[record["layer"], record["mode"]]
        # The median: an allocator may grow its own memory, or not yet have freed.
        record["peak"] = sorted(peak_bytes(step) for _ in range(5))[2]


def measure(case: Case, quick: bool) -> list[Record]:
    """Records of one case; of several modes the fastest."""
    calls = calls_of(case)
    timings = common.time_calls(calls, seconds=4, quick=quick)
    records = []
    for name in (OURS, THEIRS):
        modes = {key: timing for key, timing in timings.items() if key[0] == name}
        key = min(modes, key=lambda each: modes[each].median)
        records.append(
            {
                "backend": BACKEND,
                "case": case.label,
                "bytes": float(np.prod(case.shape)) * 4,
                "layer": name,
                "mode": key[1],
                **modes[key]._asdict(),
            }
        )
    return records


def report(found: list[Record]) -> str:
    """The table, and the geometric mean of the ratios."""
    rows, ratios = [], []
    for ours, theirs in zip(found[::2], found[1::2], strict=True):
        ratio = theirs["median"] / ours["median"]
        ratios.append(ratio)
        rows.append(
            [
                ours["case"],
                common.size(ours["bytes"]),
                common.duration(ours["median"]),
                f"{common.duration(theirs['median'])} ({theirs['mode']})",
                f"{ratio:.2f}",
                *(
                    "–" if isnan(each["peak"]) else common.size(max(each["peak"], 0))
                    for each in (ours, theirs)
                ),
            ]
        )
    header = ["", "x", OURS, THEIRS, "times as fast", f"peak, {OURS}", f"peak, {THEIRS}"]
    slower = [row[0] for row, ratio in zip(rows, ratios, strict=True) if ratio < 1]
    return (
        f"Keras {keras.__version__}\n\n"
        f"{table(header, rows)}\n\n"
        f"Geometric mean: {common.geometric_mean(ratios):.2f} times as fast. "
        f"Slower: {'; '.join(slower) or 'none'}."
    )


def draw(found: list[Record]) -> Any:
    """The ratio of each case as a bar."""
    figure, axes = common.figure(1, width=8, height=5)
    cases = [record["case"] for record in found[::2]]
    ratios = [theirs["median"] / ours["median"]
              for ours, theirs in zip(found[::2], found[1::2], strict=True)]  # fmt: skip
    axes.barh(cases[::-1], ratios[::-1])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="times as fast as Keras's layer", title=f"Forward and backward on {BACKEND}")
    return figure


def main() -> None:
    """Measure, print and save."""
    chosen = common.options(__doc__)
    cases = [case for case in (QUICK if chosen.quick else CASES)
             if BACKEND == "torch" or not case.permuted]  # fmt: skip
    found = common.measure(
        {case.label: partial(measure, case, chosen.quick) for case in cases}, "case"
    )
    for i, case in enumerate(cases):
        add_peaks(case, found[2 * i : 2 * i + 2])
    common.save(
        chosen, f"keras_layer_{BACKEND}", found, report(found), draw(found),
        f"KERAS_BACKEND={BACKEND} python -m benchmarks.keras_layer",
    )  # fmt: skip


if __name__ == "__main__":
    main()
