"""What is kept for shapes, layers and calls has an end, whatever comes."""

import sys

import pytest
from programs import KERAS, SETUP, run

pytestmark = [
    pytest.mark.jit,
    pytest.mark.timeout(4000),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others count otherwise"),
]

COUNT = """
def resident():
    import gc
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def files():
    return len(os.listdir("/proc/self/fd"))

def grows(call, number):
    '''MiB and files that the second half of a number of calls takes, of a shape each.'''
    for turn in range(number // 2):
        call(turn)
    memory, opened = resident(), files()
    for turn in range(number // 2, number):
        call(turn)
    return resident() - memory, files() - opened
"""
# What an allocator may have more of after as many calls again; a kilobyte a call would be 5.
SLACK = 4


def check(printed):
    memory, opened = map(int, printed.split()[-2:])
    assert memory <= SLACK
    assert opened <= 0


# 10 000 shapes: twice what the largest of the tables of plans holds, and a few more.
def test_shapes_of_functions():
    program = """
import numbabn
from numbabn import layout
from numbabn.cpu import launch
x = np.ones((12000, 2), np.float32)
on = np.ones((12000, 2), bool)
def call(turn):
    rows = 2 + turn
    y, saved = numbabn.batch_norm_forward(x[:rows], mask=on[:rows] if turn % 3 == 0 else None)
    numbabn.batch_norm_backward(y, x[:rows], saved)
print(*grows(call, 10000))
assert launch._plan.cache_info().currsize == launch._plan.cache_info().maxsize == 4096
"""
    check(run(SETUP + COUNT + program))


def test_shapes_of_a_layer_over_arrays():
    program = """
import numbabn
x = np.ones((12000, 2), np.float32)
layer = numbabn.BatchNormalization(renorm=True, reuse_outputs=True)
def call(turn):
    layer.backward(layer(x[:2 + turn], training=True))
print(*grows(call, 10000))
"""
    check(run(SETUP + COUNT + program))


@pytest.mark.on("torch", "tensorflow")
def test_shapes_of_an_eager_layer(framework):
    program = """
x = ops.convert_to_tensor(np.ones((12000, 1), np.float32))
limited = BatchNormalization(renorm=True, renorm_clipping={"rmax": lambda: 3.0})
limited.build((None, 1))
def call(turn):
    if BACKEND == "torch":
        y = limited(x[:2 + turn].clone().requires_grad_(), training=True)
        y.sum().backward()
    else:
        with tf.GradientTape() as tape:
            y = limited(x[:2 + turn], training=True)
        tape.gradient(y, limited.gamma.value)
print(*grows(call, 10000))
if BACKEND == "tensorflow":
    from numbabn.embedded.tensorflow import records
    kept = [each() for each in records._entries.values() if each() is not None]
    assert kept and max(len(each.records) for each in kept) <= records.MOST_RECORDS
    assert max(len(each.retired) for each in kept) <= records.MOST_RECORDS
"""
    check(run(KERAS + COUNT + program, backend=framework))


@pytest.mark.on("tensorflow")
def test_shapes_of_a_graph():
    program = """
x = tf.ones((12000, 1))
single = BatchNormalization()
single.build((None, 1))
graph = tf.function(lambda x: single(x, training=True),
                    input_signature=[tf.TensorSpec((None, 1))])
def call(turn):
    graph(x[:2 + turn])
print(*grows(call, 10000))
"""
    check(run(KERAS + COUNT + program, backend="tensorflow"))


@pytest.mark.on("tensorflow")
def test_a_momentum_for_each_step():
    """Each is a spec of its own; gradient tapes keep theirs."""
    program = """
from numbabn.embedded.tensorflow import records
x = tf.random.normal((50, 16))
held = []
def call(turn):
    layer.momentum = 0.5 + turn / 100000
    if turn < 20:
        tape = tf.GradientTape(persistent=True)
        with tape:
            y = layer(x, training=True)
        held.append((tape, y))
    else:
        layer(x, training=True)
memory, opened = grows(call, 10000)
assert len(records._states) <= records.MOST_SPECS + 100, len(records._states)
assert len(records._by_spec) <= 2 * records.MOST_SPECS + 200
for tape, y in held:
    # The gradient of a sum of normalized values is 0 in gamma, and the number of rows in beta.
    found = tape.gradient(y, layer.beta.value)
    np.testing.assert_allclose(found, np.full(16, 50.0), 1e-5)
print(memory, opened)
"""
    check(run(KERAS + COUNT + program, backend="tensorflow"))


@pytest.mark.on("jax")
def test_shapes_on_jax():
    """JAX keeps what it compiles, within its own bounds; here is what numbabn keeps."""
    program = """
from numbabn.cpu import launch
x = np.ones((400, 16), np.float32)
for turn in range(200):
    compiled_step(x[:2 + turn])
assert launch._plan.cache_info().currsize <= 4096
for turn in range(5000):
    compiled_step(x[:2 + turn % 200])
memory, opened = grows(lambda turn: compiled_step(x[:2 + turn % 200]), 5000)
print(memory, opened)
"""
    check(run(KERAS + COUNT + program, backend="jax"))


def test_layers_that_come_and_go(framework):
    program = """
from numbabn.embedded import callbacks
callbacks._MOST_RECENT = 50
x = ops.convert_to_tensor(BATCHES[0][0])
for _ in range(60):
    new_layer(renorm=True, renorm_clipping={"rmax": lambda: 3.0})(x, training=True)
import gc
gc.collect()
# What is gone goes from the tables with the next that comes.
new_layer(renorm=True, renorm_clipping={"rmax": lambda: 3.0})(x, training=True)
assert len(callbacks._readers) <= 50 + 6, len(callbacks._readers)
assert len(callbacks._indices) <= 50 + 6
"""
    run(KERAS + program, backend=framework)


@pytest.mark.on("tensorflow", "jax")
def test_a_program_that_outlives_its_layer(framework):
    """It still has its limits, whatever came since."""
    program = """
import gc, weakref
from numbabn.embedded import callbacks
callbacks._MOST_RECENT = 3
limited = new_layer(renorm=True, renorm_clipping={"rmax": lambda: 3.0})
x = ops.convert_to_tensor(BATCHES[1][0])
if BACKEND == "jax":
    values = [[each.value for each in one] for one in
              (limited.trainable_variables, limited.non_trainable_variables)]
    program = jax.jit(lambda x: limited.stateless_call(*values, x, training=True)[0])
    program = program.lower(x).compile()
else:
    program = tf.function(lambda x: limited(x, training=True)).get_concrete_function(x)
expected = np.asarray(program(x))
if BACKEND == "jax":
    del limited, values
for _ in range(10):
    new_layer(renorm=True, renorm_clipping={"rmax": lambda: 2.0})(x, training=True)
gc.collect()
found = np.asarray(program(x))
if BACKEND == "jax":
    np.testing.assert_array_equal(found, expected)
else:
    # Its statistics have moved.
    assert np.isfinite(found).all()
"""
    run(KERAS + program, backend=framework)
