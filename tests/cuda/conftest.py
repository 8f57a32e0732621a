"""What CUDA devices alone have: these tests run where NUMBABN_CUDA says that there is one."""

import os

WHERE = os.environ.get("NUMBABN_CUDA")

if WHERE is None:
    collect_ignore_glob = ["test_cuda_*.py"]
elif WHERE == "simulator":
    # Streams, graphs, and sizes that would take the simulator hours.
    collect_ignore = ["test_cuda_hardware.py"]
