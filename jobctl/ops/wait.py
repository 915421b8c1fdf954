"""Waits for jobs to finish, without looking at those that do not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from jobctl import process
from jobctl.errors import Refused
from jobctl.folder import Jobs
from jobctl.links import Links
from jobctl.model import TYPE_REMOTE, Job, order
from jobctl.process import Watch

_AGAIN = 0.2
"""Seconds until the next look at a job that no process tells about."""
_NEWS = "news"


class Ends:
    """The ends of a set of jobs, as they come."""

    def __init__(self, jobs: Jobs, ids: Iterable[str], force: bool = True) -> None:
        """Begin to wait.

        :param force: also for jobs whose session was disconnected on purpose; else wait()
            raises Refused.
        """
        self._jobs = jobs
        self._boot = process.boot_id()
        self._watch = Watch()
        self._watched: set[str] = set()
        self._far: set[str] = set()
        self._others = set(ids)
        self._news: News | None = None
        self._book = None if force else Links(jobs.state_dir)

    @property
    def open(self) -> set[str]:
        """The ids of the jobs that were not told yet."""
        return self._watched | self._others | self._far

    def wait(self, timeout: float) -> list[tuple[str, Job | None]]:
        """Return the jobs that finished, None for one that was removed.

        Returns without any after timeout seconds.
        """
        ended = self._look()
        if not ended and self.open:
            keys = self._watch.wait(min(timeout, _AGAIN) if self._others else timeout)
            if _NEWS in keys and self._news:
                # What happened before we were heard is seen by one more look.
                changed = self._news.changed(self._watch)
                keys = (keys - {_NEWS}) | (self._far if changed is None else changed & self._far)
            self._watched -= keys
            self._far -= keys
            self._others |= keys
            ended = self._look()
        return ended

    def _look(self) -> list[tuple[str, Job | None]]:
        ended = []
        for job_id in sorted(self._others, key=order):
            folder = self._jobs.folder(job_id)
            job = folder.read(self._boot)
            if job is None or job.state.finished:
                self._others.discard(job_id)
                ended.append((job_id, job))
            elif job.type == TYPE_REMOTE:
                if self._book and job.session and self._book.disconnected(job.session):
                    raise Refused(
                        f"job {job_id}: session {job.session} was disconnected; connect it, or"
                        " wait all the same with --force"
                    )
                self._others.discard(job_id)
                self._far.add(job_id)
            elif keeper := folder.watched(self._boot):
                self._watch.add(job_id, keeper)
                self._others.discard(job_id)
                self._watched.add(job_id)
        if self._far and self._news is None:
            self._news = News(self._jobs.state_dir, self._watch)
        return ended


class News:
    """What the agent tells of jobs on hosts, until we end."""

    def __init__(self, state_dir: str, watch: Watch) -> None:
        self._state_dir = state_dir
        self._listen(watch)

    def _listen(self, watch: Watch) -> None:
        from jobctl.agent.client import Talk

        self._talk = Talk(self._state_dir, {"op": "subscribe"})
        watch.listen(_NEWS, self._talk.socket.fileno())

    def changed(self, watch: Watch) -> set[str] | None:
        """Return the ids of the jobs that the agent tells of; None: it may be any.

        So it is when it has just begun to listen to us, and when it was killed.
        """
        messages = self._talk.pending()
        if messages is None:
            watch.ignore(self._talk.socket.fileno())
            self._talk.close()
            self._listen(watch)
            return None
        if any("job" not in message for message in messages):
            return None
        return {message["job"] for message in messages}


def finished(
    jobs: Jobs,
    ids: Iterable[str],
    deadline: float | None,
    beat: float = 3600.0,
    force: bool = True,
) -> Iterator[list[tuple[str, Job | None]]]:
    """Yield jobs as they finish, None for a removed one, until all have or time is up.

    :param deadline: when to give up, by time.monotonic().
    :param beat: seconds after which to yield even if nothing happened.
    """
    ends = Ends(jobs, ids, force)
    while ends.open:
        left = beat if deadline is None else min(beat, deadline - time.monotonic())
        ended = ends.wait(max(0.0, left))
        yield ended
        if not ended and deadline is not None and time.monotonic() >= deadline:
            return
