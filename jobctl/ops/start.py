"""Starts a job: from what was asked for to a runner that says it began, or an agent that knows."""

from __future__ import annotations

from jobctl import draft, process
from jobctl.errors import JobctlError
from jobctl.folder import Folder, Jobs
from jobctl.model import Job, JobSpec
from jobctl.runner import Runner


def start(state_dir: str, spec: JobSpec) -> Job:
    """Return the new job: durably recorded, and, if it runs here, begun unless it waits.

    Killed at any instant, this leaves either no job or a whole one.

    :raises JobctlError: it could not be recorded; then there is no job.
    """
    launch = _entrust if spec.places else _launch
    folder = None
    try:
        folder = Jobs(state_dir).allocate()
        launch(folder, spec)
    except OSError as error:
        if folder:
            folder.delete()
        raise JobctlError(
            f"cannot start a job in {state_dir}: {error.strerror}; nothing was recorded"
        ) from error
    except BaseException:
        if folder and not folder.exists():
            folder.delete()
        raise
    job = folder.read(process.boot_id())
    if job is None:
        raise JobctlError(f"job {folder.id} was removed while it started")
    return job


def _launch(folder: Folder, spec: JobSpec) -> None:
    """Have a runner begin the job here."""
    # The runner's shell starts up while the files are written.
    runner = Runner(folder)
    try:
        draft.write(folder, spec)
        if not runner.ready():
            why = folder.log() or "is the disk full?"
            raise JobctlError(f"the runner did not start: {why}; nothing was recorded")
        draft.commit(folder)
    except BaseException:
        runner.abandon()
        raise
    runner.go()


def _entrust(folder: Folder, spec: JobSpec) -> None:
    """Have the agent begin the job on its hosts, as soon as they are reached."""
    from jobctl.agent import client

    draft.write(folder, spec)
    draft.commit(folder)
    client.wake(folder.state_dir)
