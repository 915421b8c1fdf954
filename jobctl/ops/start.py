"""Starts a job: from what was asked for to a runner that says it began, or an agent that knows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from jobctl import draft, process
from jobctl.errors import JobctlError
from jobctl.folder import Folder
from jobctl.jobs import Jobs
from jobctl.model import Job, JobSpec
from jobctl.runner import Runner, begin_slots
from jobctl.task import Task


def start(
    state_dir: str,
    spec: JobSpec,
    brief: bool = False,
    attend: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Job:
    """Return the new job: durably recorded, and, if it runs here, begun unless it waits.

    Killed at any instant, this leaves either no job or a whole one. So does whatever fails: once
    there is a job, nothing takes it back.

    :param brief: without a look at how it goes on hosts, which may be many.
    :param attend: is told its id before it is real, and an agent may begin it on a host.

    :param tell: is told what is wrong with a job that is recorded all the same.

    :raises JobctlError: it could not be recorded; then there is no job. Or it was, which the
        message says, and could not be begun yet.
    """
    launch = _entrust if spec.places else _launch if spec.items is None else _deal_out
    folder = None
    try:
        folder = Jobs(state_dir).allocate()
        if attend and spec.places:
            attend(folder.id)
        why = launch(folder, spec)
    except OSError as error:
        if folder and folder.exists():
            raise JobctlError(
                f"job {folder.id} is recorded, and begins with the next jobctl: {error.strerror}"
            ) from error
        if folder:
            with suppress(OSError):
                folder.delete()
        raise JobctlError(
            f"cannot start a job in {state_dir}: {error.strerror}; nothing was recorded"
        ) from error
    except BaseException:
        if folder and not folder.exists():
            folder.delete()
        raise
    if why and tell:
        tell(f"job {folder.id} is recorded, but a power failure may undo that: {why}")
    if brief and spec.places:
        return folder.planned()
    job = Jobs(state_dir).folder(folder.id).read(process.boot_id())
    if job is None:
        raise JobctlError(f"job {folder.id} was removed while it started")
    return job


def _launch(folder: Folder, spec: JobSpec) -> str:
    """Have a runner begin the job here; return what commit() does, as the others below."""
    # The runner's shell starts up while the files are written.
    runner = Runner(folder)
    try:
        draft.write(folder, spec)
        if not runner.ready():
            why = folder.log() or "is the disk full?"
            raise JobctlError(f"the runner did not start: {why}; nothing was recorded")
        why = draft.commit(folder)
    except BaseException:
        runner.abandon()
        raise
    runner.go()
    return why


def _deal_out(folder: Folder, spec: JobSpec) -> str:
    """Have slots here run the job's items."""
    task = Task(folder.path)
    with task.alone() as lock:
        draft.write(folder, spec)
        why = draft.commit(folder)
        if lock is not None:  # it is ours: nobody knows of the job
            begin_slots(task, lock, int(task.spec()["throttle"]))
        return why


def _entrust(folder: Folder, spec: JobSpec) -> str:
    """Have the agent begin the job on its hosts, as soon as they are reached."""
    from jobctl.agent import client

    client.begin(folder.state_dir)  # it starts up while the files are written
    with Task(folder.path).alone():  # its input may take long, and be read from a pipe
        draft.write(folder, spec._replace(sendable=client.sendable(folder.state_dir)))
        why = draft.commit(folder)
    client.wake(folder.state_dir, folder.id)
    return why
