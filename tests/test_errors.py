"""Bad input: the type, the whole message, and that nothing was computed or changed."""

from types import SimpleNamespace

import numpy as np
import pytest

import numbabn

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def given():
    """Fresh, valid arrays; every case spoils one of them."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    layer = numbabn.BatchNormalization(renorm=True)
    layer(x, training=True)
    return SimpleNamespace(
        x=x,
        dy=rng.normal(size=x.shape).astype(np.float32),
        five=np.linspace(1, 2, 5, dtype=np.float32),
        out=np.full_like(x, 7.0),
        saved=numbabn.batch_norm_forward(x)[1],
        batch=numbabn.batch_statistics(x),
        layer=layer,
    )


def snapshot(given):
    """The bytes of every array that a call could have changed."""
    arrays = [given.x, given.dy, given.five, given.out, *given.layer.weights.values()]
    arrays += [given.batch.count, given.batch.mean, given.batch.variance, given.saved.r]
    arrays += [given.saved.statistics.mean, *given.layer.gradients.values()]
    return [each.tobytes() for each in arrays]


def statistics(given, **changed):
    return numbabn.batch_statistics(**{"x": given.x, **changed})


def forward(given, **changed):
    return numbabn.batch_norm_forward(**{"x": given.x, "out": given.out, **changed})


def normalize(given, **changed):
    ready = {"x": given.x, "mean": given.five, "variance": given.five, "out": given.out}
    return numbabn.normalize(**{**ready, **changed})


def backward(given, **changed):
    ready = {"dy": given.dy, "x": given.x, "saved": given.saved, "out": given.out}
    return numbabn.batch_norm_backward(**{**ready, **changed})


def normalize_backward(given, **changed):
    ready = {"dy": given.dy, "x": given.x, "mean": given.five, "variance": given.five}
    return numbabn.normalize_backward(**{**ready, **changed})


def correction(given, **changed):
    ready = dict.fromkeys(["mean", "variance", "renorm_mean", "renorm_stddev"], given.five)
    return numbabn.renorm_correction(**{**ready, **changed})


def layer(**options):
    return numbabn.BatchNormalization(**options)


def overlapping(array):
    """A view of the same memory, one element on."""
    memory = np.concatenate([array.ravel(), np.zeros(1, array.dtype)])
    return memory[:-1].reshape(array.shape), memory[1:].reshape(array.shape)


# What is called with what, and the error's type and whole message.
CASES = {
    "x: rank 0": (
        lambda g: statistics(g, x=np.ones((), np.float32)),
        ValueError,
        "x must have at least 2 axes, got a single number of shape ()",
    ),
    "x: rank 1": (
        lambda g: statistics(g, x=g.five),
        ValueError,
        "x must have an axis besides the channel axis to take statistics over, got shape "
        "(5,) with axis=-1",
    ),
    "x: rank 1, training": (
        lambda g: forward(g, x=g.five, out=None),
        ValueError,
        "x must have an axis besides the channel axis to take statistics over, got shape "
        "(5,) with axis=-1",
    ),
    "x: a list": (
        lambda g: statistics(g, x=[[1.0, 2.0]]),
        TypeError,
        "x must be a NumPy array or an array on a CUDA device, got list",
    ),
    "x: masked array": (
        lambda g: statistics(g, x=np.ma.masked_array(g.x)),
        TypeError,
        "x must not be a masked array: pass x.data, and mask=~x.mask (True is on)",
    ),
    "gamma: on a GPU": (
        lambda g: forward(g, gamma=SimpleNamespace(__cuda_array_interface__={})),
        TypeError,
        "gamma is on a CUDA device (SimpleNamespace), and other arrays are not",
    ),
    "mask: on a GPU": (
        lambda g: statistics(g, mask=SimpleNamespace(__cuda_array_interface__={})),
        TypeError,
        "mask is on a CUDA device (SimpleNamespace), and other arrays are not",
    ),
    "dy: on a GPU": (
        lambda g: backward(g, dy=SimpleNamespace(__cuda_array_interface__={})),
        TypeError,
        "dy is on a CUDA device (SimpleNamespace), and other arrays are not",
    ),
    "x: integers": (
        lambda g: forward(g, x=g.x.astype(np.int32)),
        TypeError,
        "x must be float16, bfloat16, float32 or float64, got int32",
    ),
    "x: bools": (
        lambda g: normalize(g, x=g.x > 0),
        TypeError,
        "x must be float16, bfloat16, float32 or float64, got bool",
    ),
    "x: complex": (
        lambda g: statistics(g, x=g.x.astype(np.complex64)),
        TypeError,
        "x must be float16, bfloat16, float32 or float64, got complex64",
    ),
    "x: objects": (
        lambda g: forward(g, x=g.x.astype(object)),
        TypeError,
        "x must be float16, bfloat16, float32 or float64, got object",
    ),
    "x: byte order": (
        lambda g: statistics(g, x=g.x.astype(">f4")),
        TypeError,
        "x must be float16, bfloat16, float32 or float64, got float32 in another byte "
        "order than this machine's",
    ),
    "axis: too large": (
        lambda g: statistics(g, axis=3),
        ValueError,
        "axis 3 is out of range for x of shape (4, 3, 5): expected -3 to 2",
    ),
    "axis: too small": (
        lambda g: forward(g, axis=-4),
        ValueError,
        "axis -4 is out of range for x of shape (4, 3, 5): expected -3 to 2",
    ),
    "axis: one of a list": (
        lambda g: forward(g, axis=[0, 5]),
        ValueError,
        "axis 5 is out of range for x of shape (4, 3, 5): expected -3 to 2",
    ),
    "axis: twice": (
        lambda g: statistics(g, axis=[1, 1]),
        ValueError,
        "axis must name each axis once, got [1, 1] for shape (4, 3, 5)",
    ),
    "axis: twice, by two names": (
        lambda g: statistics(g, axis=[1, -2]),
        ValueError,
        "axis must name each axis once, got [1, -2] for shape (4, 3, 5)",
    ),
    "axis: none": (
        lambda g: statistics(g, axis=[]),
        ValueError,
        "axis must name at least one axis, got an empty list",
    ),
    "axis: all": (
        lambda g: statistics(g, axis=[0, 1, 2]),
        ValueError,
        "x must have an axis besides the channel axis to take statistics over, got shape "
        "(4, 3, 5) with axis=[0, 1, 2]",
    ),
    "axis: float": (
        lambda g: forward(g, axis=1.0),
        TypeError,
        "axis must be an int or a list of ints, got 1.0",
    ),
    "axis: bool": (
        lambda g: statistics(g, axis=True),
        TypeError,
        "axis must be an int or a list of ints, got True",
    ),
    "axis: str": (
        lambda g: statistics(g, axis="1"),
        TypeError,
        "axis must be an int or a list of ints, got '1'",
    ),
    "axis: None": (
        lambda g: statistics(g, axis=None),
        TypeError,
        "axis must be an int or a list of ints, got None",
    ),
    "axis: list of floats": (
        lambda g: statistics(g, axis=[0, 1.0]),
        TypeError,
        "axis must be an int or a list of ints, got [0, 1.0]",
    ),
    "mask: another size": (
        lambda g: forward(g, mask=np.ones((4, 2))),
        ValueError,
        "mask of shape (4, 2) does not fit x of shape (4, 3, 5): expected the rank of x, "
        "or one less (then a last axis is added), and each size to be that of x or 1",
    ),
    "mask: another size, full": (
        lambda g: statistics(g, mask=np.ones((4, 3, 4))),
        ValueError,
        "mask of shape (4, 3, 4) does not fit x of shape (4, 3, 5): expected the rank of "
        "x, or one less (then a last axis is added), and each size to be that of x or 1",
    ),
    "mask: too few axes": (
        lambda g: statistics(g, mask=np.ones(4)),
        ValueError,
        "mask of shape (4,) does not fit x of shape (4, 3, 5): expected the rank of x, or"
        " one less (then a last axis is added), and each size to be that of x or 1",
    ),
    "mask: too many axes": (
        lambda g: forward(g, mask=np.ones((1, 4, 3, 5))),
        ValueError,
        "mask of shape (1, 4, 3, 5) does not fit x of shape (4, 3, 5): expected the rank "
        "of x, or one less (then a last axis is added), and each size to be that of x or "
        "1",
    ),
    "mask: a number": (
        lambda g: statistics(g, mask=True),
        ValueError,
        "mask of shape () does not fit x of shape (4, 3, 5): expected the rank of x, or "
        "one less (then a last axis is added), and each size to be that of x or 1",
    ),
    "mask: complex": (
        lambda g: forward(g, mask=np.ones((4, 3), complex)),
        TypeError,
        "mask must hold bools or real numbers, got complex128",
    ),
    "mask: objects": (
        lambda g: forward(g, mask=np.full((4, 3), None)),
        TypeError,
        "mask must hold bools or real numbers, got object",
    ),
    "mask: strings": (
        lambda g: forward(g, mask=np.full((4, 3), "1")),
        TypeError,
        "mask must hold bools or real numbers, got str32",
    ),
    "gamma: too short": (
        lambda g: forward(g, gamma=g.five[:4]),
        ValueError,
        "gamma must have shape (5,), one value for each channel of x, got (4,)",
    ),
    "gamma: a number": (
        lambda g: forward(g, gamma=1.0),
        ValueError,
        "gamma must have shape (5,), one value for each channel of x, got ()",
    ),
    "gamma: rank": (
        lambda g: normalize(g, gamma=g.five[None, None]),
        ValueError,
        "gamma must have shape (5,), one value for each channel of x, got (1, 1, 5)",
    ),
    "gamma: rank, list of axes": (
        lambda g: forward(g, gamma=np.ones((3, 5)), axis=[1, 2]),
        ValueError,
        "gamma must have shape (1, 3, 5), one value for each channel of x, got (3, 5)",
    ),
    "gamma: complex": (
        lambda g: forward(g, gamma=g.five * 1j),
        TypeError,
        "gamma must hold real numbers, got complex64",
    ),
    "gamma: objects": (
        lambda g: normalize(g, gamma=g.five.astype(object)),
        TypeError,
        "gamma must hold real numbers, got object",
    ),
    "beta: too long": (
        lambda g: forward(g, beta=np.ones(6)),
        ValueError,
        "beta must have shape (5,), one value for each channel of x, got (6,)",
    ),
    "beta: too long, inference": (
        lambda g: normalize(g, beta=np.ones(6)),
        ValueError,
        "beta must have shape (5,), one value for each channel of x, got (6,)",
    ),
    "beta: strings": (
        lambda g: forward(g, beta=["a"] * 5),
        TypeError,
        "beta must hold real numbers, got str32",
    ),
    "mean: too short": (
        lambda g: normalize(g, mean=g.five[:3]),
        ValueError,
        "mean must have shape (5,), one value for each channel of x, got (3,)",
    ),
    "variance: too short": (
        lambda g: normalize(g, variance=g.five[:3]),
        ValueError,
        "variance must have shape (5,), one value for each channel of x, got (3,)",
    ),
    "mean: gradient": (
        lambda g: normalize_backward(g, mean=g.five[:3]),
        ValueError,
        "mean must have shape (5,), one value for each channel of x, got (3,)",
    ),
    "epsilon: text": (
        lambda g: forward(g, epsilon="0.1"),
        TypeError,
        "epsilon must be a positive number, got str",
    ),
    "epsilon: zero": (
        lambda g: forward(g, epsilon=0.0),
        ValueError,
        "epsilon must be a positive number, got 0.0",
    ),
    "epsilon: negative": (
        lambda g: normalize(g, epsilon=-1e-3),
        ValueError,
        "epsilon must be a positive number, got -0.001",
    ),
    "epsilon: NaN": (
        lambda g: normalize_backward(g, epsilon=NAN),
        ValueError,
        "epsilon must be a positive number, got nan",
    ),
    "epsilon: inf": (
        lambda g: correction(g, epsilon=INF),
        ValueError,
        "epsilon must be a positive number, got inf",
    ),
    "epsilon: None": (
        lambda g: forward(g, epsilon=None),
        TypeError,
        "epsilon must be a positive number, got NoneType",
    ),
    "epsilon: str": (
        lambda g: forward(g, epsilon="tiny"),
        TypeError,
        "epsilon must be a positive number, got str",
    ),
    "renorm: a tuple": (
        lambda g: forward(g, renorm=(g.five, g.five)),
        TypeError,
        "renorm must be a Renorm, got tuple",
    ),
    "renorm: mean": (
        lambda g: forward(g, renorm=numbabn.Renorm(g.five[:2], g.five)),
        ValueError,
        "renorm.mean must have shape (5,), one value for each channel of x, got (2,)",
    ),
    "renorm: stddev": (
        lambda g: forward(g, renorm=numbabn.Renorm(g.five, g.five[:2])),
        ValueError,
        "renorm.stddev must have shape (5,), one value for each channel of x, got (2,)",
    ),
    "correction: variance": (
        lambda g: correction(g, variance=g.five[:2]),
        ValueError,
        "variance must have the shape of mean, (5,), got (2,)",
    ),
    "correction: renorm_mean": (
        lambda g: correction(g, renorm_mean=1.0),
        ValueError,
        "renorm_mean must have the shape of mean, (5,), got ()",
    ),
    "correction: renorm_stddev": (
        lambda g: correction(g, renorm_stddev=np.ones((5, 1))),
        ValueError,
        "renorm_stddev must have the shape of mean, (5,), got (5, 1)",
    ),
    "correction: mean": (
        lambda g: correction(g, mean=g.five * 1j),
        TypeError,
        "mean must hold real numbers, got complex64",
    ),
    "clipping: rmin above rmax": (
        lambda g: numbabn.RenormClipping(rmin=2.0, rmax=1.0),
        ValueError,
        "renorm clipping: rmin must not exceed rmax, got rmin=2.0 and rmax=1.0",
    ),
    "clipping: negative dmax": (
        lambda g: correction(g, clipping={"dmax": -1}),
        ValueError,
        "renorm clipping: dmax must not be negative, got -1.0",
    ),
    "clipping: NaN": (
        lambda g: correction(g, clipping={"rmax": NAN}),
        ValueError,
        "renorm clipping: rmax must be a number, got nan",
    ),
    "clipping: unknown key": (
        lambda g: numbabn.Renorm(g.five, g.five, {"rmax": 1.0, "r_min": 0.0}),
        ValueError,
        "renorm clipping: unknown key 'r_min'; expected rmin, rmax and dmax",
    ),
    "clipping: a tuple": (
        lambda g: correction(g, clipping=(0.0, 1.0, 1.0)),
        TypeError,
        "renorm clipping must be a RenormClipping, or a dictionary with the keys rmin, "
        "rmax and dmax, got tuple",
    ),
    "clipping: None within": (
        lambda g: correction(g, clipping={"rmax": None}),
        TypeError,
        "renorm clipping: rmax must be a number, got NoneType",
    ),
    "out: a list": (
        lambda g: normalize(g, out=[1.0]),
        TypeError,
        "out must be a NumPy array, got list",
    ),
    "out: shape": (
        lambda g: forward(g, out=np.empty((4, 5, 3), np.float32)),
        ValueError,
        "out must have the shape of x, (4, 3, 5), got (4, 5, 3)",
    ),
    "out: dtype": (
        lambda g: forward(g, out=np.empty((4, 3, 5))),
        TypeError,
        "out must have the dtype of x, float32, got float64",
    ),
    "out: integers": (
        lambda g: forward(g, out=np.empty((4, 3, 5), np.int32)),
        TypeError,
        "out must be float16, bfloat16, float32 or float64, got int32",
    ),
    "out: overlaps itself": (
        lambda g: normalize(
            g, out=np.lib.stride_tricks.as_strided(g.out, (4, 3, 5), (4, 4, 4)), x=g.x
        ),
        ValueError,
        "out must have memory of its own for each element, got strides (4, 4, 4) "
        "for shape (4, 3, 5)",
    ),
    "backward: x of another dtype": (
        lambda g: numbabn.batch_norm_backward(
            g.dy.astype(np.float64), g.x.astype(np.float64), g.saved
        ),
        TypeError,
        "x must be what the forward pass had, of dtype float32, got float64",
    ),
    "out: read-only": (
        lambda g: normalize(g, out=np.broadcast_to(np.float32(0), (4, 3, 5))),
        ValueError,
        "out must be writable, got a read-only array",
    ),
    "out: x, training": (
        lambda g: forward(g, out=g.x),
        ValueError,
        "out overlaps x in memory, which would give wrong results; it may not be an input",
    ),
    "out: overlaps x": (
        lambda g: (lambda x, out: normalize(g, x=x, out=out))(*overlapping(g.x)),
        ValueError,
        "out overlaps x in memory, which would give wrong results; it may only be x itself",
    ),
    "out: x reversed": (
        lambda g: normalize(g, out=g.x[::-1]),
        ValueError,
        "out overlaps x in memory, which would give wrong results; it may only be x itself",
    ),
    "out: overlaps dy": (
        lambda g: (lambda dy, out: backward(g, dy=dy, out=out))(*overlapping(g.dy)),
        ValueError,
        "out overlaps dy in memory, which would give wrong results; it may only be dy or x itself",
    ),
    "out: x transposed": (
        lambda g: (lambda x: normalize(g, x=x, mean=[0] * 4, variance=[1] * 4, out=x.T))(
            np.ones((4, 4), np.float32)
        ),
        ValueError,
        "out overlaps x in memory, which would give wrong results; it may only be x itself",
    ),
    "dy: shape": (
        lambda g: backward(g, dy=g.dy[:3]),
        ValueError,
        "dy must have the shape of x, (4, 3, 5), got (3, 3, 5)",
    ),
    "dy: shape, broadcastable": (
        lambda g: backward(g, dy=g.dy[:1]),
        ValueError,
        "dy must have the shape of x, (4, 3, 5), got (1, 3, 5)",
    ),
    "dy: dtype": (
        lambda g: backward(g, dy=g.dy.astype(np.float64)),
        TypeError,
        "dy must have the dtype of x, float32, got float64",
    ),
    "dy: integers": (
        lambda g: backward(g, dy=g.dy.astype(int)),
        TypeError,
        "dy must be float16, bfloat16, float32 or float64, got int64",
    ),
    "dy: a list": (
        lambda g: backward(g, dy=g.dy.tolist()),
        TypeError,
        "dy must be a NumPy array or an array on a CUDA device, got list",
    ),
    "dy: shape, inference": (
        lambda g: normalize_backward(g, dy=g.dy[:3]),
        ValueError,
        "dy must have the shape of x, (4, 3, 5), got (3, 3, 5)",
    ),
    "x: not that of the forward": (
        lambda g: backward(g, x=g.x[:3]),
        ValueError,
        "x must be what the forward pass had, of shape (4, 3, 5), got (3, 3, 5)",
    ),
    "saved: a tuple": (
        lambda g: backward(g, saved=(1, 2)),
        TypeError,
        "saved must come from batch_norm_forward, got tuple",
    ),
    "statistics: shapes": (
        lambda g: numbabn.BatchStatistics(1, [1.0], [1.0, 2.0]),
        ValueError,
        "variance must have the shape of mean, (1,), got (2,)",
    ),
    "statistics: count": (
        lambda g: numbabn.BatchStatistics([1], [1, 2], [1, 2]),
        ValueError,
        "count must be a number or have the shape of mean, (2,), got (1,)",
    ),
    "statistics: negative count": (
        lambda g: numbabn.BatchStatistics([-1], [1.0], [1.0]),
        ValueError,
        "count must not be negative, got -1.0",
    ),
    "statistics: strings": (
        lambda g: numbabn.BatchStatistics(1, ["a"], [1.0]),
        TypeError,
        "mean must hold real numbers, got str32",
    ),
    "merge: shapes": (
        lambda g: g.batch.merge(numbabn.batch_statistics(g.x[..., :2])),
        ValueError,
        "statistics to be merged must have one shape, got (5,) and (2,)",
    ),
    "merge: a tuple": (
        lambda g: g.batch.merge((1, 2, 3)),
        TypeError,
        "other must be a BatchStatistics, got tuple",
    ),
    "merge_all: nothing": (
        lambda g: numbabn.BatchStatistics.merge_all([]),
        ValueError,
        "merge_all needs at least one BatchStatistics, got none",
    ),
    "merge_all: tuples": (
        lambda g: numbabn.BatchStatistics.merge_all([(1, 2, 3)]),
        TypeError,
        "merge_all needs BatchStatistics, got tuple",
    ),
    "layer: momentum above 1": (
        lambda g: layer(momentum=1.5),
        ValueError,
        "momentum must be a number from 0 to 1, got 1.5",
    ),
    "layer: momentum below 0": (
        lambda g: layer(momentum=-0.1),
        ValueError,
        "momentum must be a number from 0 to 1, got -0.1",
    ),
    "layer: momentum NaN": (
        lambda g: layer(momentum=NAN),
        ValueError,
        "momentum must be a number from 0 to 1, got nan",
    ),
    "layer: momentum None": (
        lambda g: layer(momentum=None),
        TypeError,
        "momentum must be a number from 0 to 1, got NoneType",
    ),
    "layer: renorm_momentum": (
        lambda g: layer(renorm_momentum=2),
        ValueError,
        "renorm_momentum must be a number from 0 to 1, got 2",
    ),
    "layer: epsilon": (
        lambda g: layer(epsilon=0),
        ValueError,
        "epsilon must be a positive number, got 0",
    ),
    "layer: dtype": (
        lambda g: layer(dtype="float16"),
        TypeError,
        "dtype must be float32 or float64, got float16",
    ),
    "layer: axis": (
        lambda g: layer(axis="channels")(g.x),
        TypeError,
        "axis must be an int or a list of ints, got 'channels'",
    ),
    "layer: clipping": (
        lambda g: layer(renorm=True, renorm_clipping={"rmax": 0.5, "rmin": 1.0}),
        ValueError,
        "renorm clipping: rmin must not exceed rmax, got rmin=1.0 and rmax=0.5",
    ),
    "layer: clipping, later": (
        lambda g: setattr(g.layer, "renorm_clipping", {"limit": 1.0}),
        ValueError,
        "renorm clipping: unknown key 'limit'; expected rmin, rmax and dmax",
    ),
    "layer: axis out of range": (
        lambda g: layer(axis=3)(g.x, training=True),
        ValueError,
        "axis 3 is out of range for x of shape (4, 3, 5): expected -3 to 2",
    ),
    "layer: integers": (
        lambda g: g.layer(g.x.astype(int), training=True),
        TypeError,
        "x must be float16, bfloat16, float32 or float64, got int64",
    ),
    "layer: channels": (
        lambda g: g.layer(g.x[..., :4], training=True),
        ValueError,
        "x must have channels of shape (5,) along axis=-1, as the layer was built for, "
        "got x of shape (4, 3, 4)",
    ),
    "layer: channels, inference": (
        lambda g: g.layer(g.x[..., :4]),
        ValueError,
        "x must have channels of shape (5,) along axis=-1, as the layer was built for, "
        "got x of shape (4, 3, 4)",
    ),
    "layer: mask": (
        lambda g: g.layer(g.x, training=True, mask=np.ones((4, 2))),
        ValueError,
        "mask of shape (4, 2) does not fit x of shape (4, 3, 5): expected the rank of x, "
        "or one less (then a last axis is added), and each size to be that of x or 1",
    ),
    "layer: mask, first call": (
        lambda g: layer()(g.x, training=True, mask=np.ones((4, 2))),
        ValueError,
        "mask of shape (4, 2) does not fit x of shape (4, 3, 5): expected the rank of x, "
        "or one less (then a last axis is added), and each size to be that of x or 1",
    ),
    "layer: dy": (
        lambda g: g.layer.backward(g.dy[:2]),
        ValueError,
        "dy must have the shape of x, (4, 3, 5), got (2, 3, 5)",
    ),
    "layer: backward before a call": (
        lambda g: layer().backward(g.dy),
        RuntimeError,
        "backward needs a training call before it: layer(x, training=True)",
    ),
    "layer: gamma": (
        lambda g: setattr(g.layer, "gamma", np.ones(3)),
        ValueError,
        "gamma must have shape (5,), got (3,)",
    ),
    "layer: gamma before a call": (
        lambda g: setattr(layer(), "gamma", np.ones(3)),
        AttributeError,
        "gamma cannot be set: the layer is not built yet",
    ),
    "layer: gamma of none": (
        lambda g: setattr(layer(scale=False), "gamma", np.ones(3)),
        AttributeError,
        "gamma cannot be set: the layer has none",
    ),
    "layer: save before a call": (
        lambda g: layer().save("layer.npz"),
        RuntimeError,
        "the layer has no weights to save: call it or build it first",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_message_and_that_nothing_changed(call, error, message, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(given)
    with pytest.raises(error) as raised:
        call(given)
    assert str(raised.value) == message
    assert type(raised.value) is error
    assert snapshot(given) == before
    assert not list(tmp_path.iterdir())
