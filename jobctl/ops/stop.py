"""Stops jobs, or sends them a signal."""

from __future__ import annotations

from typing import Any

from jobctl import runner
from jobctl.errors import JobctlError, Unreachable
from jobctl.folder import Jobs
from jobctl.model import TYPE_REMOTE, Job, State


class Unended(JobctlError):
    """Something of a job cannot be ended."""

    def __init__(self, job_id: str) -> None:
        """Say so of a job."""
        self.job = job_id
        super().__init__(
            f"job {job_id}: some of its processes cannot be ended (another user's, or in"
            " uninterruptible sleep); stop it again later"
        )


class Away(Unreachable):
    """A job's host is out of reach."""

    def __init__(self, job_id: str, why: str) -> None:
        """Say so of a job."""
        self.job = job_id
        super().__init__(f"job {job_id}: {why}")


def stop(
    jobs: Jobs, chosen: list[Job], grace: float, reason: str, reach: bool = True
) -> list[JobctlError]:
    """End all that these jobs, none of them a parent, started; finished ones' leftovers included.

    :param grace: seconds from TERM to KILL.
    :param reach: also connect to hosts where there can be leftovers only.
    :return: an error for each job of which something is left.
    """
    why = f"stopped by user: {' '.join(reason.split())}" if reason.strip() else "stopped by user"
    here, errors = reachable(chosen)
    living = runner.bearers() if any(job.state.finished for job in here) else set()
    targets = [
        (jobs.folder(job.id), job.instance_id)
        for job in here
        if not job.state.finished or job.instance_id in living
    ]
    errors += [Unended(job_id) for job_id in sorted(runner.stop(targets, grace, why))]
    there = [
        job
        for job in on_hosts(chosen)
        if not job.state.finished or (job.pid and (reach or _connected(jobs, job)))
    ]
    return errors + ask_hosts(jobs, "stop", there, grace=grace, reason=why)


def _connected(jobs: Jobs, job: Job) -> bool:
    """Whether there is a connection to the host of a job now."""
    from jobctl.links import Links, LinkState

    link = Links(jobs.state_dir).link(jobs.folder(job.id).link_name())
    return link.state is LinkState.OPENED


def reachable(chosen: list[Job]) -> tuple[list[Job], list[JobctlError]]:
    """Return the local jobs that can be acted on, and an error for each that cannot.

    The latter run on another machine that shares our state directory.
    """
    local = [job for job in chosen if job.type != TYPE_REMOTE]
    away = [job for job in local if job.state is State.DISCONNECTED]
    errors = [Unreachable(f"job {job.id} {job.reason}; act on it there") for job in away]
    return [job for job in local if job not in away], [*errors]


def on_hosts(chosen: list[Job]) -> list[Job]:
    """Return the jobs that the agent has to do with."""
    return [job for job in chosen if job.type == TYPE_REMOTE]


def ask_hosts(jobs: Jobs, operation: str, chosen: list[Job], **how: Any) -> list[JobctlError]:
    """Have the agent do something to jobs on hosts; return an error for each it failed with."""
    if not chosen:
        return []
    from jobctl.agent import client

    request = {"op": operation, "jobs": [job.id for job in chosen], **how}
    answer = client.call(jobs.state_dir, request)
    errors: list[JobctlError] = [Away(*entry) for entry in answer["errors"].items()]
    return errors + [Unended(job_id) for job_id in answer.get("left", ())]


def send(jobs: Jobs, chosen: list[Job], name: str) -> list[JobctlError]:
    """Send the signal called name, without SIG, to all that the unfinished jobs started.

    :return: an error for each job that is out of reach.
    """
    here, errors = reachable(chosen)
    runner.send(
        [(jobs.folder(job.id), job.instance_id) for job in here if not job.state.finished], name
    )
    unfinished = [job for job in on_hosts(chosen) if not job.state.finished]
    return errors + ask_hosts(jobs, "signal", unfinished, name=name)
