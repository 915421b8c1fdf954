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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from jobctl import descriptors
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


class Part(NamedTuple):
    """Bytes to deliver, as they are in a job's output, and our own words around them."""

    data: bytes = b""
    origin: Origin | None = None
    """Where data comes from."""
    before: bytes = b""
    """Words that are written to their end, before anything else, once they are begun."""
    after: bytes = b""
    """Words that are so once the last of data is written."""
    awaited: bool = True
    """Whether the reader is to take it before we end."""


class Taken(NamedTuple):
    """What a sink took of some parts."""

    delivered: int
    """Bytes of job output."""
    last: bytes
    """The last of these, or of our own words after them."""
    begun: bool
    """Whether it took some of a part, but not all."""


class Sink:
    """One open file, pipe or terminal that takes output."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        kind = os.fstat(fd).st_mode
        self._plain = stat.S_ISREG(kind)
        self.terminal = os.isatty(fd)
        self._device = stat.S_ISCHR(kind) and not self.terminal
        self._pipe = stat.S_ISFIFO(kind)
        self._blocks = not self._plain
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if writable and (self._pipe or stat.S_ISCHR(kind)):
            # Opened anew it can be made non-blocking without our neighbours noticing.
            with suppress(OSError):
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
                self._blocks = False
        self._pending = b""
        """The rest of our own words: to be written before anything else is."""
        self._on_the_way: deque[tuple[int, Origin | None, bool]] = deque()
        """Its length, where it comes from, and whether it is awaited."""
        self._length = 0
        """Bytes of all that is on the way, or was and is not forgotten yet."""
        self._to_be_empty = False
        """Whether wait() is to wait until the pipe is."""

    def wait(self) -> None:
        """Return when there is room for something.

        :raises ReaderLeft: nobody reads the pipe any more.
        :raises CannotWrite: the disk is full, say.
        """
        while True:
            if not self._plain:
                self._check(self._poll(select.POLLOUT, None))
            if self._finish_words():
                break
        if self._to_be_empty:
            self._nap_while(lambda: bool(self._unread()))
            self._to_be_empty = False

    def fits(self, size: int) -> bool:
        """Return whether so many bytes are written at once, or there is no way to have them so.

        If not, the next wait() sees to it.
        """
        self._to_be_empty = self._pipe and not self._blocks and self.room() < size <= PIECE
        return not self._to_be_empty

    def check(self) -> None:
        """Look whether there is still a reader.

        :raises ReaderLeft: there is none.
        """
        if self._pipe:
            self._check(self._poll(0, 0))

    def _finish_words(self) -> bool:
        """Return whether nothing is left of our own words after writing what there is room for."""
        if self._pending:
            with uninterrupted():
                self._pending = self._pending[self._write(self._pending) :]
        return not self._pending

    def room(self) -> int:
        """Return the bytes that write() takes at once, once wait() has returned."""
        empty = self._pipe and not self._unread()
        if self._plain or (not self._blocks and (self._device or empty)):
            return PIECE
        return select.PIPE_BUF

    def write(self, *parts: Part) -> Taken | None:
        """Write parts as far as there is room; return what was taken, None if it was nothing.

        :raises ReaderLeft: nobody reads the pipe any more.
        :raises CannotWrite: the disk is full, say.
        """
        if not self._finish_words():
            return None
        left = self._write(b"".join(part.before + part.data + part.after for part in parts))
        if not left:
            return None
        delivered, last, begun = 0, b"", False
        for part in parts:
            if not left:
                break
            left = self._take_words(part.before, left, part.awaited)
            now = min(left, len(part.data))
            if part.origin and now:
                origin = part.origin._replace(end=part.origin.start + now)
                self._note(now, origin, part.awaited)
                delivered, last = delivered + now, part.data[now - 1 : now]
            left -= now
            if begun := now < len(part.data):
                break
            left = self._take_words(part.after, left, part.awaited)
            last = part.after[-1:] or last
        self._forget()
        return Taken(delivered, last, begun)

    def _take_words(self, words: bytes, left: int, awaited: bool) -> int:
        """Count words as written, of which the first `left` bytes are; return what remains."""
        if words:
            self._pending = words[left:]
            self._note(len(words), None, awaited)
        return max(0, left - len(words))

    def _note(self, length: int, origin: Origin | None, awaited: bool) -> None:
        if self._pipe:
            self._on_the_way.append((length, origin, awaited))
            self._length += length

    def _forget(self) -> None:
        """Forget what was on the way and has arrived."""
        if self._pipe:
            unread = self._unread() + len(self._pending)
            while self._on_the_way and self._length - self._on_the_way[0][0] >= unread:
                self._length -= self._on_the_way.popleft()[0]

    def drain(self, seconds: float | None = None) -> None:
        """Return when the reader has taken what is awaited of it, or seconds have passed.

        :raises ReaderLeft: it went away before.
        """
        if seconds is None:
            self.wait()
        self._nap_while(lambda: self._awaits() and bool(self._unread()), seconds)

    def _nap_while(self, goes_on: Callable[[], bool], seconds: float | None = None) -> None:
        """Look again and again at what only the reader changes."""
        deadline = None if seconds is None else time.monotonic() + seconds
        nap = 0.0002
        while goes_on() and (deadline is None or time.monotonic() <= deadline):
            gone = self._poll(0, nap)
            if gone and goes_on():
                self._check(gone)
            nap = min(nap * 1.5, _PATIENCE)

    def _awaits(self) -> bool:
        self._forget()
        return any(awaited for _, _, awaited in self._on_the_way)

    def _write(self, data: bytes) -> int:
        try:
            if self._blocks:
                # More than this could block where it cannot be made not to.
                data = data[: select.PIPE_BUF] if self._events(select.POLLOUT, 0) else b""
            return os.write(self._fd, data) if data else 0
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise ReaderLeft(f"the reader of {self.name} has gone") from None
            raise CannotWrite(f"cannot write to {self.name}: {error.strerror}") from None

    def lost(self) -> list[Origin]:
        """Return where the bytes came from that are still in the pipe, the last ones first."""
        unread = self._unread() + len(self._pending)
        lost: list[Origin] = []
        while unread > 0 and self._on_the_way:
            length, origin, _ = self._on_the_way.pop()
            if origin is not None:
                lost.append(origin._replace(start=max(origin.start, origin.end - unread)))
            unread -= length
        return lost

    def _poll(self, event: int, seconds: float | None) -> bool:
        """Wait for an event; return whether the reader went away instead."""
        return bool(self._events(event, seconds) & (select.POLLERR | select.POLLHUP))

    def _events(self, event: int, seconds: float | None) -> int:
        """Wait for an event; return what was seen, 0 if nothing was."""
        poll = select.poll()
        poll.register(self._fd, event)
        seen = descriptors.wait(poll, seconds)
        return seen[0][1] if seen else 0

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
