"""Files, copies and configurations, and the exchange of weights with Keras's own layer."""

import json
import pickle

import keras
import numpy as np
import pytest
from backends import array, on_one_backend, weights_of
from keras import ops

from numbabn.keras import BatchNormalization

# Keras writes and reads whatever the backend; what a layer holds besides arrays is the same.
pytestmark = on_one_backend

X = np.random.default_rng(0).normal(2, 3, (8, 6)).astype(np.float32)


def model_with(layer_class, **arguments):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, name="dense"),
            layer_class(name="bn", momentum=0.5, **arguments),
            keras.layers.Dense(2, name="out"),
        ]
    )
    for _ in range(2):
        model(X, training=True)
    return model


VARIANTS = [
    {},
    {"renorm": True, "renorm_clipping": {"rmax": 3.0, "dmax": 5.0}},
    {"renorm": True, "renorm_momentum": None},
    {"axis": [-1], "scale": False},
]


@pytest.mark.parametrize("arguments", VARIANTS)
def test_keras_file(arguments, tmp_path):
    model = model_with(BatchNormalization, **arguments)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded.get_layer("bn")) is BatchNormalization
    assert loaded.get_layer("bn").get_config() == model.get_layer("bn").get_config()
    np.testing.assert_array_equal(array(loaded(X)), array(model(X)))
    np.testing.assert_array_equal(array(loaded(X, training=True)), array(model(X, training=True)))


@pytest.mark.parametrize("arguments", VARIANTS)
def test_weights_file(arguments, tmp_path):
    model, other = (model_with(BatchNormalization, **arguments) for _ in range(2))
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    other.load_weights(path)
    np.testing.assert_array_equal(array(other(X)), array(model(X)))


@pytest.mark.parametrize("to_ours", [True, False])
@pytest.mark.parametrize("arguments", VARIANTS[:2])
def test_weights_go_both_ways(arguments, to_ours, tmp_path):
    classes = keras.layers.BatchNormalization, BatchNormalization
    source, target = (model_with(each, **arguments) for each in classes[:: 1 if to_ours else -1])
    path = tmp_path / "model.weights.h5"
    source.save_weights(path)
    target.load_weights(path)
    np.testing.assert_allclose(array(target(X)), array(source(X)), 1e-5, 1e-5)
    weights = [weights_of(each.get_layer("bn")) for each in (source, target)]
    assert list(weights[0]) == list(weights[1])
    for name, values in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], values)


def test_full_model_of_keras_loads_as_ours(tmp_path):
    source = model_with(keras.layers.BatchNormalization)
    path = tmp_path / "model.keras"
    source.save(path)
    loaded = keras.saving.load_model(
        path, custom_objects={"BatchNormalization": BatchNormalization}
    )
    np.testing.assert_allclose(array(loaded(X)), array(source(X)), 1e-5, 1e-5)


@pytest.mark.parametrize("arguments", VARIANTS)
def test_clone_pickle_and_json(arguments):
    model = model_with(BatchNormalization, **arguments)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    pickled = pickle.loads(pickle.dumps(model))
    from_json = keras.models.model_from_json(model.to_json())
    from_json.set_weights(model.get_weights())
    for other in (clone, pickled, from_json):
        assert type(other.get_layer("bn")) is BatchNormalization
        np.testing.assert_array_equal(array(other(X)), array(model(X)))


def test_json_whatever_the_limits_are():
    variable = keras.Variable(3.0)
    layer = BatchNormalization(
        renorm=True, renorm_clipping={"rmax": variable, "dmax": lambda: 5.0, "rmin": 0}
    )
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer), allow_nan=False))
    again = keras.saving.deserialize_keras_object(config)
    assert again.renorm_clipping == {"rmin": 0.0, "rmax": 3.0, "dmax": 5.0}


def test_training_goes_on_after_a_pickle():
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": 2.0})
    layer(X, training=True)
    copy = pickle.loads(pickle.dumps(layer))
    copy.renorm_clipping = {"rmax": 1.0, "rmin": 1.0, "dmax": 0.0}
    y = array(copy(ops.convert_to_tensor(X * 10), training=True))
    np.testing.assert_allclose(y.std(0), 1, 1e-2)
    assert layer.renorm_clipping == {"rmax": 2.0}
