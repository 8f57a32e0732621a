"""Bad input: the type and the whole message."""

import re

import numpy as np
import pytest

import numbabn
from devices import Plain, describe, put


def on(values):
    return put(values, "numba")


X = np.arange(60, dtype=np.float32).reshape(4, 3, 5)
FIVE = np.linspace(1, 2, 5, dtype=np.float32)


def forward(**changed):
    return numbabn.batch_norm_forward(**{"x": on(X), **changed})


def backward(**changed):
    x = on(X)
    ready = {"dy": on(X), "x": x, "saved": numbabn.batch_norm_forward(x)[1]}
    return numbabn.batch_norm_backward(**{**ready, **changed})


def normalize(**changed):
    return numbabn.normalize(**{"x": on(X), "mean": on(FIVE), "variance": on(FIVE), **changed})


def over_itself():
    x = on(X)
    return forward(x=x, out=x)


def overlapping():
    """An `out` that begins one element after x."""
    memory = put(np.zeros(61, np.float32), "plain")
    interface = memory.__cuda_array_interface__
    first, second = (
        Plain(memory, {**interface, "shape": X.shape, "strides": None, "data": (address, False)})
        for address in (interface["data"][0], interface["data"][0] + 4)
    )
    return numbabn.normalize(first, on(FIVE), on(FIVE), out=second)


def unaligned():
    memory = put(np.zeros(241, np.uint8), "plain")
    address = memory.__cuda_array_interface__["data"][0] + 1
    interface = {"shape": X.shape, "typestr": "<f4", "data": (address, False), "version": 3}
    return numbabn.batch_statistics(Plain(memory, interface))


def read_only():
    values = np.zeros_like(X)
    values.flags.writeable = False
    return forward(out=put(values, "plain"))


def foreign_values():
    return numbabn.functional.backward_from_saved(
        on(X), on(X), on(np.zeros((6, 4))), axis=-1, mask=None, epsilon=1e-3
    )


def arrays(name):
    return f"{name} must be an array with the CUDA array interface, as x is, got "


NAME = type(on(X)).__name__
CASES = {
    "dtype of x": (
        lambda: forward(x=on(X.astype(np.int32))),
        TypeError,
        "x must be float16, bfloat16, float32 or float64, got int32",
    ),
    "axis": (
        lambda: forward(axis=3),
        ValueError,
        "axis 3 is out of range for x of shape (4, 3, 5): expected -3 to 2",
    ),
    "epsilon": (
        lambda: forward(epsilon=0),
        ValueError,
        "epsilon must be a positive number, got 0",
    ),
    "NumPy gamma": (
        lambda: forward(gamma=FIVE),
        TypeError,
        arrays("gamma") + "ndarray",
    ),
    "gamma as a list": (lambda: forward(gamma=[1.0] * 5), TypeError, arrays("gamma") + "list"),
    "NumPy mask": (
        lambda: forward(mask=np.ones((4, 3), bool)),
        TypeError,
        arrays("mask") + "ndarray",
    ),
    "NumPy reference": (
        lambda: forward(renorm=numbabn.Renorm(FIVE, FIVE)),
        TypeError,
        arrays("renorm.mean") + "ndarray",
    ),
    "renorm": (
        lambda: forward(renorm=(FIVE, FIVE)),
        TypeError,
        "renorm must be a Renorm, got tuple",
    ),
    "NumPy dy": (lambda: backward(dy=X), TypeError, arrays("dy") + "ndarray"),
    "NumPy out": (lambda: forward(out=X.copy()), TypeError, arrays("out") + "ndarray"),
    "no mean": (lambda: normalize(mean=None), TypeError, arrays("mean") + "NoneType"),
    "shape of gamma": (
        lambda: forward(gamma=on(FIVE[:4])),
        ValueError,
        "gamma must have shape (5,), one value for each channel of x, got (4,)",
    ),
    "dtype of gamma": (
        lambda: forward(gamma=on(np.arange(5))),
        TypeError,
        "gamma must hold floats, got int64",
    ),
    "shape of mask": (
        lambda: forward(mask=on(np.ones((4, 2), bool))),
        ValueError,
        "mask of shape (4, 2) does not fit x of shape (4, 3, 5): expected the rank of x, or one "
        "less (then a last axis is added), and each size to be that of x or 1",
    ),
    "dtype of mask": (
        lambda: forward(mask=on(np.ones((4, 3), np.complex64))),
        TypeError,
        "mask must hold bools or real numbers, got complex64",
    ),
    "shape of out": (
        lambda: forward(out=on(X[:3])),
        ValueError,
        "out must have the shape of x, (4, 3, 5), got (3, 3, 5)",
    ),
    "dtype of out": (
        lambda: forward(out=on(X.astype(np.float64))),
        TypeError,
        "out must have the dtype of x, float32, got float64",
    ),
    "out is x": (
        over_itself,
        ValueError,
        "out overlaps x in memory, which would give wrong results; it may not be an input",
    ),
    "out overlaps x": (
        overlapping,
        ValueError,
        "out overlaps x in memory, which would give wrong results; it may only be x itself",
    ),
    "read-only out": (read_only, ValueError, "out must be writable, got a read-only array"),
    "out of one element": (
        lambda: forward(out=put(np.broadcast_to(np.float32(0), X.shape).view(), "numba")),
        ValueError,
        "out must have memory of its own for each element, got strides (0, 0, 0) for shape "
        "(4, 3, 5)",
    ),
    "unaligned": (unaligned, ValueError, "x must be aligned to its elements of 4 bytes"),
    "shape of dy": (
        lambda: backward(dy=on(X[:3])),
        ValueError,
        "dy must have the shape of x, (4, 3, 5), got (3, 3, 5)",
    ),
    "dtype of dy": (
        lambda: backward(dy=on(X.astype(np.float16))),
        TypeError,
        "dy must have the dtype of x, float32, got float16",
    ),
    "shape of x": (
        lambda: backward(x=on(X[:3])),
        ValueError,
        "x must be what the forward pass had, of shape (4, 3, 5), got (3, 3, 5)",
    ),
    "dtype of x in backward": (
        lambda: backward(x=on(X.astype(np.float16))),
        TypeError,
        "x must be what the forward pass had, of dtype float32, got float16",
    ),
    "x in NumPy in backward": (
        lambda: backward(x=X),
        TypeError,
        "x must be what the forward pass had, on a CUDA device, got ndarray",
    ),
    "x on the device in backward of NumPy": (
        lambda: backward(saved=numbabn.batch_norm_forward(X)[1]),
        TypeError,
        f"x must be what the forward pass had, in NumPy, got {NAME}",
    ),
    "device gamma for NumPy": (
        lambda: numbabn.batch_norm_forward(X, on(FIVE)),
        TypeError,
        f"gamma is on a CUDA device ({NAME}), and other arrays are not",
    ),
    "device mask for NumPy": (
        lambda: numbabn.batch_statistics(X, mask=on(np.ones((4, 3), bool))),
        TypeError,
        f"mask is on a CUDA device ({NAME}), and other arrays are not",
    ),
    "device out for NumPy": (
        lambda: numbabn.batch_norm_forward(X, out=on(X)),
        TypeError,
        f"out must be a NumPy array, got {NAME}",
    ),
    "device dy for NumPy": (
        lambda: numbabn.batch_norm_backward(on(X), X, numbabn.batch_norm_forward(X)[1]),
        TypeError,
        f"dy is on a CUDA device ({NAME}), and other arrays are not",
    ),
    "values": (
        foreign_values,
        ValueError,
        "values must be what a forward pass saved, float64 of shape (6, 5), got float64 of shape "
        "(6, 4)",
    ),
    "device correction for NumPy": (
        lambda: numbabn.renorm_correction(FIVE, FIVE, FIVE, on(FIVE)),
        TypeError,
        f"renorm_stddev is on a CUDA device ({NAME}), and other arrays are not",
    ),
    "correction": (
        lambda: numbabn.renorm_correction(on(FIVE), on(FIVE), on(FIVE), FIVE),
        TypeError,
        "renorm_stddev must be an array with the CUDA array interface, as x is, got ndarray",
    ),
    "statistics": (
        lambda: numbabn.BatchStatistics(on(FIVE), on(FIVE), on(FIVE[:3])),
        ValueError,
        "variance must have the shape of mean, (5,), got (3,)",
    ),
    "statistics of a number": (
        lambda: numbabn.BatchStatistics(3, on(FIVE), on(FIVE)),
        TypeError,
        arrays("count") + "int",
    ),
    "merge": (
        lambda: numbabn.batch_statistics(on(X)).merge(numbabn.batch_statistics(X)),
        TypeError,
        arrays("count") + "ndarray",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_errors(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_nothing_is_written_before_all_is_checked():
    out = on(np.full_like(X, 7))
    with pytest.raises(TypeError):
        forward(out=out, mask=np.ones((4, 3), bool))
    np.testing.assert_array_equal(out.copy_to_host(), np.full_like(X, 7))
    assert describe(out, "out").shape == X.shape
