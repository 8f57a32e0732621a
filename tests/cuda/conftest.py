"""The device tests run where NUMBABN_CUDA says: "simulator" or "device"; and fail without it."""

import os
import pathlib
import sys

import pytest

# The oracle is that of the whole package.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

WHERE = os.environ.get("NUMBABN_CUDA")

if WHERE is None:
    collect_ignore_glob = ["test_cuda_*.py"]
elif WHERE == "simulator":
    # Set before anything imports numba.cuda.
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    # Streams, graphs, and sizes that would take the simulator hours.
    collect_ignore = ["test_cuda_hardware.py"]


def pytest_configure(config):
    if WHERE is None:
        return
    if WHERE not in ("simulator", "device"):
        pytest.exit(f"NUMBABN_CUDA must be simulator or device, got {WHERE!r}", returncode=1)
    if WHERE == "simulator":
        # Kernels run in plain Python over NumPy scalars there, and those warn of what a device
        # computes in silence: NaN and inf that a caller passed.
        for text in ("invalid value", "overflow", "divide by zero"):
            config.addinivalue_line("filterwarnings", f"ignore:{text} encountered:RuntimeWarning")
    from numbabn import targets

    targets.cuda()
