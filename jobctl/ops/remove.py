"""Removes jobs: record, output, and what they left running."""

from __future__ import annotations

from jobctl.errors import JobctlError, Refused
from jobctl.model import Job, State
from jobctl.ops.stop import stop
from jobctl.store import Store

_GRACE = 10.0


def remove(store: Store, chosen: list[Job], force: bool, local_only: bool) -> list[JobctlError]:
    """Delete the finished jobs, with force the others as well, after stopping them.

    :param local_only: delete also the record of a job that runs where it cannot be reached.
    :return: an error for each job that is still there.
    """
    forgotten = [job for job in chosen if local_only and job.state is State.DISCONNECTED]
    rest = [job for job in chosen if job not in forgotten]
    refused = [] if force else [job for job in rest if not job.state.finished]
    errors: list[JobctlError] = [
        Refused(f"job {job.id} is {job.state.value}; stop it first, or remove it with --force")
        for job in refused
    ]
    unwanted = [job for job in rest if job not in refused]
    errors += stop(store.jobs, unwanted, _GRACE, "removed")
    for job in forgotten:
        store.jobs.folder(job.number).delete()
    for job in unwanted:
        folder = store.jobs.folder(job.number)
        if folder.finished():
            folder.delete()
    store.refresh()
    return errors
