"""A state directory for one measurement: made, filled, and cleared away with all its jobs."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import probe

from jobctl import quoting
from jobctl.folder import Folder
from jobctl.jobs import Jobs

JOBCTL = os.path.join(os.path.dirname(probe.PYTHON), "jobctl")

_PAUSE = 0.15
"""Seconds after which a changed folder's time stamp tells it from any later change."""


class Stage:
    """A directory of its own, in which jobctl keeps its state and others may keep theirs."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("JOBCTL_", "PYTHON"))},
            "HOME": path,
            "TMPDIR": path,
            "JOBCTL_STATE_DIR": self.file("state"),
        }
        self._jobs = Jobs(self.file("state"))
        self._last = 0

    def file(self, name: str) -> str:
        """Return the path of a file in here."""
        return os.path.join(self.path, name)

    def command(self, *words: str) -> float:
        """Return the seconds that a command of jobctl takes.

        :raises Broken: it failed.
        """
        return probe.seconds((JOBCTL, *words), self.environment)

    def start(self, *words: str) -> float:
        """Return the seconds that `jobctl start -q` takes."""
        taken = self.command("start", "-q", *words)
        self._last += 1
        return taken

    def start_and_end(self, *words: str) -> float:
        """Do the same, and return after the job has ended: it shall not disturb what follows."""
        taken = self.start(*words)
        with open(self.last.file("lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # which the runner lets go at its end
        time.sleep(0.01)
        return taken

    @property
    def last(self) -> Folder:
        """The folder of the job started last."""
        return self._jobs.folder(self._last)

    def record(self, folder: Folder, name: str) -> dict[str, str]:
        """Return what a file of a job's folder says."""
        with open(folder.file(name), "rb") as file:
            return {key: os.fsdecode(value) for key, value in quoting.load(file.read()).items()}

    def finished(self, count: int) -> None:
        """Make this a store of so many finished jobs, with an index that knows them."""
        while self._last < min(count, 20):
            self.start_and_end("true")
        if self._last < count:
            self._multiply(count)
            os.sync()  # so that writing all this back does not go on meanwhile
        time.sleep(_PAUSE)
        self.command("get", "-q")

    def _multiply(self, count: int) -> None:
        """Copy the last job, each copy with a name and instance id of its own."""
        content = {}
        for name in os.listdir(self.last.path):
            with open(self.last.file(name), "rb") as file:
                content[name] = file.read()
        spec = self.record(self.last, "spec")
        while self._last < count:
            self._last += 1
            own = spec | {"instance_id": str(uuid.uuid4()), "name": f"Job{self._last}"}
            content["spec"] = quoting.dump({key: os.fsencode(v) for key, v in own.items()})
            os.mkdir(self.last.path, 0o700)
            for name, data in content.items():
                with open(self.last.file(name), "wb") as file:
                    file.write(data)
        # The highest id given out, as Jobs.allocate() keeps it.
        with open(self.file("state/last"), "w") as last:
            last.write(f"{self._last:020d}\n")

    def forget_index(self) -> None:
        """Take the index away, so that the next command has to make it anew."""
        os.unlink(self.file("state/index.db"))

    def end(self) -> float:
        """End all jobs, and return the seconds that takes."""
        return self.command("remove", "--all", "--force")


@contextmanager
def stage() -> Iterator[Stage]:
    """Give a new stage; at the end nothing is left of it, and of its jobs none runs."""
    path = tempfile.mkdtemp(prefix="jobctl-benchmark-")
    made = Stage(path)
    try:
        try:
            yield made
        finally:
            made.end()
    finally:
        shutil.rmtree(path, ignore_errors=True)
