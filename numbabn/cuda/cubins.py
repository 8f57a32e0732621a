"""Compiled kernels on disk, for every process and for devices that are elsewhere.

A file has the name of a variant and of an architecture, and the kernel's name in a line before its
machine code. Its folder is named after all that code follows from: the sources that kernels are
made of, and the versions of what compiles them. numba-cuda's own cache names files after
functions, which all variants of a kernel share.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_COMPILERS = ("numba-cuda", "numba", "llvmlite")


@lru_cache(maxsize=1)
def folder() -> Path | None:
    """Where compiled kernels are, and new ones go; None where nothing can be written.

    Like Numba's: in the folder that NUMBA_CACHE_DIR names, else beside the sources, else in the
    user's own folder for caches.
    """
    for place in _places():
        chosen = place / f"numbabn-cuda-{_digest()}"
        try:
            chosen.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.info("no CUDA kernels are kept in %s: %s", chosen, error)
            continue
        if os.access(chosen, os.W_OK):
            return chosen
    return None


def _places() -> Iterator[Path]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        yield Path(chosen)
        return
    yield _HERE / "__pycache__"
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numbabn"


@lru_cache(maxsize=1)
def _digest() -> str:
    """Of the sources that kernels are made of, and of the versions of what compiles them."""
    found = hashlib.sha256()
    sources = [*_HERE.glob("*.py"), *(_HERE.parent / f"{n}.py" for n in ("formulas", "channels"))]
    for source in sorted(sources):
        found.update(source.read_bytes())
    for package in _COMPILERS:
        found.update(f"{package} {version(package)}".encode())
    return found.hexdigest()[:16]


def load(variant: str, architecture: str) -> tuple[str, bytes] | None:
    """A kernel's name in its machine code, and that; None where it is not kept."""
    path = _path(variant, architecture)
    if path is None:
        return None
    try:
        name, _, code = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.info("%s cannot be read: %s", path, error)
        return None
    return name.decode(), code


def keep(variant: str, architecture: str, name: str, code: bytes) -> None:
    """Keep machine code for `load`; other processes see all of it, or nothing."""
    path = _path(variant, architecture)
    if path is None:
        return
    # A name that no other process or thread has at this time.
    part = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        part.write_bytes(name.encode() + b"\n" + code)
        part.replace(path)
    except OSError as error:
        logger.info("%s is not kept: %s", path, error)
        part.unlink(missing_ok=True)


def _path(variant: str, architecture: str) -> Path | None:
    chosen = folder()
    return None if chosen is None else chosen / f"{variant}.{architecture}.cubin"
