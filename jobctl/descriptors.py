"""Reads and writes descriptors that somebody else may have made non-blocking."""

from __future__ import annotations

import os
import select

_PIECE = 1 << 16


def write(fd: int, data: bytes) -> None:
    """Write all of data, waiting for room where there is none.

    :raises OSError: as os.write() does.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)


def read(fd: int, most: int = _PIECE) -> bytes:
    """Return what comes next, waiting for it where nothing is there; nothing at the end.

    :raises OSError: as os.read() does.
    """
    while True:
        try:
            return os.read(fd, most)
        except BlockingIOError:
            _wait(fd, select.POLLIN)


def gone(fd: int, seconds: float) -> bool:
    """Wait until nobody is at the other end of a pipe or a terminal; return whether that is so."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(seconds * 1000))


def _wait(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
