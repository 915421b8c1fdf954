"""In whose name each connection is made: where that one's ssh-agent is, and so on."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping

_SOCKET = "SSH_AUTH_SOCK"


class Openers:
    """The environments of those who opened connections, and of whoever asked last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, str] = {}
        self._opened: dict[str, dict[str, str]] = {}
        self._requests = 0
        """How often somebody asked for something."""
        self._failed: dict[str, int] = {}
        """Connections that could not be made the last time, and how often somebody had asked."""

    def asked(self, environ: Mapping[str, str]) -> None:
        """Note who asks for something: what he has no word of stays as it was.

        But for an ssh-agent that does not answer: whoever has none is not told of that one.
        """
        with self._lock:
            known = {**self._last, **environ}
            if _SOCKET not in environ and not _answers(known):
                known.pop(_SOCKET, None)
            self._last = known
            self._requests += 1

    def opens(self, name: str, environ: Mapping[str, str] | None = None) -> None:
        """Note who has a connection opened, by its name: the first one, and later who can better.

        Once it could not be made in the name of one, that is whoever asks next.

        :param environ: of one who asks for it by name; None: he who asked last, if nobody did.
        """
        with self._lock:
            anew = self._requests > self._failed.get(name, self._requests)
            if name not in self._opened or anew or (environ is not None and _answers(environ)):
                self._opened[name] = dict(self._last if environ is None else environ)
                self._failed.pop(name, None)

    def failed(self, name: str) -> None:
        """Note that a connection could not be made."""
        with self._lock:
            self._failed[name] = self._requests

    def forget(self, name: str) -> None:
        """Forget who opened a connection."""
        with self._lock:
            self._opened.pop(name, None)
            self._failed.pop(name, None)

    def environ(self, name: str) -> dict[str, str]:
        """Return the environment to make a connection in.

        The ssh-agent is that of who opened it, or, should it have gone, of who asked last: a cron
        job that has none takes it from nobody.
        """
        with self._lock:
            opener = self._opened.get(name, self._last)
            environ = {**os.environ, **opener}
            if not _answers(opener):
                environ.pop(_SOCKET, None)
                if _SOCKET in self._last:
                    environ[_SOCKET] = self._last[_SOCKET]
            return environ


def _answers(environ: Mapping[str, str]) -> bool:
    """Whether there is an ssh-agent: somebody listens at its socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(environ.get(_SOCKET, ""))
        except BlockingIOError:
            return True  # so many ask that it comes to nobody
        except (OSError, ValueError):
            return False
        return True
