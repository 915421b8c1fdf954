"""Waits for descriptors; reads and writes those that somebody else may have made non-blocking."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress

_PIECE = 1 << 16
_signals = -1
"""What can be read from once a signal has come."""


def heed_signals() -> None:
    """Have wait() end at signals, also at one that comes just before. For the main thread.

    Python runs a handler between two steps of its own. A signal that comes after the last step
    and before the system call would be heard of when something else ends the call.
    """
    global _signals
    _signals, told = os.pipe()
    for fd in (_signals, told):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)


def wait(poll: select.poll, seconds: float | None = None) -> list[tuple[int, int]]:
    """Return what poll sees, as its poll() does, nothing if that takes so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    if _signals >= 0:
        poll.register(_signals, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        seen = poll.poll(None if left is None else left * 1000)
        if _signals not in dict(seen):
            return seen
        with suppress(BlockingIOError):
            os.read(_signals, _PIECE)


def write(fd: int, data: bytes) -> None:
    """Write all of data, waiting for room where there is none.

    :raises OSError: as os.write() does.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            _until(fd, select.POLLOUT)


def read(fd: int, most: int = _PIECE) -> bytes:
    """Return what comes next, waiting for it where nothing is there; nothing at the end.

    :raises OSError: as os.read() does.
    """
    while True:
        try:
            return os.read(fd, most)
        except BlockingIOError:
            _until(fd, select.POLLIN)


def gone(fd: int, seconds: float) -> bool:
    """Wait until nobody is at the other end of a pipe or a terminal; return whether that is so."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(wait(poll, seconds))


def _until(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    wait(poll)
