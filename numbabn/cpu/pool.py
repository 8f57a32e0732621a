"""Threads of our own, for the functions, and for a framework that lends its kernels none.

They are started once and never end. They run compiled code only and never hold the GIL; Python
just lends its portable functions for threads and locks. A thread looks for work for a short while,
and then waits for its lock, which whoever has work for it releases.
"""

import ctypes
import os
import threading
from typing import Any

from numba import config, types

from ..interrupts import Uninterrupted
from . import jobs, tasks
from .addresses import Table, add, call, load, pause, swap, words
from .compile import c_function, exact
from .partition import Partition

# What a thread and those that have work for it share, in words; a cache line each: who wants it
# (one gets it), what it does, its lock, and the C function that it is to call with which argument.
_WANTED, _STATE, _LOCK, _FUNCTION, _ARGUMENT, _SEAT = 0, 1, 2, 3, 4, 8
_LOOKS_FOR_WORK, _HAS_WORK, _SLEEPS = range(3)
# So often it looks for work before it sleeps.
_LOOKS = 1000

TABLE = Table("pool", ("seats", "seat_count", "schedule", "run"))
_AT, _entry = TABLE.at, TABLE.entry
_TOTAL, _TILES, _SPLITS = map(Partition._fields.index, ("total", "tiles", "splits"))

_starting = threading.Lock()
_started = False
# What the table holds the addresses of.
_kept: list[Any] = []


def start():
    """Start the threads, unless that was done: as many as Numba may use, less the caller's."""
    global _started
    if not _started:
        with _starting, Uninterrupted():
            if not _started:
                _start(config.NUMBA_NUM_THREADS - 1)
                _started = True


def _start(number):
    jobs.fill_table()
    functions = {
        name: c_function(function, f"numbabn_{name}", signature)
        for name, function, signature in (
            ("serve", _serve, types.void(types.int64)),
            ("schedule", _schedule, types.int64(*[types.int64] * 3)),
            ("run", _run, types.void(*[types.int64] * 8)),
        )
    }
    _kept.append(functions)
    TABLE.fill(schedule=functions["schedule"].address, run=functions["run"].address)
    python = ctypes.pythonapi
    allocate, allocate_lock = python.PyMem_RawCalloc, python.PyThread_allocate_lock
    acquire, begin = python.PyThread_acquire_lock, python.PyThread_start_new_thread
    allocate.restype = allocate_lock.restype = ctypes.c_void_p
    allocate.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    begin.restype, begin.argtypes = ctypes.c_ulong, (ctypes.c_void_p, ctypes.c_void_p)
    acquire.argtypes = (ctypes.c_void_p, ctypes.c_int)
    # Never freed: the threads are there until the process ends, and Python ends before. A seat more
    # than threads, so that each has a cache line to itself.
    memory = allocate(number + 1, 8 * _SEAT)
    if memory is None:
        raise MemoryError("numbabn: no memory for the threads")
    seats = -(-memory // (8 * _SEAT)) * 8 * _SEAT
    for k in range(number):
        lock = allocate_lock()
        seat = (ctypes.c_int64 * _SEAT).from_address(seats + 8 * _SEAT * k)
        if lock is None:
            break
        acquire(lock, 1)
        seat[_LOCK] = lock
        # Refused where there are as many as the system allows: those that there are will do.
        if begin(functions["serve"].address, ctypes.addressof(seat)) == ctypes.c_ulong(-1).value:
            break
        TABLE.fill(seats=seats, seat_count=k + 1)


def _serve(seat):
    """What a thread does."""
    fields = words(seat, _SEAT)
    while True:
        looks = 0
        while looks < _LOOKS and load(seat + 8 * _STATE) != _HAS_WORK:
            pause()
            looks += 1
        if looks == _LOOKS and swap(seat + 8 * _STATE, _SLEEPS) != _HAS_WORK:
            jobs.acquire(fields[_LOCK])
        call(fields[_FUNCTION], (fields[_ARGUMENT],))
        swap(seat + 8 * _STATE, _LOOKS_FOR_WORK)
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
        if load(seat + 8 * _WANTED) != 0:
            continue
        if add(seat + 8 * _WANTED, 1) == 0:
            fields = words(seat, _SEAT)
            fields[_FUNCTION], fields[_ARGUMENT] = function, argument
            if swap(seat + 8 * _STATE, _HAS_WORK) == _SLEEPS:
                jobs.release_lock(fields[_LOCK])
            return True
        add(seat + 8 * _WANTED, -1)
    return False


def _schedule(source, function, argument):
    """`schedule`, as jobs call it; nothing hangs on the source."""
    return schedule(function, argument)


@exact
def run(steps, x, dy, out, on, words, scratch, threads):
    """`tasks.run` on arrays, from what is compiled; on so many threads at the most.

    threads: 1, unless the pool was started
    """
    arguments = tasks.compiled_arguments_of(x, dy, out, on, words, scratch)
    if threads == 1:
        tasks.run_serial(steps, words, arguments)
    else:
        call(_entry(_AT.run), (steps, *arguments, threads))


def _run(steps_address, x, dy, out, on, words_address, scratch, threads):
    """`run`, compiled once for all operations."""
    steps = words(steps_address, 4)
    cut = words(words_address, tasks.CALL)
    arguments = (x, dy, out, on, words_address, scratch)
    tiles, splits = cut[_TILES], cut[_SPLITS]
    parts = jobs.parts_of(cut[_TOTAL], tiles, splits, min(threads, count() + 1))
    job = jobs.allocate(parts) if parts > 1 else 0
    if job == 0:
        tasks.run_serial(steps, cut, arguments)
        return
    jobs.fill(job, steps, arguments)
    jobs.run(job, tiles, splits, parts, 0, _entry(_AT.schedule))
    jobs.release(job)


def _stay_alone():
    """Threads do not survive a fork."""
    TABLE.fill(seat_count=0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stay_alone)
