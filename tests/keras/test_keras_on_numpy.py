"""What is NumPy's own: the forward alone, and nobody warns."""

import os
import subprocess
import sys
import warnings

import numpy as np

import reference
from numbabn.keras import BatchNormalization


def test_forward_without_a_warning():
    x = np.random.default_rng(0).normal(2, 3, (8, 3)).astype(np.float32)
    layer = BatchNormalization(renorm=True, renorm_clipping={"rmax": 2.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(x, training=True)
        layer(x)
    assert isinstance(y, np.ndarray)
    expected = reference.forward(x, renorm=(np.zeros(3), np.ones(3), {"rmax": 2.0})).y
    np.testing.assert_allclose(y, expected, 1e-5, 1e-5)


def test_permuted_input():
    x = np.random.default_rng(0).normal(2, 3, (4, 3, 5, 6)).astype(np.float32).transpose(0, 2, 3, 1)
    y = BatchNormalization()(x, training=True)
    assert y.strides == x.strides


PROGRAM = """
import sys
import keras
before = set(sys.modules)
import numpy as np
from numbabn.keras import BatchNormalization
BatchNormalization()(np.ones((4, 3), "float32"), training=True)
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"torch", "tensorflow", "jax", "jaxlib"}))
"""


def test_no_other_framework_is_imported():
    """Beyond what Keras itself imports."""
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM],
        capture_output=True, text=True, check=True, timeout=200,
        env={**os.environ, "KERAS_BACKEND": "numpy"},
    )  # fmt: skip
    assert run.stdout.strip() == "[]"
