"""Hands bytes to standard output, standard error or a file, and knows how many arrived.

What is in a pipe when its reader leaves was not delivered: see Sink.lost.
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
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from jobctl.errors import CannotWrite, ReaderLeft

PIECE = 1 << 16
"""Bytes to hand over at a time: what an empty pipe takes (pipe(7))."""
_DEFERRED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_PATIENCE = 0.02
"""Seconds between looks at whether a reader has taken what is in the pipe, at most."""


class Origin(NamedTuple):
    """Where delivered bytes come from: a range of a stream of a job."""

    job: str
    stream: str
    start: int
    end: int


class Sink:
    """One open file, pipe or terminal that takes output."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        kind = os.fstat(fd).st_mode
        self._plain = stat.S_ISREG(kind)
        self._device = stat.S_ISCHR(kind) and not os.isatty(fd)
        self._pipe = stat.S_ISFIFO(kind)
        self._blocks = not self._plain
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if writable and (self._pipe or stat.S_ISCHR(kind)):
            # Opened anew it can be made non-blocking without our neighbours noticing.
            with suppress(OSError):
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
                self._blocks = False
        self._pending = b""
        """The rest of what write() has promised to write as a whole."""
        self._on_the_way: deque[tuple[int, Origin]] = deque()
        self._length = 0
        """Bytes of all that is on the way, or was and is not forgotten yet."""

    def wait(self) -> None:
        """Return when there is room for something.

        :raises ReaderLeft: nobody reads the pipe any more.
        :raises CannotWrite: the disk is full, say.
        """
        while True:
            if not self._plain:
                self._check(self._poll(select.POLLOUT, None))
            if not self._pending:
                return
            with uninterrupted():
                self._pending = self._pending[self._write(self._pending) :]

    def check(self) -> None:
        """Look whether there is still a reader.

        :raises ReaderLeft: there is none.
        """
        if self._pipe:
            self._check(self._poll(0, 0))

    def room(self) -> int:
        """Return the bytes that write() takes as a whole, once wait() has returned."""
        empty = self._pipe and not self._unread()
        if self._plain or (not self._blocks and (self._device or empty)):
            return PIECE
        return select.PIPE_BUF

    def write(self, data: bytes, origin: Origin, whole: bool = False) -> int:
        """Return how many bytes of data were taken, 0 if there was no room after all.

        :param whole: take all of data or nothing; what does not fit now, the next wait()
            or drain() writes.
        :raises ReaderLeft: nobody reads the pipe any more.
        :raises CannotWrite: the disk is full, say.
        """
        taken = self._write(data)
        if whole and taken:
            self._pending = data[taken:]
            taken = len(data)
        if taken and self._pipe:
            self._on_the_way.append((taken, origin))
            self._length += taken
            unread = self._unread() + len(self._pending)
            while self._on_the_way and self._length - self._on_the_way[0][0] >= unread:
                self._length -= self._on_the_way.popleft()[0]
        return taken

    def drain(self, seconds: float | None = None) -> None:
        """Return when the reader has taken all that is in the pipe, or seconds have passed.

        :raises ReaderLeft: it went away before.
        """
        if seconds is None:
            self.wait()
        deadline = None if seconds is None else time.monotonic() + seconds
        nap = 0.0002
        while self._on_the_way and self._unread():
            if deadline is not None and time.monotonic() > deadline:
                break
            gone = self._poll(0, nap)
            if gone and self._unread():
                self._check(gone)
            nap = min(nap * 1.5, _PATIENCE)
        if not self._pending:
            self._on_the_way.clear()
            self._length = 0

    def _write(self, data: bytes) -> int:
        try:
            # More than this could block where it cannot be made not to.
            return os.write(self._fd, data[: select.PIPE_BUF] if self._blocks else data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise ReaderLeft(f"the reader of {self.name} has gone") from None
            raise CannotWrite(f"cannot write to {self.name}: {error.strerror}") from None

    def lost(self) -> list[Origin]:
        """Return where the bytes came from that are still in the pipe, the last ones first.

        What was altered on the way (its length is not that of its origin) counts as a whole.
        """
        unread = self._unread() + len(self._pending)
        lost = []
        while unread > 0 and self._on_the_way:
            length, origin = self._on_the_way.pop()
            if unread < length == origin.end - origin.start:
                origin = origin._replace(start=origin.end - unread)
            lost.append(origin)
            unread -= length
        return list(dict.fromkeys(lost))

    def _poll(self, event: int, seconds: float | None) -> bool:
        """Wait for an event; return whether the reader went away instead."""
        poll = select.poll()
        poll.register(self._fd, event)
        events = poll.poll(None if seconds is None else seconds * 1000)
        return any(seen & (select.POLLERR | select.POLLHUP) for _, seen in events)

    def _check(self, gone: bool) -> None:
        if gone:
            raise ReaderLeft(f"the reader of {self.name} has gone")

    def _unread(self) -> int:
        """Return the bytes in the pipe that nobody has taken yet; 0 where that is not told."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, b"\0" * 4))[0])
        except OSError:
            return 0


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back what would interrupt, between writing bytes and writing down that it was done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEFERRED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
