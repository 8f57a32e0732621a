"""What numbabn runs on here."""

import argparse
import importlib
import importlib.metadata
import platform
from importlib.util import find_spec
from typing import Any

import llvmlite.binding
import numba
import numpy as np

import numbabn

from ..cpu.compile import cache_folder, why_not_kept
from ..cpu.threads import LEAST_PARALLEL, are_numba
from ..cuda.availability import missing_parts, why_unavailable

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
        **_cuda(),
        "compiled kernels": str(cache_folder() or f"kept nowhere: {why_not_kept()}"),
        **_keras(),
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
    if not are_numba():
        return "none of Numba's, but threads of numbabn's own"
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


def _cuda() -> dict[str, str]:
    """A row on CUDA, one for each part of its toolkit that is missing, and one for each device."""
    reason = why_unavailable()
    if reason is not None:
        return {"CUDA": f"no: {reason}", **_toolkit()}
    if numba.config.ENABLE_CUDASIM:
        return {"CUDA": "simulated on the host, as NUMBA_ENABLE_CUDASIM says"}
    missing = _toolkit()
    if missing:
        return {"CUDA": "no: nothing can be compiled", **missing}
    cuda = importlib.import_module("numba.cuda")
    driver = importlib.import_module("numba.cuda.cudadrv.driver").get_version()
    toolkit = cuda.runtime.get_version()
    versions = f"driver for CUDA {_dotted(driver)}, toolkit {_dotted(toolkit)}"
    if toolkit[0] > driver[0]:
        fitting = f"pip install 'numbabn[cuda{driver[0]}]'"
        return {"CUDA": f"no: {versions}, which is too new for the driver: {fitting}"}
    return {"CUDA": versions, **{f"device {d.id}": _device(d) for d in cuda.list_devices()}}


def _toolkit() -> dict[str, str]:
    """A row for each part of a toolkit that is missing; none without numba-cuda."""
    if find_spec("numba_cuda") is None or numba.config.ENABLE_CUDASIM:
        return {}
    return {f"CUDA, part {i + 1}": text for i, text in enumerate(missing_parts())}


def _device(device: Any) -> str:
    return f"{device.name}, compute capability {_dotted(device.compute_capability)}"


def _keras() -> dict[str, str]:
    """How Keras's tensors come to the kernels, a row for each place that they can be in."""
    if find_spec("keras") is None:
        return {}
    try:
        keras = importlib.import_module("numbabn.keras")
    except (ImportError, ValueError) as error:
        return {"Keras": f"no: {error}"}
    details = keras.backend_details()
    backend = details.pop("backend")
    return {f"Keras on {backend}, {place}": path for place, path in details.items()}


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
