"""A step of the layer is whole, or was not at all, wherever an interrupt comes."""

import numpy as np
import pytest

import numbabn
from interrupting import interrupted_at

pytestmark = pytest.mark.only_on("cpu", reason="on a device the moving statistics move in place")

X = np.random.default_rng(3).normal(2.0, 3.0, (6, 4)).astype(np.float32)
DY = np.random.default_rng(4).normal(size=X.shape).astype(np.float32)
FOLDER = numbabn.__path__[0]
RENORM = {"renorm": True, "renorm_clipping": {"rmax": 3.0}}


def snapshot(layer):
    """All that a layer knows, by its bytes."""
    taped = layer._taped and (layer._taped[0].tobytes(), layer._taped[1].values.tobytes())
    return (
        {name: each.tobytes() for name, each in layer.weights.items()},
        {name: each.tobytes() for name, each in layer.gradients.items()},
        taped,
    )


def steps(options):
    """What is interrupted: how the layer comes to be, and the call."""

    def called():
        layer = numbabn.BatchNormalization(**options)
        layer(X[:3], training=True)
        layer.backward(DY[:3])
        return layer

    return [
        (lambda: numbabn.BatchNormalization(**options), lambda layer: layer(X, training=True)),
        (called, lambda layer: layer(X, training=True)),
        (called, lambda layer: layer(X)),
        (called, lambda layer: layer.backward(DY[:3])),
    ]


# Where kernels run as Python, there are too many lines.
@pytest.mark.jit
@pytest.mark.parametrize("number", range(4), ids=["first", "training", "inference", "backward"])
@pytest.mark.parametrize("options", [{}, RENORM], ids=["plain", "renorm"])
def test_an_interrupt_at_each_line(options, number):
    make, call = steps(options)[number]
    layer = make()
    before = snapshot(layer)
    call(layer)
    after = snapshot(layer)
    states, line, raised = [], 0, True
    while raised:
        layer = make()
        raised = interrupted_at(line, FOLDER, lambda layer=layer: call(layer))
        found = snapshot(layer)
        assert found in (before, after), line
        states.append(found == after)
        line += 1
        # What comes next is right, whichever it is.
        layer(X, training=True)
        assert np.isfinite(layer.backward(DY)).all()
    assert line > 20
    # Only the last lines come after the step.
    assert states == sorted(states)


@pytest.mark.parametrize("error", [MemoryError("none left"), ValueError("no"), SystemExit(1)])
def test_an_error_below_leaves_everything_as_it_was(error, monkeypatch):
    from numbabn.cpu import launch

    layer = numbabn.BatchNormalization(**RENORM)
    layer(X[:3], training=True)
    layer.backward(DY[:3])
    before, given = snapshot(layer), (X.tobytes(), DY.tobytes())

    def fail(*arguments):
        raise error

    for name in ("_launch", "_move"):
        with monkeypatch.context() as patch:
            patch.setattr(launch, name, fail)
            with pytest.raises(type(error)) as raised:
                layer(X, training=True)
            assert raised.value is error
        assert snapshot(layer) == before
    monkeypatch.setattr(launch, "_launch", fail)
    with pytest.raises(type(error)):
        layer.backward(DY[:3])
    assert snapshot(layer) == before
    assert (X.tobytes(), DY.tobytes()) == given
