"""Starts a job: from what was asked for to a runner that says it began."""

from __future__ import annotations

from jobctl import process
from jobctl.errors import JobctlError
from jobctl.folder import Folder, Jobs
from jobctl.model import Job, JobSpec
from jobctl.runner import Runner


def start(state_dir: str, spec: JobSpec) -> Job:
    """Return the new job: durably recorded, and begun unless it waits for another.

    Killed at any instant, this leaves either no job or a whole one.

    :raises JobctlError: it could not be recorded; then there is no job.
    """
    folder = None
    try:
        folder = Jobs(state_dir).allocate()
        _launch(folder, spec)
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
        raise JobctlError(f"job {folder.number} was removed while it started")
    return job


def _launch(folder: Folder, spec: JobSpec) -> None:
    # The runner's shell starts up while the files are written.
    runner = Runner(folder)
    try:
        folder.write(spec)
        if not runner.ready():
            why = folder.log() or "is the disk full?"
            raise JobctlError(f"the runner did not start: {why}; nothing was recorded")
        folder.commit()
    except BaseException:
        runner.abandon()
        raise
    runner.go()
