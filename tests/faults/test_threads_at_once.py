"""Threads that use the functions, and one layer of Keras, at the same time."""

import pytest
from programs import KERAS, SETUP, run

pytestmark = [pytest.mark.jit, pytest.mark.timeout(4000)]
NUMBER = 8


def test_functions(soak):
    program = f"print(in_threads(arrays, {NUMBER}, float(sys.argv[1])))"
    assert int(run(SETUP + program, soak, timeout=soak + 250)) >= NUMBER


def test_a_layer(framework, soak):
    """Statistics of batches that come at once are those of some order of them: finite here."""
    program = f"""
work()
print(in_threads(work, {NUMBER}, float(sys.argv[1])))
for weight in layer.weights:
    assert np.isfinite(ops.convert_to_numpy(weight.value)).all(), weight.name
assert abs(ops.convert_to_numpy(layer.moving_mean.value) - 3.0).max() < 3.5
work()
"""
    assert int(run(KERAS + program, soak, backend=framework, timeout=soak + 250)) >= NUMBER


def test_layers_that_come_and_go(framework, soak):
    """Limits of renorm are read by index: none is read of a layer that is gone."""
    program = f"""
def work():
    limit = random.random() + 0.5
    own = new_layer(renorm=True, renorm_clipping={{"rmax": lambda: limit, "dmax": lambda: 1.0}})
    y = own(ops.convert_to_tensor(BATCHES[1][0]), training=True)
    # The first reference is 0 and 1, and x is 3 and 2: r is at its limit, and d is 1.
    y = ops.convert_to_numpy(y.detach() if BACKEND == "torch" else y)
    found = (y - 1.0) / BATCHES[1][1]
    # y is rounded at 1e-7 of up to 8, over values near 0 too; the middle is exact enough.
    assert abs(np.median(found) - limit) < 1e-4, (np.median(found), limit)
work()
print(in_threads(work, {NUMBER}, float(sys.argv[1])))
"""
    # Each layer is compiled for on JAX, and 8 threads wait for one compiler.
    assert int(run(KERAS + program, soak, backend=framework, timeout=soak + 250)) >= NUMBER


@pytest.mark.on("tensorflow")
def test_a_layer_in_tf_data(soak):
    program = """
x = np.tile(BATCHES[1][0], (64, 1, 1))
until = time.monotonic() + float(sys.argv[1])
rounds = 0
while rounds == 0 or time.monotonic() < until:
    data = tf.data.Dataset.from_tensor_slices(x)
    data = data.map(lambda x: layer(x, training=True), num_parallel_calls=8).prefetch(4)
    for y in data:
        right(y, BATCHES[1][1])
    rounds += 1
print(rounds)
"""
    assert int(run(KERAS + program, soak, backend="tensorflow", timeout=soak + 250)) >= 1


def test_the_number_of_threads_changes_all_the_time(soak):
    program = """
import numba
def changing():
    numba.set_num_threads(random.choice([1, 2, 3]))
    arrays()
print(in_threads(changing, 4, float(sys.argv[1])))
"""
    run(SETUP + program, soak, timeout=soak + 250, NUMBA_NUM_THREADS="3")
