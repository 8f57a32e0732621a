import copy
import json
import pickle
import re
import weakref

import numpy as np
import pytest

import numbabn
import reference
from arrays import DTYPES, assert_close, dense, make_case, parameter_dtype, same_memory_order

MODES = {
    "plain": {},
    "separate": {"renorm": True, "renorm_momentum": 0.9},
    "shared": {"renorm": True, "renorm_momentum": None},
}
WEIGHTS = {
    "plain": ["gamma", "beta", "moving_mean", "moving_variance"],
    "separate": [
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
        "moving_stddev",
        "renorm_mean",
        "renorm_stddev",
    ],
    "shared": ["gamma", "beta", "moving_mean", "moving_variance"],
}
LIMITS = {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}


def layer_of(mode, **options):
    return numbabn.BatchNormalization(**{"momentum": 0.8, **MODES[mode], **options})


def batches(shape=(6, 4, 3), count=4, dtype=np.float32):
    return [
        make_case(shape, -1, dtype, seed=seed, offset=seed, affine=False) for seed in range(count)
    ]


def weights_of(layer):
    return {name: np.array(value) for name, value in layer.weights.items()}


def assert_same_weights(layer, expected):
    assert list(layer.weights) == list(expected)
    for name, value in layer.weights.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def trained(mode, steps=2, **options):
    layer = layer_of(mode, **options)
    for case in batches(count=steps):
        layer(case.x, training=True)
    return layer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [1, -1, [0, 2]], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_training_steps_agree_with_the_oracle(masked, axis, dtype, mode):
    """Outputs, gradients and every weight over four steps, the clipping replaced between them."""
    if mode == "plain":
        clippings = [None] * 4
    else:
        clippings = [{"rmin": 1.0, "rmax": 1.0, "dmax": 0.0}, LIMITS, {"rmax": 1.5}, None]
    layer = layer_of(mode, axis=axis, epsilon=1e-2, renorm_clipping=clippings[0])
    weights = None
    for step, clipping in enumerate(clippings):
        case = make_case((6, 4, 3), axis, dtype, seed=step, offset=step, affine=False)
        mask = np.random.default_rng(step).random((6, 4)) < 0.7 if masked else None
        if mode != "plain":
            layer.renorm_clipping = clipping
        y = layer(case.x, training=True, mask=mask)
        dx = layer.backward(case.dy)
        if weights is None:
            channels = case.parameter_shape
            weights = {
                name: (np.zeros if name.endswith(("mean", "beta")) else np.ones)(channels)
                for name in WEIGHTS[mode]
            }
        result, weights = reference.training_step(
            weights,
            case.x,
            axis=axis,
            mask=mask,
            momentum=0.8,
            epsilon=1e-2,
            renorm=mode != "plain",
            renorm_momentum=MODES[mode].get("renorm_momentum"),
            clipping=clipping,
        )
        assert_close(y, result.y, scale=10)
        expected = reference.backward(
            case.dy,
            case.x,
            weights["gamma"],
            axis=axis,
            mask=mask,
            epsilon=1e-2,
            r=result.r,
            d=result.d,
        )
        assert_close(dx, expected[0], scale=10)
        assert list(layer.gradients) == ["gamma", "beta"]
        assert_close(layer.gradients["gamma"], expected[1], scale=100)
        assert_close(layer.gradients["beta"], expected[2], scale=100)
        assert list(layer.weights) == list(weights)
        for name, value in weights.items():
            assert layer.weights[name].dtype == parameter_dtype(dtype)
            assert layer.weights[name].shape == case.parameter_shape
            assert_close(layer.weights[name], value, scale=10)


@pytest.mark.parametrize("mode", MODES)
def test_inference_normalizes_with_the_moving_statistics(mode):
    layer = trained(mode)
    before = weights_of(layer)
    x = batches()[3].x
    expected = reference.normalize(x, before["moving_mean"], before["moving_variance"])
    assert_close(layer(x), expected, scale=10)
    assert_close(layer(x, training=False), expected, scale=10)
    assert_close(layer(x, training=False, mask=np.zeros((6, 4))), expected, scale=10)
    assert_same_weights(layer, before)


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_layer_runs_in_inference_mode(mode):
    layer = trained(mode)
    before = weights_of(layer)
    layer.trainable = False
    x = batches()[3].x
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    assert_same_weights(layer, before)
    layer.trainable = True
    layer(x, training=True)
    assert np.all(layer.moving_mean != before["moving_mean"])


def test_a_first_call_that_fails_leaves_no_weights():
    layer = layer_of("separate")
    with pytest.raises(
        ValueError, match=r"^mask of shape \(5,\) does not fit x of shape \(4, 3\): "
    ):
        layer(np.ones((4, 3), np.float32), training=True, mask=np.ones(5))
    assert layer.weights == {}
    layer(np.ones((4, 7), np.float32), training=True)
    assert layer.gamma.shape == (7,)


@pytest.mark.parametrize("mode", MODES)
def test_backward_of_a_frozen_layer_is_the_inference_gradient(mode):
    layer = trained(mode)
    layer.trainable = False
    case = batches()[3]
    layer(case.x, training=True)
    expected, _, _ = reference.normalize_backward(
        case.dy, case.x, layer.moving_mean, layer.moving_variance, layer.gamma
    )
    assert_close(layer.backward(case.dy), expected, scale=10)
    assert layer.gradients == {}


def test_first_weights():
    layer = layer_of("separate")
    layer(np.ones((2, 3), np.float32))
    expected = {
        name: (np.zeros if name.endswith(("mean", "beta")) else np.ones)(3, np.float32)
        for name in WEIGHTS["separate"]
    }
    assert_same_weights(layer, expected)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_center_and_scale(center, scale):
    layer = layer_of("plain", center=center, scale=scale)
    (case,) = batches(count=1)
    y = layer(case.x, training=True)
    assert_close(y, reference.forward(case.x).y, scale=4)
    layer.backward(case.dy)
    names = ["gamma"] * scale + ["beta"] * center
    assert list(layer.gradients) == names
    assert list(layer.weights) == [*names, "moving_mean", "moving_variance"]
    assert (layer.gamma is None, layer.beta is None) == (not scale, not center)


def test_weights_are_the_attributes():
    layer = trained("separate")
    for name, value in layer.weights.items():
        assert getattr(layer, name) is value
    layer.gamma[:] = 2.0
    layer.beta = np.full(3, 5.0, np.float32)
    case = batches()[0]
    y = layer(case.x)
    expected = reference.normalize(
        case.x, layer.moving_mean, layer.moving_variance, np.full(3, 2.0), np.full(3, 5.0)
    )
    assert_close(y, expected, scale=10)


@pytest.mark.parametrize("mode", MODES)
def test_a_channel_without_positions_moves_nothing(mode):
    layer = trained(mode)
    before = weights_of(layer)
    x = batches()[3].x
    mask = np.ones((1, 1, 3), bool)
    mask[..., 1] = False
    y = layer(x, training=True, mask=mask)
    assert np.all(np.isfinite(y))
    for name in set(before) - {"gamma", "beta"}:
        moved = layer.weights[name] != before[name]
        np.testing.assert_array_equal(moved, [True, False, True], err_msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_moves_nothing(mode):
    layer = trained(mode)
    before = weights_of(layer)
    y = layer(np.zeros((0, 4, 3), np.float32), training=True)
    assert y.shape == (0, 4, 3)
    assert layer.backward(y).shape == (0, 4, 3)
    assert_same_weights(layer, before)


@pytest.mark.parametrize("mode", MODES)
def test_nan_padding_moves_nothing(mode):
    """A training step with NaN padding is the step without it."""
    padded, plain = trained(mode), trained(mode)
    case = batches()[3]
    x = np.concatenate([case.x, np.full((2, 4, 3), np.nan, np.float32)])
    dy = np.concatenate([case.dy, np.zeros((2, 4, 3), np.float32)])
    y = padded(x, training=True, mask=np.arange(8).reshape(8, 1) < 6)
    assert_close(y[:6], plain(case.x, training=True).astype(np.float64), scale=4)
    assert_close(padded.backward(dy)[:6], plain.backward(case.dy).astype(np.float64), scale=4)
    for name, value in plain.weights.items():
        assert_close(padded.weights[name], value.astype(np.float64), scale=4)
    for name, value in plain.gradients.items():
        assert_close(padded.gradients[name], value.astype(np.float64), scale=100)


def test_constructor_arguments_are_keras_s():
    layer = numbabn.BatchNormalization(1, 0.9, 1e-2, False, False)
    config = layer.get_config()
    assert config["axis"] == 1
    assert (config["momentum"], config["epsilon"]) == (0.9, 1e-2)
    assert (config["center"], config["scale"]) == (False, False)
    defaults = numbabn.BatchNormalization()
    assert (defaults.axis, defaults.momentum, defaults.epsilon) == (-1, 0.99, 1e-3)
    assert (defaults.center, defaults.scale, defaults.trainable) == (True, True, True)
    assert (defaults.renorm, defaults.renorm_momentum) == (False, 0.99)
    assert defaults.reuse_outputs is False
    assert defaults.renorm_clipping == numbabn.RenormClipping()


def test_repr_is_what_makes_the_layer():
    layer = layer_of("shared", axis=[1, 2], renorm_clipping=LIMITS, dtype="float64")
    again = eval(repr(layer), {"BatchNormalization": numbabn.BatchNormalization})
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"axis": [1, -1], "center": False},
        {"axis": (1, 2)},
        {"axis": np.int64(1), "momentum": np.float32(0.5), "epsilon": np.float64(0.1)},
        {"epsilon": 0.1, "scale": False, "momentum": 0.5},
        {"dtype": "float64"},
        {"dtype": np.float64},
        {"reuse_outputs": True},
    ],
    ids=str,
)
def test_config_round_trip(options, mode):
    clipping = {} if mode == "plain" else {"renorm_clipping": numbabn.RenormClipping(rmax=3.0)}
    layer = layer_of(mode, **options, **clipping)
    config = layer.get_config()
    through_json = json.loads(json.dumps(config))
    assert through_json == config
    again = numbabn.BatchNormalization.from_config(through_json)
    assert again.get_config() == config
    case = batches(count=1, dtype=np.float64 if "dtype" in options else np.float32)[0]
    np.testing.assert_array_equal(again(case.x, training=True), layer(case.x, training=True))
    assert_same_weights(again, weights_of(layer))


@pytest.mark.parametrize("mode", MODES)
def test_save_and_load(tmp_path, mode):
    layer = trained(mode)
    before = weights_of(layer)
    path = tmp_path / "layer.npz"
    layer.save(path)
    assert list(tmp_path.iterdir()) == [path]
    fresh = layer_of(mode)
    assert fresh.load(path) is fresh
    assert_same_weights(fresh, before)
    # A layer that has weights gets the saved ones, and goes on like the first.
    other = trained(mode, steps=1)
    other.load(str(path))
    case = batches()[3]
    np.testing.assert_array_equal(other(case.x, training=True), layer(case.x, training=True))
    assert_same_weights(other, weights_of(layer))


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        pytest.param(
            "shared",
            "separate",
            "{path} holds the weights ['beta', 'gamma', 'moving_mean', 'moving_variance'], this "
            "layer has ['beta', 'gamma', 'moving_mean', 'moving_stddev', 'moving_variance', "
            "'renorm_mean', 'renorm_stddev']",
            id="other weights",
        ),
        pytest.param(
            "other channels",
            "plain",
            "{path} holds gamma of shape (7,), this layer has (3,)",
            id="other channels",
        ),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, saved, loading, message):
    path = tmp_path / "layer.npz"
    if saved == "other channels":
        layer = layer_of("plain")
        layer(np.ones((2, 7), np.float32))
    else:
        layer = trained(saved)
    layer.save(path)
    other = trained(loading)
    before = weights_of(other)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(path=path))}$"):
        other.load(path)
    assert_same_weights(other, before)


def test_a_missing_file_changes_nothing(tmp_path):
    layer = trained("plain")
    before = weights_of(layer)
    with pytest.raises(FileNotFoundError):
        layer.load(tmp_path / "none.npz")
    assert_same_weights(layer, before)


def test_saved_files_are_plain_npz(tmp_path):
    layer = trained("separate")
    layer.save(tmp_path / "layer.npz")
    with np.load(tmp_path / "layer.npz", allow_pickle=False) as file:
        for name, value in layer.weights.items():
            np.testing.assert_array_equal(file[name], value)


@pytest.mark.parametrize("mode", MODES)
def test_pickling(mode):
    layer = trained(mode)
    again = pickle.loads(pickle.dumps(layer))
    assert again.get_config() == layer.get_config()
    assert_same_weights(again, weights_of(layer))
    case = batches()[3]
    np.testing.assert_array_equal(again(case.x, training=True), layer(case.x, training=True))
    np.testing.assert_array_equal(again.backward(case.dy), layer.backward(case.dy))


def test_a_layer_that_was_never_called_can_be_pickled():
    layer = pickle.loads(pickle.dumps(layer_of("separate")))
    assert layer(batches()[0].x, training=True).shape == (6, 4, 3)


@pytest.mark.parametrize("given", [{"rmax": 3.0}, numbabn.RenormClipping(rmax=3.0)], ids=repr)
def test_clipping_may_be_a_dict_or_an_object(given):
    one, other = layer_of("separate", renorm_clipping=given), layer_of("separate")
    other.renorm_clipping = given
    for case in batches():
        np.testing.assert_array_equal(one(case.x, training=True), other(case.x, training=True))
    assert one.get_config() == other.get_config()


def test_backward_uses_the_gamma_of_its_forward():
    case = batches()[0]
    layer, untouched = layer_of("plain"), layer_of("plain")
    for each in (layer, untouched):
        each(case.x, training=True)
    layer.gamma += 1.0
    np.testing.assert_array_equal(layer.backward(case.dy), untouched.backward(case.dy))


def test_dtype_of_weights_follows_the_input_or_is_given():
    for dtype in DTYPES:
        layer = layer_of("plain")
        layer(np.ones((2, 3), dtype))
        assert layer.gamma.dtype == layer.moving_mean.dtype == parameter_dtype(dtype)
    layer = layer_of("plain", dtype="float64")
    layer(np.ones((2, 3), np.float64))
    assert layer.gamma.dtype == np.float64


@pytest.mark.parametrize("mode", MODES)
def test_training_converges_to_the_statistics_of_the_data(mode, rng):
    layer = layer_of(mode)
    data = rng.normal(5.0, 3.0, (200, 2)).astype(np.float32)
    for _ in range(60):
        layer(data, training=True)
    batch = reference.statistics(data)
    # What is left of the first values: 0.8^60 = 1.5e-6 for momentum, times at most 9.
    np.testing.assert_allclose(layer.moving_mean, batch.mean, rtol=3e-5)
    np.testing.assert_allclose(layer.moving_variance, batch.variance, rtol=3e-5)


def address(array):
    return array.__array_interface__["data"][0]


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def with_and_without_reuse(mode="plain", **options):
    return layer_of(mode, reuse_outputs=True, **options), layer_of(mode, **options)


def test_outputs_are_new_unless_reuse_is_asked_for():
    layer, case = layer_of("plain"), batches()[0]
    ys = [layer(case.x, training=True), layer(case.x, training=True), layer(case.x)]
    dxs = [layer.backward(case.dy), layer.backward(case.dy)]
    assert len({address(each) for each in ys + dxs}) == 5
    owners = [weakref.ref(each if each.base is None else each.base) for each in ys + dxs]
    del ys, dxs
    assert all(owner() is None for owner in owners)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [1, -1, [0, 2]], ids=str)
@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_reused_outputs_hold_the_same_values(memory, axis, dtype, mode):
    """The same bits as new ones, in the memory order of x, always at the same address."""
    reusing, plain = with_and_without_reuse(mode, axis=axis)
    addresses = {"y": set(), "dx": set()}
    for step in range(4):
        case = make_case((6, 4, 3), axis, dtype, seed=step, offset=step, affine=False)
        x = dense(case.x, memory)
        mask = np.random.default_rng(step).random((6, 4)) < 0.7
        # The third step is one of a frozen layer.
        reusing.trainable = plain.trainable = step != 2
        for training in (True, False):
            y = reusing(x, training=training, mask=mask)
            expected = plain(x, training=training, mask=mask)
            assert y.tobytes() == expected.tobytes()
            assert same_memory_order(y, expected)
            addresses["y"].add(address(y))
        dx, expected = reusing.backward(case.dy), plain.backward(case.dy)
        assert dx.tobytes() == expected.tobytes()
        assert same_memory_order(dx, expected)
        addresses["dx"].add(address(dx))
        assert_same_weights(reusing, weights_of(plain))
    assert len(addresses["y"]) == len(addresses["dx"]) == 1
    assert addresses["y"] != addresses["dx"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(np.ones((5, 4, 3), np.float32), id="shape"),
        pytest.param(np.ones((6, 4, 3), np.float64), id="dtype"),
        pytest.param(dense(np.ones((6, 4, 3), np.float32), (2, 0, 1)), id="memory order"),
    ],
)
def test_an_input_of_another_form_has_new_outputs(other):
    """What was returned stays as it is, and nothing but its caller keeps it."""
    layer, case = layer_of("plain", reuse_outputs=True), batches()[0]
    outputs = [layer(case.x, training=True), layer.backward(case.dy)]
    before = [each.copy() for each in outputs]
    y, dx = layer(other, training=True), layer.backward(np.ones_like(other))
    for each in (y, dx):
        assert (each.shape, each.dtype) == (other.shape, other.dtype)
        assert same_memory_order(each, other)
    for each, wanted in zip(outputs, before, strict=True):
        np.testing.assert_array_equal(each, wanted)
    owners = [weakref.ref(each.base) for each in outputs]
    del outputs, each
    assert all(owner() is None for owner in owners)
    assert address(layer(other)) == address(y)
    assert address(layer.backward(np.ones_like(other))) == address(dx)


@pytest.mark.parametrize("view", [np.asarray, np.flip], ids=["itself", "backwards"])
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_with_reuse_takes_its_own_output(training, view):
    reusing, plain = with_and_without_reuse()
    first, _, third, _ = batches()
    y, expected = (each(first.x, training=True) for each in (reusing, plain))
    again = reusing(view(y), training=training)
    np.testing.assert_array_equal(again, plain(view(expected), training=training))
    np.testing.assert_array_equal(y, expected)
    # A call before the backward does not touch the input that this one reads again.
    np.testing.assert_array_equal(reusing(third.x), plain(third.x))
    for _ in range(2):
        np.testing.assert_array_equal(reusing.backward(first.dy), plain.backward(first.dy))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("view", [np.asarray, np.flip], ids=["itself", "backwards"])
def test_a_layer_with_reuse_takes_its_own_gradient(view, trainable):
    """As dy, and as the x that every backward reads again."""
    reusing, plain = with_and_without_reuse()
    case = batches()[0]
    for layer in (reusing, plain):
        layer(case.x, training=True)
        layer.trainable = trainable
        layer(case.x, training=True)
    dx, expected = reusing.backward(case.dy), plain.backward(case.dy)
    again, wanted = reusing.backward(view(dx)), plain.backward(view(expected))
    np.testing.assert_array_equal(again, wanted)
    np.testing.assert_array_equal(dx, expected)
    reusing(view(again), training=True)
    plain(view(wanted), training=True)
    for _ in range(2):
        np.testing.assert_array_equal(reusing.backward(case.dy), plain.backward(case.dy))


def test_a_layer_with_reuse_takes_its_own_outputs_as_masks():
    reusing, plain = with_and_without_reuse()
    first, second, *_ = batches()
    y, expected = (each(first.x, training=True) for each in (reusing, plain))
    y[0] = expected[0] = 0
    y = reusing(second.x, training=True, mask=y)
    np.testing.assert_array_equal(y, plain(second.x, training=True, mask=expected))
    on = np.random.default_rng(0).random((6, 4, 3)) < 0.7
    # The memory of dx as a mask of bytes, to which the layer refers until the backward.
    mask = reusing.backward(second.dy).reshape(-1).view(np.bool_)[: on.size].reshape(on.shape)
    mask[...] = on
    for layer in (reusing, plain):
        layer(first.x, training=True, mask=mask if layer is reusing else on)
    for _ in range(2):
        np.testing.assert_array_equal(reusing.backward(first.dy), plain.backward(first.dy))


def test_two_layers_with_reuse_in_a_row():
    """The second one's x is the first one's y, which is there until the first is called again."""
    chains = [[layer_of("plain", reuse_outputs=reuse) for _ in range(2)] for reuse in (True, False)]
    for case in batches():
        results = []
        for one, two in chains:
            y = two(one(case.x, training=True), training=True)
            results.append((y, one.backward(two.backward(case.dy))))
        for actual, expected in zip(*results, strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_a_failing_call_leaves_reused_outputs_as_they_were():
    layer, case = layer_of("plain", reuse_outputs=True), batches()[0]
    y, dx = layer(case.x, training=True), layer.backward(case.dy)
    before, expected = weights_of(layer), (y.copy(), dx.copy())
    with pytest.raises(ValueError, match=r"^mask of shape \(5,\) does not fit x of shape "):
        layer(case.x + 1, training=True, mask=np.ones(5))
    with pytest.raises(ValueError, match=r"^dy must have the shape of x, \(6, 4, 3\), got \(6,\)$"):
        layer.backward(np.ones(6, np.float32))
    with pytest.raises(TypeError, match=r"^dy must be a NumPy array .*, got list$"):
        layer.backward([1.0])
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(dx, expected[1])
    assert_same_weights(layer, before)
    assert address(layer.backward(case.dy)) == address(dx)
    np.testing.assert_array_equal(dx, expected[1])
    assert address(layer(case.x, training=True)) == address(y)


def test_what_the_caller_does_to_an_output_does_not_reach_the_next_call():
    reusing, plain = with_and_without_reuse()
    for case in batches():
        y, dx = reusing(case.x, training=True), reusing.backward(case.dy)
        np.testing.assert_array_equal(y, plain(case.x, training=True))
        np.testing.assert_array_equal(dx, plain.backward(case.dy))
        for each in (y, dx):
            each[...] = np.nan
            each.setflags(write=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle])
def test_reused_outputs_stay_with_their_layer(duplicate):
    layer = layer_of("plain", reuse_outputs=True)
    case = make_case((2000, 3), -1, np.float32, affine=False)
    y, dx = layer(case.x, training=True), layer.backward(case.dy)
    before = y.copy(), dx.copy()
    assert len(pickle.dumps(layer)) < y.nbytes / 10
    other = duplicate(layer)
    other_y, other_dx = other(case.x + 1, training=True), other.backward(case.dy + 1)
    assert not np.shares_memory(other_y, y)
    assert not np.shares_memory(other_dx, dx)
    np.testing.assert_array_equal(y, before[0])
    np.testing.assert_array_equal(dx, before[1])


def test_the_configuration_says_whether_outputs_are_reused():
    for layer, expected in zip(with_and_without_reuse(), (True, False), strict=True):
        assert layer.get_config()["reuse_outputs"] is expected
        assert numbabn.BatchNormalization.from_config(layer.get_config()).reuse_outputs is expected
        assert through_pickle(layer).reuse_outputs is expected


def test_to_forgets_reused_outputs():
    layer, case = layer_of("plain", reuse_outputs=True), batches()[0]
    outputs = layer(case.x, training=True), layer.backward(case.dy)
    owners = [weakref.ref(each.base) for each in outputs]
    del outputs
    assert all(owner() is not None for owner in owners)
    layer.to("cpu")
    assert all(owner() is None for owner in owners)
