"""Jobs on hosts that somebody has stopped: how a host is told, and told again when it is back."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from jobctl.agent.far import Far
from jobctl.agent.hands import hand
from jobctl.agent.shares import Share
from jobctl.carried import Carried
from jobctl.errors import JobctlError, Unreachable
from jobctl.model import printable

AGAIN = 5.0
"""Seconds until a job that could not be stopped is to be stopped again."""
GRACE = 10.0
"""Seconds from TERM to KILL where nobody has said another number."""
Errors = dict[str, JobctlError]
"""By the ids of the jobs, why something was not done to them."""


class Endings:
    """What was asked of jobs stays in their folders, and is done whenever their hosts are there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = Counter[str]()
        """How many requests to stop whole jobs, or parts of them, are under way."""
        self._over: dict[str, Far] = {}
        """Where jobs are being ended, by their ids."""

    @contextmanager
    def asked_for(self, ids: Iterable[str]) -> Iterator[None]:
        """Leave it to a request, which has a grace of its own, to end jobs."""
        wholes = {job_id.partition(".")[0] for job_id in ids}
        with self._lock:
            self._requests.update(wholes)
        try:
            yield
        finally:
            with self._lock:
                self._requests.subtract(wholes)
                self._requests += Counter()  # without those of which there is none

    def back(self, job: Carried, far: Far) -> None:
        """End a job over a connection if somebody asked for that."""
        with self._lock:
            if not job.stop_asked or self._requests[job.whole] or self._over.get(job.id) is far:
                return
            self._over[job.id] = far
        hand(functools.partial(self._until_ended, job, far))

    def _until_ended(self, job: Carried, far: Far) -> None:
        try:
            while self._goes_on(job, far):
                with suppress(JobctlError, OSError):
                    if _ended_there(job, far):
                        break
                time.sleep(AGAIN)
        finally:
            with self._lock:
                if self._over.get(job.id) is far:
                    del self._over[job.id]

    def _goes_on(self, job: Carried, far: Far) -> bool:
        with self._lock:
            ours = self._over.get(job.id) is far and not self._requests[job.whole]
        unfinished = job.exists() and not job.folder.finished()
        return ours and far.alive() and unfinished and job.stop_asked


def _ended_there(job: Carried, far: Far) -> bool:
    """Have a host end a job that was stopped; return whether no more is to be asked of it.

    :raises JobctlError: it cannot be told, or does not do it.
    """
    if isinstance(job, Share):
        return job.spread.stop_there(job, far, GRACE)
    reason = os.fsdecode(job.folder.get("stop").strip())
    _, elsewhere = request_end(far, [job], GRACE, reason)
    if elsewhere:
        job.folder.unlink("stop")
    return bool(elsewhere)


def by_folder(jobs: list[Carried]) -> dict[bytes, dict[bytes, Carried]]:
    """Return jobs as serve.sh names them, by the folder of their folders."""
    found: dict[bytes, dict[bytes, Carried]] = {}
    for job in jobs:
        folder, _, name = os.fsencode(job.path).rpartition(b"/")
        found.setdefault(folder, {})[name + b":" + job.instance_id.encode()] = job
    return found


def request_end(
    far: Far, jobs: list[Carried], grace: float, reason: str
) -> tuple[list[str], Errors]:
    """Have a host end jobs.

    :return: the ids of those of which something is left, and errors by the ids of those that run
        on another machine.
    :raises JobctlError: it cannot be told, or does not do it.
    """
    left, elsewhere = list[str](), Errors()
    for folder, group in by_folder(jobs).items():
        words = (folder, b"%.0f" % (grace * 100), os.fsencode(reason), *group)
        answer = far.request("end", *words, seconds=grace + 60).split()
        elsewhere |= elsewhere_of(answer, group)
        left += named(answer, group)
    return left, elsewhere


def named(answer: list[bytes], group: dict[bytes, Carried]) -> list[str]:
    """Return the ids of the jobs that runner.sh printed the numbers of."""
    return [job.id for word, job in group.items() if word.partition(b":")[0] in answer]


def elsewhere_of(answer: list[bytes], group: dict[bytes, Carried]) -> Errors:
    """Return errors by the ids of the jobs of which runner.sh said NUMBER@HOST."""
    hosts = dict(word.split(b"@", 1) for word in answer if b"@" in word)
    return {
        job.id: Unreachable(
            f"it runs on {printable(os.fsdecode(host))}, which shares the state directory of"
            f" {printable(job.host)}"
        )
        for word, job in group.items()
        if (host := hosts.get(word.partition(b":")[0])) is not None
    }


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Return when that is so, or time is up."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
