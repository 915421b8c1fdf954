"""Whoever asks the agent for something, and the person at his terminal."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any
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


class Whoever:
    """Asks one of those who wait for a connection, or else for a job over it; tells the others."""

    def __init__(
        self,
        label: str,
        waiting: Callable[[], Ask | None],
        hold_up: Callable[[str, Ask | None], None],
    ) -> None:
        """Ask in the name of a host.

        :param waiting: returns somebody at a terminal who waits for a job.
        :param hold_up: tells all who wait for jobs, but for one, why these do not go on.
        """
        self._why = f"{label} has asked a question at another terminal"
        self._waiting = waiting
        self._hold_up = hold_up
        self._lock = threading.Lock()
        self._askers: list[Ask] = []
        """Who waits for the connection itself."""
        self._asked: Ask | None = None
        """Who has yet to answer a question."""
        self._read: WeakKeyDictionary[Ask, set[str]] = WeakKeyDictionary()
        """What was shown to whom."""
        self.unheard = False
        """There was a question, and nobody to answer it."""

    @contextmanager
    def beside(self, person: Ask | None) -> Iterator[None]:
        """Have somebody answer questions, who waits for the connection meanwhile."""
        if not person:
            yield
            return
        with self._lock:
            self._askers.append(person)
        try:
            self.remind()
            yield
        finally:
            self._leave(person)

    def present(self) -> Ask:
        """Return who can be asked now."""
        with self._lock:
            if self._askers:
                return self._askers[0]
        return self._waiting() or Nobody()

    def remind(self) -> None:
        """Tell those who wait that somebody else is asked, if somebody is."""
        with self._lock:
            asked, others = self._asked, [ask for ask in self._askers if ask is not self._asked]
        if asked:
            self._hold_up(self._why, asked)
            for other in others:
                self.show_to(other, f"jobctl: waiting: {self._why}")

    def secret(self, prompt: str) -> str | None:
        """Ask for what is not shown."""
        with self._person() as person:
            return person.secret(prompt)

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Ask whether a key is to be trusted."""
        with self._person() as person:
            return person.confirm(question, fingerprint)

    def show(self, text: str) -> None:
        """Show something to who can be asked, if he has not read it yet."""
        self.show_to(self.present(), text)

    def show_to(self, reader: Ask, text: str) -> None:
        """Show something to somebody who has not read it yet."""
        with self._lock:
            texts = self._read.setdefault(reader, set())
            if text in texts:
                return
            texts.add(text)
        reader.show(text)

    @contextmanager
    def _person(self) -> Iterator[Ask]:
        """Give who can be asked; who leaves instead of an answer waits no more."""
        person = self.present()
        if isinstance(person, Nobody):
            self.unheard = True
            yield person
            return
        self._asked = person
        self.remind()
        try:
            yield person
        except Cancelled:
            self._leave(person)
            raise
        finally:
            self._asked = None

    def _leave(self, person: Ask) -> None:
        with self._lock:
            self._askers = [other for other in self._askers if other is not person]


class One:
    """Asks just one of those who wait for a connection, or nobody."""

    def __init__(self, person: Ask | None, whoever: Whoever) -> None:
        self._person = person or Nobody()
        self._whoever = whoever

    def secret(self, prompt: str) -> str | None:
        """Ask for what is not shown."""
        return self._person.secret(prompt)

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Ask whether a key is to be trusted."""
        return self._person.confirm(question, fingerprint)

    def show(self, text: str) -> None:
        """Show something that he has not read yet."""
        self._whoever.show_to(self._person, text)
