"""Configurations that anyone may have written: nothing in them is executed."""

import json

import keras
import pytest
from backends import on_one_backend

from numbabn.keras import BatchNormalization, convert

pytestmark = on_one_backend
EXECUTED = []


def code():
    """A lambda as Keras writes it into a configuration; it tells when it is called."""
    with pytest.warns(UserWarning, match="a `lambda`. This is unsafe"):
        return keras.saving.serialize_keras_object(lambda *any, **options: EXECUTED.append(1))


@pytest.fixture(autouse=True)
def nothing_executed():
    EXECUTED.clear()
    yield
    assert not EXECUTED


@pytest.mark.parametrize(
    "name", ["gamma_initializer", "moving_mean_initializer", "beta_regularizer", "gamma_constraint"]
)
def test_code_in_the_configuration_of_a_layer(name):
    config = json.loads(json.dumps({**BatchNormalization().get_config(), name: code()}))
    with pytest.raises((TypeError, ValueError), match="lambda"):
        BatchNormalization.from_config(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"renorm_clipping": {"rmax": "lambda: 3"}}, "rmax must be a number, got str"),
        ({"renorm_clipping": {"exec": 1.0}}, "invalid keys for renorm clipping: 'exec'"),
        ({"axis": "exit()"}, "axis must be an int or a list of ints"),
        ({"momentum": {"class_name": "__lambda__"}}, "momentum must be a number"),
    ],
    ids=str,
)
def test_other_things_in_the_configuration_of_a_layer(changes, message):
    # Keras puts text of its own around it.
    with pytest.raises(TypeError, match=message):
        BatchNormalization.from_config({**BatchNormalization().get_config(), **changes})


class Holding(keras.layers.Layer):
    """A layer that hands on a configuration as it came; a copy makes of it what it says."""

    def __init__(self, held=None, **options):
        super().__init__(**options)
        self.held = held

    def call(self, inputs):
        return inputs

    def get_config(self):
        return {**super().get_config(), "held": self.held}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "held": keras.saving.deserialize_keras_object(config["held"])})


def test_code_in_a_model_that_is_converted():
    def model(held):
        return keras.Sequential(
            [keras.Input((4,)), Holding(held), keras.layers.BatchNormalization(name="bn")]
        )

    assert isinstance(convert(model("nothing")).get_layer("bn"), BatchNormalization)
    with pytest.raises(ValueError, match="lambda"):
        convert(model(code()))


def test_a_model_with_code_of_its_own():
    """What its maker has written is made again."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Lambda(lambda x: 2 * x), keras.layers.BatchNormalization()]
    )
    x = keras.ops.ones((2, 4))
    assert keras.ops.all(convert(model)(x) == model(x))
