"""Inside other people's programs: threads, forks, interrupts, folders that cannot be written.

Each program runs in a process of its own, so that a crash or a deadlock there is a failure
here.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import numbabn
from numbabn.cpu import launch
from processes import run_python

pytestmark = [pytest.mark.jit, pytest.mark.heavy]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# Work large enough for the parallel kernels, whose right results are known beforehand.
SETUP = """
import os, signal, sys, threading, time
import numba, numpy as np
import numbabn

rng = np.random.default_rng(9)
CASES = []
for shape, axis in [((64, 8, 16, 16), 1), ((4096, 32), -1)]:
    x = rng.normal(3.0, 2.0, shape)
    reduced = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    mean = x.mean(reduced, keepdims=True)
    variance = x.var(reduced, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-3)
    CASES.append((x.astype(np.float32), axis, expected))

def work():
    for x, axis, expected in CASES:
        y, saved = numbabn.batch_norm_forward(x, axis=axis)
        # x is rounded to float32, which expected is not: 1e-7 of values up to 10.
        assert np.max(np.abs(y - expected)) < 1e-5
        dx, _, dbeta = numbabn.batch_norm_backward(np.ones_like(x), x, saved)
        assert np.max(np.abs(dx)) < 1e-5
        assert np.max(np.abs(dbeta - x.size / dbeta.size)) < 1e-2

def in_child(function):
    process = os.fork()
    if process == 0:
        try:
            function()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    # A deadlock in the child must not outlive the test.
    deadline = time.monotonic() + 200
    while True:
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            break
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            sys.exit("the child hangs")
        time.sleep(0.01)
    if status != 0:
        sys.exit(f"the child ended with status {status}")
"""

EIGHT_THREADS = (
    SETUP
    + """
failures = []
barrier = threading.Barrier(8)

def repeatedly():
    barrier.wait()
    try:
        for _ in range(40):
            work()
    except BaseException as error:
        failures.append(error)
        raise

threads = [threading.Thread(target=repeatedly) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
print(numba.threading_layer())
"""
)


def layers():
    """The threading layers of this numba."""
    return ["default", "workqueue", pytest.param("omp", marks=needs_openmp())]


def needs_openmp():
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return pytest.mark.skip(reason="this numba has no OpenMP layer")
    return ()


each_layer = pytest.mark.parametrize("layer", layers())


@each_layer
def test_eight_threads_at_once(layer):
    used = run_python(EIGHT_THREADS, NUMBA_THREADING_LAYER=layer).strip()
    assert layer in ("default", used)


def test_eight_threads_in_this_process():
    exec(compile(EIGHT_THREADS, "eight threads", "exec"), {})


@needs_fork
@each_layer
def test_fork_before_and_after_use(layer):
    """The parent and every child get right results, and none of them hangs or aborts."""
    run_python(
        SETUP + "in_child(work)\nwork()\nin_child(work)\nwork()\nin_child(lambda: in_child(work))",
        NUMBA_THREADING_LAYER=layer,
    )


@needs_fork
@each_layer
def test_fork_while_other_threads_work(layer):
    """A lock that another thread held at the fork must not stay held in the child."""
    run_python(
        SETUP
        + """
work()
stop = False
def repeatedly():
    while not stop:
        work()
threads = [threading.Thread(target=repeatedly) for _ in range(2)]
for thread in threads:
    thread.start()
try:
    for _ in range(8):
        in_child(work)
finally:
    stop = True
    for thread in threads:
        thread.join()
work()
""",
        NUMBA_THREADING_LAYER=layer,
    )


@needs_fork
def test_multiprocessing_with_fork():
    run_python(
        SETUP
        + """
import multiprocessing
work()
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.apply(work)
    pool.apply(work)
work()
"""
    )


def test_set_num_threads_is_obeyed():
    """numba's threads are counted by what they burn: one thread uses one processor's time."""
    run_python(
        SETUP
        + """
numba.set_num_threads(1)
assert numba.get_num_threads() == 1
x = np.ones((64, 64, 64, 64), np.float32)
out = np.empty_like(x)
numbabn.batch_norm_forward(x, axis=1, out=out)
wall, cpu = time.perf_counter(), time.process_time()
for _ in range(20):
    numbabn.batch_norm_forward(x, axis=1, out=out)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
assert cpu < 1.3 * wall, (cpu, wall)
assert numba.get_num_threads() == 1
""",
        NUMBA_NUM_THREADS="4",
    )


@pytest.mark.parametrize("number", ["1", "3"])
def test_numba_num_threads_is_obeyed(number):
    program = """
work()
workers = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0
assert workers <= before + int(os.environ["NUMBA_NUM_THREADS"]), (before, workers)
assert numba.get_num_threads() == int(os.environ["NUMBA_NUM_THREADS"])
"""
    count = (
        "before = len(os.listdir('/proc/self/task')) if os.path.exists('/proc/self/task') else 0\n"
    )
    run_python(SETUP + count + program, NUMBA_NUM_THREADS=number)


def test_the_number_of_threads_stays_what_the_caller_set():
    run_python(
        SETUP
        + """
for threads in (1, 2, 3, 1):
    numba.set_num_threads(threads)
    work()
    assert numba.get_num_threads() == threads
""",
        NUMBA_NUM_THREADS="3",
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a process of its own")
@each_layer
def test_keyboard_interrupts_leave_nothing_broken(layer):
    """Interrupted many times at any point, calls are right afterwards, from any thread."""
    run_python(
        SETUP
        + """
work()
layer = numbabn.BatchNormalization()
x = CASES[1][0]
layer(x, training=True)
armed = False

def interrupt(number, frame):
    # As Python's own handler, but once an attempt, so that none strikes while one is counted.
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
done = threading.Event()

def pester():
    while not done.is_set():
        time.sleep(0.003)
        os.kill(os.getpid(), signal.SIGINT)

pesterer = threading.Thread(target=pester)
pesterer.start()
caught = 0
while caught < 40:
    try:
        armed = True
        while True:
            work()
            layer(x, training=True)
            layer.backward(x)
    except KeyboardInterrupt:
        caught += 1
done.set()
pesterer.join()
armed = False

work()
other = threading.Thread(target=work, daemon=True)
other.start()
# Long: where other processes keep every processor, OpenMP's threads wait for one another.
other.join(200)
assert not other.is_alive(), "a lock is still held"
y = layer(x, training=True)
assert np.all(np.isfinite(y)) and np.all(np.isfinite(layer.moving_variance))
assert np.max(np.abs(layer.moving_mean - 3.0)) < 3.5
""",
        NUMBA_THREADING_LAYER=layer,
    )


# One small operation: its kernels are compiled anew in each of the tests below.
SMALL_CALL = """
import numpy as np
import numbabn
y = numbabn.normalize(np.float32([[1.0], [3.0]]), [2.0], [1.0], epsilon=1e-6)
np.testing.assert_allclose(y, [[-1.0], [1.0]], rtol=1e-5)
print(numbabn.__file__)
"""


def package_without_cache(folder):
    """A copy of the package in which no `__pycache__` folder can be made."""
    source = Path(numbabn.__file__).parent
    copy = shutil.copytree(source, folder / "numbabn", ignore=shutil.ignore_patterns("__pycache__"))
    for each in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        # Nobody, not even root, makes a folder where a file is.
        (each / "__pycache__").write_text("")
    return copy


@pytest.mark.parametrize("bad", ["below a file", "missing"])
def test_an_unusable_cache_folder_costs_only_compile_time(tmp_path, bad):
    nowhere = tmp_path / "file" / "folder"
    if bad == "below a file":
        nowhere.parent.write_text("")
    where = run_python(SMALL_CALL, NUMBA_CACHE_DIR=str(nowhere))
    assert Path(where.strip()) == Path(numbabn.__file__)
    assert nowhere.exists() == (bad == "missing")


def test_no_writable_folder_at_all_costs_only_compile_time(tmp_path):
    """Neither the folder that was asked for, nor the package's own, nor the user's."""
    package = package_without_cache(tmp_path / "site")
    blocked = tmp_path / "file"
    blocked.write_text("")
    nowhere = str(blocked / "folder")
    where = run_python(
        SMALL_CALL,
        PYTHONPATH=os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]),
        PYTHONDONTWRITEBYTECODE="1",
        NUMBA_CACHE_DIR=nowhere,
        XDG_CACHE_HOME=nowhere,
        HOME=nowhere,
    )
    assert Path(where.strip()).parent == package


def test_a_cache_folder_that_becomes_unwritable(tmp_path):
    """It could be made when the process began, and cannot be written when a kernel is saved."""
    cache = tmp_path / "cache"
    run_python(
        f"""
import os, shutil
import numbabn
{SMALL_CALL}
shutil.rmtree({str(cache)!r})
open({str(cache)!r}, "w").close()
x = np.float32([[1.0, 2.0], [3.0, 4.0]])
np.testing.assert_array_equal(numbabn.batch_statistics(x).mean, [2.0, 3.0])
# On several threads.
x = np.tile(x, (40000, 1))
np.testing.assert_array_equal(numbabn.batch_norm_forward(x)[1].statistics.mean, [2.0, 3.0])
np.testing.assert_array_equal(numbabn.renorm_correction([3.0], [0.0], [1.0], [2.0])[1], [1.0])
""",
        NUMBA_CACHE_DIR=str(cache),
    )


@pytest.mark.jit
def test_what_differs_in_values_alone_compiles_nothing_anew():
    x, gamma = np.ones((8, 3, 4), np.float32), np.ones(4, np.float32)
    _, saved = numbabn.batch_norm_forward(x, gamma, gamma)
    numbabn.batch_norm_backward(x, x, saved)
    operations = (launch._forward, launch._backward)
    compiled = [list(operation.compiled.compiled.signatures) for operation in operations]
    frozen = np.ones(4, np.float32)
    frozen.flags.writeable = False
    for axis in (0, 1, 2):
        channels = np.ones(2 * x.shape[axis], np.float32)[::2]
        for mask in (None, np.ones((8, 3)), np.ones((8, 3, 4), bool), np.ones((1, 3, 1))):
            _, saved = numbabn.batch_norm_forward(x, channels, channels, axis=axis, mask=mask)
            numbabn.batch_norm_backward(x, x, saved)
    numbabn.batch_norm_forward(x, frozen, frozen)
    numbabn.normalize_backward(x, x, frozen, frozen)
    assert [list(operation.compiled.compiled.signatures) for operation in operations] == compiled
