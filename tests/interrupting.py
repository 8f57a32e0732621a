"""Ctrl-C at a chosen moment: at the n-th line that a call runs in some files."""

import linecache
import signal
import sys
from contextlib import contextmanager


@contextmanager
def interrupts_raised():
    """SIGINT raises KeyboardInterrupt, where tests run in the background with it ignored too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted_at(line, folder, call):
    """Call, with an interrupt at a line of the files in a folder, counted as they run.

    Returns whether the interrupt was raised; False too where `call` runs fewer lines.
    """
    left = line

    def trace(frame, event, argument):
        nonlocal left
        if folder not in frame.f_code.co_filename:
            return None
        if event == "line" and not _is_with(frame):
            if left == 0:
                left -= 1
                signal.raise_signal(signal.SIGINT)
            left -= 1
        return trace

    before = sys.gettrace()
    with interrupts_raised():
        try:
            sys.settrace(trace)
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
    return False


def _is_with(frame):
    """Whether a frame is about to enter or to leave a context.

    Python lets no signal come between a lock and what releases it, and a trace function could.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.lstrip().startswith("with ")
