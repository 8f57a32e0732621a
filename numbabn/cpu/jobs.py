"""Jobs: the tasks of one call, on the threads of `pool`, or of a framework.

The thread of the call has a few others help, and works itself until no task is left. So a thread
that never comes costs nothing, and only for tasks that others have begun does the caller wait. It
sleeps then, which leaves its processor to a thread that was put off in the middle of one.

Each thread has a part of the tasks, neighbours in memory, which are the same from call to call and
from phase to phase; with its own done, it takes those of others.
"""

import ctypes
import sys
from functools import lru_cache
from typing import Any

from numba import types

from . import tasks
from .addresses import Table, add, address_of, call, load, pause, swap
from .addresses import words as words_at
from .compile import c_function, exact
from .threads import LEAST_PARALLEL

# A job is what the threads that work on one call share, in words: how many of them hold it, how
# many parts it has, the caller's lock, or 0, and the same while the caller waits for it, the
# arguments and addresses of the steps, then the phases that all pass one by one.
_HOLDERS, _PARTS, _LOCK, _WAITED, ARGUMENTS, STEPS, _PHASES, _FIRST_PHASE = (
    0,
    1,
    2,
    3,
    4,
    10,
    14,
    15,
)
# Of a phase: how many tasks are done, how many there are, and which steps each takes.
_DONE, _COUNT, _FIRST_STEP, _LAST_STEP, _PHASE = range(5)
_MOST_PHASES = 4
# The parts follow, a cache line each: the job, the part's number, whether it has a thread, and how
# many of its tasks were taken in each phase.
JOB = 32
_JOB, _NUMBER, _TAKEN_BY, _TAKEN, PART = 0, 1, 2, 3, 8
# What follows is aligned to 16 bytes, as the job is.

# So often a thread looks whether others are done, before it goes to sleep or leaves: for some 25 to
# 60 µs, by the processor, as long as it takes to wake up. It never yields: Linux makes a thread
# that does lose its next turns.
_LOOKS = 1000

_C_FUNCTIONS = ("allocate", "free", "give_way", "new_lock", "free_lock", "acquire", "release")
TABLE = Table("jobs", (*_C_FUNCTIONS, "help"))
_AT, _entry = TABLE.at, TABLE.entry
_kept: list[Any] = []


@lru_cache(maxsize=1)
def fill_table():
    """Fill the table of this module."""
    # Functions of Python's that need no GIL; a lock may be released by any thread.
    python = ctypes.pythonapi
    give_way: Any
    if sys.platform == "win32":
        give_way = ctypes.windll.kernel32.SwitchToThread
    else:
        give_way = ctypes.CDLL(None).sched_yield
    helper = c_function(_help, "numbabn_help", types.void(types.int64))
    _kept.append(helper)
    TABLE.fill(
        allocate=address_of(python.PyMem_RawMalloc),
        free=address_of(python.PyMem_RawFree),
        give_way=address_of(give_way),
        new_lock=address_of(python.PyThread_allocate_lock),
        free_lock=address_of(python.PyThread_free_lock),
        acquire=address_of(python.PyThread_acquire_lock),
        release=address_of(python.PyThread_release_lock),
        help=helper.address,
    )


@exact
def acquire(lock):
    """Wait for a lock, whatever interrupts come."""
    # int PyThread_acquire_lock(lock, int), whose first form is deaf to signals.
    call(_entry(_AT.acquire), (lock, 1))


@exact
def release_lock(lock):
    """Let whoever waits for a lock have it."""
    call(_entry(_AT.release), (lock,))


@exact
def parts_of(size, tiles, splits, threads):
    """How many of so many threads share a call.

    size: how many elements x has
    """
    # All threads are worth waking for so many elements each at least.
    return max(1, min(threads, tiles * splits, size // (LEAST_PARALLEL // 2)))


@exact
def size_of(parts):
    """The words that a job needs."""
    return JOB + PART * parts


@exact
def allocate(parts):
    """The address of a new job; 0 for no memory."""
    return call(_entry(_AT.allocate), (8 * size_of(parts),))


@exact
def fill(job, steps, arguments):
    """Say what a job is to do.

    steps: (4,) addresses of C functions, or 0
    arguments: tuple of six addresses, the arguments of every step
    """
    words = words_at(job, JOB)
    for k in range(6):
        words[ARGUMENTS + k] = arguments[k]
    for k in range(4):
        words[STEPS + k] = steps[k]


@exact
def run(job, tiles, splits, parts, source, schedule):
    """Run a job, whose caller holds it then.

    job: address of `size_of(parts)` words, of which ARGUMENTS and STEPS are filled in
    source, schedule: see `pool.schedule`
    """
    words = words_at(job, size_of(parts))
    words[_HOLDERS], words[_PARTS], words[_LOCK], words[_WAITED] = 1, parts, 0, 0
    _set_phases(words, tiles, splits)
    for number in range(parts):
        place = JOB + PART * number
        words[place : place + PART] = 0
        words[place + _JOB], words[place + _NUMBER] = job, number
    for phase in range(words[_PHASES]):
        if words[_FIRST_PHASE + _PHASE * phase + _COUNT] > 1 or phase == 0:
            _have_helped(job, parts, source, schedule)
        _take_part(job, 0, phase)
        _wait(job, phase)


@exact
def release(job):
    """Let go of a job; the last one frees it."""
    if add(job + 8 * _HOLDERS, -1) == 1:
        lock = words_at(job, JOB)[_LOCK]
        if lock != 0:
            call(_entry(_AT.free_lock), (lock,))
        call(_entry(_AT.free), (job,))


@exact
def _have_helped(job, parts, source, schedule):
    """Have a thread for each part that has none, while there are threads."""
    for number in range(1, parts):
        part = job + 8 * (JOB + PART * number)
        if load(part + 8 * _TAKEN_BY) == 0:
            add(job + 8 * _HOLDERS, 1)
            swap(part + 8 * _TAKEN_BY, 1)
            if call(schedule, (source, _entry(_AT.help), part)) == 0:
                swap(part + 8 * _TAKEN_BY, 0)
                add(job + 8 * _HOLDERS, -1)
                return


@exact
def help(part):
    """What other threads run: it may be long after the job was done.

    part: address of a part
    """
    fields = words_at(part, PART)
    job, number = fields[_JOB], fields[_NUMBER]
    phases = words_at(job, JOB)[_PHASES]
    for phase in range(phases):
        _take_part(job, number, phase)
        if phase + 1 == phases or not _is_soon_done(job, phase):
            break
    leave(part)


def _help(part):
    """`help`, as frameworks call it."""
    help(part)


@exact
def leave(part):
    """Let go of a part; the caller may give it to another thread."""
    job = words_at(part, PART)[_JOB]
    swap(part + 8 * _TAKEN_BY, 0)
    release(job)


@exact
def _take_part(job, number, phase):
    """Run tasks of a phase until none is left: those of a part, then those of others."""
    words = words_at(job, JOB)
    arguments = (
        words[ARGUMENTS],
        words[ARGUMENTS + 1],
        words[ARGUMENTS + 2],
        words[ARGUMENTS + 3],
        words[ARGUMENTS + 4],
        words[ARGUMENTS + 5],
    )
    place = _FIRST_PHASE + _PHASE * phase
    parts, count = words[_PARTS], words[place + _COUNT]
    for turn in range(parts):
        part = (number + turn) % parts
        taken = job + 8 * (JOB + PART * part + _TAKEN + phase)
        first, end = count * part // parts, count * (part + 1) // parts
        while first + load(taken) < end:
            task = first + add(taken, 1)
            if task >= end:
                break
            for step in range(words[place + _FIRST_STEP], words[place + _LAST_STEP]):
                tasks.call(words[STEPS + step], arguments, task)
            if add(job + 8 * (place + _DONE), 1) == count - 1:
                # The last one of the phase. Either the caller sees that it is done, or this sees
                # that the caller waits.
                lock = swap(job + 8 * _WAITED, 0)
                if lock != 0:
                    release_lock(lock)


@exact
def _is_done(job, phase):
    """Whether all tasks of a phase are: the next phase reads what they wrote."""
    place = _FIRST_PHASE + _PHASE * phase
    return load(job + 8 * (place + _DONE)) >= words_at(job, JOB)[place + _COUNT]


@exact
def _is_soon_done(job, phase):
    """Whether a phase is done before long."""
    for _ in range(_LOOKS):
        if _is_done(job, phase):
            return True
        pause()
    return _is_done(job, phase)


@exact
def _wait(job, phase):
    """Wait until a phase is done, as the caller."""
    if _is_soon_done(job, phase):
        return
    words = words_at(job, JOB)
    if words[_LOCK] == 0:
        lock = call(_entry(_AT.new_lock), ())
        if lock != 0:
            # Held: whoever acquires it waits until it is released.
            acquire(lock)
            words[_LOCK] = lock
    # Again where it was released for a phase before, by a thread that came late to say so.
    while not _is_done(job, phase):
        if words[_LOCK] == 0:
            call(_entry(_AT.give_way), ())
            continue
        swap(job + 8 * _WAITED, words[_LOCK])
        # Nobody releases it where nobody saw that it is waited for.
        if not _is_done(job, phase) or swap(job + 8 * _WAITED, 0) == 0:
            acquire(words[_LOCK])


@exact
def _set_phases(words, tiles, splits):
    """The phases of `tasks.run`."""
    if splits == 1:
        _set_phase(words, 0, tiles, 0, 4)
        words[_PHASES] = 1
        return
    for step in range(_MOST_PHASES):
        count = tiles if step % 2 == 0 else tiles * splits
        _set_phase(words, step, count if words[STEPS + step] != 0 else 0, step, step + 1)
    words[_PHASES] = _MOST_PHASES


@exact
def _set_phase(words, phase, count, first_step, last_step):
    first = _FIRST_PHASE + phase * _PHASE
    words[first + _DONE] = 0
    words[first + _COUNT] = count
    words[first + _FIRST_STEP] = first_step
    words[first + _LAST_STEP] = last_step
