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
