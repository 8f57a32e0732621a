"""The folder in which compiled code is kept: whether it is to be trusted, and the files in it.

What is loaded from there runs in this process, so a folder that others can write to is not used.
The files are our own and not Numba's: one for each function, its types and the processor, so that
processes which fill the folder at the same time need no index in common (with one, the code of one
processor could end under the name of another); and each begins with a digest of the rest, since a
file that was cut off or changed by a faulty disk would end the process, or compute something else.
"""

import hashlib
import logging
import os
import pickle
import stat
from functools import lru_cache
from pathlib import Path

import llvmlite
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

logger = logging.getLogger("numbabn")

_PACKAGE = Path(os.path.realpath(__file__)).parent.parent
_DIGEST_BYTES = hashlib.sha256().digest_size


class KernelCache(FunctionCache):
    """Numba's cache of one function, with files of our own.

    Raises:
        RuntimeError: there is no folder that it can write to, or none to be trusted.
    """

    def __init__(self, function):
        super().__init__(function)
        # For a package in a zip file Numba does not make it.
        os.makedirs(self.cache_path, exist_ok=True)
        reason = distrust(self.cache_path)
        if reason is not None:
            raise RuntimeError(f"cannot cache function {function.__qualname__}: {reason}")
        locator = self._impl.locator
        self._cache_file = _Files(
            self.cache_path, self._impl.filename_base, locator.get_source_stamp()
        )


class _Files(IndexDataCacheFile):
    """The files of one function, by its types and the processor."""

    def load(self, key):
        """What was saved under a key; None where there is nothing, or it is not whole."""
        try:
            content = Path(self._path_of(key)).read_bytes()
        except OSError:
            return None
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if self._digest(key, data) != digest:
            logger.info("%s is not whole, and compiled anew", self._path_of(key))
            return None
        return pickle.loads(data)

    def save(self, key, data):
        """Save under a key; where that fails, the next process compiles again."""
        dumped = self._dump(data)
        try:
            with self._open_for_write(self._path_of(key)) as file:
                file.write(self._digest(key, dumped) + dumped)
        except OSError as error:
            logger.info("%s is not kept: %s", self._path_of(key), error)

    def _digest(self, key, data):
        """Of what a file holds, and of what it is: one under the name of another is not whole."""
        return hashlib.sha256(self._what(key).encode() + data).digest()

    def _path_of(self, key):
        name = hashlib.sha256(self._what(key).encode()).hexdigest()[:16]
        return self._data_path(self._data_name_pattern.format(number=int(name, 16)))

    def _what(self, key):
        # As text: equal types have one name, and their pickles may differ.
        versions = numba.__version__, llvmlite.__version__
        kind = self._data_name_pattern, versions, self._source_stamp
        return repr((*kind, [str(each) for each in key]))


def distrust(folder):
    """Why compiled code in a folder is not to be trusted; None where it is.

    Whoever can write to the folder, or put another one in its place, could have this process run
    what they like. Permissions are those of POSIX; on Windows nothing is looked at.
    """
    folder = Path(os.path.realpath(folder))
    # Who can change the package's own folder could as well change its code.
    if os.name != "posix" or _PACKAGE in folder.parents:
        return None
    reason = _distrust(folder, os.getuid())
    if reason is not None:
        _warn(reason)
    return reason


@lru_cache(maxsize=64)
def _warn(reason):
    logger.warning("compiled kernels are neither kept nor read: %s", reason)


# Folders change their permissions rarely, and there is one question for each function.
@lru_cache(maxsize=64)
def _distrust(folder, user):
    if folder.stat().st_uid not in (0, user):
        return f"{folder} belongs to another user"
    for each in (folder, *folder.parents):
        found = each.stat()
        # There, nobody else than its owner can exchange what is in it for something else.
        if each != folder and found.st_mode & stat.S_ISVTX:
            continue
        if found.st_mode & stat.S_IWOTH:
            return f"everyone can write to {each}"
        if found.st_mode & stat.S_IWGRP and not _is_own(found.st_gid, user):
            return f"a group of users can write to {each}"
    return None


def _is_own(group, user):
    """Whether a group is of this user alone, or of root."""
    if group == 0:
        return True
    # Modules that only POSIX has.
    import grp
    import pwd

    try:
        entry, name = grp.getgrgid(group), pwd.getpwuid(user).pw_name
    except KeyError:
        return False
    # Each user's own group has the user's name.
    return entry.gr_name == name and set(entry.gr_mem) <= {name}
