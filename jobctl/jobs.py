"""All job folders of a state directory: found by id, listed, and made."""

from __future__ import annotations

import fcntl
import os
import re
from typing import BinaryIO

from jobctl import records
from jobctl.folder import GONE, Folder
from jobctl.share import FarTask
from jobctl.task import Task

_KEPT = 64
"""Jobs with items of which is kept what was read of them, at least."""
_NUMBER = re.compile(r"[1-9]\d{0,17}", re.ASCII)


class Jobs:
    """The folder of all job folders."""

    def __init__(self, state_dir: str) -> None:
        self.path = f"{state_dir}/jobs"
        self.state_dir = state_dir
        self._tasks: dict[str, Task] = {}
        self._room = _KEPT
        """How many of these there may be until those that are over are forgotten."""

    def folder(self, job_id: str | int) -> Folder:
        """Return the folder of a job that need not exist."""
        number, _, child = str(job_id).partition(".")
        folder = self._tasks.get(number) or self._whole(number)
        return folder.child(int(child)) if child else folder

    def _whole(self, number: str) -> Folder:
        path = f"{self.path}/{number}"
        if not Task.is_at(path):
            return Folder(path)
        if len(self._tasks) >= self._room:
            known = list(self._tasks.items())  # to which others may add
            going_on = {n: t for n, t in known if t.exists() and not t.finished()}
            self._tasks, self._room = going_on, max(_KEPT, 2 * len(going_on))
        task = (FarTask if FarTask.is_at(path) else Task)(path)
        # Kept, as it knows by now how its children ended; but not one that is being written.
        return self._tasks.setdefault(number, task) if task.exists() else task

    def numbers(self, sweep: bool = False) -> list[int]:
        """Return the numbers of all folders, in no order.

        :param sweep: delete what is left of jobs whose removal was cut short.
        """
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        for name in names if sweep else ():
            if name.endswith(GONE):
                import shutil

                shutil.rmtree(f"{self.path}/{name}", ignore_errors=True)
        return [int(name) for name in names if _NUMBER.fullmatch(name)]

    def stamp(self) -> int:
        """Return what changes when a folder comes or goes: nanoseconds since 1970."""
        try:
            return os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return 0

    def allocate(self) -> Folder:
        """Make the folder of the next job. Its number was never used before.

        The file `last` keeps the highest number given out, as removed jobs leave no trace
        here, and `last.copy` should somebody delete or damage it. mkdir has the last word.

        :raises OSError: the disk is full, say.
        """
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        with self._counter("last") as last, self._counter("last.copy") as copy:
            fcntl.flock(last, fcntl.LOCK_EX)
            number = max(_counted(last), _counted(copy)) or max(self.numbers(), default=0)
            while True:
                number += 1
                try:
                    os.mkdir(f"{self.path}/{number}", 0o700)
                    break
                except FileExistsError:
                    continue
            try:
                for counter in (copy, last):
                    records.put_at(counter.fileno(), b"%020d\n" % number, 0)
            except OSError:
                os.rmdir(f"{self.path}/{number}")
                raise
        return self.folder(number)

    def _counter(self, name: str) -> BinaryIO:
        path = f"{self.state_dir}/{name}"
        return open(records.opened(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)


def _counted(counter: BinaryIO) -> int:
    """Return the number in a file, 0 if there is none that can be a job's."""
    digits = records.text(os.pread(counter.fileno(), 21, 0).strip().lstrip(b"0"))
    return int(digits) if _NUMBER.fullmatch(digits) else 0
