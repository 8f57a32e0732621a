"""Where an array goes, and what is said where it cannot."""

from types import SimpleNamespace

import numpy as np
import pytest

import numbabn
from arrays import raises
from numbabn import targets
from numbabn.arrays import is_on_device

DEVICE_ARRAY = SimpleNamespace(__cuda_array_interface__={})
NOT_INSTALLED = (
    "arrays on a CUDA device need numba-cuda, which is not installed: pip install "
    "'numbabn[cuda13]' (or [cuda12], after the CUDA version of the driver)"
)


@pytest.fixture
def without_numba_cuda(monkeypatch):
    monkeypatch.setattr("numbabn.cuda.availability.find_spec", lambda name: None)
    for function in (targets.cuda, targets.device_libraries):
        function.cache_clear()


def test_what_is_on_a_device():
    assert is_on_device(DEVICE_ARRAY)
    for other in (np.zeros(3), np.float32(1), [1.0], None, "cuda"):
        assert not is_on_device(other)


@pytest.mark.parametrize("call", [numbabn.batch_statistics, numbabn.BatchNormalization()])
def test_a_device_array_without_numba_cuda(call, without_numba_cuda):
    with raises(RuntimeError, NOT_INSTALLED):
        call(DEVICE_ARRAY)


def test_moving_a_layer_without_numba_cuda(without_numba_cuda):
    layer = numbabn.BatchNormalization()
    with raises(RuntimeError, NOT_INSTALLED):
        layer.to("cuda")
    assert layer(np.zeros((2, 3), np.float32)).shape == (2, 3)


def test_to_the_cpu_needs_nothing():
    layer = numbabn.BatchNormalization()
    layer(np.ones((2, 3), np.float32), training=True)
    before = layer.weights
    layer.to("cpu")
    for name, values in layer.weights.items():
        np.testing.assert_array_equal(values, before[name])
