"""What is said of the way that tensors take to the kernels."""

import logging

import keras
import pytest
from backends import BACKEND

from numbabn.keras import BatchNormalization, backend_details
from numbabn.keras.bridges import bridge_of

PATHS = {
    "torch": "Python calls the kernels over torch's own memory",
    "tensorflow": "TensorFlow calls the kernels, by an operator",
    "jax": "XLA calls the kernels, by a handler",
    "numpy": "Python calls the kernels over NumPy's own arrays",
}
COMPILED = pytest.mark.skipif(BACKEND not in ("tensorflow", "jax"), reason="Python calls anyway")


def package():
    bridge = bridge_of(BACKEND)
    return bridge.compiled if BACKEND == "tensorflow" else bridge.xla


def test_details():
    details = backend_details()
    assert list(details) == ["backend", "CPU", "CUDA", "other devices"]
    assert details["backend"] == BACKEND
    assert details["CPU"].startswith(PATHS[BACKEND])


def test_the_backend_is_one_of_keras(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(ValueError, match="and Keras runs on openvino"):
        backend_details()


@COMPILED
def test_a_fallback_says_why(monkeypatch, caplog):
    """In the details, and in the log, once."""
    import numba

    from numbabn.embedded import process

    caplog.set_level(logging.INFO, "numbabn")
    available = package().is_available
    reason = "NUMBA_DISABLE_JIT is set, and nothing is compiled"
    framework = {"tensorflow": "TensorFlow", "jax": "XLA"}[BACKEND]
    available.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(numba.config, "DISABLE_JIT", 1)
            assert backend_details()["CPU"].startswith("Python, over ")
            assert backend_details()["CPU"].endswith(f": {reason}")
    finally:
        # Whoever asks next finds out anew.
        available.cache_clear()
        process._reasons.clear()
    assert caplog.messages == [f"{framework} cannot call the kernels, so Python computes: {reason}"]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others permute such axes")
def test_axes_that_python_computes(caplog):
    from numbabn.embedded.tensorflow import calls

    caplog.set_level(logging.INFO, "numbabn")
    calls._tell_of_axes.cache_clear()
    for _ in range(2):
        BatchNormalization(axis=[0, 2])(keras.ops.ones((4, 5, 6)), training=True)
    assert caplog.messages.count(
        "TensorFlow does not call the kernels for axis=[0, 2], so Python computes: other axes lie "
        "between those of the channels"
    ) == 1  # fmt: skip
