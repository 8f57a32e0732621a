"""Interrupts that are put off until a step is whole."""

from __future__ import annotations

import importlib
import threading
from signal import SIGINT
from types import FrameType
from typing import Any

# What `signal` is made of. That looks up the name of each handler in vain, which takes longer than
# all the rest of a step's assignments.
_signal = importlib.import_module("_signal")


class Uninterrupted:
    """A context in which Ctrl-C raises nothing; it comes at the end, as if it came then.

    Python raises interrupts in its main thread alone, so in other threads this does nothing. What
    other signals raise is not put off: whoever changes several things is to undo them.
    """

    __slots__ = ("_came", "_handler")

    def __enter__(self) -> None:
        self._came: list[FrameType | None] = []
        self._handler: Any = None
        if threading.current_thread() is threading.main_thread():
            handler = _signal.getsignal(SIGINT)
            # Neither ignored, nor the system's own, nor one that C code has set.
            if callable(handler):
                # Kept first: from the next line on the interrupts are put off.
                self._handler = handler
                _signal.signal(SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append(frame)

    def __exit__(self, *raised: object) -> None:
        if self._handler is None:
            return
        # An interrupt that comes up to here is noted, and one that comes after is raised.
        _signal.signal(SIGINT, self._handler)
        if self._came:
            self._handler(SIGINT, self._came[0])
