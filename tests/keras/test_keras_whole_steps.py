"""A step of the Keras layer moves all of its statistics, or none."""

import signal

import keras
import numpy as np
import pytest
from backends import TRAINS, array
from keras import ops

import numbabn
from interrupting import interrupted_at, interrupts_raised
from numbabn.interrupts import Uninterrupted
from numbabn.keras import BatchNormalization

pytestmark = pytest.mark.skipif(not TRAINS, reason="there are no steps on this backend")

X = np.random.default_rng(0).normal(2.0, 3.0, (8, 3)).astype(np.float32)
STATISTICS = ["moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev"]
# Lines of the package that an eager step runs, at least.
LEAST_LINES = 40


def built():
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": 3.0})
    layer.build(X.shape)
    return layer


def snapshot(layer):
    return {weight.name: array(weight.value).tobytes() for weight in layer.weights}


def stepped(layer):
    layer(ops.convert_to_tensor(X), training=True)
    return snapshot(layer)


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("error", [MemoryError("none left"), ValueError("no"), SystemExit(1)])
def test_an_error_between_two_assignments(error, place, monkeypatch):
    layer = built()
    stepped(layer)
    before = snapshot(layer)
    variable = getattr(layer, STATISTICS[place])

    def fail(value):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(variable, "assign", fail)
        with pytest.raises(type(error)) as raised:
            layer(ops.convert_to_tensor(X), training=True)
    assert error is raised.value or str(error) in str(raised.value)
    assert snapshot(layer) == before
    stepped(layer)
    assert snapshot(layer) != before


@pytest.mark.parametrize("place", range(5))
def test_an_interrupt_between_two_assignments(place, monkeypatch):
    layer = built()
    expected = stepped(built())
    variable = getattr(layer, STATISTICS[place])
    assign = variable.assign

    def interrupted(value):
        signal.raise_signal(signal.SIGINT)
        return assign(value)

    monkeypatch.setattr(variable, "assign", interrupted)
    with interrupts_raised(), pytest.raises(KeyboardInterrupt):
        layer(ops.convert_to_tensor(X), training=True)
    assert snapshot(layer) == expected


# A callback that Python did not even begin is asked for again; Python tells of it all the same.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored on calling ctypes:pytest.PytestUnraisableExceptionWarning"
)
def test_an_interrupt_at_each_line():
    layer = built()
    before, after = snapshot(layer), stepped(layer)
    x = ops.convert_to_tensor(X)
    states, line, raised = [], 0, True
    while raised:
        layer = built()
        raised = interrupted_at(
            line, numbabn.__path__[0], lambda layer=layer: layer(x, training=True)
        )
        found = snapshot(layer)
        assert found in (before, after), line
        states.append(found == after)
        line += 1
    assert line > LEAST_LINES
    assert states == sorted(states)


def test_interrupts_come_after_what_is_not_to_be_interrupted():
    done = []
    with interrupts_raised():

        def step():
            with Uninterrupted():
                for number in (1, 2):
                    signal.raise_signal(signal.SIGINT)
                    done.append(number)

        with pytest.raises(KeyboardInterrupt):
            step()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert done == [1, 2]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Uninterrupted():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


def test_statistics_that_are_traced_are_assigned_by_the_program():
    if keras.backend.backend() == "jax":
        import jax

        layer, x = built(), ops.convert_to_tensor(X)
        values = [[v.value for v in each] for each in
                  (layer.trainable_variables, layer.non_trainable_variables)]  # fmt: skip

        def step(x):
            return layer.stateless_call(*values, x, training=True)[1]

        found = dict(zip([v.name for v in layer.non_trainable_variables], jax.jit(step)(x),
                         strict=True))  # fmt: skip
        assert {name: array(each).tobytes() for name, each in found.items()}.items() <= stepped(
            built()
        ).items()
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        layer = built()
        tf.function(lambda x: layer(x, training=True))(ops.convert_to_tensor(X))
        assert snapshot(layer) == stepped(built())
