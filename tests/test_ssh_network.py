"""Connections over SSH when networks break, and through other machines."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, wait_until
from paramiko.channel import Channel
from sshd import (
    MakeSshd,
    Person,
    Sshd,
    Wire,
    free_port,
    in_thread,
    output,
    reach,
)

from jobctl.target import Target, parse_target
from jobctl.transport import config
from jobctl.transport.base import (
    Denied,
    Lost,
    NoConnection,
)
from jobctl.transport.line import Line
from jobctl.transport.ssh import SshStream, connect


def test_closing_ends_everything(sshd: Sshd) -> None:
    connection = reach(sshd)
    stream = connection.open("cat")
    assert connection.alive()
    connection.close()
    assert not connection.alive()
    with pytest.raises(Lost):
        stream.read(1)
    with pytest.raises(Lost):
        connection.open("true")
    connection.close()


@pytest.mark.parametrize("how", ["cut", "killed"])
def test_a_broken_connection_is_no_end(sshd: Sshd, wire: Wire, how: str) -> None:
    connection = reach(sshd)
    stream = connection.open("echo before; cat")
    assert stream.read(100) == b"before\n"
    if how == "cut":
        wire.cut()
    else:
        sshd.kill_connections()
    for work in (
        lambda: stream.read(1),
        lambda: stream.read_error(1),
        lambda: stream.write(b"x"),
        stream.wait,
        stream.close_input,
        lambda: stream.resize(80, 24),
        lambda: connection.open("true"),
    ):
        with pytest.raises(Lost, match=r"connection to web1 lost: (connection reset|the other)"):
            work()
    assert not connection.alive()
    stream.close()


def test_what_came_before_a_break_is_delivered(sshd: Sshd, wire: Wire) -> None:
    connection = reach(sshd)
    stream = connection.open("head -c 100000 /dev/zero; cat")
    assert isinstance(stream, SshStream)
    wait_until(lambda: len(stream._channel.in_buffer) == 100000)
    wire.cut()
    wait_until(lambda: not connection.alive())
    left = 100000
    while left:
        left -= len(stream.read(min(left, 1000)))
    with pytest.raises(Lost):
        stream.read(1)


def test_what_is_lost_does_not_stand(
    sshd: Sshd, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the instant on when who reads is told, before paramiko has seen to all its channels."""
    connection = reach(sshd)
    streams = [connection.open("cat") for _ in range(2)]
    told, unlink = threading.Event(), Channel.__dict__["_unlink"]

    def slowly(channel: Channel) -> None:
        unlink(channel)
        told.wait(PATIENCE)

    monkeypatch.setattr(Channel, "_unlink", slowly)
    wire.cut()
    with pytest.raises(Lost):
        streams[0].read(1)
    assert not connection.alive()
    told.set()


@pytest.mark.parametrize("busy", [False, True])
def test_a_peer_that_falls_silent_is_noticed(sshd: Sshd, wire: Wire, busy: bool) -> None:
    began = time.monotonic()
    options = ("ServerAliveInterval=1", "ServerAliveCountMax=2")
    connection = reach(sshd, options=options)
    stream = connection.open("cat >/dev/null; echo done; cat")
    if busy:

        def send() -> None:
            with contextlib.suppress(Lost):
                while True:
                    stream.write(bytes(1024 * 1024))

        in_thread(send)
    wire.freeze()
    with pytest.raises(Lost, match="no answer for 3 seconds"):
        stream.read(1)
    assert time.monotonic() - began > 2
    assert not connection.alive()


def test_a_peer_with_nothing_to_say_is_alive(sshd: Sshd, wire: Wire) -> None:
    connection = reach(sshd, options=("ServerAliveInterval=1", "ServerAliveCountMax=60"))
    stream = connection.open("cat")
    before = wire.received
    wait_until(lambda: wire.received > before)  # it was asked, and has answered
    sent, received = wire.sent, wire.received
    wire.freeze()
    stream.write(b"after all")
    wire.thaw()
    assert stream.read(100) == b"after all"
    assert wire.sent > sent
    assert wire.received > received
    connection.close()


def test_each_sign_of_life_counts_anew() -> None:
    ours, theirs = socket.socketpair()
    line = Line(ours)
    asked: list[int] = []
    answers = True

    def ask() -> None:
        asked.append(1)
        if answers:
            theirs.sendall(b"x")

    def received(_: int) -> bytes:
        with contextlib.suppress(TimeoutError):
            return line.recv(1)
        return b""

    line.watch(0.001, 2, ask)
    assert b"".join(map(received, range(20))) == b"x" * 10
    answers = False
    with pytest.raises(ConnectionAbortedError, match=r"no answer for 0\.003 seconds"):
        any(map(received, range(100)))
    assert len(asked) == 12
    theirs.close()


def test_the_default_notices_within_30_seconds(sshd: Sshd) -> None:
    settings = config.read(parse_target("web1"), str(sshd.config), os.environ)
    interval, count = settings.alive
    assert interval * (count + 1) < 30


def test_nobody_listens() -> None:
    target = Target("127.0.0.1", port=free_port())
    with pytest.raises(NoConnection, match=r"cannot connect to 127.0.0.1:\d+: connection refused"):
        connect(target, Person(), "/dev/null")


def test_no_such_name() -> None:
    with pytest.raises(NoConnection, match=r"cannot connect to no\.such\.host\.invalid: "):
        connect(Target("no.such.host.invalid"), Person(), "/dev/null")


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (b"", "no answer within 0.5 seconds"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200, "what answers is no SSH server"),
        (b"x" * 3_000_000, "it sends too much before the login"),
        (b"\xff\xfe\n", "what answers is no SSH server"),
        (b"SSH-2.0-x\r\n", "no answer within 0.5 seconds"),
        (b"SSH-2.0-x\r\n" + b"\x7f\x7f\x7f\x7c" * 800_000, "it sends too much before the login"),
        (b"SSH-2.0-x\r\n\0\0\0\x0c\x0a\x14" + bytes(10), ""),
        (b"busy \x1b[1m now\r\n!", "the other side hung up, after it said 'busy \\x1b[1m now'"),
    ],
)
def test_hosts_that_are_no_ssh_servers(says: bytes, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with contextlib.suppress(OSError):
                peer.sendall(says)
                if says.endswith(b"!"):
                    peer.shutdown(socket.SHUT_RDWR)
                while peer.recv(65536):
                    pass

        in_thread(serve)
        # No more than half a second where that is what it comes to.
        seconds = 0.5 if not reason or "seconds" in reason else PATIENCE
        target = Target("127.0.0.1", port=listener.getsockname()[1], connect_timeout=seconds)
        with pytest.raises((NoConnection, Denied)) as caught:
            connect(target, Person(), "/dev/null")
        assert str(caught.value).startswith(f"cannot connect to {target.label}: {reason}")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("after", [0, 100, 1200, 1600])
def test_a_server_that_stalls(sshd: Sshd, wire: Wire, after: int) -> None:
    """The network falls silent in the banner, the key exchange or the login."""
    wire.freeze(after)
    with pytest.raises(NoConnection, match=r"no answer( to the login)? within 1 seconds"):
        reach(sshd, connect_timeout=1)


def test_addresses_are_tried_in_turn(sshd: Sshd) -> None:
    """localhost may be ::1 first, where nobody listens."""
    connection = reach(sshd, options=("HostName=localhost", "HostKeyAlias=web1"))
    assert output(connection, "echo here") == b"here\n"
    connection.close()


def test_jumps(make_sshd: MakeSshd) -> None:
    first, second, last = make_sshd(), make_sshd(), make_sshd()
    lines = []
    for name, server in (("first", first), ("second", second), ("last", last)):
        lines += [f"Host {name}", f"Port {server.port}", f"IdentityFile {server.key}"]
        lines += ["HostName 127.0.0.1", f"UserKnownHostsFile {server.known_hosts}"]
    lines += ["Host last", "ProxyJump first,second", "Host *", "IdentitiesOnly yes"]
    config = first.hosts(*lines)
    connection = connect(parse_target("last"), Person(), str(config))
    assert output(connection, "echo $HOME").decode().strip() == str(last.home)
    assert len(first.connections()) > 0
    assert len(output(connection, "head -c 30000000 /dev/zero")) == 30000000
    stream = connection.open("cat")
    first.kill_connections()
    with pytest.raises(Lost):
        stream.read(1)
    connection.close()
    wait_until(lambda: not second.connections() and not last.connections())


def test_a_jump_that_fails_says_which(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    server.hosts("Host far", "ProxyJump web1", f"Port {free_port()}", "HostName 127.0.0.1")
    with pytest.raises(NoConnection, match="cannot connect to far: web1 opens no further channel"):
        reach(server, name="far")
    wait_until(lambda: not server.connections())
    server.hosts("Host far", "ProxyJump nobody@web1", "Host web1", "PreferredAuthentications none")
    with pytest.raises(Denied, match="cannot connect to far: nobody@web1 refuses the login of nob"):
        reach(server, name="far")
    server.hosts("Host far", "ProxyJump far")
    with pytest.raises(Denied, match="jumphost loop via far"):
        reach(server, name="far")


def test_proxy_command(sshd: Sshd, tmp_path: Path) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536): s.sendall(data)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=up).start()\n"
        "while data := s.recv(65536): os.write(1, data)\n"
        "os._exit(0)\n"
    )
    sshd.hosts("Host web1", f"ProxyCommand python3 {relay} %h %p", "Host web2", "ProxyCommand none")
    connection = reach(sshd)
    assert len(output(connection, "head -c 20000000 /dev/zero")) == 20000000
    stream = connection.open("cat")
    sshd.kill_connections()
    with pytest.raises(Lost):
        stream.read(1)
    connection.close()
    reach(sshd, name="web2").close()


def test_a_proxy_command_that_fails(sshd: Sshd) -> None:
    sshd.hosts("Host web1", "ProxyCommand echo '%h is' down >&2")
    with pytest.raises(NoConnection, match=r"its ProxyCommand ended: 127\.0\.0\.1 is down"):
        reach(sshd)
    sshd.hosts("Host web1", "ProxyCommand cat >/dev/null")
    with pytest.raises(NoConnection, match=r"no answer within 0\.5 seconds"):
        reach(sshd, connect_timeout=0.5)
