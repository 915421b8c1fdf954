"""An ssh-agent: which keys it holds, and signatures made by it."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from jobctl.model import printable
from jobctl.transport.config import Settings

_REQUEST_IDENTITIES, _IDENTITIES = 11, 12
_SIGN_REQUEST, _SIGN_RESPONSE = 13, 14
_FLAGS = {"rsa-sha2-256": 2, "rsa-sha2-512": 4}
_MOST_BYTES = 256 * 1024  # as OpenSSH's MAX_AGENT_REPLY_LEN
_LIST_SECONDS = 10.0
# Somebody may have to touch a token, or to confirm the use of a key.
_SIGN_SECONDS = 120.0


class AgentError(Exception):
    """The agent does not answer as it should. The message says why, after what it was asked."""


class AgentKey(NamedTuple):
    """A public key whose private part the agent holds."""

    blob: bytes
    comment: str


class KeyAgent:
    """A connection to an agent. Raises AgentError."""

    def __init__(self, path: str) -> None:
        """Connect to the agent that listens at path."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(_LIST_SECONDS)
            self._socket.connect(path)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise AgentError(_words(error)) from None

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def keys(self) -> list[AgentKey]:
        """Return the keys that it holds."""
        answer = self._ask(_IDENTITIES, bytes([_REQUEST_IDENTITIES]), _LIST_SECONDS)
        found, rest = [], answer[4:]
        for _ in range(int.from_bytes(answer[:4], "big")):
            blob, rest = unpack(rest)
            comment, rest = unpack(rest)
            found.append(AgentKey(blob, comment.decode("utf-8", "replace")))
        return found

    def sign(self, blob: bytes, data: bytes, algorithm: str) -> bytes:
        """Return the signature of data by a key, in the form that SSH sends."""
        flags = struct.pack(">I", _FLAGS.get(algorithm.partition("-cert-")[0], 0))
        request = bytes([_SIGN_REQUEST]) + pack(blob) + pack(data) + flags
        return unpack(self._ask(_SIGN_RESPONSE, request, _SIGN_SECONDS))[0]

    def _ask(self, expected: int, request: bytes, seconds: float) -> bytes:
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(pack(request))
            (length,) = struct.unpack(">I", self._receive(4))
            if not 0 < length <= _MOST_BYTES:
                raise AgentError("its answer is no answer")
            answer = self._receive(length)
        except OSError as error:
            raise AgentError(_words(error)) from None
        if answer[0] != expected:
            raise AgentError("it refuses")
        return answer[1:]

    def _receive(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            if not part:
                raise AgentError("it hung up")
            parts += part
        return parts


def _words(error: Exception) -> str:
    """Return what an error is called, as part of a sentence."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return text[:1].lower() + text[1:]


def pack(data: bytes) -> bytes:
    """Return data as a string of the SSH protocol."""
    return struct.pack(">I", len(data)) + data


def unpack(data: bytes) -> tuple[bytes, bytes]:
    """Return the string that data begins with, and the rest; raise AgentError for a short one."""
    if len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        raise AgentError("its answer is too short")
    end = 4 + int.from_bytes(data[:4], "big")
    return data[4:end], data[end:]


def agent_of(settings: Settings) -> tuple[KeyAgent | None, list[AgentKey]]:
    """Return the agent that the configuration names, else that of the environment, and its keys.

    Raises AgentError with a whole sentence if there is none, but for one that is not wanted, or
    if it does not answer.
    """
    value = settings.values.get("identityagent", "SSH_AUTH_SOCK")
    if value.lower() == "none":
        return None, []
    if value == "SSH_AUTH_SOCK":
        path = settings.environ.get(value, "")
    elif value.startswith("$") and not value.startswith("${"):
        path = settings.environ.get(value[1:], "")
    else:
        path = settings.expand(value)
    if not path:
        name = printable(value.lstrip("$"))
        raise AgentError(f"{name} is not set, so no key agent is asked")
    try:
        agent = KeyAgent(path)
        return agent, agent.keys()
    except AgentError as error:
        shown = printable(path)
        raise AgentError(f"the key agent at {shown} does not answer: {error}") from None
