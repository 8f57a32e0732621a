"""What numbabn runs on here."""

import argparse
import importlib.metadata
import platform

import llvmlite.binding
import numba
import numpy as np

import numbabn

from ..cpu.compile import cache_folder
from ..cpu.threads import LEAST_PARALLEL

PACKAGES = ["numba", "llvmlite", "numpy", "ml_dtypes", "numba-cuda", "keras", "torch", "jax"]
# Those that decide what the kernels compile to: vector width, and 16-bit floats in hardware.
FEATURES = [
    "sse4.2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bf16",
    "avx512fp16",
    "neon",
    "fullfp16",
    "bf16",
    "sve",
]


def add_options(parser: argparse.ArgumentParser) -> None:
    """`info` has none."""


def run(options: argparse.Namespace) -> int:
    rows = {
        "numbabn": numbabn.__version__,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        **{package: _version(package) for package in PACKAGES},
        "threads": f"{numba.get_num_threads()} of {numba.config.NUMBA_NUM_THREADS}",
        "threading layer": _threading_layer(),
        "processor": numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        "its features": " ".join(_features()),
        "CUDA": _cuda(),
        "compiled kernels": str(cache_folder() or "kept nowhere: each process compiles its own"),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _threading_layer() -> str:
    # Numba chooses a layer when the first parallel kernel runs, and knows none before.
    x = np.zeros((LEAST_PARALLEL, 1), np.float32)
    numbabn.normalize(x, np.zeros(1), np.ones(1), out=x)
    try:
        return str(numba.threading_layer())
    except ValueError:
        return "none, as nothing runs in parallel here"


def _features() -> list[str]:
    present = llvmlite.binding.get_host_cpu_features()
    return [feature for feature in FEATURES if present.get(feature)]


def _cuda() -> str:
    return (
        f"no: numbabn {numbabn.__version__} has kernels for the CPU alone; what later ones need "
        "comes with the extra cuda12 or cuda13"
    )
