"""Whoever asks the agent for something, and the person at his terminal."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from jobctl.errors import Unreachable
from jobctl.transport.base import Ask, Cancelled


class Client:
    """Whoever made a request, and the person at his terminal."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        self._fds: list[int] = []
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._answers: SimpleQueue[dict[str, Any] | None] | None = None
        """What he answers, where until_gone() hears it."""
        self.jobs = frozenset[str]()
        """The whole jobs that he waits for."""
        self.asked = False
        """Whether he owes an answer, should he be gone too."""

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

    def attend(self) -> None:
        """Have until_gone() hear his answers from now on, as he is asked meanwhile."""
        self._answers = SimpleQueue()

    def until_gone(self, said: Callable[[dict[str, Any]], None]) -> None:
        """Hand on what he says, until he leaves."""
        while (message := self._hear()) is not None:
            if self._answers and "answer" in message:
                self._answers.put(message)
                continue
            with suppress(Unreachable):
                said(message)
        if self._answers:
            self._answers.put(None)

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
        answer = self._ask({"ask": "secret", "text": prompt})
        return answer if isinstance(answer, str) else None

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Have a person say yes or no, or type the fingerprint of a key, which is a yes."""
        return self._ask({"ask": "confirm", "text": question, "fingerprint": fingerprint}) is True

    def show(self, text: str) -> None:
        """Have a person read something."""
        self.say({"show": text})

    def _ask(self, question: dict[str, Any]) -> object:
        """Return the answer to a question, None from where there is no terminal.

        :raises Cancelled: he has left.
        """
        with self._asking:
            self.asked = True
            self.say(question)
            message = self._answers.get() if self._answers else self._hear()
            if message is None and self._answers:
                self._answers.put(None)  # for the next question
            if message is None:
                raise Cancelled("he who was asked has left")
            self.asked = False
            return message.get("answer")

    def close(self) -> None:
        """End the connection."""
        for fd in self._fds:
            os.close(fd)
        with suppress(OSError):  # wakes who listens
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class People:
    """Those at terminals who wait for jobs, and may be asked."""

    def __init__(self) -> None:
        self._waiting: dict[Client, frozenset[str]] = {}
        self._cancelled = set[str]()
        """Jobs for which somebody was asked something, and left."""
        self._lock = threading.Lock()

    def come(self, client: Client, jobs: Iterable[str]) -> None:
        """Note that somebody waits for jobs, which may not be there yet."""
        client.attend()
        with self._lock:
            self._waiting[client] = frozenset(jobs)
            self._cancelled -= self._waiting[client]

    def leave(self, client: Client) -> None:
        """Forget somebody, who need not be known."""
        with self._lock:
            ids = self._waiting.pop(client, frozenset())
            if client.asked:
                self._cancelled |= ids

    def who_waits(self, jobs: Iterable[str]) -> Ask | None:
        """Return somebody who waits for one of some jobs."""
        wanted = frozenset(jobs)
        with self._lock:
            for who, ids in self._waiting.items():
                if wanted & ids and not who.gone():
                    return who
            return Gone() if wanted & self._cancelled else None


class Nobody:
    """No person at a terminal."""

    def secret(self, prompt: str) -> str | None:
        """Return None."""
        return None

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Return False."""
        return False

    def show(self, text: str) -> None:
        """Show it to nobody."""


class Gone(Nobody):
    """A person who has left when another host of the same job asked something."""

    def secret(self, prompt: str) -> str | None:
        """Raise Cancelled."""
        raise Cancelled("he who was asked has left")

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Raise Cancelled."""
        raise Cancelled("he who was asked has left")


Read: TypeAlias = "WeakKeyDictionary[Ask, set[str]]"
"""What was shown to whom."""


class Whoever:
    """Asks whoever is there at the time of the question."""

    def __init__(
        self, person: Callable[[], Ask], reader: Callable[[], Ask], read: Read | None = None
    ) -> None:
        self._person = person
        self._reader = reader
        """Returns who may read something, should there be anybody."""
        self._read: Read = WeakKeyDictionary() if read is None else read

    def secret(self, prompt: str) -> str | None:
        """Ask for what is not shown."""
        return self._person().secret(prompt)

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Ask whether a key is to be trusted."""
        return self._person().confirm(question, fingerprint)

    def show(self, text: str) -> None:
        """Show something that he has not read yet."""
        reader = self._reader()
        texts = self._read.setdefault(reader, set())
        if text not in texts:
            texts.add(text)
            reader.show(text)
