"""Models with their layers exchanged, and back."""

import keras
import numpy as np
import pytest
from backends import BACKEND, TRAINS, array, on_one_backend, weights_of
from keras import layers

from numbabn.keras import BatchNormalization, convert

KERAS = layers.BatchNormalization
X = np.random.default_rng(0).normal(2, 3, (8, 6)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)


def sequential():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), KERAS(name="bn"), layers.Dense(2)], name="model"
    )


def functional():
    inputs = keras.Input((6,))
    shared = KERAS(name="bn")
    a, b = shared(layers.Dense(5)(inputs)), shared(layers.Dense(5)(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Add()([a, b])), name="model")


def nested():
    inputs = keras.Input((6,))
    inner = keras.Sequential([keras.Input((5,)), KERAS(name="bn"), layers.Dropout(0.5)], name="in")
    outputs = layers.Dense(2)(inner(layers.Dense(5)(inputs)))
    return keras.Model(inputs, outputs, name="model")


def wrapped():
    inputs = keras.Input((6,))
    x = layers.Reshape((2, 3))(inputs)
    x = layers.TimeDistributed(KERAS(name="bn"), name="wrapper")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)), name="model")


class Block(layers.Layer):
    """A layer that makes its own."""

    def __init__(self, width=5, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(width)
        self.norms = [KERAS(), KERAS(momentum=0.5)]
        self.by_name = {"last": KERAS()}

    def call(self, x, training=None):
        x = self.dense(x)
        for norm in self.norms:
            x = norm(x, training=training)
        return self.by_name["last"](x, training=training)


class Subclassed(keras.Model):
    """A model without a configuration of its layers."""

    def __init__(self, width=5, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.first = layers.Dense(width)
        self.norm = KERAS()
        self.block = Block(width)
        self.tail = keras.Sequential([keras.Input((width,)), KERAS(), layers.Dense(2)])

    def call(self, x, training=None):
        x = self.norm(self.first(x), training=training)
        return self.tail(self.block(x, training=training), training=training)


def with_custom_layer():
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(2)(Block(name="block")(inputs)), name="model")


def subclassed():
    model = Subclassed(name="model")
    model(X)
    return model


class BuiltInCall(keras.Model):
    """Its constructor takes no name, and its Sequential has no Input until it is called."""

    def __init__(self):
        super().__init__()
        self.tail = keras.Sequential([layers.Dense(5), KERAS(), layers.Dense(2)])

    def call(self, x, training=None):
        return self.tail(x, training=training)


class InTuples(keras.Model):
    """Layers in tuples, lists and dictionaries within each other."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [(layers.Dense(5), [KERAS()]), (layers.Dense(2), [KERAS()])]
        self.by_name = {"first": {"second": (KERAS(),)}}

    def call(self, x, training=None):
        for dense, (norm,) in self.blocks:
            x = norm(dense(x), training=training)
        return self.by_name["first"]["second"][0](x, training=training)


class OwnFunctional(keras.Model):
    """A functional model with a constructor of its own."""

    def __init__(self, width=5):
        inputs = keras.Input((6,))
        super().__init__(inputs, layers.Dense(2)(KERAS()(layers.Dense(width)(inputs))))


class OwnBuild(keras.Model):
    """Its layers are made when it is built."""

    def build(self, shape):
        self.norm = KERAS(epsilon=0)
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.norm(x, training=training)


class Unserializable(keras.Model):
    """Its constructor takes what no configuration holds."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.dense = norm, layers.Dense(2)

    def call(self, x, training=None):
        return self.dense(self.norm(x, training=training))


def called(make):
    def make_and_call():
        model = make()
        model(X)
        return model

    return make_and_call


OF_CLASSES = [called(each) for each in (BuiltInCall, InTuples, OwnFunctional, OwnBuild)]
MODELS = [sequential, functional, nested, wrapped, with_custom_layer, subclassed, *OF_CLASSES]
NAMES = [
    *(make.__name__ for make in MODELS[:6]),
    *("built in its call", "in tuples", "functional by a class", "built by itself"),
]


def normalizations(model):
    return [each for each in model._flatten_layers() if isinstance(each, KERAS)]


def moved(model):
    """The model with statistics that are not those of the start."""
    for _ in range(3):
        model(X, training=True)
    return model


@pytest.mark.parametrize("make", MODELS, ids=NAMES)
def test_there_and_back(make):
    model = moved(make())
    ours = convert(model)
    back = convert(ours, to_keras=True)
    assert {type(each) for each in normalizations(model)} == {KERAS}
    assert {type(each) for each in normalizations(ours)} == {BatchNormalization}
    assert {type(each) for each in normalizations(back)} == {KERAS}
    for copy in (ours, back):
        assert type(copy) is type(model)
        assert [each.name for each in copy._flatten_layers()] == [
            each.name for each in model._flatten_layers()
        ]
        np.testing.assert_allclose(array(copy(X)), array(model(X)), 1e-5, 1e-5)
        for old, new in zip(model.weights, copy.weights, strict=True):
            np.testing.assert_array_equal(array(old.value), array(new.value))
    before = array(model(X))
    moved(ours)
    np.testing.assert_array_equal(array(model(X)), before)


@on_one_backend
@pytest.mark.parametrize("make", MODELS, ids=NAMES)
def test_renorm_is_seeded(make):
    model = moved(make())
    ours = convert(model, renorm=True, renorm_clipping={"rmax": 3.0}, renorm_momentum=0.9)
    np.testing.assert_allclose(array(ours(X)), array(model(X)), 1e-5, 1e-5)
    for layer in normalizations(ours):
        assert (layer.renorm, layer.renorm_clipping) == (True, {"rmax": 3.0})
        weights = weights_of(layer)
        stddev = np.sqrt(weights["moving_variance"] + layer.epsilon)
        np.testing.assert_array_equal(weights["renorm_mean"], weights["moving_mean"])
        np.testing.assert_allclose(weights["renorm_stddev"], stddev, 1e-6)
        np.testing.assert_allclose(weights["moving_stddev"], stddev, 1e-6)
    moved(ours)
    back = convert(ours, to_keras=True, renorm=False)
    assert not any(layer.renorm for layer in normalizations(back))
    np.testing.assert_allclose(array(back(X)), array(ours(X)), 1e-5, 1e-5)


@pytest.mark.parametrize("make", MODELS, ids=NAMES)
def test_in_place(make):
    model = moved(make())
    before, weights, y = model._flatten_layers(), model.weights, array(model(X))
    assert convert(model, in_place=True) is model
    assert {type(each) for each in normalizations(model)} == {BatchNormalization}
    for kept, now in ((before, model._flatten_layers()), (weights, model.weights)):
        assert all(one is other for one, other in zip(kept, now, strict=True))
    np.testing.assert_allclose(array(model(X)), y, 1e-5, 1e-5)
    convert(model, in_place=True, renorm=True)
    assert all(len(each.weights) == 7 for each in normalizations(model))
    np.testing.assert_allclose(array(model(X)), y, 1e-5, 1e-5)
    y = array(moved(model)(X))
    convert(model, in_place=True, to_keras=True, renorm=False)
    assert {type(each) for each in normalizations(model)} == {KERAS}
    assert all(one is other for one, other in zip(weights, model.weights, strict=True))
    np.testing.assert_allclose(array(model(X)), y, 1e-5, 1e-5)


def test_in_place_where_no_copy_can_be_made():
    model = moved(called(lambda: Unserializable(KERAS()))())
    y = array(model(X))
    with pytest.raises(
        ValueError,
        match=r"^Unserializable 'unserializable(_\d+)?' cannot be made again from its "
        r"configuration \(a get_config of its own may help\); "
        r"numbabn\.keras\.convert\(model, in_place=True\) exchanges the layers of the model "
        r"itself\. Keras says: ",
    ):
        convert(model)
    convert(model, in_place=True)
    assert type(model.norm) is BatchNormalization
    np.testing.assert_allclose(array(model(X)), y, 1e-5, 1e-5)


@pytest.mark.parametrize("to_keras", [False, True])
def test_in_place_before_it_is_built(to_keras):
    classes = [BatchNormalization, KERAS] if to_keras else [KERAS, BatchNormalization]
    layer = classes[0](name="bn")
    # One that Keras's way of building would give statistics of its own.
    shared = {} if to_keras else {"renorm": True, "renorm_momentum": None}
    convert(layer, in_place=True, to_keras=to_keras, **shared)
    layer(X, training=True)
    assert type(layer) is classes[1]
    assert [each.name for each in layer.weights] == [
        "gamma", "beta", "moving_mean", "moving_variance",
    ]  # fmt: skip
    assert layer.get_build_config() == {"input_shape": (8, 6)}


def test_in_place_is_saved_as_what_it_is(tmp_path):
    model = moved(sequential())
    convert(model, in_place=True, renorm=True).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("bn")) is BatchNormalization
    np.testing.assert_allclose(array(loaded(X)), array(model(X)), 1e-6, 1e-6)


@on_one_backend
def test_nothing_is_changed_in_place_where_one_layer_cannot_be():
    model = keras.Sequential(
        [keras.Input((4, 3)), BatchNormalization(name="one"), BatchNormalization([1, 2], name="bn")]
    )
    with pytest.raises(ValueError, match=r"^bn cannot become Keras's: it has axis=\[1, 2\]"):
        convert(model, in_place=True, to_keras=True)
    assert {type(each) for each in normalizations(model)} == {BatchNormalization}


@on_one_backend
def test_a_constructor_that_makes_other_layers():
    model = BuiltInCall()
    model.extra = layers.Dense(3)
    with pytest.raises(
        ValueError,
        match=r"^BuiltInCall 'built_in_call(_\d+)?' is not made again by its configuration: it has "
        r"the layers \['Sequential', 'Dense'\], its copy \['Sequential'\]; "
        r"numbabn\.keras\.convert\(model, in_place=True\) exchanges the layers of the model "
        r"itself$",
    ):
        convert(model)


@on_one_backend
def test_what_is_frozen_stays_frozen():
    model = subclassed()
    model.block.norms[0].trainable = model.tail.trainable = False
    ours = convert(model)
    assert [each.trainable for each in ours._flatten_layers()] == [
        each.trainable for each in model._flatten_layers()
    ]


@on_one_backend
def test_limits_that_are_functions():
    limits = {"rmax": lambda: 2.0, "dmax": keras.Variable(1.0)}
    ours = convert(sequential(), renorm=True, renorm_clipping=limits)
    assert ours.get_layer("bn").renorm_clipping is limits


@on_one_backend
def test_a_layer_alone():
    layer = KERAS(axis=1, momentum=0.5)
    layer(X, training=True)
    ours = convert(layer)
    assert type(ours) is BatchNormalization
    np.testing.assert_allclose(array(ours(X)), array(layer(X)), 1e-5, 1e-5)


@on_one_backend
def test_trainable_stays():
    model = sequential()
    model.get_layer("bn").trainable = False
    assert not convert(model).get_layer("bn").trainable


@on_one_backend
def test_subclasses_stay():
    class Own(KERAS):
        """Another computation, perhaps."""

    model = keras.Sequential([keras.Input((6,)), Own(name="own"), KERAS(name="bn")])
    ours = convert(model)
    assert type(ours.get_layer("own")) is Own
    assert type(ours.get_layer("bn")) is BatchNormalization


def squared(y_true, y_pred):
    return keras.ops.mean((y_true - y_pred) ** 2)


@pytest.mark.skipif(not TRAINS, reason="Keras does not train on NumPy")
@pytest.mark.parametrize("make", [sequential, subclassed])
@pytest.mark.parametrize("renorm", [False, True])
def test_compile_state_is_kept(make, renorm):
    """With momentum as the state: Adam would take steps of full length along the gradient of a
    bias before a normalization, which is nothing but rounding."""
    model = make()
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, loss=squared, metrics=["mae"])
    model.fit(X, Y, epochs=2, batch_size=4, verbose=0, shuffle=False)
    ours = convert(model, renorm=renorm)
    assert ours.compiled
    assert int(ours.optimizer.iterations.value) == 4
    for old, new in zip(model.optimizer.variables, ours.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(old.value), array(new.value))
    if not renorm:
        for each in (model, ours):
            each.fit(X, Y, epochs=2, batch_size=4, verbose=0, shuffle=False)
        for old, new in zip(model.weights, ours.weights, strict=True):
            np.testing.assert_allclose(array(old.value), array(new.value), 1e-3, 1e-3)


@pytest.mark.skipif(not TRAINS, reason="Keras does not train on NumPy")
@pytest.mark.parametrize("make", [sequential, subclassed])
def test_training_goes_on_in_place(make):
    models = [make(), make()]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss=squared, metrics=["mae"])
        model.fit(X, Y, epochs=2, batch_size=4, verbose=0, shuffle=False)
    optimizer = models[1].optimizer
    convert(models[1], in_place=True)
    for model in models:
        model.fit(X, Y, epochs=2, batch_size=4, verbose=0, shuffle=False)
        model.predict(X, verbose=0)
    assert models[1].optimizer is optimizer
    assert int(optimizer.iterations.value) == 8
    for old, new in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(array(old.value), array(new.value), 1e-3, 1e-3)


@on_one_backend
@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "EfficientNetB0"])
def test_applications(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=10)
    rng = np.random.default_rng(0)
    for layer in normalizations(model):  # Weights that matter.
        layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
        layer.moving_variance.assign(rng.uniform(0.8, 1.2, layer.moving_variance.shape))
    x = rng.uniform(0, 1, (2, 64, 64, 3)).astype(np.float32)
    ours = convert(model)
    assert {type(each) for each in normalizations(ours)} == {BatchNormalization}
    assert len(normalizations(ours)) > 40
    np.testing.assert_allclose(array(ours(x)), array(model(x)), 1e-5, 1e-5)


@on_one_backend
def test_errors():
    with pytest.raises(TypeError, match=r"^model must be a keras\.Model or a Layer, got int$"):
        convert(3)
    with pytest.raises(
        TypeError,
        match=r"^convert has no argument 'axis'; what it can change is renorm, renorm_clipping, "
        r"renorm_momentum, momentum, epsilon$",
    ):
        convert(sequential(), axis=1)
    several = keras.Sequential([keras.Input((4, 3)), BatchNormalization([1, 2], name="bn")])
    with pytest.raises(
        ValueError,
        match=r"^bn cannot become Keras's: it has axis=\[1, 2\], and "
        r"keras\.layers\.BatchNormalization takes one axis$",
    ):
        convert(several, to_keras=True)
    shared = keras.Sequential(
        [keras.Input((3,)), BatchNormalization(renorm=True, renorm_momentum=None, name="bn")]
    )
    with pytest.raises(
        ValueError,
        match=r"^bn cannot become Keras's: it has renorm_momentum=None, which "
        r"keras\.layers\.BatchNormalization lacks; pass renorm_momentum=0\.99 for statistics of "
        r"renorm's own, or renorm=False$",
    ):
        convert(shared, to_keras=True)
    assert convert(shared, to_keras=True, renorm=False).get_layer("bn").renorm is False
    separate = convert(shared, to_keras=True, renorm_momentum=0.9).get_layer("bn")
    assert (separate.renorm, len(separate.weights)) == (True, 7)


def test_backend_is_the_one_asked_for():
    assert keras.backend.backend() == BACKEND
