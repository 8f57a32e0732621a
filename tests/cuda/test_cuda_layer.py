"""A layer on a device: how it comes there, and back."""

import numpy as np
import pytest

import numbabn
from arrays import raises
from devices import (
    LIBRARY,
    ON_HARDWARE,
    OWNERS,
    TELLING,
    assert_same,
    copies,
    get,
    not_an_array,
    put,
    type_of,
)
from numbabn.cuda.runtime import device_count

X = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)


def trained(library=LIBRARY, **options):
    layer = numbabn.BatchNormalization(**options)
    layer(put(X, library), training=True)
    return layer


def no_device(got):
    return (
        f"device must be 'cpu', 'cuda', or one of {device_count()} devices by number, as in "
        f"'cuda:0', got {got!r}"
    )


def elsewhere(where, got):
    return f"the layer's weights are {where} and x is elsewhere ({got}): move the layer with to()"


def test_moving_statistics_move_in_place():
    layer = trained(renorm=True)
    before = layer.weights
    layer(put(X), training=True)
    for name, weight in layer.weights.items():
        assert weight is before[name]


def test_a_failing_first_call_leaves_the_layer_where_it_was():
    layer = numbabn.BatchNormalization()
    with raises(TypeError, not_an_array("mask", "ndarray")):
        layer(put(X), training=True, mask=np.ones((6, 4), bool))
    assert layer.weights == {}
    layer(X, training=True)
    assert isinstance(layer.moving_mean, np.ndarray)


@pytest.mark.parametrize("library", OWNERS)
@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0])
def test_to_moves_the_weights_and_back(device, library):
    layer = trained("numpy", renorm=True)
    expected = copies(layer.weights.values())
    assert layer.to(device, library) is layer
    assert all(isinstance(values, type_of(library)) for values in layer.weights.values())
    assert_same(layer.weights.values(), expected)
    layer(put(X, library), training=True)
    expected = copies(layer.weights.values())
    layer.to("cpu")
    assert all(isinstance(values, np.ndarray) for values in layer.weights.values())
    assert_same(layer.weights.values(), expected)
    layer(X, training=True)


def test_to_before_there_are_weights_says_where_they_are_made():
    layer = numbabn.BatchNormalization().to("cuda", "numba")
    layer.build(3)
    assert isinstance(layer.gamma, type_of("numba"))
    with raises(TypeError, elsewhere("arrays of Numba on CUDA device 0", "ndarray")):
        layer(X)


def test_a_layer_elsewhere_is_told_to_move():
    x = put(X)
    with raises(TypeError, elsewhere("in NumPy", type(x).__name__)):
        trained("numpy")(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *((each, ValueError, no_device(each[0])) for each in [("gpu",), ("cuda:99",), ("cuda:",)]),
        ((-1,), ValueError, no_device(-1)),
        ((1.5,), TypeError, "device must be a string or a number, got float"),
        (("cuda", "jax"), ValueError, "library must be one of torch, cupy, numba, got 'jax'"),
    ],
    ids=str,
)
def test_to_refuses_what_is_not_there(arguments, error, message):
    layer = numbabn.BatchNormalization()
    with raises(error, message):
        layer.to(*arguments)


def test_a_saved_layer_is_loaded_to_a_device(tmp_path):
    layer = trained()
    layer.save(tmp_path / "layer.npz")
    other = numbabn.BatchNormalization().to("cuda", LIBRARY).load(tmp_path / "layer.npz")
    assert all(isinstance(values, type_of(LIBRARY)) for values in other.weights.values())
    assert_same([other(put(X))], [layer(put(X))])


def test_weights_can_be_set_from_both_sides():
    layer = trained()
    layer.gamma = [1.0, 2.0, 3.0]
    layer.beta = put(np.float32([4, 5, 6]))
    assert_same((layer.gamma, layer.beta), ([1, 2, 3], [4, 5, 6]))
    for values, error, message in [
        (np.zeros(2, np.float32), ValueError, "gamma must have shape (3,), got (2,)"),
        (np.zeros(3), TypeError, "gamma must have dtype float32, got float64"),
    ]:
        with raises(error, message):
            layer.gamma = put(values, TELLING)
    np.testing.assert_array_equal(get(layer.gamma), [1, 2, 3])


def test_hardware_says_which_library_comes_first():
    place = numbabn.BatchNormalization().to("cuda")._place
    assert place.library.name == ("torch" if ON_HARDWARE else "interface")
