"""Specs, and the records that are made for them; see the package's docstring."""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numba import types

from ...cpu.compile import c_function
from .. import callbacks
from ..jobs import add, load
from ..memory import words
from ..operations import Attributes, Shaped, result_dtype, result_shape
from ..plans import geometry_of, make_plan
from . import kernel

# A record takes half a kilobyte. Whoever has more shapes than this waits for Python at each new
# call, some 100 µs, and it is forgotten.
MOST_RECORDS = 1000


class Spec(NamedTuple):
    """What is known of a call when it is traced.

    run: of `operations`
    operands: name and dtype of each input
    late: name and index (see `callbacks`) of each number that is read late
    results: names of the outputs
    context: what the caller wants to have back, see `calls.context_of`
    """

    run: int
    attributes: Attributes
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
            publish = _publisher().ctypes
            self.records[key] = record
            publish(self.state.ctypes.data, record.ctypes.data)
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


@callbacks.answers
def find_state(index, *_):
    """The address of the state of a spec's kernels; 0 where this process has no such spec."""
    return _entries[index].state.ctypes.data if 0 <= index < len(_entries) else 0


@callbacks.answers
def make_record(index, size, shapes):
    """The address of a record for a spec and shapes, `size` words at an address."""
    signature = np.array((ctypes.c_int64 * size).from_address(shapes), np.int64)
    with _lock:
        return _entries[index].record_for(signature)


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


def _make_record(spec: Spec, signature: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    inputs: dict[str, Shaped] = {}
    place = 0
    for name, dtype in spec.operands:
        rank = int(signature[place])
        shape = tuple(int(size) for size in signature[place + 1 : place + 1 + rank])
        inputs[name] = Shaped(shape, dtype)
        place += 1 + rank
    attributes, dtypes = spec.attributes, dict(spec.operands)
    geometry = geometry_of(inputs["x"], inputs.get("mask"), attributes.axis, expand=False)
    operands = [*inputs, *(name for name, _ in spec.late)]
    plan = make_plan(spec.run, geometry, attributes, operands, spec.results)
    outputs: list[int] = []
    for name in spec.results:
        shape = result_shape(name, geometry.layout.shape, attributes.axis)
        kind = tf.as_dtype(result_dtype(name, dtypes))
        size = int(np.prod(shape, dtype=np.int64)) * kind.size
        outputs += [kind.as_datatype_enum, size, len(shape), *shape]
    late = [index for _, index in spec.late]
    head = [0, 0, signature.size, len(late), len(outputs), plan.size]
    return np.array([*head, *signature, *late, *outputs, *plan], np.int64)
