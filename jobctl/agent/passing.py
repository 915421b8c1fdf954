"""Passes a command on a host through to the descriptors of whoever called it, as ssh does."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jobctl.agent.caller import Client
from jobctl.agent.commands import Commands
from jobctl.agent.far import Far
from jobctl.descriptors import write
from jobctl.errors import CannotWrite, JobctlError, ReaderLeft
from jobctl.transport.base import Lost, Stream, Terminal

_PIECE = 1 << 18
_GRACE = 2.0
"""Seconds that what a command has left behind, when a signal ended it, may hold its streams."""


def run(client: Client, far: Commands, request: dict[str, Any]) -> dict[str, Any]:
    """Run a command with the descriptors of a client; return what he is to be told of its end.

    :raises Unreachable: it cannot be run, or the connection broke before it ended.
    :raises CannotWrite: its output cannot be written.
    """
    if client.gone():
        return {}
    stream: Stream
    environ = request["environ"]
    if terminal := request.get("terminal"):
        assert isinstance(far, Far)
        stream = far.enter(Terminal(*terminal), request["mark"], client, environ)
    else:
        stream = far.run(request["line"].encode("utf-8", "surrogateescape"), client, environ)
    over = threading.Event()
    try:
        client.say({"begun": True})
        fds = client.fds()
        obeying = threading.Thread(target=_obey, args=(client, far, stream, over), daemon=True)
        obeying.start()
        if fds is None:
            obeying.join()
            return {}
        return {"status": pass_through(stream, fds)}
    except ReaderLeft as error:
        return {"status": error.status}
    finally:
        over.set()
        stream.close()


def _obey(client: Client, far: Commands, stream: Stream, over: threading.Event) -> None:
    """Pass on what the client of a command says until he leaves, which ends the command."""
    pid = getattr(stream, "pid", 0)  # in a terminal, signals come as what is typed

    def hit(name: str) -> None:
        with suppress(JobctlError):
            far.hit(name, pid)

    def make_an_end() -> None:
        with suppress(JobctlError):
            stream.wait()
            if not over.wait(_GRACE):
                hit("HUP")
                stream.close()

    def said(message: dict[str, Any]) -> None:
        if "size" in message:
            stream.resize(*message["size"])
        elif "signal" in message and pid:
            hit(message["signal"])
            threading.Thread(target=make_an_end, daemon=True).start()

    client.until_gone(said)
    if not over.is_set():
        if pid:
            hit("HUP")
        stream.close()


def pass_through(stream: Stream, fds: tuple[int, int, int]) -> int | None:
    """Move bytes until the command has ended; return its exit status, None if unknown.

    :param fds: are closed in the end.
    :raises Lost: the connection broke before it ended.
    :raises ReaderLeft: nobody reads its output any more; it has lost its streams.
    :raises CannotWrite: its output cannot be written; likewise.
    """
    errors = list[JobctlError]()
    ended, end = os.pipe()
    threading.Thread(target=_input, args=(stream, fds[0], ended), daemon=True).start()
    readers = [
        threading.Thread(target=_output, args=(stream, errors, fds[1]), daemon=True),
        threading.Thread(target=_errors, args=(stream, errors, fds[2]), daemon=True),
    ]
    try:
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join()
    finally:
        os.close(end)
    if errors:
        raise errors[0]
    return stream.wait()


def _output(stream: Stream, errors: list[JobctlError], fd: int) -> None:
    try:
        _move(stream.read, fd)
    except Lost as error:
        errors.append(error)
    except OSError as error:
        errors.append(
            ReaderLeft("the reader of standard output has gone")
            if isinstance(error, BrokenPipeError)
            else CannotWrite(f"cannot write to standard output: {error.strerror}")
        )
        # It is not to go on writing for nobody: its next write fails.
        stream.close()
    finally:
        os.close(fd)


def _errors(stream: Stream, errors: list[JobctlError], fd: int) -> None:
    try:
        try:
            _move(stream.read_error, fd)
        except OSError:  # nobody reads it, which is no reason to stop
            while stream.read_error(_PIECE):
                pass
    except Lost as error:
        errors.append(error)
    finally:
        os.close(fd)


def _move(read: Callable[[int], bytes], fd: int) -> None:
    """Write all that read gives.

    :raises OSError: it cannot be written.
    :raises Lost: the connection broke.
    """
    while piece := read(_PIECE):
        write(fd, piece)


def _input(stream: Stream, fd: int, ended: int) -> None:
    """Pass input on to its end; what nobody will read any more is left where it is.

    :param ended: can be read from once the command has ended.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(ended, select.POLLIN)
    try:
        while ended not in dict(poll.poll()):
            try:
                piece = os.read(fd, _PIECE)
            except BlockingIOError:  # somebody else was faster
                continue
            except OSError:  # it cannot be read: there is none
                piece = b""
            if not piece:
                stream.close_input()
                return
            stream.write(piece)
    except (Lost, BrokenPipeError):
        pass  # the command has ended, or reads no more
    finally:
        os.close(fd)
        os.close(ended)
