"""Keras's own tests of its layer, word for word, of ours."""

import keras
import pytest
from keras.src.layers.normalization import batch_normalization_test as suite

from numbabn.keras import BatchNormalization


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    for layers in (keras.layers, suite.layers):
        monkeypatch.setattr(layers, "BatchNormalization", BatchNormalization)


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
class TestKeras(suite.BatchNormalizationTest):
    """All of them."""


def test_it_is_ours_that_they_make():
    assert suite.layers.BatchNormalization is BatchNormalization
