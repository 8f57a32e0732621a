import copy
import pickle
import re
import weakref

import numpy as np
import pytest

import numbabn
import reference
from arrays import assert_close, dense, make_case
from devices import LIBRARIES, ON_HARDWARE, describe, get, put, strides_of

MODES = {
    "plain": {},
    "separate": {"renorm": True, "renorm_momentum": 0.9},
    "shared": {"renorm": True, "renorm_momentum": None},
}
LIMITS = {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}
# Whose arrays a layer's weights can be.
OWNERS = [library for library in LIBRARIES if library != "plain"]


def layer_of(mode, **options):
    return numbabn.BatchNormalization(**{"momentum": 0.8, **MODES[mode], **options})


def case_of(seed, axis=-1, dtype=np.float32, mask=None):
    return make_case((6, 4, 3), axis, dtype, seed=seed, offset=seed, affine=False, mask=mask)


def trained(mode, library="numba", steps=2, **options):
    layer = layer_of(mode, **options)
    for seed in range(steps):
        layer(put(case_of(seed).x, library), training=True)
    return layer


def weights_of(layer):
    return {name: get(value) for name, value in layer.weights.items()}


@pytest.mark.parametrize("axis", [-1, 1, [2, 0]], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_training_steps_are_those_of_the_oracle(mode, axis):
    layer = layer_of(mode, axis=axis, renorm_clipping=LIMITS)
    # One channel stays without an element.
    mask = np.ones((6, 4, 3), bool)
    channel = [slice(None)] * 3
    for each in reference.channel_axes(3, axis):
        channel[each] = 0
    mask[tuple(channel)] = False
    layer.build(reference.parameter_shape((6, 4, 3), axis))
    layer.to("cuda", "numba")
    weights = {name: values.astype(np.float64) for name, values in weights_of(layer).items()}
    for seed in range(3):
        case = case_of(seed, axis, mask=mask)
        y = layer(put(case.x, "numba"), training=True, mask=put(mask, "numba"))
        result, weights = reference.training_step(
            weights,
            case.x,
            axis=axis,
            mask=mask,
            momentum=0.8,
            renorm=layer.renorm,
            renorm_momentum=layer.renorm_momentum if layer.renorm else None,
            clipping=LIMITS,
        )
        assert_close(get(y), result.y, scale=np.max(np.abs(result.y)))
        for name, values in weights_of(layer).items():
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, weights[name], rtol=2e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("library", OWNERS)
@pytest.mark.parametrize("mode", MODES)
def test_a_layer_on_the_device_does_as_one_on_the_cpu(mode, library):
    there, here = trained(mode, library), layer_of(mode)
    for seed in range(2):
        here(case_of(seed).x, training=True)
    dy = case_of(5).dy
    dx, expected = there.backward(put(dy, library)), here.backward(dy)
    assert_close(get(dx), expected.astype(np.float64), scale=4)
    assert sorted(there.gradients) == sorted(here.gradients)
    for name, values in here.gradients.items():
        assert_close(get(there.gradients[name]), values.astype(np.float64), scale=40)
    x = case_of(7).x
    assert_close(get(there(put(x, library))), here(x).astype(np.float64), scale=8)
    for name, values in weights_of(there).items():
        np.testing.assert_allclose(values, here.weights[name], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("library", OWNERS)
def test_weights_are_made_where_the_first_input_is(library):
    layer = trained("plain", library, dtype="float64")
    wanted = type(put(np.zeros(3), library))
    for name, weight in layer.weights.items():
        assert isinstance(weight, wanted), name
        assert get(weight).dtype == np.float64


def test_moving_statistics_move_in_place():
    layer = trained("separate", steps=1)
    before = layer.weights
    layer(put(case_of(1).x, "numba"), training=True)
    for name, weight in layer.weights.items():
        assert weight is before[name]


def test_a_failing_first_call_leaves_the_layer_unbuilt():
    layer = layer_of("plain")
    with pytest.raises(TypeError, match="mask must be an array"):
        layer(put(case_of(0).x, "numba"), training=True, mask=np.ones((6, 4), bool))
    assert layer.weights == {}
    layer(case_of(0).x, training=True)
    assert isinstance(layer.moving_mean, np.ndarray)


@pytest.mark.parametrize("library", OWNERS)
@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0])
def test_to_moves_the_weights_and_back(device, library):
    layer = layer_of("separate")
    layer(case_of(0).x, training=True)
    expected = {name: values.copy() for name, values in layer.weights.items()}
    assert layer.to(device, library) is layer
    for name, values in layer.weights.items():
        assert isinstance(values, type(put(np.zeros(3), library)))
        np.testing.assert_array_equal(get(values), expected[name])
    layer(put(case_of(1).x, library), training=True)
    layer.to("cpu")
    assert all(isinstance(values, np.ndarray) for values in layer.weights.values())
    layer(case_of(2).x, training=True)


def test_to_before_there_are_weights_says_where_they_are_made():
    layer = layer_of("plain").to("cuda", "numba")
    layer.build(3)
    assert isinstance(layer.gamma, type(put(np.zeros(3), "numba")))
    with pytest.raises(TypeError, match=re.escape("the layer's weights are arrays of Numba")):
        layer(case_of(0).x)


def test_a_layer_elsewhere_is_told_to_move():
    layer = layer_of("plain")
    layer(case_of(0).x)
    x = put(case_of(0).x, "numba")
    message = (
        f"the layer's weights are in NumPy and x is elsewhere ({type(x).__name__}): "
        "move the layer with to()"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        layer(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gpu",), ValueError, "device must be 'cpu', 'cuda', or one of"),
        (("cuda:99",), ValueError, "device must be 'cpu', 'cuda', or one of"),
        (("cuda:",), ValueError, "device must be 'cpu', 'cuda', or one of"),
        ((-1,), ValueError, "device must be 'cpu', 'cuda', or one of"),
        ((1.5,), TypeError, "device must be a string or a number, got float"),
        (("cuda", "jax"), ValueError, "library must be one of torch, cupy, numba, got 'jax'"),
    ],
    ids=str,
)
def test_to_refuses_what_is_not_there(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        layer_of("plain").to(*arguments)


def test_weights_can_be_set_from_both_sides():
    layer = trained("plain")
    layer.gamma = [1.0, 2.0, 3.0]
    layer.beta = put(np.float32([4, 5, 6]), "numba")
    np.testing.assert_array_equal(get(layer.gamma), np.float32([1, 2, 3]))
    np.testing.assert_array_equal(get(layer.beta), np.float32([4, 5, 6]))
    with pytest.raises(ValueError, match=re.escape("gamma must have shape (3,), got (2,)")):
        layer.gamma = put(np.zeros(2, np.float32), "numba")
    with pytest.raises(TypeError, match="gamma must have dtype float32, got float64"):
        layer.gamma = put(np.zeros(3), "numba")


@pytest.mark.parametrize("library", OWNERS)
def test_save_and_load(library, tmp_path):
    layer = trained("separate", library)
    layer.save(tmp_path / "layer.npz")
    other = layer_of("separate").to("cuda", library)
    other.load(tmp_path / "layer.npz")
    for name, values in weights_of(layer).items():
        np.testing.assert_array_equal(get(other.weights[name]), values)
    x = put(case_of(3).x, library)
    np.testing.assert_array_equal(get(other(x)), get(layer(x)))


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_copies_and_pickles_are_in_numpy(duplicate):
    layer = trained("separate")
    layer.backward(put(case_of(1).dy, "numba"))
    other = duplicate(layer)
    for name, values in weights_of(layer).items():
        assert isinstance(other.weights[name], np.ndarray)
        np.testing.assert_array_equal(other.weights[name], values)
    assert sorted(other.gradients) == ["beta", "gamma"]
    other(case_of(2).x, training=True)


def test_a_frozen_layer_has_the_gradient_of_inference():
    layer = trained("plain")
    layer.trainable = False
    case = case_of(4)
    before = weights_of(layer)
    layer(put(case.x, "numba"), training=True)
    dx = layer.backward(put(case.dy, "numba"))
    expected, _, _ = reference.normalize_backward(
        case.dy, case.x, before["moving_mean"], before["moving_variance"], before["gamma"]
    )
    assert_close(get(dx), expected, scale=8)
    assert layer.gradients == {}
    for name, values in weights_of(layer).items():
        np.testing.assert_array_equal(values, before[name])


def test_hardware_says_which_library_comes_first():
    place = layer_of("plain").to("cuda")._place
    assert place.library.name == ("torch" if ON_HARDWARE else "interface")


def address(array):
    return describe(array, "array").address


@pytest.mark.parametrize("library", OWNERS)
@pytest.mark.parametrize("mode", MODES)
def test_reused_outputs_hold_the_same_values(mode, library):
    """The same bits as new ones, in arrays of the library, always at the same address."""
    reusing, plain = layer_of(mode, reuse_outputs=True), layer_of(mode)
    addresses = {"y": set(), "dx": set()}
    for step in range(3):
        case = case_of(step)
        x, dy = (put(dense(each, (2, 0, 1)), library) for each in (case.x, case.dy))
        mask = put(np.random.default_rng(step).random((6, 4)) < 0.7, library)
        # The second step is one of a frozen layer.
        reusing.trainable = plain.trainable = step != 1
        for training in (True, False):
            y = reusing(x, training=training, mask=mask)
            expected = plain(x, training=training, mask=mask)
            assert isinstance(y, type(put(case.x, library)))
            assert strides_of(y) == strides_of(expected)
            np.testing.assert_array_equal(get(y), get(expected))
            addresses["y"].add(address(y))
        dx, expected = reusing.backward(dy), plain.backward(dy)
        assert strides_of(dx) == strides_of(expected)
        np.testing.assert_array_equal(get(dx), get(expected))
        addresses["dx"].add(address(dx))
    assert len(addresses["y"]) == len(addresses["dx"]) == 1
    assert addresses["y"] != addresses["dx"]


@pytest.mark.parametrize("shape", [(5, 4, 3), (6, 3, 3)], ids=str)
def test_an_input_of_another_shape_has_new_outputs(shape):
    layer = layer_of("plain", reuse_outputs=True)
    case, other = case_of(0), make_case(shape, -1, np.float32, affine=False)
    y, dx = layer(put(case.x, "numba"), training=True), layer.backward(put(case.dy, "numba"))
    before = get(y), get(dx)
    x, dy = put(other.x, "numba"), put(other.dy, "numba")
    other_y, other_dx = layer(x, training=True), layer.backward(dy)
    assert get(other_y).shape == get(other_dx).shape == shape
    np.testing.assert_array_equal(get(y), before[0])
    np.testing.assert_array_equal(get(dx), before[1])
    assert address(layer(x)) == address(other_y)
    assert address(layer.backward(dy)) == address(other_dx)


@pytest.mark.parametrize("library", OWNERS)
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_with_reuse_takes_its_own_outputs(training, library):
    """As x, as the mask, and its dx as dy: of what is read nothing is written."""
    reusing, plain = layer_of("plain", reuse_outputs=True), layer_of("plain")
    case = case_of(0)
    x, dy = put(case.x, library), put(case.dy, library)
    y, expected = reusing(x, training=True), plain(x, training=True)
    first = get(y)
    y2, expected2 = (
        layer(each, training=training) for layer, each in ((reusing, y), (plain, expected))
    )
    np.testing.assert_array_equal(get(y2), get(expected2))
    np.testing.assert_array_equal(get(y), first)
    reusing(x)
    dx, expected = reusing.backward(dy), plain.backward(dy)
    np.testing.assert_array_equal(get(dx), get(expected))
    first = get(dx)
    np.testing.assert_array_equal(get(reusing.backward(dx)), get(plain.backward(expected)))
    np.testing.assert_array_equal(get(dx), first)
    y = reusing(x)
    np.testing.assert_array_equal(
        get(reusing(x, training=True, mask=y)), get(plain(x, training=True, mask=plain(x)))
    )


def test_a_failing_call_leaves_reused_outputs_as_they_were():
    layer, case = layer_of("plain", reuse_outputs=True), case_of(0)
    x, dy = put(case.x, "numba"), put(case.dy, "numba")
    y, dx = layer(x, training=True), layer.backward(dy)
    before = get(y), get(dx)
    other = put(case.x + 1, "numba")
    with pytest.raises(TypeError, match="mask must be an array"):
        layer(other, training=True, mask=np.ones((6, 4), bool))
    with pytest.raises(TypeError, match="dy must be an array"):
        layer.backward(case.dy)
    with pytest.raises(ValueError, match=re.escape("dy must have the shape of x, (6, 4, 3)")):
        layer.backward(put(case.dy[:5], "numba"))
    np.testing.assert_array_equal(get(y), before[0])
    np.testing.assert_array_equal(get(dx), before[1])
    assert address(layer.backward(dy)) == address(dx)
    np.testing.assert_array_equal(get(dx), before[1])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_to_forgets_reused_outputs(device):
    layer, case = layer_of("plain", reuse_outputs=True), case_of(0)
    x = put(case.x, "numba")
    layer(x, training=True)
    outputs = [layer(x), layer.backward(put(case.dy, "numba"))]
    held = [weakref.ref(each) for each in outputs]
    del outputs
    assert all(array() is not None for array in held)
    layer.to(device)
    assert all(array() is None for array in held)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle])
def test_reused_outputs_stay_with_their_layer(duplicate):
    layer, case = layer_of("plain", reuse_outputs=True), case_of(0)
    x, dy = put(case.x, "numba"), put(case.dy, "numba")
    y, dx = layer(x, training=True), layer.backward(dy)
    before = get(y), get(dx)
    other = duplicate(layer).to("cuda", "numba")
    assert address(other(put(case.x + 1, "numba"), training=True)) != address(y)
    assert address(other.backward(dy)) != address(dx)
    np.testing.assert_array_equal(get(y), before[0])
    np.testing.assert_array_equal(get(dx), before[1])
