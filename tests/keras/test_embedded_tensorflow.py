"""Programs of TensorFlow that call the kernels: what is TensorFlow's own, above all open shapes."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from callers import attributes_of, caller_of
from operands import make_inputs

from numbabn.embedded import tensorflow
from numbabn.embedded.operations import FORWARD, RUN_BACKWARD, RUN_SUMS
from numbabn.embedded.tensorflow import operator, records
from numbabn.keras.bridges import tensorflow as bridge
from numbabn.keras.functions import INFERENCE, TRAINING
from numbabn.keras.gradient import apply
from processes import run_python

pytestmark = pytest.mark.jit

WEIGHTS = np.random.default_rng(1).normal(size=(16, 8, 16, 32))
PLAIN = attributes_of()
caller = caller_of("tensorflow")
NOT_LOADED = (
    "numbabn: the kernels of this program are not loaded: it was not traced in this process"
)
MISFIT = "numbabn: the size or dtype of a buffer is not what this program was traced for"
train = caller.train


def gradients(x, gamma, beta, watched=("x", "gamma", "beta")):
    """The gradients of a loss with respect to those that are watched."""
    tensors = {"x": x, "gamma": gamma, "beta": beta}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([tensors[name] for name in watched])
        loss = loss_of(train(x, gamma, beta)["y"])
    return tape.gradient(loss, [tensors[name] for name in watched])


def loss_of(y):
    """A loss whose gradient takes no arithmetic: the same bits eagerly and in a graph."""
    return tf.reduce_sum(y * tf.constant(WEIGHTS, y.dtype))


def nodes(function, *arguments):
    """What the kernels' nodes of a graph compute: their specs."""
    graph = function.get_concrete_function(*arguments).graph
    found = [node for node in graph.get_operations() if node.type == tensorflow.OPERATOR]
    return [records.spec_of(node.get_attr("spec")) for node in found]


@pytest.fixture
def batch():
    """x, gamma and beta, of a size that goes to several threads."""
    inputs = make_inputs((16, 8, 16, 32), -1)
    return tuple(tf.constant(inputs[name]) for name in ("x", "gamma", "beta"))


def test_not_available_without_the_c_api(monkeypatch):
    monkeypatch.setattr(operator, "OPERATOR", "NumbabnOther")
    monkeypatch.setattr(tf.sysconfig, "get_lib", lambda: "/nowhere")
    monkeypatch.setattr(operator, "register", operator._register.__wrapped__)
    assert tensorflow.is_available.__wrapped__() is False


def test_channel_axes_with_another_between():
    """TensorFlow's memory is not as the kernels want it: Python copies."""
    inputs = make_inputs((4, 5, 6), (0, 2))
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    for axis, served in (((0, 1), True), ((-1, 1), True), ((0, 2), False)):
        assert tensorflow.serves(FORWARD, tensors, attributes_of(axis)) == served
    attributes = attributes_of((0, 2))
    expected = caller.on_host(FORWARD, inputs, attributes, ("y",))["y"]
    for run in (apply, tf.function(apply)):
        np.testing.assert_array_equal(run(bridge, TRAINING, tensors, attributes)["y"], expected)


# Shapes


def test_shapes_are_looked_up_once(monkeypatch):
    made = []

    def spy(spec, signature, make=records._make_record):
        made.append(tuple(signature[:3]))
        return make(spec, signature)

    monkeypatch.setattr(records, "_make_record", spy)
    attributes = replace(PLAIN, epsilon=2e-3)
    ones = tf.ones(3)
    run = tf.function(
        lambda x: train(x, ones, ones, attributes=attributes)["y"],
        input_signature=[tf.TensorSpec([None, 3])],
    )
    for size in (4, 5, 4, 5, 0, 4):
        x = tf.random.normal((size, 3))
        mean, variance = tf.nn.moments(x, 0)
        expected = (x - mean) / tf.sqrt(variance + 2e-3) + 1
        np.testing.assert_allclose(run(x), expected, 1e-5, 1e-5)
    assert made == [(2, 4, 3), (2, 5, 3), (2, 0, 3)]
    monkeypatch.setattr(records, "MOST_RECORDS", 3)
    for size in (7, 7, 4, 5, 7):
        # With the fourth shape all are made anew.
        assert run(tf.ones((size, 3))).shape == (size, 3)
    assert made[3:] == [(2, 7, 3), (2, 4, 3), (2, 5, 3)]


def test_retracing(batch):
    x, gamma, beta = batch
    run = tf.function(lambda x: train(x, gamma, beta)["y"])
    for size in (2, 5, 2):
        np.testing.assert_array_equal(run(x[:size]), train(x[:size], gamma, beta)["y"])
    assert run.experimental_get_tracing_count() == 2


# Gradients


def test_gradient_around_and_within_graphs(batch):
    """By a tape outside of the graph, by tf.gradients, and through a loop."""
    expected = gradients(*batch)
    loss = tf.function(lambda *arguments: loss_of(train(*arguments)["y"]))
    with tf.GradientTape() as tape:
        tape.watch(batch)
        outside = tape.gradient(loss(*batch), batch)
    graph = tf.function(lambda *each: tf.gradients(loss_of(train(*each)["y"]), each))

    @tf.function
    def loop(x, gamma, beta):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            total = tf.constant(0.0)
            for _ in tf.range(1):
                total += loss_of(train(x, gamma, beta)["y"])
        return tape.gradient(total, [x, gamma, beta])

    for found in (outside, graph(*batch), loop(*batch)):
        for actual, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize(
    ("watched", "computed"),
    [
        (("x", "gamma", "beta"), ("dx", "dgamma", "dbeta")),
        (("gamma", "beta"), ("dgamma", "dbeta")),
        (("beta",), ("dbeta",)),
        (("x",), ("dx",)),
    ],
)
def test_gradients_that_nobody_asks_for(batch, watched, computed, monkeypatch):
    """A tape that does not watch x: dx is computed neither eagerly nor in a graph."""
    run = tf.function(gradients)
    backward = nodes(run, *batch, watched)[1]
    assert backward.results == computed
    assert backward.run == (RUN_BACKWARD if "dx" in computed else RUN_SUMS)
    calls = []

    def spy(operation, inputs, readers, attributes, wanted, context, call=tensorflow.call):
        calls.append((operation, tuple(wanted)))
        return call(operation, inputs, readers, attributes, wanted, context)

    monkeypatch.setattr(tensorflow, "call", spy)
    eager = gradients(*batch, watched)
    assert calls[1] == ("batch_norm_backward", computed)
    everything = dict(zip(("x", "gamma", "beta"), gradients(*batch), strict=True))
    for name, one, other in zip(watched, eager, run(*batch, watched), strict=True):
        np.testing.assert_array_equal(one, everything[name])
        np.testing.assert_array_equal(other, everything[name])


def test_inference_computes_the_gradients_apart(batch):
    """So that a graph leaves out those of a frozen layer's parameters."""
    x, gamma, beta = batch

    @tf.function
    def run(x):
        moving = {"moving_mean": tf.zeros_like(gamma), "moving_variance": tf.ones_like(gamma)}
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            given = {"x": x, "gamma": gamma, "beta": beta, **moving}
            loss = tf.reduce_sum(apply(bridge, INFERENCE, given, PLAIN)["y"])
        return tape.gradient(loss, [x, gamma, beta])

    forward, sums, dx = nodes(run, x)
    assert forward.results == ("y",)
    assert {sums.results, dx.results} == {("dgamma", "dbeta"), ("dx",)}
    found = run(x)
    np.testing.assert_allclose(found[0], tf.broadcast_to(gamma / np.sqrt(1.001), x.shape), 1e-6)
    np.testing.assert_allclose(found[1], tf.reduce_sum(x, (0, 1, 2)) / np.sqrt(1.001), 1e-5)
    np.testing.assert_allclose(found[2], np.full(32, 2048.0))


# Errors


def test_mask_that_does_not_fit_in_an_open_shape(batch):
    x, gamma, beta = batch
    message = (
        r"mask of shape \(3,\) does not fit x of shape \(16, 8, 16, 32\): expected the rank of"
    )
    open_shapes = tf.function(
        lambda mask: train(x, gamma, beta, mask)["y"], input_signature=[tf.TensorSpec([None])]
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        open_shapes(tf.ones(3))


def test_parameters_that_do_not_fit(batch):
    x, gamma, _ = batch
    with pytest.raises(tf.errors.InvalidArgumentError, match=MISFIT):
        train(x, gamma, tf.ones(5))


def test_graph_of_another_process(batch):
    """What it calls is known to the process that traced it only."""
    x, gamma, beta = batch
    run = tf.function(lambda x: train(x, gamma, beta)["y"]).get_concrete_function(x)
    definition = run.graph.as_graph_def()
    for node in definition.node:
        if node.op == tensorflow.OPERATOR:
            node.attr["spec"].i = 10**9
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        feed, *_ = tf.graph_util.import_graph_def(definition, return_elements=["x:0"])
        (node,) = (each for each in session.graph.get_operations() if "Numbabn" in each.type)
        with pytest.raises(tf.errors.FailedPreconditionError, match=NOT_LOADED):
            session.run(node.outputs[0], {feed: x.numpy()})


# Threads and processes


@pytest.mark.parametrize(("numba", "intra_op", "others"), [(1, 4, 0), (3, 4, 2), (4, 2, 1)])
def test_threads(numba, intra_op, others):
    """As many as Numba and TensorFlow were told to use; a forked child does without."""
    output = run_python(
        _THREADS,
        str(intra_op),
        KERAS_BACKEND="tensorflow",
        NUMBA_NUM_THREADS=str(numba),
        PYTHONWARNINGS="ignore",
    )
    assert output.split() == [str(numba - 1), str(others), "1", "0", "0"]


_THREADS = """
import os, sys
import tensorflow as tf
from numbabn.cpu import pool
from numbabn.embedded import tensorflow
from numbabn.embedded.table import AT, TABLE

tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
assert tensorflow.is_available()
from numbabn.embedded.tensorflow import kernel
print(pool.TABLE.entries[pool.TABLE.at.seat_count])
print(kernel.TABLE.entries[kernel.TABLE.at.most_others])
print(TABLE.entries[AT.is_parallel], flush=True)
child = os.fork()
if child == 0:
    print(TABLE.entries[AT.is_parallel])
    print(pool.TABLE.entries[pool.TABLE.at.seat_count], flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
