"""Which process is the agent of a state directory: it holds a lock, and its socket is there.

Both can be deleted, or replaced by somebody else's, while it lives. So it looks again and again
whether they are still its own, and takes nothing away that is not.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress

_LOCK, _SOCKET = "agent.lock", "agent.sock"
_PATIENCE = 20.0
"""Seconds for which another one may hold the lock without answering, until we give up."""


class Post:
    """The lock and the socket of the state directory that is the current one."""

    def __init__(self, state_dir: str, lock: int) -> None:
        self._state_dir = state_dir
        self._lock = lock
        self._socket: tuple[int, int] | None = None
        """What tells our socket in the directory from another one."""
        self.listener = socket.socket(socket.AF_UNIX)

    def take(self) -> bool:
        """Return whether we are the agent now: there is no other one that answers."""
        deadline = time.monotonic() + _PATIENCE
        while not self._locked():
            # Another one that is about to end will not hear what we were started for.
            # And whoever asks whether there is an agent holds the lock for a moment.
            if _served() or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        self._listen()
        return True

    def keep(self) -> bool:
        """Make sure that others can reach us; return whether they could.

        :raises NotTheAgent: another one has taken our place, or the directory is gone.
        """
        if not (_same(self._state_dir, ".") and self._locked()):
            raise NotTheAgent
        if _seen(_SOCKET) == self._socket:
            return True
        try:
            self._listen()
        except OSError:
            raise NotTheAgent from None  # there is a directory in its place, say
        return False

    def leave(self) -> None:
        """Be the agent no longer."""
        if _seen(_SOCKET) == self._socket:
            os.unlink(_SOCKET)

    def _locked(self) -> bool:
        """Return whether we hold the lock that others look at."""
        with suppress(OSError):
            if _seen(_LOCK) != _identity(os.fstat(self._lock)):
                lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.dup2(lock, self._lock, inheritable=False)
                os.close(lock)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _seen(_LOCK) == _identity(os.fstat(self._lock))
        return False

    def _listen(self) -> None:
        """Have a socket of ours in the directory, in place of what one has left who ended."""
        listener = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):
            os.unlink(_SOCKET)
        listener.bind(_SOCKET)
        listener.listen(128)
        self._socket = _seen(_SOCKET)
        before, self.listener = self.listener, listener
        before.close()


class NotTheAgent(Exception):
    """Another process has taken our place, or there is nothing left to serve."""


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def _seen(name: str) -> tuple[int, int] | None:
    """Return what tells a file from another one of the same name, None if there is none."""
    try:
        return _identity(os.lstat(name))
    except OSError:
        return None


def _same(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _served() -> bool:
    """Return whether somebody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(_SOCKET)
        except OSError:
            return False
    return True
