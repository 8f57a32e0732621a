"""How many threads a call may use, and whose; and how a kernel is called on Numba's.

By default they are those of `pool`: OpenMP's spin, and wait for one another, so that a single other
process on the machine makes 2 ms into 40. Numba's serve whoever chose one of its layers.

Numba's `workqueue` layer aborts the process when two threads launch at once, so a lock
serves it. GNU OpenMP aborts in a forked child whose parent had used it, so a forked child
runs the serial steps.
"""

import os
import threading
from contextlib import nullcontext

import numba
from numba import config

# Below so many elements, waking the threads costs more than they save: a launch takes
# about 5 µs, in which one core normalizes some 30 000 float32 in its cache.
LEAST_PARALLEL = 1 << 15

_lock = threading.RLock()
_free = nullcontext()
_forked = False


def _mark_forked():
    global _forked, _lock
    _forked = True
    # Another thread of the parent may have held it when it forked.
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def in_forked_child():
    """Whether this process was forked from one that had this module."""
    return _forked


def number():
    """How many threads there are for work that is large enough."""
    return 1 if _forked or config.DISABLE_JIT else numba.get_num_threads()


def are_numba():
    """Whether work is for Numba's own threads: where a threading layer of theirs was chosen."""
    return config.THREADING_LAYER != "default"


def launching():
    """The context in which a parallel kernel is called."""
    try:
        layer = numba.threading_layer()
    except ValueError:
        # No parallel kernel has run yet; the first one starts the threads, on its own.
        return _lock
    return _lock if layer == "workqueue" else _free
