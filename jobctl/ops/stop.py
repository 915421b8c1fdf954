"""Stops jobs, or sends them a signal."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from jobctl import process, runner
from jobctl.errors import JobctlError, Unreachable
from jobctl.jobs import Jobs
from jobctl.model import TYPE_REMOTE, TYPE_TASK, Job, State
from jobctl.task import Task

if TYPE_CHECKING:
    from jobctl.agent.client import Asked

_WHOLE = 0
"""In place of an item's number: all of them."""
_TO_BE_TOLD = 20.0
"""Seconds that the end of an item takes, at most, to be written down."""
_MOMENT = 0.01
_ENDS = "end it"
_THERE = " {}; act on it there"


class NotActedOn(JobctlError):
    """What was to be done to a job was not, or not wholly."""

    def __init__(self, job_id: str, why: str, status: int = 0) -> None:
        """Say so of a job."""
        self.job = job_id
        self.status = status or self.status
        super().__init__(f"job {job_id}{why}")


class Unended(NotActedOn):
    """Something of a job cannot be ended."""

    def __init__(self, job_id: str) -> None:
        """Say so of a job."""
        super().__init__(
            job_id,
            ": some of its processes cannot be ended (another user's, or in uninterruptible"
            " sleep); stop it again later",
        )


class Cut(NotActedOn):
    """The process that was to do something to a job was killed."""

    def __init__(self, job_id: str, what: str) -> None:
        """Say so of a job, and what it was to do."""
        super().__init__(job_id, f": the process that was to {what} was killed; do it again")


class Unreached(NotActedOn):
    """A signal reached nothing of a job."""

    status = 1

    def __init__(self, job_id: str, name: str) -> None:
        """Say so of a job."""
        super().__init__(
            job_id, f": signal {name} reached none of its processes, which are another user's"
        )


class Unbegun(NotActedOn):
    """There is nothing yet that a signal could be sent to."""

    status = 1

    def __init__(self, job_id: str) -> None:
        """Say so of a job."""
        super().__init__(
            job_id,
            " has not begun, so there is nothing to send a signal to; without --signal, stop ends"
            " it before it begins",
        )


class Away(NotActedOn):
    """A job runs on another machine that shares our state directory."""

    status = Unreachable.status

    def __init__(self, job_id: str, why: str) -> None:
        """Say so of a job."""
        super().__init__(job_id, why)


def stop(
    jobs: Jobs,
    chosen: list[Job],
    grace: float,
    reason: str,
    reach: bool = True,
    ask: Asked | None = None,
) -> list[JobctlError]:
    """End all that these jobs, none of them a parent, started; finished ones' leftovers included.

    :param grace: seconds from TERM to KILL.
    :param reach: also connect to hosts where there can be leftovers only.
    :param ask: has a person at the terminal answer what hosts want to know.
    :return: an error for each job of which something is left.
    """
    why = f"stopped by user: {' '.join(reason.split())}" if reason.strip() else "stopped by user"
    errors = _stop_items(jobs, chosen, grace, why)
    here, away = reachable(chosen)
    errors += away
    finished = any(job.state.finished for job in here)
    living = runner.bearers() if finished else set()
    sessions = process.sessions() if finished else set()
    targets = [
        (jobs.folder(job.id), job.instance_id)
        for job in here
        if not job.state.finished or job.instance_id in living or job.pid in sessions
    ]
    try:
        errors += [Unended(job_id) for job_id in sorted(runner.stop(targets, grace, why))]
    except runner.Cut:
        errors += [Cut(folder.id, _ENDS) for folder, _ in targets]
    there = [
        job
        for job in on_hosts(chosen)
        if not job.state.finished
        or ((job.pid or job.child_count) and (reach or _connected(jobs, job)))
    ]
    return errors + ask_hosts(jobs, "stop", there, ask, grace=grace, reason=why)


def _stop_items(jobs: Jobs, chosen: list[Job], grace: float, why: str) -> list[JobctlError]:
    """End items of jobs, or all that such jobs have, as stop() does."""
    errors = list[JobctlError]()
    found, away = _reachable_items(_items(jobs, chosen))
    errors += away
    single = any(_WHOLE not in numbers for numbers in found.values())
    living = runner.bearers() if single else set()
    for task, numbers in found.items():
        if _WHOLE in numbers:
            acted = {_WHOLE}
        else:
            acted = {n for n in numbers if not task.ended(n) and not task.withdraw(n, why)}
            acted |= {n for n in numbers - acted if task.cookie(n) in living}
        task.wake_slots()
        try:
            left = runner.stop_items(task, sorted(acted), grace, why)
        except runner.Cut:
            errors.append(Cut(task.id, _ENDS))
            continue
        if left or not _all_ended(task, acted):
            errors.append(Unended(task.id))
    return errors


def _all_ended(task: Task, numbers: set[int]) -> bool:
    """Wait until the ends of items that were stopped are written down."""
    deadline = time.monotonic() + _TO_BE_TOLD
    while time.monotonic() < deadline:
        if all(task.ended(n) if n != _WHOLE else task.finished() for n in numbers):
            return True
        if not task.exists():
            return True
        task.read(process.boot_id())  # should a slot have been killed, this finds it
        time.sleep(_MOMENT)
    return False


def _items(jobs: Jobs, chosen: list[Job]) -> dict[Task, set[int]]:
    """Return the chosen items by their jobs; _WHOLE stands for all."""
    found: dict[Task, set[int]] = {}
    for job in chosen:
        whole, _, number = job.id.partition(".")
        task = jobs.folder(whole) if job.type == TYPE_TASK else None
        if isinstance(task, Task):
            found.setdefault(task, set()).add(int(number) if number else _WHOLE)
    return found


def _reachable_items(
    found: dict[Task, set[int]],
) -> tuple[dict[Task, set[int]], list[JobctlError]]:
    """Return the items that can be acted on, as reachable() does."""
    boot = process.boot_id()
    away = {task: reason for task in found if (reason := task.elsewhere(boot))}
    errors = [Away(task.id, _THERE.format(reason)) for task, reason in away.items()]
    return {task: found[task] for task in found if task not in away}, [*errors]


def _connected(jobs: Jobs, job: Job) -> bool:
    """Whether there is a connection to a host of a job now."""
    from jobctl.links import Links, LinkState
    from jobctl.share import FarTask

    book = Links(jobs.state_dir)
    task = jobs.folder(job.id.partition(".")[0])
    folders = task.shares() if isinstance(task, FarTask) else [jobs.folder(job.id)]
    return any(book.link(part.link_name(book)).state is LinkState.OPENED for part in folders)


def reachable(chosen: list[Job]) -> tuple[list[Job], list[JobctlError]]:
    """Return the local jobs that can be acted on, and an error for each that cannot.

    The latter run on another machine that shares our state directory.
    """
    local = [job for job in chosen if job.type not in (TYPE_REMOTE, TYPE_TASK)]
    away = [job for job in local if job.state is State.DISCONNECTED]
    errors = [Away(job.id, _THERE.format(job.reason)) for job in away]
    return [job for job in local if job not in away], [*errors]


def on_hosts(chosen: list[Job]) -> list[Job]:
    """Return the jobs that the agent has to do with."""
    return [job for job in chosen if job.type == TYPE_REMOTE]


def ask_hosts(
    jobs: Jobs,
    operation: str,
    chosen: list[Job],
    ask: Asked | None,
    deadline: float | None = None,
    **how: Any,
) -> list[JobctlError]:
    """Have the agent do something to jobs on hosts; return an error for each it failed with.

    :param ask: has a person at the terminal answer what hosts want to know.
    :param deadline: until when, by time.monotonic().
    :raises TimeoutError: it is not done by then; the agent goes on with it.
    """
    if not chosen:
        return []
    from jobctl.agent import client

    ids, person = [job.id for job in chosen], ask is not None
    request = {"op": operation, "jobs": ids, "person": person, **how}
    answer = client.call(jobs.state_dir, request, ask=ask, deadline=deadline)
    errors: list[JobctlError] = [
        NotActedOn(job_id, f": {why}", status) for job_id, (status, why) in answer["errors"].items()
    ]
    errors += [Unreached(job_id, how["name"]) for job_id in answer.get("missed", ())]
    errors += [Unbegun(job_id) for job_id in answer.get("unbegun", ())]
    return errors + [Unended(job_id) for job_id in answer.get("left", ())]


def send(
    jobs: Jobs, named: list[Job], chosen: list[Job], name: str, ask: Asked | None = None
) -> list[JobctlError]:
    """Send the signal called name, without SIG, to all that the unfinished jobs started.

    :param named: what the user named.
    :param chosen: the same, with the children on hosts in the place of their parents.
    :return: an error for each job that is out of reach, and for each named one of which nothing
        has begun.
    """
    here, errors = reachable(chosen)
    found, away = _reachable_items(_items(jobs, chosen))
    errors += away
    for task, numbers in found.items():
        some = [_WHOLE] if _WHOLE in numbers else sorted(n for n in numbers if not task.ended(n))
        if some and not task.finished():
            errors += _sent([task.id], name, partial(runner.send_to_items, task, some, name))
    targets = [(jobs.folder(job.id), job.instance_id) for job in here if not job.state.finished]
    ids = [folder.id for folder, _ in targets]
    errors += _sent(ids, name, partial(runner.send, targets, name))
    # What is known here of those that begin on a host may be of before that.
    there = [job for job in on_hosts(chosen) if not job.state.finished]
    errors += ask_hosts(jobs, "signal", there, ask, name=name)
    unbegun = {error.job for error in errors if isinstance(error, Unbegun)}
    told = [Unbegun(job.id) for job in named if unbegun.issuperset(_parts(jobs, job))]
    return [*told, *(error for error in errors if not isinstance(error, Unbegun))]


def _parts(jobs: Jobs, job: Job) -> tuple[str, ...]:
    """Return the ids of what is acted on for a job."""
    several = job.children and not isinstance(jobs.folder(job.id), Task)
    return job.children if several else (job.id,)


def _sent(ids: list[str], name: str, send: Callable[[], runner.Sent]) -> list[JobctlError]:
    """Send a signal to jobs with these ids; return what is to be told of it."""
    try:
        sent = send()
    except runner.Cut:
        return [Cut(job_id, f"send it signal {name}") for job_id in ids]
    missed: list[JobctlError] = [Unreached(job_id, name) for job_id in sorted(sent.missed)]
    return missed + [Unbegun(job_id) for job_id in sorted(sent.unbegun)]
