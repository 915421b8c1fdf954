"""Passes a command on a host through to the descriptors of whoever called it, as ssh does."""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from typing import Protocol

from jobctl.transport.base import Lost, Stream

_PIECE = 1 << 18
_GRACE = 2.0
"""Seconds that a command gets to end when its caller has gone, before it loses its streams."""


class Caller(Protocol):
    """Who waits for the command."""

    def wait(self, stream: Stream) -> None:
        """Return when he has gone; until then pass on what he says: sizes and signals."""


def pass_through(stream: Stream, fds: tuple[int, int, int], ended: threading.Event) -> int | None:
    """Move bytes until the command has ended; return its exit status, None if unknown.

    :param ended: set when its input is not to be read any more.
    :raises Lost: the connection broke before it ended.
    """
    errors = list[Lost]()

    def output(read: object, fd: int) -> None:
        try:
            while piece := read(_PIECE):  # type: ignore[operator]
                _write(fd, piece)
        except Lost as error:
            errors.append(error)
        except OSError:  # nobody reads it any more
            stream.close()

    readers = [
        threading.Thread(target=output, args=(stream.read, fds[1]), daemon=True),
        threading.Thread(target=output, args=(stream.read_error, fds[2]), daemon=True),
    ]
    source = threading.Thread(target=_input, args=(stream, fds[0], ended), daemon=True)
    for thread in (*readers, source):
        thread.start()
    for thread in readers:
        thread.join()
    ended.set()
    if errors:
        raise errors[0]
    return stream.wait()


def _input(stream: Stream, fd: int, ended: threading.Event) -> None:
    """Pass input on to its end; what nobody will read is left where it is."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    with suppress(Lost, BrokenPipeError, OSError):
        while not ended.is_set():
            if not poll.poll(100):
                continue
            if ended.is_set():
                return
            piece = os.read(fd, _PIECE)
            if not piece:
                break
            stream.write(piece)
        stream.close_input()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # our caller's descriptor does not wait
            select.select((), (fd,), ())
