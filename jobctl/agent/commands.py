"""Commands on a host: the words that begin each channel, and the bytes that come over it.

Each channel is begun with the same words, which any login shell understands, and waits for
one line that says what to do. So the time that a login shell takes can be spent beforehand,
and what it prints is told from what we asked for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from jobctl import quoting
from jobctl.agent.channels import Another, Channels
from jobctl.draft import is_odd
from jobctl.errors import JobctlError, Refused
from jobctl.model import printable
from jobctl.transport.base import Ask, Connection, Denied, Lost, Stream

_READY = b"jobctl-ready"
BEGIN = "exec /bin/sh -c '{}echo; echo jobctl-ready $$; echo jobctl-ready >&2; {}'"
"""With nothing in it that csh or fish would read differently than sh: no quote, ! or newline."""
_LEAD = (
    "jobctl=$$; read -r _ _ _ _ jobctl _ 2>/dev/null </proc/$$/stat;"
    ' [ "$jobctl" = $$ ] || [ -t 0 ] || {{ command -v setsid >/dev/null && exec setsid {}; }}; '
)
"""Makes a shell the leader of a session, where the server did not, as dropbear: else a signal for
one command hits all of the connection. As it leads no group, setsid does not fork."""
_OBEY = (
    _LEAD.format('/bin/sh -c "IFS= read -r jobctl && eval \\"\\$jobctl\\""')
    + 'IFS= read -r jobctl && eval "$jobctl"'
)
_MOST_NOISE = 1 << 20
"""Bytes that a login shell may print before we give up on it."""
_MOST_SHOWN = 200
"""Characters of what a host says that go into a reason."""
_EARLY = "the login shell of this host ended before it ran /bin/sh"
_PIECE = 1 << 20

ENDED = "the host ended the conversation"


class NoPlace(Denied):
    """The host has no place for our files. It runs commands all the same: see Commands."""


class Untrusted(NoPlace):
    """The place is not ours alone."""

    status = Refused.status


class Commands:
    """Commands on a host, which need no file of ours there."""

    def __init__(self, connection: Connection, another: Another) -> None:
        """Take over a connection.

        :param another: makes further connections, for a server that allows few channels.
        """
        self._connection = Channels(connection, another)
        self._place = _named(connection.setting("JOBCTL_STATE_DIR"))
        self._lock = threading.Lock()
        self._spare: Channel | None = None

    def run(self, line: bytes, ask: Ask, environ: Mapping[str, str]) -> Channel:
        """Have a channel do what a line of sh says; return it, which is to be closed.

        $jobctl_exec is `exec` if `jobctl` can be executed there; else it is a function, and
        $jobctl_given is what makes that in another shell. jobctl_check says why a command cannot
        be executed, as far as that is to be seen beforehand, and then has its status.

        :param ask: is asked where that takes a further connection.
        :param environ: of whoever wants it run, some of which may be for the host.
        """
        data = self._environment() + line + b"\n"
        channel = None
        if self._connection.usual(environ):
            with self._lock:
                channel, self._spare = self._spare, None
        try:
            if channel:
                channel.stream.write(data)
        except BrokenPipeError:  # somebody there has ended it
            channel = None
        if channel is None:
            channel = Channel(self._connection.open(self._obey(), None, ask, environ), None)
            channel.stream.write(data)
        threading.Thread(target=self.stand_by, daemon=True).start()
        return channel

    def differing(self, environ: Mapping[str, str]) -> bytes:
        """Return lines of sh that turn the environment of all commands into that of one of them.

        :param environ: of whoever wants it run, some of which may be for the host.
        :raises Lost: the host cannot be asked what it lets pass.
        """
        changes = self._connection.differing(environ).items()
        return b"".join(
            b"unset %s\n" % os.fsencode(name)
            if value is None
            else b"export %s\n" % quoting.quote(os.fsencode(f"{name}={value}"))
            for name, value in changes
            if not is_odd(name)
        )

    def stand_by(self) -> None:
        """Have a channel stand ready for run(), so that it takes one round trip only."""
        if self._spare is None:
            with suppress(JobctlError):
                channel = Channel(self._connection.spare(self._obey()), None)
                with self._lock:
                    self._spare, channel = channel, self._spare
                if channel:  # another one was faster
                    channel.close()

    def hit(self, name: str, pid: int) -> None:
        """Send a signal to a command, and to what it began as far as the server tells that."""
        channel = Channel(self._connection.open(self._obey()), None)
        target = b" -s %s -- " % name.encode()
        channel.write(b"kill%s-%d || kill%s%d; echo\n" % (target, pid, target, pid))
        channel.line()
        channel.close()

    def _obey(self) -> str:
        """Return what makes a shell one that does what one line says."""
        return BEGIN.format(self._place, _OBEY)

    def _environment(self) -> bytes:
        return (
            b"jobctl_exec=exec jobctl_given=;"
            b' jobctl_check() { case $1/$(command -v "$1") in */?*) ;; *) printf'
            b" 'jobctl: command not found: %s; if it is shell text, use -c\\n' \"$1\" >&2;"
            b" return 127 ;; esac; }; "
        )

    def alive(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._connection.alive()

    def close(self) -> None:
        """End the connection, and all that goes over it."""
        self._connection.close()


def _named(state_dir: str | None) -> str:
    """Return a piece of a line of sh that sets the state directory, if we name it.

    As any login shell passes it on, in single quotes.
    """
    if state_dir is None:
        return ""
    text = f'"{state_dir}"'
    data = os.fsencode(state_dir)
    if not all(c.isascii() and (c.isalnum() or c in "/-_.,+@%:=") for c in state_dir):
        text = '"$(printf %b "' + "".join(f"\\0{byte:03o}" for byte in data) + '")"'
    return f"JOBCTL_STATE_DIR={text}; export JOBCTL_STATE_DIR; "


def _first_line(data: bytes) -> str:
    """Return the first line with something in it, as people may see it."""
    lines = [line.strip() for line in os.fsdecode(data).splitlines()]
    return next((printable(line[:_MOST_SHOWN]) for line in lines if line), "")


class Channel:
    """A stream that began as BEGIN does: the bytes of the command, without the shell's noise."""

    def __init__(self, stream: Stream, line: bytes | None) -> None:
        self.stream = stream
        self._rest = b""
        self._at = 0
        """How much of it was taken already."""
        if line is not None:
            stream.write(line + b"\n")
        noise, size = b"", 0
        while True:
            try:
                got = self.line()
            except Lost as error:
                error.said = _first_line(noise or self._rest[self._at :])
                raise
            if got.startswith(_READY):
                break
            noise, size = noise or got.strip(), size + len(got)
            if not got or size > _MOST_NOISE:
                said = self._ended_early(noise)
                # It may have been killed, by a host that is going down, say, and surely was not
                # if it goes on. Without a word, a status is not enough to tell.
                status = 0 if got else self.stream.wait()
                killed = status is None or status > 128
                raise Lost(said) if killed or said == _EARLY else Denied(said)
        self.pid = int(got.split()[1])
        self.heard = time.monotonic()
        """When something came last."""
        self.mark = b"jobctl-short"
        """What ends a frame that is shorter than was said: set once that is known."""
        self._error_noise = True

    def complaint(self) -> str:
        """Return the first line of its error output, which is to end; "" if there is none."""
        errors = b""
        with suppress(Lost):
            while not _first_line(errors) and (piece := self.read_error(_PIECE)):
                errors = errors[-_MOST_NOISE:] + piece
        return _first_line(errors)

    def ended(self) -> Lost:
        """Return the error that its shell ended too early, with what that says of it."""
        said = self.complaint()
        return Lost(f"{ENDED}: {said}" if said else ENDED)

    def _ended_early(self, noise: bytes) -> str:
        """Return that the login shell ran nothing of ours, and what it said instead."""
        with suppress(Lost):
            while not noise and (piece := self.stream.read_error(_PIECE)):
                noise = piece.strip()
        said = _first_line(noise or self._rest)
        return f"{_EARLY}: {said}" if said else _EARLY

    def line(self) -> bytes:
        """Return the next line, b"" at the end."""
        while (end := self._rest.find(b"\n", self._at)) < 0:
            if len(self._rest) - self._at > _MOST_NOISE:
                raise Lost("the host sends a line without end")
            piece = self.stream.read(_PIECE)
            self.heard = time.monotonic()
            if not piece:
                return b""
            self._rest, self._at = self._rest[self._at :] + piece, 0
        return self._taken(end + 1)

    def _taken(self, end: int) -> bytes:
        """Return what there is up to a place, which is never looked at again."""
        piece = self._rest[self._at : end]
        self._at += len(piece)
        return piece

    def some(self, most: int) -> bytes:
        """Return 1 to most bytes; Lost at the end."""
        if self._at == len(self._rest):
            self._rest, self._at = self.stream.read(_PIECE), 0
            self.heard = time.monotonic()
            if not self._rest:
                raise Lost(ENDED)
        return self._taken(self._at + most)

    def give_back(self, count: int) -> None:
        """Have the last bytes of what some() has just returned be returned once more."""
        self._at -= count

    def exactly(self, count: int) -> bytes:
        """Return that many bytes."""
        pieces = []
        while count:
            pieces.append(self.some(count))
            count -= len(pieces[-1])
        return b"".join(pieces)

    # --- a Stream, for who ran a command ---

    def read(self, size: int) -> bytes:
        """Return some of its output, as Stream does."""
        return self._taken(self._at + size) or self.stream.read(size)

    def read_error(self, size: int) -> bytes:
        """Return some of its error output, without what its shell printed before."""
        if not self._error_noise:
            return self.stream.read_error(size)
        self._error_noise = False
        noise, mark = b"", _READY + b"\n"
        while mark not in noise:
            piece = self.stream.read_error(_PIECE)
            if not piece:
                return b""
            noise = noise[-len(mark) :] + piece
        return noise.partition(mark)[2] or self.stream.read_error(size)

    def write(self, data: bytes) -> None:
        """Write to its input, as Stream does."""
        self.stream.write(data)

    def close_input(self) -> None:
        """End its input."""
        self.stream.close_input()

    def wait(self) -> int | None:
        """Return its exit status."""
        return self.stream.wait()

    def resize(self, columns: int, rows: int) -> None:
        """Tell the size of the terminal."""
        self.stream.resize(columns, rows)

    def close(self) -> None:
        """Let go of it."""
        self.stream.close()
