"""What only Python knows: numbers that are read late, what is wrong with limits, new plans.

Compiled functions run without the GIL, and ask by a *request*, whose address goes to a C function
that `answers` made. An error in Python is handed to the framework, which raises one of its own; the
original is kept, for the call in Python that the framework's error comes out of (`originals`).
An interrupt is put off: it is asked for again once the request is answered, so that neither it
nor the request is lost.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import contextmanager
from itertools import count
from typing import Any

from ..cpu.addresses import call, words
from ..cpu.compile import exact
from ..renorm import RenormClipping
from . import table
from .memory import INVALID_ARGUMENT, RESOURCE_EXHAUSTED

logger = logging.getLogger("numbabn")

# Of a request, in words: its status, the answer, three arguments; and where there is no answer the
# reason, a C string.
STATUS, ANSWER, _ARGUMENTS, REASON, REQUEST = 0, 1, 2, 5, 42
# A callback that Python did not even begin, for an interrupt came first, leaves it open.
OPEN, ANSWERED, FAILED = range(3)
# Interrupts in a row that a request waits out: so many do not come by chance.
_MOST_INTERRUPTS = 1000


class Numbered(weakref.ref[Any]):
    """A weak reference with a number; see `numbered`."""

    __slots__ = ("number",)
    number: int


def numbered(referred, number, gone):
    """A weak reference with a number, which comes into the deque `gone` once its object is gone.

    It comes there without Python: an interrupt while Python frees something is lost.
    """
    reference = Numbered(referred, gone.append)
    # Its hash is that of what it refers to, and can be asked for now only.
    hash(reference)
    reference.number = number
    return reference


# Functions that return numbers, by the index that programs have of them. They live with their
# layers; but a call that is not over yet may need one whose layer is gone, so the last ones that
# were asked for are kept; and those that a compiled program has are kept for good.
_readers: dict[int, Numbered] = {}
_indices: dict[weakref.ref[Any], int] = {}
_gone: deque[Numbered] = deque()
_recent: OrderedDict[int, Callable[[], float]] = OrderedDict()
_compiled: dict[int, Callable[[], float]] = {}
# Of a thousand layers. No framework has so many calls under way.
_MOST_RECENT = 3000
_counter = count()
_lock = threading.RLock()


def _renew_lock():
    """Another thread of the parent may have held it when it forked."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
# Errors of callbacks and their texts. Few: whoever asks, asks at once.
_errors: deque[tuple[str, BaseException]] = deque(maxlen=16)


def index_of(reader):
    """The number by which a program asks for what `reader` returns."""
    with _lock:
        while _gone:
            reference = _gone.popleft()
            _readers.pop(reference.number, None)
            _indices.pop(reference, None)
        # References are equal where what they refer to is.
        index = _indices.get(weakref.ref(reader))
        if index is None:
            # Never one that was there before: whoever asks for what is gone gets an error.
            index = next(_counter)
            _readers[index] = reference = numbered(reader, index, _gone)
            _indices[reference] = index
        _recent[index] = reader
        _recent.move_to_end(index)
        if len(_recent) > _MOST_RECENT:
            _recent.popitem(last=False)
        return index


def keep(readers):
    """Keep readers for good, for a program that may outlive their layers."""
    with _lock:
        _compiled.update((index_of(reader), reader) for reader in readers)


def _read(index):
    reference = _readers.get(index)
    reader = None if reference is None else reference()
    if reader is None:
        raise RuntimeError(
            "the layer whose limits of renorm are to be read does not exist any more"
        )
    return float(reader())


def answers(function):
    """A C function, of a request's address, that answers requests by what `function` returns."""

    @ctypes.CFUNCTYPE(None, ctypes.c_int64)
    def answer(address):
        try:
            request = (ctypes.c_int64 * REASON).from_address(address)
            try:
                request[ANSWER] = function(*request[_ARGUMENTS:REASON])
                request[STATUS] = ANSWERED
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001
                # Nothing can be raised into a framework. It gets the text.
                _give_reason(address, error)
                request[STATUS] = FAILED
        except KeyboardInterrupt:
            # The request stays open, and whoever made it asks again.
            return

    return answer


def _give_reason(address, error):
    """Put the text of an error where a request has its reason, and keep the error."""
    text = str(error)
    if not isinstance(error, (TypeError, ValueError)):
        text = f"{type(error).__name__}: {text}"
        logger.error("a compiled program cannot go on", exc_info=error)
    _errors.append((text, error))
    encoded = text.encode()[: 8 * (REQUEST - REASON) - 1] + b"\0"
    ctypes.memmove(address + 8 * REASON, encoded, len(encoded))


@contextmanager
def originals(*failures):
    """Raise the error of a callback in place of the failure that a framework made of it."""
    try:
        yield
    except failures as failure:
        said = str(failure)
        for text, error in reversed(_errors):
            if text and text in said:
                raise error from failure
        raise


@exact
def ask(function, first, second, third):
    """The address of a request that is answered, or has failed, to be freed; 0 for no memory.

    function: the address of what `answers` made
    """
    address = call(table.entry(table.AT.allocate), (8 * REQUEST,))
    if address == 0:
        return address
    request = words(address, REQUEST)
    request[STATUS], request[ANSWER], request[REASON] = OPEN, 0, 0
    request[_ARGUMENTS], request[_ARGUMENTS + 1], request[_ARGUMENTS + 2] = first, second, third
    interrupts = -1
    while request[STATUS] == OPEN and interrupts < _MOST_INTERRUPTS:
        call(function, (address,))
        interrupts += 1
    if request[STATUS] == OPEN:
        request[STATUS] = FAILED
    if interrupts > 0:
        call(table.entry(table.AT.interrupt), ())
    return address


@exact
def free(address):
    """Let go of a request."""
    call(table.entry(table.AT.free), (address,))


# All of them at once: a thread that is not Python's gets a state of its own for each callback.
@answers
def read_late(size, indices, numbers):
    """Read `size` numbers; the addresses are of their indices, and of the float32 they become."""
    found = [_read(index) for index in (ctypes.c_int64 * size).from_address(indices)]
    (ctypes.c_float * size).from_address(numbers)[:] = found
    return size


@answers
def explain_limits(limits, *_):
    """Fail for limits, the address of three float64, as everywhere else."""
    RenormClipping(*(ctypes.c_double * 3).from_address(limits))
    return 0


@exact
def fail_limits(limits, source, fail):
    """Fail for limits of renorm, (3,) float64, that are none; see `execution` for `fail`."""
    return _asked(table.AT.explain_limits, limits.ctypes.data, 0, 0, source, fail)


@exact
def read_numbers(size, indices, numbers, source, fail):
    """Read the numbers of these indices; 0, or what `fail` returned.

    indices, numbers: addresses of words, and of float32
    """
    if size == 0:
        return 0
    return _asked(table.AT.read_late, size, indices, numbers, source, fail)


@exact
def _asked(place, first, second, third, source, fail):
    """Ask, for no answer but its success: 0, or what `fail` returned."""
    address = ask(table.entry(place), first, second, third)
    if address == 0:
        return call(fail, (source, RESOURCE_EXHAUSTED, table.entry(table.AT.no_memory)))
    failure = 0
    if words(address, REQUEST)[STATUS] != ANSWERED:
        failure = call(fail, (source, INVALID_ARGUMENT, address + 8 * REASON))
    free(address)
    return failure
