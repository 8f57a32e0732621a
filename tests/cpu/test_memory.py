"""Memory: the output and per-channel scratch, and nothing else the size of the input."""

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import numbabn
from arrays import dense
from processes import run_python

pytestmark = [pytest.mark.jit, pytest.mark.heavy]

# Scratch holds a few values a channel (or a column of a row of 4 KB) and a task: a sixtieth
# of the input, and far above what Python itself needs for a call.
SCRATCH = 1024 * 1024
SHAPE = (64, 16, 128, 128)  # 64 MiB of float32
DENSE_ORDERS = [
    pytest.param((0, 1, 2, 3), id="C"),
    pytest.param((3, 2, 1, 0), id="F"),
    pytest.param((0, 2, 3, 1), id="channels-last memory"),
    pytest.param((1, 0, 2, 3), id="channels outermost"),
]


def peak(call):
    """What `call` allocates through NumPy and Python at its highest, and its result."""
    call()  # compiles, and starts threads
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        result = call()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()


def tensor(memory, dtype=np.float32, shape=SHAPE):
    values = np.random.default_rng(1).random(shape[-1], np.float32).astype(dtype)
    return dense(np.broadcast_to(values, shape), memory)


def all_calls(x, axis, mask=None):
    """Every operation on `x`: its name, the call, and whether it returns an array like x."""
    _, saved = numbabn.batch_norm_forward(x, axis=axis, mask=mask)
    mean, variance = saved.statistics.mean, saved.statistics.variance
    yield "statistics", lambda: numbabn.batch_statistics(x, axis=axis, mask=mask), 0
    yield "normalize", lambda: numbabn.normalize(x, mean, variance, axis=axis), 1
    yield "forward", lambda: numbabn.batch_norm_forward(x, axis=axis, mask=mask), 1
    yield "backward", lambda: numbabn.batch_norm_backward(x, x, saved), 1
    yield (
        "inference gradient",
        lambda: numbabn.normalize_backward(x, x, mean, variance, axis=axis),
        1,
    )


@pytest.mark.parametrize("memory", DENSE_ORDERS)
def test_nothing_but_the_output_is_allocated(memory):
    x = tensor(memory)
    for name, call, outputs in all_calls(x, axis=1):
        used, _ = peak(call)
        assert used <= outputs * x.nbytes + SCRATCH, name


@pytest.mark.parametrize("memory", [(0, 1, 2), (0, 2, 1), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("axis", [1, -1, [1, 2]], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_and_axes(dtype, axis, memory):
    """16-bit floats in particular are converted an element at a time."""
    x = tensor(memory, dtype, (4096, 64, 16))
    for name, call, outputs in all_calls(x, axis):
        used, _ = peak(call)
        assert used <= outputs * x.nbytes + SCRATCH, name


@pytest.mark.parametrize("out", ["new", "dy", "x"])
def test_with_out_nothing_is_allocated(out):
    x, dy = tensor((0, 1, 2, 3)), tensor((0, 1, 2, 3))
    _, saved = numbabn.batch_norm_forward(x, axis=1)
    given = {"new": np.empty_like(x), "dy": dy, "x": x}[out]
    used, _ = peak(lambda: numbabn.batch_norm_backward(dy, x, saved, out=given))
    assert used <= SCRATCH


@pytest.mark.parametrize("memory", DENSE_ORDERS)
def test_a_layer_that_reuses_its_outputs_allocates_them_once(memory):
    x = tensor(memory)
    layer = numbabn.BatchNormalization(axis=1, reuse_outputs=True)
    for call in (
        lambda: layer(x, training=True),
        lambda: layer.backward(x),
        lambda: layer(x),
    ):
        used, _ = peak(call)
        assert used <= SCRATCH


@pytest.mark.parametrize("memory", DENSE_ORDERS)
@pytest.mark.parametrize(
    "mask_shape",
    [(64, 1, 1, 128), (1, 16, 128, 1), (64, 1, 128, 1), (1, 1, 1, 1), (1, 16, 1, 1), (64, 16, 1)],
    ids=str,
)
def test_a_mask_is_not_expanded(mask_shape, memory):
    """The masks here are small beside x; a byte for each element of x would be 16 MiB."""
    x = tensor(memory)
    mask = np.random.default_rng(2).random(mask_shape) < 0.7
    for name, call, outputs in all_calls(x, 1, mask):
        used, _ = peak(call)
        # A byte a position, 1 MiB, is the most that a mask constant over channels may take.
        assert used <= outputs * x.nbytes + SCRATCH + x.size // SHAPE[1], name


def test_a_position_mask_takes_a_byte_a_position():
    """Given as float64, 8 MiB; what is kept is an eighth of it, and no copy is made of x."""
    x = tensor((0, 2, 3, 1))
    mask = np.ones((64, 1, 128, 128))
    used, (_, saved) = peak(lambda: numbabn.batch_norm_forward(x, axis=1, mask=mask))
    positions = mask.size
    assert used <= x.nbytes + positions + SCRATCH
    tracemalloc.start()
    y, saved = numbabn.batch_norm_forward(x, axis=1, mask=mask)
    del y
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert saved.statistics.mean.size == SHAPE[1]
    assert kept <= positions + SCRATCH


def test_saved_keeps_no_copy_of_x():
    x = tensor((0, 1, 2, 3))
    numbabn.batch_norm_forward(x, axis=1)
    tracemalloc.start()
    y, saved = numbabn.batch_norm_forward(x, axis=1)
    del x, y
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert saved.statistics.mean.size == SHAPE[1]
    assert kept <= SCRATCH


PEAK_OF_THE_PROCESS = """
import itertools, sys
import ml_dtypes, numpy as np
import numbabn

def highest():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

def forget():
    # Sets the high-water mark back to what the process holds now.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

for dtype, axis in itertools.product([np.float32, np.float16, ml_dtypes.bfloat16], [1, -1]):
    x = np.ones((64, 16, 128, 128), dtype)
    mask = np.ones((64, 1, 128, 1), bool)
    out = np.ones_like(x)
    for repetition in range(2):
        if repetition:
            forget()
            before = highest()
        numbabn.batch_statistics(x, axis=axis, mask=mask)
        _, saved = numbabn.batch_norm_forward(x, axis=axis, mask=mask, out=out)
        numbabn.batch_norm_backward(x, x, saved, out=out)
    print(highest() - before)
    del x, out
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="only Linux tells the highest memory of a stretch of a process",
)
def test_kernels_allocate_nothing_large_either():
    """Memory that kernels allocate themselves is seen by the operating system only."""
    growth = [int(line) for line in run_python(PEAK_OF_THE_PROCESS).split()]
    assert len(growth) == 6
    # 32 MiB is the smallest input here; threads' stacks and allocator slack stay below 4.
    assert max(growth) <= 4 * 1024 * 1024
