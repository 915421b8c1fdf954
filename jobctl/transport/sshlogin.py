"""Logging in over SSH (RFC 4252, 4256), in OpenSSH's order, asking the person where it must.

paramiko can do this, too, but never asks a server whether it would take a key before it wants
the passphrase, and answers questions in the thread that reads.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import paramiko
from paramiko import common
from paramiko.message import Message

from jobctl.transport import algorithms, hostkeys, keys
from jobctl.transport.base import Ask, Denied, NoConnection
from jobctl.transport.config import Settings
from jobctl.transport.keyagent import AgentError, AgentKey, KeyAgent, agent_of
from jobctl.transport.sshwire import Transport, in_short, words

_PK_OK = _INFO_REQUEST = _CHANGE_PASSWORD = 60
_INFO_RESPONSE = 61
_HUNG_UP = 0
# A second factor may be a telephone that somebody has to find first.
_PATIENCE = 120.0
_MOST_QUESTIONS = 50
_MOST_BANNERS = 50
_LONGEST_BANNER = 1 << 14
_QUIET = ("quiet", "silent", "fatal", "error")
"""What ssh calls its LogLevel where it does not show them; QUIET is SILENT to `ssh -G`."""


class _Reply(NamedTuple):
    """A message of the server, or _HUNG_UP."""

    kind: int
    message: Message
    methods: tuple[str, ...] = ()
    """After a failure: what may be tried next."""
    partial: bool = False
    """Whether this step succeeded, but the server wants another one."""
    text: str = ""
    """What it has to say to people."""


class _Replies:
    """What the server says while we log in; stands in for paramiko's AuthHandler."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._queue: queue.SimpleQueue[_Reply] = queue.SimpleQueue()
        self._authenticated = False
        kinds = (
            common.MSG_SERVICE_ACCEPT,
            common.MSG_USERAUTH_FAILURE,
            common.MSG_USERAUTH_SUCCESS,
            _PK_OK,
        )
        self._handler_table: Mapping[int, Callable[[Message], None]] = {
            common.MSG_USERAUTH_BANNER: self._banner,
            **{kind: self._taker(kind) for kind in kinds},
        }

    def _banner(self, message: Message) -> None:
        if not self._authenticated:
            text = words(message)[:_LONGEST_BANNER]
            self._queue.put(_Reply(common.MSG_USERAUTH_BANNER, message, text=text))

    def _taker(self, kind: int) -> Callable[[Message], None]:
        def take(message: Message) -> None:
            if self._authenticated:
                return
            reply = _Reply(kind, message)
            if kind == common.MSG_USERAUTH_FAILURE:
                methods = tuple(message.get_list())
                reply = _Reply(kind, message, methods, message.get_boolean())
            elif kind == common.MSG_USERAUTH_SUCCESS:
                self._authenticated = True
                self._transport.logged_in()
            self._queue.put(reply)

        return take

    def is_authenticated(self) -> bool:
        """Whether the login has succeeded."""
        return self._authenticated

    def abort(self) -> None:
        """Wake who waits: the connection has ended."""
        self._queue.put(_Reply(_HUNG_UP, Message()))

    def next(self, seconds: float) -> _Reply:
        """Return what the server says next."""
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return _Reply(_HUNG_UP, Message())


class _Failed(Exception):
    """The connection ended during the login."""


class _Login:
    """One login, from the first question to its end."""

    def __init__(self, transport: Transport, settings: Settings, ask: Ask, label: str) -> None:
        self.transport = transport
        self.settings = settings
        self.ask = ask
        self.label = label
        self.who = label if "@" in label else f"{settings.user}@{label}"
        """Who logs in where, by the name that the person gave the host."""
        self.tried: list[str] = []
        self.amiss: list[str] = []
        """What else is to be said of it when it has failed."""
        self.said = ""
        """How the last thing begins that the server said to people."""
        self.unanswered = False
        """There was a question, and nobody to answer it."""
        self.offers: list[keys.Offer] | None = None
        self.own_signatures = algorithms.signatures(settings)
        self.agent: KeyAgent | None = None
        self.left = {
            "password": settings.number("numberofpasswordprompts", 3),
            "keyboard-interactive": settings.number("numberofpasswordprompts", 3),
        }
        self.replies = _Replies(transport)
        transport.answer_with(self.replies)

    def run(self) -> None:
        """Log in. Raises Denied, and _Failed."""
        # Both at once: the second can be answered as soon as the first is.
        service = Message()
        service.add_byte(common.cMSG_SERVICE_REQUEST)
        service.add_string("ssh-userauth")
        began = time.monotonic()
        self.transport.say(service)
        reply = self.request("none")
        self.transport.answered_in(time.monotonic() - began)
        while reply.kind == common.MSG_SERVICE_ACCEPT:
            reply = self.answer()
        allowed = reply.methods
        while not self.replies.is_authenticated():
            attempt = self.attempt(allowed)
            if attempt is None:
                raise Denied(self.refusal(allowed))
            allowed = attempt.methods

    def attempt(self, allowed: tuple[str, ...]) -> _Reply | None:
        """Try the first way that is left and that the server allows; None if there is none."""
        ways = {
            "publickey": self.next_key,
            "keyboard-interactive": self.questions,
            "password": self.password,
        }
        for method in self.settings.methods:
            if method in allowed:
                reply = ways[method]()
                if reply is not None:
                    return reply
        return None

    def refusal(self, allowed: tuple[str, ...]) -> str:
        """Return what to tell somebody who was not let in."""
        tried = ", ".join(dict.fromkeys(self.tried)) or "nothing, as there is no key to try"
        text = f"{self.label} refuses the login of {self.settings.user}: tried {tried}"
        takes = [f"it takes {in_short(', '.join(allowed))}"] if allowed else []
        ask = "'jobctl session new' at a terminal asks for what it needs"
        said = [f"it says: {self.said}"] if self.said else []
        return "; ".join([text, *said, *self.amiss, *takes, *([ask] if self.unanswered else [])])

    def message(self, method: str) -> Message:
        """Return the beginning of a request to log in."""
        message = Message()
        message.add_byte(common.cMSG_USERAUTH_REQUEST)
        for field in (self.settings.user, "ssh-connection", method):
            message.add_string(field)
        return message

    def request(self, method: str, *fields: str | bytes | bool) -> _Reply:
        """Ask to be let in and return the answer; raise _Failed."""
        message = self.message(method)
        for field in fields:
            if isinstance(field, bool):
                message.add_boolean(field)
            else:
                message.add_string(field)
        return self.send(message, self.settings.connect_timeout)

    def send(self, message: Message, seconds: float) -> _Reply:
        """Send something and return the answer."""
        self.transport.line.limit(seconds, f"no answer to the login within {seconds:g} seconds")
        self.transport.say(message)
        return self.answer()

    def answer(self) -> _Reply:
        """Return what the server says next, to us; raise _Failed."""
        reply = self.replies.next(_PATIENCE + self.settings.connect_timeout)
        for _ in range(_MOST_BANNERS):
            if reply.kind != common.MSG_USERAUTH_BANNER:
                break
            self.show(reply.text)
            reply = self.replies.next(_PATIENCE + self.settings.connect_timeout)
        # While somebody thinks about a question, the server alone decides how long it waits.
        self.transport.line.limit(None)
        if reply.kind == _HUNG_UP:
            raise _Failed
        return reply

    def show(self, banner: str) -> None:
        """Show what the server has to say to people, as ssh does, and keep how it begins."""
        lines = [line.strip() for line in banner.splitlines() if line.strip()]
        self.said = in_short(lines[0]) if lines else self.said
        if lines and self.settings.word("loglevel").lower() not in _QUIET:
            self.ask.show(banner.rstrip("\r\n").replace("\r\n", "\n"))

    def secret(self, prompt: str) -> str | None:
        """Ask the person, unless nobody is to be asked."""
        if self.settings.flag("batchmode"):
            return None
        answer = self.ask.secret(prompt)
        self.unanswered = self.unanswered or answer is None
        return answer

    def next_key(self) -> _Reply | None:
        """Offer the next key; None when all were offered."""
        if self.offers is None:
            held = list[AgentKey]()
            try:
                self.agent, held = agent_of(self.settings)
                if self.agent and not held:
                    self.amiss.append("the key agent holds no keys, or is locked")
            except AgentError as error:
                self.amiss.append(str(error))
            self.offers, useless = keys.offers(self.settings, self.agent, held)
            self.tried += useless
        while self.offers:
            offer = self.offers.pop(0)
            try:
                reply = self.offer(offer)
            except keys.Unusable as error:
                self.tried.append(f"key {in_short(offer.name)}, which {error}")
                continue
            except AgentError as error:
                self.tried.append(
                    f"key {in_short(offer.name)}, with which the agent does not sign: {error}"
                )
                continue
            self.tried.append(f"key {in_short(offer.name)}")
            return reply
        return None

    def offer(self, offer: keys.Offer) -> _Reply:
        """Offer a key and return the answer; raise keys.Unusable or AgentError.

        A key that can be used at once is: that saves asking whether the server would take it.
        """
        private = None
        blob = offer.blob
        if not offer.agent and not (offer.encrypted and blob):
            private = self.unlock(offer)
            blob = blob or keys.public_blob(private)
        algorithm = keys.algorithm_for(
            blob, self.transport.signature_algorithms(), self.own_signatures
        )
        if private is None:
            reply = self.request("publickey", False, algorithm, blob)
            if reply.kind != _PK_OK:
                return reply
            private = None if offer.agent else self.unlock(offer)
        message = self.message("publickey")
        message.add_boolean(True)
        message.add_string(algorithm)
        message.add_string(blob)
        signed = Message()
        signed.add_string(self.transport.session_id or b"")
        data = signed.asbytes() + message.asbytes()
        if private is not None:
            signature = keys.sign(private, data, algorithm)
        else:
            assert offer.agent is not None
            signature = offer.agent.sign(offer.agent_blob, data, algorithm)
        message.add_string(signature)
        return self.send(message, self.settings.connect_timeout)

    def unlock(self, offer: keys.Offer) -> keys.PrivateKey:
        """Return a private key from its file; raise keys.Unusable."""
        if hostkeys.type_of(offer.blob).startswith("sk-"):
            raise keys.Unusable("is on a security key, which only an agent can use")
        try:
            return keys.load(offer.path, None)
        except keys.WrongPassphrase:
            pass
        for _ in range(self.settings.number("numberofpasswordprompts", 3)):
            passphrase = self.secret(f"{self.label}: Enter passphrase for key '{offer.path}': ")
            if passphrase is None:
                raise keys.Unusable("needs its passphrase")
            try:
                return keys.load(offer.path, passphrase)
            except keys.WrongPassphrase:
                continue
        raise keys.Unusable("needs another passphrase")

    def password(self) -> _Reply | None:
        """Try a password; None if there is none, or no try is left."""
        if not self.left["password"]:
            return None
        self.left["password"] -= 1
        prompt = f"{self.who}'s password: "
        secret = self.secret(prompt)
        if secret is None:
            self.left["password"] = 0
            return None
        self.tried.append("password")
        message = self.message("password")
        message.add_boolean(False)
        message.add_string(secret)
        reply = self.send(message, _PATIENCE)
        if reply.kind == _CHANGE_PASSWORD:
            raise Denied(f"{self.label}: the password of {self.settings.user} has expired")
        return reply

    def questions(self) -> _Reply | None:
        """Answer what the server asks; None if nobody does, or no try is left."""
        if not self.left["keyboard-interactive"]:
            return None
        self.left["keyboard-interactive"] -= 1
        reply = self.request("keyboard-interactive", "", "")
        for _ in range(_MOST_QUESTIONS):
            if reply.kind != _INFO_REQUEST:
                break
            answers = self.replies_to(reply.message)
            message = Message()
            message.add_byte(bytes([_INFO_RESPONSE]))
            message.add_int(len(answers))
            for answer in answers:
                message.add_string(answer)
            reply = self.send(message, _PATIENCE)
        if "keyboard-interactive" not in self.tried:  # it may have failed without a question
            self.left["keyboard-interactive"] = 0
        return reply

    def replies_to(self, message: Message) -> list[str]:
        """Return the person's answers to one round of questions, empty ones if nobody is there."""
        name, instruction, _language = (words(message) for _ in range(3))
        before = "\n".join(in_short(text) for text in (name, instruction) if text.strip())
        answers = []
        for _ in range(min(message.get_int(), _MOST_QUESTIONS)):
            prompt = in_short(words(message))
            message.get_boolean()
            text = f"{before}\n" if before else ""
            answer = self.secret(f"{text}({self.who}) {prompt} ")
            before = ""
            if answer is None:
                self.left["keyboard-interactive"] = 0
            else:
                self.tried.append("keyboard-interactive")
            answers.append(answer or "")
        return answers


def login(transport: Transport, settings: Settings, ask: Ask, label: str) -> None:
    """Log in on a connection whose host is verified. Raises Denied and NoConnection."""
    attempt = _Login(transport, settings, ask, label)
    try:
        attempt.run()
    except (_Failed, paramiko.SSHException, EOFError, OSError):
        trouble = transport.trouble()
        if transport.farewell:
            raise Denied(f"{attempt.refusal(())}; {trouble}") from None
        said = f", after it said: {attempt.said}" if attempt.said else ""
        raise NoConnection(f"cannot connect to {label}: {trouble}{said}") from None
    finally:
        if attempt.agent:
            attempt.agent.close()
