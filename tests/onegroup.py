"""An SSH server that lets everybody in, and runs all commands of a connection in one group.

    python onegroup.py HOST_KEY HOME PATH    prints the port, on 127.0.0.1, and serves for ever

OpenSSH makes each command the leader of a session; dropbear does not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

import paramiko


class Server(paramiko.ServerInterface):
    """Says yes to all that is asked."""

    def get_allowed_auths(self, username: str) -> str:
        return "none"

    def check_auth_none(self, username: str) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=run, args=(channel, command), daemon=True).start()
        return True


def run(channel: paramiko.Channel, command: bytes) -> None:
    """Run a command to its end."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={"HOME": sys.argv[2], "PATH": sys.argv[3]},
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    threading.Thread(target=feed, args=(channel, process.stdin), daemon=True).start()
    movers = [
        threading.Thread(target=move, args=(process.stdout, channel.sendall), daemon=True),
        threading.Thread(target=move, args=(process.stderr, channel.sendall_stderr), daemon=True),
    ]
    for mover in movers:
        mover.start()
    channel.send_exit_status(process.wait() % 256)
    for mover in movers:
        mover.join()
    channel.close()


def feed(channel: paramiko.Channel, sink: IO[bytes]) -> None:
    """Pass input on to its end."""
    with contextlib.suppress(OSError), sink:
        while data := channel.recv(1 << 15):
            sink.write(data)


def move(source: IO[bytes], send: Callable[[bytes], object]) -> None:
    """Pass output on to its end."""
    with contextlib.suppress(OSError):
        while data := os.read(source.fileno(), 1 << 15):
            send(data)


def main() -> None:
    """Serve."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    key = paramiko.PKey.from_path(sys.argv[1])
    while True:
        peer, _ = listener.accept()
        transport = paramiko.Transport(peer)
        transport.add_server_key(key)
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=Server())


if __name__ == "__main__":
    main()
