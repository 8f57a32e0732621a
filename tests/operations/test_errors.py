"""Bad input: the type, the whole message, and that nothing was computed or changed."""

from types import SimpleNamespace

import numpy as np
import pytest

import numbabn
from arrays import mask_does_not_fit, raises, read_only
from devices import ON_CPU, TELLING, Plain, copies, describe, not_an_array, put, type_of
from numbabn.functional import backward_from_saved

NAN, INF = float("nan"), float("inf")
rng = np.random.default_rng(1)
X, DY = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
FIVE = np.linspace(1, 2, 5, dtype=np.float32)


def on(values):
    """An array of the target that shows all of what is wrong with it; all else as it is."""
    return put(values, TELLING) if isinstance(values, np.ndarray) else values


@pytest.fixture(scope="module")
def given():
    """Valid arrays; every case has another one instead of one of them, and none changes them."""
    x, dy, five, out = map(on, (X, DY, FIVE, np.full_like(X, 7.0)))
    layer = numbabn.BatchNormalization(renorm=True)
    layer(x, training=True)
    layer.backward(dy)
    layer(x, training=True)
    return SimpleNamespace(
        x=x,
        dy=dy,
        five=five,
        out=out,
        saved=numbabn.batch_norm_forward(x)[1],
        batch=numbabn.batch_statistics(x),
        layer=layer,
    )


def snapshot(given):
    """The bytes of every array that a call could have changed."""
    batch = given.batch
    arrays = [given.x, given.dy, given.five, given.out, given.saved.values]
    arrays += [batch.count, batch.mean, batch.variance]
    arrays += [*given.layer.weights.values(), *given.layer.gradients.values()]
    return [each.tobytes() for each in copies(arrays)]


def changed(ready, changes):
    return {**ready, **{name: on(value) for name, value in changes.items()}}


def statistics(given, **changes):
    return numbabn.batch_statistics(**changed({"x": given.x}, changes))


def forward(given, **changes):
    return numbabn.batch_norm_forward(**changed({"x": given.x, "out": given.out}, changes))


def normalize(given, **changes):
    ready = {"x": given.x, "mean": given.five, "variance": given.five, "out": given.out}
    return numbabn.normalize(**changed(ready, changes))


def backward(given, **changes):
    ready = {"dy": given.dy, "x": given.x, "saved": given.saved, "out": given.out}
    return numbabn.batch_norm_backward(**changed(ready, changes))


def from_saved(given, values):
    return backward_from_saved(given.dy, given.x, on(values), axis=-1, mask=None, epsilon=1e-3)


def sums_of(given, **changes):
    return numbabn.gradient_sums(
        **changed({"dy": given.dy, "x": given.x, "saved": given.saved}, changes)
    )


def normalize_backward(given, **changes):
    ready = {"dy": given.dy, "x": given.x, "mean": given.five, "variance": given.five}
    return numbabn.normalize_backward(**changed(ready, changes))


def correction(given, **changes):
    ready = dict.fromkeys(["mean", "variance", "renorm_mean", "renorm_stddev"], given.five)
    return numbabn.renorm_correction(**changed(ready, changes))


def layer(**options):
    return numbabn.BatchNormalization(**options)


def run(layer, x, **options):
    return layer(on(x), **changed({}, options))


def overlapping(values):
    """An array, and another one in the same memory, one element on."""
    memory = on(np.concatenate([values.ravel(), np.zeros(1, values.dtype)]))
    if ON_CPU:
        return memory[:-1].reshape(values.shape), memory[1:].reshape(values.shape)
    return tuple(shown_as(memory, values, by) for by in (0, 4))


def shown_as(memory, values, by):
    """Memory on a device, some bytes on, as an array of the shape and dtype of `values`."""
    interface = {
        "shape": values.shape,
        "typestr": values.dtype.str,
        "data": (describe(memory).address + by, False),
        "version": 3,
    }
    return Plain(memory, interface)


def values_must_be(got):
    return f"values must be what a forward pass saved, float64 of shape (6, 5), got {got}"


def sums_must_be(got):
    return f"sums must be what gradient_sums returned, float64 of shape (2, 5), got {got}"


def is_on_device(name, got):
    return f"{name} is on a CUDA device ({got}), and other arrays are not"


# By error and whole message: calls, with what `given` is, that raise it.
EVERYWHERE = {
    ValueError: {
        "x must have at least 2 axes, got a single number of shape ()": [
            lambda g: statistics(g, x=np.ones((), np.float32)),
        ],
        (
            "x must have an axis besides the channel axis to take statistics over, got shape "
            "(5,) with axis=-1"
        ): [
            lambda g: statistics(g, x=FIVE),
            lambda g: forward(g, x=FIVE, out=None),
        ],
        "axis 3 is out of range for x of shape (4, 3, 5): expected -3 to 2": [
            lambda g: statistics(g, axis=3),
            lambda g: run(layer(axis=3), g.x, training=True),
        ],
        "axis -4 is out of range for x of shape (4, 3, 5): expected -3 to 2": [
            lambda g: forward(g, axis=-4),
        ],
        "axis 5 is out of range for x of shape (4, 3, 5): expected -3 to 2": [
            lambda g: forward(g, axis=[0, 5]),
        ],
        "axis must name each axis once, got [1, 1] for shape (4, 3, 5)": [
            lambda g: statistics(g, axis=[1, 1]),
        ],
        "axis must name each axis once, got [1, -2] for shape (4, 3, 5)": [
            lambda g: statistics(g, axis=[1, -2]),
        ],
        "axis must name at least one axis, got an empty list": [
            lambda g: statistics(g, axis=[]),
        ],
        (
            "x must have an axis besides the channel axis to take statistics over, got shape "
            "(4, 3, 5) with axis=[0, 1, 2]"
        ): [
            lambda g: statistics(g, axis=[0, 1, 2]),
        ],
        mask_does_not_fit((4, 2), (4, 3, 5)): [
            lambda g: forward(g, mask=np.ones((4, 2))),
            lambda g: run(g.layer, g.x, training=True, mask=np.ones((4, 2))),
            lambda g: run(layer(), g.x, training=True, mask=np.ones((4, 2))),
        ],
        mask_does_not_fit((4, 3, 4), (4, 3, 5)): [
            lambda g: statistics(g, mask=np.ones((4, 3, 4))),
        ],
        mask_does_not_fit((4,), (4, 3, 5)): [
            lambda g: statistics(g, mask=np.ones(4)),
        ],
        mask_does_not_fit((1, 4, 3, 5), (4, 3, 5)): [
            lambda g: forward(g, mask=np.ones((1, 4, 3, 5))),
        ],
        "gamma must have shape (5,), one value for each channel of x, got (4,)": [
            lambda g: forward(g, gamma=FIVE[:4]),
        ],
        "gamma must have shape (5,), one value for each channel of x, got (1, 1, 5)": [
            lambda g: normalize(g, gamma=FIVE[None, None]),
        ],
        "gamma must have shape (1, 3, 5), one value for each channel of x, got (3, 5)": [
            lambda g: forward(g, gamma=np.ones((3, 5)), axis=[1, 2]),
        ],
        "beta must have shape (5,), one value for each channel of x, got (6,)": [
            lambda g: forward(g, beta=np.ones(6)),
            lambda g: normalize(g, beta=np.ones(6)),
        ],
        "mean must have shape (5,), one value for each channel of x, got (3,)": [
            lambda g: normalize(g, mean=FIVE[:3]),
            lambda g: normalize_backward(g, mean=FIVE[:3]),
        ],
        "variance must have shape (5,), one value for each channel of x, got (3,)": [
            lambda g: normalize(g, variance=FIVE[:3]),
        ],
        "epsilon must be a finite number of at least 0, got -0.001": [
            lambda g: normalize(g, epsilon=-0.001),
        ],
        "epsilon must be a finite number of at least 0, got nan": [
            lambda g: normalize_backward(g, epsilon=NAN),
        ],
        "epsilon must be a finite number of at least 0, got inf": [
            lambda g: correction(g, epsilon=INF),
        ],
        "renorm.mean must have shape (5,), one value for each channel of x, got (2,)": [
            lambda g: forward(g, renorm=numbabn.Renorm(on(FIVE[:2]), g.five)),
        ],
        "renorm.stddev must have shape (5,), one value for each channel of x, got (2,)": [
            lambda g: forward(g, renorm=numbabn.Renorm(g.five, on(FIVE[:2]))),
        ],
        "variance must have the shape of mean, (5,), got (2,)": [
            lambda g: correction(g, variance=FIVE[:2]),
            lambda g: numbabn.BatchStatistics(g.five, g.five, on(FIVE[:2])),
        ],
        "renorm_stddev must have the shape of mean, (5,), got (5, 1)": [
            lambda g: correction(g, renorm_stddev=np.ones((5, 1))),
        ],
        "renorm clipping: rmax should be at least rmin, got rmin=2.0 and rmax=1.0": [
            lambda g: numbabn.RenormClipping(rmin=2.0, rmax=1.0),
        ],
        "renorm clipping: dmax should be non-negative, got -1.0": [
            lambda g: correction(g, clipping={"dmax": -1}),
        ],
        "renorm clipping: rmax must be a number, got nan": [
            lambda g: correction(g, clipping={"rmax": NAN}),
        ],
        "Received invalid keys for renorm clipping: 'r_min'; expected rmin, rmax and dmax": [
            lambda g: numbabn.Renorm(FIVE, FIVE, {"rmax": 1.0, "r_min": 0.0}),
        ],
        "out must have the shape of x, (4, 3, 5), got (4, 5, 3)": [
            lambda g: forward(g, out=np.empty((4, 5, 3), np.float32)),
        ],
        (
            "out must have memory of its own for each element, got strides (4, 4, 4) for "
            "shape (4, 3, 5)"
        ): [
            lambda g: normalize(
                g, out=np.lib.stride_tricks.as_strided(X.copy(), (4, 3, 5), (4, 4, 4))
            ),
        ],
        "out must be writable, got a read-only array": [
            lambda g: normalize(g, out=read_only(X)),
        ],
        "out overlaps x in memory, which would give wrong results; it may not be an input": [
            lambda g: forward(g, out=g.x),
        ],
        ("out overlaps x in memory, which would give wrong results; it may only be x itself"): [
            lambda g: (lambda x, out: normalize(g, x=x, out=out))(*overlapping(X)),
        ],
        (
            "out overlaps dy in memory, which would give wrong results; it may only be dy or "
            "x itself"
        ): [
            lambda g: (lambda dy, out: backward(g, dy=dy, out=out))(*overlapping(DY)),
        ],
        "dy must have the shape of x, (4, 3, 5), got (3, 3, 5)": [
            lambda g: backward(g, dy=DY[:3]),
            lambda g: normalize_backward(g, dy=DY[:3]),
        ],
        "dy must have the shape of x, (4, 3, 5), got (1, 3, 5)": [
            lambda g: backward(g, dy=DY[:1]),
        ],
        "x must be what the forward pass had, of shape (4, 3, 5), got (3, 3, 5)": [
            lambda g: backward(g, x=X[:3]),
        ],
        values_must_be("float64 of shape (6, 4)"): [
            lambda g: from_saved(g, np.zeros((6, 4))),
        ],
        sums_must_be("float64 of shape (2, 4)"): [
            lambda g: backward(g, sums=np.zeros((2, 4))),
        ],
        sums_must_be("float32 of shape (2, 5)"): [
            lambda g: backward(g, sums=np.zeros((2, 5), np.float32)),
        ],
        "statistics.count must have shape (5,), one value for each channel of x, got (2,)": [
            lambda g: forward(
                g, statistics=numbabn.BatchStatistics(*[on(np.ones(2, np.float64))] * 3)
            ),
        ],
        values_must_be("float32 of shape (6, 5)"): [
            lambda g: from_saved(g, np.zeros((6, 5), np.float32)),
        ],
        "statistics to be merged must have one shape, got (5,) and (2,)": [
            lambda g: g.batch.merge(statistics(g, x=X[..., :2])),
        ],
        "merge_all needs at least one BatchStatistics, got none": [
            lambda g: numbabn.BatchStatistics.merge_all([]),
        ],
        "momentum must be a number from 0 to 1, got 1.5": [
            lambda g: layer(momentum=1.5),
            lambda g: setattr(g.layer, "momentum", 1.5),
        ],
        "momentum must be a number from 0 to 1, got -0.1": [
            lambda g: layer(momentum=-0.1),
        ],
        "momentum must be a number from 0 to 1, got nan": [
            lambda g: layer(momentum=NAN),
        ],
        "renorm_momentum must be a number from 0 to 1, got 2": [
            lambda g: layer(renorm_momentum=2),
            lambda g: setattr(g.layer, "renorm_momentum", 2),
        ],
        "epsilon must be a finite number of at least 0, got -1": [
            lambda g: layer(epsilon=-1),
            lambda g: setattr(g.layer, "epsilon", -1),
        ],
        "renorm clipping: rmax should be at least rmin, got rmin=1.0 and rmax=0.5": [
            lambda g: layer(renorm=True, renorm_clipping={"rmax": 0.5, "rmin": 1.0}),
        ],
        "Received invalid keys for renorm clipping: 'limit'; expected rmin, rmax and dmax": [
            lambda g: setattr(g.layer, "renorm_clipping", {"limit": 1.0}),
        ],
        (
            "x must have channels of shape (5,) along axis=-1, as the layer was built for, "
            "got x of shape (4, 3, 4)"
        ): [
            lambda g: run(g.layer, X[..., :4], training=True),
            lambda g: run(g.layer, X[..., :4]),
        ],
        "dy must have the shape of x, (4, 3, 5), got (2, 3, 5)": [
            lambda g: g.layer.backward(on(DY[:2])),
        ],
        "gamma must have shape (5,), got (3,)": [
            lambda g: setattr(g.layer, "gamma", np.ones(3, np.float32)),
        ],
    },
    TypeError: {
        "x must be float16, bfloat16, float32 or float64, got int32": [
            lambda g: forward(g, x=X.astype(np.int32)),
        ],
        "x must be float16, bfloat16, float32 or float64, got bool": [
            lambda g: normalize(g, x=X > 0),
        ],
        "x must be float16, bfloat16, float32 or float64, got complex64": [
            lambda g: statistics(g, x=X.astype(np.complex64)),
        ],
        "axis must be an int or a list of ints, got 1.0": [
            lambda g: forward(g, axis=1.0),
        ],
        "axis must be an int or a list of ints, got True": [
            lambda g: statistics(g, axis=True),
        ],
        "axis must be an int or a list of ints, got '1'": [
            lambda g: statistics(g, axis="1"),
        ],
        "axis must be an int or a list of ints, got None": [
            lambda g: statistics(g, axis=None),
        ],
        "axis must be an int or a list of ints, got [0, 1.0]": [
            lambda g: statistics(g, axis=[0, 1.0]),
        ],
        "mask must hold bools or real numbers, got complex128": [
            lambda g: forward(g, mask=np.ones((4, 3), complex)),
        ],
        "epsilon must be a number of at least 0, got str": [
            lambda g: forward(g, epsilon="0.1"),
            lambda g: forward(g, epsilon="tiny"),
        ],
        "epsilon must be a number of at least 0, got NoneType": [
            lambda g: forward(g, epsilon=None),
        ],
        "renorm must be a Renorm, got tuple": [
            lambda g: forward(g, renorm=(FIVE, FIVE)),
        ],
        (
            "renorm clipping must be a RenormClipping, or a dictionary with the keys rmin, "
            "rmax and dmax, got tuple"
        ): [
            lambda g: correction(g, clipping=(0.0, 1.0, 1.0)),
        ],
        "renorm clipping: rmax must be a number, got NoneType": [
            lambda g: correction(g, clipping={"rmax": None}),
        ],
        "out must have the dtype of x, float32, got float64": [
            lambda g: forward(g, out=np.empty((4, 3, 5))),
        ],
        "out must be float16, bfloat16, float32 or float64, got int32": [
            lambda g: forward(g, out=np.empty((4, 3, 5), np.int32)),
        ],
        "x must be what the forward pass had, of dtype float32, got float16": [
            lambda g: backward(g, x=X.astype(np.float16)),
        ],
        "x must be what the forward pass had, of dtype float32, got float64": [
            lambda g: backward(g, dy=DY.astype(np.float64), x=X.astype(np.float64)),
        ],
        "dy must have the dtype of x, float32, got float64": [
            lambda g: backward(g, dy=DY.astype(np.float64)),
        ],
        "dy must be float16, bfloat16, float32 or float64, got int64": [
            lambda g: backward(g, dy=DY.astype(int)),
        ],
        "saved must come from batch_norm_forward, got tuple": [
            lambda g: backward(g, saved=(1, 2)),
        ],
        "other must be a BatchStatistics, got tuple": [
            lambda g: g.batch.merge((1, 2, 3)),
        ],
        "merge_all needs BatchStatistics, got tuple": [
            lambda g: numbabn.BatchStatistics.merge_all([(1, 2, 3)]),
        ],
        "momentum must be a number from 0 to 1, got NoneType": [
            lambda g: layer(momentum=None),
        ],
        "dtype must be float32 or float64, got float16": [
            lambda g: layer(dtype="float16"),
        ],
        "axis must be an int or a list of ints, got 'channels'": [
            lambda g: run(layer(axis="channels"), g.x),
        ],
        "x must be float16, bfloat16, float32 or float64, got int64": [
            lambda g: run(g.layer, X.astype(int), training=True),
        ],
    },
    RuntimeError: {
        "backward needs a training call before it: layer(x, training=True)": [
            lambda g: layer().backward(g.dy),
        ],
        "the layer has no weights to save: call it or build it first": [
            lambda g: layer().save("layer.npz"),
        ],
    },
    AttributeError: {
        "gamma cannot be set: the layer is not built yet": [
            lambda g: setattr(layer(), "gamma", np.ones(3)),
        ],
        "gamma cannot be set: the layer has none": [
            lambda g: setattr(layer(scale=False), "gamma", np.ones(3)),
        ],
    },
}

READABLE = type("Readable", (), {"__array__": lambda self: X})()
FRAME = type("Frame", (), {"__module__": "pandas.core.frame"})()
ELSEWHERE = SimpleNamespace(__cuda_array_interface__={})
IN_NUMPY = {
    TypeError: {
        "x must be a NumPy array or an array on a CUDA device, got list: pass "
        "np.asarray(x, np.float32)": [
            lambda g: statistics(g, x=[[1.0, 2.0]]),
            lambda g: statistics(g, x=[[1.0, 2.0], [3.0]]),
        ],
        "x must be a NumPy array or an array on a CUDA device, got Frame: pass "
        "x.to_numpy(np.float32)": [
            lambda g: statistics(g, x=FRAME),
        ],
        "x must be a NumPy array or an array on a CUDA device, got Readable: pass np.asarray(x)": [
            lambda g: statistics(g, x=READABLE),
        ],
        "x must be a NumPy array or an array on a CUDA device, got SimpleNamespace": [
            lambda g: statistics(g, x=SimpleNamespace()),
        ],
        "x must not be an np.matrix: pass np.asarray(x)": [
            lambda g: statistics(g, x=np.ones((2, 3)).view(np.matrix)),
        ],
        "mask must not be a masked array, whose own mask would be lost: pass mask.filled(0)": [
            lambda g: forward(g, mask=np.ma.masked_array(np.ones((4, 3), bool))),
        ],
        "gamma must not be a masked array, whose own mask would be lost: pass gamma.filled(0)": [
            lambda g: forward(g, gamma=np.ma.masked_array(np.ones(5))),
        ],
        "x must not be a masked array: pass x.data, and mask=~x.mask (True is on)": [
            lambda g: statistics(g, x=np.ma.masked_array(g.x)),
        ],
        is_on_device("gamma", "SimpleNamespace"): [
            lambda g: forward(g, gamma=ELSEWHERE),
        ],
        is_on_device("mask", "SimpleNamespace"): [
            lambda g: statistics(g, mask=ELSEWHERE),
        ],
        is_on_device("dy", "SimpleNamespace"): [
            lambda g: backward(g, dy=ELSEWHERE),
        ],
        "x must be float16, bfloat16, float32 or float64, got object": [
            lambda g: forward(g, x=g.x.astype(object)),
        ],
        (
            "x must be float16, bfloat16, float32 or float64, got float32 in another byte "
            "order than this machine's"
        ): [
            lambda g: statistics(g, x=g.x.astype(">f4")),
        ],
        "mask must hold bools or real numbers, got object": [
            lambda g: forward(g, mask=np.full((4, 3), None)),
        ],
        "mask must hold bools or real numbers, got str32": [
            lambda g: forward(g, mask=np.full((4, 3), "1")),
        ],
        "gamma must hold real numbers, got complex64": [
            lambda g: forward(g, gamma=g.five * 1j),
        ],
        "gamma must hold real numbers, got object": [
            lambda g: normalize(g, gamma=g.five.astype(object)),
        ],
        "beta must hold real numbers, got str32": [
            lambda g: forward(g, beta=["a"] * 5),
        ],
        "mean must hold real numbers, got complex64": [
            lambda g: correction(g, mean=g.five * 1j),
        ],
        "out must be a NumPy array, got list": [
            lambda g: normalize(g, out=[1.0]),
        ],
        "dy must be a NumPy array or an array on a CUDA device, got list: pass "
        "np.asarray(dy, np.float32)": [
            lambda g: backward(g, dy=g.dy.tolist()),
        ],
        "mean must hold real numbers, got str32": [
            lambda g: numbabn.BatchStatistics(1, ["a"], [1.0]),
        ],
    },
    ValueError: {
        mask_does_not_fit((), (4, 3, 5)): [
            lambda g: statistics(g, mask=True),
        ],
        "variance must not be negative, got -1.0": [
            lambda g: normalize(g, variance=np.array([1.0, 0, 2, -1, 3])),
            lambda g: normalize(g, variance=-1),
            lambda g: normalize_backward(g, variance=np.full(5, -1.0)),
            lambda g: correction(g, variance=np.full(5, -1.0)),
            lambda g: numbabn.BatchStatistics(3, FIVE, np.full(5, -1.0)),
        ],
        "renorm_stddev must not be negative, got -1.0": [
            lambda g: correction(g, renorm_stddev=np.array([1.0, 0, 2, -1, 3])),
        ],
        "renorm_mean must have the shape of mean, (5,), got ()": [
            lambda g: correction(g, renorm_mean=1.0),
        ],
        ("out overlaps x in memory, which would give wrong results; it may only be x itself"): [
            lambda g: normalize(g, out=g.x[::-1]),
            lambda g: (lambda x: normalize(g, x=x, mean=[0] * 4, variance=[1] * 4, out=x.T))(
                np.ones((4, 4), np.float32)
            ),
        ],
        "variance must have the shape of mean, (1,), got (2,)": [
            lambda g: numbabn.BatchStatistics(1, [1.0], [1.0, 2.0]),
        ],
        "count must be a number or have the shape of mean, (2,), got (1,)": [
            lambda g: numbabn.BatchStatistics([1], [1, 2], [1, 2]),
        ],
        "count must not be negative, got -1.0": [
            lambda g: numbabn.BatchStatistics([-1], [1.0], [1.0]),
        ],
    },
}

NAME = type_of(TELLING).__name__

ON_DEVICE = {
    TypeError: {
        not_an_array("gamma", "ndarray"): [
            lambda g: numbabn.batch_norm_forward(g.x, FIVE, out=g.out),
        ],
        not_an_array("gamma", "list"): [
            lambda g: forward(g, gamma=[1.0] * 5),
        ],
        not_an_array("mask", "ndarray"): [
            lambda g: numbabn.batch_norm_forward(g.x, mask=np.ones((4, 3), bool), out=g.out),
        ],
        not_an_array("renorm.mean", "ndarray"): [
            lambda g: forward(g, renorm=numbabn.Renorm(FIVE, FIVE)),
        ],
        not_an_array("renorm_stddev", "ndarray"): [
            lambda g: numbabn.renorm_correction(g.five, g.five, g.five, FIVE),
        ],
        not_an_array("dy", "ndarray"): [
            lambda g: numbabn.batch_norm_backward(DY, g.x, g.saved),
        ],
        not_an_array("out", "ndarray"): [
            lambda g: numbabn.batch_norm_forward(g.x, out=X.copy()),
        ],
        not_an_array("mean", "NoneType"): [
            lambda g: normalize(g, mean=None),
        ],
        not_an_array("count", "int"): [
            lambda g: numbabn.BatchStatistics(3, g.five, g.five),
        ],
        not_an_array("count", "ndarray"): [
            lambda g: g.batch.merge(numbabn.batch_statistics(X)),
        ],
        "gamma must hold floats, got int64": [
            lambda g: forward(g, gamma=np.arange(5)),
        ],
        "x must be what the forward pass had, on a CUDA device, got ndarray": [
            lambda g: numbabn.batch_norm_backward(g.dy, X, g.saved),
        ],
        f"x must be what the forward pass had, in NumPy, got {NAME}": [
            lambda g: backward(g, saved=numbabn.batch_norm_forward(X)[1]),
        ],
        is_on_device("gamma", NAME): [
            lambda g: numbabn.batch_norm_forward(X, g.five),
        ],
        is_on_device("mask", NAME): [
            lambda g: numbabn.batch_statistics(X, mask=g.five),
        ],
        is_on_device("dy", NAME): [
            lambda g: numbabn.batch_norm_backward(g.dy, X, numbabn.batch_norm_forward(X)[1]),
        ],
        is_on_device("renorm_stddev", NAME): [
            lambda g: numbabn.renorm_correction(FIVE, FIVE, FIVE, g.five),
        ],
        f"out must be a NumPy array, got {NAME}": [
            lambda g: numbabn.batch_norm_forward(X, out=g.out),
        ],
    },
    ValueError: {
        "x must be aligned to its elements of 4 bytes": [
            lambda g: statistics(g, x=shown_as(on(np.zeros(241, np.uint8)), X, 1)),
        ],
    },
}


def cases():
    for errors in (EVERYWHERE, IN_NUMPY if ON_CPU else ON_DEVICE):
        for error, messages in errors.items():
            for message, calls in messages.items():
                for call in calls:
                    yield pytest.param(call, error, message, id=message)


@pytest.mark.parametrize(("call", "error", "message"), list(cases()))
def test_message_and_that_nothing_changed(call, error, message, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(given)
    with raises(error, message):
        call(given)
    assert snapshot(given) == before
    assert not list(tmp_path.iterdir())
