"""Threads of our own, for the functions, and for a framework that lends its kernels none.

They are started once and never end. They run compiled code only and never hold the GIL; Python
just lends its portable functions for threads and locks. A thread looks for a part of a job for a
short while, and then waits for its lock, which whoever has a part for it releases.

Where other processes want the processor too, a call may be over before a thread has its turn. So a
part that waits for its thread gives way to that of a later call, and the turn is not lost.
"""

import ctypes
import os
import threading
from typing import Any

from numba import config, types

from ..interrupts import Uninterrupted
from . import jobs, tasks
from .addresses import Table, call, load, pause, swap, words
from .compile import c_function, exact
from .partition import Partition

# What a thread and those that have work for it share, in words; a cache line each: the part of a
# job that it is to take next, or 0, whether it works at one, whether it sleeps, and its lock.
_NEXT, _WORKS, _SLEEPS, _LOCK, _SEAT = 0, 1, 2, 3, 8
# So often it looks for work before it sleeps: for some 25 to 60 µs, by the processor. That is as
# long as it takes to wake up, and longer than a program takes from one call to the next.
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
    while True:
        part = _next_part(seat)
        swap(seat + 8 * _WORKS, 1)
        jobs.help(part)
        swap(seat + 8 * _WORKS, 0)


@exact
def _next_part(seat):
    """The part that a thread takes next; the thread sleeps until there is one."""
    for _ in range(_LOOKS):
        if load(seat + 8 * _NEXT) != 0:
            break
        pause()
    while True:
        part = swap(seat + 8 * _NEXT, 0)
        if part != 0:
            return part
        swap(seat + 8 * _SLEEPS, 1)
        # Either this sees what there is to do, or who puts it there sees that this sleeps.
        if load(seat + 8 * _NEXT) == 0 or swap(seat + 8 * _SLEEPS, 0) == 0:
            jobs.acquire(words(seat, _SEAT)[_LOCK])


@exact
def count():
    """How many threads there are."""
    return _entry(_AT.seat_count)


@exact
def schedule(part):
    """Have a thread take a part of a job, when it can; whether there was one."""
    # One that is idle; or else one that has not begun yet what it is to take.
    for only_idle in (True, False):
        for k in range(count()):
            seat = _entry(_AT.seats) + 8 * _SEAT * k
            if only_idle:
                if load(seat + 8 * _NEXT) != 0 or load(seat + 8 * _WORKS) != 0:
                    continue
            elif load(seat + 8 * _NEXT) == 0:
                continue
            before = swap(seat + 8 * _NEXT, part)
            if before != 0:
                jobs.leave(before)
            if swap(seat + 8 * _SLEEPS, 0) != 0:
                jobs.release_lock(words(seat, _SEAT)[_LOCK])
            return True
    return False


def _schedule(source, function, part):
    """`schedule`, as jobs call it: the function is `jobs.help`, and nothing hangs on the source."""
    return schedule(part)


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
