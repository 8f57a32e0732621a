"""Compiling, and keeping what was compiled.

Each compilation goes under a name of its own. Numba's cache files are named after the
function, and know neither its options nor the files that it calls into; two processes
that save different signatures under one name may even leave one's code under the other's
key. A name for each, with a digest of the sources in it, rules all of that out.
"""

import hashlib
import logging
from importlib.resources import files
from types import FunctionType
from typing import Any

from numba import config, njit
from numba.core import sigutils
from numba.core.ccallback import CFunc

from .cache import KernelCache

logger = logging.getLogger("numbabn")

# Sums may be reordered, which is what lets LLVM vectorize a reduction. Never nnan or
# ninf: with those LLVM may assume that no NaN occurs, and the mask rules are about NaN.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

# error_model="numpy": x / 0 is inf, as everywhere in NumPy, and loops stay vectorizable.
_OPTIONS = {"error_model": "numpy", "nogil": True}
_C_OPTIONS = {"nopython": True, "error_model": "numpy"}

# Functions that tasks call are compiled into them and cached there; without the wrappers
# that would let Python and C call them, they compile in half the time.
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_OPTIONS}
# Sums that may be taken in any order. Inlined in every place, as the next: for the ends of a run
# or a row, where a call would take as long as they do.
reordering = njit(fastmath=FASTMATH, _nrt=False, forceinline=True, **_INNER)
# Element by element: a product and a sum may be fused, nothing is reordered. Some versions of
# LLVM reorder what they inline into a function that may be, `centered` among it.
elementwise = njit(fastmath={"contract"}, _nrt=False, forceinline=True, **_INNER)
# Arithmetic whose order matters. fastmath=False is said aloud: a function that says nothing
# inherits the flags of its caller.
exact = njit(fastmath=False, **_INNER)
# The same for the loops over blocks. Numba counts the references of every array that is taken out
# of a structure, which takes longer than a short row: there nobody counts. Such functions cannot
# make arrays, and what they are given lives as long as their caller says.
uncounted = njit(fastmath=False, _nrt=False, **_INNER)
# Inlined besides, for what is called once a row: structures of arrays are passed on the stack.
inlined = njit(fastmath=False, _nrt=False, forceinline=True, **_INNER)


# Where everything that is compiled for the CPU comes from, and the names that have places in plans.
_FOLDERS = ("cpu", "embedded")
_FILES = ("formulas", "channels", "renorm")


def _sources_digest():
    # By its loader: the package may be in a zip file, or without sources.
    package = files(__package__.rpartition(".")[0])
    digest = hashlib.sha256()
    for each in sorted(package.iterdir(), key=lambda each: each.name):
        if each.is_dir() and each.name in _FOLDERS:
            _add_folder(digest, each)
        elif each.name.rpartition(".")[0] in _FILES:
            digest.update(each.read_bytes())
    return digest.hexdigest()[:12]


def _add_folder(digest, folder):
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir() and each.name != "__pycache__":
            _add_folder(digest, each)
        elif each.name.endswith((".py", ".pyc")):
            digest.update(each.read_bytes())


_DIGEST = _sources_digest()


def bound(function, **bindings):
    """A copy of `function` with `bindings` among its globals: one body for several arithmetics.

    It has a name of its own. The machine code of several processes meets where it is loaded from
    the cache, and of two functions of one name and of one type only the first would be called.
    """
    label = ", ".join(f"{name}={_label(bindings[name])}" for name in sorted(bindings))
    name = f"{function.__name__}_{hashlib.sha256(label.encode()).hexdigest()[:10]}"
    copy = FunctionType(function.__code__, {**function.__globals__, **bindings}, name)
    copy.__qualname__ = name
    return copy


def _label(value):
    """What a binding is, in words that every process has for it."""
    value = getattr(value, "py_func", value)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return repr(value) if name is None else f"{getattr(value, '__module__', '')}.{name}"


def _named(function, name, **bindings):
    """`bound`, under a name of its own."""
    copy = bound(function, **bindings)
    copy.__name__ = copy.__qualname__ = f"{name}_{_DIGEST}"
    return copy


def _cached(compile, name):
    """compile(cached=True), or compile(cached=False) where there is nowhere to keep it."""
    try:
        return compile(cached=True)
    except (RuntimeError, OSError) as error:
        # RuntimeError: Numba found no folder that it can write to, or it is not to be trusted.
        # OSError: it found one, and writing failed. Either way this process compiles for itself.
        if isinstance(error, RuntimeError) and "cannot cache function" not in str(error):
            raise
        logger.info("%s is compiled without a cache: %s", name, error)
        return compile(cached=False)


class _Kernel:
    """A function that is compiled on its first call, for the types of that call."""

    __slots__ = ("_compile", "compiled")

    def __init__(self, compile, name):
        self._compile = compile
        self.compiled = _cached(compile, name)

    def __call__(self, *arguments):
        try:
            return self.compiled(*arguments)
        except OSError:
            # The folder could be written to when this process began, and cannot be now.
            self.compiled = self._compile(cached=False)
            return self.compiled(*arguments)


def kernel(function, name, parallel, **bindings):
    """`function` compiled on its first call, for the types of that call.

    bindings: globals of `function` that this compilation has to itself
    """
    copy = _named(function, name, **bindings)
    if config.DISABLE_JIT:
        return copy
    options = {"parallel": parallel, "no_cfunc_wrapper": True, **_OPTIONS}

    def compile(cached):
        compiled = njit(**options)(copy)
        if cached:
            # What cache=True does, with a cache of our own.
            compiled._cache = KernelCache(copy)
        return compiled

    return _Kernel(compile, name)


def c_function(function, name, signature, **bindings):
    """`function` compiled for `signature`, now; its `address` is what C code calls.

    bindings: globals of `function` that this compilation has to itself
    """
    copy = _named(function, name, **bindings)

    def compile(cached):
        # What `numba.cfunc` does.
        compiled: Any = CFunc(copy, sigutils.normalize_signature(signature), {}, dict(_C_OPTIONS))
        if cached:
            compiled._cache = KernelCache(copy)
        compiled.compile()
        return compiled

    return _cached(compile, name)


def cache_folder():
    """Where compiled code is kept, or None where it is compiled anew by every process."""
    return None if why_not_kept() is not None else KernelCache(_sources_digest).cache_path


def why_not_kept():
    """Why compiled code is kept nowhere; None where it is."""
    if config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, and nothing is compiled"
    try:
        KernelCache(_sources_digest)
    except (RuntimeError, OSError) as error:
        return str(error)
    return None
