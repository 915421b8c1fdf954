"""Waits for jobs to finish, without looking at those that do not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from jobctl import process
from jobctl.folder import Jobs
from jobctl.model import Job
from jobctl.process import Watch

_AGAIN = 0.2
"""Seconds until the next look at a job that no process tells about."""


class Ends:
    """The ends of a set of jobs, as they come."""

    def __init__(self, jobs: Jobs, numbers: Iterable[int]) -> None:
        self._jobs = jobs
        self._boot = process.boot_id()
        self._watch = Watch()
        self._watched: set[int] = set()
        self._others = set(numbers)

    @property
    def open(self) -> set[int]:
        """The numbers of the jobs that were not told yet."""
        return self._watched | self._others

    def wait(self, timeout: float) -> list[tuple[int, Job | None]]:
        """Return the jobs that finished, None for one that was removed.

        Returns without any after timeout seconds.
        """
        ended = self._look()
        if not ended and self.open:
            keys = self._watch.wait(min(timeout, _AGAIN) if self._others else timeout)
            numbers = {int(key) for key in keys}
            self._watched -= numbers
            self._others |= numbers
            ended = self._look()
        return ended

    def _look(self) -> list[tuple[int, Job | None]]:
        ended = []
        for number in sorted(self._others):
            folder = self._jobs.folder(number)
            job = folder.read(self._boot)
            if job is None or job.state.finished:
                self._others.discard(number)
                ended.append((number, job))
            elif keeper := folder.watched(self._boot):
                self._watch.add(str(number), keeper)
                self._others.discard(number)
                self._watched.add(number)
        return ended


def finished(
    jobs: Jobs, numbers: Iterable[int], deadline: float | None, beat: float = 3600.0
) -> Iterator[list[tuple[int, Job | None]]]:
    """Yield jobs as they finish, None for a removed one, until all have or time is up.

    :param deadline: when to give up, by time.monotonic().
    :param beat: seconds after which to yield even if nothing happened.
    """
    ends = Ends(jobs, numbers)
    while ends.open:
        left = beat if deadline is None else min(beat, deadline - time.monotonic())
        ended = ends.wait(max(0.0, left))
        yield ended
        if not ended and deadline is not None and time.monotonic() >= deadline:
            return
