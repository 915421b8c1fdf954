"""Removes jobs: record, output, and what they left running."""

from __future__ import annotations

from typing import NamedTuple

from jobctl.errors import JobctlError, Refused
from jobctl.model import Job, State
from jobctl.ops.stop import Unended, stop
from jobctl.store import Store

_GRACE = 10.0


class Plan(NamedTuple):
    """What is to become of some jobs."""

    delete: list[Job]
    """After stopping what is left of them."""
    forget: list[Job]
    """Only the record: they run where they cannot be reached."""
    errors: list[JobctlError]
    """Why the others stay."""


def plan(chosen: list[Job], force: bool, local_only: bool) -> Plan:
    """Return what remove() would do.

    :param force: stop and delete also what is not finished.
    :param local_only: forget also what runs where it cannot be reached.
    """
    delete, forget, errors = list[Job](), list[Job](), list[JobctlError]()
    for job in chosen:
        if job.state is State.DISCONNECTED and local_only:
            forget.append(job)
        elif job.state.finished or force:
            delete.append(job)
        else:
            errors.append(
                Refused(
                    f"job {job.id} is {job.state.value}; stop it first, or remove it with --force"
                )
            )
    return Plan(delete, forget, errors)


def remove(store: Store, todo: Plan) -> list[JobctlError]:
    """Carry out a plan; return an error for each job that is still there."""
    errors = todo.errors + stop(store.jobs, todo.delete, _GRACE, "removed")
    unended = {error.number for error in errors if isinstance(error, Unended)}
    for job in todo.forget:
        store.jobs.folder(job.number).delete()
    for job in todo.delete:
        folder = store.jobs.folder(job.number)
        if folder.finished() and job.number not in unended:
            folder.delete()
    store.refresh()
    return errors
