"""Hands bytes to standard output, standard error or a file, and knows how many arrived.

What a reader at the other end of a pipe has not taken when it leaves was not delivered.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from jobctl.errors import CannotWrite, ReaderLeft

_PIECE = 1 << 18
_SHORT = 0.0005
"""Seconds to wait at first for a reader to take what is in the pipe."""
_DEFERRED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Segment(NamedTuple):
    """Bytes to deliver, and how many bytes of the source they stand for."""

    data: bytes
    source: int


class Sink:
    """One open file, pipe or terminal that takes output."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        kind = os.fstat(fd).st_mode
        self._pipe = stat.S_ISFIFO(kind)
        self._blocks = not stat.S_ISREG(kind)
        self._size = select.PIPE_BUF if self._blocks else _PIECE
        if self._pipe or stat.S_ISCHR(kind):
            # Opened anew it can be made non-blocking without our neighbours noticing.
            with suppress(OSError):
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
                self._size, self._blocks = _PIECE, False

    def send(self, segments: list[Segment]) -> Iterator[int]:
        """Deliver segments; yield, several times, how many source bytes have arrived so far.

        Signals are held back but where the count is up to date: whoever iterates may be
        interrupted while this waits, and knows then what was delivered by the last yield.

        :raises ReaderLeft: after a last yield, when the reader went away.
        :raises CannotWrite: after a last yield, when the disk is full, say.
        """
        data = b"".join(segment.data for segment in segments)
        view, written = memoryview(data), 0
        failure: OSError | None = None
        nap = _SHORT
        while True:
            if self._blocks and written < len(data):
                self._wait(True, nap)
            with _held_back():
                if written < len(data):
                    try:
                        written += os.write(self._fd, view[written : written + self._size])
                        nap = _SHORT
                    except BlockingIOError:
                        pass
                    except OSError as error:
                        failure = error
                unread = self._unread()
                yield _sources(segments, written - unread)
            if failure or (written == len(data) and not unread):
                break
            left = self._wait(written < len(data), nap)
            if left and written == len(data):
                failure = left
            nap = min(nap * 1.5, 0.02)
        if failure is None or (written == len(data) and not self._unread()):
            return
        with _held_back():
            yield _sources(segments, written - self._unread())
        if failure.errno == errno.EPIPE:
            raise ReaderLeft(f"the reader of {self.name} has gone")
        raise CannotWrite(f"cannot write to {self.name}: {failure.strerror}")

    def _wait(self, more: bool, nap: float) -> OSError | None:
        """Wait until there is room, or for a little while; return an error if the reader left."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT if more else 0)
        for _, event in poll.poll(None if more else nap * 1000):
            if event & (select.POLLERR | select.POLLHUP):
                return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return None

    def _unread(self) -> int:
        """Return the bytes in the pipe that nobody has taken yet; 0 where it is no pipe."""
        if not self._pipe:
            return 0
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, b"\0" * 4))[0])
        except OSError:
            return 0


def _sources(segments: list[Segment], arrived: int) -> int:
    """Return how many source bytes the first arrived bytes of segments stand for.

    A segment that is the source itself counts by the byte, any other one as a whole.
    """
    source, arrived = 0, max(0, arrived)
    for segment in segments:
        if arrived < len(segment.data):
            return source + (arrived if len(segment.data) == segment.source else 0)
        arrived -= len(segment.data)
        source += segment.source
    return source


@contextmanager
def _held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEFERRED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
