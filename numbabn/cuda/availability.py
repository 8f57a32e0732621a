"""Whether anything can run on a device here, and if not, what is missing."""

from __future__ import annotations

from importlib.util import find_spec

_INSTALL = "pip install 'numbabn[cuda13]' (or [cuda12], after the CUDA version of the driver)"

_NOT_INSTALLED = f"arrays on a CUDA device need numba-cuda, which is not installed: {_INSTALL}"
# What numba-cuda compiles and links with, by the names that NVIDIA's finder has for them, and the
# packages that bring it for CUDA 13 and for CUDA 12.
_PARTS = {
    "nvvm": ("libNVVM", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12"),
    "device": ("libdevice", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12"),
    "nvJitLink": ("nvJitLink", "nvidia-nvjitlink", "nvidia-nvjitlink-cu12"),
    "nvrtc": ("NVRTC", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
}


def missing_parts() -> list[str]:
    """A sentence for each thing that compiling needs and that is not here.

    That is numba-cuda, or else parts of the CUDA toolkit, which may come with a package or with a
    toolkit that CUDA_HOME names.
    """
    if find_spec("numba_cuda") is None:
        return [_NOT_INSTALLED]
    from cuda import pathfinder

    missing = []
    for part, (name, newer, older) in _PARTS.items():
        try:
            if part == "device":
                pathfinder.find_bitcode_lib(part)
            else:
                pathfinder.load_nvidia_dynamic_lib(part)
        except (pathfinder.DynamicLibNotFoundError, pathfinder.BitcodeLibNotFoundError):
            missing.append(
                f"{name} is missing: pip install {newer}, for CUDA 12 {older}, or set CUDA_HOME"
            )
    return missing


def why_unavailable() -> str | None:
    """One sentence on why no kernel can run here, or None where one can."""
    if find_spec("numba_cuda") is None:
        return _NOT_INSTALLED
    from .runtime import SIMULATED, cuda

    if SIMULATED or cuda.is_available():
        return None
    error = cuda.cuda_error()
    found = "no device was found" if error is None else " ".join(str(error).split())
    return (
        f"arrays on a CUDA device need an NVIDIA driver and a device, and numba-cuda for that "
        f"driver, {_INSTALL}: {found}"
    )
