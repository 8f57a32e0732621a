"""Threads of our own, for a framework that lends its kernels none.

They are started once and never end. They run compiled code only and never hold the GIL; Python
just lends its portable functions for threads and locks. A thread waits for its lock, which
whoever has work for it releases.
"""

import ctypes
import threading
from typing import Any

import numpy as np
from numba import types

from ..cpu.compile import c_function, exact
from .jobs import add
from .memory import call, words
from .process import address_of
from .table import Table

# What a thread and those that have work for it share, in words; a cache line each: who wants it
# (one gets it), its lock, and the C function that it is to call with which argument.
_WANTED, _LOCK, _FUNCTION, _ARGUMENT, _SEAT = 0, 1, 2, 3, 8

TABLE = Table("pool", ("acquire", "release", "seats", "seat_count"))
_AT, _entry = TABLE.at, TABLE.entry

_starting = threading.Lock()
_kept: list[Any] = []


def start(number):
    """Start as many threads, unless that was done before."""
    with _starting:
        if _kept or number < 1:
            return
        python = ctypes.pythonapi
        allocate, begin = python.PyThread_allocate_lock, python.PyThread_start_new_thread
        acquire, release = python.PyThread_acquire_lock, python.PyThread_release_lock
        allocate.restype, begin.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)
        acquire.argtypes = (ctypes.c_void_p, ctypes.c_int)
        TABLE.fill(acquire=address_of(acquire), release=address_of(release))
        work = c_function(_serve, "numbabn_serve", types.void(types.int64))
        seats = np.zeros((number, _SEAT), np.int64)
        _kept.extend((work, seats))
        for seat in seats:
            seat[_LOCK] = allocate()
            acquire(int(seat[_LOCK]), 1)
            begin(work.address, seat.ctypes.data)
        TABLE.fill(seats=seats.ctypes.data, seat_count=number)


def _serve(seat):
    """What a thread does."""
    fields = words(seat, _SEAT)
    while True:
        call(_entry(_AT.acquire), (fields[_LOCK], 1))
        call(fields[_FUNCTION], (fields[_ARGUMENT],))
        add(seat + 8 * _WANTED, -1)


@exact
def count():
    """How many threads there are."""
    return _entry(_AT.seat_count)


@exact
def schedule(function, argument):
    """Have a thread that is idle call a C function; whether there was one."""
    for k in range(count()):
        seat = _entry(_AT.seats) + 8 * _SEAT * k
        if add(seat + 8 * _WANTED, 1) == 0:
            fields = words(seat, _SEAT)
            fields[_FUNCTION], fields[_ARGUMENT] = function, argument
            call(_entry(_AT.release), (fields[_LOCK],))
            return True
        add(seat + 8 * _WANTED, -1)
    return False
