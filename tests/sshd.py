"""Real OpenSSH servers for tests, and a wire to them that can be cut, frozen and slowed down."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import queue
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobctl.target import parse_target
from jobctl.transport.base import Connection
from jobctl.transport.ssh import connect

_ADMIN_PATHS = "/usr/sbin:/usr/local/sbin:/sbin:/opt/homebrew/sbin"
_PRIVILEGE_SEPARATION = Path("/run/sshd")
_LINGER_NOT = struct.pack("ii", 1, 0)


def program(name: str) -> str:
    """Return the path of a program; fail the test if it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_ADMIN_PATHS}")
    if path is None:
        pytest.fail(f"{name} is not installed; tests/run.sh installs it")
    return path


def keygen(path: Path, kind: str = "ed25519", passphrase: str = "", *options: str) -> Path:
    """Make a pair of keys at path and return path."""
    words = [program("ssh-keygen"), "-q", "-a", "1", "-t", kind, "-N", passphrase, "-f", str(path)]
    subprocess.run([*words, "-C", path.name, *options], check=True, stdin=subprocess.DEVNULL)
    return path


_HELD: list[socket.socket] = []
"""Sockets that hold the ports of free_port() for as long as this process lives."""


def free_port() -> int:
    """Return a TCP port on which nobody listens, and that the kernel gives to nobody else.

    A server that sets SO_REUSEADDR, as sshd does, may listen on it all the same, on Linux.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = int(probe.getsockname()[1])
    if sys.platform == "linux":
        _HELD.append(probe)
    else:
        probe.close()
    return port


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '\\"') + '"'


class Sshd:
    """An OpenSSH server on 127.0.0.1 that logs the present user in, with a home of its own.

    `config` is a client configuration for `ssh -F` and JOBCTL_SSH_CONFIG. In it, `web1` to
    `web4` are this server.
    """

    def __init__(
        self,
        folder: Path,
        lines: Sequence[str] = (),
        host_keys: Sequence[str] = ("ed25519",),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Make a server in folder that start() starts.

        :param lines: go to its sshd_config, on top.
        :param environ: what those who log in have in their environment.
        """
        self.folder = folder
        self.port = free_port()
        self.home = folder / "home"
        self.log = folder / "log"
        self.config = folder / "ssh_config"
        self.known_hosts = folder / "known_hosts"
        self.authorized_keys = folder / "authorized_keys"
        self.key = folder / "id_ed25519"
        self.user = getpass.getuser()
        self.host_keys = [folder / f"host_{kind}" for kind in host_keys]
        # Nothing that a test starts finds the way to the real home, or its bashrc.
        self._environ = {
            "HOME": str(self.home),
            "XDG_STATE_HOME": f"{self.home}/.local/state",
            **(environ or {}),
        }
        self.machine: Sequence[str] = ()
        """The words that run a program on the machine that it is on, if that is not this one."""
        self._process: subprocess.Popen[bytes] | None = None
        for path in (folder, self.home):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for kind, path in zip(host_keys, self.host_keys, strict=True):
            keygen(path, kind)
        keygen(self.key)
        self.authorized_keys.write_bytes(self.key.with_suffix(".pub").read_bytes())
        (folder / "sshd_config").write_text("\n".join([*lines, *self._server_lines(), ""]))
        self.trust()
        self.hosts()

    def _server_lines(self) -> list[str]:
        lines = [
            f"ListenAddress 127.0.0.1:{self.port}",
            *(f"HostKey {path}" for path in self.host_keys),
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PrintMotd no",
            "PrintLastLog no",
            "UseDNS no",
            "MaxStartups 200",
            "MaxAuthTries 20",
            "AllowTcpForwarding yes",
            f"AuthorizedKeysFile {self.authorized_keys}",
            "SetEnv " + " ".join(_quoted(f"{k}={v}") for k, v in self._environ.items()),
        ]
        if _understands("PerSourcePenalties no"):
            lines.append("PerSourcePenalties no")
        return lines

    def hosts(self, *lines: str, port: int | None = None) -> Path:
        """Write the client's configuration and return its path; lines go on top."""
        self.config.write_text(
            "\n".join(
                [
                    *lines,
                    "Host web1 web2 web3 web4",
                    "    HostName 127.0.0.1",
                    f"    Port {port or self.port}",
                    f"    User {self.user}",
                    f"    IdentityFile {self.key}",
                    "    IdentitiesOnly yes",
                    "    IdentityAgent none",
                    f"    UserKnownHostsFile {self.known_hosts}",
                    "    GlobalKnownHostsFile /dev/null",
                    "",
                ]
            )
        )
        return self.config

    def trust(self, names: str = "*") -> None:
        """Write the client's known_hosts: all keys of the server, for a pattern of names."""
        lines = []
        for path in self.host_keys:
            kind, key = path.with_name(path.name + ".pub").read_text().split()[:2]
            lines.append(f"{names} {kind} {key}\n")
        self.known_hosts.write_text("".join(lines))

    @property
    def pid(self) -> int:
        """The server that listens."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and return once it listens."""
        if os.getuid() == 0:
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        words = [*self.machine, program("sshd"), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while "Server listening on" not in self.log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"sshd did not start: {self.log.read_text(errors='replace')}")
            time.sleep(0.002)

    def stop(self) -> None:
        """Stop it, and end its connections; what they started goes on."""
        if self._process is not None:
            self.kill_connections()
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop it and start it on the same port."""
        self.stop()
        self.start()

    def connections(self) -> list[int]:
        """Return the processes of sshd that serve connections."""
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,comm="], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        below = {self.pid}
        for _ in range(3):  # the one for the connection, the one of the user, sshd-session
            for line in listing.splitlines():
                pid, parent, name = line.split(None, 2)
                if int(parent) in below and os.path.basename(name).startswith("sshd"):
                    below.add(int(pid))
        return sorted(below - {self.pid})

    def kill_connections(self) -> None:
        """End all connections at once, as when the server's machine takes them away."""
        for pid in self.connections():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _understands(line: str) -> bool:
    """Whether this version of sshd knows a line; an unknown one would be fatal."""
    words = [program("sshd"), "-G", "-f", "/dev/null", "-o", line]
    result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True)
    return result.returncode == 0


class _Link:
    """One connection through a Wire: two directions, each read and written by its own threads."""

    def __init__(self, wire: Wire, near: socket.socket, far: socket.socket) -> None:
        self.wire = wire
        self.ends = (near, far)
        for source, sink, counter in ((near, far, "sent"), (far, near, "received")):
            pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(4096)
            for work, end in ((self._read, source), (self._write, sink)):
                threading.Thread(target=work, args=(end, pieces, counter), daemon=True).start()

    def _read(
        self, end: socket.socket, pieces: queue.Queue[tuple[float, bytes]], counter: str
    ) -> None:
        data = b"-"
        while data:
            try:
                # Not blocked in recv(): that keeps a socket alive that was closed to reset it.
                while not select.select([end], [], [], 0.05)[0]:
                    continue
                data = end.recv(65536)
            except (OSError, ValueError):
                data = b""
            pieces.put((time.monotonic() + self.wire.latency, data))

    def _write(
        self, end: socket.socket, pieces: queue.Queue[tuple[float, bytes]], counter: str
    ) -> None:
        while True:
            due, data = pieces.get()
            time.sleep(max(0.0, due - time.monotonic()))
            self.wire.flows.wait()
            with contextlib.suppress(OSError):
                if not data:
                    end.shutdown(socket.SHUT_WR)
                    return
                while data:
                    self.wire.flows.wait()
                    size = self.wire.let_through(counter, len(data))
                    end.sendall(data[:size])
                    data = data[size:]

    def cut(self) -> None:
        """Break it with a reset, on both sides."""
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            end.close()


class Wire:
    """A TCP proxy in front of a port of 127.0.0.1 that does to the bytes what networks do."""

    def __init__(self, port: int) -> None:
        """Listen on a port of its own, `port`, and pass everything on to the one given."""
        self.latency = 0.0
        self.sent = 0
        """Bytes that went to the server."""
        self.received = 0
        """Bytes that came from the server."""
        self.accepted = 0
        """How many connections there were."""
        self.lock = threading.Lock()
        self.flows = threading.Event()
        self.flows.set()
        self._left: int | None = None
        self._far_port = port
        self._links: list[_Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                far = socket.create_connection(("127.0.0.1", self._far_port))
            except OSError:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._links.append(_Link(self, near, far))

    def cut(self) -> None:
        """Reset all connections, as a firewall or a restarted router does."""
        links, self._links = self._links, []
        for link in links:
            link.cut()

    def freeze(self, after: int = 0) -> None:
        """Let nothing through from now on, without a word; what comes is kept.

        :param after: how many bytes may still come from the server.
        """
        with self.lock:
            self._left = after or None
            if not after:
                self.flows.clear()

    def let_through(self, counter: str, size: int) -> int:
        """Count the next bytes, of which there are so many; return how many may pass now."""
        with self.lock:
            if counter == "received" and self._left is not None:
                size = min(size, self._left)
                self._left -= size
                if not self._left:
                    self._left = None
                    self.flows.clear()
            setattr(self, counter, getattr(self, counter) + size)
            return size

    def thaw(self) -> None:
        """Let everything through again, also what was kept."""
        self.flows.set()

    def delay(self, seconds: float) -> None:
        """Add so much to the way of what comes from now on, in each direction."""
        self.latency = seconds

    def close(self) -> None:
        """Cut all and listen no more."""
        self._listener.close()
        self.thaw()
        self.cut()


class Person:
    """Somebody who answers with these secrets, and remembers what was asked."""

    def __init__(self, *secrets: str, trusting: bool = False) -> None:
        """Make one who trusts unknown host keys, or does not."""
        self.secrets = list(secrets)
        self.trusting = trusting
        self.prompts: list[str] = []
        self.questions: list[str] = []
        self.shown: list[str] = []

    def secret(self, prompt: str) -> str | None:
        """Return the next secret, if any is left."""
        self.prompts.append(prompt)
        return self.secrets.pop(0) if self.secrets else None

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Return whether to trust."""
        self.questions.append(question)
        return self.trusting

    def show(self, text: str) -> None:
        """Read it."""
        self.shown.append(text)


def reach(
    server: Sshd,
    person: Person | None = None,
    options: Sequence[str] = (),
    name: str = "web1",
    **said: Any,
) -> Connection:
    """Return a connection to a server by a name in its client configuration."""
    target = parse_target(name)._replace(options=tuple(options), **said)
    return connect(target, person or Person(), str(server.config))


def drain(read: Callable[[int], bytes]) -> bytes:
    """Return all that a stream gives."""
    parts = []
    while part := read(1024 * 1024):
        parts.append(part)
    return b"".join(parts)


def output(connection: Connection, command: str) -> bytes:
    """Run a command to its end, which must be a good one, and return its output."""
    stream = connection.open(command)
    stream.close_input()
    data = drain(stream.read)
    assert stream.wait() == 0
    return data


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Do something in a thread of its own."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="session")
def sshd_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Give one server for all tests that change nothing about it."""
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def sshd(sshd_session: Sshd) -> Sshd:
    """Give a running server whose client configuration is as new."""
    if sshd_session._process is None:
        sshd_session.start()
    sshd_session.trust()
    sshd_session.hosts()
    for gate in sshd_session.home.glob("go*"):  # what another test's jobs have waited for
        gate.unlink()
    for name in ("guest", "jobs"):  # what it has left
        shutil.rmtree(sshd_session.home / ".local/state/jobctl" / name, ignore_errors=True)
    sshd_session.authorized_keys.write_bytes(sshd_session.key.with_suffix(".pub").read_bytes())
    return sshd_session


@pytest.fixture
def make_sshd(tmp_path: Path) -> Iterator[MakeSshd]:
    """Give a function that starts a server with lines of its own in its sshd_config."""
    make = MakeSshd(tmp_path)
    yield make
    for server in make.servers:
        server.stop()


class MakeSshd:
    """Starts servers, and remembers them."""

    def __init__(self, folder: Path) -> None:
        """Make them in folder."""
        self._folder = folder
        self._numbers = itertools.count(1)
        self.servers: list[Sshd] = []

    def __call__(
        self,
        *lines: str,
        host_keys: Sequence[str] = ("ed25519",),
        environ: Mapping[str, str] | None = None,
    ) -> Sshd:
        """Return a running server; see Sshd."""
        server = Sshd(self._folder / f"sshd{next(self._numbers)}", lines, host_keys, environ)
        self.servers.append(server)
        server.start()
        return server


@pytest.fixture
def wire(sshd: Sshd) -> Iterator[Wire]:
    """Give a wire to the server; the client configuration goes through it."""
    made = Wire(sshd.port)
    sshd.hosts(port=made.port)
    yield made
    made.close()
