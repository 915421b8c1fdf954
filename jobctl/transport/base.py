"""The seam to another machine: a connection, commands on it, and the person who may be asked.

Unreachable 5           (errors.py)
├── NoConnection        nobody there, or too busy: worth another try later
├── Denied              host key, login or settings refused: never tried again unasked
│   └── Cancelled       the person who was asked has left, by ^C say
├── Lost                an open connection broke: worth another try
└── NoChannel           the server opens no further channel on this connection now
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from jobctl.errors import Unreachable


class NoConnection(Unreachable):
    """The machine could not be reached, did not answer in time, or hung up on us."""


class Denied(Unreachable):
    """The machine is not the one we know, does not let us in, or cannot be asked for."""


class Cancelled(Denied):
    """The person who was asked has left instead of answering."""


class Lost(Unreachable):
    """The connection broke."""

    said = ""
    """How what the host had said begins, where that may be why."""


class NoChannel(Unreachable):
    """The server refuses one more command on this connection."""


class Terminal(NamedTuple):
    """A terminal for a command to run in."""

    term: str
    columns: int
    rows: int


class Stream(Protocol):
    """One command that runs on a machine.

    Read both outputs, from two threads or one after the other as they end: a command whose
    output nobody reads stands still, and its exit status does not come.
    """

    def read(self, size: int) -> bytes:
        """Return 1 to size bytes of its output once there are any, b"" at the end, or raise Lost.

        b"" is only returned when the server has said that the output is complete.
        """

    def read_error(self, size: int) -> bytes:
        """Return bytes of its error output, as read() does."""

    def write(self, data: bytes) -> None:
        """Write all of data to its input, however long it takes to be read.

        Raises BrokenPipeError when the command has ended, Lost when the connection broke. A
        command that has closed its input, but goes on, cannot be told from one that reads.
        """

    def close_input(self) -> None:
        """End its input; raise Lost when the connection broke."""

    def wait(self) -> int | None:
        """Return its exit status once it has ended, 128+N for signal N, None if unknown.

        Raises Lost when the connection broke before.
        """

    def resize(self, columns: int, rows: int) -> None:
        """Tell the size of the terminal; raise Lost when the connection broke."""

    def close(self) -> None:
        """Let go of it. The command is not stopped, but writes into nothing from now on."""


class Connection(Protocol):
    """A way to run commands on a machine."""

    @property
    def connect_timeout(self) -> float:
        """Seconds that this machine gets for an answer while things begin."""

    @property
    def longest_silence(self) -> float:
        """Seconds without a sign of life after which this machine is taken for dead."""

    def open(
        self,
        command: str,
        terminal: Terminal | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Stream:
        """Begin a command, as text for the login shell; raise NoChannel or Lost.

        :param environ: the environment of whoever wants it run, of which some may go with it;
            else that of whoever wanted the connection.
        """

    def variables(self, environ: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
        """Return what of an environment goes with a command."""

    def lets_pass(self, name: str) -> bool:
        """Whether the machine lets a variable go with a command; raise NoChannel or Lost."""

    def setting(self, name: str) -> str | None:
        """Return the value that our configuration gives a variable there, None if none."""

    def alive(self) -> bool:
        """Whether the connection stands, as far as is known."""

    def close(self) -> None:
        """End it, and all streams on it."""


class Ask(Protocol):
    """The person at the terminal, if there is one.

    Questions raise Cancelled when that person leaves.
    """

    def secret(self, prompt: str) -> str | None:
        """Return a password, a passphrase or a one-time code; None if nobody answers."""

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Return whether an unknown host key is to be trusted; False if nobody answers."""

    def show(self, text: str) -> None:
        """Let them read what the machine has to say before the login, in lines."""
