"""Processes that fork, end, or are short of memory while something computes."""

import os
import sys

import pytest
from programs import KERAS, SETUP, run

pytestmark = [pytest.mark.jit, pytest.mark.timeout(600)]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
@pytest.mark.parametrize("layer", ["default", "workqueue", "omp"])
def test_fork_in_the_middle_of_a_call(layer):
    if layer == "omp":
        pytest.importorskip("numba.np.ufunc.omppool")
    program = """
arrays()
stop = threading.Event()
large = np.tile(BATCHES[2][0], (40, 1))
import numbabn
def busy():
    while not stop.is_set():
        numbabn.batch_norm_forward(large)
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(12):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            arrays()
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + 60
    found, status = 0, 0
    while not found and time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not found:
        os.kill(child, signal.SIGKILL)
    assert found and status == 0, (found, status)
stop.set()
for thread in threads:
    thread.join()
arrays()
"""
    run(SETUP + program, NUMBA_THREADING_LAYER=layer)


@pytest.mark.on("torch")
@pytest.mark.parametrize("way", ["fork", "forkserver", "spawn"])
def test_workers_of_a_data_loader(tmp_path, way):
    """They normalize while the parent trains."""
    if way == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    # Workers that are no forks import the program.
    path = tmp_path / "program.py"
    path.write_text(
        f"""{KERAS}
import numbabn

class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, number):
        x, expected = BATCHES[number % 3]
        y = numbabn.batch_norm_forward(x)[0]
        right(y, expected)
        return torch.from_numpy(y[:3])

if __name__ == "__main__":
    work()
    loader = torch.utils.data.DataLoader(
        Batches(), batch_size=4, num_workers=2, multiprocessing_context={way!r}
    )
    for batch in loader:
        assert batch.shape == (4, 3, 16)
        work()
"""
    )
    run(f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')", backend="torch")


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "os._exit(0)"])
def test_an_end_while_threads_compute(end):
    program = f"""
arrays()
for _ in range(3):
    threading.Thread(target=lambda: [arrays() for _ in range(100000)], daemon=True).start()
time.sleep(0.2)
{end}
"""
    run(SETUP + program)


@pytest.mark.parametrize("end", ["pass", "os._exit(0)"])
def test_an_end_while_threads_use_a_layer(framework, end):
    if framework in ("jax", "torch") and end == "pass":
        pytest.skip(
            f"{framework} alone ends so by SIGABRT: its threads are ended below C++ (CPython <3.14)"
        )
    program = f"""
limited = new_layer(renorm=True, renorm_clipping={{"rmax": lambda: 3.0}})
def busy():
    while True:
        work()
        limited(ops.convert_to_tensor(BATCHES[1][0]), training=True)
work()
for _ in range(2):
    threading.Thread(target=busy, daemon=True).start()
time.sleep(0.5)
{end}
"""
    run(KERAS + program, backend=framework)


@pytest.mark.on("jax")
@pytest.mark.parametrize("end", ["pass", "os._exit(0)"])
def test_an_end_while_jax_has_work_left(end):
    """Dispatched, and not waited for; some of it reads limits, which only Python knows."""
    program = f"""
limited = new_layer(renorm=True, renorm_clipping={{"rmax": lambda: time.sleep(0.05) or 3.0}})
values = [[each.value for each in one] for one in
          (limited.trainable_variables, limited.non_trainable_variables)]
step = jax.jit(lambda x: limited.stateless_call(*values, x, training=True)[0])
x = jax.numpy.asarray(np.tile(BATCHES[2][0], (20, 1)))
jax.block_until_ready(step(x))
for _ in range(8):
    x = step(x)
{end}
"""
    run(KERAS + program, backend="jax")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others count memory otherwise")
def test_no_memory_for_a_result():
    """MemoryError, and everything is as it was."""
    program = """
import resource
import numbabn
layer = numbabn.BatchNormalization(renorm=True)
x = BATCHES[2][0]
layer(x, training=True)
layer.backward(x)
large = np.broadcast_to(np.float32(1), (1 << 20, 16))
large = np.ascontiguousarray(large)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
before = {name: each.tobytes() for name, each in (layer.weights | layer.gradients).items()}
given = large.tobytes()[:4096]
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), -1))
for call in (lambda: layer(large, training=True), lambda: layer(large),
             lambda: numbabn.normalize(large, layer.moving_mean, layer.moving_variance)):
    try:
        call()
    except MemoryError:
        pass
    else:
        raise AssertionError("there was memory")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert before == {name: each.tobytes() for name, each in (layer.weights | layer.gradients).items()}
assert large.tobytes()[:4096] == given
layer.backward(x)
arrays()
"""
    run(SETUP + program)
