"""Files of weights: written whole, and read as what anyone may have written."""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

# Of an array's description. NumPy's own limit; a file that `save` wrote has 128 bytes.
_MOST_HEADER = 10_000
# What is raised by what is no file of ours: cut off, changed, encrypted, of something else.
_REFUSALS = (ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class _Described(NamedTuple):
    """What an entry says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def write_weights(path: str | os.PathLike[str], weights: Mapping[str, NDArray[Any]]) -> None:
    """Write an npz file of arrays by name; where that fails, what was there before stays.

    Raises:
        OSError: the file cannot be written.
    """
    target = os.path.realpath(path)
    # Beside it, so that it takes its place in one step.
    beside = f"{target}.{os.getpid()}.{threading.get_ident()}.part"
    try:
        with open(beside, "xb") as file:
            # mypy takes the names for savez's own arguments.
            np.savez(file, **weights)  # type: ignore[arg-type]
        os.replace(beside, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def read_weights(
    path: str | os.PathLike[str], names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, by name, once all that it says of them is as expected.

    Nothing is unpickled. No more is read than `names` and the sizes of the file itself allow.

    Args:
        names: those of the arrays, no more and no fewer.
        shapes: those of the arrays, by name, or nothing, for any one shape.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds other arrays, or is not such a file.
    """
    said = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as file:
            found = [each.filename.removesuffix(".npy") for each in file.infolist()]
            if sorted(found) != sorted(names):
                raise _Misfit(f"{said} holds the weights {_few(found)}, this layer has "
                              f"{sorted(names)}")  # fmt: skip
            expected = dict(shapes)
            for name in names:
                shape = _described(file, name).shape
                # Of a layer without weights: that of the first.
                wanted = expected.setdefault(name, next(iter(expected.values()), shape))
                if shape != wanted:
                    raise _Misfit(f"{said} holds {name} of shape {shape}, this layer has {wanted}")
            return {name: _array(file, name) for name in names}
    except _Misfit as misfit:
        raise ValueError(str(misfit)) from None
    except _REFUSALS as error:
        raise ValueError(f"{said} is not a file of weights that can be read: {error}") from error


class _Misfit(Exception):
    """A file that is whole, of other weights."""


def _few(names: list[str]) -> list[str]:
    """The names, or as many of them as a message has room for."""
    return sorted(each[:40] for each in names)[:20]


def _described(file: zipfile.ZipFile, name: str) -> _Described:
    """What an entry says of its array, if that is what the entry holds."""
    entry = file.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        # A few bytes may stand for any number of them.
        raise ValueError(f"{name} is compressed")
    with file.open(entry) as content:
        described = _read_header(content)
        size = content.tell()
    if described.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"{name} is of dtype {described.dtype}, not float32 or float64")
    size += prod(described.shape) * described.dtype.itemsize
    if size != entry.file_size or min(described.shape, default=0) < 0:
        raise ValueError(f"{name} has {entry.file_size} bytes where its shape needs {size}")
    return described


def _read_header(content: IO[bytes]) -> _Described:
    version = npy.read_magic(content)
    if version != (1, 0):
        raise ValueError(f"arrays of format {version} are not known")
    shape, _, dtype = npy.read_array_header_1_0(content, max_header_size=_MOST_HEADER)
    return _Described(shape, dtype)


def _array(file: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with file.open(f"{name}.npy") as content:
        array: NDArray[Any] = npy.read_array(content, allow_pickle=False)
        # To the end, where its checksum is compared.
        content.read()
        return array
