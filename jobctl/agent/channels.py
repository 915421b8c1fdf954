"""The channels to one host, over as many connections as its server makes necessary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from jobctl.errors import Unreachable
from jobctl.transport.base import Ask, Connection, NoChannel, Stream, Terminal

Another = Callable[["Ask | None"], Connection]
"""Makes one more connection to the host; may ask a person."""


class Channels:
    """A connection, and others beside it while the server allows no more channels on it.

    sshd allows ten, some servers two (MaxSessions in sshd_config(5)).
    """

    def __init__(self, first: Connection, another: Another) -> None:
        """Take over a connection."""
        self._first = first
        self._another = another
        self._more: list[_Further] = []
        self._closed = False
        # One after the other: a server that is stormed turns logins away (MaxStartups).
        self._lock = threading.Lock()

    def open(
        self,
        command: str,
        terminal: Terminal | None = None,
        ask: Ask | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Stream:
        """Begin a command; its stream is to be closed.

        :param environ: of whoever wants it run; see Connection.
        :raises Unreachable: the server takes none; see Connection and Ask for the cases.
        """
        with suppress(NoChannel):
            return self._first.open(command, terminal, environ)
        with self._lock:
            for further in list(self._more):
                with suppress(Unreachable):
                    return further.open(command, terminal, environ)
            further = _Further(self._another(ask), self._more)
            self._more.append(further)
            if self._closed:
                further.connection.close()
            try:
                return further.open(command, terminal, environ)
            except BaseException:
                further.release()
                raise

    def usual(self, environ: Mapping[str, str]) -> bool:
        """Whether no other variables go with a command of somebody than with any other one."""
        return self._first.variables(environ) == self._first.variables()

    def differing(self, environ: Mapping[str, str]) -> dict[str, str | None]:
        """Return what usual() found different, None for what is not set; raise Lost.

        Without what the server lets no command have, or has no channel left to tell.
        """
        theirs, usual = dict(self._first.variables(environ)), dict(self._first.variables())
        names = {key for key in theirs.keys() | usual.keys() if theirs.get(key) != usual.get(key)}
        with suppress(NoChannel):
            return {name: theirs.get(name) for name in sorted(names) if self._first.lets_pass(name)}
        return {}

    def spare(self, command: str) -> Stream:
        """Begin a command without going to any lengths; raise NoChannel or Lost."""
        return self._first.open(command)

    def alive(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._first.alive()

    def close(self) -> None:
        """End all connections."""
        self._closed = True
        self._first.close()
        for further in list(self._more):
            further.connection.close()


class _Further:
    """A further connection, which ends with the last command on it."""

    def __init__(self, connection: Connection, among: list[_Further]) -> None:
        self.connection = connection
        self._among = among
        self._lock = threading.Lock()
        self._users = 0

    def open(
        self, command: str, terminal: Terminal | None, environ: Mapping[str, str] | None
    ) -> Stream:
        """Begin a command; raise NoChannel or Lost."""
        with self._lock:
            self._users += 1
        try:
            return _Borrowed(self.connection.open(command, terminal, environ), self.release)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Count one command less."""
        with self._lock:
            self._users -= 1
            if self._users > 0 or self not in self._among:
                return
            self._among.remove(self)
        self.connection.close()


class _Borrowed:
    """A stream that gives its connection back when it is closed."""

    def __init__(self, stream: Stream, release: Callable[[], None]) -> None:
        self.read, self.read_error = stream.read, stream.read_error
        self.write, self.close_input = stream.write, stream.close_input
        self.wait, self.resize = stream.wait, stream.resize
        self._stream = stream
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        """Let go of it."""
        self._stream.close()
        release, self._release = self._release, None
        if release:
            release()
