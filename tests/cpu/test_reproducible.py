"""The same bits on every run, with any number of threads, and in the serial kernels too."""

import os
import textwrap

import numba
import numpy as np
import pytest

import numbabn
from arrays import DTYPES, make_case
from devices import assert_same_bits, backward, forward
from processes import run_python

pytestmark = [pytest.mark.jit, pytest.mark.heavy]

# Above the size at which work goes to several threads; one shape for each way to cut it.
SHAPES = [
    pytest.param((32, 8, 31, 31), 1, id="channels-first"),
    pytest.param((1, 1, 300007), 1, id="one long channel"),
    pytest.param((300, 200, 5), 1, id="short channels"),
    pytest.param((32, 31, 31, 8), -1, id="channels-last"),
    pytest.param((100003, 3), -1, id="few channels, channels-last"),
    pytest.param((200, 1500), -1, id="many channels, channels-last"),
]


def results(case):
    y, saved = forward(case)
    batch = numbabn.batch_statistics(case.x, axis=case.axis, mask=case.mask)
    statistics = saved.statistics.mean, saved.statistics.variance
    return [y, *statistics, *backward(case, saved), batch.variance]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_same_bits_on_every_run_and_with_one_thread(shape, axis, dtype, masked):
    mask = np.random.default_rng(1).random((*shape[:-1], 1)) < 0.7 if masked else None
    case = make_case(shape, axis, dtype, renorm=True, mask=mask)
    first = results(case)
    again = [results(case) for _ in range(3)]
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        again.append(results(case))
    finally:
        numba.set_num_threads(threads)
    for other in again:
        assert_same_bits(first, other)


DIGEST = """
import hashlib, os
import numba, numpy as np
import numbabn

def digest():
    state = hashlib.sha256()
    rng = np.random.default_rng(5)
    for shape, axis in [((32, 8, 31, 31), 1), ((1, 1, 300007), 1), ((100003, 3), -1)]:
        x = rng.normal(3.0, 1.0, shape).astype(np.float32)
        dy = rng.normal(size=shape).astype(np.float32)
        for mask in (None, rng.random((*shape[:-1], 1)) < 0.7):
            y, saved = numbabn.batch_norm_forward(x, axis=axis, mask=mask)
            results = numbabn.batch_norm_backward(dy, x, saved)
            for each in (y, saved.statistics.mean, saved.statistics.variance, *results):
                state.update(each.tobytes())
    return state.hexdigest()
"""


def test_same_bits_with_one_two_and_four_threads():
    program = DIGEST + (
        "for threads in (1, 2, 4):\n    numba.set_num_threads(threads)\n    print(digest())\n"
    )
    lines = run_python(program, NUMBA_NUM_THREADS="4").split()
    lines += run_python(DIGEST + "print(digest())", NUMBA_NUM_THREADS="1").split()
    assert len(lines) == 4
    assert len(set(lines)) == 1


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_same_bits_with_every_threading_layer(layer):
    if layer == "omp":
        pytest.importorskip("numba.np.ufunc.omppool", reason="this numba has no OpenMP layer")
    program = DIGEST + "print(digest())\nassert numba.threading_layer() == os.environ['LAYER']"
    (other,) = run_python(program, NUMBA_THREADING_LAYER=layer, LAYER=layer).split()
    assert other == run_python(DIGEST + "print(digest())").strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_same_bits_in_a_forked_child():
    """A forked child runs the serial kernels."""
    program = DIGEST + (
        "print(digest(), flush=True)\n"
        "if os.fork() == 0:\n    print(digest(), flush=True)\n    os._exit(0)\n"
        "os.wait()\n"
    )
    parent, child = run_python(program).split()
    assert parent == child


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [4, 20, 300])
@pytest.mark.parametrize("channels", [64, 700])
def test_a_batch_with_padding_behind_it_gives_the_bits_of_the_batch(channels, rows, dtype):
    """Of fewer channels several positions are a row, and then they are added in another order."""
    case = make_case((rows, channels), -1, dtype)
    padding = np.full((max(1, rows // 3), channels), np.nan, dtype)
    padded = np.concatenate([case.x, padding])
    dy = np.concatenate([case.dy, np.zeros_like(padding)])
    mask = np.arange(len(padded)) < rows
    y, saved = numbabn.batch_norm_forward(case.x, case.gamma)
    dx, *gradients = numbabn.batch_norm_backward(case.dy, case.x, saved)
    same_y, same_saved = numbabn.batch_norm_forward(padded, case.gamma, mask=mask)
    same_dx, *same_gradients = numbabn.batch_norm_backward(dy, padded, same_saved)
    assert_same_bits(
        (same_y[:rows], same_saved.values, same_dx[:rows], *same_gradients),
        (y, saved.values, dx, *gradients),
    )


OF_A_FRESH_CACHE = """
    import sys
    import ml_dtypes
    import numpy as np
    import numbabn
    x = np.random.default_rng(0).normal(1, 2, (8, 16, 8, 8)).astype(ml_dtypes.bfloat16)
    dy = np.random.default_rng(1).normal(size=x.shape).astype(x.dtype)
    y, saved = numbabn.batch_norm_forward(x, axis=1)
    results = (y, saved.values, *numbabn.batch_norm_backward(dy, x, saved))
    print(b"".join(np.ascontiguousarray(each).tobytes() for each in results).hex())
"""


def test_a_process_that_compiles_gives_the_bits_of_one_that_loads(tmp_path):
    """A function that LLVM may reorder is compiled into its callers, and nowhere else.

    Otherwise the one process called the function as it was compiled alone, and the other as it
    was within its caller: dgamma of short runs of bfloat16 differed in its last bits.
    """
    program = textwrap.dedent(OF_A_FRESH_CACHE)
    compiled, loaded = (run_python(program, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert compiled == loaded


OF_LAYOUTS = """
    import sys
    import numpy as np
    import numbabn
    for axis in map(int, sys.argv[1:]):
        x = np.random.default_rng(0).normal(1, 2, (40, 24, 24)).astype("f4")
        y, saved = numbabn.batch_norm_forward(x, axis=axis)
        results = (y, saved.values, *numbabn.batch_norm_backward(x, x, saved))
        print(b"".join(np.ascontiguousarray(each).tobytes() for each in results).hex())
"""


def test_kernels_that_two_processes_compiled_do_not_meet(tmp_path):
    """Functions of one name and type in two pieces of machine code: only the first is called."""
    program, shared = textwrap.dedent(OF_LAYOUTS), str(tmp_path / "shared")
    for axis in ("1", "-1"):
        run_python(program, axis, NUMBA_CACHE_DIR=shared)
    loaded = run_python(program, "1", "-1", NUMBA_CACHE_DIR=shared)
    assert loaded == run_python(program, "1", "-1", NUMBA_CACHE_DIR=str(tmp_path / "own"))
