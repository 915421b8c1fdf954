"""Whoever asks the agent for something, and the person at his terminal."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jobctl.errors import Unreachable


class Client:
    """Whoever made a request, and the person at his terminal."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        self._fds: list[int] = []
        self._lock = threading.Lock()

    def request(self) -> dict[str, Any]:
        """Return what is asked for, {} if he left without a word."""
        return self._hear() or {}

    def fds(self) -> tuple[int, int, int] | None:
        """Return three descriptors that he sends, to be closed; None if he leaves instead."""
        while len(self._fds) < 3:
            if self._hear() is None:
                return None
        first, second, third = self._fds
        self._fds = []
        return first, second, third

    def say(self, message: dict[str, Any]) -> None:
        """Send an answer, to nobody if he has gone."""
        with self._lock, suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def tell(self, message: dict[str, Any]) -> None:
        """Send news; he who does not take them is left to ask anew."""
        try:
            with self._lock:
                self._socket.send(json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)
        except BlockingIOError:  # he was suspended, say
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _hear(self) -> dict[str, Any] | None:
        while b"\n" not in self._rest:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, 3)
            except OSError:
                return None
            self._fds += fds
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}

    def until_gone(self, said: Callable[[dict[str, Any]], None]) -> None:
        """Hand on what he says, until he leaves."""
        while (message := self._hear()) is not None:
            with suppress(Unreachable):
                said(message)

    def gone(self) -> bool:
        """Whether he has left."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def secret(self, prompt: str) -> str | None:
        """Have a person type what is not shown."""
        self.say({"ask": "secret", "text": prompt})
        answer = (self._hear() or {}).get("answer")
        return answer if isinstance(answer, str) else None

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Have a person say yes or no, or type the fingerprint of a key, which is a yes."""
        self.say({"ask": "confirm", "text": question, "fingerprint": fingerprint})
        return (self._hear() or {}).get("answer") is True

    def close(self) -> None:
        """End the connection."""
        for fd in self._fds:
            os.close(fd)
        with suppress(OSError):  # wakes who listens
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
