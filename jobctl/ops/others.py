"""What a job about to be started has to do with those there are."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Callable

from jobctl.errors import BadUsage
from jobctl.model import Job
from jobctl.ops.find import Filter, find
from jobctl.store import Store


def unless_running(state_dir: str, name: str, begin: Callable[[], Job]) -> tuple[Job, bool]:
    """Return the unfinished job called name, else what begin() starts, and whether it did.

    Of several callers at once one starts it.
    """
    store = Store(state_dir)
    lock = os.open(f"{state_dir}/singleton.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Of this name only: a start may take long, as it reads the job's standard input.
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, zlib.crc32(os.fsencode(name)))
        store.refresh()
        for job in store.select("NOT final AND name = ?", [name]):
            if not job.state.finished:
                return job, False
        return begin(), True
    finally:
        os.close(lock)


def dependencies(state_dir: str, selectors: list[str]) -> tuple[str, ...]:
    """Return the ids of the jobs to wait for: of those of one name the newest.

    :raises NotFound: one of the selectors matches no job.
    """
    if not selectors:
        return ()
    found = find(Store(state_dir), selectors, Filter(), one_each=True)
    for error in found.missing:
        raise error
    for job in found.jobs:
        if job.parent and job.item is not None:
            raise BadUsage(f"{job.id} is an item of job {job.parent}; wait for that as a whole")
    return tuple(job.id for job in found.jobs)
