"""Kernels that TensorFlow calls: the same bits as on NumPy arrays, eagerly and in graphs."""

import os
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numba
import numpy as np
import pytest

from processes import run_python

if os.environ.get("KERAS_BACKEND") != "tensorflow":
    pytest.skip("needs KERAS_BACKEND=tensorflow", allow_module_level=True)

import tensorflow as tf
from operands import PLAIN, make_inputs, training_outputs

from numbabn.cpu import launch
from numbabn.embedded import table
from numbabn.embedded import tensorflow as tensorflow_op
from numbabn.embedded.tensorflow import operator as registration
from numbabn.embedded.tensorflow import records as specs
from numbabn.keras.bridges import Late
from numbabn.keras.bridges import tensorflow as bridge
from numbabn.keras.operations import INFERENCE, TRAINING, Attributes

pytestmark = pytest.mark.jit

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
WEIGHTS = np.random.default_rng(1).normal(size=(16, 8, 16, 32))
RENORM = Attributes(-1, 1e-3, 0.9, renorm=True, renorm_momentum=None)


def opened(run, inputs):
    """`run` as one graph in which every size but that of a channel is open."""
    signature = {
        name: tf.TensorSpec(
            [None] * (value.ndim - 1) + [value.shape[-1]]
            if name in ("x", "dy", "mask") and value.ndim > 1
            else value.shape,
            value.dtype,
        )
        for name, value in inputs.items()
    }
    return tf.function(run, input_signature=[signature])


def check_operation(operation, inputs, attributes, wanted):
    """Check that eager calls and graphs have the bits of the host's; returns the outputs."""

    def run(tensors):
        return tensorflow_op.call(operation.name, tensors, {}, attributes, wanted)

    expected = operation.host(inputs, attributes, wanted, None)
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    runs = [run, tf.function(run)]
    broadcast = "mask" in inputs and 1 in inputs["mask"].shape[: inputs["x"].ndim - 1]
    if attributes.axis == -1:
        runs.append(opened(run, tensors))
    for each in runs:
        results = {name: tensor.numpy() for name, tensor in each(tensors).items()}
        assert set(results) == set(wanted)
        for name in wanted:
            actual = results[name]
            assert (actual.dtype, actual.shape) == (expected[name].dtype, expected[name].shape)
            if broadcast:
                # The kernels read such a mask through its strides, in steps of other lengths.
                np.testing.assert_allclose(actual, expected[name], 1e-5, 1e-6, err_msg=name)
            else:
                assert actual.tobytes() == expected[name].tobytes(), name
    return results


def train(x, gamma, beta, mask=None, attributes=PLAIN, **limits):
    """The results of a training call through the bridge, from moving statistics of 0 and 1."""
    moving = {"moving_mean": tf.zeros_like(gamma), "moving_variance": tf.ones_like(gamma)}
    given = {"x": x, "gamma": gamma, "beta": beta, "mask": mask, **moving, **limits}
    return bridge.apply(TRAINING, given, attributes)


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
    """What the kernels' nodes of a graph compute: the names of their outputs, by their steps."""
    graph = function.get_concrete_function(*arguments).graph
    found = [node for node in graph.get_operations() if node.type == tensorflow_op.OPERATOR]
    return [specs.spec_of(node.get_attr("spec")) for node in found]


@pytest.fixture
def batch():
    """x, gamma and beta, of a size that goes to several threads."""
    inputs = make_inputs((16, 8, 16, 32), -1)
    return tuple(tf.constant(inputs[name]) for name in ("x", "gamma", "beta"))


def test_available():
    assert tensorflow_op.is_available()


def test_not_available_without_the_jit(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert tensorflow_op.is_available.__wrapped__() is False


def test_not_available_where_tensorflow_refuses(monkeypatch):
    monkeypatch.setattr(registration, "OPERATOR", "Identity")  # It has one of that name.
    monkeypatch.setattr(registration, "register", registration._register.__wrapped__)
    assert tensorflow_op.is_available.__wrapped__() is False


def test_not_available_without_the_c_api(monkeypatch):
    monkeypatch.setattr(registration, "OPERATOR", "NumbabnOther")
    monkeypatch.setattr(tf.sysconfig, "get_lib", lambda: "/nowhere")
    monkeypatch.setattr(registration, "register", registration._register.__wrapped__)
    assert tensorflow_op.is_available.__wrapped__() is False


def test_python_where_it_is_not_available(monkeypatch, batch):
    expected = gradients(*batch)
    monkeypatch.setattr(tensorflow_op, "is_available", lambda: False)
    run = tf.function(gradients)
    for actual in (gradients(*batch), run(*batch)):
        for each, wanted in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(each, wanted)
    types = {node.type for node in run.get_concrete_function(*batch).graph.get_operations()}
    assert "PyFuncStateless" in types
    assert tensorflow_op.OPERATOR not in types


def test_no_python_in_the_graph(batch):
    run = tf.function(gradients)
    types = [node.type for node in run.get_concrete_function(*batch).graph.get_operations()]
    assert not any("PyFunc" in each for each in types)
    assert types.count(tensorflow_op.OPERATOR) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((64, 32), -1),
        ((4, 8, 9, 9), 1),  # rows: an inner run shorter than a vector's
        ((8, 16, 28, 28), 1),  # several threads
        ((32, 14, 14, 64), -1),
        ((4, 5, 6), (0, 1)),
        ((5, 1, 7), -1),
        ((0, 3), -1),
    ],
)
def test_training(shape, axis, dtype):
    attributes = Attributes(axis, 1e-3, 0.9, renorm=False, renorm_momentum=None)
    inputs = make_inputs(shape, axis, dtype)
    outputs = check_operation(TRAINING.forward, inputs, attributes, training_outputs(inputs))
    gradient = {"x": inputs["x"], "dy": inputs["x"][::-1].copy(), "values": outputs["values"]}
    for wanted in (("dx", "dgamma", "dbeta"), ("dgamma", "dbeta"), ("dx",)):
        check_operation(TRAINING.backward, gradient, attributes, wanted)


@pytest.mark.parametrize("renorm", [None, "separate", "shared"])
@pytest.mark.parametrize("mask", [None, (6, 1, 20, 1), (6, 4, 20), (6, 4, 20, 3), (1, 4, 1, 3)])
@pytest.mark.parametrize("axis", [-1, 1])
def test_masks_and_renorm(axis, mask, renorm):
    momentum = 0.8 if renorm == "separate" else None
    attributes = Attributes(axis, 1e-3, 0.9, renorm=bool(renorm), renorm_momentum=momentum)
    inputs = make_inputs((6, 4, 20, 3), axis, renorm=renorm, mask=mask)
    outputs = check_operation(TRAINING.forward, inputs, attributes, training_outputs(inputs))
    gradient = {name: inputs[name] for name in ("x", "mask") if name in inputs}
    gradient |= {"dy": inputs["x"][::-1].copy(), "values": outputs["values"]}
    check_operation(TRAINING.backward, gradient, attributes, ("dx", "dgamma", "dbeta"))


@pytest.mark.parametrize("shape", [(6, 1), (1, 20), (6, 20), (1, 1)])
def test_mask_of_a_single_channel(shape):
    inputs = make_inputs((6, 20, 1), -1, mask=shape)
    check_operation(TRAINING.forward, inputs, PLAIN, training_outputs(inputs))


@pytest.mark.parametrize("dtype", [np.int32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_of_masks(dtype, batch):
    on = np.random.default_rng(0).random((16, 8, 16)) < 0.7
    expected = train(*batch, mask=tf.constant(on))["y"]
    actual = train(*batch, mask=tf.constant((3 * on).astype(dtype)))["y"]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((64, 32), -1), ((4, 8, 9, 9), 1), ((64, 64, 16), -1)])
def test_inference(shape, axis, dtype):
    attributes = Attributes(axis, 1e-3, 0.9, renorm=False, renorm_momentum=None)
    inputs = make_inputs(shape, axis, dtype)
    check_operation(INFERENCE.forward, inputs, attributes, ("y",))
    gradient = {**inputs, "dy": inputs["x"][::-1].copy()}
    del gradient["beta"]
    for wanted in (("dx", "dgamma", "dbeta"), ("dgamma",), ("dx",)):
        check_operation(INFERENCE.backward, gradient, attributes, wanted)


@pytest.mark.parametrize("dtype", [tf.float16, tf.float64])
def test_parameters_of_another_dtype(batch, dtype):
    """They are rounded on their way in and out only."""
    x, gamma, beta = batch
    others = [tf.cast(each, dtype) for each in (gamma, beta)]
    found = gradients(x, *others)
    expected = gradients(x, *(tf.cast(each, tf.float32) for each in others))
    for each, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each, tf.cast(wanted, each.dtype))


def test_channel_axes_with_another_between():
    """TensorFlow's memory is not as the kernels want it: Python copies."""
    assert tensorflow_op.serves((0, 1), 3)
    assert tensorflow_op.serves((-1, 1), 3)
    assert not tensorflow_op.serves((0, 2), 3)
    attributes = Attributes((0, 2), 1e-3, 0.9, renorm=False, renorm_momentum=None)
    inputs = make_inputs((4, 5, 6), (0, 2))
    expected = TRAINING.forward.host(inputs, attributes, None, None)["y"]
    for run in (bridge.apply, tf.function(bridge.apply)):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        np.testing.assert_array_equal(run(TRAINING, tensors, attributes)["y"], expected)


# Shapes


def test_shapes_are_looked_up_once(monkeypatch):
    made = []

    def spy(spec, signature, make=specs._make_record):
        made.append(tuple(signature[:3]))
        return make(spec, signature)

    monkeypatch.setattr(specs, "_make_record", spy)
    attributes = Attributes(-1, 2e-3, 0.9, renorm=False, renorm_momentum=None)
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
    monkeypatch.setattr(specs, "MOST_RECORDS", 0)
    for _ in range(2):
        assert run(tf.ones((7, 3))).shape == (7, 3)
    assert made[3:] == [(2, 7, 3), (2, 7, 3)]


def test_retracing(batch):
    x, gamma, beta = batch
    run = tf.function(lambda x: train(x, gamma, beta)["y"])
    for size in (2, 5, 2):
        np.testing.assert_array_equal(run(x[:size]), train(x[:size], gamma, beta)["y"])
    assert run.experimental_get_tracing_count() == 2


# Gradients


def test_gradient_of_a_composition(batch):
    def by_hand(x, gamma, beta):
        mean, variance = tf.nn.moments(x, (0, 1, 2))
        return loss_of(gamma * (x - mean) / tf.sqrt(variance + 1e-3) + beta)

    tensors = [tf.cast(each, tf.float64) for each in batch]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = by_hand(*tensors)
    for actual, wanted in zip(gradients(*batch), tape.gradient(loss, tensors), strict=True):
        scale = float(tf.reduce_max(tf.abs(wanted)))
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=5e-6 * scale)


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
    assert backward.steps == (launch.BACKWARD if "dx" in computed else launch.SUMS)
    calls = []

    def spy(operation, inputs, readers, attributes, wanted, context, call=tensorflow_op.call):
        calls.append((operation, tuple(wanted)))
        return call(operation, inputs, readers, attributes, wanted, context)

    monkeypatch.setattr(tensorflow_op, "call", spy)
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
            loss = tf.reduce_sum(bridge.apply(INFERENCE, given, PLAIN)["y"])
        return tape.gradient(loss, [x, gamma, beta])

    forward, sums, dx = nodes(run, x)
    assert forward.results == ("y",)
    assert {sums.results, dx.results} == {("dgamma", "dbeta"), ("dx",)}
    found = run(x)
    np.testing.assert_allclose(found[0], tf.broadcast_to(gamma / np.sqrt(1.001), x.shape), 1e-6)
    np.testing.assert_allclose(found[1], tf.reduce_sum(x, (0, 1, 2)) / np.sqrt(1.001), 1e-5)
    np.testing.assert_allclose(found[2], np.full(32, 2048.0))


# Errors


def test_second_derivative(batch):
    with tf.GradientTape() as tape:
        tape.watch(batch)
        found = gradients(*batch)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        tape.gradient(found, batch)


def test_limits_are_read_when_the_program_runs(batch):
    limits = {"rmin": 0.0, "rmax": 1.0, "dmax": 0.5}
    late = {name: Late(lambda name=name: limits[name]) for name in limits}
    run = tf.function(lambda *arguments: train(*arguments, attributes=RENORM, **late)["y"])

    def given(*arguments):
        return train(*arguments, attributes=RENORM, **limits)["y"]

    first = run(*batch)
    np.testing.assert_array_equal(first, given(*batch))
    limits["dmax"] = 0.25
    np.testing.assert_array_equal(run(*batch), given(*batch))
    assert not np.array_equal(run(*batch), first)
    limits["dmax"] = -1.0
    message = r"renorm clipping: dmax must not be negative, got -1\.0"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        run(*batch)
    limits["dmax"] = float("nan")
    with pytest.raises(tf.errors.InvalidArgumentError, match="dmax must be a number, got nan"):
        run(*batch)


def test_limit_that_cannot_be_read(batch, caplog):
    def read():
        raise KeyError("lost")

    limits = {"rmin": 0.0, "rmax": Late(read), "dmax": 1.0}
    with pytest.raises(tf.errors.InvalidArgumentError, match="KeyError: 'lost'"):
        train(*batch, attributes=RENORM, **limits)
    assert "cannot be read" in caplog.text


def test_mask_that_does_not_fit(batch):
    x, gamma, beta = batch
    message = r"mask of shape \(3,\) does not fit x of shape \(16, 8, 16, 32\)"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        train(x, gamma, beta, tf.ones(3, bool))
    open_shapes = tf.function(
        lambda mask: train(x, gamma, beta, mask)["y"], input_signature=[tf.TensorSpec([None])]
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        open_shapes(tf.ones(3))


def test_parameters_that_do_not_fit(batch):
    x, gamma, _ = batch
    with pytest.raises(tf.errors.InvalidArgumentError, match="the size or dtype of a buffer"):
        train(x, gamma, tf.ones(5))


def test_kernels_that_are_not_loaded(batch):
    x, gamma, beta = batch
    run = tf.function(lambda x: train(x, gamma, beta)["y"])
    run(x)
    steps = table.entries[table.STEPS :].copy()
    table.entries[table.STEPS :] = 0
    try:
        with pytest.raises(tf.errors.FailedPreconditionError, match="are not loaded"):
            run(x)
    finally:
        table.entries[table.STEPS :] = steps


def test_graph_of_another_process(batch):
    """What it calls is known to the process that traced it only."""
    x, gamma, beta = batch
    run = tf.function(lambda x: train(x, gamma, beta)["y"]).get_concrete_function(x)
    definition = run.graph.as_graph_def()
    for node in definition.node:
        if node.op == tensorflow_op.OPERATOR:
            node.attr["spec"].i = 10**9
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        feed, *_ = tf.graph_util.import_graph_def(definition, return_elements=["x:0"])
        (node,) = (each for each in session.graph.get_operations() if "Numbabn" in each.type)
        with pytest.raises(tf.errors.FailedPreconditionError, match="not traced in this process"):
            session.run(node.outputs[0], {feed: x.numpy()})


# Threads and processes


def test_calls_in_flight(batch):
    x, gamma, beta = batch
    run = tf.function(lambda x: train(x, gamma, beta)["y"])
    inputs = [x + i for i in range(4)]
    expected = [run(each).numpy() for each in inputs]

    @tf.function
    def at_once():
        return [train(each, gamma, beta)["y"] for each in inputs]

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for found in (pool.map(run, inputs), at_once()):
                for actual, wanted in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(actual, wanted)


def test_bits_do_not_depend_on_threads(batch):
    expected = train(*batch)["y"].numpy()
    table.entries[table.PARALLEL] = 0
    try:
        actual = train(*batch)["y"].numpy()
    finally:
        table.entries[table.PARALLEL] = 1
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("number", ["1", "3"])
def test_threads(number):
    """As many as Numba was told to use, started once; a forked child does without."""
    output = run_python(
        _THREADS, KERAS_BACKEND="tensorflow", NUMBA_NUM_THREADS=number, PYTHONWARNINGS="ignore"
    )
    assert output.split() == [str(int(number) - 1), "1", "0"]


_THREADS = """
import os
import tensorflow as tf
from numbabn.embedded import tensorflow as tensorflow_op
from numbabn.embedded import table

tf.config.threading.set_intra_op_parallelism_threads(4)
assert tensorflow_op.is_available()
print(table.entries[table.SEAT_COUNT], table.entries[table.PARALLEL], flush=True)
child = os.fork()
if child == 0:
    print(table.entries[table.PARALLEL], flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
