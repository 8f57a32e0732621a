"""What Python raises while a compiled program asks it: nothing crashes, and nothing is lost."""

import signal

import keras
import numpy as np
import pytest
from backends import BACKEND

from numbabn.embedded import callbacks
from numbabn.keras import BatchNormalization

ERRORS = [KeyboardInterrupt(), MemoryError("no more"), ValueError("not now"), SystemExit(3)]
X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def interruptible():
    """Interrupts are raised, where the tests run in the background too, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Once:
    """A limit that raises an error when it is first read."""

    def __init__(self, error):
        self.errors = [error]

    def __call__(self):
        if self.errors:
            raise self.errors.pop()
        return 3.0


def traced(layer):
    """A training call of a layer in a graph, or under jit."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: layer(x, training=True))
    import jax

    def call(x):
        trainable, others = layer.trainable_variables, layer.non_trainable_variables
        values = ([v.value for v in trainable], [v.value for v in others])
        return layer.stateless_call(*values, x, training=True)[0]

    compiled = jax.jit(call)
    return lambda x: jax.block_until_ready(compiled(x))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", ["eager", "traced"])
def test_an_error_of_a_reader(way, error):
    layer = BatchNormalization(renorm=True)
    expected = keras.ops.convert_to_numpy(layer(X, training=True))
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": lambda: 3.0})
    layer.build(X.shape)
    layer.renorm_clipping = {"rmax": Once(error)}
    call = traced(layer) if way == "traced" else lambda x: layer(x, training=True)
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        np.asarray(call(X))
    if isinstance(error, KeyboardInterrupt):
        assert raised.type is KeyboardInterrupt
    elif way == "eager" and BACKEND == "tensorflow":
        assert raised.type is type(error)
    else:
        assert str(error) in str(raised.value)
    np.testing.assert_allclose(np.asarray(call(X)).shape, expected.shape)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends know shapes when they trace")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_while_a_record_is_made(error, monkeypatch):
    from numbabn.embedded.tensorflow import records

    layer = BatchNormalization()
    layer(X, training=True)
    make, errors = records._make_record, [error]

    def make_record(*arguments):
        if errors:
            raise errors.pop()
        return make(*arguments)

    monkeypatch.setattr(records, "_make_record", make_record)
    # A shape that no other test has had.
    x = np.ones((1001 + ERRORS.index(error), 3), np.float32)
    with pytest.raises(type(error)):
        layer(x, training=True)
    assert layer(x, training=True).shape == x.shape


def test_a_request_that_an_interrupt_comes_between_stays_open():
    """So that it is asked again."""

    @callbacks.answers
    def answer(first, *_):
        raise errors.pop() if errors else ValueError(f"no {first}")

    errors = [KeyboardInterrupt()]
    request = np.zeros(callbacks.REQUEST, np.int64)
    request[2] = 7
    answer(request.ctypes.data)
    assert request[callbacks.STATUS] == callbacks.OPEN
    answer(request.ctypes.data)
    assert request[callbacks.STATUS] == callbacks.FAILED
    assert request[callbacks.REASON :].tobytes().startswith(b"no 7\0")
