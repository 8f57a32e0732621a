"""Specs, and the records that are made for them; see the package's docstring."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import OrderedDict, deque
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numba import types

from ...cpu.addresses import add, load, words
from ...cpu.compile import c_function
from .. import callbacks
from ..operations import Attributes, Shaped, result_dtype, result_shape
from ..plans import geometry_of, make_plan
from . import kernel

# Of one spec. A record takes half a kilobyte, and a call looks through all of them: through so many
# for some 10 µs, a tenth of what it takes to make one. One more, and they are all made anew.
MOST_RECORDS = 256
# Specs of eager calls that nothing refers to. Graphs keep theirs for good, and gradient tapes as
# long as they need them. Large models have a few hundred, one for each layer with limits of its own
# and a few for all others; more come only where momentum or the like changes from step to step.
MOST_SPECS = 1024


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
    """A spec, the state of its kernels, and its records.

    TensorFlow keeps kernels, and with them the state: when the spec is gone, the next one takes
    over its index, its state and what kernels there are.
    """

    def __init__(self, spec: Spec, index: int, state: np.ndarray[Any, Any]) -> None:
        self.spec = spec
        self.index = index
        self.state = state
        self.records: dict[bytes, np.ndarray[Any, Any]] = {}
        # Records that are to be freed as soon as no call can be reading them.
        self.retired: list[np.ndarray[Any, Any]] = []

    def record_for(self, signature: np.ndarray[Any, Any]) -> int:
        """The address of the record for inputs of these shapes; asked for by one call."""
        key = signature.tobytes()
        if self.state[kernel.CALLS] <= 1:
            # The call that asks has found none.
            self.retired.clear()
        if key not in self.records:
            record = _make_record(self.spec, signature)
            if len(self.records) >= MOST_RECORDS:
                if self.retired:
                    return _copy_once(record)
                self.forget()
            publish = _publisher().ctypes
            self.records[key] = record
            publish(self.state.ctypes.data, record.ctypes.data)
        return self.records[key].ctypes.data

    def forget(self) -> None:
        """Retire all records."""
        _forgetter().ctypes(self.state.ctypes.data)
        self.retired.extend(self.records.values())
        self.records.clear()


class Index(int):
    """The number of a spec, which exists for as long as this does."""

    entry: _Entry


# By the numbers of specs. States stay where they are for good.
_states: list[np.ndarray[Any, Any]] = []
_entries: dict[int, callbacks.Numbered] = {}
_gone: deque[callbacks.Numbered] = deque()
_by_spec: dict[Spec, int] = {}
_recent: OrderedDict[Spec, _Entry] = OrderedDict()
_kept: dict[Spec, _Entry] = {}
_lock = threading.RLock()


def _renew_lock() -> None:
    """Another thread of the parent may have held it when it forked."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def index_of(spec: Spec, keep: bool) -> Index:
    """The number of a spec, by which calls refer to it.

    keep: whether it is for a graph, which refers to it for longer than anyone knows
    """
    with _lock:
        entry = entry_of(_by_spec.get(spec, -1))
        if entry is None or entry.spec != spec:
            entry = _new_entry(spec)
        if keep:
            _kept[spec] = entry
            _recent.pop(spec, None)
        elif spec not in _kept:
            _recent[spec] = entry
            _recent.move_to_end(spec)
            if len(_recent) > MOST_SPECS:
                _recent.popitem(last=False)
        index = Index(entry.index)
        index.entry = entry
        return index


def _new_entry(spec: Spec) -> _Entry:
    # Wherever an interrupt comes, what is lost is a number at the most.
    if _gone:
        number = _gone.popleft().number
        # No call is under way: its Index would hold on to the entry.
        _states[number][kernel.NEWEST] = 0
    else:
        state = np.zeros(kernel.STATE, np.int64)
        number = state[kernel.INDEX] = len(_states)
        _states.append(state)
    entry = _Entry(spec, number, _states[number])
    _entries[number] = callbacks.numbered(entry, number, _gone)
    if len(_by_spec) > 2 * len(_states):
        # Those of specs that are gone.
        for each in [each for each, of in _by_spec.items() if not _is_of(of, each)]:
            del _by_spec[each]
    _by_spec[spec] = number
    return entry


def _is_of(number: int, spec: Spec) -> bool:
    entry = entry_of(number)
    return entry is not None and entry.spec == spec


def entry_of(index: int) -> _Entry | None:
    """What there is of a number; None where there is nothing."""
    reference = _entries.get(index)
    return None if reference is None else reference()


def spec_of(index: int) -> Spec:
    """The spec of this number."""
    entry = entry_of(index)
    if entry is None:
        raise LookupError(f"this process has no spec {index}")
    return entry.spec


@callbacks.answers
def find_state(index, *_):
    """The address of the state of a spec's kernels; 0 where this process has no such spec."""
    entry = entry_of(index)
    return 0 if entry is None else entry.state.ctypes.data


@callbacks.answers
def make_record(index, size, shapes):
    """The address of a record for a spec and shapes, `size` words at an address."""
    signature = np.array((ctypes.c_int64 * size).from_address(shapes), np.int64)
    with _lock:
        entry = entry_of(index)
        if entry is None:
            raise LookupError(f"this process has no spec {index}")
        return entry.record_for(signature)


def _publish_record(state, record):
    """Make a record the newest of a state. Other threads may be reading."""
    newest = load(state + 8 * kernel.NEWEST)
    words(record, kernel.HEAD)[kernel.BEFORE] = newest
    add(state + 8 * kernel.NEWEST, record - newest)


def _forget_records(state):
    """Have a state without records. Other threads may be reading, and go on with what they read."""
    newest = load(state + 8 * kernel.NEWEST)
    add(state + 8 * kernel.NEWEST, -newest)


@lru_cache(maxsize=1)
def _publisher():
    signature = types.void(types.int64, types.int64)
    return c_function(_publish_record, "numbabn_publish_record", signature)


@lru_cache(maxsize=1)
def _forgetter():
    return c_function(_forget_records, "numbabn_forget_records", types.void(types.int64))


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
