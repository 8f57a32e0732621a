"""Threads of our own: tasks that Python runs, so that it can say when a thread comes and goes."""

import ctypes
import random
import threading
import time

import numba
import numpy as np
import pytest

import numbabn
from numbabn.cpu import jobs, pool, tasks
from numbabn.cpu.partition import Partition
from processes import run_python

pytestmark = pytest.mark.jit

_WORD = ctypes.c_int64
_STEP = ctypes.CFUNCTYPE(None, *[_WORD] * 7)
_RUN = ctypes.CFUNCTYPE(None, *[_WORD] * 8)
_SCHEDULE = ctypes.CFUNCTYPE(_WORD, *[_WORD] * 3)
_HELP = ctypes.CFUNCTYPE(None, _WORD)

# Enough of them that no thread has too few to be worth waking.
TOTAL = 1 << 20


@pytest.fixture
def scheduled():
    """Have jobs scheduled by a function of Python's, of a thread's function and argument."""
    pool.start()
    before = pool.TABLE.entries.copy()
    kept = []

    def by(schedule):
        kept.append(_SCHEDULE(lambda source, function, argument: schedule(function, argument)))
        # However many threads the tests are given.
        pool.TABLE.fill(
            schedule=ctypes.cast(kept[-1], ctypes.c_void_p).value, seat_count=THREADS - 1
        )

    yield by
    pool.TABLE.entries[:] = before


THREADS = 4


def run(tiles, splits, step):
    """Run four steps, each of them `step(number, task)`; what ran, in the order it ended."""
    ran = []

    def numbered(number):
        @_STEP
        def call(*arguments):
            step(number, arguments[-1])
            ran.append((number, arguments[-1]))

        return call

    steps = [numbered(number) for number in range(4)]
    addresses = np.array([ctypes.cast(each, ctypes.c_void_p).value for each in steps], np.int64)
    words = np.zeros(tasks.CALL, np.int64)
    for name, word in (("total", TOTAL), ("tiles", tiles), ("splits", splits)):
        words[Partition._fields.index(name)] = word
    function = _RUN(int(pool.TABLE.entries[pool.TABLE.at.run]))
    function(addresses.ctypes.data, 0, 0, 0, 0, words.ctypes.data, 0, THREADS)
    return list(ran)


def assert_whole(ran, tiles, splits):
    """Each task ran once, and a phase only after the one before."""
    if splits == 1:
        assert sorted(ran) == [(step, tile) for step in range(4) for tile in range(tiles)]
        for tile in range(tiles):
            assert [step for step, task in ran if task == tile] == [0, 1, 2, 3]
        return
    counts = [tiles, tiles * splits, tiles, tiles * splits]
    assert [step for step, _ in ran] == [step for step in range(4) for _ in range(counts[step])]
    assert sorted(ran) == [(step, task) for step in range(4) for task in range(counts[step])]


each_cut = pytest.mark.parametrize(("tiles", "splits"), [(1, 8), (3, 4), (9, 1), (2, 1)])


@each_cut
def test_threads_that_dawdle(tiles, splits):
    """The caller sleeps until the last of them is done, and is woken for each phase."""
    pool.start()
    caller = threading.get_ident()
    rng = random.Random(tiles)

    def step(number, task):
        if threading.get_ident() != caller and rng.random() < 0.5:
            time.sleep(0.002)

    for _ in range(20):
        assert_whole(run(tiles, splits, step), tiles, splits)


@each_cut
def test_threads_that_never_come(scheduled, tiles, splits):
    """Nobody waits for them."""
    scheduled(lambda function, argument: 1)
    assert_whole(run(tiles, splits, lambda number, task: None), tiles, splits)


@each_cut
def test_threads_that_come_late(scheduled, tiles, splits):
    """In the middle of a job, or long after it was done."""
    helpers = []
    rng = random.Random(splits)

    def help_later(function, argument):
        delay = rng.choice([0.0, 0.001, 0.02])

        def come():
            time.sleep(delay)
            _HELP(function)(argument)

        helpers.append(threading.Thread(target=come))
        helpers[-1].start()
        return 1

    scheduled(help_later)
    for _ in range(5):
        ran = run(tiles, splits, lambda number, task: time.sleep(0.001))
        assert_whole(ran, tiles, splits)
    for each in helpers:
        each.join()


@each_cut
def test_no_thread_that_is_idle(scheduled, tiles, splits):
    scheduled(lambda function, argument: 0)
    assert_whole(run(tiles, splits, lambda number, task: None), tiles, splits)


def test_no_memory_for_a_lock(scheduled):
    """The caller looks again and again, then."""
    pool.start()
    before = jobs.TABLE.entries.copy()
    none = ctypes.CFUNCTYPE(_WORD)(lambda: 0)
    caller = threading.get_ident()

    def step(number, task):
        if threading.get_ident() != caller:
            time.sleep(0.002)

    jobs.TABLE.fill(new_lock=ctypes.cast(none, ctypes.c_void_p).value)
    try:
        assert_whole(run(3, 4, step), 3, 4)
    finally:
        jobs.TABLE.entries[:] = before


def test_no_memory_for_a_job():
    """The caller runs all of it."""
    pool.start()
    before = jobs.TABLE.entries.copy()
    none = ctypes.CFUNCTYPE(_WORD, _WORD)(lambda size: 0)
    caller, others = threading.get_ident(), []
    jobs.TABLE.fill(allocate=ctypes.cast(none, ctypes.c_void_p).value)
    try:
        ran = run(3, 4, lambda number, task: others.append(threading.get_ident() != caller))
    finally:
        jobs.TABLE.entries[:] = before
    assert_whole(ran, 3, 4)
    assert not any(others)


def test_threads_that_never_come_change_no_bit(scheduled):
    x = np.random.default_rng(12).normal(3.0, 2.0, (4096, 64)).astype(np.float32)
    expected, saved = numbabn.batch_norm_forward(x)
    gradients = numbabn.batch_norm_backward(x, x, saved)
    scheduled(lambda function, argument: 1)
    actual, saved = numbabn.batch_norm_forward(x)
    np.testing.assert_array_equal(actual, expected)
    for ours, theirs in zip(numbabn.batch_norm_backward(x, x, saved), gradients, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_thread_is_asked_for_only_while_there_are_tasks(scheduled):
    """Of two tasks the caller has one."""
    asked = []
    scheduled(lambda function, argument: asked.append(argument) or 0)
    run(2, 1, lambda number, task: None)
    assert len(asked) == 1


SEATS = """
import numba, numpy as np
import numbabn
from numbabn.cpu import pool

x = np.ones((4096, 32), np.float32)
if LAYER:
    numba.config.THREADING_LAYER = LAYER
numbabn.batch_norm_forward(x)
print(pool.TABLE.entries[pool.TABLE.at.seat_count])
numba.config.THREADING_LAYER = "default"
numbabn.batch_norm_forward(x)
print(pool.TABLE.entries[pool.TABLE.at.seat_count])
"""


@pytest.mark.heavy
@pytest.mark.parametrize("way", ["variable", "configuration"])
def test_a_threading_layer_that_was_chosen_is_used(way):
    """Then there are no threads of our own, until it is taken back."""
    layer = "workqueue"
    program = SEATS.replace("LAYER", repr(layer if way == "configuration" else ""), 1)
    program = program.replace("= LAYER", f"= {layer!r}")
    environment = {"NUMBA_THREADING_LAYER": layer} if way == "variable" else {}
    assert run_python(program, NUMBA_NUM_THREADS="3", **environment).split() == ["0", "2"]


@pytest.mark.heavy
def test_one_thread_starts_no_other():
    program = SEATS.replace("LAYER", "''", 1).replace("= LAYER", "= ''")
    assert run_python(program, NUMBA_NUM_THREADS="1").split() == ["0", "0"]


def test_as_many_threads_as_numba_may_use():
    pool.start()
    assert pool.TABLE.entries[pool.TABLE.at.seat_count] == numba.config.NUMBA_NUM_THREADS - 1
