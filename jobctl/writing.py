"""Writes all of something to a descriptor, however long that takes."""

from __future__ import annotations

import os
import select


def write(fd: int, data: bytes) -> None:
    """Write all of data, waiting for room also where somebody made the descriptor non-blocking.

    :raises OSError: as os.write() does.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
