"""What `import numbabn` does, and above all what it does not."""

from importlib.metadata import version

import pytest

import numbabn
from processes import run_python

PUBLIC_NAMES = {
    "BatchNormalization",
    "BatchStatistics",
    "Renorm",
    "RenormClipping",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_statistics",
    "normalize",
    "normalize_backward",
    "renorm_correction",
}


def test_public_names():
    assert PUBLIC_NAMES.issubset(numbabn.__all__)
    for name in numbabn.__all__:
        assert getattr(numbabn, name) is not None


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_public_names_have_docstrings(name):
    assert len(getattr(numbabn, name).__doc__.strip().splitlines()) > 1


def test_version():
    assert numbabn.__version__ == version("numbabn")


@pytest.mark.parametrize(
    "library", ["keras", "torch", "tensorflow", "jax", "cupy", "ml_dtypes", "numba_cuda"]
)
def test_import_loads_no_library_that_the_caller_has_not(library):
    run_python(f"import sys, numbabn; assert {library!r} not in sys.modules")


def test_import_touches_no_cuda():
    """numba itself imports the names of numba.cuda; whatever is loaded comes from numba alone."""
    program = (
        "import sys, numba; before = set(sys.modules); import numbabn; "
        "assert not [name for name in set(sys.modules) - before if 'cuda' in name]"
    )
    run_python(program)


def test_import_compiles_nothing():
    run_python(
        """
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    import numbabn
assert not recorder.buffer, recorder.buffer
"""
    )


def test_import_starts_no_threads():
    run_python(
        """
import os, threading, numba
count = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
before = count()
import numbabn
assert count() == before
assert threading.active_count() == 1
"""
    )


def test_import_leaves_settings_of_others_alone():
    run_python(
        """
import signal, warnings
import numba, numpy as np

def settings():
    handler = signal.getsignal(signal.SIGINT)
    return np.geterr(), list(warnings.filters), handler, numba.config.NUMBA_NUM_THREADS

before = settings()
import numbabn
assert settings() == before
"""
    )


INSTALL = "python -m pip install '.[keras]' in a checkout of numbabn brings it"


@pytest.mark.parametrize(
    ("keras", "message"),
    [
        (
            "sys.modules['keras'] = None",
            f"numbabn.keras needs Keras 3.14 or later, which is not installed: {INSTALL}",
        ),
        (
            "sys.modules['keras'] = types.ModuleType('keras')",
            f"numbabn.keras needs Keras 3.14 or later, which is not installed: {INSTALL}",
        ),
        (
            "sys.modules['keras'] = types.SimpleNamespace(__version__='3.9.2')",
            f"numbabn.keras needs Keras 3.14 or later, and 3.9.2 is installed: {INSTALL}",
        ),
        (
            "pathlib.Path('keras.py').write_text('import a_backend')",
            "numbabn.keras needs a Keras that can be imported, and a_backend is missing, which its "
            "backend may be: install that, or set the environment variable KERAS_BACKEND to one "
            "that is installed, of torch, tensorflow, jax and numpy",
        ),
    ],
    ids=["no Keras", "a folder", "an old one", "no backend"],
)
def test_the_keras_that_is_missing_is_named_in_one_sentence(keras, message):
    run_python(
        f"""
import pathlib, sys, types
{keras}
try:
    import numbabn.keras
except ImportError as error:
    assert str(error) == sys.argv[1], error
else:
    raise AssertionError("imported")
""",
        message,
    )
