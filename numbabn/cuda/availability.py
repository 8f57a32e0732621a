"""Whether anything can run on a device here, and if not, what is missing."""

from __future__ import annotations

from importlib.util import find_spec

_INSTALL = "pip install 'numbabn[cuda13]' (or [cuda12], after the CUDA version of the driver)"


def why_unavailable() -> str | None:
    """One sentence on why no kernel can run here, or None where one can."""
    if find_spec("numba_cuda") is None:
        return f"arrays on a CUDA device need numba-cuda, which is not installed: {_INSTALL}"
    from .runtime import SIMULATED, cuda

    if SIMULATED or cuda.is_available():
        return None
    error = cuda.cuda_error()
    found = "no device was found" if error is None else " ".join(str(error).split())
    return (
        f"arrays on a CUDA device need an NVIDIA driver and a device, and numba-cuda for that "
        f"driver, {_INSTALL}: {found}"
    )
