"""The adapter's tests run on the backend that KERAS_BACKEND names, and fail without it."""

import os
import pathlib
import sys

# The oracle is that of the whole package.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

BACKEND = os.environ.get("KERAS_BACKEND")
# In Numba's simulator the kernels for devices are tested, and nothing else.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
IN_SIMULATION = "test_keras_in_simulation.py"
# What belongs to some backends only: those that Keras trains on, those whose programs call the
# kernels, each alone, and one for all where no backend plays a part.
OF_BACKENDS = {
    **dict.fromkeys(
        (
            "test_keras_fit.py",
            "test_keras_schedule.py",
            "test_keras_gradients.py",
            "test_keras_own_suite.py",
        ),
        ("torch", "tensorflow", "jax"),
    ),
    "test_callbacks.py": ("tensorflow", "jax"),
    "test_embedded.py": ("tensorflow", "jax"),
    "test_embedded_xla.py": ("jax",),
    "test_embedded_tensorflow.py": ("tensorflow",),
    "test_keras_compiled_by_torch.py": ("torch",),
    **{f"test_keras_on_{name}.py": (name,) for name in ("torch", "tensorflow", "jax", "numpy")},
}

here = pathlib.Path(__file__).parent
if BACKEND is None:
    collect_ignore_glob = ["test_*.py"]
elif SIMULATED:
    collect_ignore = [each.name for each in here.glob("test_*.py") if each.name != IN_SIMULATION]
else:
    others = [name for name, backends in OF_BACKENDS.items() if BACKEND not in backends]
    collect_ignore = [*others, IN_SIMULATION]


def pytest_configure(config):
    if BACKEND is None:
        return
    config.addinivalue_line("markers", "requires_trainable_backend: a marker of Keras's own tests")
    # Keras's own calls, on their way to NumPy.
    config.addinivalue_line(
        "filterwarnings",
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:keras",
    )
    if BACKEND == "numpy":
        # It finds shapes by computing on memory that nobody has written; what is there may be
        # anything. That our own layer is silent has a test, which makes warnings errors again.
        config.addinivalue_line("filterwarnings", "ignore:.* encountered in:RuntimeWarning")
    if SIMULATED:
        # Kernels run in plain Python there, which warns of what a device computes in silence.
        config.addinivalue_line("filterwarnings", "ignore:invalid value:RuntimeWarning")
    import keras

    assert keras.backend.backend() == BACKEND
    if BACKEND == "jax":
        # float64 is truncated otherwise; test_embedded_xla.py runs without it too.
        import jax

        jax.config.update("jax_enable_x64", True)
