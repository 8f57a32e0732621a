import copy
import json
import pickle
import weakref

import numpy as np
import pytest

import numbabn
import reference
from arrays import (
    DTYPES,
    assert_close,
    dense,
    make_case,
    mask_does_not_fit,
    parameter_dtype,
    raises,
)
from devices import (
    LIBRARY,
    ON_CPU,
    OWNERS,
    PAIRS,
    address,
    assert_same,
    assert_same_bits,
    copies,
    get,
    not_an_array,
    put,
    strides_of,
    type_of,
    write,
)

MODES = {
    "plain": {},
    "separate": {"renorm": True, "renorm_momentum": 0.9},
    "shared": {"renorm": True, "renorm_momentum": None},
}
SHARED = ["gamma", "beta", "moving_mean", "moving_variance"]
SEPARATE = [*SHARED, "moving_stddev", "renorm_mean", "renorm_stddev"]
WEIGHTS = {"plain": SHARED, "separate": SEPARATE, "shared": SHARED}
LIMITS = {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}

each_mode = pytest.mark.parametrize("mode", MODES)
each_owner = pytest.mark.parametrize("library", OWNERS)
in_numpy = pytest.mark.only_on("cpu", reason="of NumPy's arrays, or of none")


def layer_of(mode, **options):
    return numbabn.BatchNormalization(**{"momentum": 0.8, **MODES[mode], **options})


def case_of(seed, axis=-1, dtype=np.float32, shape=(6, 4, 3)):
    return make_case(shape, axis, dtype, seed=seed, offset=seed, affine=False)


def trained(mode, library=LIBRARY, steps=2, **options):
    layer = layer_of(mode, **options)
    for seed in range(steps):
        layer(put(case_of(seed).x, library), training=True)
    return layer


def home(layer):
    """A copy of a layer, which is in NumPy, moved to where these tests are."""
    return layer if ON_CPU else layer.to("cuda", LIBRARY)


def weights_of(layer):
    return {name: np.array(get(value)) for name, value in layer.weights.items()}


def first_weights(mode, shape, dtype=np.float64):
    return {
        name: (np.zeros if name.endswith(("mean", "beta")) else np.ones)(shape, dtype)
        for name in WEIGHTS[mode]
    }


def assert_same_weights(layer, expected):
    assert list(layer.weights) == list(expected)
    for name, value in layer.weights.items():
        np.testing.assert_array_equal(get(value), expected[name], err_msg=name)


def mask_of(kind, step, axis):
    if kind == "all":
        return None
    if kind == "masked":
        return np.random.default_rng(step).random((6, 4)) < 0.7
    mask = np.ones((6, 4, 3), bool)
    channel = [slice(None)] * 3
    for each in reference.channel_axes(3, axis):
        channel[each] = 0
    mask[tuple(channel)] = False
    return mask


@each_mode
@pytest.mark.parametrize(
    ("library", "dtype"), [(owner, dtype) for owner, dtype in PAIRS if owner in OWNERS], ids=str
)
@pytest.mark.parametrize("axis", [1, -1, [0, 2]], ids=str)
@pytest.mark.parametrize("masked", ["all", "masked", "but a channel"])
def test_training_steps_agree_with_the_oracle(masked, axis, library, dtype, mode):
    """Outputs, gradients and every weight over four steps, the clipping replaced between them."""
    if mode == "plain":
        clippings = [None] * 4
    else:
        clippings = [{"rmin": 1.0, "rmax": 1.0, "dmax": 0.0}, LIMITS, {"rmax": 1.5}, None]
    layer = layer_of(mode, axis=axis, epsilon=1e-2, renorm_clipping=clippings[0])
    weights = first_weights(mode, reference.parameter_shape((6, 4, 3), axis))
    for step, clipping in enumerate(clippings):
        case, mask = case_of(step, axis, dtype), mask_of(masked, step, axis)
        x = put(case.x, library)
        if mode != "plain":
            layer.renorm_clipping = clipping
        y = layer(x, training=True, mask=put(mask, library))
        dx = layer.backward(put(case.dy, library))
        options = {"axis": axis, "epsilon": 1e-2}
        result, weights = reference.training_step(
            weights,
            case.x,
            mask=mask,
            momentum=0.8,
            renorm=mode != "plain",
            renorm_momentum=MODES[mode].get("renorm_momentum"),
            clipping=clipping,
            **options,
        )
        assert_close(get(y), result.y, scale=10)
        expected = reference.backward(
            case.dy, case.x, weights["gamma"], mask=mask, r=result.r, d=result.d, **options
        )
        assert_close(get(dx), expected[0], scale=10)
        assert list(layer.gradients) == ["gamma", "beta"]
        assert_close(get(layer.gradients["gamma"]), expected[1], scale=100)
        assert_close(get(layer.gradients["beta"]), expected[2], scale=100)
        assert list(layer.weights) == list(weights)
        for name, value in weights_of(layer).items():
            assert value.dtype == parameter_dtype(dtype)
            assert_close(value, weights[name], scale=10)
        statistics = weights["moving_mean"], weights["moving_variance"]
        inference = reference.normalize(case.x, *statistics, **options)
        assert_close(get(layer(x)), inference, scale=100)


@each_mode
def test_inference_normalizes_with_the_moving_statistics(mode):
    layer = trained(mode)
    before = weights_of(layer)
    case = case_of(3)
    x = put(case.x)
    expected = reference.normalize(case.x, before["moving_mean"], before["moving_variance"])
    assert_close(get(layer(x)), expected, scale=10)
    assert_close(get(layer(x, training=False)), expected, scale=10)
    assert_close(get(layer(x, training=False, mask=put(np.zeros((6, 4))))), expected, scale=10)
    assert_same_weights(layer, before)


@each_mode
def test_a_frozen_layer_runs_in_inference_mode(mode):
    layer = trained(mode)
    before = weights_of(layer)
    layer.trainable = False
    x = put(case_of(3).x)
    assert_same([layer(x, training=True)], [layer(x, training=False)])
    assert_same_weights(layer, before)
    layer.trainable = True
    layer(x, training=True)
    assert np.all(get(layer.moving_mean) != before["moving_mean"])


@each_mode
def test_backward_of_a_frozen_layer_is_the_inference_gradient(mode):
    layer = trained(mode)
    layer.trainable = False
    case = case_of(3)
    before = weights_of(layer)
    layer(put(case.x), training=True)
    expected, _, _ = reference.normalize_backward(
        case.dy, case.x, before["moving_mean"], before["moving_variance"], before["gamma"]
    )
    assert_close(get(layer.backward(put(case.dy))), expected, scale=10)
    assert layer.gradients == {}
    assert_same_weights(layer, before)


def test_a_first_call_that_fails_leaves_no_weights():
    layer = layer_of("separate")
    with raises(ValueError, mask_does_not_fit((5,), (4, 3))):
        layer(put(np.ones((4, 3), np.float32)), training=True, mask=put(np.ones(5)))
    assert layer.weights == {}
    layer(put(np.ones((4, 7), np.float32)), training=True)
    assert layer.gamma.shape == (7,)


@each_owner
def test_weights_are_made_where_the_first_input_is(library):
    layer = trained("plain", library, dtype="float64")
    for name, weight in layer.weights.items():
        assert isinstance(weight, type_of(library)), name
        assert get(weight).dtype == np.float64


def test_first_weights():
    layer = layer_of("separate")
    layer(put(np.ones((2, 3), np.float32)))
    assert_same_weights(layer, first_weights("separate", 3, np.float32))


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_center_and_scale(center, scale):
    layer = layer_of("plain", center=center, scale=scale)
    case = case_of(0)
    y = layer(put(case.x), training=True)
    assert_close(get(y), reference.forward(case.x).y, scale=4)
    layer.backward(put(case.dy))
    names = ["gamma"] * scale + ["beta"] * center
    assert list(layer.gradients) == names
    assert list(layer.weights) == [*names, "moving_mean", "moving_variance"]
    assert (layer.gamma is None, layer.beta is None) == (not scale, not center)


def test_weights_are_the_attributes():
    layer = trained("separate")
    for name, value in layer.weights.items():
        assert getattr(layer, name) is value
    gamma, beta = np.full(3, 2.0, np.float32), np.full(3, 5.0, np.float32)
    write(layer.gamma, gamma)
    layer.beta = beta
    case, weights = case_of(0), weights_of(layer)
    expected = reference.normalize(
        case.x, weights["moving_mean"], weights["moving_variance"], gamma, beta
    )
    assert_close(get(layer(put(case.x))), expected, scale=10)


@each_mode
def test_a_channel_without_positions_moves_nothing(mode):
    layer = trained(mode)
    before = weights_of(layer)
    mask = np.ones((1, 1, 3), bool)
    mask[..., 1] = False
    y = layer(put(case_of(3).x), training=True, mask=put(mask))
    assert np.all(np.isfinite(get(y)))
    for name in set(before) - {"gamma", "beta"}:
        moved = get(layer.weights[name]) != before[name]
        np.testing.assert_array_equal(moved, [True, False, True], err_msg=name)


@each_mode
def test_an_empty_batch_moves_nothing(mode):
    layer = trained(mode)
    before = weights_of(layer)
    y = layer(put(np.zeros((0, 4, 3), np.float32)), training=True)
    assert get(y).shape == (0, 4, 3)
    assert get(layer.backward(y)).shape == (0, 4, 3)
    assert_same_weights(layer, before)


@each_mode
def test_nan_padding_moves_nothing(mode):
    """A training step with NaN padding is the step without it."""
    padded, plain = trained(mode), trained(mode)
    case = case_of(3)
    x = np.concatenate([case.x, np.full((2, 4, 3), np.nan, np.float32)])
    dy = np.concatenate([case.dy, np.zeros((2, 4, 3), np.float32)])
    y = padded(put(x), training=True, mask=put(np.arange(8).reshape(8, 1) < 6))
    wanted = get(plain(put(case.x), training=True))
    assert_close(get(y)[:6], wanted.astype(np.float64), scale=4)
    dx, wanted = get(padded.backward(put(dy))), get(plain.backward(put(case.dy)))
    assert_close(dx[:6], wanted.astype(np.float64), scale=4)
    for name, value in weights_of(plain).items():
        assert_close(get(padded.weights[name]), value.astype(np.float64), scale=4)
    for name, value in plain.gradients.items():
        assert_close(get(padded.gradients[name]), get(value).astype(np.float64), scale=100)


@in_numpy
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


@in_numpy
def test_repr_is_what_makes_the_layer():
    layer = layer_of("shared", axis=[1, 2], renorm_clipping=LIMITS, dtype="float64")
    again = eval(repr(layer), {"BatchNormalization": numbabn.BatchNormalization})
    assert again.get_config() == layer.get_config()


@in_numpy
@each_mode
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
    x = case_of(0, dtype=np.float64 if "dtype" in options else np.float32).x
    np.testing.assert_array_equal(again(x, training=True), layer(x, training=True))
    assert_same_weights(again, weights_of(layer))


@each_mode
@each_owner
def test_save_and_load(tmp_path, library, mode):
    layer = trained(mode, library)
    before = weights_of(layer)
    path = tmp_path / "layer.npz"
    layer.save(path)
    assert list(tmp_path.iterdir()) == [path]
    with np.load(path, allow_pickle=False) as file:
        assert_same([file[name] for name in before], before.values())
    fresh = layer_of(mode)
    assert fresh.load(path) is fresh
    assert_same_weights(fresh, before)
    # A layer that has weights gets the saved ones, and goes on like the first.
    other = trained(mode, library, steps=1)
    other.load(str(path))
    x = put(case_of(3).x, library)
    assert_same([other(x, training=True)], [layer(x, training=True)])
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
        layer(put(np.ones((2, 7), np.float32)))
    else:
        layer = trained(saved)
    layer.save(path)
    other = trained(loading)
    before = weights_of(other)
    with raises(ValueError, message.format(path=path)):
        other.load(path)
    assert_same_weights(other, before)


def test_a_missing_file_changes_nothing(tmp_path):
    layer = trained("plain")
    before = weights_of(layer)
    with pytest.raises(FileNotFoundError):
        layer.load(tmp_path / "none.npz")
    assert_same_weights(layer, before)


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


@each_mode
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_copies_and_pickles_are_in_numpy_and_go_on_like_the_layer(duplicate, mode):
    layer = trained(mode)
    layer.backward(put(case_of(1).dy))
    again = duplicate(layer)
    assert again.get_config() == layer.get_config()
    assert all(isinstance(value, np.ndarray) for value in again.weights.values())
    assert_same_weights(again, weights_of(layer))
    assert list(again.gradients) == ["gamma", "beta"]
    home(again)
    case = case_of(3)
    x, dy = put(case.x), put(case.dy)
    assert_same([again(x, training=True)], [layer(x, training=True)])
    assert_same([again.backward(dy)], [layer.backward(dy)])


@in_numpy
def test_a_layer_that_was_never_called_can_be_pickled():
    layer = through_pickle(layer_of("separate"))
    assert layer(case_of(0).x, training=True).shape == (6, 4, 3)


@in_numpy
@pytest.mark.parametrize("given", [{"rmax": 3.0}, numbabn.RenormClipping(rmax=3.0)], ids=repr)
def test_clipping_may_be_a_dict_or_an_object(given):
    one, other = layer_of("separate", renorm_clipping=given), layer_of("separate")
    other.renorm_clipping = given
    for seed in range(4):
        x = case_of(seed).x
        np.testing.assert_array_equal(one(x, training=True), other(x, training=True))
    assert one.get_config() == other.get_config()


def test_backward_uses_the_gamma_of_its_forward():
    case = case_of(0)
    layer, untouched = layer_of("plain"), layer_of("plain")
    for each in (layer, untouched):
        each(put(case.x), training=True)
    write(layer.gamma, get(layer.gamma) + 1)
    assert_same([layer.backward(put(case.dy))], [untouched.backward(put(case.dy))])


def test_dtype_of_weights_follows_the_input_or_is_given():
    for dtype in DTYPES:
        layer = layer_of("plain")
        layer(put(np.ones((2, 3), dtype)))
        for weight in (layer.gamma, layer.moving_mean):
            assert get(weight).dtype == parameter_dtype(dtype)
    layer = layer_of("plain", dtype="float64")
    layer(put(np.ones((2, 3), np.float64)))
    assert get(layer.gamma).dtype == np.float64


@each_mode
def test_training_converges_to_the_statistics_of_the_data(mode, rng):
    layer = layer_of(mode)
    data = rng.normal(5.0, 3.0, (200, 2)).astype(np.float32)
    for _ in range(60):
        layer(put(data), training=True)
    batch = reference.statistics(data)
    # What is left of the first values: 0.8^60 = 1.5e-6 for momentum, times at most 9.
    np.testing.assert_allclose(get(layer.moving_mean), batch.mean, rtol=3e-5)
    np.testing.assert_allclose(get(layer.moving_variance), batch.variance, rtol=3e-5)


# Reused outputs


def with_and_without_reuse(mode="plain", **options):
    return layer_of(mode, reuse_outputs=True, **options), layer_of(mode, **options)


def owners_of(outputs):
    """Weak references to what holds the memory of outputs; None of a view's owner."""
    return [
        weakref.ref(each.base if ON_CPU and each.base is not None else each) for each in outputs
    ]


def test_outputs_are_new_unless_reuse_is_asked_for():
    layer, case = layer_of("plain"), case_of(0)
    x, dy = put(case.x), put(case.dy)
    outputs = [layer(x, training=True), layer(x, training=True), layer(x)]
    outputs += [layer.backward(dy), layer.backward(dy)]
    assert len({address(each) for each in outputs}) == 5
    owners = owners_of(outputs)
    del outputs
    assert all(owner() is None for owner in owners)


@each_mode
@pytest.mark.parametrize(
    ("library", "dtype"), [(owner, dtype) for owner, dtype in PAIRS if owner in OWNERS], ids=str
)
@pytest.mark.parametrize("axis", [1, -1, [0, 2]], ids=str)
@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_reused_outputs_hold_the_same_values(memory, axis, library, dtype, mode):
    """The same bits as new ones, in the memory order of x, always at the same address."""
    reusing, plain = with_and_without_reuse(mode, axis=axis)
    addresses = {"y": set(), "dx": set()}
    for step in range(3):
        case = case_of(step, axis, dtype)
        x, dy = put(dense(case.x, memory), library), put(case.dy, library)
        mask = put(np.random.default_rng(step).random((6, 4)) < 0.7, library)
        # The second step is one of a frozen layer.
        reusing.trainable = plain.trainable = step != 1
        for training in (True, False):
            y = reusing(x, training=training, mask=mask)
            expected = plain(x, training=training, mask=mask)
            assert isinstance(y, type_of(library))
            assert_same_bits([y], [expected])
            assert strides_of(y) == strides_of(expected)
            addresses["y"].add(address(y))
        dx, expected = reusing.backward(dy), plain.backward(dy)
        assert_same_bits([dx], [expected])
        assert strides_of(dx) == strides_of(expected)
        addresses["dx"].add(address(dx))
        assert_same_weights(reusing, weights_of(plain))
    assert len(addresses["y"]) == len(addresses["dx"]) == 1
    assert addresses["y"] != addresses["dx"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(np.ones((5, 4, 3), np.float32), id="shape"),
        pytest.param(np.ones((6, 3, 3), np.float32), id="shape of a sample"),
        pytest.param(np.ones((6, 4, 3), np.float64), id="dtype"),
        pytest.param(dense(np.ones((6, 4, 3), np.float32), (2, 0, 1)), id="memory order"),
    ],
)
def test_an_input_of_another_form_has_new_outputs(other):
    """What was returned stays as it is, and nothing but its caller keeps it."""
    layer, case = layer_of("plain", reuse_outputs=True), case_of(0)
    outputs = [layer(put(case.x), training=True), layer.backward(put(case.dy))]
    before = copies(outputs)
    x, dy = put(other), put(np.ones_like(other))
    new = [layer(x, training=True), layer.backward(dy)]
    for each in new:
        assert (get(each).shape, get(each).dtype) == (other.shape, other.dtype)
        assert strides_of(each) == other.strides
    assert_same(outputs, before)
    owners = owners_of(outputs)
    del outputs
    assert all(owner() is None for owner in owners)
    assert [address(layer(x)), address(layer.backward(dy))] == [address(each) for each in new]


each_view = pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda array: array, id="itself"),
        pytest.param(np.flip, id="backwards", marks=in_numpy),
    ],
)


@each_owner
@each_view
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_with_reuse_takes_its_own_output(training, view, library):
    reusing, plain = with_and_without_reuse()
    first, third = case_of(0), case_of(2)
    x, dy = put(first.x, library), put(first.dy, library)
    y, expected = (each(x, training=True) for each in (reusing, plain))
    again = reusing(view(y), training=training)
    assert_same([again], [plain(view(expected), training=training)])
    assert_same([y], [expected])
    # A call before the backward does not touch the input that this one reads again.
    other = put(third.x, library)
    assert_same([reusing(other)], [plain(other)])
    for _ in range(2):
        assert_same([reusing.backward(dy)], [plain.backward(dy)])


@each_owner
@each_view
@pytest.mark.parametrize("trainable", [True, False])
def test_a_layer_with_reuse_takes_its_own_gradient(trainable, view, library):
    """As dy, and as the x that every backward reads again."""
    reusing, plain = with_and_without_reuse()
    case = case_of(0)
    x, dy = put(case.x, library), put(case.dy, library)
    for layer in (reusing, plain):
        layer(x, training=True)
        layer.trainable = trainable
        layer(x, training=True)
    dx, expected = reusing.backward(dy), plain.backward(dy)
    again, wanted = reusing.backward(view(dx)), plain.backward(view(expected))
    assert_same([again, dx], [wanted, expected])
    reusing(view(again), training=True)
    plain(view(wanted), training=True)
    for _ in range(2):
        assert_same([reusing.backward(dy)], [plain.backward(dy)])


def test_a_layer_with_reuse_takes_its_own_output_as_a_mask():
    reusing, plain = with_and_without_reuse()
    first, second = case_of(0), case_of(1)
    y, expected = (each(put(first.x), training=True) for each in (reusing, plain))
    some_off = np.where(np.arange(6).reshape(6, 1, 1) > 0, get(y), np.float32(0))
    write(y, some_off)
    write(expected, some_off)
    x = put(second.x)
    assert_same([reusing(x, training=True, mask=y)], [plain(x, training=True, mask=expected)])


@in_numpy
def test_a_layer_with_reuse_takes_the_memory_of_its_gradient_as_a_mask():
    """A mask of bytes, to which the layer refers until the backward."""
    reusing, plain = with_and_without_reuse()
    case = case_of(0)
    on = np.random.default_rng(0).random((6, 4, 3)) < 0.7
    reusing(case.x, training=True)
    mask = reusing.backward(case.dy).reshape(-1).view(np.bool_)[: on.size].reshape(on.shape)
    mask[...] = on
    reusing(case.x, training=True, mask=mask)
    plain(case.x, training=True)
    plain(case.x, training=True, mask=on)
    for _ in range(2):
        assert_same([reusing.backward(case.dy)], [plain.backward(case.dy)])


def test_two_layers_with_reuse_in_a_row():
    """The second one's x is the first one's y, which is there until the first is called again."""
    chains = [[layer_of("plain", reuse_outputs=reuse) for _ in range(2)] for reuse in (True, False)]
    for seed in range(4):
        case = case_of(seed)
        results = []
        for one, two in chains:
            y = two(one(put(case.x), training=True), training=True)
            results.append((y, one.backward(two.backward(put(case.dy)))))
        assert_same(*results)


def test_a_failing_call_leaves_reused_outputs_as_they_were():
    layer, case = layer_of("plain", reuse_outputs=True), case_of(0)
    x, dy = put(case.x), put(case.dy)
    outputs = [layer(x, training=True), layer.backward(dy)]
    before, expected = weights_of(layer), copies(outputs)
    with raises(ValueError, mask_does_not_fit((5,), (6, 4, 3))):
        layer(put(case.x + 1), training=True, mask=put(np.ones(5)))
    with raises(ValueError, "dy must have the shape of x, (6, 4, 3), got (6,)"):
        layer.backward(put(np.ones(6, np.float32)))
    with raises(TypeError, not_an_array("dy", "float")):
        layer.backward(1.0)
    assert_same(outputs, expected)
    assert_same_weights(layer, before)
    again = [layer.backward(dy), layer(x, training=True)]
    assert [address(each) for each in again[::-1]] == [address(each) for each in outputs]
    assert_same(again[:1], expected[1:])


@in_numpy
def test_what_the_caller_does_to_an_output_does_not_reach_the_next_call():
    reusing, plain = with_and_without_reuse()
    for seed in range(4):
        case = case_of(seed)
        outputs = reusing(case.x, training=True), reusing.backward(case.dy)
        assert_same(outputs, (plain(case.x, training=True), plain.backward(case.dy)))
        for each in outputs:
            each[...] = np.nan
            each.setflags(write=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle])
def test_reused_outputs_stay_with_their_layer(duplicate):
    layer = layer_of("plain", reuse_outputs=True)
    case = case_of(0, shape=(2000, 3))
    outputs = [layer(put(case.x), training=True), layer.backward(put(case.dy))]
    before = copies(outputs)
    assert len(pickle.dumps(layer)) < before[0].nbytes / 10
    other = home(duplicate(layer))
    others = other(put(case.x + 1), training=True), other.backward(put(case.dy + 1))
    for mine, theirs in zip(outputs, others, strict=True):
        assert address(mine) != address(theirs)
    assert_same(outputs, before)


@in_numpy
def test_the_configuration_says_whether_outputs_are_reused():
    for layer, expected in zip(with_and_without_reuse(), (True, False), strict=True):
        assert layer.get_config()["reuse_outputs"] is expected
        assert numbabn.BatchNormalization.from_config(layer.get_config()).reuse_outputs is expected
        assert through_pickle(layer).reuse_outputs is expected


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.only_on("cuda"))])
def test_to_forgets_reused_outputs(device):
    layer, case = layer_of("plain", reuse_outputs=True), case_of(0)
    outputs = layer(put(case.x), training=True), layer.backward(put(case.dy))
    owners = owners_of(outputs)
    del outputs
    assert all(owner() is not None for owner in owners)
    layer.to(device)
    assert all(owner() is None for owner in owners)


@pytest.mark.parametrize("renorm_momentum", [None, 0.9])
@pytest.mark.parametrize("renorm", [False, True])
def test_statistics_that_are_not_finite_are_skipped_on_request(renorm, renorm_momentum, rng):
    x = rng.normal(2.0, 3.0, (8, 5)).astype(np.float32)
    spoiled = x.copy()
    spoiled[2, 1], spoiled[3, 4] = np.nan, np.inf
    options = {"renorm": renorm, "renorm_momentum": renorm_momentum, "momentum": 0.9}
    found = {}
    for skips in (False, True):
        layer = numbabn.BatchNormalization(**options, skip_nonfinite=skips)
        y = get(layer(put(x), training=True))
        before = {name: get(each).copy() for name, each in layer.weights.items()}
        assert not np.isfinite(get(layer(put(spoiled), training=True))[:, [1, 4]]).all()
        found[skips] = {name: get(each).copy() for name, each in layer.weights.items()}
    assert np.isfinite(y).all()
    for name, values in found[True].items():
        expected = found[False][name].copy()
        if name not in ("gamma", "beta"):
            assert not np.isfinite(expected[[1, 4]]).any()
            assert (expected[[0, 2, 3]] != before[name][[0, 2, 3]]).all()
            expected[[1, 4]] = before[name][[1, 4]]
        np.testing.assert_array_equal(values, expected)
