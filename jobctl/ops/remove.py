"""Removes jobs: record, output, and what they left running."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jobctl.errors import JobctlError, Refused
from jobctl.model import TYPE_REMOTE, Job, State
from jobctl.ops.find import parts
from jobctl.ops.stop import NotActedOn, Unended, ask_hosts, on_hosts, stop
from jobctl.store import Store

if TYPE_CHECKING:
    from jobctl.agent.client import Asked

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
    whole = {job.id for job in chosen}
    for job in chosen:
        if job.parent in whole:
            continue
        if job.parent:
            errors.append(
                Refused(f"{job.id} is a part of job {job.parent}; remove that as a whole")
            )
        elif local_only and (job.type == TYPE_REMOTE or job.state is State.DISCONNECTED):
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


def remove(store: Store, todo: Plan, ask: Asked | None = None) -> list[JobctlError]:
    """Carry out a plan; return an error for each job that is still there.

    :param ask: has a person at the terminal answer what hosts want to know.
    """
    pieces = {job.id: parts(store, [job], items=False) for job in todo.delete}
    every = [part for part_list in pieces.values() for part in part_list]
    errors = stop(store.jobs, every, _GRACE, "removed", reach=False, ask=ask)
    away = {error.job for error in errors if isinstance(error, NotActedOn)}
    over = (part for part in every if store.jobs.folder(part.id).finished())
    done = [part for part in over if part.id not in away]
    errors += ask_hosts(store.jobs, "erase", on_hosts(done), ask)
    for job in todo.forget:
        errors += _deleted(store, job.id)
    kept = {error.job for error in errors if isinstance(error, NotActedOn)}
    folders = [store.jobs.folder(part.id) for part in every]
    # In this order, as somebody else may be removing it.
    unfinished = {folder.id for folder in folders if not folder.finished() and folder.exists()}
    unfinished -= kept
    errors += map(Unended, sorted(unfinished))
    for job_id, children in pieces.items():
        if not (kept | unfinished).intersection(part.id for part in children):
            errors += _deleted(store, job_id)
    if todo.forget and any(job.type == TYPE_REMOTE for job in todo.forget):
        from jobctl.agent import client

        client.wake(store.jobs.state_dir)
    store.refresh()
    return todo.errors + errors


def _deleted(store: Store, job_id: str) -> list[JobctlError]:
    """Delete the folder of a job; return an error if that cannot be done."""
    try:
        store.jobs.folder(job_id).delete()
    except OSError as error:
        return [NotActedOn(job_id, f" cannot be removed: {error.strerror}")]
    return []
