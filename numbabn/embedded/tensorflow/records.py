"""Specs, and the records that are made for them; see the package's docstring."""

from __future__ import annotations

import ctypes
import logging
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numba import types

from ... import layout as lay
from ...cpu import launch, steps
from ...cpu.compile import c_function
from .. import callbacks, plans
from ..jobs import add, load
from ..memory import words
from . import kernel

logger = logging.getLogger("numbabn")

# A record takes half a kilobyte. Whoever has more shapes than this waits for Python at each new
# call, some 100 µs, and it is forgotten.
MOST_RECORDS = 1000


class Spec(NamedTuple):
    """What is known of a call when it is traced.

    mode, steps: as `plans.make_plan` takes them
    operands: name and dtype of each input
    late: name and index (see `callbacks`) of each number that is read late
    results: names of the outputs
    context: what the caller wants to have back, see `operations.context_of`
    """

    mode: int
    steps: tuple[Any, ...]
    attributes: Any
    operands: tuple[tuple[str, str], ...]
    late: tuple[tuple[str, int], ...]
    results: tuple[str, ...]
    context: Any


class _Entry:
    """A spec, the state of its kernels, and its records, which live as long as the process."""

    def __init__(self, spec: Spec, index: int) -> None:
        self.spec = spec
        self.state = np.zeros(kernel.STATE, np.int64)
        self.state[kernel.INDEX] = index
        self.records: dict[bytes, np.ndarray[Any, Any]] = {}

    def record_for(self, signature: np.ndarray[Any, Any]) -> int:
        """The address of the record for inputs of these shapes."""
        key = signature.tobytes()
        if key not in self.records:
            record = _make_record(self.spec, signature)
            if len(self.records) >= MOST_RECORDS:
                return _copy_once(record)
            self.records[key] = record
            _publisher().ctypes(self.state.ctypes.data, record.ctypes.data)
        return self.records[key].ctypes.data


_entries: list[_Entry] = []
_indices: dict[Spec, int] = {}
_lock = threading.RLock()


def index_of(spec: Spec) -> int:
    """The number of a spec, by which graphs refer to it."""
    with _lock:
        if spec not in _indices:
            _entries.append(_Entry(spec, len(_entries)))
            _indices[spec] = len(_entries) - 1
        return _indices[spec]


def spec_of(index: int) -> Spec:
    """The spec of this number."""
    return _entries[index].spec


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def find_state(index):
    """The address of the state of a spec's kernels; 0 where this process has no such spec."""
    return _entries[index].state.ctypes.data if 0 <= index < len(_entries) else 0


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def make_record(address):
    """Answer a request, (spec, size, address of the shapes), with the address of a record, or 0."""
    index, size, shapes = (ctypes.c_int64 * 3).from_address(address)
    signature = np.array((ctypes.c_int64 * size).from_address(shapes), np.int64)
    try:
        with _lock:
            return _entries[index].record_for(signature)
    except Exception as error:
        # Nothing can be raised into TensorFlow. It gets the text, and raises an error of its own.
        if not isinstance(error, (TypeError, ValueError)):
            logger.exception("no kernels can be found for a call")
        callbacks.give_reason(address, str(error))
        return 0


def _publish_record(state, record):
    """Make a record the newest of a state. Other threads may be reading."""
    newest = load(state + 8 * kernel.NEWEST)
    words(record, kernel.HEAD)[kernel.BEFORE] = newest
    add(state + 8 * kernel.NEWEST, record - newest)


@lru_cache(maxsize=1)
def _publisher():
    signature = types.void(types.int64, types.int64)
    return c_function(_publish_record, "numbabn_publish_record", signature)


def _copy_once(record: np.ndarray[Any, Any]) -> int:
    """The address of a copy that the kernel frees."""
    python = ctypes.pythonapi
    python.PyMem_RawMalloc.restype = ctypes.c_void_p
    python.PyMem_RawMalloc.argtypes = (ctypes.c_size_t,)
    address = python.PyMem_RawMalloc(record.nbytes)
    if address is None:
        raise MemoryError("numbabn: no memory for the plan of a call")
    record[kernel.ONCE] = 1
    ctypes.memmove(address, record.ctypes.data, record.nbytes)
    return int(address)


class _Canonical(NamedTuple):
    """x in canonical form."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]


def _make_record(spec: Spec, signature: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shapes, dtypes, place = {}, dict(spec.operands), 0
    for name in dtypes:
        rank = int(signature[place])
        shapes[name] = tuple(int(size) for size in signature[place + 1 : place + 1 + rank])
        place += 1 + rank
    dtype = np.dtype(tf.as_dtype(dtypes["x"]).as_numpy_dtype)
    x = np.broadcast_to(np.zeros((), dtype), shapes["x"])
    layout = lay.layout_of(x, spec.attributes.axis)
    mask = None
    if "mask" in shapes:
        on = lay.check_mask(np.zeros(shapes["mask"], np.bool_), x)
        mask = launch.mask_of(on, layout, expand=False)
    plan = plans.make_plan(
        spec.mode,
        spec.steps,
        _Canonical(layout.canonical_shape, dtype),
        mask,
        spec.attributes,
        [*dtypes, *(name for name, _ in spec.late)],
        spec.results,
    )
    outputs: list[int] = []
    for name in spec.results:
        outputs += _output(name, layout, dtypes)
    late = [index for _, index in spec.late]
    head = [0, 0, signature.size, len(late), len(outputs), plan.size]
    return np.array([*head, *signature, *late, *outputs, *plan], np.int64)


def _output(name: str, layout: lay.Layout, dtypes: dict[str, str]) -> list[int]:
    """What a record has of an output."""
    shape, dtype = layout.channel_shape, dtypes.get(name, rows_dtype(dtypes["x"]))
    if name in ("y", "dx"):
        shape, dtype = layout.shape, dtypes["x"]
    elif name == "values":
        shape, dtype = (steps.SAVED, layout.channels), "float64"
    kind = tf.as_dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.size
    return [kind.as_datatype_enum, size, len(shape), *shape]


def rows_dtype(dtype: str) -> str:
    """The dtype of per-channel values beside a tensor of `dtype`."""
    return "float64" if dtype == "float64" else "float32"
