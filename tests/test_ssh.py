"""Targets, and commands over SSH, against real servers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from conftest import WEIRD, wait_until
from sshd import (
    MakeSshd,
    Person,
    Sshd,
    drain,
    in_thread,
    output,
    program,
    reach,
)

from jobctl import quoting
from jobctl.errors import BadUsage
from jobctl.target import Target, check_option, parse_target
from jobctl.transport import sshwire
from jobctl.transport.base import (
    Connection,
    Denied,
    NoChannel,
    NoConnection,
    Stream,
    Terminal,
)
from jobctl.transport.ssh import connect

MEBIBYTE = 1024 * 1024


@pytest.fixture
def web1(sshd: Sshd) -> Iterator[Connection]:
    connection = reach(sshd)
    yield connection
    connection.close()


# Targets


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("web1", Target("web1")),
        ("me@web1:2222", Target("web1", "me", 2222)),
        ("a@b@web1", Target("web1", "a@b")),
        ("::1", Target("::1")),
        ("me@[fe80::1%eth0]:22", Target("fe80::1%eth0", "me", 22)),
    ],
)
def test_target(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert target.label == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "@web1",
            "me@",
            "-oProxyCommand=x",
            "me@-web1",
            "-x@web1",
            "web 1",
            "web1\n",
            "a\x1b[1m",
        ),
        *("web1:", "web1:0", "web1:65536", "web1:²", "web1:99999999999", "[::1", "[::1]x", "[]:22"),
        *("$(id)", "`id`", "a;b", "a|b", "a'b", 'a"b', "a&b", "a\\b", "../x", "a<b", "u;s@web1"),
    ],
)
def test_not_a_target(text: str) -> None:
    with pytest.raises(BadUsage):
        parse_target(text)


def test_options_are_checked() -> None:
    assert check_option("ServerAliveInterval = 5") == "ServerAliveInterval=5"
    for text in ("", "x", "=x", "-x=1", "A B=1", "User=a\nb", "User="):
        with pytest.raises(BadUsage):
            check_option(text)


def test_nothing_given_is_an_option(sshd: Sshd, tmp_path: Path) -> None:
    """What gets past parse_target() is still not taken for an option, or run by a shell."""
    made = tmp_path / "made"
    for target in (
        Target(f"-oProxyCommand=touch {made}"),
        Target("web1", user=f"-oProxyCommand=touch {made}"),
        Target("web1", identities=(f"-oProxyCommand=touch {made}",)),
        Target(f"$(touch {made})"),
        Target("web1", options=(f"User=$(touch {made})",)),
        Target("web1", options=("-F", "/dev/null")),
    ):
        with pytest.raises((Denied, NoConnection, BadUsage)):
            connect(target, Person(), str(sshd.config))
    assert not made.exists()


# Commands


def test_output_error_output_and_exit_status(web1: Connection) -> None:
    stream = web1.open("cat; echo bad >&2; exit 3")
    stream.write(b"good\0\xff")
    stream.close_input()
    assert drain(stream.read) == b"good\0\xff"
    assert drain(stream.read_error) == b"bad\n"
    assert stream.wait() == 3
    assert stream.read(1) == b""
    stream.close()
    stream.close()


def test_the_home_is_not_the_real_one(sshd: Sshd, web1: Connection) -> None:
    assert output(web1, "echo $HOME $XDG_STATE_HOME").decode().split() == [
        str(sshd.home),
        f"{sshd.home}/.local/state",
    ]


def test_any_text_arrives(web1: Connection) -> None:
    weird = WEIRD.encode() + b"\t\x01"
    command = b"printf %s " + quoting.quote(weird)
    assert output(web1, command.decode()) == weird


def test_death_by_a_signal(web1: Connection) -> None:
    assert web1.open("kill -TERM $$").wait() == 128 + signal.SIGTERM


def test_no_exit_status_is_not_a_status(sshd: Sshd, web1: Connection) -> None:
    """A signal that has no name in SSH."""
    stream = web1.open(f"kill -{signal.SIGSTKFLT if hasattr(signal, 'SIGSTKFLT') else 'IO'} $$")
    assert drain(stream.read) == b""
    assert stream.wait() in (None, 128 + 16)


def test_much_data_both_ways_at_once(web1: Connection) -> None:
    size = 48 * MEBIBYTE
    stream = web1.open(f"tee /dev/stderr | cat; head -c {size} /dev/zero")
    data = os.urandom(MEBIBYTE) * 48

    def send() -> None:
        stream.write(data)
        stream.close_input()

    errors: list[bytes] = []
    threads = [in_thread(send), in_thread(lambda: errors.append(drain(stream.read_error)))]
    received = drain(stream.read)
    for thread in threads:
        thread.join(60)
    assert received == data + bytes(size)
    assert errors == [data]
    assert stream.wait() == 0


def test_a_command_that_does_not_read(web1: Connection, tmp_path: Path) -> None:
    """The server takes its input and throws it away; the end is noticed."""
    go = tmp_path / "go"
    stream = web1.open(f"exec <&-; echo closed; until [ -e {go} ]; do sleep 0.05; done")
    assert stream.read(100) == b"closed\n"
    stream.write(bytes(8 * MEBIBYTE))
    go.touch()
    assert stream.wait() == 0
    assert stream.read(1) == b""
    with pytest.raises(BrokenPipeError):
        stream.write(b"x")


def test_writing_to_commands_that_end_spares_the_connection(
    web1: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server ends the connection when data comes for a channel that is closed.

    Between paramiko's look whether a channel is open and the sending there is a moment, which
    is made longer here.
    """
    send = sshwire.Transport._send_user_message

    def later(transport: sshwire.Transport, message: paramiko.Message) -> None:
        if threading.current_thread() is not transport:
            time.sleep(0.002)
        send(transport, message)

    monkeypatch.setattr(sshwire.Transport, "_send_user_message", later)
    for _ in range(20):
        stream = web1.open("exec head -c 100000 >/dev/null")
        with contextlib.suppress(BrokenPipeError):
            for _ in range(100):
                stream.write(bytes(8000))
        assert stream.wait() == 0
    assert output(web1, "echo still here") == b"still here\n"


def test_slow_readers_hold_up_nobody(web1: Connection) -> None:
    slow = web1.open("head -c 40000000 /dev/zero")
    slow.read(1)
    assert len(output(web1, "head -c 40000000 /dev/zero")) == 40000000
    assert len(drain(slow.read)) == 40000000 - 1


def test_many_commands_at_once(web1: Connection) -> None:
    results: list[bytes] = []
    threads = [
        in_thread(lambda n=n: results.append(output(web1, f"echo {n}")))  # type: ignore[misc]
        for n in range(8)
    ]
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [b"%d\n" % n for n in range(8)]


def test_terminal(web1: Connection) -> None:
    command = "stty size; tty >/dev/null && echo $TERM; read x; stty size"
    stream = web1.open(command, Terminal("vt220", 97, 31))
    data = b""
    while b"vt220" not in data:
        data += stream.read(1000)
    assert data.split() == [b"31", b"97", b"vt220"]
    stream.resize(101, 41)
    stream.write(b"\n")
    assert drain(stream.read).split() == [b"41", b"101"]
    assert stream.wait() == 0


def test_a_stream_let_go(web1: Connection) -> None:
    stream = web1.open("cat")
    reader = in_thread(lambda: stream.read(1))
    time.sleep(0.05)
    stream.close()
    reader.join(60)
    assert not reader.is_alive()
    assert stream.read(1) == b""
    assert web1.alive()


def test_too_many_commands(make_sshd: MakeSshd) -> None:
    connection = reach(make_sshd("MaxSessions 2"))
    streams = [connection.open("cat") for _ in range(2)]
    with pytest.raises(NoChannel, match="web1 opens no further channel: connect failed"):
        connection.open("true")
    streams[0].close_input()
    assert streams[0].wait() == 0
    wait_until(lambda: opens(connection))
    streams[1].write(b"x")
    assert streams[1].read(1) == b"x"
    connection.close()


def opens(connection: Connection) -> Stream | None:
    try:
        return connection.open("true")
    except NoChannel:
        return None


def test_a_login_shell_that_is_no_sh(make_sshd: MakeSshd) -> None:
    connection = reach(make_sshd(f'ForceCommand {program("fish")} -c "$SSH_ORIGINAL_COMMAND"'))
    stream = connection.open("exec /bin/sh -c 'x=5; echo $x; cat'")
    stream.write(b"6")
    stream.close_input()
    assert drain(stream.read) == b"5\n6"
    assert stream.wait() == 0
    connection.close()


def test_compression(sshd: Sshd) -> None:
    connection = reach(sshd, options=("Compression=yes",))
    assert len(output(connection, "head -c 3000000 /dev/zero")) == 3000000
    connection.close()


@pytest.mark.long
def test_new_keys_while_channels_come_and_go(make_sshd: MakeSshd) -> None:
    """Both sides want new keys all the time, and channels end in the middle of it."""
    server = make_sshd("RekeyLimit 1M")
    connection = reach(server)
    for _ in range(6):
        assert len(output(connection, "head -c 3000000 /dev/zero")) == 3000000
    ours = connection._transport  # type: ignore[attr-defined]
    ours.packetizer.REKEY_BYTES = 2 * MEBIBYTE
    for _ in range(15):
        assert len(output(connection, "head -c 1700000 /dev/zero")) == 1700000
    connection.close()
