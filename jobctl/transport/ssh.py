"""Connections over SSH: how one is made, and the commands that run on it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping

import paramiko
from paramiko.channel import Channel

from jobctl.errors import BadUsage, Unreachable
from jobctl.target import Target, parse_target
from jobctl.transport import config as configuration
from jobctl.transport import hostkeys, keys, line, sshwire
from jobctl.transport.base import (
    Ask,
    Connection,
    Denied,
    Lost,
    NoChannel,
    NoConnection,
    Stream,
    Terminal,
)
from jobctl.transport.config import Settings
from jobctl.transport.sshlogin import login
from jobctl.transport.sshwire import Inlet, Transport

_MOST_JUMPS = 8
_PIECE = 64 * 1024
_TROUBLES = (paramiko.SSHException, EOFError, OSError)
_HUNG_UP = (errno.EBADF, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def connect(
    target: Target,
    ask: Ask,
    config: str | None,
    environ: Mapping[str, str] | None = None,
    settings: Settings | None = None,
) -> Connection:
    """Return a connection to target, logged in, over the machines that lie between.

    config is a file that OpenSSH's configuration is read from instead, as with `ssh -F`;
    environ the environment of whoever wants the connection, where the agent's socket is
    named; settings what the configuration says of target, if that was read. Raises Denied for
    what another try would not change, NoConnection for what it may.
    """
    environ = os.environ if environ is None else environ
    settings = settings or configuration.read(target, config, environ)
    return _connect(target.label, settings, ask, config, environ, 0)


def _connect(
    label: str,
    settings: Settings,
    ask: Ask,
    config: str | None,
    environ: Mapping[str, str],
    depth: int,
) -> SshConnection:
    jumps = settings.word("proxyjump")
    below = None
    if jumps:
        if depth == _MOST_JUMPS:
            raise Denied(f"cannot connect to {label}: its ProxyJump does not come to an end")
        before, _, last = jumps.rpartition(",")
        try:
            hop = parse_target(last.removeprefix("ssh://"))
            way = configuration.read(hop, config, environ, before)
            below = _connect(hop.label, way, ask, config, environ, depth + 1)
        except BadUsage as error:
            raise Denied(f"cannot connect to {label}: its ProxyJump: {error}") from None
        except Unreachable as error:
            raise type(error)(f"cannot connect to {label}: {error}") from None
        wire = below.tunnel(settings, label)
    elif settings.word("proxycommand"):
        wire = line.run_proxy(settings, settings.word("proxycommand"), label)
    else:
        wire = line.dial(settings, label)
    try:
        transport = _set_up(wire, settings, ask, label)
    except BaseException as error:
        wire.close()
        if below:
            below.close()
        if isinstance(error, OSError) and error.errno in _HUNG_UP:
            raise Lost(f"connection to {label} lost: the other side hung up") from None
        raise
    return SshConnection(transport, settings, label, below)


def _set_up(wire: line.Line, settings: Settings, ask: Ask, label: str) -> Transport:
    """Return a connection over a line, verified and logged in."""
    paths = (*settings.user_known_hosts, *settings.global_known_hosts)
    try:
        known = hostkeys.load(paths, settings.key_name, settings.bare_name)
        if settings.word("revokedhostkeys"):
            path = settings.expand(settings.word("revokedhostkeys"))
            known = hostkeys.HostKeys(known.entries + hostkeys.load_revoked(path).entries)
    except OSError as error:
        raise Denied(
            f"cannot connect to {label}: cannot read {error.filename}: {error.strerror}"
        ) from None
    transport = sshwire.handshake(wire, settings, known, label)
    wire.limit(None)
    try:
        _verify(transport, settings, known, ask, label)
        login(transport, settings, ask, label)
    except BaseException:
        transport.close()
        raise
    wire.watch(*settings.alive, transport.ask_for_life)
    return transport


def _verify(
    transport: Transport, settings: Settings, known: hostkeys.HostKeys, ask: Ask, label: str
) -> None:
    """Check that the machine is the one that we know; raise Denied."""
    blob, shown = transport.shown()
    note = ""
    if shown:
        try:
            certificate = keys.host_certificate(
                shown, settings.word("hostkeyalias") or settings.hostname
            )
        except keys.Unusable as error:
            raise Denied(f"host certificate of {label} {error}") from None
        revoked = known.revoked(blob, certificate.authority)
        if revoked:
            raise Denied(f"host key of {label} is revoked: {revoked.where}")
        if known.trusts(certificate.authority) and not certificate.problem:
            return
        note = certificate.problem or "is signed by an authority that is not trusted"
    if settings.flag("nohostauthenticationforlocalhost") and settings.hostname in _LOOPBACK:
        return
    verdict, entry = known.judge(blob)
    where = entry.where if entry else ""
    if verdict is hostkeys.Verdict.REVOKED:
        raise Denied(f"host key of {label} is revoked: {where}")
    if verdict is hostkeys.Verdict.CHANGED:
        raise Denied(
            f"host key of {label} has changed: {where} has another one than"
            f" {hostkeys.fingerprint(blob)}"
        )
    if verdict is hostkeys.Verdict.NEW:
        _meet(transport, settings, ask, label, blob, note)


def _meet(
    transport: Transport, settings: Settings, ask: Ask, label: str, blob: bytes, note: str
) -> None:
    """Accept the key of a machine that was never seen and write it down, or raise Denied."""
    fingerprint = hostkeys.fingerprint(blob)
    unknown = (
        f"host key of {label} is unknown{f', its certificate {note}' if note else ''}:"
        f" {_kind(blob)} {fingerprint}; if that is the right one,"
        f" 'jobctl session new --accept-new {label}' accepts it"
    )
    if settings.strict == "yes":
        raise Denied(unknown)
    if settings.strict == "ask":
        question = (
            f"The authenticity of host '{label} ({settings.key_name})' can't be established.\n"
            f"{_kind(blob)} key fingerprint is {fingerprint}.\n"
            "Are you sure you want to continue connecting"
        )
        if settings.flag("batchmode") or not ask.confirm(question, fingerprint):
            raise Denied(unknown)
    if settings.user_known_hosts:
        path = settings.user_known_hosts[0]
        try:
            hostkeys.append(path, settings.key_name, blob, settings.flag("hashknownhosts"))
        except OSError as error:  # it is a new one the next time; ssh goes on, too
            ask.show(f"cannot write the host key of {label} to {path}: {error.strerror}")


def _kind(blob: bytes) -> str:
    """Return the type of a key as OpenSSH shows it."""
    return hostkeys.type_of(blob).removeprefix("ssh-").partition("-")[0].upper()


class SshConnection:
    """A Connection over SSH."""

    def __init__(
        self, transport: Transport, settings: Settings, label: str, below: SshConnection | None
    ) -> None:
        """Take over a transport that is logged in, and the connection that it runs through."""
        self._transport = transport
        self._settings = settings
        self._label = label
        self._below = below
        self._passing: dict[str, bool] = {}
        """Whether the machine lets variables pass, as far as it was asked."""

    def open(
        self,
        command: str,
        terminal: Terminal | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Stream:
        """Begin a command; raise NoChannel or Lost."""
        channel = self._channel("session")
        seconds = self._settings.connect_timeout
        try:
            if terminal:
                size = (terminal.columns, terminal.rows, 0, 0)
                sshwire.request(channel, "pty-req", True, terminal.term, *size, b"")
                if not sshwire.granted(channel, seconds):
                    raise NoChannel(f"{self._label} gives no terminal")
            for name, value in self.variables(environ):
                # Nobody waits for the answer, as nothing follows from a no.
                sshwire.request(channel, "env", False, os.fsencode(name), os.fsencode(value))
            sshwire.request(channel, "exec", True, command)
            if not sshwire.granted(channel, seconds):
                raise NoChannel(f"{self._label} refuses to run a command")
        except _TROUBLES:
            raise self.lost() from None
        except NoChannel:
            if not self.alive():
                raise self.lost() from None
            channel.close()
            raise
        return SshStream(self, channel)

    def variables(self, environ: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
        """Return what of an environment goes with a command."""
        return self._settings.variables(environ)

    def lets_pass(self, name: str) -> bool:
        """Whether the machine lets a variable go with a command; raise NoChannel or Lost."""
        if name not in self._passing:
            channel = self._channel("session")
            try:
                sshwire.request(channel, "env", True, os.fsencode(name), b"")
                self._passing[name] = sshwire.granted(channel, self._settings.connect_timeout)
            except _TROUBLES:
                raise self.lost() from None
            finally:
                channel.close()
        return self._passing[name]

    def setting(self, name: str) -> str | None:
        """Return the value that SetEnv gives a variable, None if none."""
        return dict(reversed(self._settings.set_env)).get(name)

    @property
    def connect_timeout(self) -> float:
        """Seconds that this machine gets for an answer while things begin."""
        return self._settings.connect_timeout

    @property
    def longest_silence(self) -> float:
        """Seconds without a sign of life after which this machine is taken for dead."""
        interval, count = self._settings.alive
        return interval * (count + 1)

    def _channel(self, kind: str, destination: tuple[str, int] | None = None) -> Channel:
        """Return a new channel; raise NoChannel or Lost."""
        if not self.alive():
            raise self.lost()
        origin = ("127.0.0.1", 0)
        try:
            return self._transport.open_channel(
                kind, destination, origin, timeout=self._settings.connect_timeout
            )
        except paramiko.ChannelException as error:
            reason = sshwire.in_short(str(error.text)).lower()
            raise NoChannel(f"{self._label} opens no further channel: {reason}") from None
        except _TROUBLES as error:
            if not self.alive():
                raise self.lost() from None
            reason = sshwire.in_short(str(error)).lower().rstrip(".")
            raise NoChannel(f"{self._label} opens no further channel: {reason}") from None

    def tunnel(self, settings: Settings, label: str) -> line.Line:
        """Return a line from that machine on to another one; raise NoConnection, and close this."""
        try:
            channel = self._channel("direct-tcpip", (settings.hostname, settings.port))
        except Unreachable as error:
            self.close()
            raise NoConnection(f"cannot connect to {label}: {error}") from None
        return line.Line(channel, self.close)

    def alive(self) -> bool:
        """Whether the connection stands, as far as is known; not once Lost was raised."""
        # What reads of it is told before paramiko's own flag says so.
        return self._transport.is_active() and not self._transport.line.closed

    def lost(self) -> Lost:
        """Return the error that says why it does not."""
        return Lost(f"connection to {self._label} lost: {self._transport.trouble()}")

    def close(self) -> None:
        """End it, and what it runs through."""
        self._transport.close()
        self._transport.line.close()
        if self._below:
            self._below.close()


class SshStream:
    """A Stream on a channel."""

    def __init__(self, connection: SshConnection, channel: Channel) -> None:
        """Take over the channel that a command was begun on."""
        self._connection = connection
        self._channel = channel
        self._let_go = False

    def read(self, size: int) -> bytes:
        """Return output, b"" at its end; raise Lost."""
        try:
            return self._channel.recv(size)
        except _TROUBLES:
            return self._ended()

    def read_error(self, size: int) -> bytes:
        """Return error output, b"" at its end; raise Lost."""
        try:
            return self._channel.recv_stderr(size)
        except _TROUBLES:
            return self._ended()

    def _ended(self) -> bytes:
        if self._let_go:
            return b""
        raise self._connection.lost() from None

    def write(self, data: bytes) -> None:
        """Write all of data to the input; raise BrokenPipeError or Lost."""
        sent = 0
        while sent < len(data):
            try:
                size = sshwire.send(self._channel, data[sent : sent + _PIECE])
            except _TROUBLES:
                size = 0
            if not self._connection.alive():
                raise self._connection.lost()
            if not size:
                raise BrokenPipeError("the command reads no more")
            sent += size

    def close_input(self) -> None:
        """End the input; raise Lost."""
        self._tell(lambda: sshwire.send_end(self._channel))

    def resize(self, columns: int, rows: int) -> None:
        """Tell the size of the terminal; raise Lost."""
        size = (columns, rows, 0, 0)
        self._tell(lambda: sshwire.request(self._channel, "window-change", False, *size))

    def _tell(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except _TROUBLES:
            raise self._connection.lost() from None
        if not self._connection.alive() and not self._over():
            raise self._connection.lost()

    def _over(self) -> bool:
        inlet = self._channel.in_buffer
        return isinstance(inlet, Inlet) and inlet.over

    def wait(self) -> int | None:
        """Return the exit status, or None where the server sent none; raise Lost."""
        self._channel.status_event.wait()
        status = self._channel.exit_status
        if status >= 0:
            return status
        if self._over() or self._let_go:
            return None
        raise self._connection.lost()

    def close(self) -> None:
        """Let go of the command."""
        self._let_go = True
        with contextlib.suppress(*_TROUBLES):
            self._channel.close()
