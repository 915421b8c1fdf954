"""Stops jobs, or sends them a signal."""

from __future__ import annotations

from jobctl import runner
from jobctl.errors import JobctlError, Unreachable
from jobctl.folder import Jobs
from jobctl.model import Job, State


class Unended(JobctlError):
    """Something of a job cannot be ended."""

    def __init__(self, number: int) -> None:
        """Say so of the job of that number."""
        self.number = number
        super().__init__(
            f"job {number}: some of its processes cannot be ended (another user's, or in"
            " uninterruptible sleep); stop it again later"
        )


def stop(jobs: Jobs, chosen: list[Job], grace: float, reason: str) -> list[JobctlError]:
    """End all that these jobs started, finished ones' leftovers included.

    :param grace: seconds from TERM to KILL.
    :return: an error for each job of which something is left.
    """
    why = f"stopped by user: {' '.join(reason.split())}" if reason.strip() else "stopped by user"
    here, errors = reachable(chosen)
    living = runner.bearers() if any(job.state.finished for job in here) else set()
    targets = [
        (jobs.folder(job.number), job.instance_id)
        for job in here
        if not job.state.finished or job.instance_id in living
    ]
    return errors + [Unended(number) for number in sorted(runner.stop(targets, grace, why))]


def reachable(chosen: list[Job]) -> tuple[list[Job], list[JobctlError]]:
    """Return the jobs that can be acted on from here, and an error for each other one."""
    away = [job for job in chosen if job.state is State.DISCONNECTED]
    errors = [Unreachable(f"job {job.id} {job.reason}; act on it there") for job in away]
    return [job for job in chosen if job not in away], [*errors]


def send(jobs: Jobs, chosen: list[Job], name: str) -> list[JobctlError]:
    """Send the signal called name, without SIG, to all that the unfinished jobs started.

    :return: an error for each job that is out of reach.
    """
    here, errors = reachable(chosen)
    runner.send(
        [(jobs.folder(job.number), job.instance_id) for job in here if not job.state.finished], name
    )
    return errors
