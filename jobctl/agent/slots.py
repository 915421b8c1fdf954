"""Which children of a job on many hosts may run: each job has only so many at a time."""

from __future__ import annotations

import threading
from collections import deque

from jobctl.carried import Carried


class Slots:
    """The children of all jobs. What it knows is found anew when the agent was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, set[str]] = {}
        self._held: dict[str, deque[Carried]] = {}

    @property
    def busy(self) -> bool:
        """Whether a child waits for another one's end."""
        return bool(self._held)

    def take(self, job: Carried, most: int) -> bool:
        """Return whether a child may run now; if not, it is given out later by give_back().

        :param most: children of its parent that may run at once.
        """
        parent = _parent(job)
        with self._lock:
            if job.folder.finished():  # meanwhile, and will give nothing back any more
                return True
            running = self._running.setdefault(parent, set())
            if job.sent or job.adopted or job.id in running or len(running) < most:
                running.add(job.id)
                return True
            held = self._held.setdefault(parent, deque())
            if all(other.id != job.id for other in held):
                held.append(job)
            return False

    def give_back(self, job: Carried) -> Carried | None:
        """Return the child that may run as this one does no more."""
        parent = _parent(job)
        with self._lock:
            running, held = self._running.get(parent, set()), self._held.get(parent)
            if job.id not in running:
                return None
            running.discard(job.id)
            following = held.popleft() if held else None
            if following:
                running.add(following.id)
            self._tidy(parent)
            return following

    def keep(self, parents: set[str]) -> None:
        """Forget the children of all other jobs."""
        with self._lock:
            for known in (self._running, self._held):
                for parent in known.keys() - parents:
                    del known[parent]

    def withdraw(self, job: Carried) -> bool:
        """Take back a child that waits; return False if it does not."""
        parent = _parent(job)
        with self._lock:
            for other in self._held.get(parent, ()):
                if other.id == job.id:
                    self._held[parent].remove(other)
                    self._tidy(parent)
                    return True
        return False

    def _tidy(self, parent: str) -> None:
        for known in (self._running, self._held):
            if parent in known and not known[parent]:
                del known[parent]


def _parent(job: Carried) -> str:
    return job.id.partition(".")[0]
