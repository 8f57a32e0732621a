"""These tests run where numba-cuda is, and need no device."""

import importlib.util
import os

# Of the simulator there is no machine code. An environment that names this folder fails where
# nothing is collected.
if importlib.util.find_spec("numba_cuda") is None or os.environ.get("NUMBA_ENABLE_CUDASIM"):
    collect_ignore_glob = ["test_*.py"]
