"""The folder of compiled kernels, spoilt, full, shared, of others: results stay right."""

import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from numbabn.__main__ import main
from numbabn.cpu import cache, compile
from processes import run_python

pytestmark = [pytest.mark.jit, pytest.mark.timeout(600)]
AS_ROOT = hasattr(os, "getuid") and os.getuid() == 0
posix = pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")

# One small operation, with what it logs.
CALL = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
import numpy as np
import numbabn
y = numbabn.normalize(np.float32([[1.0], [3.0]]), [2.0], [1.0], epsilon=1e-6)
np.testing.assert_allclose(y, [[-1.0], [1.0]], rtol=1e-5)
"""


def call(folder, **environment):
    """Run it in a process of its own; what it logs."""
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def kernels(folder):
    return sorted(folder.rglob("*.nbc"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder that one call has filled."""
    folder = tmp_path_factory.mktemp("filled")
    call(folder)
    assert len(kernels(folder)) >= 3
    assert not list(folder.rglob("*.nbi"))
    return folder


@pytest.fixture
def folder(filled, tmp_path):
    return Path(shutil.copytree(filled, tmp_path / "cache"))


def test_a_folder_that_is_whole_is_used(folder):
    before = {each: each.stat().st_mtime_ns for each in kernels(folder)}
    assert "compiled" not in call(folder)
    assert {each: each.stat().st_mtime_ns for each in kernels(folder)} == before


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


SPOILT = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "one bit": flipped,
    "its end": lambda content: content[:-1] + bytes([content[-1] ^ 0x80]),
    "of something else": lambda content: b"\x80\x04" + bytes(200),
}


@pytest.mark.parametrize("first", [0, 3])
def test_files_that_are_spoilt_are_compiled_anew(folder, first):
    """In one way each."""
    spoilt = {}
    for number, each in enumerate(kernels(folder), first):
        spoilt[each] = list(SPOILT.values())[number % len(SPOILT)](each.read_bytes())
        each.write_bytes(spoilt[each])
    said = call(folder)
    assert said.count("is not whole, and compiled anew") == len(spoilt)
    assert all(each.read_bytes() != content for each, content in spoilt.items())
    assert "compiled anew" not in call(folder)


def test_a_file_in_the_place_of_another(folder):
    """Whole, and of another function: the name is not all that tells them apart."""
    first, second, *_ = kernels(folder)
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    assert "is not whole, and compiled anew" in call(folder)
    assert second.read_bytes()[:100] != first.read_bytes()[:100]
    assert len(second.read_bytes()) > len(content) // 2


def test_a_folder_in_the_place_of_a_file(folder):
    first = kernels(folder)[0]
    first.unlink()
    first.mkdir()
    assert "is not kept: " in call(folder)


def test_a_disk_that_is_full(tmp_path):
    """Every write fails; each process compiles for itself."""
    program = (
        """
import numbabn.cpu.cache, contextlib, errno, os
@contextlib.contextmanager
def full(self, path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    yield
numbabn.cpu.cache._Files._open_for_write = full
"""
        + CALL
    )
    run_python(program, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert not kernels(tmp_path)


@posix
@pytest.mark.skipif(not AS_ROOT, reason="only root can mount a small disk")
def test_a_small_disk_that_becomes_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        assert "No space left on device" in call(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def processes_at_once(folder, environments):
    """Several processes that fill a folder at the same time."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CALL],
            env=os.environ | {"NUMBA_CACHE_DIR": str(folder)} | environment,
            stderr=subprocess.PIPE,
        )
        for environment in environments
    ]
    for each in started:
        _, said = each.communicate(timeout=300)
        assert each.returncode == 0, said.decode()


def test_processes_that_fill_a_folder_at_once(tmp_path, filled):
    processes_at_once(tmp_path, [{}] * 2)
    names = [each.name for each in kernels(tmp_path)]
    assert names == [each.name for each in kernels(filled)]
    assert "compiled anew" not in call(tmp_path)
    assert not list(tmp_path.rglob("*.tmp.*"))


def test_processors_do_not_run_each_other_s_code(folder):
    """A folder of several machines: each has files of its own, filled at once or not."""
    here = len(kernels(folder))
    other = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    processes_at_once(folder, [other, {}])
    assert len(kernels(folder)) == 2 * here
    before = {each: each.stat().st_mtime_ns for each in kernels(folder)}
    assert "compiled" not in call(folder)
    assert "compiled" not in call(folder, **other)
    assert {each: each.stat().st_mtime_ns for each in kernels(folder)} == before


# Trust


@pytest.fixture
def told(monkeypatch, caplog):
    """What is logged, and nothing that was found before."""
    cache._distrust.cache_clear()
    cache._warn.cache_clear()
    caplog.set_level(logging.WARNING)
    yield caplog
    cache._distrust.cache_clear()


@posix
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_a_folder_that_everyone_can_write_to(tmp_path, mode, told):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    assert cache.distrust(folder) == f"everyone can write to {folder}"
    assert told.messages == [
        f"compiled kernels are neither kept nor read: everyone can write to {folder}"
    ]


@posix
def test_a_folder_within_one_that_everyone_can_write_to(tmp_path, told):
    """They would put another in its place; not where only owners can."""
    folder = tmp_path / "shared" / "cache"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o777)
    assert cache.distrust(folder) == f"everyone can write to {folder.parent}"
    cache._distrust.cache_clear()
    folder.parent.chmod(0o1777)
    assert cache.distrust(folder) is None


@posix
@pytest.mark.skipif(not AS_ROOT, reason="only root gives folders away")
def test_a_folder_of_others(tmp_path, told):
    folder = tmp_path / "cache"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    assert cache.distrust(folder) == f"{folder} belongs to another user"
    cache._distrust.cache_clear()
    os.chown(folder, 0, 12345)
    assert cache.distrust(folder) is None
    cache._distrust.cache_clear()
    folder.chmod(0o775)
    assert cache.distrust(folder) == f"a group of users can write to {folder}"


@posix
def test_what_is_not_to_be_trusted_is_not_read(folder, told, monkeypatch, capsys):
    """Nor written: what stands there would be executed."""
    folder.chmod(0o777)
    content = {each: each.read_bytes() for each in kernels(folder)}
    for each in content:
        each.write_bytes(b"spoilt")
    said = call(folder)
    assert f"compiled kernels are neither kept nor read: everyone can write to {folder}" in said
    assert "is not whole" not in said
    assert all(each.read_bytes() == b"spoilt" for each in content)
    monkeypatch.setattr(compile.config, "CACHE_DIR", str(folder))
    reason = "cannot cache function _sources_digest: everyone can write to "
    assert compile.why_not_kept().startswith(reason)
    monkeypatch.setattr("numbabn.commands.info._keras", dict)
    monkeypatch.setattr("numbabn.commands.info._threading_layer", str)
    assert main(["info"]) == 0
    assert f"kernels  kept nowhere: {reason}" in capsys.readouterr().out


@posix
def test_the_package_s_own_folder_is_trusted_as_its_code_is(monkeypatch, tmp_path, told):
    own = tmp_path / "__pycache__"
    own.mkdir()
    own.chmod(0o777)
    monkeypatch.setattr(cache, "_PACKAGE", Path(os.path.realpath(tmp_path)))
    assert cache.distrust(own) is None
    assert stat.S_IMODE(own.stat().st_mode) == 0o777


def test_why_kernels_are_not_kept(monkeypatch):
    monkeypatch.setattr(compile.config, "DISABLE_JIT", 1)
    assert compile.why_not_kept() == "NUMBA_DISABLE_JIT is set, and nothing is compiled"
    assert compile.cache_folder() is None
