"""Importing numba.cuda, and what is said where no device is."""

import pytest

from devices import ON_HARDWARE
from processes import run_python

WITHOUT_ROW_STACK = """
import sys
import numpy as np

vars(np).pop("row_stack", None)
from numbabn.cuda import runtime

print("numba.cuda.np.arrayobj" in sys.modules, "row_stack" in vars(np))
"""


def test_numpy_without_row_stack():
    """NumPy 2.5 has none, and numba-cuda 0.30 looks for it when it is imported."""
    assert run_python(WITHOUT_ROW_STACK, NUMBA_ENABLE_CUDASIM="0") == "True False\n"


WITH_A_WARNING = """
import warnings
import numpy as np

timedelta64 = np.timedelta64

def warning(value, *unit):
    if value == "nat" and not unit:
        text = "The 'generic' unit for NumPy timedelta is deprecated, and will raise an error"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return timedelta64(value, "s")
    return timedelta64(value, *unit)

np.timedelta64 = warning
warnings.simplefilter("error")
before = list(warnings.filters)
try:
    from numbabn.cuda import runtime
finally:
    np.timedelta64 = timedelta64
print(runtime.SIMULATED, warnings.filters == before)
"""


@pytest.mark.parametrize("simulated", ["0", "1"])
def test_numpy_that_warns_of_a_generic_unit(simulated):
    """NumPy 2.5 does, and numba-cuda 0.30 asks for one when it is imported."""
    said = run_python(WITH_A_WARNING, NUMBA_ENABLE_CUDASIM=simulated)
    assert said == f"{simulated == '1'} True\n"


IN_THREADS = """
from threading import Thread
from types import SimpleNamespace
from numbabn.cuda import runtime

calls = []
runtime.cuda = SimpleNamespace(current_context=lambda: calls.append("a context"))
runtime.device_count = lambda: 1

def work():
    for _ in range(3):
        with runtime.on(0):
            pass

for thread in [Thread(target=work) for _ in range(2)]:
    thread.start()
    thread.join()
print(calls)
"""


def test_every_thread_gets_a_context_once():
    """torch's thread for gradients has none where the first work there is numbabn's."""
    said = run_python(IN_THREADS, NUMBA_ENABLE_CUDASIM="0")
    assert said == "['a context', 'a context']\n"


IN_CAPTURE = """
from types import SimpleNamespace
from numbabn.cuda import compile, submit

submit.is_capturing = lambda device, stream: (device, stream) == (0, 7)
step = submit.Step(compile.word_kernel("copy", 4), 1)
try:
    step(SimpleNamespace(device=0, stream=7), ())
except RuntimeError as error:
    print(error)
"""


def test_a_first_call_within_a_capture_is_refused():
    assert run_python(IN_CAPTURE, NUMBA_ENABLE_CUDASIM="0") == (
        "copy_32 cannot be loaded while a CUDA graph is captured: make the same call once before, "
        "with arrays of these shapes and dtypes\n"
    )


WITHOUT_DEVICE = """
from types import SimpleNamespace
import numbabn

try:
    numbabn.batch_statistics(SimpleNamespace(__cuda_array_interface__={}))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(ON_HARDWARE, reason="there is a device")
def test_a_device_array_without_a_device():
    said = run_python(WITHOUT_DEVICE, NUMBA_ENABLE_CUDASIM="0", CUDA_VISIBLE_DEVICES="")
    assert said.startswith(
        "arrays on a CUDA device need an NVIDIA driver and a device, and numba-cuda for that "
        "driver, pip install 'numbabn[cuda13]' (or [cuda12], "
    )
    assert said.count("\n") == 1
