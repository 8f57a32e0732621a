"""The parts of a CUDA toolkit: what is missing, and those of a folder that CUDA_HOME names."""

import subprocess
import venv
from pathlib import Path

import numba_cuda
import pytest

from cuda import pathfinder
from numbabn.cuda.availability import missing_parts
from processes import environment_of

PACKAGES = Path(numba_cuda.__file__).parents[1]
PROGRAM = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
from numbabn.cuda.availability import missing_parts

print(*missing_parts(), sep="\\n")
if not missing_parts():
    import offline

    (variant,) = (each for each in offline.variants() if each.name == "copy_32")
    print(offline.compiled(variant)[9, 0].registers > 0)
"""
BRINGS_IT = {
    "libNVVM": "nvidia-nvvm, for CUDA 12 nvidia-cuda-nvcc-cu12",
    "libdevice": "nvidia-nvvm, for CUDA 12 nvidia-cuda-nvcc-cu12",
    "nvJitLink": "nvidia-nvjitlink, for CUDA 12 nvidia-nvjitlink-cu12",
    "NVRTC": "nvidia-cuda-nvrtc, for CUDA 12 nvidia-cuda-nvrtc-cu12",
}


@pytest.fixture(scope="module")
def without_nvidia(tmp_path_factory):
    """A Python with all the packages that are here, but NVIDIA's parts of the toolkit."""
    folder = tmp_path_factory.mktemp("without")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for each in PACKAGES.iterdir():
        if each.name != "nvidia":
            (packages / each.name).symlink_to(each)
    return folder / "bin" / "python"


def run(python, **environment):
    return subprocess.run(
        [python, "-c", PROGRAM], env=environment_of(**environment), capture_output=True, text=True,
        timeout=240, check=True,
    ).stdout  # fmt: skip


def test_nothing_is_missing_here():
    assert missing_parts() == []


def test_each_missing_part_is_named_with_what_brings_it(monkeypatch):
    def no_library(name):
        raise pathfinder.DynamicLibNotFoundError(name)

    def no_bitcode(name):
        raise pathfinder.BitcodeLibNotFoundError(name)

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", no_library)
    monkeypatch.setattr(pathfinder, "find_bitcode_lib", no_bitcode)
    assert missing_parts() == [
        f"{name} is missing: pip install {packages}, or set CUDA_HOME"
        for name, packages in BRINGS_IT.items()
    ]


def test_kernels_are_compiled_with_the_toolkit_that_cuda_home_names(without_nvidia, tmp_path):
    (parts,) = PACKAGES.glob("nvidia/cu1?")
    (tmp_path / "nvvm").mkdir()
    (tmp_path / "lib64").symlink_to(parts / "lib")
    (tmp_path / "bin").symlink_to(parts / "bin")
    (tmp_path / "nvvm" / "lib64").symlink_to(parts / "lib")
    (tmp_path / "nvvm" / "libdevice").symlink_to(parts / "nvvm" / "libdevice")
    assert run(without_nvidia, CUDA_HOME=str(tmp_path)) == "\nTrue\n"
