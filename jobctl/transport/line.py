"""The bytes to and from a machine: a socket, a proxy's pipe or a channel, with an eye on the clock.

paramiko reads from anything that has recv, send, settimeout and close, and trusts it to end. A
Line ends by itself: at a deadline, when too much comes before the login, or when the other side
has been silent for too long although it was asked for a sign of life.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Protocol

from jobctl.model import printable
from jobctl.transport.base import Denied, NoConnection
from jobctl.transport.config import Settings

_PIECE = 256 * 1024
# Before the keys are agreed nothing is encrypted, and anybody may talk to us.
_MOST_BEFORE_LOGIN = 1024 * 1024
# paramiko looks at its own clocks between two reads, until the login is done.
_SETUP_TICK = 0.1
# A server's Nagle waits for our acknowledgement until its first command runs, and the kernel
# delays that: 42 ms for the first channel instead of 1. The kernel soon forgets being told.
_HURRIED_BYTES = 64 * 1024
_QUICK = getattr(socket, "TCP_QUICKACK", None)
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


class Pipe(Protocol):
    """What a Line needs of a socket or channel."""

    def recv(self, size: int, /) -> bytes:
        """Return 1 to size bytes, b"" at the end."""

    def send(self, data: bytes, /) -> int:
        """Send some of data and return how much."""

    def settimeout(self, seconds: float | None, /) -> None:
        """Raise TimeoutError from now on when either takes longer."""

    def close(self) -> None:
        """End it."""


class Line:
    """A Pipe that ends by itself, and knows why it has ended."""

    def __init__(self, pipe: Pipe, close: Callable[[], None] = lambda: None) -> None:
        """Take over a pipe; close is called once, after the pipe is closed."""
        self.reason = ""
        self._pipe = pipe
        self._and_close = close
        self.gave_up = False
        """Whether it ended because we waited no longer."""
        self._closed = False
        self._closing = threading.RLock()
        self._data = b""
        self._at = 0
        self._deadline: float | None = None
        self._late = ""
        self._allowance: int | None = _MOST_BEFORE_LOGIN
        self._hurried = 0
        self._silent_reads = 0
        self._stuck_writes = 0
        self._most_silences = 0
        self._interval = 0.0
        self._probe: Callable[[], None] | None = None

    @property
    def closed(self) -> bool:
        """Whether it has ended on this side."""
        return self._closed

    def limit(self, seconds: float | None, late: str = "") -> None:
        """End the line in so many seconds, with late as the reason; None: never."""
        self._late = late
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def watch(self, interval: float, count: int, probe: Callable[[], None]) -> None:
        """From now on, ask for a sign of life after each interval (seconds) of silence.

        The line ends when count of these went unanswered for one more interval. That is
        counted in silent reads and not on the clock, so that a computer that slept, or was
        too busy to read, does not take the other side for dead.
        """
        self._interval, self._most_silences, self._probe = interval, count, probe
        self._allowance = None
        self.limit(None)
        self._pipe.settimeout(interval)

    def recv(self, size: int) -> bytes:
        """Return up to size bytes, b"" at the end; raise OSError.

        Reads ahead: paramiko asks for the head and the body of each packet on its own.
        """
        if self._at < len(self._data):
            piece = self._data[self._at : self._at + size]
            self._at += len(piece)
            return piece
        data = self._receive(max(size, _PIECE))
        if len(data) <= size:
            return data
        self._data, self._at = data, size
        return data[:size]

    def _receive(self, size: int) -> bytes:
        self._check_deadline()
        try:
            data = self._pipe.recv(size)
        except TimeoutError:
            self._silent_reads += 1
            self._check_silence(self._silent_reads)
            if self._probe and not self._closed:
                self._probe()
            raise
        except EOFError:  # a channel whose connection broke
            data = b""
        except OSError as error:
            self._note(_words(error))
            raise
        self._silent_reads = self._stuck_writes = 0
        if not data:
            self._note("the other side hung up")
        elif self._allowance is not None:
            self._allowance -= len(data)
            if self._allowance < 0:
                self._end("it sends too much before the login")
        if self._hurried < _HURRIED_BYTES:
            self._hurry(len(data))
        return data

    def _hurry(self, size: int) -> None:
        self._hurried += size
        if _QUICK is not None and isinstance(self._pipe, socket.socket):
            with contextlib.suppress(OSError):  # a proxy's socket is not TCP
                self._pipe.setsockopt(socket.IPPROTO_TCP, _QUICK, 1)

    def send(self, data: bytes) -> int:
        """Send some of data and return how much; raise OSError."""
        self._check_deadline()
        try:
            sent = self._pipe.send(data)
        except TimeoutError:
            # Counted here as well: who sends holds paramiko's lock, for which the thread that
            # reads may be waiting, to send its question.
            self._stuck_writes += 1
            self._check_silence(self._stuck_writes)
            raise
        except OSError as error:
            self._note(_words(error))
            raise
        self._stuck_writes = 0
        return sent

    def _check_silence(self, intervals: int) -> None:
        if self._most_silences and intervals > self._most_silences:
            self._end(f"no answer for {self._interval * intervals:g} seconds")

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._end(self._late)

    def _end(self, reason: str) -> None:
        self.gave_up = True
        self._note(reason)
        self.close()
        # Two arguments, as paramiko's thread takes for granted of any OSError.
        raise ConnectionAbortedError(errno.ECONNABORTED, reason)

    def _note(self, reason: str) -> None:
        if not self.reason and not self._closed:
            self.reason = reason

    def settimeout(self, seconds: float | None) -> None:
        """Do nothing: how long a read takes is decided here."""

    def prepare(self) -> None:
        """Let reads return often enough for paramiko's own clocks."""
        self._pipe.settimeout(_SETUP_TICK)

    def close(self) -> None:
        """End the line; a read that waits returns."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            if isinstance(self._pipe, socket.socket):
                with contextlib.suppress(OSError):
                    self._pipe.shutdown(socket.SHUT_RDWR)
            self._pipe.close()
            self._and_close()


def _words(error: OSError) -> str:
    """Return what an error is called, as part of a sentence."""
    text = error.strerror or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def dial(settings: Settings, label: str) -> Line:
    """Return a line over TCP to the first address that answers. Raises NoConnection."""
    attempts = max(1, settings.number("connectionattempts", 1))
    for attempt in range(attempts):
        if attempt:
            time.sleep(1)
        try:
            return Line(_connect(settings))
        except (OSError, UnicodeError) as error:
            problem = error
    if isinstance(problem, TimeoutError):
        reason = f"no answer within {settings.connect_timeout:g} seconds"
    else:
        reason = _words(problem) if isinstance(problem, OSError) else "not a host name"
    raise NoConnection(f"cannot connect to {label}: {reason}") from None


def _connect(settings: Settings) -> socket.socket:
    family = _FAMILIES.get(settings.word("addressfamily"), socket.AF_UNSPEC)
    found = socket.getaddrinfo(
        settings.hostname, settings.port, family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )
    problem: OSError = OSError(errno.EADDRNOTAVAIL, "the name has no address")
    for kind, _, _, _, address in found:
        try:
            made = socket.socket(kind, socket.SOCK_STREAM)
            try:
                _tune(made, settings)
                if settings.word("bindaddress"):
                    made.bind((settings.word("bindaddress"), 0))
                made.settimeout(settings.connect_timeout)
                made.connect(address)
            except BaseException:
                made.close()
                raise
        except OSError as error:
            problem = error
        else:
            return made
    raise problem


def _tune(made: socket.socket, settings: Settings) -> None:
    # Without it a channel takes 42 ms to open instead of 0.2: Nagle meets delayed answers.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if settings.values.get("tcpkeepalive", "yes") in ("yes", "true"):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval, count = settings.alive
    limit = getattr(socket, "TCP_USER_TIMEOUT", None)
    if limit is not None:
        milliseconds = int(interval * (count + 1) * 1000)
        made.setsockopt(socket.IPPROTO_TCP, limit, milliseconds)


def run_proxy(settings: Settings, command: str, label: str) -> Line:
    """Return a line through a ProxyCommand, which a shell runs as ssh has it. Raises Denied."""
    if settings.flag("proxyusefdpass"):
        raise Denied(f"cannot connect to {label}: ProxyUseFdpass is not supported")
    text = "exec " + settings.expand(command)
    ours, its = socket.socketpair()
    # Not a pipe, which somebody would have to read.
    said = tempfile.TemporaryFile()
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", text],
            stdin=its.fileno(),
            stdout=its.fileno(),
            stderr=said.fileno(),
            env=dict(settings.environ),
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        said.close()
        raise Denied(f"cannot connect to {label}: cannot run its ProxyCommand: {error}") from None
    finally:
        its.close()

    def close() -> None:
        if not line.gave_up:
            said.seek(max(0, os.fstat(said.fileno()).st_size - 400))
            lines = os.fsdecode(said.read()).strip().splitlines()
            why = f": {printable(lines[-1].strip())}" if lines else ""
            line.reason = f"its ProxyCommand ended{why}"
        said.close()
        _stop(process)

    line = Line(ours, close)
    return line


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a ProxyCommand, gently as ssh does, then not."""
    for number in (signal.SIGHUP, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
