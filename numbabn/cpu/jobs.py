"""Jobs: the tasks of one call, on the threads of a framework, or of `pool`.

The thread of the call schedules a few helpers and works itself. Whoever is free takes the next
task, so nobody waits for a thread that never comes.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..cpu import tasks, threads
from ..cpu.compile import exact
from . import table
from .memory import call
from .memory import words as words_at

# A job is what the threads that work on one call share, in words: how many of them hold
# it, the arguments and addresses of the steps, then the phases that all pass one by one.
_HOLDERS, ARGUMENTS, STEPS, _PHASES, _FIRST_PHASE = 0, 1, 7, 11, 12
# Of a phase: the next task and how many are done, how many there are, and which steps each takes.
_NEXT, _DONE, _COUNT, _FIRST_STEP, _LAST_STEP, _PHASE = range(6)
# Room for four phases, and even: what follows a job is aligned to 16 bytes, as the job is.
JOB = 32


@intrinsic
def add(typing_context, address, amount):
    """Add to the word at an address, atomically; what it was."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load(typing_context, address):
    """The word at an address, after all that was written before it was."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


@exact
def run(job, size, tiles, splits, source, count_others, schedule):
    """Run a job, with as many other threads as it gives work to; the caller holds it then.

    job: address of JOB words, of which ARGUMENTS and STEPS are filled in
    size: how many elements x has
    count_others, schedule: see `execution`
    """
    words = words_at(job, JOB)
    most = _set_phases(words, tiles, splits)
    words[_HOLDERS] = 1
    if size >= threads.LEAST_PARALLEL and table.entry(table.AT.is_parallel) != 0:
        others = call(count_others, (source,))
        helpers = min(others, most - 1, size // (threads.LEAST_PARALLEL // 2) - 1)
        for _ in range(helpers):
            add(job + 8 * _HOLDERS, 1)
            if call(schedule, (source, table.entry(table.AT.help_task), job)) == 0:
                add(job + 8 * _HOLDERS, -1)
                break
    _work(job)


@exact
def release(job):
    """Let go of a job; the last one frees it."""
    if add(job + 8 * _HOLDERS, -1) == 1:
        call(table.entry(table.AT.free), (job,))


def help_task(job):
    """What other threads run: it may be long after the job was done."""
    _work(job)
    release(job)


@exact
def _work(job):
    """Take part in a job until it is done."""
    words = words_at(job, JOB)
    arguments = (
        words[ARGUMENTS],
        words[ARGUMENTS + 1],
        words[ARGUMENTS + 2],
        words[ARGUMENTS + 3],
        words[ARGUMENTS + 4],
        words[ARGUMENTS + 5],
    )
    for phase in range(_FIRST_PHASE, _FIRST_PHASE + words[_PHASES] * _PHASE, _PHASE):
        count = words[phase + _COUNT]
        while True:
            task = add(job + 8 * (phase + _NEXT), 1)
            if task >= count:
                break
            for step in range(words[phase + _FIRST_STEP], words[phase + _LAST_STEP]):
                tasks.call(words[STEPS + step], arguments, task)
            add(job + 8 * (phase + _DONE), 1)
        # The next phase reads what all tasks of this one wrote.
        while load(job + 8 * (phase + _DONE)) < count:
            call(table.entry(table.AT.give_way), ())


@exact
def _set_phases(words, tiles, splits):
    """The phases of `tasks.run`; the greatest number of tasks in one."""
    if splits == 1:
        _set_phase(words, 0, tiles, 0, 4)
        words[_PHASES] = 1
        return tiles
    for step in range(4):
        count = tiles if step % 2 == 0 else tiles * splits
        _set_phase(words, step, count if words[STEPS + step] != 0 else 0, step, step + 1)
    words[_PHASES] = 4
    return tiles * splits


@exact
def _set_phase(words, phase, count, first_step, last_step):
    first = _FIRST_PHASE + phase * _PHASE
    words[first + _NEXT] = 0
    words[first + _DONE] = 0
    words[first + _COUNT] = count
    words[first + _FIRST_STEP] = first_step
    words[first + _LAST_STEP] = last_step
