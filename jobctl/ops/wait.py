"""Waits for jobs to finish, without looking at those that do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jobctl import process, records
from jobctl.errors import Refused
from jobctl.folder import Folder
from jobctl.jobs import Jobs
from jobctl.links import Links
from jobctl.model import TYPE_REMOTE, Job, State, order
from jobctl.process import Identity, Watch
from jobctl.runner import resume
from jobctl.share import FarTask
from jobctl.task import Part, Task

if TYPE_CHECKING:
    from jobctl.agent.client import Asked

_AGAIN = 0.2
"""Seconds until the next look at a job that no process tells about."""
_ENDING = 0.02
"""The same where all items of a job have ended."""
_NEWS = "news"
Tell = Callable[[str], None]
"""Says something to people, a line at a time."""


class Ends:
    """The ends of a set of jobs, as they come."""

    def __init__(
        self,
        jobs: Jobs,
        ids: Iterable[str],
        force: bool = True,
        ask: Asked | None = None,
        news: News | None = None,
        tell: Tell | None = None,
    ) -> None:
        """Begin to wait.

        :param force: also for jobs whose session was disconnected on purpose; else wait()
            raises Refused.
        :param ask: has a person at the terminal answer what hosts want to know.
        :param news: of these jobs, if somebody listens already.
        :param tell: is told why a host, or another machine, is waited for.
        """
        self._jobs = jobs
        self._boot = process.boot_id()
        self._watch = Watch()
        self._watched: set[str] = set()
        self._far: set[str] = set()
        self._items: dict[Task, set[int]] = {}
        """The items that were not told yet, of which there may be many."""
        self._told: dict[Task, int] = {}
        self._held = set[str]()
        """Jobs of other machines, of which that was told."""
        self._ending = False
        """Whether all items of a job have ended, and its own end is about to be written down."""
        self._others = set[str]()
        self._folders = dict[str, Folder]()
        """Of all but items, until they are told."""
        for job_id in ids:
            folder = jobs.folder(job_id)
            if isinstance(folder, Part):
                self._items.setdefault(folder.task, set()).add(folder.number)
            else:
                self._others.add(job_id)
                self._folders[job_id] = folder
        self._ask = ask
        self._tell = tell
        self._news = news
        if news:
            news.listen(self._watch)
        self._book = None if force else Links(jobs.state_dir)

    @property
    def lively(self) -> set[str]:
        """The ids of the jobs that were not told yet; of items, those that run."""
        items = (
            f"{task.id}.{number}"
            for task, numbers in self._items.items()
            for number in numbers.intersection(task.running())
        )
        return self._watched | self._others | self._far | set(items)

    @property
    def unfinished(self) -> bool:
        """Whether there are any."""
        return bool(self._watched or self._others or self._far or self._items)

    def wait(self, timeout: float) -> list[tuple[str, Job | None]]:
        """Return the jobs that finished, None for one that was removed.

        Returns without any after timeout seconds.
        """
        ended = self._look()
        if not ended and self.unfinished:
            soon = self._others or self._items
            again = _ENDING if self._ending else _AGAIN
            keys = self._watch.wait(min(timeout, again) if soon else timeout)
            if _NEWS in keys and self._news:
                # What happened before we were heard is seen by one more look.
                changed = self._news.changed(self._watch)
                changed = self._far if changed is None else changed & self._far
                keys = (keys - {_NEWS}) | {job_id for job_id in changed if self._matters(job_id)}
            self._watched -= keys
            self._far -= keys
            self._others |= keys
            ended = self._look()
        return ended

    def _matters(self, job_id: str) -> bool:
        """Whether the news of a job on a host may be what is waited for."""
        folder = self._folders[job_id]
        if folder.finished() or not folder.exists():
            return True
        return self._book is not None and bool(folder.session)

    def _look_at_items(self) -> list[tuple[str, Job | None]]:
        ended, self._ending = list[tuple[str, Job | None]](), False
        for task in list(self._items):
            wanted = self._items[task]
            resume(task)
            self._tell_who_has(task.read(self._boot))  # what is lost is found out by that
            if not task.exists() or task.finished():
                numbers = sorted(wanted)
            else:
                # Each is in here once; those that ended before we looked first too.
                told = self._told.get(task, 0)
                news = task.ended_since(told)
                if told + len(news) == task.count:
                    # Who is told of the last one is to find the whole job finished.
                    self._ending = True
                    continue
                self._told[task] = told + len(news)
                numbers = sorted(wanted.intersection(news))
            ended += ((f"{task.id}.{n}", task.part(n, self._boot)) for n in numbers)
            wanted.difference_update(numbers)
            if not wanted:
                del self._items[task]
        return ended

    def _look(self) -> list[tuple[str, Job | None]]:
        ended = self._look_at_items()
        for job_id in sorted(self._others, key=order):
            folder = self._folders[job_id]
            # Its files tell that it goes on: to read the whole takes longer.
            far = folder.is_far and folder.exists() and not folder.finished()
            job = None if far else folder.read(self._boot)
            self._tell_who_has(job)
            if not far and (job is None or job.state.finished):
                self._others.discard(job_id)
                del self._folders[job_id]
                ended.append((job_id, job))
            elif far or (job and job.type == TYPE_REMOTE):
                if self._book and folder.session and self._book.disconnected(folder.session):
                    raise Refused(
                        f"job {job_id}: session {folder.session} was disconnected; connect it, or"
                        " wait all the same with --force"
                    )
                self._others.discard(job_id)
                self._far.add(job_id)
            elif keeper := folder.watched(self._boot) or _resumed(folder, self._boot):
                self._watch.add(job_id, keeper)
                self._others.discard(job_id)
                self._watched.add(job_id)
        if self._news is None:
            ids = {job_id.partition(".")[0] for job_id in self._far}
            for folder in [*self._folders.values(), *self._items]:
                if isinstance(folder, FarTask):
                    ids.add(folder.id)
                else:
                    ids |= self._far_before(folder)
            if ids:
                self._news = News(self._jobs.state_dir, ids, self._ask, self._tell)
                self._news.listen(self._watch)
        return ended

    def _tell_who_has(self, job: Job | None) -> None:
        """Tell once why a job is waited for that only another machine can act on."""
        if not (self._tell and job) or job.id in self._held:
            return
        if job.state is State.DISCONNECTED and job.type != TYPE_REMOTE:
            self._held.add(job.id)
            self._tell(f"waiting: job {job.id} {job.reason}")

    def _far_before(self, folder: Folder) -> set[str]:
        """Return the ids of jobs on hosts that a job here waits for, itself or by others."""
        spec, found = folder.spec(), set[str]()
        needed = spec.get("after", b"") + b" " + spec.get("after_ok", b"")
        for number in records.text(needed).split():
            other = self._jobs.folder(number)
            if not other.exists() or other.finished():
                continue
            if other.remote:
                found.add(number)
            else:
                found |= self._far_before(other)
        return found


def _resumed(folder: Folder, boot: str) -> Identity | None:
    """Return a process that goes on with a job whose slots were killed, if it is such a job."""
    if not isinstance(folder, Task):
        return None
    resume(folder)
    return folder.watched(boot)


class News:
    """What the agent tells of jobs on hosts, until we end."""

    def __init__(
        self,
        state_dir: str,
        ids: Iterable[str],
        ask: Asked | None = None,
        tell: Tell | None = None,
    ) -> None:
        """Begin to be told.

        :param ids: what the agent is to look after, should it not know.
        :param ask: has a person at the terminal answer what hosts want to know.
        :param tell: is told, once each, for what reasons these jobs do not go on.
        """
        self._state_dir = state_dir
        self._ids = sorted(ids)
        self._ask = ask
        self._tell = tell
        self._reasons = set[str]()
        self._subscribe()

    def _subscribe(self) -> None:
        from jobctl.agent.client import Talk

        request = {"op": "subscribe", "jobs": self._ids, "person": self._ask is not None}
        self._talk = Talk(self._state_dir, request)

    def listen(self, watch: Watch) -> None:
        """Have watch wake when there is something to hear."""
        watch.listen(_NEWS, self._talk.socket.fileno())

    def changed(self, watch: Watch) -> set[str] | None:
        """Return the ids of the jobs that the agent tells of; None: it may be any.

        So it is when it has just begun to listen to us, and when it was killed.
        """
        messages = self._talk.pending()
        if messages is None:
            watch.ignore(self._talk.socket.fileno())
            self._talk.close()
            self._subscribe()
            self.listen(watch)
            return None
        told = [message for message in messages if not self._heed(message)]
        if any("job" not in message for message in told):
            return None
        return {message["job"] for message in told}

    def _heed(self, message: dict[str, Any]) -> bool:
        """Pass on what is for people; return whether it was that."""
        reason = message.get("waiting")
        if reason is None:
            return self._talk.heed(message, self._ask)
        if self._tell and reason not in self._reasons:
            self._reasons.add(reason)
            self._tell(f"waiting: {reason}")
        return True


def finished(
    jobs: Jobs,
    ids: Iterable[str],
    deadline: float | None,
    beat: float = 3600.0,
    force: bool = True,
    ask: Asked | None = None,
    tell: Tell | None = None,
) -> Iterator[list[tuple[str, Job | None]]]:
    """Yield jobs as they finish, None for a removed one, until all have or time is up.

    :param deadline: when to give up, by time.monotonic().
    :param beat: seconds after which to yield even if nothing happened.
    :param ask: has a person at the terminal answer what hosts want to know.
    :param tell: is told why a host that is waited for is out of reach.
    """
    ends = Ends(jobs, ids, force, ask, tell=tell)
    while ends.unfinished:
        left = beat if deadline is None else min(beat, deadline - time.monotonic())
        ended = ends.wait(max(0.0, left))
        yield ended
        if not ended and deadline is not None and time.monotonic() >= deadline:
            return
